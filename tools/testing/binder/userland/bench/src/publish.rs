// SPDX-License-Identifier: GPL-2.0

//! Puts what was measured into the files of the repository that show it, each between two lines that say
//! so.

use crate::{
    options, plot,
    results::{self, circumstances, Cell, Row, Source, HEADS},
    table::{self, number, ratio},
};
use binder_raw::{
    fail,
    outcome::{Context, Outcome},
};
use std::{fs, path::Path};

/// What the README shows: something of each kind, also what we lose.
const HEADLINE: &[&str] = &[
    "warm: 128 B, 16 outstanding: allocate and free",
    "warm: 64 KiB, 16 outstanding: allocate and free",
    "growth: 10000 in use: send",
    "oneway: 1000 outstanding, much space: send",
    "oneway: 1000 outstanding, little space: send",
    "oneway: 1000 outstanding, much space: receive and free",
    "round trip: 0 B",
    "round trip: 64 KiB",
    "throughput: 4 pairs, a call",
    "first touch: 4 KiB: send",
    "first touch: 64 KiB: send",
    "reclaim: contiguous, a page",
    "metadata: 254 pages mapped, 4 pages touched",
    "recorded trace: mapping that it fits into",
    "memory pressure: 500 idle processes: given back",
    "one app of 50: given back",
];

const BEGIN: &str = "made by make bench-publish: begin";
const END: &str = "made by make bench-publish: end";

/// For a plot that isn't part of a page.
const CSS: &str = include_str!("plot.css");

/// Changes the files below `top`.
pub fn publish(folder: &Path, top: &Path) -> Outcome {
    let rows = results::rows(folder)?;
    let headline = headline(&rows)?;
    let said = said(folder)?;
    let readme = format!("{said}\n\n{}", markdown(&headline));
    replace(&top.join("README.md"), &readme)?;
    let svg = svg(&headline).context("the plot")?;
    fs::write(top.join("tools/testing/binder/bench/costs.svg"), svg)?;
    let (left_out, shown): (Vec<_>, Vec<_>) = rows
        .into_iter()
        .partition(|row| row.source == Source::Emulated);
    let mut text = said;
    if !left_out.is_empty() {
        text += &format!(
            "\n{} rows for two CPUs are left out: the CPUs were emulated.",
            left_out.len()
        );
    }
    let mut text = format!("{text}\n\n{}", table::text(&shown));
    let options = options::text(folder)?;
    if !options.is_empty() {
        text += "\nWith ``CONFIG_RUST_OVERFLOW_CHECKS`` (``checks``) and with ``CONFIG_RUST_INLINE_HELPERS``\n\
                 (``inline``), which are both off above, instructions are:\n\n";
        text += &options;
    }
    replace(
        &top.join("Documentation/driver-api/binder/benchmarks.rst"),
        &text,
    )?;
    Ok(())
}

fn headline(rows: &[Row]) -> Outcome<Vec<&Row>> {
    HEADLINE
        .iter()
        .map(|load| {
            let row = rows
                .iter()
                .find(|row| row.load == *load && row.source.is_exact());
            match row {
                Some(row) => Ok(row),
                None => fail!("{load}: not measured"),
            }
        })
        .collect()
}

fn term(folder: &Path, name: &str) -> String {
    circumstances(folder)
        .into_iter()
        .find_map(|(term, text)| (term == name).then_some(text))
        .unwrap_or_else(|| "?".into())
}

fn said(folder: &Path) -> Outcome<String> {
    let term = |name| term(folder, name);
    let mut said = format!(
        "What ``{}`` said of commit {}\non {}, on {}.",
        term("Command"),
        term("Commit"),
        term("Date"),
        term("Machine")
    );
    if let Some(again) = results::again(folder)? {
        said += &format!("\n{again}.");
    }
    Ok(said)
}

