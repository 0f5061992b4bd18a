//! One end of a relayed lane shows the relay where it is, and goes on doing so.
//!
//! ```text
//! trying: every route, one a quarter of a second after the other --> answered: on that one alone --> open --> failed
//!     | nobody answers                                                | the other end does not come    | not answered
//!     +--> failed                                                     +--> failed                      | any more
//! ```
//!
//! The first answer of a relay that does not know us there is a challenge: the next request repeats the number in it.
//!
//! A *route* is one of our addresses and one of the relay's. Pure: whoever owns it has the keys and sends
//! what [`Binder::poll_transmit`] says.

use std::time::{Duration, Instant};

/// Between the first requests of two routes.
const STAGGER: Duration = Duration::from_millis(250);
/// Between the first two requests on a route; doubles with each.
const TRY_GAP: Duration = Duration::from_millis(150);
/// Longest such pause.
const TRY_GAP_MAX: Duration = Duration::from_millis(1200);
/// After so long without a first answer the relay cannot be reached.
const ANSWERED_WITHIN: Duration = Duration::from_secs(6);
/// While the other end has not shown itself: the first of these pauses, which grow by half, and the last.
const WAITING_GAP: Duration = Duration::from_millis(80);
const WAITING_GAP_MAX: Duration = Duration::from_secs(1);
/// After so long the other end does not come.
const OPEN_WITHIN: Duration = Duration::from_secs(12);
/// Between two requests while all is well: less than translators remember a flow for.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Between requests that are not answered, and how many of them it takes.
const LOST_GAP: Duration = Duration::from_millis(400);
const LOST_AFTER: u32 = 8;

/// A request to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BindRequest {
    /// On which route.
    pub route: usize,
    /// With which number.
    pub number: u64,
    /// What it proves; 0: nothing.
    pub proof: u64,
}

/// Where it stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Trying { ends_at: Instant },
    Waiting { route: usize, ends_at: Instant, gap: Duration },
    Open { route: usize },
    Failed,
}

/// Binds one lane. Owner: the lane engine.
#[derive(Debug)]
pub struct Binder {
    state: State,
    /// Of each route: requests sent, and when the next is due. Only while trying.
    routes: Vec<(u32, Instant)>,
    due: Instant,
    /// Of the newest request, and of the newest that an answer counts to.
    number: u64,
    answered: u64,
    /// Requests since the last answer that was no challenge.
    unanswered: u32,
    /// What the relay has challenged us with since then; 0 if it has not.
    proof: u64,
}

impl Binder {
    /// One that tries so many routes, best first.
    pub fn new(routes: usize, now: Instant) -> Self {
        let state = if routes == 0 { State::Failed } else { State::Trying { ends_at: now + ANSWERED_WITHIN } };
        let routes = (0..routes as u32).map(|place| (0, now + STAGGER * place)).collect();
        Self { state, routes, due: now, number: 0, answered: 0, unanswered: 0, proof: 0 }
    }

