// SPDX-License-Identifier: GPL-2.0

//! Shrinkers: caches that give memory back when it runs short.
//!
//! C header: [`include/linux/shrinker.h`](srctree/include/linux/shrinker.h)
//!
//! # The life of a shrinker
//!
//! | | C | here |
//! |---|---|---|
//! | allocate it, with all options | `shrinker_alloc` | [`UnregisteredShrinker::alloc`] |
//! | set up what needs its id | `list_lru_init_memcg` | [`new_list_lru!`] |
//! | set its callbacks and go live | `shrinker_register` | [`UnregisteredShrinker::register`] |
//! | it is asked how much there is | `->count_objects` | [`Shrinker::count_callback`] |
//! | it is asked to free some | `->scan_objects` | [`Shrinker::scan_callback`] |
//! | wait for callbacks, and free it | `shrinker_free` | drop the [`Registration`] |
//!
//! [`UnregisteredShrinker`] and [`Registration`] both are nothing but the pointer that C hands out.
//! Registering moves that pointer from the one type to the other. The `struct shrinker` stays where
//! it is, and nothing in it is copied: C links it into its lists, so it couldn't be.
//!
//! # Who owns the private data
//!
//! `private_data` is the *context*, of a type that the implementer chooses ([`Shrinker::Context`]),
//! most often an [`Arc`] or a [`KBox`]. [`UnregisteredShrinker::register`] takes it over, the
//! callbacks borrow it, possibly many at a time, and dropping the [`Registration`] drops it: once,
//! and last, when the callbacks have returned and no further ones can come. As the code of the
//! callbacks is in the same module as the owner of the [`Registration`], it can't be unloaded
//! before that either. (A [`Registration`] that is leaked stays registered: as with any other
//! registration, a module that can be unloaded must not do that.)
//!
//! # Examples
//!
//! A cache that is nothing but a number:
//!
//! ```
//! use kernel::{
//!     prelude::*,
//!     shrinker::{
//!         Count,
//!         Options,
//!         Registration,
//!         Scan,
//!         ShrinkControl,
//!         Shrinker,
//!         UnregisteredShrinker, //
//!     },
//!     sync::{
//!         atomic::{
//!             Atomic,
//!             Relaxed, //
//!         },
//!         Arc,
//!         ArcBorrow, //
//!     }, //
//! };
//!
//! struct Cache {
//!     objects: Atomic<usize>,
//! }
//!
//! #[vtable]
//! impl Shrinker for Cache {
//!     type Context = Arc<Cache>;
//!
//!     fn count_callback(cache: ArcBorrow<'_, Cache>, _sc: &ShrinkControl) -> Count {
//!         Count::from_items(cache.objects.load(Relaxed))
//!     }
//!
//!     fn scan_callback(cache: ArcBorrow<'_, Cache>, sc: &mut ShrinkControl) -> Scan {
//!         // To free an object of this cache, the lock of a file system must be taken, which the
//!         // allocation that waits for us may hold already.
//!         if !sc.fs_allowed() {
//!             return Scan::STOP;
//!         }
//!         let n = cache.objects.load(Relaxed).min(sc.nr_to_scan());
//!         if n == 0 {
//!             // Somebody else was faster. Don't ask again, as it would go on for ever.
//!             return Scan::STOP;
//!         }
//!         cache.objects.fetch_sub(n, Relaxed);
//!
//!         // The core takes it that all that it asked for has been scanned. It hasn't.
//!         sc.set_nr_scanned(n);
//!         Scan::freed(n)
//!     }
//! }
//!
//! let cache = Arc::new(Cache { objects: Atomic::new(100) }, GFP_KERNEL)?;
//!
//! let shrinker = UnregisteredShrinker::alloc(fmt!("example-{}", "cache"), Options {
//!     // Objects of this cache are made without any IO.
//!     seeks: 0,
//!     ..Options::default()
//! })?;
//! // From here on, the cache is called.
//! let registration: Registration<Cache> = shrinker.register(cache.clone());
//!
//! # // What the core would do.
//! # let mut sc = kernel::shrinker::TestControl::new(30);
//! # assert_eq!(sc.scan::<Cache>(registration.context()), Scan::freed(30));
//! # assert_eq!(sc.nr_scanned(), 30);
//! // Not any more. One reference to the cache is gone, this is the other one.
//! drop(registration);
//! # assert!(cache.objects.load(Relaxed) <= 70);
//! # Ok::<(), Error>(())
//! ```
//!
//! See [`list_lru`] for one that is aware of NUMA nodes and memory cgroups.
//!
//! [`Arc`]: crate::sync::Arc
//! [`KBox`]: crate::alloc::KBox
//! [`list_lru`]: crate::list_lru
//! [`new_list_lru!`]: crate::list_lru::new_list_lru

use crate::{
    bindings,
    const_assert,
    error::{
        code::*,
        Result, //
    },
    ffi::{
        c_ulong,
        c_void, //
    },
    fmt,
    impl_flags,
    memcontrol::MemCgroup,
    prelude::vtable,
    str::CStrExt as _,
    types::{
        ForeignOwnable,
        Opaque, //
    },
    warn_on, //
};
use core::{
    marker::PhantomData,
    mem::ManuallyDrop,
    ptr::{
        self,
        NonNull, //
    }, //
};

impl_flags!(
    /// What a shrinker is able to do: any combination of [`Flag`]s.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::shrinker::{
    ///     Flag,
    ///     Flags, //
    /// };
    ///
    /// let flags = Flag::NumaAware | Flag::MemcgAware;
    /// assert!(flags.contains(Flag::MemcgAware));
    /// assert!(!Flags::empty().contains(Flag::NumaAware));
    /// ```
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    pub struct Flags(u32);

    /// One thing that a shrinker is able to do. See [`Flags`] for an example.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Flag {
        /// It looks at the objects of one NUMA node only: [`ShrinkControl::nid`].
        ///
        /// Without this flag, a shrinker has to look at the objects of all nodes each time, and
        /// what is put off is counted in one sum for all of them.
        NumaAware = bindings::SHRINKER_NUMA_AWARE,

        /// It looks at the objects of one memory cgroup only: [`ShrinkControl::memcg`].
        ///
        /// Then a memcg that reaches its limit can get its own objects freed, and those of nobody
        /// else. The shrinker is called for a memcg only after a [`ListLru`] that was made over it
        /// got an item of that memcg.
        ///
        /// [`ListLru`]: crate::list_lru::ListLru
        MemcgAware = bindings::SHRINKER_MEMCG_AWARE,
    }
);

/// All that can be chosen about a shrinker. It is given to [`UnregisteredShrinker::alloc`], and
/// there is no other way to change it.
///
/// # Examples
///
/// ```
/// use kernel::shrinker::{
///     Flag,
///     Options, //
/// };
///
/// let options = Options {
///     flags: Flag::NumaAware | Flag::MemcgAware,
///     ..Options::default()
/// };
/// assert_eq!(options.batch, 0);
/// assert_eq!(options.seeks, 2);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// What the shrinker is able to do.
    pub flags: Flags,

    /// How many seeks of a disk it takes to get an object back. The more, the fewer objects are
    /// asked for. 0 stands for objects that are made without any IO: half of them are asked for
    /// each time. The default is C's `DEFAULT_SEEKS`.
    pub seeks: u32,

    /// How many objects are asked for at a time, at the most. Fewer than that are left alone until
    /// memory is very short. The default is 0, which C takes for 128.
    pub batch: usize,
}

