//! Packets that go by way of control: to and from peers by the carrier `stream`, and to and from services.
//!
//! **Order.** Each way is in order by itself: packets for a stream queue behind each other in batches, and control writes
//! them in that order. Where a flow changes ways, this is what holds:
//!
//! - From stream to lane: packets wait in the worker's own queue for [`STREAM_SETTLE_MS`] from the moment they could leave
//!   by a lane, if any has left by the stream as recently. A stream that delivers what it holds within that time has been
//!   overtaken by nothing; of one that takes longer, what it still holds may be, once.
//! - From lane to stream: what the kernel has of a lane that ends is on its way, faster than any stream, or lost; what
//!   waited for the lane is dropped with it. Nothing is overtaken but what another worker has passed on in the same moment.

use std::time::{Duration, Instant};

use ringlane_shared::drop_reason::DropReason;
use ringlane_shared::id::{PeerIndex, WorkerId};
use ringlane_shared::limits::{BATCH_QUEUE_MESSAGES, STREAM_PACKET_BYTES_MAX, STREAM_SETTLE_MS, TURN_BYTES};
use ringlane_shared::packet::segment::{Content, Split};
use ringlane_shared::plane::stream::{Tally, give};
use ringlane_shared::plane::{BatchEnd, PacketBatch, PlaneSender, QueueFull, Snapshot, StreamForm, WorkerCounters};

use super::sending::Source;
use super::{State, Worker, count_drop, peer_counters};
use crate::batches::{Batches, Filled};
use crate::delivered::Origin;
use crate::sys::ring::{Engine, TunBuffer};
use crate::sys::vnet_header::{VNET_HEADER_BYTES, VnetHeader};

const SETTLE: Duration = Duration::from_millis(STREAM_SETTLE_MS);

/// A worker's batches for control, and where they have gone lately.
#[derive(Debug, Default)]
pub(super) struct Streams {
    batches: Batches,
    /// Peers to whose streams packets have left a moment ago, and when the last ones have.
    recent: Vec<(PeerIndex, Instant)>,
}

impl Streams {
    fn note(&mut self, peer: PeerIndex, now: Instant) {
        match self.recent.iter_mut().find(|(known, _)| *known == peer) {
            Some((_, at)) => *at = now,
            None => {
                self.recent.retain(|(_, at)| now.saturating_duration_since(*at) < SETTLE);
                self.recent.push((peer, now));
            }
        }
    }

    /// Until when what has left by a peer's stream may be in it.
    fn settled_at(&self, peer: PeerIndex) -> Option<Instant> {
        self.recent.iter().find(|(known, _)| *known == peer).map(|(_, at)| *at + SETTLE)
    }
}

/// How a packet leaves for which this worker has no lane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Detour {
    /// By a worker that has one.
    Worker(WorkerId),
    /// By control.
    Control(BatchEnd, StreamForm),
}

impl Detour {
    fn find(snapshot: &Snapshot, id: WorkerId, peer: PeerIndex, flow_hash: u32) -> Option<Self> {
        if peer == PeerIndex::SERVICES {
            return Some(Self::Control(BatchEnd::Services, StreamForm::Whole));
        }
        let entry = snapshot.peer(peer)?;
        // Where it is this worker that should have a lane, the lane has just ended, and control will soon say so.
        match entry.stand_in(flow_hash).filter(|to| *to != id) {
            Some(to) => Some(Self::Worker(to)),
            None => entry.stream.map(|form| Self::Control(BatchEnd::Peer(peer), form)),
        }
    }
}

impl<E: Engine> Worker<E> {
    /// Sends what was read from the TUN where this worker has no lane for it.
    pub(super) fn leave_without_lane(
        &mut self,
        peer: PeerIndex,
        flow_hash: u32,
        buffer: &TunBuffer,
        bytes: usize,
        content: &Content,
    ) {
        if let Content::SuperSegment(_) = content {
            self.counters.super_segments_read.add(1);
        }
        match Detour::find(&self.state.snapshot, self.id, peer, flow_hash) {
            Some(Detour::Worker(to)) => self.pass_on(to, peer, flow_hash, buffer, bytes, content),
            Some(Detour::Control(end, form)) => self.stream_read(end, form, peer, buffer, bytes, content),
            None => {
                let packets = match content {
                    Content::Packet { .. } => 1,
                    Content::SuperSegment(split) => split.pieces() as u64,
                };
                self.count_drop(Some(peer), DropReason::NoLane, packets);
            }
        }
    }

