// SPDX-License-Identifier: GPL-2.0

//! Many at once, for seconds. `--stress` is for longer.

use crate::{
    binder::{Binder, Device, KIB, MIB, PAGE},
    cgroup::Cgroup,
    check, check_eq,
    data::{checksum, pattern, payload},
    endpoint::{Endpoint, Txn},
    faults::{Failing, Faults},
    note,
    outcome::{Outcome, Stop},
    process::Peer,
    remote::Receiver,
    runner::{Bench, Test},
    shrinker, tests,
    uapi::{name, BR_FAILED_REPLY, BR_TRANSACTION_COMPLETE, SET_CONTEXT_MGR, TF_ONE_WAY},
};
use rustix::io::Errno;
use std::{
    sync::{
        atomic::{AtomicU64, Ordering::Relaxed},
        Arc,
    },
    thread,
    time::{Duration, Instant},
};

pub const TESTS: &[Test] = tests!["stress":
    four_clients_four_servers @ 20,
    four_clients_four_servers_under_the_shrinker @ 20,
    processes_come_and_go @ 30,
    mappings_go_under_fire @ 30,
    installations_fail_half_way @ 30,
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
                if txn.flags & TF_ONE_WAY != 0 {
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
    let mut shrinker = Peer::spawn(|_| {
        let mut round = 0;
        loop {
            round += 1;
            shrinker::scan_each(1 + round % 100);
        }
    })?;
    four_against_four(bench)?;
    shrinker.kill()
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

/// How much the receiver of [`installations_fail_half_way`] maps.
const AREA: usize = 4 * MIB;

/// A receiver that compares and frees what it gets. It replies with how many oneway transactions it
/// got.
///
/// It takes no more memory once it has got something of each kind: its cgroup has none for it, and
/// what a receiver asks for itself does set off the OOM killer.
fn spawn_checker(dev: &Device, cgroup: &Cgroup, data: &[u8]) -> Outcome<Peer> {
    let mut peer = Peer::spawn(|link| {
        cgroup.enter()?;
        let mut receiver = Endpoint::manager(dev, AREA)?;
        link.send(0)?;
        let mut oneway = 0u64;
        loop {
            let txn = receiver.receive()?;
            check!(
                txn.has(payload(data, txn.len)),
                "transaction of {} bytes changed",
                txn.len
            );
            if txn.flags & TF_ONE_WAY == 0 {
                receiver.reply(&txn, &oneway.to_ne_bytes())?;
            } else {
                oneway += 1;
                receiver.free(txn.addr)?;
            }
        }
    })?;
    peer.link.recv()?;
    Ok(peer)
}

/// Calls the checker, which must get it; the answer is how many oneway transactions it got.
fn call(client: &mut Endpoint, data: &[u8], len: usize) -> Outcome<u64> {
    client.post(&Txn::new(payload(data, len)))?;
    match client.reply_to_post()? {
        Ok(reply) => {
            let oneway = u64::from_ne_bytes(reply.bytes().as_slice().try_into()?);
            client.free(reply.addr)?;
            Ok(oneway)
        }
        Err(code) => crate::fail!(
            "call of {len} bytes: {}, {}",
            name(code),
            client.extended_error()?
        ),
    }
}

/// Sends oneway transactions while pages often can't be had; says how many the receiver got, and how
/// many not.
fn bombard(client: &mut Endpoint, data: &[u8], seed: u64) -> Outcome<(u64, u64)> {
    let _failing = Failing::begin()?;
    let until = Instant::now() + TIME + Duration::from_secs(1);
    let (mut sent, mut failed) = (0, 0);
    while Instant::now() < until {
        let number = (sent + failed) * 7919 + seed * 1_000_003;
        // The first sends only large ones, the last mostly small ones. A small one often comes to
        // lie on the last page of a large one.
        let len = match (sent + failed) % (seed + 1) {
            0 => 16 * KIB + number as usize % (400 * KIB),
            _ => 8 + number as usize % 593,
        };
        match client.send(&Txn::oneway(payload(data, len)))? {
            BR_TRANSACTION_COMPLETE => sent += 1,
            BR_FAILED_REPLY => {
                failed += 1;
                let error = client.extended_error()?;
                // There was no memory, or the sender has spent the oneway space.
                check!(
                    error == Errno::NOMEM || error == Errno::NOSPC,
                    "transaction of {len} bytes: {error}"
                );
            }
            code => crate::fail!("transaction of {len} bytes: {}", name(code)),
        }
    }
    Ok((sent, failed))
}

/// Buffers share their first and last page with others. What a failed installation takes back must
/// not be what another thread is installing on the shared page.
fn installations_fail_half_way(bench: &Bench) -> Outcome {
    const SENDERS: u64 = 6;
    const SIZES: [usize; 6] = [8, 100, 600, 16 * KIB + 8, 60 * KIB + 100, 200 * KIB];
    let cgroup = Cgroup::create("half-way")?;
    let data = pattern(1, AREA + 256);
    let _receiver = spawn_checker(&bench.dev, &cgroup, &data)?;
    let binder = Arc::new(Binder::mapped(&bench.dev, MIB)?);
    let mut client = Endpoint::new(binder.clone());
    for len in SIZES {
        call(&mut client, &data, len)?;
        client.deliver(payload(&data, len))?;
    }
    while call(&mut client, &data, 8)? < SIZES.len() as u64 {}

    let faults = Faults::enable_some_pages()?;
    cgroup.reclaim((AREA / PAGE) as u64);
    // So that there always are pages to be brought.
    let mut squeezer = Peer::spawn(|_| loop {
        cgroup.reclaim(64);
        thread::sleep(Duration::from_millis(2));
    })?;
    let (sent, failed) = (AtomicU64::new(0), AtomicU64::new(0));
    threads(SENDERS, |i| {
        let (more, less) = bombard(&mut Endpoint::new(binder.clone()), &data, i)?;
        sent.fetch_add(more, Relaxed);
        failed.fetch_add(less, Relaxed);
        Ok(())
    })?;
    let (sent, failed) = (sent.into_inner(), failed.into_inner());
    note!("{sent} transactions, {failed} failed");
    check!(
        sent > 0 && failed > 0,
        "{sent} transactions, {failed} failed"
    );

    squeezer.kill()?;
    drop(faults);
    // The receiver gets all that was sent, and then each page can be used.
    while call(&mut client, &data, 8)? < sent + SIZES.len() as u64 {}
    threads(SENDERS, |_| {
        let mut client = Endpoint::new(binder.clone());
        SIZES
            .iter()
            .try_for_each(|&len| call(&mut client, &data, len).map(|_| ()))
    })?;
    call(&mut client, &data, AREA)?;
    check_eq!(cgroup.event("oom_kill")?, 0, "oom_kill");
    Ok(())
}
