//! The life of one link: which lanes it should have, which it has, and what to do about the difference.
//!
//! The end with the lower peer id (the client) asks; the other answers. An offer names its sender's instance: another
//! one than last time says that the peer has restarted, so every lane to it is dead, whatever QUIC still believes.
//! Lanes outlive the libp2p connection they were agreed on; only setting up new ones needs it.
//!
//! ```text
//! client: connected, or a lane missing --> ask (with backoff) --> answer --> set up what both agree on
//! server: offer --> retire the lanes it asks for --> answer --> set them up
//! ```
//!
//! A server whose candidates are others sends an offer too, for no lanes. It is refused, as any that a server sends, and
//! prompts the client to ask. After every exchange the lanes that stand look for better paths, and those in the making look
//! where the peer is known to be by then.
//!
//! A lane can end at the server alone, its close lost on the way. The server's answer therefore names all that it lacks,
//! and the client ends and asks for those of them that it still had.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ringlane_shared::bucket::Bucket;
use ringlane_shared::id::{LaneIndex, LaneSerial, PeerIndex, WorkerId};
use ringlane_shared::lane::keys::Role;
use ringlane_shared::plane::{LaneChange, LaneGauges, StreamForm};
use ringlane_shared::wire::offer::{Answer, LaneSet, Offer, RefusalReason};
use thiserror::Error;

use super::publisher::Reach;
use super::{AskId, Context, Intent};

/// First pause before missing lanes are asked for again: short, for a lane whose keys are worn is missed at once.
const RETRY_MIN: Duration = Duration::from_millis(20);
/// How much longer each pause is than the one before.
const RETRY_FACTOR: u32 = 4;
/// Longest such pause.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// A lane that lived this long was a good one: its end is not another failure in a row.
const STABLE_AFTER: Duration = RETRY_MAX;

/// A question that has no answer after this long although there is a further connection, or its own is suspect, was asked
/// on one that is dead.
const ASKED_IN_VAIN: Duration = Duration::from_secs(1);

/// From news to the exchange that tells it: what else is found out meanwhile goes along.
const EXCHANGE_DELAY: Duration = Duration::from_millis(100);
/// Exchanges that neither a missing lane nor a new connection is the reason for, shortly after each other; then one a
/// second.
const EXCHANGES_BURST: u32 = 4;

/// How long the first lanes of a link wait for the others before workers without a lane send by way of them. A flow
/// that changes lanes may overtake itself once, so it is better not to begin on another worker's lane and move a
/// moment later.
const SETTLE: Duration = Duration::from_millis(250);

/// What the server knows when the client asks for lanes that it has still under way.
const GIVEN_UP: &str =
    "the peer has given up on lanes and tries again; let UDP through to the lanes' ports on both sides";

/// A lane that a worker owns, as control knows it.
#[derive(Clone, Debug)]
pub struct LaneUp {
    /// Its name.
    pub serial: LaneSerial,
    /// Who owns it.
    pub worker: WorkerId,
    /// Our address.
    pub local: SocketAddr,
    /// The peer's address.
    pub remote: SocketAddr,
    /// When it was handed over, for its age.
    pub since: Instant,
    /// When its handshake was confirmed, for people.
    pub handshake_at: SystemTime,
    /// What its worker reports of it.
    pub gauges: Arc<LaneGauges>,
}

/// Why a question to a peer brought no offer.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum AskFailure {
    /// Nothing connects us to the peer any more.
    #[error("not connected")]
    NotConnected,
    /// The stream failed, timed out, or carried something else than an answer.
    #[error("{0}")]
    Exchange(String),
}

/// One link. Owner: the coordinator.
#[derive(Debug)]
pub struct Link {
    peer: PeerIndex,
    role: Role,
    connected: bool,
    /// Who the peer was when it last spoke.
    instance: Option<[u8; 16]>,
    /// The lanes the link should have; none before the first agreement.
    expected: LaneSet,
    setting_up: LaneSet,
    up: BTreeMap<LaneIndex, LaneUp>,
    /// The workers that others may send by way of: those with a lane, once the link has settled.
    announced: u64,
    /// What its stream takes, if it has one.
    stream: Option<StreamForm>,
    /// Packets take the stream though there are lanes: none of these has an answer.
    avoids_lanes: bool,
    /// The workers whose lanes are all silent, while others' are not: packets take these.
    silent_workers: u64,
    settle_at: Option<Instant>,
    asking: Option<(AskId, Offer)>,
    asked_at: Option<Instant>,
    /// When the question under way is given up and asked anew, on the best connection there is by then.
    ask_anew_at: Option<Instant>,
    /// How often there may be one more exchange because of news.
    exchanges: Option<Bucket>,
    /// How long the last answer took.
    exchange_took: Duration,
    ask_again: bool,
    retry_at: Option<Instant>,
    /// Failures in a row; a question that waits to be asked counts for one, however many lanes it is for.
    attempts: u32,
    last_handshake_at: Option<SystemTime>,
    /// Why a lane is missing, as far as we know.
    problem: Option<String>,
}

