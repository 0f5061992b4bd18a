//! The datagram by which an end of a relayed lane shows the relay where it is, and its answer.
//!
//! ```text
//! 0        1             9              17                    33               35
//! +--------+-------------+--------------+---------------------+----------------+----------+
//! | kind   | name (64)   | number (64)  | observed address    | observed port  | MAC      |
//! |        |             |              | (128)               | (16)           | (128)    |
//! +--------+-------------+--------------+---------------------+----------------+----------+
//!
//! prk  = HKDF-Extract(salt = "ringlane bind 1", token)
//! name = HKDF-Expand(prk, "name", 8)
//! key  = HKDF-Expand(prk, "key", 32)
//! ```
//! The kind is 0x28 of a request; 0x29 of the answer while the other end has not shown itself, and 0x2a when datagrams pass. These
//! answers repeat the number and say where the request came from. The answer 0x2b repeats the number, and has a *proof* in the
//! first 8 bytes of the observed address, which the next request is to repeat there. The other bytes of address and port are zero
//! in both, and so are all of a request that proves nothing. All integers are big-endian; an IPv4 address is IPv4-mapped. The MAC
//! is the first 16 bytes of HMAC-SHA256 over everything before it.
//!
//! The token, which the relay has given to this end alone, never shows. A number is larger than all before it of this name,
//! so that a captured request cannot be sent again from elsewhere: a relay answers it, at the same size, and does no more.

use std::fmt;
use std::net::SocketAddr;

use aws_lc_rs::{constant_time, hkdf, hmac};
use thiserror::Error;
use zeroize::Zeroizing;

use super::candidate::{mapped, unmapped};

/// Bytes of every bind, request or answer.
pub const BIND_BYTES: usize = AUTHENTICATED_BYTES + MAC_BYTES;

/// Bytes of a token.
pub const BIND_TOKEN_BYTES: usize = 16;

const MAC_BYTES: usize = 16;
const AUTHENTICATED_BYTES: usize = 1 + 8 + 8 + 16 + 2;

const SALT: &[u8] = b"ringlane bind 1";

const KIND_REQUEST: u8 = 0x28;
const KIND_WAITING: u8 = 0x29;
const KIND_OPEN: u8 = 0x2a;
const KIND_CHALLENGE: u8 = 0x2b;

/// Whether a datagram asks to be bound, by its length and first byte alone.
#[inline]
pub fn is_bind(datagram: &[u8]) -> bool {
    datagram.len() == BIND_BYTES && datagram[0] == KIND_REQUEST
}

/// What one end of one relayed lane has from the relay. Wiped when dropped, never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct BindToken(Zeroizing<[u8; BIND_TOKEN_BYTES]>);

impl BindToken {
    /// Takes bytes from the system's random number generator, or from the relay's message.
    pub fn new(random: [u8; BIND_TOKEN_BYTES]) -> Self {
        Self(Zeroizing::new(random))
    }

    /// The bytes, for the relay's message.
    pub(super) fn as_bytes(&self) -> &[u8; BIND_TOKEN_BYTES] {
        &self.0
    }

    /// What its binds are made with.
    pub fn keys(&self) -> BindKeys {
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, SALT).extract(self.0.as_slice());
        let name = BindName(expand(&prk, b"name"));
        let key = Zeroizing::new(expand::<32>(&prk, b"key"));
        BindKeys { name, key: hmac::Key::new(hmac::HMAC_SHA256, key.as_slice()) }
    }
}

impl fmt::Debug for BindToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BindToken(..)")
    }
}

/// Which end of which relayed lane a bind is of, as its receiver finds it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BindName(pub [u8; 8]);

/// An authentic bind, or one about to be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bind {
    /// Rises with each request; an answer repeats it.
    pub number: u64,
    /// Request or answer.
    pub kind: BindKind,
}

/// What a bind says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BindKind {
    /// The end is where this comes from.
    Request {
        /// What the relay has last challenged it with; 0 if it has not.
        proof: u64,
    },
    /// The relay wants to see that the end is there: the next request is to repeat this. It does nothing before.
    Challenge {
        /// Never 0.
        proof: u64,
    },
    /// The relay knows it is at `observed`; the other end has not shown itself yet.
    Waiting {
        /// Where the request came from, as the relay saw it.
        observed: SocketAddr,
    },
    /// The relay knows where both ends are, and forwards.
    Open {
        /// Where the request came from, as the relay saw it.
        observed: SocketAddr,
    },
}

