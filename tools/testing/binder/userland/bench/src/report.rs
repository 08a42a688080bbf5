// SPDX-License-Identifier: GPL-2.0

//! The report: one file of HTML beside the results that it is made of.

use crate::{
    options, plot,
    results::{self, Cell, Row, Source, Standing, HEADS, KERNELS},
    table::{number, ratio, spread},
};
use binder_page::escape;
use binder_raw::outcome::{Context, Outcome};
use std::{collections::BTreeSet, fmt::Write, fs, path::Path};

const CSS: &str = include_str!("report.css");

/// Writes index.html into the folder.
pub fn write(folder: &Path) -> Outcome {
    let html = page(folder)?;
    let path = folder.join("index.html");
    fs::write(&path, html).context(&path.display().to_string())
}

fn page(folder: &Path) -> Outcome<String> {
    let rows = results::rows(folder)?;
    let mut html = binder_page::begin("What Binder's buffers cost", CSS);
    html.push_str("<h1>What Binder's buffers cost</h1>\n");
    verdict(&mut html, &rows)?;
    html.push_str(
        "<p class=\"soft\">Our allocator, next to the C driver and to the Rust driver of the same \
         kernel as it is without us. Less is better, unless it says otherwise. The ratio is our \
         figure by the peer's (where more is better, the peer's by ours): below 1, ours is better. Of \
         several runs, figures and ratios are the median; ratios are taken pair by pair, in the order in \
         which the runs took turns, and the spread is their least and their largest. A goal is the largest \
         ratio that is aimed for.</p>\n",
    );
    terms(&mut html, folder)?;
    html.push_str("<h2>Loads</h2>\n");
    table(&mut html, &rows)?;
    latencies(&mut html, &rows)?;
    plots(&mut html, &rows)?;
    html.push_str(&options::html(folder)?);
    configurations(&mut html, folder)?;
    files(&mut html, folder)?;
    Ok(html)
}

fn verdict(html: &mut String, rows: &[Row]) -> Outcome {
    let (met, goals) = results::goals(rows);
    let class = if met == goals { "pass" } else { "fail" };
    let count = |standing| rows.iter().filter(|row| row.standing() == standing).count();
    write!(
        html,
        "<p class=\"verdict {class}\">{met} of {goals} goals met; "
    )?;
    write!(
        html,
        "next to the better peer: {} won",
        count(Standing::Won)
    )?;
    for standing in [
        Standing::Lost,
        Standing::Even,
        Standing::Unclear,
        Standing::Alone,
        Standing::Emulated,
        Standing::Missing,
    ] {
        if count(standing) > 0 {
            write!(html, ", {} {}", count(standing), standing.name())?;
        }
    }
    html.push_str("</p>\n");
    Ok(())
}

fn terms(html: &mut String, folder: &Path) -> Outcome {
    let mut terms: Vec<_> = results::circumstances(folder)
        .iter()
        .map(|(term, text)| (escape(term), escape(text)))
        .collect();
    if let Some(again) = results::again(folder)? {
        terms.push(("Measured twice".into(), escape(&again)));
    }
    for (kernel, head) in KERNELS.iter().zip(HEADS) {
        let report = results::read(&folder.join(format!("icount-{kernel}.json")))?;
        terms.push((format!("Kernel: {head}"), escape(&report.kernel)));
    }
    html.push_str(&binder_page::terms(terms));
    Ok(())
}

/// The rows of each group, in the order in which the groups were measured.
fn groups(rows: &[Row]) -> Vec<(String, Vec<&Row>)> {
    let mut groups: Vec<(String, Vec<&Row>)> = Vec::new();
    for row in rows {
        let name = row.group().0;
        let known = groups
            .iter_mut()
            .find(|group| group.0 == name && group.1[0].unit() == row.unit());
        match known {
            Some(group) => group.1.push(row),
            None => groups.push((name, vec![row])),
        }
    }
    groups
}

