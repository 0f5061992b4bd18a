//! CoDel (RFC 8289): when a flow's packets have all stood in its queue for too long, its sender is told so, by the loss
//! or the mark of one packet, and then of more and more of them until it listens.

/// Times here are nanoseconds since the worker's queue was made.
pub(crate) type Nanos = u64;

/// For how long a queue must have stood before anything is done about it: a round trip, as they usually are.
pub(crate) const INTERVAL: Nanos = 100_000_000;
/// A queue that is shorter than this now and then does no harm.
const TARGET: Nanos = 5_000_000;
/// How long after the last drop a queue that stands again is taken for the same trouble (RFC 8289, section 5.4).
const MEMORY: Nanos = 16 * INTERVAL;

/// What all flows of one link have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct CodelConfig {
    target: Nanos,
    /// A queue of so many bytes is not one: the packet that is on its way has to be somewhere.
    packet_bytes: u32,
}

impl CodelConfig {
    /// For packets of up to `packet_bytes`, each of which takes `packet_time` to leave. On a slow link that alone is more
    /// than the usual target (RFC 8289, section 4.4).
    pub(crate) fn new(packet_bytes: u32, packet_time: Nanos) -> Self {
        Self { target: TARGET.max(packet_time + packet_time / 2), packet_bytes }
    }
}

/// One flow's state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Codel {
    /// When the queue will have stood for an interval; 0 while it does not stand.
    ripe_at: Nanos,
    /// When the next packet is hit, while `is_hitting`.
    next_at: Nanos,
    /// Packets hit since then.
    hits: u32,
    /// What `hits` was when it last began.
    hits_before: u32,
    is_hitting: bool,
}

impl Codel {
    /// Looks at a packet that is about to leave and was queued at `since`, with `queued_bytes` in its queue, itself included. Returns whether its sender is to be told to slow down.
    pub(crate) fn hits(&mut self, config: &CodelConfig, now: Nanos, since: Nanos, queued_bytes: u32) -> bool {
        let stands = self.stands(config, now, since, queued_bytes);
        if self.is_hitting {
            self.is_hitting = stands;
            if !stands || now < self.next_at {
                return false;
            }
            self.hits = self.hits.saturating_add(1);
            self.next_at += pause(self.hits);
            return true;
        }
        if !stands {
            return false;
        }
        self.is_hitting = true;
        let recent = self.hits.saturating_sub(self.hits_before);
        let is_same_trouble = recent > 1 && now.saturating_sub(self.next_at) < MEMORY;
        self.hits = if is_same_trouble { recent } else { 1 };
        self.hits_before = self.hits;
        self.next_at = now + pause(self.hits);
        true
    }

    /// The flow has nothing queued any more.
    pub(crate) fn ran_empty(&mut self) {
        (self.is_hitting, self.ripe_at) = (false, 0);
    }

    fn stands(&mut self, config: &CodelConfig, now: Nanos, since: Nanos, queued_bytes: u32) -> bool {
        if now.saturating_sub(since) < config.target || queued_bytes <= config.packet_bytes {
            self.ripe_at = 0;
            return false;
        }
        if self.ripe_at == 0 {
            self.ripe_at = now + INTERVAL;
            return false;
        }
        now >= self.ripe_at
    }
}

/// The control law: the interval divided by the square root of the number of hits.
fn pause(hits: u32) -> Nanos {
    (INTERVAL * INTERVAL / u64::from(hits.max(1))).isqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Nanos = 1_000_000;
    const FAST: CodelConfig = CodelConfig { target: TARGET, packet_bytes: 1500 };

    /// When packets are hit that leave every millisecond after standing for `sojourn` in a long queue.
    fn hits(codel: &mut Codel, from: Nanos, until: Nanos, sojourn: Nanos) -> Vec<Nanos> {
        let leaving = (from..until).step_by(MS as usize);
        leaving.filter(|now| codel.hits(&FAST, *now, now - sojourn, 100_000)).map(|now| now / MS).collect()
    }

    #[test]
    fn the_control_law_is_the_rfcs() {
        let expected = [100_000_000, 70_710_678, 57_735_026, 50_000_000, 44_721_359];
        assert_eq!([1, 2, 3, 4, 5].map(pause), expected);
        assert_eq!((pause(100), pause(10_000), pause(0)), (10_000_000, 1_000_000, INTERVAL));
    }

    /// After an interval, then after 100, 70.7, 57.7, 50, 44.7, 40.8 ms.
    #[test]
    fn a_standing_queue_is_hit_after_an_interval_and_then_ever_faster() {
        let mut codel = Codel::default();
        let times = hits(&mut codel, 1000 * MS, 1600 * MS, 20 * MS);
        assert_eq!(times, [1100, 1200, 1271, 1329, 1379, 1424, 1464, 1502, 1538, 1571]);
    }

    #[test]
    fn a_queue_that_is_short_once_an_interval_is_left_alone() {
        let mut codel = Codel::default();
        for begin in (1000..3000).step_by(90) {
            assert!(hits(&mut codel, begin * MS, (begin + 89) * MS, 50 * MS).is_empty());
            assert!(!codel.hits(&FAST, (begin + 89) * MS, (begin + 85) * MS, 100_000));
        }
    }

    #[test]
    fn what_is_no_more_than_a_packet_is_no_queue() {
        let mut codel = Codel::default();
        let leaving = (1000..2000).map(|ms| ms * MS);
        assert!(!leaving.into_iter().any(|now| codel.hits(&FAST, now, now - 500 * MS, 1500)));
    }

    #[test]
    fn trouble_that_comes_back_soon_is_met_at_the_rate_it_was_left_at() {
        let mut codel = Codel::default();
        let first = hits(&mut codel, 1000 * MS, 2000 * MS, 20 * MS);
        assert!(!codel.hits(&FAST, 2000 * MS, 2000 * MS, 100_000), "it is gone");
        let again = hits(&mut codel, 2001 * MS, 2400 * MS, 20 * MS);
        assert_eq!(again[0], 2101);
        let before = first[first.len() - 1] - first[first.len() - 2];
        assert!(again[1] - again[0] <= before + 1, "{first:?} {again:?}");

        codel.ran_empty();
        let late = hits(&mut codel, 9000 * MS, 9400 * MS, 20 * MS);
        assert_eq!(late[..2], [9100, 9200], "forgotten");
    }

    #[test]
    fn on_a_slow_link_a_packet_that_takes_long_is_no_queue() {
        let config = CodelConfig::new(1500, 12 * MS);
        let mut codel = Codel::default();
        let mut leaving = (1000..2000).map(|ms| ms * MS);
        assert!(!leaving.any(|now| codel.hits(&config, now, now - 17 * MS, 100_000)));
        assert_eq!(CodelConfig::new(1500, MS).target, TARGET);
    }
}
