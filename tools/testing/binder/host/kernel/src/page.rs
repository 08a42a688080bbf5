// SPDX-License-Identifier: GPL-2.0

//! Pages.

use crate::{
    alloc::{
        self,
        flags::__GFP_ZERO,
        AllocError,
        Flags, //
    },
    bindings,
    error::{
        code::EINVAL,
        Result, //
    },
    memcontrol::{
        self,
        MemCgroup, //
    },
    sync::aref::ARef,
    uaccess::UserSliceReader, //
};
use std::{
    cell::{
        RefCell,
        UnsafeCell, //
    },
    collections::VecDeque,
    marker::PhantomData,
    mem::{
        ManuallyDrop,
        MaybeUninit, //
    },
    ops::Deref,
    ptr::NonNull,
    slice,
    sync::atomic::{
        AtomicUsize,
        Ordering::SeqCst, //
    },
};

pub const PAGE_SHIFT: usize = 12;

/// As most kernels have it.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;

/// What is in a page that wasn't asked to be cleared: somebody's secrets.
pub const STALE: u8 = 0x5a;

/// Pages that were allocated together.
pub type SplitPages = std::vec::IntoIter<Page>;

/// A page that is owned.
#[derive(Debug)]
#[repr(transparent)]
pub struct Page {
    page: NonNull<bindings::page>,
}

// SAFETY: As the kernel's.
unsafe impl Send for Page {}
// SAFETY: As the kernel's.
unsafe impl Sync for Page {}

std::thread_local! {
    static NEXT: RefCell<Option<Box<dyn FnOnce()>>> = const { RefCell::new(None) };
}

/// Has the next allocation of pages by this thread begin with `f`.
pub fn before_next(f: impl FnOnce() + 'static) {
    NEXT.with(|next| *next.borrow_mut() = Some(Box::new(f)));
}

impl Page {
    pub fn alloc_page(flags: Flags) -> Result<Self, AllocError> {
        alloc::allocate()?;
        Ok(Self::new(flags, None))
    }

    pub fn alloc_split_charged(order: u32, flags: Flags) -> Result<SplitPages, AllocError> {
        if let Some(f) = NEXT.with(RefCell::take) {
            f();
        }
        alloc::allocate()?;
        let pages = (0..1 << order).map(|_| Self::new(flags, memcontrol::charge()));
        Ok(pages.collect::<Vec<_>>().into_iter())
    }

    fn new(flags: Flags, memcg: Option<ARef<MemCgroup>>) -> Self {
        let page = Box::new(bindings::page {
            refs: AtomicUsize::new(1),
            memcg,
            filler: if flags.contains(__GFP_ZERO) { 0 } else { STALE },
            bytes: UnsafeCell::new(None),
        });
        let page = NonNull::from(Box::leak(page));
        Self { page }
    }

    pub fn into_raw(self) -> NonNull<bindings::page> {
        ManuallyDrop::new(self).page
    }

    /// # Safety
    ///
    /// As the kernel's.
    pub unsafe fn from_raw(page: NonNull<bindings::page>) -> Self {
        let page = Self { page };
        page.raw();
        page
    }

    pub fn as_ptr(&self) -> *mut bindings::page {
        self.page.as_ptr()
    }

    pub fn nid(&self) -> i32 {
        0
    }

    /// All uses of a page begin here.
    pub(crate) fn raw(&self) -> &bindings::page {
        // SAFETY: Pages that were freed stay around for a while, to be recognized here.
        let raw = unsafe { self.page.as_ref() };
        assert!(raw.refs.load(SeqCst) > 0, "use of a page that was freed");
        raw
    }

    /// A reference of its own for a mapping.
    pub(crate) fn get(&self) -> Self {
        self.raw().refs.fetch_add(1, SeqCst);
        Self { page: self.page }
    }

    /// The bytes at `offset`.
    #[allow(clippy::mut_from_ref)]
    fn bytes(&self, offset: usize, len: usize) -> Result<&mut [u8]> {
        // SAFETY: The caller has the bytes to itself, as the kernel's methods demand.
        let bytes = unsafe { &mut *self.raw().bytes.get() };
        let bytes = bytes.get_or_insert_with(|| Box::new([self.raw().filler; PAGE_SIZE]));
        let end = offset.checked_add(len).ok_or(EINVAL)?;
        bytes.get_mut(offset..end).ok_or(EINVAL)
    }

