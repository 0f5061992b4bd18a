//! Packets on libp2p streams: where no UDP passes between the lanes' ports, and where the configuration says so.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;

use serde_json::Value;

use crate::lab::{Lab, PATIENCE, Site};
use crate::node::{LANE_PORT, Node, Status, mesh};
use crate::traffic::{Content, connected, tcp_both_ways, udp_flows};

fn wait_carrier(node: &mut Node, peer: Site, carrier: &str) -> Status {
    node.wait_until(&format!("carrier {carrier}"), |status| {
        status.peer(peer).is_some_and(|peer| peer["carrier"] == carrier)
    })
}

/// Has both routers drop what comes for the lanes' ports.
fn drop_lanes(lab: &Lab) {
    for site in [Site::A, Site::B] {
        let router = lab.router(site);
        router.run("nft add table ip lanes");
        router.run("nft add chain ip lanes input { type filter hook input priority 0 ; }");
        router.run(&format!("nft add rule ip lanes input udp dport {LANE_PORT}-{} counter drop", LANE_PORT + 3));
    }
}

fn let_lanes_pass(lab: &Lab) {
    for (site, address) in [(Site::A, "198.51.100.1/24"), (Site::B, "198.51.100.2/24")] {
        lab.router(site).run("nft delete table ip lanes");
        // Another address is a reason to try at once; without one it may take half a minute.
        lab.router(site).run(&format!("ip addr add {address} dev underlay"));
    }
}

/// Moves `bytes` on an open connection, both ways at once, and compares them.
fn exchange(ends: &[TcpStream; 2], seed: u64, bytes: usize) {
    let mut sent = vec![0; bytes];
    Content::of(seed).fill(&mut sent);
    let expected = &sent;
    thread::scope(|scope| {
        for (mut from, mut to) in [(&ends[0], &ends[1]), (&ends[1], &ends[0])] {
            scope.spawn(move || from.write_all(expected).expect("the stream goes on"));
            scope.spawn(move || {
                let mut received = vec![0; bytes];
                to.read_exact(&mut received).expect("the stream goes on");
                assert!(received == *expected, "the stream differs");
            });
        }
    });
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

/// The streams to a peer that packets leave by.
fn sending(status: &Status, peer: Site) -> Vec<String> {
    let streams = status.peer(peer).and_then(|peer| peer["streams"].as_array()).cloned().unwrap_or_default();
    let sending = streams.iter().filter(|stream| stream["is_sending"] == true);
    sending.filter_map(|stream| stream["protocol"].as_str().map(str::to_owned)).collect()
}

#[test]
fn where_no_udp_passes_packets_travel_by_stream_and_a_connection_survives_that_lanes_come_up() {
    let Some(lab) = Lab::up(2) else { return };
    drop_lanes(&lab);
    let setups = mesh(&lab, [(Site::A, 2), (Site::B, 1)]);
    let mut nodes = setups.each_ref().map(Node::up);
    for (node, peer) in nodes.iter_mut().zip([Site::B, Site::A]) {
        let status = wait_carrier(node, peer, "stream");
        assert_eq!((status.state(peer), status.lanes(peer)), ("direct", 0));
    }
    traffic_crosses(&lab);
    for (node, peer) in nodes.iter().zip([Site::B, Site::A]) {
        let status = node.status();
        assert_eq!(sending(&status, peer), ["/ringlane/packets/1"], "{status:?}");
        assert!(status.sum("stream_packets_sent") > 500 && status.sum("records_sent") == 0, "{status:?}");
    }
    let streams = connected(&lab.host(Site::A), &lab.host(Site::B), Site::B.host_v4().into(), |_| ());
    streams.iter().for_each(|stream| stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set"));
    exchange(&streams, 1, 3_000_000);
    let_lanes_pass(&lab);
    exchange(&streams, 2, 3_000_000);
    for (node, peer) in nodes.iter_mut().zip([Site::B, Site::A]) {
        wait_carrier(node, peer, "lane");
    }
    exchange(&streams, 3, 3_000_000);
    for node in &nodes {
        let status = node.status();
        assert!(status.sum("records_sent") > 1000, "{status:?}");
        for reason in ["stream_form", "stream_too_long", "stream_malformed", "stream_not_connected"] {
            assert_eq!(status.dropped(reason), 0, "{reason}: {status:?}");
        }
    }
    traffic_crosses(&lab);
}

#[test]
fn with_carrier_stream_at_one_end_there_are_no_lanes_and_all_traffic_crosses_over_quic_and_over_tcp() {
    for kept in ["quic-v1", "tcp"] {
        let Some(lab) = Lab::up(2) else { return };
        let mut setups = mesh(&lab, [(Site::A, 1), (Site::B, 2)]);
        setups[1].set("dataplane", "carrier", "stream");
        for setup in &mut setups {
            for table in setup.settings["peers"].as_array_mut().expect("peers is an array") {
                let addresses = table["addresses"].as_array_mut().expect("addresses is an array");
                addresses.retain(|address| address.as_str().is_some_and(|address| address.contains(kept)));
            }
            let listen = setup.settings["control"]["listen"].as_array().cloned().expect("listen is an array");
            let is_kept = |address: &toml::Value| address.as_str().is_some_and(|address| address.contains(kept));
            let listen: Vec<_> = listen.into_iter().filter(is_kept).collect();
            setup.set("control", "listen", listen);
            setup.write();
        }
        let mut nodes = setups.each_ref().map(Node::up);
        for (node, peer) in nodes.iter_mut().zip([Site::B, Site::A]) {
            wait_carrier(node, peer, "stream");
        }
        traffic_crosses(&lab);
        for (node, peer) in nodes.iter().zip([Site::B, Site::A]) {
            let status = node.status();
            assert_eq!((status.lanes(peer), status.sum("records_sent")), (0, 0), "{status:?}");
            assert!(!sending(&status, peer).is_empty(), "{status:?}");
        }
        let told = nodes[1].status();
        assert_eq!(told.peer(Site::A).map(|peer| &peer["problem"]), Some(&Value::Null), "{told:?}");
    }
}
