//! Frames: what a record carries between its header and its tag.
//!
//! ```text
//! 0            1                3                 5        6
//! +------------+----------------+-----------------+--------+---------+
//! | kkklc000   | [length (16)]  | [start (16)     | offset]| payload |
//! +------------+----------------+-----------------+--------+---------+
//! kkk  kind: 0 pad, 1 packet, 2 segment, 3 fragment
//! l    a length follows; without it the payload ends where the record does
//! c    checksum partial: its start and offset follow (as the kernel's csum_start and csum_offset)
//! ```
//! The three low bits are zero. A frame that ends a record needs no length, so the frame header of a single packet is
//! 1 byte, or 4 with a partial checksum.

use std::ops::Range;

use thiserror::Error;

use crate::packet::ip::{PacketHeader, protocol};

/// Largest frame header: first byte, length, checksum start and offset.
pub use crate::limits::FRAME_HEADER_BYTES_MAX;

const LENGTH_FLAG: u8 = 0b0001_0000;
const PARTIAL_FLAG: u8 = 0b0000_1000;
const RESERVED: u8 = 0b0000_0111;

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum FrameKind {
    /// Bytes without meaning.
    Pad = 0,
    /// A whole inner packet.
    Packet = 1,
    /// A piece of a super-segment. Reserved: not agreed on by this version.
    Segment = 2,
    /// A piece of an inner packet that is larger than the record. Reserved: not agreed on by this version.
    Fragment = 3,
}

/// A checksum that covers `start..` of the packet and belongs at `start + offset`, and of which only the
/// pseudo-header's part is there: the kernel, or the far end's kernel, finishes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartialChecksum {
    /// Where summing starts: bytes from the packet's first, the kernel's `csum_start`.
    pub start: u16,
    /// Where the sum goes: bytes from `start`, the kernel's `csum_offset`.
    pub offset: u8,
}

impl PartialChecksum {
    /// Whether the field it speaks of lies within a packet of `packet_bytes`.
    pub fn fits(self, packet_bytes: usize) -> bool {
        usize::from(self.start) + usize::from(self.offset) + 2 <= packet_bytes
    }

    /// Whether it is the checksum of the packet's own TCP or UDP header. Whoever finishes any other one, at any place a
    /// peer likes, rewrites two bytes of a packet after it was looked at: its source address, say.
    pub fn is_transports(self, packet: &PacketHeader) -> bool {
        let offset = match packet.protocol {
            protocol::TCP => 16,
            protocol::UDP => 6,
            _ => return false,
        };
        !packet.is_fragment
            && usize::from(self.start) == packet.transport_offset
            && self.offset == offset
            && self.fits(packet.total_bytes)
    }
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
    /// Reserved bits are set.
    #[error("frame with reserved bits {0:#05b} set")]
    Reserved(u8),
    /// The partial checksum's field lies outside the packet.
    #[error("partial checksum lies outside its packet")]
    Checksum,
    /// A packet frame without a packet.
    #[error("packet frame without a packet")]
    Empty,
}

/// One parsed frame. Ranges are offsets into the record's frames as given to [`Frames::new`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// What it is.
    pub kind: FrameKind,
    /// Set when the payload's checksum is partial.
    pub checksum: Option<PartialChecksum>,
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
        let kind = match first >> 5 {
            0 => FrameKind::Pad,
            1 => FrameKind::Packet,
            2 => FrameKind::Segment,
            3 => FrameKind::Fragment,
            other => return Err(FrameError::UnknownKind(other)),
        };
        let length = if first & LENGTH_FLAG != 0 { Some(self.take_u16()?) } else { None };
        let checksum = if first & PARTIAL_FLAG != 0 {
            let start = self.take_u16()?;
            let offset = self.bytes[self.take(1)?.start];
            Some(PartialChecksum { start, offset })
        } else {
            None
        };
        let payload = self.take(length.map_or(self.bytes.len() - self.position, usize::from))?;
        if kind == FrameKind::Packet && payload.is_empty() {
            return Err(FrameError::Empty);
        }
        if checksum.is_some_and(|checksum| !checksum.fits(payload.len())) {
            return Err(FrameError::Checksum);
        }
        Ok(Frame { kind, checksum, payload })
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

/// The header of a packet frame, made to fit what is left of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PacketFrameHeader {
    bytes: [u8; FRAME_HEADER_BYTES_MAX],
    length: u8,
    ends_record: bool,
}

