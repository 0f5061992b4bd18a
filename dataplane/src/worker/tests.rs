//! A worker's turns one by one, on this thread: a datagram socket pair is its TUN, and a lane's far end is opened and
//! sealed by hand.

use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram;

use quinn_proto::crypto::rustls::QuicClientConfig;
use quinn_proto::{ClientConfig, EndpointConfig};
use ringlane_shared::id::{Generation, LaneId, LaneIndex, LaneSerial, PeerId};
use ringlane_shared::lane::connection::LaneConnection;
use ringlane_shared::lane::epoch::{EpochSecrets, PSK_BYTES};
use ringlane_shared::lane::keys::{KeyError, LaneKeys, Role, Suite};
use ringlane_shared::lane::seal::{Opened, Opener, Sealer, split};
use ringlane_shared::limits::{
    BATCH_QUEUE_MESSAGES, HEAVY_RECORD_WEAR, PLANE_QUEUE_MESSAGES, RECORD_HEADER_BYTES, RECORD_OVERHEAD_BYTES,
    RECORDS_PER_EPOCH_MAX, datagram_bytes_max,
};
use ringlane_shared::packet::segment::Transport;
use ringlane_shared::plane::queue::{plane_queue, plane_queue_of};
use ringlane_shared::plane::{
    CarrierChoice, LaneChange, LaneGauges, LaneHandOver, OuterMarks, PeerCounters, PeerEntry,
};
use ringlane_shared::route::RouteTable;
use ringlane_shared::wire::echo::{ECHO_RECORD_BYTES, Echo};
use ringlane_shared::wire::frame::{FrameHeader, FrameKind, FramedPacket, Frames};

#[path = "tests/oversized.rs"]
mod oversized;

use super::UnderTest;
use crate::sys::ring::RingConfig;
use crate::sys::vnet_header::{Segmentation, VNET_HEADER_BYTES, VnetHeader};
use crate::worker::*;

#[path = "tests/carrier.rs"]
mod carrier;
#[path = "tests/egress.rs"]
mod egress;
#[path = "tests/forward.rs"]
mod forward;
#[path = "tests/moving.rs"]
mod moving;
#[path = "tests/stream.rs"]
mod stream;

const MTU: u16 = 1420;
const PEER: PeerIndex = PeerIndex(0);
const SERIAL: LaneSerial = LaneSerial(7);
/// What takes so long does not come.
const PATIENCE: Duration = Duration::from_secs(20);

struct Bed {
    worker: Worker<UnderTest>,
    commands: PlaneSender<PlaneCommand>,
    events: PlaneReceiver<PlaneEvent>,
    /// What control gets, and what it gives.
    batches: PlaneReceiver<PacketBatch>,
    deliveries: PlaneSender<PacketBatch>,
    counters: Arc<[PeerCounters]>,
    tun: UnixDatagram,
    far: UdpSocket,
    far_sealer: Sealer,
    far_opener: Opener,
}

/// The queue of a worker without a rate.
fn no_queue() -> EgressQueue {
    EgressQueue::new(MTU, OuterMarks::default(), None)
}

impl Bed {
    /// A worker with one lane, whose next record is number `sealed`.
    fn new(sealed: u64) -> Self {
        Self::with(sealed, CarrierChoice::Lane, no_queue(), connection)
    }

