//! Network to TUN, pure: what a datagram on a lane's socket is, and which inner packets of a record are admitted.

use std::ops::Range;

use ringlane_shared::drop_reason::DropReason;
use ringlane_shared::limits::{RECORD_HEADER_BYTES, TOKEN_BYTES};
use ringlane_shared::packet::checksum::PartialChecksum;
use ringlane_shared::packet::ip::PacketHeader;
use ringlane_shared::plane::PeerEntry;
use ringlane_shared::wire::frame::{FrameKind, Frames};
use ringlane_shared::wire::record::DatagramKind;

use crate::sys::vnet_header::VnetHeader;

/// What a datagram that a lane's socket received is to us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Arrival {
    /// A record.
    Record,
    /// A packet of the lane's QUIC connection.
    Quic,
    /// Not the lane's: control's listener would know what to do with it.
    Stray,
    /// A sentinel; nothing.
    Sentinel,
    /// Garbage.
    Garbage,
}

impl Arrival {
    /// Tells by the first bytes alone.
    pub(crate) fn of(datagram: &[u8]) -> Self {
        match DatagramKind::of(datagram) {
            DatagramKind::Record => Self::Record,
            DatagramKind::Quic if opens_a_lane(datagram) => Self::Stray,
            DatagramKind::Quic => Self::Quic,
            DatagramKind::Probe | DatagramKind::Stun => Self::Stray,
            DatagramKind::Sentinel => Self::Sentinel,
            DatagramKind::Unknown => Self::Garbage,
        }
    }
}

/// Whether this is an Initial whose destination connection id is as long as a token (RFC 9000, section 17.2.2): a
/// peer that returns from the address it had reaches the old lane's socket first. An established lane's own packets
/// never look like this.
fn opens_a_lane(datagram: &[u8]) -> bool {
    datagram[0] & 0xf0 == 0xc0 && datagram.get(5).copied().map(usize::from) == Some(TOKEN_BYTES)
}

/// An inner packet that may be written to the TUN: only [`admit`] makes one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Admitted {
    /// Where it lies, counted from the record's first byte.
    pub(crate) range: Range<usize>,
    /// What to tell the TUN of it.
    pub(crate) header: VnetHeader,
}

