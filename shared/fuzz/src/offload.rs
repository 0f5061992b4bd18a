//! Splitting and rebuilding super-segments.

use ringlane_shared::id::PeerIndex;
use ringlane_shared::packet::checksum::{PartialChecksum, complete};
use ringlane_shared::packet::{PacketHeader, Split, Transport};

use crate::twin::{ACK, CWR, FIN, PSH, Parts, Shape};
use crate::watched::Watched;

/// What the TUN gives out: whether it is to be TCP, the bytes of a piece, and a packet that may be anything.
pub fn split(input: &[u8]) -> bool {
    let Some((&[transport, high, low], packet)) = input.split_first_chunk() else { return false };
    let transport = if transport & 1 == 0 { Transport::Tcp } else { Transport::Udp };
    let segment_bytes = u16::from_be_bytes([high, low]);
    let Ok(header) = PacketHeader::parse(packet) else { return false };
    let packet = header.trim(packet);
    let Ok(split) = Split::new(packet, &header, transport, segment_bytes) else {
        let parts = Parts::of(packet).filter(|parts| parts.is_tcp() == (transport == Transport::Tcp));
        assert!(segment_bytes == 0 || parts.is_none(), "it could have been split");
        return false;
    };
    let whole = Parts::of(packet).expect("it has all its headers");
    let pieces = whole.split(usize::from(segment_bytes));
    assert_eq!(split.pieces(), pieces.len());
    if let Ok(of_peer) = Split::of_peer(packet, &header, segment_bytes) {
        assert_eq!(of_peer, split);
        assert!((2..=64).contains(&split.pieces()) && split.piece_bytes(0) <= 9000);
        assert!((whole.is_ipv6() && whole.ip.len() > 40) || packet == whole.to_packet(true));
    }
    assert_eq!(split.header_bytes(), whole.ip.len() + whole.transport.len());
    assert_eq!(split.piece_bytes(pieces.len()), 0);
    for (index, piece) in pieces.iter().enumerate() {
        let mut bytes = vec![0xee; split.piece_bytes(index)];
        split.write_piece(packet, index, &mut bytes);
        let mut expected = piece.to_packet(true);
        if whole.is_ipv6() && whole.ip.len() > 40 {
            // Behind extension headers the sum is the kernel's own, whatever it is here.
            let at = piece.checksum_at();
            expected[at..at + 2].copy_from_slice(&bytes[at..at + 2]);
            assert_eq!(bytes, expected);
            continue;
        }
        assert_eq!(bytes, expected);
        let partial = PartialChecksum::of_transport(&PacketHeader::parse(&bytes).expect("a packet"));
        complete(&mut bytes, partial.expect("it has a checksum")).expect("within the packet");
        assert_eq!(bytes, piece.to_packet(false));
    }
    true
}

/// The super-segment whose pieces are arriving.
struct Arriving {
    pieces: Vec<Vec<u8>>,
    next: usize,
    /// Whether nothing else was taken for one of its pieces since its run began.
    is_exact: bool,
}

