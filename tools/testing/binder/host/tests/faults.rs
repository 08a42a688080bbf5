// SPDX-License-Identifier: GPL-2.0

//! The address space is gone, or locked, at each place that needs it in turn.

#![cfg(not(loom))]

use binder_alloc_host::process::{
    Buffer,
    Lru,
    Process, //
};
use kernel::{
    alloc::fail_after,
    mm::{
        fail_mmget_after,
        mmgets,
        refuse_vma_locks_after,
        vma_locks, //
    },
    page::PAGE_SIZE,
    prelude::*, //
};
use std::{
    sync::mpsc,
    thread,
    time::Duration, //
};

/// Pages of an area: more than are mapped at a time, and more than a group of reclaim.
const PAGES: usize = 100;

/// Leaves `pages` idle pages.
fn leave(process: &Process, pages: usize) {
    let buffer = process.reserve(pages * PAGE_SIZE).unwrap();
    process.release(buffer);
}

/// A buffer that covers `pages` pages, and lies on a part of the one before and the one after.
fn reserve(process: &Process, pages: usize) -> Result<Buffer> {
    let (before, _) = process.reserve_for(PAGE_SIZE / 2, None)?;
    let buffer = process.reserve_for((pages + 1) * PAGE_SIZE, None);
    process.release(before);
    Ok(buffer?.0)
}

/// All that can be seen of a process.
fn state(lru: &Lru, process: &Process) -> impl PartialEq + std::fmt::Debug {
    (
        process.pages(),
        process.mapped(),
        process.charged(),
        lru.count(),
        process.debug(),
    )
}

#[test]
fn a_process_that_has_ended_gets_no_buffer() {
    for size in [8, PAGE_SIZE, 2 * PAGE_SIZE + 8] {
        let lru = Lru::new();
        let process = Process::new(&lru, 8, true);
        // Page 1 is idle, between two that are absent. The memory of the slots has grown.
        let [first, second, third] = [(); 3].map(|()| process.reserve(PAGE_SIZE).unwrap());
        process.release(first);
        process.release(third);
        assert_eq!(lru.scan(usize::MAX).0, Some(2));
        process.release(second);
        let before = state(&lru, &process);

        fail_mmget_after(0);
        for pid in [None, Some(1)] {
            assert_eq!(process.reserve_for(size, pid).err(), Some(ESRCH));
            assert_eq!(state(&lru, &process), before);
        }
        fail_mmget_after(usize::MAX);
        process.finish().check();
    }
}

#[test]
fn a_process_that_has_ended_gets_no_page_of_a_buffer() {
    for has_ends in [false, true] {
        let lru = Lru::new();
        let process = Process::new(&lru, PAGES, true);
        let mut buffer = if has_ends {
            reserve(&process, 40).unwrap()
        } else {
            process.reserve_for(40 * PAGE_SIZE, None).unwrap().0
        };
        let before = state(&lru, &process);
        let ends = if has_ends { 2 } else { 0 };
        assert_eq!(process.mapped().count_ones(), ends);

        fail_mmget_after(0);
        assert_eq!(process.publish(&mut buffer), Err(ESRCH));
        assert_eq!(state(&lru, &process), before);
        process.release(buffer);
        fail_mmget_after(usize::MAX);
        let ends = ends as usize;
        assert_eq!((process.charged(), lru.count()), (ends, ends));
        assert_eq!(process.pages(), (0, process.mapped()));
        process.finish().check();
    }
}

#[test]
fn pages_of_a_process_that_has_ended_are_freed() {
    let lru = Lru::new();
    let process = Process::new(&lru, PAGES, true);
    leave(&process, PAGES);
    process.exit();
    assert_eq!((lru.count(), process.charged()), (PAGES, PAGES));
    // Whatever maps the others of a group doesn't matter any more.
    let group = usize::BITS as usize;
    assert_eq!(lru.scan(1), (Some(group), group));
    assert_eq!(lru.scan(usize::MAX), (Some(PAGES - group), PAGES - group));
    assert_eq!((lru.count(), process.charged()), (0, 0));
    process.finish().check();
}

#[test]
fn pages_of_a_process_that_is_ending_stay_mapped() {
    let lru = Lru::new();
    let process = Process::new(&lru, PAGES, true);
    leave(&process, 40);
    let mapped = process.mapped();
    fail_mmget_after(0);
    assert_eq!(lru.scan(usize::MAX), (Some(40), 40));
    fail_mmget_after(usize::MAX);
    assert_eq!((process.pages(), process.mapped()), ((0, 0), mapped));
    assert_eq!((lru.count(), process.charged()), (0, 40));
    process.exit();
    assert_eq!(process.charged(), 0);
    process.finish().check();
}

