// SPDX-License-Identifier: GPL-2.0

//! The differences between our driver and the others that are known, and where each may be. They are
//! explained in Documentation/driver-api/binder/differences.rst, by the same names.

use crate::{
    program::{Action, Object, Op, Payload, Which, PARTIES},
    run::{Buffers, Step},
};
use binder_raw::binder::{MIB, PAGE};
use std::{collections::BTreeMap, iter, mem};

/// Who has no area, or has unmapped a part of it, or was without one for a time: what failed then may
/// be told later. How much of each is used for buffers. And what each replied last, with our driver and with the
/// other: who gets the reply is told what was wrong with it.
#[derive(Default)]
pub struct Areas<'a> {
    missing: [Option<bool>; PARTIES],
    len: [usize; PARTIES],
    replies: [Option<(&'a Step, &'a Step)>; PARTIES],
    spam: Spam,
    /// Somebody has set TF_ONE_WAY in a reply.
    has_oneway_reply: bool,
}

/// Who is told of spam. C doesn't count the buffer that is being allocated, so that it tells later in the
/// same shortage of space, or not at all.
#[derive(Default)]
struct Spam {
    /// Our driver has told, and nothing has been freed since.
    is_told: bool,
    /// It may have done so without the other.
    is_ahead: bool,
    /// One of them tells in the present operation and the other doesn't, and that may be.
    is_known: bool,
}

impl Spam {
    fn follow(&mut self, our: &Step, their: &Step) {
        let told = [our, their].map(|step| has(&step.said, SPAM));
        self.is_known = match told {
            [true, false] => !self.is_told,
            [false, true] => self.is_ahead,
            _ => false,
        };
        match told {
            [_, true] => self.is_ahead = false,
            [true, false] => self.is_ahead = true,
            _ => {}
        }
        self.is_told |= told[0];
        match our.op.action {
            Action::Free(_) | Action::Die { .. } => self.is_told = false,
            // It had its buffer for a moment, and was told another thing.
            Action::Send { oneway: true, .. } if has(&our.said, FAILED) => {
                self.is_told = false;
                self.is_ahead = true;
            }
            _ => {}
        }
    }
}

/// How much of an area of so many bytes drivers use.
fn used(len: usize) -> usize {
    len.next_multiple_of(PAGE).min(4 * MIB)
}

impl<'a> Areas<'a> {
    /// Takes note of what an operation did.
    pub fn follow(&mut self, our: &'a Step, their: &'a Step) {
        let Step { op, said, .. } = our;
        self.spam.follow(our, their);
        let missing = &mut self.missing[op.by];
        match op.action {
            Action::Map { len, .. } if has(said, "mapped") => {
                missing.get_or_insert(false);
                self.len[op.by] = used(len);
            }
            Action::Map { .. } => {
                missing.get_or_insert(true);
            }
            Action::Die { len } => {
                *missing = Some(len == 0);
                self.len[op.by] = used(len);
            }
            Action::Unmap { .. } => *missing = Some(true),
            Action::Reply { oneway, .. } => {
                self.replies[op.by] = Some((our, their));
                self.has_oneway_reply |= oneway;
            }
            _ => {}
        }
    }

    fn is_missing(&self, party: usize) -> bool {
        self.missing[party] != Some(false)
    }

    /// Whether one has none of those that may be sent to, or this one, which may get a reply.
    fn one_is_missing(&self, op: &Op) -> bool {
        match op.action {
            Action::Send { handle: 0, .. } => self.is_missing(0) || self.is_missing(op.by),
            _ => (0..PARTIES).any(|party| self.is_missing(party)),
        }
    }

    /// What an error may be noted for that is told in this operation: what it sends, or another one's reply.
    fn noted_for<'b>(
        &'b self,
        steps: (&'b Step, &'b Step),
    ) -> impl Iterator<Item = (&'b Step, &'b Step)> {
        let by = steps.0.op.by;
        let replies = self.replies.iter().copied().flatten();
        iter::once(steps).chain(replies.filter(move |(our, _)| our.op.by != by))
    }

    /// Who may get what this operation sends.
    fn receivers(&self, op: &Op) -> Vec<usize> {
        match op.action {
            Action::Send { handle: 0, .. } => vec![0],
            _ => (0..PARTIES).collect(),
        }
    }

    /// Whether there is no space for something in the area of one who may get it with one driver, and there may
    /// be with the other, because what lies there lies elsewhere.
    fn place_matters(
        &self,
        op: &Op,
        payload: &Payload,
        full: &[Buffers],
        other: &[Buffers],
    ) -> bool {
        let Some(size) = payload.space() else {
            return false;
        };
        self.receivers(op).into_iter().any(|party| {
            let (full, other) = (&full[party], &other[party]);
            let mut there = sizes(full);
            let same = there == sizes(other);
            there.push(size);
            there.sort();
            widest_gap(full, self.len[party]) < size && (same || there == sizes(other))
        })
    }
}

