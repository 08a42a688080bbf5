// SPDX-License-Identifier: GPL-2.0

//! Lists of items in the order of their last use, one for each NUMA node and memory cgroup.
//!
//! C header: [`include/linux/list_lru.h`](srctree/include/linux/list_lru.h)
//!
//! A [`ListLru`] is what a [shrinker](crate::shrinker) frees items from. It is intrusive: an item
//! has [`LruLinks`] in it, so that adding it can't fail for want of memory. What may fail is done
//! ahead, when the item is made ([`ListLru::alloc_heads_for_page`]).
//!
//! There are two of them:
//!
//! # The raw API
//!
//! A [`ListLru`] doesn't own its items. Whoever adds one promises that it stays where it is until
//! it is off the list again, which makes [`ListLru::add`] and [`ListLru::del`] `unsafe`. The items
//! say themselves which node and memory cgroup they belong to ([`LruItem`]).
//!
//! # The safe API
//!
//! An [`ArcListLru`] is built on it, for items that are in an [`Arc`], are what takes the memory,
//! and not just a stand-in for it.
//!
//! # Examples
//!
//! The safe API is shown at [`ArcListLru`]. This is the raw one.
//!
//! A cache of pages, with a shrinker that frees the pages of the memory cgroup and node that are
//! short of memory:
//!
//! ```
//! use kernel::{
//!     alloc::AllocError,
//!     list_lru::{
//!         impl_lru_item,
//!         new_list_lru,
//!         ListLru,
//!         LruLinks, //
//!     },
//!     memcontrol::{
//!         MemCgroup,
//!         RcuMemCgroup, //
//!     },
//!     page::Page,
//!     prelude::*,
//!     shrinker::*,
//!     sync::{
//!         rcu,
//!         Arc,
//!         ArcBorrow, //
//!     }, //
//! };
//!
//! /// A page that isn't used now.
//! #[pin_data]
//! struct Idle {
//!     page: Page,
//!     #[pin]
//!     links: LruLinks,
//! }
//!
//! impl_lru_item! {
//!     // SAFETY: Both answers are those of the page, and it is always the same page.
//!     unsafe impl LruItem for Idle {
//!         using LruLinks { self.links };
//!
//!         fn nid(&self) -> i32 {
//!             self.page.nid()
//!         }
//!
//!         fn memcg<'a>(&'a self, guard: &'a rcu::Guard) -> Option<&'a RcuMemCgroup> {
//!             MemCgroup::of_page(&self.page, guard)
//!         }
//!     }
//! }
//!
//! type Cache = ListLru<Idle>;
//!
//! /// Allocates a page that can be put into the cache when it isn't used.
//! fn new_page(cache: &Cache) -> Result<Pin<KBox<Idle>>> {
//!     let page = Page::alloc_page(GFP_KERNEL_ACCOUNT)?;
//!     cache.alloc_heads_for_page(&page, GFP_KERNEL)?;
//!     KBox::pin_init(pin_init!(Idle { page, links <- LruLinks::new() }), GFP_KERNEL)
//! }
//!
//! fn put(cache: &Cache, page: Pin<KBox<Idle>>) {
//!     // SAFETY: It was pinned, and the pin is never broken: `scan_callback` drops it in place.
//!     let page = KBox::into_raw(unsafe { Pin::into_inner_unchecked(page) });
//!     // SAFETY: It is valid until `scan_callback` has taken it off the list.
//!     unsafe { cache.add(page) };
//! }
//!
//! struct IdlePages;
//!
//! #[vtable]
//! impl Shrinker for IdlePages {
//!     type Context = Arc<Cache>;
//!
//!     fn count_callback(cache: ArcBorrow<'_, Cache>, sc: &ShrinkControl) -> Count {
//!         Count::from_items(cache.count(sc))
//!     }
//!
//!     fn scan_callback(cache: ArcBorrow<'_, Cache>, sc: &mut ShrinkControl) -> Scan {
//!         let mut freed = 0;
//!         let mut left = sc.nr_to_scan();
//!
//!         cache.walk(sc, &mut left, |cursor| {
//!             let page = cursor.as_ptr();
//!             let unlocked = cursor.remove_and_unlock();
//!             // SAFETY: It is from `put`, and it is off the list, so this owns it.
//!             drop(unsafe { Pin::new_unchecked(KBox::from_raw(page.as_ptr())) });
//!             freed += 1;
//!             unlocked.retry()
//!         });
//!
//!         let scanned = sc.nr_to_scan() - left;
//!         if scanned == 0 {
//!             // The list is empty by now. Don't ask again, as it would go on for ever.
//!             return Scan::STOP;
//!         }
//!         sc.set_nr_scanned(scanned);
//!         account_reclaimed_pages(freed);
//!         Scan::freed(freed)
//!     }
//! }
//!
//! let shrinker = UnregisteredShrinker::alloc(fmt!("example-pages"), Options {
//!     flags: Flag::NumaAware | Flag::MemcgAware,
//!     seeks: 0,
//!     batch: 0,
//! })?;
//! let cache: Arc<Cache> = Arc::pin_init(new_list_lru!(&shrinker), GFP_KERNEL)?;
//! let registration: Registration<IdlePages> = shrinker.register(cache.clone());
//!
//! for _ in 0..3 {
//!     put(&cache, new_page(&cache)?);
//! }
//! # // What the core would do, for each node.
//! # for nid in 0..kernel::bindings::MAX_NUMNODES as i32 {
//! #     let Ok(mut sc) = TestControl::new(2).with_nid(nid) else { continue };
//! #     for _ in 0..2 { sc.scan::<IdlePages>(registration.context()); }
//! #     assert_eq!(cache.count(&sc), 0);
//! # }
//! # Ok::<(), Error>(())
//! ```

use crate::{
    alloc::Flags,
    bindings,
    container_of,
    error::{
        to_result,
        Error,
        Result, //
    },
    ffi::c_void,
    memcontrol::{
        MemCgroup,
        RcuMemCgroup, //
    },
    page::Page,
    shrinker::{
        ShrinkControl,
        UnregisteredShrinker, //
    },
    sync::{
        atomic::{
            atomic_load,
            Atomic,
            Full,
            Relaxed,
            Release, //
        },
        rcu,
        Arc,
        LockClassKey, //
    },
    try_pin_init,
    types::{
        NotThreadSafe,
        Opaque, //
    },
    warn_on, //
};
use core::{
    marker::PhantomData,
    pin::Pin,
    ptr::{
        self,
        NonNull, //
    }, //
};
use pin_init::{
    pin_data,
    pin_init,
    pinned_drop,
    stack_pin_init,
    PinInit, //
};

/// Creates an initialiser for a [`ListLru`], with a newly-created lock class.
///
/// With a shrinker, there is a list for each NUMA node and memory cgroup, and the shrinker gets to
/// know when a memory cgroup has items again. Without one, there is a list for each NUMA node.
/// A shrinker of such a list should be aware of nodes, too ([`NumaAware`]): it is asked about one
/// of the lists at a time.
///
/// # Errors
///
/// [`ENOMEM`](crate::error::code::ENOMEM).
///
/// [`NumaAware`]: crate::shrinker::Flag::NumaAware
///
/// # Examples
///
/// ```
/// use kernel::{
///     list_lru::{
///         new_list_lru,
///         ListLru, //
///     },
///     shrinker::{
///         Flag,
///         Options,
///         UnregisteredShrinker, //
///     }, //
/// };
/// # use kernel::{list_lru::{impl_lru_item, LruLinks}, memcontrol::RcuMemCgroup, sync::rcu};
/// # #[pin_data]
/// # struct Item { #[pin] links: LruLinks }
/// # impl_lru_item! {
/// #     // SAFETY: They are always the same.
/// #     unsafe impl LruItem for Item {
/// #         using LruLinks { self.links };
/// #         fn nid(&self) -> i32 { 0 }
/// #         fn memcg<'a>(&'a self, _: &'a rcu::Guard) -> Option<&'a RcuMemCgroup> { None }
/// #     }
/// # }
///
/// let shrinker = UnregisteredShrinker::alloc(fmt!("example"), Options {
///     flags: Flag::MemcgAware.into(),
///     ..Options::default()
/// })?;
/// let lru: Pin<KBox<ListLru<Item>>> = KBox::pin_init(new_list_lru!(&shrinker), GFP_KERNEL)?;
/// # let _: Pin<KBox<ListLru<Item>>> = KBox::pin_init(new_list_lru!(), GFP_KERNEL)?;
/// # Ok::<(), Error>(())
/// ```
#[macro_export]
macro_rules! new_list_lru {
    () => {
        $crate::list_lru::ListLru::new($crate::static_lock_class!())
    };
    ($shrinker:expr $(,)?) => {
        $crate::list_lru::ListLru::with_shrinker($shrinker, $crate::static_lock_class!())
    };
}
pub use new_list_lru;

/// The part of an item by which it is linked into a [`ListLru`]: C's `struct list_head`.
///
/// It must not be dropped while it is linked. That is warned about.
///
/// # Examples
///
/// ```
/// use kernel::list_lru::LruLinks;
///
/// let links = KBox::pin_init(LruLinks::new(), GFP_KERNEL)?;
/// assert!(!links.is_linked());
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// The `list_head` is initialized. It is either linked to itself or into one [`ListLru`] or one
/// [`DisposeList`].
#[pin_data(PinnedDrop)]
#[repr(transparent)]
pub struct LruLinks {
    // This type is `!Unpin`, as the neighbours in the list point here.
    #[pin]
    inner: Opaque<bindings::list_head>,
}

// SAFETY: The links belong to the list that they are linked into, and are changed under its lock by
// whatever thread.
unsafe impl Send for LruLinks {}

// SAFETY: All that can be done by a shared reference is a read that may race.
unsafe impl Sync for LruLinks {}

impl LruLinks {
    /// Creates an initializer for links that are in no list.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::list_lru::LruLinks;
    ///
    /// #[pin_data]
    /// struct Item {
    ///     value: u32,
    ///     #[pin]
    ///     links: LruLinks,
    /// }
    ///
    /// let init = pin_init!(Item { value: 1, links <- LruLinks::new() });
    /// let item = KBox::pin_init(init, GFP_KERNEL)?;
    /// assert!(item.value == 1 && !item.links.is_linked());
    /// # Ok::<(), Error>(())
    /// ```
    #[inline]
    pub fn new() -> impl PinInit<Self> {
        // INVARIANT: It is linked to itself.
        pin_init!(Self {
            // SAFETY: `slot` is valid for writes.
            inner <- Opaque::ffi_init(|slot| unsafe { bindings::INIT_LIST_HEAD(slot) }),
        })
    }

    /// Whether the item is in a list, as C's `list_empty` on the item would tell.
    ///
    /// It is read without the lock of the list. By the time that it is looked at, the answer may be
    /// wrong, unless the caller keeps others from adding and removing the item.
    ///
    /// # Examples
    ///
    /// See [`LruLinks::new`], and [`LruEntry::is_linked`] for an item that is in a list.
    #[inline]
    pub fn is_linked(&self) -> bool {
        let head = self.inner.get();

        // SAFETY: `head` is valid, and C writes `next` with `WRITE_ONCE` when it unlinks an item.
        let next = unsafe { atomic_load(&raw mut (*head).next, Relaxed) };

        !ptr::eq(next, head)
    }
}

#[pinned_drop]
impl PinnedDrop for LruLinks {
    #[inline]
    fn drop(self: Pin<&mut Self>) {
        // The neighbours point to what will be gone in a moment, and it can't be helped: the lock
        // of the list isn't known here.
        warn_on!(self.is_linked());
    }
}

/// Says where in an item its [`LruLinks`] are. It is implemented by [`impl_lru_item!`].
///
/// # Examples
///
/// See [`impl_lru_item!`].
///
/// # Safety
///
/// The two methods must be the inverse of each other, and must not follow any pointer.
pub unsafe trait HasLruLinks {
    /// From an item to its links.
    ///
    /// # Safety
    ///
    /// `this` must point at a valid item.
    unsafe fn raw_get_links(this: *const Self) -> *mut LruLinks;

