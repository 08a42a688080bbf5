// SPDX-License-Identifier: GPL-2.0

//! What was measured on three kernels, side by side, and whether ours reaches what it is to reach.

use crate::record::{self, Figure, Report};
use binder_raw::{
    fail,
    outcome::{Context, Outcome},
};
use hdrhistogram::Histogram;
use std::{
    collections::BTreeMap,
    fmt::{self, Display, Formatter},
    fs, iter,
    path::Path,
};

/// The kernels, by the names that their results have: ours first.
pub const KERNELS: [&str; 3] = ["ours", "c", "rust"];
/// Their names for people.
pub const HEADS: [&str; 3] = ["ours", "C", "Rust"];
const C: usize = 1;

/// What ours is compared with.
#[derive(Clone, Copy)]
enum Peer {
    C,
    Better,
}

pub struct Goal {
    /// Begin and end of the names of the loads that it is for.
    load: (&'static str, &'static str),
    /// The largest ratio that reaches it.
    pub ratio: f64,
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
    goal("metadata: ", "", 1.0, Peer::Better),
    goal("squeezed receiver: ", ": arrive", 1.0, Peer::C),
    // A millisecond, where the better one takes half a second.
    goal("reading state: ", ": send: worst", 0.002, Peer::Better),
];

/// Where a figure comes from.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Source {
    /// The emulator counts what is executed in the allocator itself.
    Profile,
    /// One emulated CPU, on which a load costs the same each time.
    Count,
    /// The same, for loads in which it is a matter of luck who runs when: several runs.
    Latency,
    /// Two CPUs, several runs.
    Time,
    /// The same on CPUs that are emulated, which tells more about the emulator than about the driver.
    Emulated,
}

impl Source {
    /// Whether two runs give the same figure.
    pub fn is_exact(self) -> bool {
        matches!(self, Source::Profile | Source::Count)
    }

    /// What the name of a row says of them.
    fn cpus(self) -> &'static str {
        match self {
            Source::Time => ", 2 CPUs",
            Source::Emulated => ", 2 emulated CPUs",
            _ => "",
        }
    }
}

/// Lines "Term: text" on the run, by `lab/bench`.
const CIRCUMSTANCES: &str = "circumstances.txt";

/// What the script that measured says of the run; of what was measured by hand, nothing.
pub fn circumstances(folder: &Path) -> Vec<(String, String)> {
    let text = fs::read_to_string(folder.join(CIRCUMSTANCES)).unwrap_or_default();
    let terms = text.lines().filter_map(|line| line.split_once(": "));
    terms
        .map(|(term, text)| (term.into(), text.into()))
        .collect()
}

/// What a kernel shows for a load.
#[derive(Clone, PartialEq, Debug)]
pub enum Cell {
    /// One figure, or one for each run.
    Measured(Vec<f64>),
    /// It can't do the load; why.
    Cannot(String),
    /// Nobody knows.
    Missing,
}

impl Cell {
    fn figures(&self) -> &[f64] {
        match self {
            Cell::Measured(figures) => figures,
            _ => &[],
        }
    }

    pub fn median(&self) -> Option<f64> {
        median(self.figures())
    }

    /// The least and the most.
    pub fn range(&self) -> Option<(f64, f64)> {
        range(self.figures())
    }
}

/// Who is better.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Standing {
    /// We, in all runs.
    Won,
    /// Each the same.
    Even,
    /// The better peer, in all runs; or we can't do what a peer does.
    Lost,
    /// Runs don't agree.
    Unclear,
    /// Nobody can tell from this.
    Emulated,
    /// There is no peer that can do it.
    Alone,
    Missing,
}

impl Standing {
    pub fn name(self) -> &'static str {
        match self {
            Standing::Won => "won",
            Standing::Even => "even",
            Standing::Lost => "lost",
            Standing::Unclear => "unclear",
            Standing::Emulated => "emulated",
            Standing::Alone => "only ours",
            Standing::Missing => "not measured",
        }
    }
}

/// A load, on each kernel.
#[derive(Clone)]
pub struct Row {
    pub load: String,
    pub unit: String,
    pub source: Source,
    pub more_is_better: bool,
    pub cells: [Cell; 3],
    /// Of latencies: all that were seen, in all runs.
    pub latencies: [Histogram<u64>; 3],
}

impl Row {
    /// The name of the load, with what else there is to know.
    pub fn name(&self) -> String {
        format!("{}{}", self.load, self.source.cpus())
    }

    /// The unit, and whether more is better.
    pub fn unit(&self) -> String {
        match self.more_is_better {
            true => format!("{}, more is better", self.unit),
            false => self.unit.clone(),
        }
    }

