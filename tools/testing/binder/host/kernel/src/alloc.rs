// SPDX-License-Identifier: GPL-2.0

//! Boxes and vectors that grow only when told to, and an allocator that fails and counts on demand.

use crate::{
    error::{
        Error,
        Result, //
    },
    faults::Left,
    sys, //
};
use pinned_init::PinInit;
use std::{
    boxed,
    cell::Cell,
    mem,
    ops::{
        Deref,
        DerefMut, //
    },
    pin::Pin,
    vec, //
};

/// An allocation failed.
#[derive(Debug)]
pub struct AllocError;

/// The vector was full.
#[derive(Debug)]
pub struct PushError<T>(pub T);

/// There was nothing to remove.
#[derive(Debug)]
pub struct RemoveError;

/// Allocation flags.
pub mod flags {
    use std::ops::{
        BitAnd,
        BitOr,
        Not, //
    };

    /// Allocation flags, of which one matters here.
    #[derive(Clone, Copy)]
    pub struct Flags(u32);

    impl Flags {
        pub(crate) fn contains(self, flags: Flags) -> bool {
            self.0 & flags.0 == flags.0
        }
    }

    impl BitOr for Flags {
        type Output = Self;

        fn bitor(self, rhs: Self) -> Self {
            Self(self.0 | rhs.0)
        }
    }

    impl BitAnd for Flags {
        type Output = Self;

        fn bitand(self, rhs: Self) -> Self {
            Self(self.0 & rhs.0)
        }
    }

    impl Not for Flags {
        type Output = Self;

        fn not(self) -> Self {
            Self(!self.0)
        }
    }

    pub const GFP_KERNEL: Flags = Flags(0);
    pub const GFP_KERNEL_ACCOUNT: Flags = Flags(0);
    pub const GFP_ATOMIC: Flags = Flags(0);
    pub const __GFP_HIGHMEM: Flags = Flags(0);
    pub const __GFP_NOWARN: Flags = Flags(0);
    pub const __GFP_RETRY_MAYFAIL: Flags = Flags(0);
    pub const __GFP_ZERO: Flags = Flags(1);
}
pub use self::flags::Flags;

sys::thread_local! {
    static LEFT: Left = Left::all();
    static SPINLOCKS: Cell<usize> = Cell::new(0);
}

/// Lets the next `n` allocations of this thread succeed and those after them fail.
pub fn fail_after(n: usize) {
    LEFT.with(|left| left.set(n));
}

/// How many allocations of this thread have succeeded since `fail_after(usize::MAX)`.
pub fn allocations() -> usize {
    LEFT.with(Left::used)
}

/// That a spinlock is held by this thread.
pub(crate) struct Spinning(());

impl Spinning {
    pub(crate) fn new() -> Self {
        SPINLOCKS.with(|count| count.set(count.get() + 1));
        Self(())
    }
}

impl Drop for Spinning {
    fn drop(&mut self) {
        // A test that has failed under loom may not be able to look at it any more.
        if !std::thread::panicking() {
            SPINLOCKS.with(|count| count.set(count.get() - 1));
        }
    }
}

/// Runs `f` as if under a spinlock: allocating or freeing memory panics.
pub fn locked<R>(f: impl FnOnce() -> R) -> R {
    let _spinning = Spinning::new();
    f()
}

pub(crate) fn may_sleep() {
    let spinlocks = SPINLOCKS.with(Cell::get);
    assert!(
        spinlocks == 0,
        "memory allocated or freed, or a message written, under a spinlock"
    );
}

/// What each allocation begins with.
pub(crate) fn allocate() -> Result<(), AllocError> {
    may_sleep();
    LEFT.with(Left::take).then_some(()).ok_or(AllocError)
}

/// A value in memory of its own.
pub struct KBox<T>(boxed::Box<T>);

impl<T> KBox<T> {
    pub fn new(value: T, _: Flags) -> Result<Self, AllocError> {
        allocate()?;
        Ok(Self(boxed::Box::new(value)))
    }

    pub fn pin_init<E>(init: impl PinInit<T, E>, _: Flags) -> Result<Pin<Self>>
    where
        Error: From<E>,
    {
        allocate()?;
        let mut this = boxed::Box::<T>::new_uninit();
        // SAFETY: The memory is valid for a `T`, and is treated as pinned from here on.
        unsafe {
            init.__pinned_init(this.as_mut_ptr())?;
            Ok(Pin::new_unchecked(Self(this.assume_init())))
        }
    }
}

impl<T> Deref for KBox<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for KBox<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

/// A vector that allocates only where flags are given.
#[derive(Debug)]
pub struct Vec<T>(vec::Vec<T>);

/// Stands for physically contiguous memory.
pub type KVec<T> = Vec<T>;

/// Stands for memory that is physically contiguous where that can be had.
pub type KVVec<T> = Vec<T>;

impl<T> Vec<T> {
    pub const fn new() -> Self {
        Self(vec::Vec::new())
    }

    pub fn with_capacity(capacity: usize, flags: Flags) -> Result<Self, AllocError> {
        let mut this = Self::new();
        this.reserve(capacity, flags)?;
        Ok(this)
    }

    pub fn into_raw_parts(mut self) -> (*mut T, usize, usize) {
        let mut vec = mem::ManuallyDrop::new(mem::take(&mut self.0));
        (vec.as_mut_ptr(), vec.len(), vec.capacity())
    }

    /// # Safety
    ///
    /// As the kernel's.
    pub unsafe fn from_raw_parts(ptr: *mut T, length: usize, capacity: usize) -> Self {
        // SAFETY: By the requirements of this function.
        Self(unsafe { vec::Vec::from_raw_parts(ptr, length, capacity) })
    }

    pub fn capacity(&self) -> usize {
        self.0.capacity()
    }

    pub fn reserve(&mut self, additional: usize, _: Flags) -> Result<(), AllocError> {
        if additional <= self.0.capacity() - self.0.len() {
            return Ok(());
        }
        allocate()?;
        self.0.reserve_exact(additional);
        Ok(())
    }

    pub fn push(&mut self, value: T, flags: Flags) -> Result<(), AllocError> {
        self.reserve(1, flags)?;
        self.0.push(value);
        Ok(())
    }

    pub fn push_within_capacity(&mut self, value: T) -> Result<(), PushError<T>> {
        if self.0.len() == self.0.capacity() {
            return Err(PushError(value));
        }
        self.0.push(value);
        Ok(())
    }

    pub fn insert_within_capacity(&mut self, i: usize, value: T) -> Result<(), PushError<T>> {
        if i > self.0.len() || self.0.len() == self.0.capacity() {
            return Err(PushError(value));
        }
        self.0.insert(i, value);
        Ok(())
    }

    pub fn remove(&mut self, i: usize) -> Result<T, RemoveError> {
        if i >= self.0.len() {
            return Err(RemoveError);
        }
        Ok(self.0.remove(i))
    }

    pub fn pop(&mut self) -> Option<T> {
        self.0.pop()
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }
}

impl<T> Default for Vec<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Drop for Vec<T> {
    fn drop(&mut self) {
        if self.0.capacity() > 0 && !std::thread::panicking() {
            may_sleep();
        }
    }
}

impl<T> IntoIterator for Vec<T> {
    type Item = T;
    type IntoIter = vec::IntoIter<T>;

    fn into_iter(mut self) -> Self::IntoIter {
        mem::take(&mut self.0).into_iter()
    }
}

impl<T> Deref for Vec<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T> DerefMut for Vec<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}
