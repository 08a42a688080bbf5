// SPDX-License-Identifier: GPL-2.0

//! Threads that meet at the same pages, in all orders that loom finds.
//!
//! The allocator is the real one, all of it. What is checked in each order, beside what the
//! allocator and the stand-ins assert: a page that a buffer lies on is mapped, and is the page that
//! the kernel writes to; in the end no page is in use, all that are mapped are idle and the other
//! way round, none is lost, and nobody waits for ever. A page that is used after it was freed is
//! told by the stand-in for pages.

#![cfg(loom)]

use binder_alloc_host::process::{
    Buffer,
    Lru,
    Process, //
};
use kernel::{
    alloc::fail_after,
    page::PAGE_SIZE,
    prelude::*, //
};
use loom::{
    model::Builder,
    thread, //
};
use std::sync::{
    atomic::{
        AtomicUsize,
        Ordering::Relaxed, //
    },
    Arc,
};

const HALF: usize = PAGE_SIZE / 2;

/// Pages of an area.
const PAGES: usize = 4;

/// Calls `model` for each order of its threads that has `preemptions` preemptions at most. Says how
/// many there were.
fn explore(name: &str, preemptions: usize, model: impl Fn() + Sync + Send + 'static) -> usize {
    let runs = Arc::new(AtomicUsize::new(0));
    let count = runs.clone();
    let mut builder = Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 10_000;
    builder.check(move || {
        count.fetch_add(1, Relaxed);
        model();
    });
    let runs = runs.load(Relaxed);
    println!("{name}: {runs} interleavings");
    assert!(runs > 1);
    runs
}

/// As [`explore`], without VMA locks and with them. Where nobody locks the address space for
/// writing, none is refused, and it makes no difference.
fn explore_locks(name: &str, preemptions: usize, model: impl Fn(bool) + Sync + Send + 'static) {
    let model = Arc::new(model);
    for (has_vma_locks, with) in [(false, "without"), (true, "with")] {
        let model = model.clone();
        let name = format!("{name}, {with} VMA locks");
        explore(&name, preemptions, move || model(has_vma_locks));
    }
}

fn process() -> (Lru, Arc<Process>) {
    process_with(false)
}

fn process_with(has_vma_locks: bool) -> (Lru, Arc<Process>) {
    let lru = Lru::new();
    let process = Arc::new(Process::new(&lru, PAGES, has_vma_locks));
    (lru, process)
}

fn spawn(process: &Arc<Process>, f: impl FnOnce(&Process) + 'static) -> thread::JoinHandle<()> {
    let process = process.clone();
    thread::spawn(move || {
        f(&process);
        drop(process);
    })
}

/// Ends a process when all threads are done. Its area must be mapped still.
fn finish(process: Arc<Process>) {
    let (in_use, idle) = process.pages();
    assert_eq!(in_use, 0);
    assert_eq!(process.mapped(), idle);
    assert_eq!(process.charged(), idle.count_ones() as usize);
    end(process);
}

fn end(process: Arc<Process>) {
    let process = Arc::into_inner(process).expect("a thread still has the process");
    process.finish().check();
}

/// Reserves a buffer, uses it, releases it.
fn send(process: &Process, size: usize, value: u8) {
    let buffer = process.reserve(size).unwrap();
    process.touch(&buffer, value);
    process.release(buffer);
}

/// Buffers of a page each, on the first `N` pages.
fn buffers<const N: usize>(process: &Process) -> [Buffer; N] {
    [(); N].map(|()| process.reserve(PAGE_SIZE).unwrap())
}

#[test]
fn installers_of_the_same_page() {
    explore("two installers of the same page", 3, || {
        let (_lru, process) = process();
        let thread = spawn(&process, |process| send(process, HALF, 1));
        send(&process, HALF, 2);
        thread.join().unwrap();
        finish(process);
    });
    explore("two installers of overlapping pages", 3, || {
        let (_lru, process) = process();
        let thread = spawn(&process, |process| send(process, PAGE_SIZE + HALF, 1));
        send(&process, PAGE_SIZE + HALF, 2);
        thread.join().unwrap();
        finish(process);
    });
}

#[test]
fn reclaim_of_a_page_that_is_wanted() {
    explore("use against reclaim of the page", 4, || {
        let (lru, process) = process();
        send(&process, HALF, 1);
        let thread = spawn(&process, |process| send(process, HALF, 2));
        lru.scan(1);
        thread.join().unwrap();
        finish(process);
    });
    explore("use against two reclaims of the page", 2, || {
        let (lru, process) = process();
        send(&process, HALF, 1);
        let thread = spawn(&process, |process| send(process, HALF, 2));
        let other = lru.clone();
        let reclaim = thread::spawn(move || other.scan(1));
        lru.scan(1);
        thread.join().unwrap();
        reclaim.join().unwrap();
        finish(process);
    });
    explore("two uses against reclaim of the page", 2, || {
        let (lru, process) = process();
        send(&process, HALF, 1);
        let first = spawn(&process, |process| send(process, HALF, 2));
        let second = spawn(&process, |process| send(process, HALF, 3));
        lru.scan(1);
        first.join().unwrap();
        second.join().unwrap();
        finish(process);
    });
}

#[test]
fn release_against_isolation() {
    explore("release against isolation", 4, || {
        let (lru, process) = process();
        send(&process, HALF, 1);
        // It is on the LRU, and in use.
        let buffer = process.reserve(HALF).unwrap();
        process.touch(&buffer, 2);
        let thread = spawn(&process, |process| process.release(buffer));
        lru.scan(1);
        thread.join().unwrap();
        assert_eq!(process.pages().0, 0);
        assert_eq!(lru.count(), process.charged());
        finish(process);
    });
}

