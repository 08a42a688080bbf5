// SPDX-License-Identifier: GPL-2.0

//! Memory cgroups of version 2.

use crate::{
    check_eq, fail,
    outcome::{skip, vanishes, Context, Outcome},
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

/// Cgroups that must leave nothing charged in the end, not a single page.
pub struct Tree {
    // Before the one above it, which can go then.
    parent: Cgroup,
    top: Cgroup,
}

impl Tree {
    /// As [`Cgroup::create`].
    pub fn create(name: &str) -> Outcome<Self> {
        // No process is in `parent`, but one that has just left a removed child may allocate there.
        // So it goes, too, and what was lost is found in `top`.
        let top = Cgroup::create(name)?;
        let parent = top.child("all")?;
        // What was charged to `top` for making `parent` is freed later, by one CPU. With nothing
        // kept for it by another, it comes to whole pages there, and goes.
        top.drain()?;
        Ok(Tree { parent, top })
    }

    /// The folder that the cgroups are in.
    pub fn path(&self) -> &Path {
        self.parent.path()
    }

    pub fn child(&self, name: &str) -> Outcome<Cgroup> {
        self.parent.child(name)
    }

    /// Removes all, but for what tells what is left. The children must have been removed.
    pub fn remove(&self) -> Outcome {
        self.parent.remove()
    }

    /// Waits until the kernel has freed what was removed.
    pub fn expect_gone(&self) -> Outcome {
        vanishes("dying cgroups", || self.top.dying())
    }

    /// Waits until nothing is charged to a cgroup that never had a process, and whose children,
    /// which had some, are gone. A page that got lost stays.
    ///
    /// A cgroup that has had processes may keep a page for each node, though all that was charged is
    /// freed: bytes of small objects freed on different CPUs add up to a page that the kernel doesn't
    /// notice before the next small object (`nr_charged_bytes` of its `struct obj_cgroup`). Removed
    /// cgroups give it back with their last object.
    pub fn expect_uncharged(&self) -> Outcome {
        vanishes("pages charged", || {
            drop_caches()?;
            self.top.drain()?;
            self.top.pages()
        })
    }

    /// All of this.
    pub fn expect_nothing_left(&self) -> Outcome {
        self.remove()?;
        self.expect_gone()?;
        self.expect_uncharged()
    }
}

/// Frees what is only kept for later, also what is just on its way to a list.
pub fn drop_caches() -> Outcome {
    Ok(fs::write("/proc/sys/vm/drop_caches", "3")?)
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
