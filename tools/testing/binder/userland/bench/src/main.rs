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

use binder_raw::{
    fail,
    outcome::{skip, Outcome, Stop},
};
use clap::{Args, Parser};
use loads::Load;
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
    /// Measure, and print JSON. Needs root and binderfs; loads that need more say so where they can't be done
    Measure(Options),
    /// Compare what was measured on three kernels
    Table {
        /// The folder with the results of `lab/bench`
        folder: PathBuf,
    },
    /// Fail if what is to be the same in two runs differs by 1 % or more
    Compare {
        /// The folder with the results of `lab/bench`
        folder: PathBuf,
        /// The same of another run
        other: PathBuf,
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
    /// Another order of sizes in the load "latency", where it is luck who runs when
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Stay in the memory cgroup that the program is in, instead of one made for it
    #[arg(long)]
    stay: bool,
}

/// What a test says that can't be run, as in the kernel's selftests.
const SKIPPED: u8 = 4;

/// What a load is to do.
pub struct Plan {
    /// How often to do what is measured.
    pub repetitions: usize,
    /// What is to be random is made from this.
    pub seed: u64,
}

fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Measure(options) => measure(&options),
        Command::Table { folder } => table::print(&folder),
        Command::Compare { folder, other } => results::compare(&folder, &other),
        Command::Check {
            folder,
            baseline,
            update: true,
        } => baseline::update(&folder, &baseline),
        Command::Check {
            folder, baseline, ..
        } => baseline::check(&folder, &baseline),
        Command::ThroughputTest(options) => {
            need_binderfs().and_then(|()| throughput_test::run(&options))
        }
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
        Err(Stop::Fail(why)) => {
            eprintln!("binder-bench: {why}");
            ExitCode::FAILURE
        }
        Err(Stop::Skip(why)) => {
            eprintln!("binder-bench: {why}");
            ExitCode::from(SKIPPED)
        }
    }
}

fn measure(options: &Options) -> Outcome {
    if options.list {
        loads::ALL.iter().for_each(|load| println!("{}", load.name));
        return Ok(());
    }
    let loads = chosen(&options.filters)?;
    need_binderfs()?;
    if options.instructions {
        clock::count_instructions();
    }
    if !options.stay {
        enter_cgroup()?;
    }
    let plan = Plan {
        repetitions: if options.quick { 100 } else { 1000 },
        seed: options.seed,
    };
    let mut report = Report {
        kernel: fs::read_to_string("/proc/version")?.trim_end().into(),
        unit: clock::unit().into(),
        figures: Vec::new(),
        phases: Vec::new(),
        cannot: Vec::new(),
    };
    let failed = run(&loads, &plan, &mut report);
    report.phases = phase::take();
    println!("{}", serde_json::to_string_pretty(&report)?);
    if !failed.is_empty() {
        fail!(
            "{} of {} loads failed: {}",
            failed.len(),
            loads.len(),
            failed.join(", ")
        );
    }
    if report.figures.is_empty() {
        return skip("nothing can be measured here");
    }
    Ok(())
}

fn need_binderfs() -> Outcome {
    if !Path::new("/dev/binderfs/binder-control").exists() {
        fail!("no binderfs on /dev/binderfs; do: mount -t binder binder /dev/binderfs");
    }
    Ok(())
}

/// The loads that have one of the words in their names; all if there are no words.
fn chosen(words: &[String]) -> Outcome<Vec<&'static Load>> {
    let has = |load: &Load, word: &String| load.name.contains(word.as_str());
    for word in words {
        if !loads::ALL.iter().any(|load| has(load, word)) {
            fail!("no load is called '{word}'; --list names them");
        }
    }
    let is_chosen = |load: &&Load| words.is_empty() || words.iter().any(|word| has(load, word));
    Ok(loads::ALL.iter().filter(is_chosen).collect())
}

/// Does the loads, each whatever became of those before. Returns the names of those that failed.
fn run(loads: &[&Load], plan: &Plan, report: &mut Report) -> Vec<&'static str> {
    let mut failed = Vec::new();
    for load in loads {
        eprintln!("{}", load.name);
        // What the one before has left the kernel to do is done by then.
        thread::sleep(Duration::from_millis(500));
        match (load.run)(plan, &mut report.figures) {
            Ok(()) => {}
            Err(Stop::Skip(why)) => {
                eprintln!("{}: cannot: {why}", load.name);
                let load = load.name.replace('-', " ");
                report.cannot.push(Cannot { load, why });
            }
            Err(Stop::Fail(why)) => {
                eprintln!("{}: failed: {why}", load.name);
                failed.push(load.name);
            }
        }
    }
    failed
}

/// Puts the process into a memory cgroup, as a phone's apps are. Where there are none, it stays.
fn enter_cgroup() -> Outcome {
    let group = Path::new("/sys/fs/cgroup/binder-bench");
    if fs::create_dir_all(group).is_ok() && group.join("memory.current").exists() {
        fs::write(group.join("cgroup.procs"), "0")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use record::Figure;

    fn load(name: &'static str, run: fn(&Plan, &mut Vec<Figure>) -> Outcome) -> Load {
        Load { name, run }
    }

    #[test]
    fn goes_on_after_what_cannot_be_measured() {
        let loads = [
            load("needs-more", |_, _| skip("it isn't there")),
            load("breaks", |_, _| fail!("it broke")),
            load("works", |_, figures| {
                figures.push(Figure::one("works", "pages", 1));
                Ok(())
            }),
        ];
        let loads: Vec<_> = loads.iter().collect();
        let mut report = Report {
            kernel: String::new(),
            unit: String::new(),
            figures: Vec::new(),
            phases: Vec::new(),
            cannot: Vec::new(),
        };
        let failed = run(
            &loads,
            &Plan {
                repetitions: 1,
                seed: 0,
            },
            &mut report,
        );
        assert_eq!(failed, ["breaks"]);
        assert_eq!(report.figures.len(), 1);
        let [cannot] = &report.cannot[..] else {
            panic!("one load can't be done");
        };
        assert_eq!(
            (&*cannot.load, &*cannot.why),
            ("needs more", "it isn't there")
        );
    }

    #[test]
    fn knows_its_loads() {
        let names = |words: &[&str]| -> Outcome<Vec<_>> {
            let words: Vec<_> = words.iter().map(|word| String::from(*word)).collect();
            Ok(chosen(&words)?.iter().map(|load| load.name).collect())
        };
        assert!(names(&[]).is_ok_and(|all| all.len() == loads::ALL.len()));
        assert!(names(&["trip", "throughput"]).is_ok_and(|two| two == ["round-trip", "throughput"]));
        assert!(names(&["trip", "nonsense"]).is_err());
    }
}
