// SPDX-License-Identifier: GPL-2.0

//! BC_FREE_BUFFER, right and wrong. The driver takes a wrong address without an error (both peers
//! log it) and nothing happens.

use crate::{
    binder::{peek, KIB, MIB, PAGE},
    check, check_eq,
    data::{all_zero, pattern},
    endpoint::{Endpoint, Txn},
    outcome::Outcome,
    runner::{Bench, Test},
    tests,
    uapi::{BC_FREE_BUFFER, TF_CLEAR_BUF, TF_ONE_WAY},
};

pub const TESTS: &[Test] = tests!["free":
    twice,
    wrong_addresses,
    before_delivery,
    of_another_process,
    without_a_mapping,
    in_one_write_with_garbage,
    in_any_order @ 20,
    clear_buf_zeroes_the_buffer,
    clear_buf_spares_the_neighbours,
    clear_buf_of_a_large_buffer,
];

/// A held buffer, and everything that could be damaged.
struct Held {
    server: Endpoint,
    client: Endpoint,
    txn: crate::endpoint::Received,
    data: Vec<u8>,
}

fn held(bench: &Bench) -> Outcome<Held> {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut client = Endpoint::client(&bench.dev)?;
    let data = pattern(1, 2 * PAGE + 40);
    client.post(&Txn::new(&data))?;
    let txn = server.receive()?;
    // Answered: otherwise the driver gives this thread no other transaction.
    server.answer(&[])?;
    check!(client.reply_to_post()?.is_ok(), "no reply");
    Ok(Held {
        server,
        client,
        txn,
        data,
    })
}

impl Held {
    /// The buffer still is whole and allocated, and traffic goes on.
    fn is_whole(&mut self, bench: &Bench) -> Outcome {
        check!(self.txn.bytes() == self.data, "the held buffer changed");
        let mut sender = Endpoint::client(&bench.dev)?;
        sender.deliver(&pattern(9, 300))?;
        let other = self.server.receive()?;
        let apart =
            other.addr >= self.txn.addr + self.data.len() || other.addr + 300 <= self.txn.addr;
        check!(apart, "a new buffer lies in the held one");
        self.server.free(other.addr)?;
        check!(
            self.txn.bytes() == self.data,
            "the held buffer changed by a new one"
        );
        Ok(())
    }
}

fn twice(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    for len in [0, 8, PAGE, 5 * PAGE + 1] {
        sender.deliver(&pattern(1, len))?;
        let txn = server.consume()?;
        server.free(txn.addr)?;
        server.free(txn.addr)?;
    }
    // Had a double free given space back twice, this would overlap.
    let mut senders = [Endpoint::client(&bench.dev)?, Endpoint::client(&bench.dev)?];
    for (i, sender) in senders.iter_mut().enumerate() {
        sender.post(&Txn::new(&pattern(i as u64, MIB / 2)))?;
        let txn = server.receive()?;
        server.answer(&[])?;
        check!(
            txn.bytes() == pattern(i as u64, MIB / 2),
            "half {i} changed"
        );
    }
    Ok(())
}

fn wrong_addresses(bench: &Bench) -> Outcome {
    let mut held = held(bench)?;
    let (base, addr) = (held.server.binder.base(), held.txn.addr);
    let wrong = [
        0,
        1,
        addr + 1,
        addr + 8,
        addr + PAGE,
        addr + held.data.len(),
        addr.wrapping_sub(8),
        base + 500 * KIB,
        base + MIB - 8,
        base + MIB,
        base + 8 * MIB,
        base - PAGE,
        usize::MAX,
        usize::MAX - 7,
        1 << 63,
    ];
    for addr in wrong {
        held.server.free(addr)?;
        held.is_whole(bench)?;
    }
    held.server.free(held.txn.addr)
}

/// A buffer that userspace has not been told of isn't its to free.
fn before_delivery(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    let data = pattern(1, 3 * PAGE);
    sender.deliver(&data)?;
    let base = server.binder.base();
    for guess in [base, base + PAGE, base + MIB - data.len()] {
        server.free(guess)?;
    }
    let mut other = Endpoint::client(&bench.dev)?;
    other.post(&Txn::new(&pattern(2, 3 * PAGE)))?;
    let first = server.receive()?;
    check!(
        first.bytes() == data,
        "the buffer changed before its delivery"
    );
    let second = server.receive()?;
    check!(
        second.bytes() == pattern(2, 3 * PAGE),
        "the second buffer changed"
    );
    server.free(first.addr)?;
    server.reply(&second, &[])?;
    check!(other.reply_to_post()?.is_ok(), "no reply");
    Ok(())
}

fn of_another_process(bench: &Bench) -> Outcome {
    let mut held = held(bench)?;
    held.client.free(held.txn.addr)?;
    Endpoint::client(&bench.dev)?.free(held.txn.addr)?;
    held.is_whole(bench)
}

fn without_a_mapping(bench: &Bench) -> Outcome {
    let sender = Endpoint::sender(&bench.dev)?;
    for addr in [0, 4096, usize::MAX] {
        sender.free(addr)?;
    }
    Ok(())
}

