//! UDP flows that keep a link busy, and what became of each datagram; and sockets with what the kernel offloads for UDP.

use std::io::{ErrorKind, IoSliceMut};
use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};

use crate::lab::{Namespace, PATIENCE};
use crate::traffic::{Content, introduce, receiver, sender};

/// Room for all that a test has under way, whatever the kernel charges for small datagrams.
const RECEIVE_BUFFER_BYTES: usize = 8 << 20;
/// Datagrams of one flow that are sent in a row, before those of the next one.
const IN_A_ROW: u32 = 4;
/// Every so many datagrams of a flow are answered by an empty one, and one crosses with the first. Nobody reads those, but
/// a kernel that moves flows to where the other direction comes from does so in their midst.
const ANSWER_EVERY: u32 = 8;

/// Flows of numbered datagrams, one way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) flows: u32,
    /// Of each flow.
    pub(crate) datagrams: u32,
    /// Of all flows together.
    pub(crate) under_way: u32,
    /// After how much silence all that is under way counts as lost.
    pub(crate) lost_after: Duration,
}

/// What became of a [`Load`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Tally {
    /// Datagrams that arrived, each counted once.
    pub(crate) arrived: u32,
    /// Those of them that came after a later one of their flow.
    pub(crate) overtaken: u32,
    /// Datagrams that came again.
    pub(crate) again: u32,
}

impl Load {
    /// A load of which nothing may be lost.
    pub(crate) fn lossless(flows: u32, datagrams: u32, under_way: u32) -> Self {
        Self { flows, datagrams, under_way, lost_after: PATIENCE }
    }

    /// What becomes of it if nothing goes wrong.
    pub(crate) fn all_in_order(&self) -> Tally {
        Tally { arrived: self.flows * self.datagrams, ..Tally::default() }
    }

    /// Sends it. Panics if something arrives that was not sent.
    pub(crate) fn run(&self, client: &Namespace, server: &Namespace, address: IpAddr) -> Tally {
        introduce(client, address);
        let receiver = roomy_receiver(server, address);
        receiver.set_read_timeout(Some(self.lost_after)).expect("a timeout can be set");
        let target = receiver.local_addr().expect("a bound socket has an address");
        let senders: Vec<_> = client.enter(|| (0..self.flows).map(|_| sender(target)).collect());

        for sender in &senders {
            let to = sender.local_addr().expect("a connected socket has an address");
            receiver.send_to(&[], to).expect("an answer can be sent");
        }

        let mut unsent = (0..self.datagrams).step_by(IN_A_ROW as usize).flat_map(|first| {
            let numbers = first..self.datagrams.min(first + IN_A_ROW);
            (0..self.flows).flat_map(move |flow| numbers.clone().map(move |number| (flow, number)))
        });
        let mut flows = vec![Seen::of(self.datagrams); senders.len()];
        let (mut under_way, mut received) = (0_u32, [0; 2048]);
        let mut tally = Tally::default();
        loop {
            // In bursts, so that trains and runs have something to be made of.
            if under_way <= self.under_way / 2 {
                for (flow, number) in unsent.by_ref().take((self.under_way - under_way) as usize) {
                    senders[flow as usize].send(&datagram(flow, number)).expect("a datagram can be sent");
                    under_way += 1;
                }
            }
            if under_way == 0 {
                return tally;
            }
            match receiver.recv_from(&mut received) {
                Ok((length, from)) => {
                    under_way = under_way.saturating_sub(1);
                    let (flow, number) = self.parse(&received[..length]);
                    flows[flow as usize].note(number, &mut tally);
                    if number % ANSWER_EVERY == 0 {
                        receiver.send_to(&[], from).expect("an answer can be sent");
                    }
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => under_way = 0,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("the receiver: {error}"),
            }
        }
    }

    /// The flow and number of a datagram, all of whose bytes must be as they were sent.
    fn parse(&self, received: &[u8]) -> (u32, u32) {
        let word = |at: usize| received.get(at..at + 4)?.try_into().map(u32::from_be_bytes).ok();
        let named = word(0).zip(word(4)).filter(|&(flow, number)| flow < self.flows && number < self.datagrams);
        let (flow, number) = named.unwrap_or_else(|| panic!("nobody sent {received:?}"));
        assert!(received == datagram(flow, number), "datagram {number} of flow {flow} is not what was sent");
        (flow, number)
    }
}

/// Which datagrams of one flow have arrived.
#[derive(Clone, Debug)]
struct Seen {
    numbers: Vec<bool>,
    next: u32,
}

impl Seen {
    fn of(datagrams: u32) -> Self {
        Self { numbers: vec![false; datagrams as usize], next: 0 }
    }

