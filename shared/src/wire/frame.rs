//! Frames: what a record carries between its header and its tag.
//!
//! ```text
//! 0            1                3
//! +------------+----------------+---------+
//! | kkklcn00   | [length (16)]  | payload |
//! +------------+----------------+---------+
//! kkk  kind: 0 pad, 1 packet, 2 segment, 3 fragment, 4 echo
//! l    a length follows; without it the payload ends where the record does
//! c    packet: its TCP or UDP checksum is partial; otherwise zero
//!      fragment: that of its packet is
//! n    segment: continues the segment frame before it; otherwise zero
//!      fragment: others of its packet come behind it
//! ```
//! The two low bits are zero. A frame that ends a record needs no length, so the frame header of a single packet is
//! one byte.
//!
//! A **segment** is a piece of a super-segment: a complete packet whose checksum is partial, so that each piece that
//! arrives is worth something whatever became of the others. One with `n` continues the segment frame before it, which
//! is in the same record or was the last frame of the record with the counter before: same headers, the next bytes.
//! Nothing else is said, so nothing else can be lied about.

use std::ops::Range;

use thiserror::Error;

use crate::limits::FRAGMENT_PLACE_BYTES;
/// Largest frame header: first byte and length.
pub use crate::limits::FRAME_HEADER_BYTES_MAX;

pub(super) const LENGTH_FLAG: u8 = 0b0001_0000;
pub(super) const PARTIAL_FLAG: u8 = 0b0000_1000;
pub(super) const CONTINUES_FLAG: u8 = 0b0000_0100;
const FLAGS: u8 = PARTIAL_FLAG | CONTINUES_FLAG;
const RESERVED: u8 = 0b0000_0011;

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum FrameKind {
    /// Bytes without meaning.
    Pad = 0,
    /// A whole inner packet.
    Packet = 1,
    /// A piece of a super-segment.
    Segment = 2,
    /// A piece of an inner packet that is larger than a record: [`super::fragment::Fragment`].
    Fragment = 3,
    /// A question to the peer's worker, or its answer: [`super::echo::Echo`].
    Echo = 4,
}

/// The frame makes no sense: the peer is at fault, for the record was authentic.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum FrameError {
    /// The header or the stated length reaches past the record's end.
    #[error("frame reaches past the end of its record")]
    Truncated,
    /// A kind this version does not know.
    #[error("frame of unknown kind {0}")]
    UnknownKind(u8),
    /// Bits are set that mean nothing for a frame of this kind.
    #[error("frame with reserved bits {0:#06b} set")]
    Reserved(u8),
    /// A packet, segment or fragment frame without anything of a packet.
    #[error("frame without a packet")]
    Empty,
}

/// One parsed frame. Ranges are offsets into the record's frames as given to [`Frames::new`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// What it is.
    pub kind: FrameKind,
    /// Whether the TCP or UDP checksum of the packet is partial.
    pub is_partial: bool,
    /// Whether a segment continues the segment frame before it, and whether others come behind a fragment.
    pub continues: bool,
    /// Where the payload lies.
    pub payload: Range<usize>,
}

