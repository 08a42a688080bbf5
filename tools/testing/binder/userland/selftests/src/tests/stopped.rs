// SPDX-License-Identifier: GPL-2.0

//! A sender stops in the middle of its copy, for as long as it likes: what it sends lies on a page
//! that userfaultfd brings only when the test says so (CVE-2019-2025, and others after it).
//!
//! Meanwhile its buffer is reserved, and nobody's but its own: the receiver can't free it, reclaim
//! can't take its pages, others don't wait for it, and either side may die.

use crate::{
    binder::{Device, PAGE},
    cgroup::{Cgroup, Tree},
    check, check_eq,
    data::pattern,
    endpoint::{bytes_of, Endpoint, Received, Txn},
    fail,
    outcome::{skip, vanishes, Context, Outcome, Stop},
    process::{Link, Peer},
    remote::Receiver,
    runner::{Bench, Test},
    shrinker::{self, usage, Usage},
    tests,
    uapi::{
        name, BufferObject, FlatObject, BC_FREE_BUFFER, BR_DEAD_REPLY, BR_TRANSACTION_COMPLETE,
        TYPE_BINDER, TYPE_PTR,
    },
};
use rustix::{
    ioctl::{ioctl, opcode, Opcode, Updater},
    mm::{mmap_anonymous, userfaultfd, MapFlags, ProtFlags, UserfaultfdFlags},
};
use std::{os::fd::OwnedFd, ptr, thread::spawn};

pub const TESTS: &[Test] = tests!["stopped":
    goes_on_where_it_stopped,
    cant_be_freed_by_its_address,
    others_use_its_pages_and_dont_wait,
    reclaim_takes_none_of_its_pages,
    reclaim_of_the_cgroup_takes_none_of_its_pages,
    unmapped_by_the_receiver,
    sender_killed_leaves_nothing,
    receiver_killed_leaves_nothing,
    neither_leaves_anything_charged,
    many_at_once @ 30,
];

/// The receivers' mapping; no other one of the device has this size.
const SLOTS: usize = 192;
const AREA: usize = SLOTS * PAGE;
const HALF: usize = AREA / 2;

// What is needed of include/uapi/linux/userfaultfd.h.

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct Copied {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

const API: Opcode = opcode::read_write::<Api>(0xaa, 0x3f);
const REGISTER: Opcode = opcode::read_write::<Register>(0xaa, 0x00);
const COPY: Opcode = opcode::read_write::<Copied>(0xaa, 0x03);
const API_VERSION: u64 = 0xaa;
const MODE_MISSING: u64 = 1;
const EVENT_PAGEFAULT: u8 = 0x12;

/// Anonymous memory of which one page isn't there before it is brought.
struct Memory {
    start: usize,
    missing: usize,
    uffd: OwnedFd,
}

impl Memory {
    /// Memory that begins with `data`, but for the page that byte number `stop` lies on.
    fn new(data: &[u8], stop: usize) -> Outcome<Self> {
        let len = data.len().next_multiple_of(PAGE);
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: The kernel picks a free place.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), len, prot, flags)? } as usize;
        let missing = stop / PAGE * PAGE;
        for (nth, page) in data.chunks(PAGE).enumerate() {
            if nth * PAGE != missing {
                let place = (start + nth * PAGE) as *mut u8;
                // SAFETY: It lies in what was just mapped.
                unsafe { ptr::copy_nonoverlapping(page.as_ptr(), place, page.len()) };
            }
        }
        // SAFETY: Nobody is surprised that a page of the memory above comes late.
        let Ok(uffd) = (unsafe { userfaultfd(UserfaultfdFlags::CLOEXEC) }) else {
            return skip("no userfaultfd (USERFAULTFD)");
        };
        let mut api = Api {
            api: API_VERSION,
            features: 0,
            ioctls: 0,
        };
        let mut register = Register {
            start: (start + missing) as u64,
            len: PAGE as u64,
            mode: MODE_MISSING,
            ioctls: 0,
        };
        // SAFETY: The ioctls read and write one `Api` and one `Register`.
        unsafe {
            ioctl(&uffd, Updater::<{ API }, _>::new(&mut api)).context("UFFDIO_API")?;
            ioctl(&uffd, Updater::<{ REGISTER }, _>::new(&mut register))
                .context("UFFDIO_REGISTER")?;
        }
        Ok(Memory {
            start,
            missing,
            uffd,
        })
    }

    /// Waits until somebody needs the page.
    fn stopped(&self) -> Outcome {
        let mut message = [0; 32];
        let len = rustix::io::read(&self.uffd, &mut message).context("userfaultfd")?;
        check_eq!((len, message[0]), (32, EVENT_PAGEFAULT), "an event");
        let addr = u64::from_ne_bytes(message[16..24].try_into()?) as usize;
        check_eq!(
            addr / PAGE * PAGE,
            self.start + self.missing,
            "where it stopped"
        );
        Ok(())
    }

    /// Brings the page, with what is there in `data`.
    fn bring(&self, data: &[u8]) -> Outcome {
        let mut page = data[self.missing..].to_vec();
        page.resize(page.len().max(PAGE), 0);
        let mut copy = Copied {
            dst: (self.start + self.missing) as u64,
            src: page.as_ptr() as u64,
            len: PAGE as u64,
            mode: 0,
            copied: 0,
        };
        // SAFETY: The ioctl reads and writes one `Copied`, and reads a page.
        unsafe { ioctl(&self.uffd, Updater::<{ COPY }, _>::new(&mut copy)) }.context("UFFDIO_COPY")
    }
}

