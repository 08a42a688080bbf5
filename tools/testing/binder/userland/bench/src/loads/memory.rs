// SPDX-License-Identifier: GPL-2.0

//! The kernel memory that stands behind a mapping, its buffers' pages themselves apart.

use crate::{
    record::Figure,
    sender::Sender,
    wire::{Commands, Wire},
    Plan,
};
use binder_raw::{
    binder::{Device, MIB, PAGE},
    outcome::{Context, Outcome},
    uapi::BR_TRANSACTION,
};
use std::{fs, thread::sleep, time::Duration};

/// What libbinder maps: 254 pages.
const MAPPING: usize = MIB - 2 * PAGE;
/// So many that a slab or page here and there that is only partly used doesn't show.
const PROCESSES: usize = 256;

/// Slabs of what a mapping needs in any case, whoever it is that maps.
const NOT_BINDER: &[&str] = &[
    "vm_area_struct",
    "maple_node",
    "anon_vma",
    "anon_vma_chain",
    "filp",
];

pub fn run(_: &Plan, figures: &mut Vec<Figure>) -> Outcome {
    // Whatever is set up once, is.
    touched(4 * PAGE)?;
    for (pages, what) in [
        (0, "untouched"),
        (4, "4 pages touched"),
        (127, "127 pages touched"),
    ] {
        let name = format!("metadata: 254 pages mapped, {what}");
        let bytes = touched(pages * PAGE)?;
        figures.push(Figure::new(name, "bytes", vec![bytes], PROCESSES as u64));
    }
    Ok(())
}

/// Bytes that all the mappings cost, with as many bytes at the start of each in idle pages.
fn touched(bytes: usize) -> Outcome<u64> {
    let mut processes = Vec::new();
    for index in 0..PROCESSES {
        let device = Device::create(&format!("bench-{index}"))?;
        let server = Wire::unmapped_manager(&device)?;
        processes.push((Sender::start(&device)?, server, device));
    }
    let before = used()?;
    let mut commands = Commands::default();
    for (sender, server, _) in &mut processes {
        server.map(MAPPING)?;
        if bytes > 0 {
            sender.send(0, bytes)?;
            let buffer = server.await_return(BR_TRANSACTION)?.buffer;
            commands.clear().free(buffer);
            server.write(&commands)?;
        }
    }
    let after = used()?;
    Ok(after.saturating_sub(before))
}

/// Bytes in slabs and of vmalloc.
fn used() -> Outcome<u64> {
    // Objects whose freeing waits for RCU are gone by then.
    sleep(Duration::from_millis(300));
    let slabs: u64 = fs::read_to_string("/proc/slabinfo")
        .context("slabinfo")?
        .lines()
        .filter_map(slab)
        .sum();
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let vmalloc: u64 = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("VmallocUsed:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0);
    Ok(slabs + vmalloc * 1024)
}

/// Bytes of the objects in use, from a line of slabinfo.
fn slab(line: &str) -> Option<u64> {
    let mut words = line.split_whitespace();
    let name = words.next()?;
    let objects: u64 = words.next()?.parse().ok()?;
    let size: u64 = words.nth(1)?.parse().ok()?;
    (!NOT_BINDER.contains(&name)).then_some(objects * size)
}
