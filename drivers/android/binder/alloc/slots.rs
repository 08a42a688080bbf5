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
//! What is done under the lock takes a bounded time, also while growing: capacity doubles by adding
//! a block as large as all blocks so far, and no slot is copied. The hash table that finds a slot
//! by its key grows along with the slots in use, by one bucket for each (linear hashing), so there
//! is no moment at which all of it is hashed again.

use core::{
    cell::UnsafeCell,
    marker::PhantomData,
    mem,
    ops::{
        Index,
        IndexMut, //
    },
    ptr::NonNull, //
};

use kernel::prelude::*;

/// The index that stands for no slot.
pub(super) const NONE: u32 = u32::MAX;

/// Number of slots in the first block. Must be a power of two, and at least two.
///
/// Few, because most processes have one buffer at a time: that makes two ranges.
const FIRST: u32 = 2;

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

/// A slot, and the head of a bucket. The two have no more in common than their index.
struct Cell<S> {
    /// First slot in the bucket of this index.
    bucket: u32,
    /// Next slot in the same bucket, or next spare slot.
    next: u32,
    value: S,
}

/// Slots that are allocated together, and the data that goes with them, as many of the one as of
/// the other.
struct Block<S, D> {
    cells: KVVec<Cell<S>>,
    data: KVVec<UnsafeCell<D>>,
}

type Blocks<S, D> = KVec<Block<S, D>>;

/// Slots that are found by key.
///
/// With each slot goes a `D` for whoever the slot was taken for: nothing here looks at it, so that
/// it may be used without the lock.
///
/// # Invariants
///
/// - Block 0 has [`FIRST`] slots, and each other block has as many as all blocks before it.
/// - The slots below `used` are taken or on the spare list. `used` is at most the capacity.
/// - There are `used` buckets. A linked slot is in the one bucket that [`Slots::bucket`] tells for
///   its key. All chains end with [`NONE`].
pub(super) struct Slots<S, D = ()> {
    blocks: Blocks<S, D>,
    used: u32,
    spare: u32,
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

/// Refers to the data of a slot.
///
/// # Invariants
///
/// It was that of a slot when this was made. Slots neither move nor go away before
/// [`Slots::vacate`].
pub(super) struct DataRef<D>(NonNull<D>);

// SAFETY: It gives access to the data, as a mutable reference does.
unsafe impl<D: Send> Send for DataRef<D> {}
// SAFETY: As above.
unsafe impl<D: Sync> Sync for DataRef<D> {}

impl<D> DataRef<D> {
    /// Borrows the data.
    ///
    /// # Safety
    ///
    /// The slot must not have been given back, or given away by [`Slots::vacate`]. As long as the
    /// data is borrowed, nobody else may use it but by shared references.
    pub(super) unsafe fn get(&self) -> &D {
        // SAFETY: The slot has been initialized, and doesn't move or go away.
        unsafe { self.0.as_ref() }
    }

