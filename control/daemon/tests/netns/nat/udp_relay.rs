//! Lanes that R or S relays, where no path leads from one end to the other.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use super::kinds::{Kind, Pair};
use super::lab::{Family, NatLab};
use super::nodes::{Setups, WORKERS};
use crate::lab::Site;
use crate::node::{Node, Setup, Status, name_of};
use crate::stream::Stream;
use crate::traffic::{tcp_both_ways, time_to_first_echo, udp_flows};

/// How long relayed lanes may take on a machine that is busy with other things.
const SOON: Duration = Duration::from_secs(10);
/// Bytes that are moved each way where it is measured how fast.
const MEASURED_BYTES: usize = 24 << 20;

pub(super) struct Relayed {
    pub(super) ends: [Node; 2],
    third: [Node; 2],
    // The network last.
    pub(super) nat: NatLab,
}

impl Relayed {
    /// A and B in such places, with nothing but R and S between them.
    fn up(pair: Pair) -> Option<Self> {
        Some(Self::up_with(pair, |_| ())?.0)
    }

    /// The same with something changed in all configurations.
    pub(super) fn up_with(pair: Pair, change: impl Fn(&mut Setup)) -> Option<(Self, Setups)> {
        let nat = NatLab::up(pair)?;
        let mut setups = Setups::init(&nat, pair);
        setups.each(change);
        let third = setups.third_up();
        nat.part([Site::A, Site::B], Family::Both);
        Some((Self { ends: setups.ends_up(), third, nat }, setups))
    }

    /// Waits until all lanes between A and B are relayed. Returns by whom.
    pub(super) fn wait_lanes(&mut self) -> Site {
        for (node, peer) in self.ends.iter_mut().zip([Site::B, Site::A]) {
            node.wait_until(&format!("relayed lanes to {peer:?}"), |status| relays(status, peer).is_some());
        }
        let status = self.ends[0].status();
        let relay = relays(&status, Site::B).expect("it has just been there");
        *[Site::R, Site::S].iter().find(|site| name_of(**site) == relay).expect("nobody else is a relay")
    }

    pub(super) fn third(&mut self, site: Site) -> &mut Node {
        &mut self.third[usize::from(site == Site::S)]
    }

    fn traffic_crosses(&self) {
        let (a, b) = (self.nat.lab().host(Site::A), self.nat.lab().host(Site::B));
        for address in Site::B.host() {
            a.ping(address);
            tcp_both_ways(&a, &b, address, 2, 300_000);
            udp_flows(&a, &b, address, 4, 4);
        }
    }

    /// Mbit/s of a transfer both ways, both directions together.
    fn speed(&self) -> f64 {
        let (a, b) = (self.nat.lab().host(Site::A), self.nat.lab().host(Site::B));
        let began = Instant::now();
        tcp_both_ways(&a, &b, Site::B.host()[0], 1, MEASURED_BYTES);
        2.0 * 8.0 * MEASURED_BYTES as f64 / began.elapsed().as_secs_f64() / 1e6
    }
}

/// Who relays all lanes to a peer, if they are all there and relayed; one of them, if several do.
pub(super) fn relays(status: &Status, peer: Site) -> Option<String> {
    let lanes = status.peer(peer)?["lanes"].as_array()?;
    let names: Vec<&str> = lanes.iter().filter_map(|lane| lane["relay"].as_str()).collect();
    let is_all = names.len() == usize::from(WORKERS);
    (is_all && status.state(peer) == "relayed").then(|| names[0].to_owned())
}

/// Whether all lanes to a peer are there, and none by a relay.
fn is_direct(status: &Status, peer: Site) -> bool {
    let lanes = status.peer(peer).and_then(|peer| peer["lanes"].as_array()).cloned().unwrap_or_default();
    lanes.len() == usize::from(WORKERS) && lanes.iter().all(|lane| lane["relay"].is_null())
}

fn forwarding(status: &Status) -> &Value {
    &status.part("relay")["forwarding"]
}

