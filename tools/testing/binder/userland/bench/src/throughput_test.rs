// SPDX-License-Identifier: GPL-2.0

//! Does what AOSP's `binderThroughputTest` does, with its parameters and its output, so that figures can be
//! laid beside published ones. There are no parcels and no service manager: each worker is the context
//! manager of a device of its own.

use crate::{
    process::{Orders, Worker},
    wire::{Commands, Wire},
};
use binder_raw::{
    binder::{Device, KIB, MIB},
    check,
    outcome::{Context, Outcome},
    uapi::BR_REPLY,
};
use clap::Args;
use std::{fs, path::PathBuf, thread, time::Instant};

#[derive(Args)]
pub struct Options {
    /// Total number of workers, each a process
    #[arg(short, default_value_t = 2)]
    workers: usize,
    /// Calls that each client makes
    #[arg(short, default_value_t = 10_000)]
    iterations: usize,
    /// Payload of a call in bytes, of which whole words are sent
    #[arg(short, default_value_t = 0)]
    size: usize,
    /// Half of the workers serve, and each of the others calls one of them; else each calls all others
    #[arg(short)]
    pairs: bool,
    /// A training round before, to learn how long a call may take
    #[arg(short)]
    training: bool,
    /// Microseconds that a call may take; it is said how many take longer
    #[arg(short)]
    max: Option<u64>,
    /// A file to write all latencies into, in ns
    #[arg(short)]
    dump: Option<PathBuf>,
}

/// As many threads as libbinder's pool has at most.
const MOST_THREADS: usize = 15;

/// Runs the test, and prints what AOSP's does.
pub fn run(options: &Options) -> Outcome {
    check!(options.workers > 1, "one worker has nobody to call");
    let mut limit = options.max.map(|max| max * 1000);
    if options.training {
        println!("Start training round");
        let latencies = round(options)?;
        let worst = latencies.last().copied().unwrap_or_default();
        println!("Max latency during training: {}ms", ms(worst));
        println!("Completed training round\n");
        limit = Some(2 * worst);
    }
    let latencies = round(options)?;
    if let Some(file) = &options.dump {
        let lines: String = latencies.iter().map(|ns| format!("{ns}\n")).collect();
        fs::write(file, lines).context(&file.display().to_string())?;
    }
    print!("{}", summary(&latencies, limit));
    Ok(())
}

/// All latencies, the longest last.
fn round(options: &Options) -> Outcome<Vec<u64>> {
    let devices = (0..options.workers)
        .map(|number| Ok(Device::create(&format!("binderWorker{number}"))?))
        .collect::<Outcome<Vec<_>>>()?;
    let mut workers = (0..options.workers)
        .map(|number| Ok(Worker::start(|orders| work(options, number, &devices, orders))?.0))
        .collect::<Outcome<Vec<_>>>()?;
    let all = |workers: &mut Vec<Worker>| -> Outcome {
        for worker in workers.iter_mut() {
            worker.request([0, 0])?;
        }
        for worker in workers.iter_mut() {
            worker.answer()?;
        }
        Ok(())
    };
    // Each opens the devices of those that it calls.
    all(&mut workers)?;
    println!("waiting for workers to complete");
    let start = Instant::now();
    all(&mut workers)?;
    let calls = (options.iterations * options.workers) as f64;
    // As in AOSP's test, workers that only serve count here.
    let rate = calls / start.elapsed().as_secs_f64();
    println!("iterations per sec: {}", short(rate));
    println!("collecting results");
    let mut latencies = Vec::new();
    for worker in &mut workers {
        worker.request([0, 0])?;
        let [count, _] = worker.answer()?;
        for _ in 0..count {
            let [latency, _] = worker.answer()?;
            latencies.push(latency);
        }
    }
    println!("killing workers");
    latencies.sort_unstable();
    Ok(latencies)
}

