//! How much of what is asked on a path is not answered: a number with its uncertainty, and the meter of a lane's own path.
//!
//! What a lane's own path loses is found by echoes, as what others lose is by probes: the same kind of question, once in a while
//! and not in step with the packets. Gaps in the counters of records would give many more samples, and the wrong answer: they
//! show what the lane's own bursts make a queue drop, which any other path would do to them too and a path that lies idle
//! does not; and only what is lost on the way to us.
//!
//! A few questions tell nothing: one lost of three is as likely on a path that loses a tenth as on one that loses half. So a loss
//! is compared by its bounds ([`Loss::at_least`], [`Loss::at_most`]), and where those of two paths overlap they are alike.
//!
//! Pure: whoever owns a meter asks when [`LossMeter::poll`] says so and comes back at [`LossMeter::poll_timeout`].

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Questions below which nothing is said.
const ASKED_MIN: u16 = 20;

/// Questions that a lane's meter remembers: those of the last 26 s of use.
pub const WINDOW: u16 = 128;

/// Between two questions that count, at least, while packets pass: chance in bursts is still chance.
const GAP: Duration = Duration::from_millis(200);
/// How much sooner a question may leave that was asked for another reason, and count.
const GAP_SLACK: Duration = Duration::from_millis(10);
/// Without an answer for so long, or for twice as long as answers take, a question is lost.
const LOST_AFTER: Duration = Duration::from_secs(1);
/// Questions that wait for their answers; the longest patience there is has room.
const WAITING_MAX: usize = 40;
/// What was found so long ago says nothing any more.
const STALE_AFTER: Duration = Duration::from_secs(60);

/// A path that surely loses so much of a thousand is lossy ...
const LOSSY: u32 = 40;
/// ... until less than this is lost. What is between is neither, so that chance does not make one of the other.
const CLEAN: u32 = 20;

/// How many of the questions on a path were not answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Loss {
    asked: u16,
    lost: u16,
}

impl Loss {
    /// So many lost of so many; never more than were asked.
    pub fn new(asked: u16, lost: u16) -> Self {
        Self { asked, lost: lost.min(asked) }
    }

    /// How many were asked, and how many of them were lost.
    pub fn counts(self) -> (u16, u16) {
        (self.asked, self.lost)
    }

    /// Whether enough was asked to say anything.
    pub fn is_known(self) -> bool {
        self.asked >= ASKED_MIN
    }

    /// Lost of a hundred, rounded; `None` while nothing is known.
    pub fn percent(self) -> Option<u8> {
        let rounded = (u32::from(self.lost) * 100 + u32::from(self.asked) / 2).checked_div(self.asked.into());
        rounded.filter(|_| self.is_known()).map(|percent| percent as u8)
    }

    /// Of a thousand, what the path surely loses; 0 while nothing is known.
    pub fn at_least(self) -> u32 {
        if self.is_known() { self.bound(-1.0) } else { 0 }
    }

    /// Of a thousand, what it loses at most; 1000 while nothing is known.
    pub fn at_most(self) -> u32 {
        if self.is_known() { self.bound(1.0) } else { 1000 }
    }

    /// Whether it is surely too much to stay.
    pub fn is_lossy(self) -> bool {
        self.at_least() >= LOSSY
    }

    /// Whether it is known, and too little to speak of.
    pub fn is_clean(self) -> bool {
        self.is_known() && u32::from(self.lost) * 1000 < u32::from(self.asked) * CLEAN
    }

    /// An end of Wilson's interval, where all but a twentieth of the paths that answer like this are on one side.
    fn bound(self, side: f64) -> u32 {
        const Z: f64 = 1.645;
        let (asked, lost) = (f64::from(self.asked), f64::from(self.lost));
        let spread = Z * (lost * (asked - lost) / asked + Z * Z / 4.0).sqrt();
        let bound = (lost + Z * Z / 2.0 + side * spread) / (asked + Z * Z);
        (bound.clamp(0.0, 1.0) * 1000.0).round() as u32
    }
}

/// Measures what one lane's own path loses. Owner: the lane's worker.
#[derive(Debug)]
pub struct LossMeter {
    /// A bit for each of the latest questions: whether it was lost.
    window: u128,
    found: Loss,
    waiting: VecDeque<(u64, Instant)>,
    asked_at: Option<Instant>,
    /// When to ask next; `None` while the lane is not used. What was found is forgotten then, after a while.
    due: Option<Instant>,
    /// Packets have passed since that was set.
    is_used: bool,
    is_lossy: bool,
    told: bool,
}