impl Link {
    pub(super) fn new(peer: PeerIndex, role: Role) -> Self {
        Self {
            peer,
            role,
            connected: false,
            instance: None,
            expected: LaneSet::default(),
            setting_up: LaneSet::default(),
            up: BTreeMap::new(),
            announced: 0,
            stream: None,
            avoids_lanes: false,
            silent_workers: 0,
            settle_at: None,
            asking: None,
            asked_at: None,
            ask_anew_at: None,
            exchanges: None,
            exchange_took: Duration::ZERO,
            ask_again: false,
            retry_at: None,
            attempts: 0,
            last_handshake_at: None,
            problem: None,
        }
    }

    /// Whether it is the peer's part to ask for lanes.
    pub fn is_server(&self) -> bool {
        self.role == Role::Server
    }

    /// Whether libp2p connects us to the peer.
    pub fn is_connected(&self) -> bool {
        self.connected
    }

    /// The lanes that stand, by index.
    pub fn lanes(&self) -> impl Iterator<Item = (LaneIndex, &LaneUp)> {
        self.up.iter().map(|(index, lane)| (*index, lane))
    }

    /// When the newest handshake of all its lanes was confirmed.
    pub fn last_handshake_at(&self) -> Option<SystemTime> {
        self.last_handshake_at
    }

    /// The last thing that kept a lane from standing, for the operator; `None` once all of them do.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// Whether packets of all workers reach the peer by lanes.
    pub fn carries(&self) -> bool {
        self.announced != 0 && !self.avoids_lanes
    }

    /// Whether the peer answers on none of the lanes that stand.
    pub fn is_silent(&self) -> bool {
        !self.up.is_empty() && self.up.values().all(|lane| lane.gauges.is_silent())
    }

    /// The lanes that the link should have; none before both ends have made offers.
    pub fn expected(&self) -> LaneSet {
        self.expected
    }

    /// The lanes that the link should have and that do not stand.
    pub fn lacking(&self) -> LaneSet {
        LaneSet(self.expected.0 & !self.standing().0)
    }

    /// What the peer's stream takes, while packets can reach it by one. They do while [`Self::carries`] says no.
    pub fn stream(&self) -> Option<StreamForm> {
        self.stream
    }

    pub(super) fn set_stream(&mut self, stream: Option<StreamForm>) {
        self.stream = stream;
    }

    /// `leads_there`: whether the peer answers by what its stream would take.
    pub(super) fn set_stream_preferred(&mut self, leads_there: bool) {
        self.avoids_lanes = leads_there && self.is_silent();
    }

    /// By what packets reach the peer, as far as the workers are to know.
    pub(super) fn reach(&self) -> Reach {
        if self.avoids_lanes && self.stream.is_some() && !self.up.is_empty() {
            return Reach { workers_with_lane: 0, stream: self.stream, avoided: u64::MAX };
        }
        let workers_with_lane = self.announced & !self.silent_workers;
        Reach { workers_with_lane, stream: self.stream, avoided: self.silent_workers }
    }

    /// Brings what the other workers know up to date: at once when nothing more is expected, or a lane is gone.
    fn announce(&mut self) {
        let workers = |is_silent| {
            let lanes = self.up.values().filter(|lane| lane.gauges.is_silent() == is_silent);
            lanes.fold(0, |mask, lane| mask | 1 << lane.worker.0)
        };
        let (heard, silent): (u64, u64) = (workers(false), workers(true));
        let up = heard | silent;
        let waiting = !self.setting_up.is_empty() && self.settle_at.is_some();
        self.announced = if waiting { self.announced & up } else { up };
        if !waiting || up == 0 {
            self.settle_at = None;
        }
        self.silent_workers = if self.announced & heard == 0 { 0 } else { silent & !heard };
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.retry_at.into_iter().chain(self.settle_at).chain(self.ask_anew_at).min()
    }