fn sizes(buffers: &Buffers) -> Vec<usize> {
    let mut sizes: Vec<usize> = buffers.iter().map(|(_, size)| *size).collect();
    sizes.sort();
    sizes
}

/// The longest range without a buffer in an area of so many bytes.
fn widest_gap(buffers: &Buffers, len: usize) -> usize {
    let mut buffers = buffers.clone();
    buffers.sort();
    buffers.push((len, 0));
    let mut end = 0;
    let mut widest = 0;
    for (begin, size) in buffers {
        widest = widest.max(begin.saturating_sub(end));
        end = begin + size;
    }
    widest
}

/// Whether there is an object in a buffer that is at offset 0.
fn has_parent_at_0(payload: &Payload) -> bool {
    payload.objects.iter().any(|(_, object)| {
        let parent = match object {
            Object::Buffer { parent, .. } => parent.map(|(parent, _)| parent),
            Object::Files { parent, .. } => Some(*parent),
            _ => None,
        };
        parent.is_some_and(|parent| {
            matches!(
                payload.objects.get(parent as usize),
                Some((0, Object::Buffer { .. }))
            )
        })
    })
}

pub enum Verdict {
    Same,
    /// They differ for these reasons, and the drivers are in the same state.
    Known(Vec<&'static str>),
    /// They differ for this reason, and from now on also in what they have.
    Parted(&'static str),
    Unexpected,
}

const OURS: &str = "ours";
const C: &str = "C";
const RUST: &str = "Rust";

const FAILED: &str = "BR_FAILED_REPLY";
const SPAM: &str = "BR_ONEWAY_SPAM_SUSPECT";

/// What may be wrong with a transaction or a reply.
#[derive(PartialEq)]
enum Fault {
    /// There is a call under way that makes it impossible.
    Stack,
    /// Its sizes.
    Sizes,
    /// The receiver has no area, or is gone.
    Receiver,
    /// There is no space for it.
    Space,
    Object,
}

/// Whether an object isn't wholly in the data, or not behind the one before it. Offsets that nobody has given
/// are 0.
fn is_out_of_place(payload: &Payload) -> bool {
    let mut end = 0;
    let out_of_place = payload.objects.iter().any(|(at, object)| {
        let begin = *at as usize;
        let before = mem::replace(&mut end, begin + object.size());
        begin < before || end > payload.len
    });
    let given = 8 * payload.objects.len() as u64;
    out_of_place || payload.offsets_len.is_some_and(|len| len > given)
}

/// Whether there may be no space for a transaction or a reply after which these buffers are there. Of the oneway
/// space, all of them may be.
fn may_be_full(areas: &Areas, op: &Op, payload: &Payload, buffers: &[Buffers]) -> bool {
    let oneway = matches!(op.action, Action::Send { oneway: true, .. });
    payload.space().is_none_or(|size| {
        areas.receivers(op).into_iter().any(|party| {
            let (buffers, len) = (&buffers[party], areas.len[party]);
            let taken: usize = buffers.iter().map(|(_, size)| size).sum();
            widest_gap(buffers, len) < size || oneway && taken.saturating_add(size) > len / 2
        })
    })
}

/// What may be wrong if a driver notes this error for the transaction or reply of a step.
fn faults(driver: &str, areas: &Areas, step: &Step, error: &str) -> Vec<Fault> {
    let (Action::Send { payload, .. } | Action::Reply { payload, .. }) = &step.op.action else {
        return Vec::new();
    };
    let call = matches!(step.op.action, Action::Send { oneway: false, .. });
    let unaligned = [payload.offsets_len, payload.extra]
        .iter()
        .any(|len| len.is_some_and(|len| len % 8 != 0));
    let has_objects = !payload.objects.is_empty() || payload.offsets_len.is_some();
    let may_be = match (driver, error) {
        (OURS, "BR_FAILED_REPLY -22") => vec![
            (Fault::Stack, call),
            (Fault::Sizes, unaligned || payload.space().is_none()),
        ],
        (OURS, "BR_FAILED_REPLY -12") => vec![(Fault::Sizes, payload.space().is_none())],
        (C, "BR_FAILED_REPLY -22") => vec![(Fault::Object, has_objects)],
        (C, "BR_FAILED_REPLY -71") => vec![(Fault::Stack, call)],
        (C, "BR_DEAD_REPLY -3" | "BR_DEAD_REPLY -22") => vec![(Fault::Receiver, true)],
        (_, "BR_FAILED_REPLY -28") => vec![(
            Fault::Space,
            may_be_full(areas, &step.op, payload, &step.buffers),
        )],
        _ => Vec::new(),
    };
    may_be
        .into_iter()
        .filter_map(|(fault, may_be)| may_be.then_some(fault))
        .collect()
}

/// Why two errors differ that are noted for one transaction or reply, if there is a reason.
fn explain_errors(
    areas: &Areas,
    (our, their): (&Step, &Step),
    errors: (&str, &str),
) -> Option<&'static str> {
    let (Action::Send { payload, .. } | Action::Reply { payload, .. }) = &our.op.action else {
        return None;
    };
    match errors {
        ("BR_FAILED_REPLY -12", "BR_FAILED_REPLY -22") if payload.space().is_none() => {
            Some("sum of sizes")
        }
        ("BR_FAILED_REPLY -22", "BR_FAILED_REPLY -14")
        | ("BR_FAILED_REPLY -14", "BR_FAILED_REPLY -22")
            if is_out_of_place(payload) =>
        {
            Some("object out of place")
        }
        _ => {
            let theirs = faults(C, areas, their, errors.1);
            faults(OURS, areas, our, errors.0)
                .iter()
                .any(|our| theirs.iter().any(|their| our != their))
                .then_some("two errors at once")
        }
    }
}

/// Why one line differs, if there is a reason. `dead` is whether the other driver noted an errno for
/// a receiver that is gone, and ours one for a failure.
fn explain_line(
    peer: &str,
    areas: &Areas,
    steps: (&Step, &Step),
    dead: bool,
    (ours, theirs): (&str, &str),
) -> Option<&'static str> {
    let op = &steps.0.op;
    let (our_error, their_error) = (
        ours.strip_prefix("extended error: "),
        theirs.strip_prefix("extended error: "),
    );
    match (our_error, their_error) {
        (Some("none" | "BR_DEAD_REPLY 0"), Some("BR_DEAD_REPLY -3" | "BR_DEAD_REPLY -22"))
            if peer == C =>
        {
            Some("errno of BR_DEAD_REPLY")
        }
        (Some("BR_FAILED_REPLY -22"), Some("BR_FAILED_REPLY -71")) if peer == C => Some("EPROTO"),
        (Some("BR_FAILED_REPLY -2"), Some("BR_FAILED_REPLY -22")) if peer == C => Some("ENOENT"),
        (Some(our), Some(their)) if peer == C => areas
            .noted_for(steps)
            .find_map(|steps| explain_errors(areas, steps, (our, their))),
        (None, None) => match (ours, theirs) {
            (SPAM, "BR_TRANSACTION_COMPLETE") | ("BR_TRANSACTION_COMPLETE", SPAM)
                if peer == C && areas.spam.is_known =>
            {
                Some("spam counted before")
            }
            ("BR_TRANSACTION_COMPLETE", SPAM) if peer == RUST => Some("spam told once"),
            ("BR_FAILED_REPLY", "BR_DEAD_REPLY") if peer == C && dead => Some("two errors at once"),
            ("BR_FAILED_REPLY", "BR_DEAD_REPLY") if peer == C && areas.one_is_missing(op) => {
                Some("area missing")
            }
            _ if peer == C
                && matches!(&op.action, Action::Write(bytes) if bytes.len() < 4)
                && ours.starts_with("took 0 of")
                && theirs.starts_with("write: errno ") =>
            {
                Some("less than a command")
            }
            _ => None,
        },
        _ => None,
    }
}

