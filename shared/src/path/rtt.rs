//! How long a path's answers take, learnt from its echoes (RFC 6298).
//!
//! Each request has a token of its own, so a sample is never of the wrong one, whichever was lost.

use std::time::Duration;

/// Waited for an answer before the first one came.
const PATIENCE_INITIAL: Duration = Duration::from_millis(250);
/// Waited at least: a worker that sleeps or has much to do answers later than the path is long.
const PATIENCE_MIN: Duration = Duration::from_millis(50);
/// Waited at most.
const PATIENCE_MAX: Duration = Duration::from_secs(3);

/// Samples that one half of the time has, by which the shortest one is forgotten.
const HALF: u8 = 64;

/// The round-trip time of one path.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Rtt {
    smoothed: Option<Duration>,
    variation: Duration,
    /// Of the present half and of the one before.
    shortest: [Option<Duration>; 2],
    samples: u8,
}

impl Rtt {
    /// Takes in the time from a request to its answer.
    pub fn add(&mut self, sample: Duration) {
        if self.samples == HALF {
            (self.shortest, self.samples) = ([None, self.shortest[0]], 0);
        }
        self.samples += 1;
        self.shortest[0] = Some(self.shortest[0].map_or(sample, |shortest| shortest.min(sample)));
        match &mut self.smoothed {
            None => {
                self.smoothed = Some(sample);
                self.variation = sample / 2;
            }
            Some(smoothed) => {
                self.variation = (self.variation * 3 + smoothed.abs_diff(sample)) / 4;
                *smoothed = (*smoothed * 7 + sample) / 8;
            }
        }
    }

    /// The smoothed round-trip time, once there was an answer.
    pub fn smoothed(&self) -> Option<Duration> {
        self.smoothed
    }

    /// The shortest of the latest 64 samples or more, once there was one: what the path takes when nothing waits on it, which
    /// is what other paths are measured by.
    pub fn shortest(&self) -> Option<Duration> {
        self.shortest.into_iter().flatten().min()
    }

    /// How long to wait for an answer before asking again: less than RFC 6298 has a sender wait before it retransmits
    /// (twice the round-trip time at most), because asking once too often costs a datagram and no throughput.
    pub fn patience(&self) -> Duration {
        let Some(smoothed) = self.smoothed else { return PATIENCE_INITIAL };
        let spread = (self.variation * 4).clamp(smoothed / 4, smoothed);
        (smoothed + spread).clamp(PATIENCE_MIN, PATIENCE_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn patience_follows_the_round_trip_time_and_its_spread() {
        let mut rtt = Rtt::default();
        assert_eq!((rtt.smoothed(), rtt.patience()), (None, MS(250)));
        rtt.add(MS(100));
        assert_eq!((rtt.smoothed(), rtt.patience()), (Some(MS(100)), MS(200)));
        (0..40).for_each(|_| rtt.add(MS(100)));
        assert_eq!((rtt.smoothed(), rtt.patience()), (Some(MS(100)), MS(125)));
        rtt.add(MS(180));
        assert_eq!(rtt.smoothed(), Some(MS(110)));
        assert!(rtt.patience() > MS(150), "{rtt:?}");
    }

    #[test]
    fn the_shortest_is_of_the_latest_samples() {
        let mut rtt = Rtt::default();
        assert_eq!(rtt.shortest(), None);
        let samples: Vec<_> = (0..1000).map(|step| MS(100 + step * 7919 % 400)).collect();
        for (position, sample) in samples.iter().enumerate() {
            rtt.add(*sample);
            let from = (position / 64 * 64).saturating_sub(64);
            assert_eq!(rtt.shortest(), samples[from..=position].iter().min().copied());
        }
    }

    #[test]
    fn patience_has_bounds() {
        let mut rtt = Rtt::default();
        rtt.add(Duration::from_micros(80));
        assert_eq!(rtt.patience(), MS(50));
        rtt.add(MS(3_600_000));
        assert_eq!(rtt.patience(), MS(3000));
    }
}
