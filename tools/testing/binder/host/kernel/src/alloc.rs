// SPDX-License-Identifier: GPL-2.0

//! Vectors that grow only when told to, and an allocator that fails and counts on demand.

use std::{
    cell::Cell,
    ops::{
        Deref,
        DerefMut, //
    },
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
    /// Allocation flags.
    #[derive(Clone, Copy)]
    pub struct Flags(());

    pub const GFP_KERNEL: Flags = Flags(());
}

thread_local! {
    static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
    static LOCKED: Cell<bool> = const { Cell::new(false) };
}

/// Lets the next `n` allocations of this thread succeed and those after them fail.
pub fn fail_after(n: usize) {
    LEFT.set(n);
}

/// Runs `f` as if under a spinlock: allocating or freeing memory panics.
pub fn locked<R>(f: impl FnOnce() -> R) -> R {
    struct Unlock;
    impl Drop for Unlock {
        fn drop(&mut self) {
            LOCKED.set(false);
        }
    }
    assert!(!LOCKED.replace(true));
    let _unlock = Unlock;
    f()
}

fn may_sleep() {
    assert!(!LOCKED.get(), "memory allocated or freed under a spinlock");
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

    pub fn with_capacity(capacity: usize, flags: flags::Flags) -> Result<Self, AllocError> {
        let mut this = Self::new();
        this.reserve(capacity, flags)?;
        Ok(this)
    }

    pub fn capacity(&self) -> usize {
        self.0.capacity()
    }

    pub fn reserve(&mut self, additional: usize, _: flags::Flags) -> Result<(), AllocError> {
        if additional <= self.0.capacity() - self.0.len() {
            return Ok(());
        }
        may_sleep();
        LEFT.set(LEFT.get().checked_sub(1).ok_or(AllocError)?);
        self.0.reserve_exact(additional);
        Ok(())
    }

    pub fn push(&mut self, value: T, flags: flags::Flags) -> Result<(), AllocError> {
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
