// SPDX-License-Identifier: GPL-2.0

//! What C has, as far as its fields are used.

#![allow(non_camel_case_types)]

use crate::{
    ffi::c_void,
    memcontrol::MemCgroup,
    mm::MmWithUser,
    sync::aref::ARef, //
};
use pinned_init::Zeroable;
use std::{
    cell::UnsafeCell,
    sync::atomic::AtomicUsize, //
};

pub use crate::page::PAGE_SIZE;

pub const SZ_4M: u32 = 4 << 20;

/// A page. Its bytes are allocated when they are first written to.
#[repr(align(8))]
pub struct page {
    /// Its owner's reference, and one for each place where it is mapped; 0 when it has been freed.
    pub(crate) refs: AtomicUsize,
    /// Who pays for it.
    pub(crate) memcg: Option<ARef<MemCgroup>>,
    /// What its bytes are before.
    pub(crate) filler: u8,
    pub(crate) bytes: UnsafeCell<Option<Box<[u8; PAGE_SIZE]>>>,
}

#[derive(Zeroable)]
pub struct vm_operations_struct {
    pub open: Option<unsafe extern "C" fn(*mut vm_area_struct)>,
    pub close: Option<unsafe extern "C" fn(*mut vm_area_struct)>,
}

pub struct vm_area_struct {
    pub vm_start: usize,
    pub vm_end: usize,
    pub vm_pgoff: usize,
    pub vm_ops: *const vm_operations_struct,
    pub vm_private_data: *mut c_void,
    pub(crate) vm_mm: *const MmWithUser,
}
