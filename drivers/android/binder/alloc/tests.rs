// SPDX-License-Identifier: GPL-2.0

//! Tests of the allocator on a real mapping, with an LRU of their own.

use core::{
    mem::ManuallyDrop,
    ptr::{self, NonNull},
};

use kernel::{
    bindings,
    error::{from_err_ptr, to_result},
    ffi::{c_int, c_ulong},
    fs::File,
    list_lru::new_list_lru,
    memcontrol::MemCgroup,
    mm::virt::VmaNew,
    page::PAGE_SIZE,
    prelude::*,
    shrinker::{
        Count,
        Flag,
        Options,
        Scan,
        ShrinkControl,
        Shrinker,
        UnregisteredShrinker, //
    },
    sync::{aref::ARef, Arc},
    uaccess::UserSlice, //
};

use super::{cases, pages::Counts, reclaim, Buffer, BufferAllocator, IdleLru, Request, Sizes};
use crate::{shrinker::IdlePages, AssertSync};

/// A mapping of this many pages.
const PAGES: usize = 64;

/// An allocator that is mapped into the mm of the test's thread.
struct Fixture {
    alloc: ManuallyDrop<BufferAllocator>,
    lru: Arc<IdleLru>,
    address: usize,
    file: ARef<File>,
    /// Of the fixture that made the LRU, which refers to the id of the shrinker.
    shrinker: Option<UnregisteredShrinker>,
}

static FOPS: AssertSync<bindings::file_operations> = AssertSync(bindings::file_operations {
    mmap: Some(mmap_callback),
    ..pin_init::zeroed()
});

/// # Safety
///
/// Called by mmap of a file that a [`Fixture`] made.
unsafe extern "C" fn mmap_callback(
    file: *mut bindings::file,
    vma: *mut bindings::vm_area_struct,
) -> c_int {
    // SAFETY: The fixture gave its allocator to the file, and doesn't move or drop it while it
    // maps.
    let alloc = unsafe { &*(*file).private_data.cast::<BufferAllocator>() };
    // SAFETY: The VMA is being set up.
    let vma = unsafe { VmaNew::from_raw(vma) };
    vma.set_mixedmap();
    match alloc.map(vma) {
        Ok(()) => 0,
        Err(err) => err.to_errno(),
    }
}

/// Maps the file, at `place` if there is one.
fn mmap(file: &File, len: usize, place: Option<usize>) -> Result<usize> {
    let fixed = place.map_or(0, |_| bindings::MAP_FIXED);
    // SAFETY: The file is valid; the thread has an mm.
    let address = unsafe {
        bindings::vm_mmap(
            file.as_ptr(),
            place.unwrap_or(0),
            len,
            bindings::PROT_READ as c_ulong,
            (bindings::MAP_PRIVATE | fixed) as c_ulong,
            0,
        )
    };
    match to_result(address as c_int) {
        Err(err) if address > usize::MAX - 4096 => Err(err),
        _ => Ok(address),
    }
}

fn munmap(address: usize, pages: usize) -> Result {
    // SAFETY: The thread has an mm, and nothing in it but what these tests map.
    to_result(unsafe { bindings::vm_munmap(address, pages * PAGE_SIZE) })
}

impl Fixture {
    fn new() -> Result<Self> {
        let options = Options {
            flags: Flag::MemcgAware | Flag::NumaAware,
            ..Options::default()
        };
        let shrinker = UnregisteredShrinker::alloc(fmt!("android-binder-kunit"), options)?;
        let lru = Arc::pin_init(new_list_lru!(&shrinker), GFP_KERNEL)?;
        let mut fixture = Self::on(lru)?;
        fixture.shrinker = Some(shrinker);
        Ok(fixture)
    }

    /// A fixture whose idle pages go on an LRU that exists already.
    fn on(lru: Arc<IdleLru>) -> Result<Self> {
        Self::at(lru, None)
    }

