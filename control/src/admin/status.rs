//! What the admin socket answers and `--json` prints: the stable schema, documented for users in `docs/cli.md`.
//!
//! Keys are snake_case with units last. A figure that is not known is `null`, never 0. The control loop fills these
//! structs on demand; nothing here is kept.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use ringlane_shared::drop_reason::DropReason;
use ringlane_shared::plane::counters::{DropCounters, PeerCounters};
use ringlane_shared::plane::{Offload, WorkerCounters};
use serde::{Deserialize, Serialize};

use super::discovery::DiscoveryStatus;
use super::mappings::MappingsStatus;
use super::nat::NatStatus;
use super::obstacle::ObstacleStatus;
use super::relay::RelayStatus;
use super::underlay::UnderlayStatus;

/// Drops by the stable name of their reason; only reasons that occurred.
pub type Drops = BTreeMap<String, u64>;

/// Answer to `status`: the node and its peers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The Ringlane version that runs, which may differ from the one that asks.
    pub version: String,
    /// The node itself.
    pub node: NodeInfo,
    /// Where packets for the mesh wait for a worker.
    #[serde(default)]
    pub tun: TunStatus,
    /// The configured peers, in the configuration's order.
    pub peers: Vec<PeerStatus>,
    /// What became of lanes' other paths.
    #[serde(default)]
    pub movement: MovementStatus,
    /// What is known of the NATs before the node.
    #[serde(default)]
    pub nat: NatStatus,
    /// Connections, dials, streams and offers that were refused, by reason; reasons that did not occur are left out.
    #[serde(default)]
    pub gate: Drops,
    /// How peers are found.
    #[serde(default)]
    pub discovery: DiscoveryStatus,
    /// What routers were asked for.
    #[serde(default)]
    pub mappings: MappingsStatus,
    /// Relays.
    #[serde(default)]
    pub relay: RelayStatus,
    /// What of the underlay is used, and through what.
    #[serde(default)]
    pub underlay: UnderlayStatus,
    /// Drops that belong to no peer.
    pub drops: Drops,
    /// Datagrams that came to the lanes' ports by no lane and were dropped there.
    #[serde(default)]
    pub listener_drops: Drops,
    /// What each worker did.
    pub workers: Vec<WorkerStatus>,
    /// The services of this node, and local clients' connections to those of peers.
    #[serde(default)]
    pub services: ServicesStatus,
}

/// The service network.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ServicesStatus {
    /// The services this node offers, by name.
    pub offered: Vec<ServiceStatus>,
    /// Connections of local clients to peers' services that are open.
    pub connections_to_peers: u64,
    /// Those that peers have taken since the node started.
    pub accepted_by_peers: u64,
    /// Connections of local clients that nobody has answered yet.
    pub asking: u64,
    /// Streams of peers to services of ours that are open or ask to be.
    pub streams_of_peers: u64,
    /// Connections of local clients that were refused, by reason; only reasons that occurred.
    pub refused: BTreeMap<String, u64>,
    /// Streams of peers that were refused and belong to no service, by reason.
    pub refused_to_peers: BTreeMap<String, u64>,
    /// Packets to services that were dropped, by reason.
    pub packets_dropped: BTreeMap<String, u64>,
}

/// A service this node offers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// Its identifier, in hex.
    pub id: String,
    /// Its address, which answers on every TCP port.
    pub address: Ipv6Addr,
    /// What is behind it.
    pub target: String,
    /// Connections that are open, of peers and of local clients.
    pub connections: u64,
    /// Those accepted since the node started.
    pub accepted: u64,
    /// Those refused, by reason; only reasons that occurred.
    pub refused: BTreeMap<String, u64>,
}

/// The node itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Our peer id.
    pub id: String,
    /// Our built-in addresses: IPv4, then IPv6.
    pub addresses: Vec<IpAddr>,
    /// The TUN interface.
    pub interface: String,
    /// Its MTU.
    pub mtu_bytes: u16,
    /// How many workers run.
    pub workers: u8,
    /// Since the node started.
    pub uptime_s: u64,
    /// The multiaddrs the control thread listens on.
    pub listen: Vec<String>,
    /// Number of the newest published snapshot.
    pub generation: u64,
}

