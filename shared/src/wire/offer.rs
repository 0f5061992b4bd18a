//! What the two ends of a link exchange on the libp2p stream [`LINK_PROTOCOL`].
//!
//! The node with the lower peer id opens the stream and writes its offer; the other answers with its own offer or
//! with a refusal, and the stream ends. Each message is preceded by its length (16 bits):
//!
//! ```text
//! offer    version 1 | kind 1 | instance (128) | secret (256) | features (32) | workers (8) | port (16)
//!          | lane id base (24) | lanes (64) | number of candidates (8) | candidates | extensions
//! refusal  version 1 | kind 2 | reason (8) | extensions
//!
//! candidate  kind (8) | IPv6 or IPv4-mapped address (128) | port (16)
//! extension  type (8) | length (16) | value
//! ```
//! All integers are big-endian. Extensions are how versions add what others may ignore: [`extensions`] knows two types,
//! all others are skipped. The stream is authenticated and confidential, which is why the secrets may travel on it.

use std::fmt;
use std::net::SocketAddr;

use thiserror::Error;
use zeroize::Zeroizing;

use super::candidate::mapped;
pub use super::candidate::{Candidate, CandidateKind};
pub use super::extensions::{self, Extensions, Punch};
pub use super::lane_set::LaneSet;
use super::reader::{Reader, Truncated};
pub use super::secrets::{LinkSecrets, OfferSecret};
use crate::id::{LaneId, LaneIndex};
use crate::lane::keys::{CipherChoice, Suite};
use crate::limits::{CANDIDATES_MAX, LANE_ID_MAX, LANES_PER_LINK_MAX, OFFER_BYTES_MAX, WORKERS_MAX};

/// Name of the libp2p protocol; the number rises with [`OFFER_VERSION`].
pub const LINK_PROTOCOL: &str = "/ringlane/link/1";

/// The first byte of every message.
pub const OFFER_VERSION: u8 = 1;

/// Bytes of the length that precedes each message on the stream.
pub const LENGTH_PREFIX_BYTES: usize = 2;

const KIND_OFFER: u8 = 1;
const KIND_REFUSAL: u8 = 2;

const FIXED_BYTES: usize = 2 + 16 + 32 + 4 + 1 + 2 + 3 + 8 + 1;
const CANDIDATE_BYTES: usize = 1 + 16 + 2;
const _: () =
    assert!(FIXED_BYTES + CANDIDATES_MAX * CANDIDATE_BYTES + extensions::EXTENSIONS_BYTES_MAX <= OFFER_BYTES_MAX);
const _: () = assert!(CANDIDATES_MAX <= u8::MAX as usize);

/// Why a message is no offer or answer. The sender is at fault, unless we were about to send it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum OfferError {
    /// Longer than [`OFFER_BYTES_MAX`].
    #[error("message of {0} bytes, at most {OFFER_BYTES_MAX} are allowed")]
    TooLong(usize),
    /// It ends before it is complete.
    #[error("message ends early")]
    Truncated,
    /// A version we do not speak.
    #[error("version {0}, we speak {OFFER_VERSION}")]
    Version(u8),
    /// Neither offer nor refusal, or a refusal where only an offer makes sense.
    #[error("unexpected message kind {0}")]
    Kind(u8),
    /// No worker, or more than [`WORKERS_MAX`].
    #[error("{0} workers, 1 to {WORKERS_MAX} are allowed")]
    Workers(u8),
    /// Port 0, or the last worker's port would be beyond 65535.
    #[error("port {port} leaves no room for {workers} workers")]
    Port {
        /// The first worker's port.
        port: u16,
        /// How many workers there are.
        workers: u8,
    },
    /// The ids of the last lanes would not fit 24 bits.
    #[error("lane ids from {0:#08x} on do not fit")]
    LaneIdBase(u32),
    /// More than [`CANDIDATES_MAX`] candidates.
    #[error("{0} candidates, at most {CANDIDATES_MAX} are allowed")]
    Candidates(usize),
    /// A candidate of unknown kind.
    #[error("candidate of unknown kind {0}")]
    CandidateKind(u8),
    /// More than [`LANE_CANDIDATES_MAX`](crate::limits::LANE_CANDIDATES_MAX) candidates of single lanes.
    #[error("{0} candidates of single lanes, too many")]
    LaneCandidates(usize),
    /// A candidate of a worker that there is not, or with port 0.
    #[error("a candidate of worker {worker} with port {port}")]
    LaneCandidate {
        /// Whose it is meant to be.
        worker: u8,
        /// Its port.
        port: u16,
    },
}

