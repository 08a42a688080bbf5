// SPDX-License-Identifier: GPL-2.0

//! Long and random runs: against the models, with failed allocations, and in comparison with a best
//! fit of another kind.

use std::{
    collections::{
        BTreeMap,
        BTreeSet, //
    },
    sync::atomic::{
        AtomicUsize,
        Ordering::Relaxed, //
    }, //
};

use kernel::{
    alloc::fail_after,
    page::PAGE_SIZE,
    prelude::{
        ENOMEM, //
    },
    task::Pid, //
};

use proptest::{
    collection::vec,
    prelude::*,
    test_runner::TestRunner, //
};

use super::{
    model::{
        charge,
        reserve,
        run,
        run_oneway,
        OnewayOp,
        Op,
        UNIT, //
    },
    oneway::Oneway,
    ranges::{
        Meta,
        Ranges, //
    }, //
};

fn op() -> impl Strategy<Value = Op> {
    let units = prop_oneof![
        4 => 1..16_usize,
        3 => 1..=PAGE_SIZE / UNIT,
        1 => (1..8_usize).prop_map(|pages| pages * PAGE_SIZE / UNIT),
    ];
    let allocations = prop_oneof![
        9 => Just(usize::MAX),
        1 => 0..4_usize,
    ];
    prop_oneof![
        120 => (units, 0..5, any::<bool>(), allocations).prop_map(
            |(units, pid, is_oneway, allocations)| Op::Reserve {
                units,
                pid,
                is_oneway,
                allocations,
            }
        ),
        60 => (any::<u16>(), any::<bool>())
            .prop_map(|(which, with_data)| Op::Commit { which, with_data }),
        40 => any::<u16>().prop_map(Op::Existing),
        70 => any::<u16>().prop_map(Op::Release),
        20 => any::<u16>().prop_map(Op::Probe),
        4 => Just(Op::Trim),
        1 => Just(Op::Drain),
    ]
}

fn oneway_op() -> impl Strategy<Value = OnewayOp> {
    let units = prop_oneof![1..16_usize, 1..600_usize];
    prop_oneof![
        (units, 0..6).prop_map(|(units, pid)| OnewayOp::Charge { units, pid }),
        any::<u16>().prop_map(OnewayOp::Uncharge),
    ]
}

/// Calls `test` with many lists of operations, on areas of different sizes. Says how many
/// operations there were.
fn check<T: Clone + std::fmt::Debug>(
    name: &str,
    pages: std::ops::Range<usize>,
    op: impl Strategy<Value = T>,
    test: fn(usize, &[T]),
) {
    let done = AtomicUsize::new(0);
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let result = runner.run(&(pages, vec(op, 1..400)), |(pages, ops)| {
        test(pages, &ops);
        done.fetch_add(ops.len(), Relaxed);
        Ok(())
    });
    if let Err(err) = result {
        panic!("{err}");
    }
    let done = done.into_inner();
    println!("{name}: {done} operations");
    assert!(done > 300_000);
}

#[test]
fn ranges_do_as_the_model() {
    check("ranges", 1..12, op(), run);
}

#[test]
fn oneway_does_as_a_walk() {
    check("oneway", 1..64, oneway_op(), run_oneway);
}

#[test]
fn failed_allocations_do_no_harm() {
    let meta = Meta::default();
    let mut ranges = Ranges::<()>::new(1 << 20);
    let mut oneway = Oneway::new(1 << 20);
    let mut failures = 0;
    for i in 0..1000 {
        // The first allocation fails, then the second one, then none.
        for allocations in 0.. {
            fail_after(allocations);
            let reserved = reserve(&mut ranges, UNIT, meta);
            fail_after(usize::MAX);
            if reserved.is_ok() {
                break;
            }
            assert_eq!(reserved.err(), Some(ENOMEM));
            assert_eq!(ranges.count(), i);
            failures += 1;
        }
        for allocations in 0.. {
            fail_after(allocations);
            let charged = charge(&mut oneway, UNIT, i as Pid);
            fail_after(usize::MAX);
            if charged.is_ok() {
                break;
            }
            assert_eq!(charged, Err(ENOMEM));
            assert_eq!(oneway.free_space(), (1 << 19) - i * UNIT);
            failures += 1;
        }
    }
    // One for each block of slots (39 of ranges, 25 of tallies), and one each time that there have to be places for
    // twice as many blocks: from 4 to 64, and from 4 to 32.
    assert_eq!(failures, 39 + 5 + 25 + 4);
    assert!(ranges
        .iter()
        .map(|b| b.offset)
        .eq((0..1000).map(|i| i * UNIT)));
}

/// A best fit that takes the lowest of the ranges that fit as well, like upstream's tree.
struct BestFit {
    size: usize,
    used: BTreeMap<usize, usize>,
    free: BTreeSet<(usize, usize)>,
}

