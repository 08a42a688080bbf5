// SPDX-License-Identifier: GPL-2.0

//! Host tests of the Binder allocator: its own files, compiled against stand-ins for the kernel
//! crate.

#![feature(arbitrary_self_types)]
// Style is for the kernel's clippy to judge, and some files are here twice.
#![allow(clippy::duplicate_mod, clippy::manual_is_multiple_of)]

extern crate pinned_init as pin_init;

/// What the driver says in the log, in the words of its messages.
///
/// In the driver, there are a mask and a rate limit.
#[cfg(not(test))]
macro_rules! binder_alloc_debug {
    ($mask:ident, $(($($arg:tt)*)),+) => {
        $(kernel::log(stringify!($mask), format_args!($($arg)*));)+
    };
}

pub mod data;

/// The allocator, all of it. Its unit tests are those of [`data`] already.
#[cfg(not(test))]
#[path = "../../../../../drivers/android/binder/alloc/mod.rs"]
#[allow(dead_code)] // There is no driver that uses it.
mod alloc;
#[cfg(not(test))]
mod allocation;
#[cfg(not(test))]
pub mod process;
#[cfg(not(test))]
#[allow(dead_code)] // As above.
mod trace;

/// As in the driver.
#[cfg(not(test))]
struct AssertSync<T>(T);
// SAFETY: As in the driver.
#[cfg(not(test))]
unsafe impl<T> Sync for AssertSync<T> {}
