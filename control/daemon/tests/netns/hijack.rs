//! Nobody but its peer moves a lane: an attacker who sees, holds back and repeats what is on the underlay, and one who
//! sends as much as he can.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::lab::{Lab, Site, wait_for};
use crate::moves::translate;
use crate::node::{LANE_PORT, Node, two_direct};
use crate::stream::Stream;
use crate::traffic::uninterrupted;
use crate::wire::{Capture, Datagram, Injector};

/// The attacker's address: site C, where no node runs.
const ATTACKER: Ipv4Addr = Ipv4Addr::new(10, 201, 0, 3);
const ATTACKER_PORT: u16 = 7777;

/// Records of A's to B of the captured packets.
fn records_to_b(captured: &[Vec<u8>]) -> Vec<Datagram> {
    let to_b = |datagram: &Datagram| *datagram.destination.ip() == Site::B.underlay() && datagram.is_record();
    captured.iter().filter_map(|packet| Datagram::parse(packet)).filter(to_b).collect()
}

/// A lab where one frame on the wire is one record: senders cut, and the bridge does not merge.
fn watched() -> Option<Lab> {
    let lab = Lab::up(3)?;
    for site in [Site::A, Site::B] {
        lab.router(site).run("ethtool -K underlay tso off gso off tx-udp-segmentation off gro on");
        lab.underlay().run(&format!("ethtool -K port-{} gro off", site.letter()));
    }
    Some(lab)
}

fn nothing_has_moved(nodes: &[Node]) {
    for node in nodes {
        let status = node.status();
        assert_eq!(status.sum("moves"), 0, "{status:?}");
        assert_eq!(node.log().matches("lane down").count(), 0, "{}", node.log());
    }
}

/// The same datagrams, from the attacker.
fn as_attacker(datagram: &Datagram) -> Datagram {
    Datagram { source: SocketAddrV4::new(ATTACKER, ATTACKER_PORT), ..datagram.clone() }
}

#[test]
fn records_that_are_repeated_or_held_back_and_sent_from_elsewhere_move_nothing() {
    let Some(lab) = watched() else { return };
    let (_setups, nodes) = two_direct(&lab, [2, 2]);
    let stream = Stream::start_gently(&lab);
    let injector = Injector::open(&lab.router(Site::C));
    let attacker = lab.router(Site::C).enter(|| UdpSocket::bind((ATTACKER, ATTACKER_PORT))).expect("a free port");
    let underlay = lab.underlay();

    // What has arrived.
    let capture = Capture::start(&underlay);
    stream.wait_flowing();
    let captured = records_to_b(&capture.stop());
    assert!(captured.len() > 50, "{} records", captured.len());
    let ignored = |node: &Node| node.status().sum("records_ignored") + node.status().sum("records_passed_on");
    for record in captured.iter().take(500) {
        injector.send(&as_attacker(record));
    }
    wait_for("the repeated records to be noticed", || (ignored(&nodes[1]) > 0).then_some(()));
    stream.wait_flowing();
    assert_eq!(nodes[1].status().sum("paths_tried"), 0, "what was seen before tells of no path");

    // What has not: the newest records that B can get, from the attacker only.
    underlay.run("nft add table netdev lab");
    underlay.run("nft add chain netdev lab held { type filter hook ingress device port-a priority 0 ; }");
    let capture = Capture::start(&underlay);
    let silence = stream.silence_of(
        "the attacker has records that B has not",
        || {
            underlay.run(&format!("nft add rule netdev lab held udp dport {LANE_PORT}-{} drop", LANE_PORT + 1));
            thread::sleep(Duration::from_millis(100));
            let held = records_to_b(&capture.stop());
            let mut newest = BTreeMap::new();
            for record in held {
                newest.insert(record.destination, record);
            }
            newest.values().for_each(|record| injector.send(&as_attacker(record)));
            underlay.run("nft flush chain netdev lab held");
        },
        || (nodes[1].status().sum("paths_tried") > 0).then_some(()),
    );
    assert!(silence.iter().all(|silence| *silence < Duration::from_secs(2)), "{silence:?}");

    // He was asked, a few times, and has nothing to answer.
    attacker.set_read_timeout(Some(Duration::from_secs(1))).expect("a timeout can be set");
    let (mut asked, mut datagram) = (Vec::new(), [0; 2048]);
    loop {
        match uninterrupted(|| attacker.recv(&mut datagram)) {
            Ok(length) => asked.push(length),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
            Err(error) => panic!("the attacker: {error}"),
        }
    }
    println!("the attacker was sent {} datagrams: {asked:?}", asked.len());
    assert!((1..=12).contains(&asked.len()) && asked.iter().all(|length| *length < 64), "no packet: {asked:?}");
    assert!(stream.stop() > 0);
    nothing_has_moved(&nodes);
}

