// SPDX-License-Identifier: GPL-2.0

//! The baseline: what our figures were next to those of the better peer, for all loads that cost the same
//! each time. They may not become worse unnoticed.

use crate::results::{self, median, Row};
use binder_raw::{
    fail,
    outcome::{Context, Outcome},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fs, path::Path};

/// By so much a ratio may grow.
const TOLERANCE: f64 = 0.03;

#[derive(Serialize, Deserialize)]
struct Baseline {
    /// Our kernel, as it says itself.
    kernel: String,
    /// By the names of the loads.
    ratios: BTreeMap<String, f64>,
}

impl Baseline {
    fn measured(folder: &Path) -> Outcome<Self> {
        let ours = results::read(&folder.join("icount-ours.json"))?;
        Ok(Baseline {
            kernel: ours.kernel,
            ratios: ratios(&results::rows(folder)?),
        })
    }
}

/// Writes what was measured as the baseline.
pub fn update(folder: &Path, baseline: &Path) -> Outcome {
    let text = serde_json::to_string_pretty(&Baseline::measured(folder)?)?;
    fs::write(baseline, text + "\n").context(&baseline.display().to_string())
}

/// Fails, and names the loads, if something was lost.
pub fn check(folder: &Path, baseline: &Path) -> Outcome {
    let text = fs::read_to_string(baseline).context(&baseline.display().to_string())?;
    let was: Baseline = serde_json::from_str(&text).context(&baseline.display().to_string())?;
    let now = Baseline::measured(folder)?;
    for load in now
        .ratios
        .keys()
        .filter(|load| !was.ratios.contains_key(*load))
    {
        println!("{load}: not in the baseline");
    }
    let losses = losses(&was.ratios, &now.ratios);
    losses.iter().for_each(|loss| println!("{loss}"));
    let all = was.ratios.len();
    if all == 0 || !losses.is_empty() {
        fail!(
            "{} of {all} loads are worse than {}",
            losses.len(),
            was.kernel
        );
    }
    println!("none of {all} loads is worse than {}", was.kernel);
    Ok(())
}

/// To four digits, so that the file can be read. Of instructions only: how many bytes the slab has left
/// over differs by a few per cent from one boot to the next.
fn ratios(rows: &[Row]) -> BTreeMap<String, f64> {
    rows.iter()
        .filter(|row| row.source.is_exact() && row.unit == "instructions")
        .filter_map(|row| {
            let ratio = median(&row.to_better())?;
            Some((row.name(), (ratio * 1e4).round() / 1e4))
        })
        .collect()
}

/// What is worse than it was by more than the tolerance, or isn't known any more.
fn losses(was: &BTreeMap<String, f64>, now: &BTreeMap<String, f64>) -> Vec<String> {
    was.iter()
        .filter_map(|(load, was)| match now.get(load) {
            None => Some(format!("{load}: {was:.3}, now not measured")),
            Some(now) if *now > was * (1.0 + TOLERANCE) => {
                let more = (now / was - 1.0) * 100.0;
                Some(format!("{load}: {was:.3}, now {now:.3} (+{more:.1} %)"))
            }
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::made_up::{self, Folder};

    /// A baseline from which the record's ratio for a load differs by a factor.
    fn baseline(folder: &Folder, load: &str, factor: f64) -> std::path::PathBuf {
        let Ok(mut baseline) = Baseline::measured(folder.path()) else {
            panic!("the record can be read");
        };
        baseline
            .ratios
            .entry(load.into())
            .and_modify(|ratio| *ratio /= factor)
            .or_insert(1.0);
        let path = folder.path().join("baseline.json");
        fs::write(&path, serde_json::to_string(&baseline).unwrap()).unwrap();
        path
    }

    #[test]
    fn fails_on_a_loss() {
        let folder = Folder::new();
        for (load, factor, fine) in [
            ("round trip: 4 KiB", 1.00, true),
            ("round trip: 4 KiB", 1.02, true),
            ("round trip: 4 KiB", 1.04, false),
            ("round trip: 4 KiB", 0.50, true),
            ("round trip: 8 KiB", 1.00, false),
        ] {
            let path = baseline(&folder, load, factor);
            assert_eq!(check(folder.path(), &path).is_ok(), fine, "{load} {factor}");
        }
    }

    #[test]
    fn fails_without_a_baseline() {
        let folder = Folder::new();
        let path = folder.path().join("baseline.json");
        assert!(check(folder.path(), &path).is_err());
        fs::write(&path, r#"{ "kernel": "", "ratios": {} }"#).unwrap();
        assert!(check(folder.path(), &path).is_err());
    }

    #[test]
    fn names_what_is_lost() {
        let now = ratios(&made_up::rows());
        let mut was = now.clone();
        was.insert("round trip: 0 B".into(), 0.8);
        assert_eq!(
            losses(&was, &now),
            ["round trip: 0 B: 0.800, now 0.900 (+12.5 %)"]
        );
    }

    #[test]
    fn knows_only_what_is_the_same_each_time() {
        let mut rows = made_up::rows();
        let known = ratios(&rows);
        let loads: Vec<_> = known.keys().collect();
        let counted = [
            "growth: 1 in use: send",
            "growth: 10 in use: send",
            "round trip: 0 B",
            "round trip: 4 KiB",
        ];
        assert_eq!(loads, counted);

        rows.iter_mut().for_each(|row| row.unit = "bytes".into());
        assert!(ratios(&rows).is_empty());
    }

    #[test]
    fn can_be_updated() {
        let folder = Folder::new();
        let path = baseline(&folder, "round trip: 4 KiB", 1.04);
        assert!(update(folder.path(), &path).is_ok());
        assert!(check(folder.path(), &path).is_ok());
    }
}
