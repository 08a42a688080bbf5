// SPDX-License-Identifier: GPL-2.0

//! A receiver whose mapping isn't what it was when it was made.
//!
//! The C driver notices when any part of the mapping is closed, and takes no transaction from then
//! on. Upstream's Rust driver notices when it has to insert a page, so that pages that are there
//! already still take transactions, which nobody can read. Ours does as the C driver does. None may
//! ever write where another mapping lies now.

use super::{expect_dead_reply, expect_failed};
use crate::{
    binder::{peek, Binder, KIB, MIB, PAGE},
    check, check_eq,
    data::{checksum, pattern},
    endpoint::{Endpoint, Txn},
    note,
    outcome::Outcome,
    remote::place_impostor,
    runner::{Bench, Test},
    shrinker, tests,
    uapi::{name, BR_DEAD_REPLY, BR_FAILED_REPLY, BR_TRANSACTION_COMPLETE},
};
use rustix::mm::{madvise, mremap, mremap_fixed, munmap, Advice, MremapFlags};
use std::ffi::c_void;

pub const TESTS: &[Test] = tests!["unmap":
    untouched_mapping_gone,
    touched_mapping_gone,
    buffers_of_a_gone_mapping_can_be_freed,
    hole_in_the_middle,
    hole_with_buffers_in_it,
    ends_cut_off,
    impostor_isnt_written_to,
    impostor_of_binder_isnt_written_to,
    moved_mapping,
    half_moved_onto_the_other_half,
    buffer_moved_onto_idle_pages_survives_reclaim,
    split_mapping_takes_buffers,
    shrunk_mapping,
    grown_mapping,
];

/// Unmaps a range of this process.
fn unmap(addr: usize, len: usize) -> Outcome {
    // SAFETY: Tests call this for their own mappings, and then read around the hole.
    unsafe { munmap(addr as *mut c_void, len)? };
    Ok(())
}

/// Sends to a damaged mapping: it is refused, or arrives where it can be read.
fn refused_or_right(
    sender: &mut Endpoint,
    server: &mut Endpoint,
    hole: std::ops::Range<usize>,
    len: usize,
) -> Outcome {
    let data = pattern(len as u64, len);
    match sender.send(&Txn::oneway(&data))? {
        BR_TRANSACTION_COMPLETE => {
            let txn = server.receive()?;
            let apart = txn.addr + len <= hole.start || txn.addr >= hole.end;
            check!(apart, "{len} bytes delivered into the hole");
            check!(txn.bytes() == data, "{len} bytes arrived changed");
            note!("{len} bytes: delivered beside the hole");
            server.free(txn.addr)
        }
        status @ (BR_DEAD_REPLY | BR_FAILED_REPLY) => {
            note!("{len} bytes: {}", name(status));
            Ok(())
        }
        status => crate::fail!("{len} bytes: {}", name(status)),
    }
}

fn untouched_mapping_gone(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    unmap(server.binder.base(), MIB)?;
    for len in [0, 1, PAGE, 512 * KIB] {
        let data = pattern(1, len);
        expect_dead_reply(sender.send(&Txn::new(&data))?)?;
        expect_dead_reply(sender.send(&Txn::oneway(&data))?)?;
    }
    check!(server.try_next()?.is_none(), "something was delivered");
    Ok(())
}

/// The same with idle pages there, which must not be used in secret: see above for upstream.
fn touched_mapping_gone(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    sender.deliver(&pattern(1, 64 * KIB))?;
    server.consume()?;
    unmap(server.binder.base(), MIB)?;
    for len in [0, 1, PAGE, 64 * KIB, 512 * KIB] {
        expect_dead_reply(sender.send(&Txn::oneway(&pattern(2, len)))?)?;
    }
    Ok(())
}

fn buffers_of_a_gone_mapping_can_be_freed(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    let mut client = Endpoint::client(&bench.dev)?;
    sender.deliver(&pattern(1, 3 * PAGE))?;
    let held = server.receive()?;
    client.post(&Txn::new(&pattern(2, 3 * PAGE)))?;
    let txn = server.receive()?;
    sender.deliver(&pattern(3, 3 * PAGE))?;
    unmap(server.binder.base(), MIB)?;
    // Replies go to the client's mapping: they still work.
    server.reply(&txn, &pattern(4, 100))?;
    match client.reply_to_post()? {
        Ok(reply) => check!(reply.bytes() == pattern(4, 100), "the reply changed"),
        Err(code) => crate::fail!("reply: {}", name(code)),
    }
    server.free(held.addr)?;
    // What was queued before is delivered, at an address that nobody can read, and can be freed.
    server.consume()?;
    Ok(())
}

fn hole_in_the_middle(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    let hole = server.binder.base() + 64 * KIB..server.binder.base() + 128 * KIB;
    unmap(hole.start, hole.len())?;
    for len in [0, 1, PAGE, 32 * KIB, 100 * KIB, 400 * KIB, PAGE] {
        refused_or_right(&mut sender, &mut server, hole.clone(), len)?;
    }
    shrinker::scan_all(16);
    refused_or_right(&mut sender, &mut server, hole, PAGE)
}

