//! The packet streams of one peer, and the one ordered writer that uses one of them at a time.

mod retiring;

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use libp2p::swarm::ConnectionId;
use ringlane_shared::bucket::Bucket;
use ringlane_shared::id::PeerIndex;
use ringlane_shared::limits::{QUIET_STREAMS_KEPT, STREAM_BUDGET, STREAM_WRITE_BYTES, STREAM_WRITE_BYTES_RINGLANE};
use ringlane_shared::plane::{PacketBatch, PlaneSender};
use ringlane_shared::wire::packets::{Framing, Mark};
use tokio::time::{Sleep, sleep_until};

use super::drops::{StreamDrop, StreamDrops};
use super::queue::OutQueue;
use super::retire::{Retirer, Retiring};
use super::stream::{Order, PacketProtocol, PacketStream, Read};
use crate::swarm::{Direction, PeerKind, Quality};

/// Frames per second on a QUIC stream to a Hyprspace node: each leaves by itself, for two together can crash it.
const PACED_PER_SECOND: u32 = 2000;
/// Such frames at once.
const PACED_BURST: u32 = 1;
/// Until a worker whose queue was full is tried again.
const DELIVER_AGAIN: Duration = Duration::from_millis(1);
/// First pause after a stream that could not be opened, and between two that could: a peer may end each at once.
pub(super) const OPEN_PAUSE_MIN: Duration = Duration::from_millis(100);
/// Longest such pause.
const OPEN_PAUSE_MAX: Duration = Duration::from_secs(5);
/// A stream that has taken nothing for so long is not waited for when there is another one.
pub(super) const STUCK: Duration = Duration::from_secs(1);
/// A stream that is in use has carried something within this time.
const RECENT: Duration = Duration::from_secs(5);
/// A stream on which nothing has passed for so long is closed if it can be spared. More than the 25 seconds after which a
/// Hyprspace node opens another one anyway.
pub(super) const QUIET: Duration = Duration::from_secs(60);

/// What a peer's turn came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Turn {
    /// There is more to do.
    pub(super) again: bool,
    /// A stream is to be opened, in these protocols.
    pub(super) wants_stream: Option<&'static [PacketProtocol]>,
    /// A connection that may be dead.
    pub(super) doubts: Option<ConnectionId>,
    /// A connection that the peer is about to close.
    pub(super) retired: Option<ConnectionId>,
    /// One that we may close now.
    pub(super) drained: Option<ConnectionId>,
}

/// What a turn is done with.
pub(super) struct Tools<'a> {
    pub(super) memory: &'a mut [u8],
    /// Memory for batches, as far as it goes.
    pub(super) spare: &'a mut Vec<Vec<u8>>,
    /// Who takes what the peer sends.
    pub(super) worker: Option<&'a PlaneSender<PacketBatch>>,
}

/// One peer's part of the subsystem.
pub(super) struct PeerStreams {
    peer: PeerIndex,
    kind: Option<PeerKind>,
    streams: Vec<PacketStream>,
    serials: u64,
    /// The stream that packets leave by; only while it takes them.
    sending: Option<u64>,
    /// The one that takes its place at the end of a batch, or when it is stuck.
    next_sending: Option<u64>,
    /// The last change of streams that was marked, and whether its second mark is still to come.
    marks: u32,
    is_leaving: bool,
    /// The last such change of the peer's of which all that comes before it has been given to the worker.
    left: Option<u32>,
    queue: OutQueue,
    retiring: Retiring,
    /// A stream has been asked for.
    is_opening: bool,
    open_at: Option<Instant>,
    open_pause: Duration,
    /// There may be a better connection than that of the stream that packets leave by.
    seeks_better: bool,
    /// Only QUIC connects us to this Hyprspace node.
    is_paced: bool,
    pace: Option<Bucket>,
    paced_until: Option<Instant>,
    quiet_at: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    pub(super) drops: StreamDrops,
}

impl PeerStreams {
    pub(super) fn new(peer: PeerIndex) -> Self {
        Self {
            peer,
            kind: None,
            streams: Vec::new(),
            serials: 0,
            sending: None,
            next_sending: None,
            marks: 0,
            is_leaving: false,
            left: None,
            queue: OutQueue::new(Framing::Ringlane),
            retiring: Retiring::default(),
            is_opening: false,
            open_at: None,
            open_pause: OPEN_PAUSE_MIN,
            seeks_better: false,
            is_paced: false,
            pace: None,
            paced_until: None,
            quiet_at: None,
            timer: None,
            drops: StreamDrops::default(),
        }
    }

