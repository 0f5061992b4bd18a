//! A relay that loses, delays, mixes up and repeats the records it forwards costs time and nothing else.

use std::thread;
use std::time::Duration;

use super::kinds::{Kind, Pair};
use super::lab::{Family, NatLab};
use super::nodes::Setups;
use super::udp_relay::relays;
use crate::datagrams::Load;
use crate::delay::Treatment;
use crate::lab::Site;
use crate::node::LANE_PORT;
use crate::traffic::tcp_both_ways;

/// Records pass the relay's link twice: on their way in, and on their way out.
const BAD: Treatment = Treatment {
    delay: Duration::from_millis(1),
    jitter: Duration::from_millis(6),
    lost: 15,
    repeated: 100,
    only_port: Some(LANE_PORT),
};

#[test]
fn a_relay_that_loses_delays_mixes_up_and_repeats_records_costs_time_and_nothing_else() {
    let pair = Pair::Apart(Kind::Symmetric, Kind::Symmetric);
    let Some(nat) = NatLab::up(pair) else { return };
    let _links = [Site::R, Site::S].map(|site| nat.treat(site, BAD));
    let setups = Setups::init(&nat, pair);
    let third = setups.third_up();
    nat.part([Site::A, Site::B], Family::Both);
    let mut ends = setups.ends_up();
    for (node, peer) in ends.iter_mut().zip([Site::B, Site::A]) {
        node.wait_until(&format!("relayed lanes to {peer:?}"), |status| relays(status, peer).is_some());
    }

    let (a, b) = (nat.lab().host(Site::A), nat.lab().host(Site::B));
    let [tcp_address, udp_address] = Site::B.host();
    let load = Load { flows: 4, datagrams: 1000, under_way: 64, lost_after: Duration::from_millis(100) };
    let tally = thread::scope(|scope| {
        scope.spawn(|| tcp_both_ways(&a, &b, tcp_address, 2, 400_000));
        load.run(&a, &b, udp_address)
    });
    let sent = load.flows * load.datagrams;
    assert!(tally.arrived < sent && tally.arrived > sent / 2, "of {sent} datagrams: {tally:?}");
    assert!(tally.overtaken > 0 && tally.again == 0, "{tally:?}");

    let statuses = ends.each_ref().map(|node| node.status());
    for (status, peer) in statuses.iter().zip([Site::B, Site::A]) {
        assert!(status.dropped("replayed") > 100, "what came twice is dropped: {status:?}");
        for reason in ["unauthentic", "inbound_malformed", "frame_malformed", "packet_malformed"] {
            assert_eq!(status.dropped(reason), 0, "{reason}: {status:?}");
        }
        assert!(relays(status, peer).is_some(), "no lane was lost: {status:?}");
    }
    let passed_on = third.iter().map(|node| node.status().part("relay")["forwarding"]["bytes"].as_u64().unwrap_or(0));
    assert!(passed_on.sum::<u64>() > 2_000_000, "it went through a relay");
}
