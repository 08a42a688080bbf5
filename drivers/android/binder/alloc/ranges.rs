// SPDX-License-Identifier: GPL-2.0

//! Which bytes of a mapping are taken.
//!
//! A mapping is cut into ranges without gaps between them. A range is either free or a buffer.
//! [`Ranges`] knows no page, no lock and no memcg: its owner has it under a lock, and learns from
//! it which pages a buffer needs and which pages no buffer needs any more.
//!
//! A new buffer gets the low end of the smallest free range that it fits into: best fit, as
//! upstream. Free ranges are found by size, in a bitwise trie whose nodes are the free ranges
//! themselves, and buffers are found by offset, in the hash table of [`Slots`]. What is done takes
//! a bounded time, however many buffers there are:
//!
//! - the trie is at most as deep as a size has bits, that is, 20 levels for 4 MiB of 8-byte units;
//! - the buckets of the hash table are as many as there have been ranges at a time, so that the
//!   offsets that share a bucket, each used or not, are about as many as there are units for each
//!   range: a sender that chooses sizes for the purpose makes chains of a few hundred at worst;
//! - neighbours are linked, so that merging looks at two ranges.
//!
//! To give a buffer to userspace, and thus let it be found, takes no lock: it is in the hash table
//! from the start, but can't be had from there as long as the kernel holds what goes with it.
//!
//! A segregated fit saves the few levels of the trie, but is no best fit unless it searches lists
//! of any length, and needs hundreds of bytes for the heads of these lists with the first buffer.

use core::{
    cell::Cell,
    ops::{
        ControlFlow,
        Range as IndexRange, //
    }, //
};

use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    task::Pid, //
};

use super::slots::{
    self,
    Data,
    Held,
    Keyed,
    Slot,
    Slots,
    NONE, //
};

/// What a buffer's size and address are multiples of; also the least size, so that each buffer has
/// an address of its own.
const ALIGN: usize = size_of::<usize>();

/// How many slots [`Ranges::take_next`] looks at.
const LOOK: u32 = 256;

/// Memory for more ranges, see [`Ranges::grow`].
pub(super) type Grown<T> = slots::Grown<Range, Data<T>>;

/// Why a buffer can't be reserved, see [`Ranges::reserve`].
pub(super) type ReserveError<T> = slots::Refused<Range, Data<T>>;

/// What a buffer consists of, in bytes, one part after the other. Each begins at a multiple of the
/// pointer size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) data: usize,
    /// The offsets of the objects in the data.
    pub(crate) offsets: usize,
    /// What objects refer to, and the sender's security context.
    pub(crate) extra: usize,
}

impl Sizes {
    /// The size of the buffer: a multiple of the pointer size, and not 0. `None` if that overflows.
    pub(super) fn total(self) -> Option<usize> {
        let data = self.data.checked_next_multiple_of(ALIGN)?;
        let offsets = self.offsets.checked_next_multiple_of(ALIGN)?;
        let extra = self.extra.checked_next_multiple_of(ALIGN)?;
        let total = data.checked_add(offsets)?.checked_add(extra)?;
        Some(total.max(ALIGN))
    }
}

/// What the sender says about a buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Meta {
    /// As they were asked for: their sum, each rounded up, is the size of the buffer.
    pub(super) sizes: Sizes,
    pub(super) debug_id: u32,
    pub(super) pid: Pid,
    pub(super) is_oneway: bool,
}

/// Names a buffer, from when it is reserved until it is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Id(u32);

/// A buffer that the kernel has for itself: a new one, or one taken back from userspace.
pub(super) struct Reserved<T> {
    pub(super) id: Id,
    pub(super) offset: usize,
    pub(super) size: usize,
    pub(super) debug_id: u32,
    /// When this leaves, userspace has the buffer, and may free it.
    pub(super) data: Held<T>,
}

/// What is left of a buffer.
pub(super) struct Released<T> {
    pub(super) size: usize,
    pub(super) meta: Meta,
    /// The pages that the buffer touched and that no other buffer touches.
    pub(super) pages: IndexRange<usize>,
    /// To be dropped outside the lock.
    pub(super) memory: Option<Grown<T>>,
}

/// A buffer as the debug files show it.
pub(super) struct Buffer {
    pub(super) offset: usize,
    pub(super) size: usize,
    pub(super) meta: Meta,
    /// Whether userspace has it.
    pub(super) is_allocated: bool,
}

/// How much of the mapping is taken, and by how many buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) used: usize,
    pub(super) buffers: usize,
    pub(super) free: usize,
    pub(super) free_ranges: usize,
    /// The size of the largest free range.
    pub(super) largest_free: usize,
}

/// What a range is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    /// A buffer that can be found by its offset.
    Listed,
    /// A buffer that was taken back from userspace.
    TakenBack,
}

/// Place of a free range in the trie; or, of a buffer, what its sender says of it.
///
/// A range is one or the other, and there may be hundreds of thousands.
struct Node {
    /// Or the sender's pid.
    parent: Cell<u32>,
    /// Or the debug id, and the size of the data.
    child: [Cell<u32>; 2],
    /// Neighbours in the list of ranges of the same size. Only the first one is in the trie.
    ///
    /// Or the size of the offsets, in a buffer.
    prev_same: Cell<u32>,
    next_same: Cell<u32>,
}

/// A part of the mapping: free, or a buffer.
pub(super) struct Range {
    offset: Cell<u32>,
    size: Cell<u32>,
    /// Neighbours in the mapping.
    prev: Cell<u32>,
    next: Cell<u32>,
    node: Node,
    /// How many ranges are above it in the trie. Has a meaning only while the range is free.
    level: Cell<u8>,
    state: Cell<State>,
    /// These have a meaning only while the range is a buffer.
    is_oneway: Cell<bool>,
    /// Whether all of its parts are empty, so that the unit that it lies on is none of them.
    is_empty: Cell<bool>,
}

impl Range {
    fn is_free(&self) -> bool {
        self.state.get() == State::Free
    }

    /// The size, if it is free; 0 for a buffer.
    fn free_size(&self) -> u32 {
        if self.is_free() {
            self.size.get()
        } else {
            0
        }
    }

    /// The parts of a buffer.
    fn sizes(&self) -> Sizes {
        let data = self.node.child[1].get() as usize;
        let offsets = self.node.prev_same.get() as usize;
        let extra = if self.is_empty.get() {
            0
        } else {
            let before = data.next_multiple_of(ALIGN) + offsets.next_multiple_of(ALIGN);
            self.size.get() as usize - before
        };
        Sizes {
            data,
            offsets,
            extra,
        }
    }

    fn debug_id(&self) -> u32 {
        self.node.child[0].get()
    }

    fn set_meta(&self, meta: Meta) {
        self.is_oneway.set(meta.is_oneway);
        self.is_empty.set(meta.sizes == Sizes::default());
        let [debug_id, data] = &self.node.child;
        self.node.parent.set(meta.pid as u32);
        debug_id.set(meta.debug_id);
        data.set(meta.sizes.data as u32);
        self.node.prev_same.set(meta.sizes.offsets as u32);
    }

