// SPDX-License-Identifier: GPL-2.0

//! Which pages of an area are there, and what state each is in.
//!
//! # States
//!
//! | state      | page  | on the LRU | what it means                                              |
//! |------------|-------|------------|------------------------------------------------------------|
//! | absent     | none  | no         | nothing is mapped                                          |
//! | installing | yes   | no         | buffers lie on it; the sender of each maps it              |
//! | filling    | maybe | no         | one buffer covers all of it, which is being written        |
//! | in use     | yes   | maybe      | buffers lie on it, it is mapped                            |
//! | idle       | yes   | yes        | no buffer lies on it; reclaim may take it                  |
//! | isolated   | taken | no         | the one reclaimer that made it so unmaps the page          |
//!
//! # Who moves a page from where to where
//!
//! Each move is made with the area's lock held, and there are no others.
//!
//! | from                   | to         | by                                                     |
//! |------------------------|------------|--------------------------------------------------------|
//! | idle                   | in use     | a thread that reserves a buffer                        |
//! | absent                 | filling    | a thread that reserves a buffer which covers the page  |
//! | absent                 | installing | a thread that reserves another buffer, and has a page  |
//! | installing             | in use     | any thread that has mapped the page for its buffer     |
//! | installing             | absent     | the last thread with a buffer on it, if all failed     |
//! | filling                | in use     | who has the buffer, once it is written and mapped      |
//! | filling                | absent     | who has the buffer, to release it instead              |
//! | in use                 | idle       | the thread that releases the last buffer on the page   |
//! | idle                   | isolated   | reclaim, when nothing keeps it from unmapping the page |
//! | isolated               | absent     | the same reclaimer, once the page is unmapped          |
//! | in use, idle           | absent     | teardown, when nothing maps the area any more          |
//!
//! Nobody waits for a thread that maps a page: whoever has a buffer on it maps it, too, and one of
//! them comes first. Only for the end of isolated may a thread have to wait
//! ([`PageTable::is_isolated`]), which holds no page in that state, and can be killed meanwhile.
//!
//! # A page is mapped when it has been written
//!
//! What a new page contains is nobody's business. Most of a large buffer is about to be
//! overwritten, so that it would be a waste to clear it first. A page that a buffer covers all of
//! is mapped when the buffer has been written, and what hasn't been written by then is cleared.
//! Nobody waits for that, as no other buffer can come to lie on such a page. Any other page is
//! cleared and mapped before it gets in use.
//!
//! # A page in use may stay on the LRU
//!
//! A page that goes back into use soon needs no LRU operation: it stays linked until reclaim meets
//! it there and unlinks it. The link is taken away under the area's lock only, so that whether a
//! slot is linked can be asked without the LRU lock.

use core::{
    cell::Cell,
    cmp::max,
    iter,
    marker::PhantomPinned,
    mem::{self, align_of, offset_of, size_of, swap},
    ops::Range,
    pin::Pin,
    ptr::{self, NonNull},
    slice, //
};

use kernel::{
    alloc::Flags,
    list_lru::{ListLru, LruLinks},
    memcontrol::{MemCgroup, RcuMemCgroup},
    page::{BorrowedPage, Page, PageBatch},
    prelude::*,
    sync::{
        rcu,
        Arc,
        ArcBorrow, //
    }, //
};

use super::{Area, Buffer};
use crate::trace;

/// The LRU of idle pages of all areas.
pub(crate) type IdleLru = ListLru<Slot>;

/// What state a page is in; the module documentation has the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Absent,
    Installing,
    InUse,
    Idle,
    Isolated,
    Filling,
}

/// The low bits of a page pointer, which hold the state. On 32-bit machines there are no more.
const STATE_MASK: usize = 3;
const _: () = assert!(align_of::<kernel::bindings::page>() > STATE_MASK);

impl State {
    /// What stands in the low bits. States with a page have the same bits as others without.
    const fn bits(self) -> usize {
        match self {
            State::Absent | State::InUse => 0,
            State::Isolated | State::Idle => 1,
            State::Filling => 2,
            State::Installing => 3,
        }
    }
}

/// The place of one page of an area: its state, the page if there is one, its link in the LRU.
///
/// # Invariants
///
/// - `word` is a state, or'd with the pointer to a page that the slot owns, or with null.
/// - In the states in use, installing and idle there is a page, in filling there may be one; in the
///   others there is none.
/// - The slot is linked only in the states in use and idle, and always when idle.
/// - `word` is only used under the area's lock.
#[pin_data]
#[repr(C)]
pub(crate) struct Slot {
    #[pin]
    links: LruLinks,
    word: Cell<usize>,
}

