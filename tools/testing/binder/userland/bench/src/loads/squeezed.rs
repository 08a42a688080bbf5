// SPDX-License-Identifier: GPL-2.0

//! Senders to a process whose cgroup has no memory left for it: what they wait for, and what arrives. The sender
//! isn't to suffer for what others have used up.

use crate::{
    app::{self, Group},
    clock::measure,
    process::Worker,
    record::Figure,
    wire::{Commands, Wire},
    Plan,
};
use binder_raw::{
    binder::{Device, KIB, MIB, PAGE},
    outcome::Outcome,
    uapi::{BR_REPLY, BR_TRANSACTION_COMPLETE, TF_ONE_WAY},
};
use std::fs;

/// Half of it is for oneway transactions.
const AREA: usize = 4 * MIB;

/// Each of them needs a page of its own that isn't there yet.
const SENDS: usize = 200;
const SIZE: usize = PAGE;

/// Anonymous memory of the receiver. There is no swap: nothing can be reclaimed of it.
const FILLING: usize = 16 * MIB;

/// A process in a cgroup of its own, with an area in which there is no page yet. It answers calls, and frees nothing.
struct Receiver {
    // Before the cgroup: dropping it ends the process, and the cgroup can go.
    _process: Worker,
    group: Group,
    device: Device,
}

impl Receiver {
    fn start(name: &str) -> Outcome<Self> {
        let group = Group::new(name)?;
        let device = Device::create(name)?;
        let (process, _) = Worker::start(|mut orders| {
            group.enter()?;
            let mut wire = Wire::manager(&device, AREA)?;
            let filling = vec![1u8; FILLING];
            orders.answer([0, 0])?;
            let result = wire.keep();
            drop(filling);
            result
        })?;
        Ok(Receiver {
            _process: process,
            group,
            device,
        })
    }

    /// Lets its cgroup have no more than it has.
    fn limit(&self) -> Outcome {
        self.group.drain()?;
        let now = fs::read_to_string(self.group.path().join("memory.current"))?;
        self.group.set("memory.max", now.trim())
    }
}

/// Oneway transactions and calls to a process whose cgroup is full of what can't be reclaimed.
pub fn at_max(_: &Plan, figures: &mut Vec<Figure>) -> Outcome {
    app::need()?;
    for (what, flags, end) in [
        ("oneway", TF_ONE_WAY, BR_TRANSACTION_COMPLETE),
        ("call", 0, BR_REPLY),
    ] {
        let receiver = Receiver::start("bench-squeezed")?;
        let mut client = Wire::client(&receiver.device, AREA)?;
        let payload = [1; SIZE];
        let mut commands = Commands::default();
        // Whatever both set up for themselves, they have by now.
        commands.transaction(0, &payload[..8], 0);
        client.talk(&commands, BR_REPLY)?;
        receiver.limit()?;
        commands.clear().transaction(0, &payload, flags);
        let (mut times, mut arrived) = (Vec::new(), 0);
        for _ in 0..SENDS {
            let (time, result) = measure(|| client.try_talk(&commands, end));
            arrived += usize::from(result?.is_some());
            times.push(time);
        }
        let name = format!("squeezed receiver: {what}");
        let unit = format!("of {SENDS}");
        let figure = Figure::one(format!("{name}: arrive"), unit, arrived);
        figures.push(figure.more_is_better());
        super::percentiles(figures, &name, &times);
    }
    Ok(())
}

const LARGE: usize = 256 * KIB;
const LARGE_SENDS: usize = 5;

/// Large transactions to fresh pages of a process whose cgroup is above its `memory.high`, from one that is above its
/// own. The kernel puts those to sleep who charge memory there.
pub fn above_high(_: &Plan, figures: &mut Vec<Figure>) -> Outcome {
    app::need()?;
    let receiver = Receiver::start("bench-high")?;
    let group = Group::new("bench-high-sender")?;
    let (mut sender, _) = Worker::start(|mut orders| {
        group.enter()?;
        let mut wire = Wire::client(&receiver.device, 4 * PAGE)?;
        let payload = vec![1; LARGE];
        let mut commands = Commands::default();
        commands.transaction(0, &payload, TF_ONE_WAY);
        orders.answer([0, 0])?;
        while orders.next().is_some() {
            let (time, result) = measure(|| -> Outcome {
                for _ in 0..LARGE_SENDS {
                    wire.talk(&commands, BR_TRANSACTION_COMPLETE)?;
                }
                Ok(())
            });
            result?;
            orders.answer([time, 0])?;
        }
        Ok(())
    })?;
    for group in [&receiver.group, &group] {
        group.set("memory.high", "0")?;
    }
    sender.request([0, 0])?;
    let [time, _] = sender.answer()?;
    // For as long as it is above, its end would take long, too.
    for group in [&receiver.group, &group] {
        group.set("memory.high", "max")?;
    }
    figures.push(Figure::cost(
        format!(
            "memory.high: {LARGE_SENDS} oneways of {}",
            super::size(LARGE)
        ),
        vec![time],
    ));
    drop(sender);
    Ok(())
}
