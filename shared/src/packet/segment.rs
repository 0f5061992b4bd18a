//! Splitting super-segments: what the kernel gives out as one packet of up to 64 KiB that a network card would have
//! cut up (TSO, USO), into the packets it stands for.

use thiserror::Error;

use super::checksum::PartialChecksum;
use super::headers::{Headers, TCP_FLAGS_AT, ipv4_id, tcp_flag};
use super::ip::PacketHeader;
use crate::limits::{COALESCE_PIECES_MAX, INNER_MTU_MAX};

pub use super::headers::Transport;

/// Why a packet cannot be split: whoever wrote it to the TUN, or said how to split it, is at fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum SplitError {
    /// The pieces would be empty.
    #[error("super-segment of pieces without payload")]
    NoSegmentBytes,
    /// The bytes are not exactly the packet that its IP header speaks of.
    #[error("super-segment of {stated} bytes in {available}")]
    Length {
        /// What its header says.
        stated: usize,
        /// What there is.
        available: usize,
    },
    /// Another transport than announced, or a fragment.
    #[error("super-segment of another transport than announced, or a fragment of one")]
    Transport,
    /// The transport header makes no sense or reaches past the packet's end.
    #[error("super-segment without a whole transport header")]
    Header,
    /// A length or checksum in the headers is not the packet's.
    #[error("super-segment whose headers do not hold")]
    Untrue,
    /// More pieces than are taken from a peer, or larger ones.
    #[error("super-segment of {pieces} pieces of {piece_bytes} bytes")]
    Bounds {
        /// How many.
        pieces: usize,
        /// The first one, with its headers.
        piece_bytes: usize,
    },
}

/// What was read from the TUN, from its IP header on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    /// One packet; `is_partial` if its TCP or UDP checksum is.
    Packet {
        /// Whether its checksum is yet to be finished.
        is_partial: bool,
    },
    /// A super-segment, and how it splits.
    SuperSegment(Split),
}

/// How one super-segment splits into pieces: packets that differ in payload, lengths, checksums, and what counts them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Split {
    headers: Headers,
    payload_bytes: u32,
    segment_bytes: u16,
    /// The first piece's IPv4 id.
    id: u16,
    /// The first piece's TCP sequence number.
    sequence: u32,
    pieces: u32,
}

impl Split {
    /// How `packet` splits: a super-segment, trimmed to its IP length, which `header` was parsed from, into pieces of
    /// `segment_bytes` of payload each (the kernel's `gso_size`), the last one with what is left.
    ///
    /// The length of the headers is read from the headers: the kernel's `hdr_len` may be something else.
    pub fn new(
        packet: &[u8],
        header: &PacketHeader,
        transport: Transport,
        segment_bytes: u16,
    ) -> Result<Self, SplitError> {
        if segment_bytes == 0 {
            return Err(SplitError::NoSegmentBytes);
        }
        let headers = Headers::read(packet, header, transport)?;
        // `read` has found the headers within the packet, whose length has 17 bits.
        let payload_bytes = packet.len() as u32 - headers.bytes;
        Ok(Self {
            headers,
            payload_bytes,
            segment_bytes,
            id: ipv4_id(packet, headers.is_ipv6),
            sequence: headers.tcp_sequence(packet),
            pieces: payload_bytes.div_ceil(u32::from(segment_bytes)).max(1),
        })
    }

    /// How a super-segment splits that a peer has sent, `packet`, as for [`Self::new`]. It must be all that the kernel's own
    /// are: who writes it to the TUN has the kernel split it by what it says.
    pub fn of_peer(packet: &[u8], header: &PacketHeader, segment_bytes: u16) -> Result<Self, SplitError> {
        let transport = Transport::of(header).ok_or(SplitError::Transport)?;
        let split = Self::new(packet, header, transport, segment_bytes)?;
        let (pieces, piece_bytes) = (split.pieces(), split.piece_bytes(0));
        if !(2..=COALESCE_PIECES_MAX).contains(&pieces) || piece_bytes > usize::from(INNER_MTU_MAX) {
            return Err(SplitError::Bounds { pieces, piece_bytes });
        }
        if !split.headers.are_true(packet, true) {
            return Err(SplitError::Untrue);
        }
        Ok(split)
    }