/// What arrives in a few turns, in steps of a few bytes each. Whether any packets were joined.
pub fn coalesce(input: &[u8]) -> bool {
    const STEPS_MAX: usize = 512;
    let mut input = input.iter().copied();
    let joins = input.next().unwrap_or(0);
    let mut watched = Watched::new(joins & 1 == 0, joins & 2 == 0);
    let mut arriving: Option<Arriving> = None;
    // Each flow's next sequence number and id.
    let mut flows = [(0xffff_f000u32, 0xfffau16); 8];
    for _ in 0..STEPS_MAX {
        let Some(step) = input.next() else { break };
        match step % 16 {
            0 => watched.flush(),
            1 => watched.owner = PeerIndex(u16::from(step >> 4) % 2),
            2 => {
                let garbage: Vec<u8> = input.by_ref().take(usize::from(step >> 4) * 5).collect();
                if watched.next(&garbage, false)
                    && let Some(arriving) = &mut arriving
                {
                    arriving.is_exact = false;
                }
            }
            3 => {
                let bytes = usize::from(input.next().unwrap_or(0));
                let raw: Vec<u8> = input.by_ref().take(bytes).collect();
                match step >> 4 {
                    0..8 => watched.add(&raw, step & 0x10 != 0),
                    _ => watched.begin(&raw),
                };
            }
            4..8 => next_segment(&mut watched, &mut arriving, step & 0x10 != 0),
            8 | 9 => {
                let Some(shape) = shape(&mut input, &mut flows, 9000) else { break };
                let segment_bytes = 100 + 16 * usize::from(step >> 4);
                let whole = shape.parts();
                let pieces: Vec<_> = whole.split(segment_bytes).iter().map(|piece| piece.to_packet(true)).collect();
                watched.begin(&pieces[0]);
                arriving = Some(Arriving { pieces, next: 1, is_exact: true });
            }
            _ => {
                let Some(shape) = shape(&mut input, &mut flows, 300) else { break };
                let mut parts = shape.parts();
                let change = if step & 0x80 == 0 { (0, 0) } else { (input.next().unwrap_or(0), 1 << (step & 7)) };
                let is_partial = step & 0x40 != 0;
                // Another header with the right sums, or sums that are wrong now.
                if step & 0x20 == 0 {
                    let headers = parts.ip.len() + parts.transport.len();
                    let at = usize::from(change.0) % headers;
                    let ip_bytes = parts.ip.len();
                    *if at < ip_bytes { &mut parts.ip[at] } else { &mut parts.transport[at - ip_bytes] } ^= change.1;
                    // What is no longer TCP or UDP, or has its headers elsewhere, has its sums anywhere: that is fine.
                    if parts.ip[0] >> 4 != if shape.is_ipv6 { 6 } else { 4 } {
                        continue;
                    }
                    watched.add(&parts.to_packet(is_partial), is_partial);
                } else {
                    let mut packet = parts.to_packet(is_partial);
                    let at = usize::from(change.0) % packet.len();
                    packet[at] ^= change.1;
                    watched.add(&packet, is_partial);
                }
            }
        }
    }
    watched.finish().iter().any(|write| write.pieces.len() > 1)
}

/// The next piece of what is arriving, or its loss.
fn next_segment(watched: &mut Watched, arriving: &mut Option<Arriving>, is_lost: bool) {
    let Some(Arriving { pieces, next, is_exact }) = arriving else { return };
    let Some(piece) = pieces.get(*next) else { return };
    *next += 1;
    if is_lost {
        watched.interrupt();
    } else if !watched.next(piece, *is_exact) {
        watched.begin(piece);
        *is_exact = true;
    }
}

fn shape(input: &mut impl Iterator<Item = u8>, flows: &mut [(u32, u16); 8], payload_bytes_max: usize) -> Option<Shape> {
    let [kind, flow, length, flags] = [input.next()?, input.next()?, input.next()?, input.next()?];
    let (sequence, id) = flows[usize::from(flow) % 8];
    let payload_bytes = match length {
        0..0x80 => payload_bytes_max / 3,
        _ => payload_bytes_max * usize::from(length & 0x7f) / 0x80,
    };
    flows[usize::from(flow) % 8].0 = sequence.wrapping_add(payload_bytes as u32);
    flows[usize::from(flow) % 8].1 = id.wrapping_add(u16::from(kind & 0x20 == 0));
    Some(Shape {
        is_ipv6: kind & 1 != 0,
        is_udp: kind & 2 != 0,
        flow: flow % 32,
        has_ip_options: kind & 0x0c == 0x0c,
        has_tcp_options: kind & 0x10 != 0,
        is_atomic: kind & 0x40 != 0,
        id,
        sequence,
        flags: match flags {
            0..0xc0 => ACK,
            0xc0..0xe0 => ACK | PSH,
            0xe0..0xe8 => ACK | CWR,
            0xe8..0xf0 => ACK | FIN,
            _ => flags << 2,
        },
        payload_bytes,
        fill: length,
    })
}
