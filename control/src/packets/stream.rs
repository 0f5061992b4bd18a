//! One stream that carries packets.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::{AsyncRead, AsyncWrite};
use libp2p::StreamProtocol;
use libp2p::swarm::ConnectionId;
use ringlane_shared::id::PeerIndex;
use ringlane_shared::plane::{BatchEnd, PacketBatch, PlaneSender, QueueFull};
use ringlane_shared::wire::packets::{Frame, FrameReader, Framing, HYPRSPACE_V0, HYPRSPACE_V1, Mark, RINGLANE_PACKETS};

use super::drops::{StreamDrop, StreamDrops};
use super::peer::Tools;
use super::retire::Retirer;
use crate::swarm::{Direction, Quality};

/// How long packets on another stream are waited for that come before those of this one. Less than a second, so that a
/// stream that has died costs no more than its death would have.
pub(super) const JOIN_LIMIT: Duration = Duration::from_millis(500);

/// How long the end of a stream may take.
pub(super) const CLOSE_LIMIT: Duration = Duration::from_secs(10);

/// Packets that have no answer for so long may have led nowhere.
pub(super) const UNANSWERED: Duration = Duration::from_millis(150);
/// How much later that is asked again, of traffic that has no answers.
pub(super) const DOUBT_PAUSE: Duration = Duration::from_millis(600);

/// A protocol that carries packets.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PacketProtocol {
    /// Hyprspace's older one: only who opened a stream writes.
    HyprspaceV0,
    /// Hyprspace's newer one.
    HyprspaceV1,
    /// Ringlane's.
    Ringlane,
}

impl PacketProtocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::HyprspaceV0, Self::HyprspaceV1, Self::Ringlane];

    /// Its name on the wire and in status.
    pub fn name(self) -> &'static str {
        match self {
            Self::HyprspaceV0 => HYPRSPACE_V0,
            Self::HyprspaceV1 => HYPRSPACE_V1,
            Self::Ringlane => RINGLANE_PACKETS,
        }
    }

    /// The protocol of this name.
    pub fn of(name: &StreamProtocol) -> Option<Self> {
        Self::ALL.into_iter().find(|protocol| protocol.name() == name.as_ref())
    }

    /// As libp2p wants it.
    pub fn stream_protocol(self) -> StreamProtocol {
        StreamProtocol::new(self.name())
    }

    /// How packets are told apart on it.
    pub fn framing(self) -> Framing {
        match self {
            Self::HyprspaceV0 | Self::HyprspaceV1 => Framing::Hyprspace,
            Self::Ringlane => Framing::Ringlane,
        }
    }
}

/// What is said last on a Ringlane stream whose connection we retire: [`Mark::Retire`].
const FAREWELL: &[u8] = &[5, 0, 0, 0];

/// Both ways of a stream.
pub trait Duplex: AsyncRead + AsyncWrite + Send {}

impl<T: AsyncRead + AsyncWrite + Send> Duplex for T {}

/// What a read came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Read {
    /// Something was read and given to the worker.
    Some,
    /// There is nothing to read.
    Nothing,
    /// The worker takes no more at the moment: nothing is read until it does.
    Blocked,
}

/// What has been read of a stream.
enum Arrived {
    Packets(PacketBatch),
    Mark(Mark),
}

/// What keeps the packets of a peer's streams in the order in which they were sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Order {
    /// The number of the last [`Mark::Leave`] of which everything before it has been given to the worker.
    pub(super) left: Option<u32>,
    /// Whether there is another stream that may bring one.
    pub(super) has_others: bool,
}

/// A mark that is behind the last one by no more comes late, over a stream that was waited for in vain. One that is by more, of
/// a peer that counts from the beginning again.
const MARKS_LATE_MAX: u32 = 64;

impl Order {
    /// Takes in a [`Mark::Leave`].
    fn leave(&mut self, number: u32) {
        if !self.has_left(number) {
            self.left = Some(number);
        }
    }

