//! TUN to network, pure: which peer a packet goes to, and how packets share records.

use ringlane_shared::drop_reason::DropReason;
use ringlane_shared::id::PeerIndex;
use ringlane_shared::limits::{RECORD_HEADER_BYTES, RECORD_OVERHEAD_BYTES, record_bytes_max};
use ringlane_shared::packet::checksum::{PartialChecksum, complete};
use ringlane_shared::packet::flow::flow_hash;
use ringlane_shared::packet::ip::PacketHeader;
use ringlane_shared::plane::Snapshot;
use ringlane_shared::wire::frame::{FrameHeader, FramedPacket};

use crate::sys::vnet_header::VnetHeader;

/// Where a packet from the TUN goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Routed {
    /// To whom.
    pub(crate) peer: PeerIndex,
    /// Which flow it belongs to.
    pub(crate) flow_hash: u32,
    /// Its length without anything that trails it.
    pub(crate) bytes: usize,
    /// Set when its checksum is partial and stays so.
    pub(crate) checksum: Option<PartialChecksum>,
}

/// Routes one packet as read from the TUN. A partial checksum that is not its TCP or UDP header's, as an encapsulated
/// packet may have one, is finished here: peers take no other.
pub(crate) fn route(
    snapshot: &Snapshot,
    hash_seed: u64,
    header: VnetHeader,
    packet: &mut [u8],
) -> Result<Routed, DropReason> {
    if header.segmentation != 0 {
        return Err(DropReason::OutboundMalformed);
    }
    let parsed = PacketHeader::parse(packet).map_err(|_| DropReason::OutboundMalformed)?;
    let peer = *snapshot.routes.lookup(parsed.destination).ok_or(DropReason::NoRoute)?;
    let bytes = parsed.total_bytes;
    let checksum = match header.partial_checksum {
        None => None,
        // No protocol whose checksum the kernel leaves partial has its field that far behind.
        Some((start, offset)) => {
            let offset = u8::try_from(offset).map_err(|_| DropReason::OutboundMalformed)?;
            let partial = PartialChecksum { start, offset };
            if PartialChecksum::of_transport(&parsed) == Some(partial) {
                Some(partial)
            } else {
                complete(&mut packet[..bytes], partial).map_err(|_| DropReason::OutboundMalformed)?;
                None
            }
        }
    };
    Ok(Routed { peer, flow_hash: flow_hash(packet, &parsed, hash_seed), bytes, checksum })
}

/// A record that is being filled. Lives for one turn at most.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct RecordFill {
    /// Bytes of frames so far.
    pub(crate) frame_bytes: usize,
    /// Packets so far.
    pub(crate) packets: u16,
    /// Their bytes.
    pub(crate) packet_bytes: u64,
    /// Nothing may follow.
    pub(crate) complete: bool,
}

/// What became of a packet that was to join a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Joined {
    /// It is in.
    Added,
    /// There is no room left: seal the record and try the next one.
    RecordFull,
    /// It would not fit an empty record either.
    TooBig,
}

impl RecordFill {
    /// Copies a packet into the record buffer behind what is there.
    pub(crate) fn add(
        &mut self,
        record: &mut [u8],
        mtu: u16,
        packet: &[u8],
        checksum: Option<PartialChecksum>,
    ) -> Joined {
        let capacity = record_bytes_max(mtu).min(record.len()).saturating_sub(RECORD_OVERHEAD_BYTES);
        let room = if self.complete { 0 } else { capacity - self.frame_bytes };
        let what = if checksum.is_some() { FramedPacket::Partial } else { FramedPacket::Complete };
        let Some(header) = FrameHeader::fit(what, packet.len(), room) else {
            return if self.packets == 0 { Joined::TooBig } else { Joined::RecordFull };
        };
        let at = RECORD_HEADER_BYTES + self.frame_bytes;
        let body = at + header.as_bytes().len();
        record[at..body].copy_from_slice(header.as_bytes());
        record[body..body + packet.len()].copy_from_slice(packet);
        self.frame_bytes += header.as_bytes().len() + packet.len();
        self.packets += 1;
        self.packet_bytes += packet.len() as u64;
        self.complete = header.ends_record();
        Joined::Added
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ringlane_shared::id::Generation;
    use ringlane_shared::packet::checksum::Sum;
    use ringlane_shared::route::RouteTable;
    use ringlane_shared::wire::frame::Frames;

    use super::*;

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
        assert_eq!((routed.peer, routed.bytes, routed.checksum), (PeerIndex(3), bytes, None));
        packet[16] = 11;
        assert_eq!(route(&snapshot(), 1, VnetHeader::default(), &mut packet), Err(DropReason::NoRoute));
        assert_eq!(route(&snapshot(), 1, VnetHeader::default(), &mut packet[..19]), Err(DropReason::OutboundMalformed));
    }

    #[test]
    fn a_partial_checksum_is_passed_on_and_never_reaches_outside_the_packet() {
        let partial = |start, offset| VnetHeader { partial_checksum: Some((start, offset)), segmentation: 0 };
        let mut packet = udp_v4(400);
        let routed = route(&snapshot(), 1, partial(20, 6), &mut packet).unwrap();
        assert_eq!(routed.checksum, Some(PartialChecksum { start: 20, offset: 6 }));
        for (start, offset) in [(427, 6), (20, 407), (u16::MAX, 300), (20, u16::MAX), (20, 300)] {
            let result = route(&snapshot(), 1, partial(start, offset), &mut packet);
            assert_eq!(result, Err(DropReason::OutboundMalformed), "{start} {offset}");
        }
        assert_eq!(packet, udp_v4(400));
    }

    #[test]
    fn a_partial_checksum_that_is_not_the_packets_own_is_finished_before_it_leaves() {
        let mut packet = udp_v4(400);
        let header = VnetHeader { partial_checksum: Some((36, 6)), segmentation: 0 };
        let routed = route(&snapshot(), 1, header, &mut packet).unwrap();
        assert_eq!(routed.checksum, None);
        assert_eq!(Sum::default().plus(&[0xab; 2]).plus(&packet[36..]).fold(), 0xffff, "the field held 0xabab");
    }

    #[test]
    fn packets_share_a_record_until_it_is_full_and_the_largest_has_one_alone() {
        let mtu = 1420;
        let mut record = vec![0; record_bytes_max(mtu)];
        let mut fill = RecordFill::default();
        let small = udp_v4(72);
        while fill.add(&mut record, mtu, &small, None) == Joined::Added {}
        assert_eq!(fill.packets, 13);
        let frames = &record[RECORD_HEADER_BYTES..][..fill.frame_bytes];
        for frame in Frames::new(frames) {
            assert_eq!(&frames[frame.unwrap().payload], &small[..]);
        }
        let checksum = Some(PartialChecksum { start: 20, offset: 6 });
        let mut alone = RecordFill::default();
        assert_eq!(alone.add(&mut record, mtu, &udp_v4(1392), checksum), Joined::Added);
        assert_eq!(alone.add(&mut record, mtu, &small, None), Joined::RecordFull);
        assert_eq!(RecordFill::default().add(&mut record, mtu, &udp_v4(1400), checksum), Joined::TooBig);
    }
}
