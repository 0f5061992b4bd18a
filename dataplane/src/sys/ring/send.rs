//! The ring's sends: trains of records of one size, each train one system call's worth of work for the kernel.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};

use ringlane_shared::id::PeerIndex;
use ringlane_shared::limits::{SEND_BUFFER_BYTES, SEND_BUFFERS};
use rustix::net::sockopt::{ip_mtu, ipv6_mtu};

use super::{Completion, Engine, PacketRing, SocketSlot, TunBuffer};
use crate::sys::datagram::{ClassControl, SegmentControl, SendControl};
use crate::sys::socket::unsent_bytes;

/// Without DONTWAIT a send that meets a full socket buffer is parked while later ones pass it.
pub(super) const SEND_FLAGS: libc::c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

/// Whether an error may be of an earlier datagram: what ICMP tells of one is told by the next send, which then did not
/// happen.
fn may_be_past(error: i32) -> bool {
    matches!(
        error,
        libc::ECONNREFUSED
            | libc::EHOSTUNREACH
            | libc::ENETUNREACH
            | libc::EHOSTDOWN
            | libc::ENONET
            | libc::ENOPROTOOPT
            | libc::EMSGSIZE
    )
}

/// An empty buffer for records. Ours until [`PacketRing::release_send_buffer`]; what has been sent from it is not.
#[derive(Debug)]
#[must_use = "a buffer that is not released is lost to the worker"]
pub(crate) struct SendBuffer(u16);

/// What a send carried, for the counters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SendTag {
    pub(crate) peer: PeerIndex,
    pub(crate) packets: u32,
}

/// A train that the kernel did not take whole; its bytes are still there. Ours until [`PacketRing::resend_singly`].
#[derive(Debug)]
#[must_use = "a train that is not sent again keeps its buffer for ever"]
pub(crate) struct RefusedTrain(u16);

/// Records that lie one behind the other, all of `record_bytes` but the last, which may be shorter.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Train {
    /// All of them together.
    pub(crate) bytes: usize,
    /// Each but the last.
    pub(crate) record_bytes: usize,
    /// How many.
    pub(crate) records: u16,
    /// The byte of DSCP and ECN in their outer headers.
    pub(crate) class: u8,
}

impl Train {
    /// Whether all of several records are equally long.
    fn is_uniform(&self) -> bool {
        self.records > 1 && self.bytes == usize::from(self.records) * self.record_bytes
    }

    /// The train with a sentinel, which is written behind it; `room` begins where the train does.
    pub(super) fn with_sentinel(self, room: &mut [u8]) -> Self {
        room[self.bytes] = 0;
        Self { bytes: self.bytes + 1, records: self.records + 1, ..self }
    }
}

/// How much of a send buffer is the kernel's.
#[derive(Clone, Copy, Default)]
pub(super) struct SendState {
    /// Everything before this has been queued and must not be written to.
    queued_bytes: usize,
    sends: u16,
    released: bool,
}

/// One queued send. The engine reads it until its completion.
pub(super) struct SendEntry {
    /// Points at the two behind it.
    pub(super) message: libc::msghdr,
    pub(super) vector: libc::iovec,
    control: SendControl,
    pub(super) socket: SocketSlot,
    buffer: u16,
    /// Where it begins in the slab.
    at: usize,
    pub(super) train: Train,
    tag: SendTag,
    retried: bool,
}

impl SendEntry {
    pub(super) fn empty() -> Self {
        Self {
            // SAFETY: all-zero is a valid `msghdr`: null pointers and lengths.
            message: unsafe { std::mem::zeroed() },
            vector: libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 },
            control: SendControl::default(),
            socket: SocketSlot { index: 0, generation: 0 },
            buffer: 0,
            at: 0,
            train: Train::default(),
            tag: SendTag { peer: PeerIndex(0), packets: 0 },
            retried: false,
        }
    }
}

