//! A worker's memory: one anonymous mapping, made once, that the kernel reads and writes packets in.

use std::io;
use std::ptr::NonNull;

/// Bytes of a huge page on every architecture with 4 KiB pages.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// A fixed, zeroed mapping that begins at a page; in huge pages where they are wanted and the kernel has them to spare.
///
/// Owner: one worker's packet ring. It is not `Send`: nothing outside that thread ever points into it.
pub(crate) struct Slab {
    base: NonNull<u8>,
    bytes: usize,
    is_huge: bool,
}

impl Slab {
    /// Maps at least `bytes`.
    pub(crate) fn map(bytes: usize, wants_huge_pages: bool) -> io::Result<Self> {
        if wants_huge_pages && let Some(slab) = Self::map_huge(bytes) {
            return Ok(slab);
        }
        let base = map(bytes, libc::MAP_POPULATE)?;
        Ok(Self { base, bytes, is_huge: false })
    }

    /// Maps in transparent huge pages, all of it or nothing.
    fn map_huge(bytes: usize) -> Option<Self> {
        let bytes = bytes.next_multiple_of(HUGE_PAGE_BYTES);
        let start = map(bytes + HUGE_PAGE_BYTES, 0).ok()?;
        let skip = start.as_ptr().align_offset(HUGE_PAGE_BYTES);
        // SAFETY: the mapping has a huge page more than is needed, so that one begins within the first of them.
        let base = unsafe { start.add(skip) };
        // SAFETY: the range lies at the mapping's start and is not used.
        unsafe { unmap(start, skip) };
        // SAFETY: as above.
        let end = unsafe { base.add(bytes) };
        // SAFETY: the range lies at the mapping's end and is not used.
        unsafe { unmap(end, HUGE_PAGE_BYTES - skip) };
        let slab = Self { base, bytes, is_huge: true };
        // Linux 6.1 makes huge pages of a range at once, and says whether it could.
        let made = [libc::MADV_HUGEPAGE, libc::MADV_POPULATE_WRITE, libc::MADV_COLLAPSE].map(|advice| {
            // SAFETY: the range is the mapping, which is ours and which nobody points into yet.
            unsafe { libc::madvise(base.as_ptr().cast(), bytes, advice) }
        });
        (made == [0; 3]).then_some(slab)
    }

    /// Whether all of it lies in huge pages.
    pub(crate) fn is_huge(&self) -> bool {
        self.is_huge
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
        unsafe { unmap(self.base, self.bytes) };
    }
}

/// A new anonymous mapping.
fn map(bytes: usize, flags: libc::c_int) -> io::Result<NonNull<u8>> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no existing memory.
    let address = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mmap returned a null pointer"))
}

/// # Safety
/// The range is whole pages of a mapping of [`map`], and nothing uses it any more.
unsafe fn unmap(base: NonNull<u8>, bytes: usize) {
    if bytes > 0 {
        // SAFETY: what the caller promises.
        unsafe { libc::munmap(base.as_ptr().cast(), bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slab_has_all_its_bytes_whatever_its_pages_are() {
        for wants_huge_pages in [false, true] {
            let bytes = 3 * HUGE_PAGE_BYTES / 2;
            let slab = Slab::map(bytes, wants_huge_pages).unwrap();
            for offset in [0, bytes - 1] {
                let byte = slab.address(offset, 1);
                // SAFETY: one byte of the slab that nobody else points to.
                unsafe { byte.write(7) };
                // SAFETY: as above.
                assert_eq!(unsafe { byte.read() }, 7);
            }
            assert_eq!(slab.base.as_ptr().align_offset(4096), 0);
            assert!(!slab.is_huge() || slab.base.as_ptr().align_offset(HUGE_PAGE_BYTES) == 0);
        }
    }
}