/// What goes with the data, and comes before the driver meets the place where it stops.
#[derive(Clone, Copy, Debug, PartialEq)]
enum With {
    Nothing,
    /// An object, so that the offsets are in the buffer already.
    Object,
    /// The same, and it is the offsets that aren't there: nothing is in the buffer.
    LateOffsets,
    /// A buffer of so many bytes, and it is in there that the sender stops.
    Buffer(usize),
}

/// What a stopped sender sends.
#[derive(Clone, Copy, Debug)]
struct Message {
    seed: u64,
    len: usize,
    /// Which byte is on the page that isn't there.
    stop: usize,
    with: With,
}

/// Places to stop at: in a part of a page, in the first page that the buffer covers, in a later one,
/// with pages before and behind that are filling; in each part of a transaction.
const MESSAGES: &[(usize, usize, With)] = &[
    (100, 0, With::Nothing),
    (PAGE, 0, With::Nothing),
    (5 * PAGE + 100, 2 * PAGE, With::Nothing),
    (5 * PAGE + 100, 5 * PAGE, With::Nothing),
    (5 * PAGE + 100, 3 * PAGE, With::Object),
    (2 * PAGE + 8, 0, With::Object),
    (3 * PAGE, 0, With::LateOffsets),
    (40, 0, With::Buffer(100)),
    (40, 2 * PAGE, With::Buffer(3 * PAGE + 8)),
    (50 * PAGE + 8, 40 * PAGE, With::Nothing),
];

fn messages() -> impl Iterator<Item = Message> {
    (0..)
        .zip(MESSAGES)
        .map(|(seed, &(len, stop, with))| Message {
            seed,
            len,
            stop,
            with,
        })
}

/// Five pages and a bit, stopped with two of them in the buffer.
const FIVE: Message = Message {
    seed: 77,
    len: 5 * PAGE + 100,
    stop: 2 * PAGE,
    with: With::Nothing,
};

impl Message {
    /// The bytes among which it stops.
    fn late(&self) -> Vec<u8> {
        match self.with {
            With::Nothing => pattern(self.seed, self.len),
            With::Object => {
                let mut data = bytes_of(&FlatObject::own(8, 9)).to_vec();
                data.extend_from_slice(&pattern(self.seed, self.len - data.len()));
                data
            }
            With::LateOffsets => 0u64.to_ne_bytes().to_vec(),
            With::Buffer(len) => pattern(self.seed, len),
        }
    }

    /// How many bytes of an area it takes.
    fn size(&self) -> usize {
        let more = match self.with {
            With::Nothing => 0,
            With::Object | With::LateOffsets => 8,
            With::Buffer(len) => 8 + len.next_multiple_of(8),
        };
        self.len.next_multiple_of(8) + more
    }

