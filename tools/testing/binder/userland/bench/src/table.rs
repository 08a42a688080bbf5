// SPDX-License-Identifier: GPL-2.0

//! What three kernels cost, side by side, and whether ours reaches what it is to reach.

use crate::record::{Figure, Report};
use binder_raw::outcome::{Context, Outcome};
use std::{collections::HashMap, fs, path::Path};

/// The kernels, by the names that their results have: ours first.
const KERNELS: [&str; 3] = ["ours", "c", "rust"];

/// What ours is compared with.
#[derive(Clone, Copy)]
enum Peer {
    C,
    Better,
}

struct Goal {
    /// Begin and end of the names of the loads that it is for.
    load: (&'static str, &'static str),
    /// The largest ratio that reaches it.
    ratio: f64,
    peer: Peer,
}

const fn goal(begin: &'static str, end: &'static str, ratio: f64, peer: Peer) -> Goal {
    Goal {
        load: (begin, end),
        ratio,
        peer,
    }
}

/// The first that fits counts.
const GOALS: &[Goal] = &[
    goal("warm: ", ": allocate and free", 0.5, Peer::Better),
    goal(
        "first touch: 64 KiB",
        ": more than a warm send",
        0.6,
        Peer::Better,
    ),
    goal(
        "first touch: 1 MiB",
        ": more than a warm send",
        0.6,
        Peer::Better,
    ),
    goal("reclaim: contiguous", "", 0.25, Peer::Better),
    goal("reclaim: every second page", "", 0.6, Peer::Better),
    goal(
        "oneway: 4000 outstanding, little space: send",
        "",
        0.05,
        Peer::Better,
    ),
    goal("oneway: ", ": send", 0.95, Peer::Better),
    goal("round trip: ", "", 1.0, Peer::C),
    goal("latency under reclaim: ", "", 1.0, Peer::C),
    goal(
        "metadata: 254 pages mapped, 4 pages",
        "",
        0.25,
        Peer::Better,
    ),
];

/// A load's figure on each kernel, as far as there is one.
struct Row {
    load: String,
    figures: [Option<f64>; 3],
}

/// The results of a folder, in the order in which they were measured.
fn rows(folder: &Path) -> Outcome<Vec<Row>> {
    let mut rows: Vec<Row> = Vec::new();
    let mut by_load = HashMap::new();
    for (kernel, name) in KERNELS.iter().enumerate() {
        for (load, figure) in figures(folder, name)? {
            let row = *by_load.entry(load.clone()).or_insert_with(|| {
                rows.push(Row {
                    load,
                    figures: [None; 3],
                });
                rows.len() - 1
            });
            rows[row].figures[kernel] = Some(figure);
        }
    }
    Ok(rows)
}

/// What was measured on one kernel.
fn figures(folder: &Path, kernel: &str) -> Outcome<Vec<(String, f64)>> {
    let mut figures = Vec::new();
    let profile = folder.join(format!("profile-{kernel}.txt"));
    if profile.exists() {
        let report = read(&folder.join(format!("profile-{kernel}.json")))?;
        figures.extend(parts(&report, &fs::read_to_string(profile)?));
    }
    let report = read(&folder.join(format!("icount-{kernel}.json")))?;
    figures.extend(
        report
            .figures
            .iter()
            .map(|figure| (figure.load.clone(), value(figure))),
    );
    figures.extend(medians(folder, "latency", kernel, "")?);
    figures.extend(medians(folder, "time", kernel, ", 2 CPUs, ns")?);
    Ok(figures)
}

/// What counts of a figure: of latencies, the worst.
fn value(figure: &Figure) -> f64 {
    match figure.load.starts_with("latency") {
        true => figure.max,
        false => figure.median,
    }
}

/// Medians of what was measured in several runs; `label` says how.
fn medians(folder: &Path, kind: &str, kernel: &str, label: &str) -> Outcome<Vec<(String, f64)>> {
    let mut loads: Vec<(String, Vec<f64>)> = Vec::new();
    let paths = (1..).map(|run| folder.join(format!("{kind}-{kernel}-{run}.json")));
    for path in paths.take_while(|path| path.exists()) {
        for figure in &read(&path)?.figures {
            let load = format!("{}{label}", figure.load);
            let values = match loads.iter_mut().find(|(known, _)| *known == load) {
                Some((_, values)) => values,
                None => {
                    loads.push((load, Vec::new()));
                    &mut loads.last_mut().expect("just pushed").1
                }
            };
            values.push(value(figure));
        }
    }
    Ok(loads
        .into_iter()
        .map(|(load, mut values)| {
            values.sort_by(f64::total_cmp);
            (load, values[values.len() / 2])
        })
        .collect())
}

fn read(path: &Path) -> Outcome<Report> {
    let text = fs::read_to_string(path).context(&path.display().to_string())?;
    serde_json::from_str(&text).context(&path.display().to_string())
}

/// What allocating and freeing took in each round of a phase, by the output of the profiler, where every
/// second phase is what lies between two of ours.
fn parts(report: &Report, profile: &str) -> Vec<(String, f64)> {
    let mut figures = Vec::new();
    for (phase, text) in report
        .phases
        .iter()
        .zip(profile.split("\nphase ").skip(1).step_by(2))
    {
        let executed: f64 = text
            .lines()
            .filter_map(|line| {
                line.strip_prefix("part ")?
                    .split_once(": ")?
                    .1
                    .parse::<f64>()
                    .ok()
            })
            .sum();
        if executed > 0.0 {
            let load = format!("{}: allocate and free", phase.name);
            figures.push((load, executed / phase.rounds as f64));
        }
    }
    figures
}

/// Prints the table.
pub fn print(folder: &Path) -> Outcome {
    println!(
        "{:58} {:>10} {:>10} {:>10} {:>6} {:>6}  goal",
        "", "ours", "C", "Rust", "to C", "best",
    );
    let (mut met, mut goals) = (0, 0);
    for row in rows(folder)? {
        let [ours, c, rust] = row.figures;
        let ratio = |peer: Option<f64>| Some(ours? / peer?);
        let better = match (c, rust) {
            (Some(c), Some(rust)) => Some(c.min(rust)),
            (one, other) => one.or(other),
        };
        let goal = GOALS
            .iter()
            .find(|goal| row.load.starts_with(goal.load.0) && row.load.ends_with(goal.load.1));
        let verdict = goal.map_or(String::new(), |goal| {
            let peer = match goal.peer {
                Peer::C => c,
                Peer::Better => better,
            };
            let reached = ratio(peer).is_some_and(|ratio| ratio <= goal.ratio);
            goals += 1;
            met += usize::from(reached);
            format!(
                "{:.2} {}",
                goal.ratio,
                if reached { "met" } else { "missed" }
            )
        });
        let number = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.0}"));
        let short = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.3}"));
        println!(
            "{:58} {:>10} {:>10} {:>10} {:>6} {:>6}  {verdict}",
            row.load,
            number(ours),
            number(c),
            number(rust),
            short(ratio(c)),
            short(ratio(better)),
        );
    }
    println!("{met} of {goals} goals met");
    Ok(())
}