fn has(said: &[String], words: &str) -> bool {
    said.iter().any(|line| line == words)
}

/// Says why two answers differ.
pub fn explain(peer: &str, areas: &Areas, our: &Step, their: &Step) -> Verdict {
    let (steps, op, theirs) = ((our, their), &our.op, &their.said);
    if our.said == *theirs {
        return Verdict::Same;
    }
    let mut reasons = Vec::new();
    let mut ours = our.said.clone();
    if peer == C && has(&ours, "no offsets") {
        ours.retain(|line| line != "no offsets");
        reasons.push("address of no offsets");
    }
    if ours.len() == theirs.len() {
        let lines = ours.iter().zip(theirs).filter(|(our, their)| our != their);
        let noted = |said: &[String], error| said.iter().any(|line| line.starts_with(error));
        let dead = noted(&ours, "extended error: BR_FAILED_REPLY")
            && noted(theirs, "extended error: BR_DEAD_REPLY");
        let explained: Option<Vec<_>> = lines
            .map(|(our, their)| explain_line(peer, areas, steps, dead, (our, their)))
            .collect();
        if let Some(explained) = explained {
            reasons.extend(explained);
            return Verdict::Known(reasons);
        }
    }
    let sorted = |said: &[String]| {
        let mut said = said.to_vec();
        said.sort();
        said
    };
    if peer == C && sorted(&ours) == sorted(theirs) {
        reasons.push("order of codes");
        return Verdict::Known(reasons);
    }
    let is_full = |said: &[String]| has(said, "extended error: BR_FAILED_REPLY -28");
    match &op.action {
        Action::Free(Which::Freed(_)) if has(&ours, "held again") != has(theirs, "held again") => {
            Verdict::Known(vec!["place of buffers"])
        }
        Action::Send { payload, .. } | Action::Reply { payload, .. }
            if match (is_full(&ours), is_full(theirs)) {
                (true, false) => areas.place_matters(op, payload, &our.buffers, &their.buffers),
                (false, true) => areas.place_matters(op, payload, &their.buffers, &our.buffers),
                _ => false,
            } =>
        {
            Verdict::Parted("place of buffers")
        }
        Action::Send { payload, .. } | Action::Reply { payload, .. }
            if peer == C
                && has_parent_at_0(payload)
                && has(theirs, "extended error: BR_FAILED_REPLY -22") =>
        {
            Verdict::Parted("parent at offset 0")
        }
        _ if peer == RUST
            && areas.one_is_missing(op)
            && (ours.iter().any(|line| line.contains("BR_DEAD_REPLY"))
                || theirs.iter().any(|line| line.starts_with("BR_REPLY"))) =>
        {
            Verdict::Parted("area missing")
        }
        _ if peer == RUST
            && areas.has_oneway_reply
            && theirs.iter().any(|line| line.contains(FAILED)) =>
        {
            Verdict::Parted("reply isn't oneway")
        }
        Action::Send { oneway: false, .. }
            if peer == C && has(theirs, "extended error: BR_FAILED_REPLY -71") =>
        {
            Verdict::Parted("call before the reply is read")
        }
        _ => Verdict::Unexpected,
    }
}

