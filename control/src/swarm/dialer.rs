//! When to dial whom, and where: a state machine without sockets, clock or randomness of its own.
//!
//! A peer without a connection is dialled for ever. The first dial of a lost peer follows within a quarter of a second
//! (it may just have restarted), the pauses then double up to 15 seconds, each jittered so that two nodes, or a
//! thousand, do not stay in step. Pauses count from the start of a dial to the start of the next and two dials may
//! overlap: a dial into a black hole takes seconds to fail, and must not delay the one that finds the peer back.
//! A connection that does not last does not reset the pauses: a peer that lets us in and throws us out again is not
//! hammered.
//!
//! Through relays a peer is dialled on a schedule of its own, beside the direct one: neither waits for the other. The
//! direct dial of a peer that is missing has a head start; who was connected a moment ago, or seems to be lost, is dialled
//! both ways at once, and whatever answers first is used.
//!
//! Each dial tries up to [`DIALED_ADDRESSES_MAX`](ringlane_shared::limits::DIALED_ADDRESSES_MAX) addresses at once: those that worked before, then those that waited
//! longest, WebSockets behind others. Configured addresses are never forgotten; of the others the least useful one makes room.

mod pace;
mod peer;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use libp2p::{Multiaddr, PeerId};

pub(crate) use self::pace::Jitter;
use self::pace::PAUSE_MIN;
use self::peer::{Known, Peer, is_tcp};
use super::{address, names};

/// Between two times that a connected peer is looked for at once, and not as patiently as one that is missing.
const SEEK_SPACING: Duration = Duration::from_secs(2);
/// How long a peer that a relay leads to may take to reach us directly by itself, before we try.
const DIRECT_DELAY: Duration = Duration::from_millis(500);
/// A connection that lived this long was a real one: when it is lost, pauses start from the shortest again. A peer that
/// refuses us does so within a round trip of the handshake.
pub(super) const STABLE_AFTER: Duration = Duration::from_secs(2);

/// One direct dial in this many leaves from a fresh port.
const FRESH_PORT_EVERY: u32 = 4;

/// Who told us an address; the more trustworthy, the greater.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Source {
    /// A delegated router.
    Routing,
    /// The distributed hash table.
    Dht,
    /// Another configured peer.
    PeerExchange,
    /// The peer itself, in a record that others passed on.
    SignedRecord,
    /// The peer itself, over an authenticated connection.
    Identify,
    /// The cache of an earlier run.
    Cache,
    /// Heard on the local network.
    Mdns,
    /// It worked in this run.
    Connected,
    /// The configuration.
    Configured,
}

impl Source {
    /// As status prints it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Routing => "routing",
            Self::Dht => "dht",
            Self::PeerExchange => "peer_exchange",
            Self::SignedRecord => "signed_record",
            Self::Identify => "identify",
            Self::Cache => "cache",
            Self::Mdns => "mdns",
            Self::Connected => "connected",
            Self::Configured => "configured",
        }
    }
}

/// What there may be that is better than what there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Better {
    /// Any connection without a relay.
    Direct,
    /// One that is no WebSocket either.
    Plain,
    /// One that does not lead through our proxy, as all of TCP does.
    Unproxied,
}

/// An order to dial.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Dial {
    pub(super) peer: PeerId,
    pub(super) addresses: Vec<Multiaddr>,
    /// Addresses with a name, to be dialled when it has been looked up. As slow as that may be, the others do not wait
    /// for it, so this counts as a second dial.
    pub(super) names: Vec<Multiaddr>,
    /// Dial from a fresh port. One dial in four does, for where something on the way holds on to what the usual port had
    /// before. From the usual one two nodes behind firewalls meet, and from a fresh one they cannot.
    pub(super) fresh_port: bool,
    /// All addresses lead through relays.
    pub(super) by_relay: bool,
}

/// The dialer of one node.
pub(super) struct Dialer {
    peers: BTreeMap<PeerId, Peer>,
    /// Relays that any peer might be reached through: each up to `/p2p-circuit`.
    relays: Vec<Multiaddr>,
    jitter: Jitter,
    /// Names of TCP addresses are dialled as they are: a proxy looks them up.
    passes_names: bool,
}

impl Dialer {
    /// A dialer for these peers, to be dialled from `now` on. `seed` makes its jitter.
    pub(super) fn new(peers: impl IntoIterator<Item = PeerId>, seed: u64, now: Instant) -> Self {
        let peers = peers.into_iter().map(|peer| (peer, Peer::new(now))).collect();
        Self { peers, relays: Vec::new(), jitter: Jitter::new(seed), passes_names: false }
    }

    /// The same, for a node whose proxy looks up the names of TCP addresses, or not.
    pub(super) fn passing_names(self, passes_names: bool) -> Self {
        Self { passes_names, ..self }
    }

    /// Whether TCP leads through a proxy.
    pub(super) fn is_proxied(&self) -> bool {
        self.passes_names
    }

