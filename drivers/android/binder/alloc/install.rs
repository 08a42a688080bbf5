// SPDX-License-Identifier: GPL-2.0

//! absent -> installing -> in use: brings the pages that a new buffer lacks. Those that it covers
//! are mapped later, when it has been written.
//!
//! The receiver is charged for them, beyond its limits if need be: the sender neither reclaims its
//! memory, nor waits for it to be reclaimed, nor fails. There are no more than the area has.

use core::{
    cmp::min,
    ops::Range,
    slice, //
};

use kernel::{
    alloc::{AllocError, Flags},
    memcontrol::MemCgroup,
    mm::MmWithUser,
    page::{
        BorrowedPage,
        Page,
        PageBatch,
        SplitPages, //
    },
    prelude::*,
    sync::{
        lock::spinlock::SpinLockGuard,
        rcu,
        ArcBorrow, //
    }, //
};

use super::{
    pages::{Grown, State},
    vma::Window,
    Area,
    AreaState,
    Buffer,
    BATCH, //
};
use crate::trace;

/// The first pages of a run.
type Borrowed<'b> = [Option<BorrowedPage<'b>>; BATCH];

/// How many pages, as a power of two, are allocated at a time at most. The page allocator keeps no
/// more than that at hand for each processor.
const MAX_ORDER: u32 = 3;

/// How often memory for management is asked for, with a page of the system's brought in between.
const TRIES: usize = 3;

/// A page of the system's may take reclaim, but no process is killed for a transaction.
fn page_flags() -> Flags {
    GFP_KERNEL | __GFP_HIGHMEM | __GFP_RETRY_MAYFAIL | __GFP_NOWARN
}

/// Several pages at a time are only asked for: if there are none at hand, nobody need be woken to
/// make some.
fn pages_flags() -> Flags {
    __GFP_HIGHMEM | __GFP_NOWARN
}

/// Has `alloc` allocate memory for management that is charged to `memcg`, beyond its limits if need
/// be, as pages are: with flags that let neither the charge nor the allocation wait. What the
/// system lacks is waited for here, without a charge.
///
/// # Errors
///
/// Those of `alloc`, and `ENOMEM`.
///
/// # Context
///
/// May sleep.
pub(super) fn charged<T>(
    memcg: Option<&MemCgroup>,
    mut alloc: impl FnMut(Flags) -> Result<T>,
) -> Result<T> {
    let account = GFP_KERNEL_ACCOUNT & !GFP_KERNEL;
    let mut tries = 1..TRIES;
    loop {
        match MemCgroup::with_active(memcg, || alloc(GFP_ATOMIC | account | __GFP_NOWARN)) {
            Err(ENOMEM) if tries.next().is_some() => drop(Page::alloc_page(page_flags())?),
            result => return result,
        }
    }
}

impl Area {
    /// Brings all pages of `buffer`, which has been reserved, into use. Those that it covers may be
    /// filling instead; says whether any is. On failure, the buffer can only be released, by
    /// [`BufferAllocator::abandon`].
    ///
    /// # Errors
    ///
    /// - `ESRCH`: the process is gone, or has unmapped its area.
    /// - `ENOMEM`: the system is out of memory.
    /// - `EINTR`: the current thread has been killed.
    ///
    /// # Context
    ///
    /// May sleep. The caller may be any process, and usually isn't the one that the area belongs
    /// to.
    ///
    /// [`BufferAllocator::abandon`]: super::BufferAllocator::abandon
    pub(super) fn install(self: ArcBorrow<'_, Self>, buffer: &Buffer) -> Result<bool> {
        // The sender may hold the last reference by the time that it is dropped. If the mm were
        // torn down here and now, the sender might wait in the middle of that for somebody who
        // waits for it.
        let mm = MmWithUser::into_mmput_async(self.mm.mmget_not_zero().ok_or(ESRCH)?);
        let memcg = MemCgroup::from_mm(&mm);

        let is_filling = self.install_covered(buffer.covered_pages(), memcg.as_deref())?;
        self.install_ends(&mm, buffer, memcg.as_deref())?;
        Ok(is_filling)
    }

