// SPDX-License-Identifier: GPL-2.0

//! What a driver says in its files, in a form in which drivers say the same if they are in the same state.
//!
//! Only what must differ is taken out: process numbers, addresses of the kernel, elapsed time, the numbers of
//! objects, what other programs added to counters before, and where buffers lie, which is looked at by itself.

use binder_raw::outcome::{Context, Outcome};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

const FOLDER: &str = "/dev/binderfs/binder_logs";
const STATS: &str = "stats";
const FILES: [&str; 3] = [STATS, "state", "transactions"];

/// What is before the first process in a file.
const BEGIN: &str = "all";

/// What the driver's files said at one moment.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Look {
    /// The numbers that each process has had, at last the one that it has now.
    pub pids: Vec<Vec<u32>>,
    /// Where the buffers begin that each holds, from the begin of its area.
    pub held: Vec<Vec<usize>>,
    pub files: BTreeMap<String, String>,
}

impl Look {
    pub fn take(pids: &[Vec<u32>], held: &[Vec<usize>]) -> Outcome<Self> {
        let mut files = BTreeMap::new();
        for name in FILES {
            files.insert(name.into(), read(name)?);
        }
        for (party, pids) in pids.iter().enumerate() {
            let last = pids.last().expect("it has been started");
            files.insert(format!("proc {party}"), read(&format!("proc/{last}"))?);
        }
        Ok(Look {
            pids: pids.to_vec(),
            held: held.to_vec(),
            files,
        })
    }

    /// The files in the form that can be compared, after a start at which `stats` said this.
    pub fn texts(&self, start: &str) -> BTreeMap<&str, Vec<Section>> {
        let names = Names::of(self);
        self.files
            .iter()
            .map(|(name, text)| {
                let mut sections = sections(&names, text);
                if name == STATS {
                    since(start, &mut sections[0].lines);
                }
                for section in &mut sections {
                    section.take_out_places(self);
                }
                (&**name, sections)
            })
            .collect()
    }
}

fn read(name: &str) -> Outcome<String> {
    fs::read_to_string(format!("{FOLDER}/{name}")).context(name)
}

/// What `stats` says when a program begins.
pub fn start() -> Outcome<String> {
    read(STATS)
}

/// The lines on one process, or those before the first.
#[derive(Debug, PartialEq)]
pub struct Section {
    pub of: String,
    pub lines: Vec<String>,
    /// Where each buffer begins.
    pub places: BTreeMap<String, usize>,
}

impl Section {
    fn new(of: &str) -> Self {
        Section {
            of: of.into(),
            lines: Vec::new(),
            places: BTreeMap::new(),
        }
    }

    /// Which of the processes it is about, if it is one of ours that lives.
    pub fn party(&self) -> Option<usize> {
        self.of.strip_prefix('P')?.parse().ok()
    }

    /// Takes out where buffers lie, if it is said as it has to be: in hexadecimal digits, in rising order, the
    /// delivered ones where the process has some. They are left in the order in which they were sent.
    fn take_out_places(&mut self, look: &Look) {
        let held = self.party().and_then(|party| look.held.get(party));
        let mut last = None;
        for line in &mut self.lines {
            let Some((id, place, rest)) = buffer(line) else {
                continue;
            };
            let is_held = held.is_some_and(|held| held.contains(&place));
            let doubts = [
                (last >= Some(place), " (behind another)"),
                (
                    rest.ends_with(" delivered") && !is_held,
                    " (the process has none there)",
                ),
            ];
            let doubts = doubts.map(|(is_so, doubt)| if is_so { doubt } else { "" });
            last = Some(place);
            let new = format!("  buffer {id}: @ size {rest}{}", doubts.concat());
            self.places.insert(id.into(), place);
            *line = new;
        }
        for run in self
            .lines
            .chunk_by_mut(|one, other| is_buffer(one) && is_buffer(other))
        {
            run.sort_by_key(|line| number_of(line));
        }
        for line in &mut self.lines {
            let place = line.rsplit_once(" offset ").and_then(|(rest, offset)| {
                let (_, id) = rest.split_once(" transaction ")?;
                let (id, _) = id.split_once(": ")?;
                let place = self.places.get(id)?;
                (offset == format!("{place:x}")).then(|| format!("{rest} offset @"))
            });
            if let Some(new) = place {
                *line = new;
            }
        }
    }
}

