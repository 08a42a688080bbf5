// SPDX-License-Identifier: GPL-2.0

//! What neither side can do to the other, nor to anybody else, by way of a buffer.
//!
//! That the mapping can't be made writable is in `mapping`, that one process doesn't keep the
//! shrinker from the pages of others in `reclaim`.

use crate::{
    binder::{peek, Device, KIB, MIB, PAGE},
    cgroup::Cgroup,
    check, check_eq,
    data::{all_zero, pattern},
    endpoint::{Endpoint, Received, Txn},
    note,
    outcome::{skip, Outcome},
    process::Peer,
    remote::Receiver,
    runner::{Bench, Test},
    shrinker, tests,
    uapi::{name, BR_FAILED_REPLY, BR_TRANSACTION_COMPLETE, TF_CLEAR_BUF},
};
use rustix::{
    io::Errno,
    mm::{mlock, munlock},
    pipe::{pipe, vmsplice, IoSliceRaw, SpliceFlags},
    process::Pid,
};
use std::{ffi::c_void, fs::File, io::Read, os::unix::fs::FileExt, ptr};

pub const TESTS: &[Test] = tests!["isolation":
    no_write_by_a_debugger,
    no_write_by_the_kernel,
    no_bytes_of_another_process,
    no_bytes_of_a_failed_transaction,
    pages_in_a_pipe_are_replaced,
    locked_pages_are_reclaimed,
    no_registration_with_io_uring,
    senders_go_beyond_the_limit_by_the_area_at_most @ 30,
    traffic_doesnt_starve_others @ 30,
];

const LEN: usize = 3 * PAGE + 100;

/// A receiver, and a buffer that it holds.
fn received(bench: &Bench) -> Outcome<(Endpoint, Received, Vec<u8>)> {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let data = pattern(1, LEN);
    Endpoint::sender(&bench.dev)?.deliver(&data)?;
    let txn = server.receive()?;
    Ok((server, txn, data))
}

/// Stops a process for as long as this is there.
struct Traced(libc::pid_t);

impl Traced {
    fn new(pid: Pid) -> Outcome<Self> {
        let pid = pid.as_raw_nonzero().get();
        ptrace(libc::PTRACE_ATTACH, pid, 0, 0)?;
        // SAFETY: No status is asked for.
        unsafe { libc::waitpid(pid, ptr::null_mut(), libc::__WALL) };
        Ok(Traced(pid))
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        let _ = ptrace(libc::PTRACE_DETACH, self.0, 0, 0);
    }
}

