//! What must hold for all inputs, each against a twin too simple to be wrong. A failure prints its smallest input and
//! the seed that repeats it, which also goes to `properties.proptest-regressions`.
#![allow(clippy::unwrap_used, reason = "the inputs are this file's own")]

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use ringlane_shared::id::{LaneId, LaneIndex};
use ringlane_shared::lane::keys::Role;
use ringlane_shared::lane::replay::ReplayWindow;
use ringlane_shared::limits::{CANDIDATES_MAX, LANE_CANDIDATES_MAX, RECORD_OVERHEAD_BYTES, REPLAY_WINDOW, WORKERS_MAX};
use ringlane_shared::packet::checksum::{PartialChecksum, Sum, complete};
use ringlane_shared::packet::{PacketHeader, flow_hash};
use ringlane_shared::path::candidate::OwnCandidate;
use ringlane_shared::route::RouteTable;
use ringlane_shared::stun::nat::Mapping;
use ringlane_shared::wire::frame::{FrameHeader, FrameKind, FramedPacket, Frames};
use ringlane_shared::wire::offer::{
    Answer, Candidate, CandidateKind, Extensions, Features, LENGTH_PREFIX_BYTES, LaneSet, LinkSecrets, Offer,
    OfferSecret, Punch, message_bytes,
};
use ringlane_shared::wire::probe::{Probe, ProbeKind, ProbeTag, Transaction, UnverifiedProbe};
use ringlane_shared::wire::record::{EpochTag, RecordError, RecordHeader};

// --- routes -------------------------------------------------------------------------------------------------------

/// Addresses whose bits mostly agree, so that prefixes nest and lookups hit.
fn address() -> impl Strategy<Value = IpAddr> {
    let byte = || select(&[0u8, 1, 0x7f, 0x80, 0xff][..]);
    prop_oneof![
        vec(byte(), 4).prop_map(|b| IpAddr::from(<[u8; 4]>::try_from(b).unwrap())),
        vec(byte(), 16).prop_map(|b| IpAddr::from(<[u8; 16]>::try_from(b).unwrap())),
        any::<u32>().prop_map(|bits| Ipv4Addr::from_bits(bits).into()),
        any::<u128>().prop_map(|bits| Ipv6Addr::from_bits(bits).into()),
    ]
}

fn prefix() -> impl Strategy<Value = IpNet> {
    (address(), 0..=128u8).prop_map(|(address, length)| {
        let length_max = if address.is_ipv4() { 32 } else { 128 };
        IpNet::new(address, length % (length_max + 1)).unwrap()
    })
}

proptest! {
    #[test]
    fn a_route_table_answers_like_a_scan_of_all_its_routes(
        changes in vec((prefix(), prop_oneof![4 => Just(true), 1 => Just(false)]), 0..200),
        addresses in vec(address(), 50),
    ) {
        let (mut table, mut twin) = (RouteTable::default(), Vec::<(IpNet, usize)>::new());
        for (value, (prefix, insert)) in changes.into_iter().enumerate() {
            let known = twin.iter().position(|(p, _)| *p == prefix.trunc()).map(|at| twin.swap_remove(at).1);
            if insert {
                twin.push((prefix.trunc(), value));
                prop_assert_eq!(table.insert(prefix, value), known);
            } else {
                prop_assert_eq!(table.remove(prefix), known);
            }
        }
        let own = twin.iter().map(|(prefix, _)| prefix.addr()).collect::<Vec<_>>();
        for address in addresses.into_iter().chain(own) {
            let best = twin.iter().filter(|(p, _)| p.contains(&address)).max_by_key(|(p, _)| p.prefix_len());
            prop_assert_eq!(table.lookup(address), best.map(|(_, value)| value), "{}", address);
        }
        prop_assert_eq!(table.len(), twin.len());
        twin.sort();
        prop_assert_eq!(table.iter().map(|(prefix, value)| (prefix, *value)).collect::<Vec<_>>(), twin);
    }
}

// --- replay window ------------------------------------------------------------------------------------------------

