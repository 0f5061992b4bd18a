//! A worker: one thread on one core that does all of a packet's work, and the order in which it does it.
//!
//! ```text
//! turn:   completions of the last enter -> commands -> packets of other workers -> QUIC timers
//!         -> seal what the turn has gathered -> one enter (submits all of it, takes in what is new)
//! ```
//! While anything happens the worker stays here and visits the monoio runtime once a turn; when nothing does, it
//! sleeps in monoio until its eventfd (packet ring, control or another worker) or the next QUIC deadline wakes it.

use std::io;
use std::net::UdpSocket;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn_proto::ConnectionError;
use ringlane_shared::drop_reason::DropReason;
use ringlane_shared::id::{PeerIndex, WorkerId};
use ringlane_shared::lane::connection::LaneConnectionError;
use ringlane_shared::limits::{COMMAND_BUDGET, HAND_OVER_BUDGET, LANES_PER_WORKER_MAX, TUN_READS_IN_FLIGHT};
use ringlane_shared::packet::checksum::PartialChecksum;
use ringlane_shared::plane::{
    LaneEnd, LaneHandOver, PlaneCommand, PlaneEvent, PlaneReceiver, PlaneSender, Snapshot, Stray, WorkerCounters,
};

use crate::hand_over::HandOver;
use crate::inbound::{Admitted, Arrival, admit};
use crate::lane::{Lane, Lanes};
use crate::outbound::{Joined, RecordFill, route};
use crate::sleep::Sleeper;
use crate::sys::datagram::Datagram;
use crate::sys::ring::{Completion, PacketRing, ReceiveBuffer, SendTag, SocketSlot, TunBuffer};
use crate::sys::vnet_header::{VNET_HEADER_BYTES, VnetHeader};
use crate::wake::Wake;

