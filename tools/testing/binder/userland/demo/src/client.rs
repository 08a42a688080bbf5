// SPDX-License-Identifier: GPL-2.0

//! The client process: rounds of traffic on demand.

use std::{
    fmt,
    io::BufRead,
    str::FromStr,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{anyhow, ensure, Context, Result};
use rsbinder::{hub, Strong};

use crate::{
    aidl::IPayloadService,
    cast::{self, Role},
    payload::{self, CROWD_MAX, KIB, SIZES},
    service::connect,
    stage::PATIENCE,
};

/// Sizes of the oneway calls that each thread of the crowd makes.
const POSTS: [usize; 4] = [0, 128, 4 * KIB, 4 * KIB];

/// Size of the oneway calls that wait in a paused service's buffer.
const BURST_SIZE: usize = 64 * KIB;

/// What a round sent and got back right. A round with anything wrong has no tally, but an error.
#[derive(Clone, Copy, Default)]
pub struct Traffic {
    pub calls: u64,
    pub posts: u64,
    /// Payload bytes sent by calls and posts, and received in replies.
    pub bytes: u64,
}

impl std::ops::AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.calls += other.calls;
        self.posts += other.posts;
        self.bytes += other.bytes;
    }
}

/// How a client tells the director, on one line.
impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.calls, self.posts, self.bytes)
    }
}

impl FromStr for Traffic {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> Result<Self> {
        let numbers: Vec<u64> = line
            .split(' ')
            .map_while(|word| word.parse().ok())
            .collect();
        match numbers[..] {
            [calls, posts, bytes] => Ok(Self {
                calls,
                posts,
                bytes,
            }),
            _ => Err(anyhow!("{line}")),
        }
    }
}

/// One service as seen from here.
struct Peer {
    role: &'static Role,
    service: Strong<dyn IPayloadService>,
    /// Each payload is made from another number.
    seed: AtomicU64,
}

impl Peer {
    fn find(name: &str) -> Result<Self> {
        let role = cast::role(name).with_context(|| format!("no service is called {name}"))?;
        let service = hub::try_get_interface(&cast::instance(name))
            .with_context(|| format!("service manager, asked for {name}"))?
            .with_context(|| format!("{name} is not registered"))?;
        Ok(Self {
            role,
            service,
            seed: AtomicU64::new(1),
        })
    }

    fn payload(&self, size: usize) -> crate::aidl::Payload {
        payload::make(self.seed.fetch_add(1, Ordering::Relaxed), size)
    }

    /// One call with `size` bytes there and the same back.
    fn echo(&self, size: usize) -> Result<Traffic> {
        let sent = self.payload(size);
        let back = self
            .service
            .echo(&sent)
            .with_context(|| format!("{}: echo of {size} bytes", self.role.name))?;
        ensure!(
            payload::is_intact(&back) && back == sent,
            "{}: {size} bytes came back changed",
            self.role.name
        );
        Ok(Traffic {
            calls: 1,
            posts: 0,
            bytes: 2 * size as u64,
        })
    }

    fn post(&self, size: usize) -> Result<Traffic> {
        self.service
            .post(&self.payload(size))
            .with_context(|| format!("{}: post of {size} bytes", self.role.name))?;
        Ok(Traffic {
            calls: 0,
            posts: 1,
            bytes: size as u64,
        })
    }

    /// What each thread of the crowd does.
    fn small(&self) -> Result<Traffic> {
        let mut traffic = Traffic::default();
        for size in SIZES.into_iter().filter(|&size| size <= CROWD_MAX) {
            traffic += self.echo(size)?;
        }
        for size in POSTS {
            traffic += self.post(size)?;
        }
        Ok(traffic)
    }

    /// The sizes that have the mapping nearly to themselves, the largest on top of a pile of
    /// oneway calls.
    fn large(&self) -> Result<Traffic> {
        let mut traffic = Traffic::default();
        let mut sizes: Vec<_> = SIZES.into_iter().filter(|&size| size > CROWD_MAX).collect();
        let largest = sizes.pop().context("no large sizes")?;
        for size in sizes {
            traffic += self.echo(size)?;
        }
        self.service.pause().context("pause")?;
        for _ in 0..self.role.burst {
            traffic += self.post(BURST_SIZE)?;
        }
        traffic += self.echo(largest)?;
        self.service.resume().context("resume")?;
        Ok(traffic)
    }

    /// Waits until the service has handled every oneway call: `posts` more than at `start`.
    fn confirm(&self, start: i64, posts: u64) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let tally = self.service.tally().context("tally")?;
            let arrived = u64::try_from(tally.posted - start).unwrap_or(0);
            let name = self.role.name;
            ensure!(
                tally.corrupt == 0,
                "{name}: {} payloads arrived corrupt",
                tally.corrupt
            );
            if arrived == posts {
                return Ok(());
            }
            let late = Instant::now() > deadline;
            ensure!(!late, "{name}: {arrived} of {posts} oneway calls arrived");
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// All services at once with small payloads from several threads each, then one service after the
/// other with large ones. Each phase ends with empty mappings.
fn round(peers: &[Peer]) -> Result<Traffic> {
    let mut total = Traffic::default();
    let starts = peers
        .iter()
        .map(|peer| Ok(peer.service.tally().context("tally")?.posted))
        .collect::<Result<Vec<_>>>()?;
    let crowd = thread::scope(|scope| -> Result<Vec<Traffic>> {
        let threads: Vec<Vec<_>> = peers
            .iter()
            .map(|peer| {
                (0..peer.role.callers)
                    .map(|_| scope.spawn(|| peer.small()))
                    .collect()
            })
            .collect();
        let join = |threads: Vec<thread::ScopedJoinHandle<'_, Result<Traffic>>>| {
            let mut sum = Traffic::default();
            for thread in threads {
                sum += thread
                    .join()
                    .map_err(|_| anyhow!("a client thread panicked"))??;
            }
            Ok(sum)
        };
        threads.into_iter().map(join).collect()
    })?;
    for ((peer, mut traffic), start) in peers.iter().zip(crowd).zip(starts) {
        peer.confirm(start, traffic.posts)?;
        traffic += peer.large()?;
        peer.confirm(start, traffic.posts)?;
        total += traffic;
    }
    Ok(total)
}

/// Says "ready", then answers each line on stdin by a round of traffic and its outcome.
pub fn run(services: &[String]) -> Result<()> {
    connect(0)?;
    let peers = services
        .iter()
        .map(|name| Peer::find(name))
        .collect::<Result<Vec<_>>>()?;
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        line.context("stdin")?;
        match round(&peers) {
            Ok(traffic) => println!("{traffic}"),
            Err(e) => println!("{e:#}"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_fits_on_a_line() {
        let traffic: Traffic = "1 20 300".parse().expect("well-formed");
        assert_eq!(traffic.to_string(), "1 20 300");
        assert!("camera: echo of 1 bytes: Dead object"
            .parse::<Traffic>()
            .is_err());
    }
}
