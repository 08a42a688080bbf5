// SPDX-License-Identifier: GPL-2.0

//! The loads.

mod apps;
mod cold;
mod latency;
mod memory;
mod oneway;
mod reading;
mod recorded;
mod round_trip;
mod squeezed;
mod throughput;
mod warm;

use crate::{record::Figure, Plan};
use binder_raw::outcome::Outcome;

pub struct Load {
    pub name: &'static str,
    pub run: fn(&Plan, &mut Vec<Figure>) -> Outcome,
}

pub const ALL: &[Load] = &[
    Load {
        name: "warm",
        run: warm::run,
    },
    Load {
        name: "growth",
        run: warm::growth,
    },
    Load {
        name: "oneway",
        run: oneway::run,
    },
    Load {
        name: "first-touch",
        run: cold::first_touch,
    },
    Load {
        name: "reclaim",
        run: cold::reclaim,
    },
    Load {
        name: "round-trip",
        run: round_trip::run,
    },
    Load {
        name: "throughput",
        run: throughput::run,
    },
    Load {
        name: "latency",
        run: latency::run,
    },
    Load {
        name: "memory-pressure",
        run: apps::pressure,
    },
    Load {
        name: "one-app",
        run: apps::one_of_many,
    },
    Load {
        name: "recorded-trace",
        run: recorded::run,
    },
    Load {
        name: "metadata",
        run: memory::run,
    },
    Load {
        name: "squeezed-receiver",
        run: squeezed::at_max,
    },
    Load {
        name: "memory.high",
        run: squeezed::above_high,
    },
    Load {
        name: "reading-state",
        run: reading::run,
    },
];

/// Adds the usual, the unlucky and the worst of some times.
fn percentiles(figures: &mut Vec<Figure>, name: &str, times: &[u64]) {
    let mut times = times.to_vec();
    times.sort_unstable();
    for (what, percent) in [("p50", 50), ("p99", 99), ("worst", 100)] {
        let index = (times.len() * percent).div_ceil(100).max(1) - 1;
        figures.push(Figure::cost(format!("{name}: {what}"), vec![times[index]]));
    }
}

/// A size as people write it.
fn size(bytes: usize) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..0x10_0000 => format!("{} KiB", bytes / 1024),
        _ => format!("{} MiB", bytes / 0x10_0000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_is_in_no_percentile() {
        let of = |times: &[u64]| -> Vec<f64> {
            let mut figures = Vec::new();
            percentiles(&mut figures, "load", times);
            figures.iter().map(|figure| figure.median).collect()
        };
        let times: Vec<_> = (1..=200).rev().collect();
        assert_eq!(of(&times), [100.0, 198.0, 200.0]);
        assert_eq!(of(&[7]), [7.0; 3]);
    }
}
