//! The slow, obvious twin of splitting: packets in parts, and everything that follows from the parts worked out afresh.

use ringlane_shared::packet::PacketHeader;
use ringlane_shared::packet::ip::protocol;

/// A TCP or UDP packet in parts. Lengths and checksums in the headers count for nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parts {
    pub ip: Vec<u8>,
    pub transport: Vec<u8>,
    pub payload: Vec<u8>,
    pub protocol: u8,
}

/// TCP's flags of the last piece, and of the first.
pub const FIN: u8 = 0x01;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;
pub const CWR: u8 = 0x80;

impl Parts {
    /// Takes a packet apart that is as long as it says; `None` if it is no whole TCP or UDP packet.
    pub fn of(packet: &[u8]) -> Option<Self> {
        let header = PacketHeader::parse(packet).ok().filter(|header| header.total_bytes == packet.len())?;
        let (ip, segment) = packet.split_at_checked(header.transport_offset)?;
        let transport_bytes = match header.protocol {
            _ if header.is_fragment => return None,
            protocol::TCP => usize::from(segment.get(12)? >> 4) * 4,
            protocol::UDP => 8,
            _ => return None,
        };
        let is_short = transport_bytes < if header.protocol == protocol::TCP { 20 } else { 8 };
        let (transport, payload) = segment.split_at_checked(transport_bytes).filter(|_| !is_short)?;
        Some(Self { ip: ip.into(), transport: transport.into(), payload: payload.into(), protocol: header.protocol })
    }

    pub fn is_ipv6(&self) -> bool {
        self.ip[0] >> 4 == 6
    }

    pub fn is_tcp(&self) -> bool {
        self.protocol == protocol::TCP
    }

    /// Whether nobody may fragment it, so that its IPv4 id means nothing.
    pub fn is_atomic(&self) -> bool {
        !self.is_ipv6() && self.ip[6] & 0x40 != 0
    }

    pub fn id(&self) -> u16 {
        if self.is_ipv6() { 0 } else { u16::from_be_bytes([self.ip[4], self.ip[5]]) }
    }

    pub fn set_id(&mut self, id: u16) {
        if !self.is_ipv6() {
            self.ip[4..6].copy_from_slice(&id.to_be_bytes());
        }
    }

    /// Where the checksum lies in the packet.
    pub fn checksum_at(&self) -> usize {
        self.ip.len() + if self.is_tcp() { 16 } else { 6 }
    }

    /// The packets that the kernel would put on the wire instead of this one.
    pub fn split(&self, segment_bytes: usize) -> Vec<Self> {
        let payloads: Vec<&[u8]> = match self.payload.is_empty() {
            true => vec![&[]],
            false => self.payload.chunks(segment_bytes).collect(),
        };
        let piece = |(index, payload): (usize, &&[u8])| {
            let mut piece = Self { payload: payload.to_vec(), ..self.clone() };
            piece.set_id(self.id().wrapping_add(index as u16));
            if self.is_tcp() {
                let sequence = u32::from_be_bytes([4, 5, 6, 7].map(|at| self.transport[at]));
                let sequence = sequence.wrapping_add((index * segment_bytes) as u32);
                piece.transport[4..8].copy_from_slice(&sequence.to_be_bytes());
                if index != 0 {
                    piece.transport[13] &= !CWR;
                }
                if index != payloads.len() - 1 {
                    piece.transport[13] &= !(FIN | PSH);
                }
            }
            piece
        };
        payloads.iter().enumerate().map(piece).collect()
    }

    /// Puts it together, with a partial or a complete checksum. The addresses that count are the IP header's.
    pub fn to_packet(&self, is_partial: bool) -> Vec<u8> {
        let Self { mut ip, mut transport, payload, protocol } = self.clone();
        let segment_bytes = transport.len() + payload.len();
        let addresses = if self.is_ipv6() { 8..40 } else { 12..20 };
        if self.is_ipv6() {
            let length = (ip.len() - 40 + segment_bytes) as u16;
            ip[4..6].copy_from_slice(&length.to_be_bytes());
        } else {
            let length = (ip.len() + segment_bytes) as u16;
            ip[2..4].copy_from_slice(&length.to_be_bytes());
            ip[10..12].fill(0);
            let checksum = !sum(&ip);
            ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        if !self.is_tcp() {
            transport[4..6].copy_from_slice(&(segment_bytes as u16).to_be_bytes());
        }
        let at = self.checksum_at() - ip.len();
        transport[at..at + 2].fill(0);
        let pseudo = [&ip[addresses], &[0, protocol], &(segment_bytes as u16).to_be_bytes()].concat();
        let checksum = match is_partial {
            true => sum(&pseudo),
            false => nonzero(!sum(&[&pseudo[..], &transport, &payload].concat())),
        };
        transport[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        [ip, transport, payload].concat()
    }
}

/// One's complement has two zeros, and UDP means something else by the first.
pub fn nonzero(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

/// RFC 1071, word by word.
fn sum(bytes: &[u8]) -> u16 {
    bytes.chunks(2).fold(0u16, |sum, word| {
        let word = u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)]);
        let (sum, carry) = sum.overflowing_add(word);
        sum + u16::from(carry)
    })
}

/// A packet to make: everything that matters to splitting and joining, the rest fixed.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub is_ipv6: bool,
    pub is_udp: bool,
    /// Which flow: a port.
    pub flow: u8,
    /// IPv4 options, or an extension header.
    pub has_ip_options: bool,
    /// Timestamps.
    pub has_tcp_options: bool,
    pub is_atomic: bool,
    pub id: u16,
    pub sequence: u32,
    pub flags: u8,
    pub payload_bytes: usize,
    /// What the payload begins to count with.
    pub fill: u8,
}

impl Shape {
    pub fn parts(&self) -> Parts {
        let protocol = if self.is_udp { protocol::UDP } else { protocol::TCP };
        let [id, id_low] = self.id.to_be_bytes();
        let mut ip = if self.is_ipv6 {
            let mut ip = vec![0x60, 0x01, 0x23, 0x45, 0, 0, protocol, 64];
            ip.extend([0xfd; 16]);
            ip.extend([0xfe; 16]);
            ip
        } else {
            let fragment = if self.is_atomic { 0x40 } else { 0 };
            vec![0x45, 0, 0, 0, id, id_low, fragment, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]
        };
        if self.has_ip_options && self.is_ipv6 {
            // A destination options header with one padding option.
            ip[6] = 60;
            ip.extend([protocol, 0, 1, 4, 0, 0, 0, 0]);
        } else if self.has_ip_options {
            // A router alert.
            ip[0] = 0x46;
            ip.extend([0x94, 4, 0, 0]);
        }
        let mut transport = vec![0x80, 0, 0x10, self.flow, 0, 0, 0, 0];
        if !self.is_udp {
            transport[4..8].copy_from_slice(&self.sequence.to_be_bytes());
            transport.extend([0, 0, 0, 7, 0x50, self.flags, 1, 0, 0, 0, 0, 0]);
            if self.has_tcp_options {
                transport[12] = 0x80;
                transport.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
            }
        }
        let payload = (0..self.payload_bytes).map(|at| (at as u8).wrapping_add(self.fill)).collect();
        Parts { ip, transport, payload, protocol }
    }
}
