// SPDX-License-Identifier: GPL-2.0

//! The one place that maps pages into the VMA of an area, and unmaps them.
//!
//! The VMA of an area can be split, moved, replaced by another, or be gone by the time that a page
//! is to be mapped or unmapped. So it is looked up by the address of the page each time, and it is
//! ours only if its operations, its private data and its offset say so.

use core::{ops::Range, ptr};

use kernel::{
    bindings,
    ffi::c_void,
    mm::{virt, MmWithUser, MmapReadGuard, VmaReadGuard},
    page::{Page, PAGE_SHIFT, PAGE_SIZE},
    prelude::*, //
};

use super::Area;
use crate::AssertSync;

/// Tells the VMAs of areas from others, and tells the area when one of its VMAs goes away.
static VM_OPS: AssertSync<bindings::vm_operations_struct> =
    AssertSync(bindings::vm_operations_struct {
        close: Some(close_callback),
        ..pin_init::zeroed()
    });

/// C: `vm_operations_struct::close`.
///
/// # Safety
///
/// `vma` is a VMA with our operations, locked for writing.
unsafe extern "C" fn close_callback(vma: *mut bindings::vm_area_struct) {
    // SAFETY: With our operations goes a pointer to the area. The area is alive: its process is
    // freed only after the last reference to its file, and this VMA has one.
    let area = unsafe { &*(*vma).vm_private_data.cast::<Area>() };
    area.close();
}

/// Where an area is mapped.
#[derive(Clone, Copy)]
pub(super) struct Window {
    /// Address of the first byte.
    pub(super) start: usize,
    /// `vm_pgoff` at the first byte.
    pgoff: usize,
}

impl Window {
    /// Takes `vma` as the mapping of `area`.
    pub(super) fn adopt(vma: &virt::VmaNew, area: &Area) -> Self {
        let raw = vma.as_ptr();
        // SAFETY: The VMA is being set up and isn't shared with anybody yet. No other user of these
        // two fields gets to see it: the operations are ours.
        unsafe {
            (*raw).vm_private_data = ptr::from_ref(area).cast_mut().cast::<c_void>();
            (*raw).vm_ops = &VM_OPS.0;
        }
        Self {
            start: vma.start(),
            pgoff: pgoff(vma),
        }
    }

    fn address(&self, index: usize) -> usize {
        self.start + (index << PAGE_SHIFT)
    }

    /// How many of the pages of `run`, from its start on, `vma` maps for `area`: 0 if it's
    /// another's.
    fn covers(&self, vma: &virt::VmaRef, area: &Area, run: &Range<usize>) -> usize {
        // SAFETY: Both are plain pointers that are only compared, in a VMA that is locked for
        // reading.
        let (ops, private) = unsafe { ((*vma.as_ptr()).vm_ops, (*vma.as_ptr()).vm_private_data) };
        if !ptr::eq(ops, &VM_OPS.0) || !ptr::eq(private.cast_const().cast::<Area>(), area) {
            return 0;
        }
        let address = self.address(run.start);
        if address < vma.start() || address >= vma.end() {
            return 0;
        }
        // mremap() can bring another part of the area to this address.
        let offset = pgoff(vma) + ((address - vma.start()) >> PAGE_SHIFT);
        if offset != self.pgoff + run.start {
            return 0;
        }
        run.len().min((vma.end() - address) >> PAGE_SHIFT)
    }

    /// Maps `pages` from page `index` on: all of them, or none.
    ///
    /// # Errors
    ///
    /// - `ESRCH`: the area isn't mapped there.
    /// - `ENOMEM`: no memory for page tables.
    ///
    /// # Context
    ///
    /// May sleep; takes the VMA lock, or the mmap lock, for reading.
    pub(super) fn insert(
        &self,
        mm: &MmWithUser,
        area: &Area,
        index: usize,
        pages: &[Page],
    ) -> Result {
        let mut done = 0;
        while done < pages.len() {
            let run = index + done..index + pages.len();
            let lock = Locked::wait(mm, self.address(run.start));
            let vma = lock.vma(self.address(run.start));
            let mapped = match vma.and_then(|vma| Some((vma, vma.as_mixedmap_vma()?))) {
                None => Err((ESRCH, 0)),
                Some((vma, mixed)) => match self.covers(vma, area, &run) {
                    0 => Err((ESRCH, 0)),
                    n => mixed
                        .vm_insert_pages(self.address(run.start), &pages[done..done + n])
                        .map(|()| n),
                },
            };
            match mapped {
                Ok(n) => done += n,
                Err((err, n)) => {
                    drop(lock);
                    self.zap_wait(mm, area, index..index + done + n);
                    return Err(err);
                }
            }
        }
        Ok(())
    }

