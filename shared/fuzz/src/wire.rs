//! Datagrams and stream messages.

use ringlane_shared::id::{LaneId, LaneIndex};
use ringlane_shared::lane::keys::{KeyError, LaneKeys, Role, Suite};
use ringlane_shared::lane::seal::{OpenError, split};
use ringlane_shared::limits::{FRAME_HEADER_BYTES_MAX, RECORD_HEADER_BYTES, RECORD_OVERHEAD_BYTES};
use ringlane_shared::packet::checksum::PartialChecksum;
use ringlane_shared::packet::{PacketHeader, checksum, flow_hash};
use ringlane_shared::wire::frame::{Frame, FrameHeader, FrameKind, FramedPacket, Frames};
use ringlane_shared::wire::offer::{
    Answer, Extensions, Features, LENGTH_PREFIX_BYTES, LaneSet, LinkSecrets, Offer, OfferSecret,
};
use ringlane_shared::wire::probe::UnverifiedProbe;
use ringlane_shared::wire::record::{DatagramKind, RecordHeader};

/// A datagram at a lane's port; then the same bytes as the frames of an authentic record, which is all that an
/// attacker without keys can never get at but a broken or hostile peer can.
pub fn record(datagram: &[u8]) -> bool {
    let kind = DatagramKind::of(datagram);
    if let Ok(header) = RecordHeader::parse(datagram) {
        assert_eq!(kind, DatagramKind::Record);
        assert_eq!(header.to_bytes(), datagram[..RECORD_HEADER_BYTES]);
    }

    let (clients, servers) = (LaneId::from_be_bytes([0, 0, 7]), LaneId::from_be_bytes([0xab, 0xcd, 0xef]));
    let keys = |role| LaneKeys::derive(Suite::Aes128Gcm, role, export).expect("the exporter knows both contexts");
    let (mut sealer, _) = split(keys(Role::Client), servers, clients);
    let (_, mut opener) = split(keys(Role::Server), clients, servers);

    let opened = opener.open(&mut datagram.to_vec()).is_ok();
    if opened {
        assert_eq!(opener.open(&mut datagram.to_vec()), Err(OpenError::Replayed));
    }

    let (_, mut opener) = split(keys(Role::Server), clients, servers);
    let mut sealed = vec![0; datagram.len() + RECORD_OVERHEAD_BYTES];
    sealed[RECORD_HEADER_BYTES..][..datagram.len()].copy_from_slice(datagram);
    sealer.seal(&mut sealed, datagram.len()).expect("the buffer has room and the epoch is young");
    assert_eq!(DatagramKind::of(&sealed), DatagramKind::Record);
    let read = opener.open(&mut sealed).expect("what the other end sealed opens").frames;
    assert_eq!(read, datagram);
    frames(read);
    opened
}

/// The exporter of `shared/tests/vectors.rs`.
fn export(output: &mut [u8], _label: &[u8], context: &[u8]) -> Result<(), KeyError> {
    let first = if context.starts_with(b"client to server") { 0x40 } else { 0x80 };
    for (byte, value) in output.iter_mut().zip(first..) {
        *byte = value;
    }
    Ok(())
}

fn frames(record: &[u8]) {
    let mut end = 0;
    for frame in Frames::new(record).map_while(Result::ok) {
        assert!(end < frame.payload.start && frame.payload.end <= record.len());
        end = frame.payload.end;
        if matches!(frame.kind, FrameKind::Packet | FrameKind::Segment) {
            packet_frame(record, &frame);
        }
    }
}

