// SPDX-License-Identifier: GPL-2.0

//! mmap and what may not be done with it.

use super::expect_failed;
use crate::{
    binder::{peek, Binder, KIB, MIB, PAGE},
    check, check_eq,
    data::pattern,
    endpoint::{bytes_of, Endpoint, Txn},
    outcome::{Context, Outcome},
    process::Peer,
    runner::{Bench, Test},
    tests,
    uapi::{TransactionData, BC_TRANSACTION},
};
use rustix::{
    io::Errno,
    mm::{mmap, mprotect, MapFlags, MprotectFlags, ProtFlags},
    process::Signal,
};
use std::{
    ffi::c_void,
    io::stdin,
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
    ptr,
};

pub const TESTS: &[Test] = tests!["mapping":
    second_mmap_is_ebusy,
    writable_mmap_is_eperm,
    mprotect_to_writable_is_eacces,
    write_raises_sigsegv,
    untouched_page_cant_be_read,
    mmap_in_another_process_is_einval,
    mmap_after_exec_is_einval,
    ioctl_in_another_process_is_einval,
    fork_doesnt_copy_the_mapping,
    forked_child_exits_without_harm,
    offset_doesnt_matter,
    only_4_mib_are_used,
    one_page_is_enough,
    no_mapping_no_transaction,
];

fn second_mmap_is_ebusy(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let second = server.binder.mmap(MIB, ProtFlags::READ, 0);
    check_eq!(second.map(|_| ()), Err(Errno::BUSY), "second mmap");
    // The first one is not disturbed.
    let mut client = Endpoint::client(&bench.dev)?;
    super::transactions::round_trip(&mut client, &mut server, &pattern(1, 5000))
}

fn writable_mmap_is_eperm(bench: &Bench) -> Outcome {
    let mut binder = Binder::open(&bench.dev)?;
    for prot in [ProtFlags::READ | ProtFlags::WRITE, ProtFlags::WRITE] {
        check_eq!(
            binder.mmap(MIB, prot, 0).map(|_| ()),
            Err(Errno::PERM),
            "{prot:?}"
        );
    }
    // That failure doesn't count as the one mapping.
    binder.map = Some(
        binder
            .mmap(MIB, ProtFlags::READ, 0)
            .context("mmap after EPERM")?,
    );
    Ok(())
}

fn mprotect_to_writable_is_eacces(bench: &Bench) -> Outcome {
    let binder = Binder::mapped(&bench.dev, MIB)?;
    let flags = MprotectFlags::READ | MprotectFlags::WRITE;
    // SAFETY: Nothing refers to the mapping.
    let result = unsafe { mprotect(binder.base() as *mut c_void, PAGE, flags) };
    check_eq!(result, Err(Errno::ACCESS), "mprotect");
    Ok(())
}

/// What a child that does `body` with a filled buffer of its own dies of.
fn signal_of(bench: &Bench, body: impl FnOnce(usize)) -> Outcome<Option<i32>> {
    let mut child = Peer::spawn(|_| {
        let mut server = Endpoint::manager(&bench.dev, MIB)?;
        Endpoint::sender(&bench.dev)?.deliver(&pattern(1, 100))?;
        let txn = server.receive()?;
        body(txn.addr);
        Ok(())
    })?;
    Ok(child.wait()?.terminating_signal())
}

fn write_raises_sigsegv(bench: &Bench) -> Outcome {
    let signal = signal_of(bench, |addr| {
        // SAFETY: None: that this faults is the test.
        unsafe { std::ptr::write_volatile(addr as *mut u8, 1) }
    })?;
    check_eq!(signal, Some(Signal::SEGV.as_raw()), "signal");
    Ok(())
}

/// There is no fault handler: a page that holds no buffer can't be read.
fn untouched_page_cant_be_read(bench: &Bench) -> Outcome {
    let signal = signal_of(bench, |addr| {
        std::hint::black_box(peek(addr + 100 * PAGE, 1));
    })?;
    let faults = [Signal::BUS.as_raw(), Signal::SEGV.as_raw()];
    check!(
        signal.is_some_and(|s| faults.contains(&s)),
        "signal {signal:?}"
    );
    Ok(())
}

fn mmap_in_another_process_is_einval(bench: &Bench) -> Outcome {
    let binder = Binder::open(&bench.dev)?;
    let mut child = Peer::spawn(|_| {
        let result = binder.mmap(MIB, ProtFlags::READ, 0).map(|_| ());
        check_eq!(result, Err(Errno::INVAL), "mmap in the child");
        Ok(())
    })?;
    check_eq!(child.wait()?.exit_status(), Some(0), "child");
    binder
        .mmap(MIB, ProtFlags::READ, 0)
        .context("mmap in the owner")?;
    Ok(())
}

/// The same process, but not the memory that the driver was opened for.
fn mmap_after_exec_is_einval(bench: &Bench) -> Outcome {
    let mut child = Peer::spawn(|_| {
        let binder = Binder::open(&bench.dev)?;
        let mut program = Command::new("/proc/self/exe");
        Err(program.arg("--map").stdin(binder.fd).exec().into())
    })?;
    check_eq!(
        child.wait()?.exit_status(),
        Some(Errno::INVAL.raw_os_error()),
        "errno of mmap"
    );
    Ok(())
}

