//! Fills the structs that the admin socket answers with from what the control loop knows.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Instant, UNIX_EPOCH};

use ipnet::IpNet;
use ringlane_shared::config::{PeerSettings, Settings};
use ringlane_shared::drop_reason::DropReason;
use ringlane_shared::id::{PeerId, PeerIndex};
use ringlane_shared::identity::{builtin_ipv4, builtin_ipv6};
use ringlane_shared::limits::{
    FRAME_HEADER_BYTES_MIN, QUIC_OVERHEAD_BYTES, RECORD_OVERHEAD_BYTES, STREAM_PACKET_BYTES_MAX,
};
use ringlane_shared::path::relay::RelayLoad;
use ringlane_shared::plane::{CarrierChoice, LaneCarrier, StreamForm, WorkerCounters};

use crate::admin::discovery::DiscoveryStatus;
use crate::admin::nat::NatStatus;
use crate::admin::obstacle::ObstacleStatus;
use crate::admin::relay::{CircuitStatus, LoadStatus, RelayNode, RelayPeer, RelayStatus, RelayedPeer};
use crate::admin::status::{
    AddressStatus, Carrier, ConnectionStatus, Direction, Drops, LaneState, LaneStatus, MovementStatus, NodeInfo,
    NodeStatus, PeerState, PeerStatus, RoutePeer, RouteStatus, StreamStatus, TunStatus, WorkerStatus, sum_drops,
};
use crate::admin::udp_relay::{AllotmentStatus, ForwardingStatus};
use crate::admin::underlay::UnderlayStatus;
use crate::coordinator::publisher::builtin_prefixes;
use crate::coordinator::{Coordinator, LaneUp};
use crate::exchange::ExchangeCounters;
use crate::lanes::{LaneEngine, ListenerDrops, MovementCounters};
use crate::netlink::TransmitQueue;
use crate::packets::{Packets, StreamInfo};
use crate::portmap::PortMapper;
use crate::routes::Origin;
use crate::runtime::Routing;
use crate::services::ServiceNetwork;
use crate::swarm::{ConnectionInfo, LearntAddress, Node, Quality};
use crate::udp_relay::loads::Loads;

/// Everything a report is made from.
pub(crate) struct Reporter<'a, T> {
    pub(crate) settings: &'a Settings,
    pub(crate) id: PeerId,
    pub(crate) version: &'a str,
    pub(crate) started: Instant,
    pub(crate) coordinator: &'a Coordinator<T>,
    pub(crate) node: &'a Node,
    pub(crate) packets: &'a Packets,
    pub(crate) engine: &'a LaneEngine,
    pub(crate) movement: MovementCounters,
    pub(crate) nat: NatStatus,
    pub(crate) exchange: ExchangeCounters,
    pub(crate) listener_drops: &'a ListenerDrops,
    pub(crate) workers: &'a [Arc<WorkerCounters>],
    pub(crate) services: &'a ServiceNetwork,
    /// The prefixes the kernel routes into the tunnel.
    pub(crate) installed: &'a [IpNet],
    pub(crate) routing: &'a Routing,
    pub(crate) offers_refused: u64,
    pub(crate) portmap: Option<&'a PortMapper>,
    pub(crate) loads: &'a Loads,
    pub(crate) own_load: RelayLoad,
    /// What keeps each peer from being reached by lanes from node to node.
    pub(crate) obstacles: Vec<Option<ObstacleStatus>>,
}

fn movement_status(counters: MovementCounters) -> MovementStatus {
    let MovementCounters { passed_on, ignored, paths_seen, paths_refused, paths_tried } = counters;
    MovementStatus { records_passed_on: passed_on, records_ignored: ignored, paths_seen, paths_refused, paths_tried }
}

/// Those that occurred.
fn listener_drops(drops: &ListenerDrops) -> Drops {
    let occurred = drops.iter().filter(|(_, count)| *count > 0);
    occurred.map(|(reason, count)| (reason.name().to_owned(), count)).collect()
}

fn address_status(learnt: LearntAddress) -> AddressStatus {
    let since = learnt.last_success.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    AddressStatus {
        address: learnt.address.to_string(),
        source: learnt.source.to_owned(),
        last_success_unix_s: since.map(|since| since.as_secs()),
    }
}

