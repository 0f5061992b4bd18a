//! `ringlane status`: a running node and its peers.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::process::ExitCode;
use std::time::SystemTime;

use ringlane_control::admin::relay::{RelayNode, RelayStatus, RelayedPeer};
use ringlane_control::admin::status::{
    Carrier, Drops, LaneState, LaneStatus, NodeStatus, PeerState, PeerStatus, ServiceStatus, TunStatus, WorkerStatus,
};
use ringlane_control::admin::{AdminCommand, request};
use ringlane_shared::plane::{EgressState, Offload, OffloadState};

use super::mappings;
use super::nat;
use super::text::{self, Table};
use crate::cli::InterfaceArgs;

pub(crate) fn run(args: &InterfaceArgs) -> anyhow::Result<ExitCode> {
    let status: NodeStatus = request(&text::socket_of(&args.interface)?, AdminCommand::Status)?;
    let now_unix_s = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    text::print(args.output, &status, || for_people(&status, now_unix_s))?;
    Ok(ExitCode::SUCCESS)
}

/// The node, then all peers in a table, then each peer's details.
fn for_people(status: &NodeStatus, now_unix_s: u64) -> String {
    let node = &status.node;
    let mut out = String::new();
    let _ = writeln!(out, "{}, up for {}, ringlane {}", node.interface, text::span(node.uptime_s), status.version);
    detail(&mut out, "id", &node.id);
    detail(&mut out, "addresses", &text::list(&node.addresses));
    detail(&mut out, "mtu", &format!("{} bytes", node.mtu_bytes));
    detail(&mut out, "workers", &workers(node.workers, &status.workers));
    detail(&mut out, "tun queue", &queue(&status.tun));
    detail(&mut out, "queueing", &queueing(&status.workers));
    detail(&mut out, "offloads", &offloads(&status.workers));
    for (position, address) in node.listen.iter().enumerate() {
        detail(&mut out, if position == 0 { "listens on" } else { "" }, address);
    }
    for (position, line) in mappings::lines(&status.mappings).iter().enumerate() {
        detail(&mut out, if position == 0 { "mappings" } else { "" }, line);
    }
    if !status.underlay.networks.is_empty() {
        detail(&mut out, "only in", &text::list(&status.underlay.networks));
    }
    detail(&mut out, "proxy", status.underlay.proxy.as_deref().unwrap_or_default());
    for (position, service) in status.services.offered.iter().enumerate() {
        detail(&mut out, if position == 0 { "services" } else { "" }, &service_line(service));
    }
    for (position, line) in nat::lines(&status.nat).iter().enumerate() {
        detail(&mut out, if position == 0 { "nat" } else { "" }, line);
    }
    detail(&mut out, "refused", &drops(&status.services.refused));
    detail(&mut out, "dropped", &drops(&status.drops));
    detail(&mut out, "listeners", &drops(&status.listener_drops));
    detail(&mut out, "gate", &drops(&status.gate));
    relays(&mut out, &status.relay);

    if status.peers.is_empty() {
        out.push_str("\nno peers are configured\n");
        return out;
    }
    let mut table = Table::new(["PEER", "STATE", "CARRIER", "LANES", "RTT", "MTU", "SENT", "RECEIVED", "HANDSHAKE"]);
    for peer in &status.peers {
        table.row([
            text::name_or_id(&peer.name, &peer.id),
            state(peer.state).to_owned(),
            text::carrier(peer.carrier),
            peer.lanes.len().to_string(),
            text::rtt(peer.rtt_us),
            peer.mtu_bytes.map(|mtu| mtu.to_string()).unwrap_or_default(),
            text::bytes(peer.bytes_sent),
            text::bytes(peer.bytes_received),
            handshake(peer, now_unix_s),
        ]);
    }
    let _ = write!(out, "\n{table}");
    for peer in &status.peers {
        peer_details(&mut out, peer, &status.relay.relayed);
    }
    out
}

