//! Starting, stopping, dying and coming back.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::lab::{Lab, Site, succeed, wait_for};
use crate::node::{Node, RINGLANE, Setup, mesh, two_direct};
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
    nodes[position].up_again(&setups[position]);
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
fn sigint_and_sighup_leave_nothing_behind() {
    for signal in [Signal::INT, Signal::HUP] {
        leaves_nothing_after(|_, node| {
            node.signal(signal);
            let ended = node.wait_ended();
            assert!(ended.success(), "{signal:?} is an orderly end: {ended}");
        });
    }
}

#[test]
fn down_leaves_nothing_behind() {
    leaves_nothing_after(|setup, node| {
        succeed(Command::new(RINGLANE).args(["down", "--interface", &setup.interface]));
        assert!(node.wait_ended().success());
    });
}

#[test]
fn sigterm_at_any_moment_of_start_up_leaves_nothing_behind() {
    let Some(lab) = Lab::up(2) else { return };
    let [setup, _] = mesh(&lab, [(Site::A, 2), (Site::B, 1)]);
    let router = lab.router(Site::A);
    let before = router.kernel_state();
    let mut orderly = 0;
    // Up to twice what a start takes here; each step is another moment of it.
    for step in 0..16 {
        let mut node = Node::up(&setup);
        std::thread::sleep(step * Duration::from_millis(15));
        let ended = node.terminate();
        // The log is one for all steps. Before its first line there is nothing to end in order.
        if node.log().matches("starting version").count() > orderly {
            assert!(ended.success(), "step {step}: SIGTERM is an orderly end: {ended}");
            orderly += 1;
        } else {
            assert_eq!(ended.signal(), Some(Signal::TERM.as_raw()), "step {step}: nothing was begun: {ended}");
        }
        assert_eq!(router.kernel_state(), before, "step {step}");
        assert!(!setup.socket().exists(), "step {step}");
    }
    assert!(orderly > 0, "no signal came after the beginning");
}

#[test]
fn a_node_that_loses_its_interface_says_so_and_ends() {
    leaves_nothing_after(|setup, node| {
        setup.router.run(&format!("ip link del {}", setup.interface));
        let ended = node.wait_ended();
        assert_eq!(ended.code(), Some(1), "{ended}");
        let log = node.log();
        let last = log.lines().last().unwrap_or_default();
        assert!(last.starts_with("ringlane: worker ") && last.contains("the TUN interface"), "{last}");
        assert!(!log.contains("have not stopped in time"), "a worker that failed is not waited for");
    });
}

#[test]
fn a_node_whose_log_nobody_reads_runs_on() {
    let Some(lab) = Lab::up(2) else { return };
    let [setup, other] = mesh(&lab, [(Site::A, 1), (Site::B, 1)]);
    let mut node = Node::up_unread(&setup);
    let _other = Node::up(&other);
    node.wait_direct(&[Site::B], 1);
    terminate(&mut node);
    assert!(!setup.socket().exists());
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
