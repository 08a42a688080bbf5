// SPDX-License-Identifier: GPL-2.0

//! What is done with a driver: a program of operations, made of bytes, so that random bytes as well
//! as those of a fuzzer are a program.

use binder_raw::binder::{KIB, MIB, PAGE};
use serde::{Deserialize, Serialize};

/// How many processes there are. The first one is the context manager.
pub const PARTIES: usize = 3;

/// One process does something.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Op {
    pub by: usize,
    pub action: Action,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Action {
    /// Maps an area. The first time is the one that counts.
    Map { len: usize, write: bool },
    /// Unmaps so many pages of it.
    Unmap { first: usize, pages: usize },
    /// Sends a transaction, and receives.
    Send {
        handle: u32,
        oneway: bool,
        clear: bool,
        payload: Payload,
    },
    /// Replies to what was received last, and receives.
    Reply {
        clear: bool,
        /// Sets the flag, which doesn't mean anything for a reply.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        oneway: bool,
        payload: Payload,
    },
    /// Reads until there is a transaction, or nothing any more.
    Receive,
    /// Frees a buffer, or tries to.
    Free(Which),
    /// Changes the count of a reference.
    Count { command: Counting, handle: u32 },
    /// Asks to be told when it sends too much.
    DetectSpam(bool),
    /// Writes these bytes, which may be no command at all.
    Write(Vec<u8>),
    /// An ioctl with a number that may be none.
    Ioctl(u8),
    /// Has the driver's shrinker look at so many idle pages of each memory cgroup and node, if debugfs has it.
    /// What comes of it isn't compared.
    Scan { pages: u64 },
    /// Dies, and comes back as another process, with an area of this size.
    Die { len: usize },
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Counting {
    Increfs,
    Acquire,
    Release,
    Decrefs,
}

/// A buffer, of those that the process has.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Which {
    /// The n-th that it holds.
    Held(u8),
    /// The n-th last that it has freed.
    Freed(u8),
    /// An address inside of the n-th.
    Inside(u8),
    /// An address in front of the area.
    Outside,
    Null,
}

/// What goes with a transaction or a reply.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Payload {
    pub len: usize,
    pub objects: Vec<(u64, Object)>,
    /// How many bytes of offsets it says there are, if not as many as there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offsets_len: Option<u64>,
    /// How much space for buffer objects it asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extra: Option<u64>,
}

impl Payload {
    /// How much space it takes in an area, if that can be said at all.
    pub fn space(&self) -> Option<usize> {
        let offsets = self.offsets_len.unwrap_or(8 * self.objects.len() as u64) as usize;
        let extra = self.extra.unwrap_or(0) as usize;
        [self.len, offsets, extra]
            .iter()
            .try_fold(0usize, |sum, part| {
                sum.checked_add(part.checked_next_multiple_of(8)?)
            })
            .map(|size| size.max(8))
    }
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Object {
    Node {
        weak: bool,
        number: u64,
    },
    Handle {
        weak: bool,
        handle: u32,
    },
    /// A file, or a number that is none.
    File {
        valid: bool,
    },
    /// A buffer, and the object that is to hold its address, and where.
    Buffer {
        len: u64,
        parent: Option<(u64, u64)>,
    },
    /// So many files in the object `parent`.
    Files {
        count: u64,
        parent: u64,
        at: u64,
    },
    Nonsense,
}

impl Object {
    /// How many bytes it takes.
    pub fn size(&self) -> usize {
        match self {
            Object::Buffer { .. } => 40,
            Object::Files { .. } => 32,
            _ => 24,
        }
    }
}

/// Bytes that decide. Zeroes follow the last one.
struct Bytes<'a>(std::slice::Iter<'a, u8>);