    /// Locks the area when the page table has room for all of `part`, and nobody is about to take
    /// away a page of it. Memory that the page table doesn't need any more comes along, to be
    /// dropped without the lock.
    fn lock_settled<'a>(
        this: &'a ArcBorrow<'_, Self>,
        part: &[Range<usize>],
        memcg: Option<&MemCgroup>,
    ) -> Result<(Option<Grown>, SpinLockGuard<'a, AreaState>)> {
        let mut unused = None;
        let mut locked = this.state.lock();
        loop {
            let pages = &locked.mapped.as_ref().ok_or(ESRCH)?.pages;
            if let Some(request) = part.iter().find_map(|range| pages.lacks(range.clone())) {
                drop(locked);
                drop(unused.take());
                let grown = charged(memcg, |flags| request.alloc(*this, flags))?;
                locked = this.state.lock();
                if let Some(mapped) = locked.mapped.as_mut() {
                    unused = Some(mapped.pages.grow(grown));
                }
            } else if part.iter().any(|range| pages.is_isolated(range.clone())) {
                locked.waiters += 1;
                let is_killed = this.settled.wait_killable(&mut locked);
                locked.waiters -= 1;
                if is_killed {
                    drop(locked);
                    return Err(EINTR);
                }
            } else {
                return Ok((unused, locked));
            }
        }
    }

    /// Brings those pages of `covered` that are absent, to be filled. Says whether there were any.
    ///
    /// A buffer covers all of them, so that they are nobody else's business.
    fn install_covered(
        self: ArcBorrow<'_, Self>,
        covered: Range<usize>,
        memcg: Option<&MemCgroup>,
    ) -> Result<bool> {
        if covered.is_empty() {
            return Ok(false);
        }
        let (unused, mut locked) = Self::lock_settled(&self, slice::from_ref(&covered), memcg)?;
        let mapped = locked.mapped.as_mut().ok_or(ESRCH)?;
        let is_filling = mapped.pages.begin_fill(covered.clone());
        let mut lacking = mapped.pages.lacking(covered.clone(), BATCH);
        drop(locked);
        drop(unused);

        let mut order = MAX_ORDER;
        while let Some(run) = lacking {
            trace::trace_alloc_page_start(self.pid, run.start);
            let pages = self.allocate(run.len(), &mut order, false, memcg)?;
            let mut locked = self.state.lock();
            let mapped = locked.mapped.as_mut().ok_or(ESRCH)?;
            mapped
                .pages
                .put(run.clone(), pages.into_iter(), State::Filling);
            lacking = mapped.pages.lacking(run.end..covered.end, BATCH);
            drop(locked);
            trace::trace_alloc_page_end(self.pid, run.start, run.start + 1..run.end);
        }
        Ok(is_filling)
    }

    /// Brings the pages at the ends of `buffer`, which it doesn't cover, into use.
    ///
    /// They may be needed for other buffers, too, at the same time. All find the same page then,
    /// and each maps it, so that nobody waits for another thread, whatever its priority.
    fn install_ends(
        self: ArcBorrow<'_, Self>,
        mm: &MmWithUser,
        buffer: &Buffer,
        memcg: Option<&MemCgroup>,
    ) -> Result {
        let (all, covered) = (buffer.pages(), buffer.covered_pages());
        let ends = [all.start..covered.start, covered.end..all.end];
        let indices = || ends.iter().cloned().flatten();
        if indices().next().is_none() {
            return Ok(());
        }
        let mut pages = KVec::new();
        // The page by which the events tell how long it takes.
        let mut first = None;
        let (window, todo, spare) = loop {
            let (unused, mut locked) = Self::lock_settled(&self, &ends, memcg)?;
            let mapped = locked.mapped.as_mut().ok_or(ESRCH)?;
            let mut absent = indices().filter(|&index| mapped.pages.state(index) == State::Absent);
            if let Some(index) = absent.next() {
                let count = 1 + absent.count();
                if count > pages.len() {
                    drop(locked);
                    drop(unused);
                    if first.is_none() {
                        trace::trace_alloc_page_start(self.pid, index);
                        first = Some(index);
                    }
                    pages = self.allocate(count, &mut 0, true, memcg)?;
                    continue;
                }
            }
            let mut pages = pages.into_iter();
            let mut todo = [const { None }; 2];
            for (place, index) in todo.iter_mut().zip(indices()) {
                let page = index..index + 1;
                let is_new = mapped.pages.state(index) == State::Absent;
                if is_new {
                    mapped
                        .pages
                        .put(page.clone(), &mut pages, State::Installing);
                }
                if mapped.pages.state(index) == State::Installing {
                    let [page] = mapped.pages.in_use(page, buffer)?;
                    *place = page.map(|page| (index, is_new, page));
                }
            }
            break (mapped.window, todo, pages);
        };
        // Of several threads, one has brought the page.
        drop(spare);

        for (index, _, page) in todo.iter().flatten() {
            if first != Some(*index) {
                trace::trace_alloc_page_start(self.pid, *index);
            }
            let page = slice::from_ref(page);
            match window.insert(mm, &self, *index, BorrowedPage::as_pages(page)) {
                // Another thread may have been faster to map it.
                Ok(()) | Err(EBUSY) => {}
                Err(err) => return Err(err),
            }
            if let Some(mapped) = self.state.lock().mapped.as_mut() {
                mapped.pages.installed(*index);
            }
            if first != Some(*index) {
                trace::trace_alloc_page_end(self.pid, *index, 0..0);
            }
        }
        if let Some(first) = first {
            trace::trace_alloc_page_end(self.pid, first, 0..0);
        }
        for (index, is_new, _) in todo.iter().flatten() {
            if *is_new {
                trace::trace_install_pages(self.pid, &(*index..index + 1));
            }
        }
        Ok(())
    }

    /// Maps the pages of `buffer` that have been filled, and brings them into use. On failure, they
    /// are filling as before.
    ///
    /// # Errors
    ///
    /// As [`install`](Self::install).
    ///
    /// # Context
    ///
    /// As [`install`](Self::install).
    pub(super) fn publish(&self, buffer: &Buffer) -> Result {
        // As in `install`.
        let mm = MmWithUser::into_mmput_async(self.mm.mmget_not_zero().ok_or(ESRCH)?);
        let mut left = buffer.pages();
        while let Some((run, window, pages)) = self.filling(left.clone(), buffer)? {
            if let Err(err) = self.map_filled(&mm, window, run.start, pages) {
                self.unmap_filled(&mm, buffer.pages().start..run.start, buffer);
                return Err(err);
            }
            trace::trace_install_pages(self.pid, &run);
            left.start = run.end;
        }
        if let Some(mapped) = self.state.lock().mapped.as_mut() {
            mapped.pages.filled(buffer.pages());
        }
        Ok(())
    }

    /// The first pages of `range` that are being filled, all of which `buffer` lies on, and what is
    /// needed to map them.
    fn filling<'b>(
        &self,
        range: Range<usize>,
        buffer: &'b Buffer,
    ) -> Result<Option<(Range<usize>, Window, Borrowed<'b>)>> {
        let state = self.state.lock();
        let mapped = state.mapped.as_ref().ok_or(ESRCH)?;
        let Some(run) = mapped.pages.filling(range, BATCH) else {
            return Ok(None);
        };
        let pages = mapped.pages.in_use(run.clone(), buffer)?;
        Ok(Some((run, mapped.window, pages)))
    }

    fn map_filled(
        &self,
        mm: &MmWithUser,
        window: Window,
        index: usize,
        pages: Borrowed<'_>,
    ) -> Result {
        let mut all = KVec::with_capacity(BATCH, GFP_KERNEL)?;
        for page in pages.into_iter().flatten() {
            all.push_within_capacity(page)?;
        }
        window.insert(mm, self, index, BorrowedPage::as_pages(&all))
    }

    #[cold]
    fn unmap_filled(&self, mm: &MmWithUser, mut range: Range<usize>, buffer: &Buffer) {
        while let Ok(Some((run, window, _))) = self.filling(range.clone(), buffer) {
            range.start = run.end;
            window.zap_wait(mm, self, run);
        }
    }

    /// Frees the pages of `range` that were to be filled. They aren't mapped.
    pub(super) fn discard(&self, range: Range<usize>) {
        loop {
            let mut gone = PageBatch::<BATCH>::new();
            if let Some(mapped) = self.state.lock().mapped.as_mut() {
                mapped.pages.discard(range.clone(), &mut gone);
            }
            // They are freed here, without the lock.
            if !gone.is_full() {
                break;
            }
        }
    }

    /// Allocates pages, charged to `memcg`, that can go on the LRU without a further allocation.
    /// They are cleared only if `zero`. For `order`, see [`allocate_some`].
    fn allocate(
        &self,
        count: usize,
        order: &mut u32,
        zero: bool,
        memcg: Option<&MemCgroup>,
    ) -> Result<KVec<Page>> {
        let mut pages = KVec::with_capacity(count, GFP_KERNEL)?;
        let mut has_heads = false;
        MemCgroup::with_active(memcg, || {
            while pages.len() < count {
                let mut new = allocate_some(count - pages.len(), order, zero)?;
                let Some(page) = new.next() else {
                    return Err(ENOMEM);
                };
                // All pages are charged to the same memcg, unless it is going away just now. Those
                // that were allocated together always are.
                let usual = memcg.is_some_and(|memcg| {
                    MemCgroup::of_page(&page, &rcu::read_lock()) == Some(&**memcg)
                });
                if !usual || !has_heads {
                    self.lru.alloc_heads_for_page(&page, GFP_KERNEL)?;
                    has_heads = usual;
                }
                pages.push_within_capacity(page).map_err(|_| ENOMEM)?;
                for page in new {
                    pages.push_within_capacity(page).map_err(|_| ENOMEM)?;
                }
            }
            Ok(pages)
        })
    }
}

/// Allocates pages, `count` at most, and one at least: two to the power of `order` at most, if so
/// many are at hand. If they aren't, that isn't tried again.
fn allocate_some(count: usize, order: &mut u32, zero: bool) -> Result<SplitPages, AllocError> {
    *order = min(*order, count.ilog2());
    if *order != 0 {
        match Page::alloc_split_charged(*order, pages_flags()) {
            Ok(pages) => return Ok(pages),
            Err(AllocError) => *order = 0,
        }
    }
    let flags = page_flags();
    Page::alloc_split_charged(0, if zero { flags | __GFP_ZERO } else { flags })
}
