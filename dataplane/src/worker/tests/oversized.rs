//! Packets that records have no room for: cut and put together again, or their senders told.

use ringlane_shared::limits::{ASSEMBLY_BUFFERS, INNER_MTU_MAX, RECORD_BYTES_MIN};
use ringlane_shared::packet::PacketHeader;
use ringlane_shared::packet::marks::{Ecn, class_of};
use ringlane_shared::wire::fragment::{Fragment, FragmentHeader, Uncut};

use socket2::SockRef;

use super::*;
use crate::outbound::packet_bytes_max;

/// What reaches the far end: each record's size, and each frame's kind, whether it continues, and payload.
type Arrived = (Vec<usize>, Vec<(FrameKind, bool, Vec<u8>)>);

impl Bed {
    fn arrived(&mut self, (sizes, frames): &mut Arrived) {
        let mut buffer = [0; 10_000];
        while let Ok(bytes) = self.far.recv(&mut buffer) {
            let Ok(opened) = self.far_opener.open(&mut buffer[..bytes]) else { continue };
            let opened = opened.frames;
            if Frames::new(opened).any(|frame| frame.unwrap().kind == FrameKind::Echo) {
                continue;
            }
            sizes.push(bytes);
            for frame in Frames::new(opened).map(|frame| frame.unwrap()) {
                frames.push((frame.kind, frame.continues, opened[frame.payload.clone()].to_vec()));
            }
        }
    }

    /// Has the worker read what is written to its TUN, and takes in what leaves until `count` packets have.
    fn carry(&mut self, reads: &[Vec<u8>], count: usize) -> Arrived {
        let before = self.counters[0].packets_sent.get();
        self.until(|bed| bed.worker.ring.is_idle().then_some(()));
        for read in reads {
            self.tun.send(read).unwrap();
        }
        let mut arrived = Arrived::default();
        self.until(|bed| {
            bed.arrived(&mut arrived);
            (bed.counters[0].packets_sent.get() - before == count as u64).then_some(())
        });
        self.turn();
        self.arrived(&mut arrived);
        arrived
    }

    /// Sends a record of these frames to the worker.
    fn send_frames(&mut self, frames: &[u8]) {
        let mut record = vec![0; RECORD_OVERHEAD_BYTES + frames.len()];
        record[RECORD_HEADER_BYTES..][..frames.len()].copy_from_slice(frames);
        self.far_sealer.seal(&mut record, frames.len()).unwrap();
        self.far.send(&record).unwrap();
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.counters[0].drops.get(reason)
    }

    /// The next thing written to the TUN.
    fn written(&mut self) -> Vec<u8> {
        let mut buffer = vec![0; 66_000];
        self.until(|bed| {
            let bytes = bed.tun.recv(&mut buffer).ok()?;
            Some(buffer[VNET_HEADER_BYTES..bytes].to_vec())
        })
    }
}

fn numbered_packet(number: u8, bytes: usize) -> Vec<u8> {
    let mut packet = packet([10, 10, 0, 2], [10, 20, 0, 2], bytes);
    packet[20..].iter_mut().enumerate().for_each(|(at, byte)| *byte = number ^ (at * 7) as u8);
    packet
}

fn read_of(packet: &[u8]) -> Vec<u8> {
    [&[0; VNET_HEADER_BYTES], packet].concat()
}

/// The packets that frames carry, put together the slow way.
fn packets(frames: &[(FrameKind, bool, Vec<u8>)]) -> Vec<Vec<u8>> {
    let (mut packets, mut open) = (Vec::new(), Vec::new());
    for (kind, has_more, payload) in frames {
        match kind {
            FrameKind::Fragment => {
                assert_eq!(usize::from(u16::from_be_bytes([payload[4], payload[5]])), open.len());
                open.extend(&payload[6..]);
                if !has_more {
                    packets.push(std::mem::take(&mut open));
                }
            }
            FrameKind::Pad => {}
            _ => packets.push(payload.clone()),
        }
    }
    assert!(open.is_empty());
    packets
}

