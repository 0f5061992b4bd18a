//! When packets leave: at once, or by way of the worker's own queue while a rate is configured or a socket pushes back.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringlane_shared::drop_reason::DropReason;
use ringlane_shared::id::{PeerIndex, WorkerId};
use ringlane_shared::limits::{
    EGRESS_BYTES_MIN, EGRESS_MS_MAX, EGRESS_POOL_BYTES, OUTER_HEADER_BYTES_MAX, RECORD_OVERHEAD_BYTES, TURN_BYTES,
    record_bytes_max,
};
use ringlane_shared::packet::marks::{class_mask, class_of};
use ringlane_shared::packet::segment::Content;
use ringlane_shared::plane::{EgressState, OuterMarks, Snapshot, WorkerCounters};
use ringlane_shared::wire::frame::FramedPacket;
use tracing::info;

use super::sending::Source;
use super::{State, Worker, count_drop};
use crate::egress::codel::{CodelConfig, Nanos};
use crate::egress::fq::{Fate, Fq, FqConfig, Label};
use crate::egress::pace::{LinkClock, Pacer};
use crate::egress::push_back::{LOOK_PAUSE, RELIEF};
use crate::lane::{Lane, Lanes};
use crate::sys::ring::{Engine, SocketSlot, TunBuffer};
use crate::sys::vnet_header::VNET_HEADER_BYTES;

/// What a packet is taken to cost beside its own bytes before it is known which record it shares.
const PACKET_OVERHEAD_BYTES: usize = OUTER_HEADER_BYTES_MAX + RECORD_OVERHEAD_BYTES + 1;

/// A worker's own queue, and all that decides whether packets take it.
pub(crate) struct EgressQueue {
    epoch: Instant,
    fq_config: FqConfig,
    /// Made when first needed.
    fq: Option<Box<Fq>>,
    /// If a rate is configured.
    pacer: Option<Pacer>,
    /// Lanes whose sockets push back.
    pushing_back: Vec<SocketSlot>,
    /// Peers whose packets wait for what is still in their streams, and until when.
    settling: Vec<(PeerIndex, Instant)>,
    /// Whether any packet may have to queue: the only thing that is asked while nothing is slower than the worker.
    is_engaged: bool,
    /// When to look again although nothing happens.
    wake_at: Option<Instant>,
    class_mask: u8,
}

impl EgressQueue {
    /// For packets of up to `mtu` bytes; with the `clock` of the configured rate, if there is one.
    pub(crate) fn new(mtu: u16, marks: OuterMarks, clock: Option<Arc<LinkClock>>) -> Self {
        let packet_bytes = usize::from(mtu);
        let (packet_time, quantum, pool_bytes) = match &clock {
            Some(clock) => (
                clock.time_of(u64::from(mtu)),
                clock.quantum_bytes().max(packet_bytes),
                clock.bytes_in(EGRESS_MS_MAX * 1_000_000).clamp(EGRESS_BYTES_MIN, EGRESS_POOL_BYTES),
            ),
            None => (0, packet_bytes, EGRESS_POOL_BYTES),
        };
        let codel = CodelConfig::new(u32::from(mtu), packet_time);
        let is_engaged = clock.is_some();
        Self {
            epoch: clock.as_ref().map_or_else(Instant::now, |clock| clock.epoch()),
            fq_config: FqConfig { packet_bytes, pool_bytes, quantum_bytes: quantum as u32, codel },
            fq: None,
            pacer: clock.map(|clock| Pacer::new(clock, record_bytes_max(mtu) + OUTER_HEADER_BYTES_MAX)),
            pushing_back: Vec::new(),
            settling: Vec::new(),
            is_engaged,
            wake_at: None,
            class_mask: class_mask(marks),
        }
    }

    /// Whether the kernel is to tell what outer headers say of congestion.
    pub(super) fn reads_marks(&self) -> bool {
        class_mask(OuterMarks { copies_dscp: false, copies_ecn: true }) & self.class_mask != 0
    }

    /// The byte of DSCP and ECN for the outer header of the record that `packet` goes into.
    pub(super) fn class(&self, packet: &[u8]) -> u8 {
        if self.class_mask == 0 { 0 } else { class_of(packet) & self.class_mask }
    }

