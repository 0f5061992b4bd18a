//! The header before every packet and super-segment on the TUN: `struct virtio_net_hdr`, in the machine's byte order.

use ringlane_shared::packet::checksum::PartialChecksum;
use ringlane_shared::packet::segment::Transport;

/// Bytes of the header.
pub(crate) const VNET_HEADER_BYTES: usize = 10;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// Set beside a TCP type when the super-segment has CWR.
const GSO_ECN: u8 = 0x80;

/// How a super-segment is to be cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Segmentation {
    pub(crate) transport: Transport,
    pub(crate) is_ipv6: bool,
    /// TCP with CWR, which only the first piece keeps.
    pub(crate) has_cwr: bool,
    /// Payload bytes of each piece.
    pub(crate) segment_bytes: u16,
    /// Bytes of all headers together. The kernel's own figure can be wrong where packets are forwarded, so it is only
    /// ever written, never read.
    pub(crate) header_bytes: u16,
}

/// What the header says of its packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct VnetHeader {
    /// The packet's checksum is partial: where summing starts and, from there, where the sum goes.
    pub(crate) partial_checksum: Option<(u16, u16)>,
    /// Set for a super-segment.
    pub(crate) segmentation: Option<Segmentation>,
}

/// The header speaks of a kind of super-segment that we never asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct UnknownSegmentation;

impl VnetHeader {
    /// The header of a packet written as it stands.
    pub(crate) fn whole(checksum: Option<PartialChecksum>) -> Self {
        let partial_checksum = checksum.map(|checksum| (checksum.start, u16::from(checksum.offset)));
        Self { partial_checksum, segmentation: None }
    }

    /// Reads the header.
    pub(crate) fn parse(bytes: &[u8; VNET_HEADER_BYTES]) -> Result<Self, UnknownSegmentation> {
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let partial_checksum = (bytes[0] & NEEDS_CSUM != 0).then(|| (word(6), word(8)));
        let (transport, is_ipv6) = match bytes[1] & !GSO_ECN {
            GSO_NONE => return Ok(Self { partial_checksum, segmentation: None }),
            GSO_TCPV4 => (Transport::Tcp, false),
            GSO_TCPV6 => (Transport::Tcp, true),
            // The IP version is the packet's own.
            GSO_UDP_L4 => (Transport::Udp, false),
            _ => return Err(UnknownSegmentation),
        };
        let has_cwr = bytes[1] & GSO_ECN != 0;
        let segmentation = Segmentation { transport, is_ipv6, has_cwr, segment_bytes: word(4), header_bytes: word(2) };
        Ok(Self { partial_checksum, segmentation: Some(segmentation) })
    }

    /// The header's bytes, as the kernel reads them.
    pub(crate) fn to_bytes(self) -> [u8; VNET_HEADER_BYTES] {
        let mut bytes = [0; VNET_HEADER_BYTES];
        if let Some((start, offset)) = self.partial_checksum {
            bytes[0] = NEEDS_CSUM;
            bytes[6..8].copy_from_slice(&start.to_ne_bytes());
            bytes[8..10].copy_from_slice(&offset.to_ne_bytes());
        }
        if let Some(segmentation) = self.segmentation {
            let kind = match (segmentation.transport, segmentation.is_ipv6) {
                (Transport::Tcp, false) => GSO_TCPV4,
                (Transport::Tcp, true) => GSO_TCPV6,
                (Transport::Udp, _) => GSO_UDP_L4,
            };
            bytes[1] = if segmentation.has_cwr { kind | GSO_ECN } else { kind };
            bytes[2..4].copy_from_slice(&segmentation.header_bytes.to_ne_bytes());
            bytes[4..6].copy_from_slice(&segmentation.segment_bytes.to_ne_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vnet_header_reads_back_as_written() {
        let segmentation = |transport, is_ipv6, has_cwr| {
            Some(Segmentation { transport, is_ipv6, has_cwr, segment_bytes: 1368, header_bytes: 52 })
        };
        for header in [
            VnetHeader::default(),
            VnetHeader { partial_checksum: Some((40, 16)), segmentation: None },
            VnetHeader { partial_checksum: Some((20, 16)), segmentation: segmentation(Transport::Tcp, false, false) },
            VnetHeader { partial_checksum: Some((40, 16)), segmentation: segmentation(Transport::Tcp, true, true) },
            VnetHeader { partial_checksum: Some((20, 6)), segmentation: segmentation(Transport::Udp, false, false) },
        ] {
            assert_eq!(VnetHeader::parse(&header.to_bytes()), Ok(header));
        }
        for kind in [2, 3, 6, 7, 0x7f] {
            assert_eq!(VnetHeader::parse(&[1, kind, 0, 0, 0, 0, 0, 0, 0, 0]), Err(UnknownSegmentation));
        }
    }
}
