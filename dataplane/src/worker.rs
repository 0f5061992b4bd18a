//! A worker: one thread on one core that does all of a packet's work, and the order in which it does it.
//!
//! ```text
//! turn:   tell control what it had no room for -> completions of the last enter -> write what they have opened -> answer the echoes among it
//!         -> packets that control has received -> commands -> packets of other workers -> lanes that move -> QUIC, keys and carriers
//!         -> what waited and may leave now -> seal what it has gathered -> give control what leaves by streams
//!         -> what is relayed for others
//!         -> ask what is due on paths -> tell control
//!         -> one enter (submits all of it, takes in what is new)
//! ```
//! `worker/receiving.rs` and `worker/sending.rs` are the two directions, `worker/egress.rs` is what waits to leave while
//! something is slower than the worker, `worker/stream.rs` what goes by way of control, `worker/lanes.rs` the upkeep, `worker/path.rs` the echoes, `worker/movement.rs`
//! the lanes that move, `worker/forward.rs` those of others.
//!
//! While anything happens the worker stays here; when nothing does, it lets others run once, looks again, and then sleeps
//! until the packet ring, control or another worker or the next QUIC deadline wakes it.

pub(crate) mod carrier;
mod egress;
mod forward;
mod lanes;
mod movement;
mod oversized;
mod path;
mod receiving;
mod rekey;
mod sending;
mod stream;

pub(crate) use self::egress::EgressQueue;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringlane_shared::bucket::Bucket;
use ringlane_shared::drop_reason::DropReason;
use ringlane_shared::id::{PeerIndex, WorkerId};
use ringlane_shared::limits::{
    COMMAND_BUDGET, HAND_OVER_BUDGET, INNER_MTU_MAX, SENDS_IN_FLIGHT, STRAYS_BURST, STRAYS_PER_SECOND, TOO_BIG_BURST,
    TOO_BIG_PER_SECOND, TURN_BYTES, TURN_RECORDS, UDP_RECEIVES_IN_FLIGHT, UNTOLD_MAX,
};
use ringlane_shared::plane::{
    LaneEnd, Offload, OffloadState, Offloads, PacketBatch, PeerCounters, PlaneCommand, PlaneEvent, PlaneReceiver,
    PlaneSender, RekeyLimits, Snapshot, WorkerCounters,
};
use tracing::warn;

pub(crate) use self::movement::LaneMovement;
pub(crate) use self::path::LanePath;

use self::forward::Forwards;
use self::movement::Movement;
use self::path::Paths;
use self::stream::Streams;
use crate::fragments::Fragments;
use crate::hand_over::HandOver;
use crate::inbound::{OpenedRecord, Rebuilder};
use crate::lane::Lanes;
use crate::sys::ring::{Completion, Engine, FrozenBuffer, PacketRing, SocketSlot};
use crate::wake::Wake;

/// When a worker with nothing else to do tries again to tell control of ended lanes.
const UNTOLD_PAUSE: Duration = Duration::from_millis(20);

/// Everything a worker is made of.
pub(crate) struct Worker<E: Engine> {
    pub(crate) id: WorkerId,
    pub(crate) mtu: u16,
    pub(crate) hash_seed: u64,
    /// Whether packets that are larger than a record of their path are cut; else their sender is told.
    pub(crate) fragments: bool,
    /// For how long it keeps looking when nothing happens, before it sleeps.
    pub(crate) busy_poll: Duration,
    /// When its lanes get new keys.
    pub(crate) rekey: RekeyLimits,
    pub(crate) ring: PacketRing<E>,
    pub(crate) wake: Arc<Wake>,
    pub(crate) commands: PlaneReceiver<PlaneCommand>,
    /// Packets for the TUN that control has received.
    pub(crate) delivered: PlaneReceiver<PacketBatch>,
    pub(crate) events: PlaneSender<PlaneEvent>,
    /// Packets that control sends on.
    pub(crate) batches: PlaneSender<PacketBatch>,
    pub(crate) hand_over: HandOver,
    pub(crate) counters: Arc<WorkerCounters>,
    pub(crate) state: State,
}

