//! Whether a lane moves: its other paths, and the questions that must be answered on one of them before it is the lane's.
//!
//! A lane has one path of its own, on which it sends, and at any time a few others. Another path is *asked* when there
//! is a reason to think that the peer is there: a fresh record came by it, or control wants it tried because an address
//! of ours is gone or the lane is silent. The question is an echo request with a random token; the reply that comes back
//! *by that very path* makes it the lane's own. Nothing else does: who repeats or forwards a record from elsewhere has
//! no answer to give. What is sent to an address before it has answered is bounded: [`ATTEMPTS`] records of the shortest
//! kind, and one more.
//!
//! ```text
//!                  answered: becomes the lane's own, the one before is kept
//!                 ┌───────────────────────────────────────────────────────────┐
//! begin ──► asked ┤                                                           ▼
//!             ▲   └─ no answer ──► closed          kept for KEPT_FOR ──► closed
//!             └────────────── a newest record comes by it ──┘
//! ```
//! A path that control has found to be *better* is asked alone, and an answer on the lane's own path is no reason to stay.
//! Only the client's control finds one; the server follows.
//!
//! Two ends that both move agree in the end because they are not alike. The *server* goes where the client's newest
//! records come from. The *client* asks its own path along with the other one and stays if that answers first: so it
//! follows a server that is gone from where it was, and no server that could as well come back.
//!
//! Pure: whoever owns it sends what [`Trials::poll_transmit`] gives, closes what [`Trials::poll_closed`] gives, and comes
//! back at [`Trials::poll_timeout`].

use std::time::{Duration, Instant};

use crate::lane::keys::Role;
use crate::limits::LANE_OTHER_PATHS_MAX;

/// When a question is asked again, after it was asked first; the last entry is how long an answer is waited for.
const ASK_AGAIN: [Duration; 5] = [
    Duration::from_millis(50),
    Duration::from_millis(150),
    Duration::from_millis(350),
    Duration::from_millis(750),
    Duration::from_millis(1500),
];

/// How often a path is asked, when nothing hurries it.
pub const ATTEMPTS: usize = ASK_AGAIN.len();

/// How long a path that is not, or no longer, the lane's own is received on: for what is on the way.
pub const KEPT_FOR: Duration = Duration::from_secs(1);

/// How soon after it was left a path can be asked again that was the lane's own.
const PAUSE_AFTER_OWN: Duration = Duration::from_millis(100);
/// As above, of one that was not: somebody may only repeat what the peer sends.
const PAUSE: Duration = Duration::from_millis(500);

/// The other paths of one lane. `P` names a path: its owner's socket. Owner: the lane's worker.
#[derive(Debug)]
pub struct Trials<P> {
    /// Whether the lane's own path is asked along with another one.
    asks_own: bool,
    own: Option<Question>,
    others: Vec<Other<P>>,
}

#[derive(Debug)]
struct Other<P> {
    path: P,
    /// When it was last begun to be asked, or given up for another.
    since: Instant,
    /// Whether it is to be the lane's own even if the one before answers.
    is_better: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    Asked(Question),
    Kept { was_own: bool },
}

#[derive(Clone, Copy, Debug)]
struct Question {
    token: u64,
    began: Instant,
    asked: usize,
    due: Instant,
    /// Something authentic has come by the path meanwhile, so it has been asked once more.
    hurried: bool,
}

impl Question {
    fn new(token: u64, now: Instant) -> Self {
        Self { token, began: now, asked: 0, due: now, hurried: false }
    }

    /// Whether to ask now.
    fn poll(&mut self, now: Instant) -> bool {
        let is_due = self.due <= now && self.asked < ATTEMPTS;
        if is_due {
            self.due = (self.began + ASK_AGAIN[self.asked]).max(now + ASK_AGAIN[0]);
            self.asked += 1;
        }
        is_due
    }

    fn is_over(&self, now: Instant) -> bool {
        self.asked == ATTEMPTS && self.due <= now
    }
}

impl<P: Copy + PartialEq> Trials<P> {
    /// Of a lane that has no other paths yet. `role` is ours in its QUIC handshake.
    pub fn new(role: Role) -> Self {
        Self { asks_own: role == Role::Client, own: None, others: Vec::new() }
    }

