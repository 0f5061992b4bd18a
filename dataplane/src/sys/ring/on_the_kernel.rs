//! The ring on a real kernel, with a datagram socket pair in the place of the TUN, so that no privilege is needed. Each
//! engine has all of these.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use ringlane_shared::id::PeerIndex;
use ringlane_shared::packet::coalesce::Span;
use ringlane_shared::packet::marks::Ecn;
use rustix::event::{EventfdFlags, eventfd};

use super::UnderTest;
use crate::sys::ring::*;
use crate::sys::vnet_header::VnetHeader;

#[path = "on_the_kernel/forward.rs"]
mod forward;

const PEER: PeerIndex = PeerIndex(3);
const TAG: SendTag = SendTag { peer: PEER, packets: 1 };
const WRITE_TAG: WriteTag = WriteTag { peer: PEER, packets: 1 };
/// Enters that any of these tests needs at most.
const ENTERS: usize = 10_000;
/// A sleep that lasts so long was not ended by what should have ended it.
const LONG: Duration = Duration::from_secs(20);

pub(super) struct Bed {
    pub(super) ring: PacketRing<UnderTest>,
    /// The other side of what the ring takes for its TUN.
    tun: UnixDatagram,
    wake: OwnedFd,
}

impl Bed {
    pub(super) fn new() -> Self {
        Self::with(Offloads::default())
    }

    fn with(offloads: Offloads) -> Self {
        let (ours, tun) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        tun.set_nonblocking(true).unwrap();
        let wake = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let config = RingConfig { mtu: 1420, datagram_bytes: 1472, offloads };
        Self { ring: PacketRing::new(ours.into(), &wake, config).unwrap(), tun, wake }
    }

    /// Enters until `done` says so of all completions so far.
    fn until(&mut self, mut done: impl FnMut(&PacketRing<UnderTest>, &[Completion]) -> bool) -> Vec<Completion> {
        let mut all = Vec::new();
        for _ in 0..ENTERS {
            while let Some(completion) = self.ring.next_completion() {
                all.push(completion);
            }
            if done(&self.ring, &all) {
                return all;
            }
            self.ring.enter().unwrap();
        }
        panic!("does not come: {all:?}");
    }

    pub(super) fn until_idle(&mut self) -> Vec<Completion> {
        let mut all = Vec::new();
        for _ in 0..ENTERS {
            self.ring.enter().unwrap();
            while let Some(completion) = self.ring.next_completion() {
                all.push(completion);
            }
            if self.ring.is_idle() {
                return all;
            }
        }
        panic!("never idle: {all:?}");
    }

    /// What a few more enters bring.
    fn few_enters(&mut self) -> Vec<Completion> {
        (0..10).for_each(|_| self.ring.enter().unwrap());
        std::iter::from_fn(|| self.ring.next_completion()).collect()
    }

    /// The number in each datagram, whose buffers go back.
    fn numbers(&mut self, completions: Vec<Completion>) -> Vec<u32> {
        let mut numbers = Vec::new();
        for completion in completions {
            if let Completion::Received { mut buffer, datagram, .. } = completion {
                let bytes = &self.ring.receive_bytes(&mut buffer)[datagram.range];
                numbers.push(u32::from_be_bytes(bytes.try_into().unwrap()));
                let frozen = self.ring.freeze(buffer);
                self.ring.release(frozen);
            }
        }
        numbers
    }

    pub(super) fn send(&mut self, slot: SocketSlot, number: u32) {
        self.send_train(slot, 4, &[&number.to_be_bytes()]);
    }

    /// Sends records of `record_bytes`, the last of which may be shorter, as one train.
    fn send_train(&mut self, slot: SocketSlot, record_bytes: usize, records: &[&[u8]]) {
        let buffer = self.ring.take_send_buffer().unwrap().unwrap();
        let all = records.concat();
        self.ring.send_room(&buffer)[..all.len()].copy_from_slice(&all);
        let train = Train { bytes: all.len(), record_bytes, records: records.len() as u16, class: 0 };
        self.ring.send(slot, &buffer, train, 0, SendTag { packets: records.len() as u32, ..TAG }).unwrap();
        self.ring.release_send_buffer(buffer);
    }

    fn is_whole(&self) -> bool {
        self.ring.free_sends.len() == usize::from(SENDS_IN_FLIGHT)
            && self.ring.free_send_buffers.len() == usize::from(SEND_BUFFERS)
    }
}

