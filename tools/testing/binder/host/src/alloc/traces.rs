// SPDX-License-Identifier: GPL-2.0

//! Long and random runs, with what only the host can check: that no memory is allocated or freed
//! and no data dropped under the lock, that failed allocations do no harm, and that buffers are
//! placed as well as by a best fit of another kind.

use std::{
    collections::{
        BTreeMap,
        BTreeSet, //
    },
    ops::Range,
    rc::Rc, //
};

use kernel::{
    alloc::{
        fail_after,
        locked, //
    },
    page::PAGE_SIZE,
    prelude::{
        Error,
        KVec,
        EINVAL,
        ENOENT,
        ENOMEM,
        ENOSPC,
        EPERM,
        GFP_KERNEL, //
    },
    task::Pid, //
};

use proptest::{
    collection::vec,
    prelude::*,
    sample::Index, //
};

use super::{
    oneway::{
        ChargeError,
        Oneway, //
    },
    ranges::{
        Existing,
        Id,
        Meta,
        Ranges,
        ReserveError,
        Reserved, //
    },
    slots::DataRef, //
};

const UNIT: usize = size_of::<usize>();

fn reserve<T: Default>(
    ranges: &mut Ranges<T>,
    size: usize,
    meta: Meta,
) -> Result<Reserved<T>, Error> {
    loop {
        match locked(|| ranges.reserve(size, meta)) {
            Ok(reserved) => return Ok(reserved),
            Err(ReserveError::NoSpace) => return Err(ENOSPC),
            Err(ReserveError::NeedGrow(request)) => {
                let grown = request.alloc()?;
                let _old = locked(|| ranges.grow(grown));
            }
        }
    }
}

fn charge(oneway: &mut Oneway, size: usize, pid: Pid) -> Result<bool, Error> {
    loop {
        match locked(|| oneway.charge(size, pid)) {
            Ok(suspect) => return Ok(suspect),
            Err(ChargeError::NoSpace) => return Err(ENOSPC),
            Err(ChargeError::NeedGrow(request)) => {
                let grown = request.alloc()?;
                let _old = locked(|| oneway.grow(grown));
            }
        }
    }
}

/// What there is to do with ranges. Buffers are chosen from those that there are.
#[derive(Clone, Debug)]
enum Op {
    /// In units.
    Reserve(usize, Pid, bool),
    Commit(Index, bool),
    Existing(Index),
    Release(Index),
    /// Existing, at an offset that may or may not be right.
    Probe(Index),
    Trim,
    Drain,
}

fn op() -> impl Strategy<Value = Op> {
    let units = prop_oneof![
        4 => 1..16_usize,
        3 => 1..=PAGE_SIZE / UNIT,
        1 => (1..8_usize).prop_map(|pages| pages * PAGE_SIZE / UNIT),
    ];
    prop_oneof![
        120 => (units, 0..5, any::<bool>()).prop_map(|(n, pid, one)| Op::Reserve(n, pid, one)),
        60 => (any::<Index>(), any::<bool>()).prop_map(|(i, data)| Op::Commit(i, data)),
        40 => any::<Index>().prop_map(Op::Existing),
        70 => any::<Index>().prop_map(Op::Release),
        20 => any::<Index>().prop_map(Op::Probe),
        4 => Just(Op::Trim),
        1 => Just(Op::Drain),
    ]
}

/// A buffer of the model.
struct Buffer {
    name: Id,
    offset: usize,
    size: usize,
    meta: Meta,
    /// Of a reserved buffer.
    data: Option<DataRef<Kept>>,
    /// With userspace, and whether there is data for it.
    allocated: Option<bool>,
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

