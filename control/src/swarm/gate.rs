//! Keeps connections of peers that are not configured from being established.
//!
//! The peer id is known only after the handshake, so that is when a stranger is turned away. Connections that come
//! *through* the mesh are refused before it: they would be carried by the tunnel they are to set up.
//!
//! *Contacts* are the exception: DHT nodes that are not configured and that we dial, if the configuration gives any way
//! into a DHT. Their number is bounded, they are offered no protocol of ours, and only we begin.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::behaviour::{ConnectionClosed, DialFailure};
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
    dummy,
};
use libp2p::{Multiaddr, PeerId};
use ringlane_shared::limits::{DHT_CONTACTS_MAX, REFUSALS_REMEMBERED_MAX};
use thiserror::Error;

use super::address;

/// One stranger is logged at most once in this time.
const REFUSAL_LOG_INTERVAL: Duration = Duration::from_secs(600);
/// All strangers together are logged at most once in this time: ids are free, and a scanner may bring a new one
/// with every connection.
const REFUSAL_LOG_SPACING: Duration = Duration::from_secs(5);

/// Why the gate denied a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub(super) enum Refusal {
    /// The peer is not in our configuration.
    #[error("peer {0} is not configured")]
    NotConfigured(PeerId),
    /// The connection comes from an address inside the mesh.
    #[error("the connection comes from inside the mesh")]
    ThroughMesh,
    /// There are as many contacts as there may be.
    #[error("there are {DHT_CONTACTS_MAX} connections to DHT nodes already")]
    TooManyContacts,
    /// The node is shutting down.
    #[error("this node is shutting down")]
    ShuttingDown,
}

/// The gate. First in the derived behaviour, so that a denial leaves nothing behind in the others.
pub(super) struct Gate {
    configured: HashSet<PeerId>,
    allows_contacts: bool,
    /// Connections to contacts, those being dialled included.
    contacts: HashSet<ConnectionId>,
    shutting_down: bool,
    refused: u64,
    log: RefusalLog,
}

impl Gate {
    pub(super) fn new(configured: impl IntoIterator<Item = PeerId>, allows_contacts: bool) -> Self {
        Self {
            configured: configured.into_iter().collect(),
            allows_contacts,
            contacts: HashSet::new(),
            shutting_down: false,
            refused: 0,
            log: RefusalLog::default(),
        }
    }

    /// Refuses every new connection from now on.
    pub(super) fn shut(&mut self) {
        self.shutting_down = true;
    }

    /// Connections refused so far.
    pub(super) fn refused(&self) -> u64 {
        self.refused
    }

    fn admit(&mut self, peer: PeerId, remote: &Multiaddr) -> Result<THandler<Self>, ConnectionDenied> {
        if self.shutting_down {
            return Err(ConnectionDenied::new(Refusal::ShuttingDown));
        }
        if self.configured.contains(&peer) {
            return Ok(dummy::ConnectionHandler);
        }
        self.refused += 1;
        if self.log.admit(peer, Instant::now()) {
            tracing::info!(%peer, %remote, refused = self.refused, "refused a connection: no [[peers]] entry has this id");
        }
        Err(ConnectionDenied::new(Refusal::NotConfigured(peer)))
    }
}

