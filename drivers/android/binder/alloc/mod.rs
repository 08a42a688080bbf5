// SPDX-License-Identifier: GPL-2.0

//! The transaction buffers of a process.
//!
//! A process maps an area; each transaction to it gets a buffer in there: a range of bytes that the
//! driver writes and the process reads. This module decides where buffers lie, makes sure that
//! there are pages below them, and gives back the pages that no buffer lies on when memory is
//! short.
//!
//! ```text
//!              driver (process.rs, allocation.rs)
//!                 |
//!              mod.rs      BufferAllocator, Buffer
//!                 |
//!    ranges.rs  oneway.rs  pages.rs       which bytes, whose budget, which pages: plain data
//!                             |
//!               install.rs  reclaim.rs    bring pages, take pages away
//!                       |   |
//!                       vma.rs            map them, unmap them
//! ```
//!
//! # Locks
//!
//! From the outside in:
//!
//! 1. mmap lock or VMA lock of the process that has the area;
//! 2. the area's lock, a spinlock: everything in [`AreaState`];
//! 3. the LRU lock.
//!
//! Reclaim finds a page by the LRU, but drops the LRU lock again before it takes the others in this
//! order. It only tries the VMA lock or mmap lock. No memory is allocated with the area's lock
//! held, and the process lock of the driver isn't needed for anything here; where it is held, it
//! goes outside of the area's lock.

use core::{
    cell::Cell,
    cmp::min,
    mem::{size_of, size_of_val, MaybeUninit},
    ops::{ControlFlow, Range},
    ptr, //
};

use kernel::{
    alloc::Flags,
    bindings,
    memcontrol::MemCgroup,
    mm::{virt, Mm, MmWithUser},
    new_condvar,
    new_spinlock,
    page::{BorrowedPage, Page, PageBatch, PAGE_SHIFT, PAGE_SIZE},
    prelude::*,
    sync::{
        aref::ARef,
        lock::spinlock::SpinLockGuard,
        Arc,
        CondVar,
        SpinLock, //
    },
    task::Pid,
    transmute::FromBytes,
    uaccess::UserSliceReader,
    warn_on, //
};

use crate::{allocation::AllocationInfo, trace};

#[cfg(CONFIG_ANDROID_BINDER_RUST_KUNIT_TEST)]
pub(crate) mod cases;
mod debug;
mod install;
mod messages;
mod oneway;
mod pages;
mod ranges;
pub(crate) mod reclaim;
mod slots;
#[cfg(all(CONFIG_ANDROID_BINDER_RUST_KUNIT_TEST, not(host_test)))]
mod tests;
mod vma;

use self::{
    install::charged,
    oneway::{Oneway, Suspect},
    pages::{PageRef, PageTable, GROUP},
    ranges::{Meta, Ranges, Reserved, Usage},
    slots::Held,
    vma::Window, //
};

pub(crate) use self::{
    pages::IdleLru,
    ranges::Sizes, //
};

/// No more of an area than this is used, as in the C driver.
const MAX_SIZE: usize = bindings::SZ_4M as usize;

/// How many pages are brought, or freed by teardown, at a time.
const BATCH: usize = 32;

/// How many pages are looked up at a time.
const LOOKUP: usize = 16;

/// A range of bytes in the area of a process, which the kernel has for itself.
///
/// Made by [`BufferAllocator::reserve`]. It ends either in the hands of the process, by
/// [`BufferAllocator::commit`], or by [`BufferAllocator::release`].
///
/// # Invariants
///
/// - While the value exists, the range is reserved in the area, and all pages that it lies on are
///   in use (or being brought into use, before [`BufferAllocator::reserve`] returns it). Some may
///   be filling: only as long as `filled` says so.
/// - The area outlives the value, by the invariants of [`BufferAllocator`].
/// - `data` is that of the range.
/// - `page` is the page that the range begins on.
pub(crate) struct Buffer {
    /// Address of the area that it lies in, only to be compared.
    area: usize,
    data: Held<AllocationInfo>,
    /// Most buffers lie on one page, which was there already. So they can be copied to without a
    /// look at the page table. It isn't known when pages had to be brought, nor for a buffer that
    /// came back from the process, which is hardly ever read.
    page: Option<PageRef>,
    /// Where the process sees it.
    address: usize,
    debug_id: u32,
    id: ranges::Id,
    offset: u32,
    size: u32,
    /// How many bytes have been written, from the first on, as long as it matters because there are
    /// pages to be filled; or [`READY`], or [`RETURNED`].
    filled: Cell<u32>,
}

