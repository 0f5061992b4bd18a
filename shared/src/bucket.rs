//! How often something may happen, and how many bytes may pass: so many at once, and at a rate after that.

use std::time::{Duration, Instant};

/// A bucket of tokens, full at first, from which each time takes one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bucket {
    /// When it would be full again.
    full_at: Instant,
    /// How long one token takes to come back.
    each: Duration,
    /// How long all but one take: with more to come, it is empty.
    most: Duration,
}

impl Bucket {
    /// One for `burst` times at once and `per_second` after that, both at least 1.
    pub fn new(burst: u32, per_second: u32, now: Instant) -> Self {
        let each = Duration::from_secs(1) / per_second.max(1);
        Self { full_at: now, each, most: each * burst.saturating_sub(1) }
    }

    /// Takes a token, if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        let is_some_left = self.full_at.saturating_duration_since(now) <= self.most;
        if is_some_left {
            self.full_at = self.full_at.max(now) + self.each;
        }
        is_some_left
    }

    /// From when on there is a token; `None` if ever since.
    pub fn ready_at(&self) -> Option<Instant> {
        self.full_at.checked_sub(self.most)
    }
}

/// Nanoseconds of a second.
const SECOND_NS: u128 = 1_000_000_000;

/// How many bytes may pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ByteRate {
    /// Per second, in the long run.
    pub per_second: u64,
    /// At once, after silence.
    pub burst: u64,
}

/// A bucket of bytes, full at first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ByteBucket {
    rate: ByteRate,
    left: u64,
    /// Until when the rate has been credited.
    filled_at: Instant,
}

impl ByteBucket {
    /// One that is full.
    pub fn new(rate: ByteRate, now: Instant) -> Self {
        Self { rate, left: rate.burst, filled_at: now }
    }

    /// How many bytes may pass now.
    pub fn left(&mut self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.filled_at).as_nanos();
        if elapsed == 0 || self.rate.per_second == 0 {
            return self.left;
        }
        let (per_second, missing) = (u128::from(self.rate.per_second), u128::from(self.rate.burst - self.left));
        let gained = elapsed.saturating_mul(per_second) / SECOND_NS;
        if gained >= missing {
            (self.left, self.filled_at) = (self.rate.burst, now);
        } else if gained > 0 {
            // What is less than a byte stays to be credited. Both fit: `gained` is less than a burst, and its time no more
            // than what has elapsed.
            self.left += gained as u64;
            self.filled_at += Duration::from_nanos((gained * SECOND_NS).div_ceil(per_second) as u64);
        }
        self.left
    }

    /// Lets so many bytes pass, of those that are left.
    pub fn take(&mut self, bytes: u64) {
        self.left = self.left.saturating_sub(bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The twin counts in bytes times nanoseconds, in which nothing is ever rounded.
        #[test]
        fn a_byte_bucket_allows_its_rate_and_burst_and_never_a_byte_more(
            per_second in prop_oneof![0..10u64, 1..1_000_000u64, 1..50_000_000_000u64],
            burst in 1..2_000_000u64,
            steps in proptest::collection::vec((0..2_000_000u64, 0..100_000u64), 1..200),
        ) {
            let start = Instant::now();
            let mut bucket = ByteBucket::new(ByteRate { per_second, burst }, start);
            let (mut now, mut exact) = (start, u128::from(burst) * SECOND_NS);
            for (count, (ns, wanted)) in (1u128..).zip(steps) {
                now += Duration::from_nanos(ns);
                exact = (exact + u128::from(ns) * u128::from(per_second)).min(u128::from(burst) * SECOND_NS);
                let left = bucket.left(now);
                prop_assert!(u128::from(left) * SECOND_NS <= exact, "{left} of {exact}");
                // Less than a byte waits to be credited, and each credit may be a nanosecond late.
                let late = (SECOND_NS + count * u128::from(per_second)) / SECOND_NS + 1;
                prop_assert!((u128::from(left) + late) * SECOND_NS >= exact, "{left} of {exact}");
                bucket.take(left.min(wanted));
                exact -= u128::from(left.min(wanted)) * SECOND_NS;
            }
        }
    }

    #[test]
    fn a_burst_passes_at_once_and_then_no_more_than_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10, 100, start);
        assert_eq!((0..50).filter(|_| bucket.take(start)).count(), 10);
        let ready_at = bucket.ready_at().unwrap();
        assert_eq!(ready_at, start + Duration::from_millis(10));
        assert!(!bucket.take(ready_at - Duration::from_nanos(1)));
        assert!(bucket.take(ready_at) && !bucket.take(ready_at));
        let taken = (0..2000).filter(|ms| bucket.take(start + Duration::from_millis(*ms))).count();
        assert!((198..=199).contains(&taken), "{taken} in 2 s");
        assert_eq!((0..50).filter(|_| bucket.take(start + Duration::from_secs(60))).count(), 10, "no more are saved");
    }
}
