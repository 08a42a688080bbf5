// SPDX-License-Identifier: GPL-2.0

//! A buffer is allocated and freed where all pages are there already, next to others in use.

use crate::{clock::measure, phase::Phase, record::Figure, wire::Pair, Plan};
use binder_raw::{
    binder::{KIB, MIB},
    outcome::Outcome,
};

pub fn run(plan: &Plan, figures: &mut Vec<Figure>) -> Outcome {
    for size in [128, 4 * KIB, 64 * KIB] {
        for outstanding in [1, 16, 256] {
            next_to(plan, figures, size, outstanding)?;
        }
    }
    Ok(())
}

/// The one that is measured counts as outstanding, too.
fn next_to(plan: &Plan, figures: &mut Vec<Figure>, size: usize, outstanding: usize) -> Outcome {
    let name = format!("warm: {}, {outstanding} outstanding", super::size(size));
    let mut pair = Pair::new("bench-warm", 4 * MIB)?;
    for _ in 1..outstanding {
        pair.leave(128)?;
    }
    let (mut sends, mut frees) = (Vec::new(), Vec::new());
    let mut round = |pair: &mut Pair| -> Outcome {
        let send = pair.send(size)?;
        let buffer = pair.receive()?;
        let (free, result) = measure(|| pair.free(buffer));
        result?;
        sends.push(send);
        frees.push(free);
        Ok(())
    };
    for _ in 0..16 {
        round(&mut pair)?;
    }
    let _phase = Phase::begin(&name, plan.repetitions);
    for _ in 0..plan.repetitions {
        round(&mut pair)?;
    }
    sends.drain(..16);
    frees.drain(..16);
    figures.push(Figure::cost(format!("{name}: send"), sends));
    figures.push(Figure::cost(format!("{name}: free"), frees));
    Ok(())
}