/// The frames of one record, in order. Ends after the first error.
#[derive(Clone, Debug)]
pub struct Frames<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Frames<'a> {
    /// Iterates over the opened frames of a record.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    fn take(&mut self, count: usize) -> Result<Range<usize>, FrameError> {
        let end = self.position + count;
        if end > self.bytes.len() {
            return Err(FrameError::Truncated);
        }
        let range = self.position..end;
        self.position = end;
        Ok(range)
    }

    fn take_u16(&mut self) -> Result<u16, FrameError> {
        let range = self.take(2)?;
        Ok(u16::from_be_bytes([self.bytes[range.start], self.bytes[range.start + 1]]))
    }

    fn parse(&mut self) -> Result<Frame, FrameError> {
        let first = self.bytes[self.take(1)?.start];
        if first & RESERVED != 0 {
            return Err(FrameError::Reserved(first & RESERVED));
        }
        let (kind, allowed) = match first >> 5 {
            0 => (FrameKind::Pad, 0),
            1 => (FrameKind::Packet, PARTIAL_FLAG),
            2 => (FrameKind::Segment, CONTINUES_FLAG),
            3 => (FrameKind::Fragment, PARTIAL_FLAG | CONTINUES_FLAG),
            4 => (FrameKind::Echo, 0),
            other => return Err(FrameError::UnknownKind(other)),
        };
        if first & FLAGS & !allowed != 0 {
            return Err(FrameError::Reserved(first & FLAGS & !allowed));
        }
        let length = if first & LENGTH_FLAG != 0 { Some(self.take_u16()?) } else { None };
        let payload = self.take(length.map_or(self.bytes.len() - self.position, usize::from))?;
        let is_empty = match kind {
            FrameKind::Packet | FrameKind::Segment => payload.is_empty(),
            FrameKind::Fragment => payload.len() <= FRAGMENT_PLACE_BYTES,
            FrameKind::Pad | FrameKind::Echo => false,
        };
        if is_empty {
            return Err(FrameError::Empty);
        }
        let is_partial = kind == FrameKind::Segment || first & PARTIAL_FLAG != 0;
        Ok(Frame { kind, is_partial, continues: first & CONTINUES_FLAG != 0, payload })
    }
}

impl Iterator for Frames<'_> {
    type Item = Result<Frame, FrameError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.position >= self.bytes.len() {
            return None;
        }
        let frame = self.parse();
        if frame.is_err() {
            self.position = self.bytes.len();
        }
        Some(frame)
    }
}

/// Makes a pad of the frame whose header begins with this byte: it stays as long, and means nothing any more.
pub fn make_pad(first_byte: &mut u8) {
    *first_byte &= LENGTH_FLAG;
}

/// What a frame says of the packet in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FramedPacket {
    /// A packet with a complete checksum, or none.
    Complete,
    /// A packet whose own TCP or UDP checksum is partial.
    Partial,
    /// The first piece of a super-segment.
    Segment,
    /// A further piece, right behind the one before it.
    NextSegment,
}

impl FramedPacket {
    /// What to say where nothing tells which frame came before: a piece is a packet like any other.
    pub fn alone(self) -> Self {
        match self {
            Self::Complete => Self::Complete,
            Self::Partial | Self::Segment | Self::NextSegment => Self::Partial,
        }
    }

    fn first_byte(self) -> u8 {
        match self {
            Self::Complete => (FrameKind::Packet as u8) << 5,
            Self::Partial => (FrameKind::Packet as u8) << 5 | PARTIAL_FLAG,
            Self::Segment => (FrameKind::Segment as u8) << 5,
            Self::NextSegment => (FrameKind::Segment as u8) << 5 | CONTINUES_FLAG,
        }
    }
}

/// The header of a packet or segment frame, made to fit what is left of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    bytes: [u8; FRAME_HEADER_BYTES_MAX],
    length: u8,
    ends_record: bool,
}

impl FrameHeader {
    /// The header of a packet of `packet_bytes` for a record with `room` bytes left, or `None` if it does not fit.
    ///
    /// The length is left out where nothing could follow anyway, which is always the case for a packet that fills its
    /// record.
    pub fn fit(what: FramedPacket, packet_bytes: usize, room: usize) -> Option<Self> {
        let [high, low] = u16::try_from(packet_bytes).ok()?.to_be_bytes();
        if 1 + packet_bytes > room {
            return None;
        }
        // A record with the length written and at least a one-byte frame behind it is one that can be shared.
        let ends_record = FRAME_HEADER_BYTES_MAX + packet_bytes + 2 > room;
        let first = what.first_byte();
        Some(match ends_record {
            true => Self { bytes: [first, 0, 0], length: 1, ends_record },
            false => Self { bytes: [first | LENGTH_FLAG, high, low], length: 3, ends_record },
        })
    }

    /// The wire bytes that go before the packet.
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
    use super::*;