impl<T> Reporter<'_, T> {
    /// The answer to `status`; `queue` is the TUN interface's, if the kernel told us.
    pub(crate) fn node(&self, queue: Option<TransmitQueue>) -> NodeStatus {
        let workers = self.workers;
        NodeStatus {
            version: self.version.to_owned(),
            node: NodeInfo {
                id: self.id.to_string(),
                addresses: builtin_addresses(&self.id),
                interface: self.settings.interface.clone(),
                mtu_bytes: self.settings.dataplane.mtu,
                workers: workers.len() as u8,
                uptime_s: self.started.elapsed().as_secs(),
                listen: self.node.listen_addresses().map(ToString::to_string).collect(),
                generation: self.coordinator.generation(),
            },
            tun: TunStatus {
                queue_packets: queue.map(|queue| queue.packets),
                dropped: queue.map(|queue| queue.dropped),
            },
            movement: movement_status(self.movement),
            nat: self.nat.clone(),
            gate: self.gate(),
            discovery: DiscoveryStatus::new(self.node.mdns_counters(), self.exchange),
            mappings: self.portmap.map(PortMapper::status).unwrap_or_default(),
            relay: self.relay(),
            underlay: UnderlayStatus::new(&self.settings.control.web, self.node.lan()),
            peers: self.peers().map(|(index, peer)| self.peer(index, peer)).collect(),
            drops: sum_drops(workers.iter().map(|worker| &worker.drops)),
            listener_drops: listener_drops(self.listener_drops),
            workers: workers.iter().zip(0..).map(|(worker, id)| WorkerStatus::new(id, worker)).collect(),
            services: self.services.status(&self.id),
        }
    }

    /// The answer to `peers`.
    pub(crate) fn connections(&self) -> Vec<ConnectionStatus> {
        self.node.all_connections().map(|connection| self.connection(connection)).collect()
    }

    /// The answer to `route show`.
    pub(crate) fn routes(&self) -> Vec<RouteStatus> {
        let route = |prefix: IpNet, index: PeerIndex, peer: &PeerSettings| RouteStatus {
            prefix,
            peer: RoutePeer { name: peer.name.clone(), id: peer.id.to_string() },
            builtin: true,
            installed: true,
            carrier: self.carrier(index),
            metric: 0,
            active: true,
            added: false,
            withdrawn: false,
        };
        let mut routes = Vec::new();
        for (index, peer) in self.peers() {
            for prefix in builtin_prefixes(&peer.id) {
                routes.push(RouteStatus { installed: self.installed.contains(&prefix), ..route(prefix, index, peer) });
            }
        }
        for offer in self.routing.book.offers() {
            let Some(peer) = self.settings.peers.get(offer.router.peer.position()) else { continue };
            routes.push(RouteStatus {
                builtin: false,
                installed: self.routing.is_installed(offer.prefix),
                metric: offer.router.metric,
                active: offer.active,
                added: offer.router.origin == Origin::Added,
                withdrawn: offer.withdrawn,
                ..route(offer.prefix, offer.router.peer, peer)
            });
        }
        // The kernel knows a prefix, not whose it is; the one that packets take comes first.
        routes.sort_by_key(|route| (route.prefix.addr().is_ipv6(), route.prefix, !route.active, route.metric));
        routes
    }

    fn networks_of(&self, peer: PeerIndex) -> Vec<IpNet> {
        let offers = self.routing.book.offers().filter(|offer| offer.router.peer == peer);
        offers.map(|offer| offer.prefix).collect()
    }

    fn gate(&self) -> Drops {
        let offers = (self.offers_refused > 0).then(|| ("offer_rate".to_owned(), self.offers_refused));
        self.node.refused().into_iter().chain(offers).collect()
    }

    fn peers(&self) -> impl Iterator<Item = (PeerIndex, &PeerSettings)> {
        self.settings.peers.iter().zip(0..).map(|(peer, index)| (PeerIndex(index), peer))
    }

    fn carrier(&self, peer: PeerIndex) -> Option<Carrier> {
        let link = self.coordinator.link(peer)?;
        if !link.carries() {
            return link.stream().map(|_| Carrier::Stream);
        }
        // As long as one lane takes records, that is how most packets go.
        let by_quic = link.lanes().all(|(_, lane)| carrier_of(lane) == Carrier::Quic);
        Some(if by_quic { Carrier::Quic } else { Carrier::Lane })
    }

    fn peer(&self, index: PeerIndex, peer: &PeerSettings) -> PeerStatus {
        let link = self.coordinator.link(index);
        let lanes = link.iter().flat_map(|link| link.lanes());
        let lanes =
            lanes.map(|(index, lane)| LaneStatus { relay: self.relay_of(lane), ..lane_status(index.get(), lane) });
        let lanes: Vec<LaneStatus> = lanes.collect();
        let carrier = self.carrier(index);
        let state = match (carrier, link.is_some_and(|link| link.is_connected())) {
            (Some(Carrier::Stream), _) if self.is_relayed(index, &peer.id) => PeerState::Relayed,
            (Some(Carrier::Lane | Carrier::Quic), _) if lanes.iter().all(|lane| lane.relay.is_some()) => {
                PeerState::Relayed
            }
            (Some(_), _) => PeerState::Direct,
            (None, true) => PeerState::Connecting,
            (None, false) => PeerState::Offline,
        };
        let unconnected = self.node.problem(&peer.id).filter(|_| carrier.is_none());
        let of_stream = self.packets.problem(index).filter(|_| carrier == Some(Carrier::Stream));
        // What lanes lack is no problem where there are to be none.
        let of_lanes = link.and_then(|link| link.problem()).filter(|_| !self.is_stream_only(index, peer));
        let last_handshake = link.and_then(|link| link.last_handshake_at());
        let mut status = PeerStatus {
            name: peer.name.clone(),
            id: peer.id.to_string(),
            addresses: builtin_addresses(&peer.id),
            routes: self.networks_of(index),
            state,
            carrier,
            problem: unconnected.or(of_stream).or(of_lanes).map(str::to_owned),
            obstacle: self.obstacles.get(index.position()).cloned().flatten(),
            known_addresses: self.node.learnt_addresses(&peer.id).into_iter().map(address_status).collect(),
            rtt_us: lanes.iter().filter_map(|lane| lane.rtt_us).min(),
            mtu_bytes: carrier.map(|carrier| match (carrier, link.and_then(|link| link.stream())) {
                (Carrier::Stream, Some(form)) => stream_mtu(self.settings.dataplane.mtu, form),
                _ => self.inner_mtu(&lanes),
            }),
            lanes,
            streams: self.packets.streams(index).iter().map(stream_status).collect(),
            packets_sent: 0,
            packets_received: 0,
            bytes_sent: 0,
            bytes_received: 0,
            records_sent: 0,
            records_received: 0,
            quic_datagrams_sent: 0,
            quic_datagrams_received: 0,
            stream_packets_sent: 0,
            stream_packets_received: 0,
            last_handshake_unix_s: last_handshake
                .and_then(|at| at.duration_since(UNIX_EPOCH).ok())
                .map(|since| since.as_secs()),
            drops: Default::default(),
        };
        status.set_traffic(self.coordinator.counters(index));
        let dropped = self.packets.drops(index).filter(|(_, count)| *count > 0);
        status.drops.extend(dropped.map(|(reason, count)| (reason.name().to_owned(), count)));
        status
    }

    /// Whether a relay passes on what travels by stream, or would.
    fn is_relayed(&self, index: PeerIndex, peer: &PeerId) -> bool {
        let used = self.packets.quality(index).map(|quality| quality == Quality::Relayed);
        used.unwrap_or_else(|| self.node.best_connection(peer).is_some_and(|connection| connection.relayed))
    }

    fn is_stream_only(&self, index: PeerIndex, peer: &PeerSettings) -> bool {
        peer.carrier.unwrap_or(self.settings.dataplane.carrier) == CarrierChoice::Stream
            || self.coordinator.link(index).and_then(|link| link.stream()) == Some(StreamForm::Whole)
    }

    fn inner_mtu(&self, lanes: &[LaneStatus]) -> u16 {
        inner_mtu(self.settings.dataplane.mtu, self.settings.dataplane.fragments, lanes)
    }

    pub(crate) fn relay(&self) -> RelayStatus {
        let report = self.node.relay_report();
        let relayed = self.settings.peers.iter().filter_map(|peer| {
            let best = self.node.best_connection(&peer.id).filter(|best| best.relayed)?;
            Some(RelayedPeer {
                node: self.relay_node(&peer.id),
                relay: best.relay.map(|relay| self.relay_node(&relay)),
            })
        });
        let load_of = |relay: &PeerId| self.loads.of(self.coordinator.index_of(relay)?);
        let loads: Vec<_> = report.offering.iter().map(load_of).collect();
        let relays = report.offering.iter().zip(&loads).map(|(relay, load)| RelayPeer {
            node: self.relay_node(relay),
            reserved: report.reserved_at.contains(relay),
            load: load.map(LoadStatus::from),
        });
        let circuits = report.circuits.iter().map(|circuit| CircuitStatus {
            source: self.relay_node(&circuit.source),
            target: self.relay_node(&circuit.target),
            bytes_from_source: circuit.bytes_from_source,
            bytes_from_target: circuit.bytes_from_target,
            age_s: circuit.since.elapsed().as_secs(),
        });
        RelayStatus {
            serves: report.serves,
            public: report.is_public,
            load: report.serves.then(|| self.own_load.into()),
            relays: relays.collect(),
            problem: relays_problem(&loads).map(str::to_owned),
            relayed: relayed.collect(),
            reservations: report.reserved_here.iter().map(|peer| self.relay_node(peer)).collect(),
            circuits: circuits.collect(),
            reservations_given: report.counters.reservations,
            circuits_ended: report.counters.circuits,
            circuit_bytes: report.counters.bytes,
            requests_refused: report.counters.refused,
            forwarding: self.forwarding(),
        }
    }

    /// Who forwards a lane, if anybody does.
    fn relay_of(&self, lane: &LaneUp) -> Option<String> {
        let relay = self.settings.peers.get(self.engine.relay_of(lane.local)?.position())?;
        Some(if relay.name.is_empty() { relay.id.to_string() } else { relay.name.clone() })
    }

    fn forwarding(&self) -> ForwardingStatus {
        let book = self.engine.relayed_for_others();
        let node = |peer: PeerIndex| {
            self.settings.peers.get(peer.position()).map(|peer| self.relay_node(&peer.id)).unwrap_or_default()
        };
        let allotments = book.allotments().map(|allotment| {
            let [source, target] = allotment.peers.map(node);
            AllotmentStatus { source, target, lanes: allotment.lanes, open: allotment.open }
        });
        let counters = book.counters();
        let sum = |figure: fn(&WorkerCounters) -> u64| self.workers.iter().map(|worker| figure(worker)).sum();
        ForwardingStatus {
            allotments: allotments.collect(),
            allotments_given: counters.allotted,
            allotments_refused: counters.refused,
            lanes_begun: counters.forwards,
            ends_moved: counters.moves,
            datagrams: sum(|worker| worker.forwarded.datagrams.get()),
            bytes: sum(|worker| worker.forwarded.bytes.get()),
            datagrams_over_rate: sum(|worker| worker.drops.get(DropReason::ForwardRate)),
        }
    }

    fn relay_node(&self, id: &PeerId) -> RelayNode {
        RelayNode::of(&self.settings.peers, id)
    }

    fn connection(&self, connection: &ConnectionInfo) -> ConnectionStatus {
        let name = self.settings.peers.iter().find(|peer| peer.id == connection.peer).map(|peer| peer.name.clone());
        let transport = match connection.transport {
            _ if connection.relayed => "relay",
            Some(transport) => transport.name(),
            None => "unknown",
        };
        ConnectionStatus {
            id: connection.peer.to_string(),
            name: name.unwrap_or_default(),
            remote: connection.remote.to_string(),
            direction: match connection.direction {
                crate::swarm::Direction::Inbound => Direction::Inbound,
                crate::swarm::Direction::Outbound => Direction::Outbound,
            },
            transport: transport.to_owned(),
            rtt_us: connection.rtt.map(|rtt| rtt.as_micros() as u64),
            age_s: connection.established.elapsed().as_secs(),
        }
    }
}

