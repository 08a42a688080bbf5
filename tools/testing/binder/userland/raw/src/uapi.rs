// SPDX-License-Identifier: GPL-2.0

//! What tests and benchmarks need of `include/uapi/linux/android/binder.h` and `binderfs.h`.
//!
//! Codes are computed from direction, number and payload type, as the kernel's header does. That
//! makes the payload size part of the code, and [`payload_size`] can skip codes that a test
//! doesn't know.

use rustix::ioctl::{opcode, Opcode};

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct WriteRead {
    pub write_size: u64,
    pub write_consumed: u64,
    pub write_buffer: u64,
    pub read_size: u64,
    pub read_consumed: u64,
    pub read_buffer: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct TransactionData {
    /// A handle (u32) when sent, the node's pointer when received.
    pub target: u64,
    pub cookie: u64,
    pub code: u32,
    pub flags: u32,
    pub sender_pid: i32,
    pub sender_euid: u32,
    pub data_size: u64,
    pub offsets_size: u64,
    pub buffer: u64,
    pub offsets: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct TransactionDataSg {
    pub transaction_data: TransactionData,
    pub buffers_size: u64,
}

/// A transaction as a context manager gets it that has asked for security contexts.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct TransactionDataSecCtx {
    pub transaction_data: TransactionData,
    pub secctx: u64,
}

/// An object that asks the driver to copy one more buffer of the sender.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct BufferObject {
    pub kind: u32,
    pub flags: u32,
    pub buffer: u64,
    pub length: u64,
    pub parent: u64,
    pub parent_offset: u64,
}

/// An object that says that a [`BufferObject`] holds files.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct FdArrayObject {
    pub kind: u32,
    pub pad: u32,
    pub count: u64,
    pub parent: u64,
    pub parent_offset: u64,
}

/// A reference to a node: the sender's own (`binder`) or somebody else's (`handle`).
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct FlatObject {
    pub kind: u32,
    pub flags: u32,
    pub binder: u64,
    pub cookie: u64,
}

impl FlatObject {
    /// A node of the sender's own, which the driver is told of by two numbers.
    pub fn own(binder: u64, cookie: u64) -> Self {
        Self {
            kind: TYPE_BINDER,
            flags: 0,
            binder,
            cookie,
        }
    }

