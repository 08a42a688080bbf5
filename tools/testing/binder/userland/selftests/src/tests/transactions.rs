// SPDX-License-Identifier: GPL-2.0

//! What is sent arrives.

use super::expect_failed;
use crate::{
    binder::{peek, KIB, MIB, PAGE},
    check, check_eq,
    data::{all_zero, pattern},
    endpoint::{bytes_of, Endpoint, Received, Txn},
    note,
    outcome::{skip, Outcome},
    process::Peer,
    runner::{Bench, Test},
    tests,
    uapi::{
        name, BufferObject, FlatObject, BC_ACQUIRE, BR_TRANSACTION_COMPLETE, TYPE_PTR, VERSION,
    },
};
use rustix::ioctl::{ioctl, Updater};
use std::{fs::File, os::unix::fs::FileExt, thread::available_parallelism};

pub const TESTS: &[Test] = tests!["transactions":
    protocol_version,
    round_trip_of_every_size @ 30,
    empty_payload_has_its_own_address,
    unaligned_sizes_stay_apart,
    fresh_page_is_zero_beyond_the_data,
    offsets_arrive_aligned,
    objects_become_handles,
    offsets_are_the_senders @ 30,
    failure_at_the_first_object_undoes_none,
    extra_buffers_are_copied,
    extra_buffer_beyond_the_space_fails,
    extra_buffers_that_dont_fit_fail,
    reply_too_large_fails_the_sender,
];

fn protocol_version(bench: &Bench) -> Outcome {
    let sender = Endpoint::sender(&bench.dev)?;
    let mut version = 0i32;
    // SAFETY: The ioctl writes one i32.
    unsafe {
        ioctl(
            &sender.binder.fd,
            Updater::<{ VERSION }, i32>::new(&mut version),
        )?
    };
    check_eq!(version, 8, "BINDER_VERSION");
    Ok(())
}

/// Sends `data` and gets it back; checks it on both sides.
pub fn round_trip(client: &mut Endpoint, server: &mut Endpoint, data: &[u8]) -> Outcome {
    client.post(&Txn::new(data))?;
    let txn = server.receive()?;
    let got = txn.bytes();
    check!(got == data, "{} bytes arrived changed", data.len());
    server.reply(&txn, &got)?;
    match client.reply_to_post()? {
        Ok(reply) => {
            check!(
                reply.bytes() == data,
                "{} bytes came back changed",
                data.len()
            );
            client.free(reply.addr)
        }
        Err(code) => crate::fail!("{} bytes: {}", data.len(), crate::uapi::name(code)),
    }
}

fn round_trip_of_every_size(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut client = Endpoint::client(&bench.dev)?;
    let near_pages = (0..=4).flat_map(|page| (0..18).map(move |more| page * PAGE + more));
    let large = [
        16 * KIB,
        64 * KIB - 1,
        64 * KIB,
        200 * KIB + 3,
        512 * KIB - 8,
        512 * KIB,
    ];
    for len in near_pages.chain([PAGE - 1, 2 * PAGE - 3]).chain(large) {
        round_trip(&mut client, &mut server, &pattern(len as u64, len))?;
    }
    Ok(())
}

/// Buffers of size 0 are padded to 8 bytes, so that each can be freed by its address.
fn empty_payload_has_its_own_address(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut clients = [Endpoint::client(&bench.dev)?, Endpoint::client(&bench.dev)?];
    let mut seen: Vec<Received> = Vec::new();
    for client in &clients {
        client.post(&Txn::new(&[]))?;
        // A second thread of the server would take the second transaction; with one thread, the
        // first has to be answered before.
        let txn = server.receive()?;
        check_eq!(txn.len, 0, "length");
        server.answer(&[])?;
        seen.push(txn);
    }
    check!(
        seen[0].addr != seen[1].addr,
        "two buffers at {:#x}",
        seen[0].addr
    );
    for (client, txn) in clients.iter_mut().zip(&seen) {
        check!(client.reply_to_post()?.is_ok(), "no reply");
        server.free(txn.addr)?;
    }
    Ok(())
}

