//! Who is connected how, and which connections are too many: pure.
//!
//! Two nodes that dial each other at once end up with two connections or more. All of them work, so nothing is urgent;
//! but each costs keep-alives and memory, so after [`SURPLUS_GRACE`] one is kept and all that are older or of a worse
//! kind (relayed, or a WebSocket) are closed, and *only by the node with the lower peer id*: whatever either side takes
//! for the newest, one side decides and no connection is closed from both ends with none left. Kept is the newest of the
//! best kind that is confirmed and answers: a peer that restarted comes with a new connection while its old ones have yet
//! to time out. The grace lets exchanges on the others end, and then they are *retired*: nothing new is begun on them, their
//! packet streams end ([`crate::packets`]), and what is under way on them arrives. They are closed when that is over, or
//! after [`RETIRING_LIMIT`]. *Confirmed* means that the other side has it too: a dialler's
//! handshake is complete before the peer's, and an overloaded peer may yet give up on it.
//!
//! With a Hyprspace node, which closes none, it is always we who decide, and the newest TCP connection stays beside the
//! newest QUIC one: packets to it may travel by TCP only, and it may send by either.
//!
//! Either side closes the oldest at once when there are more than [`KEPT_CONNECTIONS_PER_PEER_MAX`], so that dead
//! connections never keep a peer's new one out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use libp2p::core::ConnectedPoint;
use libp2p::swarm::ConnectionId;
use libp2p::{Multiaddr, PeerId, StreamProtocol};
use ringlane_shared::limits::{KEPT_CONNECTIONS_PER_PEER_MAX, RETIRING_CONNECTIONS_PER_PEER_MAX, RETIRING_SECONDS_MAX};
use ringlane_shared::wire::packets::{HYPRSPACE_V0, HYPRSPACE_V1, RINGLANE_PACKETS};

use super::address;
use super::health::{Health, HealthNews};

/// How long a newer connection must have stood before the older ones are closed.
const SURPLUS_GRACE: Duration = Duration::from_secs(2);

/// How long a connection that is to be closed may take to end what is under way on it.
const RETIRING_LIMIT: Duration = Duration::from_secs(RETIRING_SECONDS_MAX);

/// The same of one that the peer is to close: it is the peer's to do until then.
const PEERS_RETIRING_LIMIT: Duration = Duration::from_secs(2 * RETIRING_SECONDS_MAX);

/// How long a TCP connection to a Hyprspace node is waited for before packets take QUIC.
const TCP_PATIENCE: Duration = Duration::from_secs(3);

/// A connection of which so many pings in a row came to nothing is closed.
const PINGS_FAILED_MAX: u8 = 3;

/// What carries a libp2p connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TransportName {
    /// QUIC version 1.
    Quic,
    /// TCP with Noise or TLS, and yamux.
    Tcp,
    /// The same in a WebSocket.
    Ws,
    /// The same in a WebSocket in TLS.
    Wss,
}

impl TransportName {
    /// As status prints it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Tcp => "tcp",
            Self::Ws => "ws",
            Self::Wss => "wss",
        }
    }

    /// Whether TCP is below it, and not UDP.
    pub fn is_tcp(self) -> bool {
        self != Self::Quic
    }

    /// Whether it is a WebSocket, for where nothing else passes.
    pub fn is_web(self) -> bool {
        matches!(self, Self::Ws | Self::Wss)
    }
}

/// What a peer's software is, as far as packets are concerned.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PeerKind {
    /// A Ringlane node.
    Ringlane,
    /// A Hyprspace node.
    Hyprspace,
}

impl PeerKind {
    /// What a peer is that speaks these protocols; `None` for one that carries no packets.
    pub(super) fn of(protocols: &[StreamProtocol]) -> Option<Self> {
        let speaks = |name: &str| protocols.iter().any(|protocol| protocol.as_ref() == name);
        if speaks(RINGLANE_PACKETS) {
            return Some(Self::Ringlane);
        }
        (speaks(HYPRSPACE_V1) || speaks(HYPRSPACE_V0)).then_some(Self::Hyprspace)
    }
}

