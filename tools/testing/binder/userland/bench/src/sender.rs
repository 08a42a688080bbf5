// SPDX-License-Identifier: GPL-2.0

//! A process that sends what it is told to, and says what that cost.

use crate::{
    clock::measure,
    process,
    wire::{Commands, Wire},
};
use binder_raw::{
    binder::{Device, KIB},
    outcome::{Context, Outcome},
    uapi::{FlatObject, BR_REPLY, BR_TRANSACTION_COMPLETE, TF_ONE_WAY},
};
use std::io::{PipeReader, PipeWriter, Read, Write};

/// In place of a handle: a call to the context manager, not a oneway transaction.
const CALL: u64 = u64::MAX;

/// The process. Ends when dropped.
pub struct Sender {
    requests: PipeWriter,
    results: PipeReader,
    // Last: it ends when nobody makes requests any more.
    _process: process::Child,
}

impl Sender {
    pub fn start(device: &Device) -> Outcome<Self> {
        let (requests_in, requests) = std::io::pipe()?;
        let (results, results_out) = std::io::pipe()?;
        let process = process::fork(|| {
            let mut wire = Wire::client(device, 16 * KIB)?;
            wire.write(Commands::default().acquire(0))?;
            work(&mut wire, requests_in, results_out)
        })?;
        let mut sender = Sender {
            requests,
            results,
            _process: process,
        };
        // Whatever it sets up for itself, it has when it answers.
        read_words(&mut sender.results)?;
        Ok(sender)
    }

    /// Sends a oneway transaction; what that cost.
    pub fn send(&mut self, handle: u32, size: usize) -> Outcome<u64> {
        self.request(handle.into(), size)?;
        let [cost, _] = read_words(&mut self.results)?;
        Ok(cost)
    }

    /// Begins a call to the context manager, and doesn't wait.
    pub fn begin_call(&mut self, size: usize) -> Outcome {
        self.request(CALL, size)
    }

    /// Waits for the call's end; the handle in the reply, if there is one.
    pub fn end_call(&mut self) -> Outcome<u32> {
        let [_, handle] = read_words(&mut self.results)?;
        Ok(handle as u32)
    }

    fn request(&mut self, handle: u64, size: usize) -> Outcome {
        self.requests
            .write_all(&words([handle, size as u64]))
            .context("the sender")
    }
}

fn words([first, second]: [u64; 2]) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&first.to_ne_bytes());
    bytes[8..].copy_from_slice(&second.to_ne_bytes());
    bytes
}

fn read_words(pipe: &mut PipeReader) -> Outcome<[u64; 2]> {
    let mut bytes = [0; 16];
    pipe.read_exact(&mut bytes).context("the sender")?;
    let (first, second) = bytes.split_at(8);
    Ok([
        u64::from_ne_bytes(first.try_into()?),
        u64::from_ne_bytes(second.try_into()?),
    ])
}

/// Does what is requested until nobody can request any more.
fn work(wire: &mut Wire, mut requests: PipeReader, mut results: PipeWriter) -> Outcome {
    let mut commands = Commands::default();
    let mut payload = Vec::new();
    results.write_all(&words([0, 0]))?;
    while let Ok([handle, size]) = read_words(&mut requests) {
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
        results.write_all(&words(result))?;
    }
    Ok(())
}
