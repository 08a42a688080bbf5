// SPDX-License-Identifier: GPL-2.0

//! Allocations of the kernel that fail, by its fault injection.

use crate::outcome::{skip, Outcome};
use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

const FAILSLAB: &str = "/sys/kernel/debug/failslab";
const FAIL_PAGE_ALLOC: &str = "/sys/kernel/debug/fail_page_alloc";

/// How failslab is to be: those fail, too, that may wait; all of the tasks chosen, for ever, but
/// none of the others; and not a word in the kernel's log.
const SLABS: &[(&str, &str)] = &[
    ("task-filter", "Y"),
    ("ignore-gfp-wait", "N"),
    ("verbose", "0"),
    ("times", "-1"),
    ("interval", "1"),
    ("probability", "100"),
];

/// The same for whole pages, any number of them, of which only the n-th fails.
const PAGES: &[(&str, &str)] = &[
    ("ignore-gfp-wait", "N"),
    ("ignore-gfp-highmem", "N"),
    ("min-order", "0"),
    ("verbose", "0"),
];

/// For whole pages, of which one in twenty fails at random.
const SOME_PAGES: &[(&str, &str)] = &[
    ("task-filter", "Y"),
    ("times", "-1"),
    ("interval", "1"),
    ("probability", "5"),
];

/// Lets allocations of the calling thread fail. The settings are as before when this is dropped.
pub struct Faults {
    fail_nth: File,
    make_it_fail: File,
    before: Vec<(PathBuf, String)>,
}

impl Faults {
    /// Skips the test if the kernel has no fault injection.
    pub fn enable() -> Outcome<Self> {
        let open = |name| {
            let path = Path::new("/proc/thread-self").join(name);
            File::options().read(true).write(true).open(path)
        };
        let (Ok(fail_nth), Ok(make_it_fail)) = (open("fail-nth"), open("make-it-fail")) else {
            return skip("no fault injection (FAULT_INJECTION)");
        };
        let mut faults = Faults {
            fail_nth,
            make_it_fail,
            before: Vec::new(),
        };
        faults.set(FAILSLAB, SLABS)?;
        Ok(faults)
    }

    /// The same, and lets allocations of pages fail, too.
    pub fn enable_all() -> Outcome<Self> {
        let mut faults = Faults::enable()?;
        faults.set(FAIL_PAGE_ALLOC, PAGES)?;
        Ok(faults)
    }

    /// Lets some pages of those threads fail that have a [`Failing`], and nothing else.
    pub fn enable_some_pages() -> Outcome<Self> {
        let mut faults = Faults::enable()?;
        faults.set(FAILSLAB, &[("probability", "0")])?;
        faults.set(FAIL_PAGE_ALLOC, PAGES)?;
        faults.set(FAIL_PAGE_ALLOC, SOME_PAGES)?;
        Ok(faults)
    }

    fn set(&mut self, folder: &str, settings: &[(&str, &str)]) -> Outcome {
        for (name, value) in settings {
            let file = Path::new(folder).join(name);
            let Ok(before) = fs::read_to_string(&file) else {
                return skip(&format!("no {}", file.display()));
            };
            self.before.push((file.clone(), before));
            fs::write(file, value)?;
        }
        Ok(())
    }

    /// Runs `body`, which should be no more than a system call or two, while its n-th allocation
    /// fails. Tells whether it made that many.
    pub fn nth<T>(&self, n: u32, body: impl FnOnce() -> T) -> Outcome<(T, bool)> {
        let mut left = [0; 16];
        self.fail_nth.write_at(n.to_string().as_bytes(), 0)?;
        let result = body();
        let len = self.fail_nth.read_at(&mut left, 0)?;
        self.fail_nth.write_at(b"0", 0)?;
        // What is left to go is 0 after the failure.
        let hit = std::str::from_utf8(&left[..len])?.trim() == "0";
        Ok((result, hit))
    }

    /// Runs `body` while there are so many bytes left for its allocations: all fail from the first
    /// one on that doesn't fit.
    pub fn with_bytes<T>(&self, bytes: u32, body: impl FnOnce() -> T) -> Outcome<T> {
        fs::write(Path::new(FAILSLAB).join("space"), bytes.to_string())?;
        self.make_it_fail.write_at(b"1", 0)?;
        let result = body();
        self.make_it_fail.write_at(b"0", 0)?;
        fs::write(Path::new(FAILSLAB).join("space"), "0")?;
        Ok(result)
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        // The filter goes last: it keeps the other tasks' allocations from failing.
        for (file, value) in self.before.iter().rev() {
            let _ = fs::write(file, value);
        }
    }
}

/// That allocations of the calling thread may fail.
pub struct Failing(File);

impl Failing {
    pub fn begin() -> Outcome<Self> {
        let file = File::options()
            .write(true)
            .open("/proc/thread-self/make-it-fail")?;
        file.write_at(b"1", 0)?;
        Ok(Failing(file))
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        let _ = self.0.write_at(b"0", 0);
    }
}