#[test]
fn packets_of_all_sizes_leave_whole_or_in_fragments_that_fill_records_of_one_size() {
    let mut bed = Bed::new(0);
    for record_bytes in [RECORD_BYTES_MIN, 1232, 1452] {
        bed.settle(record_bytes as u16);
        let most = packet_bytes_max(record_bytes);
        let sizes = [21, 60, most - 1, most, most + 1, most + 2, 1500, 2 * most, 4000, 9000, 30];
        let sent: Vec<_> = sizes.iter().zip(0..).map(|(bytes, number)| numbered_packet(number, *bytes)).collect();
        let reads: Vec<_> = sent.iter().map(|packet| read_of(packet)).collect();
        let (_, frames) = bed.carry(&reads, sent.len());
        assert_eq!(packets(&frames), sent, "records of {record_bytes}");

        // A stream of one size: nothing but the last record is shorter, so that all of it can be one train.
        let sent: Vec<_> = (0..40).map(|number| numbered_packet(number, 1500)).collect();
        let reads: Vec<_> = sent.iter().map(|packet| read_of(packet)).collect();
        let (sizes, frames) = bed.carry(&reads, sent.len());
        assert_eq!(packets(&frames), sent);
        assert!(sizes.iter().all(|size| *size <= record_bytes));
        let shorter = sizes.iter().filter(|size| **size < record_bytes).count();
        let turns = 3;
        assert!(shorter <= turns, "{shorter} of {} are shorter: {sizes:?}", sizes.len());
    }
    assert_eq!(bed.dropped(DropReason::TooBig), 0);
}

#[test]
fn records_of_a_large_path_carry_many_packets_and_pieces() {
    let mut bed = Bed::new(0);
    bed.settle(8972);
    let (sizes, frames) = bed.carry(&[super_segment(50_000, 1300)], 39);
    assert_eq!(frames.len(), 39);
    // Six pieces each.
    assert_eq!((sizes.len(), sizes[0]), (7, RECORD_OVERHEAD_BYTES + 6 * 1331));
    assert!(sizes[..6].iter().all(|size| *size == sizes[0]), "{sizes:?}");
    assert_eq!(bed.worker.counters.trains_sent.get(), 1);
}

#[test]
fn datagrams_that_fit_no_record_are_cut_and_those_that_do_continue_nothing() {
    let mut bed = Bed::new(0);
    bed.settle(1452);
    let (_, frames) = bed.carry(&[super_segment(2500, 1400)], 2);
    let kinds: Vec<_> = frames.iter().map(|(kind, continues, _)| (*kind, *continues)).collect();
    let (fragment, segment) = (FrameKind::Fragment, FrameKind::Segment);
    assert_eq!(kinds, [(fragment, true), (fragment, false), (segment, false)]);
    let lengths: Vec<_> = packets(&frames).iter().map(Vec::len).collect();
    assert_eq!(lengths, [1428, 1128]);
}

#[test]
fn a_stream_is_cut_into_smaller_segments_instead_of_fragments() {
    let mut bed = Bed::new(0);
    bed.settle(RECORD_BYTES_MIN as u16);
    let mut packet = packet([10, 10, 0, 2], [10, 20, 0, 2], 40 + 6000);
    (packet[6], packet[9], packet[32]) = (0x40, 6, 0x50);
    let segmentation = Segmentation {
        transport: Transport::Tcp,
        is_ipv6: false,
        has_cwr: false,
        segment_bytes: 1380,
        header_bytes: 40,
    };
    let header = VnetHeader { partial_checksum: Some((20, 16)), segmentation: Some(segmentation) };
    let read = [&header.to_bytes()[..], &packet].concat();
    let (sizes, frames) = bed.carry(std::slice::from_ref(&read), 6);
    assert_eq!(sizes[..5], [RECORD_BYTES_MIN; 5]);
    let is_right = |(position, (kind, continues, _)): (usize, &(FrameKind, bool, _))| {
        *kind == FrameKind::Segment && *continues == (position > 0)
    };
    assert!(frames.iter().enumerate().all(is_right));
    assert_eq!(frames.iter().map(|(.., piece)| piece.len() - 40).sum::<usize>(), 6000);

    // Ids of packets that may be fragmented on their way must not be used twice.
    packet[6] = 0;
    let read = [&header.to_bytes()[..], &packet].concat();
    let (_, frames) = bed.carry(&[read], 5);
    assert_eq!(frames.iter().filter(|(kind, ..)| *kind == FrameKind::Fragment).count(), 2 * 4);
    assert_eq!(packets(&frames).len(), 5);
}

