// SPDX-License-Identifier: GPL-2.0

//! Stand-ins for the few parts of the `kernel` crate that the allocator's data structures use.
//!
//! They do no more than the kernel's do: in particular, a vector that is full doesn't grow unless
//! it is given allocation flags, so that what works here doesn't allocate under a lock there.

pub mod alloc;
pub mod error;

pub mod page {
    /// As most kernels have it.
    pub const PAGE_SIZE: usize = 4096;
}

pub mod task {
    /// A process identifier.
    pub type Pid = i32;
}

pub mod prelude {
    pub use crate::{
        alloc::{
            flags::*, //
            KVVec,
            KVec,
        },
        error::{
            code::*, //
            Error,
            Result,
        },
    };
    pub use macros::kunit_tests;
}