/// A line of our driver's files that no other driver has. It comes after all those that the C driver has.
pub struct Own {
    pub file: &'static str,
    pub begin: &'static str,
    pub name: &'static str,
}

pub const ONLY_OURS: &[Own] = &[Own {
    file: "stats",
    begin: "  outstanding transactions: ",
    name: "outstanding transactions",
}];

/// What a program has done that may show in what the drivers say in their files.
#[derive(Default)]
pub struct Done {
    /// Whether buffers of each did not lie where the other driver has put them.
    moved: [bool; PARTIES],
    /// Whether pages were reclaimed.
    scanned: bool,
    /// How often more our driver has given each a code than the other has: the process that is there now, and all.
    codes: [BTreeMap<String, i64>; PARTIES],
    all_codes: BTreeMap<String, i64>,
}

impl Done {
    /// Takes note of what an operation did.
    pub fn follow(&mut self, our: &Step, their: &Step) {
        let by = our.op.by;
        match our.op.action {
            Action::Scan { .. } => self.scanned = true,
            Action::Die { .. } => {
                self.moved[by] = false;
                self.codes[by].clear();
            }
            _ => {}
        }
        for (party, (ours, theirs)) in iter::zip(&our.buffers, &their.buffers).enumerate() {
            self.note_places(party, ours == theirs);
        }
        for (step, more) in [(our, 1), (their, -1)] {
            let codes = step.said.iter().filter(|line| line.starts_with("BR_"));
            for code in codes.filter_map(|line| line.split(' ').next()) {
                for codes in [&mut self.codes[by], &mut self.all_codes] {
                    *codes.entry(code.into()).or_default() += more;
                }
            }
        }
    }

    pub fn note_places(&mut self, party: usize, same: bool) {
        self.moved[party] |= !same;
    }

    /// How often more our driver has given a code to a process, or to all.
    fn more(&self, party: Option<usize>, code: &str) -> i64 {
        let codes = party.map_or(&self.all_codes, |party| &self.codes[party]);
        codes.get(code).copied().unwrap_or(0)
    }
}

/// Why processes come in another order, if all are there.
pub fn explain_order(ours: &[&str], theirs: &[&str]) -> Option<&'static str> {
    let sorted = |names: &[&str]| {
        let mut names: Vec<_> = names.iter().map(|name| name.to_string()).collect();
        names.sort();
        names
    };
    (sorted(ours) == sorted(theirs)).then_some("order of processes")
}

/// The numbers of pages in use, idle and absent, if a line has them.
fn pages(line: &str) -> Option<[usize; 3]> {
    let numbers = line.strip_prefix("  pages: ")?.split(':');
    let numbers: Option<Vec<_>> = numbers.map(|number| number.parse().ok()).collect();
    numbers?.try_into().ok()
}

