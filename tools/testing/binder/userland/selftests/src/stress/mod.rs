// SPDX-License-Identifier: GPL-2.0

//! Everything at once, for as long as wanted: processes that send and receive, and that end, fork,
//! execute programs and lose their areas at any moment; cgroups that they are moved between, and
//! that are removed; and memory being taken from all of them. Then nothing may be left.
//!
//! The seed decides what each process does, one thing after the other, and what the director does to
//! them. When each gets its turn is up to the kernel.

mod actors;
mod area;
mod counts;
mod pressure;

use crate::{
    binder::{Device, MIB},
    cgroup::{drop_caches, Cgroup, Tree},
    check, check_eq,
    data::{pattern, payload},
    endpoint::{Endpoint, Txn},
    fail, note,
    outcome::{vanishes, Context, Outcome, Stop, PATIENCE},
    process::{expect_fine, fork},
    shrinker,
};
use actors::Stage;
use counts::{Counts, Kind};
use fastrand::Rng;
use rustix::process::{kill_process, wait, Pid, Signal, WaitOptions};
use std::{
    fs,
    thread::{available_parallelism, sleep},
    time::{Duration, Instant},
};

/// How many processes receive on a device of their own, and how many send.
const SERVICES: usize = 4;
const CLIENTS: usize = 5;
const CGROUPS: usize = 4;

const PRELUDE: Duration = Duration::from_secs(5);

/// How much free memory may differ in the end, in pages: what the kernel keeps for itself differs.
const SLACK: u64 = 2048;

/// One process, and what comes in its place when it ends.
struct Actor {
    number: usize,
    rng: Rng,
    running: Option<(Pid, Instant)>,
}

struct Director<'a> {
    stage: Stage<'a>,
    rng: Rng,
    tree: &'a Tree,
    cgroups: Vec<Cgroup>,
    /// How many cgroups there were.
    made: u64,
    actors: Vec<Actor>,
}

/// Runs a body in a new process; what goes wrong there is said there.
fn start(body: impl FnOnce() -> Outcome) -> Pid {
    fork(|| match body() {
        Err(Stop::Fail(why)) => {
            note!("in a process: {why}");
            1
        }
        Ok(()) | Err(Stop::Skip(_)) => 0,
    })
}

