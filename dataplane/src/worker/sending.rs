//! TUN to network: splits, shares records, seals, and sends trains.

use std::io;
use std::ops::Range;
use std::time::Instant;

use ringlane_shared::drop_reason::DropReason;
use ringlane_shared::id::{PeerIndex, WorkerId};
use ringlane_shared::limits::SEND_BUFFERS;
use ringlane_shared::packet::segment::{Content, Split};
use ringlane_shared::plane::{LaneEnd, Snapshot, WorkerCounters};
use ringlane_shared::wire::frame::FramedPacket;

use super::lanes::CLOSE_WORN;
use super::{Worker, egress, peer_counters};
use crate::egress::fq::Label;
use crate::lane::{Lane, Outgoing};
use crate::outbound::{Joined, LoadedTrain, Routed, TrainFill, has_room, route};
use crate::sys::ring::{Engine, PacketRing, SendBuffer, SendTag, SocketSlot, TunBuffer};
use crate::sys::vnet_header::{VNET_HEADER_BYTES, VnetHeader};

/// Where an outbound packet's bytes are.
#[derive(Clone, Copy)]
pub(super) enum Source<'p> {
    /// In a TUN buffer, behind the header.
    Tun { buffer: &'p TunBuffer, bytes: usize },
    /// A piece of the super-segment in a TUN buffer.
    Piece { buffer: &'p TunBuffer, bytes: usize, split: &'p Split, index: usize },
    /// In another worker's buffer.
    Slice(&'p [u8]),
}

impl Source<'_> {
    /// Copies the packet's bytes from `offset` on to a place in the room of a send buffer, as many as go there. A piece is
    /// always copied whole.
    #[inline]
    pub(super) fn copy<E: Engine>(self, offset: usize, ring: &mut PacketRing<E>, to: &SendBuffer, place: Range<usize>) {
        match self {
            Source::Slice(packet) => {
                let from = &packet[offset..][..place.len()];
                ring.send_room(to)[place].copy_from_slice(from);
            }
            Source::Tun { buffer, .. } => {
                let (read, room) = ring.tun_and_send_room(buffer, to);
                let from = &read[VNET_HEADER_BYTES + offset..][..place.len()];
                room[place].copy_from_slice(from);
            }
            Source::Piece { buffer, bytes, split, index } => {
                let (read, room) = ring.tun_and_send_room(buffer, to);
                split.write_piece(&read[VNET_HEADER_BYTES..][..bytes], index, &mut room[place]);
            }
        }
    }
}

impl<E: Engine> Worker<E> {
    pub(super) fn handle_tun_read(&mut self, buffer: &TunBuffer, bytes: usize) -> io::Result<()> {
        let read = self.ring.tun_bytes(buffer, bytes);
        let Some((header, packet)) = read
            .split_first_chunk_mut::<VNET_HEADER_BYTES>()
            .and_then(|(header, packet)| Some((VnetHeader::parse(header).ok()?, packet)))
        else {
            self.count_drop(None, DropReason::OutboundMalformed, 1);
            return Ok(());
        };
        let Routed { peer, flow_hash, bytes, content } =
            match route(&self.state.snapshot, self.hash_seed, header, packet) {
                Ok(routed) => routed,
                Err(reason) => {
                    self.count_drop(None, reason, 1);
                    return Ok(());
                }
            };
        let Some(slot) = self.state.lanes.for_flow(peer, flow_hash) else {
            self.leave_without_lane(peer, flow_hash, buffer, bytes, &content);
            return Ok(());
        };
        let class = self.state.egress.class(packet);
        if self.must_queue(slot) {
            let content = match content {
                Content::SuperSegment(split) => {
                    let Some(split) = self.fit_split(slot, peer, buffer, bytes, split)? else { return Ok(()) };
                    Content::SuperSegment(split)
                }
                packet => packet,
            };
            self.queue_read(peer, flow_hash, buffer, bytes, &content);
            return Ok(());
        }
        match content {
            Content::Packet { is_partial } => {
                let what = if is_partial { FramedPacket::Partial } else { FramedPacket::Complete };
                self.send_packet(slot, peer, what, bytes, class, Source::Tun { buffer, bytes }).map(drop)
            }
            Content::SuperSegment(split) => {
                self.counters.super_segments_read.add(1);
                let Some(split) = self.fit_split(slot, peer, buffer, bytes, split)? else { return Ok(()) };
                // A piece that was dropped is not there to be continued.
                let mut has_piece_before = false;
                for index in 0..split.pieces() {
                    let what = if has_piece_before { FramedPacket::NextSegment } else { FramedPacket::Segment };
                    let source = Source::Piece { buffer, bytes, split: &split, index };
                    let piece_bytes = split.piece_bytes(index);
                    has_piece_before = self.send_packet(slot, peer, what, piece_bytes, class, source)?;
                }
                Ok(())
            }
        }
    }

