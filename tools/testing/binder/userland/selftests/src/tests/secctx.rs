// SPDX-License-Identifier: GPL-2.0

//! Security contexts: whoever asks for them gets that of the sender with each transaction, in its
//! buffer, behind all else.

use super::expect_failed;
use crate::{
    binder::{peek, Binder, MIB, PAGE},
    check, check_eq,
    data::{all_zero, pattern},
    endpoint::{bytes_of, Endpoint, Received, Txn},
    outcome::{skip, Outcome},
    runner::{Bench, Test},
    shrinker::{has_logs, usage},
    tests,
    uapi::{
        name, BufferObject, FlatObject, BC_ACQUIRE, BR_FAILED_REPLY, BR_TRANSACTION_COMPLETE,
        TF_CLEAR_BUF, TXN_SECURITY_CTX, TYPE_PTR,
    },
};
use rustix::io::Errno;
use std::fs;

pub const TESTS: &[Test] = tests!["secctx":
    is_that_of_the_sender,
    lies_behind_data_offsets_and_buffers,
    counts_in_the_size_of_the_buffer,
    counts_in_the_oneway_space,
    goes_with_the_buffer,
    is_cleared_with_the_buffer,
    of_a_failed_transaction_leaves_nothing,
    is_for_nodes_that_ask_for_it,
    a_reply_brings_none,
    without_an_lsm_the_sender_fails,
];

/// The receivers' mapping; no other one of the device has this size.
const SLOTS: usize = 192;
const AREA: usize = SLOTS * PAGE;
const HALF: usize = AREA / 2;

/// The security context of this process, and the 0 behind it. `None` if no LSM has any.
fn current() -> Option<Vec<u8>> {
    let mut context = fs::read("/proc/self/attr/current").ok()?;
    while context.last().is_some_and(|byte| b"\0\n".contains(byte)) {
        context.pop();
    }
    context.push(0);
    Some(context)
}

fn need() -> Outcome<Vec<u8>> {
    match current() {
        Some(context) => Ok(context),
        None => skip("no security contexts: no LSM that has any"),
    }
}

/// The context manager, which asks for security contexts.
fn manager(bench: &Bench) -> Outcome<Endpoint> {
    Endpoint::manage_with(Binder::mapped(&bench.dev, AREA)?, TXN_SECURITY_CTX)
}

/// How many bytes the context takes in a buffer.
fn space(context: &[u8]) -> usize {
    context.len().next_multiple_of(8)
}

/// Whether it lies `behind` bytes behind the beginning of the buffer.
fn expect_context(txn: &Received, behind: usize, context: &[u8], what: &str) -> Outcome {
    check_eq!(txn.secctx, Some(txn.addr + behind), "{what}: its place");
    let got = peek(txn.addr + behind, context.len());
    check_eq!(got, context, "{what}: the context");
    Ok(())
}

fn is_that_of_the_sender(bench: &Bench) -> Outcome {
    let context = need()?;
    let mut server = manager(bench)?;
    let mut client = Endpoint::client(&bench.dev)?;
    for len in [0, 1, 8, 100, PAGE - 8, PAGE - 1, PAGE, PAGE + 1, 5 * PAGE] {
        let data = pattern(len as u64, len);
        client.deliver(&data)?;
        let txn = server.receive()?;
        check!(txn.bytes() == data, "{len} bytes arrived changed");
        let behind = len.next_multiple_of(8);
        expect_context(&txn, behind, &context, &format!("{len} bytes, oneway"))?;
        server.free(txn.addr)?;

        client.post(&Txn::new(&data))?;
        let txn = server.receive()?;
        check!(txn.bytes() == data, "{len} bytes arrived changed");
        expect_context(&txn, behind, &context, &format!("{len} bytes"))?;
        server.reply(&txn, &[])?;
        check!(client.reply_to_post()?.is_ok(), "{len} bytes: no reply");
    }
    Ok(())
}

