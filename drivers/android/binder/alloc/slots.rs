// SPDX-License-Identifier: GPL-2.0

//! Slots that are found by key, never move, and grow outside the lock.
//!
//! Both the ranges of a mapping and the tallies of its oneway senders are kept under a spinlock, so
//! they can neither allocate nor free memory where they need it. [`Slots`] gives them an array of
//! slots, linked by index, for which the caller allocates more memory with the lock dropped:
//!
//! - a slot that is missing is reported as a [`GrowRequest`], with which the caller drops the lock,
//!   allocates a [`Grown`], takes the lock again, hands it to [`Slots::grow`] and tries again;
//! - whatever comes back from [`Slots::grow`] and [`Slots::vacate`] is dropped once the lock is.
//!
//! What is done under the lock takes a bounded time, also while growing: slots are added in blocks
//! of a page at most, so that few are in vain, and no slot is copied. The hash table that finds a
//! slot by its key grows along with the slots in use, by one bucket for each (linear hashing), so
//! there is no moment at which all of it is hashed again.

use core::{
    cell::{
        Cell,
        UnsafeCell, //
    },
    marker::PhantomData,
    mem::{
        self,
        size_of, //
    },
    ops::{
        Deref,
        Index, //
    },
    ptr::NonNull, //
};

use kernel::{
    alloc::Flags,
    page::PAGE_SIZE,
    prelude::*,
    sync::atomic::{
        ordering::{
            Acquire,
            Relaxed,
            Release, //
        },
        Atomic, //
    }, //
};

/// The index that stands for no slot.
pub(super) const NONE: u32 = u32::MAX;

/// Number of slots in the first block. Few, because most processes have one buffer at a time: that
/// makes two ranges.
const FIRST: u32 = 2;

/// How many blocks there are after the first one before they get larger.
const SMALL_BLOCKS: u32 = 32;

/// Bytes of these blocks.
const SMALL: usize = 1024;

/// Bytes of the blocks after them.
const LARGE: usize = 4096;

/// For how many blocks there are places at first.
const FIRST_PLACES: usize = 4;

/// How many slots an owner that has become empty may keep, to be spared the next allocations.
///
/// An owner that outgrows this pays at most a logarithmic number of allocations each time that it
/// does, that is, for each time that it has filled more than so many slots.
const KEEP: u32 = 16;

/// The contents of a slot.
pub(super) trait Keyed: Default {
    /// What the slot is found by. Must not change while the slot is linked.
    fn key(&self) -> u32;
}

/// A slot, what goes with it, and the head of a bucket. The last has no more in common with the
/// others than its place.
struct Entry<S, D> {
    /// First slot in the bucket.
    bucket: Cell<u32>,
    /// Next slot in the same bucket, or next spare slot.
    next: Cell<u32>,
    value: S,
    data: D,
}

/// What goes with a slot, for one to have at a time.
pub(super) struct Data<T> {
    /// Whether it is there for [`Slots::hold`].
    is_left: Atomic<bool>,
    value: UnsafeCell<T>,
}

// SAFETY: Threads that share it get at the value by a `Held` only, of which there is one.
unsafe impl<T: Send> Sync for Data<T> {}

impl<T: Default> Default for Data<T> {
    fn default() -> Self {
        Self {
            is_left: Atomic::new(false),
            value: UnsafeCell::new(T::default()),
        }
    }
}

/// Slots that are allocated together.
type Block<S, D> = KVec<Entry<S, D>>;

/// The blocks, in order of index, each by the pointer to its first slot.
///
/// # Invariants
///
/// Each pointer is that of a [`Block`] with [`Blocks::len_of`] as many slots, which is owned.
struct Blocks<S, D>(KVVec<NonNull<Entry<S, D>>>);

// SAFETY: The blocks are owned, as by a vector of vectors.
unsafe impl<S: Send, D: Send> Send for Blocks<S, D> {}

impl<S, D> Blocks<S, D> {
    const SMALL: u32 = (SMALL / size_of::<Entry<S, D>>()) as u32;
    const LARGE: u32 = (LARGE / size_of::<Entry<S, D>>()) as u32;
    /// Index of the first slot in a large block.
    const LARGE_START: u32 = FIRST + Self::SMALL * SMALL_BLOCKS;

    /// How many slots block `nth` has.
    const fn len_of(nth: u32) -> u32 {
        match nth {
            0 => FIRST,
            1..=SMALL_BLOCKS => Self::SMALL,
            _ => Self::LARGE,
        }
    }

