//! TUN to network, pure: which peer a packet goes to, how packets share records, and how records make a train.

use std::ops::Range;

use ringlane_shared::drop_reason::DropReason;
use ringlane_shared::id::PeerIndex;
use ringlane_shared::limits::{
    FRAME_HEADER_BYTES_MIN, RECORD_HEADER_BYTES, RECORD_OVERHEAD_BYTES, TRAIN_BYTES_MAX, TRAIN_RECORDS_MAX,
};
use ringlane_shared::packet::checksum::{PartialChecksum, complete};
use ringlane_shared::packet::flow::flow_hash;
use ringlane_shared::packet::ip::PacketHeader;
use ringlane_shared::packet::segment::{Content, Split};
use ringlane_shared::plane::Snapshot;
use ringlane_shared::wire::fragment::{FragmentHeader, Uncut};
use ringlane_shared::wire::frame::{FrameHeader, FrameKind, FramedPacket};

use crate::sys::ring::Train;
use crate::sys::vnet_header::VnetHeader;

/// Where what was read from the TUN goes, and what it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Routed {
    /// To whom.
    pub(crate) peer: PeerIndex,
    /// Which flow it belongs to.
    pub(crate) flow_hash: u32,
    /// Its length without anything that trails it.
    pub(crate) bytes: usize,
    /// What it is.
    pub(crate) content: Content,
}

/// Routes what was read from the TUN. A partial checksum that is not its TCP or UDP header's, as an encapsulated
/// packet may have one, is finished here: peers take no other.
pub(crate) fn route(
    snapshot: &Snapshot,
    hash_seed: u64,
    header: VnetHeader,
    packet: &mut [u8],
) -> Result<Routed, DropReason> {
    let parsed = PacketHeader::parse(packet).map_err(|_| DropReason::OutboundMalformed)?;
    let peer = *snapshot.routes.lookup(parsed.destination).ok_or(DropReason::NoRoute)?;
    let bytes = parsed.total_bytes;
    let own = PartialChecksum::of_transport(&parsed);
    let is_own = |(start, offset)| own.is_some_and(|own| (own.start, u16::from(own.offset)) == (start, offset));
    let content = match (header.segmentation, header.partial_checksum) {
        (None, None) => Content::Packet { is_partial: false },
        (None, Some(checksum)) if is_own(checksum) => Content::Packet { is_partial: true },
        (None, Some((start, offset))) => {
            // No protocol whose checksum the kernel leaves partial has its field that far behind.
            let offset = u8::try_from(offset).map_err(|_| DropReason::OutboundMalformed)?;
            let partial = PartialChecksum { start, offset };
            complete(&mut packet[..bytes], partial).map_err(|_| DropReason::OutboundMalformed)?;
            Content::Packet { is_partial: false }
        }
        (Some(segmentation), Some(checksum)) if is_own(checksum) => {
            let split = Split::new(&packet[..bytes], &parsed, segmentation.transport, segmentation.segment_bytes);
            Content::SuperSegment(split.map_err(|_| DropReason::OutboundMalformed)?)
        }
        (Some(_), _) => return Err(DropReason::OutboundMalformed),
    };
    Ok(Routed { peer, flow_hash: flow_hash(packet, &parsed, hash_seed), bytes, content })
}

/// A record that is being filled. Lives for one turn at most.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct RecordFill {
    /// Bytes of frames so far.
    pub(crate) frame_bytes: usize,
    /// Packets so far; one in fragments counts where its last one is.
    pub(crate) packets: u16,
    /// The bytes of packets.
    pub(crate) packet_bytes: u64,
    /// Nothing may follow.
    complete: bool,
}

/// Records that will leave in one send, and the one that is being filled behind them. Lives for one turn at most.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct TrainFill {
    /// The sealed records.
    train: Train,
    /// Packets in them.
    packets: u32,
    /// The last one is shorter than the others, so that nothing may follow.
    ended: bool,
    /// The record that is being filled.
    pub(crate) record: RecordFill,
}

/// A train on its way, and how many packets are in it.
pub(crate) type LoadedTrain = (Train, u32);

/// What became of a packet that was to join a record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Joined {
    /// It is in; its bytes go here, counted from the room's start.
    At(Range<usize>),
    /// There is no place left: seal the record and try the next one.
    RecordFull,
    /// It would not fit an empty record either.
    TooBig,
}