    /// What the loads of a group have in common, and what this one has of its own.
    pub fn group(&self) -> (String, &str) {
        let (begin, rest) = self.load.split_once(": ").unwrap_or(("", &self.load));
        let (own, group) = match rest.rsplit_once(": ") {
            Some((own, end)) => (own, format!("{begin}: {end}")),
            None => (rest, begin.to_string()),
        };
        (group + self.source.cpus(), own)
    }

    /// Our figures by those of C, run by run.
    pub fn to_c(&self) -> Vec<f64> {
        self.ratios(C)
    }

    /// The same for the peer that is better.
    pub fn to_better(&self) -> Vec<f64> {
        let peers = (C..KERNELS.len()).filter_map(|peer| Some((peer, self.cells[peer].median()?)));
        let better = peers.min_by(|a, b| match self.more_is_better {
            true => b.1.total_cmp(&a.1),
            false => a.1.total_cmp(&b.1),
        });
        better.map_or(Vec::new(), |(peer, _)| self.ratios(peer))
    }

    /// Where more is better, the other way round: below 1, ours is always the better.
    fn ratios(&self, peer: usize) -> Vec<f64> {
        let (one, other) = match self.more_is_better {
            true => (peer, 0),
            false => (0, peer),
        };
        let [one, other] = [one, other].map(|kernel| self.cells[kernel].figures());
        iter::zip(one, other)
            .map(|(one, other)| one / other)
            .collect()
    }

    pub fn standing(&self) -> Standing {
        let ratios = self.to_better();
        match self.cells[0] {
            Cell::Missing => return Standing::Missing,
            Cell::Cannot(_) => return Standing::Lost,
            Cell::Measured(_) => {}
        }
        let all = |is: fn(&f64) -> bool| ratios.iter().all(is);
        match ratios.is_empty() {
            _ if self.source == Source::Emulated => Standing::Emulated,
            true if self.cells[C..].contains(&Cell::Missing) => Standing::Missing,
            true => Standing::Alone,
            _ if all(|ratio| *ratio == 1.0) => Standing::Even,
            _ if all(|ratio| *ratio < 1.0) => Standing::Won,
            _ if all(|ratio| *ratio > 1.0) => Standing::Lost,
            _ => Standing::Unclear,
        }
    }

    /// The goal, if there is one, and whether all runs agree that it is reached, or that it isn't.
    pub fn goal(&self) -> Option<(f64, &'static str)> {
        let fits =
            |goal: &&Goal| self.load.starts_with(goal.load.0) && self.load.ends_with(goal.load.1);
        let goal = GOALS
            .iter()
            .find(fits)
            .filter(|_| self.source != Source::Emulated)?;
        let ratios = match goal.peer {
            Peer::C => self.to_c(),
            Peer::Better => self.to_better(),
        };
        let reached = ratios.iter().filter(|ratio| **ratio <= goal.ratio).count();
        let verdict = match reached {
            _ if ratios.is_empty() => "not measured",
            0 => "missed",
            _ if reached == ratios.len() => "met",
            _ => "unclear",
        };
        Some((goal.ratio, verdict))
    }
}

/// How many goals are met, and how many there are.
pub fn goals(rows: &[Row]) -> (usize, usize) {
    let goals: Vec<_> = rows.iter().filter_map(Row::goal).collect();
    let met = goals.iter().filter(|(_, verdict)| *verdict == "met");
    (met.count(), goals.len())
}

pub fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// The least and the most.
pub fn range(values: &[f64]) -> Option<(f64, f64)> {
    let least = values.iter().copied().min_by(f64::total_cmp)?;
    let most = values.iter().copied().max_by(f64::total_cmp)?;
    Some((least, most))
}

/// The results of a folder, in the order in which they were measured.
pub fn rows(folder: &Path) -> Outcome<Vec<Row>> {
    let mut rows: Vec<Row> = Vec::new();
    let mut unable = Vec::new();
    for (kernel, name) in KERNELS.iter().enumerate() {
        for (source, report) in reports(folder, name)? {
            for figure in report.figures {
                let known = rows
                    .iter()
                    .position(|row| row.source == source && row.load == figure.load);
                let index = known.unwrap_or(rows.len());
                let value = value(&figure);
                if known.is_none() {
                    rows.push(Row {
                        load: figure.load,
                        unit: figure.unit,
                        source,
                        more_is_better: figure.more_is_better,
                        cells: [const { Cell::Missing }; 3],
                        latencies: std::array::from_fn(|_| record::latencies()),
                    });
                }
                for (value, count) in figure.histogram {
                    rows[index].latencies[kernel].record_n(value, count)?;
                }
                match &mut rows[index].cells[kernel] {
                    Cell::Measured(figures) => figures.push(value),
                    cell => *cell = Cell::Measured(vec![value]),
                }
            }
            for cannot in report.cannot {
                unable.push((kernel, source, cannot));
            }
        }
    }
    for (kernel, source, cannot) in unable {
        for row in rows.iter_mut().filter(|row| row.source == source) {
            if row.cells[kernel] == Cell::Missing && row.load.starts_with(&cannot.load) {
                row.cells[kernel] = Cell::Cannot(cannot.why.clone());
            }
        }
    }
    Ok(rows)
}

