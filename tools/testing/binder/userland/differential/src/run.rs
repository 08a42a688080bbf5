// SPDX-License-Identifier: GPL-2.0

//! Runs programs, one operation after the other, each in the process that it is for.

use crate::{
    party,
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
    fs,
    thread::sleep,
    time::{Duration, Instant},
};

/// An operation, and what came of it.
#[derive(Serialize, Deserialize)]
pub struct Step {
    pub op: Op,
    pub said: Vec<String>,
}

/// A program, and what came of it.
#[derive(Serialize, Deserialize)]
pub struct Transcript {
    pub name: String,
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
    let pid = last.pid().as_raw_nonzero().get() as u32;
    last.wait()?;
    while known(pid)? {
        check!(Instant::now() < until, "the driver keeps process {pid}");
        sleep(Duration::from_millis(1));
    }
    sleep(Duration::from_millis(2));
    Ok(())
}

/// Runs a program with a device of its own.
pub fn run(name: &str, program: &[Op]) -> Outcome<Transcript> {
    let dev = Device::create("differential").context("a device")?;
    let start = |by, area| -> Outcome<Peer> {
        let mut peer = Peer::spawn(|link| party::run(&dev, by == 0, area, program, link))?;
        peer.link.recv()?;
        Ok(peer)
    };
    let mut parties = (0..PARTIES)
        .map(|by| start(by, None))
        .collect::<Outcome<Vec<_>>>()?;
    let mut steps = Vec::new();
    for (number, op) in program.iter().enumerate() {
        let said = match op.action {
            Action::Die { len } => {
                let pid = parties[op.by].pid().as_raw_nonzero().get() as u32;
                parties[op.by].kill()?;
                forgotten(&dev, pid)?;
                parties[op.by] = start(op.by, Some(len))?;
                Vec::new()
            }
            _ => {
                let link = &mut parties[op.by].link;
                link.send(number as u64)?;
                let said = link
                    .hear()
                    .context(&format!("{name}, operation {number}: {op:?}"))?;
                serde_json::from_str(&said)?
            }
        };
        steps.push(Step {
            op: op.clone(),
            said,
        });
    }
    for mut party in parties {
        let pid = party.pid().as_raw_nonzero().get() as u32;
        party.kill()?;
        forgotten(&dev, pid)?;
    }
    Ok(Transcript {
        name: name.into(),
        steps,
    })
}
