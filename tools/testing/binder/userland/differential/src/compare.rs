// SPDX-License-Identifier: GPL-2.0

//! Compares what drivers answered.

use crate::{
    differences::{explain, Areas, Done, Verdict},
    run::Transcript,
    texts::{self, Difference},
};
use binder_raw::{check, check_eq, outcome::Outcome};
use std::collections::BTreeMap;

/// How many differences are shown.
const SHOWN: usize = 10;

/// Of lines in files, of each sort one.
const SORTS_SHOWN: usize = 60;

/// Lines of files that differ for no known reason, by what they have in common.
#[derive(Default)]
struct Lines(BTreeMap<(String, String), (usize, String)>);

impl Lines {
    /// Keeps the first of each sort.
    fn note(&mut self, peer: &str, place: &str, difference: &Difference) {
        let (count, _) = self.0.entry(difference.sort()).or_insert_with(|| {
            let line = |text: &Option<String>| match text {
                Some(text) => format!("'{text}'"),
                None => "no such line".into(),
            };
            let shown = format!(
                "{place}, {}, {}:\n    ours: {}\n    {peer}: {}",
                difference.file,
                difference.section,
                line(&difference.ours),
                line(&difference.theirs)
            );
            (0, shown)
        });
        *count += 1;
    }

    fn show(&self) {
        for (count, first) in self.0.values().take(SORTS_SHOWN) {
            println!("{count} times, first in {first}");
        }
        if self.0.len() > SORTS_SHOWN {
            println!("and {} more of other sorts", self.0.len() - SORTS_SHOWN);
        }
    }
}

/// Compares our driver's answers with those of a peer; tells whether there was nothing unexpected.
fn compare_with(peer: &'static str, ours: &[Transcript], theirs: &[Transcript]) -> Outcome<bool> {
    check!(!ours.is_empty(), "there is nothing to compare");
    check_eq!(theirs.len(), ours.len(), "programs of {peer}");
    let (mut same, mut all, mut ended) = (0, 0, 0);
    let mut known: BTreeMap<&str, usize> = BTreeMap::new();
    let mut unexpected = 0;
    let (mut looks, mut lines) = (0, Lines::default());
    for (ours, theirs) in ours.iter().zip(theirs) {
        check_eq!(theirs.name, ours.name, "a program of {peer}");
        check_eq!(theirs.steps.len(), ours.steps.len(), "operations of {peer}");
        let mut areas = Areas::default();
        let mut done = Done::default();
        all += ours.steps.len();
        for (number, (our, their)) in ours.steps.iter().zip(&theirs.steps).enumerate() {
            areas.follow(our, their);
            match explain(peer, &areas, our, their) {
                Verdict::Same => same += 1,
                Verdict::Known(reasons) => {
                    for reason in reasons {
                        *known.entry(reason).or_default() += 1;
                    }
                    same += 1;
                }
                // From here on, one has what the other hasn't.
                Verdict::Parted(reason) => {
                    *known.entry(reason).or_default() += 1;
                    ended += 1;
                    break;
                }
                Verdict::Unexpected => {
                    unexpected += 1;
                    if unexpected <= SHOWN {
                        let op = serde_json::to_string(&our.op)?;
                        println!("{}, operation {number}: {op}", ours.name);
                        println!("    ours: {:?}", our.said);
                        println!("    {peer}: {:?}", their.said);
                    }
                    break;
                }
            }
            done.follow(our, their);
            let (Some(our_look), Some(their_look)) = (&our.look, &their.look) else {
                continue;
            };
            looks += 1;
            check!(
                our_look.files.keys().eq(their_look.files.keys()),
                "{}, operation {number}: other files of {peer}",
                ours.name
            );
            let place = format!("{}, operation {number}", ours.name);
            let (our, their) = ((our_look, &*ours.start), (their_look, &*theirs.start));
            for difference in texts::compare(peer, &mut done, our, their) {
                match difference.reason {
                    Some(reason) => *known.entry(reason).or_default() += 1,
                    None => lines.note(peer, &place, &difference),
                }
            }
        }
    }
    lines.show();
    println!(
        "{peer}: {} programs, {unexpected} differ, {ended} part for a known reason; {same} of {all} \
         operations compared; {looks} looks at the driver's files, {} sorts of lines differ",
        ours.len(),
        lines.0.len()
    );
    for (reason, count) in known {
        println!("    {count:>6} {reason}");
    }
    // Where most can't be compared, nothing was found out.
    check!(
        2 * same > all,
        "{peer}: too few operations could be compared"
    );
    check!(looks > 0, "{peer}: nobody has looked at the files");
    Ok(unexpected == 0 && lines.0.is_empty())
}

/// Compares with both peers.
pub fn compare(ours: &[Transcript], c: &[Transcript], rust: &[Transcript]) -> Outcome<bool> {
    let with_c = compare_with("C", ours, c)?;
    let with_rust = compare_with("Rust", ours, rust)?;
    Ok(with_c && with_rust)
}
