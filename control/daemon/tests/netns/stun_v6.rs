//! Nodes that have nothing but IPv6 on the underlay know from each other how they are seen, and what lets them in.
//!
//! A runs on the host behind router A, B on router B. A dials B.

use std::fs;

use serde_json::{Value as Json, json};

use crate::lab::{Lab, Site};
use crate::node::{CONTROL_PORT, LANE_PORT, Node, Setup, Status, name_of};

const INSIDE: &str = "fd00:10::2";
const ROUTER: &str = "fd01:201::1";
const OUTSIDE: &str = "fd01:201::2";

/// B can send to A's own address.
fn route_back(lab: &Lab) {
    lab.router(Site::B).run(&format!("ip -6 route add fd00:10::/64 via {ROUTER}"));
}

/// A and B, up, and the first is not seen by the second but through these rules of router A.
fn up(lab: &Lab, rules: &str) -> [Node; 2] {
    let mut inside = Setup::init(lab, Site::A).workers(2);
    let mut outside = Setup::init(lab, Site::B).workers(2);
    inside.router = lab.host(Site::A);
    let listen = [format!("/ip6/::/udp/{CONTROL_PORT}/quic-v1"), format!("/ip6/::/tcp/{CONTROL_PORT}")];
    for setup in [&mut inside, &mut outside] {
        setup.set("control", "listen", listen.to_vec());
    }
    let of_b = [format!("/ip6/{OUTSIDE}/udp/{CONTROL_PORT}/quic-v1")];
    inside.add_peer(&name_of(Site::B), &outside.id, &of_b, &[]);
    outside.add_peer(&name_of(Site::A), &inside.id, &[], &[]);
    let file = lab.directory().join("rules.nft");
    fs::write(&file, rules).expect("a file can be written");
    lab.router(Site::A).run(&format!("nft -f {}", file.display()));
    [inside, outside].map(|setup| {
        setup.write();
        Node::up(&setup)
    })
}

/// What A knows of its only address.
fn host(status: &Status) -> Option<&Json> {
    status.nat()["hosts"].as_array()?.iter().find(|host| host["local"] == INSIDE)
}

fn wait_known(node: &mut Node, mapping: &str, filtering: &str) -> Json {
    let is_known = |host: &Json| host["mapping"] == mapping && host["filtering"] == filtering;
    let status = node.wait_until(&format!("{mapping} and {filtering}"), |status| host(status).is_some_and(is_known));
    host(&status).expect("it is known").clone()
}

fn seen(host: &Json) -> Vec<&str> {
    host["ports"].as_array().into_iter().flatten().filter_map(|port| port["mapped"].as_str()).collect()
}

#[test]
fn a_firewall_for_ipv6_is_told_from_a_translator_and_lanes_pass_it() {
    let Some(lab) = Lab::up(2) else { return };
    route_back(&lab);
    let rules = "table ip6 firewall {\n chain forward {\n  type filter hook forward priority 0\n  \
                 iifname underlay ct state established,related accept\n  iifname underlay drop\n }\n}\n";
    let mut nodes = up(&lab, rules);
    let known = wait_known(&mut nodes[0], "none", "address_and_port_dependent");
    assert_eq!((&known["is_translated"], &known["is_udp_blocked"]), (&json!(false), &json!(false)));
    assert_eq!(seen(&known), [LANE_PORT, LANE_PORT + 1].map(|port| format!("[{INSIDE}]:{port}")));
    let status = nodes[0].wait_direct(&[Site::B], 2);
    assert_eq!(status.nat()["candidates"], json!([]), "everybody knows the addresses of its interfaces");
    let outside = nodes[1].status();
    assert!(outside.nat()["stun"]["requests_answered"].as_u64() > Some(0));
}

#[test]
fn without_a_firewall_ipv6_is_told_as_open() {
    let Some(lab) = Lab::up(2) else { return };
    route_back(&lab);
    let mut nodes = up(&lab, "");
    // A peer can answer from another port of its, and from no other address.
    let known = wait_known(&mut nodes[0], "none", "address_dependent_or_less");
    assert_eq!(known["is_translated"], false);
}

#[test]
fn a_translator_of_ipv6_is_noticed_and_what_it_makes_of_the_ports_is_offered() {
    let Some(lab) = Lab::up(2) else { return };
    // What B sends first to A's own address would not be translated, nor A's answers to it: there is no way back to that.
    // What B sends to the router before A has sent is for nobody there, and would take the port if it were let in.
    let rules = format!(
        "table ip6 nat {{\n chain out {{\n  type nat hook postrouting priority 100\n  \
         oifname underlay masquerade\n }}\n chain in {{\n  type filter hook input priority 0\n  \
         iifname underlay udp dport {LANE_PORT}-{} drop\n }}\n}}\n",
        LANE_PORT + 1
    );
    let mut nodes = up(&lab, &rules);
    let known = wait_known(&mut nodes[0], "endpoint_independent", "address_and_port_dependent");
    let expected = [LANE_PORT, LANE_PORT + 1].map(|port| format!("[{ROUTER}]:{port}"));
    assert_eq!(seen(&known), expected);
    assert_eq!((&known["is_translated"], &known["keeps_ports"]), (&json!(true), &json!(true)));
    let status = nodes[0].wait_direct(&[Site::B], 2);
    let candidates = status.nat()["candidates"].as_array().expect("a list").iter();
    assert_eq!(
        candidates.map(|candidate| candidate["address"].as_str()).collect::<Vec<_>>(),
        expected.each_ref().map(|at| Some(at.as_str()))
    );
}
