//! How two nodes have a third one relay lanes of theirs: the messages on the libp2p stream [`RELAY_PROTOCOL`].
//!
//! One stream carries one question and its answer. Each message is preceded by its length (16 bits):
//!
//! ```text
//! allocate  version 1 | kind 1 | other end | lanes (64)       an end to the relay; answered by allotted or refused
//! allotted  version 1 | kind 2 | allotment
//! invite    version 1 | kind 3 | other end | allotment        the relay to the other end; answered by accept or refused
//! accept    version 1 | kind 4 | lanes (64)
//! renew     version 1 | kind 5 | id (64)                      either end to the relay; answered by renewed or refused
//! renewed   version 1 | kind 6 | lifetime (32)
//! release   version 1 | kind 7 | id (64)                      either end to the relay; not answered
//! refused   version 1 | kind 8 | reason (8)
//! ask load  version 1 | kind 9                                an end to a relay; answered by load or refused
//! load      version 1 | kind 10 | by lanes (8) | by circuits (8)
//!
//! other end  length (8) | peer id
//! allotment  id (64) | lifetime, seconds (32) | rate, bytes per second (64)
//!            | number of addresses (8) | addresses | number of lanes (8) | lanes, by rising index
//! address    worker (8) | IPv6 or IPv4-mapped address (128) | port (16)
//! lane       index (8) | worker (8) | token (128)
//! extension  type (8) | length (16) | value
//! ```
//! All integers are big-endian. Extensions may follow any message and are skipped. The stream is authenticated and
//! confidential, which is why tokens may travel on it; the two ends get different ones.

use std::fmt;
use std::net::SocketAddr;

use thiserror::Error;
use zeroize::Zeroizing;

use super::bind::{BIND_TOKEN_BYTES, BindToken};
use super::candidate::{mapped, unmapped};
use super::lane_set::LaneSet;
use super::reader::{Reader, Truncated};
use crate::id::{LaneIndex, PeerId, WorkerId};
use crate::limits::{LANES_PER_LINK_MAX, PEER_ID_BYTES_MAX, RELAY_ADDRESSES_MAX, RELAY_MESSAGE_BYTES_MAX, WORKERS_MAX};
use crate::path::relay::{Load, RelayLoad};

/// Name of the libp2p protocol; the number rises with [`RELAY_VERSION`].
pub const RELAY_PROTOCOL: &str = "/ringlane/relay/1";

/// The first byte of every message.
pub const RELAY_VERSION: u8 = 1;

/// Bytes of the length that precedes each message on the stream.
pub const LENGTH_BYTES: usize = 2;

const ADDRESS_BYTES: usize = 1 + 16 + 2;
const LANE_BYTES: usize = 1 + 1 + BIND_TOKEN_BYTES;
const _: () = assert!(
    2 + 1
        + PEER_ID_BYTES_MAX
        + 8
        + 4
        + 8
        + 1
        + RELAY_ADDRESSES_MAX * ADDRESS_BYTES
        + 1
        + LANES_PER_LINK_MAX * LANE_BYTES
        <= RELAY_MESSAGE_BYTES_MAX
);
const _: () = assert!(RELAY_ADDRESSES_MAX <= u8::MAX as usize && RELAY_MESSAGE_BYTES_MAX <= u16::MAX as usize);

/// Why bytes are no message. The sender is at fault, unless we were about to send it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum RelayError {
    /// Longer than [`RELAY_MESSAGE_BYTES_MAX`].
    #[error("message of {0} bytes, at most {RELAY_MESSAGE_BYTES_MAX} are allowed")]
    TooLong(usize),
    /// It ends before it is complete.
    #[error("message ends early")]
    Truncated,
    /// A version we do not speak.
    #[error("version {0}, we speak {RELAY_VERSION}")]
    Version(u8),
    /// A kind we do not know.
    #[error("unexpected message kind {0}")]
    Kind(u8),
    /// The other end is no peer id.
    #[error("the other end is no peer id")]
    PeerId,
    /// None of something, more of it than allowed, or not in order.
    #[error("{0} are none, too many or not in order")]
    Count(&'static str),
    /// A lane beyond the last, or a worker.
    #[error("number {0} of a lane or worker is beyond the last")]
    Number(u8),
    /// Port 0.
    #[error("an address has no port")]
    Port,
    /// A lane of a worker that has no address.
    #[error("lane {0} is received at no address")]
    Unreachable(u8),
    /// It would end at once.
    #[error("the lifetime is 0")]
    Lifetime,
}

