// SPDX-License-Identifier: GPL-2.0

//! What is said in the log, and when. That it is said without a lock held is checked by `log()`.

#![cfg(not(loom))]

use binder_alloc_host::process::{
    Lru,
    Process, //
};
use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    take_log,
    task::PID, //
};

const PAGES: usize = 64;
const SIZE: usize = PAGES * PAGE_SIZE;

fn process() -> Process {
    let process = Process::new(&Lru::new(), PAGES, true);
    assert!(take_log().is_empty());
    process
}

#[test]
fn no_space() {
    let process = process();
    let said = |size: usize, usage: &str| {
        assert_eq!(process.reserve(size).err(), Some(ENOSPC));
        let failed = format!("{PID}: binder_alloc_buf size {size} failed, no address space");
        assert_eq!(
            take_log(),
            [
                format!("UserError: {failed}"),
                format!("UserError: {usage}")
            ]
        );
    };
    let all = "allocated: 0 (num: 0), free: 262144 (num: 1 largest: 262144)";
    said(SIZE + 8, all);

    // Buffers of 8, 16, 24 and 8 KiB, of which the second and the fourth are freed.
    let buffers = [8, 16, 24, 8].map(|kib| process.reserve(kib << 10).unwrap());
    let [first, second, third, fourth] = buffers;
    process.release(second);
    process.release(fourth);
    said(
        SIZE,
        "allocated: 32768 (num: 2), free: 229376 (num: 2 largest: 212992)",
    );
    let rest = process.reserve(212_992).unwrap();
    said(
        16_392,
        "allocated: 245760 (num: 3), free: 16384 (num: 1 largest: 16384)",
    );
    let gap = process.reserve(16_384).unwrap();
    said(8, "allocated: 262144 (num: 4), free: 0 (num: 0 largest: 0)");
    for buffer in [first, third, rest, gap] {
        process.release(buffer);
    }
    said(SIZE + 8, all);
    process.finish().check();
}

#[test]
fn no_oneway_space() {
    let process = process();
    let (buffer, _) = process.reserve_for(SIZE / 2 - 8, Some(1)).unwrap();
    take_log();
    assert_eq!(process.reserve_for(9, Some(2)).err(), Some(ENOSPC));
    let failed = format!("{PID}: binder_alloc_buf size 16 failed, no async space left");
    assert_eq!(take_log(), [format!("BufferAlloc: {failed}")]);
    process.release(buffer);
    process.finish().check();
}

#[test]
fn spam() {
    let process = process();
    let send = || process.reserve_for(SIZE / 16, Some(42)).unwrap();
    let spamming = |buffers: usize| {
        let bytes = buffers * SIZE / 16;
        format!(
            "UserError: {PID}: pid 42 spamming oneway? \
             {buffers} buffers allocated for a total size of {bytes}"
        )
    };
    for _ in 0..2 {
        let mut buffers = Vec::new();
        for _ in 0..6 {
            let (buffer, is_told) = send();
            assert!(!is_told);
            buffers.push(buffer);
        }
        assert!(take_log().is_empty());
        // It is told once, the log each time.
        for number in [7, 8] {
            let (buffer, is_told) = send();
            assert_eq!(is_told, number == 7);
            assert_eq!(take_log(), [spamming(number)]);
            buffers.push(buffer);
        }
        for buffer in buffers {
            process.release(buffer);
        }
    }
    process.finish().check();
}

#[test]
fn no_area() {
    let process = process();
    process.munmap(0..PAGES);
    assert_eq!(process.reserve(8).err(), Some(ESRCH));
    let failed = format!("{PID}: binder_alloc_buf, no vma");
    assert_eq!(take_log(), [format!("UserError: {failed}")]);
    process.finish().check();
}

#[test]
fn invalid_sizes() {
    let process = process();
    assert_eq!(process.reserve(usize::MAX).err(), Some(EINVAL));
    let max = usize::MAX;
    let failed = format!("{PID}: got transaction with invalid size {max}-0-0");
    assert_eq!(take_log(), [format!("BufferAlloc: {failed}")]);
    process.finish().check();
}
