// SPDX-License-Identifier: GPL-2.0

//! The shrinker of idle buffer pages: one LRU for all processes, by memory cgroup and NUMA node.

use kernel::{
    list_lru::new_list_lru,
    prelude::*,
    shrinker::{
        Count,
        Flag,
        Options,
        Scan,
        ShrinkControl,
        Shrinker,
        UnregisteredShrinker, //
    },
    sync::{
        Arc,
        ArcBorrow,
        SetOnce, //
    }, //
};

use crate::alloc::{reclaim, IdleLru};

/// Set when the module is initialised, before the first process can come.
static IDLE_LRU: SetOnce<Arc<IdleLru>> = SetOnce::new();

/// How many pages the core asks for at a time at least. Few processes have as many idle ones as its
/// default, 128, and below that it would have to come back several times to get any.
const BATCH: usize = 32;

pub(crate) struct IdlePages;

/// Keeps the shrinker registered.
pub(crate) type Registration = kernel::shrinker::Registration<IdlePages>;

#[vtable]
impl Shrinker for IdlePages {
    type Context = Arc<IdleLru>;

    fn count_callback(lru: ArcBorrow<'_, IdleLru>, sc: &ShrinkControl) -> Count {
        Count::from_items(lru.count(sc))
    }

    fn scan_callback(lru: ArcBorrow<'_, IdleLru>, sc: &mut ShrinkControl) -> Scan {
        reclaim::scan(&lru, sc)
    }
}

/// Registers the shrinker, and makes the LRU that [`idle_lru`] gives out.
///
/// # Errors
///
/// `ENOMEM`.
pub(crate) fn register() -> Result<Registration> {
    let options = Options {
        flags: Flag::MemcgAware | Flag::NumaAware,
        batch: BATCH,
        ..Options::default()
    };
    let shrinker = UnregisteredShrinker::alloc(fmt!("android-binder"), options)?;
    let lru = Arc::pin_init(new_list_lru!(&shrinker), GFP_KERNEL)?;
    IDLE_LRU.populate(lru.clone());
    Ok(shrinker.register(lru))
}

/// The LRU for the idle pages of a new process.
///
/// # Errors
///
/// `ENODEV` before [`register`].
pub(crate) fn idle_lru() -> Result<Arc<IdleLru>> {
    IDLE_LRU.as_ref().cloned().ok_or(ENODEV)
}
