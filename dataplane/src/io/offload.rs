//! Which offloads a worker may use, and what it reports of them.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;

use ringlane_shared::plane::{Offload, OffloadGauges, OffloadState, Offloads};

use crate::sys::socket::{can_send_trains, receive_trains};

/// What is left of the wanted offloads when the kernel's UDP has been asked.
pub(crate) fn probe_udp(wanted: Offloads) -> io::Result<Offloads> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let sends = wanted.has(Offload::UdpGso) && can_send_trains(socket.as_fd()).is_ok();
    let receives = wanted.has(Offload::UdpGro) && receive_trains(socket.as_fd()).is_ok();
    let needs_sentinel = sends && wanted.has(Offload::UdpSentinel);
    Ok(wanted.with(Offload::UdpGso, sends).with(Offload::UdpGro, receives).with(Offload::UdpSentinel, needs_sentinel))
}

/// Reports what became of each offload, of those wanted and those there are.
pub(crate) fn report(wanted: Offloads, found: Offloads, gauges: &OffloadGauges) {
    for offload in Offload::ALL {
        let state = match (wanted.has(offload), found.has(offload)) {
            (false, _) => OffloadState::Off,
            (true, false) => OffloadState::Unavailable,
            (true, true) => OffloadState::On,
        };
        gauges.set(offload, state);
    }
}
