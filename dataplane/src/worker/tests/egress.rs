//! When a worker's packets leave, and how their outer headers are marked.

use ringlane_shared::packet::marks::class_of;
use ringlane_shared::plane::EgressState;
use socket2::SockRef;

use super::*;
use crate::egress::pace::LinkClock;

/// A worker that may send a byte each microsecond, from this moment on.
fn paced() -> (Bed, Instant) {
    let start = Instant::now() + Duration::from_secs(3600);
    let clock = Arc::new(LinkClock::new(start - Duration::from_secs(10), 8_000_000));
    (Bed::with(0, CarrierChoice::Lane, EgressQueue::new(MTU, OuterMarks::default(), Some(clock)), connection), start)
}

impl Bed {
    /// Takes a turn at this time, until nothing is left to be taken in.
    fn turn_at(&mut self, now: Instant) {
        for _ in 0..1000 {
            self.worker.turn(now).unwrap();
            if self.worker.ring.is_idle() {
                return;
            }
        }
        panic!("there is no end to it");
    }

    /// What reaches the far end: each record's packets by their length, and the bytes of all with outer headers.
    fn records_and_bytes(&mut self) -> (Vec<Vec<usize>>, usize) {
        let (mut records, mut outer_bytes) = (Vec::new(), 0);
        let mut buffer = [0; 2048];
        while let Ok(bytes) = self.far.recv(&mut buffer) {
            let Ok(opened) = self.far_opener.open(&mut buffer[..bytes]) else { continue };
            outer_bytes += bytes + 28;
            records.push(Frames::new(opened.frames).map(|frame| frame.unwrap().payload.len()).collect());
        }
        (records, outer_bytes)
    }

    fn gauges(&self) -> (EgressState, u32, u32) {
        let egress = &self.worker.counters.egress;
        (egress.state(), egress.queued_packets(), egress.queued_bytes())
    }

    /// Has the worker read a packet of that class from its TUN.
    fn leave_marked(&self, bytes: usize, class: u8) {
        let mut read = vec![0; VNET_HEADER_BYTES];
        read.extend(packet([10, 10, 0, 2], [10, 20, 0, 2], bytes));
        read[VNET_HEADER_BYTES + 1] = class;
        self.tun.send(&read).unwrap();
    }
}

#[test]
fn a_rate_lets_a_super_segment_go_piece_by_piece_and_a_ping_between_two_of_them() {
    let (mut bed, start) = paced();
    bed.turn_at(start);
    bed.records_and_bytes();
    bed.tun.send(&super_segment(22_000, 1100)).unwrap();
    bed.turn_at(start);
    let (first, _) = bed.records_and_bytes();
    assert_eq!(first, [[1128]], "what a train of half a millisecond has room for, and one packet at least");
    assert_eq!(bed.gauges(), (EgressState::Queueing, 19, 19 * 1128));
    let next = bed.worker.state.egress.wake_at().unwrap();
    // The record's header, tag and frame header, UDP and IPv4.
    assert_eq!((next - start).as_micros(), 1128 + 28 + 3 + 28);

    // A flow that has just begun may send its quantum before another new one.
    bed.turn_at(next);
    assert_eq!(bed.records_and_bytes().0, [[1128]]);
    let next = bed.worker.state.egress.wake_at().unwrap();
    // Another flow, of another port.
    let mut ping = vec![0; VNET_HEADER_BYTES];
    ping.extend(packet([10, 10, 0, 2], [10, 20, 0, 2], 84));
    ping[VNET_HEADER_BYTES + 21] = 9;
    bed.tun.send(&ping).unwrap();
    bed.turn_at(next - Duration::from_micros(1));
    assert_eq!((bed.records_and_bytes().0.len(), bed.gauges().1), (0, 19), "not before its time");
    bed.turn_at(next);
    let (second, _) = bed.records_and_bytes();
    assert_eq!(second[0][0], 84, "{second:?}");

    let (mut bytes, mut now) = (0, next);
    while bed.gauges().1 > 0 {
        now = bed.worker.state.egress.wake_at().unwrap();
        bed.turn_at(now);
        bytes += bed.records_and_bytes().1;
    }
    let micros = (now - next).as_micros() as usize;
    assert!(bytes.abs_diff(micros) < 3000, "{bytes} bytes in {micros} us");
    assert_eq!((bed.counters[0].packets_sent.get(), bed.gauges()), (21, (EgressState::Queueing, 0, 0)));
    assert_eq!(bed.worker.state.egress.wake_at(), None);
}