/// A line "NAME: NUMBER".
fn counter(line: &str) -> Option<(&str, i64)> {
    let (name, number) = line.trim_start().split_once(": ")?;
    Some((name, number.parse().ok()?))
}

/// Whether a line says how many objects of a kind there are and were.
fn counts_objects(line: &str) -> bool {
    let words: Vec<_> = line.split_whitespace().collect();
    let numbers = [2, 4].map(|at| words.get(at).and_then(|word| word.parse::<i64>().ok()));
    words.len() == 5
        && words[0].ends_with(':')
        && (words[1], words[3]) == ("active", "total")
        && numbers.iter().all(Option::is_some)
}

/// Whether a line is about a node, and names the same processes that have references in any order.
fn differ_in_order(ours: &str, theirs: &str) -> bool {
    let parts = |line: &str| {
        let (node, processes) = line.split_once(" proc ")?;
        let mut processes: Vec<_> = processes.split(' ').map(String::from).collect();
        processes.sort();
        Some((node.to_string(), processes))
    };
    ours.starts_with("  node ") && parts(ours).is_some() && parts(ours) == parts(theirs)
}

/// Whether a line is about an error that a thread is still to be told.
fn is_error(line: &str) -> bool {
    let code = line.trim_start().strip_prefix("transaction error: ");
    code.is_some_and(|code| code.parse::<u32>().is_ok())
}

/// What of the C driver's lines this one hasn't, or has in another way.
fn known_of_c(
    file: &str,
    party: Option<usize>,
    ours: Option<&str>,
    theirs: &str,
) -> Option<&'static str> {
    let Some(ours) = ours else {
        let is_dead_node =
            party.is_none() && (theirs == "dead nodes:" || theirs.starts_with("  node "));
        return match file {
            "state" if is_dead_node => Some("dead nodes"),
            "stats" if theirs.trim_start().starts_with("BC_ATTEMPT_ACQUIRE: ") => {
                Some("refused command")
            }
            _ => None,
        };
    };
    // How many references of what kind there are comes behind the name of the node and what it has been told, and
    // before the processes that have them.
    let node = |line: &str| {
        let (head, rest) = line.strip_prefix("  node ")?.split_once(" ls ")?;
        let (_, rest) = rest.split_once(" tr ")?;
        let processes = rest.split_once(' ').map_or("", |(_, processes)| processes);
        Some([head.to_owned(), processes.to_owned()])
    };
    if let (Some(our), Some(their)) = (node(ours), node(theirs)) {
        return (our == their).then_some("counts of references");
    }
    if theirs == "  pages: 0:0:0" && pages(ours).is_some() {
        return Some("pages after munmap");
    }
    // What a reply is for, which the C driver knows before it is read.
    let parts = |line: &str| {
        let (head, rest) = line.split_once(" to ")?;
        let (to, tail) = rest.split_once(" code ")?;
        let process = to.split_once(':')?.0;
        tail.contains(" r1 ")
            .then(|| [head, process, tail].map(str::to_owned))
    };
    (parts(ours).is_some() && parts(ours) == parts(theirs)).then_some("thread of a reply")
}

/// Why a line of a file differs, if there is a reason. `place` is the file, and the process that the line is about.
pub fn explain_text(
    peer: &str,
    done: &Done,
    place: (&str, Option<usize>),
    ours: Option<&str>,
    theirs: Option<&str>,
) -> Option<&'static str> {
    let (file, party) = place;
    if file == "stats" {
        // Only the codes that the process has been seen to get may be counted another time.
        let counters = [ours, theirs].map(|line| line.and_then(counter));
        let name = counters.iter().flatten().map(|(name, _)| *name).next();
        if let Some(code) = name.filter(|name| name.starts_with("BR_")) {
            let [our, their] = counters.map(|counter| counter.map_or(0, |(_, number)| number));
            let more = done.more(party, code);
            return (more != 0 && our - their == more).then_some("counts of other answers");
        }
    }
    match (ours, theirs) {
        (None, Some(their)) if peer == C && file == "stats" && counts_objects(their) => {
            Some("counts of objects")
        }
        (Some(our), Some(their)) if differ_in_order(our, their) => Some("order of references"),
        (Some(our), Some(their)) if is_error(our) && is_error(their) => Some("error not read yet"),
        (ours, Some(their)) if peer == C && known_of_c(file, party, ours, their).is_some() => {
            known_of_c(file, party, ours, their)
        }
        (Some(our), Some(their)) => {
            let moved = party.is_some_and(|party| done.moved[party]);
            if let (Some(our), Some(their)) = (pages(our), pages(their)) {
                let sum = |pages: [usize; 3]| pages.iter().sum::<usize>();
                return match sum(our) == sum(their) {
                    true if moved => Some("place of buffers"),
                    true if done.scanned && our[0] == their[0] => Some("what a scan reclaims"),
                    _ => None,
                };
            }
            let watermark = |line: &str| line.starts_with("  pages high watermark: ");
            let is_place = moved && watermark(our) && watermark(their);
            match is_place {
                true => Some("place of buffers"),
                false if peer == RUST => other_words(our, their),
                false => None,
            }
        }
        _ if peer == RUST => Some("words of the files"),
        _ => None,
    }
}

