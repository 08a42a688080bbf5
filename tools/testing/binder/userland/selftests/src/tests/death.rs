// SPDX-License-Identifier: GPL-2.0

//! One side dies at a bad moment.

use super::expect_dead_reply;
use crate::{
    binder::{KIB, MIB, PAGE},
    check, check_eq,
    data::pattern,
    endpoint::{bytes_of, Endpoint, Txn},
    note,
    outcome::{Context, Outcome},
    process::Peer,
    remote::Receiver,
    runner::{Bench, Test},
    shrinker, tests,
    uapi::{name, BC_TRANSACTION, BR_DEAD_REPLY, BR_FAILED_REPLY, BR_TRANSACTION_COMPLETE},
};
use rustix::{
    io::{fcntl_setfd, FdFlags},
    process::Signal,
};
use std::{
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::CommandExt},
    },
    process::Command,
    thread::sleep,
    time::Duration,
};

pub const TESTS: &[Test] = tests!["death":
    receiver_killed_before_it_receives,
    receiver_killed_before_it_replies,
    receiver_killed_with_many_buffers,
    receiver_killed_while_stopped,
    receivers_killed_under_fire @ 30,
    receivers_killed_while_a_sender_brings_pages @ 30,
    sender_killed_before_the_reply,
    senders_killed_under_way @ 30,
    receiver_executes_another_program,
];

fn start(bench: &Bench) -> Outcome<Receiver> {
    Receiver::start(&bench.dev, MIB, || Ok(()))
}

fn expect_dead(client: &mut Endpoint) -> Outcome {
    match client.reply_to_post()? {
        Err(BR_DEAD_REPLY) => Ok(()),
        Err(code) => crate::fail!("{}", name(code)),
        Ok(_) => crate::fail!("a dead process replied"),
    }
}

/// What the next one gets: there is no context manager any more.
fn expect_nobody(client: &mut Endpoint) -> Outcome {
    // The driver releases a process some time after its end.
    for _ in 0..100 {
        client.post(&Txn::oneway(&[1]))?;
        match client.status()? {
            BR_DEAD_REPLY => return Ok(()),
            _ => sleep(Duration::from_millis(20)),
        }
    }
    crate::fail!("the dead process still takes transactions")
}

fn receiver_killed_before_it_receives(bench: &Bench) -> Outcome {
    let mut receiver = start(bench)?;
    let mut client = Endpoint::client(&bench.dev)?;
    client.post(&Txn::new(&pattern(1, 100 * KIB)))?;
    receiver.peer().kill()?;
    expect_dead(&mut client)?;
    expect_nobody(&mut client)
}

fn receiver_killed_before_it_replies(bench: &Bench) -> Outcome {
    let mut receiver = start(bench)?;
    let mut client = Endpoint::client(&bench.dev)?;
    client.post(&Txn::new(&pattern(1, 100 * KIB)))?;
    receiver.receive()?;
    receiver.peer().kill()?;
    expect_dead(&mut client)?;
    expect_nobody(&mut client)
}

/// Received, queued, freed and idle ones; that no page stays is what the runner checks.
fn receiver_killed_with_many_buffers(bench: &Bench) -> Outcome {
    let mut receiver = start(bench)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    let mut clients = Vec::new();
    receiver.idle(&mut sender, 100)?;
    for i in 0..40 {
        sender.deliver(&pattern(i, 3000))?;
    }
    for i in 0..10 {
        let client = Endpoint::client(&bench.dev)?;
        client.post(&Txn::new(&pattern(i, 10_000)))?;
        clients.push(client);
    }
    receiver.receive()?;
    receiver.receive()?;
    receiver.peer().kill()?;
    for client in &mut clients {
        expect_dead(client)?;
    }
    expect_nobody(&mut sender)
}

fn receiver_killed_while_stopped(bench: &Bench) -> Outcome {
    let mut receiver = start(bench)?;
    let mut client = Endpoint::client(&bench.dev)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    receiver.idle(&mut sender, 50)?;
    receiver.peer().signal(Signal::STOP)?;
    client.post(&Txn::new(&pattern(1, 10_000)))?;
    shrinker::scan_all(8);
    receiver.peer().kill()?;
    expect_dead(&mut client)
}

/// Sends oneway. Waits a little when that is refused: the driver logs each time.
fn send_or_rest(sender: &mut Endpoint, data: &[u8]) -> Outcome<u32> {
    let status = sender.send(&Txn::oneway(data))?;
    if status == BR_FAILED_REPLY {
        sleep(Duration::from_millis(1));
    }
    Ok(status)
}

/// Senders copy into the receiver's pages while it goes away.
fn receivers_killed_under_fire(bench: &Bench) -> Outcome {
    for round in 0..15u64 {
        let mut receiver = start(bench)?;
        let mut senders = Vec::new();
        for i in 0..3 {
            senders.push(Peer::spawn(|link| {
                let mut sender = Endpoint::sender(&bench.dev)?;
                let data = pattern(i, 100 * KIB + 77);
                link.send(0)?;
                // Until the manager is gone; over budget is no reason to stop.
                while send_or_rest(&mut sender, &data)? != BR_DEAD_REPLY {
                    send_or_rest(&mut sender, &data[..PAGE])?;
                }
                Ok(())
            })?);
        }
        for sender in &mut senders {
            sender.link.recv()?;
        }
        for _ in 0..round % 4 {
            let buffer = receiver.receive()?;
            receiver.free(buffer)?;
        }
        sleep(Duration::from_millis(round));
        receiver.peer().kill()?;
        for sender in &mut senders {
            check_eq!(
                sender.wait()?.exit_status(),
                Some(0),
                "round {round}: a sender"
            );
        }
    }
    Ok(())
}

