//! Nodes that are told no address, or only that of one of them.

use crate::lab::{Lab, Site, wait_for};
use crate::node::{Node, Setup, name_of};

/// Configurations of sites that trust each other. Each knows only the addresses of those it is said to know.
fn setups<const N: usize>(lab: &Lab, sites: [Site; N], mdns: bool, knows: impl Fn(Site, Site) -> bool) -> [Setup; N] {
    let mut setups = sites.map(|site| Setup::init(lab, site).workers(1));
    for ours in 0..N {
        for theirs in 0..N {
            let Ok([ours, theirs]) = setups.get_disjoint_mut([ours, theirs]) else { continue };
            if knows(ours.site, theirs.site) {
                ours.trust(theirs);
            } else {
                ours.add_peer(&name_of(theirs.site), &theirs.id, &[], &theirs.site.networks());
            }
        }
    }
    for setup in &mut setups {
        setup.set("control", "mdns", mdns);
        setup.write();
    }
    setups
}

fn discovery(node: &Node, part: &str, figure: &str) -> u64 {
    node.try_status().and_then(|status| status.discovery(part, figure)).unwrap_or_default()
}

#[test]
fn neighbours_hear_of_each_others_restarts_and_new_addresses() {
    let Some(lab) = Lab::up(2) else { return };
    let mut setups = setups(&lab, [Site::A, Site::B], true, |_, _| false);
    for setup in &mut setups {
        // Of the one family that is renumbered.
        let listen = ["/ip4/0.0.0.0/tcp/8001", "/ip4/0.0.0.0/udp/8001/quic-v1"];
        setup.set("control", "listen", listen.map(str::to_owned).to_vec());
        setup.write();
    }
    let mut nodes = setups.each_ref().map(Node::up);
    nodes[0].wait_direct(&[Site::B], 1);
    nodes[1].wait_direct(&[Site::A], 1);

    // Without what it remembers of where B was.
    nodes[0].terminate();
    let _ = std::fs::remove_file(setups[0].key_file().with_extension("peers.json"));
    nodes[0].up_again(&setups[0]);
    nodes[0].wait_direct(&[Site::B], 1);
    wait_for("A to hear B again", || (discovery(&nodes[0], "mdns", "addresses") > 0).then_some(()));

    for (site, new) in [(Site::A, "10.203.0.1"), (Site::B, "10.203.0.2")] {
        let router = lab.router(site);
        router.run(&format!("ip address del {}/24 dev underlay", site.underlay()));
        router.run(&format!("ip address add {new}/24 dev underlay"));
    }
    // That it has heard of the address is not enough: packets are lost until the lane is there.
    nodes[0].wait_until("a lane to B at its new address", |status| {
        let lanes = status.peer(Site::B).and_then(|peer| peer["lanes"].as_array());
        lanes.into_iter().flatten().any(|lane| lane["remote"].as_str().is_some_and(|at| at.starts_with("10.203.0.2:")))
    });
    lab.host(Site::A).ping(Site::B.host_v4().into());
}

#[test]
fn a_node_takes_back_what_it_told_its_neighbours_when_it_ends() {
    let Some(lab) = Lab::up(2) else { return };
    let setups = setups(&lab, [Site::A, Site::B], true, |_, _| false);
    let mut nodes = setups.each_ref().map(Node::up);
    nodes[0].wait_direct(&[Site::B], 1);
    wait_for("A to have heard B", || (discovery(&nodes[0], "mdns", "addresses") > 0).then_some(()));
    nodes[1].terminate();
    // Long before what it told expires.
    wait_for("A to forget B", || (discovery(&nodes[0], "mdns", "addresses") == 0).then_some(()));
}

#[test]
fn two_nodes_that_know_only_a_third_find_each_other_by_what_each_signs() {
    let Some(lab) = Lab::up(3) else { return };
    let setups = setups(&lab, [Site::A, Site::B, Site::C], false, |_, theirs| theirs == Site::B);
    let mut nodes = setups.each_ref().map(Node::up);
    nodes[0].wait_direct(&[Site::B, Site::C], 1);
    nodes[2].wait_direct(&[Site::A, Site::B], 1);
    for node in &nodes {
        wait_for("both records", || (discovery(node, "records", "held") == 2).then_some(()));
        assert_eq!(discovery(node, "records", "forged"), 0);
    }
    lab.host(Site::A).ping(Site::C.host_v4().into());
}
