//! The subsystem as the control loop has it, on streams in memory whose other end the test holds.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{AsyncRead, AsyncWrite};
use ringlane_shared::plane::queue::plane_queue_of;
use ringlane_shared::plane::{BatchEnd, BatchItem, BatchItemForm, PlaneReceiver};
use ringlane_shared::wire::packets::{Framing, Mark};

use super::peer::{OPEN_PAUSE_MIN, STUCK};
use super::*;

const PATIENCE: Duration = Duration::from_secs(20);
const WHOLE: BatchItemForm = BatchItemForm::Packet { is_partial: false };
const ALICE: PeerIndex = PeerIndex(0);
const BOB: PeerIndex = PeerIndex(1);

/// One direction of a stream.
#[derive(Default)]
struct Channel {
    bytes: VecDeque<u8>,
    room: usize,
    writes: Vec<usize>,
    is_closed: bool,
    waker: Option<Waker>,
}

/// The end that the subsystem has, or the test's: what it reads, what it writes.
struct Pipe([Arc<Mutex<Channel>>; 2]);

impl Pipe {
    /// Both ends; each direction holds so many bytes that have not been read.
    fn pair(room: usize) -> [Self; 2] {
        let channel = || Arc::new(Mutex::new(Channel { room, ..Channel::default() }));
        let (a, b) = (channel(), channel());
        [Self([Arc::clone(&a), Arc::clone(&b)]), Self([b, a])]
    }

    fn with<T>(&self, direction: usize, act: impl FnOnce(&mut Channel) -> T) -> T {
        let mut channel = self.0[direction].lock().unwrap();
        let result = act(&mut channel);
        channel.waker.take().into_iter().for_each(Waker::wake);
        result
    }

    fn put(&self, bytes: &[u8]) {
        self.with(1, |channel| channel.bytes.extend(bytes));
    }

    fn take(&self) -> Vec<u8> {
        self.with(0, |channel| channel.bytes.drain(..).collect())
    }

    fn end(&self) {
        self.with(1, |channel| channel.is_closed = true);
    }

    fn is_ended(&self) -> bool {
        self.with(0, |channel| channel.is_closed)
    }

    /// The sizes of the other end's writes.
    fn writes(&self) -> Vec<usize> {
        self.with(0, |channel| channel.writes.clone())
    }
}

impl AsyncRead for Pipe {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut channel = self.0[0].lock().unwrap();
        if channel.bytes.is_empty() && !channel.is_closed {
            channel.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let bytes = buffer.len().min(channel.bytes.len());
        channel.bytes.drain(..bytes).zip(buffer).for_each(|(from, to)| *to = from);
        channel.waker.take().into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(bytes))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut channel = self.0[1].lock().unwrap();
        assert!(!channel.is_closed, "written on after its end");
        let bytes = &bytes[..bytes.len().min(channel.room - channel.bytes.len())];
        if bytes.is_empty() {
            channel.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        channel.bytes.extend(bytes);
        channel.writes.push(bytes.len());
        channel.waker.take().into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.end();
        Poll::Ready(Ok(()))
    }
}

/// The subsystem of a node with two peers, and the queue of its one worker.
struct Site {
    packets: Packets,
    worker: PlaneReceiver<PacketBatch>,
    opened: u64,
    asked: Vec<PacketsEvent>,
    doubted: Vec<ConnectionId>,
}

impl Site {
    fn new(worker_batches: usize) -> Self {
        let (sender, worker) = plane_queue_of(worker_batches, || ());
        Self { packets: Packets::new(2, vec![sender]), worker, opened: 0, asked: Vec::new(), doubted: Vec::new() }
    }

    fn of(kind: PeerKind) -> Self {
        let mut site = Self::new(64);
        for peer in [ALICE, BOB] {
            site.packets.handle_connected(peer, Instant::now());
            site.packets.handle_identified(peer, kind);
        }
        site
    }

