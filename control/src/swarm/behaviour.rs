//! The swarm's behaviour: ours and the stock ones, put together.

use std::time::Duration;

use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::identity::Keypair;
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{PeerId, identify, ping};
use ringlane_shared::limits::{
    CONNECTIONS_PER_PEER_MAX, DHT_CONTACTS_MAX, DIALS_PER_PEER_MAX, LINK_STREAMS_PER_PEER_MAX,
    PENDING_INBOUND_CONNECTIONS_MAX,
};

use super::address::AddressPolicy;
use super::dht::Dht;
use super::discovery::Discovery;
use super::exchange;
use super::gate::Gate;
use super::streams::{Accepted, Streams};

/// How often each connection is pinged, for its round-trip time and to find dead TCP connections.
const PING_INTERVAL: Duration = Duration::from_secs(15);
/// A ping without an answer for this long means that the connection is dead.
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Everything that sees the swarm's connections. The order matters: what is denied by the gate costs the others
/// nothing.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    pub(super) gate: Gate,
    pub(super) limits: connection_limits::Behaviour,
    pub(super) streams: Streams,
    pub(super) identify: identify::Behaviour,
    pub(super) ping: ping::Behaviour,
    pub(super) dht: Toggle<Dht>,
}

impl Behaviour {
    pub(super) fn new(
        keypair: &Keypair,
        peers: &[PeerId],
        agent: String,
        policy: AddressPolicy,
        mut accepted: Vec<Accepted>,
        discovery: &Discovery,
    ) -> Self {
        let local = keypair.public().to_peer_id();
        let contacts = discovery.allows_contacts(&local);
        let identify = identify::Config::new(String::new(), keypair.public())
            .with_agent_version(agent)
            .with_push_listen_addr_updates(true)
            .with_cache_size(0);
        accepted.push(Accepted { name: exchange::PROTOCOL, inbound_per_peer_max: LINK_STREAMS_PER_PEER_MAX });
        Self {
            gate: Gate::new(peers.iter().copied(), policy, contacts),
            limits: connection_limits::Behaviour::new(limits(peers.len(), contacts)),
            streams: Streams::new(accepted, peers.iter().copied()),
            identify: identify::Behaviour::new(identify),
            ping: ping::Behaviour::new(ping::Config::new().with_interval(PING_INTERVAL).with_timeout(PING_TIMEOUT)),
            dht: Dht::new(local, peers, discovery.dht, contacts).into(),
        }
    }
}

/// Strangers can take up inbound handshakes only, and our own dials are not counted among those.
fn limits(peers: usize, contacts: bool) -> ConnectionLimits {
    let contacts = if contacts { DHT_CONTACTS_MAX } else { 0 };
    let count = |n: usize| Some(u32::try_from(n).unwrap_or(u32::MAX));
    ConnectionLimits::default()
        .with_max_pending_incoming(count(PENDING_INBOUND_CONNECTIONS_MAX))
        .with_max_pending_outgoing(count(peers * usize::from(DIALS_PER_PEER_MAX) + contacts))
        .with_max_established_per_peer(count(CONNECTIONS_PER_PEER_MAX))
        .with_max_established(count(peers * CONNECTIONS_PER_PEER_MAX + contacts))
}
