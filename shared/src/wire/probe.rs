//! The datagram that asks whether a path works, and its answer.
//!
//! ```text
//! 0        1             9        10               18                    34               36
//! +--------+-------------+--------+----------------+---------------------+----------------+----------+
//! | 0x20   | tag (64)    | lane   | transaction    | observed address    | observed port  | MAC      |
//! | 0x21   |             | (8)    | (64)           | (128)               | (16)           | (128)    |
//! +--------+-------------+--------+----------------+---------------------+----------------+----------+
//! ```
//! 0x20 is a request, whose observed address and port are zero; 0x21 is its reply, which repeats lane and transaction
//! and says where the request came from. All integers are big-endian; an IPv4 address is IPv4-mapped. The MAC is the
//! first 16 bytes of HMAC-SHA256 over everything before it.
//!
//! The tag says which link it is and which end sent it, so the receiver tries one key, and a probe sent back to its
//! sender names no link there. A probe that does not verify gets no answer. A captured request can be replayed: it
//! causes one reply of its own size to wherever it was sent from, and a reply proves nothing to a sender that did not
//! draw its transaction number.

use std::net::{IpAddr, SocketAddr};

use aws_lc_rs::{constant_time, hmac};
use thiserror::Error;

use super::candidate::{mapped, unmapped};
use crate::id::LaneIndex;

/// Bytes of every probe, request or reply.
pub const PROBE_BYTES: usize = AUTHENTICATED_BYTES + MAC_BYTES;

const MAC_BYTES: usize = 16;
const AUTHENTICATED_BYTES: usize = 1 + 8 + 1 + 8 + 16 + 2;

const KIND_REQUEST: u8 = 0x20;
const KIND_REPLY: u8 = 0x21;

/// Which link a probe belongs to and which end of it sent it. Made by
/// [`LinkSecrets::probe_tag`](super::offer::LinkSecrets::probe_tag).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ProbeTag(pub [u8; 8]);

/// Chosen at random by who asks, and repeated by who answers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Transaction(pub u64);

/// An authentic probe, or one about to be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Probe {
    /// The sender's tag.
    pub tag: ProbeTag,
    /// Which lane the path is for.
    pub lane: LaneIndex,
    /// Ties a reply to its request.
    pub transaction: Transaction,
    /// Request or reply.
    pub kind: ProbeKind,
}

/// What a probe wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProbeKind {
    /// An answer.
    Request,
    /// Nothing: it is the answer.
    Reply {
        /// Where the request came from, as its receiver saw it.
        observed: SocketAddr,
    },
}

/// Why a datagram is no probe: the network or a stranger is at fault. It gets no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum ProbeError {
    /// Not [`PROBE_BYTES`] long.
    #[error("probe of {0} bytes")]
    Length(usize),
    /// The first byte is not a probe's.
    #[error("first byte {0:#04x} is not a probe's")]
    Kind(u8),
    /// No link can have this lane.
    #[error("lane {0} is beyond the last")]
    Lane(u8),
    /// A request that claims to have observed something.
    #[error("request with an observed address")]
    Observed,
    /// The MAC is not this key's.
    #[error("probe does not authenticate")]
    Unauthentic,
}

/// A well-formed probe that nobody has vouched for. [`ProbeKey::verify`] makes it a [`Probe`].
#[derive(Clone, Copy, Debug)]
pub struct UnverifiedProbe<'a> {
    claim: Probe,
    bytes: &'a [u8; PROBE_BYTES],
}

impl<'a> UnverifiedProbe<'a> {
    /// Reads a datagram.
    pub fn parse(datagram: &'a [u8]) -> Result<Self, ProbeError> {
        let bytes: &[u8; PROBE_BYTES] = datagram.try_into().map_err(|_| ProbeError::Length(datagram.len()))?;
        let tag = ProbeTag(field(bytes, 1));
        let lane = LaneIndex::new(bytes[9]).ok_or(ProbeError::Lane(bytes[9]))?;
        let transaction = Transaction(u64::from_be_bytes(field(bytes, 10)));
        let observed = SocketAddr::new(unmapped(field(bytes, 18)), u16::from_be_bytes(field(bytes, 34)));
        let kind = match bytes[0] {
            KIND_REQUEST if bytes[18..36].iter().any(|byte| *byte != 0) => return Err(ProbeError::Observed),
            KIND_REQUEST => ProbeKind::Request,
            KIND_REPLY => ProbeKind::Reply { observed },
            other => return Err(ProbeError::Kind(other)),
        };
        Ok(Self { claim: Probe { tag, lane, transaction, kind }, bytes })
    }

    /// Which link it claims to belong to: tells which key to verify it with.
    pub fn tag(&self) -> ProbeTag {
        self.claim.tag
    }
}

