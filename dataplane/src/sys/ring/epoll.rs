//! The engine on epoll, for kernels without io_uring: one `sendmmsg` for each lane's sends in a row, a `writev` for each
//! TUN write, then as many reads of the TUN and as many `recvmmsg` as there are buffers for. It sleeps in `epoll_wait`,
//! in which the eventfd is too.
//!
//! The kernel touches memory only within a system call, so whatever is not in a token's hands is simply ours. What may be
//! taken in is remembered from one enter to the next: no enter asks about a socket that nothing was heard of, however
//! many there are.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use ringlane_shared::limits::{
    EPOLL_EVENTS, FORWARD_RECEIVES_IN_FLIGHT, RECEIVES_PER_CALL, SENDS_IN_FLIGHT, SENDS_PER_CALL, TUN_READS_IN_FLIGHT,
    TUN_WRITES_IN_FLIGHT, UDP_RECEIVES_IN_FLIGHT,
};
use rustix::event::{Timespec, epoll};

use super::receive::RECEIVE_PREFIX_BYTES;
use super::send::SEND_FLAGS;
use super::{Buffers, Engine, PacketRing, SocketSlot};
use crate::sys::datagram::{CONTROL_BYTES, Control, Datagram, NAME_BYTES, parse_socket_address};
use crate::sys::slab::Slab;

/// Where a receive buffer has the control messages; the sender's address lies before them, the datagram behind.
const CONTROL_AT: usize = NAME_BYTES.next_multiple_of(8);
const _: () = assert!(CONTROL_AT + CONTROL_BYTES <= RECEIVE_PREFIX_BYTES);

/// What an event is about, where it is not a socket: those are named by 32 bits.
const WAKE: u64 = 1 << 32;
const TUN: u64 = 2 << 32;

/// How long a worker sleeps without a deadline; nothing depends on it.
const SLEEP_MAX: Duration = Duration::from_secs(3600);

/// What is known of the socket in a slot.
#[derive(Clone, Copy, Default)]
struct Watched {
    /// Of the socket that was made known to epoll last.
    generation: u16,
    /// It is in [`Intake::readable`].
    is_listed: bool,
    is_forward: bool,
}

/// What is received into buffers of one kind.
struct Intake {
    /// Sockets that may have something, each once, in the order of their turns.
    readable: VecDeque<SocketSlot>,
    free_buffers: Vec<u16>,
}

impl Intake {
    fn new(buffers: u16) -> Self {
        Self { readable: VecDeque::new(), free_buffers: (0..buffers).rev().collect() }
    }
}

/// One epoll instance, what it has told, and the buffers that wait to be filled.
pub(crate) struct Epoll {
    epoll: OwnedFd,
    /// The eventfd was signalled, and nobody has slept since.
    is_woken: bool,
    /// The last sleep has just asked what there is.
    is_fresh: bool,
    tun_is_readable: bool,
    free_tun_buffers: Vec<u16>,
    watched: Vec<Watched>,
    of_lanes: Intake,
    of_forwards: Intake,
    sends: VecDeque<u16>,
    writes: Vec<u16>,
    calls: u64,
}

impl Engine for Epoll {
    fn slab_bytes() -> usize {
        0
    }

    fn new(
        _slab: &Slab,
        _tun: Buffers,
        _receive: Buffers,
        _forward: Buffers,
        tun: &OwnedFd,
        wake: &OwnedFd,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        // Told once for each signal, so that nobody has to read the eventfd.
        epoll::add(&epoll, wake, epoll::EventData::new_u64(WAKE), epoll::EventFlags::IN | epoll::EventFlags::ET)?;
        epoll::add(&epoll, tun, epoll::EventData::new_u64(TUN), epoll::EventFlags::IN)?;
        Ok(Self {
            epoll,
            is_woken: false,
            is_fresh: false,
            tun_is_readable: false,
            free_tun_buffers: (0..TUN_READS_IN_FLIGHT).rev().collect(),
            watched: Vec::new(),
            of_lanes: Intake::new(UDP_RECEIVES_IN_FLIGHT),
            of_forwards: Intake::new(FORWARD_RECEIVES_IN_FLIGHT),
            sends: VecDeque::with_capacity(usize::from(SENDS_IN_FLIGHT)),
            writes: Vec::with_capacity(usize::from(TUN_WRITES_IN_FLIGHT)),
            calls: 0,
        })
    }

    fn read_tun(ring: &mut PacketRing<Self>) -> io::Result<()> {
        ring.engine.tun_is_readable = true;
        Ok(())
    }