    fn note(&mut self, event: PacketsEvent) {
        match event {
            PacketsEvent::Doubt { connection, .. } => self.doubted.push(connection),
            asked => self.asked.push(asked),
        }
    }

    /// Runs until `done`.
    async fn run_until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        let run = async {
            while !done(self) {
                if let Ok(event) = tokio::time::timeout(Duration::from_millis(1), self.packets.next()).await {
                    self.note(event);
                }
            }
        };
        tokio::time::timeout(PATIENCE, run).await.expect("it should have happened by now");
    }

    /// Runs until nothing is to be done.
    async fn settle(&mut self) {
        while let Ok(event) = tokio::time::timeout(Duration::from_millis(5), self.packets.next()).await {
            self.note(event);
        }
    }

    fn send(&mut self, peer: PeerIndex, packets: &[Vec<u8>]) {
        let mut batch = PacketBatch::new(BatchEnd::Peer(peer), Vec::new());
        for packet in packets {
            if !batch.push(WHOLE, packet) {
                let next = PacketBatch::new(BatchEnd::Peer(peer), Vec::new());
                self.packets.send(peer, std::mem::replace(&mut batch, next));
                assert!(batch.push(WHOLE, packet));
            }
        }
        self.packets.send(peer, batch);
    }

    /// Opens the stream that was asked for, in this protocol; the test's end of it.
    async fn open(&mut self, peer: PeerIndex, protocol: PacketProtocol, quality: Quality) -> Pipe {
        self.run_until(|site| !site.asked.is_empty()).await;
        let asked = self.asked.remove(0);
        let PacketsEvent::OpenStream { peer: asked, protocols } = asked else { panic!("{asked:?}") };
        assert!(asked == peer && protocols.contains(&protocol));
        let way = self.way(quality);
        assert!(self.packets.wants(peer, way));
        let id = OpenId::of(self.opened);
        self.packets.handle_opening(peer, id, way);
        let [ours, theirs] = Pipe::pair(1 << 18);
        assert!(self.packets.has_opening(id));
        self.packets.handle_opened(id, Ok((protocol.stream_protocol(), Box::new(ours))));
        theirs
    }

    fn accept(&mut self, peer: PeerIndex, protocol: PacketProtocol, quality: Quality, room: usize) -> Pipe {
        let [ours, theirs] = Pipe::pair(room);
        let way = self.way(quality);
        self.packets.handle_inbound(peer, way, &protocol.stream_protocol(), Box::new(ours));
        theirs
    }

    fn way(&mut self, quality: Quality) -> Way {
        self.opened += 1;
        Way { connection: ConnectionId::new_unchecked(self.opened as usize), quality }
    }

    fn delivered(&self) -> Vec<(BatchEnd, Vec<u8>)> {
        let batches = std::iter::from_fn(|| self.worker.try_recv());
        batches
            .flat_map(|batch| batch.items().map(|item| (batch.end(), item.packet.to_vec())).collect::<Vec<_>>())
            .collect()
    }

    fn drops(&self, peer: PeerIndex) -> Vec<(StreamDrop, u64)> {
        self.packets.drops(peer).filter(|(_, count)| *count > 0).collect()
    }
}

fn packet(number: u32, bytes: usize) -> Vec<u8> {
    let mut packet = vec![0x45; bytes];
    packet[2..4].copy_from_slice(&(bytes as u16).to_be_bytes());
    packet[20..24].copy_from_slice(&number.to_be_bytes());
    packet
}

fn packets(numbers: std::ops::Range<u32>, bytes: usize) -> Vec<Vec<u8>> {
    numbers.map(|number| packet(number, bytes)).collect()
}

fn framed(framing: Framing, packets: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for packet in packets {
        framing.write(BatchItem { form: WHOLE, packet }, &mut bytes).unwrap();
    }
    bytes
}

fn from(peer: PeerIndex, packets: &[Vec<u8>]) -> Vec<(BatchEnd, Vec<u8>)> {
    packets.iter().map(|packet| (BatchEnd::Peer(peer), packet.clone())).collect()
}

