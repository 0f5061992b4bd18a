//! Lanes that stand look for better paths.
//!
//! After every exchange of offers both ends probe, for each lane that stands, the pairs that could be as good as its path
//! or better: both, so that translators and firewalls open. The *client* compares what it has measured
//! ([`ringlane_shared::path::choice`]) and has its worker move the lane; the server follows it, as it follows every move. So two
//! ends never disagree for long, and there is one that remembers which paths were of no use.
//!
//! When a better path is conceivable than the one a lane has, a new exchange is asked for, again and again. Where a lane's own path
//! is lossy any other may be better: they are asked many times, to find out what they lose, and at once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use ringlane_shared::id::{LaneSerial, PeerIndex};
use ringlane_shared::limits::{
    PROBES_PER_ADDRESS_MAX, PROBES_PER_PEER_MAX, SAMPLING_LANES_MAX, SCOUT_PAIRS_MAX, SCOUTS_MAX,
};
use ringlane_shared::path::candidate::Pair;
use ringlane_shared::path::choice::{Ends, Measurement, PathClass, RankedPair, Retry, lane_pairs, ranked_pairs};
use ringlane_shared::path::loss::Loss;
use ringlane_shared::path::prober::{Measured, Prober};
use ringlane_shared::wire::offer::CandidateKind;
use ringlane_shared::wire::probe::{Probe, ProbeKind, Transaction};

use super::drops::ListenerDrop;
use super::engine::{Key, LaneEngine, LaneOutcome, LinkStart, draw_transaction};
use super::handshake::Path;
use super::movement::StandingLane;
use super::setup::{Link, path_of};
use super::socket;

/// From the first path that was measured to the choice: time for others.
const SETTLE: Duration = Duration::from_millis(300);
/// How old a measurement may be that a choice is made by.
const FRESH: Duration = Duration::from_secs(10);
/// How long a lane may take to move where it is told to: its worker has given up by then.
pub(super) const TAKEN_WITHIN: Duration = Duration::from_secs(2);
/// Addresses that are counted in [`ProbeRate`] at one time.
const ADDRESSES_COUNTED_MAX: usize = 4096;

/// A lane that measures other paths.
pub(super) struct Scout {
    link: Rc<Link>,
    serial: LaneSerial,
    prober: Prober,
    classes: BTreeMap<Pair, PathClass>,
    decide_at: Option<Instant>,
    /// What other lanes of the link have found out.
    shared: Option<Shared>,
}

/// Between the same two nodes a path's ports make no difference to what it loses: a lane that needs to know takes what another
/// one has found out between the same two addresses.
#[derive(Default)]
struct Shared {
    losses: BTreeMap<(IpAddr, IpAddr), Loss>,
    /// Measured, but for the losses.
    waiting: Vec<Measured>,
}

impl Shared {
    /// Takes in what the lane itself has measured; gives what is complete, and `is_over` the rest as it is.
    fn complete(&mut self, measured: Vec<Measured>, is_over: bool) -> Vec<Measured> {
        self.waiting.extend(measured);
        let loss_of = |found: &Measured| self.losses.get(&ips(found.pair)).copied();
        let (known, waiting) = std::mem::take(&mut self.waiting)
            .into_iter()
            .map(|found| Measured { loss: loss_of(&found).unwrap_or(found.loss), ..found })
            .partition(|found| is_over || found.loss.is_known());
        self.waiting = waiting;
        known
    }
}

fn ips(pair: Pair) -> (IpAddr, IpAddr) {
    (pair.local, pair.remote.ip())
}

/// All that look for better paths. Owner: the lane engine.
#[derive(Default)]
pub(super) struct Scouting {
    scouts: BTreeMap<Key, Scout>,
    retries: BTreeMap<PeerIndex, Search>,
}

/// When to ask a peer again, and why.
struct Search {
    retry: Retry,
    hope: Hope,
}

