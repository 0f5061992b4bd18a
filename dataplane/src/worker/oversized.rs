//! Packets that no record of their lane holds: they travel in fragments, or their sender is told.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use ringlane_shared::drop_reason::DropReason;
use ringlane_shared::id::PeerIndex;
use ringlane_shared::identity::{builtin_ipv4, builtin_ipv6};
use ringlane_shared::limits::SEND_BUFFERS;
use ringlane_shared::packet::segment::Split;
use ringlane_shared::wire::fragment::Uncut;
use ringlane_shared::wire::frame::FramedPacket;

use super::sending::{Source, outgoing};
use super::{State, Worker};
use crate::icmp::{ANSWER_BYTES_MAX, Oversized, answer};
use crate::lane::{Lane, Outgoing};
use crate::outbound::{Joined, packet_bytes_max};
use crate::sys::ring::{Engine, SocketSlot, TunBuffer};
use crate::sys::vnet_header::{VNET_HEADER_BYTES, VnetHeader};

/// Whether packets that do not fit what a lane sends are cut, whatever the configuration says.
fn always_cuts(lane: &Lane) -> bool {
    // What a DATAGRAM frame holds is QUIC's to say, and may be different in a second; the carrier itself may be. And while
    // it is being found out what passes, nobody is told less: senders remember it for minutes.
    lane.carriage.is_quic() || lane.path.is_searching()
}

impl<E: Engine> Worker<E> {
    /// How a super-segment that goes to a lane is split, given what a record of the lane holds. TCP is a stream, so its
    /// pieces are made to fit, and only those of UDP have to be cut. `None` if its sender was told instead.
    pub(super) fn fit_split(
        &mut self,
        slot: SocketSlot,
        peer: PeerIndex,
        buffer: &TunBuffer,
        bytes: usize,
        split: Split,
    ) -> io::Result<Option<Split>> {
        let Some(lane) = self.state.lanes.get_mut(slot) else { return Ok(Some(split)) };
        let fits = packet_bytes_max(lane.record_bytes());
        if split.piece_bytes(0) <= fits {
            return Ok(Some(split));
        }
        if self.fragments || always_cuts(lane) {
            let read = self.ring.tun_bytes(buffer, VNET_HEADER_BYTES + bytes);
            return Ok(Some(split.narrowed(&read[VNET_HEADER_BYTES..], fits)));
        }
        let source = Source::Piece { buffer, bytes, split: &split, index: 0 };
        if self.tell_too_big(peer, fits, source) {
            self.count_drop(Some(peer), DropReason::TooBig, split.pieces() as u64);
            return Ok(None);
        }
        Ok(Some(split))
    }

    /// Sends a packet that an empty record of its lane has no room for. Returns whether a segment may continue it, which
    /// none may.
    #[cold]
    pub(super) fn send_oversized(
        &mut self,
        slot: SocketSlot,
        peer: PeerIndex,
        what: FramedPacket,
        bytes: usize,
        source: Source<'_>,
    ) -> io::Result<bool> {
        let Some(lane) = self.state.lanes.get_mut(slot) else { return Ok(false) };
        let fits = packet_bytes_max(lane.record_bytes());
        let is_told = !self.fragments && !always_cuts(lane);
        if is_told && self.tell_too_big(peer, fits, source) {
            self.count_drop(Some(peer), DropReason::TooBig, 1);
            return Ok(false);
        }
        let is_partial = what != FramedPacket::Complete;
        match source {
            Source::Piece { buffer, bytes: read_bytes, split, index } => {
                let mut piece = std::mem::take(&mut self.state.piece);
                let sent = match piece.get_mut(..bytes) {
                    Some(piece) => {
                        let read = self.ring.tun_bytes(buffer, VNET_HEADER_BYTES + read_bytes);
                        split.write_piece(&read[VNET_HEADER_BYTES..], index, piece);
                        self.send_in_fragments(slot, is_partial, bytes, Source::Slice(piece))
                    }
                    None => Ok(Err(DropReason::TooBig)),
                };
                self.state.piece = piece;
                sent
            }
            source => self.send_in_fragments(slot, is_partial, bytes, source),
        }
        .map(|sent| {
            sent.err().into_iter().for_each(|reason| self.count_drop(Some(peer), reason, 1));
            false
        })
    }

