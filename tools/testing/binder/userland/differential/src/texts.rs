// SPDX-License-Identifier: GPL-2.0

//! Compares what drivers say in their files.

use crate::{
    differences::{explain_order, explain_text, Done, ONLY_OURS},
    lines::{about, differing, Pair},
    logs::{Look, Section},
};

/// A difference between two files of the same name.
#[derive(Debug, PartialEq)]
pub struct Difference {
    pub file: String,
    /// The process that it is about.
    pub section: String,
    pub ours: Option<String>,
    pub theirs: Option<String>,
    /// Why it is there, if there is a reason.
    pub reason: Option<&'static str>,
}

impl Difference {
    /// What it has in common with others.
    pub fn sort(&self) -> (String, String) {
        let about = |line: &Option<String>| {
            let about = line.as_deref().map(about);
            about.map_or("nothing".into(), String::from)
        };
        // All others have the same lines on a process.
        let file = match &*self.file {
            "stats" => "stats",
            _ => "state",
        };
        (
            file.into(),
            format!("{} / {}", about(&self.ours), about(&self.theirs)),
        )
    }
}

/// Takes away the lines at the end that no other driver has. Tells their names.
fn take_own<'a>(file: &str, lines: &'a [String]) -> (&'a [String], Vec<&'static str>) {
    let mut left = lines;
    let mut names = Vec::new();
    while let Some((last, rest)) = left.split_last() {
        let own = ONLY_OURS
            .iter()
            .find(|own| own.file == file && last.starts_with(own.begin));
        match own {
            Some(own) => names.push(own.name),
            None => break,
        }
        left = rest;
    }
    (left, names)
}

/// Compares what our driver's files and the same ones of another say, each with what `stats` said at the program's
/// begin. Takes note of buffers that don't lie where the other's do.
pub fn compare(
    peer: &str,
    done: &mut Done,
    (our, our_start): (&Look, &str),
    (their, their_start): (&Look, &str),
) -> Vec<Difference> {
    let mut differences = Vec::new();
    let ours = our.texts(our_start);
    let theirs = their.texts(their_start);
    // All places first: what they explain may stand before them.
    for (file, ours) in &ours {
        for our in ours {
            let their = theirs[file].iter().filter(|their| their.of == our.of);
            if let Some(party) = our.party() {
                their.for_each(|their| done.note_places(party, our.places == their.places));
            }
        }
    }
    for (file, ours) in &ours {
        let difference =
            |section: &str, ours: Option<&str>, theirs: Option<&str>, reason| Difference {
                file: file.to_string(),
                section: section.into(),
                ours: ours.map(String::from),
                theirs: theirs.map(String::from),
                reason,
            };
        let theirs = &theirs[file];
        let (our_order, their_order) = (order(ours), order(theirs));
        if our_order != their_order {
            let (ours, theirs) = (our_order.join(", "), their_order.join(", "));
            let reason = explain_order(&our_order, &their_order);
            differences.push(difference("order", Some(&ours), Some(&theirs), reason));
        }
        for our in ours {
            let Some(their) = theirs.iter().find(|their| their.of == our.of) else {
                // The order shows it.
                continue;
            };
            let (lines, own) = take_own(file, &our.lines);
            for name in own {
                differences.push(difference(&our.of, Some(name), None, Some(name)));
            }
            if our.places != their.places && our.places.keys().eq(their.places.keys()) {
                let places = "place of buffers";
                differences.push(difference(&our.of, Some(places), None, Some(places)));
            }
            for group in differing(lines, &their.lines) {
                let mut unknown = Vec::new();
                for (ours, theirs) in group {
                    match explain_text(peer, done, (file, our.party()), ours, theirs) {
                        None => unknown.push((ours, theirs)),
                        reason => differences.push(difference(&our.of, ours, theirs, reason)),
                    }
                }
                for (ours, theirs) in side_by_side(unknown) {
                    differences.push(difference(&our.of, ours, theirs, None));
                }
            }
        }
    }
    differences
}