impl NetworkBehaviour for Gate {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        if self.shutting_down {
            return Err(ConnectionDenied::new(Refusal::ShuttingDown));
        }
        if address::parse(remote).is_ok_and(|from| address::is_overlay(from.socket.ip())) {
            self.refused += 1;
            return Err(ConnectionDenied::new(Refusal::ThroughMesh));
        }
        Ok(())
    }

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        _: &[Multiaddr],
        _: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        match peer.filter(|peer| !self.configured.contains(peer)) {
            None => {}
            Some(_) if self.shutting_down => return Err(ConnectionDenied::new(Refusal::ShuttingDown)),
            Some(stranger) if !self.allows_contacts => {
                return Err(ConnectionDenied::new(Refusal::NotConfigured(stranger)));
            }
            Some(_) if self.contacts.len() >= DHT_CONTACTS_MAX => {
                return Err(ConnectionDenied::new(Refusal::TooManyContacts));
            }
            Some(_) => {
                self.contacts.insert(id);
            }
        }
        Ok(Vec::new())
    }

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.admit(peer, remote)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        remote: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        if self.contacts.contains(&id) && !self.shutting_down {
            return Ok(dummy::ConnectionHandler);
        }
        self.admit(peer, remote)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::DialFailure(DialFailure { connection_id, .. })
            | FromSwarm::ConnectionClosed(ConnectionClosed { connection_id, .. }) => {
                self.contacts.remove(&connection_id);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

/// Decides which refusals are worth a log line.
#[derive(Default)]
struct RefusalLog {
    seen: HashMap<PeerId, Instant>,
    last: Option<Instant>,
}

impl RefusalLog {
    fn admit(&mut self, peer: PeerId, now: Instant) -> bool {
        let recent = |at: Instant, interval| now.duration_since(at) < interval;
        if self.last.is_some_and(|last| recent(last, REFUSAL_LOG_SPACING))
            || self.seen.get(&peer).is_some_and(|&at| recent(at, REFUSAL_LOG_INTERVAL))
        {
            return false;
        }
        if self.seen.len() >= REFUSALS_REMEMBERED_MAX {
            self.seen.retain(|_, at| recent(*at, REFUSAL_LOG_INTERVAL));
        }
        // Full of recent ones: forgetting them all costs a repeated line, bounded by the spacing.
        if self.seen.len() >= REFUSALS_REMEMBERED_MAX {
            self.seen.clear();
        }
        self.seen.insert(peer, now);
        self.last = Some(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_is_logged_once_per_interval() {
        let mut log = RefusalLog::default();
        let (start, peer) = (Instant::now(), PeerId::random());
        assert!(log.admit(peer, start));
        assert!(!log.admit(peer, start + REFUSAL_LOG_SPACING));
        assert!(log.admit(peer, start + REFUSAL_LOG_INTERVAL));
    }

    #[test]
    fn a_flood_of_strangers_is_bounded_in_lines_and_memory() {
        let mut log = RefusalLog::default();
        let start = Instant::now();
        let lines = (0..10_000).filter(|&i| log.admit(PeerId::random(), start + Duration::from_millis(i))).count();
        assert_eq!(lines, 2);
        for i in 0..2 * REFUSALS_REMEMBERED_MAX as u32 {
            log.admit(PeerId::random(), start + REFUSAL_LOG_SPACING * (i + 3));
            assert!(log.seen.len() <= REFUSALS_REMEMBERED_MAX);
        }
    }

    #[test]
    fn dht_nodes_are_dialled_only_if_allowed_and_only_so_many() {
        let me = PeerId::random();
        let pending = |gate: &mut Gate, id, peer| {
            let id = ConnectionId::new_unchecked(id);
            gate.handle_pending_outbound_connection(id, Some(peer), &[], Endpoint::Dialer)
                .map_err(|denied| *denied.downcast_ref::<Refusal>().unwrap())
        };
        let (mut closed, mut open) = (Gate::new([me], false), Gate::new([me], true));
        let stranger = PeerId::random();
        assert_eq!(pending(&mut closed, 0, stranger), Err(Refusal::NotConfigured(stranger)));
        assert_eq!(pending(&mut closed, 1, me), Ok(vec![]));
        for id in 0..DHT_CONTACTS_MAX {
            assert_eq!(pending(&mut open, id, PeerId::random()), Ok(vec![]));
        }
        assert_eq!(pending(&mut open, DHT_CONTACTS_MAX, stranger), Err(Refusal::TooManyContacts));
        assert_eq!(pending(&mut open, DHT_CONTACTS_MAX, me), Ok(vec![]), "peers are not counted among them");
        open.on_swarm_event(FromSwarm::DialFailure(DialFailure {
            peer_id: None,
            error: &libp2p::swarm::DialError::Aborted,
            connection_id: ConnectionId::new_unchecked(3),
        }));
        assert_eq!(pending(&mut open, DHT_CONTACTS_MAX, stranger), Ok(vec![]));
    }

    #[test]
    fn a_connection_from_inside_the_mesh_is_refused_before_its_handshake() {
        let mut gate = Gate::new([], false);
        let local: Multiaddr = "/ip4/10.0.0.1/tcp/8001".parse().unwrap();
        let id = ConnectionId::new_unchecked(0);
        let mut pending = |remote: &str| gate.handle_pending_inbound_connection(id, &local, &remote.parse().unwrap());
        assert!(pending("/ip4/10.0.0.2/tcp/1").is_ok());
        let denied = pending("/ip4/100.64.1.2/tcp/1").unwrap_err();
        assert_eq!(denied.downcast_ref::<Refusal>(), Some(&Refusal::ThroughMesh));
        assert_eq!(gate.refused(), 1);
    }
}
