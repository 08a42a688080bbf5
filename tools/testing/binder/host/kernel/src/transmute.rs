// SPDX-License-Identifier: GPL-2.0

//! Types that any bytes will do for.

/// # Safety
///
/// All bit patterns are valid values.
pub unsafe trait FromBytes {}

macro_rules! impl_from_bytes {
    ($($t:ty),*) => {$(
        // SAFETY: It is an integer.
        unsafe impl FromBytes for $t {}
    )*};
}

impl_from_bytes!(u8, u16, u32, u64, usize, i8, i16, i32, i64, isize);
