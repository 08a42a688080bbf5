// SPDX-License-Identifier: GPL-2.0

//! The stage: the cgroups and processes of the demo, and what can be done with them.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{ensure, Context, Result};

use crate::{
    cast::{self, CLIENTS, PARENT, REMOVED, SERVICES},
    cgroup::Cgroup,
    client::Traffic,
    launch::Actor,
    logs::{Logs, Pages},
    sampler::INTERVAL,
    shrinker::{Counts, Shrinker},
    snapshot::{Row, Snapshot},
    DirectArgs,
};

/// How long to wait for anything before calling it a failure.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Where the process goes whose cgroup is removed.
pub const REFUGE: &str = "refuge";

const HUB: &str = "hub";

/// The cgroups by name, below one that the demo removes at its end.
struct Cgroups {
    base: Cgroup,
    named: Vec<(&'static str, Cgroup)>,
}

impl Cgroups {
    fn create() -> Result<Self> {
        let base = Cgroup::root()?.create("binder-demo")?;
        let parent = base.create(PARENT)?;
        let mut named = Vec::new();
        for role in &SERVICES {
            let above = if role.nested { &parent } else { &base };
            named.push((role.name, above.create(role.name)?));
        }
        named.push((PARENT, parent));
        for name in [REFUGE, HUB]
            .into_iter()
            .chain(CLIENTS.map(|(name, _)| name))
        {
            named.push((name, base.create(name)?));
        }
        Ok(Self { base, named })
    }
}

pub struct Stage {
    hub: Vec<Actor>,
    services: Vec<Actor>,
    clients: Vec<Actor>,
    pub shrinker: Shrinker,
    cgroups: Option<Cgroups>,
}

impl Stage {
    /// Starts everyone: the service manager first, clients when all services are there.
    pub fn set_up(args: &DirectArgs, memcg: bool) -> Result<Self> {
        let shrinker = Shrinker::find()?;
        let cgroups = memcg.then(Cgroups::create).transpose()?;
        let mut stage = Self {
            hub: Vec::new(),
            services: Vec::new(),
            clients: Vec::new(),
            shrinker,
            cgroups,
        };

        let log = args.report.join("processes.log");
        drop(fs::remove_file(&log));
        let start = |stage: &Self, name: &str, command: &[&str]| {
            Actor::start(name, stage.cgroup(name).ok(), command, &log)
        };
        let hub = args.hub.to_str().context("the hub's path is not UTF-8")?;
        ensure!(args.hub.is_file(), "no service manager at {hub}");
        stage
            .hub
            .push(start(&stage, HUB, &[hub, "--insecure-allow-all"])?);

        let myself = std::env::current_exe().context("own path")?;
        let myself = myself.to_str().context("own path is not UTF-8")?;
        for role in &SERVICES {
            stage
                .services
                .push(start(&stage, role.name, &[myself, "service", role.name])?);
        }
        wait_until_ready(&stage.services, &log)?;
        for (name, services) in CLIENTS {
            let command = [&[myself, "client"], services].concat();
            stage.clients.push(start(&stage, name, &command)?);
        }
        wait_until_ready(&stage.clients, &log)?;
        Ok(stage)
    }

    /// One round of traffic from all clients at once.
    pub fn traffic(&mut self) -> Result<Traffic> {
        for client in &mut self.clients {
            client.tell("round")?;
        }
        let mut total = Traffic::default();
        for client in &self.clients {
            total += client
                .hear()?
                .parse()
                .with_context(|| client.name.clone())?;
        }
        Ok(total)
    }

    pub fn cgroup(&self, name: &str) -> Result<&Cgroup> {
        let mut named = self.named();
        named
            .find(|named| named.0 == name)
            .map(|named| &named.1)
            .context(name.to_owned())
    }

    /// The cgroups and their names.
    pub fn named(&self) -> impl Iterator<Item = &(&'static str, Cgroup)> {
        self.cgroups.iter().flat_map(|cgroups| &cgroups.named)
    }

    pub fn counts(&self) -> Result<Counts> {
        self.shrinker.counts()
    }

    /// Waits until the counts stand still, for long enough that the sampler sees it too.
    pub fn settle(&self) -> Result<Counts> {
        let deadline = Instant::now() + PATIENCE;
        let mut last = self.counts()?;
        let mut same = 0;
        while same < 5 && Instant::now() < deadline {
            thread::sleep(INTERVAL);
            let next = self.counts()?;
            same = if next == last { same + 1 } else { 0 };
            last = next;
        }
        Ok(last)
    }

    /// Moves the service [`REMOVED`] out of its cgroup.
    pub fn move_out(&self) -> Result<()> {
        let service = self.services.iter().find(|actor| actor.name == REMOVED);
        self.cgroup(REFUGE)?.adopt(service.context(REMOVED)?.pid())
    }

    pub fn snapshot(&self, title: &str) -> Result<Snapshot> {
        let (counts, logs) = (self.counts()?, Logs::read());
        let idle_and_memory = |name: &str| -> (Option<u64>, Option<u64>) {
            let cgroup = self.cgroup(name).ok();
            let idle = cgroup.map(|cgroup| counts.of(cgroup.inode));
            // A cgroup that has been removed has no files any more.
            (idle, cgroup.and_then(|cgroup| cgroup.current().ok()))
        };
        let actor_row = |actor: &Actor, what: &str| {
            let (idle, memory) = idle_and_memory(&actor.name);
            let (pid, pages) = (actor.pid(), logs.pages(actor.pid()));
            let (name, what) = (actor.name.clone(), what.to_owned());
            Row {
                name,
                what,
                pid: Some(pid),
                pages,
                idle,
                memory,
            }
        };
        let cgroup_row = |name: &str, what: &str| {
            let (idle, memory) = idle_and_memory(name);
            let (name, what) = (name.to_owned(), what.to_owned());
            Row {
                name,
                what,
                pid: None,
                pages: Pages::default(),
                idle,
                memory,
            }
        };
        let services = self.services.iter().map(|actor| {
            let what = cast::role(&actor.name).map_or("", |role| role.what);
            actor_row(actor, what)
        });
        let hub = self
            .hub
            .iter()
            .map(|actor| actor_row(actor, "service manager"));
        let clients = self.clients.iter().map(|actor| actor_row(actor, "client"));
        let mut rows: Vec<Row> = services.chain(hub).chain(clients).collect();
        if self.cgroups.is_some() {
            rows.push(cgroup_row(PARENT, "cgroup around notes"));
            rows.push(cgroup_row(REFUGE, "where notes moves"));
        }
        Ok(Snapshot {
            title: title.to_owned(),
            rows,
            total: counts.total(),
        })
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.clients.clear();
        self.services.clear();
        self.hub.clear();
        if let Some(Err(e)) = self
            .cgroups
            .as_ref()
            .map(|cgroups| cgroups.base.remove_tree())
        {
            eprintln!("# left behind: {e:#}");
        }
    }
}

fn wait_until_ready(actors: &[Actor], log: &Path) -> Result<()> {
    for actor in actors {
        if let Err(e) = actor.hear() {
            // Whoever ends early has said why on stderr.
            for line in fs::read_to_string(log).unwrap_or_default().lines() {
                println!("# {line}");
            }
            return Err(e);
        }
    }
    Ok(())
}
