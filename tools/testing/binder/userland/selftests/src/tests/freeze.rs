// SPDX-License-Identifier: GPL-2.0

//! Processes that are frozen: what is refused or superseded is as if it had never been sent.
//!
//! Calls to them are refused; oneway transactions wait for the thaw, and a newer one may take the
//! place of an older one. After each of that, the receiver's buffers, pages and oneway space are
//! what is queued, and no more.

use super::{
    expect_dead_reply, expect_failed,
    memcg::{falls_to, SLACK},
};
use crate::{
    binder::{Binder, Device, KIB, MIB, PAGE},
    cgroup::{leave, Cgroup, Tree},
    check, check_eq,
    data::{checksum, pattern},
    endpoint::{bytes_of, Endpoint, Return, Txn},
    fail, note,
    outcome::{skip, vanishes, Outcome},
    process::Peer,
    remote::Receiver,
    runner::{Bench, Test},
    shrinker::{self, usage, Usage},
    tests,
    uapi::{
        name, FlatObject, FrozenState, FrozenStatus, HandleCookie, ACCEPTS_FDS, BC_ACQUIRE,
        BC_CLEAR_FREEZE_NOTIFICATION, BC_FREEZE_NOTIFICATION_DONE, BC_REQUEST_FREEZE_NOTIFICATION,
        BR_DEAD_REPLY, BR_FROZEN_REPLY, BR_TRANSACTION_COMPLETE, BR_TRANSACTION_PENDING_FROZEN,
        TF_ACCEPT_FDS, TF_ONE_WAY, TF_UPDATE_TXN, TYPE_FD,
    },
};
use rustix::{
    io::Errno,
    pipe::{pipe_with, PipeFlags},
    process::Pid,
};
use std::{
    collections::VecDeque,
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
    thread::{sleep, spawn},
    time::{Duration, Instant},
};

pub const TESTS: &[Test] = tests!["freeze":
    calls_are_refused_and_leave_nothing,
    oneways_wait_for_the_thaw,
    an_unknown_process_cant_be_frozen,
    not_while_a_call_is_under_way,
    not_while_oneways_are_queued,
    not_while_it_waits_for_a_reply,
    waits_for_the_end_of_a_call,
    commands_behind_a_queued_oneway_are_taken,
    an_update_takes_the_place_of_its_like,
    an_update_of_another_sender_takes_no_place,
    an_update_for_another_node_takes_no_place,
    an_update_takes_no_place_without_a_freeze,
    an_update_lets_go_of_the_files,
    a_queue_with_one_place_left_is_updated @ 30,
    a_full_queue_refuses_updates @ 30,
    updates_are_charged_once @ 30,
    death_with_a_full_queue,
    death_with_a_full_queue_leaves_nothing_charged,
    whoever_watches_is_told,
    news_wait_for_the_answer_to_the_last,
    wrong_watching_is_refused,
];

/// The mapping of the receivers here, half of which is for oneway transactions. No other one has
/// this size.
const AREA: usize = 192 * PAGE;
const SLOTS: u64 = (AREA / PAGE) as u64;
const HALF: usize = AREA / 2;

const UPDATE: u32 = TF_ONE_WAY | TF_UPDATE_TXN;

/// A receiver that can be frozen, and who sends to it.
struct Frozen<'a> {
    receiver: Receiver,
    sender: Endpoint,
    dev: &'a Device,
}

impl<'a> Frozen<'a> {
    fn start(bench: &'a Bench) -> Outcome<Self> {
        Frozen::start_in(bench, || Ok(()))
    }

    fn start_in(bench: &'a Bench, prepare: impl FnOnce() -> Outcome) -> Outcome<Self> {
        Frozen::with(bench, Receiver::start(&bench.dev, AREA, prepare)?)
    }

    fn with(bench: &'a Bench, receiver: Receiver) -> Outcome<Self> {
        Ok(Frozen {
            receiver,
            sender: Endpoint::client(&bench.dev)?,
            dev: &bench.dev,
        })
    }

    fn pid(&self) -> Pid {
        self.receiver.pid()
    }

    fn freeze(&self) -> Outcome {
        Ok(self.sender.freeze(self.pid(), true, 0)?)
    }

    fn thaw(&self) -> Outcome {
        Ok(self.sender.freeze(self.pid(), false, 0)?)
    }