    /// Unmaps the pages of `run`, where they are mapped.
    ///
    /// # Context
    ///
    /// As [`insert`](Self::insert).
    pub(super) fn zap_wait(&self, mm: &MmWithUser, area: &Area, run: Range<usize>) {
        Zap::new(*self, mm, area).run(run, Locked::wait_some);
    }
}

fn pgoff(vma: &virt::VmaRef) -> usize {
    // SAFETY: The VMA is locked for reading at least.
    unsafe { (*vma.as_ptr()).vm_pgoff }
}

/// Unmaps runs of pages, and keeps the VMA locked from one to the next where they lie in the same.
pub(super) struct Zap<'a> {
    window: Window,
    mm: &'a MmWithUser,
    area: &'a Area,
    lock: Option<Locked<'a>>,
}

impl<'a> Zap<'a> {
    pub(super) fn new(window: Window, mm: &'a MmWithUser, area: &'a Area) -> Self {
        Self {
            window,
            mm,
            area,
            lock: None,
        }
    }

    /// Unmaps the pages of `run` without waiting for a lock. Says how many, from the start on:
    /// where a lock wasn't to be had, the rest is as it was.
    pub(super) fn try_run(&mut self, run: Range<usize>) -> usize {
        self.run(run, Locked::try_)
    }

    fn run(
        &mut self,
        mut run: Range<usize>,
        lock: fn(&'a MmWithUser, usize) -> Option<Locked<'a>>,
    ) -> usize {
        let all = run.len();
        while !run.is_empty() {
            let address = self.window.address(run.start);
            // The VMA of the last run may do. If not, unlock it before another is locked.
            if self.zap_here(&mut run, address) {
                continue;
            }
            self.lock = None;
            self.lock = lock(self.mm, address);
            if self.lock.is_none() {
                break;
            }
            if !self.zap_here(&mut run, address) {
                // Nothing of ours is mapped there.
                run.start += 1;
            }
        }
        all - run.len()
    }

    /// Unmaps the beginning of `run` if the VMA that is locked has it, and takes it off `run`.
    fn zap_here(&self, run: &mut Range<usize>, address: usize) -> bool {
        let Some(vma) = self.lock.as_ref().and_then(|lock| lock.vma(address)) else {
            return false;
        };
        let n = self.window.covers(vma, self.area, run);
        if n == 0 {
            return false;
        }
        vma.zap_vma_range(address, n * PAGE_SIZE);
        run.start += n;
        true
    }
}

/// The lock of one VMA where the kernel has such locks, and of the whole mm where it hasn't.
enum Locked<'a> {
    Vma(VmaReadGuard<'a>),
    Mm(MmapReadGuard<'a>),
}

impl<'a> Locked<'a> {
    /// Waits for the lock.
    fn wait(mm: &'a MmWithUser, address: usize) -> Self {
        match mm.lock_vma_under_rcu(address) {
            Some(vma) => Locked::Vma(vma),
            None => Locked::Mm(mm.mmap_read_lock()),
        }
    }

    fn wait_some(mm: &'a MmWithUser, address: usize) -> Option<Self> {
        Some(Self::wait(mm, address))
    }

    /// Doesn't wait: reclaim may run in a thread that holds the lock.
    fn try_(mm: &'a MmWithUser, address: usize) -> Option<Self> {
        match mm.lock_vma_under_rcu(address) {
            Some(vma) => Some(Locked::Vma(vma)),
            None => Some(Locked::Mm(mm.mmap_read_trylock()?)),
        }
    }

    /// The VMA at `address`, if this lock covers it.
    fn vma(&self, address: usize) -> Option<&virt::VmaRef> {
        match self {
            Locked::Vma(vma) => Some(vma).map(|vma| &**vma),
            Locked::Mm(mm) => mm.vma_lookup(address),
        }
    }
}
