//! What a link does when not all of its lanes can be had.

use crate::lab::{Lab, Site};
use crate::node::{LANE_PORT, Node, Status, mesh};
use crate::traffic::{tcp_both_ways, udp_flows, udp_one_way};

/// Flows enough that each of two workers gets some: all sixteen on one has a chance of 1 in 32 768.
const FLOWS: u32 = 16;

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
