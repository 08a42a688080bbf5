// SPDX-License-Identifier: GPL-2.0

//! A process that others call.

use crate::{process::Worker, wire::Wire};
use binder_raw::{binder::Device, outcome::Outcome};
use std::thread;

/// Starts a process that answers each call with nothing.
pub fn start(device: &Device, mapping: usize, threads: usize) -> Outcome<Worker> {
    let (server, _) = Worker::start(|mut orders| {
        let mut wire = Wire::manager(device, mapping)?;
        for _ in 1..threads {
            let binder = wire.binder();
            thread::spawn(move || Wire::of_another_thread(binder).and_then(|mut w| w.serve()));
        }
        orders.answer([0, 0])?;
        wire.serve()
    })?;
    Ok(server)
}
