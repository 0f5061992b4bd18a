//! What each stage of Ringlane's packet path costs, and what the benches in `benches/` measure it with.
//!
//! - `cargo bench -p ringlane-benches --bench packet_path` measures time, with criterion.
//! - `cargo bench -p ringlane-benches --bench instructions` counts instructions and compares them with `baseline.toml`.
#![allow(clippy::unwrap_used, reason = "the inputs are this crate's own")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::{Deref, DerefMut, Range};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use ringlane_shared::id::{LaneId, PeerIndex};
use ringlane_shared::lane::keys::{KeyError, LaneKeys, Role, Suite};
use ringlane_shared::lane::seal::{Opener, Sealer, split};
use ringlane_shared::limits::{FRAME_HEADER_ROOM_BYTES, INNER_MTU_DEFAULT, RECORD_HEADER_BYTES};
use ringlane_shared::packet::checksum::{self, PartialChecksum, Sum};
use ringlane_shared::packet::{Coalescer, PacketHeader, Span, Split, Transport};
use ringlane_shared::route::RouteTable;
use ringlane_shared::wire::frame::{FrameHeader, FramedPacket};

/// A packet that is nearly all header.
pub const SMALL: usize = 64;
/// A packet that fills its record.
pub const FULL: usize = INNER_MTU_DEFAULT as usize;
/// The largest packet that the kernel hands over in one read. It splits into 48 [`FULL`] ones.
pub const SUPER: usize = u16::MAX as usize;
/// Payload of a [`FULL`] packet that [`packet`] makes for IPv4: the kernel's `gso_size`.
pub const SEGMENT: u16 = FULL as u16 - 52;
/// Bytes of frames that a record has room for.
pub const ROOM: usize = FULL + FRAME_HEADER_ROOM_BYTES;

/// Bytes that begin at a multiple of 64, wherever the allocator puts them: what a copy costs depends on that.
pub struct Buffer {
    bytes: Vec<u8>,
    range: Range<usize>,
}

impl Buffer {
    const ALIGNMENT: usize = 64;

    /// As many bytes, all of that value.
    pub fn filled(value: u8, bytes: usize) -> Self {
        let room = vec![value; bytes + Self::ALIGNMENT];
        let start = room.as_ptr().align_offset(Self::ALIGNMENT);
        Self { bytes: room, range: start..start + bytes }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.range.clone()]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.range.clone()]
    }
}

/// A TCP packet of `bytes` with ACK set and a timestamp, 32 bytes of TCP header, whose checksum the kernel left partial.
pub fn packet(v6: bool, bytes: usize) -> Buffer {
    let mut packet = Buffer::filled(0x5a, bytes);
    let addresses = if v6 {
        packet[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 0, 6, 64]);
        packet[4..6].copy_from_slice(&((bytes - 40) as u16).to_be_bytes());
        8..40
    } else {
        packet[..12].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0]);
        packet[2..4].copy_from_slice(&(bytes as u16).to_be_bytes());
        let sum = Sum::default().plus(&packet[..20]).fold();
        packet[10..12].copy_from_slice(&(!sum).to_be_bytes());
        12..20
    };
    let tcp = addresses.end;
    let pseudo_header = Sum::default().plus(&packet[addresses]).plus(&[0, 6]);
    let sum = pseudo_header.plus(&((bytes - tcp) as u16).to_be_bytes()).fold();
    packet[tcp + 12..tcp + 14].copy_from_slice(&[8 << 4, 0x10]);
    packet[tcp + 16..tcp + 24].copy_from_slice(&[(sum >> 8) as u8, sum as u8, 0, 0, 1, 1, 8, 10]);
    packet
}

/// The header of a packet made here, and its partial checksum.
pub fn parsed(packet: &[u8]) -> (PacketHeader, PartialChecksum) {
    let header = PacketHeader::parse(packet).unwrap();
    (header, PartialChecksum::of_transport(&header).unwrap())
}

/// A deterministic stream of numbers (SplitMix64), so that every run measures the same table and lookups.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// Routes as sites have them: IPv4 /16 to /28 in 10/8, IPv6 /48 to /64 in fd00::/16, every other one of each; and
/// addresses that match.
pub fn routes(count: usize) -> (RouteTable<PeerIndex>, Vec<IpAddr>) {
    let (mut numbers, mut table, mut inside) = (Numbers(1), RouteTable::default(), Vec::new());
    while table.len() < count {
        let number = numbers.next();
        let prefix: IpNet = if table.len().is_multiple_of(2) {
            let address = Ipv4Addr::from_bits(10 << 24 | (number as u32 & 0x00ff_ffff));
            Ipv4Net::new(address, 16 + (number >> 32) as u8 % 13).unwrap().into()
        } else {
            let address = Ipv6Addr::from_bits(0xfd00 << 112 | u128::from(number) << 48);
            Ipv6Net::new(address, 48 + (number >> 60) as u8).unwrap().into()
        };
        inside.push(prefix.addr());
        table.insert(prefix, PeerIndex(table.len() as u16));
    }
    let lookups = (0..1024).map(|_| inside[numbers.next() as usize % inside.len()]).collect();
    (table, lookups)
}

