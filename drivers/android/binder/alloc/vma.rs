// SPDX-License-Identifier: GPL-2.0

//! The one place that maps pages into the VMA of an area, and unmaps them.
//!
//! The VMA of an area can be split, moved, replaced by another, or be gone by the time that a page
//! is to be mapped or unmapped. So it is looked up by the address of the page each time, and it is
//! ours only if its operations, its private data and its offset say so.

use core::{
    cmp::{max, min},
    ops::Range,
    ptr, //
};

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
/// `vma` is a VMA with our operations, which nobody else uses any more.
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

    /// The pages that `vma` maps for `area`, of those in `around`: `index` is among them, or there
    /// are none.
    fn mapped_by(
        &self,
        vma: &virt::VmaRef,
        area: &Area,
        index: usize,
        around: &Range<usize>,
    ) -> Range<usize> {
        // SAFETY: Both are plain pointers that are only compared, in a VMA that is locked for
        // reading.
        let (ops, private) = unsafe { ((*vma.as_ptr()).vm_ops, (*vma.as_ptr()).vm_private_data) };
        let ours = ptr::eq(ops, &VM_OPS.0) && ptr::eq(private.cast_const().cast::<Area>(), area);
        let address = self.address(index);
        if !ours || address < vma.start() || address >= vma.end() {
            return index..index;
        }
        let before = (address - vma.start()) >> PAGE_SHIFT;
        let rest = (vma.end() - address) >> PAGE_SHIFT;
        // mremap() can bring another part of the area to this address.
        if pgoff(vma) + before != self.pgoff + index {
            return index..index;
        }
        max(around.start, index.saturating_sub(before))..min(around.end, index + rest)
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
                Some((vma, mixed)) => match self.mapped_by(vma, area, run.start, &run).len() {
                    0 => Err((ESRCH, 0)),
                    n => mixed
                        .vm_insert_pages(self.address(run.start), &pages[done..done + n])
                        .map(|()| n)
                        // The addresses are right, so this is how C says that there is no memory
                        // for the upper page tables.
                        .map_err(|(err, n)| (if err == EFAULT { ENOMEM } else { err }, n)),
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
    pub(super) fn zap_wait(&self, mm: &MmWithUser, area: &Area, mut run: Range<usize>) {
        while !run.is_empty() {
            let address = self.address(run.start);
            let lock = Locked::wait(mm, address);
            let mut n = 0;
            if let Some(vma) = lock.vma(address) {
                n = self.mapped_by(vma, area, run.start, &run).len();
                if n != 0 {
                    vma.zap_vma_range(address, n * PAGE_SIZE);
                }
            }
            // If there are none, nothing of ours is mapped there.
            run.start += max(n, 1);
        }
    }

    /// Finds out what maps page `index`, and those of `around` that the same VMA maps, for them to
    /// be unmapped. `None` if that takes a lock that isn't to be had now: this doesn't wait, as
    /// reclaim may run in a thread that holds the lock.
    pub(super) fn try_lock<'a>(
        &self,
        mm: &'a MmWithUser,
        area: &Area,
        index: usize,
        around: &Range<usize>,
    ) -> Option<Mapping<'a>> {
        let address = self.address(index);
        let lock = Locked::try_(mm, address)?;
        let pages = lock
            .vma(address)
            .map_or(index..index, |vma| self.mapped_by(vma, area, index, around));
        Some(if pages.is_empty() {
            Mapping::Nothing(index..index + 1)
        } else {
            Mapping::Vma {
                window: *self,
                lock,
                address,
                pages,
            }
        })
    }
}

fn pgoff(vma: &virt::VmaRef) -> usize {
    // SAFETY: The VMA is locked for reading at least.
    unsafe { (*vma.as_ptr()).vm_pgoff }
}

/// What maps some pages of an area, and keeps them mapped until they are unmapped by this.
pub(super) enum Mapping<'a> {
    /// Nothing does.
    Nothing(Range<usize>),
    /// The VMA at `address`, which `lock` is for.
    Vma {
        window: Window,
        lock: Locked<'a>,
        address: usize,
        pages: Range<usize>,
    },
}

impl Mapping<'_> {
    /// Whether there is anything to be unmapped.
    pub(super) fn is_vma(&self) -> bool {
        matches!(self, Mapping::Vma { .. })
    }

    /// Which pages these are.
    pub(super) fn pages(&self) -> Range<usize> {
        match self {
            Mapping::Nothing(pages) | Mapping::Vma { pages, .. } => pages.clone(),
        }
    }

    /// Unmaps some of [`pages`](Self::pages): bit 0 of `set` tells page `base`, and so on.
    pub(super) fn zap(&self, base: usize, set: usize) {
        if let Mapping::Vma {
            window,
            lock,
            address,
            ..
        } = self
        {
            if let Some(vma) = lock.vma(*address).and_then(virt::VmaRef::as_mixedmap_vma) {
                let first = set.trailing_zeros() as usize;
                vma.zap_vma_pages(window.address(base + first), set >> first);
            }
        }
    }
}

/// The lock of one VMA where the kernel has such locks, and of the whole mm where it hasn't.
pub(super) enum Locked<'a> {
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
