//! Which requests are answered, and with what.
//!
//! Only addresses that configured peers are known to use are answered, each at a bounded rate, and all together at another.
//! An answer is never longer than its question: a request that leaves no room for one gets none. So whoever forges a
//! peer's address as the source gains nothing. A request is not authenticated: what the answer says, the sender's own
//! address, is no secret, and whoever can send from a peer's address sees no more than the peer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use stun_types::attribute::ErrorCode;

use super::message::{Change, Failure, Message, Success};
use crate::bucket::Bucket;
use crate::limits::{
    STUN_ANSWERS_BURST, STUN_ANSWERS_PER_SECOND, STUN_BYTES_MAX, STUN_PER_SOURCE_BURST, STUN_PER_SOURCE_PER_SECOND,
    STUN_SOURCES_MAX,
};

/// What the server did. Only grows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ServerCounters {
    /// Requests answered, refusals included.
    pub answered: u64,
    /// Requests from addresses that are no peer's.
    pub strangers: u64,
    /// Requests that came too often.
    pub too_often: u64,
    /// Messages that make no sense, lack a FINGERPRINT, or leave no room for an answer.
    pub malformed: u64,
}

/// A datagram to send.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reply {
    /// The address and port of ours to send it from.
    pub local: SocketAddr,
    /// The whole datagram.
    pub bytes: Vec<u8>,
}

/// Answers binding requests. Owner: control.
#[derive(Debug)]
pub struct Server {
    sources: BTreeMap<IpAddr, Bucket>,
    all: Bucket,
    /// What it did.
    pub counters: ServerCounters,
}

impl Server {
    /// One that answers nobody.
    pub fn new(now: Instant) -> Self {
        let all = Bucket::new(STUN_ANSWERS_BURST, STUN_ANSWERS_PER_SECOND, now);
        Self { sources: BTreeMap::new(), all, counters: ServerCounters::default() }
    }

    /// Who is answered from now on; at most [`STUN_SOURCES_MAX`] addresses.
    pub fn set_sources(&mut self, sources: &BTreeSet<IpAddr>, now: Instant) {
        self.sources.retain(|source, _| sources.contains(source));
        for source in sources.iter().take(STUN_SOURCES_MAX) {
            let bucket = || Bucket::new(STUN_PER_SOURCE_BURST, STUN_PER_SOURCE_PER_SECOND, now);
            self.sources.entry(*source).or_insert_with(bucket);
        }
    }

    /// Answers a datagram whose type says that it is a request. `other` is another port of ours at the same address, if
    /// there is one.
    pub fn handle(
        &mut self,
        datagram: &[u8],
        local: SocketAddr,
        from: SocketAddr,
        other: Option<SocketAddr>,
        now: Instant,
    ) -> Option<Reply> {
        let Some(bucket) = self.sources.get_mut(&from.ip()) else {
            self.counters.strangers += 1;
            return None;
        };
        // The source's own share first, so that one that floods takes nothing from the others.
        if !bucket.take(now) || !self.all.take(now) {
            self.counters.too_often += 1;
            return None;
        }
        let reply = answer(datagram, local, from, other);
        *if reply.is_some() { &mut self.counters.answered } else { &mut self.counters.malformed } += 1;
        reply
    }
}