fn unaligned_sizes_stay_apart(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let lens: Vec<usize> = (0..64).map(|i| i * 37 % 301).collect();
    let mut senders = Vec::new();
    // Many outstanding at once, each from a sender of its own: none may damage its neighbour.
    for (i, len) in lens.iter().enumerate() {
        let sender = Endpoint::client(&bench.dev)?;
        sender.post(&Txn::new(&pattern(i as u64, *len)))?;
        let txn = server.receive()?;
        server.answer(&[])?;
        check_eq!(txn.addr % 8, 0, "address of a buffer");
        senders.push((sender, txn));
    }
    for (i, (_, txn)) in senders.iter().enumerate() {
        check!(
            txn.bytes() == pattern(i as u64, txn.len),
            "buffer {i} changed"
        );
        server.free(txn.addr)?;
    }
    Ok(())
}

fn fresh_page_is_zero_beyond_the_data(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    let len = 2 * PAGE + 100;
    sender.deliver(&pattern(1, len))?;
    let txn = server.receive()?;
    let end = (txn.addr + len).next_multiple_of(PAGE);
    let rest = peek(txn.addr + len, end - txn.addr - len);
    check!(all_zero(&rest), "the page's rest isn't zero");
    server.free(txn.addr)
}

fn offsets_arrive_aligned(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    let object = FlatObject::own(8, 9);
    // Data of odd length: the offsets follow at the next multiple of 8.
    let mut data = bytes_of(&object).to_vec();
    data.extend_from_slice(&[7; 5]);
    sender.send(&Txn::oneway(&data).offsets(&[0]))?;
    let txn = server.receive()?;
    check_eq!(
        txn.offsets,
        (txn.addr + data.len()).next_multiple_of(8),
        "place of the offsets"
    );
    check_eq!(txn.offsets_len, 8, "size of the offsets");
    check_eq!(peek(txn.offsets, 8), vec![0u8; 8], "offset 0");
    server.free(txn.addr)
}

/// The driver writes a handle over the sender's object, and tells nothing of the sender's pointers.
fn objects_become_handles(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    let object = FlatObject::own(0x1000, 0x2000);
    let mut data = vec![0xaa; 16];
    data.extend_from_slice(bytes_of(&object));
    sender.send(&Txn::oneway(&data).offsets(&[16]))?;
    let txn = server.receive()?;
    let got = txn.bytes();
    check_eq!(got[16..20], *b"\x85*hs", "the object's type");
    check!(all_zero(&got[32..40]), "the sender's cookie leaked");
    server.free(txn.addr)
}

/// The driver goes by the offsets that it read from the sender, not by those in the buffer, even if
/// the receiver finds a way to write there (CVE-2026-43433). Here it can, by way of /dev/mem.
fn offsets_are_the_senders(bench: &Bench) -> Outcome {
    // The objects fill three pages, the offsets follow on the next.
    const OBJECTS: usize = 510;
    let Ok(memory) = File::options().write(true).open("/dev/mem") else {
        return skip("no /dev/mem (DEVMEM)");
    };
    if available_parallelism()?.get() < 2 {
        return skip("one CPU: nobody can write while the driver reads");
    }
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    let mut data = bytes_of(&FlatObject::handle(0)).repeat(OBJECTS);
    data.resize(3 * PAGE, 0);
    let offsets: Vec<u64> = (0..OBJECTS as u64).map(|i| 24 * i).collect();
    let txn = Txn::oneway(&data).offsets(&offsets);

    sender.command(BC_ACQUIRE, &[0; 4])?;
    let status = sender.send(&txn)?;
    check_eq!(name(status), name(BR_TRANSACTION_COMPLETE), "the first");
    let first = server.consume()?;
    check_eq!(
        first.offsets % PAGE,
        0,
        "place of the offsets in their page"
    );
    let frame = frame_of(first.offsets)?;
    // All objects are the same, so each may be the first one when the buffer is freed.
    let mut writer = Peer::spawn(|_| loop {
        memory.write_all_at(&[0; 8 * OBJECTS], frame * PAGE as u64)?;
    })?;
    let mut changed = 0;
    // On a busy machine, the writer may not get its turn for long.
    for i in 0..60_000 {
        if i >= 3000 && changed > 100 {
            break;
        }
        let status = sender.send(&txn)?;
        check_eq!(name(status), name(BR_TRANSACTION_COMPLETE), "number {i}");
        let got = server.receive()?;
        check_eq!(got.addr, first.addr, "address");
        changed += usize::from(all_zero(&peek(got.offsets, 8 * OBJECTS)));
        server.free(got.addr)?;
    }
    writer.kill()?;
    note!("the offsets were overwritten {changed} times before they were received");
    check!(changed > 100, "overwritten {changed} times");
    Ok(())
}