#[tokio::test]
async fn a_stream_is_opened_with_the_first_packet_and_serves_both_ways() {
    for (kind, protocol) in
        [(PeerKind::Ringlane, PacketProtocol::Ringlane), (PeerKind::Hyprspace, PacketProtocol::HyprspaceV1)]
    {
        let mut site = Site::of(kind);
        site.settle().await;
        assert!(site.asked.is_empty(), "not before there is anything to send");
        let (there, back) = (packets(0..30, 101), packets(50..80, 1420));
        site.send(BOB, &there);
        let stream = site.open(BOB, protocol, Quality::Direct).await;
        let expected = framed(protocol.framing(), &there);
        let mut got = Vec::new();
        site.run_until(|_| {
            got.extend(stream.take());
            got.len() >= expected.len()
        })
        .await;
        assert!(got == expected && stream.writes() == [expected.len()], "in one write: {:?}", stream.writes());
        stream.put(&framed(protocol.framing(), &back));
        let mut delivered = Vec::new();
        site.run_until(|site| {
            delivered.extend(site.delivered());
            delivered.len() == back.len()
        })
        .await;
        assert_eq!(delivered, from(BOB, &back));
        assert!(site.asked.is_empty() && site.drops(BOB).is_empty());
        let infos = site.packets.streams(BOB);
        assert!(infos.len() == 1 && infos[0].is_sending && infos[0].bytes_sent == expected.len() as u64, "{infos:?}");
    }
}

#[tokio::test]
async fn a_stream_of_the_peers_is_used_for_sending_unless_it_is_of_the_older_protocol() {
    let mut site = Site::of(PeerKind::Hyprspace);
    let old = site.accept(ALICE, PacketProtocol::HyprspaceV0, Quality::Direct, 1 << 18);
    old.put(&framed(Framing::Hyprspace, &packets(0..3, 60)));
    site.send(ALICE, &packets(10..11, 60));
    site.run_until(|site| !site.asked.is_empty()).await;
    site.packets.handle_no_way(ALICE, Instant::now());
    let new = site.accept(ALICE, PacketProtocol::HyprspaceV1, Quality::Direct, 1 << 18);
    let mut got = Vec::new();
    site.run_until(|_| {
        got.extend(new.take());
        got.len() >= 62
    })
    .await;
    assert_eq!(got, framed(Framing::Hyprspace, &packets(10..11, 60)));
    assert!(old.take().is_empty());
    assert_eq!(site.delivered(), from(ALICE, &packets(0..3, 60)), "all are read");
}

#[tokio::test]
async fn one_outgoing_stream_of_the_older_protocol_is_kept() {
    let mut site = Site::of(PeerKind::Hyprspace);
    site.send(ALICE, &packets(0..1, 60));
    let stream = site.open(ALICE, PacketProtocol::HyprspaceV0, Quality::Direct).await;
    for number in 1..50 {
        site.settle().await;
        site.send(ALICE, &packets(number..number + 1, 60));
    }
    site.settle().await;
    assert_eq!(stream.take(), framed(Framing::Hyprspace, &packets(0..50, 60)));
    assert!(site.asked.is_empty());
}

