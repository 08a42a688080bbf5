// SPDX-License-Identifier: GPL-2.0

//! What processes execute in the driver, as KCOV says (Documentation/dev-tools/kcov.rst).

use binder_raw::outcome::{Context, Outcome};
use rustix::{
    fs::{open, Mode, OFlags},
    ioctl::{ioctl, opcode, IntegerSetter, Opcode},
    mm::{mmap, munmap, MapFlags, ProtFlags},
};
use std::{
    collections::HashSet,
    ffi::{c_ulong, c_void},
    os::fd::OwnedFd,
    ptr,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

const KCOV: &str = "/sys/kernel/debug/kcov";
const INIT_TRACE: Opcode = opcode::read::<c_ulong>(b'c', 1);
const ENABLE: Opcode = opcode::none(b'c', 100);
const TRACE_PC: usize = 0;

/// How many places a buffer has space for. What one operation executes after so many is lost.
const PLACES: usize = 1 << 18;

/// The places that one process executes, in a buffer that the process has in common with the one that
/// started it.
pub struct Places {
    fd: OwnedFd,
    /// How many there are, and then the places.
    words: *mut AtomicU64,
}

impl Places {
    pub fn new() -> Outcome<Self> {
        let fd = open(KCOV, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).context(KCOV)?;
        // SAFETY: The ioctl takes a number.
        unsafe { ioctl(&fd, IntegerSetter::<INIT_TRACE>::new_usize(PLACES))? };
        // SAFETY: The kernel picks a free place.
        let words = unsafe {
            mmap(
                ptr::null_mut(),
                PLACES * size_of::<u64>(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &fd,
                0,
            )?
        };
        Ok(Places {
            fd,
            words: words.cast(),
        })
    }

    /// Begins, for the thread that calls this, until it ends.
    pub fn enable(&self) -> Outcome {
        // SAFETY: The ioctl takes a number. The buffer outlives the thread, as the file holds it.
        unsafe { ioctl(&self.fd, IntegerSetter::<ENABLE>::new_usize(TRACE_PC))? };
        Ok(())
    }

    /// Adds each pair of places, one executed after the other, to `seen`, and forgets them. The process must have
    /// finished what it was told to do.
    pub fn collect(&self, seen: &mut HashSet<u64>) {
        // SAFETY: The buffer is there as long as `self`, and KCOV writes whole words.
        let words = unsafe { std::slice::from_raw_parts(self.words, PLACES) };
        let count = words[0].swap(0, Relaxed) as usize;
        let mut before = 0u64;
        for word in &words[1..=count.min(PLACES - 1)] {
            let place = word.load(Relaxed);
            seen.insert(before.rotate_left(32) ^ place);
            before = place;
        }
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        // SAFETY: Nobody has a reference to the buffer any more.
        let _ = unsafe { munmap(self.words.cast::<c_void>(), PLACES * size_of::<u64>()) };
    }
}