impl Default for LossMeter {
    fn default() -> Self {
        let (found, waiting) = (Loss::default(), VecDeque::with_capacity(WAITING_MAX));
        Self { window: 0, found, waiting, asked_at: None, due: None, is_used: false, is_lossy: false, told: false }
    }
}

impl LossMeter {
    /// Packets pass, one way or the other. Returns whether [`Self::poll_timeout`] is another. A lone packet causes no question:
    /// only a lane that is still used when one is due asks it.
    pub fn note_used(&mut self, now: Instant) -> bool {
        let begins = self.due.is_none();
        if begins {
            self.forget_if_stale(now);
            self.due = Some(now + GAP);
        }
        self.is_used |= !begins;
        begins
    }

    /// Whether to ask now. `patience` is how long an answer may take. Who comes late by as much as a question has was stopped
    /// meanwhile, and has not read the answers there may be.
    pub fn poll(&mut self, now: Instant, patience: Duration) -> bool {
        if self.due.is_some_and(|due| due + LOST_AFTER <= now) {
            self.waiting.clear();
        }
        let wait = LOST_AFTER.max(patience * 2);
        while self.waiting.pop_front_if(|(_, sent_at)| *sent_at + wait <= now).is_some() {
            self.add(true);
        }
        let Some(due) = self.due else {
            self.forget_if_stale(now);
            return false;
        };
        if now < due {
            return false;
        }
        let asks = std::mem::take(&mut self.is_used);
        self.due = asks.then(|| now + GAP);
        asks
    }

    /// When to call [`Self::poll`] next, if ever.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due.or_else(|| self.stale_at())
    }

    /// A question has left that would be answered as any other. Those that follow each other closely share a fate, and
    /// count once.
    pub fn note_asked(&mut self, token: u64, now: Instant) {
        let is_apart = self.asked_at.is_none_or(|at| now.saturating_duration_since(at) + GAP_SLACK >= GAP);
        if is_apart && self.waiting.len() < WAITING_MAX {
            self.asked_at = Some(now);
            self.waiting.push_back((token, now));
            self.due = self.due.map(|_| now + GAP);
        }
    }

    /// A question was answered.
    pub fn handle_answer(&mut self, token: u64) {
        if let Some(position) = self.waiting.iter().position(|(asked, _)| *asked == token) {
            self.waiting.remove(position);
            self.add(false);
        }
    }

    /// The path is silent: what is not answered because of that is no loss.
    pub fn handle_silent(&mut self) {
        self.waiting.clear();
    }

    /// Packets leave in another way, or not at all any more: begins anew. That the path was lossy is no more so.
    pub fn forget(&mut self) {
        (self.window, self.found, self.asked_at) = (0, Loss::default(), None);
        (self.due, self.is_used, self.is_lossy) = (None, false, false);
        self.waiting.clear();
    }

    /// What was found.
    pub fn found(&self) -> Loss {
        self.found
    }

    /// Whether the path is lossy, each time that this is different.
    pub fn poll_change(&mut self) -> Option<bool> {
        self.is_lossy = self.found.is_lossy() || self.is_lossy && !self.found.is_clean();
        let is_news = self.told != self.is_lossy;
        self.told = self.is_lossy;
        is_news.then_some(self.is_lossy)
    }

    /// The latest change could not be told: it is one again.
    pub fn handle_untold(&mut self) {
        self.told = !self.told;
    }

    /// When nothing is known any more, of a lane that has not been used since the latest question.
    fn stale_at(&self) -> Option<Instant> {
        self.asked_at.map(|at| at + GAP + STALE_AFTER)
    }

    fn forget_if_stale(&mut self, now: Instant) {
        if self.stale_at().is_some_and(|at| at <= now) {
            self.forget();
        }
    }

    fn add(&mut self, is_lost: bool) {
        let Loss { asked, lost } = &mut self.found;
        if *asked == WINDOW {
            *lost -= (self.window >> (WINDOW - 1)) as u16 & 1;
        } else {
            *asked += 1;
        }
        *lost += u16::from(is_lost);
        self.window = self.window << 1 | u128::from(is_lost);
    }
}

