//! Which figures are served, and under which names.
//!
//! Names are Prometheus': base units (seconds, bytes) last, and before a counter's `_total`. One figure that is not known
//! is left out, never 0.

use std::collections::BTreeMap;

use ringlane_shared::limits::METRICS_LANES_MAX;

use super::{Family, Kind, Samples, Scrape, Value};
use crate::admin::discovery::MdnsStatus;
use crate::admin::status::{
    Carrier, Direction, LaneState, LaneStatus, PeerState, PeerStatus, ServiceStatus, WorkerStatus,
};

pub(super) const NONE: &[&str] = &[];
const REASON: &[&str] = &["reason"];
pub(super) const PEER: &[&str] = &["peer", "name"];
const LANE: &[&str] = &["peer", "name", "lane", "worker"];
const SERVICE: &[&str] = &["service"];
const WORKER: &[&str] = &["worker"];

const STATES: [(PeerState, &str); 4] = [
    (PeerState::Direct, "direct"),
    (PeerState::Relayed, "relayed"),
    (PeerState::Connecting, "connecting"),
    (PeerState::Offline, "offline"),
];

/// Every metric of ours, in the order served.
pub(super) const FAMILIES: &[Family] = &[
    gauge("ringlane_node_info", &["version", "id", "interface"], "1; who this node is", |scrape, out| {
        let node = &scrape.status.node;
        out.add(&[&scrape.status.version, &node.id, &node.interface], 1_u64);
    }),
    gauge("ringlane_uptime_seconds", NONE, "Since the node started", |scrape, out| {
        out.add(&[], scrape.status.node.uptime_s);
    }),
    gauge("ringlane_workers", NONE, "Workers that run", |scrape, out| {
        out.add(&[], u64::from(scrape.status.node.workers));
    }),
    gauge("ringlane_mtu_bytes", NONE, "MTU of the TUN interface", |scrape, out| {
        out.add(&[], u64::from(scrape.status.node.mtu_bytes));
    }),
    gauge("ringlane_listen_addresses", NONE, "Addresses that libp2p listens on", |scrape, out| {
        out.add(&[], scrape.status.node.listen.len() as u64);
    }),
    gauge("ringlane_port_mappings", &["method"], "Ports that routers map to ours", |scrape, out| {
        let mappings = scrape.status.mappings.gateways.iter().flat_map(|gateway| &gateway.mappings);
        let mut methods = BTreeMap::<&str, u64>::new();
        for method in mappings.filter_map(|mapping| mapping.method.as_deref()) {
            *methods.entry(method).or_default() += 1;
        }
        for (method, count) in methods {
            out.add(&[method], count);
        }
    }),
    gauge("ringlane_generation", NONE, "Number of the newest published snapshot", |scrape, out| {
        out.add(&[], scrape.status.node.generation);
    }),
    gauge("ringlane_connections", &["transport", "direction"], "Connections of libp2p", connections),
    gauge("ringlane_tun_queue_packets", NONE, "Packets that wait for each worker at most", |scrape, out| {
        out.0.extend(scrape.status.tun.queue_packets.map(|packets| (Vec::new(), u64::from(packets).into())));
    }),
    counter("ringlane_tun_dropped_packets", NONE, "Packets the kernel dropped because that was full", |scrape, out| {
        out.0.extend(scrape.status.tun.dropped.map(|packets| (Vec::new(), packets.into())));
    }),
    counter("ringlane_dropped_packets", REASON, "Packets dropped that belong to no peer", |scrape, out| {
        drops(&scrape.status.drops, &[], out);
    }),
    counter(
        "ringlane_listener_dropped_datagrams",
        REASON,
        "Datagrams of no lane, dropped at its ports",
        |scrape, out| {
            drops(&scrape.status.listener_drops, &[], out);
        },
    ),
    counter("ringlane_gate_refused", REASON, "Connections, dials, streams and offers refused", |scrape, out| {
        drops(&scrape.status.gate, &[], out);
    }),
    counter(
        "ringlane_records_passed_on",
        NONE,
        "Records from another address than their lane's, looked at",
        |scrape, out| {
            out.add(&[], scrape.status.movement.records_passed_on);
        },
    ),
    counter("ringlane_records_ignored", NONE, "Such records not looked at, because too many came", |scrape, out| {
        out.add(&[], scrape.status.movement.records_ignored);
    }),
    counter("ringlane_paths_seen", NONE, "Paths by which a peer came that its lane does not take", |scrape, out| {
        out.add(&[], scrape.status.movement.paths_seen);
    }),
    counter("ringlane_paths_refused", NONE, "Those that no lane may take, or that were too many", |scrape, out| {
        out.add(&[], scrape.status.movement.paths_refused);
    }),
    counter("ringlane_paths_tried", NONE, "Paths on which a peer was asked whether it is there", |scrape, out| {
        out.add(&[], scrape.status.movement.paths_tried);
    }),
    counter("ringlane_mdns_sent_queries", NONE, "Packets of mDNS sent that ask who is there", |scrape, out| {
        mdns(scrape, out, |mdns| mdns.queries_sent);
    }),
    counter("ringlane_mdns_sent_announcements", NONE, "Packets of mDNS sent that tell where we are", |scrape, out| {
        mdns(scrape, out, |mdns| mdns.announcements_sent);
    }),
    counter("ringlane_mdns_received_packets", NONE, "Packets of mDNS read", |scrape, out| {
        mdns(scrape, out, |mdns| mdns.packets_heard);
    }),
    counter("ringlane_mdns_malformed_packets", NONE, "Those that made no sense", |scrape, out| {
        mdns(scrape, out, |mdns| mdns.packets_malformed);
    }),
    counter("ringlane_mdns_ignored_packets", NONE, "Those not looked at, because too many came", |scrape, out| {
        mdns(scrape, out, |mdns| mdns.packets_ignored);
    }),
    gauge("ringlane_mdns_addresses", NONE, "Addresses of peers known from it", |scrape, out| {
        mdns(scrape, out, |mdns| mdns.addresses);
    }),
    counter("ringlane_pex_received_answers", NONE, "Answers of Hyprspace's peer exchange received", |scrape, out| {
        out.add(&[], scrape.status.discovery.pex.answers_received);
    }),
    counter("ringlane_pex_sent_answers", NONE, "Answers sent", |scrape, out| {
        out.add(&[], scrape.status.discovery.pex.answers_sent);
    }),
    counter("ringlane_pex_refused_requests", NONE, "Requests that made no sense or came too often", |scrape, out| {
        out.add(&[], scrape.status.discovery.pex.requests_refused);
    }),
    counter("ringlane_pex_bad_lines", NONE, "Lines of answers that could not be read", |scrape, out| {
        out.add(&[], scrape.status.discovery.pex.bad_lines);
    }),
    gauge("ringlane_pex_addresses", NONE, "Addresses of peers known from it", |scrape, out| {
        out.add(&[], scrape.status.discovery.pex.addresses);
    }),
    gauge("ringlane_signed_records", NONE, "Signed records of peers held", |scrape, out| {
        out.add(&[], scrape.status.discovery.records.held);
    }),
    counter(
        "ringlane_signed_records_received",
        &["result"],
        "Signed records received, by what became of them",
        |scrape, out| {
            let records = &scrape.status.discovery.records;
            out.add(&["learnt"], records.learnt);
            out.add(&["ignored"], records.ignored);
            out.add(&["forged"], records.forged);
        },
    ),
    counter("ringlane_signed_records_sent_messages", NONE, "Messages with signed records sent", |scrape, out| {
        out.add(&[], scrape.status.discovery.records.messages_sent);
    }),
    counter("ringlane_signed_records_sent_bytes", NONE, "Their bytes", |scrape, out| {
        out.add(&[], scrape.status.discovery.records.bytes_sent);
    }),
    counter(
        "ringlane_signed_records_received_messages",
        NONE,
        "Messages with signed records received",
        |scrape, out| {
            out.add(&[], scrape.status.discovery.records.messages_received);
        },
    ),
    counter("ringlane_signed_records_received_bytes", NONE, "Their bytes", |scrape, out| {
        out.add(&[], scrape.status.discovery.records.bytes_received);
    }),
    gauge("ringlane_service_connections", SERVICE, "Open connections to a service of ours", |scrape, out| {
        services(scrape, out, |service| service.connections);
    }),
    counter("ringlane_service_accepted_connections", SERVICE, "Those accepted", |scrape, out| {
        services(scrape, out, |service| service.accepted);
    }),
    counter("ringlane_service_refused_connections", &["service", "reason"], "Those refused", |scrape, out| {
        for service in &scrape.status.services.offered {
            drops(&service.refused, &[&service.name], out);
        }
    }),
    gauge("ringlane_services_connections_to_peers", NONE, "Open connections to services of peers", |scrape, out| {
        out.add(&[], scrape.status.services.connections_to_peers);
    }),
    counter("ringlane_services_accepted_by_peers", NONE, "Connections that peers have accepted", |scrape, out| {
        out.add(&[], scrape.status.services.accepted_by_peers);
    }),
    gauge("ringlane_services_asking", NONE, "Connections of local clients that wait for an answer", |scrape, out| {
        out.add(&[], scrape.status.services.asking);
    }),
    gauge("ringlane_services_streams_of_peers", NONE, "Streams of peers to services of ours", |scrape, out| {
        out.add(&[], scrape.status.services.streams_of_peers);
    }),
    counter("ringlane_services_refused", REASON, "Connections of local clients refused", |scrape, out| {
        drops(&scrape.status.services.refused, &[], out);
    }),
    counter("ringlane_services_refused_to_peers", REASON, "Streams of peers refused, of no service", |scrape, out| {
        drops(&scrape.status.services.refused_to_peers, &[], out);
    }),
    counter("ringlane_services_dropped_packets", REASON, "Packets to services dropped", |scrape, out| {
        drops(&scrape.status.services.packets_dropped, &[], out);
    }),
    gauge("ringlane_peers", &["state"], "Configured peers, by whether packets can reach them", |scrape, out| {
        for (state, name) in STATES {
            let count = scrape.status.peers.iter().filter(|peer| peer.state == state).count();
            out.add(&[name], count as u64);
        }
    }),
    gauge("ringlane_peer_up", PEER, "1 if packets can reach the peer", |scrape, out| {
        peers(scrape, out, |peer| Some(u64::from(matches!(peer.state, PeerState::Direct | PeerState::Relayed))));
    }),
    gauge("ringlane_peer_carrier", &["peer", "name", "carrier"], "1; how packets reach the peer", |scrape, out| {
        for peer in &scrape.status.peers {
            if let Some(carrier) = peer.carrier {
                out.add(&[&peer.id, &peer.name, carrier_name(carrier)], 1_u64);
            }
        }
    }),
    gauge("ringlane_peer_lanes", PEER, "Lanes to the peer", |scrape, out| {
        peers(scrape, out, |peer| Some(peer.lanes.len() as u64));
    }),
    gauge("ringlane_peer_rtt_seconds", PEER, "Round-trip time of the best lane", |scrape, out| {
        peers(scrape, out, |peer| peer.rtt_us.map(seconds));
    }),
    gauge("ringlane_peer_mtu_bytes", PEER, "Largest inner packet that gets through", |scrape, out| {
        peers(scrape, out, |peer| peer.mtu_bytes.map(u64::from));
    }),
    gauge(
        "ringlane_peer_last_handshake_timestamp_seconds",
        PEER,
        "When its newest lane stood, since 1970",
        |scrape, out| {
            peers(scrape, out, |peer| peer.last_handshake_unix_s);
        },
    ),
    counter("ringlane_peer_sent_packets", PEER, "Inner packets sent", |scrape, out| {
        peers(scrape, out, |peer| Some(peer.packets_sent));
    }),
    counter("ringlane_peer_received_packets", PEER, "Inner packets received", |scrape, out| {
        peers(scrape, out, |peer| Some(peer.packets_received));
    }),
    counter("ringlane_peer_sent_bytes", PEER, "Bytes of inner packets sent", |scrape, out| {
        peers(scrape, out, |peer| Some(peer.bytes_sent));
    }),
    counter("ringlane_peer_received_bytes", PEER, "Bytes of inner packets received", |scrape, out| {
        peers(scrape, out, |peer| Some(peer.bytes_received));
    }),
    counter("ringlane_peer_sent_records", PEER, "Records sent", |scrape, out| {
        peers(scrape, out, |peer| Some(peer.records_sent));
    }),
    counter("ringlane_peer_received_records", PEER, "Authentic records received", |scrape, out| {
        peers(scrape, out, |peer| Some(peer.records_received));
    }),
    counter("ringlane_peer_sent_quic_datagrams", PEER, "QUIC DATAGRAM frames sent", |scrape, out| {
        peers(scrape, out, |peer| Some(peer.quic_datagrams_sent));
    }),
    counter("ringlane_peer_received_quic_datagrams", PEER, "QUIC DATAGRAM frames received", |scrape, out| {
        peers(scrape, out, |peer| Some(peer.quic_datagrams_received));
    }),
    counter(
        "ringlane_peer_sent_stream_packets",
        PEER,
        "Those of the packets sent that left by a stream",
        |scrape, out| {
            peers(scrape, out, |peer| Some(peer.stream_packets_sent));
        },
    ),
    counter(
        "ringlane_peer_received_stream_packets",
        PEER,
        "Those of the packets received that came by a stream",
        |scrape, out| {
            peers(scrape, out, |peer| Some(peer.stream_packets_received));
        },
    ),
    gauge("ringlane_peer_streams", PEER, "Packet streams that are open", |scrape, out| {
        peers(scrape, out, |peer| Some(peer.streams.len() as u64));
    }),
    gauge("ringlane_peer_known_addresses", PEER, "Addresses of it that the node knows", |scrape, out| {
        peers(scrape, out, |peer| Some(peer.known_addresses.len() as u64));
    }),
    counter(
        "ringlane_peer_dropped_packets",
        &["peer", "name", "reason"],
        "Packets of the peer's dropped",
        |scrape, out| {
            for peer in &scrape.status.peers {
                drops(&peer.drops, &[&peer.id, &peer.name], out);
            }
        },
    ),
    gauge("ringlane_lane_up", LANE, "1 if the peer answers on the lane", |scrape, out| {
        lanes(scrape, out, |lane| Some(u64::from(lane.state == LaneState::Up)));
    }),
    gauge(
        "ringlane_lane_info",
        &["peer", "name", "lane", "worker", "local", "remote", "carrier", "cipher"],
        "1; both ends, and how packets leave",
        |scrape, out| {
            for (peer, lane) in bounded_lanes(scrape) {
                let [index, worker] = [lane.index, lane.worker].map(|number| number.to_string());
                let [local, remote] = [lane.local, lane.remote].map(|address| address.to_string());
                let cipher = lane.cipher.as_deref().unwrap_or_default();
                let carrier = carrier_name(lane.carrier);
                out.add(&[&peer.id, &peer.name, &index, &worker, &local, &remote, carrier, cipher], 1_u64);
            }
        },
    ),
    gauge("ringlane_lane_age_seconds", LANE, "Since it was handed to its worker", |scrape, out| {
        lanes(scrape, out, |lane| Some(lane.age_s));
    }),
    gauge("ringlane_lane_rtt_seconds", LANE, "Smoothed round-trip time", |scrape, out| {
        lanes(scrape, out, |lane| lane.rtt_us.map(seconds));
    }),
    gauge("ringlane_lane_mtu_bytes", LANE, "Largest UDP payload its path is known to carry", |scrape, out| {
        lanes(scrape, out, |lane| lane.mtu_bytes.map(u64::from));
    }),
    gauge("ringlane_lane_epoch", LANE, "Epoch of the keys that seal", |scrape, out| {
        lanes(scrape, out, |lane| Some(lane.epoch));
    }),
    counter("ringlane_lane_rekeys", LANE, "Epochs that followed the first", |scrape, out| {
        lanes(scrape, out, |lane| Some(lane.rekeys));
    }),
    counter("ringlane_lane_failed_rekeys", LANE, "Rekeyings that came to nothing", |scrape, out| {
        lanes(scrape, out, |lane| Some(lane.rekeys_failed));
    }),
    counter("ringlane_lane_moves", LANE, "Times it moved to another path", |scrape, out| {
        lanes(scrape, out, |lane| Some(lane.moves));
    }),
    counter("ringlane_lane_sent_echoes", LANE, "Echo requests sent", |scrape, out| {
        lanes(scrape, out, |lane| Some(lane.echoes_sent));
    }),
    counter("ringlane_lane_answered_echoes", LANE, "Echo requests that were answered", |scrape, out| {
        lanes(scrape, out, |lane| Some(lane.echoes_answered));
    }),
    gauge("ringlane_worker_info", &["worker", "engine"], "1; what moves its packets", |scrape, out| {
        for worker in &scrape.status.workers {
            out.add(&[&worker.worker.to_string(), &worker.engine], 1_u64);
        }
    }),
    counter("ringlane_worker_turns", WORKER, "Turns of its loop", |scrape, out| {
        workers(scrape, out, |worker| worker.turns);
    }),
    counter("ringlane_worker_enters", WORKER, "System calls it made to move packets", |scrape, out| {
        workers(scrape, out, |worker| worker.enters);
    }),
    counter("ringlane_worker_sleeps", WORKER, "Times it slept because nothing was to do", |scrape, out| {
        workers(scrape, out, |worker| worker.sleeps);
    }),
    counter("ringlane_worker_handed_over_packets", WORKER, "Packets passed to another worker", |scrape, out| {
        workers(scrape, out, |worker| worker.handed_over);
    }),
    counter("ringlane_worker_tun_buffer_shortages", WORKER, "Times the TUN read had no buffer", |scrape, out| {
        workers(scrape, out, |worker| worker.tun_buffer_shortages);
    }),
    counter("ringlane_worker_udp_buffer_shortages", WORKER, "Times a lane's receive had no buffer", |scrape, out| {
        workers(scrape, out, |worker| worker.udp_buffer_shortages);
    }),
    counter("ringlane_worker_read_super_segments", WORKER, "Super-segments read from the TUN", |scrape, out| {
        workers(scrape, out, |worker| worker.super_segments_read);
    }),
    counter("ringlane_worker_written_super_segments", WORKER, "Super-segments written to the TUN", |scrape, out| {
        workers(scrape, out, |worker| worker.super_segments_written);
    }),
    counter("ringlane_worker_tun_writes", WORKER, "Writes to the TUN", |scrape, out| {
        workers(scrape, out, |worker| worker.tun_writes);
    }),
    counter("ringlane_worker_sent_trains", WORKER, "Sends of records, one or a train each", |scrape, out| {
        workers(scrape, out, |worker| worker.trains_sent);
    }),
    counter("ringlane_worker_received_trains", WORKER, "Receives of datagrams, one or a train each", |scrape, out| {
        workers(scrape, out, |worker| worker.trains_received);
    }),
    counter("ringlane_worker_resent_trains", WORKER, "Trains sent again record by record", |scrape, out| {
        workers(scrape, out, |worker| worker.trains_resent);
    }),
    gauge(
        "ringlane_egress_queueing",
        WORKER,
        "1 while packets wait in queues instead of leaving at once",
        |scrape, out| {
            workers(scrape, out, |worker| u64::from(worker.egress.state == "queueing"));
        },
    ),
    gauge("ringlane_egress_queued_packets", WORKER, "Packets that wait to leave", |scrape, out| {
        workers(scrape, out, |worker| worker.egress.queued_packets.into());
    }),
    gauge("ringlane_egress_queued_bytes", WORKER, "Their bytes", |scrape, out| {
        workers(scrape, out, |worker| worker.egress.queued_bytes.into());
    }),
    counter("ringlane_egress_marked_packets", WORKER, "Packets marked instead of dropped", |scrape, out| {
        workers(scrape, out, |worker| worker.egress.marked);
    }),
    gauge("ringlane_offload", &["worker", "offload", "state"], "1; what became of each offload", |scrape, out| {
        for worker in &scrape.status.workers {
            for (offload, state) in &worker.offloads {
                out.add(&[&worker.worker.to_string(), offload, state], 1_u64);
            }
        }
    }),
    counter("process_cpu_seconds", NONE, "Time on a CPU, all threads together", |scrape, out| {
        out.add(&[], scrape.process.cpu.as_secs_f64());
    }),
    gauge("process_start_time_seconds", NONE, "When the process started, since 1970", |scrape, out| {
        out.add(&[], scrape.process.started.as_secs_f64());
    }),
    gauge("process_resident_memory_bytes", NONE, "Memory it takes", |scrape, out| {
        out.add(&[], scrape.process.resident_bytes);
    }),
    gauge("process_virtual_memory_bytes", NONE, "Addresses it uses", |scrape, out| {
        out.add(&[], scrape.process.virtual_bytes);
    }),
    gauge("process_threads", NONE, "Its threads", |scrape, out| {
        out.add(&[], scrape.process.threads);
    }),
    gauge("process_open_fds", NONE, "Files and sockets it has open", |scrape, out| {
        out.add(&[], scrape.process.open_files);
    }),
    gauge("process_max_fds", NONE, "How many it may", |scrape, out| {
        out.add(&[], scrape.process.open_files_max);
    }),
];