/// What can be hoped for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Hope {
    /// Something a little faster.
    Alike,
    /// A better class of paths.
    Better,
    /// A path that loses less.
    Clean,
}

impl Hope {
    fn retry(self, now: Instant) -> Retry {
        match self {
            Self::Alike => Retry::rarely(now),
            Self::Better => Retry::new(now),
            Self::Clean => Retry::at_once(now),
        }
    }
}

/// How many requests were sent lately to each address, and because of each peer: what a peer names may be third parties, as
/// many of them as offers have room for.
#[derive(Default)]
pub(super) struct ProbeRate {
    since: Option<Instant>,
    sent: BTreeMap<IpAddr, u32>,
    sent_for: BTreeMap<PeerIndex, u32>,
    /// Of all times.
    total: u64,
}

impl ProbeRate {
    /// Whether one more may be sent to this address because of this peer.
    pub(super) fn take(&mut self, peer: PeerIndex, to: IpAddr, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= Duration::from_secs(1)) {
            self.since = Some(now);
            self.sent.clear();
            self.sent_for.clear();
        }
        if self.sent.len() >= ADDRESSES_COUNTED_MAX && !self.sent.contains_key(&to) {
            return false;
        }
        let (sent, sent_for) = (self.sent.entry(to).or_default(), self.sent_for.entry(peer).or_default());
        let is_left = *sent < PROBES_PER_ADDRESS_MAX && *sent_for < PROBES_PER_PEER_MAX;
        if is_left {
            (*sent, *sent_for, self.total) = (*sent + 1, *sent_for + 1, self.total + 1);
        }
        is_left
    }
}

impl LaneEngine {
    /// Sets the networks that we are directly connected to: a peer in one of them is near, and there are no others if the
    /// policy has a LAN.
    pub fn set_on_link(&mut self, networks: Vec<IpNet>, now: Instant) {
        if let Some(lan) = &mut self.policy.lan {
            lan.clone_from(&networks);
            self.stun.set_policy(&self.policy);
        }
        if networks != self.on_link {
            self.on_link = networks;
            self.review_all(now);
        }
    }

    /// Offers have been exchanged: the lanes among `request.lanes` that stand look for better paths, and those that look for
    /// their first one look where it is known by now.
    pub fn scout(&mut self, request: LinkStart, now: Instant) {
        let (peer, lanes) = (request.peer, request.lanes);
        let Ok(link) = self.link_of(request) else { return };
        let starts_at = link.starts_at(now);
        // Lanes with one path have the same others.
        let mut sampled = BTreeSet::new();
        for key in lanes.iter().map(|index| (peer, index)) {
            if self.setups.contains_key(&key) {
                let pairs: Vec<_> = self.ranked_of(&link, key).into_iter().map(|ranked| ranked.pair).collect();
                if let Some(setup) = self.setups.get_mut(&key) {
                    setup.refresh(&pairs, starts_at, now);
                }
                self.plan_birthday(&link, key, starts_at);
                continue;
            }
            let is_known = self.scouting.scouts.contains_key(&key);
            let Some(lane) = self.standing.find(key) else { continue };
            let (serial, own, class, is_lossy) = (lane.serial, lane.path, lane.book.class(), lane.is_lossy);
            // A lane that is not used has nothing to lose, and needs not to know.
            let is_used = is_lossy || lane.gauges.loss().is_known();
            let is_careful = link.is_client() && is_used && (is_lossy || lane.book.remembers_loss(now));
            let last = lane.book.found_no_better(now).into_iter();
            let last = last.map(|ends| Pair { local: ends.local.ip(), remote: ends.remote }).collect();
            if class == PathClass::Relay {
                self.plan_birthday(&link, key, starts_at);
            }
            if !is_known && self.scouting.scouts.len() >= SCOUTS_MAX {
                continue;
            }
            let ranked = self.ranked_of(&link, key);
            let is_worth = |ranked: &RankedPair| {
                (is_lossy || !class.is_better_than(ranked.class)) && self.path_for(key, ranked.pair) != own
            };
            let ranked: Vec<_> = ranked.into_iter().filter(is_worth).take(SCOUT_PAIRS_MAX).collect();
            let pairs: Vec<_> = ranked.iter().map(|ranked| ranked.pair).collect();
            let classes = ranked.iter().map(|ranked| (ranked.pair, ranked.class)).collect();
            let is_thorough = is_careful
                && sampled.len() < SAMPLING_LANES_MAX
                && sampled.insert((own.local.ip(), own.remote.ip(), is_lossy));
            let prober = Prober::measuring(&pairs, is_thorough, starts_at, draw_transaction).sampling_last(last);
            let shared = (is_careful && !is_thorough).then(Shared::default);
            let scout = Scout { link: Rc::clone(&link), serial, prober, classes, decide_at: None, shared };
            self.scouting.scouts.insert(key, scout);
        }
        self.links.insert(link.their_tag.0, link);
        self.forget_idle_links();
    }

