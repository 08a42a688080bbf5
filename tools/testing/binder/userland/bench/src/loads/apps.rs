// SPDX-License-Identifier: GPL-2.0

//! What reclaim gets from apps that do nothing: from all of them when the machine is short of memory,
//! and from one when only its own cgroup is squeezed.

use crate::{
    app::{self, App, Group},
    clock::measure,
    record::Figure,
    Plan,
};
use binder_raw::{
    binder::{KIB, PAGE},
    check_eq,
    outcome::{skip, Outcome},
};

/// Idle pages of each app.
const PAGES: usize = 64;

/// memory.reclaim of the whole machine, by as much as all apps have in idle pages.
pub fn pressure(_: &Plan, figures: &mut Vec<Figure>) -> Outcome {
    for count in [50, 500] {
        let apps = start(count)?;
        let (time, ()) = measure(|| app::reclaim(Group::root(), count * PAGES * PAGE));
        let freed = count * PAGES - app::resident(&apps)?;
        let name = format!("memory pressure: {count} idle processes");
        given_back(figures, &name, freed, time)?;
    }
    Ok(())
}

/// memory.reclaim of one app's cgroup, by as much as it has in idle pages.
pub fn one_of_many(_: &Plan, figures: &mut Vec<Figure>) -> Outcome {
    let apps = start(50)?;
    let (one, others) = apps.split_first().expect("there are some");
    let (time, ()) = measure(|| app::reclaim(one.group.path(), PAGES * PAGE));
    let name = "one app of 50";
    given_back(figures, name, PAGES - one.resident()?, time)?;
    figures.push(
        Figure::one(
            format!("{name}: kept by the others"),
            "KiB",
            app::resident(others)? * PAGE / KIB,
        )
        .more_is_better(),
    );
    Ok(())
}

fn start(count: usize) -> Outcome<Vec<App>> {
    app::need()?;
    let apps = App::start_all(count, PAGES)?;
    check_eq!(app::resident(&apps)?, count * PAGES, "idle pages");
    Ok(apps)
}

fn given_back(figures: &mut Vec<Figure>, name: &str, pages: usize, time: u64) -> Outcome {
    if pages == 0 {
        return skip("memory.reclaim frees no page of the buffers");
    }
    let given = Figure::one(format!("{name}: given back"), "KiB", pages * PAGE / KIB);
    figures.push(given.more_is_better());
    // Where instructions are counted, each is one ns, and there is waiting as well.
    figures.push(Figure::new(
        format!("{name}: time for a page given back"),
        "ns",
        vec![time],
        pages as u64,
    ));
    Ok(())
}
