//! Sites that no path joins but by way of a third, whose node is a relay.

use rustix::process::Signal;
use serde_json::Value;

use crate::lab::{Lab, Site};
use crate::node::{Node, Setup, Status, mesh, name_of};
use crate::traffic::{tcp_both_ways, udp_flows};

/// Lets nothing pass between the underlay addresses of A and B.
fn part(lab: &Lab) {
    for (site, other) in [(Site::A, Site::B), (Site::B, Site::A)] {
        let router = lab.router(site);
        router.run("nft add table ip relay");
        for (hook, side) in [("input", "saddr"), ("output", "daddr")] {
            router.run(&format!("nft add chain ip relay {hook} {{ type filter hook {hook} priority 0 ; }}"));
            router.run(&format!("nft add rule ip relay {hook} ip {side} {} counter drop", other.underlay()));
        }
    }
}

/// Lets no datagram in to any worker.
fn shut_lane_ports(lab: &Lab, site: Site) {
    let router = lab.router(site);
    router.run("nft add table ip ports");
    router.run("nft add chain ip ports input { type filter hook input priority 0 ; }");
    router.run("nft add rule ip ports input udp dport 8100-8163 drop");
}

fn unite(lab: &Lab) {
    for site in [Site::A, Site::B] {
        lab.router(site).run("nft delete table ip relay");
    }
}

/// A and B, parted, and C, which is a relay for both: of connections only, as its lanes' ports are shut.
fn parted() -> Option<(Lab, [Setup; 3])> {
    let lab = Lab::up(3)?;
    part(&lab);
    shut_lane_ports(&lab, Site::C);
    let mut setups = mesh(&lab, [(Site::A, 1), (Site::B, 1), (Site::C, 1)]);
    setups[2].set("relay", "serve", "always");
    setups[2].write();
    Some((lab, setups))
}

/// Who the status says passes on what libp2p says to a peer.
fn relay_to(status: &Status, peer: Site) -> Option<String> {
    let relayed = status.part("relay")["relayed"].as_array()?;
    let entry = relayed.iter().find(|entry| entry["name"] == name_of(peer).as_str())?;
    entry["relay"]["name"].as_str().map(str::to_owned)
}

fn wait_relayed(node: &mut Node, peer: Site, relay: Site) -> Status {
    node.wait_until(&format!("{relay:?} to pass on what is said to {peer:?}"), |status| {
        status.state(peer) == "relayed" && relay_to(status, peer).as_deref() == Some(&name_of(relay))
    })
}

fn traffic_crosses(lab: &Lab) {
    let (a, b) = (lab.host(Site::A), lab.host(Site::B));
    for address in Site::B.host() {
        a.ping(address);
        tcp_both_ways(&a, &b, address, 3, 300_000);
        udp_flows(&a, &b, address, 4, 4);
    }
    for address in Site::A.host() {
        b.ping(address);
    }
}

#[test]
fn two_sites_that_only_a_third_joins_talk_through_its_node_and_directly_when_there_is_a_path() {
    let Some((lab, setups)) = parted() else { return };
    let mut nodes = setups.each_ref().map(Node::up);
    wait_relayed(&mut nodes[0], Site::B, Site::C);
    let told = wait_relayed(&mut nodes[1], Site::A, Site::C);
    assert_eq!(told.peer(Site::A).map(|peer| &peer["carrier"]), Some(&Value::from("stream")), "{told:?}");
    traffic_crosses(&lab);
    let relay = nodes[2].wait_until("circuits in the relay's status", |status| {
        status.part("relay")["circuits"].as_array().is_some_and(|circuits| !circuits.is_empty())
    });
    let relay = relay.part("relay");
    assert_eq!((&relay["serves"], relay["reservations"].as_array().map(Vec::len)), (&true.into(), Some(2)), "{relay}");
    // Either end may have asked for one, and what is said in the other's is as good.
    let circuits = relay["circuits"].as_array().expect("a list");
    let carried = circuits.iter().flat_map(|circuit| [&circuit["bytes_from_source"], &circuit["bytes_from_target"]]);
    let carried: u64 = carried.filter_map(Value::as_u64).sum();
    assert!(carried + relay["circuit_bytes"].as_u64().unwrap_or_default() > 600_000, "{relay}");

    unite(&lab);
    for (node, peer) in nodes.iter_mut().zip([Site::B, Site::A]) {
        node.wait_until("a direct way", |status| {
            status.state(peer) == "direct" && status.lanes(peer) == 1 && relay_to(status, peer).is_none()
        });
    }
    traffic_crosses(&lab);
}

#[test]
fn a_relay_that_is_killed_joins_them_again_when_it_is_back() {
    let Some((lab, setups)) = parted() else { return };
    let mut nodes = setups.each_ref().map(Node::up);
    for (index, peer) in [(0, Site::B), (1, Site::A)] {
        wait_relayed(&mut nodes[index], peer, Site::C);
    }
    nodes[2].signal(Signal::KILL);
    for (index, peer) in [(0, Site::B), (1, Site::A)] {
        nodes[index].wait_until("the end of the circuit", |status| status.state(peer) == "offline");
    }
    nodes[2].up_again(&setups[2]);
    for (index, peer) in [(0, Site::B), (1, Site::A)] {
        wait_relayed(&mut nodes[index], peer, Site::C);
    }
    traffic_crosses(&lab);
}
