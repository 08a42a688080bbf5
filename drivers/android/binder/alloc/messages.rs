// SPDX-License-Identifier: GPL-2.0

//! What is said in the kernel log, by `alloc_debug_mask`.
//!
//! These are the messages of the C driver, in its words, as people and tools know them. None is
//! written with a lock held, and none more often than its rate limit allows: it is senders who
//! cause them.

use core::ops::Range;

use kernel::{
    prelude::*,
    task::Pid, //
};

use super::{
    ranges::{
        Sizes,
        Usage, //
    },
    Suspect, //
};

/// No free range of process `pid` is large enough.
///
/// This is what tells a leak from a large transaction, and both from a fragmented area. C says how
/// large the largest buffer is, too, which it finds by a walk over all of them.
#[cold]
pub(super) fn no_space(pid: Pid, size: usize, usage: Usage) {
    let Usage {
        used,
        buffers,
        free,
        free_ranges: gaps,
        largest_free: largest,
    } = usage;
    binder_alloc_debug!(
        UserError,
        ("{pid}: binder_alloc_buf size {size} failed, no address space"),
        ("allocated: {used} (num: {buffers}), free: {free} (num: {gaps} largest: {largest})")
    );
}

/// The oneway space of process `pid` doesn't suffice.
#[cold]
pub(super) fn no_oneway_space(pid: Pid, size: usize) {
    binder_alloc_debug!(
        BufferAlloc,
        ("{pid}: binder_alloc_buf size {size} failed, no async space left")
    );
}

/// Process `pid` has mapped nothing, or has unmapped it.
#[cold]
pub(super) fn no_area(pid: Pid) {
    binder_alloc_debug!(UserError, ("{pid}: binder_alloc_buf, no vma"));
}

/// Nothing has such a size.
#[cold]
pub(super) fn invalid_sizes(pid: Pid, sizes: Sizes) {
    let Sizes {
        data,
        offsets,
        extra,
    } = sizes;
    binder_alloc_debug!(
        BufferAlloc,
        ("{pid}: got transaction with invalid size {data}-{offsets}-{extra}")
    );
}

/// Process `sender` takes much of what little oneway space process `pid` has.
#[cold]
pub(super) fn spam(pid: Pid, sender: Pid, suspect: Suspect) {
    let (n, bytes) = (suspect.buffers, suspect.bytes);
    binder_alloc_debug!(
        UserError,
        ("{pid}: pid {sender} spamming oneway? {n} buffers allocated for a total size of {bytes}")
    );
}

/// Process `pid` couldn't map `pages`.
#[cold]
pub(super) fn map_failed(pid: Pid, pages: Range<usize>, why: &str, err: Error) {
    let Range { start, end } = pages;
    let errno = err.to_errno();
    binder_alloc_debug!(
        UserError,
        ("binder_alloc_mmap_handler: {pid} {start:x}-{end:x} {why} failed {errno}")
    );
}