/// No page of the buffer has to be filled.
const READY: u32 = u32::MAX;

/// Nor has it, and the process has had the buffer before.
const RETURNED: u32 = u32::MAX - 1;

// A buffer is moved a few times on its way through the driver. That is cheap as long as the
// compiler needn't call memcpy() for a buffer and a pointer to its process.
const _: () = assert!(size_of::<Option<Buffer>>() <= 56);

impl Buffer {
    /// Bytes, a multiple of the pointer size.
    pub(crate) fn size(&self) -> usize {
        self.size as usize
    }

    /// The address of the first byte for the process that has the area.
    pub(crate) fn address(&self) -> usize {
        self.address
    }

    pub(crate) fn debug_id(&self) -> usize {
        self.debug_id as usize
    }

    /// What goes with the buffer, also to the process and back.
    pub(crate) fn data(&self) -> &AllocationInfo {
        // SAFETY: By the type invariants the range stays reserved, in an area that is there.
        unsafe { self.data.get() }
    }

    /// What goes with the buffer, also to the process and back.
    pub(crate) fn data_mut(&mut self) -> &mut AllocationInfo {
        // SAFETY: As in `data`.
        unsafe { self.data.get_mut() }
    }

    /// Whether it lies in `area`.
    fn is_in(&self, area: &Area) -> bool {
        self.area == ptr::from_ref(area).addr()
    }

    /// Index of its first byte in the area.
    fn offset(&self) -> usize {
        self.offset as usize
    }

    /// The page that it begins on, if that is known.
    fn first_page(&self) -> Option<BorrowedPage<'_>> {
        let page = self.page.as_ref()?;
        // SAFETY: By the type invariants the page stays in use as long as `self` exists.
        Some(unsafe { page.borrow() })
    }

    /// Whether there are pages to be filled.
    fn is_filling(&self) -> bool {
        self.filled.get() < RETURNED
    }

    /// All bytes below `end` have been written.
    fn filled_up_to(&self, end: usize) {
        if self.is_filling() && self.filled.get() < end as u32 {
            self.filled.set(end as u32);
        }
    }

    /// The indices of the pages that it covers all of.
    fn covered_pages(&self) -> Range<usize> {
        let start = self.offset().div_ceil(PAGE_SIZE);
        start..((self.offset() + self.size()) >> PAGE_SHIFT).max(start)
    }

    /// The indices of the pages that it lies on.
    fn pages(&self) -> Range<usize> {
        self.offset() >> PAGE_SHIFT..(self.offset() + self.size()).div_ceil(PAGE_SIZE)
    }
}

// What each buffer takes besides its bytes, with the two words of its slot. It is senders who
// decide how many there are.
const _: () = assert!(size_of::<ranges::Range>() + size_of::<slots::Data<AllocationInfo>>() <= 80);

/// What a buffer is wanted for.
#[derive(Clone, Copy)]
pub(crate) struct Request {
    pub(crate) sizes: Sizes,
    pub(crate) debug_id: usize,
    /// Whether it counts against the half of the area that oneway transactions may take.
    pub(crate) is_oneway: bool,
    /// Who sends it, by the pid in the initial namespace.
    pub(crate) pid: Pid,
}

/// The memory that a process mapped to receive transactions in: once mapped, an area stays the only
/// one of its allocator.
#[pin_data]
pub(crate) struct Area {
    /// Who pays for the pages, and where they are mapped.
    mm: ARef<Mm>,
    /// The process that opened the file, as events tell it.
    pid: Pid,
    lru: Arc<IdleLru>,
    #[pin]
    state: SpinLock<AreaState>,
    /// Somebody waits, and a page isn't isolated any more.
    #[pin]
    settled: CondVar,
}