    /// Learns an address. Unknown peers, other peers' ids and known addresses change nothing. A new address of a peer
    /// that is being looked for is tried soon, but for [`PROMPT_SPACING`](peer::PROMPT_SPACING).
    pub(super) fn add_address(&mut self, now: Instant, peer: &PeerId, address: &Multiaddr, source: Source) {
        let (Some(state), Ok(address)) = (self.peers.get_mut(peer), address::without_peer(address, peer)) else {
            return;
        };
        if state.learn(address, source) {
            state.prompt(now);
        }
    }

    /// There is news of the peer itself, so it is alive: if it is being looked for, it is tried soon at what is known of
    /// it, but for [`PROMPT_SPACING`](peer::PROMPT_SPACING).
    pub(super) fn handle_sign_of_life(&mut self, now: Instant, peer: &PeerId) {
        if let Some(state) = self.peers.get_mut(peer) {
            state.prompt(now);
        }
    }

    /// Forgets an address that only this source told; a configured or proven one stays.
    pub(super) fn expire_address(&mut self, peer: &PeerId, address: &Multiaddr, source: Source) {
        let (Some(state), Ok(address)) = (self.peers.get_mut(peer), address::without_peer(address, peer)) else {
            return;
        };
        state.addresses.retain(|known| known.address != address || known.source != source);
    }

    /// An address led to a connection: it is remembered as proven.
    pub(super) fn handle_success(&mut self, now: Instant, peer: &PeerId, address: &Multiaddr) {
        let (Some(state), Ok(address)) = (self.peers.get_mut(peer), address::without_peer(address, peer)) else {
            return;
        };
        state.learn(address.clone(), Source::Connected);
        if let Some(known) = state.addresses.iter_mut().find(|known| known.address == address) {
            known.last_success = Some(now);
            known.answered_by_stranger = false;
        }
    }

    /// At an address of this peer another node answered. A configured address stays, to be tried again alone; any
    /// other is forgotten. Whether that is news.
    pub(super) fn handle_stranger(&mut self, peer: &PeerId, address: &Multiaddr) -> bool {
        let (Some(state), Ok(address)) = (self.peers.get_mut(peer), address::without_peer(address, peer)) else {
            return false;
        };
        let Some(position) = state.addresses.iter().position(|known| known.address == address) else { return false };
        if state.addresses[position].source == Source::Configured {
            !std::mem::replace(&mut state.addresses[position].answered_by_stranger, true)
        } else {
            state.addresses.remove(position);
            true
        }
    }

    /// Whether the peer told us, or we otherwise know, this address.
    pub(super) fn knows(&self, peer: &PeerId, address: &Multiaddr) -> bool {
        self.peers.get(peer).is_some_and(|state| state.addresses.iter().any(|known| known.address == *address))
    }

    /// Whether any address of the peer is known.
    pub(super) fn knows_any(&self, peer: &PeerId) -> bool {
        self.peers.get(peer).is_some_and(|state| !state.addresses.is_empty())
    }

    /// The peer has its first connection.
    pub(super) fn handle_connected(&mut self, now: Instant, peer: &PeerId) {
        if let Some(state) = self.peers.get_mut(peer) {
            state.connected_since.get_or_insert(now);
            state.is_sought = false;
        }
    }

    /// Whether to look for a peer though it is connected: its connections may be as dead as its lanes seem to be, and
    /// take much longer to notice. The next connection ends it.
    pub(super) fn seek(&mut self, now: Instant, peer: &PeerId, is_sought: bool) {
        let Some(state) = self.peers.get_mut(peer) else { return };
        if is_sought && !state.is_sought && state.connected_since.is_some() {
            // Where connections seem to die one after the other, it is more likely somebody who has too much to do.
            let at = state.sought_at.map_or(now, |last| now.max(last + SEEK_SPACING));
            state.direct.begin(at);
            state.circuits.begin(at);
            state.sought_at = Some(at);
        }
        state.is_sought = is_sought;
    }

    /// Whether a peer that is connected is to be dialled at its TCP addresses: a Hyprspace node that only QUIC leads to.
    pub(super) fn seek_tcp(&mut self, now: Instant, peer: &PeerId, is_sought: bool) {
        let Some(state) = self.peers.get_mut(peer) else { return };
        if is_sought && !state.is_tcp_sought {
            state.direct.begin(now);
        }
        state.is_tcp_sought = is_sought;
    }

    /// What better connection a peer that is connected is to be dialled for, if any.
    pub(super) fn seek_better(&mut self, now: Instant, peer: &PeerId, sought: Option<Better>) {
        let Some(state) = self.peers.get_mut(peer) else { return };
        if sought.is_some() && state.better_sought != sought {
            state.direct.begin(now + DIRECT_DELAY);
        }
        state.better_sought = sought;
    }

    /// Relays through which any peer might be reached, each up to `/p2p-circuit`. With a new one, peers that are missing are
    /// tried soon.
    pub(super) fn set_relays(&mut self, now: Instant, relays: Vec<Multiaddr>) {
        let is_news = relays.iter().any(|relay| !self.relays.contains(relay));
        self.relays = relays;
        for state in self.peers.values_mut().filter(|_| is_news) {
            state.prompt_circuits(now);
        }
    }

