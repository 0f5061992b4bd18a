//! Lanes move with their nodes, under load, and nobody else moves them.

use std::fs;
use std::time::Duration;

use toml::Value as Toml;

use crate::lab::{Lab, Namespace, Site};
use crate::node::{CONTROL_PORT, LANE_PORT, Node, Setup, mesh};
use crate::stream::{OneWay, Stream};

/// How long traffic may stand still while lanes move. Far above what a move takes: this machine has two cores, and they
/// are busy.
const MOVED_WITHIN: Duration = Duration::from_secs(3);

/// The same for nodes that have to find each other anew, by mDNS.
const FOUND_WITHIN: Duration = Duration::from_secs(15);

/// Configurations of A and B that listen at whatever addresses there are.
pub(crate) fn wherever(lab: &Lab) -> [Setup; 2] {
    let mut setups = mesh(lab, [(Site::A, 2), (Site::B, 2)]);
    for setup in &mut setups {
        let listen = [format!("/ip4/0.0.0.0/udp/{CONTROL_PORT}/quic-v1"), format!("/ip4/0.0.0.0/tcp/{CONTROL_PORT}")];
        setup.set("control", "listen", Toml::Array(listen.map(Toml::String).into()));
        setup.write();
        // An address that goes must not take the others with it.
        setup.router.run("sysctl -q -w net.ipv4.conf.all.promote_secondaries=1");
    }
    setups
}

pub(crate) fn direct(setups: &[Setup; 2]) -> [Node; 2] {
    let mut nodes = setups.each_ref().map(Node::up);
    nodes[0].wait_direct(&[Site::B], 2);
    nodes[1].wait_direct(&[Site::A], 2);
    nodes
}

/// Where a node's lanes to a peer begin and end.
fn ends(node: &Node, peer: Site) -> Vec<(String, String)> {
    let status = node.status();
    let lanes = status.peer(peer).and_then(|peer| peer["lanes"].as_array()).expect("status lists lanes");
    let end = |lane: &serde_json::Value, which| lane[which].as_str().expect("an address").to_owned();
    lanes.iter().map(|lane| (end(lane, "local"), end(lane, "remote"))).collect()
}

/// Whether all lanes of both nodes agree on where they are: at what `at_a` and `at_b` begin with.
pub(crate) fn are_at(nodes: &[Node; 2], at_a: &str, at_b: &str) -> Option<()> {
    let lanes = [ends(&nodes[0], Site::B), ends(&nodes[1], Site::A)];
    let fits = |(local, remote): &(String, String), ours: &str, theirs: &str| {
        local.starts_with(ours) && remote.starts_with(theirs)
    };
    let settled = lanes[0].len() == 2
        && lanes[1].len() == 2
        && lanes[0].iter().all(|lane| fits(lane, at_a, at_b))
        && lanes[1].iter().all(|lane| fits(lane, at_b, at_a));
    settled.then_some(())
}

pub(crate) fn moves(nodes: &[Node; 2]) -> [u64; 2] {
    nodes.each_ref().map(|node| node.status().sum("moves"))
}

/// No lane was lost on the way: those there are have existed since before.
pub(crate) fn lanes_are_the_same(nodes: &[Node; 2]) {
    for node in nodes {
        let log = node.log();
        assert_eq!(log.matches("lane up").count(), 2, "{log}");
        assert_eq!(log.matches("lane down").count(), 0, "{log}");
    }
}

fn assert_short(silence: [Duration; 2]) {
    assert!(silence.iter().all(|silence| *silence < MOVED_WITHIN), "{silence:?}");
}

