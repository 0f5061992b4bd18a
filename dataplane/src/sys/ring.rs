//! The packet ring: a worker's memory, its TUN queue and its lanes' sockets, and what is under way between them.
//!
//! ```text
//! read  (TUN)      -> TunBuffer      -> recycle                                                 tun.rs
//! receive (socket) -> ReceiveBuffer  -> freeze -> write (TUN) ... -> back to be filled by itself  receive.rs
//! take_send_buffer -> SendBuffer     -> send (socket)         ... -> back to the pool by itself   send.rs
//! receive (forward) -> ForwardBuffer -> forward (other half)  ... -> back to be filled by itself  forward.rs
//! ```
//! Every buffer is the engine's or ours. Ours is shown by a token ([`TunBuffer`], [`ReceiveBuffer`], [`FrozenBuffer`],
//! [`SendBuffer`]) that cannot be copied; giving the buffer away consumes it.
//!
//! The [`Engine`] is what does all of it with the kernel: `uring.rs` or `epoll.rs`. A ring is made for one of them at
//! compile time.

mod assembly;
mod engine;
mod epoll;
mod forward;
mod provided_buffers;
mod receive;
mod send;
mod tun;
mod uring;

use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::time::Instant;

use ringlane_shared::limits::{
    ASSEMBLY_BUFFER_BYTES, ASSEMBLY_BUFFERS, FORWARD_DATAGRAM_BYTES_MAX, FORWARD_RECEIVES_IN_FLIGHT, RING_ENTRIES,
    SEND_BUFFER_BYTES, SEND_BUFFERS, SENDS_IN_FLIGHT, SUPER_SEGMENT_BYTES_MAX, TUN_READS_IN_FLIGHT,
    TUN_WRITES_IN_FLIGHT, UDP_RECEIVES_IN_FLIGHT,
};
use ringlane_shared::plane::{Offload, Offloads};

pub(crate) use self::assembly::Assemblies;
pub(crate) use self::engine::Engine;
pub(crate) use self::epoll::Epoll;
pub(crate) use self::forward::{ForwardBuffer, ToForward};
pub(crate) use self::receive::{FrozenBuffer, ReceiveBuffer};
pub(crate) use self::send::{RefusedTrain, SendBuffer, SendTag, Train};
pub(crate) use self::tun::{TunBuffer, TunWrite, WriteTag};
pub(crate) use self::uring::Uring;

use self::receive::{RECEIVE_PREFIX_BYTES, ReceiveState};
use self::send::{SendEntry, SendState};
use self::tun::WriteEntry;
use super::datagram::Datagram;
use super::slab::Slab;
use super::vnet_header::VNET_HEADER_BYTES;

const CACHE_LINE_BYTES: usize = 64;

/// Rounds of cancelling and reaping before a ring that does not drain is given up and its memory leaked.
const DRAIN_ROUNDS: usize = 1000;

/// Names a socket of the ring; a slot that is used again has another generation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct SocketSlot {
    index: u16,
    generation: u16,
}

impl SocketSlot {
    /// One that names nothing, at a position.
    #[cfg(test)]
    pub(crate) fn at(index: u16) -> Self {
        Self { index, generation: 0 }
    }

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
    SendFailed { socket: SocketSlot, tag: SendTag, error: io::Error },
    /// The kernel did not take a train as one; its records may pass singly.
    TrainRefused { train: RefusedTrain, error: io::Error },
    /// The TUN did not take a packet or super-segment. `is_unknown` when it has never taken a super-segment and says that
    /// this one makes no sense.
    TunWriteFailed { tag: WriteTag, is_unknown: bool },
}

struct SocketEntry {
    generation: u16,
    socket: Option<UdpSocket>,
    receiving: bool,
    closing: bool,
    /// Whether its network device takes trains, as far as is known.
    sends_trains: bool,
    is_ipv6: bool,
    /// Whether it is a forward's, and receives into the forwards' buffers.
    is_forward: bool,
    /// Whether anything has come since its receive was armed, if it is a forward's.
    has_received: bool,
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

/// Buffers of one kind, one behind the other in the slab.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buffers {
    offset: usize,
    count: u16,
    bytes_each: usize,
}

impl Buffers {
    /// Where buffer `id` is.
    fn address(&self, slab: &Slab, id: u16) -> NonNull<u8> {
        debug_assert!(id < self.count);
        slab.address(self.offset + usize::from(id) * self.bytes_each, self.bytes_each)
    }

    /// Where the buffers end.
    fn end(&self) -> usize {
        self.offset + self.bytes_each * usize::from(self.count)
    }
}

/// One worker's ring, its memory, its TUN queue and its lanes' sockets. Lives and dies on the worker's thread.
pub(crate) struct PacketRing<E: Engine> {
    engine: E,
    slab: ManuallyDrop<Slab>,
    tun: OwnedFd,
    tun_reading: bool,
    tun_buffers: Buffers,
    receive_buffers: Buffers,
    assembly_buffers: Buffers,
    /// Of the receive buffers, then of the assembly buffers.
    receive_states: Box<[ReceiveState]>,
    finished_assemblies: Vec<u16>,
    receives_trains: bool,
    sockets: Vec<SocketEntry>,
    free_sockets: Vec<u16>,
    send_offset: usize,
    forward_buffers: Buffers,
    /// Of the send buffers, then of the forwards' buffers.
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
    to_forward: VecDeque<ToForward>,
}

