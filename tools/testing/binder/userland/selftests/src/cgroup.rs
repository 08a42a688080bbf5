// SPDX-License-Identifier: GPL-2.0

//! Memory cgroups of version 2.

use crate::{
    check_eq, fail,
    outcome::{skip, Context, Outcome},
};
use rustix::{
    fs::{open, Mode, OFlags},
    process::Pid,
};
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread::sleep,
    time::Duration,
};

const ROOT: &str = "/sys/fs/cgroup";

/// A cgroup. Removed when dropped, if empty.
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes a cgroup below the root; skips the test if memory can't be counted there.
    pub fn create(name: &str) -> Outcome<Self> {
        Cgroup::create_in(Path::new(ROOT), name)
    }

    /// Makes a cgroup below this one.
    pub fn child(&self, name: &str) -> Outcome<Self> {
        Cgroup::create_in(&self.path, name)
    }

    fn create_in(parent: &Path, name: &str) -> Outcome<Self> {
        let _ = fs::write(parent.join("cgroup.subtree_control"), "+memory");
        let name = format!("selftest-{}-{name}", std::process::id());
        let path = parent.join(name);
        if fs::create_dir(&path).is_err() {
            return skip("no cgroup v2 to make groups in");
        }
        let cgroup = Cgroup { path };
        let cmdline = fs::read_to_string("/proc/cmdline")?;
        if cmdline.contains("cgroup.memory=nokmem") {
            return skip("kernel memory isn't charged: cgroup.memory=nokmem");
        }
        if !cgroup.path.join("memory.current").exists() {
            return skip("no memory controller");
        }
        Ok(cgroup)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number by which the shrinker's debugfs files know this cgroup.
    pub fn id(&self) -> Outcome<u64> {
        Ok(fs::metadata(&self.path)?.ino())
    }

    pub fn add(&self, pid: Pid) -> Outcome {
        self.write("cgroup.procs", &pid.as_raw_nonzero().to_string())
            .context("cgroup.procs")
    }

    /// Puts the calling process into this cgroup.
    pub fn enter(&self) -> Outcome {
        self.add(rustix::process::getpid())
    }

    pub fn write(&self, file: &str, value: &str) -> Outcome {
        Ok(fs::write(self.path.join(file), value)?)
    }

    /// Sets `memory.max`, in pages, at once. If more is in use, nothing is killed for that.
    pub fn limit(&self, pages: u64) -> Outcome {
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = open(self.path.join("memory.max"), flags, Mode::empty())?;
        rustix::io::write(file, (pages * 4096).to_string().as_bytes())?;
        Ok(())
    }

    /// What `memory.current` says, in pages.
    pub fn pages(&self) -> Outcome<u64> {
        self.pages_of("memory.current")
    }

    /// What `memory.peak` says, in pages: the most that it ever had.
    pub fn peak(&self) -> Outcome<u64> {
        self.pages_of("memory.peak")
    }

    fn pages_of(&self, file: &str) -> Outcome<u64> {
        let text = fs::read_to_string(self.path.join(file))?;
        Ok(text.trim().parse::<u64>()? / 4096)
    }

    /// One counter of `memory.events`.
    pub fn event(&self, name: &str) -> Outcome<u64> {
        self.counter("memory.events", name)
    }

    /// Makes sure that the OOM killer was never asked for here, let alone killed anybody.
    pub fn expect_no_oom(&self) -> Outcome {
        for event in ["oom", "oom_kill", "oom_group_kill"] {
            check_eq!(self.event(event)?, 0, "{event}");
        }
        Ok(())
    }

    /// How many cgroups below this one are removed and not gone yet.
    pub fn dying(&self) -> Outcome<u64> {
        self.counter("cgroup.stat", "nr_dying_descendants")
    }

    fn counter(&self, file: &str, name: &str) -> Outcome<u64> {
        let text = fs::read_to_string(self.path.join(file))?;
        for line in text.lines() {
            if let Some(value) = line
                .strip_prefix(name)
                .and_then(|rest| rest.strip_prefix(' '))
            {
                return Ok(value.trim().parse()?);
            }
        }
        fail!("{file} has no {name}")
    }

    /// Asks for `pages` pages back. The answer means nothing: EAGAIN comes also when all went.
    pub fn reclaim(&self, pages: u64) {
        let _ = self.write("memory.reclaim", &(pages * 4096).to_string());
    }

    /// The processes that are in it.
    pub fn processes(&self) -> Outcome<Vec<Pid>> {
        let text = fs::read_to_string(self.path.join("cgroup.procs"))?;
        Ok(text
            .lines()
            .filter_map(|line| Pid::from_raw(line.parse().ok()?))
            .collect())
    }

    /// Has the CPUs give back what they have charged in advance to this cgroup, and to those below.
    /// They may do so a bit later.
    pub fn drain(&self) -> Outcome {
        self.write("memory.high", "0")?;
        self.write("memory.high", "max")
    }

    /// Removes the cgroup if no process is in it; tells whether it is gone.
    pub fn try_remove(&self) -> bool {
        fs::remove_dir(&self.path).is_ok()
    }

    /// Removes the cgroup; its processes must have left, and may still be on their way.
    pub fn remove(&self) -> Outcome {
        for _ in 0..100 {
            if self.try_remove() {
                return Ok(());
            }
            sleep(Duration::from_millis(20));
        }
        fail!("can't remove {}", self.path.display())
    }
}

/// Puts the calling process back into the root, where it started.
pub fn leave() -> Outcome {
    let pid = rustix::process::getpid().as_raw_nonzero().to_string();
    Ok(fs::write(Path::new(ROOT).join("cgroup.procs"), pid)?)
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.path);
    }
}