    pub(super) fn kind(&self) -> Option<PeerKind> {
        self.kind
    }

    pub(super) fn streams(&self) -> &[PacketStream] {
        &self.streams
    }

    /// Whether packets are held back because only QUIC leads to a Hyprspace node.
    pub(super) fn is_paced(&self) -> bool {
        self.is_paced
    }

    /// The quality of the way packets take at the moment.
    pub(super) fn quality(&self) -> Option<Quality> {
        self.sending_stream().map(|stream| stream.quality)
    }

    /// The peer has said what it speaks.
    pub(super) fn handle_identified(&mut self, kind: PeerKind, now: Instant) {
        if self.kind == Some(kind) {
            return;
        }
        self.leave_stream(now);
        self.forget_packets();
        self.kind = Some(kind);
        self.queue = OutQueue::new(match kind {
            PeerKind::Ringlane => Framing::Ringlane,
            PeerKind::Hyprspace => Framing::Hyprspace,
        });
    }

    /// There is a connection more: perhaps a better one than that of the stream that packets leave by, and perhaps that
    /// one will be closed for it.
    pub(super) fn handle_connected(&mut self, now: Instant) {
        self.open_at = None;
        self.open_pause = OPEN_PAUSE_MIN;
        // One that lies idle may die with its connection: the next packet opens another.
        let is_used = self.sending_stream().is_some_and(|stream| stream.quiet_for(now) < RECENT);
        self.seeks_better = is_used || self.is_paced || !self.queue.is_empty();
    }

    /// One of several connections is gone. What has arrived on its streams may still be read; packets leave by another, which
    /// a stream that lies idle would else learn with the first of them.
    pub(super) fn handle_connection_closed(&mut self, connection: ConnectionId, now: Instant) {
        if self.sending_connection() == Some(connection) {
            self.leave_stream(now);
        }
        let lost = self.streams.iter_mut().filter(|stream| stream.connection == connection);
        lost.for_each(|stream| stream.handle_connection_closed(now));
        self.retiring.remove(connection);
    }

    /// A connection does not answer. What leads nowhere is not waited for; it may come back to life.
    pub(super) fn handle_connection_suspect(&mut self, connection: ConnectionId, was_opening: bool, now: Instant) {
        let streams = self.streams.iter_mut().filter(|stream| stream.connection == connection);
        streams.for_each(|stream| stream.is_suspect = true);
        if was_opening || self.sending_connection() == Some(connection) {
            self.handle_connected(now);
            self.seeks_better = true;
        }
    }

    /// A connection answers after all: perhaps it is better than that of the stream that packets leave by.
    pub(super) fn handle_connection_heard(&mut self, connection: ConnectionId, now: Instant) {
        let streams = self.streams.iter_mut().filter(|stream| stream.connection == connection);
        streams.for_each(|stream| stream.is_suspect = false);
        if self.sending_connection().is_some_and(|sending| sending != connection) {
            self.handle_connected(now);
        }
    }

    /// The last connection is gone.
    pub(super) fn handle_disconnected(&mut self) {
        self.forget_packets();
        let drops = std::mem::take(&mut self.drops);
        *self = Self { drops, serials: self.serials, marks: self.marks, ..Self::new(self.peer) };
    }

    fn forget_packets(&mut self) {
        let waiting = self.queue.packets();
        self.drops.count_many(StreamDrop::NotConnected, waiting as u64);
        self.queue.clear();
    }

    /// Queues what a worker sends.
    pub(super) fn send(&mut self, batch: &PacketBatch) {
        if self.kind.is_none() {
            self.drops.count_many(StreamDrop::NotConnected, batch.packets().into());
            return;
        }
        batch.items().for_each(|item| self.queue.push(item, &mut self.drops));
    }

    /// Another stream; `make` makes it of its number.
    pub(super) fn add(&mut self, now: Instant, make: impl FnOnce(u64) -> PacketStream) {
        let mut stream = make(self.serials);
        self.serials += 1;
        let retired = self.retiring.by(stream.connection);
        retired.into_iter().for_each(|by| stream.retire(by));
        if stream.direction == Direction::Outbound {
            self.handle_open_ended(true, now);
            // It was asked for because there was none, or none as good. If the peer has opened one meanwhile, that one is
            // kept to: who changes streams may overtake himself.
            if retired.is_some() {
                self.seeks_better |= self.is_sending_retired();
            } else if self.sending_connection() != Some(stream.connection) {
                self.next_sending = Some(stream.serial);
            }
        }
        self.quiet_at.get_or_insert(now + QUIET);
        self.streams.push(stream);
    }

