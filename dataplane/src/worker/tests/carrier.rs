//! A worker's lane whose packets travel in DATAGRAM frames: its QUIC connection is a real one, with the far end's in the
//! test's hands.

use quinn_proto::crypto::rustls::QuicServerConfig;
use quinn_proto::{ConnectionId, MtuDiscoveryConfig, ServerConfig, TransportConfig};
use ringlane_shared::lane::congestion::UnhinderedFactory;
use ringlane_shared::lane::rekey::Rekey;
use ringlane_shared::limits::{QUIC_PACKETS_IN_FLIGHT_MAX, QUIC_QUEUE_BYTES, QUIC_RECEIVE_BYTES};
use ringlane_shared::path::loss::Loss;
use ringlane_shared::plane::LaneCarrier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::{default_provider, sign::any_eddsa_type};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, Error, SignatureScheme};

use super::*;

/// Believes everybody: who the far end is matters to other tests.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// As control configures it, but that a peer may take no DATAGRAM frames and that the path MTU stays what it is.
fn transport(takes_datagrams: bool) -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    transport
        .datagram_receive_buffer_size(takes_datagrams.then_some(QUIC_RECEIVE_BYTES))
        .datagram_send_buffer_size(QUIC_QUEUE_BYTES)
        .congestion_controller_factory(Arc::new(UnhinderedFactory))
        .mtu_discovery_config(None::<MtuDiscoveryConfig>)
        .enable_segmentation_offload(true);
    Arc::new(transport)
}

/// A connection on which the handshake is done: our end and the far one.
pub(super) fn connected(remote: SocketAddr, far_takes_datagrams: bool) -> (LaneConnection, LaneConnection) {
    let provider = Arc::new(default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    let mut client = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    client.transport_config(transport(true)).initial_dst_cid_provider(Arc::new(|| ConnectionId::new(&[7; 20])));

    let seed = [&b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20"[..], &[9; 32]].concat();
    let key = any_eddsa_type(&PrivatePkcs8KeyDer::from(seed)).unwrap();
    let public = CertificateDer::from(key.public_key().unwrap().to_vec());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(Arc::new(CertifiedKey::new(
            vec![public],
            key,
        )))));
    let mut server = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
    server.transport_config(transport(far_takes_datagrams));

    let endpoint = || {
        let mut endpoint = EndpointConfig::default();
        endpoint.grease_quic_bit(false);
        endpoint
    };
    let now = Instant::now();
    let mut near = LaneConnection::connect(endpoint(), client, remote, now).unwrap();
    let mut to_far = Vec::new();
    near.drive(now, |datagram| to_far.push(datagram.to_vec()));
    let initial = to_far.remove(0);
    let mut far = LaneConnection::accept(endpoint(), Arc::new(server), remote, &initial, now).unwrap();
    for _ in 0..20 {
        to_far.drain(..).for_each(|datagram| far.handle_datagram(now, &datagram));
        let mut to_near = Vec::new();
        far.drive(now, |datagram| to_near.push(datagram.to_vec()));
        to_near.iter().for_each(|datagram| near.handle_datagram(now, datagram));
        near.drive(now, |datagram| to_far.push(datagram.to_vec()));
    }
    assert!(near.is_confirmed() && far.is_confirmed(), "{:?} {:?}", near.lost(), far.lost());
    (near, far)
}

struct QuicBed {
    bed: Bed,
    far: LaneConnection,
    /// Datagrams that came as records.
    records: usize,
}

impl QuicBed {
    fn new(far_takes_datagrams: bool) -> Self {
        let mut far = None;
        let bed = Bed::with(0, CarrierChoice::Quic, no_queue(), |remote| {
            let (near, other) = connected(remote, far_takes_datagrams);
            far = Some(other);
            near
        });
        Self { bed, far: far.unwrap(), records: 0 }
    }

    /// Lets the far end hear what has arrived, and answer.
    fn far_turn(&mut self) {
        let mut buffer = [0; 65_536];
        let now = Instant::now();
        while let Ok(bytes) = self.bed.far.recv(&mut buffer) {
            match buffer[0] >> 4 {
                3 => self.records += 1,
                _ => self.far.handle_datagram(now, &buffer[..bytes]),
            }
        }
        self.far.drive(now, |datagram| _ = self.bed.far.send(datagram));
    }