    /// The block of slot `index`, and where in there the slot is.
    const fn place_of(index: u32) -> (u32, u32) {
        if index < FIRST {
            (0, index)
        } else if index < Self::LARGE_START {
            let index = index - FIRST;
            (1 + index / Self::SMALL, index % Self::SMALL)
        } else {
            let index = index - Self::LARGE_START;
            (1 + SMALL_BLOCKS + index / Self::LARGE, index % Self::LARGE)
        }
    }

    /// How many slots these blocks have together.
    fn capacity(&self) -> u32 {
        let nth = self.0.len() as u32;
        let small = nth.saturating_sub(1).min(SMALL_BLOCKS);
        let large = nth.saturating_sub(1 + SMALL_BLOCKS);
        nth.min(1) * FIRST + small * Self::SMALL + large * Self::LARGE
    }

    /// Adds a block, for which there is a place.
    fn push(&mut self, block: Block<S, D>) {
        debug_assert!(block.len() as u32 == Self::len_of(self.0.len() as u32));
        let (first, _, _) = block.into_raw_parts();
        if let Some(first) = NonNull::new(first) {
            // INVARIANT: The block is owned here from now on.
            let pushed = self.0.push_within_capacity(first);
            debug_assert!(pushed.is_ok());
        }
    }
}

impl<S, D> Drop for Blocks<S, D> {
    fn drop(&mut self) {
        for (nth, first) in self.0.iter().enumerate() {
            let len = Self::len_of(nth as u32) as usize;
            // SAFETY: By the type invariants it is a block with so many slots, and exactly these,
            // as `GrowRequest::alloc` has made it.
            drop(unsafe { Block::from_raw_parts(first.as_ptr(), len, len) });
        }
    }
}

/// A slot that has been looked up.
pub(super) struct Slot<'a, S> {
    index: u32,
    next: &'a Cell<u32>,
    value: &'a S,
}

impl<'a, S> Slot<'a, S> {
    pub(super) fn index(&self) -> u32 {
        self.index
    }

    pub(super) fn into_ref(self) -> &'a S {
        self.value
    }
}

impl<S> Clone for Slot<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for Slot<'_, S> {}

impl<S> Deref for Slot<'_, S> {
    type Target = S;

    fn deref(&self) -> &S {
        self.value
    }
}

/// Slots that are found by key.
///
/// It is changed by shared reference, so that several slots can be at hand at a time.
///
/// With each slot goes a `D`. If that is a [`Data`], who holds it may use it without the lock.
///
/// # Invariants
///
/// - The slots below `end` are taken or on the spare list. The blocks have a place for each of
///   them.
/// - There is a bucket for each of these slots. A linked slot is in the one bucket that
///   [`Slots::bucket`] tells for its key. All chains end with [`NONE`].
/// - `mask` is one less than the least power of two that isn't below the number of buckets.
pub(super) struct Slots<S, D = ()> {
    blocks: Blocks<S, D>,
    end: Cell<u32>,
    mask: Cell<u32>,
    spare: Cell<u32>,
}

/// Says how much memory is missing.
pub(super) struct GrowRequest<S, D = ()> {
    /// Which block.
    nth: u32,
    /// How many places for blocks there have to be, if there aren't enough.
    places: Option<usize>,
    _slots: PhantomData<fn() -> (S, D)>,
}

/// Memory that is on its way into or out of a [`Slots`].
#[must_use = "must be dropped outside the lock"]
pub(super) struct Grown<S, D = ()> {
    nth: u32,
    block: Option<Block<S, D>>,
    blocks: Option<Blocks<S, D>>,
}

/// Has the data of a slot for itself.
///
/// # Invariants
///
/// It is the only one for the data of a slot, which isn't left. Slots neither move nor go away
/// before [`Slots::vacate`].
pub(super) struct Held<T>(NonNull<Data<T>>);

// SAFETY: It gives access to the data, as a mutable reference does.
unsafe impl<T: Send> Send for Held<T> {}
// SAFETY: As above.
unsafe impl<T: Sync> Sync for Held<T> {}

impl<T> Held<T> {
    /// Borrows the data.
    ///
    /// # Safety
    ///
    /// The slots must not have been given away by [`Slots::vacate`].
    pub(super) unsafe fn get(&self) -> &T {
        // SAFETY: The slot is there, and by the type invariants nobody else has the data.
        unsafe { &*self.0.as_ref().value.get() }
    }

