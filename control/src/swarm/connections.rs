//! Who is connected how, and which connections are too many: pure.
//!
//! Two nodes that dial each other at once end up with two connections or more. All of them work, so nothing is urgent;
//! but each costs keep-alives and memory, so after [`SURPLUS_GRACE`] all that are older than the newest confirmed direct
//! one are closed, and *only by the node with the lower peer id*: whatever either side takes for the newest, one side
//! decides and no connection is closed from both ends with none left. The newest is kept because it is the one known to
//! be alive: a peer that restarted comes with a new connection while its old ones have yet to time out. The grace lets
//! exchanges on the others end. *Confirmed* means that the other side has it too: a dialler's handshake is complete
//! before the peer's, and an overloaded peer may yet give up on it.
//!
//! Either side closes the oldest at once when there are more than [`KEPT_CONNECTIONS_PER_PEER_MAX`], so that dead
//! connections never keep a peer's new one out.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use libp2p::core::ConnectedPoint;
use libp2p::swarm::ConnectionId;
use libp2p::{Multiaddr, PeerId};
use ringlane_shared::limits::KEPT_CONNECTIONS_PER_PEER_MAX;

use super::address;

/// How long a newer connection must have stood before the older ones are closed.
const SURPLUS_GRACE: Duration = Duration::from_secs(2);

/// What carries a libp2p connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TransportName {
    /// QUIC version 1.
    Quic,
    /// TCP with Noise or TLS, and yamux.
    Tcp,
}

impl TransportName {
    /// As status prints it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Tcp => "tcp",
        }
    }
}

/// Who dialled.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Direction {
    /// The peer.
    Inbound,
    /// We.
    Outbound,
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
    /// Who dialled.
    pub direction: Direction,
    /// Since when.
    pub established: Instant,
    /// The last round-trip time measured, if any.
    pub rtt: Option<Duration>,
    /// What carries it; `None` if its address does not tell.
    pub transport: Option<TransportName>,
    /// Whether the peer has it too.
    confirmed: bool,
    closing: bool,
}

impl ConnectionInfo {
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
            direction: if endpoint.is_dialer() { Direction::Outbound } else { Direction::Inbound },
            established,
            rtt: None,
            transport: address::parse(remote).ok().map(|destination| destination.transport),
            confirmed: endpoint.is_listener(),
            closing: false,
        }
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

    pub(super) fn of(&self, peer: &PeerId) -> impl Iterator<Item = &ConnectionInfo> {
        self.by_peer.get(peer).into_iter().flatten()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &ConnectionInfo> {
        self.by_peer.values().flatten()
    }

    /// The connection to talk on: the newest direct one, or the newest relayed one if there is no other.
    pub(super) fn best(&self, peer: &PeerId) -> Option<&ConnectionInfo> {
        best(self.by_peer.get(peer)?)
    }

    /// The connections to close now, each told once.
    pub(super) fn poll_surplus(&mut self, now: Instant) -> Vec<ConnectionId> {
        let mut surplus = Vec::new();
        for (peer, connections) in &mut self.by_peer {
            let decided = (self.local < *peer).then(|| settled(connections)).flatten();
            let older = decided.filter(|&(_, at)| at <= now).map_or(0, |(older, _)| older);
            let open = connections.iter().filter(|connection| !connection.closing).count();
            let mut excess = open.saturating_sub(KEPT_CONNECTIONS_PER_PEER_MAX);
            for (position, connection) in connections.iter_mut().enumerate() {
                if !connection.closing && (position < older || excess > 0) {
                    connection.closing = true;
                    excess = excess.saturating_sub(1);
                    surplus.push(connection.id);
                }
            }
        }
        surplus
    }

    /// When [`Self::poll_surplus`] should be asked again.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let decided_here = self.by_peer.iter().filter(|(peer, _)| self.local < **peer);
        decided_here.filter_map(|(_, connections)| settled(connections)).map(|(_, at)| at).min()
    }
}

fn best(connections: &[ConnectionInfo]) -> Option<&ConnectionInfo> {
    let open = || connections.iter().rev().filter(|connection| !connection.closing);
    open().find(|connection| !connection.relayed).or_else(|| open().next()).or(connections.last())
}