    fn meta(&self) -> Meta {
        Meta {
            sizes: self.sizes(),
            debug_id: self.debug_id(),
            pid: self.node.parent.get() as Pid,
            is_oneway: self.is_oneway.get(),
        }
    }
}

impl Default for Range {
    fn default() -> Self {
        let none = || Cell::new(NONE);
        Self {
            offset: Cell::new(0),
            size: Cell::new(0),
            prev: none(),
            next: none(),
            node: Node {
                parent: none(),
                child: [none(), none()],
                prev_same: none(),
                next_same: none(),
            },
            level: Cell::new(0),
            state: Cell::new(State::Free),
            is_oneway: Cell::new(false),
            is_empty: Cell::new(false),
        }
    }
}

impl Keyed for Range {
    fn key(&self) -> u32 {
        self.offset.get()
    }
}

/// The ranges of a mapping. `T` is what is kept with each buffer: it belongs to whoever has the
/// buffer reserved, as long as that lasts, and stays what it is while userspace has the buffer.
///
/// The slots of ranges are changed by shared reference, so that several of them can be at hand at a
/// time: each is looked up once.
///
/// # Invariants
///
/// Either there are no slots, and the whole mapping is free, or:
///
/// - The slots in use, linked by `prev` and `next` from slot `first` on, are in address order and
///   cover the mapping. There are never two free ranges next to each other.
/// - `count` slots have buffers, of `used` bytes together, and `free` slots have free ranges. Those
///   buffers that are listed are linked in the hash table. Userspace has
///   those whose data was left; they are listed.
/// - There is no [`Held`] for a slot without a buffer, nor was its data left.
/// - The slots with free ranges are in the trie at `root`, or in the list of one in the trie that
///   has the same size. A range at level `n` of the trie has the same first `n` bits in its size as
///   all ranges in the subtree below it; the next bit tells on which side each of them is.
pub(super) struct Ranges<T> {
    slots: Slots<Range, Data<T>>,
    size: u32,
    /// How many leading zeroes `size` has.
    shift: u8,
    first: Cell<u32>,
    root: Cell<u32>,
    count: u32,
    used: u32,
    free: Cell<u32>,
    /// The slots that [`Ranges::take_next`] is done with.
    drained: u32,
}

impl<T> Ranges<T> {
    /// Ranges for a mapping of `size` bytes: less than 4 GiB, and a multiple of the page size.
    ///
    /// Takes no memory until there is a buffer.
    pub(super) const fn new(size: usize) -> Self {
        debug_assert!(size <= u32::MAX as usize);
        // INVARIANT: There are no slots.
        Self {
            slots: Slots::new(),
            size: size as u32,
            shift: (size as u32).leading_zeros() as u8,
            first: Cell::new(NONE),
            root: Cell::new(NONE),
            count: 0,
            used: 0,
            free: Cell::new(0),
            drained: 0,
        }
    }

    /// The size of the mapping.
    pub(super) fn size(&self) -> usize {
        self.size as usize
    }

    /// Whether there is no memory for ranges.
    #[cfg(CONFIG_ANDROID_BINDER_RUST_KUNIT_TEST)]
    pub(super) fn is_bare(&self) -> bool {
        self.slots.is_new()
    }

    /// The number of buffers.
    pub(super) fn count(&self) -> usize {
        self.count as usize
    }

    /// How much is taken, and what is left.
    pub(super) fn usage(&self) -> Usage {
        let used = self.used as usize;
        let free = self.size() - used;
        let (free_ranges, largest_free) = if self.slots.is_new() {
            (1, free)
        } else {
            (self.free.get() as usize, self.largest_free())
        };
        Usage {
            used,
            buffers: self.count(),
            free,
            free_ranges,
            largest_free,
        }
    }

    /// Reserves a buffer of `size` bytes for the kernel: a multiple of the pointer size, and not 0.
    ///
    /// # Errors
    ///
    /// [`ReserveError::NoSpace`] if no free range is large enough. [`ReserveError::NeedGrow`] if
    /// there is no memory for the range that remains: try again after [`Ranges::grow`].
    #[inline]
    pub(super) fn reserve(
        &mut self,
        size: usize,
        meta: Meta,
    ) -> Result<Reserved<T>, ReserveError<T>> {
        debug_assert!(size != 0 && size % align_of::<usize>() == 0);
        if size > self.size() {
            return Err(ReserveError::NoSpace);
        }
        if self.slots.is_new() {
            return Err(ReserveError::NeedGrow(self.slots.request()));
        }

        let len = size as u32;
        let free = self.best_fit(len).ok_or(ReserveError::NoSpace)?;
        let range = if free.size.get() == len {
            self.remove_free(free);
            free
        } else {
            let Some(new) = self.slots.take() else {
                return Err(ReserveError::NeedGrow(self.slots.request()));
            };
            self.cut(free, len, new);
            new
        };
        // SAFETY: By the type invariants, as it isn't a buffer yet.
        let data = unsafe { self.slots.hold_new(range.index()) };
        let (id, offset) = (Id(range.index()), range.offset.get());
        range.state.set(State::Listed);
        range.set_meta(meta);
        self.slots.link(range);
        self.count += 1;
        self.used += len;
        Ok(Reserved {
            id,
            offset: offset as usize,
            size,
            debug_id: meta.debug_id,
            data,
        })
    }

    /// Adds memory for ranges. Returns what the caller must drop outside the lock.
    pub(super) fn grow(&mut self, grown: Grown<T>) -> Grown<T> {
        let old = self.slots.grow(grown);
        if self.slots.is_new() {
            if let Some(first) = self.slots.take() {
                // INVARIANT: There is one free range, which covers all.
                first.offset.set(0);
                first.size.set(self.size);
                first.prev.set(NONE);
                first.next.set(NONE);
                self.first.set(first.index());
                self.insert_free(first);
            }
        }
        old
    }

    /// Lets a buffer be found again that was taken back from userspace, so that its data can leave
    /// for there. A new buffer needs no such thing.
    ///
    /// # Errors
    ///
    /// `ENOENT` if it wasn't taken back.
    pub(super) fn list_again(&mut self, id: Id) -> Result {
        let range = self.buffer(id).ok_or(ENOENT)?;
        if range.state.get() != State::TakenBack {
            return Err(ENOENT);
        }
        range.state.set(State::Listed);
        self.slots.link(range);
        Ok(())
    }

    /// Takes the buffer that begins at `offset` back from userspace: it is reserved again.
    ///
    /// # Errors
    ///
    /// `ENOENT` if there is no buffer that begins there, or it was taken back. `EPERM` if there is,
    /// but userspace hasn't got it yet.
    #[inline]
    pub(super) fn existing(&mut self, offset: usize) -> Result<Reserved<T>> {
        let key = u32::try_from(offset).map_err(|_| ENOENT)?;
        match self.slots.unlink_and_hold(key) {
            Some((range, data)) => Ok(taken_back(range, data)),
            None => Err(self.why_not(key)),
        }
    }