impl Default for Options {
    /// No flags, and the core's defaults.
    #[inline]
    fn default() -> Self {
        Self {
            flags: Flags::empty(),
            seeks: bindings::DEFAULT_SEEKS,
            batch: 0,
        }
    }
}

/// A shrinker that isn't called yet: what C's `shrinker_alloc` returns.
///
/// Now is the time to set up what needs the shrinker and what the callbacks need: a [`ListLru`]
/// most of all. Dropping this frees the shrinker (`shrinker_free`), which may sleep.
///
/// [`ListLru`]: crate::list_lru::ListLru
///
/// # Examples
///
/// See the [module](self) and [`UnregisteredShrinker::alloc`].
///
/// # Invariants
///
/// The pointer is to a `struct shrinker` from `shrinker_alloc`, which this value owns, and which
/// has neither been registered nor freed.
#[must_use = "the shrinker is freed when this is dropped"]
pub struct UnregisteredShrinker(NonNull<bindings::shrinker>);

// SAFETY: A shrinker may be registered and freed by another thread than the one that allocated it.
unsafe impl Send for UnregisteredShrinker {}

// SAFETY: All that can be done by a shared reference is reading what doesn't change.
unsafe impl Sync for UnregisteredShrinker {}

impl UnregisteredShrinker {
    /// Allocates a shrinker.
    ///
    /// `name` is what it is called in `/sys/kernel/debug/shrinker/`, where a number is added to it.
    /// (C cuts it off somewhere above 100 bytes, and leaves a name with slashes out.)
    ///
    /// C: `shrinker_alloc`; then `seeks` and `batch` are set.
    ///
    /// # Errors
    ///
    /// - [`ENOMEM`] if memory is short. Nothing is left behind.
    /// - [`EINVAL`] if `seeks` or `batch` don't fit into the fields that C has for them.
    ///
    /// # Context
    ///
    /// May sleep.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::shrinker::{
    ///     Flag,
    ///     Options,
    ///     UnregisteredShrinker, //
    /// };
    ///
    /// let shrinker = UnregisteredShrinker::alloc(
    ///     fmt!("example-{}", 1),
    ///     Options {
    ///         flags: Flag::MemcgAware.into(),
    ///         ..Options::default()
    ///     },
    /// )?;
    ///
    /// if !shrinker.is_memcg_aware() {
    ///     pr_info!("memory cgroups are off\n");
    /// }
    /// # Ok::<(), Error>(())
    /// ```
    pub fn alloc(name: fmt::Arguments<'_>, options: Options) -> Result<Self> {
        let seeks = options.seeks.try_into().map_err(|_| EINVAL)?;
        let batch = options.batch.try_into().map_err(|_| EINVAL)?;

        // SAFETY: The format string is null-terminated, and `%pA` takes a pointer to a
        // `fmt::Arguments`, which is valid for the duration of the call.
        let shrinker = unsafe {
            bindings::shrinker_alloc(
                options.flags.into(),
                c"%pA".as_char_ptr(),
                ptr::from_ref(&name).cast::<c_void>(),
            )
        };
        let shrinker = NonNull::new(shrinker).ok_or(ENOMEM)?;

        // SAFETY: The shrinker was just allocated, nobody else knows of it.
        unsafe {
            (*shrinker.as_ptr()).seeks = seeks;
            (*shrinker.as_ptr()).batch = batch;
        }

        // INVARIANT: It was just allocated.
        Ok(Self(shrinker))
    }

    /// Whether the shrinker will be called for one memcg at a time.
    ///
    /// C clears [`Flag::MemcgAware`] without a word where that can't be: with
    /// `cgroup_disable=memory`, `cgroup.memory=nokmem` or without `CONFIG_MEMCG`. Then there is
    /// nothing that the shrinker has to do otherwise: [`ShrinkControl::memcg`] doesn't matter, and
    /// a [`ListLru`] made over it has one list for all memcgs.
    ///
    /// [`ListLru`]: crate::list_lru::ListLru
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::shrinker::{
    ///     Flag,
    ///     Options,
    ///     UnregisteredShrinker, //
    /// };
    ///
    /// let options = Options {
    ///     flags: Flag::NumaAware.into(),
    ///     ..Options::default()
    /// };
    /// let shrinker = UnregisteredShrinker::alloc(fmt!("example"), options)?;
    /// // Nobody asked for it.
    /// assert!(!shrinker.is_memcg_aware());
    /// # Ok::<(), Error>(())
    /// ```
    #[inline]
    pub fn is_memcg_aware(&self) -> bool {
        // SAFETY: The shrinker is valid by the type invariants, and its flags don't change before
        // it is registered.
        let flags = unsafe { (*self.as_raw()).flags };

        flags & Flag::MemcgAware as u32 != 0
    }

    /// Returns the pointer to the `struct shrinker`.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::shrinker::{
    ///     Options,
    ///     UnregisteredShrinker, //
    /// };
    ///
    /// let shrinker = UnregisteredShrinker::alloc(fmt!("example"), Options::default())?;
    /// // SAFETY: The shrinker is valid, and isn't registered yet.
    /// assert_eq!(unsafe { (*shrinker.as_raw()).seeks }, 2);
    /// # Ok::<(), Error>(())
    /// ```
    #[inline]
    pub fn as_raw(&self) -> *mut bindings::shrinker {
        self.0.as_ptr()
    }

    /// Registers the shrinker: from now on, the callbacks of `T` may be called, with `ctx`.
    ///
    /// This sets the callbacks and the private data, which are the only fields that are left to be
    /// set, and then calls C's `shrinker_register`, which can't fail.
    ///
    /// `ctx` must be a pointer to something. What has no size, such as `()` and any other type that
    /// holds no pointer, is refused at compile time: a shrinker without a context could only work
    /// on global variables. (A pointer to something without size, such as a `KBox<()>`, is fine.)
    ///
    /// # Context
    ///
    /// May sleep.
    ///
    /// # Examples
    ///
    /// See the [module](self).
    pub fn register<T: Shrinker>(self, ctx: T::Context) -> Registration<T> {
        const_assert!(
            size_of::<T::Context>() != 0,
            "the context of a shrinker must be a pointer to something"
        );

        // The pointer goes to the `Registration`: don't free what it points to.
        let shrinker = ManuallyDrop::new(self).0;
        let raw = shrinker.as_ptr();

        // SAFETY: By the type invariants of `self`, nobody else knows of the shrinker.
        unsafe {
            (*raw).count_objects = Some(count_objects::<T>);
            (*raw).scan_objects = Some(scan_objects::<T>);
            (*raw).private_data = ctx.into_foreign();
        }

        // SAFETY: The shrinker is from `shrinker_alloc` and is all set up.
        unsafe { bindings::shrinker_register(raw) };

        // INVARIANT: It was registered, with callbacks of `T` and a context of it.
        Registration {
            shrinker,
            _ctx: PhantomData,
        }
    }
}

impl Drop for UnregisteredShrinker {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the shrinker is ours to free.
        unsafe { bindings::shrinker_free(self.as_raw()) };
    }
}

