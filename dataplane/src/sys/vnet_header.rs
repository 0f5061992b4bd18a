//! The header before every packet on the TUN.

/// Bytes of the header: `struct virtio_net_hdr`.
pub(crate) const VNET_HEADER_BYTES: usize = 10;

/// What the header says of its packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct VnetHeader {
    /// The packet's checksum is partial: where summing starts and, from there, where the sum goes.
    pub(crate) partial_checksum: Option<(u16, u16)>,
    /// What the kernel calls `gso_type`; 0 for one whole packet.
    pub(crate) segmentation: u8,
}

impl VnetHeader {
    const NEEDS_CSUM: u8 = 1;

    /// Reads the header; `None` if the bytes are too few.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.first_chunk::<VNET_HEADER_BYTES>()?;
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let partial_checksum = (bytes[0] & Self::NEEDS_CSUM != 0).then(|| (word(6), word(8)));
        Some(Self { partial_checksum, segmentation: bytes[1] })
    }

    /// The header's bytes, as the kernel reads them.
    pub(crate) fn to_bytes(self) -> [u8; VNET_HEADER_BYTES] {
        let mut bytes = [0; VNET_HEADER_BYTES];
        bytes[1] = self.segmentation;
        if let Some((start, offset)) = self.partial_checksum {
            bytes[0] = Self::NEEDS_CSUM;
            bytes[6..8].copy_from_slice(&start.to_ne_bytes());
            bytes[8..10].copy_from_slice(&offset.to_ne_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vnet_header_reads_back_as_written() {
        for header in [
            VnetHeader::default(),
            VnetHeader { partial_checksum: Some((40, 16)), segmentation: 0 },
            VnetHeader { partial_checksum: Some((20, 6)), segmentation: 1 },
        ] {
            assert_eq!(VnetHeader::parse(&header.to_bytes()), Some(header));
        }
        assert_eq!(VnetHeader::parse(&[0; VNET_HEADER_BYTES - 1]), None);
    }
}