    fn provide_tun(ring: &mut PacketRing<Self>, id: u16) {
        ring.engine.free_tun_buffers.push(id);
    }

    fn write_tun(ring: &mut PacketRing<Self>, id: u16) -> io::Result<()> {
        ring.engine.writes.push(id);
        Ok(())
    }

    fn receive(ring: &mut PacketRing<Self>, slot: SocketSlot, socket: RawFd) -> io::Result<()> {
        let is_forward = ring.sockets[slot.position()].is_forward;
        let Self { epoll, watched, .. } = &mut ring.engine;
        if watched.len() <= slot.position() {
            watched.resize(slot.position() + 1, Watched::default());
        }
        let watched = &mut watched[slot.position()];
        if watched.generation != slot.generation {
            // SAFETY: the descriptor is that of a socket that the ring holds and has just looked at.
            let socket = unsafe { BorrowedFd::borrow_raw(socket) };
            epoll::add(&*epoll, socket, epoll::EventData::new_u64(name(slot)), epoll::EventFlags::IN)?;
            *watched = Watched { generation: slot.generation, is_listed: false, is_forward };
        }
        ring.engine.list(slot);
        Ok(())
    }

    fn stop_receiving(ring: &mut PacketRing<Self>, slot: SocketSlot) -> io::Result<()> {
        if let Some(socket) = ring.sockets[slot.position()].socket.as_ref() {
            epoll::delete(&ring.engine.epoll, socket)?;
        }
        ring.end_receive(slot, None);
        Ok(())
    }

    fn provide_receive(ring: &mut PacketRing<Self>, id: u16) {
        ring.engine.of_lanes.free_buffers.push(id);
    }

    fn provide_forward(ring: &mut PacketRing<Self>, id: u16) {
        ring.engine.of_forwards.free_buffers.push(id);
    }

    fn send(ring: &mut PacketRing<Self>, id: u16, _socket: RawFd) -> io::Result<()> {
        ring.engine.sends.push_back(id);
        Ok(())
    }

    fn enter(ring: &mut PacketRing<Self>) -> io::Result<()> {
        flush_sends(ring);
        flush_writes(ring);
        if !std::mem::take(&mut ring.engine.is_fresh) {
            ring.engine.calls += 1;
            ring.engine.poll(Duration::ZERO)?;
        }
        read_tun(ring);
        receive::<false>(ring);
        receive::<true>(ring);
        Ok(())
    }

    fn cancel_all(ring: &mut PacketRing<Self>) {
        // Nothing of it is in the kernel.
        ring.tun_reading = false;
        ring.sockets.iter_mut().for_each(|entry| entry.receiving = false);
    }

    fn enters(&self) -> u64 {
        self.calls
    }

    fn is_idle(ring: &mut PacketRing<Self>) -> bool {
        let Self { sends, writes, of_lanes, of_forwards, tun_is_readable, .. } = &ring.engine;
        let hears_nothing = of_lanes.readable.is_empty() && of_forwards.readable.is_empty();
        sends.is_empty() && writes.is_empty() && hears_nothing && !(*tun_is_readable && ring.tun_reading)
    }

    /// Whatever happens ends a sleep: it is one in `epoll_wait`.
    fn set_wakeful(&mut self, _wakeful: bool) {}

    fn block_on(run: impl Future<Output = io::Result<()>>) -> io::Result<()> {
        // What waits in it blocks the thread, so that the first poll is the last.
        match pin!(run).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(ended) => ended,
            Poll::Pending => Err(io::Error::other("the worker waits for what only an async runtime has")),
        }
    }

    fn start_sleeper(&mut self, _wake: &OwnedFd) -> io::Result<()> {
        Ok(())
    }

    async fn sleep_until(&mut self, deadline: Option<Instant>) {
        if !std::mem::take(&mut self.is_woken) {
            let timeout = deadline.map_or(SLEEP_MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
            // An epoll that fails says so to the next enter too.
            self.is_fresh = self.poll(timeout.min(SLEEP_MAX)).is_ok();
            self.is_woken = false;
        }
    }

    async fn visit(&mut self) {}
}

