// SPDX-License-Identifier: GPL-2.0

//! The Binder driver by raw ioctls, and its shrinker by debugfs: what tests and benchmarks share.

pub mod binder;
pub mod endpoint;
pub mod outcome;
pub mod shrinker;
pub mod uapi;