/// Two connected sockets on loopback.
pub(super) fn pair() -> (UdpSocket, UdpSocket) {
    let [a, b] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
    a.connect(b.local_addr().unwrap()).unwrap();
    b.connect(a.local_addr().unwrap()).unwrap();
    [&a, &b].into_iter().for_each(|socket| socket.set_nonblocking(true).unwrap());
    (a, b)
}

fn received(completions: &[Completion]) -> usize {
    completions.iter().filter(|completion| matches!(completion, Completion::Received { .. })).count()
}

#[test]
fn a_receive_that_ran_out_of_buffers_goes_on_in_order_when_they_are_back() {
    let mut bed = Bed::new();
    let (ours, far) = pair();
    let slot = bed.ring.add_socket(ours).unwrap();
    let all = u32::from(UDP_RECEIVES_IN_FLIGHT) * 3 / 2;
    for number in 0..all {
        far.send(&number.to_be_bytes()).unwrap();
    }
    let first = bed.until(|_, completions| received(completions) == usize::from(UDP_RECEIVES_IN_FLIGHT));
    for completion in bed.few_enters() {
        // io_uring says so, and stops.
        let Completion::ReceiveEnded { error: Some(error), socket } = completion else { panic!("{completion:?}") };
        assert_eq!((error.raw_os_error(), socket), (Some(libc::ENOBUFS), slot));
    }
    let mut numbers = bed.numbers(first);
    bed.ring.arm_receive(slot).unwrap();
    let rest = all as usize - numbers.len();
    let second = bed.until(|_, completions| received(completions) == rest);
    numbers.extend(bed.numbers(second));
    assert_eq!(numbers, (0..all).collect::<Vec<_>>());
}

#[test]
fn a_tun_read_that_ran_out_of_buffers_goes_on_in_order_when_they_are_back() {
    let mut bed = Bed::new();
    let (buffers, mut fed, mut read) = (usize::from(TUN_READS_IN_FLIGHT), 0u8, Vec::new());
    for _ in 0..3 {
        bed.ring.arm_tun_read().unwrap();
        let mut held = Vec::new();
        let mut enters_left = 10;
        for _ in 0..ENTERS {
            // One more than there are buffers, and a few at a time: a socket pair holds less than a TUN's queue.
            if usize::from(fed) <= read.len() + held.len() && bed.tun.send(&[fed; 40]).is_ok() {
                fed += 1;
            }
            bed.ring.enter().unwrap();
            while let Some(completion) = bed.ring.next_completion() {
                match completion {
                    Completion::TunRead { buffer, bytes: 40 } => held.push(buffer),
                    Completion::TunReadEnded { error } => {
                        // io_uring says so, and stops.
                        assert_eq!(error.and_then(|error| error.raw_os_error()), Some(libc::ENOBUFS));
                    }
                    other => panic!("{other:?}"),
                }
            }
            enters_left -= u32::from(held.len() == buffers);
            if enters_left == 0 {
                break;
            }
        }
        assert_eq!((held.len(), enters_left), (buffers, 0));
        for buffer in held {
            read.push(bed.ring.tun_bytes(&buffer, 40)[0]);
            bed.ring.recycle_tun(buffer);
        }
    }
    assert_eq!(read, (0..3 * buffers as u8).collect::<Vec<_>>());
}

#[test]
fn a_slot_that_is_used_again_has_another_name() {
    let mut bed = Bed::new();
    let (first, first_far) = pair();
    let old = bed.ring.add_socket(first).unwrap();
    bed.until_idle();
    first_far.send(&1u32.to_be_bytes()).unwrap();
    bed.ring.close_socket(old).unwrap();
    let late = bed.until_idle();
    assert!(late.iter().all(|completion| !matches!(completion, Completion::ReceiveEnded { .. })), "{late:?}");
    bed.numbers(late);
    let (second, second_far) = pair();
    let new = bed.ring.add_socket(second).unwrap();
    assert_eq!(new.position(), old.position());
    assert_ne!(new, old);
    // What is left of the old one does nothing to the new one.
    bed.ring.close_socket(old).unwrap();
    bed.ring.arm_receive(old).unwrap();
    bed.send(old, 8);
    assert!(bed.ring.send_now(old, b"x").is_err());
    bed.send(new, 9);
    second_far.send(&2u32.to_be_bytes()).unwrap();
    let completions = bed.until(|_, completions| received(completions) == 1);
    assert!(matches!(completions[0], Completion::Received { socket, .. } if socket == new));
    assert_eq!(bed.numbers(completions), [2]);
    let mut buffer = [0; 8];
    assert_eq!(second_far.recv(&mut buffer).unwrap(), 4);
    assert_eq!(buffer[..4], 9u32.to_be_bytes());
    assert!(second_far.recv(&mut buffer).is_err());
    assert!(bed.is_whole());
}