impl Director<'_> {
    fn add_cgroup(&mut self) -> Outcome<Cgroup> {
        self.made += 1;
        self.tree.child(&self.made.to_string())
    }

    /// Begins what isn't running, and ends what has run for long enough.
    fn tend(&mut self) -> Outcome {
        let now = Instant::now();
        for actor in &mut self.actors {
            match actor.running {
                None => {
                    let (stage, number, rng) = (self.stage, actor.number, actor.rng.fork());
                    let pid = start(|| match number {
                        ..SERVICES => actors::service(stage, number, rng),
                        _ => actors::client(stage, number % SERVICES, rng),
                    });
                    // It may have ended already.
                    let _ = self.cgroups[self.rng.usize(0..CGROUPS)].add(pid);
                    let time = Duration::from_millis(actor.rng.u64(20..2000));
                    actor.running = Some((pid, now + time));
                    self.stage.counts.add(Kind::Spawned);
                }
                Some((pid, end)) if end < now => {
                    kill_process(pid, Signal::KILL)?;
                    actor.running = Some((pid, now + PATIENCE));
                    self.stage.counts.add(Kind::Killed);
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Takes note of what has ended.
    fn reap(&mut self) -> Outcome {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            expect_fine(pid, status)?;
            for actor in &mut self.actors {
                if actor.running.is_some_and(|(running, _)| running == pid) {
                    actor.running = None;
                }
            }
        }
        Ok(())
    }

    fn migrate(&mut self) {
        let actor = &self.actors[self.rng.usize(0..self.actors.len())];
        let cgroup = &self.cgroups[self.rng.usize(0..CGROUPS)];
        if let Some((pid, _)) = actor.running {
            if cgroup.add(pid).is_ok() {
                self.stage.counts.add(Kind::Migrated);
            }
        }
    }

    /// Removes a cgroup, with all that is charged to it, and makes another one.
    fn replace_cgroup(&mut self) -> Outcome {
        let new = self.add_cgroup()?;
        let old = self.rng.usize(0..CGROUPS);
        let old = std::mem::replace(&mut self.cgroups[old], new);
        let until = Instant::now() + PATIENCE;
        loop {
            for pid in old.processes()? {
                let _ = self.cgroups[self.rng.usize(0..CGROUPS)].add(pid);
            }
            if old.try_remove() {
                self.stage.counts.add(Kind::Removed);
                return Ok(());
            }
            check!(Instant::now() < until, "a cgroup can't be removed");
            sleep(Duration::from_millis(1));
        }
    }

    fn direct(&mut self, time: Duration) -> Outcome {
        let begin = Instant::now();
        let (mut told, mut seen, mut moved) = (begin, 0, begin);
        while begin.elapsed() < time {
            self.reap()?;
            self.tend()?;
            match self.rng.u32(0..32) {
                0..8 => self.migrate(),
                8 => self.replace_cgroup()?,
                _ => {}
            }
            let counts = &self.stage.counts;
            let traffic = counts.get(Kind::Called) + counts.get(Kind::Sent);
            if traffic != seen {
                (seen, moved) = (traffic, Instant::now());
            }
            check!(moved.elapsed() < PATIENCE, "nothing gets through any more");
            if told.elapsed() > Duration::from_secs(5) {
                told = Instant::now();
                note!(
                    "{:>4} s: {} calls, {} oneway, {} failed, {} processes, {} cgroups removed, {} idle pages",
                    begin.elapsed().as_secs(),
                    counts.get(Kind::Called),
                    counts.get(Kind::Sent),
                    counts.get(Kind::Failed) + counts.get(Kind::Dead),
                    counts.get(Kind::Spawned),
                    counts.get(Kind::Removed),
                    shrinker::total()
                );
            }
            sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Ends all processes, these too.
    fn end(&mut self, others: &[Pid]) -> Outcome {
        let actors = self.actors.iter_mut();
        let running = actors.filter_map(|actor| Some(actor.running.take()?.0));
        for pid in running.chain(others.iter().copied()) {
            // Nobody else waits for it, so the number is still its own.
            let _ = kill_process(pid, Signal::KILL);
        }
        let until = Instant::now() + PATIENCE;
        // Orphans come to us, and end soon.
        while let Ok(ended) = wait(WaitOptions::NOHANG) {
            match ended {
                Some((pid, status)) => expect_fine(pid, status)?,
                None => sleep(Duration::from_millis(1)),
            }
            check!(Instant::now() < until, "a process hangs in the kernel");
        }
        Ok(())
    }
}

/// What is to be in the end as it was in the beginning.
struct World {
    shrinkers: usize,
    state: String,
    stats: String,
    free: u64,
    taint: String,
}

impl World {
    fn now() -> Outcome<Self> {
        drop_caches()?;
        let log = |name| fs::read_to_string(format!("/dev/binderfs/binder_logs/{name}"));
        let vmstat = fs::read_to_string("/proc/vmstat")?;
        let free = vmstat
            .lines()
            .find_map(|line| line.strip_prefix("nr_free_pages "));
        Ok(World {
            shrinkers: fs::read_dir("/sys/kernel/debug/shrinker")?.count(),
            state: log("state")?,
            // But the counters of commands and returns, which only grow.
            stats: log("stats")?
                .lines()
                .filter(|line| !line.starts_with("BC_") && !line.starts_with("BR_"))
                .collect(),
            free: free.unwrap_or_default().parse()?,
            taint: fs::read_to_string("/proc/sys/kernel/tainted")?,
        })
    }
}

/// Whether the driver still does what it is for, with all of an area.
fn still_works(dev: &Device, data: &[u8]) -> Outcome {
    let mut service = Endpoint::manager(dev, MIB)?;
    let mut client = Endpoint::client(dev)?;
    for len in [0, 8, 100_000, actors::LONGEST] {
        client.post(&Txn::new(payload(data, len)))?;
        let txn = service.receive()?;
        check!(
            txn.has(payload(data, len)),
            "a payload of {len} bytes changed"
        );
        service.reply(&txn, &[])?;
        match client.reply_to_post()? {
            Ok(reply) => client.free(reply.addr)?,
            Err(code) => fail!("a call of {len} bytes: {}", crate::uapi::name(code)),
        }
    }
    Ok(())
}

/// Prints the results in TAP.
struct Tap {
    tests: u32,
    failed: u32,
}

impl Tap {
    fn test(&mut self, name: &str, outcome: Outcome) {
        self.tests += 1;
        let verdict = match outcome {
            Ok(()) => "ok",
            Err(Stop::Fail(why) | Stop::Skip(why)) => {
                note!("{why}");
                self.failed += 1;
                "not ok"
            }
        };
        println!("{verdict} {} - stress.{name}", self.tests);
    }
}

/// Runs the stress; true if all was well.
pub fn run(seed: u64, time: Duration) -> bool {
    println!("TAP version 13");
    note!("seed {seed}, {} seconds", time.as_secs());
    let mut tap = Tap {
        tests: 0,
        failed: 0,
    };
    if let Err(error) = stress(seed, time, &mut tap) {
        tap.test("begins", Err(error));
    }
    println!("1..{}", tap.tests);
    note!("{} passed, {} failed", tap.tests - tap.failed, tap.failed);
    tap.failed == 0
}

fn stress(seed: u64, time: Duration, tap: &mut Tap) -> Outcome {
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    let cpus = available_parallelism()?;
    check!(
        cpus.get() > 1,
        "on one CPU nothing happens at once: boot with two or more (make stress VM=qemu)"
    );
    shrinker::need()?;
    let devices = (0..SERVICES)
        .map(|i| Device::create(&format!("stress{i}")))
        .collect::<Result<Vec<_>, _>>()
        .context("a device")?;
    let data = pattern(seed, actors::LONGEST + 256);
    let counts = Counts::new()?;
    let stage = Stage {
        devices: &devices,
        data: &data,
        counts,
    };
    let tree = Tree::create("stress")?;
    let mut rng = Rng::with_seed(seed);

    let mut director = Director {
        stage,
        rng: rng.fork(),
        tree: &tree,
        cgroups: Vec::new(),
        made: 0,
        actors: Vec::new(),
    };
    for _ in 0..CGROUPS {
        let cgroup = director.add_cgroup()?;
        director.cgroups.push(cgroup);
    }
    for number in 0..SERVICES + CLIENTS {
        director.actors.push(Actor {
            number,
            rng: rng.fork(),
            running: None,
        });
    }
    // Once, for what the kernel makes when it is needed first, and keeps.
    director.direct(PRELUDE)?;
    director.end(&[])?;
    vanishes("idle pages", || Ok(shrinker::total()))?;
    let before = World::now()?;

    // Here, not in the processes: each of them would have the same.
    let rngs = [rng.fork(), rng.fork(), rng.fork(), rng.fork()];
    let [reclaiming, scanning, dropping, reading] = rngs;
    let pressure = [
        start(|| pressure::reclaim(tree.path(), counts, reclaiming)),
        start(|| pressure::scan(counts, scanning)),
        start(|| pressure::drop_caches(counts, dropping)),
        start(|| pressure::read_logs(counts, reading)),
    ];
    tap.test("nothing_stops_or_breaks", director.direct(time));
    tap.test("all_processes_end", director.end(&pressure));
    counts.print();
    let scarce = counts.scarce();
    tap.test(
        "everything_was_done",
        match scarce.is_empty() {
            true => Ok(()),
            false => Err(Stop::Fail(scarce.join("; "))),
        },
    );

    let Director { cgroups, .. } = director;
    tap.test(
        "no_idle_page_is_left",
        vanishes("idle pages", || Ok(shrinker::total())),
    );
    let removed = cgroups.iter().try_for_each(Cgroup::remove);
    tap.test("cgroups_go", removed.and_then(|()| tree.remove()));
    tap.test("removed_cgroups_are_gone", tree.expect_gone());
    tap.test("nothing_is_charged", tree.expect_uncharged());
    let after = World::now()?;
    tap.test(
        "shrinkers_are_as_before",
        same("shrinkers", after.shrinkers, before.shrinkers),
    );
    tap.test(
        "state_is_as_before",
        same("state", after.state, before.state),
    );
    tap.test(
        "stats_are_as_before",
        same("stats", after.stats, before.stats),
    );
    tap.test(
        "free_memory_is_as_before",
        vanishes("pages are lost", || {
            Ok((before.free - SLACK).saturating_sub(World::now()?.free))
        }),
    );
    tap.test("the_driver_still_works", still_works(&devices[0], &data));
    tap.test(
        "the_kernel_is_not_tainted",
        same("taint", after.taint, before.taint),
    );
    Ok(())
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, after: T, before: T) -> Outcome {
    check_eq!(after, before, "{what}");
    Ok(())
}
