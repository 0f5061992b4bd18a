//! Splitting and rebuilding super-segments, against a twin that works everything out afresh, and the kernel's rules for
//! joining packets as a table.
#![allow(clippy::unwrap_used, reason = "the inputs are this file's own")]

use proptest::collection::vec;
use proptest::prelude::*;
use ringlane_shared::id::PeerIndex;
use ringlane_shared::limits::{COALESCE_PACKET_BYTES_MAX, COALESCE_PIECES_MAX, COALESCE_RUNS_MAX};
use ringlane_shared::packet::checksum::{PartialChecksum, complete};
use ringlane_shared::packet::{PacketHeader, Split, Transport};

use crate::twin::{ACK, CWR, FIN, PSH, Parts, Shape};
use crate::watched::{Watched, Write};

#[path = "../fuzz/src/twin.rs"]
#[allow(unreachable_pub, dead_code, reason = "shared with the fuzz targets")]
mod twin;
#[path = "../fuzz/src/watched.rs"]
#[allow(unreachable_pub, dead_code, reason = "shared with the fuzz targets")]
mod watched;

const PLAIN: Shape = Shape {
    is_ipv6: false,
    is_udp: false,
    flow: 0,
    has_ip_options: false,
    has_tcp_options: true,
    is_atomic: true,
    id: 7,
    sequence: 1000,
    flags: ACK,
    payload_bytes: 100,
    fill: 0,
};

fn shape(payload_bytes: impl Strategy<Value = usize>) -> impl Strategy<Value = Shape> {
    let kinds = (any::<[bool; 3]>(), any::<bool>(), any::<bool>(), 0..4u8);
    let flags = (any::<u8>(), 0..4u8);
    (kinds, any::<u16>(), any::<u32>(), flags, payload_bytes, any::<u8>()).prop_map(
        |(([is_ipv6, is_udp, is_atomic], options, has_tcp_options, flow), id, sequence, flags, payload_bytes, fill)| {
            let flags = match flags {
                (any, 0) => any,
                (any, _) => ACK | any & (PSH | FIN | CWR),
            };
            let has_ip_options = options && fill % 4 == 0;
            Shape {
                is_ipv6,
                is_udp,
                flow,
                has_ip_options,
                has_tcp_options,
                is_atomic,
                id,
                sequence,
                flags,
                payload_bytes,
                fill,
            }
        },
    )
}

fn split(packet: &[u8], is_udp: bool, segment_bytes: usize) -> Vec<Vec<u8>> {
    let transport = if is_udp { Transport::Udp } else { Transport::Tcp };
    let header = PacketHeader::parse(packet).unwrap();
    let split = Split::new(packet, &header, transport, segment_bytes as u16).unwrap();
    let piece = |index| {
        let mut piece = vec![0xee; split.piece_bytes(index)];
        split.write_piece(packet, index, &mut piece);
        piece
    };
    (0..split.pieces()).map(piece).collect()
}

proptest! {
    #[test]
    fn pieces_are_what_the_twin_makes_of_the_fields(shape in shape(0..9000usize), segment_bytes in 1..2000usize) {
        let whole = shape.parts();
        let pieces = split(&whole.to_packet(true), shape.is_udp, segment_bytes);
        let expected = whole.split(segment_bytes);
        prop_assert_eq!(pieces.len(), expected.len());
        for (mut piece, expected) in pieces.into_iter().zip(expected) {
            prop_assert_eq!(&piece, &expected.to_packet(true));
            let header = PacketHeader::parse(&piece).unwrap();
            complete(&mut piece, PartialChecksum::of_transport(&header).unwrap()).unwrap();
            prop_assert_eq!(&piece, &expected.to_packet(false));
        }
    }
}

// --- super-segments from end to end -------------------------------------------------------------------------------

/// What becomes of a piece on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Arrives,
    IsLost,
    /// It changes places with the next one.
    IsLate,
}

fn fates() -> impl Strategy<Value = Vec<Fate>> {
    prop_oneof![
        2 => Just(Vec::new()),
        3 => vec(prop_oneof![6 => Just(Fate::Arrives), 1 => Just(Fate::IsLost), 1 => Just(Fate::IsLate)], 48),
    ]
}

