//! Packets between two members that know each other's addresses (T1, T2 and T5 of the specification).

use super::{Kind, Member, Running, long, matrix, mesh_of, wait_joined};
use crate::lab::{Lab, PATIENCE};
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
    #[ignore = "waits for /hyprspace/1"] rust_go [Rust, Go],
    #[ignore = "waits for /hyprspace/1"] go_rust [Go, Rust],
    #[ignore = "waits for /hyprspace/1"] rust_old_go [Rust, OldGo],
    #[ignore = "waits for /hyprspace/1"] old_go_rust [OldGo, Rust],
);

/// 100 MB of TCP both ways at once, every byte compared; a fifth of it unless the long form is asked for.
fn a_large_transfer_is_intact(kinds: [Kind; 2]) {
    let Some((_lab, [a, b], mut nodes)) = joined(kinds) else { return };
    let bytes = if long() { 100_000_000 } else { 20_000_000 };
    let started = std::time::Instant::now();
    for address in b.addresses() {
        tcp_both_ways(&a.router, &b.router, address, 1, bytes / 2);
    }
    eprintln!("{kinds:?}: {bytes} bytes both ways in {:?}", started.elapsed());
    nodes.iter_mut().for_each(Running::expect_alive);
}

matrix!(a_large_transfer_is_intact:
    rust_rust [Rust, Rust],
    #[ignore = "waits for /hyprspace/1"] rust_go [Rust, Go],
    #[ignore = "waits for /hyprspace/1"] go_rust [Go, Rust],
    #[ignore = "waits for /hyprspace/1"] rust_old_go [Rust, OldGo],
);

/// A stop and a new start of either member heals.
fn traffic_flows_again_after_a_restart(kinds: [Kind; 2]) {
    let Some((_lab, members, mut nodes)) = joined(kinds) else { return };
    for restarted in 0..2 {
        let started = std::time::Instant::now();
        nodes[restarted].restart(&members[restarted]);
        wait_joined(&members);
        assert!(started.elapsed() < PATIENCE);
    }
}

matrix!(traffic_flows_again_after_a_restart);
