// SPDX-License-Identifier: GPL-2.0

//! Shrinkers, seen and driven through debugfs: the driver's for the most part, and its page counts
//! in binder_logs.

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

/// One line of `count`: a memory cgroup and its objects on each node.
pub struct Line {
    pub memcg: u64,
    pub nodes: Vec<u64>,
}

/// The debugfs files of a shrinker.
pub struct Shrinker {
    dir: PathBuf,
}

impl Shrinker {
    /// Finds a shrinker by its name, to which the kernel has added a number.
    pub fn find(name: &str) -> Option<Self> {
        let entries = fs::read_dir("/sys/kernel/debug/shrinker").ok()?;
        entries
            .flatten()
            .find(|entry| {
                let found = entry.file_name();
                let number = found.to_str().and_then(|found| found.strip_prefix(name));
                number.is_some_and(|number| number.starts_with('-'))
            })
            .map(|entry| Shrinker { dir: entry.path() })
    }

    pub fn lines(&self) -> Vec<Line> {
        let text = fs::read_to_string(self.dir.join("count")).unwrap_or_default();
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

    /// Objects of everybody.
    pub fn total(&self) -> u64 {
        self.lines().iter().flat_map(|line| &line.nodes).sum()
    }

    /// Objects of one memory cgroup.
    pub fn count(&self, memcg: u64) -> u64 {
        self.lines()
            .iter()
            .filter(|line| line.memcg == memcg)
            .flat_map(|line| &line.nodes)
            .sum()
    }

    /// Asks the shrinker to look at `nr` objects of a cgroup and node.
    pub fn scan(&self, memcg: u64, node: usize, nr: u64) {
        let file = self.dir.join("scan");
        // A shrinker that knows nothing of memory cgroups takes only 0.
        if fs::write(&file, format!("{memcg} {node} {nr}")).is_err() {
            let _ = fs::write(&file, format!("0 {node} {nr}"));
        }
    }

    /// Scans for everything that `count` shows, in steps of at most `step` objects.
    pub fn scan_all(&self, step: u64) {
        for line in self.lines() {
            for (node, count) in line.nodes.iter().enumerate() {
                let mut left = *count;
                while left > 0 {
                    let nr = left.min(step);
                    self.scan(line.memcg, node, nr);
                    left -= nr;
                }
            }
        }
    }
}

/// The driver's.
fn binder() -> Option<&'static Shrinker> {
    static BINDER: OnceLock<Option<Shrinker>> = OnceLock::new();
    BINDER
        .get_or_init(|| Shrinker::find("android-binder"))
        .as_ref()
}

/// Skips a test that can't do without the shrinker's debugfs files.
pub fn need() -> Outcome {
    match binder() {
        Some(_) => Ok(()),
        None => skip("no android-binder shrinker in debugfs"),
    }
}

/// Idle pages by memory cgroup.
pub fn lines() -> Vec<Line> {
    binder().map_or_else(Vec::new, Shrinker::lines)
}

/// Idle pages of everybody.
pub fn total() -> u64 {
    binder().map_or(0, Shrinker::total)
}

/// Idle pages of one memory cgroup.
pub fn count(memcg: u64) -> u64 {
    binder().map_or(0, |binder| binder.count(memcg))
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
    if let Some(binder) = binder() {
        binder.scan(memcg, node, nr);
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
    if let Some(binder) = binder() {
        binder.scan_all(step);
    }
}

/// Reclaims what is idle now, of anybody; tells the total that nothing could be done about.
pub fn swept() -> Outcome<u64> {
    need()?;
    scan_all(u64::MAX);
    Ok(total())
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

const LOGS: &str = "/dev/binderfs/binder_logs";

/// Whether binderfs was mounted so that it shows the driver's logs.
pub fn has_logs() -> bool {
    Path::new(LOGS).exists()
}

/// The lines of a log, about the device's processes, that begin with one of `starts`.
fn logged(dev: &Device, log: &str, starts: &[&str]) -> Vec<String> {
    let text = fs::read_to_string(Path::new(LOGS).join(log)).unwrap_or_default();
    let context = format!("context {}", dev.name);
    let mut ours = false;
    text.lines()
        .filter(|line| {
            // Each process says which context it is in.
            if line.starts_with("context ") {
                ours = *line == context;
            }
            ours && starts.iter().any(|s| line.starts_with(s))
        })
        .map(str::to_owned)
        .collect()
}

/// What the driver's statistics say about buffers and pages of the device's processes.
pub fn stats(dev: &Device) -> Vec<String> {
    logged(
        dev,
        "stats",
        &["  free async", "  free oneway", "  buffers:", "  pages:"],
    )
}

/// How many processes the driver knows that have the device open.
pub fn processes(dev: &Device) -> usize {
    logged(dev, "stats", &["context "]).len()
}

/// What the driver says of each buffer of the device's processes.
pub fn buffers(dev: &Device) -> Vec<String> {
    logged(dev, "state", &["  buffer "])
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
    let text = fs::read_to_string(Path::new(LOGS).join("stats")).ok()?;
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

/// What the driver's statistics say of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// How much of the space for oneway transactions is free.
    pub oneway_free: u64,
    /// How many buffers there are.
    pub buffers: u64,
    /// Pages that are in use, idle, absent.
    pub pages: [u64; 3],
}

/// The usage by the device's process whose mapping has `slots` pages; `None` if the driver doesn't
/// say.
pub fn usage(dev: &Device, slots: u64) -> Option<Usage> {
    let text = fs::read_to_string(Path::new(LOGS).join("stats")).ok()?;
    let context = format!("context {}", dev.name);
    let mut processes = text.split("\nproc ").map(|process| {
        let lines = || process.lines();
        let value = |name: &str| lines().find_map(|line| line.strip_prefix(name));
        let pages: Vec<u64> = value("  pages: ")?
            .split(':')
            .map_while(|field| field.trim().parse().ok())
            .collect();
        let oneway_free = value("  free async space ").or(value("  free oneway space: "))?;
        let usage = Usage {
            oneway_free: oneway_free.trim().parse().ok()?,
            buffers: value("  buffers: ")?.trim().parse().ok()?,
            pages: pages.try_into().ok()?,
        };
        lines().any(|line| line == context).then_some(usage)
    });
    processes.find_map(|usage| usage.filter(|usage| usage.pages.iter().sum::<u64>() == slots))
}