/// A Hyprspace node ends a stream that has been silent for 25 seconds, and opens another one for its next packet.
#[tokio::test]
async fn a_stream_that_the_peer_ends_is_closed_and_the_next_packet_takes_another() {
    let mut site = Site::of(PeerKind::Hyprspace);
    site.send(ALICE, &packets(0..1, 60));
    let first = site.open(ALICE, PacketProtocol::HyprspaceV1, Quality::Direct).await;
    site.settle().await;
    let second = site.accept(ALICE, PacketProtocol::HyprspaceV1, Quality::Direct, 1 << 18);
    second.put(&framed(Framing::Hyprspace, &packets(7..8, 60)));
    first.end();
    site.run_until(|_| first.is_ended()).await;
    site.send(ALICE, &packets(1..2, 60));
    site.settle().await;
    assert_eq!(second.take(), framed(Framing::Hyprspace, &packets(1..2, 60)), "the one that the peer opened");
    second.end();
    site.run_until(|_| second.is_ended()).await;
    site.send(ALICE, &packets(2..3, 60));
    let third = site.open(ALICE, PacketProtocol::HyprspaceV1, Quality::Direct).await;
    site.settle().await;
    assert_eq!(third.take(), framed(Framing::Hyprspace, &packets(2..3, 60)));
    assert_eq!((site.drops(ALICE), site.packets.streams(ALICE).len()), (Vec::new(), 1));
}

#[tokio::test]
async fn a_worker_that_is_busy_slows_the_peer_down_and_nothing_is_lost() {
    let mut site = Site::new(2);
    site.packets.handle_identified(ALICE, PeerKind::Ringlane);
    let stream = site.accept(ALICE, PacketProtocol::Ringlane, Quality::Direct, 1 << 20);
    let all = packets(0..2000, 1400);
    stream.put(&framed(Framing::Ringlane, &all));
    site.settle().await;
    let unread = stream.with(1, |channel| channel.bytes.len());
    assert!(unread > 2000 * 1404 - 5 * (64 << 10), "{unread}");
    let mut delivered = Vec::new();
    site.run_until(|site| {
        delivered.extend(site.delivered());
        delivered.len() == all.len()
    })
    .await;
    assert_eq!(delivered, from(ALICE, &all));
}

#[tokio::test]
async fn a_peer_that_takes_nothing_delays_no_other_and_loses_its_oldest() {
    let mut site = Site::of(PeerKind::Ringlane);
    let [slow, fast] = [(ALICE, 1000), (BOB, 1 << 24)]
        .map(|(peer, room)| site.accept(peer, PacketProtocol::Ringlane, Quality::Direct, room));
    for number in 0..100 {
        for peer in [ALICE, BOB] {
            site.send(peer, &packets(number * 46..(number + 1) * 46, 1400));
        }
        site.settle().await;
    }
    assert_eq!(fast.take(), framed(Framing::Ringlane, &packets(0..4600, 1400)));
    assert_eq!(slow.take().len(), 1000);
    let drops = site.drops(ALICE);
    assert!(matches!(drops[..], [(StreamDrop::QueueFull, count)] if count > 2000), "{drops:?}");
    assert!(site.drops(BOB).is_empty());
}

#[tokio::test]
async fn a_hyprspace_node_that_only_quic_leads_to_gets_one_frame_at_a_time_until_there_is_tcp() {
    let mut site = Site::of(PeerKind::Hyprspace);
    site.send(ALICE, &packets(0..40, 60));
    let quic = site.open(ALICE, PacketProtocol::HyprspaceV1, Quality::Paced).await;
    let begun = Instant::now();
    let mut got = Vec::new();
    site.run_until(|_| {
        got.extend(quic.take());
        got.len() == 40 * 62
    })
    .await;
    assert_eq!(quic.writes(), [62; 40]);
    assert!(begun.elapsed() >= Duration::from_millis(15), "40 packets at 2000 per second");
    assert!(site.packets.problem(ALICE).is_some());
    site.packets.handle_connected(ALICE, Instant::now());
    let tcp = site.open(ALICE, PacketProtocol::HyprspaceV1, Quality::Direct).await;
    site.send(ALICE, &packets(40..80, 60));
    site.settle().await;
    assert_eq!(tcp.take(), framed(Framing::Hyprspace, &packets(40..80, 60)));
    assert_eq!(tcp.writes().len(), 1);
    assert!(quic.take().is_empty() && site.packets.problem(ALICE).is_none());
}

