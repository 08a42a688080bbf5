// SPDX-License-Identifier: GPL-2.0

//! Compares what drivers answered.

use crate::{
    differences::{explain, Areas, Verdict},
    run::Transcript,
};
use binder_raw::{check, check_eq, outcome::Outcome};
use std::collections::BTreeMap;

/// How many differences are shown.
const SHOWN: usize = 10;

/// Compares our driver's answers with those of a peer; tells whether there was nothing unexpected.
fn compare_with(peer: &'static str, ours: &[Transcript], theirs: &[Transcript]) -> Outcome<bool> {
    check!(!ours.is_empty(), "there is nothing to compare");
    check_eq!(theirs.len(), ours.len(), "programs of {peer}");
    let (mut same, mut all, mut ended) = (0, 0, 0);
    let mut known: BTreeMap<&str, usize> = BTreeMap::new();
    let mut unexpected = 0;
    for (ours, theirs) in ours.iter().zip(theirs) {
        check_eq!(theirs.name, ours.name, "a program of {peer}");
        check_eq!(theirs.steps.len(), ours.steps.len(), "operations of {peer}");
        let mut areas = Areas::default();
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
        }
    }
    println!(
        "{peer}: {} programs, {unexpected} differ, {ended} part for a known reason; {same} of {all} \
         operations compared",
        ours.len()
    );
    for (reason, count) in known {
        println!("    {count:>6} {reason}");
    }
    // Where most can't be compared, nothing was found out.
    check!(
        2 * same > all,
        "{peer}: too few operations could be compared"
    );
    Ok(unexpected == 0)
}

/// Compares with both peers.
pub fn compare(ours: &[Transcript], c: &[Transcript], rust: &[Transcript]) -> Outcome<bool> {
    let with_c = compare_with("C", ours, c)?;
    let with_rust = compare_with("Rust", ours, rust)?;
    Ok(with_c && with_rust)
}