    /// The pairs of a lane, those of the best class first.
    pub(super) fn ranked_of(&self, link: &Link, key: Key) -> Vec<RankedPair> {
        let offers = [&link.ours, &link.theirs];
        let mut ranked = lane_pairs(&self.policy, self.listeners.ips(), offers, key.1, &self.on_link);
        self.add_passage_pairs(key, &mut ranked);
        ranked
    }

    /// A probe of a lane that stands.
    pub(super) fn handle_scouted(
        &mut self,
        link: &Rc<Link>,
        probe: &Probe,
        path: Path,
        now: Instant,
    ) -> Result<(), ListenerDrop> {
        let scout = self.scouting.scouts.get_mut(&(link.peer, probe.lane));
        let scout = scout.filter(|scout| Rc::ptr_eq(&scout.link, link)).ok_or(ListenerDrop::UnknownProbe)?;
        let pair = Pair { local: path.local.ip(), remote: path.remote };
        match probe.kind {
            ProbeKind::Request => {
                scout.prober.handle_request(pair, draw_transaction(), now);
                let reply = link.probe_key.seal(&probe.reply(link.our_tag, path.remote));
                if let Some(listener) = self.listeners.get(path.local) {
                    socket::send_to(listener, path.remote, &reply);
                }
            }
            ProbeKind::Reply { .. } => scout.prober.handle_reply(pair, probe.transaction, now),
        }
        Ok(())
    }

    /// Sends a request, unless its address has been sent too many, or its peer has caused too many. Returns whether it has.
    pub(super) fn send_probe(
        &mut self,
        link: &Link,
        key: Key,
        path: Path,
        transaction: Transaction,
        now: Instant,
    ) -> bool {
        let probe = Probe { tag: link.our_tag, lane: key.1, transaction, kind: ProbeKind::Request };
        let Some(listener) = self.listeners.get(path.local) else { return false };
        let may_leave = self.probe_rate.take(link.peer, path.remote.ip(), now);
        if may_leave {
            socket::send_to(listener, path.remote, &link.probe_key.seal(&probe));
        }
        may_leave
    }

    /// Requests that probes have sent so far.
    pub fn probes_sent(&self) -> u64 {
        self.probe_rate.total
    }

    /// What a lane's path is like, and what the peer says of its end of it; `None` for a lane that does not stand.
    pub fn path_of(&self, serial: LaneSerial) -> Option<(PathClass, Option<CandidateKind>)> {
        let lane = self.standing.get(serial)?;
        let told = lane.candidates.iter().find(|(_, address)| *address == lane.path.remote);
        Some((lane.book.class(), told.map(|(kind, _)| *kind)))
    }