/// A worker's process.
fn work(options: &Options, number: usize, devices: &[Device], mut orders: Orders) -> Outcome {
    let server = Wire::manager(&devices[number], MIB)?;
    for _ in 0..options.workers.min(MOST_THREADS) {
        let binder = server.binder();
        thread::spawn(move || Wire::of_another_thread(binder).and_then(|mut w| w.serve()));
    }
    orders.answer([0, 0])?;

    orders.next();
    println!("Created BinderWorker{number}");
    let servers = match options.pairs {
        true => options.workers / 2,
        false => options.workers,
    };
    let mut callees = devices[..servers]
        .iter()
        .enumerate()
        .filter(|(index, _)| *index != number)
        .map(|(_, device)| Wire::client(device, 16 * KIB))
        .collect::<Outcome<Vec<_>>>()?;
    orders.answer([0, 0])?;

    orders.next();
    let calls = match options.pairs && number < servers {
        true => 0,
        false => options.iterations,
    };
    let payload = vec![0; options.size / 4 * 4];
    let mut random = number as u64;
    let mut commands = Commands::default();
    let mut latencies = Vec::with_capacity(calls);
    for _ in 0..calls {
        // Of Knuth's MMIX: whom it calls next needs no better.
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let callee = match options.pairs {
            true => number % servers,
            false => (random >> 33) as usize % callees.len(),
        };
        let wire = &mut callees[callee];
        let start = Instant::now();
        commands.clear().transaction(0, &payload, 0);
        let reply = wire.talk(&commands, BR_REPLY)?;
        latencies.push(start.elapsed().as_nanos() as u64);
        wire.write(commands.clear().free(reply.buffer))?;
    }
    orders.answer([0, 0])?;

    orders.next();
    orders.answer([latencies.len() as u64, 0])?;
    for latency in latencies {
        orders.answer([latency, 0])?;
    }
    // It is killed when its work is done.
    orders.next();
    Ok(())
}

/// What is said of sorted latencies, and of a limit for them.
fn summary(latencies: &[u64], limit: Option<u64>) -> String {
    let (Some(best), Some(worst)) = (latencies.first(), latencies.last()) else {
        return "error: no data\n".into();
    };
    let mut text = String::new();
    let long = latencies
        .iter()
        .filter(|ns| limit.is_some_and(|limit| **ns > limit));
    let long = long.count();
    if long > 0 {
        text += &format!(
            "{}% of transactions took longer than estimated max latency. \
             Consider setting -m to be higher than {} microseconds\n",
            short(100.0 * long as f64 / latencies.len() as f64),
            worst / 1000
        );
    }
    let average = latencies.iter().sum::<u64>() / latencies.len() as u64;
    text += &format!(
        "average:{}ms worst:{}ms best:{}ms\n",
        ms(average),
        ms(*worst),
        ms(*best)
    );
    let shares = [50, 90, 95, 99].map(|share| {
        let latency = latencies[share * latencies.len() / 100];
        format!("{share}%: {}", ms(latency))
    });
    text + &shares.join(" ") + "\n"
}

fn ms(ns: u64) -> String {
    short(ns as f64 / 1e6)
}

/// With six digits, as C++ prints numbers.
fn short(value: f64) -> String {
    let before = match value {
        1.0.. => value.log10() as usize + 1,
        _ => 0,
    };
    let text = format!("{value:.*}", 6usize.saturating_sub(before));
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').into(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speaks_as_the_original() {
        let latencies: Vec<_> = (1..=1000).map(|n| n * 1000).collect();
        assert_eq!(
            summary(&latencies, None),
            "average:0.5005ms worst:1ms best:0.001ms\n50%: 0.501 90%: 0.901 95%: 0.951 99%: 0.991\n"
        );
        assert!(summary(&latencies, Some(900_000)).starts_with("10% of transactions took longer"));
        assert_eq!(summary(&[], None), "error: no data\n");
    }

    #[test]
    fn numbers_have_six_digits() {
        for (value, text) in [
            (62893.123, "62893.1"),
            (1_234_567.0, "1234567"),
            (0.0, "0"),
            (0.0123456, "0.012346"),
            (100.0, "100"),
        ] {
            assert_eq!(short(value), text);
        }
    }
}
