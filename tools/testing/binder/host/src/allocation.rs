// SPDX-License-Identifier: GPL-2.0

//! What the driver keeps along with a buffer.

use kernel::prelude::*;

/// Memory, which objects to being freed with a spinlock held.
#[derive(Default)]
pub(crate) struct AllocationInfo(Option<KVec<u8>>);

impl AllocationInfo {
    pub(crate) fn new() -> Self {
        Self(Some(KVec::with_capacity(1, GFP_KERNEL).unwrap()))
    }

    pub(crate) fn is_there(&self) -> bool {
        self.0.is_some()
    }
}
