// SPDX-License-Identifier: GPL-2.0

//! Runs each test in a process group of its own, with a time limit, and says in TAP how it went.

use crate::{
    binder::Device,
    note,
    outcome::{Outcome, Stop},
    process, shrinker,
};
use rustix::process::{kill_process_group, wait, waitpgid, Pid, Signal, WaitOptions};
use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    thread::sleep,
    time::{Duration, Instant},
};

/// What a test gets: a Binder device that nobody else uses.
pub struct Bench {
    pub dev: Device,
}

pub struct Test {
    pub name: &'static str,
    pub run: fn(&Bench) -> Outcome,
    pub limit: Duration,
}

/// Lists the tests of a module: `tests!["mapping": mmap_twice, hammer @ 30]` (seconds, default 10).
///
/// That is for an idle machine and a kernel that checks little. Others have twelve times as long.
#[macro_export]
macro_rules! tests {
    ($module:literal: $($test:ident $(@ $limit:literal)?),+ $(,)?) => {
        &[$($crate::runner::Test {
            name: concat!($module, ".", stringify!($test)),
            run: $test,
            limit: std::time::Duration::from_secs({
                #[allow(unused_variables)]
                let limit = 10;
                $(let limit = $limit;)?
                // Kernels that check themselves are slow, and machines may be busy.
                12 * limit
            }),
        }),+]
    };
}

const SKIP: i32 = 4;

enum Verdict {
    Pass,
    Skip(String),
    Fail(String),
}

/// Runs the tests; true if none failed.
pub fn run(tests: &[&Test]) -> bool {
    // Orphans of a test come to us, so that none of them outlives its test unseen.
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    println!("TAP version 13\n1..{}", tests.len());
    if shrinker::need().is_err() {
        note!("no android-binder shrinker in debugfs: idle pages that stay behind won't be seen");
    }
    if !shrinker::has_logs() {
        note!("no stats in binder_logs: buffers that stay behind won't be seen");
    }
    let mut failed = 0;
    for (index, test) in tests.iter().enumerate() {
        let before = State::now();
        let verdict = match run_one(test, index) {
            Verdict::Fail(why) => Verdict::Fail(why),
            verdict => match before.settled() {
                Ok(()) => verdict,
                Err(why) => Verdict::Fail(why),
            },
        };
        let n = index + 1;
        match verdict {
            Verdict::Pass => println!("ok {n} - {}", test.name),
            Verdict::Skip(why) => println!("ok {n} - {} # SKIP {why}", test.name),
            Verdict::Fail(why) => {
                failed += 1;
                note!("{why}");
                println!("not ok {n} - {}", test.name);
            }
        }
    }
    note!(
        "{} passed or skipped, {failed} failed",
        tests.len() - failed
    );
    failed == 0
}

fn run_one(test: &Test, index: usize) -> Verdict {
    let dev = match Device::create(&format!("selftest{index}")) {
        Ok(dev) => dev,
        Err(error) => return Verdict::Fail(format!("no binder device: {error}")),
    };
    let (mut ours, theirs) = UnixStream::pair().expect("socketpair");
    let bench = Bench { dev };
    let child = process::fork(|| {
        let _ = rustix::process::setpgid(None, None);
        let mut theirs = theirs;
        let (status, message) = match (test.run)(&bench) {
            Ok(()) => (0, String::new()),
            Err(Stop::Skip(why)) => (SKIP, why),
            Err(Stop::Fail(why)) => (1, why),
        };
        let _ = theirs.write_all(message.as_bytes());
        status
    });
    // Both sides set the group: whoever comes first.
    let _ = rustix::process::setpgid(Some(child), Some(child));
    let status = process::wait_for(child, test.limit);
    if !end_group(child) {
        return Verdict::Fail("killed, but something of it hangs in the kernel".into());
    }
    // All writers are gone now: what is there is all that there will be.
    let mut message = String::new();
    let _ = ours.set_nonblocking(true);
    let _ = ours.read_to_string(&mut message);
    match status {
        None => Verdict::Fail(format!("no end after {:?}: killed", test.limit)),
        Some(status) => match (status.exit_status(), status.terminating_signal()) {
            (Some(0), _) => Verdict::Pass,
            (Some(SKIP), _) => Verdict::Skip(message),
            (Some(code), _) if message.is_empty() => Verdict::Fail(format!("exit status {code}")),
            (Some(_), _) => Verdict::Fail(message),
            (None, signal) => Verdict::Fail(format!("died of signal {signal:?}")),
        },
    }
}

/// Kills what is left of a test's group and reaps it; false if that takes too long.
fn end_group(group: Pid) -> bool {
    let _ = kill_process_group(group, Signal::CONT);
    let _ = kill_process_group(group, Signal::KILL);
    let until = Instant::now() + Duration::from_secs(20);
    while let Ok(reaped) = waitpgid(group, WaitOptions::NOHANG) {
        if reaped.is_none() {
            if Instant::now() > until {
                return false;
            }
            sleep(Duration::from_millis(1));
        }
    }
    // Anybody who left the group but ended meanwhile.
    while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
    true
}

/// What must be the same after a test as before it.
struct State {
    idle: u64,
    taint: String,
}

impl State {
    fn now() -> Self {
        State {
            idle: shrinker::total(),
            taint: fs::read_to_string("/proc/sys/kernel/tainted").unwrap_or_default(),
        }
    }

    /// The driver releases processes in a work queue: give it some time.
    fn settled(&self) -> Result<(), String> {
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            let now = State::now();
            if now.taint != self.taint {
                return Err("the kernel was tainted: see its log for a warning".into());
            }
            // Fewer is right too: a test that drives the shrinker takes idle pages of others.
            if now.idle <= self.idle {
                return Ok(());
            }
            if Instant::now() > until {
                let (was, is) = (self.idle, now.idle);
                return Err(format!("idle pages left behind: {was} before, {is} after"));
            }
            sleep(Duration::from_millis(20));
        }
    }
}
