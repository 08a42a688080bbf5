// SPDX-License-Identifier: GPL-2.0

//! Memory cgroups (version 2).

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

const ROOT: &str = "/sys/fs/cgroup";

/// Why the kernel doesn't charge Binder's pages to cgroups, if it doesn't.
pub fn why_not() -> Option<&'static str> {
    let controllers = fs::read_to_string(Path::new(ROOT).join("cgroup.controllers"));
    let cmdline = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let nokmem = cmdline
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("cgroup.memory="))
        .any(|options| options.split(',').any(|option| option == "nokmem"));
    match controllers {
        Err(_) => Some("no cgroup v2 at /sys/fs/cgroup"),
        Ok(list) if !list.split_whitespace().any(|name| name == "memory") => {
            Some("no memory cgroups")
        }
        Ok(_) if nokmem => Some("cgroup.memory=nokmem"),
        Ok(_) => None,
    }
}

/// A cgroup directory. The shrinker's debug file knows it by its inode number.
#[derive(Clone)]
pub struct Cgroup {
    path: PathBuf,
    pub inode: u64,
}

impl Cgroup {
    pub fn root() -> Result<Self> {
        Self::open(PathBuf::from(ROOT))
    }

    fn open(path: PathBuf) -> Result<Self> {
        let metadata = fs::metadata(&path).with_context(|| path.display().to_string())?;
        Ok(Self {
            inode: metadata.ino(),
            path,
        })
    }

    /// Makes a cgroup below this one, with accounting of its memory. One of that name
    /// that an interrupted run has left is replaced.
    pub fn create(&self, name: &str) -> Result<Self> {
        self.write("cgroup.subtree_control", "+memory")?;
        let path = self.path.join(name);
        if path.exists() {
            remove_tree(&path)?;
        }
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Self::open(path)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves a process here. What it has been charged for stays where it is.
    pub fn adopt(&self, pid: u32) -> Result<()> {
        self.write("cgroup.procs", &pid.to_string())
    }

    /// All memory charged to this cgroup and those below, in bytes. May be too high by what each
    /// CPU holds in stock for it, see [`stock`].
    pub fn current(&self) -> Result<u64> {
        self.read("memory.current")?
            .trim()
            .parse()
            .context("memory.current")
    }

    /// Asks the kernel to take memory back. Its answer says EAGAIN whenever there was less
    /// than the amount asked for, which tells nothing about what was taken.
    pub fn reclaim(&self, amount: &str) {
        let _ = self.write("memory.reclaim", amount);
    }

    pub fn remove(&self) -> Result<()> {
        fs::remove_dir(&self.path).with_context(|| self.path.display().to_string())
    }

    /// Removes this cgroup and those below, whose processes must have ended.
    pub fn remove_tree(&self) -> Result<()> {
        remove_tree(&self.path)
    }

    fn read(&self, file: &str) -> Result<String> {
        let path = self.path.join(file);
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    }

    fn write(&self, file: &str, value: &str) -> Result<()> {
        let path = self.path.join(file);
        fs::write(&path, value).with_context(|| format!("{value} > {}", path.display()))
    }
}

/// By how much memory.current may be wrong: the kernel charges and uncharges in batches of 64
/// pages for each CPU.
pub fn stock() -> u64 {
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    64 * cpus * rustix::param::page_size() as u64
}

fn remove_tree(path: &Path) -> Result<()> {
    for entry in fs::read_dir(path).with_context(|| path.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path).with_context(|| path.display().to_string())
}
