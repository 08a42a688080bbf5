// SPDX-License-Identifier: GPL-2.0

//! Payloads that can be checked.

/// `len` bytes that depend on `seed`, none of them zero: zero is what a fresh page holds.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state as u8).max(1)
        })
        .collect()
}

/// What is sent when `len` bytes are sent: a part of `data`, not always the same.
pub fn payload(data: &[u8], len: usize) -> &[u8] {
    &data[len % 251..][..len]
}

/// FNV-1a.
pub fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

pub fn all_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}
