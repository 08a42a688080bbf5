// SPDX-License-Identifier: GPL-2.0

//! Other processes.

use crate::clock;
use binder_raw::outcome::{Context, Outcome, Stop};
use rustix::process::{kill_process, waitpid, Pid, Signal, WaitOptions};
use std::io::{PipeReader, PipeWriter, Read, Write};

/// A child process. Killed and reaped when dropped.
pub struct Child(Pid);

impl Child {
    pub fn pid(&self) -> i32 {
        self.0.as_raw_nonzero().get()
    }
}

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

/// What a process and its worker tell each other.
pub type Words = [u64; 2];

/// A process that does what it is told to, again and again. Ends when dropped.
pub struct Worker {
    requests: PipeWriter,
    answers: PipeReader,
    // Last: it ends by itself when nobody makes requests any more.
    pub process: Child,
}

/// The worker's side.
pub struct Orders {
    requests: PipeReader,
    answers: PipeWriter,
}

impl Worker {
    /// Starts a process, and waits for its first answer: by then it has set up what it needs.
    pub fn start(work: impl FnOnce(Orders) -> Outcome) -> Outcome<(Self, Words)> {
        let (requests_in, requests) = std::io::pipe()?;
        let (answers, answers_out) = std::io::pipe()?;
        let process = fork(|| {
            work(Orders {
                requests: requests_in,
                answers: answers_out,
            })
        })?;
        let mut worker = Worker {
            requests,
            answers,
            process,
        };
        let answer = worker.answer()?;
        Ok((worker, answer))
    }

    /// Requests something, and doesn't wait for the answer.
    pub fn request(&mut self, words: Words) -> Outcome {
        self.requests
            .write_all(&bytes(words))
            .context("a worker process")
    }

    pub fn answer(&mut self) -> Outcome<Words> {
        read(&mut self.answers).context("a worker process")
    }
}

impl Orders {
    /// Waits for the next request; `None` if nobody can make any more.
    pub fn next(&mut self) -> Option<Words> {
        read(&mut self.requests).ok()
    }

    pub fn answer(&mut self, words: Words) -> Outcome {
        Ok(self.answers.write_all(&bytes(words))?)
    }
}

fn bytes([first, second]: Words) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&first.to_ne_bytes());
    bytes[8..].copy_from_slice(&second.to_ne_bytes());
    bytes
}

fn read(pipe: &mut PipeReader) -> std::io::Result<Words> {
    let mut words = [0; 2];
    for word in &mut words {
        let mut bytes = [0; 8];
        pipe.read_exact(&mut bytes)?;
        *word = u64::from_ne_bytes(bytes);
    }
    Ok(words)
}

/// How the scheduler treats a thread, and those that it starts from then on.
pub enum Priority {
    Fifo(i32),
    Nice(i32),
}

impl Priority {
    /// Gives it to the calling thread.
    pub fn take(&self) -> Outcome {
        let (policy, sched_priority, nice) = match *self {
            Priority::Fifo(priority) => (libc::SCHED_FIFO, priority, 0),
            Priority::Nice(nice) => (libc::SCHED_OTHER, 0, nice),
        };
        let parameter = libc::sched_param { sched_priority };
        // SAFETY: The parameter is valid. On Linux, 0 is the thread.
        let result = unsafe {
            libc::sched_setscheduler(0, policy, &parameter)
                | libc::setpriority(libc::PRIO_PROCESS, 0, nice)
        };
        match result {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error().into()),
        }
    }
}

/// While this is there, and instructions are counted, this process and those that it starts run in turns, each
/// until it waits. Else, what the scheduler does on a call depends on how long each slept before, and
/// differs by more than drivers do.
pub struct InTurns(());

impl InTurns {
    pub fn begin() -> Outcome<Self> {
        if clock::counts_instructions() {
            // Or others would get 5 % of the time.
            let _ = std::fs::write("/proc/sys/kernel/sched_rt_runtime_us", "-1");
            Priority::Fifo(1).take()?;
        }
        Ok(InTurns(()))
    }
}

impl Drop for InTurns {
    fn drop(&mut self) {
        let _ = Priority::Nice(0).take();
    }
}