// SAFETY: The links may be used by any thread. What they don't protect is only used with the area's
// lock held: whoever comes by a slot without it, by the LRU, asks for nothing but whose it is.
unsafe impl Sync for Slot {}

kernel::list_lru::impl_lru_item! {
    // SAFETY: The node of a page never changes. Its memcg is changed by reparenting only, as for
    // any page. A slot keeps its page while it is linked.
    unsafe impl LruItem for Slot {
        using LruLinks { self.links };

        fn nid(&self) -> i32 {
            self.page().map_or(0, |page| page.nid())
        }

        fn memcg<'a>(&'a self, guard: &'a rcu::Guard) -> Option<&'a RcuMemCgroup> {
            MemCgroup::of_page(&*self.page()?, guard)
        }
    }
}

impl Slot {
    fn new() -> impl PinInit<Self> {
        // INVARIANT: Absent, without a page, and not linked.
        pin_init!(Self {
            links <- LruLinks::new(),
            word: Cell::new(State::Absent.bits()),
        })
    }

    fn state(&self) -> State {
        // By the type invariants there are no other values.
        match (self.word.get() & STATE_MASK, self.raw_page().is_some()) {
            (0, true) => State::InUse,
            (0, false) => State::Absent,
            (1, true) => State::Idle,
            (1, false) => State::Isolated,
            (2, _) => State::Filling,
            _ => State::Installing,
        }
    }

    fn raw_page(&self) -> Option<NonNull<kernel::bindings::page>> {
        NonNull::new((self.word.get() & !STATE_MASK) as *mut _)
    }

    /// The page on this slot, if there is one.
    fn page(&self) -> Option<BorrowedPage<'_>> {
        let raw = self.raw_page()?;
        // SAFETY: By the type invariants the slot owns the page. The caller has the area's lock, so
        // it isn't taken off the slot.
        Some(unsafe { BorrowedPage::from_raw(raw) })
    }

    /// in use, idle -> in use. Says if it is so; if not, nothing changes.
    fn claim(&self) -> bool {
        match self.state() {
            State::InUse => true,
            State::Idle => {
                self.set_state(State::InUse);
                true
            }
            _ => false,
        }
    }

    /// in use -> idle. Says whether it has to go on the LRU then.
    fn make_idle(&self) -> bool {
        let is_used = self.state() == State::InUse;
        if is_used {
            self.set_state(State::Idle);
        }
        is_used && !self.links.is_linked()
    }

    /// Refers to the page on this slot, if there is one.
    fn page_ref(&self) -> Option<PageRef> {
        // INVARIANT: It is there now.
        self.raw_page().map(PageRef)
    }

    /// Changes the state; the page stays what it is.
    fn set_state(&self, state: State) {
        let page = self.word.get() & !STATE_MASK;
        self.word.set(page | state.bits());
    }

    /// Puts `page` on the slot, which has none.
    fn put(&self, page: Page, state: State) {
        debug_assert!(self.raw_page().is_none());
        // INVARIANT: The slot takes up the ownership of the page.
        let raw = page.into_raw().as_ptr() as usize;
        self.word.set(raw | state.bits());
    }

    /// Takes the page off the slot, which isn't linked.
    fn take(&self, state: State) -> Option<Page> {
        let raw = self.raw_page();
        // INVARIANT: The slot gives up the ownership of the page.
        self.word.set(state.bits());
        // SAFETY: The slot owned the page, and has just forgotten it.
        raw.map(|raw| unsafe { Page::from_raw(raw) })
    }

    /// The area that this slot belongs to, as [`Arc::into_raw`] gives it.
    ///
    /// The area is there at least as long as the slot is linked.
    ///
    /// [`Arc::into_raw`]: kernel::sync::Arc::into_raw
    pub(super) fn area(&self) -> *const Area {
        let chunk = Chunk::with(self);
        // SAFETY: Every slot lies in a chunk, by the only constructor of slots. The owner never
        // changes.
        unsafe { (*chunk).owner }
    }
}

/// How many slots lie together: as many as fit into 128 bytes with a pointer before them.
const SLOTS: usize = (128 - size_of::<*const Area>()) / size_of::<Slot>();

