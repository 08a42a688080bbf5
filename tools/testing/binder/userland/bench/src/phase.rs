// SPDX-License-Identifier: GPL-2.0

//! Phases of the work that a profiler outside of the virtual machine is to see apart from the others:
//! their begin and their end are system calls that nothing else makes.

use crate::record;
use std::sync::Mutex;

static PHASES: Mutex<Vec<record::Phase>> = Mutex::new(Vec::new());

/// A phase. It ends when this is dropped.
pub struct Phase(());

impl Phase {
    /// Begins a phase in which the same is done `rounds` times.
    pub fn begin(name: &str, rounds: usize) -> Self {
        let name = name.into();
        PHASES
            .lock()
            .expect("nobody panics")
            .push(record::Phase { name, rounds });
        mark();
        Phase(())
    }
}

impl Drop for Phase {
    fn drop(&mut self) {
        mark();
    }
}

/// All phases that there were since this was asked last.
pub fn take() -> Vec<record::Phase> {
    std::mem::take(&mut PHASES.lock().expect("nobody panics"))
}

fn mark() {
    // SAFETY: The call takes a number and has no effect.
    unsafe { libc::sched_get_priority_max(0) };
}
