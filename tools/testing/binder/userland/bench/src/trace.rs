// SPDX-License-Identifier: GPL-2.0

//! Which buffers a process was sent, and when it freed each: a line `+BYTES` for each that came, and
//! `-NUMBER` for the one with this number (from 0) that it freed. Lines that begin with `#` say where
//! the trace is from.

use binder_raw::{
    fail,
    outcome::{Context, Outcome},
};
use std::fmt::{Display, Formatter};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event {
    Came { bytes: usize },
    Freed { number: usize },
}

impl Display for Event {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match self {
            Event::Came { bytes } => write!(f, "+{bytes}"),
            Event::Freed { number } => write!(f, "-{number}"),
        }
    }
}

/// Reads a trace, whose frees are of buffers that came before.
pub fn parse(text: &str) -> Outcome<Vec<Event>> {
    let mut events = Vec::new();
    let mut came = 0;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let number = |digits: &str| digits.parse().context(line);
        events.push(match line.split_at_checked(1) {
            Some(("+", bytes)) => {
                came += 1;
                Event::Came {
                    bytes: number(bytes)?,
                }
            }
            Some(("-", freed)) => match number(freed)? {
                freed if freed < came => Event::Freed { number: freed },
                _ => fail!("{line}: freed before it came"),
            },
            _ => fail!("{line}: neither came nor freed"),
        });
    }
    Ok(events)
}

/// The most bytes in use at any time, if each buffer takes a multiple of 8.
pub fn peak(events: &[Event]) -> usize {
    let (mut sizes, mut used, mut peak) = (Vec::new(), 0, 0);
    for event in events {
        match *event {
            Event::Came { bytes } => {
                let bytes = bytes.next_multiple_of(8).max(8);
                sizes.push(bytes);
                used += bytes;
            }
            Event::Freed { number } => used -= sizes[number],
        }
        peak = peak.max(used);
    }
    peak
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_read_as_it_is_written() {
        let text = "# from nowhere\n+10\n+300\n-0\n+7\n-1\n-2\n";
        let Ok(events) = parse(text) else {
            panic!("it can be read");
        };
        let lines: Vec<_> = events.iter().map(|event| format!("{event}\n")).collect();
        assert_eq!(lines.concat(), text[15..]);
        assert_eq!(peak(&events), 16 + 304);
    }

    #[test]
    fn refuses_what_cannot_be() {
        for text in ["+10\n-1\n", "+ten\n", "10\n", "\n"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