impl From<Truncated> for OfferError {
    fn from(Truncated: Truncated) -> Self {
        Self::Truncated
    }
}

/// One side's part of a link: who it is this time, where its workers listen and what it calls its lanes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Offer {
    /// Random per process start: another value than last time says that the sender has restarted.
    pub instance: [u8; 16],
    /// Random per offer; see [`LinkSecrets`].
    pub secret: OfferSecret,
    /// What the sender can do.
    pub features: Features,
    /// How many workers the sender runs: 1 to [`WORKERS_MAX`].
    pub workers: u8,
    /// Worker i receives on UDP port `port + i`, at any address of the sender's that no candidate mentions.
    pub port: u16,
    /// Records to the sender carry `lane_id_base + k` on lane k.
    pub lane_id_base: LaneId,
    /// The lanes to set up now; in an answer, those of the asked ones that the sender agrees to, perhaps none.
    pub lanes: LaneSet,
    /// Where the sender may be reached, best first; at most [`CANDIDATES_MAX`].
    pub candidates: Vec<Candidate>,
    /// What nodes may ignore that do not know it.
    pub extensions: Extensions,
}

impl Offer {
    /// Reads a message (without its length) that must be an offer.
    pub fn parse(message: &[u8]) -> Result<Self, OfferError> {
        match Answer::parse(message)? {
            Answer::Offer(offer) => Ok(*offer),
            Answer::Refused(_) => Err(OfferError::Kind(KIND_REFUSAL)),
        }
    }