/// Why a datagram is no bind: the network or a stranger is at fault. It gets no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum BindError {
    /// Not [`BIND_BYTES`] long.
    #[error("bind of {0} bytes")]
    Length(usize),
    /// The first byte is not a bind's.
    #[error("first byte {0:#04x} is not a bind's")]
    Kind(u8),
    /// A request or challenge that claims to have observed something, or a challenge without a proof.
    #[error("request with an observed address, or challenge without a proof")]
    Observed,
    /// The MAC is not this token's.
    #[error("bind does not authenticate")]
    Unauthentic,
}

/// A well-formed bind that nobody has vouched for. [`BindKeys::verify`] makes it a [`Bind`].
#[derive(Clone, Copy, Debug)]
pub struct UnverifiedBind<'a> {
    name: BindName,
    claim: Bind,
    bytes: &'a [u8; BIND_BYTES],
}

impl<'a> UnverifiedBind<'a> {
    /// Reads a datagram.
    pub fn parse(datagram: &'a [u8]) -> Result<Self, BindError> {
        let bytes: &[u8; BIND_BYTES] = datagram.try_into().map_err(|_| BindError::Length(datagram.len()))?;
        let observed = SocketAddr::new(unmapped(field(bytes, 17)), u16::from_be_bytes(field(bytes, 33)));
        let proof = u64::from_be_bytes(field(bytes, 17));
        let has_observed = bytes[25..35].iter().any(|byte| *byte != 0);
        let kind = match bytes[0] {
            KIND_REQUEST | KIND_CHALLENGE if has_observed => return Err(BindError::Observed),
            KIND_CHALLENGE if proof == 0 => return Err(BindError::Observed),
            KIND_REQUEST => BindKind::Request { proof },
            KIND_CHALLENGE => BindKind::Challenge { proof },
            KIND_WAITING => BindKind::Waiting { observed },
            KIND_OPEN => BindKind::Open { observed },
            other => return Err(BindError::Kind(other)),
        };
        let claim = Bind { number: u64::from_be_bytes(field(bytes, 9)), kind };
        Ok(Self { name: BindName(field(bytes, 1)), claim, bytes })
    }

    /// Whose it claims to be: tells which keys to verify it with.
    pub fn name(&self) -> BindName {
        self.name
    }
}

/// `N` bytes at a constant offset within the bind.
fn field<const N: usize>(bytes: &[u8; BIND_BYTES], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

/// Authenticates the binds of one end of one relayed lane, both ways. Owner: control, of the end and of the relay.
#[derive(Clone)]
pub struct BindKeys {
    name: BindName,
    key: hmac::Key,
}

impl BindKeys {
    /// What its binds are found by.
    pub fn name(&self) -> BindName {
        self.name
    }

    /// The datagram that says this.
    pub fn seal(&self, bind: &Bind) -> [u8; BIND_BYTES] {
        let mut bytes = [0; BIND_BYTES];
        bytes[1..9].copy_from_slice(&self.name.0);
        bytes[9..17].copy_from_slice(&bind.number.to_be_bytes());
        bytes[0] = match bind.kind {
            BindKind::Request { .. } => KIND_REQUEST,
            BindKind::Challenge { .. } => KIND_CHALLENGE,
            BindKind::Waiting { .. } => KIND_WAITING,
            BindKind::Open { .. } => KIND_OPEN,
        };
        match bind.kind {
            BindKind::Request { proof } | BindKind::Challenge { proof } => {
                bytes[17..25].copy_from_slice(&proof.to_be_bytes());
            }
            BindKind::Waiting { observed } | BindKind::Open { observed } => {
                bytes[17..33].copy_from_slice(&mapped(observed.ip().to_canonical()).octets());
                bytes[33..35].copy_from_slice(&observed.port().to_be_bytes());
            }
        }
        let (authenticated, mac) = bytes.split_at_mut(AUTHENTICATED_BYTES);
        mac.copy_from_slice(&hmac::sign(&self.key, authenticated).as_ref()[..MAC_BYTES]);
        bytes
    }

    /// The bind, if a holder of this token sent it.
    pub fn verify(&self, bind: &UnverifiedBind<'_>) -> Result<Bind, BindError> {
        let (authenticated, mac) = bind.bytes.split_at(AUTHENTICATED_BYTES);
        let expected = hmac::sign(&self.key, authenticated);
        constant_time::verify_slices_are_equal(&expected.as_ref()[..MAC_BYTES], mac)
            .map_err(|_| BindError::Unauthentic)?;
        // The name is among what the MAC is over; another token's has another key.
        Ok(bind.claim)
    }
}

impl fmt::Debug for BindKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BindKeys").field("name", &self.name).finish_non_exhaustive()
    }
}

