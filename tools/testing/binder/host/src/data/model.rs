// SPDX-License-Identifier: GPL-2.0

//! Operations on ranges and on oneway budgets, and naive models that say what comes of them. All of
//! it is done as if under a lock, where no memory is allocated or freed and no data dropped.

use std::{
    collections::BTreeMap,
    ops::{
        ControlFlow,
        Range, //
    },
    rc::Rc, //
};

use arbitrary::{
    Arbitrary,
    Unstructured, //
};
use kernel::{
    alloc::{
        fail_after,
        locked, //
    },
    page::PAGE_SIZE,
    prelude::*,
    task::Pid, //
};

use super::{
    oneway::{
        ChargeError,
        Oneway,
        Suspect, //
    },
    ranges::{
        Meta,
        Ranges,
        ReserveError,
        Reserved,
        Sizes,
        Usage, //
    }, //
};

pub(super) const UNIT: usize = size_of::<usize>();

pub(super) fn reserve<T: Default>(
    ranges: &mut Ranges<T>,
    size: usize,
    meta: Meta,
) -> Result<Reserved<T>, Error> {
    loop {
        match locked(|| ranges.reserve(size, meta)) {
            Ok(reserved) => return Ok(reserved),
            Err(ReserveError::NoSpace) => return Err(ENOSPC),
            Err(ReserveError::NeedGrow(request)) => {
                let grown = request.alloc(GFP_KERNEL)?;
                let _old = locked(|| ranges.grow(grown));
            }
        }
    }
}

pub(super) fn charge(oneway: &mut Oneway, size: usize, pid: Pid) -> Result<Option<Suspect>, Error> {
    loop {
        match locked(|| oneway.charge(size, pid)) {
            Ok(suspect) => return Ok(suspect),
            Err(ChargeError::NoSpace) => return Err(ENOSPC),
            Err(ChargeError::NeedGrow(request)) => {
                let grown = request.alloc(GFP_KERNEL)?;
                let _old = locked(|| oneway.grow(grown));
            }
        }
    }
}

/// What there is to do with ranges. Buffers are chosen from those that there are.
#[derive(Clone, Debug)]
pub enum Op {
    Reserve {
        units: usize,
        pid: Pid,
        is_oneway: bool,
        /// How many allocations succeed.
        allocations: usize,
    },
    Commit {
        which: u16,
        with_data: bool,
    },
    Existing(u16),
    Release(u16),
    /// Existing, at an offset that may or may not be right.
    Probe(u16),
    Trim,
    Drain,
}

impl<'a> Arbitrary<'a> for Op {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(match u.int_in_range(0..=15_u8)? {
            0..=5 => Self::Reserve {
                units: u.int_in_range(1..=8 * PAGE_SIZE / UNIT)?,
                pid: u.int_in_range(0..=4)?,
                is_oneway: u.arbitrary()?,
                allocations: match u.arbitrary::<u8>()? {
                    few @ 0..4 => few.into(),
                    _ => usize::MAX,
                },
            },
            6..=8 => Self::Commit {
                which: u.arbitrary()?,
                with_data: u.arbitrary()?,
            },
            9..=10 => Self::Existing(u.arbitrary()?),
            11..=12 => Self::Release(u.arbitrary()?),
            13 => Self::Probe(u.arbitrary()?),
            14 => Self::Trim,
            _ => Self::Drain,
        })
    }
}

/// What there is to do with a oneway budget.
#[derive(Clone, Debug)]
pub enum OnewayOp {
    Charge { units: usize, pid: Pid },
    Uncharge(u16),
}

impl<'a> Arbitrary<'a> for OnewayOp {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(match u.arbitrary()? {
            true => Self::Charge {
                units: u.int_in_range(1..=600)?,
                pid: u.int_in_range(0..=5)?,
            },
            false => Self::Uncharge(u.arbitrary()?),
        })
    }
}

/// A buffer of the model.
struct Buffer {
    offset: usize,
    size: usize,
    meta: Meta,
    /// With the kernel.
    reserved: Option<Reserved<Kept>>,
    /// With userspace, and whether there is data for it.
    allocated: Option<bool>,
    was_taken_back: bool,
}

