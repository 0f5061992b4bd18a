//! The carrier `stream` on control's side: packets on libp2p streams, for peers that no lane leads to.
//!
//! ```text
//!  worker --PacketBatch--> send() --> OutQueue --> one stream of the peer's --> peer
//!  worker <--PacketBatch-- FrameReader <--------- every stream of the peer's <-- peer
//! ```
//! To a Hyprspace node go whole packets in frames of even size, on streams of TCP or relayed connections only, whatever
//! connection the node itself may use (why: [`ringlane_shared::wire::packets`]); to a Ringlane node what the kernel gave
//! out, super-segments and all. Any stream that both ends may write on serves for sending, whoever opened it; a new one is
//! opened with the first packet that finds none. That a peer ends a stream is routine: a Hyprspace node does after every
//! 25 seconds of silence.
//!
//! Nothing is read from a stream whose worker has its hands full, so that a fast peer is slowed down and not buffered;
//! what a slow peer does not take waits in a bounded queue that drops its oldest.
//!
//! | Module | What it is |
//! |---|---|
//! | `queue` | the frames that wait for a stream: pure |
//! | `stream` | one stream |
//! | `peer` | the streams of one peer, and which of them is used |
//! | `retire` | the connections that are given up, and whether anything is under way on them |
//! | `drops` | why packets died here |

mod drops;
mod peer;
mod queue;
mod retire;
mod stream;

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use libp2p::StreamProtocol;
use libp2p::swarm::ConnectionId;
use ringlane_shared::id::PeerIndex;
use ringlane_shared::limits::{
    HYPRSPACE_STREAMS_PER_PEER_MAX, PACKET_STREAMS_PER_PEER_MAX, STREAM_PEERS_BUDGET, STREAM_READ_BYTES,
};
use ringlane_shared::plane::{PacketBatch, PlaneSender};

pub use self::drops::{StreamDrop, StreamDrops};
use self::peer::{PeerStreams, Tools};
use self::retire::Retirer;
use self::stream::PacketStream;
pub use self::stream::{Duplex, PacketProtocol};
use crate::ready::Ready;
use crate::swarm::{Accepted, Direction, OpenError, OpenId, PeerKind, Quality, Way};

/// Memory of batches that is kept.
const SPARE_BATCHES: usize = 16;

/// What the control loop is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PacketsEvent {
    /// Open a stream to a peer, and say so by [`Packets::handle_opening`], or [`Packets::handle_no_way`].
    OpenStream {
        /// To whom.
        peer: PeerIndex,
        /// In which protocols, the preferred one first.
        protocols: &'static [PacketProtocol],
    },
    /// Packets leave by a connection, and nothing comes back: perhaps it is dead.
    Doubt {
        /// Whose.
        peer: PeerIndex,
        /// Which one.
        connection: ConnectionId,
    },
    /// The peer says that it is about to close a connection.
    Retired {
        /// Whose.
        peer: PeerIndex,
        /// Which one.
        connection: ConnectionId,
    },
    /// Nothing is under way any more on a connection of [`Packets::handle_connection_retired`].
    Drained {
        /// Whose.
        peer: PeerIndex,
        /// Which one.
        connection: ConnectionId,
    },
}

impl PacketsEvent {
    /// Whose.
    pub fn peer(&self) -> PeerIndex {
        match *self {
            Self::OpenStream { peer, .. }
            | Self::Doubt { peer, .. }
            | Self::Retired { peer, .. }
            | Self::Drained { peer, .. } => peer,
        }
    }
}

/// One stream, for status.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StreamInfo {
    /// Its protocol.
    pub protocol: PacketProtocol,
    /// Who opened it.
    pub direction: Direction,
    /// What its connection is like.
    pub quality: Quality,
    /// Whether packets leave by it.
    pub is_sending: bool,
    /// Bytes received on it.
    pub bytes_received: u64,
    /// Bytes sent on it.
    pub bytes_sent: u64,
}

/// Which streams a node accepts for packets, and how many of one peer.
pub fn accepted() -> Vec<Accepted> {
    let bound = |protocol| match protocol {
        PacketProtocol::HyprspaceV0 | PacketProtocol::HyprspaceV1 => HYPRSPACE_STREAMS_PER_PEER_MAX,
        PacketProtocol::Ringlane => PACKET_STREAMS_PER_PEER_MAX,
    };
    let all = PacketProtocol::ALL.into_iter();
    all.map(|protocol| Accepted { name: protocol.stream_protocol(), inbound_per_peer_max: bound(protocol) }).collect()
}