    /// From the links to the item.
    ///
    /// # Safety
    ///
    /// `links` must be from [`HasLruLinks::raw_get_links`] for an item that still is valid.
    unsafe fn raw_from_links(links: *mut LruLinks) -> *const Self;
}

/// An item that can be in a [`ListLru`]. It is implemented by [`impl_lru_item!`].
///
/// Which of the lists the item is in, is told by the item itself, each time. The answers are about
/// what goes free when the item is freed, a page for example, and not about the memory that the
/// item itself is in: that may well be of another node, or charged to nobody.
///
/// The methods are called with the lock of a list held; they must not sleep.
///
/// # Examples
///
/// See [`impl_lru_item!`].
///
/// # Safety
///
/// - `nid` must be a possible NUMA node. As long as the item is linked, it must be the same one.
/// - As long as the item is linked, `memcg` must be the same one, except that, when a memory cgroup
///   is removed, its parent takes its place, after the kernel has moved the items to the lists of
///   the parent. That is how the kernel treats the memcg of a page: [`MemCgroup::of_page`] is fine,
///   and so is a reference to a memcg that is kept in the item.
pub unsafe trait LruItem: HasLruLinks {
    /// The NUMA node of the memory that goes free.
    fn nid(&self) -> i32;

    /// The memory cgroup that pays for it.
    fn memcg<'a>(&'a self, guard: &'a rcu::Guard) -> Option<&'a RcuMemCgroup>;
}

/// Implements [`LruItem`] for a type, given the field that its links are in.
///
/// # Examples
///
/// ```
/// use kernel::{
///     list_lru::{
///         impl_lru_item,
///         LruLinks, //
///     },
///     memcontrol::{
///         MemCgroup,
///         RcuMemCgroup, //
///     },
///     page::Page,
///     sync::rcu, //
/// };
///
/// #[pin_data]
/// struct Idle<T> {
///     page: Page,
///     #[pin]
///     links: LruLinks,
///     since: T,
/// }
///
/// impl_lru_item! {
///     // SAFETY: Both answers are those of the page, and it is always the same page.
///     unsafe impl{T} LruItem for Idle<T> {
///         using LruLinks { self.links };
///
///         fn nid(&self) -> i32 {
///             self.page.nid()
///         }
///
///         fn memcg<'a>(&'a self, guard: &'a rcu::Guard) -> Option<&'a RcuMemCgroup> {
///             MemCgroup::of_page(&self.page, guard)
///         }
///     }
/// }
/// # let page = Page::alloc_page(GFP_KERNEL)?;
/// # let init = pin_init!(Idle { page, links <- LruLinks::new(), since: 0 });
/// # let idle = KBox::pin_init(init, GFP_KERNEL)?;
/// # use kernel::list_lru::{HasLruLinks, LruItem};
/// # assert_eq!(idle.nid(), idle.page.nid());
/// # assert!(idle.memcg(&rcu::read_lock()).is_none());
/// # // SAFETY: The item is valid.
/// # let links = unsafe { Idle::raw_get_links(&*idle) };
/// # assert!(core::ptr::eq(links, &idle.links));
/// # // SAFETY: They are the links of a valid item.
/// # assert!(core::ptr::eq(unsafe { Idle::<i32>::raw_from_links(links) }, &*idle));
/// # Ok::<(), Error>(())
/// ```
#[macro_export]
macro_rules! impl_lru_item {
    ($(
        unsafe impl$({$($generics:tt)*})? LruItem for $self:ty {
            using LruLinks { self$(.$field:ident)* };
            $($methods:tt)*
        }
    )*) => {$(
        // SAFETY: The methods are inverses of each other, and only compile if the field has the
        // right type and isn't behind a pointer.
        unsafe impl$(<$($generics)*>)? $crate::list_lru::HasLruLinks for $self {
            #[inline]
            unsafe fn raw_get_links(this: *const Self) -> *mut $crate::list_lru::LruLinks {
                // Statically ensure that `$(.field)*` doesn't follow any pointers.
                if false { let _: usize = ::core::mem::offset_of!(Self, $($field).*); }

                // SAFETY: The caller promises that the pointer is valid, and the expression doesn't
                // follow any pointer in it.
                unsafe { (&raw const (*this)$(.$field)*).cast_mut() }
            }

            #[inline]
            unsafe fn raw_from_links(links: *mut $crate::list_lru::LruLinks) -> *const Self {
                // SAFETY: The caller promises that `links` points at this field of a `Self`.
                unsafe { $crate::container_of!(links, Self, $($field).*) }
            }
        }

        // SAFETY: The user of the macro wrote `unsafe impl`, and promises it.
        unsafe impl$(<$($generics)*>)? $crate::list_lru::LruItem for $self {
            $($methods)*
        }
    )*};
}
pub use impl_lru_item;

/// A list of items for each NUMA node and memory cgroup: C's `struct list_lru`.
///
/// Each of the lists has a spin lock, which is taken with interrupts and soft interrupts enabled:
/// use this from task context only. The lock must not be taken again by whoever holds it, that is
/// by the iterator given to [`ListLru::add_many`], or by a callback of [`ListLru::walk`] before it
/// gave it up.
///
/// It must be empty when it is dropped. That is warned about. Dropping it may sleep.
///
/// # Examples
///
/// See the [module](self).
///
/// # Invariants
///
/// - `lru` is an initialized `struct list_lru`.
/// - All that is linked into it are the links of items of type `T`, which are valid.
#[pin_data(PinnedDrop)]
pub struct ListLru<T: HasLruLinks> {
    #[pin]
    lru: Opaque<bindings::list_lru>,
    // Items go in by a shared reference and come out again. So a list of items that live long must
    // not be taken for one of items that don't: it is invariant in `T`.
    _items: PhantomData<*mut T>,
}

// SAFETY: A list_lru may be used and destroyed by any thread. It gives out shared references to
// the items, from any thread, and no other access.
unsafe impl<T: HasLruLinks + Sync> Send for ListLru<T> {}

// SAFETY: As above; a list_lru has its own locks.
unsafe impl<T: HasLruLinks + Sync> Sync for ListLru<T> {}

#[pinned_drop]
impl<T: HasLruLinks> PinnedDrop for ListLru<T> {
    fn drop(self: Pin<&mut Self>) {
        warn_on!(nodes().any(|nid| self.count_node(nid) != 0));

        // SAFETY: It is initialized by the type invariants, and not used any more.
        unsafe { bindings::list_lru_destroy(self.lru.get()) };
    }
}

impl<T: HasLruLinks> ListLru<T> {
    /// Creates a list for each NUMA node. Use [`new_list_lru!`], which has an example.
    ///
    /// C: `list_lru_init`.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`](crate::error::code::ENOMEM).
    ///
    /// # Context
    ///
    /// May sleep.
    pub fn new(key: Pin<&'static LockClassKey>) -> impl PinInit<Self, Error> {
        // SAFETY: There is no shrinker.
        unsafe { Self::init(key, false, ptr::null_mut()) }
    }

    /// Creates a list for each NUMA node, and if the shrinker [is aware] of them, for each memory
    /// cgroup. Use [`new_list_lru!`], which has an example.
    ///
    /// C: `list_lru_init_memcg_key`.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`](crate::error::code::ENOMEM).
    ///
    /// # Context
    ///
    /// May sleep.
    ///
    /// [is aware]: UnregisteredShrinker::is_memcg_aware
    pub fn with_shrinker<'a>(
        shrinker: &'a UnregisteredShrinker,
        key: Pin<&'static LockClassKey>,
    ) -> impl PinInit<Self, Error> + use<'a, T> {
        // SAFETY: The shrinker is borrowed for as long as the initializer exists.
        unsafe { Self::init(key, shrinker.is_memcg_aware(), shrinker.as_raw()) }
    }

    /// # Safety
    ///
    /// `shrinker` must be null or a shrinker that is valid when the initializer runs.
    unsafe fn init<'a>(
        key: Pin<&'static LockClassKey>,
        memcg_aware: bool,
        shrinker: *mut bindings::shrinker,
    ) -> impl PinInit<Self, Error> + use<'a, T> {
        try_pin_init!(Self {
            // INVARIANT: It is initialized and empty.
            lru <- Opaque::try_ffi_init(move |lru: *mut bindings::list_lru| {
                // SAFETY: `lru` is valid for writes, and all zeroes are a valid value of it.
                unsafe { lru.write_bytes(0, 1) };

                #[cfg(CONFIG_LOCKDEP)]
                // SAFETY: As above.
                unsafe { (*lru).key = key.as_ptr() };
                #[cfg(not(CONFIG_LOCKDEP))]
                let _ = key;

                // SAFETY: `lru` is zeroed but for the key, and `shrinker` is null or valid.
                to_result(unsafe { bindings::__list_lru_init(lru, memcg_aware, shrinker) })
            }),
            _items: PhantomData,
        }? Error)
    }

    /// Returns the number of items of the node and memcg that `sc` is about, without taking a lock.
    /// [`Count::from_items`] makes it the answer of a shrinker.
    ///
    /// C: `list_lru_shrink_count`. Doesn't sleep.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::{
    ///     list_lru::{
    ///         ListLru,
    ///         LruItem, //
    ///     },
    ///     shrinker::{
    ///         Count,
    ///         ShrinkControl, //
    ///     }, //
    /// };
    ///
    /// /// All that a shrinker of a list has to do to be asked.
    /// fn count<T: LruItem>(lru: &ListLru<T>, sc: &ShrinkControl) -> Count {
    ///     Count::from_items(lru.count(sc))
    /// }
    /// ```
    ///
    /// [`Count::from_items`]: crate::shrinker::Count::from_items
    #[inline]
    pub fn count(&self, sc: &ShrinkControl) -> usize {
        // SAFETY: The list is valid by the type invariants, and so are the node and memcg by those
        // of `ShrinkControl`.
        unsafe { bindings::list_lru_count_one(self.lru.get(), sc.nid(), sc.raw_memcg()) }
    }

    /// Returns the number of items of a NUMA node, whatever their memcg, without taking a lock. 0
    /// if there is no such node.
    ///
    /// C: `list_lru_count_node`. Doesn't sleep.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::list_lru::{
    ///     ListLru,
    ///     LruItem, //
    /// };
    ///
    /// fn has_local<T: LruItem>(lru: &ListLru<T>, item: &T) -> bool {
    ///     lru.count_node(item.nid()) != 0
    /// }
    /// ```
    #[inline]
    pub fn count_node(&self, nid: i32) -> usize {
        // SAFETY: There are no requirements.
        if !unsafe { bindings::node_possible(nid) } {
            return 0;
        }
        // SAFETY: The list is valid by the type invariants, and there is such a node.
        unsafe { bindings::list_lru_count_node(self.lru.get(), nid) }
    }

    /// Walks over the items of the node and memcg that `sc` is about, from the one that was added
    /// first.
    ///
    /// `cb` is called for one item after the other, and decides what becomes of it by what it does
    /// with the [`LruCursor`]. `nr_to_walk` is lowered by one for each call, and no call is made
    /// when it is 0. The number of items that were removed is returned.
    ///
    /// `cb` is called with the lock of the list held. It must not sleep, nor wait for a lock that
    /// may be held by somebody who adds or removes an item, before [`LruCursor::unlock`] or
    /// [`LruCursor::remove_and_unlock`].
    ///
    /// C: `list_lru_shrink_walk`, but that it leaves [`ShrinkControl::nr_to_scan`] alone.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::{
    ///     list_lru::*,
    ///     shrinker::ShrinkControl, //
    /// };
    ///
    /// /// Lets go of items that nobody wants, and gives the others another turn.
    /// fn scan<T: LruItem>(
    ///     lru: &ListLru<T>,
    ///     sc: &ShrinkControl,
    ///     unwanted: Pin<&mut DisposeList<T>>,
    ///     wanted: impl Fn(&T) -> bool,
    /// ) -> usize {
    ///     let mut unwanted = unwanted;
    ///     let mut left = sc.nr_to_scan();
    ///
    ///     lru.walk(sc, &mut left, |cursor| {
    ///         if wanted(cursor.item()) {
    ///             cursor.rotate()
    ///         } else {
    ///             cursor.remove_to(unwanted.as_mut())
    ///         }
    ///     });
    ///     sc.nr_to_scan() - left
    /// }
    /// ```
    pub fn walk<F>(&self, sc: &ShrinkControl, nr_to_walk: &mut usize, mut cb: F) -> usize
    where
        F: for<'a> FnMut(LruCursor<'a, T>) -> Verdict<'a>,
    {
        // SAFETY: The list is valid by the type invariants, and so are the node and memcg by those
        // of `ShrinkControl`. `isolate` is called with what it needs: the links of an item of type
        // `T`, its list, and `cb`.
        unsafe {
            bindings::list_lru_walk_one(
                self.lru.get(),
                sc.nid(),
                sc.raw_memcg(),
                Some(isolate::<T, F>),
                (&raw mut cb).cast::<c_void>(),
                nr_to_walk,
            )
        }
    }

    /// Walks over up to `nr_to_walk` items of a NUMA node, whatever their memcg.
    ///
    /// C: `list_lru_walk_node`.
    fn walk_node<F>(&self, nid: i32, mut nr_to_walk: usize, mut cb: F)
    where
        F: for<'a> FnMut(LruCursor<'a, T>) -> Verdict<'a>,
    {
        if self.count_node(nid) == 0 {
            return;
        }

        // SAFETY: The list is valid by the type invariants, and there is such a node, as it has
        // items. `isolate` is called with what it needs.
        unsafe {
            bindings::list_lru_walk_node(
                self.lru.get(),
                nid,
                Some(isolate::<T, F>),
                (&raw mut cb).cast::<c_void>(),
                &mut nr_to_walk,
            )
        };
    }

    /// Allocates the lists of a memcg and its ancestors, as far as they aren't there yet, so that
    /// items of this memcg can be added.
    ///
    /// C: `memcg_list_lru_alloc`.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::{
    ///     list_lru::{
    ///         ListLru,
    ///         LruItem, //
    ///     },
    ///     memcontrol::MemCgroup,
    ///     mm::Mm, //
    /// };
    ///
    /// /// From now on, items that the owner of `mm` pays for can be added.
    /// fn prepare<T: LruItem>(lru: &ListLru<T>, mm: &Mm) -> Result {
    ///     match MemCgroup::from_mm(mm) {
    ///         Some(memcg) => lru.alloc_heads(&memcg, GFP_KERNEL),
    ///         None => Ok(()),
    ///     }
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// [`ENOMEM`](crate::error::code::ENOMEM).
    ///
    /// # Context
    ///
    /// May sleep if `flags` allow it.
    pub fn alloc_heads(&self, memcg: &MemCgroup, flags: Flags) -> Result {
        // SAFETY: The list is valid by the type invariants.
        unsafe { alloc_heads(self.lru.get(), memcg, flags) }
    }

    /// Allocates the lists of the memcg that a page is charged to, so that an item that stands for
    /// the page can be added. If it is charged to nobody, there is nothing to do.
    ///
    /// The caller must own the page, so that it stays charged to whom it is.
    ///
    /// C: `folio_memcg_list_lru_alloc`.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::{
    ///     list_lru::{
    ///         ListLru,
    ///         LruItem, //
    ///     },
    ///     page::Page, //
    /// };
    ///
    /// /// Allocates a page that may go to `lru` later, when nothing can be allocated.
    /// fn new_page<T: LruItem>(lru: &ListLru<T>) -> Result<Page> {
    ///     let page = Page::alloc_page(GFP_KERNEL_ACCOUNT)?;
    ///     lru.alloc_heads_for_page(&page, GFP_KERNEL)?;
    ///     Ok(page)
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// [`ENOMEM`](crate::error::code::ENOMEM).
    ///
    /// # Context
    ///
    /// May sleep if `flags` allow it.
    pub fn alloc_heads_for_page(&self, page: &Page, flags: Flags) -> Result {
        // SAFETY: The list is valid by the type invariants.
        unsafe { alloc_heads_for_page(self.lru.get(), page, flags) }
    }
}

