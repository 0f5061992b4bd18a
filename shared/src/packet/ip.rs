//! The IPv4 or IPv6 header of an inner packet, read from bytes that may be hostile.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use thiserror::Error;

use crate::limits::IPV6_EXTENSION_HEADERS_MAX;

/// Bytes of an IPv4 header without options.
pub const IPV4_HEADER_BYTES_MIN: usize = 20;
/// Bytes of an IPv6 header without extensions.
pub const IPV6_HEADER_BYTES: usize = 40;

/// IP protocol numbers that anything here looks at.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// DCCP.
    pub const DCCP: u8 = 33;
    /// IPv6's fragment header.
    pub const FRAGMENT: u8 = 44;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// UDP-Lite.
    pub const UDP_LITE: u8 = 136;

    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const AUTHENTICATION: u8 = 51;
    pub(super) const DESTINATION_OPTIONS: u8 = 60;
}

/// Why bytes are no IP packet: whoever wrote them is at fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum PacketError {
    /// Shorter than the smallest header of its version.
    #[error("{0} bytes hold no IP header")]
    Short(usize),
    /// Neither IPv4 nor IPv6.
    #[error("IP version {0}")]
    Version(u8),
    /// An IPv4 header that claims fewer bytes than the smallest, or more than the whole packet has.
    #[error("IPv4 header of {0} bytes")]
    HeaderLength(usize),
    /// The packet claims more bytes than there are.
    #[error("packet of {stated} bytes in {available}")]
    Truncated {
        /// What its header says.
        stated: usize,
        /// What there is.
        available: usize,
    },
}

/// What routing, admission and flow hashing need to know of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PacketHeader {
    /// Where it comes from. The variant tells the IP version.
    pub source: IpAddr,
    /// Where it goes. Always the same variant as the source.
    pub destination: IpAddr,
    /// What follows the IP header and, for IPv6, the extension headers we could walk over. For all fragments of an
    /// IPv6 packet it is [`protocol::FRAGMENT`].
    pub protocol: u8,
    /// Whether it is a fragment of a larger packet.
    pub is_fragment: bool,
    /// Where `protocol`'s header begins: bytes from the packet's first. May lie beyond the packet's end.
    pub transport_offset: usize,
    /// The packet's length as its header states it, never more than the bytes that were parsed.
    pub total_bytes: usize,
}

impl PacketHeader {
    /// Reads the header of the packet that `bytes` begins with. Checksums and options are not looked at.
    pub fn parse(bytes: &[u8]) -> Result<Self, PacketError> {
        match bytes.first().map(|first| first >> 4) {
            Some(4) => Self::parse_v4(bytes),
            Some(6) => Self::parse_v6(bytes),
            Some(version) => Err(PacketError::Version(version)),
            None => Err(PacketError::Short(0)),
        }
    }

    fn parse_v4(bytes: &[u8]) -> Result<Self, PacketError> {
        let header: &[u8; IPV4_HEADER_BYTES_MIN] = bytes.first_chunk().ok_or(PacketError::Short(bytes.len()))?;
        let header_bytes = usize::from(header[0] & 0x0f) * 4;
        let total_bytes = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if header_bytes < IPV4_HEADER_BYTES_MIN || header_bytes > total_bytes {
            return Err(PacketError::HeaderLength(header_bytes));
        }
        if total_bytes > bytes.len() {
            return Err(PacketError::Truncated { stated: total_bytes, available: bytes.len() });
        }
        let fragment = u16::from_be_bytes([header[6], header[7]]);
        Ok(Self {
            source: Ipv4Addr::new(header[12], header[13], header[14], header[15]).into(),
            destination: Ipv4Addr::new(header[16], header[17], header[18], header[19]).into(),
            protocol: header[9],
            // More fragments, or an offset.
            is_fragment: fragment & 0x3fff != 0,
            transport_offset: header_bytes,
            total_bytes,
        })
    }