    /// What reaches the far end in DATAGRAM frames until there are `count`: each one's kinds of frames and their sizes.
    fn datagrams(&mut self, count: usize) -> Vec<Vec<(FrameKind, bool, usize)>> {
        let mut datagrams = Vec::new();
        for _ in 0..1000 {
            self.bed.turn();
            self.far_turn();
            while let Some(frames) = self.far.receive_datagram() {
                let read = Frames::new(&frames).map(|frame| frame.unwrap());
                datagrams.push(read.map(|frame| (frame.kind, frame.is_partial, frame.payload.len())).collect());
            }
            if datagrams.len() >= count {
                return datagrams;
            }
        }
        panic!("{} datagrams instead of {count}", datagrams.len());
    }

    /// Sends frames from the far end in a DATAGRAM frame.
    fn send(&mut self, frames: &[u8]) {
        self.far.send_datagram(frames).unwrap();
        self.far_turn();
    }

    /// Packets written to the TUN so far that nobody has looked at.
    fn written(&mut self) -> Vec<Vec<u8>> {
        let mut buffer = [0; 65_536];
        let mut written = Vec::new();
        while let Ok(bytes) = self.bed.tun.recv(&mut buffer) {
            written.push(buffer[VNET_HEADER_BYTES..bytes].to_vec());
        }
        written
    }

    /// What is left of the queue of the lane's connection.
    fn room(&mut self) -> usize {
        let slot = self.bed.worker.state.lanes.slots()[0];
        self.bed.worker.state.lanes.get_mut(slot).unwrap().connection.datagram_room_bytes()
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.bed.counters[0].drops.get(reason)
    }
}

fn framed(packet: &[u8], what: FramedPacket) -> Vec<u8> {
    [FrameHeader::fit(what, packet.len(), packet.len() + 1).unwrap().as_bytes(), packet].concat()
}

#[test]
fn packets_share_a_datagram_and_the_pieces_of_a_super_segment_are_packets_each_in_its_own() {
    let mut bed = QuicBed::new(true);
    let before = bed.room();
    bed.bed.until(|bed| bed.worker.ring.is_idle().then_some(()));
    (0..3).for_each(|_| bed.bed.leave(100));
    bed.bed.worker.ring.enter().unwrap();
    assert_eq!(bed.datagrams(1), [vec![(FrameKind::Packet, false, 100); 3]]);
    bed.bed.tun.send(&super_segment(4000, 1000)).unwrap();
    assert_eq!(bed.datagrams(4), vec![vec![(FrameKind::Packet, true, 1028)]; 4]);
    assert_eq!(bed.room(), before, "nothing waits behind a turn");
    let counters = &bed.bed.counters[0];
    assert_eq!((counters.quic_datagrams_sent.get(), counters.packets_sent.get()), (5, 7));
    assert_eq!((bed.records, counters.records_sent.get()), (0, 0));
}

#[test]
fn what_a_turn_gathers_leaves_in_full_trains() {
    let mut bed = QuicBed::new(true);
    bed.bed.until(|bed| bed.worker.ring.is_idle().then_some(()));
    let trains = |bed: &QuicBed| bed.bed.worker.counters.trains_sent.get();
    let before = trains(&bed);
    // 54 datagrams of 1200 bytes are a train.
    (0..2).for_each(|_| _ = bed.bed.tun.send(&super_segment(54 * 1100, 1100)).unwrap());
    bed.bed.worker.ring.enter().unwrap();
    bed.bed.turn();
    assert_eq!((bed.bed.counters[0].quic_datagrams_sent.get(), trains(&bed) - before), (108, 2));
}

#[test]
fn a_datagram_holds_no_more_than_the_path_is_known_to_carry() {
    let mut bed = QuicBed::new(true);
    let most = bed.far.datagram_bytes_max().unwrap() - 1;
    bed.bed.leave(most);
    assert_eq!(bed.datagrams(1), [[(FrameKind::Packet, false, most)]]);
    bed.bed.leave(most + 1);
    let kinds =
        bed.datagrams(2).into_iter().map(|frames| frames.into_iter().map(|(kind, ..)| kind).collect::<Vec<_>>());
    assert_eq!(kinds.collect::<Vec<_>>(), [[FrameKind::Fragment], [FrameKind::Fragment]]);
    assert_eq!(bed.dropped(DropReason::TooBig), 0);
}