/// A shrinker that is called when memory is short, until this is dropped: what C has registered by
/// `shrinker_register`.
///
/// Dropping it calls `shrinker_free`, which waits until no callback is running and keeps further
/// ones from coming, and then drops the context. It may sleep; it must not be done by a callback of
/// the same shrinker, or while holding a lock that a callback waits for.
///
/// # Examples
///
/// See the [module](self).
///
/// # Invariants
///
/// - `shrinker` is a registered shrinker, which this value owns.
/// - Its callbacks are those of `T`, and its `private_data` is from `T::Context::into_foreign`.
#[must_use = "the shrinker is unregistered when this is dropped"]
pub struct Registration<T: Shrinker> {
    shrinker: NonNull<bindings::shrinker>,
    _ctx: PhantomData<T::Context>,
}

// SAFETY: A shrinker may be freed by any thread, and the context is `Send`.
unsafe impl<T: Shrinker> Send for Registration<T> {}

// SAFETY: All that can be done by a shared reference is to borrow the context, which is `Sync`.
unsafe impl<T: Shrinker> Sync for Registration<T> {}

impl<T: Shrinker> Registration<T> {
    /// Borrows the context, as the callbacks do.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::{
    ///     shrinker::*,
    ///     sync::atomic::{
    ///         Atomic,
    ///         Relaxed, //
    ///     }, //
    /// };
    ///
    /// struct Spare(Atomic<usize>);
    ///
    /// #[vtable]
    /// impl Shrinker for Spare {
    ///     // Nobody but the registration needs it.
    ///     type Context = KBox<Spare>;
    ///
    ///     fn count_callback(spare: &Spare, _sc: &ShrinkControl) -> Count {
    ///         Count::from_items(spare.0.load(Relaxed))
    ///     }
    ///
    ///     fn scan_callback(spare: &Spare, sc: &mut ShrinkControl) -> Scan {
    ///         let n = spare.0.load(Relaxed).min(sc.nr_to_scan());
    ///         spare.0.fetch_sub(n, Relaxed);
    ///         Scan::freed(n)
    ///     }
    /// }
    ///
    /// let shrinker = UnregisteredShrinker::alloc(fmt!("example-spare"), Options::default())?;
    /// let registration: Registration<Spare> =
    ///     shrinker.register(KBox::new(Spare(Atomic::new(0)), GFP_KERNEL)?);
    ///
    /// registration.context().0.fetch_add(1, Relaxed);
    /// # assert!(registration.context().0.load(Relaxed) <= 1);
    /// # Ok::<(), Error>(())
    /// ```
    #[inline]
    pub fn context(&self) -> <T::Context as ForeignOwnable>::Borrowed<'_> {
        // SAFETY: By the type invariants `private_data` is from `into_foreign`; it is taken back
        // only by `drop`.
        unsafe { T::Context::borrow((*self.shrinker.as_ptr()).private_data) }
    }
}

impl<T: Shrinker> Drop for Registration<T> {
    fn drop(&mut self) {
        // SAFETY: The shrinker is valid by the type invariants.
        let ctx = unsafe { (*self.shrinker.as_ptr()).private_data };

        // SAFETY: By the type invariants, the shrinker is ours to free.
        unsafe { bindings::shrinker_free(self.shrinker.as_ptr()) };

        // SAFETY: `ctx` is from `into_foreign` by the type invariants. No callback is running or
        // will run, so that nobody borrows it.
        drop(unsafe { T::Context::from_foreign(ctx) });
    }
}

/// What a shrinker does: the callbacks. See the [module](self) for an example.
///
/// They are called with nothing locked, by tasks that need memory, many at a time. They may sleep,
/// within limits: the task may already hold locks, see [`ShrinkControl::fs_allowed`] and
/// [`ShrinkControl::io_allowed`], and any lock held elsewhere during an allocation mustn't be
/// waited for. (Lockdep knows about that and checks it, if the callbacks are called at all during
/// the test. Debugfs can be told to do so.)
///
/// C: `struct shrinker`.
#[vtable]
pub trait Shrinker: Sized {
    /// What the callbacks work on, C's `private_data`: a pointer to it that owns it or shares in
    /// owning it.
    type Context: ForeignOwnable + Send + Sync + 'static;

    /// Says how many objects could be freed: of [`ShrinkControl::nid`] and
    /// [`ShrinkControl::memcg`], if the shrinker is aware of them.
    ///
    /// It is called often, and should be quick. It needs not be exact, nor heed
    /// [`ShrinkControl::fs_allowed`]: that is for [`Shrinker::scan_callback`] to do, and what can't
    /// be done now is asked for later.
    ///
    /// C: `count_objects`.
    fn count_callback(
        ctx: <Self::Context as ForeignOwnable>::Borrowed<'_>,
        sc: &ShrinkControl,
    ) -> Count;

    /// Looks at up to [`ShrinkControl::nr_to_scan`] objects, and frees those that it can.
    ///
    /// It is called only after [`Shrinker::count_callback`] returned a number, again and again
    /// until that many were scanned or it says [`Scan::STOP`]. The core takes it that it did look
    /// at `nr_to_scan` objects; if those were fewer or more, it is to be told by
    /// [`ShrinkControl::set_nr_scanned`].
    ///
    /// C: `scan_objects`.
    fn scan_callback(
        ctx: <Self::Context as ForeignOwnable>::Borrowed<'_>,
        sc: &mut ShrinkControl,
    ) -> Scan;
}

/// # Safety
///
/// To be called by the core only, as `count_objects` of a shrinker that a [`Registration<T>`] owns.
unsafe extern "C" fn count_objects<T: Shrinker>(
    shrinker: *mut bindings::shrinker,
    sc: *mut bindings::shrink_control,
) -> c_ulong {
    // SAFETY: `private_data` is from `into_foreign`, and `shrinker_free` waits for this callback
    // before it is taken back.
    let ctx = unsafe { T::Context::borrow((*shrinker).private_data) };
    // SAFETY: The core owns `sc` and leaves it alone for the duration of this call.
    let sc = unsafe { ShrinkControl::from_raw(sc) };

    T::count_callback(ctx, sc).0
}

/// # Safety
///
/// To be called by the core only, as `scan_objects` of a shrinker that a [`Registration<T>`] owns.
unsafe extern "C" fn scan_objects<T: Shrinker>(
    shrinker: *mut bindings::shrinker,
    sc: *mut bindings::shrink_control,
) -> c_ulong {
    // By debugfs, there can be a scan for a number between those of nodes.
    // SAFETY: The core owns `sc` and leaves it alone for the duration of this call.
    if !unsafe { bindings::node_possible((*sc).nid) } {
        return Scan::STOP.0;
    }
    // SAFETY: As in `count_objects`.
    let ctx = unsafe { T::Context::borrow((*shrinker).private_data) };
    // SAFETY: As above; the node has been checked.
    let sc = unsafe { ShrinkControl::from_raw_mut(sc) };

    T::scan_callback(ctx, sc).0
}

