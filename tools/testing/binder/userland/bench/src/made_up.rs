// SPDX-License-Identifier: GPL-2.0

//! A small record that nobody measured, for tests.

use crate::{
    record::{Cannot, Figure, Report},
    results::{self, Row, KERNELS},
};
use std::{
    fs,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicUsize, Ordering},
};

/// A folder with the record, which goes when this is dropped.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("binder-bench-{}-{number}", process::id());
        let folder = Folder(std::env::temp_dir().join(name));
        fs::create_dir(folder.path()).unwrap();
        for (kernel, (short, long)) in [(90, 110), (100, 100), (120, 95)].into_iter().enumerate() {
            let mut counts = vec![
                ("round trip: 0 B", "instructions", short),
                ("round trip: 4 KiB", "instructions", long),
                ("growth: 1 in use: send", "instructions", 10),
                ("growth: 10 in use: send", "instructions", 10 + short),
                ("one app: kept", "KiB", 300 - short),
            ];
            let mut cannot = Vec::new();
            match kernel {
                0 => counts.push(("one app: pages", "pages", 40)),
                1 => cannot.push(Cannot {
                    load: "one app".into(),
                    why: "its shrinker is <blind>".into(),
                }),
                _ => {}
            }
            folder.record("icount", kernel, "", &counts, cannot);
        }
        for (run, times) in [("-1", [10, 20, 40]), ("-2", [30, 20, 40])] {
            for (kernel, time) in times.into_iter().enumerate() {
                let figures = [("round trip: 0 B", "ns", time)];
                folder.record("time", kernel, run, &figures, Vec::new());
            }
        }
        for kernel in KERNELS {
            let config = format!("CONFIG_SAME=y\nCONFIG_OF_{kernel}=y\n");
            fs::write(folder.path().join(format!("config-{kernel}")), config).unwrap();
        }
        folder
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    fn record(
        &self,
        kind: &str,
        kernel: usize,
        run: &str,
        figures: &[(&str, &str, u64)],
        cannot: Vec<Cannot>,
    ) {
        let report = Report {
            kernel: format!("Linux <{}>", KERNELS[kernel]),
            unit: String::new(),
            figures: figures
                .iter()
                .map(
                    |&(load, unit, value)| match load.starts_with("round trip") {
                        true => Figure {
                            unit: unit.into(),
                            ..Figure::latency(load, vec![value])
                        },
                        false => Figure {
                            more_is_better: load.ends_with("kept"),
                            ..Figure::new(load, unit, vec![value], 1)
                        },
                    },
                )
                .collect(),
            phases: Vec::new(),
            cannot,
        };
        let path = self
            .path()
            .join(format!("{kind}-{}{run}.json", KERNELS[kernel]));
        fs::write(path, serde_json::to_string(&report).unwrap()).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.path());
    }
}

pub fn rows() -> Vec<Row> {
    match results::rows(Folder::new().path()) {
        Ok(rows) => rows,
        Err(_) => panic!("the record can be read"),
    }
}