    /// Borrows the data mutably.
    ///
    /// # Safety
    ///
    /// As [`get`](Self::get).
    pub(super) unsafe fn get_mut(&mut self) -> &mut T {
        // SAFETY: As in `get`.
        unsafe { &mut *self.0.as_ref().value.get() }
    }

    /// Leaves the data to whoever comes next, by [`Slots::hold`]. Needs no lock.
    ///
    /// # Safety
    ///
    /// As [`get`](Self::get).
    pub(super) unsafe fn leave(self) {
        // Pairs with `Slots::hold`, so that who holds it next sees what has become of the data.
        //
        // SAFETY: The slot is there.
        unsafe { self.0.as_ref() }.is_left.store(true, Release);
    }
}

/// Why there is no place for one more.
pub(super) enum Refused<S, D = ()> {
    /// There is no space, and more memory for slots doesn't help.
    NoSpace,
    /// There is no slot. Try again with more memory.
    NeedGrow(GrowRequest<S, D>),
}

impl<S: Keyed, D: Default> GrowRequest<S, D> {
    /// Allocates the missing memory. To be called with no lock held.
    ///
    /// What takes more than a page is allocated as the system has it, whatever the flags: 8 bytes
    /// for each page of slots.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if there is none.
    pub(super) fn alloc(&self, flags: Flags) -> Result<Grown<S, D>> {
        let capacity = Blocks::<S, D>::len_of(self.nth) as usize;
        let mut block = Block::with_capacity(capacity, flags)?;
        for _ in 0..capacity {
            block.push_within_capacity(Entry {
                bucket: Cell::new(NONE),
                next: Cell::new(NONE),
                value: S::default(),
                data: D::default(),
            })?;
        }
        let mut blocks = None;
        if let Some(places) = self.places {
            let flags = if places * size_of::<usize>() > PAGE_SIZE {
                GFP_KERNEL
            } else {
                flags
            };
            // INVARIANT: There is no block.
            blocks = Some(Blocks(KVVec::with_capacity(places, flags)?));
        }
        Ok(Grown {
            nth: self.nth,
            block: Some(block),
            blocks,
        })
    }
}

impl<S, D> Slots<S, D> {
    /// Has no slots and takes no memory.
    pub(super) const fn new() -> Self {
        // INVARIANT: There are no blocks, slots or buckets.
        Self {
            blocks: Blocks(KVVec::new()),
            end: Cell::new(0),
            mask: Cell::new(0),
            spare: Cell::new(NONE),
        }
    }

    fn capacity(&self) -> u32 {
        self.blocks.capacity()
    }

    /// All slots that are taken have an index below this.
    pub(super) fn end(&self) -> u32 {
        self.end.get()
    }

    /// Whether there never was a slot.
    pub(super) fn is_new(&self) -> bool {
        self.end() == 0
    }

    fn buckets(&self) -> u32 {
        self.end()
    }

    /// Whether an empty owner should give the memory back.
    pub(super) fn is_large(&self) -> bool {
        self.capacity() > KEEP
    }

    /// What to allocate when [`Slots::take`] found nothing.
    pub(super) fn request(&self) -> GrowRequest<S, D> {
        let nth = self.blocks.0.len();
        let is_full = nth == self.blocks.0.capacity();
        GrowRequest {
            nth: nth as u32,
            places: is_full.then(|| (2 * nth).max(FIRST_PLACES)),
            _slots: PhantomData,
        }
    }

    /// Adds memory. Returns what the caller must drop outside the lock.
    ///
    /// If someone else was faster, `grown` itself is returned.
    pub(super) fn grow(&mut self, mut grown: Grown<S, D>) -> Grown<S, D> {
        let blocks = &mut self.blocks;
        if grown.nth as usize != blocks.0.len() {
            return grown;
        }
        if let Some(larger) = grown.blocks.as_mut() {
            if larger.0.capacity() > blocks.0.capacity() {
                for &first in blocks.0.iter() {
                    let _ = larger.0.push_within_capacity(first);
                }
                // INVARIANT: The present blocks belong to the larger one now.
                blocks.0.clear();
                mem::swap(larger, blocks);
            }
        }
        if blocks.0.len() < blocks.0.capacity() {
            if let Some(block) = grown.block.take() {
                blocks.push(block);
            }
        }
        grown
    }