/// `N` bytes at a constant offset within the probe.
fn field<const N: usize>(bytes: &[u8; PROBE_BYTES], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

/// Authenticates all probes of one link. Owner: control.
#[derive(Clone)]
pub struct ProbeKey(hmac::Key);

impl ProbeKey {
    /// The key made of these bytes.
    pub(super) fn new(key: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    /// The datagram that says this.
    pub fn seal(&self, probe: &Probe) -> [u8; PROBE_BYTES] {
        let mut bytes = [0; PROBE_BYTES];
        bytes[1..9].copy_from_slice(&probe.tag.0);
        bytes[9] = probe.lane.get();
        bytes[10..18].copy_from_slice(&probe.transaction.0.to_be_bytes());
        match probe.kind {
            ProbeKind::Request => bytes[0] = KIND_REQUEST,
            ProbeKind::Reply { observed } => {
                bytes[0] = KIND_REPLY;
                bytes[18..34].copy_from_slice(&mapped(observed.ip()).octets());
                bytes[34..36].copy_from_slice(&observed.port().to_be_bytes());
            }
        }
        let (authenticated, mac) = bytes.split_at_mut(AUTHENTICATED_BYTES);
        mac.copy_from_slice(&hmac::sign(&self.0, authenticated).as_ref()[..MAC_BYTES]);
        bytes
    }

    /// The probe, if this key's holder sent it.
    pub fn verify(&self, probe: &UnverifiedProbe<'_>) -> Result<Probe, ProbeError> {
        let (authenticated, mac) = probe.bytes.split_at(AUTHENTICATED_BYTES);
        let expected = hmac::sign(&self.0, authenticated);
        constant_time::verify_slices_are_equal(&expected.as_ref()[..MAC_BYTES], mac)
            .map_err(|_| ProbeError::Unauthentic)?;
        Ok(probe.claim)
    }
}

impl std::fmt::Debug for ProbeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ProbeKey(..)")
    }
}

impl Probe {
    /// The answer to this request, which came from `observed`, by the end whose tag is `tag`.
    pub fn reply(&self, tag: ProbeTag, observed: SocketAddr) -> Self {
        Self { tag, kind: ProbeKind::Reply { observed: canonical(observed) }, ..*self }
    }
}

/// A dual-stack socket shows IPv4 sources as IPv4-mapped; flow label and scope do not travel.
fn canonical(address: SocketAddr) -> SocketAddr {
    let ip: IpAddr = address.ip().to_canonical();
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::record::DatagramKind;

    fn request() -> Probe {
        Probe {
            tag: ProbeTag([7; 8]),
            lane: LaneIndex::new(63).unwrap(),
            transaction: Transaction(0x0102_0304_0506_0708),
            kind: ProbeKind::Request,
        }
    }

    #[test]
    fn requests_and_replies_read_back_as_written_and_look_like_probes() {
        let key = ProbeKey::new(&[1; 32]);
        for address in ["192.0.2.1:8100", "[2001:db8::1]:8101", "[::ffff:192.0.2.1]:8102"] {
            let reply = request().reply(ProbeTag([8; 8]), address.parse().unwrap());
            for probe in [request(), reply] {
                let datagram = key.seal(&probe);
                assert_eq!(DatagramKind::of(&datagram), DatagramKind::Probe);
                let unverified = UnverifiedProbe::parse(&datagram).unwrap();
                assert_eq!((unverified.tag(), key.verify(&unverified)), (probe.tag, Ok(probe)));
            }
        }
    }

    #[test]
    fn any_flipped_bit_is_refused() {
        let key = ProbeKey::new(&[1; 32]);
        let reply = request().reply(ProbeTag([8; 8]), "192.0.2.1:8100".parse().unwrap());
        for probe in [request(), reply] {
            let datagram = key.seal(&probe);
            for bit in 0..datagram.len() * 8 {
                let mut flipped = datagram;
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert!(UnverifiedProbe::parse(&flipped).and_then(|p| key.verify(&p)).is_err(), "bit {bit}");
            }
        }
    }

    #[test]
    fn another_links_probe_does_not_verify() {
        let datagram = ProbeKey::new(&[1; 32]).seal(&request());
        let unverified = UnverifiedProbe::parse(&datagram).unwrap();
        assert_eq!(ProbeKey::new(&[2; 32]).verify(&unverified), Err(ProbeError::Unauthentic));
    }

    #[test]
    fn only_the_exact_form_is_a_probe() {
        let datagram = ProbeKey::new(&[1; 32]).seal(&request());
        let error = |bytes: &[u8]| UnverifiedProbe::parse(bytes).map(|_| ()).unwrap_err();
        for length in (0..PROBE_BYTES).chain([PROBE_BYTES + 1, 1500]) {
            assert_eq!(error(&vec![KIND_REQUEST; length]), ProbeError::Length(length));
        }
        let broken = |at: usize, byte: u8| {
            let mut bytes = datagram;
            bytes[at] = byte;
            error(&bytes)
        };
        assert_eq!(broken(0, 0x22), ProbeError::Kind(0x22));
        assert_eq!(broken(9, 64), ProbeError::Lane(64));
        assert_eq!(broken(18, 1), ProbeError::Observed);
        assert_eq!(broken(35, 1), ProbeError::Observed);
    }
}
