// SPDX-License-Identifier: GPL-2.0

//! Lists of items in the order of their last use: a single one, as if there were one NUMA node and
//! all belonged to the same memory cgroup.

use crate::{
    alloc::{
        Flags,
        Spinning, //
    },
    error::Result,
    memcontrol::RcuMemCgroup,
    page::Page,
    shrinker::ShrinkControl,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        rcu, //
    },
    sys, //
};
use pinned_init::PinInit;
use std::{
    collections::VecDeque,
    marker::PhantomData,
    ptr, //
};

/// Says of an item that it is in a list, and is as large as the kernel's.
pub struct LruLinks {
    linked: Atomic<usize>,
    _prev: usize,
}

impl LruLinks {
    #[allow(clippy::new_ret_no_self)]
    pub fn new() -> impl PinInit<Self> {
        Self {
            linked: Atomic::new(0),
            _prev: 0,
        }
    }

    pub fn is_linked(&self) -> bool {
        self.linked.load(Relaxed) != 0
    }

    fn set(&self, linked: bool) {
        self.linked.store(linked.into(), Relaxed);
    }
}

impl Drop for LruLinks {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(!self.is_linked(), "an item was dropped while it was linked");
        }
    }
}

/// An item that can be in a [`ListLru`].
pub trait LruItem {
    fn links(&self) -> &LruLinks;
    fn nid(&self) -> i32;
    fn memcg<'a>(&'a self, guard: &'a rcu::Guard) -> Option<&'a RcuMemCgroup>;
}

#[macro_export]
macro_rules! impl_lru_item {
    (
        unsafe impl LruItem for $self:ty {
            using LruLinks { self.$field:ident };
            $($methods:tt)*
        }
    ) => {
        impl $crate::list_lru::LruItem for $self {
            fn links(&self) -> &$crate::list_lru::LruLinks {
                &self.$field
            }

            $($methods)*
        }
    };
}
pub use impl_lru_item;

/// A list of items.
pub struct ListLru<T>(sys::Mutex<VecDeque<*const T>>);

// SAFETY: As the kernel's.
unsafe impl<T: Sync> Send for ListLru<T> {}
// SAFETY: As the kernel's.
unsafe impl<T: Sync> Sync for ListLru<T> {}

struct Guard<'a, T>(sys::MutexGuard<'a, VecDeque<*const T>>, Spinning);

impl<T: LruItem> ListLru<T> {
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self(sys::Mutex::new(VecDeque::new()))
    }

    fn lock(&self) -> Guard<'_, T> {
        Guard(self.0.lock().unwrap(), Spinning::new())
    }

    pub fn count(&self, _: &ShrinkControl) -> usize {
        self.lock().0.len()
    }

    pub fn count_node(&self, _: i32) -> usize {
        self.lock().0.len()
    }

    pub fn alloc_heads_for_page(&self, _: &Page, _: Flags) -> Result {
        Ok(())
    }

    /// # Safety
    ///
    /// As the kernel's.
    pub unsafe fn add(&self, item: &T) -> bool {
        // SAFETY: By the requirements of this function.
        unsafe { self.add_many([item].into_iter()) == 1 }
    }

    /// # Safety
    ///
    /// As the kernel's.
    pub unsafe fn add_many<'a>(&self, items: impl Iterator<Item = &'a T>) -> usize
    where
        T: 'a,
    {
        let mut list = None;
        let mut added = 0;
        for item in items {
            // Which list it is in depends on it.
            item.nid();
            item.memcg(&rcu::read_lock());
            let list = list.get_or_insert_with(|| self.lock());
            if !item.links().is_linked() {
                item.links().set(true);
                list.0.push_back(item);
                added += 1;
            }
        }
        added
    }

    /// # Safety
    ///
    /// As the kernel's.
    pub unsafe fn del(&self, item: &T) -> bool {
        // SAFETY: By the requirements of this function.
        unsafe { self.del_many([item].into_iter()) == 1 }
    }

    /// # Safety
    ///
    /// As the kernel's.
    pub unsafe fn del_many<'a>(&self, items: impl Iterator<Item = &'a T>) -> usize
    where
        T: 'a,
    {
        let mut list = None;
        let mut removed = 0;
        for item in items {
            // Which list it is in depends on it.
            item.nid();
            item.memcg(&rcu::read_lock());
            let list = list.get_or_insert_with(|| self.lock());
            if item.links().is_linked() {
                let nth = list.0.iter().position(|&other| ptr::eq(other, item));
                list.0.remove(nth.expect("linked to another list"));
                item.links().set(false);
                removed += 1;
            }
        }
        removed
    }

    pub fn walk<F>(&self, _: &ShrinkControl, nr_to_walk: &mut usize, mut cb: F) -> usize
    where
        F: for<'a> FnMut(LruCursor<'a, T>) -> Verdict<'a>,
    {
        for &item in self.lock().0.iter().take(*nr_to_walk) {
            *nr_to_walk -= 1;
            // SAFETY: Items in the list are valid.
            cb(LruCursor(unsafe { &*item }));
        }
        // None can be removed yet.
        0
    }
}

impl<T> Drop for ListLru<T> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let list = self.0.lock().unwrap();
            assert!(list.is_empty(), "items were left in a list");
        }
    }
}

/// An item in a list that is locked.
pub struct LruCursor<'a, T>(&'a T);

/// What became of an item.
pub struct Verdict<'a>(PhantomData<&'a mut ()>);

impl<'a, T> LruCursor<'a, T> {
    pub fn item(&self) -> &T {
        self.0
    }

    pub fn skip(self) -> Verdict<'a> {
        Verdict(PhantomData)
    }
}
