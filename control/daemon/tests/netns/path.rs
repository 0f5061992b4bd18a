//! What lanes find out of their paths: what they carry, and whether anybody is there.

use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use toml::Value as Toml;

use crate::lab::{Lab, Namespace, SILENCE, Site, wait_for};
use crate::node::{CONTROL_PORT, LANE_PORT, Node, Setup, Status, mesh};
use crate::traffic::tcp_both_ways;
use crate::wire::{Capture, Datagram};

/// How soon a status shows what a node has noticed within a second, on a machine that does other things.
const NOTICED_WITHIN: Duration = Duration::from_millis(2500);

/// Pings that go on, answered or not, until it is dropped: large enough for records above the base size.
struct Pings(Child);

impl Pings {
    fn start(from: &Namespace, to: Site) -> Self {
        let mut ping = from.command("ping");
        ping.args(["-n", "-q", "-i", "0.02", "-c", "3000", "-s", "1340", &to.host_v4().to_string()]);
        Self(ping.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("ping can be started"))
    }
}

impl Drop for Pings {
    fn drop(&mut self) {
        // Both fail harmlessly for a process that has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The only lane to a peer, as status shows it.
fn lane(status: &Status, peer: Site) -> Value {
    status.peer(peer).map(|peer| peer["lanes"][0].clone()).unwrap_or_default()
}

fn wait_mtu(node: &mut Node, peer: Site, bytes: std::ops::RangeInclusive<u64>) {
    let is_so = |status: &Status| lane(status, peer)["mtu_bytes"].as_u64().is_some_and(|mtu| bytes.contains(&mtu));
    node.wait_until(&format!("a path MTU of {bytes:?}"), is_so);
}

fn wait_state(node: &mut Node, peer: Site, state: &str) -> Status {
    node.wait_until(state, |status| lane(status, peer)["state"] == state)
}

fn up_with_one_lane(setups: &[Setup; 2]) -> [Node; 2] {
    let mut nodes = setups.each_ref().map(Node::up);
    nodes[0].wait_direct(&[Site::B], 1);
    nodes[1].wait_direct(&[Site::A], 1);
    nodes
}

/// Gives both ends of the underlay another MTU. Whoever gets the smaller one first makes a hole of it for a moment.
fn set_underlay_mtu(lab: &Lab, mtu: u16) {
    for site in [Site::A, Site::B] {
        lab.router(site).run(&format!("ip link set underlay mtu {mtu}"));
    }
}

/// The path MTU is found at each of these MTUs of the underlay, which change while packets cross, and packets cross at
/// each of them.
fn follows_the_underlay(lab: &Lab, setups: &[Setup; 2], header_bytes: u64) {
    let mut nodes = up_with_one_lane(setups);
    let _pings = Pings::start(&lab.host(Site::A), Site::B);
    for mtu in [1500, 9000, 1280, 1500, 1400, 9000] {
        set_underlay_mtu(lab, mtu);
        let bytes = u64::from(mtu) - header_bytes;
        wait_mtu(&mut nodes[0], Site::B, bytes..=bytes);
        wait_mtu(&mut nodes[1], Site::A, bytes..=bytes);
        lab.host(Site::A).ping(Site::B.host_v4().into());
    }
    for node in &nodes {
        assert!(!node.log().contains("lane down"), "{}", node.log());
        assert_eq!(node.status().sum("trains_resent"), 0, "no train was refused for being too large");
    }
}

#[test]
fn the_path_mtu_follows_an_ipv4_underlay_up_and_down() {
    let Some(lab) = Lab::up(2) else { return };
    follows_the_underlay(&lab, &mesh(&lab, [(Site::A, 1), (Site::B, 1)]), 28);
}

#[test]
fn the_path_mtu_follows_an_ipv6_underlay_up_and_down() {
    let Some(lab) = Lab::up(2) else { return };
    let mut setups = mesh(&lab, [(Site::A, 1), (Site::B, 1)]);
    let addresses = [1, 2].map(|number| {
        let address = format!("/ip6/fd01:201::{number}/udp/{CONTROL_PORT}/quic-v1");
        Toml::Array(vec![Toml::String(address)])
    });
    for (setup, [ours, theirs]) in setups.iter_mut().zip([[0, 1], [1, 0]]) {
        setup.set("control", "listen", addresses[ours].clone());
        setup.settings["peers"][0]["addresses"] = addresses[theirs].clone();
    }
    // Each engine meets refusals of its own.
    setups[0].set("dataplane", "engine", "epoll");
    setups.iter().for_each(Setup::write);
    follows_the_underlay(&lab, &setups, 48);
}

/// Ends what goes on until then, also when the test fails.
struct Over<'t>(&'t AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn transfers_survive_an_underlay_whose_mtu_grows_and_shrinks_meanwhile() {
    let Some(lab) = Lab::up(2) else { return };
    let mut nodes = up_with_one_lane(&mesh(&lab, [(Site::A, 1), (Site::B, 1)]));
    let (a, b) = (lab.host(Site::A), lab.host(Site::B));
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let transfers = scope.spawn(|| {
            let mut transfers = 0;
            while !is_over.load(Ordering::Relaxed) {
                tcp_both_ways(&a, &b, Site::B.host_v4().into(), 2, 2_000_000);
                transfers += 1;
            }
            transfers
        });
        let over = Over(&is_over);
        for mtu in [9000, 1500, 9000, 1500] {
            set_underlay_mtu(&lab, mtu);
            let bytes = u64::from(mtu) - 28;
            wait_mtu(&mut nodes[0], Site::B, bytes..=bytes);
            wait_mtu(&mut nodes[1], Site::A, bytes..=bytes);
        }
        drop(over);
        assert!(transfers.join().is_ok_and(|transfers| transfers > 0), "content is whole");
    });
    for node in &nodes {
        assert!(!node.log().contains("lane down"), "{}", node.log());
    }
}