/// The TUN interface's queues, one for each worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct TunStatus {
    /// How many packets each holds, a super-segment counting as one.
    pub queue_packets: Option<u32>,
    /// Packets the kernel dropped because a queue was full: the worker was slower than the host.
    pub dropped: Option<u64>,
}

/// How lanes move: paths of theirs besides those they take.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct MovementStatus {
    /// Records that came from an address that is not their lane's and were looked at.
    pub records_passed_on: u64,
    /// Those that were not looked at, because too many came.
    pub records_ignored: u64,
    /// Paths by which a peer's newest record came that its lane does not take.
    pub paths_seen: u64,
    /// Those that no lane may take, or that were too many.
    pub paths_refused: u64,
    /// Paths on which a peer was asked whether it is there.
    pub paths_tried: u64,
}

/// Whether packets can reach a peer, and which way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerState {
    /// Over a path between the two nodes.
    Direct,
    /// By way of a relay.
    Relayed,
    /// Not yet: connected by libp2p, no carrier.
    Connecting,
    /// No: there is no connection of any kind.
    Offline,
}

/// How packets reach a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Carrier {
    /// Records on lanes.
    Lane,
    /// DATAGRAM frames of a lane's QUIC connection.
    Quic,
    /// A libp2p stream.
    Stream,
}

/// One configured peer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its configured name; may be empty.
    pub name: String,
    /// Its peer id.
    pub id: String,
    /// Its built-in addresses: IPv4, then IPv6.
    pub addresses: Vec<IpAddr>,
    /// The networks behind it.
    pub routes: Vec<IpNet>,
    /// Whether packets can reach it.
    pub state: PeerState,
    /// How packets reach it.
    pub carrier: Option<Carrier>,
    /// What was last seen to keep it from being connected, or from having all its lanes: a text for people.
    #[serde(default)]
    pub problem: Option<String>,
    /// What keeps it from being reached by lanes from one node to the other; `null` while it is.
    #[serde(default)]
    pub obstacle: Option<ObstacleStatus>,
    /// Every address of it that the node knows, wherever from.
    #[serde(default)]
    pub known_addresses: Vec<AddressStatus>,
    /// Its lanes, by index.
    pub lanes: Vec<LaneStatus>,
    /// Its packet streams.
    #[serde(default)]
    pub streams: Vec<StreamStatus>,
    /// The best lane's round-trip time.
    pub rtt_us: Option<u64>,
    /// Largest inner packet that gets through.
    pub mtu_bytes: Option<u16>,
    /// Inner packets sent to it.
    pub packets_sent: u64,
    /// Inner packets received from it.
    pub packets_received: u64,
    /// Bytes of inner packets sent.
    pub bytes_sent: u64,
    /// Bytes of inner packets received.
    pub bytes_received: u64,
    /// Records sent.
    pub records_sent: u64,
    /// Authentic records received.
    pub records_received: u64,
    /// QUIC DATAGRAM frames sent to it.
    #[serde(default)]
    pub quic_datagrams_sent: u64,
    /// QUIC DATAGRAM frames received from it.
    #[serde(default)]
    pub quic_datagrams_received: u64,
    /// Those of the inner packets sent that left by a libp2p stream.
    #[serde(default)]
    pub stream_packets_sent: u64,
    /// Those of the inner packets received that came by one.
    #[serde(default)]
    pub stream_packets_received: u64,
    /// When the newest lane's handshake was confirmed, in seconds since 1970.
    pub last_handshake_unix_s: Option<u64>,
    /// What was dropped of its traffic.
    pub drops: Drops,
}

/// An address of a peer that the node knows.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AddressStatus {
    /// A multiaddr without `/p2p/`.
    pub address: String,
    /// The best source of it: `configured`, `connected` (it worked), `mdns`, `cache`, `identify`, `signed_record`,
    /// `peer_exchange`, `dht` or `routing`.
    pub source: String,
    /// When it last worked since the node started, in seconds since 1970.
    pub last_success_unix_s: Option<u64>,
}

