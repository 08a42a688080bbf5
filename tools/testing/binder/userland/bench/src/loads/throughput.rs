// SPDX-License-Identifier: GPL-2.0

//! Pairs of processes that call one another as fast as they can, each pair for itself.

use crate::{
    clock::{self, measure},
    phase::Phase,
    process::{InTurns, Orders, Worker},
    record::Figure,
    server,
    wire::{Commands, Wire},
    Plan,
};
use binder_raw::{
    binder::{Device, KIB, MIB},
    outcome::Outcome,
    uapi::BR_REPLY,
};

const SIZE: usize = 128;
/// How often the time is taken.
const ROUNDS: usize = 10;

pub fn run(plan: &Plan, figures: &mut Vec<Figure>) -> Outcome {
    let _in_turns = InTurns::begin()?;
    for pairs in [1, 2, 4] {
        let calls = plan.repetitions;
        let devices = (0..pairs)
            .map(|pair| Ok(Device::create(&format!("bench-pair-{pair}"))?))
            .collect::<Outcome<Vec<_>>>()?;
        let _servers = devices
            .iter()
            .map(|device| server::start(device, MIB, 1))
            .collect::<Outcome<Vec<_>>>()?;
        let mut clients = devices
            .iter()
            .map(|device| Ok(Worker::start(|orders| call(device, orders))?.0))
            .collect::<Outcome<Vec<_>>>()?;
        let mut round = |calls: usize| -> Outcome {
            for client in &mut clients {
                client.request([calls as u64, 0])?;
            }
            for client in &mut clients {
                client.answer()?;
            }
            Ok(())
        };
        round(32)?;
        let name = match pairs {
            1 => "throughput: 1 pair, a call".into(),
            _ => format!("throughput: {pairs} pairs, a call"),
        };
        let mut samples = Vec::new();
        let phase = Phase::begin(&name, ROUNDS * calls * pairs);
        for _ in 0..ROUNDS {
            let (time, result) = measure(|| round(calls));
            result?;
            samples.push(time);
        }
        drop(phase);
        let all = (calls * pairs) as u64;
        figures.push(Figure::new(name, clock::unit(), samples, all));
    }
    Ok(())
}

/// Calls the context manager as often as is asked for.
fn call(device: &Device, mut orders: Orders) -> Outcome {
    let payload = [1; SIZE];
    let mut client = Wire::client(device, 16 * KIB)?;
    let mut commands = Commands::default();
    commands.transaction(0, &payload, 0);
    orders.answer([0, 0])?;
    while let Some([calls, _]) = orders.next() {
        for _ in 0..calls {
            let reply = client.talk(&commands, BR_REPLY)?.buffer;
            commands.clear().free(reply).transaction(0, &payload, 0);
        }
        orders.answer([0, 0])?;
    }
    Ok(())
}
