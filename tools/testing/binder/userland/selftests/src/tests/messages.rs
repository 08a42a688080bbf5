// SPDX-License-Identifier: GPL-2.0

//! What the driver says in the kernel log, in the words of the C driver, and that no client can make
//! it say more than a little.
//!
//! Each place in the driver may write ten messages in five seconds. Tests before this one may have
//! spent them: each test waits until all limits are over.

use super::{expect_dead_reply, expect_failed};
use crate::{
    binder::{Binder, KIB, MIB},
    check, check_eq,
    data::pattern,
    endpoint::{Endpoint, Txn},
    outcome::{Context, Outcome},
    process::Peer,
    runner::{Bench, Test},
    tests,
    uapi::{
        name, BR_DEAD_REPLY, BR_FAILED_REPLY, BR_ONEWAY_SPAM_SUSPECT, BR_TRANSACTION_COMPLETE,
        ENABLE_ONEWAY_SPAM_DETECTION,
    },
};
use rustix::{
    fs::{open, seek, Mode, OFlags, SeekFrom},
    io::{read, Errno},
    mm::ProtFlags,
    process::getpid,
};
use std::{
    fs,
    os::fd::OwnedFd,
    thread::sleep,
    time::{Duration, Instant},
};

pub const TESTS: &[Test] = tests!["messages":
    no_space,
    no_oneway_space,
    spam,
    area_that_is_gone,
    failed_reply,
    free_of_nothing,
    mappings_that_fail,
    no_flood_of_failures @ 30,
    no_flood_of_other_errors @ 30,
    no_flood_from_a_dying_process @ 60,
    masks,
];

const HALF: usize = 512 * KIB;

/// How long a rate limit lasts.
const INTERVAL: Duration = Duration::from_millis(5200);

/// How many messages of one place in the driver there are in that time.
const BURST: usize = 10;

/// The kernel log, from when it was opened.
struct Log {
    file: OwnedFd,
    /// How many lines say what was left out because of a limit: one for each place, when it has a
    /// new message.
    skipped: usize,
}

impl Log {
    /// Opens it when all limits are over.
    fn open() -> Outcome<Self> {
        sleep(INTERVAL);
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = open("/dev/kmsg", flags, Mode::empty()).context("/dev/kmsg")?;
        seek(&file, SeekFrom::End(0))?;
        Ok(Log { file, skipped: 0 })
    }

    /// What the driver has said since the last call.
    fn lines(&mut self) -> Outcome<Vec<String>> {
        let mut lines = Vec::new();
        let mut buffer = [0; 8192];
        loop {
            match read(&self.file, &mut buffer) {
                Ok(len) => {
                    let record = String::from_utf8_lossy(&buffer[..len]);
                    // A number of fields, then the line, then what is known of a device.
                    let line = record.split_once(';').map_or("", |it| it.1);
                    let line = line.lines().next().unwrap_or_default();
                    if let Some(ours) = line.strip_prefix("rust_binder: ") {
                        lines.push(ours.to_string());
                    } else if line.ends_with(" callbacks suppressed") {
                        self.skipped += 1;
                    }
                }
                Err(Errno::AGAIN) => return Ok(lines),
                Err(error) => return Err(error).context("reading /dev/kmsg"),
            }
        }
    }

    /// The driver has said this, and nothing else. A number sign stands for a number.
    fn expect(&mut self, expected: &[String]) -> Outcome {
        let lines = self.lines()?;
        let same = lines.len() == expected.len()
            && lines
                .iter()
                .zip(expected)
                .all(|(line, it)| is_like(line, it));
        check!(same, "log: {lines:#?} where {expected:#?} was expected");
        Ok(())
    }
}

fn is_like(mut line: &str, pattern: &str) -> bool {
    let mut parts = pattern.split('#');
    let Some(rest) = parts.next().and_then(|part| line.strip_prefix(part)) else {
        return false;
    };
    line = rest;
    for part in parts {
        let rest = line.trim_start_matches(|c: char| c.is_ascii_digit());
        if rest.len() == line.len() {
            return false;
        }
        let Some(rest) = rest.strip_prefix(part) else {
            return false;
        };
        line = rest;
    }
    line.is_empty()
}

fn pid() -> i32 {
    getpid().as_raw_nonzero().get()
}

