//! What libp2p's nodes say by multicast DNS (RFC 6762) on their local networks: the service `_p2p._udp.local`.
//!
//! An announcement has to be of the one shape that Go's browser accepts: in one packet, all of it answers, a PTR from the
//! service to the instance, a SRV and one single TXT of the instance, and an A or AAAA of the SRV's target. The addresses
//! are in the TXT, one string `dnsaddr=<multiaddr>/p2p/<peer id>` each; the SRV and the A say nothing that is used.

use std::net::IpAddr;

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::{A, AAAA, PTR, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use multiaddr::{Multiaddr, Protocol};
use thiserror::Error;

use crate::id::PeerId;
use crate::limits::{MDNS_ADDRESSES_MAX, MDNS_PACKET_BYTES_MAX, MDNS_SENT_BYTES_MAX, MDNS_TOLD_MAX};

/// The service that libp2p's nodes offer.
const SERVICE: &str = "_p2p._udp.local.";
/// What precedes an address in a string of the TXT.
const PREFIX: &[u8] = b"dnsaddr=";
/// The port of the SRV, which means nothing; libp2p's.
const PORT: u16 = 4001;
/// Bytes of a string in a TXT.
const STRING_BYTES_MAX: usize = 255;
/// For how long what we announce holds, in seconds.
pub const TTL_SECONDS: u32 = 120;

/// Characters of an instance name: libp2p's are 32 to 63 of `[a-z0-9]`.
pub const INSTANCE_BYTES: usize = 40;

/// A packet could not be read, or not be made.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum MdnsError {
    /// It is longer than any may be.
    #[error("a packet of {0} bytes is too long")]
    TooLong(usize),
    /// It is no DNS message.
    #[error("it is no DNS message: {0}")]
    Malformed(String),
}

/// The name under which a node announces itself: made anew at each start, so that it tells nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Instance(String);

impl Instance {
    /// One from random bytes.
    pub fn new(random: [u8; INSTANCE_BYTES]) -> Self {
        const LETTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
        Self(random.iter().map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()])).collect())
    }
}

/// What a node says of itself on one interface.
#[derive(Clone, Copy, Debug)]
pub struct Announcement<'a> {
    /// Under which name.
    pub instance: &'a Instance,
    /// Who.
    pub peer: PeerId,
    /// Where it listens, without `/p2p/`. Those that do not fit are left out.
    pub addresses: &'a [Multiaddr],
    /// The interface's addresses, for the SRV's target.
    pub hosts: &'a [IpAddr],
}

impl Announcement<'_> {
    /// The packet; with `ttl_seconds` 0 it takes back what was said.
    pub fn to_packet(&self, ttl_seconds: u32) -> Result<Vec<u8>, MdnsError> {
        let service = name(SERVICE)?;
        let instance = service.prepend_label(self.instance.0.as_str()).map_err(malformed)?;
        let target = name(&format!("{}.local.", self.instance.0))?;
        let mut message = Message::new(0, MessageType::Response, OpCode::Query);
        message.metadata.authoritative = true;
        let mut answer = |owner: &Name, data: RData| {
            message.add_answer(Record::from_rdata(owner.clone(), ttl_seconds, data));
        };
        answer(&service, RData::PTR(PTR(instance.clone())));
        answer(&instance, RData::SRV(SRV::new(0, 0, PORT, target.clone())));
        // One of each family is enough for Go, and leaves the room to the addresses.
        let first = |is_ipv4| self.hosts.iter().find(move |ip| ip.is_ipv4() == is_ipv4);
        for ip in [first(true), first(false)].into_iter().flatten() {
            let data = match ip {
                IpAddr::V4(ip) => RData::A(A(*ip)),
                IpAddr::V6(ip) => RData::AAAA(AAAA(*ip)),
            };
            answer(&target, data);
        }
        let bare = message.to_vec().map_err(malformed)?.len();
        // A TXT has a pointer to its name, then type, class, TTL and length; each string has a length of its own.
        let mut room = MDNS_SENT_BYTES_MAX.saturating_sub(bare + 2 + 10);
        let mut strings = Vec::new();
        for address in self.addresses.iter().take(MDNS_ADDRESSES_MAX) {
            let string = format!("dnsaddr={address}/p2p/{}", self.peer);
            if string.len() <= STRING_BYTES_MAX && string.len() < room {
                room -= string.len() + 1;
                strings.push(string);
            }
        }
        message.add_answer(Record::from_rdata(instance, ttl_seconds, RData::TXT(TXT::new(strings))));
        message.to_vec().map_err(malformed)
    }
}

