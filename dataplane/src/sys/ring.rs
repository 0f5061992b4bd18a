//! The packet ring: one io_uring per worker that reads the TUN, receives on all lanes' sockets, and submits what a
//! turn has produced with a single system call.
//!
//! ```text
//! READ_MULTISHOT  (TUN)      -> TunBuffer      -> recycle
//! RECVMSG_MULTISHOT (socket) -> ReceiveBuffer  -> freeze -> WRITEV (TUN) ... -> back to the kernel by itself
//! take_send_buffer           -> SendBuffer     -> SEND (socket)          ... -> back to the pool by itself
//! ```
//! Every buffer is in the kernel's hands or in ours. Ours is shown by a token ([`TunBuffer`], [`ReceiveBuffer`],
//! [`SendBuffer`]) that cannot be copied; giving the buffer away consumes it.

use std::collections::VecDeque;
use std::io;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::net::UdpSocket;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::NonNull;

use io_uring::types::{BufRingEntry, CancelBuilder, Fd, RecvMsgOut};
use io_uring::{IoUring, cqueue, opcode, squeue};
use ringlane_shared::id::PeerIndex;
use ringlane_shared::limits::{
    RING_ENTRIES, SENDS_IN_FLIGHT, TUN_READS_IN_FLIGHT, TUN_WRITES_IN_FLIGHT, UDP_RECEIVES_IN_FLIGHT,
};

use super::datagram::{Datagram, parse_overflow, parse_socket_address};
use super::provided_buffers::ProvidedBuffers;
use super::slab::Slab;
use super::socket::report_receive_overflow;
use super::vnet_header::{VNET_HEADER_BYTES, VnetHeader};

const TUN_GROUP: u16 = 0;
const RECEIVE_GROUP: u16 = 1;

/// `io_uring_recvmsg_out`, then room for an IPv6 socket address and for one `SO_RXQ_OVFL` control message.
const NAME_BYTES: usize = size_of::<libc::sockaddr_in6>();
const CONTROL_BYTES: usize = 24;
const RECEIVE_PREFIX_BYTES: usize = 16 + NAME_BYTES + CONTROL_BYTES;

const PAGE_BYTES: usize = 4096;
const CACHE_LINE_BYTES: usize = 64;

/// Rounds of cancelling and reaping before a ring that does not drain is given up and its memory leaked.
const DRAIN_ROUNDS: usize = 1000;

const ENTER_GETEVENTS: u32 = 1;

/// A filled TUN read: a virtio network header and an inner packet. Ours until [`PacketRing::recycle_tun`].
#[derive(Debug)]
#[must_use = "a buffer that is not recycled is lost to the worker"]
pub(crate) struct TunBuffer(u16);

/// A received datagram's buffer. Ours until it is frozen.
#[derive(Debug)]
#[must_use = "a buffer that is not frozen and released is lost to the worker"]
pub(crate) struct ReceiveBuffer(u16);

/// A received datagram's buffer whose bytes no longer change: TUN writes may read from it.
#[derive(Debug)]
#[must_use = "a buffer that is not released is lost to the worker"]
pub(crate) struct FrozenBuffer(u16);

/// An empty buffer for one datagram. Ours until [`PacketRing::send`] or [`PacketRing::return_send_buffer`].
#[derive(Debug)]
#[must_use = "a buffer that is neither sent nor returned is lost to the worker"]
pub(crate) struct SendBuffer(u16);

/// Names a socket of the ring; a slot that is used again has another generation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SocketSlot {
    index: u16,
    generation: u16,
}

impl SocketSlot {
    /// The slot as a table position.
    pub(crate) fn position(self) -> usize {
        usize::from(self.index)
    }
}

/// What a failed send carried, for the counters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SendTag {
    pub(crate) peer: PeerIndex,
    pub(crate) packets: u16,
}

/// Something the kernel has finished.
#[derive(Debug)]
pub(crate) enum Completion {
    /// A packet from the TUN.
    TunRead { buffer: TunBuffer, bytes: usize },
    /// The TUN read has to be armed again; `ENOBUFS` means that all its buffers are in our hands.
    TunReadEnded { error: Option<io::Error> },
    /// A datagram.
    Received { socket: SocketSlot, buffer: ReceiveBuffer, datagram: Datagram },
    /// The socket's receive has to be armed again.
    ReceiveEnded { socket: SocketSlot, error: Option<io::Error> },
    /// The kernel did not take a datagram.
    SendFailed { tag: SendTag, error: io::Error },
    /// The TUN did not take a packet.
    TunWriteFailed { peer: PeerIndex },
}

