//! Lanes that the worker relays for others. Their far ends are a packet ring of their own, so that trains leave and are
//! seen as such.

use proptest::prelude::*;
use ringlane_shared::bucket::ByteRate;
use ringlane_shared::limits::{
    BINDS_PER_FORWARD_BURST, FORWARD_DATAGRAM_BYTES_MAX, FORWARD_RECEIVES_IN_FLIGHT, FORWARD_TURN_BYTES,
    FORWARDS_PER_WORKER_MAX, OUTER_HEADER_BYTES_MAX, TRAIN_BYTES_MAX, TRAIN_RECORDS_MAX,
};
use ringlane_shared::packet::marks::Ecn;
use ringlane_shared::plane::{Forward, ForwardCounters, ForwardEnd, ForwardHalf, ForwardId};
use ringlane_shared::wire::bind::{BIND_BYTES, Bind, BindKind, BindToken};

use super::*;
use crate::sys::ring::{SendTag, SocketSlot, Train};
use crate::worker::forward::books;

const PLENTY: ByteRate = ByteRate { per_second: 10_000_000_000, burst: 1 << 30 };
const IDLE: Duration = Duration::from_secs(10);

/// One forward and the sockets at its far ends.
struct Relay {
    id: ForwardId,
    ends: [UdpSocket; 2],
    counters: Arc<ForwardCounters>,
}

/// A socket of ours and one that is connected to it.
fn pair() -> (ForwardHalf, UdpSocket) {
    pair_at("127.0.0.1:0")
}

fn pair_at(address: &str) -> (ForwardHalf, UdpSocket) {
    let [ours, far] = [(); 2].map(|()| UdpSocket::bind(address).unwrap());
    let [local, remote] = [&ours, &far].map(|socket| socket.local_addr().unwrap());
    ours.connect(remote).unwrap();
    far.connect(local).unwrap();
    [&ours, &far].into_iter().for_each(|socket| socket.set_nonblocking(true).unwrap());
    (ForwardHalf { socket: ours.into(), local, remote }, far)
}

impl Bed {
    fn relay(&mut self, id: u64) -> Relay {
        self.relay_at(id, PLENTY, Instant::now())
    }

    fn relay_at(&mut self, id: u64, rate: ByteRate, now: Instant) -> Relay {
        self.relay_between(id, [pair(), pair()], rate, now)
    }

    fn relay_between(&mut self, id: u64, pairs: [(ForwardHalf, UdpSocket); 2], rate: ByteRate, now: Instant) -> Relay {
        let (halves, ends): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        let counters = Arc::new(ForwardCounters::default());
        let (id, halves) = (ForwardId(id), halves.try_into().unwrap());
        let forward = Forward { id, halves, rate, idle: IDLE, counters: Arc::clone(&counters) };
        self.commands.try_send(PlaneCommand::LimitForwards(PLENTY)).unwrap();
        self.commands.try_send(PlaneCommand::AddForward(Box::new(forward))).unwrap();
        self.worker.turn(now).unwrap();
        Relay { id, ends: ends.try_into().unwrap(), counters }
    }

    fn forward_end(&mut self) -> Option<(ForwardId, ForwardEnd)> {
        std::iter::from_fn(|| self.events.try_recv()).find_map(|event| match event {
            PlaneEvent::ForwardEnded { id, end, .. } => Some((id, end)),
            _ => None,
        })
    }

    /// Turns at this time until so it is, and once more so that what was queued has left.
    fn until_at(&mut self, now: Instant, mut done: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.worker.turn(now).unwrap();
            if done(self) {
                return self.worker.turn(now).map(drop).unwrap();
            }
            assert!(Instant::now() < deadline, "does not come");
        }
    }

    /// Turns until this many datagrams have been received at that end.
    fn until_received(&mut self, end: &UdpSocket, count: usize) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        self.until(|_| {
            all.extend(received(end));
            (all.len() >= count).then_some(())
        });
        all
    }
}

fn received(end: &UdpSocket) -> Vec<Vec<u8>> {
    let mut buffer = vec![0; 65_536];
    std::iter::from_fn(|| end.recv(&mut buffer).ok().map(|bytes| buffer[..bytes].to_vec())).collect()
}