/// The network's disorder among records of a turn is mended; the DATAGRAM frames between them stay where they were.
#[test]
fn what_comes_by_both_carriers_in_one_turn_is_delivered_in_the_order_it_was_sent_in() {
    let mut bed = QuicBed::new(true);
    bed.bed.until(|bed| bed.worker.ring.is_idle().then_some(()));
    let inner = |bytes| framed(&packet([10, 20, 0, 2], [10, 10, 0, 2], bytes), FramedPacket::Complete);
    let [first, second, third] = [101, 103, 104].map(|bytes| {
        let frames = inner(bytes);
        let mut record = vec![0; frames.len() + RECORD_OVERHEAD_BYTES];
        bed.bed.far_sealer.seal_from(&frames, &mut record).unwrap();
        record
    });
    bed.bed.far.send(&first).unwrap();
    bed.send(&inner(102));
    bed.bed.far.send(&third).unwrap();
    bed.send(&inner(105));
    bed.bed.far.send(&second).unwrap();
    while bed.bed.worker.ring.completion_count() < 5 {
        bed.bed.worker.ring.enter().unwrap();
    }
    bed.bed.turn();
    assert_eq!(bed.bed.counters[0].packets_received.get(), 5, "all in one turn");
    bed.bed.turn();
    let lengths: Vec<_> = bed.written().iter().map(Vec::len).collect();
    assert_eq!(lengths, [101, 102, 103, 104, 105]);
}

#[test]
fn an_echo_in_a_datagram_is_answered_in_one() {
    let mut bed = QuicBed::new(true);
    let mut frames = [0; 10];
    Echo::Request(5).write_frames(&mut frames);
    bed.send(&frames);
    assert_eq!(bed.datagrams(1), [[(FrameKind::Echo, false, 9)]]);
    assert_eq!(bed.records, 0);
}

#[test]
fn a_segment_in_a_datagram_continues_nothing_that_came_before_it() {
    let mut bed = QuicBed::new(true);
    let mut piece = packet([10, 20, 0, 2], [10, 10, 0, 2], 128);
    piece[24..26].copy_from_slice(&108_u16.to_be_bytes());
    for what in [FramedPacket::Segment, FramedPacket::NextSegment] {
        bed.send(&framed(&piece, what));
    }
    bed.bed.until(|bed| (bed.counters[0].packets_received.get() == 2).then_some(()));
    bed.bed.turn();
    assert_eq!(bed.written(), [&piece[..]; 2], "each by itself");
}

#[test]
fn whatever_bytes_a_peer_puts_into_datagrams_are_counted_and_harm_nothing() {
    let mut bed = QuicBed::new(true);
    let good = packet([10, 20, 0, 2], [10, 10, 0, 2], 60);
    let seed = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0);
    eprintln!("seed {seed}");
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 33) as usize
    };
    let mut bad = 0;
    for round in 0..400 {
        let bytes: Vec<u8> = (0..next() % 300).map(|_| next() as u8).collect();
        bad += u64::from(Frames::new(&bytes).any(|frame| frame.is_err()));
        bed.send(&bytes);
        bed.send(&framed(&good, FramedPacket::Complete));
        bed.bed.until(|bed| (bed.counters[0].quic_datagrams_received.get() == 2 * (round + 1)).then_some(()));
        bed.bed.turn();
        assert!(bed.written().contains(&good), "what comes after it arrives");
    }
    assert!(bad > 100 && bed.dropped(DropReason::FrameMalformed) >= bad);
    assert!(bed.bed.lane_end().is_none());
}