    /// Whether all that comes before this [`Mark::Join`] has been given to the worker, or is not waited for any more.
    fn has_left(&self, number: u32) -> bool {
        self.left.is_some_and(|left| left.wrapping_sub(number) <= MARKS_LATE_MAX)
    }
}

/// What [`PacketStream::deliver`] came to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Delivery {
    All,
    Blocked,
    /// The next is not its turn yet.
    Held,
}

/// A stream of one peer's.
pub(super) struct PacketStream {
    pub(super) serial: u64,
    pub(super) protocol: PacketProtocol,
    pub(super) direction: Direction,
    pub(super) connection: ConnectionId,
    pub(super) quality: Quality,
    pub(super) last_read: Instant,
    pub(super) last_write: Instant,
    pub(super) bytes_received: u64,
    pub(super) bytes_sent: u64,
    pub(super) unflushed: bool,
    /// Its connection does not answer.
    pub(super) is_suspect: bool,
    /// Since when what was written has no answer of any kind.
    unanswered_since: Option<Instant>,
    io: Pin<Box<dyn Duplex>>,
    reader: FrameReader,
    /// Read, but not yet taken by the worker.
    undelivered: VecDeque<Arrived>,
    /// Since when it waits for what comes before its next packets on another stream.
    held_since: Option<Instant>,
    peer_ended: bool,
    /// Its connection is about to be closed: packets leave by it only until there is another.
    is_retiring: bool,
    /// The peer has said so.
    is_retired_by_peer: bool,
    is_connected: bool,
    /// What is still to be written before our half is closed.
    farewell: &'static [u8],
    /// Since when our half is to be closed.
    closing: Option<Instant>,
    is_closed: bool,
    is_gone: bool,
}

impl PacketStream {
    pub(super) fn new(
        io: Box<dyn Duplex>,
        serial: u64,
        protocol: PacketProtocol,
        direction: Direction,
        (connection, quality): (ConnectionId, Quality),
        now: Instant,
    ) -> Self {
        Self {
            serial,
            protocol,
            direction,
            connection,
            quality,
            last_read: now,
            last_write: now,
            bytes_received: 0,
            bytes_sent: 0,
            unflushed: false,
            is_suspect: false,
            unanswered_since: None,
            io: Box::into_pin(io),
            reader: FrameReader::new(protocol.framing()),
            undelivered: VecDeque::new(),
            held_since: None,
            peer_ended: false,
            is_retiring: false,
            is_retired_by_peer: false,
            is_connected: true,
            farewell: &[],
            closing: None,
            is_closed: false,
            is_gone: false,
        }
    }

    /// Whether packets may be sent on it.
    pub(super) fn takes_packets(&self) -> bool {
        let is_ours = self.direction == Direction::Outbound || self.protocol != PacketProtocol::HyprspaceV0;
        is_ours && (!self.peer_ended || self.may_outlive_peers()) && self.closing.is_none() && !self.is_gone
    }

    /// Whether nothing is left of it.
    pub(super) fn is_over(&self) -> bool {
        self.is_gone && self.undelivered.is_empty()
    }

    /// Whether something may come by it that another stream waits for.
    pub(super) fn may_bring(&self) -> bool {
        let is_read = !self.is_suspect && !self.peer_ended && !self.is_gone;
        is_read && self.protocol.framing() == Framing::Ringlane || !self.undelivered.is_empty()
    }

    /// Until when it waits for what comes before its next packets on another stream.
    pub(super) fn held_until(&self) -> Option<Instant> {
        self.held_since.map(|since| since + JOIN_LIMIT)
    }

    /// Whether it has waited for that long enough.
    pub(super) fn is_released(&self, now: Instant, order: Order) -> bool {
        let Some(Arrived::Mark(Mark::Join(number))) = self.undelivered.front() else { return true };
        order.has_left(*number) || !order.has_others || self.held_until().is_some_and(|until| until <= now)
    }