fn peer_details(out: &mut String, peer: &PeerStatus, relayed: &[RelayedPeer]) {
    let _ = writeln!(out, "\n{}", text::name_or_id(&peer.name, &peer.id));
    detail(out, "problem", peer.problem.as_deref().unwrap_or_default());
    detail(out, "obstacle", peer.obstacle.as_ref().map(|obstacle| obstacle.text.as_str()).unwrap_or_default());
    detail(out, "relay", &relay_of(peer, relayed));
    detail(out, "id", &peer.id);
    detail(out, "addresses", &text::list(&peer.addresses));
    detail(out, "routes", &text::list(&peer.routes));
    for lane in &peer.lanes {
        detail(out, &format!("lane {}", lane.index), &lane_line(lane));
    }
    let sent = traffic(peer.packets_sent, peer.records_sent, peer.quic_datagrams_sent, peer.stream_packets_sent);
    let [records, datagrams] = [peer.records_received, peer.quic_datagrams_received];
    let received = traffic(peer.packets_received, records, datagrams, peer.stream_packets_received);
    detail(out, "sent", &sent);
    detail(out, "received", &received);
    detail(out, "dropped", &drops(&peer.drops));
}

/// Who passes on what libp2p says to the peer; nothing if nobody has to.
fn relay_of(peer: &PeerStatus, relayed: &[RelayedPeer]) -> String {
    let relayed = relayed.iter().find(|relayed| relayed.node.id == peer.id);
    relayed.map_or(String::new(), |relayed| match &relayed.relay {
        Some(relay) => text::name_or_id(&relay.name, &relay.id),
        None => "unknown".to_owned(),
    })
}

fn relays(out: &mut String, status: &RelayStatus) {
    let name = |node: &RelayNode| text::name_or_id(&node.name, &node.id);
    let reserved = status.relays.iter().filter(|relay| relay.reserved).map(|relay| match relay.load {
        Some(load) => format!("{} ({})", name(&relay.node), text::relay_load(load)),
        None => name(&relay.node),
    });
    detail(out, "relays", &Vec::from_iter(reserved.chain(status.problem.clone())).join(", "));
    if !status.serves {
        return;
    }
    let clients = status.reservations.len();
    let mut line = format!("for {clients} peers, {} circuits", status.circuits.len());
    if status.requests_refused > 0 {
        let _ = write!(line, ", refused {}", status.requests_refused);
    }
    if let Some(load) = status.load {
        let _ = write!(line, ", {}", text::relay_load(load));
    }
    detail(out, "is relay", &line);
    for circuit in &status.circuits {
        let bytes = text::bytes(circuit.bytes_from_source + circuit.bytes_from_target);
        let ends = format!("{} - {}", name(&circuit.source), name(&circuit.target));
        detail(out, "", &format!("{ends}, {bytes}, for {}", text::span(circuit.age_s)));
    }
}

fn traffic(packets: u64, records: u64, quic_datagrams: u64, by_stream: u64) -> String {
    let mut text = format!("{packets} packets in {records} records");
    if quic_datagrams > 0 {
        let _ = write!(text, " and {quic_datagrams} QUIC datagrams");
    }
    if by_stream > 0 {
        let _ = write!(text, ", {by_stream} of them by stream");
    }
    text
}

/// One aligned line; nothing if there is nothing to say.
fn detail(out: &mut String, what: &str, text: &str) {
    if !text.is_empty() {
        let _ = writeln!(out, "  {what:<10}  {}", text::printable(text));
    }
}

fn lane_line(lane: &LaneStatus) -> String {
    let mut line = format!("worker {}, {} -> {}", lane.worker, lane.local, lane.remote);
    if lane.rtt_us.is_some() {
        let _ = write!(line, ", rtt {}", text::rtt(lane.rtt_us));
    }
    line.push_str(&text::loss(lane.loss_percent));
    if let Some(mtu_bytes) = lane.mtu_bytes {
        let _ = write!(line, ", datagrams to {mtu_bytes} bytes");
    }
    if let Some(cipher) = &lane.cipher {
        let _ = write!(line, ", {cipher}");
    }
    if lane.epoch > 0 {
        let _ = write!(line, ", epoch {}", lane.epoch);
    }
    if lane.carrier == Carrier::Quic {
        line.push_str(", in QUIC datagrams");
    }
    if let Some(relay) = &lane.relay {
        let _ = write!(line, ", relayed by {}", text::printable(relay));
    }
    let _ = write!(line, ", for {}", text::span(lane.age_s));
    if lane.state == LaneState::Silent {
        line.push_str(", silent");
    }
    line
}

fn service_line(service: &ServiceStatus) -> String {
    let ServiceStatus { name, address, target, connections, accepted, .. } = service;
    let mut line = format!("{name} at {address} -> {target}, {connections} connections of {accepted}");
    let refused: u64 = service.refused.values().sum();
    if refused > 0 {
        let _ = write!(line, ", refused {}", drops(&service.refused));
    }
    line
}