fn answer(datagram: &[u8], local: SocketAddr, from: SocketAddr, other: Option<SocketAddr>) -> Option<Reply> {
    let Ok(Message::Request(request)) = Message::parse(datagram) else { return None };
    if !request.has_fingerprint {
        return None;
    }
    let room = datagram.len().min(STUN_BYTES_MAX);
    let origin = match request.change {
        Change { ip: false, port: false } => Some(local),
        Change { ip: false, port: true } => other,
        Change { ip: true, .. } => None,
    };
    let refusal = |code| Failure { id: request.id, code }.to_bytes(room).map(|bytes| Reply { local, bytes });
    match origin {
        // RFC 5780, section 6.1: an alternate that is not there is an attribute not understood.
        None => refusal(ErrorCode::UNKNOWN_ATTRIBUTE),
        Some(_) if request.has_unknown => refusal(ErrorCode::UNKNOWN_ATTRIBUTE),
        Some(origin) => {
            let success = Success { id: request.id, mapped: from, other, origin: Some(origin) };
            success.to_bytes(room).map(|bytes| Reply { local: origin, bytes })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::stun::message::{Request, TransactionId};

    const ID: TransactionId = TransactionId([7; 12]);

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn server(now: Instant) -> Server {
        let mut server = Server::new(now);
        server.set_sources(&BTreeSet::from([address("192.0.2.9:1").ip()]), now);
        server
    }

    #[test]
    fn a_peer_hears_its_address_from_the_port_it_asked_or_from_the_other() {
        let (now, peer) = (Instant::now(), address("192.0.2.9:40000"));
        let (first, second) = (address("198.51.100.1:8100"), address("198.51.100.1:8101"));
        let mut server = server(now);
        for (change, expected) in [(Change::default(), first), (Change::PORT, second)] {
            let question = Request::new(ID, change).to_bytes(first, true);
            let reply = server.handle(&question, first, peer, Some(second), now).unwrap();
            assert_eq!(reply.local, expected);
            assert!(reply.bytes.len() <= question.len());
            let told = Success { id: ID, mapped: peer, other: Some(second), origin: Some(expected) };
            assert_eq!(Message::parse(&reply.bytes), Ok(Message::Success(told)));
        }
        for (change, other) in [(Change::PORT, None), (Change::BOTH, Some(second))] {
            let question = Request::new(ID, change).to_bytes(first, true);
            let reply = server.handle(&question, first, peer, other, now).unwrap();
            assert_eq!(reply.local, first);
            assert_eq!(Message::parse(&reply.bytes), Ok(Message::Failure(Failure { id: ID, code: 420 })));
        }
        assert_eq!(server.counters.answered, 4);
    }

    #[test]
    fn strangers_floods_and_requests_without_room_get_no_answer() {
        let (now, peer, local) = (Instant::now(), address("192.0.2.9:40000"), address("198.51.100.1:8100"));
        let mut server = server(now);
        let question = Request::new(ID, Change::default()).to_bytes(local, true);
        assert_eq!(server.handle(&question, local, address("192.0.2.8:40000"), None, now), None);
        assert_eq!(server.counters.strangers, 1);
        let bare = Request::new(ID, Change::default()).to_bytes(local, false);
        assert_eq!(server.handle(&bare, local, peer, None, now), None, "an address is longer");
        let unmarked = [&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42][..], &[1; 12]].concat();
        assert_eq!(server.handle(&unmarked, local, peer, None, now), None, "no FINGERPRINT");
        assert_eq!(server.counters.malformed, 2);
        let answered = (0..10_000).filter(|_| server.handle(&question, local, peer, None, now).is_some()).count();
        assert_eq!(answered, STUN_PER_SOURCE_BURST as usize - 2);
        assert_eq!(server.counters.too_often, 10_000 - answered as u64);
        assert!(server.handle(&question, local, peer, None, now + Duration::from_secs(1)).is_some());
        server.set_sources(&BTreeSet::new(), now);
        assert_eq!(server.handle(&question, local, peer, None, now), None, "no peer any more");
    }

    #[test]
    fn what_all_addresses_are_answered_together_is_bounded() {
        let (now, local) = (Instant::now(), address("198.51.100.1:8100"));
        let sources: Vec<SocketAddr> = (0..100).map(|host| SocketAddr::new([192, 0, 2, host].into(), 1)).collect();
        let mut server = Server::new(now);
        server.set_sources(&sources.iter().map(SocketAddr::ip).collect(), now);
        let question = Request::new(ID, Change::default()).to_bytes(local, true);
        let answers = sources.iter().flat_map(|from| (0..100).map(move |_| *from));
        let answered = answers.filter(|from| server.handle(&question, local, *from, None, now).is_some()).count();
        assert_eq!(answered, STUN_ANSWERS_BURST as usize);
    }
}