    /// Why the buffer at an offset can't be taken back.
    #[cold]
    fn why_not(&self, key: u32) -> Error {
        match self.slots.find(key) {
            Some(_) => EPERM,
            None => ENOENT,
        }
    }

    /// Frees a reserved buffer, with its data.
    ///
    /// # Errors
    ///
    /// `EINVAL` if there is no such buffer.
    ///
    /// # Safety
    ///
    /// `data` must be that of the buffer.
    #[inline(always)]
    pub(super) unsafe fn release(&mut self, id: Id, data: Held<T>) -> Result<Released<T>> {
        let range = self.buffer(id).ok_or(EINVAL)?;
        if range.state.replace(State::Free) == State::Listed {
            self.slots.unlink(range);
        }
        // INVARIANT: There is no `Held` any more.
        let _ = data;

        let (offset, size) = (range.offset.get(), range.size.get());
        let meta = range.meta();
        let (prev, next) = (range.prev.get(), range.next.get());
        let (before, after) = (self.slots.try_get(prev), self.slots.try_get(next));
        let free_before = before.map_or(0, |range| range.free_size());
        let free_after = after.map_or(0, |range| range.free_size());
        let (start, end) = (offset - free_before, offset + size + free_after);
        match after {
            // Most often there is the large one from which buffers are cut off.
            Some(after) if free_before == 0 && free_after != 0 => {
                self.slots.put(range);
                self.join(before, next);
                after.prev.set(prev);
                self.resize_free(after, start, end - start);
            }
            _ => self.merge(range, start..end, free_before, free_after),
        }
        self.count -= 1;
        self.used -= size;

        Ok(Released {
            size: size as usize,
            meta,
            pages: own_pages(offset..offset + size, start..end),
            memory: if self.slots.is_large() {
                self.trim()
            } else {
                None
            },
        })
    }

    /// The parts of a buffer.
    #[cold]
    pub(super) fn sizes(&self, id: Id) -> Option<Sizes> {
        Some(self.buffer(id)?.sizes())
    }

    /// The pages that a buffer touches and that no other buffer touches: those that
    /// [`Ranges::release`] would tell.
    #[cold]
    pub(super) fn pages(&self, id: Id) -> IndexRange<usize> {
        let Some(range) = self.buffer(id) else {
            return 0..0;
        };
        let free_size = |index| {
            self.slots
                .try_get(index)
                .map_or(0, |range| range.free_size())
        };
        let (start, end) = (range.offset.get(), range.offset.get() + range.size.get());
        let free = start - free_size(range.prev.get())..end + free_size(range.next.get());
        own_pages(start..end, free)
    }

    /// Makes a range free, along with its neighbours where these are free: that is `all`.
    #[inline(never)]
    fn merge(
        &self,
        range: Slot<'_, Range>,
        all: IndexRange<u32>,
        free_before: u32,
        free_after: u32,
    ) {
        let (mut prev, mut next) = (range.prev.get(), range.next.get());
        // The larger one of two stays where it is in the trie, if that can be.
        let stays = if free_before > free_after { prev } else { next };
        match self.slots.try_get(stays) {
            Some(stays) if free_before + free_after != 0 => {
                if free_after != 0 && stays.index() != next {
                    next = self.absorb(next).next.get();
                }
                if free_before != 0 && stays.index() != prev {
                    prev = self.absorb(prev).prev.get();
                }
                self.slots.put(range);
                self.join(self.slots.try_get(prev), next);
                if let Some(next) = self.slots.try_get(next) {
                    next.prev.set(prev);
                }
                self.resize_free(stays, all.start, all.end - all.start);
            }
            _ => self.insert_free(range),
        }
    }

    /// Gives the slot of a free range back, which becomes part of another.
    fn absorb(&self, index: u32) -> Slot<'_, Range> {
        let range = self.slots.get(index);
        self.remove_free(range);
        self.slots.put(range);
        range
    }

    /// Gives all memory away if there is no buffer. Returns what the caller must drop outside the
    /// lock.
    pub(super) fn trim(&mut self) -> Option<Grown<T>> {
        if self.count != 0 {
            return None;
        }
        // INVARIANT: There are no slots any more.
        self.first.set(NONE);
        self.root.set(NONE);
        self.free.set(0);
        Some(self.slots.vacate())
    }

    /// Returns a buffer that userspace has, and reserves it. Used when userspace is gone.
    ///
    /// Called until it breaks with [`None`], it gets to all buffers that userspace had at the first
    /// call. The order is any. It looks at so many slots and no more: there may be few buffers
    /// where there once were many. If it continues, call again after others had the lock.
    pub(super) fn take_next(&mut self) -> ControlFlow<Option<Reserved<T>>> {
        let end = self.slots.end().min(self.drained.saturating_add(LOOK));
        while self.drained < end {
            let index = self.drained;
            self.drained += 1;
            // Only the data of a buffer can have been left.
            if let Some(data) = self.slots.hold(index) {
                let range = self.slots.get(index);
                self.slots.unlink(range);
                return ControlFlow::Break(Some(taken_back(range, data)));
            }
        }
        if self.drained < self.slots.end() {
            return ControlFlow::Continue(());
        }
        self.drained = 0;
        ControlFlow::Break(None)
    }

    /// The buffers in address order.
    #[cfg(CONFIG_ANDROID_BINDER_RUST_KUNIT_TEST)]
    pub(super) fn iter(&self) -> impl Iterator<Item = Buffer> + '_ {
        let first = self.first.get();
        core::iter::successors((first != NONE).then_some(first), |&index| {
            let next = self.slots[index].next.get();
            (next != NONE).then_some(next)
        })
        .map(|index| (index, &self.slots[index]))
        .filter(|(_, range)| !range.is_free())
        .map(|(index, range)| Buffer {
            offset: range.offset.get() as usize,
            size: range.size.get() as usize,
            meta: range.meta(),
            is_allocated: self.slots.is_left(index),
        })
    }

    /// The next buffers in address order, from byte `from` on, which is where to go on after that.
    ///
    /// Each call looks at a bounded number of ranges, and each buffer that is there from the first
    /// call to the last is found once. There may be fewer than `N`, or none, before the end.
    pub(super) fn next_buffers<const N: usize>(
        &self,
        from: &mut Option<usize>,
    ) -> [Option<Buffer>; N] {
        let mut batch = [const { None }; N];
        let mut places = batch.iter_mut();
        let Some(start) = from.take().filter(|&start| start < self.size()) else {
            return batch;
        };
        let mut next = if start == 0 {
            self.slots.try_get(self.first.get())
        } else {
            // The buffer that was to come next begins here. If it has gone, the next one that can
            // be found is behind it.
            let mut at = start..self.size().min(start + LOOK as usize * ALIGN);
            let found = at
                .by_ref()
                .step_by(ALIGN)
                .find_map(|offset| self.slots.find(offset as u32));
            if found.is_none() && start + LOOK as usize * ALIGN < self.size() {
                *from = Some(start + LOOK as usize * ALIGN);
            }
            found
        };
        while let Some(range) = next {
            if !range.is_free() {
                let Some(place) = places.next() else {
                    *from = Some(range.offset.get() as usize);
                    break;
                };
                *place = Some(Buffer {
                    offset: range.offset.get() as usize,
                    size: range.size.get() as usize,
                    meta: range.meta(),
                    is_allocated: self.slots.is_left(range.index()),
                });
            }
            next = self.slots.try_get(range.next.get());
        }
        batch
    }

    /// The debug id of the buffer that begins at `offset`.
    pub(super) fn debug_id_at(&self, offset: usize) -> Option<u32> {
        Some(self.slots.find(u32::try_from(offset).ok()?)?.debug_id())
    }

    /// The buffer that has this name, if there is one.
    fn buffer(&self, id: Id) -> Option<Slot<'_, Range>> {
        (id.0 < self.slots.end())
            .then(|| self.slots.get(id.0))
            .filter(|range| !range.is_free())
    }

    /// Cuts `len` bytes off the beginning of the free range `free`, which is larger, and makes them
    /// range `new`.
    #[inline]
    fn cut(&self, free: Slot<'_, Range>, len: u32, new: Slot<'_, Range>) {
        let offset = free.offset.get();
        let prev = free.prev.replace(new.index());
        new.offset.set(offset);
        new.size.set(len);
        new.prev.set(prev);
        new.next.set(free.index());
        self.join(self.slots.try_get(prev), new.index());
        self.resize_free(free, offset + len, free.size.get() - len);
    }

    /// Makes `next` come after `prev` in address order, or first.
    #[inline]
    fn join(&self, prev: Option<Slot<'_, Range>>, next: u32) {
        match prev {
            Some(prev) => prev.next.set(next),
            None => self.first.set(next),
        }
    }
}

