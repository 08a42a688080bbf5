// SPDX-License-Identifier: GPL-2.0

//! Other processes: fork, a link to talk over, death.

use crate::outcome::{Outcome, Stop};
use rustix::{
    event::{poll, PollFd, PollFlags, Timespec},
    process::{
        kill_process, pidfd_open, waitpid, Pid, PidfdFlags, Signal, WaitOptions, WaitStatus,
    },
};
use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

/// How long one process waits for another, also on a machine with much other work.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs `body` in a new process, which ends with the status that it returns.
///
/// Only called while this process has one thread.
pub fn fork(body: impl FnOnce() -> i32) -> Pid {
    // SAFETY: There is one thread, so no lock of the runtime is held by a thread that the child
    // doesn't have.
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", std::io::Error::last_os_error()),
        0 => {
            let status =
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(101);
            // SAFETY: Always safe; skips the parent's exit handlers.
            unsafe { libc::_exit(status) }
        }
        pid => Pid::from_raw(pid).expect("a pid"),
    }
}

/// Waits for a child; `None` if it didn't end in time.
pub fn wait_for(child: Pid, limit: Duration) -> Option<WaitStatus> {
    let fd = pidfd_open(child, PidfdFlags::empty()).ok()?;
    let until = Instant::now() + limit;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).ok()?;
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&left)) {
            Ok(0) => return None,
            Err(rustix::io::Errno::INTR) => {}
            _ => break,
        }
    }
    waitpid(Some(child), WaitOptions::empty())
        .ok()?
        .map(|(_, status)| status)
}

/// A child may end by itself or be killed, and in no other way.
pub fn expect_fine(child: Pid, status: WaitStatus) -> Outcome {
    if status.exit_status() != Some(0) && status.terminating_signal() != Some(Signal::KILL.as_raw())
    {
        crate::fail!("child {} ended with {status:?}", child.as_raw_nonzero());
    }
    Ok(())
}

/// One end of a line of numbers and words between two processes.
pub struct Link(UnixStream);

impl Link {
    pub fn send(&mut self, value: u64) -> Outcome {
        Ok(self.0.write_all(&value.to_ne_bytes())?)
    }

    pub fn recv(&mut self) -> Outcome<u64> {
        let mut value = [0; 8];
        self.0.read_exact(&mut value)?;
        Ok(u64::from_ne_bytes(value))
    }

    pub fn say(&mut self, words: &str) -> Outcome {
        self.send(words.len() as u64)?;
        Ok(self.0.write_all(words.as_bytes())?)
    }

    pub fn hear(&mut self) -> Outcome<String> {
        let mut words = vec![0; self.recv()? as usize];
        self.0.read_exact(&mut words)?;
        Ok(String::from_utf8(words)?)
    }
}

/// A child process of a test. Killed and reaped when dropped.
pub struct Peer {
    pid: Pid,
    alive: bool,
    pub link: Link,
}

impl Peer {
    pub fn spawn(body: impl FnOnce(&mut Link) -> Outcome) -> Outcome<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(PATIENCE))?;
        let raw = std::os::fd::AsRawFd::as_raw_fd(&ours);
        let pid = fork(|| {
            // Close the parent's end, or the child would not see the parent go.
            // SAFETY: The child never uses `ours`: this process ends by `_exit`.
            unsafe { libc::close(raw) };
            match body(&mut Link(theirs)) {
                Ok(()) => 0,
                Err(Stop::Fail(why)) => {
                    crate::note!("in a child: {why}");
                    1
                }
                Err(Stop::Skip(_)) => 0,
            }
        });
        Ok(Peer {
            pid,
            alive: true,
            link: Link(ours),
        })
    }

    pub fn pid(&self) -> Pid {
        self.pid
    }

    pub fn signal(&self, signal: Signal) -> Outcome {
        Ok(kill_process(self.pid, signal)?)
    }

    /// Waits until the child ended.
    pub fn wait(&mut self) -> Outcome<WaitStatus> {
        match wait_for(self.pid, PATIENCE) {
            Some(status) => {
                self.alive = false;
                Ok(status)
            }
            None => crate::fail!("child {} doesn't end", self.pid.as_raw_nonzero()),
        }
    }

    /// Kills the child. Fails if it had failed by itself before.
    pub fn kill(&mut self) -> Outcome {
        self.signal(Signal::KILL)?;
        let status = self.wait()?;
        expect_fine(self.pid, status)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if self.alive {
            let _ = self.kill();
        }
    }
}
