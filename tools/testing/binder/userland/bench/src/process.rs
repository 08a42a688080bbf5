// SPDX-License-Identifier: GPL-2.0

//! Other processes.

use binder_raw::outcome::{Outcome, Stop};
use rustix::process::{kill_process, waitpid, Pid, Signal, WaitOptions};

/// A child process. Killed and reaped when dropped.
pub struct Child(Pid);

/// Runs `work` in a new process. Only called while this one has one thread.
pub fn fork(work: impl FnOnce() -> Outcome) -> Outcome<Child> {
    // SAFETY: There is one thread, so no lock is held by one that the child doesn't have.
    match unsafe { libc::fork() } {
        -1 => Err(std::io::Error::last_os_error().into()),
        0 => {
            let status = match work() {
                Ok(()) => 0,
                Err(Stop::Fail(why) | Stop::Skip(why)) => {
                    eprintln!("binder-bench: in a child: {why}");
                    1
                }
            };
            // SAFETY: Always safe; skips the parent's exit handlers.
            unsafe { libc::_exit(status) }
        }
        pid => Ok(Child(Pid::from_raw(pid).expect("a pid"))),
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::KILL);
        let _ = waitpid(Some(self.0), WaitOptions::empty());
    }
}
