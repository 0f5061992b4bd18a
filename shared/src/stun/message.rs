//! Binding requests and their answers.
//!
//! Parsing, XOR, padding and FINGERPRINT are the crate `stun-types`'; the attributes of RFC 5780, which it does not know, and
//! the bounds are here. What is accepted: exactly one message in the datagram, at most [`STUN_BYTES_MAX`], method Binding.
//! SOFTWARE is not sent: nobody needs to know what we run.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use stun_types::attribute::{
    Attribute, AttributeStaticType, AttributeType, ErrorCode, Fingerprint, RawAttribute, UnknownAttributes,
    XorMappedAddress,
};
use stun_types::message::{
    BINDING, Message as Raw, MessageClass, MessageType, MessageWrite, MessageWriteExt, MessageWriteVec,
};
use thiserror::Error;

use crate::limits::{STUN_BYTES_MAX, STUN_REQUEST_BYTES_V4, STUN_REQUEST_BYTES_V6};

/// CHANGE-REQUEST, RFC 5780, section 7.2.
const CHANGE_REQUEST: AttributeType = AttributeType::new(0x0003);
/// RESPONSE-ORIGIN, RFC 5780, section 7.3.
const RESPONSE_ORIGIN: AttributeType = AttributeType::new(0x802b);
/// OTHER-ADDRESS, RFC 5780, section 7.4.
const OTHER_ADDRESS: AttributeType = AttributeType::new(0x802c);
/// Zeros that make a request as long as its answer. Nobody has to understand it, so nobody does; RFC 5780's PADDING would
/// ask for an answer of the size of the path's MTU.
const ROOM: AttributeType = AttributeType::new(0xf952);

const HEADER_BYTES: usize = 20;
const ATTRIBUTE_HEADER_BYTES: usize = 4;
/// Of CHANGE-REQUEST and of FINGERPRINT.
const WORD_ATTRIBUTE_BYTES: usize = ATTRIBUTE_HEADER_BYTES + 4;
const CHANGE_IP: u32 = 0x04;
const CHANGE_PORT: u32 = 0x02;
const FAMILY_V4: u8 = 1;
const FAMILY_V6: u8 = 2;

// A request of ours has room for an answer with three addresses.
const _: () = assert!(STUN_REQUEST_BYTES_V4 == HEADER_BYTES + 3 * (ATTRIBUTE_HEADER_BYTES + 8) + WORD_ATTRIBUTE_BYTES);
const _: () = assert!(STUN_REQUEST_BYTES_V6 == HEADER_BYTES + 3 * (ATTRIBUTE_HEADER_BYTES + 20) + WORD_ATTRIBUTE_BYTES);
const _: () = assert!(STUN_REQUEST_BYTES_V6 <= STUN_BYTES_MAX);

/// Why a datagram is no binding message. Its sender is at fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum StunError {
    /// Longer than any that makes sense.
    #[error("{0} bytes, at most {STUN_BYTES_MAX} are read")]
    TooLong(usize),
    /// Not one whole message, or one with a wrong FINGERPRINT.
    #[error("not a STUN message")]
    Malformed,
    /// Another method than Binding, or an indication.
    #[error("not a binding request or answer")]
    NotBinding,
    /// A success without the address it is about.
    #[error("an answer without an address")]
    NoAddress,
}

/// What pairs an answer with its request: 96 random bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TransactionId(pub [u8; 12]);

impl TransactionId {
    fn of(message: &Raw<'_>) -> Self {
        let mut id = [0; 12];
        id.copy_from_slice(&u128::from(message.transaction_id()).to_be_bytes()[4..]);
        Self(id)
    }

    /// The one of a datagram that begins as a message does.
    pub(super) fn of_datagram(datagram: &[u8]) -> Option<Self> {
        datagram.get(8..20)?.try_into().ok().map(Self)
    }

    fn raw(self) -> stun_types::message::TransactionId {
        let mut bytes = [0; 16];
        bytes[4..].copy_from_slice(&self.0);
        u128::from_be_bytes(bytes).into()
    }
}

