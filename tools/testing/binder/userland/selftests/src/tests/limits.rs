// SPDX-License-Identifier: GPL-2.0

//! Limits of the receiver's cgroup are no business of its senders: they neither wait, nor fail, nor
//! have anything killed.

use crate::{
    binder::{Device, MIB, PAGE},
    cgroup::Cgroup,
    check, check_eq,
    data::pattern,
    endpoint::{Endpoint, Txn},
    note,
    outcome::{skip, Outcome, Stop},
    process::Peer,
    remote::Receiver,
    runner::{Bench, Test},
    shrinker, tests,
    uapi::{name, BR_TRANSACTION_COMPLETE},
};
use rustix::mm::{mmap_anonymous, MapFlags, ProtFlags};
use std::{
    fs::File,
    os::unix::fs::FileExt,
    ptr,
    time::{Duration, Instant},
};

pub const TESTS: &[Test] = tests!["limits":
    nobody_sleeps_for_memory_high @ 60,
    a_full_receiver_gets_all_that_is_sent @ 60,
    a_receiver_makes_up_for_what_is_beyond_its_limit,
    what_senders_have_the_kernel_keep_is_charged_to_the_receiver @ 60,
];

/// Bytes of a large transaction, of which five fit into the oneway space.
const LARGE: usize = 256 * 1024;

/// `memory.pressure` of a cgroup. It is kept open: whoever opens it may have to wait for memory.
struct Pressure(File);

impl Pressure {
    fn open(cgroup: &Cgroup) -> Outcome<Self> {
        match File::open(cgroup.path().join("memory.pressure")) {
            Ok(file) => Ok(Pressure(file)),
            Err(_) => skip("no memory.pressure"),
        }
    }

    /// For how long any process of the cgroup has waited for memory.
    fn stalled(&self) -> Outcome<Duration> {
        let mut text = [0; 256];
        let len = self.0.read_at(&mut text, 0)?;
        let text = std::str::from_utf8(&text[..len])?;
        let total = text
            .lines()
            .next()
            .and_then(|some| some.rsplit_once("total="));
        let (_, micros) = total.ok_or("no total in memory.pressure")?;
        Ok(Duration::from_micros(micros.trim().parse()?))
    }
}

/// How sending went.
struct Sent {
    /// What the transactions took together, and the slowest one of them.
    took: Duration,
    worst: Duration,
    /// What their sender waited for memory meanwhile.
    stalled: Duration,
}

/// A sender in a cgroup of its own, which sends when told to.
struct Sender {
    peer: Peer,
    cgroup: Cgroup,
}

impl Sender {
    /// Each transaction is of `len` bytes.
    fn start(dev: &Device, len: usize) -> Outcome<Self> {
        let cgroup = Cgroup::create("sender")?;
        let pressure = Pressure::open(&cgroup)?;
        let mut peer = Peer::spawn(|link| {
            cgroup.enter()?;
            let mut sender = Endpoint::sender(dev)?;
            let data = pattern(1, len);
            pressure.stalled()?;
            link.send(0)?;
            loop {
                let count = link.recv()?;
                let (mut took, mut worst) = (Duration::ZERO, Duration::ZERO);
                let before = pressure.stalled()?;
                for nth in 0..count {
                    let start = Instant::now();
                    let status = sender.send(&Txn::oneway(&data))?;
                    let elapsed = start.elapsed();
                    took += elapsed;
                    worst = worst.max(elapsed);
                    check_eq!(name(status), name(BR_TRANSACTION_COMPLETE), "send {nth}");
                }
                let stalled = pressure.stalled()? - before;
                for time in [took, worst, stalled] {
                    link.send(time.as_micros() as u64)?;
                }
            }
        })?;
        peer.link.recv()?;
        Ok(Sender { peer, cgroup })
    }

    /// Sends `count` transactions, all of which arrive.
    fn send(&mut self, count: u64) -> Outcome<Sent> {
        let link = &mut self.peer.link;
        link.send(count)?;
        let mut time = || Ok::<_, Stop>(Duration::from_micros(link.recv()?));
        Ok(Sent {
            took: time()?,
            worst: time()?,
            stalled: time()?,
        })
    }
}

/// A sleep for what is above `memory.high` is of up to two seconds. Neither the receiver's cgroup nor
/// the sender's own is a reason for one: the sender has charged nothing of its own.
fn nobody_sleeps_for_memory_high(bench: &Bench) -> Outcome {
    let cgroup = Cgroup::create("high")?;
    let mut receiver = Receiver::start(&bench.dev, 4 * MIB, || cgroup.enter())?;
    let mut sender = Sender::start(&bench.dev, LARGE)?;
    // The page tables below the area stay. Whoever is the first to need them is charged for them.
    receiver.idle(&mut Endpoint::sender(&bench.dev)?, 5 * LARGE / PAGE)?;
    shrinker::scan_all(u64::MAX);
    cgroup.write("memory.high", "0")?;
    sender.cgroup.write("memory.high", "0")?;
    // To look at the file, and to be told, has a charge, too.
    let none = sender.send(0)?;
    let sent = sender.send(5)?;
    note!(
        "5 transactions took {:?}, the slowest {:?}",
        sent.took,
        sent.worst
    );
    check!(
        sent.took < Duration::from_secs(1),
        "they took {:?}",
        sent.took
    );
    check!(
        sent.stalled < none.stalled + Duration::from_secs(1),
        "the sender waited for memory: {:?}, {:?} without sending",
        sent.stalled,
        none.stalled
    );
    // It is the receiver's cgroup that has grown.
    check!(
        cgroup.pages()? >= (5 * LARGE / PAGE) as u64,
        "pages charged"
    );
    check!(cgroup.event("high")? > 0, "no event of the receiver's");
    cgroup.write("memory.high", "max")?;
    for _ in 0..5 {
        let buffer = receiver.receive()?;
        receiver.free(buffer)?;
    }
    receiver.peer().kill()
}

