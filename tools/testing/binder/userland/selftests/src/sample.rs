// SPDX-License-Identifier: GPL-2.0

//! The shrinker sample, samples/rust/rust_shrinker.rs: a cache of objects.

use crate::{
    outcome::{skip, Context, Outcome},
    shrinker::Shrinker,
};
use rustix::system::{delete_module, finit_module};
use std::{
    ffi::CStr,
    fs::{self, File},
    io,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

const NAME: &str = "rust_shrinker";
const C_NAME: &CStr = c"rust_shrinker";
const EXPEDITED: &str = "/sys/kernel/rcu_expedited";
const FILES: &str = "/sys/kernel/debug/rust_shrinker";
const DROP_CACHES: &str = "/proc/sys/vm/drop_caches";
const MODULE: &str = "/lib/modules/rust_shrinker.ko";

/// The sample, loaded and empty. A module is unloaded when this is dropped.
pub struct Sample {
    pub shrinker: Shrinker,
}

impl Sample {
    /// Loads the sample; skips the test if there is none.
    pub fn start() -> Outcome<Self> {
        if is_module()? {
            // A test that was killed may have left it behind.
            let _ = unload();
            load(&open_module()?).context("loading the sample")?;
        }
        let Some(shrinker) = Shrinker::find(NAME) else {
            crate::fail!("the sample has no shrinker in debugfs");
        };
        // Not a line in the kernel's log each time that caches are dropped.
        fs::write(DROP_CACHES, "4")?;
        let sample = Sample { shrinker };
        for (knob, value) in [("busy", "false"), ("held", "false"), ("cost", "1")] {
            sample.set(knob, value)?;
        }
        // Those of a cgroup that was just removed are out of reach until their parent has them.
        let until = Instant::now() + Duration::from_secs(2);
        while sample.get("objects")? > 0 {
            crate::check!(Instant::now() < until, "objects at first");
            sample.shrinker.scan_all(u64::MAX);
            sleep(Duration::from_millis(10));
        }
        Ok(sample)
    }

    /// Adds objects, for which the calling process pays.
    pub fn add(&self, n: u64) -> io::Result<()> {
        fs::write(Path::new(FILES).join("add"), n.to_string())
    }

    /// Removes objects, the oldest ones first.
    pub fn del(&self, n: u64) -> io::Result<()> {
        fs::write(Path::new(FILES).join("del"), n.to_string())
    }

    pub fn set(&self, knob: &str, value: &str) -> Outcome {
        fs::write(Path::new(FILES).join(knob), value).context(knob)
    }

    pub fn get(&self, counter: &str) -> Outcome<u64> {
        let text = fs::read_to_string(Path::new(FILES).join(counter)).context(counter)?;
        Ok(text.trim().parse()?)
    }

    /// How far a counter rises while `body` runs.
    pub fn rise(&self, counter: &str, body: impl FnOnce() -> Outcome) -> Outcome<u64> {
        let before = self.get(counter)?;
        body()?;
        Ok(self.get(counter)? - before)
    }

    pub fn open(&self, file: &str) -> Outcome<File> {
        let path = Path::new(FILES).join(file);
        Ok(File::options().write(true).open(path)?)
    }
}

impl Drop for Sample {
    fn drop(&mut self) {
        let _ = unload();
    }
}

/// Whether the sample is a module, and not built in; skips the test if it is neither.
fn is_module() -> Outcome<bool> {
    if Path::new(MODULE).exists() && Path::new("/proc/modules").exists() {
        Ok(true)
    } else if Path::new(FILES).exists() {
        Ok(false)
    } else {
        skip("no shrinker sample (SAMPLE_RUST_SHRINKER)")
    }
}

/// Skips a test that can't do without loading the sample.
pub fn need_module() -> Outcome {
    match is_module()? {
        true => Ok(()),
        false => skip("the sample is built in"),
    }
}

pub fn open_module() -> Outcome<File> {
    Ok(File::open(MODULE)?)
}

pub fn load(module: &File) -> rustix::io::Result<()> {
    finit_module(module, c"", 0)
}

pub fn unload() -> rustix::io::Result<()> {
    delete_module(C_NAME, 0)
}

/// Has RCU hurry until this is dropped: a module comes and goes by way of many grace periods, which
/// take some ticks each.
pub struct Expedited;

impl Expedited {
    pub fn start() -> Self {
        let _ = fs::write(EXPEDITED, "1");
        Expedited
    }
}

impl Drop for Expedited {
    fn drop(&mut self) {
        let _ = fs::write(EXPEDITED, "0");
    }
}

/// What there is of the sample in the system, if anything.
pub fn traces() -> Outcome<Vec<&'static str>> {
    let modules = fs::read_to_string("/proc/modules")?;
    let traces = [
        ("debugfs files", Path::new(FILES).exists()),
        ("shrinker", Shrinker::find(NAME).is_some()),
        ("module", modules.lines().any(|line| line.starts_with(NAME))),
        (
            "folder in sysfs",
            Path::new("/sys/module").join(NAME).exists(),
        ),
    ];
    Ok(traces
        .into_iter()
        .filter_map(|(name, there)| there.then_some(name))
        .collect())
}

/// One pass over all shrinkers, for all memory cgroups, at the highest priority; and more of them
/// as long as they free something.
pub fn drop_caches() -> Outcome {
    Ok(fs::write(DROP_CACHES, "2")?)
}
