// SPDX-License-Identifier: GPL-2.0

//! Files go along with a buffer, and none is left open by anybody who hasn't got it.

use crate::{
    binder::{peek, MIB},
    check, check_eq,
    endpoint::{bytes_of, Endpoint, Received, Txn},
    fail,
    outcome::Outcome,
    runner::{Bench, Test},
    tests,
    uapi::{
        name, BufferObject, FdArrayObject, FlatObject, TransactionDataSg, BC_REPLY_SG,
        TF_ACCEPT_FDS, TYPE_FD, TYPE_FDA, TYPE_PTR,
    },
};
use rustix::{
    event::{poll, PollFd, PollFlags, Timespec},
    io::{read, write},
    pipe::pipe,
};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

pub const TESTS: &[Test] = tests!["files":
    file_arrives,
    files_of_an_array_close_with_the_buffer,
    file_that_nobody_receives_is_closed,
];

/// A server that has a transaction to reply to, with files.
fn asked(bench: &Bench) -> Outcome<(Endpoint, Endpoint)> {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let client = Endpoint::client(&bench.dev)?;
    client.post(&Txn::new(&[1]).flags(TF_ACCEPT_FDS))?;
    server.consume()?;
    Ok((server, client))
}

fn reply(server: &Endpoint, data: &[u8], offsets: &[u64], buffers_size: u64) -> Outcome {
    let txn = Txn::new(data).offsets(offsets);
    let reply = TransactionDataSg {
        transaction_data: txn.data,
        buffers_size,
    };
    server.command(BC_REPLY_SG, bytes_of(&reply))
}

fn reply_with_file(server: &Endpoint, file: &OwnedFd) -> Outcome {
    let object = FlatObject {
        kind: TYPE_FD,
        binder: file.as_raw_fd() as u64,
        ..Default::default()
    };
    reply(server, bytes_of(&object), &[0], 0)
}

fn replied(client: &mut Endpoint) -> Outcome<Received> {
    match client.reply_to_post()? {
        Ok(reply) => Ok(reply),
        Err(code) => fail!("no reply: {}", name(code)),
    }
}

/// The number of an open file that stands at `addr` in a buffer.
fn number_at(addr: usize) -> Outcome<RawFd> {
    Ok(RawFd::from_ne_bytes(peek(addr, 4)[..].try_into()?))
}

/// Something written to the one comes out of the other.
fn expect_connected(to: BorrowedFd, from: &OwnedFd) -> Outcome {
    let mut got = [0; 8];
    check_eq!(write(to, b"through")?, 7, "bytes written");
    check_eq!(read(from, &mut got)?, 7, "bytes read");
    check_eq!(&got[..7], b"through", "what was read");
    Ok(())
}

/// Nobody has the other end of a pipe open, now or soon.
fn expect_closed(end: &OwnedFd) -> Outcome {
    let limit = Timespec {
        tv_sec: 10,
        tv_nsec: 0,
    };
    let mut fds = [PollFd::new(end, PollFlags::empty())];
    poll(&mut fds, Some(&limit))?;
    check!(
        fds[0].revents().contains(PollFlags::HUP),
        "somebody has the file open still"
    );
    Ok(())
}

fn file_arrives(bench: &Bench) -> Outcome {
    let (server, mut client) = asked(bench)?;
    let (from, to) = pipe()?;
    reply_with_file(&server, &to)?;
    let reply = replied(&mut client)?;
    let number = number_at(reply.addr + 8)?;
    check!(number != to.as_raw_fd(), "the number is the sender's");
    // SAFETY: The driver says that this is a file of ours, and nobody else uses it.
    let got = unsafe { OwnedFd::from_raw_fd(number) };
    drop(to);
    expect_connected(got.as_fd(), &from)?;
    // It outlives the buffer.
    client.free(reply.addr)?;
    expect_connected(got.as_fd(), &from)?;
    drop(got);
    expect_closed(&from)
}

fn files_of_an_array_close_with_the_buffer(bench: &Bench) -> Outcome {
    let (server, mut client) = asked(bench)?;
    let pipes = [pipe()?, pipe()?];
    let numbers = pipes.each_ref().map(|(_, to)| to.as_raw_fd());
    let buffer = BufferObject {
        kind: TYPE_PTR,
        buffer: numbers.as_ptr() as u64,
        length: size_of_val(&numbers) as u64,
        ..Default::default()
    };
    let array = FdArrayObject {
        kind: TYPE_FDA,
        count: numbers.len() as u64,
        ..Default::default()
    };
    let mut data = bytes_of(&buffer).to_vec();
    let second = data.len() as u64;
    data.extend_from_slice(bytes_of(&array));
    reply(&server, &data, &[0, second], buffer.length)?;

    let reply = replied(&mut client)?;
    // SAFETY: The payload begins with a `BufferObject`, of any alignment.
    let got: BufferObject = unsafe { std::ptr::read_unaligned(reply.bytes().as_ptr().cast()) };
    let mut ends = Vec::new();
    for (i, (from, to)) in pipes.into_iter().enumerate() {
        drop(to);
        // SAFETY: The buffer has the file open until it is freed.
        let to = unsafe { BorrowedFd::borrow_raw(number_at(got.buffer as usize + 4 * i)?) };
        expect_connected(to, &from)?;
        ends.push(from);
    }
    client.free(reply.addr)?;
    ends.iter().try_for_each(expect_closed)
}

fn file_that_nobody_receives_is_closed(bench: &Bench) -> Outcome {
    let (server, client) = asked(bench)?;
    let (from, to) = pipe()?;
    reply_with_file(&server, &to)?;
    drop(to);
    drop(client);
    expect_closed(&from)
}
