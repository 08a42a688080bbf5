// SPDX-License-Identifier: GPL-2.0

//! Measures what Binder's buffers cost, in the same way on every kernel that has a Binder driver,
//! and prints the figures as JSON.

mod app;
mod baseline;
mod clock;
mod loads;
#[cfg(test)]
mod made_up;
mod options;
mod phase;
mod plot;
mod process;
mod publish;
mod record;
mod recorder;
mod report;
mod results;
mod sender;
mod server;
mod table;
mod throughput_test;
mod trace;
mod wire;

use binder_raw::outcome::{Outcome, Stop};
use clap::{Args, Parser};
use record::{Cannot, Report};
use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::Duration,
};

/// Measures what Binder's buffers cost.
#[derive(Parser)]
enum Command {
    /// Measure, and print JSON. Needs root, binderfs, debugfs and cgroup2
    Measure(Options),
    /// Compare what was measured on three kernels
    Table {
        /// The folder with the results of `lab/bench`
        folder: PathBuf,
    },
    /// Fail if costs next to those of the better peer have grown since the baseline was written
    Check {
        /// The folder with the results of `lab/bench`
        folder: PathBuf,
        /// The baseline
        baseline: PathBuf,
        /// Write the baseline instead
        #[arg(long)]
        update: bool,
    },
    /// What AOSP's binderThroughputTest does and prints
    ThroughputTest(throughput_test::Options),
    /// Run a program, and write a trace of the buffers that its processes are sent
    Record {
        /// The trace
        file: PathBuf,
        program: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Put the results into README.md and the documentation
    Publish {
        /// The folder with the results of `lab/bench`
        folder: PathBuf,
        /// The top of the repository
        top: PathBuf,
    },
    /// Write index.html into the folder
    Report {
        /// The folder with the results of `lab/bench`
        folder: PathBuf,
    },
}

#[derive(Args)]
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
    let result = match Command::parse() {
        Command::Measure(options) => measure(&options),
        Command::Table { folder } => table::print(&folder),
        Command::Check {
            folder,
            baseline,
            update: true,
        } => baseline::update(&folder, &baseline),
        Command::Check {
            folder, baseline, ..
        } => baseline::check(&folder, &baseline),
        Command::ThroughputTest(options) => throughput_test::run(&options),
        Command::Record {
            file,
            program,
            arguments,
        } => recorder::record(&file, &program, &arguments),
        Command::Publish { folder, top } => publish::publish(&folder, &top),
        Command::Report { folder } => report::write(&folder),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Stop::Fail(why) | Stop::Skip(why)) => {
            eprintln!("binder-bench: {why}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: &Options) -> Outcome {
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
        unit: clock::unit().into(),
        figures: Vec::new(),
        phases: Vec::new(),
        cannot: Vec::new(),
    };
    for load in loads::ALL.iter().filter(|load| wanted(load.name)) {
        eprintln!("{}", load.name);
        // What the one before has left the kernel to do is done by then.
        thread::sleep(Duration::from_millis(500));
        match (load.run)(&plan, &mut report.figures) {
            Err(Stop::Skip(why)) => {
                eprintln!("{}: cannot: {why}", load.name);
                let load = load.name.replace('-', " ");
                report.cannot.push(Cannot { load, why });
            }
            result => result?,
        }
    }
    report.phases = phase::take();
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