/// Which operation a completion belongs to; travels through the kernel as `user_data`.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Operation {
    TunRead = 1,
    Receive = 2,
    Send = 3,
    TunWrite = 4,
    Cancel = 5,
}

fn user_data(operation: Operation, index: u16, generation: u16) -> u64 {
    (operation as u64) << 32 | u64::from(generation) << 16 | u64::from(index)
}

struct SocketEntry {
    generation: u16,
    socket: Option<UdpSocket>,
    receiving: bool,
    closing: bool,
    sends: u16,
}

#[derive(Clone, Copy)]
struct SendEntry {
    socket: SocketSlot,
    bytes: u32,
    tag: SendTag,
    retried: bool,
}

/// The memory of one queued TUN write. The kernel reads it between submission and completion.
struct WriteEntry {
    vectors: [libc::iovec; 2],
    header: [u8; VNET_HEADER_BYTES],
    buffer: u16,
    peer: PeerIndex,
}

/// How far a receive buffer is from going back to the kernel.
#[derive(Clone, Copy, Default)]
struct ReceiveState {
    writes: u16,
    released: bool,
}

/// One worker's ring, its memory, its TUN queue and its lanes' sockets. Lives and dies on the worker's thread.
pub(crate) struct PacketRing {
    ring: IoUring,
    slab: ManuallyDrop<Slab>,
    tun: OwnedFd,
    tun_reading: bool,
    tun_buffers: ProvidedBuffers,
    receive_buffers: ProvidedBuffers,
    receive_states: Box<[ReceiveState]>,
    receive_message: Box<libc::msghdr>,
    sockets: Vec<SocketEntry>,
    free_sockets: Vec<u16>,
    send_offset: usize,
    send_bytes: usize,
    sends: Box<[SendEntry]>,
    free_sends: Vec<u16>,
    sends_queued: usize,
    writes: Box<[WriteEntry]>,
    free_writes: Vec<u16>,
    completions: VecDeque<Completion>,
    enters: u64,
    must_publish: bool,
}

