//! Inner traffic of every kind crosses, complete and in order.

use crate::lab::{Lab, Site};
use crate::node::{Node, Setup, mesh, name_of, two_direct};
use crate::traffic::{tcp_both_ways, udp_flows};

/// Two sites with these many workers carry ping, TCP and UDP, IPv4 and IPv6, both ways.
fn carry_between(workers: [u8; 2]) {
    let Some(lab) = Lab::up(2) else { return };
    let (_setups, nodes) = two_direct(&lab, workers);
    let (a, b) = (lab.host(Site::A), lab.host(Site::B));
    for (near, far, addresses) in [(&a, &b, Site::B.host()), (&b, &a, Site::A.host())] {
        for address in addresses {
            near.ping(address);
            tcp_both_ways(near, far, address, 1, 2 << 20);
            tcp_both_ways(near, far, address, 8, 300_000);
            udp_flows(near, far, address, 8, 12);
        }
    }
    for (node, peer) in nodes.iter().zip([Site::B, Site::A]) {
        let status = node.status();
        assert_eq!(status.state(peer), "direct");
        for reason in ["unauthentic", "replayed", "frame_malformed", "source_not_allowed", "packet_malformed"] {
            assert_eq!(status.dropped(reason), 0, "{reason} without an attacker: {status:?}");
        }
    }
}

#[test]
fn traffic_crosses_between_one_worker_and_one() {
    carry_between([1, 1]);
}

#[test]
fn traffic_crosses_between_two_workers_and_one() {
    carry_between([2, 1]);
}

#[test]
fn traffic_crosses_between_one_worker_and_three() {
    carry_between([1, 3]);
}

#[test]
fn traffic_crosses_between_two_workers_and_two() {
    carry_between([2, 2]);
}

#[test]
fn traffic_crosses_between_three_workers_and_two() {
    carry_between([3, 2]);
}

#[test]
fn three_nodes_form_a_full_mesh() {
    let Some(lab) = Lab::up(3) else { return };
    let sites = [Site::A, Site::B, Site::C];
    let setups = mesh(&lab, [(Site::A, 1), (Site::B, 2), (Site::C, 3)]);
    let mut nodes = setups.each_ref().map(Node::up);
    for (node, site) in nodes.iter_mut().zip(sites) {
        for peer in sites.into_iter().filter(|&peer| peer != site) {
            let workers = |site: Site| sites.into_iter().position(|other| other == site).expect("listed") + 1;
            node.wait_direct(&[peer], workers(site).max(workers(peer)));
        }
    }
    for near in sites {
        for far in sites.into_iter().filter(|&far| far != near) {
            for address in far.host() {
                lab.host(near).ping(address);
                udp_flows(&lab.host(near), &lab.host(far), address, 3, 4);
                tcp_both_ways(&lab.host(near), &lab.host(far), address, 1, 300_000);
            }
        }
    }
}

#[test]
fn a_hyprspace_configuration_is_as_good_as_ours() {
    let Some(lab) = Lab::up(2) else { return };
    let [a, mut b] = mesh(&lab, [(Site::A, 1), (Site::B, 1)]);
    b.write_hyprspace();
    let mut nodes = [Node::up(&a), Node::up(&b)];
    // Without a word about workers there is one per core.
    let lanes = std::thread::available_parallelism().unwrap().get().min(64);
    nodes[0].wait_direct(&[Site::B], lanes);
    nodes[1].wait_direct(&[Site::A], lanes);
    for address in Site::B.host() {
        udp_flows(&lab.host(Site::A), &lab.host(Site::B), address, 4, 4);
    }
}

#[test]
fn nodes_that_know_no_address_find_each_other_on_the_local_network() {
    let Some(lab) = Lab::up(2) else { return };
    let mut setups = [Site::A, Site::B].map(|site| Setup::init(&lab, site));
    let ids = setups.each_ref().map(|setup| setup.id.clone());
    for (setup, (peer, id)) in setups.iter_mut().zip([(Site::B, &ids[1]), (Site::A, &ids[0])]) {
        setup.add_peer(&name_of(peer), id, &[], &peer.networks());
        setup.set("control", "mdns", true);
        setup.write();
    }
    let mut nodes = setups.each_ref().map(Node::up);
    nodes[0].wait_direct(&[Site::B], 2);
    nodes[1].wait_direct(&[Site::A], 2);
    lab.host(Site::A).ping(Site::B.host_v6().into());
}
