//! Finds out what one pair loses that has answered: [`SAMPLES`] requests at an even pace, and time for the last answer.
//!
//! What the prober asked before is not counted: until the first answer the way may not have been open.

use std::time::{Duration, Instant};

use crate::limits::{PROBES_PER_ADDRESS_MAX, SAMPLING_LANES_MAX};
use crate::path::candidate::Pair;
use crate::path::loss::Loss;
use crate::wire::probe::Transaction;

/// Requests: none of so many is lost by chance once in 800 paths that lose a tenth.
pub const SAMPLES: u16 = 64;

/// Pairs of one lane that are sampled, those first that answer first.
pub const SAMPLED_PAIRS_MAX: usize = 4;

/// From one request to the next.
const GAP: Duration = Duration::from_millis(40);

const _: () = {
    let per_second = (SAMPLING_LANES_MAX * SAMPLED_PAIRS_MAX) as u128 * 1000 / GAP.as_millis();
    assert!(per_second < PROBES_PER_ADDRESS_MAX as u128);
};

/// How long the last answer is waited for. The other end answers as long as it probes, so nothing leaves later.
const ANSWERED_WITHIN: Duration = Duration::from_secs(1);

/// One pair.
#[derive(Debug)]
pub(super) struct Sampling {
    pub(super) pair: Pair,
    /// Of the first request; the others count up from it.
    transaction: Transaction,
    ends_at: Instant,
    sent_at: Vec<Option<Instant>>,
    answered: u16,
    unsent: u16,
    rtt: Duration,
    due: Option<Instant>,
    pub(super) is_told: bool,
}

impl Sampling {
    /// Of a pair that has just answered after `rtt`; all is over at `ends_at`.
    pub(super) fn new(pair: Pair, transaction: Transaction, rtt: Duration, now: Instant, ends_at: Instant) -> Self {
        let sent_at = Vec::with_capacity(SAMPLES.into());
        let (answered, unsent, due, is_told) = (0, 0, Some(now), false);
        Self { pair, transaction, ends_at, sent_at, answered, unsent, rtt, due, is_told }
    }

    /// The next request that is due.
    pub(super) fn poll(&mut self, now: Instant) -> Option<Transaction> {
        self.due.filter(|due| *due <= now)?;
        if self.is_asked(now) {
            self.due = None;
            return None;
        }
        let number = self.sent_at.len() as u64;
        self.sent_at.push(Some(now));
        self.due = Some(if self.is_asked(now + GAP) { now + ANSWERED_WITHIN } else { now + GAP });
        Some(Transaction(self.transaction.0.wrapping_add(number)))
    }

    /// Whether nothing more is to be asked at that time.
    fn is_asked(&self, now: Instant) -> bool {
        self.sent_at.len() >= SAMPLES.into() || now + ANSWERED_WITHIN > self.ends_at
    }

    /// The latest request could not leave.
    pub(super) fn handle_unsent(&mut self) {
        if self.sent_at.last_mut().is_some_and(|sent_at| sent_at.take().is_some()) {
            self.unsent += 1;
        }
    }

    /// Takes in a reply. Each counts once.
    pub(super) fn handle_reply(&mut self, transaction: Transaction, now: Instant) {
        let number = usize::try_from(transaction.0.wrapping_sub(self.transaction.0)).ok();
        let asked = number.and_then(|number| self.sent_at.get_mut(number));
        let Some(sent_at) = asked.and_then(Option::take) else { return };
        self.answered += 1;
        self.rtt = self.rtt.min(now.saturating_duration_since(sent_at));
        if self.is_asked(now) && self.answered + self.unsent == self.sent_at.len() as u16 {
            self.due = None;
        }
    }

    /// No more time.
    pub(super) fn stop(&mut self) {
        self.due = None;
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// The shortest round trip and what was lost, once that is known.
    pub(super) fn found(&self) -> Option<(Duration, Loss)> {
        let asked = self.sent_at.len() as u16 - self.unsent;
        self.due.is_none().then(|| (self.rtt, Loss::new(asked, asked - self.answered)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(100);

    /// Runs one, on a path that swallows the requests of these numbers; those that could not leave besides.
    fn run(lost: impl Fn(u64) -> bool, unsent: impl Fn(u64) -> bool, lasts: Duration) -> (Loss, Duration, u64) {
        let start = Instant::now();
        let pair = Pair { local: [10, 0, 0, 1].into(), remote: ([10, 0, 0, 2], 8100).into() };
        let mut sampling = Sampling::new(pair, Transaction(u64::MAX - 5), RTT * 2, start, start + lasts);
        let (mut asked, mut answers) = (0, std::collections::VecDeque::new());
        let mut now = start;
        loop {
            if let Some((rtt, loss)) = sampling.found() {
                assert_eq!(rtt, if loss == Loss::default() { RTT * 2 } else { RTT });
                return (loss, now - start, asked);
            }
            let next = sampling.poll_timeout().into_iter().chain(answers.front().map(|(at, _)| *at)).min();
            now = now.max(next.unwrap());
            while let Some((_, transaction)) = answers.pop_front_if(|(at, _)| *at <= now) {
                sampling.handle_reply(transaction, now);
                sampling.handle_reply(transaction, now);
                sampling.handle_reply(Transaction(transaction.0.wrapping_add(1000)), now);
            }
            if let Some(transaction) = sampling.poll(now) {
                if unsent(asked) {
                    sampling.handle_unsent();
                    sampling.handle_unsent();
                } else if !lost(asked) {
                    answers.push_back((now + RTT, transaction));
                }
                asked += 1;
            }
        }
    }

    #[test]
    fn what_is_not_answered_is_lost_and_what_could_not_leave_is_not() {
        let lasts = Duration::from_secs(7);
        let (loss, took, asked) = run(|_| false, |_| false, lasts);
        assert_eq!((loss, asked), (Loss::new(SAMPLES, 0), SAMPLES.into()));
        assert_eq!(took, GAP * u32::from(SAMPLES - 1) + RTT, "nobody is waited for");
        let (loss, took, _) = run(|number| number % 4 == 3, |number| number % 8 == 0, lasts);
        assert_eq!(loss, Loss::new(SAMPLES - SAMPLES / 8, SAMPLES / 4));
        assert!(took <= GAP * u32::from(SAMPLES) + ANSWERED_WITHIN);
    }

    #[test]
    fn what_the_other_end_may_not_answer_any_more_is_not_asked() {
        let (loss, took, asked) = run(|_| false, |_| false, Duration::from_secs(2));
        assert_eq!((loss, asked), (Loss::new(26, 0), 26));
        assert!(took <= Duration::from_secs(2));
        let (loss, ..) = run(|number| number > 0, |_| false, Duration::from_millis(900));
        assert_eq!(loss, Loss::default());
    }
}