/// What is asked of a shrinker: C's `struct shrink_control`.
///
/// It belongs to the core, which lends it to the callbacks.
///
/// # Examples
///
/// ```
/// use kernel::shrinker::{
///     Scan,
///     ShrinkControl, //
/// };
///
/// /// Frees objects by `free`, which must not be called on behalf of file systems and IO. An
/// /// object is as much work as four of those that others have.
/// fn scan(sc: &mut ShrinkControl, free: impl Fn(i32, usize) -> usize) -> Scan {
///     if !sc.fs_allowed() || !sc.io_allowed() {
///         return Scan::STOP;
///     }
///     let freed = free(sc.nid(), sc.nr_to_scan());
///     sc.set_nr_scanned(4 * sc.nr_scanned());
///     Scan::freed(freed)
/// }
/// # use kernel::shrinker::*;
/// # struct S;
/// # #[vtable]
/// # impl Shrinker for S {
/// #     type Context = KBox<usize>;
/// #     fn count_callback(_: &usize, sc: &ShrinkControl) -> Count {
/// #         assert!(sc.memcg().is_none());
/// #         Count::EMPTY
/// #     }
/// #     fn scan_callback(n: &usize, sc: &mut ShrinkControl) -> Scan { scan(sc, |_, _| *n) }
/// # }
/// # let mut sc = TestControl::new(8);
/// # assert_eq!(sc.scan::<S>(&3), Scan::freed(3));
/// # assert_eq!(sc.nr_scanned(), 32);
/// # assert_eq!(sc.noio().scan::<S>(&3), Scan::STOP);
/// # assert_eq!(S::count_callback(&3, &TestControl::new(8)), Count::EMPTY);
/// ```
///
/// # Invariants
///
/// - `nid` is a possible NUMA node.
/// - `memcg` is null or a memcg that there is a reference to as long as this is borrowed.
#[repr(transparent)]
pub struct ShrinkControl(Opaque<bindings::shrink_control>);

impl ShrinkControl {
    /// Borrows a `struct shrink_control`, for callbacks in C that hand it on.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::{
    ///     bindings,
    ///     shrinker::ShrinkControl, //
    /// };
    ///
    /// let mut raw: bindings::shrink_control = pin_init::zeroed();
    /// raw.nr_to_scan = 5;
    /// // SAFETY: There is a node 0, and null is a valid memcg.
    /// assert_eq!(unsafe { ShrinkControl::from_raw(&raw) }.nr_to_scan(), 5);
    /// ```
    ///
    /// # Safety
    ///
    /// `ptr` must point at a `struct shrink_control` that fulfils the type invariants and isn't
    /// changed for the duration of `'a`.
    #[inline]
    pub unsafe fn from_raw<'a>(ptr: *const bindings::shrink_control) -> &'a Self {
        // SAFETY: By the requirements of this function, and because the layouts are the same due to
        // `repr(transparent)`.
        unsafe { &*ptr.cast() }
    }

    /// Borrows a `struct shrink_control` that may be changed.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::{
    ///     bindings,
    ///     shrinker::ShrinkControl, //
    /// };
    ///
    /// let mut raw: bindings::shrink_control = pin_init::zeroed();
    /// // SAFETY: There is a node 0, and null is a valid memcg. There is no other reference.
    /// unsafe { ShrinkControl::from_raw_mut(&mut raw) }.set_nr_scanned(7);
    /// assert_eq!(raw.nr_scanned, 7);
    /// ```
    ///
    /// # Safety
    ///
    /// - As for [`ShrinkControl::from_raw`], and `'a` has the only access to it.
    /// - The reference must not get where there is another one of its kind, as the two could be
    ///   swapped.
    #[inline]
    pub unsafe fn from_raw_mut<'a>(ptr: *mut bindings::shrink_control) -> &'a mut Self {
        // SAFETY: As in `from_raw`.
        unsafe { &mut *ptr.cast() }
    }

    /// Returns how many objects [`Shrinker::scan_callback`] should look at. Means nothing to
    /// [`Shrinker::count_callback`].
    /// The [type](ShrinkControl) has an example.
    #[inline]
    pub fn nr_to_scan(&self) -> usize {
        // SAFETY: The pointer is valid since self is a reference.
        unsafe { (*self.0.get()).nr_to_scan }
    }

    /// Returns how many objects are taken to have been scanned: before each call of
    /// [`Shrinker::scan_callback`], the core makes it [`ShrinkControl::nr_to_scan`].
    /// The [type](ShrinkControl) has an example.
    #[inline]
    pub fn nr_scanned(&self) -> usize {
        // SAFETY: The pointer is valid since self is a reference.
        unsafe { (*self.0.get()).nr_scanned }
    }

    /// Says how many objects were really scanned.
    ///
    /// Any number may be said. More than [`ShrinkControl::nr_to_scan`] lowers the work that is left
    /// by that much, and 0 leaves it as it was, so that a callback that goes on answering 0 is
    /// called for ever: say [`Scan::STOP`] if nothing could be looked at. (To the core, it is a
    /// `long`. What is greater than [`isize::MAX`] is negative there, and adds to the work.) The
    /// [type](ShrinkControl) has an example.
    #[inline]
    pub fn set_nr_scanned(&mut self, nr: usize) {
        // SAFETY: The pointer is valid since self is a reference, and this is the only one.
        unsafe { (*self.0.get()).nr_scanned = nr };
    }

    /// Returns the NUMA node that is short of memory. It means nothing if the shrinker isn't
    /// [aware](Flag::NumaAware) of nodes.
    /// The [type](ShrinkControl) has an example.
    #[inline]
    pub fn nid(&self) -> i32 {
        // SAFETY: The pointer is valid since self is a reference.
        unsafe { (*self.0.get()).nid }
    }

    /// Returns the memcg that is short of memory.
    ///
    /// If there is none, or if it is the root memcg, then all memory is short. It means nothing if
    /// the shrinker isn't [aware](UnregisteredShrinker::is_memcg_aware) of memcgs. The memcg may be
    /// kept beyond the callback as an [`ARef`](crate::sync::aref::ARef).
    /// The [type](ShrinkControl) has an example.
    #[inline]
    pub fn memcg(&self) -> Option<&MemCgroup> {
        // SAFETY: By the type invariants, the core has a reference to it.
        unsafe { MemCgroup::from_raw(self.raw_memcg()) }
    }

    /// Whether the allocation that is waiting allows to call into file systems (`__GFP_FS`).
    ///
    /// If it doesn't, the task may hold locks of one, and must not wait for any.
    /// The [type](ShrinkControl) has an example.
    #[inline]
    pub fn fs_allowed(&self) -> bool {
        self.gfp() & bindings::__GFP_FS != 0
    }

    /// Whether the allocation that is waiting allows to start IO (`__GFP_IO`).
    ///
    /// If it doesn't, it may itself be a part of IO, which must not wait for other IO. If it does,
    /// file systems may still be off limits: [`ShrinkControl::fs_allowed`].
    /// The [type](ShrinkControl) has an example.
    #[inline]
    pub fn io_allowed(&self) -> bool {
        self.gfp() & bindings::__GFP_IO != 0
    }

    #[inline]
    pub(crate) fn raw_memcg(&self) -> *mut bindings::mem_cgroup {
        // SAFETY: The pointer is valid since self is a reference.
        unsafe { (*self.0.get()).memcg }
    }

    #[inline]
    fn gfp(&self) -> bindings::gfp_t {
        // SAFETY: The pointer is valid since self is a reference.
        unsafe { (*self.0.get()).gfp_mask }
    }
}

