//! A worker's memory: one anonymous mapping, made once, that the kernel reads and writes packets in.

use std::io;
use std::ptr::NonNull;

/// A fixed, zeroed, page-aligned mapping; backed by huge pages where the kernel has them to spare.
///
/// Owner: one worker's packet ring. It is not `Send`: nothing outside that thread ever points into it.
pub(crate) struct Slab {
    base: NonNull<u8>,
    bytes: usize,
}

impl Slab {
    /// Maps at least `bytes`.
    pub(crate) fn map(bytes: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no existing memory.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // Advice only: without huge pages the slab works the same.
        // SAFETY: the range is the mapping just made.
        unsafe { libc::madvise(address, bytes, libc::MADV_HUGEPAGE) };
        let base = NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mmap returned a null pointer"))?;
        Ok(Self { base, bytes })
    }

    /// Address of the byte at `offset`, with at least `bytes` of the slab behind it.
    ///
    /// # Panics
    /// If the range does not lie within the slab: an offset is always computed from the slab's own layout.
    pub(crate) fn address(&self, offset: usize, bytes: usize) -> NonNull<u8> {
        assert!(offset.checked_add(bytes).is_some_and(|end| end <= self.bytes), "range outside the slab");
        // SAFETY: the assertion keeps the offset within the mapping.
        unsafe { self.base.add(offset) }
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` and nothing borrows from a slab beyond its owner, which drains the
        // ring before it drops this (`PacketRing::drop`).
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}