impl<T: LruItem> ListLru<T> {
    /// Adds an item to the end of the list of its node and memcg, if it isn't in it. Says whether
    /// it was added.
    ///
    /// The memory that the list takes must have been allocated before, see
    /// [`ListLru::alloc_heads_for_page`]. Otherwise the item ends up in the list of an ancestor of
    /// the memcg, and the kernel warns about it if `CONFIG_DEBUG_VM` is set.
    ///
    /// C: `list_lru_add`. Doesn't sleep.
    ///
    /// `item` may be a reference. A pointer such as that of [`KBox::into_raw`], which came with the
    /// right to free the item, still has that right when [`LruCursor::as_ptr`] gives it back.
    ///
    /// # Safety
    ///
    /// - `item` must point at an item that is pinned and stays valid as long as it is linked: into
    ///   this list, or into the [`DisposeList`] that a walk has moved it to.
    /// - This list must stay valid as long as the item is in it.
    /// - If the item is linked, then into this list, and not into another one or a [`DisposeList`].
    ///
    /// # Examples
    ///
    /// See the [module](self).
    ///
    /// [`KBox::into_raw`]: crate::alloc::KBox::into_raw
    #[inline]
    pub unsafe fn add(&self, item: *const T) -> bool {
        // SAFETY: By the requirements of this function.
        let head = unsafe { T::raw_get_links(item) }.cast();
        // SAFETY: By the requirements of this function.
        let item = unsafe { &*item };
        let guard = rcu::read_lock();
        let memcg = raw_memcg(item.memcg(&guard));

        // SAFETY: The list is valid by the type invariants, the links are so by the requirements
        // of this function, and the memcg isn't freed as long as `guard` exists.
        unsafe { bindings::list_lru_add(self.lru.get(), head, item.nid(), memcg) }
    }

    /// Removes an item from the list of its node and memcg, if it is in it. Says whether it was
    /// removed.
    ///
    /// C: `list_lru_del`. Doesn't sleep.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::list_lru::{
    ///     ListLru,
    ///     LruItem, //
    /// };
    ///
    /// /// Uses an item again. Says whether it was on the list.
    /// ///
    /// /// # Safety
    /// ///
    /// /// The item must be in no list but `lru`.
    /// unsafe fn reuse<T: LruItem>(lru: &ListLru<T>, item: &T) -> bool {
    ///     // SAFETY: By the requirements of this function.
    ///     unsafe { lru.del(item) }
    /// }
    /// ```
    ///
    /// # Safety
    ///
    /// If the item is linked, then into this list, and not into another one or a [`DisposeList`].
    #[inline]
    pub unsafe fn del(&self, item: &T) -> bool {
        let guard = rcu::read_lock();
        let memcg = raw_memcg(item.memcg(&guard));

        // SAFETY: The list is valid by the type invariants, the links are so because `item` is a
        // reference, and the memcg isn't freed as long as `guard` exists.
        unsafe { bindings::list_lru_del(self.lru.get(), raw_head(item), item.nid(), memcg) }
    }

    /// Adds many items, each as by [`ListLru::add`]. Says how many were added.
    ///
    /// The lock is kept as long as one item after the other is of the same node and memcg. `items`
    /// must not sleep nor use this list: it is called with the lock held.
    ///
    /// C: `list_lru_lock`, `__list_lru_add`, `list_lru_unlock`.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::list_lru::{
    ///     ListLru,
    ///     LruItem, //
    /// };
    ///
    /// /// Adds what isn't used any more.
    /// ///
    /// /// # Safety
    /// ///
    /// /// The items must be pinned, stay valid until they are off `lru`, and be in no other list.
    /// unsafe fn put_all<T: LruItem>(lru: &ListLru<T>, items: &[Pin<KBox<T>>]) -> usize {
    ///     // SAFETY: By the requirements of this function.
    ///     unsafe { lru.add_many(items.iter().map(|item| &**item)) }
    /// }
    /// ```
    ///
    /// # Safety
    ///
    /// As for [`ListLru::add`], for each of the items.
    pub unsafe fn add_many<'a>(&self, items: impl Iterator<Item = &'a T>) -> usize
    where
        T: 'a,
    {
        // SAFETY: By the requirements of this function.
        self.for_each_locked(items, |list, item| unsafe { list.add(raw_head(item)) })
    }

    /// Removes many items, each as by [`ListLru::del`]. Says how many were removed.
    ///
    /// As for [`ListLru::add_many`], `items` must not sleep nor use this list.
    ///
    /// C: `list_lru_lock`, `__list_lru_del`, `list_lru_unlock`.
    ///
    /// # Examples
    ///
    /// As [`ListLru::add_many`].
    ///
    /// # Safety
    ///
    /// As for [`ListLru::del`], for each of the items.
    pub unsafe fn del_many<'a>(&self, items: impl Iterator<Item = &'a T>) -> usize
    where
        T: 'a,
    {
        // SAFETY: By the requirements of this function.
        self.for_each_locked(items, |list, item| unsafe { list.del(raw_head(item)) })
    }

    /// Calls `f` for each of the items with its list locked; says how often it returned true.
    #[inline]
    fn for_each_locked<'a>(
        &self,
        items: impl Iterator<Item = &'a T>,
        f: impl Fn(&LockedList<'_>, &T) -> bool,
    ) -> usize
    where
        T: 'a,
    {
        let guard = rcu::read_lock();
        let mut locked: Option<LockedList<'_>> = None;
        let mut changed = 0;

        for item in items {
            let nid = item.nid();
            let memcg = raw_memcg(item.memcg(&guard));

            if !locked.as_ref().is_some_and(|list| list.is_of(nid, memcg)) {
                // One is unlocked before the next is locked.
                locked = None;
            }
            let list = locked.get_or_insert_with(|| {
                // SAFETY: `nid` is a possible node by the requirements of `LruItem`. The memcg is
                // valid as long as `guard` exists.
                unsafe { LockedList::new(&self.lru, nid, memcg, &guard) }
            });
            changed += usize::from(f(list, item));
        }
        changed
    }
}

/// All NUMA nodes that there could be.
fn nodes() -> impl Iterator<Item = i32> {
    0..bindings::MAX_NUMNODES as i32
}

#[inline]
fn raw_memcg(memcg: Option<&RcuMemCgroup>) -> *mut bindings::mem_cgroup {
    memcg.map_or(ptr::null_mut(), RcuMemCgroup::as_raw)
}

#[inline]
fn raw_head<T: HasLruLinks>(item: &T) -> *mut bindings::list_head {
    // SAFETY: The item is valid as it is a reference.
    unsafe { T::raw_get_links(item) }.cast()
}

// Most of the C functions that are called from here on aren't exported to modules. Therefore it
// isn't generic and not inlined: it becomes a part of this crate, and not of a module that uses it.

/// # Safety
///
/// `lru` must be valid.
#[inline(never)]
unsafe fn alloc_heads(lru: *mut bindings::list_lru, memcg: &MemCgroup, flags: Flags) -> Result {
    #[cfg(CONFIG_MEMCG)]
    // SAFETY: By the requirements of this function; the memcg is valid and not null.
    return to_result(unsafe {
        bindings::memcg_list_lru_alloc(memcg.as_raw(), lru, flags.as_raw())
    });

    #[cfg(not(CONFIG_MEMCG))]
    {
        let _ = (lru, memcg, flags);
        Ok(())
    }
}