/// How many objects could be freed: the answer of [`Shrinker::count_callback`].
///
/// There are three, none of which can be had by way of another: [`Count::EMPTY`],
/// [`Count::NOT_NOW`], and a number.
///
/// # Invariants
///
/// It is C's `SHRINK_EMPTY`, or not greater than [`Count::MAX`].
///
/// # Examples
///
/// ```
/// use kernel::shrinker::Count;
///
/// assert_eq!(Count::from_items(0), Count::EMPTY);
/// assert_ne!(Count::EMPTY, Count::NOT_NOW);
///
/// assert_eq!(Count::new(12), Some(Count::from_items(12)));
/// assert_eq!(Count::new(0), None);
/// assert_eq!(Count::new(Count::MAX + 1), None);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Count(c_ulong);

impl Count {
    /// There are no objects.
    ///
    /// A memcg aware shrinker isn't called for this memcg and node any more, until its
    /// [`ListLru`](crate::list_lru::ListLru) gets an item of them again.
    ///
    /// C: `SHRINK_EMPTY`.
    pub const EMPTY: Self = Self(bindings::SHRINK_EMPTY as c_ulong);

    /// There may be objects, but don't ask for them this time: their number can't be told, or they
    /// are too few to be worth it.
    ///
    /// C: 0.
    pub const NOT_NOW: Self = Self(0);

    /// The greatest number that can be said. The core calculates with twice as much, in a `long`;
    /// what is beyond that would become negative there, and stay so.
    pub const MAX: usize = isize::MAX as usize / 2;

    /// There are `n` objects.
    ///
    /// [`None`] if `n` is 0, for which the caller has to choose between [`Count::EMPTY`] and
    /// [`Count::NOT_NOW`], or if it is greater than [`Count::MAX`]. The [type](Count) has an
    /// example.
    #[inline]
    pub const fn new(n: usize) -> Option<Self> {
        // INVARIANT: It is checked.
        if n == 0 || n > Self::MAX {
            None
        } else {
            Some(Self(n))
        }
    }

    /// There are `n` objects: [`Count::EMPTY`] if that is 0, as all lists want it. The
    /// [type](Count) has an example.
    ///
    /// There can't be more than [`Count::MAX`] objects of two bytes or more in memory. If `n` says
    /// so, it can't be told how many there are: that is [`Count::NOT_NOW`], after a warning.
    #[inline]
    pub fn from_items(n: usize) -> Self {
        if n == 0 {
            return Self::EMPTY;
        }
        let count = Self::new(n);
        warn_on!(count.is_none());
        count.unwrap_or(Self::NOT_NOW)
    }
}

/// What came of a scan: the answer of [`Shrinker::scan_callback`].
///
/// # Invariants
///
/// It isn't C's `SHRINK_EMPTY`, which is an answer to another question.
///
/// # Examples
///
/// ```
/// use kernel::shrinker::Scan;
///
/// assert_eq!(Scan::new(0), Some(Scan::freed(0)));
/// assert_ne!(Scan::freed(0), Scan::STOP);
/// // Any number below C's two special ones.
/// assert_eq!(Scan::new(usize::MAX - 2), Some(Scan::freed(usize::MAX - 2)));
/// assert_eq!(Scan::new(usize::MAX - 1), None);
/// assert_eq!(Scan::new(usize::MAX), None);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Scan(c_ulong);

impl Scan {
    /// No progress can be made: don't ask again this time. The work is put off.
    ///
    /// C: `SHRINK_STOP`.
    pub const STOP: Self = Self(bindings::SHRINK_STOP as c_ulong);

    /// `n` objects were freed. [`None`] if that is one of the numbers that C gives a meaning of
    /// their own: `SHRINK_STOP` and `SHRINK_EMPTY`. The [type](Scan) has an example.
    #[inline]
    pub const fn new(n: usize) -> Option<Self> {
        // INVARIANT: It is checked.
        if n >= bindings::SHRINK_EMPTY as c_ulong {
            None
        } else {
            Some(Self(n))
        }
    }

    /// `n` objects were freed. The [type](Scan) has an example.
    ///
    /// No memory has as many objects as the numbers that [`Scan::new`] refuses. Should `n` say so,
    /// then the callback isn't called again ([`Scan::STOP`]), after a warning.
    #[inline]
    pub fn freed(n: usize) -> Self {
        let scan = Self::new(n);
        warn_on!(scan.is_none());
        scan.unwrap_or(Self::STOP)
    }
}

/// Tells page reclaim that a shrinker freed `n` pages, other than by freeing slab objects.
///
/// What [`Scan::freed`] says is a number of objects. Page reclaim doesn't know how many pages that
/// makes, and takes it for no progress. Does nothing outside of reclaim.
///
/// C: `mm_account_reclaimed_pages` in [`include/linux/swap.h`](srctree/include/linux/swap.h).
///
/// # Examples
///
/// ```
/// use kernel::{
///     page::Page,
///     shrinker::{
///         account_reclaimed_pages,
///         Scan, //
///     }, //
/// };
///
/// fn free(pages: KVec<Page>) -> Scan {
///     let n = pages.len();
///     drop(pages);
///     account_reclaimed_pages(n);
///     Scan::freed(n)
/// }
/// # assert_eq!(free(KVec::new()), Scan::freed(0));
/// ```
#[inline]
pub fn account_reclaimed_pages(n: usize) {
    // SAFETY: There are no requirements.
    unsafe { bindings::mm_account_reclaimed_pages(n) };
}

/// A made-up [`ShrinkControl`], for unit tests of shrinkers.
///
/// It dereferences to a [`ShrinkControl`] for [`Shrinker::count_callback`] and for lists.
///
/// # Examples
///
/// ```
/// use kernel::shrinker::TestControl;
///
/// let sc = TestControl::new(128).nofs();
///
/// assert_eq!((sc.nr_to_scan(), sc.nr_scanned()), (128, 128));
/// assert!(sc.io_allowed() && !sc.fs_allowed());
/// assert!(!TestControl::new(1).noio().io_allowed());
/// assert!(TestControl::new(1).with_nid(-1).is_err());
/// assert_eq!(TestControl::new(1).with_nid(0)?.nid(), 0);
/// assert!(TestControl::new(1).with_memcg(None).memcg().is_none());
/// # Ok::<(), Error>(())
/// ```
///
/// See the [module](self) for [`TestControl::scan`].
///
/// # Invariants
///
/// `sc` fulfils the invariants of [`ShrinkControl`]; its memcg is null or borrowed for `'a`.
#[cfg(CONFIG_KUNIT)]
pub struct TestControl<'a> {
    sc: ShrinkControl,
    _memcg: PhantomData<&'a MemCgroup>,
}

#[cfg(CONFIG_KUNIT)]
impl<'a> TestControl<'a> {
    /// Asks for `nr_to_scan` objects of node 0 and no memcg, for a `GFP_KERNEL` allocation. The
    /// example of this and the other methods is that of the [type](TestControl).
    pub fn new(nr_to_scan: usize) -> Self {
        // INVARIANT: There always is a node 0.
        Self {
            sc: ShrinkControl(Opaque::new(bindings::shrink_control {
                gfp_mask: bindings::GFP_KERNEL,
                nid: 0,
                nr_to_scan,
                nr_scanned: nr_to_scan,
                memcg: ptr::null_mut(),
            })),
            _memcg: PhantomData,
        }
    }

