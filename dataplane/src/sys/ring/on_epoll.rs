//! The tests of `on_the_kernel.rs` on this engine, and what is only its own.

#[path = "on_the_kernel.rs"]
#[allow(clippy::duplicate_mod, reason = "the other engine has them too")]
mod tests;

use ringlane_shared::limits::{RECEIVES_PER_CALL, SENDS_PER_CALL};

use self::tests::{Bed, pair};
use super::*;

type UnderTest = Epoll;

/// One lane's flood must not keep another's datagram from being received.
#[test]
fn busy_sockets_are_received_from_in_turn() {
    let mut bed = Bed::new();
    let [(busy, busy_far), (calm, calm_far)] = [pair(), pair()];
    bed.ring.add_socket(busy).unwrap();
    let calm = bed.ring.add_socket(calm).unwrap();
    for number in 0..100u32 {
        busy_far.send(&number.to_be_bytes()).unwrap();
    }
    calm_far.send(&7u32.to_be_bytes()).unwrap();
    bed.ring.enter().unwrap();
    let mut before = 0;
    while let Some(completion) = bed.ring.next_completion() {
        let Completion::Received { socket, buffer, .. } = completion else { panic!("{completion:?}") };
        let frozen = bed.ring.freeze(buffer);
        bed.ring.release(frozen);
        if socket == calm {
            assert!(before <= RECEIVES_PER_CALL, "{before} others came first");
            return;
        }
        before += 1;
    }
    panic!("does not come, {before} others did");
}

#[test]
fn an_enter_asks_about_no_socket_that_nothing_was_heard_of() {
    let mut bed = Bed::new();
    let pairs: Vec<_> = (0..400).map(|_| pair()).collect();
    let (ours, fars): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    for socket in ours {
        bed.ring.add_socket(socket).unwrap();
    }
    bed.until_idle();
    let before = bed.ring.enters();
    bed.ring.enter().unwrap();
    assert_eq!(bed.ring.enters() - before, 1, "epoll_wait, and nothing else");
    fars[123].send(b"datagram").unwrap();
    bed.ring.enter().unwrap();
    assert_eq!((bed.ring.enters() - before, bed.ring.completion_count()), (3, 1), "it and one recvmmsg");
}

#[test]
fn sends_to_one_socket_in_a_row_take_one_call_for_many() {
    let mut bed = Bed::new();
    let (ours, far) = pair();
    let slot = bed.ring.add_socket(ours).unwrap();
    bed.until_idle();
    let before = bed.ring.enters();
    (0..SENDS_PER_CALL as u32).for_each(|number| bed.send(slot, number));
    bed.ring.enter().unwrap();
    assert_eq!(bed.ring.enters() - before, 2, "one sendmmsg, and epoll_wait");
    let mut buffer = [0; 4];
    for number in 0..SENDS_PER_CALL as u32 {
        far.recv(&mut buffer).unwrap();
        assert_eq!(buffer, number.to_be_bytes());
    }
}
