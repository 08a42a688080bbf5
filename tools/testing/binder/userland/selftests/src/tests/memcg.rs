// SPDX-License-Identifier: GPL-2.0

//! The receiver pays, and only its cgroup's reclaim takes its pages.
//!
//! `memory.current` includes pages that each CPU has charged in advance, up to 64 of them.

use crate::{
    binder::{MIB, PAGE},
    cgroup::{leave, Cgroup},
    check, check_eq,
    data::pattern,
    endpoint::Endpoint,
    note,
    outcome::Outcome,
    remote::Receiver,
    runner::{Bench, Test},
    shrinker, tests,
};
use std::{
    thread::sleep,
    time::{Duration, Instant},
};

pub const TESTS: &[Test] = tests!["memcg":
    the_receiver_pays,
    idle_pages_are_in_the_receivers_count,
    reclaim_of_the_cgroup_takes_its_idle_pages,
    reclaim_spares_other_cgroups,
    the_shrinker_scans_the_cgroup_it_is_asked_for,
    charge_ends_with_the_process,
    removed_cgroup_leaves_pages_to_its_parent,
];

/// 2 MiB: all of the oneway budget of a 4 MiB mapping.
const PAGES: usize = 512;

/// What the CPUs may have charged in advance, and some pages of the process's own.
pub const SLACK: u64 = 2 * 64 + 32;

struct App {
    // Before the cgroup: dropping ends the process, and the cgroup can go.
    receiver: Receiver,
    sender: Endpoint,
    cgroup: Cgroup,
}

impl App {
    /// A receiver in a cgroup of its own, and a sender that stays in ours.
    fn start(bench: &Bench, cgroup: Cgroup) -> Outcome<Self> {
        let receiver = Receiver::start(&bench.dev, 4 * MIB, || cgroup.enter())?;
        Ok(App {
            receiver,
            sender: Endpoint::sender(&bench.dev)?,
            cgroup,
        })
    }

    fn count(&self) -> Outcome<u64> {
        Ok(shrinker::count(self.cgroup.id()?))
    }
}

fn app(bench: &Bench, name: &str) -> Outcome<App> {
    shrinker::need()?;
    App::start(bench, Cgroup::create(name)?)
}

/// Waits until `value` comes down to `want`: uncharging and release are not done at once.
pub fn falls_to(want: u64, mut value: impl FnMut() -> Outcome<u64>) -> Outcome {
    let until = Instant::now() + Duration::from_secs(3);
    loop {
        let now = value()?;
        if now <= want {
            return Ok(());
        }
        check!(Instant::now() < until, "{now} pages, want at most {want}");
        sleep(Duration::from_millis(20));
    }
}

fn expect_near(got: u64, want: u64, what: &str) -> Outcome {
    check!(
        got.abs_diff(want) <= SLACK,
        "{what}: {got} pages, want about {want}"
    );
    Ok(())
}

fn the_receiver_pays(bench: &Bench) -> Outcome {
    let ours = Cgroup::create("sender")?;
    let theirs = Cgroup::create("receiver")?;
    let mut app = App::start(bench, theirs)?;
    ours.enter()?;
    // The payload is paid by us before we look.
    let data = pattern(1, PAGES * PAGE);
    app.sender.deliver(&[1])?;
    let small = app.receiver.receive()?;
    app.receiver.free(small)?;
    let (before, ours_before) = (app.cgroup.pages()?, ours.pages()?);
    app.sender.deliver(&data)?;
    let (after, ours_after) = (app.cgroup.pages()?, ours.pages()?);
    note!("receiver {before} -> {after} pages, sender {ours_before} -> {ours_after} pages");
    leave()?;
    expect_near(
        after.saturating_sub(before),
        PAGES as u64,
        "the receiver's charge",
    )?;
    expect_near(
        ours_after.saturating_sub(ours_before),
        0,
        "the sender's charge",
    )
}

fn idle_pages_are_in_the_receivers_count(bench: &Bench) -> Outcome {
    let mut app = app(bench, "count")?;
    check_eq!(app.count()?, 0, "idle pages of a new cgroup");
    let buffer = app.receiver.fill(&mut app.sender, PAGES)?;
    check_eq!(app.count()?, 0, "idle pages while all are in use");
    app.receiver.free(buffer)?;
    check_eq!(app.count()?, PAGES as u64, "idle pages");
    Ok(())
}

