//! Two members that nobody can dial, and a third with a public address: its node is their relay.
//!
//! Addresses are of no network that is private or kept for examples: AutoNAT looks at no others.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{Kind, Member, Running, lab_of, matrix, trust_all};
use crate::lab::Lab;
use crate::node::CONTROL_PORT;

/// Nodes ask each other after some seconds whether they can be reached, dials into nothing take ten, and both sides have
/// pauses that double.
const PATIENCE: Duration = Duration::from_secs(150);

fn wait(what: &str, nodes: &mut [Running], done: impl Fn(&[Running]) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done(nodes) {
        nodes.iter_mut().for_each(Running::expect_alive);
        assert!(Instant::now() < deadline, "gave up after {PATIENCE:?} waiting for {what}");
        thread::sleep(Duration::from_millis(250));
    }
}

/// A public address.
fn public(member: &Member) -> String {
    format!("5.44.7.{}", 1 + member.site.letter() as u32 - 'a' as u32)
}

/// Gives all public addresses, has the first two let nobody in, and tells them where the third is.
fn arrange(members: &mut [Member; 3]) {
    for member in members.iter() {
        member.without_mdns();
        member.router.run("ip addr flush dev underlay");
        member.router.run(&format!("ip addr add {}/24 dev underlay", public(member)));
    }
    trust_all(members);
    let [a, b, relay] = members;
    let address = format!("/ip4/{}/tcp/{CONTROL_PORT}/p2p/{}", public(relay), relay.id);
    for member in [a, b] {
        // Hyprspace asks its peers in this order where another is, and no more after one that it does not reach.
        member.config["peers"].as_array_mut().expect("a list").reverse();
        member.push("bootstrapPeers", address.clone().into());
        member.config["listenAddresses"] = json!([format!("/ip4/{}/tcp/{CONTROL_PORT}", public(member))]);
        member.router.run("nft add table ip closed");
        member.router.run("nft add chain ip closed input { type filter hook input priority 0 ; }");
        member.router.run("nft add rule ip closed input ct state established,related accept");
        member.router.run("nft add rule ip closed input iifname underlay drop");
    }
    relay.config["listenAddresses"] = json!([format!("/ip4/{}/tcp/{CONTROL_PORT}", public(relay))]);
}

fn up(members: &[Member; 3]) -> [Running; 3] {
    members.each_ref().map(Member::up)
}

/// Whether each of the first two reaches the other.
fn reach_each_other(members: &[Member]) -> bool {
    members[0].reaches(&members[1]) && members[1].reaches(&members[0])
}

/// Whether nothing but the relay joins them, as the first two see it.
fn is_relayed(members: &[Member], nodes: &[Running]) -> bool {
    let sees = |node: &Running, other: &Member| {
        let told = node.ask("peers").unwrap_or_default();
        let mut lines = told.lines().filter(|line| line.contains(&other.name()) || line.contains(other.id)).peekable();
        lines.peek().is_some() && lines.all(|line| line.contains("p2p-circuit"))
    };
    sees(&nodes[0], &members[1]) && sees(&nodes[1], &members[0])
}

/// Whether the first two have a connection that needs no relay.
fn is_direct(members: &[Member], nodes: &[Running]) -> bool {
    let sees = |node: &Running, other: &Member| {
        let told = node.ask("peers").unwrap_or_default();
        let mut lines = told.lines().filter(|line| line.contains(&other.name()) || line.contains(other.id));
        lines.any(|line| line.contains("/tcp/") && !line.contains("p2p-circuit"))
    };
    sees(&nodes[0], &members[1]) && sees(&nodes[1], &members[0])
}

/// T7 of the interoperability tests.
fn two_that_only_a_relay_joins(kinds: [Kind; 3]) {
    let Some((_lab, mut members)): Option<(Lab, _)> = lab_of(kinds) else { return };
    arrange(&mut members);
    for (member, other) in [(0, 1), (1, 0)] {
        let other = public(&members[other]);
        members[member].router.run(&format!("nft insert rule ip closed input ip saddr {other} drop"));
    }
    let mut nodes = up(&members);
    wait("packets through the relay", &mut nodes, |_| reach_each_other(&members));
    wait("both to say that they are relayed", &mut nodes, |nodes| is_relayed(&members, nodes));
    for _ in 0..5 {
        assert!(reach_each_other(&members));
    }
}

matrix!(two_that_only_a_relay_joins:
    rust_rust_by_rust [Rust, Rust, Rust],
    rust_go_by_rust [Rust, Go, Rust],
    go_go_by_rust [Go, Go, Rust],
    rust_rust_by_go [Rust, Rust, Go],
);

/// T6 of the interoperability tests: the relay joins them, and then each opens its firewall by dialling at the same moment.
fn two_that_open_a_way_for_each_other(kinds: [Kind; 3]) {
    let Some((_lab, mut members)): Option<(Lab, _)> = lab_of(kinds) else { return };
    arrange(&mut members);
    let mut nodes = up(&members);
    wait("a direct connection", &mut nodes, |nodes| is_direct(&members, nodes));
    wait("packets", &mut nodes, |_| reach_each_other(&members));
}

matrix!(two_that_open_a_way_for_each_other:
    rust_rust_by_rust [Rust, Rust, Rust],
    rust_go_by_rust [Rust, Go, Rust],
    go_go_by_rust [Go, Go, Rust],
);
