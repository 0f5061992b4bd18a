//! The ring's sockets, and what arrives on them: datagrams, and trains of datagrams of one size.

use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd};

use ringlane_shared::limits::UDP_RECEIVES_IN_FLIGHT;

use super::{Completion, Engine, PacketRing, SocketEntry, SocketSlot};
use crate::sys::datagram::{CONTROL_BYTES, Datagram, NAME_BYTES};
use crate::sys::socket::{receive_trains, report_class, report_receive_overflow};

/// `io_uring_recvmsg_out`, then room for an IPv6 socket address and for the control messages we ask for.
pub(super) const RECEIVE_PREFIX_BYTES: usize = 16 + NAME_BYTES + CONTROL_BYTES;

/// The buffer of a received datagram or train. Ours until it is frozen.
#[derive(Debug)]
#[must_use = "a buffer that is not frozen and released is lost to the worker"]
pub(crate) struct ReceiveBuffer(u16);

/// The buffer of a received datagram or train, or of a packet put together, whose bytes no longer change: TUN writes may read from it.
#[derive(Debug)]
#[must_use = "a buffer that is not released is lost to the worker"]
pub(crate) struct FrozenBuffer(pub(super) u16);

impl ReceiveBuffer {
    /// Its name, once frozen, in a [`Span`](ringlane_shared::packet::coalesce::Span).
    pub(crate) fn id(&self) -> u16 {
        self.0
    }
}

impl FrozenBuffer {
    /// Its name in a [`Span`](ringlane_shared::packet::coalesce::Span).
    pub(crate) fn id(&self) -> u16 {
        self.0
    }
}

/// How far a receive buffer is from going back to be filled.
#[derive(Clone, Copy, Default)]
pub(super) struct ReceiveState {
    pub(super) writes: u16,
    pub(super) frozen: bool,
    pub(super) released: bool,
}

impl<E: Engine> PacketRing<E> {
    /// Takes in a connected socket and starts receiving on it.
    pub(crate) fn add_socket(&mut self, socket: UdpSocket) -> io::Result<SocketSlot> {
        self.take_in(socket, false)
    }

    pub(super) fn take_in(&mut self, socket: UdpSocket, is_forward: bool) -> io::Result<SocketSlot> {
        report_receive_overflow(socket.as_fd())?;
        if self.receives_trains {
            receive_trains(socket.as_fd())?;
        }
        let index = match self.free_sockets.pop() {
            Some(index) => index,
            None => {
                let index = u16::try_from(self.sockets.len()).map_err(|_| io::Error::other("too many lanes"))?;
                self.sockets.push(SocketEntry {
                    generation: 0,
                    socket: None,
                    receiving: false,
                    closing: false,
                    sends_trains: false,
                    is_ipv6: false,
                    is_forward: false,
                    has_received: false,
                    sends: 0,
                });
                index
            }
        };
        let is_ipv6 = socket.local_addr().is_ok_and(|address| address.is_ipv6());
        let entry = &mut self.sockets[usize::from(index)];
        (entry.is_ipv6, entry.is_forward) = (is_ipv6, is_forward);
        entry.generation = entry.generation.wrapping_add(1);
        entry.socket = Some(socket);
        entry.closing = false;
        entry.sends_trains = self.sends_trains;
        let slot = SocketSlot { index, generation: entry.generation };
        if let Err(error) = self.arm_receive(slot) {
            self.close_socket(slot)?;
            return Err(error);
        }
        Ok(slot)
    }

    /// Has the kernel tell what outer headers say of congestion, from now on.
    pub(crate) fn report_marks(&mut self, slot: SocketSlot) -> io::Result<()> {
        let entry = self.entry(slot).and_then(|entry| Some((entry.socket.as_ref()?, entry.is_ipv6)));
        entry.map_or(Ok(()), |(socket, is_ipv6)| report_class(socket.as_fd(), is_ipv6))
    }

    /// Starts receiving on a socket if it is not being received on.
    pub(crate) fn arm_receive(&mut self, slot: SocketSlot) -> io::Result<()> {
        let Some(entry) = self.entry(slot) else { return Ok(()) };
        let Some(socket) = entry.socket.as_ref().filter(|_| !entry.receiving && !entry.closing) else {
            return Ok(());
        };
        let socket = socket.as_raw_fd();
        (entry.receiving, entry.has_received) = (true, false);
        let queued = E::receive(self, slot, socket);
        if queued.is_err()
            && let Some(entry) = self.entry(slot)
        {
            entry.receiving = false;
        }
        queued
    }

    /// Stops receiving on a socket and closes it once nothing is under way on it. No completion of it follows.
    pub(crate) fn close_socket(&mut self, slot: SocketSlot) -> io::Result<()> {
        let Some(entry) = self.entry(slot) else { return Ok(()) };
        entry.closing = true;
        if entry.receiving {
            E::stop_receiving(self, slot)?;
        }
        self.close_if_idle(slot);
        Ok(())
    }

    pub(super) fn close_if_idle(&mut self, slot: SocketSlot) {
        let Some(entry) = self.entry(slot) else { return };
        if entry.closing && !entry.receiving && entry.sends == 0 && entry.socket.take().is_some() {
            // The generation moves on now, so that no late message finds the next socket of this slot.
            entry.generation = entry.generation.wrapping_add(1);
            self.free_sockets.push(slot.index);
        }
    }

    /// The whole of a received datagram's buffer; the datagram is the range that came with it.
    pub(crate) fn receive_bytes(&mut self, buffer: &mut ReceiveBuffer) -> &mut [u8] {
        let bytes = self.receive_buffers.bytes_each;
        let address = self.receive_buffers.address(&self.slab, buffer.0);
        // SAFETY: the token shows that the buffer is ours and not frozen, so no queued write reads it; the slice
        // borrows the ring, so nothing gives the buffer away meanwhile.
        unsafe { std::slice::from_raw_parts_mut(address.as_ptr(), bytes) }
    }

    /// Ends all changes to the buffer, so that TUN writes may be queued from it.
    pub(crate) fn freeze(&mut self, buffer: ReceiveBuffer) -> FrozenBuffer {
        self.receive_states[usize::from(buffer.0)] = ReceiveState { frozen: true, ..ReceiveState::default() };
        FrozenBuffer(buffer.0)
    }

    /// Gives the buffer back to be filled, by the kernel or with fragments, as soon as the TUN writes queued from it are
    /// done.
    pub(crate) fn release(&mut self, buffer: FrozenBuffer) {
        self.receive_states[usize::from(buffer.0)].released = true;
        self.provide_if_done(buffer.0);
    }

    pub(super) fn provide_if_done(&mut self, buffer: u16) {
        let state = &mut self.receive_states[usize::from(buffer)];
        if state.released && state.writes == 0 {
            *state = ReceiveState::default();
            match buffer.checked_sub(UDP_RECEIVES_IN_FLIGHT) {
                None => E::provide_receive(self, buffer),
                Some(assembly) => self.finished_assemblies.push(assembly),
            }
        }
    }

    /// Takes in a filled buffer, which is ours from now on.
    pub(super) fn complete_receive(&mut self, socket: SocketSlot, id: u16, datagram: Datagram) {
        self.completions.push_back(Completion::Received { socket, buffer: ReceiveBuffer(id), datagram });
    }

    pub(super) fn end_receive(&mut self, socket: SocketSlot, error: Option<io::Error>) {
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
