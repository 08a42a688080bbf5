// SPDX-License-Identifier: GPL-2.0

//! The table: where the pages are at one moment.

use crate::logs::Pages;

pub struct Row {
    pub name: String,
    pub what: String,
    pub pid: Option<u32>,
    /// As the driver prints them.
    pub pages: Pages,
    /// The shrinker's count for the cgroup.
    pub idle: Option<u64>,
    /// memory.current in bytes.
    pub memory: Option<u64>,
}

pub struct Snapshot {
    pub title: String,
    pub rows: Vec<Row>,
    /// The shrinker's count for all cgroups together.
    pub total: u64,
}

/// Heads of the columns; the first two are text, the others numbers.
pub const HEADS: [&str; 9] = [
    "cgroup",
    "role",
    "pid",
    "in use",
    "lru",
    "free",
    "peak",
    "idle",
    "memory KiB",
];

impl Row {
    /// The cells as text, "-" for what the kernel doesn't tell.
    pub fn cells(&self) -> [String; HEADS.len()] {
        fn or_dash(number: Option<impl ToString>) -> String {
            number.map_or_else(|| "-".to_owned(), |number| number.to_string())
        }
        [
            self.name.clone(),
            self.what.clone(),
            or_dash(self.pid),
            or_dash(self.pages.active),
            or_dash(self.pages.lru),
            or_dash(self.pages.free),
            or_dash(self.pages.high_watermark),
            or_dash(self.idle),
            or_dash(self.memory.map(|bytes| bytes / 1024)),
        ]
    }
}

impl Snapshot {
    pub fn print(&self) {
        let lines: Vec<_> = self.rows.iter().map(Row::cells).collect();
        let print_line = |cells: [&str; HEADS.len()]| {
            let [name, what, pid, active, lru, free, peak, idle, memory] = cells;
            println!(
                "#   {name:9} {what:19} {pid:>5} {active:>7} {lru:>6} {free:>6} {peak:>6} \
                 {idle:>6} {memory:>11}"
            );
        };
        println!("#\n# {}: {} idle pages in all", self.title, self.total);
        print_line(HEADS);
        for line in &lines {
            print_line(line.each_ref().map(String::as_str));
        }
        println!("#");
    }
}
