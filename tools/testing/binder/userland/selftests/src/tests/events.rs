// SPDX-License-Identifier: GPL-2.0

//! The driver's events of buffers and pages: those of the C driver, with its names, fields and
//! formats, each when the same thing happens; and two of our own, `binder_install_pages` and
//! `binder_reclaim`.
//!
//! Upstream's Rust driver has none of them.

use crate::{
    binder::{MIB, PAGE},
    check, check_eq,
    data::pattern,
    endpoint::{bytes_of, Endpoint, Txn},
    fail,
    outcome::{skip, Context, Outcome, PATIENCE},
    remote::{Receiver, Remote},
    runner::{Bench, Test},
    shrinker, tests,
    tracing::{self, Event, Recording},
    uapi::{name, BufferObject, FlatObject, BR_FAILED_REPLY, BR_TRANSACTION_COMPLETE, TYPE_PTR},
};
use rustix::{
    ioctl::{ioctl, opcode, Opcode, Setter},
    process::{getpid, Pid},
};
use std::{
    fs,
    io::{BufRead, BufReader},
    ops::Range,
    path::Path,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

pub const TESTS: &[Test] = tests!["events":
    formats_are_cs,
    sends_and_frees,
    sizes_of_parts,
    failures,
    transaction_to_a_frozen_process_fails,
    superseded_transaction,
    death_releases_in_silence @ 20,
    reclaim,
    pages_in_use_come_off_the_lru,
    trace_cmd_reads_a_recording @ 60,
];

/// The events of buffers and pages, and what says which transaction it is.
const NAMES: &[&str] = &[
    "binder_transaction",
    "binder_update_page_range",
    "binder_alloc_",
    "binder_free_lru",
    "binder_unmap_",
    "binder_install_pages",
    "binder_reclaim",
];

/// How many adjoining pages are reclaimed together.
const GROUP: usize = usize::BITS as usize;

/// A receiver and a sender, each with one thread, whose events are recorded.
struct Scene {
    recording: Recording,
    receiver: Receiver,
    sender: Endpoint,
    proc: Pid,
}

/// What was recorded.
struct Record {
    /// Of buffers and pages.
    texts: Vec<String>,
    /// The numbers of the transactions that were sent, or received.
    sent: Vec<u64>,
    received: Vec<u64>,
}

impl Scene {
    fn start(bench: &Bench) -> Outcome<Self> {
        // First: without events, there is nothing to do.
        let recording = Recording::start(NAMES)?;
        let receiver = Receiver::start(&bench.dev, MIB, || Ok(()))?;
        let proc = receiver.pid();
        Ok(Scene {
            recording,
            receiver,
            sender: Endpoint::sender(&bench.dev)?,
            proc,
        })
    }

    /// What the two have done since the last call.
    fn record(&self) -> Outcome<Record> {
        let proc = self.proc.as_raw_nonzero();
        record(self.recording.take(&[getpid(), self.proc])?, proc.get())
    }

    /// Nothing but this has happened to buffers and pages.
    fn expect(&self, what: &str, want: &[String]) -> Outcome {
        expect(what, &self.record()?.texts, want)
    }

    /// Delivers a oneway transaction; tells its number, and what was recorded.
    fn deliver(&mut self, data: &[u8]) -> Outcome<(u64, Remote, Vec<String>)> {
        self.deliver_txn(&Txn::oneway(data))
    }

    fn deliver_txn(&mut self, txn: &Txn) -> Outcome<(u64, Remote, Vec<String>)> {
        let status = self.sender.send(txn)?;
        check_eq!(name(status), name(BR_TRANSACTION_COMPLETE), "status");
        let buffer = self.receiver.receive()?;
        let record = self.record()?;
        check_eq!(record.sent.len(), 1, "binder_transaction");
        check_eq!(record.received, record.sent, "binder_transaction_received");
        Ok((record.sent[0], buffer, record.texts))
    }

    fn range(&self, allocate: u32, pages: Range<usize>) -> String {
        format!(
            "binder_update_page_range: proc={} allocate={allocate} offset={} size={}",
            self.proc.as_raw_nonzero(),
            pages.start * PAGE,
            pages.len() * PAGE
        )
    }

    /// The start and the end of what happens to each of some pages.
    fn pairs(&self, what: &str, pages: impl IntoIterator<Item = usize>) -> Vec<String> {
        let proc = self.proc.as_raw_nonzero();
        pages
            .into_iter()
            .flat_map(|page| {
                ["start", "end"]
                    .map(|end| format!("binder_{what}_{end}: proc={proc} page_index={page}"))
            })
            .collect()
    }

    fn mapped(&self, pages: Range<usize>) -> String {
        format!(
            "binder_install_pages: proc={} page_index={} pages={}",
            self.proc.as_raw_nonzero(),
            pages.start,
            pages.len()
        )
    }

    fn freeze(&self, enable: bool) -> Outcome {
        let info = FreezeInfo {
            pid: self.proc.as_raw_nonzero().get(),
            enable: enable.into(),
            timeout_ms: 0,
        };
        // SAFETY: The ioctl reads one `FreezeInfo`.
        unsafe { ioctl(&self.sender.binder.fd, Setter::<FREEZE, _>::new(info)) }
            .context("BINDER_FREEZE")
    }
}

#[repr(C)]
struct FreezeInfo {
    pid: i32,
    enable: u32,
    timeout_ms: u32,
}

const FREEZE: Opcode = opcode::write::<FreezeInfo>(b'b', 14);
const TF_UPDATE_TXN: u32 = 0x40;
const BR_FROZEN_REPLY: u32 = opcode::none(b'r', 18);
const BR_TRANSACTION_PENDING_FROZEN: u32 = opcode::none(b'r', 20);

fn record(events: Vec<Event>, proc: i32) -> Outcome<Record> {
    let mut record = Record {
        texts: Vec::new(),
        sent: Vec::new(),
        received: Vec::new(),
    };
    for event in events {
        match event.name() {
            "binder_transaction" => {
                check_eq!(event.field("dest_proc")?, proc as u64, "{}", event.text);
                record.sent.push(event.field("transaction")?);
            }
            "binder_transaction_received" => record.received.push(event.field("transaction")?),
            _ => record.texts.push(event.text),
        }
    }
    Ok(record)
}

fn expect(what: &str, got: &[String], want: &[String]) -> Outcome {
    if got != want {
        let differs = got.iter().zip(want).take_while(|(a, b)| a == b).count();
        fail!(
            "{what}: {} events, want {}; number {differs} is {:?}, want {:?}; all: {got:#?}",
            got.len(),
            want.len(),
            got.get(differs),
            want.get(differs)
        );
    }
    Ok(())
}

/// An event of a buffer with data only.
fn buffer(what: &str, id: u64, data: usize) -> String {
    parts(what, id, [data, 0, 0])
}

fn parts(what: &str, id: u64, [data, offsets, extra]: [usize; 3]) -> String {
    format!(
        "binder_transaction_{what}: transaction={id} data_size={data} offsets_size={offsets} \
         extra_buffers_size={extra}"
    )
}

/// The number of the transaction that got a buffer.
fn id_of(texts: &[String]) -> Outcome<u64> {
    for text in texts {
        if text.starts_with("binder_transaction_alloc_buf:") {
            let event = Event {
                task: 0,
                text: text.clone(),
            };
            return event.field("transaction");
        }
    }
    fail!("no buffer was allocated: {texts:#?}")
}

/// A field of an event: its declaration, its size, whether it has a sign.
type Field = (&'static str, usize, bool);

const BUFFER_FIELDS: &[Field] = &[
    ("int debug_id", 4, true),
    ("size_t data_size", 8, false),
    ("size_t offsets_size", 8, false),
    ("size_t extra_buffers_size", 8, false),
];
const BUFFER_PRINT: &str =
    "\"transaction=%d data_size=%zd offsets_size=%zd extra_buffers_size=%zd\", REC->debug_id, \
     REC->data_size, REC->offsets_size, REC->extra_buffers_size";
const PAGE_FIELDS: &[Field] = &[("int proc", 4, true), ("size_t page_index", 8, false)];
const PAGE_PRINT: &str = "\"proc=%d page_index=%zu\", REC->proc, REC->page_index";

/// As the C driver's `binder_trace.h` has them, which tools go by; and ours.
fn formats_are_cs(_: &Bench) -> Outcome {
    let group = tracing::group()?;
    for event in ["alloc_buf", "buffer_release"] {
        expect_format(
            &group,
            &format!("transaction_{event}"),
            BUFFER_FIELDS,
            BUFFER_PRINT,
        )?;
    }
    for why in ["failed", "update"] {
        let event = format!("transaction_{why}_buffer_release");
        expect_format(&group, &event, BUFFER_FIELDS, BUFFER_PRINT)?;
    }
    for what in [
        "alloc_lru",
        "free_lru",
        "alloc_page",
        "unmap_user",
        "unmap_kernel",
    ] {
        for end in ["start", "end"] {
            expect_format(&group, &format!("{what}_{end}"), PAGE_FIELDS, PAGE_PRINT)?;
        }
    }
    expect_format(
        &group,
        "update_page_range",
        &[
            ("int proc", 4, true),
            ("bool allocate", 1, false),
            ("size_t offset", 8, false),
            ("size_t size", 8, false),
        ],
        "\"proc=%d allocate=%d offset=%zu size=%zu\", REC->proc, REC->allocate, REC->offset, \
         REC->size",
    )?;
    expect_format(
        &group,
        "install_pages",
        &[
            ("int proc", 4, true),
            ("size_t page_index", 8, false),
            ("size_t pages", 8, false),
        ],
        "\"proc=%d page_index=%zu pages=%zu\", REC->proc, REC->page_index, REC->pages",
    )?;
    expect_format(
        &group,
        "reclaim",
        &[
            ("u64 memcg", 8, false),
            ("int nid", 4, true),
            ("size_t asked", 8, false),
            ("size_t scanned", 8, false),
            ("size_t freed", 8, false),
            ("size_t busy", 8, false),
        ],
        "\"memcg=%llu nid=%d asked=%zu scanned=%zu freed=%zu busy=%zu\", REC->memcg, REC->nid, \
         REC->asked, REC->scanned, REC->freed, REC->busy",
    )
}

fn expect_format(group: &Path, event: &str, fields: &[Field], print: &str) -> Outcome {
    let event = format!("binder_{event}");
    let text = fs::read_to_string(group.join(&event).join("format")).context(&event)?;
    let mut got = Vec::new();
    for line in text.lines() {
        let Some(field) = line.strip_prefix("\tfield:") else {
            continue;
        };
        let parts: Vec<&str> = field.split(';').map(str::trim).collect();
        let [declaration, _, size, sign, ..] = parts[..] else {
            fail!("{event}: {line}");
        };
        if !declaration.contains(" common_") {
            got.push((
                declaration.to_owned(),
                size.trim_start_matches("size:").parse::<usize>()?,
                sign == "signed:1",
            ));
        }
    }
    let want: Vec<_> = fields
        .iter()
        .map(|(declaration, size, sign)| (declaration.to_string(), *size, *sign))
        .collect();
    check_eq!(got, want, "fields of {event}");
    let got = text
        .lines()
        .find_map(|line| line.strip_prefix("print fmt: "));
    check_eq!(got, Some(print), "format of {event}");
    Ok(())
}

/// Pages are brought the first time, and go on the LRU once.
fn sends_and_frees(bench: &Bench) -> Outcome {
    let mut scene = Scene::start(bench)?;
    scene.expect("the beginning", &[])?;

    let (id, first, got) = scene.deliver(&pattern(1, 100))?;
    let mut want = vec![scene.range(1, 0..1)];
    want.extend(scene.pairs("alloc_page", [0]));
    want.push(scene.mapped(0..1));
    want.push(buffer("alloc_buf", id, 100));
    expect("the first send", &got, &want)?;
    scene.receiver.free(first)?;
    let mut want = vec![buffer("buffer_release", id, 100), scene.range(0, 0..1)];
    want.extend(scene.pairs("free_lru", [0]));
    scene.expect("the first free", &want)?;

    // The page is there, and stays on the LRU.
    let (id, held, got) = scene.deliver(&pattern(2, 99))?;
    let want = [scene.range(1, 0..1), buffer("alloc_buf", id, 99)];
    expect("a warm send", &got, &want)?;

    // From the middle of a page to the middle of another, with two between. It isn't received
    // before the other one is freed.
    let len = 3 * PAGE + 40;
    scene.sender.deliver(&pattern(3, len))?;
    let record = scene.record()?;
    check_eq!(record.sent, [id_of(&record.texts)?], "binder_transaction");
    let long = record.sent[0];
    let mut want = vec![scene.range(1, 1..4)];
    want.extend(scene.pairs("alloc_page", 1..3));
    want.extend(scene.pairs("alloc_page", [3]));
    want.push(scene.mapped(3..4));
    want.push(buffer("alloc_buf", long, len));
    want.push(scene.mapped(1..3));
    expect("a send beside another", &record.texts, &want)?;

    // The page that both lie on stays in use.
    scene.receiver.free(held)?;
    let want = [buffer("buffer_release", id, 99)];
    scene.expect("a free beside another", &want)?;
    let received = scene.receiver.receive()?;
    check_eq!(scene.record()?.received, [long], "received");
    scene.receiver.free(received)?;
    let mut want = vec![buffer("buffer_release", long, len), scene.range(0, 0..4)];
    want.extend(scene.pairs("free_lru", 1..4));
    scene.expect("the free of the other", &want)?;

    // What is freed twice isn't released twice.
    scene.receiver.free(received)?;
    scene.expect("a second free", &[])
}

/// Data, offsets and extra space, as the sender said; security contexts count as the last.
fn sizes_of_parts(bench: &Bench) -> Outcome {
    let mut scene = Scene::start(bench)?;
    let (_, warm, _) = scene.deliver(&pattern(1, 500))?;
    scene.receiver.free(warm)?;
    scene.record()?;
    for len in [0, 1, 8, 100] {
        let extra = pattern(len as u64, len);
        let object = BufferObject {
            kind: TYPE_PTR,
            buffer: extra.as_ptr() as u64,
            length: len as u64,
            ..Default::default()
        };
        let mut data = bytes_of(&object).to_vec();
        data.extend_from_slice(&pattern(7, len));
        let space = len.next_multiple_of(8);
        let sizes = [data.len(), 8, space];
        let txn = Txn::oneway(&data).offsets(&[0]).buffers(space as u64);
        let (id, buffer, got) = scene.deliver_txn(&txn)?;
        let want = [scene.range(1, 0..1), parts("alloc_buf", id, sizes)];
        expect("a send", &got, &want)?;
        scene.receiver.free(buffer)?;
        let want = [parts("buffer_release", id, sizes), scene.range(0, 0..1)];
        scene.expect("a free", &want)?;
    }
    // Nothing has a place, too.
    let (id, nothing, got) = scene.deliver(&[])?;
    let want = [scene.range(1, 0..1), buffer("alloc_buf", id, 0)];
    expect("an empty send", &got, &want)?;
    scene.receiver.free(nothing)?;
    let want = [buffer("buffer_release", id, 0), scene.range(0, 0..1)];
    scene.expect("its free", &want)
}

/// With a buffer, it is released as that of a failed transaction. Without, nothing is.
fn failures(bench: &Bench) -> Outcome {
    let mut scene = Scene::start(bench)?;
    let bad = FlatObject {
        kind: 1,
        ..FlatObject::own(8, 9)
    };
    let mut data = pattern(1, 2 * PAGE);
    data.extend_from_slice(bytes_of(&bad));
    for round in 0..2 {
        let offsets = [2 * PAGE as u64];
        let status = scene.sender.send(&Txn::oneway(&data).offsets(&offsets))?;
        check_eq!(name(status), name(BR_FAILED_REPLY), "a bad object");
        let record = scene.record()?;
        check_eq!(record.sent, [], "transactions on their way");
        let id = id_of(&record.texts)?;
        let sizes = [data.len(), 8, 0];
        // The two first pages were to be filled, and go with the buffer. The last one stays.
        let mut want = vec![scene.range(1, 0..3)];
        want.extend(scene.pairs("alloc_page", 0..2));
        if round == 0 {
            want.extend(scene.pairs("alloc_page", [2]));
            want.push(scene.mapped(2..3));
        }
        want.push(parts("alloc_buf", id, sizes));
        want.push(parts("failed_buffer_release", id, sizes));
        want.push(scene.range(0, 0..3));
        if round == 0 {
            want.extend(scene.pairs("free_lru", [2]));
        }
        expect("a bad object", &record.texts, &want)?;
    }

    let status = scene.sender.send(&Txn::oneway(&pattern(2, MIB)))?;
    check_eq!(name(status), name(BR_FAILED_REPLY), "too much");
    scene.expect("too much for the area", &[])?;
    scene.receiver.unmap()?;
    let status = scene.sender.send(&Txn::oneway(&[1]))?;
    super::expect_dead_reply(status)?;
    scene.expect("no area", &[])
}

/// It has a buffer by the time that the driver finds out.
fn transaction_to_a_frozen_process_fails(bench: &Bench) -> Outcome {
    let mut scene = Scene::start(bench)?;
    let (_, warm, _) = scene.deliver(&pattern(1, 100))?;
    scene.receiver.free(warm)?;
    scene.freeze(true)?;
    scene.record()?;
    let status = scene.sender.send(&Txn::new(&pattern(2, 80)))?;
    check_eq!(name(status), name(BR_FROZEN_REPLY), "status");
    let texts = scene.record()?.texts;
    let id = id_of(&texts)?;
    let want = [
        scene.range(1, 0..1),
        buffer("alloc_buf", id, 80),
        buffer("failed_buffer_release", id, 80),
        scene.range(0, 0..1),
    ];
    expect("a call to a frozen process", &texts, &want)?;
    scene.freeze(false)
}

/// TF_UPDATE_TXN: of what waits for a frozen process, the last one of a kind is kept.
fn superseded_transaction(bench: &Bench) -> Outcome {
    let mut scene = Scene::start(bench)?;
    scene.freeze(true)?;
    let mut ids = Vec::new();
    for (nth, len) in [100, 1000, 2000].into_iter().enumerate() {
        let data = pattern(nth as u64, len);
        let txn = Txn::oneway(&data).flags(TF_UPDATE_TXN);
        let status = scene.sender.send(&txn)?;
        check_eq!(name(status), name(BR_TRANSACTION_PENDING_FROZEN), "status");
        let record = scene.record()?;
        check_eq!(record.sent, [id_of(&record.texts)?], "transactions");
        let id = record.sent[0];
        let last = record.texts.last().map(String::as_str).unwrap_or_default();
        let want = match nth {
            // The first one is in the queue of the process already, which nothing is taken from.
            0 | 1 => buffer("alloc_buf", id, len),
            _ => buffer("update_buffer_release", ids[1], 1000),
        };
        check_eq!(last, want, "the last event of transaction {nth}");
        ids.push(id);
    }
    scene.freeze(false)?;
    for (nth, len) in [(0, 100), (2, 2000)] {
        let received = scene.receiver.receive()?;
        check_eq!(received.len, len as u64, "length");
        scene.receiver.free(received)?;
        let record = scene.record()?;
        check_eq!(record.received, [ids[nth]], "received");
        let release = buffer("buffer_release", ids[nth], len);
        check_eq!(record.texts.first(), Some(&release), "of transaction {nth}");
    }
    Ok(())
}

/// As with the C driver: the pages go out of use, but nobody has released the buffers.
fn death_releases_in_silence(bench: &Bench) -> Outcome {
    let mut scene = Scene::start(bench)?;
    scene.deliver(&pattern(1, PAGE))?;
    scene.sender.deliver(&pattern(2, 2 * PAGE))?;
    scene.record()?;
    scene.receiver.peer().kill()?;
    let mut ranges = vec![scene.range(0, 0..1), scene.range(0, 1..3)];
    let until = Instant::now() + PATIENCE;
    while !ranges.is_empty() {
        check!(Instant::now() < until, "no event: {ranges:?}");
        for event in scene.recording.take_all()? {
            check!(!event.name().ends_with("release"), "{}", event.text);
            ranges.retain(|range| *range != event.text);
        }
        sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Scans for all that the shrinker counts. Tells what was recorded, but for the events of the
/// scans, whose sums are `scanned` and `freed`.
fn scan(scene: &Scene, scanned: u64, freed: u64) -> Outcome<Vec<String>> {
    let mut texts = Vec::new();
    let mut sums = (0, 0);
    // A shrinker is for everybody then, though its file names the root.
    let for_all = fs::read_to_string("/proc/cmdline")?.contains("cgroup.memory=nokmem");
    for line in shrinker::lines() {
        for (nid, count) in line.nodes.iter().enumerate().filter(|(_, n)| **n > 0) {
            shrinker::scan(line.memcg, nid, *count);
            let mut events = scene.recording.take(&[getpid()])?;
            let Some(last) = events.pop() else {
                fail!("no event of a scan");
            };
            let number = |field| last.field(field);
            let (scanned, freed) = (number("scanned")?, number("freed")?);
            let want = format!(
                "binder_reclaim: memcg={} nid={nid} asked={count} scanned={scanned} freed={freed} \
                 busy=0",
                if for_all { 0 } else { line.memcg }
            );
            check_eq!(last.text, want, "the event of a scan");
            let given_up = |event: &&Event| event.name() == "binder_unmap_kernel_end";
            let unmapped = events.iter().filter(given_up).count() as u64;
            check_eq!(unmapped, freed, "pages given up");
            sums = (sums.0 + scanned, sums.1 + freed);
            texts.extend(events.into_iter().map(|event| event.text));
        }
    }
    check_eq!(sums, (scanned, freed), "slots scanned, pages freed");
    Ok(texts)
}

/// Where all pages are on one node, the groups come in the order in which they went idle.
fn in_order(what: &str, got: &[String], want: &[String]) -> Outcome {
    if shrinker::nodes() == 1 {
        return expect(what, got, want);
    }
    let sorted = |texts: &[String]| {
        let mut texts = texts.to_vec();
        texts.sort();
        texts
    };
    expect(what, &sorted(got), &sorted(want))
}

/// By groups: each page is given up, then they are unmapped.
fn reclaim(bench: &Bench) -> Outcome {
    check_eq!(shrinker::swept()?, 0, "idle pages that stay");
    let mut scene = Scene::start(bench)?;
    scene.receiver.idle(&mut scene.sender, 70)?;
    scene.record()?;
    let got = scan(&scene, 70, 70)?;
    let mut want = Vec::new();
    for group in [0..GROUP, GROUP..70] {
        want.extend(scene.pairs("unmap_kernel", group.clone()));
        want.extend(scene.pairs("unmap_user", group));
    }
    in_order("a scan", &got, &want)?;

    // Nothing is mapped any more: nothing is unmapped.
    scene.receiver.idle(&mut scene.sender, 3)?;
    scene.receiver.unmap()?;
    scene.record()?;
    let got = scan(&scene, 3, 3)?;
    let want = scene.pairs("unmap_kernel", 0..3);
    in_order("a scan of what was unmapped", &got, &want)
}

/// They stay on the LRU until a scan meets them there.
fn pages_in_use_come_off_the_lru(bench: &Bench) -> Outcome {
    check_eq!(shrinker::swept()?, 0, "idle pages that stay");
    let mut scene = Scene::start(bench)?;
    scene.receiver.idle(&mut scene.sender, 20)?;
    scene.record()?;
    let (id, held, got) = scene.deliver(&pattern(1, 8 * PAGE))?;
    let want = [scene.range(1, 0..8), buffer("alloc_buf", id, 8 * PAGE)];
    expect("a warm send", &got, &want)?;

    let got = scan(&scene, 20, 12)?;
    let mut want = scene.pairs("alloc_lru", 0..8);
    want.extend(scene.pairs("unmap_kernel", 8..20));
    want.extend(scene.pairs("unmap_user", 8..20));
    in_order("a scan", &got, &want)?;

    scene.receiver.free(held)?;
    let mut want = vec![buffer("buffer_release", id, 8 * PAGE), scene.range(0, 0..8)];
    want.extend(scene.pairs("free_lru", 0..8));
    scene.expect("the free", &want)
}

/// Debian's trace-cmd, where the kernel's userland has it.
const TRACE_CMD: &str = "/usr/bin/trace-cmd";
const USERLAND: &str = "/userland";

fn trace_cmd(args: &[&str]) -> Command {
    let mut command = Command::new("chroot");
    command.arg(USERLAND).arg(TRACE_CMD).args(args);
    command
}

/// What trace-cmd runs when it records: says so, and ends when it is told to.
const SCRIPT: &str = "echo started; cat >/dev/null";

fn trace_cmd_reads_a_recording(bench: &Bench) -> Outcome {
    tracing::group()?;
    if !Path::new(USERLAND).join(&TRACE_CMD[1..]).exists() {
        return skip("no trace-cmd in /userland");
    }
    let file = format!("/tmp/selftest-{}.dat", std::process::id());
    let mut receiver = Receiver::start(&bench.dev, MIB, || Ok(()))?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    let proc = receiver.pid().as_raw_nonzero().get();

    let mut recorder = trace_cmd(&["record", "-e", "rust_binder", "-o", &file])
        .args(["sh", "-c", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("trace-cmd record")?;
    let output = recorder.stdout.take().expect("piped");
    let mut lines = BufReader::new(output).lines();
    loop {
        match lines.next().transpose()? {
            Some(line) if line == "started" => break,
            Some(_) => {}
            None => fail!("trace-cmd record doesn't begin"),
        }
    }
    receiver.idle(&mut sender, 2)?;
    drop(recorder.stdin.take());
    // It says what it has recorded.
    for line in lines {
        line?;
    }
    let status = recorder.wait()?;
    check!(status.success(), "trace-cmd record: {status}");

    let report = trace_cmd(&["report", "-i", &file]).output()?;
    let _ = fs::remove_file(&file);
    check!(
        report.status.success(),
        "trace-cmd report: {}",
        report.status
    );
    let report = String::from_utf8(report.stdout)?;
    let ours = [getpid(), receiver.pid()].map(|pid| pid.as_raw_nonzero().get());
    let mut events: Vec<Event> = report.lines().filter_map(Event::parse).collect();
    events.retain(|event| {
        let named = |start: &&str| event.name().starts_with(*start);
        ours.contains(&event.task) && NAMES.iter().any(named)
    });
    let record = record(events, proc)?;
    check_eq!(record.sent.len(), 1, "transactions in: {report}");
    let id = record.sent[0];
    let page = |what: &str, page: usize| {
        ["start", "end"].map(|end| format!("binder_{what}_{end}: proc={proc} page_index={page}"))
    };
    let range = |allocate: u32| {
        format!("binder_update_page_range: proc={proc} allocate={allocate} offset=0 size=8192")
    };
    let mut want = vec![range(1)];
    want.extend([0, 1].iter().flat_map(|index| page("alloc_page", *index)));
    want.push(buffer("alloc_buf", id, 2 * PAGE));
    want.push(format!(
        "binder_install_pages: proc={proc} page_index=0 pages=2"
    ));
    want.push(buffer("buffer_release", id, 2 * PAGE));
    want.push(range(0));
    want.extend([0, 1].iter().flat_map(|index| page("free_lru", *index)));
    expect("trace-cmd report", &record.texts, &want)
}