    /// The same, mapped at `place`.
    fn at(lru: Arc<IdleLru>, place: Option<usize>) -> Result<Self> {
        // SAFETY: KUnit calls tests in a kernel thread of their own, which may get an mm.
        to_result(unsafe { bindings::kunit_attach_mm() })?;
        let alloc = BufferAllocator::new(lru.clone())?;

        // SAFETY: The operations are static. They get the allocator, of which `mmap` below takes
        // care.
        let file = from_err_ptr(unsafe {
            bindings::anon_inode_getfile(
                c"binder-alloc-kunit".as_char_ptr(),
                &FOPS.0,
                ptr::from_ref(&alloc).cast_mut().cast(),
                bindings::O_RDWR as c_int,
            )
        })?;
        // SAFETY: It is a new file, of which we have the only reference.
        let file: ARef<File> = unsafe { ARef::from_raw(NonNull::new(file.cast()).ok_or(EINVAL)?) };
        let address = mmap(&file, PAGES * PAGE_SIZE, place)?;
        Ok(Self {
            alloc: ManuallyDrop::new(alloc),
            lru,
            address,
            file,
            shrinker: None,
        })
    }

    /// Maps the file once more.
    fn map_again(&self) -> Result<usize> {
        // The file points to where the allocator was before it was moved into the fixture.
        let alloc = ptr::from_ref(&*self.alloc).cast_mut().cast();
        // SAFETY: The file is ours, and the allocator stays where it is from now on.
        unsafe { (*self.file.as_ptr()).private_data = alloc };
        mmap(&self.file, PAGE_SIZE, None)
    }

    /// Reserves a buffer that is yet to be published.
    fn reserve_only(&self, size: usize) -> Result<Buffer> {
        let request = Request {
            sizes: Sizes {
                data: size,
                ..Sizes::default()
            },
            debug_id: 1,
            is_oneway: false,
            pid: 1,
        };
        Ok(self.alloc.reserve(request)?.0)
    }

    fn reserve(&self, size: usize) -> Result<Buffer> {
        let mut buffer = self.reserve_only(size)?;
        match self.alloc.publish(&mut buffer) {
            Ok(()) => Ok(buffer),
            Err(err) => {
                self.alloc.release(buffer);
                Err(err)
            }
        }
    }

    fn counts(&self) -> Counts {
        let state = self.alloc.area.state.lock();
        let mapped = state.mapped.as_ref();
        mapped.map_or(Counts::default(), |mapped| mapped.pages.counts())
    }

    /// The first byte of page `index`, as the process sees it.
    fn peek(&self, index: usize) -> Result<u8> {
        let address = UserPtr::from_addr(self.address + index * PAGE_SIZE);
        UserSlice::new(address, 1).reader().read()
    }

    /// The NUMA nodes that have something on the LRU, and the first.
    fn nodes(&self) -> impl Iterator<Item = i32> + '_ {
        (0..bindings::MAX_NUMNODES as i32).filter(|&nid| nid == 0 || self.lru.count_node(nid) != 0)
    }

    /// How many pages the shrinker counts on all nodes; that it says so for each node when there
    /// are none is checked here.
    fn count(&self, memcg: Option<&MemCgroup>) -> usize {
        self.nodes()
            .map(|nid| {
                with_control(0, nid, memcg, |sc| {
                    let items = self.lru.count(sc);
                    let count = IdlePages::count_callback(self.lru.as_arc_borrow(), sc);
                    if items == 0 {
                        kernel::warn_on!(count != Count::EMPTY);
                    } else {
                        kernel::warn_on!(Some(count) != Count::new(items));
                    }
                    items
                })
            })
            .sum()
    }

    /// Scans the LRU of each node. Says how many pages were freed, or that all scans ended with
    /// `STOP`; and how many they reported as scanned.
    fn scan(&self, nr_to_scan: usize, memcg: Option<&MemCgroup>) -> (Option<usize>, usize) {
        let mut freed = None;
        let mut scanned = 0;
        for nid in self.nodes() {
            with_control(nr_to_scan, nid, memcg, |sc| {
                let scan = reclaim::scan(&self.lru, sc);
                let here = (0..=PAGES).find(|&n| scan == Scan::freed(n));
                kernel::warn_on!(here.is_none() != (scan == Scan::STOP));
                freed = here.map_or(freed, |n| Some(freed.unwrap_or(0) + n));
                scanned += sc.nr_scanned();
            });
        }
        (freed, scanned)
    }
}

