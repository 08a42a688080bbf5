// SPDX-License-Identifier: GPL-2.0

//! What was done, counted by all processes together.

use crate::{note, outcome::Outcome};
use rustix::mm::{mmap_anonymous, MapFlags, ProtFlags};
use std::{
    ptr,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// Lists what is counted: how often it must have been done at least, and what it is called.
macro_rules! kinds {
    ($($kind:ident: $least:literal $what:literal,)+) => {
        #[derive(Clone, Copy)]
        pub enum Kind {
            $($kind),+
        }

        const KINDS: &[(Kind, u64, &str)] = &[$((Kind::$kind, $least, $what)),+];
    };
}

kinds! {
    Called: 1000 "calls that were answered",
    Sent: 1000 "oneway transactions that got through",
    Failed: 100 "transactions that failed",
    Dead: 20 "transactions to the dead",
    Empty: 50 "payloads of 0 bytes",
    Huge: 50 "payloads of more than 100 KiB",
    Cleared: 50 "buffers to be cleared",
    Objects: 50 "transactions with a node in them",
    Compared: 1000 "payloads that arrived as they were sent",
    Spawned: 20 "processes begun",
    Exited: 5 "processes that ended at once, buffers and all",
    Killed: 10 "processes killed",
    Forked: 5 "forks",
    Executed: 2 "programs executed in place of a receiver",
    Unmapped: 2 "areas unmapped",
    Cut: 2 "areas unmapped in part",
    Moved: 2 "areas moved or shrunk",
    Replaced: 2 "areas replaced by other memory",
    Emptied: 2 "areas emptied by madvise",
    Advised: 20 "areas advised on",
    Migrated: 20 "processes moved to another cgroup",
    Removed: 5 "cgroups removed and made anew",
    Reclaimed: 50 "writes to memory.reclaim",
    Scanned: 50 "scans by debugfs",
    Dropped: 5 "writes to drop_caches",
    Read: 20 "reads of binder_logs",
}

/// Counters in memory that a process shares with those that it forks.
#[derive(Clone, Copy)]
pub struct Counts(&'static [AtomicU64]);

impl Counts {
    pub fn new() -> Outcome<Self> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let len = size_of_val(KINDS);
        // SAFETY: The kernel picks a free place.
        let place = unsafe { mmap_anonymous(ptr::null_mut(), len, prot, MapFlags::SHARED)? };
        // SAFETY: The memory is there until the process ends, has room for more than that many
        // counters, and was filled with zeroes by the kernel.
        let counters = unsafe { std::slice::from_raw_parts(place.cast(), KINDS.len()) };
        Ok(Counts(counters))
    }

    pub fn add(&self, kind: Kind) {
        self.0[kind as usize].fetch_add(1, Relaxed);
    }

    pub fn get(&self, kind: Kind) -> u64 {
        self.0[kind as usize].load(Relaxed)
    }

    /// Says how much of each was done, as TAP diagnostics.
    pub fn print(&self) {
        for (kind, _, what) in KINDS {
            note!("{:>9} {what}", self.get(*kind));
        }
    }

    /// What was done too little of.
    pub fn scarce(&self) -> Vec<String> {
        KINDS
            .iter()
            .filter(|(kind, least, _)| self.get(*kind) < *least)
            .map(|(kind, least, what)| format!("{} {what}, want {least}", self.get(*kind)))
            .collect()
    }
}