    /// Sends a packet that another worker has read. It is not passed on again: this worker's snapshot and the other's
    /// disagree for a moment, and packets do not circle.
    pub(super) fn send_handed_over(
        &mut self,
        peer: PeerIndex,
        flow_hash: u32,
        is_partial: bool,
        packet: &[u8],
    ) -> io::Result<()> {
        let what = if is_partial { FramedPacket::Partial } else { FramedPacket::Complete };
        match self.state.lanes.for_flow(peer, flow_hash) {
            Some(slot) if self.must_queue(slot) => {
                self.queue_handed_over(Label { peer, flow_hash, is_partial }, packet);
                Ok(())
            }
            Some(slot) => {
                let class = self.state.egress.class(packet);
                self.send_packet(slot, peer, what, packet.len(), class, Source::Slice(packet)).map(drop)
            }
            None => {
                self.stream_handed_over(peer, is_partial, packet);
                Ok(())
            }
        }
    }

    /// Puts a packet of `bytes` into the record its lane is filling, whose outer header has `class`. Returns whether it
    /// could.
    pub(super) fn send_packet(
        &mut self,
        slot: SocketSlot,
        peer: PeerIndex,
        what: FramedPacket,
        bytes: usize,
        class: u8,
        source: Source<'_>,
    ) -> io::Result<bool> {
        if self.state.filling.len() >= usize::from(SEND_BUFFERS) {
            // Each of them holds a buffer.
            self.flush(self.state.now)?;
        }
        for _ in 0..3 {
            let Some(lane) = self.state.lanes.get_mut(slot) else {
                self.count_drop(Some(peer), DropReason::NoLane, 1);
                return Ok(false);
            };
            // QUIC's packets have no marks, whatever is in them.
            let class = if lane.carriage.is_quic() { 0 } else { class };
            if lane.class != class {
                self.change_class(slot, class)?;
                continue;
            }
            let record_bytes = lane.record_bytes();
            // No counter tells which datagram came before, so there pieces are ordinary packets.
            let what = if lane.carriage.is_quic() { what.alone() } else { what };
            let Some(Outgoing { buffer, fill }) = outgoing(&mut self.ring, &mut self.state.filling, lane)? else {
                self.count_drop(Some(peer), DropReason::SendBufferFull, 1);
                return Ok(false);
            };
            match fill.join(self.ring.send_room(buffer), record_bytes, what, bytes) {
                Joined::At(place) => {
                    source.copy(0, &mut self.ring, buffer, place);
                    return Ok(true);
                }
                Joined::RecordFull => {
                    if let Some((mut egress, lane)) = self.egress(slot) {
                        egress.finish_record(lane)?;
                    }
                }
                Joined::TooBig => return self.send_oversized(slot, peer, what, bytes, source),
            }
        }
        self.count_drop(Some(peer), DropReason::TooBig, 1);
        Ok(false)
    }

    /// What leaves by a lane from now on has another `class`.
    #[cold]
    fn change_class(&mut self, slot: SocketSlot, class: u8) -> io::Result<()> {
        self.egress(slot).map_or(Ok(()), |(mut egress, lane)| egress.change_class(lane, class))
    }

    /// A lane, and what it takes to seal and send for it.
    pub(super) fn egress(&mut self, slot: SocketSlot) -> Option<(Egress<'_, E>, &mut Lane)> {
        let lane = self.state.lanes.get_mut(slot)?;
        let egress = Egress {
            ring: &mut self.ring,
            snapshot: &self.state.snapshot,
            counters: &self.counters,
            id: self.id,
            now: self.state.now,
            queue: &mut self.state.egress,
        };
        Some((egress, lane))
    }

    /// Seals and sends what a lane has begun in this turn.
    pub(super) fn finish_lane(&mut self, slot: SocketSlot) -> io::Result<()> {
        match self.egress(slot) {
            Some((mut egress, lane)) => egress.finish(lane),
            None => Ok(()),
        }
    }

    /// Seals and queues everything the turn has begun. A lane whose key is used up ends: control makes a new one.
    pub(super) fn flush(&mut self, now: Instant) -> io::Result<()> {
        while let Some(slot) = self.state.filling.pop() {
            let Some(lane) = self.state.lanes.get_mut(slot) else { continue };
            lane.is_filling = false;
            self.finish_lane(slot)?;
            self.watch_socket(slot, now);
            self.state.notice_keys(slot);
            self.note_sent(slot, now);
            self.note_carried(slot);
            if self.state.lanes.get_mut(slot).is_some_and(|lane| lane.sealer.is_exhausted()) {
                self.close_lane(slot, CLOSE_WORN, LaneEnd::Worn, now)?;
            }
        }
        Ok(())
    }
}