impl cases::Subject for Fixture {
    type Buffer = Buffer;
    type Error = Error;

    fn reserve(&mut self, size: usize) -> Result<(Buffer, usize)> {
        let buffer = Fixture::reserve(self, size)?;
        let offset = buffer.address() - self.address;
        Ok((buffer, offset))
    }

    fn release(&mut self, buffer: Buffer) {
        self.alloc.release(buffer);
    }

    fn reclaim(&mut self) {
        self.scan(PAGES, None);
    }

    fn pages(&self) -> (cases::Pages, cases::Pages) {
        self.alloc.page_sets()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // As in a process, the mapping goes first.
        let _ = munmap(self.address, PAGES);
        // SAFETY: It isn't used any more.
        unsafe { ManuallyDrop::drop(&mut self.alloc) };
        // Whatever the test left behind, nothing may stay on the LRU.
        kernel::warn_on!(self.shrinker.is_some() && self.count(None) != 0);
    }
}

fn with_control<R>(
    nr_to_scan: usize,
    nid: i32,
    memcg: Option<&MemCgroup>,
    f: impl FnOnce(&mut ShrinkControl) -> R,
) -> R {
    let mut sc = bindings::shrink_control {
        gfp_mask: bindings::GFP_KERNEL,
        nid,
        nr_to_scan,
        nr_scanned: nr_to_scan,
        memcg: memcg.map_or(ptr::null_mut(), |memcg| memcg.as_raw()),
    };
    // SAFETY: It is as the core would make it, and is used for nothing else meanwhile.
    f(unsafe { ShrinkControl::from_raw_mut(&mut sc) })
}

fn counts(in_use: usize, idle: usize) -> Counts {
    Counts {
        in_use,
        idle,
        absent: PAGES - in_use - idle,
    }
}

#[kunit_tests(rust_binder_alloc)]
mod suite {
    use super::*;

    #[test]
    fn a_released_buffer_leaves_idle_pages() -> Result {
        let fixture = Fixture::new()?;
        assert!(fixture.count(None) == 0);

        let buffer = fixture.reserve(3 * PAGE_SIZE)?;
        assert!(fixture.counts() == counts(3, 0));
        assert!(fixture.count(None) == 0);

        fixture.alloc.release(buffer);
        assert!(fixture.counts() == counts(0, 3));
        assert!(fixture.count(None) == 3);
        Ok(())
    }

    #[test]
    fn a_page_back_in_use_stays_linked_until_a_scan_meets_it() -> Result {
        let fixture = Fixture::new()?;
        let buffer = fixture.reserve(2 * PAGE_SIZE)?;
        fixture.alloc.release(buffer);
        let buffer = fixture.reserve(2 * PAGE_SIZE)?;
        fixture.alloc.write(&buffer, PAGE_SIZE, &7u8)?;
        assert!(fixture.counts() == counts(2, 0));
        assert!(fixture.count(None) == 2);

        let (freed, scanned) = fixture.scan(100, None);
        assert!(freed == Some(0));
        assert!(scanned == 2);
        assert!(fixture.count(None) == 0);
        assert!(fixture.counts() == counts(2, 0));
        assert!(fixture.alloc.read::<u8>(&buffer, PAGE_SIZE)? == 7);

        fixture.alloc.release(buffer);
        assert!(fixture.count(None) == 2);
        Ok(())
    }

