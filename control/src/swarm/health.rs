//! Whether a connection still carries anything: pure.
//!
//! A path that swallows everything is noticed late by the libraries: by QUIC after 5 s, by TCP after minutes, by a ping
//! after 25 s. So whoever has reason to doubt a connection (packets go unanswered, lanes to the same peer are silent, there
//! is a newer one) has its peer asked at once:
//!
//! ```text
//!            asked            200 ms             500 ms
//! trusted ----------> asked ----------> late ------------> suspect
//!    ^                  |                 |                   |
//!    +------------------+-----------------+-------------------+
//!               an answer, or anything else heard of the peer
//! ```
//! - **Late**: others are dialled, for whatever answers first.
//! - **Suspect**: it is used no more, if there is any other. It stays open, as it may come back to life, until a question
//!   to it has come to nothing for good ([`super::streams`] has the limit).
//!
//! On a path with a long round trip, and of a peer that has been slow to answer, all of it takes longer. Nothing is asked while a
//! question is under way, so that doubts
//! cost little, however many there are.

use std::time::{Duration, Instant};

/// How long an answer may take before others are dialled.
const LATE_AFTER: Duration = Duration::from_millis(200);
/// How long before the connection is not used any more.
const SUSPECT_AFTER: Duration = Duration::from_millis(500);
/// In round trips, at least: what is lost has to be sent again.
const LATE_AFTER_RTTS: u32 = 3;
/// See [`LATE_AFTER_RTTS`].
const SUSPECT_AFTER_RTTS: u32 = 6;

/// In times that the peer has taken for answers lately: one that is busy is not dead.
const LATE_AFTER_ANSWERS: u32 = 2;
/// See [`LATE_AFTER_ANSWERS`].
const SUSPECT_AFTER_ANSWERS: u32 = 4;
/// More than this counts for the path, which was interrupted, and not for the peer.
const ANSWER_MAX: Duration = Duration::from_millis(500);

/// What is news of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum HealthNews {
    /// It takes long to answer.
    Late,
    /// It is not to be used.
    Suspect,
}

/// What is known of one connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Health {
    /// Since when a question has no answer.
    asked: Option<Instant>,
    is_late: bool,
    is_suspect: bool,
    /// How long answers took lately.
    took: Duration,
}

impl Health {
    /// Somebody doubts it. Whether its peer is to be asked; then [`Self::handle_heard`] or [`Self::handle_unanswered`] ends it.
    pub(super) fn doubt(&mut self, now: Instant) -> bool {
        let is_news = self.asked.is_none();
        self.asked.get_or_insert(now);
        is_news
    }

    /// The peer was heard on it. Whether it was suspect.
    pub(super) fn handle_heard(&mut self, now: Instant) -> bool {
        let took = self.asked.map_or(Duration::ZERO, |asked| now.saturating_duration_since(asked));
        let took = took.min(ANSWER_MAX).max(self.took * 7 / 8);
        std::mem::replace(self, Self { took, ..Self::default() }).is_suspect
    }

    /// A question has come to nothing. One that was not even late has hit another limit, and says nothing.
    pub(super) fn handle_unanswered(&mut self) {
        self.asked = None;
        self.is_late = false;
    }

    /// What time has brought, of a connection with this round trip.
    pub(super) fn poll(&mut self, now: Instant, rtt: Option<Duration>) -> Option<HealthNews> {
        let waited = now.saturating_duration_since(self.asked?);
        let [late_after, suspect_after] = self.limits(rtt);
        if waited >= late_after && !self.is_late {
            self.is_late = true;
            return Some(HealthNews::Late);
        }
        if waited >= suspect_after && !self.is_suspect {
            self.is_suspect = true;
            return Some(HealthNews::Suspect);
        }
        None
    }

    /// When [`Self::poll`] should be asked again.
    pub(super) fn poll_timeout(&self, rtt: Option<Duration>) -> Option<Instant> {
        let asked = self.asked?;
        let [late_after, suspect_after] = self.limits(rtt);
        match (self.is_late, self.is_suspect) {
            (false, _) => Some(asked + late_after),
            (true, false) => Some(asked + suspect_after),
            (true, true) => None,
        }
    }