const PLACELESS: &str = ": @ size ";

fn is_buffer(line: &str) -> bool {
    line.starts_with("  buffer ") && line.contains(PLACELESS)
}

/// The number of a transaction, in the order in which they were sent.
fn number_of(line: &str) -> usize {
    let id = line.split(['t', ':']).nth(1);
    id.and_then(|id| id.parse().ok()).unwrap_or(0)
}

/// Reads a line about a buffer in the form of the C driver.
fn buffer(line: &str) -> Option<(&str, usize, &str)> {
    let (id, rest) = line.strip_prefix("  buffer ")?.split_once(": ")?;
    let (place, rest) = rest.split_once(" size ")?;
    let (sizes, _) = rest.split_once(' ')?;
    let offset = usize::from_str_radix(place, 16).ok()?;
    let is_so = sizes.split(':').count() == 3 && format!("{offset:x}") == place;
    is_so.then_some((id, offset, rest))
}

/// What a word of a line stands for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Process,
    /// Of a process, and of its thread.
    Thread,
    Node,
    Ref,
    Transaction,
    Time,
    Address,
}

/// What a word stands for that comes after others.
fn kind(before: &[&str], word: &str) -> Option<Kind> {
    let (first, last) = (*before.first()?, *before.last()?);
    let is_id = word.ends_with(':');
    Some(match last {
        "proc" if before.len() == 1 => Kind::Process,
        "thread" | "pid" => Kind::Process,
        "from" | "to" => Kind::Thread,
        "node" | "work" => Kind::Node,
        "ref" => Kind::Ref,
        "buffer" | "transaction" if is_id => Kind::Transaction,
        "elapsed" => Kind::Time,
        "d" if first == "ref" => Kind::Address,
        _ if first == "node" && before.contains(&"proc") => Kind::Process,
        id if id.ends_with(':') && before.iter().rev().nth(1) == Some(&"transaction") => {
            Kind::Address
        }
        _ => return None,
    })
}

/// Replaces the words of a line that stand for something.
fn rewrite(line: &str, mut with: impl FnMut(Kind, &str) -> Option<String>) -> String {
    let mut before = Vec::new();
    let words: Vec<_> = line
        .split(' ')
        .map(|word| {
            let kind = kind(&before, word);
            if !word.is_empty() {
                before.push(word);
            }
            let (core, end) = match word.strip_suffix(':') {
                Some(core) => (core, ":"),
                None => (word, ""),
            };
            match kind.and_then(|kind| with(kind, core)) {
                Some(new) => new + end,
                None => word.into(),
            }
        })
        .collect();
    words.join(" ")
}

/// The names of what has numbers that nobody can foresee. Objects of a kind are numbered in the order in which
/// they were made, of those that the driver names in any of its files.
struct Names {
    processes: BTreeMap<u32, String>,
    objects: BTreeMap<(Kind, u64), usize>,
}

