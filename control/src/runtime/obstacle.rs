//! What the loop knows of why a peer is not reached by lanes from node to node.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ringlane_shared::config::{PeerSettings, Scope};
use ringlane_shared::id::{PeerId, PeerIndex};
use ringlane_shared::plane::CarrierChoice;
use ringlane_shared::wire::offer::Offer;

use super::Control;
use crate::admin::nat::HostStatus;
use crate::admin::obstacle::ObstacleStatus;
use crate::netcheck::ways_out;
use crate::obstacle::{Detour, End, Facts, StreamOnly, obstacle};
use crate::swarm::PeerKind;

/// What peers' offers tell of their ends, and when each lost a lane. At most one of each for a configured peer.
#[derive(Default)]
pub(super) struct Ends {
    offered: BTreeMap<PeerIndex, End>,
    lost: BTreeMap<PeerIndex, Instant>,
}

impl Ends {
    pub(super) fn handle_offer(&mut self, peer: PeerIndex, offer: &Offer) {
        self.offered.insert(peer, End::of_offer(offer));
    }

    pub(super) fn handle_lane_ended(&mut self, peer: PeerIndex, now: Instant) {
        self.lost.insert(peer, now);
    }
}

impl Control {
    /// What keeps each peer from being reached by lanes from node to node, in the configuration's order.
    pub(super) fn obstacles(&self, hosts: &[HostStatus], now: Instant) -> Vec<Option<ObstacleStatus>> {
        let here = End::here(hosts, self.reaches_out());
        let peers = self.settings.peers.iter().zip(0..);
        peers.map(|(peer, index)| self.obstacle(PeerIndex(index), peer, here, now)).collect()
    }

    /// What keeps one peer from being reached so.
    pub(super) fn obstacle_to(&self, index: PeerIndex, now: Instant) -> Option<ObstacleStatus> {
        let peer = self.settings.peers.get(index.position())?;
        self.obstacle(index, peer, End::here(&self.nat_status().hosts, self.reaches_out()), now)
    }

    fn reaches_out(&self) -> [bool; 2] {
        ways_out(self.engine.local_ips()).map(|way| way.is_some())
    }

    fn obstacle(&self, index: PeerIndex, peer: &PeerSettings, here: End, now: Instant) -> Option<ObstacleStatus> {
        let link = self.coordinator.link(index)?;
        let carries = link.carries();
        let relays: Vec<Option<PeerIndex>> = link.lanes().map(|(_, lane)| self.engine.relay_of(lane.local)).collect();
        if carries && relays.contains(&None) {
            return None;
        }
        let forwards = relays.into_iter().flatten().next().filter(|_| carries);
        let mut connections = self.node.connections(&peer.id);
        let first = connections.next();
        let connected = connections.chain(first).map(|connection| connection.established).min();
        let since = connected.into_iter().chain(self.ends.lost.get(&index).copied()).max();
        let facts = Facts {
            here,
            there: self.ends.offered.get(&index).copied(),
            stream_only: self.stream_only_reason(peer),
            is_connected: connected.is_some(),
            since: since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since)),
            is_lan_only: self.settings.control.web.scope == Scope::Lan,
            punches: self.settings.nat.punch,
            problem: self.node.problem(&peer.id).filter(|_| connected.is_none()).or(link.problem()),
            detour: match forwards.and_then(|relay| self.settings.peers.get(relay.position())) {
                Some(relay) => Detour::RelayedLanes { relay: self.name_or_id(&relay.id) },
                None => self.detour(index, peer),
            },
        };
        Some(obstacle(&facts))
    }

    fn stream_only_reason(&self, peer: &PeerSettings) -> Option<StreamOnly> {
        if peer.carrier.unwrap_or(self.settings.dataplane.carrier) == CarrierChoice::Stream {
            return Some(StreamOnly::Configured);
        }
        (self.node.kind(&peer.id) == Some(PeerKind::Hyprspace)).then_some(StreamOnly::Hyprspace)
    }

    /// How packets go that no lane takes.
    fn detour(&self, index: PeerIndex, peer: &PeerSettings) -> Detour {
        let has_stream = self.coordinator.link(index).is_some_and(|link| link.stream().is_some());
        let way = self.node.packet_way(&peer.id).filter(|_| has_stream);
        let taken = way.and_then(|way| self.node.connections(&peer.id).find(|known| known.id == way.connection));
        let Some(taken) = taken else { return Detour::Nothing };
        let transport = taken.transport.map(|transport| transport.name());
        if !taken.relayed {
            return Detour::Stream { transport: transport.unwrap_or("an unknown transport") };
        }
        let relay = taken.relay.map(|relay| self.name_or_id(&relay));
        Detour::RelayedStream { transport, relay }
    }

    fn name_or_id(&self, id: &PeerId) -> String {
        let known = self.settings.peers.iter().find(|peer| peer.id == *id && !peer.name.is_empty());
        known.map_or_else(|| id.to_string(), |peer| peer.name.clone())
    }
}