/// Puts an address translator that keeps no state into a router: its lanes leave from `first` on, and only what comes to
/// those ports comes in.
pub(crate) fn translate(lab: &Lab, router: &Namespace, first: u16) {
    let lanes = [(LANE_PORT, first), (LANE_PORT + 1, first + 1)];
    let out: String = lanes.iter().map(|(lane, seen)| format!("  udp sport {lane} udp sport set {seen}\n")).collect();
    let back: String = lanes.iter().map(|(lane, seen)| format!("  udp dport {seen} udp dport set {lane}\n")).collect();
    let rules = format!(
        "table ip translate\ndelete table ip translate\ntable ip translate {{\n \
         chain out {{\n  type filter hook output priority 0\n{out} }}\n \
         chain back {{\n  type filter hook prerouting priority 0\n  \
         iifname underlay udp dport {LANE_PORT}-{} drop\n{back} }}\n}}\n",
        LANE_PORT + 1,
    );
    let file = lab.directory().join("translate.nft");
    fs::write(&file, rules).expect("a file can be written");
    router.run(&format!("nft -f {}", file.display()));
}

fn costs_no_lane_when_its_translator_forgets(site: Site) {
    let Some(lab) = Lab::up(2) else { return };
    let nodes = direct(&wherever(&lab));
    let stream = Stream::start(&lab);
    for first in [40_000, 41_000] {
        let translated = format!("{}:{}", site.underlay(), first / 1000);
        let what = format!("{site:?} is seen at port {first}");
        let silence = stream.silence_of(
            &what,
            || translate(&lab, &lab.router(site), first),
            || {
                let other = if site == Site::A { (&nodes[1], Site::A) } else { (&nodes[0], Site::B) };
                ends(other.0, other.1).iter().all(|(_, remote)| remote.starts_with(&translated)).then_some(())
            },
        );
        assert_short(silence);
    }
    assert!(stream.stop() > 0);
    lanes_are_the_same(&nodes);
    let moves = moves(&nodes);
    let (moved, other) = if site == Site::A { (moves[1], moves[0]) } else { (moves[0], moves[1]) };
    assert!(moved >= 4 && other == 0, "who is translated sees nothing of it: {moves:?}");
}

#[test]
fn a_translator_of_site_a_that_forgets_its_mapping_costs_no_lane() {
    costs_no_lane_when_its_translator_forgets(Site::A);
}

#[test]
fn a_translator_of_site_b_that_forgets_its_mapping_costs_no_lane() {
    costs_no_lane_when_its_translator_forgets(Site::B);
}

fn is_followed_to_its_new_address(site: Site) {
    let Some(lab) = Lab::up(2) else { return };
    let nodes = direct(&wherever(&lab));
    let stream = Stream::start(&lab);
    let (old, new) = (site.underlay(), format!("10.201.0.1{}", if site == Site::A { 1 } else { 2 }));
    let ends = match site {
        Site::A => [new.clone(), Site::B.underlay().to_string()],
        _ => [Site::A.underlay().to_string(), new.clone()],
    };
    let silence = stream.silence_of(
        &format!("{site:?} is renumbered"),
        || {
            let router = lab.router(site);
            router.run(&format!("ip address add {new}/24 dev underlay"));
            router.run(&format!("ip address del {old}/24 dev underlay"));
        },
        || are_at(&nodes, &ends[0], &ends[1]),
    );
    assert_short(silence);
    assert!(stream.stop() > 0);
    lanes_are_the_same(&nodes);
}

#[test]
fn lanes_follow_node_a_to_its_new_address() {
    is_followed_to_its_new_address(Site::A);
}

#[test]
fn lanes_follow_node_b_to_its_new_address() {
    is_followed_to_its_new_address(Site::B);
}

/// Joins the routers by a second network, 10.202.0.0/24 on interfaces called `second`.
fn second_network(lab: &Lab) {
    let [a, b] = [lab.router(Site::A), lab.router(Site::B)];
    let other = format!("{}o", lab.prefix());
    let join = format!("ip link add second type veth peer name {other}");
    a.run(&join);
    a.run(&format!("ip link set {other} netns {}", b.name()));
    b.run(&format!("ip link set {other} name second"));
    for (router, number) in [(&a, 1), (&b, 2)] {
        router.run(&format!("ip address add 10.202.0.{number}/24 dev second"));
        router.run("ip link set second up");
    }
}