#[tokio::test]
async fn what_makes_no_sense_ends_its_own_stream_only() {
    let mut site = Site::of(PeerKind::Hyprspace);
    let [good, bad] = [(); 2].map(|()| site.accept(ALICE, PacketProtocol::HyprspaceV1, Quality::Direct, 1 << 18));
    bad.put(&[framed(Framing::Hyprspace, &packets(0..1, 60)), vec![2, 0, 1, 2], vec![0x8d, 5, 1, 2]].concat());
    site.settle().await;
    good.put(&framed(Framing::Hyprspace, &packets(1..2, 60)));
    site.settle().await;
    assert_eq!(site.delivered(), from(ALICE, &packets(0..2, 60)));
    assert_eq!((site.packets.streams(ALICE).len(), site.drops(ALICE)), (1, vec![(StreamDrop::Malformed, 1)]));
}

#[tokio::test]
async fn a_peer_that_goes_takes_what_waited_for_it_along() {
    let mut site = Site::of(PeerKind::Ringlane);
    site.send(ALICE, &packets(0..10, 60));
    site.run_until(|site| !site.asked.is_empty()).await;
    site.packets.handle_disconnected(ALICE);
    site.send(ALICE, &packets(10..15, 60));
    assert_eq!(site.drops(ALICE), [(StreamDrop::NotConnected, 15)]);
    site.packets.handle_connected(ALICE, Instant::now());
    site.packets.handle_identified(ALICE, PeerKind::Ringlane);
    site.asked.clear();
    site.send(ALICE, &packets(20..21, 60));
    let stream = site.open(ALICE, PacketProtocol::Ringlane, Quality::Relayed).await;
    site.settle().await;
    assert_eq!(stream.take(), framed(Framing::Ringlane, &packets(20..21, 60)));
}

/// What a Hyprspace node would take for a length in the middle of a frame could end it.
#[tokio::test]
async fn a_stream_left_in_the_middle_of_a_frame_is_written_to_no_more() {
    let mut site = Site::of(PeerKind::Hyprspace);
    let stuck = site.accept(ALICE, PacketProtocol::HyprspaceV1, Quality::Direct, 31);
    site.send(ALICE, &packets(0..1, 60));
    site.settle().await;
    assert_eq!(stuck.with(0, |channel| channel.bytes.len()), 31);
    site.packets.handle_connected(ALICE, Instant::now());
    let better = site.open(ALICE, PacketProtocol::HyprspaceV1, Quality::Direct).await;
    // It is given up because another stream is there, once it has taken nothing for so long.
    site.packets.peers[0].let_pass(STUCK);
    site.send(ALICE, &packets(1..2, 60));
    site.settle().await;
    assert_eq!(better.take(), framed(Framing::Hyprspace, &packets(1..2, 60)));
    assert_eq!(site.drops(ALICE), [(StreamDrop::Lost, 1)]);
    better.end();
    site.run_until(|_| better.is_ended()).await;
    stuck.take();
    site.send(ALICE, &packets(2..3, 60));
    site.run_until(|site| !site.asked.is_empty()).await;
    assert!(stuck.is_ended() && stuck.take().is_empty(), "nothing may follow half a frame");
}

#[tokio::test]
async fn a_stream_that_always_has_more_to_read_does_not_keep_the_peers_others_waiting() {
    let mut site = Site::new(64);
    site.packets.handle_identified(ALICE, PeerKind::Ringlane);
    let [busy, quiet] = [(); 2].map(|()| site.accept(ALICE, PacketProtocol::Ringlane, Quality::Direct, 1 << 20));
    busy.put(&framed(Framing::Ringlane, &packets(0..4000, 1400)));
    quiet.put(&framed(Framing::Ringlane, &packets(9000..9001, 60)));
    let mut delivered = Vec::new();
    site.run_until(|site| {
        delivered.extend(site.delivered());
        delivered.len() == 4001
    })
    .await;
    let at = delivered.iter().position(|(_, bytes)| *bytes == packet(9000, 60)).unwrap();
    assert!(at < 2000, "{at} packets came first");
}