/// What is said of a transaction that failed. A test has one thread, and sends to itself.
fn failed(kind: &str, tid: &str, code: u32, errno: i32, size: usize) -> String {
    let pid = pid();
    format!("{pid}:{pid} transaction {kind} to {pid}:{tid} failed #/{code}/{errno}, code 0 size {size}-0")
}

fn no_buffer(why: &str) -> String {
    let pid = pid();
    format!("{pid}:{pid} cannot allocate buffer: {why}")
}

const ENOSPC: i32 = -28;

/// A mask of the driver's. Put back when dropped.
struct Mask {
    path: &'static str,
    before: String,
}

impl Mask {
    const DEBUG: &'static str = "/sys/module/rust_binder/parameters/debug_mask";
    const ALLOC: &'static str = "/sys/module/rust_binder/parameters/alloc_debug_mask";

    fn set(path: &'static str, mask: u32) -> Outcome<Self> {
        let before = fs::read_to_string(path).context(path)?;
        fs::write(path, mask.to_string()).context(path)?;
        Ok(Mask { path, before })
    }
}

impl Drop for Mask {
    fn drop(&mut self) {
        let _ = fs::write(self.path, &self.before);
    }
}

/// Who has how much, so that a leak can be told from a large transaction and from an area in pieces.
fn no_space(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    for len in [100, 100, 200] {
        sender.deliver(&pattern(1, len * KIB))?;
    }
    server.consume()?;
    let mut log = Log::open()?;
    expect_failed(sender.send(&Txn::new(&pattern(1, 700 * KIB)))?, "700 KiB")?;
    let pid = pid();
    log.expect(&[
        format!("{pid}: binder_alloc_buf size 716800 failed, no address space"),
        "allocated: 307200 (num: 2), free: 741376 (num: 2 largest: 638976)".into(),
        no_buffer("no space left"),
        failed("call", "0", BR_FAILED_REPLY, ENOSPC, 700 * KIB),
    ])
}

/// Of a lack of oneway space, only the failure is told unless the mask says otherwise, as with the C
/// driver.
fn no_oneway_space(bench: &Bench) -> Outcome {
    let _server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    sender.deliver(&pattern(1, HALF - 8))?;
    let mut log = Log::open()?;
    expect_failed(sender.send(&Txn::oneway(&[1; 9]))?, "9 bytes")?;
    log.expect(&[
        no_buffer("no space left"),
        failed("async", "0", BR_FAILED_REPLY, ENOSPC, 9),
    ])?;

    let _mask = Mask::set(Mask::ALLOC, 1 << 2)?;
    expect_failed(sender.send(&Txn::oneway(&[1; 9]))?, "9 bytes")?;
    let pid = pid();
    log.expect(&[
        format!("{pid}: binder_alloc_buf size 16 failed, no async space left"),
        no_buffer("no space left"),
        failed("async", "0", BR_FAILED_REPLY, ENOSPC, 9),
    ])
}

/// The sender is told once, the log each time.
fn spam(bench: &Bench) -> Outcome {
    let _server = Endpoint::manager(&bench.dev, MIB)?;
    let mut log = Log::open()?;
    let pid = pid();
    let mut sender = Peer::spawn(|link| {
        let mut sender = Endpoint::sender(&bench.dev)?;
        sender.binder.set::<{ ENABLE_ONEWAY_SPAM_DETECTION }>(1)?;
        for i in 0..8 {
            let status = sender.send(&Txn::oneway(&pattern(1, 64 * KIB)))?;
            let want = match i {
                6 => BR_ONEWAY_SPAM_SUSPECT,
                _ => BR_TRANSACTION_COMPLETE,
            };
            check_eq!(name(status), name(want), "number {i}");
        }
        link.send(0)
    })?;
    sender.link.recv()?;
    let by = sender.pid().as_raw_nonzero();
    log.expect(&[7, 8].map(|n| {
        let size = n * 64 * KIB;
        format!("{pid}: pid {by} spamming oneway? {n} buffers allocated for a total size of {size}")
    }))
}

fn area_that_is_gone(bench: &Bench) -> Outcome {
    let mut binder = Binder::mapped(&bench.dev, MIB)?;
    drop(binder.map.take());
    let _server = Endpoint::manage(binder)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    let mut log = Log::open()?;
    expect_dead_reply(sender.send(&Txn::oneway(&[1]))?)?;
    let pid = pid();
    log.expect(&[
        format!("{pid}: binder_alloc_buf, no vma"),
        no_buffer("vma cleared, target dead or dying"),
        failed("async", "0", BR_DEAD_REPLY, 0, 1),
    ])
}

