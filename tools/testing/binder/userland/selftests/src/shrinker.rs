// SPDX-License-Identifier: GPL-2.0

//! The driver's shrinker, seen and driven through debugfs, and its page counts in binder_logs.

use crate::{
    binder::Device,
    outcome::{skip, Outcome},
};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
    thread::sleep,
    time::{Duration, Instant},
};

/// One line of `count`: a memory cgroup and its idle pages on each node.
struct Line {
    memcg: u64,
    nodes: Vec<u64>,
}

fn dir() -> Option<&'static PathBuf> {
    static DIR: OnceLock<Option<PathBuf>> = OnceLock::new();
    DIR.get_or_init(|| {
        let entries = fs::read_dir("/sys/kernel/debug/shrinker").ok()?;
        // Not `sb-binder-*`, which is binderfs's.
        entries
            .flatten()
            .find(|entry| {
                entry
                    .file_name()
                    .to_string_lossy()
                    .starts_with("android-binder-")
            })
            .map(|entry| entry.path())
    })
    .as_ref()
}

/// Skips a test that can't do without the shrinker's debugfs files.
pub fn need() -> Outcome {
    match dir() {
        Some(_) => Ok(()),
        None => skip("no android-binder shrinker in debugfs"),
    }
}

fn lines() -> Vec<Line> {
    let Some(dir) = dir() else { return Vec::new() };
    let text = fs::read_to_string(dir.join("count")).unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let mut fields = line
                .split_whitespace()
                .map_while(|field| field.parse().ok());
            Some(Line {
                memcg: fields.next()?,
                nodes: fields.collect(),
            })
        })
        .collect()
}

/// Idle pages of everybody.
pub fn total() -> u64 {
    lines().iter().flat_map(|line| &line.nodes).sum()
}

/// Idle pages of one memory cgroup.
pub fn count(memcg: u64) -> u64 {
    lines()
        .iter()
        .filter(|line| line.memcg == memcg)
        .flat_map(|line| &line.nodes)
        .sum()
}

/// How many NUMA nodes there are to scan.
pub fn nodes() -> usize {
    let nodes = fs::read_dir("/sys/devices/system/node").map_or(0, |entries| {
        entries
            .flatten()
            .filter(|entry| {
                let name = entry.file_name();
                name.to_string_lossy()
                    .strip_prefix("node")
                    .is_some_and(|n| n.parse::<u32>().is_ok())
            })
            .count()
    });
    nodes.max(1)
}

/// Asks the shrinker to look at `nr` pages of a cgroup and node.
pub fn scan(memcg: u64, node: usize, nr: u64) {
    let Some(dir) = dir() else { return };
    let file = dir.join("scan");
    // A shrinker that knows nothing of memory cgroups takes only 0.
    if fs::write(&file, format!("{memcg} {node} {nr}")).is_err() {
        let _ = fs::write(&file, format!("0 {node} {nr}"));
    }
}

/// One scan of at most `nr` pages for each cgroup and node.
pub fn scan_each(nr: u64) {
    for line in lines() {
        for (node, _) in line.nodes.iter().enumerate().filter(|(_, idle)| **idle > 0) {
            scan(line.memcg, node, nr);
        }
    }
}

/// Scans for everything that `count` shows, in steps of at most `step` pages.
pub fn scan_all(step: u64) {
    for line in lines() {
        for (node, idle) in line.nodes.iter().enumerate() {
            let mut left = *idle;
            while left > 0 {
                let nr = left.min(step);
                scan(line.memcg, node, nr);
                left -= nr;
            }
        }
    }
}

/// Scans until `wanted` holds of the total, for at most two seconds; tells whether it does.
pub fn scan_until(wanted: impl Fn(u64) -> bool) -> bool {
    let until = Instant::now() + Duration::from_secs(2);
    loop {
        scan_all(u64::MAX);
        if wanted(total()) {
            return true;
        }
        if Instant::now() > until {
            return false;
        }
        sleep(Duration::from_millis(10));
    }
}

const STATS: &str = "/dev/binderfs/binder_logs/stats";

/// Whether binderfs was mounted so that it shows the driver's statistics.
pub fn has_stats() -> bool {
    Path::new(STATS).exists()
}

/// The `pages:` lines that the driver prints for one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pages {
    pub active: u64,
    pub lru: u64,
    pub free: u64,
    pub high: u64,
}

/// The pages of the device's process whose mapping has `slots` pages; `None` if the driver
/// doesn't print any such line.
pub fn pages(dev: &Device, slots: u64) -> Option<Pages> {
    let text = fs::read_to_string(STATS).ok()?;
    let mut ours = false;
    let mut found = None;
    for line in text.lines() {
        if let Some(context) = line.strip_prefix("context ") {
            ours = context == dev.name;
        } else if let (true, Some(pages)) = (ours, line.strip_prefix("  pages: ")) {
            let mut fields = pages
                .split(':')
                .map_while(|field| field.trim().parse::<u64>().ok());
            let (active, lru, free) = (fields.next()?, fields.next()?, fields.next()?);
            ours = active + lru + free == slots;
            if ours {
                found = Some(Pages {
                    active,
                    lru,
                    free,
                    high: 0,
                });
            }
        } else if let (true, Some(high)) = (ours, line.strip_prefix("  pages high watermark: ")) {
            if let Some(found) = &mut found {
                found.high = high.trim().parse().ok()?;
            }
        }
    }
    found
}