/// The indices of the pieces that arrive, in the order in which they do.
fn arrivals(pieces: usize, fates: &[Fate]) -> Vec<usize> {
    let fate = |index: &usize| fates.get(*index).copied().unwrap_or(Fate::Arrives);
    let mut arrivals: Vec<_> = (0..pieces).filter(|index| fate(index) != Fate::IsLost).collect();
    for at in 1..arrivals.len() {
        if fate(&arrivals[at - 1]) == Fate::IsLate {
            arrivals.swap(at - 1, at);
        }
    }
    arrivals
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn super_segments_survive_the_way_and_what_is_lost_costs_nothing_else(
        supers in vec((shape(1..20_000usize), 400..1400usize, fates(), any::<bool>()), 1..8),
    ) {
        let mut watched = Watched::new(true, true);
        let mut expected = Vec::new();
        for (shape, segment_bytes, fates, is_flushed) in &supers {
            let whole = shape.parts().to_packet(true);
            let pieces = split(&whole, shape.is_udp, *segment_bytes);
            let arrivals = arrivals(pieces.len(), fates);
            let mut before = None;
            for &index in &arrivals {
                let continues = index > 0 && before == Some(index - 1);
                if !continues {
                    watched.interrupt();
                }
                if !watched.next(&pieces[index], true) {
                    prop_assert!(watched.begin(&pieces[index]));
                }
                before = Some(index);
            }
            if *is_flushed {
                watched.flush();
            }
            let is_untouched = arrivals.len() == pieces.len() && arrivals.is_sorted();
            expected.push((whole, pieces.len(), is_untouched && pieces.len() <= COALESCE_PIECES_MAX));
        }
        let mut writes = watched.finish();
        for (whole, pieces, is_untouched) in expected {
            if is_untouched {
                let at = writes.iter().position(|write| write.packet == whole);
                prop_assert!(at.is_some(), "a super-segment is not what it was");
                prop_assert_eq!(writes.swap_remove(at.unwrap()).pieces.len(), pieces);
            }
        }
    }

    #[test]
    fn packets_of_many_flows_keep_their_order_and_content(
        packets in vec((shape(prop_oneof![3 => Just(200usize), 1 => 0..300usize]), any::<[bool; 2]>(), 0..32u8), 1..120),
        flows in 1..24u8,
    ) {
        let mut watched = Watched::new(true, true);
        let mut next = [[(0xffff_ff00u32, 0xfffdu16); 2]; 24];
        let mut joinable = 0;
        for (shape, [is_partial, is_broken], kind) in &packets {
            // Half of them are the next packet of a flow as a sender makes it.
            let is_plain = *kind < 24;
            let flow = kind % flows;
            let (sequence, id) = &mut next[usize::from(flow)][usize::from(shape.is_udp)];
            let mut shape = Shape { flow, is_ipv6: flow % 2 == 1, sequence: *sequence, id: *id, ..*shape };
            if is_plain {
                shape = Shape { has_ip_options: false, has_tcp_options: true, is_atomic: flow < 12, flags: ACK, ..shape };
                joinable += 1;
            }
            *sequence = sequence.wrapping_add(shape.payload_bytes as u32);
            *id = id.wrapping_add(1);
            let mut packet = shape.parts().to_packet(*is_partial);
            if *is_broken && !is_plain {
                let at = usize::from(shape.fill) % packet.len();
                packet[at] ^= 1;
            }
            watched.add(&packet, *is_partial);
        }
        let writes = watched.finish();
        prop_assert!(flows > 2 || joinable < 40 || writes.iter().any(|write| write.pieces.len() > 1));
    }
}

// --- bounds -------------------------------------------------------------------------------------------------------

fn counts(writes: &[Write]) -> Vec<usize> {
    writes.iter().map(|write| write.pieces.len()).collect()
}

