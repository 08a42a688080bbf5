// SPDX-License-Identifier: GPL-2.0

//! The differences between our driver and the others that are known, and where each may be. They are
//! explained in Documentation/driver-api/binder/differences.rst, by the same names.

use crate::program::{Action, Op, Which, PARTIES};

/// Who has no area, or has unmapped a part of it, or was without one for a time: what failed then may
/// be told later.
#[derive(Default)]
pub struct Areas {
    missing: [Option<bool>; PARTIES],
}

impl Areas {
    /// Takes note of what an operation did.
    pub fn follow(&mut self, op: &Op, said: &[String]) {
        let missing = &mut self.missing[op.by];
        match op.action {
            Action::Map { .. } if missing.is_none() => {
                *missing = Some(!said.iter().any(|line| line == "mapped"));
            }
            Action::Die { len } => *missing = Some(len == 0),
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
pub fn explain(peer: &str, areas: &Areas, op: &Op, ours: &[String], theirs: &[String]) -> Verdict {
    if ours == theirs {
        return Verdict::Same;
    }
    let mut reasons = Vec::new();
    let mut ours = ours.to_vec();
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
    let full = "extended error: BR_FAILED_REPLY -28".to_string();
    match op.action {
        Action::Free(Which::Freed(_)) if has(&ours, "held again") != has(theirs, "held again") => {
            Verdict::Known(vec!["place of buffers"])
        }
        Action::Send { .. } | Action::Reply { .. }
            if ours.contains(&full) != theirs.contains(&full) =>
        {
            Verdict::Parted("place of buffers")
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
                payload: Default::default(),
            },
        }
    }

    fn lines(said: &[&str]) -> Vec<String> {
        said.iter().map(|line| line.to_string()).collect()
    }

    /// All of them have an area, or the first one has not.
    fn areas(first: bool) -> Areas {
        Areas {
            missing: [Some(!first), Some(false), Some(false)],
        }
    }

    #[test]
    fn what_no_rule_explains_is_unexpected() {
        let complete = lines(&["BR_TRANSACTION_COMPLETE"]);
        let failed = lines(&[FAILED, "extended error: BR_FAILED_REPLY -14"]);
        for peer in [C, RUST] {
            for (ours, theirs) in [(&complete, &failed), (&failed, &complete)] {
                assert!(matches!(
                    explain(peer, &areas(true), &send(0), ours, theirs),
                    Verdict::Unexpected
                ));
            }
        }
    }

    #[test]
    fn a_rule_holds_for_its_driver_only() {
        let ours = lines(&[FAILED, "extended error: BR_FAILED_REPLY -2"]);
        let theirs = lines(&[FAILED, "extended error: BR_FAILED_REPLY -22"]);
        let verdict = |peer| explain(peer, &areas(true), &send(3), &ours, &theirs);
        assert!(matches!(verdict(C), Verdict::Known(reasons) if reasons == ["ENOENT"]));
        assert!(matches!(verdict(RUST), Verdict::Unexpected));
    }

    #[test]
    fn death_is_known_without_an_area_only() {
        let ours = lines(&["BR_DEAD_REPLY", "extended error: none"]);
        let theirs = lines(&["BR_TRANSACTION_COMPLETE"]);
        let verdict = |first| explain(RUST, &areas(first), &send(0), &ours, &theirs);
        assert!(matches!(verdict(false), Verdict::Parted("area missing")));
        assert!(matches!(verdict(true), Verdict::Unexpected));
    }

    #[test]
    fn no_byte_of_the_data_may_differ() {
        let ours = lines(&["BR_TRANSACTION", "no offsets", "8 bytes, sum 1"]);
        let verdict = |theirs: &[&str]| explain(C, &areas(false), &send(0), &ours, &lines(theirs));
        assert!(matches!(
            verdict(&["BR_TRANSACTION", "8 bytes, sum 1"]),
            Verdict::Known(_)
        ));
        assert!(matches!(
            verdict(&["BR_TRANSACTION", "8 bytes, sum 2"]),
            Verdict::Unexpected
        ));
    }
}
