//! Network to TUN, pure: what a datagram on a lane's socket is, which inner packets of a record are admitted, and how
//! they become writes to the TUN.

use std::net::IpAddr;

use ringlane_shared::drop_reason::DropReason;
use ringlane_shared::id::PeerIndex;
use ringlane_shared::identity::split_service_address;
use ringlane_shared::lane::seal::Sequence;
use ringlane_shared::limits::{
    COALESCE_HEADER_BYTES_MAX, COALESCE_PIECES_MAX, COALESCE_RUNS_MAX, INNER_MTU_MAX, TOKEN_BYTES,
};
use ringlane_shared::packet::checksum::PartialChecksum;
use ringlane_shared::packet::coalesce::{Coalescer, Joined, Span};
use ringlane_shared::packet::ip::PacketHeader;
use ringlane_shared::packet::marks::Ecn;
use ringlane_shared::plane::{PeerCounters, PeerEntry};
use ringlane_shared::wire::fragment::Fragment;
use ringlane_shared::wire::frame::{FrameKind, Frames};
use ringlane_shared::wire::record::DatagramKind;

use crate::echoes::Echoes;
use crate::sys::ring::{SocketSlot, TunWrite, WriteTag};
use crate::sys::vnet_header::{Segmentation, VnetHeader};

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
            DatagramKind::Probe | DatagramKind::Bind | DatagramKind::Stun => Self::Stray,
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

/// Whether an inner packet may go to the TUN: `packet` is trimmed to what the header says. It may be larger than our MTU,
/// which is about what we send: the kernel takes it, and does with it what any router does.
pub(crate) fn admit(
    admits: impl FnOnce(IpAddr) -> bool,
    packet: &[u8],
    is_partial: bool,
) -> Result<(PacketHeader, Option<PartialChecksum>), DropReason> {
    let header = PacketHeader::parse(packet).map_err(|_| DropReason::PacketMalformed)?;
    if header.total_bytes > usize::from(INNER_MTU_MAX) {
        return Err(DropReason::PacketTooBig);
    }
    admit_addresses(admits, &header)?;
    let checksum = PartialChecksum::of_transport(&header).filter(|_| is_partial);
    if is_partial && checksum.is_none() {
        return Err(DropReason::FrameMalformed);
    }
    Ok((header, checksum))
}

/// Whether who has sent a packet may send from its source, and to its destination.
///
/// Services take packets of this host and of those behind it only. Peers reach them by streams of their own, where it is
/// looked at who may: a host that forwards would hand their packets back to us as its own.
pub(crate) fn admit_addresses(admits: impl FnOnce(IpAddr) -> bool, header: &PacketHeader) -> Result<(), DropReason> {
    let is_to_service = matches!(header.destination, IpAddr::V6(to) if split_service_address(to).is_some());
    if !is_to_service && admits(header.source) { Ok(()) } else { Err(DropReason::SourceNotAllowed) }
}

/// An opened record, and where its frames lie: it waits for the others of its turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpenedRecord {
    /// Whose: the slot of the lane's own socket.
    pub(crate) slot: SocketSlot,
    /// The socket it arrived on: the lane's own, or that of a path it could take.
    pub(crate) socket: SocketSlot,
    pub(crate) sequence: Sequence,
    pub(crate) peer: PeerIndex,
    /// What its outer header says of congestion.
    pub(crate) ecn: Ecn,
    /// Which of the turn's receive buffers, by position.
    pub(crate) held: u16,
    /// Its frames.
    pub(crate) frames: Span,
    /// It is a DATAGRAM frame: it has no counter but that of the record before it, and nothing continues in it or from it.
    pub(crate) is_datagram: bool,
}

/// Puts packets together that arrive in fragments.
pub(crate) trait Assemble {
    /// Takes a fragment that came in `record`, and returns the packet that is whole with it.
    fn take(&mut self, record: &OpenedRecord, fragment: &Fragment<'_>) -> Option<Assembled<'_>>;
}

/// A packet that is whole again, and where it lies.
pub(crate) struct Assembled<'m> {
    pub(crate) bytes: &'m [u8],
    pub(crate) span: Span,
    pub(crate) is_partial: bool,
}

