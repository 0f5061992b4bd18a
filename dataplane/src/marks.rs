//! What the outer header of a record says of congestion, carried to the packets in it (RFC 6040).

use ringlane_shared::packet::marks::{Ecn, decapsulate};
use ringlane_shared::wire::frame::{FrameKind, Frames, make_pad};

/// Marks the whole packets and segments of an opened record as its outer header is marked. A packet whose transport does
/// not understand congestion marks becomes a pad, which nobody reads: returns how many did.
///
/// Fragments are left as they are, as their packet's header comes with one of them only: whoever puts them together marks
/// the packet.
pub(crate) fn carry_inward(frames: &mut [u8], outer: Ecn) -> u64 {
    let (mut at, mut dropped) = (0, 0);
    while let Some(Ok(frame)) = Frames::new(&frames[at..]).next() {
        let packet = at + frame.payload.start..at + frame.payload.end;
        let end = packet.end;
        if matches!(frame.kind, FrameKind::Packet | FrameKind::Segment)
            && decapsulate(&mut frames[packet], outer).is_err()
        {
            make_pad(&mut frames[at]);
            dropped += 1;
        }
        at = end;
    }
    dropped
}

#[cfg(test)]
mod tests {
    use ringlane_shared::packet::marks::class_of;
    use ringlane_shared::wire::frame::{FrameHeader, FramedPacket};

    use super::*;

    fn framed(packets: &[(FramedPacket, u8)]) -> Vec<u8> {
        let mut frames = Vec::new();
        for (number, (what, class)) in packets.iter().enumerate() {
            let room = if number + 1 == packets.len() { 41 } else { 1000 };
            frames.extend_from_slice(FrameHeader::fit(*what, 40, room).unwrap().as_bytes());
            frames.extend([0x60 | class >> 4, class << 4]);
            frames.extend([0; 38]);
        }
        frames
    }

    fn found(frames: &[u8]) -> Vec<(FrameKind, u8)> {
        let frame = |frame: Result<ringlane_shared::wire::frame::Frame, _>| frame.unwrap();
        Frames::new(frames).map(frame).map(|frame| (frame.kind, class_of(&frames[frame.payload]))).collect()
    }

    #[test]
    fn every_packet_of_a_marked_record_is_marked_and_who_would_not_hear_it_is_dropped_alone() {
        use FramedPacket::{Complete, NextSegment, Partial, Segment};
        let packets =
            [(Segment, 0xba), (NextSegment, 0xba), (Complete, 0xb8), (Partial, 1), (Complete, 3), (Complete, 0)];
        let mut frames = framed(&packets);
        assert_eq!(carry_inward(&mut frames, Ecn::Ce), 2);
        let (packet, segment, pad) = (FrameKind::Packet, FrameKind::Segment, FrameKind::Pad);
        let expected = [(segment, 0xbb), (segment, 0xbb), (pad, 0xb8), (packet, 3), (packet, 3), (pad, 0)];
        assert_eq!(found(&frames), expected);

        let mut frames = framed(&packets);
        assert_eq!(carry_inward(&mut frames, Ecn::Ect1), 0);
        let classes: Vec<_> = found(&frames).into_iter().map(|(_, class)| class).collect();
        assert_eq!(classes, [0xb9, 0xb9, 0xb8, 1, 3, 0]);
    }

    #[test]
    fn a_record_that_makes_no_sense_is_left_to_its_reader() {
        let mut frames = framed(&[(FramedPacket::Complete, 2), (FramedPacket::Complete, 2)]);
        frames[43] |= 3;
        let before = frames.clone();
        assert_eq!(carry_inward(&mut frames, Ecn::Ce), 0);
        assert_eq!(frames[43..], before[43..]);
        assert_eq!(class_of(&frames[3..]), 3);
        assert_eq!(carry_inward(&mut [], Ecn::Ce), 0);
        assert_eq!(carry_inward(&mut [0x30, 0xff], Ecn::Ce), 0);
    }
}