/// The commands before the bad one count, those after it don't.
fn in_one_write_with_garbage(bench: &Bench) -> Outcome {
    let held = held(bench)?;
    let mut buffer = Vec::new();
    for code in [BC_FREE_BUFFER, 0xdead_beef, BC_FREE_BUFFER] {
        buffer.extend_from_slice(&code.to_ne_bytes());
        buffer.extend_from_slice(&(held.txn.addr as u64).to_ne_bytes());
    }
    let result = held.server.binder.write_read(&buffer, &mut []);
    check_eq!(
        result,
        Err(rustix::io::Errno::INVAL),
        "write with an unknown command"
    );
    // And a command that is cut off.
    let cut = BC_FREE_BUFFER.to_ne_bytes();
    let result = held.server.binder.write_read(&cut, &mut []);
    check_eq!(
        result,
        Err(rustix::io::Errno::FAULT),
        "a command without its address"
    );
    Ok(())
}

/// Many buffers of many sizes, freed in several orders: in the end there is one free range again.
fn in_any_order(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let senders: Vec<Endpoint> = (0..48)
        .map(|_| Endpoint::client(&bench.dev))
        .collect::<Outcome<_>>()?;
    for order in 0..4usize {
        let mut buffers = Vec::new();
        for (i, sender) in senders.iter().enumerate() {
            let data = pattern(i as u64, (i * 2711 + order * 977) % 20000);
            sender.post(&Txn::new(&data))?;
            let txn = server.receive()?;
            server.answer(&[])?;
            buffers.push((txn, data));
        }
        let count = buffers.len();
        let mut left: Vec<_> = match order {
            0 => buffers,
            1 => buffers.into_iter().rev().collect(),
            // 5 and 29 have no factor in common with 48.
            2 => (0..count).map(|i| buffers[i * 5 % count].clone()).collect(),
            _ => (0..count)
                .map(|i| buffers[i * 29 % count].clone())
                .collect(),
        };
        while let Some((txn, data)) = left.pop() {
            check!(txn.bytes() == data, "order {order}: a buffer changed");
            server.free(txn.addr)?;
        }
        whole_mapping(&mut server, bench)?;
    }
    Ok(())
}

/// Takes the whole mapping in one transaction.
fn whole_mapping(server: &mut Endpoint, bench: &Bench) -> Outcome {
    let client = Endpoint::client(&bench.dev)?;
    client.post(&Txn::new(&pattern(7, MIB)))?;
    let txn = server.receive()?;
    check_eq!(
        txn.addr,
        server.binder.base(),
        "address of a buffer that fills the mapping"
    );
    server.reply(&txn, &[])
}

fn clear_buf_zeroes_the_buffer(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    for len in [1, 100, PAGE, 5000] {
        sender.send(&Txn::oneway(&pattern(1, len)).flags(TF_CLEAR_BUF))?;
        let txn = server.receive()?;
        check_eq!(txn.flags, TF_ONE_WAY | TF_CLEAR_BUF, "flags");
        check!(
            txn.bytes() == pattern(1, len),
            "{len} bytes arrived changed"
        );
        server.free(txn.addr)?;
        // Nothing else uses the pages, so they are still mapped, until a shrinker comes.
        check!(
            all_zero(&peek(txn.addr, len)),
            "{len} bytes weren't cleared"
        );
    }
    Ok(())
}

fn clear_buf_spares_the_neighbours(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut held = Vec::new();
    for i in 0..9u64 {
        let sender = Endpoint::client(&bench.dev)?;
        let clear = if i % 2 == 1 { TF_CLEAR_BUF } else { 0 };
        let data = pattern(i, 3001);
        sender.post(&Txn::new(&data).flags(clear))?;
        let txn = server.receive()?;
        server.answer(&[])?;
        held.push((sender, txn, data));
    }
    for (_, txn, _) in held
        .iter()
        .filter(|(_, txn, _)| txn.flags & TF_CLEAR_BUF != 0)
    {
        server.free(txn.addr)?;
        check!(all_zero(&txn.bytes()), "not cleared");
    }
    for (_, txn, data) in held
        .iter()
        .filter(|(_, txn, _)| txn.flags & TF_CLEAR_BUF == 0)
    {
        check!(txn.bytes() == *data, "a neighbour was cleared");
    }
    Ok(())
}

fn clear_buf_of_a_large_buffer(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, 4 * MIB)?;
    let mut client = Endpoint::client(&bench.dev)?;
    let data = pattern(1, 3 * MIB + 5);
    client.post(&Txn::new(&data).flags(TF_CLEAR_BUF))?;
    let txn = server.receive()?;
    check!(txn.bytes() == data, "arrived changed");
    server.reply(&txn, &[])?;
    check!(client.reply_to_post()?.is_ok(), "no reply");
    check!(all_zero(&peek(txn.addr, data.len())), "not cleared");
    Ok(())
}
