// SPDX-License-Identifier: GPL-2.0

//! What the core of the kernel does with a shrinker's answers and with the lists of a list_lru,
//! seen by the shrinker sample, a cache of objects.
//!
//! A cgroup's own reclaim calls the shrinker for that cgroup only, if it does at all. So where this
//! is the question, all calls that are counted are for the cgroup.

use crate::{
    cgroup::{leave, Cgroup},
    check, check_eq, note,
    outcome::{skip, Outcome},
    process::Peer,
    runner::{Bench, Test},
    sample::{self, drop_caches, Sample},
    shrinker::{nodes, Shrinker},
    tests,
};
use rustix::thread::{sched_setaffinity, CpuSet};
use std::{
    fs,
    thread::sleep,
    time::{Duration, Instant},
};

pub const TESTS: &[Test] = tests!["shrinker":
    empty_is_not_asked_again,
    not_now_is_asked_again,
    scanned_counts_as_work_done,
    objects_in_use_stay,
    drop_caches_frees_all,
    reclaim_frees_the_cgroups_own,
    scan_frees_the_cgroups_own,
    an_object_counts_on_its_own_node,
    removed_cgroups_leave_objects_to_their_parent @ 30,
    one_list_without_memcgs,
    unloaded_with_objects_left,
    unloaded_while_others_scan @ 30,
];

const OBJECTS: u64 = 1000;

/// C's `SHRINK_BATCH` and `DEFAULT_SEEKS`, by which the core goes if a shrinker doesn't say otherwise.
const BATCH: u64 = 128;
const SEEKS: u64 = 2;

/// Adds objects that are charged to a cgroup.
fn add_in(sample: &Sample, cgroup: &Cgroup, n: u64) -> Outcome {
    cgroup.enter()?;
    let added = sample.add(n);
    leave()?;
    Ok(added?)
}

/// How often the shrinker is called while a cgroup is asked for a page.
fn asked(sample: &Sample, cgroup: &Cgroup) -> Outcome<u64> {
    sample.rise("counts", || {
        cgroup.reclaim(1);
        Ok(())
    })
}

/// Objects of a cgroup on each node.
fn of_cgroup(sample: &Sample, cgroup: &Cgroup) -> Outcome<Vec<u64>> {
    let id = cgroup.id()?;
    let lines = sample.shrinker.lines();
    let line = lines.into_iter().find(|line| line.memcg == id);
    Ok(line.map_or_else(|| vec![0; nodes()], |line| line.nodes))
}

/// On how many nodes a cgroup has objects: for each of them the shrinker is called.
fn spread(sample: &Sample, cgroup: &Cgroup) -> Outcome<u64> {
    let objects = of_cgroup(sample, cgroup)?;
    Ok(objects.iter().filter(|count| **count > 0).count() as u64)
}

/// Objects on each node, of all cgroups.
fn by_node(shrinker: &Shrinker) -> Vec<u64> {
    let mut sums = vec![0; nodes()];
    for line in shrinker.lines() {
        for (sum, count) in sums.iter_mut().zip(line.nodes) {
            *sum += count;
        }
    }
    sums
}

/// Runs on the first CPU of a node from now on, so that new memory comes from there. Objects may come
/// from elsewhere: before it gets new memory, the allocator uses up what is free on other nodes.
fn move_to(node: usize) -> Outcome {
    let path = format!("/sys/devices/system/node/node{node}/cpulist");
    let list = fs::read_to_string(path).unwrap_or("0".into());
    let first: String = list.chars().take_while(char::is_ascii_digit).collect();
    let mut cpus = CpuSet::new();
    cpus.set(first.parse()?);
    Ok(sched_setaffinity(None, &cpus)?)
}

/// `SHRINK_EMPTY` takes a shrinker out of the cgroup's bitmap, after it was asked a second time. An
/// object that comes into an empty list puts it in again.
fn empty_is_not_asked_again(_: &Bench) -> Outcome {
    let sample = Sample::start()?;
    let (cgroup, other) = (Cgroup::create("empty")?, Cgroup::create("other")?);
    sample.set("held", "true")?;
    check_eq!(asked(&sample, &cgroup)?, 0, "calls before the first object");
    for round in 0..3 {
        add_in(&sample, &cgroup, 10)?;
        let nodes = spread(&sample, &cgroup)?;
        sample.del(10)?;
        let calls = asked(&sample, &cgroup)?;
        check_eq!(calls, 2 * nodes, "round {round}: calls for {nodes} nodes");
        for _ in 0..3 {
            check_eq!(asked(&sample, &cgroup)?, 0, "round {round}: later calls");
        }
        add_in(&sample, &other, 1)?;
        let calls = asked(&sample, &cgroup)?;
        check_eq!(calls, 0, "round {round}: calls after another got an object");
        check!(asked(&sample, &other)? > 0, "round {round}: none for that");
        sample.del(1)?;
    }
    add_in(&sample, &cgroup, 1)?;
    check!(asked(&sample, &cgroup)? > 0, "no call with an object");
    Ok(())
}

