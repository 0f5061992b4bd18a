//! Headers that many packets of one flow share: what stays the same is added up once, the rest is written per packet.

use super::checksum::{Sum, fold};
use super::ip::{IPV4_HEADER_BYTES_MIN, IPV6_HEADER_BYTES, PacketHeader, protocol};
use super::segment::SplitError;

/// Bytes of a TCP header without options.
pub(super) const TCP_HEADER_BYTES_MIN: usize = 20;
/// Bytes of a UDP header.
pub(super) const UDP_HEADER_BYTES: usize = 8;

/// Bits of the TCP header's byte [`TCP_FLAGS_AT`].
pub(super) mod tcp_flag {
    pub(in super::super) const FIN: u8 = 0x01;
    pub(in super::super) const PSH: u8 = 0x08;
    pub(in super::super) const ACK: u8 = 0x10;
    pub(in super::super) const ECE: u8 = 0x40;
    pub(in super::super) const CWR: u8 = 0x80;
}
/// Where the TCP header has its flags.
pub(super) const TCP_FLAGS_AT: usize = 13;

/// The transports that have super-segments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// TCP: a stream, cut anywhere.
    Tcp,
    /// UDP: datagrams of equal length, the last one perhaps shorter.
    Udp,
}

impl Transport {
    /// The transport of a packet that is no fragment.
    pub fn of(header: &PacketHeader) -> Option<Self> {
        match header.protocol {
            _ if header.is_fragment => None,
            protocol::TCP => Some(Self::Tcp),
            protocol::UDP => Some(Self::Udp),
            _ => None,
        }
    }

    /// Where its header has the checksum: bytes from the header's first.
    pub fn checksum_offset(self) -> u8 {
        match self {
            Self::Tcp => 16,
            Self::Udp => 6,
        }
    }

    fn protocol(self) -> u8 {
        match self {
            Self::Tcp => protocol::TCP,
            Self::Udp => protocol::UDP,
        }
    }

    /// Length of the header that `segment` begins with, if all of it is there and says so.
    fn header_bytes(self, segment: &[u8]) -> Option<usize> {
        let header_bytes = match self {
            Self::Tcp => usize::from(segment.get(12)? >> 4) * 4,
            Self::Udp => UDP_HEADER_BYTES,
        };
        let is_whole = (UDP_HEADER_BYTES..=segment.len()).contains(&header_bytes)
            && (self == Self::Udp || header_bytes >= TCP_HEADER_BYTES_MIN);
        is_whole.then_some(header_bytes)
    }
}

/// Where a packet's headers lie, and the sums of what all packets with such headers have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Headers {
    pub(super) transport: Transport,
    pub(super) is_ipv6: bool,
    /// Bytes of the IP header with its options or extensions.
    pub(super) ip_bytes: u32,
    /// Bytes of the IP and transport headers.
    pub(super) bytes: u32,
    /// The IPv4 header without length, id and checksum.
    ip_sum: u16,
    /// The pseudo-header without the length.
    pseudo_sum: u16,
}

impl Headers {
    /// Fills the place of headers that were never read.
    pub(super) const NONE: Self =
        Self { transport: Transport::Udp, is_ipv6: false, ip_bytes: 0, bytes: 0, ip_sum: 0, pseudo_sum: 0 };

    /// Reads the headers of `packet`, which is exactly as long as `header`, its own, says.
    pub(super) fn read(packet: &[u8], header: &PacketHeader, transport: Transport) -> Result<Self, SplitError> {
        if packet.len() != header.total_bytes {
            return Err(SplitError::Length { stated: header.total_bytes, available: packet.len() });
        }
        if Transport::of(header) != Some(transport) {
            return Err(SplitError::Transport);
        }
        let is_ipv6 = header.source.is_ipv6();
        let ip_bytes_min = if is_ipv6 { IPV6_HEADER_BYTES } else { IPV4_HEADER_BYTES_MIN };
        let (ip, segment) = packet.split_at_checked(header.transport_offset).ok_or(SplitError::Header)?;
        let transport_bytes = transport.header_bytes(segment).ok_or(SplitError::Header)?;
        if ip.len() < ip_bytes_min {
            return Err(SplitError::Header);
        }
        let protocol = Sum::default().plus(&[0, transport.protocol()]);
        let (ip_sum, pseudo_sum) = if !is_ipv6 {
            let ip_sum = Sum::default().plus(&ip[..2]).plus(&ip[6..10]).plus(&ip[12..]);
            (ip_sum.fold(), protocol.plus(&ip[12..20]).fold())
        } else if ip.len() == IPV6_HEADER_BYTES {
            (0, protocol.plus(&ip[8..40]).fold())
        } else {
            // A routing header may name the destination that counts, so take the length out of the sum that is there.
            let at = usize::from(transport.checksum_offset());
            let field = u16::from_be_bytes([segment[at], segment[at + 1]]);
            (0, fold(u64::from(field) + u64::from(!(segment.len() as u16))))
        };
        let (ip_bytes, bytes) = (ip.len() as u32, (ip.len() + transport_bytes) as u32);
        Ok(Self { transport, is_ipv6, ip_bytes, bytes, ip_sum, pseudo_sum })
    }