    /// When to call [`Self::tick_scouts`] next.
    pub(super) fn scouts_timeout(&self) -> Option<Instant> {
        let scouts = self.scouting.scouts.values();
        let scouts = scouts.filter_map(|scout| scout.prober.poll_timeout().into_iter().chain(scout.decide_at).min());
        scouts.chain(self.scouting.retries.values().map(|search| search.retry.poll_timeout())).min()
    }

    /// Does what is due for lanes that measure, and asks for exchanges that are due.
    pub(super) fn tick_scouts(&mut self, now: Instant) {
        self.give_up_taking(now);
        let due: Vec<Key> =
            self.scouting.scouts.iter().filter(|(_, scout)| scout.is_due(now)).map(|(key, _)| *key).collect();
        for key in due {
            self.drive_scout(key, now);
        }
        for (peer, search) in &mut self.scouting.retries {
            if search.retry.poll(now) {
                self.outcomes.push_back(LaneOutcome::Improve { peer: *peer });
            }
        }
    }

    fn drive_scout(&mut self, key: Key, now: Instant) {
        let mut requests = Vec::new();
        let Some(scout) = self.scouting.scouts.get_mut(&key) else { return };
        let link = Rc::clone(&scout.link);
        while let Some(request) = scout.prober.poll_transmit(now) {
            requests.push(request);
        }
        let mut measured = Vec::new();
        while let Some(found) = scout.prober.poll_measured() {
            measured.push(found);
        }
        let (serial, is_over) = (scout.serial, scout.prober.poll_timeout().is_none());
        let samples = scout.shared.is_none();
        if let Some(shared) = &mut scout.shared {
            measured = shared.complete(measured, is_over);
        }
        if !measured.is_empty() {
            scout.decide_at.get_or_insert(now + SETTLE);
        }
        let decides = scout.decide_at.take_if(|at| *at <= now || is_over).is_some();
        let classes: Vec<_> = measured.iter().map(|found| scout.classes.get(&found.pair).copied()).collect();
        for request in requests {
            let is_sent = self.send_probe(&link, key, self.path_for(key, request.pair), request.transaction, now);
            if let Some(scout) = self.scouting.scouts.get_mut(&key).filter(|_| !is_sent) {
                scout.prober.handle_unsent(request.pair);
            }
        }
        if samples {
            self.share(&link, &measured, now);
        }
        let paths: Vec<_> = measured.iter().map(|found| self.path_for(key, found.pair)).collect();
        let on_link = &self.on_link;
        if let Some(lane) = self.standing.get_mut(serial) {
            for ((found, class), path) in measured.into_iter().zip(classes).zip(paths) {
                let (local, remote) = (found.pair.local, found.pair.remote.ip());
                let class = class.unwrap_or_else(|| PathClass::of(local, remote, None, on_link));
                let measurement = Measurement { rtt: found.rtt, loss: found.loss };
                let own_rtt = match lane.gauges.shortest_rtt_us() {
                    0 => found.rtt,
                    us => Duration::from_micros(us),
                };
                let own = Measurement { rtt: own_rtt, loss: lane.gauges.loss() };
                let Path { local, remote } = path;
                tracing::debug!(%local, %remote, ?class, ?measurement, ?own, "path measured");
                lane.book.handle_measured(path.into(), class, measurement, own, now);
            }
            if lane.is_lossy
                && lane.book.is_to_be_confirmed(now)
                && let Some(search) = self.scouting.retries.get_mut(&key.0)
            {
                search.retry.hasten(now);
            }
            let chosen = lane.book.choose(FRESH, now).filter(|_| decides && link.is_client() && lane.taking.is_none());
            if let Some(ends) = chosen {
                lane.taking = Some((ends, now + TAKEN_WITHIN));
                self.try_path(serial, Path { local: ends.local, remote: ends.remote }, true, now);
            }
        }
        if is_over {
            self.scouting.scouts.remove(&key);
            self.forget_idle_links();
        }
    }

