// SPDX-License-Identifier: GPL-2.0

//! The processes that take memory away, and look into everything meanwhile. They run to the end.

use super::counts::{Counts, Kind};
use crate::{outcome::Outcome, shrinker};
use fastrand::Rng;
use std::{fs, path::Path, thread::sleep, time::Duration};

fn pause(rng: &mut Rng, milliseconds: u64) {
    sleep(Duration::from_micros(rng.u64(0..2000 * milliseconds)));
}

/// Asks for memory of one cgroup below `parent`, or of all of them.
pub fn reclaim(parent: &Path, counts: Counts, mut rng: Rng) -> Outcome {
    loop {
        let mut cgroups = vec![parent.to_path_buf()];
        let entries = fs::read_dir(parent)?.flatten();
        cgroups.extend(
            entries
                .map(|entry| entry.path())
                .filter(|path| path.is_dir()),
        );
        cgroups.sort();
        let cgroup = &cgroups[rng.usize(0..cgroups.len())];
        let bytes = 4096 * rng.u64(1..600);
        // It may be gone meanwhile, or have nothing to give.
        let _ = fs::write(cgroup.join("memory.reclaim"), bytes.to_string());
        counts.add(Kind::Reclaimed);
        pause(&mut rng, 2);
    }
}

/// Has the shrinker look at some pages of some cgroup.
pub fn scan(counts: Counts, mut rng: Rng) -> Outcome {
    loop {
        let lines = shrinker::lines();
        if !lines.is_empty() {
            let line = &lines[rng.usize(0..lines.len())];
            let node = rng.usize(0..line.nodes.len().max(1));
            shrinker::scan(line.memcg, node, 1 << rng.u32(0..12));
            counts.add(Kind::Scanned);
        }
        pause(&mut rng, 2);
    }
}

/// Has all shrinkers called for everything.
pub fn drop_caches(counts: Counts, mut rng: Rng) -> Outcome {
    const FILE: &str = "/proc/sys/vm/drop_caches";
    // The log needn't have a line for each.
    fs::write(FILE, "4")?;
    loop {
        fs::write(FILE, if rng.bool() { "2" } else { "3" })?;
        counts.add(Kind::Dropped);
        pause(&mut rng, 100);
    }
}

/// Reads what the driver says of everybody.
pub fn read_logs(counts: Counts, mut rng: Rng) -> Outcome {
    const LOGS: [&str; 3] = ["state", "stats", "transactions"];
    loop {
        let log = Path::new("/dev/binderfs/binder_logs").join(LOGS[rng.usize(0..LOGS.len())]);
        fs::read(log)?;
        counts.add(Kind::Read);
        pause(&mut rng, 20);
    }
}