    #[test]
    fn a_scan_frees_and_unmaps_idle_pages_only() -> Result {
        let fixture = Fixture::new()?;
        let first = fixture.reserve(PAGE_SIZE)?;
        let second = fixture.reserve(2 * PAGE_SIZE)?;
        fixture.alloc.write(&first, 0, &1u8)?;
        fixture.alloc.write(&second, 0, &2u8)?;
        assert!(fixture.peek(0)? == 1);
        assert!(fixture.peek(1)? == 2);

        fixture.alloc.release(second);
        let (freed, scanned) = fixture.scan(100, None);
        assert!(freed == Some(2));
        assert!(scanned == 2);
        assert!(fixture.counts() == counts(1, 0));
        assert!(fixture.peek(0)? == 1);
        assert!(fixture.peek(1).is_err());

        // A page that comes again has nothing of the old contents.
        let second = fixture.reserve(PAGE_SIZE)?;
        assert!(fixture.peek(1)? == 0);
        fixture.alloc.release(second);
        fixture.alloc.release(first);
        Ok(())
    }

    /// All ways in which five buffers can share pages, on real pages in a real mapping.
    #[test]
    fn shared_pages_are_in_use_until_the_last_buffer_goes() -> Result {
        let mut fixture = Fixture::new()?;
        // A minute's work where the kernel checks nothing else. The step is prime, so that all
        // buffers, ends and orders still have their turn.
        let slow = cfg!(any(CONFIG_PROVE_LOCKING, CONFIG_KASAN, CONFIG_KCSAN));
        for n in (0..cases::CASES).step_by(if slow { 997 } else { 1 }) {
            if let Err(failure) = cases::Case::new(n, PAGES * PAGE_SIZE).run(&mut fixture) {
                pr_err!("case {n}: {failure:?}\n");
                return Err(EINVAL);
            }
        }
        Ok(())
    }

    #[test]
    fn a_scan_takes_idle_neighbours_along() -> Result {
        let fixture = Fixture::new()?;
        let buffer = fixture.reserve(16 * PAGE_SIZE)?;
        fixture.alloc.release(buffer);

        let (freed, scanned) = fixture.scan(1, None);
        assert!(freed == Some(16));
        assert!(scanned == 16);
        assert!(fixture.count(None) == 0);
        Ok(())
    }

    #[test]
    fn a_scan_of_nothing_stops() -> Result {
        let fixture = Fixture::new()?;
        let (freed, scanned) = fixture.scan(10, None);
        assert!(freed.is_none());
        assert!(scanned == 0);
        Ok(())
    }

    #[test]
    fn the_root_memcg_has_the_pages_that_nobody_is_charged_for() -> Result {
        let fixture = Fixture::new()?;
        let buffer = fixture.reserve(2 * PAGE_SIZE)?;
        fixture.alloc.release(buffer);

        let task = kernel::current!();
        let mm = task.mm().ok_or(ESRCH)?;
        // Without memory cgroups there is none to ask about, and one list for all.
        let root = MemCgroup::from_mm(mm);
        assert!(fixture.count(root.as_deref()) == 2);
        assert!(fixture.scan(2, root.as_deref()) == (Some(2), 2));
        Ok(())
    }

    #[test]
    fn a_page_below_two_buffers_stays_until_both_are_released() -> Result {
        let fixture = Fixture::new()?;
        let first = fixture.reserve(PAGE_SIZE / 2)?;
        let second = fixture.reserve(PAGE_SIZE)?;
        assert!(fixture.counts() == counts(2, 0));
        fixture.alloc.release(first);
        assert!(fixture.counts() == counts(2, 0));
        fixture.alloc.release(second);
        assert!(fixture.counts() == counts(0, 2));
        Ok(())
    }

