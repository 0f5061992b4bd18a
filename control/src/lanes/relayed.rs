//! Lanes of ours that a third node relays: their *passages*.
//!
//! A passage is a UDP port of ours, for one lane and one relay alone, and the relay's port that it leads to; what arrives
//! there comes from the lane's other end. The port is bound at the relay (`udp_relay/binder.rs`), and from then on it is one
//! more pair to be probed, one more path that a lane may take, of the class [`PathClass::Relay`]: it is taken when nothing
//! else is there, and left for anything that is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use ringlane_shared::id::{LaneIndex, PeerIndex};
use ringlane_shared::limits::{PASSAGE_ROUTES_MAX, PASSAGES_MAX, PROBE_PAIRS_MAX};
use ringlane_shared::path::candidate::Pair;
use ringlane_shared::path::choice::{PathClass, RankedPair};
use ringlane_shared::wire::bind::{Bind, BindKeys, BindKind, UnverifiedBind, is_bind};
use ringlane_shared::wire::offer::LaneSet;
use ringlane_shared::wire::record::DatagramKind;
use ringlane_shared::wire::relay::Allotment;

use super::drops::ListenerDrop;
use super::engine::{Key, LaneEngine, LaneOutcome, draw_transaction};
use super::handshake::Path;
use super::setup::path_of;
use super::socket;
use crate::udp_relay::binder::Binder;
use crate::underlay::source_to;

/// All passages. Owner: the lane engine.
#[derive(Debug, Default)]
pub(super) struct Relayed {
    /// By lane and relay.
    passages: BTreeMap<(Key, PeerIndex), Passage>,
    /// Whose port each is, and which of its routes.
    by_local: BTreeMap<SocketAddr, (Key, PeerIndex, usize)>,
}

#[derive(Debug)]
struct Passage {
    keys: BindKeys,
    binder: Binder,
    routes: Vec<Path>,
}

impl Passage {
    fn open_path(&self) -> Option<Path> {
        self.routes.get(self.binder.open_route()?).copied()
    }
}

impl Relayed {
    /// By what a lane could go, most recently bound relay last.
    fn open_paths(&self, key: Key) -> impl Iterator<Item = Path> {
        let of_lane = self.passages.range((key, PeerIndex(0))..=(key, PeerIndex(u16::MAX)));
        of_lane.filter_map(|(_, passage)| passage.open_path())
    }

    /// The names of all passages to a peer.
    fn of_peer(&self, peer: PeerIndex) -> impl Iterator<Item = (Key, PeerIndex)> {
        let first = LaneIndex::all(1, 1).next().map(|lane| ((peer, lane), PeerIndex(0)));
        let from_there = first.into_iter().flat_map(|first| self.passages.range(first..));
        from_there.map(|(name, _)| *name).take_while(move |((of, _), _)| *of == peer)
    }

    /// All ways to relays of a lane.
    fn routes(&self, key: Key) -> impl Iterator<Item = Path> {
        let of_lane = self.passages.range((key, PeerIndex(0))..=(key, PeerIndex(u16::MAX)));
        of_lane.flat_map(|(_, passage)| passage.routes.iter().copied())
    }

    /// Whether nothing that comes so is for us: at a passage only its relay is heard, and only what lanes say.
    pub(super) fn refuses(&self, path: Path, kind: DatagramKind) -> bool {
        let Some((key, relay, route)) = self.by_local.get(&path.local) else { return false };
        let route = self.passages.get(&(*key, *relay)).and_then(|passage| passage.routes.get(*route));
        route.is_none_or(|route| route.remote != path.remote) || kind == DatagramKind::Stun
    }

    /// Whether this lane goes so.
    pub(super) fn leads(&self, key: Key, path: Path) -> bool {
        self.by_local.get(&path.local).is_some_and(|(of, ..)| *of == key)
    }

    /// Forgets a route. Returns its port if it still has it: one that was given back before may be another's by now.
    fn close(&mut self, (key, relay): (Key, PeerIndex), place: usize, local: SocketAddr) -> Option<SocketAddr> {
        let is_its_own = self.by_local.get(&local) == Some(&(key, relay, place));
        is_its_own.then(|| self.by_local.remove(&local)).map(|_| local)
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.passages.values().filter_map(|passage| passage.binder.poll_timeout()).min()
    }
}