    fn expect_status(&self, sync_recv: u32, async_recv: u32) -> Outcome {
        let want = FrozenStatus {
            pid: self.pid().as_raw_nonzero().get() as u32,
            sync_recv,
            async_recv,
        };
        check_eq!(self.sender.frozen_status(self.pid())?, want, "its status");
        Ok(())
    }

    /// Whether the receiver holds so many buffers, which took so many bytes of the oneway space.
    fn expect_usage(&self, buffers: usize, oneway: usize, what: &str) -> Outcome<Usage> {
        let usage = usage(self.dev, SLOTS);
        let Some(usage) = usage else {
            fail!("{what}: the driver's stats don't say");
        };
        check_eq!(usage.buffers, buffers as u64, "{what}: buffers");
        let free = (HALF - oneway) as u64;
        check_eq!(usage.oneway_free, free, "{what}: free oneway space");
        Ok(usage)
    }

    /// Whether nothing is left of what was sent: no buffer, no page in use; and all of the oneway
    /// space can be had, and all of the area.
    fn expect_all_free(&mut self) -> Outcome {
        let usage = self.expect_usage(0, 0, "in the end")?;
        check_eq!(usage.pages[0], 0, "pages in use in the end");
        self.receiver.idle(&mut self.sender, HALF / PAGE)?;
        self.sender.post(&Txn::new(&vec![1; AREA]))?;
        let call = self.receiver.receive()?;
        self.receiver.reply(call)?;
        match self.sender.reply_to_post()? {
            Ok(reply) => self.sender.free(reply.addr),
            Err(code) => fail!("a call of the size of the area: {}", name(code)),
        }
    }

    /// Sends, and expects this status.
    fn send(&mut self, txn: &Txn, want: u32, what: &str) -> Outcome {
        check_eq!(name(self.sender.send(txn)?), name(want), "{what}");
        Ok(())
    }

    /// Sends a oneway transaction to the queue.
    fn queue(&mut self, data: &[u8], flags: u32, code: u32) -> Outcome {
        let txn = updating(data, flags, code);
        self.send(&txn, BR_TRANSACTION_PENDING_FROZEN, "to the queue")
    }

    /// Receives what has to be there next, and frees it.
    fn consume(&mut self, data: &[u8], what: &str) -> Outcome {
        let buffer = self.receiver.receive()?;
        check_eq!(buffer.len, data.len() as u64, "{what}: length");
        check_eq!(self.receiver.sum(buffer)?, checksum(data), "{what}: sum");
        self.receiver.free(buffer)
    }
}

/// A transaction with these flags, and this code.
fn updating(data: &[u8], flags: u32, code: u32) -> Txn<'_> {
    let mut txn = Txn::new(data).flags(flags);
    txn.data.code = code;
    txn
}

fn need_logs() -> Outcome {
    match shrinker::has_logs() {
        true => Ok(()),
        false => skip("no binder_logs: mount binderfs with -o stats=global"),
    }
}

fn calls_are_refused_and_leave_nothing(bench: &Bench) -> Outcome {
    need_logs()?;
    let mut frozen = Frozen::start(bench)?;
    frozen.freeze()?;
    frozen.expect_status(0, 0)?;
    for round in 0..1000 {
        let data = vec![1; (round * 997) % AREA];
        frozen.sender.post(&Txn::new(&data))?;
        match frozen.sender.reply_to_post()? {
            Err(BR_FROZEN_REPLY) => {}
            Err(code) => fail!("round {round}: {}", name(code)),
            Ok(_) => fail!("round {round}: a frozen process replied"),
        }
    }
    let usage = frozen.expect_usage(0, 0, "after the calls")?;
    check_eq!(usage.pages[0], 0, "pages in use");
    frozen.expect_status(1, 0)?;
    frozen.thaw()?;
    frozen.expect_status(0, 0)?;
    frozen.expect_all_free()
}

fn oneways_wait_for_the_thaw(bench: &Bench) -> Outcome {
    need_logs()?;
    let mut frozen = Frozen::start(bench)?;
    frozen.freeze()?;
    let mut taken = 0;
    for i in 0..10 {
        let data = pattern(i, 1000 * i as usize + 8);
        frozen.queue(&data, TF_ONE_WAY, 0)?;
        taken += data.len();
        frozen.expect_usage(i as usize + 1, taken, "in the queue")?;
    }
    frozen.expect_status(0b10, 1)?;
    frozen.thaw()?;
    // They are there still.
    frozen.expect_status(0b10, 0)?;
    for i in 0..10 {
        frozen.consume(&pattern(i, 1000 * i as usize + 8), "after the thaw")?;
    }
    frozen.expect_status(0, 0)?;
    frozen.expect_all_free()
}

