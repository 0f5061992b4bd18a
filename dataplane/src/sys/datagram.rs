//! What the kernel tells of a received datagram besides its bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;

/// Where and from whom a received datagram is.
#[derive(Clone, Debug)]
pub(crate) struct Datagram {
    /// Its bytes within the receive buffer.
    pub(crate) range: Range<usize>,
    /// The sender; `None` if the kernel gave no usable address.
    pub(crate) from: Option<SocketAddr>,
    /// The socket's running total of datagrams dropped for want of buffer space, when the kernel tells.
    pub(crate) overflow: Option<u32>,
}

/// Reads a socket address (`sockaddr_in` or `sockaddr_in6`).
pub(super) fn parse_socket_address(name: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(*name.first_chunk()?);
    let port = u16::from_be_bytes([*name.get(2)?, *name.get(3)?]);
    match i32::from(family) {
        libc::AF_INET => {
            let address: [u8; 4] = name.get(4..8)?.try_into().ok()?;
            Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::from(address)), port))
        }
        libc::AF_INET6 => {
            let address: [u8; 16] = name.get(8..24)?.try_into().ok()?;
            Some(SocketAddr::new(IpAddr::V6(Ipv6Addr::from(address)), port))
        }
        _ => None,
    }
}

/// Finds the drop total in one control message: length (8 bytes), level (4), type (4), value (4).
pub(super) fn parse_overflow(control: &[u8]) -> Option<u32> {
    let word = |at: usize| Some(i32::from_ne_bytes(control.get(at..at + 4)?.try_into().ok()?));
    (word(8)? == libc::SOL_SOCKET && word(12)? == libc::SO_RXQ_OVFL).then(|| word(16))?.map(|total| total as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overflow_total_is_found_only_in_its_own_message() {
        let mut control = Vec::new();
        control.extend(20u64.to_ne_bytes());
        control.extend(libc::SOL_SOCKET.to_ne_bytes());
        control.extend(libc::SO_RXQ_OVFL.to_ne_bytes());
        control.extend(7u32.to_ne_bytes());
        assert_eq!(parse_overflow(&control), Some(7));
        control[12] ^= 1;
        assert_eq!(parse_overflow(&control), None);
        assert_eq!(parse_overflow(&control[..10]), None);
    }
}