    /// The stream asked for could not be opened, or nothing leads to the peer at the moment.
    pub(super) fn handle_open_failed(&mut self, now: Instant) {
        self.handle_open_ended(false, now);
        self.seeks_better |= self.is_sending_retired();
    }

    /// There is nothing better than the stream that there is.
    pub(super) fn handle_open_unneeded(&mut self) {
        self.is_opening = false;
    }

    /// The connection of the stream that packets leave by.
    pub(super) fn sending_connection(&self) -> Option<ConnectionId> {
        self.sending_stream().map(|stream| stream.connection)
    }

    /// Whether packets leave by this one.
    pub(super) fn is_sending(&self, serial: u64) -> bool {
        self.sending == Some(serial)
    }

    fn sending_stream(&self) -> Option<&PacketStream> {
        let sending = self.sending?;
        self.streams.iter().find(|stream| stream.serial == sending)
    }

    fn handle_open_ended(&mut self, is_open: bool, now: Instant) {
        self.is_opening = false;
        if is_open {
            self.open_at = Some(now + OPEN_PAUSE_MIN);
            self.open_pause = OPEN_PAUSE_MIN;
        } else {
            self.open_at = Some(now + self.open_pause);
            self.open_pause = (self.open_pause * 2).min(OPEN_PAUSE_MAX);
        }
    }

    /// Only QUIC leads to this Hyprspace node, or that is over. Whether a stream is there for that already; else one is to
    /// be opened.
    pub(super) fn set_paced(&mut self, is_paced: bool) -> bool {
        self.is_paced = is_paced;
        let fit = self.streams.iter().find(|stream| is_paced && self.may_take(stream)).map(|stream| stream.serial);
        self.is_opening &= fit.is_none();
        if fit.is_some() && self.is_sending_retired() {
            self.next_sending = fit;
        }
        fit.is_some()
    }

