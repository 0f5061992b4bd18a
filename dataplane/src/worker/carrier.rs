//! Packets in DATAGRAM frames (RFC 9221) of a lane's QUIC connection instead of records, and when.
//!
//! A DATAGRAM frame carries what a record seals: frames. So one is filled as a record is, in the same buffer, and goes to
//! the connection where a record would be sealed; one that arrives is handled as a record that was opened. quinn-proto
//! allocates for each of them, both ways: the one exception from what a worker does not do per packet.

use std::io;
use std::ops::Range;
use std::time::Instant;

use ringlane_shared::drop_reason::DropReason;
use ringlane_shared::lane::connection::{LaneConnection, QuicTrain};
use ringlane_shared::limits::{FRAME_HEADER_BYTES_MIN, RECORD_HEADER_BYTES, RECORD_OVERHEAD_BYTES};
use ringlane_shared::path::carrier::{CarrierSelector, CarrierStep};
use ringlane_shared::plane::{CarrierChoice, LaneCarrier, LaneChange, PlaneEvent};
use ringlane_shared::wire::echo::{ECHO_BYTES, Echo};

use super::sending::Egress;
use super::{Worker, peer_counters};
use crate::lane::{Lane, Outgoing};
use crate::sys::ring::{Engine, SendBuffer, SendTag, SocketSlot, Train};

/// How a lane's packets leave.
#[derive(Debug)]
pub(crate) struct Carriage {
    selector: CarrierSelector,
    /// Largest payload of a DATAGRAM frame, when the connection was driven last.
    datagram_bytes: usize,
    /// As many of them as fill a train.
    train_bytes: usize,
    /// What the connection was given since.
    given_bytes: usize,
    /// What the peer repeats if records pass, while that is asked.
    token: Option<u64>,
}

impl Carriage {
    pub(super) fn new(choice: CarrierChoice, connection: &mut LaneConnection, now: Instant) -> Self {
        let takes_datagrams = connection.datagram_bytes_max().is_some();
        let mut carriage = Self {
            selector: CarrierSelector::new(choice, takes_datagrams, now),
            datagram_bytes: 0,
            train_bytes: 0,
            given_bytes: 0,
            token: None,
        };
        carriage.handle_driven(connection);
        carriage
    }

    /// The connection has sent what it could, and may have learnt what the path carries.
    fn handle_driven(&mut self, connection: &mut LaneConnection) {
        self.datagram_bytes = connection.datagram_bytes_max().unwrap_or_default();
        self.train_bytes = self.datagram_bytes * connection.train_datagrams_max();
        self.given_bytes = 0;
    }

    /// The connection was given a DATAGRAM frame of so many bytes. Returns whether a train is full.
    fn handle_given(&mut self, bytes: usize) -> bool {
        // Two that are larger than half a packet do not share one.
        self.given_bytes += if 2 * bytes > self.datagram_bytes { self.datagram_bytes } else { bytes };
        self.given_bytes + self.datagram_bytes > self.train_bytes
    }

    /// How packets leave.
    #[inline]
    pub(super) fn carrier(&self) -> LaneCarrier {
        self.selector.carrier()
    }

    #[inline]
    pub(super) fn is_quic(&self) -> bool {
        self.carrier() == LaneCarrier::Quic
    }

    /// When to look at it again.
    #[inline]
    fn timeout(&self, connection: &LaneConnection) -> Option<Instant> {
        self.selector.timeout(connection.rtt())
    }

    /// An authentic record has come.
    #[inline]
    pub(super) fn handle_record(&mut self) {
        self.selector.handle_record();
    }

    /// The peer does not answer any more.
    pub(super) fn handle_silent(&mut self, now: Instant) {
        self.selector.handle_silent(now);
    }

    /// Whether it is in question that records pass.
    #[cfg(test)]
    pub(super) fn is_asking(&self) -> bool {
        self.token.is_some()
    }

    /// The lane has moved: an answer to what was asked on the path before says nothing of this one.
    pub(super) fn handle_moved(&mut self, now: Instant) {
        self.token = None;
        self.selector.handle_moved(now);
    }

    /// The size of a record that has as much room for frames as the carrier gives, where records may have
    /// `record_bytes`.
    #[inline]
    pub(crate) fn record_bytes(&self, record_bytes: usize) -> usize {
        if self.is_quic() { self.datagram_bytes + RECORD_OVERHEAD_BYTES } else { record_bytes }
    }
}

impl<E: Engine> Worker<E> {
    /// Has a lane's QUIC connection do its part, and looks at how the lane's packets shall leave.
    pub(super) fn drive_lane(&mut self, slot: SocketSlot) -> io::Result<()> {
        self.choose_carrier(slot)?;
        let Some((mut egress, lane)) = self.egress(slot) else { return Ok(()) };
        if lane.carriage.is_quic() {
            return egress.drive_in_trains(lane);
        }
        let Egress { ring, now, queue, .. } = egress;
        let is_ipv6 = lane.remote.is_ipv6();
        let due = lane.connection.drive(now, |datagram| {
            queue.sent(datagram.len(), is_ipv6);
            // A datagram that cannot be sent is a lost one.
            drop(ring.send_now(slot, datagram));
        });
        lane.deadline = deadline(lane, due);
        Ok(())
    }

