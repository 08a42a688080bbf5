// SPDX-License-Identifier: GPL-2.0

//! The data structures, which need next to nothing of the kernel, with a parent of their own.

#[path = "../../../../../drivers/android/binder/alloc/oneway.rs"]
mod oneway;
#[path = "../../../../../drivers/android/binder/alloc/ranges.rs"]
#[allow(dead_code)] // The debug files aren't here.
mod ranges;
#[path = "../../../../../drivers/android/binder/alloc/slots.rs"]
mod slots;

pub mod model;
#[cfg(test)]
mod traces;
