// SPDX-License-Identifier: GPL-2.0

//! The driver's own view of each process's buffer pages, from the debug files in binderfs.

use std::{collections::HashMap, fs};

/// Numbers of pages. Drivers that don't print them have none.
#[derive(Clone, Copy, Default)]
pub struct Pages {
    pub active: Option<u64>,
    pub lru: Option<u64>,
    pub free: Option<u64>,
    pub high_watermark: Option<u64>,
}

/// The pages of all processes.
pub struct Logs(HashMap<u32, Pages>);

impl Logs {
    /// Knows of nobody if binderfs isn't mounted with stats=global.
    pub fn read() -> Self {
        let stats = fs::read_to_string("/dev/binderfs/binder_logs/stats");
        Self::parse(&stats.unwrap_or_default())
    }

    pub fn pages(&self, pid: u32) -> Pages {
        self.0.get(&pid).copied().unwrap_or_default()
    }

    /// Reads sections that begin with "proc PID"; what comes before the first is about the whole.
    fn parse(text: &str) -> Self {
        let mut processes: HashMap<u32, Pages> = HashMap::new();
        let mut pid = None;
        for line in text.lines() {
            if let Some(number) = line.strip_prefix("proc ") {
                pid = number.trim().parse().ok();
            }
            let Some(pid) = pid else { continue };
            let pages = processes.entry(pid).or_default();
            let line = line.trim();
            if let Some(numbers) = line.strip_prefix("pages: ") {
                let mut numbers = numbers.split(':').map(|number| number.trim().parse().ok());
                pages.active = numbers.next().flatten();
                pages.lru = numbers.next().flatten();
                pages.free = numbers.next().flatten();
            } else if let Some(number) = line.strip_prefix("pages high watermark: ") {
                pages.high_watermark = number.trim().parse().ok();
            }
        }
        Self(processes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_process_has_its_pages() {
        let logs = Logs::parse(
            "binder stats:\nproc: active 2\n\
             proc 7\n  pages: 1:20:300\n  pages high watermark: 21\n\
             proc 8\n  pages: 4:5:6\n",
        );
        let pages = logs.pages(7);
        let numbers = (pages.active, pages.lru, pages.free, pages.high_watermark);
        assert_eq!(numbers, (Some(1), Some(20), Some(300), Some(21)));
        assert_eq!(logs.pages(8).active, Some(4));
    }

    #[test]
    fn a_driver_that_prints_none() {
        assert!(Logs::parse("proc 7\n  threads: 1\n")
            .pages(7)
            .active
            .is_none());
    }
}
