// SPDX-License-Identifier: GPL-2.0

//! What the debug files say of buffers and pages.
//!
//! Nothing is printed with the area's lock held, and the lock is taken for a few buffers at a time:
//! a process may have hundreds of thousands of them, and senders need it.

use kernel::{
    seq_file::SeqFile,
    seq_print, //
};

use super::{
    ranges::Buffer,
    BufferAllocator, //
};

/// How many buffers are looked at with the lock held.
const BATCH: usize = 16;

/// How much of an area is in use for what. All is 0 without an area.
#[derive(Default)]
pub(crate) struct Usage {
    pub(crate) free_async_space: usize,
    pub(crate) buffers: usize,
    /// Those in use, idle, and absent.
    pub(crate) pages: (usize, usize, usize),
    /// One more than the index of the highest page that there ever was.
    pub(crate) pages_high: usize,
}

impl BufferAllocator {
    pub(crate) fn usage(&self) -> Usage {
        let state = self.area.state.lock();
        let Some(mapped) = &state.mapped else {
            return Usage::default();
        };
        let counts = mapped.pages.counts();
        Usage {
            free_async_space: mapped.oneway.free_space(),
            buffers: mapped.ranges.count(),
            pages: (counts.in_use, counts.idle, counts.absent),
            pages_high: mapped.pages.high(),
        }
    }

    /// Where in the area the buffer at `address` lies, if it is still the one with this `debug_id`.
    pub(crate) fn find(&self, address: usize, debug_id: usize) -> Option<usize> {
        let state = self.area.state.lock();
        let mapped = state.mapped.as_ref()?;
        let offset = address.checked_sub(mapped.window.start)?;
        let found = mapped.ranges.debug_id_at(offset)?;
        (found == debug_id as u32).then_some(offset)
    }

    /// Prints the buffers, by address, to what `out` gives. Those at the addresses `served` belong
    /// to transactions that aren't over.
    ///
    /// Buffers that come or go meanwhile may be missing, or not.
    pub(crate) fn debug_print<'a>(&self, out: impl Fn() -> &'a SeqFile, served: &[usize]) {
        let mut from = Some(0);
        while from.is_some() {
            let (start, batch) = {
                let state = self.area.state.lock();
                let Some(mapped) = &state.mapped else {
                    return;
                };
                let batch: [Option<Buffer>; BATCH] = mapped.ranges.next_buffers(&mut from);
                (mapped.window.start, batch)
            };
            for buffer in batch.into_iter().flatten() {
                let m = out();
                if m.has_overflowed() {
                    return;
                }
                let is_delivered =
                    buffer.is_allocated && !served.contains(&(start + buffer.offset));
                seq_print!(
                    m,
                    "  buffer {}: {:x} size {}:{}:{} {}\n",
                    buffer.meta.debug_id,
                    buffer.offset,
                    buffer.meta.sizes.data,
                    buffer.meta.sizes.offsets,
                    buffer.meta.sizes.extra,
                    if is_delivered { "delivered" } else { "active" },
                );
            }
        }
    }
}
