// SPDX-License-Identifier: GPL-2.0

//! Long and random runs of the whole allocator, against the model.

#![cfg(not(loom))]

use binder_alloc_host::process::model::{
    run,
    Op, //
};
use kernel::page::PAGE_SIZE;
use proptest::{
    collection::vec,
    prelude::*,
    test_runner::TestRunner, //
};
use std::sync::atomic::{
    AtomicUsize,
    Ordering::Relaxed, //
};

fn op() -> impl Strategy<Value = Op> {
    let size = prop_oneof![0..PAGE_SIZE, 0..8 * PAGE_SIZE];
    let pid = prop_oneof![
        3 => Just(None),
        1 => (0..3).prop_map(Some),
    ];
    let allocations = prop_oneof![
        15 => Just(usize::MAX),
        1 => 0..16_usize,
    ];
    prop_oneof![
        120 => (size, pid, allocations)
            .prop_map(|(size, pid, allocations)| Op::Reserve { size, pid, allocations }),
        60 => any::<u16>().prop_map(Op::Commit),
        50 => any::<u16>().prop_map(Op::Existing),
        100 => any::<u16>().prop_map(Op::Release),
        30 => (0..48_usize).prop_map(Op::Scan),
        3 => (0..24_usize).prop_map(Op::Limit),
        1 => Just(Op::Unmap),
        4 => Just(Op::Restart),
    ]
}

#[test]
fn pages_do_as_the_model() {
    let done = AtomicUsize::new(0);
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let result = runner.run(&vec((any::<bool>(), op()), 1..400), |ops| {
        run(&ops);
        done.fetch_add(ops.len(), Relaxed);
        Ok(())
    });
    if let Err(err) = result {
        panic!("{err}");
    }
    let done = done.into_inner();
    println!("pages: {done} operations");
    assert!(done > 300_000);
}
