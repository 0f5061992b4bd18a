//! Packets in DATAGRAM frames of the lanes' QUIC connections: where the configuration says so, and where the network lets
//! nothing else pass.

use std::net::TcpStream;
use std::thread;

use serde_json::Value;

use crate::lab::{Lab, Site, wait_for};
use crate::node::{LANE_PORT, Node, Setup, Status, mesh};
use crate::traffic::{Content, connected, tcp_both_ways, udp_flows};
use crate::wire::{Capture, Datagram};

/// The QUIC path MTU from which on the largest inner packet fits a DATAGRAM frame: 38 bytes less, and a frame header.
const WIDE_ENOUGH: u64 = 1420 + 1 + 38;

/// Waits until packets to `peer` leave by `carrier` on all of `lanes` lanes, whole ones if that is QUIC.
fn wait_carrier(node: &mut Node, peer: Site, carrier: &str, lanes: usize) -> Status {
    node.wait_until(&format!("carrier {carrier}"), |status| {
        let is_so = |lane: &Value| {
            lane["carrier"] == carrier && (carrier != "quic" || lane["mtu_bytes"].as_u64() >= Some(WIDE_ENOUGH))
        };
        let peer = status.peer(peer);
        peer.and_then(|peer| peer["lanes"].as_array()).is_some_and(|all| all.len() == lanes && all.iter().all(is_so))
            && peer.is_some_and(|peer| peer["carrier"] == carrier)
    })
}

fn traffic_crosses(lab: &Lab) {
    let (a, b) = (lab.host(Site::A), lab.host(Site::B));
    for address in Site::B.host() {
        a.ping(address);
        tcp_both_ways(&a, &b, address, 3, 1_000_000);
        udp_flows(&a, &b, address, 4, 4);
    }
    for address in Site::A.host() {
        b.ping(address);
    }
}

/// Nothing was dropped but the hosts' own multicast, and full-size packets before the path MTU was known.
fn nothing_was_dropped(status: &Status) {
    let mut drops = status.drops();
    ["no_route", "too_big"].iter().for_each(|reason| _ = drops.remove(*reason));
    assert!(drops.is_empty(), "{drops:?}");
}

/// How many records and how many QUIC packets were captured on the lanes' ports.
fn records_and_quic(capture: Capture) -> (usize, usize) {
    let lanes = LANE_PORT..LANE_PORT + 4;
    let datagrams: Vec<_> = capture.stop().iter().filter_map(|packet| Datagram::parse(packet)).collect();
    let of_lanes = datagrams.iter().filter(|datagram| lanes.contains(&datagram.destination.port()));
    let records = of_lanes.clone().filter(|datagram| datagram.payload.first().is_some_and(|&first| first >> 4 == 3));
    let quic = of_lanes.clone().filter(|datagram| datagram.payload.first().is_some_and(|&first| first & 0x40 != 0));
    (records.count(), quic.count())
}

#[test]
fn with_carrier_quic_on_both_ends_all_traffic_crosses_and_no_record_is_on_the_wire() {
    let Some(lab) = Lab::up(2) else { return };
    let mut setups = mesh(&lab, [(Site::A, 2), (Site::B, 2)]);
    for setup in &mut setups {
        setup.set("dataplane", "carrier", "quic");
        setup.write();
    }
    let capture = Capture::start(&lab.router(Site::A));
    let mut nodes = setups.each_ref().map(Node::up);
    for (node, peer) in nodes.iter_mut().zip([Site::B, Site::A]) {
        wait_carrier(node, peer, "quic", 2);
    }
    traffic_crosses(&lab);
    let (records, quic) = records_and_quic(capture);
    assert!(records == 0 && quic > 100, "{records} records, {quic} QUIC packets");
    for node in &nodes {
        let status = node.status();
        let datagrams = [status.sum("quic_datagrams_sent"), status.sum("quic_datagrams_received")];
        assert!(datagrams.iter().all(|&datagrams| datagrams > 1000), "{datagrams:?}");
        assert_eq!((status.sum("records_sent"), status.sum("records_received")), (0, 0));
        assert!(status.sum("super_segments_written") > 0, "packets are joined: {status:?}");
        let (sent, trains) = (status.sum("quic_datagrams_sent"), status.workers("trains_sent").iter().sum::<u64>());
        assert!(trains < sent, "{sent} datagrams in {trains} trains");
        nothing_was_dropped(&status);
    }
}

/// Sets the carrier of the one peer that a site has.
fn set_peer_carrier(setup: &mut Setup, carrier: &str) {
    let peers = setup.settings["peers"].as_array_mut().expect("peers is an array");
    peers[0].as_table_mut().expect("a peer is a table").insert("carrier".into(), carrier.into());
    setup.write();
}