    /// As [`Self::new`], with what `connect` makes of the far end's address as the lane's QUIC connection.
    fn with(
        sealed: u64,
        carrier: CarrierChoice,
        egress: EgressQueue,
        connect: impl FnOnce(SocketAddr) -> LaneConnection,
    ) -> Self {
        let (ours, tun) = UnixDatagram::pair().unwrap();
        [&ours, &tun].into_iter().for_each(|end| end.set_nonblocking(true).unwrap());
        let wake = Arc::new(Wake::new().unwrap());
        let offloads = Offloads::default().with(Offload::HugePages, false);
        let config = RingConfig { mtu: MTU, datagram_bytes: datagram_bytes_max(MTU), offloads };
        let mut ring = PacketRing::new(ours.into(), wake.eventfd(), config).unwrap();
        ring.arm_tun_read().unwrap();
        let (commands, received_commands) = plane_queue(|| {});
        let (sent_events, events) = plane_queue(|| {});
        let (sent_batches, batches) = plane_queue_of(BATCH_QUEUE_MESSAGES, || {});
        let (deliveries, delivered) = plane_queue_of(BATCH_QUEUE_MESSAGES, || {});
        let hand_over = HandOver::between(&[Arc::clone(&wake)], MTU).pop().unwrap();
        let mut worker = Worker {
            id: WorkerId(0),
            mtu: MTU,
            hash_seed: 1,
            fragments: true,
            busy_poll: Duration::ZERO,
            rekey: RekeyLimits::default(),
            ring,
            wake,
            commands: received_commands,
            delivered,
            events: sent_events,
            batches: sent_batches,
            hand_over,
            counters: Arc::default(),
            state: State::new(MTU, offloads, Duration::from_secs(25), egress),
        };
        let counters: Arc<[PeerCounters]> = Arc::new([PeerCounters::default()]);
        worker.state.snapshot = Arc::new(snapshot(Arc::clone(&counters)));
        let [local, far] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        local.connect(far.local_addr().unwrap()).unwrap();
        far.connect(local.local_addr().unwrap()).unwrap();
        [&local, &far].into_iter().for_each(|socket| socket.set_nonblocking(true).unwrap());
        let [client, server] = [Role::Client, Role::Server].map(|role| {
            let id = LaneId::new(5).unwrap();
            split(LaneKeys::derive(Suite::Aes128Gcm, role, export).unwrap(), id, id)
        });
        let ((mut sealer, opener), (far_sealer, far_opener)) = (client, server);
        sealer.skip(sealed);
        let lane = LaneHandOver {
            serial: SERIAL,
            peer: PEER,
            index: LaneIndex::new(0).unwrap(),
            inbound_id: LaneId::new(5).unwrap(),
            local: local.local_addr().unwrap(),
            remote: far.local_addr().unwrap(),
            connection: connect(far.local_addr().unwrap()),
            socket: local.into(),
            sealer,
            opener,
            secrets: secrets(Role::Client),
            early: Vec::new(),
            carrier,
            gauges: Arc::new(LaneGauges::default()),
        };
        worker.add_lane(lane, Instant::now()).unwrap();
        Self { worker, commands, events, batches, deliveries, counters, tun, far, far_sealer, far_opener }
    }

    fn turn(&mut self) {
        self.worker.turn(Instant::now()).unwrap();
    }

    /// Turns until `done`, and returns what that found.
    fn until<T>(&mut self, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(found) = done(self) {
                return found;
            }
            self.turn();
        }
        panic!("does not come");
    }

    /// The only lane.
    fn lane(&mut self) -> &crate::lane::Lane {
        let slot = self.worker.state.lanes.find(SERIAL).unwrap();
        self.worker.state.lanes.get_mut(slot).unwrap()
    }

    fn lane_end(&mut self) -> Option<LaneEnd> {
        std::iter::from_fn(|| self.events.try_recv()).find_map(|event| match event {
            PlaneEvent::LaneEnded { serial: SERIAL, end, .. } => Some(end),
            _ => None,
        })
    }

    /// What reaches the far end in records with packets: each one's number of them.
    fn records(&mut self) -> Vec<usize> {
        let mut buffer = [0; 2048];
        let mut records = Vec::new();
        while let Ok(bytes) = self.far.recv(&mut buffer) {
            if let Ok(Opened { frames, .. }) = self.far_opener.open(&mut buffer[..bytes]) {
                let mut frames = Frames::new(frames).map(|frame| frame.unwrap()).peekable();
                if frames.peek().is_some_and(|frame| frame.kind != FrameKind::Echo) {
                    records.push(frames.count());
                }
            }
        }
        records
    }

    /// Seals `count` packets of `bytes` each into one record and sends it to the worker.
    fn send_record(&mut self, count: usize, bytes: usize) {
        let mut record = vec![0; RECORD_HEADER_BYTES];
        for _ in 0..count {
            record.extend(FrameHeader::fit(FramedPacket::Complete, bytes, 2 * bytes + 16).unwrap().as_bytes());
            record.extend(packet([10, 20, 0, 2], [10, 10, 0, 2], bytes));
        }
        let frames = record.len() - RECORD_HEADER_BYTES;
        record.resize(frames + RECORD_OVERHEAD_BYTES, 0);
        self.far_sealer.seal(&mut record, frames).unwrap();
        self.far.send(&record).unwrap();
    }

    /// Has the lane's path carry datagrams of up to `bytes`.
    fn settle(&mut self, bytes: u16) {
        for slot in self.worker.state.lanes.slots() {
            let lane = self.worker.state.lanes.get_mut(slot).unwrap();
            lane.path.settle(bytes, Instant::now());
            lane.record_bytes = bytes.into();
        }
    }

    /// Sends an echo to the worker, in a record of `record_bytes`.
    fn send_echo(&mut self, echo: Echo, record_bytes: usize) {
        let mut record = vec![0; record_bytes];
        let frame_bytes = echo.write_frames(&mut record[RECORD_HEADER_BYTES..][..record_bytes - RECORD_OVERHEAD_BYTES]);
        let bytes = self.far_sealer.seal(&mut record, frame_bytes).unwrap();
        self.far.send(&record[..bytes]).unwrap();
    }

    /// The echoes that have reached the far end, and how large the records are.
    fn echoes(&mut self) -> Vec<(Echo, usize)> {
        let mut buffer = [0; 65_536];
        let mut echoes = Vec::new();
        while let Ok(bytes) = self.far.recv(&mut buffer) {
            let Ok(Opened { frames, .. }) = self.far_opener.open(&mut buffer[..bytes]) else { continue };
            let first = Frames::new(frames).next().unwrap().unwrap();
            if first.kind == FrameKind::Echo {
                echoes.push((Echo::parse(&frames[first.payload]).unwrap(), bytes));
            }
        }
        echoes
    }

    /// Has the worker read a packet to the peer from its TUN.
    fn leave(&self, bytes: usize) {
        let mut read = vec![0; VNET_HEADER_BYTES];
        read.extend(packet([10, 10, 0, 2], [10, 20, 0, 2], bytes));
        self.tun.send(&read).unwrap();
    }
}