/// The pages that `buffer` touches and that no other does, if all is free that it and its
/// neighbours leave: `free`.
#[inline(always)]
fn own_pages(buffer: IndexRange<u32>, free: IndexRange<u32>) -> IndexRange<usize> {
    let (start, end) = (free.start as usize, free.end as usize);
    // A page at the edge of the buffer is its own if nobody else has anything of it.
    let start = (buffer.start as usize / PAGE_SIZE).max(start.div_ceil(PAGE_SIZE));
    let end = (buffer.end as usize)
        .div_ceil(PAGE_SIZE)
        .min(end / PAGE_SIZE);
    start..end.max(start)
}

/// Reserves a buffer that userspace had, and that has just been unlinked.
#[inline]
fn taken_back<T>(range: Slot<'_, Range>, data: Held<T>) -> Reserved<T> {
    range.state.set(State::TakenBack);
    Reserved {
        id: Id(range.index()),
        offset: range.offset.get() as usize,
        size: range.size.get() as usize,
        debug_id: range.debug_id(),
        data,
    }
}

/// The trie of free ranges.
///
/// Sizes are compared from the highest bit that the mapping's own size has. Any range in the trie
/// may stand above smaller and larger ones, as long as they share the bits above its level. So a
/// size may change, within limits, without a change to the trie, also to one that the trie has
/// already.
impl<T> Ranges<T> {
    /// `size` with its first bit, as seen from the root, moved to bit 31.
    fn path(&self, size: u32) -> u32 {
        size << self.shift
    }

    /// The smallest free range of at least `size` bytes.
    #[inline]
    fn best_fit(&self, size: u32) -> Option<Slot<'_, Range>> {
        let mut best = None;
        let mut best_size = u32::MAX;
        let mut path = self.path(size);
        // The last subtree passed by in which all is larger than `size`. What is larger than that
        // is larger than all of it.
        let mut larger = NONE;

        let mut index = self.root.get();
        while let Some(range) = self.slots.try_get(index) {
            let range_size = range.size.get();
            if range_size >= size && range_size < best_size {
                (best, best_size) = (Some(range), range_size);
                if best_size == size {
                    break;
                }
            }
            let [low, high] = &range.node.child;
            index = if path >> 31 == 0 {
                if high.get() != NONE {
                    larger = high.get();
                }
                low.get()
            } else {
                high.get()
            };
            path <<= 1;
        }

        if best_size != size {
            index = larger;
            while let Some(range) = self.slots.try_get(index) {
                let range_size = range.size.get();
                if range_size < best_size {
                    (best, best_size) = (Some(range), range_size);
                }
                let [low, high] = &range.node.child;
                index = if low.get() != NONE { low } else { high }.get();
            }
        }

        // Any but the first one of a list is taken out of it without a change to the trie. The
        // second one was freed last, so that its pages are the most likely ones to be there still.
        let best = best?;
        self.slots.try_get(best.node.next_same.get()).or(Some(best))
    }

    /// The size of the largest free range, 0 if there is none.
    fn largest_free(&self) -> usize {
        let mut largest = 0;
        let mut index = self.root.get();
        while let Some(range) = self.slots.try_get(index) {
            largest = largest.max(range.size.get());
            // All of the high subtree is larger than all of the low one.
            let [low, high] = &range.node.child;
            index = if high.get() != NONE { high } else { low }.get();
        }
        largest as usize
    }

    /// Adds a free range to the trie.
    fn insert_free(&self, range: Slot<'_, Range>) {
        self.free.set(self.free.get() + 1);
        let size = range.size.get();
        let mut path = self.path(size);
        let mut parent = NONE;
        let mut level = 0;
        let (mut prev_same, mut next_same) = (NONE, NONE);

        let mut link = &self.root;
        while let Some(other) = self.slots.try_get(link.get()).map(Slot::into_ref) {
            if other.size.get() == size {
                (parent, level) = (NONE, 0);
                prev_same = link.get();
                next_same = other.node.next_same.replace(range.index());
                if let Some(next) = self.slots.try_get(next_same) {
                    next.node.prev_same.set(range.index());
                }
                break;
            }
            parent = link.get();
            level += 1;
            link = &other.node.child[(path >> 31) as usize];
            path <<= 1;
        }
        if prev_same == NONE {
            link.set(range.index());
        }
        let node = &range.node;
        node.parent.set(parent);
        node.child.iter().for_each(|child| child.set(NONE));
        node.prev_same.set(prev_same);
        node.next_same.set(next_same);
        range.level.set(level);
    }

    /// Changes where a free range is, and its size.
    ///
    /// Most often that is the large one from which buffers are cut off and to which they come back.
    /// It stays where it is in the trie as long as its first bits, which have led there, are the
    /// same.
    #[inline]
    fn resize_free(&self, range: Slot<'_, Range>, offset: u32, size: u32) {
        range.offset.set(offset);
        let is_alone = range.node.prev_same.get() & range.node.next_same.get() == NONE;
        let differ = self.path(range.size.get() ^ size);
        if is_alone && u64::from(differ) << range.level.get() <= u64::from(u32::MAX) {
            range.size.set(size);
        } else {
            self.reinsert_free(range, size);
        }
    }

    #[inline(never)]
    fn reinsert_free(&self, range: Slot<'_, Range>, size: u32) {
        self.remove_free(range);
        range.size.set(size);
        self.insert_free(range);
    }

    /// Removes a free range from the trie.
    fn remove_free(&self, range: Slot<'_, Range>) {
        self.free.set(self.free.get() - 1);
        let node = &range.node;
        let (prev_same, next_same) = (node.prev_same.get(), node.next_same.get());
        let next = self.slots.try_get(next_same);
        if let Some(prev) = self.slots.try_get(prev_same) {
            prev.node.next_same.set(next_same);
            if let Some(next) = next {
                next.node.prev_same.set(prev_same);
            }
        } else if let Some(next) = next {
            next.node.prev_same.set(NONE);
            self.replace(range, Some(next));
        } else {
            let leaf = self.leaf_below(range);
            if leaf.index() != range.index() {
                self.replace(leaf, None);
                self.replace(range, Some(leaf));
            } else {
                self.replace(range, None);
            }
        }
    }

    /// Any range of the subtree at `range` that has none below it.
    fn leaf_below<'a>(&'a self, mut range: Slot<'a, Range>) -> Slot<'a, Range> {
        loop {
            let [low, high] = &range.node.child;
            let child = if low.get() != NONE { low } else { high };
            match self.slots.try_get(child.get()) {
                Some(child) => range = child,
                None => return range,
            }
        }
    }

    /// Puts `new`, which isn't in the trie, or nothing, at the place of `old`.
    fn replace(&self, old: Slot<'_, Range>, new: Option<Slot<'_, Range>>) {
        let new_index = new.map_or(NONE, |range| range.index());
        let parent = old.node.parent.get();
        match self.slots.try_get(parent) {
            None => self.root.set(new_index),
            Some(parent) => {
                let [low, high] = &parent.node.child;
                if high.get() == old.index() { high } else { low }.set(new_index);
            }
        }
        let Some(new) = new else {
            return;
        };
        new.node.parent.set(parent);
        new.level.set(old.level.get());
        for (new_child, child) in new.node.child.iter().zip(&old.node.child) {
            new_child.set(child.get());
            if let Some(child) = self.slots.try_get(child.get()) {
                child.node.parent.set(new_index);
            }
        }
    }
}

