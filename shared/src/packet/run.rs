//! One flow's run: the pieces that will be a super-segment, and the rules by which they join.

use std::net::{IpAddr, Ipv4Addr};

use super::checksum::PartialChecksum;
use super::coalesce::Joined;
use super::headers::{Headers, TCP_FLAGS_AT, Transport, ipv4_id, tcp_flag};
use super::ip::{IPV4_HEADER_BYTES_MIN, IPV6_HEADER_BYTES, PacketHeader};
use crate::id::PeerIndex;
use crate::limits::{COALESCE_HEADER_BYTES_MAX, COALESCE_PACKET_BYTES_MAX, COALESCE_PIECES_MAX};

/// Where bytes lie: in which receive buffer, from which byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Span {
    /// The receive buffer, as its owner numbers them.
    pub buffer: u16,
    /// The first byte's place in it.
    pub offset: u32,
    /// How many bytes.
    pub bytes: u32,
}

/// What a packet's place in the order is kept relative to. Ports first: they tell most flows apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Flow {
    ports: [u8; 4],
    transport: Transport,
    source: IpAddr,
    destination: IpAddr,
}

impl Flow {
    /// Fills the place of one that was never begun.
    pub(super) const NONE: Self = Self {
        ports: [0; 4],
        transport: Transport::Udp,
        source: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        destination: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };

    /// The flow of a whole TCP or UDP packet, of whatever else it may be made.
    pub(super) fn of(bytes: &[u8], header: &PacketHeader) -> Option<Self> {
        let transport = Transport::of(header)?;
        let ports = *bytes.get(header.transport_offset..)?.first_chunk()?;
        Some(Self { ports, transport, source: header.source, destination: header.destination })
    }

    pub(super) fn transport(&self) -> Transport {
        self.transport
    }

    /// Whether it has the packet's source and destination.
    pub(super) fn is_between(&self, packet: &PacketHeader) -> bool {
        self.source == packet.source && self.destination == packet.destination
    }
}

/// A packet that may lead a run: the rules about it alone have been checked.
#[derive(Clone, Copy)]
pub(super) struct Lead {
    headers: Headers,
    checksum: Option<PartialChecksum>,
    is_segments: bool,
}

impl Lead {
    /// The first piece of a split super-segment, unless it is the last one too. Its headers may be any that [`Run`] has
    /// room for.
    pub(super) fn of_segments(bytes: &[u8], header: &PacketHeader, transport: Transport) -> Option<Self> {
        let headers = Headers::read(bytes, header, transport).ok()?;
        let may_lead = (headers.bytes as usize) < bytes.len()
            && headers.bytes as usize <= COALESCE_HEADER_BYTES_MAX
            && end_flags(bytes, &headers) == 0
            && headers.are_true(bytes, true);
        let checksum = PartialChecksum::of_transport(header);
        may_lead.then_some(Self { headers, checksum, is_segments: true })
    }

    /// A packet by itself, by the kernel's rules: plain headers, and TCP with nothing but ACK and ECE, for PSH would
    /// end the run at once. A complete checksum is verified, which is the costly part.
    pub(super) fn of_packet(
        bytes: &[u8],
        header: &PacketHeader,
        transport: Transport,
        checksum: Option<PartialChecksum>,
    ) -> Option<Self> {
        let (plain_bytes, is_plain) = match bytes {
            // Neither fragments nor the reserved bit.
            [0x45, _, _, _, _, _, fragment, 0, ..] => (IPV4_HEADER_BYTES_MIN, *fragment & !0x40 == 0),
            [0x60..=0x6f, ..] => (IPV6_HEADER_BYTES, true),
            _ => return None,
        };
        if !is_plain || header.transport_offset != plain_bytes {
            return None;
        }
        if transport == Transport::Tcp {
            let flags = *bytes.get(plain_bytes + TCP_FLAGS_AT)?;
            if flags & !tcp_flag::ECE != tcp_flag::ACK {
                return None;
            }
        }
        if checksum.is_some() && checksum != PartialChecksum::of_transport(header) {
            return None;
        }
        let headers = Headers::read(bytes, header, transport).ok()?;
        let may_lead = (headers.bytes as usize) < bytes.len() && headers.are_true(bytes, checksum.is_some());
        may_lead.then_some(Self { headers, checksum, is_segments: false })
    }
}

/// What a run makes of a packet of its flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Joining {
    /// It belongs to the run now.
    Joined,
    /// It would belong there, but its checksum is wrong.
    Unsound,
    /// It does not belong there.
    Apart,
}

