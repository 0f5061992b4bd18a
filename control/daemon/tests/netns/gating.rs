//! Whom a node talks to at all, and how often.

use std::net::TcpStream;

use crate::lab::{Lab, PATIENCE, Site};
use crate::node::{CONTROL_PORT, Node, mesh};

#[test]
fn private_addresses_are_neither_dialled_nor_accepted_when_filtered() {
    let Some(lab) = Lab::up(2) else { return };
    let mut setups = mesh(&lab, [(Site::A, 1), (Site::B, 1)]);
    setups[0].set("control", "filter_private_addresses", true);
    setups[0].write();
    let mut nodes = setups.each_ref().map(Node::up);
    nodes[0].wait_until("private addresses are refused both ways", |status| {
        status.gate("private_address") > 0 && status.gate("dial_private_address") > 0
    });
    assert_eq!(nodes[0].status().state(Site::B), "offline");
    assert!(nodes[0].terminate().success());
    setups[0].set("control", "filter_private_addresses", false);
    setups[0].write();
    nodes[0].up_again(&setups[0]);
    nodes[0].wait_direct(&[Site::B], 1);
    assert_eq!(nodes[0].status().gate("private_address"), 0);
}

#[test]
fn a_flood_of_connections_from_one_address_is_refused_and_others_are_served() {
    let Some(lab) = Lab::up(3) else { return };
    let setups = mesh(&lab, [(Site::A, 1), (Site::B, 1)]);
    let mut a = Node::up(&setups[0]);
    a.wait_until("the node runs", |status| status.peer(Site::B).is_some());
    let to = (Site::A.underlay(), CONTROL_PORT).into();
    // They stay open: a handshake that never comes is what takes up room.
    let _flood: Vec<TcpStream> =
        lab.router(Site::C).enter(|| (0..300).filter_map(|_| TcpStream::connect_timeout(&to, PATIENCE).ok()).collect());
    a.wait_until("the flood is refused", |status| status.gate("address_rate") > 0);
    let mut b = Node::up(&setups[1]);
    b.wait_direct(&[Site::A], 1);
    a.wait_direct(&[Site::B], 1);
}
