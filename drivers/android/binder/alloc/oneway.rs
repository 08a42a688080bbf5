// SPDX-License-Identifier: GPL-2.0

//! The space for oneway transactions, and who uses it.
//!
//! Half of a mapping may be used by oneway transactions, so that there is always space for the
//! others. A sender that has much of that half while it is nearly used up is suspected of spamming.
//!
//! Both peers find out how much a sender has by a walk over all buffers, each time that they ask.
//! Here it is counted: a sender has a tally while it has buffers. Most often there is only one
//! sender at a time, so one tally is always there; for others there are slots.

use core::cell::Cell;

use kernel::{
    prelude::*,
    task::Pid, //
};

use super::slots::{
    self,
    Keyed,
    Slots, //
};

/// Memory for more tallies, see [`Oneway::grow`].
pub(super) type Grown = slots::Grown<Tally>;

/// Why a buffer can't be charged, see [`Oneway::charge`].
pub(super) type ChargeError = slots::Refused<Tally>;

/// A sender that is suspected of spamming: it has so many buffers, of so many bytes together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Suspect {
    pub(super) buffers: u32,
    pub(super) bytes: usize,
    /// Whether it is to be told so. Only the first suspect is, until there is space again.
    pub(super) is_told: bool,
}

/// The oneway buffers that come from one process.
#[derive(Default)]
pub(super) struct Tally {
    pid: Cell<Pid>,
    buffers: Cell<u32>,
    bytes: Cell<usize>,
}

impl Tally {
    fn add(&self, size: usize) {
        self.buffers.set(self.buffers.get() + 1);
        self.bytes.set(self.bytes.get() + size);
    }

    fn subtract(&self, size: usize) {
        self.buffers.set(self.buffers.get() - 1);
        self.bytes.set(self.bytes.get() - size);
    }
}

impl Keyed for Tally {
    fn key(&self) -> u32 {
        self.pid.get() as u32
    }
}

/// The space for oneway transactions in a mapping.
///
/// # Invariants
///
/// - `free` and the bytes of all tallies together are half of the mapping.
/// - No two tallies are of the same sender. The slots in use are linked, each of them has at least
///   one buffer, and there are `others` of them.
pub(super) struct Oneway {
    first: Tally,
    tallies: Slots<Tally>,
    others: Cell<u32>,
    mapping_size: usize,
    free: Cell<usize>,
    /// A suspect has been told, and no buffer has met enough space since.
    has_told: Cell<bool>,
}

impl Oneway {
    /// The oneway space of a mapping of `mapping_size` bytes.
    ///
    /// Takes no memory until there are several senders.
    pub(super) const fn new(mapping_size: usize) -> Self {
        // INVARIANT: There are no slots.
        Self {
            first: Tally {
                pid: Cell::new(0),
                buffers: Cell::new(0),
                bytes: Cell::new(0),
            },
            tallies: Slots::new(),
            others: Cell::new(0),
            mapping_size,
            free: Cell::new(mapping_size / 2),
            has_told: Cell::new(false),
        }
    }

    /// What is left.
    pub(super) fn free_space(&self) -> usize {
        self.free.get()
    }

    /// Charges a buffer of `size` bytes, padding included, that comes from process `pid`.
    ///
    /// Says so if the sender is suspected of spamming: less than a tenth of the mapping's size is
    /// left, and the sender has more than 50 buffers or more than a quarter of the mapping's size.
    ///
    /// As in the C driver, one suspect is told in each shortage of space, and only for one of its
    /// buffers: a shortage ends when a buffer leaves that tenth free.
    ///
    /// # Errors
    ///
    /// [`ChargeError::NoSpace`] if not so much is left. [`ChargeError::NeedGrow`] if there is no
    /// memory for one more tally: try again after [`Oneway::grow`]. Nothing is charged then.
    #[inline]
    pub(super) fn charge(&mut self, size: usize, pid: Pid) -> Result<Option<Suspect>, ChargeError> {
        let free = self
            .free
            .get()
            .checked_sub(size)
            .ok_or(ChargeError::NoSpace)?;
        let tally = if self.first.pid.get() == pid {
            &self.first
        } else {
            self.tally(pid)?
        };
        tally.add(size);
        self.free.set(free);
        if free >= self.mapping_size / 10 {
            self.has_told.set(false);
            return Ok(None);
        }
        Ok(self.suspect(tally))
    }