impl Names {
    fn of(look: &Look) -> Self {
        let mut processes = BTreeMap::new();
        for (party, pids) in look.pids.iter().enumerate() {
            for (life, pid) in pids.iter().enumerate() {
                let name = match life + 1 == pids.len() {
                    true => format!("P{party}"),
                    false => format!("P{party}, life {life}"),
                };
                processes.insert(*pid, name);
            }
        }
        let mut found = BTreeSet::new();
        for line in look.files.values().flat_map(|text| text.lines()) {
            rewrite(line, |kind, word| {
                if let Kind::Node | Kind::Ref | Kind::Transaction = kind {
                    found.extend(word.parse::<u64>().map(|number| (kind, number)));
                }
                None
            });
        }
        let mut objects = BTreeMap::new();
        for kind in [Kind::Node, Kind::Ref, Kind::Transaction] {
            let numbers = found.iter().filter(|object| object.0 == kind);
            objects.extend(numbers.enumerate().map(|(index, object)| (*object, index)));
        }
        Names { processes, objects }
    }

    fn process(&self, word: &str) -> Option<String> {
        match word.parse().ok()? {
            0 => Some("0".into()),
            pid => Some(
                self.processes
                    .get(&pid)
                    .map_or("another".into(), String::clone),
            ),
        }
    }

    fn name(&self, kind: Kind, word: &str) -> Option<String> {
        let object = |letter| {
            let number = word.parse().ok()?;
            Some(format!("{letter}{}", self.objects.get(&(kind, number))?))
        };
        match kind {
            Kind::Process => self.process(word),
            Kind::Thread => {
                let parts: Option<Vec<_>> =
                    word.split(':').map(|part| self.process(part)).collect();
                Some(parts?.join(":"))
            }
            Kind::Node => object('n'),
            Kind::Ref => object('r'),
            Kind::Transaction => object('t'),
            Kind::Time => {
                let _: u64 = word.strip_suffix("ms")?.parse().ok()?;
                Some("?ms".into())
            }
            // What the kernel prints for an address that it keeps to itself.
            Kind::Address => match word.len() == 16 && u64::from_str_radix(word, 16).is_ok() {
                true if word.bytes().all(|digit| digit == b'0') => Some("none".into()),
                true => Some("address".into()),
                false => (word == "(____ptrval____)").then(|| "address".into()),
            },
        }
    }
}

fn sections(names: &Names, text: &str) -> Vec<Section> {
    let mut sections = vec![Section::new(BEGIN)];
    for line in text.lines() {
        let line = rewrite(line, |kind, word| names.name(kind, word));
        if let Some(of) = line.strip_prefix("proc ") {
            sections.push(Section::new(of));
        }
        let last = sections.last_mut().expect("there is one");
        last.lines.push(line);
    }
    sections
}

/// Numbers and the words around them.
fn numbers(line: &str) -> (Vec<u64>, String) {
    let mut numbers = Vec::new();
    let words = line.split(' ').map(|word| match word.parse() {
        Ok(number) => {
            numbers.push(number);
            "#"
        }
        Err(_) => word,
    });
    let words = words.collect::<Vec<_>>().join(" ");
    (numbers, words)
}

/// Leaves of the driver's counters of everything what was added since a start, and drops those that have not
/// changed.
fn since(start: &str, lines: &mut Vec<String>) {
    let start: BTreeMap<String, Vec<u64>> = start
        .lines()
        .take_while(|line| !line.starts_with("proc "))
        .map(|line| {
            let (numbers, words) = numbers(line);
            (words, numbers)
        })
        .collect();
    let changed = lines.iter().filter_map(|line| {
        let (now, words) = numbers(line);
        if now.is_empty() {
            return Some(line.clone());
        }
        let zeroes = vec![0; now.len()];
        let before = start.get(&words).unwrap_or(&zeroes);
        let new = now.iter().zip(before).map(|(now, before)| {
            let more = i128::from(*now) - i128::from(*before);
            more.to_string()
        });
        let new: Vec<_> = new.collect();
        let is_changed = new.iter().any(|more| more != "0");
        let mut new = new.into_iter();
        let words = words.split(' ').map(|word| match word {
            "#" => new.next().expect("as many as there are"),
            _ => word.into(),
        });
        let line = words.collect::<Vec<_>>().join(" ");
        is_changed.then_some(line)
    });
    *lines = changed.collect();
}
