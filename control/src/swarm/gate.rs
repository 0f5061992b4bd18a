//! Keeps connections of peers that are not configured from being established.
//!
//! The peer id is known only after the handshake, so that is when a stranger is turned away. Connections that come
//! *through* the mesh are refused before it: they would be carried by the tunnel they are to set up.
//!
//! *Contacts* are the exception: DHT nodes that are not configured and that we dial, if the configuration gives any way
//! into a DHT. Their number is bounded, they are offered no protocol of ours, and only we begin.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::convert::Infallible;
use std::net::{IpAddr, Ipv6Addr};
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
use ringlane_shared::limits::{
    ADDRESSES_PER_DIAL_MAX, CONNECTIONS_PER_ADDRESS_BURST, CONNECTIONS_PER_ADDRESS_PER_SECOND,
    CONNECTIONS_PER_PEER_BURST, CONNECTIONS_PER_PEER_PER_SECOND, DHT_CONTACTS_MAX, GATE_ADDRESSES_MAX, PEERS_MAX,
    PENDING_INBOUND_CONNECTIONS_MAX, REFUSALS_REMEMBERED_MAX,
};
use ringlane_shared::path::candidate::is_private;
use thiserror::Error;

use super::address::{self, AddressPolicy};
use super::rates::Rates;
use super::transport::HANDSHAKE_TIMEOUT;

/// However slowly one address shakes hands, others find room.
const _: () = {
    let during_handshake = CONNECTIONS_PER_ADDRESS_PER_SECOND as usize * HANDSHAKE_TIMEOUT.as_secs() as usize;
    let transports = 2;
    assert!(transports * (CONNECTIONS_PER_ADDRESS_BURST as usize + during_handshake) < PENDING_INBOUND_CONNECTIONS_MAX);
};

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
    /// The connection comes from an address of a private network, which the configuration does not want.
    #[error("private addresses are filtered")]
    Private,
    /// The connection comes from beyond the networks this host is connected to, and only those are wanted.
    #[error("only directly connected networks are wanted")]
    BeyondLan,
    /// A peer that wants to be met at a given moment names too many addresses for it.
    #[error("too many addresses for one dial")]
    TooManyAddresses,
    /// Too many connections from one address.
    #[error("too many connections from this address")]
    AddressRate,
    /// Too many connections of one peer.
    #[error("too many connections of this peer")]
    PeerRate,
    /// The node is shutting down.
    #[error("this node is shutting down")]
    ShuttingDown,
}

impl Refusal {
    /// Its name in `ringlane status`.
    fn name(self) -> &'static str {
        match self {
            Self::NotConfigured(_) => "not_configured",
            Self::ThroughMesh => "through_mesh",
            Self::Private => "private_address",
            Self::BeyondLan => "beyond_lan",
            Self::TooManyAddresses => "too_many_addresses",
            Self::AddressRate => "address_rate",
            Self::PeerRate => "peer_rate",
            Self::TooManyContacts => "too_many_contacts",
            Self::ShuttingDown => "shutting_down",
        }
    }
}

/// The gate. First in the derived behaviour, so that a denial leaves nothing behind in the others.
pub(super) struct Gate {
    configured: HashSet<PeerId>,
    policy: AddressPolicy,
    allows_contacts: bool,
    /// Connections to contacts, those being dialled included.
    contacts: HashSet<ConnectionId>,
    shutting_down: bool,
    refused: BTreeMap<&'static str, u64>,
    /// Those of TCP by themselves, since anybody can send QUIC's first packet from anybody's address: that must not shut
    /// TCP out.
    addresses: Rates<(IpAddr, bool)>,
    peers: Rates<PeerId>,
    log: RefusalLog,
}

impl Gate {
    pub(super) fn new(
        configured: impl IntoIterator<Item = PeerId>,
        policy: AddressPolicy,
        allows_contacts: bool,
    ) -> Self {
        Self {
            configured: configured.into_iter().collect(),
            policy,
            allows_contacts,
            contacts: HashSet::new(),
            shutting_down: false,
            refused: BTreeMap::new(),
            addresses: Rates::new(
                CONNECTIONS_PER_ADDRESS_BURST,
                CONNECTIONS_PER_ADDRESS_PER_SECOND,
                GATE_ADDRESSES_MAX,
            ),
            peers: Rates::new(CONNECTIONS_PER_PEER_BURST, CONNECTIONS_PER_PEER_PER_SECOND, PEERS_MAX),
            log: RefusalLog::default(),
        }
    }

    /// Refuses every new connection from now on.
    pub(super) fn shut(&mut self) {
        self.shutting_down = true;
    }

