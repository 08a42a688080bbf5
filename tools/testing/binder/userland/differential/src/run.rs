// SPDX-License-Identifier: GPL-2.0

//! Runs programs, one operation after the other, each in the process that it is for.

use crate::{
    cover::Places,
    logs::{self, Look},
    party::{self, Answer},
    program::{Action, Op, PARTIES},
};
use binder_raw::{
    binder::Device,
    check,
    outcome::{Context, Outcome},
    process::Peer,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashSet,
    fs,
    thread::sleep,
    time::{Duration, Instant},
};

/// Where buffers begin in their area, and how many bytes they take.
pub type Buffers = Vec<(usize, usize)>;

/// An operation, and what came of it.
#[derive(Serialize, Deserialize)]
pub struct Step {
    pub op: Op,
    pub said: Vec<String>,
    /// What lies in the area of each process after a transaction or a reply, by the driver's own log.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub buffers: Vec<Buffers>,
    /// What the driver's files say afterwards, if it was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub look: Option<Look>,
}

/// A program, and what came of it.
#[derive(Serialize, Deserialize)]
pub struct Transcript {
    pub name: String,
    /// What `stats` said when it began.
    #[serde(default)]
    pub start: String,
    pub steps: Vec<Step>,
}

/// Whether the driver knows a process, and has not yet begun to clean up after it.
fn known(pid: u32) -> Outcome<bool> {
    let state = fs::read_to_string("/dev/binderfs/binder_logs/state")?;
    Ok(state.lines().any(|line| line == format!("proc {pid}")))
}

/// Waits until the driver has cleaned up after a process that has ended.
fn forgotten(dev: &Device, pid: u32) -> Outcome {
    let until = Instant::now() + Duration::from_secs(5);
    while known(pid)? {
        check!(Instant::now() < until, "the driver keeps process {pid}");
        sleep(Duration::from_millis(1));
    }
    // It is taken off the list at the beginning. What comes later is cleaned up later.
    let mut last = Peer::spawn(|_| {
        binder_raw::binder::Binder::open(dev)?;
        Ok(())
    })?;
    let last_pid = self::pid(&last);
    last.wait()?;
    while known(last_pid)? {
        check!(
            Instant::now() < until,
            "the driver keeps process {last_pid}"
        );
        sleep(Duration::from_millis(1));
    }
    sleep(Duration::from_millis(2));
    Ok(())
}

/// Reads the driver's line about a buffer, if it is one. Where the buffer is, C says in hexadecimal digits; how
/// long, by parts. A Rust driver's line about a reference doesn't end, and the next one follows.
fn buffer(line: &str) -> Option<(usize, usize)> {
    let (_, rest) = line.split_once("  buffer")?;
    let (_, rest) = rest.split_once(": ")?;
    let (place, rest) = rest.split_once(" size ")?;
    let (size, _) = rest.split_once(' ')?;
    let parts: Vec<usize> = size
        .split(':')
        .map(|part| part.parse().ok())
        .collect::<Option<_>>()?;
    Some(match parts[..] {
        [size] => (place.parse().ok()?, size),
        _ => {
            let size: usize = parts.iter().map(|part| part.next_multiple_of(8)).sum();
            (usize::from_str_radix(place, 16).ok()?, size.max(8))
        }
    })
}

/// What lies in the areas of these processes.
fn buffers(pids: &[u32]) -> Outcome<Vec<Buffers>> {
    let state = fs::read_to_string("/dev/binderfs/binder_logs/state")?;
    let of = |pid| {
        let mut lines = state
            .lines()
            .skip_while(move |line| *line != format!("proc {pid}"));
        lines.next();
        lines
            .take_while(|line| !line.starts_with("proc "))
            .filter_map(buffer)
    };
    Ok(pids.iter().map(|pid| of(*pid).collect()).collect())
}

/// Whether to look at the driver's files after an operation: after each of a short program, and at the end.
fn is_looked_at(number: usize, operations: usize) -> bool {
    operations <= SHORT || number % EVERY == EVERY - 1 || number + 1 == operations
}

const SHORT: usize = 100;
const EVERY: usize = 16;

fn pid(peer: &Peer) -> u32 {
    peer.pid().as_raw_nonzero().get() as u32
}

/// Runs a program with a device of its own. Adds to `seen`, if there is such a thing, what it executes.
pub fn run(name: &str, program: &[Op], mut seen: Option<&mut HashSet<u64>>) -> Outcome<Transcript> {
    let dev = Device::create("differential").context("a device")?;
    let counted = seen.is_some();
    let start = |by, area| -> Outcome<(Peer, Option<Places>)> {
        let places = counted.then(Places::new).transpose()?;
        let mut peer = Peer::spawn(|link| {
            places.as_ref().map_or(Ok(()), Places::enable)?;
            party::run(&dev, by == 0, area, program, link)
        })?;
        peer.link.recv()?;
        Ok((peer, places))
    };
    let end = |party: &mut Peer| -> Outcome {
        party.kill()?;
        forgotten(&dev, pid(party))
    };
    let mut parties = (0..PARTIES)
        .map(|by| start(by, None))
        .collect::<Outcome<Vec<_>>>()?;
    let mut pids: Vec<_> = parties.iter().map(|(party, _)| vec![pid(party)]).collect();
    let mut held = vec![Vec::new(); PARTIES];
    let begin = logs::start()?;
    let mut steps = Vec::new();
    for (number, op) in program.iter().enumerate() {
        let (party, places) = &mut parties[op.by];
        let said = match op.action {
            Action::Die { len } => {
                end(party)?;
                parties[op.by] = start(op.by, Some(len))?;
                pids[op.by].push(pid(&parties[op.by].0));
                held[op.by].clear();
                Vec::new()
            }
            _ => {
                party.link.send(number as u64)?;
                let answer = party
                    .link
                    .hear()
                    .context(&format!("{name}, operation {number}: {op:?}"))?;
                if let (Some(places), Some(seen)) = (places, &mut seen) {
                    places.collect(seen);
                }
                let answer: Answer = serde_json::from_str(&answer)?;
                held[op.by] = answer.held;
                answer.said
            }
        };
        let buffers = match op.action {
            Action::Send { .. } | Action::Reply { .. } => {
                let pids: Vec<u32> = parties.iter().map(|(party, _)| pid(party)).collect();
                buffers(&pids)?
            }
            _ => Vec::new(),
        };
        let look = match is_looked_at(number, program.len()) {
            true => Some(Look::take(&pids, &held)?),
            false => None,
        };
        steps.push(Step {
            op: op.clone(),
            said,
            buffers,
            look,
        });
    }
    for (mut party, _) in parties {
        end(&mut party)?;
    }
    Ok(Transcript {
        name: name.into(),
        start: begin,
        steps,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_driver_is_understood() {
        for (line, expected) in [
            ("  buffer 7: 1040 size 9:8:0 delivered", Some((0x1040, 24))),
            ("  buffer 8: 0 size 0:0:0 active", Some((0, 8))),
            (
                "  buffer 0: 1040 size 24 pid 1 oneway true allocated",
                Some((1040, 24)),
            ),
            (
                "  buffer: 1040 size 24 pid 1 oneway allocated",
                Some((1040, 24)),
            ),
            (
                "  ref 3: desc 1 node 2 s 1 w 1  buffer 7: 1040 size 24 pid 1 allocated",
                Some((1040, 24)),
            ),
            ("  buffers: 3", None),
        ] {
            assert_eq!(buffer(line), expected, "{line}");
        }
    }
}