    /// Does what can be done without waiting, within a budget.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, now: Instant, tools: &mut Tools<'_>) -> Turn {
        let (has_more, is_blocked) = self.poll_reads(cx, now, tools);
        let told = self.streams.iter().filter(|stream| stream.is_retired_by_peer()).map(|stream| stream.connection);
        let retired = told.filter(|connection| !self.is_retired(*connection)).min();
        retired.into_iter().for_each(|connection| self.retire(connection, Retirer::Peer, now));
        let (has_more_to_write, mut wants_stream) = self.poll_writes(cx, now);
        if self.seeks_better && !self.is_opening && self.open_at.is_none_or(|at| at <= now) {
            self.seeks_better = false;
            wants_stream = self.ask_for_stream(now);
        }
        self.close_quiet(now);
        self.close_retired(now);
        for stream in &mut self.streams {
            let is_idle = self.queue.is_empty() || self.sending != Some(stream.serial);
            if stream.closed_by().is_some() || is_idle {
                stream.poll_flush(cx, now, self.peer);
            }
        }
        self.remove_ended();
        let doubts = self.doubt(now);
        let drained = self.poll_drained(now);
        let is_over = self.poll_timer(cx, now, is_blocked);
        let again = has_more || has_more_to_write || is_over || retired.is_some() || drained.is_some();
        Turn { again, wants_stream, doubts, retired, drained }
    }

    /// The connection that packets leave by, if nothing has come back by it for too long. A Hyprspace node is not asked, as
    /// there is no other way to go on that would not reset its streams.
    fn doubt(&mut self, now: Instant) -> Option<ConnectionId> {
        let sending = self.sending?;
        let stream = self.streams.iter_mut().find(|stream| stream.serial == sending)?;
        if self.kind != Some(PeerKind::Ringlane) || stream.doubt_at().is_none_or(|at| at > now) {
            return None;
        }
        stream.handle_doubted(now);
        Some(stream.connection)
    }

    /// Whether there is more, and whether the worker is what it waits for.
    fn poll_reads(&mut self, cx: &mut Context<'_>, now: Instant, tools: &mut Tools<'_>) -> (bool, bool) {
        let mut budget = STREAM_BUDGET;
        // The first has its turn first, and goes to the end of the line, however much more it has.
        for _ in 0..self.streams.len() {
            self.streams.rotate_left(1);
            let has_others = self.has_others(self.streams.len() - 1);
            let Some(stream) = self.streams.last_mut() else { break };
            let mut order = Order { left: self.left, has_others };
            loop {
                if budget == 0 {
                    return (true, false);
                }
                let read = stream.poll_read(cx, now, self.peer, tools, &mut order, &mut self.drops);
                self.left = order.left;
                match read {
                    Read::Some => budget -= 1,
                    Read::Nothing => break,
                    Read::Blocked => {
                        // First again, before anything is read from the others: what waits for the worker is one read.
                        self.streams.rotate_right(1);
                        return (false, true);
                    }
                }
            }
        }
        // One may have brought what another waited for, that had its turn before.
        let is_due = |at: usize| {
            let stream = &self.streams[at];
            let order = Order { left: self.left, has_others: self.has_others(at) };
            stream.held_until().is_some() && stream.is_released(now, order)
        };
        ((0..self.streams.len()).any(is_due), false)
    }

    /// Whether another stream than this one may bring what it waits for.
    fn has_others(&self, at: usize) -> bool {
        self.streams.iter().enumerate().any(|(other, stream)| other != at && stream.may_bring())
    }

    /// Whether there is more, and whether a stream is wanted for it.
    fn poll_writes(&mut self, cx: &mut Context<'_>, now: Instant) -> (bool, Option<&'static [PacketProtocol]>) {
        self.paced_until = None;
        for _ in 0..STREAM_BUDGET {
            self.remove_ended();
            // The other end waits for the streams of a connection that is given up to end, whether there are packets or not.
            let is_moving = self.next_sending.is_some() && self.is_sending_retired();
            if self.queue.is_empty() && !is_moving {
                return (false, None);
            }
            let Some(at) = self.choose(now) else { return (false, self.ask_for_stream(now)) };
            if self.queue.is_empty() {
                continue;
            }
            let stream = &mut self.streams[at];
            let bytes_max = match (self.queue.framing(), stream.quality) {
                (Framing::Hyprspace, Quality::Paced) => 1,
                (Framing::Hyprspace, _) => STREAM_WRITE_BYTES,
                (Framing::Ringlane, _) => STREAM_WRITE_BYTES_RINGLANE,
            };
            if bytes_max == 1 && self.queue.is_between_batches() {
                stream.poll_flush(cx, now, self.peer);
                let pace = self.pace.get_or_insert_with(|| Bucket::new(PACED_BURST, PACED_PER_SECOND, now));
                if !pace.take(now) {
                    self.paced_until = pace.ready_at();
                    return (false, None);
                }
            }
            match stream.poll_write(cx, now, self.peer, self.queue.next(bytes_max)) {
                Poll::Pending => return (false, None),
                Poll::Ready(taken) => self.queue.advance(taken),
            }
        }
        self.remove_ended();
        (!self.queue.is_empty(), None)
    }

    /// The position of the stream to send on, if there is one.
    fn choose(&mut self, now: Instant) -> Option<usize> {
        let is_between_batches = self.queue.is_between_batches();
        let is_stuck = self
            .sending_stream()
            .is_none_or(|stream| stream.is_suspect || now.saturating_duration_since(stream.last_write) >= STUCK);
        let mut joins = false;
        if let Some(next) = self.next_sending
            && (is_between_batches || is_stuck)
        {
            let is_orderly = !is_stuck && self.queue.framing() == Framing::Ringlane;
            if is_orderly && !self.is_leaving {
                // What this stream has taken may be under way for longer than what the next one will take.
                self.marks = self.marks.wrapping_add(1);
                self.queue.put_mark(Mark::Leave(self.marks));
                self.is_leaving = true;
            } else {
                joins = std::mem::take(&mut self.is_leaving) && is_orderly;
                self.leave_stream(now);
                self.next_sending = None;
                let next = self.streams.iter().find(|stream| stream.serial == next);
                self.sending = next.filter(|next| self.may_take(next)).map(|next| next.serial);
            }
        }
        if self.sending.is_none() {
            let usable = self.streams.iter().filter(|stream| self.may_take(stream));
            // Of two as good, the one on which the peer was heard last is known to be alive.
            let best =
                usable.max_by_key(|stream| (!stream.is_suspect, stream.quality, stream.protocol, stream.last_read));
            self.sending = best.map(|stream| stream.serial);
        }
        let sending = self.sending?;
        if joins {
            self.queue.put_mark(Mark::Join(self.marks));
        }
        self.streams.iter().position(|stream| stream.serial == sending)
    }

    /// Sends on the stream no more, and if a frame was cut short on it, never again: another one would be read as its rest.
    fn leave_stream(&mut self, now: Instant) {
        let was_cut = self.queue.handle_stream_lost(&mut self.drops);
        let left = self.sending.take();
        if let Some(stream) = self.streams.iter_mut().find(|stream| was_cut && Some(stream.serial) == left) {
            stream.cut(now);
        }
    }

    /// As if so much time had passed since anything was written.
    #[cfg(test)]
    pub(super) fn let_pass(&mut self, time: Duration) {
        self.streams.iter_mut().for_each(|stream| stream.last_write -= time);
    }

    /// As if something had been written just now.
    #[cfg(test)]
    pub(super) fn touch(&mut self, now: Instant) {
        self.streams.iter_mut().for_each(|stream| stream.last_write = now);
    }

    fn may_take(&self, stream: &PacketStream) -> bool {
        let is_fit = stream.quality != Quality::Paced || self.is_paced;
        stream.takes_packets() && !stream.is_retiring() && stream.protocol.framing() == self.queue.framing() && is_fit
    }

    /// The protocols to ask for, if it is time to.
    fn ask_for_stream(&mut self, now: Instant) -> Option<&'static [PacketProtocol]> {
        if self.is_opening || self.open_at.is_some_and(|at| at > now) {
            return None;
        }
        let protocols: &[_] = match self.kind? {
            PeerKind::Ringlane => &[PacketProtocol::Ringlane],
            PeerKind::Hyprspace => &[PacketProtocol::HyprspaceV1, PacketProtocol::HyprspaceV0],
        };
        self.open_at = None;
        self.is_opening = true;
        Some(protocols)
    }

    /// Forgets the streams of which nothing is left, and stops sending on one that takes no more.
    fn remove_ended(&mut self) {
        if self.sending.is_some() && !self.sending_stream().is_some_and(PacketStream::takes_packets) {
            self.queue.handle_stream_lost(&mut self.drops);
            self.sending = None;
        }
        self.streams.retain(|stream| !stream.is_over());
    }

    /// Closes streams that have been quiet: our own to Ringlane nodes, and of others those that are many.
    fn close_quiet(&mut self, now: Instant) {
        if self.quiet_at.is_none_or(|at| at > now) {
            return;
        }
        let mut spare = self.streams.len().saturating_sub(QUIET_STREAMS_KEPT);
        for stream in self.streams.iter_mut().filter(|stream| stream.quiet_for(now) >= QUIET) {
            let is_own = stream.protocol == PacketProtocol::Ringlane && stream.direction == Direction::Outbound;
            if is_own || spare > 0 && self.sending != Some(stream.serial) {
                stream.close(now);
                spare = spare.saturating_sub(1);
            }
        }
        self.quiet_at = (!self.streams.is_empty()).then(|| now + QUIET / 4);
    }

    /// Whether it is time for something now; else the task is woken when it is.
    fn poll_timer(&mut self, cx: &mut Context<'_>, now: Instant, is_blocked: bool) -> bool {
        let open_at = self.open_at.filter(|_| self.seeks_better || !self.queue.is_empty() && self.sending.is_none());
        let closed_by = self.streams.iter().filter_map(PacketStream::closed_by).min();
        let deliver_at = is_blocked.then(|| now + DELIVER_AGAIN);
        let doubt_at = self.sending_stream().filter(|_| self.kind == Some(PeerKind::Ringlane));
        let doubt_at = doubt_at.and_then(PacketStream::doubt_at);
        // Nothing is read from anywhere while the worker is waited for.
        let held_until = self.streams.iter().filter(|_| !is_blocked).filter_map(PacketStream::held_until).min();
        let settled_at = self.retiring.poll_timeout();
        let times = [open_at, closed_by, deliver_at, held_until, doubt_at, settled_at, self.paced_until, self.quiet_at];
        let Some(at) = times.into_iter().flatten().min() else { return false };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(at.into())));
        timer.as_mut().reset(at.into());
        timer.as_mut().poll(cx).is_ready()
    }
}

#[cfg(test)]
mod tests;
