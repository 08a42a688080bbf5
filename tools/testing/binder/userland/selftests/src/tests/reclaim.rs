// SPDX-License-Identifier: GPL-2.0

//! The shrinker takes idle pages, all of them, and nothing else.

use crate::{
    binder::{peek, Device, KIB, MIB, PAGE},
    check, check_eq,
    data::{all_zero, checksum, pattern},
    endpoint::Endpoint,
    note,
    outcome::{skip, Outcome},
    process::Peer,
    remote::Receiver,
    runner::{Bench, Test},
    shrinker, tests,
};
use rustix::{
    process::Signal,
    thread::{sched_setaffinity, CpuSet},
};
use std::time::{Duration, Instant};

pub const TESTS: &[Test] = tests!["reclaim":
    idle_pages_are_freed,
    every_small_scan_frees_something,
    idle_pages_are_listed_on_their_own_node,
    pages_in_use_keep_their_data,
    reclaimed_pages_come_back_zero,
    freed_and_used_again_between_scans,
    of_a_stopped_process,
    of_a_process_without_its_mapping,
    of_a_process_with_an_impostor,
    of_a_split_mapping,
    unmapped_process_doesnt_starve_others,
    impostor_doesnt_starve_others,
    executed_process_doesnt_starve_others,
    while_processes_exit @ 30,
    while_transactions_run @ 30,
];

const PAGES: u64 = 100;

fn start(bench: &Bench) -> Outcome<(u64, Receiver, Endpoint)> {
    let base = shrinker::swept()?;
    let receiver = Receiver::start(&bench.dev, MIB, || Ok(()))?;
    Ok((base, receiver, Endpoint::sender(&bench.dev)?))
}

/// All that came on top of `base` can be reclaimed.
fn expect_swept(base: u64) -> Outcome {
    let gone = shrinker::scan_until(|total| total <= base);
    check!(
        gone,
        "{} idle pages can't be reclaimed",
        shrinker::total() - base
    );
    Ok(())
}

/// Also where there are no per-VMA locks: with upstream's Rust driver, they stay then.
fn idle_pages_are_freed(bench: &Bench) -> Outcome {
    let (base, mut receiver, mut sender) = start(bench)?;
    for _ in 0..3 {
        receiver.idle(&mut sender, PAGES as usize)?;
        check_eq!(shrinker::total(), base + PAGES, "idle pages");
        expect_swept(base)?;
    }
    Ok(())
}

/// Neighbours may be taken along, so it may be more than was asked for.
fn every_small_scan_frees_something(bench: &Bench) -> Outcome {
    let (base, mut receiver, mut sender) = start(bench)?;
    receiver.idle(&mut sender, PAGES as usize)?;
    let mut last = shrinker::total();
    let mut scans = 0;
    while last > base {
        scans += 1;
        check!(
            scans <= PAGES,
            "{} pages left after {scans} scans",
            last - base
        );
        shrinker::scan_each(1);
        let now = shrinker::total();
        check!(
            now < last,
            "a scan of one page freed none of {}",
            last - base
        );
        last = now;
    }
    Ok(())
}

/// Not on that of the memory which describes them (49d2562c804f).
fn idle_pages_are_listed_on_their_own_node(bench: &Bench) -> Outcome {
    if shrinker::nodes() < 2 {
        return skip("one NUMA node");
    }
    let (base, mut receiver, mut sender) = start(bench)?;
    for node in [0, 1, 0] {
        // What describes the pages is allocated the first time, on node 0. In this machine each CPU
        // is a node.
        let mut cpus = CpuSet::new();
        cpus.set(node);
        sched_setaffinity(None, &cpus)?;
        receiver.idle(&mut sender, PAGES as usize)?;
        let mut nodes = [0; 2];
        for line in shrinker::lines() {
            nodes
                .iter_mut()
                .zip(line.nodes)
                .for_each(|(sum, n)| *sum += n);
        }
        note!("after use by CPU {node}: {nodes:?}");
        check!(nodes[node] >= PAGES, "only {} on node {node}", nodes[node]);
        expect_swept(base)?;
    }
    Ok(())
}