/// The life of a buffer, in which the process ends when its address space has been needed `n`
/// times. Says how often it was needed.
fn end_after(n: usize) -> usize {
    let lru = Lru::new();
    let process = Process::new(&lru, PAGES, true);
    fail_mmget_after(n);
    let result = process.reserve_for(40 * PAGE_SIZE, None);
    assert_eq!(result.as_ref().err(), (n < 2).then_some(&ESRCH));
    if let Ok((mut buffer, _)) = result {
        let published = process.publish(&mut buffer);
        assert_eq!(published.err(), (n == 2).then_some(ESRCH));
        process.release(buffer);
    }
    let idle = if n < 3 { 0 } else { 40 };
    assert_eq!((lru.count(), process.charged()), (idle, idle));
    assert_eq!(lru.scan(usize::MAX).0, (n >= 3).then_some(40));
    assert_eq!((lru.count(), process.pages()), (0, (0, 0)));
    let needed = mmgets();
    fail_mmget_after(usize::MAX);
    process.exit();
    assert_eq!((process.mapped(), process.charged()), (0, 0));
    process.finish().check();
    needed
}

#[test]
fn a_process_ends_at_each_place_in_turn() {
    let places = end_after(usize::MAX);
    // For the first ranges, for the pages, to publish them, to reclaim them.
    assert_eq!(places, 4);
    for n in 0..places {
        end_after(n);
    }
}

/// Does `f`, and does it again with all VMA locks refused, then with all but the first, and so on.
/// Says how many it takes.
fn refuse_each_vma_lock<R>(
    prepare: impl Fn(&Process) -> R,
    f: impl Fn(&Lru, &Process, R),
) -> usize {
    let run = |n| {
        let lru = Lru::new();
        let process = Process::new(&lru, PAGES, true);
        let prepared = prepare(&process);
        refuse_vma_locks_after(n);
        f(&lru, &process, prepared);
        let locks = vma_locks();
        refuse_vma_locks_after(usize::MAX);
        while lru.scan(usize::MAX).0.is_some() {}
        assert_eq!((process.mapped(), process.charged()), (0, 0));
        process.finish().check();
        locks
    };
    let locks = run(usize::MAX);
    (0..locks).for_each(|n| {
        run(n);
    });
    locks
}

#[test]
fn an_installation_does_without_vma_locks() {
    let locks = refuse_each_vma_lock(
        |_| (),
        |_, process, ()| {
            let mut buffer = reserve(process, 40).unwrap();
            assert_eq!(process.mapped().count_ones(), 2);
            process.publish(&mut buffer).unwrap();
            process.touch(&buffer, 1);
            assert_eq!(process.mapped(), process.pages().0);
            process.release(buffer);
            assert_eq!((process.mapped().count_ones(), process.charged()), (42, 42));
        },
    );
    // The page of the buffer before, the one at the end, and those between in two runs.
    assert_eq!(locks, 4);
}

#[test]
fn an_aborted_publication_does_without_vma_locks() {
    // One allocation for each run, and one for each page of it: the second run fails half-way.
    let locks = refuse_each_vma_lock(
        |process| process.reserve_for(40 * PAGE_SIZE, None).unwrap().0,
        |lru, process, mut buffer| {
            let before = state(lru, process);
            fail_after(1 + 32 + 1 + 4);
            assert_eq!(process.publish(&mut buffer), Err(ENOMEM));
            fail_after(usize::MAX);
            assert_eq!(state(lru, process), before);
            assert_eq!(process.mapped(), 0);
            // It can be done again.
            process.publish(&mut buffer).unwrap();
            process.touch(&buffer, 1);
            process.release(buffer);
        },
    );
    // To map two runs, to unmap both, and to map them again.
    assert_eq!(locks, 6);
}

#[test]
fn reclaim_does_without_vma_locks() {
    let locks = refuse_each_vma_lock(
        |process| leave(process, PAGES),
        |lru, process, ()| {
            assert_eq!(lru.scan(usize::MAX), (Some(PAGES), PAGES));
            assert_eq!((process.mapped(), process.charged()), (0, 0));
        },
    );
    // For each group.
    assert_eq!(locks, 2);
}

/// Whoever asks for a scan by debugfs may ask for any number.
#[test]
fn a_scan_of_a_busy_area_ends() {
    for has_vma_locks in [false, true] {
        let lru = Lru::new();
        let process = Process::new(&lru, PAGES, has_vma_locks);
        leave(&process, PAGES);
        let (sender, receiver) = mpsc::channel();
        let other = lru.clone();
        let scan = || thread::spawn(move || sender.send(other.scan(usize::MAX)));
        let (thread, scanned) =
            process.while_locked(|| (scan(), receiver.recv_timeout(Duration::from_secs(10))));
        // If it hasn't ended, it does now.
        thread.join().unwrap().unwrap();
        assert_eq!(scanned, Ok((None, PAGES)), "the scan doesn't end");
        assert_eq!((lru.count(), process.charged()), (PAGES, PAGES));
        process.finish().check();
    }
}