impl<E: Engine> PacketRing<E> {
    /// Makes the ring and its memory. `wake` is the eventfd that ends a worker's sleep.
    pub(crate) fn new(tun: OwnedFd, wake: &OwnedFd, config: RingConfig) -> io::Result<Self> {
        let RingConfig { mtu, datagram_bytes, offloads } = config;
        let reads_segments = offloads.has(Offload::TunTso) || offloads.has(Offload::TunUso);
        let tun_bytes = VNET_HEADER_BYTES + if reads_segments { SUPER_SEGMENT_BYTES_MAX } else { usize::from(mtu) };
        let receives_trains = offloads.has(Offload::UdpGro);
        let receive_bytes =
            RECEIVE_PREFIX_BYTES + if receives_trains { SUPER_SEGMENT_BYTES_MAX } else { datagram_bytes };

        let tun_buffers = Buffers {
            offset: E::slab_bytes(),
            count: TUN_READS_IN_FLIGHT,
            bytes_each: tun_bytes.next_multiple_of(CACHE_LINE_BYTES),
        };
        let receive_buffers = Buffers {
            offset: tun_buffers.end(),
            count: UDP_RECEIVES_IN_FLIGHT,
            bytes_each: receive_bytes.next_multiple_of(CACHE_LINE_BYTES),
        };
        let assembly_buffers =
            Buffers { offset: receive_buffers.end(), count: ASSEMBLY_BUFFERS, bytes_each: ASSEMBLY_BUFFER_BYTES };
        let send_offset = assembly_buffers.end();
        let forward_bytes =
            RECEIVE_PREFIX_BYTES + if receives_trains { SUPER_SEGMENT_BYTES_MAX } else { FORWARD_DATAGRAM_BYTES_MAX };
        let forward_buffers = Buffers {
            offset: send_offset + SEND_BUFFER_BYTES * usize::from(SEND_BUFFERS),
            count: FORWARD_RECEIVES_IN_FLIGHT,
            bytes_each: forward_bytes.next_multiple_of(CACHE_LINE_BYTES),
        };
        let slab = ManuallyDrop::new(Slab::map(forward_buffers.end(), offloads.has(Offload::HugePages))?);
        let engine = E::new(&slab, tun_buffers, receive_buffers, forward_buffers, &tun, wake)?;

        Ok(Self {
            engine,
            slab,
            tun,
            tun_reading: false,
            tun_buffers,
            receive_buffers,
            assembly_buffers,
            receive_states: vec![ReceiveState::default(); usize::from(UDP_RECEIVES_IN_FLIGHT + ASSEMBLY_BUFFERS)]
                .into(),
            finished_assemblies: Vec::with_capacity(usize::from(ASSEMBLY_BUFFERS)),
            receives_trains,
            sockets: Vec::new(),
            free_sockets: Vec::new(),
            send_offset,
            forward_buffers,
            send_states: vec![SendState::default(); usize::from(SEND_BUFFERS + FORWARD_RECEIVES_IN_FLIGHT)].into(),
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
            to_forward: VecDeque::with_capacity(usize::from(FORWARD_RECEIVES_IN_FLIGHT)),
        })
    }

    /// System calls it has made so far to move packets.
    pub(crate) fn enters(&self) -> u64 {
        self.engine.enters()
    }

    /// Whether the ring's memory lies in huge pages.
    pub(crate) fn has_huge_pages(&self) -> bool {
        self.slab.is_huge()
    }

    /// Whether a completion shall end the worker's sleep. Off while the worker is busy anyway; after switching it on,
    /// enter once more and find nothing before sleeping.
    pub(crate) fn set_wakeful(&mut self, wakeful: bool) {
        self.engine.set_wakeful(wakeful);
    }

    /// Gets ready to sleep. Once, and from within [`Engine::block_on`].
    pub(crate) fn start_sleeper(&mut self, wake: &OwnedFd) -> io::Result<()> {
        self.engine.start_sleeper(wake)
    }

    /// Waits for something to take in, the eventfd or the deadline, whichever is first.
    pub(crate) async fn sleep_until(&mut self, deadline: Option<Instant>) {
        self.engine.sleep_until(deadline).await;
    }

    /// Lets what the engine sleeps in do what it has to and comes straight back.
    pub(crate) async fn visit(&mut self) {
        self.engine.visit().await;
    }

    /// The next finished operation that the last [`PacketRing::enter`] has found.
    pub(crate) fn next_completion(&mut self) -> Option<Completion> {
        self.completions.pop_front()
    }

    /// How many times [`PacketRing::next_completion`] has something.
    pub(crate) fn completion_count(&self) -> usize {
        self.completions.len()
    }

    /// Whether nothing is left to be handled, submitted or taken in: only what happens from now on ends a sleep.
    pub(crate) fn is_idle(&mut self) -> bool {
        self.completions.is_empty() && self.to_forward.is_empty() && E::is_idle(self)
    }

    /// Does everything queued and takes in what has finished.
    pub(crate) fn enter(&mut self) -> io::Result<()> {
        E::enter(self)
    }

    // Inside

    fn entry(&mut self, slot: SocketSlot) -> Option<&mut SocketEntry> {
        self.sockets.get_mut(slot.position()).filter(|entry| entry.generation == slot.generation)
    }

    /// Whether an operation of ours is still under way.
    fn is_busy(&self) -> bool {
        self.tun_reading
            || self.sends_queued > 0
            || self.free_writes.len() < self.writes.len()
            || self.sockets.iter().any(|entry| entry.receiving || entry.sends > 0)
    }
}

impl<E: Engine> Drop for PacketRing<E> {
    fn drop(&mut self) {
        let _ = self.enter();
        self.forget_refused();
        for _ in 0..DRAIN_ROUNDS {
            if !self.is_busy() {
                break;
            }
            E::cancel_all(self);
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
mod on_epoll;
#[cfg(test)]
mod on_io_uring;
