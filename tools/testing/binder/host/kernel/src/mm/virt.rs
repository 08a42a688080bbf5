// SPDX-License-Identifier: GPL-2.0

//! Virtual memory areas.

use super::MmWithUser;
use crate::{
    alloc,
    bindings::vm_area_struct,
    error::{
        code::{
            EBUSY,
            EFAULT,
            ENOMEM, //
        },
        Error, //
    },
    page::{
        Page,
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
};
use std::{
    cell::{
        RefCell,
        UnsafeCell, //
    },
    ops::{
        Deref,
        Range, //
    },
    ptr, //
};

/// A VMA that is locked.
#[repr(transparent)]
pub struct VmaRef(UnsafeCell<vm_area_struct>);

/// A VMA that is being set up.
#[repr(transparent)]
pub struct VmaNew(VmaRef);

/// A VMA that pages can be inserted into.
#[repr(transparent)]
pub struct VmaMixedMap(VmaRef);

/// A VMA that is owned by its mm.
pub(crate) struct Vma(Box<VmaRef>);

// SAFETY: As the kernel's; the locks of the mm protect it.
unsafe impl Send for Vma {}
// SAFETY: As above.
unsafe impl Sync for Vma {}

impl Vma {
    pub(super) fn new(mm: &MmWithUser, addresses: Range<usize>, pgoff: usize) -> Self {
        Self::from_raw(vm_area_struct {
            vm_start: addresses.start,
            vm_end: addresses.end,
            vm_pgoff: pgoff,
            vm_ops: ptr::null(),
            vm_private_data: ptr::null_mut(),
            vm_mm: mm,
        })
    }

    fn from_raw(raw: vm_area_struct) -> Self {
        Self(Box::new(VmaRef(UnsafeCell::new(raw))))
    }

    pub(super) fn as_new(&self) -> &VmaNew {
        let this: *const VmaRef = &*self.0;
        // SAFETY: The layout is the same.
        unsafe { &*this.cast::<VmaNew>() }
    }

    pub(super) fn contains(&self, address: usize) -> bool {
        (self.start()..self.end()).contains(&address)
    }

    /// Splits it where `addresses` begin and end.
    pub(super) fn split(self, addresses: &Range<usize>) -> impl Iterator<Item = Self> {
        let mid = addresses.start.clamp(self.start(), self.end());
        let end = addresses.end.clamp(self.start(), self.end());
        let parts = [self.start()..mid, mid..end, end..self.end()];
        let raw = self.0 .0.into_inner();
        parts
            .into_iter()
            .filter(|part| !part.is_empty())
            .map(move |part| {
                Self::from_raw(vm_area_struct {
                    vm_start: part.start,
                    vm_end: part.end,
                    vm_pgoff: raw.vm_pgoff + ((part.start - raw.vm_start) >> PAGE_SHIFT),
                    ..raw
                })
            })
    }

    pub(super) fn close(&self) {
        let raw = self.as_ptr();
        // SAFETY: It is locked for writing, and whoever set the operations keeps them valid.
        if let Some(close) = unsafe { (*raw).vm_ops.as_ref() }.and_then(|ops| ops.close) {
            // SAFETY: As above.
            unsafe { close(raw) };
        }
    }
}

impl Deref for Vma {
    type Target = VmaRef;

    fn deref(&self) -> &VmaRef {
        &self.0
    }
}

impl VmaRef {
    pub fn as_ptr(&self) -> *mut vm_area_struct {
        self.0.get()
    }

    fn raw(&self) -> &vm_area_struct {
        // SAFETY: It is locked, for reading at least.
        unsafe { &*self.0.get() }
    }

    pub fn start(&self) -> usize {
        self.raw().vm_start
    }

    pub fn end(&self) -> usize {
        self.raw().vm_end
    }

    pub fn mm(&self) -> &MmWithUser {
        // SAFETY: The mm lives longer than its VMAs.
        unsafe { &*self.raw().vm_mm }
    }

    pub fn zap_vma_range(&self, address: usize, size: usize) {
        assert!(address >= self.start() && address + size <= self.end());
        self.mm().zap(address..address + size);
    }

    pub fn as_mixedmap_vma(&self) -> Option<&VmaMixedMap> {
        // SAFETY: The layout is the same.
        Some(unsafe { &*ptr::from_ref(self).cast::<VmaMixedMap>() })
    }
}

type Hook = RefCell<Option<Box<dyn FnOnce()>>>;

std::thread_local! {
    static NEXT_MAP: Hook = const { RefCell::new(None) };
    static NEXT_ZAP: Hook = const { RefCell::new(None) };
}

/// Has the next mapping of pages by this thread begin with `f`.
pub fn before_next_map(f: impl FnOnce() + 'static) {
    NEXT_MAP.with(|next| *next.borrow_mut() = Some(Box::new(f)));
}

/// Has the next unmapping of pages by this thread begin with `f`.
pub fn before_next_zap(f: impl FnOnce() + 'static) {
    NEXT_ZAP.with(|next| *next.borrow_mut() = Some(Box::new(f)));
}

impl VmaMixedMap {
    pub fn zap_vma_pages(&self, address: usize, pages: usize) {
        if let Some(f) = NEXT_ZAP.with(RefCell::take) {
            f();
        }
        for nth in (0..usize::BITS as usize).filter(|nth| pages >> nth & 1 == 1) {
            self.zap_vma_range(address + nth * PAGE_SIZE, PAGE_SIZE);
        }
    }

    pub fn vm_insert_pages(&self, address: usize, new: &[Page]) -> Result<(), (Error, usize)> {
        if address < self.start() || address + new.len() * PAGE_SIZE > self.end() {
            return Err((EFAULT, 0));
        }
        if let Some(f) = NEXT_MAP.with(RefCell::take) {
            f();
        }
        let mut pages = self.mm().pages.lock().unwrap();
        for (nth, page) in new.iter().enumerate() {
            // For the page table.
            alloc::allocate().map_err(|_| (ENOMEM, nth))?;
            let address = address + nth * PAGE_SIZE;
            if pages.contains_key(&address) {
                return Err((EBUSY, nth));
            }
            pages.insert(address, page.get());
        }
        Ok(())
    }
}

impl Deref for VmaMixedMap {
    type Target = VmaRef;

    fn deref(&self) -> &VmaRef {
        &self.0
    }
}

impl Deref for VmaNew {
    type Target = VmaRef;

    fn deref(&self) -> &VmaRef {
        &self.0
    }
}
