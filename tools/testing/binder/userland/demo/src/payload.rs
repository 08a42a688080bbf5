// SPDX-License-Identifier: GPL-2.0

//! Payloads whose bytes can't be right by accident.

use crate::aidl::Payload;

pub const KIB: usize = 1024;

/// What every service is sent: nothing, next to nothing, both sides of a page boundary, many pages.
pub const SIZES: [usize; 8] = [
    0,
    1,
    128,
    4 * KIB - 1,
    4 * KIB,
    64 * KIB,
    256 * KIB,
    512 * KIB,
];

/// The largest payload that several threads send at once. Two of the larger ones together
/// could find the receiver's 1 MiB full, which would be an error, but not the allocator's.
pub const CROWD_MAX: usize = 64 * KIB;

/// Makes `len` bytes that differ for each `seed`, so that a stale page shows in the checksum.
pub fn make(seed: u64, len: usize) -> Payload {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut data = vec![0; len];
    for chunk in data.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
    Payload {
        crc: checksum(&data),
        data,
    }
}

pub fn is_intact(payload: &Payload) -> bool {
    checksum(&payload.data) == payload.crc
}

/// AIDL has no unsigned int: the bits are what counts.
fn checksum(data: &[u8]) -> i32 {
    crc32fast::hash(data).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_size_is_intact_until_touched() {
        for (seed, len) in SIZES.into_iter().enumerate() {
            let mut payload = make(seed as u64, len);
            assert_eq!(payload.data.len(), len);
            assert!(is_intact(&payload));
            if let Some(last) = payload.data.last_mut() {
                *last ^= 1;
                assert!(!is_intact(&payload));
            }
        }
    }

    #[test]
    fn seeds_differ() {
        assert_ne!(make(1, 128).data, make(2, 128).data);
    }
}