#[tokio::test]
async fn a_peer_that_ends_every_stream_at_once_is_not_asked_again_at_once() {
    let mut site = Site::of(PeerKind::Ringlane);
    let begun = Instant::now();
    for number in 0..3 {
        site.send(ALICE, &packets(number..number + 1, 60));
        let stream = site.open(ALICE, PacketProtocol::Ringlane, Quality::Direct).await;
        stream.end();
        site.run_until(|_| stream.is_ended()).await;
    }
    assert!(begun.elapsed() >= 2 * OPEN_PAUSE_MIN, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn packets_leave_no_more_by_a_stream_whose_connection_is_closed() {
    let mut site = Site::of(PeerKind::Ringlane);
    site.send(ALICE, &packets(0..1, 100));
    let _relayed = site.open(ALICE, PacketProtocol::Ringlane, Quality::Relayed).await;
    let relayed = ConnectionId::new_unchecked(site.opened as usize);
    site.run_until(|site| site.packets.quality(ALICE) == Some(Quality::Relayed)).await;
    let _direct = site.accept(ALICE, PacketProtocol::Ringlane, Quality::Direct, 1 << 16);
    site.packets.handle_connection_closed(ALICE, relayed, Instant::now());
    assert_eq!(site.packets.quality(ALICE), None);
    site.send(ALICE, &packets(1..2, 100));
    site.run_until(|site| site.packets.quality(ALICE) == Some(Quality::Direct)).await;
}

#[tokio::test]
async fn a_stream_that_a_hyprspace_node_ends_is_written_to_no_more_though_its_connection_is_given_up() {
    let mut site = Site::of(PeerKind::Hyprspace);
    site.send(ALICE, &packets(0..1, 100));
    let first = site.open(ALICE, PacketProtocol::HyprspaceV1, Quality::Direct).await;
    site.run_until(|_| !first.writes().is_empty()).await;
    site.packets.handle_connection_retired(ALICE, ConnectionId::new_unchecked(site.opened as usize), Instant::now());
    site.settle().await;
    let written = first.writes().len();
    first.end();
    site.settle().await;
    site.send(ALICE, &packets(1..2, 100));
    site.settle().await;
    assert_eq!(first.writes().len(), written);
    let second = site.open(ALICE, PacketProtocol::HyprspaceV1, Quality::Direct).await;
    site.run_until(|_| !second.writes().is_empty()).await;
}

#[tokio::test]
async fn packets_that_nothing_answers_have_their_connection_doubted_and_leave_one_that_is_dead_at_once() {
    let mut site = Site::of(PeerKind::Ringlane);
    site.send(ALICE, &packets(0..1, 100));
    let first = site.open(ALICE, PacketProtocol::Ringlane, Quality::Direct).await;
    let connection = ConnectionId::new_unchecked(site.opened as usize);
    site.run_until(|site| !site.doubted.is_empty()).await;
    assert_eq!(site.doubted, [connection]);
    // More than the stream takes, so that a frame is cut short.
    site.send(ALICE, &packets(1..400, 1400));
    site.settle().await;
    site.packets.handle_connection_suspect(ALICE, connection, Instant::now());
    let second = site.open(ALICE, PacketProtocol::Ringlane, Quality::Relayed).await;
    site.run_until(|_| !second.writes().is_empty()).await;
    let written = first.writes().len();
    site.send(ALICE, &packets(400..401, 100));
    site.settle().await;
    assert_eq!(first.writes().len(), written);
    // It was not dead: what is better is looked for again.
    site.packets.handle_connection_heard(ALICE, connection, Instant::now());
    site.run_until(|site| !site.asked.is_empty()).await;
}

#[tokio::test]
async fn packets_that_are_answered_raise_no_doubt() {
    let mut site = Site::of(PeerKind::Ringlane);
    site.send(ALICE, &packets(0..1, 100));
    let stream = site.open(ALICE, PacketProtocol::Ringlane, Quality::Direct).await;
    let began = Instant::now();
    while began.elapsed() < 3 * stream::UNANSWERED {
        let before = Instant::now();
        site.send(ALICE, &packets(1..2, 100));
        site.run_until(|_| !stream.take().is_empty()).await;
        stream.put(&framed(Framing::Ringlane, &packets(2..3, 100)));
        site.run_until(|site| !site.delivered().is_empty()).await;
        if before.elapsed() >= stream::UNANSWERED {
            // The machine was away.
            site.doubted.clear();
        }
    }
    assert!(site.doubted.is_empty());
}

fn marked(mark: Mark) -> Vec<u8> {
    let mut bytes = Vec::new();
    mark.write(&mut bytes);
    bytes
}

/// What one connection has taken may be under way for longer than what another takes after it.
#[tokio::test]
async fn packets_keep_their_order_when_their_sender_changes_streams() {
    for number in 0..8_u32 {
        let [mut sender, mut receiver] = [Site::of(PeerKind::Ringlane), Site::of(PeerKind::Ringlane)];
        sender.send(ALICE, &packets(0..100, 1000));
        let slow = sender.open(ALICE, PacketProtocol::Ringlane, Quality::Relayed).await;
        sender.run_until(|_| !slow.writes().is_empty()).await;
        sender.settle().await;
        sender.packets.handle_connected(ALICE, Instant::now());
        let fast = sender.open(ALICE, PacketProtocol::Ringlane, Quality::Direct).await;
        sender.packets.peers[0].touch(Instant::now());
        sender.send(ALICE, &packets(100..200, 1000));
        sender.run_until(|_| !fast.writes().is_empty()).await;
        sender.settle().await;
        let (first, second) = (slow.take(), fast.take());
        let expected = [framed(Framing::Ringlane, &packets(0..100, 1000)), marked(Mark::Leave(1))].concat();
        assert!(first == expected, "nothing more on the first");
        let expected = [marked(Mark::Join(1)), framed(Framing::Ringlane, &packets(100..200, 1000))].concat();
        assert!(second == expected, "all the rest on the second");

        // A part of the first comes early, the rest after all of the second.
        let [one, other] = [(); 2].map(|()| receiver.accept(BOB, PacketProtocol::Ringlane, Quality::Direct, 1 << 18));
        let (early, late) = first.split_at(first.len() / 8 * number as usize);
        one.put(early);
        other.put(&second);
        receiver.settle().await;
        one.put(late);
        let mut delivered = Vec::new();
        receiver
            .run_until(|site| {
                delivered.extend(site.delivered());
                delivered.len() == 200
            })
            .await;
        assert!(delivered == from(BOB, &packets(0..200, 1000)), "in the order in which they were sent");
    }
}

/// How long a packet waits that begins another stream, when that happens to the one before it.
async fn waited_until(end: fn(&mut Site, &Pipe)) -> Duration {
    let mut site = Site::of(PeerKind::Ringlane);
    let [first, second] = [(); 2].map(|()| site.accept(ALICE, PacketProtocol::Ringlane, Quality::Direct, 1 << 18));
    first.put(&framed(Framing::Ringlane, &packets(0..1, 60)));
    let begun = Instant::now();
    second.put(&[marked(Mark::Join(1)), framed(Framing::Ringlane, &packets(1..2, 60))].concat());
    site.run_until(|_| first.with(1, |of| of.bytes.is_empty()) && second.with(1, |of| of.bytes.is_empty())).await;
    end(&mut site, &first);
    let mut delivered = Vec::new();
    site.run_until(|site| {
        delivered.extend(site.delivered());
        delivered.len() == 2
    })
    .await;
    assert_eq!(delivered, from(ALICE, &packets(0..2, 60)));
    begun.elapsed()
}

#[tokio::test]
async fn what_may_still_come_by_another_stream_is_waited_for_no_longer_than_it_may_and_not_for_ever() {
    let ends: [fn(&mut Site, &Pipe); 3] = [
        |_, first| first.end(),
        |site, _| {
            let first = ConnectionId::new_unchecked(1);
            site.packets.handle_connection_suspect(ALICE, first, Instant::now());
        },
        |_, _| {},
    ];
    // A busy machine may be away for as long as the limit, but not every time.
    for (how, (end, times)) in ends.into_iter().zip([20, 20, 1]).enumerate() {
        let is_limit = |took: &Duration| *took >= stream::JOIN_LIMIT;
        let mut took = Vec::new();
        while took.len() < times && took.iter().all(is_limit) {
            took.push(waited_until(end).await);
        }
        assert_eq!(took.last().is_some_and(is_limit), how == 2, "{how}: {took:?}");
    }
    // Where there is nothing else it might come by, or what it says was said long ago, nothing is waited for.
    let mut site = Site::of(PeerKind::Ringlane);
    let only = site.accept(ALICE, PacketProtocol::Ringlane, Quality::Direct, 1 << 18);
    only.put(&[marked(Mark::Join(9)), framed(Framing::Ringlane, &packets(0..1, 60))].concat());
    only.put(&[marked(Mark::Leave(1)), marked(Mark::Join(1)), framed(Framing::Ringlane, &packets(1..2, 60))].concat());
    site.settle().await;
    assert_eq!(site.delivered(), from(ALICE, &packets(0..2, 60)));
}

#[tokio::test]
async fn a_mark_that_comes_after_it_was_waited_for_in_vain_takes_nothing_back() {
    let mut site = Site::of(PeerKind::Ringlane);
    let [first, second] = [(); 2].map(|()| site.accept(ALICE, PacketProtocol::Ringlane, Quality::Direct, 1 << 18));
    let begun = Instant::now();
    let packet = |number: u32| framed(Framing::Ringlane, &packets(number..number + 1, 60));
    second.put(&[marked(Mark::Join(1)), packet(0), marked(Mark::Leave(2))].concat());
    site.run_until(|site| !site.delivered().is_empty()).await;
    let waited = begun.elapsed();
    assert!(waited >= stream::JOIN_LIMIT, "{waited:?}");
    first.put(&[marked(Mark::Leave(1)), marked(Mark::Join(2)), packet(1)].concat());
    site.settle().await;
    assert_eq!(site.delivered(), from(ALICE, &packets(1..2, 60)), "not waited for a second time");
}

#[tokio::test]
async fn a_stream_that_waits_for_another_keeps_nobody_busy_while_the_worker_is() {
    let mut site = Site::of(PeerKind::Ringlane);
    let [first, second] = [(); 2].map(|()| site.accept(ALICE, PacketProtocol::Ringlane, Quality::Direct, 1 << 18));
    second.put(&[marked(Mark::Join(1)), framed(Framing::Ringlane, &packets(0..1, 60))].concat());
    site.run_until(|_| second.with(1, |of| of.bytes.is_empty())).await;
    let begun = Instant::now();
    // Batches end at marks: these are more than a worker takes.
    let many = (1000..1200).map(|number| [framed(Framing::Ringlane, &packets(0..1, 60)), marked(Mark::Leave(number))]);
    first.put(&many.flatten().collect::<Vec<_>>().concat());
    while begun.elapsed() <= stream::JOIN_LIMIT {
        site.settle().await;
    }
    let mut polls = 0;
    {
        let mut next = std::pin::pin!(site.packets.next());
        let counted = poll_fn(|cx| {
            polls += 1;
            next.as_mut().poll(cx)
        });
        assert!(tokio::time::timeout(Duration::from_millis(50), counted).await.is_err(), "the worker takes nothing");
    }
    assert!((2..200).contains(&polls), "{polls}");
    let mut count = 0;
    site.run_until(|site| {
        count += site.delivered().len();
        count == 201
    })
    .await;
}
