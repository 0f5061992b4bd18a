//! No flow overtakes itself, whatever the kernel's queues and several workers on each side make of it, on a link with
//! 20 ms of round-trip time: there, packets of one flow by two ways would be many places apart.
//!
//! One side has two workers and the other three, so that what a flow's answers come by is rarely what it left by.

use std::net::{IpAddr, UdpSocket};
use std::ops::Range;
use std::thread;
use std::time::Duration;

use crate::datagrams::{Load, roomy_receiver};
use crate::delay::TreatedLink;
use crate::lab::{Lab, Namespace, Site};
use crate::node::{Node, Setup, two_direct, two_direct_on};
use crate::traffic::{tcp_both_ways, uninterrupted};

const ONE_WAY: Duration = Duration::from_millis(10);
/// Flows enough that each of three workers gets some.
const FLOWS: u32 = 16;

/// Two nodes of two and three workers. In the order in which they must end.
struct FarApart {
    nodes: [Node; 2],
    _setups: [Setup; 2],
    _underlay: TreatedLink,
    lab: Lab,
}

impl FarApart {
    fn up() -> Option<Self> {
        Self::with(two_direct)
    }

    /// With nodes of so many workers that `nodes` starts.
    fn with(nodes: impl FnOnce(&Lab, [u8; 2]) -> ([Setup; 2], [Node; 2])) -> Option<Self> {
        let lab = Lab::up(2)?;
        let underlay = TreatedLink::between_routers(&lab, ONE_WAY);
        let (setups, nodes) = nodes(&lab, [2, 3]);
        Some(Self { nodes, _setups: setups, _underlay: underlay, lab })
    }

    /// UDP flows both ways beside TCP streams both ways, each datagram and byte checked.
    fn carries_in_order(&self, ends: [&Namespace; 2], addresses: [IpAddr; 2]) {
        let load = Load::lossless(FLOWS, 120, 256);
        thread::scope(|scope| {
            let [forth, back] = [0, 1].map(|from| {
                let (client, server, address) = (ends[from], ends[1 - from], addresses[1 - from]);
                scope.spawn(move || load.run(client, server, address))
            });
            tcp_both_ways(ends[0], ends[1], addresses[1], 4, 500_000);
            for direction in [forth, back] {
                let tally = direction.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                assert_eq!(tally, load.all_in_order());
            }
        });
    }

    /// The link was what the test says, and all workers of both nodes had a part in it.
    fn was_shared_by_all_workers(&self) {
        for (node, peer) in self.nodes.iter().zip([Site::B, Site::A]) {
            let status = node.status();
            let rtt_us = status.peer(peer).and_then(|peer| peer["rtt_us"].as_u64());
            assert!(rtt_us.is_some_and(|rtt_us| rtt_us >= 20_000), "{rtt_us:?}");
            assert!(status.workers("tun_writes").iter().all(|&writes| writes > 50), "{status:?}");
        }
    }
}

#[test]
fn no_flow_between_hosts_overtakes_itself_at_20_ms_of_round_trip() {
    let Some(bed) = FarApart::up() else { return };
    hosts_keep_order(&bed);
}

#[test]
fn no_flow_between_hosts_overtakes_itself_between_epoll_and_io_uring() {
    let Some(bed) = FarApart::with(|lab, workers| two_direct_on(lab, workers, ["epoll", "io_uring"])) else { return };
    hosts_keep_order(&bed);
}

fn hosts_keep_order(bed: &FarApart) {
    let ends = [Site::A, Site::B].map(|site| bed.lab.host(site));
    for family in [0, 1] {
        bed.carries_in_order(ends.each_ref(), [Site::A, Site::B].map(|site| site.host()[family]));
    }
    bed.was_shared_by_all_workers();
}

#[test]
fn no_flow_between_the_routers_themselves_overtakes_itself_at_20_ms_of_round_trip() {
    let Some(bed) = FarApart::up() else { return };
    let ends = [Site::A, Site::B].map(|site| bed.lab.router(site));
    let addresses = bed.nodes.each_ref().map(|node| node.status().addresses());
    for family in [0, 1] {
        bed.carries_in_order(ends.each_ref(), addresses.each_ref().map(|addresses| addresses[family]));
    }
    bed.was_shared_by_all_workers();
}

/// Sends a datagram for each number from both ends, and expects them at the other.
fn exchange([near, far]: &[UdpSocket; 2], numbers: Range<u8>) {
    for number in numbers.clone() {
        for end in [near, far] {
            end.send(&[number; 100]).expect("a datagram can be sent");
        }
    }
    for (number, end) in numbers.flat_map(|number| [(number, near), (number, far)]) {
        let mut datagram = [0; 200];
        let length =
            uninterrupted(|| end.recv(&mut datagram)).unwrap_or_else(|error| panic!("datagram {number}: {error}"));
        assert_eq!(datagram[..length], [number; 100]);
    }
}

#[test]
fn a_flow_whose_ends_both_speak_at_once_stays_on_one_worker_of_each_node() {
    const IN_A_ROW: u8 = 8;
    const ROUNDS: u8 = 6;
    let Some(mut bed) = FarApart::up() else { return };
    for (near, far) in Site::A.host().into_iter().zip(Site::B.host()).cycle().take(8) {
        bed.lab.host(Site::A).ping(far);
        let ends =
            [(Site::A, near), (Site::B, far)].map(|(site, address)| roomy_receiver(&bed.lab.host(site), address));
        for (end, other) in [(0, 1), (1, 0)] {
            let other = ends[other].local_addr().expect("a bound socket has an address");
            ends[end].connect(other).expect("the other end is reachable");
        }
        let statuses = bed.nodes.each_ref().map(Node::status);
        for round in 0..ROUNDS {
            exchange(&ends, round * IN_A_ROW..(round + 1) * IN_A_ROW);
        }
        for (node, status) in bed.nodes.iter_mut().zip(statuses) {
            let all = status.sum("packets_received") + u64::from(ROUNDS * IN_A_ROW);
            let counted = node.wait_until("all are counted", |status| status.sum("packets_received") >= all);
            let [before, after] = [status, counted].map(|status| status.workers("tun_writes"));
            let worked = before.iter().zip(&after).filter(|(before, after)| after > before).count();
            assert_eq!(worked, 1, "{near} to {far}: from {before:?} to {after:?} writes by worker");
        }
    }
}
