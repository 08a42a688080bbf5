// SPDX-License-Identifier: GPL-2.0

//! What processes do to their own areas, and to themselves.

use super::counts::{Counts, Kind};
use crate::{
    binder::{Binder, Device, KIB, MIB, PAGE},
    check,
    data::payload,
    endpoint::Received,
    outcome::Outcome,
    remote::place_impostor,
};
use fastrand::Rng;
use rustix::{
    io::{fcntl_setfd, FdFlags},
    mm::{
        madvise, mmap_anonymous, mremap, mremap_fixed, munmap, Advice, MapFlags, MremapFlags,
        ProtFlags,
    },
};
use std::{
    ffi::c_void,
    os::unix::process::CommandExt,
    process::Command,
    ptr,
    sync::{Arc, PoisonError, RwLock},
    thread::sleep,
    time::Duration,
};

/// An area, and whether what the driver writes can still be read there.
pub struct Area {
    pub binder: Arc<Binder>,
    whole: RwLock<bool>,
}

/// How many bytes of a payload an object takes, if there is one.
pub const OBJECT: usize = 24;

impl Area {
    /// Maps an area of a size as processes have them, or a very small one.
    pub fn map(dev: &Device, rng: &mut Rng) -> Outcome<Self> {
        let len = *rng
            .choice([128 * KIB, MIB - 8 * KIB, MIB, 4 * MIB].iter())
            .unwrap_or(&MIB);
        Ok(Area {
            binder: Arc::new(Binder::mapped(dev, len)?),
            whole: RwLock::new(true),
        })
    }

    /// Compares what came with what is sent when so many bytes are sent.
    pub fn compare(&self, got: &Received, data: &[u8], counts: &Counts) -> Outcome {
        let whole = self.whole.read().unwrap_or_else(PoisonError::into_inner);
        if *whole {
            // The driver has changed an object on its way.
            let skip = if got.offsets_len > 0 { OBJECT } else { 0 };
            let rest = Received {
                addr: got.addr + skip,
                len: got.len - skip,
                ..*got
            };
            check!(
                rest.has(&payload(data, got.len)[skip..]),
                "a payload of {} bytes changed",
                got.len
            );
            counts.add(Kind::Compared);
        }
        Ok(())
    }

    /// Does something that a process may do at any moment, mostly harmless; it may not return.
    pub fn trouble(&self, rng: &mut Rng, counts: &Counts) -> Outcome {
        match rng.u32(0..4096) {
            0..32 => self.advise(rng, counts),
            32..40 => fork(rng, counts),
            40..50 => self.damage(rng, counts),
            50 => self.execute(rng, counts),
            51..54 => {
                counts.add(Kind::Exited);
                exit()
            }
            _ => Ok(()),
        }
    }

    fn advise(&self, rng: &mut Rng, counts: &Counts) -> Outcome {
        const ADVICE: [Advice; 5] = [
            Advice::WillNeed,
            Advice::LinuxCold,
            Advice::LinuxPageOut,
            Advice::LinuxDontFork,
            Advice::LinuxHugepage,
        ];
        let whole = self.whole.read().unwrap_or_else(PoisonError::into_inner);
        if let (true, Some(map)) = (*whole, &self.binder.map) {
            // SAFETY: None of these changes what is there. The answer doesn't matter.
            let _ = unsafe { madvise(map.addr as *mut c_void, map.len, ADVICE[rng.usize(0..5)]) };
            counts.add(Kind::Advised);
        }
        Ok(())
    }

    /// Makes the area, or a part of it, unfit to be read. Done once only: what is at the address
    /// afterwards may belong to others.
    fn damage(&self, rng: &mut Rng, counts: &Counts) -> Outcome {
        let mut whole = self.whole.write().unwrap_or_else(PoisonError::into_inner);
        let (true, Some(map)) = (*whole, &self.binder.map) else {
            return Ok(());
        };
        *whole = false;
        let start = map.addr as *mut c_void;
        let pages = map.len / PAGE;
        let first = rng.usize(0..pages);
        let some = rng.usize(1..=pages - first) * PAGE;
        let kind = match rng.u32(0..7) {
            0 => {
                // SAFETY: Nobody reads the area while `whole` is locked, nor when it is false.
                unsafe { munmap(start, map.len)? };
                Kind::Unmapped
            }
            1 | 2 => {
                // SAFETY: As above.
                unsafe { munmap(start.byte_add(first * PAGE), some)? };
                Kind::Cut
            }
            3 => {
                let flags = MapFlags::PRIVATE;
                // SAFETY: The kernel picks a free place, which the area then takes.
                unsafe {
                    let place =
                        mmap_anonymous(ptr::null_mut(), map.len, ProtFlags::empty(), flags)?;
                    mremap_fixed(start, map.len, map.len, MremapFlags::MAYMOVE, place)?;
                }
                Kind::Moved
            }
            4 => {
                // SAFETY: As above.
                unsafe { mremap(start, map.len, some, MremapFlags::empty())? };
                Kind::Moved
            }
            5 => {
                place_impostor(map.addr + first * PAGE, some)?;
                Kind::Replaced
            }
            _ => {
                // SAFETY: As above.
                unsafe { madvise(start.byte_add(first * PAGE), some, Advice::LinuxDontNeed)? };
                Kind::Emptied
            }
        };
        counts.add(kind);
        drop(whole);
        // The others are to meet it as it is now, but not for long: nothing gets through any more.
        sleep(Duration::from_micros(rng.u64(0..100_000)));
        exit()
    }

    /// Becomes another program, which holds the file or doesn't, until it is killed.
    fn execute(&self, rng: &mut Rng, counts: &Counts) -> Outcome {
        if rng.bool() {
            fcntl_setfd(&self.binder.fd, FdFlags::empty())?;
        }
        counts.add(Kind::Executed);
        Err(Command::new("/proc/self/exe").arg("--hold").exec().into())
    }
}

/// Ends the process with all that it has.
fn exit() -> ! {
    // SAFETY: Always safe; other threads and handlers don't get to run.
    unsafe { libc::_exit(0) }
}

/// Leaves a child that holds the file for a while.
fn fork(rng: &mut Rng, counts: &Counts) -> Outcome {
    let time = rng.u32(0..50_000);
    // SAFETY: The child, which may have been made while other threads held locks, takes none.
    unsafe {
        if libc::fork() == 0 {
            libc::usleep(time);
            libc::_exit(0);
        }
    }
    counts.add(Kind::Forked);
    Ok(())
}