/// # Safety
///
/// `lru` must be valid.
#[inline(never)]
unsafe fn alloc_heads_for_page(lru: *mut bindings::list_lru, page: &Page, flags: Flags) -> Result {
    // C follows the memcg of the page, even if there is none.
    if MemCgroup::of_page(page, &rcu::read_lock()).is_none() {
        return Ok(());
    }

    // SAFETY: By the requirements of this function. The page is charged, and so it is the first one
    // of its folio, that is it can be taken for the folio.
    to_result(unsafe {
        bindings::folio_memcg_list_lru_alloc(page.as_ptr().cast(), lru, flags.as_raw())
    })
}

/// # Safety
///
/// `lru` must be valid, and `object` point into memory from `kmalloc`.
#[inline(never)]
unsafe fn alloc_heads_for_object(
    lru: *mut bindings::list_lru,
    object: *const c_void,
    flags: Flags,
) -> Result {
    #[cfg(CONFIG_MEMCG)]
    // SAFETY: By the requirements of this function.
    if unsafe { (*lru).memcg_aware } {
        // SAFETY: By the requirements of this function.
        if let Some(memcg) = unsafe { MemCgroup::of_object(object) } {
            // SAFETY: By the requirements of this function.
            return unsafe { alloc_heads(lru, &memcg, flags) };
        }
    }
    let _ = (lru, object, flags);
    Ok(())
}

/// The list of one node and memcg, which is locked as long as this exists.
struct LockedList<'a> {
    lru: &'a Opaque<bindings::list_lru>,
    list: NonNull<bindings::list_lru_one>,
    nid: i32,
    /// What was asked for.
    memcg: *mut bindings::mem_cgroup,
    /// Whose list it is: that of an ancestor, if the memcg asked for is dying.
    owner: *mut bindings::mem_cgroup,
    _guard: &'a rcu::Guard,
}

impl<'a> LockedList<'a> {
    /// # Safety
    ///
    /// - `lru` must be valid, and `nid` a possible node.
    /// - `memcg` must be null or stay valid as long as `guard` exists.
    #[inline(never)]
    unsafe fn new(
        lru: &'a Opaque<bindings::list_lru>,
        nid: i32,
        memcg: *mut bindings::mem_cgroup,
        guard: &'a rcu::Guard,
    ) -> Self {
        let mut owner = memcg;
        // SAFETY: By the requirements of this function.
        let list = unsafe { bindings::list_lru_lock(lru.get(), nid, &mut owner) };

        Self {
            lru,
            // SAFETY: `list_lru_lock` goes up to the root, whose list is always there.
            list: unsafe { NonNull::new_unchecked(list) },
            nid,
            memcg,
            owner,
            _guard: guard,
        }
    }

    /// Whether this is the list for items of that node and memcg.
    #[inline]
    fn is_of(&self, nid: i32, memcg: *mut bindings::mem_cgroup) -> bool {
        nid == self.nid && (memcg == self.memcg || memcg == self.owner)
    }

    /// # Safety
    ///
    /// As for [`ListLru::add`]; the item must belong in this list.
    #[inline(never)]
    unsafe fn add(&self, item: *mut bindings::list_head) -> bool {
        // SAFETY: By the requirements of this function; the list is locked.
        unsafe {
            bindings::__list_lru_add(
                self.lru.get(),
                self.list.as_ptr(),
                item,
                self.nid,
                self.owner,
            )
        }
    }

    /// # Safety
    ///
    /// As for [`ListLru::del`]; the item must belong in this list.
    #[inline(never)]
    unsafe fn del(&self, item: *mut bindings::list_head) -> bool {
        // SAFETY: By the requirements of this function; the list is locked.
        unsafe { bindings::__list_lru_del(self.lru.get(), self.list.as_ptr(), item, self.nid) }
    }
}

impl Drop for LockedList<'_> {
    #[inline(never)]
    fn drop(&mut self) {
        // SAFETY: It was locked by `new`.
        unsafe { bindings::list_lru_unlock(self.list.as_ptr()) };
    }
}

/// # Safety
///
/// To be called by `list_lru_walk_one` only, for a list of items of type `T`, with `arg` pointing
/// at an `F`.
unsafe extern "C" fn isolate<T, F>(
    item: *mut bindings::list_head,
    list: *mut bindings::list_lru_one,
    arg: *mut c_void,
) -> bindings::lru_status
where
    T: HasLruLinks,
    F: for<'a> FnMut(LruCursor<'a, T>) -> Verdict<'a>,
{
    // SAFETY: By the requirements of this function; nobody else uses the `F` during the walk.
    let cb = unsafe { &mut *arg.cast::<F>() };

    // INVARIANT: `list_lru_walk_one` holds the lock of `list`, which `item` is in.
    cb(LruCursor {
        item,
        list,
        _p: PhantomData,
        _brand: PhantomData,
    })
    .status
}

/// Makes a type belong to one call of a callback, and no other.
type Brand<'a> = PhantomData<fn(&'a ()) -> &'a ()>;

/// One item during a walk: it stands for the lock of the list, and for the item being in it.
///
/// Each of the ways to use it up says what becomes of the item, and leaves the lock as C wants it
/// for that. So what needs the lock dropped can only be said by who gave it up:
///
/// | C | here | lock |
/// |---|---|---|
/// | `LRU_REMOVED` | [`remove`], [`remove_to`] | held |
/// | `LRU_ROTATE` | [`rotate`] | held |
/// | `LRU_SKIP` | [`skip`] | held |
/// | `LRU_REMOVED_RETRY` | [`remove_and_unlock`], [`retry`](UnlockedRemoved::retry) | given up |
/// | `LRU_RETRY` | [`unlock`], [`retry`](Unlocked::retry) | given up |
/// | `LRU_STOP` | [`unlock`], [`stop`](Unlocked::stop) | given up |
///
/// (`list_lru.h` says that the last three return with the lock held. `mm/list_lru.c` wants it as it
/// is written here.)
///
/// `'a` is the one call of the callback: neither the cursor nor what it turns into can be kept
/// beyond it, or be mixed up with that of another item.
///
/// # Examples
///
/// ```
/// use kernel::list_lru::{
///     LruCursor,
///     LruItem,
///     Verdict, //
/// };
///
/// fn decide<'a, T: LruItem>(cursor: LruCursor<'a, T>, busy: bool, enough: bool) -> Verdict<'a> {
///     if enough {
///         cursor.unlock().stop()
///     } else if busy {
///         cursor.rotate()
///     } else {
///         cursor.remove()
///     }
/// }
/// ```
///
/// [`remove`]: LruCursor::remove
/// [`remove_to`]: LruCursor::remove_to
/// [`rotate`]: LruCursor::rotate
/// [`skip`]: LruCursor::skip
/// [`unlock`]: LruCursor::unlock
/// [`remove_and_unlock`]: LruCursor::remove_and_unlock
///
/// # Invariants
///
/// - The lock of `list` is held.
/// - `item` is the links of a valid item of type `T`, and in `list`.
#[must_use = "say what is to become of the item"]
pub struct LruCursor<'a, T: HasLruLinks> {
    item: *mut bindings::list_head,
    list: *mut bindings::list_lru_one,
    _p: PhantomData<*const T>,
    _brand: Brand<'a>,
}

impl<'a, T: HasLruLinks> LruCursor<'a, T> {
    /// Returns the item. It is there as long as the lock is held and the item is in the list. After
    /// that it's up to the owner whether it is.
    ///
    /// # Examples
    ///
    /// See [`ListLru::walk`], for this and the verdicts below.
    #[inline]
    pub fn item(&self) -> &T {
        // SAFETY: By the type invariants. The item isn't freed as long as it is linked, which only
        // changes under the lock.
        unsafe { &*T::raw_from_links(self.item.cast()) }
    }

    /// Returns the pointer that the item was [added](ListLru::add) by.
    ///
    /// # Examples
    ///
    /// See the [module](self).
    #[inline]
    pub fn as_ptr(&self) -> NonNull<T> {
        // SAFETY: By the type invariants, `item` is the links of an item, which isn't at null.
        unsafe { NonNull::new_unchecked(T::raw_from_links(self.item.cast()).cast_mut()) }
    }

    /// Takes the item off the list, and goes on with the next.
    #[inline]
    pub fn remove(self) -> Verdict<'a> {
        // SAFETY: By the type invariants.
        unsafe { bindings::list_lru_isolate(self.list, self.item) };
        Verdict::new(bindings::lru_status::LRU_REMOVED)
    }

    /// Moves the item from the list to a private one, and goes on with the next.
    #[inline]
    pub fn remove_to(self, dispose: Pin<&mut DisposeList<T>>) -> Verdict<'a> {
        // SAFETY: By the type invariants, also those of `DisposeList`.
        unsafe { bindings::list_lru_isolate_move(self.list, self.item, dispose.head.get()) };
        Verdict::new(bindings::lru_status::LRU_REMOVED)
    }

    /// Moves the item to the end of the list, and goes on with the next.
    #[inline]
    pub fn rotate(self) -> Verdict<'a> {
        Verdict::new(bindings::lru_status::LRU_ROTATE)
    }

    /// Leaves the item where it is, and goes on with the next.
    ///
    /// It will be the first one that the next walk meets. If the item may stay like that,
    /// [`LruCursor::rotate`] it, lest others are never looked at.
    #[inline]
    pub fn skip(self) -> Verdict<'a> {
        Verdict::new(bindings::lru_status::LRU_SKIP)
    }

    /// Gives up the lock. The item stays in the list, but may be taken off by somebody else.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::list_lru::{
    ///     LruCursor,
    ///     LruItem,
    ///     Verdict, //
    /// };
    ///
    /// /// Calls what may sleep, and goes on if it says so.
    /// fn wait<'a, T>(cursor: LruCursor<'a, T>, go_on: impl FnOnce() -> bool) -> Verdict<'a>
    /// where
    ///     T: LruItem,
    /// {
    ///     let unlocked = cursor.unlock();
    ///     if go_on() {
    ///         unlocked.retry()
    ///     } else {
    ///         unlocked.stop()
    ///     }
    /// }
    /// ```
    #[inline]
    pub fn unlock(self) -> Unlocked<'a> {
        self.raw_unlock();
        Unlocked {
            _brand: PhantomData,
            _nts: NotThreadSafe,
        }
    }

    /// Takes the item off the list, and gives up the lock.
    ///
    /// # Examples
    ///
    /// ```
    /// use core::ptr::NonNull;
    /// use kernel::list_lru::{
    ///     LruCursor,
    ///     LruItem,
    ///     Verdict, //
    /// };
    ///
    /// /// Frees an item by what may sleep.
    /// fn free<'a, T>(cursor: LruCursor<'a, T>, free: impl FnOnce(NonNull<T>)) -> Verdict<'a>
    /// where
    ///     T: LruItem,
    /// {
    ///     let item = cursor.as_ptr();
    ///     let unlocked = cursor.remove_and_unlock();
    ///     free(item);
    ///     unlocked.retry()
    /// }
    /// ```
    #[inline]
    pub fn remove_and_unlock(self) -> UnlockedRemoved<'a> {
        // SAFETY: By the type invariants.
        unsafe { bindings::list_lru_isolate(self.list, self.item) };
        self.raw_unlock();
        UnlockedRemoved {
            _brand: PhantomData,
            _nts: NotThreadSafe,
        }
    }

    #[inline]
    fn raw_unlock(self) {
        // SAFETY: The lock is held by the type invariants, and the cursor that says so is consumed.
        // (`list_lru_unlock` does the same, but isn't exported to modules.)
        unsafe { bindings::spin_unlock(&raw mut (*self.list).lock) };
    }
}

/// What is left of a [`LruCursor`] after [`LruCursor::unlock`], which has an example.
#[must_use = "say how the walk is to go on"]
pub struct Unlocked<'a> {
    _brand: Brand<'a>,
    _nts: NotThreadSafe,
}

impl<'a> Unlocked<'a> {
    /// Starts again from the head of the list, as anything may have happened to it meanwhile.
    #[inline]
    pub fn retry(self) -> Verdict<'a> {
        Verdict::new(bindings::lru_status::LRU_RETRY)
    }

    /// Ends the walk.
    #[inline]
    pub fn stop(self) -> Verdict<'a> {
        Verdict::new(bindings::lru_status::LRU_STOP)
    }
}