/// Everything ever accepted, and the newest of it.
#[derive(Default)]
struct ReplayTwin {
    seen: HashSet<u64>,
    newest: Option<u64>,
}

impl ReplayTwin {
    fn accept(&mut self, counter: u64) -> bool {
        let too_old = self.newest.is_some_and(|newest| counter < newest && newest - counter >= REPLAY_WINDOW);
        if counter == u64::MAX || too_old || !self.seen.insert(counter) {
            return false;
        }
        self.newest = self.newest.max(Some(counter));
        true
    }
}

/// A counter, told from the newest one: near it, near the window's edges and laps, or anywhere.
#[derive(Clone, Debug)]
enum Jump {
    By(i64),
    To(u64),
}

fn jump() -> impl Strategy<Value = Jump> {
    let window = REPLAY_WINDOW as i64;
    prop_oneof![
        6 => (-70..70i64).prop_map(Jump::By),
        3 => (-window - 70..=-window + 70).prop_map(Jump::By),
        1 => (-window..0i64).prop_map(Jump::By),
        2 => (1..5i64, -70..70i64).prop_map(move |(laps, by)| Jump::By(laps * window + by)),
        1 => any::<i64>().prop_map(Jump::By),
        1 => prop_oneof![0..200u64, u64::MAX - 200..=u64::MAX, any::<u64>()].prop_map(Jump::To),
    ]
}

proptest! {
    #[test]
    fn a_replay_window_accepts_what_a_set_of_all_seen_counters_would(jumps in vec(jump(), 1..400)) {
        let (mut window, mut twin) = (ReplayWindow::default(), ReplayTwin::default());
        for jump in jumps {
            let newest = twin.newest.unwrap_or(0);
            let counter = match jump {
                Jump::By(by) => newest.saturating_add_signed(by),
                Jump::To(counter) => counter,
            };
            let accepted = twin.accept(counter);
            prop_assert_eq!(window.is_fresh(counter), accepted, "{} after {}", counter, newest);
            prop_assert_eq!(window.accept(counter), accepted, "{} after {}", counter, newest);
            prop_assert!(!window.is_fresh(counter));
        }
    }
}

// --- frames and records -------------------------------------------------------------------------------------------

fn framed_packet() -> impl Strategy<Value = FramedPacket> {
    select(&[FramedPacket::Complete, FramedPacket::Partial, FramedPacket::Segment, FramedPacket::NextSegment][..])
}

fn partial_checksum(packet_bytes: usize) -> impl Strategy<Value = Option<PartialChecksum>> {
    (any::<u16>(), any::<u8>()).prop_map(move |(start, offset)| {
        let offset = usize::from(offset).min(packet_bytes.checked_sub(2)?);
        let start = usize::from(start) % (packet_bytes - offset - 1);
        Some(PartialChecksum { start: start as u16, offset: offset as u8 })
    })
}

fn packet_and_checksum() -> impl Strategy<Value = (Vec<u8>, Option<PartialChecksum>)> {
    vec(any::<u8>(), 1..700).prop_flat_map(|packet| {
        let checksum = prop_oneof![Just(None), partial_checksum(packet.len())];
        (Just(packet), checksum)
    })
}

