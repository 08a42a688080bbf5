// SPDX-License-Identifier: GPL-2.0

//! Memory of userspace.

use crate::error::{
    code::EFAULT,
    Result, //
};
use std::mem::MaybeUninit;

/// Reads bytes of userspace, one after the other.
pub struct UserSliceReader<'a>(pub &'a [u8]);

impl UserSliceReader<'_> {
    /// Reads as many bytes as `out` has room for.
    ///
    /// # Errors
    ///
    /// `EFAULT`: there aren't that many.
    pub fn read_raw(&mut self, out: &mut [MaybeUninit<u8>]) -> Result {
        let (bytes, rest) = self.0.split_at_checked(out.len()).ok_or(EFAULT)?;
        for (out, &byte) in out.iter_mut().zip(bytes) {
            out.write(byte);
        }
        self.0 = rest;
        Ok(())
    }
}
