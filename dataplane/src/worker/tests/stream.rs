//! Packets that go by way of control: as a stream takes them, admitted as records' are, in order where a lane takes over.

use std::net::Ipv6Addr;

use ringlane_shared::identity::{service_address, service_network};
use ringlane_shared::limits::{BATCH_BYTES_MAX, INNER_MTU_MAX, STREAM_PACKET_BYTES_MAX, STREAM_SETTLE_MS};
use ringlane_shared::packet::checksum::Sum;
use ringlane_shared::plane::{BatchEnd, BatchItemForm, StreamForm};

use super::*;

/// A peer without a lane.
const STREAMED: PeerIndex = PeerIndex(1);
const WHOLE: BatchItemForm = BatchItemForm::Packet { is_partial: false };
const PARTIAL: BatchItemForm = BatchItemForm::Packet { is_partial: true };
const OURS: [u8; 4] = [10, 10, 0, 2];
const THEIRS: [u8; 4] = [10, 30, 0, 2];
/// How the kernel leaves a UDP checksum over IPv4 to be finished.
const UDP_PARTIAL: Option<(u16, u16)> = Some((20, 6));

type Items = Vec<(BatchItemForm, Vec<u8>)>;

struct StreamBed {
    bed: Bed,
    counters: Arc<[PeerCounters]>,
}

/// Tables in which a second peer has no lane but perhaps a stream, and services are somewhere.
fn tables(
    first: &Arc<[PeerCounters]>,
    second: &Arc<[PeerCounters]>,
    stream: Option<StreamForm>,
    mask: u64,
) -> Snapshot {
    let mut tables = snapshot(Arc::clone(first));
    let (mut routes, mut sources) = ((*tables.routes).clone(), RouteTable::default());
    routes.insert("10.30.0.0/16".parse().unwrap(), STREAMED);
    routes.insert(service_network().into(), PeerIndex::SERVICES);
    sources.insert("10.30.0.0/16".parse().unwrap(), true);
    sources.insert("fdfd::/16".parse().unwrap(), true);
    tables.routes = Arc::new(routes);
    tables.peers.push(PeerEntry {
        id: PeerId::random(),
        sources: Arc::new(sources),
        workers_with_lane: mask,
        stream,
        avoided: 0,
        counters: Arc::clone(second),
    });
    tables
}

impl StreamBed {
    fn new(stream: Option<StreamForm>) -> Self {
        let bed = Bed::new(0);
        let counters: Arc<[PeerCounters]> = Arc::new([PeerCounters::default(), PeerCounters::default()]);
        let mut this = Self { bed, counters };
        this.publish(stream, 0);
        this.bed.until(|bed| bed.worker.ring.is_idle().then_some(()));
        this
    }

    fn publish(&mut self, stream: Option<StreamForm>, mask: u64) {
        self.publish_avoiding(stream, mask, 0);
    }

    fn publish_avoiding(&mut self, stream: Option<StreamForm>, mask: u64, avoided: u64) {
        let mut tables = tables(&self.bed.counters, &self.counters, stream, mask);
        tables.peers[STREAMED.position()].avoided = avoided;
        self.bed.commands.try_send(PlaneCommand::Publish(Arc::new(tables))).unwrap();
        self.bed.turn();
    }

    /// Has the worker read this from its TUN.
    fn read(&self, header: VnetHeader, packet: &[u8]) {
        self.bed.tun.send(&[&header.to_bytes()[..], packet].concat()).unwrap();
    }

    /// What control gets for `end`, once `count` items of it have come.
    fn items(&mut self, end: BatchEnd, count: usize) -> Items {
        let mut items = Items::new();
        self.bed.until(|bed| {
            while let Some(batch) = bed.batches.try_recv() {
                assert_eq!(batch.end(), end);
                items.extend(batch.items().map(|item| (item.form, item.packet.to_vec())));
            }
            (items.len() >= count).then_some(())
        });
        assert_eq!(items.len(), count);
        items
    }

