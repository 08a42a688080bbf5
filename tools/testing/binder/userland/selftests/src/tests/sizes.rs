// SPDX-License-Identifier: GPL-2.0

//! Sizes, offsets and pointers that lie.

use super::expect_failed;
use crate::{
    binder::{KIB, MIB, PAGE},
    check_eq,
    data::pattern,
    endpoint::{bytes_of, Endpoint, Txn},
    outcome::Outcome,
    runner::{Bench, Test},
    tests,
    uapi::FlatObject,
};
use rustix::io::Errno;

pub const TESTS: &[Test] = tests!["sizes":
    data_size_near_the_top_fails,
    offsets_size_near_the_top_fails,
    sum_of_sizes_that_wraps_fails,
    offsets_size_must_be_a_multiple_of_8,
    offsets_outside_the_data_fail,
    unsorted_or_overlapping_offsets_fail,
    larger_than_the_mapping_fails,
    exactly_the_mapping_fits,
    bad_pointers_fail_with_efault,
    fault_in_the_middle_leaves_nothing,
];

/// Sends what must fail, then something that must not.
fn must_fail(sender: &mut Endpoint, server: &mut Endpoint, txn: &Txn, what: &str) -> Outcome {
    expect_failed(sender.send(txn)?, what)?;
    sender.deliver(b"still there")?;
    check_eq!(
        server.consume()?.len,
        11,
        "length of what was sent after {what}"
    );
    Ok(())
}

/// Like `must_fail`, and the reason must be `errno`.
fn must_fail_with(
    errno: Errno,
    sender: &mut Endpoint,
    server: &mut Endpoint,
    txn: &Txn,
    what: &str,
) -> Outcome {
    expect_failed(sender.send(txn)?, what)?;
    check_eq!(sender.extended_error()?, errno, "{what}");
    must_fail(sender, server, txn, "the same again")
}

fn data_size_near_the_top_fails(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    let data = [0u8; 64];
    for size in [
        1 << 32,
        1 << 47,
        1 << 63,
        u64::MAX - 8,
        u64::MAX - 7,
        u64::MAX - 6,
        u64::MAX,
    ] {
        for oneway in [0, crate::uapi::TF_ONE_WAY] {
            let mut txn = Txn::new(&data).flags(oneway);
            txn.data.data_size = size;
            must_fail(
                &mut sender,
                &mut server,
                &txn,
                &format!("data_size {size:#x}"),
            )?;
        }
    }
    Ok(())
}

fn offsets_size_near_the_top_fails(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    let data = [0u8; 64];
    for size in [1 << 32, 1 << 63, u64::MAX - 15, u64::MAX - 7, u64::MAX] {
        let mut txn = Txn::new(&data).offsets(&[0]);
        txn.data.offsets_size = size;
        must_fail(
            &mut sender,
            &mut server,
            &txn,
            &format!("offsets_size {size:#x}"),
        )?;
    }
    Ok(())
}

fn sum_of_sizes_that_wraps_fails(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    let data = [0u8; 64];
    let half = 1 << 63;
    // Each sum is small, modulo 2^64.
    let sums: [(u64, u64, u64); 5] = [
        (half, half, 0),
        (u64::MAX - 63, 64, 0),
        (64, 0, u64::MAX - 63),
        (half, half - 64, 128),
        (0, half, half),
    ];
    for (size, offsets, buffers) in sums {
        let mut txn = Txn::new(&data).offsets(&[0]).buffers(buffers);
        txn.data.data_size = size;
        txn.data.offsets_size = offsets;
        let what = format!("sizes {size:#x} + {offsets:#x} + {buffers:#x}");
        must_fail(&mut sender, &mut server, &txn, &what)?;
    }
    Ok(())
}

