// SPDX-License-Identifier: GPL-2.0

//! Tests of the Binder driver that speak raw ioctls: what userspace can send and do, what comes
//! back, and that no page stays behind. TAP on stdout, exit status 1 if a test failed.
//!
//! The expectations are those that the C driver and the Rust driver of Linux 7.3 share; where the
//! two differ, a comment at the test says how, and the Rust driver's answer is wanted unless noted.

mod cgroup;
mod data;
mod faults;
mod process;
mod remote;
mod runner;
mod sample;
mod tests;

use binder_raw::{binder, check, check_eq, endpoint, fail, note, outcome, shrinker, uapi};
use std::{io::Read, process::ExitCode};

const USAGE: &str = "usage: binder-selftests [--sample] [--list] [FILTER]...
Runs the tests whose names contain one of the filters; all of them without any.
With --sample, they are those of the shrinker sample.
Needs root, binderfs on /dev/binderfs, debugfs and cgroup2 at their usual places.";

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
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
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
    match runner::run(&chosen) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