    /// A node that the sender knows by a handle.
    pub fn handle(handle: u32) -> Self {
        Self {
            kind: TYPE_HANDLE,
            flags: 0,
            binder: handle.into(),
            cookie: 0,
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct PtrCookie {
    pub ptr: u64,
    pub cookie: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct ExtendedError {
    pub id: u32,
    pub command: u32,
    pub param: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct FreezeInfo {
    pub pid: u32,
    pub enable: u32,
    pub timeout_ms: u32,
}

/// What a process got since it was frozen.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrozenStatus {
    pub pid: u32,
    /// Bit 0: a call, which was refused. Bit 1: some transaction isn't done yet.
    pub sync_recv: u32,
    pub async_recv: u32,
}

/// What a freeze notification says.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrozenState {
    pub cookie: u64,
    pub is_frozen: u32,
    pub reserved: u32,
}

/// A handle, and the number by which the driver is to speak of it.
#[repr(C, packed)]
#[derive(Clone, Copy, Default)]
pub struct HandleCookie {
    pub handle: u32,
    pub cookie: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct BinderfsDevice {
    pub name: [u8; 256],
    pub major: u32,
    pub minor: u32,
}

const fn pack(kind: [u8; 3]) -> u32 {
    u32::from_be_bytes([kind[0], kind[1], kind[2], 0x85])
}

pub const TYPE_BINDER: u32 = pack(*b"sb*");
pub const TYPE_WEAK_BINDER: u32 = pack(*b"wb*");
pub const TYPE_HANDLE: u32 = pack(*b"sh*");
pub const TYPE_WEAK_HANDLE: u32 = pack(*b"wh*");
pub const TYPE_FD: u32 = pack(*b"fd*");
pub const TYPE_FDA: u32 = pack(*b"fda");
pub const TYPE_PTR: u32 = pack(*b"pt*");

/// Of a node: transactions to it may bring files.
pub const ACCEPTS_FDS: u32 = 0x100;
/// Of a node: transactions to it are to bring the security context of their sender.
pub const TXN_SECURITY_CTX: u32 = 0x1000;
/// Of a [`BufferObject`]: its address is to be written into another one.
pub const HAS_PARENT: u32 = 0x01;

pub const TF_ONE_WAY: u32 = 0x01;
pub const TF_ACCEPT_FDS: u32 = 0x10;
pub const TF_CLEAR_BUF: u32 = 0x20;
pub const TF_UPDATE_TXN: u32 = 0x40;

pub const WRITE_READ: Opcode = opcode::read_write::<WriteRead>(b'b', 1);
pub const SET_MAX_THREADS: Opcode = opcode::write::<u32>(b'b', 5);
pub const SET_CONTEXT_MGR: Opcode = opcode::write::<i32>(b'b', 7);
pub const VERSION: Opcode = opcode::read_write::<i32>(b'b', 9);
pub const SET_CONTEXT_MGR_EXT: Opcode = opcode::write::<FlatObject>(b'b', 13);
pub const FREEZE: Opcode = opcode::write::<FreezeInfo>(b'b', 14);
pub const GET_FROZEN_INFO: Opcode = opcode::read_write::<FrozenStatus>(b'b', 15);
pub const ENABLE_ONEWAY_SPAM_DETECTION: Opcode = opcode::write::<u32>(b'b', 16);
pub const GET_EXTENDED_ERROR: Opcode = opcode::read_write::<ExtendedError>(b'b', 17);
pub const CTL_ADD: Opcode = opcode::read_write::<BinderfsDevice>(b'b', 1);

pub const BC_TRANSACTION: u32 = opcode::write::<TransactionData>(b'c', 0);
pub const BC_REPLY: u32 = opcode::write::<TransactionData>(b'c', 1);
pub const BC_FREE_BUFFER: u32 = opcode::write::<u64>(b'c', 3);
pub const BC_INCREFS: u32 = opcode::write::<u32>(b'c', 4);
pub const BC_ACQUIRE: u32 = opcode::write::<u32>(b'c', 5);
pub const BC_RELEASE: u32 = opcode::write::<u32>(b'c', 6);
pub const BC_DECREFS: u32 = opcode::write::<u32>(b'c', 7);
pub const BC_INCREFS_DONE: u32 = opcode::write::<PtrCookie>(b'c', 8);
pub const BC_ACQUIRE_DONE: u32 = opcode::write::<PtrCookie>(b'c', 9);
pub const BC_ENTER_LOOPER: u32 = opcode::none(b'c', 12);
pub const BC_TRANSACTION_SG: u32 = opcode::write::<TransactionDataSg>(b'c', 17);
pub const BC_REPLY_SG: u32 = opcode::write::<TransactionDataSg>(b'c', 18);
pub const BC_REQUEST_FREEZE_NOTIFICATION: u32 = opcode::write::<HandleCookie>(b'c', 19);
pub const BC_CLEAR_FREEZE_NOTIFICATION: u32 = opcode::write::<HandleCookie>(b'c', 20);
pub const BC_FREEZE_NOTIFICATION_DONE: u32 = opcode::write::<u64>(b'c', 21);

pub const BR_OK: u32 = opcode::none(b'r', 1);
pub const BR_TRANSACTION: u32 = opcode::read::<TransactionData>(b'r', 2);
pub const BR_TRANSACTION_SEC_CTX: u32 = opcode::read::<TransactionDataSecCtx>(b'r', 2);
pub const BR_REPLY: u32 = opcode::read::<TransactionData>(b'r', 3);
pub const BR_DEAD_REPLY: u32 = opcode::none(b'r', 5);
pub const BR_TRANSACTION_COMPLETE: u32 = opcode::none(b'r', 6);
pub const BR_INCREFS: u32 = opcode::read::<PtrCookie>(b'r', 7);
pub const BR_ACQUIRE: u32 = opcode::read::<PtrCookie>(b'r', 8);
pub const BR_RELEASE: u32 = opcode::read::<PtrCookie>(b'r', 9);
pub const BR_DECREFS: u32 = opcode::read::<PtrCookie>(b'r', 10);
pub const BR_NOOP: u32 = opcode::none(b'r', 12);
pub const BR_SPAWN_LOOPER: u32 = opcode::none(b'r', 13);
pub const BR_FAILED_REPLY: u32 = opcode::none(b'r', 17);
pub const BR_FROZEN_REPLY: u32 = opcode::none(b'r', 18);
pub const BR_ONEWAY_SPAM_SUSPECT: u32 = opcode::none(b'r', 19);
pub const BR_TRANSACTION_PENDING_FROZEN: u32 = opcode::none(b'r', 20);
pub const BR_FROZEN_BINDER: u32 = opcode::read::<FrozenState>(b'r', 21);
pub const BR_CLEAR_FREEZE_NOTIFICATION_DONE: u32 = opcode::read::<u64>(b'r', 22);

/// How many bytes follow this code in the read buffer.
pub fn payload_size(code: u32) -> usize {
    ((code >> 16) & 0x3fff) as usize
}

/// The name of a return code, for messages.
pub fn name(code: u32) -> String {
    match code {
        BR_TRANSACTION => "BR_TRANSACTION".into(),
        BR_REPLY => "BR_REPLY".into(),
        BR_DEAD_REPLY => "BR_DEAD_REPLY".into(),
        BR_TRANSACTION_COMPLETE => "BR_TRANSACTION_COMPLETE".into(),
        BR_FAILED_REPLY => "BR_FAILED_REPLY".into(),
        BR_INCREFS => "BR_INCREFS".into(),
        BR_ACQUIRE => "BR_ACQUIRE".into(),
        BR_RELEASE => "BR_RELEASE".into(),
        BR_DECREFS => "BR_DECREFS".into(),
        BR_ONEWAY_SPAM_SUSPECT => "BR_ONEWAY_SPAM_SUSPECT".into(),
        BR_TRANSACTION_SEC_CTX => "BR_TRANSACTION_SEC_CTX".into(),
        BR_FROZEN_REPLY => "BR_FROZEN_REPLY".into(),
        BR_TRANSACTION_PENDING_FROZEN => "BR_TRANSACTION_PENDING_FROZEN".into(),
        BR_FROZEN_BINDER => "BR_FROZEN_BINDER".into(),
        BR_CLEAR_FREEZE_NOTIFICATION_DONE => "BR_CLEAR_FREEZE_NOTIFICATION_DONE".into(),
        _ => format!("BR code {:#x}", code),
    }
}
