//! Lanes that are relayed for others: what comes from one end leaves to the other, as it is.
//!
//! Nothing of it is opened, and of what it says only whether an end asks us to bind it again (`wire::bind`): a later
//! version's datagrams pass as today's do. As one datagram leaves for each that came, and none larger, nobody gains
//! anything by sending it here.
//!
//! The worker's own packets come first: what is to be forwarded waits, in buffers of its own, until they have had their
//! turn, and is at most [`FORWARD_TURN_BYTES`] a turn. What is over waits in the sockets, whose turn it is in a queue.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringlane_shared::bucket::{Bucket, ByteBucket, ByteRate};
use ringlane_shared::drop_reason::DropReason;
use ringlane_shared::id::PeerIndex;
use ringlane_shared::limits::{
    BINDS_BURST, BINDS_PER_FORWARD_BURST, BINDS_PER_FORWARD_PER_SECOND, BINDS_PER_SECOND, FORWARD_DATAGRAM_BYTES_MAX,
    FORWARD_RECEIVES_IN_FLIGHT, FORWARD_TURN_BYTES, FORWARDS_BURST_BYTES, FORWARDS_BYTES_PER_SECOND,
    FORWARDS_PER_WORKER_MAX, OUTER_HEADER_BYTES_MAX,
};
use ringlane_shared::plane::{Forward, ForwardCounters, ForwardEnd, ForwardId, PlaneEvent};
use ringlane_shared::wire::bind::is_bind;

use super::Worker;
use super::movement::Ends;
use super::receiving::{hand_back, is_same_address};
use crate::sys::datagram::Datagram;
use crate::sys::ring::{Engine, ForwardBuffer, SendTag, SocketSlot, ToForward, Train};

/// What a datagram counts as beside its bytes, so that empty ones are not free.
const HEADERS: u64 = OUTER_HEADER_BYTES_MAX as u64;

/// One end of a forward, as its worker owns it.
struct Half {
    socket: SocketSlot,
    local: SocketAddr,
    remote: SocketAddr,
    /// The socket's last known total of dropped datagrams.
    overflow: u32,
}

/// One relayed lane, as its worker owns it.
struct Relayed {
    id: ForwardId,
    halves: [Half; 2],
    bucket: ByteBucket,
    /// How many binds of its ends control is given.
    binds: Bucket,
    idle: Duration,
    heard_at: Instant,
    counters: Arc<ForwardCounters>,
}

impl Relayed {
    fn ends_at(&self) -> Instant {
        self.heard_at + self.idle
    }
}

/// Which half of which forward a socket is.
#[derive(Clone, Copy)]
struct Place {
    socket: SocketSlot,
    forward: usize,
    half: usize,
}

/// All forwards of a worker.
pub(crate) struct Forwards {
    all: Vec<Option<Relayed>>,
    free: Vec<usize>,
    by_id: BTreeMap<ForwardId, usize>,
    by_slot: Vec<Option<Place>>,
    /// What all of them together may carry.
    bucket: ByteBucket,
    /// How many binds control is given, of all of them: none of those strays that are for the node itself.
    binds: Bucket,
    /// Sockets whose receive has ended for want of buffers, in the order of their turns.
    waiting: VecDeque<SocketSlot>,
    /// Those of them that got none of the buffers when it was their turn.
    unserved: Vec<SocketSlot>,
    /// Before then, none is idle.
    deadline: Option<Instant>,
}

impl Forwards {
    pub(super) fn new(now: Instant) -> Self {
        let rate = ByteRate { per_second: FORWARDS_BYTES_PER_SECOND, burst: FORWARDS_BURST_BYTES };
        Self {
            all: Vec::new(),
            free: Vec::new(),
            by_id: BTreeMap::new(),
            by_slot: Vec::new(),
            bucket: ByteBucket::new(rate, now),
            binds: Bucket::new(BINDS_BURST, BINDS_PER_SECOND, now),
            waiting: VecDeque::new(),
            unserved: Vec::new(),
            deadline: None,
        }
    }