    /// What is said of a sender when little space is left.
    fn suspect(&self, tally: &Tally) -> Option<Suspect> {
        let (buffers, bytes) = (tally.buffers.get(), tally.bytes.get());
        (buffers > 50 || bytes > self.mapping_size / 4).then(|| Suspect {
            buffers,
            bytes,
            is_told: !self.has_told.replace(true),
        })
    }

    /// Undoes [`Oneway::charge`] of the same `size` and `pid`.
    ///
    /// Returns what the caller must drop outside the lock.
    #[inline]
    pub(super) fn uncharge(&mut self, size: usize, pid: Pid) -> Option<Grown> {
        if self.first.pid.get() != pid {
            return self.uncharge_other(size, pid);
        }
        if self.first.buffers.get() != 0 {
            self.first.subtract(size);
            self.free.set(self.free.get() + size);
        }
        None
    }

    #[inline(never)]
    fn uncharge_other(&mut self, size: usize, pid: Pid) -> Option<Grown> {
        let tally = self.tallies.find(pid as u32)?;
        tally.subtract(size);
        self.free.set(self.free.get() + size);
        if tally.buffers.get() == 0 {
            self.tallies.unlink(tally);
            self.tallies.put(tally);
            self.others.set(self.others.get() - 1);
        }
        if self.tallies.is_large() {
            self.trim()
        } else {
            None
        }
    }

    /// The tally of a sender that hasn't the first one. The caller adds a buffer.
    #[inline(never)]
    fn tally(&self, pid: Pid) -> Result<&Tally, ChargeError> {
        if let Some(tally) = self.tallies.find(pid as u32) {
            return Ok(tally.into_ref());
        }
        if self.first.buffers.get() == 0 {
            self.first.pid.set(pid);
            return Ok(&self.first);
        }
        let Some(tally) = self.tallies.take() else {
            return Err(ChargeError::NeedGrow(self.tallies.request()));
        };
        self.others.set(self.others.get() + 1);
        tally.pid.set(pid);
        self.tallies.link(tally);
        Ok(tally.into_ref())
    }

    /// Gives all memory away if nobody needs it. Returns what the caller must drop outside the
    /// lock.
    pub(super) fn trim(&mut self) -> Option<Grown> {
        if self.others.get() != 0 {
            return None;
        }
        Some(self.tallies.vacate())
    }

    /// Adds memory for tallies. Returns what the caller must drop outside the lock.
    pub(super) fn grow(&mut self, grown: Grown) -> Grown {
        self.tallies.grow(grown)
    }
}

#[cfg(CONFIG_ANDROID_BINDER_RUST_KUNIT_TEST)]
#[kunit_tests(rust_binder_oneway)]
mod tests {
    use super::*;

    // A tenth of it is a multiple of the pointer size.
    const SIZE: usize = 5 << 18;

    fn told(buffers: u32, bytes: usize) -> Option<Suspect> {
        Some(Suspect {
            buffers,
            bytes,
            is_told: true,
        })
    }

    fn not_told(buffers: u32, bytes: usize) -> Option<Suspect> {
        Some(Suspect {
            buffers,
            bytes,
            is_told: false,
        })
    }

    fn charge(oneway: &mut Oneway, size: usize, pid: Pid) -> Result<Option<Suspect>> {
        loop {
            match oneway.charge(size, pid) {
                Ok(suspect) => return Ok(suspect),
                Err(ChargeError::NoSpace) => return Err(ENOSPC),
                Err(ChargeError::NeedGrow(request)) => {
                    drop(oneway.grow(request.alloc(GFP_KERNEL)?))
                }
            }
        }
    }

