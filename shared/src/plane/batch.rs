//! Packets on their way between a worker and control, many to an allocation: those of the carrier `stream`, which control
//! writes to libp2p streams, and those of the service network, whose TCP stack control runs.

use crate::id::PeerIndex;
use crate::limits::BATCH_BYTES_MAX;

/// Bytes in front of each packet: kind, segment size, length.
const HEADER_BYTES: usize = 7;

const PACKET: u8 = 0;
const PARTIAL_PACKET: u8 = 1;
const SUPER_SEGMENT: u8 = 2;

/// Who is at control's end of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BatchEnd {
    /// A peer that packets reach by the carrier `stream`.
    Peer(PeerIndex),
    /// The service network.
    Services,
}

/// What packets a stream takes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum StreamForm {
    /// Single packets of at most [`STREAM_PACKET_BYTES_MAX`](crate::limits::STREAM_PACKET_BYTES_MAX) bytes with all their
    /// checksums: of Hyprspace nodes, and of the service network.
    Whole,
    /// Super-segments and partial checksums as the kernel gave them out: between Ringlane nodes.
    Offloaded,
}

/// What a packet of a batch is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BatchItemForm {
    /// One packet.
    Packet {
        /// Its TCP or UDP checksum is yet to be finished.
        is_partial: bool,
    },
    /// A super-segment of the transport that its headers name, its checksum unfinished, to be split into pieces with so
    /// many bytes of payload.
    SuperSegment {
        /// Payload bytes of a piece, the kernel's `gso_size`; never 0.
        segment_bytes: u16,
    },
}

/// A packet of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchItem<'b> {
    /// What it is.
    pub form: BatchItemForm,
    /// The packet, from its IP header on.
    pub packet: &'b [u8],
}

/// Up to [`BATCH_BYTES_MAX`] bytes of packets to or from one end, in order. An empty one given to a worker brings it memory
/// for others, and nothing else.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PacketBatch {
    end: BatchEnd,
    bytes: Vec<u8>,
    packets: u32,
}

impl PacketBatch {
    /// An empty one, in memory that an earlier one may have left ([`Self::into_memory`]).
    pub fn new(end: BatchEnd, mut memory: Vec<u8>) -> Self {
        memory.clear();
        Self { end, bytes: memory, packets: 0 }
    }

    /// Adds a packet, if there is room: a batch that is not empty has none for what exceeds [`BATCH_BYTES_MAX`].
    pub fn push(&mut self, form: BatchItemForm, packet: &[u8]) -> bool {
        if !self.is_empty() && self.bytes.len() + HEADER_BYTES + packet.len() > BATCH_BYTES_MAX {
            return false;
        }
        let Ok(length) = u32::try_from(packet.len()) else { return false };
        let (kind, segment_bytes) = match form {
            BatchItemForm::Packet { is_partial: false } => (PACKET, 0),
            BatchItemForm::Packet { is_partial: true } => (PARTIAL_PACKET, 0),
            BatchItemForm::SuperSegment { segment_bytes } => (SUPER_SEGMENT, segment_bytes),
        };
        self.bytes.push(kind);
        self.bytes.extend_from_slice(&segment_bytes.to_le_bytes());
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(packet);
        self.packets += 1;
        true
    }

    /// Who is at control's end.
    pub fn end(&self) -> BatchEnd {
        self.end
    }

    /// How many packets and super-segments are in it.
    pub fn packets(&self) -> u32 {
        self.packets
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.packets == 0
    }

    /// Bytes it takes up.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// What is in it, in order.
    pub fn items(&self) -> impl Iterator<Item = BatchItem<'_>> {
        self.items_at().map(|(_, item)| item)
    }

    /// As [`Self::items`], each with where its packet begins in [`Self::memory`].
    pub fn items_at(&self) -> impl Iterator<Item = (usize, BatchItem<'_>)> {
        let mut rest = self.bytes.as_slice();
        std::iter::from_fn(move || {
            let at = self.bytes.len() - rest.len() + HEADER_BYTES;
            let (&[kind, s0, s1, l0, l1, l2, l3], packets) = rest.split_first_chunk::<HEADER_BYTES>()?;
            let (packet, others) = packets.split_at_checked(u32::from_le_bytes([l0, l1, l2, l3]) as usize)?;
            rest = others;
            let form = match kind {
                SUPER_SEGMENT => BatchItemForm::SuperSegment { segment_bytes: u16::from_le_bytes([s0, s1]) },
                kind => BatchItemForm::Packet { is_partial: kind == PARTIAL_PACKET },
            };
            Some((at, BatchItem { form, packet }))
        })
    }

    /// The bytes that its packets lie in.
    pub fn memory(&self) -> &[u8] {
        &self.bytes
    }

    /// Its memory, for another.
    pub fn into_memory(self) -> Vec<u8> {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out_in_order() {
        let mut batch = PacketBatch::new(BatchEnd::Services, vec![1, 2, 3]);
        let items = [
            (BatchItemForm::Packet { is_partial: false }, vec![1; 20]),
            (BatchItemForm::SuperSegment { segment_bytes: 1380 }, vec![2; 60_000]),
            (BatchItemForm::Packet { is_partial: true }, vec![]),
        ];
        assert!(items.iter().all(|(form, packet)| batch.push(*form, packet)));
        let out: Vec<_> = batch.items().map(|item| (item.form, item.packet.to_vec())).collect();
        assert_eq!(out, items);
        assert!(batch.items_at().all(|(at, item)| batch.memory()[at..].starts_with(item.packet)));
        assert_eq!(batch.packets(), 3);
    }

    #[test]
    fn a_full_one_takes_no_more_and_an_empty_one_any_packet() {
        let mut batch = PacketBatch::new(BatchEnd::Peer(PeerIndex(1)), Vec::new());
        let packet = vec![0; 1420];
        let form = BatchItemForm::Packet { is_partial: false };
        while batch.push(form, &packet) {}
        assert!(batch.bytes() <= BATCH_BYTES_MAX && batch.bytes() > BATCH_BYTES_MAX - 1500);
        assert!(PacketBatch::new(BatchEnd::Services, Vec::new()).push(form, &vec![0; BATCH_BYTES_MAX]));
    }
}