    /// Gives the worker packets from `end`, and returns what it writes to its TUN for them.
    fn deliver(&mut self, end: BatchEnd, items: &[(BatchItemForm, Vec<u8>)]) -> Vec<(VnetHeader, Vec<u8>)> {
        let mut batch = PacketBatch::new(end, Vec::new());
        assert!(items.iter().all(|(form, packet)| batch.push(*form, packet)));
        self.bed.deliveries.try_send(batch).unwrap();
        self.bed.turn();
        self.written()
    }

    fn written(&mut self) -> Vec<(VnetHeader, Vec<u8>)> {
        let mut buffer = vec![0; 70_000];
        std::iter::from_fn(|| {
            let bytes = self.bed.tun.recv(&mut buffer).ok()?;
            let (header, packet) = buffer[..bytes].split_first_chunk().unwrap();
            Some((VnetHeader::parse(header).unwrap(), packet.to_vec()))
        })
        .collect()
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.counters[0].drops.get(reason)
    }
}

/// A UDP packet over IPv4 with all its headers in order and its checksum partial or complete.
fn datagram(from: [u8; 4], to: [u8; 4], bytes: usize, is_partial: bool) -> Vec<u8> {
    let mut datagram = packet(from, to, bytes);
    datagram[6] = 0x40;
    let ip = !Sum::default().plus(&datagram[..20]).fold();
    datagram[10..12].copy_from_slice(&ip.to_be_bytes());
    let length = (bytes as u16 - 20).to_be_bytes();
    datagram[20..24].copy_from_slice(&[0x30, 0x39, 0, 53]);
    datagram[24..26].copy_from_slice(&length);
    (28..bytes).for_each(|at| datagram[at] = (at * 7) as u8);
    let pseudo = Sum::default().plus(&datagram[12..20]).plus(&[0, 17]).plus(&length);
    let checksum = if is_partial { pseudo.fold() } else { !pseudo.plus(&datagram[20..]).fold() };
    datagram[26..28].copy_from_slice(&checksum.to_be_bytes());
    datagram
}

/// What the kernel says of a super-segment of datagrams over IPv4.
fn segments(segment_bytes: u16) -> VnetHeader {
    let segmentation =
        Segmentation { transport: Transport::Udp, is_ipv6: false, has_cwr: false, segment_bytes, header_bytes: 28 };
    VnetHeader { partial_checksum: UDP_PARTIAL, segmentation: Some(segmentation) }
}

fn to_service(bytes: usize) -> (Ipv6Addr, Vec<u8>) {
    let service = service_address(&PeerId::random(), "web");
    let payload = (bytes as u16 - 40).to_be_bytes();
    let mut packet = vec![0x60, 0, 0, 0, payload[0], payload[1], 59, 64];
    packet.extend([0xfd; 16]);
    packet.extend(service.octets());
    packet.resize(bytes, 3);
    (service, packet)
}

#[test]
fn a_stream_of_whole_packets_gets_each_by_itself_and_finished() {
    let mut bed = StreamBed::new(Some(StreamForm::Whole));
    bed.read(VnetHeader::default(), &datagram(OURS, THEIRS, 300, false));
    bed.read(VnetHeader { partial_checksum: UDP_PARTIAL, segmentation: None }, &datagram(OURS, THEIRS, 301, true));
    bed.read(segments(500), &datagram(OURS, THEIRS, 28 + 1400, true));
    let items = bed.items(BatchEnd::Peer(STREAMED), 5);
    let sizes: Vec<_> = items.iter().map(|(_, packet)| packet.len()).collect();
    assert_eq!(sizes, [300, 301, 528, 528, 428]);
    for (form, packet) in &items {
        assert_eq!(*form, WHOLE);
        let pseudo = Sum::default().plus(&packet[12..20]).plus(&[0, 17]).plus(&packet[24..26]);
        assert_eq!(pseudo.plus(&packet[20..]).fold(), 0xffff, "{} bytes", packet.len());
    }
    let counters = &bed.counters[0];
    let counted = [&counters.packets_sent, &counters.stream_packets_sent, &counters.bytes_sent].map(|c| c.get());
    assert_eq!(counted, [5, 5, 300 + 301 + 528 + 528 + 428]);
    assert_eq!(counters.records_sent.get(), 0);
}