fn an_unknown_process_cant_be_frozen(bench: &Bench) -> Outcome {
    let sender = Endpoint::sender(&bench.dev)?;
    let mut nobody = Peer::spawn(|_| Ok(()))?;
    nobody.wait()?;
    for enable in [true, false] {
        let result = sender.freeze(nobody.pid(), enable, 0);
        check_eq!(result, Err(Errno::INVAL), "freeze {enable}");
    }
    let status = sender.frozen_status(nobody.pid());
    check_eq!(status, Err(Errno::INVAL), "status");
    Ok(())
}

/// Neither before it is received nor before it is replied to; and the process isn't frozen then.
fn not_while_a_call_is_under_way(bench: &Bench) -> Outcome {
    let mut frozen = Frozen::start(bench)?;
    let mut client = Endpoint::client(frozen.dev)?;
    client.post(&Txn::new(&pattern(1, 5000)))?;
    let expect_busy = |frozen: &Frozen, what: &str| -> Outcome {
        for timeout in [0, 10] {
            let result = frozen.sender.freeze(frozen.pid(), true, timeout);
            check_eq!(result, Err(Errno::AGAIN), "{what}, {timeout} ms");
        }
        frozen.expect_status(0b10, 0)
    };
    expect_busy(&frozen, "a call in the queue")?;
    let call = frozen.receiver.receive()?;
    expect_busy(&frozen, "a call that was received")?;
    let txn = Txn::oneway(&[1]);
    frozen.send(&txn, BR_TRANSACTION_COMPLETE, "not frozen after all")?;
    frozen.receiver.reply(call)?;
    check!(client.reply_to_post()?.is_ok(), "no reply");
    frozen.consume(&[1], "the oneway")?;
    frozen.freeze()?;
    frozen.expect_status(0, 0)?;
    frozen.thaw()?;
    frozen.expect_all_free()
}

/// What was received, though not freed, doesn't count.
fn not_while_oneways_are_queued(bench: &Bench) -> Outcome {
    let mut frozen = Frozen::start(bench)?;
    let mut held = None;
    for i in 0..3 {
        frozen.sender.deliver(&pattern(i, 100))?;
    }
    for i in 0..3 {
        let result = frozen.sender.freeze(frozen.pid(), true, 10);
        check_eq!(result, Err(Errno::AGAIN), "{i} were received");
        if let Some(buffer) = held.take() {
            frozen.receiver.free(buffer)?;
        }
        held = Some(frozen.receiver.receive()?);
    }
    frozen.freeze()?;
    if let Some(buffer) = held {
        frozen.receiver.free(buffer)?;
    }
    frozen.thaw()?;
    frozen.expect_all_free()
}

/// A process that owns nodes, of which the test, as the device's context manager, has the handles.
struct App {
    manager: Endpoint,
    receiver: Receiver,
    handles: Vec<u32>,
}

impl App {
    fn start(bench: &Bench, nodes: usize) -> Outcome<Self> {
        let mut manager = Endpoint::manager(&bench.dev, 2 * MIB)?;
        let receiver = Receiver::start_with(AREA, || {
            let mut app = Endpoint::new(Arc::new(Binder::mapped(&bench.dev, AREA)?));
            app.enter_looper()?;
            let objects: Vec<u8> = (1..=nodes as u64)
                .flat_map(|number| bytes_of(&FlatObject::own(8 * number, number)).to_vec())
                .collect();
            let offsets: Vec<u64> = (0..nodes as u64).map(|i| 24 * i).collect();
            let status = app.send(&Txn::oneway(&objects).offsets(&offsets))?;
            check_eq!(name(status), name(BR_TRANSACTION_COMPLETE), "nodes");
            Ok(app)
        })?;
        let txn = manager.receive()?;
        let mut handles = Vec::new();
        for object in txn.bytes().chunks_exact(24) {
            handles.push(u32::from_ne_bytes(object[8..12].try_into()?));
            manager.command(BC_ACQUIRE, &object[8..12])?;
        }
        manager.free(txn.addr)?;
        check_eq!(handles.len(), nodes, "handles");
        Ok(App {
            manager,
            receiver,
            handles,
        })
    }

    fn freeze(&self, enable: bool) -> Outcome {
        Ok(self.manager.freeze(self.receiver.pid(), enable, 0)?)
    }