impl LaneEngine {
    /// A relay relays lanes of our link to `peer`: shows it where we are. Replaces what it has allotted for this link
    /// before. Returns the lanes that have a passage now.
    pub fn add_passages(&mut self, peer: PeerIndex, relay: PeerIndex, allotment: &Allotment, now: Instant) -> LaneSet {
        self.remove_passages(peer, relay);
        // The kernel says from where it would send to each address; one query for all lanes.
        let mut sources = BTreeMap::<IpAddr, Option<IpAddr>>::new();
        let mut made = LaneSet::default();
        for lane in &allotment.lanes {
            if self.relayed.passages.len() >= PASSAGES_MAX {
                break;
            }
            let key = (peer, lane.lane);
            let mut remotes: Vec<SocketAddr> = allotment.addresses_of(lane).collect();
            // A neighbour's own address is the shortest way to it, and means nothing elsewhere.
            remotes.sort_by_key(|remote| !self.on_link.iter().any(|network| network.contains(&remote.ip())));
            let mut routes = Vec::new();
            for remote in remotes {
                let pairs = self.policy.pairs(self.listeners.ips(), [remote]);
                // Where lanes listen on other addresses than the kernel would choose, one of those has to do.
                let source = *sources.entry(remote.ip()).or_insert_with(|| source_to(remote, true));
                let routed = pairs.iter().find(|pair| Some(pair.local) == source).or(pairs.first());
                let Some(local) = routed.map(|pair| pair.local).filter(|_| routes.len() < PASSAGE_ROUTES_MAX) else {
                    continue;
                };
                if let Ok(local) = self.listeners.open_passage(local) {
                    self.relayed.by_local.insert(local, (key, relay, routes.len()));
                    routes.push(Path { local, remote });
                }
            }
            if !routes.is_empty() {
                let binder = Binder::new(routes.len(), now);
                self.relayed.passages.insert((key, relay), Passage { keys: lane.token.keys(), binder, routes });
                made.0 |= 1 << lane.lane.get();
            }
        }
        self.note_socket_added();
        made
    }

    /// Whether a lane may begin or end at this address.
    pub fn admits(&self, ip: IpAddr) -> bool {
        self.policy.admits(ip)
    }

    /// Forgets all passages through a relay to a peer. A lane that goes there is silent soon.
    pub fn remove_passages(&mut self, peer: PeerIndex, relay: PeerIndex) {
        let of_relay = self.relayed.of_peer(peer).filter(|(_, by)| *by == relay);
        for (key, relay) in of_relay.collect::<Vec<_>>() {
            self.remove_passage(key, relay);
        }
    }

    fn remove_passage(&mut self, key: Key, relay: PeerIndex) {
        let Some(passage) = self.relayed.passages.remove(&(key, relay)) else { return };
        for (place, route) in passage.routes.into_iter().enumerate() {
            if let Some(local) = self.relayed.close((key, relay), place, route.local) {
                self.listeners.close_passage(local);
            }
        }
        self.tell_passages(key);
    }

    /// The lanes to a peer that could go by each relay, or are about to be bound there.
    pub fn passages_to(&self, peer: PeerIndex) -> BTreeMap<PeerIndex, LaneSet> {
        let mut passages = BTreeMap::<_, LaneSet>::new();
        for ((_, lane), relay) in self.relayed.of_peer(peer) {
            passages.entry(relay).or_default().0 |= 1 << lane.get();
        }
        passages
    }

    /// By which relay a lane goes that has this address of ours; `None` if by none.
    pub fn relay_of(&self, local: SocketAddr) -> Option<PeerIndex> {
        self.relayed.by_local.get(&local).map(|(_, relay, _)| *relay)
    }