/// The far ends of forwards, as rings see them.
struct Ends {
    ring: PacketRing<UnderTest>,
    _tun: UnixDatagram,
    _wake: Arc<Wake>,
}

impl Ends {
    fn new(sockets: impl IntoIterator<Item = UdpSocket>) -> (Self, Vec<SocketSlot>) {
        let (ours, tun) = UnixDatagram::pair().unwrap();
        let wake = Arc::new(Wake::new().unwrap());
        let offloads = Offloads::default().with(Offload::HugePages, false);
        let config = RingConfig { mtu: 9000, datagram_bytes: datagram_bytes_max(9000), offloads };
        let mut ring = PacketRing::new(ours.into(), wake.eventfd(), config).unwrap();
        let slots = sockets.into_iter().map(|socket| {
            let slot = ring.add_socket(socket).unwrap();
            ring.report_marks(slot).unwrap();
            slot
        });
        let slots = slots.collect();
        (Self { ring, _tun: tun, _wake: wake }, slots)
    }

    fn send(&mut self, from: SocketSlot, bytes: &[u8], record_bytes: usize, ecn: Ecn) {
        let buffer = self.ring.take_send_buffer().unwrap().unwrap();
        self.ring.send_room(&buffer)[..bytes.len()].copy_from_slice(bytes);
        let records = bytes.len().div_ceil(record_bytes) as u16;
        let train = Train { bytes: bytes.len(), record_bytes, records, class: ecn as u8 };
        self.ring.send(from, &buffer, train, 0, SendTag { peer: PEER, packets: records.into() }).unwrap();
        self.ring.release_send_buffer(buffer);
        self.ring.enter().unwrap();
    }

    /// Where, with what mark, in datagrams of what length, and what.
    fn receive(&mut self) -> Vec<(SocketSlot, Ecn, usize, Vec<u8>)> {
        self.ring.enter().unwrap();
        let mut all = Vec::new();
        while let Some(completion) = self.ring.next_completion() {
            match completion {
                Completion::Received { socket, mut buffer, datagram } => {
                    let bytes = self.ring.receive_bytes(&mut buffer)[datagram.range.clone()].to_vec();
                    let each = datagram.control.segment_bytes.map_or(bytes.len(), usize::from);
                    all.push((socket, datagram.control.ecn, each, bytes));
                    let frozen = self.ring.freeze(buffer);
                    self.ring.release(frozen);
                }
                Completion::ReceiveEnded { socket, .. } => self.ring.arm_receive(socket).unwrap(),
                other => panic!("{other:?}"),
            }
        }
        all
    }
}

#[test]
fn trains_pass_whole_both_ways_and_keep_their_marks() {
    trains_pass_between(["127.0.0.1:0", "127.0.0.1:0"]);
}

#[test]
fn one_end_may_be_reached_by_ipv4_and_the_other_by_ipv6() {
    trains_pass_between(["127.0.0.1:0", "[::1]:0"]);
}

