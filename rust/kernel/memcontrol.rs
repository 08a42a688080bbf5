// SPDX-License-Identifier: GPL-2.0

//! Memory cgroups.
//!
//! A memory cgroup ("memcg") is who pays for memory. This module lets a driver find out who that is
//! ([`MemCgroup::from_mm`], [`MemCgroup::of_page`]) and charge allocations to somebody else than
//! the current task ([`MemCgroup::with_active`]).
//!
//! Everything here compiles and does nothing without `CONFIG_MEMCG`, and does nothing when memory
//! cgroups are off at run time (`cgroup_disable=memory`). There is no memcg to be had in either
//! case: a [`MemCgroup`] always is a real one.
//!
//! C header: [`include/linux/memcontrol.h`](srctree/include/linux/memcontrol.h)

#[cfg(CONFIG_MEMCG)]
use crate::ffi::c_void;
use crate::{
    bindings,
    mm::Mm,
    page::Page,
    sync::{
        aref::{
            ARef,
            AlwaysRefCounted, //
        },
        rcu, //
    },
    types::{
        NotThreadSafe,
        Opaque, //
    }, //
};
use core::{
    marker::PhantomData,
    ops::Deref,
    ptr::{
        self,
        NonNull, //
    }, //
};

/// A memory cgroup, C's `struct mem_cgroup`, which there is a reference to.
///
/// It is reference counted by its css. A `&MemCgroup` may be turned into an [`ARef`] to keep it.
/// What is only kept from being freed, by an RCU read-side critical section, is an
/// [`RcuMemCgroup`]; a [`MemCgroup`] can be used wherever one of these will do.
///
/// A memcg whose cgroup has been removed stays around as long as it is referenced, but what was
/// charged to it belongs to its parent from then on. So hold references for short.
///
/// # Invariants
///
/// Values of this type are refcounted by `css_get` and `css_put`, and the count isn't zero.
///
/// # Examples
///
/// ```
/// use kernel::{
///     memcontrol::MemCgroup,
///     mm::Mm,
///     page::Page,
///     sync::rcu, //
/// };
///
/// /// Allocates a page that whoever owns `mm` pays for.
/// fn alloc_for(mm: &Mm) -> Result<Page> {
///     let memcg = MemCgroup::from_mm(mm);
///     let page = MemCgroup::with_active(memcg.as_deref(), || {
///         Page::alloc_page(GFP_KERNEL_ACCOUNT)
///     })?;
///
///     let guard = rcu::read_lock();
///     if let Some(memcg) = MemCgroup::of_page(&page, &guard) {
///         pr_debug!("memcg {} pays\n", memcg.id());
///     }
///     drop(guard);
///     Ok(page)
/// }
/// # // SAFETY: It is static.
/// # alloc_for(unsafe { Mm::from_raw(&raw const kernel::bindings::init_mm) })?;
/// # Ok::<(), Error>(())
/// ```
#[derive(PartialEq, Eq)]
#[repr(transparent)]
pub struct MemCgroup(RcuMemCgroup);

// SAFETY: By the type invariants, this type is always refcounted.
unsafe impl AlwaysRefCounted for MemCgroup {
    #[inline]
    fn inc_ref(&self) {
        // SAFETY: The pointer is valid since self is a reference.
        unsafe { bindings::mem_cgroup_get(self.as_raw()) };
    }

    #[inline]
    unsafe fn dec_ref(obj: NonNull<Self>) {
        // SAFETY: The caller is giving up their refcount.
        unsafe { bindings::mem_cgroup_put(obj.cast().as_ptr()) };
    }
}

impl Deref for MemCgroup {
    type Target = RcuMemCgroup;

    #[inline]
    fn deref(&self) -> &RcuMemCgroup {
        &self.0
    }
}