/// Turns records into writes to the TUN: admits their packets, and puts back together what belongs together.
pub(crate) struct Rebuilder {
    pub(crate) coalescer: Coalescer,
    /// The record before: its lane, where it stands there, and its mark.
    last: Option<(SocketSlot, Sequence, Ecn)>,
    /// The frame before was a segment that was taken.
    after_segment: bool,
    pub(crate) writes: Writes,
    /// Echoes for the worker to answer, or to make sense of.
    pub(crate) echoes: Echoes,
}

impl Rebuilder {
    /// One for a kernel that takes super-segments of TCP and UDP or not.
    pub(crate) fn new(joins_tcp: bool, joins_udp: bool) -> Self {
        Self {
            coalescer: Coalescer::new(joins_tcp, joins_udp),
            last: None,
            after_segment: false,
            writes: Writes::new(),
            echoes: Echoes::new(),
        }
    }

    /// Takes a record of `peer`, whose opened frames are `frames`. One bad packet does not cost its neighbours; a bad
    /// frame ends the record.
    pub(crate) fn record(
        &mut self,
        peer: &PeerEntry,
        counters: &PeerCounters,
        record: &OpenedRecord,
        frames: &[u8],
        assembler: &mut impl Assemble,
    ) {
        let Self { coalescer, last, after_segment, writes, echoes } = self;
        // Pieces that are marked differently are not one super-segment any more: it has one header.
        let is_next = last.is_some_and(|(slot, before, ecn)| {
            slot == record.slot && record.sequence.follows(before) && ecn == record.ecn
        });
        if !is_next || record.is_datagram {
            *after_segment = false;
        }
        *last = (!record.is_datagram).then_some((record.slot, record.sequence, record.ecn));
        let owner = record.peer;
        let (mut packets, mut bytes) = (0, 0);
        for frame in Frames::new(frames) {
            let Ok(frame) = frame else {
                *after_segment = false;
                counters.drops.count(DropReason::FrameMalformed);
                break;
            };
            let packet = &frames[frame.payload.clone()];
            let place = Span {
                buffer: record.frames.buffer,
                offset: record.frames.offset + frame.payload.start as u32,
                bytes: packet.len() as u32,
            };
            let continues = std::mem::take(after_segment) && frame.continues;
            let (packet, place, is_partial) = match frame.kind {
                FrameKind::Pad => continue,
                FrameKind::Echo => {
                    if let Err(reason) = echoes.take(record.slot, record.socket, record.is_datagram, packet) {
                        counters.drops.count(reason);
                    }
                    continue;
                }
                FrameKind::Fragment => {
                    let fragment = Fragment::of(&frame, packet);
                    let Some(whole) = fragment.and_then(|fragment| assembler.take(record, &fragment)) else { continue };
                    (whole.bytes, whole.span, whole.is_partial)
                }
                FrameKind::Segment if continues && coalescer.continue_segments(packet, place) => {
                    *after_segment = true;
                    packets += 1;
                    bytes += packet.len() as u64;
                    continue;
                }
                FrameKind::Packet | FrameKind::Segment => (packet, place, frame.is_partial),
            };
            let (header, checksum) = match admit(|source| peer.admits_source(source), packet, is_partial) {
                Ok(admitted) => admitted,
                Err(reason) => {
                    counters.drops.count(reason);
                    continue;
                }
            };
            let packet = &packet[..header.total_bytes];
            let place = Span { bytes: packet.len() as u32, ..place };
            let write = |joined: Joined<'_>| writes.push(&joined);
            if frame.kind == FrameKind::Segment {
                coalescer.begin_segments(owner, packet, &header, place, write);
                *after_segment = true;
            } else {
                coalescer.break_segments();
                coalescer.add(owner, packet, &header, place, checksum, write);
            }
            packets += 1;
            bytes += packet.len() as u64;
        }
        counters.packets_received.add(packets);
        counters.bytes_received.add(bytes);
    }

