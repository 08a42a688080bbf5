// SPDX-License-Identifier: GPL-2.0

//! The differences between our driver and the others that are known, and where each may be. They are
//! explained in Documentation/driver-api/binder/differences.rst, by the same names.

use crate::{
    program::{Action, Object, Op, Payload, Which, PARTIES},
    run::{Buffers, Step},
};
use binder_raw::binder::{MIB, PAGE};

/// Who has no area, or has unmapped a part of it, or was without one for a time: what failed then may
/// be told later. And how much of each is used for buffers.
#[derive(Default)]
pub struct Areas {
    missing: [Option<bool>; PARTIES],
    len: [usize; PARTIES],
}

/// How much of an area of so many bytes drivers use.
fn used(len: usize) -> usize {
    len.next_multiple_of(PAGE).min(4 * MIB)
}

impl Areas {
    /// Takes note of what an operation did.
    pub fn follow(&mut self, op: &Op, said: &[String]) {
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

const C: &str = "C";
const RUST: &str = "Rust";

/// Errors of one operation, ours and C's, for which several things are wrong.
const EITHER: [(&str, &str); 9] = [
    ("BR_FAILED_REPLY -22", "BR_FAILED_REPLY -14"),
    ("BR_FAILED_REPLY -14", "BR_FAILED_REPLY -22"),
    ("BR_FAILED_REPLY -12", "BR_FAILED_REPLY -22"),
    ("BR_FAILED_REPLY -22", "BR_FAILED_REPLY -28"),
    ("BR_FAILED_REPLY -28", "BR_FAILED_REPLY -22"),
    ("BR_FAILED_REPLY -28", "BR_FAILED_REPLY -71"),
    ("BR_FAILED_REPLY -22", "BR_DEAD_REPLY -3"),
    ("BR_FAILED_REPLY -12", "BR_DEAD_REPLY -3"),
    ("BR_FAILED_REPLY -22", "BR_DEAD_REPLY -22"),
];

/// Why one line differs, if there is a reason. `dead` is whether the other driver noted an errno for
/// a receiver that is gone.
fn explain_line(
    peer: &str,
    areas: &Areas,
    op: &Op,
    dead: bool,
    (ours, theirs): (&str, &str),
) -> Option<&'static str> {
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
        (Some(our), Some(their)) if peer == C && EITHER.contains(&(our, their)) => {
            Some("two errors at once")
        }
        (None, None) => match (ours, theirs) {
            ("BR_ONEWAY_SPAM_SUSPECT", "BR_TRANSACTION_COMPLETE") if peer == C => {
                Some("spam told once")
            }
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
    let (op, theirs) = (&our.op, &their.said);
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
        let dead = theirs
            .iter()
            .any(|line| line.starts_with("extended error: BR_DEAD_REPLY"));
        let explained: Option<Vec<_>> = lines
            .map(|(our, their)| explain_line(peer, areas, op, dead, (our, their)))
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
        Action::Send { oneway: false, .. }
            if peer == C && has(theirs, "extended error: BR_FAILED_REPLY -71") =>
        {
            Verdict::Parted("call before the reply is read")
        }
        _ => Verdict::Unexpected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAILED: &str = "BR_FAILED_REPLY";

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
        }
    }

    fn verdict(peer: &str, areas: &Areas, op: &Op, ours: &[&str], theirs: &[&str]) -> Verdict {
        let step = |said| step(op, said, Buffers::new());
        explain(peer, areas, &step(ours), &step(theirs))
    }

    /// All of them have an area, or the first one has not.
    fn areas(first: bool) -> Areas {
        Areas {
            missing: [Some(!first), Some(false), Some(false)],
            len: [4 * PAGE; PARTIES],
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
}