#[test]
fn without_a_rate_and_push_back_nothing_queues_and_no_memory_is_taken() {
    let mut bed = Bed::new(0);
    bed.tun.send(&super_segment(26_000, 1300)).unwrap();
    bed.until(|bed| (bed.counters[0].packets_sent.get() == 20).then_some(()));
    assert!(bed.worker.state.egress.is_untouched());
    assert_eq!(bed.gauges(), (EgressState::Direct, 0, 0));
}

#[test]
fn a_refused_send_makes_packets_queue_until_the_device_keeps_up_again() {
    let mut bed = Bed::new(0);
    let start = Instant::now();
    bed.turn_at(start);
    bed.worker.note_refusal(PEER, &io::Error::from_raw_os_error(libc::EHOSTUNREACH), start);
    bed.turn_at(start);
    assert_eq!(bed.gauges().0, EgressState::Direct);
    bed.worker.note_refusal(PEER, &io::Error::from_raw_os_error(libc::EAGAIN), start);
    bed.leave(100);
    bed.turn_at(start + Duration::from_millis(1));
    assert_eq!(bed.gauges(), (EgressState::Queueing, 0, 0), "loopback takes everything");
    assert_eq!(bed.records_and_bytes().0, [[100]]);
    let relief = bed.worker.state.egress.wake_at().unwrap();
    assert!(relief <= start + Duration::from_millis(1100));
    bed.turn_at(start + Duration::from_millis(1100));
    assert_eq!(bed.gauges().0, EgressState::Direct);
}

#[test]
fn records_do_not_mix_packets_that_are_marked_differently() {
    let mut bed = Bed::new(0);
    bed.until(|bed| bed.worker.ring.is_idle().then_some(()));
    for (bytes, class) in [(100, 0), (101, 0xb8), (102, 2), (103, 0xba), (104, 0), (105, 3), (106, 3)] {
        bed.leave_marked(bytes, class);
    }
    let mut records = Vec::new();
    bed.until(|bed| {
        records.extend(bed.records_and_bytes().0);
        (records.iter().map(Vec::len).sum::<usize>() == 7).then_some(())
    });
    assert_eq!(records, [vec![100, 101], vec![102, 103], vec![104], vec![105, 106]], "DSCP is not copied unless asked");
}

#[test]
fn congestion_on_the_path_reaches_the_packets_that_understand_it_and_drops_the_others() {
    let mut bed = Bed::new(0);
    SockRef::from(&bed.far).set_tos_v4(3).unwrap();
    let mut record = vec![0; RECORD_HEADER_BYTES];
    for class in [2, 0, 0xb9] {
        let mut packet = packet([10, 20, 0, 2], [10, 10, 0, 2], 60);
        packet[1] = class;
        record.extend(FrameHeader::fit(FramedPacket::Complete, 60, 200).unwrap().as_bytes());
        record.extend(packet);
    }
    let frames = record.len() - RECORD_HEADER_BYTES;
    record.resize(frames + RECORD_OVERHEAD_BYTES, 0);
    bed.far_sealer.seal(&mut record, frames).unwrap();
    bed.far.send(&record).unwrap();
    let mut classes = Vec::new();
    bed.until(|bed| {
        let mut written = [0; 200];
        while let Ok(bytes) = bed.tun.recv(&mut written) {
            classes.push(class_of(&written[VNET_HEADER_BYTES..bytes]));
        }
        (classes.len() == 2).then_some(())
    });
    assert_eq!((classes, bed.counters[0].drops.get(DropReason::CeNotEct)), (vec![3, 0xbb], 1));
}