/// Largest packet in bytes that fits a record of so many.
pub(crate) fn packet_bytes_max(record_bytes: usize) -> usize {
    record_bytes.saturating_sub(RECORD_OVERHEAD_BYTES + FRAME_HEADER_BYTES_MIN)
}

impl TrainFill {
    /// Gives a packet a place in the record that is being filled, of `record_bytes` at most, and writes its frame header.
    /// `room` is what the send buffer has behind everything queued from it.
    pub(crate) fn join(
        &mut self,
        room: &mut [u8],
        record_bytes: usize,
        what: FramedPacket,
        packet_bytes: usize,
    ) -> Joined {
        let Some(header) = FrameHeader::fit(what, packet_bytes, self.left(room.len(), record_bytes)) else {
            return if packet_bytes > packet_bytes_max(record_bytes) { Joined::TooBig } else { Joined::RecordFull };
        };
        self.record.packets += 1;
        Joined::At(self.place(room, header.as_bytes(), packet_bytes, header.ends_record()))
    }

    /// As [`Self::join`], for as much as there is place for of what is left of a packet. A record that has no place for
    /// any of it is padded, so that the train goes on.
    pub(crate) fn join_fragment(&mut self, room: &mut [u8], record_bytes: usize, uncut: Uncut) -> Joined {
        let left = self.left(room.len(), record_bytes);
        let Some(header) = FragmentHeader::fit(uncut, left) else {
            if left > 0 && self.record.frame_bytes > 0 {
                let padding = self.place(room, &[FrameKind::Pad as u8], left - 1, true);
                room[padding].fill(0);
                self.record.packet_bytes -= left as u64 - 1;
            }
            return Joined::RecordFull;
        };
        self.record.packets += u16::from(header.packet_bytes == uncut.bytes);
        Joined::At(self.place(room, header.as_bytes(), header.packet_bytes, header.ends_record()))
    }

    /// How many bytes of frames the record has place for, if it may have `record_bytes`.
    fn left(&self, room_bytes: usize, record_bytes: usize) -> usize {
        if self.record.complete {
            return 0;
        }
        let most = record_bytes.min(room_bytes - self.train.bytes);
        most.saturating_sub(RECORD_OVERHEAD_BYTES + self.record.frame_bytes)
    }

    /// Writes a frame's header, and returns where its bytes go.
    fn place(&mut self, room: &mut [u8], header: &[u8], bytes: usize, ends_record: bool) -> Range<usize> {
        let at = self.train.bytes + RECORD_HEADER_BYTES + self.record.frame_bytes;
        let body = at + header.len();
        room[at..body].copy_from_slice(header);
        self.record.frame_bytes += header.len() + bytes;
        self.record.packet_bytes += bytes as u64;
        self.record.complete = ends_record;
        body..body + bytes
    }

    /// Nothing yet; outer headers will have this byte of DSCP and ECN.
    pub(crate) fn of_class(class: u8) -> Self {
        Self { train: Train { class, ..Train::default() }, ..Self::default() }
    }

    /// Where the record that is being filled begins, counted from the room's start.
    pub(crate) fn record_at(&self) -> usize {
        self.train.bytes
    }

    /// The record was sealed and has `bytes`. Returns the train before it, if that must leave without it: its records
    /// are shorter.
    pub(crate) fn sealed(&mut self, bytes: usize) -> Option<LoadedTrain> {
        let packets = u32::from(std::mem::take(&mut self.record).packets);
        let before = if self.train.records > 0 && bytes > self.train.record_bytes { self.take() } else { None };
        if self.train.records == 0 {
            self.train.record_bytes = bytes;
        }
        self.ended = bytes < self.train.record_bytes;
        self.train.bytes += bytes;
        self.train.records += 1;
        self.packets += packets;
        before
    }

    /// The record was not sealed; nothing of it stays.
    pub(crate) fn discard_record(&mut self) {
        self.record = RecordFill::default();
    }

    /// Whether no record may follow those there are, given all the bytes there were for them.
    pub(crate) fn is_complete(&self, room_bytes: usize, record_bytes: usize) -> bool {
        self.ended
            || self.train.records >= TRAIN_RECORDS_MAX
            || self.train.bytes + self.train.record_bytes > TRAIN_BYTES_MAX
            || !has_room(room_bytes - self.train.bytes, record_bytes)
    }