/// Which buffer each unit belongs to, by its number in `buffers` plus one.
struct Model {
    units: Vec<u32>,
    buffers: BTreeMap<u32, Buffer>,
    next: u32,
}

impl Model {
    fn new(size: usize) -> Self {
        Self {
            units: vec![0; size / UNIT],
            buffers: BTreeMap::new(),
            next: 1,
        }
    }

    /// The sizes of the free ranges by their offsets.
    fn gaps(&self) -> BTreeMap<usize, usize> {
        let mut gaps = BTreeMap::new();
        let mut start = 0;
        for run in self.units.chunk_by(|a, b| a == b) {
            if run[0] == 0 {
                gaps.insert(start * UNIT, run.len() * UNIT);
            }
            start += run.len();
        }
        gaps
    }

    fn usage(&self) -> Usage {
        let gaps = self.gaps();
        let free = gaps.values().sum();
        Usage {
            used: self.units.len() * UNIT - free,
            buffers: self.buffers.len(),
            free,
            free_ranges: gaps.len(),
            largest_free: gaps.into_values().max().unwrap_or(0),
        }
    }

    fn pick(&self, index: u16) -> Option<u32> {
        let nth = usize::from(index).checked_rem(self.buffers.len())?;
        self.buffers.keys().nth(nth).copied()
    }

    fn at(&self, offset: usize) -> Option<u32> {
        let found = self.buffers.iter().find(|(_, b)| b.offset == offset)?;
        Some(*found.0)
    }

    fn add(&mut self, buffer: Buffer) {
        let (start, end) = (buffer.offset / UNIT, (buffer.offset + buffer.size) / UNIT);
        assert!(self.units[start..end].iter().all(|&unit| unit == 0));
        self.units[start..end].fill(self.next);
        self.buffers.insert(self.next, buffer);
        self.next += 1;
    }

    /// Removes a buffer; returns the pages that become unused.
    fn remove(&mut self, id: u32) -> Vec<usize> {
        let buffer = self.buffers.remove(&id).unwrap();
        let end = buffer.offset + buffer.size;
        self.units[buffer.offset / UNIT..end / UNIT].fill(0);
        (buffer.offset / PAGE_SIZE..end.div_ceil(PAGE_SIZE))
            .filter(|page| {
                let start = page * PAGE_SIZE / UNIT;
                let page = &self.units[start..start + PAGE_SIZE / UNIT];
                page.iter().all(|&unit| unit == 0)
            })
            .collect()
    }
}

/// Data that is counted, and that mustn't be dropped under the lock.
struct Data {
    _count: Rc<()>,
    _memory: KVec<u8>,
}

impl Data {
    fn new(count: &Rc<()>) -> Self {
        Self {
            _count: count.clone(),
            _memory: KVec::with_capacity(1, GFP_KERNEL).unwrap(),
        }
    }
}

/// What is kept with a buffer.
type Kept = Option<Data>;

fn release(ranges: &mut Ranges<Kept>, model: &mut Model, id: u32) {
    let buffer = model.buffers.get_mut(&id).unwrap();
    let Some(reserved) = buffer.reserved.take() else {
        // What userspace has can't be released.
        assert!(buffer.allocated.is_some());
        return;
    };
    let (offset, size, meta) = (buffer.offset, buffer.size, buffer.meta);
    let name = reserved.id;
    assert_eq!(locked(|| ranges.sizes(name)), Some(meta.sizes));
    let own = locked(|| ranges.pages(name));
    // SAFETY: The data is that of the buffer.
    let released = locked(|| unsafe { ranges.release(name, reserved.data) });
    let released = released.ok().unwrap();
    assert_eq!(released.size, size);
    assert_eq!(released.meta, meta);
    let pages: Range<usize> = released.pages;
    assert_eq!(own, pages);
    assert_eq!(pages.collect::<Vec<_>>(), model.remove(id));
    // It is gone.
    assert_eq!(locked(|| ranges.list_again(name)), Err(ENOENT));
    assert_eq!(locked(|| ranges.existing(offset)).err(), Some(ENOENT));
    assert!(released.memory.is_none() || model.buffers.is_empty());
}