fn queue(tun: &TunStatus) -> String {
    match (tun.queue_packets, tun.dropped) {
        (Some(packets), Some(dropped)) => format!("{packets} packets for each worker, {dropped} dropped"),
        _ => String::new(),
    }
}

/// The workers whose packets wait their turn, and how much waits; nothing where all leave at once.
fn queueing(workers: &[WorkerStatus]) -> String {
    let queueing = workers.iter().filter(|worker| worker.egress.state == EgressState::Queueing.name());
    let describe = |worker: &WorkerStatus| {
        let bytes = text::bytes(worker.egress.queued_bytes.into());
        format!("w{}: {} packets, {bytes}", worker.worker, worker.egress.queued_packets)
    };
    queueing.map(describe).collect::<Vec<_>>().join("; ")
}

/// How many there are, and on what they run once they have said so.
fn workers(count: u8, workers: &[WorkerStatus]) -> String {
    let engines: BTreeSet<_> =
        workers.iter().map(|worker| worker.engine.as_str()).filter(|name| !name.is_empty()).collect();
    match engines.is_empty() {
        true => count.to_string(),
        false => format!("{count}, on {}", text::list(&Vec::from_iter(engines))),
    }
}

/// The offloads in use, and those that cannot be; not those that are off, as the configuration tells. Nothing before
/// the workers have said anything.
fn offloads(workers: &[WorkerStatus]) -> String {
    let mut states = workers.iter().flat_map(|worker| worker.offloads.values());
    if states.all(|state| state == OffloadState::Unknown.name()) {
        return String::new();
    }
    let mut line = offloads_in(OffloadState::On, workers);
    if line.is_empty() {
        line.push_str("none");
    }
    for state in [OffloadState::Unavailable, OffloadState::Failed] {
        let offloads = offloads_in(state, workers);
        if !offloads.is_empty() {
            let _ = write!(line, "; {}: {offloads}", state.name());
        }
    }
    line
}

/// The offloads in this state, each with the workers it is so for unless it is for all.
fn offloads_in(state: OffloadState, workers: &[WorkerStatus]) -> String {
    let described = Offload::ALL.map(Offload::name).into_iter().filter_map(|name| {
        let is_so = |worker: &&WorkerStatus| worker.offloads.get(name).is_some_and(|is| is == state.name());
        let so: Vec<_> = workers.iter().filter(is_so).map(|worker| format!("w{}", worker.worker)).collect();
        match so.len() {
            0 => None,
            all if all == workers.len() => Some(name.to_owned()),
            _ => Some(format!("{name} ({})", so.join(" "))),
        }
    });
    described.collect::<Vec<_>>().join(", ")
}

fn drops(drops: &Drops) -> String {
    drops.iter().map(|(reason, packets)| format!("{reason} {packets}")).collect::<Vec<_>>().join(", ")
}

fn handshake(peer: &PeerStatus, now_unix_s: u64) -> String {
    match peer.last_handshake_unix_s {
        Some(then) => format!("{} ago", text::span(now_unix_s.saturating_sub(then))),
        None => "never".to_owned(),
    }
}

fn state(state: PeerState) -> &'static str {
    match state {
        PeerState::Direct => "direct",
        PeerState::Relayed => "relayed",
        PeerState::Connecting => "connecting",
        PeerState::Offline => "offline",
    }
}

#[cfg(test)]
mod tests {
    use ringlane_control::admin::status::{MovementStatus, NodeInfo, ServicesStatus};
    use ringlane_shared::plane::{Engine, WorkerCounters};

    use ringlane_control::admin::discovery::DiscoveryStatus;
    use ringlane_control::admin::mappings::MappingsStatus;
    use ringlane_control::admin::nat::NatStatus;
    use ringlane_control::admin::obstacle::ObstacleStatus;
    use ringlane_control::admin::underlay::UnderlayStatus;

    use super::*;

    fn offline_peer() -> PeerStatus {
        PeerStatus {
            name: String::new(),
            id: "12D3KooWCarol".to_owned(),
            addresses: vec!["100.64.9.9".parse().unwrap()],
            routes: Vec::new(),
            state: PeerState::Offline,
            carrier: None,
            problem: Some("no address of it is known here; it has to dial us".to_owned()),
            obstacle: Some(ObstacleStatus {
                code: "not_connected".to_owned(),
                text: "nothing connects this node to it: \u{1b}[31mno packets pass".to_owned(),
            }),
            known_addresses: Vec::new(),
            lanes: Vec::new(),
            streams: Vec::new(),
            rtt_us: None,
            mtu_bytes: None,
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
            last_handshake_unix_s: None,
            drops: Drops::new(),
        }
    }