#[test]
fn lanes_of_two_nodes_that_lose_a_network_at_once_go_by_the_other() {
    let Some(lab) = Lab::up(2) else { return };
    let setups = wherever(&lab);
    let [a, b] = [lab.router(Site::A), lab.router(Site::B)];
    second_network(&lab);
    let nodes = direct(&setups);
    let stream = Stream::start(&lab);
    for (gone, left) in [("underlay", "10.202.0."), ("second", "10.201.0.")] {
        let network = if gone == "underlay" { "10.201.0" } else { "10.202.0" };
        let silence = stream.silence_of(
            &format!("both lose {gone}"),
            || {
                for (router, number) in [(&a, 1), (&b, 2)] {
                    router.run(&format!("ip address del {network}.{number}/24 dev {gone}"));
                }
            },
            || are_at(&nodes, left, left),
        );
        assert_short(silence);
        for (router, number) in [(&a, 1), (&b, 2)] {
            router.run(&format!("ip address add {network}.{number}/24 dev {gone}"));
        }
    }
    assert!(stream.stop() > 0);
    lanes_are_the_same(&nodes);
}

fn keeps_its_lanes_when_its_interface_goes_down_and_up(site: Site) {
    let Some(lab) = Lab::up(2) else { return };
    let nodes = direct(&wherever(&lab));
    let stream = Stream::start(&lab);
    let router = lab.router(site);
    let silence = stream.silence_of(
        &format!("the interface of {site:?} is down for a second"),
        || {
            router.run("ip link set underlay down");
            std::thread::sleep(Duration::from_secs(1));
            router.run("ip link set underlay up");
        },
        || Some(()),
    );
    assert_short(silence);
    assert!(stream.stop() > 0);
    lanes_are_the_same(&nodes);
}

#[test]
fn lanes_survive_an_interface_of_a_that_goes_down_and_comes_up() {
    keeps_its_lanes_when_its_interface_goes_down_and_up(Site::A);
}

#[test]
fn lanes_survive_an_interface_of_b_that_goes_down_and_comes_up() {
    keeps_its_lanes_when_its_interface_goes_down_and_up(Site::B);
}

#[test]
fn a_translator_that_forgets_the_mapping_of_a_site_that_only_receives_costs_no_lane() {
    let Some(lab) = Lab::up(2) else { return };
    let nodes = direct(&wherever(&lab));
    let (a, b) = (lab.host(Site::A), lab.host(Site::B));
    // Nothing comes back: B is to have no reason of its own to send.
    let arrivals = OneWay::start(&a, &b, Site::B.host_v4().into());
    let silence = arrivals.silence_of("B, which only receives, is seen at port 40000", || {
        translate(&lab, &lab.router(Site::B), 40_000);
    });
    assert!(silence < MOVED_WITHIN, "{silence:?}");
    arrivals.stop();
    lanes_are_the_same(&nodes);
}

#[test]
fn a_link_whose_ends_have_both_moved_to_where_nobody_knows_them_heals() {
    let Some(lab) = Lab::up(2) else { return };
    let mut setups = wherever(&lab);
    for setup in &mut setups {
        setup.set("control", "mdns", true);
        setup.write();
    }
    let nodes = direct(&setups);
    let stream = Stream::start(&lab);
    let silence = stream.silence_of(
        "both are renumbered at once",
        || {
            for (site, new) in [(Site::A, "10.203.0.1"), (Site::B, "10.203.0.2")] {
                let router = lab.router(site);
                router.run(&format!("ip address del {}/24 dev underlay", site.underlay()));
                router.run(&format!("ip address add {new}/24 dev underlay"));
            }
        },
        || are_at(&nodes, "10.203.0.1", "10.203.0.2"),
    );
    assert!(silence.iter().all(|silence| *silence < FOUND_WITHIN), "{silence:?}");
    assert!(stream.stop() > 0);
}

