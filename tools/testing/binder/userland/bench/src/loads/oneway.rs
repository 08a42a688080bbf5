// SPDX-License-Identifier: GPL-2.0

//! Oneway transactions sent while many wait to be received, with much and with little space left
//! for them. Below a fifth, the driver looks for the process that has used it up.

use crate::{clock::measure, phase::Phase, record::Figure, wire::Pair, Plan};
use binder_raw::{binder::MIB, outcome::Outcome};

const MAPPING: usize = 4 * MIB;
/// Half of the mapping is for oneway transactions.
const SPACE: usize = MAPPING / 2;
const SIZE: usize = 128;

pub fn run(plan: &Plan, figures: &mut Vec<Figure>) -> Outcome {
    for outstanding in [10, 100, 1000, 4000] {
        waiting(plan, figures, outstanding, None)?;
    }
    for outstanding in [10, 100, 1000, 4000] {
        // A tenth is left for them and what is sent while measuring.
        let filler = SPACE - SPACE / 10 - outstanding * SIZE;
        waiting(plan, figures, outstanding, Some(filler))?;
    }
    Ok(())
}

fn waiting(
    plan: &Plan,
    figures: &mut Vec<Figure>,
    outstanding: usize,
    filler: Option<usize>,
) -> Outcome {
    let name = format!(
        "oneway: {outstanding} outstanding, {} space",
        if filler.is_some() { "little" } else { "much" }
    );
    let mut pair = Pair::new("bench-oneway", MAPPING)?;
    if let Some(filler) = filler {
        // Received and kept. As a node gets one oneway transaction at a time, it is another node's.
        let node = pair.node()?;
        pair.sender.send(node, filler)?;
        pair.receive()?;
    }
    let (mut sends, mut drains) = (Vec::new(), Vec::new());
    for _ in 0..outstanding {
        pair.send(SIZE)?;
    }
    let warm_up = 64;
    let mut phase = None;
    for round in 0..warm_up + plan.repetitions {
        if round == warm_up {
            phase = Some(Phase::begin(&name, plan.repetitions));
        }
        let send = pair.send(SIZE)?;
        let (drain, result) = measure(|| {
            let buffer = pair.receive()?;
            pair.free(buffer)
        });
        result?;
        if round >= warm_up {
            sends.push(send);
            drains.push(drain);
        }
    }
    drop(phase);
    figures.push(Figure::cost(format!("{name}: send"), sends));
    figures.push(Figure::cost(format!("{name}: receive and free"), drains));
    Ok(())
}