/// One lane of a link.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LaneStatus {
    /// Which lane of the link.
    pub index: u8,
    /// The worker that owns it.
    pub worker: u8,
    /// Our end.
    pub local: SocketAddr,
    /// The peer's end.
    pub remote: SocketAddr,
    /// Smoothed round-trip time.
    pub rtt_us: Option<u64>,
    /// What its path loses of questions and answers; `null` until it has been used for some seconds.
    #[serde(default)]
    pub loss_percent: Option<u8>,
    /// The name of the peer that relays it, or its id if it has none; `null` if none does.
    #[serde(default)]
    pub relay: Option<String>,
    /// Largest UDP payload its path is known to carry.
    pub mtu_bytes: Option<u16>,
    /// Whether the peer answers.
    #[serde(default)]
    pub state: LaneState,
    /// How packets leave by it: `lane` or `quic`.
    #[serde(default = "LaneStatus::default_carrier")]
    pub carrier: Carrier,
    /// The AEAD of its records: `aes-128-gcm`, `aes-256-gcm` or `chacha20-poly1305`.
    #[serde(default)]
    pub cipher: Option<String>,
    /// The epoch of the keys that seal.
    #[serde(default)]
    pub epoch: u64,
    /// Epochs that followed the first.
    #[serde(default)]
    pub rekeys: u64,
    /// Rekeyings that came to nothing.
    #[serde(default)]
    pub rekeys_failed: u64,
    /// Times it moved to another path.
    #[serde(default)]
    pub moves: u64,
    /// Echo requests sent.
    #[serde(default)]
    pub echoes_sent: u64,
    /// Echo requests that were answered.
    #[serde(default)]
    pub echoes_answered: u64,
    /// Since it was handed to its worker.
    pub age_s: u64,
}

/// One libp2p stream that carries packets.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StreamStatus {
    /// `/ringlane/packets/1`, `/hyprspace/1` or `/hyprspace/0.0.1`.
    pub protocol: String,
    /// Who opened it.
    pub direction: Direction,
    /// Whether packets to the peer leave by it.
    pub is_sending: bool,
    /// Bytes sent on it, frame headers included.
    pub bytes_sent: u64,
    /// Bytes received on it, frame headers included.
    pub bytes_received: u64,
}

impl LaneStatus {
    fn default_carrier() -> Carrier {
        Carrier::Lane
    }
}

/// Whether a lane's peer answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LaneState {
    /// It does, or nobody has asked.
    #[default]
    Up,
    /// It does not, at the moment.
    Silent,
}

/// What one worker did since the node started.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Its number.
    pub worker: u8,
    /// What moves packets between it and the kernel: `io_uring` or `epoll`; empty before it has started.
    #[serde(default)]
    pub engine: String,
    /// Turns of its loop.
    pub turns: u64,
    /// System calls it made to move packets; with io_uring each is one enter of its packet ring.
    pub enters: u64,
    /// Times it slept because nothing was to do.
    pub sleeps: u64,
    /// Packets passed to another worker because this one had no lane to the peer.
    pub handed_over: u64,
    /// Times the TUN read ran out of buffers.
    pub tun_buffer_shortages: u64,
    /// Times a lane's receive ran out of buffers.
    pub udp_buffer_shortages: u64,
    /// Super-segments read from the TUN.
    #[serde(default)]
    pub super_segments_read: u64,
    /// Super-segments written to the TUN.
    #[serde(default)]
    pub super_segments_written: u64,
    /// Writes to the TUN, of packets and of super-segments.
    #[serde(default)]
    pub tun_writes: u64,
    /// Sends of records, each of one record or a train of them.
    #[serde(default)]
    pub trains_sent: u64,
    /// Receives of datagrams, each of one datagram or a train of them.
    #[serde(default)]
    pub trains_received: u64,
    /// Trains that the kernel did not take whole and that were sent again, record by record.
    #[serde(default)]
    pub trains_resent: u64,
    /// What waits to leave.
    #[serde(default)]
    pub egress: EgressStatus,
    /// What became of each offload, by the offload's stable name: `on`, `off`, `unavailable`, `failed` or `unknown`.
    #[serde(default)]
    pub offloads: BTreeMap<String, String>,
}

/// The packets that wait in a worker to leave.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct EgressStatus {
    /// `direct`, or `queueing` while a rate is configured or a lane's device is slower than the worker.
    pub state: String,
    /// How many.
    pub queued_packets: u32,
    /// Their bytes.
    pub queued_bytes: u32,
    /// Packets marked instead of dropped because they had waited for too long.
    pub marked: u64,
}