    /// Sends a oneway transaction to one of the nodes of the frozen process.
    fn queue(&mut self, node: usize, data: &[u8]) -> Outcome {
        let mut txn = updating(data, UPDATE, 1);
        txn.data.target = self.handles[node].into();
        let status = self.manager.send(&txn)?;
        check_eq!(
            name(status),
            name(BR_TRANSACTION_PENDING_FROZEN),
            "to node {node}"
        );
        Ok(())
    }

    fn watch(&self, command: u32, node: usize, cookie: u64) -> Outcome {
        let watch = HandleCookie {
            handle: self.handles[node],
            cookie,
        };
        self.manager.command(command, bytes_of(&watch))
    }

    fn done(&self, cookie: u64) -> Outcome {
        self.manager
            .command(BC_FREEZE_NOTIFICATION_DONE, &cookie.to_ne_bytes())
    }

    fn expect_frozen(&mut self, cookie: u64, is_frozen: bool, what: &str) -> Outcome {
        let want = FrozenState {
            cookie,
            is_frozen: is_frozen.into(),
            reserved: 0,
        };
        match self.manager.try_next()? {
            Some(Return::Frozen(state)) => check_eq!(state, want, "{what}"),
            other => fail!("{what}: {other:?}, not {want:?}"),
        }
        Ok(())
    }

    fn expect_nothing(&mut self, what: &str) -> Outcome {
        match self.manager.try_next()? {
            None => Ok(()),
            Some(other) => fail!("{what}: {other:?}"),
        }
    }
}

fn not_while_it_waits_for_a_reply(bench: &Bench) -> Outcome {
    let mut manager = Endpoint::manager(&bench.dev, MIB)?;
    let mut caller = Peer::spawn(|link| {
        let mut client = Endpoint::client(&bench.dev)?;
        client.post(&Txn::new(&[1]))?;
        let reply = client.reply_to_post()?;
        check!(reply.is_ok(), "no reply");
        link.send(0)?;
        link.recv()?;
        Ok(())
    })?;
    let call = manager.receive()?;
    let result = manager.freeze(caller.pid(), true, 0);
    check_eq!(result, Err(Errno::AGAIN), "a call of its own");
    manager.reply(&call, &[2])?;
    caller.link.recv()?;
    manager.freeze(caller.pid(), true, 0)?;
    manager.freeze(caller.pid(), false, 0)?;
    Ok(())
}

/// With a timeout, whoever freezes a process waits for calls to it until they have been replied to.
fn waits_for_the_end_of_a_call(bench: &Bench) -> Outcome {
    const MS: u32 = 20_000;
    for received in [false, true] {
        let mut frozen = Frozen::start(bench)?;
        let mut client = Endpoint::client(frozen.dev)?;
        client.post(&Txn::new(&[1]))?;
        let early = match received {
            true => Some(frozen.receiver.receive()?),
            false => None,
        };
        let (freezer, pid) = (Endpoint::sender(frozen.dev)?, frozen.pid());
        let begin = Instant::now();
        let waiting = spawn(move || freezer.freeze(pid, true, MS));
        sleep(Duration::from_millis(200));
        check!(!waiting.is_finished(), "received {received}: no wait");
        // Others are refused already.
        frozen.sender.post(&Txn::new(&[2]))?;
        let refused = frozen.sender.reply_to_post()?.err();
        check_eq!(refused, Some(BR_FROZEN_REPLY), "another call");
        let call = match early {
            Some(call) => call,
            None => frozen.receiver.receive()?,
        };
        frozen.receiver.reply(call)?;
        check!(client.reply_to_post()?.is_ok(), "no reply");
        match waiting.join() {
            Ok(result) => check_eq!(result, Ok(()), "received {received}: the freeze"),
            Err(_) => fail!("the thread panicked"),
        }
        let took = begin.elapsed();
        check!(
            took < Duration::from_millis(MS.into()),
            "received {received}: it took {took:?}"
        );
        frozen.expect_status(1, 0)?;
    }
    Ok(())
}

