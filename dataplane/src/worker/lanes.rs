//! The worker's lanes: orders from control, and the upkeep of their QUIC connections.

use std::io;
use std::net::UdpSocket;
use std::time::Instant;

use quinn_proto::ConnectionError;
use ringlane_shared::drop_reason::DropReason;
use ringlane_shared::lane::connection::LaneConnectionError;
use ringlane_shared::lane::rekey::Rekey;
use ringlane_shared::lane::seal::{Opened, Sequence};
use ringlane_shared::limits::LANES_PER_WORKER_MAX;
use ringlane_shared::path::mtu::MTU_BASE;
use ringlane_shared::plane::{ForwardEnd, LaneEnd, LaneHandOver, PeerCounters, PeerEntry, PlaneCommand, PlaneEvent};
use ringlane_shared::wire::echo::Echo;
use ringlane_shared::wire::frame::{FrameKind, Frames};

use super::carrier::Carriage;
use super::movement::LaneMovement;
use super::rekey::{CLOSE_REKEY, drive_rekey};
use super::{Worker, peer_counters};
use crate::egress::push_back::PushBack;
use crate::inbound::{Arrival, admit};
use crate::lane::Lane;
use crate::sys::ring::{Engine, PacketRing, SocketSlot};
use crate::sys::vnet_header::VnetHeader;

