//! What a link does when not all of its lanes can be had.

use std::net::SocketAddr;
use std::time::Duration;

use crate::lab::{Lab, Site};
use crate::node::{LANE_PORT, Node, Status, mesh};
use crate::stream::Stream;
use crate::traffic::{tcp_both_ways, udp_flows, udp_one_way};

/// Flows enough that each of two workers gets some: all sixteen on one has a chance of 1 in 32 768.
const FLOWS: u32 = 16;

/// How long traffic may stand still. A lane that nobody answers lives for 8 s.
const MOVED_WITHIN: Duration = Duration::from_secs(3);

/// The lanes that the peer answers on, at both nodes, by their ports.
fn answered(nodes: &[Node; 2]) -> [Vec<u16>; 2] {
    [(&nodes[0], Site::B), (&nodes[1], Site::A)].map(|(node, peer)| {
        let status = node.status();
        let lanes = status.peer(peer).and_then(|peer| peer["lanes"].as_array()).cloned().unwrap_or_default();
        let up = lanes.iter().filter(|lane| lane["state"] == "up");
        up.filter_map(|lane| lane["local"].as_str()?.parse::<SocketAddr>().ok()).map(|local| local.port()).collect()
    })
}

#[test]
fn with_a_lane_port_blocked_every_flow_crosses_in_order_by_the_other_lane() {
    let Some(lab) = Lab::up(2) else { return };
    let setups = mesh(&lab, [(Site::A, 2), (Site::B, 2)]);
    let router = lab.router(Site::A);
    router.run("nft add table inet lab");
    router.run("nft add chain inet lab input { type filter hook input priority 0 ; }");
    router.run(&format!("nft add rule inet lab input udp dport {} drop", LANE_PORT + 1));
    let mut nodes = setups.each_ref().map(Node::up);
    nodes[0].wait_direct(&[Site::B], 1);
    nodes[1].wait_direct(&[Site::A], 1);

    let (a, b) = (lab.host(Site::A), lab.host(Site::B));
    for (near, far, addresses) in [(&a, &b, Site::B.host()), (&b, &a, Site::A.host())] {
        for address in addresses {
            udp_one_way(near, far, address, FLOWS, 30);
            udp_flows(near, far, address, FLOWS, 10);
            tcp_both_ways(near, far, address, 4, 300_000);
        }
    }
    for node in &nodes {
        let status = node.status();
        assert!(status.sum("handed_over") > 100, "a worker without a lane passes its packets on: {status:?}");
    }

    let peers = [Site::B, Site::A];
    for (node, peer) in nodes.iter_mut().zip(peers) {
        let problem = |status: &Status| status.peer(peer).and_then(|peer| peer["problem"].as_str()).map(str::to_owned);
        let names_the_ports = |status: &Status| problem(status).is_some_and(|text| text.contains("the lanes' ports"));
        node.wait_until("told what keeps the lane from standing", names_the_ports);
    }
    router.run("nft delete table inet lab");
    for (node, peer) in nodes.iter_mut().zip(peers) {
        let status = node.wait_direct(&[peer], 2);
        assert!(status.peer(peer).is_some_and(|peer| peer["problem"].is_null()), "{status:?}");
    }
}

#[test]
fn flows_of_a_lane_that_is_swallowed_go_by_the_other_within_a_moment_and_the_lane_is_used_again() {
    let Some(lab) = Lab::up(2) else { return };
    let setups = mesh(&lab, [(Site::A, 2), (Site::B, 2)]);
    let mut nodes = setups.each_ref().map(Node::up);
    nodes[0].wait_direct(&[Site::B], 2);
    nodes[1].wait_direct(&[Site::A], 2);
    let router = lab.router(Site::A);
    let stream = Stream::start_gently(&lab);
    for port in [LANE_PORT, LANE_PORT + 1] {
        let silence = stream.silence_of(
            &format!("what port {port} sends and gets is swallowed"),
            || {
                router.run("nft add table inet lab");
                router.run("nft add chain inet lab input { type filter hook input priority 0 ; }");
                router.run("nft add chain inet lab output { type filter hook output priority 0 ; }");
                router.run(&format!("nft add rule inet lab input udp dport {port} drop"));
                router.run(&format!("nft add rule inet lab output udp sport {port} drop"));
            },
            || answered(&nodes).iter().all(|ports| !ports.contains(&port) && ports.len() == 1).then_some(()),
        );
        assert!(silence.iter().all(|silence| *silence < MOVED_WITHIN), "{silence:?}");
        let healed = stream.silence_of(
            &format!("port {port} is open again"),
            || _ = router.run("nft delete table inet lab"),
            || answered(&nodes).iter().all(|ports| ports.len() == 2).then_some(()),
        );
        assert!(healed.iter().all(|silence| *silence < MOVED_WITHIN), "{healed:?}");
    }
    assert!(stream.stop() > 0);
}
