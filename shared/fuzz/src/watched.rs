//! A coalescer under watch: whatever it is given, nothing is lost, nothing invented, order kept, bounds kept, and every
//! super-segment stands for exactly the packets that went into it.

use ringlane_shared::id::PeerIndex;
use ringlane_shared::limits::{COALESCE_HEADER_BYTES_MAX, COALESCE_PACKET_BYTES_MAX, COALESCE_PIECES_MAX};
use ringlane_shared::packet::checksum::{PartialChecksum, complete};
use ringlane_shared::packet::{Coalescer, Joined, PacketHeader, Span, Transport};

use crate::twin::{FIN, PSH, Parts, nonzero};

/// A packet that went in.
struct Given {
    bytes: Vec<u8>,
    header: PacketHeader,
    owner: PeerIndex,
    checksum: Option<PartialChecksum>,
    /// Ports, if there are any.
    ports: Option<[u8; 4]>,
    /// Whether a super-segment that it is part of must split into it, headers and all; else only its payload counts.
    is_exact: bool,
}

impl Given {
    /// Whether it must come out in the order it went in.
    fn is_ordered_with(&self, other: &Self) -> bool {
        let (ours, theirs) = (&self.header, &other.header);
        (ours.source, ours.destination) == (theirs.source, theirs.destination)
            && match (self.ports, other.ports) {
                (Some(ports), Some(others)) => (ours.protocol, ports) == (theirs.protocol, others),
                _ => true,
            }
    }
}

/// What came out at once.
#[derive(Debug)]
pub struct Write {
    /// The packet or super-segment.
    pub packet: Vec<u8>,
    /// The packets it is made of, counted as they went in.
    pub pieces: Vec<usize>,
}

pub struct Watched {
    coalescer: Coalescer,
    /// To whom the next packets belong.
    pub owner: PeerIndex,
    given: Vec<Given>,
    writes: Vec<Write>,
    /// The first piece of the super-segment begun last.
    first: Option<usize>,
}

impl Watched {
    pub fn new(joins_tcp: bool, joins_udp: bool) -> Self {
        let coalescer = Coalescer::new(joins_tcp, joins_udp);
        Self { coalescer, owner: PeerIndex(1), given: Vec::new(), writes: Vec::new(), first: None }
    }

    /// A packet with a complete or a partial checksum. Whether it is one at all.
    pub fn add(&mut self, bytes: &[u8], is_partial: bool) -> bool {
        let Some((header, span)) = self.receive(bytes, is_partial) else { return false };
        let Self { coalescer, owner, given, writes, .. } = self;
        let Given { bytes, checksum, .. } = &given[given.len() - 1];
        coalescer.add(*owner, bytes, &header, span, *checksum, |joined| writes.push(read(given, joined)));
        true
    }

    /// The first piece of a super-segment. Whether it is one at all.
    pub fn begin(&mut self, bytes: &[u8]) -> bool {
        let Some((header, span)) = self.receive(bytes, true) else { return false };
        self.first = Some(self.given.len() - 1);
        let Self { coalescer, owner, given, writes, .. } = self;
        let Given { bytes, .. } = &given[given.len() - 1];
        coalescer.begin_segments(*owner, bytes, &header, span, |joined| writes.push(read(given, joined)));
        true
    }

    /// What is said to be the next piece of it, and whether it is. Whether it was taken.
    pub fn next(&mut self, bytes: &[u8], is_exact: bool) -> bool {
        let taken = self.coalescer.continue_segments(bytes, self.span(bytes));
        if taken {
            let first = &self.given[self.first.expect("there is a first piece")];
            let Given { header, owner, checksum, ports, .. } = *first;
            let is_exact = is_exact && first.is_exact;
            self.given.push(Given { bytes: bytes.into(), header, owner, checksum, ports, is_exact });
        }
        taken
    }

    pub fn interrupt(&mut self) {
        self.coalescer.break_segments();
    }

    pub fn flush(&mut self) {
        let Self { coalescer, given, writes, .. } = self;
        coalescer.flush(|joined| writes.push(read(given, joined)));
    }

    /// Ends it, and says what came out.
    pub fn finish(mut self) -> Vec<Write> {
        self.flush();
        let mut place = vec![None; self.given.len()];
        for (at, &number) in self.writes.iter().flat_map(|write| &write.pieces).enumerate() {
            assert_eq!(place[number].replace(at), None, "packet {number} came out twice");
        }
        for (number, given) in self.given.iter().enumerate() {
            assert!(place[number].is_some(), "packet {number} is lost");
            for (before, _) in self.given[..number].iter().enumerate().filter(|(_, other)| other.is_ordered_with(given))
            {
                assert!(place[before] < place[number], "packet {number} overtook {before}");
            }
        }
        self.writes
    }

    /// Where the next packet lies: each in a buffer of its own, and not at its beginning.
    fn span(&self, bytes: &[u8]) -> Span {
        Span { buffer: self.given.len() as u16, offset: offset(self.given.len()), bytes: bytes.len() as u32 }
    }