    /// The message's bytes, length prefix included. Fails when a bound that the peer would enforce does not hold.
    pub fn to_message(&self) -> Result<Zeroizing<Vec<u8>>, OfferError> {
        self.check()?;
        let length = FIXED_BYTES + self.candidates.len() * CANDIDATE_BYTES + self.extensions.bytes();
        // Reserved whole, so that no reallocation leaves a copy of the secret behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(LENGTH_PREFIX_BYTES + length));
        bytes.extend((length as u16).to_be_bytes());
        bytes.extend([OFFER_VERSION, KIND_OFFER]);
        bytes.extend(self.instance);
        bytes.extend(self.secret.0.as_slice());
        bytes.extend(self.features.0.to_be_bytes());
        bytes.push(self.workers);
        bytes.extend(self.port.to_be_bytes());
        bytes.extend(self.lane_id_base.to_be_bytes());
        bytes.extend(self.lanes.0.to_be_bytes());
        bytes.push(self.candidates.len() as u8);
        for candidate in &self.candidates {
            bytes.push(candidate.kind as u8);
            bytes.extend(mapped(candidate.ip).octets());
            bytes.extend(candidate.port.to_be_bytes());
        }
        self.extensions.write(&mut bytes);
        Ok(bytes)
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, OfferError> {
        let instance = *reader.take()?;
        let secret = OfferSecret::new(*reader.take()?);
        let features = Features(u32::from_be_bytes(*reader.take()?));
        let [workers] = *reader.take()?;
        let port = u16::from_be_bytes(*reader.take()?);
        let lane_id_base = LaneId::from_be_bytes(*reader.take()?);
        let lanes = LaneSet(u64::from_be_bytes(*reader.take()?));
        let count = usize::from(reader.take::<1>()?[0]);
        if count > CANDIDATES_MAX {
            return Err(OfferError::Candidates(count));
        }
        let candidates = (0..count).map(|_| Candidate::read(reader)).collect::<Result<_, _>>()?;
        let (mut extensions, mut seen) = (Extensions::default(), [false; 2]);
        while let Some((kind, value)) = reader.extension()? {
            extensions.read(kind, value, &mut seen)?;
        }
        let offer = Self { instance, secret, features, workers, port, lane_id_base, lanes, candidates, extensions };
        offer.check()?;
        Ok(offer)
    }

    fn check(&self) -> Result<(), OfferError> {
        let workers = self.workers;
        if workers == 0 || usize::from(workers) > WORKERS_MAX {
            return Err(OfferError::Workers(workers));
        }
        if self.lane_id_base.get() + (LANES_PER_LINK_MAX as u32 - 1) > LANE_ID_MAX {
            return Err(OfferError::LaneIdBase(self.lane_id_base.get()));
        }
        if self.candidates.len() > CANDIDATES_MAX {
            return Err(OfferError::Candidates(self.candidates.len()));
        }
        self.extensions.check(workers)?;
        let mut ports = self.candidates.iter().map(|candidate| candidate.port).chain([self.port]);
        match ports.find(|port| *port == 0 || port.checked_add(u16::from(workers) - 1).is_none()) {
            Some(port) => Err(OfferError::Port { port, workers }),
            None => Ok(()),
        }
    }

    /// What records to the sender carry on this lane.
    pub fn lane_id(&self, lane: LaneIndex) -> LaneId {
        let [_, a, b, c] = (self.lane_id_base.get() + u32::from(lane.get())).to_be_bytes();
        LaneId::from_be_bytes([a, b, c])
    }

    /// Where this lane's worker can be reached: what was said of it alone, then what was said of all, each best first.
    pub fn lane_candidates(&self, lane: LaneIndex) -> impl Iterator<Item = (CandidateKind, SocketAddr)> {
        let worker = lane.owner(self.workers);
        let own = self.extensions.candidates.iter().filter(move |candidate| candidate.worker == worker.0);
        let of_all = self.candidates.iter().map(move |candidate| {
            (candidate.kind, SocketAddr::new(candidate.ip, worker_port(candidate.port, lane, self.workers)))
        });
        own.map(|candidate| (candidate.kind, candidate.address)).chain(of_all)
    }

    /// The AEAD that two offers agree on.
    pub fn suite(&self, other: &Self) -> Suite {
        let both = self.features.0 & other.features.0;
        if both & Features::AES_128_GCM.0 != 0 {
            Suite::Aes128Gcm
        } else if both & Features::AES_256_GCM.0 != 0 {
            Suite::Aes256Gcm
        } else {
            Suite::ChaCha20Poly1305
        }
    }
}

/// Cannot saturate for an offer that [`Offer::check`] let through.
fn worker_port(first: u16, lane: LaneIndex, workers: u8) -> u16 {
    first.saturating_add(u16::from(lane.owner(workers).0))
}

/// What the answering side says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Its own offer; its lanes are what it agrees to of what was asked.
    Offer(Box<Offer>),
    /// No link now.
    Refused(RefusalReason),
}

impl Answer {
    /// Reads a message, without its length.
    pub fn parse(message: &[u8]) -> Result<Self, OfferError> {
        if message.len() > OFFER_BYTES_MAX {
            return Err(OfferError::TooLong(message.len()));
        }
        let mut reader = Reader(message);
        let [version] = *reader.take()?;
        if version != OFFER_VERSION {
            return Err(OfferError::Version(version));
        }
        let answer = match *reader.take()? {
            [KIND_OFFER] => Self::Offer(Box::new(Offer::read(&mut reader)?)),
            [KIND_REFUSAL] => Self::Refused(RefusalReason::from_code(reader.take::<1>()?[0])),
            [kind] => return Err(OfferError::Kind(kind)),
        };
        while reader.extension()?.is_some() {}
        Ok(answer)
    }

    /// The message's bytes, length prefix included.
    pub fn to_message(&self) -> Result<Zeroizing<Vec<u8>>, OfferError> {
        match self {
            Self::Offer(offer) => offer.to_message(),
            Self::Refused(reason) => Ok(Zeroizing::new(vec![0, 3, OFFER_VERSION, KIND_REFUSAL, reason.code()])),
        }
    }
}