    /// When there is something to do though nothing happens.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether all sockets are being received on.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.unserved.is_empty()
    }

    /// The forward that owns a socket slot of this very generation, and which half it is.
    fn of_socket(&mut self, socket: SocketSlot) -> Option<(&mut Relayed, usize)> {
        let place = (*self.by_slot.get(socket.position())?).filter(|place| place.socket == socket)?;
        Some((self.all.get_mut(place.forward)?.as_mut()?, place.half))
    }

    fn insert(&mut self, relayed: Relayed) {
        let forward = self.free.pop().unwrap_or_else(|| {
            self.all.push(None);
            self.all.len() - 1
        });
        for (half, Half { socket, .. }) in relayed.halves.iter().enumerate() {
            if self.by_slot.len() <= socket.position() {
                self.by_slot.resize(socket.position() + 1, None);
            }
            self.by_slot[socket.position()] = Some(Place { socket: *socket, forward, half });
        }
        self.deadline = self.deadline.into_iter().chain([relayed.ends_at()]).min();
        self.by_id.insert(relayed.id, forward);
        self.all[forward] = Some(relayed);
        // Every socket is in at most one of the two, once: no packet makes them grow.
        let sockets = 2 * self.by_id.len();
        self.waiting.reserve(sockets.saturating_sub(self.waiting.len()));
        self.unserved.reserve(sockets.saturating_sub(self.unserved.len()));
    }

    fn remove(&mut self, id: ForwardId) -> Option<Relayed> {
        let forward = self.by_id.remove(&id)?;
        let relayed = self.all.get_mut(forward)?.take()?;
        self.free.push(forward);
        for Half { socket, .. } in &relayed.halves {
            self.by_slot[socket.position()] = None;
        }
        Some(relayed)
    }

    /// A socket's receive has ended for want of buffers; it may have got some before.
    fn note_shortage(&mut self, socket: SocketSlot, was_served: bool) {
        match was_served {
            true => self.waiting.push_back(socket),
            false => self.unserved.push(socket),
        }
    }

    /// The next socket whose turn it is to receive.
    fn next_waiting(&mut self) -> Option<SocketSlot> {
        loop {
            let socket = self.waiting.pop_front()?;
            // Its forward may have been removed meanwhile.
            if self.of_socket(socket).is_some() {
                return Some(socket);
            }
        }
    }

    /// Who got nothing when it was its turn goes before those who did, in the order they had.
    fn settle_turns(&mut self) {
        while let Some(socket) = self.unserved.pop() {
            self.waiting.push_front(socket);
        }
    }

    /// Those that have been idle for too long. Until the next deadline there will be no more.
    fn take_idle(&mut self, now: Instant) -> Vec<ForwardId> {
        let (all, is_due) = (self.all.iter().flatten(), |relayed: &&Relayed| relayed.ends_at() <= now);
        self.deadline = all.clone().filter(|relayed| !is_due(relayed)).map(Relayed::ends_at).min();
        all.filter(is_due).map(|relayed| relayed.id).collect()
    }
}

impl<E: Engine> Worker<E> {
    pub(super) fn add_forward(&mut self, forward: Forward, now: Instant) -> io::Result<()> {
        let Forward { id, halves, rate, idle, counters } = forward;
        let known = &self.state.forwards.by_id;
        if known.len() >= FORWARDS_PER_WORKER_MAX || known.contains_key(&id) {
            return self.refuse_forward(id, "the worker forwards as much as it can, or this already");
        }
        let mut taken = Vec::with_capacity(2);
        for half in halves {
            let socket = match self.ring.add_forward_socket(UdpSocket::from(half.socket)) {
                Ok(socket) => socket,
                Err(error) => {
                    for Half { socket, .. } in taken {
                        self.ring.close_socket(socket)?;
                    }
                    return self.refuse_forward(id, &format!("its socket cannot be used: {error}"));
                }
            };
            // Without them congestion on the path is told by loss, as ever.
            let _ = self.ring.report_marks(socket);
            taken.push(Half { socket, local: half.local, remote: half.remote, overflow: 0 });
        }
        let Ok(halves) = <[Half; 2]>::try_from(taken) else { return Ok(()) };
        // One that has no room for a datagram would never pass it.
        let burst = rate.burst.max(FORWARD_DATAGRAM_BYTES_MAX as u64 + HEADERS);
        let bucket = ByteBucket::new(ByteRate { burst, ..rate }, now);
        let binds = Bucket::new(BINDS_PER_FORWARD_BURST, BINDS_PER_FORWARD_PER_SECOND, now);
        self.state.forwards.insert(Relayed { id, halves, bucket, binds, idle, heard_at: now, counters });
        Ok(())
    }

    pub(super) fn limit_forwards(&mut self, rate: ByteRate, now: Instant) {
        let burst = rate.burst.max(FORWARD_DATAGRAM_BYTES_MAX as u64 + HEADERS);
        self.state.forwards.bucket = ByteBucket::new(ByteRate { burst, ..rate }, now);
    }

    pub(super) fn remove_forward(&mut self, id: ForwardId, end: ForwardEnd) -> io::Result<()> {
        let Some(relayed) = self.state.forwards.remove(id) else { return Ok(()) };
        for half in relayed.halves {
            self.ring.close_socket(half.socket)?;
        }
        self.state.untold.push(PlaneEvent::ForwardEnded { worker: self.id, id, end });
        Ok(())
    }

    fn refuse_forward(&mut self, id: ForwardId, reason: &str) -> io::Result<()> {
        let end = ForwardEnd::Failed(reason.to_owned());
        self.state.untold.push(PlaneEvent::ForwardEnded { worker: self.id, id, end });
        Ok(())
    }