    /// Our addresses are others: passages from those that are gone are too.
    pub(super) fn close_lost_passages(&mut self) {
        let ips: BTreeSet<IpAddr> = self.listeners.ips().iter().copied().collect();
        let is_lost = |(name, passage): &(&(Key, PeerIndex), &Passage)| {
            // Those of its routes that were not chosen are closed already.
            let is_open = |(place, route): &(usize, &Path)| {
                self.relayed.by_local.get(&route.local) == Some(&(name.0, name.1, *place))
            };
            passage.routes.iter().enumerate().filter(is_open).any(|(_, route)| !ips.contains(&route.local.ip()))
        };
        let lost: Vec<_> = self.relayed.passages.iter().filter(is_lost).map(|(name, _)| *name).collect();
        for (key, relay) in lost {
            self.remove_passage(key, relay);
            self.tell_passages_changed();
        }
    }

    /// Sends the binds that are due, and gives up what is not answered.
    pub(super) fn tick_relayed(&mut self, now: Instant) {
        if self.relayed.poll_timeout().is_none_or(|at| at > now) {
            return;
        }
        let mut requests = Vec::new();
        let mut failed = Vec::new();
        for (name, passage) in &mut self.relayed.passages {
            while let Some(request) = passage.binder.poll_transmit(now) {
                let bind = passage
                    .keys
                    .seal(&Bind { number: request.number, kind: BindKind::Request { proof: request.proof } });
                requests.extend(passage.routes.get(request.route).map(|route| (name.1, *route, bind)));
            }
            if passage.binder.has_failed() {
                failed.push(*name);
            }
        }
        for (relay, path, bind) in requests {
            // What a relay says are its addresses may be a third party's.
            if let Some(listener) = self.listeners.get(path.local)
                && self.probe_rate.take(relay, path.remote.ip(), now)
            {
                socket::send_to(listener, path.remote, &bind);
            }
        }
        for (key, relay) in failed {
            tracing::debug!(peer = key.0.0, lane = %key.1, relay = relay.0, "no passage through this relay");
            self.remove_passage(key, relay);
            self.tell_passages_changed();
        }
    }

    /// A bind has come: to us as a relay, or from one.
    pub(super) fn handle_bind(&mut self, path: Path, datagram: &[u8], now: Instant) -> Result<(), ListenerDrop> {
        if is_bind(datagram) {
            return self.handle_bind_request(path, datagram, now);
        }
        let unverified = UnverifiedBind::parse(datagram).map_err(|_| ListenerDrop::BadBind)?;
        let &(key, relay, route) = self.relayed.by_local.get(&path.local).ok_or(ListenerDrop::BadBind)?;
        let passage = self.relayed.passages.get_mut(&(key, relay)).ok_or(ListenerDrop::BadBind)?;
        let bind = passage.keys.verify(&unverified).map_err(|_| ListenerDrop::BadBind)?;
        let is_news = match bind.kind {
            BindKind::Request { .. } => return Err(ListenerDrop::BadBind),
            BindKind::Challenge { proof } => {
                passage.binder.handle_challenge(route, bind.number, proof, now);
                false
            }
            BindKind::Waiting { .. } => passage.binder.handle_answer(route, bind.number, false, now),
            BindKind::Open { .. } => passage.binder.handle_answer(route, bind.number, true, now),
        };
        let (binder, routes) = (&passage.binder, passage.routes.iter().enumerate());
        let done: Vec<_> = routes
            .filter(|(place, _)| binder.is_done_with(*place))
            .map(|(place, route)| (place, route.local))
            .collect();
        for (place, local) in done {
            if let Some(local) = self.relayed.close((key, relay), place, local) {
                self.listeners.close_passage(local);
            }
        }
        if is_news {
            self.open_passage(key, path, now);
        }
        Ok(())
    }

    /// Datagrams pass: whoever has no better path takes this one.
    fn open_passage(&mut self, key: Key, path: Path, now: Instant) {
        self.tell_passages(key);
        let pair = Pair { local: path.local.ip(), remote: path.remote };
        if let Some(setup) = self.setups.get_mut(&key) {
            // As if the other end had asked by it, which it is about to do.
            setup.prober().handle_request(pair, draw_transaction(), now);
            return;
        }
        match self.standing.find(key).map(|lane| (lane.serial, lane.gauges.is_silent())) {
            Some((serial, true)) => {
                self.try_path(serial, path, false, now);
            }
            Some((_, false)) => {}
            None => self.ask_for_exchange(key.0),
        }
    }

