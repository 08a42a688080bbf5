// SPDX-License-Identifier: GPL-2.0

//! What the stand-ins are made of: loom's under `--cfg loom`, std's otherwise.

#[cfg(not(loom))]
pub(crate) use std::{
    sync::{
        atomic::{
            AtomicUsize,
            Ordering, //
        },
        Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard,
    },
    thread_local,
};

#[cfg(loom)]
pub(crate) use self::locks::{
    Condvar,
    Mutex,
    MutexGuard,
    RwLock,
    RwLockReadGuard, //
};
#[cfg(loom)]
pub(crate) use loom::{
    sync::atomic::{
        AtomicUsize,
        Ordering, //
    },
    thread_local,
};

/// Locks made of loom's.
///
/// In loom 0.7, whoever is about to try a lock waits for it as soon as another thread gets it, and
/// so is in a deadlock where it would only have failed. The locks of loom that these are made of
/// are held for a moment only, and are never tried.
#[cfg(loom)]
mod locks {
    use loom::sync;
    use std::{
        cell::UnsafeCell,
        ops::{
            Deref,
            DerefMut, //
        },
        thread::panicking,
    };

    /// How many readers a lock has, or [`WRITER`], and how many threads wait for it.
    #[derive(Default)]
    struct State {
        holders: usize,
        waiters: usize,
    }

    const WRITER: usize = usize::MAX;

    impl State {
        fn acquire(&mut self, write: bool) -> bool {
            match (self.holders, write) {
                (0, true) => self.holders = WRITER,
                (WRITER, _) | (_, true) => return false,
                _ => self.holders += 1,
            }
            true
        }
    }

    pub(crate) struct RwLock<T> {
        state: sync::Mutex<State>,
        released: sync::Condvar,
        value: UnsafeCell<T>,
    }

    // SAFETY: As for any lock.
    unsafe impl<T: Send> Send for RwLock<T> {}
    // SAFETY: As for any lock.
    unsafe impl<T: Send + Sync> Sync for RwLock<T> {}

    impl<T> RwLock<T> {
        pub(crate) fn new(value: T) -> Self {
            Self {
                state: sync::Mutex::default(),
                released: sync::Condvar::new(),
                value: UnsafeCell::new(value),
            }
        }

        fn acquire(&self, write: bool) {
            let mut state = self.state.lock().unwrap();
            while !state.acquire(write) {
                state.waiters += 1;
                state = self.released.wait(state).unwrap();
                state.waiters -= 1;
            }
        }

        fn try_acquire(&self, write: bool) -> Result<(), ()> {
            self.state
                .lock()
                .unwrap()
                .acquire(write)
                .then_some(())
                .ok_or(())
        }

        fn release(&self) {
            // A test that has failed may not be able to use loom's locks any more.
            if panicking() {
                return;
            }
            let mut state = self.state.lock().unwrap();
            state.holders = if state.holders == WRITER {
                0
            } else {
                state.holders - 1
            };
            if state.holders == 0 && state.waiters != 0 {
                self.released.notify_all();
            }
        }

        pub(crate) fn read(&self) -> Result<RwLockReadGuard<'_, T>, ()> {
            self.acquire(false);
            Ok(RwLockReadGuard(self))
        }

        pub(crate) fn try_read(&self) -> Result<RwLockReadGuard<'_, T>, ()> {
            self.try_acquire(false)?;
            Ok(RwLockReadGuard(self))
        }

        pub(crate) fn write(&self) -> Result<RwLockWriteGuard<'_, T>, ()> {
            self.acquire(true);
            Ok(RwLockWriteGuard(self))
        }
    }

    pub(crate) struct RwLockReadGuard<'a, T>(&'a RwLock<T>);

    impl<T> Deref for RwLockReadGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            // SAFETY: While there are readers, nobody writes.
            unsafe { &*self.0.value.get() }
        }
    }

    impl<T> Drop for RwLockReadGuard<'_, T> {
        fn drop(&mut self) {
            self.0.release();
        }
    }

    pub(crate) struct RwLockWriteGuard<'a, T>(&'a RwLock<T>);

    impl<T> Deref for RwLockWriteGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            // SAFETY: While there is a writer, there is nobody else.
            unsafe { &*self.0.value.get() }
        }
    }

    impl<T> DerefMut for RwLockWriteGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            // SAFETY: While there is a writer, there is nobody else.
            unsafe { &mut *self.0.value.get() }
        }
    }

    impl<T> Drop for RwLockWriteGuard<'_, T> {
        fn drop(&mut self) {
            self.0.release();
        }
    }

    pub(crate) struct Mutex<T>(RwLock<T>);

    pub(crate) type MutexGuard<'a, T> = RwLockWriteGuard<'a, T>;

    // SAFETY: As for any lock.
    unsafe impl<T: Send> Sync for Mutex<T> {}

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(RwLock::new(value))
        }

        pub(crate) fn lock(&self) -> Result<MutexGuard<'_, T>, ()> {
            self.0.write()
        }

        pub(crate) fn try_lock(&self) -> Result<MutexGuard<'_, T>, ()> {
            self.0.try_acquire(true)?;
            Ok(RwLockWriteGuard(&self.0))
        }
    }

    pub(crate) struct Condvar {
        /// Held from before the lock that the condition is about is released until the wait begins,
        /// so that no notification gets lost.
        waiting: sync::Mutex<()>,
        notified: sync::Condvar,
    }

    impl Condvar {
        pub(crate) fn new() -> Self {
            Self {
                waiting: sync::Mutex::new(()),
                notified: sync::Condvar::new(),
            }
        }

        pub(crate) fn wait<'a, T>(
            &self,
            guard: MutexGuard<'a, T>,
        ) -> Result<MutexGuard<'a, T>, ()> {
            let lock = guard.0;
            let waiting = self.waiting.lock().unwrap();
            drop(guard);
            drop(self.notified.wait(waiting).unwrap());
            lock.write()
        }

        pub(crate) fn notify_one(&self) {
            let _waiting = self.waiting.lock().unwrap();
            self.notified.notify_one();
        }

        pub(crate) fn notify_all(&self) {
            let _waiting = self.waiting.lock().unwrap();
            self.notified.notify_all();
        }
    }
}
