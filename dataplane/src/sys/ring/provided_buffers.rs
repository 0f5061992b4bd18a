//! Buffers that the kernel fills by itself: one group, shared with it by a ring of entries.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

use super::Buffers;
use crate::sys::slab::Slab;

/// One group of provided buffers: the kernel takes from its head, we put back at its tail.
pub(super) struct ProvidedBuffers {
    pub(super) entries: NonNull<BufRingEntry>,
    pub(super) tail: u16,
    pub(super) buffers: Buffers,
}

impl ProvidedBuffers {
    /// Gives buffer `id` to the kernel. It must not be in its hands already: the callers hold the buffer's token.
    pub(super) fn provide(&mut self, slab: &Slab, id: u16) {
        let address = self.buffers.address(slab, id);
        let position = usize::from(self.tail & (self.buffers.count - 1));
        // SAFETY: `entries` points at `count` entries within the slab and `position` is below `count`.
        let mut entry = unsafe { self.entries.add(position) };
        // SAFETY: an entry is plain integers in mapped memory, which the kernel only reads, and only below the tail.
        let entry = unsafe { entry.as_mut() };
        entry.set_addr(address.as_ptr() as u64);
        entry.set_len(self.buffers.bytes_each as u32);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Makes the buffers given since the last call visible to the kernel.
    pub(super) fn publish(&self) {
        // SAFETY: `entries` is the base of a registered, page-aligned buffer ring.
        let tail = unsafe { BufRingEntry::tail(self.entries.as_ptr()) };
        // SAFETY: the tail is an aligned `u16` of the slab that only we write and the kernel reads; the atomic store
        // orders the entries before it.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}
