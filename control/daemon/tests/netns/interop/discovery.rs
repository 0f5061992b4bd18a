//! How members find each other: by mDNS alone, by a third member, through a DHT of their own (T1, T4).

use std::process::{Command, Stdio};

use serde_json::Value;

use super::{Kind, Member, Running, for_each_pair, lab_of, matrix, mesh_of, trust_all, wait_joined};
use crate::lab::{Site, wait_for};
use crate::node::RINGLANE;

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

/// No addresses in any configuration; both hear each other on the underlay, and either starts first once.
fn members_find_each_other_by_mdns_alone(kinds: [Kind; 2]) {
    let Some((_lab, mut members)) = lab_of(kinds) else { return };
    trust_all(&mut members);
    let first = members[0].up();
    wait_for("the first to be up", || first.log().lines().next().map(|_| ()));
    let mut nodes = [first, members[1].up()];
    wait_joined(&members);
    for (node, member) in nodes.iter().zip(&members) {
        wait_for(&format!("{} to hear the other", member.name()), || has_heard(node, member).then_some(()));
    }
    nodes[0].restart(&members[0]);
    wait_joined(&members);
    nodes.iter_mut().for_each(Running::expect_alive);
}

matrix!(members_find_each_other_by_mdns_alone:
    rust_rust [Rust, Rust],
    go_go [Go, Go],
    rust_go [Rust, Go],
    go_rust [Go, Rust],
);

/// All three are told each other's addresses.
fn three_members_are_a_mesh(kinds: [Kind; 3]) {
    let Some((_lab, members, mut nodes)) = mesh_of(kinds) else { return };
    wait_joined(&members);
    nodes.iter_mut().for_each(Running::expect_alive);
}

matrix!(three_members_are_a_mesh:
    rust_rust_rust [Rust, Rust, Rust],
    go_go_rust [Go, Go, Rust],
    go_rust_rust [Go, Rust, Rust],
    old_go_rust_rust [OldGo, Rust, Rust],
);

/// Without mDNS, A and C know only where B is; B tells them of each other.
fn a_third_member_introduces_two_that_do_not_know_each_other([a, b, c]: [Kind; 3]) {
    let Some((_lab, mut members)) = lab_of([a, b, c]) else { return };
    trust_all(&mut members);
    for_each_pair(&mut members, |ours, theirs| {
        if theirs.site == Site::B {
            ours.know(theirs);
        }
    });
    members.iter().for_each(Member::without_mdns);
    let mut nodes = members.each_ref().map(Member::up);
    wait_joined(&members);
    nodes.iter_mut().for_each(Running::expect_alive);
}

matrix!(a_third_member_introduces_two_that_do_not_know_each_other:
    rust_rust_rust [Rust, Rust, Rust],
    go_go_go [Go, Go, Go],
    go_go_rust [Go, Go, Rust],
    go_rust_go [Go, Rust, Go],
    rust_go_rust [Rust, Go, Rust],
    go_rust_rust [Go, Rust, Rust],
    rust_rust_go [Rust, Rust, Go],
    rust_old_go_rust [Rust, OldGo, Rust],
);

/// Without mDNS, and with a node between them that is a peer of neither: it only answers in their DHT.
fn members_find_each_other_by_a_dht_of_their_own([a, c]: [Kind; 2]) {
    let Some((_lab, mut members)) = lab_of([a, Kind::Rust, c]) else { return };
    for_each_pair(&mut members, |ours, theirs| match (ours.site, theirs.site) {
        // It serves configured peers.
        (Site::B, _) => ours.trust(theirs),
        (_, Site::B) => ours.know(theirs),
        _ => ours.trust(theirs),
    });
    members[1].control.insert("dht".into(), "server".into());
    members.iter().for_each(Member::without_mdns);
    let mut nodes = members.each_ref().map(Member::up);
    let [a, _, c] = &members;
    a.wait_reaches(c);
    c.wait_reaches(a);
    nodes.iter_mut().for_each(Running::expect_alive);
}

matrix!(members_find_each_other_by_a_dht_of_their_own:
    rust_rust [Rust, Rust],
    rust_go [Rust, Go],
    go_rust [Go, Rust],
    go_go [Go, Go],
);
