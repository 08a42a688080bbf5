// SPDX-License-Identifier: GPL-2.0

//! idle -> isolated -> absent: gives pages back when memory is short.
//!
//! What comes to the head of the LRU is one page, but what is taken is all that is idle in the
//! group of adjoining pages that it belongs to. So the mm is pinned, the VMA is locked and the TLB
//! is flushed once for a group.

use core::{
    cmp::{max, min},
    iter,
    ptr, //
};

use kernel::{
    mm::MmWithUser,
    shrinker::{self, Scan, ShrinkControl},
    sync::{Arc, ArcBorrow}, //
};

use super::{
    pages::{IdleLru, Slot, GROUP},
    vma::Mapping,
    Area, //
};
use crate::trace;

/// Scans `sc.nr_to_scan()` slots of the LRU of `sc`, and frees the pages that are idle.
///
/// What it looked at goes into `sc.nr_scanned()`; that can be more than it was asked to look at,
/// because of the neighbours. The neighbours belong to the same process, but may lie on another
/// node, and may be charged to another memory cgroup if the process has moved since.
///
/// # Context
///
/// For the shrinker's scan callback: may sleep, but doesn't wait for a lock that the thread it runs
/// in, or one that allocates memory, can hold.
pub(crate) fn scan(lru: &IdleLru, sc: &mut ShrinkControl) -> Scan {
    let mut scanned = 0;
    let mut freed = 0;
    let mut busy = 0;
    let mut moved = false;
    // Whoever scans by debugfs may ask for any number. Pages that can't be had now are rotated:
    // don't come to them again and again.
    let nr_to_scan = min(sc.nr_to_scan(), lru.count(sc));

    while scanned < nr_to_scan {
        let Some((area, slot)) = first(lru, sc) else {
            break;
        };
        let done = area.reclaim(slot);
        // If there was nothing to do, others did it.
        scanned += max(done.scanned, 1);
        freed += done.freed;
        if done.is_busy {
            busy += done.scanned;
        } else {
            moved = true;
        }
    }

    sc.set_nr_scanned(scanned);
    shrinker::account_reclaimed_pages(freed);
    trace::trace_reclaim(sc, scanned, freed, busy);
    if moved {
        Scan::freed(freed)
    } else {
        Scan::STOP
    }
}

/// The slot at the head of the LRU, and its area.
fn first(lru: &IdleLru, sc: &ShrinkControl) -> Option<(Arc<Area>, *const Slot)> {
    let mut first = None;
    lru.walk(sc, &mut 1, |cursor| {
        let slot = cursor.item();
        // SAFETY: The area is in an `Arc`, which lives at least as long as the slot is linked; and
        // that it stays here, as the LRU is locked.
        let area = unsafe { ArcBorrow::from_raw(slot.area()) };
        first = Some((area.into(), ptr::from_ref(slot)));
        cursor.skip()
    });
    first
}

/// What became of a group of pages.
#[derive(Default)]
struct Done {
    /// How many slots were taken off the LRU, or moved to its end.
    scanned: usize,
    /// How many pages were freed.
    freed: usize,
    /// Whether nothing could be done, for want of a lock.
    is_busy: bool,
}

impl Area {
    /// Frees the idle pages of the group that the page with `slot` is in, as far as the same VMA
    /// maps them.
    fn reclaim(&self, slot: *const Slot) -> Done {
        let mm = self.mm.mmget_not_zero().map(MmWithUser::into_mmput_async);
        let mut state = self.state.lock();
        let Some(mapped) = state.mapped.as_mut() else {
            return Done::default();
        };
        let window = mapped.window;
        let Some(index) = mapped.pages.index_of(slot) else {
            return Done::default();
        };
        drop(state);

        let base = index - index % GROUP;
        let group = base..base + GROUP;
        let mapping = match &mm {
            Some(mm) => window.try_lock(mm, self, index, &group),
            // Nobody can map a page any more. What the end of the process hasn't unmapped yet is
            // kept by the references of the mapping until then.
            None => Some(Mapping::Nothing(group.clone())),
        };

        let mut state = self.state.lock();
        let Some(mapped) = state.mapped.as_mut() else {
            return Done::default();
        };
        let Some(mapping) = mapping else {
            return Done {
                // They must not stay at the head, for all later scans to meet them first.
                scanned: mapped.pages.rotate(group, self),
                freed: 0,
                is_busy: true,
            };
        };
        // By bits, from `base` on.
        let mut isolated = 0_usize;
        let scanned = mapped.pages.isolate(mapping.pages(), self, |index, page| {
            isolated |= 1 << (index - base);
            trace::trace_unmap_kernel_start(self.pid, index);
            // What maps it has a reference of its own, until it can't reach the page any more.
            drop(page);
            trace::trace_unmap_kernel_end(self.pid, index, iter::empty());
        });
        drop(state);

        if isolated != 0 {
            self.zap(&mapping, base, isolated);
            self.removed(base, isolated);
        }
        Done {
            scanned,
            freed: isolated.count_ones() as usize,
            is_busy: false,
        }
    }

    /// Unmaps the pages that `isolated` tells, where they are mapped.
    fn zap(&self, mapping: &Mapping<'_>, base: usize, isolated: usize) {
        if !mapping.is_vma() {
            return;
        }
        let first = base + isolated.trailing_zeros() as usize;
        let others = (first + 1..base + GROUP).filter(|index| isolated >> (index - base) & 1 == 1);
        trace::trace_unmap_user_start(self.pid, first);
        mapping.zap(base, isolated);
        trace::trace_unmap_user_end(self.pid, first, others);
    }

    /// Ends what `isolated` tells: it is unmapped now.
    fn removed(&self, base: usize, isolated: usize) {
        let mut state = self.state.lock();
        let Some(mapped) = state.mapped.as_mut() else {
            return;
        };
        mapped.pages.removed(base, isolated);
        let emptied = mapped.pages.trim(base);
        // The next transaction is spared the first ranges, unless it has to bring all the rest,
        // too.
        let unused = emptied.is_all().then(|| mapped.trim());
        self.settle(state);
        // Without the lock.
        drop((emptied, unused));
    }
}