/// The slots of a few adjoining pages.
///
/// A slot has no room for a pointer to its area. It finds it at the beginning of the chunk, which
/// is aligned to its size for that purpose.
///
/// # Invariants
///
/// - `owner` is the area whose page table has this chunk, as [`Arc::into_raw`] gives it. It never
///   changes.
/// - The reference of the [`BufferAllocator`] to the area outlives every link of a slot: it unlinks
///   them all before it lets go of the area.
///
/// [`Arc::into_raw`]: kernel::sync::Arc::into_raw
/// [`BufferAllocator`]: super::BufferAllocator
#[pin_data]
#[repr(C, align(128))]
struct Chunk {
    owner: *const Area,
    #[pin]
    slots: [Slot; SLOTS],
    /// The LRU points to the slots, and the slots find the chunk by their address.
    #[pin]
    _pin: PhantomPinned,
}

const _: () = assert!(size_of::<Chunk>() == align_of::<Chunk>());

// SAFETY: The area that `owner` points to is `Send` and `Sync`, and so is everything else.
unsafe impl Send for Chunk {}
// SAFETY: As above.
unsafe impl Sync for Chunk {}

impl Chunk {
    /// Makes a chunk for the page table of `owner`.
    fn new(owner: ArcBorrow<'_, Area>, flags: Flags) -> Result<Pin<KBox<Self>>> {
        // INVARIANT: The caller puts the chunk into the page table of `owner`.
        let chunk = KBox::pin_init(
            pin_init!(Self {
                owner: Arc::as_ptr(&owner.into()),
                slots <- pin_init::pin_init_array_from_fn(|_| Slot::new()),
                _pin: PhantomPinned,
            }),
            flags,
        )?;
        // For `with`: a reference to a slot is good for that slot only.
        let _ = ptr::from_ref(&*chunk).expose_provenance();
        Ok(chunk)
    }

    /// The chunk that has `slot`.
    fn with(slot: *const Slot) -> *const Self {
        // A chunk is aligned to its size, so it begins where the slot's address is rounded down to.
        ptr::with_exposed_provenance(slot.addr() & !(align_of::<Self>() - 1))
    }
}

/// How many adjoining pages reclaim takes at a time: a bit for each fits into a word. The first has
/// an index that is a multiple of it.
pub(super) const GROUP: usize = usize::BITS as usize;

/// How many chunks a group lies in at most.
const GROUP_CHUNKS: usize = GROUP.div_ceil(SLOTS) + 1;

/// Where a [`PageTable`] has its chunks.
type Chunks = KVec<Option<Pin<KBox<Chunk>>>>;

/// Says what memory a page table lacks.
pub(super) struct GrowRequest {
    /// Which chunk isn't there.
    nth: usize,
    /// How many places for chunks there have to be.
    places: Option<usize>,
}

/// Memory that is on its way into a page table, or out of it.
#[must_use = "must be dropped outside the lock"]
pub(super) struct Grown {
    nth: usize,
    chunk: Option<Pin<KBox<Chunk>>>,
    places: Option<Chunks>,
}

impl GrowRequest {
    /// Allocates the memory, for the page table of `owner`. May sleep if the flags say so.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(super) fn alloc(&self, owner: ArcBorrow<'_, Area>, flags: Flags) -> Result<Grown> {
        let mut places = None;
        if let Some(capacity) = self.places {
            let mut chunks = Chunks::with_capacity(capacity, flags)?;
            for _ in 0..capacity {
                chunks.push_within_capacity(None)?;
            }
            places = Some(chunks);
        }
        Ok(Grown {
            nth: self.nth,
            chunk: Some(Chunk::new(owner, flags)?),
            places,
        })
    }
}

/// Memory that a page table doesn't need any more: chunks without a page, for one group of
/// adjoining pages at most, or the places for chunks.
#[must_use = "must be dropped outside the lock"]
pub(super) struct Emptied {
    chunks: [Option<Pin<KBox<Chunk>>>; GROUP_CHUNKS],
    places: Option<Chunks>,
}

impl Emptied {
    /// Whether the page table has no memory any more.
    pub(super) fn is_all(&self) -> bool {
        self.places.is_some()
    }
}

/// Refers to a page on a slot, without keeping it there.
///
/// # Invariants
///
/// There was such a page when this was made.
pub(super) struct PageRef(NonNull<kernel::bindings::page>);

