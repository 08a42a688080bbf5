// SPDX-License-Identifier: GPL-2.0

//! idle -> isolated -> absent: gives pages back when memory is short.
//!
//! A scan isolates pages of one area at a time, as many as lie together at the head of the LRU, and
//! then takes their idle neighbours along. So the mm is pinned and the VMA is locked once for a
//! batch, and adjoining pages are unmapped in one go.

use core::{
    cmp::min,
    mem::take, //
};

use kernel::{
    list_lru::{LruCursor, Verdict},
    mm::MmWithUser,
    page::{Page, PageBatch},
    shrinker::{self, Scan, ShrinkControl},
    sync::{Arc, ArcBorrow}, //
};

use super::{
    pages::{IdleLru, Slot},
    vma::Zap,
    Area,
    BATCH, //
};

/// Scans `sc.nr_to_scan()` slots of the LRU of `sc`, and frees the pages that are idle.
///
/// What it looked at goes into `sc.nr_scanned()`; that can be more than it was asked to look at,
/// because of the neighbours. The neighbours belong to the same process, but if that has moved to
/// another memory cgroup since, they may be charged to the other one.
///
/// # Context
///
/// For the shrinker's scan callback: may sleep, but doesn't wait for a lock that the thread it runs
/// in, or one that allocates memory, can hold.
pub(crate) fn scan(lru: &IdleLru, sc: &mut ShrinkControl) -> Scan {
    let mut scanned = 0;
    let mut freed = 0;
    let mut moved = false;
    // Whoever scans by debugfs may ask for any number. Slots that can't be had now are rotated:
    // don't come to them again and again, with the LRU locked.
    let nr_to_scan = min(sc.nr_to_scan(), lru.count(sc));

    let mut batch = Batch::new();

    while scanned < nr_to_scan {
        let to_walk = nr_to_scan - scanned;
        let mut left = to_walk;
        batch.stopped = false;
        lru.walk(sc, &mut left, |cursor| batch.visit(cursor));
        let walked = to_walk - left - usize::from(batch.stopped);
        scanned += walked;
        let Some(area) = batch.area.take() else {
            if walked == 0 {
                break;
            }
            continue;
        };
        moved = true;
        scanned += batch.add_neighbours(&area, lru);
        freed += batch.free(&area, lru);
    }

    sc.set_nr_scanned(scanned);
    shrinker::account_reclaimed_pages(freed);
    if moved {
        Scan::freed(freed)
    } else {
        Scan::STOP
    }
}

/// Isolated pages of one area.
///
/// There is one of it on the stack of a reclaimer, which may be deep down there: it isn't moved.
struct Batch {
    /// The area, from the first slot on that was taken off the LRU.
    area: Option<Arc<Area>>,
    /// In the order of their indices, the first `len`.
    pages: [Option<(usize, Page)>; BATCH],
    len: usize,
    /// Whether the walk ended at a slot that was not dealt with.
    stopped: bool,
}

impl Batch {
    fn new() -> Self {
        Self {
            area: None,
            pages: [const { None }; BATCH],
            len: 0,
            stopped: false,
        }
    }

    fn is_full(&self) -> bool {
        self.len == BATCH
    }

    fn index(&self, nth: usize) -> Option<usize> {
        let place = self.pages[..self.len].get(nth)?;
        place.as_ref().map(|(index, _)| *index)
    }

    /// Adds a page to a batch that isn't full.
    fn push(&mut self, index: usize, page: Page) {
        let mut nth = self.len;
        self.pages[nth] = Some((index, page));
        self.len += 1;
        // Most often it comes next, as pages were released one after the other.
        while nth > 0 && self.index(nth - 1) > Some(index) {
            self.pages.swap(nth, nth - 1);
            nth -= 1;
        }
    }