    /// Sends it with `late` at this address.
    fn send(&self, sender: &mut Endpoint, late: usize) -> Outcome<u32> {
        let offset = [0];
        let object = FlatObject::own(8, 9);
        let pointer = BufferObject {
            kind: TYPE_PTR,
            buffer: late as u64,
            length: self.late().len() as u64,
            ..Default::default()
        };
        let mut data = bytes_of(&object).to_vec();
        data.extend_from_slice(&pattern(self.seed, self.len));
        data.truncate(self.len);
        let mut txn = match self.with {
            With::Nothing | With::Object => Txn::oneway(&[]),
            With::LateOffsets => Txn::oneway(&data),
            With::Buffer(len) => {
                Txn::oneway(bytes_of(&pointer)).buffers(len.next_multiple_of(8) as u64)
            }
        };
        if self.with != With::Nothing {
            txn = txn.offsets(&offset);
        }
        match self.with {
            With::Nothing | With::Object => {
                txn.data.buffer = late as u64;
                txn.data.data_size = self.len as u64;
            }
            With::LateOffsets => txn.data.offsets = late as u64,
            With::Buffer(_) => {}
        }
        sender.send(&txn)
    }

    /// Whether this is what arrived.
    fn expect(&self, txn: &Received) -> Outcome {
        let got = txn.bytes();
        check_eq!(got.len(), self.len, "{self:?}: length");
        let objects = usize::from(self.with != With::Nothing);
        check_eq!(txn.offsets_len, 8 * objects, "{self:?}: offsets");
        let same = match self.with {
            With::Nothing => got == pattern(self.seed, self.len),
            With::Object | With::LateOffsets => {
                let kind = u32::from_ne_bytes(got[..4].try_into()?);
                check!(kind != TYPE_BINDER, "{self:?}: not translated");
                got[24..] == pattern(self.seed, self.len)[..self.len - 24]
            }
            With::Buffer(len) => {
                // SAFETY: The payload is a `BufferObject`, of any alignment.
                let object: BufferObject = unsafe { ptr::read_unaligned(got.as_ptr().cast()) };
                crate::binder::peek(object.buffer as usize, len) == pattern(self.seed, len)
            }
        };
        check!(same, "{self:?}: arrived changed");
        Ok(())
    }
}

/// A process that has stopped while it sends.
struct Stopped {
    peer: Peer,
    message: Message,
}

impl Stopped {
    fn start(dev: &Device, message: Message) -> Outcome<Self> {
        Stopped::start_in(dev, message, || Ok(()))
    }

    fn start_in(
        dev: &Device,
        message: Message,
        prepare: impl FnOnce() -> Outcome,
    ) -> Outcome<Self> {
        let mut peer = Peer::spawn(|link| {
            prepare()?;
            match sender(dev, message, link) {
                Err(Stop::Skip(_)) => link.send(1),
                result => result,
            }
        })?;
        match peer.link.recv()? {
            0 => Ok(Stopped { peer, message }),
            _ => skip("no userfaultfd (USERFAULTFD)"),
        }
    }

    /// Lets it go on; tells the status of what it sends.
    fn resume(&mut self) -> Outcome<u32> {
        self.peer.link.send(0)?;
        Ok(self.peer.link.recv()? as u32)
    }

    /// Lets it go on, to a receiver that is there.
    fn deliver(&mut self, server: &mut Endpoint) -> Outcome<Received> {
        let status = self.resume()?;
        check_eq!(
            name(status),
            name(BR_TRANSACTION_COMPLETE),
            "{:?}",
            self.message
        );
        let txn = server.receive()?;
        self.message.expect(&txn)?;
        Ok(txn)
    }
}