fn take_back(buffer: &mut Buffer, mut existing: Reserved<Kept>) {
    assert_eq!(existing.size, buffer.size);
    assert_eq!(existing.debug_id, buffer.meta.debug_id);
    // SAFETY: The slots are there as long as there is a buffer.
    let is_kept = unsafe { existing.data.get() }.is_some();
    assert_eq!(buffer.allocated.take(), Some(is_kept));
    // SAFETY: As above.
    drop(unsafe { existing.data.get_mut() }.take());
    buffer.reserved = Some(existing);
    buffer.was_taken_back = true;
}

/// Does `ops` with the ranges of `pages` pages.
pub fn run(pages: usize, ops: &[Op]) {
    let data = Rc::new(());
    let size = pages * PAGE_SIZE;
    let mut ranges = Ranges::<Kept>::new(size);
    let mut model = Model::new(size);

    for (n, op) in ops.iter().enumerate() {
        match *op {
            Op::Reserve {
                units,
                pid,
                is_oneway,
                allocations,
            } => {
                let size = units * UNIT;
                let meta = Meta {
                    sizes: parts(size, n),
                    debug_id: n as u32,
                    pid,
                    is_oneway,
                };
                let gaps = model.gaps();
                let best = gaps.values().copied().filter(|&gap| gap >= size).min();
                fail_after(allocations);
                let reserved = reserve(&mut ranges, size, meta);
                fail_after(usize::MAX);
                match reserved {
                    Ok(reserved) => {
                        let offset = reserved.offset;
                        assert_eq!(gaps.get(&offset).copied(), best);
                        model.add(Buffer {
                            offset,
                            size,
                            meta,
                            reserved: Some(reserved),
                            allocated: None,
                            was_taken_back: false,
                        });
                    }
                    Err(ENOMEM) => assert_ne!(allocations, usize::MAX),
                    Err(err) => {
                        assert_eq!(err, ENOSPC);
                        assert_eq!(best, None);
                    }
                }
            }
            Op::Commit { which, with_data } => {
                let Some(id) = model.pick(which) else {
                    continue;
                };
                let buffer = model.buffers.get_mut(&id).unwrap();
                let Some(mut reserved) = buffer.reserved.take() else {
                    assert!(buffer.allocated.is_some());
                    continue;
                };
                // SAFETY: The slots are there as long as there is a buffer.
                unsafe { *reserved.data.get_mut() = with_data.then(|| Data::new(&data)) };
                // Needed if it was taken back; a new one is listed.
                let listed = locked(|| ranges.list_again(reserved.id));
                assert_eq!(listed.is_ok(), buffer.was_taken_back);
                assert_eq!(ranges.existing(buffer.offset).err(), Some(EPERM));
                // SAFETY: As above.
                unsafe { reserved.data.leave() };
                buffer.allocated = Some(with_data);
            }
            Op::Existing(which) => {
                let Some(id) = model.pick(which) else {
                    continue;
                };
                let buffer = model.buffers.get_mut(&id).unwrap();
                match locked(|| ranges.existing(buffer.offset)) {
                    Ok(existing) => take_back(buffer, existing),
                    Err(err) => {
                        let expected = if buffer.was_taken_back { ENOENT } else { EPERM };
                        assert_eq!(err, expected);
                        assert_eq!(buffer.allocated, None);
                    }
                }
            }
            Op::Release(which) => {
                let Some(id) = model.pick(which) else {
                    continue;
                };
                release(&mut ranges, &mut model, id);
            }
            Op::Probe(offset) => {
                let offset = usize::from(offset) % (size + PAGE_SIZE);
                if model.at(offset).is_none() {
                    assert_eq!(locked(|| ranges.existing(offset)).err(), Some(ENOENT));
                }
            }
            Op::Trim => {
                let memory = locked(|| ranges.trim());
                assert_eq!(memory.is_some(), model.buffers.is_empty());
            }
            Op::Drain => {
                loop {
                    let existing = match locked(|| ranges.take_next()) {
                        ControlFlow::Continue(()) => continue,
                        ControlFlow::Break(None) => break,
                        ControlFlow::Break(Some(existing)) => existing,
                    };
                    let id = model.at(existing.offset).unwrap();
                    let buffer = model.buffers.get_mut(&id).unwrap();
                    take_back(buffer, existing);
                    release(&mut ranges, &mut model, id);
                }
                assert!(model.buffers.values().all(|b| b.allocated.is_none()));
            }
        }

        assert_eq!(ranges.count(), model.buffers.len());
        assert_eq!(ranges.usage(), model.usage());
        let with_data = model.buffers.values().filter(|b| b.allocated == Some(true));
        assert_eq!(Rc::strong_count(&data), with_data.count() + 1);
    }

    let mut buffers: Vec<_> = model.buffers.values().collect();
    buffers.sort_by_key(|buffer| buffer.offset);
    for (buffer, found) in buffers.into_iter().zip(ranges.iter()) {
        assert_eq!(found.offset, buffer.offset);
        assert_eq!(found.size, buffer.size);
        assert_eq!(found.meta, buffer.meta);
        assert_eq!(found.is_allocated, buffer.allocated.is_some());
    }
    assert_eq!(ranges.iter().count(), model.buffers.len());
    drop(ranges);
    assert_eq!(Rc::strong_count(&data), 1);
}

