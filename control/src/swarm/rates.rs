//! How often each of many may do something.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Instant;

use ringlane_shared::bucket::Bucket;

/// One [`Bucket`] for each key, of a bounded number of keys.
///
/// When there are more, all are forgotten: whoever can make up that many addresses must not keep others from being
/// counted, and memory is what has to be bounded here.
#[derive(Debug)]
pub(crate) struct Rates<K> {
    burst: u32,
    per_second: u32,
    keys_max: usize,
    buckets: HashMap<K, Bucket>,
}

impl<K: Eq + Hash> Rates<K> {
    pub(crate) fn new(burst: u32, per_second: u32, keys_max: usize) -> Self {
        Self { burst, per_second, keys_max, buckets: HashMap::new() }
    }

    /// Whether `key` may do it once more.
    pub(crate) fn take(&mut self, key: K, now: Instant) -> bool {
        if self.buckets.len() >= self.keys_max && !self.buckets.contains_key(&key) {
            self.buckets.clear();
        }
        self.buckets.entry(key).or_insert_with(|| Bucket::new(self.burst, self.per_second, now)).take(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_its_own_rate_and_memory_is_bounded() {
        let (mut rates, now) = (Rates::new(3, 1, 8), Instant::now());
        assert_eq!((0..9).filter(|_| rates.take(1, now)).count(), 3);
        assert!(rates.take(2, now));
        for key in 0..1000 {
            rates.take(key, now);
            assert!(rates.buckets.len() <= 8);
        }
    }
}
