//! The buffers in which the worker puts packets together that arrived in fragments. They lie in the slab beside the
//! receive buffers, are named behind them, and are written to the TUN like them.

use ringlane_shared::limits::{ASSEMBLY_BUFFER_BYTES, UDP_RECEIVES_IN_FLIGHT};

use super::receive::{FrozenBuffer, ReceiveState};
use super::{Buffers, Engine, PacketRing, Slab};

/// The assembly buffers of a ring, beside one of its frozen buffers: see [`PacketRing::frozen_and_assemblies`].
pub(crate) struct Assemblies<'r> {
    slab: &'r Slab,
    buffers: Buffers,
    /// Each one's state.
    states: &'r mut [ReceiveState],
}

impl Assemblies<'_> {
    /// Copies bytes into a buffer that is not frozen. Returns whether it could.
    pub(crate) fn write(&mut self, buffer: u16, offset: usize, bytes: &[u8]) -> bool {
        let is_ours = self.states.get(usize::from(buffer)).is_some_and(|state| !state.frozen);
        if !is_ours || offset > ASSEMBLY_BUFFER_BYTES || bytes.len() > ASSEMBLY_BUFFER_BYTES - offset {
            return false;
        }
        let to = self.buffers.address(self.slab, buffer).as_ptr().wrapping_add(offset);
        // SAFETY: the range lies within a buffer that is not frozen, so no queued write reads it and no slice of it is
        // out; it is none of `bytes`, which are not this worker's slab's unless they lie in a frozen buffer.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        true
    }

    /// The first `bytes` of a buffer, unless it is frozen.
    pub(crate) fn bytes_mut(&mut self, buffer: u16, bytes: usize) -> Option<&mut [u8]> {
        self.states.get(usize::from(buffer)).filter(|state| !state.frozen)?;
        let address = self.buffers.address(self.slab, buffer);
        let bytes = bytes.min(ASSEMBLY_BUFFER_BYTES);
        // SAFETY: the range lies within a buffer that is not frozen, so no queued write reads it, and no other slice of it
        // is out while this one borrows `self`.
        Some(unsafe { std::slice::from_raw_parts_mut(address.as_ptr(), bytes) })
    }

    /// Ends all changes to a buffer, so that TUN writes may be queued from it. `None` if that was done already.
    pub(crate) fn freeze(&mut self, buffer: u16) -> Option<FrozenBuffer> {
        let state = self.states.get_mut(usize::from(buffer)).filter(|state| !state.frozen)?;
        *state = ReceiveState { frozen: true, ..ReceiveState::default() };
        Some(FrozenBuffer(UDP_RECEIVES_IN_FLIGHT + buffer))
    }

    /// The first `bytes` of a frozen assembly buffer.
    pub(crate) fn bytes(&self, buffer: &FrozenBuffer, bytes: usize) -> &[u8] {
        let address = self.buffers.address(self.slab, buffer.0.saturating_sub(UDP_RECEIVES_IN_FLIGHT));
        let bytes = bytes.min(ASSEMBLY_BUFFER_BYTES);
        // SAFETY: the token shows that the buffer is not anybody's to change; had it been a receive buffer's, the slice
        // would be the first assembly's, which `write` cannot change while this borrows `self`.
        unsafe { std::slice::from_raw_parts(address.as_ptr(), bytes) }
    }
}

impl<E: Engine> PacketRing<E> {
    /// The whole of a frozen buffer, and the assembly buffers, into which it may be copied.
    pub(crate) fn frozen_and_assemblies(&mut self, buffer: &FrozenBuffer) -> (&[u8], Assemblies<'_>) {
        let (buffers, number) = find(&self.receive_buffers, &self.assembly_buffers, buffer.0);
        let address = buffers.address(&self.slab, number);
        // SAFETY: the token shows that the buffer is neither the engine's to fill nor anybody's to change.
        let frozen = unsafe { std::slice::from_raw_parts(address.as_ptr(), buffers.bytes_each) };
        let states = &mut self.receive_states[usize::from(UDP_RECEIVES_IN_FLIGHT)..];
        (frozen, Assemblies { slab: &self.slab, buffers: self.assembly_buffers, states })
    }

    /// The next assembly buffer that was frozen and released, and whose writes are done: it may be used again.
    pub(crate) fn next_finished_assembly(&mut self) -> Option<u16> {
        self.finished_assemblies.pop()
    }
}

/// Among which buffers, and at which place there, the one is that TUN writes know by this name.
pub(super) fn find<'b>(receives: &'b Buffers, assemblies: &'b Buffers, buffer: u16) -> (&'b Buffers, u16) {
    match buffer.checked_sub(UDP_RECEIVES_IN_FLIGHT) {
        None => (receives, buffer),
        Some(assembly) => (assemblies, assembly),
    }
}