fn trains_pass_between(addresses: [&str; 2]) {
    let mut bed = Bed::new(0);
    let Relay { ends, counters, .. } = bed.relay_between(1, addresses.map(pair_at), PLENTY, Instant::now());
    let (mut ends, slots) = Ends::new(ends);
    let (mut datagrams, mut sent_bytes) = ([0, 0], [0, 0]);
    for (round, record_bytes) in [2, 61, 1200, 1452, FORWARD_DATAGRAM_BYTES_MAX].into_iter().enumerate() {
        let most = (TRAIN_BYTES_MAX / record_bytes).min(usize::from(TRAIN_RECORDS_MAX));
        for (records, last) in [(1, record_bytes), (2, 1), (most, record_bytes), (most, record_bytes - 1)] {
            for (from, ecn) in [(0, Ecn::NotEct), (1, Ecn::Ect0), (0, Ecn::Ect1), (1, Ecn::Ce)] {
                let bytes: Vec<u8> =
                    (0..(records - 1) * record_bytes + last).map(|at| (at * 7 + round + from) as u8).collect();
                ends.send(slots[from], &bytes, record_bytes, ecn);
                let mut got = Vec::new();
                bed.until(|_| {
                    got.extend(ends.receive());
                    (!got.is_empty()).then_some(())
                });
                let each = record_bytes.min(bytes.len());
                datagrams[from] += bytes.len().div_ceil(each) as u64;
                sent_bytes[from] += bytes.len() as u64;
                assert_eq!(got.len(), 1, "{record_bytes} x {records}");
                let (slot, got_ecn, got_each, got) = got.pop().unwrap();
                assert_eq!((slot, got_ecn, got_each), (slots[1 - from], ecn, each));
                assert!(got == bytes, "{record_bytes} x {records}");
            }
        }
    }
    let halves = &counters.halves;
    assert_eq!([0, 1].map(|half: usize| halves[half].datagrams.get()), datagrams);
    assert_eq!([0, 1].map(|half: usize| halves[half].bytes.get()), sent_bytes);
    assert_eq!(bed.worker.counters.forwarded.bytes.get(), sent_bytes.iter().sum::<u64>());
    let drops = DropReason::ALL.map(|reason| counters.drops.get(reason));
    assert_eq!(drops, [0; DropReason::COUNT]);
}

#[test]
fn where_trains_are_not_received_datagrams_pass_one_by_one_in_order() {
    let mut bed = Bed::new(0);
    let Relay { ends: [a, b], .. } = bed.relay(1);
    let (mut sent, mut got) = (Vec::new(), Vec::new());
    for round in 0..100u32 {
        for number in 0..40 {
            let datagram = [&(round * 40 + number).to_be_bytes()[..], &vec![7; (number as usize * 31) % 1400]].concat();
            a.send(&datagram).unwrap();
            sent.push(datagram);
        }
        got.extend(bed.until_received(&b, 40));
    }
    assert!(got == sent);
    assert!(received(&a).is_empty());
}

#[test]
fn no_more_passes_than_a_forwards_rate_and_the_rest_is_counted() {
    let mut bed = Bed::new(0);
    let now = Instant::now() + Duration::from_secs(3600);
    let rate = ByteRate { per_second: 100_000, burst: 10 * 1048 + 5 };
    let Relay { ends, counters, .. } = bed.relay_at(1, rate, now);
    let (mut ends, slots) = Ends::new(ends);
    let mut pass = |bed: &mut Bed, datagrams: usize, now: Instant| {
        let heard = |counters: &ForwardCounters| {
            counters.halves[0].datagrams.get() + counters.drops.get(DropReason::ForwardRate)
        };
        let (before, passed) = (heard(&counters), counters.halves[0].datagrams.get());
        ends.send(slots[0], &vec![9; datagrams * 1000], 1000, Ecn::NotEct);
        bed.until_at(now, |_| heard(&counters) - before == datagrams as u64);
        let passed = counters.halves[0].datagrams.get() - passed;
        let mut received = 0;
        bed.until_at(now, |_| {
            received += ends.receive().iter().map(|(_, _, each, bytes)| bytes.len().div_ceil(*each)).sum::<usize>();
            received as u64 >= passed
        });
        received
    };
    assert_eq!(pass(&mut bed, 7, now), 7);
    assert_eq!(pass(&mut bed, 7, now), 3, "the first ones of a train");
    assert_eq!(pass(&mut bed, 7, now), 0);
    assert_eq!(pass(&mut bed, 7, now + Duration::from_millis(21)), 2);
    assert_eq!(pass(&mut bed, 60, now + Duration::from_secs(9)), 10, "no more than a burst is saved");
    for drops in [&counters.drops, &bed.worker.counters.drops] {
        assert_eq!(drops.get(DropReason::ForwardRate), 4 + 7 + 5 + 50);
    }
}