    /// Passes a packet, or a super-segment as the packets it stands for, to a worker that has a lane.
    fn pass_on(
        &mut self,
        to: WorkerId,
        peer: PeerIndex,
        flow_hash: u32,
        buffer: &TunBuffer,
        bytes: usize,
        content: &Content,
    ) {
        let Self { ring, state, hand_over, counters, id, .. } = self;
        let read = ring.tun_bytes(buffer, VNET_HEADER_BYTES + bytes);
        let packet = read.get(VNET_HEADER_BYTES..).unwrap_or_default();
        let mut pass = |packet: Option<&[u8]>, is_partial| {
            let lost = match packet {
                Some(packet) if hand_over.pass(to, packet, peer, flow_hash, is_partial) => {
                    return counters.handed_over.add(1);
                }
                Some(_) => DropReason::HandOverFull,
                None => DropReason::TooBig,
            };
            count_drop(&state.snapshot, counters, *id, Some(peer), lost, 1);
        };
        match content {
            Content::Packet { is_partial } => pass(Some(packet), *is_partial),
            Content::SuperSegment(split) => {
                for index in 0..split.pieces() {
                    let piece = state.piece.get_mut(..split.piece_bytes(index));
                    let piece = piece.map(|piece| {
                        split.write_piece(packet, index, piece);
                        &*piece
                    });
                    pass(piece, true);
                }
            }
        }
    }

    /// Adds what was read from the TUN to the batch for `end`, as a stream of this `form` takes it.
    fn stream_read(
        &mut self,
        end: BatchEnd,
        form: StreamForm,
        peer: PeerIndex,
        buffer: &TunBuffer,
        bytes: usize,
        content: &Content,
    ) {
        let Self { ring, state, counters, batches: control, id, .. } = self;
        let State { snapshot, streams, piece, now, .. } = state;
        let mut sender = Sender { control, snapshot, counters, id: *id, now: *now };
        let read = ring.tun_bytes(buffer, VNET_HEADER_BYTES + bytes);
        let packet = read.get_mut(VNET_HEADER_BYTES..).unwrap_or_default();
        let given = give(form, packet, content, piece, |form, packet, tally| {
            if let Some(full) = streams.batches.add(end, form, packet, tally) {
                sender.send(streams, full);
            }
        });
        if let Err(too_long) = given {
            let source = match content {
                Content::Packet { .. } => Source::Tun { buffer, bytes },
                Content::SuperSegment(split) => Source::Piece { buffer, bytes, split, index: 0 },
            };
            // Who is not to be told learns from the loss: nobody else cuts what a stream does not take.
            let _ = self.tell_too_big(peer, STREAM_PACKET_BYTES_MAX, source);
            self.count_drop(Some(peer), DropReason::TooBig, too_long.packets);
        }
    }

    /// Adds a packet that another worker has passed on, and for which there is no lane any more, to the batch for the peer's
    /// stream.
    pub(super) fn stream_handed_over(&mut self, peer: PeerIndex, is_partial: bool, packet: &[u8]) {
        let Some(form) = self.state.snapshot.peer(peer).and_then(|entry| entry.stream) else {
            return self.count_drop(Some(peer), DropReason::NoLane, 1);
        };
        let Self { state, counters, batches: control, id, .. } = self;
        let State { snapshot, streams, piece, now, .. } = state;
        let mut sender = Sender { control, snapshot, counters, id: *id, now: *now };
        let Some(copy) = piece.get_mut(..packet.len()) else {
            return count_drop(snapshot, counters, *id, Some(peer), DropReason::TooBig, 1);
        };
        copy.copy_from_slice(packet);
        // One packet takes no room for pieces.
        let given = give(form, copy, &Content::Packet { is_partial }, &mut [], |form, packet, tally| {
            if let Some(full) = streams.batches.add(BatchEnd::Peer(peer), form, packet, tally) {
                sender.send(streams, full);
            }
        });
        if given.is_err() {
            let _ = self.tell_too_big(peer, STREAM_PACKET_BYTES_MAX, Source::Slice(packet));
            self.count_drop(Some(peer), DropReason::TooBig, 1);
        }
    }

    /// Gives control what the turn has gathered for it.
    pub(super) fn send_batches(&mut self, now: Instant) {
        let Self { state, counters, batches: control, id, .. } = self;
        let State { snapshot, streams, .. } = state;
        let mut sender = Sender { control, snapshot, counters, id: *id, now };
        while let Some(filled) = streams.batches.next() {
            sender.send(streams, filled);
        }
    }

    /// A lane to `peer` has come up here: what this worker has just given to the stream goes first.
    pub(super) fn settle_own(&mut self, peer: PeerIndex, now: Instant) {
        if let Some(until) = self.state.streams.settled_at(peer).filter(|until| *until > now) {
            self.state.egress.settle(peer, until);
        }
    }

    /// Which lanes packets take depends on whether they have answers, as control has just told.
    pub(super) fn avoid_lanes(&mut self, now: Instant) {
        for peer in 0..self.state.snapshot.peers.len() {
            let is_avoided = self.state.snapshot.peers[peer].avoided & 1 << self.id.0 != 0;
            let peer = PeerIndex(peer as u16);
            if self.state.lanes.set_avoided(peer, is_avoided) && !is_avoided {
                self.settle_own(peer, now);
            }
        }
    }

