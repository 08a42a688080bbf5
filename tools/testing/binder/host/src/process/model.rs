// SPDX-License-Identifier: GPL-2.0

//! Operations on two processes that share an LRU, and a naive model that says which pages are in
//! use, idle, mapped and charged after each.

use arbitrary::{
    Arbitrary,
    Unstructured, //
};
use kernel::{
    alloc::fail_after,
    page::{
        PAGE_SIZE,
        STALE, //
    },
    prelude::*, //
};
use std::ops::Range;

use super::{
    Buffer,
    Lru,
    Pages,
    Process, //
};

const UNIT: usize = size_of::<usize>();

/// Of each process.
const PAGES: usize = 24;

/// What there is to do with a process. Buffers are chosen from those that there are.
#[derive(Clone, Debug)]
pub enum Op {
    Reserve {
        size: usize,
        /// Of the sender, if it is oneway.
        pid: Option<i32>,
        /// How many allocations succeed.
        allocations: usize,
    },
    Commit(u16),
    Existing(u16),
    Release(u16),
    /// How many slots to scan, of the LRU of both.
    Scan(usize),
    Unmap,
    /// Ends it, and begins another.
    Restart,
}

impl<'a> Arbitrary<'a> for Op {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(match u.int_in_range(0..=31_u8)? {
            0..=12 => Self::Reserve {
                size: u.int_in_range(0..=8 * PAGE_SIZE)?,
                pid: match u.arbitrary::<u8>()? {
                    pid @ 0..64 => Some(i32::from(pid % 3)),
                    _ => None,
                },
                allocations: match u.arbitrary::<u8>()? {
                    few @ 0..16 => few.into(),
                    _ => usize::MAX,
                },
            },
            13..=15 => Self::Commit(u.arbitrary()?),
            16..=17 => Self::Existing(u.arbitrary()?),
            18..=24 => Self::Release(u.arbitrary()?),
            25..=28 => Self::Scan(u.int_in_range(0..=2 * PAGES)?),
            29..=30 => Self::Unmap,
            _ => Self::Restart,
        })
    }
}

/// A buffer of the model.
struct Used {
    bytes: Range<usize>,
    value: u8,
    is_oneway: bool,
    /// Unless the process has it.
    buffer: Option<Buffer>,
    /// The pages that aren't mapped before it is published.
    filling: Pages,
}

/// A process, and what the model knows of it.
struct State {
    process: Process,
    buffers: Vec<Used>,
    idle: Pages,
    is_mapped: bool,
    value: u8,
}

fn pages(bytes: &Range<usize>) -> Pages {
    (bytes.start / PAGE_SIZE..bytes.end.div_ceil(PAGE_SIZE)).fold(0, |all, n| all | 1 << n)
}

fn count(pages: Pages) -> usize {
    pages.count_ones() as usize
}

impl State {
    fn new(lru: &Lru, has_vma_locks: bool) -> Self {
        Self {
            process: Process::new(lru, PAGES, has_vma_locks),
            buffers: Vec::new(),
            idle: 0,
            is_mapped: true,
            value: 0,
        }
    }

    fn in_use(&self) -> Pages {
        let sets = self.buffers.iter().map(|used| pages(&used.bytes));
        sets.fold(0, |all, set| all | set)
    }

    fn there(&self) -> Pages {
        self.in_use() | self.idle
    }

    fn filling(&self) -> Pages {
        self.buffers.iter().fold(0, |all, used| all | used.filling)
    }

    /// Whether `size` free bytes lie together.
    fn has_gap(&self, size: usize) -> bool {
        let mut taken: Vec<_> = self.buffers.iter().map(|used| used.bytes.clone()).collect();
        taken.sort_by_key(|bytes| bytes.start);
        let ends = [0].into_iter().chain(taken.iter().map(|bytes| bytes.end));
        let starts = taken
            .iter()
            .map(|bytes| bytes.start)
            .chain([PAGES * PAGE_SIZE]);
        starts.zip(ends).any(|(start, end)| start - end >= size)
    }

    fn has_oneway_space(&self, size: usize) -> bool {
        let oneway = self.buffers.iter().filter(|used| used.is_oneway);
        let used: usize = oneway.map(|used| used.bytes.len()).sum();
        used + size <= PAGES * PAGE_SIZE / 2
    }

    fn reserve(&mut self, size: usize, pid: Option<i32>, allocations: usize) {
        fail_after(allocations);
        let result = self.process.reserve_for(size, pid);
        fail_after(usize::MAX);

        let size = size.max(UNIT).next_multiple_of(UNIT);
        let has_space = self.has_gap(size) && (pid.is_none() || self.has_oneway_space(size));
        let buffer = match result {
            Ok((buffer, _)) => buffer,
            Err(ESRCH) => return assert!(!self.is_mapped),
            Err(ENOSPC) => return assert!(!has_space),
            Err(err) => {
                assert_eq!(err, ENOMEM);
                return assert!(allocations != usize::MAX);
            }
        };
        assert!(self.is_mapped && has_space);
        let bytes = buffer.bytes();
        assert_eq!(bytes.len(), size);
        assert!(bytes.end <= PAGES * PAGE_SIZE);
        for used in &self.buffers {
            assert!(used.bytes.end <= bytes.start || bytes.end <= used.bytes.start);
        }
        let filling = buffer.covered() & !self.there();
        self.idle &= !pages(&bytes);
        // Any value but that of stale bytes.
        self.value = (self.value + 1) % STALE;
        let value = self.value;
        // Every other one is published at once, and a few aren't even written.
        if value % 7 != 0 {
            self.process.touch_unmapped(&buffer, value);
        }
        self.buffers.push(Used {
            bytes,
            value,
            is_oneway: pid.is_some(),
            buffer: Some(buffer),
            filling,
        });
        if value % 2 == 0 {
            self.publish(self.buffers.len() - 1);
        }
    }