/// Shows lines that stand in the same place beside each other, if it can be said which.
fn side_by_side(pairs: Vec<Pair>) -> Vec<Pair> {
    let (both, single): (Vec<Pair>, Vec<Pair>) = pairs
        .iter()
        .partition(|(ours, theirs)| ours.is_some() && theirs.is_some());
    let ours: Vec<_> = single.iter().filter_map(|pair| pair.0).collect();
    let theirs: Vec<_> = single.iter().filter_map(|pair| pair.1).collect();
    if ours.len() != theirs.len() {
        return pairs;
    }
    let single = ours.into_iter().zip(theirs);
    both.into_iter()
        .chain(single.map(|(ours, theirs)| (Some(ours), Some(theirs))))
        .collect()
}

fn order(sections: &[Section]) -> Vec<&str> {
    sections.iter().map(|section| &*section.of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        program::{Action, Op},
        run::Step,
    };

    /// Two processes, 11 and 12. The first one has been sent three buffers, of which it holds the one at 0x410; it
    /// has pages that nobody uses.
    const STATE: &str = "\
binder state:
proc 12
context differential
  thread 12: l 02 need_return 0 tr 0
  ref 7: desc 0 node 2 s 1 w 1 d 0000000000000000
proc 11
context differential
  thread 11: l 02 need_return 0 tr 0
    incoming transaction 20: 00000000abcdef01 from 12:12 to 11:11 code 8 flags 10 pri 120 a0 r0 elapsed 5ms node 2 size 8:0 offset 18
  node 2: u0000000000000000 c0000000000000000 hs 1 hw 1 ls 0 lw 0 is 1 iw 1 tr 1 proc 12
  buffer 20: 18 size 8:0:0 active
  buffer 8: 410 size 16:8:0 delivered
  buffer 21: 428 size 0:0:0 active
  pending transaction 21: 00000000abcdef02 from 12:12 to 11:0 code 0 flags 11 pri 120 a1 r0 elapsed 4ms node 2 size 0:0 offset 428
";

    const STATS: &str = "\
binder stats:
BC_TRANSACTION: 13
BC_ENTER_LOOPER: 7
BR_TRANSACTION: 2
proc: active 3 total 9
proc 12
context differential
  threads: 1
  requested threads: 0+0/0
  ready threads 0
  free async space 4096
  nodes: 0
  refs: 1 s 1 w 1
  buffers: 0
  pages: 0:0:2
  pages high watermark: 0
  pending transactions: 0
  BC_TRANSACTION: 3
  thread: active 1 total 1
proc 11
context differential
  threads: 1
  requested threads: 0+0/0
  ready threads 0
  free async space 4088
  nodes: 1
  refs: 0 s 0 w 0
  buffers: 3
  pages: 2:1:5
  pages high watermark: 3
  pending transactions: 1
  BR_TRANSACTION: 2
  thread: active 1 total 1
";

    const START: &str = "\
binder stats:
BC_TRANSACTION: 10
BC_ENTER_LOOPER: 7
proc: active 2 total 8
proc 1
BC_TRANSACTION: 99
";

    fn look(state: &str, stats: &str) -> Look {
        let files = [("state", state), ("stats", stats)];
        Look {
            pids: vec![vec![11], vec![12]],
            held: vec![vec![0x410], vec![]],
            files: files.map(|(name, text)| (name.into(), text.into())).into(),
        }
    }

    fn with(done: &mut Done, peer: &str, ours: &Look, theirs: &Look) -> Vec<Difference> {
        compare(peer, done, (ours, START), (theirs, START))
    }

    /// The reasons for what differs if ours say this, and the C driver what is above.
    fn reasons(state: &str, stats: &str) -> Vec<Option<&'static str>> {
        let (ours, theirs) = (look(state, stats), look(STATE, STATS));
        with(&mut Done::default(), "C", &ours, &theirs)
            .iter()
            .map(|difference| difference.reason)
            .collect()
    }

    fn changed(text: &str, from: &str, to: &str) -> String {
        assert!(text.contains(from), "{from}");
        text.replacen(from, to, 1)
    }

    fn change_of_state(from: &str, to: &str) -> Vec<Option<&'static str>> {
        reasons(&changed(STATE, from, to), STATS)
    }

    fn change_of_stats(from: &str, to: &str) -> Vec<Option<&'static str>> {
        reasons(STATE, &changed(STATS, from, to))
    }

    const UNEXPECTED: Option<&str> = None;

    #[test]
    fn the_same_is_the_same() {
        assert!(reasons(STATE, STATS).is_empty());
    }

    #[test]
    fn what_nobody_can_foresee_may_differ() {
        // Later made objects have higher numbers.
        let mut state = STATE.to_string();
        for (from, to) in [
            ("proc 12", "proc 3412"),
            ("proc 11", "proc 3411"),
            ("thread 12", "thread 3412"),
            ("thread 11", "thread 3411"),
            ("from 12:12 to 11:", "from 3412:3412 to 3411:"),
            ("3411:11", "3411:3411"),
            (" 20:", " 120:"),
            (" 21:", " 130:"),
            ("buffer 8:", "buffer 77:"),
            ("node 2", "node 105"),
            ("ref 7", "ref 106"),
            ("abcdef01", "12345678"),
            ("elapsed 5ms", "elapsed 1234ms"),
        ] {
            assert!(state.contains(from), "{from}");
            state = state.replace(from, to);
        }
        let stats = STATS.replace("proc 12", "proc 3412");
        let stats = stats.replace("proc 11", "proc 3411");
        let mut ours = look(&state, &stats);
        ours.pids = vec![vec![3411], vec![3412]];
        let differences = with(&mut Done::default(), "C", &ours, &look(STATE, STATS));
        assert_eq!(differences, []);
    }

    #[test]
    fn ids_are_those_of_the_same_things() {
        for (from, to) in [
            // Of another transaction, node or process.
            ("buffer 20: 18", "buffer 30: 18"),
            ("elapsed 5ms node 2 size", "elapsed 5ms node 5 size"),
            ("from 12:12 to 11:11", "from 11:12 to 11:11"),
            ("from 12:12 to 11:11", "from 12:12 to 12:12"),
            ("tr 1 proc 12", "tr 1 proc 11"),
        ] {
            let reasons = change_of_state(from, to);
            assert!(reasons.contains(&UNEXPECTED), "{from}, {to}: {reasons:?}");
        }
    }

    #[test]
    fn a_changed_word_is_found() {
        for (from, to) in [
            ("size 16:8:0 delivered", "size 16:8:0 allocated"),
            ("size 16:8:0 delivered", "size 24 delivered"),
            ("size 8:0:0 active", "size 8:0:0  active"),
            ("need_return 0", "need_return 1"),
            (" a0 r0", ""),
            ("elapsed 5ms", "elapsed 5 ms"),
            ("00000000abcdef01 ", ""),
            ("d 0000000000000000", "d 00000000abcdef01"),
            ("hs 1", "cs 1"),
            ("pending transaction 21", "  pending transaction 21"),
            ("context differential", "context binder"),
        ] {
            let reasons = change_of_state(from, to);
            assert!(reasons.contains(&UNEXPECTED), "{from}, {to}: {reasons:?}");
        }
        for (from, to) in [
            ("free async space", "free oneway space"),
            ("ready threads 0", "ready threads: 0"),
            ("pages: 2:1:5", "pages: 2:2:4"),
            ("pages: 2:1:5", "pages: 3:1:4"),
            ("high watermark: 3", "high watermark: 2"),
            ("  buffers: 3", "  buffers: 4"),
            ("  BR_TRANSACTION: 2", "  BR_TRANSACTION: 3"),
            ("BC_TRANSACTION: 13", "BC_TRANSACTION: 14"),
            ("binder stats:", "stats:"),
        ] {
            let reasons = change_of_stats(from, to);
            assert_eq!(reasons, [UNEXPECTED], "{from}, {to}");
        }
    }

    #[test]
    fn a_missing_line_is_found() {
        for line in STATE.lines().filter(|line| !line.starts_with("proc ")) {
            let reasons = change_of_state(&format!("{line}\n"), "");
            assert!(reasons.contains(&UNEXPECTED), "{line}: {reasons:?}");
        }
        for line in STATS.lines() {
            // Of the driver's own counters, only those that have changed since the start are compared.
            let reason = match line.trim() {
                "BC_ENTER_LOOPER: 7" => continue,
                line if line.contains(": active ") => Some("counts of objects"),
                _ => UNEXPECTED,
            };
            let reasons = change_of_stats(&format!("{line}\n"), "");
            assert!(reasons.contains(&reason), "{line}: {reasons:?}");
        }
    }

    #[test]
    fn a_wrong_order_is_found() {
        let change = |text: &str, one: &str, other: &str| {
            let text = changed(text, one, "?");
            let text = changed(&text, other, one);
            changed(&text, "?", other)
        };
        let stats = change(STATS, "  ready threads 0\n", "  free async space 4096\n");
        assert!(reasons(STATE, &stats).contains(&UNEXPECTED));
        let stats = change(STATS, "  pages: 2:1:5\n", "  pending transactions: 1\n");
        assert!(reasons(STATE, &stats).contains(&UNEXPECTED));
        // Buffers come in the order of their places.
        let one = "  buffer 20: 18 size 8:0:0 active\n";
        let other = "  buffer 8: 410 size 16:8:0 delivered\n";
        assert!(reasons(&change(STATE, one, other), STATS).contains(&UNEXPECTED));
    }

    #[test]
    fn a_wrong_number_base_is_found() {
        for (from, to) in [
            // The one that the process holds.
            ("8: 410 size", "8: 1040 size"),
            ("8: 410 size", "8: 0x410 size"),
            ("8: 410 size", "8: 0000000000000410 size"),
            // Those that only the driver knows of, which say so twice.
            ("buffer 20: 18", "buffer 20: 24"),
            ("offset 18", "offset 24"),
            ("code 8", "code 10"),
            ("flags 10", "flags 16"),
            ("u0000000000000000", "u0"),
        ] {
            let reasons = change_of_state(from, to);
            assert!(reasons.contains(&UNEXPECTED), "{from}, {to}: {reasons:?}");
        }
    }

    #[test]
    fn places_may_differ_and_the_pages_that_follow_from_them() {
        let moved = changed(STATE, "buffer 20: 18", "buffer 20: 0");
        let moved = changed(&moved, "offset 18", "offset 0");
        assert_eq!(reasons(&moved, STATS), [Some("place of buffers")]);
        let stats = changed(STATS, "pages: 2:1:5", "pages: 1:1:6");
        let stats = changed(&stats, "high watermark: 3", "high watermark: 2");
        let reasons = reasons(&moved, &stats);
        assert_eq!(reasons, [Some("place of buffers"); 3]);
        // Not of the other process.
        let stats = changed(&stats, "pages: 0:0:2", "pages: 1:0:1");
        let ours = look(&moved, &stats);
        let differences = with(&mut Done::default(), "C", &ours, &look(STATE, STATS));
        assert!(differences.iter().any(|other| other.reason.is_none()));
    }

    #[test]
    fn a_scan_may_reclaim_other_pages_but_none_in_use() {
        let mut done = Done::default();
        let scan = Step {
            op: Op {
                by: 0,
                action: Action::Scan { pages: 1 },
            },
            said: Vec::new(),
            buffers: Vec::new(),
            look: None,
        };
        done.follow(&scan, &scan);
        let mut reasons = |pages: &str| {
            let stats = changed(STATS, "pages: 2:1:5", pages);
            let differences = with(&mut done, "C", &look(STATE, &stats), &look(STATE, STATS));
            differences[0].reason
        };
        assert_eq!(reasons("pages: 2:0:6"), Some("what a scan reclaims"));
        assert_eq!(reasons("pages: 1:1:6"), UNEXPECTED);
        assert_eq!(reasons("pages: 2:0:5"), UNEXPECTED);
    }

    #[test]
    fn other_answers_are_counted_otherwise() {
        let step = |by, said: &[&str]| Step {
            op: Op {
                by,
                action: Action::Receive,
            },
            said: said.iter().map(|line| line.to_string()).collect(),
            buffers: Vec::new(),
            look: None,
        };
        let mut done = Done::default();
        done.follow(&step(0, &["BR_FAILED_REPLY"]), &step(0, &["BR_DEAD_REPLY"]));
        let mut reasons = |from: &str, to: &str| -> Vec<_> {
            let stats = changed(STATS, from, to);
            with(&mut done, "C", &look(STATE, &stats), &look(STATE, STATS))
                .iter()
                .map(|difference| difference.reason)
                .collect()
        };
        let line = "  BR_TRANSACTION: 2\n";
        let failed = "  BR_TRANSACTION: 2\n  BR_FAILED_REPLY: 1\n";
        let counted = Some("counts of other answers");
        assert_eq!(reasons(line, failed), [counted]);
        assert_eq!(reasons(line, &failed.replace("Y: 1", "Y: 2")), [UNEXPECTED]);
        assert_eq!(
            reasons(line, &failed.replace("FAILED", "DEAD")),
            [UNEXPECTED]
        );
        // The other process was told nothing.
        let other = "  BC_TRANSACTION: 3\n";
        let failed = format!("{other}  BR_FAILED_REPLY: 1\n");
        assert_eq!(reasons(other, &failed), [UNEXPECTED]);
    }

    #[test]
    fn errors_that_nobody_has_read_are_compared_when_somebody_does() {
        let [ours, theirs] = [29201, 29189].map(|code| {
            let error = format!("need_return 0 tr 0\n    transaction error: {code}\n");
            look(&changed(STATE, "need_return 0 tr 0\n", &error), STATS)
        });
        let differences = with(&mut Done::default(), "C", &ours, &theirs);
        let reasons: Vec<_> = differences.iter().map(|other| other.reason).collect();
        assert_eq!(reasons, [Some("error not read yet")]);
        let differences = with(&mut Done::default(), "C", &ours, &look(STATE, STATS));
        let reasons: Vec<_> = differences.iter().map(|other| other.reason).collect();
        assert_eq!(reasons, [UNEXPECTED]);
    }

    #[test]
    fn own_lines_come_last() {
        let own = "  outstanding transactions: 1\n";
        let last = "  thread: active 1 total 1\n";
        let after = format!("{last}{own}");
        assert_eq!(
            change_of_stats(last, &after),
            [Some("outstanding transactions")]
        );
        let before = format!("{own}{last}");
        assert_eq!(change_of_stats(last, &before), [UNEXPECTED]);
        let unknown = format!("{last}  opaque transactions: 1\n");
        assert_eq!(change_of_stats(last, &unknown), [UNEXPECTED]);
        // It is a line of "stats".
        assert!(reasons(&format!("{STATE}{own}"), STATS).contains(&UNEXPECTED));
    }

    #[test]
    fn processes_may_come_in_another_order_but_must_be_there() {
        let (begin, rest) = STATS.split_once("proc 12").unwrap();
        let (first, second) = rest.split_once("proc 11").unwrap();
        let other = format!("{begin}proc 11{second}proc 12{first}");
        assert_eq!(reasons(STATE, &other), [Some("order of processes")]);
        let missing = format!("{begin}proc 12{first}");
        assert_eq!(reasons(STATE, &missing), [UNEXPECTED]);
        let twice = format!("{STATS}proc 12{first}");
        assert!(reasons(STATE, &twice).contains(&UNEXPECTED));
    }

    #[test]
    fn references_may_come_in_another_order() {
        let state = changed(STATE, "tr 1 proc 12", "tr 1 proc 12 11");
        let other = changed(STATE, "tr 1 proc 12", "tr 1 proc 11 12");
        let reasons: Vec<_> = with(
            &mut Done::default(),
            "C",
            &look(&state, STATS),
            &look(&other, STATS),
        )
        .iter()
        .map(|difference| difference.reason)
        .collect();
        assert_eq!(reasons, [Some("order of references")]);
    }

    #[test]
    fn upstream_has_other_words_but_no_other_numbers() {
        let stats = changed(STATS, "ready threads 0", "outstanding transactions: 2");
        let stats = changed(&stats, "  buffers: 3", "  buffers: 2");
        let (ours, theirs) = (look(STATE, STATS), look(STATE, &stats));
        let differences = with(&mut Done::default(), "Rust", &ours, &theirs);
        let unexpected: Vec<_> = differences
            .iter()
            .filter(|difference| difference.reason.is_none())
            .map(|difference| difference.ours.as_deref())
            .collect();
        assert_eq!(unexpected, [Some("  buffers: 3")]);
    }

    #[test]
    fn differences_are_shown_with_both_texts() {
        let stats = changed(STATS, "ready threads 0", "ready threads: 0");
        let (ours, theirs) = (look(STATE, &stats), look(STATE, STATS));
        let differences = with(&mut Done::default(), "C", &ours, &theirs);
        let [difference] = &differences[..] else {
            panic!("{differences:?}");
        };
        assert_eq!(
            (
                &*difference.file,
                &*difference.section,
                difference.ours.as_deref(),
                difference.theirs.as_deref()
            ),
            (
                "stats",
                "P1",
                Some("  ready threads: 0"),
                Some("  ready threads 0")
            )
        );
    }
}
