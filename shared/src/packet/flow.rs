//! The flow hash: pins an inner flow to one worker and lane, so that it stays in order.

use std::net::IpAddr;

use super::ip::{PacketHeader, protocol};

/// Hash of the packet's five-tuple, or of addresses and protocol where there are no ports to read: other protocols,
/// and all fragments, the first included, so that a packet's fragments stay together.
///
/// `packet` must be what `header` was parsed from. The two directions of a flow hash differently. `seed` is random per
/// process, so that nobody outside can aim flows at one worker; it is no defence against somebody who can watch which
/// lane a flow takes.
pub fn flow_hash(packet: &[u8], header: &PacketHeader, seed: u64) -> u32 {
    let rest = u64::from(ports(packet, header)) << 8 | u64::from(header.protocol);
    let addresses = match (header.source, header.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            seed ^ (u64::from(source.to_bits()) << 32 | u64::from(destination.to_bits()))
        }
        (source, destination) => {
            let [source, destination] = [source, destination].map(bits);
            mix(mix(seed ^ high(source), K[0] ^ low(source)) ^ high(destination), K[1] ^ low(destination))
        }
    };
    let hash = mix(mix(addresses ^ K[2], rest ^ K[3] ^ seed.rotate_left(32)), K[1]);
    (hash >> 32) as u32
}

/// Source and destination port as they stand in the packet, or 0.
fn ports(packet: &[u8], header: &PacketHeader) -> u32 {
    let has_ports =
        matches!(header.protocol, protocol::TCP | protocol::UDP | protocol::DCCP | protocol::SCTP | protocol::UDP_LITE);
    if !has_ports || header.is_fragment {
        return 0;
    }
    let transport = header.trim(packet).get(header.transport_offset..).and_then(|rest| rest.first_chunk());
    transport.map_or(0, |ports| u32::from_be_bytes(*ports))
}

/// Odd constants with as many ones as zeros, as wyhash uses them.
const K: [u64; 4] = [0xa076_1d64_78bd_642f, 0xe703_7ed1_a0b4_28db, 0x8ebc_6af0_9c88_c6e3, 0x5899_65cc_7537_4cc3];

/// A 64 by 64 bit multiplication folded back to 64 bits: every bit of both depends on every lower bit of both.
fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    high(product) ^ low(product)
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn high(bits: u128) -> u64 {
    (bits >> 64) as u64
}

fn low(bits: u128) -> u64 {
    bits as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(v6: bool, source: u8, destination: u8, ports: [u16; 2]) -> Vec<u8> {
        let mut packet = if v6 {
            let mut packet = vec![0x60, 0, 0, 0, 0, 8, protocol::UDP, 64];
            packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, source]);
            packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, destination]);
            packet
        } else {
            let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, protocol::UDP, 0, 0];
            packet.extend([10, 0, 0, source, 10, 0, 0, destination]);
            packet
        };
        packet.extend(ports.map(u16::to_be_bytes).as_flattened());
        packet.extend([0; 4]);
        packet
    }

    fn hash(packet: &[u8]) -> u32 {
        flow_hash(packet, &PacketHeader::parse(packet).unwrap(), 0x0123_4567_89ab_cdef)
    }

    #[test]
    fn every_part_of_the_five_tuple_and_the_seed_count() {
        for v6 in [false, true] {
            let base = packet(v6, 1, 2, [1000, 2000]);
            let mut other_protocol = base.clone();
            other_protocol[if v6 { 6 } else { 9 }] = protocol::TCP;
            let others = [
                packet(v6, 3, 2, [1000, 2000]),
                packet(v6, 1, 3, [1000, 2000]),
                packet(v6, 1, 2, [1001, 2000]),
                packet(v6, 1, 2, [1000, 2001]),
                packet(v6, 2, 1, [2000, 1000]),
                other_protocol,
            ];
            for other in others {
                assert_ne!(hash(&base), hash(&other), "{other:?}");
            }
            assert_ne!(hash(&base), flow_hash(&base, &PacketHeader::parse(&base).unwrap(), 1));
            let mut other_payload = base.clone();
            *other_payload.last_mut().unwrap() = 1;
            assert_eq!(hash(&base), hash(&other_payload));
        }
    }

    #[test]
    fn neighbouring_flows_spread_evenly_over_any_number_of_lanes() {
        const FLOWS: u32 = 4096;
        for v6 in [false, true] {
            for lanes in [2u32, 3, 4, 7, 16, 64] {
                let mut flows = vec![0u32; lanes as usize];
                for flow in 0..FLOWS {
                    let packet = packet(v6, (flow >> 8) as u8, 9, [40_000 + (flow & 0xff) as u16, 443]);
                    flows[(hash(&packet) % lanes) as usize] += 1;
                }
                let fair = f64::from(FLOWS / lanes);
                // Five standard deviations of a fair throw.
                let slack = 5.0 * fair.sqrt();
                assert!(flows.iter().all(|&n| (f64::from(n) - fair).abs() < slack), "{lanes} lanes: {flows:?}");
            }
        }
    }
}