fn reclaim_of_the_cgroup_takes_its_idle_pages(bench: &Bench) -> Outcome {
    let mut app = app(bench, "reclaim")?;
    app.receiver.idle(&mut app.sender, 1)?;
    let before = app.cgroup.pages()?;
    app.receiver.idle(&mut app.sender, PAGES)?;
    check_eq!(app.count()?, PAGES as u64, "idle pages");
    let full = app.cgroup.pages()?;
    reclaim_all(&app)?;
    note!(
        "memory.current {before} -> {full} -> {} pages",
        app.cgroup.pages()?
    );
    // Other pages of the cgroup may have gone with them.
    falls_to(before + SLACK, || app.cgroup.pages())?;
    // And it works as before.
    app.receiver.fill(&mut app.sender, PAGES)?;
    Ok(())
}

/// Reclaim goes by proportions: it may take some goes until the last page.
fn reclaim_all(app: &App) -> Outcome {
    for _ in 0..50 {
        app.cgroup.reclaim(PAGES as u64);
        if app.count()? == 0 {
            return Ok(());
        }
    }
    crate::fail!("{} idle pages stay after memory.reclaim", app.count()?)
}

fn reclaim_spares_other_cgroups(bench: &Bench) -> Outcome {
    let dev = crate::binder::Device::create(&format!("{}b", bench.dev.name))?;
    let mut app = app(bench, "squeezed")?;
    let other = Bench { dev };
    let mut other = App::start(&other, Cgroup::create("spared")?)?;
    app.receiver.idle(&mut app.sender, PAGES)?;
    other.receiver.idle(&mut other.sender, PAGES)?;
    reclaim_all(&app)?;
    check_eq!(
        other.count()?,
        PAGES as u64,
        "idle pages of the other cgroup"
    );
    Ok(())
}

fn the_shrinker_scans_the_cgroup_it_is_asked_for(bench: &Bench) -> Outcome {
    let dev = crate::binder::Device::create(&format!("{}b", bench.dev.name))?;
    let mut app = app(bench, "scanned")?;
    let mut other = App::start(&Bench { dev }, Cgroup::create("unscanned")?)?;
    app.receiver.idle(&mut app.sender, PAGES)?;
    other.receiver.idle(&mut other.sender, PAGES)?;
    for node in 0..shrinker::nodes() {
        shrinker::scan(app.cgroup.id()?, node, 2 * PAGES as u64);
    }
    check_eq!(app.count()?, 0, "idle pages of the scanned cgroup");
    check_eq!(
        other.count()?,
        PAGES as u64,
        "idle pages of the other cgroup"
    );
    Ok(())
}

fn charge_ends_with_the_process(bench: &Bench) -> Outcome {
    let mut app = app(bench, "exit")?;
    app.receiver.idle(&mut app.sender, 100)?;
    app.receiver.fill(&mut app.sender, 300)?;
    app.sender.deliver(&pattern(1, 100 * PAGE))?;
    app.receiver.peer().kill()?;
    falls_to(0, || app.count())?;
    falls_to(SLACK, || app.cgroup.pages())?;
    app.cgroup.remove()
}

/// The process moves on before its cgroup is removed; its idle pages stay charged to what was the
/// cgroup, that is to the parent. They can be counted, reclaimed and used there.
fn removed_cgroup_leaves_pages_to_its_parent(bench: &Bench) -> Outcome {
    shrinker::need()?;
    let parent = Cgroup::create("parent")?;
    let child = parent.child("child")?;
    let home = Cgroup::create("home")?;
    let mut app = App::start(bench, child)?;
    let parent_id = parent.id()?;
    app.receiver.idle(&mut app.sender, PAGES)?;
    check_eq!(app.count()?, PAGES as u64, "idle pages of the child");
    home.add(app.receiver.pid())?;
    app.cgroup.remove()?;
    falls_to(0, || Ok(shrinker::count(parent_id).abs_diff(PAGES as u64)))?;
    // Half of them are used again, and idle again.
    app.receiver.idle(&mut app.sender, PAGES / 2)?;
    check_eq!(
        shrinker::count(parent_id),
        PAGES as u64,
        "idle pages of the parent after use"
    );
    let full = parent.pages()?;
    for node in 0..shrinker::nodes() {
        shrinker::scan(parent_id, node, 2 * PAGES as u64);
    }
    check_eq!(
        shrinker::count(parent_id),
        0,
        "idle pages of the parent after a scan"
    );
    falls_to(full - PAGES as u64 + SLACK, || parent.pages())?;
    // New pages are paid where the process is now.
    app.receiver.idle(&mut app.sender, PAGES)?;
    check_eq!(
        shrinker::count(home.id()?),
        PAGES as u64,
        "idle pages of the new cgroup"
    );
    Ok(())
}
