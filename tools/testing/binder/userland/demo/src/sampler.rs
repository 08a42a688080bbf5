// SPDX-License-Identifier: GPL-2.0

//! Watches the idle pages over time, for the plot.

use std::{
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{anyhow, Result};

use crate::shrinker::{Counts, Shrinker};

pub const INTERVAL: Duration = Duration::from_millis(50);

/// A moment at which something happened.
pub struct Mark {
    pub seconds: f64,
    pub label: String,
}

/// What the sampler has seen.
pub struct History {
    pub samples: Vec<(f64, Counts)>,
    pub marks: Vec<Mark>,
}

pub struct Sampler {
    start: Instant,
    marks: Vec<Mark>,
    /// Dropping it ends the thread.
    stop: Sender<()>,
    thread: JoinHandle<Result<Vec<(f64, Counts)>>>,
}

impl Sampler {
    pub fn start(shrinker: Shrinker) -> Self {
        let start = Instant::now();
        let (stop, stopped) = mpsc::channel();
        let thread = thread::spawn(move || {
            let mut samples = Vec::new();
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(INTERVAL) {
                samples.push((start.elapsed().as_secs_f64(), shrinker.counts()?));
            }
            Ok(samples)
        });
        Self {
            start,
            marks: Vec::new(),
            stop,
            thread,
        }
    }

    pub fn mark(&mut self, label: &str) {
        let seconds = self.start.elapsed().as_secs_f64();
        self.marks.push(Mark {
            seconds,
            label: label.to_owned(),
        });
    }

    pub fn finish(self) -> Result<History> {
        drop(self.stop);
        let samples = self
            .thread
            .join()
            .map_err(|_| anyhow!("the sampler panicked"))??;
        Ok(History {
            samples,
            marks: self.marks,
        })
    }
}