    #[test]
    fn a_large_buffer_comes_in_several_batches() -> Result {
        let fixture = Fixture::new()?;
        let buffer = fixture.reserve(PAGES * PAGE_SIZE)?;
        assert!(fixture.counts() == counts(PAGES, 0));
        for page in 0..PAGES {
            fixture
                .alloc
                .write(&buffer, page * PAGE_SIZE, &(page as u8))?;
        }
        for page in 0..PAGES {
            assert!(fixture.peek(page)? == page as u8);
        }
        assert!(fixture.reserve(8).err() == Some(ENOSPC));
        fixture.alloc.release(buffer);

        let (freed, scanned) = fixture.scan(PAGES, None);
        assert!(freed == Some(PAGES));
        assert!(scanned == PAGES);
        // The memory for management has gone along with the pages.
        assert!(fixture.alloc.is_bare());
        Ok(())
    }

    #[test]
    fn a_value_may_lie_across_pages() -> Result {
        let fixture = Fixture::new()?;
        let buffer = fixture.reserve(2 * PAGE_SIZE)?;
        let value = 0x0123_4567_89ab_cdefu64;
        fixture.alloc.write(&buffer, PAGE_SIZE - 4, &value)?;
        assert!(fixture.alloc.read::<u64>(&buffer, PAGE_SIZE - 4)? == value);
        assert!(fixture.alloc.write(&buffer, 2 * PAGE_SIZE - 4, &value) == Err(EFAULT));
        assert!(fixture.alloc.write(&buffer, usize::MAX, &value) == Err(EFAULT));
        fixture.alloc.fill_zero(&buffer)?;
        assert!(fixture.alloc.read::<u64>(&buffer, PAGE_SIZE - 4)? == 0);
        fixture.alloc.release(buffer);
        Ok(())
    }

    #[test]
    fn an_area_is_mapped_only_once() -> Result {
        let fixture = Fixture::new()?;
        assert!(fixture.map_again().err() == Some(EBUSY));
        Ok(())
    }

    /// Its address doesn't say whether there is an area: 0 is one as well.
    #[test]
    fn an_area_at_address_0_is_mapped_only_once() -> Result {
        let elsewhere = Fixture::new()?;
        let fixture = Fixture::at(elsewhere.lru.clone(), Some(0))?;
        assert!(fixture.address == 0);
        assert!(fixture.map_again().err() == Some(EBUSY));
        Ok(())
    }

    #[test]
    fn munmap_ends_it_and_idle_pages_can_still_be_freed() -> Result {
        let fixture = Fixture::new()?;
        let buffer = fixture.reserve(4 * PAGE_SIZE)?;
        fixture.alloc.release(buffer);
        munmap(fixture.address, PAGES)?;

        assert!(fixture.reserve(8).err() == Some(ESRCH));
        let (freed, _) = fixture.scan(100, None);
        assert!(freed == Some(4));
        Ok(())
    }

    /// The VMA is gone by the time that a page is there (d1d8875c8c13).
    #[test]
    fn a_hole_in_the_mapping_fails_the_buffer_and_nothing_else() -> Result {
        let fixture = Fixture::new()?;
        let first = fixture.reserve(PAGE_SIZE)?;
        munmap(fixture.address + 3 * PAGE_SIZE, 1)?;
        // A part of the mapping is still there. Pretend that nobody told us of the hole.
        fixture.alloc.area.state.lock().closed = false;

        assert!(fixture.reserve(40 * PAGE_SIZE).err() == Some(ESRCH));
        assert!(fixture.counts() == counts(1, 0));
        assert!(fixture.peek(1).is_err());
        let second = fixture.reserve(2 * PAGE_SIZE)?;
        assert!(fixture.counts() == counts(3, 0));

        fixture.alloc.release(first);
        fixture.alloc.release(second);
        let (freed, _) = fixture.scan(100, None);
        assert!(freed == Some(3));
        Ok(())
    }

