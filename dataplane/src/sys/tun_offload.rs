//! What the kernel may leave undone in the packets it hands to a TUN interface.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `TUNSETOFFLOAD`: `_IOW('T', 208, unsigned int)`.
const TUN_SET_OFFLOAD: libc::Ioctl = 0x4004_54d0_u32 as libc::Ioctl;

/// Checksums may be partial.
pub(crate) const CHECKSUM: u32 = 0x01;
/// TCP over IPv4 and IPv6 may come as super-segments.
pub(crate) const TCP: u32 = 0x02 | 0x04;
/// UDP over IPv4 and IPv6 may come as super-segments; the kernel has it since 6.2, and only both together.
pub(crate) const UDP: u32 = 0x20 | 0x40;

/// Sets the offloads of the interface that `queue` belongs to: the sum of what the packets read from it may need.
/// Fails with `EINVAL` where the kernel does not know one of them.
pub(crate) fn set_offloads(queue: BorrowedFd<'_>, bits: u32) -> io::Result<()> {
    // SAFETY: the descriptor is open, and the ioctl takes its argument by value.
    let result = unsafe { libc::ioctl(queue.as_raw_fd(), TUN_SET_OFFLOAD, libc::c_ulong::from(bits)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