#[test]
fn while_nothing_is_acknowledged_the_oldest_are_dropped_and_counted_when_the_rest_has_left() {
    let mut bed = QuicBed::new(true);
    let heard = |bed: &QuicBed| bed.bed.counters[0].quic_datagrams_sent.get();
    while heard(&bed) < QUIC_PACKETS_IN_FLIGHT_MAX + 1000 {
        let before = heard(&bed);
        bed.bed.tun.send(&super_segment(60_000, 1000)).unwrap();
        bed.bed.until(|bed| (bed.counters[0].quic_datagrams_sent.get() == before + 60).then_some(()));
    }
    assert!(bed.room() < 2000, "the queue is full: {} bytes left", bed.room());
    assert_eq!(bed.dropped(DropReason::QuicQueueFull), 0, "nobody knows yet how many");
    for _ in 0..1000 {
        bed.far_turn();
        bed.bed.turn();
    }
    let dropped = bed.dropped(DropReason::QuicQueueFull);
    let waited = (QUIC_QUEUE_BYTES / 1029) as u64;
    let surplus = heard(&bed) - QUIC_PACKETS_IN_FLIGHT_MAX;
    assert!((surplus - waited..=surplus).contains(&dropped), "{dropped} of {surplus}");
}

#[test]
fn a_peer_that_takes_no_datagrams_gets_records() {
    let mut bed = QuicBed::new(false);
    bed.bed.leave(100);
    for _ in 0..100 {
        bed.bed.turn();
        bed.far_turn();
    }
    let counters = &bed.bed.counters[0];
    assert_eq!((counters.records_sent.get(), counters.quic_datagrams_sent.get()), (1, 0));
    assert!(bed.records > 0);
    let slot = bed.bed.worker.state.lanes.slots()[0];
    assert_eq!(bed.bed.worker.state.lanes.get_mut(slot).unwrap().gauges.carrier(), LaneCarrier::Records);
}

/// It is asked behind the connections' part of the turn, and nothing else would wake the worker.
#[test]
fn an_echo_that_is_asked_by_quic_does_not_wait_while_the_worker_sleeps() {
    let mut bed = QuicBed::new(true);
    bed.bed.until(|bed| bed.worker.ring.is_idle().then_some(()));
    let at = Instant::now() + Duration::from_millis(24_999);
    let at = at.max(bed.bed.worker.state.paths.deadline().unwrap());
    let asked = |bed: &mut QuicBed| bed.bed.lane().gauges.echoes_sent.get();
    let before = asked(&mut bed);
    bed.bed.worker.turn(at).unwrap();
    assert!(asked(&mut bed) > before, "the keep-alive is due");
    assert_eq!(bed.bed.worker.wake_at().map(|wake| wake <= at), Some(true));
}

#[test]
fn a_lane_that_moves_while_its_packets_leave_by_quic_forgets_what_records_the_old_path_carried() {
    let mut bed = QuicBed::new(true);
    bed.bed.settle(8972);
    let slot = bed.bed.worker.state.lanes.slots()[0];
    bed.bed.worker.restart_path(slot, Instant::now()).unwrap();
    assert_eq!(bed.bed.lane().record_bytes, 1200);
}

/// Counts what quinn-proto says when it has opened the first packet of new keys.
#[derive(Default)]
struct KeyUpdates(Arc<std::sync::atomic::AtomicUsize>);

