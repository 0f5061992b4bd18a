//! Making the TUN interface.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use ringlane_shared::plane::{Offload, Offloads};
use thiserror::Error;
use tracing::warn;

use crate::sys::steering::steer_by_flow;
use crate::sys::tun::{TunOffloads, open_queue, set_offloads};

/// Why there is no TUN interface: the system or the configuration is at fault, never a peer.
#[derive(Debug, Error)]
pub enum TunError {
    /// The kernel has no TUN device.
    #[error("/dev/net/tun is missing: load the module with `modprobe tun`, or give the container the device")]
    NoDevice,
    /// The process may not make interfaces.
    #[error("not allowed to create interface {interface}: run as root or with CAP_NET_ADMIN")]
    NotAllowed {
        /// The interface's name.
        interface: String,
    },
    /// There is an interface of that name.
    #[error(
        "interface {interface} exists already: stop what uses it, delete it with `ip link delete {interface}`, or set another `interface`"
    )]
    Exists {
        /// The interface's name.
        interface: String,
    },
    /// Anything else the kernel said.
    #[error("cannot create interface {interface}: {error}")]
    Kernel {
        /// The interface's name.
        interface: String,
        /// What the kernel said.
        error: io::Error,
    },
}

/// How long the interface of a killed node may outlive it.
const LINGER: Duration = Duration::from_secs(2);
/// Between two looks at it.
const LINGER_STEP: Duration = Duration::from_millis(20);

/// Whether this is a TUN interface that goes with the process that made it, so that it may be about to go.
fn is_transient_tun(interface: &Path) -> bool {
    let Ok(flags) = std::fs::read_to_string(interface.join("tun_flags")) else { return false };
    let flags = i32::from_str_radix(flags.trim().trim_start_matches("0x"), 16);
    flags.is_ok_and(|flags| flags & libc::IFF_PERSIST == 0)
}

/// A new TUN interface with one queue per worker. It exists until the last queue is closed, so whatever ends the
/// process removes it, with its addresses and routes.
#[derive(Debug)]
pub struct Tun {
    pub(crate) queues: Vec<OwnedFd>,
    /// What the configuration allows.
    pub(crate) wanted: Offloads,
    /// The same, less what the kernel's TUN does not have.
    pub(crate) offloads: Offloads,
}

impl Tun {
    /// Whether [`Tun::create`] has a chance, found out without touching anything.
    ///
    /// An interface that a killed node leaves behind lives until the kernel has taken the node's packet rings apart,
    /// which it does in the background: such a one is given two seconds to go.
    pub fn check(interface: &str) -> Result<(), TunError> {
        let there = Path::new("/sys/class/net").join(interface);
        let deadline = Instant::now() + LINGER;
        while there.exists() {
            if !is_transient_tun(&there) || Instant::now() >= deadline {
                return Err(TunError::Exists { interface: interface.to_owned() });
            }
            std::thread::sleep(LINGER_STEP);
        }
        if !Path::new("/dev/net/tun").exists() {
            return Err(TunError::NoDevice);
        }
        Ok(())
    }

    /// Creates the interface `interface` with `queues` queues and those of the `wanted` offloads that the kernel has. It is
    /// down and has no address.
    pub fn create(interface: &str, queues: u8, wanted: Offloads) -> Result<Self, TunError> {
        Self::check(interface)?;
        let queues = (0..usize::from(queues.max(1))).map(|index| open_queue(interface, index));
        let queues = queues.collect::<io::Result<_>>().map_err(|error| {
            let interface = interface.to_owned();
            match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TunError::NoDevice,
                Some(libc::EPERM | libc::EACCES) => TunError::NotAllowed { interface },
                Some(libc::EBUSY | libc::EEXIST) => TunError::Exists { interface },
                _ => TunError::Kernel { interface, error },
            }
        })?;
        let mut tun = Self { queues, wanted, offloads: wanted };
        tun.choose_offloads(interface);
        tun.steer(interface);
        Ok(tun)
    }

    /// Asks the kernel for the offloads that are wanted, and for fewer of them until it agrees.
    fn choose_offloads(&mut self, interface: &str) {
        let Some(queue) = self.queues.first() else { return };
        let wanted = self.wanted;
        let checksum = wanted.has(Offload::TunChecksum);
        let (tso, uso) = (checksum && wanted.has(Offload::TunTso), checksum && wanted.has(Offload::TunUso));
        let tries = [
            TunOffloads { checksum, tso, uso },
            TunOffloads { checksum, tso, uso: false },
            TunOffloads { checksum, tso: false, uso: false },
            TunOffloads::NONE,
        ];
        let mut refused = None;
        let got = tries.into_iter().find(|offloads| match set_offloads(queue.as_fd(), *offloads) {
            Ok(()) => true,
            Err(error) => {
                refused = Some(error);
                false
            }
        });
        let got = got.unwrap_or(TunOffloads::NONE);
        if let Some(error) = refused {
            warn!(interface, %error, ?got, "this kernel lacks offloads of the TUN; large transfers cost more");
        }
        self.offloads = wanted
            .with(Offload::TunChecksum, got.checksum)
            .with(Offload::TunTso, got.tso)
            .with(Offload::TunUso, got.uso);
    }

    /// Gives every flow a queue for good. Where the kernel does not let us, its own steering does, which may move a flow
    /// and let it overtake itself.
    fn steer(&self, interface: &str) {
        let Some(queue) = self.queues.first().filter(|_| self.queues.len() > 1) else { return };
        if let Err(error) = steer_by_flow(queue.as_fd()) {
            warn!(interface, %error, "no flow steering: eBPF is not allowed here (needs CAP_BPF); flows may be reordered");
        }
    }
}