/// The pieces of one super-segment in the making.
#[derive(Clone)]
pub(super) struct Run {
    owner: PeerIndex,
    /// The first piece as it came.
    packet: Span,
    checksum: Option<PartialChecksum>,
    headers: Headers,
    is_segments: bool,
    /// Nothing may follow any more.
    pub(super) is_ended: bool,
    /// IPv4: whether all pieces have the first one's id; otherwise each has the next one.
    is_id_fixed: bool,
    /// TCP: FIN and PSH of the last piece.
    end_flags: u8,
    segment_bytes: u16,
    pieces: u8,
    payload_bytes: u32,
    /// The first piece's headers.
    header: [u8; COALESCE_HEADER_BYTES_MAX],
    payloads: [Span; COALESCE_PIECES_MAX],
}

impl Run {
    /// Room for a run. Holds none until [`Self::begin`].
    pub(super) fn vacant() -> Self {
        Self {
            owner: PeerIndex(0),
            packet: Span::default(),
            checksum: None,
            headers: Headers::NONE,
            is_segments: false,
            is_ended: true,
            is_id_fixed: false,
            end_flags: 0,
            segment_bytes: 0,
            pieces: 0,
            payload_bytes: 0,
            header: [0; COALESCE_HEADER_BYTES_MAX],
            payloads: [Span::default(); COALESCE_PIECES_MAX],
        }
    }

    /// Starts over with the packet `bytes`, which lies at `packet` and which `lead` was read from.
    pub(super) fn begin(&mut self, owner: PeerIndex, lead: Lead, bytes: &[u8], packet: Span) {
        let Lead { headers, checksum, is_segments } = lead;
        let kept = bytes.len().min(headers.bytes as usize).min(COALESCE_HEADER_BYTES_MAX);
        self.header[..kept].copy_from_slice(&bytes[..kept]);
        (self.owner, self.packet, self.checksum, self.headers) = (owner, packet, checksum, headers);
        (self.is_segments, self.is_id_fixed, self.end_flags) = (is_segments, false, 0);
        (self.pieces, self.payload_bytes) = (0, 0);
        // A packet of IPv6 may be longer than 65,535 bytes; its payload, behind headers that are kept, may not.
        self.segment_bytes = (bytes.len() - kept) as u16;
        self.push(packet, bytes.len() - kept, 0);
    }

    /// Takes the next piece of the super-segment that the run began with, if this can be one.
    pub(super) fn continue_segments(&mut self, bytes: &[u8], span: Span) -> bool {
        let Some(payload_bytes) = bytes.len().checked_sub(self.headers.bytes as usize) else { return false };
        let takes = self.is_segments && self.has_room(payload_bytes);
        if takes {
            self.push(span, payload_bytes, end_flags(bytes, &self.headers));
        }
        takes
    }

    /// Takes a packet of the run's flow, if the kernel would.
    pub(super) fn join(
        &mut self,
        owner: PeerIndex,
        bytes: &[u8],
        header: &PacketHeader,
        span: Span,
        checksum: Option<PartialChecksum>,
    ) -> Joining {
        let Some(payload_bytes) = bytes.len().checked_sub(self.headers.bytes as usize) else { return Joining::Apart };
        let belongs = !self.is_segments
            && owner == self.owner
            && bytes.len() == header.total_bytes
            && header.transport_offset == self.headers.ip_bytes as usize
            && self.has_room(payload_bytes)
            && self.follows(bytes).is_some();
        if !belongs {
            return Joining::Apart;
        }
        let is_own = checksum.is_none_or(|checksum| PartialChecksum::of_transport(header) == Some(checksum));
        if !is_own || !self.headers.are_true(bytes, checksum.is_some()) {
            return Joining::Unsound;
        }
        // The second piece decides how ids go on; the rule has been checked.
        self.is_id_fixed |= self.pieces == 1 && self.id_step(bytes) == 0;
        self.push(span, payload_bytes, end_flags(bytes, &self.headers));
        Joining::Joined
    }

