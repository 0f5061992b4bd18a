//! Control to TUN, pure: which packets of a batch are admitted, and how they become writes to the TUN.

use std::net::IpAddr;

use ringlane_shared::drop_reason::DropReason;
use ringlane_shared::id::PeerIndex;
use ringlane_shared::identity::split_service_address;
use ringlane_shared::limits::COALESCE_HEADER_BYTES_MAX;
use ringlane_shared::packet::coalesce::{Joined, Span};
use ringlane_shared::packet::ip::PacketHeader;
use ringlane_shared::packet::segment::{Split, SplitError};
use ringlane_shared::plane::stream::Tally;
use ringlane_shared::plane::{BatchItem, BatchItemForm, PeerEntry};

use crate::inbound::{Rebuilder, admit, admit_addresses};

/// Who has sent a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Origin<'s> {
    /// A peer.
    Peer(PeerIndex, &'s PeerEntry),
    /// The service network.
    Services,
}

impl Origin<'_> {
    /// In tags and counters.
    pub(crate) fn owner(&self) -> PeerIndex {
        match self {
            Self::Peer(index, _) => *index,
            Self::Services => PeerIndex::SERVICES,
        }
    }

    fn admits_source(&self, source: IpAddr) -> bool {
        match (self, source) {
            (Self::Peer(_, entry), source) => entry.admits_source(source),
            (Self::Services, IpAddr::V6(source)) => split_service_address(source).is_some(),
            (Self::Services, IpAddr::V4(_)) => false,
        }
    }
}

/// An item that was admitted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Taken {
    pub(crate) tally: Tally,
    /// A super-segment that the kernel does not take: its pieces are to be written, behind what there is to write.
    pub(crate) apart: Option<Split>,
}

impl Rebuilder {
    /// Takes an item of a batch, which lies at `at` in the batch's memory: to the writes that come of it that memory is
    /// buffer 0. Nothing of lanes is in the making.
    pub(crate) fn item(&mut self, origin: &Origin<'_>, at: usize, item: &BatchItem<'_>) -> Result<Taken, DropReason> {
        match item.form {
            BatchItemForm::Packet { is_partial } => {
                let admits = |source| origin.admits_source(source);
                let (header, checksum) = admit(admits, item.packet, is_partial)?;
                let packet = header.trim(item.packet);
                let Self { coalescer, writes, .. } = self;
                let span = Span { buffer: 0, offset: at as u32, bytes: packet.len() as u32 };
                coalescer.add(origin.owner(), packet, &header, span, checksum, |joined| writes.push(&joined));
                Ok(Taken { tally: Tally { packets: 1, bytes: packet.len() as u64 }, apart: None })
            }
            BatchItemForm::SuperSegment { segment_bytes } => self.super_segment(origin, at, item.packet, segment_bytes),
        }
    }

    fn super_segment(
        &mut self,
        origin: &Origin<'_>,
        at: usize,
        bytes: &[u8],
        segment_bytes: u16,
    ) -> Result<Taken, DropReason> {
        let header = PacketHeader::parse(bytes).map_err(|_| DropReason::PacketMalformed)?;
        admit_addresses(|source| origin.admits_source(source), &header)?;
        let packet = header.trim(bytes);
        let split = Split::of_peer(packet, &header, segment_bytes).map_err(|error| match error {
            SplitError::Bounds { .. } => DropReason::PacketTooBig,
            _ => DropReason::FrameMalformed,
        })?;
        let Self { coalescer, writes, .. } = self;
        coalescer.end_flow(packet, &header, |joined| writes.push(&joined));
        let (pieces, header_bytes) = (split.pieces(), split.header_bytes());
        let bytes = packet.len() + (pieces - 1) * header_bytes;
        let tally = Tally { packets: pieces as u64, bytes: bytes as u64 };
        if !coalescer.joins(split.transport()) || header_bytes > COALESCE_HEADER_BYTES_MAX {
            return Ok(Taken { tally, apart: Some(split) });
        }
        let payload_bytes = (packet.len() - header_bytes) as u32;
        writes.push(&Joined::Super {
            owner: origin.owner(),
            header: &packet[..header_bytes],
            payloads: &[Span { buffer: 0, offset: (at + header_bytes) as u32, bytes: payload_bytes }],
            transport: split.transport(),
            is_ipv6: split.is_ipv6(),
            segment_bytes,
            has_cwr: split.has_cwr(packet),
            checksum: split.checksum(),
            packets: pieces,
        });
        Ok(Taken { tally, apart: None })
    }
}
