// SPDX-License-Identifier: GPL-2.0

//! The loads.

mod apps;
mod cold;
mod latency;
mod memory;
mod oneway;
mod recorded;
mod round_trip;
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
];

/// A size as people write it.
fn size(bytes: usize) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..0x10_0000 => format!("{} KiB", bytes / 1024),
        _ => format!("{} MiB", bytes / 0x10_0000),
    }
}
