// SPDX-License-Identifier: GPL-2.0

//! The debug files, as tools read them: by line, word and position.

use crate::{
    binder::{Device, MIB, PAGE},
    check, check_eq,
    endpoint::{Endpoint, Txn},
    note,
    outcome::{skip, Outcome},
    process::Peer,
    runner::{Bench, Test},
    shrinker, tests,
};
use std::{
    fs,
    time::{Duration, Instant},
};

pub const TESTS: &[Test] = tests!["logs":
    statistics_are_read_line_by_line,
    a_process_without_an_area_has_zeroes,
    buffers_tell_their_parts,
    a_call_is_active_until_it_is_answered,
    references_and_nodes_have_a_line_each,
    only_what_goes_on_is_among_the_transactions,
    senders_go_on_while_a_file_is_read @ 120,
];

const LOGS: &str = "/dev/binderfs/binder_logs";

fn read(file: &str) -> Outcome<String> {
    match fs::read_to_string(format!("{LOGS}/{file}")) {
        Ok(text) => Ok(text),
        Err(_) if !shrinker::has_logs() => skip("no binder_logs"),
        Err(err) => Err(err.into()),
    }
}

/// The lines of the device's process `pid`, but for its name and that of its context.
fn lines(file: &str, dev: &Device, pid: u32) -> Outcome<Option<Vec<String>>> {
    let text = read(file)?;
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if line != format!("proc {pid}") || lines.peek() != Some(&&*format!("context {}", dev.name))
        {
            continue;
        }
        lines.next();
        let ours = lines.take_while(|line| line.starts_with("  "));
        return Ok(Some(ours.map(str::to_owned).collect()));
    }
    Ok(None)
}

/// The same of each time that the calling process has the device open.
fn ours(file: &str, bench: &Bench) -> Outcome<Vec<Vec<String>>> {
    let text = read(file)?;
    let mut all = Vec::new();
    let head = format!("proc {}\ncontext {}\n", std::process::id(), bench.dev.name);
    for (at, _) in text.match_indices(&head) {
        let rest = text[at + head.len()..].lines();
        all.push(
            rest.take_while(|l| l.starts_with("  "))
                .map(str::to_owned)
                .collect(),
        );
    }
    Ok(all)
}

/// What stands between two words of a line, as a number.
fn number(line: &str, before: &str, after: &str) -> Outcome<u64> {
    let rest = line
        .strip_prefix(before)
        .ok_or(format!("{line:?}: no {before:?}"))?;
    let digits = rest
        .strip_suffix(after)
        .ok_or(format!("{line:?}: no {after:?}"))?;
    Ok(digits.parse()?)
}

fn pid() -> u32 {
    std::process::id()
}

/// A receiver in a process of its own, which does nothing but to have an area.
struct Idle(Peer);

impl Idle {
    fn start(dev: &Device, len: usize) -> Outcome<Self> {
        let mut peer = Peer::spawn(|link| {
            let _endpoint = Endpoint::manager(dev, len)?;
            link.send(0)?;
            link.recv().map(|_| ())
        })?;
        peer.link.recv()?;
        Ok(Idle(peer))
    }

    fn pid(&self) -> u32 {
        self.0.pid().as_raw_nonzero().get() as u32
    }

    fn lines(&self, file: &str, dev: &Device) -> Outcome<Option<Vec<String>>> {
        lines(file, dev, self.pid())
    }
}