/// Upstream's Rust driver has other words for most, but a number that has a name in both has to be the same.
fn other_words(ours: &str, theirs: &str) -> Option<&'static str> {
    match (counter(ours), counter(theirs)) {
        (Some((our, _)), Some((their, _))) if our == their => None,
        _ => Some("words of the files"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_c_that_are_known() {
        let known = known_of_c;
        let node = "  node n0: u0 c0 hs 1 hw 1 ls 1 lw 0 is 0 iw 0 tr 0";
        let other = "  node n0: u0 c0 hs 1 hw 1 ls 1 lw 1 is 0 iw 0 tr 1";
        assert_eq!(
            known("state", Some(0), Some(node), other),
            Some("counts of references")
        );
        let other = "  node n0: u0 c0 hs 0 hw 1 ls 1 lw 1 is 0 iw 0 tr 1";
        assert_eq!(known("state", Some(0), Some(node), other), None);
        assert_eq!(
            known("state", None, None, "dead nodes:"),
            Some("dead nodes")
        );
        assert_eq!(known("state", Some(0), None, other), None);
        let pages = "  pages: 1:0:7";
        assert_eq!(
            known("stats", Some(0), Some(pages), "  pages: 0:0:0"),
            Some("pages after munmap")
        );
        assert_eq!(known("stats", Some(0), Some(pages), "  pages: 2:0:6"), None);
        let reply = |to: &str, reply: u32| {
            format!("    pending transaction t1: address from P0:P0 to {to} code 5 flags 10 pri 0 a0 r{reply} size 8:0")
        };
        let reason = |one: String, other: String| known("state", Some(0), Some(&one), &other);
        assert_eq!(
            reason(reply("P1:0", 1), reply("P1:P1", 1)),
            Some("thread of a reply")
        );
        assert_eq!(reason(reply("P1:0", 0), reply("P1:P1", 0)), None);
        assert_eq!(reason(reply("P2:0", 1), reply("P1:P1", 1)), None);
    }

    fn send(handle: u32) -> Op {
        Op {
            by: 1,
            action: Action::Send {
                handle,
                oneway: true,
                clear: false,
                payload: Payload {
                    len: 8000,
                    ..Payload::default()
                },
            },
        }
    }

    fn step(op: &Op, said: &[&str], buffers: Buffers) -> Step {
        Step {
            op: op.clone(),
            said: said.iter().map(|line| line.to_string()).collect(),
            buffers: vec![buffers, Buffers::new(), Buffers::new()],
            look: None,
        }
    }

    fn verdict(peer: &str, areas: &Areas, op: &Op, ours: &[&str], theirs: &[&str]) -> Verdict {
        let step = |said| step(op, said, Buffers::new());
        explain(peer, areas, &step(ours), &step(theirs))
    }

    /// All of them have an area, or the first one has not.
    fn areas<'a>(first: bool) -> Areas<'a> {
        Areas {
            missing: [Some(!first), Some(false), Some(false)],
            len: [4 * PAGE; PARTIES],
            ..Areas::default()
        }
    }

    const COMPLETE: &[&str] = &["BR_TRANSACTION_COMPLETE"];
    const FULL: &[&str] = &[FAILED, "extended error: BR_FAILED_REPLY -28"];

    #[test]
    fn what_no_rule_explains_is_unexpected() {
        let failed = &[FAILED, "extended error: BR_FAILED_REPLY -14"];
        for peer in [C, RUST] {
            for (ours, theirs) in [(COMPLETE, failed as _), (failed as _, COMPLETE)] {
                assert!(matches!(
                    verdict(peer, &areas(true), &send(0), ours, theirs),
                    Verdict::Unexpected
                ));
            }
        }
    }

    /// What is said of an operation after others.
    fn after<'a>(
        peer: &str,
        before: &'a [(Step, Step)],
        our: &'a Step,
        their: &'a Step,
    ) -> Verdict {
        let mut areas = areas(true);
        for (our, their) in before {
            areas.follow(our, their);
        }
        areas.follow(our, their);
        explain(peer, &areas, our, their)
    }

    #[test]
    fn spam_is_told_once_in_a_shortage() {
        let op = send(0);
        let said = |line: &[&str]| step(&op, line, Buffers::new());
        let (told, not) = (|| said(&[SPAM]), || said(COMPLETE));
        let free = Op {
            by: 0,
            action: Action::Free(Which::Held(0)),
        };
        let free = || step(&free, &[], Buffers::new());
        let is_known = |before: &[(Step, Step)], our: &Step, their: &Step| {
            matches!(
                after(C, before, our, their),
                Verdict::Known(reasons) if reasons == ["spam counted before"]
            )
        };
        assert!(is_known(&[], &told(), &not()));
        assert!(!is_known(&[], &not(), &told()));
        // C follows, once.
        let first = (told(), not());
        assert!(is_known(&[first], &not(), &told()));
        let both = [(told(), not()), (not(), told())];
        assert!(!is_known(&both, &not(), &told()));
        // Ours isn't told again without a free.
        for before in [vec![(told(), not())], vec![(told(), told())]] {
            assert!(!is_known(&before, &told(), &not()));
            let mut before = before;
            before.push((free(), free()));
            assert!(is_known(&before, &told(), &not()));
        }
        // Upstream tells each time, and ours never where it doesn't.
        assert!(matches!(
            after(RUST, &[], &not(), &told()),
            Verdict::Known(_)
        ));
        assert!(matches!(
            after(RUST, &[], &told(), &not()),
            Verdict::Unexpected
        ));
    }

    #[test]
    fn a_reply_fails_upstream_for_its_flag_only() {
        let reply = |oneway| Op {
            by: 0,
            action: Action::Reply {
                clear: false,
                oneway,
                payload: Payload::default(),
            },
        };
        let receive = Op {
            by: 1,
            action: Action::Receive,
        };
        let our = step(&receive, &["BR_REPLY"], Buffers::new());
        let their = step(&receive, &[FAILED], Buffers::new());
        let verdict = |peer, oneway| {
            let replied = || step(&reply(oneway), COMPLETE, Buffers::new());
            after(peer, &[(replied(), replied())], &our, &their)
        };
        assert!(matches!(
            verdict(RUST, true),
            Verdict::Parted("reply isn't oneway")
        ));
        assert!(matches!(verdict(RUST, false), Verdict::Unexpected));
        assert!(matches!(verdict(C, true), Verdict::Unexpected));
    }

    #[test]
    fn a_rule_holds_for_its_driver_only() {
        let verdict = |peer| {
            verdict(
                peer,
                &areas(true),
                &send(3),
                &[FAILED, "extended error: BR_FAILED_REPLY -2"],
                &[FAILED, "extended error: BR_FAILED_REPLY -22"],
            )
        };
        assert!(matches!(verdict(C), Verdict::Known(reasons) if reasons == ["ENOENT"]));
        assert!(matches!(verdict(RUST), Verdict::Unexpected));
    }

    #[test]
    fn death_is_known_without_an_area_only() {
        let ours = &["BR_DEAD_REPLY", "extended error: none"];
        let verdict = |first| verdict(RUST, &areas(first), &send(0), ours, COMPLETE);
        assert!(matches!(verdict(false), Verdict::Parted("area missing")));
        assert!(matches!(verdict(true), Verdict::Unexpected));
    }

    #[test]
    fn place_matters_only_where_there_is_none() {
        let op = send(0);
        let verdict = |full: &Buffers, other: &Buffers| {
            let full = step(&op, FULL, full.clone());
            let other = step(&op, COMPLETE, other.clone());
            let both = [
                explain(RUST, &areas(true), &full, &other),
                explain(RUST, &areas(true), &other, &full),
            ];
            match both {
                [Verdict::Parted("place of buffers"), Verdict::Parted("place of buffers")] => true,
                [Verdict::Unexpected, Verdict::Unexpected] => false,
                _ => panic!("it matters whose they are"),
            }
        };
        // In the middle, both gaps are too short.
        assert!(verdict(&vec![(6000, 4000)], &vec![(0, 4000), (4000, 8000)]));
        // Here is a gap.
        assert!(!verdict(&vec![(0, 4000)], &vec![(0, 4000), (4000, 8000)]));
        // And here, more is in use with one driver than with the other.
        assert!(!verdict(&vec![(6000, 4000)], &vec![(4000, 8000)]));
    }

    #[test]
    fn no_byte_of_the_data_may_differ() {
        let ours = &["BR_TRANSACTION", "no offsets", "8 bytes, sum 1"];
        let verdict = |theirs: &[&str]| verdict(C, &areas(false), &send(0), ours, theirs);
        assert!(matches!(
            verdict(&["BR_TRANSACTION", "8 bytes, sum 1"]),
            Verdict::Known(_)
        ));
        assert!(matches!(
            verdict(&["BR_TRANSACTION", "8 bytes, sum 2"]),
            Verdict::Unexpected
        ));
    }

    #[test]
    fn a_parent_counts_only_where_there_is_one() {
        let child = Object::Buffer {
            len: 8,
            parent: Some((0, 8)),
        };
        let parent = Object::Buffer {
            len: 100,
            parent: None,
        };
        for (objects, expected) in [
            (vec![(0, parent), (40, child)], true),
            (vec![(8, parent), (48, child)], false),
            (vec![(0, parent), (40, parent)], false),
            (vec![(0, Object::Nonsense), (24, child)], false),
        ] {
            let payload = Payload {
                objects,
                ..Payload::default()
            };
            assert_eq!(has_parent_at_0(&payload), expected);
        }
    }

    /// Whether two errors are explained by two things that are wrong with a transaction, or with a reply to whom
    /// it is that gets the errors.
    fn are_two(payload: &Payload, errors: (&str, &str)) -> Option<&'static str> {
        let mut sent = send(0);
        let Action::Send {
            payload: of_sent, ..
        } = &mut sent.action
        else {
            unreachable!();
        };
        *of_sent = payload.clone();
        let reply = Op {
            by: 0,
            action: Action::Reply {
                clear: false,
                oneway: false,
                payload: payload.clone(),
            },
        };
        let receive = Op {
            by: 1,
            action: Action::Receive,
        };
        let [ours, theirs] = [errors.0, errors.1].map(|error| format!("extended error: {error}"));
        let failed = |op: &Op, error: &String| step(op, &[FAILED, error], Buffers::new());
        let replied = step(&reply, COMPLETE, Buffers::new());
        let mut after_reply = areas(true);
        after_reply.follow(&replied, &replied);
        let both =
            [(&sent, areas(true)), (&receive, after_reply)].map(|(op, areas)| {
                match explain(C, &areas, &failed(op, &ours), &failed(op, &theirs)) {
                    Verdict::Known(reasons) => Some(reasons[0]),
                    _ => None,
                }
            });
        assert_eq!(both[0], both[1]);
        both[0]
    }

    #[test]
    fn two_errors_need_two_faults() {
        let good = Payload {
            len: 100,
            ..Payload::default()
        };
        let too_large = Payload {
            len: 5 * PAGE,
            ..Payload::default()
        };
        let unaligned = Payload {
            extra: Some(9),
            ..too_large.clone()
        };
        let wrong = Payload {
            objects: vec![(0, Object::Nonsense)],
            ..too_large.clone()
        };
        const INVALID: &str = "BR_FAILED_REPLY -22";
        const FULL: &str = "BR_FAILED_REPLY -28";
        for (payload, errors, expected) in [
            (&good, (INVALID, FULL), false),
            (&good, (FULL, INVALID), false),
            (&too_large, (INVALID, FULL), false),
            (&too_large, (FULL, INVALID), false),
            (&unaligned, (INVALID, FULL), true),
            (&unaligned, (FULL, INVALID), false),
            (&wrong, (INVALID, FULL), false),
            (&wrong, (FULL, INVALID), true),
            (&good, (INVALID, "BR_FAILED_REPLY -14"), false),
            (&unaligned, ("BR_FAILED_REPLY -14", INVALID), false),
        ] {
            let expected = expected.then_some("two errors at once");
            assert_eq!(
                are_two(payload, errors),
                expected,
                "{payload:?}: {errors:?}"
            );
        }
    }

    #[test]
    fn one_error_of_two_numbers_needs_its_fault() {
        const INVALID: &str = "BR_FAILED_REPLY -22";
        const NO_MEMORY: &str = "BR_FAILED_REPLY -12";
        const FAULT: &str = "BR_FAILED_REPLY -14";
        let payload = |len, objects: &[(u64, Object)]| Payload {
            len,
            objects: objects.to_vec(),
            ..Payload::default()
        };
        let node = Object::Node {
            weak: false,
            number: 8,
        };
        let file = Object::File { valid: true };
        for (payload, place, sum) in [
            (payload(48, &[]), false, false),
            (payload(48, &[(0, node), (24, file)]), false, false),
            (payload(47, &[(0, node), (24, file)]), true, false),
            (payload(48, &[(24, node), (0, file)]), true, false),
            (payload(48, &[(0, node), (20, file)]), true, false),
            (payload(usize::MAX - 7, &[(0, node)]), false, true),
        ] {
            let place = place.then_some("object out of place");
            assert_eq!(are_two(&payload, (INVALID, FAULT)), place, "{payload:?}");
            assert_eq!(are_two(&payload, (FAULT, INVALID)), place, "{payload:?}");
            let sum = sum.then_some("sum of sizes");
            assert_eq!(are_two(&payload, (NO_MEMORY, INVALID)), sum, "{payload:?}");
        }
    }
}