struct OutputBytes(usize);

impl hkdf::KeyType for OutputBytes {
    fn len(&self) -> usize {
        self.0
    }
}

fn expand<const N: usize>(prk: &hkdf::Prk, info: &[u8]) -> [u8; N] {
    const { assert!(N <= 255 * 32, "HKDF-SHA256 gives no more") };
    let mut output = [0; N];
    prk.expand(&[info], OutputBytes(N))
        .and_then(|okm| okm.fill(&mut output))
        .expect("the output is within what HKDF-SHA256 gives");
    output
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::record::DatagramKind;

    fn keys(first: u8) -> BindKeys {
        BindToken::new(std::array::from_fn(|at| first + at as u8)).keys()
    }

    fn binds() -> Vec<Bind> {
        let mut binds: Vec<_> =
            [0, 1, u64::MAX].map(|proof| Bind { number: u64::MAX, kind: BindKind::Request { proof } }).into();
        binds.extend([1, u64::MAX].map(|proof| Bind { number: 9, kind: BindKind::Challenge { proof } }));
        for address in ["192.0.2.1:8100", "[2001:db8::1]:8101", "[::ffff:192.0.2.1]:8102"] {
            let observed: SocketAddr = address.parse().unwrap();
            let observed = SocketAddr::new(observed.ip().to_canonical(), observed.port());
            binds.push(Bind { number: 7, kind: BindKind::Waiting { observed } });
            binds.push(Bind { number: 8, kind: BindKind::Open { observed } });
        }
        binds
    }

    #[test]
    fn binds_read_back_as_written_and_an_answer_is_as_long_as_its_request() {
        let keys = keys(0);
        for bind in binds() {
            let datagram = keys.seal(&bind);
            assert_eq!(DatagramKind::of(&datagram), DatagramKind::Bind);
            assert_eq!(is_bind(&datagram), matches!(bind.kind, BindKind::Request { .. }));
            let unverified = UnverifiedBind::parse(&datagram).unwrap();
            assert_eq!((unverified.name(), keys.verify(&unverified)), (keys.name(), Ok(bind)));
        }
    }

    #[test]
    fn any_flipped_bit_and_any_other_token_is_refused() {
        let (ours, others) = (keys(0), keys(1));
        assert_ne!(ours.name(), others.name());
        for bind in binds() {
            let datagram = ours.seal(&bind);
            let unverified = UnverifiedBind::parse(&datagram).unwrap();
            assert_eq!(others.verify(&unverified), Err(BindError::Unauthentic));
            for bit in 0..datagram.len() * 8 {
                let mut flipped = datagram;
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert!(UnverifiedBind::parse(&flipped).and_then(|bind| ours.verify(&bind)).is_err(), "bit {bit}");
            }
        }
    }

    #[test]
    fn only_the_exact_form_is_a_bind() {
        let datagram = keys(0).seal(&binds()[0]);
        let error = |bytes: &[u8]| UnverifiedBind::parse(bytes).map(|_| ()).unwrap_err();
        for length in (0..BIND_BYTES).chain([BIND_BYTES + 1, 1500]) {
            assert_eq!(error(&vec![KIND_REQUEST; length]), BindError::Length(length));
            assert!(!is_bind(&vec![KIND_REQUEST; length]));
        }
        let broken = |at: usize, byte: u8| {
            let mut bytes = datagram;
            bytes[at] = byte;
            error(&bytes)
        };
        assert_eq!((broken(0, 0x2c), broken(0, 0x27)), (BindError::Kind(0x2c), BindError::Kind(0x27)));
        assert_eq!((broken(25, 1), broken(34, 1)), (BindError::Observed, BindError::Observed));
        assert_eq!(broken(0, KIND_CHALLENGE), BindError::Observed, "it has nothing to repeat");
    }
}