fn table(html: &mut String, rows: &[Row]) -> Outcome {
    let heads = ["load"].into_iter().chain(HEADS);
    let heads: Vec<_> = heads
        .chain(["to C", "to better", "result", "goal", "spread"])
        .collect();
    html.push_str("<div class=\"card\"><table>\n<tr class=\"heads\">");
    heads
        .iter()
        .for_each(|head| *html += &format!("<th>{head}"));
    html.push('\n');
    for (name, rows) in groups(rows) {
        let (name, unit) = (escape(&name), escape(&rows[0].unit()));
        writeln!(
            html,
            "<tr class=\"group\"><th colspan=\"9\">{name} <span class=\"soft\">({unit})</span>"
        )?;
        for row in rows {
            write!(html, "<tr><td>{}", escape(row.group().1))?;
            let cells = row.cells.iter().map(|cell| match cell {
                Cell::Cannot(why) => (
                    format!(" title=\"{}\" class=\"unclear\"", escape(why)),
                    number(cell),
                ),
                _ => (String::new(), number(cell)),
            });
            let (to_c, to_better) = (row.to_c(), row.to_better());
            let standing = row.standing();
            let class = match standing {
                Standing::Won | Standing::Alone => "won",
                Standing::Lost => "lost",
                _ => "unclear",
            };
            let colour = format!(" class=\"{class}\"");
            let (goal, reached) = match row.goal() {
                Some((goal, verdict)) => (
                    format!("{goal:.2} {verdict}"),
                    match verdict {
                        "met" => "pass",
                        "missed" => "fail",
                        _ => "unclear",
                    },
                ),
                None => (String::new(), "unclear"),
            };
            let cells = cells.chain([
                (String::new(), ratio(&to_c)),
                (colour.clone(), ratio(&to_better)),
                (colour, standing.name().to_string()),
                (format!(" class=\"{reached}\""), goal),
                (String::new(), spread(&to_better)),
            ]);
            for (head, (attributes, text)) in heads[1..].iter().zip(cells) {
                write!(html, "<td data-head=\"{head}\"{attributes}>{text}")?;
            }
            // An empty cell is to be empty, without the end of the line.
            html.push_str("</tr>\n");
        }
    }
    html.push_str("</table></div>\n");
    let mut whys = BTreeSet::new();
    for row in rows {
        for (cell, head) in row.cells.iter().zip(HEADS) {
            if let Cell::Cannot(why) = cell {
                let load = row.load.split(": ").next().unwrap_or_default();
                whys.insert(format!("{load}, {head}: cannot: {why}"));
            }
        }
    }
    for why in whys {
        writeln!(html, "<p class=\"soft\">{}</p>", escape(&why))?;
    }
    Ok(())
}

const PERCENTILES: [(&str, f64); 4] = [
    ("p50", 50.0),
    ("p99", 99.0),
    ("p99.9", 99.9),
    ("max", 100.0),
];

/// How long the unlucky wait, over all runs.
fn latencies(html: &mut String, rows: &[Row]) -> Outcome {
    html.push_str("<h2>Latencies</h2>\n<div class=\"card\"><table>\n<tr class=\"heads\"><th>load");
    for (head, _) in PERCENTILES {
        write!(html, "<th>{head}")?;
    }
    html.push('\n');
    for row in rows.iter().filter(|row| !row.latencies[0].is_empty()) {
        let (name, unit) = (escape(&row.name()), escape(&row.unit()));
        writeln!(
            html,
            "<tr class=\"group\"><th colspan=\"5\">{name} <span class=\"soft\">({unit})</span>"
        )?;
        for (head, seen) in HEADS.iter().zip(&row.latencies) {
            write!(html, "<tr><td>{head}")?;
            for (percentile, share) in PERCENTILES {
                let value = seen.value_at_percentile(share);
                write!(html, "<td data-head=\"{percentile}\">{value}")?;
            }
            html.push_str("</tr>\n");
        }
    }
    html.push_str("</table></div>\n");
    Ok(())
}

fn plots(html: &mut String, rows: &[Row]) -> Outcome {
    html.push_str(
        "<h2>Plots</h2>\n<p class=\"soft\">A line for each load, on a logarithmic scale: the same distance \
         is the same ratio everywhere. What grows with the number of buffers, on a scale from 0.</p>\n",
    );
    for (name, rows) in groups(rows) {
        let how = match rows[0].source {
            Source::Profile => "counted in the allocator itself, by the emulator",
            Source::Count => "one emulated CPU, the same each time",
            Source::Latency => {
                "one emulated CPU; the worst of each run, median and range of the runs"
            }
            Source::Time => "median and range of the runs; of latencies, the worst of each",
            Source::Emulated => {
                "emulated, so no times; median and range of the runs; of latencies, the worst of each"
            }
        };
        let unit = escape(&rows[0].unit());
        writeln!(
            html,
            "<h3>{} <span class=\"soft\">({unit}; {how})</span></h3>\n<div class=\"card\">",
            escape(&name)
        )?;
        let svgs = binder_page::plot(|width| plot::svg(&rows, width));
        html.push_str(&svgs.context(&name)?);
        html.push_str("</div>\n");
    }
    Ok(())
}