/// The packet that asks who is there.
pub fn query() -> Result<Vec<u8>, MdnsError> {
    let mut message = Message::new(0, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(name(SERVICE)?, RecordType::PTR));
    message.to_vec().map_err(malformed)
}

/// What a packet said.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Heard {
    /// Whether it asks who is there.
    pub asks: bool,
    /// Which addresses it tells, in its order.
    pub told: Vec<Told>,
}

/// An address of a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Told {
    /// Whose, by its own word: nothing of mDNS is authentic.
    pub peer: PeerId,
    /// Which, without the peer.
    pub address: Multiaddr,
    /// For how long, in seconds; 0 takes it back.
    pub ttl_seconds: u32,
}

/// Reads a packet. Go answers with the TXT among the additional records, and announces itself with it among the answers.
pub fn parse(packet: &[u8]) -> Result<Heard, MdnsError> {
    if packet.len() > MDNS_PACKET_BYTES_MAX {
        return Err(MdnsError::TooLong(packet.len()));
    }
    let message = Message::from_vec(packet).map_err(malformed)?;
    let service = name(SERVICE)?;
    let is_pointer = |question: &Query| matches!(question.query_type, RecordType::PTR | RecordType::ANY);
    let is_query = message.metadata.message_type == MessageType::Query;
    let asks = is_query && message.queries.iter().any(|question| is_pointer(question) && question.name == service);
    let records = message.answers.iter().chain(&message.additionals).filter(|_| !is_query);
    let told = records.filter(|record| service.zone_of(&record.name)).flat_map(|record| {
        let strings = if let RData::TXT(text) = &record.data { &text.txt_data[..] } else { &[] };
        strings.iter().filter_map(|string| told(string, record.ttl))
    });
    Ok(Heard { asks, told: told.take(MDNS_TOLD_MAX).collect() })
}

fn told(string: &[u8], ttl_seconds: u32) -> Option<Told> {
    let text = str::from_utf8(string.strip_prefix(PREFIX)?).ok()?;
    let mut address: Multiaddr = text.parse().ok()?;
    let Some(Protocol::P2p(peer)) = address.pop() else { return None };
    (!address.is_empty()).then_some(Told { peer, address, ttl_seconds })
}

fn name(text: &str) -> Result<Name, MdnsError> {
    Name::from_ascii(text).map_err(malformed)
}