    /// Cuts a packet along the ends of its lane's records, the one that is being filled first.
    fn send_in_fragments(
        &mut self,
        slot: SocketSlot,
        is_partial: bool,
        bytes: usize,
        source: Source<'_>,
    ) -> io::Result<Result<(), DropReason>> {
        let Some(lane) = self.state.lanes.get_mut(slot) else { return Ok(Err(DropReason::NoLane)) };
        let packet = lane.next_cut;
        lane.next_cut = packet.wrapping_add(1);
        let mut at = 0;
        // Whether the fragment before found no place: then there is one in the next record, or nowhere.
        let mut is_next = false;
        while at < bytes {
            if self.state.filling.len() >= usize::from(SEND_BUFFERS) {
                // Each of them holds a buffer.
                self.flush(self.state.now)?;
            }
            let State { lanes, filling, .. } = &mut self.state;
            let Some(lane) = lanes.get_mut(slot) else { return Ok(Err(DropReason::NoLane)) };
            let record_bytes = lane.record_bytes();
            let Some(Outgoing { buffer, fill }) = outgoing(&mut self.ring, filling, lane)? else {
                return Ok(Err(DropReason::SendBufferFull));
            };
            let Ok(offset) = u16::try_from(at) else { return Ok(Err(DropReason::TooBig)) };
            let uncut = Uncut { packet, is_partial, offset, bytes: bytes - at };
            match fill.join_fragment(self.ring.send_room(buffer), record_bytes, uncut) {
                Joined::At(place) => {
                    let placed = place.len();
                    source.copy(at, &mut self.ring, buffer, place);
                    at += placed;
                    is_next = false;
                }
                Joined::RecordFull if !is_next => {
                    is_next = true;
                    if let Some((mut egress, lane)) = self.egress(slot) {
                        egress.finish_record(lane)?;
                    }
                }
                Joined::RecordFull | Joined::TooBig => return Ok(Err(DropReason::TooBig)),
            }
        }
        Ok(Ok(()))
    }

    /// Tells a packet's sender that it is too big for a lane or stream that takes `fits` bytes, as often as anybody is told.
    /// Returns whether the sender is one to be told: if not, the packet is to be cut whatever the configuration says.
    pub(super) fn tell_too_big(&mut self, peer: PeerIndex, fits: usize, source: Source<'_>) -> bool {
        let State { piece, too_big, snapshot, now, .. } = &mut self.state;
        let packet = match source {
            Source::Slice(packet) => packet,
            Source::Tun { buffer, bytes } => {
                &self.ring.tun_bytes(buffer, VNET_HEADER_BYTES + bytes)[VNET_HEADER_BYTES..]
            }
            Source::Piece { buffer, bytes, split, index } => {
                let Some(piece) = piece.get_mut(..split.piece_bytes(index)) else { return true };
                let read = self.ring.tun_bytes(buffer, VNET_HEADER_BYTES + bytes);
                split.write_piece(&read[VNET_HEADER_BYTES..], index, piece);
                piece
            }
        };
        let Oversized::Told { mtu } = Oversized::of(packet, fits) else { return false };
        // In the name of the tunnel's far end: a kernel takes a packet from its own address for a forged one.
        let from = || match snapshot.peer(peer) {
            Some(peer) => (builtin_ipv4(&peer.id), builtin_ipv6(&peer.id)),
            // Of services, which have no other.
            None => (Ipv4Addr::UNSPECIFIED, destination_v6(packet)),
        };
        let mut bytes = [0; ANSWER_BYTES_MAX];
        if let Some(length) = answer(packet, mtu, from, &mut bytes)
            && too_big.take(*now)
        {
            // Whoever is not told will be with the next packet.
            let _ = self.ring.tun_write_now(&bytes[..length], VnetHeader::default());
        }
        true
    }
}

fn destination_v6(packet: &[u8]) -> Ipv6Addr {
    let octets = packet.get(24..40).and_then(|octets| <[u8; 16]>::try_from(octets).ok());
    octets.map_or(Ipv6Addr::UNSPECIFIED, Ipv6Addr::from)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use ringlane_shared::bucket::Bucket;
    use ringlane_shared::limits::{TOO_BIG_BURST, TOO_BIG_PER_SECOND};

    #[test]
    fn a_burst_is_told_and_then_so_many_a_second() {
        let start = Instant::now();
        let mut limiter = Bucket::new(TOO_BIG_BURST, TOO_BIG_PER_SECOND, start);
        let mut count = |at: Duration| (0..1000).filter(|_| limiter.take(start + at)).count();
        assert_eq!(count(Duration::ZERO), TOO_BIG_BURST as usize);
        assert_eq!(count(Duration::from_millis(100)), TOO_BIG_PER_SECOND as usize / 10);
        assert_eq!(count(Duration::from_millis(105)), 0);
        assert_eq!(count(Duration::from_millis(110)), 1);
        assert_eq!(count(Duration::from_secs(3600)), TOO_BIG_BURST as usize);
    }
}
