//! Content crosses whole where the network cuts trains, and where the two ends of a link do not agree on offloads.

use toml::{Table, Value as Toml};

use crate::lab::{Lab, Site};
use crate::node::{Node, mesh};
use crate::offload::{direct_over_two_lanes, traffic_is_whole};
use crate::shapes_udp::trains_of_programs_are_whole;

/// Senders cut, and receivers merge, as with network cards: a veth with GRO goes through NAPI, as a driver does.
const CUT: &str = "ethtool -K DEVICE tso off gso off tx-udp-segmentation off gro on";

/// Nothing was dropped but the hosts' own multicast.
fn nothing_was_dropped(nodes: &[Node]) {
    for node in nodes {
        let mut drops = node.status().drops();
        drops.remove("no_route");
        assert!(drops.is_empty(), "{drops:?}");
    }
}

#[test]
fn with_trains_and_super_segments_cut_on_every_wire_content_is_whole_and_trains_are_merged_again() {
    let Some(lab) = Lab::up(2) else { return };
    for site in [Site::A, Site::B] {
        for (namespace, device) in [(lab.router(site), "underlay"), (lab.router(site), "lan"), (lab.host(site), "eth0")]
        {
            namespace.run(&CUT.replace("DEVICE", device));
        }
    }
    let nodes = direct_over_two_lanes(&mesh(&lab, [(Site::A, 2), (Site::B, 2)]));
    traffic_is_whole(&lab);
    trains_of_programs_are_whole(&lab);
    nothing_was_dropped(&nodes);
    for node in &nodes {
        let status = node.status();
        let (records, trains) = (status.sum("records_received"), status.sum("trains_received"));
        assert!(records > trains, "{records} records in {trains} trains");
        assert!(status.sum("super_segments_written") > 0, "{status:?}");
    }
}

/// Traffic is whole, and nothing dropped, when B has set a switch and A has not. Returns the nodes A and B.
fn with_switch_at_one_end(lab: &Lab, offload: &str, value: bool) -> [Node; 2] {
    let mut setups = mesh(lab, [(Site::A, 2), (Site::B, 2)]);
    setups[1].set("dataplane", "offload", Table::from_iter([(offload.to_owned(), Toml::Boolean(value))]));
    setups[1].write();
    let nodes = direct_over_two_lanes(&setups);
    traffic_is_whole(lab);
    trains_of_programs_are_whole(lab);
    nothing_was_dropped(&nodes);
    let state = if value { "on" } else { "off" };
    for (node, is_set) in nodes.iter().zip([false, true]) {
        for offloads in node.status().offloads() {
            assert_eq!(offloads[offload] == state, is_set, "{offload} in {offloads:?}");
        }
    }
    nodes
}

#[test]
fn content_is_whole_when_one_end_sends_no_trains() {
    let Some(lab) = Lab::up(2) else { return };
    let [_, b] = with_switch_at_one_end(&lab, "udp_gso", false).map(|node| node.status());
    assert!(b.sum("trains_sent") >= b.sum("records_sent"), "each record left by itself: {b:?}");
}

#[test]
fn content_is_whole_when_one_end_receives_no_trains() {
    let Some(lab) = Lab::up(2) else { return };
    let [_, b] = with_switch_at_one_end(&lab, "udp_gro", false).map(|node| node.status());
    assert!(b.sum("trains_received") >= b.sum("records_received"), "each record came by itself: {b:?}");
}

#[test]
fn content_is_whole_when_one_end_rebuilds_no_super_segments() {
    let Some(lab) = Lab::up(2) else { return };
    let [a, b] = with_switch_at_one_end(&lab, "tun_coalesce", false).map(|node| node.status());
    assert!(a.sum("super_segments_written") > 0, "{a:?}");
    assert_eq!(b.sum("super_segments_written"), 0);
}

#[test]
fn content_is_whole_when_one_end_takes_no_tcp_super_segments() {
    let Some(lab) = Lab::up(2) else { return };
    let [a, b] = with_switch_at_one_end(&lab, "tun_tso", false).map(|node| node.status().sum("super_segments_read"));
    assert!(0 < b && b < a, "B reads those of UDP only: {a}, {b}");
}

#[test]
fn content_is_whole_when_one_end_takes_no_udp_super_segments() {
    let Some(lab) = Lab::up(2) else { return };
    with_switch_at_one_end(&lab, "tun_uso", false);
}

#[test]
fn content_is_whole_when_one_end_has_every_checksum_finished() {
    let Some(lab) = Lab::up(2) else { return };
    let [a, b] = with_switch_at_one_end(&lab, "tun_checksum", false).map(|node| node.status());
    assert!(a.sum("super_segments_read") > 0, "{a:?}");
    assert_eq!(b.sum("super_segments_read"), 0);
}

#[test]
fn content_is_whole_when_one_end_ends_its_trains_with_sentinels() {
    let Some(lab) = Lab::up(2) else { return };
    with_switch_at_one_end(&lab, "udp_sentinel", true);
}
