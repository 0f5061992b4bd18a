//! Network to TUN: opens what the turn's receives brought, and writes it once all of it is there.

use std::time::Instant;

use ringlane_shared::drop_reason::DropReason;
use ringlane_shared::lane::seal::Opened;
use ringlane_shared::limits::{RECORD_HEADER_BYTES, RECORD_OVERHEAD_BYTES};
use ringlane_shared::packet::coalesce::Span;
use ringlane_shared::packet::marks::Ecn;
use ringlane_shared::plane::{PlaneEvent, PlaneSender, Stray};
use ringlane_shared::wire::echo::{ECHO_RECORD_BYTES, Echo};

use super::movement::Ends;
use super::{State, Worker, carrier, count_drop, peer_counters};
use crate::fragments::Assembler;
use crate::inbound::{Arrival, OpenedRecord};
use crate::marks::carry_inward;
use crate::sys::datagram::Datagram;
use crate::sys::ring::{Engine, ReceiveBuffer, SocketSlot};

impl<E: Engine> Worker<E> {
    /// Looks at one receive: a datagram, or a train of them. Its buffer is held until the turn's packets are written.
    pub(super) fn handle_received(
        &mut self,
        slot: SocketSlot,
        mut buffer: ReceiveBuffer,
        datagram: &Datagram,
        now: Instant,
    ) {
        self.counters.trains_received.add(1);
        self.open_train(slot, &mut buffer, datagram, now);
        self.state.notice_keys(self.state.movement.lane_of(slot));
        let buffer = self.ring.freeze(buffer);
        if self.state.opened.last().is_some_and(|record| record.frames.buffer == buffer.id()) {
            self.state.held.push(buffer);
        } else {
            // Nothing in it goes to the TUN.
            self.ring.release(buffer);
        }
    }

    fn open_train(&mut self, slot: SocketSlot, buffer: &mut ReceiveBuffer, datagram: &Datagram, now: Instant) {
        let State { lanes, movement, snapshot, opened, held, is_out_of_order, has_quic_news, paths, strays, .. } =
            &mut self.state;
        let (socket, slot) = (slot, movement.lane_of(slot));
        let Some(lane) = lanes.get_mut(slot) else { return };
        let own = Ends { local: lane.local, remote: lane.remote };
        let Some(ends) = (if socket == slot { Some(own) } else { lane.movement.ends(socket) }) else { return };
        let Some(counters) = peer_counters(snapshot, lane.peer, self.id) else { return };
        if let Some(total) = datagram.control.overflow.filter(|_| socket == slot) {
            counters.drops.count_many(DropReason::ReceiveOverflow, u64::from(total.wrapping_sub(lane.overflow)));
            lane.overflow = total;
        }
        if datagram.is_truncated {
            counters.drops.count(DropReason::InboundMalformed);
        }
        // What a stranger sent between the socket's bind and its connect is still in its queue.
        let is_strangers = datagram.from.is_some_and(|from| !is_same_address(from, ends.remote));
        let id = buffer.id();
        let Some(bytes) = self.ring.receive_bytes(buffer).get_mut(datagram.range.clone()) else { return };
        let each = datagram.control.segment_bytes.map_or(bytes.len(), usize::from).max(1);
        let ecn = datagram.control.ecn;
        let (mut records, mut datagrams, mut requests, mut has_packets) = (0, 0, 0, false);
        let mut offset = datagram.range.start;
        for bytes in bytes.chunks_mut(each) {
            let at = offset;
            offset += bytes.len();
            match Arrival::of(bytes) {
                arrival if is_strangers || arrival == Arrival::Stray => {
                    // Who is not in a hurry will try again; everybody's events share the queue.
                    match strays.take(now) {
                        true => hand_back(&self.events, ends, datagram.from, bytes),
                        false => counters.drops.count(DropReason::InboundMalformed),
                    }
                }
                Arrival::Record => match lane.opener.open(bytes) {
                    Ok(Opened { sequence, frames }) => {
                        records += 1;
                        if ecn.concerns_inner() {
                            counters.drops.count_many(DropReason::CeNotEct, carry_inward(frames, ecn));
                        }
                        requests += u64::from(Echo::is_request(frames));
                        has_packets |= is_more_than_an_echo(frames);
                        let is_next = opened.last().is_none_or(|last: &OpenedRecord| last.slot == slot);
                        *is_out_of_order |= !is_next || sequence < lane.newest;
                        lane.newest = lane.newest.max(sequence);
                        lane.carriage.handle_record();
                        if lane.movement.note(sequence) && socket != slot {
                            lane.movement.note_path(socket);
                            movement.has_news = true;
                        }
                        let offset = (at + RECORD_HEADER_BYTES) as u32;
                        let frames = Span { buffer: id, offset, bytes: frames.len() as u32 };
                        let (held, peer) = (held.len() as u16, lane.peer);
                        let is_datagram = false;
                        opened.push(OpenedRecord { slot, socket, sequence, peer, ecn, held, frames, is_datagram });
                    }
                    Err(error) => counters.drops.count(error.into()),
                },
                Arrival::Quic => {
                    lane.connection.handle_datagram(now, bytes);
                    lane.has_quic_news = true;
                    *has_quic_news = true;
                    carrier::take_datagrams(lane, bytes, now, |lane, frames, place| {
                        datagrams += 1;
                        requests += u64::from(Echo::is_request(frames));
                        has_packets |= is_more_than_an_echo(frames);
                        *is_out_of_order |= opened.last().is_some_and(|last: &OpenedRecord| last.slot != slot);
                        let offset = (at + place.start) as u32;
                        let frames = Span { buffer: id, offset, bytes: place.len() as u32 };
                        let (sequence, peer, held) = (lane.newest, lane.peer, held.len() as u16);
                        opened.push(OpenedRecord {
                            slot,
                            socket: slot,
                            sequence,
                            peer,
                            // QUIC packets are not ECN-capable.
                            ecn: Ecn::NotEct,
                            held,
                            frames,
                            is_datagram: true,
                        });
                    });
                }
                Arrival::Sentinel | Arrival::Stray => {}
                Arrival::Garbage => counters.drops.count(DropReason::InboundMalformed),
            }
        }
        counters.records_received.add(records);
        counters.quic_datagrams_received.add(datagrams);
        if records + datagrams > 0 {
            paths.note_arrivals(lane, socket == slot && records + datagrams > requests, now);
            let has_packets = requests == 0 && has_packets;
            movement.note_arrivals(lane, has_packets, now);
            if has_packets {
                paths.note_packets(lane, now);
            }
        }
    }

