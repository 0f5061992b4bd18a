//! The immutable tables that control publishes and workers route by.

use std::net::IpAddr;
use std::sync::Arc;

use super::batch::StreamForm;
use super::counters::PeerCounters;
use crate::id::{Generation, PeerId, PeerIndex, WorkerId};
use crate::route::RouteTable;

/// One generation of everything a worker needs to know about peers and routes.
///
/// Built by control, shared by all workers, never changed; a new one replaces it whole.
#[derive(Debug)]
pub struct Snapshot {
    /// Its number.
    pub generation: Generation,
    /// Inner destination to peer.
    pub routes: Arc<RouteTable<PeerIndex>>,
    /// One entry per configured peer, at the position of its [`PeerIndex`].
    pub peers: Vec<PeerEntry>,
}

impl Snapshot {
    /// The tables before control has published any: no peer, no route.
    pub fn empty() -> Self {
        Self { generation: Generation::default(), routes: Arc::default(), peers: Vec::new() }
    }

    /// The entry of a peer.
    pub fn peer(&self, peer: PeerIndex) -> Option<&PeerEntry> {
        self.peers.get(peer.position())
    }
}

/// What a worker knows about one peer.
#[derive(Debug)]
pub struct PeerEntry {
    /// Its name in logs.
    pub id: PeerId,
    /// The inner source addresses it may use: its built-in addresses and the networks behind it. `false` are those of
    /// others that lie within these.
    pub sources: Arc<RouteTable<bool>>,
    /// Bit w is set while worker w owns a lane to this peer that others may send by.
    pub workers_with_lane: u64,
    /// What the peer's stream takes while packets can reach it by the carrier `stream`; used while no worker owns a lane.
    pub stream: Option<StreamForm>,
    /// Bit w is set while no lane that worker w owns to this peer has an answer, and another worker's lane, or the stream, has:
    /// its packets go there.
    pub avoided: u64,
    /// One set of counters per worker, at the position of its [`WorkerId`]; lives as long as the process.
    pub counters: Arc<[PeerCounters]>,
}

impl PeerEntry {
    /// Whether the peer may send from this inner address.
    pub fn admits_source(&self, source: IpAddr) -> bool {
        self.sources.lookup(source) == Some(&true)
    }

    /// The worker that carries a flow for `worker`, which has no lane to this peer itself: always the same one for
    /// the same flow hash while the set of workers with a lane stays the same, so that the flow keeps its order.
    pub fn stand_in(&self, flow_hash: u32) -> Option<WorkerId> {
        let count = self.workers_with_lane.count_ones();
        if count == 0 {
            return None;
        }
        let mut remaining = self.workers_with_lane;
        for _ in 0..flow_hash % count {
            remaining &= remaining - 1;
        }
        Some(WorkerId(remaining.trailing_zeros() as u8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(workers_with_lane: u64) -> PeerEntry {
        let mut sources = RouteTable::default();
        sources.insert("100.64.1.2/32".parse().unwrap(), true);
        sources.insert("10.20.0.0/16".parse().unwrap(), true);
        PeerEntry {
            id: PeerId::random(),
            sources: Arc::new(sources),
            workers_with_lane,
            stream: None,
            avoided: 0,
            counters: Arc::new([]),
        }
    }

    #[test]
    fn a_stand_in_has_a_lane_and_all_of_them_serve() {
        let mut seen = 0u64;
        for flow_hash in 0..100 {
            seen |= 1 << peer(0b1000_0000_0010_0100).stand_in(flow_hash).unwrap().0;
        }
        assert_eq!(seen, 0b1000_0000_0010_0100);
        assert_eq!(peer(0).stand_in(7), None);
        assert_eq!(peer(1 << 63).stand_in(u32::MAX), Some(WorkerId(63)));
    }

    #[test]
    fn only_its_own_networks_are_admitted() {
        let peer = peer(0);
        assert!(peer.admits_source("10.20.255.1".parse().unwrap()));
        assert!(peer.admits_source("100.64.1.2".parse().unwrap()));
        for stranger in ["10.21.0.0", "100.64.1.3", "::ffff:10.20.0.1", "::"] {
            assert!(!peer.admits_source(stranger.parse().unwrap()), "{stranger}");
        }
    }
}