impl<E: Engine> PacketRing<E> {
    /// Sends one datagram at once, outside the ring: for the few of a lane's QUIC connection.
    pub(crate) fn send_now(&mut self, slot: SocketSlot, datagram: &[u8]) -> io::Result<()> {
        let Some(socket) = self.entry(slot).and_then(|entry| entry.socket.as_ref()) else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        match socket.send(datagram) {
            Err(error) if error.raw_os_error().is_some_and(may_be_past) => socket.send(datagram).map(drop),
            sent => sent.map(drop),
        }
    }

    /// How much the kernel holds of what was sent on a socket, in bytes of its memory. What is queued in the ring does not
    /// count yet.
    pub(crate) fn unsent_bytes(&mut self, slot: SocketSlot) -> u32 {
        let socket = self.entry(slot).and_then(|entry| entry.socket.as_ref());
        // A kernel that does not tell holds nothing back either.
        socket.and_then(|socket| unsent_bytes(socket.as_fd()).ok()).unwrap_or(0)
    }

    /// What the kernel says of the route to the other end of a socket: the MTU of its IP packets. An ICMP message may have
    /// told it.
    pub(crate) fn route_mtu(&mut self, slot: SocketSlot) -> Option<u32> {
        let socket = self.entry(slot)?.socket.as_ref()?;
        match socket.peer_addr().ok()? {
            SocketAddr::V4(_) => ip_mtu(socket).ok(),
            SocketAddr::V6(_) => ipv6_mtu(socket).ok(),
        }
    }

    /// The socket of a refused train, and how long its records are.
    pub(crate) fn refused(&self, train: &RefusedTrain) -> (SocketSlot, usize) {
        let SendEntry { socket, train, .. } = &self.sends[usize::from(train.0)];
        (*socket, train.record_bytes)
    }

    /// Takes back what [`Self::resend_singly`] has concluded: it was not the train that was refused.
    pub(crate) fn trust_trains(&mut self, slot: SocketSlot) {
        let sends_trains = self.sends_trains;
        if let Some(entry) = self.entry(slot) {
            entry.sends_trains = sends_trains;
        }
    }

    /// Whether trains leave a socket as one, as far as is known.
    pub(crate) fn sends_trains(&mut self, slot: SocketSlot) -> bool {
        self.entry(slot).is_some_and(|entry| entry.sends_trains)
    }

    /// An empty buffer for records. When all are on their way, what is queued is submitted first.
    pub(crate) fn take_send_buffer(&mut self) -> io::Result<Option<SendBuffer>> {
        if self.free_send_buffers.is_empty() {
            self.enter()?;
        }
        Ok(self.free_send_buffers.pop().map(|id| {
            self.send_states[usize::from(id)] = SendState::default();
            SendBuffer(id)
        }))
    }

    /// What is left of a send buffer behind everything that was queued from it.
    pub(crate) fn send_room(&mut self, buffer: &SendBuffer) -> &mut [u8] {
        let queued_bytes = self.send_states[usize::from(buffer.0)].queued_bytes;
        let (at, bytes) = (self.send_at(buffer.0) + queued_bytes, SEND_BUFFER_BYTES - queued_bytes);
        let address = self.slab.address(at, bytes);
        // SAFETY: the token shows that the buffer is ours but for what was queued, which lies before the slice; the
        // slice borrows the ring, so nothing of it can be queued meanwhile.
        unsafe { std::slice::from_raw_parts_mut(address.as_ptr(), bytes) }
    }

    /// A filled TUN buffer to read from and the room of a send buffer to write to.
    pub(crate) fn tun_and_send_room(&mut self, from: &TunBuffer, to: &SendBuffer) -> (&[u8], &mut [u8]) {
        let from_bytes = self.tun_buffers.bytes_each;
        let from = self.tun_buffers.address(&self.slab, from.0);
        // SAFETY: the token shows that the buffer is ours, and TUN and send buffers lie in different parts of the slab.
        let from = unsafe { std::slice::from_raw_parts(from.as_ptr(), from_bytes) };
        (from, self.send_room(to))
    }