/// The records that a lane is filling; begun if there are none. `None` without a buffer for them.
#[inline]
pub(super) fn outgoing<'l, E: Engine>(
    ring: &mut PacketRing<E>,
    filling: &mut Vec<SocketSlot>,
    lane: &'l mut Lane,
) -> io::Result<Option<&'l mut Outgoing>> {
    if lane.outgoing.is_none() {
        let Some(buffer) = ring.take_send_buffer()? else { return Ok(None) };
        lane.outgoing = Some(Outgoing { buffer, fill: TrainFill::of_class(lane.class) });
        if !std::mem::replace(&mut lane.is_filling, true) {
            filling.push(lane.socket);
        }
    }
    Ok(lane.outgoing.as_mut())
}

/// What it takes to seal and send, apart from the lane.
pub(super) struct Egress<'w, E: Engine> {
    pub(super) ring: &'w mut PacketRing<E>,
    pub(super) snapshot: &'w Snapshot,
    counters: &'w WorkerCounters,
    pub(super) id: WorkerId,
    /// When the turn began.
    pub(super) now: Instant,
    pub(super) queue: &'w mut egress::EgressQueue,
}

impl<E: Engine> Egress<'_, E> {
    /// Seals the record a lane is filling, and sends the train it belongs to as soon as no other record can follow.
    pub(super) fn finish_record(&mut self, lane: &mut Lane) -> io::Result<()> {
        if lane.carriage.is_quic() {
            return self.give_datagram(lane);
        }
        let record_bytes = lane.record_bytes();
        let Lane { outgoing, sealer, peer, socket, remote, path, push_back, .. } = lane;
        let Some(Outgoing { buffer, fill }) = outgoing.as_mut() else { return Ok(()) };
        let record = fill.record;
        if record.frame_bytes > 0 {
            let counters = peer_counters(self.snapshot, *peer, self.id);
            let room = &mut self.ring.send_room(buffer)[fill.record_at()..];
            match sealer.seal(room, record.frame_bytes) {
                Ok(bytes) => {
                    path.note_record(bytes);
                    if let Some(counters) = counters {
                        counters.records_sent.add(1);
                        counters.packets_sent.add(u64::from(record.packets));
                        counters.bytes_sent.add(record.packet_bytes);
                    }
                    push_back.sent(bytes);
                    self.queue.sent(bytes, remote.is_ipv6());
                    if let Some(before) = fill.sealed(bytes) {
                        self.send(*socket, *peer, buffer, before, bytes)?;
                    }
                }
                Err(error) => {
                    fill.discard_record();
                    if let Some(counters) = counters {
                        counters.drops.count_many(error.into(), u64::from(record.packets));
                    }
                }
            }
        }
        let room_bytes = self.ring.send_room(buffer).len();
        if fill.is_complete(room_bytes, record_bytes) {
            if let Some(train) = fill.take() {
                self.send(*socket, *peer, buffer, train, 0)?;
            }
            if !has_room(self.ring.send_room(buffer).len(), record_bytes)
                && let Some(Outgoing { buffer, .. }) = outgoing.take()
            {
                self.ring.release_send_buffer(buffer);
            }
        }
        Ok(())
    }

    /// Seals and sends whatever a lane has begun. What comes then has `class` in its outer headers.
    fn change_class(&mut self, lane: &mut Lane, class: u8) -> io::Result<()> {
        self.finish_record(lane)?;
        lane.class = class;
        let Some(Outgoing { buffer, fill }) = lane.outgoing.as_mut() else { return Ok(()) };
        let begun = std::mem::replace(fill, TrainFill::of_class(class)).take();
        begun.map_or(Ok(()), |train| self.send(lane.socket, lane.peer, buffer, train, 0))
    }

    /// Seals and sends whatever a lane has.
    fn finish(&mut self, lane: &mut Lane) -> io::Result<()> {
        self.finish_record(lane)?;
        let Some(Outgoing { buffer, mut fill }) = lane.outgoing.take() else { return Ok(()) };
        let sent = match fill.take() {
            Some(train) => self.send(lane.socket, lane.peer, &buffer, train, 0),
            None => Ok(()),
        };
        self.ring.release_send_buffer(buffer);
        if lane.carriage.is_quic() {
            sent?;
            return self.drive_in_trains(lane);
        }
        sent
    }

    pub(super) fn send(
        &mut self,
        socket: SocketSlot,
        peer: PeerIndex,
        buffer: &SendBuffer,
        (train, packets): LoadedTrain,
        behind: usize,
    ) -> io::Result<()> {
        let sends = if self.ring.sends_trains(socket) { 1 } else { train.records };
        self.counters.trains_sent.add(u64::from(sends));
        self.ring.send(socket, buffer, train, behind, SendTag { peer, packets })
    }
}