fn is_back_after_being_suspended(site: Site) {
    /// Longer than a lane waits for a peer: 8 s.
    const SUSPENDED: Duration = Duration::from_secs(10);
    let Some(lab) = Lab::up(2) else { return };
    let nodes = direct(&wherever(&lab));
    let stream = Stream::start(&lab);
    let node = if site == Site::A { &nodes[0] } else { &nodes[1] };
    let silence = stream.silence_of(
        &format!("{site:?} is suspended for {SUSPENDED:?}"),
        || {
            node.signal(rustix::process::Signal::STOP);
            std::thread::sleep(SUSPENDED);
            node.signal(rustix::process::Signal::CONT);
        },
        || Some(()),
    );
    assert!(silence.iter().all(|silence| *silence < SUSPENDED + Duration::from_secs(5)), "{silence:?}");
    assert!(stream.stop() > 0);
}

#[test]
fn node_a_is_back_within_seconds_of_being_suspended() {
    is_back_after_being_suspended(Site::A);
}

#[test]
fn node_b_is_back_within_seconds_of_being_suspended() {
    is_back_after_being_suspended(Site::B);
}

#[test]
fn lanes_leave_a_network_that_swallows_everything_for_another() {
    let Some(lab) = Lab::up(2) else { return };
    let setups = wherever(&lab);
    second_network(&lab);
    let nodes = direct(&setups);
    let stream = Stream::start(&lab);
    let networks = [("underlay", "10.201.0."), ("second", "10.202.0.")];
    // On a busy machine one of two alike may seem the better to a single lane.
    let (first, _) = &ends(&nodes[0], Site::B)[0];
    let swallows = networks.iter().find(|network| first.starts_with(network.1)).expect("it is in one of the two");
    let left = networks.iter().find(|network| *network != swallows).expect("there are two");
    let router = lab.router(Site::A);
    let hole = || {
        router.run("nft add table ip hole");
        for (hook, direction) in [("prerouting", "iifname"), ("output", "oifname")] {
            router.run(&format!("nft add chain ip hole {hook} {{ type filter hook {hook} priority 0 ; }}"));
            router.run(&format!("nft add rule ip hole {hook} {direction} {} drop", swallows.0));
        }
    };
    let silence = stream.silence_of("a network swallows everything", hole, || are_at(&nodes, left.1, left.1));
    assert_short(silence);
    assert!(stream.stop() > 0);
    lanes_are_the_same(&nodes);
}

#[test]
fn a_lane_that_ends_while_only_one_end_sends_is_made_anew_soon_after_the_path_is_back() {
    /// Longer than anything waits for a peer, and shorter than it takes a client that sends nothing to ask.
    const BLACKOUT: Duration = Duration::from_secs(10);
    for (from, to) in [(Site::A, Site::B), (Site::B, Site::A)] {
        let Some(lab) = Lab::up(2) else { return };
        let nodes = direct(&wherever(&lab));
        let routers = [lab.router(Site::A), lab.router(Site::B)];
        let arrivals = OneWay::start(&lab.host(from), &lab.host(to), to.host_v4().into());
        let silence = arrivals.silence_of(&format!("nothing passes for {BLACKOUT:?}, only {from:?} sends"), || {
            for router in &routers {
                router.run("nft add table netdev lab");
                router.run(
                    "nft add chain netdev lab dark { type filter hook ingress device underlay priority 0 ; policy drop ; }",
                );
            }
            std::thread::sleep(BLACKOUT);
            routers.iter().for_each(|router| drop(router.run("nft delete table netdev lab")));
        });
        assert!(silence < BLACKOUT + Duration::from_secs(6), "{silence:?}");
        arrivals.stop();
        drop(nodes);
    }
}
