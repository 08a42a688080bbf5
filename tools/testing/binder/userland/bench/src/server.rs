// SPDX-License-Identifier: GPL-2.0

//! A process that others call.

use crate::{process, wire::Wire};
use binder_raw::{
    binder::Device,
    outcome::{Context, Outcome},
};
use std::{
    io::{Read, Write},
    thread,
};

/// Starts a process that answers each call with nothing.
pub fn start(device: &Device, mapping: usize, threads: usize) -> Outcome<process::Child> {
    let (mut ready, mut started) = std::io::pipe()?;
    let server = process::fork(|| {
        let mut wire = Wire::manager(device, mapping)?;
        for _ in 1..threads {
            let binder = wire.binder();
            thread::spawn(move || Wire::of_another_thread(binder).and_then(|mut w| w.serve()));
        }
        started.write_all(&[0])?;
        wire.serve()
    })?;
    drop(started);
    ready.read_exact(&mut [0]).context("the server")?;
    Ok(server)
}