/// Code and reason of a QUIC close.
type Close = (u32, &'static str);
/// The lane is not wanted any more.
const CLOSE_RETIRED: Close = (0, "retired");
/// The lane's key has sealed as many records as it may.
const CLOSE_WORN: Close = (2, "worn");

/// When a worker with nothing else to do tries again to tell control of ended lanes.
const UNTOLD_PAUSE: Duration = Duration::from_millis(20);

/// Everything a worker is made of.
pub(crate) struct Worker {
    pub(crate) id: WorkerId,
    pub(crate) mtu: u16,
    pub(crate) hash_seed: u64,
    pub(crate) ring: PacketRing,
    pub(crate) wake: Arc<Wake>,
    pub(crate) commands: PlaneReceiver<PlaneCommand>,
    pub(crate) events: PlaneSender<PlaneEvent>,
    pub(crate) hand_over: HandOver,
    pub(crate) counters: Arc<WorkerCounters>,
    pub(crate) state: State,
}

/// What a worker learns while it runs.
pub(crate) struct State {
    snapshot: Arc<Snapshot>,
    lanes: Lanes,
    /// Lanes whose record of this turn is not sealed yet.
    filling: Vec<SocketSlot>,
    /// Packets of one record on their way to the TUN; kept to keep its memory.
    admitted: Vec<Admitted>,
    /// Lanes to be driven now; kept to keep its memory.
    due: Vec<SocketSlot>,
    /// The earliest QUIC deadline of all lanes.
    deadline: Option<Instant>,
    has_quic_news: bool,
    /// Ends of lanes that control's queue had no room for yet: at most as many as there were lanes.
    untold: Vec<PlaneEvent>,
    stopping: bool,
}

impl Default for State {
    fn default() -> Self {
        Self {
            snapshot: Arc::new(Snapshot::empty()),
            lanes: Lanes::default(),
            filling: Vec::with_capacity(usize::from(TUN_READS_IN_FLIGHT)),
            admitted: Vec::with_capacity(512),
            due: Vec::new(),
            deadline: None,
            has_quic_news: false,
            untold: Vec::new(),
            stopping: false,
        }
    }
}

impl Worker {
    /// Runs until control says stop, or the kernel says something no worker can go on with.
    pub(crate) async fn run(mut self) -> io::Result<()> {
        let mut sleeper = Sleeper::start(self.wake.eventfd())?;
        self.ring.arm_tun_read()?;
        loop {
            self.turn(Instant::now())?;
            if self.state.stopping {
                return Ok(());
            }
            if self.may_sleep()? {
                self.counters.sleeps.add(1);
                sleeper.sleep_until(self.wake_at()).await;
            } else {
                sleeper.visit().await;
            }
            self.wake.end_sleep();
            self.ring.set_wakeful(false);
        }
    }

    /// One pass over everything that may have happened.
    fn turn(&mut self, now: Instant) -> io::Result<()> {
        // What handling them brings in waits for the next turn: under load there would be no end, and nothing else.
        for _ in 0..self.ring.completion_count() {
            let Some(completion) = self.ring.next_completion() else { break };
            self.handle_completion(completion, now)?;
        }
        for _ in 0..COMMAND_BUDGET {
            let Some(command) = self.commands.try_recv() else { break };
            self.handle_command(command, now)?;
        }
        for _ in 0..HAND_OVER_BUDGET {
            let Some((from, packet)) = self.hand_over.take() else { break };
            self.send_packet(packet.peer, packet.flow_hash, packet.checksum, Source::Slice(packet.packet()))?;
            self.hand_over.empty(from, packet);
        }
        self.drive_connections(now)?;
        self.flush(now)?;
        self.state.untold.retain_mut(|event| {
            let told = std::mem::replace(event, PlaneEvent::Stopped { worker: self.id });
            match self.events.try_send(told) {
                Ok(()) => false,
                Err(full) => {
                    *event = full.0;
                    true
                }
            }
        });
        self.ring.enter()?;
        self.counters.turns.add(1);
        self.count_enters();
        Ok(())
    }

    /// Announces sleep and looks once more at everything that could have been missed.
    fn may_sleep(&mut self) -> io::Result<bool> {
        if !self.is_idle() {
            return Ok(false);
        }
        self.ring.set_wakeful(true);
        self.wake.prepare_sleep();
        self.ring.enter()?;
        self.count_enters();
        Ok(self.is_idle())
    }

    fn is_idle(&mut self) -> bool {
        self.ring.is_idle() && self.commands.is_empty() && self.hand_over.is_empty()
    }

    /// When there is something to do though nothing happens.
    fn wake_at(&self) -> Option<Instant> {
        let retry = (!self.state.untold.is_empty()).then(|| Instant::now() + UNTOLD_PAUSE);
        [self.state.deadline, retry].into_iter().flatten().min()
    }

    fn count_enters(&self) {
        let enters = self.ring.enters();
        self.counters.enters.add(enters - self.counters.enters.get());
    }

    fn handle_completion(&mut self, completion: Completion, now: Instant) -> io::Result<()> {
        match completion {
            Completion::TunRead { buffer, bytes } => {
                self.handle_tun_read(&buffer, bytes)?;
                self.ring.recycle_tun(buffer);
            }
            Completion::TunReadEnded { error } => {
                match error.as_ref().and_then(io::Error::raw_os_error) {
                    None | Some(libc::EINTR | libc::EAGAIN) => {}
                    Some(libc::ENOBUFS) => self.counters.tun_buffer_shortages.add(1),
                    // The interface is gone or broken: nothing a worker could do about it.
                    Some(_) => {
                        let error = error.map(|error| error.to_string()).unwrap_or_default();
                        let message = format!("the TUN interface cannot be read any more, was it deleted? {error}");
                        return Err(io::Error::other(message));
                    }
                }
                self.ring.arm_tun_read()?;
            }
            Completion::Received { socket, buffer, datagram } => {
                let writes = self.handle_datagram(socket, &buffer, datagram, now);
                let buffer = self.ring.freeze(buffer);
                if let Some(peer) = writes {
                    for Admitted { range, header } in self.state.admitted.drain(..) {
                        if self.ring.tun_write(&buffer, range, header, peer).is_err() {
                            count_drop(
                                &self.state.snapshot,
                                &self.counters,
                                self.id,
                                Some(peer),
                                DropReason::TunWriteFailed,
                            );
                        }
                    }
                }
                self.ring.release(buffer);
            }
            Completion::ReceiveEnded { socket, error } => {
                match error.as_ref().and_then(io::Error::raw_os_error) {
                    None => {}
                    Some(libc::ENOBUFS) => self.counters.udp_buffer_shortages.add(1),
                    // A mistake of ours; trying again would turn in circles.
                    Some(libc::EBADF | libc::EFAULT | libc::EINVAL | libc::ENOTSOCK | libc::EOPNOTSUPP) => {
                        let end = LaneEnd::Failed(error.map(|error| error.to_string()).unwrap_or_default());
                        return self.remove_lane(socket, end);
                    }
                    // A past ICMP error, told by the next receive: none of them ends a lane, silence does.
                    Some(_) => {}
                }
                self.ring.arm_receive(socket)?;
            }
            Completion::SendFailed { tag, error } => {
                let reason = match error.raw_os_error() {
                    Some(libc::EMSGSIZE) => DropReason::TooBig,
                    _ => DropReason::SendFailed,
                };
                if let Some(counters) = peer_counters(&self.state.snapshot, tag.peer, self.id) {
                    counters.drops.count_many(reason, u64::from(tag.packets));
                }
            }
            Completion::TunWriteFailed { peer } => self.count_drop(Some(peer), DropReason::TunWriteFailed),
        }
        Ok(())
    }

    // Outbound

    fn handle_tun_read(&mut self, buffer: &TunBuffer, bytes: usize) -> io::Result<()> {
        let read = self.ring.tun_bytes(buffer, bytes);
        let Some((header, packet)) = read
            .split_at_mut_checked(VNET_HEADER_BYTES)
            .and_then(|(header, packet)| Some((VnetHeader::parse(header)?, packet)))
        else {
            self.count_drop(None, DropReason::OutboundMalformed);
            return Ok(());
        };
        match route(&self.state.snapshot, self.hash_seed, header, packet) {
            Ok(routed) => {
                let source = Source::Tun { buffer, bytes: routed.bytes };
                self.send_packet(routed.peer, routed.flow_hash, routed.checksum, source)
            }
            Err(reason) => {
                self.count_drop(None, reason);
                Ok(())
            }
        }
    }

    /// Puts a packet into the record its lane is filling, or passes it to a worker that has a lane to the peer.
    fn send_packet(
        &mut self,
        peer: PeerIndex,
        flow_hash: u32,
        checksum: Option<PartialChecksum>,
        source: Source<'_>,
    ) -> io::Result<()> {
        let Some(slot) = self.state.lanes.for_flow(peer, flow_hash) else {
            self.pass_on(peer, flow_hash, checksum, source);
            return Ok(());
        };
        for _ in 0..2 {
            let Some(lane) = self.state.lanes.get_mut(slot) else { break };
            if lane.record.is_none() {
                let Some(buffer) = self.ring.take_send_buffer() else {
                    self.count_drop(Some(peer), DropReason::SendBufferFull);
                    return Ok(());
                };
                lane.record = Some((buffer, RecordFill::default()));
                self.state.filling.push(slot);
            }
            let Some((buffer, fill)) = lane.record.as_mut() else { break };
            let joined = match source {
                Source::Tun { buffer: from, bytes } => {
                    let (read, record) = self.ring.tun_and_send_bytes(from, buffer);
                    fill.add(record, self.mtu, &read[VNET_HEADER_BYTES..VNET_HEADER_BYTES + bytes], checksum)
                }
                Source::Slice(packet) => fill.add(self.ring.send_bytes(buffer), self.mtu, packet, checksum),
            };
            match joined {
                Joined::Added => return Ok(()),
                Joined::RecordFull => seal_and_send(lane, &mut self.ring, &self.state.snapshot, self.id)?,
                Joined::TooBig => break,
            }
        }
        self.count_drop(Some(peer), DropReason::TooBig);
        Ok(())
    }

    fn pass_on(&mut self, peer: PeerIndex, flow_hash: u32, checksum: Option<PartialChecksum>, source: Source<'_>) {
        let stand_in = self.state.snapshot.peer(peer).and_then(|entry| entry.stand_in(flow_hash));
        let reason = match (stand_in, source) {
            // From another worker already: its snapshot and ours disagree for a moment, and packets do not circle.
            (_, Source::Slice(_)) | (None, _) => DropReason::NoLane,
            (Some(worker), _) if worker == self.id => DropReason::NoLane,
            (Some(worker), Source::Tun { buffer, bytes }) => {
                let read = self.ring.tun_bytes(buffer, VNET_HEADER_BYTES + bytes);
                let packet = read.get(VNET_HEADER_BYTES..).unwrap_or_default();
                if self.hand_over.pass(worker, packet, peer, flow_hash, checksum) {
                    self.counters.handed_over.add(1);
                    return;
                }
                DropReason::HandOverFull
            }
        };
        self.count_drop(Some(peer), reason);
    }

    /// Seals and queues every record the turn has begun. A lane whose key is used up ends: control makes a new one.
    fn flush(&mut self, now: Instant) -> io::Result<()> {
        while let Some(slot) = self.state.filling.pop() {
            let Some(lane) = self.state.lanes.get_mut(slot) else { continue };
            seal_and_send(lane, &mut self.ring, &self.state.snapshot, self.id)?;
            if lane.sealer.is_exhausted() {
                self.close_lane(slot, CLOSE_WORN, LaneEnd::Worn, now)?;
            }
        }
        Ok(())
    }

    // Inbound

    /// Looks at one datagram. Returns the peer whose packets now stand in `state.admitted`, if it was a record.
    fn handle_datagram(
        &mut self,
        slot: SocketSlot,
        buffer: &ReceiveBuffer,
        datagram: Datagram,
        now: Instant,
    ) -> Option<PeerIndex> {
        let State { lanes, snapshot, admitted, has_quic_news, .. } = &mut self.state;
        let lane = lanes.get_mut(slot)?;
        let counters = peer_counters(snapshot, lane.peer, self.id)?;
        if let Some(total) = datagram.overflow {
            counters.drops.count_many(DropReason::ReceiveOverflow, u64::from(total.wrapping_sub(lane.overflow)));
            lane.overflow = total;
        }
        let bytes = self.ring.receive_bytes(buffer).get_mut(datagram.range.clone())?;
        // What a stranger sent between the socket's bind and its connect is still in its queue.
        let is_strangers = datagram.from.is_some_and(|from| !is_same_address(from, lane.remote));
        match Arrival::of(bytes) {
            _ if is_strangers => hand_back(&self.events, lane, datagram.from, bytes),
            Arrival::Stray => hand_back(&self.events, lane, datagram.from, bytes),
            Arrival::Record => match lane.opener.open(bytes) {
                Ok(frames) => {
                    counters.records_received.add(1);
                    let peer = snapshot.peer(lane.peer)?;
                    let mut packet_bytes = 0;
                    admit(
                        peer,
                        self.mtu,
                        frames,
                        |mut packet| {
                            packet_bytes += packet.range.len() as u64;
                            packet.range.start += datagram.range.start;
                            packet.range.end += datagram.range.start;
                            admitted.push(packet);
                        },
                        |reason| counters.drops.count(reason),
                    );
                    counters.packets_received.add(admitted.len() as u64);
                    counters.bytes_received.add(packet_bytes);
                    return Some(lane.peer);
                }
                Err(error) => counters.drops.count(error.into()),
            },
            Arrival::Quic => {
                lane.connection.handle_datagram(now, bytes);
                lane.has_quic_news = true;
                *has_quic_news = true;
            }
            Arrival::Sentinel => {}
            Arrival::Garbage => counters.drops.count(DropReason::InboundMalformed),
        }
        None
    }

    // Lanes

    fn handle_command(&mut self, command: PlaneCommand, now: Instant) -> io::Result<()> {
        match command {
            PlaneCommand::Publish(snapshot) => {
                let generation = snapshot.generation;
                let retired = std::mem::replace(&mut self.state.snapshot, snapshot);
                // If control's queue is full the old tables are freed here: late, but no harm.
                let _ = self.events.try_send(PlaneEvent::Adopted { worker: self.id, generation, retired });
            }
            PlaneCommand::AddLane(lane) => self.add_lane(*lane, now)?,
            PlaneCommand::RetireLane(serial) => {
                if let Some(slot) = self.state.lanes.find(serial) {
                    self.close_lane(slot, CLOSE_RETIRED, LaneEnd::Retired, now)?;
                }
            }
            PlaneCommand::Stop => {
                for slot in self.state.lanes.slots() {
                    self.close_lane(slot, CLOSE_RETIRED, LaneEnd::Retired, now)?;
                }
                self.state.stopping = true;
            }
        }
        Ok(())
    }

    fn add_lane(&mut self, lane: LaneHandOver, now: Instant) -> io::Result<()> {
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
        self.state.lanes.insert(Lane {
            serial,
            peer,
            index,
            socket: slot,
            local,
            remote,
            connection: lane.connection,
            sealer: lane.sealer,
            opener: lane.opener,
            gauges: lane.gauges,
            record: None,
            deadline: None,
            has_quic_news: true,
            overflow: 0,
        });
        self.state.has_quic_news = true;
        for datagram in early {
            self.handle_early(slot, datagram, now);
        }
        Ok(())
    }

    /// A datagram that came before the lane did: the same as any other, but not in a buffer of ours.
    fn handle_early(&mut self, slot: SocketSlot, mut datagram: Vec<u8>, now: Instant) {
        let Some(lane) = self.state.lanes.get_mut(slot) else { return };
        let snapshot = &self.state.snapshot;
        let (Some(counters), Some(peer)) = (peer_counters(snapshot, lane.peer, self.id), snapshot.peer(lane.peer))
        else {
            return;
        };
        match Arrival::of(&datagram) {
            Arrival::Quic => lane.connection.handle_datagram(now, &datagram),
            Arrival::Record => match lane.opener.open(&mut datagram) {
                Ok(frames) => {
                    counters.records_received.add(1);
                    let drop = |reason| counters.drops.count(reason);
                    admit(peer, self.mtu, frames, |packet| self.state.admitted.push(packet), drop);
                    for Admitted { range, header } in self.state.admitted.drain(..) {
                        let packet = &datagram[range];
                        match self.ring.tun_write_now(packet, header) {
                            Ok(()) => {
                                counters.packets_received.add(1);
                                counters.bytes_received.add(packet.len() as u64);
                            }
                            Err(_) => counters.drops.count(DropReason::TunWriteFailed),
                        }
                    }
                }
                Err(error) => counters.drops.count(error.into()),
            },
            // Control has seen it already.
            Arrival::Stray | Arrival::Sentinel | Arrival::Garbage => {}
        }
    }

    /// Ends a lane from our side, telling the peer.
    fn close_lane(&mut self, slot: SocketSlot, (code, reason): Close, end: LaneEnd, now: Instant) -> io::Result<()> {
        if let Some(lane) = self.state.lanes.get_mut(slot) {
            lane.connection.close(now, code, reason);
            let Worker { ring, .. } = self;
            // A lost close costs the peer its idle timeout, nothing more.
            lane.connection.drive(now, |datagram| drop(ring.send_now(slot, datagram)));
        }
        self.remove_lane(slot, end)
    }

    fn remove_lane(&mut self, slot: SocketSlot, end: LaneEnd) -> io::Result<()> {
        let Some(lane) = self.state.lanes.remove(slot) else { return Ok(()) };
        if let Some((buffer, fill)) = lane.record {
            self.ring.return_send_buffer(buffer);
            if let Some(counters) = peer_counters(&self.state.snapshot, lane.peer, self.id) {
                counters.drops.count_many(DropReason::NoLane, u64::from(fill.packets));
            }
        }
        self.ring.close_socket(slot)?;
        let ended = PlaneEvent::LaneEnded { serial: lane.serial, peer: lane.peer, index: lane.index, end };
        self.state.untold.push(ended);
        Ok(())
    }

    /// Lets every QUIC connection that has news or whose time has come do its part.
    fn drive_connections(&mut self, now: Instant) -> io::Result<()> {
        let is_due = self.state.deadline.is_some_and(|deadline| deadline <= now);
        if !is_due && !self.state.has_quic_news {
            return Ok(());
        }
        self.state.has_quic_news = false;
        let mut due = std::mem::take(&mut self.state.due);
        self.state.lanes.due(now, &mut due);
        for slot in due.drain(..) {
            let Some(lane) = self.state.lanes.get_mut(slot) else { continue };
            let ring = &mut self.ring;
            // A datagram that cannot be sent is a lost one.
            lane.deadline = lane.connection.drive(now, |datagram| drop(ring.send_now(slot, datagram)));
            lane.has_quic_news = false;
            lane.gauges.set(lane.connection.rtt(), lane.connection.mtu_bytes());
            if let Some(error) = lane.connection.lost() {
                self.remove_lane(slot, lane_end(error))?;
            }
        }
        self.state.due = due;
        self.state.deadline = self.state.lanes.deadline();
        Ok(())
    }

    fn count_drop(&self, peer: Option<PeerIndex>, reason: DropReason) {
        count_drop(&self.state.snapshot, &self.counters, self.id, peer, reason);
    }
}

/// Where an outbound packet's bytes are.
#[derive(Clone, Copy)]
enum Source<'p> {
    /// In a TUN buffer, behind the header.
    Tun { buffer: &'p TunBuffer, bytes: usize },
    /// In another worker's buffer.
    Slice(&'p [u8]),
}

fn peer_counters(
    snapshot: &Snapshot,
    peer: PeerIndex,
    worker: WorkerId,
) -> Option<&ringlane_shared::plane::PeerCounters> {
    snapshot.peer(peer)?.counters.get(worker.position())
}

fn count_drop(
    snapshot: &Snapshot,
    counters: &WorkerCounters,
    worker: WorkerId,
    peer: Option<PeerIndex>,
    reason: DropReason,
) {
    match peer.and_then(|peer| peer_counters(snapshot, peer, worker)) {
        Some(counters) => counters.drops.count(reason),
        None => counters.drops.count(reason),
    }
}

/// Seals the record a lane is filling and queues it; the lane then has none.
fn seal_and_send(lane: &mut Lane, ring: &mut PacketRing, snapshot: &Snapshot, worker: WorkerId) -> io::Result<()> {
    let Some((buffer, fill)) = lane.record.take() else { return Ok(()) };
    if fill.packets == 0 {
        // The only packet that was to join it was too big.
        ring.return_send_buffer(buffer);
        return Ok(());
    }
    let counters = peer_counters(snapshot, lane.peer, worker);
    match lane.sealer.seal(ring.send_bytes(&buffer), fill.frame_bytes) {
        Ok(bytes) => {
            if let Some(counters) = counters {
                counters.records_sent.add(1);
                counters.packets_sent.add(u64::from(fill.packets));
                counters.bytes_sent.add(fill.packet_bytes);
            }
            ring.send(lane.socket, buffer, bytes, SendTag { peer: lane.peer, packets: fill.packets })
        }
        Err(error) => {
            if let Some(counters) = counters {
                counters.drops.count_many(error.into(), u64::from(fill.packets));
            }
            ring.return_send_buffer(buffer);
            Ok(())
        }
    }
}

/// Gives a datagram that is not a lane's back to control; when control is that busy, the sender will try again.
fn hand_back(events: &PlaneSender<PlaneEvent>, lane: &Lane, from: Option<std::net::SocketAddr>, datagram: &[u8]) {
    let from = from.unwrap_or(lane.remote);
    let _ = events.try_send(PlaneEvent::Stray(Stray { local: lane.local, from, datagram: datagram.into() }));
}

/// Compares what identifies a sender; flow label and scope do not.
fn is_same_address(a: std::net::SocketAddr, b: std::net::SocketAddr) -> bool {
    a.ip() == b.ip() && a.port() == b.port()
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

#[cfg(test)]
mod tests;
