//! What is said to those who talk to a service's address in no way that anybody answers.

use std::net::Ipv6Addr;

use ringlane_shared::packet::service::ServicePacket;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{Icmpv6DstUnreachable, Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv6Packet, Ipv6Repr};

/// Bytes of the offending packet that are sent back; with the headers they stay below IPv6's least MTU.
const QUOTED_BYTES_MAX: usize = 512;
const HEADER_BYTES: usize = 40;
const HOP_LIMIT: u8 = 64;

/// "Nobody there": the peer, or a port.
pub(super) fn unreachable(to: &ServicePacket<'_>, reason: Icmpv6DstUnreachable) -> Option<Vec<u8>> {
    let offender = Ipv6Packet::new_checked(to.packet).ok()?;
    let header = Ipv6Repr::parse(&offender).ok()?;
    let data = to.packet.get(HEADER_BYTES..)?;
    let data = &data[..data.len().min(QUOTED_BYTES_MAX)];
    packet(to.service, to.client, &Icmpv6Repr::DstUnreachable { reason, header, data })
}

/// The reply to an echo request.
pub(super) fn echo_reply(to: &ServicePacket<'_>) -> Option<Vec<u8>> {
    let request = Icmpv6Packet::new_checked(to.packet.get(HEADER_BYTES..)?).ok()?;
    match Icmpv6Repr::parse(&to.client, &to.service, &request, &ChecksumCapabilities::default()).ok()? {
        Icmpv6Repr::EchoRequest { ident, seq_no, data } => {
            packet(to.service, to.client, &Icmpv6Repr::EchoReply { ident, seq_no, data })
        }
        _ => None,
    }
}

fn packet(from: Ipv6Addr, to: Ipv6Addr, message: &Icmpv6Repr<'_>) -> Option<Vec<u8>> {
    let header = Ipv6Repr {
        src_addr: from,
        dst_addr: to,
        next_header: IpProtocol::Icmpv6,
        payload_len: message.buffer_len(),
        hop_limit: HOP_LIMIT,
    };
    let mut bytes = vec![0; HEADER_BYTES + message.buffer_len()];
    header.emit(&mut Ipv6Packet::new_unchecked(&mut bytes));
    let mut body = Icmpv6Packet::new_unchecked(bytes.get_mut(HEADER_BYTES..)?);
    message.emit(&from, &to, &mut body, &ChecksumCapabilities::default());
    Some(bytes)
}