    /// Forwards this turn's share of what has arrived, and ends what is idle. Returns whether there was anything to forward.
    pub(super) fn drive_forwards(&mut self, now: Instant) -> io::Result<bool> {
        let arrived = self.ring.forward_count();
        let mut bytes = 0;
        for _ in 0..arrived {
            let Some(ToForward { socket, buffer, datagram }) = self.ring.next_forward() else { break };
            bytes += datagram.range.len();
            self.forward(socket, buffer, &datagram, now)?;
            if bytes >= FORWARD_TURN_BYTES {
                break;
            }
        }
        let waited = !self.state.forwards.is_idle();
        if waited {
            self.state.forwards.settle_turns();
            for _ in 0..FORWARD_RECEIVES_IN_FLIGHT {
                let Some(socket) = self.state.forwards.next_waiting() else { break };
                self.ring.arm_receive(socket)?;
            }
        }
        if self.state.forwards.deadline.is_some_and(|deadline| deadline <= now) {
            for id in self.state.forwards.take_idle(now) {
                self.remove_forward(id, ForwardEnd::Idle)?;
            }
        }
        Ok(arrived > 0 || waited)
    }

    /// Sends what came by one half on by the other.
    fn forward(
        &mut self,
        socket: SocketSlot,
        buffer: ForwardBuffer,
        datagram: &Datagram,
        now: Instant,
    ) -> io::Result<()> {
        let forwards = &mut self.state.forwards;
        let (all_left, mut all_binds) = (forwards.bucket.left(now), forwards.binds);
        let Some((relayed, from)) = forwards.of_socket(socket) else {
            // Removed meanwhile.
            self.ring.drop_forward(buffer);
            return Ok(());
        };
        let Relayed { halves, bucket, binds, counters, heard_at, .. } = relayed;
        let (to, half) = (halves[1 - from].socket, &mut halves[from]);
        let drops = |reason, datagrams| {
            counters.drops.count_many(reason, datagrams);
            self.counters.drops.count_many(reason, datagrams);
        };
        if let Some(total) = datagram.control.overflow {
            drops(DropReason::ReceiveOverflow, u64::from(total.wrapping_sub(half.overflow)));
            half.overflow = total;
        }
        let bytes = datagram.range.len();
        let each = datagram.control.segment_bytes.map_or(bytes, usize::from).clamp(1, bytes.max(1));
        let datagrams = bytes.div_ceil(each).max(1);
        // What a stranger sent between the socket's bind and its connect is still in its queue.
        let is_strangers = datagram.from.is_some_and(|from| !is_same_address(from, half.remote));
        if datagram.is_truncated || is_strangers || each > FORWARD_DATAGRAM_BYTES_MAX {
            drops(DropReason::InboundMalformed, datagrams as u64);
            self.ring.drop_forward(buffer);
            return Ok(());
        }
        *heard_at = now;
        // An end that has not heard our answer asks again; it is we who are asked.
        if is_bind(&self.ring.forward_bytes(&buffer)[datagram.range.clone()]) {
            // Its own share first, so that an end that floods takes nothing from the others.
            match binds.take(now) && all_binds.take(now) {
                true => {
                    let ends = Ends { local: half.local, remote: half.remote };
                    let bytes = &self.ring.forward_bytes(&buffer)[datagram.range.clone()];
                    hand_back(&self.events, ends, datagram.from, bytes);
                    self.state.forwards.binds = all_binds;
                }
                false => drops(DropReason::InboundMalformed, 1),
            }
            self.ring.drop_forward(buffer);
            return Ok(());
        }
        let left = bucket.left(now).min(all_left);
        let allowed = allowed(left, bytes, each, datagrams);
        if allowed < datagrams {
            drops(DropReason::ForwardRate, (datagrams - allowed) as u64);
        }
        let passed = (allowed * each).min(bytes);
        if allowed == 0 {
            self.ring.drop_forward(buffer);
            return Ok(());
        }
        let cost = passed as u64 + HEADERS * allowed as u64;
        bucket.take(cost);
        let (count, passed_bytes) = (allowed as u64, passed as u64);
        for forwarded in [&counters.halves[from], &self.counters.forwarded] {
            forwarded.datagrams.add(count);
            forwarded.bytes.add(passed_bytes);
        }
        forwards.bucket.take(cost);
        let class = datagram.control.ecn as u8;
        let train = Train { bytes: passed, record_bytes: each, records: allowed as u16, class };
        let tag = SendTag { peer: PeerIndex::NOBODY, packets: allowed as u32 };
        self.ring.forward(to, buffer, datagram.range.start, train, tag)
    }

