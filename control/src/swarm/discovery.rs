//! Finding configured peers that nobody gave a working address of.
//!
//! ```text
//!                      +-> DHT: find by id ----------------+
//! seeker: who, when ---+                                   +--> dialer (Source::Dht, Source::Routing)
//!                      +-> delegated routers over HTTP ----+
//! bootstrap: while the table is empty, dial contacts; while it is not, look ourselves up
//! ```
//!
//! All sources are asked at once. What they tell goes to the dialer, which tries it next to everything else it knows: the
//! first address that leads to the peer wins, the others are kept.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::time::Instant;

use libp2p::multiaddr::Protocol;
use libp2p::pnet::PreSharedKey;
use libp2p::swarm::ConnectionId;
use libp2p::{Multiaddr, PeerId};
use ringlane_shared::config::{DhtMode, RouterSettings};

use super::bootstrap::Bootstrap;
use super::names::{LookUps, Resolver};
use super::seeker::Seeker;
use super::web::Proxy;
use crate::routing::{Kubo, Routers};

/// How a node finds peers beyond the addresses it was given. The default: as a DHT client that asks configured peers only.
#[derive(Clone, Debug, Default)]
pub struct Discovery {
    /// What we are in the DHT.
    pub dht: DhtMode,
    /// DHT nodes that are no peers, each ending in `/p2p/<id>`.
    pub bootstrap: Vec<Multiaddr>,
    /// Whom to ask over HTTP.
    pub routers: Vec<RouterSettings>,
    /// A Kubo node on this host or network whose connections and bootstrap list we use.
    pub kubo: Option<SocketAddr>,
    /// The key of a private network: then there is no QUIC.
    pub swarm_key: Option<PreSharedKey>,
}

impl Discovery {
    /// Whether DHT nodes that are no peers may be dialled: only if there is a way to some.
    pub(super) fn allows_contacts(&self, local: &PeerId) -> bool {
        self.dht != DhtMode::Off && (self.kubo.is_some() || self.contacts(local).next().is_some())
    }

    /// The bootstrap list but for our own addresses, which stand in a list that all nodes share.
    pub(super) fn contacts(&self, local: &PeerId) -> impl Iterator<Item = &Multiaddr> {
        self.bootstrap.iter().filter(|address| match address.iter().last() {
            Some(Protocol::P2p(peer)) => peer != *local,
            _ => false,
        })
    }
}

/// What [`Node`](super::Node) needs for it.
pub(super) struct Discoverer {
    pub(super) seeker: Seeker,
    pub(super) bootstrap: Bootstrap,
    pub(super) routers: Routers,
    pub(super) kubo: Option<Kubo>,
    /// Names of bootstrap contacts.
    pub(super) look_ups: LookUps,
    /// Dials of bootstrap contacts.
    pub(super) dials: HashSet<ConnectionId>,
    /// Connections to DHT nodes that are no peers.
    pub(super) contacts: BTreeMap<ConnectionId, (PeerId, Multiaddr)>,
}

impl Discoverer {
    pub(super) fn new(
        discovery: &Discovery,
        local: PeerId,
        peers: &[PeerId],
        resolver: Resolver,
        proxy: Option<&Proxy>,
        seed: u64,
        now: Instant,
    ) -> Self {
        Self {
            seeker: Seeker::new(peers.iter().copied(), seed, now),
            bootstrap: Bootstrap::new(discovery.contacts(&local).cloned().collect(), seed),
            routers: Routers::new(&discovery.routers, resolver.clone(), proxy),
            kubo: discovery.kubo.map(|at| Kubo::new(at, resolver.clone())),
            look_ups: LookUps::new(resolver),
            dials: HashSet::new(),
            contacts: BTreeMap::new(),
        }
    }
}
