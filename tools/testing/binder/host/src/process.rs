// SPDX-License-Identifier: GPL-2.0

//! Processes with an area, as tests see them.

use kernel::{
    list_lru::ListLru,
    mm::{
        Mm,
        MmWithUser, //
    },
    page::{
        PAGE_SIZE,
        STALE, //
    },
    prelude::*,
    seq_file::{
        seq_print,
        SeqFile, //
    },
    shrinker::ShrinkControl,
    sync::{
        aref::ARef,
        Arc, //
    },
    task, //
};
use std::{
    ops::Range,
    sync::Mutex, //
};

use crate::{
    alloc::{
        self,
        cases,
        reclaim,
        BufferAllocator,
        IdleLru,
        Request,
        Sizes, //
    },
    allocation::AllocationInfo, //
};

/// A set of pages, by bits.
pub type Pages = cases::Pages;

pub mod model;

/// Where the area lies.
const START: usize = 0x7f00_0000;

/// Where the part of the file that is mapped begins.
const PGOFF: usize = 3;

/// The LRU of a few processes.
#[derive(Clone)]
pub struct Lru(Arc<IdleLru>);

impl Lru {
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self(Arc::pin_init(ListLru::new(), GFP_KERNEL).unwrap())
    }

    /// How many slots are linked.
    pub fn count(&self) -> usize {
        self.0.count(&ShrinkControl::new(0))
    }

    /// Scans `n` slots. Says how many pages were freed, and how many looked at.
    pub fn scan(&self, n: usize) -> (Option<usize>, usize) {
        let mut sc = ShrinkControl::new(n);
        let scan = reclaim::scan(&self.0, &mut sc);
        (scan.0, sc.nr_scanned())
    }
}

/// A buffer that its process has not yet, or not any more.
pub struct Buffer(alloc::Buffer);

impl Buffer {
    /// The bytes of the area that it lies on.
    pub fn bytes(&self) -> Range<usize> {
        let offset = self.0.address() - START;
        offset..offset + self.0.size()
    }

    /// The pages that it covers all of.
    fn covered(&self) -> Pages {
        let bytes = self.bytes();
        let pages = bytes.start.div_ceil(PAGE_SIZE)..bytes.end / PAGE_SIZE;
        pages.fold(0, |all, page| all | 1 << page)
    }

    /// Its first byte on each page.
    fn starts(&self) -> impl Iterator<Item = usize> {
        let bytes = self.bytes();
        let pages = bytes.start / PAGE_SIZE..bytes.end.div_ceil(PAGE_SIZE);
        pages.map(move |page| bytes.start.max(page * PAGE_SIZE))
    }
}

/// A process that has an area.
pub struct Process {
    alloc: BufferAllocator,
    mm: ARef<Mm>,
    /// Not a lock of loom's: it is only held for a moment.
    user: Mutex<Option<ARef<MmWithUser>>>,
    size: usize,
    lru: Lru,
}

impl Process {
    /// A process with an area of `pages` pages.
    pub fn new(lru: &Lru, pages: usize, has_vma_locks: bool) -> Self {
        let user = MmWithUser::new(has_vma_locks);
        let alloc = task::with_mm(&user, || BufferAllocator::new(lru.0.clone())).unwrap();
        let size = pages * PAGE_SIZE;
        user.mmap(START..START + size, PGOFF, |vma| alloc.map(vma))
            .unwrap();
        Self {
            alloc,
            mm: ARef::from(&**user),
            user: Mutex::new(Some(user)),
            size,
            lru: lru.clone(),
        }
    }

    /// Reserves a buffer of `size` bytes, and publishes it.
    pub fn reserve(&self, size: usize) -> Result<Buffer> {
        let (mut buffer, _) = self.reserve_for(size, None)?;
        match self.publish(&mut buffer) {
            Ok(()) => Ok(buffer),
            Err(err) => {
                self.release(buffer);
                Err(err)
            }
        }
    }

    /// Reserves a buffer of `size` bytes, oneway if there is a `pid`.
    pub fn reserve_for(&self, size: usize, pid: Option<i32>) -> Result<(Buffer, bool)> {
        let request = Request {
            sizes: Sizes {
                data: size,
                ..Sizes::default()
            },
            debug_id: 1,
            is_oneway: pid.is_some(),
            pid: pid.unwrap_or(1),
        };
        let (buffer, suspect) = self.alloc.reserve(request)?;
        Ok((Buffer(buffer), suspect))
    }

    pub fn publish(&self, buffer: &mut Buffer) -> Result {
        self.alloc.publish(&mut buffer.0)
    }

    pub fn release(&self, buffer: Buffer) {
        self.alloc.release(buffer.0);
    }

    pub fn commit(&self, mut buffer: Buffer) {
        *buffer.0.data_mut() = AllocationInfo::new();
        self.alloc.commit(buffer.0);
    }

    /// Takes back the buffer that begins at byte `offset` of the area.
    pub fn existing(&self, offset: usize) -> Result<Buffer> {
        let buffer = self.alloc.existing(START.wrapping_add(offset))?;
        assert!(buffer.data().is_there());
        Ok(Buffer(buffer))
    }

    /// Writes `value` to each page of `buffer`, and makes sure that the process sees it.
    pub fn touch(&self, buffer: &Buffer, value: u8) {
        for at in buffer.starts() {
            assert!(self.peek(at).is_some(), "byte {at:#x} isn't mapped");
        }
        self.touch_unmapped(buffer, value);
        self.check(buffer, value);
    }

    /// Writes `value` to each page of `buffer`, which needn't be mapped.
    pub fn touch_unmapped(&self, buffer: &Buffer, value: u8) {
        for at in buffer.starts() {
            let offset = at - buffer.bytes().start;
            self.alloc.write(&buffer.0, offset, &value).unwrap();
            assert_eq!(self.alloc.read::<u8>(&buffer.0, offset), Ok(value));
        }
    }

