// SPDX-License-Identifier: GPL-2.0

//! What was measured.

use crate::clock;
use serde::{Deserialize, Serialize};

/// All that one run of the program measured.
#[derive(Serialize, Deserialize)]
pub struct Report {
    pub kernel: String,
    pub unit: String,
    pub figures: Vec<Figure>,
    /// What was measured between two marks, in this order (see [`crate::phase`]).
    pub phases: Vec<Phase>,
    /// What this kernel can't do.
    #[serde(default)]
    pub cannot: Vec<Cannot>,
}

/// Loads that a kernel can't do.
#[derive(Clone, Serialize, Deserialize)]
pub struct Cannot {
    /// What the names of their figures begin with.
    pub load: String,
    pub why: String,
}

/// A phase of the work, in which the same was done some times.
#[derive(Serialize, Deserialize)]
pub struct Phase {
    pub name: String,
    pub rounds: usize,
}

/// One figure of a load.
#[derive(Serialize, Deserialize)]
pub struct Figure {
    pub load: String,
    pub unit: String,
    pub samples: usize,
    pub min: f64,
    pub median: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

impl Figure {
    /// Sums samples up, each of which is for `parts` equal parts.
    pub fn new(
        load: impl Into<String>,
        unit: impl Into<String>,
        mut samples: Vec<u64>,
        parts: u64,
    ) -> Self {
        samples.sort_unstable();
        let at = |share: f64| {
            let index = ((samples.len() - 1) as f64 * share).round() as usize;
            samples[index] as f64 / parts as f64
        };
        Figure {
            load: load.into(),
            unit: unit.into(),
            samples: samples.len(),
            min: at(0.0),
            median: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
            max: at(1.0),
        }
    }

    /// Samples of [`clock::now`].
    pub fn cost(load: impl Into<String>, samples: Vec<u64>) -> Self {
        Figure::new(load, clock::unit(), samples, 1)
    }
}