    /// A datagram of so many bytes has been given to the kernel on a lane.
    pub(super) fn sent(&mut self, datagram_bytes: usize, is_ipv6: bool) {
        if let Some(pacer) = &mut self.pacer {
            pacer.sent((datagram_bytes + if is_ipv6 { 40 + 8 } else { 20 + 8 }) as u64);
        }
    }

    /// When to look again although nothing happens.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.wake_at
    }

    /// Whether it never had anything to do.
    #[cfg(test)]
    pub(super) fn is_untouched(&self) -> bool {
        self.fq.is_none() && !self.is_engaged
    }

    fn nanos(&self, now: Instant) -> Nanos {
        now.saturating_duration_since(self.epoch).as_nanos() as u64
    }

    /// Has packets to a peer wait for a moment before they leave by its lanes.
    pub(super) fn settle(&mut self, peer: PeerIndex, until: Instant) {
        match self.settling.iter_mut().find(|(settling, _)| *settling == peer) {
            Some((_, at)) => *at = until,
            None => self.settling.push((peer, until)),
        }
        self.is_engaged = true;
        self.wake_at = Some(until);
    }

    fn is_settling(&self, peer: PeerIndex) -> bool {
        self.settling.iter().any(|(settling, _)| *settling == peer)
    }

    fn has_queue(&self) -> bool {
        self.fq.as_ref().is_some_and(|fq| fq.queued_packets() > 0)
    }
}

impl<E: Engine> Worker<E> {
    /// Whether a packet that would leave by this lane has to queue. Once there is a queue everything does, so that no
    /// flow overtakes itself when its lane changes.
    pub(super) fn must_queue(&mut self, slot: SocketSlot) -> bool {
        let egress = &self.state.egress;
        egress.is_engaged
            && (egress.pacer.is_some()
                || egress.has_queue()
                || self
                    .state
                    .lanes
                    .get(slot)
                    .is_some_and(|lane| lane.push_back.is_queueing() || egress.is_settling(lane.peer)))
    }

    /// Queues what was read from the TUN: a packet, or a super-segment as the packets it stands for.
    pub(super) fn queue_read(
        &mut self,
        peer: PeerIndex,
        flow_hash: u32,
        buffer: &TunBuffer,
        bytes: usize,
        content: &Content,
    ) {
        let Self { ring, state, counters, id, .. } = self;
        let State { egress, snapshot, now, .. } = state;
        let read = ring.tun_bytes(buffer, VNET_HEADER_BYTES + bytes);
        let packet = read.get(VNET_HEADER_BYTES..).unwrap_or_default();
        let fate = |fate| count(snapshot, counters, *id, fate);
        let now = egress.nanos(*now);
        let fq = egress.fq.get_or_insert_with(|| Box::new(Fq::new(egress.fq_config)));
        match content {
            Content::Packet { is_partial } => {
                let label = Label { peer, flow_hash, is_partial: *is_partial };
                fq.queue(now, label, packet.len(), |room| room.copy_from_slice(packet), fate);
            }
            Content::SuperSegment(split) => {
                counters.super_segments_read.add(1);
                let label = Label { peer, flow_hash, is_partial: true };
                for index in 0..split.pieces() {
                    fq.queue(now, label, split.piece_bytes(index), |room| split.write_piece(packet, index, room), fate);
                }
            }
        }
    }

    /// Queues a packet that another worker has passed on.
    pub(super) fn queue_handed_over(&mut self, label: Label, packet: &[u8]) {
        let Self { state, counters, id, .. } = self;
        let State { egress, snapshot, now, .. } = state;
        let now = egress.nanos(*now);
        let fq = egress.fq.get_or_insert_with(|| Box::new(Fq::new(egress.fq_config)));
        fq.queue(
            now,
            label,
            packet.len(),
            |room| room.copy_from_slice(packet),
            |fate| count(snapshot, counters, *id, fate),
        );
    }