    #[test]
    fn has_half_of_the_mapping() -> Result {
        let mut oneway = Oneway::new(SIZE);
        assert_eq!(oneway.free_space(), SIZE / 2);
        // What will never fit doesn't ask for memory.
        let charged = oneway.charge(SIZE / 2 + 8, 1);
        assert!(matches!(charged, Err(ChargeError::NoSpace)));
        assert_eq!(oneway.free_space(), SIZE / 2);

        charge(&mut oneway, SIZE / 2 - 8, 1)?;
        assert_eq!(charge(&mut oneway, 16, 1).err(), Some(ENOSPC));
        assert_eq!(charge(&mut oneway, 16, 2).err(), Some(ENOSPC));
        assert!(matches!(oneway.charge(8, 2), Err(ChargeError::NeedGrow(_))));
        assert_eq!(oneway.free_space(), 8);
        charge(&mut oneway, 8, 2)?;
        assert_eq!(oneway.free_space(), 0);
        assert_eq!(charge(&mut oneway, 8, 2).err(), Some(ENOSPC));

        // A sender that has nothing can't give anything back.
        assert!(oneway.uncharge(8, 3).is_none());
        assert_eq!(oneway.free_space(), 0);
        oneway.uncharge(8, 2);
        assert!(oneway.uncharge(8, 2).is_none());
        assert_eq!(oneway.free_space(), 8);
        oneway.uncharge(SIZE / 2 - 8, 1);
        assert_eq!(oneway.free_space(), SIZE / 2);
        Ok(())
    }

    #[test]
    fn suspects_by_bytes() -> Result {
        // Nobody is suspected while a tenth of the mapping is left.
        let mut oneway = Oneway::new(SIZE);
        let tenth = SIZE / 10;
        let rest = (SIZE / 2 - tenth) & !7;
        assert_eq!(charge(&mut oneway, rest, 1)?, None);
        assert!(oneway.free_space() >= tenth);
        let suspect = charge(&mut oneway, 8, 1)?;
        assert_eq!(suspect, told(2, rest + 8));
        // Again for each buffer, though it isn't told any more, but not for others.
        assert_eq!(charge(&mut oneway, 8, 1)?, not_told(3, rest + 16));
        assert_eq!(charge(&mut oneway, 8, 2)?, None);

        // A quarter of the mapping is not yet too much.
        let mut oneway = Oneway::new(SIZE);
        charge(&mut oneway, SIZE / 2 - SIZE / 4 - 16, 2)?;
        assert_eq!(charge(&mut oneway, SIZE / 4, 1)?, None);
        assert_eq!(charge(&mut oneway, 8, 1)?, told(2, SIZE / 4 + 8));
        oneway.uncharge(8, 1);
        oneway.uncharge(8, 1);
        Ok(())
    }

    #[test]
    fn suspects_by_number() -> Result {
        let mut oneway = Oneway::new(SIZE);
        for pid in [2, 3] {
            charge(&mut oneway, SIZE / 5, pid)?;
        }
        for _ in 0..50 {
            assert_eq!(charge(&mut oneway, 8, 1)?, None);
        }
        assert_eq!(charge(&mut oneway, 8, 1)?, told(51, 51 * 8));
        oneway.uncharge(8, 1);
        oneway.uncharge(8, 1);
        assert_eq!(charge(&mut oneway, 8, 1)?, None);
        assert_eq!(charge(&mut oneway, 8, 1)?, not_told(51, 51 * 8));

        // With space, number doesn't matter.
        oneway.uncharge(SIZE / 5, 2);
        assert_eq!(charge(&mut oneway, 8, 1)?, None);
        Ok(())
    }