/// What a connection is worth to packets; the better, the greater.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Quality {
    /// QUIC to a Hyprspace node, which crashes of packets in quick succession.
    Paced,
    /// By way of a relay.
    Relayed,
    /// Between the two nodes.
    Direct,
}

/// A connection that packets may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Way {
    /// Which one.
    pub connection: ConnectionId,
    /// What it is worth.
    pub quality: Quality,
}

/// Who dialled.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Direction {
    /// The peer.
    Inbound,
    /// We.
    Outbound,
}

/// Something that cannot change connections uses this one: it is not closed as one too many while this lives, unless there
/// are more such than a peer may have.
#[derive(Debug)]
pub struct ConnectionHold(Arc<AtomicUsize>);

impl Drop for ConnectionHold {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One established libp2p connection.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// Its name in this process; never reused.
    pub id: ConnectionId,
    /// Who is at the other end.
    pub peer: PeerId,
    /// The peer's address, without `/p2p/`; of a relayed connection, the relay's.
    pub remote: Multiaddr,
    /// Whether a relay passes it on.
    pub relayed: bool,
    /// Which relay that is, if it is known.
    pub relay: Option<PeerId>,
    /// Who dialled.
    pub direction: Direction,
    /// Since when.
    pub established: Instant,
    /// The last round-trip time measured, if any.
    pub rtt: Option<Duration>,
    /// Where the peer sees us on it, as it says.
    pub observed: Option<Multiaddr>,
    /// What carries it; `None` if its address does not tell.
    pub transport: Option<TransportName>,
    /// What the peer has said on it that it is.
    pub(super) kind: Option<PeerKind>,
    /// Whether the peer has it too.
    confirmed: bool,
    /// Nothing new is begun on it: it is retired, or being closed.
    closing: bool,
    /// When it is closed at the latest; only while it is retired.
    close_by: Option<Instant>,
    /// It is closed then even if it is held: there are too many.
    is_excess: bool,
    /// Whether it leads through our proxy.
    pub(super) proxied: bool,
    /// Whether it carries anything at the moment.
    pub(super) health: Health,
    /// In a row.
    pings_failed: u8,
    holds: Arc<AtomicUsize>,
}

impl ConnectionInfo {
    /// The peer has answered a ping.
    pub(super) fn handle_pong(&mut self, rtt: Duration) {
        self.rtt = Some(rtt);
        self.pings_failed = 0;
        self.confirm();
    }

    pub(super) fn hold(&self) -> ConnectionHold {
        self.holds.fetch_add(1, Ordering::Relaxed);
        ConnectionHold(Arc::clone(&self.holds))
    }

    fn retire(&mut self, close_by: Instant) {
        self.closing = true;
        self.close_by = Some(close_by);
    }

    fn retire_as_excess(&mut self, now: Instant) {
        self.retire(now);
        self.is_excess = true;
    }

    /// When it is to be closed, whatever is under way on packet streams. Who has begun something on it meanwhile keeps it.
    fn overdue_at(&self) -> Option<Instant> {
        self.close_by.filter(|_| self.is_excess || !self.is_held())
    }

    fn is_held(&self) -> bool {
        self.holds.load(Ordering::Relaxed) > 0
    }

    pub(super) fn new(id: ConnectionId, peer: PeerId, endpoint: &ConnectedPoint, established: Instant) -> Self {
        let remote = match endpoint {
            // The remote address of an inbound circuit is only the peer's id; the relay is in the local one.
            ConnectedPoint::Listener { local_addr, .. } if endpoint.is_relayed() => local_addr,
            _ => endpoint.get_remote_address(),
        };
        Self {
            id,
            peer,
            remote: address::without_peer(remote, &peer).unwrap_or_else(|_| remote.clone()),
            relayed: endpoint.is_relayed(),
            relay: address::circuit(remote).map(|circuit| circuit.relay),
            direction: if endpoint.is_dialer() { Direction::Outbound } else { Direction::Inbound },
            established,
            rtt: None,
            observed: None,
            transport: address::transport_of(remote),
            kind: None,
            confirmed: endpoint.is_listener(),
            closing: false,
            close_by: None,
            is_excess: false,
            proxied: false,
            health: Health::default(),
            pings_failed: 0,
            holds: Arc::default(),
        }
    }

