// SPDX-License-Identifier: GPL-2.0

//! A process that sends what it is told to, and says what that cost.

use crate::{
    clock::measure,
    process::{Orders, Worker},
    wire::{Commands, Wire},
};
use binder_raw::{
    binder::{Device, KIB},
    outcome::Outcome,
    uapi::{FlatObject, BR_REPLY, BR_TRANSACTION_COMPLETE, TF_ONE_WAY},
};

/// In place of a handle: a call to the context manager, not a oneway transaction.
const CALL: u64 = u64::MAX;

/// The process. Ends when dropped.
pub struct Sender(Worker);

impl Sender {
    pub fn start(device: &Device) -> Outcome<Self> {
        let (worker, _) = Worker::start(|orders| {
            let mut wire = Wire::client(device, 16 * KIB)?;
            wire.write(Commands::default().acquire(0))?;
            work(&mut wire, orders)
        })?;
        Ok(Sender(worker))
    }

    /// Sends a oneway transaction; what that cost.
    pub fn send(&mut self, handle: u32, size: usize) -> Outcome<u64> {
        self.0.request([handle.into(), size as u64])?;
        let [cost, _] = self.0.answer()?;
        Ok(cost)
    }

    /// Begins a call to the context manager, and doesn't wait.
    pub fn begin_call(&mut self, size: usize) -> Outcome {
        self.0.request([CALL, size as u64])
    }

    /// Waits for the call's end; the handle in the reply, if there is one.
    pub fn end_call(&mut self) -> Outcome<u32> {
        let [_, handle] = self.0.answer()?;
        Ok(handle as u32)
    }
}

/// Does what is requested until nobody can request any more.
fn work(wire: &mut Wire, mut orders: Orders) -> Outcome {
    let mut commands = Commands::default();
    let mut payload = Vec::new();
    // Whatever it sets up for itself, it has by now.
    orders.answer([0, 0])?;
    while let Some([handle, size]) = orders.next() {
        let size = size as usize;
        if payload.len() < size {
            payload = vec![1; size];
        }
        let result = if handle == CALL {
            commands.clear().transaction(0, &payload[..size], 0);
            let reply = wire.talk(&commands, BR_REPLY)?;
            let mut handle = 0;
            commands.clear();
            if reply.offsets_size > 0 {
                // SAFETY: The driver says that there is an object, and it hasn't been freed.
                let object = unsafe { *(reply.buffer as *const FlatObject) };
                handle = object.binder as u32;
                commands.acquire(handle);
            }
            commands.free(reply.buffer);
            wire.write(&commands)?;
            [0, handle.into()]
        } else {
            commands
                .clear()
                .transaction(handle as u32, &payload[..size], TF_ONE_WAY);
            let (cost, result) = measure(|| wire.talk(&commands, BR_TRANSACTION_COMPLETE));
            result?;
            [cost, 0]
        };
        orders.answer(result)?;
    }
    Ok(())
}