    /// Gives all slots and all memory away, for the caller to drop outside the lock.
    pub(super) fn vacate(&mut self) -> Grown<S, D> {
        Grown {
            nth: 0,
            block: None,
            blocks: Some(mem::replace(self, Self::new()).blocks),
        }
    }

    fn entry(&self, index: u32) -> &Entry<S, D> {
        assert!(index < self.end());
        let (nth, place) = Blocks::<S, D>::place_of(index);
        // SAFETY: By the type invariants there is a block for each slot, which has a place for it.
        unsafe {
            self.blocks
                .0
                .get_unchecked(nth as usize)
                .add(place as usize)
                .as_ref()
        }
    }

    /// Looks up a slot that was taken.
    #[inline]
    pub(super) fn get(&self, index: u32) -> Slot<'_, S> {
        let entry = self.entry(index);
        Slot {
            index,
            next: &entry.next,
            value: &entry.value,
        }
    }

    /// Looks up a slot, unless `index` is [`NONE`].
    #[inline]
    pub(super) fn try_get(&self, index: u32) -> Option<Slot<'_, S>> {
        (index != NONE).then(|| self.get(index))
    }
}

impl<S, T> Slots<S, Data<T>> {
    fn data(&self, index: u32) -> &Data<T> {
        &self.entry(index).data
    }

    /// Holds the data of a slot for the first time.
    ///
    /// # Safety
    ///
    /// The slot must be new to its user: there is no [`Held`] for it that is still used, and none
    /// that has left it since the slot was taken last.
    #[inline]
    pub(super) unsafe fn hold_new(&self, index: u32) -> Held<T> {
        // INVARIANT: By the safety requirements there is no other.
        Held(NonNull::from(self.data(index)))
    }

    /// Holds the data of a slot if it was left.
    #[inline]
    pub(super) fn hold(&self, index: u32) -> Option<Held<T>> {
        let data = self.data(index);
        if !data.is_left.load(Acquire) {
            return None;
        }
        // Nobody else comes this way at the same time, as this type isn't `Sync`.
        data.is_left.store(false, Relaxed);
        // INVARIANT: The one that there was has left.
        Some(Held(NonNull::from(data)))
    }

    /// Whether the data of a slot was left.
    pub(super) fn is_left(&self, index: u32) -> bool {
        self.data(index).is_left.load(Relaxed)
    }
}

impl<S: Keyed, D> Slots<S, D> {
    /// Takes a slot that isn't in use, if there is one. What it contains is left from its last use.
    #[inline]
    pub(super) fn take(&self) -> Option<Slot<'_, S>> {
        match self.try_get(self.spare.get()) {
            Some(slot) => {
                self.spare.set(slot.next.get());
                Some(slot)
            }
            None => self.take_new(),
        }
    }

    /// Takes a slot that never was in use.
    #[cold]
    fn take_new(&self) -> Option<Slot<'_, S>> {
        let new = self.buckets();
        if new == self.capacity() {
            return None;
        }
        let index = self.end.replace(self.end() + 1);
        self.mask.set(self.buckets().next_power_of_two() - 1);
        self.split(new);
        Some(self.get(index))
    }

    /// Gives back a slot that was taken and isn't linked.
    #[inline]
    pub(super) fn put(&self, slot: Slot<'_, S>) {
        slot.next.set(self.spare.replace(slot.index));
    }

    /// Moves what belongs into the new bucket `new` there, from the bucket where it has been so
    /// far.
    fn split(&self, new: u32) {
        let Some(level) = new.checked_ilog2() else {
            // The first bucket has nothing to inherit.
            return;
        };
        let old = new - (1 << level);
        let mut index = self.head(old).replace(NONE);
        while index != NONE {
            let entry = self.entry(index);
            let next = entry.next.get();
            let moves = (hash(entry.value.key()) >> level) & 1 == 1;
            let head = self.head(if moves { new } else { old });
            entry.next.set(head.replace(index));
            index = next;
        }
    }

    /// The first slot in a bucket.
    fn head(&self, bucket: u32) -> &Cell<u32> {
        &self.entry(bucket).bucket
    }

    /// The bucket for `key`. There must be one.
    #[inline]
    fn bucket(&self, key: u32) -> u32 {
        // One bit more or less of the hash, depending on whether that bucket has been split off
        // yet.
        let bucket = hash(key) & self.mask.get();
        if bucket < self.buckets() {
            bucket
        } else {
            bucket & (self.mask.get() >> 1)
        }
    }

    /// Lets a slot that was taken be found by its key.
    #[inline]
    pub(super) fn link(&self, slot: Slot<'_, S>) {
        let head = self.head(self.bucket(slot.key()));
        slot.next.set(head.replace(slot.index));
    }

    /// Ends what [`Slots::link`] began.
    pub(super) fn unlink(&self, slot: Slot<'_, S>) {
        if let Some((link, _)) = self.search(slot.key(), |other| other.index == slot.index) {
            link.set(slot.next.get());
        }
    }

    /// Finds a linked slot.
    pub(super) fn find(&self, key: u32) -> Option<Slot<'_, S>> {
        Some(self.search(key, |slot| slot.key() == key)?.1)
    }

    /// Finds the linked slot that `is_it` tells from others in the bucket for `key`, and what links
    /// it.
    #[inline]
    fn search(
        &self,
        key: u32,
        is_it: impl Fn(Slot<'_, S>) -> bool,
    ) -> Option<(&Cell<u32>, Slot<'_, S>)> {
        if self.is_new() {
            return None;
        }
        let mut link = self.head(self.bucket(key));
        loop {
            let slot = self.try_get(link.get())?;
            if is_it(slot) {
                return Some((link, slot));
            }
            link = slot.next;
        }
    }
}