    /// Writes lengths and checksums afresh into the headers of the super-segment itself, `packet`: [`Self::of_peer`] takes
    /// only right ones, and the kernel leaves to whoever splits what splitting makes anew.
    pub fn restore(&self, packet: &mut [u8]) {
        if let Some(headers) = packet.get_mut(..self.header_bytes()) {
            // There are all the headers that were read.
            let _ = self.headers.finish(headers, self.payload_bytes as usize, self.id);
        }
    }

    /// What it is made of.
    pub fn transport(&self) -> Transport {
        self.headers.transport
    }

    /// IPv6 or IPv4.
    pub fn is_ipv6(&self) -> bool {
        self.headers.is_ipv6
    }

    /// Payload bytes of each piece but the last: the kernel's `gso_size`.
    pub fn segment_bytes(&self) -> u16 {
        self.segment_bytes
    }

    /// Whether the first piece, and it alone, has TCP's CWR flag.
    pub fn has_cwr(&self, packet: &[u8]) -> bool {
        let flags = packet.get(self.headers.ip_bytes as usize + TCP_FLAGS_AT);
        self.headers.transport == Transport::Tcp && flags.is_some_and(|flags| flags & tcp_flag::CWR != 0)
    }

    /// The checksum of the super-segment and of all its pieces.
    pub fn checksum(&self) -> PartialChecksum {
        // IPv6 extensions are walked over so far and no further that 16 bits hold where they end.
        PartialChecksum { start: self.headers.ip_bytes as u16, offset: self.headers.transport.checksum_offset() }
    }

    /// The same super-segment, `packet`, in pieces of at most `piece_bytes_max` with their headers. TCP is a stream that may
    /// be cut anywhere; datagrams stay what they are, and so do packets that somebody may still fragment, whose IPv4 ids
    /// must not be used again so soon.
    #[must_use]
    pub fn narrowed(self, packet: &[u8], piece_bytes_max: usize) -> Self {
        let may_count_on = self.headers.is_ipv6 || packet.get(6).is_some_and(|flags| flags & 0x40 != 0);
        match u16::try_from(piece_bytes_max.saturating_sub(self.header_bytes())) {
            Ok(segment_bytes)
                if self.headers.transport == Transport::Tcp
                    && may_count_on
                    && (1..self.segment_bytes).contains(&segment_bytes) =>
            {
                let pieces = self.payload_bytes.div_ceil(u32::from(segment_bytes)).max(1);
                Self { segment_bytes, pieces, ..self }
            }
            _ => self,
        }
    }

    /// How many pieces there are: at least one, also without any payload; at most as many as payload bytes.
    pub fn pieces(&self) -> usize {
        self.pieces as usize
    }

    /// Bytes of headers before each piece's payload: IP with options or extensions, and transport.
    pub fn header_bytes(&self) -> usize {
        self.headers.bytes as usize
    }

    /// Length of a piece with its headers; the last one may be shorter than the others. 0 beyond the last.
    pub fn piece_bytes(&self, index: usize) -> usize {
        if index >= self.pieces() {
            return 0;
        }
        let before = index * usize::from(self.segment_bytes);
        self.header_bytes() + (self.payload_bytes as usize - before).min(usize::from(self.segment_bytes))
    }

    /// Writes a piece: a whole packet whose transport checksum is partial, its field holding the pseudo-header's sum.
    ///
    /// `packet` is the one that `new` was given, and `out` has exactly [`Self::piece_bytes`]. Anything else is a
    /// mistake of the caller's, and `out` is zeroed rather than left with what was there before.
    pub fn write_piece(&self, packet: &[u8], index: usize, out: &mut [u8]) {
        if index >= self.pieces() || out.len() != self.piece_bytes(index) || self.write(packet, index, out).is_none() {
            out.fill(0);
        }
    }

