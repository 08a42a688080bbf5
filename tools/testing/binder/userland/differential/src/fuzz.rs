// SPDX-License-Identifier: GPL-2.0

//! Random programs, and changes of those that reached something new.

use crate::{
    program::{program, Op},
    run,
};
use binder_raw::{check, outcome::Outcome};
use fastrand::Rng;
use std::{
    collections::HashSet,
    fs,
    path::Path,
    time::{Duration, Instant},
};

/// How many bytes make an operation, at most.
pub const BYTES: usize = 64;

/// After how long to say again how far it is.
const TELL: Duration = Duration::from_secs(30);

/// A program as a file that `run` takes.
fn write(path: &Path, program: &[Op]) -> Outcome {
    let mut text = String::new();
    for op in program {
        text += &serde_json::to_string(op)?;
        text.push('\n');
    }
    Ok(fs::write(path, text)?)
}

/// The bytes of the next program: often those of one that has reached something new, with changes.
fn next(rng: &mut Rng, found: &[Vec<u8>], ops: usize) -> Vec<u8> {
    let mut bytes = vec![0; BYTES * ops];
    rng.fill(&mut bytes);
    if found.is_empty() || rng.u8(..4) == 0 {
        return bytes;
    }
    let other = &found[rng.usize(..found.len())];
    let mut changed = found[rng.usize(..found.len())].clone();
    for _ in 0..=rng.usize(..8) {
        // What is read of the bytes is mostly in front.
        let at = rng.usize(..changed.len().min(12 * ops));
        let len = 1 + rng.usize(..16);
        match rng.u8(..4) {
            0 => changed[at] = rng.u8(..),
            1 => drop(changed.splice(at..at, bytes[at..at + len].iter().copied())),
            2 => drop(changed.drain(at..at + len)),
            _ => changed[at..].copy_from_slice(&other[at..]),
        }
        changed.resize(BYTES * ops, 0);
    }
    changed
}

/// Runs programs of `ops` operations for so long. In `folder`, `current` is the program that is being run, for the case
/// that nothing comes after it, and the others are those that reached something new.
pub fn fuzz(seed: u64, time: Duration, ops: usize, folder: &Path, scripts: &[Vec<Op>]) -> Outcome {
    let begin = Instant::now();
    let mut rng = Rng::with_seed(seed);
    let mut seen = HashSet::new();
    for script in scripts {
        run::run("a script", script, Some(&mut seen))?;
    }
    check!(!seen.is_empty(), "KCOV knows nothing of the driver");
    let mut found = Vec::new();
    let mut done = 0;
    let mut told = begin.elapsed();
    while begin.elapsed() < time {
        let bytes = next(&mut rng, &found, ops);
        let program = program(&bytes, ops);
        write(&folder.join("current"), &program)?;
        let before = seen.len();
        run::run("a program", &program, Some(&mut seen))?;
        if seen.len() > before {
            write(&folder.join(format!("found-{:04}", found.len())), &program)?;
            found.push(bytes);
        }
        done += 1;
        if begin.elapsed() >= told + TELL {
            told = begin.elapsed();
            println!(
                "{} of {} seconds: {done} programs, {} pairs of places",
                told.as_secs(),
                time.as_secs(),
                seen.len()
            );
        }
    }
    check!(done > 0, "there was no time for a program");
    println!(
        "{} scripts, {done} programs, {} of them reached something new: {} pairs of places",
        scripts.len(),
        found.len(),
        seen.len()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_programs_of_the_same_length() {
        let mut rng = Rng::with_seed(1);
        let mut found: Vec<Vec<u8>> = Vec::new();
        for _ in 0..1000 {
            let bytes = next(&mut rng, &found, 20);
            assert_eq!(bytes.len(), 20 * BYTES);
            found.push(bytes);
        }
    }
}
