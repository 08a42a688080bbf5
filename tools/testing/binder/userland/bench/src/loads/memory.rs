// SPDX-License-Identifier: GPL-2.0

//! The kernel memory that stands behind a mapping and behind each buffer, the pages of the buffers themselves apart.

use crate::{
    app::{Group, MAPPING},
    record::Figure,
    sender::Sender,
    wire::{Commands, Pair, Wire},
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

/// In steps, so that the CPU wakes up for work that can be put off.
const STEP: Duration = Duration::from_millis(200);
const STEPS: u32 = 15;

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
    for count in [1000, 16384] {
        for (what, is_call) in [("kept", true), ("queued", false)] {
            let Memory { all, uncharged } = buffers(count, is_call)?;
            for (part, bytes) in [("all", Some(all)), ("charged to nobody", uncharged)] {
                let Some(bytes) = bytes else {
                    continue;
                };
                figures.push(Figure::new(
                    format!("metadata: an empty buffer {what}, of {count}: {part}"),
                    "bytes",
                    vec![bytes.max(0) as u64],
                    count as u64,
                ));
            }
        }
    }
    Ok(())
}

/// Bytes that some buffers cost.
struct Memory {
    all: i64,
    /// Those of them that no cgroup is charged for, where that can be known.
    uncharged: Option<i64>,
}

/// What as many more empty buffers cost whose pages are there before: calls that were answered and not freed, or oneway
/// transactions that nobody has received yet. This process is the receiver, and would be charged.
fn buffers(count: usize, is_call: bool) -> Outcome<Memory> {
    let mut pair = Pair::new("bench-buffers", MAPPING)?;
    // The lower half of the area, which has space for more than there will be.
    let buffer = pair.leave(MAPPING / 2)?;
    pair.free(buffer)?;
    let mut add = |count| -> Outcome<(i64, Option<i64>)> {
        for _ in 0..count {
            match is_call {
                true => drop(pair.leave(0)?),
                false => drop(pair.send(0)?),
            }
        }
        Ok((settled()?, charged()?))
    };
    // Not what the first ones bring that others need, too.
    let (used_before, charged_before) = add(count / 10)?;
    let (used_after, charged_after) = add(count)?;
    let all = used_after - used_before;
    let uncharged = match (charged_before, charged_after) {
        (Some(before), Some(after)) => Some(all - (after - before)),
        _ => None,
    };
    Ok(Memory { all, uncharged })
}

/// Bytes of kernel memory that the cgroup of this process is charged for, if it is in one.
fn charged() -> Outcome<Option<i64>> {
    let groups = fs::read_to_string("/proc/self/cgroup")?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    let Some(group) = group.filter(|group| !group.is_empty()) else {
        return Ok(None);
    };
    let path = Group::root().join(group).join("memory.stat");
    // What is charged on each CPU is summed up every two seconds, or when it is much.
    for _ in 0..STEPS {
        sleep(STEP);
    }
    let Ok(text) = fs::read_to_string(path) else {
        return Ok(None);
    };
    Ok(kernel_memory(&text))
}

/// What memory.stat says of kernel memory.
fn kernel_memory(text: &str) -> Option<i64> {
    let line = text.lines().find_map(|line| line.strip_prefix("kernel "));
    line.and_then(|bytes| bytes.parse().ok())
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
        sleep(STEP);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_says() {
        let line = "kmalloc-512 620 640 512 8 1 : tunables 0 0 0 : slabdata 80 80 0";
        let slab = Slab::parse(line).unwrap();
        assert_eq!((slab.objects, slab.pages), (620 * 512, 80 * 4096));
        let text = "anon 4096\nkernel_stack 16384\nkernel 77824\nslab 8192\n";
        assert_eq!(kernel_memory(text), Some(77824));
        assert_eq!(kernel_memory("anon 4096\n"), None);
    }
}
