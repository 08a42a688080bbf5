// SPDX-License-Identifier: GPL-2.0

//! Does the same with several Binder drivers, and compares what they answer.

mod compare;
mod cover;
mod differences;
mod fuzz;
mod lines;
mod logs;
mod party;
mod program;
mod run;
mod texts;

use binder_raw::{
    check, note,
    outcome::{Outcome, Stop},
};
use clap::Parser;
use fastrand::Rng;
use program::{program, Op};
use run::Transcript;
use std::{
    fs::{self, File},
    io::{BufRead, BufReader, BufWriter, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

/// Does the same with several Binder drivers, and compares what they answer.
#[derive(Parser)]
enum Command {
    /// Run random programs with the driver that is there, and write what it answers
    Run {
        /// What the programs are made of
        #[arg(long)]
        seed: u64,
        /// How many
        #[arg(long, default_value_t = 100)]
        programs: u64,
        /// How many operations each has
        #[arg(long, default_value_t = 200)]
        ops: usize,
        /// One line for each program
        transcripts: PathBuf,
        /// Programs to run first, in files with one operation in each line
        scripts: Vec<PathBuf>,
    },
    /// Run random programs, and changes of those that reached code which none had reached before
    Fuzz {
        /// What the programs are made of
        #[arg(long)]
        seed: u64,
        /// Begin no more of them after so many seconds
        #[arg(long)]
        seconds: u64,
        /// How many operations each has
        #[arg(long, default_value_t = 200)]
        ops: usize,
        /// Where to leave the program that is being run, and those that reached something new
        folder: PathBuf,
        /// Programs to run first, in files with one operation in each line
        scripts: Vec<PathBuf>,
    },
    /// Run programs, each of them a test: it must come to its end, and no answer may be wrong with any driver
    Test {
        /// Files with one operation in each line
        #[arg(required = true)]
        scripts: Vec<PathBuf>,
    },
    /// Compare the answers of our driver with those of the C driver and upstream's Rust driver
    Compare {
        ours: PathBuf,
        c: PathBuf,
        rust: PathBuf,
    },
}

/// Reads a program from a file.
fn script(path: &Path) -> Outcome<Vec<Op>> {
    fs::read_to_string(path)?
        .lines()
        .filter(|line| !line.starts_with("//"))
        .map(|line| Ok(serde_json::from_str(line)?))
        .collect()
}

fn transcripts(path: &Path) -> Outcome<Vec<Transcript>> {
    BufReader::new(File::open(path)?)
        .lines()
        .map(|line| Ok(serde_json::from_str(&line?)?))
        .collect()
}

/// Runs a program as a test.
fn test(path: &Path) -> Outcome {
    let transcript = run::run(&path.display().to_string(), &script(path)?, None)?;
    check!(!transcript.steps.is_empty(), "there is no operation");
    for (number, step) in transcript.steps.iter().enumerate() {
        for said in &step.said {
            check!(
                !said.starts_with(party::WRONG),
                "operation {number}: {:?}: {said}",
                step.op
            );
        }
    }
    Ok(())
}

/// Runs programs as tests, and says in TAP how they went; tells whether all went well.
fn test_all(scripts: &[PathBuf]) -> bool {
    println!("TAP version 13\n1..{}", scripts.len());
    let mut well = true;
    for (index, path) in scripts.iter().enumerate() {
        let name = path.file_name().unwrap_or_default().display();
        let ok = match test(path) {
            Ok(()) => "ok",
            Err(Stop::Fail(why) | Stop::Skip(why)) => {
                note!("{why}");
                well = false;
                "not ok"
            }
        };
        println!("{ok} {} - {name}", index + 1);
    }
    well
}

fn perform(command: Command) -> Outcome<bool> {
    match command {
        Command::Run {
            seed,
            programs,
            ops,
            transcripts,
            scripts,
        } => {
            let mut out = BufWriter::new(File::create(transcripts)?);
            let mut write = |transcript: &Transcript| -> Outcome {
                serde_json::to_writer(&mut out, transcript)?;
                Ok(out.write_all(b"\n")?)
            };
            for path in &scripts {
                println!("{}", path.display());
                write(&run::run(
                    &path.display().to_string(),
                    &script(path)?,
                    None,
                )?)?;
            }
            for number in 0..programs {
                let seed = seed.wrapping_add(number);
                let mut bytes = vec![0; fuzz::BYTES * ops];
                Rng::with_seed(seed).fill(&mut bytes);
                write(&run::run(
                    &format!("seed {seed}"),
                    &program(&bytes, ops),
                    None,
                )?)?;
                if (number + 1) % 10 == 0 || number + 1 == programs {
                    println!("{} of {programs} random programs", number + 1);
                }
            }
            Ok(true)
        }
        Command::Fuzz {
            seed,
            seconds,
            ops,
            folder,
            scripts,
        } => {
            let scripts: Vec<_> = scripts
                .iter()
                .map(|path| script(path))
                .collect::<Outcome<_>>()?;
            fuzz::fuzz(seed, Duration::from_secs(seconds), ops, &folder, &scripts)?;
            Ok(true)
        }
        Command::Test { scripts } => Ok(test_all(&scripts)),
        Command::Compare { ours, c, rust } => compare::compare(
            &transcripts(&ours)?,
            &transcripts(&c)?,
            &transcripts(&rust)?,
        ),
    }
}

fn main() -> ExitCode {
    match perform(Command::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(Stop::Fail(why) | Stop::Skip(why)) => {
            eprintln!("binder-differential: {why}");
            ExitCode::FAILURE
        }
    }
}
