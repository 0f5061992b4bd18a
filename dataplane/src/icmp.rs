//! Telling senders that their packets are too big for the path (RFC 792 and 1191, RFC 4443), pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ringlane_shared::limits::INNER_MTU_MIN;
use ringlane_shared::packet::PacketHeader;
use ringlane_shared::packet::checksum::Sum;
use ringlane_shared::packet::ip::{IPV4_HEADER_BYTES_MIN, IPV6_HEADER_BYTES, protocol};

/// Type, code, checksum and MTU, in both versions.
const ICMP_HEADER_BYTES: usize = 8;
/// Longest answer over IPv4 (RFC 1812, section 4.3.2.3).
const ANSWER_V4_BYTES_MAX: usize = 576;
/// Longest answer: IPv6 quotes what fits its smallest MTU (RFC 4443, section 3.2).
pub(crate) const ANSWER_BYTES_MAX: usize = 1280;

const DESTINATION_UNREACHABLE: u8 = 3;
const FRAGMENTATION_NEEDED: u8 = 4;
const PACKET_TOO_BIG: u8 = 2;
/// Packets of routers have a precedence of their own (RFC 1812, section 4.3.2.5).
const INTERNETWORK_CONTROL: u8 = 0xc0;
const DONT_FRAGMENT: u8 = 0x40;
const HOP_LIMIT: u8 = 64;

/// What is to become of a packet that no record of its lane holds, if packets are not to be cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Oversized {
    /// It is cut nevertheless: its sender lets routers fragment it (IPv4), or it is so small that IPv6 has every link
    /// carry it, in pieces if need be (RFC 8200, section 5).
    Cut,
    /// It is dropped, and its sender told what passes.
    Told {
        /// Largest packet in bytes that passes.
        mtu: u16,
    },
}

impl Oversized {
    /// Of a packet larger than the `fits` bytes that pass.
    pub(crate) fn of(packet: &[u8], fits: usize) -> Self {
        let (is_told, mtu) = match packet {
            [0x40..=0x4f, _, _, _, _, _, flags, ..] => (flags & DONT_FRAGMENT != 0, fits),
            _ => {
                let mtu = fits.max(usize::from(INNER_MTU_MIN));
                (packet.len() > mtu, mtu)
            }
        };
        if is_told { Self::Told { mtu: mtu.try_into().unwrap_or(u16::MAX) } } else { Self::Cut }
    }
}

/// Writes what tells `packet`'s sender that packets of up to `mtu` bytes pass, and returns its length. `None` if that
/// must not be told: of what is itself an ICMP error, or a fragment but the first, or does not come from one host (RFC
/// 1122, section 3.2.2; RFC 4443, section 2.4).
///
/// `from` are the addresses of both versions that it comes from.
pub(crate) fn answer(
    packet: &[u8],
    mtu: u16,
    from: impl FnOnce() -> (Ipv4Addr, Ipv6Addr),
    out: &mut [u8; ANSWER_BYTES_MAX],
) -> Option<usize> {
    let header = PacketHeader::parse(packet).ok()?;
    let packet = header.trim(packet);
    let transport = packet.get(header.transport_offset..).unwrap_or_default();
    match (header.source, header.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let is_later_fragment = u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff != 0;
            // Echo, timestamp and address mask, and their replies, are no errors.
            let is_error = header.protocol == protocol::ICMP && !matches!(transport.first(), Some(0 | 8 | 13..=18));
            let is_host = is_host_v4(source) && !destination.is_multicast() && !destination.is_broadcast();
            (!is_later_fragment && !is_error && is_host).then(|| answer_v4(packet, mtu, from().0, source, out))
        }
        (IpAddr::V6(source), IpAddr::V6(_)) => {
            let is_later_fragment = header.is_fragment && fragment_offset(transport) != 0;
            let upper = match header.is_fragment {
                true => (transport.first().copied(), transport.get(8)),
                false => (Some(header.protocol), transport.first()),
            };
            let is_error = matches!(upper, (Some(protocol::ICMPV6), None | Some(0..=127)));
            let is_host = !source.is_unspecified() && !source.is_multicast() && !source.is_loopback();
            (!is_later_fragment && !is_error && is_host).then(|| answer_v6(packet, mtu, from().1, source, out))
        }
        _ => None,
    }
}

fn is_host_v4(source: Ipv4Addr) -> bool {
    let [first, ..] = source.octets();
    first != 0 && first < 224 && !source.is_loopback()
}