    /// Decides what becomes of the slot that the walk has come to.
    fn visit<'a>(&mut self, cursor: LruCursor<'a, Slot>) -> Verdict<'a> {
        let (area, index) = cursor.item().whose();
        // SAFETY: The area is in an `Arc`, which lives at least as long as the slot is linked; and
        // when that ends below, the batch has a reference of its own.
        let area = unsafe { ArcBorrow::from_raw(area) };

        let other = self
            .area
            .as_ref()
            .is_some_and(|mine| !core::ptr::eq(&**mine, &*area));
        if other || self.is_full() {
            self.stopped = true;
            return cursor.unlock().stop();
        }
        // The lock of the area goes outside of that of the LRU, so this can only try. A slot that
        // can't be had now must not stay at the head for all later scans to meet first.
        let Some(mut state) = area.state.try_lock() else {
            return cursor.rotate();
        };
        let Some(mapped) = state.mapped.as_mut() else {
            return cursor.rotate();
        };
        if self.area.is_none() {
            self.area = Some(area.into());
        }
        // In use it only loses its link, to be linked again when it gets idle.
        let verdict = cursor.remove();
        if let Some(page) = mapped.pages.isolate(index) {
            self.push(index, page);
        }
        verdict
    }

    /// Isolates idle pages next to those of the batch. Says how many.
    fn add_neighbours(&mut self, area: &Area, lru: &IdleLru) -> usize {
        let before = self.len;
        let mut state = area.state.lock();
        let Some(mapped) = state.mapped.as_mut() else {
            return 0;
        };
        // From the last on, so that what is added beyond doesn't shift those that are to come.
        for nth in (0..before).rev() {
            let Some(start) = self.index(nth) else {
                continue;
            };
            let mut take_while_idle = |index: usize| {
                let page = if self.is_full() {
                    None
                } else {
                    mapped.pages.unlink_and_isolate(index, lru)
                };
                page.map(|page| self.push(index, page)).is_some()
            };
            let _ = (start + 1..).all(&mut take_while_idle);
            let _ = (0..start).rev().all(&mut take_while_idle);
        }
        self.len - before
    }

    /// Unmaps and frees the pages, as far as that is possible without waiting for a lock; the
    /// others go back to the tail of the LRU. Says how many were freed.
    fn free(&mut self, area: &Area, lru: &IdleLru) -> usize {
        if self.len == 0 {
            return 0;
        }
        let unmapped = self.unmap(area);

        let mut state = area.state.lock();
        let alive = !state.torn_down;
        let mut gone = PageBatch::<BATCH>::new();
        let mut unused = None;
        if let Some(mapped) = state.mapped.as_mut() {
            for (nth, place) in self.pages[..self.len].iter_mut().enumerate() {
                let Some((index, page)) = take(place) else {
                    continue;
                };
                // After teardown nothing maps the area, and nobody would find the page on the LRU.
                if nth < unmapped || !alive {
                    mapped.pages.removed(index);
                    gone.push(page);
                } else {
                    mapped.pages.put_back(index, page, lru);
                }
            }
            unused = Some(mapped.trim());
        }
        area.settle(state);
        drop(unused);
        self.len = 0;
        // The pages are freed here, without the lock.
        gone.len()
    }

    /// Unmaps the pages from the first on. Says how many of them are unmapped.
    fn unmap(&self, area: &Area) -> usize {
        let Some(mm) = area.mm.mmget_not_zero() else {
            // The process has gone, and with it its mappings.
            return self.len;
        };
        let mm = MmWithUser::into_mmput_async(mm);
        let Some(window) = area
            .state
            .lock()
            .mapped
            .as_ref()
            .map(|mapped| mapped.window)
        else {
            return self.len;
        };
        let mut zap = Zap::new(window, &mm, area);
        let mut nth = 0;
        while let Some(start) = self.index(nth) {
            let mut end = start;
            while self.index(nth + (end - start)) == Some(end) {
                end += 1;
            }
            let done = zap.try_run(start..end);
            nth += done;
            if done < end - start {
                break;
            }
        }
        nth
    }
}