    fn write(&self, packet: &[u8], index: usize, out: &mut [u8]) -> Option<()> {
        let before = index * usize::from(self.segment_bytes);
        let (headers, payload) = out.split_at_mut_checked(self.header_bytes())?;
        let (packet_headers, packet_payload) = packet.split_at_checked(self.header_bytes())?;
        headers.copy_from_slice(packet_headers);
        payload.copy_from_slice(packet_payload.get(before..before + payload.len())?);

        self.headers.finish(headers, payload.len(), self.id.wrapping_add(index as u16))?;
        if self.headers.transport == Transport::Tcp {
            let tcp = headers.get_mut(self.headers.ip_bytes as usize..)?;
            let sequence = self.sequence.wrapping_add(before as u32);
            tcp.get_mut(4..8)?.copy_from_slice(&sequence.to_be_bytes());
            let flags = tcp.get_mut(TCP_FLAGS_AT)?;
            if index > 0 {
                *flags &= !tcp_flag::CWR;
            }
            if index + 1 < self.pieces() {
                *flags &= !(tcp_flag::FIN | tcp_flag::PSH);
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::checksum::{PartialChecksum, Sum, complete};
    use super::*;

    /// UDP over IPv6 with 2500 bytes of payload.
    fn datagrams() -> Vec<u8> {
        let mut packet = vec![0x61, 0x23, 0x45, 0x67, 0x09, 0xcc, 17, 60];
        packet.extend([0xfd; 16]);
        packet.extend([0xfe; 16]);
        packet.extend([0x30, 0x39, 0, 53, 0x09, 0xcc, 0, 0]);
        packet.extend((0..2500).map(|at| at as u8));
        packet
    }

    #[test]
    fn a_super_segment_of_datagrams_splits_into_whole_ones() {
        let packet = datagrams();
        let header = PacketHeader::parse(&packet).unwrap();
        let split = Split::new(&packet, &header, Transport::Udp, 1000).unwrap();
        assert_eq!((split.pieces(), split.header_bytes()), (3, 48));
        assert_eq!([0, 1, 2, 3].map(|index| split.piece_bytes(index)), [1048, 1048, 548, 0]);
        for index in 0..3 {
            let mut piece = vec![0xee; split.piece_bytes(index)];
            split.write_piece(&packet, index, &mut piece);
            let length = (piece.len() as u16 - 40).to_be_bytes();
            assert_eq!((&piece[4..6], &piece[44..46]), (&length[..], &length[..]));
            assert_eq!(piece[48..], packet[48..][1000 * index..][..piece.len() - 48]);
            complete(&mut piece, PartialChecksum { start: 40, offset: 6 }).unwrap();
            let pseudo_header = Sum::default().plus(&piece[8..40]).plus(&[0, 17]).plus(&length);
            assert_eq!(pseudo_header.plus(&piece[40..]).fold(), 0xffff);
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let packet = datagrams();
        let header = PacketHeader::parse(&packet).unwrap();
        let refused = |packet: &[u8], transport, segment_bytes| {
            Split::new(packet, &header, transport, segment_bytes).expect_err("it makes no sense")
        };
        assert_eq!(refused(&packet, Transport::Udp, 0), SplitError::NoSegmentBytes);
        assert_eq!(refused(&packet, Transport::Tcp, 1000), SplitError::Transport);
        let length = SplitError::Length { stated: 2548, available: 2547 };
        assert_eq!(refused(&packet[..2547], Transport::Udp, 1000), length);

        let mut short = packet[..47].to_vec();
        short[4..6].copy_from_slice(&[0, 7]);
        let header = PacketHeader::parse(&short).unwrap();
        assert_eq!(Split::new(&short, &header, Transport::Udp, 1000), Err(SplitError::Header));
    }

    #[test]
    fn a_piece_that_is_not_there_is_zeros() {
        let packet = datagrams();
        let split = Split::new(&packet, &PacketHeader::parse(&packet).unwrap(), Transport::Udp, 1000).unwrap();
        for (packet, index, bytes) in [(&packet[..], 3, 48), (&packet, 2, 1048), (&packet[..2500], 2, 548)] {
            let mut piece = vec![0xee; bytes];
            split.write_piece(packet, index, &mut piece);
            assert!(piece.iter().all(|&byte| byte == 0), "{index}");
        }
    }
}
