// SPDX-License-Identifier: GPL-2.0

//! A recorded trace is replayed in mappings of different sizes, to see how much of them can't be used because
//! free space lies in pieces.

use crate::{
    process::Worker,
    record::Figure,
    trace::{self, Event},
    wire::{Commands, Wire},
    Plan,
};
use binder_raw::{
    binder::{Device, KIB, MIB, PAGE},
    outcome::{Outcome, Stop},
    uapi::{BR_REPLY, BR_TRANSACTION},
};

/// Its head says where it is from.
const TRACE: &str = include_str!("../../trace.txt");

pub fn run(_: &Plan, figures: &mut Vec<Figure>) -> Outcome {
    let events = trace::parse(TRACE)?;
    let device = Device::create("bench-recorded")?;
    let (_server, _) = Worker::start(|mut orders| {
        let mut wire = Wire::manager(&device, 16 * KIB)?;
        orders.answer([0, 0])?;
        reply(&mut wire)
    })?;
    let least = trace::peak(&events).next_multiple_of(PAGE);
    for mapping in (least..=4 * MIB).step_by(PAGE) {
        if fits(&device, &events, mapping)? {
            let name = "recorded trace: mapping that it fits into";
            figures.push(Figure::one(name, "KiB", mapping / KIB));
            return Ok(());
        }
    }
    Err(Stop::Fail("no mapping holds the trace".into()))
}

/// Whether all buffers find space. They are replies, of which the receiver is told also if they don't.
fn fits(device: &Device, events: &[Event], mapping: usize) -> Outcome<bool> {
    let mut wire = Wire::client(device, mapping)?;
    let mut commands = Commands::default();
    let mut buffers = Vec::new();
    for event in events {
        commands.clear();
        match *event {
            Event::Came { bytes } => {
                commands.transaction(0, &bytes.to_ne_bytes(), 0);
                match wire.try_talk(&commands, BR_REPLY)? {
                    Some(reply) => buffers.push(reply.buffer),
                    None => return Ok(false),
                }
            }
            Event::Freed { number } => wire.write(commands.free(buffers[number]))?,
        }
    }
    Ok(true)
}

/// Replies to each call with as many bytes as it asks for.
fn reply(wire: &mut Wire) -> Outcome {
    let zeroes = vec![0; 4 * MIB];
    let mut commands = Commands::default();
    loop {
        // If it is told that there was no space for the last, so is the caller.
        let call = wire.try_talk(&commands, BR_TRANSACTION)?;
        commands.clear();
        if let Some(call) = call {
            // SAFETY: The driver says that the payload is there, and it hasn't been freed.
            let bytes = unsafe { *(call.buffer as *const usize) };
            commands.free(call.buffer).reply(&zeroes[..bytes]);
        }
    }
}
