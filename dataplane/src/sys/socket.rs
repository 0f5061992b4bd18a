//! The socket options that no safe library offers.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Asks the kernel to tell, with each datagram, how many it has dropped on this socket because its buffer was full.
pub(crate) fn report_receive_overflow(socket: BorrowedFd<'_>) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1)
}

/// Has the kernel give us datagrams of one size and sender in one receive (`UDP_GRO`, Linux 5.0).
pub(crate) fn receive_trains(socket: BorrowedFd<'_>) -> io::Result<()> {
    set(socket, libc::SOL_UDP, libc::UDP_GRO, 1)
}

/// Whether the kernel knows how to cut one send into datagrams (`UDP_SEGMENT`, Linux 4.18). What the network device makes
/// of it, only a send shows.
pub(crate) fn can_send_trains(socket: BorrowedFd<'_>) -> io::Result<()> {
    set(socket, libc::SOL_UDP, libc::UDP_SEGMENT, 1200)?;
    set(socket, libc::SOL_UDP, libc::UDP_SEGMENT, 0)
}

/// Asks the kernel to tell, with each datagram, the byte of DSCP and ECN in its header.
pub(crate) fn report_class(socket: BorrowedFd<'_>, is_ipv6: bool) -> io::Result<()> {
    match is_ipv6 {
        true => set(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1),
        false => set(socket, libc::IPPROTO_IP, libc::IP_RECVTOS, 1),
    }
}

/// How much the kernel holds of what was sent on the socket and has not left the device: in bytes of its memory, which are
/// a little more than those of the datagrams.
pub(crate) fn unsent_bytes(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open, and the request (SIOCOUTQ) writes one integer, which lives until the call returns.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(u32::try_from(bytes).unwrap_or(0)) }
}

fn set(socket: BorrowedFd<'_>, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the descriptor is open, and the option's value is the integer that lives until the call returns.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