impl PacketFrameHeader {
    /// The header of a packet of `packet_bytes` for a record with `room` bytes left, or `None` if it does not fit.
    ///
    /// The length is left out where nothing could follow anyway, which is always the case for a packet that fills its
    /// record.
    pub fn fit(packet_bytes: usize, checksum: Option<PartialChecksum>, room: usize) -> Option<Self> {
        let short = 1 + if checksum.is_some() { 3 } else { 0 };
        let length = u16::try_from(packet_bytes).ok()?;
        if short + packet_bytes > room {
            return None;
        }
        // A record with the length written and at least a one-byte frame behind it is one that can be shared.
        let ends_record = short + 2 + packet_bytes + 2 > room;
        let mut header = Self { bytes: [0; FRAME_HEADER_BYTES_MAX], length: 0, ends_record };
        let mut first = (FrameKind::Packet as u8) << 5;
        if !ends_record {
            first |= LENGTH_FLAG;
        }
        if checksum.is_some() {
            first |= PARTIAL_FLAG;
        }
        header.push(&[first]);
        if !ends_record {
            header.push(&length.to_be_bytes());
        }
        if let Some(checksum) = checksum {
            header.push(&checksum.start.to_be_bytes());
            header.push(&[checksum.offset]);
        }
        Some(header)
    }

    fn push(&mut self, bytes: &[u8]) {
        let at = usize::from(self.length);
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len() as u8;
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

    fn record(packets: &[(&[u8], Option<PartialChecksum>)], room: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (packet, checksum) in packets {
            let header = PacketFrameHeader::fit(packet.len(), *checksum, room - bytes.len()).expect("fits");
            bytes.extend_from_slice(header.as_bytes());
            bytes.extend_from_slice(packet);
        }
        assert!(bytes.len() <= room);
        bytes
    }

    #[test]
    fn packets_read_back_in_order_with_their_checksums() {
        let checksum = Some(PartialChecksum { start: 20, offset: 16 });
        let (small, large) = ([1u8; 60], [2u8; 900]);
        let bytes = record(&[(&small, checksum), (&large, None), (&small, None)], 1424);
        let frames: Vec<_> = Frames::new(&bytes).map(|frame| frame.unwrap()).collect();
        assert_eq!(frames.len(), 3);
        assert_eq!(frames[0].checksum, checksum);
        assert_eq!(&bytes[frames[1].payload.clone()], &large);
        assert_eq!(&bytes[frames[2].payload.clone()], &small);
    }

    #[test]
    fn a_packet_that_fills_its_record_has_the_shortest_header() {
        let packet = [7u8; 1420];
        let plain = record(&[(&packet, None)], 1421);
        assert_eq!(plain.len(), 1421);
        let partial = record(&[(&packet, Some(PartialChecksum { start: 40, offset: 16 }))], 1424);
        assert_eq!(partial.len(), 1424);
        assert_eq!(Frames::new(&partial).next().unwrap().unwrap().payload, 4..1424);
        assert_eq!(PacketFrameHeader::fit(1420, None, 1420), None);
    }

    #[test]
    fn every_room_either_holds_the_packet_or_says_no() {
        for room in 0..80 {
            for checksum in [None, Some(PartialChecksum { start: 20, offset: 6 })] {
                match PacketFrameHeader::fit(40, checksum, room) {
                    Some(header) => {
                        assert!(header.as_bytes().len() + 40 <= room);
                        let mut bytes = header.as_bytes().to_vec();
                        bytes.extend([0u8; 40]);
                        let frame = Frames::new(&bytes).next().unwrap().unwrap();
                        assert_eq!((frame.payload.len(), frame.checksum), (40, checksum));
                    }
                    None => assert!(room < 41 + checksum.map_or(0, |_| 3)),
                }
            }
        }
    }

    #[test]
    fn nonsense_is_an_error_and_ends_the_record() {
        let cases: [(&[u8], FrameError); 6] = [
            (&[0b0011_0000, 0], FrameError::Truncated),
            (&[0b0011_0000, 0, 9, 1, 2], FrameError::Truncated),
            (&[0b1000_0000, 1], FrameError::UnknownKind(4)),
            (&[0b0010_0001, 1], FrameError::Reserved(1)),
            (&[0b0010_1000, 0, 1, 0, 1, 2], FrameError::Checksum),
            (&[0b0010_0000], FrameError::Empty),
        ];
        for (bytes, error) in cases {
            let frames: Vec<_> = Frames::new(bytes).collect();
            assert_eq!(frames, [Err(error)], "{bytes:?}");
        }
    }

    #[test]
    fn a_pad_frame_swallows_the_rest() {
        let mut bytes = record(&[(&[5; 30], None)], 500);
        bytes.extend([0; 40]);
        let kinds: Vec<_> = Frames::new(&bytes).map(|frame| frame.unwrap().kind).collect();
        assert_eq!(kinds, [FrameKind::Packet, FrameKind::Pad]);
    }
}