/// What a worker learns while it runs.
pub(crate) struct State {
    snapshot: Arc<Snapshot>,
    lanes: Lanes,
    /// What leaves by control.
    streams: Streams,
    /// What waits to leave, and what it waits for.
    egress: EgressQueue,
    /// Lanes whose records of this turn are not all on their way yet.
    filling: Vec<SocketSlot>,
    /// Records that this turn has opened.
    opened: Vec<OpenedRecord>,
    /// The buffers they lie in.
    held: Vec<FrozenBuffer>,
    /// A record of this turn is older than one opened before it.
    is_out_of_order: bool,
    /// What makes TUN writes of them.
    rebuilder: Rebuilder,
    /// Their packets that came in fragments.
    fragments: Fragments,
    /// What it takes to ask and answer on paths.
    paths: Paths,
    /// Sockets of lanes that move.
    movement: Movement,
    /// Lanes of others.
    forwards: Forwards,
    /// Room for one packet: a piece of a super-segment that is not written straight into a record.
    piece: Box<[u8]>,
    /// How many senders may be told that their packets are too big.
    too_big: Bucket,
    /// Lanes to be driven now; kept to keep its memory.
    due: Vec<SocketSlot>,
    /// The earliest QUIC deadline of all lanes.
    deadline: Option<Instant>,
    has_quic_news: bool,
    /// What control has yet to be told of lanes: the ends of all that there were, and at most [`UNTOLD_MAX`] other things.
    untold: Vec<PlaneEvent>,
    /// How many datagrams may be given back to control.
    strays: Bucket,
    stopping: bool,
    /// When the turn began.
    now: Instant,
}

impl State {
    /// Of a worker for packets of up to `mtu` bytes, whose kernel takes what `offloads` says, and whose lanes are used every
    /// `keep_alive` at least.
    pub(crate) fn new(mtu: u16, offloads: Offloads, keep_alive: Duration, egress: EgressQueue) -> Self {
        let coalesces = offloads.has(Offload::TunCoalesce);
        Self {
            snapshot: Arc::new(Snapshot::empty()),
            lanes: Lanes::default(),
            streams: Streams::default(),
            egress,
            filling: Vec::with_capacity(usize::from(SENDS_IN_FLIGHT)),
            opened: Vec::with_capacity(TURN_RECORDS),
            held: Vec::with_capacity(usize::from(UDP_RECEIVES_IN_FLIGHT)),
            is_out_of_order: false,
            rebuilder: Rebuilder::new(coalesces, coalesces && offloads.has(Offload::TunUso)),
            fragments: Fragments::new(),
            paths: Paths::new(mtu, keep_alive),
            movement: Movement::default(),
            forwards: Forwards::new(Instant::now()),
            piece: vec![0; usize::from(INNER_MTU_MAX)].into(),
            too_big: Bucket::new(TOO_BIG_BURST, TOO_BIG_PER_SECOND, Instant::now()),
            due: Vec::new(),
            deadline: None,
            has_quic_news: false,
            untold: Vec::new(),
            strays: Bucket::new(STRAYS_BURST, STRAYS_PER_SECOND, Instant::now()),
            stopping: false,
            now: Instant::now(),
        }
    }
}

impl<E: Engine> Worker<E> {
    /// Runs until control says stop, or the kernel says something no worker can go on with.
    pub(crate) async fn run(mut self) -> io::Result<()> {
        self.ring.start_sleeper(self.wake.eventfd())?;
        self.ring.arm_tun_read()?;
        let mut busy_until = Instant::now();
        loop {
            let now = Instant::now();
            let happened = self.turn(now)?;
            if self.state.stopping {
                return Ok(());
            }
            if happened {
                busy_until = now + self.busy_poll;
                if self.is_idle() {
                    // Everything is sent. Where somebody else wants this core, what they send meanwhile comes in one turn
                    // instead of one wake-up each; where nobody does, this comes straight back.
                    std::thread::yield_now();
                    continue;
                }
            }
            if now >= busy_until && self.may_sleep()? {
                self.counters.sleeps.add(1);
                self.ring.sleep_until(self.wake_at()).await;
            } else {
                self.ring.visit().await;
            }
            self.wake.end_sleep();
            self.ring.set_wakeful(false);
        }
    }