/// All that was measured on one kernel.
pub fn reports(folder: &Path, kernel: &str) -> Outcome<Vec<(Source, Report)>> {
    let mut reports = Vec::new();
    let profile = folder.join(format!("profile-{kernel}.txt"));
    if profile.exists() {
        let mut report = read(&folder.join(format!("profile-{kernel}.json")))?;
        report.figures = parts(&report, &fs::read_to_string(profile)?);
        reports.push((Source::Profile, report));
    }
    let count = read(&folder.join(format!("icount-{kernel}.json")))?;
    reports.push((Source::Count, count));
    let mut circumstances = circumstances(folder).into_iter();
    let time = match circumstances.any(|term| term == ("Two CPUs".into(), "emulated".into())) {
        true => Source::Emulated,
        false => Source::Time,
    };
    for (kind, source) in [("latency", Source::Latency), ("time", time)] {
        let paths = (1..).map(|run| folder.join(format!("{kind}-{kernel}-{run}.json")));
        for path in paths.take_while(|path| path.exists()) {
            reports.push((source, read(&path)?));
        }
    }
    Ok(reports)
}

/// What was counted in instructions, by load and kernel.
type Counted = BTreeMap<String, f64>;

/// How far two runs lie apart in what is to be the same.
struct Apart {
    figures: usize,
    percent: f64,
    name: String,
}

impl Apart {
    /// By so many per cent, they may.
    const TOLERANCE: f64 = 1.0;

    fn between(one: &Counted, other: &Counted) -> Outcome<Self> {
        let figures = one.len();
        let (mut percent, mut name) = (0.0, "none");
        for load in one.keys().chain(other.keys()) {
            let (Some(one), Some(other)) = (one.get(load), other.get(load)) else {
                fail!("{load}: measured once, not twice");
            };
            let difference = (one / other - 1.0).abs() * 100.0;
            if difference > percent {
                (percent, name) = (difference, load);
            }
        }
        let name = name.into();
        Ok(Apart {
            figures,
            percent,
            name,
        })
    }
}

impl Display for Apart {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "of {} figures in instructions, none differs by more than {:.2} % ({})",
            self.figures, self.percent, self.name
        )
    }
}

/// How far two boots of the same kernel lie apart in what is counted, if there were two.
///
/// # Errors
///
/// Fails if one of them can't be read.
pub fn again(folder: &Path) -> Outcome<Option<String>> {
    let [mut first, mut again] = [Counted::new(), Counted::new()];
    for (kernel, head) in iter::zip(KERNELS, HEADS) {
        let path = folder.join(format!("again-{kernel}.json"));
        if !path.exists() {
            return Ok(None);
        }
        let counted = |report: Report| {
            let figures = report.figures.into_iter();
            let figures = figures.filter(|figure| figure.unit == "instructions");
            figures.map(move |figure| (format!("{}, {head}", figure.load), figure.median))
        };
        again.extend(counted(read(&path)?));
        first.extend(counted(read(
            &folder.join(format!("icount-{kernel}.json")),
        )?));
    }
    let apart = Apart::between(&first, &again)?;
    Ok(Some(format!("Each kernel was booted twice: {apart}")))
}

/// Compares two runs of all that is to be the same, and prints how far they lie apart.
///
/// # Errors
///
/// Fails if that is too far, or if they can't be compared.
pub fn compare(folder: &Path, other: &Path) -> Outcome {
    let counted = |folder| -> Outcome<Counted> {
        let rows = rows(folder)?;
        let rows = rows
            .iter()
            .filter(|row| row.source.is_exact() && row.unit == "instructions");
        let figures = rows.flat_map(|row| {
            iter::zip(HEADS, &row.cells)
                .filter_map(|(head, cell)| Some((format!("{}, {head}", row.load), cell.median()?)))
        });
        Ok(figures.collect())
    };
    let apart = Apart::between(&counted(folder)?, &counted(other)?)?;
    println!("Of two runs: {apart}");
    if apart.figures == 0 || apart.percent >= Apart::TOLERANCE {
        fail!("they are to differ by less than {} %", Apart::TOLERANCE);
    }
    Ok(())
}