/// The number of the page frame that is mapped at an address.
fn frame_of(addr: usize) -> Outcome<u64> {
    let mut entry = [0; 8];
    let pagemap = File::open("/proc/self/pagemap")?;
    pagemap.read_exact_at(&mut entry, (addr / PAGE * 8) as u64)?;
    let entry = u64::from_ne_bytes(entry);
    check!(entry >> 63 == 1, "nothing is mapped at {addr:#x}");
    Ok(entry & ((1 << 55) - 1))
}

/// In the receiver's buffer lie the objects of an earlier transaction. One that fails before its
/// first object has been translated takes nothing of theirs away (bdc1c5fac982).
fn failure_at_the_first_object_undoes_none(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut client = Endpoint::client(&bench.dev)?;
    client.enter_looper()?;
    let good = FlatObject::own(8, 9);
    client.send(&Txn::oneway(bytes_of(&good)).offsets(&[0]))?;
    let txn = server.receive()?;
    let handle: [u8; 4] = txn.bytes()[8..12].try_into()?;
    server.command(BC_ACQUIRE, &handle)?;
    server.free(txn.addr)?;

    let bad = FlatObject { kind: 1, ..good };
    for _ in 0..3 {
        let status = client.send(&Txn::oneway(bytes_of(&bad)).offsets(&[0]))?;
        expect_failed(status, "an object of no known type")?;
    }
    // The handle is the server's still.
    let mut txn = Txn::oneway(b"to the client");
    txn.data.target = u32::from_ne_bytes(handle).into();
    check_eq!(
        name(server.send(&txn)?),
        name(BR_TRANSACTION_COMPLETE),
        "a transaction to the handle"
    );
    check_eq!(client.consume()?.len, 13, "its length");
    Ok(())
}

fn extra_buffers_are_copied(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    for len in [1, 8, 100, PAGE, 3 * PAGE + 5] {
        let extra = pattern(len as u64, len);
        let object = BufferObject {
            kind: TYPE_PTR,
            buffer: extra.as_ptr() as u64,
            length: len as u64,
            ..Default::default()
        };
        let space = len.next_multiple_of(8) as u64;
        sender.send(&Txn::oneway(bytes_of(&object)).offsets(&[0]).buffers(space))?;
        let txn = server.receive()?;
        let got = txn.bytes();
        // SAFETY: The payload is a `BufferObject`, of any alignment.
        let got: BufferObject = unsafe { std::ptr::read_unaligned(got.as_ptr().cast()) };
        check!(got.buffer != object.buffer, "the pointer wasn't changed");
        check!(
            peek(got.buffer as usize, len) == extra,
            "{len} extra bytes changed"
        );
        server.free(txn.addr)?;
    }
    Ok(())
}

fn extra_buffer_beyond_the_space_fails(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    let extra = pattern(3, 64);
    for length in [65, 1 << 20, 1 << 40, u64::MAX - 8, u64::MAX - 6, u64::MAX] {
        let object = BufferObject {
            kind: TYPE_PTR,
            buffer: extra.as_ptr() as u64,
            length,
            ..Default::default()
        };
        let txn = Txn::oneway(bytes_of(&object)).offsets(&[0]).buffers(64);
        expect_failed(sender.send(&txn)?, &format!("extra buffer of {length}"))?;
    }
    check!(server.try_next()?.is_none(), "something was delivered");
    Ok(())
}

fn extra_buffers_that_dont_fit_fail(bench: &Bench) -> Outcome {
    let _server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    let data = pattern(4, 64);
    let sizes = [
        MIB as u64,
        1 << 32,
        1 << 63,
        u64::MAX - 7,
        u64::MAX - 71,
        u64::MAX - 64,
        u64::MAX,
    ];
    for size in sizes {
        let status = sender.send(&Txn::new(&data).buffers(size))?;
        expect_failed(status, &format!("buffers_size {size:#x}"))?;
    }
    // The driver is none the worse for it.
    sender.deliver(&data)
}

/// The server sees its reply as sent, the client gets the failure.
fn reply_too_large_fails_the_sender(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, 4 * MIB)?;
    let mut client = Endpoint::client(&bench.dev)?;
    client.post(&Txn::new(&[1]))?;
    let txn = server.receive()?;
    server.reply(&txn, &pattern(5, MIB + 8))?;
    match client.reply_to_post()? {
        Err(code) => expect_failed(code, "reply larger than the mapping")?,
        Ok(_) => crate::fail!("the reply got through"),
    }
    round_trip(&mut client, &mut server, &pattern(6, 100))
}