    /// Lets those packets go whose time has come. Returns whether more could go at once.
    pub(super) fn depart(&mut self, now: Instant) -> io::Result<bool> {
        if !self.state.egress.is_engaged {
            return Ok(false);
        }
        self.look_at_sockets(now);
        self.state.egress.settling.retain(|(_, until)| *until > now);
        let departed = match self.state.egress.fq.take() {
            Some(mut fq) => {
                let departed = self.depart_from(&mut fq, now);
                self.state.egress.fq = Some(fq);
                departed?
            }
            None => Departed::All,
        };
        let egress = &mut self.state.egress;
        if departed == Departed::All
            && let Some(pacer) = &mut egress.pacer
        {
            // What was reserved for packets that are gone is given back, and what went without asking is paid for.
            pacer.depart(false);
        }
        if departed != Departed::All {
            for slot in &egress.pushing_back {
                if let Some(lane) = self.state.lanes.get_mut(*slot) {
                    lane.push_back.left_queued();
                }
            }
        }
        let relief = (!egress.pushing_back.is_empty()).then(|| now + Duration::from_nanos(RELIEF));
        let settled = egress.settling.iter().map(|(_, until)| *until).min();
        egress.wake_at = match departed {
            Departed::All => relief.into_iter().chain(settled).min(),
            Departed::Some => None,
            Departed::UntilTime => egress.pacer.as_ref().and_then(Pacer::departs_at),
            Departed::UntilRoom => Some(now + Duration::from_nanos(LOOK_PAUSE)),
        };
        let is_queueing = egress.pacer.is_some()
            || egress.has_queue()
            || !egress.pushing_back.is_empty()
            || !egress.settling.is_empty();
        egress.is_engaged = is_queueing;
        let state = if is_queueing { EgressState::Queueing } else { EgressState::Direct };
        let (packets, bytes) = egress.fq.as_ref().map_or((0, 0), |fq| (fq.queued_packets(), fq.queued_bytes()));
        self.counters.egress.set(state, packets, bytes);
        Ok(departed == Departed::Some)
    }

    fn depart_from(&mut self, fq: &mut Fq, now: Instant) -> io::Result<Departed> {
        let nanos = self.state.egress.nanos(now);
        let mut taken_bytes = 0;
        fq.reconsider();
        while fq.queued_packets() > 0 {
            if taken_bytes >= TURN_BYTES {
                return Ok(Departed::Some);
            }
            let mut room = TURN_BYTES;
            if let Some(pacer) = &mut self.state.egress.pacer {
                let overhead = u64::from(fq.queued_packets()) * PACKET_OVERHEAD_BYTES as u64;
                let departure = pacer.next(nanos, u64::from(fq.queued_bytes()) + overhead);
                if departure.at > nanos {
                    return Ok(Departed::UntilTime);
                }
                room = departure.bytes as usize;
            }
            let mut is_held_up = false;
            let (mut left_bytes, mut last_bytes) = (0, 0);
            // The next one is likely to be as long as the last one. At least one goes.
            while left_bytes + last_bytes <= room {
                let State { lanes, snapshot, egress, .. } = &self.state;
                let fate = |fate| count(snapshot, &self.counters, self.id, fate);
                let leaving = fq.next(nanos, |label| may_leave(lanes, egress, label), fate);
                let Some(leaving) = leaving else {
                    is_held_up = fq.queued_packets() > 0;
                    break;
                };
                let packet = fq.packet(&leaving);
                last_bytes = packet.len() + PACKET_OVERHEAD_BYTES;
                left_bytes += last_bytes;
                self.send_queued(leaving.label, packet)?;
                fq.release(leaving);
            }
            taken_bytes += left_bytes;
            self.flush(now)?;
            if let Some(pacer) = &mut self.state.egress.pacer {
                pacer.depart(fq.queued_packets() > 0 && !is_held_up);
            }
            if is_held_up {
                return Ok(Departed::UntilRoom);
            }
        }
        Ok(Departed::All)
    }