#[test]
fn a_socket_is_closed_after_what_was_queued_has_been_sent() {
    let mut bed = Bed::new();
    let (ours, far) = pair();
    let address = ours.local_addr().unwrap();
    let slot = bed.ring.add_socket(ours).unwrap();
    (0..100).for_each(|number| bed.send(slot, number));
    bed.ring.close_socket(slot).unwrap();
    assert!(UdpSocket::bind(address).is_err(), "still open");
    bed.until_idle();
    let mut buffer = [0; 4];
    for number in 0..100u32 {
        far.recv(&mut buffer).unwrap();
        assert_eq!(buffer, number.to_be_bytes());
    }
    UdpSocket::bind(address).expect("closed");
    assert!(!bed.ring.is_busy());
    assert!(bed.is_whole());
}

/// The kernel does so much deferred work at one go and no more: what is over must not be slept on.
#[test]
fn the_ring_is_not_idle_while_any_of_many_closed_sockets_is_open() {
    let mut bed = Bed::new();
    let slots: Vec<_> = (0..400).map(|_| bed.ring.add_socket(pair().0).unwrap()).collect();
    bed.until_idle();
    slots.iter().for_each(|slot| bed.ring.close_socket(*slot).unwrap());
    assert_eq!(bed.until_idle().len(), 0, "no completion tells of it");
    assert_eq!(bed.ring.free_sockets.len(), slots.len());
}

