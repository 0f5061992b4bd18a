//! Makes the tables that workers route by.

use std::sync::Arc;

use ipnet::IpNet;
use ringlane_shared::config::PeerSettings;
use ringlane_shared::id::{Generation, PeerId, PeerIndex};
use ringlane_shared::identity::{builtin_ipv4, builtin_ipv6};
use ringlane_shared::plane::{PeerCounters, PeerEntry, Snapshot};
use ringlane_shared::route::RouteTable;

/// What of a peer does not change with its lanes.
struct Fixed {
    id: PeerId,
    sources: Arc<RouteTable<()>>,
    counters: Arc<[PeerCounters]>,
}

/// Numbers and builds snapshots. Owner: the coordinator.
pub struct Publisher {
    routes: Arc<RouteTable<PeerIndex>>,
    peers: Vec<Fixed>,
    published: Vec<u64>,
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

    /// Builds the next generation; `workers_with_lane` has one bit mask per peer.
    pub(super) fn publish(&mut self, workers_with_lane: &[u64]) -> Arc<Snapshot> {
        self.generation.0 += 1;
        self.published = workers_with_lane.to_vec();
        let peers = self.peers.iter().zip(workers_with_lane).map(|(peer, &workers_with_lane)| PeerEntry {
            id: peer.id,
            sources: Arc::clone(&peer.sources),
            workers_with_lane,
            stream: None,
            counters: Arc::clone(&peer.counters),
        });
        Arc::new(Snapshot { generation: self.generation, routes: Arc::clone(&self.routes), peers: peers.collect() })
    }

    /// Whether the newest generation says the same of all peers' lanes.
    pub(super) fn is_current(&self, workers_with_lane: impl Iterator<Item = u64>) -> bool {
        workers_with_lane.eq(self.published.iter().copied())
    }

    pub(super) fn generation(&self) -> Generation {
        self.generation
    }

    pub(super) fn counters(&self, peer: PeerIndex) -> &[PeerCounters] {
        self.peers.get(peer.position()).map_or(&[], |peer| &peer.counters)
    }
}