#[test]
fn a_super_segment_of_tiny_pieces_comes_out_in_several() {
    let whole = Shape { payload_bytes: 14_000, ..PLAIN }.parts().to_packet(true);
    let mut watched = Watched::new(true, true);
    for piece in split(&whole, false, 100) {
        if !watched.next(&piece, true) {
            watched.begin(&piece);
        }
    }
    assert_eq!(counts(&watched.finish()), [COALESCE_PIECES_MAX, COALESCE_PIECES_MAX, 140 - 2 * COALESCE_PIECES_MAX]);
}

#[test]
fn no_super_segment_is_longer_than_an_ip_packet() {
    for is_udp in [false, true] {
        let mut watched = Watched::new(true, true);
        let header_bytes = if is_udp { 28 } else { 52 };
        let mut shape = Shape { is_udp, payload_bytes: 7300, ..PLAIN };
        for _ in 0..16 {
            watched.add(&shape.parts().to_packet(false), false);
            shape.sequence += 7300;
            shape.id += 1;
        }
        let writes = watched.finish();
        assert_eq!(counts(&writes), [8, 8]);
        assert_eq!(writes[0].packet.len(), header_bytes + 8 * 7300);
    }
    let whole = Shape { is_udp: true, payload_bytes: COALESCE_PACKET_BYTES_MAX - 28, ..PLAIN }.parts().to_packet(true);
    let mut watched = Watched::new(true, true);
    for (index, piece) in split(&whole, true, 1400).iter().enumerate() {
        assert!(if index == 0 { watched.begin(piece) } else { watched.next(piece, true) });
    }
    assert_eq!(watched.finish()[0].packet, whole);
}

#[test]
fn one_flow_too_many_ends_the_oldest_run_and_the_rest_come_out_as_begun() {
    let mut watched = Watched::new(true, true);
    let flows = COALESCE_RUNS_MAX as u8 + 1;
    for turn in 0..2 {
        for flow in 0..flows {
            let shape = Shape { flow, sequence: 100 * turn, id: turn as u16, ..PLAIN };
            watched.add(&shape.parts().to_packet(true), true);
        }
    }
    // Each flow that comes back finds its run gone: the one before it took its place.
    let writes = watched.finish();
    assert_eq!(counts(&writes), [1; 34]);
    assert!(writes.iter().enumerate().all(|(at, write)| write.pieces == [at]));
}

#[test]
fn a_kernel_that_takes_no_super_segments_gets_none() {
    for (joins_tcp, joins_udp, is_udp) in [(false, true, false), (true, false, true)] {
        let mut watched = Watched::new(joins_tcp, joins_udp);
        let shape = Shape { is_udp, payload_bytes: 1000, ..PLAIN };
        for piece in split(&shape.parts().to_packet(true), is_udp, 300) {
            assert!(!watched.next(&piece, true));
            watched.begin(&piece);
            watched.add(&piece, true);
        }
        assert_eq!(counts(&watched.finish()), [1; 8]);
    }
}

// --- the kernel's rules -------------------------------------------------------------------------------------------

/// A packet made different: its shape, then its headers, then its bytes.
#[derive(Clone, Copy)]
enum Change {
    Shape(fn(&mut Shape)),
    Parts(fn(&mut Parts)),
    Bytes(fn(&mut [u8])),
}
use Change::{Bytes, Parts as Headers, Shape as Form};

const SAME: Change = Form(|_| {});

/// The packet, complete.
fn packet(mut shape: Shape, change: Change) -> Vec<u8> {
    if let Form(change) = change {
        change(&mut shape);
    }
    let mut parts = shape.parts();
    if let Headers(change) = change {
        change(&mut parts);
    }
    let mut packet = parts.to_packet(false);
    if let Bytes(change) = change {
        change(&mut packet);
    }
    packet
}

/// How many packets come out in each write when the first and the second are made so and 100 more bytes follow.
fn joined(base: Shape, changes: [Change; 3]) -> Vec<usize> {
    let mut watched = Watched::new(true, true);
    for (turn, change) in changes.into_iter().enumerate() {
        let sequence = base.sequence + 100 * turn as u32;
        assert!(watched.add(&packet(Shape { sequence, id: base.id + turn as u16, ..base }, change), false));
    }
    counts(&watched.finish())
}

const BASES: [(bool, bool); 4] = [(false, false), (true, false), (false, true), (true, true)];

