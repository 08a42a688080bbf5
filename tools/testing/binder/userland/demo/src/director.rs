// SPDX-License-Identifier: GPL-2.0

//! The director: has the demo played, tells what came of it, writes the report.

use std::{fs, process::ExitCode, time::Instant};

use anyhow::{Context, Result};

use crate::{
    cgroup, report::Page, sampler::Sampler, stage::Stage, steps::Show, tap::Tap, DirectArgs,
};

/// Ends with the verdict line, whatever happens before.
pub fn run(args: &DirectArgs) -> ExitCode {
    match play(args) {
        Ok(tap) => {
            println!("{}", tap.verdict());
            if tap.passed() {
                return ExitCode::SUCCESS;
            }
        }
        Err(e) => {
            println!("Bail out! {e:#}");
            println!("demo: FAIL (could not run)");
        }
    }
    ExitCode::FAILURE
}

/// Returns the checks with their outcomes; an error where there is nothing to check.
fn play(args: &DirectArgs) -> Result<Tap> {
    let begin = Instant::now();
    println!("TAP version 13");
    fs::create_dir_all(&args.report).with_context(|| args.report.display().to_string())?;
    let without_memcg = if args.no_memcg {
        Some("--no-memcg")
    } else {
        cgroup::why_not()
    };
    let stage = Stage::set_up(args, without_memcg.is_none())?;
    let sampler = Sampler::start(stage.shrinker.clone());
    let mut show = Show {
        stage,
        sampler,
        without_memcg,
        tap: Tap::default(),
        tables: Vec::new(),
    };
    if let Err(e) = show.run() {
        let name = "the demo runs to its end";
        show.tap.check(name, false, format!("{e:#}"));
    }

    let Show {
        stage,
        sampler,
        tap,
        tables,
        ..
    } = show;
    println!("1..{}", tap.checks.len());
    let history = sampler.finish()?;
    let named = stage.named().map(|(name, cgroup)| (*name, cgroup.inode));
    let page = Page {
        tap: &tap,
        tables: &tables,
        history: &history,
        cgroups: &named.collect::<Vec<_>>(),
    };
    let path = page.write(&args.report)?;
    drop(stage);
    println!(
        "# report: {} ({:.1} s)",
        path.display(),
        begin.elapsed().as_secs_f64()
    );
    Ok(tap)
}