    fn direct_peer() -> PeerStatus {
        PeerStatus {
            name: "site-b".to_owned(),
            id: "12D3KooWBob".to_owned(),
            addresses: vec!["100.64.4.143".parse().unwrap(), "fd00:6879::b".parse().unwrap()],
            routes: vec!["10.20.0.0/16".parse().unwrap(), "fd00:20::/64".parse().unwrap()],
            state: PeerState::Direct,
            carrier: Some(Carrier::Lane),
            problem: None,
            obstacle: None,
            known_addresses: Vec::new(),
            streams: Vec::new(),
            lanes: vec![
                LaneStatus {
                    index: 0,
                    worker: 0,
                    local: "10.201.0.1:8100".parse().unwrap(),
                    remote: "10.201.0.2:8100".parse().unwrap(),
                    rtt_us: Some(350),
                    loss_percent: Some(3),
                    relay: None,
                    mtu_bytes: Some(1452),
                    state: LaneState::Up,
                    carrier: Carrier::Lane,
                    cipher: Some("aes-128-gcm".into()),
                    epoch: 38,
                    rekeys: 38,
                    rekeys_failed: 0,
                    moves: 1,
                    echoes_sent: 9,
                    echoes_answered: 7,
                    age_s: 75,
                },
                LaneStatus {
                    index: 1,
                    worker: 1,
                    local: "[2001:db8::1]:8101".parse().unwrap(),
                    remote: "[2001:db8::2]:8101".parse().unwrap(),
                    rtt_us: None,
                    loss_percent: None,
                    relay: None,
                    mtu_bytes: None,
                    state: LaneState::Silent,
                    carrier: Carrier::Quic,
                    cipher: None,
                    epoch: 0,
                    rekeys: 0,
                    rekeys_failed: 0,
                    moves: 0,
                    echoes_sent: 0,
                    echoes_answered: 0,
                    age_s: 3,
                },
            ],
            rtt_us: Some(350),
            mtu_bytes: Some(1420),
            packets_sent: 12_345,
            packets_received: 678,
            bytes_sent: 5 << 20,
            bytes_received: 1_000,
            records_sent: 12_000,
            records_received: 677,
            quic_datagrams_sent: 120,
            quic_datagrams_received: 0,
            stream_packets_sent: 0,
            stream_packets_received: 13,
            last_handshake_unix_s: Some(1_699_999_925),
            drops: Drops::from([("replayed".to_owned(), 3), ("source_not_allowed".to_owned(), 1)]),
        }
    }

    fn node(peers: Vec<PeerStatus>) -> NodeStatus {
        NodeStatus {
            version: "0.1.0".to_owned(),
            node: NodeInfo {
                id: "12D3KooWAlice".to_owned(),
                addresses: vec!["100.64.132.22".parse().unwrap(), "fd00:6879::a".parse().unwrap()],
                interface: "ring0".to_owned(),
                mtu_bytes: 1420,
                workers: 2,
                uptime_s: 273_600,
                listen: vec!["/ip4/10.201.0.1/udp/8001/quic-v1".to_owned(), "/ip4/10.201.0.1/tcp/8001".to_owned()],
                generation: 7,
            },
            tun: TunStatus { queue_packets: Some(500), dropped: Some(34) },
            movement: MovementStatus::default(),
            nat: NatStatus::default(),
            gate: Drops::from([("not_configured".to_owned(), 3)]),
            discovery: DiscoveryStatus::default(),
            mappings: MappingsStatus::default(),
            relay: Default::default(),
            underlay: UnderlayStatus::default(),
            peers,
            drops: Drops::from([("no_route".to_owned(), 12)]),
            listener_drops: Drops::from([("late".to_owned(), 2), ("unknown_token".to_owned(), 7)]),
            workers: vec![worker(0, OffloadState::On), worker(1, OffloadState::Failed)],
            services: ServicesStatus {
                offered: vec![ServiceStatus {
                    name: "example".to_owned(),
                    id: "a3dd".to_owned(),
                    address: "fd00:6879:7072:7370:7376:f26:ea70:a3dd".parse().unwrap(),
                    target: "/ip4/127.0.0.1/tcp/8080".to_owned(),
                    connections: 2,
                    accepted: 17,
                    refused: Drops::from([("not_allowed".to_owned(), 1)]),
                }],
                refused: Drops::from([("unknown_at_peer".to_owned(), 4)]),
                ..ServicesStatus::default()
            },
        }
    }

