//! What the kernel tells of a received datagram besides its bytes, and what we tell it of a train of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;

use ringlane_shared::packet::marks::Ecn;

/// Room for an IPv6 socket address.
pub(super) const NAME_BYTES: usize = size_of::<libc::sockaddr_in6>();
/// Length, level and type of a control message.
const CONTROL_HEADER_BYTES: usize = 16;
const _: () = assert!(size_of::<libc::cmsghdr>() == CONTROL_HEADER_BYTES, "control messages are read as 64-bit ones");
/// Room for three control messages of up to four bytes each: `SO_RXQ_OVFL`, `UDP_GRO`, and `IP_TOS` or `IPV6_TCLASS`.
pub(super) const CONTROL_BYTES: usize = 3 * (CONTROL_HEADER_BYTES + 8);

/// Where and from whom a received datagram, or a train of them, is.
#[derive(Clone, Debug)]
pub(crate) struct Datagram {
    /// Its bytes within the receive buffer.
    pub(crate) range: Range<usize>,
    /// The sender; `None` if the kernel gave no usable address.
    pub(crate) from: Option<SocketAddr>,
    /// It was larger than the buffer; nothing of it is there.
    pub(crate) is_truncated: bool,
    /// What else the kernel says.
    pub(crate) control: Control,
}

/// What control messages say of a receive.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Control {
    /// The socket's running total of datagrams dropped for want of buffer space, when the kernel tells.
    pub(crate) overflow: Option<u32>,
    /// The size of each datagram but the last, which may be shorter, when there can be several.
    pub(crate) segment_bytes: Option<u16>,
    /// What the outer headers say of congestion, if the kernel was asked.
    pub(crate) ecn: Ecn,
}

