//! Lanes leave a path that loses a good part for one that does not, and stay where all paths are alike.

use std::time::{Duration, Instant};

use crate::lab::{Lab, Site, wait_for};
use crate::moves::{are_at, direct, lanes_are_the_same, moves, wherever};
use crate::node::{LANE_PORT, Node};
use crate::paths::{plug_in, route_underlay};
use crate::stream::Stream;

const FAR: &str = "10.201.0.";
const NEAR: &str = "10.213.0.";

/// How long nothing may go to and fro: several rounds of looking around, the second of which could move a lane.
const WATCHED: Duration = Duration::from_secs(25);

/// A path that was left is avoided for a minute, and is looked at then when 75 s have passed, or 155.
const LOOKS: Duration = Duration::from_secs(200);

/// Loses every so many-th datagram of lanes that comes to routers by a device, by chance.
fn lose(lab: &Lab, sites: &[Site], device: &str, one_of: u32) {
    for site in sites {
        let router = lab.router(*site);
        let lanes = format!("udp dport {LANE_PORT}-{}", LANE_PORT + 1);
        // What is lost has to be one record, not a train of them.
        router.run(&format!("ethtool -K {device} tso off gso off tx-udp-segmentation off gro off"));
        router.run("nft add table ip lossy");
        router.run("nft add chain ip lossy in { type filter hook prerouting priority -400 ; }");
        router.run(&format!("nft add rule ip lossy in iifname {device} {lanes} numgen random mod {one_of} 0 drop"));
    }
}

/// Lets nothing pass from an address in one network to one in the other: what goes by one of them comes back by it.
fn keep_apart(lab: &Lab) {
    for site in [Site::A, Site::B] {
        let router = lab.router(site);
        router.run("nft add table ip apart");
        router.run("nft add chain ip apart in { type filter hook prerouting priority -500 ; }");
        for [from, to] in [[FAR, NEAR], [NEAR, FAR]] {
            router.run(&format!("nft add rule ip apart in ip saddr {from}0/24 ip daddr {to}0/24 drop"));
        }
    }
}

fn losses(nodes: &[Node; 2]) -> Vec<Option<u64>> {
    [loss(&nodes[0], Site::B), loss(&nodes[1], Site::A)].concat()
}

fn loss(node: &Node, peer: Site) -> Vec<Option<u64>> {
    let status = node.status();
    let lanes = status.peer(peer).and_then(|peer| peer["lanes"].as_array()).expect("status lists lanes");
    lanes.iter().map(|lane| lane["loss_percent"].as_u64()).collect()
}

/// As [`wait_for`], for what takes some looks around, ever more rarely.
fn wait_long_for(what: &str, mut probe: impl FnMut() -> Option<()>) {
    let began = Instant::now();
    while probe().is_none() {
        assert!(began.elapsed() < LOOKS, "gave up after {LOOKS:?} waiting for {what}");
        std::thread::sleep(Duration::from_millis(250));
    }
    println!("{what}: after {:?}", began.elapsed());
}

#[test]
fn lanes_leave_a_lossy_local_network_for_a_clean_way_around_it_and_come_back_when_it_is_clean() {
    let Some(lab) = Lab::up(2) else { return };
    route_underlay(&lab);
    let nodes = direct(&wherever(&lab));
    let stream = Stream::start_gently(&lab);
    keep_apart(&lab);
    plug_in(&lab);
    wait_long_for("lanes come onto the local network", || are_at(&nodes, NEAR, NEAR));
    wait_long_for("what it loses is known", || losses(&nodes).iter().all(|percent| *percent == Some(0)).then_some(()));
    // One direction only: both ends find it out, as what they ask comes back or does not.
    lose(&lab, &[Site::B], "near", 3);
    wait_long_for("status tells of the loss at both ends", || {
        let is_told =
            |node: &Node, peer| loss(node, peer).iter().any(|percent| percent.is_some_and(|percent| percent >= 5));
        (is_told(&nodes[0], Site::B) && is_told(&nodes[1], Site::A)).then_some(())
    });
    wait_long_for("lanes leave for the way around", || are_at(&nodes, FAR, FAR));
    let before = moves(&nodes);
    std::thread::sleep(WATCHED);
    assert_eq!(moves(&nodes), before, "nothing goes to and fro");
    lab.router(Site::B).run("nft delete table ip lossy");
    wait_long_for("lanes are back in the local network", || are_at(&nodes, NEAR, NEAR));
    assert!(stream.stop() > 0);
    lanes_are_the_same(&nodes);
}

#[test]
fn lanes_stay_where_they_are_while_all_underlays_lose_alike() {
    let Some(lab) = Lab::up(2) else { return };
    let nodes = direct(&wherever(&lab));
    let stream = Stream::start_gently(&lab);
    // Before that a lane's few round trips are those of a busy machine, and the other underlay would only seem shorter.
    wait_long_for("what the first underlay is like is known", || {
        losses(&nodes).iter().all(Option::is_some).then_some(())
    });
    plug_in(&lab);
    for device in ["underlay", "near"] {
        lose(&lab, &[Site::A, Site::B], device, 8);
    }
    wait_for("a lane is lossy", || {
        let logs = nodes.each_ref().map(Node::log);
        logs.iter().any(|log| log.contains("lane lossy: ")).then_some(())
    });
    std::thread::sleep(WATCHED);
    are_at(&nodes, FAR, FAR).expect("no other is better");
    assert_eq!(moves(&nodes), [0, 0]);
    assert!(stream.stop() > 0);
    lanes_are_the_same(&nodes);
}