/// What becomes of a oneway transaction is news that can wait: the driver goes on with what else
/// it was given, or libbinder would abort.
fn commands_behind_a_queued_oneway_are_taken(bench: &Bench) -> Outcome {
    use crate::uapi::BC_TRANSACTION;
    need_logs()?;
    let mut frozen = Frozen::start(bench)?;
    frozen.freeze()?;
    let (first, second) = (pattern(1, 100), pattern(2, 200));
    let mut commands = Vec::new();
    for data in [&first, &second] {
        commands.extend_from_slice(&BC_TRANSACTION.to_ne_bytes());
        commands.extend_from_slice(bytes_of(&Txn::oneway(data).data));
    }
    let (written, _) = frozen.sender.binder.write_read(&commands, &mut [])?;
    check_eq!(written, commands.len(), "bytes that the driver took");
    for which in ["first", "second"] {
        let status = name(frozen.sender.status()?);
        check_eq!(status, name(BR_TRANSACTION_PENDING_FROZEN), "the {which}");
    }
    frozen.expect_usage(2, 304, "two in the queue")?;
    frozen.thaw()?;
    frozen.consume(&first, "the first")?;
    frozen.consume(&second, "the second")?;
    frozen.expect_all_free()
}

/// What is compared: the code, and all flags, which must have both bits.
fn an_update_takes_the_place_of_its_like(bench: &Bench) -> Outcome {
    need_logs()?;
    let mut frozen = Frozen::start(bench)?;
    frozen.freeze()?;
    // The first one is on its way to a thread, and out of reach.
    let first = pattern(1, 100);
    frozen.queue(&first, UPDATE, 7)?;
    let mut queue: VecDeque<(u32, u32, Vec<u8>)> = VecDeque::new();
    let mut send = |frozen: &mut Frozen, flags, code, seed, len| -> Outcome {
        let data = pattern(seed, len);
        frozen.queue(&data, flags, code)?;
        let is_update = flags & TF_UPDATE_TXN != 0;
        let outdated = queue
            .iter()
            .position(|old| is_update && (old.0, old.1) == (flags, code));
        outdated.map(|index| queue.remove(index));
        queue.push_back((flags, code, data));
        let bytes = queue.iter().map(|(_, _, data)| data.len()).sum::<usize>();
        let what = format!("after flags {flags:#x}, code {code}");
        frozen.expect_usage(queue.len() + 1, bytes + 104, &what)?;
        Ok(())
    };
    let mut seed = 2;
    for _ in 0..3 {
        for (flags, code) in [
            (UPDATE, 7),
            (UPDATE, 8),
            (UPDATE | TF_ACCEPT_FDS, 7),
            (TF_ONE_WAY, 7),
            (UPDATE, 7),
        ] {
            send(&mut frozen, flags, code, seed, 8 * (seed as usize * 37))?;
            seed += 1;
        }
    }
    // One with update, to one without: neither takes the other's place.
    check_eq!(queue.len(), 6, "in the queue in the end");
    frozen.thaw()?;
    frozen.consume(&first, "the first")?;
    for (flags, code, data) in queue {
        frozen.consume(&data, &format!("flags {flags:#x}, code {code}"))?;
    }
    frozen.expect_all_free()
}

fn an_update_of_another_sender_takes_no_place(bench: &Bench) -> Outcome {
    need_logs()?;
    let mut frozen = Frozen::start(bench)?;
    frozen.freeze()?;
    frozen.queue(&pattern(0, 8), UPDATE, 1)?;
    frozen.queue(&pattern(1, 8), UPDATE, 1)?;
    let mut other = Peer::spawn(|link| {
        let mut sender = Endpoint::sender(frozen.dev)?;
        for seed in [2, 3] {
            let status = sender.send(&updating(&pattern(seed, 16), UPDATE, 1))?;
            check_eq!(
                name(status),
                name(BR_TRANSACTION_PENDING_FROZEN),
                "the other sender"
            );
        }
        link.send(0)
    })?;
    other.link.recv()?;
    frozen.expect_usage(3, 32, "of both")?;
    // A process is what counts, not its file.
    frozen.sender = Endpoint::client(frozen.dev)?;
    frozen.queue(&pattern(4, 24), UPDATE, 1)?;
    frozen.expect_usage(3, 48, "by another file of the first")?;
    frozen.thaw()?;
    frozen.consume(&pattern(0, 8), "the first")?;
    frozen.consume(&pattern(3, 16), "of the other sender")?;
    frozen.consume(&pattern(4, 24), "of another file")?;
    frozen.expect_all_free()
}

