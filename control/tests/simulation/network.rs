//! The network between two nodes: what becomes of a datagram.

use std::time::{Duration, Instant};

use ringlane_shared::limits::JUMBO_DATAGRAM_BYTES;

/// Headers of IPv4 and UDP.
pub const HEADER_BYTES: usize = 20 + 8;

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn within(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from + 1)
    }

    pub fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    pub fn milliseconds(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_micros(self.within(from * 1000, to * 1000))
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let random = self.next().to_le_bytes();
            chunk.copy_from_slice(&random[..chunk.len()]);
        }
    }
}

/// An address: each belongs to one node, for a time, or to the attacker.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Place(pub u64);

/// Two addresses, as one of the ends calls them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Path {
    pub local: Place,
    pub remote: Place,
}

impl Path {
    /// As the other end calls it.
    pub fn reversed(self) -> Self {
        Self { local: self.remote, remote: self.local }
    }
}

/// What one direction is like at the moment.
pub struct Direction {
    delay: Duration,
    jitter: Duration,
    loss_percent: u64,
    doubles_percent: u64,
    /// Larger datagrams are swallowed.
    pub mtu_bytes: u16,
    black_until: Instant,
    /// Another number after each change that may put datagrams out of order.
    changes: u64,
}

impl Direction {
    pub fn new(random: &mut Random, now: Instant) -> Self {
        let (delay, jitter, mtu_bytes) = (Duration::ZERO, Duration::ZERO, 1472);
        let mut direction =
            Self { delay, jitter, loss_percent: 0, doubles_percent: 0, mtu_bytes, black_until: now, changes: 0 };
        direction.change_weather(random);
        direction.change_mtu(random);
        direction
    }

    /// Another delay, and another share of datagrams that are lost, late or doubled.
    pub fn change_weather(&mut self, random: &mut Random) {
        let rarely = |random: &mut Random, most: u64| if random.one_in(2) { 0 } else { random.within(0, most) };
        self.delay = random.milliseconds(1, 150);
        self.jitter = Duration::from_millis(rarely(random, 2 * self.delay.as_millis() as u64));
        self.loss_percent = rarely(random, 20);
        self.doubles_percent = rarely(random, 5);
        self.changes += 1;
    }

    pub fn change_mtu(&mut self, random: &mut Random) {
        const USUAL: [u16; 6] = [1252, 1392, 1472, 1472, 8922, JUMBO_DATAGRAM_BYTES as u16];
        self.mtu_bytes = match random.below(8) {
            usual @ 0..6 => USUAL[usual as usize],
            _ => random.within(1200, JUMBO_DATAGRAM_BYTES as u64) as u16,
        };
    }

    pub fn black_out(&mut self, until: Instant) {
        self.black_until = self.black_until.max(until);
    }

    /// Nothing is lost or late any more. Datagrams keep their delay and their largest size.
    pub fn calm(&mut self, now: Instant) {
        (self.jitter, self.loss_percent, self.doubles_percent, self.black_until) = (Duration::ZERO, 0, 0, now);
        self.changes += 1;
    }

    pub fn delay(&self) -> Duration {
        self.delay
    }

    pub fn is_black(&self, now: Instant) -> bool {
        now < self.black_until
    }

    /// Names the present stretch of time, if datagrams that leave in it arrive in their order or not at all.
    pub fn ordered(&self) -> Option<u64> {
        (self.jitter.is_zero() && self.doubles_percent == 0).then_some(self.changes)
    }

    /// How long a datagram is under way: each copy that arrives.
    pub fn carry(&self, bytes: usize, random: &mut Random, now: Instant) -> [Option<Duration>; 2] {
        let is_lost = random.below(100) < self.loss_percent;
        let is_double = random.below(100) < self.doubles_percent;
        if is_lost || self.is_black(now) || bytes > usize::from(self.mtu_bytes) {
            return [None, None];
        }
        let jitter = self.jitter.as_micros() as u64;
        let mut copy = || Some(self.delay + Duration::from_micros(random.within(0, jitter)));
        [copy(), if is_double { copy() } else { None }]
    }
}
