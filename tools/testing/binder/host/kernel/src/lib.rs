// SPDX-License-Identifier: GPL-2.0

//! Stand-ins for the parts of the `kernel` crate that the allocator uses.
//!
//! They do no more than the kernel's do, and object where the kernel would only be silently wrong:
//! a vector that is full doesn't grow unless it is given allocation flags, memory isn't allocated
//! with a spinlock held, and nobody touches a page that has been freed.
//!
//! With `--cfg loom`, locks, condition variables and atomics are those of loom, which tries all
//! orders in which threads can come to them.

// loom's thread_local! doesn't know `const`.
#![allow(clippy::missing_const_for_thread_local)]

pub mod alloc;
pub mod bindings;
pub mod error;
mod faults;
pub mod list_lru;
pub mod memcontrol;
pub mod mm;
pub mod page;
pub mod seq_file;
pub mod shrinker;
pub mod sync;
mod sys;
pub mod task;
pub mod transmute;
pub mod uaccess;

use std::cell::RefCell;

pub mod ffi {
    pub use core::ffi::c_void;
}

pub mod prelude {
    pub use crate::{
        alloc::{
            flags::*, //
            KBox,
            KVVec,
            KVec,
        },
        error::{
            code::*, //
            Error,
            Result,
        },
        pr_err,
    };
    pub use core::pin::Pin;
    pub use macros::kunit_tests;
    pub use pinned_init::{
        pin_data,
        pin_init,
        PinInit, //
    };
}

/// Nothing that the kernel would report is expected to happen here.
#[macro_export]
macro_rules! pr_err {
    ($($arg:tt)*) => {
        $crate::report(format_args!($($arg)*))
    };
}

/// As [`pr_err`], if `$cond` holds.
#[macro_export]
macro_rules! warn_on {
    ($cond:expr) => {{
        let cond = $cond;
        if cond {
            $crate::report(format_args!("{}", stringify!($cond)));
        }
        cond
    }};
}

sys::thread_local! {
    static LOG: RefCell<Vec<String>> = RefCell::new(Vec::new());
}

/// Writes a line to the log of this thread. Not with a spinlock held: that would be no crime in the
/// kernel, but the driver means not to.
pub fn log(category: &str, message: std::fmt::Arguments<'_>) {
    alloc::may_sleep();
    LOG.with(|log| log.borrow_mut().push(format!("{category}: {message}")));
}

/// What has been written to the log of this thread since the last call.
pub fn take_log() -> Vec<String> {
    LOG.with(RefCell::take)
}

#[doc(hidden)]
pub fn report(message: std::fmt::Arguments<'_>) {
    panic!("the kernel log would say: {message}");
}