    /// Queues the first bytes of the buffer's room, a train; the room then begins behind it, with the `behind` bytes that
    /// lie there already.
    pub(crate) fn send(
        &mut self,
        slot: SocketSlot,
        buffer: &SendBuffer,
        mut train: Train,
        behind: usize,
        tag: SendTag,
    ) -> io::Result<()> {
        let at = self.send_at(buffer.0) + self.send_states[usize::from(buffer.0)].queued_bytes;
        let room_bytes = self.send_room(buffer).len();
        train.bytes = train.bytes.min(room_bytes);
        let end = train.bytes + behind;
        if end < room_bytes && self.wants_sentinel(slot, train) {
            let room = self.send_room(buffer);
            room.copy_within(train.bytes..end, train.bytes + 1);
            train = train.with_sentinel(room);
        }
        self.send_states[usize::from(buffer.0)].queued_bytes += train.bytes;
        self.queue_train(slot, buffer.0, at, train, tag)
    }

    /// Lets go of a send buffer; it comes back by itself when all that was queued from it has been sent.
    pub(crate) fn release_send_buffer(&mut self, buffer: SendBuffer) {
        self.release_sent(buffer.0);
    }

    pub(super) fn release_sent(&mut self, buffer: u16) {
        self.send_states[usize::from(buffer)].released = true;
        self.free_if_done(buffer);
    }

    /// Whether a train is to be followed by a sentinel: one whose last datagram is shorter is one that the broken drivers get
    /// right.
    pub(super) fn wants_sentinel(&mut self, slot: SocketSlot, train: Train) -> bool {
        self.ends_with_sentinel && train.is_uniform() && self.sends_trains(slot)
    }

    /// Queues a train that lies at `at` in the slab, record by record where the socket does not take trains.
    pub(super) fn queue_train(
        &mut self,
        slot: SocketSlot,
        buffer: u16,
        at: usize,
        train: Train,
        tag: SendTag,
    ) -> io::Result<()> {
        match train.records <= 1 || self.sends_trains(slot) {
            true => self.queue_send(slot, buffer, at, train, tag),
            false => self.queue_singly(slot, buffer, at, train, tag),
        }
    }

    /// Queues every record of a refused train by itself, and from now on every one on its socket. Returns whether that is
    /// new.
    pub(crate) fn resend_singly(&mut self, train: RefusedTrain) -> io::Result<bool> {
        let SendEntry { socket, buffer, at, train: records, tag, .. } = self.sends[usize::from(train.0)];
        let is_new = self.entry(socket).is_some_and(|entry| std::mem::take(&mut entry.sends_trains));
        // The buffer must not come free before the last record of it is queued.
        self.send_states[usize::from(buffer)].sends += 1;
        self.end_send(train.0);
        let queued = self.queue_singly(socket, buffer, at, records, tag);
        self.send_states[usize::from(buffer)].sends -= 1;
        self.free_if_done(buffer);
        queued.map(|()| is_new)
    }

    /// Gives up the refused trains that nobody has asked for.
    pub(super) fn forget_refused(&mut self) {
        while let Some(completion) = self.completions.pop_front() {
            if let Completion::TrainRefused { train, .. } = completion {
                self.end_send(train.0);
            }
        }
    }

    fn send_at(&self, buffer: u16) -> usize {
        self.send_offset + usize::from(buffer) * SEND_BUFFER_BYTES
    }

    fn queue_singly(&mut self, slot: SocketSlot, buffer: u16, at: usize, train: Train, tag: SendTag) -> io::Result<()> {
        let mut left = u32::from(train.records);
        let mut packets = tag.packets;
        let end = at + train.bytes;
        for at in (at..end).step_by(train.record_bytes.max(1)) {
            let bytes = train.record_bytes.min(end - at);
            // Which record has how many packets is not known any more; a drop is counted as its fair share.
            let share = packets / left.max(1);
            (packets, left) = (packets - share, left.saturating_sub(1));
            let record = Train { bytes, record_bytes: bytes, records: 1, class: train.class };
            self.queue_send(slot, buffer, at, record, SendTag { packets: share, ..tag })?;
        }
        Ok(())
    }

