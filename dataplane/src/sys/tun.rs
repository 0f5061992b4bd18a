//! The ioctls that make a TUN interface.

use std::ffi::c_int;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// Opens queue number `index` of the TUN interface `name`; the first one creates it, and fails with `EBUSY` if
/// there is an interface of that name already.
///
/// The queue is non-blocking and has a virtio network header before each packet.
pub(crate) fn open_queue(name: &str, index: usize) -> io::Result<OwnedFd> {
    let device = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    let mut flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
    if index == 0 {
        flags |= libc::IFF_TUN_EXCL;
    }
    set_interface(&device, name, flags)?;
    Ok(device.into())
}

/// Makes `device` a queue of the TUN interface `name`.
pub(crate) fn set_interface(device: &File, name: &str, flags: c_int) -> io::Result<()> {
    // SAFETY: all-zero is a valid `ifreq`: integers, a byte array and null pointers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "interface name too long"));
    }
    for (slot, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *slot = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the descriptor is open and `TUNSETIFF` reads and writes one `ifreq`.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
