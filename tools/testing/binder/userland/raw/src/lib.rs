// SPDX-License-Identifier: GPL-2.0

//! The Binder driver by raw ioctls, its shrinker by debugfs, and processes to use them in: what tests
//! and benchmarks share.

pub mod binder;
pub mod endpoint;
pub mod outcome;
pub mod process;
pub mod shrinker;
pub mod uapi;
