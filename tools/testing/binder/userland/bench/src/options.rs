// SPDX-License-Identifier: GPL-2.0

//! What options of the kernel's configuration make of some loads, for the drivers in Rust.

use crate::{results, table};
use binder_page::escape;
use binder_raw::outcome::Outcome;
use std::{collections::HashMap, path::Path};

/// Kernels, by the names that their results have, and their names for people.
const COLUMNS: [(&str, &str); 7] = [
    ("c", "C"),
    ("ours", "ours"),
    ("ours-overflow", "ours, checks"),
    ("ours-inline", "ours, inline"),
    ("rust", "Rust"),
    ("rust-overflow", "Rust, checks"),
    ("rust-inline", "Rust, inline"),
];

/// What the documentation shows of them.
const SHOWN: &[&str] = &[
    "warm: 128 B, 16 outstanding: allocate and free",
    "warm: 64 KiB, 16 outstanding: allocate and free",
    "warm: 128 B, 16 outstanding: send",
    "warm: 128 B, 16 outstanding: free",
    "oneway: 1000 outstanding, much space: send",
    "round trip: 0 B",
    "round trip: 64 KiB",
];

/// A load, and instructions on each kernel.
type Row = (String, Vec<String>);

/// The loads that were counted with all options; none if the options weren't asked for.
fn rows(folder: &Path) -> Outcome<Vec<Row>> {
    let mut kernels = Vec::new();
    for (kernel, _) in COLUMNS {
        let mut figures = HashMap::new();
        if folder.join(format!("icount-{kernel}.json")).exists() {
            for (source, report) in results::reports(folder, kernel)? {
                let counted = report.figures.into_iter().filter(|_| source.is_exact());
                figures.extend(counted.map(|figure| (figure.load, figure.median)));
            }
        }
        kernels.push(figures);
    }
    let ours = results::rows(folder)?;
    let counted = ours.iter().filter(|row| row.source.is_exact());
    Ok(counted
        .filter_map(|row| {
            let figures = kernels.iter().map(|figures| figures.get(&row.load));
            let figures = figures.map(|figure| Some(format!("{:.0}", figure?)));
            Some((row.load.clone(), figures.collect::<Option<_>>()?))
        })
        .collect())
}

/// Some of them as reStructuredText; empty if there is nothing to show.
pub fn text(folder: &Path) -> Outcome<String> {
    let mut rows = rows(folder)?;
    rows.retain(|(load, _)| SHOWN.contains(&load.as_str()));
    if rows.is_empty() {
        return Ok(String::new());
    }
    let heads = [String::from("load")].into_iter();
    let heads = heads.chain(COLUMNS.map(|(_, head)| head.into())).collect();
    let lines = rows
        .into_iter()
        .map(|(load, figures)| [vec![load], figures].concat());
    Ok(table::simple(
        &[heads].into_iter().chain(lines).collect::<Vec<_>>(),
        1..=COLUMNS.len(),
    ))
}

/// As HTML.
pub fn html(folder: &Path) -> Outcome<String> {
    let rows = rows(folder)?;
    if rows.is_empty() {
        return Ok(String::new());
    }
    let mut html = String::from(
        "<h2>Options</h2>\n<p class=\"soft\">Instructions with CONFIG_RUST_OVERFLOW_CHECKS (checks), and with \
         CONFIG_RUST_INLINE_HELPERS (inline). Everywhere else, both are off.</p>\n\
         <div class=\"card\"><table>\n<tr class=\"heads\"><th>load",
    );
    for (_, head) in COLUMNS {
        html += &format!("<th>{head}");
    }
    html.push('\n');
    for (load, figures) in rows {
        html += &format!("<tr><td>{}", escape(&load));
        for ((_, head), figure) in COLUMNS.iter().zip(figures) {
            html += &format!("<td data-head=\"{head}\">{figure}");
        }
        html += "</tr>\n";
    }
    Ok(html + "</table></div>\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::made_up::Folder;
    use std::fs;

    #[test]
    fn shows_what_was_counted_with_all() {
        let folder = Folder::new();
        assert!(text(folder.path()).is_ok_and(|text| text.is_empty()));
        for (kernel, _) in COLUMNS {
            if let Some((like, _)) = kernel.split_once('-') {
                let like = folder.path().join(format!("icount-{like}.json"));
                fs::copy(like, folder.path().join(format!("icount-{kernel}.json"))).unwrap();
            }
        }
        let Ok(text) = text(folder.path()) else {
            panic!("there is a text");
        };
        let row = text
            .lines()
            .find(|line| line.starts_with("round trip: 0 B"));
        let figures: Vec<_> = row.unwrap()[15..].split_whitespace().collect();
        assert_eq!(figures, ["100", "90", "90", "90", "120", "120", "120"]);
        // C can't do it.
        assert!(!text.contains("one app: pages"));
        // A small table has a part of it, the report all.
        assert!(!text.contains("round trip: 4 KiB"));
        assert!(html(folder.path()).is_ok_and(|html| html.contains("round trip: 4 KiB")));
    }
}
