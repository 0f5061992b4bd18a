//! libp2p's circuit relay v2: what a relay reads and writes on the streams of `hop` and `stop`.
//!
//! Each message is a protobuf after its length, an unsigned varint:
//!
//! ```text
//! hop   1 type (0 reserve, 1 connect, 2 status) | 2 peer { 1 id, 2 address * } | 3 reservation { 1 expires, unix s,
//!       2 address * } | 5 status
//! stop  1 type (0 connect, 1 status) | 2 peer { 1 id } | 4 status
//! ```
//! A message about limits (hop 4, stop 3) is never written: Hyprspace's nodes take a connection with limits for none at
//! all, whatever the limits. Data follows the last message on the same stream, so nothing is read beyond a message.

use multiaddr::Multiaddr;
use thiserror::Error;

use crate::id::PeerId;
use crate::limits::{CIRCUIT_ADDRESSES_MAX, CIRCUIT_MESSAGE_BYTES_MAX, PEER_ID_BYTES_MAX};

/// The protocol that a relay's clients open.
pub const HOP: &str = "/libp2p/circuit/relay/0.2.0/hop";
/// The protocol that a relay opens to whom a client wants to reach.
pub const STOP: &str = "/libp2p/circuit/relay/0.2.0/stop";

/// Bytes of a length: two carry up to 16,383.
const LENGTH_BYTES_MAX: usize = 2;

/// How a relay answers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Status {
    /// Done.
    Ok,
    /// No reservations are given.
    ReservationRefused,
    /// There are as many as there may be.
    ResourceLimit,
    /// Not for this peer.
    PermissionDenied,
    /// The peer asked for did not take the circuit.
    ConnectionFailed,
    /// The peer asked for has no reservation.
    NoReservation,
    /// The message could not be read.
    Malformed,
    /// It is not a message for this place.
    Unexpected,
}

impl Status {
    /// Its number on the wire.
    pub fn code(self) -> u64 {
        match self {
            Self::Ok => 100,
            Self::ReservationRefused => 200,
            Self::ResourceLimit => 201,
            Self::PermissionDenied => 202,
            Self::ConnectionFailed => 203,
            Self::NoReservation => 204,
            Self::Malformed => 400,
            Self::Unexpected => 401,
        }
    }
}

/// What a client asks of a relay.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HopRequest {
    /// To be reachable through it.
    Reserve,
    /// To be joined with this peer.
    Connect(PeerId),
}

/// A message makes no sense: the peer is at fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum CircuitError {
    /// It is longer than any message may be.
    #[error("it has more than {CIRCUIT_MESSAGE_BYTES_MAX} bytes")]
    TooLong,
    /// It is no protobuf, or a field is not what it must be.
    #[error("it is malformed")]
    Malformed,
    /// It is a message, but not one for this place.
    #[error("it is of an unexpected kind")]
    Unexpected,
}

impl CircuitError {
    /// How to answer it.
    pub fn status(self) -> Status {
        match self {
            Self::TooLong | Self::Malformed => Status::Malformed,
            Self::Unexpected => Status::Unexpected,
        }
    }
}

/// Reads the length before a message, of which `prefix` are the bytes so far; `None` if more of them follow.
pub fn message_length(prefix: &[u8]) -> Result<Option<usize>, CircuitError> {
    let mut length = 0;
    for (position, byte) in prefix.iter().enumerate() {
        if position >= LENGTH_BYTES_MAX {
            return Err(CircuitError::TooLong);
        }
        length |= usize::from(byte & 0x7f) << (7 * position);
        if byte & 0x80 == 0 {
            return if length <= CIRCUIT_MESSAGE_BYTES_MAX { Ok(Some(length)) } else { Err(CircuitError::TooLong) };
        }
    }
    if prefix.len() >= LENGTH_BYTES_MAX { Err(CircuitError::TooLong) } else { Ok(None) }
}

/// Reads what a client asks on `hop`, without the length.
pub fn parse_request(message: &[u8]) -> Result<HopRequest, CircuitError> {
    let Some(Message { kind, peer, .. }) = Message::parse(message, HOP_STATUS) else {
        return Err(CircuitError::Malformed);
    };
    match (kind, peer) {
        (0, _) => Ok(HopRequest::Reserve),
        (1, Some(peer)) => Ok(HopRequest::Connect(peer)),
        (1, None) => Err(CircuitError::Malformed),
        _ => Err(CircuitError::Unexpected),
    }
}