    /// One suspect in each shortage, which ends when a buffer leaves space, whoever sends it.
    #[test]
    fn tells_once_in_a_shortage() -> Result {
        let mut oneway = Oneway::new(SIZE);
        let most = SIZE / 2 - SIZE / 10;
        assert_eq!(charge(&mut oneway, most, 1)?, None);
        assert_eq!(charge(&mut oneway, 8, 1)?, told(2, most + 8));
        for _ in 0..50 {
            assert_eq!(charge(&mut oneway, 8, 2)?, None);
        }
        // Another suspect, but of the same shortage.
        assert_eq!(charge(&mut oneway, 8, 2)?, not_told(51, 51 * 8));

        // That there is space doesn't suffice, nor a buffer that is refused.
        oneway.uncharge(most, 1);
        assert_eq!(charge(&mut oneway, SIZE / 2, 2).err(), Some(ENOSPC));
        assert_eq!(charge(&mut oneway, most, 1)?, not_told(2, most + 8));

        oneway.uncharge(most, 1);
        assert_eq!(charge(&mut oneway, 8, 3)?, None);
        assert_eq!(charge(&mut oneway, most, 1)?, told(2, most + 8));
        Ok(())
    }

    #[test]
    fn gives_memory_back() -> Result {
        let mut oneway = Oneway::new(SIZE);
        for pid in 0..1000 {
            charge(&mut oneway, 8, pid)?;
        }
        assert_eq!(oneway.others.get(), 999);
        for pid in 0..1000 {
            assert_eq!(oneway.uncharge(8, pid).is_some(), pid == 999);
        }
        assert_eq!(oneway.others.get(), 0);
        // A few are kept unless someone asks.
        charge(&mut oneway, 8, -1)?;
        charge(&mut oneway, 8, -2)?;
        assert!(oneway.trim().is_none());
        assert!(oneway.uncharge(8, -2).is_none());
        assert!(oneway.trim().is_some());
        oneway.uncharge(8, -1);
        assert_eq!(oneway.free_space(), SIZE / 2);
        Ok(())
    }

    /// The same answers as by a walk over all buffers.
    #[test]
    fn does_as_a_walk() -> Result {
        let mut oneway = Oneway::new(SIZE);
        let mut buffers = KVec::<(usize, Pid)>::new();
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut used = 0;
        let mut has_told = false;
        let (mut suspects, mut were_told) = (0, 0);

        for op in 0..20_000 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let bits = (random >> 8) as usize;
            // Many senders, of which few send half of it all.
            let pid = ((bits >> 8) % if bits & 1 == 0 { 4 } else { 500 }) as Pid;

            if op % 1000 == 0 {
                // There is space again.
                for _ in 0..buffers.len() / 4 {
                    let (size, pid) = buffers.pop().ok_or(EINVAL)?;
                    oneway.uncharge(size, pid);
                    used -= size;
                }
            }
            if (bits >> 1) % 16 < 11 {
                let limit = if op % 1000 == 0 { 1 << 15 } else { 128 };
                let size = (1 + (bits >> 32) % limit) * 8;
                let charged = charge(&mut oneway, size, pid);
                if used + size > SIZE / 2 {
                    assert_eq!(charged.err(), Some(ENOSPC));
                    continue;
                }
                used += size;
                buffers.push((size, pid), GFP_KERNEL)?;

                let (mut number, mut bytes) = (0, 0);
                for buffer in buffers.iter().filter(|buffer| buffer.1 == pid) {
                    number += 1;
                    bytes += buffer.0;
                }
                let low = SIZE / 2 - used < SIZE / 10;
                let suspect = low && (number > 50 || bytes > SIZE / 4);
                let expected = suspect.then_some(Suspect {
                    buffers: number,
                    bytes,
                    is_told: !has_told,
                });
                assert_eq!(charged?, expected);
                suspects += usize::from(suspect);
                were_told += usize::from(suspect && !has_told);
                has_told = low && (has_told || suspect);
            } else if !buffers.is_empty() {
                let i = (bits >> 32) % buffers.len();
                let (size, pid) = buffers.remove(i)?;
                oneway.uncharge(size, pid);
                used -= size;
            }
            assert_eq!(oneway.free_space(), SIZE / 2 - used);
        }
        // Tallies are used again.
        assert!(oneway.tallies.end() <= 500);
        // Both answers were put to the test.
        assert!(1000 < suspects && suspects < 10_000);
        assert!(5 < were_told && were_told < suspects / 2);
        Ok(())
    }
}
