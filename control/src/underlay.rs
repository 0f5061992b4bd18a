//! Keeping what carries the tunnel out of the tunnel.
//!
//! Every socket of ours that we make ourselves is marked (`SO_MARK`), and those the libraries make have a port we know:
//! the rules of [`crate::netlink::Detour`] send both past our own table. And before anything is dialled the kernel is
//! asked where it would send it (`leads_into`).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

/// The mark of our own underlay traffic: `RL`.
pub const UNDERLAY_MARK: u32 = 0x524c;

/// Where the kernel is asked about: no packet is ever sent there.
const ASKED_PORT: u16 = 9;

/// Marks a socket. Without the capability there is no interface of ours either, and nothing to be kept out of.
pub(crate) fn mark(socket: &Socket) -> io::Result<()> {
    match socket.set_mark(UNDERLAY_MARK) {
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => Err(error),
        _ => Ok(()),
    }
}

/// A marked socket for whatever is sent to `remote`.
pub(crate) fn socket(remote: SocketAddr, kind: Type) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(remote), kind, None)?;
    mark(&socket)?;
    Ok(socket)
}

/// The address that the kernel would send from to reach `remote`, from a marked socket or another.
pub(crate) fn source_to(remote: SocketAddr, marked: bool) -> Option<IpAddr> {
    let socket = Socket::new(Domain::for_address(remote), Type::DGRAM, None).ok()?;
    if marked {
        mark(&socket).ok()?;
    }
    let any = if remote.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { IpAddr::from(Ipv6Addr::UNSPECIFIED) };
    socket.bind(&SocketAddr::from((any, 0)).into()).ok()?;
    socket.connect(&remote.into()).ok()?;
    Some(socket.local_addr().ok()?.as_socket()?.ip())
}

/// Whether a socket bound to `local` can send to `remote` at all, as far as the two addresses tell.
pub(crate) fn may_reach(local: IpAddr, remote: IpAddr) -> bool {
    local.is_ipv4() == remote.is_ipv4() && local.is_loopback() == remote.is_loopback()
}

/// Whether the kernel routes packets to `remote` into the tunnel: it would send them from one of `inner`, our built-in
/// addresses, as all of our routes say. Asked by connecting a UDP socket, which sends nothing and honours every rule.
pub(crate) fn leads_into(remote: IpAddr, inner: &[IpAddr], marked: bool) -> bool {
    inner.iter().any(|address| address.is_ipv4() == remote.is_ipv4())
        && source_to((remote, ASKED_PORT).into(), marked).is_some_and(|source| inner.contains(&source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_from_where_it_would_send() {
        let loopback: IpAddr = Ipv4Addr::LOCALHOST.into();
        assert_eq!(source_to((loopback, 1).into(), true), Some(loopback));
        assert!(leads_into([127, 0, 0, 9].into(), &[loopback], false));
        assert!(!leads_into([127, 0, 0, 9].into(), &[[100, 64, 0, 1].into()], true));
        assert!(!leads_into(Ipv6Addr::LOCALHOST.into(), &[loopback], true));
    }
}
