//! The two kinds of UDP socket on a worker's port: the unconnected listener and a lane's connected one.
//!
//! Both are bound to the same specific address with `SO_REUSEPORT`. Between a lane socket's `bind` and its `connect`
//! the kernel may give it datagrams of strangers. A program attached to the listener could keep them away
//! (`SO_ATTACH_REUSEPORT_CBPF`), but there is no safe wrapper for it, and it does not close the gap entirely. So
//! whoever reads a lane's socket compares each datagram's source: control while it drives the handshake, which reads
//! nearly all of them, and the worker afterwards.

use std::io;
use std::net::{IpAddr, SocketAddr};

use ringlane_shared::limits::{FORWARD_SOCKET_BYTES, LANE_BUFFER_BYTES, LISTENER_BUFFER_BYTES};
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
    set_socket_recv_buffer_size_force, set_socket_send_buffer_size_force,
};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::UdpSocket;

use crate::underlay;

/// The socket that everything at `local` reaches which no lane's socket takes. Needs a tokio runtime.
pub(super) fn listener(local: SocketAddr) -> io::Result<UdpSocket> {
    into_tokio(bound(local, LISTENER_BUFFER_BYTES)?)
}

/// A lane's socket: only what comes from `remote` reaches it. Needs a tokio runtime.
pub(super) fn connected(local: SocketAddr, remote: SocketAddr) -> io::Result<UdpSocket> {
    let socket = bound(local, LANE_BUFFER_BYTES)?;
    socket.connect(&remote.into())?;
    into_tokio(socket)
}

/// One half of a lane that is relayed for others: as [`connected`], but what waits in it no end can see.
pub(super) fn forward(local: SocketAddr, remote: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = bound(local, FORWARD_SOCKET_BYTES)?;
    socket.connect(&remote.into())?;
    Ok(socket.into())
}

/// A port of `ip` that nobody holds, and its socket.
///
/// The kernel is asked for one without `SO_REUSEPORT`: with it, it may choose one that we have already, and give either socket
/// what is for the other.
pub(super) fn on_free_port(ip: IpAddr) -> io::Result<(SocketAddr, UdpSocket)> {
    let probe = Socket::new(Domain::for_address((ip, 0).into()), Type::DGRAM, Some(Protocol::UDP))?;
    own_family_only(&probe, (ip, 0).into())?;
    probe.bind(&SocketAddr::new(ip, 0).into())?;
    let local = probe.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
    drop(probe);
    let local = SocketAddr::new(ip, local.port());
    Ok((local, into_tokio(bound(local, LISTENER_BUFFER_BYTES)?)?))
}

/// Whether nobody holds the port: with `SO_REUSEPORT` alone, a second process of the same user could share it and
/// would get half of our datagrams.
pub(super) fn check_unused(local: SocketAddr) -> io::Result<()> {
    Socket::new(Domain::for_address(local), Type::DGRAM, Some(Protocol::UDP))
        .and_then(|socket| own_family_only(&socket, local).and_then(|()| socket.bind(&local.into())))
}

/// Sends on the descriptor itself: tokio's sending functions answer "not ready" on a fresh socket without trying.
///
/// A datagram that cannot be sent is a lost one. `ECONNREFUSED` tells of an earlier datagram and means that this one
/// was not sent, so it is tried once more.
pub(super) fn send(socket: &UdpSocket, datagram: &[u8]) {
    let socket = SockRef::from(socket);
    retry_once(|| socket.send(datagram));
}

/// As [`send`], from an unconnected socket.
pub(super) fn send_to(socket: &UdpSocket, remote: SocketAddr, datagram: &[u8]) {
    let socket = SockRef::from(socket);
    retry_once(|| socket.send_to(datagram, &remote.into()));
}

fn retry_once(mut send: impl FnMut() -> io::Result<usize>) {
    if send().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
        let _ = send();
    }
}

fn bound(local: SocketAddr, buffer_bytes: usize) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(local), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    own_family_only(&socket, local)?;
    socket.set_reuse_port(true)?;
    underlay::mark(&socket)?;
    raise_buffers(&socket, buffer_bytes)?;
    // Datagrams leave whole and unfragmented whatever the kernel believes of the path: we probe it ourselves.
    match local.ip() {
        IpAddr::V4(_) => set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE)?,
        IpAddr::V6(_) => set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::PROBE)?,
    }
    socket.bind(&local.into())?;
    Ok(socket)
}

fn own_family_only(socket: &Socket, local: SocketAddr) -> io::Result<()> {
    if local.is_ipv6() { socket.set_only_v6(true) } else { Ok(()) }
}

/// Beyond the system's limit when we may (`CAP_NET_ADMIN`), else up to it.
fn raise_buffers(socket: &Socket, bytes: usize) -> io::Result<()> {
    if set_socket_recv_buffer_size_force(socket, bytes).is_err() {
        socket.set_recv_buffer_size(bytes)?;
    }
    if set_socket_send_buffer_size_force(socket, bytes).is_err() {
        socket.set_send_buffer_size(bytes)?;
    }
    Ok(())
}

fn into_tokio(socket: Socket) -> io::Result<UdpSocket> {
    UdpSocket::from_std(socket.into())
}
