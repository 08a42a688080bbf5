// SPDX-License-Identifier: GPL-2.0

//! The current task.

use crate::{
    mm::MmWithUser,
    sync::aref::ARef,
    sys, //
};
use std::cell::{
    Cell,
    RefCell, //
};

/// A process identifier.
pub type Pid = i32;

sys::thread_local! {
    static MM: RefCell<Option<ARef<MmWithUser>>> = RefCell::new(None);
    static KILLED: Cell<bool> = Cell::new(false);
}

/// A task: nothing but its mm here.
pub struct Task(Option<ARef<MmWithUser>>);

/// What the current process is called in messages.
pub const PID: Pid = 7;

impl Task {
    pub fn current() -> Self {
        Self(MM.with(|mm| mm.borrow().clone()))
    }

    pub fn tgid(&self) -> Pid {
        PID
    }

    pub fn mm(&self) -> Option<&MmWithUser> {
        self.0.as_deref()
    }
}

/// Runs `f` in a thread of the process that has `mm`.
pub fn with_mm<R>(mm: &ARef<MmWithUser>, f: impl FnOnce() -> R) -> R {
    MM.with(|current| *current.borrow_mut() = Some(mm.clone()));
    let result = f();
    MM.with(|current| current.borrow_mut().take());
    result
}

/// Runs `f` as a thread does that has been killed.
pub fn killed<R>(f: impl FnOnce() -> R) -> R {
    KILLED.with(|killed| killed.set(true));
    let result = f();
    KILLED.with(|killed| killed.set(false));
    result
}

pub(crate) fn is_killed() -> bool {
    KILLED.with(Cell::get)
}

/// The current task.
#[macro_export]
macro_rules! current {
    () => {
        $crate::task::Task::current()
    };
}