/// The length of the message that follows this prefix on the stream, if we are willing to read that much.
pub fn message_bytes(prefix: [u8; LENGTH_PREFIX_BYTES]) -> Result<usize, OfferError> {
    let length = usize::from(u16::from_be_bytes(prefix));
    if length > OFFER_BYTES_MAX { Err(OfferError::TooLong(length)) } else { Ok(length) }
}

/// Why a node wants no link now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RefusalReason {
    /// Try again later.
    Busy,
    /// The asking peer is not in the configuration.
    NotConfigured,
    /// The message's version or a feature it needs is unknown.
    Unsupported,
    /// The node is about to end.
    ShuttingDown,
    /// A reason of a later version: treat it like [`Self::Busy`].
    Other(u8),
}

impl RefusalReason {
    fn from_code(code: u8) -> Self {
        match code {
            1 => Self::Busy,
            2 => Self::NotConfigured,
            3 => Self::Unsupported,
            4 => Self::ShuttingDown,
            other => Self::Other(other),
        }
    }

    fn code(self) -> u8 {
        match self {
            Self::Busy => 1,
            Self::NotConfigured => 2,
            Self::Unsupported => 3,
            Self::ShuttingDown => 4,
            Self::Other(code) => code,
        }
    }
}

impl fmt::Display for RefusalReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy => f.write_str("busy"),
            Self::NotConfigured => f.write_str("we are not in its configuration"),
            Self::Unsupported => f.write_str("it does not support our version"),
            Self::ShuttingDown => f.write_str("shutting down"),
            Self::Other(code) => write!(f, "reason {code}"),
        }
    }
}

/// What a node can do, one bit each. Bits of later versions are kept and ignored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Features(pub u32);

impl Features {
    /// The node is willing to seal records with AES-128-GCM.
    pub const AES_128_GCM: Self = Self(1);
    /// The node is willing to seal records with AES-256-GCM.
    pub const AES_256_GCM: Self = Self(2);

