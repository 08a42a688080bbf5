// SPDX-License-Identifier: GPL-2.0

//! Address spaces: VMAs, and which page is mapped where.

use crate::{
    faults::Left,
    memcontrol::MemCgroup,
    page::Page,
    sync::aref::{
        ARef,
        AlwaysRefCounted, //
    },
    sys::{
        self,
        AtomicUsize,
        Ordering::SeqCst,
        RwLock,
        RwLockReadGuard, //
    },
};
use std::{
    collections::BTreeMap,
    ops::{
        Deref,
        Range, //
    },
    ptr,
    sync::{
        Arc,
        Mutex, //
    },
};

pub mod virt;

use self::virt::{
    Vma,
    VmaNew,
    VmaRef, //
};

sys::thread_local! {
    static MMGETS: Left = Left::all();
    static VMA_LOCKS: Left = Left::all();
}

/// Lets this thread find users in an address space for the next `n` times, and none after that: the
/// process has ended, but what it has mapped is there still.
pub fn fail_mmget_after(n: usize) {
    MMGETS.with(|left| left.set(n));
}

/// How often this thread has found users since `fail_mmget_after(usize::MAX)`.
pub fn mmgets() -> usize {
    MMGETS.with(Left::used)
}

/// Lets this thread look for VMAs by their own locks for the next `n` times, and refuses then.
pub fn refuse_vma_locks_after(n: usize) {
    VMA_LOCKS.with(|left| left.set(n));
}

/// How often this thread was not refused since `refuse_vma_locks_after(usize::MAX)`.
pub fn vma_locks() -> usize {
    VMA_LOCKS.with(Left::used)
}

/// An address space, which may have no user any more.
pub struct Mm {
    users: AtomicUsize,
    /// The mmap lock.
    vmas: RwLock<Vec<Vma>>,
    /// Whether VMAs can be locked alone. Here that is nothing but another way to lock them all.
    has_vma_locks: bool,
    /// What is mapped at which address. Not a lock of loom's: it is only held for a moment.
    pub(crate) pages: Mutex<BTreeMap<usize, Page>>,
    /// Who pays for the pages.
    pub(crate) memcg: ARef<MemCgroup>,
}

impl AlwaysRefCounted for Mm {}

/// An address space with users.
#[repr(transparent)]
pub struct MmWithUser(Mm);

impl AlwaysRefCounted for MmWithUser {
    fn inc(&self) {
        self.users.fetch_add(1, SeqCst);
    }

    fn dec(&self) {
        if self.users.fetch_sub(1, SeqCst) == 1 {
            self.unmap(0..usize::MAX);
        }
    }
}

/// An address space with users that is torn down by another thread when the last user goes.
///
/// Which thread that is doesn't matter here: nobody drops a user with a lock held.
#[repr(transparent)]
pub struct MmWithUserAsync(MmWithUser);

impl AlwaysRefCounted for MmWithUserAsync {
    fn inc(&self) {
        self.0.inc();
    }

    fn dec(&self) {
        self.0.dec();
    }
}

impl Deref for MmWithUser {
    type Target = Mm;

    fn deref(&self) -> &Mm {
        &self.0
    }
}

impl Deref for MmWithUserAsync {
    type Target = MmWithUser;

    fn deref(&self) -> &MmWithUser {
        &self.0
    }
}

impl Mm {
    pub fn mmget_not_zero(&self) -> Option<ARef<MmWithUser>> {
        if !MMGETS.with(Left::take) {
            return None;
        }
        let more = |users| (users != 0).then_some(users + 1);
        self.users.fetch_update(SeqCst, SeqCst, more).ok()?;
        let this = ptr::from_ref(self).cast::<MmWithUser>();
        // SAFETY: The layout is the same, and the user has been counted.
        Some(unsafe { ARef::from_counted(this) })
    }

    /// The page that is mapped at `address`, for `f` to look at.
    pub fn with_page<R>(&self, address: usize, f: impl FnOnce(&Page) -> R) -> Option<R> {
        self.pages.lock().unwrap().get(&address).map(f)
    }