    /// The peer's last connection is gone.
    pub(super) fn handle_disconnected(&mut self, now: Instant, peer: &PeerId) {
        let Some(state) = self.peers.get_mut(peer) else { return };
        let Some(since) = state.connected_since.take() else { return };
        if now.duration_since(since) >= STABLE_AFTER {
            state.direct.begin(now + self.jitter.around(PAUSE_MIN));
            state.circuits.begin(now);
        } else {
            state.direct.put_off(now, &mut self.jitter);
            state.circuits.put_off(now, &mut self.jitter);
        }
    }

    /// A dial ordered by [`Self::poll_dial`] has ended, well or not; of one with addresses and names, either half.
    pub(super) fn handle_dial_ended(&mut self, peer: &PeerId, by_relay: bool) {
        if let Some(state) = self.peers.get_mut(peer) {
            let schedule = if by_relay { &mut state.circuits } else { &mut state.direct };
            schedule.under_way = schedule.under_way.saturating_sub(1);
        }
    }

    /// The next dial that is due.
    pub(super) fn poll_dial(&mut self, now: Instant) -> Option<Dial> {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let relays = &self.relays;
        let missing = self.peers.iter_mut().find(|(peer, state)| due(state.circuits_due(peer, relays)));
        if let Some((&peer, state)) = missing {
            let addresses = state.choose_circuits(&peer, relays, now);
            state.circuits.handle_dial(now, 1, &mut self.jitter);
            return Some(Dial { peer, addresses, names: Vec::new(), fresh_port: false, by_relay: true });
        }
        let (&peer, state) = self.peers.iter_mut().find(|(_, state)| due(state.direct_due()))?;
        let fresh_port = state.direct.in_vain % FRESH_PORT_EVERY == FRESH_PORT_EVERY - 1;
        let (names, addresses): (Vec<_>, Vec<_>) = {
            let passes = |address: &Multiaddr| self.passes_names && is_tcp(address);
            state.choose(now).into_iter().partition(|address| names::is_name(address) && !passes(address))
        };
        let dials = u8::from(!addresses.is_empty()) + u8::from(!names.is_empty());
        state.direct.handle_dial(now, dials, &mut self.jitter);
        Some(Dial { peer, addresses, names, fresh_port, by_relay: false })
    }

    /// When [`Self::poll_dial`] should be asked again.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let due = |(peer, state): (&PeerId, &Peer)| [state.direct_due(), state.circuits_due(peer, &self.relays)];
        self.peers.iter().flat_map(due).flatten().min()
    }

    /// Everybody who is missing is to be dialled at once.
    pub(super) fn dial_all(&mut self, now: Instant) {
        for state in self.peers.values_mut() {
            state.direct.begin(now);
            state.circuits.begin(now);
        }
    }

    /// The configured peers.
    pub(super) fn peers(&self) -> impl Iterator<Item = PeerId> {
        self.peers.keys().copied()
    }

    /// Whether this is a configured peer.
    pub(super) fn has(&self, peer: &PeerId) -> bool {
        self.peers.contains_key(peer)
    }

    /// A peer's addresses, in no order: each with its source and when it last worked in this run.
    pub(super) fn addresses(&self, peer: &PeerId) -> impl Iterator<Item = (&Multiaddr, Source, Option<Instant>)> {
        let known = self.peers.get(peer).into_iter().flat_map(|state| &state.addresses);
        known.map(|known| (&known.address, known.source, known.last_success))
    }

    /// Forgets all peers: nothing is dialled any more.
    pub(super) fn stop(&mut self) {
        self.peers.clear();
    }

    /// What may be told to others of where a peer is, best first: where it was reached, and what it says of itself. What
    /// others said of it is not, so that no rumour goes round for ever; nor where a stranger answers.
    pub(super) fn tellable(&self, peer: &PeerId) -> Vec<&Multiaddr> {
        let says_so = |source| matches!(source, Source::SignedRecord | Source::Identify | Source::Configured);
        let known = self.peers.get(peer).into_iter().flat_map(|state| &state.addresses);
        let mut tellable: Vec<&Known> = known
            .filter(|known| !known.answered_by_stranger && (known.last_success.is_some() || says_so(known.source)))
            .collect();
        tellable.sort_by_key(|known| Reverse((known.last_success, known.source)));
        tellable.into_iter().map(|known| &known.address).collect()
    }

    /// Every peer's addresses that worked in this run, each with when it last did.
    pub(super) fn proven_addresses(&self) -> impl Iterator<Item = (PeerId, &Multiaddr, Instant)> {
        self.peers.iter().flat_map(|(&peer, state)| {
            let known = state.addresses.iter();
            known.filter_map(move |known| Some((peer, &known.address, known.last_success?)))
        })
    }
}

#[cfg(test)]
mod tests;