    /// What it is worth to packets in Hyprspace's frames, or in ours.
    pub(super) fn quality(&self, are_hyprspace: bool) -> Quality {
        match self.transport {
            _ if self.relayed => Quality::Relayed,
            Some(TransportName::Quic) | None if are_hyprspace => Quality::Paced,
            _ => Quality::Direct,
        }
    }

    fn way(&self, kind: PeerKind) -> Way {
        Way { connection: self.id, quality: self.quality(kind == PeerKind::Hyprspace) }
    }

    /// The lower, the rather it is used: by what it is, not by how new.
    fn rank(&self) -> (bool, bool, bool, bool) {
        (self.health.is_suspect(), self.relayed, self.is_roundabout(), !self.health.is_trusted())
    }

    /// The same, whatever its health.
    fn kind_rank(&self) -> (bool, bool) {
        (self.relayed, self.is_roundabout())
    }

    /// Whether it takes a way for where nothing better passes: a WebSocket, as far as its address tells, or a proxy.
    pub(super) fn is_roundabout(&self) -> bool {
        self.proxied || self.transport.is_some_and(TransportName::is_web)
    }

    /// The peer has spoken on it.
    pub(super) fn confirm(&mut self) {
        self.confirmed = true;
    }
}

/// All established connections of a node.
pub(super) struct Connections {
    local: PeerId,
    /// Per peer, oldest first; no entry is empty.
    by_peer: BTreeMap<PeerId, Vec<ConnectionInfo>>,
}

impl Connections {
    pub(super) fn new(local: PeerId) -> Self {
        Self { local, by_peer: BTreeMap::new() }
    }

    pub(super) fn insert(&mut self, connection: ConnectionInfo) {
        self.by_peer.entry(connection.peer).or_default().push(connection);
    }

    pub(super) fn remove(&mut self, peer: &PeerId, id: ConnectionId) -> Option<ConnectionInfo> {
        let connections = self.by_peer.get_mut(peer)?;
        let position = connections.iter().position(|connection| connection.id == id)?;
        let removed = connections.remove(position);
        if connections.is_empty() {
            self.by_peer.remove(peer);
        }
        Some(removed)
    }

    pub(super) fn get_mut(&mut self, peer: &PeerId, id: ConnectionId) -> Option<&mut ConnectionInfo> {
        self.by_peer.get_mut(peer)?.iter_mut().find(|connection| connection.id == id)
    }

    /// A ping has failed without having waited in vain. Whether the connection may have that once more.
    pub(super) fn forgives(&mut self, peer: &PeerId, id: ConnectionId) -> bool {
        self.get_mut(peer, id).is_some_and(|connection| {
            connection.pings_failed = connection.pings_failed.saturating_add(1);
            connection.pings_failed < PINGS_FAILED_MAX || connection.is_held()
        })
    }

