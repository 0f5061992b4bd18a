//! What those who may not get in achieve: nothing, and it is counted.

use std::net::{SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::thread;

use crate::lab::{Lab, Namespace, PATIENCE, Site, wait_for};
use crate::node::{CONTROL_PORT, LANE_PORT, Node, Setup, mesh, two_direct};
use crate::traffic::{Content, Echo, receiver, sender, tcp_both_ways, udp_flows, uninterrupted};
use crate::wire::{Capture, Datagram, Injector};

#[test]
fn a_peer_that_is_not_configured_gets_nothing() {
    let Some(lab) = Lab::up(3) else { return };
    let mut stranger = Setup::init(&lab, Site::C);
    let [a, b] = mesh(&lab, [(Site::A, 2), (Site::B, 2)]);
    stranger.trust(&a);
    stranger.trust(&b);
    stranger.write();

    let mut stranger = Node::up(&stranger);
    stranger.wait_until("the stranger runs", |status| status.peer(Site::A).is_some());
    let mut nodes = [Node::up(&a), Node::up(&b)];
    nodes[0].wait_direct(&[Site::B], 2);
    nodes[1].wait_direct(&[Site::A], 2);
    udp_flows(&lab.host(Site::A), &lab.host(Site::B), Site::B.host_v4().into(), 4, 10);

    for peer in [Site::A, Site::B] {
        let mut ping = lab.host(Site::C).command("ping");
        ping.args(["-n", "-q", "-c", "3", "-i", "0.1", "-W", "0.5"]).arg(peer.host_v4().to_string());
        assert!(!ping.status().expect("ping can be run").success(), "the stranger's packets reach {peer:?}");
        let status = stranger.status();
        assert!(["connecting", "offline"].contains(&status.state(peer)), "the stranger sees {status:?}");
        assert_eq!(status.lanes(peer), 0, "the stranger has {status:?}");
    }
    for (node, peer) in nodes.iter().zip([Site::B, Site::A]) {
        let status = node.status();
        assert!(status.peer(Site::C).is_none(), "nobody configured the stranger: {status:?}");
        assert_eq!(status.state(peer), "direct");
    }
}

/// A record from B to A, taken off the wire while a datagram with `payload` crossed from host to host.
fn captured_record(lab: &Lab, payload: &[u8]) -> (UdpSocket, Datagram) {
    let receiver = receiver(&lab.host(Site::A), Site::A.host_v4().into());
    receiver.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
    let target = receiver.local_addr().expect("a bound socket has an address");
    let sender = lab.host(Site::B).enter(|| sender(target));
    let capture = Capture::start(&lab.router(Site::B));
    sender.send(payload).expect("a datagram can be sent");
    let mut received = [0; 2048];
    let length = uninterrupted(|| receiver.recv(&mut received)).expect("the datagram crosses");
    assert_eq!(&received[..length], payload);
    let record = capture
        .stop()
        .iter()
        .filter_map(|packet| Datagram::parse(packet))
        .find(|datagram| {
            datagram.is_record()
                && *datagram.destination.ip() == Site::A.underlay()
                && datagram.payload.len() >= payload.len()
        })
        .expect("the datagram crossed in a record");
    (receiver, record)
}

#[test]
fn replayed_and_altered_records_are_dropped_and_counted() {
    const COPIES: u64 = 5;
    let Some(lab) = Lab::up(2) else { return };
    let (_setups, nodes) = two_direct(&lab, [1, 1]);
    let (receiver, record) = captured_record(&lab, &[7; 600]);
    let injector = Injector::open(&lab.router(Site::B));
    let counted = |reason: &str, count: u64, inject: &dyn Fn()| {
        let before = nodes[0].status().dropped(reason);
        inject();
        wait_for(&format!("{count} x {reason}"), || {
            let after = nodes[0].status().dropped(reason);
            assert!(after <= before + count, "{reason} counted {after} - {before}");
            (after == before + count).then_some(())
        });
    };

    counted("replayed", COPIES, &|| (0..COPIES).for_each(|_| injector.send(&record)));
    // A counter never seen, so that not the replay window but the AEAD must notice. Bytes 4 to 11 are the counter.
    let mut fresh = record.clone();
    fresh.payload[8] ^= 0x80;
    let bits = [8 * 12, 8 * 100 + 3, 8 * (record.payload.len() - 1) + 7];
    counted("unauthentic", 1 + bits.len() as u64, &|| {
        injector.send(&fresh);
        for bit in bits {
            let mut altered = fresh.clone();
            altered.payload[bit / 8] ^= 1 << (bit % 8);
            injector.send(&altered);
        }
    });

    // None of these reached the host, and the replay window did not move: what is genuine still crosses.
    receiver.set_nonblocking(true).expect("a socket can be made non-blocking");
    assert!(uninterrupted(|| receiver.recv(&mut [0; 2048])).is_err(), "a copy reached the host");
    udp_flows(&lab.host(Site::A), &lab.host(Site::B), Site::B.host_v4().into(), 2, 10);
}

#[test]
fn an_inner_source_that_is_not_the_peers_is_dropped_and_counted() {
    let Some(lab) = Lab::up(2) else { return };
    let (_setups, nodes) = two_direct(&lab, [2, 2]);
    let router = lab.router(Site::B);
    router.run("ip address add 10.99.0.1/32 dev lo");
    router.run("ip address add fd00:99::1/128 dev lo");
    for (forged, genuine, target) in [
        ("10.99.0.1", Site::B.host_v4().into(), Site::A.host_v4().into()),
        ("fd00:99::1", Site::B.host_v6().into(), Site::A.host_v6().into()),
    ] {
        let receiver = receiver(&lab.host(Site::A), target);
        receiver.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        let target = receiver.local_addr().expect("a bound socket has an address");
        let before = nodes[0].status().dropped("source_not_allowed");
        let socket = router.enter(|| UdpSocket::bind((forged, 0))).expect("the router has the forged address");
        socket.send_to(b"forged", target).expect("a datagram can be sent");
        wait_for("the forged source to be counted", || {
            (nodes[0].status().dropped("source_not_allowed") > before).then_some(())
        });
        let socket = lab.host(Site::B).enter(|| sender(target));
        socket.send(b"genuine").expect("a datagram can be sent");
        let mut received = [0; 64];
        let (length, from) = uninterrupted(|| receiver.recv_from(&mut received)).expect("what is genuine crosses");
        assert_eq!((&received[..length], from.ip()), (&b"genuine"[..], genuine));
    }
}

/// Garbage sent between two checks that traffic still flows: few enough not to fill a socket's buffer.
const GARBAGE_PER_CHECK: usize = 32;
/// All lengths that fit one packet of the underlay.
const WHOLE_LENGTHS: std::ops::RangeInclusive<usize> = 0..=1472;

/// Throws garbage of every length at site A's lane, lane port and control ports, and calls `check` now and then.
fn throw_garbage(attacker: &Namespace, mut check: impl FnMut()) {
    let injector = Injector::open(attacker);
    let mut content = Content::of(0x6a5b);
    let mut thrown = |count: usize| {
        if count.is_multiple_of(GARBAGE_PER_CHECK) {
            check();
        }
    };
    // Into the lane itself, with the peer's address and port.
    let lane = |site: Site| SocketAddrV4::new(site.underlay(), LANE_PORT);
    for length in WHOLE_LENGTHS {
        let payload = garbage(&mut content, length);
        injector.send(&Datagram { source: lane(Site::B), destination: lane(Site::A), payload });
        thrown(length);
    }
    // At the listeners, from a port of nobody's; the longest arrive in fragments.
    for port in [LANE_PORT, CONTROL_PORT] {
        let socket = attacker.enter(|| sender(SocketAddrV4::new(Site::A.underlay(), port).into()));
        for length in 0..=1500 {
            socket.send(&garbage(&mut content, length)).expect("somebody listens there");
            thrown(length);
        }
    }
    // At libp2p's TCP port, which may hang up at any byte.
    for length in [1, 20, 300, 5000] {
        let target = SocketAddr::from((Site::A.underlay(), CONTROL_PORT));
        let stream = attacker.enter(|| TcpStream::connect_timeout(&target, PATIENCE));
        let mut stream = stream.expect("somebody listens there");
        let _ = std::io::Write::write_all(&mut stream, &garbage(&mut content, length));
        thrown(0);
    }
}

#[test]
fn garbage_of_every_length_costs_no_packet() {
    let Some(lab) = Lab::up(2) else { return };
    let (_setups, mut nodes) = two_direct(&lab, [1, 1]);
    let (a, b) = (lab.host(Site::A), lab.host(Site::B));
    let before = nodes[0].status().drops();
    let attacker = lab.router(Site::B);

    // First beside one datagram at a time, of which none may be lost; then beside bulk, which may fill a queue by itself
    // and lose a datagram to that, but no content.
    let echo = Echo::bind(&a, Site::A.host_v4().into());
    thread::scope(|scope| {
        scope.spawn(|| echo.serve());
        let attack = scope.spawn(|| {
            let mut flow = echo.flow(&b, 0);
            throw_garbage(&attacker, || flow.exchange(1));
        });
        let attack = attack.join();
        echo.stop();
        if let Err(panic) = attack {
            std::panic::resume_unwind(panic);
        }
    });
    thread::scope(|scope| {
        scope.spawn(|| tcp_both_ways(&a, &b, Site::B.host_v4().into(), 2, 4 << 20));
        scope.spawn(|| throw_garbage(&attacker, || {}));
    });

    let status = nodes[0].wait_direct(&[Site::B], 1);
    let drops = status.drops();
    let more = |reason: &str| drops.get(reason).copied().unwrap_or(0) - before.get(reason).copied().unwrap_or(0);
    assert!(more("inbound_malformed") > 0, "the garbage reached the lane: {drops:?}");
    // The last is the kernel's doing: it announces its multicast groups on every interface, the TUN included.
    let expected = ["inbound_malformed", "unknown_lane", "unknown_epoch", "unauthentic", "no_route"];
    for reason in drops.keys().filter(|reason| !expected.contains(&reason.as_str())) {
        assert_eq!(more(reason), 0, "{reason} counted by garbage");
    }
}

/// Bytes of one seed; every second datagram looks like a record, so that all of the checks behind get their share.
fn garbage(content: &mut Content, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    content.fill(&mut bytes);
    if let (1, Some(first)) = (length % 2, bytes.first_mut()) {
        *first = 0x30 | (*first & 0x0f);
    }
    bytes
}
