//! The seam between a packet ring and the kernel.

use std::future::Future;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::time::Instant;

use super::{Buffers, PacketRing, SocketSlot};
use crate::sys::slab::Slab;

/// What moves packets between a ring's memory and the kernel, and what the worker sleeps in.
///
/// The ring decides what is to be done and keeps the books; an engine does it, and says so through
/// [`PacketRing::complete_tun_read`] and its like. Nothing is completed but by [`Engine::enter`], so what is queued stays
/// as it is until then.
pub(crate) trait Engine: Sized {
    /// Bytes that the engine needs at the start of the slab; whole cache lines.
    fn slab_bytes() -> usize;

    /// Makes the engine of a ring. All buffers are the engine's at first.
    fn new(
        slab: &Slab,
        tun_buffers: Buffers,
        receive_buffers: Buffers,
        forward_buffers: Buffers,
        tun: &OwnedFd,
        wake: &OwnedFd,
    ) -> io::Result<Self>;

    // Operations

    /// Begins to read the TUN, until it ends.
    fn read_tun(ring: &mut PacketRing<Self>) -> io::Result<()>;

    /// Gives a TUN buffer back to be filled; the caller has consumed its token.
    fn provide_tun(ring: &mut PacketRing<Self>, id: u16);

    /// Queues the write of entry `id`.
    fn write_tun(ring: &mut PacketRing<Self>, id: u16) -> io::Result<()>;

    /// Begins to receive on a socket, until it ends: into receive buffers, or into forwards' buffers if it is a forward's.
    fn receive(ring: &mut PacketRing<Self>, slot: SocketSlot, socket: RawFd) -> io::Result<()>;

    /// Ends to receive on a socket; [`PacketRing::end_receive`] follows, now or later.
    fn stop_receiving(ring: &mut PacketRing<Self>, slot: SocketSlot) -> io::Result<()>;

    /// Gives a receive buffer back to be filled; the caller has consumed its token.
    fn provide_receive(ring: &mut PacketRing<Self>, id: u16);

    /// Gives a forward's buffer back to be filled; the caller has consumed its token.
    fn provide_forward(ring: &mut PacketRing<Self>, id: u16);

    /// Queues the send of entry `id`.
    fn send(ring: &mut PacketRing<Self>, id: u16, socket: RawFd) -> io::Result<()>;

    /// Does everything queued and takes in what has finished.
    fn enter(ring: &mut PacketRing<Self>) -> io::Result<()>;

    /// Asks every operation to end; what is left ends with the next enters.
    fn cancel_all(ring: &mut PacketRing<Self>);

    // Sleep

    /// System calls made so far to move packets.
    fn enters(&self) -> u64;

    /// Whether nothing is queued and nothing known of that could be taken in.
    fn is_idle(ring: &mut PacketRing<Self>) -> bool;

    /// Whether what happens from now on shall end a sleep.
    fn set_wakeful(&mut self, wakeful: bool);

    /// Runs a worker to its end.
    fn block_on(run: impl Future<Output = io::Result<()>>) -> io::Result<()>;

    /// Gets ready to sleep, within [`Engine::block_on`].
    fn start_sleeper(&mut self, wake: &OwnedFd) -> io::Result<()>;

    /// Waits for something to take in, the eventfd or the deadline, whichever is first.
    async fn sleep_until(&mut self, deadline: Option<Instant>);

    /// Lets what it sleeps in do what it has to and comes straight back.
    async fn visit(&mut self);
}