#[test]
fn one_end_may_use_quic_for_a_peer_and_the_other_records() {
    let Some(lab) = Lab::up(2) else { return };
    let mut setups = mesh(&lab, [(Site::A, 2), (Site::B, 1)]);
    setups[0].set("dataplane", "carrier", "lane");
    set_peer_carrier(&mut setups[0], "quic");
    let mut nodes = setups.each_ref().map(Node::up);
    wait_carrier(&mut nodes[0], Site::B, "quic", 2);
    wait_carrier(&mut nodes[1], Site::A, "lane", 2);
    traffic_crosses(&lab);
    let [a, b] = nodes.each_ref().map(Node::status);
    assert!(a.sum("quic_datagrams_sent") > 1000 && a.sum("records_received") > 1000, "{a:?}");
    assert!(b.sum("quic_datagrams_received") > 1000 && b.sum("records_sent") > 1000, "{b:?}");
    assert_eq!(b.sum("quic_datagrams_sent"), 0);
    // What A asks in datagrams whether B is there is answered in them.
    assert!(a.sum("quic_datagrams_received") < 100, "{a:?}");
    nothing_was_dropped(&a);
    nothing_was_dropped(&b);
}

/// Has both routers drop the records that reach them.
fn drop_records(lab: &Lab) {
    for site in [Site::A, Site::B] {
        let router = lab.router(site);
        router.run("nft add table ip carrier");
        router.run("nft add chain ip carrier input { type filter hook input priority 0 ; }");
        // The upper half of the first byte behind the UDP header.
        let rule = format!("udp dport {LANE_PORT}-{} @th,64,4 3 counter drop", LANE_PORT + 3);
        router.run(&format!("nft add rule ip carrier input {rule}"));
    }
}

fn let_records_pass(lab: &Lab) {
    for site in [Site::A, Site::B] {
        lab.router(site).run("nft delete table ip carrier");
    }
}

/// Moves `bytes` on an open connection and compares them.
fn exchange([near, far]: &mut [TcpStream; 2], seed: u64, bytes: usize) {
    use std::io::{Read, Write};
    let mut sent = vec![0; bytes];
    Content::of(seed).fill(&mut sent);
    let mut received = vec![0; bytes];
    thread::scope(|scope| {
        scope.spawn(|| near.write_all(&sent).expect("the stream goes on"));
        far.read_exact(&mut received).expect("the stream goes on");
    });
    assert!(sent == received, "the stream differs");
}

#[test]
fn where_records_never_pass_packets_go_over_to_quic_and_come_back_when_records_pass() {
    let Some(lab) = Lab::up(2) else { return };
    drop_records(&lab);
    let setups = mesh(&lab, [(Site::A, 2), (Site::B, 1)]);
    let mut nodes = setups.each_ref().map(Node::up);
    for (node, peer) in nodes.iter_mut().zip([Site::B, Site::A]) {
        wait_carrier(node, peer, "quic", 2);
        wait_for("a line in the log", || node.log().contains("records do not pass, QUIC does").then_some(()));
    }
    traffic_crosses(&lab);
    let_records_pass(&lab);
    for (node, peer) in nodes.iter_mut().zip([Site::B, Site::A]) {
        wait_carrier(node, peer, "lane", 2);
        wait_for("a line in the log", || node.log().contains("packets leave in records").then_some(()));
    }
    traffic_crosses(&lab);
}

#[test]
fn a_stream_survives_that_records_stop_passing_in_its_midst_and_pass_again() {
    let Some(lab) = Lab::up(2) else { return };
    let setups = mesh(&lab, [(Site::A, 1), (Site::B, 1)]);
    let mut nodes = setups.each_ref().map(Node::up);
    for (node, peer) in nodes.iter_mut().zip([Site::B, Site::A]) {
        wait_carrier(node, peer, "lane", 1);
    }
    let mut stream = connected(&lab.host(Site::A), &lab.host(Site::B), Site::B.host_v4().into(), |_| ());
    exchange(&mut stream, 1, 3_000_000);
    drop_records(&lab);
    exchange(&mut stream, 2, 3_000_000);
    for (node, peer) in nodes.iter_mut().zip([Site::B, Site::A]) {
        wait_carrier(node, peer, "quic", 1);
    }
    exchange(&mut stream, 3, 3_000_000);
    let_records_pass(&lab);
    for (node, peer) in nodes.iter_mut().zip([Site::B, Site::A]) {
        wait_carrier(node, peer, "lane", 1);
    }
    exchange(&mut stream, 4, 3_000_000);
    for node in &nodes {
        let status = node.status();
        for reason in ["unauthentic", "replayed", "inbound_malformed", "frame_malformed", "packet_malformed"] {
            assert_eq!(status.dropped(reason), 0, "{reason}: {status:?}");
        }
    }
}