impl PacketRing {
    /// Makes the ring and its memory for inner packets of up to `mtu` bytes and datagrams of up to `datagram_bytes`;
    /// `wake` is an eventfd that the kernel signals while [`PacketRing::set_wakeful`] says so.
    pub(crate) fn new(tun: OwnedFd, wake: &OwnedFd, mtu: u16, datagram_bytes: usize) -> io::Result<Self> {
        let mut ring = IoUring::builder()
            .dontfork()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(RING_ENTRIES * 4)
            .build(RING_ENTRIES)?;
        ring.submitter().register_eventfd(wake.as_raw_fd())?;
        ring.completion().disable_eventfd();

        let round = |bytes: usize, to: usize| bytes.div_ceil(to) * to;
        let tun_bytes = round(VNET_HEADER_BYTES + usize::from(mtu), CACHE_LINE_BYTES);
        let receive_bytes = round(RECEIVE_PREFIX_BYTES + datagram_bytes, CACHE_LINE_BYTES);
        let send_bytes = round(datagram_bytes, CACHE_LINE_BYTES);
        let entry_bytes = |count: u16| round(usize::from(count) * size_of::<BufRingEntry>(), PAGE_BYTES);

        let tun_entries_at = 0;
        let receive_entries_at = tun_entries_at + entry_bytes(TUN_READS_IN_FLIGHT);
        let tun_at = receive_entries_at + entry_bytes(UDP_RECEIVES_IN_FLIGHT);
        let receive_at = tun_at + tun_bytes * usize::from(TUN_READS_IN_FLIGHT);
        let send_at = receive_at + receive_bytes * usize::from(UDP_RECEIVES_IN_FLIGHT);
        let slab = Slab::map(send_at + send_bytes * usize::from(SENDS_IN_FLIGHT))?;

        let register = |at: usize, count: u16, group: u16, offset: usize, bytes_each: usize| {
            let entries: NonNull<BufRingEntry> =
                slab.address(at, usize::from(count) * size_of::<BufRingEntry>()).cast();
            // SAFETY: the entries lie page-aligned in the slab, which is unmapped only after the ring is closed.
            unsafe { ring.submitter().register_buf_ring_with_flags(entries.as_ptr() as u64, count, group, 0) }?;
            let mut buffers = ProvidedBuffers { entries, count, tail: 0, offset, bytes_each };
            (0..count).for_each(|id| buffers.provide(&slab, id));
            buffers.publish();
            io::Result::Ok(buffers)
        };
        let tun_buffers = register(tun_entries_at, TUN_READS_IN_FLIGHT, TUN_GROUP, tun_at, tun_bytes)?;
        let receive_buffers =
            register(receive_entries_at, UDP_RECEIVES_IN_FLIGHT, RECEIVE_GROUP, receive_at, receive_bytes)?;

        // SAFETY: all-zero is a valid `msghdr`: null pointers and lengths.
        let mut receive_message: Box<libc::msghdr> = Box::new(unsafe { std::mem::zeroed() });
        receive_message.msg_namelen = NAME_BYTES as libc::socklen_t;
        receive_message.msg_controllen = CONTROL_BYTES as _;

        let no_socket = SocketSlot { index: 0, generation: 0 };
        let no_tag = SendTag { peer: PeerIndex(0), packets: 0 };
        let no_send = SendEntry { socket: no_socket, bytes: 0, tag: no_tag, retried: false };
        let no_vector = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Ok(Self {
            ring,
            slab: ManuallyDrop::new(slab),
            tun,
            tun_reading: false,
            tun_buffers,
            receive_buffers,
            receive_states: vec![ReceiveState::default(); usize::from(UDP_RECEIVES_IN_FLIGHT)].into(),
            receive_message,
            sockets: Vec::new(),
            free_sockets: Vec::new(),
            send_offset: send_at,
            send_bytes,
            sends: vec![no_send; usize::from(SENDS_IN_FLIGHT)].into(),
            free_sends: (0..SENDS_IN_FLIGHT).rev().collect(),
            sends_queued: 0,
            writes: (0..TUN_WRITES_IN_FLIGHT)
                .map(|_| WriteEntry {
                    vectors: [no_vector; 2],
                    header: [0; VNET_HEADER_BYTES],
                    buffer: 0,
                    peer: PeerIndex(0),
                })
                .collect(),
            free_writes: (0..TUN_WRITES_IN_FLIGHT).rev().collect(),
            completions: VecDeque::with_capacity(RING_ENTRIES as usize * 4),
            enters: 0,
            must_publish: false,
        })
    }

    /// Times the ring was entered so far.
    pub(crate) fn enters(&self) -> u64 {
        self.enters
    }

    /// Whether a completion shall signal the eventfd. Off while the worker is busy anyway; after switching it on,
    /// enter once more and find nothing before sleeping.
    pub(crate) fn set_wakeful(&mut self, wakeful: bool) {
        let completions = self.ring.completion();
        if wakeful {
            completions.enable_eventfd();
        } else {
            completions.disable_eventfd();
        }
    }

    /// The next finished operation that the last [`PacketRing::enter`] has found.
    pub(crate) fn next_completion(&mut self) -> Option<Completion> {
        self.completions.pop_front()
    }

    /// How many times [`PacketRing::next_completion`] has something.
    pub(crate) fn completion_count(&self) -> usize {
        self.completions.len()
    }

    /// Whether nothing is left to be handled, submitted or taken in: only what happens from now on signals the eventfd.
    pub(crate) fn is_idle(&mut self) -> bool {
        let submission = self.ring.submission();
        // The kernel runs a limited amount of its deferred work in one go, and leaves what is over to the next.
        self.completions.is_empty() && submission.is_empty() && !submission.taskrun() && !submission.cq_overflow()
    }