    fn queue_send(&mut self, slot: SocketSlot, buffer: u16, at: usize, train: Train, tag: SendTag) -> io::Result<()> {
        if self.free_sends.is_empty() {
            self.enter()?;
        }
        let Some(id) = self.free_sends.pop() else {
            let error = io::Error::from_raw_os_error(libc::EAGAIN);
            self.completions.push_back(Completion::SendFailed { socket: slot, tag, error });
            return Ok(());
        };
        let entry = &mut self.sends[usize::from(id)];
        (entry.socket, entry.buffer, entry.at) = (slot, buffer, at);
        (entry.train, entry.tag, entry.retried) = (train, tag, false);
        self.send_states[usize::from(buffer)].sends += 1;
        self.sends_queued += 1;
        if let Some(socket) = self.entry(slot) {
            socket.sends += 1;
        }
        self.submit_send(id)
    }

    /// Has the engine do send `id`, whose entry is filled and counted.
    fn submit_send(&mut self, id: u16) -> io::Result<()> {
        let SendEntry { socket: slot, at, train, .. } = self.sends[usize::from(id)];
        let address = self.slab.address(at, train.bytes);
        let entry = self.entry(slot).and_then(|entry| Some((entry.socket.as_ref()?.as_raw_fd(), entry.is_ipv6)));
        let Some((socket, is_ipv6)) = entry else {
            self.end_send(id);
            return Ok(());
        };
        let entry = &mut self.sends[usize::from(id)];
        entry.vector = libc::iovec { iov_base: address.as_ptr().cast(), iov_len: train.bytes };
        entry.message.msg_iov = &raw mut entry.vector;
        entry.message.msg_iovlen = 1;
        if train.class != 0 {
            entry.control.class = ClassControl::new(train.class, is_ipv6);
        }
        if train.records > 1 {
            entry.control.segments = SegmentControl::new(train.record_bytes as u16);
            entry.message.msg_control = (&raw mut entry.control).cast();
            entry.message.msg_controllen = match train.class {
                0 => size_of::<SegmentControl>(),
                _ => size_of::<SendControl>(),
            } as _;
        } else if train.class != 0 {
            entry.message.msg_control = (&raw mut entry.control.class).cast();
            entry.message.msg_controllen = size_of::<ClassControl>() as _;
        } else {
            entry.message.msg_control = std::ptr::null_mut();
            entry.message.msg_controllen = 0;
        }
        let queued = E::send(self, id, socket);
        if queued.is_err() {
            self.end_send(id);
        }
        queued
    }

    pub(super) fn complete_send(&mut self, id: u16, error: Option<io::Error>) {
        let Some(error) = error else { return self.end_send(id) };
        let entry = &mut self.sends[usize::from(id)];
        match error.raw_os_error() {
            Some(error) if may_be_past(error) && !entry.retried => {
                entry.retried = true;
                let (socket, tag) = (entry.socket, entry.tag);
                if let Err(error) = self.submit_send(id) {
                    self.completions.push_back(Completion::SendFailed { socket, tag, error });
                }
            }
            // The device cannot, or there are too many segments for this kernel.
            Some(libc::EIO | libc::EINVAL) if entry.train.records > 1 => {
                self.completions.push_back(Completion::TrainRefused { train: RefusedTrain(id), error });
            }
            _ => {
                self.completions.push_back(Completion::SendFailed { socket: entry.socket, tag: entry.tag, error });
                self.end_send(id);
            }
        }
    }

    fn end_send(&mut self, id: u16) {
        let SendEntry { socket, buffer, .. } = self.sends[usize::from(id)];
        self.sends_queued -= 1;
        self.free_sends.push(id);
        self.send_states[usize::from(buffer)].sends -= 1;
        self.free_if_done(buffer);
        if let Some(entry) = self.entry(socket) {
            entry.sends -= 1;
        }
        self.close_if_idle(socket);
    }

    fn free_if_done(&mut self, buffer: u16) {
        let state = &mut self.send_states[usize::from(buffer)];
        if state.released && state.sends == 0 {
            state.released = false;
            match buffer.checked_sub(SEND_BUFFERS) {
                None => self.free_send_buffers.push(buffer),
                Some(forwarded) => E::provide_forward(self, forwarded),
            }
        }
    }
}