/// 0 leaves it in the bitmap, as long as that is the answer.
fn not_now_is_asked_again(_: &Bench) -> Outcome {
    let sample = Sample::start()?;
    let cgroup = Cgroup::create("busy")?;
    add_in(&sample, &cgroup, OBJECTS)?;
    let nodes = spread(&sample, &cgroup)?;
    sample.set("busy", "true")?;
    let scans = sample.rise("scans", || {
        for round in 0..5 {
            check!(asked(&sample, &cgroup)? > 0, "round {round}: not asked");
        }
        sample.del(OBJECTS)?;
        for round in 0..5 {
            let calls = asked(&sample, &cgroup)?;
            check!(calls > 0, "round {round} with an empty list: not asked");
        }
        Ok(())
    })?;
    check_eq!(scans, 0, "scans");
    // Now it says that there are none.
    sample.set("busy", "false")?;
    let calls = asked(&sample, &cgroup)?;
    check_eq!(calls, 2 * nodes, "calls when not busy any more");
    check_eq!(asked(&sample, &cgroup)?, 0, "later calls");
    Ok(())
}

/// A pass at the highest priority is for twice the objects, in batches. What a scan says to have
/// looked at, more or less than it was asked for, is what it takes off that.
fn scanned_counts_as_work_done(_: &Bench) -> Outcome {
    let sample = Sample::start()?;
    sample.add(OBJECTS)?;
    sample.set("held", "true")?;
    let objects = by_node(&sample.shrinker);
    // Whatever other cgroups there are have nothing, and are not asked after this.
    drop_caches()?;
    for cost in [1, 2, 4, 40, 100_000] {
        sample.set("cost", &cost.to_string())?;
        let (mut scans, mut scanned) = (0, 0);
        for freeable in objects.iter().filter(|freeable| **freeable > 0) {
            let mut work = 4 * freeable / SEEKS;
            while work >= BATCH || work >= *freeable {
                // A walk doesn't come round to the first again.
                let looked_at = work.min(BATCH).min(*freeable) * cost;
                work = work.saturating_sub(looked_at);
                scans += 1;
                scanned += looked_at;
            }
        }
        let before = sample.get("scanned")?;
        let scans_before = sample.get("scans")?;
        // Other shrinkers may make it several passes. Each asks once for each node.
        let counts = sample.rise("counts", drop_caches)?;
        check_eq!(counts % nodes() as u64, 0, "cost {cost}: calls by nodes");
        let passes = counts / nodes() as u64;
        let did = (
            sample.get("scans")? - scans_before,
            sample.get("scanned")? - before,
        );
        note!("cost {cost}: {passes} passes, {scans} scans each");
        check!(passes > 0, "cost {cost}: no pass");
        check_eq!(
            did,
            (scans * passes, scanned * passes),
            "cost {cost}: scans, and objects scanned"
        );
    }
    Ok(())
}

/// They go round in the list, and are all there when they can be freed again.
fn objects_in_use_stay(_: &Bench) -> Outcome {
    let sample = Sample::start()?;
    sample.add(OBJECTS)?;
    sample.set("held", "true")?;
    let freed = sample.rise("freed", || {
        for _ in 0..5 {
            sample.shrinker.scan_all(BATCH);
            drop_caches()?;
        }
        Ok(())
    })?;
    check_eq!(freed, 0, "objects freed while in use");
    check_eq!(sample.get("objects")?, OBJECTS, "objects");
    check_eq!(sample.shrinker.total(), OBJECTS, "objects in the lists");
    sample.set("held", "false")?;
    let freed = sample.rise("freed", || free_all(&sample, drop_caches))?;
    check_eq!(freed, OBJECTS, "objects freed");
    Ok(())
}

