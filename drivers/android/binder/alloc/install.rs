// SPDX-License-Identifier: GPL-2.0

//! absent -> installing -> in use: brings the pages that a new buffer lacks. Those that it covers
//! are mapped later, when it has been written.

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

/// The first pages of a run.
type Borrowed<'b> = [Option<BorrowedPage<'b>>; BATCH];

/// How many pages, as a power of two, are allocated at a time at most. The page allocator keeps no
/// more than that at hand for each processor.
const MAX_ORDER: u32 = 3;

/// The receiver pays for its pages, but a sender must not set off the OOM killer among the
/// receivers: the allocation fails, and with it the transaction.
fn page_flags() -> Flags {
    GFP_KERNEL_ACCOUNT | __GFP_HIGHMEM | __GFP_RETRY_MAYFAIL | __GFP_NOWARN
}

/// The same for several pages at a time: only if there are some at hand.
fn pages_flags() -> Flags {
    let account = GFP_KERNEL_ACCOUNT & !GFP_KERNEL;
    GFP_NOWAIT | account | __GFP_HIGHMEM | __GFP_NOWARN
}

impl Area {
    /// Brings all pages of `range` into use, for a buffer that has been reserved on them. Those of
    /// them that it covers, `covered`, may be filling instead; says whether any is. On failure,
    /// exactly the pages are there that were there before.
    ///
    /// # Errors
    ///
    /// - `ESRCH`: the process is gone, or has unmapped its area.
    /// - `ENOMEM`: the system, or the memory cgroup of the receiver, is out of memory.
    ///
    /// # Context
    ///
    /// May sleep. The caller may be any process, and usually isn't the one that the area belongs
    /// to.
    pub(super) fn install(
        self: ArcBorrow<'_, Self>,
        range: Range<usize>,
        covered: Range<usize>,
    ) -> Result<bool> {
        // The sender may hold the last reference by the time that it is dropped. If the mm were
        // torn down here and now, the sender might wait in the middle of that for somebody who
        // waits for it.
        let mm = MmWithUser::into_mmput_async(self.mm.mmget_not_zero().ok_or(ESRCH)?);
        let memcg = MemCgroup::from_mm(&mm);

        let is_filling = self.install_covered(covered.clone(), memcg.as_deref())?;
        let ends = [range.start..covered.start, covered.end..range.end];
        if let Err(err) = self.install_ends(&mm, &ends, memcg.as_deref()) {
            self.discard(covered);
            return Err(err);
        }
        Ok(is_filling)
    }

    /// Locks the area when the page table has room for all of `part`, and nobody is about to bring
    /// or to take away a page of it. Memory that the page table doesn't need any more comes along,
    /// to be dropped without the lock.
    fn lock_settled<'a>(
        this: &'a ArcBorrow<'_, Self>,
        part: &[Range<usize>],
    ) -> Result<(Option<Grown>, SpinLockGuard<'a, AreaState>)> {
        let mut unused = None;
        let mut locked = this.state.lock();
        loop {
            let pages = &locked.mapped.as_ref().ok_or(ESRCH)?.pages;
            if let Some(request) = part.iter().find_map(|range| pages.lacks(range.clone())) {
                drop(locked);
                drop(unused.take());
                let grown = request.alloc(*this)?;
                locked = this.state.lock();
                if let Some(mapped) = locked.mapped.as_mut() {
                    unused = Some(mapped.pages.grow(grown));
                }
            } else if part.iter().any(|range| pages.in_transit(range.clone())) {
                locked.waiters += 1;
                this.settled.wait(&mut locked);
                locked.waiters -= 1;
            } else {
                return Ok((unused, locked));
            }
        }
    }

    /// Brings those pages of `covered` that are absent, to be filled. Says whether there were any.
    /// On failure, they are absent as before.
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
        let (unused, locked) = Self::lock_settled(&self, slice::from_ref(&covered))?;
        let mapped = locked.mapped.as_ref().ok_or(ESRCH)?;
        let mut absent = mapped.pages.absent(covered.clone(), BATCH);
        drop(locked);
        drop(unused);

        let is_filling = absent.is_some();
        let mut order = MAX_ORDER;
        while let Some(run) = absent {
            let mut pages = match self.allocate(run.len(), &mut order, false, memcg) {
                Ok(pages) => pages.into_iter(),
                Err(err) => {
                    self.discard(covered);
                    return Err(err);
                }
            };
            let mut locked = self.state.lock();
            let mapped = locked.mapped.as_mut().ok_or(ESRCH)?;
            mapped.pages.put(run.clone(), &mut pages, State::Filling);
            absent = mapped.pages.absent(run.end..covered.end, BATCH);
        }
        Ok(is_filling)
    }

    /// Brings those of the pages `ends` into use that are absent. On failure, they are absent as
    /// before.
    ///
    /// They may be needed for another buffer, too, whose sender waits for them, whatever its
    /// priority: for no longer than it takes to map them.
    fn install_ends(
        self: ArcBorrow<'_, Self>,
        mm: &MmWithUser,
        ends: &[Range<usize>; 2],
        memcg: Option<&MemCgroup>,
    ) -> Result {
        if ends.iter().all(Range::is_empty) {
            return Ok(());
        }
        let mut pages = KVec::new();
        let (window, absent) = loop {
            let (unused, mut locked) = Self::lock_settled(&self, ends)?;
            let mapped = locked.mapped.as_mut().ok_or(ESRCH)?;
            let absent = ends
                .each_ref()
                .map(|end| mapped.pages.absent(end.clone(), 1));
            let count = absent.iter().flatten().count();
            if count == 0 {
                // They are all there, or others have brought them in the meantime.
                return Ok(());
            }
            if count <= pages.len() {
                for end in absent.iter().flatten() {
                    mapped.pages.begin_install(end.clone());
                }
                break (mapped.window, absent);
            }
            drop(locked);
            drop(unused);
            pages = self.allocate(count, &mut 0, true, memcg)?;
        };

        let mut inserts = absent.iter().flatten().zip(pages.iter());
        let result = inserts
            .try_for_each(|(end, page)| window.insert(mm, &self, end.start, slice::from_ref(page)));
        if result.is_err() {
            for end in absent.iter().flatten() {
                window.zap_wait(mm, &self, end.clone());
            }
        }

        let mut pages = pages.into_iter();
        let mut locked = self.state.lock();
        let mapped = locked.mapped.as_mut().ok_or(ESRCH)?;
        for end in absent.into_iter().flatten() {
            match result {
                Ok(()) => mapped.pages.put(end, &mut pages, State::InUse),
                Err(_) => mapped.pages.abort_install(end),
            }
        }
        self.settle(locked);
        result
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
        match Page::alloc_split(*order, pages_flags()) {
            Ok(pages) => return Ok(pages),
            Err(AllocError) => *order = 0,
        }
    }
    let flags = page_flags();
    Page::alloc_split(0, if zero { flags | __GFP_ZERO } else { flags })
}
