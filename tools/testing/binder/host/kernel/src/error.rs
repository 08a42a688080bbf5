// SPDX-License-Identifier: GPL-2.0

//! Error codes.

use crate::alloc::{
    AllocError,
    PushError,
    RemoveError, //
};

/// An error number.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Error(i32);

impl Error {
    /// The number, which is negative.
    pub fn to_errno(self) -> i32 {
        self.0
    }
}

impl From<AllocError> for Error {
    fn from(_: AllocError) -> Self {
        code::ENOMEM
    }
}

impl From<core::convert::Infallible> for Error {
    fn from(never: core::convert::Infallible) -> Self {
        match never {}
    }
}

impl From<RemoveError> for Error {
    fn from(_: RemoveError) -> Self {
        code::EINVAL
    }
}

impl<T> From<PushError<T>> for Error {
    fn from(_: PushError<T>) -> Self {
        code::EINVAL
    }
}

/// A result whose error is an error number unless told otherwise.
pub type Result<T = (), E = Error> = core::result::Result<T, E>;

/// The errors that are used.
pub mod code {
    use super::Error;

    pub const EPERM: Error = Error(-1);
    pub const ENOENT: Error = Error(-2);
    pub const ESRCH: Error = Error(-3);
    pub const EINTR: Error = Error(-4);
    pub const ENOMEM: Error = Error(-12);
    pub const EFAULT: Error = Error(-14);
    pub const EBUSY: Error = Error(-16);
    pub const EINVAL: Error = Error(-22);
    pub const ENOSPC: Error = Error(-28);
}
