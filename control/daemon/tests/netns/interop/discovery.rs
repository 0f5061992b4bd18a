//! Members that connect because they have heard of each other; packets between them are others' business.

use std::process::{Command, Stdio};

use serde_json::Value;

use super::{Kind, Member, Running, for_each_pair, lab_of, matrix, trust_all};
use crate::lab::{Site, wait_for};
use crate::node::RINGLANE;

/// Whether a member has a connection to a peer.
fn is_connected(ours: &Member, theirs: &Member) -> bool {
    // While it starts there is nobody to ask.
    let mut peers = Command::new(ours.program());
    let printed = peers.args(["peers", "-i", &ours.interface]).stdin(Stdio::null()).output();
    let printed = printed.map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&printed).contains(theirs.id)
}

/// Whether a member has heard a peer by mDNS, whoever dialled.
fn has_heard(node: &Running, member: &Member) -> bool {
    if member.kind != Kind::Rust {
        return node.log().contains("Discovered peer via mDNS");
    }
    let mut status = Command::new(RINGLANE);
    let printed = status.args(["status", "--json", "-i", &member.interface]).stdin(Stdio::null()).output();
    let status: Option<Value> = printed.ok().and_then(|output| serde_json::from_slice(&output.stdout).ok());
    status.is_some_and(|status| status["discovery"]["mdns"]["addresses"].as_u64() > Some(0))
}

fn wait_connected(members: &[Member]) {
    for ours in members {
        for theirs in members.iter().filter(|theirs| theirs.site != ours.site) {
            let what = format!("{} to be connected with {}", ours.name(), theirs.name());
            wait_for(&what, || is_connected(ours, theirs).then_some(()));
        }
    }
}

/// No addresses in any configuration, and either starts first once.
fn mdns_alone_connects(kinds: [Kind; 2]) {
    let Some((_lab, mut members)) = lab_of(kinds) else { return };
    trust_all(&mut members);
    let first = members[0].up();
    wait_for("the first to be up", || first.log().lines().next().map(|_| ()));
    let mut nodes = [first, members[1].up()];
    wait_connected(&members);
    for (node, member) in nodes.iter().zip(&members) {
        wait_for(&format!("{} to hear the other", member.name()), || has_heard(node, member).then_some(()));
    }
    nodes[0].restart(&members[0]);
    wait_connected(&members);
    nodes.iter_mut().for_each(Running::expect_alive);
}

matrix!(mdns_alone_connects: rust_rust [Rust, Rust], rust_go [Rust, Go], go_rust [Go, Rust]);

/// Without mDNS, A and C know only where B is.
fn a_third_connects_two(kinds: [Kind; 3]) {
    let Some((_lab, mut members)) = lab_of(kinds) else { return };
    trust_all(&mut members);
    for_each_pair(&mut members, |ours, theirs| {
        if theirs.site == Site::B {
            ours.know(theirs);
        }
    });
    for member in &members {
        member.without_mdns();
    }
    let mut nodes = members.each_ref().map(Member::up);
    wait_connected(&members);
    nodes.iter_mut().for_each(Running::expect_alive);
}

matrix!(a_third_connects_two:
    rust_rust_rust [Rust, Rust, Rust],
    go_rust_go [Go, Rust, Go],
    rust_go_rust [Rust, Go, Rust],
    rust_rust_go [Rust, Rust, Go],
    rust_old_go_rust [Rust, OldGo, Rust],
);