    fn pick(&self, index: Index) -> Option<u32> {
        let ids: Vec<_> = self.buffers.keys().copied().collect();
        (!ids.is_empty()).then(|| *index.get(&ids))
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
    let buffer = &model.buffers[&id];
    let (name, size, meta) = (buffer.name, buffer.size, buffer.meta);
    let released = locked(|| ranges.release(name));
    if buffer.allocated.is_some() {
        assert_eq!(released.err(), Some(EPERM));
        return;
    }
    let released = released.ok().unwrap();
    assert_eq!(released.size, size);
    assert_eq!(released.pid, meta.pid);
    assert_eq!(released.is_oneway, meta.is_oneway);
    let pages: Range<usize> = released.pages;
    assert_eq!(pages.collect::<Vec<_>>(), model.remove(id));
    // It is gone.
    assert_eq!(locked(|| ranges.release(name)).err(), Some(EINVAL));
    assert_eq!(locked(|| ranges.commit(name)), Err(ENOENT));
    assert!(released.memory.is_none() || model.buffers.is_empty());
}

fn take_back(buffer: &mut Buffer, mut existing: Existing<Kept>) {
    assert_eq!(existing.id, buffer.name);
    assert_eq!(existing.size, buffer.size);
    assert_eq!(existing.debug_id, buffer.meta.debug_id);
    // SAFETY: The buffer is reserved again, and only the model knows of it.
    let kept = unsafe { existing.data.get_mut().take() };
    assert_eq!(buffer.allocated.take(), Some(kept.is_some()));
    buffer.data = Some(existing.data);
}

fn run(pages: usize, ops: &[Op]) {
    let data = Rc::new(());
    let size = pages * PAGE_SIZE;
    let mut ranges = Ranges::<Kept>::new(size);
    let mut model = Model::new(size);

    for (n, op) in ops.iter().enumerate() {
        match *op {
            Op::Reserve(units, pid, is_oneway) => {
                let size = units * UNIT;
                let meta = Meta {
                    debug_id: n,
                    pid,
                    is_oneway,
                };
                let gaps = model.gaps();
                let best = gaps.values().copied().filter(|&gap| gap >= size).min();
                match reserve(&mut ranges, size, meta) {
                    Ok(Reserved { id, offset, data }) => {
                        assert_eq!(gaps.get(&offset).copied(), best);
                        model.add(Buffer {
                            name: id,
                            offset,
                            size,
                            meta,
                            data: Some(data),
                            allocated: None,
                        });
                    }
                    Err(err) => {
                        assert_eq!(err, ENOSPC);
                        assert_eq!(best, None);
                    }
                }
            }
            Op::Commit(index, with_data) => {
                let Some(id) = model.pick(index) else {
                    continue;
                };
                let buffer = model.buffers.get_mut(&id).unwrap();
                if let Some(kept) = &mut buffer.data {
                    // SAFETY: The buffer is reserved, and only the model knows of it.
                    unsafe { *kept.get_mut() = with_data.then(|| Data::new(&data)) };
                }
                match locked(|| ranges.commit(buffer.name)) {
                    Ok(()) => {
                        assert!(buffer.data.take().is_some());
                        buffer.allocated = Some(with_data);
                    }
                    Err(err) => {
                        assert_eq!(err, ENOENT);
                        assert!(buffer.allocated.is_some());
                    }
                }
            }
            Op::Existing(index) => {
                let Some(id) = model.pick(index) else {
                    continue;
                };
                let buffer = model.buffers.get_mut(&id).unwrap();
                match locked(|| ranges.existing(buffer.offset)) {
                    Ok(existing) => take_back(buffer, existing),
                    Err(err) => {
                        assert_eq!(err, ENOENT);
                        assert_eq!(buffer.allocated, None);
                    }
                }
            }
            Op::Release(index) => {
                let Some(id) = model.pick(index) else {
                    continue;
                };
                release(&mut ranges, &mut model, id);
            }
            Op::Probe(index) => {
                let offset = index.index(size + PAGE_SIZE);
                if model.at(offset).is_none() {
                    assert_eq!(locked(|| ranges.existing(offset)).err(), Some(ENOENT));
                }
            }
            Op::Trim => {
                let memory = locked(|| ranges.trim());
                assert_eq!(memory.is_some(), model.buffers.is_empty());
            }
            Op::Drain => {
                while let Some(existing) = locked(|| ranges.take_next()) {
                    let id = model.at(existing.offset).unwrap();
                    let buffer = model.buffers.get_mut(&id).unwrap();
                    take_back(buffer, existing);
                    release(&mut ranges, &mut model, id);
                }
                assert!(model.buffers.values().all(|b| b.allocated.is_none()));
            }
        }

        assert_eq!(ranges.count(), model.buffers.len());
        let with_data = model.buffers.values().filter(|b| b.allocated == Some(true));
        assert_eq!(Rc::strong_count(&data), with_data.count() + 1);
    }

    let mut buffers: Vec<_> = model.buffers.values().collect();
    buffers.sort_by_key(|buffer| buffer.offset);
    assert!(ranges
        .iter()
        .map(|b| b.offset)
        .eq(buffers.iter().map(|b| b.offset)));
    drop(ranges);
    assert_eq!(Rc::strong_count(&data), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn ranges_do_as_the_model(pages in 1..12_usize, ops in vec(op(), 1..400)) {
        run(pages, &ops);
    }

    #[test]
    fn oneway_does_as_a_walk(
        pages in 1..64_usize,
        ops in vec((any::<bool>(), any::<Index>(), 1..600_usize, 0..6_i32), 1..400),
    ) {
        let size = pages * PAGE_SIZE;
        let mut oneway = Oneway::new(size);
        let mut buffers = Vec::new();
        for (adds, index, units, pid) in ops {
            let used: usize = buffers.iter().map(|&(bytes, _)| bytes).sum();
            prop_assert_eq!(oneway.free_space(), size / 2 - used);
            if adds || buffers.is_empty() {
                // Half of them small.
                let bytes = UNIT * if units % 2 == 0 { units } else { 1 + units % 16 };
                let charged = charge(&mut oneway, bytes, pid);
                if used + bytes > size / 2 {
                    prop_assert_eq!(charged, Err(ENOSPC));
                    continue;
                }
                buffers.push((bytes, pid));
                let of_pid = || buffers.iter().filter(|buffer| buffer.1 == pid);
                let low = size / 2 - used - bytes < size / 10;
                let many = of_pid().count() > 50;
                let much = of_pid().map(|buffer| buffer.0).sum::<usize>() > size / 4;
                prop_assert_eq!(charged, Ok(low && (many || much)));
            } else {
                let (bytes, pid) = buffers.swap_remove(index.index(buffers.len()));
                let _memory = locked(|| oneway.uncharge(bytes, pid));
            }
        }
    }
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
    // Two allocations for each block: 2 slots, and 9 times the double; one slot more for the rest.
    assert_eq!(failures, 2 * 10 + 2 * 10);
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
                ours.release(i, |a, buffer| drop(a.release(buffer.id).ok().unwrap()));
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