#[cfg(CONFIG_ANDROID_BINDER_RUST_KUNIT_TEST)]
#[kunit_tests(rust_binder_ranges)]
mod tests {
    use super::*;

    const UNIT: usize = align_of::<usize>();

    /// What the ranges should be: the buffers, in address order, and what the kernel has of each.
    struct Model<T> {
        size: usize,
        buffers: KVec<Buffer>,
        reserved: KVec<Option<Reserved<T>>>,
    }

    impl<T> Model<T> {
        fn new(size: usize, capacity: usize) -> Result<Self> {
            Ok(Self {
                size,
                buffers: KVec::with_capacity(capacity, GFP_KERNEL)?,
                reserved: KVec::with_capacity(capacity, GFP_KERNEL)?,
            })
        }

        /// The gaps between the buffers, as offset and size.
        fn gaps(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
            (0..=self.buffers.len()).map(|i| {
                let start = match i {
                    0 => 0,
                    i => self.buffers[i - 1].offset + self.buffers[i - 1].size,
                };
                let end = self.buffers.get(i).map_or(self.size, |next| next.offset);
                (start, end - start)
            })
        }

        /// The size of the smallest gap that `size` fits into.
        fn best_fit(&self, size: usize) -> Option<usize> {
            self.gaps()
                .map(|gap| gap.1)
                .filter(|&gap| gap >= size)
                .min()
        }

        fn touched(&self, page: usize) -> bool {
            self.buffers.iter().any(|buffer| {
                buffer.offset / PAGE_SIZE <= page
                    && page < (buffer.offset + buffer.size).div_ceil(PAGE_SIZE)
            })
        }

        /// Adds what has been reserved. Returns whether it was a right place.
        fn add(&mut self, reserved: Reserved<T>, size: usize, meta: Meta) -> Result<bool> {
            let offset = reserved.offset;
            let best = self.best_fit(size);
            let right = self
                .gaps()
                .any(|(start, gap)| start == offset && Some(gap) == best);
            let i = self
                .buffers
                .iter()
                .take_while(|b| b.offset < offset)
                .count();
            let buffer = Buffer {
                offset,
                size,
                meta,
                is_allocated: false,
            };
            self.buffers
                .insert_within_capacity(i, buffer)
                .map_err(|_| ENOSPC)?;
            self.reserved
                .insert_within_capacity(i, Some(reserved))
                .map_err(|_| ENOSPC)?;
            Ok(right)
        }

        /// Releases a buffer that is reserved. Returns whether the answer was right.
        fn release(&mut self, i: usize, ranges: &mut Ranges<T>) -> Result<bool> {
            let reserved = self.reserved.remove(i)?.ok_or(EPERM)?;
            let (sizes, pages) = (ranges.sizes(reserved.id), ranges.pages(reserved.id));
            let released = release(ranges, reserved)?;
            let buffer = self.buffers.remove(i)?;
            let touched =
                buffer.offset / PAGE_SIZE..(buffer.offset + buffer.size).div_ceil(PAGE_SIZE);
            Ok(released.size == buffer.size
                && released.meta == buffer.meta
                && sizes == Some(buffer.meta.sizes)
                && pages == released.pages
                && touched.start <= released.pages.start
                && released.pages.end <= touched.end.max(released.pages.start)
                && touched
                    .into_iter()
                    .all(|page| released.pages.contains(&page) != self.touched(page)))
        }

        fn agrees(&self, ranges: &Ranges<T>) -> bool {
            ranges.count() == self.buffers.len()
                && ranges.iter().count() == self.buffers.len()
                && ranges.iter().zip(self.buffers.iter()).all(|(a, b)| {
                    a.offset == b.offset
                        && a.size == b.size
                        && a.meta == b.meta
                        && a.is_allocated == b.is_allocated
                })
        }
    }

    /// Some parts of a buffer of `size` bytes, of which the data takes `units` and a bit.
    fn parts(size: usize, units: usize) -> Sizes {
        let rest = size - units * UNIT;
        let offsets = rest / UNIT / 2 * UNIT;
        let sizes = Sizes {
            data: (units * UNIT).saturating_sub(units % UNIT),
            offsets,
            extra: rest - offsets,
        };
        assert_eq!(sizes.total(), Some(size));
        sizes
    }

    /// Whether the invariants hold.
    fn is_sound<T>(ranges: &Ranges<T>) -> bool {
        let slots = &ranges.slots;
        let (mut index, mut prev, mut offset) = (ranges.first.get(), NONE, 0);
        let mut usage = Usage {
            used: 0,
            buffers: 0,
            free: 0,
            free_ranges: 0,
            largest_free: 0,
        };
        if index == NONE {
            usage.free = ranges.size();
            usage.free_ranges = 1;
            usage.largest_free = ranges.size();
            return slots.is_new() && ranges.root.get() == NONE && ranges.usage() == usage;
        }
        while let Some(range) = slots.try_get(index) {
            let size = range.size.get();
            if range.offset.get() != offset || size == 0 || range.prev.get() != prev {
                return false;
            }
            let found = slots.find(offset).map(|range| range.index());
            let right = match range.state.get() {
                State::Free => {
                    found.is_none()
                        && slots.try_get(prev).is_none_or(|prev| !prev.is_free())
                        && !slots.is_left(index)
                        && is_in_trie(ranges, index)
                }
                State::Listed => found == Some(index),
                State::TakenBack => found.is_none() && !slots.is_left(index),
            };
            if !right {
                return false;
            }
            if range.is_free() {
                usage.free += size as usize;
                usage.free_ranges += 1;
                usage.largest_free = usage.largest_free.max(size as usize);
            } else {
                usage.used += size as usize;
                usage.buffers += 1;
            }
            offset += size;
            (prev, index) = (index, range.next.get());
        }
        offset == ranges.size && usage == ranges.usage()
    }