    /// Submits everything queued, runs the kernel's deferred work and takes in what has finished: the one system call
    /// of a turn.
    pub(crate) fn enter(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.must_publish) {
            self.tun_buffers.publish();
            self.receive_buffers.publish();
        }
        let queued = self.ring.submission().len() as u32;
        self.enters += 1;
        // SAFETY: no argument is passed, and every queued entry points at memory that stays until its completion:
        // the slab, `writes`, `receive_message`.
        let entered = unsafe { self.ring.submitter().enter::<libc::sigset_t>(queued, 0, ENTER_GETEVENTS, None) };
        self.reap();
        match entered {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // Interrupted, out of memory for the moment, or completions to be taken first: the next turn retries.
                Some(libc::EINTR | libc::EAGAIN | libc::EBUSY) => Ok(()),
                _ => Err(error),
            },
        }
    }

    // TUN

    /// Starts reading the TUN if it is not being read.
    pub(crate) fn arm_tun_read(&mut self) -> io::Result<()> {
        if !self.tun_reading {
            let read = opcode::ReadMulti::new(Fd(self.tun.as_raw_fd()), 0, TUN_GROUP).build();
            self.push(read.user_data(user_data(Operation::TunRead, 0, 0)))?;
            self.tun_reading = true;
        }
        Ok(())
    }

    /// The first `bytes` of a filled TUN buffer.
    pub(crate) fn tun_bytes(&mut self, buffer: &TunBuffer, bytes: usize) -> &mut [u8] {
        let bytes = bytes.min(self.tun_buffers.bytes_each);
        let address = self.slab.address(self.tun_buffers.range(buffer.0), bytes);
        // SAFETY: the token shows that the buffer is ours; the slice borrows the ring, so nothing gives the buffer
        // away meanwhile.
        unsafe { std::slice::from_raw_parts_mut(address.as_ptr(), bytes) }
    }

    /// Gives a TUN buffer back to the kernel.
    pub(crate) fn recycle_tun(&mut self, buffer: TunBuffer) {
        self.tun_buffers.provide(&self.slab, buffer.0);
        self.must_publish = true;
    }

    /// Queues the write of one packet, `range` of the buffer, to the TUN.
    pub(crate) fn tun_write(
        &mut self,
        buffer: &FrozenBuffer,
        range: Range<usize>,
        header: VnetHeader,
        peer: PeerIndex,
    ) -> io::Result<()> {
        if self.free_writes.is_empty() {
            self.enter()?;
        }
        let Some(id) = self.free_writes.pop() else {
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        };
        let packet = self.slab.address(self.receive_buffers.range(buffer.0) + range.start, range.len());
        let entry = &mut self.writes[usize::from(id)];
        entry.header = header.to_bytes();
        entry.vectors = [
            libc::iovec { iov_base: entry.header.as_mut_ptr().cast(), iov_len: VNET_HEADER_BYTES },
            libc::iovec { iov_base: packet.as_ptr().cast(), iov_len: range.len() },
        ];
        entry.buffer = buffer.0;
        entry.peer = peer;
        let write = opcode::Writev::new(Fd(self.tun.as_raw_fd()), entry.vectors.as_ptr(), 2).build();
        if let Err(error) = self.push(write.user_data(user_data(Operation::TunWrite, id, 0))) {
            self.free_writes.push(id);
            return Err(error);
        }
        // No completion of it has been taken in yet: that takes an enter, and the entry was queued behind it.
        self.receive_states[usize::from(buffer.0)].writes += 1;
        Ok(())
    }

    /// Writes one packet to the TUN at once, outside the ring: for the few that arrived before their lane did.
    pub(crate) fn tun_write_now(&self, packet: &[u8], header: VnetHeader) -> io::Result<()> {
        let bytes = [&header.to_bytes()[..], packet].concat();
        rustix::io::write(&self.tun, &bytes)?;
        Ok(())
    }

    // Sockets

    /// Takes in a connected socket and starts receiving on it.
    pub(crate) fn add_socket(&mut self, socket: UdpSocket) -> io::Result<SocketSlot> {
        report_receive_overflow(socket.as_fd())?;
        let index = match self.free_sockets.pop() {
            Some(index) => index,
            None => {
                let index = u16::try_from(self.sockets.len()).map_err(|_| io::Error::other("too many lanes"))?;
                self.sockets.push(SocketEntry {
                    generation: 0,
                    socket: None,
                    receiving: false,
                    closing: false,
                    sends: 0,
                });
                index
            }
        };
        let entry = &mut self.sockets[usize::from(index)];
        entry.generation = entry.generation.wrapping_add(1);
        entry.socket = Some(socket);
        entry.closing = false;
        let slot = SocketSlot { index, generation: entry.generation };
        if let Err(error) = self.arm_receive(slot) {
            self.close_socket(slot)?;
            return Err(error);
        }
        Ok(slot)
    }

    /// Starts receiving on a socket if it is not being received on.
    pub(crate) fn arm_receive(&mut self, slot: SocketSlot) -> io::Result<()> {
        let message: *const libc::msghdr = &raw const *self.receive_message;
        let Some(entry) = self.entry(slot) else { return Ok(()) };
        let Some(socket) = entry.socket.as_ref().filter(|_| !entry.receiving && !entry.closing) else {
            return Ok(());
        };
        let receive = opcode::RecvMsgMulti::new(Fd(socket.as_raw_fd()), message, RECEIVE_GROUP).build();
        entry.receiving = true;
        let queued = self.push(receive.user_data(user_data(Operation::Receive, slot.index, slot.generation)));
        if queued.is_err()
            && let Some(entry) = self.entry(slot)
        {
            entry.receiving = false;
        }
        queued
    }

    /// Stops receiving on a socket and closes it once the kernel has let go of it. No completion of it follows.
    pub(crate) fn close_socket(&mut self, slot: SocketSlot) -> io::Result<()> {
        let Some(entry) = self.entry(slot) else { return Ok(()) };
        entry.closing = true;
        if entry.receiving {
            let cancel = opcode::AsyncCancel::new(user_data(Operation::Receive, slot.index, slot.generation)).build();
            self.push(cancel.user_data(user_data(Operation::Cancel, 0, 0)))?;
        }
        self.close_if_idle(slot);
        Ok(())
    }

    /// Sends one datagram at once, outside the ring: for the few of a lane's QUIC connection.
    pub(crate) fn send_now(&mut self, slot: SocketSlot, datagram: &[u8]) -> io::Result<()> {
        let Some(socket) = self.entry(slot).and_then(|entry| entry.socket.as_ref()) else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        match socket.send(datagram) {
            // A past ICMP error is told by the next send, which then did not happen.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => socket.send(datagram).map(drop),
            sent => sent.map(drop),
        }
    }

    /// The whole of a received datagram's buffer; the datagram is the range that came with it.
    pub(crate) fn receive_bytes(&mut self, buffer: &ReceiveBuffer) -> &mut [u8] {
        let bytes = self.receive_buffers.bytes_each;
        let address = self.slab.address(self.receive_buffers.range(buffer.0), bytes);
        // SAFETY: the token shows that the buffer is ours and not frozen, so no queued write reads it; the slice
        // borrows the ring, so nothing gives the buffer away meanwhile.
        unsafe { std::slice::from_raw_parts_mut(address.as_ptr(), bytes) }
    }

    /// Ends all changes to the buffer, so that TUN writes may be queued from it.
    pub(crate) fn freeze(&mut self, buffer: ReceiveBuffer) -> FrozenBuffer {
        self.receive_states[usize::from(buffer.0)] = ReceiveState::default();
        FrozenBuffer(buffer.0)
    }

    /// Gives the buffer back to the kernel as soon as the TUN writes queued from it are done.
    pub(crate) fn release(&mut self, buffer: FrozenBuffer) {
        let state = &mut self.receive_states[usize::from(buffer.0)];
        state.released = true;
        if state.writes == 0 {
            self.receive_buffers.provide(&self.slab, buffer.0);
            self.must_publish = true;
        }
    }

    /// An empty buffer for one datagram, if any is free.
    pub(crate) fn take_send_buffer(&mut self) -> Option<SendBuffer> {
        self.free_sends.pop().map(SendBuffer)
    }

    /// Puts back a buffer that was not sent.
    pub(crate) fn return_send_buffer(&mut self, buffer: SendBuffer) {
        self.free_sends.push(buffer.0);
    }

    /// A filled TUN buffer to read from and a send buffer to write to.
    pub(crate) fn tun_and_send_bytes(&mut self, from: &TunBuffer, to: &SendBuffer) -> (&[u8], &mut [u8]) {
        let from_bytes = self.tun_buffers.bytes_each;
        let from = self.slab.address(self.tun_buffers.range(from.0), from_bytes);
        // SAFETY: the token shows that the buffer is ours, and TUN and send buffers lie in different parts of the slab.
        let from = unsafe { std::slice::from_raw_parts(from.as_ptr(), from_bytes) };
        (from, self.send_bytes(to))
    }

    /// The whole of a send buffer.
    pub(crate) fn send_bytes(&mut self, buffer: &SendBuffer) -> &mut [u8] {
        let at = self.send_offset + usize::from(buffer.0) * self.send_bytes;
        let address = self.slab.address(at, self.send_bytes);
        // SAFETY: the token shows that the buffer is ours; the slice borrows the ring, so it cannot be sent meanwhile.
        unsafe { std::slice::from_raw_parts_mut(address.as_ptr(), self.send_bytes) }
    }

    /// Queues the first `bytes` of the buffer as one datagram; the buffer comes back by itself.
    pub(crate) fn send(&mut self, slot: SocketSlot, buffer: SendBuffer, bytes: usize, tag: SendTag) -> io::Result<()> {
        let bytes = bytes.min(self.send_bytes) as u32;
        self.sends[usize::from(buffer.0)] = SendEntry { socket: slot, bytes, tag, retried: false };
        self.queue_send(buffer.0)
    }

    fn queue_send(&mut self, id: u16) -> io::Result<()> {
        let SendEntry { socket: slot, bytes, .. } = self.sends[usize::from(id)];
        let address = self.slab.address(self.send_offset + usize::from(id) * self.send_bytes, bytes as usize);
        let Some(entry) = self.entry(slot) else {
            self.free_sends.push(id);
            return Ok(());
        };
        let Some(socket) = entry.socket.as_ref() else {
            self.free_sends.push(id);
            return Ok(());
        };
        // Without DONTWAIT a send that meets a full socket buffer is parked while later ones pass it.
        let send = opcode::Send::new(Fd(socket.as_raw_fd()), address.as_ptr(), bytes)
            .flags(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
            .build();
        entry.sends += 1;
        self.sends_queued += 1;
        let queued = self.push(send.user_data(user_data(Operation::Send, id, 0)));
        if queued.is_err() {
            self.end_send(id, slot);
        }
        queued
    }

    fn end_send(&mut self, id: u16, slot: SocketSlot) {
        self.sends_queued -= 1;
        if let Some(entry) = self.entry(slot) {
            entry.sends -= 1;
        }
        self.free_sends.push(id);
        self.close_if_idle(slot);
    }

    // Inside

    fn entry(&mut self, slot: SocketSlot) -> Option<&mut SocketEntry> {
        self.sockets.get_mut(slot.position()).filter(|entry| entry.generation == slot.generation)
    }

    fn push(&mut self, entry: squeue::Entry) -> io::Result<()> {
        if self.ring.submission().is_full() {
            self.enter()?;
        }
        // SAFETY: the entry's pointers lead into the slab, `writes` or `receive_message`, none of which move or end
        // before the ring does, and whose bytes nothing of ours changes until the completion (the tokens see to it).
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.map_err(|_| io::Error::other("the submission queue is full and the kernel takes nothing from it"))
    }

    fn reap(&mut self) {
        loop {
            let mut batch = [const { MaybeUninit::<cqueue::Entry>::uninit() }; 64];
            let finished = self.ring.completion().fill(&mut batch);
            if finished.is_empty() {
                return;
            }
            for entry in finished {
                self.complete(entry.user_data(), entry.result(), entry.flags());
            }
        }
    }

    fn complete(&mut self, user_data: u64, result: i32, flags: u32) {
        let (index, generation) = (user_data as u16, (user_data >> 16) as u16);
        let operation = (user_data >> 32) as u8;
        let error = (result < 0).then(|| io::Error::from_raw_os_error(-result));
        match operation {
            operation if operation == Operation::TunRead as u8 => {
                if let (None, Some(id)) = (&error, cqueue::buffer_select(flags)) {
                    self.completions.push_back(Completion::TunRead { buffer: TunBuffer(id), bytes: result as usize });
                }
                if !cqueue::more(flags) {
                    self.tun_reading = false;
                    self.completions.push_back(Completion::TunReadEnded { error });
                }
            }
            operation if operation == Operation::Receive as u8 => {
                let socket = SocketSlot { index, generation };
                if let (None, Some(id)) = (&error, cqueue::buffer_select(flags)) {
                    let buffer = ReceiveBuffer(id);
                    let datagram = self.parse_received(&buffer, result as usize);
                    self.completions.push_back(Completion::Received { socket, buffer, datagram });
                }
                if !cqueue::more(flags) {
                    let closing = self.entry(socket).is_none_or(|entry| {
                        entry.receiving = false;
                        entry.closing
                    });
                    if closing {
                        self.close_if_idle(socket);
                    } else {
                        self.completions.push_back(Completion::ReceiveEnded { socket, error });
                    }
                }
            }
            operation if operation == Operation::Send as u8 => self.complete_send(index, error),
            operation if operation == Operation::TunWrite as u8 => {
                let WriteEntry { buffer, peer, .. } = self.writes[usize::from(index)];
                self.free_writes.push(index);
                if error.is_some() {
                    self.completions.push_back(Completion::TunWriteFailed { peer });
                }
                let state = &mut self.receive_states[usize::from(buffer)];
                state.writes -= 1;
                if state.released && state.writes == 0 {
                    self.receive_buffers.provide(&self.slab, buffer);
                    self.must_publish = true;
                }
            }
            _ => {}
        }
    }

    fn complete_send(&mut self, id: u16, error: Option<io::Error>) {
        let SendEntry { socket, tag, retried, .. } = self.sends[usize::from(id)];
        let Some(error) = error else { return self.end_send(id, socket) };
        // A past ICMP error is told by the next send, which then did not happen.
        if error.kind() == io::ErrorKind::ConnectionRefused && !retried {
            self.sends_queued -= 1;
            if let Some(entry) = self.entry(socket) {
                entry.sends -= 1;
            }
            self.sends[usize::from(id)].retried = true;
            if let Err(error) = self.queue_send(id) {
                self.completions.push_back(Completion::SendFailed { tag, error });
            }
            return;
        }
        self.completions.push_back(Completion::SendFailed { tag, error });
        self.end_send(id, socket);
    }

    fn close_if_idle(&mut self, slot: SocketSlot) {
        let Some(entry) = self.entry(slot) else { return };
        if entry.closing && !entry.receiving && entry.sends == 0 && entry.socket.take().is_some() {
            // The generation moves on now, so that no late message finds the next socket of this slot.
            entry.generation = entry.generation.wrapping_add(1);
            self.free_sockets.push(slot.index);
        }
    }

    fn parse_received(&mut self, buffer: &ReceiveBuffer, bytes: usize) -> Datagram {
        let address = self.slab.address(self.receive_buffers.range(buffer.0), self.receive_buffers.bytes_each);
        let bytes = bytes.min(self.receive_buffers.bytes_each);
        // SAFETY: the token shows that the buffer is ours, and the slice ends before the token is passed on.
        let received = unsafe { std::slice::from_raw_parts(address.as_ptr(), bytes) };
        let Ok(message) = RecvMsgOut::parse(received, &self.receive_message) else {
            return Datagram { range: 0..0, from: None, overflow: None };
        };
        let payload_bytes = if message.is_payload_truncated() { 0 } else { message.payload_data().len() };
        Datagram {
            range: RECEIVE_PREFIX_BYTES..RECEIVE_PREFIX_BYTES + payload_bytes,
            from: parse_socket_address(message.name_data()),
            overflow: parse_overflow(message.control_data()),
        }
    }

    /// Whether the kernel still holds an operation of ours.
    fn is_busy(&self) -> bool {
        self.tun_reading
            || self.sends_queued > 0
            || self.free_writes.len() < self.writes.len()
            || self.sockets.iter().any(|entry| entry.receiving || entry.sends > 0)
    }
}

impl Drop for PacketRing {
    fn drop(&mut self) {
        let _ = self.enter();
        for _ in 0..DRAIN_ROUNDS {
            if !self.is_busy() {
                break;
            }
            // Nothing left to cancel is an error too; the completions tell when all is done.
            let _ = self.ring.submitter().register_sync_cancel(None, CancelBuilder::any());
            if self.enter().is_err() {
                break;
            }
        }
        // A leak at the end of a worker is harmless, memory under the kernel's hands is not.
        if self.is_busy() {
            std::mem::forget(std::mem::take(&mut self.writes));
        } else {
            // SAFETY: the field is not used again; the kernel has finished every operation that pointed into it.
            unsafe { ManuallyDrop::drop(&mut self.slab) };
        }
    }
}

#[cfg(test)]
mod on_the_kernel;