    /// Locks the VMA at `address` for writing, where VMAs have locks of their own.
    ///
    /// # Safety
    ///
    /// `mm` must be locked for writing.
    #[cfg(CONFIG_PER_VMA_LOCK)]
    unsafe fn lock_vma(mm: *mut bindings::mm_struct, address: usize) {
        // SAFETY: The mm is locked.
        let vma = unsafe { bindings::find_vma(mm, address as c_ulong) };
        if !vma.is_null() {
            // SAFETY: The mm is locked for writing, so that the VMA stays.
            unsafe { bindings::__vma_start_write(vma, bindings::TASK_UNINTERRUPTIBLE as c_int) };
        }
    }

    /// There is nothing to lock.
    ///
    /// # Safety
    ///
    /// None.
    #[cfg(not(CONFIG_PER_VMA_LOCK))]
    unsafe fn lock_vma(_: *mut bindings::mm_struct, _: usize) {}

    /// Does something while the address space is locked for writing, as by mmap() in another
    /// thread, and if `and_vma`, the VMA at `address`, too.
    ///
    /// Without `mm_lock_seq`, which nobody moves on here, the VMA looks locked also afterwards.
    /// Where locks of VMAs are concerned, this may happen at any time: their users fall back.
    fn with_locked_mm<R>(address: usize, and_vma: bool, body: impl FnOnce() -> R) -> Result<R> {
        let task = kernel::current!();
        let mm = task.mm().ok_or(ESRCH)?.as_raw();
        // SAFETY: The thread has the mm, and doesn't have its lock.
        let lock = unsafe { &raw mut (*mm).__bindgen_anon_1.mmap_lock };
        // SAFETY: As above.
        unsafe { bindings::down_write(lock) };
        if and_vma {
            // SAFETY: The mm is locked.
            unsafe { lock_vma(mm, address) };
        }
        let result = body();
        // SAFETY: It has been locked above.
        unsafe { bindings::up_write(lock) };
        Ok(result)
    }

    /// Reclaim doesn't wait for the address space, in which its own thread may be at work.
    #[test]
    fn a_locked_address_space_keeps_its_pages() -> Result {
        let fixture = Fixture::new()?;
        let buffer = fixture.reserve(3 * PAGE_SIZE)?;
        fixture.alloc.release(buffer);

        let (freed, scanned) = with_locked_mm(fixture.address, true, || fixture.scan(3, None))?;
        // A node's scan meets those on other nodes, too.
        assert!(freed.is_none() && scanned >= 3);
        assert!(fixture.counts() == counts(0, 3));
        assert!(fixture.count(None) == 3);

        assert!(fixture.scan(3, None).0 == Some(3));
        assert!(fixture.counts() == counts(0, 0));
        assert!(fixture.count(None) == 0);
        Ok(())
    }

    /// Nor does it wait for more than the VMA, where VMAs have locks of their own.
    #[test]
    #[cfg(CONFIG_PER_VMA_LOCK)]
    fn a_vma_that_is_not_locked_is_enough() -> Result {
        let fixture = Fixture::new()?;
        let buffer = fixture.reserve(3 * PAGE_SIZE)?;
        fixture.alloc.release(buffer);

        let (freed, _) = with_locked_mm(fixture.address, false, || fixture.scan(3, None))?;
        assert!(freed == Some(3));
        assert!(fixture.counts() == counts(0, 0));
        Ok(())
    }

    /// Where the lock of the VMA isn't to be had, that of the address space will do.
    #[test]
    fn a_locked_vma_is_reached_by_its_address_space() -> Result {
        let fixture = Fixture::new()?;
        with_locked_mm(fixture.address, true, || ())?;
        let buffer = fixture.reserve(3 * PAGE_SIZE + 8)?;
        fixture.alloc.write(&buffer, 0, &7u8)?;
        assert!(fixture.counts() == counts(4, 0));
        assert!(fixture.peek(0)? == 7);
        fixture.alloc.release(buffer);

        assert!(fixture.scan(4, None).0 == Some(4));
        assert!(fixture.counts() == counts(0, 0));
        assert!(fixture.peek(0).is_err());
        Ok(())
    }

