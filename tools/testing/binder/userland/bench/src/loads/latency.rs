// SPDX-License-Identifier: GPL-2.0

//! Senders of different priorities that call one server while its idle pages are taken away all the
//! time: how long the unluckiest waits. The load is the one that commit 7710e2cca32e of Linux reports.

use crate::{
    clock::measure,
    phase::Phase,
    process::Priority,
    record::Figure,
    server,
    wire::{Commands, Wire},
    Plan,
};
use binder_raw::{
    binder::{Device, KIB, MIB},
    outcome::{Outcome, Stop},
    shrinker,
    uapi::BR_REPLY,
};
use fastrand::Rng;
use std::{
    sync::{
        atomic::{AtomicBool, Ordering},
        Barrier,
    },
    thread,
};

const SENDERS: &[(&str, Priority)] = &[
    ("fifo 99", Priority::Fifo(99)),
    ("fifo 1", Priority::Fifo(1)),
    ("nice -20", Priority::Nice(-20)),
    ("nice 0", Priority::Nice(0)),
    ("nice 19", Priority::Nice(19)),
];

/// Calls of each sender that don't count: until all have started, and the server's threads with them, they take longer
/// than any later one.
const WARM_UP: usize = 20;

/// So many that a sender meets the worst that there is: the largest size, with no page there.
const CALLS: usize = 4000;

const SIZES: [usize; 4] = [128, 4 * KIB, 16 * KIB, 64 * KIB];

pub fn run(plan: &Plan, figures: &mut Vec<Figure>) -> Outcome {
    shrinker::need()?;
    let device = Device::create("bench-pressure")?;
    let _server = server::start(&device, 4 * MIB, SENDERS.len())?;
    let done = AtomicBool::new(false);
    let ready = Barrier::new(SENDERS.len());
    let mut random = Rng::with_seed(plan.seed);
    let _phase = Phase::begin("latency under reclaim", CALLS * SENDERS.len());
    thread::scope(|scope| -> Outcome {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                shrinker::scan_each(128);
            }
        });
        let senders: Vec<_> = SENDERS
            .iter()
            .map(|(name, priority)| {
                let (device, ready) = (&device, &ready);
                let sizes = random.fork();
                (
                    *name,
                    scope.spawn(move || send(device, priority, ready, sizes)),
                )
            })
            .collect();
        let results: Vec<_> = senders
            .into_iter()
            .map(|(name, sender)| (name, sender.join()))
            .collect();
        done.store(true, Ordering::Relaxed);
        for (name, result) in results {
            let times = result.map_err(|_| Stop::Fail("a sender panicked".into()))??;
            for (what, samples) in [("send", times.sends), ("call", times.calls)] {
                figures.push(Figure::latency(
                    format!("latency under reclaim: {name}: {what}"),
                    samples,
                ));
            }
        }
        Ok(())
    })
}

/// What each call took, until the driver had the transaction, and until the reply was there.
#[derive(Default)]
struct Times {
    sends: Vec<u64>,
    calls: Vec<u64>,
}

fn send(device: &Device, priority: &Priority, ready: &Barrier, mut sizes: Rng) -> Outcome<Times> {
    priority.take()?;
    let payload = vec![1; SIZES[SIZES.len() - 1]];
    let client = Wire::client(device, 16 * KIB);
    ready.wait();
    let mut client = client?;
    let mut commands = Commands::default();
    let mut times = Times::default();
    for round in 0..WARM_UP + CALLS {
        let size = SIZES[sizes.usize(..SIZES.len())];
        commands.transaction(0, &payload[..size], 0);
        let mut send = 0;
        let (call, reply) = measure(|| {
            let (time, sent) = measure(|| client.write(&commands));
            send = time;
            sent?;
            client.await_return(BR_REPLY)
        });
        commands.clear().free(reply?.buffer);
        if round >= WARM_UP {
            times.sends.push(send);
            times.calls.push(call);
        }
    }
    Ok(times)
}