// SAFETY: A page may be used by any thread, also by several at a time.
unsafe impl Send for PageRef {}
// SAFETY: As above.
unsafe impl Sync for PageRef {}

impl PageRef {
    /// Borrows the page.
    ///
    /// # Safety
    ///
    /// The page must stay in use as long as it is borrowed.
    pub(super) unsafe fn borrow(&self) -> BorrowedPage<'_> {
        // SAFETY: A page in use isn't taken off its slot, which owns it.
        unsafe { BorrowedPage::from_raw(self.0) }
    }
}

/// How many pages of an area are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) in_use: usize,
    pub(super) idle: usize,
    pub(super) absent: usize,
}

/// The slots of some adjoining pages, each with the index of its page.
struct SlotsIn<'a> {
    chunks: &'a [Option<Pin<KBox<Chunk>>>],
    left: Range<usize>,
    /// Those of the chunk with the first page that is left, unless that chunk is yet to be found.
    here: slice::Iter<'a, Slot>,
}

impl<'a> Iterator for SlotsIn<'a> {
    type Item = (usize, &'a Slot);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(slot) = self.here.next() {
                let index = self.left.start;
                self.left.start += 1;
                return Some((index, slot));
            }
            if self.left.is_empty() {
                return None;
            }
            let (nth, start) = (self.left.start / SLOTS, self.left.start % SLOTS);
            let end = (nth + 1) * SLOTS;
            match self.chunks.get(nth) {
                Some(Some(chunk)) => {
                    let end = SLOTS - end.saturating_sub(self.left.end);
                    self.here = chunk.slots[start..end].iter();
                }
                Some(None) => self.left.start = end,
                // Nothing was ever touched from here on.
                None => return None,
            }
        }
    }
}

/// The pages of an area.
///
/// Its memory follows the pages that are there: a [`Chunk`] where there is one, and a pointer for
/// each [`SLOTS`] pages up to the highest that there was.
///
/// # Invariants
///
/// `used` places have a chunk.
pub(super) struct PageTable {
    chunks: Chunks,
    used: usize,
    pages: usize,
    /// One more than the highest page that a buffer ever needed to have installed.
    high: usize,
}

impl PageTable {
    /// Makes the table of an area of `pages` pages, all absent. Takes no memory.
    pub(super) const fn new(pages: usize) -> Self {
        Self {
            chunks: KVec::new(),
            used: 0,
            pages,
            high: 0,
        }
    }

    fn slot(&self, index: usize) -> Option<&Slot> {
        let chunk = self.chunks.get(index / SLOTS)?.as_ref()?;
        Some(&chunk.slots[index % SLOTS])
    }

