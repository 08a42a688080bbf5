// SPDX-License-Identifier: GPL-2.0

//! Every page is counted, once, where it is.

use crate::{
    binder::{MIB, PAGE},
    check, check_eq,
    data::pattern,
    endpoint::{Endpoint, Txn},
    outcome::{skip, Outcome},
    process::Peer,
    runner::{Bench, Test},
    shrinker::{self, pages, Pages},
    tests,
};
use std::{
    thread::available_parallelism,
    time::{Duration, Instant},
};

pub const TESTS: &[Test] = tests!["accounting":
    idle_pages_are_counted,
    shared_pages_become_idle_with_the_last_buffer,
    stats_show_active_idle_and_free_pages,
    stats_follow_the_shrinker,
    state_lists_buffers,
    state_shows_what_is_being_written @ 30,
    count_returns_to_its_start,
];

/// The mapping of these tests; no other one of the device has this size.
const SLOTS: usize = 300;

fn idle_pages_are_counted(bench: &Bench) -> Outcome {
    let start = shrinker::swept()?;
    let mut server = Endpoint::manager(&bench.dev, SLOTS * PAGE)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    for n in [1, 2, 10, 150] {
        sender.deliver(&pattern(1, n * PAGE))?;
        let txn = server.receive()?;
        server.free(txn.addr)?;
        // Pages that were idle before were used again: the largest so far is the number of pages.
        check_eq!(shrinker::total(), start + n as u64, "idle pages after {n}");
    }
    Ok(())
}

fn shared_pages_become_idle_with_the_last_buffer(bench: &Bench) -> Outcome {
    let start = shrinker::swept()?;
    let mut server = Endpoint::manager(&bench.dev, SLOTS * PAGE)?;
    // Four buffers on three pages, with two pages shared.
    let mut buffers = Vec::new();
    let mut senders = Vec::new();
    for _ in 0..4 {
        let sender = Endpoint::client(&bench.dev)?;
        sender.post(&Txn::new(&pattern(1, 3 * PAGE / 4)))?;
        buffers.push(server.receive()?);
        server.answer(&[])?;
        senders.push(sender);
    }
    buffers.sort_by_key(|txn| txn.addr);
    let base = server.binder.base();
    check_eq!(
        buffers[3].addr - base,
        9 * PAGE / 4,
        "four buffers in a row"
    );
    check_eq!(shrinker::total(), start, "idle pages while all are in use");
    for (buffer, idle) in [(1, 0), (0, 1), (3, 1), (2, 3)] {
        server.free(buffers[buffer].addr)?;
        check_eq!(
            shrinker::total(),
            start + idle,
            "idle pages after freeing {buffer}"
        );
    }
    Ok(())
}

fn need_logs() -> Outcome {
    match shrinker::has_logs() {
        true => Ok(()),
        false => skip("no binder_logs: mount binderfs with -o stats=global"),
    }
}

fn need_pages(bench: &Bench) -> Outcome<Pages> {
    need_logs()?;
    match pages(&bench.dev, SLOTS as u64) {
        Some(pages) => Ok(pages),
        None => skip("the driver prints no pages: line"),
    }
}

fn stats_show_active_idle_and_free_pages(bench: &Bench) -> Outcome {
    let slots = SLOTS as u64;
    let mut server = Endpoint::manager(&bench.dev, SLOTS * PAGE)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    let fresh = need_pages(bench)?;
    check_eq!(
        fresh,
        Pages {
            active: 0,
            lru: 0,
            free: slots,
            high: 0
        },
        "fresh"
    );
    sender.deliver(&pattern(1, 100 * PAGE))?;
    let want = Pages {
        active: 100,
        lru: 0,
        free: slots - 100,
        high: 100,
    };
    check_eq!(need_pages(bench)?, want, "queued");
    let txn = server.receive()?;
    check_eq!(need_pages(bench)?, want, "received");
    server.free(txn.addr)?;
    let want = Pages {
        active: 0,
        lru: 100,
        ..want
    };
    check_eq!(need_pages(bench)?, want, "freed");
    sender.deliver(&pattern(1, 10))?;
    check_eq!(need_pages(bench)?.active, 1, "pages in use by 10 bytes");
    check_eq!(need_pages(bench)?.high, 100, "high watermark afterwards");
    server.consume()?;
    Ok(())
}