impl<S: Keyed, T> Slots<S, Data<T>> {
    /// Finds a linked slot whose data was left, unlinks it, and holds its data.
    #[inline]
    pub(super) fn unlink_and_hold(&self, key: u32) -> Option<(Slot<'_, S>, Held<T>)> {
        let (link, slot) = self.search(key, |slot| slot.key() == key)?;
        let held = self.hold(slot.index)?;
        link.set(slot.next.get());
        Some((slot, held))
    }
}

impl<S, D> Index<u32> for Slots<S, D> {
    type Output = S;

    fn index(&self, index: u32) -> &S {
        &self.entry(index).value
    }
}

/// Spreads keys evenly.
///
/// The offsets of equal buffers are multiples of one number. A single multiplication leaves some
/// such multiples in a few buckets; the second one doesn't.
fn hash(key: u32) -> u32 {
    const GOLDEN_RATIO: u64 = 0x9e37_79b9_7f4a_7c15;

    let product = u64::from(key).wrapping_mul(GOLDEN_RATIO);
    ((product ^ (product >> 32)).wrapping_mul(GOLDEN_RATIO) >> 32) as u32
}

#[cfg(CONFIG_ANDROID_BINDER_RUST_KUNIT_TEST)]
#[kunit_tests(rust_binder_slots)]
mod tests {
    use super::*;

    impl Keyed for Cell<u32> {
        fn key(&self) -> u32 {
            self.get()
        }
    }

    /// Takes a slot for `key`. Returns its index.
    fn take<D: Default>(slots: &mut Slots<Cell<u32>, D>, key: u32) -> Result<u32> {
        loop {
            if let Some(slot) = slots.take() {
                slot.set(key);
                slots.link(slot);
                return Ok(slot.index());
            }
            drop(slots.grow(slots.request().alloc(GFP_KERNEL)?));
        }
    }

    fn find<D>(slots: &Slots<Cell<u32>, D>, key: u32) -> Option<u32> {
        Some(slots.find(key)?.index())
    }

    fn longest_chain(slots: &Slots<Cell<u32>>) -> usize {
        let mut longest = 0;
        for bucket in 0..slots.buckets() {
            let mut index = slots.head(bucket).get();
            let mut length = 0;
            while index != NONE {
                index = slots.entry(index).next.get();
                length += 1;
            }
            longest = longest.max(length);
        }
        longest
    }

    #[test]
    fn blocks_have_no_gaps() -> Result {
        type Many = Blocks<Cell<u32>, ()>;
        // Up to the third large block.
        let end = SMALL_BLOCKS + 4;
        let mut slots = Slots::<Cell<u32>>::new();
        assert_eq!(slots.capacity(), 0);
        for nth in 0..end {
            drop(slots.grow(slots.request().alloc(GFP_KERNEL)?));
            let first = slots.blocks.0[nth as usize];
            for place in 0..Many::len_of(nth) {
                let slot = slots.take().ok_or(EINVAL)?;
                assert_eq!(Many::place_of(slot.index()), (nth, place));
                // SAFETY: The block has so many slots, which nobody changes meanwhile.
                let entry = unsafe { first.add(place as usize).as_ref() };
                assert!(core::ptr::eq(slot.value, &entry.value));
            }
            assert_eq!(slots.capacity(), slots.buckets());
            assert!(slots.take().is_none());
        }
        assert!(Many::LARGE_START < slots.end());
        Ok(())
    }