    fn pick(&mut self, which: u16) -> Option<&mut Used> {
        let nth = usize::from(which).checked_rem(self.buffers.len())?;
        Some(&mut self.buffers[nth])
    }

    /// Publishes a buffer that the process hasn't. Says whether that went well.
    fn publish(&mut self, nth: usize) -> bool {
        let (process, used) = (&self.process, &mut self.buffers[nth]);
        let Some(buffer) = used.buffer.as_mut() else {
            return false;
        };
        match process.publish(buffer) {
            Ok(()) => {
                used.filling = 0;
                if self.is_mapped {
                    process.touch(buffer, used.value);
                    process.check_for_stale(buffer);
                }
                true
            }
            Err(err) => {
                assert_eq!(err, ESRCH);
                assert!(!self.is_mapped && used.filling != 0);
                false
            }
        }
    }

    fn commit(&mut self, which: u16) {
        let Some(nth) = usize::from(which).checked_rem(self.buffers.len()) else {
            return;
        };
        if self.publish(nth) {
            if let Some(buffer) = self.buffers[nth].buffer.take() {
                self.process.commit(buffer);
            }
        }
    }

    fn existing(&mut self, which: u16) {
        let Some(used) = self.pick(which) else { return };
        let (start, is_committed) = (used.bytes.start, used.buffer.is_none());
        let result = self.process.existing(start);
        assert_eq!(result.is_ok(), is_committed);
        assert!(self.process.existing(start + UNIT / 2).is_err());
        if let (Ok(buffer), Some(used)) = (result, self.pick(which)) {
            assert_eq!(buffer.bytes(), used.bytes);
            used.buffer = Some(buffer);
        }
    }

    fn release(&mut self, which: u16) {
        let Some(nth) = usize::from(which).checked_rem(self.buffers.len()) else {
            return;
        };
        let Some(buffer) = self.buffers[nth].buffer.take() else {
            return;
        };
        let before = self.in_use();
        let used = self.buffers.swap_remove(nth);
        if self.is_mapped && used.filling == 0 && used.value % 7 != 0 {
            self.process.check(&buffer, used.value);
        }
        self.process.release(buffer);
        self.idle |= before & !self.in_use() & !used.filling;
    }

    /// Takes note of which idle pages a scan left. Says how many it freed.
    fn scanned(&mut self) -> usize {
        let (_, idle) = self.process.pages();
        assert_eq!(idle & !self.idle, 0);
        let freed = self.idle & !idle;
        self.idle = idle;
        count(freed)
    }

    fn unmap(&mut self) {
        self.process.munmap(0..PAGES);
        self.is_mapped = false;
    }

    fn end(mut self) {
        // What the process has is taken back from it in the end.
        for used in self.buffers.drain(..) {
            if let Some(buffer) = used.buffer {
                self.process.release(buffer);
            }
        }
        self.process.finish().check();
    }

    fn check(&self) {
        assert_eq!(self.process.pages(), (self.in_use(), self.idle));
        let mapped = if self.is_mapped {
            self.there() & !self.filling()
        } else {
            0
        };
        assert_eq!(self.process.mapped(), mapped);
        assert_eq!(self.process.charged(), count(self.there()));
    }
}

/// Does `ops`, each with one of two processes.
pub fn run(ops: &[(bool, Op)]) {
    let lru = Lru::new();
    // One has VMA locks, and the other needs the mmap lock.
    let mut states = [true, false].map(|has_vma_locks| State::new(&lru, has_vma_locks));

    for (which, op) in ops {
        let state = &mut states[usize::from(*which)];
        match *op {
            Op::Reserve {
                size,
                pid,
                allocations,
            } => state.reserve(size, pid, allocations),
            Op::Commit(which) => state.commit(which),
            Op::Existing(which) => state.existing(which),
            Op::Release(which) => state.release(which),
            Op::Scan(slots) => {
                let linked = lru.count();
                let (freed, scanned) = lru.scan(slots);
                let freed_by_model: usize = states.iter_mut().map(State::scanned).sum();
                assert_eq!(freed.unwrap_or(0), freed_by_model);
                assert_eq!(freed.is_some(), slots > 0 && linked > 0);
                assert!(scanned >= slots.min(linked));
                assert_eq!(lru.count(), linked - scanned);
            }
            Op::Unmap => state.unmap(),
            Op::Restart => {
                let new = State::new(&lru, !*which);
                std::mem::replace(state, new).end();
            }
        }
        for state in &states {
            state.check();
        }
        let idle: usize = states.iter().map(|state| count(state.idle)).sum();
        let there: usize = states.iter().map(|state| count(state.there())).sum();
        assert!((idle..=there).contains(&lru.count()));
    }
    for state in states {
        assert!(!state.process.debug().is_empty());
        state.end();
    }
    assert_eq!(lru.count(), 0);
}

/// What a fuzzer comes up with.
#[derive(Debug)]
pub struct Input(Vec<(bool, Op)>);

impl<'a> Arbitrary<'a> for Input {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        u.arbitrary().map(Self)
    }
}

impl Input {
    pub fn run(&self) {
        run(&self.0);
    }
}