/// The frames of a packet cut for records with so much room.
fn cut(number: u32, packet: &[u8], room: usize) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut at = 0;
    while at < packet.len() {
        let uncut = Uncut { packet: number, is_partial: false, offset: at as u16, bytes: packet.len() - at };
        let header = FragmentHeader::fit(uncut, room).unwrap();
        frames.push([header.as_bytes(), &packet[at..][..header.packet_bytes]].concat());
        at += header.packet_bytes;
    }
    frames
}

fn packet_of_far(number: u8, bytes: usize) -> Vec<u8> {
    let mut packet = numbered_packet(number, bytes);
    packet[12..20].copy_from_slice(&[10, 20, 0, 2, 10, 10, 0, 2]);
    packet
}

#[test]
fn fragments_become_packets_again_across_turns_in_any_order_and_far_more_than_there_are_buffers() {
    let mut bed = Bed::new(0);
    for number in 0..3 * ASSEMBLY_BUFFERS {
        let bytes = [1500, usize::from(INNER_MTU_MAX), 33][usize::from(number) % 3];
        let packet = packet_of_far(number as u8, bytes);
        let mut frames = cut(number.into(), &packet, 1150);
        frames.rotate_left(usize::from(number) % 2);
        for frame in frames {
            bed.send_frames(&frame);
            bed.turn();
        }
        assert_eq!(bed.written(), packet, "packet {number}");
    }
    assert!(DropReason::ALL.iter().all(|reason| bed.dropped(*reason) == 0));
}

/// They wait for their writes, which take an enter.
#[test]
fn more_packets_than_there_are_buffers_are_put_together_in_one_turn() {
    let mut bed = Bed::new(0);
    bed.until(|bed| bed.worker.ring.is_idle().then_some(()));
    let (rounds, each) = (30, 10);
    for round in 0..rounds {
        let mut frames = Vec::new();
        for number in 0..each {
            let packet = packet_of_far(number as u8, 100);
            let room = if number + 1 < each { 2000 } else { 113 };
            frames.extend(cut(round * 100 + number, &packet, room).concat());
        }
        bed.send_frames(&frames);
    }
    while bed.worker.ring.completion_count() < rounds as usize {
        bed.worker.ring.enter().unwrap();
    }
    let mut buffer = [0; 2000];
    let mut written = 0;
    bed.until(|bed| {
        while bed.tun.recv(&mut buffer).is_ok() {
            written += 1;
        }
        (bed.counters[0].packets_received.get() == u64::from(rounds * each)).then_some(())
    });
    assert!(
        DropReason::ALL
            .iter()
            .filter(|reason| **reason != DropReason::TunWriteFailed)
            .all(|reason| bed.dropped(*reason) == 0)
    );
    assert!(written > 0);
}

#[test]
fn a_lost_fragment_costs_its_packet_and_is_counted_when_its_time_is_over() {
    let mut bed = Bed::new(0);
    let [lost, whole] = [1, 2].map(|number| packet_of_far(number, 3000));
    let frames = cut(1, &lost, 1150);
    bed.send_frames(&frames[0]);
    bed.send_frames(&frames[2]);
    cut(2, &whole, 1150).iter().for_each(|frame| bed.send_frames(frame));
    assert_eq!(bed.written(), whole);
    assert_eq!(bed.dropped(DropReason::FragmentIncomplete), 0);
    let frames = cut(3, &whole, 1150);
    frames.iter().for_each(|frame| bed.send_frames(frame));
    while bed.worker.ring.completion_count() < frames.len() {
        bed.worker.ring.enter().unwrap();
    }
    bed.worker.turn(Instant::now() + Duration::from_secs(2)).unwrap();
    assert_eq!(bed.written(), whole);
    assert_eq!(bed.dropped(DropReason::FragmentIncomplete), 1);
}

