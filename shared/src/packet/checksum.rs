//! The Internet checksum (RFC 1071), and finishing one that the kernel left partial.

use thiserror::Error;

use super::ip::{PacketHeader, protocol};

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
    /// The checksum of the packet's own TCP or UDP header, the only one that peers take from each other. `None` where
    /// there is no such header, or not all of it.
    ///
    /// Whoever finishes any other one, at any place a peer likes, rewrites two bytes of a packet after it was looked at:
    /// its source address, say.
    pub fn of_transport(packet: &PacketHeader) -> Option<Self> {
        let offset = match packet.protocol {
            protocol::TCP => 16,
            protocol::UDP => 6,
            _ => return None,
        };
        let start = u16::try_from(packet.transport_offset).ok()?;
        Some(Self { start, offset }).filter(|partial| !packet.is_fragment && partial.fits(packet.total_bytes))
    }

    /// Whether the field it speaks of lies within a packet of `packet_bytes`.
    pub fn fits(self, packet_bytes: usize) -> bool {
        usize::from(self.start) + usize::from(self.offset) + 2 <= packet_bytes
    }
}

/// The partial checksum's field lies outside the packet: who made the packet is at fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("partial checksum lies outside its packet")]
pub struct ChecksumError;

/// A one's complement sum of 16-bit words, added up in as many parts as the caller likes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sum {
    sum: u64,
    /// Whether an odd number of bytes went in, so that the next one is a word's second half.
    odd: bool,
}

impl Sum {
    /// Adds bytes, of any number, behind those added before.
    ///
    /// Words are added four bytes at a time in the machine's own byte order, which the one's complement sum does not
    /// mind (RFC 1071, section 2), and which compilers vectorise.
    #[must_use]
    pub fn plus(self, bytes: &[u8]) -> Self {
        let (words, rest) = bytes.as_chunks::<4>();
        let mut sum: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        sum += u64::from(u32::from_ne_bytes(last));
        let mut folded = u16::from_be(fold(sum));
        if self.odd {
            folded = folded.swap_bytes();
        }
        Self { sum: self.sum + u64::from(folded), odd: self.odd ^ (bytes.len() % 2 == 1) }
    }

    /// The sum, folded into 16 bits. A checksum is its complement.
    pub fn fold(self) -> u16 {
        fold(self.sum)
    }
}

/// Adds the carries back until there are none: at most four steps.
pub(super) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

/// Finishes a checksum in place: the field holds the pseudo-header's sum, and what goes there is the checksum of
/// everything from `start` to the packet's end, which `packet` must not go beyond.
///
/// A result of zero is written as 0xffff, as the kernel does: the same number in one's complement, and to UDP zero
/// would mean that there is no checksum (RFC 768).
pub fn complete(packet: &mut [u8], partial: PartialChecksum) -> Result<(), ChecksumError> {
    if !partial.fits(packet.len()) {
        return Err(ChecksumError);
    }
    let covered = &mut packet[usize::from(partial.start)..];
    let checksum = match !Sum::default().plus(covered).fold() {
        0 => 0xffff,
        checksum => checksum,
    };
    covered[usize::from(partial.offset)..][..2].copy_from_slice(&checksum.to_be_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rfcs_own_example_adds_up() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::default().plus(&bytes).fold(), 0xddf2);
        assert_eq!(Sum::default().plus(&bytes[..3]).plus(&bytes[3..]).fold(), 0xddf2);
        assert_eq!(Sum::default().plus(&[0xff]).fold(), 0xff00);
    }

    #[test]
    fn a_finished_checksum_verifies_with_its_pseudo_header() {
        let pseudo_header = [10, 0, 0, 1, 10, 0, 0, 2, 0, 17, 0, 13];
        let mut packet = vec![0x45; 20];
        packet.extend([0x1f, 0x90, 0, 53, 0, 13, 0, 0, b'h', b'e', b'l', b'l', b'o']);
        let seed = Sum::default().plus(&pseudo_header).fold();
        packet[26..28].copy_from_slice(&seed.to_be_bytes());
        complete(&mut packet, PartialChecksum { start: 20, offset: 6 }).unwrap();
        assert_eq!(Sum::default().plus(&pseudo_header).plus(&packet[20..]).fold(), 0xffff);
        assert_eq!(&packet[..20], &[0x45; 20]);
    }

    #[test]
    fn a_checksum_of_zero_is_written_as_its_other_form() {
        let mut packet = [0xff, 0xff, 0, 0];
        complete(&mut packet, PartialChecksum { start: 0, offset: 2 }).unwrap();
        assert_eq!(packet, [0xff; 4]);
    }

    #[test]
    fn a_field_outside_the_packet_is_refused() {
        let mut packet = [0; 40];
        for (start, offset) in [(39, 0), (20, 19), (40, 0), (u16::MAX, u8::MAX)] {
            assert_eq!(complete(&mut packet, PartialChecksum { start, offset }), Err(ChecksumError));
        }
        assert_eq!(complete(&mut packet, PartialChecksum { start: 20, offset: 18 }), Ok(()));
    }
}