/// From where the answer shall come, other than from where the request went.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Change {
    /// From another address.
    pub ip: bool,
    /// From another port.
    pub port: bool,
}

impl Change {
    /// From another port of the same address: all that a node of ours can do.
    pub const PORT: Self = Self { ip: false, port: true };
    /// From another port of another address.
    pub const BOTH: Self = Self { ip: true, port: true };
}

/// A binding request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// Comes back in the answer.
    pub id: TransactionId,
    /// From where the answer shall come.
    pub change: Change,
    /// Whether it has a FINGERPRINT, which was right.
    pub has_fingerprint: bool,
    /// Whether it has an attribute that must be understood, and is not.
    pub has_unknown: bool,
}

/// An answer with an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Success {
    /// The request's.
    pub id: TransactionId,
    /// From where the request came, as the server saw it.
    pub mapped: SocketAddr,
    /// Where the server could answer from instead, if it says so.
    pub other: Option<SocketAddr>,
    /// Where the server sent this from, if it says so.
    pub origin: Option<SocketAddr>,
}

/// An answer without one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Failure {
    /// The request's.
    pub id: TransactionId,
    /// 300 to 699; 420 for what the server cannot do.
    pub code: u16,
}

/// What a datagram is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Message {
    /// A question.
    Request(Request),
    /// An answer.
    Success(Success),
    /// A refusal.
    Failure(Failure),
}

impl Message {
    /// Reads a datagram.
    pub fn parse(datagram: &[u8]) -> Result<Self, StunError> {
        if datagram.len() > STUN_BYTES_MAX {
            return Err(StunError::TooLong(datagram.len()));
        }
        let told = datagram.get(2..4).map(|length| usize::from(u16::from_be_bytes([length[0], length[1]])));
        if told.is_none_or(|told| told % 4 != 0 || HEADER_BYTES + told != datagram.len()) {
            return Err(StunError::Malformed);
        }
        let message = Raw::from_bytes(datagram).map_err(|_| StunError::Malformed)?;
        if !message.has_method(BINDING) {
            return Err(StunError::NotBinding);
        }
        let id = TransactionId::of(&message);
        match message.class() {
            MessageClass::Request => Ok(Self::Request(request(&message, id)?)),
            MessageClass::Success => Ok(Self::Success(success(&message, id)?)),
            MessageClass::Error => {
                let code = message.attribute::<ErrorCode>().map_err(|_| StunError::Malformed)?.code();
                Ok(Self::Failure(Failure { id, code }))
            }
            MessageClass::Indication => Err(StunError::NotBinding),
        }
    }
}

fn request(message: &Raw<'_>, id: TransactionId) -> Result<Request, StunError> {
    let known = [CHANGE_REQUEST, Fingerprint::TYPE];
    let mut has_unknown = false;
    for (_, attribute) in message.iter_attributes() {
        let kind = attribute.get_type();
        has_unknown |= kind.comprehension_required() && !known.contains(&kind);
    }
    let change = match message.raw_attribute(CHANGE_REQUEST) {
        Some(attribute) => {
            let value: [u8; 4] = (*attribute.value).try_into().map_err(|_| StunError::Malformed)?;
            let flags = u32::from_be_bytes(value);
            Change { ip: flags & CHANGE_IP != 0, port: flags & CHANGE_PORT != 0 }
        }
        None => Change::default(),
    };
    Ok(Request { id, change, has_fingerprint: message.has_attribute(Fingerprint::TYPE), has_unknown })
}

fn success(message: &Raw<'_>, id: TransactionId) -> Result<Success, StunError> {
    let mapped = message.attribute::<XorMappedAddress>().map_err(|_| StunError::NoAddress)?;
    Ok(Success {
        id,
        mapped: mapped.addr(message.transaction_id()),
        other: address_of(message, OTHER_ADDRESS),
        origin: address_of(message, RESPONSE_ORIGIN),
    })
}