impl Epoll {
    /// Asks what there is, for so long at most, and remembers it.
    fn poll(&mut self, timeout: Duration) -> io::Result<()> {
        let mut events = [const { MaybeUninit::<epoll::Event>::uninit() }; EPOLL_EVENTS];
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() };
        let (events, _) = match epoll::wait(&self.epoll, &mut events, Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => return Ok(()),
            waited => waited?,
        };
        for event in events {
            match event.data.u64() {
                WAKE => self.is_woken = true,
                TUN => self.tun_is_readable = true,
                name => self.list(SocketSlot { index: name as u16, generation: (name >> 16) as u16 }),
            }
        }
        Ok(())
    }

    /// Remembers that a socket may have something.
    fn list(&mut self, slot: SocketSlot) {
        if let Some(watched) = self.watched.get_mut(slot.position())
            && watched.generation == slot.generation
            && !std::mem::replace(&mut watched.is_listed, true)
        {
            let is_forward = watched.is_forward;
            self.intake(is_forward).readable.push_back(slot);
        }
    }

    fn intake(&mut self, of_forwards: bool) -> &mut Intake {
        if of_forwards { &mut self.of_forwards } else { &mut self.of_lanes }
    }
}

/// What epoll calls a socket.
fn name(slot: SocketSlot) -> u64 {
    u64::from(slot.generation) << 16 | u64::from(slot.index)
}

fn last_error() -> Option<io::Error> {
    Some(io::Error::last_os_error())
}

fn flush_sends(ring: &mut PacketRing<Epoll>) {
    let mut messages = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; SENDS_PER_CALL];
    while let Some(&first) = ring.engine.sends.front() {
        let slot = ring.sends[usize::from(first)].socket;
        let entries = ring.engine.sends.iter().map(|id| &ring.sends[usize::from(*id)]);
        let mut count = 0;
        for (message, entry) in messages.iter_mut().zip(entries.take_while(|entry| entry.socket == slot)) {
            message.write(libc::mmsghdr { msg_hdr: entry.message, msg_len: 0 });
            count += 1;
        }
        let socket = ring.entry(slot).and_then(|entry| entry.socket.as_ref()).map_or(-1, AsRawFd::as_raw_fd);
        ring.engine.calls += 1;
        // SAFETY: each of the first `count` messages is written, and points at the vector and the control message of a
        // queued entry of `sends`, and those at records in the slab that nobody changes before the completions below.
        let sent = unsafe { libc::sendmmsg(socket, messages.as_mut_ptr().cast(), count, SEND_FLAGS as _) };
        let error = if sent < 0 { last_error() } else { None };
        if error.as_ref().is_some_and(|error| error.kind() == io::ErrorKind::Interrupted) {
            continue;
        }
        // One that fails behind others is told as the first of the next call.
        for _ in 0..sent.max(1) {
            let Some(id) = ring.engine.sends.pop_front() else { return };
            let error = error.as_ref().and_then(io::Error::raw_os_error).map(io::Error::from_raw_os_error);
            ring.complete_send(id, error);
        }
    }
}

fn flush_writes(ring: &mut PacketRing<Epoll>) {
    let mut writes = std::mem::take(&mut ring.engine.writes);
    for id in writes.drain(..) {
        let vectors = ring.writes[usize::from(id)].vectors();
        ring.engine.calls += 1;
        // SAFETY: the vectors point at the entry's head and into frozen receive buffers that stay so until the
        // completion below.
        let written = unsafe { libc::writev(ring.tun.as_raw_fd(), vectors.as_ptr(), vectors.len() as _) };
        let error = if written < 0 { last_error() } else { None };
        ring.complete_write(id, error);
    }
    ring.engine.writes = writes;
}

/// Reads until there is nothing more, or nothing to read into.
fn read_tun(ring: &mut PacketRing<Epoll>) {
    while ring.tun_reading && ring.engine.tun_is_readable {
        let Some(id) = ring.engine.free_tun_buffers.pop() else { return };
        let buffer = ring.tun_buffers.address(&ring.slab, id);
        ring.engine.calls += 1;
        // SAFETY: a buffer that was free is nobody's; it has that many bytes.
        let read = unsafe { libc::read(ring.tun.as_raw_fd(), buffer.as_ptr().cast(), ring.tun_buffers.bytes_each) };
        if let Ok(bytes) = usize::try_from(read) {
            ring.complete_tun_read(id, bytes);
            continue;
        }
        ring.engine.free_tun_buffers.push(id);
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::Interrupted => {}
            io::ErrorKind::WouldBlock => ring.engine.tun_is_readable = false,
            _ => {
                ring.engine.tun_is_readable = false;
                ring.end_tun_read(Some(error));
            }
        }
    }
}