/// What the area's lock protects.
struct AreaState {
    /// Set once, by mmap.
    mapped: Option<Mapped>,
    /// No new buffers: the mapping or the process is gone.
    closed: bool,
    /// How many threads wait for `settled`.
    waiters: usize,
}

struct Mapped {
    window: Window,
    ranges: Ranges<AllocationInfo>,
    oneway: Oneway,
    pages: PageTable,
}

impl Area {
    /// Refuses new buffers from now on.
    fn close(&self) {
        self.state.lock().closed = true;
    }

    /// Unlocks the area after pages have stopped to be isolated.
    fn settle(&self, state: SpinLockGuard<'_, AreaState>) {
        let waiters = state.waiters > 0;
        drop(state);
        if waiters {
            self.settled.notify_all();
        }
    }

    /// Gives back the page table's memory for those of `pages` that aren't there, nor on their way.
    #[cold]
    fn trim(&self, pages: Range<usize>) {
        for group in pages.start / GROUP..pages.end.div_ceil(GROUP) {
            let mut state = self.state.lock();
            let emptied = state
                .mapped
                .as_mut()
                .map(|mapped| mapped.pages.trim(group * GROUP));
            drop(state);
            drop(emptied);
        }
    }

    /// Frees the idle pages, and those in use too if `all`; says how many. Nothing maps the area
    /// any more.
    fn tear_down(&self, all: bool) -> usize {
        let mut from = 0;
        let mut pages = 0;
        loop {
            let mut gone = PageBatch::<BATCH>::new();
            let mut state = self.state.lock();
            state.closed = true;
            if let Some(mapped) = state.mapped.as_mut() {
                let lru = &self.lru;
                mapped.pages.tear_down(&mut from, all, lru, &mut gone);
            }
            drop(state);
            // They are freed here, without the lock.
            if gone.is_empty() {
                return pages;
            }
            pages += gone.len();
        }
    }
}

/// The transaction buffers of one process (strictly: of one open file).
///
/// All methods may be called from any process, and without any lock unless they say so.
///
/// # Invariants
///
/// Buffers go back before this is dropped: the driver keeps them in an `Allocation`, along with a
/// reference to the process that this belongs to. No slot of the area's page table is linked in the
/// LRU once this is dropped.
pub(crate) struct BufferAllocator {
    area: Arc<Area>,
}

impl BufferAllocator {
    /// Makes the allocator of the current process, whose idle pages go on `lru`. Nothing can be
    /// allocated before [`map`](Self::map). May sleep.
    ///
    /// # Errors
    ///
    /// - `ESRCH`: the current thread has no mm.
    /// - `ENOMEM`.
    pub(crate) fn new(lru: Arc<IdleLru>) -> Result<Self> {
        let mm = ARef::from(&**kernel::current!().mm().ok_or(ESRCH)?);
        let area = Arc::pin_init(
            pin_init!(Area {
                mm,
                pid: kernel::current!().tgid(),
                lru,
                state <- new_spinlock!(
                    AreaState {
                        mapped: None,
                        closed: false,
                        waiters: 0,
                    },
                    "binder_alloc::Area::state"
                ),
                settled <- new_condvar!("binder_alloc::Area::settled"),
            }),
            GFP_KERNEL,
        )?;
        Ok(Self { area })
    }

    /// Takes `vma` as the mapping of the area, of which the first 4 MiB are used.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: it is a mapping in another process.
    /// - `EBUSY`: there was a mapping before; it doesn't matter whether there still is.
    ///
    /// # Context
    ///
    /// In the mmap file operation.
    pub(crate) fn map(&self, vma: &virt::VmaNew) -> Result {
        let area = &*self.area;
        let pages = vma.start()..vma.end();
        if !ptr::eq::<Mm>(&*area.mm, &**vma.mm()) {
            messages::map_failed(self.area.pid, pages, "invalid vma->vm_mm", EINVAL);
            return Err(EINVAL);
        }
        let size = min(pages.len(), MAX_SIZE);
        let mut state = area.state.lock();
        if state.mapped.is_some() {
            drop(state);
            messages::map_failed(self.area.pid, pages, "already mapped", EBUSY);
            return Err(EBUSY);
        }
        state.mapped = Some(Mapped {
            window: Window::adopt(vma, area),
            ranges: Ranges::new(size),
            oneway: Oneway::new(size),
            pages: PageTable::new(size >> PAGE_SHIFT),
        });
        Ok(())
    }
}