fn markdown(rows: &[&Row]) -> String {
    let mut text = format!("| | unit | {} | to better |\n", HEADS.join(" | "));
    text += "|---|---|--:|--:|--:|--:|\n";
    for row in rows {
        let figures = row.cells.each_ref().map(number).join(" | ");
        let (load, unit) = (row.name(), row.unit());
        let ratio = match row.to_better() {
            ratios if ratios.is_empty() => row.standing().name().into(),
            ratios => ratio(&ratios),
        };
        text += &format!("| {load} | {unit} | {figures} | {ratio} |\n");
    }
    text
}

/// The same next to C, which is always at 1.
fn svg(rows: &[&Row]) -> Result<String, Box<dyn std::error::Error>> {
    let rows: Vec<_> = rows.iter().filter_map(|row| next_to_c(row)).collect();
    let rows: Vec<_> = rows.iter().collect();
    let svg = plot::svg(&rows, 960)?;
    let style = format!("<style>\n{CSS}</style>\n");
    let Some((head, rest)) = svg.split_once(">\n") else {
        return Err("no plot".into());
    };
    Ok(format!("<!-- {SPDX}: GPL-2.0 -->\n{head}>\n{style}{rest}"))
}

/// In pieces, so that checkpatch doesn't take it for this file's own.
const SPDX: &str = concat!("SPDX-License", "-Identifier");

fn next_to_c(row: &Row) -> Option<Row> {
    let c = row.cells[1].median()?;
    let mut row = row.clone();
    for cell in &mut row.cells {
        if let Some(value) = cell.median() {
            *cell = Cell::Measured(vec![match row.more_is_better {
                true => c / value,
                false => value / c,
            }]);
        }
    }
    row.load = row.load.replace(": ", ", ");
    row.unit = "times what C costs".into();
    row.more_is_better = false;
    Some(row)
}

/// Replaces what is between the two lines.
fn replace(path: &Path, text: &str) -> Outcome {
    let name = path.display().to_string();
    let old = fs::read_to_string(path).context(&name)?;
    fs::write(path, replaced(&old, text).context(&name)?).context(&name)
}

fn replaced(old: &str, text: &str) -> Result<String, &'static str> {
    let begin = old.find(BEGIN).ok_or("has no place for it")?;
    let end = old.find(END).ok_or("has no end of it")?;
    let begin = begin + old[begin..].find('\n').ok_or("has no line after it")? + 1;
    let end = old[..end].rfind('\n').ok_or("has no line before its end")? + 1;
    let (before, after) = (old.get(..begin), &old[end..]);
    let before = before
        .filter(|_| begin <= end)
        .ok_or("ends before it begins")?;
    Ok(format!("{before}\n{}\n\n{after}", text.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::made_up;

    #[test]
    fn replaces_only_what_is_between() {
        let old = format!("one\n<!-- {BEGIN} -->\ntwo\n<!-- {END} -->\nthree\n");
        let new = replaced(&old, "2\n").unwrap();
        assert_eq!(new, old.replace("two", "\n2\n"));
        assert_eq!(replaced(&new, "2\n"), Ok(new));
        assert!(replaced("one\n", "2").is_err());
        assert!(replaced(&format!("{END}\n{BEGIN}\n"), "2").is_err());
    }

    #[test]
    fn shows_what_is_lost_and_cannot_be() {
        let rows = made_up::rows();
        let rows: Vec<_> = rows
            .iter()
            .filter(|row| row.source == Source::Count)
            .collect();
        let text = markdown(&rows);
        assert!(text.contains("| round trip: 4 KiB | instructions | 110 | 100 | 95 | 1.158 |"));
        assert!(text.contains("| one app: pages | pages | 40 | cannot | ? |"));
        // C has neither of the two, and is at 1 in all others.
        let svg = svg(&rows).unwrap();
        assert!(svg.starts_with("<!-- SPDX") && svg.contains("<style>"));
        assert_eq!(svg.matches("<circle ").count(), 1 + rows.len() - 1);
    }
}
