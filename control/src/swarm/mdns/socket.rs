//! A socket in the mDNS group, on one interface.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::task::{Context, Poll, ready};

use ringlane_shared::limits::MDNS_PACKET_BYTES_MAX;
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, SockAddr, Socket, Type};
use tokio::net::UdpSocket;

use crate::underlay;

const PORT: u16 = 5353;
const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);

/// Which group.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    pub(super) fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::Ipv4 } else { Self::Ipv6 }
    }
}

/// Hears the group on its interface only, and sends to it there.
pub(super) struct GroupSocket {
    pub(super) family: Family,
    socket: UdpSocket,
    group: SocketAddr,
}

impl GroupSocket {
    /// Shares the port with whoever else does mDNS on this host. What this host sends is not heard by it: its own
    /// addresses are never dialled.
    pub(super) fn open(family: Family, interface: u32) -> io::Result<Self> {
        let (domain, group) = match family {
            Family::Ipv4 => (Domain::IPV4, SocketAddr::V4(SocketAddrV4::new(GROUP_V4, PORT))),
            Family::Ipv6 => (Domain::IPV6, SocketAddr::V6(SocketAddrV6::new(GROUP_V6, PORT, 0, interface))),
        };
        let socket = Socket::new(domain, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
        underlay::mark(&socket)?;
        socket.set_reuse_address(true)?;
        match family {
            Family::Ipv4 => {
                let index = InterfaceIndexOrAddress::Index(interface);
                socket.join_multicast_v4_n(&GROUP_V4, &index)?;
                socket.set_multicast_all_v4(false)?;
                rustix::net::sockopt::set_ip_multicast_if_with_ifindex(
                    &socket,
                    &Ipv4Addr::UNSPECIFIED,
                    &Ipv4Addr::UNSPECIFIED,
                    interface,
                )?;
                socket.set_multicast_ttl_v4(255)?;
                socket.set_multicast_loop_v4(false)?;
            }
            Family::Ipv6 => {
                socket.set_only_v6(true)?;
                socket.join_multicast_v6(&GROUP_V6, interface)?;
                socket.set_multicast_all_v6(false)?;
                socket.set_multicast_if_v6(interface)?;
                socket.set_multicast_hops_v6(255)?;
                socket.set_multicast_loop_v6(false)?;
            }
        }
        // To the group's address, so that nothing but what is sent to the group comes here.
        socket.bind(&SockAddr::from(group))?;
        Ok(Self { family, socket: UdpSocket::from_std(socket.into())?, group })
    }

    /// The next packet; one that could not be received is an empty one.
    pub(super) fn poll_receive(&self, cx: &mut Context<'_>) -> Poll<Vec<u8>> {
        loop {
            if ready!(self.socket.poll_recv_ready(cx)).is_err() {
                return Poll::Ready(Vec::new());
            }
            let mut packet = vec![0; MDNS_PACKET_BYTES_MAX];
            match self.socket.try_recv(&mut packet) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                received => {
                    packet.truncate(received.unwrap_or(0));
                    return Poll::Ready(packet);
                }
            }
        }
    }

    /// Whether the kernel took it. What it did not is said again soon enough.
    pub(super) fn send(&self, packet: &[u8]) -> bool {
        self.socket.try_send_to(packet, self.group).inspect_err(|error| tracing::debug!(%error, "mDNS")).is_ok()
    }
}
