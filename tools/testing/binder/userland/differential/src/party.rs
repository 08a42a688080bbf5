// SPDX-License-Identifier: GPL-2.0

//! A process that does its part of a program, one operation at a time, and says what came of it.
//!
//! What is said is the same for drivers that do the same: no address, no process number, and no id
//! is in it. What such numbers must be is checked here.

use crate::program::{Action, Counting, Object, Op, Payload, Which};
use binder_raw::{
    binder::{peek, Binder, Device, PAGE},
    endpoint::bytes_of,
    outcome::{Context, Outcome},
    process::Link,
    shrinker,
    uapi::*,
};
use rustix::{
    fs::{fcntl_getfl, fcntl_setfl, fstat, open, Mode, OFlags},
    io::Errno,
    ioctl::{ioctl, opcode, Setter, Updater},
    mm::{munmap, ProtFlags},
};
use serde::{Deserialize, Serialize};
use std::{
    ffi::c_void,
    fmt::Display,
    fs, mem,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

/// More than this isn't there to be sent, whatever the driver is told.
const LONGEST: usize = 6 << 20;

/// What begins with it, no driver may do.
pub const WRONG: &str = "wrong: ";

/// The file that is sent.
const FILE: &str = "/dev/null";

/// A buffer that the process holds.
#[derive(Clone, Copy)]
struct Held {
    addr: usize,
    len: usize,
}

/// What came of an operation.
#[derive(Serialize, Deserialize)]
pub struct Answer {
    pub said: Vec<String>,
    /// Where the buffers begin that it holds now, from the begin of its area.
    pub held: Vec<usize>,
}

struct Party {
    binder: Binder,
    /// Whether all of the area can be read.
    whole: bool,
    held: Vec<Held>,
    freed: Vec<Held>,
    file: OwnedFd,
    /// What this operation gave.
    said: Vec<String>,
}

/// What a read gave.
enum Came {
    Nothing,
    Transaction,
    /// Anything else, after which there may be more.
    Other,
}

/// A transaction, and what must live until the ioctl with it is over.
struct Message {
    transaction: TransactionDataSg,
    #[expect(dead_code, reason = "the driver reads them")]
    parts: (Vec<u8>, Vec<u64>, Vec<u8>),
}

/// How many bytes of a buffer object may be changed on its way, because they are files, or the address
/// of another one.
const CHANGING: usize = 64;

/// Does the operations of which it is told the numbers. An area may be mapped first.
pub fn run(
    dev: &Device,
    manager: bool,
    area: Option<usize>,
    program: &[Op],
    link: &mut Link,
) -> Outcome {
    let binder = Binder::open(dev)?;
    fcntl_setfl(&binder.fd, fcntl_getfl(&binder.fd)? | OFlags::NONBLOCK)?;
    let mut party = Party {
        binder,
        whole: true,
        held: Vec::new(),
        freed: Vec::new(),
        file: open(FILE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?,
        said: Vec::new(),
    };
    if manager {
        let node = FlatObject {
            flags: ACCEPTS_FDS,
            ..FlatObject::own(0, 0)
        };
        // SAFETY: The ioctl reads one `FlatObject`.
        unsafe {
            ioctl(
                &party.binder.fd,
                Setter::<SET_CONTEXT_MGR_EXT, _>::new(node),
            )
        }
        .context("SET_CONTEXT_MGR_EXT")?;
    }
    if let Some(len) = area {
        party.map(len, false);
    }
    party.write(&BC_ENTER_LOOPER.to_ne_bytes());
    party.said.clear();
    link.send(0)?;
    // The link is closed when the process is to die.
    while let Ok(number) = link.recv() {
        party.perform(&program[number as usize].action)?;
        link.say(&serde_json::to_string(&party.answer())?)?;
    }
    Ok(())
}

impl Party {
    /// What this operation gave, and what the process has now.
    fn answer(&mut self) -> Answer {
        let base = self.binder.map.as_ref().map_or(0, |map| map.addr);
        Answer {
            said: mem::take(&mut self.said),
            held: self
                .held
                .iter()
                .map(|held| held.addr.wrapping_sub(base))
                .collect(),
        }
    }

    fn say(&mut self, words: impl Into<String>) {
        self.said.push(words.into());
    }

    /// Says what no driver may do.
    fn say_wrong(&mut self, what: &str) {
        self.say(format!("{WRONG}{what}"));
    }

    fn say_result<T: Display>(&mut self, what: &str, result: Result<T, Errno>) {
        self.say(match result {
            Ok(value) => format!("{what}: {value}"),
            Err(error) => format!("{what}: {}", errno(error)),
        });
    }

    fn write(&mut self, bytes: &[u8]) {
        let result = self.binder.write_read(bytes, &mut []);
        let len = bytes.len();
        match result {
            Ok((written, _)) if written == len => {}
            Ok((written, _)) => self.say(format!("took {written} of {len} bytes")),
            Err(error) => self.say_result::<u8>("write", Err(error)),
        }
    }

    fn command(&mut self, code: u32, payload: &[u8]) {
        let mut buffer = code.to_ne_bytes().to_vec();
        buffer.extend_from_slice(payload);
        self.write(&buffer);
    }

    fn perform(&mut self, action: &Action) -> Outcome {
        match action {
            Action::Map { len, write } => self.map(*len, *write),
            Action::Unmap { first, pages } => self.unmap(*first, *pages)?,
            Action::Send {
                handle,
                oneway,
                clear,
                payload,
            } => {
                let mut message = self.message(payload, *clear);
                let data = &mut message.transaction.transaction_data;
                data.target = u64::from(*handle);
                data.flags |= if *oneway { TF_ONE_WAY } else { 0 };
                self.transact([BC_TRANSACTION, BC_TRANSACTION_SG], payload, &message)?;
            }
            Action::Reply {
                clear,
                oneway,
                payload,
            } => {
                let mut message = self.message(payload, *clear);
                let data = &mut message.transaction.transaction_data;
                data.flags |= if *oneway { TF_ONE_WAY } else { 0 };
                self.transact([BC_REPLY, BC_REPLY_SG], payload, &message)?;
            }
            Action::Receive => self.receive()?,
            Action::Free(which) => self.free(*which),
            Action::Count { command, handle } => {
                let code = match command {
                    Counting::Increfs => BC_INCREFS,
                    Counting::Acquire => BC_ACQUIRE,
                    Counting::Release => BC_RELEASE,
                    Counting::Decrefs => BC_DECREFS,
                };
                self.command(code, &handle.to_ne_bytes());
            }
            Action::DetectSpam(on) => {
                let result = self
                    .binder
                    .set::<{ ENABLE_ONEWAY_SPAM_DETECTION }>(u32::from(*on));
                self.say_result("set", result.map(|()| "done"));
            }
            Action::Write(bytes) => self.write(bytes),
            Action::Ioctl(number) => self.ioctl(*number),
            Action::Scan { pages } => shrinker::scan_each(*pages),
            // By its end of the link.
            Action::Die { .. } => {}
        }
        Ok(())
    }

    fn map(&mut self, len: usize, write: bool) {
        let prot = match write {
            true => ProtFlags::READ | ProtFlags::WRITE,
            false => ProtFlags::READ,
        };
        match self.binder.mmap(len, prot, 0) {
            Ok(map) if self.binder.map.is_none() => {
                self.binder.map = Some(map);
                self.say("mapped");
            }
            Ok(_) => self.say("mapped again"),
            Err(error) => self.say_result::<u8>("mmap", Err(error)),
        }
    }

    /// Unmaps a part of the area, once. Afterwards none of it is looked at.
    fn unmap(&mut self, first: usize, pages: usize) -> Outcome {
        let Some(map) = &self.binder.map else {
            return Ok(());
        };
        let all = map.len.div_ceil(PAGE);
        let (first, pages) = (first % all, pages.max(1));
        if self.whole {
            self.whole = false;
            let start = (map.addr + first * PAGE) as *mut c_void;
            // SAFETY: From now on, nobody looks at any of the area.
            unsafe { munmap(start, pages.min(all - first) * PAGE)? };
        }
        Ok(())
    }

    /// Makes what is to be sent, with bytes that depend on the length.
    fn message(&self, payload: &Payload, clear: bool) -> Message {
        let len = payload.len.min(LONGEST);
        let mut data: Vec<u8> = (0..len).map(|i| (i % 251 + len) as u8 | 1).collect();
        let mut buffers: Vec<u8> = (0..4096).map(|i| (i % 241) as u8 | 1).collect();
        for place in buffers[..CHANGING].chunks_exact_mut(4) {
            place.copy_from_slice(&self.file.as_raw_fd().to_ne_bytes());
        }
        for (at, object) in &payload.objects {
            let bytes = self.object(object, &buffers);
            let at = *at as usize;
            let end = (at + bytes.len()).min(len);
            if at < end {
                data[at..end].copy_from_slice(&bytes[..end - at]);
            }
        }
        let mut offsets: Vec<u64> = payload.objects.iter().map(|(at, _)| *at).collect();
        let offsets_len = 8 * offsets.len() as u64;
        // The driver may be told that there are more.
        offsets.extend([0; 8]);
        let transaction = TransactionDataSg {
            transaction_data: TransactionData {
                code: len as u32,
                flags: TF_ACCEPT_FDS | if clear { TF_CLEAR_BUF } else { 0 },
                data_size: payload.len as u64,
                offsets_size: payload.offsets_len.unwrap_or(offsets_len),
                buffer: data.as_ptr() as u64,
                offsets: offsets.as_ptr() as u64,
                ..Default::default()
            },
            buffers_size: payload.extra.unwrap_or(0),
        };
        Message {
            transaction,
            parts: (data, offsets, buffers),
        }
    }

    fn object(&self, object: &Object, buffers: &[u8]) -> Vec<u8> {
        let flat = |kind, binder, cookie| {
            let object = FlatObject {
                kind,
                flags: ACCEPTS_FDS,
                binder,
                cookie,
            };
            bytes_of(&object).to_vec()
        };
        match *object {
            Object::Node { weak, number } => {
                let kind = if weak { TYPE_WEAK_BINDER } else { TYPE_BINDER };
                flat(kind, number, number)
            }
            Object::Handle { weak, handle } => {
                let kind = if weak { TYPE_WEAK_HANDLE } else { TYPE_HANDLE };
                flat(kind, u64::from(handle), 0)
            }
            Object::File { valid } => {
                let fd = if valid { self.file.as_raw_fd() } else { 999 };
                flat(TYPE_FD, fd as u64, 0)
            }
            Object::Buffer { len, parent } => {
                let flags = if parent.is_some() { HAS_PARENT } else { 0 };
                let (parent, parent_offset) = parent.unwrap_or_default();
                bytes_of(&BufferObject {
                    kind: TYPE_PTR,
                    flags,
                    buffer: buffers.as_ptr() as u64,
                    length: len,
                    parent,
                    parent_offset,
                })
                .to_vec()
            }
            Object::Files { count, parent, at } => bytes_of(&FdArrayObject {
                kind: TYPE_FDA,
                pad: 0,
                count,
                parent,
                parent_offset: at,
            })
            .to_vec(),
            Object::Nonsense => flat(0x1234_5678, 1, 2),
        }
    }

    /// Sends or replies, and reads what the driver says to that, which may come after a reply, or after a
    /// transaction that is for this thread. As long as an error isn't read, the driver takes no command.
    fn transact(&mut self, codes: [u32; 2], payload: &Payload, message: &Message) -> Outcome {
        match payload.extra {
            None => self.command(codes[0], bytes_of(&message.transaction.transaction_data)),
            Some(_) => self.command(codes[1], bytes_of(&message.transaction)),
        }
        // A thread has one of those at most. The next one would come from the process's queue, after all news.
        let mut transactions = 0;
        while transactions < 2 {
            match self.read()? {
                Came::Nothing => break,
                Came::Transaction => transactions += 1,
                Came::Other => {}
            }
        }
        Ok(())
    }

    /// Reads until there is a transaction, or nothing any more.
    fn receive(&mut self) -> Outcome {
        while let Came::Other = self.read()? {}
        Ok(())
    }

    fn read(&mut self) -> Outcome<Came> {
        let mut buffer = [0u8; 1024];
        let len = match self.binder.write_read(&[], &mut buffer) {
            Ok((_, len)) => len,
            Err(Errno::AGAIN) => return Ok(Came::Nothing),
            Err(error) => {
                self.say_result::<u8>("read", Err(error));
                return Ok(Came::Nothing);
            }
        };
        let mut rest = &buffer[..len];
        let mut came = Came::Other;
        while rest.len() >= 4 {
            let code = u32::from_ne_bytes(rest[..4].try_into()?);
            let payload = &rest[4..][..payload_size(code)];
            rest = &rest[4 + payload.len()..];
            match code {
                BR_NOOP | BR_SPAWN_LOOPER => {}
                BR_TRANSACTION | BR_REPLY => {
                    // SAFETY: The payload of both is a `TransactionData`, of any alignment.
                    let data =
                        unsafe { payload.as_ptr().cast::<TransactionData>().read_unaligned() };
                    self.arrived(code, &data)?;
                    if code == BR_TRANSACTION {
                        came = Came::Transaction;
                    }
                }
                BR_INCREFS | BR_ACQUIRE | BR_RELEASE | BR_DECREFS => {
                    let number = u64::from_ne_bytes(payload[..8].try_into()?);
                    self.say(format!("{} {number}", name(code)));
                    match code {
                        BR_INCREFS => self.command(BC_INCREFS_DONE, payload),
                        BR_ACQUIRE => self.command(BC_ACQUIRE_DONE, payload),
                        _ => {}
                    }
                }
                BR_FAILED_REPLY | BR_DEAD_REPLY => {
                    self.say(name(code));
                    self.extended_error();
                }
                _ => self.say(name(code)),
            }
        }
        Ok(came)
    }

    fn extended_error(&mut self) {
        let mut error = ExtendedError::default();
        // SAFETY: The ioctl writes one `ExtendedError`.
        let result = unsafe {
            ioctl(
                &self.binder.fd,
                Updater::<{ GET_EXTENDED_ERROR }, ExtendedError>::new(&mut error),
            )
        };
        let words = match error.command {
            BR_OK => "none".into(),
            command => format!("{} {}", name(command), error.param),
        };
        self.say_result("extended error", result.map(|()| words));
    }

    /// Looks at a transaction or reply from all sides.
    fn arrived(&mut self, code: u32, data: &TransactionData) -> Outcome {
        let (addr, len) = (data.buffer as usize, data.data_size as usize);
        let objects = data.offsets_size as usize / 8;
        self.say(format!(
            "{} node {} {} code {} flags {:#x} sender {} euid {}",
            name(code),
            data.target,
            data.cookie,
            data.code,
            data.flags,
            if data.sender_pid == 0 {
                "unsaid"
            } else {
                "said"
            },
            data.sender_euid
        ));
        let ends = (addr + len).max(data.offsets as usize + 8 * objects);
        match &self.binder.map {
            Some(map) if addr < map.addr || ends > map.addr + map.len.next_multiple_of(PAGE) => {
                self.say_wrong("a buffer out of the area");
            }
            Some(_) if addr % 8 != 0 => self.say_wrong("a buffer that isn't aligned"),
            Some(_) => {}
            None => self.say_wrong("a buffer without an area"),
        }
        let new = Held { addr, len };
        if self
            .held
            .iter()
            .any(|old| old.addr < addr + new.len && addr < old.addr + old.len)
        {
            self.say_wrong("a buffer that isn't free");
        }
        if data.offsets == 0 {
            self.say("no offsets");
        } else if data.offsets as usize != addr + len.next_multiple_of(8) {
            self.say_wrong("offsets elsewhere");
        }
        if self.whole {
            self.look(addr, len, data.offsets as usize, objects)?;
        } else {
            self.say(format!("{len} bytes and {objects} offsets unseen"));
        }
        self.held.push(new);
        Ok(())
    }

    /// Says what is in a buffer.
    fn look(&mut self, addr: usize, len: usize, offsets: usize, objects: usize) -> Outcome {
        let mut bytes = peek(addr, len);
        let offsets = peek(offsets, 8 * objects);
        for offset in offsets.chunks_exact(8) {
            let offset = u64::from_ne_bytes(offset.try_into()?) as usize;
            let mut object = [0; 40];
            let there = &bytes[offset.min(len)..];
            let size = there.len().min(object.len());
            object[..size].copy_from_slice(&there[..size]);
            let word = |at: usize| u64::from_ne_bytes(object[at..at + 8].try_into().expect("8"));
            let kind = word(0) as u32;
            let (words, size) = match kind {
                TYPE_FD => (self.file_at(word(8) as i32)?, 24),
                TYPE_PTR => {
                    let (at, len) = (word(8) as usize, word(16) as usize);
                    let inside = at.wrapping_sub(addr);
                    let rest = len.saturating_sub(CHANGING);
                    let sum = checksum(&peek(at + len - rest, rest));
                    (
                        format!("buffer at {inside:#x}, {len} bytes, sum {sum:016x}"),
                        40,
                    )
                }
                TYPE_FDA => (
                    format!("{} files in {}, {}", word(8), word(16), word(24)),
                    32,
                ),
                TYPE_BINDER | TYPE_WEAK_BINDER => {
                    (format!("node {:#x} {} {}", kind, word(8), word(16)), 24)
                }
                _ => (
                    format!("object {:#x} {} {}", kind, word(8) as u32, word(16)),
                    24,
                ),
            };
            self.say(format!("at {offset}: {words}"));
            let end = (offset + size).min(len);
            bytes[offset.min(len)..end].fill(0);
        }
        self.say(format!("{len} bytes, sum {:016x}", checksum(&bytes)));
        Ok(())
    }

    /// Whether a number is a file, and the right one.
    fn file_at(&self, fd: i32) -> Outcome<String> {
        if fs::metadata(format!("/proc/self/fd/{fd}")).is_err() {
            return Ok("file that isn't open".into());
        }
        // SAFETY: It is open, and nobody closes it while this is looked at.
        let found = fstat(unsafe { BorrowedFd::borrow_raw(fd) })?;
        Ok(match found.st_rdev == fstat(&self.file)?.st_rdev {
            true => "file".into(),
            false => "another file".into(),
        })
    }

    fn free(&mut self, which: Which) {
        let held = self.held.len();
        let base = self.binder.map.as_ref().map_or(0, |map| map.addr);
        let (addr, index) = match which {
            Which::Held(n) if held > 0 => {
                let index = usize::from(n) % held;
                (self.held[index].addr, Some(index))
            }
            Which::Inside(n) if held > 0 => (self.held[usize::from(n) % held].addr + 4, None),
            Which::Freed(n) if self.freed.len() > usize::from(n) => {
                let addr = self.freed[self.freed.len() - 1 - usize::from(n)].addr;
                // Where a buffer is depends on the driver, and so does what has taken its place.
                if self.held.iter().any(|other| other.addr == addr) {
                    return self.say("held again");
                }
                (addr, None)
            }
            Which::Outside => (base.wrapping_sub(PAGE), None),
            Which::Null => (0, None),
            _ => return self.say("no such buffer"),
        };
        self.command(BC_FREE_BUFFER, &(addr as u64).to_ne_bytes());
        if let Some(index) = index {
            let buffer = self.held.remove(index);
            if self.whole
                && buffer.len > 0
                && !self.said.iter().any(|words| words.starts_with("took"))
            {
                // The page stays until it is needed elsewhere, and nobody else has it yet.
                let bytes = peek(buffer.addr, buffer.len);
                let left = if bytes.iter().all(|byte| *byte == 0) {
                    "cleared"
                } else {
                    "freed"
                };
                self.say(left);
            }
            self.freed.push(buffer);
        }
    }

    fn ioctl(&mut self, number: u8) {
        // SAFETY: These ioctls read and write at most four bytes, or don't exist.
        let result = unsafe {
            match number % 4 {
                0 => {
                    let mut version = 0u32;
                    let update = Updater::<{ VERSION }, u32>::new(&mut version);
                    ioctl(&self.binder.fd, update).map(|()| version)
                }
                1 => self.binder.set::<{ SET_MAX_THREADS }>(0).map(|()| 0),
                2 => self.binder.set::<{ SET_CONTEXT_MGR }>(0).map(|()| 0),
                _ => self
                    .binder
                    .set::<{ opcode::write::<u32>(b'b', 99) }>(0)
                    .map(|()| 0),
            }
        };
        self.say_result("ioctl", result);
    }
}

fn errno(error: Errno) -> String {
    format!("errno {}", error.raw_os_error())
}

/// FNV-1a.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}
