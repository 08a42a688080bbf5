// SPDX-License-Identifier: GPL-2.0

//! Atomics.

use crate::sys;
use std::marker::PhantomData;

/// What can be in an [`Atomic`].
pub trait AtomicType: Copy {
    fn to_usize(self) -> usize;
    fn from_usize(value: usize) -> Self;
}

macro_rules! impl_atomic_type {
    ($($t:ty),*) => {$(
        impl AtomicType for $t {
            fn to_usize(self) -> usize {
                self as usize
            }

            fn from_usize(value: usize) -> Self {
                value as $t
            }
        }
    )*};
}

impl_atomic_type!(usize, isize, u32, i32, u64, i64);

impl AtomicType for bool {
    fn to_usize(self) -> usize {
        self.into()
    }

    fn from_usize(value: usize) -> Self {
        value != 0
    }
}

pub mod ordering {
    use crate::sys::Ordering as Order;

    pub trait Ordering {
        /// Of a load, of a store, and of both in one.
        const ORDERS: (Order, Order, Order);
    }

    macro_rules! ordering {
        ($($name:ident: $load:ident, $store:ident, $both:ident;)*) => {$(
            pub struct $name;

            impl Ordering for $name {
                const ORDERS: (Order, Order, Order) = (Order::$load, Order::$store, Order::$both);
            }
        )*};
    }

    ordering! {
        Relaxed: Relaxed, Relaxed, Relaxed;
        Acquire: Acquire, Relaxed, Acquire;
        Release: Relaxed, Release, Release;
        Full: SeqCst, SeqCst, SeqCst;
    }
}
pub use self::ordering::{
    Acquire,
    Full,
    Ordering,
    Relaxed,
    Release, //
};

/// loom's atomics are larger than what they stand for.
#[cfg(loom)]
type Inner = Box<sys::AtomicUsize>;
#[cfg(not(loom))]
type Inner = sys::AtomicUsize;

pub struct Atomic<T>(Inner, PhantomData<T>);

impl<T: AtomicType> Atomic<T> {
    pub fn new(value: T) -> Self {
        #[allow(clippy::useless_conversion)]
        let inner = sys::AtomicUsize::new(value.to_usize()).into();
        Self(inner, PhantomData)
    }

    pub fn load<O: Ordering>(&self, _: O) -> T {
        T::from_usize(self.0.load(O::ORDERS.0))
    }

    pub fn store<O: Ordering>(&self, value: T, _: O) {
        self.0.store(value.to_usize(), O::ORDERS.1);
    }

    pub fn cmpxchg<O: Ordering>(&self, old: T, new: T, _: O) -> Result<T, T> {
        let (old, new) = (old.to_usize(), new.to_usize());
        let done = self.0.compare_exchange(old, new, O::ORDERS.2, O::ORDERS.0);
        done.map(T::from_usize).map_err(T::from_usize)
    }
}