    /// Whether the lane has no path but its own and nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.others.is_empty()
    }

    /// The lane's other paths.
    pub fn paths(&self) -> impl Iterator<Item = P> {
        self.others.iter().map(|other| other.path)
    }

    /// Asks on a new path. Returns the path that has to be closed to make room: an older one, or this one if all others
    /// are being asked. `tokens` cannot be guessed: one for this path and one for the lane's own.
    pub fn begin(&mut self, path: P, now: Instant, tokens: [u64; 2]) -> Option<P> {
        let closed = self.add(path, false, tokens[0], now);
        if closed != Some(path) {
            self.ask_own(now, tokens[1]);
        }
        closed
    }

    /// As [`Self::begin`], of a path that is better than the lane's own.
    pub fn begin_better(&mut self, path: P, now: Instant, token: u64) -> Option<P> {
        self.add(path, true, token, now)
    }

    fn add(&mut self, path: P, is_better: bool, token: u64, now: Instant) -> Option<P> {
        let mut closed = None;
        if self.others.len() >= LANE_OTHER_PATHS_MAX {
            let kept = self.others.iter().enumerate().filter(|(_, other)| matches!(other.state, State::Kept { .. }));
            let Some((oldest, _)) = kept.min_by_key(|(_, other)| other.since) else { return Some(path) };
            closed = Some(self.others.swap_remove(oldest).path);
        }
        self.others.push(Other { path, since: now, is_better, state: State::Asked(Question::new(token, now)) });
        closed
    }

    fn ask_own(&mut self, now: Instant, token: u64) {
        if self.asks_own {
            self.own = Some(Question::new(token, now));
        }
    }

    /// A path is not there any more.
    pub fn forget(&mut self, path: P) {
        self.others.retain(|other| other.path != path);
    }

    /// Something authentic, and the newest so far, came by another path: it is worth another question.
    pub fn handle_newest(&mut self, path: P, now: Instant, tokens: [u64; 2]) {
        let Some(other) = self.others.iter_mut().find(|other| other.path == path) else { return };
        match &mut other.state {
            State::Asked(question) if !question.hurried && question.asked > 0 => {
                question.hurried = true;
                // Not counted: once more at most.
                question.asked -= 1;
                question.due = now;
            }
            State::Kept { was_own }
                if now.saturating_duration_since(other.since) >= if *was_own { PAUSE_AFTER_OWN } else { PAUSE } =>
            {
                other.since = now;
                other.state = State::Asked(Question::new(tokens[0], now));
                self.ask_own(now, tokens[1]);
            }
            State::Asked(_) | State::Kept { .. } => {}
        }
    }

    /// Takes in an echo reply that came by `path`, while `own` is the lane's own. Returns whether `path` is the lane's own
    /// from now on; `own` is then one of the others.
    pub fn handle_reply(&mut self, path: P, token: u64, own: P, now: Instant) -> bool {
        if path == own {
            if self.own.take_if(|question| question.token == token).is_some() {
                self.keep_asked(false, now);
            }
            return false;
        }
        let asked = |other: &Other<P>| match &other.state {
            State::Asked(question) => other.path == path && question.asked > 0 && question.token == token,
            State::Kept { .. } => false,
        };
        let Some(position) = self.others.iter().position(asked) else { return false };
        self.others.swap_remove(position);
        self.own = None;
        self.keep_asked(true, now);
        self.others.push(Other { path: own, since: now, is_better: false, state: State::Kept { was_own: true } });
        true
    }

    /// No other path is needed any more. The peer may have begun to use one of them.
    fn keep_asked(&mut self, also_better: bool, now: Instant) {
        for other in self.others.iter_mut().filter(|other| also_better || !other.is_better) {
            if matches!(other.state, State::Asked(_)) {
                (other.since, other.state) = (now, State::Kept { was_own: false });
            }
        }
    }

    /// The next question that is due: the path, and the token. Call until there is none; `own` is the lane's own path.
    pub fn poll_transmit(&mut self, own: P, now: Instant) -> Option<(P, u64)> {
        if let Some(question) = &mut self.own {
            if question.poll(now) {
                return Some((own, question.token));
            }
            if question.is_over(now) {
                self.own = None;
            }
        }
        self.others.iter_mut().find_map(|other| match &mut other.state {
            State::Asked(question) => question.poll(now).then_some((other.path, question.token)),
            State::Kept { .. } => None,
        })
    }

    /// A path that is of no more use. Call until there is none.
    pub fn poll_closed(&mut self, now: Instant) -> Option<P> {
        let over = |other: &Other<P>| match &other.state {
            State::Asked(question) => question.is_over(now),
            State::Kept { .. } => other.since + KEPT_FOR <= now,
        };
        let position = self.others.iter().position(over)?;
        Some(self.others.swap_remove(position).path)
    }

    /// When to come back, if ever.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let others = self.others.iter().map(|other| match &other.state {
            State::Asked(question) => question.due,
            State::Kept { .. } => other.since + KEPT_FOR,
        });
        others.chain(self.own.map(|question| question.due)).min()
    }
}

#[cfg(test)]
mod tests;
