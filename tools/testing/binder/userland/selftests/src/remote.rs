// SPDX-License-Identifier: GPL-2.0

//! A receiver in another process, told what to do step by step.

use crate::{
    binder::{peek, Binder, Device, PAGE},
    check_eq,
    data::{checksum, pattern},
    endpoint::Endpoint,
    fail,
    outcome::Outcome,
    process::{Link, Peer},
};
use rustix::{
    mm::{mmap_anonymous, munmap, MapFlags, ProtFlags},
    process::Pid,
};
use std::{ffi::c_void, sync::Arc};

const RECEIVE: u64 = 1;
const FREE: u64 = 2;
const SUM: u64 = 3;
const UNMAP: u64 = 4;
const IMPOSTOR: u64 = 5;
const REPLY: u64 = 6;

/// What the memory that takes the mapping's place is filled with.
const IMPOSTOR_SEED: u64 = 77;

/// A buffer in the remote process.
#[derive(Clone, Copy)]
pub struct Remote {
    pub addr: u64,
    pub len: u64,
}

pub struct Receiver {
    peer: Peer,
    len: usize,
}

impl Receiver {
    /// Starts the device's context manager with a mapping of `len` bytes.
    ///
    /// `prepare` runs in the new process, before it opens the device.
    pub fn start(dev: &Device, len: usize, prepare: impl FnOnce() -> Outcome) -> Outcome<Self> {
        Receiver::start_with(len, || {
            prepare()?;
            Endpoint::manager(dev, len)
        })
    }

    /// Starts what `open`, which runs in the new process, opens with a mapping of `len` bytes.
    pub fn start_with(len: usize, open: impl FnOnce() -> Outcome<Endpoint>) -> Outcome<Self> {
        let mut peer = Peer::spawn(|link| {
            let endpoint = open()?;
            link.send(0)?;
            serve(link, endpoint)
        })?;
        peer.link.recv()?;
        Ok(Receiver { peer, len })
    }

    pub fn pid(&self) -> Pid {
        self.peer.pid()
    }

    pub fn peer(&mut self) -> &mut Peer {
        &mut self.peer
    }

    fn ask(&mut self, op: u64, a: u64, b: u64) -> Outcome<u64> {
        for word in [op, a, b] {
            self.peer.link.send(word)?;
        }
        self.peer.link.recv()
    }

    pub fn receive(&mut self) -> Outcome<Remote> {
        let addr = self.ask(RECEIVE, 0, 0)?;
        Ok(Remote {
            addr,
            len: self.peer.link.recv()?,
        })
    }

    pub fn free(&mut self, buffer: Remote) -> Outcome {
        self.ask(FREE, buffer.addr, 0)?;
        Ok(())
    }

    /// Replies with nothing to the call that was received last, and frees its buffer.
    pub fn reply(&mut self, buffer: Remote) -> Outcome {
        self.ask(REPLY, buffer.addr, 0)?;
        Ok(())
    }

    pub fn sum(&mut self, buffer: Remote) -> Outcome<u64> {
        self.ask(SUM, buffer.addr, buffer.len)
    }

    /// Lets the process unmap its mapping.
    pub fn unmap(&mut self) -> Outcome {
        self.ask(UNMAP, 0, self.len as u64)?;
        Ok(())
    }

    /// Lets the process put other memory, with a pattern in it, where its mapping was.
    pub fn impostor(&mut self) -> Outcome {
        self.ask(IMPOSTOR, 0, self.len as u64)?;
        Ok(())
    }

    /// Whether the impostor's memory still is as it was written.
    pub fn check_impostor(&mut self, base: u64) -> Outcome {
        let sum = self.sum(Remote {
            addr: base,
            len: self.len as u64,
        })?;
        check_eq!(
            sum,
            checksum(&pattern(IMPOSTOR_SEED, self.len)),
            "the impostor's memory"
        );
        Ok(())
    }

    /// Makes `pages` pages of the receiver in use, with one oneway transaction.
    pub fn fill(&mut self, sender: &mut Endpoint, pages: usize) -> Outcome<Remote> {
        let data = pattern(pages as u64, pages * PAGE);
        sender.deliver(&data)?;
        let buffer = self.receive()?;
        check_eq!(
            self.sum(buffer)?,
            checksum(&data),
            "checksum of {pages} pages"
        );
        Ok(buffer)
    }

    /// Makes `pages` pages of the receiver idle; tells where they are.
    pub fn idle(&mut self, sender: &mut Endpoint, pages: usize) -> Outcome<Remote> {
        let buffer = self.fill(sender, pages)?;
        self.free(buffer)?;
        Ok(buffer)
    }
}

fn serve(link: &mut Link, mut endpoint: Endpoint) -> Outcome {
    // The first op fails when the test closes the link: that is the end.
    while let Ok(op) = link.recv() {
        let (a, b) = (link.recv()? as usize, link.recv()? as usize);
        let answer = match op {
            RECEIVE => {
                let txn = endpoint.receive()?;
                link.send(txn.addr as u64)?;
                txn.len as u64
            }
            FREE => {
                endpoint.free(a)?;
                0
            }
            REPLY => {
                endpoint.free(a)?;
                endpoint.answer(&[])?;
                0
            }
            SUM => checksum(&peek(a, b)),
            UNMAP => {
                // SAFETY: Nothing refers to the mapping but the numbers that the test holds.
                unsafe { munmap(endpoint.binder.base() as *mut c_void, b)? };
                forget_map(&mut endpoint)?;
                0
            }
            IMPOSTOR => {
                place_impostor(endpoint.binder.base(), b)?;
                0
            }
            other => fail!("unknown op {other}"),
        };
        link.send(answer)?;
    }
    Ok(())
}

/// Takes the mapping out of the endpoint, so that nothing unmaps its address again.
fn forget_map(endpoint: &mut Endpoint) -> Outcome {
    match Arc::get_mut(&mut endpoint.binder) {
        Some(Binder { map, .. }) => std::mem::forget(map.take()),
        None => fail!("the endpoint is shared"),
    }
    Ok(())
}

/// Puts anonymous memory with a pattern at an address, in place of what is there.
pub fn place_impostor(addr: usize, len: usize) -> Outcome {
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::PRIVATE | MapFlags::FIXED;
    // SAFETY: What was there is the test's own mapping, which it doesn't use any more.
    let place = unsafe { mmap_anonymous(addr as *mut c_void, len, prot, flags)? };
    let data = pattern(IMPOSTOR_SEED, len);
    // SAFETY: The memory was just mapped, with this length.
    unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), place.cast::<u8>(), len) };
    Ok(())
}
