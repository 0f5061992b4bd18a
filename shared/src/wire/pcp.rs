//! What a gateway is asked for port mappings in: PCP (RFC 6887) and its forerunner NAT-PMP (RFC 6886).
//!
//! Both are spoken with port 5351 of the gateway, and told apart by the first byte: 2 is PCP, 0 is NAT-PMP. Here are the
//! client's halves only: requests are written, answers are read. Integers are big-endian.
//!
//! ```text
//! PCP request   version 2 | opcode | 0 (16)    | lifetime (32) | our address (128)
//! PCP answer    version 2 | R=1, opcode | 0 (8) | result (8) | lifetime (32) | epoch (32) | 0 (96)
//!   MAP         nonce (96) | protocol (8) | 0 (24) | internal port (16) | external port (16) | external address (128)
//! NAT-PMP       version 0 | opcode | 0 (16) | internal port (16) | external port (16) | lifetime (32)
//!   answer      version 0 | 128 + opcode | result (16) | epoch (32) | address (32), or ports (16 each) and lifetime (32)
//! ```
//! An IPv4 address stands in PCP as an IPv4-mapped one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use thiserror::Error;

use super::candidate::{mapped, unmapped};
use crate::limits::PCP_BYTES_MAX;

/// The gateway's port.
pub const SERVER_PORT: u16 = 5351;
/// Where gateways announce, to 224.0.0.1 and ff02::1, that they have started again or have another external address.
pub const ANNOUNCE_PORT: u16 = 5350;

/// Names a PCP mapping's owner: who knows it may renew and remove the mapping.
pub type Nonce = [u8; 12];

/// The smallest PCP answer.
const PCP_HEADER_BYTES: usize = 24;
/// What MAP adds to it.
const PCP_MAP_BYTES: usize = 36;
const PCP_VERSION: u8 = 2;
const NAT_PMP_VERSION: u8 = 0;
/// The bit that tells an answer from a request, in both protocols.
const IS_ANSWER: u8 = 0x80;
const ANNOUNCE: u8 = 0;
const MAP: u8 = 1;

/// What a port belongs to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// Its name in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// The number of IP's protocol field.
    fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// An answer makes no sense: the gateway is at fault, or whoever forges its address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum PcpError {
    /// No answer has this length.
    #[error("an answer of {0} bytes")]
    Length(usize),
    /// Neither PCP nor NAT-PMP.
    #[error("protocol version {0}")]
    Version(u8),
    /// A request, or an operation that we never ask for.
    #[error("operation {0:#04x}")]
    Operation(u8),
    /// A success that names no port or no known protocol.
    #[error("a mapping of nothing")]
    Mapping,
}

/// What a gateway answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// It does not speak the version that it was asked in.
    UnsupportedVersion,
    /// To [`announce`], PCP: it is there. Errors count as that too.
    Announced {
        /// Seconds since it lost its mappings.
        epoch: u32,
    },
    /// To [`map`], PCP.
    PcpMapped {
        /// Whose mapping.
        nonce: Nonce,
        /// Of what.
        transport: Transport,
        /// Our port.
        internal: u16,
        /// See [`Answer::Announced`].
        epoch: u32,
        /// What became of it.
        outcome: Result<PcpGrant, Refusal>,
    },
    /// To [`nat_pmp_external`].
    NatPmpExternal {
        /// As in PCP.
        epoch: u32,
        /// The gateway's address outside.
        outcome: Result<Ipv4Addr, Refusal>,
    },
    /// To [`nat_pmp_map`].
    NatPmpMapped {
        /// As in PCP.
        epoch: u32,
        /// Of what.
        transport: Transport,
        /// Our port; nothing if the gateway refuses so briefly that it does not say.
        internal: Option<u16>,
        /// External port and lifetime in seconds.
        outcome: Result<(u16, u32), Refusal>,
    },
}

/// A mapping as PCP grants it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PcpGrant {
    /// For how many seconds; 0 says that it is gone.
    pub lifetime: u32,
    /// The port outside.
    pub port: u16,
    /// The address outside, IPv4-mapped ones as IPv4.
    pub ip: IpAddr,
}

/// Why a gateway refuses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// The code of the protocol.
    pub code: u16,
    /// For how many seconds the same question will have the same answer, as the gateway says; 0 if it does not.
    pub seconds: u32,
}