/// How many of the connections, from the oldest on, are older than the one to keep, and when they may go. `None` if
/// none of them is open, or there is none yet to keep.
fn settled(connections: &[ConnectionInfo]) -> Option<(usize, Instant)> {
    let newest = |direct_only: bool| {
        connections
            .iter()
            .rposition(|connection| connection.confirmed && !connection.closing && !(direct_only && connection.relayed))
    };
    let keep = newest(true).or_else(|| newest(false))?;
    let surplus = connections[..keep].iter().any(|connection| !connection.closing);
    surplus.then(|| (keep, connections[keep].established + SURPLUS_GRACE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(id: usize, peer: PeerId, established: Instant) -> ConnectionInfo {
        let address = "/ip4/10.0.0.1/udp/1/quic-v1".parse().unwrap();
        let endpoint = ConnectedPoint::Listener { local_addr: Multiaddr::empty(), send_back_addr: address };
        ConnectionInfo::new(ConnectionId::new_unchecked(id), peer, &endpoint, established)
    }

    /// Two tables of a pair of nodes, the decider's first.
    fn pair() -> [(Connections, PeerId); 2] {
        let mut ids = [PeerId::random(), PeerId::random()];
        ids.sort();
        let [low, high] = ids;
        [(Connections::new(low), high), (Connections::new(high), low)]
    }

    #[test]
    fn only_the_lower_id_closes_the_older_connection_and_not_before_the_grace() {
        let now = Instant::now();
        let [mut decider, mut other] = pair();
        for (table, peer) in [&mut decider, &mut other] {
            table.insert(connection(1, *peer, now));
            assert_eq!(table.poll_timeout(), None);
            table.insert(connection(2, *peer, now));
            assert!(table.poll_surplus(now).is_empty());
        }
        let (later, older) = (now + SURPLUS_GRACE, ConnectionId::new_unchecked(1));
        assert_eq!(other.0.poll_timeout(), None);
        assert!(other.0.poll_surplus(later).is_empty());
        assert_eq!(decider.0.poll_timeout(), Some(later));
        assert_eq!(decider.0.poll_surplus(later), [older]);
        assert!(decider.0.poll_surplus(later).is_empty(), "told once");
        assert_eq!(decider.0.poll_timeout(), None);
    }

    #[test]
    fn a_dialled_connection_replaces_older_ones_only_when_the_peer_has_it_too() {
        let now = Instant::now();
        let [(mut table, peer), _] = pair();
        table.insert(connection(1, peer, now));
        table.insert(ConnectionInfo { confirmed: false, ..connection(2, peer, now) });
        let (later, dialled) = (now + SURPLUS_GRACE, ConnectionId::new_unchecked(2));
        assert_eq!(table.poll_timeout(), None);
        assert!(table.poll_surplus(later).is_empty());
        table.get_mut(&peer, dialled).unwrap().confirm();
        assert_eq!(table.poll_surplus(later), [ConnectionId::new_unchecked(1)]);
    }

    #[test]
    fn a_flood_of_connections_is_cut_to_the_bound_at_once_by_either_side_oldest_first() {
        let now = Instant::now();
        for (mut table, peer) in pair() {
            for id in 0..KEPT_CONNECTIONS_PER_PEER_MAX + 2 {
                table.insert(connection(id, peer, now));
            }
            assert_eq!(table.poll_surplus(now), [0, 1].map(ConnectionId::new_unchecked));
        }
    }

    #[test]
    fn a_direct_connection_is_better_than_a_newer_relayed_one() {
        let now = Instant::now();
        let [(mut table, peer), _] = pair();
        table.insert(connection(1, peer, now));
        table.insert(ConnectionInfo { relayed: true, ..connection(2, peer, now) });
        assert_eq!(table.best(&peer).unwrap().id, ConnectionId::new_unchecked(1));
        table.remove(&peer, ConnectionId::new_unchecked(1));
        assert_eq!(table.best(&peer).unwrap().id, ConnectionId::new_unchecked(2));
    }
}