    fn parse_v6(bytes: &[u8]) -> Result<Self, PacketError> {
        let header: &[u8; IPV6_HEADER_BYTES] = bytes.first_chunk().ok_or(PacketError::Short(bytes.len()))?;
        let total_bytes = IPV6_HEADER_BYTES + usize::from(u16::from_be_bytes([header[4], header[5]]));
        if total_bytes > bytes.len() {
            return Err(PacketError::Truncated { stated: total_bytes, available: bytes.len() });
        }
        let mut octets = [[0; 16]; 2];
        octets[0].copy_from_slice(&header[8..24]);
        octets[1].copy_from_slice(&header[24..40]);
        let [source, destination] = octets.map(|octets| IpAddr::V6(Ipv6Addr::from(octets)));
        let end = walk_extensions(&bytes[..total_bytes], header[6]);
        Ok(Self {
            source,
            destination,
            protocol: end.protocol,
            is_fragment: end.is_fragment,
            transport_offset: end.offset,
            total_bytes,
        })
    }

    /// The packet without what follows it in the buffer. `bytes` must be what was parsed, or begin with it.
    pub fn trim<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        &bytes[..self.total_bytes.min(bytes.len())]
    }
}

/// Where the walk over IPv6 extension headers ended.
struct WalkEnd {
    protocol: u8,
    is_fragment: bool,
    offset: usize,
}

