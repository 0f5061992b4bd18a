//! The ring's TUN side: super-segments in, super-segments out.

use std::io::{self, IoSlice};

use ringlane_shared::id::PeerIndex;
use ringlane_shared::limits::{COALESCE_HEADER_BYTES_MAX, COALESCE_PIECES_MAX};
use ringlane_shared::packet::coalesce::Span;

use super::assembly::find;
use super::{Completion, Engine, PacketRing};
use crate::sys::vnet_header::{VNET_HEADER_BYTES, VnetHeader};

/// A filled TUN read: a virtio network header and an inner packet or super-segment. Ours until
/// [`PacketRing::recycle_tun`].
#[derive(Debug)]
#[must_use = "a buffer that is not recycled is lost to the worker"]
pub(crate) struct TunBuffer(pub(super) u16);

/// What a TUN write carries, for the counters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct WriteTag {
    pub(crate) peer: PeerIndex,
    pub(crate) packets: u16,
}

/// One write to the TUN: `head`, then the spans of frozen buffers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TunWrite<'a> {
    pub(crate) header: VnetHeader,
    /// New headers, of a super-segment; empty for a packet that stands in a buffer whole. At most
    /// [`COALESCE_HEADER_BYTES_MAX`].
    pub(crate) head: &'a [u8],
    /// At most [`COALESCE_PIECES_MAX`].
    pub(crate) spans: &'a [Span],
    pub(crate) tag: WriteTag,
}

/// The memory of one queued TUN write. The engine reads it until its completion.
pub(super) struct WriteEntry {
    /// The heads, then the spans.
    vectors: [libc::iovec; 1 + COALESCE_PIECES_MAX],
    vector_count: usize,
    head: [u8; VNET_HEADER_BYTES + COALESCE_HEADER_BYTES_MAX],
    /// The receive buffers the spans lie in, each named once per run of spans.
    buffers: [u16; COALESCE_PIECES_MAX],
    buffer_count: usize,
    is_super_segment: bool,
    tag: WriteTag,
}

impl WriteEntry {
    pub(super) fn empty() -> Self {
        Self {
            vectors: [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; _],
            vector_count: 0,
            head: [0; _],
            buffers: [0; _],
            buffer_count: 0,
            is_super_segment: false,
            tag: WriteTag { peer: PeerIndex(0), packets: 0 },
        }
    }

    /// What is to be written. The pointers are good from [`PacketRing::tun_write`] until the write is completed.
    pub(super) fn vectors(&self) -> &[libc::iovec] {
        &self.vectors[..self.vector_count]
    }
}

impl<E: Engine> PacketRing<E> {
    /// Starts reading the TUN if it is not being read.
    pub(crate) fn arm_tun_read(&mut self) -> io::Result<()> {
        if !self.tun_reading {
            E::read_tun(self)?;
            self.tun_reading = true;
        }
        Ok(())
    }

    /// The first `bytes` of a filled TUN buffer.
    pub(crate) fn tun_bytes(&mut self, buffer: &TunBuffer, bytes: usize) -> &mut [u8] {
        let bytes = bytes.min(self.tun_buffers.bytes_each);
        let address = self.tun_buffers.address(&self.slab, buffer.0);
        // SAFETY: the token shows that the buffer is ours; the slice borrows the ring, so nothing gives the buffer
        // away meanwhile.
        unsafe { std::slice::from_raw_parts_mut(address.as_ptr(), bytes) }
    }

    /// Gives a TUN buffer back to be filled again.
    pub(crate) fn recycle_tun(&mut self, buffer: TunBuffer) {
        E::provide_tun(self, buffer.0);
    }

    /// Queues one write to the TUN. The buffers of its spans go back to be filled only when it is done.
    pub(crate) fn tun_write(&mut self, write: &TunWrite<'_>) -> io::Result<()> {
        if self.free_writes.is_empty() {
            self.enter()?;
        }
        let Some(id) = self.free_writes.pop() else {
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        };
        let queued = self.fill_write(id, write).and_then(|()| E::write_tun(self, id));
        match queued {
            // No completion of it has been taken in yet: that takes an enter, and the entry was queued behind it.
            Ok(()) => {
                let entry = &self.writes[usize::from(id)];
                for &buffer in &entry.buffers[..entry.buffer_count] {
                    self.receive_states[usize::from(buffer)].writes += 1;
                }
            }
            Err(_) => self.free_writes.push(id),
        }
        queued
    }

