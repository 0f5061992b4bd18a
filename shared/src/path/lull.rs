//! Who has received packets and then hears nothing more asks whether that is because there are none.
//!
//! A translator that gives our side of a path another port or address breaks it only for the peer: what it sends is
//! lost from then on, and it cannot tell us. The next record of ours shows it where we are. If we have packets to send,
//! that is soon; this is for a side that only receives.
//!
//! Pure: whoever owns it asks when [`Lull::poll`] says so and comes back at [`Lull::poll_timeout`].

use std::time::{Duration, Instant};

/// How long a silence must last to be a lull; also between looks, so it takes up to twice as long to be noticed.
const LULL: Duration = Duration::from_millis(150);
/// Questions of one lull, each after a pause twice as long.
const QUESTIONS: u32 = 4;

/// What was heard of one lane's peer lately. Owner: the lane's worker.
#[derive(Debug, Default)]
pub struct Lull {
    /// Packets, since the last look.
    has_packets: bool,
    /// Anything, since the last question.
    is_heard: bool,
    asked: u32,
    at: Option<Instant>,
}

impl Lull {
    /// Something authentic has arrived, perhaps with packets in it. Returns whether [`Self::poll_timeout`] is another.
    pub fn note_heard(&mut self, has_packets: bool, now: Instant) -> bool {
        self.is_heard = true;
        self.has_packets |= has_packets;
        let begins = has_packets && self.at.is_none();
        if begins {
            self.at = Some(now + LULL);
        }
        begins
    }

    /// Whether to ask now.
    pub fn poll(&mut self, now: Instant) -> bool {
        if self.at.is_none_or(|at| now < at) {
            return false;
        }
        if std::mem::take(&mut self.has_packets) {
            (self.asked, self.at) = (0, Some(now + LULL));
            return false;
        }
        if self.asked == QUESTIONS || (self.asked > 0 && self.is_heard) {
            (self.asked, self.at) = (0, None);
            return false;
        }
        self.at = Some(now + LULL * (1 << self.asked));
        self.asked += 1;
        self.is_heard = false;
        true
    }

    /// When to come back, if ever.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks at all due times until there are none, and returns when it asks, in milliseconds after `start`.
    fn asks(lull: &mut Lull, start: Instant, mut after_ask: impl FnMut(&mut Lull, Instant)) -> Vec<u128> {
        let mut asked = Vec::new();
        while let Some(at) = lull.poll_timeout() {
            if lull.poll(at) {
                asked.push((at - start).as_millis());
                after_ask(lull, at);
            }
        }
        asked
    }

    #[test]
    fn nothing_is_asked_while_packets_arrive_and_four_times_when_they_stop_for_good() {
        let (start, mut lull) = (Instant::now(), Lull::default());
        let last = start + Duration::from_secs(2);
        let mut now = start;
        while now <= last {
            assert!(!lull.poll(now));
            lull.note_heard(true, now);
            now += Duration::from_millis(10);
        }
        let asked = asks(&mut lull, last, |_, _| ());
        assert_eq!(asked.len(), 4, "{asked:?}");
        assert!(asked[0] <= 2 * LULL.as_millis(), "{asked:?}");
    }

    #[test]
    fn an_answer_ends_it_and_what_carries_no_packets_begins_nothing() {
        let (start, mut lull) = (Instant::now(), Lull::default());
        assert!(lull.note_heard(true, start));
        assert!(!lull.note_heard(true, start));
        let asked = asks(&mut lull, start, |lull, at| {
            assert!(!lull.note_heard(false, at));
        });
        assert_eq!(asked, [300]);
        assert!(!lull.note_heard(false, start));
        assert_eq!(lull.poll_timeout(), None);
    }
}