    fn record(packets: &[(&[u8], FramedPacket)], room: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (packet, what) in packets {
            let header = FrameHeader::fit(*what, packet.len(), room - bytes.len()).expect("fits");
            bytes.extend_from_slice(header.as_bytes());
            bytes.extend_from_slice(packet);
        }
        assert!(bytes.len() <= room);
        bytes
    }

    #[test]
    fn packets_read_back_in_order_with_what_was_said_of_them() {
        use FramedPacket::{Complete, NextSegment, Partial, Segment};
        let (small, large) = ([1u8; 60], [2u8; 900]);
        let bytes = record(
            &[(&small, Partial), (&large, Complete), (&small, Segment), (&small, NextSegment), (&small, Complete)],
            1424,
        );
        let frames: Vec<_> = Frames::new(&bytes).map(|frame| frame.unwrap()).collect();
        let said: Vec<_> = frames.iter().map(|frame| (frame.kind, frame.is_partial, frame.continues)).collect();
        assert_eq!(
            said,
            [
                (FrameKind::Packet, true, false),
                (FrameKind::Packet, false, false),
                (FrameKind::Segment, true, false),
                (FrameKind::Segment, true, true),
                (FrameKind::Packet, false, false),
            ]
        );
        assert_eq!(&bytes[frames[1].payload.clone()], &large);
        assert_eq!(&bytes[frames[4].payload.clone()], &small);
    }

    #[test]
    fn a_packet_that_fills_its_record_has_the_shortest_header() {
        let packet = [7u8; 1420];
        let bytes = record(&[(&packet, FramedPacket::NextSegment)], 1421);
        assert_eq!(bytes.len(), 1421);
        assert_eq!(Frames::new(&bytes).next().unwrap().unwrap().payload, 1..1421);
        assert_eq!(FrameHeader::fit(FramedPacket::Complete, 1420, 1420), None);
        assert_eq!(FrameHeader::fit(FramedPacket::Complete, 65_536, 70_000), None);
    }

    #[test]
    fn every_room_either_holds_the_packet_or_says_no() {
        for room in 0..80 {
            match FrameHeader::fit(FramedPacket::Partial, 40, room) {
                Some(header) => {
                    assert!(header.as_bytes().len() + 40 <= room);
                    let mut bytes = header.as_bytes().to_vec();
                    bytes.extend([0u8; 40]);
                    assert_eq!(Frames::new(&bytes).next().unwrap().unwrap().payload.len(), 40);
                }
                None => assert!(room < 41),
            }
        }
    }

    #[test]
    fn nonsense_is_an_error_and_ends_the_record() {
        let cases: [(&[u8], FrameError); 10] = [
            (&[0b0011_0000, 0], FrameError::Truncated),
            (&[0b0011_0000, 0, 9, 1, 2], FrameError::Truncated),
            (&[0b1010_0000, 1], FrameError::UnknownKind(5)),
            (&[0b0010_0001, 1], FrameError::Reserved(1)),
            (&[0b0010_0100, 1], FrameError::Reserved(0b100)),
            (&[0b0100_1000, 1], FrameError::Reserved(0b1000)),
            (&[0b0000_1100, 1], FrameError::Reserved(0b1100)),
            (&[0b0010_0000], FrameError::Empty),
            (&[0b0101_0000, 0, 0], FrameError::Empty),
            (&[0b0110_1100, 0, 0, 0, 0, 0, 0], FrameError::Empty),
        ];
        for (bytes, error) in cases {
            let frames: Vec<_> = Frames::new(bytes).collect();
            assert_eq!(frames, [Err(error)], "{bytes:?}");
        }
    }

    #[test]
    fn a_pad_frame_swallows_the_rest() {
        let mut bytes = record(&[(&[5; 30], FramedPacket::Complete)], 500);
        bytes.extend([0; 40]);
        let kinds: Vec<_> = Frames::new(&bytes).map(|frame| frame.unwrap().kind).collect();
        assert_eq!(kinds, [FrameKind::Packet, FrameKind::Pad]);
    }
}