impl Refusal {
    /// What a PCP code means (RFC 6887, section 7.4).
    pub fn pcp_name(self) -> &'static str {
        const NAMES: [&str; 14] = [
            "success",
            "unsupported version",
            "not authorized",
            "malformed request",
            "unsupported operation",
            "unsupported option",
            "malformed option",
            "network failure",
            "no resources",
            "unsupported protocol",
            "our quota is used up",
            "cannot provide the external address",
            "our address is another one to the gateway: there is a translator between",
            "too many remote peers",
        ];
        NAMES.get(usize::from(self.code)).copied().unwrap_or("an error without a name")
    }

    /// What a NAT-PMP code means (RFC 6886, section 3.5).
    pub fn nat_pmp_name(self) -> &'static str {
        const NAMES: [&str; 6] = [
            "success",
            "unsupported version",
            "not authorized",
            "network failure",
            "no resources",
            "unsupported operation",
        ];
        NAMES.get(usize::from(self.code)).copied().unwrap_or("an error without a name")
    }
}

/// A PCP request that asks only whether anybody is there.
pub fn announce(ours: IpAddr) -> [u8; PCP_HEADER_BYTES] {
    header(ANNOUNCE, 0, ours)
}

/// A PCP request for a mapping, or with a lifetime of 0 for its end. `suggested` is the external address and port we
/// would like, all zero if we do not care.
pub fn map(
    ours: IpAddr,
    nonce: Nonce,
    transport: Transport,
    internal: u16,
    suggested: (Option<IpAddr>, u16),
    lifetime: u32,
) -> [u8; PCP_HEADER_BYTES + PCP_MAP_BYTES] {
    let mut request = [0; PCP_HEADER_BYTES + PCP_MAP_BYTES];
    let (head, body) = request.split_at_mut(PCP_HEADER_BYTES);
    head.copy_from_slice(&header(MAP, lifetime, ours));
    body[..12].copy_from_slice(&nonce);
    body[12] = transport.number();
    body[16..18].copy_from_slice(&internal.to_be_bytes());
    body[18..20].copy_from_slice(&suggested.1.to_be_bytes());
    let any = if ours.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { IpAddr::from(Ipv6Addr::UNSPECIFIED) };
    body[20..].copy_from_slice(&mapped(suggested.0.unwrap_or(any)).octets());
    request
}

/// A NAT-PMP request for the gateway's external address.
pub fn nat_pmp_external() -> [u8; 2] {
    [NAT_PMP_VERSION, 0]
}

/// A NAT-PMP request for a mapping. For its end both `external` and `lifetime` are 0.
pub fn nat_pmp_map(transport: Transport, internal: u16, external: u16, lifetime: u32) -> [u8; 12] {
    let mut request = [0; 12];
    request[1] = nat_pmp_operation(transport);
    request[4..6].copy_from_slice(&internal.to_be_bytes());
    request[6..8].copy_from_slice(&external.to_be_bytes());
    request[8..].copy_from_slice(&lifetime.to_be_bytes());
    request
}

/// Reads an answer of either protocol. Whether it is to what was asked is for the caller to look at.
pub fn parse(datagram: &[u8]) -> Result<Answer, PcpError> {
    match datagram.first() {
        Some(&PCP_VERSION) => parse_pcp(datagram),
        Some(&NAT_PMP_VERSION) => parse_nat_pmp(datagram),
        Some(&version) => Err(PcpError::Version(version)),
        None => Err(PcpError::Length(0)),
    }
}

fn parse_pcp(datagram: &[u8]) -> Result<Answer, PcpError> {
    let length = PcpError::Length(datagram.len());
    if datagram.len() > PCP_BYTES_MAX || !datagram.len().is_multiple_of(4) {
        return Err(length);
    }
    let (head, rest) = datagram.split_first_chunk::<PCP_HEADER_BYTES>().ok_or(length)?;
    let (operation, result) = (head[1], head[3]);
    if operation & IS_ANSWER == 0 {
        return Err(PcpError::Operation(operation));
    }
    let (lifetime, epoch) = (be32(head, 4), be32(head, 8));
    let refusal = Refusal { code: result.into(), seconds: lifetime };
    match operation & !IS_ANSWER {
        // Any version that a gateway would rather speak is older than ours.
        _ if result == 1 => Ok(Answer::UnsupportedVersion),
        ANNOUNCE => Ok(Answer::Announced { epoch }),
        MAP => {
            let body = rest.first_chunk::<PCP_MAP_BYTES>().ok_or(length)?;
            let mut nonce = [0; 12];
            nonce.copy_from_slice(&body[..12]);
            let transport = [Transport::Tcp, Transport::Udp].into_iter().find(|known| known.number() == body[12]);
            let transport = transport.ok_or(PcpError::Mapping)?;
            let mut ip = [0; 16];
            ip.copy_from_slice(&body[20..]);
            let grant = PcpGrant { lifetime, port: be16(body, 18), ip: unmapped(ip) };
            // The answer to a removal may name no port.
            if result == 0 && lifetime > 0 && grant.port == 0 {
                return Err(PcpError::Mapping);
            }
            let outcome = if result == 0 { Ok(grant) } else { Err(refusal) };
            Ok(Answer::PcpMapped { nonce, transport, internal: be16(body, 16), epoch, outcome })
        }
        _ => Err(PcpError::Operation(operation)),
    }
}