    /// Writes what `write` says into entry `id`.
    fn fill_write(&mut self, id: u16, write: &TunWrite<'_>) -> io::Result<()> {
        let impossible = || io::Error::from_raw_os_error(libc::EINVAL);
        let entry = &mut self.writes[usize::from(id)];
        let head_bytes = VNET_HEADER_BYTES + write.head.len();
        if head_bytes > entry.head.len() || write.spans.len() > COALESCE_PIECES_MAX {
            return Err(impossible());
        }
        entry.head[..VNET_HEADER_BYTES].copy_from_slice(&write.header.to_bytes());
        entry.head[VNET_HEADER_BYTES..head_bytes].copy_from_slice(write.head);
        entry.vectors[0] = libc::iovec { iov_base: entry.head.as_mut_ptr().cast(), iov_len: head_bytes };
        entry.buffer_count = 0;
        entry.is_super_segment = write.header.segmentation.is_some();
        entry.tag = write.tag;
        let mut last = None;
        for (vector, span) in entry.vectors[1..].iter_mut().zip(write.spans) {
            let (offset, bytes) = (span.offset as usize, span.bytes as usize);
            // A span is only ever read from a buffer that nobody changes and that lies in our part of the slab.
            if !self.receive_states.get(usize::from(span.buffer)).is_some_and(|state| state.frozen) {
                return Err(impossible());
            }
            let (buffers, number) = find(&self.receive_buffers, &self.assembly_buffers, span.buffer);
            if offset + bytes > buffers.bytes_each {
                return Err(impossible());
            }
            let address = buffers.address(&self.slab, number);
            *vector = libc::iovec { iov_base: address.as_ptr().wrapping_add(offset).cast(), iov_len: bytes };
            if last != Some(span.buffer) {
                entry.buffers[entry.buffer_count] = span.buffer;
                entry.buffer_count += 1;
                last = Some(span.buffer);
            }
        }
        entry.vector_count = 1 + write.spans.len();
        Ok(())
    }

    /// Writes one packet to the TUN at once, outside the ring: for the few that arrived before their lane did, and for
    /// our own.
    pub(crate) fn tun_write_now(&self, packet: &[u8], header: VnetHeader) -> io::Result<()> {
        rustix::io::writev(&self.tun, &[IoSlice::new(&header.to_bytes()), IoSlice::new(packet)])?;
        Ok(())
    }

    /// Writes to the TUN at once, outside the ring: `write`, whose spans lie in `memory`, which is nobody's buffer and so
    /// cannot wait for a completion. A failure is told by one.
    pub(crate) fn tun_write_from(&mut self, write: &TunWrite<'_>, memory: &[u8]) {
        let header = write.header.to_bytes();
        let mut slices = [IoSlice::new(&[]); 2 + COALESCE_PIECES_MAX];
        slices[0] = IoSlice::new(&header);
        slices[1] = IoSlice::new(write.head);
        for (slice, span) in slices[2..].iter_mut().zip(write.spans) {
            let (offset, bytes) = (span.offset as usize, span.bytes as usize);
            *slice = IoSlice::new(memory.get(offset..offset + bytes).unwrap_or_default());
        }
        let slices = &slices[..2 + write.spans.len().min(COALESCE_PIECES_MAX)];
        let is_super_segment = write.header.segmentation.is_some();
        match rustix::io::writev(&self.tun, slices) {
            Ok(_) => self.super_segments_taken |= is_super_segment,
            Err(error) => {
                let is_unknown = is_super_segment && !self.super_segments_taken && error.raw_os_error() == libc::EINVAL;
                self.completions.push_back(Completion::TunWriteFailed { tag: write.tag, is_unknown });
            }
        }
    }

    /// Takes in a filled buffer, which is ours from now on.
    pub(super) fn complete_tun_read(&mut self, id: u16, bytes: usize) {
        self.completions.push_back(Completion::TunRead { buffer: TunBuffer(id), bytes });
    }

    pub(super) fn end_tun_read(&mut self, error: Option<io::Error>) {
        self.tun_reading = false;
        self.completions.push_back(Completion::TunReadEnded { error });
    }

    pub(super) fn complete_write(&mut self, id: u16, error: Option<io::Error>) {
        let entry = &self.writes[usize::from(id)];
        match error {
            None => self.super_segments_taken |= entry.is_super_segment,
            Some(error) => {
                let is_unknown =
                    entry.is_super_segment && !self.super_segments_taken && error.raw_os_error() == Some(libc::EINVAL);
                self.completions.push_back(Completion::TunWriteFailed { tag: entry.tag, is_unknown });
            }
        }
        for position in 0..entry.buffer_count {
            let buffer = self.writes[usize::from(id)].buffers[position];
            self.receive_states[usize::from(buffer)].writes -= 1;
            self.provide_if_done(buffer);
        }
        self.free_writes.push(id);
    }
}
