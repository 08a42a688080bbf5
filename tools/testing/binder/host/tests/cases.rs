// SPDX-License-Identifier: GPL-2.0

//! All cases of how a few buffers share pages, and all orders in which they go.

#![cfg(not(loom))]

use binder_alloc_host::process::{
    run_cases,
    CASES, //
};
use std::thread;

#[test]
fn exhaustive() {
    let threads = thread::available_parallelism().map_or(1, |n| n.get());
    thread::scope(|scope| {
        for nth in 0..threads {
            scope.spawn(move || {
                run_cases(CASES * nth / threads..CASES * (nth + 1) / threads, 32);
            });
        }
    });
    println!("{CASES} cases");
}