fn parse_nat_pmp(datagram: &[u8]) -> Result<Answer, PcpError> {
    let length = PcpError::Length(datagram.len());
    // Nothing that a gateway sends is longer than a mapping.
    if datagram.len() > 16 {
        return Err(length);
    }
    let head = datagram.first_chunk::<4>().ok_or(length)?;
    let (operation, result) = (head[1], be16(head, 2));
    if operation & IS_ANSWER == 0 {
        return Err(PcpError::Operation(operation));
    }
    if result == 1 {
        return Ok(Answer::UnsupportedVersion);
    }
    let (head, rest) = datagram.split_first_chunk::<8>().ok_or(length)?;
    let epoch = be32(head, 4);
    let refusal = Refusal { code: result, seconds: 0 };
    match operation & !IS_ANSWER {
        0 if result != 0 => Ok(Answer::NatPmpExternal { epoch, outcome: Err(refusal) }),
        0 => {
            let ip = rest.first_chunk::<4>().filter(|_| rest.len() == 4).ok_or(length)?;
            Ok(Answer::NatPmpExternal { epoch, outcome: Ok(Ipv4Addr::from(*ip)) })
        }
        code @ (1 | 2) => {
            let transport = if code == 1 { Transport::Udp } else { Transport::Tcp };
            let body = rest.first_chunk::<8>();
            let internal = body.map(|body| be16(body, 0));
            let outcome = match body {
                _ if result != 0 => Err(refusal),
                Some(body) => Ok((be16(body, 2), be32(body, 4))),
                None => return Err(length),
            };
            if matches!(outcome, Ok((0, lifetime)) if lifetime > 0) {
                return Err(PcpError::Mapping);
            }
            Ok(Answer::NatPmpMapped { epoch, transport, internal, outcome })
        }
        _ => Err(PcpError::Operation(operation)),
    }
}

fn header(operation: u8, lifetime: u32, ours: IpAddr) -> [u8; PCP_HEADER_BYTES] {
    let mut header = [0; PCP_HEADER_BYTES];
    (header[0], header[1]) = (PCP_VERSION, operation);
    header[4..8].copy_from_slice(&lifetime.to_be_bytes());
    header[8..].copy_from_slice(&mapped(ours).octets());
    header
}

fn nat_pmp_operation(transport: Transport) -> u8 {
    match transport {
        Transport::Udp => 1,
        Transport::Tcp => 2,
    }
}