    /// Finds out what the lane's path lets pass, where that is in question.
    fn choose_carrier(&mut self, slot: SocketSlot) -> io::Result<()> {
        let now = self.state.now;
        loop {
            let Some(lane) = self.state.lanes.get_mut(slot) else { return Ok(()) };
            if lane.carriage.timeout(&lane.connection).is_none_or(|due| due > now) {
                return Ok(());
            }
            // Whatever changes, what was gathered leaves the way it was gathered for, and first.
            self.finish_lane(slot)?;
            let Some(Lane { carriage, connection, .. }) = self.state.lanes.get_mut(slot) else { return Ok(()) };
            match carriage.selector.poll(now, connection.acknowledgements(), connection.rtt()) {
                Some(CarrierStep::Ask { is_first }) => {
                    connection.ping();
                    let asked = carriage.token.filter(|_| !is_first);
                    self.ask_in_record(slot, asked)?;
                }
                Some(CarrierStep::Switched(to)) => self.tell_carrier(slot, to),
                None => {}
            }
        }
    }

    /// Asks whether records pass, in one, with the token asked with before or a new one.
    fn ask_in_record(&mut self, slot: SocketSlot, asked: Option<u64>) -> io::Result<()> {
        let token = asked.map_or_else(|| self.draw_token(), Ok)?;
        let Some(lane) = self.state.lanes.get_mut(slot) else { return Ok(()) };
        lane.carriage.token = Some(token);
        lane.gauges.echoes_sent.add(1);
        // What cannot be sent is lost, and asked again.
        let _ = self.send_echo(slot, slot, Echo::Request(token), None);
        Ok(())
    }

    /// Sends an echo in a DATAGRAM frame, with what else the lane's connection sends in this turn.
    pub(super) fn send_echo_datagram(&mut self, slot: SocketSlot, echo: Echo) {
        let Some(lane) = self.state.lanes.get_mut(slot) else { return };
        let mut frames = [0; FRAME_HEADER_BYTES_MIN + ECHO_BYTES];
        let bytes = echo.write_frames(&mut frames);
        // The peer has asked this way, so it takes them; if not, this is lost as a record could be.
        if lane.connection.send_datagram(&frames[..bytes]).is_ok() {
            lane.has_quic_news = true;
            self.state.has_quic_news = true;
            // It may be asked behind the connections' part of the turn: then they have another before any sleep.
            self.state.deadline = Some(self.state.now);
        }
    }

    /// A record repeats a token: perhaps it is the answer to whether records pass.
    pub(super) fn handle_carrier_answer(&mut self, slot: SocketSlot, token: u64, now: Instant) -> io::Result<()> {
        let Some(lane) = self.state.lanes.get_mut(slot) else { return Ok(()) };
        if lane.carriage.token.take_if(|asked| *asked == token).is_none() {
            return Ok(());
        }
        // As above.
        self.finish_lane(slot)?;
        let Some(lane) = self.state.lanes.get_mut(slot) else { return Ok(()) };
        lane.gauges.echoes_answered.add(1);
        if let Some(to) = lane.carriage.selector.handle_answer(now) {
            self.tell_carrier(slot, to);
        }
        Ok(())
    }

    /// Tells control that packets leave in another way.
    pub(super) fn tell_carrier(&mut self, slot: SocketSlot, to: LaneCarrier) {
        let Some(Lane { serial, peer, index, gauges, .. }) = self.state.lanes.get_mut(slot) else { return };
        gauges.set_carrier(to);
        let (serial, peer, index, change) = (*serial, *peer, *index, LaneChange::Carrier(to));
        // What is asked on the path is asked by the carrier.
        match to {
            // What it carried before the records failed is long ago.
            LaneCarrier::Records => self.restart_search(slot, self.state.now),
            LaneCarrier::Quic => {
                self.forget_loss(slot);
                self.state.paths.wake(slot, self.state.now);
            }
        }
        self.tell_if_room(PlaneEvent::LaneChanged { serial, peer, index, change });
    }

    /// Packets have left by a lane, at the end of a turn.
    pub(super) fn note_carried(&mut self, slot: SocketSlot) {
        let now = self.state.now;
        let Some(lane) = self.state.lanes.get_mut(slot) else { return };
        if lane.carriage.selector.handle_sent(now) {
            lane.deadline = earliest(lane.deadline, lane.carriage.timeout(&lane.connection));
        } else if !lane.carriage.is_quic() {
            return;
        }
        // Driving it has set it a new one, and its end may have become known.
        self.state.deadline = earliest(self.state.deadline, lane.deadline);
        if lane.connection.lost().is_some() {
            lane.has_quic_news = true;
            self.state.has_quic_news = true;
            self.state.deadline = Some(now);
        }
    }
}