    pub(super) fn of(&self, peer: &PeerId) -> impl Iterator<Item = &ConnectionInfo> {
        self.by_peer.get(peer).into_iter().flatten()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &ConnectionInfo> {
        self.by_peer.values().flatten()
    }

    /// The connection to talk on: one that answers before one that does not, a direct one before a relayed one, a plain one
    /// before a WebSocket; of those as good, the newest.
    pub(super) fn best(&self, peer: &PeerId) -> Option<&ConnectionInfo> {
        best(self.by_peer.get(peer)?)
    }

    /// Whether a connection of the peer's answers that is not about to be closed.
    pub(super) fn is_answered(&self, peer: &PeerId) -> bool {
        self.of(peer).any(|connection| !connection.closing && connection.health.is_trusted())
    }

    /// Whether the peer has connections, and all are about to be closed.
    pub(super) fn are_all_closing(&self, peer: &PeerId) -> bool {
        self.of(peer).next().is_some() && self.of(peer).all(|connection| connection.closing)
    }

    /// What the peer is, as it said last.
    pub(super) fn kind(&self, peer: &PeerId) -> Option<PeerKind> {
        kind(self.by_peer.get(peer)?)
    }

    /// The connection that packets to a peer should take. QUIC to a Hyprspace node is one only after some time: a TCP
    /// connection to it may be on its way.
    pub(super) fn packet_way(&self, peer: &PeerId, now: Instant) -> Option<Way> {
        let connections = self.by_peer.get(peer)?;
        let kind = kind(connections)?;
        if kind == PeerKind::Ringlane {
            // Packets that have no stream yet need not wait until it is certain that a connection is dead.
            let open =
                connections.iter().rev().filter(|connection| !connection.closing && !connection.health.is_late());
            return Some(open.min_by_key(|connection| connection.rank()).or(best(connections))?.way(kind));
        }
        let open = connections.iter().rev().filter(|connection| !connection.closing);
        let ways = open.filter(|connection| match connection.way(kind).quality {
            Quality::Paced => now.saturating_duration_since(connection.established) >= TCP_PATIENCE,
            Quality::Relayed | Quality::Direct => true,
        });
        // Of those as good, the newest.
        ways.map(|connection| connection.way(kind)).rev().max_by_key(|way| way.quality)
    }

    /// Whether a peer is a Hyprspace node that packets could reach by QUIC only.
    pub(super) fn lacks_tcp(&self, peer: &PeerId) -> bool {
        let Some(connections) = self.by_peer.get(peer) else { return false };
        kind(connections) == Some(PeerKind::Hyprspace)
            && connections.iter().all(|connection| connection.closing || connection.quality(true) == Quality::Paced)
    }

    /// What time has brought of connections that are doubted.
    pub(super) fn poll_doubts(&mut self, now: Instant) -> Vec<(PeerId, ConnectionId, HealthNews)> {
        let all = self.by_peer.values_mut().flatten();
        all.filter_map(|known| Some((known.peer, known.id, known.health.poll(now, known.rtt)?))).collect()
    }

    /// The connections to retire now, each told once. Those beyond the bound are closed at once by [`Self::poll_overdue`].
    pub(super) fn poll_surplus(&mut self, now: Instant) -> Vec<ConnectionId> {
        let mut surplus = Vec::new();
        // This is asked at each turn of the loop, and hardly any peer has several.
        for (peer, connections) in self.by_peer.iter_mut().filter(|(_, connections)| connections.len() > 1) {
            let is_hyprspace = kind(connections) == Some(PeerKind::Hyprspace);
            let decided = (self.local < *peer || is_hyprspace).then(|| settled(connections)).flatten();
            let keep = decided.filter(|&(_, at)| at <= now).map(|(keep, _)| keep);
            let is_surplus = |at| keep.is_some_and(|keep| replaces(connections, keep, at));
            let judged: Vec<_> = (0..connections.len()).map(|at| (is_kept(connections, at), is_surplus(at))).collect();
            let open = connections.iter().filter(|connection| !connection.closing).count();
            let mut excess = open.saturating_sub(KEPT_CONNECTIONS_PER_PEER_MAX);
            for (connection, (is_kept, is_surplus)) in connections.iter_mut().zip(judged) {
                // One that is doubted may be the better one yet, and is closed by who doubts it.
                let is_decided = is_surplus && connection.health.is_trusted();
                if !connection.closing && !is_kept && (is_decided || excess > 0) {
                    match excess {
                        0 => connection.retire(now + RETIRING_LIMIT),
                        _ => connection.retire_as_excess(now),
                    }
                    excess = excess.saturating_sub(1);
                    surplus.push(connection.id);
                }
            }
            for connection in connections.iter_mut().filter(|connection| connection.is_held() && !connection.closing) {
                if excess == 0 {
                    break;
                }
                connection.retire_as_excess(now);
                excess -= 1;
                surplus.push(connection.id);
            }
            let retired = connections.iter().filter(|connection| connection.close_by.is_some()).count();
            let hurried = connections.iter_mut().filter(|connection| connection.close_by.is_some());
            for connection in hurried.take(retired.saturating_sub(RETIRING_CONNECTIONS_PER_PEER_MAX)) {
                connection.retire_as_excess(now);
            }
        }
        surplus
    }

    /// The peer retires a connection: it closes it soon.
    pub(super) fn handle_retired(&mut self, peer: &PeerId, id: ConnectionId, now: Instant) {
        if let Some(connection) = self.get_mut(peer, id).filter(|connection| !connection.closing) {
            connection.retire(now + PEERS_RETIRING_LIMIT);
        }
    }

    /// Nothing is under way any more on the packet streams of a connection that is retired. Whether it is to be closed,
    /// which is told once; one that is held goes by [`Self::poll_overdue`].
    pub(super) fn handle_drained(&mut self, peer: &PeerId, id: ConnectionId) -> bool {
        let drained = self.get_mut(peer, id).filter(|connection| connection.overdue_at().is_some());
        drained.is_some_and(|connection| connection.close_by.take().is_some())
    }

    /// The retired connections that may take no longer, each told once.
    pub(super) fn poll_overdue(&mut self, now: Instant) -> Vec<ConnectionId> {
        let all = self.by_peer.values_mut().flatten();
        let overdue = all.filter(|connection| connection.overdue_at().is_some_and(|at| at <= now));
        overdue
            .map(|connection| {
                connection.close_by = None;
                connection.id
            })
            .collect()
    }

    /// When [`Self::poll_surplus`], [`Self::poll_overdue`] and [`Self::poll_doubts`] should be asked again.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let decided_here = self
            .by_peer
            .iter()
            .filter(|(peer, connections)| self.local < **peer || kind(connections) == Some(PeerKind::Hyprspace));
        let settled = decided_here.filter_map(|(_, connections)| settled(connections)).map(|(_, at)| at);
        let overdue = self.all().filter_map(ConnectionInfo::overdue_at);
        settled.chain(overdue).chain(self.all().filter_map(|known| known.health.poll_timeout(known.rtt))).min()
    }
}

