// SPDX-License-Identifier: GPL-2.0

//! Each allocation that the driver makes fails once: the right side gets the right error, and all
//! is as it was before. Other failures that a transaction may meet are in `memcg` and `death`.

use crate::{
    binder::{Binder, MIB, PAGE},
    cgroup::{Cgroup, Tree},
    check, check_eq,
    data::{checksum, pattern},
    endpoint::{bytes_of, Endpoint, Return, Txn},
    faults::Faults,
    note,
    outcome::{Outcome, Stop},
    remote::Receiver,
    runner::{Bench, Test},
    shrinker, tests,
    uapi::{name, BC_FREE_BUFFER, BC_REPLY, BC_TRANSACTION, BR_FAILED_REPLY, TF_ONE_WAY},
};
use rustix::{
    fs::{open, Mode, OFlags},
    io::Errno,
    mm::ProtFlags,
};

pub const TESTS: &[Test] = tests!["faults":
    opening_and_mapping @ 30,
    sending_to_fresh_pages @ 60,
    sending_to_many_fresh_pages @ 60,
    sending_oneway @ 60,
    sending_with_more_buffers_than_slots @ 60,
    replying @ 60,
    receiving_and_freeing,
];

/// Runs `body` with no failing allocation, the first, the second, and so on, until there is none
/// left that could fail. It gets a function that runs a system call or two while the n-th fails,
/// and tells in the end whether it had to give up for that.
fn each(body: impl Fn(&Nth) -> Outcome<bool>) -> Outcome {
    let faults = Faults::enable_all()?;
    let mut failures = 0;
    for nth in 0.. {
        let nth = Nth {
            faults: &faults,
            nth,
            hit: false.into(),
        };
        let failed = body(&nth).map_err(|stop| match stop {
            Stop::Fail(why) => Stop::Fail(format!("allocation {}: {why}", nth.nth)),
            skip => skip,
        })?;
        let hit = nth.hit.get();
        check!(hit || !failed, "no allocation failed, but {}", nth.nth);
        failures += u32::from(failed);
        if !hit && nth.nth > 0 {
            note!("{} allocations, {failures} of them needed", nth.nth - 1);
            check!(failures > 0, "no failure");
            return Ok(());
        }
    }
    Ok(())
}

struct Nth<'a> {
    faults: &'a Faults,
    nth: u32,
    hit: std::cell::Cell<bool>,
}

impl Nth<'_> {
    fn run<T>(&self, body: impl FnOnce() -> T) -> Outcome<T> {
        if self.nth == 0 {
            return Ok(body());
        }
        let (result, hit) = self.faults.nth(self.nth, body)?;
        self.hit.set(hit);
        Ok(result)
    }
}

/// What must be the same after a transaction has failed.
#[derive(Debug, PartialEq)]
struct State {
    stats: Vec<String>,
    idle: u64,
}

impl State {
    fn now(bench: &Bench) -> Self {
        State {
            stats: shrinker::stats(&bench.dev),
            idle: shrinker::total(),
        }
    }

    /// Makes sure that all is as it was before a transaction that took `fresh` new pages: if it had
    /// got as far as to have them all, those that were mapped are idle now: all, or only the `shared`
    /// ones, which the buffer doesn't cover. If not, none is there.
    fn expect_again(&self, bench: &Bench, fresh: usize, shared: usize) -> Outcome {
        let more = (State::now(bench).idle - self.idle) as usize;
        check!(
            [0, shared, fresh].contains(&more),
            "{more} of {fresh} pages are idle, {shared} of them shared"
        );
        shrinker::scan_all(u64::MAX);
        check_eq!(State::now(bench), *self, "state after the failure");
        Ok(())
    }
}

/// Waits until the driver has ended the processes that are gone, which it does when it gets to it,
/// and freed their pages, which comes last.
fn nobody_is_left(bench: &Bench) -> Outcome {
    super::memcg::falls_to(0, || {
        Ok(shrinker::processes(&bench.dev) as u64 + shrinker::total())
    })
}

fn command(code: u32, payload: &[u8]) -> Vec<u8> {
    [&code.to_ne_bytes(), payload].concat()
}