#[test]
fn between_ringlane_nodes_a_stream_gets_what_the_kernel_gave() {
    let mut bed = StreamBed::new(Some(StreamForm::Offloaded));
    let partial = datagram(OURS, THEIRS, 301, true);
    let whole = datagram(OURS, THEIRS, 28 + 1400, true);
    bed.read(VnetHeader { partial_checksum: UDP_PARTIAL, segmentation: None }, &partial);
    bed.read(segments(500), &whole);
    let items = bed.items(BatchEnd::Peer(STREAMED), 2);
    assert_eq!(items, [(PARTIAL, partial), (BatchItemForm::SuperSegment { segment_bytes: 500 }, whole)]);
    assert_eq!((bed.counters[0].packets_sent.get(), bed.counters[0].bytes_sent.get()), (4, 301 + 528 + 528 + 428));
}

#[test]
fn who_sends_too_long_packets_to_a_stream_is_told_how_long_they_may_be() {
    let mut bed = StreamBed::new(Some(StreamForm::Whole));
    let long = STREAM_PACKET_BYTES_MAX + 1;
    bed.read(VnetHeader::default(), &datagram(OURS, THEIRS, long, false));
    bed.read(VnetHeader::default(), &datagram(OURS, THEIRS, long - 1, false));
    assert_eq!(bed.items(BatchEnd::Peer(STREAMED), 1)[0].1.len(), STREAM_PACKET_BYTES_MAX);
    let told = bed.written();
    assert_eq!(told.len(), 1);
    let (_, answer) = &told[0];
    assert_eq!((answer[9], &answer[20..22], &answer[26..28]), (1, &[3, 4][..], &1420u16.to_be_bytes()[..]));
    // Whoever lets routers fragment is not told, and nobody fragments.
    let mut fragmentable = datagram(OURS, THEIRS, long, false);
    fragmentable[6] = 0;
    bed.read(VnetHeader::default(), &fragmentable);
    bed.read(segments(1393), &datagram(OURS, THEIRS, 28 + 3000, true));
    bed.bed.until(|_| (bed.counters[0].drops.get(DropReason::TooBig) == 5).then_some(()));
    assert_eq!(bed.written().len(), 1);
    assert!(bed.bed.batches.try_recv().is_none());
}

#[test]
fn without_a_lane_or_a_stream_packets_are_dropped() {
    let mut bed = StreamBed::new(None);
    bed.read(VnetHeader::default(), &datagram(OURS, THEIRS, 300, false));
    bed.read(segments(500), &datagram(OURS, THEIRS, 28 + 1400, true));
    bed.bed.until(|_| (bed.counters[0].drops.get(DropReason::NoLane) == 4).then_some(()));
}

#[test]
fn what_control_has_no_room_for_is_dropped_and_counted_packet_by_packet() {
    let mut bed = StreamBed::new(Some(StreamForm::Offloaded));
    for sent in 1..=BATCH_QUEUE_MESSAGES as u64 {
        bed.read(VnetHeader::default(), &datagram(OURS, THEIRS, 300, false));
        bed.bed.until(|_| (bed.counters[0].packets_sent.get() == sent).then_some(()));
    }
    bed.read(segments(500), &datagram(OURS, THEIRS, 28 + 1400, true));
    bed.bed.until(|_| (bed.counters[0].drops.get(DropReason::StreamFull) == 3).then_some(()));
    assert_eq!(bed.counters[0].packets_sent.get(), BATCH_QUEUE_MESSAGES as u64);
    bed.items(BatchEnd::Peer(STREAMED), BATCH_QUEUE_MESSAGES);
    bed.read(VnetHeader::default(), &datagram(OURS, THEIRS, 300, false));
    bed.items(BatchEnd::Peer(STREAMED), 1);
}

#[test]
fn a_packet_passed_on_for_a_lane_that_has_ended_leaves_by_the_stream() {
    for (stream, form) in [(Some(StreamForm::Whole), WHOLE), (Some(StreamForm::Offloaded), PARTIAL)] {
        let mut bed = StreamBed::new(stream);
        let packet = datagram(OURS, THEIRS, 300, true);
        bed.bed.worker.send_handed_over(STREAMED, 7, true, &packet).unwrap();
        let items = bed.items(BatchEnd::Peer(STREAMED), 1);
        let expected = datagram(OURS, THEIRS, 300, form == PARTIAL);
        assert_eq!(items, [(form, expected)]);
    }
    let mut bed = StreamBed::new(None);
    bed.bed.worker.send_handed_over(STREAMED, 7, true, &datagram(OURS, THEIRS, 300, true)).unwrap();
    assert_eq!(bed.dropped(DropReason::NoLane), 1);
}

