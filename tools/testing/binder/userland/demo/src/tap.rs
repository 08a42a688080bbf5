// SPDX-License-Identifier: GPL-2.0

//! Checks and how they are told: TAP for programs, with everything else as comments.

use anyhow::Result;

pub enum Outcome {
    Pass,
    Fail,
    Skip,
}

pub struct Check {
    pub outcome: Outcome,
    pub name: String,
    /// The numbers behind the outcome, or why it was skipped.
    pub detail: String,
}

/// The checks so far, in the order in which they were made.
#[derive(Default)]
pub struct Tap {
    pub checks: Vec<Check>,
}

impl Tap {
    pub fn check(&mut self, name: &str, holds: bool, detail: String) {
        let (outcome, status) = if holds {
            (Outcome::Pass, "ok")
        } else {
            (Outcome::Fail, "not ok")
        };
        println!("{status} {} - {name}", self.checks.len() + 1);
        println!("#      {detail}");
        self.checks.push(Check {
            outcome,
            name: name.to_owned(),
            detail,
        });
    }

    /// A check that is made up of steps, any of which may fail.
    pub fn attempt(&mut self, name: &str, result: Result<String>) {
        match result {
            Ok(detail) => self.check(name, true, detail),
            Err(e) => self.check(name, false, format!("{e:#}")),
        }
    }

    pub fn skip(&mut self, name: &str, why: &str) {
        println!("ok {} - {name} # SKIP {why}", self.checks.len() + 1);
        self.checks.push(Check {
            outcome: Outcome::Skip,
            name: name.to_owned(),
            detail: why.to_owned(),
        });
    }

    pub fn passed(&self) -> bool {
        !self
            .checks
            .iter()
            .any(|check| matches!(check.outcome, Outcome::Fail))
    }

    /// The last line: what it all comes to.
    pub fn verdict(&self) -> String {
        let count = |wanted: fn(&Outcome) -> bool| {
            self.checks
                .iter()
                .filter(|check| wanted(&check.outcome))
                .count()
        };
        let passed = count(|o| matches!(o, Outcome::Pass));
        let failed = count(|o| matches!(o, Outcome::Fail));
        let skipped = count(|o| matches!(o, Outcome::Skip));
        let word = if self.passed() { "PASS" } else { "FAIL" };
        format!("demo: {word} ({passed} passed, {failed} failed, {skipped} skipped)")
    }
}