/// What the kernels' configurations don't have in common.
fn configurations(html: &mut String, folder: &Path) -> Outcome {
    let mut options = Vec::new();
    for kernel in KERNELS {
        let path = folder.join(format!("config-{kernel}"));
        let text = fs::read_to_string(&path).context(&path.display().to_string())?;
        options.push(text.lines().map(String::from).collect::<BTreeSet<_>>());
    }
    let common = options[1..]
        .iter()
        .fold(options[0].clone(), |common, other| &common & other);
    html.push_str("<h2>Configurations</h2>\n<p class=\"soft\">All the rest is the same.</p>\n<div class=\"card\">");
    let terms = HEADS.iter().zip(&options).map(|(head, options)| {
        let own: Vec<_> = (options - &common)
            .iter()
            .map(|option| escape(option))
            .collect();
        let own = if own.is_empty() {
            "nothing".into()
        } else {
            own.join("<br>")
        };
        (*head, format!("<code>{own}</code>"))
    });
    html.push_str(&binder_page::terms(terms));
    html.push_str("</div>\n");
    Ok(())
}

/// Links to all else in the folder.
fn files(html: &mut String, folder: &Path) -> Outcome {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder)? {
        names.insert(entry?.file_name().to_string_lossy().into_owned());
    }
    names.remove("index.html");
    html.push_str("<h2>Files</h2>\n<div class=\"card\"><ul class=\"files\">\n");
    for name in names.iter().map(|name| escape(name)) {
        writeln!(html, "<li><a href=\"{name}\">{name}</a>")?;
    }
    html.push_str("</ul></div>\n");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::made_up::Folder;

    fn html() -> String {
        page(Folder::new().path()).unwrap_or_else(|_| panic!("a page is made"))
    }

    /// The row of the table that has these cells.
    fn row<'a>(html: &'a str, cells: &str) -> &'a str {
        html.lines()
            .find(|line| line.contains(cells))
            .unwrap_or_else(|| panic!("no row {cells}"))
    }

    #[test]
    fn shows_what_is_lost() {
        let html = html();
        let won = row(&html, "data-head=\"ours\">90<");
        assert!(
            won.contains("class=\"won\">0.900") && won.contains("1.00 met"),
            "{won}"
        );
        // The better peer isn't always C.
        let lost = row(&html, "data-head=\"ours\">110<");
        assert!(
            lost.contains("class=\"lost\">1.158") && lost.contains("1.00 missed"),
            "{lost}"
        );
        assert!(html.contains("1 of 3 goals met"));
        assert!(html.contains("3 won, 1 lost, 1 even, 1 unclear, 1 not measured"));
    }

    #[test]
    fn shows_what_a_peer_cannot_do() {
        let html = html();
        let row = row(&html, "data-head=\"ours\">40<");
        assert!(
            row.contains(">cannot<") && row.contains("data-head=\"Rust\">?<"),
            "{row}"
        );
        assert_eq!(
            html.matches("one app, C: cannot: its shrinker is &lt;blind&gt;")
                .count(),
            1
        );
    }

    #[test]
    fn knows_when_more_is_better() {
        let html = html();
        assert!(html.contains("one app <span class=\"soft\">(KiB, more is better)"));
        // 210 KiB of ours by 200 of the better peer's.
        let row = row(&html, "data-head=\"ours\">210<");
        assert!(row.contains("class=\"won\">0.952"), "{row}");
    }

    #[test]
    fn shows_latencies_of_all_runs() {
        // The median of 10 and 30 ns, and the worst.
        let rows = html();
        let row = row(&rows, "<td>ours<td data-head=\"p50\">10<");
        assert!(row.contains("data-head=\"max\">30<"), "{row}");
    }

    #[test]
    fn shows_how_far_runs_lie_apart() {
        assert!(row(&html(), "data-head=\"ours\">30<").contains("0.50 to 1.50"));
    }

    #[test]
    fn needs_nothing_else() {
        let html = html();
        assert!(!html.contains("<script") && !html.contains("src=") && !html.contains("@import"));
        assert!(html.contains("href=\"icount-rust.json\""));
        assert!(html.contains("Linux &lt;ours&gt;"));
        assert!(html.contains("CONFIG_OF_rust=y") && !html.contains("CONFIG_SAME"));
        // Four groups that were counted, one that was timed, each for two widths.
        assert_eq!(html.matches("<svg class=").count(), 10);
        // For lab/bench-look.
        if let Some(path) = std::env::var_os("BINDER_BENCH_PAGE") {
            fs::write(path, html).unwrap();
        }
    }
}
