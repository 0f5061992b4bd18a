//! Starting, stopping, dying and coming back.

use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::lab::{Lab, Site, succeed, wait_for};
use crate::node::{Node, RINGLANE, Setup, two_direct};
use crate::traffic::time_to_first_echo;

/// How long after a node's start traffic must flow again.
const HEALED_WITHIN: Duration = Duration::from_secs(3);

/// Stops one node with `stop`, starts it again and asserts that traffic flows soon after.
fn heals_after(restarted: Site, stop: impl FnOnce(&mut Node)) {
    let Some(lab) = Lab::up(2) else { return };
    let (setups, mut nodes) = two_direct(&lab, [2, 2]);
    let (a, b) = (lab.host(Site::A), lab.host(Site::B));
    time_to_first_echo(&a, &b, Site::B.host_v4().into());

    let position = usize::from(restarted == Site::B);
    stop(&mut nodes[position]);
    let started = Instant::now();
    nodes[position] = Node::up(&setups[position]);
    time_to_first_echo(&a, &b, Site::B.host_v4().into());
    let healed = started.elapsed();
    assert!(healed < HEALED_WITHIN, "traffic flowed {healed:?} after the start of {restarted:?}");
    nodes[0].wait_direct(&[Site::B], 2);
    nodes[1].wait_direct(&[Site::A], 2);
    b.ping(Site::A.host_v6().into());
}

fn terminate(node: &mut Node) {
    let ended = node.terminate();
    assert!(ended.success(), "SIGTERM is an orderly end: {ended}");
}

#[test]
fn a_restart_of_the_first_node_heals_within_three_seconds() {
    heals_after(Site::A, terminate);
}

#[test]
fn a_restart_of_the_second_node_heals_within_three_seconds() {
    heals_after(Site::B, terminate);
}

#[test]
fn a_node_that_was_killed_starts_again_and_heals() {
    heals_after(Site::A, |node| {
        node.signal(Signal::KILL);
        node.wait_ended();
    });
}

/// Runs a node, stops it with `stop` and asserts that the kernel and the file system are as before.
fn leaves_nothing_after(stop: impl FnOnce(&Setup, &mut Node)) {
    let Some(lab) = Lab::up(2) else { return };
    let before = lab.router(Site::A).kernel_state();
    let (setups, mut nodes) = two_direct(&lab, [2, 1]);
    let router = lab.router(Site::A);
    assert!(router.has_interface(&setups[0].interface));
    assert!(setups[0].socket().exists());
    assert_ne!(router.kernel_state(), before);

    stop(&setups[0], &mut nodes[0]);
    assert!(!router.has_interface(&setups[0].interface));
    assert!(!setups[0].socket().exists());
    assert_eq!(router.kernel_state(), before);
}

#[test]
fn sigterm_leaves_nothing_behind() {
    leaves_nothing_after(|_, node| terminate(node));
}

#[test]
fn sigint_leaves_nothing_behind() {
    leaves_nothing_after(|_, node| {
        node.signal(Signal::INT);
        let ended = node.wait_ended();
        assert!(ended.success(), "SIGINT is an orderly end: {ended}");
    });
}

#[test]
fn down_leaves_nothing_behind() {
    leaves_nothing_after(|setup, node| {
        succeed(Command::new(RINGLANE).args(["down", "--interface", &setup.interface]));
        assert!(node.wait_ended().success());
    });
}

#[test]
fn a_peer_that_is_gone_is_no_longer_direct() {
    let Some(lab) = Lab::up(2) else { return };
    let (_setups, mut nodes) = two_direct(&lab, [1, 1]);
    let [a, b] = &mut nodes;
    terminate(b);
    a.wait_until("B is known to be gone", |status| status.state(Site::B) != "direct");
    // Without a lane its packets have nowhere to go, and are counted.
    let before = a.status().dropped("no_lane");
    let probe = lab.host(Site::A);
    wait_for("packets to a peer that is gone to be counted", || {
        let _ = probe.command("ping").args(["-n", "-c", "1", "-W", "0.1", "10.20.0.2"]).output();
        (a.status().dropped("no_lane") > before).then_some(())
    });
}
