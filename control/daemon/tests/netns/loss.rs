//! What a lossy network leaves of the traffic is as it was sent.

use std::thread;
use std::time::Duration;

use crate::datagrams::Load;
use crate::lab::{Lab, Site};
use crate::node::{LANE_PORT, two_direct};
use crate::traffic::{connected, expect_content, send_content};

/// Loses every fiftieth datagram of lanes that enters the bridge at a port: 2 %, and the same ones each time.
fn lose_records(lab: &Lab) {
    let underlay = lab.underlay();
    // One frame on the wire is one record: senders cut, and the bridge does not merge. Receivers do.
    for site in [Site::A, Site::B] {
        lab.router(site).run("ethtool -K underlay tso off gso off tx-udp-segmentation off gro on");
        underlay.run(&format!("ethtool -K port-{} gro off", site.letter()));
    }
    underlay.run("nft add table netdev lab");
    for port in ["port-a", "port-b"] {
        underlay
            .run(&format!("nft add chain netdev lab {port} {{ type filter hook ingress device {port} priority 0 ; }}"));
        let lanes = format!("udp dport {LANE_PORT}-{}", LANE_PORT + 1);
        underlay.run(&format!("nft add rule netdev lab {port} {lanes} numgen inc mod 50 0 counter drop"));
    }
}

/// How many datagrams were lost, by the port they entered at.
fn lost(lab: &Lab) -> Vec<u64> {
    let listing = lab.underlay().run("nft list table netdev lab");
    let counters = listing.split("counter packets ").skip(1);
    counters.map(|counter| counter.split(' ').next().and_then(|count| count.parse().ok()).expect("a count")).collect()
}

#[test]
fn with_every_fiftieth_record_lost_tcp_content_is_whole_and_no_datagram_is_changed_moved_or_repeated() {
    const TCP_BYTES: usize = 20_000_000;
    let load = Load { flows: 4, datagrams: 3000, under_way: 128, lost_after: Duration::from_millis(50) };

    let Some(lab) = Lab::up(3) else { return };
    let (_setups, nodes) = two_direct(&lab, [2, 2]);
    lose_records(&lab);
    let (a, b) = (lab.host(Site::A), lab.host(Site::B));
    let [tcp_address, udp_address] = Site::B.host();
    let tally = thread::scope(|scope| {
        let [near, far] = connected(&a, &b, tcp_address, |_| ());
        scope.spawn(|| send_content(near, 1, TCP_BYTES));
        scope.spawn(|| expect_content(far, 1, TCP_BYTES));
        load.run(&a, &b, udp_address)
    });

    let sent = load.flows * load.datagrams;
    assert!(tally.arrived < sent && tally.arrived > sent * 9 / 10, "of {sent} datagrams: {tally:?}");
    assert_eq!((tally.overtaken, tally.again), (0, 0));
    let lost = lost(&lab);
    // The other direction has acknowledgements only.
    assert!(lost[0] > 100 && lost[1] > 0, "{lost:?}");
    for node in &nodes {
        let status = node.status();
        for reason in ["unauthentic", "replayed", "inbound_malformed", "frame_malformed", "packet_malformed"] {
            assert_eq!(status.dropped(reason), 0, "{reason} without an attacker: {status:?}");
        }
    }
}
