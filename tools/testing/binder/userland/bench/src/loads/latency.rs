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
use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

const SENDERS: &[(&str, Priority)] = &[
    ("fifo 99", Priority::Fifo(99)),
    ("fifo 1", Priority::Fifo(1)),
    ("nice -20", Priority::Nice(-20)),
    ("nice 0", Priority::Nice(0)),
    ("nice 19", Priority::Nice(19)),
];

const SIZES: [usize; 4] = [128, 4 * KIB, 16 * KIB, 64 * KIB];

pub fn run(plan: &Plan, figures: &mut Vec<Figure>) -> Outcome {
    shrinker::need()?;
    let device = Device::create("bench-pressure")?;
    let _server = server::start(&device, 4 * MIB, SENDERS.len())?;
    let calls = plan.repetitions * 4;
    let done = AtomicBool::new(false);
    let _phase = Phase::begin("latency under reclaim", calls * SENDERS.len());
    thread::scope(|scope| -> Outcome {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                shrinker::scan_each(128);
            }
        });
        let senders: Vec<_> = SENDERS
            .iter()
            .map(|(name, priority)| {
                let device = &device;
                (*name, scope.spawn(move || send(device, priority, calls)))
            })
            .collect();
        let results: Vec<_> = senders
            .into_iter()
            .map(|(name, sender)| (name, sender.join()))
            .collect();
        done.store(true, Ordering::Relaxed);
        for (name, result) in results {
            let samples = result.map_err(|_| Stop::Fail("a sender panicked".into()))??;
            figures.push(Figure::latency(
                format!("latency under reclaim: {name}"),
                samples,
            ));
        }
        Ok(())
    })
}

fn send(device: &Device, priority: &Priority, calls: usize) -> Outcome<Vec<u64>> {
    priority.take()?;
    let payload = vec![1; SIZES[SIZES.len() - 1]];
    let mut client = Wire::client(device, 16 * KIB)?;
    let mut commands = Commands::default();
    let mut samples = Vec::with_capacity(calls);
    for round in 0..calls {
        commands.transaction(0, &payload[..SIZES[round % SIZES.len()]], 0);
        let (trip, reply) = measure(|| client.talk(&commands, BR_REPLY));
        commands.clear().free(reply?.buffer);
        samples.push(trip);
    }
    Ok(samples)
}
