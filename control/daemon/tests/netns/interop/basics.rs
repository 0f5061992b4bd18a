//! Packets between two members that know each other's addresses (T1, T2 and T5 of the specification).

use std::thread;
use std::time::Duration;

use super::{Kind, Member, Running, for_each_pair, know_all, lab_of, long, matrix, mesh_of, trust_all, wait_joined};
use crate::lab::Lab;
use crate::traffic::tcp_both_ways;

/// Two members whose packets reach each other.
fn joined(kinds: [Kind; 2]) -> Option<(Lab, [Member; 2], [Running; 2])> {
    let (lab, members, nodes) = mesh_of(kinds)?;
    wait_joined(&members);
    Some((lab, members, nodes))
}

/// Pings both ways: the largest packets that pass, and more of them than the 64 to 76 after which 0.15.0 loses all
/// packets to a node without `/hyprspace/1`.
fn packets_of_every_size_pass(kinds: [Kind; 2]) {
    let Some((_lab, [a, b], mut nodes)) = joined(kinds) else { return };
    for (from, to) in [(&a, &b), (&b, &a)] {
        for (address, header) in to.addresses().into_iter().zip([28, 48]) {
            for size in [0, 1, 64, 777, 1420 - header] {
                from.router.run(&format!("ping -n -q -M do -c 2 -i 0.02 -W 5 -s {size} {address}"));
            }
        }
        from.router.run(&format!("ping -n -q -c 200 -i 0.005 -W 5 {}", to.addresses()[0]));
    }
    nodes.iter_mut().for_each(Running::expect_alive);
}

matrix!(packets_of_every_size_pass:
    rust_rust [Rust, Rust],
    go_go [Go, Go],
    rust_go [Rust, Go],
    go_rust [Go, Rust],
    rust_old_go [Rust, OldGo],
    old_go_rust [OldGo, Rust],
);

/// 100 MB of TCP both ways at once, half of it over IPv4 and half over IPv6, every byte compared.
fn a_large_transfer_is_intact(kinds: [Kind; 2]) {
    let Some((_lab, [a, b], mut nodes)) = joined(kinds) else { return };
    for address in b.addresses() {
        tcp_both_ways(&a.router, &b.router, address, 1, 50_000_000);
    }
    nodes.iter_mut().for_each(Running::expect_alive);
}

matrix!(a_large_transfer_is_intact:
    rust_rust [Rust, Rust],
    rust_go [Rust, Go],
    go_rust [Go, Rust],
    rust_old_go [Rust, OldGo],
);

/// A stop and a new start of either member heals.
fn traffic_flows_again_after_a_restart(kinds: [Kind; 2]) {
    let Some((_lab, members, mut nodes)) = joined(kinds) else { return };
    for (node, member) in nodes.iter_mut().zip(&members) {
        node.restart(member);
        wait_joined(&members);
    }
}

matrix!(traffic_flows_again_after_a_restart);

/// Hyprspace gives up a stream that was silent for 25 s. No packet may be lost by that.
fn no_packet_is_lost_after_silence(kinds: [Kind; 2]) {
    let Some((_lab, [a, b], mut nodes)) = joined(kinds) else { return };
    let ping = || {
        for (from, to) in [(&a, &b), (&b, &a)] {
            for address in to.addresses() {
                from.router.run(&format!("ping -n -q -c 20 -i 0.02 -W 5 {address}"));
            }
        }
    };
    ping();
    thread::sleep(Duration::from_secs(if long() { 60 } else { 27 }));
    ping();
    nodes.iter_mut().for_each(Running::expect_alive);
}

/// All mixtures side by side, since each does nothing for long.
#[test]
fn no_packet_is_lost_after_silence_in_any_mixture() {
    use Kind::{Go, OldGo, Rust};
    thread::scope(|scope| {
        for kinds in [[Rust, Rust], [Rust, Go], [Go, Rust], [Rust, OldGo]] {
            let name = format!("no_packet_is_lost_after_silence {kinds:?}");
            let spawned = thread::Builder::new().name(name).spawn_scoped(scope, move || {
                no_packet_is_lost_after_silence(kinds);
            });
            spawned.expect("a thread can be started");
        }
    });
}

/// The routers' addresses in the networks behind them are covered by routes, and are where they listen, too: no node may
/// reach another inside the mesh.
fn hosts_behind_members_reach_each_other(kinds: [Kind; 3]) {
    let Some((lab, mut members)) = lab_of(kinds) else { return };
    trust_all(&mut members);
    know_all(&mut members);
    for_each_pair(&mut members, Member::route);
    let mut nodes = members.each_ref().map(Member::up);
    for round in 0..2 {
        wait_joined(&members);
        for from in &members {
            for to in members.iter().filter(|to| to.site != from.site) {
                to.site.host().into_iter().for_each(|address| lab.host(from.site).ping(address));
            }
        }
        for (member, node) in members.iter().zip(&nodes).filter(|(member, _)| member.kind == Kind::Rust) {
            let peers = node.answer("peers");
            let on_underlay = |line: &str| line.starts_with("/ip4/10.201.0.") || line.starts_with("/ip6/fd01:201:");
            assert!(peers.lines().all(on_underlay), "{}, round {round}: {peers}", member.name());
        }
        nodes[1].restart(&members[1]);
    }
    wait_joined(&members);
    nodes.iter_mut().for_each(Running::expect_alive);
}

matrix!(hosts_behind_members_reach_each_other:
    rust_rust_rust [Rust, Rust, Rust],
    rust_go_rust [Rust, Go, Rust],
    go_rust_go [Go, Rust, Go],
);