/// Reads what a peer answers on `stop`, without the length: whether it takes the circuit.
pub fn parse_stop_answer(message: &[u8]) -> Result<bool, CircuitError> {
    match Message::parse(message, STOP_STATUS) {
        None => Err(CircuitError::Malformed),
        Some(Message { kind: 1, status, .. }) => Ok(status == Some(Status::Ok.code())),
        Some(_) => Err(CircuitError::Unexpected),
    }
}

/// `hop`: an answer that says nothing but how it went; with its length.
pub fn hop_status(status: Status) -> Vec<u8> {
    let mut body = Vec::new();
    put_number(&mut body, 1, 2);
    put_number(&mut body, HOP_STATUS, status.code());
    with_length(body)
}

/// `hop`: a reservation, good until `expires` (unix seconds), of a relay that is found at `addresses`, of which at most
/// [`CIRCUIT_ADDRESSES_MAX`] are told; with its length.
pub fn hop_reserved<'a>(expires: u64, addresses: impl IntoIterator<Item = &'a Multiaddr>) -> Vec<u8> {
    let mut reservation = Vec::new();
    put_number(&mut reservation, 1, expires);
    for address in addresses.into_iter().take(CIRCUIT_ADDRESSES_MAX) {
        let bytes: &[u8] = address.as_ref();
        if reservation.len() + bytes.len() + 32 <= CIRCUIT_MESSAGE_BYTES_MAX {
            put_bytes(&mut reservation, 2, bytes);
        }
    }
    let mut body = Vec::new();
    put_number(&mut body, 1, 2);
    put_bytes(&mut body, 3, &reservation);
    put_number(&mut body, HOP_STATUS, Status::Ok.code());
    with_length(body)
}

/// `stop`: `source` wants to reach you; with its length.
pub fn stop_connect(source: &PeerId) -> Vec<u8> {
    let mut peer = Vec::new();
    put_bytes(&mut peer, 1, &source.to_bytes());
    let mut body = Vec::new();
    put_number(&mut body, 1, 0);
    put_bytes(&mut body, 2, &peer);
    with_length(body)
}

const HOP_STATUS: u64 = 5;
const STOP_STATUS: u64 = 4;

/// What there is to know of a message of either protocol.
struct Message {
    kind: u64,
    peer: Option<PeerId>,
    status: Option<u64>,
}

impl Message {
    /// Of a field that is there twice the last counts, and unknown ones are passed over, as protobuf has it.
    fn parse(message: &[u8], status_field: u64) -> Option<Self> {
        let mut parsed = Self { kind: 0, peer: None, status: None };
        if message.len() > CIRCUIT_MESSAGE_BYTES_MAX {
            return None;
        }
        let mut fields = Fields(message);
        while let Some(field) = fields.next()? {
            match field {
                (1, Value::Number(kind)) => parsed.kind = kind,
                (2, Value::Bytes(peer)) => parsed.peer = Some(peer_id(peer)?),
                (number, Value::Number(status)) if number == status_field => parsed.status = Some(status),
                (1 | 2, _) => return None,
                _ => {}
            }
        }
        Some(parsed)
    }
}

fn peer_id(peer: &[u8]) -> Option<PeerId> {
    let mut id = None;
    let mut fields = Fields(peer);
    while let Some(field) = fields.next()? {
        match field {
            (1, Value::Bytes(bytes)) if bytes.len() <= PEER_ID_BYTES_MAX => id = Some(PeerId::from_bytes(bytes).ok()?),
            (1, _) => return None,
            _ => {}
        }
    }
    id
}

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Fixed,
}

/// The fields of a protobuf, one after the other.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// `None` if it is malformed, `Some(None)` at its end.
    fn next(&mut self) -> Option<Option<(u64, Value<'a>)>> {
        if self.0.is_empty() {
            return Some(None);
        }
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Number(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Value::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            _ => return None,
        };
        Some(Some((tag >> 3, value)))
    }

    fn varint(&mut self) -> Option<u64> {
        let mut number = 0;
        for position in 0..10 {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            let bits = u64::from(byte & 0x7f);
            if position == 9 && bits > 1 {
                return None;
            }
            number |= bits << (7 * position);
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }
}