fn offsets_size_must_be_a_multiple_of_8(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    let data = [0u8; 64];
    for size in [1, 4, 7, 9, 15] {
        let mut txn = Txn::oneway(&data).offsets(&[0, 24]);
        txn.data.offsets_size = size;
        let what = format!("offsets_size {size}");
        must_fail_with(Errno::INVAL, &mut sender, &mut server, &txn, &what)?;
    }
    Ok(())
}

fn offsets_outside_the_data_fail(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    let object = FlatObject::own(8, 9);
    let data = bytes_of(&object);
    for offset in [
        2,
        4,
        24,
        25,
        4096,
        1 << 20,
        1 << 32,
        1 << 63,
        u64::MAX - 23,
        u64::MAX - 3,
    ] {
        let offsets = [offset];
        let txn = Txn::oneway(data).offsets(&offsets);
        must_fail(
            &mut sender,
            &mut server,
            &txn,
            &format!("offset {offset:#x}"),
        )?;
    }
    Ok(())
}

fn unsorted_or_overlapping_offsets_fail(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    let object = FlatObject::own(8, 9);
    let data = bytes_of(&object).repeat(4);
    for offsets in [[0, 0], [24, 0], [0, 8], [0, 20], [48, 24]] {
        let txn = Txn::oneway(&data).offsets(&offsets);
        must_fail(
            &mut sender,
            &mut server,
            &txn,
            &format!("offsets {offsets:?}"),
        )?;
    }
    // In order they are right; the check above isn't that nothing works.
    let offsets = [0, 24, 48, 72];
    sender.send(&Txn::oneway(&data).offsets(&offsets))?;
    check_eq!(server.consume()?.offsets_len, 32, "size of good offsets");
    Ok(())
}

fn larger_than_the_mapping_fails(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, 64 * KIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    for len in [64 * KIB + 1, 64 * KIB + PAGE, MIB] {
        let data = vec![1u8; len];
        let (txn, what) = (Txn::new(&data), format!("{len} bytes"));
        must_fail_with(Errno::NOSPC, &mut sender, &mut server, &txn, &what)?;
    }
    Ok(())
}

fn exactly_the_mapping_fits(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, 64 * KIB)?;
    let mut client = Endpoint::client(&bench.dev)?;
    for len in [64 * KIB, 64 * KIB - 7] {
        super::transactions::round_trip(&mut client, &mut server, &pattern(1, len))?;
    }
    Ok(())
}

fn bad_pointers_fail_with_efault(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    let data = [0u8; 64];
    for bad in [0u64, 8, 1 << 47, 0xffff_8000_0000_0000, u64::MAX - 63] {
        let mut txn = Txn::oneway(&data);
        txn.data.buffer = bad;
        let what = format!("data at {bad:#x}");
        must_fail_with(Errno::FAULT, &mut sender, &mut server, &txn, &what)?;
        let mut txn = Txn::oneway(&data).offsets(&[0]);
        txn.data.offsets = bad;
        let what = format!("offsets at {bad:#x}");
        must_fail_with(Errno::FAULT, &mut sender, &mut server, &txn, &what)?;
    }
    Ok(())
}

/// The sender's data ends inside what it announced: the copied part must not stay allocated.
fn fault_in_the_middle_leaves_nothing(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    // The mapping of the sender's own file: readable where it has pages, that is nowhere.
    let hole = sender
        .binder
        .mmap(64 * KIB, rustix::mm::ProtFlags::READ, 0)?;
    for _ in 0..100 {
        let mut txn = Txn::new(&[]);
        txn.data.buffer = hole.addr as u64;
        txn.data.data_size = 512 * KIB as u64;
        must_fail(&mut sender, &mut server, &txn, "data in a hole")?;
    }
    // 100 times 512 KiB would not have fitted into 1 MiB. And all of it is there again:
    let client = Endpoint::client(&bench.dev)?;
    client.post(&Txn::new(&pattern(2, MIB)))?;
    check_eq!(server.receive()?.len, MIB, "length after the failures");
    Ok(())
}