impl MemCgroup {
    /// Borrows a memcg by a raw pointer, [`None`] if that is null.
    ///
    /// # Safety
    ///
    /// `ptr` must be null or point at a memcg that somebody has a reference to for the duration of
    /// `'a`.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::memcontrol::MemCgroup;
    ///
    /// // SAFETY: It is null.
    /// assert!(unsafe { MemCgroup::from_raw(core::ptr::null_mut()) }.is_none());
    /// ```
    #[inline]
    pub unsafe fn from_raw<'a>(ptr: *mut bindings::mem_cgroup) -> Option<&'a MemCgroup> {
        // SAFETY: By the requirements of this function, and because the layouts are the same due to
        // `repr(transparent)`.
        unsafe { ptr.cast::<MemCgroup>().as_ref() }
    }

    /// Gets the memcg that pays for an address space: the one of `mm`'s owner.
    ///
    /// [`None`] if memory cgroups are off. It is the root memcg, not [`None`], for a process that
    /// is in none of its own.
    ///
    /// C: `get_mem_cgroup_from_mm`. Doesn't sleep.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::{
    ///     memcontrol::MemCgroup,
    ///     mm::Mm, //
    /// };
    ///
    /// /// Whether the same memcg pays for both.
    /// fn same_payer(mm: &Mm, other: &Mm) -> bool {
    ///     MemCgroup::from_mm(mm) == MemCgroup::from_mm(other)
    /// }
    /// # // SAFETY: It is static.
    /// # let mm = unsafe { Mm::from_raw(&raw const kernel::bindings::init_mm) };
    /// # assert!(same_payer(mm, mm));
    /// ```
    #[inline]
    pub fn from_mm(mm: &Mm) -> Option<ARef<MemCgroup>> {
        // SAFETY: The pointer is valid since `mm` is a reference.
        let memcg = unsafe { bindings::get_mem_cgroup_from_mm(mm.as_raw()) };

        // SAFETY: A memcg that isn't null comes with a reference, which is handed over here.
        NonNull::new(memcg).map(|memcg| unsafe { ARef::from_raw(memcg.cast()) })
    }

    /// Looks up the memcg that a page is charged to.
    ///
    /// [`None`] if the page is charged to nobody: it was allocated without `__GFP_ACCOUNT`, or for
    /// somebody in the root cgroup, or memory cgroups are off. Of a folio, ask for the first page:
    /// the others are charged to nobody.
    ///
    /// The answer holds for the length of the RCU read-side critical section only: when the cgroup
    /// is removed, the page goes to its parent. Look it up each time, don't keep it.
    ///
    /// C: `page_memcg_check`. Doesn't sleep.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::{
    ///     memcontrol::MemCgroup,
    ///     page::Page,
    ///     sync::{
    ///         aref::ARef,
    ///         rcu, //
    ///     }, //
    /// };
    ///
    /// /// Who pays for a page, to be kept beyond the look-up.
    /// fn payer(page: &Page) -> Option<ARef<MemCgroup>> {
    ///     MemCgroup::of_page(page, &rcu::read_lock())?.try_get()
    /// }
    ///
    /// let page = Page::alloc_page(GFP_KERNEL)?;
    /// // It was allocated without `__GFP_ACCOUNT`.
    /// assert!(payer(&page).is_none());
    /// # Ok::<(), Error>(())
    /// ```
    #[inline]
    pub fn of_page<'rcu>(page: &Page, _guard: &'rcu rcu::Guard) -> Option<&'rcu RcuMemCgroup> {
        // SAFETY: The page is valid. A memcg that it is charged to isn't freed before a grace
        // period has passed, and `_guard` keeps that from happening for the duration of `'rcu`.
        unsafe { RcuMemCgroup::from_raw(bindings::page_memcg_check(page.as_ptr())) }
    }

    /// Gets the memcg that the memory of an object is charged to, if it is to any.
    ///
    /// C: `mem_cgroup_from_virt`. Doesn't sleep.
    ///
    /// # Safety
    ///
    /// `object` must point into memory from `kmalloc`.
    // Not generic and not inlined: the C function isn't exported to modules.
    #[cfg(CONFIG_MEMCG)]
    #[inline(never)]
    pub(crate) unsafe fn of_object(object: *const c_void) -> Option<ARef<MemCgroup>> {
        let _guard = rcu::read_lock();

        loop {
            // SAFETY: By the requirements of this function; it is looked up under RCU, so that it
            // isn't freed as long as `_guard` exists.
            let memcg = unsafe {
                RcuMemCgroup::from_raw(bindings::mem_cgroup_from_virt(object.cast_mut()))
            }?;

            // One that can't be had any more is going away. Its parent takes its place.
            if let Some(memcg) = memcg.try_get() {
                return Some(memcg);
            }
        }
    }

    /// Runs `f` while all `__GFP_ACCOUNT` allocations of this task are charged to `memcg`.
    ///
    /// With [`None`], they are charged to the task itself, as they are outside of any such scope.
    /// Scopes nest: the memcg that was active before is active again afterwards.
    ///
    /// C: `set_active_memcg`. Doesn't sleep; `f` may.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::{
    ///     memcontrol::MemCgroup,
    ///     page::Page, //
    /// };
    ///
    /// fn alloc(payer: Option<&MemCgroup>) -> Result<Page> {
    ///     Ok(MemCgroup::with_active(payer, || {
    ///         Page::alloc_page(GFP_KERNEL_ACCOUNT)
    ///     })?)
    /// }
    /// # alloc(None)?;
    /// # Ok::<(), Error>(())
    /// ```
    #[inline]
    pub fn with_active<R>(memcg: Option<&MemCgroup>, f: impl FnOnce() -> R) -> R {
        // SAFETY: The scope ends before this function returns and thus before that of the caller,
        // before the borrow of `memcg` ends.
        let _scope = unsafe { ActiveMemcg::new(memcg) };

        f()
    }
}