/// What receivers' cgroups are made in, if there are any.
fn tree() -> Outcome<Option<Tree>> {
    match Tree::create("faults") {
        Ok(tree) => Ok(Some(tree)),
        Err(Stop::Skip(_)) => Ok(None),
        Err(why) => Err(why),
    }
}

/// Sends a payload to a receiver that has nothing yet but `queued` small transactions, with each
/// allocation failing in turn.
fn sending(bench: &Bench, queued: usize, payload: &[u8], flags: u32) -> Outcome {
    let txn = Txn::new(payload).flags(flags);
    let tree = tree()?;
    shrinker::scan_all(u64::MAX);
    each(|nth| {
        nobody_is_left(bench)?;
        // A new one each time: the lists of a cgroup are allocated with its first page.
        let cgroup = tree.as_ref().map(|tree| tree.child("receiver"));
        let cgroup = cgroup.transpose()?;
        let enter = || cgroup.as_ref().map_or(Ok(()), Cgroup::enter);
        let mut receiver = Receiver::start(&bench.dev, 4 * MIB, enter)?;
        let mut sender = Endpoint::sender(&bench.dev)?;
        for i in 0..queued {
            // From one thread each, as from many senders.
            Endpoint::sender(&bench.dev)?.deliver(&[i as u8; 8])?;
        }
        let before = State::now(bench);

        let write = command(BC_TRANSACTION, bytes_of(&txn.data));
        let sent = nth.run(|| sender.binder.write_read(&write, &mut []))?;
        let failed = match (sent, sender.try_next()?) {
            (Err(errno), _) => {
                check_eq!(errno, Errno::NOMEM, "write");
                true
            }
            (Ok(_), Some(Return::Status(BR_FAILED_REPLY))) => {
                check_eq!(sender.extended_error()?, Errno::NOMEM, "extended error");
                true
            }
            // Of one that isn't oneway nothing is told until the reply comes.
            _ => false,
        };
        let len = txn.data.data_size as usize;
        if failed {
            // All begin on pages of their own but those that come after small ones.
            let end = queued * 8 + len;
            let fresh = end.div_ceil(PAGE) - usize::from(queued > 0);
            before.expect_again(bench, fresh, usize::from(!end.is_multiple_of(PAGE)))?;
        }
        for i in 0..queued {
            let buffer = receiver.receive()?;
            check_eq!(receiver.sum(buffer)?, checksum(&[i as u8; 8]), "number {i}");
            receiver.free(buffer)?;
        }
        // What failed isn't received, and works now.
        let data = pattern(7, len);
        if failed {
            Endpoint::sender(&bench.dev)?.post(&Txn::oneway(&data))?;
        }
        let buffer = receiver.receive()?;
        let sent = if failed { &data } else { payload };
        check_eq!(receiver.sum(buffer)?, checksum(sent), "what came next");
        receiver.free(buffer)?;
        receiver.peer().kill()?;
        super::memcg::falls_to(before.idle, || Ok(shrinker::total()))?;
        cgroup.map_or(Ok(()), |cgroup| cgroup.remove())?;
        Ok(failed)
    })?;
    tree.map_or(Ok(()), |tree| tree.expect_nothing_left())
}

fn sending_to_fresh_pages(bench: &Bench) -> Outcome {
    sending(bench, 0, &pattern(1, 100), 0)
}

/// More than two batches, and several pieces of the page table.
fn sending_to_many_fresh_pages(bench: &Bench) -> Outcome {
    sending(bench, 0, &pattern(2, 70 * PAGE), 0)
}

fn sending_oneway(bench: &Bench) -> Outcome {
    sending(bench, 0, &pattern(3, 3 * PAGE), TF_ONE_WAY)
}

/// The slots for 16 ranges, all that a process without buffers may keep, are taken.
fn sending_with_more_buffers_than_slots(bench: &Bench) -> Outcome {
    sending(bench, 15, &pattern(4, 3 * PAGE), TF_ONE_WAY)
}