fn check(bases: &[(bool, bool)], table: &[(&str, [Change; 3], &[usize])]) {
    for &(is_ipv6, is_udp) in bases {
        for (rule, changes, expected) in table {
            let base = Shape { is_ipv6, is_udp, ..PLAIN };
            assert_eq!(joined(base, *changes), *expected, "{rule} (IPv6: {is_ipv6}, UDP: {is_udp})");
        }
    }
}

#[test]
fn any_two_packets_join_by_length_checksum_and_ip_header() {
    let table: &[(&str, [Change; 3], &[usize])] = &[
        ("three that go on from each other join", [SAME; 3], &[3]),
        ("a shorter one is the last", [SAME, Form(|s| s.payload_bytes = 99), SAME], &[2, 1]),
        (
            "a longer one does not join",
            [Form(|s| (s.payload_bytes, s.sequence) = (99, s.sequence + 1)), SAME, SAME],
            &[1, 2],
        ),
        ("one without payload does not join", [SAME, Form(|s| s.payload_bytes = 0), SAME], &[1, 1, 1]),
        ("nothing joins one without payload", [Form(|s| s.payload_bytes = 0), SAME, SAME], &[1, 2]),
        ("a wrong checksum joins nothing", [SAME, Bytes(|p| *p.last_mut().unwrap() ^= 1), SAME], &[1, 1, 1]),
        ("a wrong checksum leads nothing", [Bytes(|p| *p.last_mut().unwrap() ^= 1), SAME, SAME], &[1, 2]),
    ];
    check(&BASES, table);
}

#[test]
fn ipv4_packets_join_by_header() {
    let table: &[(&str, [Change; 3], &[usize])] = &[
        ("TOS", [SAME, Headers(|p| p.ip[1] = 4), SAME], &[1, 1, 1]),
        ("TOS that stays so", [SAME, Headers(|p| p.ip[1] = 4), Headers(|p| p.ip[1] = 4)], &[1, 2]),
        ("ECN: congestion experienced", [SAME, Headers(|p| p.ip[1] = 3), SAME], &[1, 1, 1]),
        ("TTL", [SAME, Headers(|p| p.ip[8] = 63), SAME], &[1, 1, 1]),
        ("DF", [SAME, Headers(|p| p.ip[6] = 0), SAME], &[1, 1, 1]),
        ("the reserved bit", [Headers(|p| p.ip[6] |= 0x80); 3], &[1, 1, 1]),
        ("options", [Form(|s| s.has_ip_options = true); 3], &[1, 1, 1]),
        ("a fragment joins nothing", [SAME, Headers(|p| p.ip[6] = 0x20), SAME], &[1, 1, 1]),
        ("a wrong header checksum", [SAME, Bytes(|p| p[10] ^= 1), SAME], &[1, 1, 1]),
        ("DF, ids go on", [SAME; 3], &[3]),
        ("DF, ids stay", [Form(|s| s.id = 5); 3], &[3]),
        ("no DF, ids go on", [Form(|s| s.is_atomic = false); 3], &[3]),
        ("no DF, ids stay", [Form(|s| (s.is_atomic, s.id) = (false, 5)); 3], &[1, 1, 1]),
        ("DF, ids go on, then stay", [SAME, SAME, Form(|s| s.id -= 1)], &[2, 1]),
        ("DF, ids stay, then go on", [Form(|s| s.id = 5), Form(|s| s.id = 5), Form(|s| s.id = 6)], &[2, 1]),
        ("DF, ids go on, then back to the first", [SAME, SAME, Form(|s| s.id -= 2)], &[2, 1]),
        ("DF, ids leave one out", [SAME, Form(|s| s.id += 1), Form(|s| s.id += 1)], &[1, 2]),
    ];
    check(&[(false, false), (false, true)], table);
}