/// A memory cgroup that isn't freed as long as this is borrowed, most often because of RCU.
///
/// The last reference to it may be gone, so that none can be added: ask for one by
/// [`RcuMemCgroup::try_get`]. It is enough to find the list that an item is in.
///
/// # Examples
///
/// See [`MemCgroup::of_page`].
///
/// # Invariants
///
/// The memcg isn't freed as long as it is borrowed.
#[repr(transparent)]
pub struct RcuMemCgroup(Opaque<bindings::mem_cgroup>);

// SAFETY: The reference count of a memcg can be changed from any thread.
unsafe impl Send for RcuMemCgroup {}

// SAFETY: All methods on `RcuMemCgroup` can be called in parallel from several threads.
unsafe impl Sync for RcuMemCgroup {}

impl RcuMemCgroup {
    /// Returns a raw pointer to the `struct mem_cgroup`.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::memcontrol::{
    ///     MemCgroup,
    ///     RcuMemCgroup, //
    /// };
    ///
    /// fn is_same(memcg: &RcuMemCgroup, payer: &MemCgroup) -> bool {
    ///     memcg.as_raw() == payer.as_raw()
    /// }
    /// # use kernel::mm::Mm;
    /// # // SAFETY: It is static.
    /// # let mm = unsafe { Mm::from_raw(&raw const kernel::bindings::init_mm) };
    /// # if let Some(memcg) = MemCgroup::from_mm(mm) { assert!(is_same(&memcg, &memcg)); }
    /// ```
    #[inline]
    pub fn as_raw(&self) -> *mut bindings::mem_cgroup {
        self.0.get()
    }

    /// Borrows a memcg by a raw pointer, [`None`] if that is null.
    ///
    /// # Safety
    ///
    /// `ptr` must be null or point at a memcg that isn't freed for the duration of `'a`.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::memcontrol::RcuMemCgroup;
    ///
    /// // SAFETY: It is null.
    /// assert!(unsafe { RcuMemCgroup::from_raw(core::ptr::null_mut()) }.is_none());
    /// ```
    #[inline]
    pub unsafe fn from_raw<'a>(ptr: *mut bindings::mem_cgroup) -> Option<&'a RcuMemCgroup> {
        // SAFETY: By the requirements of this function, and because the layouts are the same due to
        // `repr(transparent)`.
        unsafe { ptr.cast::<RcuMemCgroup>().as_ref() }
    }