fn free_all(sample: &Sample, mut pass: impl FnMut() -> Outcome) -> Outcome {
    for _ in 0..50 {
        pass()?;
        if sample.shrinker.total() == 0 {
            check_eq!(sample.get("objects")?, 0, "objects outside of the lists");
            return Ok(());
        }
    }
    crate::fail!("{} objects stay", sample.shrinker.total())
}

fn drop_caches_frees_all(_: &Bench) -> Outcome {
    let sample = Sample::start()?;
    for n in [1, BATCH, OBJECTS] {
        sample.add(n)?;
        check_eq!(sample.shrinker.total(), n, "objects");
        let freed = sample.rise("freed", || free_all(&sample, drop_caches))?;
        check_eq!(freed, n, "objects freed");
    }
    Ok(())
}

fn reclaim_frees_the_cgroups_own(_: &Bench) -> Outcome {
    let sample = Sample::start()?;
    let (cgroup, other) = (Cgroup::create("squeezed")?, Cgroup::create("spared")?);
    for cgroup in [&cgroup, &other] {
        add_in(&sample, cgroup, OBJECTS)?;
    }
    sample.add(OBJECTS)?;
    let (id, other_id) = (cgroup.id()?, other.id()?);
    let freed = sample.rise("freed", || {
        for _ in 0..50 {
            cgroup.reclaim(OBJECTS);
        }
        Ok(())
    })?;
    check_eq!(sample.shrinker.count(id), 0, "objects of the cgroup");
    check_eq!(freed, OBJECTS, "objects freed");
    check_eq!(
        sample.shrinker.count(other_id),
        OBJECTS,
        "objects of another"
    );
    check_eq!(sample.shrinker.total(), 2 * OBJECTS, "objects");
    check_eq!(sample.get("objects")?, 2 * OBJECTS, "objects in the index");
    Ok(())
}

fn scan_frees_the_cgroups_own(_: &Bench) -> Outcome {
    let sample = Sample::start()?;
    let (cgroup, other) = (Cgroup::create("scanned")?, Cgroup::create("unscanned")?);
    for cgroup in [&cgroup, &other] {
        add_in(&sample, cgroup, OBJECTS)?;
    }
    let (mut own, others) = (of_cgroup(&sample, &cgroup)?, of_cgroup(&sample, &other)?);
    check_eq!(own.iter().sum::<u64>(), OBJECTS, "objects of the cgroup");
    for node in 0..nodes() {
        for nr in [1, 100, OBJECTS] {
            let expected = own[node].min(nr);
            own[node] -= expected;
            let scanned = sample.rise("scanned", || {
                sample.shrinker.scan(cgroup.id()?, node, nr);
                Ok(())
            })?;
            check_eq!(scanned, expected, "objects scanned on node {node}");
            check_eq!(of_cgroup(&sample, &cgroup)?, own, "objects of the cgroup");
            check_eq!(of_cgroup(&sample, &other)?, others, "objects of another");
        }
    }
    check_eq!(own.iter().sum::<u64>(), 0, "objects left");
    Ok(())
}

fn an_object_counts_on_its_own_node(_: &Bench) -> Outcome {
    if nodes() < 2 {
        return skip("one NUMA node");
    }
    let sample = Sample::start()?;
    let mut expected = vec![0; nodes()];
    for node in 0..nodes() {
        move_to(node)?;
        let mut tries = 0..20;
        loop {
            let mut wanted = by_node(&sample.shrinker);
            wanted[node] += OBJECTS;
            sample.add(OBJECTS)?;
            expected = by_node(&sample.shrinker);
            if expected == wanted {
                break;
            }
            check!(tries.next().is_some(), "{expected:?}, want {wanted:?}");
        }
    }
    note!("objects by node: {expected:?}");
    // From where it is asked for doesn't matter.
    for node in 0..nodes() {
        for line in sample.shrinker.lines() {
            sample.shrinker.scan(line.memcg, node, line.nodes[node]);
        }
        expected[node] = 0;
        check_eq!(by_node(&sample.shrinker), expected, "after node {node}");
    }
    Ok(())
}