impl From<Truncated> for RelayError {
    fn from(Truncated: Truncated) -> Self {
        Self::Truncated
    }
}

/// Names an allotment among all that the relay ever made.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AllotmentId(pub u64);

/// What a relay gives to one end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Allotment {
    /// The same for both ends; random.
    pub id: AllotmentId,
    /// For how many seconds, unless renewed.
    pub lifetime_s: u32,
    /// What each lane may carry, both directions together, in bytes per second; 0 if the relay does not say.
    pub rate: u64,
    /// Where the relay's workers are, best first; 1 to [`RELAY_ADDRESSES_MAX`].
    pub addresses: Vec<RelayAddress>,
    /// The lanes it relays, lowest first; at least one.
    pub lanes: Vec<RelayedLane>,
}

/// Where one of the relay's workers receives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RelayAddress {
    /// Which worker.
    pub worker: WorkerId,
    /// Its address and port.
    pub address: SocketAddr,
}

/// A lane that is relayed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RelayedLane {
    /// Which lane of the link between the two ends.
    pub lane: LaneIndex,
    /// Which of the relay's workers forwards it.
    pub worker: WorkerId,
    /// What the receiver of this message shows itself with.
    pub token: BindToken,
}

impl Allotment {
    /// Where the relay receives this lane, best first.
    pub fn addresses_of(&self, lane: &RelayedLane) -> impl Iterator<Item = SocketAddr> {
        let worker = lane.worker;
        self.addresses.iter().filter(move |address| address.worker == worker).map(|address| address.address)
    }

    /// The lanes it is about.
    pub fn lane_set(&self) -> LaneSet {
        self.lanes.iter().map(|lane| lane.lane).collect()
    }

    fn check(&self) -> Result<(), RelayError> {
        if self.lifetime_s == 0 {
            return Err(RelayError::Lifetime);
        }
        if !(1..=RELAY_ADDRESSES_MAX).contains(&self.addresses.len()) {
            return Err(RelayError::Count("addresses"));
        }
        let is_rising = self.lanes.is_sorted_by(|a, b| a.lane < b.lane);
        if self.lanes.is_empty() || !is_rising {
            return Err(RelayError::Count("lanes"));
        }
        if self.addresses.iter().any(|address| address.address.port() == 0) {
            return Err(RelayError::Port);
        }
        let workers = self.addresses.iter().map(|address| address.worker);
        let workers = workers.chain(self.lanes.iter().map(|lane| lane.worker));
        if let Some(worker) = workers.into_iter().find(|worker| worker.position() >= WORKERS_MAX) {
            return Err(RelayError::Number(worker.0));
        }
        let unreachable = self.lanes.iter().find(|lane| self.addresses_of(lane).next().is_none());
        unreachable.map_or(Ok(()), |lane| Err(RelayError::Unreachable(lane.lane.get())))
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, RelayError> {
        let id = AllotmentId(u64::from_be_bytes(*reader.take()?));
        let lifetime_s = u32::from_be_bytes(*reader.take()?);
        let rate = u64::from_be_bytes(*reader.take()?);
        let [count] = *reader.take()?;
        if usize::from(count) > RELAY_ADDRESSES_MAX {
            return Err(RelayError::Count("addresses"));
        }
        let addresses = (0..count).map(|_| {
            let [worker] = *reader.take()?;
            let (ip, port) = (unmapped(*reader.take()?), u16::from_be_bytes(*reader.take()?));
            Ok(RelayAddress { worker: WorkerId(worker), address: SocketAddr::new(ip, port) })
        });
        let addresses = addresses.collect::<Result<_, RelayError>>()?;
        let [count] = *reader.take()?;
        if usize::from(count) > LANES_PER_LINK_MAX {
            return Err(RelayError::Count("lanes"));
        }
        let lanes = (0..count).map(|_| {
            let [lane, worker] = *reader.take()?;
            let lane = LaneIndex::new(lane).ok_or(RelayError::Number(lane))?;
            Ok(RelayedLane { lane, worker: WorkerId(worker), token: BindToken::new(*reader.take()?) })
        });
        let lanes = lanes.collect::<Result<_, RelayError>>()?;
        let allotment = Self { id, lifetime_s, rate, addresses, lanes };
        allotment.check().map(|()| allotment)
    }

    fn write(&self, bytes: &mut Vec<u8>) -> Result<(), RelayError> {
        self.check()?;
        bytes.extend(self.id.0.to_be_bytes());
        bytes.extend(self.lifetime_s.to_be_bytes());
        bytes.extend(self.rate.to_be_bytes());
        bytes.push(self.addresses.len() as u8);
        for RelayAddress { worker, address } in &self.addresses {
            bytes.push(worker.0);
            bytes.extend(mapped(address.ip()).octets());
            bytes.extend(address.port().to_be_bytes());
        }
        bytes.push(self.lanes.len() as u8);
        for RelayedLane { lane, worker, token } in &self.lanes {
            bytes.extend([lane.get(), worker.0]);
            bytes.extend(token.as_bytes());
        }
        Ok(())
    }
}

/// Why a node relays nothing, or an end wants nothing relayed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RelayRefusal {
    /// Try again later: too much is relayed already.
    Busy,
    /// One of the ends is not in the configuration of the one who refuses.
    NotConfigured,
    /// The message's version or something it needs is unknown.
    Unsupported,
    /// The node does not relay.
    NotServing,
    /// The relay cannot reach the other end.
    OtherEnd,
    /// There is no such allotment, or no more.
    Unknown,
    /// A reason of a later version: treat it like [`Self::Busy`].
    Other(u8),
}

