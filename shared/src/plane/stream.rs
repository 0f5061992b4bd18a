//! What streams take of what the TUN gives, pure.

use thiserror::Error;

use super::batch::{BatchItemForm, StreamForm};
use crate::limits::{COALESCE_PIECES_MAX, STREAM_PACKET_BYTES_MAX};
use crate::packet::PacketHeader;
use crate::packet::checksum::{PartialChecksum, complete};
use crate::packet::segment::{Content, Split};

/// How many packets something stands for, and their bytes: what counters count.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Packets; a super-segment is as many as it splits into.
    pub packets: u64,
    /// Their bytes, headers and all.
    pub bytes: u64,
}

impl Tally {
    fn one(packet: &[u8]) -> Self {
        Self { packets: 1, bytes: packet.len() as u64 }
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

/// Packets are too long for the stream, all but the last if there are several, and nothing of them was given.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("{packets} packets are too long for a stream that takes {STREAM_PACKET_BYTES_MAX} bytes")]
pub struct TooLong {
    /// How many.
    pub packets: u64,
}

/// Gives a stream of this `form` what it takes of `packet`, in order: what it is by `content`, trimmed to its IP length.
/// `piece` is room for the largest packet.
///
/// A stream of whole packets gets single ones, their checksums finished; TCP is cut as short as it takes. One between
/// Ringlane nodes gets a super-segment as the kernel gave it, unless it stands for more than [`COALESCE_PIECES_MAX`]
/// packets, which no peer takes.
pub fn give(
    form: StreamForm,
    packet: &mut [u8],
    content: &Content,
    piece: &mut [u8],
    mut take: impl FnMut(BatchItemForm, &[u8], Tally),
) -> Result<(), TooLong> {
    match (form, content) {
        (StreamForm::Offloaded, Content::Packet { is_partial }) => {
            take(BatchItemForm::Packet { is_partial: *is_partial }, packet, Tally::one(packet));
        }
        (StreamForm::Whole, Content::Packet { is_partial }) => {
            if packet.len() > STREAM_PACKET_BYTES_MAX {
                return Err(TooLong { packets: 1 });
            }
            if *is_partial {
                let own = PacketHeader::parse(packet).ok().and_then(|header| PartialChecksum::of_transport(&header));
                finish(packet, own);
            }
            take(BatchItemForm::Packet { is_partial: false }, packet, Tally::one(packet));
        }
        (StreamForm::Offloaded, Content::SuperSegment(split)) => match split.pieces() {
            // Where nothing is split nothing is left to be said of it.
            1 => {
                split.restore(packet);
                take(BatchItemForm::Packet { is_partial: true }, packet, Tally::one(packet));
            }
            pieces @ 2..=COALESCE_PIECES_MAX => {
                split.restore(packet);
                let headers = (pieces - 1) * split.header_bytes();
                let tally = Tally { packets: pieces as u64, bytes: (packet.len() + headers) as u64 };
                take(BatchItemForm::SuperSegment { segment_bytes: split.segment_bytes() }, packet, tally);
            }
            _ => give_pieces(packet, split, piece, |piece| {
                take(BatchItemForm::Packet { is_partial: true }, piece, Tally::one(piece));
            }),
        },
        (StreamForm::Whole, Content::SuperSegment(split)) => {
            let split = split.narrowed(packet, STREAM_PACKET_BYTES_MAX);
            if split.piece_bytes(0) > STREAM_PACKET_BYTES_MAX {
                return Err(TooLong { packets: split.pieces() as u64 });
            }
            give_pieces(packet, &split, piece, |piece| {
                finish(piece, Some(split.checksum()));
                take(BatchItemForm::Packet { is_partial: false }, piece, Tally::one(piece));
            });
        }
    }
    Ok(())
}

fn give_pieces(packet: &[u8], split: &Split, room: &mut [u8], mut take: impl FnMut(&mut [u8])) {
    for index in 0..split.pieces() {
        // The kernel makes no piece larger than the interface's MTU, for which there is room.
        if let Some(piece) = room.get_mut(..split.piece_bytes(index)) {
            split.write_piece(packet, index, piece);
            take(piece);
        }
    }
}

/// Finishes a packet's own checksum. Only what has one is partial: that was found out when the packet was read.
fn finish(packet: &mut [u8], own: Option<PartialChecksum>) {
    if let Some(own) = own {
        // It lies within the packet, as was found where it was read.
        let _ = complete(packet, own);
    }
}