    /// The next request that is due. Call until there is none.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<BindRequest> {
        let route = match &mut self.state {
            State::Failed => return None,
            State::Trying { ends_at } | State::Waiting { ends_at, .. } if *ends_at <= now => {
                self.state = State::Failed;
                return None;
            }
            State::Trying { .. } => {
                let (route, (sent, due)) = self.routes.iter_mut().enumerate().find(|(_, (_, due))| *due <= now)?;
                *due = now + TRY_GAP.saturating_mul(1 << (*sent).min(8)).min(TRY_GAP_MAX);
                *sent += 1;
                route
            }
            State::Waiting { .. } | State::Open { .. } if self.due > now => return None,
            State::Waiting { route, gap, .. } => {
                self.due = now + *gap;
                *gap = (*gap * 3 / 2).min(WAITING_GAP_MAX);
                *route
            }
            State::Open { .. } if self.unanswered >= LOST_AFTER => {
                self.state = State::Failed;
                return None;
            }
            State::Open { route } => {
                self.due = now + LOST_GAP;
                *route
            }
        };
        self.number += 1;
        self.unanswered += 1;
        Some(BindRequest { route, number: self.number, proof: self.proof })
    }

    /// When to call [`Self::poll_transmit`] next, if ever again.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Failed => None,
            State::Trying { ends_at } => Some(self.routes.iter().map(|(_, due)| *due).fold(ends_at, Instant::min)),
            State::Waiting { ends_at, .. } => Some(self.due.min(ends_at)),
            State::Open { .. } => Some(self.due),
        }
    }

    /// The relay has answered, authentically, on a route. `is_open`: the other end has shown itself too. Returns whether
    /// datagrams pass from now on and did not before.
    pub fn handle_answer(&mut self, route: usize, number: u64, is_open: bool, now: Instant) -> bool {
        // What is older than the last one that counted may say what is not true any more.
        if number <= self.answered || number > self.number {
            return false;
        }
        let was_trying = matches!(self.state, State::Trying { .. });
        match self.state {
            State::Failed => return false,
            State::Trying { .. } => {
                let others = self.routes.iter().enumerate().any(|(other, (sent, _))| other != route && *sent > 0);
                if others {
                    // The relay takes us to be where the newest request came from: that is to be this route, for it and us.
                    self.answered = self.number;
                    self.state = State::Waiting { route, ends_at: now + OPEN_WITHIN, gap: WAITING_GAP };
                    self.due = now;
                    return false;
                }
            }
            State::Waiting { route: chosen, .. } | State::Open { route: chosen } if chosen != route => return false,
            State::Waiting { .. } | State::Open { .. } => {}
        }
        self.answered = number;
        (self.unanswered, self.proof) = (0, 0);
        let was_open = matches!(self.state, State::Open { .. });
        match is_open {
            true => {
                self.state = State::Open { route };
                self.due = now + KEEP_ALIVE;
            }
            false if was_open || was_trying => {
                self.state = State::Waiting { route, ends_at: now + OPEN_WITHIN, gap: WAITING_GAP };
                self.due = now + WAITING_GAP;
            }
            // The pauses go on.
            false => {}
        }
        is_open && !was_open
    }

    /// The relay wants to see that we are where a request came from: the next one has this number. A relay that is never content
    /// counts as one that does not answer.
    pub fn handle_challenge(&mut self, route: usize, number: u64, proof: u64, now: Instant) {
        if number <= self.answered || number > self.number {
            return;
        }
        match self.state {
            State::Failed => return,
            State::Trying { .. } => {
                // As there, the newest request is to come from this route.
                self.answered = self.number;
                self.state = State::Waiting { route, ends_at: now + OPEN_WITHIN, gap: WAITING_GAP };
            }
            State::Waiting { route: chosen, .. } | State::Open { route: chosen } if chosen != route => return,
            State::Waiting { .. } | State::Open { .. } => self.answered = number,
        }
        if self.proof == 0 {
            self.due = now;
        }
        self.proof = proof;
    }

    /// What passes by the lane does not arrive: a translator may have forgotten it, or the relay.
    pub fn hurry(&mut self, now: Instant) {
        if matches!(self.state, State::Open { .. }) {
            self.due = self.due.min(now);
        }
    }

    /// The route by which datagrams pass.
    pub fn open_route(&self) -> Option<usize> {
        match self.state {
            State::Open { route } => Some(route),
            _ => None,
        }
    }

    /// Whether a route is not needed any more.
    pub fn is_done_with(&self, route: usize) -> bool {
        match self.state {
            State::Trying { .. } => false,
            State::Waiting { route: chosen, .. } | State::Open { route: chosen } => chosen != route,
            State::Failed => true,
        }
    }

    /// Whether nothing will come of it any more.
    pub fn has_failed(&self) -> bool {
        self.state == State::Failed
    }
}