    /// Asks for objects of another node.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if there is no such node.
    pub fn with_nid(mut self, nid: i32) -> Result<Self> {
        // SAFETY: There are no requirements.
        if !unsafe { bindings::node_possible(nid) } {
            return Err(EINVAL);
        }
        // INVARIANT: It was checked.
        self.raw().nid = nid;
        Ok(self)
    }

    /// Asks for objects of a memcg.
    pub fn with_memcg(mut self, memcg: Option<&'a MemCgroup>) -> Self {
        // INVARIANT: It is borrowed for `'a`.
        self.raw().memcg = memcg.map_or(ptr::null_mut(), |memcg| memcg.as_raw());
        self
    }

    /// Asks for the sake of a `GFP_NOFS` allocation.
    pub fn nofs(mut self) -> Self {
        self.raw().gfp_mask &= !bindings::__GFP_FS;
        self
    }

    /// Asks for the sake of a `GFP_NOIO` allocation.
    pub fn noio(mut self) -> Self {
        self.raw().gfp_mask &= !(bindings::__GFP_FS | bindings::__GFP_IO);
        self
    }

    /// Calls [`Shrinker::scan_callback`], with `nr_scanned` reset as the core does it.
    ///
    /// It doesn't give out the `&mut ShrinkControl` to anybody else, as the core's must not be
    /// replaced by this one.
    pub fn scan<T: Shrinker>(&mut self, ctx: <T::Context as ForeignOwnable>::Borrowed<'_>) -> Scan {
        self.raw().nr_scanned = self.nr_to_scan();
        T::scan_callback(ctx, &mut self.sc)
    }

    fn raw(&mut self) -> &mut bindings::shrink_control {
        // SAFETY: It is initialized, and borrowed mutably.
        unsafe { &mut *self.sc.0.get() }
    }
}

#[cfg(CONFIG_KUNIT)]
impl core::ops::Deref for TestControl<'_> {
    type Target = ShrinkControl;

    fn deref(&self) -> &ShrinkControl {
        &self.sc
    }
}

// Each of the first eight tests is about one point of the review that the first version of such an
// abstraction got, in 2024. Those named `core_...` have the core call the callbacks.
#[cfg(CONFIG_RUST_SHRINKER_KUNIT_TEST)]
#[crate::prelude::kunit_tests(rust_shrinker)]
pub(crate) mod tests {
    use super::*;
    use crate::{
        ffi::{
            c_char,
            c_int, //
        },
        memcontrol::tests::{pay_for_slabs, root},
        prelude::*,
        sync::{
            atomic::{
                Atomic,
                Full,
                Relaxed, //
            },
            new_mutex,
            Arc,
            ArcBorrow,
            Mutex, //
        },
        task::Pid,
        time::{
            delay::fsleep,
            Delta, //
        },
        workqueue, //
    };

    /// Runs `f`, and returns how many warnings it gave, which aren't shown.
    pub(crate) fn warnings(f: impl FnOnce()) -> i32 {
        // SAFETY: There are no requirements.
        let test = unsafe { bindings::kunit_get_current_test() };
        // SAFETY: This is a test, and one that suppresses no warnings yet.
        let suppressed = unsafe { bindings::kunit_start_suppress_warning(test) };
        f();
        // SAFETY: It was started above, and stays there until the end of the test.
        unsafe {
            bindings::kunit_end_suppress_warning(test, suppressed);
            bindings::kunit_suppressed_warning_count(suppressed)
        }
    }

    /// Marks the test as skipped, to be followed by a return. C: `kunit_mark_skipped`.
    pub(crate) fn skip(why: &CStr) {
        // SAFETY: This is a test; its status is its own.
        let test = unsafe { &mut *bindings::kunit_get_current_test() };

        test.status = bindings::kunit_status_KUNIT_SKIPPED;
        for (to, from) in test.status_comment.iter_mut().zip(why.to_bytes_with_nul()) {
            *to = *from as c_char;
        }
    }

    /// Answers what it is told to.
    struct Mock {
        count: Count,
        scan: Scan,
        nr_scanned: usize,
        drops: Arc<Atomic<usize>>,
    }

    impl Mock {
        fn new(count: Count, scan: Scan, nr_scanned: usize) -> Result<Arc<Self>> {
            let drops = Arc::new(Atomic::new(0), GFP_KERNEL)?;
            Ok(Arc::new(
                Self {
                    count,
                    scan,
                    nr_scanned,
                    drops,
                },
                GFP_KERNEL,
            )?)
        }
    }

    impl Drop for Mock {
        fn drop(&mut self) {
            self.drops.fetch_add(1, Full);
        }
    }

    #[vtable]
    impl Shrinker for Mock {
        type Context = Arc<Mock>;

        fn count_callback(mock: ArcBorrow<'_, Mock>, _sc: &ShrinkControl) -> Count {
            mock.count
        }

        fn scan_callback(mock: ArcBorrow<'_, Mock>, sc: &mut ShrinkControl) -> Scan {
            sc.set_nr_scanned(mock.nr_scanned);
            mock.scan
        }
    }

    fn alloc(flags: Flags) -> Result<UnregisteredShrinker> {
        UnregisteredShrinker::alloc(
            fmt!("kunit"),
            Options {
                flags,
                ..Options::default()
            },
        )
    }

    /// Calls a callback by the pointer that C has, and returns what C would get.
    fn call(
        registration: &Registration<Mock>,
        callback: impl FnOnce(&bindings::shrinker) -> CallbackFn,
    ) -> (c_ulong, bindings::shrink_control) {
        let mut sc = TestControl::new(128);
        let raw = registration.shrinker.as_ptr();
        // SAFETY: The shrinker is registered, and only what doesn't change any more is read.
        let callback = callback(unsafe { &*raw });
        // SAFETY: They are called with what they are to be called with.
        let ret = unsafe { callback(raw, sc.raw()) };
        (ret, *sc.raw())
    }

    type CallbackFn =
        unsafe extern "C" fn(*mut bindings::shrinker, *mut bindings::shrink_control) -> c_ulong;

    #[test]
    fn point_1_flags_are_passed() -> Result {
        let both = Flag::NumaAware | Flag::MemcgAware;

        for flags in [Flags::empty(), Flag::NumaAware.into(), both] {
            let shrinker = alloc(flags)?;
            // SAFETY: The shrinker is valid.
            let raw = unsafe { (*shrinker.as_raw()).flags };

            let numa_aware = raw & bindings::SHRINKER_NUMA_AWARE != 0;
            let memcg_aware = raw & bindings::SHRINKER_MEMCG_AWARE != 0;

            assert_eq!(numa_aware, flags.contains(Flag::NumaAware));
            // C clears it where it means nothing.
            let is_asked = flags.contains(Flag::MemcgAware);
            assert_eq!(memcg_aware, is_asked && pay_for_slabs());
            assert_eq!(shrinker.is_memcg_aware(), memcg_aware);
        }
        Ok(())
    }