fn an_update_for_another_node_takes_no_place(bench: &Bench) -> Outcome {
    need_logs()?;
    let mut app = App::start(bench, 2)?;
    app.freeze(true)?;
    for node in [0, 1] {
        for _ in 0..3 {
            app.queue(node, &pattern(node as u64, PAGE))?;
        }
    }
    let taken = |app: &App| -> Outcome<(u64, u64)> {
        match usage(&bench.dev, SLOTS) {
            Some(usage) => Ok((usage.buffers, HALF as u64 - usage.oneway_free)),
            None => fail!("no usage of {}", app.receiver.pid().as_raw_nonzero()),
        }
    };
    check_eq!(taken(&app)?, (4, 4 * PAGE as u64), "buffers and bytes");
    app.freeze(false)?;
    for _ in 0..4 {
        let buffer = app.receiver.receive()?;
        app.receiver.free(buffer)?;
    }
    check_eq!(taken(&app)?, (0, 0), "buffers and bytes afterwards");
    Ok(())
}

fn an_update_takes_no_place_without_a_freeze(bench: &Bench) -> Outcome {
    need_logs()?;
    let mut frozen = Frozen::start(bench)?;
    for i in 0..5 {
        let data = pattern(i, 8);
        let txn = updating(&data, UPDATE, 1);
        frozen.send(&txn, BR_TRANSACTION_COMPLETE, "not frozen")?;
    }
    frozen.expect_usage(5, 40, "not frozen")?;
    for i in 0..5 {
        frozen.consume(&pattern(i, 8), "not frozen")?;
    }
    frozen.expect_all_free()
}

/// A file that is sent is closed with the transaction that brings it.
fn an_update_lets_go_of_the_files(bench: &Bench) -> Outcome {
    let receiver = Receiver::start_with(AREA, || {
        Endpoint::manage_with(Binder::mapped(&bench.dev, AREA)?, ACCEPTS_FDS)
    })?;
    let mut frozen = Frozen::with(bench, receiver)?;
    frozen.freeze()?;
    frozen.queue(&[1; 8], UPDATE, 1)?;
    let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    let send = |frozen: &mut Frozen, file: &OwnedFd| -> Outcome {
        let object = FlatObject {
            kind: TYPE_FD,
            ..FlatObject::handle(file.as_raw_fd() as u32)
        };
        let data = bytes_of(&object);
        let mut txn = Txn::new(data).flags(UPDATE).offsets(&[0]);
        txn.data.code = 1;
        frozen.send(&txn, BR_TRANSACTION_PENDING_FROZEN, "a file")
    };
    send(&mut frozen, &write)?;
    drop(write);
    let read = || rustix::io::read(&read, &mut [0; 1]);
    check_eq!(read(), Err(Errno::AGAIN), "while the file is in the queue");
    frozen.queue(&[2; 32], UPDATE, 1)?;
    // Files are closed a bit later.
    vanishes("writers of the pipe", || match read() {
        Ok(_) => Ok(0),
        Err(_) => Ok(1),
    })
}

/// Each of a thousand updates takes the only free place, and gives back another one.
fn a_queue_with_one_place_left_is_updated(bench: &Bench) -> Outcome {
    need_logs()?;
    const PLACES: usize = HALF / PAGE;
    let mut frozen = Frozen::start(bench)?;
    frozen.freeze()?;
    let mut queue = VecDeque::new();
    for code in 0..PLACES as u32 - 1 {
        frozen.queue(&pattern(u64::from(code), PAGE), UPDATE, code)?;
        queue.push_back((code, u64::from(code)));
    }
    let taken = HALF - PAGE;
    let before = frozen.expect_usage(PLACES - 1, taken, "one place left")?;
    for seed in 1000..2000 {
        // Not the first one.
        let code = 1 + (seed as u32 * 7919) % (PLACES as u32 - 2);
        frozen.queue(&pattern(seed, PAGE), UPDATE, code)?;
        let outdated = queue.iter().position(|old| old.0 == code);
        outdated.map(|index| queue.remove(index));
        queue.push_back((code, seed));
        let after = frozen.expect_usage(PLACES - 1, taken, "after an update")?;
        check_eq!(after.pages[0], before.pages[0], "pages in use");
    }
    // What is left is enough for one more, and then there is nothing.
    frozen.queue(&pattern(2000, PAGE), UPDATE, 5000)?;
    queue.push_back((5000, 2000));
    let full = frozen.sender.send(&updating(&[], UPDATE, 5001))?;
    expect_failed(full, "one byte more")?;
    frozen.thaw()?;
    for (code, seed) in queue {
        frozen.consume(&pattern(seed, PAGE), &format!("code {code}"))?;
    }
    frozen.expect_all_free()
}