/// What is left of a [`LruCursor`] after [`LruCursor::remove_and_unlock`], which has an example.
#[must_use = "say how the walk is to go on"]
pub struct UnlockedRemoved<'a> {
    _brand: Brand<'a>,
    _nts: NotThreadSafe,
}

impl<'a> UnlockedRemoved<'a> {
    /// Starts again from the head of the list, as anything may have happened to it meanwhile.
    #[inline]
    pub fn retry(self) -> Verdict<'a> {
        Verdict::new(bindings::lru_status::LRU_REMOVED_RETRY)
    }
}

/// What became of an item: the answer of a callback of [`ListLru::walk`].
///
/// # Examples
///
/// See [`LruCursor`], which is turned into one.
///
/// # Invariants
///
/// The lock of the list is held, or not, as `status` wants it.
pub struct Verdict<'a> {
    status: bindings::lru_status,
    _brand: Brand<'a>,
}

impl Verdict<'_> {
    #[inline]
    fn new(status: bindings::lru_status) -> Self {
        Self {
            status,
            _brand: PhantomData,
        }
    }
}

/// A private list of items that were taken off a [`ListLru`] by [`LruCursor::remove_to`].
///
/// The items are linked into this list, which has no lock. Until an item was taken off by
/// [`DisposeList::pop`], it must not be added to or removed from a [`ListLru`].
///
/// It must be emptied. What is left in it when it is dropped is unlinked, and warned about.
///
/// # Examples
///
/// See [`ListLru::walk`] for how it is filled, and [`DisposeList::pop`] for how it is emptied.
///
/// # Invariants
///
/// `head` is the head of a list of links of valid items of type `T`.
#[pin_data(PinnedDrop)]
pub struct DisposeList<T: HasLruLinks> {
    #[pin]
    head: Opaque<bindings::list_head>,
    // Invariant in `T`, as `ListLru` is.
    _items: PhantomData<*mut T>,
}

impl<T: HasLruLinks> DisposeList<T> {
    /// Creates an initializer for an empty list. See [`DisposeList::pop`] for an example.
    #[inline]
    pub fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: `slot` is valid for writes.
            head <- Opaque::ffi_init(|slot| unsafe { bindings::INIT_LIST_HEAD(slot) }),
            _items: PhantomData,
        })
    }

    /// Takes the item off the list that came into it first.
    ///
    /// The item is valid as long as its owner keeps it so, now that it isn't linked any more.
    ///
    /// # Examples
    ///
    /// ```
    /// use core::ptr::NonNull;
    /// use kernel::{
    ///     list_lru::{
    ///         DisposeList,
    ///         ListLru,
    ///         LruItem, //
    ///     },
    ///     shrinker::ShrinkControl, //
    /// };
    /// use pin_init::stack_pin_init;
    ///
    /// /// Takes items off `lru`, and frees them when no lock is held.
    /// fn shrink<T: LruItem>(lru: &ListLru<T>, sc: &ShrinkControl, free: impl Fn(NonNull<T>)) {
    ///     stack_pin_init!(let dispose = DisposeList::new());
    ///
    ///     lru.walk(sc, &mut sc.nr_to_scan(), |cursor| cursor.remove_to(dispose.as_mut()));
    ///     while let Some(item) = dispose.as_mut().pop() {
    ///         free(item);
    ///     }
    /// }
    /// ```
    #[inline]
    pub fn pop(self: Pin<&mut Self>) -> Option<NonNull<T>> {
        let head = self.head.get();
        // SAFETY: The list is valid by the type invariants.
        let first = unsafe { (*head).prev };

        if ptr::eq(first, head) {
            return None;
        }
        // SAFETY: The list is valid by the type invariants, and `first` isn't the head of it.
        unsafe { bindings::list_del_init(first) };
        // SAFETY: `first` was in this list, and so is the links of a valid item.
        NonNull::new(unsafe { T::raw_from_links(first.cast()) }.cast_mut())
    }
}

#[pinned_drop]
impl<T: HasLruLinks> PinnedDrop for DisposeList<T> {
    fn drop(mut self: Pin<&mut Self>) {
        let mut left = 0;
        while self.as_mut().pop().is_some() {
            left += 1;
        }
        warn_on!(left != 0);
    }
}

// The safe API.

/// What an item of an [`ArcListLru`] has in it: its links, and which list it is in.
///
/// # Examples
///
/// See [`ArcListLru`].
///
/// # Invariants
///
/// `owner` is
///
/// - the address of the [`ListLru`] that `links` is in, or
/// - `LruEntry::BUSY` as long as somebody is adding or removing the item, or has it in an
///   [`ArcDisposeList`], and nobody else may change `links`, or
/// - `LruEntry::FREE` if it is in no list.
///
/// A linked item has one of its references owned by the list that it is in.
#[pin_data]
pub struct LruEntry {
    #[pin]
    links: LruLinks,
    owner: Atomic<usize>,
}

impl LruEntry {
    const FREE: usize = 0;
    const BUSY: usize = 1;

    /// Creates an initializer for an item that is in no list. See [`ArcListLru`] for an example.
    pub fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            links <- LruLinks::new(),
            owner: Atomic::new(Self::FREE),
        })
    }

    /// Whether the item is in a list, see [`LruLinks::is_linked`].
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::{
    ///     list_lru::{
    ///         impl_has_lru_entry,
    ///         new_list_lru,
    ///         ArcListLru,
    ///         LruEntry, //
    ///     },
    ///     sync::Arc, //
    /// };
    /// # #[pin_data]
    /// # struct Object { value: u32, #[pin] entry: LruEntry }
    /// # impl_has_lru_entry! { impl HasLruEntry for Object { self.entry } }
    /// # let init = pin_init!(Object { value: 5, entry <- LruEntry::new() });
    /// # let object = Arc::pin_init(init, GFP_KERNEL_ACCOUNT)?;
    ///
    /// let lru = KBox::pin_init(ArcListLru::new(new_list_lru!()), GFP_KERNEL)?;
    /// lru.add(&object, GFP_KERNEL)?;
    /// assert!(object.entry.is_linked());
    /// # assert_eq!(object.value, 5);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn is_linked(&self) -> bool {
        self.links.is_linked()
    }

    /// Gets hold of the links if the item is in the state `from`.
    fn claim(&self, from: usize) -> bool {
        self.owner.cmpxchg(from, Self::BUSY, Full).is_ok()
    }

    /// Lets go of the links.
    fn release(&self, to: usize) {
        self.owner.store(to, Release);
    }
}

/// Says where in an item its [`LruEntry`] is. It is implemented by [`impl_has_lru_entry!`].
///
/// # Examples
///
/// See [`ArcListLru`].
///
/// # Safety
///
/// The two methods must be the inverse of each other, and must not follow any pointer.
pub unsafe trait HasLruEntry {
    /// From an item to its entry.
    ///
    /// # Safety
    ///
    /// `this` must point at a valid item.
    unsafe fn raw_get_entry(this: *const Self) -> *mut LruEntry;

    /// From the entry to the item.
    ///
    /// # Safety
    ///
    /// `entry` must be from [`HasLruEntry::raw_get_entry`] for an item that still is valid.
    unsafe fn raw_from_entry(entry: *mut LruEntry) -> *const Self;
}

/// Implements [`HasLruEntry`] for a type, given the field that its entry is in.
///
/// # Examples
///
/// ```
/// use kernel::list_lru::{
///     impl_has_lru_entry,
///     HasLruEntry,
///     LruEntry, //
/// };
///
/// #[pin_data]
/// struct Object<T> {
///     value: T,
///     #[pin]
///     entry: LruEntry,
/// }
///
/// impl_has_lru_entry! {
///     impl{T} HasLruEntry for Object<T> { self.entry }
/// }
/// # let init = pin_init!(Object { value: 5, entry <- LruEntry::new() });
/// # let object = KBox::pin_init(init, GFP_KERNEL)?;
/// # // SAFETY: The object is valid.
/// # let entry = unsafe { Object::raw_get_entry(&*object) };
/// # assert!(core::ptr::eq(entry, &object.entry));
/// # // SAFETY: It is the entry of a valid object.
/// # assert_eq!(unsafe { (*Object::<i32>::raw_from_entry(entry)).value }, 5);
/// # Ok::<(), Error>(())
/// ```
#[macro_export]
macro_rules! impl_has_lru_entry {
    ($(
        impl$({$($generics:tt)*})? HasLruEntry for $self:ty { self$(.$field:ident)* }
    )*) => {$(
        // SAFETY: The methods are inverses of each other, and only compile if the field has the
        // right type and isn't behind a pointer.
        unsafe impl$(<$($generics)*>)? $crate::list_lru::HasLruEntry for $self {
            #[inline]
            unsafe fn raw_get_entry(this: *const Self) -> *mut $crate::list_lru::LruEntry {
                // Statically ensure that `$(.field)*` doesn't follow any pointers.
                if false { let _: usize = ::core::mem::offset_of!(Self, $($field).*); }

                // SAFETY: The caller promises that the pointer is valid, and the expression doesn't
                // follow any pointer in it.
                unsafe { (&raw const (*this)$(.$field)*).cast_mut() }
            }

            #[inline]
            unsafe fn raw_from_entry(entry: *mut $crate::list_lru::LruEntry) -> *const Self {
                // SAFETY: The caller promises that `entry` points at this field of a `Self`.
                unsafe { $crate::container_of!(entry, Self, $($field).*) }
            }
        }
    )*};
}
pub use impl_has_lru_entry;

// SAFETY: The methods are made of those of `HasLruEntry`, which are inverses of each other.
unsafe impl<T: HasLruEntry> HasLruLinks for T {
    #[inline]
    unsafe fn raw_get_links(this: *const Self) -> *mut LruLinks {
        // SAFETY: The caller promises that `this` is valid, and so its entry is.
        unsafe { &raw mut (*T::raw_get_entry(this)).links }
    }

    #[inline]
    unsafe fn raw_from_links(links: *mut LruLinks) -> *const Self {
        // SAFETY: The caller promises that `links` is in the entry of an item.
        unsafe { T::raw_from_entry(container_of!(links, LruEntry, links)) }
    }
}