fn stats_follow_the_shrinker(bench: &Bench) -> Outcome {
    shrinker::need()?;
    let slots = SLOTS as u64;
    let mut server = Endpoint::manager(&bench.dev, SLOTS * PAGE)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    need_pages(bench)?;
    sender.deliver(&pattern(1, 80 * PAGE))?;
    server.consume()?;
    sender.deliver(&pattern(1, 20 * PAGE))?;
    let txn = server.receive()?;
    check!(
        shrinker::scan_until(|_| need_pages(bench).is_ok_and(|p| p.lru == 0)),
        "still idle"
    );
    let want = Pages {
        active: 20,
        lru: 0,
        free: slots - 20,
        high: 80,
    };
    check_eq!(need_pages(bench)?, want, "after a scan");
    check!(
        txn.bytes() == pattern(1, 20 * PAGE),
        "the buffer in use changed"
    );
    server.free(txn.addr)
}

fn state_lists_buffers(bench: &Bench) -> Outcome {
    need_logs()?;
    let mut server = Endpoint::manager(&bench.dev, SLOTS * PAGE)?;
    let mut client = Endpoint::client(&bench.dev)?;
    // All but the number, which may be any.
    let listed = || -> Vec<String> {
        let lines = shrinker::buffers(&bench.dev);
        let said = lines.iter().filter_map(|line| line.split_once(": "));
        said.map(|(_, said)| said.to_owned()).collect()
    };
    check!(listed().is_empty(), "there is one already");
    client.deliver(&pattern(1, 100))?;
    let oneway = server.receive()?.addr;
    client.post(&Txn::new(&pattern(2, 5000)))?;
    let call = server.receive()?.addr;
    let base = server.binder.base();
    let mut expected = vec![
        format!("{:x} size 100:0:0 delivered", oneway - base),
        // It isn't answered yet.
        format!("{:x} size 5000:0:0 active", call - base),
    ];
    check_eq!(listed(), expected, "two buffers");
    server.free(oneway)?;
    expected.remove(0);
    check_eq!(listed(), expected, "one buffer");
    server.free(call)?;
    check!(listed().is_empty(), "one is still there");
    Ok(())
}

fn state_shows_what_is_being_written(bench: &Bench) -> Outcome {
    need_logs()?;
    if available_parallelism()?.get() < 2 {
        return skip("one CPU: nobody can look while the driver writes");
    }
    let _traffic = Peer::spawn(|_| {
        let mut server = Endpoint::manager(&bench.dev, 4 * MIB)?;
        let mut sender = Endpoint::sender(&bench.dev)?;
        let data = pattern(1, MIB);
        loop {
            sender.deliver(&data)?;
            server.consume()?;
        }
    })?;
    let until = Instant::now() + Duration::from_secs(20);
    for state in [" active", " delivered"] {
        while !shrinker::buffers(&bench.dev)
            .iter()
            .any(|line| line.ends_with(state))
        {
            check!(Instant::now() < until, "no buffer is{state}");
        }
    }
    Ok(())
}

fn count_returns_to_its_start(bench: &Bench) -> Outcome {
    let start = shrinker::swept()?;
    let mut server = Endpoint::manager(&bench.dev, SLOTS * PAGE)?;
    let mut client = Endpoint::client(&bench.dev)?;
    for len in [10, 5000, 100_000, 1_000_000] {
        super::transactions::round_trip(&mut client, &mut server, &pattern(2, len.min(MIB)))?;
    }
    check!(shrinker::total() > start, "no page became idle");
    check!(
        shrinker::scan_until(|total| total <= start),
        "{} pages stay",
        shrinker::total()
    );
    Ok(())
}