/// Takes an opened record's frames apart, calls `admitted` for every inner packet the peer may send us, and `dropped`
/// for everything else. One bad packet does not cost its neighbours; a bad frame ends the record.
pub(crate) fn admit(
    peer: &PeerEntry,
    mtu: u16,
    frames: &[u8],
    mut admitted: impl FnMut(Admitted),
    mut dropped: impl FnMut(DropReason),
) {
    for frame in Frames::new(frames) {
        let Ok(frame) = frame else {
            dropped(DropReason::FrameMalformed);
            return;
        };
        match frame.kind {
            FrameKind::Pad => continue,
            FrameKind::Fragment => {
                dropped(DropReason::FrameUnsupported);
                continue;
            }
            FrameKind::Packet | FrameKind::Segment => {}
        }
        let packet = &frames[frame.payload.clone()];
        let Ok(header) = PacketHeader::parse(packet) else {
            dropped(DropReason::PacketMalformed);
            continue;
        };
        if header.total_bytes > usize::from(mtu) {
            dropped(DropReason::PacketTooBig);
            continue;
        }
        if !peer.admits_source(header.source) {
            dropped(DropReason::SourceNotAllowed);
            continue;
        }
        let checksum = PartialChecksum::of_transport(&header).filter(|_| frame.is_partial);
        if checksum.is_none() && frame.is_partial {
            dropped(DropReason::FrameMalformed);
            continue;
        }
        let start = RECORD_HEADER_BYTES + frame.payload.start;
        admitted(Admitted {
            range: start..start + header.total_bytes,
            header: VnetHeader {
                partial_checksum: checksum.map(|checksum| (checksum.start, u16::from(checksum.offset))),
                segmentation: 0,
            },
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ringlane_shared::id::PeerId;
    use ringlane_shared::route::RouteTable;
    use ringlane_shared::wire::frame::{FrameHeader, FramedPacket};

    use super::*;

    fn peer() -> PeerEntry {
        let mut sources = RouteTable::default();
        sources.insert("10.20.0.0/16".parse().unwrap(), ());
        PeerEntry { id: PeerId::random(), sources: Arc::new(sources), workers_with_lane: 1, counters: Arc::new([]) }
    }

    fn packet(source: [u8; 4], total: usize) -> Vec<u8> {
        let mut packet = vec![0x45, 0, (total >> 8) as u8, total as u8, 0, 0, 0, 0, 64, 17, 0, 0];
        packet.extend(source);
        packet.extend([10, 10, 0, 2]);
        packet.resize(total, 0);
        packet
    }

    fn framed(packets: &[Vec<u8>], what: FramedPacket) -> Vec<u8> {
        let mut frames = Vec::new();
        for packet in packets {
            frames.extend_from_slice(FrameHeader::fit(what, packet.len(), 9000).unwrap().as_bytes());
            frames.extend_from_slice(packet);
        }
        frames
    }

    fn outcome(frames: &[u8]) -> (Vec<Admitted>, Vec<DropReason>) {
        let (mut admitted, mut dropped) = (Vec::new(), Vec::new());
        admit(&peer(), 1420, frames, |packet| admitted.push(packet), |reason| dropped.push(reason));
        (admitted, dropped)
    }

    #[test]
    fn a_bad_packet_costs_itself_only() {
        let good = packet([10, 20, 0, 2], 60);
        let spoofed = packet([10, 21, 0, 2], 60);
        let too_big = packet([10, 20, 0, 2], 1421);
        let nonsense = vec![0x15; 40];
        let (admitted, dropped) =
            outcome(&framed(&[good.clone(), spoofed, good.clone(), too_big, nonsense, good], FramedPacket::Complete));
        assert_eq!(admitted.len(), 3);
        assert_eq!(dropped, [DropReason::SourceNotAllowed, DropReason::PacketTooBig, DropReason::PacketMalformed]);
    }

    #[test]
    fn a_partial_checksum_goes_to_the_tun_and_must_lie_within_the_trimmed_packet() {
        let mut good = packet([10, 20, 0, 2], 60);
        let (admitted, dropped) = outcome(&framed(&[good.clone()], FramedPacket::Partial));
        assert_eq!(admitted[0].header.partial_checksum, Some((20, 6)));
        assert_eq!((admitted[0].range.len(), dropped.len()), (60, 0));
        good[3] = 27;
        assert_eq!(outcome(&framed(&[good], FramedPacket::Partial)), (vec![], vec![DropReason::FrameMalformed]));
    }

    #[test]
    fn no_peer_has_the_kernel_write_anywhere_but_into_the_checksum_of_tcp_or_udp() {
        let partial = |packet: &[u8]| outcome(&framed(&[packet.to_vec()], FramedPacket::Partial));
        let refused = (vec![], vec![DropReason::FrameMalformed]);
        let mut fragment = packet([10, 20, 0, 2], 60);
        fragment[6] = 0x20;
        assert_eq!(partial(&fragment), refused);
        let mut icmp = packet([10, 20, 0, 2], 60);
        icmp[9] = 1;
        assert_eq!(partial(&icmp), refused);
        icmp[9] = 6;
        assert_eq!(partial(&icmp).0[0].header.partial_checksum, Some((20, 16)));
        let mut short = packet([10, 20, 0, 2], 37);
        short[9] = 6;
        assert_eq!(partial(&short), refused);
    }

    #[test]
    fn frames_of_later_versions_are_skipped_and_broken_ones_end_the_record() {
        let mut frames = vec![0b0111_0000, 0, 2, 9, 9];
        frames.extend(framed(&[packet([10, 20, 0, 2], 60)], FramedPacket::Complete));
        frames.extend([0b1110_0000, 1, 2, 3]);
        let (admitted, dropped) = outcome(&frames);
        assert_eq!(admitted.len(), 1);
        assert_eq!(dropped, [DropReason::FrameUnsupported, DropReason::FrameMalformed]);
    }

    #[test]
    fn only_an_initial_with_a_token_is_a_stray_among_quic_packets() {
        let mut initial = vec![0xc3, 0, 0, 0, 1, TOKEN_BYTES as u8];
        assert_eq!(Arrival::of(&initial), Arrival::Stray);
        initial[5] = 8;
        assert_eq!(Arrival::of(&initial), Arrival::Quic);
        initial[0] = 0xe3;
        initial[5] = TOKEN_BYTES as u8;
        assert_eq!(Arrival::of(&initial), Arrival::Quic, "a handshake packet");
        assert_eq!(Arrival::of(&[0x40, 1]), Arrival::Quic);
        assert_eq!(Arrival::of(&[0xc3, 1]), Arrival::Quic);
        assert_eq!(Arrival::of(&[0x3f, 1]), Arrival::Record);
        assert_eq!(Arrival::of(&[0x21, 1]), Arrival::Stray);
        assert_eq!(Arrival::of(&[0x01, 1]), Arrival::Stray);
        assert_eq!(Arrival::of(&[0x80, 1]), Arrival::Garbage);
        assert_eq!(Arrival::of(&[0x30]), Arrival::Sentinel);
        assert_eq!(Arrival::of(&[]), Arrival::Garbage);
    }
}