/// A [`ListLru`] of reference-counted items, each of which it owns a reference to. No use of it is
/// `unsafe`.
///
/// An item belongs to the node that its own memory is in, and to the memcg that its own memory is
/// charged to: allocate it with `__GFP_ACCOUNT`. Items that stand for other memory need a
/// [`ListLru`].
///
/// What is left in the list when it is dropped is removed from it, and its references are dropped.
///
/// # Examples
///
/// ```
/// use kernel::{
///     list_lru::{
///         impl_has_lru_entry,
///         new_list_lru,
///         ArcDisposeList,
///         ArcListLru,
///         LruEntry, //
///     },
///     shrinker::*,
///     sync::{
///         Arc,
///         ArcBorrow, //
///     }, //
/// };
/// use pin_init::stack_pin_init;
///
/// #[pin_data]
/// struct Object {
///     value: u32,
///     #[pin]
///     entry: LruEntry,
/// }
///
/// impl_has_lru_entry! {
///     impl HasLruEntry for Object { self.entry }
/// }
///
/// struct Cache;
///
/// #[vtable]
/// impl Shrinker for Cache {
///     type Context = Arc<ArcListLru<Object>>;
///
///     fn count_callback(lru: ArcBorrow<'_, ArcListLru<Object>>, sc: &ShrinkControl) -> Count {
///         Count::from_items(lru.count(sc))
///     }
///
///     fn scan_callback(lru: ArcBorrow<'_, ArcListLru<Object>>, sc: &mut ShrinkControl) -> Scan {
///         stack_pin_init!(let dispose = ArcDisposeList::new());
///         let mut left = sc.nr_to_scan();
///
///         let freed = lru.walk(sc, &mut left, |cursor| cursor.remove_to(dispose.as_mut()));
///
///         let scanned = sc.nr_to_scan() - left;
///         if scanned == 0 {
///             // The list is empty by now. Don't ask again, as it would go on for ever.
///             return Scan::STOP;
///         }
///         sc.set_nr_scanned(scanned);
///         // The objects are dropped here, with nothing locked.
///         Scan::freed(freed)
///     }
/// }
///
/// let shrinker = UnregisteredShrinker::alloc(fmt!("example-objects"), Options {
///     flags: Flag::NumaAware | Flag::MemcgAware,
///     ..Options::default()
/// })?;
/// let lru = Arc::pin_init(ArcListLru::<Object>::new(new_list_lru!(&shrinker)), GFP_KERNEL)?;
/// let registration: Registration<Cache> = shrinker.register(lru.clone());
///
/// let object = Arc::pin_init(
///     pin_init!(Object { value: 5, entry <- LruEntry::new() }),
///     GFP_KERNEL_ACCOUNT,
/// )?;
/// // It isn't used any more, but may be again.
/// lru.add(&object, GFP_KERNEL)?;
///
/// // It is used again. Meanwhile, it may have been freed.
/// if let Some(object) = lru.del(&object) {
///     assert_eq!(object.value, 5);
/// }
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// All items in `lru` are in an [`Arc`] that `lru` owns a reference to.
#[pin_data(PinnedDrop)]
pub struct ArcListLru<T: HasLruEntry> {
    #[pin]
    lru: ListLru<T>,
    _items: PhantomData<Arc<T>>,
}

impl<T: HasLruEntry> ArcListLru<T> {
    /// Creates an initializer, given that for a [`ListLru`] from [`new_list_lru!`]. The
    /// [type](ArcListLru) has an example.
    ///
    /// # Errors
    ///
    /// Those of [`new_list_lru!`].
    ///
    /// # Context
    ///
    /// May sleep.
    pub fn new(lru: impl PinInit<ListLru<T>, Error>) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            lru <- lru,
            _items: PhantomData,
        }? Error)
    }

    /// What stands for this list in [`LruEntry::owner`].
    fn owner(&self) -> usize {
        self.lru.lru.get().addr()
    }

    /// Adds an item to the end of its list. Says whether it was added: it isn't if it is in this
    /// list or another one, or just being added or removed.
    ///
    /// C: `memcg_list_lru_alloc`, `list_lru_add_obj`.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::{
    ///     list_lru::{
    ///         impl_has_lru_entry,
    ///         new_list_lru,
    ///         ArcListLru,
    ///         LruEntry, //
    ///     },
    ///     sync::Arc, //
    /// };
    /// # #[pin_data]
    /// # struct Object { value: u32, #[pin] entry: LruEntry }
    /// # impl_has_lru_entry! { impl HasLruEntry for Object { self.entry } }
    /// # let init = pin_init!(Object { value: 5, entry <- LruEntry::new() });
    /// # let object = Arc::pin_init(init, GFP_KERNEL_ACCOUNT)?;
    ///
    /// let lru = KBox::pin_init(ArcListLru::new(new_list_lru!()), GFP_KERNEL)?;
    /// assert!(lru.add(&object, GFP_KERNEL)?);
    /// // It is in the list already.
    /// assert!(!lru.add(&object, GFP_KERNEL)?);
    /// # assert_eq!(object.value, 5);
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ENOMEM`](crate::error::code::ENOMEM) if the list of its memcg can't be allocated.
    ///
    /// # Context
    ///
    /// May sleep if `flags` allow it.
    pub fn add(&self, item: &Arc<T>, flags: Flags) -> Result<bool> {
        let entry = raw_entry(&**item);

        if !entry.claim(LruEntry::FREE) {
            return Ok(false);
        }
        // SAFETY: The list is valid by its type invariants. An `Arc` is from `kmalloc`.
        let heads =
            unsafe { alloc_heads_for_object(self.lru.lru.get(), Arc::as_ptr(item).cast(), flags) };
        if let Err(err) = heads {
            entry.release(LruEntry::FREE);
            return Err(err);
        }

        let item = Arc::into_raw(item.clone());
        // SAFETY: The item is in no list, as `claim` says, and is kept valid by the reference that
        // was just made, which is not dropped before it is off the list. It is from `kmalloc`.
        unsafe { bindings::list_lru_add_obj(self.lru.lru.get(), T::raw_get_links(item).cast()) };
        entry.release(self.owner());
        Ok(true)
    }

    /// Removes an item from its list, and returns the reference that the list had. [`None`] if it
    /// isn't in this list, or just being added or removed.
    ///
    /// C: `list_lru_del_obj`. Doesn't sleep.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::{
    ///     list_lru::{
    ///         impl_has_lru_entry,
    ///         new_list_lru,
    ///         ArcListLru,
    ///         LruEntry, //
    ///     },
    ///     sync::Arc, //
    /// };
    /// # #[pin_data]
    /// # struct Object { value: u32, #[pin] entry: LruEntry }
    /// # impl_has_lru_entry! { impl HasLruEntry for Object { self.entry } }
    /// # let init = pin_init!(Object { value: 5, entry <- LruEntry::new() });
    /// # let object = Arc::pin_init(init, GFP_KERNEL_ACCOUNT)?;
    ///
    /// let lru = KBox::pin_init(ArcListLru::new(new_list_lru!()), GFP_KERNEL)?;
    /// assert!(lru.del(&object).is_none());
    ///
    /// lru.add(&object, GFP_KERNEL)?;
    /// assert_eq!(lru.del(&object).map(|object| object.value), Some(5));
    /// # Ok::<(), Error>(())
    /// ```
    pub fn del(&self, item: &Arc<T>) -> Option<Arc<T>> {
        let entry = raw_entry(&**item);

        if !entry.claim(self.owner()) {
            return None;
        }
        let item = Arc::as_ptr(item);
        // SAFETY: The item is in this list, as `claim` says. It is from `kmalloc`.
        unsafe { bindings::list_lru_del_obj(self.lru.lru.get(), T::raw_get_links(item).cast()) };
        entry.release(LruEntry::FREE);

        // SAFETY: This is the reference that `add` made.
        Some(unsafe { Arc::from_raw(item) })
    }

    /// Returns the number of items that `sc` is about, see [`ListLru::count`] and the example of
    /// [`ArcListLru`].
    pub fn count(&self, sc: &ShrinkControl) -> usize {
        self.lru.count(sc)
    }

    /// Returns the number of items of a NUMA node, see [`ListLru::count_node`].
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::{
    ///     list_lru::{
    ///         impl_has_lru_entry,
    ///         new_list_lru,
    ///         ArcListLru,
    ///         LruEntry, //
    ///     },
    ///     sync::Arc, //
    /// };
    /// # #[pin_data]
    /// # struct Object { value: u32, #[pin] entry: LruEntry }
    /// # impl_has_lru_entry! { impl HasLruEntry for Object { self.entry } }
    /// # let init = pin_init!(Object { value: 5, entry <- LruEntry::new() });
    /// # let object = Arc::pin_init(init, GFP_KERNEL_ACCOUNT)?;
    ///
    /// /// All there is, as C's `list_lru_count` counts it.
    /// fn len(lru: &ArcListLru<Object>) -> usize {
    ///     (0..kernel::bindings::MAX_NUMNODES as i32).map(|nid| lru.count_node(nid)).sum()
    /// }
    ///
    /// let lru = KBox::pin_init(ArcListLru::new(new_list_lru!()), GFP_KERNEL)?;
    /// lru.add(&object, GFP_KERNEL)?;
    /// assert_eq!(len(&lru), 1);
    /// # assert_eq!(object.value, 5);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn count_node(&self, nid: i32) -> usize {
        self.lru.count_node(nid)
    }

    /// Walks over the items that `sc` is about, see [`ListLru::walk`]. The example of
    /// [`ArcListLru`] removes all that it meets, that of [`ArcLruCursor`] some.
    pub fn walk<F>(&self, sc: &ShrinkControl, nr_to_walk: &mut usize, mut cb: F) -> usize
    where
        F: for<'a> FnMut(ArcLruCursor<'a, T>) -> Verdict<'a>,
    {
        let owner = self.owner();
        self.lru
            .walk(sc, nr_to_walk, |cursor| cb(ArcLruCursor { cursor, owner }))
    }
}

#[pinned_drop]
impl<T: HasLruEntry> PinnedDrop for ArcListLru<T> {
    fn drop(self: Pin<&mut Self>) {
        let owner = self.owner();

        for nid in nodes() {
            // A walk may miss the items of a memcg that is going away, whose parent gets them. It
            // is about a few at a time, so that the lock isn't held for long.
            while self.lru.count_node(nid) != 0 {
                stack_pin_init!(let dispose = ArcDisposeList::new());
                self.lru.walk_node(nid, 128, |cursor| {
                    ArcLruCursor { cursor, owner }.remove_to(dispose.as_mut())
                });
            }
        }
    }
}

fn raw_entry<T: HasLruEntry>(item: &T) -> &LruEntry {
    // SAFETY: The item is valid as it is a reference, and so its entry is.
    unsafe { &*T::raw_get_entry(item) }
}

/// One item during [`ArcListLru::walk`], see [`LruCursor`].
///
/// # Examples
///
/// ```
/// use kernel::{
///     list_lru::{
///         impl_has_lru_entry,
///         ArcDisposeList,
///         ArcListLru,
///         LruEntry, //
///     },
///     shrinker::ShrinkControl, //
/// };
/// # use kernel::{list_lru::new_list_lru, shrinker::TestControl, sync::Arc};
/// use pin_init::stack_pin_init;
///
/// #[pin_data]
/// struct Object {
///     busy: bool,
///     #[pin]
///     entry: LruEntry,
/// }
///
/// impl_has_lru_entry! {
///     impl HasLruEntry for Object { self.entry }
/// }
///
/// /// Drops up to `limit` objects that aren't busy. Says how many.
/// fn shrink(lru: &ArcListLru<Object>, sc: &ShrinkControl, limit: usize) -> usize {
///     stack_pin_init!(let dispose = ArcDisposeList::new());
///     let mut found = 0;
///
///     lru.walk(sc, &mut sc.nr_to_scan(), |cursor| {
///         if cursor.item().busy {
///             cursor.rotate()
///         } else if found == limit {
///             cursor.unlock().stop()
///         } else {
///             found += 1;
///             cursor.remove_to(dispose.as_mut())
///         }
///     })
/// }
/// # let lru = KBox::pin_init(ArcListLru::new(new_list_lru!()), GFP_KERNEL)?;
/// # for busy in [true, false, false] {
/// #     let init = pin_init!(Object { busy, entry <- LruEntry::new() });
/// #     lru.add(&Arc::pin_init(init, GFP_KERNEL)?, GFP_KERNEL)?;
/// # }
/// # let mut dropped = 0;
/// # for nid in 0..kernel::bindings::MAX_NUMNODES as i32 {
/// #     if let Ok(sc) = TestControl::new(9).with_nid(nid) {
/// #         assert_eq!(shrink(&lru, &sc, 0), 0);
/// #         dropped += shrink(&lru, &sc, 2);
/// #     }
/// # }
/// # assert_eq!(dropped, 2);
/// # Ok::<(), Error>(())
/// ```
#[must_use = "say what is to become of the item"]
pub struct ArcLruCursor<'a, T: HasLruEntry> {
    cursor: LruCursor<'a, T>,
    owner: usize,
}

impl<'a, T: HasLruEntry> ArcLruCursor<'a, T> {
    /// Returns the item. For this and the verdicts, the [type](ArcLruCursor) has an example.
    pub fn item(&self) -> &T {
        self.cursor.item()
    }

