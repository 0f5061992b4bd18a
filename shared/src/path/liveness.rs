//! Whether a lane's peer is there: soon known while we send, and asked for once in a long while when nothing is sent.
//!
//! ```text
//!                 packets leave                    no answer                       no answer
//! quiet ---------------------------> waiting --------------------> silent -----------------------> dead
//!   ^   keep-alive is due, nothing     |    900 ms and 19 requests   |    8 s after the first unheard
//!   +----------------------------------+-----------------------------+
//!                      a packet or a reply arrives
//! ```
//! - **Late** is said of a lane that has waited for a third of the way to silence, for who has something to prepare.
//! - **Waiting** begins with the first packets that leave after the peer was last heard. If it is not heard for 150 ms we
//!   ask; if that is not answered either, 18 times more in quick succession. That many, because on a path that loses 30 %
//!   of all datagrams each way half of the requests are not answered: all 19 fail once in 360 000 times.
//! - **Silent** lanes go on asking, at last once a second, and are heard again as soon as a packet or a reply arrives.
//! - **Quiet** lanes send one request when nothing was heard for the keep-alive interval, so that translators and firewalls
//!   remember them. Intervals are up to an eighth shorter, by chance: usually one end asks, and that is enough for both.
//!
//! Requests and replies are no packets: asking makes nobody wait for anything but the reply. And a request of the peer's
//! is no answer: a peer that does not hear us asks as long as it can, and its packets and replies would tell.
//!
//! A process that was stopped, or a machine that slept, finds all deadlines passed at once. That says nothing of the peer: if
//! a deadline is missed by more than a second, the wait starts anew.
//!
//! Pure: whoever owns it does what [`Liveness::poll`] says and comes back at [`Liveness::poll_timeout`].

use std::time::{Duration, Instant};

/// Unheard for so long while packets leave, the peer is asked.
const ASK_AFTER: Duration = Duration::from_millis(150);
/// Requests that must be unanswered before a lane is silent, and the time between them, but for the first.
const REQUESTS: u32 = 19;
const REQUEST_GAP: Duration = Duration::from_millis(25);
/// Requests that must be unanswered before a lane is late.
const REQUESTS_LATE: u32 = 7;
/// How long a lane must be unheard to be silent.
const SILENT_AFTER: Duration = Duration::from_millis(900);
/// How long a lane counts as unheard that is doubted although nothing has left: about as long as what gives cause to doubt it.
const DOUBTED_FOR: Duration = Duration::from_millis(300);
/// From one request to the next while silent, at first and at last.
const SILENT_GAP_MIN: Duration = Duration::from_millis(100);
const SILENT_GAP_MAX: Duration = Duration::from_secs(1);
/// How long a lane must be unheard to be dead.
const DEAD_AFTER: Duration = Duration::from_secs(8);
/// Who is so late has been stopped.
const STOPPED_FOR: Duration = Duration::from_secs(1);

/// What to do about a lane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LivenessAction {
    /// Send an echo request.
    Ask,
    /// The peer takes long to answer: told once of each wait, a good while before [`Self::Silent`], if it comes to that.
    Late,
    /// The peer has stopped answering.
    Silent,
    /// It answers again.
    Heard,
    /// It has not answered for so long that the lane is of no use.
    Dead,
}

/// Whether one lane's peer is there. Owner: the lane's worker.
#[derive(Debug)]
pub struct Liveness {
    keep_alive: Duration,
    /// The state of a small generator, for intervals that differ.
    chance: u64,
    /// When a quiet lane asks.
    quiet_until: Instant,
    waiting: Option<Waiting>,
    is_silent: bool,
    was_silent: bool,
    /// To be told.
    is_late: bool,
}

#[derive(Debug)]
struct Waiting {
    since: Instant,
    requests: u32,
    next_at: Instant,
}

impl Liveness {
    /// Of a lane whose peer was just heard. `chance` is random, and differs from lane to lane.
    pub fn new(keep_alive: Duration, chance: u64, now: Instant) -> Self {
        let (waiting, is_silent, was_silent, is_late) = (None, false, false, false);
        let mut liveness = Self { keep_alive, chance, quiet_until: now, waiting, is_silent, was_silent, is_late };
        liveness.note_heard(now);
        liveness
    }

    /// Whether the peer has stopped answering.
    pub fn is_silent(&self) -> bool {
        self.is_silent
    }

    /// Packets have left.
    pub fn note_sent(&mut self, now: Instant) {
        if self.waiting.is_none() {
            self.waiting = Some(Waiting { since: now, requests: 0, next_at: now + ASK_AFTER });
        }
    }

    /// There is reason to think that the peer is not reached any more: it is asked at once.
    pub fn doubt(&mut self, now: Instant) {
        if self.waiting.is_none() {
            let since = now.checked_sub(DOUBTED_FOR).unwrap_or(now);
            self.waiting = Some(Waiting { since, requests: 0, next_at: now });
        }
    }

    /// An authentic record has arrived that is no request.
    pub fn note_heard(&mut self, now: Instant) {
        self.waiting = None;
        self.was_silent |= std::mem::take(&mut self.is_silent);
        self.stay_quiet(now);
    }

    /// The peer has asked: the path is being kept alive.
    pub fn note_asked(&mut self, now: Instant) {
        self.stay_quiet(now);
    }

    fn stay_quiet(&mut self, now: Instant) {
        self.chance = self.chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let part = (self.chance >> 56) as u32;
        self.quiet_until = now + self.keep_alive - self.keep_alive / 8 * part / 256;
    }

    /// What to do now. Call until there is nothing; `patience` is how long an answer may take.
    pub fn poll(&mut self, now: Instant, patience: Duration) -> Option<LivenessAction> {
        if std::mem::take(&mut self.was_silent) {
            return Some(LivenessAction::Heard);
        }
        if std::mem::take(&mut self.is_late) && !self.is_silent && self.waiting.is_some() {
            return Some(LivenessAction::Late);
        }
        let due = self.poll_timeout();
        let was_stopped = now.saturating_duration_since(due) > STOPPED_FOR;
        if now < due {
            return None;
        }
        let waiting = self.waiting.get_or_insert(Waiting { since: now, requests: 0, next_at: now });
        if was_stopped {
            *waiting = Waiting { since: now, requests: 0, next_at: now };
        }
        let unheard = now.saturating_duration_since(waiting.since);
        if self.is_silent && unheard >= DEAD_AFTER.max(patience * 4) {
            waiting.next_at = now + SILENT_GAP_MAX;
            return Some(LivenessAction::Dead);
        }
        if !self.is_silent && waiting.requests >= REQUESTS {
            if unheard >= SILENT_AFTER {
                self.is_silent = true;
                return Some(LivenessAction::Silent);
            }
            waiting.next_at = waiting.since + SILENT_AFTER;
            return None;
        }
        waiting.requests += 1;
        self.is_late = waiting.requests == REQUESTS_LATE;
        waiting.next_at = now
            + match waiting.requests {
                1 => patience,
                2..REQUESTS => REQUEST_GAP.max(patience / 8),
                REQUESTS => patience,
                more => (SILENT_GAP_MIN * (1 << (more - REQUESTS - 1).min(4))).min(SILENT_GAP_MAX),
            };
        Some(LivenessAction::Ask)
    }

    /// When to call [`Self::poll`] next.
    pub fn poll_timeout(&self) -> Instant {
        self.waiting.as_ref().map_or(self.quiet_until, |waiting| waiting.next_at)
    }
}

#[cfg(test)]
mod tests;
