// SPDX-License-Identifier: GPL-2.0

//! The driver's events, recorded by tracefs.

use crate::{
    check, check_eq, fail,
    outcome::{skip, Context, Outcome},
};
use rustix::process::Pid;
use std::{
    fs,
    path::{Path, PathBuf},
};

const DIR: &str = "/sys/kernel/tracing";
const GROUP: &str = "rust_binder";

/// Where the events are described. Skips the test if there are none.
pub fn group() -> Outcome<PathBuf> {
    if !Path::new(DIR).join("trace").exists() {
        return skip("no tracefs in /sys/kernel/tracing: a kernel without FTRACE");
    }
    let group = Path::new(DIR).join("events").join(GROUP);
    check!(group.exists(), "the driver has no events");
    Ok(group)
}

/// An event: whose doing it was, and what it tells, as `name: field=value ...`.
#[derive(Debug, PartialEq, Eq)]
pub struct Event {
    pub task: i32,
    pub text: String,
}

impl Event {
    /// Takes in a line of `trace`, or of what trace-cmd reports.
    pub fn parse(line: &str) -> Option<Self> {
        let (task, rest) = line.split_once('[')?;
        let (_, task) = task.trim_end().rsplit_once('-')?;
        let (_, text) = rest.split_once(": ")?;
        let (name, fields) = text.split_once(':')?;
        Some(Event {
            task: task.parse().ok()?,
            text: format!("{name}: {}", fields.trim()),
        })
    }

    pub fn name(&self) -> &str {
        self.text.split(':').next().unwrap_or_default()
    }

    /// The number that a field has.
    pub fn field(&self, name: &str) -> Outcome<u64> {
        let mut words = self.text.split_whitespace();
        let value = words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        match value {
            Some(value) => Ok(value.parse()?),
            None => fail!("'{}' has no {name}", self.text),
        }
    }
}

/// A recording of the driver's events. It ends when this is dropped.
pub struct Recording {
    dir: PathBuf,
}

impl Recording {
    /// Switches on those of the events whose names begin with one of `names`.
    pub fn start(names: &[&str]) -> Outcome<Self> {
        group()?;
        let name = format!("selftest-{}", std::process::id());
        let recording = Recording {
            dir: Path::new(DIR).join("instances").join(name),
        };
        fs::create_dir(&recording.dir).context("instances")?;
        recording.set("buffer_size_kb", "1024")?;
        // The order of events on different CPUs.
        recording.set("trace_clock", "counter")?;
        for event in fs::read_dir(recording.dir.join("events").join(GROUP))? {
            let event = event?.path();
            let file = event.file_name().unwrap_or_default().to_string_lossy();
            if names.iter().any(|name| file.starts_with(name)) && event.is_dir() {
                fs::write(event.join("enable"), "1").context("enable")?;
            }
        }
        Ok(recording)
    }

    fn set(&self, file: &str, value: &str) -> Outcome {
        fs::write(self.dir.join(file), value).context(file)
    }

    /// All events since the last call.
    pub fn take_all(&self) -> Outcome<Vec<Event>> {
        let text = fs::read_to_string(self.dir.join("trace"))?;
        self.set("trace", "")?;
        let mut events = Vec::new();
        for line in text.lines() {
            if let Some(counts) = line.strip_prefix("# entries-in-buffer/entries-written: ") {
                let mut numbers = counts.split([' ', '/']);
                check_eq!(numbers.next(), numbers.next(), "events in the buffer");
            }
            if !line.starts_with('#') {
                match Event::parse(line) {
                    Some(event) => events.push(event),
                    None => fail!("no event: {line}"),
                }
            }
        }
        Ok(events)
    }

    /// The events since the last call that are the doing of some processes with one thread.
    pub fn take(&self, tasks: &[Pid]) -> Outcome<Vec<Event>> {
        let tasks: Vec<i32> = tasks
            .iter()
            .map(|task| task.as_raw_nonzero().get())
            .collect();
        let mut events = self.take_all()?;
        events.retain(|event| tasks.contains(&event.task));
        Ok(events)
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let _ = self.set("events/enable", "0");
        let _ = fs::remove_dir(&self.dir);
    }
}
