//! Where a node might be reached, as offers say it, and addresses as the wire has them.

use std::net::{IpAddr, Ipv6Addr};

use super::offer::OfferError;
use super::reader::Reader;

/// Where a node might be reached.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Candidate {
    /// How the node knows of it.
    pub kind: CandidateKind,
    /// The address; an IPv4-mapped one reads back as IPv4. Whether to send there is for the receiver to judge.
    pub ip: IpAddr,
    /// Worker i receives on `port + i`.
    pub port: u16,
}

impl Candidate {
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, OfferError> {
        let [code] = *reader.take()?;
        let kind = CandidateKind::from_code(code).ok_or(OfferError::CandidateKind(code))?;
        let ip = unmapped(*reader.take()?);
        let port = u16::from_be_bytes(*reader.take()?);
        Ok(Self { kind, ip, port })
    }
}

/// How a node knows of a candidate of its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum CandidateKind {
    /// An address of one of its interfaces.
    Host = 0,
    /// What others see: the answer of a STUN server.
    ServerReflexive = 1,
    /// A relay's address.
    Relayed = 2,
    /// What a router has mapped to it because it was asked to. Nodes of before refuse an offer that has one among the
    /// candidates of all lanes.
    Mapped = 3,
}

impl CandidateKind {
    /// The kind that this byte stands for.
    pub fn from_code(code: u8) -> Option<Self> {
        [Self::Host, Self::ServerReflexive, Self::Relayed, Self::Mapped].into_iter().find(|kind| *kind as u8 == code)
    }
}

/// An address as the wire shows it: 16 bytes, IPv4 mapped (RFC 4291, section 2.5.5.2).
pub(super) fn mapped(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

/// The address that the wire's 16 bytes stand for.
pub(super) fn unmapped(octets: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(octets).to_canonical()
}
