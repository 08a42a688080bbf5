// SPDX-License-Identifier: GPL-2.0

//! All ways in which a few adjoining buffers can share pages, for tests of whoever keeps the pages.
//!
//! [`BUFFERS`] buffers lie one after the other, at the beginning or at the end of an area. Each
//! ends in one of the ways of [`ENDS`], and they are released in each order. These are the cases
//! that the KUnit suite of the C allocator goes through, too. What is checked here beyond that is
//! that after each step, the right pages are in use and the right ones idle.

use core::ops::Range;

use kernel::page::PAGE_SIZE;

use super::{pages::State, BufferAllocator};

/// How many buffers there are.
pub(crate) const BUFFERS: usize = 5;

/// A part of a page, of which as many as there are buffers don't fill it.
const PART: usize = PAGE_SIZE / 8;
const _: () = assert!(PART * BUFFERS < PAGE_SIZE);

/// Where a buffer can end: so many page boundaries after the one before it, and on the last of
/// them, or beyond it.
const ENDS: [(usize, bool); 5] = [(0, false), (1, true), (1, false), (2, true), (2, false)];

/// In how many orders the buffers can be released.
const ORDERS: usize = 120;

/// How many cases there are.
pub(crate) const CASES: usize = ENDS.len().pow(BUFFERS as u32) * 2 * ORDERS;

/// A set of pages: page `n` is in it if bit `n` is set. There can't be more pages in the area.
pub(crate) type Pages = u64;

impl BufferAllocator {
    /// The pages that are in use, and those that are idle.
    pub(crate) fn page_sets(&self) -> (Pages, Pages) {
        let state = self.area.state.lock();
        let (mut in_use, mut idle) = (0, 0);
        if let Some(mapped) = &state.mapped {
            for n in 0..Pages::BITS {
                match mapped.pages.state(n as usize) {
                    State::InUse | State::Filling | State::Installing => in_use |= 1 << n,
                    State::Idle => idle |= 1 << n,
                    _ => {}
                }
            }
        }
        (in_use, idle)
    }

    /// Whether neither its ranges nor its page table have memory.
    pub(crate) fn is_bare(&self) -> bool {
        let state = self.area.state.lock();
        let mapped = state.mapped.as_ref();
        mapped.is_none_or(|mapped| mapped.ranges.is_bare() && mapped.pages.is_bare())
    }
}

/// What is tested: an area of which nothing is in use, and whose pages are all absent.
pub(crate) trait Subject {
    type Buffer;
    type Error;

    /// Reserves a buffer of `size` bytes. Says where in the area it lies, too.
    fn reserve(&mut self, size: usize) -> Result<(Self::Buffer, usize), Self::Error>;

    fn release(&mut self, buffer: Self::Buffer);

    /// Frees the idle pages.
    fn reclaim(&mut self);

    /// The pages that are in use, and those that are idle.
    fn pages(&self) -> (Pages, Pages);
}

/// What went wrong in a case.
#[derive(Debug)]
#[allow(dead_code)] // Is there to be printed.
pub(crate) enum Failure<E> {
    Reserve {
        step: usize,
        err: E,
    },
    Offset {
        step: usize,
        wanted: usize,
        found: usize,
    },
    /// Pages in use, and idle ones.
    Pages {
        step: usize,
        wanted: (Pages, Pages),
        found: (Pages, Pages),
    },
}

/// One of the cases.
#[derive(Debug)]
pub(crate) struct Case {
    /// The places of the buffers, in the order in which they are reserved.
    places: [Range<usize>; BUFFERS],
    /// The buffers in the order in which they are released.
    order: [usize; BUFFERS],
}

impl Case {
    /// Case `n` of [`CASES`], in an area of `size` bytes, 64 pages at most.
    pub(crate) fn new(n: usize, size: usize) -> Self {
        debug_assert!(n < CASES && size <= Pages::BITS as usize * PAGE_SIZE);
        let (mut n, mut orders) = (n / ORDERS, n % ORDERS);

        let at_end = n % 2 != 0;
        n /= 2;
        let mut sizes = [0; BUFFERS];
        let mut end = 0;
        for size in &mut sizes {
            let start = end;
            let (boundaries, aligned) = ENDS[n % ENDS.len()];
            n /= ENDS.len();
            end = match boundaries {
                0 => start,
                _ => (start / PAGE_SIZE + boundaries) * PAGE_SIZE,
            };
            if !aligned {
                end += PART;
            }
            *size = end - start;
        }
        if at_end {
            // A buffer on all of the space before them brings the others there.
            sizes.reverse();
            sizes[0] += size - end;
        }

        let mut order = [0, 1, 2, 3, 4];
        for i in 0..BUFFERS {
            order.swap(i, i + orders % (BUFFERS - i));
            orders /= BUFFERS - i;
        }

        let mut start = 0;
        let places = sizes.map(|size| {
            start += size;
            start - size..start
        });
        Self { places, order }
    }

    /// The pages that buffer `nth` lies on.
    fn pages(&self, nth: usize) -> Pages {
        let place = &self.places[nth];
        (place.start / PAGE_SIZE..place.end.div_ceil(PAGE_SIZE)).fold(0, |all, n| all | 1 << n)
    }

    /// Reserves and releases the buffers, first on pages that are absent and then on idle ones, and
    /// frees the pages. After each step the pages are looked at.
    ///
    /// # Errors
    ///
    /// What was wrong first, if something was.
    pub(crate) fn run<S: Subject>(&self, subject: &mut S) -> Result<(), Failure<S::Error>> {
        let mut touched = 0;
        let mut step = 0;
        for _ in 0..2 {
            let mut buffers = [const { None }; BUFFERS];
            for nth in 0..BUFFERS {
                step += 1;
                let (buffer, found) = subject
                    .reserve(self.places[nth].len())
                    .map_err(|err| Failure::Reserve { step, err })?;
                buffers[nth] = Some(buffer);
                let wanted = self.places[nth].start;
                if found != wanted {
                    return Err(Failure::Offset {
                        step,
                        wanted,
                        found,
                    });
                }
                touched |= self.pages(nth);
                self.check(subject, step, &buffers, touched)?;
            }
            for nth in self.order {
                step += 1;
                if let Some(buffer) = buffers[nth].take() {
                    subject.release(buffer);
                }
                self.check(subject, step, &buffers, touched)?;
            }
        }
        subject.reclaim();
        self.check(subject, step + 1, &[const { None }; BUFFERS], 0)
    }

    fn check<S: Subject>(
        &self,
        subject: &S,
        step: usize,
        buffers: &[Option<S::Buffer>],
        touched: Pages,
    ) -> Result<(), Failure<S::Error>> {
        let in_use = (0..BUFFERS)
            .filter(|&nth| buffers[nth].is_some())
            .fold(0, |all, nth| all | self.pages(nth));
        let wanted = (in_use, touched & !in_use);
        let found = subject.pages();
        if found == wanted {
            Ok(())
        } else {
            Err(Failure::Pages {
                step,
                wanted,
                found,
            })
        }
    }
}