fn best(connections: &[ConnectionInfo]) -> Option<&ConnectionInfo> {
    let open = || connections.iter().rev().filter(|connection| !connection.closing);
    open().min_by_key(|connection| connection.rank()).or(connections.last())
}

fn kind(connections: &[ConnectionInfo]) -> Option<PeerKind> {
    connections.iter().rev().find_map(|connection| connection.kind)
}

/// Whether a connection stays though it is an old one: it is held, or the newest of its transport that leads to a Hyprspace
/// node.
fn is_kept(connections: &[ConnectionInfo], at: usize) -> bool {
    let connection = &connections[at];
    let replaces = |newer: &ConnectionInfo| {
        newer.confirmed
            && !newer.closing
            && (newer.relayed, newer.transport) == (connection.relayed, connection.transport)
    };
    connection.is_held()
        || kind(connections) == Some(PeerKind::Hyprspace) && !connections[at + 1..].iter().any(replaces)
}

/// The connection to keep, and when those that it replaces may go. `None` if none of them is open, or there is none yet to
/// keep. Only one that the peer was heard on since there is a newer one is kept at the price of that one.
fn settled(connections: &[ConnectionInfo]) -> Option<(usize, Instant)> {
    let usable =
        |connection: &ConnectionInfo| connection.confirmed && !connection.closing && connection.health.is_trusted();
    let candidates = connections.iter().enumerate().rev().filter(|(_, connection)| usable(connection));
    let (keep, _) = candidates.min_by_key(|(_, connection)| connection.rank())?;
    let is_decided = |at: usize| !connections[at].closing && connections[at].health.is_trusted();
    let is_surplus = |at| replaces(connections, keep, at) && is_decided(at) && !is_kept(connections, at);
    let surplus = (0..connections.len()).any(is_surplus);
    surplus.then(|| (keep, connections[keep].established + SURPLUS_GRACE))
}

/// Whether the connection to keep replaces another one: all that are older, and those that are of a worse kind.
fn replaces(connections: &[ConnectionInfo], keep: usize, other: usize) -> bool {
    other < keep || other > keep && connections[other].kind_rank() > connections[keep].kind_rank()
}

#[cfg(test)]
mod tests;