#[test]
fn a_path_that_swallows_large_datagrams_is_noticed_and_what_it_carries_is_found() {
    let Some(lab) = Lab::up(3) else { return };
    // One frame on the wire is one record.
    for site in [Site::A, Site::B] {
        lab.router(site).run("ethtool -K underlay tso off gso off tx-udp-segmentation off gro on");
    }
    let underlay = lab.underlay();
    underlay.run("ethtool -K port-a gro off");
    let mut nodes = up_with_one_lane(&mesh(&lab, [(Site::A, 1), (Site::B, 1)]));
    let _pings = Pings::start(&lab.host(Site::A), Site::B);
    wait_mtu(&mut nodes[0], Site::B, 1472..=1472);

    underlay.run("nft add table netdev lab");
    underlay.run("nft add chain netdev lab port-a { type filter hook ingress device port-a priority 0 ; }");
    let began = Instant::now();
    underlay.run(&format!("nft add rule netdev lab port-a udp dport {LANE_PORT} meta length > 1350 drop"));
    wait_mtu(&mut nodes[0], Site::B, 1200..=1322);
    assert!(began.elapsed() < NOTICED_WITHIN, "noticed after {:?}", began.elapsed());
    wait_mtu(&mut nodes[0], Site::B, 1319..=1322);
    assert_eq!(lane(&nodes[1].status(), Site::A)["mtu_bytes"], 1472, "the other direction has no hole");

    underlay.run("nft delete table netdev lab");
    wait_mtu(&mut nodes[0], Site::B, 1472..=1472);
    assert!(!nodes[0].log().contains("lane silent"), "{}", nodes[0].log());
}

#[test]
fn a_peer_that_is_cut_off_is_silent_within_a_second_and_heard_again() {
    let Some(lab) = Lab::up(2) else { return };
    let mut nodes = up_with_one_lane(&mesh(&lab, [(Site::A, 1), (Site::B, 1)]));
    wait_mtu(&mut nodes[0], Site::B, 1472..=1472);
    let _pings = Pings::start(&lab.host(Site::A), Site::B);
    lab.host(Site::A).ping(Site::B.host_v4().into());
    let before = lane(&nodes[0].status(), Site::B);

    let router = lab.router(Site::B);
    router.run("nft add table inet lab");
    router.run("nft add chain inet lab input { type filter hook input priority 0 ; }");
    let began = Instant::now();
    router.run(&format!("nft add rule inet lab input udp dport {LANE_PORT} drop"));
    let status = wait_state(&mut nodes[0], Site::B, "silent");
    assert!(began.elapsed() < NOTICED_WITHIN, "noticed after {:?}", began.elapsed());
    // Control hears of it a moment after the worker has noted it.
    let problem = |status: &Status| status.peer(Site::B).map(|peer| peer["problem"].clone()).unwrap_or_default();
    nodes[0].wait_until("the problem", |status| problem(status) == "the peer does not answer on lane 0");
    assert_eq!(lane(&status, Site::B)["mtu_bytes"], before["mtu_bytes"], "silence says nothing of sizes");

    router.run("nft delete table inet lab");
    wait_state(&mut nodes[0], Site::B, "up");
    nodes[0].wait_until("no problem", |status| problem(status).is_null());
    lab.host(Site::A).ping(Site::B.host_v4().into());
    let log = nodes[0].log();
    assert!(log.contains("lane silent") && log.contains("lane heard") && !log.contains("lane down"), "{log}");
}

#[test]
fn a_peer_that_stays_away_costs_the_lane() {
    let Some(lab) = Lab::up(2) else { return };
    let mut nodes = up_with_one_lane(&mesh(&lab, [(Site::A, 1), (Site::B, 1)]));
    let _pings = Pings::start(&lab.host(Site::A), Site::B);
    lab.router(Site::B).run("ip link set underlay down");
    nodes[0].wait_until("the end of the lane", |status| status.lanes(Site::B) == 0);
    assert!(nodes[0].log().contains("nothing heard from the peer"), "{}", nodes[0].log());
}