#[test]
fn ipv6_packets_join_by_header() {
    let table: &[(&str, [Change; 3], &[usize])] = &[
        ("traffic class", [SAME, Headers(|p| p.ip[0] = 0x61), SAME], &[1, 1, 1]),
        ("ECN: congestion experienced", [SAME, Headers(|p| p.ip[1] |= 0x30), SAME], &[1, 1, 1]),
        ("flow label", [SAME, Headers(|p| p.ip[3] ^= 1), SAME], &[1, 1, 1]),
        ("hop limit", [SAME, Headers(|p| p.ip[7] = 63), SAME], &[1, 1, 1]),
        ("extension headers", [Form(|s| s.has_ip_options = true); 3], &[1, 1, 1]),
    ];
    check(&[(true, false), (true, true)], table);
}

#[test]
fn tcp_segments_join_by_sequence_flags_and_options() {
    let table: &[(&str, [Change; 3], &[usize])] = &[
        ("PSH ends it", [SAME, Form(|s| s.flags |= PSH), SAME], &[2, 1]),
        ("nothing joins after PSH", [Form(|s| s.flags |= PSH), SAME, SAME], &[1, 2]),
        ("SYN", [SAME, Form(|s| s.flags |= 2), SAME], &[1, 1, 1]),
        ("RST", [SAME, Form(|s| s.flags |= 4), SAME], &[1, 1, 1]),
        ("URG", [SAME, Form(|s| s.flags |= 0x20), SAME], &[1, 1, 1]),
        ("FIN", [SAME, Form(|s| s.flags |= FIN), SAME], &[1, 1, 1]),
        ("CWR", [SAME, Form(|s| s.flags |= CWR), SAME], &[1, 1, 1]),
        ("CWR on all", [Form(|s| s.flags |= CWR); 3], &[1, 1, 1]),
        ("ECE", [SAME, Form(|s| s.flags |= 0x40), SAME], &[1, 1, 1]),
        ("ECE on all", [Form(|s| s.flags |= 0x40); 3], &[3]),
        ("no ACK", [Form(|s| s.flags = 0); 3], &[1, 1, 1]),
        ("a reserved flag", [SAME, Headers(|p| p.transport[12] |= 1), SAME], &[1, 1, 1]),
        ("acknowledgement", [SAME, Headers(|p| p.transport[11] = 8), SAME], &[1, 1, 1]),
        ("window", [SAME, Headers(|p| p.transport[14] = 2), SAME], &[1, 1, 1]),
        ("urgent pointer", [SAME, Headers(|p| p.transport[19] = 2), SAME], &[1, 1, 1]),
        ("timestamp", [SAME, Headers(|p| p.transport[27] = 2), SAME], &[1, 1, 1]),
        ("timestamp echo", [SAME, Headers(|p| p.transport[31] = 3), SAME], &[1, 1, 1]),
        ("no timestamp", [SAME, Form(|s| s.has_tcp_options = false), SAME], &[1, 1, 1]),
        ("no timestamps at all", [Form(|s| s.has_tcp_options = false); 3], &[3]),
        ("a gap", [SAME, Form(|s| s.sequence += 1), SAME], &[1, 1, 1]),
        ("a repetition", [SAME, Form(|s| s.sequence -= 100), SAME], &[1, 1, 1]),
        ("the first sequence number after the last", [Form(|s| s.sequence = s.sequence.wrapping_sub(1100)); 3], &[3]),
        ("header length", [SAME, Headers(|p| p.transport[12] = 0xf0), SAME], &[1, 1, 1]),
    ];
    check(&[(false, false), (true, false)], table);
}

#[test]
fn datagrams_join_unless_they_have_no_checksum_or_lie_about_their_length() {
    let table: &[(&str, [Change; 3], &[usize])] = &[
        ("no checksum", [SAME, Bytes(without_checksum), SAME], &[1, 1, 1]),
        ("no checksum at all", [Bytes(without_checksum); 3], &[1, 1, 1]),
        ("a length of its own", [SAME, Bytes(with_another_length), SAME], &[1, 1, 1]),
    ];
    check(&[(false, true), (true, true)], table);
}

fn udp_at(packet: &[u8]) -> usize {
    if packet[0] >> 4 == 4 { 20 } else { 40 }
}

fn without_checksum(packet: &mut [u8]) {
    let at = udp_at(packet) + 6;
    packet[at..at + 2].fill(0);
}

