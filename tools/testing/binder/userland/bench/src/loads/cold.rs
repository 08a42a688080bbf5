// SPDX-License-Identifier: GPL-2.0

//! Pages that a buffer needs and nobody has yet, and pages that the shrinker takes back.

use crate::{clock::measure, phase::Phase, record::Figure, wire::Pair, Plan};
use binder_raw::{
    binder::{KIB, MIB, PAGE},
    check,
    outcome::Outcome,
    shrinker,
};

/// The first transaction into a new mapping, beside the second, which finds all pages there.
pub fn first_touch(plan: &Plan, figures: &mut Vec<Figure>) -> Outcome {
    for size in [4 * KIB, 64 * KIB, MIB] {
        let name = format!("first touch: {}", super::size(size));
        let mut colds = Vec::new();
        let mut warms = Vec::new();
        let rounds = (plan.repetitions / 20).max(10);
        let _phase = Phase::begin(&name, rounds);
        for _ in 0..rounds {
            let mut pair = Pair::new("bench-cold", 4 * MIB)?;
            for sends in [&mut colds, &mut warms] {
                let send = pair.send(size)?;
                let buffer = pair.receive()?;
                pair.free(buffer)?;
                sends.push(send);
            }
        }
        let extra = colds
            .iter()
            .zip(&warms)
            .map(|(cold, warm)| cold.saturating_sub(*warm))
            .collect();
        figures.push(Figure::cost(format!("{name}: send"), colds));
        figures.push(Figure::cost(
            format!("{name}: more than a warm send"),
            extra,
        ));
    }
    Ok(())
}

const PAGES: usize = 512;

/// All pages of a mapping in one scan.
pub fn reclaim(plan: &Plan, figures: &mut Vec<Figure>) -> Outcome {
    shrinker::need()?;
    shrinker::scan_all(u64::MAX);
    for keep_every_second in [false, true] {
        let (name, idle) = match keep_every_second {
            false => ("reclaim: contiguous, a page", PAGES),
            true => ("reclaim: every second page in use, a page", PAGES / 2),
        };
        let mut samples = Vec::new();
        let mut pair = Pair::new("bench-reclaim", 4 * MIB)?;
        for _ in 0..(plan.repetitions / 50).max(5) {
            let buffers = (0..PAGES)
                .map(|_| pair.leave(PAGE))
                .collect::<Outcome<Vec<_>>>()?;
            for (index, buffer) in buffers.iter().enumerate() {
                if !keep_every_second || index % 2 == 1 {
                    pair.free(*buffer)?;
                }
            }
            let before = shrinker::total();
            let phase = Phase::begin(name, idle);
            let (scan, ()) = measure(|| shrinker::scan_each(u64::MAX >> 1));
            drop(phase);
            let freed = before - shrinker::total();
            check!(freed as usize >= idle, "{freed} pages freed, not {idle}");
            samples.push(scan);
            for buffer in buffers.iter().step_by(2).filter(|_| keep_every_second) {
                pair.free(*buffer)?;
            }
        }
        figures.push(Figure::new(
            name,
            crate::clock::unit(),
            samples,
            idle as u64,
        ));
    }
    Ok(())
}