/// Two ends of a lane whose keys are no secret.
pub fn pair(suite: Suite) -> (Sealer, Opener) {
    let export = |output: &mut [u8], _: &[u8], context: &[u8]| {
        output.fill(context[0]);
        Ok::<_, KeyError>(())
    };
    let [a, b] = [1, 2].map(|id| LaneId::new(id).unwrap());
    let keys = |role| LaneKeys::derive(suite, role, export).unwrap();
    (split(keys(Role::Client), a, b).0, split(keys(Role::Server), b, a).1)
}

/// Fills a record with copies of a packet whose checksum is partial, and returns how many bytes of frames that makes.
pub fn write_frames(record: &mut [u8], packet: &[u8]) -> usize {
    let (body, mut at) = (&mut record[RECORD_HEADER_BYTES..], 0);
    while let Some(header) = FrameHeader::fit(FramedPacket::Partial, packet.len(), body.len() - at) {
        let header_bytes = header.as_bytes().len();
        body[at..][..header_bytes].copy_from_slice(header.as_bytes());
        body[at + header_bytes..][..packet.len()].copy_from_slice(packet);
        at += header_bytes + packet.len();
    }
    at
}

/// Splits a [`SUPER`] packet, each piece going to a place of its own in `pieces`, [`ROOM`] bytes apart. Returns how many
/// there are.
pub fn split_packet(packet: &[u8], header: &PacketHeader, pieces: &mut [u8]) -> usize {
    let split = Split::new(packet, header, Transport::Tcp, SEGMENT).unwrap();
    for (index, place) in pieces.chunks_exact_mut(ROOM).take(split.pieces()).enumerate() {
        split.write_piece(packet, index, &mut place[..split.piece_bytes(index)]);
    }
    split.pieces()
}

/// How packets reach the coalescer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arrival {
    /// As segments of a super-segment that the sender split.
    Segments,
    /// By themselves, with partial checksums.
    Partial,
    /// By themselves, with complete checksums, which have to be verified.
    Complete,
}

/// All ways, and what the benches call them.
pub const ARRIVALS: [(&str, Arrival); 3] = [
    ("segments", Arrival::Segments),
    ("packets, partial checksums", Arrival::Partial),
    ("packets, complete checksums", Arrival::Complete),
];

/// What a [`SUPER`] packet was split into, as it arrives.
pub struct Pieces {
    arrival: Arrival,
    pieces: Buffer,
    packets: Vec<(PacketHeader, Span)>,
}

impl Pieces {
    /// Splits one.
    pub fn new(arrival: Arrival) -> Self {
        let (packet, mut pieces) = (packet(false, SUPER), Buffer::filled(0, 48 * ROOM));
        let count = split_packet(&packet, &parsed(&packet).0, &mut pieces);
        let packets = pieces.chunks_exact_mut(ROOM).take(count).enumerate().map(|(index, place)| {
            let (header, partial) = parsed(place);
            if arrival == Arrival::Complete {
                checksum::complete(&mut place[..header.total_bytes], partial).unwrap();
            }
            (header, Span { buffer: 0, offset: (index * ROOM) as u32, bytes: header.total_bytes as u32 })
        });
        let packets = packets.collect();
        Self { arrival, pieces, packets }
    }

    /// Hands all of them to the coalescer, which is empty before and after. Returns how many things it made of them,
    /// one that is.
    pub fn join(&self, coalescer: &mut Coalescer) -> usize {
        let (owner, mut made) = (PeerIndex(0), 0);
        for (index, (header, span)) in self.packets.iter().enumerate() {
            let bytes = &self.pieces[span.offset as usize..][..span.bytes as usize];
            match self.arrival {
                Arrival::Segments if index == 0 => {
                    coalescer.begin_segments(owner, bytes, header, *span, |_| made += 1);
                }
                Arrival::Segments => assert!(coalescer.continue_segments(bytes, *span)),
                Arrival::Partial | Arrival::Complete => {
                    let partial = PartialChecksum::of_transport(header).filter(|_| self.arrival == Arrival::Partial);
                    coalescer.add(owner, bytes, header, *span, partial, |_| made += 1);
                }
            }
        }
        coalescer.flush(|_| made += 1);
        made
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_measured_is_what_the_names_say() {
        let packet = packet(false, SUPER);
        let mut pieces = Buffer::filled(0, 48 * ROOM);
        assert_eq!(split_packet(&packet, &parsed(&packet).0, &mut pieces), 48);
        assert_eq!(PacketHeader::parse(&pieces[..ROOM]).unwrap().total_bytes, FULL);
        for arrival in [Arrival::Segments, Arrival::Partial, Arrival::Complete] {
            let (pieces, mut coalescer) = (Pieces::new(arrival), Coalescer::new(true, true));
            assert_eq!([pieces.join(&mut coalescer), pieces.join(&mut coalescer)], [1, 1], "{arrival:?}");
        }
        let mut record = Buffer::filled(0, RECORD_HEADER_BYTES + ROOM);
        assert_eq!(write_frames(&mut record, &packet[..SMALL]) / (SMALL + 3), 21);
    }
}
