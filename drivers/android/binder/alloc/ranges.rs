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
//! A segregated fit saves the few levels of the trie, but is no best fit unless it searches lists
//! of any length, and needs hundreds of bytes for the heads of these lists with the first buffer.

use core::{
    iter,
    mem,
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
    DataRef,
    Keyed,
    Slots,
    NONE, //
};

/// How many slots [`Ranges::take_next`] looks at.
const LOOK: u32 = 256;

/// Memory for more ranges, see [`Ranges::grow`].
pub(super) type Grown<T> = slots::Grown<Range, T>;

/// Why a buffer can't be reserved, see [`Ranges::reserve`].
pub(super) type ReserveError<T> = slots::Refused<Range, T>;

/// What the sender says about a buffer.
#[derive(Clone, Copy, Default)]
pub(super) struct Meta {
    pub(super) debug_id: usize,
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
    pub(super) debug_id: usize,
    pub(super) data: DataRef<T>,
}

/// What is left of a buffer.
pub(super) struct Released<T> {
    pub(super) size: usize,
    pub(super) pid: Pid,
    pub(super) is_oneway: bool,
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

/// Who has a range.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nobody.
    Free,
    /// The kernel.
    Reserved,
    /// Userspace.
    Allocated,
}

/// Place of a free range in the trie.
struct Node {
    parent: u32,
    child: [u32; 2],
    /// How many ranges are above it.
    level: u32,
    /// Neighbours in the list of ranges of the same size. Only the first one is in the trie.
    prev_same: u32,
    next_same: u32,
}

/// A part of the mapping: free, or a buffer.
pub(super) struct Range {
    offset: u32,
    size: u32,
    /// Neighbours in the mapping.
    prev: u32,
    next: u32,
    /// Has a meaning only while the range is free.
    node: Node,
    /// Has a meaning only while the range is a buffer.
    meta: Meta,
    state: State,
}

impl Range {
    fn is_free(&self) -> bool {
        self.state == State::Free
    }
}

impl Default for Range {
    fn default() -> Self {
        Self {
            offset: 0,
            size: 0,
            prev: NONE,
            next: NONE,
            node: Node {
                parent: NONE,
                child: [NONE; 2],
                level: 0,
                prev_same: NONE,
                next_same: NONE,
            },
            meta: Meta::default(),
            state: State::Free,
        }
    }
}

impl Keyed for Range {
    fn key(&self) -> u32 {
        self.offset
    }
}

