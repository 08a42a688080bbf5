// SPDX-License-Identifier: GPL-2.0

//! The shrinker sample while allocations fail, one by one: `ENOMEM`, and nothing left behind.

use crate::{
    cgroup::{leave, Cgroup},
    check, check_eq,
    faults::Faults,
    note,
    outcome::{Context, Outcome, Stop},
    runner::{Bench, Test},
    sample::{self, Expedited, Sample},
    tests,
};
use rustix::io::Errno;
use std::io::{self, Write};

pub const TESTS: &[Test] = tests!["failslab":
    adding_with_the_nth_failing @ 30,
    adding_with_all_failing_from_some_byte_on @ 30,
    loading_and_unloading @ 60,
];

/// Adds one object to the empty cache by `add`, and that for a new cgroup, if there are any: the
/// list of a cgroup is allocated with its first object. Tells whether it was added.
fn add_one(sample: &Sample, add: impl FnOnce() -> Outcome<io::Result<usize>>) -> Outcome<bool> {
    let cgroup = match Cgroup::create("failslab") {
        Ok(cgroup) => Some(cgroup),
        Err(Stop::Skip(_)) => None,
        Err(why) => return Err(why),
    };
    if let Some(cgroup) = &cgroup {
        cgroup.enter()?;
    }
    let result = add()?;
    if let Err(error) = &result {
        check_eq!(Errno::from_io_error(error), Some(Errno::NOMEM), "error");
    }
    let objects = u64::from(result.is_ok());
    check_eq!(sample.get("objects")?, objects, "objects");
    check_eq!(sample.shrinker.total(), objects, "objects in the list");
    // Now that there is memory, all is well.
    sample.add(3)?;
    check_eq!(sample.shrinker.total(), objects + 3, "objects in the list");
    if let Some(cgroup) = &cgroup {
        let count = sample.shrinker.count(cgroup.id()?);
        check_eq!(count, objects + 3, "objects of the cgroup");
        leave()?;
    }
    sample.del(objects + 3)?;
    check_eq!(sample.get("objects")?, 0, "objects after their removal");
    check_eq!(sample.shrinker.total(), 0, "and in the list");
    Ok(result.is_ok())
}

fn adding_with_the_nth_failing(_: &Bench) -> Outcome {
    let sample = Sample::start()?;
    let faults = Faults::enable()?;
    let mut file = sample.open("add")?;
    let mut failures = 0;
    for nth in 1.. {
        let mut hit = false;
        let added = add_one(&sample, || {
            let result;
            (result, hit) = faults.nth(nth, || file.write(b"1"))?;
            Ok(result)
        })?;
        check!(added || hit, "not added, though no allocation failed");
        failures += u32::from(!added);
        if !hit {
            note!("{} allocations failed, {failures} for good", nth - 1);
            break;
        }
    }
    check!(failures > 0, "no failure");
    Ok(())
}

/// Where a failed allocation is tried again, that fails, too.
fn adding_with_all_failing_from_some_byte_on(_: &Bench) -> Outcome {
    const STEP: usize = 16;
    let sample = Sample::start()?;
    let faults = Faults::enable()?;
    let mut file = sample.open("add")?;
    // In an index with nothing else in it, only the first object takes no memory.
    sample.add(1)?;
    sample.del(1)?;
    for bytes in (0..).step_by(STEP) {
        if add_one(&sample, || faults.with_bytes(bytes, || file.write(b"1")))? {
            note!("an object takes less than {bytes} bytes");
            check!(bytes > 0, "no failure");
            return Ok(());
        }
    }
    Ok(())
}

/// Loads the module, and unloads it again, each with the n-th allocation of both failing.
fn loading_and_unloading(_: &Bench) -> Outcome {
    sample::need_module()?;
    let faults = Faults::enable()?;
    let _expedited = Expedited::start();
    let module = sample::open_module()?;
    let mut failures = 0;
    drop(Sample::start()?);
    for nth in 1.. {
        // Files in debugfs are missing without a word when there is no memory. Unloading can't fail.
        let both = || sample::load(&module).map(|()| sample::unload());
        let (result, hit) = faults.nth(nth, both)?;
        match result {
            Ok(unloaded) => unloaded.context("unloading")?,
            Err(error) => {
                check!(hit, "{error} without a failing allocation");
                check_eq!(error, Errno::NOMEM, "error");
                failures += 1;
            }
        }
        check_eq!(sample::traces()?, Vec::<&str>::new(), "left behind");
        if !hit {
            note!("{} allocations failed, {failures} for good", nth - 1);
            break;
        }
    }
    check!(failures > 0, "no failure");
    let sample = Sample::start()?;
    sample.add(100)?;
    sample.shrinker.scan_all(u64::MAX);
    check_eq!(sample.get("objects")?, 0, "objects after a scan");
    Ok(())
}