/// Code and reason of a QUIC close.
pub(super) type Close = (u32, &'static str);
/// The lane is not wanted any more.
const CLOSE_RETIRED: Close = (0, "retired");
/// The lane's key has sealed as many records as it may.
pub(super) const CLOSE_WORN: Close = (2, "worn");
/// The peer does not answer; perhaps it hears us.
pub(super) const CLOSE_SILENT: Close = (3, "silent");

impl<E: Engine> Worker<E> {
    pub(super) fn handle_command(&mut self, command: PlaneCommand, now: Instant) -> io::Result<()> {
        match command {
            PlaneCommand::Publish(snapshot) => {
                let generation = snapshot.generation;
                let retired = std::mem::replace(&mut self.state.snapshot, snapshot);
                self.settle_handed_over(&retired, now);
                self.avoid_lanes(now);
                // If control's queue is full the old tables are freed here: late, but no harm.
                let _ = self.events.try_send(PlaneEvent::Adopted { worker: self.id, generation, retired });
            }
            PlaneCommand::AddLane(lane) => self.add_lane(*lane, now)?,
            PlaneCommand::RetireLane(serial) => {
                if let Some(slot) = self.state.lanes.find(serial) {
                    self.close_lane(slot, CLOSE_RETIRED, LaneEnd::Retired, now)?;
                }
            }
            PlaneCommand::PassOn(passed) => self.take_passed_on(*passed, now),
            PlaneCommand::TryPath(trial) => self.try_path(*trial, now)?,
            PlaneCommand::AskLane { serial, ask } => {
                if let Some(slot) = self.state.lanes.find(serial) {
                    self.ask_for_control(slot, ask, now);
                }
            }
            PlaneCommand::DoubtLane(serial) => {
                if let Some(slot) = self.state.lanes.find(serial) {
                    self.doubt_lane(slot, now);
                }
            }
            PlaneCommand::AddForward(forward) => self.add_forward(*forward, now)?,
            PlaneCommand::RemoveForward(id) => self.remove_forward(id, ForwardEnd::Removed)?,
            PlaneCommand::LimitForwards(rate) => self.limit_forwards(rate, now),
            PlaneCommand::Stop => {
                for slot in self.state.lanes.slots() {
                    self.close_lane(slot, CLOSE_RETIRED, LaneEnd::Retired, now)?;
                }
                self.state.stopping = true;
            }
        }
        Ok(())
    }

    pub(super) fn add_lane(&mut self, lane: LaneHandOver, now: Instant) -> io::Result<()> {
        let LaneHandOver { serial, peer, index, local, remote, early, .. } = lane;
        let refuse =
            |reason: &str| PlaneEvent::LaneEnded { serial, peer, index, end: LaneEnd::Failed(reason.to_owned()) };
        if self.state.lanes.len() >= LANES_PER_WORKER_MAX {
            self.state.untold.push(refuse("the worker owns as many lanes as it can"));
            return Ok(());
        }
        let slot = match self.ring.add_socket(UdpSocket::from(lane.socket)) {
            Ok(slot) => slot,
            Err(error) => {
                self.state.untold.push(refuse(&format!("the lane's socket cannot be used: {error}")));
                return Ok(());
            }
        };
        if self.state.egress.reads_marks() {
            // Without them congestion on the path is told by loss, as ever.
            let _ = self.ring.report_marks(slot);
        }
        lane.gauges.set_suite(lane.secrets.suite());
        let path = self.new_path(slot, remote, now);
        let mut connection = lane.connection;
        let carriage = Carriage::new(lane.carrier, &mut connection, now);
        lane.gauges.set_carrier(carriage.carrier());
        self.settle_own(peer, now);
        self.state.lanes.insert(Lane {
            serial,
            peer,
            index,
            socket: slot,
            local,
            remote,
            movement: LaneMovement::new(connection.role()),
            connection,
            sealer: lane.sealer,
            opener: lane.opener,
            rekey: Rekey::new(lane.secrets, self.rekey, self.hash_seed ^ serial.0, now),
            carriage,
            record_bytes: usize::from(MTU_BASE),
            next_cut: 0,
            gauges: lane.gauges,
            path,
            outgoing: None,
            class: 0,
            push_back: PushBack::default(),
            is_filling: false,
            newest: Sequence::default(),
            deadline: None,
            has_quic_news: true,
            overflow: 0,
        });
        self.state.has_quic_news = true;
        for datagram in early {
            self.handle_loose(slot, datagram, now);
        }
        self.take_early_datagrams(slot);
        self.drive_path(slot, now)
    }

    /// A datagram that control has had first, because it came before the lane did or to the listener: the same as any
    /// other, but not in a buffer of ours, and an answer in it says nothing of any path of the lane. Of an authentic record,
    /// returns whether it is the newest so far or asks something.
    pub(super) fn handle_loose(&mut self, slot: SocketSlot, mut datagram: Vec<u8>, now: Instant) -> Option<bool> {
        let lane = self.state.lanes.get_mut(slot)?;
        let snapshot = &self.state.snapshot;
        let counters = peer_counters(snapshot, lane.peer, self.id)?;
        let peer = snapshot.peer(lane.peer)?;
        match Arrival::of(&datagram) {
            Arrival::Quic => lane.connection.handle_datagram(now, &datagram),
            Arrival::Record => match lane.opener.open(&mut datagram) {
                Ok(Opened { sequence, frames }) => {
                    counters.records_received.add(1);
                    let mut is_worth_asking = lane.movement.note(sequence);
                    let echoes = &mut self.state.rebuilder.echoes;
                    let take_echo = |payload: &[u8]| {
                        match Echo::parse(payload) {
                            // Whatever it answers, it has not come by the path that was asked.
                            Ok(Echo::Reply(_)) => return Ok(()),
                            Ok(Echo::Request(_)) => is_worth_asking = true,
                            Err(_) => {}
                        }
                        echoes.take(slot, slot, false, payload)
                    };
                    write_early(&self.ring, peer, counters, frames, take_echo);
                    return Some(is_worth_asking);
                }
                Err(error) => counters.drops.count(error.into()),
            },
            // Control has seen it already.
            Arrival::Stray | Arrival::Sentinel | Arrival::Garbage => {}
        }
        None
    }

    /// DATAGRAM frames that the lane's connection has received before it was ours.
    fn take_early_datagrams(&mut self, slot: SocketSlot) {
        let Some(lane) = self.state.lanes.get_mut(slot) else { return };
        let snapshot = &self.state.snapshot;
        while let Some(frames) = lane.connection.receive_datagram() {
            if let (Some(counters), Some(peer)) =
                (peer_counters(snapshot, lane.peer, self.id), snapshot.peer(lane.peer))
            {
                counters.quic_datagrams_received.add(1);
                let echoes = &mut self.state.rebuilder.echoes;
                let take_echo = |payload: &[u8]| echoes.take(slot, slot, true, payload);
                write_early(&self.ring, peer, counters, &frames, take_echo);
            }
        }
    }

    /// Ends a lane from our side, telling the peer.
    pub(super) fn close_lane(
        &mut self,
        slot: SocketSlot,
        (code, reason): Close,
        end: LaneEnd,
        now: Instant,
    ) -> io::Result<()> {
        // What it has begun still leaves, and before the close.
        self.finish_lane(slot)?;
        self.ring.enter()?;
        if let Some(lane) = self.state.lanes.get_mut(slot) {
            lane.connection.close(now, code, reason);
            let Worker { ring, .. } = self;
            // If it is lost, the peer finds out by itself: from silence, or from what control says when it is asked.
            lane.connection.drive(now, |datagram| drop(ring.send_now(slot, datagram)));
        }
        self.remove_lane(slot, end)
    }

    pub(super) fn remove_lane(&mut self, slot: SocketSlot, end: LaneEnd) -> io::Result<()> {
        self.finish_lane(slot)?;
        let Some(lane) = self.state.lanes.remove(slot) else { return Ok(()) };
        self.ring.close_socket(slot)?;
        self.state.paths.forget(slot);
        self.close_paths(&lane.movement)?;
        let ended = PlaneEvent::LaneEnded { serial: lane.serial, peer: lane.peer, index: lane.index, end };
        self.state.untold.push(ended);
        Ok(())
    }

    /// Lets every QUIC connection that has news or whose time has come do its part.
    pub(super) fn drive_connections(&mut self, now: Instant) -> io::Result<()> {
        let is_due = self.state.deadline.is_some_and(|deadline| deadline <= now);
        if !is_due && !self.state.has_quic_news {
            return Ok(());
        }
        self.state.has_quic_news = false;
        let mut due = std::mem::take(&mut self.state.due);
        self.state.lanes.due(now, &mut due);
        for slot in due.drain(..) {
            let Some(lane) = self.state.lanes.get_mut(slot) else { continue };
            match drive_rekey(lane, now) {
                Ok(event) => self.state.untold.extend(event),
                Err(failure) => {
                    self.close_lane(slot, CLOSE_REKEY, failure.into(), now)?;
                    continue;
                }
            }
            self.drive_lane(slot)?;
            let Some(lane) = self.state.lanes.get_mut(slot) else { continue };
            lane.has_quic_news = false;
            if let Some(error) = lane.connection.lost() {
                self.remove_lane(slot, lane_end(error))?;
            }
        }
        self.state.due = due;
        self.state.deadline = self.state.lanes.deadline();
        Ok(())
    }
}

/// Writes the packets in frames that are in no buffer of the ring's, one by one.
fn write_early<E: Engine>(
    ring: &PacketRing<E>,
    peer: &PeerEntry,
    counters: &PeerCounters,
    frames: &[u8],
    mut take_echo: impl FnMut(&[u8]) -> Result<(), DropReason>,
) {
    for frame in Frames::new(frames) {
        let Ok(frame) = frame else {
            counters.drops.count(DropReason::FrameMalformed);
            break;
        };
        match frame.kind {
            FrameKind::Packet | FrameKind::Segment => {}
            FrameKind::Pad => continue,
            FrameKind::Echo => {
                if let Err(reason) = take_echo(&frames[frame.payload]) {
                    counters.drops.count(reason);
                }
                continue;
            }
            // There is no buffer of ours to put its packet together from.
            FrameKind::Fragment => {
                counters.drops.count(DropReason::FragmentIncomplete);
                continue;
            }
        }
        let packet = &frames[frame.payload];
        let written =
            admit(|source| peer.admits_source(source), packet, frame.is_partial).and_then(|(header, checksum)| {
                let packet = header.trim(packet);
                let written = ring.tun_write_now(packet, VnetHeader::whole(checksum));
                written.map(|()| packet.len()).map_err(|_| DropReason::TunWriteFailed)
            });
        match written {
            Ok(bytes) => {
                counters.packets_received.add(1);
                counters.bytes_received.add(bytes as u64);
            }
            Err(reason) => counters.drops.count(reason),
        }
    }
}

fn lane_end(error: LaneConnectionError) -> LaneEnd {
    match error {
        LaneConnectionError::Lost(ConnectionError::TimedOut) => LaneEnd::TimedOut,
        LaneConnectionError::Lost(
            ConnectionError::ApplicationClosed(_) | ConnectionError::ConnectionClosed(_) | ConnectionError::Reset,
        ) => LaneEnd::ClosedByPeer,
        other => LaneEnd::Failed(other.to_string()),
    }
}