fn packet_frame(record: &[u8], frame: &Frame) {
    let payload = &record[frame.payload.clone()];
    let what = match (frame.kind, frame.is_partial, frame.continues) {
        (FrameKind::Segment, _, true) => FramedPacket::NextSegment,
        (FrameKind::Segment, _, false) => FramedPacket::Segment,
        (_, true, _) => FramedPacket::Partial,
        (_, false, _) => FramedPacket::Complete,
    };
    let header = FrameHeader::fit(what, payload.len(), FRAME_HEADER_BYTES_MAX + payload.len());
    let again = [header.expect("there is room").as_bytes(), payload].concat();
    let read = Frames::new(&again).next().expect("one frame").expect("a good one");
    let said = |frame: &Frame| (frame.kind, frame.is_partial, frame.continues);
    assert_eq!((&again[read.payload.clone()], said(&read)), (payload, said(frame)));

    if let Ok(header) = PacketHeader::parse(payload) {
        assert!(header.total_bytes <= payload.len());
        assert_eq!(header.source.is_ipv4(), header.destination.is_ipv4());
        let trimmed = header.trim(payload);
        assert_eq!(PacketHeader::parse(trimmed), Ok(header));
        assert_eq!(flow_hash(payload, &header, 1), flow_hash(trimmed, &header, 1));
        if let Some(partial) = PartialChecksum::of_transport(&header) {
            assert!(partial.fits(trimmed.len()) && usize::from(partial.start) >= 20, "no field of the IP header");
            checksum::complete(&mut trimmed.to_vec(), partial).expect("it lies within the packet");
        }
    }
}

/// What arrives on the link stream, or a probe: what is accepted says exactly what its bytes say.
pub fn offer(message: &[u8]) -> bool {
    let probed = probe(message);
    let Ok(answer) = Answer::parse(message) else {
        assert!(Offer::parse(message).is_err());
        return probed;
    };
    let again = answer.to_message().expect("what was accepted can be sent");
    // Extensions may come in any order, with others between them.
    let without = match answer.clone() {
        Answer::Offer(offer) => Answer::Offer(Box::new(Offer { extensions: Extensions::default(), ..*offer })),
        refused => refused,
    };
    assert!(message.starts_with(&without.to_message().expect("less can be sent too")[LENGTH_PREFIX_BYTES..]));
    assert_eq!(Answer::parse(&again[LENGTH_PREFIX_BYTES..]).as_ref(), Ok(&answer));
    match answer {
        Answer::Offer(offer) => lanes(&offer),
        Answer::Refused(reason) => assert!(!reason.to_string().is_empty()),
    }
    true
}

fn lanes(offer: &Offer) {
    let (mut ids, mut addresses) = (Vec::new(), 0);
    for lane in LaneSet(u64::MAX).iter() {
        ids.push(offer.lane_id(lane));
        addresses += offer.lane_candidates(lane).filter(|(_, address)| address.port() != 0).count();
    }
    assert!(ids.is_sorted_by(|a, b| a < b));
    let of_workers = |worker: usize| (0..ids.len()).filter(|lane| lane % usize::from(offer.workers) == worker).count();
    let own: usize = offer.extensions.candidates.iter().map(|own| of_workers(own.worker.into())).sum();
    assert_eq!(addresses, ids.len() * offer.candidates.len() + own);
    assert_eq!(offer.lanes.iter().collect::<LaneSet>(), offer.lanes);
}

fn probe(datagram: &[u8]) -> bool {
    let Ok(unverified) = UnverifiedProbe::parse(datagram) else { return false };
    assert_eq!(DatagramKind::of(datagram), DatagramKind::Probe);
    let key = link().probe_key();
    let Ok(probe) = key.verify(&unverified) else { return false };
    assert_eq!(probe.tag, unverified.tag());
    assert_eq!(key.seal(&probe), datagram);
    true
}

/// The link of `shared/tests/vectors.rs`.
fn link() -> LinkSecrets {
    let offer = |first: u8| Offer {
        instance: [0; 16],
        secret: OfferSecret::new(std::array::from_fn(|at| first + at as u8)),
        features: Features::default(),
        workers: 1,
        port: 1,
        lane_id_base: LaneId::from_be_bytes([0; 3]),
        lanes: LaneIndex::all(1, 1).collect(),
        candidates: Vec::new(),
        extensions: Default::default(),
    };
    LinkSecrets::derive(&offer(0), &offer(0x80))
}
