//! What an operator sees and sets of the packet path: offloads, cores, the TUN's queue.

use std::collections::BTreeMap;
use std::fs;
use std::net::UdpSocket;

use rustix::process::Signal;
use rustix::system::uname;
use toml::{Table, Value as Toml};

use crate::lab::{Lab, Site, wait_for};
use crate::node::{Node, Setup, Status, field, mesh};
use crate::traffic::{tcp_both_ways, udp_flows};

const OFFLOADS: [&str; 8] =
    ["huge_pages", "tun_checksum", "tun_coalesce", "tun_tso", "tun_uso", "udp_gro", "udp_gso", "udp_sentinel"];

/// What every kernel that Ringlane runs on has.
const EVERYWHERE: [&str; 6] = ["tun_checksum", "tun_coalesce", "tun_tso", "tun_uso", "udp_gro", "udp_gso"];

fn settled(status: &Status) -> bool {
    status.offloads().iter().flat_map(BTreeMap::values).all(|state| state != "unknown")
}

pub(crate) fn direct_over_two_lanes(setups: &[Setup; 2]) -> [Node; 2] {
    let mut nodes = setups.each_ref().map(Node::up);
    nodes[0].wait_direct(&[Site::B], 2);
    nodes[1].wait_direct(&[Site::A], 2);
    nodes
}

/// Content and order of flows of both kinds, both ways.
pub(crate) fn traffic_is_whole(lab: &Lab) {
    let (a, b) = (lab.host(Site::A), lab.host(Site::B));
    for (near, far, addresses) in [(&a, &b, Site::B.host()), (&b, &a, Site::A.host())] {
        for address in addresses {
            udp_flows(near, far, address, 4, 10);
            tcp_both_ways(near, far, address, 2, 1_000_000);
        }
    }
}

#[test]
fn status_shows_what_became_of_every_offload_of_every_worker() {
    let Some(lab) = Lab::up(2) else { return };
    let setups = mesh(&lab, [(Site::A, 2), (Site::B, 2)]);
    let mut nodes = direct_over_two_lanes(&setups);
    traffic_is_whole(&lab);
    let release = uname().release().to_string_lossy().into_owned();
    let sentinel = if release.starts_with("7.0") || release.starts_with("7.1") { &["on", "off"][..] } else { &["off"] };
    for node in &mut nodes {
        let status = node.wait_until("the state of every offload is known", settled);
        let workers = status.offloads();
        assert_eq!(workers.len(), 2);
        for offloads in workers {
            assert_eq!(offloads.keys().collect::<Vec<_>>(), OFFLOADS.iter().collect::<Vec<_>>());
            for offload in EVERYWHERE {
                assert_eq!(offloads[offload], "on", "{offload} in {offloads:?}");
            }
            assert!(["on", "unavailable"].contains(&offloads["huge_pages"].as_str()), "{offloads:?}");
            assert!(sentinel.contains(&offloads["udp_sentinel"].as_str()), "{offloads:?}");
        }
        for counter in ["tun_writes", "trains_sent", "trains_received", "super_segments_read"] {
            assert!(status.sum(counter) > 0, "{counter} in {status:?}");
        }
    }
}

#[test]
fn each_offload_that_is_switched_off_is_off_and_traffic_crosses_without() {
    let Some(lab) = Lab::up(2) else { return };
    let mut setups = mesh(&lab, [(Site::A, 2), (Site::B, 2)]);
    // A has all of them, so that each side meets what the other does not have.
    let off: Table = OFFLOADS.iter().map(|offload| ((*offload).to_owned(), Toml::Boolean(false))).collect();
    setups[1].set("dataplane", "offload", off);
    setups[1].write();
    let mut nodes = direct_over_two_lanes(&setups);
    traffic_is_whole(&lab);
    let status = nodes[1].wait_until("the state of every offload is known", settled);
    for offloads in status.offloads() {
        for offload in OFFLOADS {
            assert_eq!(offloads[offload], "off", "{offload} in {offloads:?}");
        }
    }
    assert_eq!((status.sum("super_segments_read"), status.sum("super_segments_written")), (0, 0));
}

#[test]
fn each_worker_runs_on_the_core_the_configuration_gives_it() {
    let Some(lab) = Lab::up(2) else { return };
    let mut setup = Setup::init(&lab, Site::A).workers(3);
    let mut cores = allowed_cores();
    cores.reverse();
    cores.truncate(2);
    setup.set("dataplane", "cores", cores.iter().map(|core| Toml::from(i64::from(*core))).collect::<Vec<_>>());
    setup.write();
    let mut node = Node::up(&setup);
    node.wait_until("the node runs", |_| true);
    for (worker, core) in (0..3).zip(cores.iter().cycle()) {
        assert_eq!(node.cores_of(&format!("ringlane-w{worker}")), core.to_string(), "worker {worker} of {cores:?}");
    }
}

#[test]
fn packets_that_find_the_tuns_queue_full_are_in_status() {
    let Some(lab) = Lab::up(2) else { return };
    let mut setups = mesh(&lab, [(Site::A, 1), (Site::B, 1)]);
    setups[0].set("dataplane", "tun_queue_packets", 16);
    setups[0].write();
    let mut node = Node::up(&setups[0]);
    let status = node.wait_until("the node runs", |_| true);
    assert_eq!((status.tun("queue_packets"), status.tun("dropped")), (Some(16), Some(0)));

    // A worker that does not run reads nothing.
    node.signal(Signal::STOP);
    let state = || fs::read_to_string(format!("/proc/{}/status", node.id())).ok();
    wait_for("the node to stop", || field(&state()?, "State:")?.starts_with('T').then_some(()));
    lab.host(Site::A).enter(|| {
        let socket = UdpSocket::bind((Site::A.host_v4(), 0)).expect("a port is free");
        for _ in 0..2000 {
            socket.send_to(&[0; 100], (Site::B.host_v4(), 9)).expect("the host sends");
        }
    });
    node.signal(Signal::CONT);
    let status =
        node.wait_until("drops are counted", |status| status.tun("dropped").is_some_and(|dropped| dropped > 0));
    assert_eq!(status.tun("queue_packets"), Some(16));
}

/// The CPUs this process may use, as nodes started by it may.
fn allowed_cores() -> Vec<u16> {
    let status = fs::read_to_string("/proc/thread-self/status").expect("Linux has it");
    let list = field(&status, "Cpus_allowed_list:").expect("it has the line");
    let number = |text: &str| text.parse::<u16>().expect("a number");
    let ranges = list.split(',').map(|range| range.split_once('-').unwrap_or((range, range)));
    ranges.flat_map(|(first, last)| number(first)..=number(last)).collect()
}
