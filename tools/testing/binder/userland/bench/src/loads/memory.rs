// SPDX-License-Identifier: GPL-2.0

//! The kernel memory that stands behind a mapping, its buffers' pages themselves apart.

use crate::{
    app::MAPPING,
    record::Figure,
    sender::Sender,
    wire::{Commands, Wire},
    Plan,
};
use binder_raw::{
    binder::{Device, PAGE},
    outcome::{skip, Context, Outcome},
    uapi::{BR_TRANSACTION, BR_TRANSACTION_COMPLETE},
};
use std::{fs, path::Path, thread::sleep, time::Duration};

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

/// A folder for each cache of objects, with the file "shrink".
const CACHES: &str = "/sys/kernel/slab";
const SLABINFO: &str = "/proc/slabinfo";

pub fn run(_: &Plan, figures: &mut Vec<Figure>) -> Outcome {
    for path in [CACHES, SLABINFO] {
        if !Path::new(path).exists() {
            return skip(&format!("no {path}"));
        }
    }
    // Whatever is set up once, is.
    touched(4 * PAGE)?;
    for (pages, what) in [
        (0, "untouched"),
        (4, "4 pages touched"),
        (254, "all touched"),
    ] {
        let name = format!("metadata: 254 pages mapped, {what}");
        let bytes = touched(pages * PAGE)?;
        figures.push(Figure::new(
            name,
            "bytes",
            vec![bytes.max(0) as u64],
            PROCESSES as u64,
        ));
    }
    Ok(())
}

/// Bytes that all the mappings cost, with as many bytes at the start of each in idle pages. If these are more than
/// oneway transactions may have, a call that hasn't been answered yet is in the result.
fn touched(bytes: usize) -> Outcome<i64> {
    let is_call = bytes > MAPPING / 2;
    let mut processes = Vec::new();
    for index in 0..PROCESSES {
        let device = Device::create(&format!("bench-{index}"))?;
        let server = Wire::unmapped_manager(&device)?;
        processes.push((Sender::start(&device)?, server, device));
    }
    let before = settled()?;
    let mut commands = Commands::default();
    for (sender, server, _) in &mut processes {
        server.map(MAPPING)?;
        if bytes > 0 {
            if is_call {
                sender.begin_call(bytes)?;
            } else {
                sender.send(0, bytes)?;
            }
            let buffer = server.await_return(BR_TRANSACTION)?.buffer;
            commands.clear().free(buffer);
            server.write(&commands)?;
        }
    }
    let after = settled()?;
    for (sender, server, _) in &mut processes {
        if is_call {
            server.talk(commands.clear().reply(&[]), BR_TRANSACTION_COMPLETE)?;
            sender.end_call()?;
        }
    }
    Ok(after - before)
}

/// Waits until what ended before has given back its memory, and tells what is used.
fn settled() -> Outcome<i64> {
    let mut last = used()?;
    for _ in 0..20 {
        sleep(Duration::from_millis(200));
        let now = used()?;
        if now == last {
            break;
        }
        last = now;
    }
    Ok(last)
}

/// Bytes of objects from slabs, of larger ones, and of vmalloc.
fn used() -> Outcome<i64> {
    // What is kept for the next allocation counts as used, unless it is given back.
    for cache in fs::read_dir(CACHES)?.flatten() {
        let _ = fs::write(cache.path().join("shrink"), "1");
    }
    let (mut objects, mut pages) = (0, 0);
    for slab in fs::read_to_string(SLABINFO)
        .context(SLABINFO)?
        .lines()
        .filter_map(Slab::parse)
    {
        pages += slab.pages;
        if !NOT_BINDER.contains(&slab.name.as_str()) {
            objects += slab.objects;
        }
    }
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let bytes = |name: &str| {
        meminfo
            .lines()
            .find_map(|line| {
                line.strip_prefix(name)?
                    .split_whitespace()
                    .nth(1)?
                    .parse()
                    .ok()
            })
            .map_or(0, |kib: i64| kib * 1024)
    };
    Ok(objects + bytes("Slab") - pages + bytes("VmallocUsed"))
}

/// A line of slabinfo.
struct Slab {
    name: String,
    /// Bytes of the objects in use.
    objects: i64,
    /// Bytes of all its pages.
    pages: i64,
}

impl Slab {
    fn parse(line: &str) -> Option<Self> {
        let words: Vec<_> = line.split_whitespace().collect();
        let number = |index: usize| words.get(index)?.parse::<i64>().ok();
        Some(Slab {
            name: words.first()?.to_string(),
            objects: number(1)? * number(3)?,
            pages: number(14)? * number(5)? * PAGE as i64,
        })
    }
}