    /// Gets a reference, [`None`] if the last one is gone already. Then its parent has taken its
    /// place: whoever looked it up can do so again.
    ///
    /// C: `mem_cgroup_tryget`. Doesn't sleep.
    ///
    /// # Examples
    ///
    /// See [`MemCgroup::of_page`].
    #[inline]
    pub fn try_get(&self) -> Option<ARef<MemCgroup>> {
        // SAFETY: By the type invariants, it isn't freed.
        if !unsafe { bindings::mem_cgroup_tryget(self.as_raw()) } {
            return None;
        }
        // SAFETY: There is a reference now, which is handed over. The layouts are the same due to
        // `repr(transparent)`.
        Some(unsafe { ARef::from_raw(NonNull::from(self).cast()) })
    }

    /// Returns the number by which userspace knows this memcg: the inode number of its cgroup's
    /// directory. For reports only.
    ///
    /// C: `mem_cgroup_id`.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::{
    ///     memcontrol::MemCgroup,
    ///     mm::Mm, //
    /// };
    ///
    /// fn report(mm: &Mm) {
    ///     if let Some(memcg) = MemCgroup::from_mm(mm) {
    ///         pr_info!("memcg {} pays\n", memcg.id());
    /// #       assert!(memcg.id() != 0);
    ///     }
    /// }
    /// # // SAFETY: It is static.
    /// # report(unsafe { Mm::from_raw(&raw const kernel::bindings::init_mm) });
    /// ```
    #[inline]
    pub fn id(&self) -> u64 {
        // SAFETY: By the type invariants, it isn't freed.
        unsafe { bindings::mem_cgroup_id(self.as_raw()) }
    }
}

impl PartialEq for RcuMemCgroup {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        ptr::eq(self, other)
    }
}

impl Eq for RcuMemCgroup {}

/// The scope in which a memcg other than the task's own is charged.
///
/// [`MemCgroup::with_active`] is the safe way to have one. Use this where a closure can't be.
///
/// # Examples
///
/// See [`ActiveMemcg::new`].
///
/// # Invariants
///
/// `old` is the memcg that was active before this scope began.
#[must_use = "the scope ends when this is dropped"]
pub struct ActiveMemcg<'a> {
    old: *mut bindings::mem_cgroup,
    _memcg: PhantomData<&'a MemCgroup>,
    // The scope is one of the current task.
    _nts: NotThreadSafe,
}

impl<'a> ActiveMemcg<'a> {
    /// Begins a scope.
    ///
    /// # Safety
    ///
    /// The value returned must be dropped (not forgotten) before `'a` ends, in the same context
    /// (task or interrupt), and after all scopes that begin after this one. A local variable that
    /// is never moved is enough for that.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::{
    ///     memcontrol::{
    ///         ActiveMemcg,
    ///         MemCgroup, //
    ///     },
    ///     page::Page, //
    /// };
    ///
    /// fn alloc(payer: Option<&MemCgroup>) -> Result<Page> {
    ///     // SAFETY: It is dropped when this function returns, and isn't moved.
    ///     let _scope = unsafe { ActiveMemcg::new(payer) };
    ///
    ///     Ok(Page::alloc_page(GFP_KERNEL_ACCOUNT)?)
    /// }
    /// # alloc(None)?;
    /// # Ok::<(), Error>(())
    /// ```
    #[inline]
    pub unsafe fn new(memcg: Option<&'a MemCgroup>) -> Self {
        let memcg = memcg.map_or(ptr::null_mut(), |memcg| memcg.as_raw());

        Self {
            // SAFETY: `memcg` is null, or valid until the scope ends.
            // INVARIANT: This makes `memcg` active and returns what was so before.
            old: unsafe { bindings::set_active_memcg(memcg) },
            _memcg: PhantomData,
            _nts: NotThreadSafe,
        }
    }
}

