// SPDX-License-Identifier: GPL-2.0

//! The driver's events. Nobody listens.

use kernel::{
    shrinker::ShrinkControl,
    task::Pid, //
};
use std::ops::Range;

pub(crate) fn trace_update_page_range(_: Pid, _: bool, _: impl FnOnce() -> Range<usize>) {}

macro_rules! page_events {
    ($($is_on:ident, $begin:ident, $finish:ident;)*) => {$(
        pub(crate) fn $is_on() -> bool {
            false
        }

        pub(crate) fn $begin(_: Pid, _: usize) {}

        pub(crate) fn $finish(_: Pid, _: usize, _: impl Iterator<Item = usize>) {}
    )*};
}

page_events! {
    trace_alloc_lru_is_on, trace_alloc_lru_start, trace_alloc_lru_end;
    trace_free_lru_is_on, trace_free_lru_start, trace_free_lru_end;
    trace_alloc_page_is_on, trace_alloc_page_start, trace_alloc_page_end;
    trace_unmap_user_is_on, trace_unmap_user_start, trace_unmap_user_end;
    trace_unmap_kernel_is_on, trace_unmap_kernel_start, trace_unmap_kernel_end;
}

pub(crate) fn trace_install_pages(_: Pid, _: &Range<usize>) {}

pub(crate) fn trace_reclaim(_: &ShrinkControl, _: usize, _: usize, _: usize) {}