/// The offset in an IPv6 fragment header, with its lower bits cleared.
fn fragment_offset(header: &[u8]) -> u16 {
    match header {
        [_, _, high, low, ..] => u16::from_be_bytes([*high, *low]) & 0xfff8,
        _ => u16::MAX,
    }
}

fn answer_v4(packet: &[u8], mtu: u16, from: Ipv4Addr, to: Ipv4Addr, out: &mut [u8; ANSWER_BYTES_MAX]) -> usize {
    const HEADERS: usize = IPV4_HEADER_BYTES_MIN + ICMP_HEADER_BYTES;
    let quoted = &packet[..packet.len().min(ANSWER_V4_BYTES_MAX - HEADERS)];
    let length = HEADERS + quoted.len();
    let (ip, icmp) = out[..length].split_at_mut(IPV4_HEADER_BYTES_MIN);
    ip.fill(0);
    ip[0] = 0x45;
    ip[1] = INTERNETWORK_CONTROL;
    ip[2..4].copy_from_slice(&(length as u16).to_be_bytes());
    ip[6] = DONT_FRAGMENT;
    ip[8] = HOP_LIMIT;
    ip[9] = protocol::ICMP;
    ip[12..16].copy_from_slice(&from.octets());
    ip[16..20].copy_from_slice(&to.octets());
    let checksum = !Sum::default().plus(ip).fold();
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    write_icmp(icmp, [DESTINATION_UNREACHABLE, FRAGMENTATION_NEEDED], u32::from(mtu), quoted, Sum::default());
    length
}

fn answer_v6(packet: &[u8], mtu: u16, from: Ipv6Addr, to: Ipv6Addr, out: &mut [u8; ANSWER_BYTES_MAX]) -> usize {
    const HEADERS: usize = IPV6_HEADER_BYTES + ICMP_HEADER_BYTES;
    let quoted = &packet[..packet.len().min(ANSWER_BYTES_MAX - HEADERS)];
    let length = HEADERS + quoted.len();
    let (ip, icmp) = out[..length].split_at_mut(IPV6_HEADER_BYTES);
    let payload = (icmp.len() as u16).to_be_bytes();
    ip.fill(0);
    ip[0] = 0x60;
    ip[4..6].copy_from_slice(&payload);
    ip[6] = protocol::ICMPV6;
    ip[7] = HOP_LIMIT;
    ip[8..24].copy_from_slice(&from.octets());
    ip[24..40].copy_from_slice(&to.octets());
    let pseudo_header = Sum::default().plus(&ip[8..40]).plus(&payload).plus(&[0, protocol::ICMPV6]);
    write_icmp(icmp, [PACKET_TOO_BIG, 0], u32::from(mtu), quoted, pseudo_header);
    length
}