/// More memory for the data that is kept under the area's lock.
enum Growth {
    Ranges(ranges::Grown<AllocationInfo>),
    Oneway(oneway::Grown),
}

/// Why there is no buffer.
enum Refused {
    /// No free range is large enough.
    NoSpace(Usage),
    /// The oneway space doesn't suffice.
    NoOnewaySpace(Unused),
    Ranges(slots::GrowRequest<ranges::Range, slots::Data<AllocationInfo>>),
    Oneway(slots::GrowRequest<oneway::Tally>, Unused),
}

/// What isn't needed any more, to be dropped without the lock.
type Unused = Option<ranges::Grown<AllocationInfo>>;

impl Mapped {
    /// Places a buffer of `size` bytes and charges it. Says where it is, and if its sender is
    /// suspected of oneway spam.
    fn reserve(
        &mut self,
        size: usize,
        meta: Meta,
    ) -> Result<(Reserved<AllocationInfo>, Option<Suspect>), Refused> {
        // Tell the usual failure, a lack of oneway space, before anything has to be undone.
        if meta.is_oneway && self.oneway.free_space() < size {
            return Err(Refused::NoOnewaySpace(None));
        }
        let reserved = match self.ranges.reserve(size, meta) {
            Ok(reserved) => reserved,
            Err(slots::Refused::NoSpace) => return Err(Refused::NoSpace(self.ranges.usage())),
            Err(slots::Refused::NeedGrow(request)) => return Err(Refused::Ranges(request)),
        };
        if !meta.is_oneway {
            return Ok((reserved, None));
        }
        match self.oneway.charge(size, meta.pid) {
            Ok(suspect) => Ok((reserved, suspect)),
            Err(refused) => Err(self.undo(reserved, refused)),
        }
    }

    /// Undoes a reservation that the oneway budget doesn't allow.
    #[cold]
    fn undo(
        &mut self,
        reserved: Reserved<AllocationInfo>,
        refused: oneway::ChargeError,
    ) -> Refused {
        // SAFETY: Both are of the same range.
        let released = unsafe { self.ranges.release(reserved.id, reserved.data) };
        // To be dropped by the caller, without the lock.
        let unused = released.ok().and_then(|released| released.memory);
        match refused {
            slots::Refused::NoSpace => Refused::NoOnewaySpace(unused),
            slots::Refused::NeedGrow(request) => Refused::Oneway(request, unused),
        }
    }

    /// What a process without buffers needn't keep, to be dropped without the lock.
    fn trim(&mut self) -> (Option<Growth>, Option<Growth>) {
        (
            self.ranges.trim().map(Growth::Ranges),
            self.oneway.trim().map(Growth::Oneway),
        )
    }

    /// Takes in more memory. What comes back is to be dropped without the lock.
    fn grow(&mut self, growth: Growth) -> Growth {
        match growth {
            Growth::Ranges(grown) => Growth::Ranges(self.ranges.grow(grown)),
            Growth::Oneway(grown) => Growth::Oneway(self.oneway.grow(grown)),
        }
    }
}

