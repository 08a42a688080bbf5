// SPDX-License-Identifier: GPL-2.0

//! A process that has very many buffers is sent to while somebody reads what the driver says of it, as bugreport
//! does. How many buffers it has is up to those who send to it; who else sends isn't to wait for the reader.

use crate::{
    process::{Priority, Worker},
    record::Figure,
    wire::{Commands, Wire},
    Plan,
};
use binder_raw::{
    binder::{Device, KIB, MIB},
    outcome::{Outcome, Stop},
    uapi::{BR_REPLY, BR_TRANSACTION_COMPLETE, TF_ONE_WAY},
};
use std::{
    fs::File,
    io::Read,
    sync::atomic::{AtomicBool, Ordering},
    thread::{self, sleep},
    time::{Duration, Instant},
};

/// Each takes 8 bytes of the area: a fifth of it in all.
const BUFFERS: usize = 100_000;
const AREA: usize = 4 * MIB;
// Half of the area is for oneway transactions, and those that are sent while the file is read come on top.
const _: () = assert!(8 * BUFFERS < AREA / 4);

/// How often the file is read.
const READS: usize = 3;

/// After how long the sender sends again.
const PERIOD: Duration = Duration::from_millis(1);

const STATE: &str = "/dev/binderfs/binder_logs/state";

pub fn run(_: &Plan, figures: &mut Vec<Figure>) -> Outcome {
    for (what, flags, end) in [
        ("queued", TF_ONE_WAY, BR_TRANSACTION_COMPLETE),
        ("delivered", 0, BR_REPLY),
    ] {
        let name = format!("reading state: {BUFFERS} {what}");
        let device = Device::create("bench-reading")?;
        let (_process, _) = Worker::start(|mut orders| {
            let mut wire = Wire::manager(&device, AREA)?;
            orders.answer([0, 0])?;
            match what {
                // It looks at nothing.
                "queued" => loop {
                    thread::park();
                },
                _ => wire.keep(),
            }
        })?;
        let mut client = Wire::client(&device, 16 * KIB)?;
        let mut commands = Commands::default();
        for _ in 0..BUFFERS {
            commands.transaction(0, &[], flags);
            let reply = client.talk(&commands, end)?.buffer;
            commands.clear();
            if flags != TF_ONE_WAY {
                commands.free(reply);
            }
        }
        client.write(&commands)?;
        let times = read_and_send(&mut client)?;
        super::percentiles(figures, &format!("{name}: send"), &times.sends);
        let worst = times.wakeups.iter().copied().max().unwrap_or(0);
        figures.push(Figure::one(
            format!("{name}: preemption off: worst"),
            crate::clock::unit(),
            worst as usize,
        ));
    }
    Ok(())
}

/// In nanoseconds, which are instructions where these are counted.
#[derive(Default)]
struct Times {
    /// From when it is time to send until it is done.
    sends: Vec<u64>,
    /// Until the thread runs: what has a higher priority than all others runs at once, but where preemption is off.
    wakeups: Vec<u64>,
}

/// Reads the file some times, and sends as long as that takes.
fn read_and_send(client: &mut Wire) -> Outcome<Times> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let result = (0..READS).try_for_each(|_| read());
            done.store(true, Ordering::Relaxed);
            result
        });
        let times = send_until(client, &done);
        // It ends by itself, also if nobody sends any more.
        let read = reader
            .join()
            .map_err(|_| Stop::Fail("the reader panicked".into()))?;
        read.and(times)
    })
}

fn read() -> Outcome {
    let mut file = File::open(STATE)?;
    let mut text = vec![0; 64 * KIB];
    while file.read(&mut text)? > 0 {}
    Ok(())
}

fn send_until(client: &mut Wire, done: &AtomicBool) -> Outcome<Times> {
    let mut commands = Commands::default();
    commands.transaction(0, &[], TF_ONE_WAY);
    let mut times = Times::default();
    Priority::Fifo(99).take()?;
    let mut result = Ok(());
    while result.is_ok() && !done.load(Ordering::Relaxed) {
        let due = Instant::now() + PERIOD;
        sleep(PERIOD);
        times.wakeups.push(due.elapsed().as_nanos() as u64);
        result = client.talk(&commands, BR_TRANSACTION_COMPLETE).map(|_| ());
        times.sends.push(due.elapsed().as_nanos() as u64);
    }
    Priority::Nice(0).take()?;
    result.map(|()| times)
}