#[test]
fn a_peers_packets_are_admitted_as_those_of_records_are_and_join() {
    let mut bed = StreamBed::new(None);
    let mut items: Items = (0..3).map(|_| (WHOLE, datagram(THEIRS, OURS, 528, false))).collect();
    items.push((WHOLE, datagram([10, 20, 0, 2], OURS, 400, false)));
    items.push((WHOLE, vec![0x45; 19]));
    items.push((WHOLE, packet(THEIRS, OURS, usize::from(INNER_MTU_MAX) + 1)));
    let mut no_transport = packet(THEIRS, OURS, 60);
    no_transport[9] = 50;
    items.push((PARTIAL, no_transport));
    // What trails a packet is none of it.
    items.push((WHOLE, [datagram(THEIRS, OURS, 100, false), vec![0; 9]].concat()));
    let written = bed.deliver(BatchEnd::Peer(STREAMED), &items);
    // They join as packets of records do.
    let read: Vec<_> = written.iter().map(|(header, packet)| (*header, packet.len())).collect();
    assert_eq!(read, [(segments(500), 28 + 3 * 500 + 72)]);
    for reason in [
        DropReason::SourceNotAllowed,
        DropReason::PacketMalformed,
        DropReason::PacketTooBig,
        DropReason::FrameMalformed,
    ] {
        assert_eq!(bed.dropped(reason), 1, "{reason:?}");
    }
    let counters = &bed.counters[0];
    let counted =
        [&counters.packets_received, &counters.stream_packets_received, &counters.bytes_received].map(|c| c.get());
    assert_eq!(counted, [4, 4, 3 * 528 + 100]);
}

#[test]
fn a_super_segment_of_a_peer_goes_to_the_tun_in_one_write_if_all_of_it_holds() {
    let mut bed = StreamBed::new(None);
    let whole = datagram(THEIRS, OURS, 28 + 1400, true);
    let form = BatchItemForm::SuperSegment { segment_bytes: 500 };
    let before = (WHOLE, datagram(THEIRS, OURS, 100, false));
    let written = bed.deliver(BatchEnd::Peer(STREAMED), &[before.clone(), (form, whole.clone())]);
    assert_eq!(written, [(VnetHeader::default(), before.1), (segments(500), whole.clone())]);
    assert_eq!(bed.counters[0].packets_received.get(), 4);
    assert_eq!(bed.bed.worker.counters.super_segments_written.get(), 1);

    let spoilt = |at: usize| {
        let mut spoilt = whole.clone();
        spoilt[at] ^= 1;
        spoilt
    };
    let (none, many) = (0, 1);
    let refused = [
        (500, spoilt(13), DropReason::SourceNotAllowed),
        (500, spoilt(11), DropReason::FrameMalformed),
        (500, spoilt(25), DropReason::FrameMalformed),
        (500, spoilt(27), DropReason::FrameMalformed),
        (500, spoilt(9), DropReason::FrameMalformed),
        (none, whole.clone(), DropReason::FrameMalformed),
        (many, whole.clone(), DropReason::PacketTooBig),
        (1400, whole.clone(), DropReason::PacketTooBig),
        (500, whole[..1000].to_vec(), DropReason::PacketMalformed),
    ];
    for (segment_bytes, packet, reason) in refused {
        let before = bed.dropped(reason);
        let item = (BatchItemForm::SuperSegment { segment_bytes }, packet);
        assert_eq!(bed.deliver(BatchEnd::Peer(STREAMED), &[item]), [], "{segment_bytes} {reason:?}");
        assert_eq!(bed.dropped(reason), before + 1, "{segment_bytes} {reason:?}");
    }
    assert_eq!(bed.counters[0].packets_received.get(), 4);
}