/// When to come back to a lane whose connection is due then.
fn deadline(lane: &Lane, due: Option<Instant>) -> Option<Instant> {
    earliest(earliest(due, lane.carriage.timeout(&lane.connection)), lane.rekey.poll_timeout())
}

/// The earlier one of two, if there are any.
fn earliest(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    [one, other].into_iter().flatten().min()
}

impl<E: Engine> Egress<'_, E> {
    /// Gives the connection, as a DATAGRAM frame, what would otherwise be sealed as a record.
    pub(super) fn give_datagram(&mut self, lane: &mut Lane) -> io::Result<()> {
        let Lane { outgoing, connection, peer, carriage, .. } = lane;
        let Some(Outgoing { buffer, fill }) = outgoing.as_mut() else { return Ok(()) };
        let record = fill.record;
        if record.frame_bytes == 0 {
            return Ok(());
        }
        let at = fill.record_at() + RECORD_HEADER_BYTES;
        fill.discard_record();
        let given = connection.send_datagram(&self.ring.send_room(buffer)[at..at + record.frame_bytes]);
        if let Some(counters) = peer_counters(self.snapshot, *peer, self.id) {
            match given {
                Ok(()) => {
                    counters.quic_datagrams_sent.add(1);
                    counters.packets_sent.add(u64::from(record.packets));
                    counters.bytes_sent.add(record.packet_bytes);
                }
                // The path has become narrower since the frames were gathered.
                Err(_) => counters.drops.count_many(DropReason::TooBig, u64::from(record.packets)),
            }
        }
        if carriage.handle_given(record.frame_bytes) {
            self.drive_in_trains(lane)?;
        }
        Ok(())
    }

    /// Has a connection that carries packets send what it has.
    pub(super) fn drive_in_trains(&mut self, lane: &mut Lane) -> io::Result<()> {
        let Lane { connection, peer, socket, remote, push_back, .. } = lane;
        let (now, mut buffer, mut sent) = (self.now, None, Ok(()));
        let due = connection.drive_in_trains(now, |train| {
            if sent.is_ok() {
                for packet in train.bytes.chunks(train.each_bytes.max(1)) {
                    push_back.sent(packet.len());
                    self.queue.sent(packet.len(), remote.is_ipv6());
                }
                sent = self.send_quic(SendTag { peer: *peer, packets: train.frames }, *socket, &mut buffer, train);
            }
        });
        if let Some(buffer) = buffer {
            self.ring.release_send_buffer(buffer);
        }
        lane.carriage.handle_driven(connection);
        lane.gauges.set_mtu(connection.mtu_bytes());
        let dropped = connection.take_dropped_datagrams();
        if dropped > 0
            && let Some(counters) = peer_counters(self.snapshot, *peer, self.id)
        {
            counters.drops.count_many(DropReason::QuicQueueFull, dropped);
        }
        lane.deadline = deadline(lane, due);
        sent
    }

    /// Queues a train of QUIC packets behind what has been queued from `buffer`, or from a new one.
    fn send_quic(
        &mut self,
        tag: SendTag,
        socket: SocketSlot,
        buffer: &mut Option<SendBuffer>,
        QuicTrain { bytes, each_bytes, .. }: QuicTrain<'_>,
    ) -> io::Result<()> {
        // With room for a sentinel.
        if buffer.as_ref().is_none_or(|buffer| self.ring.send_room(buffer).len() <= bytes.len()) {
            if let Some(full) = buffer.take() {
                self.ring.release_send_buffer(full);
            }
            *buffer = self.ring.take_send_buffer()?;
        }
        let Some(buffer) = buffer else {
            if let Some(counters) = peer_counters(self.snapshot, tag.peer, self.id) {
                counters.drops.count_many(DropReason::SendBufferFull, u64::from(tag.packets));
            }
            return Ok(());
        };
        self.ring.send_room(buffer)[..bytes.len()].copy_from_slice(bytes);
        let records = bytes.len().div_ceil(each_bytes.max(1)) as u16;
        let train = Train { bytes: bytes.len(), record_bytes: each_bytes, records, class: 0 };
        self.send(socket, tag.peer, buffer, (train, tag.packets), 0)
    }
}

/// Puts the frames that a QUIC packet has brought in its own place, and says where. They are fewer bytes than it was: the
/// queue was empty before.
pub(super) fn take_datagrams(
    lane: &mut Lane,
    place: &mut [u8],
    now: Instant,
    mut taken: impl FnMut(&mut Lane, &[u8], Range<usize>),
) {
    let mut at = 0;
    while let Some(frames) = lane.connection.receive_datagram() {
        lane.carriage.selector.handle_datagram(now);
        let Some(room) = place.get_mut(at..at + frames.len()) else { continue };
        room.copy_from_slice(&frames);
        taken(lane, &frames, at..at + frames.len());
        at += frames.len();
    }
}