    pub(super) fn handle_timeout<T>(&mut self, now: Instant, context: &mut Context<'_, T>) {
        if self.settle_at.is_some_and(|at| at <= now) {
            self.settle_at = None;
            self.announce();
        }
        if self.ask_anew_at.is_some_and(|at| at <= now) {
            self.forget_question();
            self.ask(now, context);
        }
        if self.retry_at.is_some_and(|at| at <= now) {
            match self.role {
                Role::Client => self.ask(now, context),
                Role::Server => self.prompt(now, context),
            }
        }
    }

    /// More, or other, of our workers' ports can be reached from elsewhere.
    pub(super) fn handle_candidates_change(&mut self, now: Instant) {
        self.attempts = 0;
        self.exchange_after(EXCHANGE_DELAY, now);
    }

    /// A better path is conceivable than one that a lane has.
    pub(super) fn handle_improve(&mut self, now: Instant) {
        if self.role == Role::Client {
            self.exchange_after(EXCHANGE_DELAY, now);
        }
    }

    /// Has an exchange begin soon, or as soon as there have not been too many.
    fn exchange_after(&mut self, delay: Duration, now: Instant) {
        if !self.connected {
            return;
        }
        let exchanges = self.exchanges.get_or_insert_with(|| Bucket::new(EXCHANGES_BURST, 1, now));
        let at = (now + delay).max(exchanges.ready_at().unwrap_or(now));
        self.retry_at = Some(self.retry_at.map_or(at, |planned| planned.min(at)));
    }

    /// Tells the client where we are, so that it asks.
    fn prompt<T>(&mut self, now: Instant, context: &mut Context<'_, T>) {
        self.retry_at = None;
        let offer = context.offer(self.peer, LaneSet::default(), Duration::ZERO);
        let ask = context.next_ask();
        self.asking = Some((ask, offer.clone()));
        self.count_exchange(now);
        context.intents.push_back(Intent::Ask { peer: self.peer, ask, offer });
    }

    fn count_exchange(&mut self, now: Instant) {
        self.asked_at = Some(now);
        if let Some(exchanges) = &mut self.exchanges {
            exchanges.take(now);
        }
    }

    pub(super) fn handle_connected<T>(&mut self, now: Instant, context: &mut Context<'_, T>) {
        self.connected = true;
        self.attempts = 0;
        self.handle_suspicion(now);
        if self.ask_anew_at.is_some_and(|at| at <= now) {
            self.forget_question();
        }
        // Also with all lanes up: the peer may have restarted, or moved, and its answer tells.
        self.ask(now, context);
    }

    /// The connection that a question of ours is under way on is perhaps dead. Of a peer that was killed nobody says so, and
    /// the stream would wait for its answer for seconds.
    pub(super) fn handle_suspicion(&mut self, now: Instant) {
        if self.asking.is_some() && self.role == Role::Client {
            self.ask_anew_at = Some(self.asked_at.map_or(now, |at| at + ASKED_IN_VAIN));
        }
    }

    fn forget_question(&mut self) {
        self.asking = None;
        self.ask_again = false;
        self.ask_anew_at = None;
    }

    pub(super) fn handle_disconnected(&mut self) {
        self.connected = false;
        self.forget_question();
        self.retry_at = None;
        self.problem = None;
    }

    pub(super) fn handle_address_change<T>(&mut self, now: Instant, context: &mut Context<'_, T>) {
        self.attempts = 0;
        // Also with all lanes up: each end is to know where the other's lanes could go.
        match self.role {
            Role::Client => self.ask(now, context),
            Role::Server => self.exchange_after(Duration::ZERO, now),
        }
    }

    pub(super) fn handle_offer<T>(&mut self, theirs: Offer, token: T, now: Instant, context: &mut Context<'_, T>) {
        if self.role != Role::Server {
            // It is our part to ask; a peer that does not know that would open every lane twice.
            let answer = Answer::Refused(RefusalReason::Unsupported);
            context.intents.push_back(Intent::Answer { token, answer });
            self.exchange_after(Duration::ZERO, now);
            return;
        }
        self.meet(&theirs, context);
        let lanes = theirs.lanes.intersection(self.expected);
        if !lanes.intersection(self.setting_up).is_empty() {
            self.problem = Some(GIVEN_UP.to_owned());
        }
        for index in lanes.iter() {
            self.retire(index, context);
        }
        let mut ours = context.offer(self.peer, lanes, Duration::ZERO);
        // Those we lack besides: the client may take them for standing, and then would never ask for them.
        ours.lanes.0 |= self.missing().0;
        context.intents.push_back(Intent::Answer { token, answer: Answer::Offer(Box::new(ours.clone())) });
        self.scout(&ours, &theirs, lanes, context);
        self.set_up(ours, theirs, lanes, context);
    }