/// Who opened a libp2p connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// The remote.
    Inbound,
    /// We.
    Outbound,
}

/// Answer to `peers` is a list of these: one libp2p connection.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ConnectionStatus {
    /// The remote's peer id.
    pub id: String,
    /// Its configured name; may be empty.
    pub name: String,
    /// The remote's multiaddr.
    pub remote: String,
    /// Who opened it.
    pub direction: Direction,
    /// `quic`, `tcp`, `ws`, `wss` or `relay`.
    pub transport: String,
    /// Round-trip time by libp2p's ping.
    pub rtt_us: Option<u64>,
    /// Since it was established.
    pub age_s: u64,
}

/// Answer to `routes` is a list of these: one inner prefix.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RouteStatus {
    /// The prefix.
    pub prefix: IpNet,
    /// Where it leads.
    pub peer: RoutePeer,
    /// Whether it is a built-in address of the peer and not a configured network.
    pub builtin: bool,
    /// Whether the kernel routes it into the tunnel.
    pub installed: bool,
    /// How packets reach the peer at the moment.
    pub carrier: Option<Carrier>,
    /// Of several peers that route the prefix, the one with the lowest carries it.
    #[serde(default)]
    pub metric: u32,
    /// Whether packets to the prefix go to this peer.
    #[serde(default)]
    pub active: bool,
    /// Whether it was added at run time and goes when the node ends.
    #[serde(default)]
    pub added: bool,
    /// Whether nobody carries it at the moment, because the host is directly connected to it.
    #[serde(default)]
    pub withdrawn: bool,
}

/// The peer of a route.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RoutePeer {
    /// Its configured name; may be empty.
    pub name: String,
    /// Its peer id.
    pub id: String,
}

impl PeerStatus {
    /// Sets all traffic figures to the sums over the workers' counters of this peer.
    pub fn set_traffic(&mut self, workers: &[PeerCounters]) {
        let sum = |figure: fn(&PeerCounters) -> u64| workers.iter().map(figure).sum();
        self.packets_sent = sum(|counters| counters.packets_sent.get());
        self.packets_received = sum(|counters| counters.packets_received.get());
        self.bytes_sent = sum(|counters| counters.bytes_sent.get());
        self.bytes_received = sum(|counters| counters.bytes_received.get());
        self.records_sent = sum(|counters| counters.records_sent.get());
        self.records_received = sum(|counters| counters.records_received.get());
        self.quic_datagrams_sent = sum(|counters| counters.quic_datagrams_sent.get());
        self.quic_datagrams_received = sum(|counters| counters.quic_datagrams_received.get());
        self.stream_packets_sent = sum(|counters| counters.stream_packets_sent.get());
        self.stream_packets_received = sum(|counters| counters.stream_packets_received.get());
        self.drops = sum_drops(workers.iter().map(|counters| &counters.drops));
    }
}

impl WorkerStatus {
    /// One worker's figures.
    pub fn new(worker: u8, counters: &WorkerCounters) -> Self {
        Self {
            worker,
            engine: counters.engine.get().map(|engine| engine.name().to_owned()).unwrap_or_default(),
            turns: counters.turns.get(),
            enters: counters.enters.get(),
            sleeps: counters.sleeps.get(),
            handed_over: counters.handed_over.get(),
            tun_buffer_shortages: counters.tun_buffer_shortages.get(),
            udp_buffer_shortages: counters.udp_buffer_shortages.get(),
            super_segments_read: counters.super_segments_read.get(),
            super_segments_written: counters.super_segments_written.get(),
            tun_writes: counters.tun_writes.get(),
            trains_sent: counters.trains_sent.get(),
            trains_received: counters.trains_received.get(),
            trains_resent: counters.trains_resent.get(),
            egress: EgressStatus {
                state: counters.egress.state().name().to_owned(),
                queued_packets: counters.egress.queued_packets(),
                queued_bytes: counters.egress.queued_bytes(),
                marked: counters.egress.marked.get(),
            },
            offloads: Offload::ALL
                .map(|offload| (offload.name().to_owned(), counters.offloads.get(offload).name().to_owned()))
                .into(),
        }
    }
}

