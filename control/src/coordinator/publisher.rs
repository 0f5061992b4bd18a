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
    sources: Arc<RouteTable<bool>>,
    counters: Arc<[PeerCounters]>,
}

/// By what packets reach a peer: what of it changes while the node runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Reach {
    /// Bit w is set while worker w owns a lane that others may send by way of.
    pub(super) workers_with_lane: u64,
    /// What its stream takes, while it has one.
    pub(super) stream: Option<StreamForm>,
    /// Bit w is set while packets of worker w, which owns a lane, are to go elsewhere: no lane of its has an answer.
    pub(super) avoided: u64,
}

/// Numbers and builds snapshots. Owner: the coordinator.
pub struct Publisher {
    us: PeerId,
    routes: Arc<RouteTable<PeerIndex>>,
    has_services: bool,
    peers: Vec<Fixed>,
    published: Vec<Reach>,
    generation: Generation,
}

/// A peer's own two addresses, as prefixes.
pub fn builtin_prefixes(peer: &PeerId) -> [IpNet; 2] {
    [IpNet::from(std::net::IpAddr::from(builtin_ipv4(peer))), IpNet::from(std::net::IpAddr::from(builtin_ipv6(peer)))]
}

impl Publisher {
    pub(super) fn new(us: &PeerId, peers: &[PeerSettings], workers: u8) -> Self {
        let fixed = peers.iter().map(|peer| Fixed {
            id: peer.id,
            sources: Arc::default(),
            counters: (0..workers).map(|_| PeerCounters::default()).collect(),
        });
        let mut publisher = Self {
            us: *us,
            routes: Arc::default(),
            has_services: false,
            peers: fixed.collect(),
            published: Vec::new(),
            generation: Generation::default(),
        };
        let configured = peers.iter().zip(0..);
        let configured =
            configured.flat_map(|(peer, index)| peer.routes.iter().map(move |r| (r.net, PeerIndex(index))));
        let configured: Vec<_> = configured.collect();
        publisher.set_routes(&configured, &configured);
        publisher
    }

    /// Sets the networks behind peers. Packets to one of `active` go to its peer; a peer may send from all that it has
    /// of `offered`, whether it carries them at the moment or not: the way there need not be the way back.
    pub(super) fn set_routes(&mut self, active: &[(IpNet, PeerIndex)], offered: &[(IpNet, PeerIndex)]) {
        let mut routes = RouteTable::default();
        let mut sources: Vec<RouteTable<bool>> = self.peers.iter().map(|_| RouteTable::default()).collect();
        for ((peer, sources), index) in self.peers.iter().zip(&mut sources).zip(0..) {
            for prefix in builtin_prefixes(&peer.id) {
                routes.insert(prefix, PeerIndex(index));
                sources.insert(prefix, true);
            }
        }
        for (prefix, peer) in active {
            routes.insert(*prefix, *peer);
        }
        for (prefix, peer) in offered {
            if let Some(sources) = sources.get_mut(peer.position()) {
                sources.insert(*prefix, true);
            }
        }
        // A wide network, the default route above all, is not a leave to speak for others or for services.
        let nodes = self.peers.iter().map(|peer| &peer.id).chain([&self.us]);
        let builtins: Vec<_> = nodes.flat_map(builtin_prefixes).collect();
        for (peer, sources) in self.peers.iter().zip(&mut sources) {
            let own = builtin_prefixes(&peer.id);
            for prefix in builtins.iter().copied().chain([IpNet::V6(service_network())]) {
                if !own.contains(&prefix) && sources.lookup(prefix.addr()).is_some() {
                    sources.insert(prefix, false);
                }
            }
        }
        if self.has_services {
            routes.insert(IpNet::V6(service_network()), PeerIndex::SERVICES);
        }
        self.routes = Arc::new(routes);
        for (peer, sources) in self.peers.iter_mut().zip(sources) {
            peer.sources = Arc::new(sources);
        }
    }

    /// Has the service network's addresses lead to it, or nowhere, from the next generation on. Returns whether that is
    /// news.
    pub(super) fn set_services(&mut self, has_services: bool) -> bool {
        self.has_services = has_services;
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
            avoided: reach.avoided,
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

#[cfg(test)]
mod tests {
    use ringlane_shared::config::RouteSettings;

    use super::*;

    #[test]
    fn who_may_send_from_everywhere_may_not_speak_for_other_peers_or_for_services() {
        let peer = |routes: &[&str]| PeerSettings {
            name: String::new(),
            id: libp2p::identity::Keypair::generate_ed25519().public().to_peer_id(),
            addresses: Vec::new(),
            routes: routes.iter().map(|net| RouteSettings::from(net.parse::<IpNet>().unwrap())).collect(),
            carrier: None,
        };
        let (us, peers) = (peer(&[]).id, [peer(&["0.0.0.0/0", "::/0"]), peer(&[])]);
        let mut publisher = Publisher::new(&us, &peers, 1);
        let snapshot = publisher.publish(vec![Reach { workers_with_lane: 0, stream: None, avoided: 0 }; 2]);
        let admits = |peer: usize, source: std::net::IpAddr| snapshot.peers[peer].admits_source(source);
        assert!(admits(0, "192.0.2.1".parse().unwrap()) && admits(0, "2001:db8::1".parse().unwrap()));
        assert!(!admits(0, service_network().addr().into()) && !admits(1, service_network().addr().into()));
        for builtin in [0, 1].map(|of| builtin_prefixes(&peers[of].id)).iter().flatten() {
            let is_own = builtin_prefixes(&peers[0].id).contains(builtin);
            assert_eq!((admits(0, builtin.addr()), admits(1, builtin.addr())), (is_own, !is_own), "{builtin}");
        }
        assert!(builtin_prefixes(&us).iter().all(|ours| !admits(0, ours.addr())));
    }

    #[test]
    fn packets_go_to_the_active_router_and_come_from_any() {
        let ten = RouteSettings::from("10.0.0.0/8".parse::<IpNet>().unwrap());
        let peer = |_| PeerSettings {
            name: String::new(),
            id: libp2p::identity::Keypair::generate_ed25519().public().to_peer_id(),
            addresses: Vec::new(),
            routes: vec![ten],
            carrier: None,
        };
        let us = peer(0).id;
        let peers: Vec<_> = (0..3).map(peer).collect();
        let mut publisher = Publisher::new(&us, &peers, 1);
        let [one, two] = [PeerIndex(1), PeerIndex(2)];
        let unreached = || vec![Reach { workers_with_lane: 0, stream: None, avoided: 0 }; 3];
        assert!(publisher.set_services(true));
        publisher.set_routes(&[(ten.net, two)], &[(ten.net, one), (ten.net, two)]);
        let snapshot = publisher.publish(unreached());
        assert_eq!(snapshot.routes.lookup(service_network().addr().into()), Some(&PeerIndex::SERVICES));
        let address = "10.1.2.3".parse().unwrap();
        assert_eq!(snapshot.routes.lookup(address), Some(&two));
        let may_send: Vec<bool> = snapshot.peers.iter().map(|peer| peer.sources.lookup(address).is_some()).collect();
        assert_eq!(may_send, [false, true, true]);
        for (peer, index) in peers.iter().zip(0..) {
            for builtin in builtin_prefixes(&peer.id) {
                assert_eq!(snapshot.routes.lookup(builtin.addr()), Some(&PeerIndex(index)));
            }
        }
    }
}