    /// Writes the packets of all records that the turn has opened, each lane's in the order they were sealed in.
    pub(super) fn deliver(&mut self) {
        let State { opened, held, rebuilder, fragments, snapshot, is_out_of_order, now, .. } = &mut self.state;
        let (counters, id) = (&self.counters, self.id);
        let drop_of = |peer, reason, packets| count_drop(snapshot, counters, id, Some(peer), reason, packets);
        fragments.reclaim(&mut self.ring);
        if std::mem::take(is_out_of_order) {
            // Within a turn the network's disorder can be mended for nothing, and each lane's records stand together.
            // What came in DATAGRAM frames keeps its place behind the record before it.
            opened.sort_unstable_by_key(|record| (record.slot, record.sequence, record.held, record.frames.offset));
        }
        let mut position = 0;
        loop {
            let record = opened.get(position).copied();
            match record {
                Some(record) => {
                    let peer = snapshot.peer(record.peer);
                    let counters = peer_counters(snapshot, record.peer, self.id);
                    if let (Some(peer), Some(counters), Some(buffer)) =
                        (peer, counters, held.get(usize::from(record.held)))
                    {
                        let start = record.frames.offset as usize;
                        let (bytes, memory) = self.ring.frozen_and_assemblies(buffer);
                        let lost = |peer, reason| drop_of(peer, reason, 1);
                        let mut assembler = Assembler { fragments: &mut *fragments, memory, now: *now, lost };
                        let frames = &bytes[start..start + record.frames.bytes as usize];
                        rebuilder.record(peer, counters, &record, frames, &mut assembler);
                    }
                }
                None => rebuilder.flush(),
            }
            let is_short = fragments.is_short();
            if is_short {
                rebuilder.flush();
            }
            let ring = &mut self.ring;
            let (mut writes, mut super_segments) = (0, 0);
            rebuilder.writes.drain(|write| {
                writes += 1;
                super_segments += u64::from(write.header.segmentation.is_some());
                if ring.tun_write(write).is_err() {
                    drop_of(write.tag.peer, DropReason::TunWriteFailed, u64::from(write.tag.packets));
                }
            });
            if is_short || record.is_none() {
                fragments.release(ring);
            }
            if is_short {
                // A failure here is that of the turn's own enter as well, which reports it.
                let _ = ring.enter();
                fragments.reclaim(ring);
            }
            self.counters.tun_writes.add(writes);
            self.counters.super_segments_written.add(super_segments);
            if record.is_none() {
                break;
            }
            position += 1;
        }
        opened.clear();
        for buffer in held.drain(..) {
            self.ring.release(buffer);
        }
    }
}

/// Gives a datagram that is not a lane's back to control; when control is that busy, the sender will try again.
pub(super) fn hand_back(
    events: &PlaneSender<PlaneEvent>,
    ends: Ends,
    from: Option<std::net::SocketAddr>,
    datagram: &[u8],
) {
    let from = from.unwrap_or(ends.remote);
    let _ = events.try_send(PlaneEvent::Stray(Stray { local: ends.local, from, datagram: datagram.into() }));
}

/// Whether frames are longer than an echo alone.
fn is_more_than_an_echo(frames: &[u8]) -> bool {
    frames.len() + RECORD_OVERHEAD_BYTES > ECHO_RECORD_BYTES
}

/// Compares what identifies a sender; flow label and scope do not.
pub(super) fn is_same_address(a: std::net::SocketAddr, b: std::net::SocketAddr) -> bool {
    a.ip() == b.ip() && a.port() == b.port()
}
