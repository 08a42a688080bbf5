// SPDX-License-Identifier: GPL-2.0

//! Locks, condition variables, atomics and reference counts.

use crate::{
    alloc::{
        self,
        Flags,
        Spinning, //
    },
    error::{
        Error,
        Result, //
    },
    sys, task,
};
use pinned_init::PinInit;
use std::{
    ops::{
        Deref,
        DerefMut, //
    },
    ptr,
    sync, //
};

pub mod aref;
pub mod atomic;

pub mod lock {
    pub mod spinlock {
        pub use crate::sync::SpinLockGuard;
    }
}

pub mod rcu {
    /// That what RCU protects isn't freed.
    pub struct Guard(());

    pub fn read_lock() -> Guard {
        Guard(())
    }
}

/// A reference-counted value.
pub struct Arc<T>(sync::Arc<T>);

impl<T> Arc<T> {
    pub fn as_ptr(this: &Self) -> *const T {
        sync::Arc::as_ptr(&this.0)
    }

    pub fn pin_init<E>(init: impl PinInit<T, E>, _: Flags) -> Result<Self>
    where
        Error: From<E>,
    {
        alloc::allocate()?;
        let mut this = sync::Arc::<T>::new_uninit();
        if let Some(slot) = sync::Arc::get_mut(&mut this) {
            // SAFETY: The memory is valid for a `T`, and is treated as pinned from here on.
            unsafe { init.__pinned_init(slot.as_mut_ptr())? };
        }
        // SAFETY: It has just been initialized.
        Ok(Self(unsafe { this.assume_init() }))
    }

    pub fn as_arc_borrow(&self) -> ArcBorrow<'_, T> {
        ArcBorrow(&self.0)
    }

    /// How many references there are.
    pub fn count(this: &Self) -> usize {
        sync::Arc::strong_count(&this.0)
    }
}

impl<T> Clone for Arc<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Deref for Arc<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// A borrowed [`Arc`].
pub struct ArcBorrow<'a, T>(&'a T);

impl<T> ArcBorrow<'_, T> {
    /// # Safety
    ///
    /// As the kernel's.
    pub unsafe fn from_raw(value: *const T) -> Self {
        // SAFETY: By the requirements of this function.
        Self(unsafe { &*value })
    }
}

impl<T> Clone for ArcBorrow<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for ArcBorrow<'_, T> {}

impl<T> Deref for ArcBorrow<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0
    }
}

impl<T> From<ArcBorrow<'_, T>> for Arc<T> {
    fn from(borrow: ArcBorrow<'_, T>) -> Self {
        let value = ptr::from_ref(borrow.0);
        // SAFETY: The value is in an `Arc`, by the only ways to get an `ArcBorrow`.
        Self(unsafe {
            sync::Arc::increment_strong_count(value);
            sync::Arc::from_raw(value)
        })
    }
}

/// A spinlock. While one is held, no memory may be allocated.
pub struct SpinLock<T>(sys::Mutex<T>);

/// A spinlock that is held.
///
/// Without the inner guard while it is waited for a condition.
pub struct SpinLockGuard<'a, T>(Option<(sys::MutexGuard<'a, T>, Spinning)>);

impl<T> SpinLock<T> {
    pub fn new(value: T) -> Self {
        Self(sys::Mutex::new(value))
    }

    pub fn lock(&self) -> SpinLockGuard<'_, T> {
        SpinLockGuard(Some((self.0.lock().unwrap(), Spinning::new())))
    }

    pub fn try_lock(&self) -> Option<SpinLockGuard<'_, T>> {
        let guard = self.0.try_lock().ok()?;
        Some(SpinLockGuard(Some((guard, Spinning::new()))))
    }
}

impl<T> Deref for SpinLockGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.as_ref().unwrap().0
    }
}

impl<T> DerefMut for SpinLockGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0.as_mut().unwrap().0
    }
}

#[macro_export]
macro_rules! new_spinlock {
    ($value:expr, $name:literal) => {
        $crate::sync::SpinLock::new($value)
    };
}

/// A condition variable.
pub struct CondVar(sys::Condvar);

impl CondVar {
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self(sys::Condvar::new())
    }

    /// A thread that was killed doesn't wait at all.
    pub fn wait_killable<T>(&self, guard: &mut SpinLockGuard<'_, T>) -> bool {
        if !task::is_killed() {
            self.wait(guard);
        }
        task::is_killed()
    }

    fn wait<T>(&self, guard: &mut SpinLockGuard<'_, T>) {
        let (inner, spinning) = guard.0.take().unwrap();
        drop(spinning);
        let inner = self.0.wait(inner).unwrap();
        guard.0 = Some((inner, Spinning::new()));
    }

    pub fn notify_one(&self) {
        self.0.notify_one();
    }

    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}

#[macro_export]
macro_rules! new_condvar {
    ($name:literal) => {
        $crate::sync::CondVar::new()
    };
}