    /// A lane has come up. One that goes by a relay does so because nothing else was found in time: it is looked for at once,
    /// and not when a better path is looked for anyhow.
    pub(super) fn note_relayed_lane(&mut self, key: Key) {
        self.tell_passages(key);
        let lane = self.standing.find(key);
        if lane.is_some_and(|lane| lane.is_client && lane.book.class() == PathClass::Relay) {
            self.ask_for_exchange(key.0);
        }
    }

    fn ask_for_exchange(&mut self, peer: PeerIndex) {
        let is_asked = |outcome: &LaneOutcome| matches!(outcome, LaneOutcome::Improve { peer: of } if *of == peer);
        if !self.outcomes.iter().any(is_asked) {
            self.outcomes.push_back(LaneOutcome::Improve { peer });
        }
    }

    /// Has a lane that stands know which of its paths are passages.
    pub(super) fn tell_passages(&mut self, key: Key) {
        let mut paths: Vec<Path> = self.relayed.open_paths(key).collect();
        let Some(serial) = self.standing.find(key).map(|lane| lane.serial) else { return };
        let Some(lane) = self.standing.get_mut(serial) else { return };
        // What it goes by is one as long as it goes there, whether or not it could be chosen anew; and from the start, though the
        // other end may have been told first that it is open.
        let is_one = lane.passages.contains(&lane.path) || self.relayed.leads(key, lane.path);
        if is_one && !paths.contains(&lane.path) {
            paths.push(lane.path);
        }
        lane.passages = paths;
        lane.classify(&self.on_link);
    }

    fn tell_passages_changed(&mut self) {
        if !self.outcomes.iter().any(|outcome| matches!(outcome, LaneOutcome::PassagesChanged)) {
            self.outcomes.push_back(LaneOutcome::PassagesChanged);
        }
    }

    /// A lane hears nothing by a passage: perhaps the relay does not know any more where we are.
    pub(super) fn hurry_passages(&mut self, peer: PeerIndex, index: LaneIndex, now: Instant) {
        let of_lane = ((peer, index), PeerIndex(0))..=((peer, index), PeerIndex(u16::MAX));
        for (_, passage) in self.relayed.passages.range_mut(of_lane) {
            passage.binder.hurry(now);
        }
    }

    /// Adds a lane's passages to its pairs, as the last of them.
    pub(super) fn add_passage_pairs(&self, key: Key, ranked: &mut Vec<RankedPair>) {
        let paths: Vec<_> = self.relayed.open_paths(key).collect();
        ranked.truncate(PROBE_PAIRS_MAX.saturating_sub(paths.len()));
        for path in paths {
            let pair = Pair { local: path.local.ip(), remote: path.remote };
            ranked.retain(|ranked| ranked.pair != pair);
            ranked.push(RankedPair { class: PathClass::Relay, pair });
        }
    }

    /// Our socket's address for a pair: the lane's worker decides the port, but that of a passage.
    pub(super) fn path_for(&self, key: Key, pair: Pair) -> Path {
        let mut routes = self.relayed.routes(key);
        let passage = routes.find(|path| path.local.ip() == pair.local && path.remote == pair.remote);
        passage.unwrap_or_else(|| path_of(pair, self.local_port(key.1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_that_was_given_up_takes_nobody_s_port_though_it_was_its_own_once() {
        let (key, relay) = ((PeerIndex(1), LaneIndex::new(0).unwrap()), PeerIndex(5));
        let port = "192.0.2.1:40000".parse().unwrap();
        let mut relayed = Relayed::default();
        relayed.by_local.insert(port, (key, relay, 1));
        assert_eq!(relayed.close((key, relay), 1, port), Some(port));
        // Another passage is given the same port.
        let other = (PeerIndex(2), key.1);
        relayed.by_local.insert(port, (other, relay, 0));
        assert_eq!(relayed.close((key, relay), 1, port), None);
        assert!(relayed.by_local.contains_key(&port));
    }
}
