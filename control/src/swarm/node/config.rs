//! What a node is made of, and why there is none.

use libp2p::Multiaddr;
use libp2p::identity::Keypair;
use ringlane_shared::config::RelaySettings;
use ringlane_shared::id::PeerId;
use thiserror::Error;

use crate::swarm::discovery::Discovery;
use crate::swarm::names::Resolver;
use crate::swarm::streams::Accepted;
use crate::swarm::transport::Underlay;
use crate::swarm::web::Web;

/// What a node is made of.
pub struct NodeConfig {
    /// Who we are.
    pub keypair: Keypair,
    /// The configured peers with their configured addresses, with or without `/p2p/`.
    pub peers: Vec<(PeerId, Vec<Multiaddr>)>,
    /// Addresses that worked in earlier runs.
    pub cached: Vec<(PeerId, Vec<Multiaddr>)>,
    /// Whether to find peers on the local networks.
    pub mdns: bool,
    /// Whether addresses of private networks are neither dialled nor accepted.
    pub filter_private: bool,
    /// Whether to dial loopback addresses: for tests.
    pub allow_loopback: bool,
    /// What identify tells peers we are: `ringlane/<version>`.
    pub agent: String,
    /// Protocols whose inbound streams are given out as [`NodeEvent::StreamInbound`](super::NodeEvent::StreamInbound).
    pub accepted: Vec<Accepted>,
    /// What connections run over.
    pub underlay: Underlay,
    /// Spreads dials in time; should differ from node to node.
    pub seed: u64,
    /// Looks up names in the configured addresses.
    pub resolver: Resolver,
    /// How peers are found beyond these addresses.
    pub discovery: Discovery,
    /// What of the underlay is used, and through what.
    pub web: Web,
    /// Whether we are a relay, and which relays to use.
    pub relay: RelaySettings,
}

impl NodeConfig {
    /// What a node cannot be without; all else as little as can be: it finds these peers only at these addresses and by
    /// the DHT among them, and gives out no streams.
    pub fn new(keypair: Keypair, peers: Vec<(PeerId, Vec<Multiaddr>)>) -> Self {
        Self {
            keypair,
            peers,
            cached: Vec::new(),
            mdns: false,
            filter_private: false,
            allow_loopback: false,
            agent: "ringlane".to_owned(),
            accepted: Vec::new(),
            underlay: Underlay::default(),
            seed: 0,
            resolver: Resolver::system(),
            discovery: Discovery::default(),
            web: Web::default(),
            relay: RelaySettings::default(),
        }
    }
}

/// Why there is no node.
#[derive(Debug, Error)]
pub enum NodeError {
    /// TLS of WebSockets cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
    /// The key cannot be used.
    #[error("the identity key cannot be used for TLS or Noise: {0}")]
    Identity(String),
    /// Our own id is among the peers.
    #[error("peer {0} is this node itself")]
    SelfAsPeer(PeerId),
}