/// Some parts of a buffer of `size` bytes.
fn parts(size: usize, n: usize) -> Sizes {
    let data = size - n % size;
    let rest = size - data.next_multiple_of(UNIT);
    let offsets = rest / UNIT / 2 * UNIT;
    let sizes = Sizes {
        data,
        offsets,
        extra: rest - offsets,
    };
    assert_eq!(sizes.total(), Some(size));
    sizes
}

/// Does `ops` with the oneway budget of `pages` pages.
pub fn run_oneway(pages: usize, ops: &[OnewayOp]) {
    let size = pages * PAGE_SIZE;
    let mut oneway = Oneway::new(size);
    let mut buffers = Vec::new();
    let mut has_told = false;
    for op in ops {
        let used: usize = buffers.iter().map(|&(bytes, _)| bytes).sum();
        assert_eq!(oneway.free_space(), size / 2 - used);
        match *op {
            OnewayOp::Charge { units, pid } => {
                let bytes = UNIT * units;
                let charged = charge(&mut oneway, bytes, pid);
                if used + bytes > size / 2 {
                    assert_eq!(charged, Err(ENOSPC));
                    continue;
                }
                buffers.push((bytes, pid));
                let of_pid = || buffers.iter().filter(|buffer| buffer.1 == pid);
                let low = size / 2 - used - bytes < size / 10;
                let number = of_pid().count();
                let sum = of_pid().map(|buffer| buffer.0).sum::<usize>();
                let suspect = low && (number > 50 || sum > size / 4);
                let expected = suspect.then_some(Suspect {
                    buffers: number as u32,
                    bytes: sum,
                    is_told: !has_told,
                });
                assert_eq!(charged, Ok(expected));
                has_told = low && (has_told || suspect);
            }
            OnewayOp::Uncharge(which) => {
                if let Some(nth) = usize::from(which).checked_rem(buffers.len()) {
                    let (bytes, pid) = buffers.swap_remove(nth);
                    let _memory = locked(|| oneway.uncharge(bytes, pid));
                }
            }
        }
    }
}

/// What a fuzzer comes up with.
#[derive(Debug)]
pub struct Input {
    pages: usize,
    ops: Vec<Op>,
    oneway_ops: Vec<OnewayOp>,
}

impl<'a> Arbitrary<'a> for Input {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(Self {
            pages: u.int_in_range(1..=16)?,
            ops: u.arbitrary()?,
            oneway_ops: u.arbitrary()?,
        })
    }
}

impl Input {
    pub fn run(&self) {
        run(self.pages, &self.ops);
        run_oneway(self.pages, &self.oneway_ops);
    }
}