/// Receives from one readable socket after the other, until there is nothing more or nothing to receive into.
fn receive<const OF_FORWARDS: bool>(ring: &mut PacketRing<Epoll>) {
    while !ring.engine.intake(OF_FORWARDS).free_buffers.is_empty() {
        let Some(slot) = ring.engine.intake(OF_FORWARDS).readable.pop_front() else { return };
        let socket = ring.entry(slot).filter(|entry| entry.receiving).and_then(|entry| entry.socket.as_ref());
        let socket = socket.map(AsRawFd::as_raw_fd);
        let received = match socket {
            Some(socket) => receive_from::<OF_FORWARDS>(ring, slot, socket),
            None => Ok(false),
        };
        let has_more = matches!(received, Ok(true));
        if let Some(watched) =
            ring.engine.watched.get_mut(slot.position()).filter(|watched| watched.generation == slot.generation)
        {
            watched.is_listed = has_more;
        }
        if has_more {
            ring.engine.intake(OF_FORWARDS).readable.push_back(slot);
        }
        if let Err(error) = received {
            ring.end_receive(slot, Some(error));
        }
    }
}

/// One call's worth of a socket's datagrams. Returns whether there may be more.
fn receive_from<const OF_FORWARDS: bool>(
    ring: &mut PacketRing<Epoll>,
    slot: SocketSlot,
    socket: RawFd,
) -> io::Result<bool> {
    let buffers = if OF_FORWARDS { ring.forward_buffers } else { ring.receive_buffers };
    // SAFETY: all-zero is a valid `mmsghdr`: null pointers and numbers.
    let mut messages: [libc::mmsghdr; RECEIVES_PER_CALL] = unsafe { std::mem::zeroed() };
    let mut vectors = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; RECEIVES_PER_CALL];
    let mut wanted = 0;
    let free = ring.engine.intake(OF_FORWARDS).free_buffers.iter().rev();
    for ((message, vector), &id) in messages.iter_mut().zip(&mut vectors).zip(free) {
        let buffer = buffers.address(&ring.slab, id).as_ptr();
        vector.iov_base = buffer.wrapping_add(RECEIVE_PREFIX_BYTES).cast();
        vector.iov_len = buffers.bytes_each - RECEIVE_PREFIX_BYTES;
        let header = &mut message.msg_hdr;
        header.msg_name = buffer.cast();
        header.msg_namelen = NAME_BYTES as libc::socklen_t;
        header.msg_control = buffer.wrapping_add(CONTROL_AT).cast();
        header.msg_controllen = CONTROL_BYTES as _;
        header.msg_iov = vector;
        header.msg_iovlen = 1;
        wanted += 1;
    }
    ring.engine.calls += 1;
    // SAFETY: each of the first `wanted` messages points at parts of a buffer that was free, so that it is nobody's, and
    // that do not overlap; each has the room that the message says.
    let received =
        unsafe { libc::recvmmsg(socket, messages.as_mut_ptr(), wanted, libc::MSG_DONTWAIT as _, std::ptr::null_mut()) };
    let Ok(received) = usize::try_from(received) else {
        let error = io::Error::last_os_error();
        return match error.kind() {
            io::ErrorKind::WouldBlock => Ok(false),
            io::ErrorKind::Interrupted => Ok(true),
            _ => Err(error),
        };
    };
    for message in &messages[..received] {
        let Some(id) = ring.engine.intake(OF_FORWARDS).free_buffers.pop() else { break };
        let datagram = datagram(ring, buffers, id, message);
        match OF_FORWARDS {
            false => ring.complete_receive(slot, id, datagram),
            true => ring.complete_forward(slot, id, datagram),
        }
    }
    // What is left behind an error that ended the call early, epoll tells again.
    Ok(received == wanted as usize)
}

/// What the kernel says of the datagram that it has just put into a buffer.
fn datagram(ring: &PacketRing<Epoll>, buffers: Buffers, id: u16, message: &libc::mmsghdr) -> Datagram {
    let buffer = buffers.address(&ring.slab, id);
    // SAFETY: the buffer is larger than what stands before the datagram, and nobody has its token yet.
    let prefix = unsafe { std::slice::from_raw_parts(buffer.as_ptr(), RECEIVE_PREFIX_BYTES) };
    let header = &message.msg_hdr;
    let name_bytes = NAME_BYTES.min(header.msg_namelen as usize);
    let control_bytes = CONTROL_BYTES.min(header.msg_controllen as _);
    let is_truncated = header.msg_flags & libc::MSG_TRUNC != 0;
    let payload_bytes = if is_truncated { 0 } else { message.msg_len as usize };
    let end = (RECEIVE_PREFIX_BYTES + payload_bytes).min(buffers.bytes_each);
    Datagram {
        range: RECEIVE_PREFIX_BYTES..end,
        from: parse_socket_address(&prefix[..name_bytes]),
        is_truncated,
        control: Control::parse(&prefix[CONTROL_AT..CONTROL_AT + control_bytes]),
    }
}
