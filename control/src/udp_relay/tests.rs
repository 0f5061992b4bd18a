//! The state machines, by themselves and together, against networks and people that mean no good. Every run prints
//! its seed when it fails.

mod asking;
mod binding;
mod loads;

use ringlane_shared::id::PeerIndex;

pub(super) const A: PeerIndex = PeerIndex(1);
pub(super) const B: PeerIndex = PeerIndex(2);

/// xorshift64: the seed replays a run.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn of(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(super) fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            *byte = self.next() as u8;
        }
    }
}