    /// Connections refused so far, by reason.
    pub(super) fn refused(&self) -> &BTreeMap<&'static str, u64> {
        &self.refused
    }

    fn refuse(&mut self, refusal: Refusal) -> ConnectionDenied {
        *self.refused.entry(refusal.name()).or_default() += 1;
        ConnectionDenied::new(refusal)
    }

    fn admit(&mut self, peer: PeerId, remote: &Multiaddr, inbound: bool) -> Result<THandler<Self>, ConnectionDenied> {
        let now = Instant::now();
        if self.shutting_down {
            return Err(self.refuse(Refusal::ShuttingDown));
        }
        if !self.configured.contains(&peer) {
            let denied = self.refuse(Refusal::NotConfigured(peer));
            if self.log.admit(peer, now) {
                let refused: u64 = self.refused.values().sum();
                tracing::info!(%peer, %remote, refused, "refused a connection: no [[peers]] entry has this id");
            }
            return Err(denied);
        }
        if inbound && !self.peers.take(peer, now) {
            return Err(self.refuse(Refusal::PeerRate));
        }
        Ok(dummy::ConnectionHandler)
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
            return Err(self.refuse(Refusal::ShuttingDown));
        }
        // A relayed one comes from no address of its own.
        let Ok(from) = address::parse(remote) else { return Ok(()) };
        let (from, is_tcp) = (from.socket.ip(), from.transport.is_tcp());
        if address::is_overlay(from) {
            return Err(self.refuse(Refusal::ThroughMesh));
        }
        if self.policy.filters_private() && is_private(from) {
            return Err(self.refuse(Refusal::Private));
        }
        if self.policy.is_beyond_lan(from) {
            return Err(self.refuse(Refusal::BeyondLan));
        }
        if !self.addresses.take((network_of(from), is_tcp), Instant::now()) {
            return Err(self.refuse(Refusal::AddressRate));
        }
        if self.policy.is_inside(from) {
            return Err(self.refuse(Refusal::ThroughMesh));
        }
        Ok(())
    }

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        _: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        // Ours have fewer. In DCUtR a peer gives the addresses, which may be others' than its own.
        if addresses.len() > ADDRESSES_PER_DIAL_MAX {
            return Err(self.refuse(Refusal::TooManyAddresses));
        }
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
        self.admit(peer, remote, true)
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
        self.admit(peer, remote, false)
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

/// Whom an address belongs to: an IPv6 host has a whole /64.
fn network_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
        ip => ip,
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
        let (mut closed, mut open) =
            (Gate::new([me], AddressPolicy::new(false), false), Gate::new([me], AddressPolicy::new(false), true));
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
        let mut gate = Gate::new([], AddressPolicy::new(false), false);
        let local: Multiaddr = "/ip4/10.0.0.1/tcp/8001".parse().unwrap();
        let id = ConnectionId::new_unchecked(0);
        let mut pending = |remote: &str| gate.handle_pending_inbound_connection(id, &local, &remote.parse().unwrap());
        assert!(pending("/ip4/10.0.0.2/tcp/1").is_ok());
        let denied = pending("/ip4/100.64.1.2/tcp/1").unwrap_err();
        assert_eq!(denied.downcast_ref::<Refusal>(), Some(&Refusal::ThroughMesh));
        assert_eq!(gate.refused(), &BTreeMap::from([("through_mesh", 1)]));
    }

    #[test]
    fn private_addresses_are_refused_when_told_so_and_a_flood_of_one_address_always() {
        let local: Multiaddr = "/ip4/203.0.113.1/tcp/8001".parse().unwrap();
        let id = ConnectionId::new_unchecked(0);
        let mut gate = Gate::new([], AddressPolicy::new(false).filter_private(true), false);
        let mut pending = |remote: &str| gate.handle_pending_inbound_connection(id, &local, &remote.parse().unwrap());
        assert!(pending("/ip4/10.0.0.2/tcp/1").is_err() && pending("/ip4/203.0.113.2/tcp/1").is_ok());
        let mut near = Gate::new([], AddressPolicy::new(false).lan_only(true), false);
        assert!(
            near.handle_pending_inbound_connection(id, &local, &"/ip4/10.0.0.2/tcp/1/ws".parse().unwrap()).is_err()
        );
        assert_eq!(near.refused(), &BTreeMap::from([("beyond_lan", 1)]));
        let flood = |host| format!("/ip6/2001:db8::{host:x}/udp/1/quic-v1");
        let passed = (0..1000).filter(|host| pending(&flood(*host)).is_ok()).count();
        assert!((CONNECTIONS_PER_ADDRESS_BURST as usize..500).contains(&passed), "{passed}");
        assert!(pending("/ip6/2001:db8:1::1/udp/1/quic-v1").is_ok(), "others are not concerned");
        assert!(pending("/ip6/2001:db8::1/tcp/1").is_ok(), "nor is the other transport, whose senders are real");
        let refused = BTreeMap::from([("address_rate", 1000 - passed as u64), ("private_address", 1)]);
        assert_eq!(gate.refused(), &refused);
    }

    #[test]
    fn a_peer_that_connects_without_end_is_refused_and_our_own_dials_are_not() {
        let (peer, remote): (_, Multiaddr) = (PeerId::random(), "/ip4/203.0.113.1/tcp/8001".parse().unwrap());
        let mut gate = Gate::new([peer], AddressPolicy::new(false), false);
        let passed = (0..200).filter(|_| gate.admit(peer, &remote, true).is_ok()).count();
        assert!((CONNECTIONS_PER_PEER_BURST as usize..150).contains(&passed), "{passed}");
        assert!((0..200).all(|_| gate.admit(peer, &remote, false).is_ok()));
    }

    #[test]
    fn a_peer_that_wants_to_be_met_at_hundreds_of_addresses_is_not_dialled_at_all() {
        let peer = PeerId::random();
        let mut gate = Gate::new([peer], AddressPolicy::new(false), false);
        let named = |count: u32| -> Vec<Multiaddr> {
            let address = |number: u32| format!("/ip4/203.0.113.{}/udp/1/quic-v1", number % 256).parse().unwrap();
            (0..count).map(address).collect()
        };
        let mut dial = |count| {
            let id = ConnectionId::new_unchecked(1);
            gate.handle_pending_outbound_connection(id, Some(peer), &named(count), Endpoint::Listener)
        };
        assert!(dial(ADDRESSES_PER_DIAL_MAX as u32).is_ok());
        assert!(dial(300).is_err());
        assert_eq!(gate.refused(), &BTreeMap::from([("too_many_addresses", 1)]));
    }
}