    /// # Safety
    ///
    /// As the kernel's.
    pub unsafe fn read_raw(&self, dst: *mut u8, offset: usize, len: usize) -> Result {
        let bytes = self.bytes(offset, len)?;
        // SAFETY: By the requirements of this function.
        unsafe { dst.copy_from_nonoverlapping(bytes.as_ptr(), len) };
        Ok(())
    }

    /// # Safety
    ///
    /// As the kernel's.
    pub unsafe fn write_raw(&self, src: *const u8, offset: usize, len: usize) -> Result {
        let bytes = self.bytes(offset, len)?;
        // SAFETY: By the requirements of this function.
        unsafe { src.copy_to_nonoverlapping(bytes.as_mut_ptr(), len) };
        Ok(())
    }

    /// # Safety
    ///
    /// As the kernel's.
    pub unsafe fn fill_zero_raw(&self, offset: usize, len: usize) -> Result {
        self.bytes(offset, len)?.fill(0);
        Ok(())
    }

    /// # Safety
    ///
    /// As the kernel's.
    pub unsafe fn copy_from_user_slice_raw(
        &self,
        reader: &mut UserSliceReader<'_>,
        offset: usize,
        len: usize,
    ) -> Result {
        let bytes = self.bytes(offset, len)?;
        // SAFETY: Bytes may be taken for bytes that needn't be initialized, and the reader
        // initializes all that it touches.
        let bytes =
            unsafe { slice::from_raw_parts_mut(bytes.as_mut_ptr().cast::<MaybeUninit<u8>>(), len) };
        reader.read_raw(bytes)
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        let raw = self.raw();
        if raw.refs.fetch_sub(1, SeqCst) == 1 {
            memcontrol::uncharge(raw);
            bury(self.page);
        }
    }
}

/// Frees a page, not now but after some more: who uses it after that must find out.
fn bury(page: NonNull<bindings::page>) {
    const GRAVES: usize = 64;

    struct Graves(VecDeque<NonNull<bindings::page>>);

    impl Drop for Graves {
        fn drop(&mut self) {
            self.0.drain(..).for_each(dig_up);
        }
    }

    fn dig_up(page: NonNull<bindings::page>) {
        // SAFETY: It was leaked when it was allocated, and nobody has a reference any more.
        drop(unsafe { Box::from_raw(page.as_ptr()) });
    }

    // Not loom's: it is of no interest when the memory goes.
    std::thread_local! {
        static FREED: RefCell<Graves> = const { RefCell::new(Graves(VecDeque::new())) };
    }
    FREED.with_borrow_mut(|Graves(graves)| {
        graves.push_back(page);
        if graves.len() > GRAVES {
            graves.drain(..1).for_each(dig_up);
        }
    });
}

/// A page that somebody else owns.
#[repr(transparent)]
pub struct BorrowedPage<'a>(ManuallyDrop<Page>, PhantomData<&'a Page>);

impl BorrowedPage<'_> {
    /// # Safety
    ///
    /// As the kernel's.
    pub unsafe fn from_raw(page: NonNull<bindings::page>) -> Self {
        let page = ManuallyDrop::new(Page { page });
        page.raw();
        Self(page, PhantomData)
    }

    pub fn as_pages(pages: &[Self]) -> &[Page] {
        // SAFETY: The layout is the same, and a shared slice doesn't drop what is in there.
        unsafe { slice::from_raw_parts(pages.as_ptr().cast(), pages.len()) }
    }
}

impl Deref for BorrowedPage<'_> {
    type Target = Page;

    fn deref(&self) -> &Page {
        &self.0
    }
}

/// Pages that are freed together. The memory for them is in the batch itself, as in the kernel.
pub struct PageBatch<const N: usize> {
    pages: [Option<Page>; N],
    len: usize,
}

impl<const N: usize> PageBatch<N> {
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self {
            pages: [const { None }; N],
            len: 0,
        }
    }

    pub fn push(&mut self, page: Page) {
        if let Some(place) = self.pages.get_mut(self.len) {
            *place = Some(page);
            self.len += 1;
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn is_full(&self) -> bool {
        self.len == N
    }
}
