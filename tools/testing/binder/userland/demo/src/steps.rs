// SPDX-License-Identifier: GPL-2.0

//! What the director does, step by step, and what must come of it.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{
    cast::{PARENT, REMOVED, SERVICES, SQUEEZED},
    cgroup::{self, Cgroup},
    sampler::Sampler,
    shrinker::Counts,
    snapshot::Snapshot,
    stage::{Stage, PATIENCE, REFUGE},
    tap::Tap,
};

/// More than any cgroup of the demo has, so that all that can go goes.
const EVERYTHING: &str = "64M";

/// How often to ask for a reclaim that gives nothing more before taking no for an answer.
const ATTEMPTS: u32 = 10;

/// How long to squeeze a machine that gives nothing.
const LONGEST_PRESSURE: Duration = Duration::from_secs(3);

/// The demo while it runs.
pub struct Show {
    pub stage: Stage,
    pub sampler: Sampler,
    /// Why there are no memory cgroups to look at, if there are none.
    pub without_memcg: Option<&'static str>,
    pub tap: Tap,
    pub tables: Vec<Snapshot>,
}

impl Show {
    /// The whole demo. What doesn't hold is in `tap`; an error means that it can't go on.
    pub fn run(&mut self) -> Result<()> {
        self.traffic("traffic")?;
        self.idle()?;
        match self.without_memcg {
            None => self.squeeze()?,
            Some(why) => self.tap.skip("squeeze: one cgroup's idle pages go", why),
        }
        self.traffic("traffic after the squeeze")?;
        self.pressure()?;
        match self.without_memcg {
            None => self.removal()?,
            Some(why) => self
                .tap
                .skip("removal: idle pages move to the parent cgroup", why),
        }
        Ok(())
    }

    /// A round of calls, then silence.
    fn traffic(&mut self, title: &str) -> Result<()> {
        self.sampler.mark(title);
        let result = self.stage.traffic().map(|traffic| {
            let (calls, posts, bytes) = (traffic.calls, traffic.posts, traffic.bytes >> 20);
            format!("{calls} calls and {posts} oneway calls, {bytes} MiB")
        });
        self.tap
            .attempt(&format!("{title}: all checksums right"), result);
        self.stage.settle()?;
        self.table(title)
    }

    /// After traffic, pages wait for the next call, each with its receiver's cgroup.
    fn idle(&mut self) -> Result<()> {
        let counts = self.stage.counts()?;
        let total = counts.total();
        self.tap.check(
            "idle: pages are kept for the next call",
            total > 0,
            format!("{total} in all"),
        );
        let name = "idle: every service has idle pages in its own cgroup";
        if let Some(why) = self.without_memcg {
            self.tap.skip(name, why);
            return Ok(());
        }
        let mut each = Vec::new();
        for role in &SERVICES {
            each.push((role.name, counts.of(self.stage.cgroup(role.name)?.inode)));
        }
        self.tap
            .check(name, each.iter().all(|&(_, idle)| idle > 0), list(&each));
        Ok(())
    }

    /// memory.reclaim on one cgroup: its idle pages go, and nobody else's.
    fn squeeze(&mut self) -> Result<()> {
        let title = format!("squeeze {SQUEEZED}");
        self.sampler.mark(&title);
        let victim = self.stage.cgroup(SQUEEZED)?.clone();
        self.reclaim(&title, &victim)?;
        self.table(&title)
    }

