// SPDX-License-Identifier: GPL-2.0

//! One thread's talk with the driver.

use crate::{
    binder::{peek, Binder, Device, MIB},
    check, fail,
    outcome::{Context, Outcome},
    uapi::{self, *},
};
use rustix::{
    fs::{fcntl_getfl, fcntl_setfl, OFlags},
    io::Errno,
    ioctl::{ioctl, Setter, Updater},
    process::Pid,
};
use std::{
    collections::VecDeque,
    marker::PhantomData,
    ptr,
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant},
};

/// The bytes of a `repr(C)` value without padding.
pub fn bytes_of<T: Copy>(value: &T) -> &[u8] {
    // SAFETY: The types of `uapi` have no padding.
    unsafe { std::slice::from_raw_parts(ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// A transaction to send: to the context manager, unless `data.target` is changed.
pub struct Txn<'a> {
    pub data: TransactionData,
    pub buffers_size: Option<u64>,
    borrowed: PhantomData<&'a [u8]>,
}

impl<'a> Txn<'a> {
    pub fn new(payload: &'a [u8]) -> Self {
        let data = TransactionData {
            data_size: payload.len() as u64,
            buffer: payload.as_ptr() as u64,
            ..Default::default()
        };
        Txn {
            data,
            buffers_size: None,
            borrowed: PhantomData,
        }
    }

    pub fn oneway(payload: &'a [u8]) -> Self {
        Txn::new(payload).flags(TF_ONE_WAY)
    }

    pub fn flags(mut self, flags: u32) -> Self {
        self.data.flags |= flags;
        self
    }

    pub fn offsets(mut self, offsets: &'a [u64]) -> Self {
        self.data.offsets = offsets.as_ptr() as u64;
        self.data.offsets_size = size_of_val(offsets) as u64;
        self
    }

    /// Asks for extra space for buffer objects (BC_TRANSACTION_SG).
    pub fn buffers(mut self, size: u64) -> Self {
        self.buffers_size = Some(size);
        self
    }
}

/// A transaction or reply that arrived.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    pub flags: u32,
    pub addr: usize,
    pub len: usize,
    pub offsets: usize,
    pub offsets_len: usize,
    /// Where its sender's security context is, if it brought one.
    pub secctx: Option<usize>,
}

impl Received {
    pub fn bytes(&self) -> Vec<u8> {
        peek(self.addr, self.len)
    }

    /// Whether these are the bytes; takes no memory to find out.
    pub fn has(&self, data: &[u8]) -> bool {
        // SAFETY: Until it is freed, nobody writes to what the driver says is there.
        data == unsafe { std::slice::from_raw_parts(self.addr as *const u8, self.len) }
    }
}

/// What the driver returned.
#[derive(Clone, Copy, Debug)]
pub enum Return {
    Transaction(Received),
    Reply(Received),
    /// A code that says how a transaction went.
    Status(u32),
    /// A process is frozen or not, who has a node that is watched.
    Frozen(FrozenState),
    /// A node isn't watched any more.
    Unwatched(u64),
}

/// One thread's side of a [`Binder`].
pub struct Endpoint {
    pub binder: Arc<Binder>,
    returned: VecDeque<Return>,
}

impl Endpoint {
    pub fn new(binder: Arc<Binder>) -> Self {
        Endpoint {
            binder,
            returned: VecDeque::new(),
        }
    }

    /// A side that only sends, and can get no reply with data: it has no mapping.
    pub fn sender(dev: &Device) -> Outcome<Self> {
        Ok(Endpoint::new(Arc::new(Binder::open(dev)?)))
    }

    /// A side that can get replies.
    pub fn client(dev: &Device) -> Outcome<Self> {
        Ok(Endpoint::new(Arc::new(Binder::mapped(dev, MIB)?)))
    }

    /// The context manager, ready to receive in a mapping of `len` bytes.
    pub fn manager(dev: &Device, len: usize) -> Outcome<Self> {
        Endpoint::manage(Binder::mapped(dev, len)?)
    }

    /// Makes an opened device the context manager.
    pub fn manage(binder: Binder) -> Outcome<Self> {
        Endpoint::manage_with(binder, 0)
    }

    /// The same, with the flags that a node may have.
    pub fn manage_with(binder: Binder, flags: u32) -> Outcome<Self> {
        let node = FlatObject {
            flags,
            ..FlatObject::own(0, 0)
        };
        let set = || match flags {
            0 => binder.set::<{ SET_CONTEXT_MGR }>(0),
            // SAFETY: The ioctl reads one `FlatObject`.
            _ => unsafe { ioctl(&binder.fd, Setter::<{ SET_CONTEXT_MGR_EXT }, _>::new(node)) },
        };
        let until = Instant::now() + Duration::from_secs(3);
        // One that died is forgotten by the driver some time after its end.
        while let Err(error) = set() {
            if error != Errno::BUSY || Instant::now() > until {
                return Err(error).context("SET_CONTEXT_MGR");
            }
            sleep(Duration::from_millis(5));
        }
        let endpoint = Endpoint::new(Arc::new(binder));
        endpoint.enter_looper()?;
        Ok(endpoint)
    }

    pub fn enter_looper(&self) -> Outcome {
        self.command(BC_ENTER_LOOPER, &[])
    }

    /// Gives the driver one command; it must be consumed.
    pub fn command(&self, code: u32, payload: &[u8]) -> Outcome {
        let mut buffer = code.to_ne_bytes().to_vec();
        buffer.extend_from_slice(payload);
        let (written, _) = self.binder.write_read(&buffer, &mut []).context("write")?;
        check!(
            written == buffer.len(),
            "the driver took {written} of {} bytes",
            buffer.len()
        );
        Ok(())
    }

    /// Sends, and doesn't ask what became of it.
    pub fn post(&self, txn: &Txn) -> Outcome {
        match txn.buffers_size {
            None => self.command(BC_TRANSACTION, bytes_of(&txn.data)),
            Some(buffers_size) => {
                let sg = TransactionDataSg {
                    transaction_data: txn.data,
                    buffers_size,
                };
                self.command(BC_TRANSACTION_SG, bytes_of(&sg))
            }
        }
    }

    /// Sends a oneway transaction or one that is expected to fail, and tells its status.
    pub fn send(&mut self, txn: &Txn) -> Outcome<u32> {
        self.post(txn)?;
        self.status()
    }

    /// Sends a oneway transaction that has to get through.
    pub fn deliver(&mut self, payload: &[u8]) -> Outcome {
        let status = self.send(&Txn::oneway(payload))?;
        check!(
            status == BR_TRANSACTION_COMPLETE,
            "oneway: {}",
            uapi::name(status)
        );
        Ok(())
    }

    /// Waits for the status of what was sent last.
    pub fn status(&mut self) -> Outcome<u32> {
        match self.next()? {
            Return::Status(code) => Ok(code),
            other => fail!("a status was due, not {other:?}"),
        }
    }

    /// Waits for the reply to a posted transaction, or the code of its failure.
    pub fn reply_to_post(&mut self) -> Outcome<Result<Received, u32>> {
        loop {
            match self.next()? {
                Return::Status(BR_TRANSACTION_COMPLETE) => {}
                Return::Status(code) => return Ok(Err(code)),
                Return::Reply(reply) => return Ok(Ok(reply)),
                other => fail!("a reply was due, not {other:?}"),
            }
        }
    }

    /// Waits for a transaction.
    pub fn receive(&mut self) -> Outcome<Received> {
        loop {
            match self.next()? {
                Return::Transaction(txn) => return Ok(txn),
                // Of the reply that was sent before.
                Return::Status(BR_TRANSACTION_COMPLETE) => {}
                other => fail!("a transaction was due, not {other:?}"),
            }
        }
    }

    pub fn free(&self, addr: usize) -> Outcome {
        self.command(BC_FREE_BUFFER, &(addr as u64).to_ne_bytes())
    }

    /// Receives one transaction, frees it, and tells what it was.
    pub fn consume(&mut self) -> Outcome<Received> {
        let txn = self.receive()?;
        self.free(txn.addr)?;
        Ok(txn)
    }

    /// Frees the transaction's buffer, then replies, as libbinder does.
    pub fn reply(&self, txn: &Received, payload: &[u8]) -> Outcome {
        self.free(txn.addr)?;
        self.answer(payload)
    }

    /// Replies, and keeps the transaction's buffer.
    pub fn answer(&self, payload: &[u8]) -> Outcome {
        self.answer_with(&Txn::new(payload))
    }

    /// As [`Endpoint::answer`], with flags.
    pub fn answer_with(&self, reply: &Txn) -> Outcome {
        self.command(BC_REPLY, bytes_of(&reply.data))
    }

    /// Freezes a process, waiting for so long until it has no transaction any more; or thaws it.
    pub fn freeze(&self, pid: Pid, enable: bool, timeout_ms: u32) -> rustix::io::Result<()> {
        let info = FreezeInfo {
            pid: pid.as_raw_nonzero().get() as u32,
            enable: enable.into(),
            timeout_ms,
        };
        // SAFETY: The ioctl reads one `FreezeInfo`.
        unsafe { ioctl(&self.binder.fd, Setter::<{ FREEZE }, _>::new(info)) }
    }

    /// What a process got since it was frozen.
    pub fn frozen_status(&self, pid: Pid) -> rustix::io::Result<FrozenStatus> {
        let mut status = FrozenStatus {
            pid: pid.as_raw_nonzero().get() as u32,
            // The driver is to overwrite them.
            sync_recv: u32::MAX,
            async_recv: u32::MAX,
        };
        // SAFETY: The ioctl reads and writes one `FrozenStatus`.
        unsafe {
            ioctl(
                &self.binder.fd,
                Updater::<{ GET_FROZEN_INFO }, FrozenStatus>::new(&mut status),
            )?
        };
        Ok(status)
    }

    /// The errno that the driver notes for this thread's last failed transaction.
    pub fn extended_error(&self) -> Outcome<Errno> {
        let mut error = ExtendedError::default();
        // SAFETY: The ioctl writes one `ExtendedError`.
        unsafe {
            ioctl(
                &self.binder.fd,
                Updater::<{ GET_EXTENDED_ERROR }, ExtendedError>::new(&mut error),
            )?
        };
        Ok(Errno::from_raw_os_error(-error.param))
    }

    /// The next thing that is of interest to a test; waits for it.
    #[expect(clippy::should_implement_trait, reason = "it never ends, but may fail")]
    pub fn next(&mut self) -> Outcome<Return> {
        while self.returned.is_empty() {
            let mut buffer = [0u8; 1024];
            let (_, read) = self.binder.write_read(&[], &mut buffer).context("read")?;
            self.parse(&buffer[..read])?;
        }
        Ok(self.returned.pop_front().expect("not empty"))
    }

    /// Like [`Endpoint::next`], but `None` if nothing is there.
    pub fn try_next(&mut self) -> Outcome<Option<Return>> {
        let fd = &self.binder.fd;
        let flags = fcntl_getfl(fd)?;
        fcntl_setfl(fd, flags | OFlags::NONBLOCK)?;
        let mut buffer = [0u8; 1024];
        let result = self.binder.write_read(&[], &mut buffer);
        fcntl_setfl(&self.binder.fd, flags)?;
        match result {
            Ok((_, read)) => self.parse(&buffer[..read])?,
            Err(Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(self.returned.pop_front())
    }

    /// Takes in what the driver returned.
    pub fn parse(&mut self, mut buffer: &[u8]) -> Outcome {
        while buffer.len() >= 4 {
            let code = u32::from_ne_bytes(buffer[..4].try_into()?);
            let (payload, rest) = buffer[4..].split_at(payload_size(code));
            buffer = rest;
            match code {
                BR_NOOP | BR_SPAWN_LOOPER | BR_RELEASE | BR_DECREFS => {}
                BR_INCREFS => self.command(BC_INCREFS_DONE, payload)?,
                BR_ACQUIRE => self.command(BC_ACQUIRE_DONE, payload)?,
                BR_TRANSACTION | BR_TRANSACTION_SEC_CTX | BR_REPLY => {
                    // SAFETY: The payload of all is a `TransactionData`, of any alignment, or
                    // begins with one.
                    let data: TransactionData =
                        unsafe { ptr::read_unaligned(payload.as_ptr().cast()) };
                    let secctx = payload[size_of::<TransactionData>()..].try_into().ok();
                    let received = Received {
                        flags: data.flags,
                        addr: data.buffer as usize,
                        len: data.data_size as usize,
                        offsets: data.offsets as usize,
                        offsets_len: data.offsets_size as usize,
                        secctx: secctx.map(|addr| u64::from_ne_bytes(addr) as usize),
                    };
                    self.returned.push_back(match code {
                        BR_REPLY => Return::Reply(received),
                        _ => Return::Transaction(received),
                    });
                }
                BR_FROZEN_BINDER => {
                    // SAFETY: The payload is a `FrozenState`, of any alignment.
                    let state = unsafe { ptr::read_unaligned(payload.as_ptr().cast()) };
                    self.returned.push_back(Return::Frozen(state));
                }
                BR_CLEAR_FREEZE_NOTIFICATION_DONE => {
                    let cookie = u64::from_ne_bytes(payload.try_into()?);
                    self.returned.push_back(Return::Unwatched(cookie));
                }
                _ => self.returned.push_back(Return::Status(code)),
            }
        }
        Ok(())
    }
}
