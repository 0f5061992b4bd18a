//! When to dial whom, and where: a state machine without sockets, clock or randomness of its own.
//!
//! A peer without a connection is dialled for ever. The first dial of a lost peer follows within a quarter of a second
//! (it may just have restarted), the pauses then double up to 15 seconds, each jittered so that two nodes, or a
//! thousand, do not stay in step. Pauses count from the start of a dial to the start of the next and two dials may
//! overlap: a dial into a black hole takes seconds to fail, and must not delay the one that finds the peer back.
//! A connection that does not last does not reset the pauses: a peer that lets us in and throws us out again is not
//! hammered.
//!
//! Each dial tries up to [`DIALED_ADDRESSES_MAX`] addresses at once: those that worked before, then those that waited
//! longest, WebSockets behind others. Configured addresses are never forgotten; of the others the least useful one makes room.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use ringlane_shared::limits::{
    CIRCUITS_DIALED_MAX, DIALED_ADDRESSES_MAX, DIALS_PER_PEER_MAX, KNOWN_ADDRESSES_PER_PEER_MAX,
};

use super::connections::TransportName;
use super::{address, names};

/// First pause between two dials, and the longest wait before the first dial after a loss.
const PAUSE_MIN: Duration = Duration::from_millis(250);
/// Longest pause between two dials.
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// Between two dials of one peer that are brought forward by what somebody told. Some of it anybody can tell, and as
/// often as it likes, of addresses that are not the peer's at all.
const PROMPT_SPACING: Duration = Duration::from_secs(3);
/// How long a peer that a relay leads to may take to reach us directly by itself, before we try.
const DIRECT_DELAY: Duration = Duration::from_millis(500);
/// A connection that lived this long was a real one: when it is lost, pauses start from the shortest again. A peer that
/// refuses us does so within a round trip of the handshake.
pub(super) const STABLE_AFTER: Duration = Duration::from_secs(2);

/// One dial in this many goes to an address where a stranger answered before.
const STRANGER_EVERY: u32 = 4;

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

