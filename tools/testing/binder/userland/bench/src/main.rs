// SPDX-License-Identifier: GPL-2.0

//! Measures what Binder's buffers cost, in the same way on every kernel that has a Binder driver,
//! and prints the figures as JSON.
//!
//! A load begins with a system call that does nothing, so that a profiler outside of the virtual
//! machine can tell the loads apart (see [`mark`]).

mod clock;
mod loads;
mod process;
mod record;
mod sender;
mod server;
mod wire;

use binder_raw::outcome::{Outcome, Stop};
use clap::Parser;
use record::Report;
use std::{fs, path::Path, process::ExitCode};

/// Measures what Binder's buffers cost. Needs root, binderfs, debugfs and cgroup2.
#[derive(Parser)]
struct Options {
    /// Run only the loads whose names contain one of these
    filters: Vec<String>,
    /// List the loads
    #[arg(long)]
    list: bool,
    /// Count instructions: for QEMU's -icount shift=0, where the time stamp counter does
    #[arg(long)]
    instructions: bool,
    /// Fewer repetitions
    #[arg(long)]
    quick: bool,
    /// Stay in the memory cgroup that the program is in, instead of one made for it
    #[arg(long)]
    stay: bool,
}

/// What a load is to do.
pub struct Plan {
    /// How often to do what is measured.
    pub repetitions: usize,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Stop::Fail(why) | Stop::Skip(why)) => {
            eprintln!("binder-bench: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Outcome {
    let wanted = |name: &str| {
        options.filters.is_empty()
            || options
                .filters
                .iter()
                .any(|part| name.contains(part.as_str()))
    };
    if options.list {
        loads::ALL.iter().for_each(|load| println!("{}", load.name));
        return Ok(());
    }
    if options.instructions {
        clock::count_instructions();
    }
    if !options.stay {
        enter_cgroup()?;
    }
    let plan = Plan {
        repetitions: if options.quick { 100 } else { 1000 },
    };
    let mut report = Report {
        kernel: fs::read_to_string("/proc/version")?.trim_end().into(),
        unit: clock::unit(),
        figures: Vec::new(),
    };
    for load in loads::ALL.iter().filter(|load| wanted(load.name)) {
        eprintln!("{}", load.name);
        (load.run)(&plan, &mut report.figures)?;
    }
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(())
}

/// Puts the process into a memory cgroup, as a phone's apps are. Where there are none, it stays.
fn enter_cgroup() -> Outcome {
    let group = Path::new("/sys/fs/cgroup/binder-bench");
    if fs::create_dir_all(group).is_ok() && group.join("memory.current").exists() {
        fs::write(group.join("cgroup.procs"), "0")?;
    }
    Ok(())
}

/// Begins a phase of which a profiler is to know, by a system call that nothing else makes.
pub fn mark(phase: &str) {
    // SAFETY: The call takes a number and has no effect.
    unsafe { libc::sched_get_priority_max(0) };
    eprintln!("phase: {phase}");
}
