//! TUN interfaces for programs that are no node: what the measurements copy packets with.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::sys::steering::steer_by_flow;
use crate::sys::tun::{TunOffloads, set_interface, set_offloads};

/// A new TUN interface whose queues are read and written with plain, blocking system calls. It is down, has no
/// address, and is gone when the last queue is closed.
#[derive(Debug)]
pub struct BareTun {
    /// Its queues.
    pub queues: Vec<OwnedFd>,
}

impl BareTun {
    /// An interface of one queue without a packet header: the kernel cuts super-segments and completes checksums
    /// before the packets reach it.
    pub fn plain(interface: &str) -> io::Result<Self> {
        Ok(Self { queues: vec![open(interface, libc::IFF_TUN_EXCL)?] })
    }

    /// An interface of `queues` queues (at least one) with a virtio network header before each packet and all the
    /// offloads the kernel has. Flows are steered as a node's are, where the kernel lets us.
    pub fn offloaded(interface: &str, queues: u8) -> io::Result<Self> {
        let shape = libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
        let first = open(interface, shape | libc::IFF_TUN_EXCL)?;
        let all = TunOffloads { checksum: true, tso: true, uso: true };
        set_offloads(first.as_fd(), all).or_else(|_| set_offloads(first.as_fd(), TunOffloads { uso: false, ..all }))?;
        let rest = (1..queues).map(|_| open(interface, shape));
        let queues: Vec<OwnedFd> = std::iter::once(Ok(first)).chain(rest).collect::<io::Result<_>>()?;
        if queues.len() > 1 {
            // The kernel's own steering serves too.
            let _ = steer_by_flow(queues[0].as_fd());
        }
        Ok(Self { queues })
    }
}

fn open(interface: &str, flags: libc::c_int) -> io::Result<OwnedFd> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    set_interface(&device, interface, libc::IFF_TUN | libc::IFF_NO_PI | flags)?;
    Ok(device.into())
}
