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
//! What is done under the lock takes a bounded time, also while growing: each block that is added
//! has twice as many slots as the last one, and no slot is copied. The hash table that finds a slot
//! by its key grows along with the slots in use, by one bucket for each (linear hashing), so there
//! is no moment at which all of it is hashed again.

use core::{
    cell::{
        Cell,
        UnsafeCell, //
    },
    marker::PhantomData,
    mem,
    ops::{
        Deref,
        Index, //
    },
    ptr::NonNull, //
};

use kernel::{
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

/// Number of slots in the first block; a power of two.
///
/// Few, because most processes have one buffer at a time: that makes two ranges.
///
/// It is also the index of the first slot. So the highest bit of an index tells the block, and the
/// other bits tell where in that block the slot is.
pub(super) const FIRST: u32 = 2;

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

/// A slot, and the head of a bucket. The two have no more in common than their place.
struct Entry<S> {
    /// First slot in the bucket.
    bucket: Cell<u32>,
    /// Next slot in the same bucket, or next spare slot.
    next: Cell<u32>,
    value: S,
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

/// Slots that are allocated together, and the data that goes with them, as many of the one as of
/// the other.
struct Block<S, D> {
    entries: KVVec<Entry<S>>,
    data: KVVec<D>,
}

type Blocks<S, D> = KVec<Block<S, D>>;

/// A slot that has been looked up.
pub(super) struct Slot<'a, S> {
    index: u32,
    entry: &'a Entry<S>,
}

impl<'a, S> Slot<'a, S> {
    pub(super) fn index(&self) -> u32 {
        self.index
    }

    pub(super) fn into_ref(self) -> &'a S {
        &self.entry.value
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
        &self.entry.value
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
/// - Block 0 has [`FIRST`] slots, and each other block has twice as many as the one before it.
/// - The slots from [`FIRST`] to below `end` are taken or on the spare list. The blocks have a
///   place for each of them.
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
    blocks: usize,
    _slots: PhantomData<fn() -> (S, D)>,
}

/// Memory that is on its way into or out of a [`Slots`].
#[must_use = "must be dropped outside the lock"]
pub(super) struct Grown<S, D = ()> {
    blocks: Blocks<S, D>,
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
    /// # Errors
    ///
    /// `ENOMEM` if there is none.
    pub(super) fn alloc(self) -> Result<Grown<S, D>> {
        let capacity = (FIRST as usize) << self.blocks;
        let mut block = Block {
            entries: KVVec::with_capacity(capacity, GFP_KERNEL)?,
            data: KVVec::with_capacity(capacity, GFP_KERNEL)?,
        };
        for _ in 0..capacity {
            block.entries.push_within_capacity(Entry {
                bucket: Cell::new(NONE),
                next: Cell::new(NONE),
                value: S::default(),
            })?;
            block.data.push_within_capacity(D::default())?;
        }

        // The empty blocks change places with the present ones, so that `grow` neither allocates
        // nor frees.
        let mut blocks = KVec::with_capacity(self.blocks + 1, GFP_KERNEL)?;
        for _ in 0..self.blocks {
            blocks.push_within_capacity(Block {
                entries: KVVec::new(),
                data: KVVec::new(),
            })?;
        }
        blocks.push_within_capacity(block)?;
        Ok(Grown { blocks })
    }
}

impl<S, D> Slots<S, D> {
    /// Has no slots and takes no memory.
    pub(super) const fn new() -> Self {
        // INVARIANT: There are no blocks, slots or buckets.
        Self {
            blocks: KVec::new(),
            end: Cell::new(FIRST),
            mask: Cell::new(0),
            spare: Cell::new(NONE),
        }
    }

    fn capacity(&self) -> u32 {
        (FIRST << self.blocks.len()) - FIRST
    }

    /// All slots that are taken have an index below this.
    pub(super) fn end(&self) -> u32 {
        self.end.get()
    }

    /// Whether there never was a slot.
    pub(super) fn is_new(&self) -> bool {
        self.end() == FIRST
    }

    fn buckets(&self) -> u32 {
        self.end() - FIRST
    }

    /// Whether an empty owner should give the memory back.
    pub(super) fn is_large(&self) -> bool {
        self.capacity() > KEEP
    }

    /// What to allocate when [`Slots::take`] found nothing.
    pub(super) fn request(&self) -> GrowRequest<S, D> {
        GrowRequest {
            blocks: self.blocks.len(),
            _slots: PhantomData,
        }
    }

    /// Adds memory. Returns what the caller must drop outside the lock.
    ///
    /// If someone else was faster, `grown` itself is returned.
    pub(super) fn grow(&mut self, mut grown: Grown<S, D>) -> Grown<S, D> {
        if grown.blocks.len() == self.blocks.len() + 1 {
            // INVARIANT: The present blocks keep their places, and `GrowRequest::alloc` has made
            // the last one twice as large as the one before.
            for (new, old) in grown.blocks.iter_mut().zip(self.blocks.iter_mut()) {
                mem::swap(new, old);
            }
            mem::swap(&mut grown.blocks, &mut self.blocks);
        }
        grown
    }

    /// Gives all slots and all memory away, for the caller to drop outside the lock.
    pub(super) fn vacate(&mut self) -> Grown<S, D> {
        Grown {
            blocks: mem::replace(self, Self::new()).blocks,
        }
    }

    /// The block of slot `index`, and where it is in there.
    fn locate(&self, index: u32) -> (&Block<S, D>, usize) {
        assert!((FIRST..self.end()).contains(&index));
        let level = index.ilog2();
        let nth_block = (level - FIRST.ilog2()) as usize;
        // SAFETY: By the type invariants there is a block for each slot.
        let block = unsafe { self.blocks.get_unchecked(nth_block) };
        (block, (index & !(1 << level)) as usize)
    }

    fn entry(&self, index: u32) -> &Entry<S> {
        let (block, nth) = self.locate(index);
        // SAFETY: By the type invariants the block has a place for the slot.
        unsafe { block.entries.get_unchecked(nth) }
    }

    /// Looks up a slot that was taken.
    #[inline]
    pub(super) fn get(&self, index: u32) -> Slot<'_, S> {
        Slot {
            index,
            entry: self.entry(index),
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
        let (block, nth) = self.locate(index);
        // SAFETY: As in `entry`.
        unsafe { block.data.get_unchecked(nth) }
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
                self.spare.set(slot.entry.next.get());
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
        slot.entry.next.set(self.spare.replace(slot.index));
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
        &self.entry(FIRST + bucket).bucket
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
        slot.entry.next.set(head.replace(slot.index));
    }

    /// Ends what [`Slots::link`] began.
    pub(super) fn unlink(&self, slot: Slot<'_, S>) {
        if let Some((link, _)) = self.search(slot.key(), |other| other.index == slot.index) {
            link.set(slot.entry.next.get());
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
            link = &slot.entry.next;
        }
    }
}

impl<S: Keyed, T> Slots<S, Data<T>> {
    /// Finds a linked slot whose data was left, unlinks it, and holds its data.
    #[inline]
    pub(super) fn unlink_and_hold(&self, key: u32) -> Option<(Slot<'_, S>, Held<T>)> {
        let (link, slot) = self.search(key, |slot| slot.key() == key)?;
        let held = self.hold(slot.index)?;
        link.set(slot.entry.next.get());
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
            drop(slots.grow(slots.request().alloc()?));
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
        let mut slots = Slots::<Cell<u32>>::new();
        assert_eq!(slots.capacity(), 0);
        for block in 0..8 {
            drop(slots.grow(slots.request().alloc()?));
            assert_eq!(slots.blocks.len(), block + 1);
        }
        for block in 0..8 {
            for nth in 0..slots.blocks[block].entries.len() {
                let slot = slots.take().ok_or(EINVAL)?;
                assert!(core::ptr::eq(slot.entry, &slots.blocks[block].entries[nth]));
            }
        }
        assert_eq!(slots.capacity(), slots.buckets());
        assert!(slots.take().is_none());
        Ok(())
    }

    #[test]
    fn grows_once() -> Result {
        let mut slots = Slots::<Cell<u32>>::new();
        let (first, second) = (slots.request().alloc()?, slots.request().alloc()?);
        assert_eq!(slots.grow(first).blocks.len(), 0);
        let index = take(&mut slots, 7)?;
        // Late memory comes back whole, and nothing is lost.
        assert_eq!(slots.grow(second).blocks.len(), 1);
        assert_eq!(slots.capacity(), FIRST);
        assert_eq!(find(&slots, 7), Some(index));

        assert_eq!(slots.vacate().blocks.len(), 1);
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
        drop(slots.grow(slots.request().alloc()?));
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
