// SPDX-License-Identifier: GPL-2.0

//! Rate limits.
//!
//! What userspace can make happen as often as it likes mustn't be told each time: a message of
//! which there can be many has a [`RateLimit`], most easily by [`pr_info_ratelimited!`].
//!
//! C header: [`include/linux/ratelimit.h`](srctree/include/linux/ratelimit.h)
//!
//! [`pr_info_ratelimited!`]: crate::pr_info_ratelimited!

use crate::{
    bindings,
    prelude::*,
    sync::atomic::{
        Acquire,
        Atomic,
        Relaxed,
        Release, //
    },
    types::Opaque, //
};

/// Nobody has asked yet.
const NEW: u32 = 0;
/// Somebody makes the state.
const BUSY: u32 = 1;
/// The state is there.
const READY: u32 = 2;

/// How often something may happen: ten times in five seconds, as with the `*_ratelimited()` macros
/// of C.
///
/// How often it didn't is told when the next five seconds begin.
///
/// # Examples
///
/// ```
/// use kernel::ratelimit::RateLimit;
///
/// static LIMIT: RateLimit = RateLimit::new();
///
/// let allowed = (0..100).filter(|_| LIMIT.allows(c"an example")).count();
/// assert_eq!(allowed, 10);
/// ```
///
/// # Invariants
///
/// `stage` is first `NEW`, then `BUSY`, then `READY`. While it is `BUSY`, the one thread
/// that made it so has `state` for itself. When it is `READY`, `state` has been initialized.
pub struct RateLimit {
    state: Opaque<bindings::ratelimit_state>,
    stage: Atomic<u32>,
}

// SAFETY: The state can be used from any thread.
unsafe impl Send for RateLimit {}
// SAFETY: By the type invariants one thread at a time initializes the state, and nobody uses it
// before. Afterwards there is a lock in it.
unsafe impl Sync for RateLimit {}

impl RateLimit {
    /// Makes a rate limit, most often for a `static`.
    #[expect(clippy::new_without_default)]
    pub const fn new() -> Self {
        // INVARIANT: Nobody has asked yet.
        Self {
            state: Opaque::uninit(),
            stage: Atomic::new(NEW),
        }
    }

    /// Whether it may happen now.
    ///
    /// If not, that is counted, and told later with `name`.
    ///
    /// Can be called in any context.
    pub fn allows(&self, name: &CStr) -> bool {
        if self.stage.load(Acquire) != READY && !self.init() {
            return false;
        }
        // SAFETY: By the type invariants the state has been initialized. `name` is a C string.
        unsafe { bindings::___ratelimit(self.state.get(), name.as_char_ptr()) != 0 }
    }

    /// Makes the state. Says whether it is there: if another thread makes it at this moment, then
    /// that thread is allowed what this one isn't.
    #[cold]
    fn init(&self) -> bool {
        // A lock can't be made by a constant expression. No context is too strict for this one.
        match self.stage.cmpxchg(NEW, BUSY, Relaxed) {
            Ok(_) => {
                // INVARIANT: This is the one thread that has the state for itself.
                // SAFETY: The pointer is valid, and nobody else uses it.
                unsafe { bindings::ratelimit_default_init(self.state.get()) };
                // INVARIANT: The state has been initialized.
                self.stage.store(READY, Release);
                true
            }
            Err(_) => self.stage.load(Acquire) == READY,
        }
    }
}

/// Prints an info-level message, but not more often than a [`RateLimit`] of its own allows.
///
/// Equivalent to the kernel's `pr_info_ratelimited` macro.
///
/// [`RateLimit`]: crate::ratelimit::RateLimit
///
/// # Examples
///
/// ```
/// for number in 0..3 {
///     kernel::pr_info_ratelimited!("{number} of 3\n");
/// }
/// ```
#[macro_export]
macro_rules! pr_info_ratelimited (
    ($($arg:tt)*) => ({
        static LIMIT: $crate::ratelimit::RateLimit = $crate::ratelimit::RateLimit::new();
        let name = $crate::c_str!(::core::concat!(::core::module_path!(), ":", ::core::line!()));
        if LIMIT.allows(name) {
            $crate::pr_info!($($arg)*);
        }
    })
);
