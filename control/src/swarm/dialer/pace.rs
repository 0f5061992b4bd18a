//! How long to wait between dials.

use std::time::{Duration, Instant};

/// First pause between two dials, and the longest wait before the first dial after a loss.
pub(super) const PAUSE_MIN: Duration = Duration::from_millis(250);
/// Longest pause between two dials.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(15);

/// The pause after so many dials that came to nothing.
pub(super) fn pause(dials_in_vain: u32) -> Duration {
    PAUSE_MIN.saturating_mul(1 << dials_in_vain.min(16)).min(PAUSE_MAX)
}

/// When a peer is dialled in one of the ways it can be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    pub(super) next: Instant,
    /// Dials since the last connection that lasted.
    pub(super) in_vain: u32,
    pub(super) under_way: u8,
}

impl Schedule {
    /// The first dial is due at `next`.
    pub(super) fn new(next: Instant) -> Self {
        Self { next, in_vain: 0, under_way: 0 }
    }

    /// As if nothing had been tried.
    pub(super) fn begin(&mut self, next: Instant) {
        (self.next, self.in_vain) = (next, 0);
    }

    /// Waits as after a dial that came to nothing.
    pub(super) fn put_off(&mut self, now: Instant, jitter: &mut Jitter) {
        self.next = now + jitter.around(pause(self.in_vain));
    }

    /// As many dials as `count` are made now.
    pub(super) fn handle_dial(&mut self, now: Instant, count: u8, jitter: &mut Jitter) {
        self.put_off(now, jitter);
        self.in_vain = self.in_vain.saturating_add(1);
        self.under_way = self.under_way.saturating_add(count);
    }
}

/// SplitMix64: enough to spread dials in time, and the same on every run with the same seed. Not for secrets.
pub(crate) struct Jitter(u64);

impl Jitter {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number, any of 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A duration between three quarters of `pause` and all of it.
    pub(crate) fn around(&mut self, pause: Duration) -> Duration {
        pause.mul_f64(0.75 + 0.25 * (self.next() as f64 / u64::MAX as f64))
    }
}