    #[test]
    fn grows_once() -> Result {
        let mut slots = Slots::<Cell<u32>>::new();
        let (first, second) = (slots.request(), slots.request());
        let (first, second) = (first.alloc(GFP_KERNEL)?, second.alloc(GFP_KERNEL)?);
        let left = slots.grow(first);
        assert!(left.block.is_none() && left.blocks.is_some_and(|blocks| blocks.0.is_empty()));
        let index = take(&mut slots, 7)?;
        // Late memory comes back whole, and nothing is lost.
        assert!(slots.grow(second).block.is_some());
        assert_eq!(slots.capacity(), FIRST);
        assert_eq!(find(&slots, 7), Some(index));

        let vacated = slots.vacate().blocks;
        assert!(vacated.is_some_and(|blocks| blocks.0.len() == 1));
        assert_eq!(slots.capacity(), 0);
        assert_eq!(find(&slots, 7), None);
        assert!(slots.take().is_none());
        Ok(())
    }

    #[test]
    fn finds_what_is_linked() -> Result {
        const KEYS: usize = 512;
        let mut slots = Slots::<Cell<u32>, Data<()>>::new();
        // Where each key is.
        let mut model = [NONE; KEYS];
        let mut random = 0x2545_f491_u32;

        for op in 0..50_000 {
            random ^= random << 13;
            random ^= random >> 17;
            random ^= random << 5;
            let key = random % KEYS as u32;
            let index = &mut model[key as usize];
            assert_eq!(find(&slots, key).unwrap_or(NONE), *index);
            // More and more of them, then fewer.
            let adds = random >> 16 < if op < 25_000 { 50_000 } else { 20_000 };
            if *index == NONE && adds {
                *index = take(&mut slots, key)?;
            } else if *index != NONE && !adds {
                let slot = slots.get(*index);
                if op % 2 == 0 {
                    slots.unlink(slot);
                } else {
                    // SAFETY: The slot was taken, and nobody held it since.
                    unsafe { slots.hold_new(*index).leave() };
                    let (unlinked, _) = slots.unlink_and_hold(key).ok_or(EINVAL)?;
                    assert_eq!(unlinked.index(), *index);
                }
                assert_eq!(find(&slots, key), None);
                slots.put(slot);
                *index = NONE;
            }
        }
        // Slots are used again.
        assert!(slots.buckets() <= KEYS as u32);
        for (key, &index) in model.iter().enumerate() {
            assert_eq!(find(&slots, key as u32).unwrap_or(NONE), index);
        }
        Ok(())
    }

    #[test]
    fn is_held_by_one() -> Result {
        let mut slots = Slots::<Cell<u32>, Data<u32>>::new();
        drop(slots.grow(slots.request().alloc(GFP_KERNEL)?));
        let index = take(&mut slots, 7)?;
        // SAFETY: The slot has just been taken.
        let mut held = unsafe { slots.hold_new(index) };
        assert!(!slots.is_left(index));
        // SAFETY: The slots are there until the end of the test.
        unsafe { *held.get_mut() = 1 };
        assert!(slots.hold(index).is_none());
        assert!(slots.unlink_and_hold(7).is_none());
        assert_eq!(find(&slots, 7), Some(index));

        // SAFETY: As above.
        unsafe { held.leave() };
        assert!(slots.is_left(index));
        let (unlinked, held) = slots.unlink_and_hold(7).ok_or(EINVAL)?;
        assert_eq!(unlinked.index(), index);
        // SAFETY: As above.
        assert_eq!(unsafe { *held.get() }, 1);
        assert_eq!(find(&slots, 7), None);
        assert!(slots.hold(index).is_none());
        Ok(())
    }

    #[test]
    fn spreads_regular_keys() -> Result {
        for step in [1, 8, 24, 128, 2056, 2064, 4096, 4816, 7224, 8192, 65536] {
            let mut slots = Slots::<Cell<u32>>::new();
            for i in 0..1000 {
                take(&mut slots, i * step)?;
            }
            assert!(longest_chain(&slots) <= 10);
        }
        Ok(())
    }
}