/// Sends records like these from many addresses for as long as `goes_on`. Returns how many.
fn flood(injector: &Injector, records: &[Datagram], goes_on: impl Fn() -> bool) -> u32 {
    let mut sent = 0_u32;
    while goes_on() {
        for record in records.iter().take(100) {
            sent += 1;
            let mut flood = record.clone();
            let host = 100 + (sent % 100) as u8;
            flood.source = SocketAddrV4::new(Ipv4Addr::new(10, 201, 0, host), 1024 + (sent % 50_000) as u16);
            flood.payload.truncate(200);
            match sent % 3 {
                0 => {}
                // It claims to be far ahead,
                1 => flood.payload[4..12].copy_from_slice(&(1_u64 << 40).to_be_bytes()),
                // or the first of the next epoch, which needs no knowledge but of the lane's id.
                _ => {
                    flood.payload[0] = 0x30 | (flood.payload[0] + 1) & 0x0f;
                    flood.payload[4..12].fill(0);
                }
            }
            injector.send(&flood);
        }
    }
    sent
}

#[test]
fn a_flood_that_names_a_lane_from_many_addresses_stops_nothing_and_no_lane_that_has_to_move() {
    const FLOOD: Duration = Duration::from_secs(2);
    let Some(lab) = watched() else { return };
    let (_setups, nodes) = two_direct(&lab, [2, 2]);
    let stream = Stream::start_gently(&lab);
    let capture = Capture::start(&lab.underlay());
    stream.wait_flowing();
    let captured = records_to_b(&capture.stop());
    let injector = Injector::open(&lab.router(Site::C));
    let mut sent = 0;
    let silence = stream.silence_of(
        "records that name lanes come from many addresses",
        || {
            let until = Instant::now() + FLOOD;
            sent = flood(&injector, &captured, || Instant::now() < until);
        },
        || (nodes[1].status().sum("records_ignored") > 0).then_some(()),
    );
    let status = nodes[1].status();
    let (passed, ignored) = (status.sum("records_passed_on"), status.sum("records_ignored"));
    println!("of {sent} records {passed} were looked at, {ignored} not");
    assert!(silence.iter().all(|silence| *silence < Duration::from_secs(1)), "{silence:?}");
    // Two lanes, 20 of them in a second, with as many again for a slow start and end.
    assert!(passed <= 2 * 20 * 4, "{passed} of {sent}");
    assert_eq!(status.sum("paths_tried"), 0);
    nothing_has_moved(&nodes);

    let is_over = AtomicBool::new(false);
    let silence = thread::scope(|scope| {
        scope.spawn(|| flood(&injector, &captured, || !is_over.load(Ordering::Relaxed)));
        let silence = stream.silence_of(
            "A is seen at another port under a flood",
            || translate(&lab, &lab.router(Site::A), 40_000),
            || (nodes[1].status().sum("moves") >= 2).then_some(()),
        );
        is_over.store(true, Ordering::Relaxed);
        silence
    });
    assert!(silence.iter().all(|silence| *silence < Duration::from_secs(5)), "{silence:?}");
    assert!(stream.stop() > 0);
}