    /// Whether a free range is where it can be found.
    fn is_in_trie<T>(ranges: &Ranges<T>, index: u32) -> bool {
        let mut at = index;
        let slots = &ranges.slots;
        let mut range = slots.get(index);
        let size = range.size.get();
        while let Some(prev) = slots.try_get(range.node.prev_same.get()) {
            if prev.node.next_same.get() != at || prev.size.get() != size {
                return false;
            }
            (at, range) = (range.node.prev_same.get(), prev);
        }
        while let Some(parent) = slots.try_get(range.node.parent.get()) {
            let level = u32::from(parent.level.get());
            let side = ranges.path(size) << level >> 31;
            let is_below = parent.node.child[side as usize].get() == at;
            if !is_below || u32::from(range.level.get()) != level + 1 {
                return false;
            }
            (at, range) = (range.node.parent.get(), parent);
        }
        at == ranges.root.get() && range.level.get() == 0
    }

    fn reserve<T: Default>(ranges: &mut Ranges<T>, size: usize, meta: Meta) -> Result<Reserved<T>> {
        loop {
            match ranges.reserve(size, meta) {
                Ok(reserved) => return Ok(reserved),
                Err(ReserveError::NoSpace) => return Err(ENOSPC),
                Err(ReserveError::NeedGrow(request)) => {
                    drop(ranges.grow(request.alloc(GFP_KERNEL)?))
                }
            }
        }
    }

    fn release<T>(ranges: &mut Ranges<T>, reserved: Reserved<T>) -> Result<Released<T>> {
        // SAFETY: The data is that of the buffer: both are of one `Reserved`.
        unsafe { ranges.release(reserved.id, reserved.data) }
    }

    /// Gives a buffer to userspace.
    fn commit<T>(ranges: &mut Ranges<T>, reserved: Reserved<T>) {
        // It fails for a new buffer, which is listed.
        let _ = ranges.list_again(reserved.id);
        // SAFETY: The slots are there as long as there is a buffer.
        unsafe { reserved.data.leave() };
    }

    fn take_next<T>(ranges: &mut Ranges<T>) -> Option<Reserved<T>> {
        loop {
            if let ControlFlow::Break(existing) = ranges.take_next() {
                return existing;
            }
        }
    }

    fn plain<T: Default>(ranges: &mut Ranges<T>, size: usize) -> Result<Reserved<T>> {
        reserve(ranges, size, Meta::default())
    }

    /// Pseudo-random numbers: xorshift.
    struct Random(u64);