type Fill = fn(&Scrape, &mut Samples);

pub(super) const fn counter(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
    samples: Fill,
) -> Family {
    Family { name, kind: Kind::Counter, labels, help, samples }
}

pub(super) const fn gauge(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
    samples: Fill,
) -> Family {
    Family { name, kind: Kind::Gauge, labels, help, samples }
}

fn connections(scrape: &Scrape, out: &mut Samples) {
    let mut counts: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for connection in &scrape.connections {
        let direction = match connection.direction {
            Direction::Inbound => "inbound",
            Direction::Outbound => "outbound",
        };
        *counts.entry((&connection.transport, direction)).or_default() += 1;
    }
    for ((transport, direction), count) in counts {
        out.add(&[transport, direction], count);
    }
}

fn drops(drops: &BTreeMap<String, u64>, labels: &[&str], out: &mut Samples) {
    for (reason, count) in drops {
        out.add(&[labels, &[reason]].concat(), *count);
    }
}

fn peers<V: Into<Value>>(scrape: &Scrape, out: &mut Samples, figure: impl Fn(&PeerStatus) -> Option<V>) {
    for peer in &scrape.status.peers {
        if let Some(figure) = figure(peer) {
            out.add(&[&peer.id, &peer.name], figure);
        }
    }
}

/// Every lane, or in a mesh of very many the first: the others show in `ringlane_peer_lanes`.
fn bounded_lanes(scrape: &Scrape) -> impl Iterator<Item = (&PeerStatus, &LaneStatus)> {
    let lanes = scrape.status.peers.iter().flat_map(|peer| peer.lanes.iter().map(move |lane| (peer, lane)));
    lanes.take(METRICS_LANES_MAX)
}

