//! The packet ring: one io_uring per worker that reads the TUN, receives on all lanes' sockets, and submits what a
//! turn has produced with a single system call.
//!
//! ```text
//! READ_MULTISHOT  (TUN)      -> TunBuffer      -> recycle                                                  tun.rs
//! RECVMSG_MULTISHOT (socket) -> ReceiveBuffer  -> freeze -> WRITEV (TUN) ... -> back to the kernel by itself  receive.rs
//! take_send_buffer           -> SendBuffer     -> SENDMSG (socket)       ... -> back to the pool by itself    send.rs
//! ```
//! Every buffer is in the kernel's hands or in ours. Ours is shown by a token ([`TunBuffer`], [`ReceiveBuffer`],
//! [`FrozenBuffer`], [`SendBuffer`]) that cannot be copied; giving the buffer away consumes it.

mod receive;
mod send;
mod tun;

use std::collections::VecDeque;
use std::io;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;

use io_uring::types::{BufRingEntry, CancelBuilder};
use io_uring::{IoUring, cqueue, squeue};
use ringlane_shared::limits::{
    RING_ENTRIES, SEND_BUFFER_BYTES, SEND_BUFFERS, SENDS_IN_FLIGHT, SUPER_SEGMENT_BYTES_MAX, TUN_READS_IN_FLIGHT,
    TUN_WRITES_IN_FLIGHT, UDP_RECEIVES_IN_FLIGHT,
};
use ringlane_shared::plane::{Offload, Offloads};

pub(crate) use self::receive::{FrozenBuffer, ReceiveBuffer};
pub(crate) use self::send::{RefusedTrain, SendBuffer, SendTag, Train};
pub(crate) use self::tun::{TunBuffer, TunWrite, WriteTag};

use self::receive::{RECEIVE_PREFIX_BYTES, ReceiveState};
use self::send::{SendEntry, SendState};
use self::tun::WriteEntry;
use super::datagram::Datagram;
use super::provided_buffers::ProvidedBuffers;
use super::slab::Slab;
use super::vnet_header::VNET_HEADER_BYTES;

const TUN_GROUP: u16 = 0;
const RECEIVE_GROUP: u16 = 1;

const CACHE_LINE_BYTES: usize = 64;

/// Rounds of cancelling and reaping before a ring that does not drain is given up and its memory leaked.
const DRAIN_ROUNDS: usize = 1000;

const ENTER_GETEVENTS: u32 = 1;

/// Names a socket of the ring; a slot that is used again has another generation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
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

/// Something the kernel has finished.
#[derive(Debug)]
pub(crate) enum Completion {
    /// A packet or super-segment from the TUN.
    TunRead { buffer: TunBuffer, bytes: usize },
    /// The TUN read has to be armed again; `ENOBUFS` means that all its buffers are in our hands.
    TunReadEnded { error: Option<io::Error> },
    /// A datagram, or a train of them.
    Received { socket: SocketSlot, buffer: ReceiveBuffer, datagram: Datagram },
    /// The socket's receive has to be armed again.
    ReceiveEnded { socket: SocketSlot, error: Option<io::Error> },
    /// The kernel did not take a datagram or a train.
    SendFailed { tag: SendTag, error: io::Error },
    /// The kernel did not take a train as one; its records may pass singly.
    TrainRefused { train: RefusedTrain, error: io::Error },
    /// The TUN did not take a packet or super-segment. `is_unknown` when it has never taken a super-segment and says that
    /// this one makes no sense.
    TunWriteFailed { tag: WriteTag, is_unknown: bool },
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
    /// Whether its network device takes trains, as far as is known.
    sends_trains: bool,
    sends: u16,
}

/// What a ring is made for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RingConfig {
    /// Largest inner packet in bytes.
    pub(crate) mtu: u16,
    /// Largest datagram in bytes.
    pub(crate) datagram_bytes: usize,
    /// The offloads it may use.
    pub(crate) offloads: Offloads,
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
    receives_trains: bool,
    sockets: Vec<SocketEntry>,
    free_sockets: Vec<u16>,
    send_offset: usize,
    send_states: Box<[SendState]>,
    free_send_buffers: Vec<u16>,
    sends: Box<[SendEntry]>,
    free_sends: Vec<u16>,
    sends_queued: usize,
    sends_trains: bool,
    ends_with_sentinel: bool,
    writes: Box<[WriteEntry]>,
    free_writes: Vec<u16>,
    super_segments_taken: bool,
    completions: VecDeque<Completion>,
    enters: u64,
    must_publish: bool,
}