/// An order to dial.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Dial {
    pub(super) peer: PeerId,
    pub(super) addresses: Vec<Multiaddr>,
    /// Addresses with a name, to be dialled when it has been looked up. As slow as that may be, the others do not wait
    /// for it, so this counts as a second dial.
    pub(super) names: Vec<Multiaddr>,
    /// Dial from a fresh port and let the kernel choose the source address. Every second dial does: QUIC otherwise
    /// leaves from *some* listener's socket, on a router with several networks perhaps from a wrong address.
    pub(super) fresh_port: bool,
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

    /// Learns an address. Unknown peers, other peers' ids and known addresses change nothing. A new address of a peer
    /// that is being looked for is tried soon, but for [`PROMPT_SPACING`].
    pub(super) fn add_address(&mut self, now: Instant, peer: &PeerId, address: &Multiaddr, source: Source) {
        let (Some(state), Ok(address)) = (self.peers.get_mut(peer), address::without_peer(address, peer)) else {
            return;
        };
        if state.learn(address, source) {
            state.prompt(now);
        }
    }

    /// There is news of the peer itself, so it is alive: if it is being looked for, it is tried soon at what is known of
    /// it, but for [`PROMPT_SPACING`].
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
            state.dials_in_vain = 0;
            state.next = now;
        }
        state.is_sought = is_sought;
    }

    /// Whether a peer that is connected is to be dialled at its TCP addresses: a Hyprspace node that only QUIC leads to.
    pub(super) fn seek_tcp(&mut self, now: Instant, peer: &PeerId, is_sought: bool) {
        let Some(state) = self.peers.get_mut(peer) else { return };
        if is_sought && !state.is_tcp_sought {
            state.dials_in_vain = 0;
            state.next = now;
        }
        state.is_tcp_sought = is_sought;
    }

    /// Whether a peer that is connected is to be dialled at its own addresses: one that only a relay leads to.
    pub(super) fn seek_direct(&mut self, now: Instant, peer: &PeerId, is_sought: bool) {
        let Some(state) = self.peers.get_mut(peer) else { return };
        if is_sought && !state.is_direct_sought {
            state.dials_in_vain = 0;
            state.next = now + DIRECT_DELAY;
        }
        state.is_direct_sought = is_sought;
    }

    /// Relays through which any peer might be reached, each up to `/p2p-circuit`. With a new one, peers that are missing are
    /// tried soon.
    pub(super) fn set_relays(&mut self, now: Instant, relays: Vec<Multiaddr>) {
        let is_news = relays.iter().any(|relay| !self.relays.contains(relay));
        self.relays = relays;
        for state in self.peers.values_mut().filter(|_| is_news) {
            state.prompt(now);
        }
    }

    /// The peer's last connection is gone.
    pub(super) fn handle_disconnected(&mut self, now: Instant, peer: &PeerId) {
        let Some(state) = self.peers.get_mut(peer) else { return };
        let Some(since) = state.connected_since.take() else { return };
        if now.duration_since(since) >= STABLE_AFTER {
            state.dials_in_vain = 0;
        }
        let pause = self.jitter.around(pause(state.dials_in_vain));
        state.next = now + pause;
    }

    /// A dial ordered by [`Self::poll_dial`] has ended, well or not; of one with addresses and names, either half.
    pub(super) fn handle_dial_ended(&mut self, peer: &PeerId) {
        if let Some(state) = self.peers.get_mut(peer) {
            state.dials = state.dials.saturating_sub(1);
        }
    }

    /// The next dial that is due.
    pub(super) fn poll_dial(&mut self, now: Instant) -> Option<Dial> {
        let relays = &self.relays;
        let due = |peer: &PeerId, state: &Peer| state.due(has_other(relays, peer)).is_some_and(|due| due <= now);
        let (&peer, state) = self.peers.iter_mut().find(|(peer, state)| due(peer, state))?;
        let fresh_port = state.dials_in_vain % 2 == 1;
        let chosen = match state.choose_circuits(&peer, relays, now) {
            circuits if circuits.is_empty() => state.choose(now),
            circuits => circuits,
        };
        let (names, addresses): (Vec<_>, Vec<_>) = {
            let passes = |address: &Multiaddr| self.passes_names && is_tcp(address);
            chosen.into_iter().partition(|address| names::is_name(address) && !passes(address))
        };
        state.next = now + self.jitter.around(pause(state.dials_in_vain));
        state.dials_in_vain = state.dials_in_vain.saturating_add(1);
        state.dials += u8::from(!addresses.is_empty()) + u8::from(!names.is_empty());
        Some(Dial { peer, addresses, names, fresh_port })
    }

    /// When [`Self::poll_dial`] should be asked again.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.peers.iter().filter_map(|(peer, state)| state.due(has_other(&self.relays, peer))).min()
    }

    /// Everybody who is missing is to be dialled at once.
    pub(super) fn dial_all(&mut self, now: Instant) {
        for state in self.peers.values_mut() {
            (state.next, state.dials_in_vain) = (now, 0);
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

struct Peer {
    addresses: Vec<Known>,
    connected_since: Option<Instant>,
    /// A further connection is wanted.
    is_sought: bool,
    /// A TCP connection is wanted.
    is_tcp_sought: bool,
    /// A connection without a relay is wanted.
    is_direct_sought: bool,
    /// Dials under way.
    dials: u8,
    /// Dials since the last connection that lasted.
    dials_in_vain: u32,
    next: Instant,
    /// The last dial that was brought forward.
    prompted: Option<Instant>,
}

struct Known {
    address: Multiaddr,
    source: Source,
    last_dialed: Option<Instant>,
    last_success: Option<Instant>,
    /// Another node answered there. Dialled only alone: the first answer decides a dial, and a stranger's would hide
    /// the peer at its other addresses.
    answered_by_stranger: bool,
}

impl Peer {
    fn new(now: Instant) -> Self {
        Self {
            addresses: Vec::new(),
            connected_since: None,
            is_sought: false,
            is_tcp_sought: false,
            is_direct_sought: false,
            dials: 0,
            dials_in_vain: 0,
            next: now,
            prompted: None,
        }
    }

    fn is_looked_for(&self) -> bool {
        self.connected_since.is_none() || self.is_sought || self.is_tcp_sought || self.is_direct_sought
    }

    /// Whether an address is of any use now.
    fn wants(&self, address: &Multiaddr) -> bool {
        if self.connected_since.is_none() {
            return true;
        }
        !address::is_circuit(address) && (self.is_sought || self.is_direct_sought || is_tcp(address))
    }

    /// `has_relay`: whether there is a relay that it could be behind.
    fn due(&self, has_relay: bool) -> Option<Instant> {
        let may_be_behind = has_relay && self.connected_since.is_none();
        let has_address = may_be_behind || self.addresses.iter().any(|known| self.wants(&known.address));
        let wanted = self.is_looked_for() && self.dials < DIALS_PER_PEER_MAX && has_address;
        wanted.then_some(self.next)
    }

    /// Brings the next dial forward, if the peer is looked for and the last one that was is long enough ago.
    fn prompt(&mut self, now: Instant) {
        let soon = now + PAUSE_MIN;
        let at = self.prompted.map_or(soon, |last| soon.max(last + PROMPT_SPACING));
        if self.is_looked_for() && at < self.next {
            (self.next, self.prompted) = (at, Some(at));
        }
    }

    /// Stores an address; whether it was unknown.
    fn learn(&mut self, address: Multiaddr, source: Source) -> bool {
        if let Some(known) = self.addresses.iter_mut().find(|known| known.address == address) {
            known.source = known.source.max(source);
            return false;
        }
        if self.addresses.len() >= KNOWN_ADDRESSES_PER_PEER_MAX && !self.forget_one(source) {
            return false;
        }
        self.addresses.push(Known {
            address,
            source,
            last_dialed: None,
            last_success: None,
            answered_by_stranger: false,
        });
        true
    }

    /// Makes room for an address from `source` by forgetting the one that is worth least: the least trustworthy, of
    /// those the one that worked longest ago or never. Whether there was one not worth more than the new one.
    fn forget_one(&mut self, source: Source) -> bool {
        let worth = |known: &Known| (known.source, known.last_success);
        let least = self
            .addresses
            .iter()
            .enumerate()
            .filter(|(_, known)| known.source < Source::Configured && known.source <= source)
            .min_by_key(|(_, known)| worth(known));
        let Some((position, _)) = least else { return false };
        self.addresses.remove(position);
        true
    }

    /// The circuits of the next dial, if it is their turn: of three dials of a peer that is missing one goes to them, and the
    /// first does not, since a direct connection is worth waiting a moment for.
    fn choose_circuits(&mut self, peer: &PeerId, relays: &[Multiaddr], now: Instant) -> Vec<Multiaddr> {
        let is_turn =
            self.dials_in_vain % 3 == 1 || self.addresses.iter().all(|known| address::is_circuit(&known.address));
        if self.connected_since.is_some() || !is_turn {
            return Vec::new();
        }
        let mut own: Vec<_> = self.addresses.iter_mut().filter(|known| address::is_circuit(&known.address)).collect();
        own.sort_by_key(|known| known.last_dialed);
        let mut circuits: Vec<Multiaddr> = Vec::new();
        for known in own.into_iter().take(CIRCUITS_DIALED_MAX / 2) {
            known.last_dialed = Some(now);
            circuits.push(known.address.clone());
        }
        // Of more relays than there is room for, all have their turn.
        let others: Vec<_> =
            relays.iter().filter(|relay| !leads_by(relay, peer) && !circuits.contains(relay)).collect();
        let first = self.dials_in_vain as usize / 3 * CIRCUITS_DIALED_MAX;
        let room = CIRCUITS_DIALED_MAX - circuits.len();
        let turn = (0..others.len().min(room)).filter_map(|at| others.get((first + at) % others.len()));
        circuits.extend(turn.map(|relay| (*relay).clone()));
        circuits
    }

    /// The addresses of the next dial, best first: the last that worked, then those that waited longest.
    fn choose(&mut self, now: Instant) -> Vec<Multiaddr> {
        let wanted: Vec<bool> = self.addresses.iter().map(|known| self.wants(&known.address)).collect();
        let known = self.addresses.iter_mut().zip(wanted);
        let candidates = known.filter(|(known, wanted)| *wanted && !address::is_circuit(&known.address));
        let candidates = candidates.map(|(known, _)| known);
        let (mut strangers, mut usable): (Vec<_>, Vec<_>) = candidates.partition(|known| known.answered_by_stranger);
        let alone = usable.is_empty() || self.dials_in_vain % STRANGER_EVERY == STRANGER_EVERY - 1;
        let mut chosen: Vec<&mut Known> = Vec::new();
        if alone && !strangers.is_empty() {
            strangers.sort_by_key(|known| known.last_dialed);
            chosen.extend(strangers.into_iter().take(1));
        } else {
            usable.sort_by_key(|known| Reverse(known.last_success));
            let proven = usable.iter().take(DIALED_ADDRESSES_MAX / 2).filter(|known| known.last_success.is_some());
            let mut waiting = usable.split_off(proven.count());
            waiting.sort_by_key(|known| (known.last_dialed, is_web(&known.address), Reverse(known.source)));
            chosen.extend(usable.into_iter().chain(waiting).take(DIALED_ADDRESSES_MAX));
        }
        let dialed = chosen.into_iter().map(|known| {
            known.last_dialed = Some(now);
            known.address.clone()
        });
        dialed.collect()
    }
}

/// Whether any of these relays is not the peer itself.
fn has_other(relays: &[Multiaddr], peer: &PeerId) -> bool {
    relays.iter().any(|relay| !leads_by(relay, peer))
}

fn leads_by(circuit: &Multiaddr, relay: &PeerId) -> bool {
    address::circuit(circuit).is_some_and(|circuit| circuit.relay == *relay)
}

fn is_web(address: &Multiaddr) -> bool {
    address::transport_of(address).is_some_and(TransportName::is_web)
}

fn is_tcp(address: &Multiaddr) -> bool {
    address.iter().any(|part| matches!(part, Protocol::Tcp(_)))
}

fn pause(dials_in_vain: u32) -> Duration {
    PAUSE_MIN.saturating_mul(1 << dials_in_vain.min(16)).min(PAUSE_MAX)
}

/// SplitMix64: enough to spread dials in time, and the same on every run with the same seed. Not for secrets.
pub(super) struct Jitter(u64);

impl Jitter {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number, any of 64 bits.
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A duration between three quarters of `pause` and all of it.
    pub(super) fn around(&mut self, pause: Duration) -> Duration {
        pause.mul_f64(0.75 + 0.25 * (self.next() as f64 / u64::MAX as f64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The dials of a peer until there are `count`, with none of them ended well.
    fn dials_in_vain(dialer: &mut Dialer, peer: &PeerId, mut now: Instant, count: usize) -> Vec<Vec<Multiaddr>> {
        let mut dials = Vec::new();
        while dials.len() < count {
            now = dialer.poll_timeout().unwrap().max(now);
            let dial = dialer.poll_dial(now).unwrap();
            dialer.handle_dial_ended(peer);
            dials.push(dial.addresses);
        }
        dials
    }

    #[test]
    fn circuits_have_every_third_dial_of_a_missing_peer_the_first_has_none_and_of_a_relayed_peer_none_at_all() {
        let now = Instant::now();
        let [peer, relay] = [PeerId::random(), PeerId::random()];
        let circuit = |relay: PeerId| address(9).with(Protocol::P2p(relay)).with(Protocol::P2pCircuit);
        let mut dialer = Dialer::new([peer], 1, now);
        dialer.set_relays(now, vec![circuit(peer)]);
        assert_eq!(dialer.poll_timeout(), None, "a peer is no relay to itself");
        dialer.set_relays(now, vec![circuit(peer), circuit(relay)]);
        assert_eq!(
            dials_in_vain(&mut dialer, &peer, now, 2),
            [[circuit(relay)], [circuit(relay)]],
            "nothing else is known"
        );

        let mut dialer = Dialer::new([peer], 1, now);
        let own = circuit(PeerId::random());
        dialer.add_address(now, &peer, &address(1), Source::Configured);
        dialer.add_address(now, &peer, &own, Source::SignedRecord);
        dialer.set_relays(now, vec![circuit(relay)]);
        let dials = dials_in_vain(&mut dialer, &peer, now, 5);
        let (direct, circuits) = (vec![address(1)], vec![own, circuit(relay)]);
        assert_eq!(dials, [direct.clone(), circuits.clone(), direct.clone(), direct.clone(), circuits]);

        dialer.handle_connected(now, &peer);
        assert_eq!(dialer.poll_timeout(), None);
        dialer.seek_direct(now, &peer, true);
        assert_eq!(dials_in_vain(&mut dialer, &peer, now, 4), [(); 4].map(|()| direct.clone()));
        dialer.seek_direct(now, &peer, false);
        assert_eq!(dialer.poll_timeout(), None);
    }

    #[test]
    fn of_many_relays_a_dial_takes_a_few_and_all_have_their_turn() {
        let now = Instant::now();
        let peer = PeerId::random();
        let relays: Vec<Multiaddr> = (0..2 * CIRCUITS_DIALED_MAX as u16 + 1)
            .map(|port| address(port + 1).with(Protocol::P2p(PeerId::random())).with(Protocol::P2pCircuit))
            .collect();
        let mut dialer = Dialer::new([peer], 1, now);
        dialer.set_relays(now, relays.clone());
        let dials = dials_in_vain(&mut dialer, &peer, now, 40);
        assert!(dials.iter().all(|addresses| addresses.len() == CIRCUITS_DIALED_MAX));
        assert!(relays.iter().all(|relay| dials.iter().flatten().any(|dialled| dialled == relay)));
    }

    fn address(port: u16) -> Multiaddr {
        format!("/ip4/10.0.0.1/tcp/{port}").parse().unwrap()
    }

    fn dialer(now: Instant) -> (Dialer, PeerId) {
        let peer = PeerId::random();
        let mut dialer = Dialer::new([peer], 1, now);
        dialer.add_address(now, &peer, &address(1), Source::Configured);
        (dialer, peer)
    }

    /// Runs until the next dial, which fails at once; its time.
    fn next_dial(dialer: &mut Dialer) -> (Instant, Dial) {
        let at = dialer.poll_timeout().unwrap();
        let dial = dialer.poll_dial(at).unwrap();
        dialer.handle_dial_ended(&dial.peer);
        (at, dial)
    }

    #[test]
    fn a_connected_peer_is_dialled_while_it_is_sought_and_until_it_answers() {
        let start = Instant::now();
        let (mut dialer, peer) = dialer(start);
        next_dial(&mut dialer);
        dialer.handle_connected(start, &peer);
        assert_eq!(dialer.poll_timeout(), None);
        let later = start + STABLE_AFTER;
        dialer.seek(later, &peer, true);
        assert_eq!(next_dial(&mut dialer).0, later);
        dialer.seek(later, &peer, true);
        assert!(dialer.poll_timeout().is_some_and(|at| at > later), "pauses are kept");
        dialer.seek(later, &peer, false);
        assert_eq!(dialer.poll_timeout(), None);
        dialer.seek(later, &peer, true);
        dialer.handle_connected(later, &peer);
        assert_eq!(dialer.poll_timeout(), None);
    }

    #[test]
    fn names_are_looked_up_but_for_those_of_tcp_that_a_proxy_looks_up() {
        let now = Instant::now();
        let names = ["/dns4/b.example/tcp/443/wss", "/dns4/b.example/udp/1/quic-v1"].map(|name| name.parse().unwrap());
        for (passes_names, passed, looked_up) in [(false, 0, 2), (true, 1, 1)] {
            let (dialer, peer) = dialer(now);
            let mut dialer = dialer.passing_names(passes_names);
            names.iter().for_each(|name| dialer.add_address(now, &peer, name, Source::Configured));
            let dial = next_dial(&mut dialer).1;
            assert_eq!((dial.addresses.len(), dial.names.len()), (1 + passed, looked_up));
            assert_eq!(dial.addresses.contains(&names[0]), passes_names);
        }
    }

    #[test]
    fn websockets_wait_for_their_turn_behind_others() {
        let now = Instant::now();
        let (mut dialer, peer) = dialer(now);
        let web: Multiaddr = "/ip4/10.0.0.1/tcp/443/wss".parse().unwrap();
        dialer.add_address(now, &peer, &web, Source::Configured);
        for port in 2..=DIALED_ADDRESSES_MAX as u16 {
            dialer.add_address(now, &peer, &address(port), Source::Dht);
        }
        assert!(!next_dial(&mut dialer).1.addresses.contains(&web));
        assert!(next_dial(&mut dialer).1.addresses.contains(&web));
    }

    #[test]
    fn a_connected_peer_without_tcp_is_dialled_at_its_tcp_addresses_only() {
        let start = Instant::now();
        let (mut dialer, peer) = dialer(start);
        dialer.add_address(start, &peer, &"/ip4/10.0.0.1/udp/1/quic-v1".parse().unwrap(), Source::Configured);
        assert_eq!(next_dial(&mut dialer).1.addresses.len(), 2);
        dialer.handle_connected(start, &peer);
        assert_eq!(dialer.poll_timeout(), None);
        dialer.seek_tcp(start, &peer, true);
        assert_eq!(dialer.poll_timeout(), Some(start));
        for _ in 0..4 {
            assert_eq!(next_dial(&mut dialer).1.addresses, [address(1)]);
        }
        dialer.seek_tcp(start, &peer, false);
        assert_eq!(dialer.poll_timeout(), None);
    }

    #[test]
    fn an_unreachable_peer_is_dialled_for_ever_with_growing_jittered_pauses() {
        let start = Instant::now();
        let (mut dialer, _) = dialer(start);
        let times: Vec<_> = (0..100).map(|_| next_dial(&mut dialer).0).collect();
        assert_eq!(times[0], start);
        for (dials, pair) in times.windows(2).enumerate() {
            let (waited, nominal) = (pair[1] - pair[0], pause(dials as u32));
            assert!(waited <= nominal && waited >= nominal.mul_f64(0.75), "{waited:?} of {nominal:?}");
        }
        assert_eq!(pause(0), PAUSE_MIN);
        assert_eq!(pause(99), PAUSE_MAX);
    }

    #[test]
    fn two_seeds_do_not_stay_in_step() {
        let start = Instant::now();
        let peer = PeerId::random();
        let [a, b] = [1, 2].map(|seed| {
            let mut dialer = Dialer::new([peer], seed, start);
            dialer.add_address(start, &peer, &address(1), Source::Configured);
            (0..20).map(|_| next_dial(&mut dialer).0).collect::<Vec<_>>()
        });
        assert!(a.iter().zip(&b).skip(1).all(|(a, b)| a != b));
    }

    #[test]
    fn a_peer_lost_after_a_real_connection_is_dialled_within_a_quarter_of_a_second() {
        let start = Instant::now();
        let (mut dialer, peer) = dialer(start);
        let connected = (0..20).map(|_| next_dial(&mut dialer).0).last().unwrap();
        dialer.handle_connected(connected, &peer);
        assert_eq!(dialer.poll_timeout(), None);
        let lost = connected + STABLE_AFTER;
        dialer.handle_disconnected(lost, &peer);
        assert!(next_dial(&mut dialer).0 <= lost + PAUSE_MIN);
    }

    #[test]
    fn a_peer_that_throws_us_out_at_once_is_not_hammered() {
        let mut now = Instant::now();
        let (mut dialer, peer) = dialer(now);
        let start = now;
        for _ in 0..20 {
            now = next_dial(&mut dialer).0;
            dialer.handle_connected(now, &peer);
            dialer.handle_disconnected(now, &peer);
        }
        assert!(now - start > PAUSE_MAX * 8, "{:?}", now - start);
    }

    #[test]
    fn dials_overlap_up_to_the_bound_and_no_further() {
        let start = Instant::now();
        let (mut dialer, peer) = dialer(start);
        for _ in 0..DIALS_PER_PEER_MAX {
            let at = dialer.poll_timeout().unwrap();
            assert!(dialer.poll_dial(at).is_some());
        }
        assert_eq!(dialer.poll_timeout(), None);
        assert_eq!(dialer.poll_dial(start + PAUSE_MAX * 2), None);
        dialer.handle_dial_ended(&peer);
        assert!(dialer.poll_dial(start + PAUSE_MAX * 2).is_some());
    }

    #[test]
    fn told_to_dial_all_it_forgets_its_pauses() {
        let start = Instant::now();
        let (mut dialer, _) = dialer(start);
        let now = (0..20).map(|_| next_dial(&mut dialer).0).last().unwrap();
        assert!(dialer.poll_timeout().unwrap() > now + PAUSE_MAX / 2);
        dialer.dial_all(now);
        assert_eq!(next_dial(&mut dialer).0, now);
        assert!(dialer.poll_timeout().unwrap() <= now + PAUSE_MIN);
    }

    #[test]
    fn a_new_address_of_a_missing_peer_is_tried_soon_and_a_known_one_changes_nothing() {
        let start = Instant::now();
        let (mut dialer, peer) = dialer(start);
        let now = (0..20).map(|_| next_dial(&mut dialer).0).last().unwrap();
        let planned = dialer.poll_timeout();
        dialer.add_address(now, &peer, &address(1), Source::Mdns);
        assert_eq!(dialer.poll_timeout(), planned);
        dialer.add_address(now, &peer, &address(2), Source::Mdns);
        assert_eq!(dialer.poll_timeout(), Some(now + PAUSE_MIN));
        assert_eq!(next_dial(&mut dialer).1.addresses[0], address(2), "never tried comes first");
    }

    #[test]
    fn a_sign_of_life_brings_a_dial_forward_and_a_flood_of_them_or_of_lies_only_a_few() {
        let start = Instant::now();
        let (mut dialer, peer) = dialer(start);
        let now = (0..20).map(|_| next_dial(&mut dialer).0).last().unwrap();
        dialer.handle_sign_of_life(now, &peer);
        assert_eq!(next_dial(&mut dialer).0, now + PAUSE_MIN);
        let (mut dials, span) = (0, Duration::from_secs(60));
        for ms in 0..span.as_millis() as u64 {
            let now = now + PAUSE_MIN + Duration::from_millis(ms);
            dialer.handle_sign_of_life(now, &peer);
            dialer.add_address(now, &peer, &address(2 + ms as u16), Source::Mdns);
            while dialer.poll_dial(now).is_some() {
                dialer.handle_dial_ended(&peer);
                dials += 1;
            }
        }
        let most = span.as_secs() / PROMPT_SPACING.as_secs();
        assert!((most - 1..=most + 1).contains(&dials), "{dials}");
        dialer.handle_connected(now, &peer);
        dialer.handle_sign_of_life(now, &peer);
        assert_eq!(dialer.poll_timeout(), None, "who is connected is not dialled");
    }

    #[test]
    fn addresses_are_bounded_and_neither_configured_nor_proven_ones_make_room_for_hearsay() {
        let now = Instant::now();
        let (mut dialer, peer) = dialer(now);
        dialer.handle_success(now, &peer, &address(2));
        for port in 100..100 + 3 * KNOWN_ADDRESSES_PER_PEER_MAX as u16 {
            dialer.add_address(now, &peer, &address(port), Source::Identify);
        }
        assert_eq!(dialer.peers[&peer].addresses.len(), KNOWN_ADDRESSES_PER_PEER_MAX);
        assert!(dialer.knows(&peer, &address(1)) && dialer.knows(&peer, &address(2)));
        let proven: Vec<_> = dialer.proven_addresses().collect();
        assert_eq!(proven, [(peer, &address(2), now)]);
    }

    #[test]
    fn every_address_gets_its_turn_and_proven_ones_are_in_every_dial() {
        let now = Instant::now();
        let (mut dialer, peer) = dialer(now);
        dialer.handle_success(now, &peer, &address(7));
        for port in 100..140 {
            dialer.add_address(now, &peer, &address(port), Source::Identify);
        }
        let mut tried = std::collections::BTreeSet::new();
        for _ in 0..3 {
            let (_, dial) = next_dial(&mut dialer);
            assert_eq!(dial.addresses.len(), DIALED_ADDRESSES_MAX);
            assert_eq!(dial.addresses[0], address(7));
            tried.extend(dial.addresses);
        }
        assert_eq!(tried.len(), 42);
    }

    #[test]
    fn an_address_where_a_stranger_answers_does_not_hide_the_others() {
        let now = Instant::now();
        let (mut dialer, peer) = dialer(now);
        for (port, source) in [(2, Source::Configured), (3, Source::Cache)] {
            dialer.add_address(now, &peer, &address(port), source);
        }
        assert!(dialer.handle_stranger(&peer, &address(1)) && dialer.handle_stranger(&peer, &address(3)));
        assert!(!dialer.handle_stranger(&peer, &address(1)), "told once");
        let dials: Vec<_> = (0..5).map(|_| next_dial(&mut dialer).1.addresses).collect();
        let (other, wrong) = (vec![address(2)], vec![address(1)]);
        assert_eq!(dials, [other.clone(), other.clone(), other.clone(), wrong, other]);
        dialer.handle_success(now, &peer, &address(1));
        assert_eq!(next_dial(&mut dialer).1.addresses, [address(1), address(2)]);
    }

    #[test]
    fn what_only_mdns_told_is_forgotten_when_it_expires() {
        let now = Instant::now();
        let (mut dialer, peer) = dialer(now);
        for port in [1, 2] {
            dialer.add_address(now, &peer, &address(port), Source::Mdns);
            dialer.expire_address(&peer, &address(port), Source::Mdns);
        }
        assert!(dialer.knows(&peer, &address(1)));
        assert!(!dialer.knows(&peer, &address(2)));
    }

    #[test]
    fn what_worked_is_told_first_and_what_others_said_never() {
        let now = Instant::now();
        let (mut dialer, peer) = dialer(now);
        for (port, source) in [
            (2, Source::Identify),
            (3, Source::PeerExchange),
            (4, Source::Mdns),
            (5, Source::PeerExchange),
            (6, Source::Cache),
            (7, Source::SignedRecord),
        ] {
            dialer.add_address(now, &peer, &address(port), source);
        }
        dialer.handle_success(now, &peer, &address(5));
        dialer.handle_stranger(&peer, &address(7));
        let told: Vec<_> = dialer.tellable(&peer).into_iter().cloned().collect();
        assert_eq!(told, [address(5), address(1), address(2)]);
    }

    #[test]
    fn strangers_and_other_peers_addresses_are_not_learnt() {
        let now = Instant::now();
        let (mut dialer, peer) = dialer(now);
        dialer.add_address(now, &PeerId::random(), &address(9), Source::Mdns);
        let other = address(9).with_p2p(PeerId::random()).unwrap();
        dialer.add_address(now, &peer, &other, Source::Mdns);
        assert_eq!(next_dial(&mut dialer).1.addresses, [address(1)]);
    }

    #[test]
    fn every_second_dial_leaves_from_a_fresh_port() {
        let (mut dialer, _) = dialer(Instant::now());
        let fresh: Vec<_> = (0..4).map(|_| next_dial(&mut dialer).1.fresh_port).collect();
        assert_eq!(fresh, [false, true, false, true]);
    }
}