    pub(super) fn handle_answer<T>(
        &mut self,
        ask: AskId,
        answer: Result<Answer, AskFailure>,
        now: Instant,
        context: &mut Context<'_, T>,
    ) {
        if self.asking.as_ref().is_none_or(|(asked, _)| *asked != ask) {
            return;
        }
        let Some((_, ours)) = self.asking.take() else { return };
        self.ask_anew_at = None;
        if self.role == Role::Server {
            // It was only to be told.
            return;
        }
        self.exchange_took = self.asked_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        match answer {
            Ok(Answer::Offer(theirs)) => {
                let knew_peer = self.instance.is_some();
                if self.meet(&theirs, context) && knew_peer {
                    // We asked for what was missing of the old lanes; what we want is all of the new ones. But who is
                    // somebody else every time (two nodes with one key) is not asked as fast as it can answer.
                    if self.attempts == 0 {
                        self.attempts = 1;
                        self.ask(now, context);
                    } else {
                        self.retry_later(now, context);
                    }
                    return;
                }
                // What the peer lacks though we have not asked for it is gone there, and only we can ask for it again.
                let gone = LaneSet(theirs.lanes.0 & !ours.lanes.0 & self.standing().0);
                let lanes = ours.lanes.intersection(theirs.lanes).intersection(self.missing());
                self.scout(&ours, &theirs, gone, context);
                self.set_up(ours, *theirs, lanes, context);
                if !gone.is_empty() {
                    for index in gone.iter() {
                        self.retire(index, context);
                    }
                    self.ask(now, context);
                } else if !self.missing().is_empty() && self.setting_up.is_empty() {
                    self.retry_later(now, context);
                }
            }
            Ok(Answer::Refused(reason)) => {
                tracing::debug!(peer = self.peer.0, %reason, "the peer refuses a link");
                self.problem = Some(format!("the peer refuses a link: {reason}"));
                self.retry_later(now, context);
            }
            Err(error) => {
                tracing::debug!(peer = self.peer.0, %error, "no answer to our offer");
                // Where no lane is missing it keeps nothing from standing.
                if self.expected.is_empty() || !self.missing().is_empty() {
                    self.problem = Some(format!("no answer to our offer: {error}"));
                }
                self.retry_later(now, context);
            }
        }
        if std::mem::take(&mut self.ask_again) {
            self.ask(now, context);
        }
    }

    pub(super) fn handle_lane_up<T>(&mut self, index: LaneIndex, lane: LaneUp, context: &mut Context<'_, T>) {
        self.setting_up.0 &= !bit(index);
        self.last_handshake_at = self.last_handshake_at.max(Some(lane.handshake_at));
        self.retire(index, context);
        let now = lane.since;
        if self.up.is_empty() {
            self.settle_at = Some(now + SETTLE);
        }
        self.up.insert(index, lane);
        self.avoids_lanes = false;
        self.announce();
        if !self.setting_up.is_empty() {
            return;
        }
        if self.missing().is_empty() {
            self.retry_at = None;
            self.problem = None;
        } else {
            self.retry_later(now, context);
        }
    }

    pub(super) fn handle_problem(&mut self, problem: String) {
        self.problem = Some(problem);
    }

    pub(super) fn handle_lane_failed<T>(
        &mut self,
        index: LaneIndex,
        problem: String,
        now: Instant,
        context: &mut Context<'_, T>,
    ) {
        self.setting_up.0 &= !bit(index);
        self.problem = Some(problem);
        self.announce();
        if self.setting_up.is_empty() {
            self.retry_later(now, context);
        }
    }

    pub(super) fn handle_lane_ended<T>(
        &mut self,
        index: LaneIndex,
        serial: LaneSerial,
        now: Instant,
        context: &mut Context<'_, T>,
    ) -> bool {
        let Some(lane) = self.up.get(&index).filter(|lane| lane.serial == serial) else { return false };
        let was_stable = now.saturating_duration_since(lane.since) >= STABLE_AFTER;
        self.up.remove(&index);
        self.announce();
        let planned = if was_stable { self.retry_at.take() } else { None };
        if was_stable {
            self.attempts = 0;
        }
        self.retry_later(now, context);
        self.retry_at = self.retry_at.into_iter().chain(planned).min();
        true
    }