fn hole_with_buffers_in_it(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    let data = pattern(1, 128 * KIB);
    sender.deliver(&data)?;
    let txn = server.receive()?;
    let hole = txn.addr + 32 * KIB..txn.addr + 64 * KIB;
    unmap(hole.start, hole.len())?;
    // What remains of the buffer is as it was, also while the shrinker runs.
    for _ in 0..3 {
        check!(
            peek(txn.addr, 32 * KIB) == data[..32 * KIB],
            "bytes before the hole"
        );
        check!(
            peek(hole.end, 64 * KIB) == data[64 * KIB..],
            "bytes after the hole"
        );
        shrinker::scan_all(16);
    }
    server.free(txn.addr)?;
    shrinker::scan_all(16);
    refused_or_right(&mut sender, &mut server, hole, 200 * KIB)
}

fn ends_cut_off(bench: &Bench) -> Outcome {
    for front in [true, false] {
        let mut server = Endpoint::manager(&bench.dev, MIB)?;
        let mut sender = Endpoint::sender(&bench.dev)?;
        sender.deliver(&pattern(1, 100 * KIB))?;
        server.consume()?;
        let base = server.binder.base();
        let start = if front { base } else { base + MIB - 64 * KIB };
        let hole = start..start + 64 * KIB;
        unmap(hole.start, hole.len())?;
        shrinker::scan_all(16);
        for len in [1, PAGE, 32 * KIB, 400 * KIB] {
            // The peers look the mapping up by its start, or not at all when the pages are there.
            let data = pattern(2, len);
            let status = sender.send(&Txn::oneway(&data))?;
            note!("front {front}, {len} bytes: {}", name(status));
            if status == BR_TRANSACTION_COMPLETE {
                let txn = server.receive()?;
                let apart = txn.addr + len <= hole.start || txn.addr >= hole.end;
                check!(apart, "{len} bytes delivered into the hole");
                check!(txn.bytes() == data, "{len} bytes arrived changed");
                server.free(txn.addr)?;
            }
        }
    }
    Ok(())
}

/// Anonymous memory lies where the mapping was, with idle and used pages: it keeps its contents.
fn impostor_isnt_written_to(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    sender.deliver(&pattern(1, 64 * KIB))?;
    let held = server.receive()?;
    let base = server.binder.base();
    place_impostor(base, MIB)?;
    let before = checksum(&peek(base, MIB));
    for len in [0, 1, PAGE, 300 * KIB] {
        let data = pattern(2, len);
        expect_dead_reply(sender.send(&Txn::new(&data))?)?;
        check_eq!(
            checksum(&peek(base, MIB)),
            before,
            "the impostor after a transaction"
        );
    }
    server.free(held.addr)?;
    for _ in 0..3 {
        shrinker::scan_all(16);
        check_eq!(
            checksum(&peek(base, MIB)),
            before,
            "the impostor after a scan"
        );
    }
    Ok(())
}

/// The impostor is a mapping of the same driver, but of another file.
fn impostor_of_binder_isnt_written_to(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    let base = server.binder.base();
    unmap(base, MIB)?;
    let other = Binder::open(&bench.dev)?;
    let (prot, flags) = (rustix::mm::ProtFlags::READ, rustix::mm::MapFlags::PRIVATE);
    let flags = flags | rustix::mm::MapFlags::FIXED;
    // SAFETY: The range was just unmapped.
    unsafe { rustix::mm::mmap(base as *mut c_void, MIB, prot, flags, &other.fd, 0)? };
    for len in [1, PAGE, 100 * KIB] {
        let data = pattern(3, len);
        expect_dead_reply(sender.send(&Txn::new(&data))?)?;
    }
    check!(server.try_next()?.is_none(), "something was delivered");
    Ok(())
}

/// Sends after the mapping was changed; the driver must survive and never deliver wrong data to
/// where the receiver could read it.
fn survives(sender: &mut Endpoint, server: &mut Endpoint, readable: usize) -> Outcome {
    for len in [1, PAGE, 64 * KIB, 300 * KIB] {
        let data = pattern(4, len);
        let status = sender.send(&Txn::oneway(&data))?;
        note!("{len} bytes: {}", name(status));
        if status == BR_TRANSACTION_COMPLETE {
            let txn = server.receive()?;
            let base = server.binder.base();
            if txn.addr >= base && txn.addr + len <= base + readable {
                check!(txn.bytes() == data, "{len} bytes arrived changed");
            }
            server.free(txn.addr)?;
        }
        shrinker::scan_all(16);
    }
    Ok(())
}