#[test]
fn all_forwards_together_have_a_rate_too_and_empty_datagrams_are_not_free() {
    let mut bed = Bed::new(0);
    let now = Instant::now() + Duration::from_secs(3600);
    let relays: Vec<_> = (0..4).map(|id| bed.relay_at(id, PLENTY, now)).collect();
    let each = OUTER_HEADER_BYTES_MAX as u64;
    let burst = 200 * each;
    assert!(burst > FORWARD_DATAGRAM_BYTES_MAX as u64 + each);
    let limit = PlaneCommand::LimitForwards(ByteRate { per_second: 1, burst });
    bed.commands.try_send(limit).unwrap();
    bed.worker.turn(now).unwrap();
    for relay in &relays {
        (0..60).for_each(|_| assert!(relay.ends[0].send(&[]).is_ok()));
    }
    let counters = Arc::clone(&bed.worker.counters);
    let passed = |_: &Bed| counters.forwarded.datagrams.get();
    bed.until_at(now, |bed| passed(bed) + counters.drops.get(DropReason::ForwardRate) == 240);
    assert_eq!((passed(&bed), counters.drops.get(DropReason::ForwardRate)), (200, 40));
}

#[test]
fn what_is_relayed_takes_nothing_from_the_nodes_own_lanes() {
    let mut bed = Bed::new(0);
    let relays: Vec<_> = (0..12).map(|id| bed.relay(id)).collect();
    bed.until(|bed| bed.worker.ring.is_idle().then_some(()));
    // What fits the receive buffer of any system, on each of many forwards.
    let (mut ends, slots) = Ends::new(relays.iter().map(|relay| relay.ends[0].try_clone().unwrap()));
    for slot in &slots {
        (0..2).for_each(|_| ends.send(*slot, &[1; 60_000], 1200, Ecn::NotEct));
    }
    (0..30).for_each(|_| bed.send_record(1, 100));
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        bed.worker.ring.enter().unwrap();
        let relayed = bed.worker.ring.forward_count();
        if relayed == usize::from(FORWARD_RECEIVES_IN_FLIGHT) && bed.worker.ring.completion_count() >= 30 {
            break;
        }
    }
    assert_eq!(bed.worker.ring.forward_count(), usize::from(FORWARD_RECEIVES_IN_FLIGHT), "its buffers are all taken");
    let counters = Arc::clone(&bed.worker.counters);
    bed.turn();
    assert_eq!(bed.counters[0].records_received.get(), 30, "and yet all of these have come");
    let mut before = 0;
    bed.until(|_| {
        let passed = counters.forwarded.bytes.get();
        assert!(passed - before < (FORWARD_TURN_BYTES + 60_000) as u64, "{} in one turn", passed - before);
        before = passed;
        (passed == 12 * 2 * 60_000).then_some(())
    });
    assert_eq!(counters.drops.get(DropReason::ForwardRate), 0);
}

#[test]
fn a_forward_with_little_to_say_is_heard_among_many_that_never_stop() {
    let mut bed = Bed::new(0);
    let busy: Vec<_> = (0..20).map(|id| bed.relay(id)).collect();
    let calm = bed.relay(99);
    for round in 0..20u8 {
        calm.ends[1].send(&[round; 50]).unwrap();
        let mut turns = 0;
        loop {
            for relay in &busy {
                (0..5).for_each(|_| drop(relay.ends[0].send(&[1; 100])));
                received(&relay.ends[1]);
            }
            bed.turn();
            turns += 1;
            if let Some(got) = received(&calm.ends[0]).pop() {
                assert_eq!(got, [round; 50]);
                break;
            }
            assert!(turns < 1000, "round {round} is still not there");
        }
    }
    let heard = busy.iter().filter(|relay| relay.counters.halves[0].datagrams.get() >= 5).count();
    assert_eq!(heard, 20, "nor is anybody else forgotten");
}

#[test]
fn a_forward_ends_when_both_its_ends_have_been_silent() {
    let mut bed = Bed::new(0);
    let start = Instant::now();
    let (a, b) = (bed.relay_at(1, PLENTY, start), bed.relay_at(2, PLENTY, start + Duration::from_secs(5)));
    assert!(bed.worker.state.forwards.deadline().is_some_and(|at| at == start + IDLE));
    for second in 1..=30 {
        if second % 8 == 0 {
            // One end is enough.
            a.ends[1].send(b"here").unwrap();
        }
        let now = start + Duration::from_secs(second);
        let before = a.counters.halves[1].datagrams.get();
        bed.until_at(now, |_| second % 8 != 0 || a.counters.halves[1].datagrams.get() > before);
        let expected = (second == 15).then_some((b.id, ForwardEnd::Idle));
        assert_eq!(bed.forward_end(), expected, "at {second} s");
    }
    bed.worker.turn(start + Duration::from_secs(34)).unwrap();
    bed.worker.turn(start + Duration::from_secs(34)).unwrap();
    assert_eq!(bed.forward_end(), Some((a.id, ForwardEnd::Idle)));
    assert_eq!(bed.worker.state.forwards.deadline(), None);
}