/// The ranges of a mapping. `T` is what is kept with each buffer: it belongs to whoever has the
/// buffer reserved, as long as that lasts, and stays what it is while userspace has the buffer.
///
/// # Invariants
///
/// Either there are no slots, and the whole mapping is free, or:
///
/// - The slots in use, linked by `prev` and `next` from slot `first` on, are in address order and
///   cover the mapping. There are never two free ranges next to each other.
/// - `count` slots have buffers. Those that userspace has are the ones that are linked in the hash
///   table.
/// - The slots with free ranges are in the trie at `root`, or in the list of one in the trie that
///   has the same size. A range at level `n` of the trie has the same first `n` bits in its size as
///   all ranges in the subtree below it; the next bit tells on which side each of them is.
pub(super) struct Ranges<T> {
    slots: Slots<Range, T>,
    size: u32,
    first: u32,
    root: u32,
    count: u32,
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
            first: NONE,
            root: NONE,
            count: 0,
            drained: 0,
        }
    }

    /// The size of the mapping.
    pub(super) fn size(&self) -> usize {
        self.size as usize
    }

    /// The number of buffers.
    pub(super) fn count(&self) -> usize {
        self.count as usize
    }

    /// Reserves a buffer of `size` bytes for the kernel: a multiple of the pointer size, and not 0.
    ///
    /// # Errors
    ///
    /// [`ReserveError::NoSpace`] if no free range is large enough. [`ReserveError::NeedGrow`] if
    /// there is no memory for the range that remains: try again after [`Ranges::grow`].
    pub(super) fn reserve(
        &mut self,
        size: usize,
        meta: Meta,
    ) -> Result<Reserved<T>, ReserveError<T>> {
        debug_assert!(size != 0 && size % align_of::<usize>() == 0);
        if size > self.size() {
            return Err(ReserveError::NoSpace);
        }
        if self.slots.end() == 0 {
            return Err(ReserveError::NeedGrow(self.slots.request()));
        }

        let len = size as u32;
        let (free, free_size) = self.best_fit(len).ok_or(ReserveError::NoSpace)?;
        let (index, offset) = if free_size == len {
            self.remove_free(free);
            let range = &mut self.slots[free];
            range.meta = meta;
            range.state = State::Reserved;
            (free, range.offset)
        } else {
            let Some(index) = self.slots.take() else {
                return Err(ReserveError::NeedGrow(self.slots.request()));
            };
            (index, self.cut(free, free_size, len, index, meta))
        };
        self.count += 1;
        Ok(Reserved {
            id: Id(index),
            offset: offset as usize,
            size,
            debug_id: meta.debug_id,
            data: self.slots.data(index),
        })
    }

    /// Adds memory for ranges. Returns what the caller must drop outside the lock.
    pub(super) fn grow(&mut self, grown: Grown<T>) -> Grown<T> {
        let old = self.slots.grow(grown);
        if self.slots.end() == 0 {
            if let Some(first) = self.slots.take() {
                // INVARIANT: There is one free range, which covers all.
                self.slots[first] = Range {
                    size: self.size,
                    ..Range::default()
                };
                self.first = first;
                self.insert_free(first);
            }
        }
        old
    }

    /// Gives a reserved buffer to userspace, which may free it from now on.
    ///
    /// # Errors
    ///
    /// `ENOENT` if it isn't reserved.
    pub(super) fn commit(&mut self, id: Id) -> Result {
        let range = self.buffer_mut(id).ok_or(ENOENT)?;
        if range.state != State::Reserved {
            return Err(ENOENT);
        }
        range.state = State::Allocated;
        self.slots.link(id.0);
        Ok(())
    }

    /// Takes the buffer that begins at `offset` back from userspace: it is reserved again.
    ///
    /// # Errors
    ///
    /// `ENOENT` if userspace has no buffer that begins there.
    pub(super) fn existing(&mut self, offset: usize) -> Result<Reserved<T>> {
        let key = u32::try_from(offset).map_err(|_| ENOENT)?;
        let index = self.slots.unlink_key(key).ok_or(ENOENT)?;
        Ok(self.taken_back(index))
    }

    /// Frees a reserved buffer.
    ///
    /// # Errors
    ///
    /// `EINVAL` if there is no such buffer, `EPERM` if userspace has it.
    pub(super) fn release(&mut self, id: Id) -> Result<Released<T>> {
        let index = id.0;
        let range = self.buffer_mut(id).ok_or(EINVAL)?;
        if range.state == State::Allocated {
            return Err(EPERM);
        }
        range.state = State::Free;
        let (offset, size) = (range.offset, range.size);
        let (prev, next, meta) = (range.prev, range.next, range.meta);
        self.count -= 1;

        let before = self.free_size(prev);
        let after = self.free_size(next);
        let (start, end) = (offset - before, offset + size + after);
        // The larger one of two stays where it is in the trie, if that can be.
        if before == 0 && after == 0 {
            self.insert_free(index);
        } else if before > after {
            self.unlist(index, prev, next);
            if after != 0 {
                self.remove_free(next);
                self.unlist(next, prev, self.slots[next].next);
            }
            self.resize_free(prev, start, end - start);
        } else {
            self.unlist(index, prev, next);
            if before != 0 {
                self.remove_free(prev);
                self.unlist(prev, self.slots[prev].prev, next);
            }
            self.resize_free(next, start, end - start);
        }

        // A page at the edge of the buffer is unused if all of it is free now.
        let (start, end) = (start as usize, end as usize);
        let (offset, size) = (offset as usize, size as usize);
        let start = (offset / PAGE_SIZE).max(start.div_ceil(PAGE_SIZE));
        let end = (offset + size).div_ceil(PAGE_SIZE).min(end / PAGE_SIZE);

        Ok(Released {
            size,
            pid: meta.pid,
            is_oneway: meta.is_oneway,
            pages: start..end.max(start),
            memory: if self.slots.is_large() {
                self.trim()
            } else {
                None
            },
        })
    }

    /// Gives all memory away if there is no buffer. Returns what the caller must drop outside the
    /// lock.
    pub(super) fn trim(&mut self) -> Option<Grown<T>> {
        if self.count != 0 {
            return None;
        }
        // INVARIANT: There are no slots any more.
        self.first = NONE;
        self.root = NONE;
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
            if self.slots[index].state == State::Allocated {
                self.slots.unlink(index);
                return ControlFlow::Break(Some(self.taken_back(index)));
            }
        }
        if self.drained < self.slots.end() {
            return ControlFlow::Continue(());
        }
        self.drained = 0;
        ControlFlow::Break(None)
    }

    /// The buffers in address order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Buffer> + '_ {
        let get = |index: u32| (index != NONE).then(|| &self.slots[index]);
        iter::successors(get(self.first), move |range| get(range.next))
            .filter(|range| !range.is_free())
            .map(|range| Buffer {
                offset: range.offset as usize,
                size: range.size as usize,
                meta: range.meta,
                is_allocated: range.state == State::Allocated,
            })
    }

    /// The buffer that has this name, if there is one.
    fn buffer_mut(&mut self, id: Id) -> Option<&mut Range> {
        (id.0 < self.slots.end())
            .then(|| &mut self.slots[id.0])
            .filter(|range| !range.is_free())
    }

    /// Reserves a buffer that userspace had, and that has just been unlinked.
    fn taken_back(&mut self, index: u32) -> Reserved<T> {
        let data = self.slots.data(index);
        let range = &mut self.slots[index];
        range.state = State::Reserved;
        Reserved {
            id: Id(index),
            offset: range.offset as usize,
            size: range.size as usize,
            debug_id: range.meta.debug_id,
            data,
        }
    }

    /// The size of range `index`; 0 if it is a buffer, or no range at all.
    fn free_size(&self, index: u32) -> u32 {
        if index == NONE {
            return 0;
        }
        let range = &self.slots[index];
        if range.is_free() {
            range.size
        } else {
            0
        }
    }

    /// Cuts `len` bytes off the beginning of the free range `free` of `size` bytes, and makes them
    /// range `new`, a reserved buffer. Says where it is.
    fn cut(&mut self, free: u32, size: u32, len: u32, new: u32, meta: Meta) -> u32 {
        let range = &mut self.slots[free];
        let offset = range.offset;
        let prev = mem::replace(&mut range.prev, new);
        self.resize_free(free, offset + len, size - len);

        let range = &mut self.slots[new];
        range.offset = offset;
        range.size = len;
        range.prev = prev;
        range.next = free;
        range.meta = meta;
        range.state = State::Reserved;
        self.set_next(prev, new);
        offset
    }

    /// Takes a range out of the list in address order, and gives its slot back.
    #[inline]
    fn unlist(&mut self, index: u32, prev: u32, next: u32) {
        self.set_next(prev, next);
        if next != NONE {
            self.slots[next].prev = prev;
        }
        self.slots.put(index);
    }

    fn set_next(&mut self, prev: u32, next: u32) {
        match prev {
            NONE => self.first = next,
            prev => self.slots[prev].next = next,
        }
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
        size << self.size.leading_zeros()
    }

    /// The smallest free range of at least `size` bytes, and its size.
    fn best_fit(&self, size: u32) -> Option<(u32, u32)> {
        let mut best = NONE;
        let mut best_size = u32::MAX;
        // Any but the first one of a list is taken out of it without a change to the trie. The
        // second one was freed last, so that its pages are the most likely ones to be there still.
        let mut second = NONE;
        let mut path = self.path(size);
        // The last subtree passed by in which all is larger than `size`. What is larger than that
        // is larger than all of it.
        let mut larger = NONE;

        let mut index = self.root;
        while index != NONE {
            let range = &self.slots[index];
            if range.size >= size && range.size < best_size {
                (best, best_size, second) = (index, range.size, range.node.next_same);
                if best_size == size {
                    break;
                }
            }
            let side = path >> 31;
            if side == 0 && range.node.child[1] != NONE {
                larger = range.node.child[1];
            }
            index = range.node.child[side as usize];
            path <<= 1;
        }

        if best_size != size {
            index = larger;
            while index != NONE {
                let range = &self.slots[index];
                if range.size < best_size {
                    (best, best_size, second) = (index, range.size, range.node.next_same);
                }
                let [low, high] = range.node.child;
                index = if low != NONE { low } else { high };
            }
        }

        match (best, second) {
            (NONE, _) => None,
            (best, NONE) => Some((best, best_size)),
            (_, second) => Some((second, best_size)),
        }
    }

    /// Adds a free range to the trie.
    fn insert_free(&mut self, index: u32) {
        let size = self.slots[index].size;
        let mut path = self.path(size);
        let mut node = Node {
            parent: NONE,
            child: [NONE; 2],
            level: 0,
            prev_same: NONE,
            next_same: NONE,
        };

        if self.root == NONE {
            self.root = index;
        } else {
            let mut at = self.root;
            loop {
                let other = &mut self.slots[at];
                if other.size == size {
                    node.prev_same = at;
                    node.next_same = other.node.next_same;
                    other.node.next_same = index;
                    if node.next_same != NONE {
                        self.slots[node.next_same].node.prev_same = index;
                    }
                    break;
                }
                let child = &mut other.node.child[(path >> 31) as usize];
                if *child == NONE {
                    *child = index;
                    node.parent = at;
                    node.level += 1;
                    break;
                }
                at = *child;
                path <<= 1;
                node.level += 1;
            }
        }
        self.slots[index].node = node;
    }

    /// Changes where a free range is, and its size.
    ///
    /// Most often that is the large one from which buffers are cut off and to which they come back.
    /// It stays where it is in the trie as long as its first bits, which have led there, are the
    /// same.
    #[inline]
    fn resize_free(&mut self, index: u32, offset: u32, size: u32) {
        let shift = self.size.leading_zeros();
        let range = &mut self.slots[index];
        let node = &range.node;
        let is_alone = node.prev_same == NONE && node.next_same == NONE;
        let stays = is_alone && ((range.size ^ size) << shift).leading_zeros() >= node.level;
        range.offset = offset;
        if stays {
            range.size = size;
        } else {
            self.reinsert_free(index, size);
        }
    }

    #[inline(never)]
    fn reinsert_free(&mut self, index: u32, size: u32) {
        self.remove_free(index);
        self.slots[index].size = size;
        self.insert_free(index);
    }

    /// Removes a free range from the trie.
    fn remove_free(&mut self, index: u32) {
        let node = &self.slots[index].node;
        let (prev_same, next_same) = (node.prev_same, node.next_same);
        if prev_same != NONE {
            self.slots[prev_same].node.next_same = next_same;
            if next_same != NONE {
                self.slots[next_same].node.prev_same = prev_same;
            }
        } else if next_same != NONE {
            self.slots[next_same].node.prev_same = NONE;
            self.replace(index, next_same);
        } else {
            let leaf = self.leaf_below(index);
            if leaf != index {
                self.replace(leaf, NONE);
                self.replace(index, leaf);
            } else {
                self.replace(index, NONE);
            }
        }
    }

    /// Any range of the subtree at `index` that has none below it.
    fn leaf_below(&self, mut index: u32) -> u32 {
        loop {
            match self.slots[index].node.child {
                [NONE, NONE] => return index,
                [NONE, child] | [child, _] => index = child,
            }
        }
    }

    /// Puts range `new`, which isn't in the trie, or nothing, at the place of range `old`.
    fn replace(&mut self, old: u32, new: u32) {
        let Node {
            parent,
            child,
            level,
            ..
        } = self.slots[old].node;
        if parent == NONE {
            self.root = new;
        } else {
            let links = &mut self.slots[parent].node.child;
            links[usize::from(links[1] == old)] = new;
        }
        if new != NONE {
            let node = &mut self.slots[new].node;
            node.parent = parent;
            node.child = child;
            node.level = level;
            for index in child {
                if index != NONE {
                    self.slots[index].node.parent = new;
                }
            }
        }
    }
}