    /// Moves the item and the reference to it to a private list, and goes on with the next.
    ///
    /// An item that is just being added or removed is skipped.
    pub fn remove_to(self, dispose: Pin<&mut ArcDisposeList<T>>) -> Verdict<'a> {
        if raw_entry(self.item()).claim(self.owner) {
            // INVARIANT: The reference goes along with the item.
            self.cursor.remove_to(dispose.project().list)
        } else {
            self.cursor.skip()
        }
    }

    /// Moves the item to the end of the list, and goes on with the next.
    pub fn rotate(self) -> Verdict<'a> {
        self.cursor.rotate()
    }

    /// Leaves the item where it is, and goes on with the next, see [`LruCursor::skip`].
    pub fn skip(self) -> Verdict<'a> {
        self.cursor.skip()
    }

    /// Gives up the lock.
    pub fn unlock(self) -> Unlocked<'a> {
        self.cursor.unlock()
    }
}

/// A private list of items that were taken off an [`ArcListLru`] by [`ArcLruCursor::remove_to`],
/// and of the references to them. What is left in it when it is dropped, is dropped.
///
/// # Examples
///
/// See [`ArcListLru`] for one that is dropped with all items in it, and [`ArcDisposeList::pop`].
///
/// # Invariants
///
/// The items of `list` are in an [`Arc`] that this owns a reference to, and their entries are
/// `LruEntry::BUSY`.
#[pin_data(PinnedDrop)]
pub struct ArcDisposeList<T: HasLruEntry> {
    #[pin]
    list: DisposeList<T>,
    _items: PhantomData<Arc<T>>,
}

impl<T: HasLruEntry> ArcDisposeList<T> {
    /// Creates an initializer for an empty list. See [`ArcListLru`] for an example.
    pub fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            list <- DisposeList::new(),
            _items: PhantomData,
        })
    }

    /// Takes the item off the list that came into it first. It may be added to an [`ArcListLru`]
    /// again.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::{
    ///     list_lru::{
    ///         ArcDisposeList,
    ///         ArcListLru,
    ///         HasLruEntry, //
    ///     },
    ///     sync::Arc, //
    /// };
    ///
    /// /// Frees what can be freed, and puts the rest back.
    /// fn free_or_put_back<T: HasLruEntry>(
    ///     lru: &ArcListLru<T>,
    ///     mut dispose: Pin<&mut ArcDisposeList<T>>,
    ///     free: impl Fn(Arc<T>) -> Result<(), Arc<T>>,
    /// ) -> Result {
    ///     while let Some(item) = dispose.as_mut().pop() {
    ///         if let Err(item) = free(item) {
    ///             lru.add(&item, GFP_NOWAIT)?;
    ///         }
    ///     }
    ///     Ok(())
    /// }
    /// ```
    pub fn pop(self: Pin<&mut Self>) -> Option<Arc<T>> {
        let item = self.project().list.pop()?;

        // SAFETY: It is valid, as there is a reference to it by the type invariants.
        raw_entry(unsafe { item.as_ref() }).release(LruEntry::FREE);
        // SAFETY: By the type invariants, this owns the reference.
        Some(unsafe { Arc::from_raw(item.as_ptr()) })
    }
}

#[pinned_drop]
impl<T: HasLruEntry> PinnedDrop for ArcDisposeList<T> {
    fn drop(mut self: Pin<&mut Self>) {
        while self.as_mut().pop().is_some() {}
    }
}

#[cfg(CONFIG_RUST_SHRINKER_KUNIT_TEST)]
#[crate::prelude::kunit_tests(rust_list_lru)]
mod tests {
    use super::*;
    use crate::{
        memcontrol::tests::{pay_for_slabs, root},
        prelude::*,
        shrinker::{
            tests::{
                skip,
                warnings, //
            },
            Flag,
            Options,
            TestControl, //
        },
        sync::aref::ARef, //
    };

    #[pin_data]
    struct Item {
        value: usize,
        nid: i32,
        memcg: Option<ARef<MemCgroup>>,
        #[pin]
        links: LruLinks,
    }

    impl Item {
        fn new(value: usize, nid: i32, memcg: Option<ARef<MemCgroup>>) -> Result<Arc<Self>> {
            let init = pin_init!(Self { value, nid, memcg, links <- LruLinks::new() });
            Arc::pin_init(init, GFP_KERNEL)
        }
    }

    impl_lru_item! {
        // SAFETY: Both are always the same.
        unsafe impl LruItem for Item {
            using LruLinks { self.links };

            fn nid(&self) -> i32 {
                self.nid
            }

            fn memcg<'a>(&'a self, _guard: &'a rcu::Guard) -> Option<&'a RcuMemCgroup> {
                self.memcg.as_deref().map(|memcg| &**memcg)
            }
        }
    }

    /// Items with their index as value, all in `lru`. They are removed when this is dropped. Every
    /// third one belongs to the root memcg and the others to none, which are in the same list but
    /// have to be told apart before that is known.
    struct Items {
        lru: Pin<KBox<ListLru<Item>>>,
        items: KVec<Arc<Item>>,
    }

    impl Items {
        fn new(n: usize) -> Result<Self> {
            let lru = KBox::pin_init(new_list_lru!(), GFP_KERNEL)?;
            let mut items = KVec::with_capacity(n, GFP_KERNEL)?;

            for value in 0..n {
                let memcg = if value % 3 == 2 { root() } else { None };
                items.push(Item::new(value, 0, memcg)?, GFP_KERNEL)?;
            }
            let this = Self { lru, items };
            for item in &this.items {
                assert!(this.add(item));
            }
            Ok(this)
        }

        fn add(&self, item: &Item) -> bool {
            // SAFETY: There is only one list, and `self` keeps the items until they are off it.
            unsafe { self.lru.add(item) }
        }

        fn del(&self, item: &Item) -> bool {
            // SAFETY: There is only one list.
            unsafe { self.lru.del(item) }
        }

        /// Calls `cb` for each of the first `n` items. Returns how many were removed, and how many
        /// of the `n` were left.
        fn walk<F>(&self, n: usize, cb: F) -> (usize, usize)
        where
            F: for<'a> FnMut(LruCursor<'a, Item>) -> Verdict<'a>,
        {
            let mut left = n;
            let removed = self.lru.walk(&TestControl::new(n), &mut left, cb);
            (removed, left)
        }

        /// The values in the order of the list.
        fn values(&self) -> KVec<usize> {
            let mut values = KVec::with_capacity(16, GFP_KERNEL).unwrap();
            self.walk(usize::MAX, |cursor| {
                // It has the capacity, and doesn't allocate with the lock held.
                let _ = values.push(cursor.item().value, GFP_NOWAIT);
                cursor.skip()
            });
            values
        }