fn write_icmp(icmp: &mut [u8], kind: [u8; 2], mtu: u32, quoted: &[u8], sum: Sum) {
    icmp[..2].copy_from_slice(&kind);
    icmp[2..4].fill(0);
    icmp[4..8].copy_from_slice(&mtu.to_be_bytes());
    icmp[ICMP_HEADER_BYTES..].copy_from_slice(quoted);
    let checksum = !sum.plus(icmp).fold();
    icmp[2..4].copy_from_slice(&checksum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM_V4: Ipv4Addr = Ipv4Addr::new(100, 64, 1, 2);
    const FROM_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x6879, 0, 0, 0, 0, 0, 2);

    fn told(packet: &[u8]) -> Option<Vec<u8>> {
        let mut out = [0xee; ANSWER_BYTES_MAX];
        let length = answer(packet, 1300, || (FROM_V4, FROM_V6), &mut out)?;
        Some(out[..length].to_vec())
    }

    fn v4(protocol: u8, source: [u8; 4], total: usize) -> Vec<u8> {
        let mut packet = vec![0x45, 0, (total >> 8) as u8, total as u8, 0, 7, DONT_FRAGMENT, 0, 64, protocol, 0, 0];
        packet.extend(source);
        packet.extend([10, 20, 0, 2]);
        packet.extend((20..total).map(|at| at as u8));
        packet
    }

    fn v6(next: u8, source: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
        let [high, low] = (payload.len() as u16).to_be_bytes();
        let mut packet = vec![0x60, 0, 0, 0, high, low, next, 64];
        packet.extend(source.octets());
        packet.extend(Ipv6Addr::new(0xfd00, 0x20, 0, 0, 0, 0, 0, 2).octets());
        packet.extend(payload);
        packet
    }

    #[test]
    fn an_ipv4_sender_learns_the_mtu_and_which_packet_it_was() {
        let packet = v4(protocol::UDP, [10, 10, 0, 2], 1400);
        let told = told(&packet).unwrap();
        let header = PacketHeader::parse(&told).unwrap();
        assert_eq!((header.total_bytes, header.protocol), (576, protocol::ICMP));
        assert_eq!((header.source, header.destination), (FROM_V4.into(), Ipv4Addr::new(10, 10, 0, 2).into()));
        assert_eq!(Sum::default().plus(&told[..20]).fold(), 0xffff);
        assert_eq!(Sum::default().plus(&told[20..]).fold(), 0xffff);
        assert_eq!((&told[20..22], &told[24..28]), (&[3, 4][..], &1300u32.to_be_bytes()[..]));
        assert_eq!(told[28..], packet[..548]);
    }

    #[test]
    fn an_ipv6_sender_learns_the_mtu_and_which_packet_it_was() {
        let source = Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 2);
        for bytes in [300, 1400] {
            let packet = v6(protocol::TCP, source, &vec![5; bytes]);
            let told = told(&packet).unwrap();
            let header = PacketHeader::parse(&told).unwrap();
            assert_eq!((header.total_bytes, header.protocol), (told.len(), protocol::ICMPV6));
            assert_eq!((header.source, header.destination), (FROM_V6.into(), source.into()));
            let length = (told.len() as u16 - 40).to_be_bytes();
            let pseudo_header = Sum::default().plus(&told[8..40]).plus(&length).plus(&[0, 58]);
            assert_eq!(pseudo_header.plus(&told[40..]).fold(), 0xffff);
            assert_eq!((&told[40..42], &told[44..48]), (&[2, 0][..], &1300u32.to_be_bytes()[..]));
            let quoted = packet.len().min(1280 - 48);
            assert_eq!(told[48..], packet[..quoted]);
        }
    }

    #[test]
    fn nobody_is_told_of_errors_later_fragments_or_packets_of_no_host() {
        let host = [10, 10, 0, 2];
        for (kind, is_told) in [(8, true), (0, true), (13, true), (3, false), (11, false), (5, false), (40, false)] {
            let mut packet = v4(protocol::ICMP, host, 1400);
            packet[20] = kind;
            assert_eq!(told(&packet).is_some(), is_told, "ICMP type {kind}");
        }
        let mut fragment = v4(protocol::UDP, host, 1400);
        fragment[6] |= 0x20;
        assert!(told(&fragment).is_some());
        fragment[7] = 1;
        assert_eq!(told(&fragment), None);
        for source in [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 1], [255, 255, 255, 255], [240, 0, 0, 1]] {
            assert_eq!(told(&v4(protocol::UDP, source, 1400)), None, "{source:?}");
        }
        let mut to_all = v4(protocol::UDP, host, 1400);
        to_all[16..20].fill(0xff);
        assert_eq!(told(&to_all), None);

        let host: Ipv6Addr = "fd00:10::2".parse().unwrap();
        for (kind, is_told) in [(128, true), (135, true), (1, false), (2, false), (127, false)] {
            assert_eq!(told(&v6(protocol::ICMPV6, host, &[kind; 1400])).is_some(), is_told, "ICMPv6 type {kind}");
            let mut fragment = [kind; 1400];
            fragment[..8].copy_from_slice(&[protocol::ICMPV6, 0, 0, 1, 0, 0, 0, 1]);
            assert_eq!(told(&v6(protocol::FRAGMENT, host, &fragment)).is_some(), is_told);
            fragment[3] = 9;
            assert_eq!(told(&v6(protocol::FRAGMENT, host, &fragment)), None);
        }
        for source in ["::", "::1", "ff02::1"] {
            assert_eq!(told(&v6(protocol::UDP, source.parse().unwrap(), &[0; 1400])), None, "{source}");
        }
        assert_eq!(told(&[0x45; 10]), None);
    }

    #[test]
    fn what_ip_has_links_carry_or_routers_fragment_is_cut_and_nobody_told() {
        let mut packet = v4(protocol::UDP, [10, 10, 0, 2], 1400);
        assert_eq!(Oversized::of(&packet, 1200), Oversized::Told { mtu: 1200 });
        packet[6] = 0;
        assert_eq!(Oversized::of(&packet, 1200), Oversized::Cut);
        let packet = |bytes: usize| v6(protocol::UDP, "fd00:10::2".parse().unwrap(), &vec![0; bytes - 40]);
        assert_eq!(Oversized::of(&packet(1280), 1200), Oversized::Cut);
        assert_eq!(Oversized::of(&packet(1281), 1200), Oversized::Told { mtu: 1280 });
        assert_eq!(Oversized::of(&packet(1500), 1400), Oversized::Told { mtu: 1400 });
    }
}
