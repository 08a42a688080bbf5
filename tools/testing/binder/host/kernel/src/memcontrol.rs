// SPDX-License-Identifier: GPL-2.0

//! Memory cgroups: each has a number of pages.

use crate::{
    bindings,
    mm::Mm,
    page::Page,
    sync::{
        aref::{
            ARef,
            AlwaysRefCounted, //
        },
        rcu, //
    },
    sys, //
};
use std::{
    cell::RefCell,
    ops::Deref,
    ptr,
    sync::{
        atomic::{
            AtomicUsize,
            Ordering::SeqCst, //
        },
        Arc,
    },
};

/// A memcg that is known to exist, but perhaps not for long.
pub struct RcuMemCgroup {
    charged: AtomicUsize,
}

impl PartialEq for RcuMemCgroup {
    fn eq(&self, other: &Self) -> bool {
        ptr::eq(self, other)
    }
}

pub struct MemCgroup(RcuMemCgroup);

impl Deref for MemCgroup {
    type Target = RcuMemCgroup;

    fn deref(&self) -> &RcuMemCgroup {
        &self.0
    }
}

impl AlwaysRefCounted for MemCgroup {}

impl MemCgroup {
    pub fn new() -> ARef<Self> {
        ARef::from_arc(Arc::new(Self(RcuMemCgroup {
            charged: AtomicUsize::new(0),
        })))
    }

    /// How many pages are charged to it.
    pub fn charged(&self) -> usize {
        self.charged.load(SeqCst)
    }

    pub fn from_mm(mm: &Mm) -> Option<ARef<Self>> {
        Some(mm.memcg.clone())
    }

    pub fn of_page<'rcu>(page: &Page, _: &'rcu rcu::Guard) -> Option<&'rcu RcuMemCgroup> {
        let memcg: *const RcuMemCgroup = &**page.raw().memcg.as_deref()?;
        // SAFETY: A page that may be asked about lives as long as the guard, and its memcg as long
        // as the page.
        Some(unsafe { &*memcg })
    }

    pub fn with_active<R>(memcg: Option<&Self>, f: impl FnOnce() -> R) -> R {
        let old = ACTIVE.with(|active| active.replace(memcg.map(ARef::from)));
        let result = f();
        ACTIVE.with(|active| *active.borrow_mut() = old);
        result
    }
}

sys::thread_local! {
    static ACTIVE: RefCell<Option<ARef<MemCgroup>>> = RefCell::new(None);
}

/// Charges a page to the active memcg.
pub(crate) fn charge() -> Option<ARef<MemCgroup>> {
    let memcg = ACTIVE.with(|active| active.borrow().clone());
    if let Some(memcg) = &memcg {
        memcg.charged.fetch_add(1, SeqCst);
    }
    memcg
}

pub(crate) fn uncharge(page: &bindings::page) {
    if let Some(memcg) = &page.memcg {
        memcg.charged.fetch_sub(1, SeqCst);
    }
}