    /// The kernel did not take what was to leave by a socket, if that is a forward's. Returns whether it is.
    pub(super) fn note_forward_failed(&mut self, socket: SocketSlot, reason: DropReason, datagrams: u32) -> bool {
        let Some((relayed, _)) = self.state.forwards.of_socket(socket) else { return false };
        relayed.counters.drops.count_many(reason, datagrams.into());
        self.counters.drops.count_many(reason, datagrams.into());
        true
    }

    /// A train of a forward was refused: if its datagrams are larger than the path's, it was not for being a train.
    pub(super) fn note_forwarded_train_refused(&mut self, socket: SocketSlot, record_bytes: usize) {
        let Some((relayed, half)) = self.state.forwards.of_socket(socket) else { return };
        let header_bytes = if relayed.halves[half].remote.is_ipv4() { 28 } else { 48 };
        if self.ring.route_mtu(socket).is_some_and(|mtu| record_bytes + header_bytes > mtu as usize) {
            self.ring.trust_trains(socket);
        }
    }

    /// Takes note that a socket is no longer received on, if it is a forward's. Returns whether it is.
    pub(super) fn note_forward_receive_ended(
        &mut self,
        socket: SocketSlot,
        error: Option<&io::Error>,
    ) -> io::Result<bool> {
        let Some((relayed, _)) = self.state.forwards.of_socket(socket) else { return Ok(false) };
        let id = relayed.id;
        match error.and_then(io::Error::raw_os_error) {
            Some(libc::ENOBUFS) => {
                let was_served = self.ring.has_received(socket);
                self.state.forwards.note_shortage(socket, was_served);
            }
            // A mistake of ours; trying again would turn in circles.
            Some(libc::EBADF | libc::EFAULT | libc::EINVAL | libc::ENOTSOCK | libc::EOPNOTSUPP) => {
                let end = ForwardEnd::Failed(error.map(ToString::to_string).unwrap_or_default());
                self.remove_forward(id, end)?;
            }
            // A past ICMP error: silence ends a forward, and nothing else on its path does.
            _ => self.ring.arm_receive(socket)?,
        }
        Ok(true)
    }
}

/// How many of a train's datagrams the bytes that are left are enough for.
fn allowed(left: u64, bytes: usize, each: usize, datagrams: usize) -> usize {
    match bytes as u64 + HEADERS * datagrams as u64 <= left {
        true => datagrams,
        // Less than all of them, as the last may be shorter.
        false => usize::try_from(left / (each as u64 + HEADERS)).unwrap_or(usize::MAX).min(datagrams - 1),
    }
}

/// The books without a ring.
#[cfg(test)]
pub(crate) mod books {
    use super::*;

    const RATE: ByteRate = ByteRate { per_second: 1, burst: 1 };

    pub(crate) use super::Forwards;

    pub(crate) fn new() -> Forwards {
        Forwards::new(Instant::now())
    }

    pub(crate) fn add(forwards: &mut Forwards, id: ForwardId, sockets: [SocketSlot; 2]) {
        let address = SocketAddr::from(([0; 4], 0));
        let now = Instant::now();
        forwards.insert(Relayed {
            id,
            halves: sockets.map(|socket| Half { socket, local: address, remote: address, overflow: 0 }),
            bucket: ByteBucket::new(RATE, now),
            binds: Bucket::new(1, 1, now),
            idle: Duration::from_secs(3600),
            heard_at: now,
            counters: Arc::default(),
        });
    }

    /// Adds so many, of sockets far beyond any ring's.
    pub(crate) fn fill(forwards: &mut Forwards, count: usize) {
        for number in 0..count as u16 {
            let sockets = [40_000 + 2 * number, 40_001 + 2 * number].map(SocketSlot::at);
            add(forwards, ForwardId(1 << 40 | u64::from(number)), sockets);
        }
    }

    pub(crate) fn remove(forwards: &mut Forwards, id: ForwardId) -> bool {
        forwards.remove(id).is_some()
    }

    pub(crate) fn of_socket(forwards: &mut Forwards, socket: SocketSlot) -> Option<(ForwardId, usize)> {
        forwards.of_socket(socket).map(|(relayed, half)| (relayed.id, half))
    }

    pub(crate) fn allowed(left: u64, bytes: usize, each: usize, datagrams: usize) -> usize {
        super::allowed(left, bytes, each, datagrams)
    }

    pub(crate) fn note_shortage(forwards: &mut Forwards, socket: SocketSlot, was_served: bool) {
        forwards.note_shortage(socket, was_served);
    }

    pub(crate) fn settle(forwards: &mut Forwards) {
        forwards.settle_turns();
    }

    pub(crate) fn next_waiting(forwards: &mut Forwards) -> Option<SocketSlot> {
        forwards.next_waiting()
    }

    impl Forwards {
        /// How many forwards and sockets there was ever room for at once.
        pub(crate) fn places(&self) -> usize {
            self.all.len() + self.by_slot.len()
        }
    }
}