    /// The slots of `range` that exist.
    #[inline]
    fn slots(&self, range: Range<usize>) -> SlotsIn<'_> {
        SlotsIn {
            chunks: &self.chunks,
            left: range,
            here: [].iter(),
        }
    }

    pub(super) fn state(&self, index: usize) -> State {
        self.slot(index).map_or(State::Absent, Slot::state)
    }

    /// The index of the page that has `slot`, if that is a slot of this area.
    pub(super) fn index_of(&self, slot: *const Slot) -> Option<usize> {
        let chunk = Chunk::with(slot);
        let nth = self.chunks.iter().position(|place| {
            let place = place.as_ref();
            place.is_some_and(|other| ptr::eq(&**other, chunk))
        })?;
        let offset = slot.addr() - chunk.addr() - offset_of!(Chunk, slots);
        Some(nth * SLOTS + offset / size_of::<Slot>())
    }

    /// The first pages of `range`, `N` at most, all of which `buffer` lies on, a buffer in this
    /// area.
    ///
    /// # Errors
    ///
    /// `EFAULT`: one of them isn't there.
    pub(super) fn in_use<'b, const N: usize>(
        &self,
        range: Range<usize>,
        buffer: &'b Buffer,
    ) -> Result<[Option<BorrowedPage<'b>>; N]> {
        let mut pages = [const { None }; N];
        let all = buffer.pages();
        if range.start < all.start || range.end > all.end {
            return Err(EFAULT);
        }
        let mut places = pages.iter_mut();
        let mut index = range.start;
        while index < range.end {
            let chunk = self.chunks.get(index / SLOTS);
            let chunk = chunk.and_then(Option::as_ref).ok_or(EFAULT)?;
            let slots = &chunk.slots[index % SLOTS..];
            for slot in slots.iter().take(range.end - index) {
                let Some(place) = places.next() else {
                    return Ok(pages);
                };
                if !matches!(
                    slot.state(),
                    State::InUse | State::Filling | State::Installing
                ) {
                    return Err(EFAULT);
                }
                let raw = slot.raw_page().ok_or(EFAULT)?;
                // SAFETY: By the invariants of `Buffer`, all pages that it lies on stay in use, or
                // are being filled or installed, while it exists. Only teardown takes such a page
                // off its slot, which by the invariants of `BufferAllocator` finds no buffer any
                // more.
                *place = Some(unsafe { BorrowedPage::from_raw(raw) });
            }
            index += slots.len();
        }
        Ok(pages)
    }

    /// idle -> in use for the pages of `range`, on which a buffer has been reserved. Gives the
    /// first page if all of them are there; if not, those that were idle are so again when the
    /// buffer is released.
    #[inline]
    pub(super) fn claim(&mut self, range: Range<usize>) -> Option<PageRef> {
        // Most buffers lie on one page.
        if range.len() == 1 {
            let slot = self.slot(range.start)?;
            return if slot.claim() { slot.page_ref() } else { None };
        }
        let there = self.slots(range.clone()).filter(|(_, slot)| slot.claim());
        if there.count() == range.len() {
            self.slot(range.start)?.page_ref()
        } else {
            None
        }
    }

    /// Whether reclaim is about to take away a page of `range`.
    pub(super) fn is_isolated(&self, range: Range<usize>) -> bool {
        self.slots(range)
            .any(|(_, slot)| slot.state() == State::Isolated)
    }

    /// What memory pages of `range` need to be installed.
    pub(super) fn lacks(&self, range: Range<usize>) -> Option<GrowRequest> {
        if range.is_empty() {
            return None;
        }
        let places = range.end.div_ceil(SLOTS);
        let nth = (range.start / SLOTS..places)
            .find(|&nth| !matches!(self.chunks.get(nth), Some(Some(_))))?;
        Some(GrowRequest {
            nth,
            places: (places > self.chunks.len()).then(|| places.next_power_of_two()),
        })
    }

    /// Takes in what [`lacks`](Self::lacks) asked for, unless it is there now. Returns what the
    /// caller must drop outside the lock.
    pub(super) fn grow(&mut self, mut grown: Grown) -> Grown {
        if let Some(places) = grown.places.as_mut() {
            if places.len() > self.chunks.len() {
                for (new, old) in places.iter_mut().zip(self.chunks.iter_mut()) {
                    swap(new, old);
                }
                swap(places, &mut self.chunks);
            }
        }
        // Reclaim may have taken the places away meanwhile.
        if let Some(chunk) = self.chunks.get_mut(grown.nth) {
            if chunk.is_none() {
                swap(chunk, &mut grown.chunk);
                self.used += 1;
            }
        }
        grown
    }

    /// absent -> filling for the pages of `range`, all of which a buffer covers. Their pages are to
    /// be [`put`](Self::put) there. Says whether there are any.
    pub(super) fn begin_fill(&mut self, range: Range<usize>) -> bool {
        let mut any = false;
        for (_, slot) in self.slots(range) {
            if slot.state() == State::Absent {
                slot.set_state(State::Filling);
                any = true;
            }
        }
        any
    }

    /// The first adjoining pages of `range` that are `wanted`, `limit` at most.
    fn run(
        &self,
        range: Range<usize>,
        limit: usize,
        wanted: impl Fn(&Slot) -> bool,
    ) -> Option<Range<usize>> {
        let mut slots = self.slots(range);
        let (start, _) = slots.find(|(_, slot)| wanted(slot))?;
        let more = slots
            .take(limit - 1)
            .zip(start + 1..)
            .take_while(|((index, slot), next)| index == next && wanted(slot))
            .count();
        Some(start..start + 1 + more)
    }

    /// The first adjoining pages of `range` that are to be filled and have no page yet, `limit` at
    /// most.
    pub(super) fn lacking(&self, range: Range<usize>, limit: usize) -> Option<Range<usize>> {
        self.run(range, limit, |slot| {
            slot.state() == State::Filling && slot.raw_page().is_none()
        })
    }

    /// The first adjoining pages of `range` that are being filled, `limit` at most.
    pub(super) fn filling(&self, range: Range<usize>, limit: usize) -> Option<Range<usize>> {
        self.run(range, limit, |slot| slot.state() == State::Filling)
    }

    /// Puts pages on the slots of `run`, which have none: absent -> installing, or they are filling
    /// and stay so. That is `state`.
    pub(super) fn put(
        &mut self,
        run: Range<usize>,
        pages: impl Iterator<Item = Page>,
        state: State,
    ) {
        self.high = max(self.high, run.end);
        for ((_, slot), page) in self.slots(run).zip(pages) {
            slot.put(page, state);
        }
    }

    /// installing -> in use for page `index`, which is mapped now, unless others were faster.
    pub(super) fn installed(&mut self, index: usize) {
        if let Some(slot) = self.slot(index) {
            if slot.state() == State::Installing {
                slot.set_state(State::InUse);
            }
        }
    }

    /// installing -> absent for the pages of `range`, on which no buffer lies: nobody could map
    /// them.
    pub(super) fn abandon<const N: usize>(&mut self, range: Range<usize>, gone: &mut PageBatch<N>) {
        for (_, slot) in self.slots(range) {
            if slot.state() == State::Installing {
                if let Some(page) = slot.take(State::Absent) {
                    gone.push(page);
                }
            }
        }
    }

    /// filling -> in use for all of `range`, which is mapped now.
    pub(super) fn filled(&mut self, range: Range<usize>) {
        for (_, slot) in self.slots(range) {
            if slot.state() == State::Filling {
                slot.set_state(State::InUse);
            }
        }
    }

    /// filling -> absent for pages of `range`, until `gone` is full. They aren't mapped.
    pub(super) fn discard<const N: usize>(&mut self, range: Range<usize>, gone: &mut PageBatch<N>) {
        for (_, slot) in self.slots(range) {
            if gone.is_full() {
                return;
            }
            if slot.state() != State::Filling {
                continue;
            }
            if let Some(page) = slot.take(State::Absent) {
                gone.push(page);
            }
        }
    }

    /// Takes away the memory for the group of pages from `base` on, as far as no page is there or
    /// on its way, and all memory of the table if that was the last.
    pub(super) fn trim(&mut self, base: usize) -> Emptied {
        let mut emptied = Emptied {
            chunks: [const { None }; GROUP_CHUNKS],
            places: None,
        };
        let first = base / SLOTS;
        let places = self.chunks.iter_mut().skip(first);
        for (place, empty) in places.zip(&mut emptied.chunks) {
            let chunk = place.take_if(|chunk| {
                let mut slots = chunk.slots.iter();
                slots.all(|slot| slot.state() == State::Absent)
            });
            // INVARIANT: One less has a chunk.
            self.used -= usize::from(chunk.is_some());
            *empty = chunk;
        }
        if self.used == 0 {
            emptied.places = Some(mem::take(&mut self.chunks));
        }
        emptied
    }

    /// in use -> idle for the pages of `range` that are in use.
    pub(super) fn make_idle(&mut self, range: Range<usize>, area: &Area) {
        if range.is_empty() {
            return;
        }
        if trace::trace_free_lru_is_on() {
            return self.make_idle_watched(range, area);
        }
        let lru = &area.lru;
        // Most buffers lie on one page.
        if range.len() == 1 {
            if let Some(slot) = self.slot(range.start).filter(|slot| slot.make_idle()) {
                // SAFETY: The chunks are pinned, and are freed only after teardown, which unlinks
                // all slots. A slot has a page, whose node never changes, until it is unlinked.
                unsafe { lru.add(slot) };
            }
            return;
        }
        let mut idle = self
            .slots(range)
            .filter_map(|(_, slot)| slot.make_idle().then_some(slot));
        // Most often they are all linked still.
        if let Some(first) = idle.next() {
            // SAFETY: As above.
            unsafe { lru.add_many(Iterator::chain(iter::once(first), idle)) };
        }
    }

    /// As [`make_idle`](Self::make_idle), but one by one: somebody wants to know how long each
    /// takes.
    #[cold]
    fn make_idle_watched(&mut self, range: Range<usize>, area: &Area) {
        for (index, slot) in self.slots(range) {
            if slot.make_idle() {
                trace::trace_free_lru_start(area.pid, index);
                // SAFETY: As in `make_idle`.
                unsafe { area.lru.add(slot) };
                trace::trace_free_lru_end(area.pid, index, iter::empty());
            }
        }
    }

    /// Takes all slots of `range` off the LRU. Says how many were on it. By the invariants of
    /// [`Slot`], the caller must not leave them idle.
    fn unlink(&mut self, range: Range<usize>, area: &Area) -> usize {
        let mut unlinked = 0;
        if trace::trace_alloc_lru_is_on() {
            unlinked = self.unlink_used_watched(range.clone(), area);
        }
        let slots = self.slots(range).map(|(_, slot)| slot);
        let linked = slots.filter(|slot| slot.links.is_linked());
        // SAFETY: A slot is only ever linked to the one LRU of its area.
        unlinked + unsafe { area.lru.del_many(linked) }
    }

    /// As [`unlink`](Self::unlink), but one by one, and only those that are in use again.
    #[cold]
    fn unlink_used_watched(&mut self, range: Range<usize>, area: &Area) -> usize {
        let mut unlinked = 0;
        for (index, slot) in self.slots(range) {
            if slot.state() == State::InUse && slot.links.is_linked() {
                trace::trace_alloc_lru_start(area.pid, index);
                // SAFETY: As in `unlink`.
                unlinked += usize::from(unsafe { area.lru.del(slot) });
                trace::trace_alloc_lru_end(area.pid, index, iter::empty());
            }
        }
        unlinked
    }

    /// idle -> isolated for the pages of `range`, of which no slot is on the LRU after this. `take`
    /// gets the pages, and their indices. Says how many slots were on the LRU.
    pub(super) fn isolate(
        &mut self,
        range: Range<usize>,
        area: &Area,
        mut take: impl FnMut(usize, Page),
    ) -> usize {
        let unlinked = self.unlink(range.clone(), area);
        for (index, slot) in self.slots(range) {
            if slot.state() != State::Idle {
                continue;
            }
            if let Some(page) = slot.take(State::Isolated) {
                take(index, page);
            }
        }
        unlinked
    }

    /// Moves the idle pages of `range` to the end of the LRU, and takes those in use off it. Says
    /// how many slots were on it.
    pub(super) fn rotate(&mut self, range: Range<usize>, area: &Area) -> usize {
        let unlinked = self.unlink(range.clone(), area);
        let slots = self.slots(range).map(|(_, slot)| slot);
        let idle = slots.filter(|slot| slot.state() == State::Idle);
        // SAFETY: As in `make_idle`.
        unsafe { area.lru.add_many(idle) };
        unlinked
    }

    /// isolated -> absent for pages that the caller isolated: bit 0 of `set` tells page `base`, and
    /// so on.
    pub(super) fn removed(&mut self, base: usize, set: usize) {
        for (index, slot) in self.slots(base..base + GROUP) {
            if set >> (index - base) & 1 == 1 {
                slot.set_state(State::Absent);
            }
        }
    }

    /// idle -> absent, and in use -> absent too if `all`, from page `*from` on, until `gone` is
    /// full or there is none left. Nothing maps the area any more.
    pub(super) fn tear_down<const N: usize>(
        &mut self,
        from: &mut usize,
        all: bool,
        lru: &IdleLru,
        gone: &mut PageBatch<N>,
    ) {
        for (index, slot) in self.slots(*from..self.pages) {
            *from = index;
            let state = slot.state();
            if state != State::Idle && !(all && state == State::InUse) {
                continue;
            }
            if gone.is_full() {
                return;
            }
            // SAFETY: A slot is only ever linked to the one LRU of its area.
            unsafe { lru.del(slot) };
            if let Some(page) = slot.take(State::Absent) {
                gone.push(page);
            }
        }
        *from = self.pages;
    }

    pub(super) fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for (_, slot) in self.slots(0..self.pages) {
            match slot.state() {
                State::InUse | State::Filling | State::Installing => counts.in_use += 1,
                State::Idle => counts.idle += 1,
                State::Absent | State::Isolated => {}
            }
        }
        counts.absent = self.pages - counts.in_use - counts.idle;
        counts
    }

    /// Whether it has no memory.
    #[cfg(CONFIG_ANDROID_BINDER_RUST_KUNIT_TEST)]
    pub(super) fn is_bare(&self) -> bool {
        self.used == 0 && self.chunks.capacity() == 0
    }

    pub(super) fn high(&self) -> usize {
        self.high
    }
}

impl Drop for PageTable {
    fn drop(&mut self) {
        for (_, slot) in self.slots(0..self.pages) {
            drop(slot.take(State::Absent));
        }
    }
}
