//! The ring on a real kernel, with a datagram socket pair in the place of the TUN, so that no privilege is needed.

use std::os::unix::net::UnixDatagram;

use rustix::event::{EventfdFlags, eventfd};

use super::*;

const PEER: PeerIndex = PeerIndex(3);
const TAG: SendTag = SendTag { peer: PEER, packets: 1 };
/// Enters that any of these tests needs at most.
const ENTERS: usize = 10_000;

struct Bed {
    ring: PacketRing,
    /// The other side of what the ring takes for its TUN.
    tun: UnixDatagram,
}

impl Bed {
    fn new() -> Self {
        let (ours, tun) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        tun.set_nonblocking(true).unwrap();
        let wake = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        Self { ring: PacketRing::new(ours.into(), &wake, 1420, 1472).unwrap(), tun }
    }

    /// Enters until `done` says so of all completions so far.
    fn until(&mut self, mut done: impl FnMut(&PacketRing, &[Completion]) -> bool) -> Vec<Completion> {
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

    fn until_idle(&mut self) -> Vec<Completion> {
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

    /// The number in each datagram, whose buffers go back.
    fn numbers(&mut self, completions: Vec<Completion>) -> Vec<u32> {
        let mut numbers = Vec::new();
        for completion in completions {
            if let Completion::Received { buffer, datagram, .. } = completion {
                let bytes = &self.ring.receive_bytes(&buffer)[datagram.range];
                numbers.push(u32::from_be_bytes(bytes.try_into().unwrap()));
                let frozen = self.ring.freeze(buffer);
                self.ring.release(frozen);
            }
        }
        numbers
    }

    fn send(&mut self, slot: SocketSlot, number: u32) {
        let buffer = self.ring.take_send_buffer().unwrap();
        self.ring.send_bytes(&buffer)[..4].copy_from_slice(&number.to_be_bytes());
        self.ring.send(slot, buffer, 4, TAG).unwrap();
    }
}

/// Two connected sockets on loopback.
fn pair() -> (UdpSocket, UdpSocket) {
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
    let first = bed.until(|_, completions| matches!(completions.last(), Some(Completion::ReceiveEnded { .. })));
    let Some(Completion::ReceiveEnded { error: Some(error), socket }) = first.last() else { panic!("{first:?}") };
    assert_eq!((error.raw_os_error(), *socket), (Some(libc::ENOBUFS), slot));
    assert_eq!(received(&first), usize::from(UDP_RECEIVES_IN_FLIGHT));
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
        let mut ended = false;
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
                        assert_eq!(error.and_then(|error| error.raw_os_error()), Some(libc::ENOBUFS));
                        ended = true;
                    }
                    other => panic!("{other:?}"),
                }
            }
            if ended {
                break;
            }
        }
        assert!(ended && held.len() == buffers, "{ended} {}", held.len());
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
    assert_eq!(bed.ring.free_sends.len(), usize::from(SENDS_IN_FLIGHT));
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
    assert_eq!(bed.ring.free_sends.len(), usize::from(SENDS_IN_FLIGHT));
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
                Completion::SendFailed { tag, error } => {
                    assert_eq!((tag.peer, error.raw_os_error()), (PEER, Some(libc::ECONNREFUSED)));
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(bed.ring.free_sends.len(), usize::from(SENDS_IN_FLIGHT));
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
            for _ in 0..2 {
                bed.ring.tun_write(&buffer, datagram.range.clone(), VnetHeader::default(), PEER).unwrap();
            }
            bed.ring.release(buffer);
            let failed = bed.until_idle();
            if round == 2 {
                assert!(matches!(failed[..], [Completion::TunWriteFailed { peer: PEER }, _]), "{failed:?}");
                continue;
            }
            let mut written = [0; 32];
            for _ in 0..2 {
                assert_eq!(bed.tun.recv(&mut written).unwrap(), VNET_HEADER_BYTES + 4);
                assert_eq!(written[VNET_HEADER_BYTES..][..4], number.to_be_bytes());
            }
        }
    }
    assert_eq!(bed.ring.free_writes.len(), usize::from(TUN_WRITES_IN_FLIGHT));
    assert!(bed.ring.receive_states.iter().all(|state| state.writes == 0));
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