#[kunit_tests(rust_binder_ranges)]
mod tests {
    use super::*;

    const UNIT: usize = align_of::<usize>();

    /// What the ranges should be: the buffers, in address order.
    struct Model {
        size: usize,
        buffers: KVec<Buffer>,
        ids: KVec<Id>,
    }

    impl Model {
        fn new(size: usize, capacity: usize) -> Result<Self> {
            Ok(Self {
                size,
                buffers: KVec::with_capacity(capacity, GFP_KERNEL)?,
                ids: KVec::with_capacity(capacity, GFP_KERNEL)?,
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
        fn add<T>(&mut self, reserved: &Reserved<T>, size: usize, meta: Meta) -> Result<bool> {
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
            self.ids
                .insert_within_capacity(i, reserved.id)
                .map_err(|_| ENOSPC)?;
            Ok(right)
        }

        /// Removes what has been released. Returns whether the answer was right.
        fn remove<T>(&mut self, i: usize, released: &Released<T>) -> Result<bool> {
            let buffer = self.buffers.remove(i)?;
            self.ids.remove(i)?;
            let touched =
                buffer.offset / PAGE_SIZE..(buffer.offset + buffer.size).div_ceil(PAGE_SIZE);
            Ok(released.size == buffer.size
                && released.pid == buffer.meta.pid
                && released.is_oneway == buffer.meta.is_oneway
                && touched.start <= released.pages.start
                && released.pages.end <= touched.end.max(released.pages.start)
                && touched
                    .into_iter()
                    .all(|page| released.pages.contains(&page) != self.touched(page)))
        }

        fn agrees<T>(&self, ranges: &Ranges<T>) -> bool {
            ranges.count() == self.buffers.len()
                && ranges.iter().count() == self.buffers.len()
                && ranges.iter().zip(self.buffers.iter()).all(|(a, b)| {
                    a.offset == b.offset
                        && a.size == b.size
                        && a.meta.debug_id == b.meta.debug_id
                        && a.meta.pid == b.meta.pid
                        && a.meta.is_oneway == b.meta.is_oneway
                        && a.is_allocated == b.is_allocated
                })
        }
    }

    /// Whether the invariants hold.
    fn is_sound<T>(ranges: &Ranges<T>) -> bool {
        let slots = &ranges.slots;
        let (mut index, mut prev, mut offset) = (ranges.first, NONE, 0);
        if index == NONE {
            return slots.end() == 0 && ranges.root == NONE && ranges.count == 0;
        }
        let mut buffers = 0;
        while index != NONE {
            let range = &slots[index];
            if range.offset != offset || range.size == 0 || range.prev != prev {
                return false;
            }
            let found = slots.find(offset);
            let right = match range.state {
                State::Free => {
                    found.is_none()
                        && (prev == NONE || !slots[prev].is_free())
                        && is_in_trie(ranges, index)
                }
                State::Reserved => found.is_none(),
                State::Allocated => found == Some(index),
            };
            if !right {
                return false;
            }
            buffers += u32::from(!range.is_free());
            offset += range.size;
            (prev, index) = (index, range.next);
        }
        offset == ranges.size && buffers == ranges.count
    }

    /// Whether a free range is where it can be found.
    fn is_in_trie<T>(ranges: &Ranges<T>, index: u32) -> bool {
        let slots = &ranges.slots;
        let size = slots[index].size;
        let mut at = index;
        while slots[at].node.prev_same != NONE {
            let prev = slots[at].node.prev_same;
            if slots[prev].node.next_same != at || slots[prev].size != size {
                return false;
            }
            at = prev;
        }
        let mut level = slots[at].node.level;
        while level != 0 {
            level -= 1;
            let parent = slots[at].node.parent;
            let side = ranges.path(size) << level >> 31;
            if slots[parent].node.level != level || slots[parent].node.child[side as usize] != at {
                return false;
            }
            at = parent;
        }
        at == ranges.root && slots[at].node.parent == NONE
    }

    fn reserve<T: Default>(ranges: &mut Ranges<T>, size: usize, meta: Meta) -> Result<Reserved<T>> {
        loop {
            match ranges.reserve(size, meta) {
                Ok(reserved) => return Ok(reserved),
                Err(ReserveError::NoSpace) => return Err(ENOSPC),
                Err(ReserveError::NeedGrow(request)) => drop(ranges.grow(request.alloc()?)),
            }
        }
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

    #[test]
    fn takes_no_memory_before_the_first_buffer() {
        let mut ranges = Ranges::<()>::new(4 * PAGE_SIZE);
        assert_eq!(ranges.size(), 4 * PAGE_SIZE);
        assert_eq!(ranges.count(), 0);
        assert_eq!(ranges.iter().count(), 0);
        assert_eq!(ranges.existing(0).err(), Some(ENOENT));
        assert_eq!(ranges.release(Id(0)).err(), Some(EINVAL));
        assert_eq!(ranges.release(Id(NONE)).err(), Some(EINVAL));
        assert_eq!(ranges.commit(Id(0)), Err(ENOENT));
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
        drop(ranges.grow(first.alloc()?));
        plain(&mut ranges, UNIT)?;
        drop(ranges.grow(second.alloc()?));
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
        assert_eq!(ranges.release(all.id)?.pages, 0..2);

        let half = plain(&mut ranges, PAGE_SIZE)?;
        assert_eq!(plain(&mut ranges, PAGE_SIZE + UNIT).err(), Some(ENOSPC));
        let other = plain(&mut ranges, PAGE_SIZE)?;
        assert_eq!(plain(&mut ranges, UNIT).err(), Some(ENOSPC));
        ranges.release(half.id)?;
        ranges.release(other.id)?;
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
        for gap in gaps.iter() {
            ranges.release(gap.id)?;
        }
        assert!(is_sound(&ranges));

        assert_eq!(plain(&mut ranges, 4 * UNIT)?.offset, gaps[0].offset);
        // The most recently freed one of two that fit as well.
        assert_eq!(plain(&mut ranges, 3 * UNIT)?.offset, gaps[3].offset);
        assert_eq!(plain(&mut ranges, 2 * UNIT)?.offset, gaps[1].offset);
        assert_eq!(plain(&mut ranges, 10 * UNIT)?.offset, rest);
        assert_eq!(plain(&mut ranges, 6 * UNIT)?.offset, gaps[2].offset);
        assert!(is_sound(&ranges));
        Ok(())
    }

    #[test]
    fn changes_hands() -> Result {
        let mut ranges = Ranges::new(PAGE_SIZE);
        let meta = Meta {
            debug_id: 7,
            pid: 42,
            is_oneway: true,
        };
        plain(&mut ranges, UNIT)?;
        let Reserved {
            id,
            offset,
            mut data,
            ..
        } = reserve(&mut ranges, 4 * UNIT, meta)?;
        let other = Id(id.0 + 1);
        // SAFETY: The buffer is reserved, by this test.
        unsafe { *data.get_mut() = 1 };

        // Only as a whole, and only while it is with userspace.
        assert_eq!(ranges.existing(offset).err(), Some(ENOENT));
        assert_eq!(ranges.commit(other), Err(ENOENT));
        assert_eq!(ranges.commit(id), Ok(()));
        assert_eq!(ranges.commit(id), Err(ENOENT));
        assert_eq!(ranges.existing(offset + UNIT).err(), Some(ENOENT));
        assert_eq!(ranges.existing(offset - 1).err(), Some(ENOENT));
        let far = offset | 1 << (usize::BITS - 1);
        assert_eq!(ranges.existing(far).err(), Some(ENOENT));
        assert_eq!(ranges.release(id).err(), Some(EPERM));

        let existing = ranges.existing(offset)?;
        assert_eq!(existing.id, id);
        assert_eq!(existing.offset, offset);
        assert_eq!(existing.size, 4 * UNIT);
        assert_eq!(existing.debug_id, 7);
        // SAFETY: It is reserved again.
        assert_eq!(unsafe { *existing.data.get() }, 1);
        assert_eq!(ranges.existing(offset).err(), Some(ENOENT));

        assert_eq!(ranges.release(other).err(), Some(EINVAL));
        let released = ranges.release(id)?;
        assert_eq!(released.size, 4 * UNIT);
        assert_eq!(released.pid, 42);
        assert!(released.is_oneway);
        assert_eq!(ranges.release(id).err(), Some(EINVAL));
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
                    wrong += usize::from(!model.add(&reserved, end - start, Meta::default())?);
                    start = end;
                    ends /= ENDS;
                }
                for left in (1..=BUFFERS).rev() {
                    let i = order % left;
                    order /= left;
                    let released = ranges.release(model.ids[i])?;
                    wrong += usize::from(!model.remove(i, &released)?);
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
            // SAFETY: It is reserved, by this test.
            unsafe { *reserved.data.get_mut() = i };
            ranges.commit(reserved.id)?;
        }
        assert!(is_sound(&ranges));
        assert_eq!(plain(&mut ranges, UNIT).err(), Some(ENOSPC));

        // Leave no two next to each other.
        for i in (1..COUNT).step_by(2) {
            let existing = ranges.existing(i * UNIT)?;
            // SAFETY: It is reserved again.
            assert_eq!(unsafe { *existing.data.get() }, i);
            ranges.release(existing.id)?;
        }
        assert!(is_sound(&ranges));
        assert_eq!(ranges.count(), COUNT / 2);
        assert_eq!(plain(&mut ranges, 2 * UNIT).err(), Some(ENOSPC));

        for i in (0..COUNT).step_by(2) {
            let existing = ranges.existing(i * UNIT)?;
            // SAFETY: As above.
            assert_eq!(unsafe { *existing.data.get() }, i);
            let memory = ranges.release(existing.id)?.memory;
            assert_eq!(memory.is_some(), i == COUNT - 2);
        }
        assert!(is_sound(&ranges));
        let all = plain(&mut ranges, COUNT * UNIT)?;
        assert_eq!(all.offset, 0);
        // So few are kept unless someone asks.
        assert!(ranges.trim().is_none());
        assert!(ranges.release(all.id)?.memory.is_none());
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
            // SAFETY: It is reserved, by this test.
            unsafe { *reserved.data.get_mut() = i };
            // The kernel still has every fourth one.
            if i % 4 == 0 {
                kept = kept.or(Some(reserved.id));
            } else {
                ranges.commit(reserved.id)?;
            }
        }
        let mut seen = [false; COUNT];
        while let Some(existing) = take_next(&mut ranges) {
            let i = existing.offset / UNIT;
            // SAFETY: It is reserved again.
            assert_eq!(unsafe { *existing.data.get() }, i);
            assert_eq!(existing.size, UNIT);
            assert!(!seen[i]);
            seen[i] = true;
            ranges.release(existing.id)?;
        }
        assert!(is_sound(&ranges));
        assert!((0..COUNT).all(|i| seen[i] == (i % 4 != 0)));
        assert_eq!(ranges.count(), COUNT / 4);

        // The next one gets what has come since.
        let kept = kept.ok_or(EINVAL)?;
        ranges.commit(kept)?;
        assert_eq!(
            take_next(&mut ranges).map(|existing| existing.id),
            Some(kept)
        );
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
                    if let Some(buffer) = model.buffers.get_mut(i) {
                        let id = model.ids[i];
                        let committed = ranges.commit(id);
                        assert_eq!(committed.is_ok(), !buffer.is_allocated);
                        buffer.is_allocated = true;
                    }
                }
                2 => {
                    if let Some(buffer) = model.buffers.get_mut(i) {
                        let existing = ranges.existing(buffer.offset).ok();
                        assert_eq!(existing.is_some(), buffer.is_allocated);
                        if let Some(existing) = existing {
                            assert_eq!(existing.id, model.ids[i]);
                            // SAFETY: It is reserved again.
                            let data = unsafe { *existing.data.get() };
                            assert_eq!(data, buffer.meta.debug_id);
                            assert_eq!(existing.size, buffer.size);
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
                        debug_id: op,
                        pid: random.below(100) as Pid,
                        is_oneway: random.below(2) == 0,
                    };
                    match reserve(&mut ranges, size, meta) {
                        Ok(mut reserved) => {
                            // SAFETY: It is reserved, by this test.
                            unsafe { *reserved.data.get_mut() = op };
                            assert!(model.add(&reserved, size, meta)?);
                        }
                        Err(err) => {
                            assert_eq!(err, ENOSPC);
                            assert_eq!(model.best_fit(size), None);
                        }
                    }
                }
                _ => {
                    if let Some(buffer) = model.buffers.get(i) {
                        match ranges.release(model.ids[i]) {
                            Ok(released) => assert!(model.remove(i, &released)?),
                            Err(err) => {
                                assert_eq!(err, EPERM);
                                assert!(buffer.is_allocated);
                            }
                        }
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