fn is_let_go(relayed: &mut Relayed, relay: Site) {
    // What nobody uses is given back.
    let patience = Duration::from_secs(60);
    let began = Instant::now();
    loop {
        let status = relayed.third(relay).status();
        let allotments = forwarding(&status)["allotments"].as_array().map_or(0, Vec::len);
        if allotments == 0 {
            break;
        }
        assert!(began.elapsed() < patience, "{allotments} allotments are left");
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn lanes_come_by_a_relay(pair: Pair) {
    let Some(mut relayed) = Relayed::up(pair) else { return };
    let began = Instant::now();
    let relay = relayed.wait_lanes();
    let took = began.elapsed();
    eprintln!("{pair:?}: lanes through {relay:?} after {took:?}");
    assert!(took < SOON, "{took:?}");
    relayed.traffic_crosses();
    let told = relayed.third(relay).wait_until("what it forwards in its status", |status| {
        forwarding(status)["bytes"].as_u64().unwrap_or_default() > 1_000_000
    });
    let allotments = forwarding(&told)["allotments"].as_array().cloned().unwrap_or_default();
    assert!(allotments.iter().any(|allotment| allotment["open"] == WORKERS), "{allotments:?}");
}

#[test]
fn two_symmetric_nats_get_their_lanes_relayed() {
    lanes_come_by_a_relay(Pair::Apart(Kind::Symmetric, Kind::Symmetric));
}

#[test]
fn a_relay_joins_lanes_of_ipv6_to_lanes_of_ipv4() {
    lanes_come_by_a_relay(Pair::Apart(Kind::Ipv6Only, Kind::PortRestricted));
}

#[test]
fn a_relay_that_is_killed_is_replaced_by_the_other() {
    let Some(mut relayed) = Relayed::up(Pair::Apart(Kind::Symmetric, Kind::Symmetric)) else { return };
    let first = relayed.wait_lanes();
    let other = if first == Site::R { Site::S } else { Site::R };
    // By every lane: one that nobody uses has no reason to notice before its next keep-alive.
    let stream = Stream::start_gently(relayed.nat.lab());
    let began = Instant::now();
    relayed.third(first).signal(Signal::KILL);
    let (a, b) = (relayed.nat.lab().host(Site::A), relayed.nat.lab().host(Site::B));
    let took = time_to_first_echo(&a, &b, Site::B.host()[0]);
    let by_other = |status: &Status, peer| {
        let lanes = status.peer(peer).and_then(|peer| peer["lanes"].as_array()).cloned().unwrap_or_default();
        lanes.len() == usize::from(WORKERS) && lanes.iter().all(|lane| lane["relay"] == name_of(other).as_str())
    };
    for (node, peer) in relayed.ends.iter_mut().zip([Site::B, Site::A]) {
        node.wait_until(&format!("lanes to {peer:?} through the other relay"), |status| by_other(status, peer));
    }
    eprintln!("relay killed: packets pass after {took:?}, all lanes by the other one after {:?}", began.elapsed());
    assert!(stream.stop() > 0);
    relayed.traffic_crosses();
}

#[test]
fn relayed_lanes_that_nobody_uses_stay() {
    // Longer than the ends let pass between two binds.
    const IDLE: Duration = Duration::from_secs(22);
    let Some(mut relayed) = Relayed::up(Pair::Apart(Kind::Symmetric, Kind::Symmetric)) else { return };
    relayed.wait_lanes();
    let began = Instant::now();
    while began.elapsed() < IDLE {
        for (node, peer) in relayed.ends.iter().zip([Site::B, Site::A]) {
            assert!(relays(&node.status(), peer).is_some(), "after {:?}: {:?}", began.elapsed(), node.status());
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    relayed.traffic_crosses();
}

#[test]
fn relayed_lanes_move_to_the_direct_path_and_the_relay_is_let_go() {
    let Some(mut relayed) = Relayed::up(Pair::Apart(Kind::FullCone, Kind::Public)) else { return };
    let relay = relayed.wait_lanes();
    relayed.nat.join();
    for (node, peer) in relayed.ends.iter_mut().zip([Site::B, Site::A]) {
        node.wait_direct(&[peer], WORKERS.into());
    }
    relayed.traffic_crosses();
    is_let_go(&mut relayed, relay);
}

#[test]
fn lanes_go_by_a_relay_while_ports_are_tried_and_leave_it_when_one_is_met() {
    let Some(mut relayed) = Relayed::up(Pair::Apart(Kind::Symmetric, Kind::PortRestricted)) else { return };
    let began = Instant::now();
    let relay = relayed.wait_lanes();
    let took = began.elapsed();
    assert!(took < SOON, "{took:?}");
    relayed.traffic_crosses();
    relayed.nat.join();
    let stream = Stream::start_gently(relayed.nat.lab());
    // Each lane has its turn, and another one should chance be against it.
    let patience = Duration::from_secs(90);
    while !relayed.ends.iter().zip([Site::B, Site::A]).all(|(node, peer)| is_direct(&node.status(), peer)) {
        assert!(began.elapsed() < patience, "{:?}", relayed.ends.each_ref().map(Node::status));
        std::thread::sleep(Duration::from_millis(100));
    }
    eprintln!("relayed after {took:?}, all lanes direct after {:?}", began.elapsed());
    assert!(stream.stop() > 0);
    relayed.traffic_crosses();
    is_let_go(&mut relayed, relay);
}

#[test]
fn a_direct_path_that_is_lost_is_replaced_by_a_relay_and_taken_again_when_it_is_back() {
    let Some(nat) = NatLab::up(Pair::Apart(Kind::PortRestricted, Kind::Public)) else { return };
    let setups = Setups::init(&nat, Pair::Apart(Kind::PortRestricted, Kind::Public));
    let third = setups.third_up();
    let mut relayed = Relayed { ends: setups.ends_up(), third, nat };
    let wait_direct = |ends: &mut [Node; 2]| {
        for (node, peer) in ends.iter_mut().zip([Site::B, Site::A]) {
            node.wait_direct(&[peer], WORKERS.into());
        }
    };
    wait_direct(&mut relayed.ends);
    relayed.traffic_crosses();
    let began = Instant::now();
    relayed.nat.part([Site::A, Site::B], Family::Both);
    // Whoever has something to send notices.
    let (a, b) = (relayed.nat.lab().host(Site::A), relayed.nat.lab().host(Site::B));
    let took = time_to_first_echo(&a, &b, Site::B.host()[0]);
    relayed.wait_lanes();
    eprintln!("direct path lost: packets pass again after {took:?}, all lanes are relayed after {:?}", began.elapsed());
    relayed.traffic_crosses();
    relayed.nat.join();
    wait_direct(&mut relayed.ends);
    relayed.traffic_crosses();
}

/// Printed, and not asserted: it is a matter of the machine.
#[test]
fn what_relayed_lanes_carry_beside_relayed_streams() {
    let pair = Pair::Apart(Kind::PortRestricted, Kind::PortRestricted);
    let Some(mut relayed) = Relayed::up(pair) else { return };
    relayed.wait_lanes();
    relayed.traffic_crosses();
    let lanes = relayed.speed();
    drop(relayed);
    let Some(nat) = NatLab::up(pair) else { return };
    let mut setups = Setups::init(&nat, pair);
    setups.only_streams();
    let third = setups.third_up();
    nat.part([Site::A, Site::B], Family::Both);
    let mut relayed = Relayed { ends: setups.ends_up(), third, nat };
    for (node, peer) in relayed.ends.iter_mut().zip([Site::B, Site::A]) {
        node.wait_until(&format!("a circuit to {peer:?}"), |status| status.state(peer) == "relayed");
    }
    relayed.traffic_crosses();
    let streams = relayed.speed();
    eprintln!("through a relay, both ways together: lanes {lanes:.0} Mbit/s, libp2p streams {streams:.0} Mbit/s");
}