/// One byte less than there is, and a checksum that is right even so.
fn with_another_length(packet: &mut [u8]) {
    let at = udp_at(packet);
    packet[at + 5] -= 1;
    let checksum = u16::from_be_bytes([packet[at + 6], packet[at + 7]]);
    packet[at + 6..at + 8].copy_from_slice(&(checksum + 1).to_be_bytes());
}

#[test]
fn other_flows_owners_and_portless_packets_cut_only_what_they_must() {
    let mut watched = Watched::new(true, true);
    let mut shape = PLAIN;
    let mut add = |watched: &mut Watched, is_partial| {
        watched.add(&shape.parts().to_packet(is_partial), is_partial);
        shape.sequence += 100;
        shape.id += 1;
    };
    add(&mut watched, true);
    watched.add(&Shape { flow: 9, ..PLAIN }.parts().to_packet(false), false);
    watched.add(&Shape { is_ipv6: true, ..PLAIN }.parts().to_packet(false), false);
    add(&mut watched, false);
    // An echo request between the same addresses: both of IPv4's runs come out before it.
    watched.add(
        &[
            &Shape { payload_bytes: 0, ..PLAIN }.parts().ip[..2],
            &[0, 28, 0, 0, 0, 0, 64, 1, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 8, 0, 0, 0, 0, 0, 0, 0],
        ]
        .concat(),
        false,
    );
    add(&mut watched, false);
    add(&mut watched, true);
    watched.owner = PeerIndex(2);
    add(&mut watched, true);
    let writes: Vec<_> = watched.finish().into_iter().map(|write| write.pieces).collect();
    assert_eq!(writes, [vec![0, 3], vec![1], vec![4], vec![5, 6], vec![2], vec![7]]);
}

#[test]
fn a_super_segment_goes_on_only_while_its_run_is_there() {
    let whole = Shape { payload_bytes: 500, ..PLAIN }.parts().to_packet(true);
    let pieces = split(&whole, false, 100);
    let mut watched = Watched::new(true, true);
    watched.begin(&pieces[0]);
    assert!(watched.next(&pieces[1], true));
    watched.add(&pieces[1], true);
    assert!(!watched.next(&pieces[2], true), "a packet of the same flow came between");
    watched.begin(&pieces[2]);
    watched.flush();
    assert!(!watched.next(&pieces[3], true), "the turn is over");
    watched.begin(&pieces[3]);
    assert!(!watched.next(&pieces[4][..52], true), "nothing but headers");
    assert!(!watched.next(&pieces[4][..51], true), "less than that");
    assert!(!watched.next(&[&pieces[4][..], &[0]].concat(), true), "more than the first one had");
    watched.add(&Shape { flow: 3, ..PLAIN }.parts().to_packet(true), true);
    assert!(watched.next(&pieces[4], true), "another flow's packet is no reason");
    let first = Shape { flags: ACK | PSH, ..PLAIN }.parts().to_packet(true);
    watched.begin(&first);
    assert!(!watched.next(&pieces[1], true), "nothing comes after PSH");
    assert_eq!(counts(&watched.finish()), [2, 1, 1, 2, 1, 1]);
}

#[test]
fn a_super_segments_first_piece_says_what_all_have_in_common() {
    // CWR on the first, FIN and PSH on the last, IPv4 options, and an id that wraps.
    let shape = Shape { flags: ACK | CWR | FIN | PSH, has_ip_options: true, id: 0xffff, payload_bytes: 1050, ..PLAIN };
    for is_ipv6 in [false, true] {
        let whole = Shape { is_ipv6, ..shape }.parts().to_packet(true);
        let mut watched = Watched::new(true, true);
        for (index, piece) in split(&whole, false, 100).iter().enumerate() {
            assert!(if index == 0 { watched.begin(piece) } else { watched.next(piece, true) });
        }
        // It ended with the shorter piece, and FIN: nothing joins.
        let packet = Shape { is_ipv6, ..PLAIN }.parts().to_packet(true);
        assert!(!watched.next(&packet, true));
        watched.add(&packet, true);
        let writes = watched.finish();
        assert_eq!(counts(&writes), [11, 1]);
        assert_eq!(writes[0].packet, whole);
    }
}
