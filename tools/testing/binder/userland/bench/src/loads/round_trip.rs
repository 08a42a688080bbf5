// SPDX-License-Identifier: GPL-2.0

//! Calls from one process to another and back, as libbinder makes them: the buffer of the call
//! before is freed along with the next command.

use crate::{
    clock::measure,
    phase::Phase,
    process::InTurns,
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

pub fn run(plan: &Plan, figures: &mut Vec<Figure>) -> Outcome {
    let _in_turns = InTurns::begin()?;
    let device = Device::create("bench-trip")?;
    let _server = server::start(&device, MIB, 1)?;
    for size in [0, 128, 4 * KIB, 64 * KIB, 512 * KIB] {
        let name = format!("round trip: {}", super::size(size));
        let payload = vec![1; size];
        let mut client = Wire::client(&device, MIB)?;
        let mut commands = Commands::default();
        commands.transaction(0, &payload, 0);
        let mut samples = Vec::new();
        let warm_up = 32;
        let mut phase = None;
        for round in 0..warm_up + plan.repetitions {
            if round == warm_up {
                phase = Some(Phase::begin(&name, plan.repetitions));
            }
            let (trip, reply) = measure(|| client.talk(&commands, BR_REPLY));
            let reply = reply?.buffer;
            if round >= warm_up {
                samples.push(trip);
            }
            commands.clear().free(reply).transaction(0, &payload, 0);
        }
        drop(phase);
        figures.push(Figure::latency(name, samples));
    }
    Ok(())
}
