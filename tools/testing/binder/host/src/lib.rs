// SPDX-License-Identifier: GPL-2.0

//! Host tests of the Binder allocator's data structures.

#[cfg(test)]
mod alloc;
