// SPDX-License-Identifier: GPL-2.0

//! Shrinkers: what the scan callback gets and returns.

/// What to scan.
pub struct ShrinkControl {
    nr_to_scan: usize,
    nr_scanned: usize,
}

impl ShrinkControl {
    pub fn new(nr_to_scan: usize) -> Self {
        Self {
            nr_to_scan,
            nr_scanned: nr_to_scan,
        }
    }

    pub fn nr_to_scan(&self) -> usize {
        self.nr_to_scan
    }

    pub fn nr_scanned(&self) -> usize {
        self.nr_scanned
    }

    pub fn set_nr_scanned(&mut self, nr: usize) {
        self.nr_scanned = nr;
    }
}

/// How many were freed; [`None`] for `SHRINK_STOP`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scan(pub Option<usize>);

impl Scan {
    pub const STOP: Self = Self(None);

    pub fn freed(n: usize) -> Self {
        Self(Some(n))
    }
}

pub fn account_reclaimed_pages(_: usize) {}