    fn limits(&self, rtt: Option<Duration>) -> [Duration; 2] {
        let rtt = rtt.unwrap_or_default();
        let late_after = LATE_AFTER.max(rtt * LATE_AFTER_RTTS).max(self.took * LATE_AFTER_ANSWERS);
        let suspect_after = SUSPECT_AFTER.max(rtt * SUSPECT_AFTER_RTTS).max(self.took * SUSPECT_AFTER_ANSWERS);
        [late_after, suspect_after]
    }

    /// Whether anything else is better.
    pub(super) fn is_suspect(&self) -> bool {
        self.is_suspect
    }

    /// Whether the peer is taking long to answer, or is a suspect already.
    pub(super) fn is_late(&self) -> bool {
        self.is_late || self.is_suspect
    }

    /// Whether the peer has answered all that it was asked.
    pub(super) fn is_trusted(&self) -> bool {
        self.asked.is_none() && !self.is_suspect
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// What a connection comes to that is doubted at `now` and answers nothing, and when.
    fn unanswered(health: &mut Health, now: Instant, rtt: Option<Duration>) -> Vec<(Duration, HealthNews)> {
        let mut news = Vec::new();
        while let Some(at) = health.poll_timeout(rtt) {
            assert_eq!(health.poll(at - MS, rtt), None);
            news.extend(health.poll(at, rtt).map(|news| (at - now, news)));
        }
        news
    }

    #[test]
    fn a_connection_without_an_answer_is_late_and_then_suspect_each_told_once() {
        let now = Instant::now();
        let mut health = Health::default();
        assert!(health.is_trusted() && health.poll_timeout(None).is_none());
        assert!(health.doubt(now) && !health.doubt(now + MS), "asked once");
        let news = unanswered(&mut health, now, Some(MS));
        assert_eq!(news, [(LATE_AFTER, HealthNews::Late), (SUSPECT_AFTER, HealthNews::Suspect)]);
        assert!(health.is_suspect() && health.poll(now + SUSPECT_AFTER * 9, None).is_none());
        assert!(health.handle_heard(now) && !health.handle_heard(now), "it answers after all");
        assert!(health.is_trusted());
    }

    #[test]
    fn an_answer_in_time_is_no_news_and_a_far_peer_has_more_time() {
        let now = Instant::now();
        let mut health = Health::default();
        health.doubt(now);
        assert_eq!(health.poll(now + LATE_AFTER - MS, None), None);
        assert!(!health.handle_heard(now) && health.poll(now + SUSPECT_AFTER, None).is_none());
        let rtt = Duration::from_millis(300);
        health.doubt(now);
        let news = unanswered(&mut health, now, Some(rtt));
        assert_eq!(news, [(rtt * 3, HealthNews::Late), (rtt * 6, HealthNews::Suspect)]);
    }

    #[test]
    fn a_suspect_stays_one_until_it_is_heard_however_often_it_is_asked() {
        let now = Instant::now();
        let mut health = Health::default();
        health.doubt(now);
        unanswered(&mut health, now, None);
        for _ in 0..3 {
            health.handle_unanswered();
            assert!(health.is_suspect() && health.doubt(now));
            assert_eq!(unanswered(&mut health, now, None), [(LATE_AFTER, HealthNews::Late)]);
        }
        assert!(health.handle_heard(now));
    }

    #[test]
    fn who_has_been_slow_to_answer_has_more_time_for_a_while_and_never_much() {
        let now = Instant::now();
        let mut health = Health::default();
        let limits = |health: &mut Health, now| {
            health.doubt(now);
            let [(late, _), (suspect, _)] = unanswered(health, now, None)[..] else { panic!("{health:?}") };
            (late, suspect)
        };
        health.doubt(now);
        health.handle_heard(now + 180 * MS);
        assert_eq!(limits(&mut health, now), (360 * MS, 720 * MS));
        health.handle_heard(now + Duration::from_secs(60));
        assert_eq!(limits(&mut health, now), (ANSWER_MAX * 2, ANSWER_MAX * 4), "an interruption says little");
        for _ in 0..20 {
            health.handle_heard(now);
            health.doubt(now);
        }
        health.handle_heard(now);
        assert_eq!(limits(&mut health, now), (LATE_AFTER, SUSPECT_AFTER));
    }
}