fn opening_and_mapping(bench: &Bench) -> Outcome {
    let path = bench.dev.path();
    each(|nth| {
        nobody_is_left(bench)?;
        let before = State::now(bench);
        let opened: rustix::io::Result<_> = nth.run(|| {
            let fd = open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
            let mut binder = Binder { fd, map: None };
            binder.map = Some(binder.mmap(4 * MIB, ProtFlags::READ, 0)?);
            Ok(binder)
        })?;
        let (binder, failed) = match opened {
            Ok(binder) => (binder, false),
            Err(errno) => {
                check_eq!(errno, Errno::NOMEM, "open or mmap");
                // If it was mmap, there was a process, and the driver ends it when it gets to it.
                nobody_is_left(bench)?;
                check_eq!(State::now(bench), before, "state after the failure");
                (Binder::mapped(&bench.dev, 4 * MIB)?, true)
            }
        };
        let mut server = Endpoint::manage(binder)?;
        let mut client = Endpoint::client(&bench.dev)?;
        super::transactions::round_trip(&mut client, &mut server, &pattern(1, 5000))?;
        Ok(failed)
    })
}

/// A server and a client in this process, whose system calls can be made to fail.
fn pair(bench: &Bench) -> Outcome<(Endpoint, Endpoint)> {
    let server = Endpoint::manager(&bench.dev, 4 * MIB)?;
    Ok((server, Endpoint::client(&bench.dev)?))
}

/// The client gets the error, as the server can't do anything about it. Its own pages are fresh.
fn replying(bench: &Bench) -> Outcome {
    let data = pattern(1, 40 * PAGE);
    each(|nth| {
        let (mut server, mut client) = pair(bench)?;
        client.post(&Txn::new(&[1]))?;
        let txn = server.receive()?;
        server.free(txn.addr)?;
        shrinker::scan_all(u64::MAX);
        let before = State::now(bench);
        let write = command(BC_REPLY, bytes_of(&Txn::new(&data).data));
        let mut replied = nth.run(|| server.binder.write_read(&write, &mut []))?;
        let mut failed = false;
        if let Err(errno) = replied {
            check_eq!(errno, Errno::NOMEM, "write");
            before.expect_again(bench, 40, 0)?;
            failed = true;
            replied = server.binder.write_read(&write, &mut []);
        }
        check!(replied.is_ok(), "the reply failed again");
        match client.reply_to_post()? {
            Ok(reply) => {
                check!(reply.bytes() == data, "the reply changed");
                client.free(reply.addr)?;
            }
            Err(code) => {
                check_eq!(name(code), name(BR_FAILED_REPLY), "code");
                before.expect_again(bench, 40, 0)?;
                failed = true;
            }
        }
        super::transactions::round_trip(&mut client, &mut server, &data)?;
        Ok(failed)
    })
}

/// Neither takes memory, so that it can't fail.
fn receiving_and_freeing(bench: &Bench) -> Outcome {
    let faults = Faults::enable_all()?;
    let mut server = Endpoint::manager(&bench.dev, 4 * MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    // What the process needs to know of its thread and its node is there after the first.
    sender.deliver(&[1])?;
    server.consume()?;
    shrinker::scan_all(u64::MAX);
    let before = State::now(bench);
    for len in [1, PAGE, 70 * PAGE] {
        sender.deliver(&pattern(1, len))?;
        let mut returned = [0; 1024];
        let (received, hit) = faults.nth(1, || server.binder.write_read(&[], &mut returned))?;
        check!(!hit, "an allocation to receive {len} bytes");
        server.parse(&returned[..received?.1])?;
        let txn = server.receive()?;
        check!(
            txn.bytes() == pattern(1, len),
            "{len} bytes arrived changed"
        );
        let write = command(BC_FREE_BUFFER, &(txn.addr as u64).to_ne_bytes());
        let (freed, hit) = faults.nth(1, || server.binder.write_read(&write, &mut []))?;
        check!(!hit, "an allocation to free {len} bytes");
        check_eq!(freed, Ok((write.len(), 0)), "{len} bytes");
        before.expect_again(
            bench,
            len.div_ceil(PAGE),
            usize::from(!len.is_multiple_of(PAGE)),
        )?;
    }
    Ok(())
}
