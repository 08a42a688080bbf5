// SPDX-License-Identifier: GPL-2.0

//! One thread's side of an open driver file, with as little work of its own as can be: what is
//! measured is the driver.

use crate::sender::Sender;
use binder_raw::{
    binder::{Binder, Device},
    check,
    endpoint::bytes_of,
    fail,
    outcome::{Context, Outcome},
    uapi::{self, *},
};
use rustix::mm::ProtFlags;
use std::{ptr, sync::Arc};

/// Commands that are given to the driver in one call.
#[derive(Default)]
pub struct Commands(Vec<u8>);

impl Commands {
    pub fn clear(&mut self) -> &mut Self {
        self.0.clear();
        self
    }

    fn push(&mut self, code: u32, payload: &[u8]) -> &mut Self {
        self.0.extend_from_slice(&code.to_ne_bytes());
        self.0.extend_from_slice(payload);
        self
    }

    /// A transaction to a node; handle 0 is the context manager's.
    pub fn transaction(&mut self, handle: u32, payload: &[u8], flags: u32) -> &mut Self {
        let data = TransactionData {
            target: handle.into(),
            flags,
            ..data(payload)
        };
        self.push(BC_TRANSACTION, bytes_of(&data))
    }

    pub fn reply(&mut self, payload: &[u8]) -> &mut Self {
        self.push(BC_REPLY, bytes_of(&data(payload)))
    }

    /// A reply that consists of a node of the sender's own.
    fn reply_node(&mut self, node: &FlatObject) -> &mut Self {
        let data = TransactionData {
            offsets: (&raw const FIRST) as u64,
            offsets_size: size_of_val(&FIRST) as u64,
            ..data(bytes_of(node))
        };
        self.push(BC_REPLY, bytes_of(&data))
    }

    pub fn acquire(&mut self, handle: u32) -> &mut Self {
        self.push(BC_ACQUIRE, &handle.to_ne_bytes())
    }

    pub fn free(&mut self, buffer: u64) -> &mut Self {
        self.push(BC_FREE_BUFFER, &buffer.to_ne_bytes())
    }
}

/// Offsets of one object, at the payload's start.
static FIRST: u64 = 0;

fn data(payload: &[u8]) -> TransactionData {
    TransactionData {
        data_size: payload.len() as u64,
        buffer: payload.as_ptr() as u64,
        ..Default::default()
    }
}

pub struct Wire {
    binder: Arc<Binder>,
    read: [u8; 256],
}

impl Wire {
    /// A side that sends, and has a mapping for replies.
    pub fn client(dev: &Device, mapping: usize) -> Outcome<Self> {
        Ok(Wire::new(Binder::mapped(dev, mapping)?))
    }

    /// The context manager.
    pub fn manager(dev: &Device, mapping: usize) -> Outcome<Self> {
        let mut wire = Wire::unmapped_manager(dev)?;
        wire.map(mapping)?;
        Ok(wire)
    }

    /// A context manager that can't receive yet.
    pub fn unmapped_manager(dev: &Device) -> Outcome<Self> {
        let wire = Wire::new(Binder::open(dev)?);
        wire.binder
            .set::<{ SET_CONTEXT_MGR }>(0)
            .context("SET_CONTEXT_MGR")?;
        wire.write(Commands::default().push(BC_ENTER_LOOPER, &[]))?;
        Ok(wire)
    }

    /// Maps `len` bytes for what it receives.
    pub fn map(&mut self, len: usize) -> Outcome {
        let binder = Arc::get_mut(&mut self.binder).expect("before there are other threads");
        binder.map = Some(binder.mmap(len, ProtFlags::READ, 0).context("mmap")?);
        Ok(())
    }

    /// The side of another thread, which does the same work; to be called there.
    pub fn of_another_thread(binder: Arc<Binder>) -> Outcome<Self> {
        let wire = Wire {
            binder,
            read: [0; 256],
        };
        wire.write(Commands::default().push(BC_ENTER_LOOPER, &[]))?;
        Ok(wire)
    }

    /// What threads share.
    pub fn binder(&self) -> Arc<Binder> {
        self.binder.clone()
    }

    /// Answers all calls with nothing, until the driver refuses.
    pub fn serve(&mut self) -> Outcome {
        let mut commands = Commands::default();
        loop {
            let call = self.talk(&commands, BR_TRANSACTION)?;
            commands.clear().free(call.buffer).reply(&[]);
        }
    }

    /// The same, and keeps what it is sent.
    pub fn keep(&mut self) -> Outcome {
        let mut commands = Commands::default();
        loop {
            let call = self.talk(&commands, BR_TRANSACTION)?;
            commands.clear();
            if call.flags & TF_ONE_WAY == 0 {
                commands.reply(&[]);
            }
        }
    }