impl BufferAllocator {
    /// Reserves a buffer, with all its pages. Says, too, whether its sender is to be told that it
    /// is suspected of oneway spam, as it is once in each shortage of oneway space. When it has
    /// been written, [`publish`](Self::publish) it.
    ///
    /// # Errors
    ///
    /// - `ESRCH`: there is no mapping, or not any more.
    /// - `ENOSPC`: no free range is large enough, or the oneway space doesn't suffice.
    /// - `ENOMEM`: the system has no memory. That of the process that has the area is charged
    ///   beyond the limits of its memory cgroup if need be.
    /// - `EINVAL`: the size overflows.
    /// - `EINTR`: the current thread has been killed.
    ///
    /// # Context
    ///
    /// May sleep.
    #[inline]
    pub(crate) fn reserve(&self, request: Request) -> Result<(Buffer, bool)> {
        let Some(size) = request.sizes.total() else {
            messages::invalid_sizes(self.area.pid, request.sizes);
            return Err(EINVAL);
        };
        let meta = Meta {
            sizes: request.sizes,
            // An int in C.
            debug_id: request.debug_id as u32,
            pid: request.pid,
            is_oneway: request.is_oneway,
        };

        loop {
            let mut state = self.area.state.lock();
            let is_closed = state.closed;
            let Some(mapped) = state.mapped.as_mut().filter(|_| !is_closed) else {
                drop(state);
                messages::no_area(self.area.pid);
                return Err(ESRCH);
            };
            match mapped.reserve(size, meta) {
                Ok((reserved, suspect)) => {
                    // INVARIANT: Its pages are there, or come below.
                    let mut buffer = mapped.buffer(&self.area, reserved, READY);
                    trace::trace_update_page_range(self.area.pid, true, || {
                        mapped.ranges.pages(buffer.id)
                    });
                    buffer.page = mapped.pages.claim(buffer.pages());
                    drop(state);
                    let mut is_told = false;
                    if let Some(suspect) = suspect {
                        messages::spam(self.area.pid, meta.pid, suspect);
                        is_told = suspect.is_told;
                    }
                    if buffer.page.is_none() {
                        buffer = self.install(buffer)?;
                    }
                    return Ok((buffer, is_told));
                }
                Err(refused) => {
                    drop(state);
                    self.grow(refused, size)?;
                }
            }
        }
    }

    /// The parts of a buffer.
    pub(crate) fn sizes(&self, buffer: &Buffer) -> Option<Sizes> {
        if !buffer.is_in(&self.area) {
            return None;
        }
        let state = self.area.state.lock();
        state.mapped.as_ref()?.ranges.sizes(buffer.id)
    }

    /// Brings the missing pages of a buffer.
    ///
    /// # Errors
    ///
    /// As [`reserve`](Self::reserve); the buffer has been released then.
    #[inline(never)]
    fn install(&self, buffer: Buffer) -> Result<Buffer> {
        match self.area.as_arc_borrow().install(&buffer) {
            Ok(is_filling) => {
                if is_filling {
                    buffer.filled.set(0);
                }
                Ok(buffer)
            }
            Err(err) => {
                self.abandon(buffer);
                Err(err)
            }
        }
    }

    /// Frees a buffer for which some pages couldn't be brought.
    #[cold]
    fn abandon(&self, buffer: Buffer) {
        let pages = buffer.pages();
        self.area.discard(buffer.covered_pages());
        let mut gone = PageBatch::<2>::new();
        self.free(buffer, |table, idle| table.abandon(idle, &mut gone));
        self.area.trim(pages);
    }

    /// Ends the writing of a buffer that was reserved: what hasn't been written is cleared where
    /// the process could see what was there before, and all of it is mapped.
    ///
    /// # Errors
    ///
    /// - `ESRCH`: the process is gone, or has unmapped its area.
    /// - `ENOMEM`: no memory for page tables.
    ///
    /// The buffer can only be released then.
    ///
    /// # Context
    ///
    /// May sleep.
    #[inline]
    pub(crate) fn publish(&self, buffer: &mut Buffer) -> Result {
        if buffer.is_filling() {
            self.publish_filled(buffer)?;
        }
        Ok(())
    }

    #[inline(never)]
    fn publish_filled(&self, buffer: &mut Buffer) -> Result {
        if !buffer.is_in(&self.area) {
            return Err(EFAULT);
        }
        self.fill_up_to(buffer, buffer.size())?;
        self.area.publish(buffer)?;
        buffer.filled.set(READY);
        Ok(())
    }

