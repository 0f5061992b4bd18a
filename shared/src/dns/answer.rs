//! The answer to one question: bytes in, bytes out.

use hickory_proto::ProtoError;
use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::{Node, Zone};
use crate::identity::{builtin_ipv4, builtin_ipv6, service_address};
use crate::limits::{DNS_QUERY_BYTES_MAX, DNS_UDP_ANSWER_BYTES_MAX};

/// Seconds for which an address may be remembered: a node's never changes.
const ADDRESS_TTL: u32 = 86_400;
/// Seconds for which an alias may be remembered: names change with the configuration.
const ALIAS_TTL: u32 = 0;
/// Seconds for which it may be remembered that something is not there, and everything else a configuration can change.
const ABSENCE_TTL: u32 = 60;
/// What the header of every message takes.
const HEADER_BYTES: usize = 12;
/// What an asker without EDNS takes over UDP.
const PLAIN_UDP_BYTES: u16 = 512;

/// How a question came, which bounds its answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// In a datagram: what does not fit is left out, and the asker told to come again.
    Udp,
    /// On a stream, without the two bytes of length.
    Tcp,
}

/// What a name is to a zone.
enum Found<'z> {
    /// The zone's own name, or that of a reverse zone.
    Apex(&'z Name),
    /// A node, or a service of it.
    Node { node: &'z Node, service: Option<String>, label: Vec<u8> },
    /// The name of an address.
    Address(&'z Node, &'z Name),
    /// Nothing, but there are names below it.
    Branch(&'z Name),
    /// Nothing, in the zone of this name.
    Nothing(&'z Name),
    /// A name that is not ours to speak of.
    Elsewhere,
}

impl Zone {
    /// Answers one message. `None` for what deserves no answer: what is no question or not even a header.
    pub fn answer(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let [id_high, id_low, flags, ..] = *query else { return None };
        // An answer must never be answered: two servers would go on for ever.
        if query.len() < HEADER_BYTES || flags & 0x80 != 0 {
            return None;
        }
        let id = u16::from_be_bytes([id_high, id_low]);
        let op_code = OpCode::from_u8(flags >> 3 & 0xf);
        let refuse = |code| Message::error_msg(id, op_code, code).to_vec().ok();
        if op_code != OpCode::Query {
            return refuse(ResponseCode::NotImp);
        }
        if query.len() > DNS_QUERY_BYTES_MAX {
            return refuse(ResponseCode::FormErr);
        }
        let Ok(query) = Message::from_vec(query) else { return refuse(ResponseCode::FormErr) };
        let answer = self.respond(&query).unwrap_or_else(|_| Message::error_msg(id, op_code, ResponseCode::ServFail));
        let room = match (transport, &query.edns) {
            (Transport::Tcp, _) => u16::MAX,
            (Transport::Udp, None) => PLAIN_UDP_BYTES,
            (Transport::Udp, Some(edns)) => edns.max_payload().clamp(PLAIN_UDP_BYTES, DNS_UDP_ANSWER_BYTES_MAX),
        };
        match answer.to_vec() {
            Ok(bytes) if bytes.len() <= room.into() => Some(bytes),
            Ok(_) => answer.truncate().to_vec().ok(),
            Err(_) => refuse(ResponseCode::ServFail),
        }
    }

    fn respond(&self, query: &Message) -> Result<Message, ProtoError> {
        let mut answer = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
        answer.metadata = Metadata::response_from_request(&query.metadata);
        answer.metadata.checking_disabled = false;
        answer.add_queries(query.queries.iter().cloned());
        if let Some(edns) = &query.edns {
            let mut ours = Edns::new();
            ours.set_max_payload(DNS_UDP_ANSWER_BYTES_MAX);
            answer.set_edns(ours);
            if edns.version() != 0 {
                answer.metadata.response_code = ResponseCode::BADVERS;
                return Ok(answer);
            }
        }
        let [question] = query.queries.as_slice() else {
            answer.metadata.response_code = ResponseCode::FormErr;
            return Ok(answer);
        };
        let is_transfer = matches!(question.query_type(), RecordType::AXFR | RecordType::IXFR);
        if question.query_class() != DNSClass::IN || is_transfer {
            answer.metadata.response_code = ResponseCode::Refused;
            return Ok(answer);
        }
        self.fill(question, &mut answer)?;
        Ok(answer)
    }

    fn fill(&self, question: &Query, answer: &mut Message) -> Result<(), ProtoError> {
        let asked = question.query_type();
        let found = self.find(question.name());
        answer.metadata.authoritative = !matches!(found, Found::Elsewhere);
        match found {
            Found::Elsewhere => answer.metadata.response_code = ResponseCode::Refused,
            Found::Nothing(zone) => {
                answer.metadata.response_code = ResponseCode::NXDomain;
                answer.add_authority(self.start_of_authority(zone)?);
            }
            Found::Branch(zone) => {
                answer.add_authority(self.start_of_authority(zone)?);
            }
            Found::Apex(zone) => {
                let servers = Record::from_rdata(zone.clone(), ABSENCE_TTL, RData::NS(NS(self.server()?)));
                let record = if asked == RecordType::NS { servers } else { self.start_of_authority(zone)? };
                // Any type: one of those there are will do (RFC 8482).
                if matches!(asked, RecordType::NS | RecordType::SOA | RecordType::ANY) {
                    answer.add_answer(record);
                } else {
                    answer.add_authority(record);
                }
            }
            Found::Address(node, zone) => {
                if matches!(asked, RecordType::PTR | RecordType::ANY) {
                    let target = RData::PTR(PTR(node.preferred.clone()));
                    answer.add_answer(Record::from_rdata(question.name().clone(), ABSENCE_TTL, target));
                } else {
                    answer.add_authority(self.start_of_authority(zone)?);
                }
            }
            Found::Node { node, service, label } => {
                let under = |label: &[u8]| -> Result<Name, ProtoError> {
                    let name = self.origin.prepend_label(label)?;
                    match &service {
                        Some(service) => name.prepend_label(service.as_bytes()),
                        None => Ok(name),
                    }
                };
                let canonical = under(node.cid.as_bytes())?;
                let is_alias = label != node.cid.as_bytes();
                if is_alias {
                    let target = RData::CNAME(CNAME(canonical.clone()));
                    answer.add_answer(Record::from_rdata(under(&label)?, ALIAS_TTL, target));
                    if matches!(asked, RecordType::CNAME | RecordType::ANY) {
                        return Ok(());
                    }
                }
                match address(node, service.as_deref(), asked) {
                    Some(address) => answer.add_answer(Record::from_rdata(canonical, ADDRESS_TTL, address)),
                    None => answer.add_authority(self.start_of_authority(&self.origin)?),
                };
            }
        }
        Ok(())
    }

    fn find(&self, name: &Name) -> Found<'_> {
        if self.origin.zone_of(name) {
            let depth = name.iter().len().saturating_sub(self.origin.iter().len());
            let labels: Vec<&[u8]> = name.iter().take(depth).collect();
            let (service, label) = match labels.as_slice() {
                [] => return Found::Apex(&self.origin),
                [label] => (None, *label),
                [service, label] => (Some(*service), *label),
                _ => return Found::Nothing(&self.origin),
            };
            let Some(node) = self.node(label) else { return Found::Nothing(&self.origin) };
            let service = match service.map(|service| String::from_utf8(service.to_vec())).transpose() {
                Ok(service) => service,
                Err(_) => return Found::Nothing(&self.origin),
            };
            let label = String::from_utf8_lossy(label).to_lowercase().into_bytes();
            return Found::Node { node, service, label };
        }
        let Some(zone) = self.reverse.iter().find(|zone| zone.zone_of(name)) else { return Found::Elsewhere };
        if let Some(node) = self.addresses.get(name).and_then(|position| self.nodes.get(*position)) {
            return Found::Address(node, zone);
        }
        if name == zone {
            return Found::Apex(zone);
        }
        let is_branch = self.addresses.keys().any(|address| name.zone_of(address));
        if is_branch { Found::Branch(zone) } else { Found::Nothing(zone) }
    }

    fn start_of_authority(&self, zone: &Name) -> Result<Record, ProtoError> {
        let (refresh, retry, expire) = (86_400, 7_200, 3_600_000);
        let contact = self.origin.prepend_label("hostmaster")?;
        let soa = SOA::new(self.server()?, contact, 1, refresh, retry, expire, ABSENCE_TTL);
        Ok(Record::from_rdata(zone.clone(), ABSENCE_TTL, RData::SOA(soa)))
    }

    /// The server's name: this node's own.
    fn server(&self) -> Result<Name, ProtoError> {
        let own = self.nodes.first().map_or("", |node| node.cid.as_str());
        self.origin.prepend_label(own)
    }
}

/// The address that is asked for, if there is one of that type. Any type: one of those there are (RFC 8482).
fn address(node: &Node, service: Option<&str>, asked: RecordType) -> Option<RData> {
    match (asked, service) {
        (RecordType::A | RecordType::ANY, None) => Some(RData::A(A(builtin_ipv4(&node.id)))),
        (RecordType::AAAA, None) => Some(RData::AAAA(AAAA(builtin_ipv6(&node.id)))),
        (RecordType::AAAA | RecordType::ANY, Some(service)) => {
            Some(RData::AAAA(AAAA(service_address(&node.id, service))))
        }
        _ => None,
    }
}