/// Processes that add and remove objects are moved from one cgroup to the next, which is removed
/// behind them, while all of it is scanned.
fn removed_cgroups_leave_objects_to_their_parent(_: &Bench) -> Outcome {
    let sample = Sample::start()?;
    let parent = Cgroup::create("parent")?;
    let id = parent.id()?;
    let mut workers = Vec::new();
    for _ in 0..2 {
        workers.push(Peer::spawn(|_| loop {
            sample.add(40)?;
            // It may be that all are freed already.
            let _ = sample.del(10);
        })?);
    }
    let mut scanner = Peer::spawn(|_| loop {
        sample.shrinker.scan_all(16);
        drop_caches()?;
    })?;
    let mut home = parent.child("0")?;
    for round in 1..40 {
        for worker in &workers {
            home.add(worker.pid())?;
        }
        sleep(Duration::from_millis(10));
        let next = parent.child(&round.to_string())?;
        for worker in &workers {
            next.add(worker.pid())?;
        }
        home.remove()?;
        home = next;
    }
    scanner.kill()?;
    workers.iter_mut().try_for_each(Peer::kill)?;
    add_in(&sample, &home, OBJECTS)?;
    home.remove()?;
    // The parent's count takes over.
    let objects = sample.get("objects")?;
    note!("{objects} objects in the end");
    check!(objects >= OBJECTS, "{objects} objects in the end");
    let until = Instant::now() + Duration::from_secs(3);
    while sample.shrinker.count(id) != objects && Instant::now() < until {
        sleep(Duration::from_millis(10));
    }
    let counts: Vec<_> = sample.shrinker.lines().iter().map(|l| l.memcg).collect();
    check_eq!(counts, [id], "cgroups with objects");
    check_eq!(sample.shrinker.count(id), objects, "objects of the parent");
    let freed = sample.rise("freed", || {
        free_all(&sample, || {
            parent.reclaim(OBJECTS);
            Ok(())
        })
    })?;
    check_eq!(freed, objects, "objects freed by the parent's reclaim");
    let until = Instant::now() + Duration::from_secs(5);
    while parent.dying()? > 0 {
        check!(Instant::now() < until, "{} stay dying", parent.dying()?);
        parent.reclaim(OBJECTS);
        drop_caches()?;
        sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// With `cgroup_disable=memory`, `cgroup.memory=nokmem` or without `CONFIG_MEMCG`.
fn one_list_without_memcgs(_: &Bench) -> Outcome {
    let sample = Sample::start()?;
    if Cgroup::create("accounted").is_ok() {
        return skip("objects are charged to memory cgroups");
    }
    for _ in 0..2 {
        let mut peer = Peer::spawn(|_| Ok(sample.add(OBJECTS)?))?;
        let status = peer.wait()?;
        check_eq!(status.exit_status(), Some(0), "the adder's exit status");
    }
    check_eq!(sample.shrinker.lines().len(), 1, "lists");
    check_eq!(sample.shrinker.total(), 2 * OBJECTS, "objects");
    sample.shrinker.scan_all(BATCH);
    check_eq!(sample.shrinker.total(), 0, "objects after a scan");
    check_eq!(sample.get("objects")?, 0, "objects in the index");
    Ok(())
}

fn unloaded_with_objects_left(_: &Bench) -> Outcome {
    sample::need_module()?;
    for _ in 0..3 {
        let sample = Sample::start()?;
        sample.add(OBJECTS)?;
        if let Ok(cgroup) = Cgroup::create("left") {
            add_in(&sample, &cgroup, OBJECTS)?;
            cgroup.remove()?;
            check_eq!(sample.shrinker.total(), 2 * OBJECTS, "objects");
        }
        sample::unload()?;
        check_eq!(sample::traces()?, Vec::<&str>::new(), "left behind");
    }
    Ok(())
}

/// Unloading waits for callbacks that run, and keeps others from coming.
fn unloaded_while_others_scan(_: &Bench) -> Outcome {
    sample::need_module()?;
    let mut scanners = Vec::new();
    for _ in 0..2 {
        scanners.push(Peer::spawn(|_| loop {
            if let Some(shrinker) = Shrinker::find("rust_shrinker") {
                shrinker.scan_all(16);
            }
        })?);
    }
    scanners.push(Peer::spawn(|_| loop {
        drop_caches()?;
    })?);
    let mut scans = 0;
    for _ in 0..10 {
        let sample = Sample::start()?;
        scans += sample.rise("scans", || Ok(sample.add(5 * OBJECTS)?))?;
        sample::unload()?;
        check_eq!(sample::traces()?, Vec::<&str>::new(), "left behind");
    }
    note!("{scans} scans meanwhile");
    check!(scans > 0, "no scan meanwhile");
    scanners.iter_mut().try_for_each(Peer::kill)
}
