//! Being told that the host's addresses or links have changed.

use std::future::poll_fn;
use std::io;
use std::task::Poll;

use libc::ENOBUFS;
use ringlane_shared::limits::NETLINK_CHANGES_PER_WAKE_MAX;
use rtnetlink::MulticastGroup;
use rtnetlink::sys::{AsyncSocket, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};
use tracing::error;

/// A subscription to changes of the host's addresses and links.
///
/// It says only *that* something changed, and may say so without need; the truth is a fresh
/// [`Netlink::host_addresses`](super::Netlink::host_addresses). So nothing is queued here beyond the kernel's own
/// socket buffer, and an overflow of that is one more change.
///
/// Owner: the control thread.
pub struct AddressChanges {
    socket: TokioSocket,
    failed: bool,
}

impl std::fmt::Debug for AddressChanges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AddressChanges(..)")
    }
}

impl AddressChanges {
    pub(super) fn subscribe() -> io::Result<Self> {
        let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let groups = groups.into_iter().fold(0, |mask, group| mask | 1 << (group as u32 - 1));
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
        Ok(Self { socket, failed: false })
    }

    /// Waits until something has changed since the last call, and takes everything that has piled up as one change.
    ///
    /// Cancel-safe: a change is taken only in the poll that also returns it.
    pub async fn next(&mut self) {
        poll_fn(|context| {
            if self.failed {
                return Poll::Pending;
            }
            let mut changed = false;
            for _ in 0..NETLINK_CHANGES_PER_WAKE_MAX {
                // The messages are not looked at, so it does not matter that long ones are cut.
                let mut scratch = [0; 64];
                match self.socket.poll_recv(context, &mut &mut scratch[..]) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(())) => changed = true,
                    Poll::Ready(Err(error)) if error.raw_os_error() == Some(ENOBUFS) => changed = true,
                    Poll::Ready(Err(error)) => {
                        error!(%error, "cannot watch the host's addresses any more; changes go unnoticed from now on");
                        self.failed = true;
                        break;
                    }
                }
            }
            if changed { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}