fn be16<const N: usize>(bytes: &[u8; N], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn be32<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: Nonce = *b"twelve bytes";

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// As a gateway answers a request for a mapping.
    fn answer(request: &[u8], result: u8, lifetime: u32, port: u16, external: IpAddr) -> Vec<u8> {
        let mut answer = request.to_vec();
        answer[1] |= IS_ANSWER;
        answer[3] = result;
        answer[4..8].copy_from_slice(&lifetime.to_be_bytes());
        answer[8..12].copy_from_slice(&77_u32.to_be_bytes());
        answer[12..24].fill(0);
        answer[42..44].copy_from_slice(&port.to_be_bytes());
        answer[44..60].copy_from_slice(&mapped(external).octets());
        answer
    }

    #[test]
    fn a_pcp_request_has_the_bytes_of_the_rfc() {
        let request = map(ip("192.168.1.2"), NONCE, Transport::Udp, 8100, (None, 8100), 7200);
        let mut expected = vec![2, 1, 0, 0, 0, 0, 0x1c, 0x20];
        expected.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 168, 1, 2]);
        expected.extend(NONCE);
        expected.extend([17, 0, 0, 0, 0x1f, 0xa4, 0x1f, 0xa4]);
        expected.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0]);
        assert_eq!(request.to_vec(), expected);
        let pinhole = map(ip("2001:db8::2"), NONCE, Transport::Tcp, 8001, (None, 0), 7200);
        assert_eq!((pinhole[36], &pinhole[44..]), (6, &[0; 16][..]), "all-zero asks for a pinhole, RFC 6887 11.1");
        assert_eq!(announce(ip("::1"))[..8], [2, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_pcp_answer_says_which_mapping_it_is_about_and_what_became_of_it() {
        let request = map(ip("192.168.1.2"), NONCE, Transport::Udp, 8100, (None, 8100), 7200);
        let granted = parse(&answer(&request, 0, 3600, 9100, ip("203.0.113.1")));
        let grant = PcpGrant { lifetime: 3600, port: 9100, ip: ip("203.0.113.1") };
        let mapped = |outcome| {
            Ok(Answer::PcpMapped { nonce: NONCE, transport: Transport::Udp, internal: 8100, epoch: 77, outcome })
        };
        assert_eq!(granted, mapped(Ok(grant)));
        let refused = Refusal { code: 8, seconds: 30 };
        assert_eq!(parse(&answer(&request, 8, 30, 0, ip("0.0.0.0"))), mapped(Err(refused)));
        assert_eq!(refused.pcp_name(), "no resources");
        assert_eq!(parse(&answer(&request, 1, 0, 0, ip("0.0.0.0"))), Ok(Answer::UnsupportedVersion));
        assert_eq!(parse(&answer(&request, 0, 60, 0, ip("203.0.113.1"))), Err(PcpError::Mapping));
        assert_eq!(parse(&request), Err(PcpError::Operation(1)), "a request is no answer");
    }

    #[test]
    fn a_nat_pmp_answer_is_an_address_or_a_mapping() {
        assert_eq!(nat_pmp_external(), [0, 0]);
        assert_eq!(
            nat_pmp_map(Transport::Tcp, 8001, 8001, 7200),
            [0, 2, 0, 0, 0x1f, 0x41, 0x1f, 0x41, 0, 0, 0x1c, 0x20]
        );
        assert_eq!(
            parse(&[0, 128, 0, 0, 0, 0, 0, 9, 203, 0, 113, 1]),
            Ok(Answer::NatPmpExternal { epoch: 9, outcome: Ok([203, 0, 113, 1].into()) })
        );
        assert_eq!(
            parse(&[0, 129, 0, 0, 0, 0, 0, 9, 0x1f, 0xa4, 0x23, 0x8c, 0, 0, 0x0e, 0x10]),
            Ok(Answer::NatPmpMapped {
                epoch: 9,
                transport: Transport::Udp,
                internal: Some(8100),
                outcome: Ok((9100, 3600))
            })
        );
        let refused = Refusal { code: 3, seconds: 0 };
        assert_eq!(
            parse(&[0, 130, 0, 3, 0, 0, 0, 9]),
            Ok(Answer::NatPmpMapped { epoch: 9, transport: Transport::Tcp, internal: None, outcome: Err(refused) })
        );
        assert_eq!(refused.nat_pmp_name(), "network failure");
        // To a PCP request, RFC 6886 3.5; some send four bytes of it.
        assert_eq!(parse(&[0, 129, 0, 1, 0, 0, 0, 9]), Ok(Answer::UnsupportedVersion));
        assert_eq!(parse(&[0, 129, 0, 1]), Ok(Answer::UnsupportedVersion));
    }

    #[test]
    fn what_is_cut_or_too_long_is_refused() {
        let request = map(ip("192.168.1.2"), NONCE, Transport::Udp, 8100, (None, 8100), 7200);
        let whole = answer(&request, 0, 3600, 9100, ip("203.0.113.1"));
        for length in 0..whole.len() {
            assert_eq!(parse(&whole[..length]), Err(PcpError::Length(length)));
        }
        let mut long = whole.clone();
        long.resize(PCP_BYTES_MAX, 0);
        assert!(parse(&long).is_ok(), "options that we did not ask for are skipped");
        long.resize(PCP_BYTES_MAX + 4, 0);
        assert_eq!(parse(&long), Err(PcpError::Length(PCP_BYTES_MAX + 4)));
        let mapping = [0, 129, 0, 0, 0, 0, 0, 9, 0x1f, 0xa4, 0x23, 0x8c, 0, 0, 0x0e, 0x10];
        for length in 0..mapping.len() {
            assert_eq!(parse(&mapping[..length]), Err(PcpError::Length(length)));
        }
        assert_eq!(parse(&[1; 60]), Err(PcpError::Version(1)));
    }
}
