// SPDX-License-Identifier: GPL-2.0

//! Debug files.

use std::cell::RefCell;

/// A file that is being read, and what is in there so far.
#[derive(Default)]
pub struct SeqFile(pub RefCell<String>);

impl SeqFile {
    pub fn has_overflowed(&self) -> bool {
        false
    }
}

/// Prints to a [`SeqFile`].
#[macro_export]
macro_rules! seq_print {
    ($m:expr, $($arg:tt)+) => {
        $m.0.borrow_mut().push_str(&format!($($arg)+))
    };
}
pub use seq_print;