/// Sums drop counters, leaving out the reasons that never occurred.
pub fn sum_drops<'a>(counters: impl IntoIterator<Item = &'a DropCounters>) -> Drops {
    let mut drops = Drops::new();
    for counters in counters {
        for reason in DropReason::ALL {
            if counters.get(reason) > 0 {
                *drops.entry(reason.name().to_owned()).or_default() += counters.get(reason);
            }
        }
    }
    drops
}

#[cfg(test)]
mod tests {
    use ringlane_shared::plane::{EgressState, Engine, OffloadState};

    use super::*;

    #[test]
    fn each_counter_and_gauge_of_a_worker_has_a_key_of_its_own() {
        let counters = WorkerCounters::default();
        let figures = [
            &counters.turns,
            &counters.enters,
            &counters.sleeps,
            &counters.handed_over,
            &counters.tun_buffer_shortages,
            &counters.udp_buffer_shortages,
            &counters.super_segments_read,
            &counters.super_segments_written,
            &counters.tun_writes,
            &counters.trains_sent,
            &counters.trains_received,
            &counters.trains_resent,
            &counters.egress.marked,
        ];
        for (figure, value) in figures.iter().zip(1..) {
            figure.add(value);
        }
        counters.egress.set(EgressState::Queueing, 14, 15);
        counters.engine.set(Engine::Epoll).unwrap();
        counters.offloads.set(Offload::UdpGso, OffloadState::Failed);
        counters.offloads.set(Offload::TunTso, OffloadState::On);
        let expected = r#"{"worker":3,"engine":"epoll","turns":1,"enters":2,"sleeps":3,"handed_over":4,"tun_buffer_shortages":5,"udp_buffer_shortages":6,"super_segments_read":7,"super_segments_written":8,"tun_writes":9,"trains_sent":10,"trains_received":11,"trains_resent":12,"egress":{"state":"queueing","queued_packets":14,"queued_bytes":15,"marked":13},"offloads":{"huge_pages":"unknown","tun_checksum":"unknown","tun_coalesce":"unknown","tun_tso":"on","tun_uso":"unknown","udp_gro":"unknown","udp_gso":"failed","udp_sentinel":"unknown"}}"#;
        assert_eq!(serde_json::to_string(&WorkerStatus::new(3, &counters)).unwrap(), expected);
    }

    #[test]
    fn traffic_is_summed_over_workers_and_only_reasons_that_occurred_are_named() {
        let workers = [PeerCounters::default(), PeerCounters::default()];
        workers[0].packets_sent.add(1);
        workers[1].packets_sent.add(2);
        workers[1].bytes_received.add(1500);
        workers[0].drops.count_many(DropReason::Replayed, 3);
        workers[1].drops.count_many(DropReason::Replayed, 4);
        workers[1].drops.count_many(DropReason::SourceNotAllowed, 1);

        let mut peer = PeerStatus {
            name: "site-b".to_owned(),
            id: "12D3KooW".to_owned(),
            addresses: Vec::new(),
            routes: Vec::new(),
            state: PeerState::Offline,
            carrier: None,
            problem: None,
            obstacle: None,
            known_addresses: Vec::new(),
            lanes: Vec::new(),
            streams: Vec::new(),
            rtt_us: None,
            mtu_bytes: None,
            packets_sent: 99,
            packets_received: 99,
            bytes_sent: 99,
            bytes_received: 99,
            records_sent: 99,
            records_received: 99,
            quic_datagrams_sent: 99,
            quic_datagrams_received: 99,
            stream_packets_sent: 99,
            stream_packets_received: 99,
            last_handshake_unix_s: None,
            drops: Drops::new(),
        };
        peer.set_traffic(&workers);

        let expected = r#"{"name":"site-b","id":"12D3KooW","addresses":[],"routes":[],"state":"offline","carrier":null,"problem":null,"obstacle":null,"known_addresses":[],"lanes":[],"streams":[],"rtt_us":null,"mtu_bytes":null,"packets_sent":3,"packets_received":0,"bytes_sent":0,"bytes_received":1500,"records_sent":0,"records_received":0,"quic_datagrams_sent":0,"quic_datagrams_received":0,"stream_packets_sent":0,"stream_packets_received":0,"last_handshake_unix_s":null,"drops":{"replayed":7,"source_not_allowed":1}}"#;
        assert_eq!(serde_json::to_string(&peer).unwrap(), expected);
    }
}
