//! What is received on forwards' sockets and sent out of the same buffers.

use ringlane_shared::limits::FORWARD_RECEIVES_IN_FLIGHT;

use super::*;
use crate::sys::ring::ToForward;

/// A ring with both halves of a forward, the far end of one, and what feeds it: another ring's socket.
struct Forwarding {
    bed: Bed,
    halves: [SocketSlot; 2],
    feeder: Bed,
    feed: SocketSlot,
    far: UdpSocket,
}

impl Forwarding {
    fn new(offloads: Offloads) -> Self {
        let (mut bed, mut feeder) = (Bed::with(offloads), Bed::new());
        let [(a, a_far), (b, far)] = [pair(), pair()];
        let halves = [a, b].map(|socket| bed.ring.add_forward_socket(socket).unwrap());
        let feed = feeder.ring.add_socket(a_far).unwrap();
        Self { bed, halves, feeder, feed, far }
    }

    /// Sends records of `record_bytes` as one train and has the ring receive it.
    fn feed(&mut self, record_bytes: usize, records: &[&[u8]]) -> ToForward {
        self.feeder.send_train(self.feed, record_bytes, records);
        self.feeder.until_idle();
        self.bed.until(|ring, _| ring.forward_count() > 0);
        self.bed.ring.next_forward().unwrap()
    }

    /// Sends on what was received, as a train of so many records.
    fn pass(&mut self, received: ToForward, record_bytes: usize, records: u16) {
        let ToForward { socket, buffer, datagram } = received;
        assert_eq!(socket, self.halves[0]);
        let train = Train { bytes: datagram.range.len(), record_bytes, records, class: 0 };
        self.bed.ring.forward(self.halves[1], buffer, datagram.range.start, train, TAG).unwrap();
    }
}

#[test]
fn a_forwarded_train_leaves_as_its_records_and_its_buffer_comes_back_ever_again() {
    let mut forwarding = Forwarding::new(Offloads::default());
    for round in 0..4 * FORWARD_RECEIVES_IN_FLIGHT as u8 {
        let records: [&[u8]; 4] = [&[round; 700], &[2; 700], &[3; 700], &[4; 20]];
        let received = forwarding.feed(700, &records);
        assert_eq!(received.datagram.control.segment_bytes, Some(700));
        if round % 3 == 0 {
            forwarding.bed.ring.drop_forward(received.buffer);
            continue;
        }
        forwarding.pass(received, 700, 4);
        forwarding.bed.until_idle();
        assert_eq!(datagrams(&forwarding.far), records);
        assert!(forwarding.bed.is_whole());
    }
}

#[test]
fn a_forwarded_train_leaves_one_by_one_or_with_a_sentinel_where_it_must() {
    let records: [&[u8]; 3] = [&[1; 700], &[2; 700], &[3; 700]];
    for (offloads, expected) in
        [(Offloads::default().with(Offload::UdpGso, false), &[700; 3][..]), (Offloads::ALL, &[700, 700, 700, 1])]
    {
        let mut forwarding = Forwarding::new(offloads);
        for _ in 0..2 * FORWARD_RECEIVES_IN_FLIGHT {
            let received = forwarding.feed(700, &records);
            forwarding.pass(received, 700, 3);
            forwarding.bed.until_idle();
            let lengths: Vec<_> = datagrams(&forwarding.far).iter().map(Vec::len).collect();
            assert_eq!(lengths, expected);
        }
        assert!(forwarding.bed.is_whole());
    }
}

#[test]
fn a_forwarded_train_that_the_kernel_refuses_is_sent_again_out_of_its_buffer() {
    let mut forwarding = Forwarding::new(Offloads::default());
    // Taken for more records than any kernel takes in one send.
    let received = forwarding.feed(1200, &[&[7; 1200], &[7; 1200]]);
    forwarding.pass(received, 12, 200);
    let mut refused = forwarding.bed.until(|_, completions| !completions.is_empty());
    let Some(Completion::TrainRefused { train, .. }) = refused.pop() else { panic!() };
    // The others go round meanwhile, and it is not among them.
    for _ in 0..2 * FORWARD_RECEIVES_IN_FLIGHT {
        let other = forwarding.feed(700, &[&[8; 700]]);
        forwarding.pass(other, 700, 1);
        forwarding.bed.until_idle();
        assert_eq!(datagrams(&forwarding.far), [[8; 700]]);
    }
    assert!(forwarding.bed.ring.resend_singly(train).unwrap());
    forwarding.bed.until_idle();
    assert_eq!(datagrams(&forwarding.far), vec![vec![7; 12]; 200]);
    assert!(forwarding.bed.is_whole());
}

#[test]
fn forwards_run_out_of_buffers_alone_and_go_on_in_order() {
    let (buffers, mut bed) = (u32::from(FORWARD_RECEIVES_IN_FLIGHT), Bed::new());
    let [(ours, far), (lane, lane_far)] = [pair(), pair()];
    let (slot, lane) = (bed.ring.add_forward_socket(ours).unwrap(), bed.ring.add_socket(lane).unwrap());
    for number in 0..buffers + 5 {
        far.send(&number.to_be_bytes()).unwrap();
    }
    bed.until(|ring, _| ring.forward_count() == buffers as usize);
    assert!(bed.ring.has_received(slot));
    lane_far.send(&7u32.to_be_bytes()).unwrap();
    let lanes = bed.until(|_, completions| received(completions) == 1);
    assert!(
        lanes.iter().any(|completion| matches!(completion, Completion::Received { socket, .. } if *socket == lane))
    );
    let mut numbers = Vec::new();
    for _ in 0..2 {
        while let Some(ToForward { buffer, datagram, .. }) = bed.ring.next_forward() {
            let bytes = &bed.ring.forward_bytes(&buffer)[datagram.range];
            numbers.push(u32::from_be_bytes(bytes.try_into().unwrap()));
            bed.ring.drop_forward(buffer);
        }
        // io_uring has stopped and wants to be asked again, whichever of the two it was.
        bed.ring.arm_receive(slot).unwrap();
        bed.few_enters();
        bed.ring.arm_receive(slot).unwrap();
        bed.few_enters();
    }
    assert_eq!(numbers, (0..buffers + 5).collect::<Vec<_>>());
}

#[test]
fn a_dropped_ring_lets_go_of_forwards_too() {
    let mut forwarding = Forwarding::new(Offloads::default());
    let _held = forwarding.feed(700, &[&[7; 700]]);
    let received = forwarding.feed(700, &[&[7; 700]]);
    forwarding.pass(received, 700, 1);
    forwarding.bed.ring.close_socket(forwarding.halves[1]).unwrap();
    let at = forwarding.far.peer_addr().unwrap();
    drop(forwarding.bed.ring);
    UdpSocket::bind(at).expect("closed");
}