/// What the child of that test becomes: maps its standard input, and ends with the errno.
pub fn map_stdin() -> ExitCode {
    // SAFETY: The kernel picks a free place.
    let result = unsafe {
        mmap(
            ptr::null_mut(),
            PAGE,
            ProtFlags::READ,
            MapFlags::PRIVATE,
            stdin(),
            0,
        )
    };
    ExitCode::from(result.map_or_else(|error| error.raw_os_error() as u8, |_| 0))
}

/// The Rust driver says EINVAL. The C driver lets the child act for the process that opened it, so
/// that the child's transaction goes out; that nothing breaks is the same in both.
fn ioctl_in_another_process_is_einval(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    let mut child = Peer::spawn(|_| {
        let mut command = BC_TRANSACTION.to_ne_bytes().to_vec();
        command.extend_from_slice(bytes_of(&TransactionData::default()));
        let result = sender.binder.write_read(&command, &mut []);
        check_eq!(result, Err(Errno::INVAL), "ioctl in the child");
        Ok(())
    })?;
    check_eq!(child.wait()?.exit_status(), Some(0), "child");
    sender.deliver(&[1, 2, 3])?;
    check_eq!(server.consume()?.len, 3, "length");
    Ok(())
}

fn fork_doesnt_copy_the_mapping(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    Endpoint::sender(&bench.dev)?.deliver(&pattern(1, 100))?;
    let txn = server.receive()?;
    let mut child = Peer::spawn(|_| {
        std::hint::black_box(peek(txn.addr, 1));
        Ok(())
    })?;
    let signal = child.wait()?.terminating_signal();
    check_eq!(
        signal,
        Some(Signal::SEGV.as_raw()),
        "what the child's read got"
    );
    check!(txn.bytes() == pattern(1, 100), "the parent's data changed");
    Ok(())
}

/// A child that inherited the file closes it: the owner's mapping and buffers live on.
fn forked_child_exits_without_harm(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut client = Endpoint::client(&bench.dev)?;
    client.post(&Txn::new(&pattern(3, 9000)))?;
    let txn = server.receive()?;
    for _ in 0..8 {
        Peer::spawn(|_| Ok(()))?.wait()?;
    }
    check!(txn.bytes() == pattern(3, 9000), "the buffer changed");
    server.reply(&txn, &pattern(4, 9000))?;
    match client.reply_to_post()? {
        Ok(reply) => check!(reply.bytes() == pattern(4, 9000), "the reply changed"),
        Err(code) => crate::fail!("{}", crate::uapi::name(code)),
    }
    Ok(())
}

/// The file has no content, so the offset into it means nothing.
fn offset_doesnt_matter(bench: &Bench) -> Outcome {
    let mut binder = Binder::open(&bench.dev)?;
    let map = binder.mmap(MIB, ProtFlags::READ, 37 * PAGE as u64);
    binder.map = Some(map.context("mmap at an offset")?);
    let mut server = Endpoint::manage(binder)?;
    let mut client = Endpoint::client(&bench.dev)?;
    for len in [1, PAGE, 100 * PAGE + 1] {
        super::transactions::round_trip(&mut client, &mut server, &pattern(len as u64, len))?;
    }
    Ok(())
}

fn only_4_mib_are_used(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, 8 * MIB)?;
    let mut client = Endpoint::client(&bench.dev)?;
    let data = pattern(1, 4 * MIB + 8);
    expect_failed(client.send(&Txn::new(&data))?, "4 MiB + 8")?;
    client.post(&Txn::new(&data[..4 * MIB]))?;
    let txn = server.receive()?;
    check_eq!(txn.addr, server.binder.base(), "address");
    check!(txn.bytes() == data[..4 * MIB], "4 MiB arrived changed");
    // Full to the last byte: not even an empty transaction has room.
    let mut other = Endpoint::sender(&bench.dev)?;
    expect_failed(
        other.send(&Txn::new(&[]))?,
        "a transaction to the full mapping",
    )?;
    check_eq!(other.extended_error()?, Errno::NOSPC, "the full mapping");
    server.reply(&txn, &[])?;
    check!(client.reply_to_post()?.is_ok(), "no reply");
    super::transactions::round_trip(&mut client, &mut server, &data[..64 * KIB])
}

fn one_page_is_enough(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, PAGE)?;
    let mut client = Endpoint::client(&bench.dev)?;
    super::transactions::round_trip(&mut client, &mut server, &pattern(1, PAGE))?;
    expect_failed(
        client.send(&Txn::new(&pattern(2, PAGE + 1)))?,
        "more than a page",
    )?;
    client.deliver(&pattern(3, PAGE / 2))?;
    expect_failed(
        client.send(&Txn::oneway(&[]))?,
        "more than half a page oneway",
    )?;
    server.consume()?;
    Ok(())
}

fn no_mapping_no_transaction(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manage(Binder::open(&bench.dev)?)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    super::expect_dead_reply(sender.send(&Txn::new(&[1]))?)?;
    super::expect_dead_reply(sender.send(&Txn::oneway(&[1]))?)?;
    check!(server.try_next()?.is_none(), "something was delivered");
    Ok(())
}
