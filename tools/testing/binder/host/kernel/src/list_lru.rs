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
        let mut list = self.lock();
        if !item.links().is_linked() {
            return false;
        }
        let nth = list.0.iter().position(|&other| ptr::eq(other, item));
        list.0.remove(nth.expect("linked to another list"));
        item.links().set(false);
        true
    }

    pub fn walk<F>(&self, _: &ShrinkControl, nr_to_walk: &mut usize, mut cb: F) -> usize
    where
        F: for<'a> FnMut(LruCursor<'a, T>) -> Verdict<'a>,
    {
        let mut removed = 0;
        let mut walk = Walk {
            list: Some(self.lock()),
            nth: 0,
        };
        while let Some(Guard(list, _)) = &walk.list {
            if walk.nth >= list.len() || *nr_to_walk == 0 {
                break;
            }
            *nr_to_walk -= 1;
            // What comes after the last one is the end, whatever is appended to the list.
            let is_last = walk.nth + 1 == list.len();
            match cb(LruCursor(&mut walk)).0 {
                Kind::Removed => removed += 1,
                Kind::Rotated if is_last => break,
                Kind::Rotated => {}
                Kind::Skipped => walk.nth += 1,
                Kind::Retry => {
                    walk.list = Some(self.lock());
                    walk.nth = 0;
                }
                Kind::Stop => break,
            }
        }
        removed
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

/// A walk that has come to an item.
struct Walk<'a, T> {
    /// [`None`] while it isn't locked.
    list: Option<Guard<'a, T>>,
    nth: usize,
}

impl<T> Walk<'_, T> {
    fn list(&mut self) -> &mut VecDeque<*const T> {
        &mut self.list.as_mut().unwrap().0
    }
}

/// A [`Walk`], whatever its lifetime.
trait Place<T> {
    fn item(&self) -> &T;
    fn remove(&mut self);
    fn rotate(&mut self);
    fn unlock(&mut self);
}

impl<T: LruItem> Place<T> for Walk<'_, T> {
    fn item(&self) -> &T {
        let Guard(list, _) = self.list.as_ref().unwrap();
        // SAFETY: Items in the list are valid.
        unsafe { &*list[self.nth] }
    }

    fn remove(&mut self) {
        self.item().links().set(false);
        let nth = self.nth;
        self.list().remove(nth);
    }

    fn rotate(&mut self) {
        let nth = self.nth;
        let item = self.list().remove(nth);
        self.list().extend(item);
    }

    fn unlock(&mut self) {
        self.list = None;
    }
}

/// An item in a list that is locked.
pub struct LruCursor<'a, T>(&'a mut dyn Place<T>);

/// What became of an item.
pub struct Verdict<'a>(Kind, PhantomData<&'a mut ()>);

enum Kind {
    Removed,
    Rotated,
    Skipped,
    Retry,
    Stop,
}

/// The list has been unlocked.
pub struct Unlocked<'a>(PhantomData<&'a mut ()>);

impl<'a, T> LruCursor<'a, T> {
    pub fn item(&self) -> &T {
        self.0.item()
    }

    pub fn remove(self) -> Verdict<'a> {
        self.0.remove();
        Verdict(Kind::Removed, PhantomData)
    }

    pub fn rotate(self) -> Verdict<'a> {
        self.0.rotate();
        Verdict(Kind::Rotated, PhantomData)
    }

    pub fn skip(self) -> Verdict<'a> {
        Verdict(Kind::Skipped, PhantomData)
    }

    pub fn unlock(self) -> Unlocked<'a> {
        self.0.unlock();
        Unlocked(PhantomData)
    }
}

impl<'a> Unlocked<'a> {
    pub fn retry(self) -> Verdict<'a> {
        Verdict(Kind::Retry, PhantomData)
    }

    pub fn stop(self) -> Verdict<'a> {
        Verdict(Kind::Stop, PhantomData)
    }
}