/// Puts `pages` pages of anonymous memory into the calling process, for good.
fn take(pages: usize) -> Outcome {
    let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
    // SAFETY: It is new memory, wherever that comes to lie.
    let memory = unsafe { mmap_anonymous(ptr::null_mut(), pages * PAGE, prot, flags)? };
    for page in 0..pages {
        // SAFETY: It was mapped, with this length.
        unsafe { memory.cast::<u8>().add(page * PAGE).write_volatile(1) };
    }
    Ok(())
}

/// There is nothing that reclaim could take in the receiver's cgroup, and no swap.
fn a_full_receiver_gets_all_that_is_sent(bench: &Bench) -> Outcome {
    const COUNT: u64 = 200;
    let cgroup = Cgroup::create("full")?;
    let mut receiver = Receiver::start(&bench.dev, 4 * MIB, || {
        cgroup.enter()?;
        take(2000)
    })?;
    let mut sender = Sender::start(&bench.dev, PAGE)?;
    let limit = cgroup.pages()?;
    cgroup.limit(limit)?;
    let events = sender.cgroup.event("max")?;
    let sent = sender.send(COUNT)?;
    note!("the slowest of {COUNT} transactions took {:?}", sent.worst);
    check_eq!(
        sent.stalled,
        Duration::ZERO,
        "what the sender waited for memory"
    );
    check_eq!(sender.cgroup.event("max")?, events, "the sender's events");
    cgroup.expect_no_oom()?;
    sender.cgroup.expect_no_oom()?;
    check!(cgroup.event("max")? > 0, "no event of the receiver's");
    let pages = cgroup.pages()?;
    let most = limit + (4 * MIB / PAGE) as u64;
    check!(
        pages > limit && pages <= most,
        "{pages} pages, {limit} is the limit"
    );
    cgroup.write("memory.max", "max")?;
    for _ in 0..COUNT {
        let buffer = receiver.receive()?;
        receiver.free(buffer)?;
    }
    receiver.peer().kill()
}

/// When the receiver next charges something itself, reclaim finds the pages that no buffer lies on.
fn a_receiver_makes_up_for_what_is_beyond_its_limit(bench: &Bench) -> Outcome {
    const PAGES: usize = 500;
    shrinker::need()?;
    let cgroup = Cgroup::create("beyond")?;
    let mut receiver = Receiver::start(&bench.dev, 4 * MIB, || cgroup.enter())?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    receiver.idle(&mut sender, 1)?;
    let limit = cgroup.pages()? + 250;
    cgroup.limit(limit)?;
    // It need not do anything to get it, but to look at it.
    sender.deliver(&pattern(1, PAGES * PAGE))?;
    let beyond = cgroup.pages()?;
    check!(beyond > limit, "{beyond} pages, {limit} is the limit");
    let buffer = receiver.receive()?;
    receiver.free(buffer)?;
    let mut other = Peer::spawn(|link| {
        cgroup.enter()?;
        // More than the CPUs have charged in advance.
        take(200)?;
        link.send(0)?;
        link.recv().map(|_| ())
    })?;
    other.link.recv()?;
    let pages = cgroup.pages()?;
    check!(pages <= limit, "{pages} pages, {limit} is the limit");
    cgroup.expect_no_oom()?;
    other.kill()
}

/// What the kernel keeps for oneway transactions that wait in the queue, besides their pages: ranges, no
/// more than with the C driver, and the driver's own notes. It all goes back.
fn what_senders_have_the_kernel_keep_is_charged_to_the_receiver(bench: &Bench) -> Outcome {
    // What a buffer takes with the C driver, and what the driver notes of a transaction here.
    const RANGE: u64 = 129;
    const NOTES: u64 = 256 + 16;
    let cgroup = Cgroup::create("kept")?;
    let mut receiver = Receiver::start(&bench.dev, 4 * MIB, || cgroup.enter())?;
    let mut sender = Sender::start(&bench.dev, 8)?;
    receiver.idle(&mut Endpoint::sender(&bench.dev)?, 1)?;
    let (theirs, before) = (cgroup.pages()?, sender.cgroup.pages()?);
    let mut sent = 0;
    for count in [1000, 16_384] {
        sender.send(count - sent)?;
        sent = count;
        let pages = (cgroup.pages()? - theirs).saturating_sub(count * 8 / PAGE as u64);
        let least = (count * (64 + 128) / PAGE as u64).saturating_sub(SLACK);
        let most = count * (RANGE + NOTES) / PAGE as u64 + SLACK;
        note!("{count} transactions: {pages} pages");
        check!(
            pages >= least && pages <= most,
            "{pages} pages, not {least} to {most}"
        );
    }
    let pages = sender.cgroup.pages()?;
    check!(
        pages <= before + SLACK,
        "the sender's: {pages}, {before} before"
    );
    for _ in 0..sent {
        let buffer = receiver.receive()?;
        receiver.free(buffer)?;
    }
    cgroup.reclaim(1024);
    super::memcg::falls_to(theirs + SLACK, || cgroup.pages())?;
    receiver.peer().kill()
}

/// What the CPUs may have charged in advance.
const SLACK: u64 = 2 * 64 + 32;