fn pages_in_use_keep_their_data(bench: &Bench) -> Outcome {
    let base = shrinker::swept()?;
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    let held_data = pattern(1, 50 * PAGE + 11);
    sender.deliver(&held_data)?;
    let held = server.receive()?;
    // This one waits for the held one to be freed: it is in use too, though not delivered yet.
    let queued_data = pattern(2, 30 * PAGE + 17);
    sender.deliver(&queued_data)?;
    for round in 0..20u64 {
        // Idle pages beside them, to give the scan something to do.
        let mut client = Endpoint::client(&bench.dev)?;
        super::transactions::round_trip(&mut client, &mut server, &pattern(round, 60 * PAGE))?;
        shrinker::scan_all(if round % 2 == 0 { 1 } else { u64::MAX });
        check!(
            held.bytes() == held_data,
            "round {round}: the held buffer changed"
        );
    }
    expect_swept(base)?;
    check!(held.bytes() == held_data, "the held buffer changed");
    server.free(held.addr)?;
    let queued = server.receive()?;
    check!(queued.bytes() == queued_data, "the queued buffer changed");
    server.free(queued.addr)?;
    expect_swept(base)
}

fn reclaimed_pages_come_back_zero(bench: &Bench) -> Outcome {
    let base = shrinker::swept()?;
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    for round in 0..5u64 {
        sender.deliver(&pattern(round, 100 * PAGE))?;
        server.consume()?;
        expect_swept(base)?;
        let len = 3 * PAGE + 9;
        sender.deliver(&pattern(round + 50, len))?;
        let txn = server.receive()?;
        check!(
            txn.bytes() == pattern(round + 50, len),
            "round {round}: arrived changed"
        );
        let end = (txn.addr + len).next_multiple_of(PAGE);
        let rest = peek(txn.addr + len, end - txn.addr - len);
        check!(all_zero(&rest), "round {round}: old bytes on a fresh page");
        server.free(txn.addr)?;
    }
    Ok(())
}

fn freed_and_used_again_between_scans(bench: &Bench) -> Outcome {
    let base = shrinker::swept()?;
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut client = Endpoint::client(&bench.dev)?;
    for round in 0..60u64 {
        let len = (round as usize * 7919) % (100 * PAGE);
        super::transactions::round_trip(&mut client, &mut server, &pattern(round, len))?;
        shrinker::scan_all(1 + round % 13);
    }
    expect_swept(base)
}

fn of_a_stopped_process(bench: &Bench) -> Outcome {
    let (base, mut receiver, mut sender) = start(bench)?;
    receiver.idle(&mut sender, PAGES as usize)?;
    receiver.peer().signal(Signal::STOP)?;
    expect_swept(base)?;
    receiver.peer().signal(Signal::CONT)?;
    receiver.fill(&mut sender, PAGES as usize)?;
    Ok(())
}

/// Upstream's Rust driver keeps them until the process ends, the C driver frees them.
fn of_a_process_without_its_mapping(bench: &Bench) -> Outcome {
    let (base, mut receiver, mut sender) = start(bench)?;
    receiver.idle(&mut sender, PAGES as usize)?;
    receiver.unmap()?;
    expect_swept(base)
}

/// The C driver skips them for as long as there is something at the address.
fn of_a_process_with_an_impostor(bench: &Bench) -> Outcome {
    let (base, mut receiver, mut sender) = start(bench)?;
    let first = receiver.idle(&mut sender, PAGES as usize)?;
    receiver.impostor()?;
    expect_swept(base)?;
    receiver.check_impostor(first.addr)
}

