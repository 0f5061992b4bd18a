//! UDP of the shapes that hurt code which splits and joins: each datagram arrives as it was sent, with its boundaries.

use std::net::{IpAddr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use crate::datagrams::{receive, receive_trains, roomy_receiver, send_trains};
use crate::lab::{Lab, Namespace, PATIENCE, Site, wait_for};
use crate::node::two_direct;
use crate::traffic::{Content, introduce, sender};
use crate::wire::{Capture, Datagram, Injector};

fn content(seed: u64, bytes: usize) -> Vec<u8> {
    let mut content = vec![0; bytes];
    Content::of(seed).fill(&mut content);
    content
}

/// A receiver that takes trains, or not, and a socket connected to it.
fn pair(near: &Namespace, far: &Namespace, address: IpAddr, takes_trains: bool) -> (UdpSocket, UdpSocket) {
    let receiver = roomy_receiver(far, address);
    if takes_trains {
        receive_trains(&receiver);
    }
    let target = receiver.local_addr().expect("a bound socket has an address");
    (near.enter(|| sender(target)), receiver)
}

/// Receives as many datagrams as are expected and compares them, boundaries included. They are of one flow.
fn expect(receiver: &UdpSocket, expected: &[Vec<u8>], what: &str) {
    let mut received = Vec::new();
    while received.len() < expected.len() {
        let next = receive(receiver);
        assert!(!next.is_empty(), "{} of {} datagrams came: {what}", received.len(), expected.len());
        received.extend(next);
    }
    let lengths = |datagrams: &[Vec<u8>]| datagrams.iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(lengths(&received), lengths(expected), "{what}");
    assert!(received == expected, "{what}: lengths are right, bytes are not");
}

/// Sends a datagram that does not fit the tunnel until one arrives: the first is lost, and tells the sender's kernel to
/// send fragments from then on.
fn learn_the_path_mtu(near: &UdpSocket, far: &UdpSocket) {
    far.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout can be set");
    wait_for("a datagram in fragments", || {
        // The kernel may refuse one to say that it has learned something.
        let _ = near.send(&content(0, 1450));
        (!receive(far).is_empty()).then_some(())
    });
    while !receive(far).is_empty() {}
    far.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
}

#[test]
fn datagrams_of_every_size_arrive_as_they_were_sent_in_fragments_or_whole() {
    let Some(lab) = Lab::up(2) else { return };
    let (_setups, nodes) = two_direct(&lab, [2, 2]);
    let (a, b) = (lab.host(Site::A), lab.host(Site::B));
    for (near, far, addresses) in [(&a, &b, Site::B.host()), (&b, &a, Site::A.host())] {
        for (address, takes_trains) in addresses.into_iter().flat_map(|address| [(address, false), (address, true)]) {
            let (sender, receiver) = pair(near, far, address, takes_trains);
            learn_the_path_mtu(&sender, &receiver);
            // One at a time: fragments have no ports, so they may go another way than whole datagrams of their flow.
            for bytes in [0, 1, 2, 1371, 1372, 1373, 1391, 1392, 1393, 2800, 9000, 30_000, 0] {
                let sent = content(bytes as u64, bytes);
                sender.send(&sent).expect("a datagram can be sent");
                expect(&receiver, &[sent], &format!("{bytes} bytes to {address}, trains {takes_trains}"));
            }
        }
    }
    for node in nodes {
        let status = node.status();
        for reason in ["frame_malformed", "packet_malformed", "packet_too_big", "too_big", "tun_write_failed"] {
            assert_eq!(status.dropped(reason), 0, "{reason} in {status:?}");
        }
    }
}

/// Trains that programs send with `UDP_SEGMENT`, and ordinary datagrams right behind them, cross both ways with every
/// boundary where it was.
pub(crate) fn trains_of_programs_are_whole(lab: &Lab) {
    let (a, b) = (lab.host(Site::A), lab.host(Site::B));
    for (near, far, addresses) in [(&a, &b, Site::B.host()), (&b, &a, Site::A.host())] {
        for (address, takes_trains) in addresses.into_iter().flat_map(|address| [(address, false), (address, true)]) {
            introduce(near, address);
            let (sender, receiver) = pair(near, far, address, takes_trains);
            let mut expected = Vec::new();
            for (datagram_bytes, bytes) in [(1, 60), (100, 6001), (1372, 1372), (1372, 1373), (1371, 45 * 1371 + 1370)]
            {
                send_trains(&sender, datagram_bytes);
                let sent = content(bytes as u64, bytes);
                sender.send(&sent).expect("a train can be sent");
                expected.extend(sent.chunks(usize::from(datagram_bytes)).map(<[u8]>::to_vec));
            }
            // And ordinary ones right behind, of equal and of other sizes.
            send_trains(&sender, 0);
            for bytes in [500, 500, 500, 0, 500, 499, 500, 501] {
                let sent = content(bytes as u64, bytes);
                sender.send(&sent).expect("a datagram can be sent");
                expected.push(sent);
            }
            expect(&receiver, &expected, &format!("to {address}, trains {takes_trains}"));
        }
    }
}

#[test]
fn trains_that_a_program_sends_arrive_datagram_by_datagram() {
    let Some(lab) = Lab::up(2) else { return };
    let (_setups, nodes) = two_direct(&lab, [2, 2]);
    trains_of_programs_are_whole(&lab);
    for node in nodes {
        let status = node.status();
        assert!(status.sum("super_segments_read") > 0 && status.sum("super_segments_written") > 0, "{status:?}");
    }
}

#[test]
fn datagrams_without_a_checksum_arrive_without_one() {
    const DATAGRAMS: u64 = 40;
    let Some(lab) = Lab::up(2) else { return };
    let (_setups, _nodes) = two_direct(&lab, [2, 2]);
    let (a, b) = (lab.host(Site::A), lab.host(Site::B));
    introduce(&a, Site::B.host_v4().into());
    let receiver = roomy_receiver(&b, Site::B.host_v4().into());
    receive_trains(&receiver);
    let Ok(SocketAddr::V4(destination)) = receiver.local_addr() else { panic!("it is bound to IPv4") };
    let source = SocketAddrV4::new(Site::A.host_v4(), 4000);
    let capture = Capture::start(&b);
    let injector = Injector::open(&a);
    // Of equal sizes in a row, which would be joined if they had one.
    let expected: Vec<_> = (0..DATAGRAMS).map(|number| content(number, 300 + number as usize / 10)).collect();
    for payload in &expected {
        injector.send(&Datagram { source, destination, payload: payload.clone() });
    }
    expect(&receiver, &expected, "without checksums");
    let captured = capture.stop();
    let ours = captured.iter().filter(|packet| Datagram::parse(packet).is_some_and(|of| of.source == source));
    let checksums: Vec<_> = ours.map(|packet| [packet[26], packet[27]]).collect();
    assert_eq!(checksums, [[0, 0]; DATAGRAMS as usize]);
}