fn lies_behind_data_offsets_and_buffers(bench: &Bench) -> Outcome {
    let context = need()?;
    let mut server = manager(bench)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    for (len, room) in [
        (8, 8),
        (100, 104),
        (PAGE, PAGE + 64),
        (3 * PAGE + 5, 4 * PAGE),
    ] {
        let extra = pattern(len as u64, len);
        let pointer = BufferObject {
            kind: TYPE_PTR,
            buffer: extra.as_ptr() as u64,
            length: len as u64,
            ..Default::default()
        };
        let mut data = bytes_of(&pointer).to_vec();
        data.extend_from_slice(bytes_of(&FlatObject::own(8, 9)));
        data.extend_from_slice(&[7; 3]);
        let txn = Txn::oneway(&data).offsets(&[0, 40]).buffers(room as u64);
        let status = sender.send(&txn)?;
        check_eq!(name(status), name(BR_TRANSACTION_COMPLETE), "{len} bytes");
        let txn = server.receive()?;
        let behind = data.len().next_multiple_of(8) + 16;
        check_eq!(txn.offsets, txn.addr + behind - 16, "place of the offsets");
        // SAFETY: The payload begins with a `BufferObject`, of any alignment.
        let got: BufferObject = unsafe { std::ptr::read_unaligned(txn.bytes().as_ptr().cast()) };
        check_eq!(
            got.buffer as usize,
            txn.addr + behind,
            "place of the buffer"
        );
        check!(peek(txn.addr + behind, len) == extra, "{len} bytes changed");
        let what = format!("{len} extra bytes");
        expect_context(&txn, behind + room, &context, &what)?;
        server.free(txn.addr)?;
    }
    Ok(())
}

/// A transaction that would fit without the context doesn't.
fn counts_in_the_size_of_the_buffer(bench: &Bench) -> Outcome {
    let context = need()?;
    let mut server = manager(bench)?;
    let mut client = Endpoint::client(&bench.dev)?;
    for len in [AREA, AREA - space(&context) + 1] {
        let status = client.send(&Txn::new(&pattern(1, len)))?;
        expect_failed(status, &format!("a call of {len} bytes"))?;
        check_eq!(client.extended_error()?, Errno::NOSPC, "{len} bytes");
    }
    for len in [AREA - space(&context), AREA - space(&context) - PAGE] {
        client.post(&Txn::new(&pattern(1, len)))?;
        let txn = server.receive()?;
        check!(txn.bytes() == pattern(1, len), "arrived changed");
        expect_context(&txn, len, &context, &format!("a call of {len} bytes"))?;
        server.reply(&txn, &[])?;
        check!(client.reply_to_post()?.is_ok(), "no reply");
    }
    Ok(())
}

fn counts_in_the_oneway_space(bench: &Bench) -> Outcome {
    let context = need()?;
    let mut server = manager(bench)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    let most = HALF - space(&context);
    for len in [HALF, most + 1] {
        let status = sender.send(&Txn::oneway(&pattern(1, len)))?;
        expect_failed(status, &format!("{len} bytes"))?;
    }
    sender.deliver(&pattern(1, most))?;
    expect_failed(sender.send(&Txn::oneway(&[]))?, "one more")?;
    server.consume()?;

    let each = 104 + space(&context);
    let mut sent = 0;
    while sender.send(&Txn::oneway(&[1; 100]))? == BR_TRANSACTION_COMPLETE {
        sent += 1;
        if has_logs() && sent % 100 == 0 {
            let free = usage(&bench.dev, SLOTS as u64).map(|usage| usage.oneway_free);
            check_eq!(free, Some((HALF - sent * each) as u64), "free after {sent}");
        }
    }
    check_eq!(sent, HALF / each, "number of 100 byte transactions");
    for _ in 0..sent {
        server.consume()?;
    }
    sender.deliver(&pattern(1, most))?;
    server.consume()?;
    Ok(())
}

fn goes_with_the_buffer(bench: &Bench) -> Outcome {
    let context = need()?;
    let mut server = manager(bench)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    for round in 0..1000 {
        sender.deliver(&[1; 104])?;
        let txn = server.receive()?;
        expect_context(&txn, 104, &context, &format!("round {round}"))?;
        // It isn't a buffer of its own.
        server.free(txn.addr + 104)?;
        expect_context(&txn, 104, &context, &format!("round {round}, again"))?;
        server.free(txn.addr)?;
    }
    sender.post(&Txn::new(&vec![1; AREA - space(&context)]))?;
    let all = server.receive()?;
    check_eq!(all.addr, server.binder.base(), "address of all of the area");
    server.reply(&all, &[])
}

fn is_cleared_with_the_buffer(bench: &Bench) -> Outcome {
    let context = need()?;
    let mut server = manager(bench)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    for len in [8, PAGE, PAGE + 8] {
        sender.send(&Txn::oneway(&pattern(1, len)).flags(TF_CLEAR_BUF))?;
        let txn = server.receive()?;
        expect_context(&txn, len, &context, "before")?;
        server.free(txn.addr)?;
        // The pages are still mapped, until a shrinker comes.
        let left = peek(txn.addr, len + space(&context));
        check!(
            all_zero(&left),
            "{len} bytes and the context weren't cleared"
        );
    }
    Ok(())
}