/// An address as MAPPED-ADDRESS has it; one that makes no sense is as good as none.
fn address_of(message: &Raw<'_>, kind: AttributeType) -> Option<SocketAddr> {
    let attribute = message.raw_attribute(kind)?;
    let (&[_, family, high, low], ip) = attribute.value.split_first_chunk::<4>()?;
    let ip: IpAddr = match family {
        FAMILY_V4 => Ipv4Addr::from(<[u8; 4]>::try_from(ip).ok()?).into(),
        FAMILY_V6 => Ipv6Addr::from(<[u8; 16]>::try_from(ip).ok()?).into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes([high, low])))
}

impl Request {
    /// A question, with a FINGERPRINT.
    pub fn new(id: TransactionId, change: Change) -> Self {
        Self { id, change, has_fingerprint: true, has_unknown: false }
    }

    /// The datagram. With `room` it is as long as the longest answer from an address of `to`'s family.
    pub fn to_bytes(&self, to: SocketAddr, room: bool) -> Vec<u8> {
        let mut writer = begin(MessageClass::Request, self.id);
        let flags = if self.change.ip { CHANGE_IP } else { 0 } | if self.change.port { CHANGE_PORT } else { 0 };
        if flags != 0 {
            add(&mut writer, CHANGE_REQUEST, &flags.to_be_bytes());
        }
        if room {
            let target = if to.is_ipv4() { STUN_REQUEST_BYTES_V4 } else { STUN_REQUEST_BYTES_V6 };
            let used = writer.len() + ATTRIBUTE_HEADER_BYTES + WORD_ATTRIBUTE_BYTES;
            add(&mut writer, ROOM, &vec![0; target.saturating_sub(used)]);
        }
        finish(writer)
    }
}

impl Success {
    /// The datagram, of at most `room` bytes: what does not fit is left out. `None` if not even the address fits.
    pub fn to_bytes(&self, room: usize) -> Option<Vec<u8>> {
        let mut writer = begin(MessageClass::Success, self.id);
        if writer.len() + address_bytes(self.mapped) + WORD_ATTRIBUTE_BYTES > room {
            return None;
        }
        // Cannot fail: nothing that must be last has been written.
        let _ = writer.add_attribute(&XorMappedAddress::new(self.mapped, self.id.raw()));
        for (kind, address) in [(RESPONSE_ORIGIN, self.origin), (OTHER_ADDRESS, self.other)] {
            let Some(address) = address else { continue };
            if writer.len() + address_bytes(address) + WORD_ATTRIBUTE_BYTES <= room {
                add(&mut writer, kind, &address_value(address));
            }
        }
        Some(finish(writer))
    }
}

impl Failure {
    /// The datagram, of at most `room` bytes. `None` if it does not fit.
    pub fn to_bytes(&self, room: usize) -> Option<Vec<u8>> {
        let error = ErrorCode::new(self.code, "").ok()?;
        let mut writer = begin(MessageClass::Error, self.id);
        let _ = writer.add_attribute(&error);
        if self.code == ErrorCode::UNKNOWN_ATTRIBUTE && writer.len() + 2 * WORD_ATTRIBUTE_BYTES <= room {
            let _ = writer.add_attribute(&UnknownAttributes::new(&[CHANGE_REQUEST]));
        }
        (writer.len() + WORD_ATTRIBUTE_BYTES <= room).then(|| finish(writer))
    }
}

fn begin(class: MessageClass, id: TransactionId) -> MessageWriteVec {
    let kind = MessageType::from_class_method(class, BINDING);
    Raw::builder(kind, id.raw(), MessageWriteVec::with_capacity(STUN_REQUEST_BYTES_V6))
}

fn add(writer: &mut MessageWriteVec, kind: AttributeType, value: &[u8]) {
    // Cannot fail: nothing that must be last has been written, and a vector has room.
    let _ = writer.add_attribute(&RawAttribute::new(kind, value));
}

fn finish(mut writer: MessageWriteVec) -> Vec<u8> {
    // Cannot fail: it is the first FINGERPRINT.
    let _ = writer.add_fingerprint();
    writer.finish()
}

fn address_bytes(address: SocketAddr) -> usize {
    ATTRIBUTE_HEADER_BYTES + if address.is_ipv4() { 8 } else { 20 }
}