    /// How long nothing has passed.
    pub(super) fn quiet_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.last_read.max(self.last_write))
    }

    /// When somebody should ask whether its connection is alive, if nothing is heard until then.
    pub(super) fn doubt_at(&self) -> Option<Instant> {
        self.unanswered_since.filter(|_| self.takes_packets()).map(|since| since + UNANSWERED)
    }

    /// Somebody asks now. While there is no answer of the peer's stream it is asked again, but not soon.
    pub(super) fn handle_doubted(&mut self, now: Instant) {
        self.unanswered_since = Some(now + DOUBT_PAUSE);
    }

    /// When its end must have come, if it is being closed.
    pub(super) fn closed_by(&self) -> Option<Instant> {
        self.closing.filter(|_| !self.is_gone).map(|since| since + CLOSE_LIMIT)
    }

    /// Closes our half, and with it the stream unless the peer goes on.
    pub(super) fn close(&mut self, now: Instant) {
        self.closing.get_or_insert(now);
    }

    /// Closes our half in the middle of a frame: nothing may follow that.
    pub(super) fn cut(&mut self, now: Instant) {
        self.farewell = &[];
        self.close(now);
    }

    /// Its connection is about to be closed.
    pub(super) fn retire(&mut self, by: Retirer) {
        let says = by == Retirer::Us && self.protocol == PacketProtocol::Ringlane && self.closing.is_none();
        if says && !self.is_retiring {
            self.farewell = FAREWELL;
        }
        self.is_retiring = true;
    }

    /// Whether our half is used though the peer has ended its own, until there is another stream. A Hyprspace node ends both
    /// at once.
    fn may_outlive_peers(&self) -> bool {
        self.is_retiring && self.protocol == PacketProtocol::Ringlane
    }

    /// Its connection is gone, so nothing of it is to be retired; what has come may still be read.
    pub(super) fn handle_connection_closed(&mut self, now: Instant) {
        (self.is_connected, self.farewell) = (false, &[]);
        self.close(now);
    }

    /// Whether its connection is about to be closed.
    pub(super) fn is_retiring(&self) -> bool {
        self.is_retiring
    }

    /// Whether the peer has said so.
    pub(super) fn is_retired_by_peer(&self) -> bool {
        self.is_retired_by_peer && self.is_connected
    }

    /// Whether its end is ours to begin when its connection is retired. Who loses a stream of Hyprspace's that he opened
    /// opens another, on the same connection if it likes.
    pub(super) fn ends_with_retirement(&self) -> bool {
        self.protocol == PacketProtocol::Ringlane || self.direction == Direction::Outbound
    }

    /// Since when nothing has come on a stream that the other end need not end; `None` while something may come.
    pub(super) fn silent_since(&self) -> Option<Instant> {
        let is_left = self.is_closed || !self.ends_with_retirement();
        let is_read = self.protocol != PacketProtocol::Ringlane && self.undelivered.is_empty();
        (is_left && is_read).then_some(self.last_read)
    }

    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        peer: PeerIndex,
        tools: &mut Tools<'_>,
        order: &mut Order,
        drops: &mut StreamDrops,
    ) -> Read {
        match self.deliver(now, tools.worker, order) {
            Delivery::All => {}
            Delivery::Blocked => return Read::Blocked,
            Delivery::Held => return Read::Nothing,
        }
        if self.peer_ended || self.is_gone {
            return Read::Nothing;
        }
        let bytes = match self.io.as_mut().poll_read(cx, tools.memory) {
            Poll::Pending => return Read::Nothing,
            Poll::Ready(Ok(0)) => {
                tracing::trace!(peer = peer.0, protocol = self.protocol.name(), "the peer has ended a stream");
                self.peer_ended = true;
                if !self.may_outlive_peers() {
                    self.close(now);
                }
                return Read::Nothing;
            }
            Poll::Ready(Ok(bytes)) => bytes,
            Poll::Ready(Err(error)) => {
                self.fail(peer, &error);
                return Read::Nothing;
            }
        };
        self.last_read = now;
        self.unanswered_since = None;
        self.bytes_received += bytes as u64;
        let undelivered = &mut self.undelivered;
        let mut is_retired = false;
        let read = self.reader.read(&tools.memory[..bytes], |frame| match frame {
            Frame::Malformed => drops.count(StreamDrop::Malformed),
            Frame::Mark(Mark::Retire) => is_retired = true,
            Frame::Mark(mark) => undelivered.push_back(Arrived::Mark(mark)),
            Frame::Packet(item) => {
                let fits = match undelivered.back_mut() {
                    Some(Arrived::Packets(batch)) => batch.push(item.form, item.packet),
                    Some(Arrived::Mark(_)) | None => false,
                };
                if !fits {
                    let mut batch = PacketBatch::new(BatchEnd::Peer(peer), tools.spare.pop().unwrap_or_default());
                    batch.push(item.form, item.packet);
                    undelivered.push_back(Arrived::Packets(batch));
                }
            }
        });
        if is_retired {
            self.is_retired_by_peer = true;
            self.retire(Retirer::Peer);
        }
        if let Err(error) = read {
            self.fail(peer, &error);
        }
        match self.deliver(now, tools.worker, order) {
            Delivery::All => Read::Some,
            Delivery::Blocked => Read::Blocked,
            Delivery::Held => Read::Nothing,
        }
    }

    /// Gives the worker what it takes and whose turn it is.
    fn deliver(&mut self, now: Instant, worker: Option<&PlaneSender<PacketBatch>>, order: &mut Order) -> Delivery {
        loop {
            if !self.is_released(now, *order) {
                self.held_since.get_or_insert(now);
                return Delivery::Held;
            }
            self.held_since = None;
            match self.undelivered.pop_front() {
                None => return Delivery::All,
                Some(Arrived::Mark(Mark::Join(_) | Mark::Retire)) => {}
                Some(Arrived::Mark(Mark::Leave(number))) => order.leave(number),
                Some(Arrived::Packets(batch)) => {
                    if let Some(Err(QueueFull(batch))) = worker.map(|worker| worker.try_send(batch)) {
                        self.undelivered.push_front(Arrived::Packets(batch));
                        return Delivery::Blocked;
                    }
                }
            }
        }
    }

    /// Writes a part of `bytes`; whether it was possible, and how many the stream has taken. An error ends the stream.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        peer: PeerIndex,
        bytes: &[u8],
    ) -> Poll<usize> {
        match self.io.as_mut().poll_write(cx, bytes) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(taken)) if taken > 0 => {
                self.last_write = now;
                self.unanswered_since.get_or_insert(now);
                self.bytes_sent += taken as u64;
                self.unflushed = true;
                Poll::Ready(taken)
            }
            Poll::Ready(outcome) => {
                self.fail(peer, &outcome.err().unwrap_or(io::ErrorKind::WriteZero.into()));
                Poll::Ready(0)
            }
        }
    }

    /// Has what was written leave, and if our half is to be closed, closes it.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>, now: Instant, peer: PeerIndex) {
        if self.is_gone {
            return;
        }
        if let Some(since) = self.closing {
            if !self.is_closed && self.poll_farewell(cx) {
                self.is_closed = self.io.as_mut().poll_close(cx).is_ready();
            }
            // What the peer has on its way is still read; it hears of our end and ends too.
            self.is_gone = self.is_closed && self.peer_ended || now >= since + CLOSE_LIMIT;
        } else if self.unflushed {
            match self.io.as_mut().poll_flush(cx) {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(error)) => self.fail(peer, &error),
            }
        }
    }

    /// Whether all of it is written, or cannot be.
    fn poll_farewell(&mut self, cx: &mut Context<'_>) -> bool {
        while !self.farewell.is_empty() {
            match self.io.as_mut().poll_write(cx, self.farewell) {
                Poll::Pending => return false,
                Poll::Ready(Ok(taken)) if taken > 0 => self.farewell = self.farewell.get(taken..).unwrap_or_default(),
                Poll::Ready(_) => self.farewell = &[],
            }
        }
        true
    }

    fn fail(&mut self, peer: PeerIndex, error: &dyn std::fmt::Display) {
        tracing::debug!(peer = peer.0, protocol = self.protocol.name(), %error, "a packet stream has failed");
        self.is_gone = true;
    }
}