/// What counts of a figure: of latencies, the worst.
fn value(figure: &Figure) -> f64 {
    match figure.load.starts_with("latency") {
        true => figure.max,
        false => figure.median,
    }
}

pub fn read(path: &Path) -> Outcome<Report> {
    let text = fs::read_to_string(path).context(&path.display().to_string())?;
    serde_json::from_str(&text).context(&path.display().to_string())
}

/// What allocating and freeing took in each round of the phases with the same name, by the output of the
/// profiler, where every second phase is what lies between two of ours.
fn parts(report: &Report, profile: &str) -> Vec<Figure> {
    let phases = profile.split("\nphase ").skip(1).step_by(2);
    let phases: Vec<_> = iter::zip(&report.phases, phases).collect();
    phases
        .chunk_by(|(one, _), (other, _)| one.name == other.name)
        .filter_map(|same| {
            let (phase, _) = same.first()?;
            let samples: Vec<_> = same.iter().map(|(_, text)| executed(text)).collect();
            let load = format!("{}: allocate and free", phase.name);
            let rounds = phase.rounds as u64;
            samples
                .iter()
                .any(|executed| *executed > 0)
                .then(|| Figure::new(load, "instructions", samples, rounds))
        })
        .collect()
}

/// Instructions of all parts in a phase.
fn executed(text: &str) -> u64 {
    text.lines()
        .filter_map(|line| {
            let (_, executed) = line.strip_prefix("part ")?.split_once(": ")?;
            executed.parse::<u64>().ok()
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::made_up::Folder;

    /// Whether two runs agree, when a text of ours that was counted is another in the second.
    fn agree(text: &str, other: &str) -> bool {
        let (one, two) = (Folder::new(), Folder::new());
        let path = two.path().join("icount-ours.json");
        let old = fs::read_to_string(&path).unwrap();
        assert!(old.contains(text));
        fs::write(&path, old.replace(text, other)).unwrap();
        compare(one.path(), two.path()).is_ok()
    }

    #[test]
    fn does_not_judge_an_emulator() {
        let folder = Folder::new();
        let path = folder.path().join(CIRCUMSTANCES);
        for (text, name, standing, known) in [
            ("with KVM", "round trip: 0 B, 2 CPUs", Standing::Unclear, 3),
            (
                "emulated",
                "round trip: 0 B, 2 emulated CPUs",
                Standing::Emulated,
                2,
            ),
        ] {
            fs::write(&path, format!("Two CPUs: {text}\n")).unwrap();
            let Ok(rows) = rows(folder.path()) else {
                panic!("the record can be read");
            };
            let row = rows.iter().find(|row| row.name() == name).unwrap();
            assert_eq!(row.standing(), standing);
            assert_eq!(goals(&rows).1, known);
        }
    }

    #[test]
    fn compares_two_runs() {
        assert!(agree("\"median\":110.0", "\"median\":110.0"));
        assert!(agree("\"median\":110.0", "\"median\":111.0"));
        assert!(!agree("\"median\":110.0", "\"median\":112.0"));
        assert!(!agree("\"median\":110.0", "\"median\":108.0"));
        assert!(!agree("round trip: 4 KiB", "round trip: 5 KiB"));
        // What isn't counted in instructions may differ.
        assert!(agree("\"median\":210.0", "\"median\":420.0"));
    }

    #[test]
    fn takes_the_median_of_phases() {
        let phase = |name: &str| record::Phase {
            name: name.into(),
            rounds: 10,
        };
        let report = Report {
            kernel: String::new(),
            unit: String::new(),
            figures: Vec::new(),
            phases: ["warm", "warm", "warm", "other"].map(phase).into(),
            cannot: Vec::new(),
        };
        let text = |parts: &[u64]| -> String {
            let phases = parts.iter().enumerate();
            let phases = phases.map(|(n, part)| {
                format!(
                    "\nphase {}: 9\npart free: {part}\n\nphase between: 9\n",
                    2 * n
                )
            });
            phases.collect()
        };
        // A timer fires in the second.
        let figures = parts(&report, &text(&[500, 9000, 520, 0]));
        let [figure] = &figures[..] else {
            panic!("one load has such instructions");
        };
        assert_eq!(
            (&*figure.load, figure.median),
            ("warm: allocate and free", 52.0)
        );
    }
}
