//! Fragment frames: an inner packet that is larger than a record of the path travels in pieces, which say where in which
//! packet they belong.
//!
//! ```text
//! 0                 4             6
//! +-----------------+-------------+------------------+
//! | packet (32)     | offset (16) | bytes, 1 or more |     the payload of a frame of kind 3
//! +-----------------+-------------+------------------+
//! ```
//! The frame's flag `c` says what the packet frame's would of the whole packet, and `n` that the packet goes on behind
//! these bytes. A fragment without `n` ends its packet, so its own end is the packet's length.

use super::frame::{CONTINUES_FLAG, Frame, FrameKind, LENGTH_FLAG, PARTIAL_FLAG};
use crate::limits::{FRAGMENT_BYTES_MIN, FRAGMENT_PLACE_BYTES, FRAME_HEADER_BYTES_MAX, FRAME_HEADER_BYTES_MIN};

/// Largest header of a fragment frame: first byte, length and place.
pub const FRAGMENT_HEADER_BYTES_MAX: usize = FRAME_HEADER_BYTES_MAX + FRAGMENT_PLACE_BYTES;
const FRAGMENT_HEADER_BYTES_MIN: usize = FRAME_HEADER_BYTES_MIN + FRAGMENT_PLACE_BYTES;

/// One piece of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fragment<'a> {
    /// Which of the packets that the lane's sender has cut.
    pub packet: u32,
    /// Where in the packet the bytes belong.
    pub offset: u16,
    /// Whether the packet's TCP or UDP checksum is partial.
    pub is_partial: bool,
    /// Whether the packet goes on behind these bytes.
    pub has_more: bool,
    /// At least one.
    pub bytes: &'a [u8],
}

impl<'a> Fragment<'a> {
    /// Reads `frame`, whose payload is `payload`. `None` if it is no fragment frame.
    pub fn of(frame: &Frame, payload: &'a [u8]) -> Option<Self> {
        let (&[a, b, c, d, high, low], bytes) = payload.split_first_chunk::<FRAGMENT_PLACE_BYTES>()?;
        (frame.kind == FrameKind::Fragment && !bytes.is_empty()).then_some(Self {
            packet: u32::from_be_bytes([a, b, c, d]),
            offset: u16::from_be_bytes([high, low]),
            is_partial: frame.is_partial,
            has_more: frame.continues,
            bytes,
        })
    }
}

/// The part of a packet that is to be sent next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Uncut {
    /// The packet's number.
    pub packet: u32,
    /// Whether its TCP or UDP checksum is partial.
    pub is_partial: bool,
    /// How much of it has been sent.
    pub offset: u16,
    /// How much of it has not.
    pub bytes: usize,
}

/// The header of a fragment frame, and how many bytes of the packet belong behind it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FragmentHeader {
    bytes: [u8; FRAGMENT_HEADER_BYTES_MAX],
    length: u8,
    ends_record: bool,
    /// How many bytes of the packet this fragment takes.
    pub packet_bytes: usize,
}

impl FragmentHeader {
    /// The header of the largest fragment that `room` bytes of a record have place for, or `None` if that is not worth
    /// one. One that does not end its packet ends its record.
    pub fn fit(uncut: Uncut, room: usize) -> Option<Self> {
        let packet_bytes = uncut.bytes.min(room.checked_sub(FRAGMENT_HEADER_BYTES_MIN)?);
        if packet_bytes < uncut.bytes.min(FRAGMENT_BYTES_MIN) || packet_bytes == 0 {
            return None;
        }
        let has_more = packet_bytes < uncut.bytes;
        // As for packets: a record with the length written and at least a one-byte frame behind it can be shared.
        let ends_record = has_more || FRAGMENT_HEADER_BYTES_MAX + packet_bytes + 2 > room;
        let [high, low] = u16::try_from(FRAGMENT_PLACE_BYTES + packet_bytes).ok()?.to_be_bytes();
        let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
        let mut bytes = [0; FRAGMENT_HEADER_BYTES_MAX];
        bytes[0] = (FrameKind::Fragment as u8) << 5
            | flag(!ends_record, LENGTH_FLAG)
            | flag(uncut.is_partial, PARTIAL_FLAG)
            | flag(has_more, CONTINUES_FLAG);
        let place_at = if ends_record { FRAME_HEADER_BYTES_MIN } else { FRAME_HEADER_BYTES_MAX };
        if !ends_record {
            bytes[1..3].copy_from_slice(&[high, low]);
        }
        bytes[place_at..place_at + 4].copy_from_slice(&uncut.packet.to_be_bytes());
        bytes[place_at + 4..place_at + 6].copy_from_slice(&uncut.offset.to_be_bytes());
        let length = (place_at + FRAGMENT_PLACE_BYTES) as u8;
        Some(Self { bytes, length, ends_record, packet_bytes })
    }

    /// The wire bytes that go before the packet's.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    /// Whether the frame has no length, so that nothing may follow it.
    pub fn ends_record(&self) -> bool {
        self.ends_record
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::Frames;
    use super::*;

    #[test]
    fn a_packet_cut_for_any_room_reads_back_byte_by_byte() {
        let packet: Vec<u8> = (0..3000).map(|at| (at * 7) as u8).collect();
        for room in FRAGMENT_HEADER_BYTES_MIN + FRAGMENT_BYTES_MIN..400 {
            let mut read = Vec::<u8>::new();
            while read.len() < packet.len() {
                let (offset, bytes) = (read.len() as u16, packet.len() - read.len());
                let uncut = Uncut { packet: 0x0102_0304, is_partial: room % 2 == 0, offset, bytes };
                let header = FragmentHeader::fit(uncut, room).unwrap();
                let record = [header.as_bytes(), &packet[read.len()..][..header.packet_bytes]].concat();
                assert!(record.len() == room || header.packet_bytes == bytes && record.len() < room);
                let frame = Frames::new(&record).next().unwrap().unwrap();
                let fragment = Fragment::of(&frame, &record[frame.payload.clone()]).unwrap();
                assert_eq!((fragment.packet, fragment.offset), (0x0102_0304, offset));
                assert_eq!((fragment.is_partial, fragment.has_more), (room % 2 == 0, header.packet_bytes < bytes));
                read.extend(fragment.bytes);
            }
            assert_eq!(read, packet);
        }
    }

    #[test]
    fn a_fragment_that_ends_its_packet_lets_others_follow_if_there_is_room() {
        let uncut = Uncut { packet: 1, is_partial: false, offset: 500, bytes: 20 };
        for (room, ends_record) in [(27, true), (30, true), (31, false), (500, false)] {
            let header = FragmentHeader::fit(uncut, room).unwrap();
            assert_eq!((header.packet_bytes, header.ends_record()), (20, ends_record), "{room}");
        }
        assert_eq!(FragmentHeader::fit(uncut, 26), None, "it would leave a part that is not worth a header");
        assert_eq!(FragmentHeader::fit(Uncut { bytes: 0, ..uncut }, 100), None);
        assert_eq!(FragmentHeader::fit(Uncut { bytes: 500, ..uncut }, 38), None);
        assert_eq!(FragmentHeader::fit(Uncut { bytes: 500, ..uncut }, 39).unwrap().packet_bytes, 32);
    }
}