    pub(super) fn handle_lane_changed(&mut self, index: LaneIndex, serial: LaneSerial, change: LaneChange) -> bool {
        let Some(lane) = self.up.get_mut(&index).filter(|lane| lane.serial == serial) else { return false };
        match change {
            LaneChange::Moved { local, remote } => (lane.local, lane.remote) = (local, remote),
            LaneChange::Silent => {
                self.problem = Some(silence_on(index));
                self.announce();
            }
            LaneChange::Heard => {
                self.problem.take_if(|problem| *problem == silence_on(index));
                self.announce();
            }
            _ => {}
        }
        true
    }

    /// Takes note of who the peer is now. Returns whether that is news; then nothing of the old lanes is left.
    fn meet<T>(&mut self, theirs: &Offer, context: &mut Context<'_, T>) -> bool {
        let is_news = self.instance != Some(theirs.instance);
        if is_news {
            self.instance = Some(theirs.instance);
            let old: Vec<_> = self.up.keys().copied().collect();
            for index in old {
                self.retire(index, context);
            }
            if !self.setting_up.is_empty() {
                self.setting_up = LaneSet::default();
                context.intents.push_back(Intent::CancelSetUp(self.peer));
            }
        }
        self.expected = LaneIndex::all(context.us.workers, theirs.workers).collect();
        is_news
    }

    fn missing(&self) -> LaneSet {
        LaneSet(self.expected.0 & !self.standing().0 & !self.setting_up.0)
    }

    fn standing(&self) -> LaneSet {
        self.up.keys().copied().collect()
    }

    fn ask<T>(&mut self, now: Instant, context: &mut Context<'_, T>) {
        self.retry_at = None;
        if self.role != Role::Client || !self.connected {
            return;
        }
        if self.asking.is_some() {
            self.ask_again = true;
            return;
        }
        let lanes = if self.expected.is_empty() { LaneSet(u64::MAX) } else { self.missing() };
        let offer = context.offer(self.peer, lanes, self.exchange_took / 2);
        let ask = context.next_ask();
        self.asking = Some((ask, offer.clone()));
        self.count_exchange(now);
        context.intents.push_back(Intent::Ask { peer: self.peer, ask, offer });
    }

    /// Has the lanes that stand look for better paths, and those in the making for their first one, but for those that are
    /// `gone` at the other end or made anew.
    fn scout<T>(&mut self, ours: &Offer, theirs: &Offer, gone: LaneSet, context: &mut Context<'_, T>) {
        let lanes = LaneSet((self.standing().0 | self.setting_up.0) & !gone.0);
        if !lanes.is_empty() {
            let (ours, theirs) = (ours.clone(), theirs.clone());
            context.intents.push_back(Intent::Scout { peer: self.peer, role: self.role, ours, theirs, lanes });
        }
    }

    fn set_up<T>(&mut self, ours: Offer, theirs: Offer, lanes: LaneSet, context: &mut Context<'_, T>) {
        if lanes.is_empty() {
            return;
        }
        self.setting_up.0 |= lanes.0;
        context.intents.push_back(Intent::SetUp { peer: self.peer, role: self.role, ours, theirs, lanes });
    }

    fn retire<T>(&mut self, index: LaneIndex, context: &mut Context<'_, T>) {
        if let Some(lane) = self.up.remove(&index) {
            self.announce();
            context.intents.push_back(Intent::Retire { worker: lane.worker, serial: lane.serial });
        }
    }

    /// Plans the next question: soon at first, then ever more rarely, never at the same moment as everybody else.
    fn retry_later<T>(&mut self, now: Instant, context: &mut Context<'_, T>) {
        if self.role != Role::Client || !self.connected {
            return;
        }
        let pause = RETRY_MIN.saturating_mul(RETRY_FACTOR.saturating_pow(self.attempts)).min(RETRY_MAX);
        let jitter = Duration::from_millis(context.below(pause.as_millis() as u64 / 2));
        let at = now + pause + jitter;
        match self.retry_at {
            Some(planned) => self.retry_at = Some(planned.min(at)),
            None => {
                self.attempts = self.attempts.saturating_add(1);
                self.retry_at = Some(at);
            }
        }
    }
}

fn silence_on(index: LaneIndex) -> String {
    format!("the peer does not answer on lane {index}")
}

fn bit(index: LaneIndex) -> u64 {
    1 << index.get()
}

#[cfg(test)]
mod tests;