impl RelayRefusal {
    const KNOWN: [Self; 6] =
        [Self::Busy, Self::NotConfigured, Self::Unsupported, Self::NotServing, Self::OtherEnd, Self::Unknown];

    fn from_code(code: u8) -> Self {
        Self::KNOWN.into_iter().find(|reason| reason.code() == code).unwrap_or(Self::Other(code))
    }

    fn code(self) -> u8 {
        match self {
            Self::Busy => 1,
            Self::NotConfigured => 2,
            Self::Unsupported => 3,
            Self::NotServing => 4,
            Self::OtherEnd => 5,
            Self::Unknown => 6,
            Self::Other(code) => code,
        }
    }
}

impl fmt::Display for RelayRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy => f.write_str("busy"),
            Self::NotConfigured => f.write_str("an end is not in its configuration"),
            Self::Unsupported => f.write_str("it does not support our version"),
            Self::NotServing => f.write_str("it does not relay"),
            Self::OtherEnd => f.write_str("it cannot reach the other end"),
            Self::Unknown => f.write_str("it knows no such allotment"),
            Self::Other(code) => write!(f, "reason {code}"),
        }
    }
}

/// One message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RelayMessage {
    /// Relay these lanes of my link to `other`.
    Allocate {
        /// The other end.
        other: PeerId,
        /// At least one.
        lanes: LaneSet,
    },
    /// These are relayed: some of those that were asked for.
    Allotted(Allotment),
    /// `other` has asked for these.
    Invite {
        /// The end that has asked.
        other: PeerId,
        /// With the receiver's own tokens.
        allotment: Allotment,
    },
    /// These of them will be used; perhaps none.
    Accept(LaneSet),
    /// Go on.
    Renew(AllotmentId),
    /// It lasts for so many seconds from now.
    Renewed(u32),
    /// Enough.
    Release(AllotmentId),
    /// No.
    Refused(RelayRefusal),
    /// How much is there for you to do?
    AskLoad,
    /// So much, from 0 to 255.
    Load(RelayLoad),
}