#[test]
fn a_forward_that_is_removed_while_full_gives_back_all_it_has() {
    let mut bed = Bed::new(0);
    for id in 0..20 {
        let relay = bed.relay(id);
        let (mut ends, slots) = Ends::new(relay.ends);
        (0..40).for_each(|_| ends.send(slots[0], &[5; 300], 300, Ecn::NotEct));
        if id % 2 == 0 {
            // Its datagrams are in our buffers, or still in its socket.
            bed.worker.ring.enter().unwrap();
        } else {
            bed.worker.turn(Instant::now()).unwrap();
        }
        bed.commands.try_send(PlaneCommand::RemoveForward(relay.id)).unwrap();
        bed.commands.try_send(PlaneCommand::RemoveForward(relay.id)).unwrap();
        assert_eq!(bed.until(Bed::forward_end), (relay.id, ForwardEnd::Removed));
        bed.until(|bed| bed.worker.is_idle().then_some(()));
        assert_eq!(bed.forward_end(), None, "once");
    }
    let Relay { ends: [a, b], .. } = bed.relay(77);
    (0..40).for_each(|_| assert!(a.send(&[6; 100]).is_ok()));
    assert_eq!(bed.until_received(&b, 40).len(), 40);
}

#[test]
fn thousands_of_forwards_come_and_go_in_the_same_places() {
    let mut bed = Bed::new(0);
    let mut standing = std::collections::VecDeque::new();
    let mut sockets = 0;
    for id in 0..3000 {
        let relay = bed.relay(id);
        relay.ends[(id % 2) as usize].send(&id.to_be_bytes()).unwrap();
        assert_eq!(bed.until_received(&relay.ends[1 - (id % 2) as usize], 1), [id.to_be_bytes()]);
        standing.push_back(relay);
        if standing.len() > 20 {
            let relay: Relay = standing.pop_front().unwrap();
            bed.commands.try_send(PlaneCommand::RemoveForward(relay.id)).unwrap();
            assert_eq!(bed.until(Bed::forward_end), (relay.id, ForwardEnd::Removed));
        }
        if id == 100 {
            sockets = bed.worker.state.forwards.places();
        }
    }
    let places = bed.worker.state.forwards.places();
    assert!(places <= sockets + 8, "{places} places, {sockets} at first");
}

#[test]
fn a_worker_forwards_so_much_and_no_id_twice() {
    let mut bed = Bed::new(0);
    let relay = bed.relay(1);
    bed.relay(1);
    assert!(matches!(bed.forward_end(), Some((ForwardId(1), ForwardEnd::Failed(_)))));
    relay.ends[0].send(b"lives").unwrap();
    assert_eq!(bed.until_received(&relay.ends[1], 1), [b"lives"]);
    books::fill(&mut bed.worker.state.forwards, FORWARDS_PER_WORKER_MAX - 1);
    bed.relay(2);
    assert!(matches!(bed.forward_end(), Some((ForwardId(2), ForwardEnd::Failed(_)))));
}

#[test]
fn an_end_that_is_not_there_for_a_while_ends_nothing() {
    let mut bed = Bed::new(0);
    let Relay { ends: [a, b], counters, .. } = bed.relay(1);
    let [at, from] = [b.local_addr().unwrap(), b.peer_addr().unwrap()];
    drop(b);
    for _ in 0..50 {
        let before = counters.halves[0].datagrams.get();
        a.send(&[1; 500]).unwrap();
        bed.until(|_| (counters.halves[0].datagrams.get() > before).then_some(()));
        bed.turn();
    }
    let b = UdpSocket::bind(at).unwrap();
    b.connect(from).unwrap();
    b.set_nonblocking(true).unwrap();
    // The first may still be told of the last one's fate.
    for number in 0..3u8 {
        a.send(&[number]).unwrap();
        b.send(&[number]).unwrap();
        bed.turn();
    }
    assert_eq!(bed.until_received(&a, 3).len(), 3);
    assert!(bed.until_received(&b, 1).contains(&vec![2]));
    assert_eq!(bed.forward_end(), None);
}