    impl Random {
        fn below(&mut self, n: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 >> 16) as usize % n
        }
    }

    /// The offsets of all buffers, a few at a time; `f` is called in between.
    fn offsets(
        ranges: &mut Ranges<()>,
        mut f: impl FnMut(&mut Ranges<()>, usize) -> Result,
    ) -> Result<KVec<usize>> {
        let mut offsets = KVec::new();
        let mut from = Some(0);
        while from.is_some() {
            for buffer in ranges.next_buffers::<3>(&mut from).iter().flatten() {
                offsets.push(buffer.offset, GFP_KERNEL)?;
            }
            f(ranges, from.unwrap_or(0))?;
        }
        Ok(offsets)
    }

    #[test]
    fn are_listed_a_few_at_a_time() -> Result {
        const COUNT: usize = 3000;
        let mut ranges = Ranges::<()>::new(16 * PAGE_SIZE);
        assert!(offsets(&mut ranges, |_, _| Ok(()))?.is_empty());
        for _ in 0..COUNT {
            let buffer = reserve(&mut ranges, UNIT, Meta::default())?;
            commit(&mut ranges, buffer);
        }
        let all = offsets(&mut ranges, |_, _| Ok(()))?;
        assert_eq!(all.len(), COUNT);
        assert!(all.iter().enumerate().all(|(i, &at)| at == i * UNIT));

        // The one that comes next goes meanwhile, and once many at a time.
        let mut calls = 0;
        let some = offsets(&mut ranges, |ranges, next| {
            calls += 1;
            let gone = if calls == 100 { COUNT / 3 } else { 1 };
            for at in (next..next + gone * UNIT).step_by(UNIT) {
                if let Ok(buffer) = ranges.existing(at) {
                    // SAFETY: The data is that of the buffer.
                    unsafe { ranges.release(buffer.id, buffer.data)? };
                }
            }
            Ok(())
        })?;
        assert!(some.windows(2).all(|pair| pair[0] < pair[1]));
        // What is there in the end was there all the time.
        let mut found = some.iter();
        assert!(ranges
            .iter()
            .all(|buffer| found.any(|&at| at == buffer.offset)));
        assert!(ranges.count() > COUNT / 3 && ranges.count() < COUNT);
        Ok(())
    }

    #[test]
    fn remembers_its_parts() -> Result {
        let mut ranges = Ranges::<usize>::new(PAGE_SIZE);
        for (sizes, total) in [
            ([0, 0, 0], UNIT),
            ([1, 0, 0], UNIT),
            ([0, UNIT, 0], UNIT),
            ([0, 0, UNIT], UNIT),
            ([UNIT + 1, UNIT, UNIT], 4 * UNIT),
            ([100, 0, 24], 128),
        ] {
            let [data, offsets, extra] = sizes;
            let sizes = Sizes {
                data,
                offsets,
                extra,
            };
            assert_eq!(sizes.total(), Some(total));
            let meta = Meta {
                sizes,
                debug_id: 1,
                ..Meta::default()
            };
            let reserved = reserve(&mut ranges, total, meta)?;
            assert!(ranges.iter().all(|buffer| buffer.meta == meta));
            // SAFETY: The data is that of the buffer.
            let released = unsafe { ranges.release(reserved.id, reserved.data)? };
            assert_eq!(released.meta, meta);
        }
        for [data, offsets, extra] in [
            [usize::MAX, 0, 0],
            [0, usize::MAX, 0],
            [0, 0, usize::MAX],
            [usize::MAX / 2, usize::MAX / 2, UNIT],
        ] {
            let sizes = Sizes {
                data,
                offsets,
                extra,
            };
            assert_eq!(sizes.total(), None);
        }
        Ok(())
    }

    #[test]
    fn takes_no_memory_before_the_first_buffer() {
        let mut ranges = Ranges::<()>::new(4 * PAGE_SIZE);
        assert_eq!(ranges.size(), 4 * PAGE_SIZE);
        assert_eq!(ranges.count(), 0);
        assert_eq!(ranges.iter().count(), 0);
        assert_eq!(ranges.existing(0).err(), Some(ENOENT));
        assert_eq!(ranges.list_again(Id(0)), Err(ENOENT));
        assert_eq!(ranges.list_again(Id(0)), Err(ENOENT));
        assert_eq!(ranges.list_again(Id(NONE)), Err(ENOENT));
        assert!(take_next(&mut ranges).is_none());
        // What will never fit doesn't ask for memory.
        let reserved = ranges.reserve(4 * PAGE_SIZE + UNIT, Meta::default());
        assert!(matches!(reserved, Err(ReserveError::NoSpace)));
        let reserved = ranges.reserve(UNIT, Meta::default());
        assert!(matches!(reserved, Err(ReserveError::NeedGrow(_))));
    }

    #[test]
    fn late_memory_comes_back() -> Result {
        let mut ranges = Ranges::<()>::new(PAGE_SIZE);
        let (Err(ReserveError::NeedGrow(first)), Err(ReserveError::NeedGrow(second))) = (
            ranges.reserve(UNIT, Meta::default()),
            ranges.reserve(UNIT, Meta::default()),
        ) else {
            return Err(EINVAL);
        };
        drop(ranges.grow(first.alloc(GFP_KERNEL)?));
        plain(&mut ranges, UNIT)?;
        drop(ranges.grow(second.alloc(GFP_KERNEL)?));
        assert!(is_sound(&ranges));
        assert_eq!(ranges.count(), 1);
        Ok(())
    }

    #[test]
    fn uses_all_space() -> Result {
        let mut ranges = Ranges::<()>::new(2 * PAGE_SIZE);
        let all = plain(&mut ranges, 2 * PAGE_SIZE)?;
        assert_eq!(all.offset, 0);
        assert_eq!(plain(&mut ranges, UNIT).err(), Some(ENOSPC));
        assert_eq!(release(&mut ranges, all)?.pages, 0..2);

        let half = plain(&mut ranges, PAGE_SIZE)?;
        assert_eq!(plain(&mut ranges, PAGE_SIZE + UNIT).err(), Some(ENOSPC));
        let other = plain(&mut ranges, PAGE_SIZE)?;
        assert_eq!(plain(&mut ranges, UNIT).err(), Some(ENOSPC));
        release(&mut ranges, half)?;
        release(&mut ranges, other)?;
        assert_eq!(plain(&mut ranges, 2 * PAGE_SIZE)?.offset, 0);
        assert!(is_sound(&ranges));
        Ok(())
    }

    #[test]
    fn fits_best() -> Result {
        let mut ranges = Ranges::<()>::new(8 * PAGE_SIZE);
        // Gaps of 5, 3, 9 and 3 units, and the rest, with a buffer of one unit after each.
        let mut gaps = KVec::with_capacity(4, GFP_KERNEL)?;
        for units in [5, 3, 9, 3] {
            gaps.push(plain(&mut ranges, units * UNIT)?, GFP_KERNEL)?;
            plain(&mut ranges, UNIT)?;
        }
        let rest = plain(&mut ranges, UNIT)?.offset + UNIT;
        let mut offsets = [0; 4];
        for (offset, gap) in offsets.iter_mut().zip(gaps) {
            *offset = gap.offset;
            release(&mut ranges, gap)?;
        }
        assert!(is_sound(&ranges));

        assert_eq!(plain(&mut ranges, 4 * UNIT)?.offset, offsets[0]);
        // The most recently freed one of two that fit as well.
        assert_eq!(plain(&mut ranges, 3 * UNIT)?.offset, offsets[3]);
        assert_eq!(plain(&mut ranges, 2 * UNIT)?.offset, offsets[1]);
        assert_eq!(plain(&mut ranges, 10 * UNIT)?.offset, rest);
        assert_eq!(plain(&mut ranges, 6 * UNIT)?.offset, offsets[2]);
        assert!(is_sound(&ranges));
        Ok(())
    }

    #[test]
    fn changes_hands() -> Result {
        let mut ranges = Ranges::new(PAGE_SIZE);
        let meta = Meta {
            sizes: parts(4 * UNIT, 1),
            debug_id: 7,
            pid: 42,
            is_oneway: true,
        };
        plain(&mut ranges, UNIT)?;
        let mut reserved = reserve(&mut ranges, 4 * UNIT, meta)?;
        let Reserved { id, offset, .. } = reserved;
        let other = Id(id.0 + 1);
        // SAFETY: The slots are there as long as there is a buffer.
        unsafe { *reserved.data.get_mut() = 1 };

        // Only as a whole, and only while it is with userspace.
        assert_eq!(ranges.existing(offset).err(), Some(EPERM));
        assert_eq!(ranges.list_again(other), Err(ENOENT));
        assert_eq!(ranges.list_again(id), Err(ENOENT));
        // SAFETY: As above.
        unsafe { reserved.data.leave() };
        assert_eq!(ranges.list_again(id), Err(ENOENT));
        assert_eq!(ranges.existing(offset + UNIT).err(), Some(ENOENT));
        assert_eq!(ranges.existing(offset - 1).err(), Some(ENOENT));
        let far = offset | 1 << (usize::BITS - 1);
        assert_eq!(ranges.existing(far).err(), Some(ENOENT));

        let existing = ranges.existing(offset)?;
        assert_eq!(existing.id, id);
        assert_eq!(existing.offset, offset);
        assert_eq!(existing.size, 4 * UNIT);
        assert_eq!(existing.debug_id, 7);
        // SAFETY: As above.
        assert_eq!(unsafe { *existing.data.get() }, 1);
        assert_eq!(ranges.existing(offset).err(), Some(ENOENT));

        // To userspace and back once more.
        assert_eq!(ranges.list_again(id), Ok(()));
        assert_eq!(ranges.existing(offset).err(), Some(EPERM));
        // SAFETY: As above.
        unsafe { existing.data.leave() };
        assert!(is_sound(&ranges));
        let existing = ranges.existing(offset)?;

        // SAFETY: The data is that of the buffer; what has a wrong name isn't released.
        let released = unsafe { ranges.release(id, existing.data) }?;
        assert_eq!(released.size, 4 * UNIT);
        assert_eq!(released.meta.pid, 42);
        assert!(released.meta.is_oneway);
        assert!(ranges.buffer(id).is_none());
        assert_eq!(ranges.existing(offset).err(), Some(ENOENT));
        assert!(is_sound(&ranges));
        Ok(())
    }

    /// Buffers that begin and end in every way relative to pages, freed in every order.
    #[test]
    fn frees_pages_at_the_edges() -> Result {
        const BUFFERS: usize = 4;
        const ENDS: usize = 5;
        let mut wrong = 0;

        for ends in 0..ENDS.pow(BUFFERS as u32) {
            for order in 0..24 {
                let mut ranges = Ranges::<()>::new(16 * PAGE_SIZE);
                let mut model = Model::new(16 * PAGE_SIZE, BUFFERS)?;
                let (mut start, mut ends, mut order) = (0, ends, order);
                for _ in 0..BUFFERS {
                    let page = start - start % PAGE_SIZE;
                    let end = match ends % ENDS {
                        0 => start + UNIT,
                        1 => page + PAGE_SIZE,
                        2 => page + PAGE_SIZE + UNIT,
                        3 => page + 2 * PAGE_SIZE,
                        _ => page + 2 * PAGE_SIZE + UNIT,
                    };
                    let reserved = reserve(&mut ranges, end - start, Meta::default())?;
                    wrong += usize::from(reserved.offset != start);
                    wrong += usize::from(!model.add(reserved, end - start, Meta::default())?);
                    start = end;
                    ends /= ENDS;
                }
                for left in (1..=BUFFERS).rev() {
                    let i = order % left;
                    order /= left;
                    wrong += usize::from(!model.release(i, &mut ranges)?);
                }
                wrong += usize::from(!is_sound(&ranges));
            }
        }
        assert_eq!(wrong, 0);
        Ok(())
    }

    #[test]
    fn grows_and_shrinks() -> Result {
        const COUNT: usize = 4096;
        let mut ranges = Ranges::new(COUNT * UNIT);
        for i in 0..COUNT {
            let mut reserved = plain(&mut ranges, UNIT)?;
            assert_eq!(reserved.offset, i * UNIT);
            // SAFETY: The slots are there as long as there is a buffer.
            unsafe { *reserved.data.get_mut() = i };
            commit(&mut ranges, reserved);
        }
        assert!(is_sound(&ranges));
        assert_eq!(plain(&mut ranges, UNIT).err(), Some(ENOSPC));

        // Leave no two next to each other.
        for i in (1..COUNT).step_by(2) {
            let existing = ranges.existing(i * UNIT)?;
            // SAFETY: As above.
            assert_eq!(unsafe { *existing.data.get() }, i);
            release(&mut ranges, existing)?;
        }
        assert!(is_sound(&ranges));
        assert_eq!(ranges.count(), COUNT / 2);
        assert_eq!(plain(&mut ranges, 2 * UNIT).err(), Some(ENOSPC));

        for i in (0..COUNT).step_by(2) {
            let existing = ranges.existing(i * UNIT)?;
            // SAFETY: As above.
            assert_eq!(unsafe { *existing.data.get() }, i);
            let memory = release(&mut ranges, existing)?.memory;
            assert_eq!(memory.is_some(), i == COUNT - 2);
        }
        assert!(is_sound(&ranges));
        let all = plain(&mut ranges, COUNT * UNIT)?;
        assert_eq!(all.offset, 0);
        // So few are kept unless someone asks.
        assert!(ranges.trim().is_none());
        assert!(release(&mut ranges, all)?.memory.is_none());
        assert!(ranges.trim().is_some());
        assert!(is_sound(&ranges));
        Ok(())
    }

    #[test]
    fn drains() -> Result {
        const COUNT: usize = 1000;
        let mut ranges = Ranges::new(COUNT * UNIT);
        let mut kept = None;
        for i in 0..COUNT {
            let mut reserved = plain(&mut ranges, UNIT)?;
            // SAFETY: The slots are there as long as there is a buffer.
            unsafe { *reserved.data.get_mut() = i };
            // The kernel still has every fourth one.
            if i % 4 == 0 {
                kept = kept.or(Some(reserved));
            } else {
                commit(&mut ranges, reserved);
            }
        }
        let mut seen = [false; COUNT];
        while let Some(existing) = take_next(&mut ranges) {
            let i = existing.offset / UNIT;
            // SAFETY: As above.
            assert_eq!(unsafe { *existing.data.get() }, i);
            assert_eq!(existing.size, UNIT);
            assert!(!seen[i]);
            seen[i] = true;
            release(&mut ranges, existing)?;
        }
        assert!(is_sound(&ranges));
        assert!((0..COUNT).all(|i| seen[i] == (i % 4 != 0)));
        assert_eq!(ranges.count(), COUNT / 4);

        // The next one gets what has come since.
        let kept = kept.ok_or(EINVAL)?;
        let id = kept.id;
        commit(&mut ranges, kept);
        assert_eq!(take_next(&mut ranges).map(|existing| existing.id), Some(id));
        assert!(take_next(&mut ranges).is_none());
        Ok(())
    }

    #[test]
    fn does_as_the_model() -> Result {
        const CAPACITY: usize = 64;
        const SIZE: usize = 32 * PAGE_SIZE;
        let mut random = Random(0x2545_f491_4f6c_dd1d);
        let mut ranges = Ranges::<usize>::new(SIZE);
        let mut model = Model::new(SIZE, CAPACITY)?;

        for op in 0..50_000 {
            // Fill and empty it by turns.
            let filling = (op / 2000) % 2 == 0;
            let count = model.buffers.len();
            let i = random.below(count.max(1));
            match random.below(8) {
                0 | 1 => {
                    if let Some(reserved) = model.reserved.get_mut(i).and_then(Option::take) {
                        commit(&mut ranges, reserved);
                        model.buffers[i].is_allocated = true;
                    }
                }
                2 => {
                    if let Some(buffer) = model.buffers.get_mut(i) {
                        let existing = ranges.existing(buffer.offset).ok();
                        assert_eq!(existing.is_some(), buffer.is_allocated);
                        if let Some(existing) = existing {
                            // SAFETY: The slots are there as long as there is a buffer.
                            let data = unsafe { *existing.data.get() };
                            assert_eq!(data, buffer.meta.debug_id as usize);
                            assert_eq!(existing.size, buffer.size);
                            model.reserved[i] = Some(existing);
                        }
                        buffer.is_allocated = false;
                    }
                }
                n if count < CAPACITY && (n < 4 || (filling && n < 7)) => {
                    let size = match random.below(3) {
                        0 => 1 + random.below(16),
                        1 => 1 + random.below(PAGE_SIZE / UNIT),
                        _ => (1 + random.below(4)) * PAGE_SIZE / UNIT,
                    } * UNIT;
                    let meta = Meta {
                        sizes: parts(size, random.below(size / UNIT)),
                        debug_id: op as u32,
                        pid: random.below(100) as Pid,
                        is_oneway: random.below(2) == 0,
                    };
                    match reserve(&mut ranges, size, meta) {
                        Ok(mut reserved) => {
                            // SAFETY: As above.
                            unsafe { *reserved.data.get_mut() = op };
                            assert!(model.add(reserved, size, meta)?);
                        }
                        Err(err) => {
                            assert_eq!(err, ENOSPC);
                            assert_eq!(model.best_fit(size), None);
                        }
                    }
                }
                _ => {
                    // Userspace's buffers can't be released: there is nothing to do it with.
                    if model.reserved.get(i).is_some_and(Option::is_some) {
                        assert!(model.release(i, &mut ranges)?);
                    }
                }
            }
            if op % 16 == 0 {
                assert!(is_sound(&ranges));
                assert!(model.agrees(&ranges));
            }
        }
        // Slots are used again.
        assert!(ranges.slots.end() as usize <= 2 * CAPACITY + 1);
        Ok(())
    }
}