    #[test]
    fn point_2_options_are_set_once() -> Result {
        let options = Options {
            flags: Flags::empty(),
            seeks: 0,
            batch: 32,
        };
        let shrinker = UnregisteredShrinker::alloc(fmt!("kunit"), options)?;
        let raw = shrinker.as_raw();

        // SAFETY: The shrinker is valid.
        assert_eq!(unsafe { ((*raw).seeks, (*raw).batch) }, (0, 32));
        let mock = Mock::new(Count::EMPTY, Scan::STOP, 0)?;
        let _registration: Registration<Mock> = shrinker.register(mock);
        // SAFETY: The shrinker is valid.
        assert_eq!(unsafe { ((*raw).seeks, (*raw).batch) }, (0, 32));

        let too_many = [(u32::MAX, 0), (0, usize::MAX)];
        for (seeks, batch) in too_many {
            let options = Options {
                seeks,
                batch,
                ..options
            };
            let shrinker = UnregisteredShrinker::alloc(fmt!("kunit"), options);
            assert_eq!(shrinker.err(), Some(EINVAL));
        }
        Ok(())
    }

    #[test]
    fn point_3_register_moves_the_pointer() -> Result {
        let shrinker = alloc(Flags::empty())?;
        let raw = shrinker.as_raw();
        let mock = Mock::new(Count::EMPTY, Scan::STOP, 0)?;
        let registration: Registration<Mock> = shrinker.register(mock);

        assert!(ptr::eq(registration.shrinker.as_ptr(), raw));
        assert_eq!(size_of::<Registration<Mock>>(), size_of::<*mut c_void>());
        assert_eq!(size_of::<UnregisteredShrinker>(), size_of::<*mut c_void>());
        Ok(())
    }

    #[test]
    fn point_4_empty_is_not_zero() -> Result {
        let answers = [
            (Count::EMPTY, usize::MAX - 1),
            (Count::NOT_NOW, 0),
            (Count::from_items(0), usize::MAX - 1),
            (Count::from_items(5), 5),
        ];
        for (count, raw) in answers {
            let mock = Mock::new(count, Scan::STOP, 0)?;
            let registration = alloc(Flags::empty())?.register(mock);
            assert_eq!(call(&registration, |s| s.count_objects.unwrap()).0, raw);
        }
        assert_eq!(Count::new(0), None);

        // Nor does a number become any of them, or another number, without a word.
        for n in [usize::MAX, usize::MAX - 1, Count::MAX + 1] {
            assert_eq!(Count::new(n), None);
            assert_eq!(
                warnings(|| assert_eq!(Count::from_items(n), Count::NOT_NOW)),
                1
            );
        }
        assert!(Count::new(Count::MAX).is_some());
        Ok(())
    }

    #[test]
    fn point_5_freed_is_not_clamped() -> Result {
        let most = usize::MAX - 2;
        let answers = [
            (Scan::STOP, usize::MAX),
            (Scan::freed(0), 0),
            (
                Scan::freed(isize::MAX as usize + 1),
                isize::MAX as usize + 1,
            ),
            (Scan::freed(most), most),
        ];
        for (scan, raw) in answers {
            // Nothing is freed here: it must not be called but by this test.
            let mock = Mock::new(Count::EMPTY, scan, 0)?;
            let registration = alloc(Flags::empty())?.register(mock);
            assert_eq!(call(&registration, |s| s.scan_objects.unwrap()).0, raw);
        }
        for n in [usize::MAX, usize::MAX - 1] {
            assert_eq!(Scan::new(n), None);
            assert_eq!(warnings(|| assert_eq!(Scan::freed(n), Scan::STOP)), 1);
        }
        Ok(())
    }

    #[test]
    fn point_6_nr_scanned_gets_through() -> Result {
        for nr_scanned in [0, 1, 128, 129, 100_000] {
            let mock = Mock::new(Count::EMPTY, Scan::freed(1), nr_scanned)?;
            let registration = alloc(Flags::empty())?.register(mock);
            let (freed, sc) = call(&registration, |s| s.scan_objects.unwrap());

            assert_eq!(freed, 1);
            assert_eq!(sc.nr_scanned, nr_scanned);
            assert_eq!(sc.nr_to_scan, 128);
        }
        // As long as it isn't set, it is what the core made it.
        assert_eq!(TestControl::new(128).nr_scanned(), 128);
        Ok(())
    }

    #[test]
    fn point_7_fs_and_io() {
        let controls = [
            (TestControl::new(1), true, true),
            (TestControl::new(1).nofs(), false, true),
            (TestControl::new(1).noio(), false, false),
        ];
        for (sc, fs, io) in controls {
            assert_eq!((sc.fs_allowed(), sc.io_allowed()), (fs, io));
        }
    }

    #[test]
    fn point_8_context_is_dropped_once_and_last() -> Result {
        let mock = Mock::new(Count::EMPTY, Scan::STOP, 0)?;
        let drops = mock.drops.clone();
        let registration: Registration<Mock> = alloc(Flags::empty())?.register(mock);
        let raw = registration.shrinker.as_ptr();

        // A callback is running, as far as C can tell.
        // SAFETY: The shrinker is registered.
        unsafe { bindings::refcount_inc(&raw mut (*raw).refcount) };

        workqueue::system_long().try_spawn(GFP_KERNEL, move || drop(registration))?;
        fsleep(Delta::from_millis(30));
        assert_eq!(drops.load(Relaxed), 0);

        // And now it has returned.
        // SAFETY: As this held a reference, the shrinker isn't freed yet.
        unsafe {
            if bindings::refcount_dec_and_test(&raw mut (*raw).refcount) {
                bindings::complete(&raw mut (*raw).done);
            }
        }
        for _ in 0..100 {
            if drops.load(Relaxed) == 1 {
                break;
            }
            fsleep(Delta::from_millis(10));
        }
        assert_eq!(drops.load(Relaxed), 1);
        Ok(())
    }

    #[test]
    fn name_is_no_format_string() -> Result {
        let shrinker = UnregisteredShrinker::alloc(fmt!("{}%s%n-{}", "a", 7), Options::default())?;

        #[cfg(CONFIG_SHRINKER_DEBUG)]
        // SAFETY: The name is a valid string as long as the shrinker is.
        let name = unsafe { CStr::from_char_ptr((*shrinker.as_raw()).name) };
        #[cfg(CONFIG_SHRINKER_DEBUG)]
        assert_eq!(name.to_bytes(), b"a%s%n-7");

        // Never registered: just freed.
        drop(shrinker);
        Ok(())
    }

    #[test]
    fn context_is_borrowed() -> Result {
        let mock = Mock::new(Count::EMPTY, Scan::freed(3), 9)?;
        let registration: Registration<Mock> = alloc(Flags::empty())?.register(mock.clone());
        assert!(ptr::eq(&*registration.context(), &*mock));

        let mut sc = TestControl::new(1);
        assert_eq!(
            Mock::count_callback(registration.context(), &sc),
            Count::EMPTY
        );
        assert_eq!(sc.scan::<Mock>(registration.context()), Scan::freed(3));
        assert_eq!(sc.nr_scanned(), 9);

        drop(registration);
        assert_eq!(mock.drops.load(Relaxed), 0);
        Ok(())
    }

    // The core's entry for page reclaim. Only mm may call it, it is declared in mm/internal.h.
    extern "C" {
        fn shrink_slab(
            gfp_mask: bindings::gfp_t,
            nid: c_int,
            memcg: *mut c_void,
            priority: c_int,
        ) -> c_ulong;
    }

    /// What to answer.
    #[derive(Clone, Copy)]
    struct Plan {
        count: Count,
        scan: Scan,
        /// How often `nr_to_scan` is said to have been scanned.
        cost: usize,
        /// How many scans come before that, of which it is said that they were nothing.
        for_free: usize,
    }