    /// One pass over everything that may have happened. Returns whether anything had.
    fn turn(&mut self, now: Instant) -> io::Result<bool> {
        self.state.now = now;
        // Before anybody else's datagrams take what room there is in the queue.
        self.tell_control();
        let mut happened = self.ring.completion_count() > 0;
        // What handling them brings in waits for the next turn: under load there would be no end, and nothing else. So
        // does what is more than the other end should wait for.
        let mut taken_bytes = 0;
        for _ in 0..self.ring.completion_count() {
            let Some(completion) = self.ring.next_completion() else { break };
            taken_bytes += self.handle_completion(completion, now)?;
            if taken_bytes >= TURN_BYTES {
                break;
            }
        }
        self.deliver();
        happened |= self.deliver_batches();
        self.handle_echoes(now)?;
        for _ in 0..COMMAND_BUDGET {
            let Some(command) = self.commands.try_recv() else { break };
            happened = true;
            self.handle_command(command, now)?;
        }
        for _ in 0..HAND_OVER_BUDGET {
            let Some((from, packet)) = self.hand_over.take() else { break };
            happened = true;
            self.send_handed_over(packet.peer, packet.flow_hash, packet.is_partial, packet.packet())?;
            self.hand_over.empty(from, packet);
        }
        self.drive_movement(now)?;
        self.drive_connections(now)?;
        happened |= self.depart(now)?;
        self.flush(now)?;
        self.send_batches(now);
        happened |= self.drive_forwards(now)?;
        self.drive_paths(now)?;
        self.tell_control();
        self.ring.enter()?;
        self.counters.turns.add(1);
        self.count_enters();
        Ok(happened)
    }

    /// Tells control what it had no room for, and what is new. What it has no room for now waits.
    fn tell_control(&mut self) {
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
    }

    /// Has control told something of a lane that it can do without. Returns whether it will be.
    fn tell_if_room(&mut self, event: PlaneEvent) -> bool {
        // Beyond that control does not listen, and has other things to worry about.
        let has_room = self.state.untold.len() < UNTOLD_MAX;
        if has_room {
            self.state.untold.push(event);
        }
        has_room
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
        self.ring.is_idle()
            && self.state.forwards.is_idle()
            && self.commands.is_empty()
            && self.delivered.is_empty()
            && self.hand_over.is_empty()
    }

    /// When there is something to do though nothing happens.
    fn wake_at(&self) -> Option<Instant> {
        let retry = (!self.state.untold.is_empty()).then(|| Instant::now() + UNTOLD_PAUSE);
        let State { deadline, paths, movement, forwards, egress, .. } = &self.state;
        let deadlines = [*deadline, paths.deadline(), movement.deadline, forwards.deadline(), egress.wake_at(), retry];
        deadlines.into_iter().flatten().min()
    }

    fn count_enters(&self) {
        let enters = self.ring.enters();
        self.counters.enters.add(enters - self.counters.enters.get());
    }