    /// Reclaims all of `victim`'s memory, and checks what this does to it and to all others.
    fn reclaim(&mut self, title: &str, victim: &Cgroup) -> Result<()> {
        let before = self.stage.counts()?;
        let memory_before = victim.current()?;
        for _ in 0..ATTEMPTS {
            victim.reclaim(EVERYTHING);
            if self.stage.counts()?.of(victim.inode) == 0 {
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
        let after = self.stage.settle()?;
        let memory_after = victim.current()?;

        let (had, has) = (before.of(victim.inode), after.of(victim.inode));
        let given = had.saturating_sub(has);
        self.tap.check(
            &format!("{title}: over 95 % of its idle pages are given back"),
            had > 0 && given * 100 > had * 95,
            format!("{had} idle pages before, {has} after"),
        );

        let page = rustix::param::page_size() as u64;
        let dropped = memory_before.saturating_sub(memory_after);
        let (gone, slack) = (given * page, cgroup::stock());
        self.tap.check(
            &format!("{title}: memory.current drops by as much"),
            given > 0 && dropped > 0 && dropped.abs_diff(gone) <= slack,
            format!(
                "{} KiB less ({} -> {}), for pages of {} KiB; CPUs may hold {} KiB in stock",
                dropped >> 10,
                memory_before >> 10,
                memory_after >> 10,
                gone >> 10,
                slack >> 10
            ),
        );

        let mut others = before.differences(&after);
        others.remove(&victim.inode);
        let names: Vec<_> = others.iter().map(|&inode| self.name(inode)).collect();
        self.tap.check(
            &format!("{title}: every other cgroup's idle pages stay"),
            others.is_empty() && after.total() > has,
            if names.is_empty() {
                let total = after.total() - has;
                format!("{total} idle pages elsewhere, none of them touched")
            } else {
                format!("changed: {}", names.join(", "))
            },
        );
        Ok(())
    }

    /// The whole machine is short of memory: all idle pages go.
    fn pressure(&mut self) -> Result<()> {
        let title = "pressure on the whole machine";
        self.sampler.mark(title);
        let before = self.stage.counts()?.total();
        let deadline = Instant::now() + LONGEST_PRESSURE;
        let mut rounds = 0;
        while self.stage.counts()?.total() > 0 && Instant::now() < deadline {
            // Reclaims from the root cgroup down, as kswapd would, where that exists; then lets
            // all shrinkers give what they have.
            if self.without_memcg.is_none() {
                Cgroup::root()?.reclaim("1G");
            }
            if rounds > 0 || self.without_memcg.is_some() {
                fs::write("/proc/sys/vm/drop_caches", "2").context("drop_caches")?;
            }
            rounds += 1;
        }
        let after = self.stage.settle()?.total();
        self.tap.check(
            "pressure: all idle pages go",
            before > 0 && after == 0,
            format!("{before} idle pages before, {after} after {rounds} rounds"),
        );
        self.table(title)
    }

    /// A cgroup goes whose pages outlive it: they belong to its parent then, and can be had there.
    fn removal(&mut self) -> Result<()> {
        self.traffic("traffic before the removal")?;
        let (own, parent) = (
            self.stage.cgroup(REMOVED)?.clone(),
            self.stage.cgroup(PARENT)?.clone(),
        );
        let start = self.stage.counts()?;
        let (idle, parent_idle) = (start.of(own.inode), start.of(parent.inode));

        self.sampler
            .mark(&format!("{REMOVED} moves out of its cgroup"));
        self.stage.move_out()?;
        let moved = self.stage.settle()?;
        let kept = moved.of(own.inode);
        self.tap.check(
            "removal: idle pages stay charged when their process moves out",
            idle > 0 && kept == idle,
            format!("{idle} idle pages before, {kept} after"),
        );

        self.sampler
            .mark(&format!("the cgroup {REMOVED} is removed"));
        own.remove()?;
        let expected = parent_idle + idle;
        let found = self
            .wait_for(|counts| counts.of(parent.inode) == expected)?
            .of(parent.inode);
        let after = self.stage.settle()?;
        let mut others = moved.differences(&after);
        others.retain(|inode| ![own.inode, parent.inode].contains(inode));
        self.tap.check(
            "removal: the idle pages are found under the parent",
            idle > 0 && found == expected && after.of(own.inode) == 0 && others.is_empty(),
            format!("{PARENT} had {parent_idle}, {REMOVED} {idle}; now {PARENT} has {found}"),
        );
        self.table("cgroup removed")?;

        let title = format!("squeeze {PARENT}");
        self.sampler.mark(&title);
        self.reclaim(&title, &parent)?;
        self.traffic("traffic after the removal")?;
        let refuge = self.stage.cgroup(REFUGE)?.inode;
        let idle = self.stage.counts()?.of(refuge);
        self.tap.check(
            "removal: new pages are charged to the cgroup that the process moved to",
            idle > 0,
            format!("{idle} idle pages in {REFUGE}"),
        );
        Ok(())
    }

    /// Polls the counts until they are as wanted, or patience ends.
    fn wait_for(&self, wanted: impl Fn(&Counts) -> bool) -> Result<Counts> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let counts = self.stage.counts()?;
            if wanted(&counts) || Instant::now() > deadline {
                return Ok(counts);
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn table(&mut self, title: &str) -> Result<()> {
        let snapshot = self.stage.snapshot(title)?;
        snapshot.print();
        self.tables.push(snapshot);
        Ok(())
    }

    fn name(&self, inode: u64) -> String {
        let named = self.stage.named().find(|(_, cgroup)| cgroup.inode == inode);
        named.map_or_else(|| format!("cgroup {inode}"), |(name, _)| (*name).to_owned())
    }
}

fn list(each: &[(&str, u64)]) -> String {
    let words: Vec<_> = each
        .iter()
        .map(|(name, idle)| format!("{name} {idle}"))
        .collect();
    words.join(", ")
}