    fn worker(number: u8, udp_gso: OffloadState) -> WorkerStatus {
        let counters = WorkerCounters::default();
        for offload in Offload::ALL {
            counters.offloads.set(offload, OffloadState::On);
        }
        counters.engine.set(Engine::IoUring).unwrap();
        counters.offloads.set(Offload::TunUso, OffloadState::Unavailable);
        counters.offloads.set(Offload::TunCoalesce, OffloadState::Off);
        if number == 1 {
            counters.egress.set(EgressState::Queueing, 45, 63_900);
        }
        counters.offloads.set(Offload::UdpGso, udp_gso);
        counters.offloads.set(Offload::UdpSentinel, OffloadState::Off);
        WorkerStatus::new(number, &counters)
    }

    #[test]
    fn a_person_sees_node_overview_and_details() {
        let text = for_people(&node(vec![direct_peer(), offline_peer()]), 1_700_000_000);
        assert_eq!(
            text,
            "\
ring0, up for 3 d 4 h, ringlane 0.1.0
  id          12D3KooWAlice
  addresses   100.64.132.22, fd00:6879::a
  mtu         1420 bytes
  workers     2, on io_uring
  tun queue   500 packets for each worker, 34 dropped
  queueing    w1: 45 packets, 62.4 KiB
  offloads    tun_checksum, tun_tso, udp_gso (w0), udp_gro, huge_pages; unavailable: tun_uso; failed: udp_gso (w1)
  listens on  /ip4/10.201.0.1/udp/8001/quic-v1
              /ip4/10.201.0.1/tcp/8001
  services    example at fd00:6879:7072:7370:7376:f26:ea70:a3dd -> /ip4/127.0.0.1/tcp/8080, 2 connections of 17, refused not_allowed 1
  refused     unknown_at_peer 4
  dropped     no_route 12
  listeners   late 2, unknown_token 7
  gate        not_configured 3

PEER           STATE    CARRIER  LANES  RTT     MTU   SENT     RECEIVED  HANDSHAKE
site-b         direct   lane     2      350 us  1420  5.0 MiB  1000 B    1 min 15 s ago
12D3KooWCarol  offline  -        0      -       -     0 B      0 B       never

site-b
  id          12D3KooWBob
  addresses   100.64.4.143, fd00:6879::b
  routes      10.20.0.0/16, fd00:20::/64
  lane 0      worker 0, 10.201.0.1:8100 -> 10.201.0.2:8100, rtt 350 us, loses 3 %, datagrams to 1452 bytes, aes-128-gcm, epoch 38, for 1 min 15 s
  lane 1      worker 1, [2001:db8::1]:8101 -> [2001:db8::2]:8101, in QUIC datagrams, for 3 s, silent
  sent        12345 packets in 12000 records and 120 QUIC datagrams
  received    678 packets in 677 records, 13 of them by stream
  dropped     replayed 3, source_not_allowed 1

12D3KooWCarol
  problem     no address of it is known here; it has to dial us
  obstacle    nothing connects this node to it: \u{fffd}[31mno packets pass
  id          12D3KooWCarol
  addresses   100.64.9.9
  sent        0 packets in 0 records
  received    0 packets in 0 records
"
        );
    }

    #[test]
    fn offloads_are_silent_until_known_and_none_when_all_are_off() {
        let with_all = |state| {
            let counters = WorkerCounters::default();
            Offload::ALL.iter().for_each(|&offload| counters.offloads.set(offload, state));
            offloads(&[WorkerStatus::new(0, &counters)])
        };
        assert_eq!(with_all(OffloadState::Unknown), "");
        assert_eq!(with_all(OffloadState::Off), "none");
        assert!(with_all(OffloadState::Failed).starts_with("none; failed: tun_checksum, tun_tso, "));
        assert_eq!(offloads(&[]), "");
    }

    #[test]
    fn a_node_without_peers_says_so() {
        assert!(for_people(&node(Vec::new()), 0).ends_with("\n\nno peers are configured\n"));
    }
}