/// Why relays take nothing new, if all say so.
fn relays_problem(loads: &[Option<RelayLoad>]) -> Option<&'static str> {
    let all_are = |is_full: fn(&RelayLoad) -> bool| {
        !loads.is_empty() && loads.iter().all(|load| load.as_ref().is_some_and(is_full))
    };
    match (all_are(|load| load.lanes.is_full()), all_are(|load| load.circuits.is_full())) {
        (true, true) => Some("all relays are full"),
        (true, false) => Some("all relays are full of lanes"),
        (false, true) => Some("all relays are full of circuits"),
        (false, false) => None,
    }
}

/// The largest inner packet that gets through by all lanes. With fragments it is any that the interface, whose MTU is
/// `mtu`, gives us; without, what travels whole, as far as path MTU discovery has spoken.
fn inner_mtu(mtu: u16, fragments: bool, lanes: &[LaneStatus]) -> u16 {
    let whole = |lane: &LaneStatus| {
        let overhead = match lane.carrier {
            Carrier::Quic => QUIC_OVERHEAD_BYTES,
            Carrier::Lane | Carrier::Stream => RECORD_OVERHEAD_BYTES,
        };
        Some(lane.mtu_bytes?.saturating_sub((overhead + FRAME_HEADER_BYTES_MIN) as u16))
    };
    let smallest = if fragments { None } else { lanes.iter().filter_map(whole).min() };
    smallest.map_or(mtu, |smallest| smallest.min(mtu))
}