#[test]
fn a_refused_send_is_sent_again_and_only_then_fails() {
    let mut bed = Bed::new();
    let (ours, far) = pair();
    drop(far);
    let slot = bed.ring.add_socket(ours).unwrap();
    for number in 0..20 {
        bed.send(slot, number);
    }
    for _ in 0..100 {
        bed.ring.enter().unwrap();
        while let Some(completion) = bed.ring.next_completion() {
            match completion {
                Completion::ReceiveEnded { .. } => bed.ring.arm_receive(slot).unwrap(),
                Completion::SendFailed { tag, error, .. } => {
                    assert_eq!((tag.peer, error.raw_os_error()), (PEER, Some(libc::ECONNREFUSED)));
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(bed.is_whole());
    bed.ring.close_socket(slot).unwrap();
    bed.until(|ring, _| !ring.is_busy());
}

#[test]
fn a_receive_buffer_goes_back_once_after_its_last_write_even_if_writes_fail() {
    let mut bed = Bed::new();
    let (ours, far) = pair();
    bed.ring.add_socket(ours).unwrap();
    for round in 0..3u32 {
        if round == 2 {
            bed.tun = UnixDatagram::unbound().unwrap();
        }
        for number in 0..u32::from(UDP_RECEIVES_IN_FLIGHT) {
            far.send(&number.to_be_bytes()).unwrap();
            let completions = bed.until(|_, completions| received(completions) == 1);
            let Some(Completion::Received { buffer, datagram, .. }) = completions.into_iter().next() else { panic!() };
            let buffer = bed.ring.freeze(buffer);
            let span = Span { buffer: buffer.id(), offset: datagram.range.start as u32, bytes: 4 };
            for (head, spans) in [(&b""[..], &[span][..]), (b"head", &[span, span])] {
                let write = TunWrite { header: VnetHeader::default(), head, spans, tag: WRITE_TAG };
                bed.ring.tun_write(&write).unwrap();
            }
            bed.ring.release(buffer);
            let failed = bed.until_idle();
            if round == 2 {
                assert!(
                    matches!(failed[..], [Completion::TunWriteFailed { tag: WRITE_TAG, is_unknown: false }, _]),
                    "{failed:?}"
                );
                continue;
            }
            let mut written = [0; 32];
            let number = number.to_be_bytes();
            for expected in [&number[..], &[&b"head"[..], &number, &number].concat()] {
                assert_eq!(bed.tun.recv(&mut written).unwrap(), VNET_HEADER_BYTES + expected.len());
                assert_eq!(&written[VNET_HEADER_BYTES..][..expected.len()], expected);
            }
        }
    }
    assert_eq!(bed.ring.free_writes.len(), usize::from(TUN_WRITES_IN_FLIGHT));
    assert!(bed.ring.receive_states.iter().all(|state| state.writes == 0));
}

#[test]
fn a_write_from_a_buffer_that_is_not_frozen_or_from_beyond_its_end_is_refused() {
    let mut bed = Bed::new();
    let (ours, far) = pair();
    bed.ring.add_socket(ours).unwrap();
    far.send(b"four").unwrap();
    let completions = bed.until(|_, completions| received(completions) == 1);
    let Some(Completion::Received { buffer, .. }) = completions.into_iter().next() else { panic!() };
    let refuses = |bed: &mut Bed, buffer, offset, bytes| {
        let span = Span { buffer, offset, bytes };
        let write = TunWrite { header: VnetHeader::default(), head: &[], spans: &[span], tag: WRITE_TAG };
        bed.ring.tun_write(&write).is_err()
    };
    let id = buffer.id();
    assert!(refuses(&mut bed, id, 100, 4), "it may still be written to");
    let buffer = bed.ring.freeze(buffer);
    assert!(!refuses(&mut bed, id, 100, 4));
    assert!(refuses(&mut bed, id, u32::MAX, u32::MAX) && refuses(&mut bed, id, 100, 66_000));
    assert!(refuses(&mut bed, UDP_RECEIVES_IN_FLIGHT, 0, 4) && refuses(&mut bed, id ^ 1, 0, 4));
    bed.ring.release(buffer);
    bed.until_idle();
    assert!(refuses(&mut bed, id, 100, 4), "it is the kernel's again");
    assert_eq!(bed.ring.free_writes.len(), usize::from(TUN_WRITES_IN_FLIGHT));
}

/// What arrived at the far end, datagram by datagram.
fn datagrams(far: &UdpSocket) -> Vec<Vec<u8>> {
    let mut buffer = [0; 2048];
    std::iter::from_fn(|| far.recv(&mut buffer).ok().map(|bytes| buffer[..bytes].to_vec())).collect()
}

#[test]
fn a_train_arrives_as_its_records_and_in_one_receive_where_trains_are_received() {
    let mut bed = Bed::new();
    let (ours, far) = pair();
    let slot = bed.ring.add_socket(ours).unwrap();
    let records: [&[u8]; 4] = [&[1; 700], &[2; 700], &[3; 700], &[4; 20]];
    bed.send_train(slot, 700, &records);
    bed.until_idle();
    assert_eq!(datagrams(&far), records);
    assert!(bed.is_whole());

    let mut other = Bed::new();
    let (near, far) = pair();
    let [from, to] = [(&mut bed, near), (&mut other, far)].map(|(bed, socket)| bed.ring.add_socket(socket).unwrap());
    bed.send_train(from, 700, &records);
    bed.until_idle();
    let completions = other.until(|_, completions| received(completions) == 1);
    let Some(Completion::Received { socket, mut buffer, datagram }) = completions.into_iter().next() else { panic!() };
    assert_eq!((socket, datagram.control.segment_bytes), (to, Some(700)));
    assert_eq!(other.ring.receive_bytes(&mut buffer)[datagram.range], records.concat());
    let frozen = other.ring.freeze(buffer);
    other.ring.release(frozen);
}

#[test]
fn without_trains_records_leave_one_by_one_and_with_a_sentinel_a_short_one_ends_them() {
    let records: [&[u8]; 3] = [&[1; 700], &[2; 700], &[3; 700]];
    let mut bed = Bed::with(Offloads::default().with(Offload::UdpGso, false));
    let (ours, far) = pair();
    let slot = bed.ring.add_socket(ours).unwrap();
    bed.send_train(slot, 700, &records);
    bed.until_idle();
    assert_eq!(datagrams(&far), records);
    assert!(bed.is_whole());

    let mut bed = Bed::with(Offloads::ALL);
    let (ours, far) = pair();
    let slot = bed.ring.add_socket(ours).unwrap();
    bed.send_train(slot, 700, &records);
    bed.send_train(slot, 700, &records[..1]);
    bed.send_train(slot, 700, &[records[0], &[9; 5]]);
    bed.until_idle();
    let lengths: Vec<_> = datagrams(&far).iter().map(Vec::len).collect();
    assert_eq!(lengths, [700, 700, 700, 1, 700, 700, 5]);
}

#[test]
fn a_sentinel_makes_room_between_a_train_and_the_longer_record_that_lies_behind_it() {
    let mut bed = Bed::with(Offloads::ALL);
    let (ours, far) = pair();
    let slot = bed.ring.add_socket(ours).unwrap();
    let records: [&[u8]; 3] = [&[1; 700], &[2; 700], &[3; 1400]];
    let buffer = bed.ring.take_send_buffer().unwrap().unwrap();
    let all = records.concat();
    bed.ring.send_room(&buffer)[..all.len()].copy_from_slice(&all);
    bed.ring.send(slot, &buffer, Train { bytes: 1400, record_bytes: 700, records: 2, class: 0 }, 1400, TAG).unwrap();
    bed.ring.send(slot, &buffer, Train { bytes: 1400, record_bytes: 1400, records: 1, class: 0 }, 0, TAG).unwrap();
    bed.ring.release_send_buffer(buffer);
    bed.until_idle();
    assert_eq!(datagrams(&far), [records[0], records[1], &[0], records[2]]);
    assert!(bed.is_whole());
}

#[test]
fn a_train_that_the_kernel_refuses_is_sent_again_record_by_record() {
    let mut bed = Bed::new();
    let (ours, far) = pair();
    let slot = bed.ring.add_socket(ours).unwrap();
    // More records than any kernel takes in one send.
    let records: Vec<&[u8]> = (0..200).map(|_| &[7u8; 20][..]).collect();
    bed.send_train(slot, 20, &records);
    let refused = bed.until(|_, completions| !completions.is_empty());
    let Some(Completion::TrainRefused { train, error }) = refused.into_iter().next() else { panic!() };
    assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    assert!(!bed.is_whole(), "its bytes are still needed");
    assert!(bed.ring.resend_singly(train).unwrap());
    bed.until_idle();
    assert_eq!(datagrams(&far), records);
    assert!(bed.is_whole());
    // From now on nothing on this socket is sent as a train.
    bed.send_train(slot, 20, &records);
    assert_eq!(bed.until_idle().len(), 0);
    assert_eq!(datagrams(&far), records);
    // A ring that is dropped with a refused train in its hands has nothing left of it either.
    let (other, _far) = pair();
    let other = bed.ring.add_socket(other).unwrap();
    bed.send_train(other, 20, &records);
    bed.ring.enter().unwrap();
    bed.ring.forget_refused();
    assert!(bed.is_whole());
}

#[test]
fn a_dropped_ring_lets_go_of_everything_whatever_was_under_way() {
    let mut bed = Bed::new();
    bed.ring.arm_tun_read().unwrap();
    let sockets: Vec<_> = (0..50).map(|_| pair()).collect();
    let mut addresses = Vec::new();
    for (ours, far) in sockets {
        addresses.push(ours.local_addr().unwrap());
        let slot = bed.ring.add_socket(ours).unwrap();
        far.send(b"one").unwrap();
        if addresses.len() % 2 == 0 {
            bed.ring.enter().unwrap();
        }
        bed.send(slot, 1);
        if addresses.len() % 3 == 0 {
            bed.ring.close_socket(slot).unwrap();
        }
    }
    bed.tun.send(&[0; 40]).unwrap();
    drop(bed.ring);
    for address in addresses {
        UdpSocket::bind(address).expect("closed");
    }
    assert!(bed.tun.send(b"nobody reads").is_err());
}

#[test]
fn what_the_outer_headers_say_of_congestion_reaches_the_far_end_with_one_record_and_with_many() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let [near, far] = [(); 2].map(|()| UdpSocket::bind(address).unwrap());
        near.connect(far.local_addr().unwrap()).unwrap();
        far.connect(near.local_addr().unwrap()).unwrap();
        let mut bed = Bed::new();
        let [near, far] = [near, far].map(|socket| bed.ring.add_socket(socket).unwrap());
        bed.ring.report_marks(far).unwrap();
        for class in [0, 0b01, 0b10, 0xbb, 0xb8] {
            for records in [1, 3] {
                let buffer = bed.ring.take_send_buffer().unwrap().unwrap();
                let train = Train { bytes: 700 * usize::from(records), record_bytes: 700, records, class };
                bed.ring.send(near, &buffer, train, 0, TAG).unwrap();
                bed.ring.release_send_buffer(buffer);
                let mut bytes = 0;
                let completions = bed.until(|_, completions| {
                    let received = completions.iter().filter_map(|completion| match completion {
                        Completion::Received { datagram, .. } => Some(datagram.range.len()),
                        _ => None,
                    });
                    bytes = received.sum();
                    bytes == train.bytes
                });
                for completion in completions {
                    let Completion::Received { datagram, buffer, .. } = completion else { panic!("{completion:?}") };
                    assert_eq!(datagram.control.ecn, Ecn::of(class), "{class:#04x} over {address}");
                    let frozen = bed.ring.freeze(buffer);
                    bed.ring.release(frozen);
                }
            }
        }
    }
}

#[test]
fn what_loopback_has_taken_is_not_held_by_the_kernel_any_more() {
    let mut bed = Bed::new();
    let (ours, far) = pair();
    let slot = bed.ring.add_socket(ours).unwrap();
    bed.send(slot, 7);
    bed.until_idle();
    assert_eq!(far.recv(&mut [0; 8]).unwrap(), 4);
    assert_eq!(bed.ring.unsent_bytes(slot), 0);
    bed.ring.close_socket(slot).unwrap();
    bed.until_idle();
    assert_eq!(bed.ring.unsent_bytes(slot), 0, "a socket that is gone");
}

#[test]
fn an_assembly_buffer_comes_back_once_after_its_last_write_and_is_nobodys_to_change_until_then() {
    let mut bed = Bed::new();
    let (ours, far) = pair();
    bed.ring.add_socket(ours).unwrap();
    far.send(b"from the network").unwrap();
    let completions = bed.until(|_, completions| received(completions) == 1);
    let Some(Completion::Received { buffer, datagram, .. }) = completions.into_iter().next() else { panic!() };
    let frozen = bed.ring.freeze(buffer);
    let last = ASSEMBLY_BUFFERS - 1;
    for round in 0..3 {
        let (received, mut assemblies) = bed.ring.frozen_and_assemblies(&frozen);
        assert!(assemblies.write(last, ASSEMBLY_BUFFER_BYTES - 8, &received[datagram.range.clone()][..8]));
        assert!(assemblies.write(last, 0, &[round; 4]) && assemblies.write(0, 0, b"beside it"));
        for (buffer, offset) in [(last, ASSEMBLY_BUFFER_BYTES - 3), (last, usize::MAX), (ASSEMBLY_BUFFERS, 0)] {
            assert!(!assemblies.write(buffer, offset, &[0; 4]), "{buffer} {offset}");
        }
        let whole = assemblies.freeze(last).unwrap();
        assert!(assemblies.freeze(last).is_none() && !assemblies.write(last, 0, &[9; 4]));
        assert_eq!(assemblies.bytes(&whole, 4), [round; 4]);
        let id = whole.id();
        let spans = [0, ASSEMBLY_BUFFER_BYTES - 8].map(|at| Span { buffer: id, offset: at as u32, bytes: 4 });
        let write = TunWrite { header: VnetHeader::default(), head: &[], spans: &spans, tag: WRITE_TAG };
        (0..2).for_each(|_| bed.ring.tun_write(&write).unwrap());
        let beyond = [Span { offset: ASSEMBLY_BUFFER_BYTES as u32 - 3, ..spans[0] }];
        assert!(bed.ring.tun_write(&TunWrite { spans: &beyond, ..write }).is_err());
        bed.ring.release(whole);
        assert_eq!(bed.ring.next_finished_assembly(), None, "the kernel has it");
        assert!(bed.until_idle().is_empty());
        assert_eq!((bed.ring.next_finished_assembly(), bed.ring.next_finished_assembly()), (Some(last), None));
        assert!(bed.ring.tun_write(&write).is_err(), "it may be written to again");
        let mut written = [0; 32];
        for _ in 0..2 {
            assert_eq!(bed.tun.recv(&mut written).unwrap(), VNET_HEADER_BYTES + 8);
            assert_eq!(written[VNET_HEADER_BYTES..][..8], [&[round; 4][..], b"from"].concat());
        }
    }
    bed.ring.release(frozen);
}

#[test]
fn a_past_error_does_not_hold_up_what_has_arrived() {
    let mut bed = Bed::new();
    let (ours, far) = pair();
    let slot = bed.ring.add_socket(ours).unwrap();
    for number in [1u32, 2] {
        far.send(&number.to_be_bytes()).unwrap();
    }
    drop(far);
    // Nobody is there any more, and says so before anything is received.
    bed.send(slot, 3);
    let mut numbers = Vec::new();
    for _ in 0..ENTERS {
        bed.ring.enter().unwrap();
        let completions: Vec<_> = std::iter::from_fn(|| bed.ring.next_completion()).collect();
        if let Some(Completion::ReceiveEnded { error, .. }) = completions.last() {
            assert_eq!(error.as_ref().and_then(io::Error::raw_os_error), Some(libc::ECONNREFUSED));
            bed.ring.arm_receive(slot).unwrap();
        }
        numbers.extend(bed.numbers(completions));
        if numbers.len() == 2 {
            break;
        }
    }
    assert_eq!(numbers, [1, 2]);
}

#[test]
fn a_datagram_comes_with_its_sender_and_one_that_is_too_large_comes_empty() {
    let mut bed = Bed::with(Offloads::default().with(Offload::UdpGro, false));
    let (ours, far) = pair();
    bed.ring.add_socket(ours).unwrap();
    let sizes = [1, 1472, 3000];
    for bytes in sizes {
        far.send(&vec![bytes as u8; bytes]).unwrap();
    }
    let completions = bed.until(|_, completions| received(completions) == sizes.len());
    for (completion, bytes) in completions.into_iter().zip(sizes) {
        let Completion::Received { mut buffer, datagram, .. } = completion else { panic!("{completion:?}") };
        assert_eq!(datagram.from, Some(far.local_addr().unwrap()));
        assert_eq!((datagram.is_truncated, datagram.control.segment_bytes), (bytes == 3000, None));
        let there = &bed.ring.receive_bytes(&mut buffer)[datagram.range];
        assert_eq!(there, vec![bytes as u8; if bytes == 3000 { 0 } else { bytes }]);
        let frozen = bed.ring.freeze(buffer);
        bed.ring.release(frozen);
    }
}

/// How each of these ends a sleep that nothing else would: a datagram, a packet, the eventfd, a deadline.
#[test]
fn whatever_there_is_to_do_ends_a_sleep() {
    let mut bed = Bed::new();
    let (ours, far) = pair();
    let wake = bed.wake.try_clone().unwrap();
    let tun = bed.tun.try_clone().unwrap();
    bed.ring.add_socket(ours).unwrap();
    bed.ring.arm_tun_read().unwrap();
    bed.until_idle();
    let signals: [&dyn Fn() -> usize; 3] =
        [&|| far.send(b"datagram").unwrap(), &|| tun.send(&[0; 40]).unwrap(), &|| {
            rustix::io::write(&wake, &1u64.to_ne_bytes()).unwrap()
        }];
    let mut ring = bed.ring;
    UnderTest::block_on(async {
        ring.start_sleeper(&bed.wake)?;
        for signal in signals.into_iter().cycle().take(12) {
            let begun = Instant::now();
            ring.set_wakeful(true);
            ring.enter()?;
            assert!(ring.is_idle());
            assert!(signal() > 0);
            ring.sleep_until(Some(begun + LONG)).await;
            assert!(begun.elapsed() < LONG, "slept on");
            ring.set_wakeful(false);
            ring.enter()?;
            while let Some(completion) = ring.next_completion() {
                match completion {
                    Completion::TunRead { buffer, .. } => ring.recycle_tun(buffer),
                    Completion::Received { buffer, .. } => {
                        let frozen = ring.freeze(buffer);
                        ring.release(frozen);
                    }
                    other => panic!("{other:?}"),
                }
            }
            while !ring.is_idle() {
                ring.enter()?;
            }
        }
        let begun = Instant::now();
        ring.sleep_until(Some(begun + Duration::from_millis(3))).await;
        assert!(begun.elapsed() >= Duration::from_millis(3), "woke though nothing happened");
        Ok(())
    })
    .unwrap();
}