    /// What has come of it.
    pub(super) fn finish(&mut self) -> Joined<'_> {
        let whole = Joined::Whole { owner: self.owner, packet: self.packet, checksum: self.checksum };
        if self.pieces < 2 {
            return whole;
        }
        let has_cwr = self.has_cwr();
        let Self { owner, headers, segment_bytes, .. } = *self;
        let Headers { transport, is_ipv6, .. } = headers;
        let id = ipv4_id(&self.header, is_ipv6);
        let header = &mut self.header[..headers.bytes as usize];
        headers.finish(header, self.payload_bytes as usize, id);
        if transport == Transport::Tcp {
            header[headers.ip_bytes as usize + TCP_FLAGS_AT] |= self.end_flags;
        }
        Joined::Super {
            owner,
            header,
            payloads: &self.payloads[..usize::from(self.pieces)],
            transport,
            is_ipv6,
            segment_bytes,
            has_cwr,
            checksum: PartialChecksum { start: headers.ip_bytes as u16, offset: transport.checksum_offset() },
            packets: usize::from(self.pieces),
        }
    }

    /// Whether the first piece says that the congestion window was reduced.
    fn has_cwr(&self) -> bool {
        let flags = self.header.get(self.headers.ip_bytes as usize + TCP_FLAGS_AT);
        self.headers.transport == Transport::Tcp && flags.is_some_and(|flags| flags & tcp_flag::CWR != 0)
    }

    fn has_room(&self, payload_bytes: usize) -> bool {
        !self.is_ended
            && (1..=usize::from(self.segment_bytes)).contains(&payload_bytes)
            && (self.headers.bytes + self.payload_bytes) as usize + payload_bytes <= COALESCE_PACKET_BYTES_MAX
    }

    /// Whether the headers are the first piece's, but for what tells pieces apart, which must be as if the sender had
    /// split a super-segment. As the kernel has it, a window or TCP flag that changes is a difference too.
    fn follows(&self, bytes: &[u8]) -> Option<()> {
        let ours = self.header.get(..self.headers.bytes as usize)?;
        let (our_ip, ours) = ours.split_at_checked(self.headers.ip_bytes as usize)?;
        let (ip, segment) = bytes.split_at_checked(self.headers.ip_bytes as usize)?;
        let same_ip = if self.headers.is_ipv6 {
            ip[..4] == our_ip[..4] && ip[6..] == our_ip[6..]
        } else {
            let step = self.id_step(bytes);
            // DF: nobody needs the ids, so they may also stay the same.
            let may_stay = ip[6] & 0x40 != 0 && (self.is_id_fixed || self.pieces == 1);
            let is_next = (step == u16::from(self.pieces) && !self.is_id_fixed) || (step == 0 && may_stay);
            is_next && ip[..2] == our_ip[..2] && ip[6..10] == our_ip[6..10] && ip[12..] == our_ip[12..]
        };
        let same_transport = || match self.headers.transport {
            Transport::Tcp => {
                let theirs = segment.get(..ours.len())?;
                let sequence = |tcp: &[u8]| Some(u32::from_be_bytes(*tcp.get(4..)?.first_chunk()?));
                let is_next = sequence(theirs)? == sequence(ours)?.wrapping_add(self.payload_bytes);
                let flags = theirs[TCP_FLAGS_AT] & !tcp_flag::PSH;
                // Ports; acknowledgement and length; window; all behind the checksum.
                let is_same = theirs[..4] == ours[..4]
                    && theirs[8..TCP_FLAGS_AT] == ours[8..TCP_FLAGS_AT]
                    && flags == ours[TCP_FLAGS_AT]
                    && theirs[14..16] == ours[14..16]
                    && theirs[18..] == ours[18..];
                Some(is_next && is_same)
            }
            Transport::Udp => Some(segment.get(..4)? == &ours[..4]),
        };
        (same_ip && same_transport()?).then_some(())
    }

    fn id_step(&self, bytes: &[u8]) -> u16 {
        let is_ipv6 = self.headers.is_ipv6;
        ipv4_id(bytes, is_ipv6).wrapping_sub(ipv4_id(&self.header, is_ipv6))
    }

    fn push(&mut self, packet: Span, payload_bytes: usize, end_flags: u8) {
        let header_bytes = self.headers.bytes;
        if let Some(payload) = self.payloads.get_mut(usize::from(self.pieces)) {
            *payload = Span {
                buffer: packet.buffer,
                offset: packet.offset.saturating_add(header_bytes),
                bytes: payload_bytes as u32,
            };
            self.pieces += 1;
            self.payload_bytes += payload_bytes as u32;
            self.end_flags = end_flags;
        }
        self.is_ended = end_flags != 0
            || payload_bytes < usize::from(self.segment_bytes)
            || usize::from(self.pieces) == COALESCE_PIECES_MAX;
    }
}

/// The flags of a TCP packet that are the last piece's alone.
fn end_flags(bytes: &[u8], headers: &Headers) -> u8 {
    match bytes.get(headers.ip_bytes as usize + TCP_FLAGS_AT) {
        Some(flags) if headers.transport == Transport::Tcp => flags & (tcp_flag::FIN | tcp_flag::PSH),
        _ => 0,
    }
}