    fn new(binder: Binder) -> Self {
        Wire {
            binder: Arc::new(binder),
            read: [0; 256],
        }
    }

    /// Gives commands, and doesn't read.
    pub fn write(&self, commands: &Commands) -> Outcome {
        self.binder
            .write_read(&commands.0, &mut [])
            .context("write")?;
        Ok(())
    }

    /// Gives commands, and waits until the driver has returned one of `wanted`, which is a
    /// transaction or reply, which is returned, or a status, for which there are zeroes.
    pub fn talk(&mut self, commands: &Commands, wanted: u32) -> Outcome<TransactionData> {
        match self.try_talk(commands, wanted)? {
            Some(data) => Ok(data),
            None => fail!("the driver returned BR_FAILED_REPLY"),
        }
    }

    /// The same, but `None` if the driver says instead that something failed.
    pub fn try_talk(
        &mut self,
        commands: &Commands,
        wanted: u32,
    ) -> Outcome<Option<TransactionData>> {
        let mut write = &commands.0[..];
        loop {
            let (_, read) = self
                .binder
                .write_read(write, &mut self.read)
                .context("talk")?;
            write = &[];
            match find(&self.read[..read], wanted)? {
                Found::Nothing => {}
                Found::Failure => return Ok(None),
                Found::Wanted(data) => return Ok(Some(data)),
            }
        }
    }

    /// Waits for something that is due.
    pub fn await_return(&mut self, wanted: u32) -> Outcome<TransactionData> {
        self.talk(&Commands::default(), wanted)
    }
}

/// What the driver returned.
enum Found {
    Nothing,
    Failure,
    Wanted(TransactionData),
}

/// Looks for one return code, and tells what came with it.
fn find(mut returned: &[u8], wanted: u32) -> Outcome<Found> {
    let mut found = Found::Nothing;
    while returned.len() >= 4 {
        let code = u32::from_ne_bytes(returned[..4].try_into()?);
        let (payload, rest) = returned[4..].split_at(payload_size(code));
        returned = rest;
        if code == wanted {
            found = Found::Wanted(match code {
                BR_TRANSACTION | BR_REPLY => {
                    // SAFETY: The payload of both is a `TransactionData`, of any alignment.
                    unsafe { ptr::read_unaligned(payload.as_ptr().cast()) }
                }
                _ => TransactionData::default(),
            });
        } else if code == BR_FAILED_REPLY {
            found = Found::Failure;
        } else {
            // That a node got its first reference needn't be acknowledged: it only keeps the node.
            check!(
                matches!(
                    code,
                    BR_NOOP | BR_SPAWN_LOOPER | BR_TRANSACTION_COMPLETE | BR_INCREFS | BR_ACQUIRE
                ),
                "the driver returned {}",
                uapi::name(code)
            );
        }
    }
    Ok(found)
}

/// A process that receives, this one, and one that sends when told to.
pub struct Pair {
    pub sender: Sender,
    pub server: Wire,
    commands: Commands,
    // Last: the mapping goes before its device does.
    _device: Device,
}

impl Pair {
    pub fn new(name: &str, mapping: usize) -> Outcome<Self> {
        let device = Device::create(name)?;
        let server = Wire::manager(&device, mapping)?;
        Ok(Pair {
            sender: Sender::start(&device)?,
            server,
            commands: Commands::default(),
            _device: device,
        })
    }

    /// Sends a oneway transaction, and tells what that cost.
    pub fn send(&mut self, size: usize) -> Outcome<u64> {
        self.sender.send(0, size)
    }

    /// Takes what arrived first, and tells where it lies.
    pub fn receive(&mut self) -> Outcome<u64> {
        Ok(self.server.await_return(BR_TRANSACTION)?.buffer)
    }

    pub fn free(&mut self, buffer: u64) -> Outcome {
        self.commands.clear().free(buffer);
        self.server.write(&self.commands)
    }

    /// Leaves a buffer with the server, by a call that it answers without freeing it.
    pub fn leave(&mut self, size: usize) -> Outcome<u64> {
        self.sender.begin_call(size)?;
        let buffer = self.receive()?;
        self.commands.clear().reply(&[]);
        self.server.talk(&self.commands, BR_TRANSACTION_COMPLETE)?;
        self.sender.end_call()?;
        Ok(buffer)
    }

    /// Makes another node of the server's, and tells the handle that the sender has for it.
    pub fn node(&mut self) -> Outcome<u32> {
        self.sender.begin_call(0)?;
        let buffer = self.receive()?;
        let node = FlatObject::own(1, 1);
        self.commands.clear().free(buffer).reply_node(&node);
        self.server.talk(&self.commands, BR_TRANSACTION_COMPLETE)?;
        self.sender.end_call()
    }
}