    /// A buffer is reserved just when another area comes to lie in the place of this one
    /// (8ef2c15aeae0, CVE-2026-43434).
    #[test]
    fn another_area_in_its_place_gets_no_page() -> Result {
        let fixture = Fixture::new()?;
        munmap(fixture.address, PAGES)?;
        let other = Fixture::at(fixture.lru.clone(), Some(fixture.address))?;
        // As it was when the buffer was reserved.
        fixture.alloc.area.state.lock().closed = false;

        assert!(fixture.reserve(3 * PAGE_SIZE).err() == Some(ESRCH));
        assert!(fixture.counts() == counts(0, 0));
        assert!((0..3).all(|index| other.peek(index).is_err()));
        Ok(())
    }

    /// Idle pages are reclaimed, though the process has mapped another area in the place of theirs,
    /// and only they (3f489c2067c5).
    #[test]
    fn another_area_in_its_place_keeps_its_pages() -> Result {
        let fixture = Fixture::new()?;
        let buffer = fixture.reserve(3 * PAGE_SIZE)?;
        fixture.alloc.release(buffer);
        munmap(fixture.address, PAGES)?;
        let other = Fixture::at(fixture.lru.clone(), Some(fixture.address))?;
        let buffer = other.reserve(3 * PAGE_SIZE)?;
        other.alloc.write(&buffer, 0, &7u8)?;

        assert!(fixture.scan(3, None).0 == Some(3));
        assert!(fixture.counts() == counts(0, 0));
        assert!(other.peek(0)? == 7);
        assert!((0..3).all(|index| other.peek(index).is_ok()));
        other.alloc.release(buffer);
        Ok(())
    }

    #[test]
    fn what_is_not_written_is_cleared_before_the_process_sees_it() -> Result {
        let fixture = Fixture::new()?;
        let mut buffer = fixture.reserve_only(4 * PAGE_SIZE + 8)?;
        // Only the page that it shares is there to be seen.
        assert!(fixture.counts() == counts(5, 0));
        assert!(fixture.peek(0).is_err());
        assert!(fixture.peek(3).is_err());
        assert!(fixture.peek(4)? == 0);
        // What was in the pages before.
        for index in 0..4 {
            let at = buffer.address() - fixture.address + index * PAGE_SIZE;
            let state = fixture.alloc.area.state.lock();
            let mapped = state.mapped.as_ref().ok_or(EINVAL)?;
            let pages = mapped
                .pages
                .in_use::<1>(at / PAGE_SIZE..at / PAGE_SIZE + 1, &buffer)?;
            let page = pages[0].as_ref().ok_or(EINVAL)?;
            // SAFETY: Nobody else knows of the page.
            unsafe { page.write_raw([0x5a_u8; PAGE_SIZE].as_ptr(), 0, PAGE_SIZE)? };
        }

        // In this order, the first value makes the bytes before it be cleared.
        fixture.alloc.write(&buffer, PAGE_SIZE + 8, &0x11_u64)?;
        fixture.alloc.write(&buffer, 0, &0x22_u64)?;
        fixture.alloc.write(&buffer, 2 * PAGE_SIZE, &0x33_u64)?;
        fixture.alloc.publish(&mut buffer)?;
        let address = UserPtr::from_addr(fixture.address);
        let mut reader = UserSlice::new(address, 4 * PAGE_SIZE).reader();
        for at in (0..4 * PAGE_SIZE).step_by(8) {
            let expected = match at {
                0 => 0x22,
                _ if at == PAGE_SIZE + 8 => 0x11,
                _ if at == 2 * PAGE_SIZE => 0x33,
                _ => 0,
            };
            assert!(reader.read::<u64>()? == expected);
        }
        fixture.alloc.release(buffer);
        assert!(fixture.counts() == counts(0, 5));
        Ok(())
    }

