//! Two ends of one peering while connections replace each other, in simulated time.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};

use futures::{AsyncRead, AsyncWrite};
use ringlane_shared::limits::RETIRING_SECONDS_MAX;
use ringlane_shared::plane::queue::plane_queue_of;
use ringlane_shared::plane::{BatchItemForm, PlaneReceiver};

use super::*;

const MS: Duration = Duration::from_millis(1);
/// Bytes that one direction of a stream holds.
const ROOM: usize = 100_000;

/// Small, seeded, and good enough for tests.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// One direction of a stream.
#[derive(Default)]
struct Wire {
    chunks: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    ends_at: Option<Instant>,
    is_cut: bool,
}

/// One end of a stream, on which everything takes its time.
struct End {
    clock: Arc<Mutex<Instant>>,
    delay: Duration,
    from: Arc<Mutex<Wire>>,
    to: Arc<Mutex<Wire>>,
}

impl AsyncRead for End {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let (now, mut wire) = (*self.clock.lock().unwrap(), self.from.lock().unwrap());
        if wire.is_cut {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        match wire.chunks.pop_front() {
            Some((at, mut bytes)) if at <= now => {
                let taken = bytes.len().min(buffer.len());
                buffer[..taken].copy_from_slice(&bytes[..taken]);
                wire.bytes -= taken;
                if taken < bytes.len() {
                    wire.chunks.push_front((at, bytes.split_off(taken)));
                }
                Poll::Ready(Ok(taken))
            }
            Some(later) => {
                wire.chunks.push_front(later);
                Poll::Pending
            }
            None if wire.ends_at.is_some_and(|at| at <= now) => Poll::Ready(Ok(0)),
            None => Poll::Pending,
        }
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let (now, mut wire) = (*self.clock.lock().unwrap(), self.to.lock().unwrap());
        assert!(wire.ends_at.is_none(), "written on after its end");
        if wire.is_cut {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let taken = bytes.len().min(ROOM - wire.bytes);
        if taken == 0 {
            return Poll::Pending;
        }
        wire.bytes += taken;
        wire.chunks.push_back((now + self.delay, bytes[..taken].to_vec()));
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let at = *self.clock.lock().unwrap() + self.delay;
        self.to.lock().unwrap().ends_at.get_or_insert(at);
        Poll::Ready(Ok(()))
    }
}

/// One end of the peering.
struct Side {
    streams: PeerStreams,
    sender: PlaneSender<PacketBatch>,
    worker: PlaneReceiver<PacketBatch>,
    sent: u32,
    got: Vec<u32>,
    /// The connections it would begin something on, in the order in which it came to know them.
    ways: Vec<usize>,
}

impl Side {
    fn new() -> Self {
        let (sender, worker) = plane_queue_of(64, || ());
        let mut streams = PeerStreams::new(PeerIndex(0));
        streams.handle_identified(PeerKind::Ringlane, Instant::now());
        Self { streams, sender, worker, sent: 0, got: Vec::new(), ways: Vec::new() }
    }

    fn send(&mut self, bytes: usize) {
        let mut packet = vec![0; bytes];
        packet[..4].copy_from_slice(&self.sent.to_be_bytes());
        self.sent += 1;
        let mut batch = PacketBatch::new(ringlane_shared::plane::BatchEnd::Peer(PeerIndex(0)), Vec::new());
        assert!(batch.push(BatchItemForm::Packet { is_partial: false }, &packet));
        self.streams.send(&batch);
    }
}

/// Something that takes its time on the way.
enum Coming {
    /// A stream that the other side has opened.
    Inbound { side: usize, way: usize, end: End },
    /// A stream that was asked for.
    Opened { side: usize, way: usize, end: End },
}

struct World {
    clock: Arc<Mutex<Instant>>,
    sides: [Side; 2],
    /// Their delays; `None` of one that is closed.
    connections: Vec<Option<Duration>>,
    wires: Vec<(usize, Arc<Mutex<Wire>>)>,
    coming: Vec<(Instant, Coming)>,
    /// When the first side retires all but the newest, and by when it closes them whatever happens.
    retires_at: Option<Instant>,
    overdue: Vec<(Instant, usize)>,
    closed_drained: usize,
    closed_overdue: usize,
}

impl World {
    fn new() -> Self {
        Self {
            clock: Arc::new(Mutex::new(Instant::now())),
            sides: [Side::new(), Side::new()],
            connections: Vec::new(),
            wires: Vec::new(),
            coming: Vec::new(),
            retires_at: None,
            overdue: Vec::new(),
            closed_drained: 0,
            closed_overdue: 0,
        }
    }

    fn now(&self) -> Instant {
        *self.clock.lock().unwrap()
    }

    fn id(way: usize) -> ConnectionId {
        ConnectionId::new_unchecked(way)
    }

    /// A new connection. The other side may take it for older than the one it had, as if both had dialled at once.
    fn connect(&mut self, delay: Duration, is_crossed: bool) {
        let (now, way) = (self.now(), self.connections.len());
        self.connections.push(Some(delay));
        for (position, side) in self.sides.iter_mut().enumerate() {
            let at = side.ways.len().saturating_sub(usize::from(is_crossed && position == 1));
            side.ways.insert(at, way);
            side.streams.handle_connected(now);
        }
        self.retires_at = Some(now + 2000 * MS);
    }

    fn close(&mut self, way: usize) {
        let now = self.now();
        self.connections[way] = None;
        self.overdue.retain(|(_, other)| *other != way);
        self.wires.iter().filter(|(of, _)| *of == way).for_each(|(_, wire)| wire.lock().unwrap().is_cut = true);
        for side in &mut self.sides {
            side.ways.retain(|other| *other != way);
            side.streams.handle_connection_closed(Self::id(way), now);
        }
    }

