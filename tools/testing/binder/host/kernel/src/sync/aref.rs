// SPDX-License-Identifier: GPL-2.0

//! References to what counts its references itself.

use std::{
    ops::Deref,
    ptr,
    sync::Arc, //
};

/// A type whose values are all in an [`Arc`] here.
pub trait AlwaysRefCounted {
    /// A reference comes into being.
    fn inc(&self) {}

    /// A reference goes away.
    fn dec(&self) {}
}

/// A counted reference.
pub struct ARef<T: AlwaysRefCounted>(Arc<T>);

impl<T: AlwaysRefCounted> ARef<T> {
    /// Takes a reference that has been counted by [`AlwaysRefCounted::inc`] already.
    pub(crate) fn from_arc(arc: Arc<T>) -> Self {
        Self(arc)
    }

    /// # Safety
    ///
    /// `value` must be in an [`Arc`], with a layout that a `T` can be had from, and must have been
    /// counted already.
    pub(crate) unsafe fn from_counted(value: *const T) -> Self {
        // SAFETY: By the requirements of this function.
        Self(unsafe {
            Arc::increment_strong_count(value);
            Arc::from_raw(value)
        })
    }

    /// How many references there are to the value as whatever type.
    pub fn count(&self) -> usize {
        Arc::strong_count(&self.0)
    }
}

impl<T: AlwaysRefCounted> From<&T> for ARef<T> {
    fn from(value: &T) -> Self {
        value.inc();
        // SAFETY: By the definition of the trait.
        unsafe { Self::from_counted(ptr::from_ref(value)) }
    }
}

impl<T: AlwaysRefCounted> Clone for ARef<T> {
    fn clone(&self) -> Self {
        Self::from(&**self)
    }
}

impl<T: AlwaysRefCounted> Deref for ARef<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: AlwaysRefCounted> Drop for ARef<T> {
    fn drop(&mut self) {
        self.0.dec();
    }
}