const _: () = assert!(WINDOW as u32 == u128::BITS);

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;
    const PATIENCE: Duration = Duration::from_millis(50);

    /// xorshift64: enough to drop datagrams with, and the seed replays a run.
    fn draw(state: &mut u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    }

    #[test]
    fn few_questions_tell_nothing_and_many_tell_more_and_more() {
        for (asked, lost, percent, least, most) in [
            (0, 0, None, 0, 1000),
            (3, 1, None, 0, 1000),
            (19, 19, None, 0, 1000),
            (20, 0, Some(0), 0, 119),
            (20, 1, Some(5), 11, 196),
            (64, 0, Some(0), 0, 41),
            (128, 13, Some(10), 66, 154),
            (128, 26, Some(20), 151, 267),
            (128, 128, Some(100), 979, 1000),
        ] {
            let loss = Loss::new(asked, lost);
            assert_eq!((loss.percent(), loss.at_least(), loss.at_most()), (percent, least, most), "{lost} of {asked}");
        }
        assert_eq!(Loss::new(3, 9).counts(), (3, 3));
    }

    #[test]
    fn a_lone_packet_causes_no_question_and_a_lane_in_use_five_a_second() {
        let (start, mut meter) = (Instant::now(), LossMeter::default());
        assert_eq!(meter.poll_timeout(), None);
        for second in 0..10 {
            let now = start + Duration::from_secs(second);
            assert!(meter.note_used(now));
            assert!(!meter.poll(meter.poll_timeout().unwrap(), PATIENCE));
            assert_eq!(meter.poll_timeout(), None);
        }
        let start = start + Duration::from_secs(10);
        let mut asked = 0;
        for ms in 0..10_000 {
            let now = start + MS(ms);
            meter.note_used(now);
            if meter.poll(now, PATIENCE) {
                asked += 1;
                meter.note_asked(asked, now);
                meter.handle_answer(asked);
            }
        }
        assert!((45..=50).contains(&asked), "{asked}");
        assert_eq!(meter.found(), Loss::new(asked as u16, 0));
    }

    #[test]
    fn questions_that_leave_anyhow_are_counted_instead_and_those_of_one_moment_once() {
        let (start, mut meter) = (Instant::now(), LossMeter::default());
        let mut token = 0;
        for ms in 0..10_000 {
            let now = start + MS(ms);
            meter.note_used(now);
            if ms % 200 == 0 {
                for _ in 0..10 {
                    token += 1;
                    meter.note_asked(token, now);
                    meter.handle_answer(token);
                }
            }
            assert!(ms < 200 || !meter.poll(now, PATIENCE), "at {ms} ms");
        }
        assert_eq!(meter.found().counts(), (50, 0));
    }

    #[test]
    fn what_is_not_answered_in_time_is_lost_unless_the_path_is_silent() {
        let (start, mut meter) = (Instant::now(), LossMeter::default());
        meter.note_asked(1, start);
        meter.note_asked(2, start + GAP);
        meter.handle_answer(7);
        meter.poll(start + LOST_AFTER - MS(1), PATIENCE);
        assert_eq!(meter.found().counts(), (0, 0));
        meter.poll(start + LOST_AFTER, PATIENCE);
        assert_eq!(meter.found().counts(), (1, 1));
        meter.handle_answer(1);
        assert_eq!(meter.found().counts(), (1, 1), "too late");
        meter.handle_silent();
        meter.poll(start + LOST_AFTER * 9, PATIENCE);
        assert_eq!(meter.found().counts(), (1, 1));
        // Where answers take long, they are waited for longer.
        let later = start + LOST_AFTER * 10;
        meter.note_asked(3, later);
        meter.poll(later + MS(3999), MS(2000));
        assert_eq!(meter.found().counts(), (1, 1));
        meter.handle_answer(3);
        assert_eq!(meter.found().counts(), (2, 1));
    }

    #[test]
    fn who_was_stopped_has_lost_nothing() {
        let (start, mut meter) = (Instant::now(), LossMeter::default());
        for now in [start, start + GAP, start + GAP * 2] {
            meter.note_used(now);
            if meter.poll(now, PATIENCE) {
                meter.note_asked(1, now);
            }
        }
        assert_eq!(meter.waiting.len(), 2);
        meter.poll(start + GAP * 3 + LOST_AFTER, PATIENCE);
        assert_eq!((meter.found().counts(), meter.waiting.len()), ((0, 0), 0));
    }

    #[test]
    fn a_lane_that_is_not_used_any_more_is_not_lossy_any_more() {
        let (start, mut meter) = (Instant::now(), LossMeter::default());
        let mut now = start;
        for token in 0..30 {
            meter.note_used(now);
            meter.poll(now, PATIENCE);
            meter.note_asked(token, now);
            now += GAP;
        }
        meter.poll(now + LOST_AFTER / 2, PATIENCE);
        assert_eq!(meter.poll_change(), Some(true));
        let mut polls = 0;
        while let Some(due) = meter.poll_timeout() {
            now = now.max(due);
            meter.poll(now, PATIENCE);
            polls += 1;
        }
        assert!(polls <= 3 && now < start + GAP * 31 + STALE_AFTER, "{polls} until {:?}", now - start);
        assert_eq!((meter.found(), meter.poll_change(), meter.poll_change()), (Loss::default(), Some(false), None));
    }

    #[test]
    fn what_could_not_be_told_is_told_later_and_a_meter_that_begins_anew_is_not_lossy() {
        let (mut now, mut meter) = (Instant::now(), LossMeter::default());
        for token in 0..20 {
            meter.note_used(now);
            meter.note_asked(token, now);
            now += GAP;
        }
        meter.poll(now + LOST_AFTER / 2, PATIENCE);
        meter.poll(now + LOST_AFTER, PATIENCE);
        for _ in 0..3 {
            assert_eq!(meter.poll_change(), Some(true));
            meter.handle_untold();
        }
        assert_eq!((meter.poll_change(), meter.poll_change()), (Some(true), None));
        meter.note_asked(99, now + LOST_AFTER);
        meter.forget();
        assert_eq!((meter.found(), meter.poll_timeout(), meter.poll_change()), (Loss::default(), None, Some(false)));
        assert!(meter.note_used(now) && meter.waiting.is_empty(), "it begins when the lane is used");
    }

    #[test]
    fn what_is_neither_lossy_nor_clean_stays_what_it_was() {
        for (asked, lost, is_lossy, is_clean) in [
            (19, 19, false, false),
            (64, 0, false, true),
            (64, 1, false, true),
            (64, 2, false, false),
            (64, 5, false, false),
            (64, 6, true, false),
            (128, 2, false, true),
            (128, 3, false, false),
            (128, 9, true, false),
        ] {
            let loss = Loss::new(asked, lost);
            assert_eq!(
                (loss.is_lossy(), loss.is_clean()),
                (is_lossy, is_clean),
                "{lost} of {asked}: {}",
                loss.at_least()
            );
        }
    }

    #[test]
    fn the_past_is_forgotten_by_the_window_and_after_a_pause() {
        let (start, mut meter) = (Instant::now(), LossMeter::default());
        let (mut now, mut twin, mut random) = (start, VecDeque::new(), 1);
        for token in 0..1000 {
            let is_lost = draw(&mut random).is_multiple_of(4);
            meter.note_asked(token, now);
            if !is_lost {
                meter.handle_answer(token);
            }
            twin.push_back(is_lost);
            now += LOST_AFTER;
            meter.poll(now, PATIENCE);
            let latest = twin.iter().rev().take(WINDOW.into());
            let lost = latest.clone().filter(|is_lost| **is_lost).count();
            assert_eq!(meter.found().counts(), (latest.count() as u16, lost as u16));
        }
        now += STALE_AFTER - LOST_AFTER;
        meter.note_used(now);
        assert_eq!(meter.found().counts().0, WINDOW);
        meter.poll(now + GAP, PATIENCE);
        meter.note_used(now + STALE_AFTER);
        assert_eq!(meter.found(), Loss::default());
    }

    #[test]
    fn a_path_becomes_lossy_once_that_is_sure_and_clean_once_it_loses_less_by_far() {
        let (mut now, mut meter) = (Instant::now(), LossMeter::default());
        let mut told = Vec::new();
        let phases = [(0, 400), (1, 200), (10, 400), (8, 300), (0, 300)];
        let mut random = 7;
        for (phase, (percent, questions)) in phases.into_iter().enumerate() {
            for token in 0..questions {
                meter.note_asked(token, now);
                if draw(&mut random) % 100 >= percent {
                    meter.handle_answer(token);
                }
                now += LOST_AFTER;
                meter.poll(now, PATIENCE);
                told.extend(meter.poll_change().map(|is_lossy| (phase, is_lossy)));
            }
        }
        assert_eq!(told, [(2, true), (4, false)]);
    }

    #[test]
    fn a_meter_that_is_never_answered_stays_bounded() {
        let (mut now, mut meter) = (Instant::now(), LossMeter::default());
        for token in 0..10_000 {
            now += MS(1);
            meter.note_asked(token, now);
            assert!(meter.waiting.len() <= WAITING_MAX);
        }
        assert!(meter.waiting.capacity() >= WAITING_MAX);
    }
}