    /// Borrows the data mutably.
    ///
    /// # Safety
    ///
    /// The slot must not have been given back, or given away by [`Slots::vacate`]. As long as the
    /// data is borrowed, nobody else may use it.
    pub(super) unsafe fn get_mut(&mut self) -> &mut D {
        // SAFETY: As above.
        unsafe { self.0.as_mut() }
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
        let capacity = match self.blocks {
            0 => FIRST as usize,
            n => (FIRST as usize) << (n - 1),
        };
        let mut block = Block {
            cells: KVVec::with_capacity(capacity, GFP_KERNEL)?,
            data: KVVec::with_capacity(capacity, GFP_KERNEL)?,
        };
        for _ in 0..capacity {
            block.cells.push_within_capacity(Cell {
                bucket: NONE,
                next: NONE,
                value: S::default(),
            })?;
            block
                .data
                .push_within_capacity(UnsafeCell::new(D::default()))?;
        }

        // The empty blocks change places with the present ones, so that `grow` neither allocates
        // nor frees.
        let mut blocks = KVec::with_capacity(self.blocks + 1, GFP_KERNEL)?;
        for _ in 0..self.blocks {
            blocks.push_within_capacity(Block {
                cells: KVVec::new(),
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
            used: 0,
            spare: NONE,
        }
    }

    fn capacity(&self) -> u32 {
        match self.blocks.len() {
            0 => 0,
            n => FIRST << (n - 1),
        }
    }

    /// All slots that are taken have an index below this.
    pub(super) fn end(&self) -> u32 {
        self.used
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
            // the last one as large as they are together.
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

    /// In which block slot `index` is, and where in that block.
    fn locate(index: u32) -> (usize, usize) {
        let block = (index | (FIRST - 1)).ilog2() - (FIRST - 1).ilog2();
        // Half of what the blocks up to this one have; none for the first.
        let start = ((FIRST << block) >> 1) & !(FIRST - 1);
        (block as usize, (index - start) as usize)
    }

    fn cell(&self, index: u32) -> &Cell<S> {
        let (block, cell) = Self::locate(index);
        &self.blocks[block].cells[cell]
    }

    fn cell_mut(&mut self, index: u32) -> &mut Cell<S> {
        let (block, cell) = Self::locate(index);
        &mut self.blocks[block].cells[cell]
    }

    /// The data of a slot.
    pub(super) fn data(&self, index: u32) -> DataRef<D> {
        let (block, cell) = Self::locate(index);
        // INVARIANT: It is that of a slot.
        DataRef(NonNull::from(&self.blocks[block].data[cell]).cast())
    }
}

impl<S: Keyed, D> Slots<S, D> {
    /// Takes a slot that isn't in use, if there is one. What it contains is left from its last use.
    #[inline]
    pub(super) fn take(&mut self) -> Option<u32> {
        if self.spare != NONE {
            let index = self.spare;
            self.spare = self.cell(index).next;
            return Some(index);
        }
        self.take_new()
    }

    /// Takes a slot that never was in use.
    #[inline(never)]
    fn take_new(&mut self) -> Option<u32> {
        if self.used == self.capacity() {
            return None;
        }
        let index = self.used;
        self.used += 1;
        self.split(index);
        Some(index)
    }

    /// Gives back a slot that was taken and isn't linked.
    pub(super) fn put(&mut self, index: u32) {
        self.cell_mut(index).next = self.spare;
        self.spare = index;
    }

    /// Moves what belongs into the new bucket `new` there, from the bucket where it has been so
    /// far.
    fn split(&mut self, new: u32) {
        let Some(level) = new.checked_ilog2() else {
            // The first bucket has nothing to inherit.
            return;
        };
        let old = new - (1 << level);
        let mut index = mem::replace(&mut self.cell_mut(old).bucket, NONE);
        while index != NONE {
            let cell = self.cell(index);
            let next = cell.next;
            let moves = (hash(cell.value.key()) >> level) & 1 == 1;
            self.push(if moves { new } else { old }, index);
            index = next;
        }
    }

    fn push(&mut self, bucket: u32, index: u32) {
        let next = mem::replace(&mut self.cell_mut(bucket).bucket, index);
        self.cell_mut(index).next = next;
    }

    /// The bucket for `key`. There must be a slot in use.
    fn bucket(&self, key: u32) -> u32 {
        // One bit more or less of the hash, depending on whether that bucket has been split off
        // yet.
        let mask = self.used.next_power_of_two() - 1;
        let bucket = hash(key) & mask;
        if bucket < self.used {
            bucket
        } else {
            bucket & (mask >> 1)
        }
    }

    /// Lets a slot that was taken be found.
    pub(super) fn link(&mut self, index: u32) {
        let bucket = self.bucket(self[index].key());
        self.push(bucket, index);
    }

    /// Ends what [`Slots::link`] began.
    pub(super) fn unlink(&mut self, index: u32) {
        let bucket = self.bucket(self[index].key());
        self.unlink_from(bucket, |at, _| at == index);
    }

    /// Finds a linked slot, and unlinks it.
    pub(super) fn unlink_key(&mut self, key: u32) -> Option<u32> {
        if self.used == 0 {
            return None;
        }
        self.unlink_from(self.bucket(key), |_, value| value.key() == key)
    }

    /// Unlinks the slot in `bucket` that `is_it` tells.
    fn unlink_from(&mut self, bucket: u32, is_it: impl Fn(u32, &S) -> bool) -> Option<u32> {
        let mut prev = NONE;
        let mut index = self.cell(bucket).bucket;
        while index != NONE {
            let cell = self.cell(index);
            let next = cell.next;
            if is_it(index, &cell.value) {
                match prev {
                    NONE => self.cell_mut(bucket).bucket = next,
                    prev => self.cell_mut(prev).next = next,
                }
                return Some(index);
            }
            (prev, index) = (index, next);
        }
        None
    }

    /// Finds a linked slot.
    pub(super) fn find(&self, key: u32) -> Option<u32> {
        if self.used == 0 {
            return None;
        }
        let mut index = self.cell(self.bucket(key)).bucket;
        while index != NONE {
            let cell = self.cell(index);
            if cell.value.key() == key {
                return Some(index);
            }
            index = cell.next;
        }
        None
    }
}

impl<S, D> Index<u32> for Slots<S, D> {
    type Output = S;

    fn index(&self, index: u32) -> &S {
        &self.cell(index).value
    }
}

impl<S, D> IndexMut<u32> for Slots<S, D> {
    fn index_mut(&mut self, index: u32) -> &mut S {
        &mut self.cell_mut(index).value
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

#[kunit_tests(rust_binder_slots)]
mod tests {
    use super::*;

    impl Keyed for u32 {
        fn key(&self) -> u32 {
            *self
        }
    }

    fn take(slots: &mut Slots<u32>) -> Result<u32> {
        loop {
            match slots.take() {
                Some(index) => return Ok(index),
                None => drop(slots.grow(slots.request().alloc()?)),
            }
        }
    }

    fn longest_chain(slots: &Slots<u32>) -> usize {
        let mut longest = 0;
        for bucket in 0..slots.used {
            let mut index = slots.cell(bucket).bucket;
            let mut length = 0;
            while index != NONE {
                index = slots.cell(index).next;
                length += 1;
            }
            longest = longest.max(length);
        }
        longest
    }

    #[test]
    fn blocks_have_no_gaps() -> Result {
        let mut slots = Slots::<u32>::new();
        assert_eq!(slots.capacity(), 0);
        let mut index = 0;
        for block in 0..8 {
            drop(slots.grow(slots.request().alloc()?));
            assert_eq!(slots.blocks.len(), block + 1);
            for cell in 0..slots.blocks[block].cells.len() {
                assert_eq!(Slots::<u32>::locate(index), (block, cell));
                index += 1;
            }
            assert_eq!(slots.capacity(), index);
        }
        Ok(())
    }

    #[test]
    fn grows_once() -> Result {
        let mut slots = Slots::<u32>::new();
        let (first, second) = (slots.request().alloc()?, slots.request().alloc()?);
        assert_eq!(slots.grow(first).blocks.len(), 0);
        let index = slots.take().ok_or(EINVAL)?;
        slots[index] = 7;
        slots.link(index);
        // Late memory comes back whole, and nothing is lost.
        assert_eq!(slots.grow(second).blocks.len(), 1);
        assert_eq!(slots.capacity(), FIRST);
        assert_eq!(slots.find(7), Some(index));

        assert_eq!(slots.vacate().blocks.len(), 1);
        assert_eq!(slots.capacity(), 0);
        assert_eq!(slots.find(7), None);
        assert_eq!(slots.take(), None);
        Ok(())
    }

    #[test]
    fn finds_what_is_linked() -> Result {
        const KEYS: usize = 512;
        let mut slots = Slots::<u32>::new();
        // Where each key is.
        let mut model = [NONE; KEYS];
        let mut random = 0x2545_f491_u32;

        for op in 0..50_000 {
            random ^= random << 13;
            random ^= random >> 17;
            random ^= random << 5;
            let key = random % KEYS as u32;
            let index = &mut model[key as usize];
            assert_eq!(slots.find(key).unwrap_or(NONE), *index);
            // More and more of them, then fewer.
            let adds = random >> 16 < if op < 25_000 { 50_000 } else { 20_000 };
            if *index == NONE && adds {
                *index = take(&mut slots)?;
                slots[*index] = key;
                slots.link(*index);
            } else if *index != NONE && !adds {
                if op % 2 == 0 {
                    slots.unlink(*index);
                } else {
                    assert_eq!(slots.unlink_key(key), Some(*index));
                }
                assert_eq!(slots.unlink_key(key), None);
                slots.put(*index);
                *index = NONE;
            }
        }
        // Slots are used again.
        assert!(slots.used <= KEYS as u32);
        for (key, &index) in model.iter().enumerate() {
            assert_eq!(slots.find(key as u32).unwrap_or(NONE), index);
        }
        Ok(())
    }

    #[test]
    fn spreads_regular_keys() -> Result {
        for step in [1, 8, 24, 128, 2056, 2064, 4096, 4816, 7224, 8192, 65536] {
            let mut slots = Slots::<u32>::new();
            for i in 0..1000 {
                let index = take(&mut slots)?;
                slots[index] = i * step;
                slots.link(index);
            }
            assert!(longest_chain(&slots) <= 10);
        }
        Ok(())
    }
}
