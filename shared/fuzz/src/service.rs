//! Packets to services, and what a peer answers on a service's stream.

use std::net::Ipv6Addr;

use ringlane_shared::identity::{service_network, split_service_address};
use ringlane_shared::packet::service::{ServicePacket, Wish};
use ringlane_shared::wire::service::ServiceReply;

/// The first byte as a reply, all bytes as a packet. Returns whether the packet is for a service.
pub fn service(bytes: &[u8]) -> bool {
    if let Some(reply) = bytes.first().and_then(|byte| ServiceReply::parse(*byte).ok()) {
        assert_eq!(reply.to_byte(), bytes[0]);
    }
    let Some(packet) = ServicePacket::parse(bytes) else { return false };
    assert!(bytes.starts_with(packet.packet) && packet.packet.len() >= 40);
    let address = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[at..at + 16]).expect("16 bytes"));
    assert_eq!((packet.client, packet.service), (address(8), address(24)));
    assert!(service_network().contains(&packet.service) && !service_network().contains(&packet.client));
    assert!(!packet.client.is_multicast() && !packet.client.is_unspecified());
    assert_eq!(split_service_address(packet.service), Some((packet.node, packet.id)));
    if let Wish::Tcp { client_port, port, opens, resets } = packet.wish {
        assert!(client_port != 0 && port != 0 && !(opens && resets));
        assert!(packet.packet.len() >= 60 && packet.packet[6] == 6);
    }
    true
}