fn ptrace(request: libc::c_uint, pid: libc::pid_t, addr: u64, data: u64) -> std::io::Result<()> {
    // SAFETY: The requests that tests make touch no memory of this process.
    match unsafe { libc::ptrace(request, pid, addr as *mut c_void, data as *mut c_void) } {
        -1 => Err(std::io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Writing for debuggers goes past the protection of a mapping, unless that can't be changed.
fn no_write_by_a_debugger(bench: &Bench) -> Outcome {
    let mut receiver = Receiver::start(&bench.dev, MIB, || Ok(()))?;
    let buffer = receiver.fill(&mut Endpoint::sender(&bench.dev)?, 3)?;
    let sum = receiver.sum(buffer)?;
    let pid = receiver.pid();
    let memory = File::options()
        .read(true)
        .write(true)
        .open(format!("/proc/{}/mem", pid.as_raw_nonzero()))?;

    let traced = Traced::new(pid)?;
    for addr in [buffer.addr, buffer.addr + 2 * PAGE as u64 + 8] {
        let mut word = [0];
        check_eq!(memory.read_at(&mut word, addr)?, 1, "bytes read");
        check!(
            memory.write_at(&[0; 8], addr).is_err(),
            "/proc/PID/mem wrote"
        );
        let poked = ptrace(libc::PTRACE_POKEDATA, traced.0, addr, 0);
        check!(poked.is_err(), "ptrace wrote");
        let written = write_to_process(traced.0, addr);
        check_eq!(written, Err(Errno::FAULT), "process_vm_writev");
    }
    drop(traced);
    check_eq!(receiver.sum(buffer)?, sum, "checksum afterwards");
    receiver.free(buffer)
}

fn write_to_process(pid: libc::pid_t, addr: u64) -> Result<(), Errno> {
    let mut data = [0u8; 8];
    let iov = |base: *mut c_void| libc::iovec {
        iov_base: base,
        iov_len: 8,
    };
    let (from, to) = (iov(data.as_mut_ptr().cast()), iov(addr as *mut c_void));
    // SAFETY: Both are valid, and what is read is `data`.
    match unsafe { libc::process_vm_writev(pid, &from, 1, &to, 1, 0) } {
        -1 => Err(Errno::from_io_error(&std::io::Error::last_os_error()).expect("an errno")),
        _ => Ok(()),
    }
}

/// A file isn't read to there.
fn no_write_by_the_kernel(bench: &Bench) -> Outcome {
    let (server, txn, data) = received(bench)?;
    let zero = File::open("/proc/version")?;
    // SAFETY: None: the kernel finds that it can't be written to.
    let read = unsafe {
        libc::read(
            std::os::fd::AsRawFd::as_raw_fd(&zero),
            txn.addr as *mut c_void,
            8,
        )
    };
    check_eq!(read, -1, "bytes read into the buffer");
    let errno = Errno::from_io_error(&std::io::Error::last_os_error());
    check_eq!(errno, Some(Errno::FAULT), "errno");
    check!(txn.bytes() == data, "the buffer changed");
    server.free(txn.addr)
}

/// Neither from pages that went back to the system by reclaim, nor from those of the dead.
fn no_bytes_of_another_process(bench: &Bench) -> Outcome {
    for round in 0..4 {
        let dev = Device::create(&format!("{}-{round}", bench.dev.name))?;
        let mut victim = Receiver::start(&dev, MIB, || Ok(()))?;
        victim.idle(&mut Endpoint::sender(&dev)?, 100)?;
        if round % 2 == 0 {
            shrinker::scan_all(u64::MAX);
        }
        victim.peer().kill()?;

        let mut server = Endpoint::manager(&bench.dev, MIB)?;
        let mut sender = Endpoint::sender(&bench.dev)?;
        // Space for extra buffers, of which there are none, so that nobody writes to it.
        let space = 100 * PAGE;
        sender.send(&Txn::oneway(&[1; 8]).buffers(space as u64))?;
        let txn = server.receive()?;
        let seen = peek(txn.addr + 8, space);
        check!(all_zero(&seen), "round {round}: old bytes on a fresh page");
        server.free(txn.addr)?;
        drop(server);
        shrinker::scan_until(|total| total == 0);
    }
    Ok(())
}

/// A part had been copied when it failed, and the sender had wanted it to be cleared.
fn no_bytes_of_a_failed_transaction(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    // Pages that are there already, and mapped.
    sender.deliver(&[0; LEN])?;
    server.consume()?;
    let data = pattern(1, LEN);
    // The last of the offsets is wrong.
    let offsets = [LEN as u64 / 4 * 4];
    let txn = Txn::oneway(&data).flags(TF_CLEAR_BUF).offsets(&offsets);
    check_eq!(name(sender.send(&txn)?), name(BR_FAILED_REPLY), "status");
    let seen = peek(server.binder.base(), LEN);
    check!(all_zero(&seen), "the receiver sees what was copied");
    Ok(())
}

/// A page that somebody else has, too, is unmapped and counted off like any other. Who has it keeps
/// its old contents, and the receiver gets another page.
fn pages_in_a_pipe_are_replaced(bench: &Bench) -> Outcome {
    shrinker::need()?;
    let (mut server, txn, data) = received(bench)?;
    let (mut output, input) = pipe().map(|(output, input)| (File::from(output), input))?;
    // SAFETY: The buffer is mapped until it is freed; after that the pipe has its pages.
    let bytes = unsafe { std::slice::from_raw_parts(txn.addr as *const u8, LEN) };
    let piece = IoSliceRaw::from_slice(bytes);
    // SAFETY: As above.
    let spliced = unsafe { vmsplice(&input, &[piece], SpliceFlags::empty())? };
    check_eq!(spliced, LEN, "bytes in the pipe");
    server.free(txn.addr)?;
    let gone = shrinker::scan_until(|total| total == 0);
    check!(gone, "{} idle pages stay", shrinker::total());

    let other = pattern(2, LEN);
    Endpoint::sender(&bench.dev)?.deliver(&other)?;
    let next = server.receive()?;
    check_eq!(next.addr, txn.addr, "address");
    check!(next.bytes() == other, "arrived changed");
    let mut old = vec![0; LEN];
    output.read_exact(&mut old)?;
    check!(old == data, "the pages in the pipe changed");
    server.free(next.addr)
}

fn locked_pages_are_reclaimed(bench: &Bench) -> Outcome {
    shrinker::need()?;
    let (server, txn, data) = received(bench)?;
    let addr = txn.addr as *mut c_void;
    // SAFETY: It changes nothing that could be seen.
    let locked = unsafe { mlock(addr, LEN) };
    check_eq!(locked, Ok(()), "mlock");
    check!(txn.bytes() == data, "the buffer changed");
    server.free(txn.addr)?;
    let gone = shrinker::scan_until(|total| total == 0);
    check!(gone, "{} idle pages stay", shrinker::total());
    // SAFETY: As above.
    let _ = unsafe { munlock(addr, LEN) };
    Ok(())
}

/// It would have the pages for as long as it likes, and wants them writable, which they aren't.
fn no_registration_with_io_uring(bench: &Bench) -> Outcome {
    const REGISTER_BUFFERS: u32 = 0;
    let (server, txn, _) = received(bench)?;
    let mut parameters = [0u8; 120];
    // SAFETY: The parameters are as large as the kernel's.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) };
    if ring < 0 {
        return skip("no io_uring (IO_URING)");
    }
    let register = |addr: usize| {
        let buffer = libc::iovec {
            iov_base: addr as *mut c_void,
            iov_len: PAGE,
        };
        let number = libc::SYS_io_uring_register;
        // SAFETY: One buffer is described. The kernel makes sure that it is there.
        match unsafe { libc::syscall(number, ring, REGISTER_BUFFERS, &raw const buffer, 1) } {
            -1 => Errno::from_io_error(&std::io::Error::last_os_error()),
            _ => None,
        }
    };
    check_eq!(
        register(txn.addr),
        Some(Errno::FAULT),
        "a page of the buffer"
    );
    // Not that nothing could be registered.
    let own = vec![0u8; 2 * PAGE];
    check_eq!(register(own.as_ptr() as usize), None, "a page of our own");
    server.free(txn.addr)
}

/// Many at a time go beyond the limit of a receiver's cgroup, but not by more than its area, nor is
/// anything killed for that.
fn senders_go_beyond_the_limit_by_the_area_at_most(bench: &Bench) -> Outcome {
    const MORE: u64 = 150;
    let cgroup = Cgroup::create("limit")?;
    let mut receiver = Receiver::start(&bench.dev, 4 * MIB, || cgroup.enter())?;
    let limit = cgroup.pages()? + MORE;
    cgroup.limit(limit)?;
    let mut senders = Vec::new();
    for i in 0..3 {
        senders.push(Peer::spawn(|link| {
            let mut sender = Endpoint::sender(&bench.dev)?;
            let data = pattern(i, 60 * PAGE);
            let mut sent = 0;
            for round in 0..60 {
                let len = if round % 2 == 0 { data.len() } else { PAGE };
                match sender.send(&Txn::oneway(&data[..len]))? {
                    BR_TRANSACTION_COMPLETE => sent += len / PAGE,
                    status => {
                        check_eq!(name(status), name(BR_FAILED_REPLY), "status");
                        // It isn't the cgroup that has no more.
                        check_eq!(sender.extended_error()?, Errno::NOSPC, "errno");
                    }
                }
            }
            link.send(sent as u64)
        })?);
    }
    let mut sent = 0;
    for sender in &mut senders {
        sent += sender.link.recv()?;
        check_eq!(sender.wait()?.exit_status(), Some(0), "a sender");
    }
    note!("{sent} pages got through, {limit} is the limit");
    check!(sent > MORE, "{sent} pages for {limit}");
    let most = limit + (4 * MIB / PAGE) as u64;
    check!(cgroup.peak()? <= most, "{} pages at most", cgroup.peak()?);
    cgroup.expect_no_oom()?;
    // It is alive. What it does itself now would go over the limit, as it is full.
    cgroup.write("memory.max", "max")?;
    while sent > 0 {
        let buffer = receiver.receive()?;
        receiver.free(buffer)?;
        sent -= buffer.len / PAGE as u64;
    }
    Ok(())
}

/// A process whose pages are used all the time doesn't keep others' idle pages from being found.
fn traffic_doesnt_starve_others(bench: &Bench) -> Outcome {
    const PAGES: u64 = 100;
    shrinker::need()?;
    let mut traffic = Peer::spawn(|link| {
        let mut server = Endpoint::manager(&bench.dev, 4 * MIB)?;
        let mut client = Endpoint::client(&bench.dev)?;
        link.send(0)?;
        for round in 0.. {
            let data = pattern(round, 64 * KIB);
            super::transactions::round_trip(&mut client, &mut server, &data)?;
        }
        Ok(())
    })?;
    traffic.link.recv()?;
    let dev = Device::create(&format!("{}b", bench.dev.name))?;
    let mut innocent = Receiver::start(&dev, MIB, || Ok(()))?;
    let mut sender = Endpoint::sender(&dev)?;
    for _ in 0..10 {
        innocent.idle(&mut sender, PAGES as usize)?;
        // Each looks at no more than half of what lies idle here.
        for _ in 0..20 {
            shrinker::scan_each(PAGES / 2);
        }
        if let Some(pages) = shrinker::pages(&dev, (MIB / PAGE) as u64) {
            check_eq!(pages.lru, 0, "idle pages left");
        } else {
            check!(!shrinker::has_logs(), "no pages in the statistics");
        }
    }
    traffic.kill()
}