impl BestFit {
    fn new(size: usize) -> Self {
        Self {
            size,
            used: BTreeMap::new(),
            free: BTreeSet::from([(size, 0)]),
        }
    }

    fn reserve(&mut self, size: usize) -> Option<usize> {
        let &(free, offset) = self.free.range((size, 0)..).next()?;
        self.free.remove(&(free, offset));
        if free > size {
            self.free.insert((free - size, offset + size));
        }
        self.used.insert(offset, size);
        Some(offset)
    }

    fn release(&mut self, offset: usize) {
        let size = self.used.remove(&offset).unwrap();
        let before = self.used.range(..offset).next_back();
        let start = before.map_or(0, |(offset, size)| offset + size);
        let after = self.used.range(offset..).next();
        let end = after.map_or(self.size, |(&offset, _)| offset);
        self.free.remove(&(offset - start, start));
        self.free.remove(&(end - offset - size, offset + size));
        self.free.insert((end - start, start));
    }
}

/// One of the two that are compared: what it has and when it first found no space.
struct Run<A, B> {
    allocator: A,
    buffers: Vec<Option<B>>,
    full_at: Option<usize>,
}

impl<A, B> Run<A, B> {
    fn new(allocator: A) -> Self {
        Self {
            allocator,
            buffers: Vec::new(),
            full_at: None,
        }
    }

    fn reserve(&mut self, op: usize, reserve: impl FnOnce(&mut A) -> Option<B>) {
        let buffer = match self.full_at {
            None => reserve(&mut self.allocator),
            Some(_) => None,
        };
        if buffer.is_none() {
            self.full_at.get_or_insert(op);
        }
        self.buffers.push(buffer);
    }

    fn release(&mut self, i: usize, release: impl FnOnce(&mut A, B)) {
        if let (Some(buffer), None) = (self.buffers.swap_remove(i), self.full_at) {
            release(&mut self.allocator, buffer);
        }
    }
}

/// Which of ranges that fit as well is taken isn't part of best fit, and makes a difference later
/// on, now to one's advantage and now to the other's. On the whole it must not be to our
/// disadvantage, by more than chance makes of so many traces.
#[test]
fn space_lasts_as_long_as_with_best_fit() {
    const SIZE: usize = (1 << 20) - 2 * PAGE_SIZE;
    const OPS: usize = 20_000;
    let sizes: [fn(usize) -> usize; 4] = [
        |bits| 1 + bits % 64,
        |bits| match bits % 20 {
            0 => 8192,
            1..=4 => 1 + (bits >> 8) % 1024,
            _ => 1 + (bits >> 8) % 40,
        },
        |bits| 8 << (bits % 10),
        |bits| [1, 16, 512, 8192][bits % 4],
    ];

    let (mut earlier, mut later) = (0, 0);
    let (mut ahead, mut squares) = (0.0, 0.0);
    for trace in 0..1000_u64 {
        let mut random = (trace + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut bits = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random >> 16) as usize
        };
        let size = sizes[trace as usize % sizes.len()];
        let fill = 80 + bits() % 18;
        let mut ours = Run::new(Ranges::<()>::new(SIZE));
        let mut best = Run::new(BestFit::new(SIZE));
        let mut live = Vec::new();
        let mut used = 0;

        for op in 0..OPS {
            if ours.full_at.is_some() && best.full_at.is_some() {
                break;
            }
            if live.is_empty() || used < SIZE / 100 * fill {
                let size = size(bits()) * UNIT;
                ours.reserve(op, |a| reserve(a, size, Meta::default()).ok());
                best.reserve(op, |a| a.reserve(size));
                live.push(size);
                used += size;
            } else {
                let i = bits() % live.len();
                ours.release(i, |a, buffer| {
                    // SAFETY: The data is that of the buffer.
                    drop(unsafe { a.release(buffer.id, buffer.data) }.ok().unwrap());
                });
                best.release(i, |a, offset| a.release(offset));
                used -= live.swap_remove(i);
            }
        }
        let (ours, best) = (ours.full_at.unwrap_or(OPS), best.full_at.unwrap_or(OPS));
        earlier += usize::from(ours < best);
        later += usize::from(ours > best);
        let difference = ours as f64 - best as f64;
        ahead += difference;
        squares += difference * difference;
    }
    // Of sums of so many differences, 97.5 % are not further below 0 if it is all chance.
    let chance = |squares: f64| 1.96 * squares.sqrt();
    println!(
        "no space: {earlier} traces earlier, {later} later; {ahead} operations later, +-{:.0}",
        chance(squares)
    );
    assert!(earlier as f64 - later as f64 <= chance((earlier + later) as f64));
    assert!(ahead >= -chance(squares));
}
