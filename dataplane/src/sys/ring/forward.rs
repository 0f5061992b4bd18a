//! What the ring receives on the sockets of forwards, and sends on by their other halves out of the very buffers it came
//! in: nothing is copied.
//!
//! Those buffers are apart from the lanes', and what is received into them waits in a queue of its own, so that neither
//! takes anything from the lanes until the worker asks for it. While all of them are taken, datagrams wait in the sockets.
//! Such a buffer counts as a send buffer, by a number above theirs: it goes back to be filled when its sends are done.

use std::io;
use std::net::UdpSocket;

use ringlane_shared::limits::SEND_BUFFERS;

use super::send::SendState;
use super::{Engine, PacketRing, SendTag, SocketSlot, Train};
use crate::sys::datagram::Datagram;

/// The buffer of a datagram or train that was received to be forwarded. Ours until [`PacketRing::forward`] or
/// [`PacketRing::drop_forward`].
#[derive(Debug)]
#[must_use = "a buffer that is neither forwarded nor dropped is lost to the worker"]
pub(crate) struct ForwardBuffer(u16);

/// A datagram to be forwarded, or a train of them.
#[derive(Debug)]
pub(crate) struct ToForward {
    pub(crate) socket: SocketSlot,
    pub(crate) buffer: ForwardBuffer,
    pub(crate) datagram: Datagram,
}

impl<E: Engine> PacketRing<E> {
    /// Takes in a connected socket of a forward and starts receiving on it.
    pub(crate) fn add_forward_socket(&mut self, socket: UdpSocket) -> io::Result<SocketSlot> {
        self.take_in(socket, true)
    }

    /// How many times [`PacketRing::next_forward`] has something.
    pub(crate) fn forward_count(&self) -> usize {
        self.to_forward.len()
    }

    /// The next receive that the last [`PacketRing::enter`] has found on a forward's socket.
    pub(crate) fn next_forward(&mut self) -> Option<ToForward> {
        self.to_forward.pop_front()
    }

    /// Whether anything has come by a forward's socket since its receive was armed.
    pub(crate) fn has_received(&mut self, socket: SocketSlot) -> bool {
        self.entry(socket).is_some_and(|entry| entry.has_received)
    }

    /// The whole of a received datagram's buffer; the datagram is the range that came with it.
    pub(crate) fn forward_bytes(&mut self, buffer: &ForwardBuffer) -> &mut [u8] {
        let bytes = self.forward_buffers.bytes_each;
        let address = self.forward_buffers.address(&self.slab, buffer.0);
        // SAFETY: the token shows that the buffer is ours and that no send is queued from it; the slice borrows the ring, so
        // nothing gives the buffer away meanwhile.
        unsafe { std::slice::from_raw_parts_mut(address.as_ptr(), bytes) }
    }

    /// Queues the send of a train that lies in the buffer from `start` on. The buffer goes back to be filled when it is done.
    pub(crate) fn forward(
        &mut self,
        to: SocketSlot,
        buffer: ForwardBuffer,
        start: usize,
        mut train: Train,
        tag: SendTag,
    ) -> io::Result<()> {
        let room_bytes = self.forward_buffers.bytes_each.saturating_sub(start);
        train.bytes = train.bytes.min(room_bytes);
        if train.bytes < room_bytes && self.wants_sentinel(to, train) {
            train = train.with_sentinel(&mut self.forward_bytes(&buffer)[start..]);
        }
        let at = self.forward_buffers.offset + usize::from(buffer.0) * self.forward_buffers.bytes_each + start;
        let id = SEND_BUFFERS + buffer.0;
        self.send_states[usize::from(id)] = SendState::default();
        let queued = self.queue_train(to, id, at, train, tag);
        self.release_sent(id);
        queued
    }

    /// Gives the buffer of a datagram that is not forwarded back to be filled.
    pub(crate) fn drop_forward(&mut self, buffer: ForwardBuffer) {
        E::provide_forward(self, buffer.0);
    }

    /// Takes in a filled buffer, which is ours from now on.
    pub(super) fn complete_forward(&mut self, socket: SocketSlot, id: u16, datagram: Datagram) {
        if let Some(entry) = self.entry(socket) {
            entry.has_received = true;
        }
        self.to_forward.push_back(ToForward { socket, buffer: ForwardBuffer(id), datagram });
    }
}