    /// Returns how many bytes it brought.
    fn handle_completion(&mut self, completion: Completion, now: Instant) -> io::Result<usize> {
        match completion {
            Completion::TunRead { buffer, bytes } => {
                self.handle_tun_read(&buffer, bytes)?;
                self.ring.recycle_tun(buffer);
                return Ok(bytes);
            }
            Completion::Received { socket, buffer, datagram } => {
                self.handle_received(socket, buffer, &datagram, now);
                return Ok(datagram.range.len());
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
            Completion::ReceiveEnded { socket, error } => {
                if self.note_forward_receive_ended(socket, error.as_ref())? {
                    return Ok(0);
                }
                match error.as_ref().and_then(io::Error::raw_os_error) {
                    None => {}
                    Some(libc::ENOBUFS) => self.counters.udp_buffer_shortages.add(1),
                    // A mistake of ours; trying again would turn in circles.
                    Some(libc::EBADF | libc::EFAULT | libc::EINVAL | libc::ENOTSOCK | libc::EOPNOTSUPP) => {
                        let end = LaneEnd::Failed(error.map(|error| error.to_string()).unwrap_or_default());
                        self.remove_lane(socket, end)?;
                        return Ok(0);
                    }
                    // A past ICMP error, told by the next receive: none of them ends a lane, silence does.
                    Some(_) => {}
                }
                self.ring.arm_receive(socket)?;
            }
            Completion::SendFailed { socket, tag, error } => {
                let reason = match error.raw_os_error() {
                    Some(libc::EMSGSIZE) => {
                        self.handle_too_big(socket, now);
                        DropReason::TooBig
                    }
                    _ => DropReason::SendFailed,
                };
                if self.note_forward_failed(socket, reason, tag.packets) {
                    return Ok(0);
                }
                self.count_drop(Some(tag.peer), reason, u64::from(tag.packets));
                // The socket that a lane has left says nothing of its new one.
                if self.state.lanes.get(socket).is_some() {
                    self.note_refusal(tag.peer, &error, now);
                }
            }
            Completion::TrainRefused { train, error } => {
                self.counters.trains_resent.add(1);
                let (socket, record_bytes) = self.ring.refused(&train);
                let is_new = self.ring.resend_singly(train)?;
                self.note_forwarded_train_refused(socket, record_bytes);
                if self.state.lanes.get(socket).is_none() {
                    // One that its lane has left.
                    return Ok(0);
                }
                if self.is_too_big(socket, record_bytes) {
                    // Kernels before 6.14 say so of trains whose records are too large for the device.
                    self.ring.trust_trains(socket);
                    return Ok(0);
                }
                if is_new && self.counters.offloads.get(Offload::UdpGso) != OffloadState::Failed {
                    self.counters.offloads.set(Offload::UdpGso, OffloadState::Failed);
                    warn!(
                        worker = self.id.0, %error,
                        "a network device does not take trains of datagrams (udp_gso); what leaves by it is sent one by \
                         one from now on, which is slower"
                    );
                }
            }
            Completion::TunWriteFailed { tag, is_unknown } => {
                if is_unknown && self.counters.offloads.get(Offload::TunCoalesce) == OffloadState::On {
                    self.state.rebuilder = Rebuilder::new(false, false);
                    self.counters.offloads.set(Offload::TunCoalesce, OffloadState::Failed);
                    warn!(
                        worker = self.id.0,
                        "this kernel's TUN does not take super-segments (tun_coalesce); packets are written one by one \
                         from now on, which is slower"
                    );
                }
                self.count_drop(Some(tag.peer), DropReason::TunWriteFailed, u64::from(tag.packets));
            }
        }
        Ok(0)
    }

    fn count_drop(&self, peer: Option<PeerIndex>, reason: DropReason, packets: u64) {
        count_drop(&self.state.snapshot, &self.counters, self.id, peer, reason, packets);
    }
}

fn peer_counters(snapshot: &Snapshot, peer: PeerIndex, worker: WorkerId) -> Option<&PeerCounters> {
    snapshot.peer(peer)?.counters.get(worker.position())
}

fn count_drop(
    snapshot: &Snapshot,
    counters: &WorkerCounters,
    worker: WorkerId,
    peer: Option<PeerIndex>,
    reason: DropReason,
    packets: u64,
) {
    let drops = match peer.and_then(|peer| peer_counters(snapshot, peer, worker)) {
        Some(counters) => &counters.drops,
        None => &counters.drops,
    };
    drops.count_many(reason, packets);
}

#[cfg(test)]
mod on_epoll;
#[cfg(test)]
mod on_io_uring;