impl Control {
    /// Reads control messages: length (8 bytes), level (4), type (4), value, padding to 8. What makes no sense ends them.
    pub(crate) fn parse(mut control: &[u8]) -> Self {
        let mut parsed = Self::default();
        while let Some((header, rest)) = control.split_first_chunk::<CONTROL_HEADER_BYTES>() {
            let [length, kind] = *header.as_chunks::<8>().0 else { break };
            let length = u64::from_ne_bytes(length);
            let [level, kind] = *kind.as_chunks::<4>().0 else { break };
            let value_bytes = usize::try_from(length).ok().and_then(|bytes| bytes.checked_sub(CONTROL_HEADER_BYTES));
            let Some(value) = value_bytes.and_then(|bytes| rest.get(..bytes)) else { break };
            // The only one of a single byte, when it comes as that.
            if let (libc::IPPROTO_IP, libc::IP_TOS, Some(class)) =
                (i32::from_ne_bytes(level), i32::from_ne_bytes(kind), value.first())
            {
                parsed.ecn = Ecn::of(*class);
            } else if let Some(number) = value.first_chunk().map(|number| i32::from_ne_bytes(*number)) {
                match (i32::from_ne_bytes(level), i32::from_ne_bytes(kind)) {
                    (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => parsed.overflow = Some(number as u32),
                    (libc::SOL_UDP, libc::UDP_GRO) => {
                        parsed.segment_bytes = u16::try_from(number).ok().filter(|bytes| *bytes > 0);
                    }
                    (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => parsed.ecn = Ecn::of(number as u8),
                    _ => {}
                }
            }
            control = rest.get(value.len().next_multiple_of(8)..).unwrap_or_default();
        }
        parsed
    }
}

/// The control message that has the kernel cut one send into datagrams (`UDP_SEGMENT`).
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(super) struct SegmentControl {
    length: usize,
    level: i32,
    kind: i32,
    segment_bytes: u16,
    padding: [u8; 6],
}

impl SegmentControl {
    /// Datagrams of so many bytes; the last may be shorter.
    pub(super) fn new(segment_bytes: u16) -> Self {
        Self {
            length: CONTROL_HEADER_BYTES + size_of::<u16>(),
            level: libc::SOL_UDP,
            kind: libc::UDP_SEGMENT,
            segment_bytes,
            padding: [0; 6],
        }
    }
}

/// The control message that gives datagrams a byte of DSCP and ECN (`IP_TOS`, `IPV6_TCLASS`).
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(super) struct ClassControl {
    length: usize,
    level: i32,
    kind: i32,
    class: i32,
    padding: [u8; 4],
}

impl ClassControl {
    /// That byte, over IPv6 or IPv4.
    pub(super) fn new(class: u8, is_ipv6: bool) -> Self {
        let (level, kind) = match is_ipv6 {
            true => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
            false => (libc::IPPROTO_IP, libc::IP_TOS),
        };
        Self { length: CONTROL_HEADER_BYTES + size_of::<i32>(), level, kind, class: class.into(), padding: [0; 4] }
    }
}

/// What a send may say, in the order in which it is said.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(super) struct SendControl {
    pub(super) segments: SegmentControl,
    pub(super) class: ClassControl,
}

/// Reads a socket address (`sockaddr_in` or `sockaddr_in6`).
pub(crate) fn parse_socket_address(name: &[u8]) -> Option<SocketAddr> {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(level: i32, kind: i32, value: &[u8]) -> Vec<u8> {
        let mut message = Vec::new();
        message.extend((CONTROL_HEADER_BYTES as u64 + value.len() as u64).to_ne_bytes());
        message.extend(level.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(value);
        message.resize(message.len().next_multiple_of(8), 0xee);
        message
    }

    #[test]
    fn each_control_message_is_found_in_any_order_and_beside_others() {
        let overflow = message(libc::SOL_SOCKET, libc::SO_RXQ_OVFL, &7u32.to_ne_bytes());
        let segments = message(libc::SOL_UDP, libc::UDP_GRO, &1452i32.to_ne_bytes());
        let other = message(libc::SOL_SOCKET, libc::SCM_TIMESTAMP, &[9; 16]);
        let [tos, class] = [&[0xbb][..], &0xbbi32.to_ne_bytes()].map(|value| match value.len() {
            1 => message(libc::IPPROTO_IP, libc::IP_TOS, value),
            _ => message(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, value),
        });
        let both = Control { overflow: Some(7), segment_bytes: Some(1452), ecn: Ecn::NotEct };
        assert_eq!(Control::parse(&[&overflow[..], &segments].concat()), both);
        assert_eq!(Control::parse(&[&segments[..], &other, &overflow].concat()), both);
        for marked in [tos, class] {
            let expected = Control { ecn: Ecn::Ce, ..both };
            assert_eq!(Control::parse(&[&overflow[..], &marked, &segments].concat()), expected);
            assert!(overflow.len() + segments.len() + marked.len() <= CONTROL_BYTES);
        }
        assert_eq!(Control::parse(&[]), Control::default());
    }

    #[test]
    fn a_control_message_that_makes_no_sense_says_nothing() {
        for number in [0, -1, 65_536] {
            let control = Control::parse(&message(libc::SOL_UDP, libc::UDP_GRO, &i32::to_ne_bytes(number)));
            assert_eq!(control, Control::default());
        }
        let good = message(libc::SOL_UDP, libc::UDP_GRO, &1452i32.to_ne_bytes());
        for end in 0..good.len() - 4 {
            assert_eq!(Control::parse(&good[..end]), Control::default(), "{end}");
        }
        for length in [0, 15, 25, u64::MAX] {
            let mut lies = good.clone();
            lies[..8].copy_from_slice(&u64::to_ne_bytes(length));
            assert_eq!(Control::parse(&lies), Control::default(), "{length}");
        }
    }

    proptest! {
        #[test]
        fn no_control_bytes_do_any_harm(bytes in proptest::collection::vec(any::<u8>(), 0..96)) {
            let control = Control::parse(&bytes);
            prop_assert_ne!(control.segment_bytes, Some(0));
        }
    }
}