fn of_a_failed_transaction_leaves_nothing(bench: &Bench) -> Outcome {
    let context = need()?;
    let mut server = manager(bench)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    let most = HALF - space(&context);
    for round in 0..20 {
        let mut txn = Txn::oneway(&[]);
        txn.data.data_size = most as u64;
        txn.data.buffer = 8;
        expect_failed(sender.send(&txn)?, &format!("round {round}: data at 8"))?;
        let data = vec![1; most - 8];
        let txn = Txn::oneway(&data).offsets(&[2]);
        expect_failed(sender.send(&txn)?, &format!("round {round}: offset 2"))?;
    }
    sender.deliver(&pattern(1, most))?;
    server.consume()?;
    Ok(())
}

/// Others get no context, and have all of the space.
fn is_for_nodes_that_ask_for_it(bench: &Bench) -> Outcome {
    let context = need()?;
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut app = Endpoint::new(std::sync::Arc::new(Binder::mapped(&bench.dev, AREA)?));
    app.enter_looper()?;
    let asks = FlatObject {
        flags: TXN_SECURITY_CTX,
        ..FlatObject::own(16, 17)
    };
    let mut nodes = bytes_of(&FlatObject::own(8, 9)).to_vec();
    nodes.extend_from_slice(bytes_of(&asks));
    let status = app.send(&Txn::oneway(&nodes).offsets(&[0, 24]))?;
    check_eq!(name(status), name(BR_TRANSACTION_COMPLETE), "two nodes");
    let txn = server.receive()?;
    check!(txn.secctx.is_none(), "the manager got a context");
    let got = txn.bytes();
    let handles = [&got[8..12], &got[32..36]];
    for handle in handles {
        server.command(BC_ACQUIRE, handle)?;
    }
    server.free(txn.addr)?;
    for (handle, space) in handles.into_iter().zip([0, space(&context)]) {
        let data = pattern(1, HALF - space);
        let mut txn = Txn::oneway(&data);
        txn.data.target = u32::from_ne_bytes(handle.try_into()?).into();
        let status = server.send(&txn)?;
        check_eq!(name(status), name(BR_TRANSACTION_COMPLETE), "to a node");
        let txn = app.receive()?;
        check!(txn.bytes() == data, "arrived changed");
        match space {
            0 => check!(txn.secctx.is_none(), "nobody asked for a context"),
            _ => expect_context(&txn, data.len(), &context, "to a node")?,
        }
        app.free(txn.addr)?;
    }
    Ok(())
}

fn a_reply_brings_none(bench: &Bench) -> Outcome {
    need()?;
    let mut server = manager(bench)?;
    let mut client = Endpoint::client(&bench.dev)?;
    client.post(&Txn::new(&[1]))?;
    let txn = server.receive()?;
    let data = pattern(2, MIB);
    server.reply(&txn, &data)?;
    match client.reply_to_post()? {
        Ok(reply) => {
            check!(reply.secctx.is_none(), "a reply with a context");
            check!(reply.has(&data), "the reply arrived changed");
            client.free(reply.addr)
        }
        Err(code) => crate::fail!("a reply of the size of the area: {}", name(code)),
    }
}

/// There is nothing to be sent, so nothing is.
fn without_an_lsm_the_sender_fails(bench: &Bench) -> Outcome {
    if current().is_some() {
        return skip("there are security contexts");
    }
    let mut server = manager(bench)?;
    let mut client = Endpoint::client(&bench.dev)?;
    for flags in [0, crate::uapi::TF_ONE_WAY] {
        for round in 0..100 {
            let status = client.send(&Txn::new(&[1; 100]).flags(flags))?;
            check_eq!(name(status), name(BR_FAILED_REPLY), "round {round}");
            check_eq!(client.extended_error()?, Errno::OPNOTSUPP, "round {round}");
        }
    }
    check!(server.try_next()?.is_none(), "something was delivered");
    if has_logs() {
        let usage = usage(&bench.dev, SLOTS as u64).map(|usage| (usage.buffers, usage.pages[0]));
        check_eq!(usage, Some((0, 0)), "buffers and pages in use");
    }
    Ok(())
}