#[test]
fn where_packets_are_not_cut_their_sender_is_told_once_each_and_of_a_super_segment_once() {
    let mut bed = Bed::new(0);
    bed.settle(1452);
    bed.worker.fragments = false;
    let mut big = numbered_packet(1, 1450);
    big[6] = 0x40;
    for (read, drops, quoted) in [(read_of(&big), 1, 1450), (super_segment(2800, 1400), 3, 1428)] {
        let mut read = read;
        read[VNET_HEADER_BYTES + 6] = 0x40;
        bed.tun.send(&read).unwrap();
        let answer = bed.written();
        let header = PacketHeader::parse(&answer).unwrap();
        let peer = bed.worker.state.snapshot.peer(PEER).unwrap().id;
        assert_eq!(header.source, ringlane_shared::identity::builtin_ipv4(&peer));
        assert_eq!(header.destination, std::net::Ipv4Addr::new(10, 10, 0, 2));
        assert_eq!((&answer[20..22], &answer[24..28]), (&[3, 4][..], &1423u32.to_be_bytes()[..]));
        assert_eq!(usize::from(u16::from_be_bytes([answer[30], answer[31]])), quoted);
        assert_eq!(bed.dropped(DropReason::TooBig), drops);
    }
    assert!(bed.tun.recv(&mut [0; 2000]).is_err(), "no second answer");
    // One that may be fragmented is, in our way.
    big[6] = 0;
    let (_, frames) = bed.carry(&[read_of(&big)], 1);
    assert_eq!(packets(&frames), [big]);
}

#[test]
fn a_fragment_that_makes_no_sense_ends_its_record_and_a_contradicting_one_its_packet() {
    let mut bed = Bed::new(0);
    let good = packet_of_far(9, 60);
    let behind = [FrameHeader::fit(FramedPacket::Complete, 60, 61).unwrap().as_bytes(), &good].concat();
    bed.send_frames(&[&[0b0111_0000, 0, 6, 0, 0, 0, 1, 0, 0][..], &behind].concat());
    let overlap = [0b0111_0100, 0, 8, 0, 0, 0, 1, 0, 0, 1, 2];
    bed.send_frames(&[&overlap[..], &overlap, &behind].concat());
    assert_eq!(bed.written(), good);
    assert_eq!((bed.dropped(DropReason::FrameMalformed), bed.dropped(DropReason::FragmentIncomplete)), (1, 1));
    let frame = Frames::new(&overlap).next().unwrap().unwrap();
    assert_eq!(Fragment::of(&frame, &overlap[frame.payload.clone()]).unwrap().bytes, [1, 2]);
}

/// The header comes with one of the records, the mark perhaps with another.
#[test]
fn a_packet_in_fragments_is_marked_if_one_of_its_records_was_and_dropped_if_nobody_would_hear_it() {
    let mut bed = Bed::new(0);
    let socket = bed.lane().socket;
    bed.worker.ring.report_marks(socket).unwrap();
    let mut number = 0;
    for (inner, marked, expected) in
        [(2, None, Some(2)), (2, Some(0), Some(3)), (2, Some(2), Some(3)), (0, Some(1), None), (1, Some(1), Some(3))]
    {
        number += 1;
        let mut packet = packet_of_far(number, 3000);
        packet[1] = inner;
        for (at, frame) in cut(number.into(), &packet, 1150).iter().enumerate() {
            let mark = if marked == Some(at) { Ecn::Ce } else { Ecn::Ect0 };
            SockRef::from(&bed.far).set_tos_v4(mark as u32).unwrap();
            bed.send_frames(frame);
        }
        match expected {
            Some(expected) => assert_eq!(class_of(&bed.written()), expected),
            None => bed.until(|bed| (bed.dropped(DropReason::CeNotEct) == 1).then_some(())),
        }
    }
    assert_eq!(bed.dropped(DropReason::CeNotEct), 1);
    assert_eq!(bed.counters[0].packets_received.get(), 4);
}
