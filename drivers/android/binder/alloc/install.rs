// SPDX-License-Identifier: GPL-2.0

//! absent -> installing -> in use: brings the pages that a new buffer lacks.

use core::ops::Range;

use kernel::{
    alloc::Flags,
    memcontrol::MemCgroup,
    mm::MmWithUser,
    page::Page,
    prelude::*,
    sync::{rcu, ArcBorrow}, //
};

use super::{
    pages::Chunk,
    vma::Window,
    Area,
    BATCH, //
};

/// The receiver pays for its pages, but a sender must not set off the OOM killer among the
/// receivers: the allocation fails, and with it the transaction.
fn page_flags() -> Flags {
    GFP_KERNEL_ACCOUNT | __GFP_HIGHMEM | __GFP_ZERO | __GFP_RETRY_MAYFAIL | __GFP_NOWARN
}

impl Area {
    /// Brings all pages of `range` into use, for a buffer that has been reserved on them. On
    /// failure, exactly the pages are there that were there before.
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
    pub(super) fn install(self: ArcBorrow<'_, Self>, range: Range<usize>) -> Result {
        // The sender may hold the last reference by the time that it is dropped. If the mm were
        // torn down here and now, the sender might wait in the middle of that for somebody who
        // waits for it.
        let mm = MmWithUser::into_mmput_async(self.mm.mmget_not_zero().ok_or(ESRCH)?);

        let mut state = self.state.lock();
        let (window, first) = loop {
            let Some(mapped) = state.mapped.as_mut() else {
                return Err(ESRCH);
            };
            if let Some(index) = mapped.pages.missing_chunk(range.clone()) {
                drop(state);
                let chunk = Chunk::new(self, index)?;
                state = self.state.lock();
                if let Some(mapped) = state.mapped.as_mut() {
                    mapped.pages.add_chunk(chunk);
                }
            } else if mapped.pages.in_transit(range.clone()) {
                state.waiters += 1;
                self.settled.wait(&mut state);
                state.waiters -= 1;
            } else {
                mapped.pages.begin_install(range.clone());
                match mapped.pages.installing(range.clone(), false, BATCH) {
                    Some(run) => break (mapped.window, run),
                    // Others have brought them in the meantime.
                    None => return Ok(()),
                }
            }
        };
        drop(state);

        let result = self.fill(&mm, window, range.clone(), first);
        if result.is_err() {
            self.empty(&mm, window, range);
        }
        result
    }

    /// Allocates and maps all pages of `range` that this thread made installing, from the run
    /// `first` on, and brings them into use.
    fn fill(
        &self,
        mm: &MmWithUser,
        window: Window,
        range: Range<usize>,
        first: Range<usize>,
    ) -> Result {
        let memcg = MemCgroup::from_mm(mm);
        let mut run = first;
        loop {
            let pages = self.allocate(run.len(), memcg.as_deref())?;
            window.insert(mm, self, run.start, &pages)?;
            let mut pages = pages.into_iter();

            let mut state = self.state.lock();
            let Some(mapped) = state.mapped.as_mut() else {
                return Ok(());
            };
            mapped.pages.installed(run.clone(), &mut pages);
            match mapped.pages.installing(run.end..range.end, false, BATCH) {
                Some(next) => run = next,
                None => {
                    mapped.pages.finish_install(range);
                    self.settle(state);
                    return Ok(());
                }
            }
        }
    }

    /// Takes away again what [`fill`](Self::fill) brought before it failed.
    #[cold]
    fn empty(&self, mm: &MmWithUser, window: Window, range: Range<usize>) {
        let mut start = range.start;
        while let Some(run) = self.installing(start..range.end) {
            start = run.end;
            window.zap_wait(mm, self, run);
        }

        // If there is no memory for this, the pages are freed with the lock held.
        let mut pages =
            KVec::with_capacity(range.len(), GFP_KERNEL | __GFP_NOWARN).unwrap_or_default();
        // As soon as the lock is dropped, what is installing in this range may be so by others.
        let mut state = self.state.lock();
        if let Some(mapped) = state.mapped.as_mut() {
            mapped.pages.abort_install(range, &mut pages);
        }
        self.settle(state);
    }

    /// Allocates pages, charged to `memcg`, that can go on the LRU without a further allocation.
    fn allocate(&self, count: usize, memcg: Option<&MemCgroup>) -> Result<KVec<Page>> {
        let mut pages = KVec::with_capacity(count, GFP_KERNEL)?;
        let mut has_heads = false;
        MemCgroup::with_active(memcg, || {
            for _ in 0..count {
                let page = Page::alloc_page(page_flags())?;
                // All pages are charged to the same memcg, unless it is going away just now.
                let usual = memcg.is_some_and(|memcg| {
                    MemCgroup::of_page(&page, &rcu::read_lock()) == Some(&**memcg)
                });
                if !usual || !has_heads {
                    self.lru.alloc_heads_for_page(&page, GFP_KERNEL)?;
                    has_heads = usual;
                }
                pages.push_within_capacity(page).map_err(|_| ENOMEM)?;
            }
            Ok(pages)
        })
    }

    /// The next pages of `range` that have been mapped by this thread.
    fn installing(&self, range: Range<usize>) -> Option<Range<usize>> {
        let state = self.state.lock();
        let pages = &state.mapped.as_ref()?.pages;
        pages.installing(range, true, BATCH)
    }
}
