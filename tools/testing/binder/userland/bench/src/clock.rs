// SPDX-License-Identifier: GPL-2.0

//! What the loads are measured with.

use std::{
    sync::{
        atomic::{AtomicBool, Ordering},
        OnceLock,
    },
    time::Instant,
};

static COUNTS_INSTRUCTIONS: AtomicBool = AtomicBool::new(false);

/// Makes [`now`] count instructions: right only where the time stamp counter does, as it does
/// under QEMU's `-icount shift=0`.
pub fn count_instructions() {
    COUNTS_INSTRUCTIONS.store(true, Ordering::Relaxed);
}

pub fn counts_instructions() -> bool {
    COUNTS_INSTRUCTIONS.load(Ordering::Relaxed)
}

pub fn unit() -> &'static str {
    match counts_instructions() {
        true => "instructions",
        false => "ns",
    }
}

/// Instructions, or nanoseconds, since some point in the past.
pub fn now() -> u64 {
    #[cfg(target_arch = "x86_64")]
    if counts_instructions() {
        // SAFETY: Every x86_64 processor has the counter.
        return unsafe { core::arch::x86_64::_rdtsc() };
    }
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

/// What `work` costs, and its result.
pub fn measure<T>(work: impl FnOnce() -> T) -> (u64, T) {
    let start = now();
    let result = work();
    (now() - start, result)
}