/// Told at the thread that replied, which itself doesn't learn of it.
fn failed_reply(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut client = Endpoint::client(&bench.dev)?;
    client.post(&Txn::new(&[1]))?;
    let txn = server.receive()?;
    let mut log = Log::open()?;
    server.reply(&txn, &pattern(1, MIB + 8))?;
    check!(client.reply_to_post()?.is_err(), "the reply fits");
    let pid = pid();
    log.expect(&[
        format!("{pid}: binder_alloc_buf size 1048584 failed, no address space"),
        "allocated: 0 (num: 0), free: 1048576 (num: 1 largest: 1048576)".into(),
        no_buffer("no space left"),
        failed("reply", "#", BR_FAILED_REPLY, ENOSPC, MIB + 8),
    ])
}

/// Of what was never a buffer, is none any more, or isn't the process's yet. It is ignored.
fn free_of_nothing(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    let base = server.binder.base();
    for len in [4096, 8192] {
        sender.deliver(&pattern(1, len))?;
    }
    let txn = server.receive()?;
    check_eq!(txn.addr, base, "the first address");
    let mut log = Log::open()?;
    for addr in [base + 8, base - 16, base + 4096] {
        server.free(addr)?;
    }
    server.free(txn.addr)?;
    // The second one may have been delivered: it is, when it is read.
    server.free(txn.addr)?;
    let by = format!("{0}:{0} BC_FREE_BUFFER", pid());
    log.expect(&[
        format!("{by} no match for buffer at offset 8"),
        format!("{by} no match for buffer at offset fffffffffffffff0"),
        format!("{by} matched unreturned or currently freeing buffer at offset 1000"),
        format!("{by} no match for buffer at offset 0"),
    ])?;
    let txn = server.receive()?;
    check!(txn.bytes() == pattern(1, 8192), "the second one changed");
    server.free(txn.addr)?;
    check!(log.lines()?.is_empty(), "a right free was told");
    // Without an area, offsets are from 0.
    sender.free(0x1234)?;
    log.expect(&[format!("{by} no match for buffer at offset 1234")])
}

fn mappings_that_fail(bench: &Bench) -> Outcome {
    let binder = Binder::mapped(&bench.dev, MIB)?;
    let mut log = Log::open()?;
    for (len, prot, error) in [
        (16 * KIB, ProtFlags::READ, Errno::BUSY),
        (8 * KIB, ProtFlags::READ | ProtFlags::WRITE, Errno::PERM),
    ] {
        let Err(got) = binder.mmap(len, prot, 0) else {
            crate::fail!("{prot:?} mapped");
        };
        check_eq!(got, error, "{prot:?}");
    }
    let pid = pid();
    let lines = log.lines()?;
    check_eq!(lines.len(), 2, "lines of {lines:?}");
    for (line, start, end, len) in [
        (
            &lines[0],
            format!("binder_alloc_mmap_handler: {pid} "),
            " already mapped failed -16",
            16 * KIB,
        ),
        (
            &lines[1],
            format!("binder_mmap: {pid} "),
            " bad vm_flags failed -1",
            8 * KIB,
        ),
    ] {
        let pages = line
            .strip_prefix(&start)
            .and_then(|it| it.strip_suffix(end));
        let pages = pages.and_then(|it| it.split_once('-'));
        let Some((from, to)) = pages else {
            crate::fail!("{line}");
        };
        let (from, to) = (
            usize::from_str_radix(from, 16)?,
            usize::from_str_radix(to, 16)?,
        );
        check_eq!(to - from, len, "{line}");
    }
    Ok(())
}

/// All places together say no more than a little in the time that it takes.
fn expect_few(log: &mut Log, begun: Instant, places: usize, first: &[String]) -> Outcome {
    let lines = log.lines()?;
    // As many intervals as may have begun.
    let intervals = 1 + (begun.elapsed().as_millis() / 5000) as usize;
    let most = places * BURST * intervals;
    check!(
        lines.len() <= most,
        "{} lines, more than {most}",
        lines.len()
    );
    // Those of places that had something to say in tests before, too.
    check!(
        log.skipped <= 30 * intervals,
        "{} lines about others",
        log.skipped
    );
    check!(lines.len() >= first.len(), "lines: {lines:#?}");
    for (line, it) in lines.iter().zip(first) {
        check!(is_like(line, it), "{line:?} where {it:?} was expected");
    }
    Ok(())
}