/// The largest inner packet that a stream takes.
fn stream_mtu(mtu: u16, form: StreamForm) -> u16 {
    match form {
        StreamForm::Whole => mtu.min(STREAM_PACKET_BYTES_MAX as u16),
        StreamForm::Offloaded => mtu,
    }
}

fn builtin_addresses(peer: &PeerId) -> Vec<IpAddr> {
    vec![builtin_ipv4(peer).into(), builtin_ipv6(peer).into()]
}

fn carrier_of(lane: &LaneUp) -> Carrier {
    match lane.gauges.carrier() {
        LaneCarrier::Records => Carrier::Lane,
        LaneCarrier::Quic => Carrier::Quic,
    }
}

fn lane_status(index: u8, lane: &LaneUp) -> LaneStatus {
    let (rtt_us, mtu_bytes) = (lane.gauges.rtt_us(), lane.gauges.mtu_bytes());
    LaneStatus {
        index,
        worker: lane.worker.0,
        local: lane.local,
        remote: lane.remote,
        rtt_us: (rtt_us > 0).then_some(rtt_us),
        loss_percent: lane.gauges.loss().percent(),
        relay: None,
        mtu_bytes: (mtu_bytes > 0).then_some(mtu_bytes),
        state: if lane.gauges.is_silent() { LaneState::Silent } else { LaneState::Up },
        carrier: carrier_of(lane),
        cipher: lane.gauges.suite().map(|suite| suite.name().to_owned()),
        epoch: lane.gauges.epoch(),
        rekeys: lane.gauges.rekeys.get(),
        rekeys_failed: lane.gauges.rekeys_failed.get(),
        moves: lane.gauges.moves.get(),
        echoes_sent: lane.gauges.echoes_sent.get(),
        echoes_answered: lane.gauges.echoes_answered.get(),
        age_s: lane.since.elapsed().as_secs(),
    }
}

