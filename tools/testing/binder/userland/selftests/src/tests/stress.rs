// SPDX-License-Identifier: GPL-2.0

//! Many at once.

use crate::{
    binder::{Binder, Device, KIB, MIB},
    check, check_eq,
    data::{checksum, pattern},
    endpoint::{Endpoint, Txn},
    note,
    outcome::{Outcome, Stop},
    process::Peer,
    remote::Receiver,
    runner::{Bench, Test},
    shrinker, tests,
    uapi::{name, BR_TRANSACTION_COMPLETE, SET_CONTEXT_MGR},
};
use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

pub const TESTS: &[Test] = tests!["stress":
    four_clients_four_servers @ 20,
    four_clients_four_servers_under_the_shrinker @ 20,
    processes_come_and_go @ 30,
    mappings_go_under_fire @ 30,
];

const TIME: Duration = Duration::from_secs(2);

/// Runs `count` threads of `body`, and fails if one of them fails.
fn threads(count: u64, body: impl Fn(u64) -> Outcome + Sync) -> Outcome {
    thread::scope(|scope| {
        let body = &body;
        let threads: Vec<_> = (0..count).map(|i| scope.spawn(move || body(i))).collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or(Err(Stop::Fail("a thread panicked".into())))
        })
    })
}

/// A process with four threads that answer each payload with its checksum and the payload itself.
fn spawn_server(dev: &Device) -> Outcome<Peer> {
    let mut peer = Peer::spawn(|link| {
        let binder = Binder::mapped(dev, 4 * MIB)?;
        binder.set::<{ SET_CONTEXT_MGR }>(0)?;
        let binder = Arc::new(binder);
        link.send(0)?;
        threads(4, |_| {
            let mut server = Endpoint::new(binder.clone());
            server.enter_looper()?;
            loop {
                let txn = server.receive()?;
                let data = txn.bytes();
                if txn.flags & crate::uapi::TF_ONE_WAY != 0 {
                    server.free(txn.addr)?;
                    continue;
                }
                let mut answer = checksum(&data).to_ne_bytes().to_vec();
                answer.extend_from_slice(&data);
                server.reply(&txn, &answer)?;
            }
        })
    })?;
    peer.link.recv()?;
    Ok(peer)
}

/// Calls with all sizes until the time is over, some oneway calls between; tells how many.
fn hammer(binder: &Arc<Binder>, seed: u64, time: Duration) -> Outcome<u64> {
    let mut client = Endpoint::new(binder.clone());
    let until = Instant::now() + time;
    let mut calls = 0;
    while Instant::now() < until {
        calls += 1;
        let number = seed * 1_000_003 + calls * 7919;
        // Mostly small, as in real life, and some large ones.
        let len = number as usize % if calls % 8 == 0 { 200 * KIB } else { 3000 };
        let data = pattern(number, len);
        if calls % 5 == 0 {
            // May be over the budget: also an answer.
            client.send(&Txn::oneway(&data))?;
        }
        client.post(&Txn::new(&data))?;
        let reply = match client.reply_to_post()? {
            Ok(reply) => reply,
            Err(code) => crate::fail!("call {calls} of {len} bytes: {}", name(code)),
        };
        let bytes = reply.bytes();
        check_eq!(bytes.len(), len + 8, "length of reply {calls}");
        check_eq!(
            bytes[..8],
            checksum(&data).to_ne_bytes(),
            "checksum of call {calls}"
        );
        check!(bytes[8..] == data, "reply {calls} of {len} bytes changed");
        client.free(reply.addr)?;
    }
    Ok(calls)
}

fn four_against_four(bench: &Bench) -> Outcome {
    let _server = spawn_server(&bench.dev)?;
    let binder = Arc::new(Binder::mapped(&bench.dev, 4 * MIB)?);
    threads(4, |i| {
        note!("thread {i}: {} calls", hammer(&binder, i, TIME)?);
        Ok(())
    })
}

fn four_clients_four_servers(bench: &Bench) -> Outcome {
    four_against_four(bench)
}

fn four_clients_four_servers_under_the_shrinker(bench: &Bench) -> Outcome {
    shrinker::need()?;
    let _shrinker = Peer::spawn(|_| {
        let mut round = 0;
        loop {
            round += 1;
            shrinker::scan_each(1 + round % 100);
        }
    })?;
    four_against_four(bench)
}

fn processes_come_and_go(bench: &Bench) -> Outcome {
    let _server = spawn_server(&bench.dev)?;
    for round in 0..10 {
        let mut clients = Vec::new();
        for i in 0..4 {
            clients.push(Peer::spawn(|_| {
                let binder = Arc::new(Binder::mapped(&bench.dev, MIB)?);
                hammer(&binder, round * 4 + i, Duration::from_millis(100))?;
                Ok(())
            })?);
        }
        clients.pop().expect("four of them").kill()?;
        for client in &mut clients {
            check_eq!(
                client.wait()?.exit_status(),
                Some(0),
                "round {round}: a client"
            );
        }
    }
    Ok(())
}

/// A mapping goes, or other memory takes its place, while pages are inserted into it and taken out
/// (3f489c2067c5, d1d8875c8c13).
fn mappings_go_under_fire(bench: &Bench) -> Outcome {
    let mut shrinker = Peer::spawn(|_| loop {
        shrinker::scan_each(8);
    })?;
    for round in 0..24u64 {
        let mut receiver = Receiver::start(&bench.dev, 4 * MIB, || Ok(()))?;
        let first = receiver.idle(&mut Endpoint::sender(&bench.dev)?, 100)?;
        let mut senders = Vec::new();
        for i in 0..2 {
            senders.push(Peer::spawn(|link| {
                let mut sender = Endpoint::sender(&bench.dev)?;
                let data = pattern(i, 60 * KIB);
                link.send(0)?;
                // Until the budget is spent or the mapping is gone.
                while sender.send(&Txn::oneway(&data))? == BR_TRANSACTION_COMPLETE {}
                Ok(())
            })?);
        }
        for sender in &mut senders {
            sender.link.recv()?;
        }
        thread::sleep(Duration::from_micros(50 * round));
        if round % 2 == 0 {
            receiver.unmap()?;
        } else {
            receiver.impostor()?;
            receiver.check_impostor(first.addr)?;
        }
        for sender in &mut senders {
            check_eq!(
                sender.wait()?.exit_status(),
                Some(0),
                "round {round}: a sender"
            );
        }
        if round % 2 == 1 {
            receiver.check_impostor(first.addr)?;
        }
    }
    shrinker.kill()
}