impl RelayMessage {
    /// Reads a message, without its length.
    pub fn parse(message: &[u8]) -> Result<Self, RelayError> {
        if message.len() > RELAY_MESSAGE_BYTES_MAX {
            return Err(RelayError::TooLong(message.len()));
        }
        let mut reader = Reader(message);
        let [version] = *reader.take()?;
        if version != RELAY_VERSION {
            return Err(RelayError::Version(version));
        }
        let message = match *reader.take()? {
            [1] => {
                let (other, lanes) = (read_peer_id(&mut reader)?, LaneSet(u64::from_be_bytes(*reader.take()?)));
                if lanes.is_empty() {
                    return Err(RelayError::Count("lanes"));
                }
                Self::Allocate { other, lanes }
            }
            [2] => Self::Allotted(Allotment::read(&mut reader)?),
            [3] => Self::Invite { other: read_peer_id(&mut reader)?, allotment: Allotment::read(&mut reader)? },
            [4] => Self::Accept(LaneSet(u64::from_be_bytes(*reader.take()?))),
            [5] => Self::Renew(AllotmentId(u64::from_be_bytes(*reader.take()?))),
            [6] => match u32::from_be_bytes(*reader.take()?) {
                0 => return Err(RelayError::Lifetime),
                seconds => Self::Renewed(seconds),
            },
            [7] => Self::Release(AllotmentId(u64::from_be_bytes(*reader.take()?))),
            [8] => Self::Refused(RelayRefusal::from_code(reader.take::<1>()?[0])),
            [9] => Self::AskLoad,
            [10] => {
                let [lanes, circuits] = *reader.take()?;
                Self::Load(RelayLoad { lanes: Load(lanes), circuits: Load(circuits) })
            }
            [kind] => return Err(RelayError::Kind(kind)),
        };
        while reader.extension()?.is_some() {}
        Ok(message)
    }

    /// The message's bytes, length included. Fails when a bound that the receiver would enforce does not hold.
    pub fn to_message(&self) -> Result<Zeroizing<Vec<u8>>, RelayError> {
        // Reserved whole, so that no reallocation leaves a copy of a token behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(LENGTH_BYTES + RELAY_MESSAGE_BYTES_MAX));
        bytes.extend([0, 0, RELAY_VERSION]);
        match self {
            Self::Allocate { lanes, .. } if lanes.is_empty() => return Err(RelayError::Count("lanes")),
            Self::Allocate { other, lanes } => {
                bytes.push(1);
                write_peer_id(other, &mut bytes)?;
                bytes.extend(lanes.0.to_be_bytes());
            }
            Self::Allotted(allotment) => {
                bytes.push(2);
                allotment.write(&mut bytes)?;
            }
            Self::Invite { other, allotment } => {
                bytes.push(3);
                write_peer_id(other, &mut bytes)?;
                allotment.write(&mut bytes)?;
            }
            Self::Accept(lanes) => {
                bytes.push(4);
                bytes.extend(lanes.0.to_be_bytes());
            }
            Self::Renew(id) => {
                bytes.push(5);
                bytes.extend(id.0.to_be_bytes());
            }
            Self::Renewed(0) => return Err(RelayError::Lifetime),
            Self::Renewed(seconds) => {
                bytes.push(6);
                bytes.extend(seconds.to_be_bytes());
            }
            Self::Release(id) => {
                bytes.push(7);
                bytes.extend(id.0.to_be_bytes());
            }
            Self::Refused(reason) => bytes.extend([8, reason.code()]),
            Self::AskLoad => bytes.push(9),
            Self::Load(RelayLoad { lanes, circuits }) => bytes.extend([10, lanes.0, circuits.0]),
        }
        let length = (bytes.len() - LENGTH_BYTES) as u16;
        bytes[..LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
        Ok(bytes)
    }
}

/// The length of the message that follows on the stream, if we are willing to read that much.
pub fn message_bytes(length: [u8; LENGTH_BYTES]) -> Result<usize, RelayError> {
    let length = usize::from(u16::from_be_bytes(length));
    if length > RELAY_MESSAGE_BYTES_MAX { Err(RelayError::TooLong(length)) } else { Ok(length) }
}

fn write_peer_id(peer: &PeerId, bytes: &mut Vec<u8>) -> Result<(), RelayError> {
    let peer = peer.to_bytes();
    let length = u8::try_from(peer.len()).ok().filter(|length| usize::from(*length) <= PEER_ID_BYTES_MAX);
    bytes.push(length.ok_or(RelayError::PeerId)?);
    bytes.extend(peer);
    Ok(())
}

fn read_peer_id(reader: &mut Reader<'_>) -> Result<PeerId, RelayError> {
    let [length] = *reader.take()?;
    let length = usize::from(length);
    if length > PEER_ID_BYTES_MAX {
        return Err(RelayError::PeerId);
    }
    PeerId::from_bytes(reader.take_bytes(length)?).map_err(|_| RelayError::PeerId)
}