    /// Takes in more memory for the data under the lock if that is what a buffer of `size` bytes
    /// lacks, or says in the log that no memory would help.
    ///
    /// # Errors
    ///
    /// - `ENOSPC`: no memory would help.
    /// - `ESRCH`: the process is gone.
    /// - `ENOMEM`.
    #[cold]
    fn grow(&self, refused: Refused, size: usize) -> Result {
        let growth = match refused {
            Refused::NoSpace(usage) => {
                messages::no_space(self.area.pid, size, usage);
                return Err(ENOSPC);
            }
            Refused::NoOnewaySpace(unused) => {
                drop(unused);
                messages::no_oneway_space(self.area.pid, size);
                return Err(ENOSPC);
            }
            Refused::Ranges(request) => Growth::Ranges(self.charged(|flags| request.alloc(flags))?),
            Refused::Oneway(request, unused) => {
                drop(unused);
                Growth::Oneway(self.charged(|flags| request.alloc(flags))?)
            }
        };
        let mut state = self.area.state.lock();
        let unused = match state.mapped.as_mut() {
            Some(mapped) => mapped.grow(growth),
            None => growth,
        };
        drop(state);
        drop(unused);
        Ok(())
    }

    /// Has `alloc` allocate memory that the process is charged for, see [`install::charged`].
    ///
    /// # Errors
    ///
    /// - `ESRCH`: the process is gone.
    /// - Those of `alloc`, and `ENOMEM`.
    pub(crate) fn charged<T>(&self, alloc: impl FnMut(Flags) -> Result<T>) -> Result<T> {
        // As in `Area::install`.
        let mm = MmWithUser::into_mmput_async(self.area.mm.mmget_not_zero().ok_or(ESRCH)?);
        charged(MemCgroup::from_mm(&mm).as_deref(), alloc)
    }

    /// Gives `buffer`, which has been published, to the process, which gives it back with
    /// [`existing`](Self::existing).
    pub(crate) fn commit(&self, buffer: Buffer) {
        if warn_on!(!buffer.is_in(&self.area)) {
            return;
        }
        if warn_on!(buffer.is_filling()) {
            return self.release(buffer);
        }
        if buffer.filled.get() == RETURNED {
            let mut state = self.area.state.lock();
            let listed = match state.mapped.as_mut() {
                Some(mapped) => mapped.ranges.list_again(buffer.id),
                None => Err(ENOENT),
            };
            if warn_on!(listed.is_err()) {
                return;
            }
        }
        // SAFETY: By the invariants of `Buffer` the range is reserved, in an area that is there.
        unsafe { buffer.data.leave() };
    }

    /// Takes the buffer at `address` back from the process.
    ///
    /// # Errors
    ///
    /// - `ENOENT`: there is no buffer that begins there.
    /// - `EPERM`: there is, but the process hasn't got it yet.
    pub(crate) fn existing(&self, address: usize) -> Result<Buffer> {
        let mut state = self.area.state.lock();
        let mapped = state.mapped.as_mut().ok_or(ENOENT)?;
        let offset = address.checked_sub(mapped.window.start).ok_or(ENOENT)?;
        let existing = mapped.ranges.existing(offset)?;
        Ok(mapped.buffer(&self.area, existing, RETURNED))
    }

    /// How far `address` is from the start of the area, for messages.
    pub(crate) fn offset_of(&self, address: usize) -> usize {
        let state = self.area.state.lock();
        let start = state.mapped.as_ref().map_or(0, |it| it.window.start);
        address.wrapping_sub(start)
    }