#[test]
fn a_strangers_datagram_from_before_the_socket_was_connected_goes_nowhere() {
    let mut bed = Bed::new(0);
    let [ours, far, stranger] = [(); 3].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
    let [local, remote] = [&ours, &far].map(|socket| socket.local_addr().unwrap());
    stranger.send_to(b"stranger", local).unwrap();
    ours.connect(remote).unwrap();
    far.connect(local).unwrap();
    let (other, end) = pair();
    let counters = Arc::new(ForwardCounters::default());
    let halves = [ForwardHalf { socket: ours.into(), local, remote }, other];
    let forward = Forward { id: ForwardId(1), halves, rate: PLENTY, idle: IDLE, counters: Arc::clone(&counters) };
    bed.commands.try_send(PlaneCommand::AddForward(Box::new(forward))).unwrap();
    bed.turn();
    far.send(b"friend").unwrap();
    assert_eq!(bed.until_received(&end, 1), [b"friend"]);
    assert_eq!(counters.drops.get(DropReason::InboundMalformed), 1);
}

#[test]
fn an_end_that_shows_itself_again_is_controls_and_what_no_lane_sends_goes_nowhere() {
    let mut bed = Bed::new(0);
    let Relay { ends: [a, b], counters, .. } = bed.relay(1);
    let bind = BindToken::new([1; 16]).keys().seal(&Bind { number: 1, kind: BindKind::Request { proof: 0 } });
    // More often than there are buffers, each of which comes back.
    let times = u64::from(FORWARD_RECEIVES_IN_FLIGHT) + 4;
    for _ in 0..times {
        a.send(&bind).unwrap();
        let stray = bed.until(|bed| {
            std::iter::from_fn(|| bed.events.try_recv()).find_map(|event| match event {
                PlaneEvent::Stray(stray) => Some(stray),
                _ => None,
            })
        });
        assert_eq!((stray.local, stray.from), (a.peer_addr().unwrap(), a.local_addr().unwrap()));
        assert_eq!(&stray.datagram[..], &bind);
    }
    // The largest that any lane sends, and one byte more.
    for time in 1..=times {
        a.send(&vec![0x30; FORWARD_DATAGRAM_BYTES_MAX + 1]).unwrap();
        bed.until(|_| (counters.drops.get(DropReason::InboundMalformed) == time).then_some(()));
    }
    a.send(&vec![0x30; FORWARD_DATAGRAM_BYTES_MAX]).unwrap();
    a.send(&bind[..BIND_BYTES - 1]).unwrap();
    let lengths: Vec<_> = bed.until_received(&b, 2).iter().map(Vec::len).collect();
    assert_eq!(lengths, [FORWARD_DATAGRAM_BYTES_MAX, BIND_BYTES - 1]);
    assert_eq!(bed.forward_end(), None);
}

#[test]
fn an_end_that_shows_itself_without_end_keeps_no_other_from_it_and_takes_nothing_from_lanes() {
    let mut bed = Bed::new(0);
    let [flooding, other] = [1, 2].map(|id| bed.relay(id));
    let bind = BindToken::new([1; 16]).keys().seal(&Bind { number: 1, kind: BindKind::Request { proof: 0 } });
    let (now, lanes, sent) = (Instant::now(), bed.worker.state.strays, 200);
    for _ in 0..sent {
        // One by one, so that none finds the socket full.
        flooding.ends[0].send(&bind).unwrap();
        bed.worker.turn(now).unwrap();
    }
    let dropped = || flooding.counters.drops.get(DropReason::InboundMalformed);
    bed.until_at(now, |_| dropped() + u64::from(BINDS_PER_FORWARD_BURST) == sent);
    other.ends[0].send(&bind).unwrap();
    let from = other.ends[0].local_addr().unwrap();
    bed.until(|bed| {
        let mut told = std::iter::from_fn(|| bed.events.try_recv());
        told.any(|event| matches!(event, PlaneEvent::Stray(stray) if stray.from == from)).then_some(())
    });
    assert_eq!(bed.worker.state.strays, lanes);
}

