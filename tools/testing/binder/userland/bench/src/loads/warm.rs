// SPDX-License-Identifier: GPL-2.0

//! A buffer is allocated and freed where all pages are there already, next to others in use.

use crate::{clock::measure, phase::Phase, record::Figure, wire::Pair, Plan};
use binder_raw::{
    binder::{KIB, MIB},
    outcome::Outcome,
};

const PHASES: usize = 5;

pub fn run(plan: &Plan, figures: &mut Vec<Figure>) -> Outcome {
    for size in [128, 4 * KIB, 64 * KIB] {
        for outstanding in [1, 16, 256] {
            let name = format!("warm: {}, {outstanding} outstanding", super::size(size));
            let mut pair = Pair::new("bench-warm", 4 * MIB)?;
            // The one that is measured counts as outstanding, too.
            for _ in 1..outstanding {
                pair.leave(128)?;
            }
            send_and_free(plan, figures, &name, &mut pair, size)?;
        }
    }
    Ok(())
}

/// The same next to up to far more buffers than a process has, with as many holes between them.
pub fn growth(plan: &Plan, figures: &mut Vec<Figure>) -> Outcome {
    for outstanding in [1, 10, 100, 1000, 10_000] {
        let name = format!("growth: {outstanding} in use");
        let mut pair = Pair::new("bench-growth", 4 * MIB)?;
        let buffers = (0..2 * outstanding)
            .map(|_| pair.leave(128))
            .collect::<Outcome<Vec<_>>>()?;
        for buffer in buffers.iter().step_by(2) {
            pair.free(*buffer)?;
        }
        send_and_free(plan, figures, &name, &mut pair, 128)?;
    }
    Ok(())
}

fn send_and_free(
    plan: &Plan,
    figures: &mut Vec<Figure>,
    name: &str,
    pair: &mut Pair,
    size: usize,
) -> Outcome {
    let (mut sends, mut frees) = (Vec::new(), Vec::new());
    let mut round = || -> Outcome {
        let send = pair.send(size)?;
        let buffer = pair.receive()?;
        let (free, result) = measure(|| pair.free(buffer));
        result?;
        sends.push(send);
        frees.push(free);
        Ok(())
    };
    for _ in 0..16 {
        round()?;
    }
    // In several phases: a timer that fires in one of them doesn't change their median.
    for _ in 0..PHASES {
        let _phase = Phase::begin(name, plan.repetitions / PHASES);
        for _ in 0..plan.repetitions / PHASES {
            round()?;
        }
    }
    sends.drain(..16);
    frees.drain(..16);
    figures.push(Figure::cost(format!("{name}: send"), sends));
    figures.push(Figure::cost(format!("{name}: free"), frees));
    Ok(())
}