fn malformed(error: impl std::fmt::Display) -> MdnsError {
    MdnsError::Malformed(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> PeerId {
        "12D3KooWP6VEGDDp6eiCSubLai8A9hoAWuFN9A2A5BysyaSbXtRN".parse().unwrap()
    }

    fn announce(addresses: &[Multiaddr], ttl_seconds: u32) -> Vec<u8> {
        let instance = Instance::new(std::array::from_fn(|at| (at * 7) as u8));
        let hosts = ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        Announcement { instance: &instance, peer: peer(), addresses, hosts: &hosts }.to_packet(ttl_seconds).unwrap()
    }

    #[test]
    fn an_announcement_is_of_the_shape_that_go_accepts() {
        let addresses =
            ["/ip4/192.0.2.1/tcp/8001".parse().unwrap(), "/ip6/2001:db8::1/udp/8001/quic-v1".parse().unwrap()];
        let packet = announce(&addresses, TTL_SECONDS);
        assert_eq!(packet[..12], [0, 0, 0x84, 0, 0, 0, 0, 5, 0, 0, 0, 0], "flags, and all five are answers");
        let message = Message::from_vec(&packet).unwrap();
        let of = |kind| message.answers.iter().filter(move |record| record.record_type() == kind);
        let RData::PTR(PTR(instance)) = &of(RecordType::PTR).next().unwrap().data else { panic!() };
        assert_eq!(instance.iter().next().unwrap().len(), INSTANCE_BYTES);
        assert!(instance.iter().next().unwrap().iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()));
        assert_eq!(of(RecordType::TXT).map(|record| &record.name).collect::<Vec<_>>(), [instance]);
        let srv = of(RecordType::SRV).next().unwrap();
        let RData::SRV(data) = &srv.data else { panic!() };
        assert_eq!(&srv.name, instance);
        assert!(of(RecordType::A).chain(of(RecordType::AAAA)).all(|record| record.name == data.target));
        assert!(message.answers.iter().all(|record| record.ttl == 120 && !record.mdns_cache_flush));

        let heard = parse(&packet).unwrap();
        let told = addresses.map(|address| Told { peer: peer(), address, ttl_seconds: 120 });
        assert_eq!(heard, Heard { asks: false, told: told.into() });
        let goodbye = announce(&[heard.told[0].address.clone()], 0);
        assert_eq!(parse(&goodbye).unwrap().told[0].ttl_seconds, 0);
    }

    #[test]
    fn more_addresses_than_fit_are_left_out_and_the_packet_stays_small() {
        let long = |n: u16| format!("/ip6/2001:db8:1111:2222:3333:4444:5555:{n:x}/udp/8001/quic-v1").parse().unwrap();
        let addresses: Vec<Multiaddr> = (0x1000..0x1040).map(long).collect();
        let packet = announce(&addresses, TTL_SECONDS);
        assert!((MDNS_SENT_BYTES_MAX - 200..=MDNS_SENT_BYTES_MAX).contains(&packet.len()), "{}", packet.len());
        assert!(parse(&packet).unwrap().told.len() > 7);
    }

    #[test]
    fn only_a_question_for_the_service_asks() {
        assert!(parse(&query().unwrap()).unwrap().asks);
        let ask = |text: &str, kind| {
            let mut message = Message::new(0, MessageType::Query, OpCode::Query);
            message.add_query(Query::query(name(text).unwrap(), kind));
            parse(&message.to_vec().unwrap()).unwrap().asks
        };
        assert!(ask("_P2P._udp.LOCAL.", RecordType::ANY));
        assert!(!ask("_p2p._udp.local.", RecordType::TXT) && !ask("_ipp._tcp.local.", RecordType::PTR));
    }

    #[test]
    fn text_elsewhere_and_of_other_names_counts_as_additional_records_and_not_at_all() {
        let text = format!("dnsaddr=/ip4/192.0.2.1/tcp/1/p2p/{}", peer());
        let record = |owner: &str, text: &str| {
            Record::from_rdata(name(owner).unwrap(), 3200, RData::TXT(TXT::new(vec![text.to_owned()])))
        };
        let mut message = Message::new(0, MessageType::Response, OpCode::Query);
        message.add_additional(record("x._p2p._udp.local.", &text));
        message.add_additional(record("x._ipp._tcp.local.", &text));
        message.add_answer(record("x._p2p._udp.local.", "dnsaddr=/ip4/192.0.2.1/tcp/1"));
        message.add_answer(record("x._p2p._udp.local.", "dnsaddr="));
        message.add_answer(record("x._p2p._udp.local.", &text["dnsaddr=".len()..]));
        let heard = parse(&message.to_vec().unwrap()).unwrap();
        assert_eq!(heard.told.len(), 1);
        assert_eq!(heard.told[0].ttl_seconds, 3200);
        assert!(matches!(parse(&[0; 5]), Err(MdnsError::Malformed(_))));
        assert_eq!(parse(&[0; MDNS_PACKET_BYTES_MAX + 1]), Err(MdnsError::TooLong(9001)));
    }
}