/// The packet streams of all peers. Owned by the control loop and polled on its thread, on a tokio runtime.
pub struct Packets {
    peers: Vec<PeerStreams>,
    wakers: Vec<Waker>,
    ready: Ready<usize>,
    opening: HashMap<OpenId, (PeerIndex, Way)>,
    events: VecDeque<PacketsEvent>,
    workers: Vec<PlaneSender<PacketBatch>>,
    memory: Vec<u8>,
    /// Of batches whose packets have left, for others.
    spare: Vec<Vec<u8>>,
}

impl std::fmt::Debug for Packets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packets").field("opening", &self.opening).field("events", &self.events).finish_non_exhaustive()
    }
}

impl Packets {
    /// For so many peers. What a peer sends goes to the same one of `workers`, always.
    pub fn new(peers: usize, workers: Vec<PlaneSender<PacketBatch>>) -> Self {
        let ready = Ready::default();
        Self {
            peers: (0..peers as u16).map(|peer| PeerStreams::new(PeerIndex(peer))).collect(),
            wakers: (0..peers).map(|position| ready.waker(position)).collect(),
            ready,
            opening: HashMap::new(),
            events: VecDeque::new(),
            workers,
            memory: vec![0; STREAM_READ_BYTES],
            spare: Vec::new(),
        }
    }

    /// Queues packets for their peer's stream.
    pub fn send(&mut self, peer: PeerIndex, batch: PacketBatch) {
        self.with(peer, |streams| streams.send(&batch));
        if self.spare.len() < SPARE_BATCHES {
            self.spare.push(batch.into_memory());
        }
    }

    /// The peer has a new connection.
    pub fn handle_connected(&mut self, peer: PeerIndex, now: Instant) {
        self.with(peer, |streams| streams.handle_connected(now));
    }

    /// The peer has said what it speaks.
    pub fn handle_identified(&mut self, peer: PeerIndex, kind: PeerKind) {
        self.with(peer, |streams| streams.handle_identified(kind, Instant::now()));
    }

    /// A connection to the peer is gone, and others are left.
    pub fn handle_connection_closed(&mut self, peer: PeerIndex, connection: ConnectionId, now: Instant) {
        self.with(peer, |streams| streams.handle_connection_closed(connection, now));
    }

    /// A connection is to be closed as one too many: packets leave by another, its streams end, and when nothing is under
    /// way on it any more, that is told by [`PacketsEvent::Drained`].
    pub fn handle_connection_retired(&mut self, peer: PeerIndex, connection: ConnectionId, now: Instant) {
        self.with(peer, |streams| streams.retire(connection, Retirer::Us, now));
    }

    /// A connection of the peer's does not answer any more: packets leave by another, if there is any.
    pub fn handle_connection_suspect(&mut self, peer: PeerIndex, connection: ConnectionId, now: Instant) {
        let is_of = |(of, way): &(PeerIndex, Way)| *of == peer && way.connection == connection;
        let was_opening = self.opening.extract_if(|_, opening| is_of(opening)).count() > 0;
        self.with(peer, |streams| {
            if was_opening {
                streams.handle_open_unneeded();
            }
            streams.handle_connection_suspect(connection, was_opening, now);
        });
    }

    /// A connection of the peer's that was doubted answers.
    pub fn handle_connection_heard(&mut self, peer: PeerIndex, connection: ConnectionId, now: Instant) {
        self.with(peer, |streams| streams.handle_connection_heard(connection, now));
    }

    /// The peer's last connection is gone, and all of its streams are.
    pub fn handle_disconnected(&mut self, peer: PeerIndex) {
        self.opening.retain(|_, (of, _)| *of != peer);
        self.with(peer, PeerStreams::handle_disconnected);
    }

    /// The peer has opened a stream. One of another protocol is dropped.
    pub fn handle_inbound(&mut self, peer: PeerIndex, way: Way, protocol: &StreamProtocol, stream: Box<dyn Duplex>) {
        let Some(protocol) = PacketProtocol::of(protocol) else { return };
        self.add(peer, way, protocol, Direction::Inbound, stream);
    }

    /// Where a stream asked for by [`PacketsEvent::OpenStream`] would be opened. Whether it is needed.
    pub fn wants(&mut self, peer: PeerIndex, way: Way) -> bool {
        let mut wanted = false;
        self.with(peer, |streams| {
            if streams.is_retired(way.connection) {
                // Nothing else leads there, and this will not for long.
                streams.handle_open_failed(Instant::now());
                return;
            }
            let has_one = streams.set_paced(way.quality == Quality::Paced);
            wanted = !has_one && streams.sending_connection() != Some(way.connection);
            if !wanted {
                streams.handle_open_unneeded();
            }
        });
        wanted
    }

    /// A stream asked for is being opened.
    pub fn handle_opening(&mut self, peer: PeerIndex, id: OpenId, way: Way) {
        self.opening.insert(id, (peer, way));
    }

    /// No connection leads to a peer that packets could take.
    pub fn handle_no_way(&mut self, peer: PeerIndex, now: Instant) {
        self.with(peer, |streams| streams.handle_open_failed(now));
    }

