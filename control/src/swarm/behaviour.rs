//! The swarm's behaviour: ours and the stock ones, put together.

use std::time::Duration;

use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::identity::Keypair;
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{PeerId, autonat, dcutr, identify, ping, relay};
use ringlane_shared::limits::{
    AUTONAT_ADDRESSES_MAX, AUTONAT_DIALS_MAX, AUTONAT_DIALS_PER_PEER_MAX, CONNECTIONS_PER_PEER_MAX, DHT_CONTACTS_MAX,
    DIALS_PER_PEER_MAX, LINK_STREAMS_PER_PEER_MAX, PENDING_INBOUND_CONNECTIONS_MAX,
};

use super::address::AddressPolicy;
use super::dht::Dht;
use super::discovery::Discovery;
use super::exchange;
use super::gate::Gate;
use super::relay::accepted as relay_accepted;
use super::relay::peers_only::PeersOnly;
use super::streams::{Accepted, Streams};

/// How often each connection is pinged, for its round-trip time and to find dead TCP connections.
const PING_INTERVAL: Duration = Duration::from_secs(15);
/// A ping without an answer for this long means that the connection is dead.
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// How long after the start a node first asks whether it can be reached from outside.
const AUTONAT_BOOT_DELAY: Duration = Duration::from_secs(5);
/// How often it asks until it has heard the same three times.
const AUTONAT_RETRY: Duration = Duration::from_secs(30);
/// How long the same peer is not asked again: less than that, or who has one peer would not know whom to ask.
const AUTONAT_SAME_PEER: Duration = Duration::from_secs(20);
/// Dials on behalf of others in any so long time.
const AUTONAT_PERIOD: Duration = Duration::from_secs(30);

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
    pub(super) relay_client: PeersOnly<relay::client::Behaviour>,
    pub(super) autonat: PeersOnly<autonat::v1::Behaviour>,
    pub(super) dcutr: PeersOnly<dcutr::Behaviour>,
}

impl Behaviour {
    pub(super) fn new(
        keypair: &Keypair,
        peers: &[PeerId],
        agent: String,
        policy: AddressPolicy,
        mut accepted: Vec<Accepted>,
        discovery: &Discovery,
        relay_client: relay::client::Behaviour,
    ) -> Self {
        let local = keypair.public().to_peer_id();
        let contacts = discovery.allows_contacts(&local);
        let identify = identify::Config::new(String::new(), keypair.public())
            .with_agent_version(agent)
            .with_push_listen_addr_updates(true)
            .with_cache_size(0);
        accepted.push(relay_accepted());
        accepted.push(Accepted { name: exchange::PROTOCOL, inbound_per_peer_max: LINK_STREAMS_PER_PEER_MAX });
        Self {
            gate: Gate::new(peers.iter().copied(), policy, contacts),
            limits: connection_limits::Behaviour::new(limits(peers.len(), contacts)),
            streams: Streams::new(accepted, peers.iter().copied()),
            identify: identify::Behaviour::new(identify),
            ping: ping::Behaviour::new(ping::Config::new().with_interval(PING_INTERVAL).with_timeout(PING_TIMEOUT)),
            dht: Dht::new(local, peers, discovery.dht, contacts).into(),
            relay_client: PeersOnly::new(relay_client, peers),
            autonat: PeersOnly::new(autonat::v1::Behaviour::new(local, autonat_config()), peers),
            // It keeps the last few.
            dcutr: PeersOnly::new(dcutr::Behaviour::new(local), peers).with_candidates(),
        }
    }
}

/// Peers tell each other whether they can be reached from outside, as Hyprspace's do: only those that meet at addresses that
/// mean the same everywhere. Who asks is dialled back at the IP address it comes from and no other, at a few of the ports it
/// names and one after the other; one dial for each peer at a time, and few of all in any [`AUTONAT_PERIOD`]. So what a peer
/// can have sent, to itself or to who shares its address, is less than what it sends by itself as soon as it dials.
fn autonat_config() -> autonat::v1::Config {
    autonat::v1::Config {
        boot_delay: AUTONAT_BOOT_DELAY,
        retry_interval: AUTONAT_RETRY,
        throttle_server_period: AUTONAT_SAME_PEER,
        max_peer_addresses: AUTONAT_ADDRESSES_MAX,
        throttle_clients_period: AUTONAT_PERIOD,
        throttle_clients_peer_max: AUTONAT_DIALS_PER_PEER_MAX,
        throttle_clients_global_max: AUTONAT_DIALS_MAX,
        only_global_ips: true,
        ..autonat::v1::Config::default()
    }
}

/// Strangers can take up inbound handshakes only, and our own dials are not counted among those.
fn limits(peers: usize, contacts: bool) -> ConnectionLimits {
    let contacts = if contacts { DHT_CONTACTS_MAX } else { 0 };
    let count = |n: usize| Some(u32::try_from(n).unwrap_or(u32::MAX));
    ConnectionLimits::default()
        .with_max_pending_incoming(count(PENDING_INBOUND_CONNECTIONS_MAX))
        .with_max_pending_outgoing(count(2 * peers * usize::from(DIALS_PER_PEER_MAX) + contacts))
        .with_max_established_per_peer(count(CONNECTIONS_PER_PEER_MAX))
        .with_max_established(count(peers * CONNECTIONS_PER_PEER_MAX + contacts))
}
