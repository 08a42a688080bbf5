// SPDX-License-Identifier: GPL-2.0

//! The tests, by theme.

mod accounting;
mod death;
mod events;
mod failslab;
mod faults;
mod files;
mod free;
mod freeze;
mod isolation;
mod limits;
mod logs;
pub mod mapping;
mod memcg;
mod messages;
mod oneway;
mod reclaim;
mod secctx;
mod shrinker;
mod sizes;
mod stopped;
mod stress;
mod transactions;
mod unmap;

use crate::{
    outcome::Outcome,
    runner::Test,
    uapi::{name, BR_DEAD_REPLY, BR_FAILED_REPLY},
};

/// A list of lists.
type Suite = &'static [&'static [Test]];

pub const BINDER: Suite = &[
    transactions::TESTS,
    files::TESTS,
    sizes::TESTS,
    mapping::TESTS,
    unmap::TESTS,
    free::TESTS,
    oneway::TESTS,
    freeze::TESTS,
    secctx::TESTS,
    death::TESTS,
    accounting::TESTS,
    logs::TESTS,
    reclaim::TESTS,
    memcg::TESTS,
    limits::TESTS,
    isolation::TESTS,
    events::TESTS,
    stopped::TESTS,
    faults::TESTS,
    messages::TESTS,
    stress::TESTS,
];

/// What the core of the kernel does with a shrinker's answers, and with a list_lru.
pub const SAMPLE: Suite = &[shrinker::TESTS, failslab::TESTS];

/// A transaction to a receiver that is gone, or has unmapped its area.
fn expect_dead_reply(status: u32) -> Outcome {
    crate::check_eq!(name(status), name(BR_DEAD_REPLY), "status");
    Ok(())
}

/// A transaction that the driver must find wrong.
fn expect_failed(status: u32, what: &str) -> Outcome {
    crate::check!(status == BR_FAILED_REPLY, "{what}: status {}", name(status));
    Ok(())
}
