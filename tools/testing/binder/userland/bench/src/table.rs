// SPDX-License-Identifier: GPL-2.0

//! What three kernels cost, side by side, and whether ours reaches what it is to reach.

use crate::record::{Figure, Report};
use binder_raw::outcome::{Context, Outcome};
use std::{fs, path::Path};

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

/// A load's figures on each kernel: one, or one for each run.
struct Row {
    load: String,
    figures: [Vec<f64>; 3],
}

/// The results of a folder, in the order in which they were measured.
fn rows(folder: &Path) -> Outcome<Vec<Row>> {
    let mut rows: Vec<Row> = Vec::new();
    for (kernel, name) in KERNELS.iter().enumerate() {
        for (load, figure) in figures(folder, name)? {
            let known = rows.iter().position(|row| row.load == load);
            let index = known.unwrap_or_else(|| {
                let figures = Default::default();
                rows.push(Row { load, figures });
                rows.len() - 1
            });
            rows[index].figures[kernel].push(figure);
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
    for (kind, label) in [("latency", ""), ("time", ", 2 CPUs, ns")] {
        let paths = (1..).map(|run| folder.join(format!("{kind}-{kernel}-{run}.json")));
        for path in paths.take_while(|path| path.exists()) {
            let report = read(&path)?;
            figures.extend(report.figures.iter().map(|figure| {
                let load = format!("{}{label}", figure.load);
                (load, value(figure))
            }));
        }
    }
    Ok(figures)
}

/// What counts of a figure: of latencies, the worst.
fn value(figure: &Figure) -> f64 {
    match figure.load.starts_with("latency") {
        true => figure.max,
        false => figure.median,
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
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

/// Our figures by a peer's, run by run.
fn ratios(ours: &[f64], peer: &[f64]) -> Vec<f64> {
    ours.iter()
        .zip(peer)
        .map(|(ours, peer)| ours / peer)
        .collect()
}

/// Whether all runs agree that a goal is reached, or that it isn't.
fn verdict(ratios: &[f64], goal: f64) -> &'static str {
    match ratios.iter().filter(|ratio| **ratio <= goal).count() {
        _ if ratios.is_empty() => "not measured",
        0 => "missed",
        reached if reached == ratios.len() => "met",
        _ => "unclear",
    }
}

/// Prints the table.
pub fn print(folder: &Path) -> Outcome {
    println!(
        "{:58} {:>10} {:>10} {:>10} {:>6} {:>6} {:>11}  goal",
        "", "ours", "C", "Rust", "to C", "best", "spread",
    );
    let (mut met, mut goals) = (0, 0);
    for Row { load, figures } in rows(folder)? {
        let [ours, c, rust] = &figures;
        let better = match (median(c), median(rust)) {
            (Some(c), Some(rust)) if rust < c => 2,
            (None, _) => 2,
            _ => 1,
        };
        let (to_c, to_better) = (ratios(ours, c), ratios(ours, &figures[better]));
        let goal = GOALS
            .iter()
            .find(|goal| load.starts_with(goal.load.0) && load.ends_with(goal.load.1))
            .map_or(String::new(), |goal| {
                let verdict = match goal.peer {
                    Peer::C => verdict(&to_c, goal.ratio),
                    Peer::Better => verdict(&to_better, goal.ratio),
                };
                goals += 1;
                met += usize::from(verdict == "met");
                format!("{:.2} {verdict}", goal.ratio)
            });
        let number =
            |values: &[f64]| median(values).map_or("-".into(), |value| format!("{value:.0}"));
        let short =
            |values: &[f64]| median(values).map_or("-".into(), |value| format!("{value:.3}"));
        let least = to_better.iter().copied().fold(f64::INFINITY, f64::min);
        let most = to_better.iter().copied().fold(0.0, f64::max);
        let spread = match to_better.len() {
            0 | 1 => String::new(),
            _ => format!("{least:.2} - {most:.2}"),
        };
        println!(
            "{load:58} {:>10} {:>10} {:>10} {:>6} {:>6} {spread:>11}  {goal}",
            number(ours),
            number(c),
            number(rust),
            short(&to_c),
            short(&to_better),
        );
    }
    println!("{met} of {goals} goals met");
    Ok(())
}
