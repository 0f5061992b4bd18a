//! The engine on io_uring: multishot reads and receives into provided buffers, and one system call for all that a turn
//! has produced. It sleeps in monoio, on an eventfd that the kernel signals too.

use std::future::Future;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::time::Instant;

use io_uring::types::{BufRingEntry, CancelBuilder, Fd, RecvMsgOut};
use io_uring::{IoUring, Probe, cqueue, opcode, squeue};
use ringlane_shared::limits::{FORWARD_RECEIVES_IN_FLIGHT, RING_ENTRIES, TUN_READS_IN_FLIGHT, UDP_RECEIVES_IN_FLIGHT};

use super::provided_buffers::ProvidedBuffers;
use super::receive::RECEIVE_PREFIX_BYTES;
use super::send::SEND_FLAGS;
use super::{Buffers, Engine, PacketRing, SocketSlot};
use crate::sleep::{self, Sleeper};
use crate::sys::datagram::{CONTROL_BYTES, Control, Datagram, NAME_BYTES, parse_socket_address};
use crate::sys::slab::Slab;

const TUN_GROUP: u16 = 0;
const RECEIVE_GROUP: u16 = 1;
const FORWARD_GROUP: u16 = 2;

const ENTER_GETEVENTS: u32 = 1;

/// Which operation a completion belongs to; travels through the kernel as `user_data`.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Operation {
    TunRead = 1,
    Receive = 2,
    Send = 3,
    TunWrite = 4,
    Cancel = 5,
    Forward = 6,
}

fn user_data(operation: Operation, index: u16, generation: u16) -> u64 {
    (operation as u64) << 32 | u64::from(generation) << 16 | u64::from(index)
}

/// One io_uring, and the buffers that the kernel fills by itself.
pub(crate) struct Uring {
    ring: IoUring,
    tun_buffers: ProvidedBuffers,
    receive_buffers: ProvidedBuffers,
    forward_buffers: ProvidedBuffers,
    /// What every receive asks for.
    receive_message: Box<libc::msghdr>,
    must_publish: bool,
    enters: u64,
    sleeper: Option<Sleeper>,
}

impl Engine for Uring {
    fn slab_bytes() -> usize {
        entry_bytes(TUN_READS_IN_FLIGHT) + entry_bytes(UDP_RECEIVES_IN_FLIGHT) + entry_bytes(FORWARD_RECEIVES_IN_FLIGHT)
    }

    fn new(
        slab: &Slab,
        tun_buffers: Buffers,
        receive_buffers: Buffers,
        forward_buffers: Buffers,
        _tun: &OwnedFd,
        wake: &OwnedFd,
    ) -> io::Result<Self> {
        let mut ring = build()?;
        ring.submitter().register_eventfd(wake.as_raw_fd())?;
        ring.completion().disable_eventfd();

        let register = |at: usize, group: u16, buffers: Buffers| {
            let entries: NonNull<BufRingEntry> =
                slab.address(at, usize::from(buffers.count) * size_of::<BufRingEntry>()).cast();
            // SAFETY: the entries lie page-aligned in the slab, which is unmapped only after the ring is closed.
            unsafe { ring.submitter().register_buf_ring_with_flags(entries.as_ptr() as u64, buffers.count, group, 0) }?;
            let mut provided = ProvidedBuffers { entries, tail: 0, buffers };
            (0..buffers.count).for_each(|id| provided.provide(slab, id));
            provided.publish();
            io::Result::Ok(provided)
        };
        let receive_at = entry_bytes(TUN_READS_IN_FLIGHT);
        let forward_at = receive_at + entry_bytes(UDP_RECEIVES_IN_FLIGHT);
        let tun_buffers = register(0, TUN_GROUP, tun_buffers)?;
        let receive_buffers = register(receive_at, RECEIVE_GROUP, receive_buffers)?;
        let forward_buffers = register(forward_at, FORWARD_GROUP, forward_buffers)?;
        // SAFETY: all-zero is a valid `msghdr`: null pointers and lengths.
        let mut receive_message: Box<libc::msghdr> = Box::new(unsafe { std::mem::zeroed() });
        receive_message.msg_namelen = NAME_BYTES as libc::socklen_t;
        receive_message.msg_controllen = CONTROL_BYTES as _;
        Ok(Self {
            ring,
            tun_buffers,
            receive_buffers,
            forward_buffers,
            receive_message,
            must_publish: false,
            enters: 0,
            sleeper: None,
        })
    }

    fn read_tun(ring: &mut PacketRing<Self>) -> io::Result<()> {
        let read = opcode::ReadMulti::new(Fd(ring.tun.as_raw_fd()), 0, TUN_GROUP).build();
        push(ring, &read.user_data(user_data(Operation::TunRead, 0, 0)))
    }

