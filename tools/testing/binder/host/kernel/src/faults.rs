// SPDX-License-Identifier: GPL-2.0

//! Calls that succeed a number of times, and fail after that.

use std::cell::Cell;

/// How many calls of one kind succeed still. Each thread has its own number.
pub(crate) struct Left(Cell<usize>);

impl Left {
    pub(crate) fn all() -> Self {
        Self(Cell::new(usize::MAX))
    }

    /// Lets the next `n` calls succeed and those after them fail.
    pub(crate) fn set(&self, n: usize) {
        self.0.set(n);
    }

    /// How many calls have succeeded since `set(usize::MAX)`.
    pub(crate) fn used(&self) -> usize {
        usize::MAX - self.0.get()
    }

    /// Whether this call succeeds.
    pub(crate) fn take(&self) -> bool {
        let left = self.0.get().checked_sub(1);
        self.0.set(left.unwrap_or(0));
        left.is_some()
    }
}
