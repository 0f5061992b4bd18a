//! Packets for the service network: what they want, read from bytes that may be hostile.

use std::net::{IpAddr, Ipv6Addr};

use super::ip::{IPV6_HEADER_BYTES, PacketHeader, protocol};
use crate::identity::split_service_address;

/// Bytes of a TCP header without options.
const TCP_HEADER_BYTES_MIN: usize = 20;
const ICMPV6_ECHO_REQUEST: u8 = 128;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// A packet to a service's address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ServicePacket<'p> {
    /// Who sent it: a unicast address that is no service's.
    pub client: Ipv6Addr,
    /// The service's address.
    pub service: Ipv6Addr,
    /// Identifier of the node that is to have the service.
    pub node: [u8; 4],
    /// The service's identifier.
    pub id: [u8; 2],
    /// What it wants.
    pub wish: Wish,
    /// All of it, from its IP header to the end that this states.
    pub packet: &'p [u8],
}

/// What a packet to a service's address wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wish {
    /// A segment of a TCP connection.
    Tcp {
        /// The client's port; not 0.
        client_port: u16,
        /// The service's port; not 0.
        port: u16,
        /// It asks for a new connection.
        opens: bool,
        /// It resets one.
        resets: bool,
    },
    /// To know whether anybody is there: an ICMPv6 echo request.
    Echo,
    /// A UDP port, of which there are none.
    Udp,
}

impl<'p> ServicePacket<'p> {
    /// Reads a packet; `None` for one that is not for a service or that nobody answers.
    pub fn parse(bytes: &'p [u8]) -> Option<Self> {
        let header = PacketHeader::parse(bytes).ok()?;
        let (IpAddr::V6(client), IpAddr::V6(service)) = (header.source, header.destination) else { return None };
        let (node, id) = split_service_address(service)?;
        let is_strange = client.is_multicast() || client.is_unspecified() || client.is_loopback();
        if is_strange || split_service_address(client).is_some() || header.transport_offset != IPV6_HEADER_BYTES {
            return None;
        }
        let packet = bytes.get(..header.total_bytes)?;
        let transport = packet.get(IPV6_HEADER_BYTES..)?;
        let wish = match header.protocol {
            protocol::TCP => tcp(transport)?,
            protocol::ICMPV6 if transport.len() >= 8 && transport[..2] == [ICMPV6_ECHO_REQUEST, 0] => Wish::Echo,
            protocol::UDP => Wish::Udp,
            _ => return None,
        };
        Some(Self { client, service, node, id, wish, packet })
    }
}

fn tcp(segment: &[u8]) -> Option<Wish> {
    let header: &[u8; TCP_HEADER_BYTES_MIN] = segment.first_chunk()?;
    let client_port = u16::from_be_bytes([header[0], header[1]]);
    let port = u16::from_be_bytes([header[2], header[3]]);
    let flags = header[13];
    let opens = flags & (SYN | ACK | RST | FIN) == SYN;
    (client_port != 0 && port != 0).then_some(Wish::Tcp { client_port, port, opens, resets: flags & RST != 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{parse_peer_id, service_address};

    fn packet(next_header: u8, transport: &[u8]) -> Vec<u8> {
        let peer = parse_peer_id("12D3KooWNfMAtF1ZWb2j9MYpFz1ZmRzUAyq1CPYAwGttomNmqY46").unwrap();
        let mut packet = vec![0x60, 0, 0, 0, 0, transport.len() as u8, next_header, 64];
        packet.extend("fd00::1".parse::<Ipv6Addr>().unwrap().octets());
        packet.extend(service_address(&peer, "example").octets());
        packet.extend(transport);
        packet
    }

    fn segment(flags: u8) -> Vec<u8> {
        let mut segment = vec![0; 20];
        segment[..4].copy_from_slice(&[0x9c, 0x40, 0, 80]);
        segment[12..14].copy_from_slice(&[0x50, flags]);
        segment
    }

    #[test]
    fn a_segment_says_whether_it_opens_or_resets_a_connection() {
        for (flags, opens, resets) in [(SYN, true, false), (SYN | ACK, false, false), (RST, false, true)] {
            let bytes = packet(protocol::TCP, &segment(flags));
            let parsed = ServicePacket::parse(&bytes).unwrap();
            assert_eq!(parsed.wish, Wish::Tcp { client_port: 40_000, port: 80, opens, resets });
            assert_eq!((parsed.node, parsed.id), ([0xb4, 0x97, 0xd1, 0x58], [0xa3, 0xdd]));
            assert_eq!(parsed.client.to_string(), "fd00::1");
            assert_eq!(parsed.packet, bytes);
        }
    }

    #[test]
    fn what_is_behind_the_stated_end_is_not_part_of_the_packet() {
        let bytes = packet(protocol::TCP, &segment(SYN));
        let padded = [&bytes[..], &[0, 0, 0]].concat();
        assert_eq!(ServicePacket::parse(&padded), ServicePacket::parse(&bytes));
    }

    #[test]
    fn what_nobody_answers_is_told_apart() {
        assert_eq!(ServicePacket::parse(&packet(protocol::UDP, &[0; 8])).unwrap().wish, Wish::Udp);
        let echo = packet(protocol::ICMPV6, &[128, 0, 0, 0, 0, 1, 0, 1]);
        assert_eq!(ServicePacket::parse(&echo).unwrap().wish, Wish::Echo);
        let mut port_0 = segment(SYN);
        port_0[3] = 0;
        let mut elsewhere = packet(protocol::TCP, &segment(SYN));
        elsewhere[24 + 8] ^= 1;
        let mut from_multicast = packet(protocol::TCP, &segment(SYN));
        from_multicast[8] = 0xff;
        let mut from_a_service = packet(protocol::TCP, &segment(SYN));
        from_a_service.copy_within(24..40, 8);
        let nobodys = [
            packet(protocol::ICMPV6, &[129, 0, 0, 0, 0, 1, 0, 1]),
            packet(protocol::SCTP, &[0; 12]),
            packet(protocol::TCP, &segment(SYN)[..19]),
            packet(protocol::TCP, &port_0),
            elsewhere,
            from_multicast,
            from_a_service,
            Vec::new(),
        ];
        for bytes in nobodys {
            assert_eq!(ServicePacket::parse(&bytes), None, "{bytes:?}");
        }
    }
}