/// Then the sender may be the last one to use the receiver's memory. Would it take that down itself,
/// the receiver's file would be closed no sooner than the sender returns to userspace; and the
/// sender waits for a reply meanwhile (9a9ab0d96362).
fn receivers_killed_while_a_sender_brings_pages(bench: &Bench) -> Outcome {
    for round in 0..60 {
        let mut receiver = Receiver::start(&bench.dev, 4 * MIB, || Ok(()))?;
        let mut sender = Peer::spawn(|link| {
            let mut client = Endpoint::client(&bench.dev)?;
            let data = vec![1; 4 * MIB];
            let mut command = BC_TRANSACTION.to_ne_bytes().to_vec();
            command.extend_from_slice(bytes_of(&Txn::new(&data).data));
            link.send(0)?;
            // Sends, and waits for the reply, in the same system call.
            let mut returned = [0; 1024];
            let (_, read) = client.binder.write_read(&command, &mut returned)?;
            client.parse(&returned[..read])?;
            expect_dead(&mut client)
        })?;
        sender.link.recv()?;
        sleep(Duration::from_micros(50 * round));
        receiver.peer().kill()?;
        let status = sender.wait().context(&format!("round {round}"))?;
        check_eq!(status.exit_status(), Some(0), "round {round}");
    }
    Ok(())
}

/// The reply goes nowhere. The C driver tells the receiver so, the Rust driver may say that all
/// went well; the buffers are free in both.
fn sender_killed_before_the_reply(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Peer::spawn(|link| {
        let client = Endpoint::client(&bench.dev)?;
        client.post(&Txn::new(&pattern(1, 50_000)))?;
        link.send(0)?;
        link.recv()?;
        Ok(())
    })?;
    sender.link.recv()?;
    let txn = server.receive()?;
    sender.kill()?;
    check!(
        txn.bytes() == pattern(1, 50_000),
        "the buffer changed with its sender's death"
    );
    server.reply(&txn, &pattern(2, 5000))?;
    let status = server.status()?;
    note!("reply to a dead sender: {}", name(status));
    let known = [BR_TRANSACTION_COMPLETE, BR_DEAD_REPLY, BR_FAILED_REPLY];
    check!(known.contains(&status), "{}", name(status));
    let mut client = Endpoint::client(&bench.dev)?;
    super::transactions::round_trip(&mut client, &mut server, &pattern(3, 300_000))
}

fn senders_killed_under_way(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, 4 * MIB)?;
    for round in 0..30 {
        let mut sender = Peer::spawn(|link| {
            let data = pattern(round, 700_000);
            let mut sender = Endpoint::sender(&bench.dev)?;
            link.send(0)?;
            loop {
                send_or_rest(&mut sender, &data)?;
            }
        })?;
        sender.link.recv()?;
        sleep(Duration::from_micros(300 * round));
        sender.kill()?;
        // What got through is whole.
        while let Some(returned) = server.try_next()? {
            if let crate::endpoint::Return::Transaction(txn) = returned {
                check!(
                    txn.bytes() == pattern(round, 700_000),
                    "round {round}: changed"
                );
                server.free(txn.addr)?;
            }
        }
    }
    // Nothing of it is still allocated.
    let mut client = Endpoint::client(&bench.dev)?;
    client.post(&Txn::new(&pattern(3, 4 * MIB)))?;
    check_eq!(server.receive()?.len, 4 * MIB, "length afterwards");
    check!(client.try_next()?.is_none(), "a status came");
    Ok(())
}

/// A context manager that receives and frees one transaction and then executes another program,
/// with the file still open. Its link says 0 twice, and closes with the exec.
pub fn spawn_executing(bench: &Bench) -> Outcome<Peer> {
    let mut peer = Peer::spawn(|link| {
        let mut server = Endpoint::manager(&bench.dev, MIB)?;
        link.send(0)?;
        server.consume()?;
        link.send(0)?;
        let (keep, stdin) = UnixStream::pair()?;
        // Neither closes at the exec; with `keep` open only a signal ends the program.
        fcntl_setfd(&server.binder.fd, FdFlags::empty())?;
        fcntl_setfd(&keep, FdFlags::empty())?;
        let mut program = Command::new("/proc/self/exe");
        Err(program
            .arg("--hold")
            .stdin(OwnedFd::from(stdin))
            .exec()
            .into())
    })?;
    peer.link.recv()?;
    Ok(peer)
}

/// The memory that the driver knows is gone, and will not come back.
fn receiver_executes_another_program(bench: &Bench) -> Outcome {
    let mut receiver = spawn_executing(bench)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    sender.deliver(&pattern(1, 200 * KIB))?;
    receiver.link.recv()?;
    check!(receiver.link.recv().is_err(), "no exec");
    // The freed pages of the first one are idle; upstream's Rust driver doesn't look whether there
    // is anybody left who could read them.
    for len in [300 * KIB, 400 * KIB] {
        expect_dead_reply(sender.send(&Txn::new(&pattern(3, len)))?)?;
    }
    shrinker::scan_all(16);
    expect_dead_reply(sender.send(&Txn::new(&pattern(3, 500 * KIB)))?)?;
    receiver.kill()?;
    expect_nobody(&mut sender)
}
