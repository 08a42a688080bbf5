// SPDX-License-Identifier: GPL-2.0

//! The results as a table of reStructuredText, which can be read as it is.

use crate::results::{self, median, range, Cell, Row, HEADS};
use binder_raw::outcome::Outcome;
use std::{iter, ops::RangeInclusive, path::Path};

/// Prints the table.
pub fn print(folder: &Path) -> Outcome {
    print!("{}", text(&results::rows(folder)?));
    if let Some(again) = results::again(folder)? {
        println!("{again}");
    }
    Ok(())
}

/// The table, and how many goals are met.
pub fn text(rows: &[Row]) -> String {
    let heads = ["load", "unit"].into_iter().chain(HEADS);
    let heads = heads.chain(["to C", "to better", "spread", "goal"]);
    let lines: Vec<_> = iter::once(heads.map(String::from).collect())
        .chain(rows.iter().map(cells))
        .collect();
    let (met, goals) = results::goals(rows);
    simple(&lines, 2..=6) + &format!("\n{met} of {goals} goals met\n")
}

/// A table of lines, the first of which are the heads. Numbers are to the right of their columns.
pub fn simple(lines: &[Vec<String>], numbers: RangeInclusive<usize>) -> String {
    let width = |column: usize| lines.iter().map(|line| line[column].len()).max();
    let widths: Vec<usize> = (0..lines[0].len()).filter_map(width).collect();
    let rule: Vec<String> = widths.iter().map(|width| "=".repeat(*width)).collect();
    let rule = rule.join("  ");
    let mut text = format!("{rule}\n");
    for (number, line) in lines.iter().enumerate() {
        let line: Vec<String> = iter::zip(line, &widths)
            .enumerate()
            .map(|(column, (cell, &width))| match numbers.contains(&column) {
                true => format!("{cell:>width$}"),
                false => format!("{cell:width$}"),
            })
            .collect();
        text += line.join("  ").trim_end();
        text.push('\n');
        if number == 0 {
            text += &format!("{rule}\n");
        }
    }
    text + &rule + "\n"
}

fn cells(row: &Row) -> Vec<String> {
    let mut cells = vec![row.name(), row.unit()];
    cells.extend(row.cells.iter().map(number));
    let (to_c, to_better) = (row.to_c(), row.to_better());
    cells.extend([&to_c, &to_better].map(|ratios| ratio(ratios)));
    cells.push(spread(&to_better));
    let goal = row.goal();
    cells.push(goal.map_or(String::new(), |(goal, verdict)| {
        format!("{goal:.2} {verdict}")
    }));
    cells
}

/// A kernel's figure.
pub fn number(cell: &Cell) -> String {
    match (cell, cell.median()) {
        (Cell::Cannot(_), _) => "cannot".into(),
        (_, Some(value)) => format!("{value:.0}"),
        _ => "?".into(),
    }
}

/// The ratio of several runs.
pub fn ratio(ratios: &[f64]) -> String {
    median(ratios).map_or(String::new(), |ratio| format!("{ratio:.3}"))
}

/// Between what the ratios of several runs lie.
pub fn spread(ratios: &[f64]) -> String {
    match range(ratios) {
        Some((least, most)) if ratios.len() > 1 => format!("{least:.2} to {most:.2}"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::made_up;

    #[test]
    fn is_a_simple_table() {
        let text = text(&made_up::rows());
        let lines: Vec<_> = text.lines().collect();
        let rule = lines[0];
        assert!(rule.starts_with("===="));
        assert_eq!((lines[2], lines[lines.len() - 3]), (rule, rule));
        // Nothing lies across the gap between two columns.
        for (at, _) in rule.match_indices("  ") {
            for line in &lines[..lines.len() - 2] {
                assert!(
                    line.get(at..at + 2).is_none_or(|gap| gap.trim().is_empty()),
                    "{line}"
                );
            }
        }
    }

    #[test]
    fn says_what_a_peer_cannot_do() {
        let text = text(&made_up::rows());
        let row = text
            .lines()
            .find(|line| line.starts_with("one app: pages"))
            .unwrap();
        let words: Vec<_> = row.split_whitespace().collect();
        assert_eq!(words[3..], ["pages", "40", "cannot", "?"]);
    }
}