#[test]
fn neighbours() {
    explore("use against reclaim of a neighbour", 4, || {
        let (lru, process) = process();
        let buffers = buffers::<3>(&process);
        // The first page is the last of the LRU.
        for buffer in buffers.into_iter().rev() {
            process.release(buffer);
        }
        let thread = spawn(&process, |process| send(process, PAGE_SIZE, 1));
        lru.scan(1);
        thread.join().unwrap();
        finish(process);
    });
    explore("two reclaims of neighbours", 4, || {
        let (lru, process) = process();
        let buffers = buffers::<3>(&process);
        for buffer in buffers {
            process.release(buffer);
        }
        let other = lru.clone();
        let thread = thread::spawn(move || other.scan(1));
        lru.scan(2);
        thread.join().unwrap();
        finish(process);
    });
}

#[test]
fn pages_that_cannot_be_unmapped_now() {
    explore_locks("reclaim while the address space is locked", 4, |locks| {
        let (lru, process) = process_with(locks);
        send(&process, HALF, 1);
        let thread = spawn(&process, |process| process.munmap(PAGES..PAGES + 1));
        lru.scan(1);
        thread.join().unwrap();
        assert_eq!(lru.count(), process.charged());
        finish(process);
    });
    explore_locks("the same, and use", 2, |locks| {
        let (lru, process) = process_with(locks);
        send(&process, HALF, 1);
        let lock = spawn(&process, |process| process.munmap(PAGES..PAGES + 1));
        let user = spawn(&process, |process| send(process, HALF, 2));
        lru.scan(1);
        lock.join().unwrap();
        user.join().unwrap();
        finish(process);
    });
}

#[test]
fn teardown() {
    explore_locks("teardown against reclaim", 3, |locks| {
        let (lru, process) = process_with(locks);
        send(&process, 2 * PAGE_SIZE, 1);
        let thread = thread::spawn(move || {
            let process = Arc::into_inner(process).unwrap();
            process.finish()
        });
        lru.scan(usize::MAX);
        thread.join().unwrap().check();
        assert_eq!(lru.count(), 0);
    });
    explore_locks("munmap against reclaim", 4, |locks| {
        let (lru, process) = process_with(locks);
        send(&process, 2 * PAGE_SIZE, 1);
        let thread = spawn(&process, |process| process.munmap(0..PAGES));
        lru.scan(usize::MAX);
        thread.join().unwrap();
        // There is no VMA any more, but the pages can be reclaimed.
        lru.scan(usize::MAX);
        assert_eq!(process.charged(), 0);
        end(process);
    });
    explore("exit against reclaim", 4, || {
        let (lru, process) = process();
        send(&process, 2 * PAGE_SIZE, 1);
        let thread = spawn(&process, |process| process.exit());
        lru.scan(usize::MAX);
        thread.join().unwrap();
        end(process);
    });
    explore_locks("munmap against use", 3, |locks| {
        let (_lru, process) = process_with(locks);
        send(&process, HALF, 1);
        let thread = spawn(&process, |process| process.munmap(0..PAGES));
        match process.reserve(2 * PAGE_SIZE) {
            Ok(buffer) => {
                process.touch_unmapped(&buffer, 1);
                process.release(buffer);
            }
            Err(err) => assert_eq!(err, ESRCH),
        }
        thread.join().unwrap();
        // Not even where there are idle pages.
        assert_eq!(process.reserve(HALF).err(), Some(ESRCH));
        end(process);
    });
    explore("exit against use and reclaim", 2, || {
        let (lru, process) = process();
        send(&process, HALF, 1);
        let thread = spawn(&process, |process| process.exit());
        let user = spawn(&process, |process| match process.reserve(HALF) {
            Ok(buffer) => {
                process.touch_unmapped(&buffer, 1);
                process.release(buffer);
            }
            Err(err) => assert_eq!(err, ESRCH),
        });
        lru.scan(1);
        thread.join().unwrap();
        user.join().unwrap();
        end(process);
    });
}

/// Explores what happens when each of the allocations of one installation fails, while `others` more
/// need some of the same pages.
fn fail_each_allocation(name: &str, preemptions: usize, others: usize) {
    for allocations in 0.. {
        let failures = Arc::new(AtomicUsize::new(0));
        let count = failures.clone();
        explore(name, preemptions, move || {
            let (lru, process) = process();
            // Page 1 is there, and has to be between two that aren't.
            let [first, second, third] = buffers(&process);
            process.release(first);
            process.release(third);
            lru.scan(usize::MAX);
            process.release(second);
            assert_eq!(process.pages(), (0, 0b10));

            let failures = count.clone();
            let first = spawn(&process, move |process| {
                fail_after(allocations);
                match process.reserve(2 * PAGE_SIZE + HALF) {
                    Ok(buffer) => {
                        process.touch(&buffer, 1);
                        process.release(buffer);
                    }
                    Err(err) => {
                        assert_eq!(err, ENOMEM);
                        failures.fetch_add(1, Relaxed);
                    }
                }
                fail_after(usize::MAX);
            });
            let second = (others > 1).then(|| spawn(&process, |process| send(process, 8, 2)));
            send(&process, 8, 3);
            first.join().unwrap();
            if let Some(second) = second {
                second.join().unwrap();
            }
            finish(process);
        });
        if failures.load(Relaxed) == 0 {
            break;
        }
    }
}

#[test]
fn failure_half_way() {
    fail_each_allocation("failure half-way", 3, 1);
}

#[test]
fn failure_half_way_next_to_two() {
    fail_each_allocation("failure half-way next to two others", 2, 2);
}