    /// Frees `buffer`, and what went with it. Pages that no other buffer lies on become idle.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn release(&self, mut buffer: Buffer) {
        if warn_on!(!buffer.is_in(&self.area)) {
            return;
        }
        if buffer.is_filling() {
            let pages = buffer.covered_pages();
            self.area.discard(pages.clone());
            self.area.trim(pages);
        }
        // What it refers to may take locks when it is dropped.
        *buffer.data_mut() = AllocationInfo::default();
        self.free(buffer, |_, _| ());
    }

    /// Ends a buffer. `first` sees the page table, and the pages that no other buffer lies on,
    /// before these become idle.
    #[inline(always)]
    fn free(&self, buffer: Buffer, first: impl FnOnce(&mut PageTable, Range<usize>)) {
        let mut state = self.area.state.lock();
        let Some(mapped) = state.mapped.as_mut() else {
            return;
        };
        // SAFETY: By the invariants of `Buffer`, the data is that of the range.
        let released = unsafe { mapped.ranges.release(buffer.id, buffer.data) };
        let Ok(released) = released else {
            drop(state);
            pr_err!("buffer {} isn't reserved\n", buffer.debug_id);
            return;
        };
        let tallies = if released.meta.is_oneway {
            mapped.oneway.uncharge(released.size, released.meta.pid)
        } else {
            None
        };
        first(&mut mapped.pages, released.pages.clone());
        trace::trace_update_page_range(self.area.pid, false, || released.pages.clone());
        mapped.pages.make_idle(released.pages, &self.area);
        drop(state);
        // Memory that isn't needed any more is freed without the lock.
        drop(released.memory);
        drop(tallies);
    }

    /// Refuses new buffers from now on: the process is going away.
    pub(crate) fn close(&self) {
        self.area.close();
    }

    /// Takes back a buffer that the process had, after [`close`](Self::close); `None` when there is
    /// none left.
    pub(crate) fn take_next(&self) -> Option<Buffer> {
        loop {
            let mut state = self.area.state.lock();
            let mapped = state.mapped.as_mut()?;
            if let ControlFlow::Break(existing) = mapped.ranges.take_next() {
                return Some(mapped.buffer(&self.area, existing?, RETURNED));
            }
        }
    }

    /// Frees the idle pages, after [`close`](Self::close), when the file has been released and thus
    /// the mapping is gone. Says how many there were.
    pub(crate) fn free_idle_pages(&self) -> usize {
        self.area.tear_down(false)
    }
}

impl Mapped {
    /// The buffer that has been reserved, or taken back with its pages still in use, in `area`.
    #[inline]
    fn buffer(&self, area: &Area, reserved: Reserved<AllocationInfo>, filled: u32) -> Buffer {
        // INVARIANT: The range is reserved, and nobody else has its data. The pages are the
        // caller's business.
        Buffer {
            area: ptr::from_ref(area).addr(),
            data: reserved.data,
            page: None,
            address: self.window.start + reserved.offset,
            debug_id: reserved.debug_id,
            id: reserved.id,
            offset: reserved.offset as u32,
            size: reserved.size as u32,
            filled: Cell::new(filled),
        }
    }
}

/// Access to the bytes of a buffer. The process may have it mapped, but can't write to it.
impl BufferAllocator {
    /// Calls `f` for each piece of `len` bytes at `offset` of `buffer` that lies in one page: with
    /// the page, the offset in it, and the length.
    fn for_each_piece(
        &self,
        buffer: &Buffer,
        offset: usize,
        len: usize,
        mut f: impl FnMut(&Page, usize, usize) -> Result,
    ) -> Result {
        let end = offset.checked_add(len).ok_or(EFAULT)?;
        if end > buffer.size() || !buffer.is_in(&self.area) {
            return Err(EFAULT);
        }
        let end = buffer.offset() + end;
        let mut at = buffer.offset() + offset;
        let mut copy = |page: &Page, at: usize| {
            let in_page = at % PAGE_SIZE;
            let piece = min(end - at, PAGE_SIZE - in_page);
            f(page, in_page, piece)?;
            Ok::<usize, Error>(at + piece)
        };

        if at < end && at >> PAGE_SHIFT == buffer.pages().start {
            if let Some(page) = buffer.first_page() {
                at = copy(&page, at)?;
            }
        }
        while at < end {
            let pages = self.look_up(buffer, at >> PAGE_SHIFT..end.div_ceil(PAGE_SIZE))?;
            for page in pages.iter().flatten() {
                at = copy(page, at)?;
            }
        }
        Ok(())
    }

