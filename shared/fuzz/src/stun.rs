//! STUN messages: to the server, which must never answer with more than it was asked, and to the client, whose questions are
//! under way.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use ringlane_shared::stun::client::{Client, Target};
use ringlane_shared::stun::message::{Message, TransactionId};
use ringlane_shared::stun::server::Server;

/// A datagram at a lane's port that begins as STUN does.
pub fn stun(datagram: &[u8]) -> bool {
    let now = Instant::now();
    let at = |host, port| SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, host)), port);
    let (local, other, peer) = (at(1, 8100), at(1, 8101), at(2, 8100));

    let mut server = Server::new(now);
    server.set_sources(&BTreeSet::from([peer.ip()]), now);
    if let Some(reply) = server.handle(datagram, local, peer, Some(other), now) {
        assert!(reply.bytes.len() <= datagram.len());
        assert!(reply.local == local || reply.local == other);
        assert!(matches!(Message::parse(&reply.bytes), Ok(Message::Success(_) | Message::Failure(_))));
        assert_eq!(server.handle(&reply.bytes, local, peer, Some(other), now), None, "an answer is no question");
    }
    assert_eq!(server.handle(datagram, local, at(3, 1), None, now), None, "a stranger");

    // The transaction id that the seeds carry.
    let mut client = Client::new(8100, 1, Box::new(|| TransactionId([7; 12])), now);
    client.set_hosts(&[(local.ip(), vec![Target::server(peer, 0)])], now);
    for second in 0..3 {
        let now = now + Duration::from_secs(second);
        client.handle_timeout(now);
        while client.poll_transmit(now).is_some() {}
        client.handle(local, peer, datagram, now);
        assert!(!client.handle_own(local, datagram, now), "it has one port, and asks nothing of itself");
        assert!(client.candidates().len() <= 1);
    }

    let Ok(message) = Message::parse(datagram) else { return false };
    let again = match message {
        Message::Request(request) => request.to_bytes(peer, false),
        Message::Success(success) => success.to_bytes(usize::MAX).expect("there is room"),
        Message::Failure(failure) => failure.to_bytes(usize::MAX).expect("a code that was read"),
    };
    match (Message::parse(&again), message) {
        (Ok(Message::Request(read)), Message::Request(said)) => {
            assert_eq!((read.id, read.change), (said.id, said.change))
        }
        (read, said) => assert_eq!(read, Ok(said)),
    }
    true
}
