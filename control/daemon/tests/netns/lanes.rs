//! What a link does when not all of its lanes can be had.

use crate::lab::{Lab, Site};
use crate::node::{LANE_PORT, Node, mesh};
use crate::traffic::{tcp_both_ways, udp_flows};

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
    for address in Site::B.host() {
        udp_flows(&a, &b, address, FLOWS, 20);
        tcp_both_ways(&a, &b, address, 4, 300_000);
    }
    for node in &nodes {
        let status = node.status();
        assert!(status.sum("handed_over") > 0, "a worker without a lane passed its packets on: {status:?}");
    }
}
