// SPDX-License-Identifier: GPL-2.0

//! A process like most on a phone: it has received something once, and now does nothing.

use crate::{
    process::{Child, Worker},
    wire::{Commands, Wire},
};
use binder_raw::{
    binder::{Device, MIB, PAGE},
    outcome::{skip, Context, Outcome},
    uapi::{BR_TRANSACTION, BR_TRANSACTION_COMPLETE, TF_ONE_WAY},
};
use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
};

/// What libbinder maps: 254 pages.
pub const MAPPING: usize = MIB - 2 * PAGE;

const ENTRY: usize = size_of::<u64>();

/// Goes, with its cgroup and its device, when dropped.
pub struct App {
    process: Child,
    base: u64,
    pub group: Group,
    _device: Device,
}

impl App {
    /// Starts apps with as many idle pages each.
    pub fn start_all(apps: usize, pages: usize) -> Outcome<Vec<Self>> {
        (0..apps)
            .map(|index| App::start(&format!("bench-app-{index}"), pages))
            .collect()
    }

    fn start(name: &str, pages: usize) -> Outcome<Self> {
        let group = Group::new(name)?;
        let device = Device::create(name)?;
        let (mut worker, [base, _]) = Worker::start(|mut orders| {
            group.enter()?;
            let mut server = Wire::manager(&device, MAPPING)?;
            orders.answer([server.binder().base() as u64, 0])?;
            let buffer = server.await_return(BR_TRANSACTION)?.buffer;
            server.write(Commands::default().free(buffer))?;
            orders.answer([0, 0])?;
            loop {
                thread::park();
            }
        })?;
        send(&device, pages * PAGE)?;
        worker.answer()?;
        Ok(App {
            process: worker.process,
            base,
            group,
            _device: device,
        })
    }

    /// How many pages of its mapping are there, whichever the driver.
    pub fn resident(&self) -> Outcome<usize> {
        let path = format!("/proc/{}/pagemap", self.process.pid());
        let mut entries = [0; MAPPING / PAGE * ENTRY];
        let first = self.base / PAGE as u64 * ENTRY as u64;
        File::open(&path)
            .and_then(|file| file.read_exact_at(&mut entries, first))
            .context(&path)?;
        // The highest bit says that a page is there.
        let entries = entries.chunks_exact(ENTRY);
        Ok(entries.filter(|entry| entry[ENTRY - 1] & 0x80 != 0).count())
    }
}

/// Skips a load that can't do without cgroups, in which memory is counted and reclaimed, or without a look at
/// which pages are there.
pub fn need() -> Outcome {
    let controllers = fs::read_to_string(Group::root().join("cgroup.subtree_control"));
    let counts_memory =
        controllers.is_ok_and(|list| list.split_whitespace().any(|c| c == "memory"));
    if !counts_memory || !Group::root().join("memory.reclaim").exists() {
        return skip("no cgroup2 on /sys/fs/cgroup with memory in its cgroup.subtree_control");
    }
    if !Path::new("/proc/self/pagemap").exists() {
        return skip("no /proc/PID/pagemap");
    }
    Ok(())
}

/// Pages that all the apps have.
pub fn resident(apps: &[App]) -> Outcome<usize> {
    apps.iter().map(App::resident).sum()
}

/// Sends a oneway transaction. The C driver doesn't let a process send itself one.
fn send(device: &Device, size: usize) -> Outcome {
    let payload = vec![1; size];
    let mut commands = Commands::default();
    commands.transaction(0, &payload, TF_ONE_WAY);
    Wire::client(device, 4 * PAGE)?.talk(&commands, BR_TRANSACTION_COMPLETE)?;
    Ok(())
}

/// A memory cgroup, which goes when it is dropped.
pub struct Group(PathBuf);

impl Group {
    /// The cgroup that all others are in: what is reclaimed there is reclaimed from the whole machine.
    pub fn root() -> &'static Path {
        Path::new("/sys/fs/cgroup")
    }

    pub fn new(name: &str) -> Outcome<Self> {
        let path = Group::root().join(name);
        fs::create_dir_all(&path).context(name)?;
        Ok(Group(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Sets a limit. If more is in use, nothing is reclaimed, and nobody killed, for that.
    pub fn set(&self, file: &str, value: &str) -> Outcome {
        let mut options = File::options();
        let options = options.write(true).custom_flags(libc::O_NONBLOCK);
        let file = options.open(self.0.join(file)).context(file)?;
        Ok((&file).write_all(value.as_bytes())?)
    }

    /// Has the CPUs give back what they have charged to it in advance.
    pub fn drain(&self) -> Outcome {
        let file = self.0.join("memory.high");
        fs::write(&file, "0").context("memory.high")?;
        fs::write(&file, "max").context("memory.high")
    }

    /// Puts this process into it.
    pub fn enter(&self) -> Outcome {
        fs::write(self.0.join("cgroup.procs"), "0").context("cgroup.procs")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// Asks a cgroup for so many bytes. If it gives less, that is an error, which tells nothing here: what
/// counts is which pages are gone.
pub fn reclaim(group: &Path, bytes: usize) {
    let _ = fs::write(group.join("memory.reclaim"), bytes.to_string());
}
