//! The configured rate: departures of all workers, one after the other, on one clock that they share.
//!
//! A worker reserves its next departure before it chooses what leaves then: the choice is made at the last moment, so
//! that a packet of a quiet flow goes before those that have waited for longer, and no worker waits for more than one
//! train of each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use ringlane_shared::limits::TRAIN_BYTES_MAX;

use super::codel::Nanos;

/// How much of the link's time one departure takes, if that is enough for a packet.
const TRAIN: Nanos = 500_000;
/// How long the link carries one flow only, if that is more than a packet.
const QUANTUM: Nanos = 100_000;
/// How much of the link's time is not lost to a worker that wakes up late: timers are a millisecond or two off.
const LATE: Nanos = 4_000_000;

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// When the link is free. Shared by all workers of a node; no locks.
#[derive(Debug)]
pub(crate) struct LinkClock {
    /// Nanoseconds from the epoch on.
    free_at: AtomicU64,
    epoch: Instant,
    bits_per_second: u64,
}

impl LinkClock {
    /// Of a link that carries so many bits in a second: at least one.
    pub(crate) fn new(epoch: Instant, bits_per_second: u64) -> Self {
        Self { free_at: AtomicU64::new(0), epoch, bits_per_second: bits_per_second.max(1) }
    }

    /// How long so many bytes take.
    pub(crate) fn time_of(&self, bytes: u64) -> Nanos {
        // More than 2^31 bytes at once there cannot be.
        bytes.min(u64::from(u32::MAX / 2)) * (8 * NANOS_PER_SECOND) / self.bits_per_second
    }

    /// How many bytes take so long.
    pub(crate) fn bytes_in(&self, time: Nanos) -> usize {
        let bytes = u128::from(time) * u128::from(self.bits_per_second) / u128::from(8 * NANOS_PER_SECOND);
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    /// How many bytes a flow may send before it is another's turn: so few that nobody notices, but no less than is worth
    /// the change on a fast link.
    pub(crate) fn quantum_bytes(&self) -> usize {
        self.bytes_in(QUANTUM).min(TRAIN_BYTES_MAX)
    }

    /// What its times are counted from.
    pub(crate) fn epoch(&self) -> Instant {
        self.epoch
    }

    /// Reserves the link for `bytes`, not before `earliest`. Returns from when on.
    fn reserve(&self, earliest: Nanos, bytes: u64) -> Nanos {
        let time = self.time_of(bytes);
        let reserve = |free_at: u64| Some(free_at.max(earliest) + time);
        match self.free_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, reserve) {
            Ok(before) | Err(before) => before.max(earliest),
        }
    }

    /// More than was reserved has left, or less.
    fn correct(&self, reserved: u64, left: u64) {
        let (reserved, left) = (self.time_of(reserved), self.time_of(left));
        if reserved == left {
            return;
        }
        self.free_at.fetch_add(left.wrapping_sub(reserved), Ordering::Relaxed);
    }
}

/// A departure to come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Departure {
    /// When.
    pub(crate) at: Nanos,
    /// Of how many bytes, outer headers included.
    pub(crate) bytes: u64,
}

/// One worker's use of the link.
#[derive(Debug)]
pub(crate) struct Pacer {
    clock: Arc<LinkClock>,
    reserved: Option<Departure>,
    /// Left, and not yet held against a reservation.
    left_bytes: u64,
    /// The last departure left packets behind.
    is_late: bool,
    train_bytes: u64,
}

impl Pacer {
    /// For datagrams of up to so many bytes, outer headers included.
    pub(crate) fn new(clock: Arc<LinkClock>, datagram_bytes: usize) -> Self {
        let train_bytes = clock.bytes_in(TRAIN).min(TRAIN_BYTES_MAX).max(datagram_bytes) as u64;
        Self { clock, reserved: None, left_bytes: 0, is_late: false, train_bytes }
    }

    /// The next departure, for a worker that has about so many bytes to send.
    pub(crate) fn next(&mut self, now: Nanos, queued_bytes: u64) -> Departure {
        let (late, train_bytes) = (if self.is_late { LATE } else { 0 }, self.train_bytes);
        *self.reserved.get_or_insert_with(|| {
            let bytes = queued_bytes.min(train_bytes);
            // The epoch is long ago when the first packet comes; otherwise it just cannot be late.
            Departure { at: self.clock.reserve(now.saturating_sub(late), bytes), bytes }
        })
    }

    /// Bytes have been given to the kernel, by a departure or without one, as QUIC's are.
    pub(crate) fn sent(&mut self, bytes: u64) {
        self.left_bytes += bytes;
    }