/// The place of the old one isn't free before the new one has its own.
fn a_full_queue_refuses_updates(bench: &Bench) -> Outcome {
    need_logs()?;
    let mut frozen = Frozen::start(bench)?;
    frozen.freeze()?;
    // Up to the last byte, with buffers of two sizes.
    let mut sent = 0;
    for len in [8 * KIB + 8, 8] {
        let data = pattern(1, len);
        loop {
            let code = 1 + sent as u32 % 2;
            match frozen.sender.send(&updating(&data, TF_ONE_WAY, code))? {
                BR_TRANSACTION_PENDING_FROZEN => sent += 1,
                status => break expect_failed(status, "no space")?,
            }
        }
    }
    let before = frozen.expect_usage(sent, HALF, "full")?;
    note!("{sent} in the queue");
    for round in 0..1000 {
        let status = frozen.sender.send(&updating(&[1], UPDATE, 1))?;
        expect_failed(status, &format!("round {round}"))?;
        check_eq!(
            frozen.sender.extended_error()?,
            Errno::NOSPC,
            "round {round}"
        );
    }
    let after = frozen.expect_usage(sent, HALF, "full still")?;
    check_eq!(after, before, "usage");
    frozen.thaw()?;
    for _ in 0..sent {
        let buffer = frozen.receiver.receive()?;
        frozen.receiver.free(buffer)?;
    }
    frozen.expect_all_free()
}

/// The receiver pays for what is in its queue, not for what was.
fn updates_are_charged_once(bench: &Bench) -> Outcome {
    const LEN: usize = 128 * KIB;
    let cgroup = Cgroup::create("updated")?;
    let ours = Cgroup::create("updating")?;
    let mut frozen = Frozen::start_in(bench, || cgroup.enter())?;
    ours.enter()?;
    frozen.receiver.idle(&mut frozen.sender, 1)?;
    let (before, ours_before) = (cgroup.pages()?, ours.pages()?);
    frozen.freeze()?;
    frozen.queue(&[1], UPDATE, 1)?;
    for seed in 0..1000 {
        frozen.queue(&pattern(seed, LEN), UPDATE, 1)?;
    }
    let (after, ours_after) = (cgroup.pages()?, ours.pages()?);
    leave()?;
    note!("receiver {before} -> {after} pages, sender {ours_before} -> {ours_after} pages");
    // The new one and the old one, which was there before the new one came.
    let two = 2 * (LEN / PAGE) as u64;
    check!(after <= before + two + SLACK, "the receiver's charge");
    check!(ours_after <= ours_before + SLACK, "the sender's charge");
    frozen.thaw()?;
    frozen.consume(&[1], "the first")?;
    frozen.consume(&pattern(999, LEN), "the last")?;
    for node in 0..shrinker::nodes() {
        shrinker::scan(cgroup.id()?, node, SLOTS);
    }
    falls_to(before + SLACK, || cgroup.pages())?;
    drop(frozen);
    cgroup.remove()
}

/// Fills the queue of a frozen process.
fn fill(frozen: &mut Frozen) -> Outcome {
    frozen.freeze()?;
    let data = pattern(1, 4000);
    loop {
        match frozen.sender.send(&updating(&data, UPDATE, 1 << 31))? {
            // The second one is updated, the others are not.
            BR_TRANSACTION_PENDING_FROZEN => {}
            status => return expect_failed(status, "no space"),
        }
        match frozen.sender.send(&Txn::oneway(&data))? {
            BR_TRANSACTION_PENDING_FROZEN => {}
            status => return expect_failed(status, "no space"),
        }
    }
}

fn death_with_a_full_queue(bench: &Bench) -> Outcome {
    let mut frozen = Frozen::start(bench)?;
    fill(&mut frozen)?;
    frozen.receiver.peer().kill()?;
    vanishes("processes but the sender", || {
        Ok((shrinker::processes(frozen.dev) as u64).saturating_sub(1))
    })?;
    let status = frozen.sender.send(&Txn::oneway(&[1]))?;
    expect_dead_reply(status)?;
    frozen.sender.post(&Txn::new(&[1]))?;
    match frozen.sender.reply_to_post()? {
        Err(code) => check_eq!(name(code), name(BR_DEAD_REPLY), "a call"),
        Ok(_) => fail!("a dead process replied"),
    }
    Ok(())
}

fn death_with_a_full_queue_leaves_nothing_charged(bench: &Bench) -> Outcome {
    let tree = Tree::create("frozen")?;
    let cgroup = tree.child("receiver")?;
    let mut frozen = Frozen::start_in(bench, || cgroup.enter())?;
    fill(&mut frozen)?;
    check!(
        cgroup.pages()? >= (HALF / PAGE) as u64,
        "nothing was charged"
    );
    frozen.receiver.peer().kill()?;
    drop(frozen);
    cgroup.remove()?;
    tree.expect_nothing_left()
}