fn address_value(address: SocketAddr) -> Vec<u8> {
    let port = address.port().to_be_bytes();
    match address.ip() {
        IpAddr::V4(ip) => [&[0, FAMILY_V4][..], &port, &ip.octets()].concat(),
        IpAddr::V6(ip) => [&[0, FAMILY_V6][..], &port, &ip.octets()].concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: TransactionId = TransactionId([0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae]);

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_answers_of_rfc_5769_are_read_as_it_says() {
        // Sections 2.2 and 2.3: the address of a success; MESSAGE-INTEGRITY is not ours to check.
        let v4: Vec<u8> = [
            &[0x01, 0x01, 0x00, 0x3c, 0x21, 0x12, 0xa4, 0x42][..],
            &ID.0,
            &[0x80, 0x22, 0x00, 0x0b, 0x74, 0x65, 0x73, 0x74, 0x20, 0x76, 0x65, 0x63, 0x74, 0x6f, 0x72, 0x20],
            &[0x00, 0x20, 0x00, 0x08, 0x00, 0x01, 0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43],
            &[0x00, 0x08, 0x00, 0x14, 0x2b, 0x91, 0xf5, 0x99, 0xfd, 0x9e, 0x90, 0xc3, 0x8c, 0x74, 0x89, 0xf9],
            &[0x2a, 0xf9, 0xba, 0x53, 0xf0, 0x6b, 0xe7, 0xd7],
            &[0x80, 0x28, 0x00, 0x04, 0xc0, 0x7d, 0x4c, 0x96],
        ]
        .concat();
        let expected = Success { id: ID, mapped: address("192.0.2.1:32853"), other: None, origin: None };
        assert_eq!(Message::parse(&v4), Ok(Message::Success(expected)));
        let mut forged = v4.clone();
        forged[47] ^= 1;
        assert_eq!(Message::parse(&forged), Err(StunError::Malformed), "the FINGERPRINT is wrong");
        for length in 0..v4.len() {
            assert!(Message::parse(&v4[..length]).is_err(), "{length}");
        }
        assert!(Message::parse(&[&v4[..], &[0; 4]].concat()).is_err(), "something follows");
    }

    #[test]
    fn what_is_written_is_read_again() {
        for to in ["192.0.2.1:8100", "[2001:db8::1]:8100"].map(address) {
            for change in [Change::default(), Change::PORT, Change::BOTH] {
                let request = Request::new(ID, change);
                assert_eq!(Message::parse(&request.to_bytes(to, false)), Ok(Message::Request(request)));
                let padded = request.to_bytes(to, true);
                let expected = if to.is_ipv4() { STUN_REQUEST_BYTES_V4 } else { STUN_REQUEST_BYTES_V6 };
                assert_eq!(padded.len(), expected);
                assert_eq!(Message::parse(&padded), Ok(Message::Request(request)));
                let (mapped, mut other) = (to, to);
                other.set_port(9);
                let success = Success { id: ID, mapped, other: Some(other), origin: Some(to) };
                let bytes = success.to_bytes(padded.len()).unwrap();
                assert_eq!(bytes.len(), padded.len());
                assert_eq!(Message::parse(&bytes), Ok(Message::Success(success)));
            }
        }
        let failure = Failure { id: ID, code: 420 };
        assert_eq!(Message::parse(&failure.to_bytes(64).unwrap()), Ok(Message::Failure(failure)));
    }

    #[test]
    fn no_answer_is_longer_than_it_may_be() {
        for mapped in ["192.0.2.1:8100", "[2001:db8::1]:8100"].map(address) {
            let success = Success { id: ID, mapped, other: Some(mapped), origin: Some(mapped) };
            for room in 0..200 {
                assert!(success.to_bytes(room).is_none_or(|bytes| bytes.len() <= room), "{room}");
                let failure = Failure { id: ID, code: 420 };
                assert!(failure.to_bytes(room).is_none_or(|bytes| bytes.len() <= room), "{room}");
            }
        }
    }
}