    const PLAN: Plan = Plan {
        count: Count(256),
        scan: Scan(0),
        cost: 1,
        for_free: 0,
    };

    /// What was asked.
    #[derive(Clone, Copy, Debug, Default, PartialEq)]
    struct Log {
        counts: usize,
        scans: usize,
        /// The greatest `nr_to_scan`.
        most: usize,
        fs_allowed: bool,
        io_allowed: bool,
    }

    /// Has the core call a shrinker of its own, and only for the sake of the test: other tasks that
    /// are short of memory meanwhile are turned away.
    #[pin_data]
    struct Scripted {
        task: Pid,
        #[pin]
        state: Mutex<(Plan, Log)>,
    }

    #[vtable]
    impl Shrinker for Scripted {
        type Context = Arc<Scripted>;

        fn count_callback(this: ArcBorrow<'_, Scripted>, sc: &ShrinkControl) -> Count {
            if current!().pid() != this.task {
                return Count::NOT_NOW;
            }
            let (plan, log) = &mut *this.state.lock();
            log.counts += 1;
            log.fs_allowed = sc.fs_allowed();
            log.io_allowed = sc.io_allowed();
            plan.count
        }

        fn scan_callback(this: ArcBorrow<'_, Scripted>, sc: &mut ShrinkControl) -> Scan {
            if current!().pid() != this.task {
                return Scan::STOP;
            }
            let (plan, log) = &mut *this.state.lock();
            log.scans += 1;
            log.most = log.most.max(sc.nr_to_scan());
            let cost = if log.scans > plan.for_free {
                plan.cost
            } else {
                0
            };
            sc.set_nr_scanned(cost * sc.nr_scanned());
            plan.scan
        }
    }

    /// One pass over 256 objects is 128 of work at [`PRIORITY`] and for two seeks: a quarter of the
    /// objects, times 4, by 2. That makes 4 scans.
    const BATCH: usize = 32;
    const PRIORITY: i32 = 2;

    impl Scripted {
        fn register(flags: Flags, seeks: u32) -> Result<Registration<Self>> {
            let init = pin_init!(Self {
                task: current!().pid(),
                state <- new_mutex!((PLAN, Log::default())),
            });
            let options = Options {
                flags,
                seeks,
                batch: BATCH,
            };
            let shrinker = UnregisteredShrinker::alloc(fmt!("kunit-core"), options)?;
            Ok(shrinker.register(Arc::pin_init(init, GFP_KERNEL)?))
        }
    }

    impl Registration<Scripted> {
        /// Lets the core make one pass over all shrinkers, as for an allocation with `gfp`. Returns
        /// what it asked of this one.
        fn pass_with(&self, plan: Plan, priority: i32, gfp: bindings::gfp_t) -> Log {
            *self.context().state.lock() = (plan, Log::default());

            let root = root();
            let memcg = root.as_ref().map_or(ptr::null_mut(), |root| root.as_raw());
            // SAFETY: There is a node 0, and the root memcg, if there are any. Nothing is locked.
            unsafe { shrink_slab(gfp, 0, memcg.cast(), priority) };

            self.context().state.lock().1
        }

        fn pass(&self, plan: Plan) -> Log {
            self.pass_with(plan, PRIORITY, bindings::GFP_KERNEL)
        }
    }

    #[test]
    fn core_obeys_options() -> Result {
        for (seeks, scans) in [(1, 8), (2, 4), (4, 2), (0, 4)] {
            let registration = Scripted::register(Flags::empty(), seeks)?;
            let log = registration.pass(PLAN);
            assert_eq!((log.counts, log.scans, log.most), (1, scans, BATCH));
        }

        // Without any seeks, it's half of them, whatever the priority.
        let registration = Scripted::register(Flags::empty(), 0)?;
        let log = registration.pass_with(PLAN, 12, bindings::GFP_KERNEL);
        assert_eq!(log.scans, 4);
        Ok(())
    }

    #[test]
    fn core_subtracts_nr_scanned() -> Result {
        let registration = Scripted::register(Flags::empty(), 2)?;

        for cost in [1, 2, 3, 4, 5, 1] {
            // More than there is to do leaves nothing, neither now nor for later.
            let scans = 128_usize.div_ceil(cost * BATCH);
            assert_eq!(registration.pass(Plan { cost, ..PLAN }).scans, scans);
        }

        // What wasn't scanned stays to be done.
        let for_free = 3;
        assert_eq!(registration.pass(Plan { for_free, ..PLAN }).scans, 3 + 4);
        Ok(())
    }

    #[test]
    fn core_puts_off_what_was_stopped() -> Result {
        let registration = Scripted::register(Flags::empty(), 2)?;
        assert_eq!(registration.pass(PLAN).scans, 4);

        let scan = Scan::STOP;
        assert_eq!(registration.pass(Plan { scan, ..PLAN }).scans, 1);
        // 128 were put off, a quarter of which is due now: one batch more.
        assert_eq!(registration.pass(PLAN).scans, 4 + 1);
        Ok(())
    }

    #[test]
    fn core_scans_neither_empty_nor_not_now() -> Result {
        let registration = Scripted::register(Flags::empty(), 2)?;
        let scan = Scan::STOP;
        assert_eq!(registration.pass(Plan { scan, ..PLAN }).scans, 1);

        for count in [Count::EMPTY, Count::NOT_NOW] {
            let log = registration.pass(Plan { count, ..PLAN });
            assert_eq!((log.counts, log.scans), (1, 0));
        }
        // What was put off before still is.
        assert_eq!(registration.pass(PLAN).scans, 4 + 1);
        Ok(())
    }

    #[test]
    fn core_leaves_less_than_a_batch_alone() -> Result {
        let registration = Scripted::register(Flags::empty(), 2)?;
        let plan = Plan {
            count: Count(10),
            ..PLAN
        };
        assert_eq!(registration.pass(plan).scans, 0);

        // Until memory is very short. Then it is twice as many as there are.
        let log = registration.pass_with(plan, 0, bindings::GFP_KERNEL);
        assert_eq!((log.scans, log.most), (1, 20));
        Ok(())
    }

    #[test]
    fn core_passes_gfp() -> Result {
        let registration = Scripted::register(Flag::NumaAware | Flag::MemcgAware, 2)?;
        let kernel = bindings::GFP_KERNEL;

        let flags = [
            (kernel, true, true),
            (kernel & !bindings::__GFP_FS, false, true),
            (
                kernel & !(bindings::__GFP_FS | bindings::__GFP_IO),
                false,
                false,
            ),
        ];
        for (gfp, fs, io) in flags {
            let log = registration.pass_with(PLAN, PRIORITY, gfp);
            assert_eq!((log.fs_allowed, log.io_allowed), (fs, io));
            assert_eq!((log.counts, log.scans), (1, 4));
        }
        Ok(())
    }

    #[test]
    fn made_up_control() {
        let sc = TestControl::new(5);
        assert_eq!((sc.nr_to_scan(), sc.nid()), (5, 0));
        assert!(sc.memcg().is_none());
        assert!(sc.with_nid(-1).is_err());
        assert!(TestControl::new(5).with_nid(i32::MAX).is_err());
    }
}