    fn open(&mut self, side: usize) {
        let now = self.now();
        let streams = &mut self.sides[side].streams;
        let Some(&way) = self.sides[side].ways.last() else { return streams.handle_open_failed(now) };
        if streams.sending_connection() == Some(Self::id(way)) {
            return streams.handle_open_unneeded();
        }
        let delay = self.connections[way].unwrap();
        let [there, back] = [(); 2].map(|()| Arc::new(Mutex::new(Wire::default())));
        self.wires.extend([(way, Arc::clone(&there)), (way, Arc::clone(&back))]);
        let end = |from: &Arc<_>, to: &Arc<_>| End {
            clock: Arc::clone(&self.clock),
            delay,
            from: Arc::clone(from),
            to: Arc::clone(to),
        };
        let (ours, theirs) = (end(&back, &there), end(&there, &back));
        self.coming.push((now + delay, Coming::Inbound { side: 1 - side, way, end: theirs }));
        self.coming.push((now + 2 * delay, Coming::Opened { side, way, end: ours }));
    }

    fn arrive(&mut self) {
        let now = self.now();
        for (_, coming) in self.coming.extract_if(.., |(at, _)| *at <= now).collect::<Vec<_>>() {
            let (side, way, end, direction) = match coming {
                Coming::Inbound { side, way, end } => (side, way, end, Direction::Inbound),
                Coming::Opened { side, way, end } => (side, way, end, Direction::Outbound),
            };
            let streams = &mut self.sides[side].streams;
            match (self.connections[way], direction) {
                (Some(_), _) => streams.add(now, |serial| {
                    let way = (Self::id(way), Quality::Direct);
                    PacketStream::new(Box::new(end), serial, PacketProtocol::Ringlane, direction, way, now)
                }),
                (None, Direction::Outbound) => streams.handle_open_failed(now),
                (None, Direction::Inbound) => {}
            }
        }
    }

    fn step(&mut self) {
        *self.clock.lock().unwrap() += MS;
        let now = self.now();
        self.arrive();
        if self.retires_at.is_some_and(|at| at <= now) {
            self.retires_at = None;
            let newest = self.sides[0].ways.pop();
            for way in std::mem::replace(&mut self.sides[0].ways, newest.into_iter().collect()) {
                self.sides[0].streams.retire(Self::id(way), Retirer::Us, now);
                self.overdue.push((now + Duration::from_secs(RETIRING_SECONDS_MAX), way));
            }
        }
        for (_, way) in self.overdue.extract_if(.., |(at, _)| *at <= now).collect::<Vec<_>>() {
            self.closed_overdue += 1;
            self.close(way);
        }
        for position in 0..2 {
            for _ in 0..8 {
                let side = &mut self.sides[position];
                let (mut memory, mut spare) = (vec![0; 4096], Vec::new());
                let mut tools = Tools { memory: &mut memory, spare: &mut spare, worker: Some(&side.sender) };
                let mut cx = Context::from_waker(std::task::Waker::noop());
                let turn = side.streams.poll(&mut cx, now, &mut tools);
                for batch in std::iter::from_fn(|| side.worker.try_recv()) {
                    side.got.extend(batch.items().map(|item| u32::from_be_bytes(item.packet[..4].try_into().unwrap())));
                }
                let of = |id: ConnectionId, way: &usize| Self::id(*way) == id;
                if let Some(id) = turn.retired {
                    side.ways.retain(|way| !of(id, way));
                }
                if let Some(id) = turn.drained {
                    assert_eq!(position, 0, "only who decided closes");
                    let way = (0..self.connections.len()).find(|way| of(id, way)).unwrap();
                    self.closed_drained += 1;
                    self.close(way);
                }
                if turn.wants_stream.is_some() {
                    self.open(position);
                }
                if !turn.again {
                    break;
                }
            }
        }
    }
}

#[tokio::test]
async fn connections_that_replace_each_other_lose_no_packet_and_no_order() {
    let (mut drained, mut overdue) = (0, 0);
    for seed in 1..=30_u64 {
        let mut rng = Random(seed << 32 | 0x9e37_79b9);
        let mut world = World::new();
        world.connect(MS, false);
        let mut next_connection = 0;
        let mut rates = [0; 2];
        for at in 0..30_000_u64 {
            if at == next_connection && at < 20_000 {
                next_connection = at + 100 + rng.below(6000);
                world.connect(MS * (1 + rng.below(240) as u32), rng.below(3) == 0);
            }
            if at % 1000 == 0 {
                // Nothing, little, or much.
                rates = [(); 2].map(|()| [0, 3, 40][rng.below(3) as usize]);
            }
            for (side, rate) in rates.into_iter().enumerate() {
                if at < 25_000 && rng.below(100) < rate {
                    world.sides[side].send(40 + rng.below(1400) as usize);
                }
            }
            world.step();
        }
        for side in 0..2 {
            let (got, sent) = (&world.sides[side].got, world.sides[1 - side].sent);
            assert!(got.is_sorted(), "order, seed {seed}");
            assert_eq!(got.len() as u32, sent, "all of it, seed {seed}");
            assert!(world.sides[side].streams.drops.iter().all(|(_, count)| count == 0), "seed {seed}");
        }
        drained += world.closed_drained;
        overdue += world.closed_overdue;
    }
    assert!(drained > 100 && overdue == 0, "{drained} {overdue}");
}