proptest! {
    #[test]
    fn frames_read_back_as_written(
        packets in vec((vec(any::<u8>(), 1..700), framed_packet()), 0..12), room in 0..2000usize,
    ) {
        let (mut bytes, mut written) = (Vec::new(), Vec::new());
        for (packet, what) in packets {
            let Some(header) = FrameHeader::fit(what, packet.len(), room - bytes.len()) else { continue };
            bytes.extend_from_slice(header.as_bytes());
            bytes.extend_from_slice(&packet);
            written.push((packet, what));
            prop_assert!(bytes.len() <= room);
            if header.ends_record() {
                break;
            }
        }
        let read = Frames::new(&bytes).map(|frame| {
            let frame = frame.unwrap();
            let what = match (frame.kind, frame.is_partial, frame.continues) {
                (FrameKind::Packet, false, false) => FramedPacket::Complete,
                (FrameKind::Packet, true, false) => FramedPacket::Partial,
                (FrameKind::Segment, true, false) => FramedPacket::Segment,
                (FrameKind::Segment, true, true) => FramedPacket::NextSegment,
                other => panic!("{other:?}"),
            };
            (bytes[frame.payload].to_vec(), what)
        });
        prop_assert_eq!(read.collect::<Vec<_>>(), written);
    }

    #[test]
    fn any_bytes_are_frames_in_order_until_the_first_error(bytes in vec(any::<u8>(), 0..200)) {
        let (mut end, mut failed) = (0, false);
        for frame in Frames::new(&bytes) {
            prop_assert!(!failed);
            match frame {
                Ok(frame) => {
                    prop_assert!(end < frame.payload.start && frame.payload.end <= bytes.len());
                    prop_assert!(frame.is_partial || frame.kind != FrameKind::Segment);
                    prop_assert!(!frame.continues || matches!(frame.kind, FrameKind::Segment | FrameKind::Fragment));
                    end = frame.payload.end;
                }
                Err(_) => failed = true,
            }
        }
        prop_assert!(failed || end == bytes.len());
    }

    #[test]
    fn a_record_header_reads_back_as_written(
        epoch in any::<u64>(), lane in 0..1u32 << 24, counter in any::<u64>(), sealed in vec(any::<u8>(), 16..64),
    ) {
        let header = RecordHeader { epoch: EpochTag::of_epoch(epoch), lane: LaneId::new(lane).unwrap(), counter };
        let record = [&header.to_bytes()[..], &sealed].concat();
        prop_assert_eq!(RecordHeader::parse(&record), Ok(header));
    }

    #[test]
    fn any_bytes_are_a_record_or_say_why_not(bytes in vec(any::<u8>(), 0..64)) {
        match RecordHeader::parse(&bytes) {
            Ok(header) => prop_assert_eq!(&header.to_bytes()[..], &bytes[..12]),
            Err(RecordError::Short(length)) => prop_assert!(length == bytes.len() && length < RECORD_OVERHEAD_BYTES),
            Err(RecordError::Kind(first)) => prop_assert!(first == bytes[0] && first >> 4 != 3),
        }
    }
}

// --- offers and probes --------------------------------------------------------------------------------------------

/// An address as the wire carries it: IPv4-mapped ones are IPv4.
fn outer_address() -> impl Strategy<Value = IpAddr> {
    address().prop_map(|address| address.to_canonical())
}

fn candidate(port: std::ops::RangeInclusive<u16>) -> impl Strategy<Value = Candidate> {
    (candidate_kind(), outer_address(), port).prop_map(|(kind, ip, port)| Candidate { kind, ip, port })
}

fn candidate_kind() -> impl Strategy<Value = CandidateKind> {
    (0..4u8).prop_map(|code| CandidateKind::from_code(code).unwrap())
}

fn extensions(workers: u8) -> impl Strategy<Value = Extensions> {
    let own = (0..workers, candidate_kind(), outer_address(), 1..=u16::MAX).prop_map(|(worker, kind, ip, port)| {
        let address = SocketAddr::new(ip, port);
        OwnCandidate { worker, kind, address }
    });
    let mapping = select(
        &[Mapping::Unknown, Mapping::EndpointIndependent, Mapping::AddressDependent, Mapping::AddressAndPortDependent]
            [..],
    );
    let punch =
        (mapping, any::<i16>(), any::<bool>(), 0..=1000u64).prop_map(|(mapping, port_delta, birthday, delay)| Punch {
            mapping,
            port_delta,
            birthday,
            start_delay: Duration::from_millis(delay),
        });
    (vec(own, 0..=LANE_CANDIDATES_MAX), punch).prop_map(|(candidates, punch)| Extensions { candidates, punch })
}

