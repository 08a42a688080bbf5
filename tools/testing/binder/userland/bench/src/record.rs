// SPDX-License-Identifier: GPL-2.0

//! What was measured.

use crate::clock;
use hdrhistogram::Histogram;
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
    /// Of this, more is better.
    #[serde(default)]
    pub more_is_better: bool,
    /// Of latencies, how often each was seen, to three digits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub histogram: Vec<(u64, u64)>,
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
            more_is_better: false,
            histogram: Vec::new(),
        }
    }

    /// Something that is measured only once.
    pub fn one(load: impl Into<String>, unit: impl Into<String>, value: usize) -> Self {
        Figure::new(load, unit, vec![value as u64], 1)
    }

    pub fn more_is_better(self) -> Self {
        Figure {
            more_is_better: true,
            ..self
        }
    }

    /// Samples of [`clock::now`].
    pub fn cost(load: impl Into<String>, samples: Vec<u64>) -> Self {
        Figure::new(load, clock::unit(), samples, 1)
    }

    /// The same, where it is of interest how long the unlucky wait.
    pub fn latency(load: impl Into<String>, samples: Vec<u64>) -> Self {
        let mut seen = latencies();
        for sample in &samples {
            seen += *sample;
        }
        let histogram = seen
            .iter_recorded()
            .map(|step| (step.value_iterated_to(), step.count_at_value()))
            .collect();
        Figure {
            histogram,
            ..Figure::cost(load, samples)
        }
    }
}

/// An empty histogram of latencies.
pub fn latencies() -> Histogram<u64> {
    Histogram::new(3).expect("three digits are fine")
}