    /// Whether everything that [`Self::finish`] would write into `packet` stands there already, but for its transport
    /// checksum, which may also be a complete one if it is right. `packet` has these headers, but for IPv4's id.
    pub(super) fn are_true(&self, packet: &[u8], is_partial: bool) -> bool {
        self.check(packet, is_partial).unwrap_or(false)
    }

    fn check(&self, packet: &[u8], is_partial: bool) -> Option<bool> {
        let (ip, segment) = packet.split_at_checked(self.ip_bytes as usize)?;
        let word = |bytes: &[u8], at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
        if !self.is_ipv6 && word(ip, 10)? != self.ip_checksum(packet.len(), word(ip, 4)?) {
            return Some(false);
        }
        if self.transport == Transport::Udp && usize::from(word(segment, 4)?) != segment.len() {
            return Some(false);
        }
        let field = word(segment, usize::from(self.transport.checksum_offset()))?;
        Some(if is_partial {
            field == self.seed(segment.len())
        } else if field == 0 && self.transport == Transport::Udp {
            // There is none.
            false
        } else {
            fold(u64::from(self.seed(segment.len())) + u64::from(Sum::default().plus(segment).fold())) == 0xffff
        })
    }

    fn ip_checksum(&self, total_bytes: usize, id: u16) -> u16 {
        !fold(u64::from(self.ip_sum) + total_bytes as u64 + u64::from(id))
    }

    /// The sum that stands in the field of a partial checksum: of the pseudo-header for a transport header and payload
    /// of `segment_bytes`.
    fn seed(&self, segment_bytes: usize) -> u16 {
        fold(u64::from(self.pseudo_sum) + segment_bytes as u64)
    }

    /// Writes into `headers`, a copy of those that were read, all that depends on the payload's length: lengths,
    /// IPv4's header checksum, the partial transport checksum; and `id` into IPv4's.
    pub(super) fn finish(&self, headers: &mut [u8], payload_bytes: usize, id: u16) -> Option<()> {
        let (ip, transport) = headers.split_at_mut_checked(self.ip_bytes as usize)?;
        let segment_bytes = transport.len() + payload_bytes;
        let total_bytes = ip.len() + segment_bytes;
        if self.is_ipv6 {
            let length = (total_bytes - IPV6_HEADER_BYTES) as u16;
            ip.get_mut(4..6)?.copy_from_slice(&length.to_be_bytes());
        } else {
            let ip: &mut [u8; IPV4_HEADER_BYTES_MIN] = ip.first_chunk_mut()?;
            ip[2..4].copy_from_slice(&(total_bytes as u16).to_be_bytes());
            ip[4..6].copy_from_slice(&id.to_be_bytes());
            ip[10..12].copy_from_slice(&self.ip_checksum(total_bytes, id).to_be_bytes());
        }
        if self.transport == Transport::Udp {
            transport.get_mut(4..6)?.copy_from_slice(&(segment_bytes as u16).to_be_bytes());
        }
        let at = usize::from(self.transport.checksum_offset());
        transport.get_mut(at..at + 2)?.copy_from_slice(&self.seed(segment_bytes).to_be_bytes());
        Some(())
    }
}

/// The IPv4 id of a packet, or 0 for IPv6.
pub(super) fn ipv4_id(packet: &[u8], is_ipv6: bool) -> u16 {
    match packet {
        [_, _, _, _, high, low, ..] if !is_ipv6 => u16::from_be_bytes([*high, *low]),
        _ => 0,
    }
}