fn offer() -> impl Strategy<Value = Offer> {
    (1..=WORKERS_MAX as u8)
        .prop_flat_map(|workers| {
            let port = 1..=u16::MAX - (u16::from(workers) - 1);
            let numbers = (port.clone(), 0..=(1u32 << 24) - 64, any::<u64>(), any::<u32>());
            let candidates = (vec(candidate(port), 0..=CANDIDATES_MAX), extensions(workers));
            (Just(workers), any::<[u8; 16]>(), any::<[u8; 32]>(), numbers, candidates)
        })
        .prop_map(|(workers, instance, secret, (port, lane_id_base, lanes, features), (candidates, extensions))| {
            Offer {
                instance,
                secret: OfferSecret::new(secret),
                features: Features(features),
                workers,
                port,
                lane_id_base: LaneId::new(lane_id_base).unwrap(),
                lanes: LaneSet(lanes),
                candidates,
                extensions,
            }
        })
}

fn probe() -> impl Strategy<Value = Probe> {
    let observed = (outer_address(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port));
    let kind = prop_oneof![Just(ProbeKind::Request), observed.prop_map(|observed| ProbeKind::Reply { observed })];
    (any::<[u8; 8]>(), 0..64u8, any::<u64>(), kind).prop_map(|(tag, lane, transaction, kind)| Probe {
        tag: ProbeTag(tag),
        lane: LaneIndex::new(lane).unwrap(),
        transaction: Transaction(transaction),
        kind,
    })
}

proptest! {
    #[test]
    fn an_offer_reads_back_as_written(offer in offer()) {
        let bytes = offer.to_message().unwrap();
        let (prefix, message) = bytes.split_at(LENGTH_PREFIX_BYTES);
        prop_assert_eq!(message_bytes(prefix.try_into().unwrap()), Ok(message.len()));
        prop_assert_eq!(Offer::parse(message), Ok(offer));
    }

    #[test]
    fn a_damaged_offer_is_refused_or_says_exactly_what_its_bytes_say(
        offer in offer(), damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), cut in 0..40usize,
    ) {
        let mut message = offer.to_message().unwrap()[LENGTH_PREFIX_BYTES..].to_vec();
        message.truncate(message.len() - cut.min(message.len() - 1));
        for (at, byte) in damage {
            let at = at.index(message.len());
            message[at] = byte;
        }
        if let Ok(answer) = Answer::parse(&message) {
            let again = answer.to_message().unwrap();
            prop_assert_eq!(&Answer::parse(&again[LENGTH_PREFIX_BYTES..]).unwrap(), &answer);
            // Of extensions, what cannot be used is skipped.
            let without = match answer {
                Answer::Offer(offer) => Answer::Offer(Box::new(Offer { extensions: Extensions::default(), ..*offer })),
                refused => refused,
            };
            prop_assert!(message.starts_with(&without.to_message().unwrap()[LENGTH_PREFIX_BYTES..]));
        }
    }

    #[test]
    fn a_probe_verifies_with_its_links_key_and_no_other(probe in probe(), client in offer(), server in offer()) {
        let [ours, theirs] = [LinkSecrets::derive(&client, &server), LinkSecrets::derive(&server, &client)];
        let datagram = ours.probe_key().seal(&probe);
        let unverified = UnverifiedProbe::parse(&datagram).unwrap();
        prop_assert_eq!(unverified.tag(), probe.tag);
        prop_assert_eq!(ours.probe_key().verify(&unverified), Ok(probe));
        prop_assert!(theirs.probe_key().verify(&unverified).is_err());
        prop_assert_ne!(ours.probe_tag(Role::Client), ours.probe_tag(Role::Server));
    }
}

// --- packets ------------------------------------------------------------------------------------------------------