    /// The turn's last record was taken: nothing waits for company.
    pub(crate) fn flush(&mut self) {
        let Self { coalescer, writes, .. } = self;
        coalescer.flush(|joined| writes.push(&joined));
        self.after_segment = false;
    }
}

/// Writes to the TUN that are yet to be queued: what one record makes, at most. Allocates nothing once it has grown.
pub(crate) struct Writes {
    writes: Vec<Write>,
    heads: Vec<u8>,
    spans: Vec<Span>,
}

struct Write {
    header: VnetHeader,
    head_bytes: usize,
    spans: usize,
    tag: WriteTag,
}

impl Writes {
    fn new() -> Self {
        // What a record of the usual size makes, which may end every run there is. A longer one makes it grow, once.
        let packets = 512;
        Self {
            writes: Vec::with_capacity(packets),
            heads: Vec::with_capacity(COALESCE_RUNS_MAX * COALESCE_HEADER_BYTES_MAX),
            spans: Vec::with_capacity(packets + COALESCE_RUNS_MAX * COALESCE_PIECES_MAX),
        }
    }

    pub(crate) fn push(&mut self, joined: &Joined<'_>) {
        let write = match *joined {
            Joined::Whole { owner, packet, checksum } => {
                self.spans.push(packet);
                let tag = WriteTag { peer: owner, packets: 1 };
                Write { header: VnetHeader::whole(checksum), head_bytes: 0, spans: 1, tag }
            }
            Joined::Super {
                owner,
                header,
                payloads,
                transport,
                is_ipv6,
                segment_bytes,
                has_cwr,
                checksum,
                packets,
            } => {
                self.heads.extend_from_slice(header);
                self.spans.extend_from_slice(payloads);
                let header_bytes = header.len() as u16;
                let segmentation = Segmentation { transport, is_ipv6, has_cwr, segment_bytes, header_bytes };
                Write {
                    header: VnetHeader { segmentation: Some(segmentation), ..VnetHeader::whole(Some(checksum)) },
                    head_bytes: header.len(),
                    spans: payloads.len(),
                    tag: WriteTag { peer: owner, packets: packets as u16 },
                }
            }
        };
        self.writes.push(write);
    }