/// How many datagrams the ends of a lane exchange while `meanwhile` goes on; STUN, by the same ports, is none of the lane's.
fn lane_datagrams(lab: &Lab, meanwhile: impl FnOnce()) -> u64 {
    let capture = Capture::start(&lab.router(Site::A));
    meanwhile();
    let datagrams = capture.stop();
    let datagrams = datagrams.iter().filter_map(|packet| Datagram::parse(packet));
    datagrams.filter(|datagram| datagram.source.port() == LANE_PORT && !datagram.is_stun()).count() as u64
}

/// Waits until what is left of the handshake and the search is over.
fn wait_quiet(lab: &Lab, nodes: &mut [Node; 2]) {
    let [a, b] = nodes;
    wait_mtu(a, Site::B, 1472..=1472);
    wait_mtu(b, Site::A, 1472..=1472);
    let is_quiet = || lane_datagrams(lab, || thread::sleep(SILENCE)) == 0;
    wait_for("a quiet lane", || is_quiet().then_some(()));
}

fn echoes(nodes: &[Node; 2], counter: &str) -> u64 {
    nodes.iter().map(|node| node.status().sum(counter)).sum()
}

#[test]
fn a_lane_that_is_not_used_is_quiet() {
    let Some(lab) = Lab::up(2) else { return };
    let mut nodes = up_with_one_lane(&mesh(&lab, [(Site::A, 1), (Site::B, 1)]));
    wait_quiet(&lab, &mut nodes);
    let before = echoes(&nodes, "echoes_sent");
    let datagrams = lane_datagrams(&lab, || thread::sleep(Duration::from_secs(4)));
    let asked = echoes(&nodes, "echoes_sent") - before;
    // Its keep-alive may be due, and nothing else ever is.
    assert!(asked <= 2 && datagrams <= 2 * asked, "{datagrams} datagrams for {asked} keep-alives");
}

#[test]
fn a_lane_that_is_not_used_is_kept_alive_as_often_as_configured() {
    const KEPT_ALIVE: u64 = 5;
    /// With 1 s configured, an end's keep-alives are at least 7/8 s apart, and of five one end has sent three.
    const LEAST: Duration = Duration::from_millis(1750);
    let Some(lab) = Lab::up(2) else { return };
    let mut setups = mesh(&lab, [(Site::A, 1), (Site::B, 1)]);
    for setup in &mut setups {
        setup.set("dataplane", "keep_alive_seconds", 1);
        setup.write();
    }
    let mut nodes = up_with_one_lane(&setups);
    wait_quiet(&lab, &mut nodes);
    let sent = echoes(&nodes, "echoes_sent");
    let began = Instant::now();
    let mut heard = 0;
    let datagrams = lane_datagrams(&lab, || {
        // From here on each is seen; of one that is under way, the answer at least.
        let answered = echoes(&nodes, "echoes_answered");
        heard = wait_for("keep-alives", || {
            Some(echoes(&nodes, "echoes_answered") - answered).filter(|heard| *heard >= KEPT_ALIVE)
        });
    });
    let (took, asked) = (began.elapsed(), echoes(&nodes, "echoes_sent") - sent);
    let expected = 2 * heard - 1..=2 * asked;
    assert!(expected.contains(&datagrams), "{datagrams} datagrams, {asked} keep-alives, {heard} answered");
    assert!(took >= LEAST, "{asked} keep-alives in {took:?}");
}

#[test]
fn a_node_that_was_stopped_for_longer_than_silence_lasts_asks_before_it_ends_a_lane() {
    let Some(lab) = Lab::up(2) else { return };
    let mut setups = mesh(&lab, [(Site::A, 1), (Site::B, 1)]);
    // Its keep-alive is overdue when it goes on, by more than a lane may be silent.
    setups[1].set("dataplane", "keep_alive_seconds", 1);
    setups[1].write();
    let mut nodes = up_with_one_lane(&setups);
    wait_mtu(&mut nodes[0], Site::B, 1472..=1472);
    wait_mtu(&mut nodes[1], Site::A, 1472..=1472);
    let answered = nodes[1].status().sum("echoes_answered");
    nodes[1].signal(Signal::STOP);
    thread::sleep(Duration::from_secs(10));
    nodes[1].signal(Signal::CONT);
    nodes[1].wait_until("answers to new questions", |status| status.sum("echoes_answered") > answered);
    lab.host(Site::A).ping(Site::B.host_v4().into());
    for node in &nodes {
        assert!(!node.log().contains("lane down"), "{}", node.log());
    }
}

#[test]
fn a_peer_that_was_stopped_for_seconds_while_packets_leave_is_heard_again_on_the_same_lane() {
    let Some(lab) = Lab::up(2) else { return };
    let mut nodes = up_with_one_lane(&mesh(&lab, [(Site::A, 1), (Site::B, 1)]));
    let _pings = Pings::start(&lab.host(Site::A), Site::B);
    nodes[1].signal(Signal::STOP);
    wait_state(&mut nodes[0], Site::B, "silent");
    nodes[1].signal(Signal::CONT);
    wait_state(&mut nodes[0], Site::B, "up");
    lab.host(Site::A).ping(Site::B.host_v4().into());
    for node in &nodes {
        assert!(!node.log().contains("lane down"), "{}", node.log());
    }
}
