//! When to ask and when to tell on one interface: a state machine without sockets and clock.
//!
//! It asks at once, then after pauses that double from 4 to 60 seconds, like Hyprspace; a question of somebody else's is
//! as good as ours, since everybody hears the answers (RFC 6762, section 7.3). It tells twice, a second apart, and when
//! asked, after a moment that keeps a hundred nodes from answering at once; never twice within a second (section 6).

use std::time::{Duration, Instant};

/// First pause between two questions, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_secs(4), Duration::from_secs(60));
/// Between two announcements.
const SPACING: Duration = Duration::from_secs(1);
/// Longest wait before an answer, besides the spacing.
const ANSWER_DELAY_MAX: Duration = Duration::from_millis(120);
/// How often an announcement is repeated.
const REPEATS: u8 = 1;

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Due {
    Query,
    Announce,
}

/// One interface's.
pub(super) struct Schedule {
    query_at: Instant,
    pause: Duration,
    announce_at: Option<Instant>,
    repeats: u8,
    announced_at: Option<Instant>,
    jitter: u64,
}

impl Schedule {
    pub(super) fn new(seed: u64, now: Instant) -> Self {
        let (pause, _) = PAUSES;
        Self { query_at: now, pause, announce_at: Some(now), repeats: REPEATS, announced_at: None, jitter: seed }
    }

    /// What we tell has changed, or who is there may have.
    pub(super) fn handle_change(&mut self, now: Instant) {
        (self.query_at, self.pause, self.repeats) = (now, PAUSES.0, REPEATS);
        self.announce_by(now);
    }

    /// Somebody asks.
    pub(super) fn handle_query(&mut self, now: Instant) {
        let delay = ANSWER_DELAY_MAX.mul_f64(0.2 + 0.8 * self.random());
        self.announce_by(now + delay);
        if self.pause > PAUSES.0 {
            self.query_at = self.query_at.max(now + self.pause.mul_f64(0.75 + 0.25 * self.random()));
        }
    }

    /// What is due; to be called until it is nothing.
    pub(super) fn poll(&mut self, now: Instant) -> Option<Due> {
        if self.query_at <= now {
            self.query_at = now + self.pause.mul_f64(0.75 + 0.25 * self.random());
            self.pause = (self.pause * 2).min(PAUSES.1);
            return Some(Due::Query);
        }
        self.announce_at.take_if(|at| *at <= now)?;
        self.announced_at = Some(now);
        if self.repeats > 0 {
            self.repeats -= 1;
            self.announce_at = Some(now + SPACING);
        }
        Some(Due::Announce)
    }

    pub(super) fn poll_timeout(&self) -> Instant {
        self.announce_at.map_or(self.query_at, |at| at.min(self.query_at))
    }

    fn announce_by(&mut self, at: Instant) {
        let at = self.announced_at.map_or(at, |last| at.max(last + SPACING));
        self.announce_at = Some(self.announce_at.map_or(at, |planned| planned.min(at)));
    }

    /// Between 0 and 1, the same on every run with the same seed.
    fn random(&mut self) -> f64 {
        self.jitter = self.jitter.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.jitter >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is done in this time, with nobody else there, and when.
    fn run(schedule: &mut Schedule, from: Instant, whole: Duration) -> Vec<(Due, Duration)> {
        let mut done = Vec::new();
        let mut now = from;
        loop {
            while let Some(due) = schedule.poll(now) {
                done.push((due, now - from));
            }
            now = schedule.poll_timeout();
            if now > from + whole {
                return done;
            }
        }
    }

    fn times(done: &[(Due, Duration)], what: Due) -> Vec<Duration> {
        done.iter().filter(|(due, _)| *due == what).map(|(_, at)| *at).collect()
    }

    #[test]
    fn it_asks_and_tells_at_once_and_then_ever_less() {
        let start = Instant::now();
        let done = run(&mut Schedule::new(1, start), start, Duration::from_secs(600));
        assert_eq!(times(&done, Due::Announce), [Duration::ZERO, SPACING]);
        let queries = times(&done, Due::Query);
        assert_eq!(queries[0], Duration::ZERO);
        let pauses: Vec<_> = queries.windows(2).map(|pair| pair[1] - pair[0]).collect();
        for (pause, nominal) in pauses.iter().zip([4, 8, 16, 32, 60, 60, 60]) {
            let nominal = Duration::from_secs(nominal);
            assert!(*pause <= nominal && *pause >= nominal.mul_f64(0.75), "{pauses:?}");
        }
    }

    #[test]
    fn a_flood_of_questions_is_answered_once_a_second_and_keeps_us_from_asking() {
        let start = Instant::now();
        let mut schedule = Schedule::new(2, start);
        run(&mut schedule, start, Duration::from_secs(60));
        let flood = start + Duration::from_secs(100);
        let mut done = Vec::new();
        for ms in 0..10_000 {
            let now = flood + Duration::from_millis(ms);
            schedule.handle_query(now);
            done.extend(std::iter::from_fn(|| schedule.poll(now)));
        }
        let answers = done.iter().filter(|due| **due == Due::Announce).count();
        assert!((9..=10).contains(&answers), "{answers}");
        assert!(done.len() <= answers + 1, "{done:?}");
    }

    #[test]
    fn a_lone_question_is_answered_within_moments_and_a_change_is_told_at_once() {
        let start = Instant::now();
        let mut schedule = Schedule::new(3, start);
        run(&mut schedule, start, Duration::from_secs(10));
        let asked = start + Duration::from_secs(12);
        schedule.handle_query(asked);
        let answered = schedule.poll_timeout();
        assert!(answered > asked && answered <= asked + ANSWER_DELAY_MAX);
        assert_eq!(schedule.poll(answered), Some(Due::Announce));
        let changed = asked + Duration::from_secs(30);
        schedule.handle_change(changed);
        assert_eq!((schedule.poll(changed), schedule.poll(changed)), (Some(Due::Query), Some(Due::Announce)));
        assert_eq!(schedule.poll_timeout(), changed + SPACING);
    }
}