impl PacketRing {
    /// Makes the ring and its memory. `wake` is an eventfd that the kernel signals while [`PacketRing::set_wakeful`]
    /// says so.
    pub(crate) fn new(tun: OwnedFd, wake: &OwnedFd, config: RingConfig) -> io::Result<Self> {
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

        let RingConfig { mtu, datagram_bytes, offloads } = config;
        let round = |bytes: usize, to: usize| bytes.div_ceil(to) * to;
        let reads_segments = offloads.has(Offload::TunTso) || offloads.has(Offload::TunUso);
        let tun_bytes = VNET_HEADER_BYTES + if reads_segments { SUPER_SEGMENT_BYTES_MAX } else { usize::from(mtu) };
        let tun_bytes = round(tun_bytes, CACHE_LINE_BYTES);
        let receives_trains = offloads.has(Offload::UdpGro);
        let receive_bytes =
            RECEIVE_PREFIX_BYTES + if receives_trains { SUPER_SEGMENT_BYTES_MAX } else { datagram_bytes };
        let receive_bytes = round(receive_bytes, CACHE_LINE_BYTES);
        let page_bytes = rustix::param::page_size();
        let entry_bytes = |count: u16| round(usize::from(count) * size_of::<BufRingEntry>(), page_bytes);

        let tun_entries_at = 0;
        let receive_entries_at = tun_entries_at + entry_bytes(TUN_READS_IN_FLIGHT);
        let tun_at = receive_entries_at + entry_bytes(UDP_RECEIVES_IN_FLIGHT);
        let receive_at = tun_at + tun_bytes * usize::from(TUN_READS_IN_FLIGHT);
        let send_at = receive_at + receive_bytes * usize::from(UDP_RECEIVES_IN_FLIGHT);
        let slab =
            Slab::map(send_at + SEND_BUFFER_BYTES * usize::from(SEND_BUFFERS), offloads.has(Offload::HugePages))?;

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

        Ok(Self {
            ring,
            slab: ManuallyDrop::new(slab),
            tun,
            tun_reading: false,
            tun_buffers,
            receive_buffers,
            receive_states: vec![ReceiveState::default(); usize::from(UDP_RECEIVES_IN_FLIGHT)].into(),
            receive_message: receive::message(),
            receives_trains,
            sockets: Vec::new(),
            free_sockets: Vec::new(),
            send_offset: send_at,
            send_states: vec![SendState::default(); usize::from(SEND_BUFFERS)].into(),
            free_send_buffers: (0..SEND_BUFFERS).rev().collect(),
            sends: (0..SENDS_IN_FLIGHT).map(|_| SendEntry::empty()).collect(),
            free_sends: (0..SENDS_IN_FLIGHT).rev().collect(),
            sends_queued: 0,
            sends_trains: offloads.has(Offload::UdpGso),
            ends_with_sentinel: offloads.has(Offload::UdpSentinel),
            writes: (0..TUN_WRITES_IN_FLIGHT).map(|_| WriteEntry::empty()).collect(),
            free_writes: (0..TUN_WRITES_IN_FLIGHT).rev().collect(),
            super_segments_taken: false,
            completions: VecDeque::with_capacity(RING_ENTRIES as usize * 4),
            enters: 0,
            must_publish: false,
        })
    }

    /// Times the ring was entered so far.
    pub(crate) fn enters(&self) -> u64 {
        self.enters
    }

    /// Whether the ring's memory lies in huge pages.
    pub(crate) fn has_huge_pages(&self) -> bool {
        self.slab.is_huge()
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
        // the slab, `sends`, `writes`, `receive_message`.
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

    // Inside

    fn entry(&mut self, slot: SocketSlot) -> Option<&mut SocketEntry> {
        self.sockets.get_mut(slot.position()).filter(|entry| entry.generation == slot.generation)
    }

    fn push(&mut self, entry: squeue::Entry) -> io::Result<()> {
        if self.ring.submission().is_full() {
            self.enter()?;
        }
        // SAFETY: the entry's pointers lead into the slab, `sends`, `writes` or `receive_message`, none of which move or end
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
                self.complete_receive(SocketSlot { index, generation }, result, flags, error);
            }
            operation if operation == Operation::Send as u8 => self.complete_send(index, error),
            operation if operation == Operation::TunWrite as u8 => self.complete_write(index, error),
            _ => {}
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
        self.forget_refused();
        for _ in 0..DRAIN_ROUNDS {
            if !self.is_busy() {
                break;
            }
            // Nothing left to cancel is an error too; the completions tell when all is done.
            let _ = self.ring.submitter().register_sync_cancel(None, CancelBuilder::any());
            if self.enter().is_err() {
                break;
            }
            self.forget_refused();
        }
        // A leak at the end of a worker is harmless, memory under the kernel's hands is not.
        if self.is_busy() {
            std::mem::forget(std::mem::take(&mut self.writes));
            std::mem::forget(std::mem::take(&mut self.sends));
        } else {
            // SAFETY: the field is not used again; the kernel has finished every operation that pointed into it.
            unsafe { ManuallyDrop::drop(&mut self.slab) };
        }
    }
}

#[cfg(test)]
mod on_the_kernel;