    /// Takes the sealed records, if there are any.
    pub(crate) fn take(&mut self) -> Option<LoadedTrain> {
        self.ended = false;
        // What is being filled behind it is of the same class.
        let empty = Train { class: self.train.class, ..Train::default() };
        let taken = (std::mem::replace(&mut self.train, empty), std::mem::take(&mut self.packets));
        (taken.0.records > 0).then_some(taken)
    }
}

/// Whether so many bytes hold a record of up to `record_bytes` and the sentinel behind it.
pub(crate) fn has_room(bytes: usize, record_bytes: usize) -> bool {
    bytes > record_bytes
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ringlane_shared::id::Generation;
    use ringlane_shared::limits::record_bytes_max;
    use ringlane_shared::packet::checksum::Sum;
    use ringlane_shared::packet::segment::Transport;
    use ringlane_shared::route::RouteTable;
    use ringlane_shared::wire::frame::Frames;

    use super::*;
    use crate::sys::vnet_header::Segmentation;

    fn snapshot() -> Snapshot {
        let mut routes = RouteTable::default();
        routes.insert("10.20.0.0/16".parse().unwrap(), PeerIndex(3));
        routes.insert("fd00:20::/64".parse().unwrap(), PeerIndex(4));
        Snapshot { generation: Generation(1), routes: Arc::new(routes), peers: Vec::new() }
    }

    fn udp_v4(payload_bytes: usize) -> Vec<u8> {
        let total = 28 + payload_bytes;
        let mut packet = vec![0x45, 0, (total >> 8) as u8, total as u8, 0, 0, 0, 0, 64, 17, 0, 0];
        packet.extend([10, 10, 0, 2, 10, 20, 0, 2, 0x30, 0x39, 0x14, 0x51, 0, 0, 0, 0]);
        packet.extend(vec![0xab; payload_bytes]);
        packet
    }

    #[test]
    fn a_packet_goes_to_the_peer_that_has_its_destination_without_what_trails_it() {
        let mut packet = udp_v4(40);
        let bytes = packet.len();
        packet.extend([0; 9]);
        let routed = route(&snapshot(), 1, VnetHeader::default(), &mut packet).unwrap();
        assert_eq!(
            (routed.peer, routed.bytes, routed.content),
            (PeerIndex(3), bytes, Content::Packet { is_partial: false })
        );
        packet[16] = 11;
        assert_eq!(route(&snapshot(), 1, VnetHeader::default(), &mut packet), Err(DropReason::NoRoute));
        assert_eq!(route(&snapshot(), 1, VnetHeader::default(), &mut packet[..19]), Err(DropReason::OutboundMalformed));
    }

    #[test]
    fn a_partial_checksum_is_passed_on_and_never_reaches_outside_the_packet() {
        let partial = |start, offset| VnetHeader { partial_checksum: Some((start, offset)), segmentation: None };
        let mut packet = udp_v4(400);
        let routed = route(&snapshot(), 1, partial(20, 6), &mut packet).unwrap();
        assert_eq!(routed.content, Content::Packet { is_partial: true });
        for (start, offset) in [(427, 6), (20, 407), (u16::MAX, 300), (20, u16::MAX), (20, 300)] {
            let result = route(&snapshot(), 1, partial(start, offset), &mut packet);
            assert_eq!(result, Err(DropReason::OutboundMalformed), "{start} {offset}");
        }
        assert_eq!(packet, udp_v4(400));
    }

    #[test]
    fn a_partial_checksum_that_is_not_the_packets_own_is_finished_before_it_leaves() {
        let mut packet = udp_v4(400);
        let header = VnetHeader { partial_checksum: Some((36, 6)), segmentation: None };
        let routed = route(&snapshot(), 1, header, &mut packet).unwrap();
        assert_eq!(routed.content, Content::Packet { is_partial: false });
        assert_eq!(Sum::default().plus(&[0xab; 2]).plus(&packet[36..]).fold(), 0xffff, "the field held 0xabab");
    }

    #[test]
    fn a_super_segment_must_leave_its_own_checksum_partial() {
        let segmentation = |segment_bytes| {
            let (transport, header_bytes) = (Transport::Udp, 28);
            Some(Segmentation { transport, is_ipv6: false, has_cwr: false, segment_bytes, header_bytes })
        };
        let mut packet = udp_v4(400);
        let lengths = [(24, 408u16)];
        lengths.iter().for_each(|(at, bytes)| packet[*at..at + 2].copy_from_slice(&bytes.to_be_bytes()));
        let header = VnetHeader { partial_checksum: Some((20, 6)), segmentation: segmentation(150) };
        let Ok(Routed { content: Content::SuperSegment(split), .. }) = route(&snapshot(), 1, header, &mut packet)
        else {
            panic!("a super-segment");
        };
        assert_eq!((split.pieces(), split.piece_bytes(0), split.piece_bytes(2)), (3, 178, 128));
        for header in [
            VnetHeader { partial_checksum: None, ..header },
            VnetHeader { partial_checksum: Some((20, 16)), ..header },
            VnetHeader { partial_checksum: Some((20, 300)), ..header },
            VnetHeader { segmentation: segmentation(0), ..header },
        ] {
            let routed = route(&snapshot(), 1, header, &mut packet);
            assert_eq!(routed, Err(DropReason::OutboundMalformed), "{header:?}");
        }
    }

    /// Joins a packet to the record that is being filled and writes it there.
    fn join(fill: &mut TrainFill, room: &mut [u8], packet: &[u8]) -> Joined {
        let joined = fill.join(room, record_bytes_max(1420), FramedPacket::Partial, packet.len());
        if let Joined::At(range) = &joined {
            room[range.clone()].copy_from_slice(packet);
        }
        joined
    }

    #[test]
    fn packets_share_a_record_until_it_is_full_and_the_largest_has_one_alone() {
        let mut room = vec![0; 4000];
        let mut fill = TrainFill::default();
        let small = udp_v4(72);
        while let Joined::At(_) = join(&mut fill, &mut room, &small) {}
        assert_eq!(fill.record.packets, 13);
        let frames = &room[RECORD_HEADER_BYTES..][..fill.record.frame_bytes];
        for frame in Frames::new(frames) {
            assert_eq!(&frames[frame.unwrap().payload], &small[..]);
        }
        let mut alone = TrainFill::default();
        assert!(matches!(join(&mut alone, &mut room, &udp_v4(1392)), Joined::At(_)));
        assert_eq!(join(&mut alone, &mut room, &small), Joined::RecordFull);
        assert_eq!(join(&mut TrainFill::default(), &mut room, &udp_v4(1400)), Joined::TooBig);
    }

    #[test]
    fn a_train_has_records_of_one_size_and_perhaps_a_shorter_last_one() {
        let mut fill = TrainFill::default();
        let mut sealed = |bytes| {
            fill.record.packets = 2;
            let before = fill.sealed(bytes).map(|(train, packets)| (train.records, train.record_bytes, packets));
            (before, fill.is_complete(60_000, 1452), fill.record_at())
        };
        assert_eq!(sealed(1449), (None, false, 1449));
        assert_eq!(sealed(1449), (None, false, 2898));
        assert_eq!(sealed(700), (None, true, 3598));
        let (train, packets) = fill.take().unwrap();
        assert_eq!((train, packets), (Train { bytes: 3598, record_bytes: 1449, records: 3, class: 0 }, 6));
        assert_eq!(fill.take(), None);

        let mut sealed = |bytes| {
            fill.record.packets = 1;
            let before = fill.sealed(bytes).map(|(train, packets)| (train.records, train.record_bytes, packets));
            (before, fill.is_complete(60_000, 1452))
        };
        assert_eq!(sealed(300), (None, false));
        assert_eq!(sealed(1449), (Some((1, 300, 1)), false), "a longer one begins another train");
        assert_eq!(sealed(1449), (None, false));
    }

    #[test]
    fn a_train_ends_where_the_kernel_or_the_buffer_takes_no_more() {
        let count = |bytes, room| {
            let mut fill = TrainFill::default();
            while !fill.is_complete(room, 1452) {
                fill.record.packets = 1;
                assert_eq!(fill.sealed(bytes), None);
            }
            fill.take().unwrap().0.records
        };
        assert_eq!(count(100, 65_536), TRAIN_RECORDS_MAX);
        assert_eq!(count(1449, 65_536), 45);
        assert_eq!(count(1449, 5000), 3);
    }
}