    fn receive(&mut self, bytes: &[u8], is_partial: bool) -> Option<(PacketHeader, Span)> {
        let header = PacketHeader::parse(bytes).ok()?;
        let bytes = header.trim(bytes);
        let checksum = PartialChecksum::of_transport(&header).filter(|_| is_partial);
        if is_partial && checksum.is_none() {
            return None;
        }
        let span = self.span(bytes);
        let has_ports = checksum.is_some() || (!header.is_fragment && [6, 17].contains(&header.protocol));
        let ports = bytes.get(header.transport_offset..).and_then(|rest| rest.first_chunk().copied());
        // Behind extension headers the sum is taken as it comes, right or wrong.
        let is_exact = !header.source.is_ipv6() || header.transport_offset == 40;
        let owner = self.owner;
        let ports = ports.filter(|_| has_ports);
        self.given.push(Given { bytes: bytes.into(), header, owner, checksum, ports, is_exact });
        Some((header, span))
    }
}

fn offset(buffer: usize) -> u32 {
    13 + buffer as u32 % 5
}

fn bytes<'a>(given: &'a [Given], span: &Span) -> &'a [u8] {
    let buffer = usize::from(span.buffer);
    &given[buffer].bytes[(span.offset - offset(buffer)) as usize..][..span.bytes as usize]
}

/// Looks at what came out, and puts it together.
fn read(given: &[Given], joined: Joined<'_>) -> Write {
    match joined {
        Joined::Whole { owner, packet, checksum } => {
            let number = usize::from(packet.buffer);
            assert_eq!((owner, checksum), (given[number].owner, given[number].checksum));
            assert_eq!(bytes(given, &packet), given[number].bytes);
            Write { packet: given[number].bytes.clone(), pieces: vec![number] }
        }
        Joined::Super { header, payloads, packets, .. } => {
            let payload = payloads.iter().flat_map(|span| bytes(given, span));
            let packet: Vec<u8> = header.iter().chain(payload).copied().collect();
            let pieces: Vec<_> = payloads.iter().map(|span| usize::from(span.buffer)).collect();
            assert_eq!(packets, pieces.len());
            super_segment(given, joined, &packet, &pieces);
            Write { packet, pieces }
        }
    }
}

fn super_segment(given: &[Given], joined: Joined<'_>, packet: &[u8], pieces: &[usize]) {
    let Joined::Super { owner, header, transport, is_ipv6, segment_bytes, has_cwr, checksum, .. } = joined else {
        unreachable!("it is one");
    };
    assert!((2..=COALESCE_PIECES_MAX).contains(&pieces.len()));
    assert!(packet.len() <= COALESCE_PACKET_BYTES_MAX && header.len() <= COALESCE_HEADER_BYTES_MAX);
    let first = &given[pieces[0]];
    let whole = Parts::of(packet).expect("the kernel understands it");
    assert_eq!(whole.ip.len() + whole.transport.len(), header.len());
    assert_eq!(PartialChecksum::of_transport(&PacketHeader::parse(packet).expect("as above")), Some(checksum));
    assert_eq!((whole.is_tcp(), whole.is_ipv6()), (transport == Transport::Tcp, is_ipv6));
    assert_eq!(has_cwr, whole.is_tcp() && whole.transport[13] & 0x80 != 0);
    if first.is_exact {
        assert_eq!(whole.to_packet(true), packet, "all lengths and sums are right");
    }
    let split = whole.split(usize::from(segment_bytes));
    assert_eq!(split.len(), pieces.len());
    for (index, (mut piece, &number)) in split.into_iter().zip(pieces).enumerate() {
        let given = &given[number];
        assert_eq!(given.owner, owner);
        assert_eq!(piece.payload, given.bytes[header.len()..]);
        if index + 1 == pieces.len() && whole.is_tcp() {
            let flags = given.bytes[whole.ip.len() + 13] & (FIN | PSH);
            assert_eq!(piece.transport[13] & (FIN | PSH), flags);
        }
        if !given.is_exact {
            continue;
        }
        let parts = Parts::of(&given.bytes).expect("it joined");
        let is_fixed = piece.is_atomic() && parts.id() == Parts::of(&first.bytes).expect("it began").id();
        if is_fixed {
            piece.set_id(parts.id());
        }
        assert_eq!(piece.to_packet(false), finished(given, &parts), "packet {number}");
    }
}

/// The packet as the kernel would have made it complete.
fn finished(given: &Given, parts: &Parts) -> Vec<u8> {
    let mut packet = given.bytes.clone();
    if let Some(partial) = given.checksum {
        complete(&mut packet, partial).expect("the field is there");
    }
    let at = parts.checksum_at();
    let checksum = u16::from_be_bytes([packet[at], packet[at + 1]]);
    assert!(checksum != 0 || parts.is_tcp(), "a datagram without a checksum joined");
    packet[at..at + 2].copy_from_slice(&nonzero(checksum).to_be_bytes());
    packet
}
