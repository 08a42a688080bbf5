// SPDX-License-Identifier: GPL-2.0

//! Long and random runs of the whole allocator, against the model.

#![cfg(not(loom))]

use binder_alloc_host::process::{
    model::{
        run,
        Op, //
    },
    Buffer,
    Lru,
    Pages,
    Process, //
};
use kernel::{
    alloc::fail_after,
    mm::virt::{
        before_next_map,
        before_next_zap, //
    },
    page::{
        before_next,
        PAGE_SIZE, //
    },
    prelude::*,
    task, //
};
use proptest::{
    collection::vec,
    prelude::*,
    test_runner::TestRunner, //
};
use std::{
    sync::{
        atomic::{
            AtomicUsize,
            Ordering::Relaxed, //
        },
        mpsc,
        Arc, //
    },
    thread,
    time::Duration, //
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

/// Leaves `pages` idle pages.
fn leave(process: &Process, pages: usize) {
    let buffer = process.reserve(pages * PAGE_SIZE).unwrap();
    process.release(buffer);
}

#[test]
fn a_scan_takes_idle_neighbours_along() {
    let lru = Lru::new();
    let process = Process::new(&lru, 100, true);
    let buffers = [(); 100].map(|()| process.reserve(PAGE_SIZE).unwrap());
    for (nth, buffer) in buffers.into_iter().enumerate() {
        if nth % 2 == 1 {
            process.release(buffer);
        } else {
            process.commit(buffer);
        }
    }
    // All that are idle in the group of the first, and then those of the next.
    let groups = [usize::BITS as usize / 2, 50 - usize::BITS as usize / 2];
    for group in groups {
        assert_eq!(lru.scan(1), (Some(group), group));
    }
    assert_eq!((lru.count(), process.charged()), (0, 50));
    process.finish().check();
}

#[test]
fn a_page_in_use_goes_off_the_list_when_a_scan_meets_it() {
    let lru = Lru::new();
    let process = Process::new(&lru, 8, true);
    leave(&process, 4);
    let buffer = process.reserve(2 * PAGE_SIZE).unwrap();
    assert_eq!(lru.count(), 4);
    assert_eq!(lru.scan(1), (Some(2), 4));
    assert_eq!((lru.count(), process.charged()), (0, 2));
    process.touch(&buffer, 1);
    process.release(buffer);
    process.finish().check();
}

#[test]
fn a_scan_of_an_area_that_is_busy_stops() {
    for has_vma_locks in [false, true] {
        let lru = Lru::new();
        let process = Process::new(&lru, 8, has_vma_locks);
        leave(&process, 4);
        assert_eq!(process.while_locked(|| lru.scan(3)), (None, 4));
        assert_eq!((lru.count(), process.charged()), (4, 4));
        process.finish().check();
    }
}

#[test]
fn a_busy_area_does_not_keep_another_from_being_scanned() {
    let lru = Lru::new();
    let [busy, other] = [100, 8].map(|pages| Process::new(&lru, pages, true));
    // The busy one is at the head, and has more than a small scan gets to see.
    leave(&busy, 100);
    leave(&other, 4);
    busy.while_locked(|| {
        assert_eq!(lru.scan(1).0, None);
        assert_eq!(lru.scan(1).0, None);
        assert_eq!(lru.scan(1), (Some(4), 4));
    });
    assert_eq!(
        (lru.count(), busy.charged(), other.charged()),
        (100, 100, 0)
    );
    busy.finish().check();
    other.finish().check();
}

/// Two buffers share a page. The sender of one has to wait for memory, which the sender of the other
/// doesn't wait for.
fn nobody_waits_for_the_memory_of(size: usize) {
    let process = Arc::new(Process::new(&Lru::new(), 16, true));
    let (sender, receiver) = mpsc::channel();
    let other = process.clone();
    before_next(move || {
        let small = other.clone();
        let thread = thread::spawn(move || sender.send(small.reserve(8)).unwrap());
        let small = receiver.recv_timeout(Duration::from_secs(10));
        let small = small
            .expect("the sender of the small buffer waits")
            .unwrap();
        thread.join().unwrap();
        assert_eq!(small.bytes().start, size);
        other.touch(&small, 1);
        other.release(small);
    });
    let buffer = process.reserve(size).unwrap();
    process.touch(&buffer, 2);
    process.release(buffer);
    Arc::into_inner(process).unwrap().finish().check();
}

#[test]
fn nobody_waits_for_all_of_a_large_buffer() {
    nobody_waits_for_the_memory_of(8 * PAGE_SIZE + 8);
}

#[test]
fn nobody_waits_for_the_page_of_another_sender() {
    nobody_waits_for_the_memory_of(8);
}

/// Has another thread reserve a small buffer, and gives that. It mustn't have to wait.
fn reserve_meanwhile(process: &Arc<Process>) -> Buffer {
    let (sender, receiver) = mpsc::channel();
    let other = process.clone();
    let thread = thread::spawn(move || sender.send(other.reserve(8)).unwrap());
    let buffer = receiver.recv_timeout(Duration::from_secs(10));
    let buffer = buffer.expect("the sender of the small buffer waits");
    thread.join().unwrap();
    buffer.unwrap()
}

/// Two buffers on one page, of which the sender of the first stops before it maps that, and fails
/// then if it `fails`. The second one is freed before that if it `frees`.
fn map_a_page_of_two(fails: bool, frees: bool) {
    let lru = Lru::new();
    let process = Arc::new(Process::new(&lru, 16, true));
    let (sender, receiver) = mpsc::channel();
    let other = process.clone();
    before_next_map(move || {
        let small = reserve_meanwhile(&other);
        other.touch(&small, 1);
        if frees {
            other.release(small);
        } else {
            sender.send(small).unwrap();
        }
        if fails {
            // For the page table.
            fail_after(0);
        }
    });
    let buffer = process.reserve(8);
    fail_after(usize::MAX);
    assert_eq!(buffer.as_ref().err(), fails.then_some(&ENOMEM));
    assert_eq!(process.pages().0, u64::from(!(fails && frees)) as Pages);
    if let Ok(buffer) = buffer {
        process.touch(&buffer, 2);
        process.release(buffer);
    }
    if let Ok(small) = receiver.try_recv() {
        process.check(&small, 1);
        process.release(small);
    }
    // There is one page, whoever brought it, and it can be reclaimed.
    assert_eq!(
        (lru.count(), process.charged(), process.mapped()),
        (1, 1, 1)
    );
    assert_eq!(lru.scan(usize::MAX).0, Some(1));
    assert_eq!((process.charged(), process.mapped()), (0, 0));
    Arc::into_inner(process).unwrap().finish().check();
}

#[test]
fn nobody_waits_for_a_page_to_be_mapped() {
    for fails in [false, true] {
        for frees in [false, true] {
            map_a_page_of_two(fails, frees);
        }
    }
}

/// A page that no sender can map goes with the last of their buffers.
#[test]
fn a_page_that_nobody_can_map_is_freed() {
    let process = Arc::new(Process::new(&Lru::new(), 16, true));
    let other = process.clone();
    before_next_map(move || {
        let small = thread::spawn(move || {
            before_next_map(|| fail_after(0));
            let small = other.reserve(8);
            fail_after(usize::MAX);
            small.err()
        });
        assert_eq!(small.join().unwrap(), Some(ENOMEM));
        fail_after(0);
    });
    assert_eq!(process.reserve(8).err(), Some(ENOMEM));
    fail_after(usize::MAX);
    assert_eq!((process.pages(), process.charged()), ((0, 0), 0));
    let buffer = process.reserve(8).unwrap();
    process.touch(&buffer, 1);
    process.release(buffer);
    Arc::into_inner(process).unwrap().finish().check();
}

/// What may have to be waited for is a page that is being reclaimed. Who is killed doesn't.
#[test]
fn a_killed_sender_does_not_wait_for_reclaim() {
    let lru = Lru::new();
    let process = Arc::new(Process::new(&lru, 16, true));
    let buffer = process.reserve(8).unwrap();
    process.release(buffer);
    let (sender, receiver) = mpsc::channel();
    let other = process.clone();
    before_next_zap(move || {
        let thread = thread::spawn(move || {
            sender
                .send(task::killed(|| other.reserve(8)).err())
                .unwrap();
        });
        let result = receiver.recv_timeout(Duration::from_secs(10));
        assert_eq!(result, Ok(Some(EINTR)), "a killed sender waits");
        thread.join().unwrap();
    });
    assert_eq!(lru.scan(usize::MAX).0, Some(1));
    assert_eq!((process.pages(), process.charged()), ((0, 0), 0));
    let buffer = process.reserve(8).unwrap();
    process.touch(&buffer, 1);
    process.release(buffer);
    Arc::into_inner(process).unwrap().finish().check();
}

/// The memory for management goes with the pages: an idle process whose pages have been reclaimed has none.
#[test]
fn reclaim_gives_back_all_memory() {
    let lru = Lru::new();
    let process = Process::new(&lru, 60, true);
    assert!(process.is_bare());
    let (first, second) = (process.reserve(50 * PAGE_SIZE), process.reserve(8));
    process.release(first.unwrap());
    assert_eq!(lru.scan(usize::MAX).0, Some(50));
    // There is a page, and a buffer on it.
    assert!(!process.is_bare());
    process.release(second.unwrap());
    assert!(!process.is_bare());
    assert_eq!(lru.scan(usize::MAX).0, Some(1));
    assert!(process.is_bare());
    // It can be had again, and goes again when it was in vain.
    fail_after(8);
    assert_eq!(process.reserve(50 * PAGE_SIZE).err(), Some(ENOMEM));
    fail_after(usize::MAX);
    let buffer = process.reserve(50 * PAGE_SIZE).unwrap();
    process.touch(&buffer, 1);
    process.release(buffer);
    process.finish().check();
}
