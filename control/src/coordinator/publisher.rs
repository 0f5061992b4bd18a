//! Makes the tables that workers route by.

use std::sync::Arc;

use ipnet::IpNet;
use ringlane_shared::config::PeerSettings;
use ringlane_shared::id::{Generation, PeerId, PeerIndex};
use ringlane_shared::identity::{builtin_ipv4, builtin_ipv6, service_network};
use ringlane_shared::plane::{PeerCounters, PeerEntry, Snapshot, StreamForm};
use ringlane_shared::route::RouteTable;

/// What of a peer does not change with its lanes.
struct Fixed {
    id: PeerId,
    sources: Arc<RouteTable<()>>,
    counters: Arc<[PeerCounters]>,
}

/// By what packets reach a peer: what of it changes while the node runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Reach {
    /// Bit w is set while worker w owns a lane that others may send by way of.
    pub(super) workers_with_lane: u64,
    /// What its stream takes, while it has one.
    pub(super) stream: Option<StreamForm>,
}

/// Numbers and builds snapshots. Owner: the coordinator.
pub struct Publisher {
    routes: Arc<RouteTable<PeerIndex>>,
    peers: Vec<Fixed>,
    published: Vec<Reach>,
    generation: Generation,
}

/// A peer's own two addresses, as prefixes.
pub fn builtin_prefixes(peer: &PeerId) -> [IpNet; 2] {
    [IpNet::from(std::net::IpAddr::from(builtin_ipv4(peer))), IpNet::from(std::net::IpAddr::from(builtin_ipv6(peer)))]
}

impl Publisher {
    pub(super) fn new(peers: &[PeerSettings], workers: u8) -> Self {
        let mut routes = RouteTable::default();
        let mut fixed = Vec::with_capacity(peers.len());
        for (peer, index) in peers.iter().zip(0..) {
            let mut sources = RouteTable::default();
            for prefix in builtin_prefixes(&peer.id).into_iter().chain(peer.routes.iter().copied()) {
                routes.insert(prefix, PeerIndex(index));
                sources.insert(prefix, ());
            }
            let counters = (0..workers).map(|_| PeerCounters::default()).collect();
            fixed.push(Fixed { id: peer.id, sources: Arc::new(sources), counters });
        }
        Self { routes: Arc::new(routes), peers: fixed, published: Vec::new(), generation: Generation::default() }
    }

    /// Has the service network's addresses lead to it, or nowhere, from the next generation on. Returns whether that is
    /// news.
    pub(super) fn set_services(&mut self, has_services: bool) -> bool {
        let routes = Arc::make_mut(&mut self.routes);
        let before = match has_services {
            true => routes.insert(IpNet::V6(service_network()), PeerIndex::SERVICES),
            false => routes.remove(IpNet::V6(service_network())),
        };
        before.is_some() != has_services
    }

    /// Builds the next generation; `reach` has one entry per peer.
    pub(super) fn publish(&mut self, reach: Vec<Reach>) -> Arc<Snapshot> {
        self.generation.0 += 1;
        self.published = reach;
        let peers = self.peers.iter().zip(&self.published).map(|(peer, reach)| PeerEntry {
            id: peer.id,
            sources: Arc::clone(&peer.sources),
            workers_with_lane: reach.workers_with_lane,
            stream: reach.stream,
            counters: Arc::clone(&peer.counters),
        });
        Arc::new(Snapshot { generation: self.generation, routes: Arc::clone(&self.routes), peers: peers.collect() })
    }

    /// Whether the newest generation says the same of all peers.
    pub(super) fn is_current(&self, reach: impl Iterator<Item = Reach>) -> bool {
        reach.eq(self.published.iter().copied())
    }

    pub(super) fn generation(&self) -> Generation {
        self.generation
    }

    pub(super) fn counters(&self, peer: PeerIndex) -> &[PeerCounters] {
        self.peers.get(peer.position()).map_or(&[], |peer| &peer.counters)
    }
}