    /// The addresses where pages are mapped.
    pub fn mapped(&self) -> Vec<usize> {
        self.pages.lock().unwrap().keys().copied().collect()
    }

    /// Who pays for the pages.
    pub fn memcg(&self) -> &MemCgroup {
        &self.memcg
    }

    fn zap(&self, addresses: Range<usize>) {
        let mut pages = self.pages.lock().unwrap();
        let mut gone = pages.split_off(&addresses.start);
        pages.append(&mut gone.split_off(&addresses.end));
    }

    /// Removes the VMAs in `addresses`, and the parts of VMAs.
    fn unmap(&self, addresses: Range<usize>) {
        let mut vmas = self.vmas.write().unwrap();
        let (gone, left): (Vec<_>, _) = vmas
            .drain(..)
            .flat_map(|vma| vma.split(&addresses))
            .partition(|vma| vma.start() >= addresses.start && vma.end() <= addresses.end);
        *vmas = left;
        for vma in gone {
            self.zap(vma.start()..vma.end());
            vma.close();
        }
    }
}

impl MmWithUser {
    pub fn new(has_vma_locks: bool) -> ARef<Self> {
        ARef::from_arc(Arc::new(Self(Mm {
            users: AtomicUsize::new(1),
            vmas: RwLock::new(Vec::new()),
            has_vma_locks,
            pages: Mutex::new(BTreeMap::new()),
            memcg: MemCgroup::new(),
        })))
    }

    pub fn into_mmput_async(this: ARef<Self>) -> ARef<MmWithUserAsync> {
        let inner: *const Self = &*this;
        this.users.fetch_add(1, SeqCst);
        // SAFETY: The layout is the same, and the user has just been counted.
        unsafe { ARef::from_counted(inner.cast::<MmWithUserAsync>()) }
    }

    /// Maps a file at `addresses`, as its mmap operation `map` does it.
    pub fn mmap<E>(
        &self,
        addresses: Range<usize>,
        pgoff: usize,
        map: impl FnOnce(&VmaNew) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut vmas = self.vmas.write().unwrap();
        let vma = Vma::new(self, addresses, pgoff);
        map(vma.as_new())?;
        vmas.push(vma);
        Ok(())
    }

    /// Calls `f` with the mmap lock held.
    pub fn while_locked<R>(&self, f: impl FnOnce() -> R) -> R {
        let _vmas = self.vmas.write().unwrap();
        f()
    }

    pub fn munmap(&self, address: usize, len: usize) {
        self.unmap(address..address + len);
    }

    pub fn lock_vma_under_rcu(&self, address: usize) -> Option<VmaReadGuard<'_>> {
        if !self.has_vma_locks || !VMA_LOCKS.with(Left::take) {
            return None;
        }
        let vmas = self.vmas.try_read().ok()?;
        let nth = vmas.iter().position(|vma| vma.contains(address))?;
        Some(VmaReadGuard(vmas, nth))
    }

    pub fn mmap_read_lock(&self) -> MmapReadGuard<'_> {
        MmapReadGuard(self.vmas.read().unwrap())
    }

    pub fn mmap_read_trylock(&self) -> Option<MmapReadGuard<'_>> {
        Some(MmapReadGuard(self.vmas.try_read().ok()?))
    }
}

/// The mmap lock, for reading.
pub struct MmapReadGuard<'a>(RwLockReadGuard<'a, Vec<Vma>>);

impl MmapReadGuard<'_> {
    pub fn vma_lookup(&self, address: usize) -> Option<&VmaRef> {
        self.0
            .iter()
            .find(|vma| vma.contains(address))
            .map(|vma| &**vma)
    }
}

/// The lock of a VMA, for reading.
pub struct VmaReadGuard<'a>(RwLockReadGuard<'a, Vec<Vma>>, usize);

impl Deref for VmaReadGuard<'_> {
    type Target = VmaRef;

    fn deref(&self) -> &VmaRef {
        &self.0[self.1]
    }
}