    /// Whether this stream is being opened for packets.
    pub fn has_opening(&self, id: OpenId) -> bool {
        self.opening.contains_key(&id)
    }

    /// A stream is open, or could not be opened.
    pub fn handle_opened(&mut self, id: OpenId, result: Result<(StreamProtocol, Box<dyn Duplex>), OpenError>) {
        let Some((peer, way)) = self.opening.remove(&id) else { return };
        let opened = result.inspect_err(|error| tracing::debug!(peer = peer.0, %error, "no packet stream")).ok();
        match opened.and_then(|(protocol, stream)| Some((PacketProtocol::of(&protocol)?, stream))) {
            Some((protocol, stream)) => self.add(peer, way, protocol, Direction::Outbound, stream),
            None => self.with(peer, |streams| streams.handle_open_failed(Instant::now())),
        }
    }

    /// What is to be done next. Cancel-safe: nothing is lost when the future is dropped. Bounded in what it does before
    /// it lets others have their turn.
    pub async fn next(&mut self) -> PacketsEvent {
        poll_fn(|cx| self.poll(cx)).await
    }

    /// What the peer speaks, if it has said so.
    pub fn kind(&self, peer: PeerIndex) -> Option<PeerKind> {
        self.peers.get(peer.position())?.kind()
    }

    /// What connects the stream that packets to the peer leave by.
    pub fn quality(&self, peer: PeerIndex) -> Option<Quality> {
        self.peers.get(peer.position())?.quality()
    }

    /// What is wrong with the peer's streams, for the operator.
    pub fn problem(&self, peer: PeerIndex) -> Option<&'static str> {
        let is_paced = self.peers.get(peer.position()).is_some_and(PeerStreams::is_paced);
        is_paced.then_some(
            "a Hyprspace node that only QUIC leads to, which few packets at a time are safe for; let TCP through to it",
        )
    }

    /// The peer's streams, for status.
    pub fn streams(&self, peer: PeerIndex) -> Vec<StreamInfo> {
        let Some(streams) = self.peers.get(peer.position()) else { return Vec::new() };
        let info = |stream: &PacketStream| StreamInfo {
            protocol: stream.protocol,
            direction: stream.direction,
            quality: stream.quality,
            is_sending: streams.is_sending(stream.serial),
            bytes_received: stream.bytes_received,
            bytes_sent: stream.bytes_sent,
        };
        streams.streams().iter().map(info).collect()
    }

    /// What died of the peer's packets here.
    pub fn drops(&self, peer: PeerIndex) -> impl Iterator<Item = (StreamDrop, u64)> {
        self.peers.get(peer.position()).into_iter().flat_map(|streams| streams.drops.iter())
    }

    fn add(&mut self, peer: PeerIndex, way: Way, protocol: PacketProtocol, by: Direction, stream: Box<dyn Duplex>) {
        let now = Instant::now();
        let Way { connection, quality } = way;
        self.with(peer, |streams| {
            streams.add(now, |serial| PacketStream::new(stream, serial, protocol, by, (connection, quality), now));
        });
    }

    /// Whatever happens to a peer gives it a turn.
    fn with(&mut self, peer: PeerIndex, act: impl FnOnce(&mut PeerStreams)) {
        if let (Some(streams), Some(waker)) = (self.peers.get_mut(peer.position()), self.wakers.get(peer.position())) {
            act(streams);
            waker.wake_by_ref();
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<PacketsEvent> {
        self.ready.register(cx.waker());
        let now = Instant::now();
        for _ in 0..STREAM_PEERS_BUDGET {
            if let Some(event) = self.events.pop_front() {
                return Poll::Ready(event);
            }
            let Some(position) = self.ready.pop() else { return Poll::Pending };
            let (Some(streams), Some(waker)) = (self.peers.get_mut(position), self.wakers.get(position)) else {
                continue;
            };
            let worker = position.checked_rem(self.workers.len()).and_then(|worker| self.workers.get(worker));
            let mut tools = Tools { memory: &mut self.memory, spare: &mut self.spare, worker };
            let turn = streams.poll(&mut Context::from_waker(waker), now, &mut tools);
            if turn.again {
                waker.wake_by_ref();
            }
            let peer = PeerIndex(position as u16);
            self.events.extend(turn.doubts.map(|connection| PacketsEvent::Doubt { peer, connection }));
            self.events.extend(turn.retired.map(|connection| PacketsEvent::Retired { peer, connection }));
            self.events.extend(turn.drained.map(|connection| PacketsEvent::Drained { peer, connection }));
            if let Some(protocols) = turn.wants_stream {
                self.events.push_back(PacketsEvent::OpenStream { peer, protocols });
            }
        }
        // The others first.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests;