    /// All there is to say of the departure has been said. `is_late` if packets are left that it had no room for.
    pub(crate) fn depart(&mut self, is_late: bool) {
        let reserved = self.reserved.take().map_or(0, |departure| departure.bytes);
        self.clock.correct(reserved, std::mem::take(&mut self.left_bytes));
        self.is_late = is_late;
    }

    /// When the departure that was reserved is, if one was.
    pub(crate) fn departs_at(&self) -> Option<Instant> {
        let at = self.reserved?.at;
        Some(self.clock.epoch + std::time::Duration::from_nanos(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Nanos = 1_000_000;

    fn clock(mbit: u64) -> Arc<LinkClock> {
        Arc::new(LinkClock::new(Instant::now(), mbit * 1_000_000))
    }

    /// Departures of `workers` that always have more to send, and wake up `late` after each one they wait for. Returns
    /// what each sent in a simulated second, and the most that all sent in any 10 ms.
    fn second_of(clock: &Arc<LinkClock>, workers: usize, late: Nanos, actual: fn(u64) -> u64) -> (Vec<u64>, u64) {
        let mut pacers: Vec<_> = (0..workers).map(|_| Pacer::new(Arc::clone(clock), 1500)).collect();
        let mut wakes = vec![MS; workers];
        let mut sent = vec![0; workers];
        let mut by_slice = vec![0; 102];
        while let Some((worker, now)) = wakes.iter().copied().enumerate().min_by_key(|(_, at)| *at)
            && now < 1001 * MS
        {
            let pacer = &mut pacers[worker];
            let departure = pacer.next(now, 1 << 30);
            if departure.at > now {
                wakes[worker] = departure.at + late;
                continue;
            }
            let bytes = actual(departure.bytes);
            pacer.sent(bytes);
            pacer.depart(true);
            sent[worker] += bytes;
            by_slice[(now / (10 * MS)) as usize] += bytes;
        }
        (sent, by_slice.into_iter().max().unwrap_or(0))
    }

    #[test]
    fn a_second_carries_what_the_rate_says_however_late_the_workers_wake() {
        for mbit in [1, 10, 100, 1000, 40_000] {
            for (workers, late) in [(1, 0), (1, 2 * MS), (4, 0), (4, MS + 300_000)] {
                for actual in [|bytes| bytes, |bytes| bytes + bytes / 8, |bytes| bytes - bytes / 3] {
                    let (sent, _) = second_of(&clock(mbit), workers, late, actual);
                    let (all, expected) = (sent.iter().sum::<u64>() as f64, mbit as f64 * 125_000.0);
                    // One packet of 12 ms, or the train that is on its way at the end.
                    let slack = expected * 0.01 + workers as f64 * 66_000.0_f64.min(expected * 0.015 + 1600.0);
                    assert!((all - expected).abs() <= slack, "{mbit} Mbit/s, {workers} workers, {late} ns: {all}");
                }
            }
        }
    }

    #[test]
    fn workers_that_all_have_packets_get_the_same() {
        let (sent, most_in_10_ms) = second_of(&clock(100), 3, MS, |bytes| bytes);
        let share = sent.iter().sum::<u64>() / 3;
        assert!(sent.iter().all(|bytes| bytes.abs_diff(share) < share / 10), "{sent:?}");
        assert!(most_in_10_ms < 125_000 * 3 / 2, "{most_in_10_ms} in 10 ms");
    }

    #[test]
    fn a_link_that_was_idle_owes_nothing() {
        let clock = clock(8);
        let mut pacer = Pacer::new(Arc::clone(&clock), 1500);
        for begin in [1000 * MS, 2000 * MS, 3000 * MS] {
            assert_eq!(pacer.next(begin, 1000), Departure { at: begin, bytes: 1000 });
            pacer.sent(1000);
            pacer.depart(false);
            assert_eq!(pacer.next(begin, 9000), Departure { at: begin + MS, bytes: 1500 }, "1000 bytes take 1 ms");
            pacer.sent(1500);
            pacer.depart(false);
        }
    }

    #[test]
    fn a_departure_without_packets_gives_its_time_back_and_what_left_without_one_takes_it() {
        let clock = clock(8);
        let mut pacer = Pacer::new(Arc::clone(&clock), 1500);
        pacer.next(1000 * MS, 1500);
        pacer.depart(false);
        assert_eq!(pacer.next(1000 * MS, 1500).at, 1000 * MS);
        pacer.depart(false);
        pacer.sent(3000);
        pacer.depart(false);
        assert_eq!(pacer.next(1000 * MS, 1500).at, 1003 * MS);
        assert_eq!(pacer.departs_at(), Some(clock.epoch + std::time::Duration::from_millis(1003)));
    }
}