fn stream_status(stream: &StreamInfo) -> StreamStatus {
    StreamStatus {
        protocol: stream.protocol.name().to_owned(),
        direction: match stream.direction {
            crate::swarm::Direction::Inbound => Direction::Inbound,
            crate::swarm::Direction::Outbound => Direction::Outbound,
        },
        is_sending: stream.is_sending,
        bytes_sent: stream.bytes_sent,
        bytes_received: stream.bytes_received,
    }
}

#[cfg(test)]
mod tests {
    use ringlane_shared::id::{LaneSerial, WorkerId};

    use super::*;
    use crate::lanes::ListenerDrop;

    fn lane(mtu_bytes: Option<u16>, carrier: Carrier) -> LaneStatus {
        let address = ([192, 0, 2, 1], 8100).into();
        let lane = LaneUp {
            serial: LaneSerial(0),
            worker: WorkerId(0),
            local: address,
            remote: address,
            since: Instant::now(),
            handshake_at: UNIX_EPOCH,
            gauges: Arc::default(),
        };
        LaneStatus { mtu_bytes, carrier, ..lane_status(0, &lane) }
    }

    #[test]
    fn the_mtu_to_a_peer_is_the_interfaces_with_fragments_and_what_travels_whole_without() {
        let [record, quic] = [Carrier::Lane, Carrier::Quic].map(|carrier| move |bytes| lane(Some(bytes), carrier));
        let unknown = lane(None, Carrier::Lane);
        let cases = [
            (vec![], 1420),
            (vec![unknown.clone()], 1420),
            (vec![record(1472)], 1420),
            (vec![record(1400), unknown], 1371),
            (vec![quic(1400)], 1361),
            (vec![record(1390), quic(1400)], 1361),
            (vec![record(1389), quic(1400)], 1360),
            (vec![record(7)], 0),
        ];
        for (lanes, without) in cases {
            assert_eq!(inner_mtu(1420, false, &lanes), without, "{lanes:?}");
            assert_eq!(inner_mtu(1420, true, &lanes), 1420, "{lanes:?}");
        }
    }

    #[test]
    fn of_the_listeners_drops_those_are_told_that_occurred() {
        let mut drops = ListenerDrops::default();
        assert!(listener_drops(&drops).is_empty());
        drops.count(ListenerDrop::Late);
        drops.count(ListenerDrop::Late);
        assert_eq!(listener_drops(&drops), Drops::from([("late".to_owned(), 2)]));
    }
}