/// Sockets told apart by hand, as no ring gives so many.
fn slot(number: u16) -> SocketSlot {
    SocketSlot::at(number)
}

proptest! {
    /// What the books say of every socket, beside a list of what there is.
    #[test]
    fn the_books_know_each_socket_of_each_forward_and_no_other(
        steps in proptest::collection::vec((0..12u64, any::<bool>()), 0..200),
    ) {
        let mut all = books::new();
        let mut twin: Vec<(ForwardId, [SocketSlot; 2])> = Vec::new();
        for (id, adds) in steps {
            let (id, halves) = (ForwardId(id), [slot(2 * id as u16), slot(2 * id as u16 + 1)]);
            if adds && twin.iter().all(|(known, _)| *known != id) {
                books::add(&mut all, id, halves);
                twin.push((id, halves));
            } else if !adds {
                let known = twin.iter().position(|(known, _)| *known == id).map(|at| twin.swap_remove(at));
                prop_assert_eq!(books::remove(&mut all, id), known.is_some());
            }
            for number in 0..24 {
                let expected = twin.iter().find_map(|(id, halves)| {
                    Some((*id, halves.iter().position(|half| *half == slot(number))?))
                });
                prop_assert_eq!(books::of_socket(&mut all, slot(number)), expected);
            }
        }
    }

    /// As a queue in which who got nothing keeps its place, whatever is removed meanwhile.
    #[test]
    fn sockets_without_buffers_have_their_turns_in_order(
        steps in proptest::collection::vec((0..4usize, 0..8u64, any::<bool>()), 0..300),
    ) {
        let mut all = books::new();
        (0..8).for_each(|id| books::add(&mut all, ForwardId(id), [slot(2 * id as u16), slot(2 * id as u16 + 1)]));
        let mut removed = Vec::new();
        let (mut twin, mut armed) = (Vec::<SocketSlot>::new(), (0..16).map(slot).collect::<Vec<_>>());
        for (what, number, was_served) in steps {
            match what {
                // Some of those that are armed run out, first come first.
                0 => {
                    let count = (number as usize).min(armed.len());
                    let (mut front, mut back) = (Vec::new(), Vec::new());
                    for (at, socket) in armed.drain(..count).enumerate() {
                        let was_served = was_served && at == 0;
                        books::note_shortage(&mut all, socket, was_served);
                        if was_served { back.push(socket) } else { front.push(socket) }
                    }
                    books::settle(&mut all);
                    twin = [front, twin, back].concat();
                }
                1 if was_served => {
                    books::remove(&mut all, ForwardId(number));
                    removed.extend([slot(2 * number as u16), slot(2 * number as u16 + 1)]);
                    armed.retain(|socket| !removed.contains(socket));
                }
                _ => {
                    let expected = twin.iter().position(|socket| !removed.contains(socket));
                    let next = books::next_waiting(&mut all);
                    prop_assert_eq!(next, expected.map(|at| twin[at]));
                    twin.drain(..expected.map_or(twin.len(), |at| at + 1));
                    armed.extend(next);
                }
            }
        }
    }

    #[test]
    fn as_many_of_a_train_pass_as_there_are_bytes_for_and_not_one_more(
        left in 0..200_000u64, each in 1..9033usize, datagrams in 1..64usize, short in 0..9033usize,
    ) {
        let bytes = each * datagrams - short % each;
        let cost = |count: usize| {
            ((count * each).min(bytes) + count * OUTER_HEADER_BYTES_MAX) as u64
        };
        let expected = (0..=datagrams).rev().find(|count| cost(*count) <= left).unwrap();
        prop_assert_eq!(books::allowed(left, bytes, each, datagrams), expected);
    }
}