    /// Gives out all writes, in order, and forgets them.
    pub(crate) fn drain(&mut self, mut write: impl FnMut(&TunWrite<'_>)) {
        let (mut heads, mut spans) = (&self.heads[..], &self.spans[..]);
        for each in self.writes.drain(..) {
            let (head, other_heads) = heads.split_at(each.head_bytes);
            let (own, other_spans) = spans.split_at(each.spans);
            (heads, spans) = (other_heads, other_spans);
            write(&TunWrite { header: each.header, head, spans: own, tag: each.tag });
        }
        self.heads.clear();
        self.spans.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ringlane_shared::id::PeerId;
    use ringlane_shared::packet::segment::{Split, Transport};
    use ringlane_shared::route::RouteTable;
    use ringlane_shared::wire::frame::{FrameHeader, FramedPacket};

    use super::*;

    fn peer() -> PeerEntry {
        let mut sources = RouteTable::default();
        sources.insert("10.20.0.0/16".parse().unwrap(), true);
        PeerEntry {
            id: PeerId::random(),
            sources: Arc::new(sources),
            workers_with_lane: 1,
            stream: None,
            avoided: 0,
            counters: Arc::new([]),
        }
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
            frames.extend_from_slice(FrameHeader::fit(what, packet.len(), 20_000).unwrap().as_bytes());
            frames.extend_from_slice(packet);
        }
        frames
    }

    /// A Rebuilder's input is one record after the other, all in one buffer's bytes.
    struct Bed {
        rebuilder: Rebuilder,
        peer: PeerEntry,
        counters: PeerCounters,
        bytes: Vec<u8>,
        /// What the outer headers of the next records say.
        ecn: Ecn,
        assembled: Numbered,
    }

    /// A fragment's number stands for a packet of ours, which is whole as soon as a fragment without more comes.
    struct Numbered(Vec<Vec<u8>>);

    impl Assemble for Numbered {
        fn take(&mut self, _: &OpenedRecord, fragment: &Fragment<'_>) -> Option<Assembled<'_>> {
            let bytes = self.0.get(fragment.packet as usize).filter(|_| !fragment.has_more)?;
            let span = Span { buffer: 100 + fragment.packet as u16, offset: 0, bytes: bytes.len() as u32 };
            Some(Assembled { bytes, span, is_partial: fragment.is_partial })
        }
    }

    impl Bed {
        fn new() -> Self {
            Self {
                rebuilder: Rebuilder::new(true, true),
                peer: peer(),
                counters: PeerCounters::default(),
                bytes: Vec::new(),
                ecn: Ecn::NotEct,
                assembled: Numbered(Vec::new()),
            }
        }

        fn record(&mut self, counter: u64, frames: &[u8]) {
            self.record_of(Sequence { epoch: 0, counter }, frames);
        }

        fn record_of(&mut self, sequence: Sequence, frames: &[u8]) {
            let offset = self.bytes.len() as u32;
            self.bytes.extend(frames);
            let frames_at = Span { buffer: 3, offset, bytes: frames.len() as u32 };
            let record = OpenedRecord {
                slot: SocketSlot::default(),
                socket: SocketSlot::default(),
                sequence,
                peer: PeerIndex(5),
                ecn: self.ecn,
                held: 0,
                frames: frames_at,
                is_datagram: false,
            };
            let Self { rebuilder, peer, counters, assembled, .. } = self;
            rebuilder.record(peer, counters, &record, frames, assembled);
        }

        /// What would go to the TUN: each write's header, its bytes, and for how many packets it stands.
        fn written(&mut self) -> Vec<(VnetHeader, Vec<u8>, u16)> {
            self.rebuilder.flush();
            let mut written = Vec::new();
            let (bytes, assembled) = (&self.bytes, &self.assembled.0);
            self.rebuilder.writes.drain(|write| {
                let mut packet = write.head.to_vec();
                for span in write.spans {
                    let bytes = match span.buffer {
                        3 => bytes,
                        whole => &assembled[usize::from(whole) - 100],
                    };
                    packet.extend(&bytes[span.offset as usize..][..span.bytes as usize]);
                }
                assert_eq!(write.tag.peer, PeerIndex(5));
                written.push((write.header, packet, write.tag.packets));
            });
            written
        }

        fn dropped(&self, reason: DropReason) -> u64 {
            self.counters.drops.get(reason)
        }
    }

    #[test]
    fn a_bad_packet_costs_itself_only() {
        let good = packet([10, 20, 0, 2], 60);
        let spoofed = packet([10, 21, 0, 2], 60);
        let too_big = packet([10, 20, 0, 2], 9001);
        let nonsense = vec![0x15; 40];
        let mut bed = Bed::new();
        let packets = [good.clone(), spoofed, good.clone(), too_big, nonsense, good.clone()];
        bed.record(0, &framed(&packets, FramedPacket::Complete));
        let written = bed.written();
        assert_eq!(written.iter().map(|(_, packet, _)| packet).collect::<Vec<_>>(), [&good; 3]);
        let reasons = [DropReason::SourceNotAllowed, DropReason::PacketTooBig, DropReason::PacketMalformed];
        assert_eq!(reasons.map(|reason| bed.dropped(reason)), [1; 3]);
        assert_eq!((bed.counters.packets_received.get(), bed.counters.bytes_received.get()), (3, 180));
    }

    #[test]
    fn a_partial_checksum_goes_to_the_tun_and_must_lie_within_the_trimmed_packet() {
        let mut good = packet([10, 20, 0, 2], 60);
        let mut bed = Bed::new();
        bed.record(0, &framed(&[good.clone()], FramedPacket::Partial));
        let written = bed.written();
        assert_eq!((written[0].0.partial_checksum, written[0].1.len()), (Some((20, 6)), 60));
        good[3] = 27;
        bed.record(1, &framed(&[good], FramedPacket::Partial));
        assert_eq!((bed.written(), bed.dropped(DropReason::FrameMalformed)), (vec![], 1));
    }

    #[test]
    fn no_peer_has_the_kernel_write_anywhere_but_into_the_checksum_of_tcp_or_udp() {
        let mut fragment = packet([10, 20, 0, 2], 60);
        fragment[6] = 0x20;
        let mut icmp = packet([10, 20, 0, 2], 60);
        icmp[9] = 1;
        let mut short = packet([10, 20, 0, 2], 37);
        short[9] = 6;
        for refused in [fragment, icmp.clone(), short] {
            for what in [FramedPacket::Partial, FramedPacket::Segment, FramedPacket::NextSegment] {
                assert_eq!(admit(|_| true, &refused, true), Err(DropReason::FrameMalformed));
                let mut bed = Bed::new();
                bed.record(0, &framed(std::slice::from_ref(&refused), what));
                assert_eq!((bed.written(), bed.dropped(DropReason::FrameMalformed)), (vec![], 1));
            }
        }
        icmp[9] = 6;
        let mut bed = Bed::new();
        bed.record(0, &framed(&[icmp], FramedPacket::Partial));
        assert_eq!(bed.written()[0].0.partial_checksum, Some((20, 16)));
    }

    /// Pieces of a UDP super-segment with 100 bytes of payload each, all bytes of piece i being i.
    fn pieces(count: u8) -> Vec<Vec<u8>> {
        let payload: Vec<u8> = (0..count).flat_map(|number| [number; 100]).collect();
        let mut whole = packet([10, 20, 0, 2], 28 + payload.len());
        whole[20..24].copy_from_slice(&[0x30, 0x39, 0x14, 0x51]);
        whole[24..26].copy_from_slice(&(8 + payload.len() as u16).to_be_bytes());
        whole[28..].copy_from_slice(&payload);
        let split = Split::new(&whole, &PacketHeader::parse(&whole).unwrap(), Transport::Udp, 100).unwrap();
        let piece = |index| {
            let mut piece = vec![0; split.piece_bytes(index)];
            split.write_piece(&whole, index, &mut piece);
            piece
        };
        (0..usize::from(count)).map(piece).collect()
    }

    fn segment(piece: &[u8], is_first: bool) -> Vec<u8> {
        framed(&[piece.to_vec()], if is_first { FramedPacket::Segment } else { FramedPacket::NextSegment })
    }

    #[test]
    fn segments_of_records_in_a_row_are_one_write_and_a_lost_record_makes_it_two() {
        let pieces = pieces(6);
        let mut bed = Bed::new();
        for lost in [None, Some(0), Some(2), Some(5)] {
            for (counter, piece) in pieces.iter().enumerate() {
                if lost != Some(counter) {
                    bed.record(counter as u64, &segment(piece, counter == 0));
                }
            }
            let written = bed.written();
            let counts: Vec<_> = written.iter().map(|(.., packets)| *packets).collect();
            match lost {
                None => assert_eq!(counts, [6]),
                Some(2) => assert_eq!(counts, [2, 3]),
                Some(_) => assert_eq!(counts, [5]),
            }
            let payload: Vec<u8> = written.iter().flat_map(|(_, packet, _)| packet[28..].to_vec()).collect();
            let expected = pieces.iter().enumerate().filter(|(number, _)| lost != Some(*number));
            assert_eq!(payload, expected.flat_map(|(_, piece)| piece[28..].to_vec()).collect::<Vec<_>>());
            assert_eq!(written[0].0.segmentation.unwrap().segment_bytes, 100);
        }
        assert_eq!(bed.counters.packets_received.get(), 6 + 3 * 5);
    }

    /// One header would have to speak for both.
    #[test]
    fn pieces_that_met_congestion_are_not_joined_with_those_that_did_not() {
        let pieces = pieces(6);
        let mut bed = Bed::new();
        for (index, piece) in pieces.iter().enumerate() {
            bed.ecn = if (2..4).contains(&index) { Ecn::Ce } else { Ecn::Ect0 };
            bed.record(index as u64, &segment(piece, index == 0));
        }
        assert_eq!(bed.written().iter().map(|(.., packets)| *packets).collect::<Vec<_>>(), [2, 2, 2]);
    }

    #[test]
    fn no_segment_continues_one_of_another_epoch() {
        let pieces = pieces(3);
        let mut bed = Bed::new();
        for (sequence, piece) in [(0, 0), (0, 1), (1, 2)].into_iter().zip(&pieces) {
            let (epoch, counter) = sequence;
            bed.record_of(Sequence { epoch, counter }, &segment(piece, (epoch, counter) == (0, 0)));
        }
        assert_eq!(bed.written().iter().map(|(.., packets)| *packets).collect::<Vec<_>>(), [2, 1]);
    }

    #[test]
    fn segments_that_share_a_record_continue_each_other_and_nothing_comes_between() {
        let pieces = pieces(4);
        let mut bed = Bed::new();
        let first = [segment(&pieces[0], true), segment(&pieces[1], false)].concat();
        bed.record(7, &first);
        bed.record(8, &[segment(&pieces[2], false), segment(&pieces[3], true)].concat());
        assert_eq!(bed.written().iter().map(|(.., packets)| *packets).collect::<Vec<_>>(), [3, 1]);
        let other = framed(&[packet([10, 20, 0, 9], 60)], FramedPacket::Complete);
        bed.record(9, &[first, other, segment(&pieces[2], false)].concat());
        assert_eq!(bed.written().iter().map(|(.., packets)| *packets).sum::<u16>(), 4);
        // The lane's next turn: what went to the TUN is not continued.
        bed.record(10, &segment(&pieces[3], false));
        assert_eq!(bed.written().len(), 1);
    }

    #[test]
    fn a_packet_that_came_in_fragments_is_admitted_and_joins_its_flow_as_any_other() {
        let pieces = pieces(3);
        let mut bed = Bed::new();
        let fragment = |packet: u8, first: u8| [vec![first, 0, 7, 0, 0, 0, packet, 0, 0], vec![9]].concat();
        bed.assembled.0 = vec![pieces[1].clone(), packet([10, 21, 0, 2], 60)];
        let before = framed(&pieces[..1], FramedPacket::Partial);
        let behind = framed(&pieces[2..], FramedPacket::Partial);
        // The first of its fragments, the last one, and one of a packet that is not the peer's.
        bed.record(
            0,
            &[before, fragment(0, 0b0111_1100), fragment(0, 0b0111_1000), fragment(1, 0b0111_0000), behind].concat(),
        );
        let written = bed.written();
        assert_eq!(written.iter().map(|(.., packets)| *packets).collect::<Vec<_>>(), [3]);
        let payload: Vec<u8> = pieces.iter().flat_map(|piece| piece[28..].to_vec()).collect();
        assert_eq!(written[0].1[28..], payload);
        assert_eq!(bed.dropped(DropReason::SourceNotAllowed), 1);
        assert_eq!(bed.counters.packets_received.get(), 3);
    }

    #[test]
    fn pad_frames_are_skipped_and_broken_ones_end_the_record() {
        let mut frames = vec![0b0001_0000, 0, 2, 9, 9];
        frames.extend(framed(&[packet([10, 20, 0, 2], 60)], FramedPacket::Complete));
        frames.extend([0b1110_0000, 1, 2, 3]);
        let mut bed = Bed::new();
        bed.record(0, &frames);
        assert_eq!(bed.written().len(), 1);
        let drops = DropReason::ALL.map(|reason| bed.dropped(reason));
        assert_eq!((drops.iter().sum::<u64>(), bed.dropped(DropReason::FrameMalformed)), (1, 1));
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