impl tracing::Subscriber for KeyUpdates {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with("quinn_proto")
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        struct Message<'c>(&'c KeyUpdates);
        impl tracing::field::Visit for Message<'_> {
            fn record_debug(&mut self, _: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                if format!("{value:?}") == "key update authenticated" {
                    self.0.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
            }
        }
        event.record(&mut Message(self));
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn when_a_lane_is_rekeyed_so_is_its_quic_connection() {
    let mut bed = QuicBed::new(true);
    let updates = KeyUpdates::default();
    let count = Arc::clone(&updates.0);
    let _subscriber = tracing::subscriber::set_default(updates);
    let mut far_rekey = Rekey::new(secrets(Role::Server), RekeyLimits::default(), 1, Instant::now());
    let slot = bed.bed.worker.state.lanes.slots()[0];
    let lane = bed.bed.worker.state.lanes.get_mut(slot).unwrap();
    lane.sealer.skip(RekeyLimits::default().records);
    (lane.has_quic_news, bed.bed.worker.state.has_quic_news) = (true, true);
    for _ in 0..1000 {
        bed.bed.turn();
        bed.far_turn();
        let mut said = Vec::new();
        bed.far.read_stream(|bytes| said.extend_from_slice(bytes)).unwrap();
        far_rekey.handle_stream(&said, Instant::now()).unwrap();
        let written = bed.far.write_stream(far_rekey.unsent()).unwrap();
        far_rekey.handle_sent(written);
        bed.far_turn();
        if bed.bed.lane().gauges.rekeys.get() == 1 {
            break;
        }
        assert_eq!(count.load(std::sync::atomic::Ordering::Relaxed), 0);
    }
    assert_eq!(bed.bed.lane().gauges.rekeys.get(), 1);
    bed.bed.leave(100);
    assert_eq!(bed.datagrams(1), [[(FrameKind::Packet, false, 100)]]);
    assert_eq!(count.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[test]
fn what_fits_no_datagram_frame_is_cut_even_where_records_have_settled_and_packets_are_not_to_be() {
    let mut bed = QuicBed::new(true);
    bed.bed.settle(1232);
    bed.bed.worker.fragments = false;
    let bytes = bed.far.datagram_bytes_max().unwrap() + 100;
    let mut read = [&[0; VNET_HEADER_BYTES][..], &packet([10, 10, 0, 2], [10, 20, 0, 2], bytes)].concat();
    read[VNET_HEADER_BYTES + 6] = 0x40;
    bed.bed.tun.send(&read).unwrap();
    assert!(bed.datagrams(2).iter().flatten().all(|(kind, ..)| *kind == FrameKind::Fragment));
    assert_eq!((bed.dropped(DropReason::TooBig), bed.written().len()), (0, 0));
}

#[test]
fn a_lane_that_comes_back_to_records_finds_out_anew_what_its_path_carries() {
    let mut bed = Bed::new(0);
    bed.settle(1232);
    let slot = bed.worker.state.lanes.slots()[0];
    bed.worker.tell_carrier(slot, LaneCarrier::Quic);
    assert!(!bed.lane().path.is_searching());
    bed.worker.tell_carrier(slot, LaneCarrier::Records);
    let lane = bed.lane();
    assert!(lane.path.is_searching());
    assert_eq!(lane.record_bytes, usize::from(ringlane_shared::path::mtu::MTU_BASE));
    bed.echoes();
    bed.until(|bed| bed.echoes().iter().any(|(_, bytes)| *bytes > 1232).then_some(()));
}

/// What control has been told of whether the lane is lossy.
fn losses_told(bed: &mut Bed) -> Vec<bool> {
    bed.worker.tell_control();
    let lossy = |change| if let LaneChange::Lossy(is_lossy) = change { Some(is_lossy) } else { None };
    changes(bed).into_iter().filter_map(lossy).collect()
}

#[test]
fn a_lane_that_leaves_records_is_not_lossy_any_more_and_what_it_lost_is_forgotten() {
    let mut bed = Bed::new(0);
    let (slot, now) = (bed.worker.state.lanes.slots()[0], Instant::now());
    bed.worker.state.lanes.get_mut(slot).unwrap().path.lose(30, now);
    bed.worker.drive_path(slot, now).unwrap();
    assert_eq!(bed.lane().gauges.loss().counts(), (30, 30));
    assert_eq!(losses_told(&mut bed), [true]);
    bed.worker.tell_carrier(slot, LaneCarrier::Quic);
    bed.worker.drive_path(slot, now).unwrap();
    assert_eq!(bed.lane().gauges.loss(), Loss::default());
    assert_eq!(losses_told(&mut bed), [false]);
    bed.worker.tell_carrier(slot, LaneCarrier::Records);
    bed.worker.drive_path(slot, now).unwrap();
    assert_eq!(bed.lane().gauges.loss(), Loss::default());
}

#[test]
fn that_a_lane_is_lossy_is_told_later_where_control_has_no_room_for_it() {
    let mut bed = Bed::new(0);
    let (slot, now) = (bed.worker.state.lanes.slots()[0], Instant::now());
    losses_told(&mut bed);
    let worker = bed.worker.id;
    let stopped = || PlaneEvent::Stopped { worker };
    bed.worker.state.untold = std::iter::repeat_with(stopped).take(UNTOLD_MAX).collect();
    bed.worker.state.lanes.get_mut(slot).unwrap().path.lose(30, now);
    bed.worker.drive_path(slot, now).unwrap();
    assert_eq!(bed.worker.state.untold.len(), UNTOLD_MAX);
    bed.worker.state.untold.clear();
    for expected in [&[true][..], &[]] {
        bed.worker.drive_path(slot, now).unwrap();
        assert_eq!(losses_told(&mut bed), expected);
    }
}
