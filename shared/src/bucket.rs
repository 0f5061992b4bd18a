//! How often something may happen: so many times at once, and at a rate after that.

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

#[cfg(test)]
mod tests {
    use super::*;

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