    /// The first pages of `range`, one at least, all of which `buffer` lies on.
    fn look_up<'b>(
        &self,
        buffer: &'b Buffer,
        range: Range<usize>,
    ) -> Result<[Option<BorrowedPage<'b>>; LOOKUP]> {
        let state = self.area.state.lock();
        let mapped = state.mapped.as_ref().ok_or(EFAULT)?;
        mapped.pages.in_use(range, buffer)
    }

    /// Clears what hasn't been written of the first `end` bytes of a buffer, if that has pages to
    /// be filled.
    #[inline]
    fn fill_up_to(&self, buffer: &Buffer, end: usize) -> Result {
        let filled = buffer.filled.get() as usize;
        if buffer.is_filling() && filled < end {
            self.zero(buffer, filled, end - filled)?;
        }
        Ok(())
    }

    fn zero(&self, buffer: &Buffer, offset: usize, len: usize) -> Result {
        self.for_each_piece(buffer, offset, len, |page, offset, len| {
            // SAFETY: See `copy_from_user`.
            unsafe { page.fill_zero_raw(offset, len) }
        })?;
        buffer.filled_up_to(offset + len);
        Ok(())
    }

    /// Copies `len` bytes from userspace to `offset` of `buffer`.
    ///
    /// # Errors
    ///
    /// `EFAULT`: the range isn't all in the buffer, or the bytes can't be read.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn copy_from_user(
        &self,
        buffer: &Buffer,
        reader: &mut UserSliceReader,
        offset: usize,
        len: usize,
    ) -> Result {
        self.fill_up_to(buffer, offset)?;
        self.for_each_piece(buffer, offset, len, |page, offset, len| {
            // SAFETY: The bytes are the kernel's alone while there is a `Buffer`, and nobody else
            // works on them while it is borrowed here: the driver lets one thread at a time have
            // it.
            unsafe { page.copy_from_user_slice_raw(reader, offset, len) }
        })?;
        buffer.filled_up_to(offset + len);
        Ok(())
    }

    /// Reads a value at `offset` of `buffer`.
    ///
    /// # Errors
    ///
    /// `EFAULT`: the value isn't all in the buffer.
    pub(crate) fn read<T: FromBytes>(&self, buffer: &Buffer, offset: usize) -> Result<T> {
        let mut out = MaybeUninit::<T>::uninit();
        let mut dst = out.as_mut_ptr().cast::<u8>();
        self.for_each_piece(buffer, offset, size_of::<T>(), |page, offset, len| {
            // SAFETY: The pieces together are as long as `out`. As for the page, see
            // `copy_from_user`.
            unsafe {
                page.read_raw(dst, offset, len)?;
                dst = dst.add(len);
            }
            Ok(())
        })?;
        // SAFETY: All bytes have been written, and any bytes will do for this type.
        Ok(unsafe { out.assume_init() })
    }

    /// Writes a value at `offset` of `buffer`.
    ///
    /// # Errors
    ///
    /// `EFAULT`: the value doesn't fit into the buffer there.
    pub(crate) fn write<T: ?Sized>(&self, buffer: &Buffer, offset: usize, value: &T) -> Result {
        let mut src = ptr::from_ref(value).cast::<u8>();
        let len = size_of_val(value);
        self.fill_up_to(buffer, offset)?;
        self.for_each_piece(buffer, offset, len, |page, offset, len| {
            // SAFETY: The pieces together are as long as `value`. As for the page, see
            // `copy_from_user`.
            unsafe {
                page.write_raw(src, offset, len)?;
                src = src.add(len);
            }
            Ok(())
        })?;
        buffer.filled_up_to(offset + len);
        Ok(())
    }

    /// Writes zeroes to all of `buffer`.
    pub(crate) fn fill_zero(&self, buffer: &Buffer) -> Result {
        self.zero(buffer, 0, buffer.size())
    }
}

impl Drop for BufferAllocator {
    fn drop(&mut self) {
        self.area.tear_down(true);
    }
}
