// SPDX-License-Identifier: GPL-2.0

//! absent -> installing -> in use: brings the pages that a new buffer lacks. Those that it covers
//! are mapped later, when it has been written.

use core::{
    cmp::{max, min},
    ops::Range, //
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
    sync::{rcu, ArcBorrow}, //
};

use super::{
    pages::{PageTable, State},
    vma::Window,
    Area,
    Buffer,
    BATCH, //
};

/// The first pages of a run.
type Borrowed<'b> = [Option<BorrowedPage<'b>>; BATCH];

/// Pages of a buffer: those that it covers, or those at its ends that it doesn't.
type Part = [Range<usize>; 2];

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

        // The first and the last page, if not covered, may be needed for another buffer, too, whose
        // sender waits for them. So they come last: nobody waits for all of a large buffer.
        let ends = [range.start..covered.start, covered.end..range.end];
        let inner = [covered.clone(), 0..0];
        let is_filling = self.install_some(&mm, &inner, State::Filling, memcg.as_deref())?;
        if let Err(err) = self.install_some(&mm, &ends, State::InUse, memcg.as_deref()) {
            self.discard(covered);
            return Err(err);
        }
        Ok(is_filling)
    }

    /// Brings those pages of `part` that are absent, to be filled or in use: that is `state`. Says
    /// whether there were any.
    fn install_some(
        self: ArcBorrow<'_, Self>,
        mm: &MmWithUser,
        part: &Part,
        state: State,
        memcg: Option<&MemCgroup>,
    ) -> Result<bool> {
        // Memory that the page table doesn't need any more, to be dropped without the lock.
        let mut unused = None;
        let mut locked = self.state.lock();
        let (window, first) = loop {
            let Some(mapped) = locked.mapped.as_mut() else {
                return Err(ESRCH);
            };
            let pages = &mut mapped.pages;
            if let Some(request) = part.iter().find_map(|range| pages.lacks(range.clone())) {
                drop(locked);
                drop(unused.take());
                let grown = request.alloc(self)?;
                locked = self.state.lock();
                if let Some(mapped) = locked.mapped.as_mut() {
                    unused = Some(mapped.pages.grow(grown));
                }
            } else if part.iter().any(|range| pages.in_transit(range.clone())) {
                locked.waiters += 1;
                self.settled.wait(&mut locked);
                locked.waiters -= 1;
            } else {
                part.iter()
                    .for_each(|range| pages.begin_install(range.clone()));
                match installing(pages, part, 0, false) {
                    Some(run) => break (mapped.window, run),
                    // They are all there, or others have brought them in the meantime.
                    None => return Ok(false),
                }
            }
        };
        drop(locked);
        drop(unused);

        let result = self.bring(mm, window, part, first, state, memcg);
        if result.is_err() {
            self.empty(mm, window, part);
        }
        result.map(|()| true)
    }

    /// Allocates all pages of `part` that this thread made installing, from the run `first` on.
    /// Maps them and brings them into use, unless `state` is that they are filling.
    fn bring(
        &self,
        mm: &MmWithUser,
        window: Window,
        part: &Part,
        first: Range<usize>,
        state: State,
        memcg: Option<&MemCgroup>,
    ) -> Result {
        let is_filling = state == State::Filling;
        let mut run = first;
        loop {
            let pages = self.allocate(run.len(), !is_filling, memcg)?;
            if !is_filling {
                window.insert(mm, self, run.start, &pages)?;
            }
            let mut pages = pages.into_iter();

            let mut locked = self.state.lock();
            let Some(mapped) = locked.mapped.as_mut() else {
                return Ok(());
            };
            mapped.pages.installed(run.clone(), &mut pages);
            match installing(&mapped.pages, part, run.end, false) {
                Some(next) => run = next,
                None => {
                    for range in part {
                        mapped.pages.finish_install(range.clone(), state);
                    }
                    self.settle(locked);
                    return Ok(());
                }
            }
        }
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

    /// Takes away again what [`bring`](Self::bring) brought before it failed.
    #[cold]
    fn empty(&self, mm: &MmWithUser, window: Window, part: &Part) {
        let mut from = 0;
        while let Some(run) = self.brought(part, from) {
            from = run.end;
            window.zap_wait(mm, self, run);
        }

        // If there is no memory for this, the pages are freed with the lock held.
        let mut pages = KVec::with_capacity(
            part.iter().map(|range| range.len()).sum(),
            GFP_KERNEL | __GFP_NOWARN,
        )
        .unwrap_or_default();
        // As soon as the lock is dropped, what is installing in this part may be so by others.
        let mut state = self.state.lock();
        if let Some(mapped) = state.mapped.as_mut() {
            for range in part {
                mapped.pages.abort_install(range.clone(), &mut pages);
            }
        }
        self.settle(state);
    }

    /// Allocates pages, charged to `memcg`, that can go on the LRU without a further allocation.
    /// They are cleared only if `zero`.
    fn allocate(&self, count: usize, zero: bool, memcg: Option<&MemCgroup>) -> Result<KVec<Page>> {
        let mut pages = KVec::with_capacity(count, GFP_KERNEL)?;
        let mut has_heads = false;
        MemCgroup::with_active(memcg, || {
            while pages.len() < count {
                let mut new = allocate_some(count - pages.len(), zero)?;
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

    /// The next pages of `part`, from page `from` on, that this thread has brought.
    fn brought(&self, part: &Part, from: usize) -> Option<Range<usize>> {
        let state = self.state.lock();
        installing(&state.mapped.as_ref()?.pages, part, from, true)
    }
}

/// The next pages of `part`, from page `from` on, that are installing, and have a page already or
/// have none yet.
fn installing(
    pages: &PageTable,
    part: &Part,
    from: usize,
    with_page: bool,
) -> Option<Range<usize>> {
    part.iter().find_map(|range| {
        let left = max(range.start, from)..range.end;
        pages.installing(left, with_page, BATCH)
    })
}

/// Allocates pages, `count` at most, and one at least. They are cleared only if `zero`.
fn allocate_some(count: usize, zero: bool) -> Result<SplitPages, AllocError> {
    if zero {
        return Page::alloc_split(0, page_flags() | __GFP_ZERO);
    }
    match min(count.ilog2(), MAX_ORDER) {
        0 => None,
        order => Page::alloc_split(order, pages_flags()).ok(),
    }
    .map_or_else(|| Page::alloc_split(0, page_flags()), Ok)
}