    fn note(&mut self, number: u32, tally: &mut Tally) {
        if std::mem::replace(&mut self.numbers[number as usize], true) {
            tally.again += 1;
            return;
        }
        tally.arrived += 1;
        if number < self.next {
            tally.overtaken += 1;
        }
        self.next = self.next.max(number + 1);
    }
}

/// A datagram that says its flow and number and is full of bytes that follow from them. Some in a row are of one size,
/// as programs send them, which goes up to what an inner MTU of 1420 carries over IPv6.
fn datagram(flow: u32, number: u32) -> Vec<u8> {
    let mut datagram = vec![0; 8 + (number / 3 * 331) as usize % 1365];
    Content::of(u64::from(flow) << 32 | u64::from(number)).fill(&mut datagram[8..]);
    datagram[..4].copy_from_slice(&flow.to_be_bytes());
    datagram[4..8].copy_from_slice(&number.to_be_bytes());
    datagram
}

/// A UDP socket at `address` whose buffer nothing in a test can fill.
pub(crate) fn roomy_receiver(at: &Namespace, address: IpAddr) -> UdpSocket {
    let socket = receiver(at, address);
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES).expect("root may have a large buffer");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
    socket
}

/// Has the kernel cut each send of this socket into datagrams of so many bytes.
pub(crate) fn send_trains(socket: &UdpSocket, datagram_bytes: u16) {
    setsockopt(socket, sockopt::UdpGsoSegment, &i32::from(datagram_bytes)).expect("the kernel has UDP_SEGMENT");
}

/// Has the kernel give several datagrams to one receive of this socket.
pub(crate) fn receive_trains(socket: &UdpSocket) {
    setsockopt(socket, sockopt::UdpGroSegment, &true).expect("the kernel has UDP_GRO");
}

/// What one receive gives: one datagram, or, after [`receive_trains`], as many as the kernel has joined. None when
/// nothing came within the socket's timeout.
pub(crate) fn receive(socket: &UdpSocket) -> Vec<Vec<u8>> {
    let mut buffer = vec![0; 1 << 16];
    let mut control = nix::cmsg_space!(i32);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    while nix::sys::socket::recv(socket.as_raw_fd(), &mut [], MsgFlags::MSG_PEEK) == Err(Errno::EINTR) {}
    let message = match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_DONTWAIT) {
        Ok(message) => message,
        Err(Errno::EAGAIN) => return Vec::new(),
        Err(error) => panic!("the receiver: {error}"),
    };
    let joined = message.cmsgs().expect("the control buffer is large enough").find_map(|control| match control {
        ControlMessageOwned::UdpGroSegments(bytes) => usize::try_from(bytes).ok(),
        _ => None,
    });
    let bytes = message.bytes;
    match joined {
        Some(datagram_bytes) => buffer[..bytes].chunks(datagram_bytes).map(<[u8]>::to_vec).collect(),
        None => vec![buffer[..bytes].to_vec()],
    }
}

#[test]
fn what_overtakes_or_comes_again_is_counted_as_such() {
    let (mut seen, mut tally) = (Seen::of(6), Tally::default());
    for number in [0, 2, 1, 2, 5, 4, 3, 0] {
        seen.note(number, &mut tally);
    }
    assert_eq!(tally, Tally { arrived: 6, overtaken: 3, again: 2 });
}

#[test]
#[should_panic(expected = "is not what was sent")]
fn a_datagram_with_a_changed_byte_is_noticed() {
    let mut changed = datagram(1, 9);
    *changed.last_mut().unwrap() ^= 1;
    Load::lossless(2, 10, 1).parse(&changed);
}