fn packet(from: [u8; 4], to: [u8; 4], bytes: usize) -> Vec<u8> {
    let mut packet = vec![0x45, 0, (bytes >> 8) as u8, bytes as u8, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend([from, to].concat());
    packet.resize(bytes, 0);
    packet
}

fn snapshot(counters: Arc<[PeerCounters]>) -> Snapshot {
    let (mut routes, mut sources) = (RouteTable::default(), RouteTable::default());
    routes.insert("10.20.0.0/16".parse().unwrap(), PEER);
    sources.insert("10.20.0.0/16".parse().unwrap(), true);
    let peer = PeerEntry {
        id: PeerId::random(),
        sources: Arc::new(sources),
        workers_with_lane: 1,
        stream: None,
        avoided: 0,
        counters,
    };
    Snapshot { generation: Generation(1), routes: Arc::new(routes), peers: vec![peer] }
}

fn export(output: &mut [u8], label: &[u8], context: &[u8]) -> Result<(), KeyError> {
    for (position, byte) in output.iter_mut().enumerate() {
        *byte = label[position % label.len()] ^ context[position % context.len()] ^ position as u8;
    }
    Ok(())
}

fn secrets(role: Role) -> EpochSecrets {
    let id = LaneId::new(5).unwrap();
    EpochSecrets::new(Suite::Aes128Gcm, role, id, id, [1; PSK_BYTES].into())
}

/// A connection that dials for ever, which is all a worker needs to own a lane.
fn connection(remote: SocketAddr) -> LaneConnection {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let client = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    LaneConnection::connect(EndpointConfig::default(), client, remote, Instant::now()).unwrap()
}

/// Otherwise nothing else would be done while the network brings more than a core can take: no timer, no command, no
/// record of the other direction.
#[test]
fn a_turn_handles_what_was_there_when_it_began() {
    let mut bed = Bed::new(0);
    bed.until(|bed| bed.worker.ring.is_idle().then_some(()));
    // Small packets: more of them than can be written to the TUN without entering the ring in between.
    (0..30).for_each(|_| bed.send_record(60, 20));
    while bed.worker.ring.completion_count() < 30 {
        bed.worker.ring.enter().unwrap();
    }
    (0..30).for_each(|_| bed.send_record(60, 20));
    bed.turn();
    assert_eq!(bed.counters[0].records_received.get(), 30);
    bed.until(|bed| (bed.counters[0].records_received.get() == 60).then_some(()));
}

#[test]
fn a_lane_whose_key_is_used_up_ends_so_that_another_can_be_made() {
    // The first echo asks for a large path MTU in a record of that size.
    let mut bed = Bed::new(RECORDS_PER_EPOCH_MAX - HEAVY_RECORD_WEAR - 2);
    bed.until(|bed| (!bed.echoes().is_empty()).then_some(()));
    bed.leave(100);
    let records = bed.until(|bed| Some(bed.records()).filter(|records| !records.is_empty()));
    assert_eq!((records, bed.lane_end()), (vec![1], None));
    bed.leave(100);
    assert_eq!(bed.until(Bed::lane_end), LaneEnd::Worn);
    bed.turn();
    assert_eq!(bed.records(), [1], "the last record has left");
    assert_eq!(bed.counters[0].drops.get(DropReason::EpochExhausted), 0);
    bed.leave(100);
    let drops = |bed: &mut Bed| Some(bed.counters[0].drops.get(DropReason::NoLane)).filter(|drops| *drops > 0);
    assert_eq!(bed.until(drops), 1);
}

#[test]
fn a_worker_does_not_sleep_on_an_end_that_control_has_no_room_for() {
    let mut bed = Bed::new(0);
    while bed.worker.events.try_send(PlaneEvent::Stopped { worker: WorkerId(1) }).is_ok() {}
    bed.commands.try_send(PlaneCommand::RetireLane(SERIAL)).unwrap();
    bed.turn();
    bed.turn();
    let soon = Instant::now() + Duration::from_secs(1);
    assert!(bed.worker.wake_at().is_some_and(|at| at < soon), "{:?}", bed.worker.wake_at());
    let told = (0..PLANE_QUEUE_MESSAGES).filter_map(|_| bed.events.try_recv());
    assert!(told.into_iter().all(|event| matches!(event, PlaneEvent::Stopped { .. })));
    bed.turn();
    assert_eq!(bed.lane_end(), Some(LaneEnd::Retired));
    assert_eq!(bed.worker.wake_at(), None);
}

#[test]
fn packets_that_a_retired_lane_has_begun_still_leave() {
    let mut bed = Bed::new(0);
    bed.until(|bed| bed.worker.ring.is_idle().then_some(()));
    (0..3).for_each(|_| bed.leave(100));
    bed.worker.ring.enter().unwrap();
    bed.commands.try_send(PlaneCommand::RetireLane(SERIAL)).unwrap();
    bed.turn();
    assert_eq!(bed.lane_end(), Some(LaneEnd::Retired));
    assert_eq!(bed.counters[0].drops.get(DropReason::NoLane), 0);
    assert_eq!(bed.records(), [3]);
}

/// A UDP super-segment to the peer, cut into payloads of `segment_bytes`.
fn super_segment(payload_bytes: usize, segment_bytes: u16) -> Vec<u8> {
    let mut packet = packet([10, 10, 0, 2], [10, 20, 0, 2], 28 + payload_bytes);
    packet[24..26].copy_from_slice(&(8 + payload_bytes as u16).to_be_bytes());
    let segmentation =
        Segmentation { transport: Transport::Udp, is_ipv6: false, has_cwr: false, segment_bytes, header_bytes: 28 };
    let header = VnetHeader { partial_checksum: Some((20, 6)), segmentation: Some(segmentation) };
    [&header.to_bytes()[..], &packet].concat()
}

#[test]
fn a_super_segment_leaves_as_a_train_of_segments_each_continuing_the_one_before() {
    let mut bed = Bed::new(0);
    bed.settle(1452);
    bed.tun.send(&super_segment(5000, 1300)).unwrap();
    let mut frames = Vec::new();
    let mut buffer = [0; 2048];
    bed.until(|bed| {
        while let Ok(bytes) = bed.far.recv(&mut buffer) {
            let Ok(opened) = bed.far_opener.open(&mut buffer[..bytes]) else { continue };
            let read =
                Frames::new(opened.frames).map(|frame| frame.unwrap()).filter(|frame| frame.kind != FrameKind::Echo);
            frames.extend(read.map(|frame| (frame.kind, frame.continues, frame.payload.len())));
        }
        (frames.len() == 4).then_some(())
    });
    let segment = |continues, payload: usize| (FrameKind::Segment, continues, 28 + payload);
    assert_eq!(frames, [segment(false, 1300), segment(true, 1300), segment(true, 1300), segment(true, 1100)]);
    assert_eq!((bed.worker.counters.trains_sent.get(), bed.counters[0].packets_sent.get()), (1, 4));
}

#[test]
fn a_request_is_answered_once_and_in_short_and_nothing_else_is() {
    let mut bed = Bed::new(0);
    bed.send_echo(Echo::Request(77), 1200);
    bed.send_echo(Echo::Reply(78), ECHO_RECORD_BYTES);
    bed.send_record(1, 100);
    let replies = |bed: &mut Bed| {
        let replies = bed.echoes().into_iter().filter(|(echo, _)| matches!(echo, Echo::Reply(_))).collect::<Vec<_>>();
        Some(replies).filter(|replies| !replies.is_empty())
    };
    assert_eq!(bed.until(replies), [(Echo::Reply(77), ECHO_RECORD_BYTES)]);
    bed.until(|bed| (bed.counters[0].packets_received.get() == 1).then_some(()));
    assert_eq!(replies(&mut bed), None);
}

#[test]
fn what_control_asks_is_asked_at_once_and_its_answer_told_with_the_time_it_took() {
    let mut bed = Bed::new(0);
    bed.settle(1400);
    let answered = |bed: &mut Bed| {
        std::iter::from_fn(|| bed.events.try_recv()).find_map(|event| match event {
            PlaneEvent::LaneAnswered { serial: SERIAL, ask, rtt } => Some((ask, rtt)),
            _ => None,
        })
    };
    for serial in [LaneSerial(99), SERIAL] {
        bed.commands.try_send(PlaneCommand::AskLane { serial, ask: serial.0 }).unwrap();
    }
    let started = Instant::now();
    // The others ask for the path MTU, in larger records.
    let token = bed.until(|bed| {
        bed.echoes().into_iter().find_map(|asked| match asked {
            (Echo::Request(token), ECHO_RECORD_BYTES) => Some(token),
            _ => None,
        })
    });
    bed.send_echo(Echo::Reply(token + 1), ECHO_RECORD_BYTES);
    bed.send_echo(Echo::Reply(token), ECHO_RECORD_BYTES);
    bed.send_echo(Echo::Reply(token), ECHO_RECORD_BYTES);
    let (ask, rtt) = bed.until(answered);
    assert!(ask == SERIAL.0 && rtt <= started.elapsed(), "{ask}, {rtt:?}");
    bed.until(|bed| (bed.counters[0].records_received.get() == 3).then_some(()));
    assert_eq!(answered(&mut bed), None, "it is told once");
}

#[test]
fn who_asks_too_often_is_not_answered_and_counted() {
    let mut bed = Bed::new(0);
    (0..300).for_each(|token| {
        bed.send_echo(Echo::Request(token), ECHO_RECORD_BYTES);
        bed.turn();
    });
    bed.until(|bed| (bed.counters[0].records_received.get() == 300).then_some(()));
    assert!(bed.counters[0].drops.get(DropReason::EchoLimited) > 0);
}

/// The far end answers the requests that have reached it, unless their datagrams are larger than `carries`.
fn answer(bed: &mut Bed, carries: usize) {
    for (echo, bytes) in bed.echoes() {
        if let Echo::Request(token) = echo
            && bytes <= carries
        {
            bed.send_echo(Echo::Reply(token), ECHO_RECORD_BYTES);
        }
    }
}

fn changes(bed: &mut Bed) -> Vec<LaneChange> {
    let changes = std::iter::from_fn(|| bed.events.try_recv()).filter_map(|event| match event {
        PlaneEvent::LaneChanged { serial: SERIAL, change, .. } => Some(change),
        _ => None,
    });
    changes.collect()
}

/// A worker's turns with the clock in hand: each a millisecond after the one before, the far end answering in between.
fn turns(bed: &mut Bed, milliseconds: u64, carries: usize) {
    for _ in 0..milliseconds {
        let now = bed.worker.state.now + Duration::from_millis(1);
        bed.worker.turn(now).unwrap();
        answer(bed, carries);
    }
}

#[test]
fn a_lane_finds_out_what_its_path_carries_and_says_so() {
    for carries in [8972, 1452, 1331] {
        let mut bed = Bed::new(0);
        bed.turn();
        assert_eq!(bed.lane().record_bytes, 1200);
        turns(&mut bed, 4000, carries);
        let found = bed.lane().record_bytes;
        assert!((carries - 3..=carries).contains(&found), "{found}");
        assert_eq!(usize::from(bed.lane().gauges.mtu_bytes()), found);
        assert_eq!(changes(&mut bed), [LaneChange::PathMtu(found as u16)]);
        let gauges = Arc::clone(&bed.lane().gauges);
        assert!(gauges.rtt_us() > 0 && gauges.echoes_answered.get() > 0, "{gauges:?}");
        assert!(gauges.echoes_sent.get() >= gauges.echoes_answered.get(), "{gauges:?}");
    }
}

#[test]
fn a_lane_whose_peer_has_stopped_answering_is_silent_and_heard_again_or_ends() {
    let mut bed = Bed::new(0);
    turns(&mut bed, 1000, 8972);
    changes(&mut bed);
    bed.leave(100);
    turns(&mut bed, 1000, 0);
    assert_eq!(changes(&mut bed), [LaneChange::Late, LaneChange::Silent]);
    assert!(bed.lane().gauges.is_silent());
    bed.send_record(1, 100);
    turns(&mut bed, 2, 0);
    assert_eq!(changes(&mut bed), [LaneChange::Heard]);
    assert!(!bed.lane().gauges.is_silent());
    bed.leave(100);
    turns(&mut bed, 9000, 0);
    assert_eq!(bed.lane_end(), Some(LaneEnd::TimedOut));
}

#[test]
fn a_guessed_reply_answers_nothing() {
    let mut bed = Bed::new(0);
    turns(&mut bed, 1, 0);
    (0..100).for_each(|token| bed.send_echo(Echo::Reply(token), ECHO_RECORD_BYTES));
    turns(&mut bed, 5, 0);
    assert_eq!(bed.lane().record_bytes, 1200);
    assert_eq!(bed.lane().gauges.echoes_answered.get(), 0);
}

/// All workers' events share one queue.
#[test]
fn datagrams_for_the_listener_leave_room_for_what_control_must_hear_and_come_after_it() {
    let mut bed = Bed::new(0);
    bed.until(|bed| bed.worker.ring.is_idle().then_some(()));
    let stray = [0x20; 40];
    let strays = |bed: &mut Bed| {
        let told = std::iter::from_fn(|| bed.events.try_recv());
        told.filter(|event| matches!(event, PlaneEvent::Stray(_))).count()
    };
    assert_eq!(crate::inbound::Arrival::of(&stray), crate::inbound::Arrival::Stray);
    let (start, sent) = (Instant::now(), 300);
    for sent in 1..=sent {
        bed.far.send(&stray).unwrap();
        let counters = Arc::clone(&bed.worker.counters);
        bed.until(|_| (counters.trains_received.get() >= sent).then_some(()));
    }
    let most = u64::from(STRAYS_BURST) + u64::from(STRAYS_PER_SECOND) * start.elapsed().as_millis() as u64 / 1000 + 1;
    let dropped = bed.counters[0].drops.get(DropReason::InboundMalformed);
    assert!((sent - most.min(sent)..=sent - u64::from(STRAYS_BURST)).contains(&dropped), "{dropped} of {sent}");
    assert_eq!(strays(&mut bed) as u64, sent - dropped);

    // With room for one only, it is the end of a lane that control hears of.
    while bed.worker.events.try_send(PlaneEvent::Stopped { worker: WorkerId(1) }).is_ok() {}
    let (serial, peer, index) = (SERIAL, PEER, LaneIndex::new(0).unwrap());
    bed.worker.state.untold.push(PlaneEvent::LaneEnded { serial, peer, index, end: LaneEnd::TimedOut });
    bed.far.send(&stray).unwrap();
    while bed.worker.ring.completion_count() == 0 {
        bed.worker.ring.enter().unwrap();
    }
    bed.worker.state.strays = Bucket::new(1, 1, Instant::now());
    assert!(bed.events.try_recv().is_some());
    bed.turn();
    assert_eq!(bed.lane_end(), Some(LaneEnd::TimedOut));
    assert!(bed.worker.state.untold.is_empty());
}