/// Walks over extension headers until one it does not know, a fragment's, the packet's end or the bound. A chain that
/// makes no sense is no error: routers forward such packets, and the receiving host judges them.
fn walk_extensions(packet: &[u8], first: u8) -> WalkEnd {
    let mut end = WalkEnd { protocol: first, is_fragment: false, offset: IPV6_HEADER_BYTES };
    for _ in 0..IPV6_EXTENSION_HEADERS_MAX {
        let units = match end.protocol {
            protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::DESTINATION_OPTIONS
            | protocol::AUTHENTICATION
            | protocol::FRAGMENT => packet.get(end.offset..).and_then(|rest| rest.first_chunk::<4>()),
            _ => break,
        };
        let Some(&[next, length, high, low]) = units else { break };
        let header_bytes = match end.protocol {
            protocol::FRAGMENT => {
                // Offset or more fragments. With neither it is a whole packet (RFC 6946) and the walk goes on.
                if u16::from_be_bytes([high, low]) & 0xfff9 != 0 {
                    end.is_fragment = true;
                    break;
                }
                8
            }
            protocol::AUTHENTICATION => (usize::from(length) + 2) * 4,
            _ => (usize::from(length) + 1) * 8,
        };
        end.protocol = next;
        end.offset += header_bytes;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend((payload.len() as u16).to_be_bytes());
        packet.extend([next, 64]);
        packet.extend([0xfd; 16]);
        packet.extend([0xfe; 16]);
        packet.extend(payload);
        packet
    }

    fn ipv4(options: usize, payload: usize) -> Vec<u8> {
        let header = IPV4_HEADER_BYTES_MIN + options;
        let mut packet = vec![0; header + payload];
        packet[0] = 0x40 | (header / 4) as u8;
        packet[2..4].copy_from_slice(&((header + payload) as u16).to_be_bytes());
        packet[9] = protocol::UDP;
        packet[12..16].copy_from_slice(&[10, 0, 0, 1]);
        packet[16..20].copy_from_slice(&[10, 0, 0, 2]);
        packet
    }

    #[test]
    fn an_ipv4_header_says_where_everything_is() {
        let mut packet = ipv4(8, 100);
        packet.extend([0xee; 18]);
        let header = PacketHeader::parse(&packet).unwrap();
        let expected = PacketHeader {
            source: "10.0.0.1".parse().unwrap(),
            destination: "10.0.0.2".parse().unwrap(),
            protocol: protocol::UDP,
            is_fragment: false,
            transport_offset: 28,
            total_bytes: 128,
        };
        assert_eq!(header, expected);
        assert_eq!(header.trim(&packet), &packet[..128]);
        for (fragment, is_fragment) in [(0x4000, false), (0x2000, true), (0x0001, true), (0x1fff, true)] {
            packet[6..8].copy_from_slice(&u16::to_be_bytes(fragment));
            assert_eq!(PacketHeader::parse(&packet).unwrap().is_fragment, is_fragment, "{fragment:#06x}");
        }
    }

    #[test]
    fn what_is_not_an_ip_packet_is_refused() {
        let broken = |at: usize, byte: u8| {
            let mut packet = ipv4(0, 8);
            packet[at] = byte;
            PacketHeader::parse(&packet)
        };
        assert_eq!(broken(0, 0x44), Err(PacketError::HeaderLength(16)));
        assert_eq!(broken(0, 0x4f), Err(PacketError::HeaderLength(60)));
        assert_eq!(broken(3, 19), Err(PacketError::HeaderLength(20)));
        assert_eq!(broken(3, 29), Err(PacketError::Truncated { stated: 29, available: 28 }));
        assert_eq!(broken(0, 0x55), Err(PacketError::Version(5)));
        for (first, header_bytes) in [(0x45, IPV4_HEADER_BYTES_MIN), (0x60, IPV6_HEADER_BYTES)] {
            for length in 1..header_bytes {
                assert_eq!(PacketHeader::parse(&vec![first; length]), Err(PacketError::Short(length)));
            }
        }
        assert_eq!(PacketHeader::parse(&[]), Err(PacketError::Short(0)));
        let whole = ipv6(protocol::UDP, &[0; 8]);
        assert_eq!(PacketHeader::parse(&whole[..47]), Err(PacketError::Truncated { stated: 48, available: 47 }));
    }

    #[test]
    fn extension_headers_are_walked_over() {
        let mut payload = vec![protocol::DESTINATION_OPTIONS, 1];
        payload.resize(16, 0);
        payload.extend([protocol::AUTHENTICATION, 0, 0, 0, 0, 0, 0, 0]);
        payload.extend([protocol::FRAGMENT, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        payload.extend([protocol::TCP, 0, 0, 0, 0, 0, 0, 0]);
        payload.extend([0xaa; 20]);
        let packet = ipv6(protocol::HOP_BY_HOP, &payload);
        let header = PacketHeader::parse(&packet).unwrap();
        assert_eq!((header.protocol, header.is_fragment), (protocol::TCP, false));
        assert_eq!(&packet[header.transport_offset..], &[0xaa; 20]);
    }

    #[test]
    fn a_fragment_ends_the_walk_first_or_not() {
        for (high, low) in [(0, 1), (0, 8), (5, 0xb1)] {
            let header = PacketHeader::parse(&ipv6(protocol::FRAGMENT, &[protocol::UDP, 0, high, low, 0, 0, 0, 9]));
            let header = header.unwrap();
            assert_eq!((header.protocol, header.is_fragment), (protocol::FRAGMENT, true));
        }
    }

    #[test]
    fn a_chain_that_leads_nowhere_ends_within_the_bound() {
        let endless = vec![0; 65_535];
        let header = PacketHeader::parse(&ipv6(protocol::HOP_BY_HOP, &endless)).unwrap();
        assert_eq!(header.transport_offset, IPV6_HEADER_BYTES + 8 * IPV6_EXTENSION_HEADERS_MAX);
        let overlong = PacketHeader::parse(&ipv6(protocol::ROUTING, &[protocol::TCP, 255, 0, 0])).unwrap();
        assert!(overlong.transport_offset > overlong.total_bytes);
        assert_eq!(PacketHeader::parse(&ipv6(protocol::ROUTING, &[1, 2, 3])).unwrap().protocol, protocol::ROUTING);
    }
}