    fn send_queued(&mut self, label: Label, packet: &[u8]) -> io::Result<()> {
        let Label { peer, flow_hash, is_partial } = label;
        let what = if is_partial { FramedPacket::Partial } else { FramedPacket::Complete };
        let Some(slot) = self.state.lanes.for_flow(peer, flow_hash) else {
            self.count_drop(Some(peer), DropReason::NoLane, 1);
            return Ok(());
        };
        if let Some(lane) = self.state.lanes.get_mut(slot) {
            lane.push_back.queued_for(packet.len() + PACKET_OVERHEAD_BYTES);
        }
        let class = self.state.egress.class(packet);
        self.send_packet(slot, peer, what, packet.len(), class, Source::Slice(packet)).map(drop)
    }

    /// Asks the kernel how much it holds of a lane that has sent a lot, to find out whether its device is the bottleneck.
    pub(super) fn watch_socket(&mut self, slot: SocketSlot, now: Instant) {
        let Some(lane) = self.state.lanes.get_mut(slot).filter(|lane| lane.push_back.has_sent_much()) else { return };
        let nanos = self.state.egress.nanos(now);
        if lane.push_back.is_queueing() || !lane.push_back.wants_look(nanos) {
            return;
        }
        lane.push_back.looked(nanos, self.ring.unsent_bytes(slot));
        if lane.push_back.is_queueing() {
            self.begin_queueing(slot);
        }
    }

    /// The kernel has refused datagrams to this peer: the buffer of one of its lanes' sockets may be full.
    pub(super) fn note_refusal(&mut self, peer: PeerIndex, error: &io::Error, now: Instant) {
        if !matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS)) {
            return;
        }
        let nanos = self.state.egress.nanos(now);
        let fullest = (0..self.state.lanes.of_peer(peer).len()).filter_map(|position| {
            let slot = *self.state.lanes.of_peer(peer).get(position)?;
            Some((self.ring.unsent_bytes(slot), slot))
        });
        let Some((_, slot)) = fullest.max() else { return };
        let Some(lane) = self.state.lanes.get_mut(slot) else { return };
        let was_queueing = lane.push_back.is_queueing();
        lane.push_back.refused(nanos);
        if !was_queueing {
            self.begin_queueing(slot);
        }
    }

    fn begin_queueing(&mut self, slot: SocketSlot) {
        let egress = &mut self.state.egress;
        egress.pushing_back.push(slot);
        egress.is_engaged = true;
        egress.wake_at = Some(self.state.now);
        if let Some(lane) = self.state.lanes.get(slot) {
            tell(self.id.0, lane, "a lane's device is slower than the worker: packets queue, and flows take turns");
        }
    }

    fn look_at_sockets(&mut self, now: Instant) {
        let Self { ring, state, id, .. } = self;
        let State { egress, lanes, .. } = state;
        let nanos = egress.nanos(now);
        egress.pushing_back.retain(|&slot| {
            let Some(lane) = lanes.get_mut(slot) else { return false };
            if lane.push_back.wants_look(nanos) {
                lane.push_back.looked(nanos, ring.unsent_bytes(slot));
                if !lane.push_back.is_queueing() {
                    tell(id.0, lane, "a lane's device keeps up again: packets leave at once");
                }
            }
            lane.push_back.is_queueing()
        });
    }
}

/// How far the queue could be emptied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Departed {
    /// Nothing is left.
    All,
    /// As much as one turn may send.
    Some,
    /// The rate lets no more go before the next departure.
    UntilTime,
    /// The kernel takes no more for now.
    UntilRoom,
}

fn may_leave(lanes: &Lanes, egress: &EgressQueue, label: &Label) -> bool {
    let slot = lanes.for_flow(label.peer, label.flow_hash);
    // One without a lane is dropped, and counted, where it would leave.
    slot.and_then(|slot| lanes.get(slot))
        .is_none_or(|lane| lane.push_back.may_take() && !egress.is_settling(label.peer))
}

fn count(snapshot: &Snapshot, counters: &WorkerCounters, worker: WorkerId, fate: Fate) {
    match fate {
        Fate::Dropped(peer, reason) => count_drop(snapshot, counters, worker, Some(peer), reason, 1),
        Fate::Marked => counters.egress.marked.add(1),
    }
}

fn tell(worker: u8, lane: &Lane, what: &'static str) {
    info!(worker, peer = lane.peer.0, lane = lane.index.get(), remote = %lane.remote, "{what}");
}