fn lanes<V: Into<Value>>(scrape: &Scrape, out: &mut Samples, figure: impl Fn(&LaneStatus) -> Option<V>) {
    for (peer, lane) in bounded_lanes(scrape) {
        if let Some(figure) = figure(lane) {
            out.add(&[&peer.id, &peer.name, &lane.index.to_string(), &lane.worker.to_string()], figure);
        }
    }
}

/// Nothing where mDNS is off.
fn mdns(scrape: &Scrape, out: &mut Samples, figure: impl Fn(&MdnsStatus) -> u64) {
    if let Some(mdns) = &scrape.status.discovery.mdns {
        out.add(&[], figure(mdns));
    }
}

fn services(scrape: &Scrape, out: &mut Samples, figure: impl Fn(&ServiceStatus) -> u64) {
    for service in &scrape.status.services.offered {
        out.add(&[&service.name], figure(service));
    }
}

fn workers(scrape: &Scrape, out: &mut Samples, figure: impl Fn(&WorkerStatus) -> u64) {
    for worker in &scrape.status.workers {
        out.add(&[&worker.worker.to_string()], figure(worker));
    }
}

pub(super) fn seconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1e6
}

fn carrier_name(carrier: Carrier) -> &'static str {
    match carrier {
        Carrier::Lane => "lane",
        Carrier::Quic => "quic",
        Carrier::Stream => "stream",
    }
}