/// 2,000 of them.
fn no_flood_of_failures(bench: &Bench) -> Outcome {
    let _server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    sender.deliver(&pattern(1, HALF))?;
    let (pid, data) = (pid(), pattern(1, 600 * KIB));
    let mut log = Log::open()?;
    let begun = Instant::now();
    for _ in 0..2000 {
        expect_failed(sender.send(&Txn::oneway(&[1; 8]))?, "oneway")?;
    }
    let first = [
        no_buffer("no space left"),
        failed("async", "0", BR_FAILED_REPLY, ENOSPC, 8),
    ];
    // Both count as one place.
    expect_few(&mut log, begun, 1, &first)?;

    let mut log = Log::open()?;
    let begun = Instant::now();
    for _ in 0..2000 {
        expect_failed(sender.send(&Txn::new(&data))?, "call")?;
    }
    let first = [
        format!("{pid}: binder_alloc_buf size 614400 failed, no address space"),
        "allocated: 524288 (num: 1), free: 524288 (num: 1 largest: 524288)".into(),
    ];
    // Of one place, two lines at a time.
    expect_few(&mut log, begun, 3, &first)
}

/// What else a client can do wrong, again and again.
fn no_flood_of_other_errors(bench: &Bench) -> Outcome {
    let server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    let other = Binder::open(&bench.dev)?;
    let mut log = Log::open()?;
    let begun = Instant::now();
    for _ in 0..500 {
        server.free(server.binder.base())?;
        // An offset of no object, objects of no sense, a reply to nothing, a command that is none.
        expect_failed(sender.send(&Txn::new(&[0; 64]).offsets(&[3]))?, "offset")?;
        expect_failed(sender.send(&Txn::new(&[0; 64]).offsets(&[0]))?, "object")?;
        let mut nobody = Txn::new(&[0; 8]);
        nobody.data.target = 1234;
        expect_failed(sender.send(&nobody)?, "handle")?;
        sender.answer(&[1])?;
        expect_failed(sender.status()?, "reply")?;
        let unknown = [0xff; 4];
        check!(
            sender.binder.write_read(&unknown, &mut []).is_err(),
            "command"
        );
        check!(
            other.set::<{ crate::uapi::SET_CONTEXT_MGR }>(0).is_err(),
            "manager"
        );
        check!(
            server.binder.mmap(4096, ProtFlags::READ, 0).is_err(),
            "mmap"
        );
    }
    // On a file that was inherited.
    let mut child = Peer::spawn(|link| {
        for _ in 0..500 {
            check!(server.binder.write_read(&[], &mut [0; 64]).is_err(), "read");
        }
        link.send(0)
    })?;
    child.link.recv()?;
    expect_few(&mut log, begun, 14, &[])
}

/// It has 20,000 oneway transactions in its queue.
fn no_flood_from_a_dying_process(bench: &Bench) -> Outcome {
    let mut receiver = Peer::spawn(|link| {
        let _server = Endpoint::manager(&bench.dev, MIB)?;
        link.send(0)?;
        link.recv()?;
        Ok(())
    })?;
    receiver.link.recv()?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    for _ in 0..20_000 {
        sender.deliver(&[1; 16])?;
    }
    let mut log = Log::open()?;
    let begun = Instant::now();
    receiver.kill()?;
    // It is released some time after its end: all of them are, when the device has a new manager.
    let _server = Endpoint::manager(&bench.dev, MIB)?;
    sleep(Duration::from_secs(1));
    let of = receiver.pid().as_raw_nonzero();
    let first = vec![format!("{of}: undelivered transaction #, process died"); 10];
    expect_few(&mut log, begun, 1, &first)
}

/// Nothing is said that isn't asked for.
fn masks(bench: &Bench) -> Outcome {
    let _server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    sender.deliver(&pattern(1, HALF))?;
    let mut log = Log::open()?;
    let masks = (Mask::set(Mask::DEBUG, 0)?, Mask::set(Mask::ALLOC, 0)?);
    let mut nonsense = || -> Outcome {
        expect_failed(sender.send(&Txn::new(&pattern(1, MIB)))?, "1 MiB")?;
        sender.free(0x1234)
    };
    nonsense()?;
    check!(log.lines()?.is_empty(), "masked messages were written");
    drop(masks);
    nonsense()?;
    check_eq!(log.lines()?.len(), 5, "lines with the usual masks");
    Ok(())
}
