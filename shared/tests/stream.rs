//! What streams get of what the TUN gives, and what is taken from one, against a twin that works everything out afresh.
#![allow(clippy::unwrap_used, reason = "the inputs are this file's own")]

use proptest::prelude::*;
use ringlane_shared::limits::{COALESCE_PIECES_MAX, INNER_MTU_MAX, STREAM_PACKET_BYTES_MAX};
use ringlane_shared::packet::segment::{Content, SplitError};
use ringlane_shared::packet::{PacketHeader, Split, Transport};
use ringlane_shared::plane::stream::{Tally, TooLong, give};
use ringlane_shared::plane::{BatchItemForm, StreamForm};

use crate::twin::{ACK, Parts, Shape};

#[path = "../fuzz/src/twin.rs"]
#[allow(unreachable_pub, dead_code, reason = "shared with the fuzz targets")]
mod twin;

fn shape(payload_bytes: impl Strategy<Value = usize>) -> impl Strategy<Value = Shape> {
    let kinds = (any::<[bool; 5]>(), any::<u16>(), any::<u32>(), any::<u8>(), any::<u8>());
    (kinds, payload_bytes).prop_map(|((kinds, id, sequence, flags, fill), payload_bytes)| {
        let [is_ipv6, is_udp, has_ip_options, has_tcp_options, is_atomic] = kinds;
        let flags = ACK | flags;
        Shape {
            is_ipv6,
            is_udp,
            flow: 1,
            has_ip_options,
            has_tcp_options,
            is_atomic,
            id,
            sequence,
            flags,
            payload_bytes,
            fill,
        }
    })
}

type Given = (BatchItemForm, Vec<u8>);

/// All that a stream gets, and what it is counted as.
fn given(form: StreamForm, packet: &[u8], content: &Content) -> Result<(Vec<Given>, Tally), TooLong> {
    let (mut items, mut all) = (Vec::new(), Tally::default());
    let mut piece = [0xee; INNER_MTU_MAX as usize];
    give(form, &mut packet.to_vec(), content, &mut piece, |form, packet, tally| {
        items.push((form, packet.to_vec()));
        all += tally;
    })?;
    Ok((items, all))
}

fn super_segment(packet: &[u8], is_udp: bool, segment_bytes: usize) -> Content {
    let transport = if is_udp { Transport::Udp } else { Transport::Tcp };
    let header = PacketHeader::parse(packet).unwrap();
    Content::SuperSegment(Split::new(packet, &header, transport, segment_bytes as u16).unwrap())
}

fn tally(packets: &[Vec<u8>]) -> Tally {
    Tally { packets: packets.len() as u64, bytes: packets.iter().map(|packet| packet.len() as u64).sum() }
}

const WHOLE: BatchItemForm = BatchItemForm::Packet { is_partial: false };
const PARTIAL: BatchItemForm = BatchItemForm::Packet { is_partial: true };

/// The twin's own narrowing: a stream is cut as short as it must be, nothing else is cut.
fn narrowed(whole: &Parts, segment_bytes: usize) -> usize {
    let header_bytes = whole.ip.len() + whole.transport.len();
    let is_cut = whole.is_tcp() && (whole.is_ipv6() || whole.is_atomic());
    if is_cut { segment_bytes.min(STREAM_PACKET_BYTES_MAX - header_bytes) } else { segment_bytes }
}