    fn provide_tun(ring: &mut PacketRing<Self>, id: u16) {
        ring.engine.tun_buffers.provide(&ring.slab, id);
        ring.engine.must_publish = true;
    }

    fn write_tun(ring: &mut PacketRing<Self>, id: u16) -> io::Result<()> {
        let vectors = ring.writes[usize::from(id)].vectors();
        let write = opcode::Writev::new(Fd(ring.tun.as_raw_fd()), vectors.as_ptr(), vectors.len() as u32).build();
        push(ring, &write.user_data(user_data(Operation::TunWrite, id, 0)))
    }

    fn receive(ring: &mut PacketRing<Self>, slot: SocketSlot, socket: RawFd) -> io::Result<()> {
        let message: *const libc::msghdr = &raw const *ring.engine.receive_message;
        let (group, operation) = match ring.sockets[slot.position()].is_forward {
            true => (FORWARD_GROUP, Operation::Forward),
            false => (RECEIVE_GROUP, Operation::Receive),
        };
        let receive = opcode::RecvMsgMulti::new(Fd(socket), message, group).build();
        push(ring, &receive.user_data(user_data(operation, slot.index, slot.generation)))
    }

    fn stop_receiving(ring: &mut PacketRing<Self>, slot: SocketSlot) -> io::Result<()> {
        let operation = match ring.sockets[slot.position()].is_forward {
            true => Operation::Forward,
            false => Operation::Receive,
        };
        let cancel = opcode::AsyncCancel::new(user_data(operation, slot.index, slot.generation)).build();
        push(ring, &cancel.user_data(user_data(Operation::Cancel, 0, 0)))
    }

    fn provide_receive(ring: &mut PacketRing<Self>, id: u16) {
        ring.engine.receive_buffers.provide(&ring.slab, id);
        ring.engine.must_publish = true;
    }

    fn provide_forward(ring: &mut PacketRing<Self>, id: u16) {
        ring.engine.forward_buffers.provide(&ring.slab, id);
        ring.engine.must_publish = true;
    }

    fn send(ring: &mut PacketRing<Self>, id: u16, socket: RawFd) -> io::Result<()> {
        let entry = &ring.sends[usize::from(id)];
        let send = if entry.message.msg_controllen > 0 {
            opcode::SendMsg::new(Fd(socket), &raw const entry.message).flags(SEND_FLAGS as u32).build()
        } else {
            let (bytes, length) = (entry.vector.iov_base.cast_const().cast(), entry.vector.iov_len);
            opcode::Send::new(Fd(socket), bytes, length as u32).flags(SEND_FLAGS).build()
        };
        push(ring, &send.user_data(user_data(Operation::Send, id, 0)))
    }

    /// The one system call of a turn: it also runs the kernel's deferred work.
    fn enter(ring: &mut PacketRing<Self>) -> io::Result<()> {
        let Self { ring: uring, tun_buffers, receive_buffers, forward_buffers, must_publish, enters, .. } =
            &mut ring.engine;
        if std::mem::take(must_publish) {
            tun_buffers.publish();
            receive_buffers.publish();
            forward_buffers.publish();
        }
        let queued = uring.submission().len() as u32;
        *enters += 1;
        // SAFETY: no argument is passed, and every queued entry points at memory that stays until its completion:
        // the slab, `sends`, `writes`, `receive_message`.
        let entered = unsafe { uring.submitter().enter::<libc::sigset_t>(queued, 0, ENTER_GETEVENTS, None) };
        reap(ring);
        match entered {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // Interrupted, out of memory for the moment, or completions to be taken first: the next turn retries.
                Some(libc::EINTR | libc::EAGAIN | libc::EBUSY) => Ok(()),
                _ => Err(error),
            },
        }
    }

    fn cancel_all(ring: &mut PacketRing<Self>) {
        // Nothing left to cancel is an error too; the completions tell when all is done.
        let _ = ring.engine.ring.submitter().register_sync_cancel(None, CancelBuilder::any());
    }

    fn enters(&self) -> u64 {
        self.enters
    }

    fn is_idle(ring: &mut PacketRing<Self>) -> bool {
        let submission = ring.engine.ring.submission();
        // The kernel runs a limited amount of its deferred work in one go, and leaves what is over to the next.
        submission.is_empty() && !submission.taskrun() && !submission.cq_overflow()
    }

    fn set_wakeful(&mut self, wakeful: bool) {
        let completions = self.ring.completion();
        if wakeful {
            completions.enable_eventfd();
        } else {
            completions.disable_eventfd();
        }
    }

    fn block_on(run: impl Future<Output = io::Result<()>>) -> io::Result<()> {
        sleep::block_on(run)
    }

    fn start_sleeper(&mut self, wake: &OwnedFd) -> io::Result<()> {
        self.sleeper = Some(Sleeper::start(wake)?);
        Ok(())
    }

    async fn sleep_until(&mut self, deadline: Option<Instant>) {
        if let Some(sleeper) = &mut self.sleeper {
            sleeper.sleep_until(deadline).await;
        }
    }

    async fn visit(&mut self) {
        if let Some(sleeper) = &mut self.sleeper {
            sleeper.visit().await;
        }
    }
}