    /// Of a node with this configuration and a CPU that has AES instructions or not: without them AES is slow, and slow to
    /// do safely, so such a node is willing to use neither. ChaCha20-Poly1305 every node is.
    pub fn of(choice: CipherChoice, has_aes: bool) -> Self {
        match choice {
            _ if !has_aes => Self(0),
            CipherChoice::Auto => Self(Self::AES_128_GCM.0 | Self::AES_256_GCM.0),
            CipherChoice::Aes128Gcm => Self::AES_128_GCM,
            CipherChoice::Aes256Gcm => Self::AES_256_GCM,
            CipherChoice::ChaCha20Poly1305 => Self(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::candidate::OwnCandidate;

    fn offer() -> Offer {
        Offer {
            instance: [1; 16],
            secret: OfferSecret::new([2; 32]),
            features: Features(Features::AES_128_GCM.0 | 1 << 31),
            workers: 2,
            port: 8100,
            lane_id_base: LaneId::new(0x00ab_cd00).unwrap(),
            lanes: LaneSet(0b101),
            candidates: vec![
                Candidate { kind: CandidateKind::Host, ip: "10.201.0.1".parse().unwrap(), port: 8100 },
                Candidate { kind: CandidateKind::ServerReflexive, ip: "2001:db8::1".parse().unwrap(), port: 40000 },
            ],
            extensions: Extensions::default(),
        }
    }

    fn message(offer: &Offer) -> Vec<u8> {
        let bytes = offer.to_message().unwrap();
        let (prefix, message) = bytes.split_first_chunk().unwrap();
        assert_eq!(message_bytes(*prefix), Ok(message.len()));
        message.to_vec()
    }

    #[test]
    fn offers_and_refusals_read_back_as_written() {
        assert_eq!(Offer::parse(&message(&offer())), Ok(offer()));
        for code in 0..=u8::MAX {
            let refused = Answer::Refused(RefusalReason::from_code(code));
            let bytes = refused.to_message().unwrap();
            assert_eq!(Answer::parse(&bytes[LENGTH_PREFIX_BYTES..]), Ok(refused));
            assert_eq!(Offer::parse(&bytes[LENGTH_PREFIX_BYTES..]), Err(OfferError::Kind(KIND_REFUSAL)));
        }
    }

    #[test]
    fn every_message_that_ends_early_is_refused() {
        let whole = message(&offer());
        for length in 0..whole.len() {
            assert_eq!(Offer::parse(&whole[..length]), Err(OfferError::Truncated), "{length}");
        }
    }

    #[test]
    fn extensions_are_skipped_but_must_be_whole() {
        let mut bytes = message(&offer());
        bytes.extend([77, 0, 2, 1, 2, 78, 0, 0]);
        assert_eq!(Offer::parse(&bytes), Ok(offer()));
        bytes.pop();
        assert_eq!(Offer::parse(&bytes), Err(OfferError::Truncated));
        bytes.push(0);
        // One that is known must make sense.
        bytes.extend([1, 0, 1, 0]);
        assert_eq!(Offer::parse(&bytes), Err(OfferError::Truncated));
    }

    #[test]
    fn what_breaks_a_bound_is_neither_sent_nor_accepted() {
        let (workers_at, port_at, base_at) = (54, 55, 57);
        let candidate_at = FIXED_BYTES;
        let cases: [(usize, &[u8], OfferError); 8] = [
            (0, &[2], OfferError::Version(2)),
            (1, &[3], OfferError::Kind(3)),
            (workers_at, &[0], OfferError::Workers(0)),
            (workers_at, &[65], OfferError::Workers(65)),
            (port_at, &[0, 0], OfferError::Port { port: 0, workers: 2 }),
            (base_at, &[0xff, 0xff, 0xc1], OfferError::LaneIdBase(0x00ff_ffc1)),
            (candidate_at, &[4], OfferError::CandidateKind(4)),
            (candidate_at + 17, &[0xff, 0xff], OfferError::Port { port: 65535, workers: 2 }),
        ];
        for (at, bytes, error) in cases {
            let mut broken = message(&offer());
            broken[at..at + bytes.len()].copy_from_slice(bytes);
            assert_eq!(Offer::parse(&broken), Err(error));
        }
        let mut crowded = offer();
        crowded.candidates = vec![crowded.candidates[0]; CANDIDATES_MAX + 1];
        assert_eq!(crowded.to_message(), Err(OfferError::Candidates(CANDIDATES_MAX + 1)));
        assert_eq!(Offer::parse(&[1; OFFER_BYTES_MAX + 1]), Err(OfferError::TooLong(OFFER_BYTES_MAX + 1)));
        assert_eq!(message_bytes([0xff, 0xff]), Err(OfferError::TooLong(0xffff)));
    }

    #[test]
    fn a_lane_goes_to_its_owners_port_and_carries_its_own_id() {
        let (lane, mut offer) = (LaneIndex::new(3).unwrap(), offer());
        assert_eq!(offer.lane_id(lane), LaneId::new(0x00ab_cd03).unwrap());
        offer.extensions.candidates = [(0, 9000), (1, 9001)]
            .map(|(worker, port)| OwnCandidate {
                worker,
                kind: CandidateKind::Mapped,
                address: ([192, 0, 2, 9], port).into(),
            })
            .to_vec();
        let candidates: Vec<_> = offer.lane_candidates(lane).map(|(_, address)| address.to_string()).collect();
        assert_eq!(candidates, ["192.0.2.9:9001", "10.201.0.1:8101", "[2001:db8::1]:40001"]);
        assert_eq!(Offer::parse(&message(&offer)), Ok(offer));
    }

    #[test]
    fn a_lane_set_holds_what_was_put_in() {
        let lanes: LaneSet = LaneIndex::all(3, 1).collect();
        assert_eq!(lanes, LaneSet(0b111));
        assert_eq!(lanes.intersection(LaneSet(1 << 63 | 0b10)).iter().map(LaneIndex::get).collect::<Vec<_>>(), [1]);
        assert_eq!(LaneSet(u64::MAX).iter().count(), LANES_PER_LINK_MAX);
    }

    #[test]
    fn secrets_do_not_print() {
        let printed = format!("{:?}", offer());
        assert!(printed.contains("OfferSecret(..)") && !printed.contains("2, 2, 2"), "{printed}");
    }
}