    /// Other workers pass packets on from now on that they have given to the streams of peers so far, as `before` had them
    /// do: what they have given there goes first.
    pub(super) fn settle_handed_over(&mut self, before: &Snapshot, now: Instant) {
        let State { snapshot, lanes, egress, .. } = &mut self.state;
        for (peer, (entry, was)) in snapshot.peers.iter().zip(&before.peers).enumerate() {
            let peer = PeerIndex(peer as u16);
            let begins = was.workers_with_lane == 0 && entry.workers_with_lane != 0 && !lanes.of_peer(peer).is_empty();
            let mut others = entry.counters.iter().enumerate().filter(|(worker, _)| *worker != self.id.position());
            if begins && others.any(|(_, counters)| counters.stream_packets_sent.get() > 0) {
                egress.settle(peer, now + SETTLE);
            }
        }
    }

    /// Writes packets that control has received to the TUN. Returns whether there were any.
    pub(super) fn deliver_batches(&mut self) -> bool {
        let mut taken_bytes = 0;
        for taken in 0..BATCH_QUEUE_MESSAGES {
            let batch = if taken_bytes < TURN_BYTES { self.delivered.try_recv() } else { None };
            let Some(batch) = batch else { return taken > 0 };
            taken_bytes += batch.bytes();
            self.deliver_batch(&batch);
            self.state.streams.batches.give_back(batch.into_memory());
        }
        true
    }

    fn deliver_batch(&mut self, batch: &PacketBatch) {
        let Self { ring, state, counters, id, .. } = self;
        let State { snapshot, rebuilder, piece, .. } = state;
        let (origin, of_peer) = match batch.end() {
            BatchEnd::Services => (Origin::Services, None),
            BatchEnd::Peer(peer) => match snapshot.peer(peer) {
                Some(entry) => (Origin::Peer(peer, entry), peer_counters(snapshot, peer, *id)),
                None => return,
            },
        };
        let mut tally = Tally::default();
        let (mut writes, mut super_segments) = (0, 0);
        for (at, item) in batch.items_at() {
            let taken = match rebuilder.item(&origin, at, &item) {
                Ok(taken) => taken,
                Err(reason) => {
                    count_drop(snapshot, counters, *id, Some(origin.owner()), reason, 1);
                    continue;
                }
            };
            tally += taken.tally;
            rebuilder.writes.drain(|write| {
                writes += 1;
                super_segments += u64::from(write.header.segmentation.is_some());
                ring.tun_write_from(write, batch.memory());
            });
            if let Some(split) = taken.apart {
                writes += split.pieces() as u64;
                write_pieces(&split, item.packet, piece, |piece, header| {
                    if ring.tun_write_now(piece, header).is_err() {
                        count_drop(snapshot, counters, *id, Some(origin.owner()), DropReason::TunWriteFailed, 1);
                    }
                });
            }
        }
        rebuilder.flush();
        rebuilder.writes.drain(|write| {
            writes += 1;
            super_segments += u64::from(write.header.segmentation.is_some());
            ring.tun_write_from(write, batch.memory());
        });
        counters.tun_writes.add(writes);
        counters.super_segments_written.add(super_segments);
        if let Some(of_peer) = of_peer {
            of_peer.packets_received.add(tally.packets);
            of_peer.bytes_received.add(tally.bytes);
            of_peer.stream_packets_received.add(tally.packets);
        }
    }
}

/// Writes the pieces of a super-segment one by one.
fn write_pieces(split: &Split, packet: &[u8], room: &mut [u8], mut write: impl FnMut(&[u8], VnetHeader)) {
    for index in 0..split.pieces() {
        // None is larger than the largest packet that is taken from a peer, for which there is room.
        if let Some(piece) = room.get_mut(..split.piece_bytes(index)) {
            split.write_piece(packet, index, piece);
            write(piece, VnetHeader::whole(Some(split.checksum())));
        }
    }
}

/// What it takes to give control a batch.
struct Sender<'w> {
    control: &'w PlaneSender<PacketBatch>,
    snapshot: &'w Snapshot,
    counters: &'w WorkerCounters,
    id: WorkerId,
    now: Instant,
}

impl Sender<'_> {
    fn send(&mut self, streams: &mut Streams, Filled { batch, tally }: Filled) {
        let peer = match batch.end() {
            BatchEnd::Peer(peer) => Some(peer),
            BatchEnd::Services => None,
        };
        match self.control.try_send(batch) {
            Ok(()) => {
                let Some(peer) = peer else { return };
                streams.note(peer, self.now);
                if let Some(counters) = peer_counters(self.snapshot, peer, self.id) {
                    counters.packets_sent.add(tally.packets);
                    counters.bytes_sent.add(tally.bytes);
                    counters.stream_packets_sent.add(tally.packets);
                }
            }
            Err(QueueFull(batch)) => {
                count_drop(self.snapshot, self.counters, self.id, peer, DropReason::StreamFull, tally.packets);
                streams.batches.give_back(batch.into_memory());
            }
        }
    }
}