    /// Makes sure that the process sees what [`touch`](Self::touch) wrote.
    pub fn check(&self, buffer: &Buffer, value: u8) {
        for at in buffer.starts() {
            assert_eq!(
                self.peek(at),
                Some(value),
                "byte {at:#x} is of another page"
            );
        }
    }

    /// What the process reads at byte `at` of the area, if anything is mapped there.
    fn peek(&self, at: usize) -> Option<u8> {
        let page = at / PAGE_SIZE * PAGE_SIZE;
        self.mm.with_page(START + page, |page| {
            let mut byte = 0;
            // SAFETY: It is one byte, and nobody writes to it meanwhile.
            unsafe { page.read_raw(&mut byte, at % PAGE_SIZE, 1) }.unwrap();
            byte
        })
    }

    /// Makes sure that the process sees nothing of what was in the pages of `buffer` before they
    /// were allocated.
    pub fn check_for_stale(&self, buffer: &Buffer) {
        for at in buffer.starts() {
            let page = at / PAGE_SIZE * PAGE_SIZE;
            let mut bytes = [0; PAGE_SIZE];
            self.mm.with_page(START + page, |page| {
                // SAFETY: Nobody writes to it meanwhile.
                unsafe { page.read_raw(bytes.as_mut_ptr(), 0, PAGE_SIZE) }.unwrap();
            });
            assert!(!bytes.contains(&STALE), "page {page:#x} has stale bytes");
        }
    }

    /// The pages that are mapped.
    pub fn mapped(&self) -> Pages {
        let pages = self.mm.mapped().into_iter();
        pages.fold(0, |all, at| all | 1 << ((at - START) / PAGE_SIZE))
    }

    /// The pages that are in use, and those that are idle.
    pub fn pages(&self) -> (Pages, Pages) {
        self.alloc.page_sets()
    }

    /// Whether nothing is allocated for management.
    pub fn is_bare(&self) -> bool {
        self.alloc.is_bare()
    }

    /// How many pages the process has.
    pub fn charged(&self) -> usize {
        self.mm.memcg().charged()
    }

    /// What the debug files say.
    pub fn debug(&self) -> String {
        let file = SeqFile::default();
        self.alloc.debug_print(|| &file, &[]);
        let usage = self.alloc.usage();
        seq_print!(file, "{} buffers, {:?}", usage.buffers, usage.pages);
        file.0.into_inner()
    }

    /// Unmaps pages, or fewer than that, if they aren't mapped: then it does no more than to lock
    /// the address space.
    pub fn munmap(&self, pages: Range<usize>) {
        let user = self.user.lock().unwrap().clone();
        if let Some(user) = user {
            user.munmap(START + pages.start * PAGE_SIZE, pages.len() * PAGE_SIZE);
        }
    }

    /// Calls `f` while another thread has the address space locked.
    pub fn while_locked<R>(&self, f: impl FnOnce() -> R) -> R {
        let user = self.user.lock().unwrap().clone();
        user.expect("the process has ended").while_locked(f)
    }

    /// Ends the process: when nobody else uses its address space, what is mapped there goes.
    pub fn exit(&self) {
        let user = self.user.lock().unwrap().take();
        drop(user);
    }

    /// As the driver does when the process has closed the file: takes back the buffers that the
    /// process has, and frees idle pages.
    pub fn flush(&self) {
        self.munmap(0..self.size / PAGE_SIZE);
        self.alloc.close();
        while let Some(buffer) = self.alloc.take_next() {
            self.alloc.release(buffer);
        }
        self.alloc.free_idle_pages();
    }

    /// Ends everything. All buffers must have been released.
    ///
    /// Gives the address space, for [`Remains::check`] to look at when nobody uses it any more.
    pub fn finish(self) -> Remains {
        self.flush();
        self.exit();
        drop(self.alloc);
        Remains(self.mm)
    }
}

/// What is left of a process.
#[must_use]
pub struct Remains(ARef<Mm>);

impl Remains {
    /// Makes sure that no page was lost, and nothing else that refers to the process.
    pub fn check(self) {
        assert_eq!(self.0.memcg().charged(), 0, "pages were lost");
        assert!(self.0.mapped().is_empty(), "pages are still mapped");
        assert_eq!(self.0.count(), 1, "references to the mm were lost");
    }
}

impl cases::Subject for Process {
    type Buffer = Buffer;
    type Error = Error;

    fn reserve(&mut self, size: usize) -> Result<(Buffer, usize)> {
        let buffer = Process::reserve(self, size)?;
        let start = buffer.bytes().start;
        Ok((buffer, start))
    }

    fn release(&mut self, buffer: Buffer) {
        Process::release(self, buffer);
    }

    fn reclaim(&mut self) {
        while self.lru.scan(usize::MAX).0.is_some() {}
    }

    fn pages(&self) -> (Pages, Pages) {
        self.alloc.page_sets()
    }
}

/// Runs a range of the exhaustive cases, see the driver's `cases.rs`, in an area of `pages` pages.
/// What is mapped is looked at, too.
pub fn run_cases(cases: Range<usize>, pages: usize) {
    let lru = Lru::new();
    let mut process = Process::new(&lru, pages, true);
    for n in cases {
        let case = cases::Case::new(n, pages * PAGE_SIZE);
        if let Err(failure) = case.run(&mut process) {
            panic!("case {n}: {failure:x?} in {case:x?}");
        }
        assert_eq!(
            (process.mapped(), process.charged(), lru.count()),
            (0, 0, 0)
        );
    }
    process.finish().check();
}

/// How many cases there are.
pub const CASES: usize = cases::CASES;
