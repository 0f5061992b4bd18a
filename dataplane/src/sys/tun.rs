//! The ioctls that make a TUN interface and choose its offloads.

use std::ffi::c_int;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
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

/// What the TUN gives us without finishing it first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TunOffloads {
    /// Packets whose checksum is partial.
    pub(crate) checksum: bool,
    /// TCP super-segments, over IPv4 and IPv6.
    pub(crate) tso: bool,
    /// UDP super-segments, over IPv4 and IPv6.
    pub(crate) uso: bool,
}

impl TunOffloads {
    /// None of them.
    pub(crate) const NONE: Self = Self { checksum: false, tso: false, uso: false };

    fn bits(self) -> libc::c_ulong {
        let mut bits = 0;
        if self.checksum {
            bits |= libc::TUN_F_CSUM;
        }
        if self.tso {
            bits |= libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
        }
        if self.uso {
            bits |= libc::TUN_F_USO4 | libc::TUN_F_USO6;
        }
        libc::c_ulong::from(bits)
    }
}

/// Chooses the offloads of the whole interface, whichever queue is named. Fails with `EINVAL` if the kernel does not know
/// one of them; then nothing has changed.
pub(crate) fn set_offloads(queue: BorrowedFd<'_>, offloads: TunOffloads) -> io::Result<()> {
    // SAFETY: the descriptor is open and `TUNSETOFFLOAD` takes its argument by value.
    let result = unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETOFFLOAD as _, offloads.bits()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