    /// Has the other lanes of a link know what one of them has found out.
    fn share(&mut self, link: &Rc<Link>, measured: &[Measured], now: Instant) {
        let found = measured.iter().filter(|found| found.loss.is_known());
        let found: Vec<_> = found.map(|found| (ips(found.pair), found.loss)).collect();
        if found.is_empty() {
            return;
        }
        let others = self.scouting.scouts.values_mut().filter(|scout| Rc::ptr_eq(&scout.link, link));
        for scout in others {
            let Some(shared) = &mut scout.shared else { continue };
            shared.losses.extend(found.iter().copied());
            scout.decide_at.get_or_insert(now + SETTLE);
        }
    }

    /// Lanes that were to move and have not: the path answered control and not their worker.
    fn give_up_taking(&mut self, now: Instant) {
        for lane in self.standing.lanes_mut() {
            if let Some((ends, _)) = lane.taking.take_if(|(_, until)| *until <= now) {
                lane.book.handle_unanswered(ends, now);
            }
        }
    }

    /// Something is different that paths follow from: looks whether a better one is conceivable for a peer's lanes.
    /// `afresh`: because there are new addresses, so that it is worth looking soon.
    pub(super) fn review(&mut self, peer: PeerIndex, afresh: bool, now: Instant) {
        let (policy, ips, on_link) = (&self.policy, self.listeners.ips(), &self.on_link);
        let wants = self.standing.lanes_of(peer).filter(|lane| lane.is_client).filter_map(|lane| {
            let ranked = ranked_pairs(policy, ips, lane.candidates.iter().copied(), on_link, false);
            let best = ranked
                .iter()
                .find(|ranked| Ends::from(path_of(ranked.pair, lane.path.local.port())) != lane.book.own());
            let class = lane.book.class();
            best.and_then(|best| {
                if lane.is_lossy {
                    Some(Hope::Clean)
                } else if best.class.is_better_than(class) {
                    Some(Hope::Better)
                } else {
                    (!class.is_better_than(best.class)).then_some(Hope::Alike)
                }
            })
        });
        let Some(hope) = wants.max() else {
            self.scouting.retries.remove(&peer);
            return;
        };
        match self.scouting.retries.get_mut(&peer).filter(|search| search.hope == hope) {
            Some(search) if afresh && hope > Hope::Alike => search.retry = Retry::new(now),
            Some(_) => {}
            None => drop(self.scouting.retries.insert(peer, Search { retry: hope.retry(now), hope })),
        }
    }

    pub(super) fn review_all(&mut self, now: Instant) {
        let ips = self.listeners.ips().to_vec();
        for lane in self.standing.lanes_mut() {
            lane.book.forgive(now);
            lane.classify(&self.on_link);
            lane.taking = lane.taking.filter(|(ends, _)| ips.contains(&ends.local.ip()));
        }
        for peer in self.standing.peers() {
            self.review(peer, true, now);
        }
    }
}

impl Scout {
    fn is_due(&self, now: Instant) -> bool {
        let next = self.prober.poll_timeout().into_iter().chain(self.decide_at).min();
        next.is_none_or(|next| next <= now) || self.prober.has_news()
    }
}

impl StandingLane {
    /// Finds out anew what the lane's own path is like.
    pub(super) fn classify(&mut self, on_link: &[IpNet]) {
        let class = self.class_of(self.path, on_link);
        self.book.set_class(class);
    }

    pub(super) fn class_of(&self, path: Path, on_link: &[IpNet]) -> PathClass {
        if self.passages.contains(&path) {
            return PathClass::Relay;
        }
        let kind = self.candidates.iter().find(|(_, address)| *address == path.remote).map(|(kind, _)| *kind);
        PathClass::of(path.local.ip(), path.remote.ip(), kind, on_link)
    }
}

impl From<Path> for Ends {
    fn from(path: Path) -> Self {
        Self { local: path.local, remote: path.remote }
    }
}