impl Drop for ActiveMemcg<'_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariants `old` was active before. The scope that made it so is
        // still there, because scopes end in the reverse order of their beginnings.
        unsafe { bindings::set_active_memcg(self.old) };
    }
}

#[cfg(CONFIG_RUST_SHRINKER_KUNIT_TEST)]
#[crate::prelude::kunit_tests(rust_memcontrol)]
pub(crate) mod tests {
    use super::*;
    use crate::prelude::*;

    /// The memcg of the kernel itself, if memory cgroups are on.
    pub(crate) fn root() -> Option<ARef<MemCgroup>> {
        // SAFETY: `init_mm` is static.
        MemCgroup::from_mm(unsafe { Mm::from_raw(&raw const bindings::init_mm) })
    }

    /// Whether memcgs pay for slab objects, which is what a shrinker that is aware of them needs.
    pub(crate) fn pay_for_slabs() -> bool {
        #[cfg(CONFIG_MEMCG)]
        // SAFETY: There are no requirements.
        let is_disabled = unsafe { bindings::mem_cgroup_kmem_disabled() };
        #[cfg(not(CONFIG_MEMCG))]
        let is_disabled = true;

        root().is_some() && !is_disabled
    }

    #[test]
    fn references() {
        let Some(root) = root() else { return };
        let again = root.try_get();

        assert!(again.as_deref() == Some(&*root));
        assert_eq!(again.map(|memcg| memcg.id()), Some(root.id()));
        // SAFETY: It is null.
        assert!(unsafe { RcuMemCgroup::from_raw(ptr::null_mut()) }.is_none());
    }

    /// Which memcg is active, found out by replacing it for a moment.
    fn active() -> *mut bindings::mem_cgroup {
        // SAFETY: Null stands for none. What was active before is valid, and put back at once.
        unsafe {
            let old = bindings::set_active_memcg(ptr::null_mut());
            bindings::set_active_memcg(old);
            old
        }
    }

    #[test]
    fn root_is_there_if_memcgs_are() {
        match root() {
            Some(root) => {
                assert!(cfg!(CONFIG_MEMCG));
                assert!(root.id() != 0);
                assert!(*root == *root.clone());
            }
            // `cgroup_disable=memory` is the only other reason.
            None => assert!(active().is_null()),
        }
    }

    #[test]
    fn active_nests_and_restores() {
        assert!(active().is_null());

        let Some(root) = root() else {
            // It's a scope that does nothing.
            assert_eq!(MemCgroup::with_active(None, || 5), 5);
            return;
        };
        MemCgroup::with_active(Some(&root), || {
            assert!(ptr::eq(active(), root.as_raw()));

            MemCgroup::with_active(None, || {
                assert!(active().is_null());
                MemCgroup::with_active(Some(&root), || assert!(ptr::eq(active(), root.as_raw())));
                assert!(active().is_null());
            });
            assert!(ptr::eq(active(), root.as_raw()));
        });
        assert!(active().is_null());
    }

    #[test]
    fn active_ends_on_early_return() {
        let ret: Result = MemCgroup::with_active(root().as_deref(), || Err(ENOMEM));
        assert_eq!(ret, Err(ENOMEM));
        assert!(active().is_null());
    }

    #[test]
    fn pages_of_nobody() -> Result {
        let page = Page::alloc_page(GFP_KERNEL)?;
        assert!(MemCgroup::of_page(&page, &rcu::read_lock()).is_none());

        // The root memcg pays for nothing.
        let page =
            MemCgroup::with_active(root().as_deref(), || Page::alloc_page(GFP_KERNEL_ACCOUNT))?;
        assert!(MemCgroup::of_page(&page, &rcu::read_lock()).is_none());
        Ok(())
    }
}
