// SPDX-License-Identifier: GPL-2.0

//! Bugs that others had, as far as they can be told without a kernel.

#![cfg(not(loom))]

use binder_alloc_host::process::{
    Lru,
    Process, //
};

/// Many buffers, and many senders, take more memory than a process keeps when they have gone.
/// (2c10a20f5e84. That the stand-ins object is what this relies on.)
#[test]
fn memory_is_freed_without_the_lock() {
    let lru = Lru::new();
    let process = Process::new(&lru, 24, true);
    let buffers: Vec<_> = (0..100)
        .map(|pid| process.reserve_for(8, Some(pid)).unwrap().0)
        .collect();
    for buffer in buffers {
        process.release(buffer);
    }
    assert_eq!(lru.scan(usize::MAX).0, Some(1));
    process.finish().check();
}