proptest! {
    #[test]
    fn a_stream_of_whole_packets_gets_finished_ones_that_fit(shape in shape(0..9000usize), segment_bytes in 1..3000usize) {
        let whole = shape.parts();
        let packet = whole.to_packet(true);
        let pieces = whole.split(narrowed(&whole, segment_bytes));
        let expected: Vec<_> = pieces.iter().map(|piece| piece.to_packet(false)).collect();
        // The others are as long, but for the last.
        let fits = expected[0].len() <= STREAM_PACKET_BYTES_MAX;
        match given(StreamForm::Whole, &packet, &super_segment(&packet, shape.is_udp, segment_bytes)) {
            Ok((items, counted)) => {
                prop_assert!(fits && items.iter().all(|(form, _)| *form == WHOLE));
                prop_assert_eq!(counted, tally(&expected));
                prop_assert_eq!(items.into_iter().map(|(_, packet)| packet).collect::<Vec<_>>(), expected);
            }
            Err(too_long) => {
                prop_assert!(!fits);
                prop_assert_eq!(too_long.packets, pieces.len() as u64);
            }
        }
    }

    #[test]
    fn between_ringlane_nodes_a_super_segment_arrives_as_it_left(shape in shape(0..20_000usize), segment_bytes in 1..3000usize) {
        let whole = shape.parts();
        // The kernel may leave lengths and checksums of what is to be split as they are.
        let mut packet = whole.to_packet(true);
        let is_plain = !whole.is_ipv6() || whole.ip.len() == 40;
        let at = whole.checksum_at();
        if is_plain {
            packet[at..at + 2].fill(0x55);
        }
        let pieces = whole.split(segment_bytes);
        let split: Vec<_> = pieces.iter().map(|piece| piece.to_packet(true)).collect();
        let (items, counted) = given(StreamForm::Offloaded, &packet, &super_segment(&packet, shape.is_udp, segment_bytes)).unwrap();
        prop_assert_eq!(counted, tally(&split));
        match pieces.len() {
            1 => prop_assert_eq!(items, [(PARTIAL, whole.to_packet(true))]),
            2..=COALESCE_PIECES_MAX => {
                let form = BatchItemForm::SuperSegment { segment_bytes: segment_bytes as u16 };
                prop_assert_eq!(&items, &[(form, whole.to_packet(true))]);
                let header = PacketHeader::parse(&items[0].1).unwrap();
                let there = Split::of_peer(&items[0].1, &header, segment_bytes as u16).unwrap();
                for (index, piece) in split.iter().enumerate() {
                    let mut bytes = vec![0xee; there.piece_bytes(index)];
                    there.write_piece(&items[0].1, index, &mut bytes);
                    prop_assert_eq!(&bytes, piece);
                }
            }
            _ => {
                prop_assert!(items.iter().all(|(form, _)| *form == PARTIAL));
                prop_assert_eq!(items.into_iter().map(|(_, packet)| packet).collect::<Vec<_>>(), split);
            }
        }
    }

    #[test]
    fn a_packet_is_finished_for_whoever_takes_whole_ones(shape in shape(0..1500usize), is_partial: bool) {
        let packet = shape.parts().to_packet(is_partial);
        let content = Content::Packet { is_partial };
        let as_it_is = (BatchItemForm::Packet { is_partial }, packet.clone());
        let (items, counted) = given(StreamForm::Offloaded, &packet, &content).unwrap();
        prop_assert_eq!((items, counted), (vec![as_it_is], tally(std::slice::from_ref(&packet))));
        let whole = given(StreamForm::Whole, &packet, &content);
        if packet.len() > STREAM_PACKET_BYTES_MAX {
            prop_assert_eq!(whole, Err(TooLong { packets: 1 }));
        } else {
            prop_assert_eq!(whole.unwrap().0, [(WHOLE, shape.parts().to_packet(false))]);
        }
    }

    /// A super-segment of a peer that differs in one byte of its headers is taken only as what the twin makes of the fields.
    #[test]
    fn headers_of_a_peers_super_segment_must_hold(
        shape in shape(2000..9000usize),
        segment_bytes in 200..1400u16,
        (at, bits) in (0..80usize, 1..=255u8),
    ) {
        let mut packet = shape.parts().to_packet(true);
        let headers = packet.len() - shape.payload_bytes;
        packet[at % headers] ^= bits;
        let Ok(header) = PacketHeader::parse(&packet) else { return Ok(()) };
        let packet = header.trim(&packet);
        if Split::of_peer(packet, &header, segment_bytes).is_ok() {
            let parts = Parts::of(packet).unwrap();
            if !parts.is_ipv6() || parts.ip.len() == 40 {
                prop_assert_eq!(packet, parts.to_packet(true));
            }
        }
    }
}

#[test]
fn a_peer_cannot_have_the_kernel_make_many_packets_or_large_ones_of_few_bytes() {
    let shape = Shape {
        is_ipv6: false,
        is_udp: false,
        flow: 1,
        has_ip_options: false,
        has_tcp_options: false,
        is_atomic: true,
        id: 1,
        sequence: 1,
        flags: ACK,
        payload_bytes: 64_000,
        fill: 0,
    };
    let packet = shape.parts().to_packet(true);
    let header = PacketHeader::parse(&packet).unwrap();
    let of_peer = |segment_bytes| Split::of_peer(&packet, &header, segment_bytes);
    assert_eq!(of_peer(1000).map(|split| split.pieces()), Ok(64));
    assert_eq!(of_peer(8960).map(|split| split.piece_bytes(0)), Ok(9000));
    assert_eq!(of_peer(0), Err(SplitError::NoSegmentBytes));
    for (segment_bytes, pieces) in [(999, 65), (1, 64_000), (8961, 8), (64_000, 1), (65_535, 1)] {
        let refused = of_peer(segment_bytes);
        assert!(matches!(refused, Err(SplitError::Bounds { pieces: refused, .. }) if refused == pieces), "{refused:?}");
    }
    let complete = shape.parts().to_packet(false);
    assert_eq!(Split::of_peer(&complete, &header, 1000), Err(SplitError::Untrue));
}