fn moved_mapping(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    let data = pattern(1, 64 * KIB);
    sender.deliver(&data)?;
    let held = server.receive()?;
    sender.deliver(&data)?;
    let base = server.binder.base();
    // A free place to move to, found by making a mapping there.
    let place = Binder::open(&bench.dev)?.mmap(MIB, rustix::mm::ProtFlags::READ, 0)?;
    let target = place.addr;
    drop(place);
    let flags = MremapFlags::MAYMOVE;
    // SAFETY: Nothing refers to the old place, and the new one is free.
    let moved =
        unsafe { mremap_fixed(base as *mut c_void, MIB, MIB, flags, target as *mut c_void) };
    note!("mremap: {:?}", moved.map(|_| ()));
    if moved.is_ok() {
        let offset = held.addr - base;
        check!(
            peek(target + offset, data.len()) == data,
            "the buffer changed in moving"
        );
        server.free(held.addr)?;
        server.consume()?;
        shrinker::scan_all(16);
        survives(&mut sender, &mut server, 0)?;
        unmap(target, MIB)?;
    }
    Ok(())
}

/// A VMA of ours lies at the mapping's start, but it is that of the mapping's end (8ef2c15aeae0).
fn half_moved_onto_the_other_half(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    // All pages of the first half are idle, none of the second was ever there.
    sender.deliver(&pattern(1, 512 * KIB))?;
    server.consume()?;
    let half = 512 * KIB;
    let start = server.binder.base() as *mut c_void;
    let flags = MremapFlags::MAYMOVE;
    // SAFETY: Nothing refers to either half.
    unsafe { mremap_fixed(start.byte_add(half), half, half, flags, start)? };
    shrinker::scan_all(16);
    survives(&mut sender, &mut server, half)
}

/// What was moved to the address of an idle page is none of reclaim's business (CVE-2026-43434).
fn buffer_moved_onto_idle_pages_survives_reclaim(bench: &Bench) -> Outcome {
    shrinker::need()?;
    const LEN: usize = 128 * KIB;
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    let client = Endpoint::client(&bench.dev)?;
    let data = pattern(1, LEN);
    sender.deliver(&pattern(2, LEN))?;
    let first = server.receive()?;
    client.post(&Txn::new(&data))?;
    let second = server.receive()?;
    check_eq!(
        second.addr,
        first.addr + LEN,
        "address of the second buffer"
    );
    server.free(first.addr)?;
    let (from, to) = (second.addr as *mut c_void, first.addr as *mut c_void);
    // SAFETY: Nothing refers to either place.
    unsafe { mremap_fixed(from, LEN, LEN, MremapFlags::MAYMOVE, to)? };
    check!(
        peek(first.addr, LEN) == data,
        "the buffer changed in moving"
    );
    let gone = shrinker::scan_until(|total| total == 0);
    check!(gone, "{} idle pages stay", shrinker::total());
    check!(
        peek(first.addr, LEN) == data,
        "the buffer changed by reclaim"
    );
    server.free(second.addr)
}

/// Nothing is unmapped, but the mapping consists of three VMAs. The peers look for one that begins
/// where the mapping does.
fn split_mapping_takes_buffers(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    let base = server.binder.base();
    let middle = (base + 8 * PAGE) as *mut c_void;
    // SAFETY: It is about core dumps, and leaves all else as it is.
    unsafe { madvise(middle, 8 * PAGE, Advice::LinuxDontDump)? };
    check_eq!(vmas_in(base..base + MIB)?, 3, "VMAs of the mapping");
    for len in [100 * PAGE, 12 * PAGE, 120 * PAGE] {
        let data = pattern(len as u64, len);
        sender.deliver(&data)?;
        let txn = server.receive()?;
        check!(txn.bytes() == data, "{len} bytes arrived changed");
        server.free(txn.addr)?;
        shrinker::scan_all(8);
    }
    Ok(())
}

/// How many VMAs of this process lie in a range.
fn vmas_in(range: std::ops::Range<usize>) -> Outcome<usize> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let starts = maps.lines().filter_map(|line| {
        let (start, _) = line.split_once('-')?;
        usize::from_str_radix(start, 16).ok()
    });
    Ok(starts.filter(|start| range.contains(start)).count())
}

fn shrunk_mapping(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    sender.deliver(&pattern(1, 500 * KIB))?;
    server.consume()?;
    let base = server.binder.base();
    let keep = 128 * KIB;
    // SAFETY: Nothing refers to the end that goes away.
    unsafe { mremap(base as *mut c_void, MIB, keep, MremapFlags::empty())? };
    survives(&mut sender, &mut server, keep)
}

fn grown_mapping(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, 64 * KIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    sender.deliver(&pattern(1, 20 * KIB))?;
    server.consume()?;
    let base = server.binder.base();
    let flags = MremapFlags::MAYMOVE;
    // SAFETY: Nothing refers to the mapping.
    let grown = unsafe { mremap(base as *mut c_void, 64 * KIB, MIB, flags) };
    note!("mremap: {:?}", grown.map(|_| ()));
    let data = pattern(2, 70 * KIB);
    let status = sender.send(&Txn::new(&data))?;
    match grown {
        Ok(place) if place as usize != base => expect_dead_reply(status)?,
        _ => expect_failed(status, "more than was mapped")?,
    }
    if let Ok(place) = grown {
        let stayed = place as usize == base;
        survives(&mut sender, &mut server, if stayed { 64 * KIB } else { 0 })?;
        unmap(place as usize, MIB)?;
    }
    Ok(())
}