    #[test]
    fn a_buffer_that_is_not_published_leaves_only_pages_that_are_mapped() -> Result {
        let fixture = Fixture::new()?;
        let size = 40 * PAGE_SIZE + 8;
        let buffer = fixture.reserve_only(size)?;
        assert!(fixture.counts() == counts(41, 0));
        assert!(fixture.count(None) == 0);
        fixture.alloc.release(buffer);
        assert!(fixture.counts() == counts(0, 1));
        assert!(fixture.count(None) == 1);

        // The second batch of pages can't be mapped.
        munmap(fixture.address + 35 * PAGE_SIZE, 1)?;
        fixture.alloc.area.state.lock().closed = false;
        let mut buffer = fixture.reserve_only(size)?;
        assert!(fixture.alloc.publish(&mut buffer) == Err(ESRCH));
        assert!(fixture.peek(0).is_err());
        assert!(fixture.counts() == counts(41, 0));
        fixture.alloc.release(buffer);
        assert!(fixture.counts() == counts(0, 1));
        Ok(())
    }

    #[test]
    fn the_size_is_rounded_up_and_may_not_overflow() -> Result {
        let fixture = Fixture::new()?;
        let buffer = fixture.reserve(0)?;
        assert!(buffer.size() == size_of::<usize>());
        let next = fixture.reserve(9)?;
        assert!(next.size() == 2 * size_of::<usize>());
        assert!(next.address() == buffer.address() + buffer.size());
        assert!(fixture.reserve(usize::MAX).err() == Some(EINVAL));
        assert!(fixture.reserve(usize::MAX - 7).err() == Some(ENOSPC));
        fixture.alloc.release(buffer);
        fixture.alloc.release(next);
        Ok(())
    }

    #[test]
    fn a_buffer_is_taken_back_once_and_only_at_its_start() -> Result {
        let fixture = Fixture::new()?;
        let buffer = fixture.reserve(64)?;
        let address = buffer.address();
        assert!(fixture.alloc.existing(address).is_err());
        fixture.alloc.commit(buffer);
        assert!(fixture.alloc.existing(address + 8).is_err());
        assert!(fixture.alloc.existing(address - 8).is_err());
        assert!(fixture.alloc.existing(0).is_err());

        let buffer = fixture.alloc.existing(address)?;
        assert!(fixture.alloc.existing(address).is_err());
        fixture.alloc.release(buffer);
        assert!(fixture.alloc.existing(address).is_err());
        Ok(())
    }

    #[test]
    fn a_buffer_is_of_no_use_with_another_area() -> Result {
        let first = Fixture::new()?;
        let second = Fixture::on(first.lru.clone())?;
        let mine = first.reserve(PAGE_SIZE)?;
        let other = second.reserve(PAGE_SIZE)?;
        assert!(first.alloc.write(&other, 0, &1u8) == Err(EFAULT));
        assert!(second.alloc.read::<u8>(&mine, 0) == Err(EFAULT));
        first.alloc.release(mine);
        second.alloc.release(other);
        Ok(())
    }

    #[test]
    fn teardown_takes_back_what_the_process_has() -> Result {
        let fixture = Fixture::new()?;
        for _ in 0..3 {
            let buffer = fixture.reserve(PAGE_SIZE)?;
            fixture.alloc.commit(buffer);
        }
        fixture.alloc.close();
        let mut taken = 0;
        while let Some(buffer) = fixture.alloc.take_next() {
            fixture.alloc.release(buffer);
            taken += 1;
        }
        assert!(taken == 3);
        munmap(fixture.address, PAGES)?;
        fixture.alloc.free_idle_pages();
        assert!(fixture.counts() == counts(0, 0));
        assert!(fixture.count(None) == 0);
        Ok(())
    }
}