fn statistics_are_read_line_by_line(bench: &Bench) -> Outcome {
    let mut receiver = Idle::start(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    for _ in 0..3 {
        sender.deliver(&[1; 100])?;
    }
    let stats = receiver
        .lines("stats", &bench.dev)?
        .ok_or("no such process")?;
    let free = MIB / 2 - 3 * 104;
    let expected = [
        "  threads: 1".to_owned(),
        "  requested threads: 0+0/0".to_owned(),
        "  ready threads 0".to_owned(),
        format!("  free async space {free}"),
        "  nodes: 1".to_owned(),
        "  refs: 0 s 0 w 0".to_owned(),
        "  buffers: 3".to_owned(),
        format!("  pages: 1:0:{}", MIB / PAGE - 1),
        "  pages high watermark: 1".to_owned(),
        // The others wait for this one, as they are for the same node.
        "  pending transactions: 1".to_owned(),
    ];
    check_eq!(stats[..expected.len()], expected, "stats");
    // Then come counts of commands and returns, and what only this driver has.
    let rest = &stats[expected.len()..];
    let counts = rest.iter().filter(|line| line.starts_with("  B"));
    check_eq!(counts.count(), rest.len() - 1, "lines of {rest:?}");
    number(
        rest.last().ok_or("no more")?,
        "  outstanding transactions: ",
        "",
    )?;
    check!(
        read("stats")?.starts_with("binder stats:\nBC_"),
        "the first lines"
    );
    receiver.0.kill()
}

fn a_process_without_an_area_has_zeroes(bench: &Bench) -> Outcome {
    let _sender = Endpoint::sender(&bench.dev)?;
    let stats = lines("stats", &bench.dev, pid())?.ok_or("no such process")?;
    let expected = [
        "  ready threads 0",
        "  free async space 0",
        "  nodes: 0",
        "  refs: 0 s 0 w 0",
        "  buffers: 0",
        "  pages: 0:0:0",
        "  pages high watermark: 0",
        "  pending transactions: 0",
    ];
    check_eq!(stats[2..10], expected.map(str::to_owned), "stats");
    Ok(())
}

fn buffers_tell_their_parts(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut sender = Endpoint::client(&bench.dev)?;
    sender.deliver(&[1; 100])?;
    sender.deliver(&[1; 3])?;
    check_eq!(
        sender.send(&Txn::oneway(&[]).buffers(64))?,
        crate::uapi::BR_TRANSACTION_COMPLETE,
        "buffers"
    );
    sender.deliver(&[])?;
    let buffers = || -> Outcome<Vec<String>> {
        let all = ours("state", bench)?.concat();
        let lines = all.into_iter().filter(|line| line.starts_with("  buffer "));
        // What is before the colon is a number that nobody knows.
        Ok(lines
            .map(|line| {
                line.split_once(": ")
                    .map_or(line.clone(), |parts| parts.1.to_owned())
            })
            .collect())
    };
    let queued = [
        "0 size 100:0:0 active",
        "68 size 3:0:0 active",
        "70 size 0:0:64 active",
        "b0 size 0:0:0 active",
    ];
    check_eq!(buffers()?, queued.map(str::to_owned), "queued");
    let first = server.receive()?;
    check_eq!(buffers()?[0], "0 size 100:0:0 delivered", "delivered");
    server.free(first.addr)?;
    check_eq!(
        buffers()?,
        queued[1..]
            .iter()
            .map(|&line| line.to_owned())
            .collect::<Vec<_>>(),
        "freed"
    );
    for _ in 0..3 {
        server.consume()?;
    }
    check_eq!(buffers()?.len(), 0, "all are freed");
    Ok(())
}

fn a_call_is_active_until_it_is_answered(bench: &Bench) -> Outcome {
    let mut server = Endpoint::manager(&bench.dev, MIB)?;
    let mut client = Endpoint::client(&bench.dev)?;
    client.post(&Txn::new(&[1; 24]))?;
    let all = |starts: &str| -> Outcome<Vec<String>> {
        let all = ours("state", bench)?.concat();
        Ok(all
            .into_iter()
            .filter(|line| line.starts_with(starts))
            .collect())
    };
    check_eq!(all("  pending transaction ")?.len(), 1, "pending");
    let txn = server.receive()?;
    let incoming = all("    incoming transaction ")?;
    check_eq!(incoming.len(), 1, "incoming");
    let words: Vec<&str> = incoming[0].split_whitespace().collect();
    let at = |word: &str| words.iter().position(|other| *other == word);
    let next = |word: &str| at(word).and_then(|at| words.get(at + 1)).copied();
    let pid = pid();
    check_eq!(next("from"), Some(&*format!("{pid}:{pid}")), "{incoming:?}");
    check_eq!(next("to"), Some(&*format!("{pid}:{pid}")), "{incoming:?}");
    check_eq!(next("code"), Some("0"), "{incoming:?}");
    check_eq!(next("flags"), Some("0"), "{incoming:?}");
    check_eq!(next("pri"), Some("0"), "{incoming:?}");
    check!(at("a0") < at("r0") && at("a0").is_some(), "{incoming:?}");
    check_eq!(next("size"), Some("24:0"), "{incoming:?}");
    check_eq!(next("offset"), Some("0"), "{incoming:?}");
    check_eq!(all("    outgoing transaction ")?.len(), 1, "outgoing");
    let buffer = all("  buffer ")?;
    check!(buffer[0].ends_with(": 0 size 24:0:0 active"), "{buffer:?}");
    let thread = all("  thread ")?;
    check!(
        thread
            .iter()
            .all(|line| line.ends_with(" need_return 0 tr 0")),
        "{thread:?}"
    );
    server.reply(&txn, &[1; 8])?;
    let reply = client
        .reply_to_post()?
        .map_err(|code| format!("code {code}"))?;
    let buffer = all("  buffer ")?;
    check!(
        buffer[0].ends_with(": 0 size 8:0:0 delivered"),
        "{buffer:?}"
    );
    check_eq!(
        all("    incoming")?.len() + all("    outgoing")?.len(),
        0,
        "all is over"
    );
    client.free(reply.addr)
}

fn references_and_nodes_have_a_line_each(bench: &Bench) -> Outcome {
    let mut receiver = Idle::start(&bench.dev, MIB)?;
    let sender = Endpoint::client(&bench.dev)?;
    sender.command(crate::uapi::BC_ACQUIRE, &0u32.to_ne_bytes())?;
    let state = lines("state", &bench.dev, pid())?.ok_or("no such process")?;
    let refs: Vec<_> = state
        .iter()
        .filter(|line| line.starts_with("  ref "))
        .collect();
    check_eq!(refs.len(), 1, "{state:?}");
    let (_, rest) = refs[0].split_once(": ").ok_or("no colon")?;
    check!(
        rest.starts_with("desc 0 node ") && rest.contains(" s 1 w 0 d "),
        "{rest}"
    );
    let theirs = receiver
        .lines("state", &bench.dev)?
        .ok_or("no such process")?;
    let nodes: Vec<_> = theirs
        .iter()
        .filter(|line| line.starts_with("  node "))
        .collect();
    check_eq!(nodes.len(), 1, "{theirs:?}");
    let expected = format!("is 1 iw 1 tr 0 proc {}", pid());
    check!(
        nodes[0].contains(": u0000000000000000 c0000000000000000 hs 1 hw 1 "),
        "{nodes:?}"
    );
    check!(nodes[0].ends_with(&expected), "{nodes:?}");
    receiver.0.kill()
}

fn only_what_goes_on_is_among_the_transactions(bench: &Bench) -> Outcome {
    let mut receiver = Idle::start(&bench.dev, MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    check_eq!(
        receiver.lines("transactions", &bench.dev)?,
        None,
        "an idle process"
    );
    sender.deliver(&[1; 8])?;
    let all = receiver
        .lines("transactions", &bench.dev)?
        .ok_or("it has a transaction")?;
    check!(
        all.iter().any(|line| line.starts_with("  buffer ")),
        "{all:?}"
    );
    check!(
        all.iter()
            .any(|line| line.starts_with("  pending transaction ")),
        "{all:?}"
    );
    check!(
        !all.iter().any(|line| line.starts_with("  thread ")),
        "{all:?}"
    );
    let text = read(&format!("proc/{}", receiver.pid()))?;
    let head = format!(
        "binder proc state:\nproc {}\ncontext {}\n  thread ",
        receiver.pid(),
        bench.dev.name
    );
    check!(text.starts_with(&head), "proc/{}: {text}", receiver.pid());
    receiver.0.kill()
}

/// As long as somebody reads a file with a line for each of many buffers, senders to the process that
/// has them aren't kept waiting. Of several attempts, one must show that: the machine may be busy.
fn senders_go_on_while_a_file_is_read(bench: &Bench) -> Outcome {
    const BUFFERS: usize = 50_000;
    let mut receiver = Idle::start(&bench.dev, 4 * MIB)?;
    let mut sender = Endpoint::sender(&bench.dev)?;
    for _ in 0..BUFFERS {
        sender.deliver(&[1; 8])?;
    }
    let mut best = f64::MAX;
    for _ in 0..5 {
        let mut reader = Peer::spawn(|link| {
            link.recv()?;
            let start = Instant::now();
            let lines = read("state")?.lines().count();
            link.send(start.elapsed().as_micros() as u64)?;
            link.send(lines as u64)
        })?;
        let mut timer = Peer::spawn(|link| {
            let mut sender = Endpoint::sender(&bench.dev)?;
            link.recv()?;
            let (start, mut worst) = (Instant::now(), Duration::ZERO);
            while start.elapsed() < Duration::from_secs(2) {
                let start = Instant::now();
                sender.deliver(&[1; 8])?;
                worst = worst.max(start.elapsed());
                std::thread::sleep(Duration::from_micros(500));
            }
            link.send(worst.as_micros() as u64)
        })?;
        timer.link.send(0)?;
        reader.link.send(0)?;
        let took = reader.link.recv()?;
        check!(reader.link.recv()? >= BUFFERS as u64, "too few lines");
        let worst = timer.link.recv()?;
        note!("reading took {took} us, the slowest send meanwhile {worst} us");
        best = best.min(worst as f64 / took as f64);
        if best < 0.1 {
            break;
        }
    }
    check!(
        best < 0.1,
        "a sender waited for {best:.2} of the time that reading took"
    );
    receiver.0.kill()
}
