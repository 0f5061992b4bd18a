//! Packets that arrive in fragments: which are under way, and the buffers they are put together in.

use std::time::Instant;

use ringlane_shared::drop_reason::DropReason;
use ringlane_shared::id::PeerIndex;
use ringlane_shared::limits::ASSEMBLY_BUFFERS;
use ringlane_shared::packet::coalesce::Span;
use ringlane_shared::packet::marks::{Ecn, decapsulate};
use ringlane_shared::packet::reassembly::Reassembly;
use ringlane_shared::wire::fragment::Fragment;

use crate::inbound::{Assemble, Assembled, OpenedRecord};
use crate::sys::ring::{Assemblies, Engine, FrozenBuffer, PacketRing, SocketSlot};

/// Free buffers below which the turn's packets are written before more are put together. One record can complete more
/// packets than that only if most of them were begun before.
const FREE_BUFFERS_MIN: usize = 16;

/// A worker's packets that are not whole yet, and those that are and wait to be written.
pub(crate) struct Fragments {
    reassembly: Reassembly<(PeerIndex, SocketSlot)>,
    whole: Vec<FrozenBuffer>,
}

impl Fragments {
    /// Without any.
    pub(crate) fn new() -> Self {
        Self { reassembly: Reassembly::default(), whole: Vec::with_capacity(usize::from(ASSEMBLY_BUFFERS)) }
    }

    /// Whether those that are whole should be written, and [`Self::release`]d, before the next record.
    pub(crate) fn is_short(&self) -> bool {
        !self.whole.is_empty() && self.reassembly.free_buffers() < FREE_BUFFERS_MIN
    }

    /// Writes of all that is whole have been queued.
    pub(crate) fn release(&mut self, ring: &mut PacketRing<impl Engine>) {
        for buffer in self.whole.drain(..) {
            ring.release(buffer);
        }
    }

    /// A lane has moved to another socket.
    pub(crate) fn move_lane(&mut self, peer: PeerIndex, from: SocketSlot, to: SocketSlot) {
        self.reassembly.rename((peer, from), (peer, to));
    }

    /// Takes back the buffers whose writes are done.
    pub(crate) fn reclaim(&mut self, ring: &mut PacketRing<impl Engine>) {
        while let Some(buffer) = ring.next_finished_assembly() {
            self.reassembly.give_back(buffer);
        }
    }
}

/// [`Fragments`] at work, in a ring's buffers.
pub(crate) struct Assembler<'w, L> {
    pub(crate) fragments: &'w mut Fragments,
    pub(crate) memory: Assemblies<'w>,
    pub(crate) now: Instant,
    /// Learns whose packet was given up, and why.
    pub(crate) lost: L,
}

impl<L: FnMut(PeerIndex, DropReason)> Assemble for Assembler<'_, L> {
    fn take(&mut self, record: &OpenedRecord, fragment: &Fragment<'_>) -> Option<Assembled<'_>> {
        let Self { fragments: Fragments { reassembly, whole }, memory, now, lost } = self;
        let incomplete = |(peer, _)| lost(peer, DropReason::FragmentIncomplete);
        let met_congestion = record.ecn == Ecn::Ce;
        let placed = reassembly.place((record.peer, record.slot), fragment, met_congestion, *now, incomplete)?;
        let is_written = memory.write(placed.buffer, placed.range.start, fragment.bytes);
        debug_assert!(is_written, "a buffer that is being filled is not frozen and holds any packet");
        let packet = placed.whole?;
        if packet.met_congestion
            && let Some(bytes) = memory.bytes_mut(placed.buffer, packet.bytes)
            && decapsulate(bytes, Ecn::Ce).is_err()
        {
            reassembly.give_back(placed.buffer);
            lost(record.peer, DropReason::CeNotEct);
            return None;
        }
        let frozen = memory.freeze(placed.buffer)?;
        let span = Span { buffer: frozen.id(), offset: 0, bytes: packet.bytes as u32 };
        whole.push(frozen);
        let bytes = memory.bytes(whole.last()?, packet.bytes);
        Some(Assembled { bytes, span, is_partial: packet.is_partial })
    }
}
