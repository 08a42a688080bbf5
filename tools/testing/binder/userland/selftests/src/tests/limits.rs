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
    outcome::{skip, Outcome},
    process::Peer,
    remote::Receiver,
    runner::{Bench, Test},
    shrinker, tests,
    uapi::{name, BR_TRANSACTION_COMPLETE},
};
use rustix::mm::{mmap_anonymous, MapFlags, ProtFlags};
use std::{
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

/// What the cgroup has waited for memory, by `memory.pressure`.
fn stalled(cgroup: &Cgroup) -> Outcome<Duration> {
    let Ok(text) = std::fs::read_to_string(cgroup.path().join("memory.pressure")) else {
        return skip("no memory.pressure");
    };
    let total = text
        .lines()
        .next()
        .and_then(|some| some.rsplit_once("total="));
    let (_, micros) = total.ok_or("no total in memory.pressure")?;
    Ok(Duration::from_micros(micros.trim().parse()?))
}

/// A sender in a cgroup of its own, which sends when told to, and says how long that took.
struct Sender {
    peer: Peer,
    cgroup: Cgroup,
}

impl Sender {
    /// Each transaction is of `len` bytes.
    fn start(dev: &Device, len: usize) -> Outcome<Self> {
        let cgroup = Cgroup::create("sender")?;
        let mut peer = Peer::spawn(|link| {
            cgroup.enter()?;
            let mut sender = Endpoint::sender(dev)?;
            let data = pattern(1, len);
            link.send(0)?;
            loop {
                let mut worst = Duration::ZERO;
                for nth in 0..link.recv()? {
                    let start = Instant::now();
                    let status = sender.send(&Txn::oneway(&data))?;
                    worst = worst.max(start.elapsed());
                    check_eq!(name(status), name(BR_TRANSACTION_COMPLETE), "send {nth}");
                }
                link.send(worst.as_micros() as u64)?;
            }
        })?;
        peer.link.recv()?;
        Ok(Sender { peer, cgroup })
    }

    /// Sends `count` transactions, all of which arrive; says how long the slowest one took.
    fn send(&mut self, count: u64) -> Outcome<Duration> {
        self.peer.link.send(count)?;
        Ok(Duration::from_micros(self.peer.link.recv()?))
    }
}

/// A sleep for what is above `memory.high` is of up to two seconds. Neither the receiver's cgroup nor
/// the sender's own is a reason for one: the sender has charged nothing of its own.
fn nobody_sleeps_for_memory_high(bench: &Bench) -> Outcome {
    let cgroup = Cgroup::create("high")?;
    let mut receiver = Receiver::start(&bench.dev, 4 * MIB, || cgroup.enter())?;
    let mut sender = Sender::start(&bench.dev, LARGE)?;
    cgroup.write("memory.high", "0")?;
    sender.cgroup.write("memory.high", "0")?;
    let (before, events) = (stalled(&sender.cgroup)?, sender.cgroup.event("high")?);
    let start = Instant::now();
    let worst = sender.send(5)?;
    let took = start.elapsed();
    note!("5 transactions took {took:?}, the slowest {worst:?}");
    check!(took < Duration::from_secs(1), "they took {took:?}");
    let after = stalled(&sender.cgroup)?;
    check!(
        after - before < Duration::from_millis(100),
        "the sender waited for memory: {:?}",
        after - before
    );
    check_eq!(sender.cgroup.event("high")?, events, "the sender's events");
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
    let (before, events) = (stalled(&sender.cgroup)?, sender.cgroup.event("max")?);
    let worst = sender.send(COUNT)?;
    note!("the slowest of {COUNT} transactions took {worst:?}");
    check_eq!(
        stalled(&sender.cgroup)?,
        before,
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
    const PAGES: usize = 400;
    shrinker::need()?;
    let cgroup = Cgroup::create("beyond")?;
    let mut receiver = Receiver::start(&bench.dev, 4 * MIB, || cgroup.enter())?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    receiver.idle(&mut sender, 1)?;
    let limit = cgroup.pages()? + 50;
    cgroup.limit(limit)?;
    // It need not do anything to get it, but to look at it.
    sender.deliver(&pattern(1, PAGES * PAGE))?;
    let beyond = cgroup.pages()?;
    check!(beyond > limit, "{beyond} pages, {limit} is the limit");
    let buffer = receiver.receive()?;
    receiver.free(buffer)?;
    let mut other = Peer::spawn(|link| {
        cgroup.enter()?;
        take(20)?;
        link.send(0)?;
        link.recv().map(|_| ())
    })?;
    other.link.recv()?;
    let pages = cgroup.pages()?;
    check!(pages <= limit, "{pages} pages, {limit} is the limit");
    cgroup.expect_no_oom()?;
    other.kill()
}

/// Ranges of buffers that are kept, and of those in the queue: no more than with the C driver, and
/// charged to the receiver. It all goes back.
fn what_senders_have_the_kernel_keep_is_charged_to_the_receiver(bench: &Bench) -> Outcome {
    // What a kept buffer takes with the C driver.
    const EACH: u64 = 129;
    let cgroup = Cgroup::create("kept")?;
    let mut receiver = Receiver::start(&bench.dev, 4 * MIB, || cgroup.enter())?;
    let mut sender = Sender::start(&bench.dev, 8)?;
    sender.send(1)?;
    let mut buffers = vec![receiver.receive()?];
    let (theirs, before) = (cgroup.pages()?, sender.cgroup.pages()?);
    for count in [1000, 16_384] {
        let more = count - buffers.len() as u64;
        for _ in 0..more {
            sender.send(1)?;
            buffers.push(receiver.receive()?);
        }
        let pages = (cgroup.pages()? - theirs).saturating_sub(count * 8 / PAGE as u64);
        let least = count * 64 / PAGE as u64;
        let most = count * EACH / PAGE as u64 + SLACK;
        note!("{count} buffers: {pages} pages");
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
    for buffer in buffers {
        receiver.free(buffer)?;
    }
    cgroup.reclaim(1024);
    super::memcg::falls_to(theirs + SLACK, || cgroup.pages())?;
    receiver.peer().kill()
}

/// What the CPUs may have charged in advance.
const SLACK: u64 = 2 * 64 + 32;