impl Uring {
    /// Whether the kernel has all that this engine needs, and lets us use it.
    pub(crate) fn probe() -> io::Result<()> {
        let ring = build()?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        // The newest of the operations: Linux 6.7. Multishot receives and provided buffers are from 6.0.
        if probe.is_supported(opcode::ReadMulti::CODE) {
            Ok(())
        } else {
            Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
        }
    }
}

fn build() -> io::Result<IoUring> {
    IoUring::builder()
        .dontfork()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .setup_cqsize(RING_ENTRIES * 4)
        .build(RING_ENTRIES)
}

/// Bytes of the entries of so many provided buffers.
fn entry_bytes(count: u16) -> usize {
    (usize::from(count) * size_of::<BufRingEntry>()).next_multiple_of(rustix::param::page_size())
}

fn push(ring: &mut PacketRing<Uring>, entry: &squeue::Entry) -> io::Result<()> {
    if ring.engine.ring.submission().is_full() {
        ring.enter()?;
    }
    // SAFETY: the entry's pointers lead into the slab, `sends`, `writes` or `receive_message`, none of which move or end
    // before the ring does, and whose bytes nothing of ours changes until the completion (the tokens see to it).
    let pushed = unsafe { ring.engine.ring.submission().push(entry) };
    pushed.map_err(|_| io::Error::other("the submission queue is full and the kernel takes nothing from it"))
}

fn reap(ring: &mut PacketRing<Uring>) {
    loop {
        let mut batch = [const { MaybeUninit::<cqueue::Entry>::uninit() }; 64];
        let finished = ring.engine.ring.completion().fill(&mut batch);
        if finished.is_empty() {
            return;
        }
        for entry in finished {
            complete(ring, entry.user_data(), entry.result(), entry.flags());
        }
    }
}

fn complete(ring: &mut PacketRing<Uring>, user_data: u64, result: i32, flags: u32) {
    let (index, generation) = (user_data as u16, (user_data >> 16) as u16);
    let operation = (user_data >> 32) as u8;
    let error = (result < 0).then(|| io::Error::from_raw_os_error(-result));
    match operation {
        operation if operation == Operation::TunRead as u8 => {
            if let (None, Some(id)) = (&error, cqueue::buffer_select(flags)) {
                ring.complete_tun_read(id, result as usize);
            }
            if !cqueue::more(flags) {
                ring.end_tun_read(error);
            }
        }
        operation if operation == Operation::Receive as u8 => {
            let slot = SocketSlot { index, generation };
            if let (None, Some(id)) = (&error, cqueue::buffer_select(flags)) {
                let datagram = parse_received(ring, ring.receive_buffers, id, result as usize);
                ring.complete_receive(slot, id, datagram);
            }
            if !cqueue::more(flags) {
                ring.end_receive(slot, error);
            }
        }
        operation if operation == Operation::Send as u8 => ring.complete_send(index, error),
        operation if operation == Operation::TunWrite as u8 => ring.complete_write(index, error),
        operation if operation == Operation::Forward as u8 => {
            let slot = SocketSlot { index, generation };
            if let (None, Some(id)) = (&error, cqueue::buffer_select(flags)) {
                let datagram = parse_received(ring, ring.forward_buffers, id, result as usize);
                ring.complete_forward(slot, id, datagram);
            }
            if !cqueue::more(flags) {
                ring.end_receive(slot, error);
            }
        }
        _ => {}
    }
}

/// Reads what the kernel has put before a datagram, in a buffer that it has just given to us.
fn parse_received(ring: &PacketRing<Uring>, buffers: Buffers, id: u16, bytes: usize) -> Datagram {
    let address = buffers.address(&ring.slab, id);
    let bytes = bytes.min(buffers.bytes_each);
    // SAFETY: the buffer is ours since its completion, and nobody has its token yet.
    let received = unsafe { std::slice::from_raw_parts(address.as_ptr(), bytes) };
    let Ok(message) = RecvMsgOut::parse(received, &ring.engine.receive_message) else {
        return Datagram { range: 0..0, from: None, is_truncated: true, control: Control::default() };
    };
    let payload_bytes = if message.is_payload_truncated() { 0 } else { message.payload_data().len() };
    Datagram {
        range: RECEIVE_PREFIX_BYTES..RECEIVE_PREFIX_BYTES + payload_bytes,
        from: parse_socket_address(message.name_data()),
        is_truncated: message.is_payload_truncated(),
        control: Control::parse(message.control_data()),
    }
}
