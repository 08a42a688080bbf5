// SPDX-License-Identifier: GPL-2.0

//! Tests of the Binder driver that speak raw ioctls: what userspace can send and do, what comes
//! back, and that no page stays behind. TAP on stdout, exit status 1 if a test failed.
//!
//! The expectations are those that the C driver and the Rust driver of Linux 7.3 share; where the
//! two differ, a comment at the test says how, and the Rust driver's answer is wanted unless noted.

mod cgroup;
mod data;
mod faults;
mod remote;
mod runner;
mod sample;
mod stress;
mod tests;
mod tracing;

use binder_raw::{binder, check, check_eq, endpoint, fail, note, outcome, process, shrinker, uapi};
use std::{io::Read, num::ParseIntError, process::ExitCode, time::Duration};

const USAGE: &str = "usage: binder-selftests [--sample] [--list] [FILTER]...
       binder-selftests --stress [--seed=NUMBER] [--seconds=NUMBER]
Runs the tests whose names contain one of the filters; all of them without any.
With --sample, they are those of the shrinker sample. With --stress, everything happens at once for
120 seconds or as many as wanted.
Needs root, binderfs on /dev/binderfs, debugfs, tracefs and cgroup2 at their usual places.";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "--help" || arg == "-h") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    // What the exec test becomes: holds its files until its standard input ends.
    if args.iter().any(|arg| arg == "--hold") {
        let _ = std::io::stdin().read(&mut [0]);
        return ExitCode::SUCCESS;
    }
    if args.iter().any(|arg| arg == "--map") {
        return tests::mapping::map_stdin();
    }
    if args.iter().any(|arg| arg == "--stress") {
        let (Ok(seed), Ok(seconds)) = (number(&args, "--seed="), number(&args, "--seconds="))
        else {
            eprintln!("{USAGE}");
            return ExitCode::FAILURE;
        };
        let seed = seed.unwrap_or_else(|| fastrand::u64(..));
        return exit_code(stress::run(
            seed,
            Duration::from_secs(seconds.unwrap_or(120)),
        ));
    }
    let (options, filters): (Vec<&String>, Vec<_>) =
        args.iter().partition(|arg| arg.starts_with('-'));
    if options
        .iter()
        .any(|arg| !["--sample", "--list"].contains(&arg.as_str()))
    {
        eprintln!("{USAGE}");
        return ExitCode::FAILURE;
    }
    let suite = match args.iter().any(|arg| arg == "--sample") {
        true => tests::SAMPLE,
        false => tests::BINDER,
    };
    let chosen: Vec<&runner::Test> = suite
        .iter()
        .copied()
        .flatten()
        .filter(|test| filters.is_empty() || filters.iter().any(|f| test.name.contains(*f)))
        .collect();
    if args.iter().any(|arg| arg == "--list") {
        chosen.iter().for_each(|test| println!("{}", test.name));
        return ExitCode::SUCCESS;
    }
    if chosen.is_empty() {
        eprintln!("no test of that name\n{USAGE}");
        return ExitCode::FAILURE;
    }
    exit_code(runner::run(&chosen))
}

fn exit_code(well: bool) -> ExitCode {
    match well {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// The number that an option has, if the option is there.
fn number(args: &[String], option: &str) -> Result<Option<u64>, ParseIntError> {
    args.iter()
        .find_map(|arg| arg.strip_prefix(option))
        .map(str::parse)
        .transpose()
}
