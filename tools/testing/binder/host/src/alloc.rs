// SPDX-License-Identifier: GPL-2.0

//! The files of `drivers/android/binder/alloc/`, as that directory's `mod.rs` has them.

#[path = "../../../../../drivers/android/binder/alloc/oneway.rs"]
mod oneway;
#[path = "../../../../../drivers/android/binder/alloc/ranges.rs"]
mod ranges;
#[path = "../../../../../drivers/android/binder/alloc/slots.rs"]
mod slots;

mod traces;