#[test]
fn a_kernel_that_takes_no_super_segments_gets_their_pieces_in_order() {
    let mut bed = StreamBed::new(None);
    bed.bed.worker.state.rebuilder = Rebuilder::new(false, false);
    let item = (BatchItemForm::SuperSegment { segment_bytes: 500 }, datagram(THEIRS, OURS, 28 + 1400, true));
    let after = (WHOLE, datagram(THEIRS, OURS, 100, false));
    let written = bed.deliver(BatchEnd::Peer(STREAMED), &[item.clone(), after]);
    let partial = VnetHeader { partial_checksum: UDP_PARTIAL, segmentation: None };
    let read: Vec<_> = written.iter().map(|(header, packet)| (*header, packet.len())).collect();
    assert_eq!(read, [(partial, 528), (partial, 528), (partial, 428), (VnetHeader::default(), 100)]);
    let payload: Vec<_> = written[..3].iter().flat_map(|(_, packet)| packet[28..].to_vec()).collect();
    assert_eq!(payload, item.1[28..]);
}

#[test]
fn services_have_a_network_of_their_own_both_ways() {
    let mut bed = StreamBed::new(None);
    let (service, packet) = to_service(200);
    bed.read(VnetHeader::default(), &packet);
    assert_eq!(bed.items(BatchEnd::Services, 1), [(WHOLE, packet.clone())]);
    let mut answer = packet.clone();
    answer[8..24].copy_from_slice(&service.octets());
    answer[24..40].copy_from_slice(&packet[8..24]);
    assert_eq!(bed.deliver(BatchEnd::Services, &[(WHOLE, answer.clone())]), [(VnetHeader::default(), answer.clone())]);
    let written = bed.deliver(BatchEnd::Services, &[(WHOLE, packet), (WHOLE, datagram(THEIRS, OURS, 100, false))]);
    assert_eq!(written, []);
    assert_eq!(bed.bed.worker.counters.drops.get(DropReason::SourceNotAllowed), 2);
    // And no peer may speak for one.
    assert_eq!(bed.deliver(BatchEnd::Peer(STREAMED), &[(WHOLE, answer)]), []);
    assert_eq!(bed.dropped(DropReason::SourceNotAllowed), 1);
    // Nor may it send to one past the streams that ask who it is, whatever its source.
    assert_eq!(bed.deliver(BatchEnd::Peer(STREAMED), &[(WHOLE, to_service(200).1)]), []);
    assert_eq!(bed.dropped(DropReason::SourceNotAllowed), 2);

    let (service, long) = to_service(1500);
    bed.read(VnetHeader::default(), &long);
    let told = bed.bed.until(|bed| {
        let mut buffer = [0; 2000];
        bed.tun.recv(&mut buffer).ok().map(|bytes| buffer[VNET_HEADER_BYTES..bytes].to_vec())
    });
    assert_eq!((told[6], told[40], &told[8..24]), (58, 2, &service.octets()[..]));
    assert_eq!(bed.bed.worker.counters.drops.get(DropReason::TooBig), 1);
}

#[test]
fn a_turn_takes_so_much_from_control_and_no_more_and_what_is_left_keeps_it_awake() {
    let mut bed = StreamBed::new(None);
    let packet = datagram(THEIRS, OURS, 9000, false);
    let mut given = 0;
    for _ in 0..20 {
        let mut batch = PacketBatch::new(BatchEnd::Peer(STREAMED), Vec::new());
        while batch.push(WHOLE, &packet) {}
        given += u64::from(batch.packets());
        bed.bed.deliveries.try_send(batch).unwrap();
    }
    bed.bed.turn();
    let taken = bed.counters[0].packets_received.get();
    assert!(
        taken * 9000 >= TURN_BYTES as u64 - 9000 && taken * 9000 <= (TURN_BYTES + BATCH_BYTES_MAX) as u64,
        "{taken}"
    );
    assert!(!bed.bed.worker.is_idle());
    bed.bed.until(|_| (bed.counters[0].packets_received.get() == given).then_some(()));
    // Nobody has read the TUN meanwhile: what its queue had no room for is counted, each packet once.
    bed.bed.turn();
    let read: usize = bed
        .written()
        .iter()
        .map(|(header, packet)| header.segmentation.map_or(1, |_| (packet.len() - 28).div_ceil(9000 - 28)))
        .sum();
    let lost = bed.dropped(DropReason::TunWriteFailed);
    assert!(lost > 0 && read as u64 + lost == given, "{read} and {lost} of {given}");
}