/// RFC 1071 as its text says it: big-endian words, the last one padded, carries added at the end.
fn naive_sum(bytes: &[u8]) -> u16 {
    let mut sum: u64 =
        bytes.chunks(2).map(|word| u64::from(word[0]) << 8 | word.get(1).map_or(0, |b| u64::from(*b))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

proptest! {
    #[test]
    fn a_sum_in_parts_equals_the_naive_one(
        bytes in prop_oneof![vec(any::<u8>(), 0..600), vec(select(&[0u8, 0xff][..]), 0..600)],
        cuts in vec(any::<prop::sample::Index>(), 0..5),
    ) {
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).chain([0, bytes.len()]).collect();
        cuts.sort_unstable();
        let sum = cuts.windows(2).fold(Sum::default(), |sum, part| sum.plus(&bytes[part[0]..part[1]]));
        prop_assert_eq!(sum.fold(), naive_sum(&bytes));
    }

    #[test]
    fn a_completed_checksum_makes_the_covered_sum_all_ones(
        (mut packet, checksum) in packet_and_checksum(), pseudo_header in vec(any::<u8>(), 12..=12),
    ) {
        if let Some(checksum) = checksum {
            // Sums are of 16-bit words, so the kernel only ever names even offsets from the start.
            let checksum = PartialChecksum { offset: checksum.offset & !1, ..checksum };
            let field = usize::from(checksum.start) + usize::from(checksum.offset);
            packet[field..field + 2].copy_from_slice(&naive_sum(&pseudo_header).to_be_bytes());
            let before = packet.clone();
            complete(&mut packet, checksum).unwrap();
            let covered = [&pseudo_header, &packet[usize::from(checksum.start)..]].concat();
            prop_assert_eq!(naive_sum(&covered), 0xffff);
            prop_assert_ne!(&packet[field..field + 2], &[0, 0]);
            packet[field..field + 2].copy_from_slice(&before[field..field + 2]);
            prop_assert_eq!(packet, before);
        }
    }

    #[test]
    fn any_bytes_are_a_packet_within_them_or_none(
        version in select(&[0x40u8, 0x45, 0x46, 0x4f, 0x60, 0x50][..]),
        rest in vec(any::<u8>(), 0..120),
        short in any::<bool>(),
    ) {
        let mut bytes = [&[version], &rest[..]].concat();
        if short && bytes.len() > 5 {
            // Small lengths, so that more than a few of the packets are whole.
            bytes[if version >> 4 == 4 { 2 } else { 4 }] = 0;
        }
        if let Ok(header) = PacketHeader::parse(&bytes) {
            prop_assert!(header.total_bytes <= bytes.len());
            prop_assert_eq!(header.source.is_ipv4(), header.destination.is_ipv4());
            prop_assert_eq!(flow_hash(&bytes, &header, 1), flow_hash(header.trim(&bytes), &header, 1));
        }
    }

    #[test]
    fn all_fragments_of_a_packet_hash_alike(
        source in any::<u32>(), destination in any::<u32>(), protocol in select(&[6u8, 17, 132, 1][..]),
        payload in vec(any::<u8>(), 9..400), fragment_units in 1..20usize, seed in any::<u64>(),
    ) {
        let pieces = payload.chunks(fragment_units * 8).count();
        prop_assume!(pieces > 1);
        let (mut v4, mut v6) = (HashSet::new(), HashSet::new());
        for (index, piece) in payload.chunks(fragment_units * 8).enumerate() {
            let more = index + 1 < pieces;
            let units = (index * fragment_units) as u16;
            let hash = |packet: Vec<u8>| flow_hash(&packet, &PacketHeader::parse(&packet).unwrap(), seed);

            let mut packet = vec![0x45, 0];
            packet.extend((20 + piece.len() as u16).to_be_bytes());
            packet.extend([0, 7]);
            packet.extend((units | u16::from(more) << 13).to_be_bytes());
            packet.extend([64, protocol, 0, 0]);
            packet.extend(source.to_be_bytes());
            packet.extend(destination.to_be_bytes());
            packet.extend(piece);
            v4.insert(hash(packet));

            let mut packet = vec![0x60, 0, 0, 0];
            packet.extend((8 + piece.len() as u16).to_be_bytes());
            packet.extend([44, 64]);
            packet.extend(Ipv4Addr::from_bits(source).to_ipv6_mapped().octets());
            packet.extend(Ipv4Addr::from_bits(destination).to_ipv6_mapped().octets());
            packet.extend([protocol, 0]);
            packet.extend((units << 3 | u16::from(more)).to_be_bytes());
            packet.extend([0, 0, 0, 7]);
            packet.extend(piece);
            v6.insert(hash(packet));
        }
        prop_assert_eq!((v4.len(), v6.len()), (1, 1));
    }
}