/// What a stopping sender does.
fn sender(dev: &Device, message: Message, link: &mut Link) -> Outcome {
    let late = message.late();
    let memory = Memory::new(&late, message.stop)?;
    let mut endpoint = Endpoint::sender(dev)?;
    let start = memory.start;
    let sending = spawn(move || message.send(&mut endpoint, start).unwrap_or_default());
    memory.stopped()?;
    link.send(0)?;
    // The link is closed when the test ends without it.
    if link.recv().is_err() {
        return Ok(());
    }
    memory.bring(&late)?;
    match sending.join() {
        Ok(status) => link.send(status.into())?,
        Err(_) => fail!("the sending thread panicked"),
    }
    // Its end is seen by the driver when the test is done with it.
    let _ = link.recv();
    Ok(())
}

fn need_usage(dev: &Device) -> Outcome<Usage> {
    match usage(dev, SLOTS as u64) {
        Some(usage) => Ok(usage),
        None => skip("no usage in binder_logs: mount binderfs with -o stats=global"),
    }
}

/// Whether nothing is left of what was sent, and all of the area can be had.
fn expect_all_free(bench: &Bench, server: &mut Endpoint) -> Outcome {
    // What was cut off is cleaned up a bit later.
    vanishes("buffers", || Ok(need_usage(&bench.dev)?.buffers))?;
    let usage = need_usage(&bench.dev)?;
    check_eq!(usage.oneway_free, HALF as u64, "free oneway space");
    check_eq!(usage.pages[0], 0, "pages in use");
    Endpoint::sender(&bench.dev)?.deliver(&pattern(5, HALF))?;
    server.consume()?;
    let client = Endpoint::client(&bench.dev)?;
    client.post(&Txn::new(&pattern(6, AREA)))?;
    let all = server.receive()?;
    check_eq!(all.addr, server.binder.base(), "address of all of the area");
    server.reply(&all, &[])
}

fn goes_on_where_it_stopped(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, AREA)?;
    for round in 0..2 {
        for message in messages() {
            let mut stopped = Stopped::start(&bench.dev, message)?;
            let usage = need_usage(&bench.dev)?;
            let what = format!("round {round}, {message:?}");
            check_eq!(usage.buffers, 1, "{what}: buffers");
            let free = (HALF - message.size()) as u64;
            check_eq!(usage.oneway_free, free, "{what}: free oneway space");
            check!(server.try_next()?.is_none(), "{what}: it is there already");
            let txn = stopped.deliver(&mut server)?;
            server.free(txn.addr)?;
        }
    }
    expect_all_free(bench, &mut server)
}

/// Where it lies can be guessed: in an area with nothing else in it.
fn cant_be_freed_by_its_address(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, AREA)?;
    for message in messages() {
        let mut stopped = Stopped::start(&bench.dev, message)?;
        let before = need_usage(&bench.dev)?;
        let base = server.binder.base();
        let guesses = [base, base + AREA - message.size(), base + PAGE];
        let commands: Vec<u8> = guesses
            .iter()
            .flat_map(|guess| {
                let addr = (*guess as u64).to_ne_bytes();
                [&BC_FREE_BUFFER.to_ne_bytes()[..], &addr].concat()
            })
            .collect();
        for round in 0..1000 {
            let (written, _) = server.binder.write_read(&commands, &mut [])?;
            check_eq!(written, commands.len(), "round {round}: bytes taken");
        }
        check_eq!(need_usage(&bench.dev)?, before, "{message:?}: usage");
        // Another one gets a place of its own.
        Endpoint::sender(&bench.dev)?.deliver(&[0xff; 8])?;
        server.consume()?;
        let later = stopped.deliver(&mut server)?;
        check!(
            guesses[..2].contains(&later.addr),
            "{message:?}: it lay at {:#x} of the area",
            later.addr - base
        );
        server.free(later.addr)?;
    }
    expect_all_free(bench, &mut server)
}

