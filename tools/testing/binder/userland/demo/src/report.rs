// SPDX-License-Identifier: GPL-2.0

//! The report: one file of HTML that needs nothing else.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context, Result};
use binder_page::escape;

use crate::{
    plot::{self, Curve},
    sampler::History,
    shrinker::Counts,
    snapshot::{Row, Snapshot, HEADS},
    tap::{Outcome, Tap},
};

const CSS: &str = include_str!("report.css");

/// What the report is made of.
pub struct Page<'a> {
    pub tap: &'a Tap,
    pub tables: &'a [Snapshot],
    pub history: &'a History,
    /// Names and inode numbers; without memory cgroups, none.
    pub cgroups: &'a [(&'static str, u64)],
}

impl Page<'_> {
    /// Writes index.html into `directory`.
    pub fn write(&self, directory: &Path) -> Result<PathBuf> {
        let path = directory.join("index.html");
        fs::write(&path, self.html()?).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    fn html(&self) -> Result<String> {
        let class = if self.tap.passed() { "pass" } else { "fail" };
        let verdict = escape(&self.tap.verdict());
        let mut html = binder_page::begin(&self.tap.verdict(), CSS);
        writeln!(
            html,
            "<h1>Binder buffer pages, by cgroup</h1>\n<p class=\"verdict {class}\">{verdict}</p>"
        )?;
        self.circumstances(&mut html);
        self.plot(&mut html)?;
        self.checks(&mut html)?;
        self.tables(&mut html)?;
        Ok(html)
    }

    fn circumstances(&self, html: &mut String) {
        let uname = rustix::system::uname();
        let kernel = [
            uname.sysname(),
            uname.release(),
            uname.version(),
            uname.machine(),
        ]
        .map(|word| word.to_string_lossy().into_owned())
        .join(" ");
        let cmdline = fs::read_to_string("/proc/cmdline").unwrap_or_default();
        let command = std::env::args().collect::<Vec<_>>().join(" ");
        let code = |text: &str| format!("<code>{}</code>", escape(text));
        html.push_str(&binder_page::terms([
            ("Kernel", escape(&kernel)),
            ("Date", httpdate::fmt_http_date(SystemTime::now())),
            ("Command", code(&command)),
            ("Kernel command line", code(cmdline.trim())),
        ]));
    }

    fn plot(&self, html: &mut String) -> Result<()> {
        let mut curves: Vec<Curve<'_>> = Vec::new();
        for &(name, inode) in self.cgroups {
            let idle = move |counts: &Counts| counts.of(inode);
            curves.push(Curve {
                name,
                idle: Box::new(idle),
            });
        }
        let inodes: Vec<u64> = self.cgroups.iter().map(|&(_, inode)| inode).collect();
        let samples = &self.history.samples;
        if curves.is_empty() {
            curves.push(Curve {
                name: "all processes",
                idle: Box::new(Counts::total),
            });
        } else if samples
            .iter()
            .any(|(_, counts)| counts.elsewhere(&inodes) > 0)
        {
            // A driver that charges its pages to nobody.
            let idle = move |counts: &Counts| counts.elsewhere(&inodes);
            curves.push(Curve {
                name: "all other cgroups",
                idle: Box::new(idle),
            });
        }
        html.push_str("<h2>Idle pages over time</h2>\n<div class=\"card\">\n");
        html.push_str(&binder_page::plot(|width| {
            plot::svg(self.history, &curves, width)
        })?);
        html.push_str("<ol class=\"steps\">\n");
        for mark in &self.history.marks {
            writeln!(html, "<li>{}", escape(&mark.label))?;
        }
        html.push_str("</ol>\n</div>\n");
        Ok(())
    }

    fn checks(&self, html: &mut String) -> Result<()> {
        html.push_str("<h2>Checks</h2>\n<div class=\"card\">\n<ul class=\"checks\">\n");
        for check in &self.tap.checks {
            let class = match check.outcome {
                Outcome::Pass => "pass",
                Outcome::Fail => "fail",
                Outcome::Skip => "skip",
            };
            let (name, detail) = (escape(&check.name), escape(&check.detail));
            writeln!(
                html,
                "<li><b class=\"{class}\">{class}</b> {name}<small>{detail}</small>"
            )?;
        }
        html.push_str("</ul>\n</div>\n");
        Ok(())
    }

    fn tables(&self, html: &mut String) -> Result<()> {
        html.push_str(
            "<h2>Where the pages are</h2>\n<p class=\"soft\">In use, lru and free: what the \
             driver says of the process's mapping, in pages; peak: the most of them that were \
             ever there. Idle: what the shrinker counts for the cgroup.</p>\n",
        );
        for (index, table) in self.tables.iter().enumerate() {
            // The first two show the point; the rest is there for who wants it.
            let open = if index < 2 { " open" } else { "" };
            let (title, total) = (escape(&table.title), table.total);
            let heads: String = HEADS.iter().map(|head| format!("<th>{head}")).collect();
            writeln!(
                html,
                "<details{open}><summary>After: {title}, {total} idle pages in all</summary>\n\
                 <div class=\"card\"><table>\n<tr>{heads}"
            )?;
            for cells in table.rows.iter().map(Row::cells) {
                let cells: String = cells
                    .iter()
                    .map(|cell| format!("<td>{}", escape(cell)))
                    .collect();
                writeln!(html, "<tr>{cells}")?;
            }
            html.push_str("</table></div></details>\n");
        }
        Ok(())
    }
}