impl Bytes<'_> {
    fn byte(&mut self) -> u8 {
        self.0.next().copied().unwrap_or(0)
    }

    fn below(&mut self, end: usize) -> usize {
        let wide = usize::from(self.byte()) << 8 | usize::from(self.byte());
        wide % end
    }

    fn one_in(&mut self, n: u8) -> bool {
        self.byte() % n == n - 1
    }

    /// The length of an area.
    fn area(&mut self) -> usize {
        match self.byte() % 16 {
            0 => PAGE,
            1 => 2 * PAGE + 1,
            2 => 1,
            3 => 4 * MIB,
            4 => 5 * MIB + 100,
            5..8 => MIB - 2 * PAGE,
            8..11 => 32 * KIB,
            11 => 0,
            _ => 128 * KIB,
        }
    }

    /// The length of a payload for an area.
    fn len(&mut self, area: usize) -> usize {
        match self.byte() % 20 {
            0 | 1 => 0,
            2 => 1 + self.below(8),
            3..9 => self.below(600),
            9..12 => self.below(3 * PAGE),
            12 => PAGE * (1 + self.below(4)),
            13 => PAGE * (1 + self.below(4)) - 8,
            14 => PAGE * (1 + self.below(4)) + 1,
            15 => area / 2 - 8 * self.below(3),
            16 => area / 4 + self.below(64),
            17 => area - (8 * self.below(4)).min(area),
            18 => area / 10 + 8 * self.below(16),
            _ => match self.byte() % 8 {
                0 => usize::MAX,
                1 => usize::MAX - 7,
                2 => 1 << 40,
                3 => area + 1,
                _ => self.below(40) * 8,
            },
        }
    }

    fn object(&mut self) -> Object {
        let byte = self.byte();
        let weak = byte & 0x80 != 0;
        match byte % 12 {
            0..3 => Object::Node {
                weak,
                number: 8 * (1 + self.below(4) as u64),
            },
            3..5 => Object::Handle {
                weak,
                handle: self.below(4) as u32,
            },
            5 => Object::File { valid: true },
            6 => Object::File { valid: !weak },
            7..10 => Object::Buffer {
                len: match self.byte() % 8 {
                    0 => 0,
                    1 => 8 * self.below(100) as u64,
                    2 => 1 << 33,
                    _ => self.below(64) as u64,
                },
                parent: weak.then(|| (self.below(3) as u64, 8 * self.below(4) as u64)),
            },
            10 => Object::Files {
                count: self.below(3) as u64,
                parent: self.below(3) as u64,
                at: 4 * self.below(6) as u64,
            },
            _ => Object::Nonsense,
        }
    }

    fn payload(&mut self, area: usize) -> Payload {
        let mut payload = Payload {
            len: self.len(area),
            ..Payload::default()
        };
        if self.one_in(3) && payload.len >= 8 {
            let mut at = 0;
            for _ in 0..1 + self.below(4) {
                let object = self.object();
                // Mostly where one may be.
                at += match self.byte() % 16 {
                    0 => self.below(64) as u64,
                    1 => 8 * self.below(8) as u64,
                    _ => 0,
                };
                payload.objects.push((at, object));
                at += object.size() as u64;
                if self.one_in(24) {
                    at = 0;
                }
            }
            if !self.one_in(8) {
                payload.len = payload.len.max(at as usize);
            }
            if self.one_in(2) {
                payload.extra = Some(8 * self.below(64) as u64 + u64::from(self.one_in(16)));
            }
        }
        if self.one_in(32) {
            payload.offsets_len = Some(self.below(40) as u64);
        }
        payload
    }

    fn which(&mut self) -> Which {
        let n = self.byte();
        match self.byte() % 16 {
            0 | 1 => Which::Freed(n % 4),
            2 => Which::Inside(n),
            3 => Which::Outside,
            4 => Which::Null,
            _ => Which::Held(n),
        }
    }

    fn op(&mut self, areas: &mut [usize; PARTIES]) -> Op {
        let by = self.below(PARTIES);
        // Of whoever it may be that it is sent to.
        let area = areas[if by == 0 { 1 } else { 0 }];
        let action = match self.byte() % 64 {
            0 => Action::Map {
                len: self.area(),
                write: self.one_in(4),
            },
            1 if self.one_in(4) => Action::Unmap {
                first: self.below(8),
                pages: match self.one_in(2) {
                    true => areas[by].div_ceil(PAGE),
                    false => self.below(4),
                },
            },
            2 => Action::DetectSpam(!self.one_in(4)),
            3 => Action::Write((0..self.below(12)).map(|_| self.byte()).collect()),
            4 => Action::Ioctl(self.byte()),
            5 | 6 => Action::Count {
                command: match self.byte() % 4 {
                    0 => Counting::Increfs,
                    1 => Counting::Acquire,
                    2 => Counting::Release,
                    _ => Counting::Decrefs,
                },
                handle: self.below(4) as u32,
            },
            7 if self.one_in(2) => {
                areas[by] = self.area();
                Action::Die { len: areas[by] }
            }
            8..26 => Action::Send {
                handle: match self.one_in(12) {
                    true => self.below(4) as u32,
                    false => u32::from(by == 0),
                },
                oneway: !self.one_in(3),
                clear: self.one_in(6),
                payload: self.payload(area),
            },
            26..34 => Action::Reply {
                clear: self.one_in(6),
                oneway: self.one_in(8),
                payload: self.payload(area),
            },
            34..50 => Action::Receive,
            50 | 51 => Action::Scan {
                pages: match self.one_in(4) {
                    true => u64::MAX,
                    false => 1 + self.below(16) as u64,
                },
            },
            _ => Action::Free(self.which()),
        };
        Op { by, action }
    }
}

/// Makes a program of bytes.
pub fn program(bytes: &[u8], ops: usize) -> Vec<Op> {
    let mut bytes = Bytes(bytes.iter());
    let mut areas = [MIB; PARTIES];
    let mut program = Vec::new();
    for (by, area) in areas.iter_mut().enumerate() {
        *area = bytes.area();
        program.push(Op {
            by,
            action: Action::Map {
                len: *area,
                write: false,
            },
        });
    }
    // The context manager gets to know a node, to have somebody to send to.
    program.push(Op {
        by: 1,
        action: Action::Send {
            handle: 0,
            oneway: true,
            clear: false,
            payload: Payload {
                len: 24,
                objects: vec![(
                    0,
                    Object::Node {
                        weak: false,
                        number: 8,
                    },
                )],
                ..Payload::default()
            },
        },
    });
    program.push(Op {
        by: 0,
        action: Action::Receive,
    });
    program.push(Op {
        by: 0,
        action: Action::Count {
            command: Counting::Acquire,
            handle: 1,
        },
    });
    program.extend((0..ops).map(|_| bytes.op(&mut areas)));
    program
}
