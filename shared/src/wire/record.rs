//! The header of a record, and the look at a datagram's first byte that tells everything on a lane's port apart.
//!
//! ```text
//! 0         1              4                      12
//! +---------+--------------+----------------------+---------------+---------+
//! | 0x30 |  | lane id (24) | counter (64)         | sealed frames | tag 16  |
//! | epoch   |              |                      |               |         |
//! +---------+--------------+----------------------+---------------+---------+
//! ```
//! All integers are big-endian. The twelve bytes of the header are the AEAD's additional data.

use thiserror::Error;

use crate::id::LaneId;
use crate::limits::{RECORD_HEADER_BYTES, RECORD_OVERHEAD_BYTES};

/// What a datagram on a lane's port claims to be, by its first byte alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DatagramKind {
    /// A sealed record: `0011eeee`.
    Record,
    /// QUIC with the fixed bit set (greasing is off): long header `11......` or short header `01......`.
    Quic,
    /// A path probe of ours: `0010000.`.
    Probe,
    /// An end of a relayed lane that shows the relay where it is, or the answer: `0x28` to `0x2b`.
    Bind,
    /// A STUN message (RFC 8489): `000000..`.
    Stun,
    /// The one-byte datagram that works around segmentation offload of broken drivers; ignored.
    Sentinel,
    /// Anything else.
    Unknown,
}

impl DatagramKind {
    /// Classifies a datagram of any length, including none.
    pub fn of(datagram: &[u8]) -> Self {
        match datagram {
            [] => Self::Unknown,
            [_] => Self::Sentinel,
            [first, ..] => match first {
                0x00..=0x03 => Self::Stun,
                0x20..=0x21 => Self::Probe,
                0x28..=0x2b => Self::Bind,
                0x30..=0x3f => Self::Record,
                0x40..=0x7f | 0xc0..=0xff => Self::Quic,
                _ => Self::Unknown,
            },
        }
    }
}

/// An epoch as the wire shows it: its number mod 16.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EpochTag(u8);

impl EpochTag {
    /// The tag of epoch number `epoch`.
    pub fn of_epoch(epoch: u64) -> Self {
        Self((epoch & 0x0f) as u8)
    }

    /// The four bits.
    pub fn get(self) -> u8 {
        self.0
    }
}

/// The readable part of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordHeader {
    /// Which keys sealed it.
    pub epoch: EpochTag,
    /// The receiver's name for the lane.
    pub lane: LaneId,
    /// Rises by one with each record of an epoch; the nonce is made of it.
    pub counter: u64,
}

/// The datagram cannot be a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum RecordError {
    /// Shorter than a header and a tag.
    #[error("record of {0} bytes is shorter than its header and tag")]
    Short(usize),
    /// The first four bits are not `0011`.
    #[error("first byte {0:#04x} is not a record's")]
    Kind(u8),
}

impl RecordHeader {
    /// Reads the header of a datagram.
    pub fn parse(datagram: &[u8]) -> Result<Self, RecordError> {
        if datagram.len() < RECORD_OVERHEAD_BYTES {
            return Err(RecordError::Short(datagram.len()));
        }
        let Some(&[first, a, b, c, ref counter @ ..]) = datagram.first_chunk::<RECORD_HEADER_BYTES>() else {
            return Err(RecordError::Short(datagram.len()));
        };
        if first & 0xf0 != 0x30 {
            return Err(RecordError::Kind(first));
        }
        Ok(Self {
            epoch: EpochTag(first & 0x0f),
            lane: LaneId::from_be_bytes([a, b, c]),
            counter: u64::from_be_bytes(*counter),
        })
    }

    /// The header's wire bytes.
    pub fn to_bytes(self) -> [u8; RECORD_HEADER_BYTES] {
        let mut bytes = [0; RECORD_HEADER_BYTES];
        bytes[0] = 0x30 | self.epoch.0;
        bytes[1..4].copy_from_slice(&self.lane.to_be_bytes());
        bytes[4..].copy_from_slice(&self.counter.to_be_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::RECORD_TAG_BYTES;

    #[test]
    fn a_header_reads_back_as_written() {
        let header = RecordHeader {
            epoch: EpochTag::of_epoch(0x1_000b),
            lane: LaneId::new(0x00ab_cdef).unwrap(),
            counter: 0x0102_0304_0506_0708,
        };
        let mut record = header.to_bytes().to_vec();
        assert_eq!(record, [0x3b, 0xab, 0xcd, 0xef, 1, 2, 3, 4, 5, 6, 7, 8]);
        record.extend([0; RECORD_TAG_BYTES]);
        assert_eq!(RecordHeader::parse(&record), Ok(header));
    }

    #[test]
    fn what_cannot_hold_a_tag_is_no_record() {
        for length in 0..RECORD_OVERHEAD_BYTES {
            assert_eq!(RecordHeader::parse(&vec![0x30; length]), Err(RecordError::Short(length)));
        }
    }

    #[test]
    fn the_first_byte_tells_every_kind_apart() {
        let kind = |first: u8| DatagramKind::of(&[first, 0]);
        for first in 0..=u8::MAX {
            let expected = match first {
                0..=3 => DatagramKind::Stun,
                0x20 | 0x21 => DatagramKind::Probe,
                0x28..=0x2b => DatagramKind::Bind,
                first if first >> 4 == 3 => DatagramKind::Record,
                first if first & 0x40 != 0 => DatagramKind::Quic,
                _ => DatagramKind::Unknown,
            };
            assert_eq!(kind(first), expected, "{first:#04x}");
        }
        assert_eq!(DatagramKind::of(&[]), DatagramKind::Unknown);
        assert_eq!(DatagramKind::of(&[0x30]), DatagramKind::Sentinel);
    }
}
