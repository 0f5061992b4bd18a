//! No flow overtakes itself, whatever the kernel's queues and two workers on each side make of it, on a link with
//! 20 ms of round-trip time: there, packets of one flow by two ways would be many places apart.

use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use crate::datagrams::Load;
use crate::delay::DelayedUnderlay;
use crate::lab::{Lab, Namespace, Site};
use crate::node::{Node, Setup, two_direct};
use crate::traffic::{Echo, tcp_both_ways};

const ONE_WAY: Duration = Duration::from_millis(10);
/// Flows enough that each of two workers gets some: all sixteen on one has a chance of 1 in 32 768.
const FLOWS: u32 = 16;

/// Two nodes of two workers. In the order in which they must end.
struct FarApart {
    nodes: [Node; 2],
    _setups: [Setup; 2],
    _underlay: DelayedUnderlay,
    lab: Lab,
}

impl FarApart {
    fn up() -> Option<Self> {
        let lab = Lab::up(2)?;
        let underlay = DelayedUnderlay::between_routers(&lab, ONE_WAY);
        let (setups, nodes) = two_direct(&lab, [2, 2]);
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

    /// The link was what the test says, and both workers of both nodes had a part in it.
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

#[test]
fn a_flow_and_its_answers_stay_on_one_worker_of_each_node() {
    const DATAGRAMS: u32 = 48;
    let Some(mut bed) = FarApart::up() else { return };
    let [a, b] = [Site::A, Site::B].map(|site| bed.lab.host(site));
    for address in Site::B.host() {
        a.ping(address);
        for number in 0..4 {
            let echo = Echo::bind(&b, address);
            let writes = |bed: &FarApart| bed.nodes.each_ref().map(|node| node.status().workers("tun_writes"));
            let received = bed.nodes.each_ref().map(|node| node.status().sum("packets_received"));
            let before = writes(&bed);
            thread::scope(|scope| {
                scope.spawn(|| echo.serve());
                let mut flow = echo.flow(&a, number);
                // Bursts, and answers in between: what would move a flow if answers could.
                let client = scope.spawn(move || (0..DATAGRAMS / 8).for_each(|_| flow.exchange(8)));
                let ended = client.join();
                echo.stop();
                if let Err(panic) = ended {
                    std::panic::resume_unwind(panic);
                }
            });
            for (node, received) in bed.nodes.iter_mut().zip(received) {
                let all = received + u64::from(DATAGRAMS);
                node.wait_until("all datagrams are counted", |status| status.sum("packets_received") >= all);
            }
            let after = writes(&bed);
            for (before, after) in before.iter().zip(&after) {
                let worked = before.iter().zip(after).filter(|(before, after)| after > before).count();
                assert_eq!(worked, 1, "flow {number} to {address}: from {before:?} to {after:?} writes by worker");
            }
        }
    }
}
