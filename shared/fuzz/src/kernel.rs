//! What the kernel tells of what it gives us. It is not hostile, but it has been wrong, and its versions differ.

use ringlane_shared::packet::PacketHeader;
use ringlane_shared::packet::segment::Split;

#[path = "../../../dataplane/src/sys/datagram.rs"]
#[allow(dead_code, unused_imports, reason = "the other half is for what we tell the kernel")]
mod datagram;
#[path = "../../../dataplane/src/sys/vnet_header.rs"]
#[allow(dead_code, reason = "the other half is for what we tell the kernel")]
mod vnet_header;

use datagram::{Control, parse_socket_address};
use vnet_header::{VNET_HEADER_BYTES, VnetHeader};

/// The bytes as control messages, as a socket address, and as a TUN read: a virtio network header and what follows it.
pub fn kernel(bytes: &[u8]) -> bool {
    let control = Control::parse(bytes);
    assert_ne!(control.segment_bytes, Some(0));
    let address = parse_socket_address(bytes);
    let read = tun_read(bytes).is_some();
    control != Control::default() || address.is_some() || read
}

fn tun_read(bytes: &[u8]) -> Option<()> {
    let (header, packet) = bytes.split_first_chunk::<VNET_HEADER_BYTES>()?;
    let header = VnetHeader::parse(header).ok()?;
    assert_eq!(VnetHeader::parse(header.to_bytes().first_chunk()?), Ok(header));
    let segmentation = header.segmentation?;
    let parsed = PacketHeader::parse(packet).ok()?;
    let packet = parsed.trim(packet);
    let split = Split::new(packet, &parsed, segmentation.transport, segmentation.segment_bytes).ok()?;
    let pieces: usize = (0..split.pieces()).map(|index| split.piece_bytes(index) - split.header_bytes()).sum();
    assert_eq!(pieces + split.header_bytes(), packet.len());
    Some(())
}