fn put_varint(to: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        to.push(number as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

fn put_number(to: &mut Vec<u8>, field: u64, number: u64) {
    put_varint(to, field << 3);
    put_varint(to, number);
}

fn put_bytes(to: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_varint(to, field << 3 | 2);
    put_varint(to, bytes.len() as u64);
    to.extend_from_slice(bytes);
}

fn with_length(body: Vec<u8>) -> Vec<u8> {
    let mut message = Vec::with_capacity(body.len() + LENGTH_BYTES_MAX);
    put_varint(&mut message, body.len() as u64);
    message.extend(body);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: &str = "12D3KooWP6VEGDDp6eiCSubLai8A9hoAWuFN9A2A5BysyaSbXtRN";

    fn peer() -> PeerId {
        PEER.parse().unwrap()
    }

    /// The message without its length, which is true.
    fn body(message: &[u8]) -> &[u8] {
        let prefix = (1..=2).find(|bytes| message_length(&message[..*bytes]).unwrap().is_some()).unwrap();
        assert_eq!(message_length(&message[..prefix]).unwrap(), Some(message.len() - prefix));
        &message[prefix..]
    }

    #[test]
    fn what_clients_ask_is_read_and_what_is_no_request_is_told_apart() {
        assert_eq!(parse_request(&[0x08, 0x00]), Ok(HopRequest::Reserve));
        assert_eq!(parse_request(&[]), Ok(HopRequest::Reserve), "protobuf leaves out what is 0");
        let connect = stop_connect(&peer());
        let mut connect = body(&connect).to_vec();
        connect[1] = 1;
        assert_eq!(parse_request(&connect), Ok(HopRequest::Connect(peer())));
        assert_eq!(parse_request(&[0x08, 0x01]), Err(CircuitError::Malformed), "whom?");
        assert_eq!(parse_request(&[0x08, 0x02]), Err(CircuitError::Unexpected));
        for malformed in [&[0x08][..], &[0x0a, 0x01, 0x00], &[0x12, 0x05, 0x0a], &[0x0f], &[0xff; 12]] {
            assert_eq!(parse_request(malformed), Err(CircuitError::Malformed), "{malformed:?}");
        }
        // Fields that we do not know, of every kind.
        let unknown = [0x48, 0x01, 0x49, 1, 2, 3, 4, 5, 6, 7, 8, 0x4d, 1, 2, 3, 4, 0x4a, 1, 9, 0x08, 0x00];
        assert_eq!(parse_request(&unknown), Ok(HopRequest::Reserve));
        assert_eq!(parse_request(&vec![0x48; CIRCUIT_MESSAGE_BYTES_MAX + 2]), Err(CircuitError::Malformed));
    }

    #[test]
    fn answers_are_as_the_specification_has_them_and_carry_no_limit() {
        assert_eq!(hop_status(Status::Ok), [4, 0x08, 2, 0x28, 100]);
        assert_eq!(hop_status(Status::NoReservation), [5, 0x08, 2, 0x28, 0xcc, 0x01]);
        let address: Multiaddr = "/ip4/192.0.2.1/tcp/1".parse().unwrap();
        let reserved = hop_reserved(300, [&address]);
        let expected = [0x08, 2, 0x1a, 13, 0x08, 0xac, 0x02, 0x12, 8, 4, 192, 0, 2, 1, 6, 0, 1, 0x28, 100];
        assert_eq!(body(&reserved), expected);
        let long: Multiaddr = format!("/dns4/{}/tcp/1", "x".repeat(250)).parse().unwrap();
        let many = hop_reserved(u64::MAX, std::iter::repeat_n(&long, 100));
        assert!(body(&many).len() <= CIRCUIT_MESSAGE_BYTES_MAX);
    }

    #[test]
    fn a_peer_takes_a_circuit_or_does_not() {
        assert_eq!(parse_stop_answer(&[0x08, 1, 0x20, 100]), Ok(true));
        assert_eq!(parse_stop_answer(&[0x08, 1, 0x20, 0xca, 0x01]), Ok(false));
        assert_eq!(parse_stop_answer(&[0x08, 1]), Ok(false));
        assert_eq!(parse_stop_answer(&[0x08, 0]), Err(CircuitError::Unexpected));
        assert_eq!(parse_stop_answer(&[0x20]), Err(CircuitError::Malformed));
        assert_eq!(CircuitError::Unexpected.status().code(), 401);
        assert_eq!(CircuitError::TooLong.status().code(), 400);
    }

    #[test]
    fn a_length_has_at_most_two_bytes_and_is_bounded() {
        assert_eq!(message_length(&[]), Ok(None));
        assert_eq!(message_length(&[0x80]), Ok(None));
        assert_eq!(message_length(&[0x80, 0x20]), Ok(Some(4096)));
        assert_eq!(message_length(&[0x81, 0x20]), Err(CircuitError::TooLong));
        assert_eq!(message_length(&[0x80, 0x80]), Err(CircuitError::TooLong));
        assert_eq!(message_length(&[5]), Ok(Some(5)));
    }
}
