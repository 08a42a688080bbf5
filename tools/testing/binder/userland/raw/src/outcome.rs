// SPDX-License-Identifier: GPL-2.0

//! How a test ends, and the checks that end it.

use std::{
    fmt::Display,
    thread::sleep,
    time::{Duration, Instant},
};

/// How long nothing may happen, and how long things may take to end.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Why a test stopped before its end.
pub enum Stop {
    Fail(String),
    Skip(String),
}

pub type Outcome<T = ()> = Result<T, Stop>;

/// Any error that a test doesn't expect fails it.
impl<E: Display> From<E> for Stop {
    fn from(error: E) -> Self {
        Stop::Fail(error.to_string())
    }
}

pub fn skip<T>(reason: &str) -> Outcome<T> {
    Err(Stop::Skip(reason.into()))
}

/// Gives an error that comes from a helper the name of what was being done.
pub trait Context<T> {
    fn context(self, what: &str) -> Outcome<T>;
}

impl<T, E: Into<Stop>> Context<T> for Result<T, E> {
    fn context(self, what: &str) -> Outcome<T> {
        self.map_err(|error| match error.into() {
            Stop::Fail(why) => Stop::Fail(format!("{what}: {why}")),
            skip => skip,
        })
    }
}

/// Waits until a figure is 0: what has ended is cleaned up some time later.
pub fn vanishes(what: &str, figure: impl Fn() -> Outcome<u64>) -> Outcome {
    let until = Instant::now() + PATIENCE;
    loop {
        match figure()? {
            0 => return Ok(()),
            left => crate::check!(Instant::now() < until, "{left} {what}"),
        }
        sleep(Duration::from_millis(50));
    }
}

/// Fails the test, with a formatted reason.
#[macro_export]
macro_rules! fail {
    ($($arg:tt)*) => {
        return Err($crate::outcome::Stop::Fail(format!($($arg)*)))
    };
}

/// Fails the test unless the condition holds.
#[macro_export]
macro_rules! check {
    ($cond:expr, $($arg:tt)*) => {
        if !$cond {
            $crate::fail!("{}:{}: {}", file!(), line!(), format!($($arg)*));
        }
    };
}

/// Fails the test unless both sides are equal, and says what they are.
#[macro_export]
macro_rules! check_eq {
    ($left:expr, $right:expr, $($arg:tt)*) => {{
        let (left, right) = (&$left, &$right);
        if left != right {
            $crate::fail!(
                "{}:{}: {}: got {:?}, want {:?}",
                file!(), line!(), format!($($arg)*), left, right
            );
        }
    }};
}

/// Prints a TAP diagnostic line.
#[macro_export]
macro_rules! note {
    ($($arg:tt)*) => { println!("# {}", format!($($arg)*)) };
}