/// Another lane, to the peer that had none, with a number of its own; returns its far end.
fn add_lane(bed: &mut Bed, number: u8, now: Instant) -> (UdpSocket, Opener) {
    let [local, far] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
    local.connect(far.local_addr().unwrap()).unwrap();
    [&local, &far].into_iter().for_each(|socket| socket.set_nonblocking(true).unwrap());
    let id = LaneId::new(4 + u32::from(number)).unwrap();
    let [client, server] = [Role::Client, Role::Server]
        .map(|role| split(LaneKeys::derive(Suite::Aes128Gcm, role, export).unwrap(), id, id));
    let lane = LaneHandOver {
        serial: LaneSerial(7 + u64::from(number)),
        peer: STREAMED,
        index: LaneIndex::new(number - 1).unwrap(),
        inbound_id: id,
        local: local.local_addr().unwrap(),
        remote: far.local_addr().unwrap(),
        connection: connection(far.local_addr().unwrap()),
        socket: local.into(),
        sealer: client.0,
        opener: client.1,
        secrets: secrets(Role::Client),
        early: Vec::new(),
        carrier: CarrierChoice::Lane,
        gauges: Arc::new(LaneGauges::default()),
    };
    bed.worker.add_lane(lane, now).unwrap();
    (far, server.1)
}

/// The packets that have arrived by a lane.
fn arrived(far: &UdpSocket, opener: &mut Opener) -> Vec<usize> {
    let mut buffer = [0; 10_000];
    let mut packets = Vec::new();
    while let Ok(bytes) = far.recv(&mut buffer) {
        let Ok(opened) = opener.open(&mut buffer[..bytes]) else { continue };
        let frames = Frames::new(opened.frames).map(|frame| frame.unwrap());
        packets.extend(frames.filter(|frame| frame.kind == FrameKind::Packet).map(|frame| frame.payload.len()));
    }
    packets
}

#[test]
fn packets_wait_for_the_stream_to_settle_before_they_leave_by_a_lane_in_order() {
    let mut bed = StreamBed::new(Some(StreamForm::Offloaded));
    bed.read(VnetHeader::default(), &datagram(OURS, THEIRS, 100, false));
    bed.items(BatchEnd::Peer(STREAMED), 1);
    let start = bed.bed.worker.state.now;
    let (far, mut opener) = add_lane(&mut bed.bed, 1, start);
    let settle = Duration::from_millis(STREAM_SETTLE_MS);
    let mut sent = Vec::new();
    for step in 0..10u32 {
        let now = start + settle * step / 10;
        bed.read(VnetHeader::default(), &datagram(OURS, THEIRS, 200 + step as usize, false));
        sent.push(200 + step as usize);
        // The link to the first peer is not held up.
        bed.bed.leave(100);
        let before = bed.bed.counters[0].packets_sent.get();
        for _ in 0..100 {
            bed.bed.worker.turn(now).unwrap();
        }
        assert_eq!(bed.bed.counters[0].packets_sent.get(), before + 1);
        assert!(arrived(&far, &mut opener).is_empty(), "{step}");
        assert!(bed.bed.worker.wake_at().is_some_and(|at| at <= start + settle), "{step}");
    }
    assert!(bed.bed.batches.try_recv().is_none());
    let now = start + settle;
    let mut packets = Vec::new();
    for _ in 0..100 {
        bed.bed.worker.turn(now).unwrap();
        packets.extend(arrived(&far, &mut opener));
    }
    assert_eq!(packets, sent);
    assert!(!bed.bed.worker.must_queue(bed.bed.worker.state.lanes.of_peer(STREAMED)[0]));
}

