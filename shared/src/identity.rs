//! Ed25519 keys, peer ids and the addresses derived from them, bit for bit Hyprspace's.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::id::PeerId;

/// A node's built-in IPv4 address, installed as /32: 100.64.1.2 with the peer id's bytes mixed into the last two
/// octets.
pub fn builtin_ipv4(peer: &PeerId) -> Ipv4Addr {
    let mut octets = [100, 64, 1, 2];
    for (position, byte) in peer.to_bytes().into_iter().enumerate() {
        octets[2 + position % 2] ^= byte;
    }
    Ipv4Addr::from(octets)
}

/// A node's built-in IPv6 address, installed as /128: a prefix that spells `hyprspace`, and the node identifier.
pub fn builtin_ipv6(peer: &PeerId) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets[..12].copy_from_slice(b"\xfd\x00hyprspace\x00");
    octets[12..].copy_from_slice(&node_identifier(peer));
    Ipv6Addr::from(octets)
}

/// Hyprspace's four-byte node identifier: `de ad be ef` with the peer id's bytes mixed in.
pub fn node_identifier(peer: &PeerId) -> [u8; 4] {
    let mut identifier = [0xde, 0xad, 0xbe, 0xef];
    for (position, byte) in peer.to_bytes().into_iter().enumerate() {
        identifier[position % 4] ^= byte;
    }
    identifier
}