fn whoever_watches_is_told(bench: &Bench) -> Outcome {
    let mut app = App::start(bench, 2)?;
    for node in [0, 1] {
        let cookie = 0xc00c1e + node as u64;
        app.watch(BC_REQUEST_FREEZE_NOTIFICATION, node, cookie)?;
        app.expect_frozen(cookie, false, "at first")?;
        app.done(cookie)?;
    }
    let pages = usage(&bench.dev, SLOTS);
    for round in 0..5 {
        for enable in [true, false] {
            app.freeze(enable)?;
            let mut told = Vec::new();
            for _ in 0..2 {
                match app.manager.try_next()? {
                    Some(Return::Frozen(state)) => told.push(state),
                    other => fail!("round {round}, {enable}: {other:?}"),
                }
            }
            told.sort_by_key(|state| state.cookie);
            for (state, cookie) in told.iter().zip(0xc00c1e..) {
                check_eq!(state.cookie, cookie, "round {round}, {enable}: cookie");
                check_eq!(state.is_frozen, enable.into(), "round {round}: is_frozen");
                app.done(cookie)?;
            }
            app.expect_nothing("after that")?;
        }
    }
    check_eq!(usage(&bench.dev, SLOTS), pages, "usage");
    for node in [0, 1] {
        let cookie = 0xc00c1e + node as u64;
        app.watch(BC_CLEAR_FREEZE_NOTIFICATION, node, cookie)?;
        match app.manager.try_next()? {
            Some(Return::Unwatched(other)) => check_eq!(other, cookie, "the end"),
            other => fail!("the end of watching: {other:?}"),
        }
    }
    app.freeze(true)?;
    app.expect_nothing("when nobody watches")
}

fn news_wait_for_the_answer_to_the_last(bench: &Bench) -> Outcome {
    let mut app = App::start(bench, 1)?;
    app.watch(BC_REQUEST_FREEZE_NOTIFICATION, 0, 1)?;
    app.expect_frozen(1, false, "at first")?;
    app.freeze(true)?;
    app.expect_nothing("before the answer")?;
    app.done(1)?;
    app.expect_frozen(1, true, "after the answer")?;
    app.freeze(false)?;
    app.watch(BC_CLEAR_FREEZE_NOTIFICATION, 0, 1)?;
    app.expect_nothing("before the second answer")?;
    app.done(1)?;
    match app.manager.try_next()? {
        Some(Return::Unwatched(1)) => Ok(()),
        other => fail!("the end of watching: {other:?}"),
    }
}

fn wrong_watching_is_refused(bench: &Bench) -> Outcome {
    let mut app = App::start(bench, 1)?;
    let refused = |command, handle, cookie: u64, app: &App| -> Outcome {
        let mut buffer = u32::to_ne_bytes(command).to_vec();
        match command {
            BC_FREEZE_NOTIFICATION_DONE => buffer.extend_from_slice(&cookie.to_ne_bytes()),
            _ => buffer.extend_from_slice(bytes_of(&HandleCookie { handle, cookie })),
        }
        let result = app.manager.binder.write_read(&buffer, &mut []);
        let what = format!("command {command:#x}, handle {handle}, cookie {cookie}");
        check_eq!(result, Err(Errno::INVAL), "{what}");
        Ok(())
    };
    let handle = app.handles[0];
    refused(BC_REQUEST_FREEZE_NOTIFICATION, 999, 1, &app)?;
    refused(BC_CLEAR_FREEZE_NOTIFICATION, 999, 1, &app)?;
    refused(BC_CLEAR_FREEZE_NOTIFICATION, handle, 1, &app)?;
    refused(BC_FREEZE_NOTIFICATION_DONE, handle, 1, &app)?;
    app.watch(BC_REQUEST_FREEZE_NOTIFICATION, 0, 1)?;
    refused(BC_REQUEST_FREEZE_NOTIFICATION, handle, 2, &app)?;
    refused(BC_CLEAR_FREEZE_NOTIFICATION, handle, 2, &app)?;
    // It isn't told yet.
    refused(BC_FREEZE_NOTIFICATION_DONE, handle, 1, &app)?;
    app.expect_frozen(1, false, "after all that")?;
    app.done(1)?;
    refused(BC_FREEZE_NOTIFICATION_DONE, handle, 1, &app)
}