/// They come and go on the pages that it begins and ends on.
fn others_use_its_pages_and_dont_wait(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, AREA)?;
    let mut client = Endpoint::client(&bench.dev)?;
    // A buffer before it, so that it doesn't begin where a page does.
    client.deliver(&pattern(1, 1000))?;
    let before = server.receive()?;
    let mut stopped = Stopped::start(&bench.dev, FIVE)?;
    let mut places = Vec::new();
    for round in 0..200 {
        let data = pattern(round, 8 * (1 + round as usize % 300));
        // A oneway transaction would wait for the end of the first one.
        client.post(&Txn::new(&data))?;
        let txn = server.receive()?;
        check!(txn.bytes() == data, "round {round}: changed");
        places.push(txn.addr / PAGE..=(txn.addr + data.len() - 1) / PAGE);
        server.reply(&txn, &[])?;
        match client.reply_to_post()? {
            Ok(reply) => client.free(reply.addr)?,
            Err(code) => fail!("round {round}: {}", name(code)),
        }
    }
    check!(before.has(&pattern(1, 1000)), "the one before it changed");
    server.free(before.addr)?;
    let txn = stopped.deliver(&mut server)?;
    let ends = [txn.addr / PAGE, (txn.addr + FIVE.len - 1) / PAGE];
    let shared = |end| places.iter().filter(|pages| pages.contains(end)).count();
    let shared: usize = ends.iter().map(shared).sum();
    check!(shared > 50, "{shared} buffers of others lay on its pages");
    server.free(txn.addr)?;
    expect_all_free(bench, &mut server)
}

fn reclaim_takes_none_of_its_pages(bench: &Bench) -> Outcome {
    shrinker::need()?;
    let mut server = Endpoint::manager(&bench.dev, AREA)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    for idle in [0, 3, 90] {
        for message in messages() {
            if idle > 0 {
                // Some of its pages are there, and on the LRU.
                sender.deliver(&pattern(1, idle * PAGE))?;
                server.consume()?;
            }
            let mut stopped = Stopped::start(&bench.dev, message)?;
            let what = format!("{idle} idle, {message:?}");
            let used = need_usage(&bench.dev)?.pages[0];
            let size = message.size();
            check!(used >= size.div_ceil(PAGE) as u64, "{what}: {used} in use");
            check!(
                shrinker::scan_until(|_| need_usage(&bench.dev).is_ok_and(|u| u.pages[1] == 0)),
                "{what}: still idle"
            );
            check_eq!(need_usage(&bench.dev)?.pages[0], used, "{what}: in use");
            let txn = stopped.deliver(&mut server)?;
            server.free(txn.addr)?;
        }
    }
    expect_all_free(bench, &mut server)
}

fn reclaim_of_the_cgroup_takes_none_of_its_pages(bench: &Bench) -> Outcome {
    shrinker::need()?;
    let cgroup = Cgroup::create("stopped")?;
    let mut receiver = Receiver::start(&bench.dev, AREA, || cgroup.enter())?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    receiver.idle(&mut sender, HALF / PAGE)?;
    let mut stopped = Stopped::start(&bench.dev, FIVE)?;
    for _ in 0..50 {
        cgroup.reclaim(SLOTS as u64);
        if shrinker::count(cgroup.id()?) == 0 {
            break;
        }
    }
    let usage = need_usage(&bench.dev)?;
    check_eq!(usage.pages[1], 0, "idle pages");
    check_eq!(usage.pages[0], 6, "pages in use");
    let status = stopped.resume()?;
    check_eq!(name(status), name(BR_TRANSACTION_COMPLETE), "status");
    let buffer = receiver.receive()?;
    let sum = crate::data::checksum(&pattern(FIVE.seed, FIVE.len));
    check_eq!(receiver.sum(buffer)?, sum, "sum of what arrived");
    receiver.free(buffer)
}

/// Then there is nobody to deliver it to, if a page of it isn't mapped yet; and whatever the sender
/// is told, nothing is left.
fn unmapped_by_the_receiver(bench: &Bench) -> Outcome {
    for message in messages() {
        let mut receiver = Receiver::start(&bench.dev, AREA, || Ok(()))?;
        let mut stopped = Stopped::start(&bench.dev, message)?;
        receiver.unmap()?;
        let status = stopped.resume()?;
        let known = [BR_DEAD_REPLY, BR_TRANSACTION_COMPLETE];
        check!(known.contains(&status), "{message:?}: {}", name(status));
        if status == BR_DEAD_REPLY {
            let usage = need_usage(&bench.dev)?;
            check_eq!((usage.buffers, usage.pages[0]), (0, 0), "{message:?}: left");
        }
        receiver.peer().kill()?;
        drop(stopped);
        vanishes("processes", || Ok(shrinker::processes(&bench.dev) as u64))?;
    }
    Ok(())
}