/// The pages behind a hole belong to another VMA than the mapping's start.
fn of_a_split_mapping(bench: &Bench) -> Outcome {
    let base = shrinker::swept()?;
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    sender.deliver(&pattern(1, 100 * PAGE))?;
    let txn = server.receive()?;
    for (start, len) in [(40, 2), (0, 1)] {
        let hole = (txn.addr + start * PAGE) as *mut std::ffi::c_void;
        // SAFETY: The test doesn't read there again.
        unsafe { rustix::mm::munmap(hole, len * PAGE)? };
    }
    let rest = checksum(&peek(txn.addr + 42 * PAGE, 58 * PAGE));
    shrinker::scan_all(8);
    check_eq!(
        checksum(&peek(txn.addr + 42 * PAGE, 58 * PAGE)),
        rest,
        "data behind the hole"
    );
    server.free(txn.addr)?;
    expect_swept(base)
}

/// An innocent process's pages go within a few scans, whatever lies before them on the list:
/// of what came on top of `base`, at most the `guilty` pages may be left.
fn expect_not_starved(bench: &Bench, base: u64, guilty: u64) -> Outcome {
    let dev = Device::create(&format!("{}b", bench.dev.name))?;
    let mut innocent = Receiver::start(&dev, MIB, || Ok(()))?;
    innocent.idle(&mut Endpoint::sender(&dev)?, PAGES as usize)?;
    // Enough for everybody's pages twice, in batches smaller than the guilty one's share.
    for _ in 0..2 * (guilty + PAGES) / 32 + 2 {
        shrinker::scan_each(32);
    }
    let left = shrinker::total().saturating_sub(base);
    note!("{left} of {} idle pages left", guilty + PAGES);
    check!(
        left <= guilty,
        "{left} pages left, though only {guilty} could have an excuse"
    );
    Ok(())
}

fn unmapped_process_doesnt_starve_others(bench: &Bench) -> Outcome {
    let (base, mut receiver, mut sender) = start(bench)?;
    receiver.idle(&mut sender, PAGES as usize)?;
    receiver.unmap()?;
    expect_not_starved(bench, base, PAGES)
}

fn impostor_doesnt_starve_others(bench: &Bench) -> Outcome {
    let (base, mut receiver, mut sender) = start(bench)?;
    let first = receiver.idle(&mut sender, PAGES as usize)?;
    receiver.impostor()?;
    expect_not_starved(bench, base, PAGES)?;
    receiver.check_impostor(first.addr)
}

/// After an exec the file may be open still, while the memory that was mapped is gone for good.
fn executed_process_doesnt_starve_others(bench: &Bench) -> Outcome {
    let base = shrinker::swept()?;
    let mut receiver = super::death::spawn_executing(bench)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    sender.deliver(&pattern(1, PAGES as usize * PAGE))?;
    receiver.link.recv()?;
    check!(receiver.link.recv().is_err(), "no exec");
    expect_not_starved(bench, base, PAGES)
}

/// The shrinker meets processes whose memory is about to go.
fn while_processes_exit(bench: &Bench) -> Outcome {
    let base = shrinker::swept()?;
    let mut driver = Peer::spawn(|_| loop {
        shrinker::scan_all(4);
    })?;
    for round in 0..25u64 {
        let mut receiver = Receiver::start(&bench.dev, MIB, || Ok(()))?;
        let mut sender = Endpoint::sender(&bench.dev)?;
        receiver.idle(&mut sender, 100)?;
        sender.deliver(&pattern(round, 9000))?;
        std::thread::sleep(Duration::from_micros(97 * round));
        receiver.peer().kill()?;
    }
    driver.kill()?;
    expect_swept(base)
}

/// Data is right while the shrinker takes every page it can get.
fn while_transactions_run(bench: &Bench) -> Outcome {
    let base = shrinker::swept()?;
    let mut drivers = Vec::new();
    for step in [1, u64::MAX] {
        drivers.push(Peer::spawn(|_| loop {
            shrinker::scan_all(step);
        })?);
    }
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut client = Endpoint::client(&bench.dev)?;
    let until = Instant::now() + Duration::from_secs(3);
    let mut round = 0;
    while Instant::now() < until {
        round += 1;
        let len = (round as usize * 10_007) % (256 * KIB);
        super::transactions::round_trip(&mut client, &mut server, &pattern(round, len))?;
    }
    note!("{round} round trips under the shrinker");
    drivers.iter_mut().try_for_each(Peer::kill)?;
    expect_swept(base)
}
