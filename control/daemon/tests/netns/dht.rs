//! Nodes that find each other by the DHT of one of their own, and networks with a swarm key.

use std::fs;
use std::process::Stdio;

use rustix::process::Signal;
use toml::Value as Toml;

use crate::lab::{Lab, Site, wait_for};
use crate::node::{Node, Setup, mesh};
use crate::traffic::time_to_first_echo;

/// Takes from each of `setups` all addresses of the peers but those of the first site.
fn know_only_the_first(setups: &mut [Setup]) {
    let first = setups[0].id.clone();
    for setup in setups {
        let peers = setup.settings["peers"].as_array_mut().expect("peers is an array");
        for peer in peers.iter_mut().filter(|peer| peer["id"].as_str() != Some(&first)) {
            peer["addresses"] = Toml::Array(Vec::new());
        }
        setup.write();
    }
}

#[test]
fn two_nodes_that_know_only_a_third_find_each_other_by_its_dht() {
    let Some(lab) = Lab::up(3) else { return };
    let mut setups = mesh(&lab, [(Site::A, 1), (Site::B, 1), (Site::C, 1)]);
    setups[0].set("control", "dht", "server");
    know_only_the_first(&mut setups);
    let mut nodes = setups.each_ref().map(Node::up);
    nodes[1].wait_direct(&[Site::A, Site::C], 1);
    nodes[2].wait_direct(&[Site::A, Site::B], 1);
    time_to_first_echo(&lab.host(Site::B), &lab.host(Site::C), Site::C.host_v4().into());

    // A server that restarts has forgotten everybody, and learns again where they are.
    nodes[0].terminate();
    nodes[0].up_again(&setups[0]);
    nodes[2].terminate();
    nodes[2].up_again(&setups[2]);
    nodes[2].wait_direct(&[Site::A, Site::B], 1);
}

#[test]
fn sigusr1_makes_a_node_look_for_its_peers_and_ends_nothing() {
    let Some(lab) = Lab::up(2) else { return };
    let setups = mesh(&lab, [(Site::A, 1), (Site::B, 1)]);
    let mut node = Node::up(&setups[0]);
    node.wait_until("an answer", |_| true);
    node.signal(Signal::USR1);
    wait_for("the node to say so", || node.log().contains("told by SIGUSR1").then_some(()));
    assert!(node.terminate().success());
}

#[test]
fn nodes_with_a_swarm_key_meet_over_tcp_and_one_with_a_broken_key_does_not_start() {
    let Some(lab) = Lab::up(2) else { return };
    let mut setups = mesh(&lab, [(Site::A, 1), (Site::B, 1)]);
    let file = lab.directory().join("swarm.key");
    fs::write(&file, format!("/key/swarm/psk/1.0.0/\n/base16/\n{}\n", "5a".repeat(32))).expect("it can be written");
    let path = file.to_str().expect("a printable name").to_owned();
    setups.iter_mut().for_each(|setup| {
        setup.set("control", "swarm_key", path.clone());
        setup.write();
    });
    let mut nodes = setups.each_ref().map(Node::up);
    nodes[0].wait_direct(&[Site::B], 1);
    nodes[1].wait_direct(&[Site::A], 1);
    assert!(nodes[0].log().contains("libp2p uses TCP only"), "the log says what a key means");
    assert!(nodes[0].terminate().success());

    // The variable goes before the file, and a key that is none ends the start, with nothing made.
    let before = lab.router(Site::A).kernel_state();
    for bad in ["/nonexistent/swarm.key", "/dev/null"] {
        let mut start = setups[0].up_command();
        let output = start.env("HYPRSPACE_SWARM_KEY", bad).stdout(Stdio::null()).output().expect("it can be run");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(bad), "{said}");
    }
    assert_eq!(lab.router(Site::A).kernel_state(), before);
}