fn sender_killed_leaves_nothing(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, AREA)?;
    for message in messages() {
        let mut stopped = Stopped::start(&bench.dev, message)?;
        stopped.peer.kill()?;
        vanishes("buffers", || Ok(need_usage(&bench.dev)?.buffers))?;
        check_eq!(need_usage(&bench.dev)?.pages[0], 0, "{message:?}: pages");
        check!(
            server.try_next()?.is_none(),
            "{message:?}: it was delivered"
        );
    }
    vanishes("processes but the receiver", || {
        Ok(shrinker::processes(&bench.dev) as u64 - 1)
    })?;
    expect_all_free(bench, &mut server)
}

fn receiver_killed_leaves_nothing(bench: &Bench) -> Outcome {
    for message in messages() {
        let mut receiver = Receiver::start(&bench.dev, AREA, || Ok(()))?;
        let mut sender = Endpoint::sender(&bench.dev)?;
        receiver.idle(&mut sender, 30)?;
        let mut stopped = Stopped::start(&bench.dev, message)?;
        sender.deliver(&pattern(1, 3 * PAGE))?;
        receiver.peer().kill()?;
        // Whoever comes later isn't told to wait for the one that has stopped.
        let mut status = BR_TRANSACTION_COMPLETE;
        for _ in 0..500 {
            status = sender.send(&Txn::oneway(&[1]))?;
            if status == BR_DEAD_REPLY {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        check_eq!(name(status), name(BR_DEAD_REPLY), "{message:?}: another");
        let status = stopped.resume()?;
        check_eq!(name(status), name(BR_DEAD_REPLY), "{message:?}");
        drop((stopped, sender));
        vanishes("processes", || Ok(shrinker::processes(&bench.dev) as u64))?;
    }
    Ok(())
}

/// Not a page, nor anything else, on either side.
fn neither_leaves_anything_charged(bench: &Bench) -> Outcome {
    let tree = Tree::create("stopped")?;
    for round in 0..4 {
        for message in messages() {
            let theirs = tree.child("receiver")?;
            let ours = tree.child("sender")?;
            let mut receiver = Receiver::start(&bench.dev, AREA, || theirs.enter())?;
            let mut stopped = Stopped::start_in(&bench.dev, message, || ours.enter())?;
            match round {
                0 => stopped.peer.kill()?,
                1 => receiver.peer().kill()?,
                2 => {
                    receiver.peer().kill()?;
                    stopped.peer.kill()?;
                }
                _ => {
                    stopped.peer.kill()?;
                    receiver.unmap()?;
                }
            }
            drop(stopped);
            drop(receiver);
            theirs.remove()?;
            ours.remove()?;
        }
    }
    tree.expect_nothing_left()
}

fn many_at_once(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, AREA)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    for round in 0..4 {
        let mut stopped = messages()
            .map(|message| Stopped::start(&bench.dev, message))
            .collect::<Outcome<Vec<_>>>()?;
        let usage = need_usage(&bench.dev)?;
        check_eq!(usage.buffers, MESSAGES.len() as u64, "buffers");
        let taken: usize = messages().map(|message| message.size()).sum();
        check_eq!(
            usage.oneway_free,
            (HALF - taken) as u64,
            "free oneway space"
        );
        // In an order of its own each time, and every third one is killed.
        for nth in 0..MESSAGES.len() {
            let index = nth * [1, 3, 7, 9][round] % MESSAGES.len();
            sender.deliver(&pattern(1, 3000))?;
            server.consume()?;
            shrinker::scan_all(3);
            if (nth + round) % 3 == 0 {
                stopped[index].peer.kill()?;
            } else {
                let txn = stopped[index].deliver(&mut server)?;
                server.free(txn.addr)?;
            }
        }
        drop(stopped);
        expect_all_free(bench, &mut server)?;
    }
    Ok(())
}