        fn count(&self) -> usize {
            let count = self.lru.count(&TestControl::new(0));
            assert_eq!(count, self.lru.count_node(0));
            count
        }
    }

    impl Drop for Items {
        fn drop(&mut self) {
            for item in &self.items {
                self.del(item);
            }
        }
    }

    #[test]
    fn add_and_del() -> Result {
        let items = Items::new(3)?;
        assert_eq!(items.count(), 3);
        assert_eq!(&items.values()[..], [0, 1, 2]);

        // What is in the list stays where it is.
        assert!(!items.add(&items.items[0]));
        assert_eq!(&items.values()[..], [0, 1, 2]);

        assert!(items.items[1].links.is_linked());
        assert!(items.del(&items.items[1]));
        assert!(!items.items[1].links.is_linked());
        assert!(!items.del(&items.items[1]));
        assert_eq!(&items.values()[..], [0, 2]);

        assert!(items.add(&items.items[1]));
        assert_eq!(&items.values()[..], [0, 2, 1]);
        Ok(())
    }

    #[test]
    fn many() -> Result {
        let items = Items::new(4)?;
        let iter = || items.items.iter().map(|item| &**item);

        // SAFETY: There is only one list, and `items` keeps them until they are off it.
        let add_many = |n| unsafe { items.lru.add_many(iter().rev().take(n)) };
        // SAFETY: There is only one list.
        let del_many = |n| unsafe { items.lru.del_many(iter().take(n)) };

        assert_eq!(add_many(4), 0);
        assert_eq!(del_many(2), 2);
        assert_eq!(del_many(4), 2);
        assert_eq!(items.count(), 0);
        assert_eq!(add_many(4), 4);
        assert_eq!(add_many(0), 0);
        assert_eq!(&items.values()[..], [3, 2, 1, 0]);
        Ok(())
    }

    #[test]
    fn nodes_have_lists_of_their_own() -> Result {
        // SAFETY: There are no requirements.
        let possible = || nodes().filter(|&nid| unsafe { bindings::node_possible(nid) });
        if possible().count() < 2 {
            skip(c"there is one NUMA node only");
            return Ok(());
        }

        let lru: Pin<KBox<ListLru<Item>>> = KBox::pin_init(new_list_lru!(), GFP_KERNEL)?;
        for nid in possible() {
            let item = Item::new(1, nid, None)?;
            // SAFETY: There is only one list. The item is removed before it is dropped.
            assert!(unsafe { lru.add(&*item) });

            for other in possible() {
                let sc = TestControl::new(1).with_nid(other)?;
                let expected = usize::from(other == nid);
                assert_eq!(lru.count_node(other), expected);
                assert_eq!(lru.count(&sc), expected);

                // Only a walk over its own node meets it.
                let mut left = 1;
                lru.walk(&sc, &mut left, |cursor| cursor.skip());
                assert_eq!(left, 1 - expected);
            }
            // SAFETY: There is only one list.
            assert!(unsafe { lru.del(&item) });
        }
        Ok(())
    }

    #[test]
    fn links_dropped_while_linked_are_caught() -> Result {
        let items = Items::new(1)?;
        let links = &raw const items.items[0].links;

        // SAFETY: All that dropping them does is to warn, as they are still linked.
        assert_eq!(warnings(|| unsafe { links.cast_mut().drop_in_place() }), 1);
        assert!(items.del(&items.items[0]));
        // SAFETY: As above, but that they aren't linked any more.
        assert_eq!(warnings(|| unsafe { links.cast_mut().drop_in_place() }), 0);
        Ok(())
    }

    #[test]
    fn list_dropped_with_items_is_caught() -> Result {
        let lru: Pin<KBox<ListLru<Item>>> = KBox::pin_init(new_list_lru!(), GFP_KERNEL)?;
        let item = Item::new(1, 0, None)?;
        // SAFETY: The list doesn't stay valid, as it should. From then on, all that is done to the
        // item is dropping it, which doesn't follow any pointer to the list.
        assert!(unsafe { lru.add(&*item) });

        assert_eq!(warnings(|| drop(lru)), 1);
        assert_eq!(warnings(|| drop(item)), 1);
        Ok(())
    }

    #[test]
    fn dispose_list_dropped_with_items_is_caught() -> Result {
        let items = Items::new(3)?;
        let mut list = KBox::pin_init(DisposeList::new(), GFP_KERNEL)?;

        items.walk(2, |cursor| cursor.remove_to(list.as_mut()));
        assert_eq!(warnings(|| drop(list)), 1);
        assert!(!items.items[0].links.is_linked() && !items.items[1].links.is_linked());
        assert_eq!(items.count(), 1);
        Ok(())
    }

    #[test]
    fn pointer_comes_back() -> Result {
        let items = Items::new(1)?;
        items.walk(1, |cursor| {
            assert!(ptr::eq(cursor.as_ptr().as_ptr(), &*items.items[0]));
            cursor.skip()
        });
        Ok(())
    }

    #[test]
    fn no_such_node() -> Result {
        let items = Items::new(1)?;
        assert_eq!(items.lru.count_node(-1), 0);
        assert_eq!(items.lru.count_node(i32::MIN), 0);
        assert_eq!(items.lru.count_node(i32::MAX), 0);
        Ok(())
    }

    #[test]
    fn verdict_remove() -> Result {
        let items = Items::new(3)?;
        assert_eq!(items.walk(2, |cursor| cursor.remove()), (2, 0));
        assert!(!items.items[0].links.is_linked());
        assert_eq!(&items.values()[..], [2]);
        assert_eq!(items.count(), 1);
        // There are fewer than asked for.
        assert_eq!(items.walk(9, |cursor| cursor.remove()), (1, 8));
        assert_eq!(items.walk(9, |cursor| cursor.remove()), (0, 9));
        Ok(())
    }

    #[test]
    fn verdict_rotate() -> Result {
        let items = Items::new(3)?;
        assert_eq!(items.walk(2, |cursor| cursor.rotate()), (0, 0));
        assert_eq!(&items.values()[..], [2, 0, 1]);
        Ok(())
    }

    #[test]
    fn verdict_skip() -> Result {
        let items = Items::new(3)?;
        assert_eq!(items.walk(5, |cursor| cursor.skip()), (0, 2));
        assert_eq!(&items.values()[..], [0, 1, 2]);
        Ok(())
    }

    #[test]
    fn verdict_retry() -> Result {
        let items = Items::new(2)?;
        let mut met = 0;
        // It starts again at the first item each time, until `nr_to_walk` is used up.
        let ret = items.walk(5, |cursor| {
            met += cursor.item().value;
            cursor.unlock().retry()
        });
        assert_eq!((ret, met), ((0, 0), 0));
        assert_eq!(items.count(), 2);
        Ok(())
    }

    #[test]
    fn verdict_stop() -> Result {
        let items = Items::new(3)?;
        let mut met = 0;
        let ret = items.walk(9, |cursor| {
            met += 1;
            if cursor.item().value == 1 {
                cursor.unlock().stop()
            } else {
                cursor.skip()
            }
        });
        assert_eq!((ret, met), ((0, 7), 2));
        // The lock was given up.
        assert_eq!(&items.values()[..], [0, 1, 2]);
        Ok(())
    }

    /// Taking the lock again before saying so was a deadlock in Binder (361e0ff456a8).
    #[test]
    fn verdict_removed_retry() -> Result {
        let items = Items::new(3)?;
        let ret = items.walk(2, |cursor| cursor.remove_and_unlock().retry());
        assert_eq!(ret, (2, 0));
        assert_eq!(&items.values()[..], [2]);
        assert_eq!(items.count(), 1);
        Ok(())
    }

    #[test]
    fn unlocked_is_unlocked() -> Result {
        let items = Items::new(3)?;
        let mut added_back = false;
        // Were the lock held, using the list would be a deadlock.
        let ret = items.walk(3, |cursor| {
            let item = NonNull::from(cursor.item());
            let unlocked = cursor.remove_and_unlock();
            // SAFETY: `items` keeps the items.
            let item = unsafe { item.as_ref() };
            added_back |= item.value == 1 && items.add(item);
            unlocked.retry()
        });
        assert!(added_back);
        assert_eq!(ret, (3, 0));
        assert_eq!(&items.values()[..], [1]);
        Ok(())
    }

    #[test]
    fn verdicts_mixed() -> Result {
        let items = Items::new(6)?;
        let ret = items.walk(6, |cursor| match cursor.item().value {
            0 | 3 => cursor.remove(),
            1 | 4 => cursor.rotate(),
            _ => cursor.skip(),
        });
        assert_eq!(ret, (2, 0));
        assert_eq!(&items.values()[..], [2, 5, 1, 4]);
        assert_eq!(items.count(), 4);
        Ok(())
    }

    #[test]
    fn dispose() -> Result {
        let items = Items::new(4)?;
        let mut list = KBox::pin_init(DisposeList::new(), GFP_KERNEL)?;
        assert!(list.as_mut().pop().is_none());

        assert_eq!(
            items.walk(3, |cursor| cursor.remove_to(list.as_mut())),
            (3, 0)
        );
        assert_eq!(items.count(), 1);

        for value in 0..3 {
            let item = list.as_mut().pop().unwrap();
            // SAFETY: `items` keeps the items.
            let item = unsafe { item.as_ref() };
            assert_eq!(item.value, value);
            assert!(!item.links.is_linked());
            // Put one back.
            if value == 1 {
                assert!(items.add(item));
            }
        }
        assert!(list.as_mut().pop().is_none());
        assert_eq!(&items.values()[..], [3, 1]);
        Ok(())
    }

    #[test]
    fn memcg_aware() -> Result {
        let options = Options {
            flags: Flag::MemcgAware.into(),
            ..Options::default()
        };
        let shrinker = UnregisteredShrinker::alloc(fmt!("kunit"), options)?;
        let lru: Pin<KBox<ListLru<Item>>> = KBox::pin_init(new_list_lru!(&shrinker), GFP_KERNEL)?;

        #[cfg(CONFIG_MEMCG)]
        {
            // SAFETY: The list is initialized.
            let memcg_aware = unsafe { (*lru.lru.get()).memcg_aware };
            assert_eq!(memcg_aware, pay_for_slabs());
        }

        // A page that nobody is charged for: C would follow a null pointer.
        let page = Page::alloc_page(GFP_KERNEL)?;
        assert!(MemCgroup::of_page(&page, &rcu::read_lock()).is_none());
        lru.alloc_heads_for_page(&page, GFP_KERNEL)?;

        // A memcg may ask for items where there never were any.
        if let Some(memcg) = root() {
            lru.alloc_heads(&memcg, GFP_KERNEL)?;
            let sc = TestControl::new(1).with_memcg(Some(&memcg));
            assert_eq!(lru.count(&sc), 0);
            assert_eq!(lru.walk(&sc, &mut 1, |cursor| cursor.skip()), 0);
        }
        Ok(())
    }

    #[pin_data]
    struct Object {
        value: usize,
        #[pin]
        entry: LruEntry,
    }

    impl_has_lru_entry! {
        impl HasLruEntry for Object { self.entry }
    }

    impl Object {
        fn new(value: usize) -> Result<Arc<Self>> {
            let init = pin_init!(Self { value, entry <- LruEntry::new() });
            Arc::pin_init(init, GFP_KERNEL_ACCOUNT)
        }
    }

    /// Makes `N` objects with their index as value, all in memory of the same NUMA node: that one,
    /// and the objects.
    fn objects<const N: usize>() -> Result<(i32, KVec<Arc<Object>>)> {
        let lru = KBox::pin_init(ArcListLru::new(new_list_lru!()), GFP_KERNEL)?;
        let mut objects = KVec::with_capacity(N, GFP_KERNEL)?;
        // Those of another node are kept, too, lest their memory comes again.
        let mut others = KVec::new();
        let mut nid = None;

        while objects.len() < N {
            let object = Object::new(objects.len())?;
            lru.add(&object, GFP_KERNEL)?;
            let here = nodes()
                .find(|&nid| lru.count_node(nid) != 0)
                .ok_or(EINVAL)?;
            assert!(lru.del(&object).is_some());

            if *nid.get_or_insert(here) == here {
                objects.push(object, GFP_KERNEL)?;
            } else {
                others.push(object, GFP_KERNEL)?;
            }
        }
        Ok((nid.ok_or(EINVAL)?, objects))
    }

    #[test]
    fn arc_add_and_del() -> Result {
        let lru = KBox::pin_init(ArcListLru::new(new_list_lru!()), GFP_KERNEL)?;
        let other = KBox::pin_init(ArcListLru::new(new_list_lru!()), GFP_KERNEL)?;
        let (nid, objects) = objects::<1>()?;
        let object = &objects[0];
        let sc = TestControl::new(9).with_nid(nid)?;

        assert!(lru.del(object).is_none());
        assert!(lru.add(object, GFP_KERNEL)?);
        assert!(object.entry.is_linked());
        assert_eq!(lru.count(&sc), 1);

        // It is in a list: neither can it be added again, nor removed from another.
        assert!(!lru.add(object, GFP_KERNEL)?);
        assert!(!other.add(object, GFP_KERNEL)?);
        assert!(other.del(object).is_none());
        assert_eq!((lru.count(&sc), other.count(&sc)), (1, 0));

        let reference = lru.del(object).unwrap();
        assert!(Arc::ptr_eq(&reference, object));
        assert!(!object.entry.is_linked());
        assert_eq!(lru.count(&sc), 0);

        assert!(other.add(object, GFP_KERNEL)?);
        assert_eq!(other.count(&sc), 1);
        Ok(())
    }

    #[test]
    fn arc_walk() -> Result {
        let lru = KBox::pin_init(ArcListLru::new(new_list_lru!()), GFP_KERNEL)?;
        let (nid, objects) = objects::<4>()?;
        let sc = TestControl::new(9).with_nid(nid)?;
        for object in &objects {
            lru.add(object, GFP_KERNEL)?;
        }

        let mut dispose = KBox::pin_init(ArcDisposeList::new(), GFP_KERNEL)?;
        let mut left = 9;
        let removed = lru.walk(&sc, &mut left, |cursor| match cursor.item().value {
            0 => cursor.rotate(),
            3 => cursor.unlock().stop(),
            _ => cursor.remove_to(dispose.as_mut()),
        });
        assert_eq!((removed, left, lru.count(&sc)), (2, 5, 2));

        // As long as it is in the private list, it belongs to whoever has that.
        assert!(lru.del(&objects[1]).is_none());
        assert!(!lru.add(&objects[1], GFP_KERNEL)?);

        let first = dispose.as_mut().pop().unwrap();
        assert_eq!(first.value, 1);
        // It is put back.
        assert!(lru.add(&first, GFP_KERNEL)?);
        drop(dispose);
        assert!(!objects[2].entry.is_linked());
        assert_eq!(lru.count(&sc), 3);
        Ok(())
    }

    #[test]
    fn arc_walk_leaves_what_is_busy() -> Result {
        let lru = KBox::pin_init(ArcListLru::new(new_list_lru!()), GFP_KERNEL)?;
        let (nid, objects) = objects::<3>()?;
        let sc = TestControl::new(9).with_nid(nid)?;
        for object in &objects {
            lru.add(object, GFP_KERNEL)?;
        }

        let mut left = 9;
        let removed = lru.walk(&sc, &mut left, |cursor| cursor.skip());
        assert_eq!((removed, left, lru.count(&sc)), (0, 6, 3));

        // As in the middle of a removal, when somebody else has hold of the links.
        assert!(objects[1].entry.claim(lru.owner()));
        assert!(lru.del(&objects[1]).is_none());
        let mut dispose = KBox::pin_init(ArcDisposeList::new(), GFP_KERNEL)?;
        let mut left = 9;
        let removed = lru.walk(&sc, &mut left, |cursor| cursor.remove_to(dispose.as_mut()));
        assert_eq!((removed, left, lru.count(&sc)), (2, 6, 1));
        objects[1].entry.release(lru.owner());
        assert!(lru.del(&objects[1]).is_some());
        Ok(())
    }

    #[test]
    fn arc_drop_empties_long_lists() -> Result {
        let lru = KBox::pin_init(ArcListLru::new(new_list_lru!()), GFP_KERNEL)?;
        let mut objects = KVec::with_capacity(300, GFP_KERNEL)?;
        for value in 0..300 {
            let object = Object::new(value)?;
            lru.add(&object, GFP_KERNEL)?;
            objects.push(object, GFP_KERNEL)?;
        }
        assert_eq!(nodes().map(|nid| lru.count_node(nid)).sum::<usize>(), 300);
        drop(lru);

        for object in objects {
            assert!(Arc::into_unique_or_drop(object).is_some());
        }
        Ok(())
    }

    #[test]
    fn arc_drop_drops_references() -> Result {
        let lru = KBox::pin_init(ArcListLru::new(new_list_lru!()), GFP_KERNEL)?;
        let object = Object::new(0)?;
        lru.add(&object, GFP_KERNEL)?;
        lru.add(&Object::new(1)?, GFP_KERNEL)?;
        drop(lru);

        assert!(!object.entry.is_linked());
        // There is no other reference left.
        assert!(Arc::into_unique_or_drop(object).is_some());
        Ok(())
    }
}
