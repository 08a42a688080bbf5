// SPDX-License-Identifier: GPL-2.0

//! The processes that send and receive. They run until they come to harm, by themselves or by others.

use super::{
    area::{Area, OBJECT},
    counts::{Counts, Kind},
};
use crate::{
    binder::{Device, KIB},
    data::payload,
    endpoint::{bytes_of, Endpoint, Received, Return, Txn},
    fail,
    outcome::{Outcome, Stop},
    uapi::{
        FlatObject, BR_DEAD_REPLY, BR_FAILED_REPLY, BR_ONEWAY_SPAM_SUSPECT,
        BR_TRANSACTION_COMPLETE, ENABLE_ONEWAY_SPAM_DETECTION, SET_CONTEXT_MGR, TF_CLEAR_BUF,
        TF_ONE_WAY,
    },
};
use fastrand::Rng;
use rustix::io::Errno;
use std::{collections::VecDeque, thread, time::Duration};

/// The longest payload.
pub const LONGEST: usize = 600 * KIB;

/// What all processes were given before they were forked.
#[derive(Clone, Copy)]
pub struct Stage<'a> {
    pub devices: &'a [Device],
    /// Payloads are parts of this.
    pub data: &'a [u8],
    pub counts: Counts,
}

/// As in real life mostly small, but nothing is missing.
fn length(rng: &mut Rng) -> usize {
    match rng.u32(0..20) {
        0 => 0,
        1 => rng.usize(1..8),
        2..12 => rng.usize(8..2 * KIB),
        12..17 => rng.usize(2 * KIB..20 * KIB),
        17..19 => rng.usize(20 * KIB..120 * KIB),
        _ => rng.usize(120 * KIB..LONGEST),
    }
}

/// Runs one to three threads of `body`, each with random numbers of its own.
fn threads(rng: &mut Rng, body: impl Fn(Rng) -> Outcome + Sync) -> Outcome {
    let generators: Vec<Rng> = (0..rng.u32(1..=3)).map(|_| rng.fork()).collect();
    thread::scope(|scope| {
        let body = &body;
        let threads: Vec<_> = generators
            .into_iter()
            .map(|rng| scope.spawn(move || body(rng)))
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or(Err(Stop::Fail("a thread panicked".into())))
        })
    })
}

/// Receives on a device, answers calls with something else, and keeps some buffers for a while.
pub fn service(stage: Stage, device: usize, mut rng: Rng) -> Outcome {
    let area = Area::map(&stage.devices[device], &mut rng)?;
    // The one before may not be gone yet; if it never goes, the director notices.
    while let Err(error) = area.binder.set::<{ SET_CONTEXT_MGR }>(0) {
        if error != Errno::BUSY {
            return Err(error.into());
        }
        thread::sleep(Duration::from_millis(1));
    }
    threads(&mut rng, |mut rng| {
        let mut endpoint = Endpoint::new(area.binder.clone());
        endpoint.enter_looper()?;
        let mut waiting = VecDeque::new();
        let mut kept: Vec<Received> = Vec::new();
        loop {
            let txn = match waiting.pop_front() {
                Some(txn) => txn,
                None => match endpoint.next()? {
                    Return::Transaction(txn) => txn,
                    other => fail!("a service got {other:?}"),
                },
            };
            area.compare(&txn, stage.data, &stage.counts)?;
            area.trouble(&mut rng, &stage.counts)?;
            kept.push(txn);
            while !kept.is_empty() && (kept.len() > 8 || rng.u32(0..3) > 0) {
                let buffer = kept.swap_remove(rng.usize(0..kept.len()));
                endpoint.free(buffer.addr)?;
            }
            if txn.flags & TF_ONE_WAY == 0 {
                endpoint.answer(payload(stage.data, length(&mut rng)))?;
                loop {
                    match endpoint.next()? {
                        Return::Status(_) => break,
                        Return::Transaction(txn) => waiting.push_back(txn),
                        other => fail!("a service got {other:?}"),
                    }
                }
            }
        }
    })
}

/// Sends to a device all that a process can send.
pub fn client(stage: Stage, device: usize, mut rng: Rng) -> Outcome {
    let area = Area::map(&stage.devices[device], &mut rng)?;
    if rng.bool() {
        area.binder.set::<{ ENABLE_ONEWAY_SPAM_DETECTION }>(1)?;
    }
    threads(&mut rng, |mut rng| {
        let mut endpoint = Endpoint::new(area.binder.clone());
        loop {
            send(stage, &area, &mut endpoint, &mut rng)?;
            area.trouble(&mut rng, &stage.counts)?;
        }
    })
}

/// Sends one transaction, and sees what becomes of it.
fn send(stage: Stage, area: &Area, endpoint: &mut Endpoint, rng: &mut Rng) -> Outcome {
    let counts = &stage.counts;
    let mut bytes = Vec::new();
    let offsets = [0u64];
    let len = length(rng);
    let mut txn = Txn::new(payload(stage.data, len));
    if len >= OBJECT && rng.u32(0..8) == 0 {
        let node = 8 * rng.u64(1..100);
        bytes.extend_from_slice(payload(stage.data, len));
        bytes[..OBJECT].copy_from_slice(bytes_of(&FlatObject::own(node, node)));
        txn = Txn::new(&bytes).offsets(&offsets);
        counts.add(Kind::Objects);
    }
    if rng.u32(0..8) == 0 {
        txn = txn.flags(TF_CLEAR_BUF);
        counts.add(Kind::Cleared);
    }
    match len {
        0 => counts.add(Kind::Empty),
        len if len > 100 * KIB => counts.add(Kind::Huge),
        _ => {}
    }
    let failure = if rng.u32(0..3) == 0 {
        match endpoint.send(&txn.flags(TF_ONE_WAY))? {
            BR_TRANSACTION_COMPLETE | BR_ONEWAY_SPAM_SUSPECT => {
                counts.add(Kind::Sent);
                return Ok(());
            }
            code => code,
        }
    } else {
        endpoint.post(&txn)?;
        match endpoint.reply_to_post()? {
            Ok(reply) => {
                area.compare(&reply, stage.data, counts)?;
                endpoint.free(reply.addr)?;
                counts.add(Kind::Called);
                return Ok(());
            }
            Err(code) => code,
        }
    };
    match failure {
        BR_FAILED_REPLY => counts.add(Kind::Failed),
        BR_DEAD_REPLY => {
            counts.add(Kind::Dead);
            // It takes a while until there is a service again.
            thread::sleep(Duration::from_millis(1));
        }
        code => fail!("a client got {}", crate::uapi::name(code)),
    }
    Ok(())
}
