//! The socket option that no safe library offers.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Asks the kernel to tell, with each datagram, how many it has dropped on this socket because its buffer was full.
pub(crate) fn report_receive_overflow(socket: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = size_of_val(&on) as libc::socklen_t;
    // SAFETY: the descriptor is open, and the option's value is the integer that lives until the call returns.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RXQ_OVFL, (&raw const on).cast(), length)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