#[test]
fn nothing_waits_for_a_stream_that_was_not_used() {
    let mut bed = StreamBed::new(Some(StreamForm::Offloaded));
    let now = bed.bed.worker.state.now;
    let (far, mut opener) = add_lane(&mut bed.bed, 1, now);
    bed.publish(Some(StreamForm::Offloaded), 1);
    bed.read(VnetHeader::default(), &datagram(OURS, THEIRS, 200, false));
    let packets = bed.bed.until(|_| Some(arrived(&far, &mut opener)).filter(|packets| !packets.is_empty()));
    assert_eq!(packets, [200]);
    assert!(bed.bed.worker.state.egress.is_untouched());
}

#[test]
fn while_lanes_are_to_be_avoided_packets_take_the_stream_and_then_the_lane_again() {
    let mut bed = StreamBed::new(Some(StreamForm::Offloaded));
    let now = bed.bed.worker.state.now;
    let (far, mut opener) = add_lane(&mut bed.bed, 1, now);
    let packet = datagram(OURS, THEIRS, 300, false);
    bed.publish_avoiding(Some(StreamForm::Offloaded), 0, 1);
    bed.read(VnetHeader::default(), &packet);
    assert_eq!(bed.items(BatchEnd::Peer(STREAMED), 1)[0].1, packet);
    assert!(arrived(&far, &mut opener).is_empty());
    bed.publish(Some(StreamForm::Offloaded), 1);
    bed.read(VnetHeader::default(), &packet);
    let sizes = bed.bed.until(|_| Some(arrived(&far, &mut opener)).filter(|sizes| !sizes.is_empty()));
    assert_eq!(sizes, [300]);
}

#[test]
fn packets_of_workers_that_have_used_the_stream_wait_too() {
    let mut bed = StreamBed::new(Some(StreamForm::Offloaded));
    let now = bed.bed.worker.state.now;
    let (far, mut opener) = add_lane(&mut bed.bed, 1, now);
    bed.counters[1].stream_packets_sent.add(1);
    bed.publish(Some(StreamForm::Offloaded), 1);
    let adopted = bed.bed.worker.state.now;
    bed.bed.worker.send_handed_over(STREAMED, 7, false, &datagram(OURS, THEIRS, 200, false)).unwrap();
    let turn = |bed: &mut StreamBed, now| (0..100).for_each(|_| _ = bed.bed.worker.turn(now).unwrap());
    turn(&mut bed, adopted + Duration::from_millis(STREAM_SETTLE_MS - 1));
    assert!(arrived(&far, &mut opener).is_empty());
    turn(&mut bed, adopted + Duration::from_millis(STREAM_SETTLE_MS));
    assert_eq!(arrived(&far, &mut opener), [200]);
}

#[test]
fn of_two_lanes_flows_take_the_one_that_is_not_silent_and_any_when_both_are() {
    let mut bed = StreamBed::new(None);
    let now = bed.bed.worker.state.now;
    let lanes: Vec<_> = [1, 2].into_iter().map(|number| add_lane(&mut bed.bed, number, now)).collect();
    bed.publish(None, 1);
    // Of both, by the high half of the hash.
    let used =
        |bed: &mut StreamBed| [0, 1 << 16].map(|hash| bed.bed.worker.state.lanes.for_flow(STREAMED, hash).unwrap());
    let [first, second] = used(&mut bed);
    assert_ne!(first, second);
    let millisecond = Duration::from_millis(1);
    let mut now = now;
    let mut pass = |bed: &mut StreamBed, milliseconds| {
        for _ in 0..milliseconds {
            now += millisecond;
            bed.bed.worker.turn(now).unwrap();
        }
    };
    let serial = bed.bed.worker.state.lanes.get(first).unwrap().serial;
    bed.bed.commands.try_send(PlaneCommand::DoubtLane(serial)).unwrap();
    bed.bed.commands.try_send(PlaneCommand::DoubtLane(LaneSerial(99))).unwrap();
    pass(&mut bed, 3000);
    assert_eq!(used(&mut bed), [second; 2]);
    let serial = bed.bed.worker.state.lanes.get(second).unwrap().serial;
    bed.bed.commands.try_send(PlaneCommand::DoubtLane(serial)).unwrap();
    pass(&mut bed, 3000);
    assert_eq!(used(&mut bed), [first, second]);
    drop(lanes);
}
