//! What version 1 of an offer says in extensions, which nodes that do not know them skip: where single lanes can be
//! reached, and how to get through a translator.
//!
//! ```text
//! 1  lane candidates   any number of: worker (8) | kind (8) | IPv6 or IPv4-mapped address (128) | port (16)
//! 2  punch             mapping (8) | flags (8) | port delta (16, signed) | start delay in ms (16) | later additions
//! ```
//! A candidate of a kind that we do not know is skipped, so that later versions can have more. An extension that comes
//! twice counts once.

use std::net::SocketAddr;
use std::time::Duration;

use super::candidate::{CandidateKind, mapped, unmapped};
use super::offer::OfferError;
use crate::limits::LANE_CANDIDATES_MAX;
use crate::path::candidate::OwnCandidate;
use crate::stun::nat::Mapping;

const TYPE_LANE_CANDIDATES: u8 = 1;
const TYPE_PUNCH: u8 = 2;

/// Type and length.
pub(super) const HEADER_BYTES: usize = 3;
const LANE_CANDIDATE_BYTES: usize = 1 + 1 + 16 + 2;
const PUNCH_BYTES: usize = 1 + 1 + 2 + 2;
const FLAG_BIRTHDAY: u8 = 1;

/// The longest start delay that is heeded: half a round trip around the world, twice.
const START_DELAY_MAX: Duration = Duration::from_secs(1);

/// All that fits.
pub(super) const EXTENSIONS_BYTES_MAX: usize =
    HEADER_BYTES + LANE_CANDIDATES_MAX * LANE_CANDIDATE_BYTES + HEADER_BYTES + PUNCH_BYTES;

/// The extensions of an offer that this version knows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Extensions {
    /// Where single lanes of the sender may be reached, besides its host addresses; at most [`LANE_CANDIDATES_MAX`].
    pub candidates: Vec<OwnCandidate>,
    /// What is on the way to the sender.
    pub punch: Punch,
}

impl Mapping {
    /// Offers do not tell a node without a translator from one whose translator looks the same to everybody.
    fn code(self) -> u8 {
        match self {
            Self::Unknown => 0,
            Self::None | Self::EndpointIndependent => 1,
            Self::AddressDependent => 2,
            Self::AddressAndPortDependent => 3,
        }
    }

    fn from_code(code: u8) -> Self {
        match code {
            1 => Self::EndpointIndependent,
            2 => Self::AddressDependent,
            3 => Self::AddressAndPortDependent,
            _ => Self::Unknown,
        }
    }
}

/// What an offer's sender knows of its own translator, and how it means to get through.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Punch {
    /// How its translator chooses ports; [`Mapping::None`] reads back as [`Mapping::EndpointIndependent`].
    pub mapping: Mapping,
    /// How much each new mapping's port is above the last one's; 0: not predictable, or not known.
    pub port_delta: i16,
    /// Whether the sender takes part in birthday probing: many of its ports, or many of the other end's.
    pub birthday: bool,
    /// How long the *answering* end waits with its first probe, so that both begin at once: half of the time that the
    /// sender's last exchange with it took. In whole milliseconds, 1 s at most.
    pub start_delay: Duration,
}

impl Extensions {
    pub(super) fn check(&self, workers: u8) -> Result<(), OfferError> {
        if self.candidates.len() > LANE_CANDIDATES_MAX {
            return Err(OfferError::LaneCandidates(self.candidates.len()));
        }
        let is_wrong = |candidate: &&OwnCandidate| candidate.worker >= workers || candidate.address.port() == 0;
        match self.candidates.iter().find(is_wrong) {
            Some(candidate) => {
                Err(OfferError::LaneCandidate { worker: candidate.worker, port: candidate.address.port() })
            }
            None => Ok(()),
        }
    }

    /// Bytes of [`Self::write`].
    pub(super) fn bytes(&self) -> usize {
        let candidates = if self.candidates.is_empty() { 0 } else { HEADER_BYTES + self.candidate_bytes() };
        candidates + if self.punch == Punch::default() { 0 } else { HEADER_BYTES + PUNCH_BYTES }
    }

    fn candidate_bytes(&self) -> usize {
        self.candidates.len() * LANE_CANDIDATE_BYTES
    }

    pub(super) fn write(&self, bytes: &mut Vec<u8>) {
        if !self.candidates.is_empty() {
            bytes.push(TYPE_LANE_CANDIDATES);
            bytes.extend((self.candidate_bytes() as u16).to_be_bytes());
            for candidate in &self.candidates {
                bytes.extend([candidate.worker, candidate.kind as u8]);
                bytes.extend(mapped(candidate.address.ip()).octets());
                bytes.extend(candidate.address.port().to_be_bytes());
            }
        }
        if self.punch != Punch::default() {
            let Punch { mapping, port_delta, birthday, start_delay } = self.punch;
            bytes.push(TYPE_PUNCH);
            bytes.extend((PUNCH_BYTES as u16).to_be_bytes());
            bytes.extend([mapping.code(), if birthday { FLAG_BIRTHDAY } else { 0 }]);
            bytes.extend(port_delta.to_be_bytes());
            bytes.extend((start_delay.min(START_DELAY_MAX).as_millis() as u16).to_be_bytes());
        }
    }

    /// Takes in one extension, whatever its type. `seen` is which of ours were there before.
    pub(super) fn read(&mut self, kind: u8, value: &[u8], seen: &mut [bool; 2]) -> Result<(), OfferError> {
        match kind {
            TYPE_LANE_CANDIDATES if !std::mem::replace(&mut seen[0], true) => self.read_candidates(value),
            TYPE_PUNCH if !std::mem::replace(&mut seen[1], true) => {
                self.punch = Punch::read(value)?;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn read_candidates(&mut self, value: &[u8]) -> Result<(), OfferError> {
        let (entries, []) = value.as_chunks::<LANE_CANDIDATE_BYTES>() else { return Err(OfferError::Truncated) };
        if entries.len() > LANE_CANDIDATES_MAX {
            return Err(OfferError::LaneCandidates(entries.len()));
        }
        let known = entries.iter().filter_map(|&[worker, kind, ref rest @ ..]| {
            let kind = CandidateKind::from_code(kind)?;
            let (ip, &[high, low]) =
                rest.split_first_chunk::<16>().and_then(|(ip, port)| Some((ip, port.as_array()?)))?;
            let address = SocketAddr::new(unmapped(*ip), u16::from_be_bytes([high, low]));
            Some(OwnCandidate { worker, kind, address })
        });
        self.candidates = known.collect();
        Ok(())
    }
}

impl Punch {
    fn read(value: &[u8]) -> Result<Self, OfferError> {
        let Some(&[mapping, flags, delta_high, delta_low, delay_high, delay_low]) = value.first_chunk::<PUNCH_BYTES>()
        else {
            return Err(OfferError::Truncated);
        };
        let start_delay = Duration::from_millis(u16::from_be_bytes([delay_high, delay_low]).into());
        Ok(Self {
            mapping: Mapping::from_code(mapping),
            port_delta: i16::from_be_bytes([delta_high, delta_low]),
            birthday: flags & FLAG_BIRTHDAY != 0,
            start_delay: start_delay.min(START_DELAY_MAX),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(worker: u8, kind: CandidateKind, address: &str) -> OwnCandidate {
        OwnCandidate { worker, kind, address: address.parse().unwrap() }
    }

    fn read(bytes: &[u8]) -> Result<Extensions, OfferError> {
        let (mut extensions, mut seen, mut rest) = (Extensions::default(), [false; 2], bytes);
        while let Some((&[kind, high, low], after)) = rest.split_first_chunk() {
            let (value, after) = after.split_at(usize::from(u16::from_be_bytes([high, low])));
            extensions.read(kind, value, &mut seen)?;
            rest = after;
        }
        Ok(extensions)
    }

    fn sample() -> Extensions {
        Extensions {
            candidates: vec![
                candidate(0, CandidateKind::Mapped, "192.0.2.1:40000"),
                candidate(1, CandidateKind::ServerReflexive, "[2001:db8::1]:8101"),
            ],
            punch: Punch {
                mapping: Mapping::AddressAndPortDependent,
                port_delta: -2,
                birthday: true,
                start_delay: Duration::from_millis(35),
            },
        }
    }

    #[test]
    fn extensions_read_back_as_written_and_cost_nothing_where_there_is_nothing_to_say() {
        for extensions in [Extensions::default(), sample(), Extensions { punch: Punch::default(), ..sample() }] {
            let mut bytes = Vec::new();
            extensions.write(&mut bytes);
            assert_eq!(bytes.len(), extensions.bytes());
            assert_eq!(read(&bytes), Ok(extensions));
        }
        assert_eq!(Extensions::default().bytes(), 0);
    }

    #[test]
    fn a_node_without_a_translator_says_that_it_looks_the_same_to_everybody() {
        let of = |mapping| Extensions { punch: Punch { mapping, ..Punch::default() }, ..Extensions::default() };
        let mut bytes = Vec::new();
        of(Mapping::None).write(&mut bytes);
        assert_eq!(read(&bytes), Ok(of(Mapping::EndpointIndependent)));
    }

    #[test]
    fn candidates_of_unknown_kinds_and_extensions_that_come_twice_are_skipped() {
        let mut bytes = Vec::new();
        sample().write(&mut bytes);
        bytes[HEADER_BYTES + 1] = 99;
        let mut twice = bytes.clone();
        twice.extend_from_slice(&bytes);
        let expected = Extensions { candidates: sample().candidates[1..].to_vec(), ..sample() };
        assert_eq!(read(&twice), Ok(expected));
    }

    #[test]
    fn too_many_candidates_those_of_no_worker_and_those_without_a_port_are_refused() {
        let one = sample().candidates[0];
        let of = |candidates| Extensions { candidates, punch: Punch::default() };
        assert_eq!(of(vec![one; LANE_CANDIDATES_MAX]).check(1), Ok(()));
        let most = LANE_CANDIDATES_MAX + 1;
        assert_eq!(of(vec![one; most]).check(1), Err(OfferError::LaneCandidates(most)));
        let mut bytes = Vec::new();
        of(vec![one; most]).write(&mut bytes);
        assert_eq!(read(&bytes), Err(OfferError::LaneCandidates(most)));
        let error = |worker, port| Err(OfferError::LaneCandidate { worker, port });
        assert_eq!(of(vec![OwnCandidate { worker: 2, ..one }]).check(2), error(2, 40000));
        assert_eq!(of(vec![candidate(0, CandidateKind::Host, "192.0.2.1:0")]).check(2), error(0, 0));
    }

    #[test]
    fn a_delay_is_bounded_and_what_a_later_version_appends_is_ignored() {
        let value = [9, 0xff, 0x80, 0, 0xff, 0xff, 1, 2, 3];
        let punch = Punch::read(&value).unwrap();
        assert_eq!((punch.mapping, punch.port_delta, punch.birthday), (Mapping::Unknown, i16::MIN, true));
        assert_eq!(punch.start_delay, START_DELAY_MAX);
        assert_eq!(Punch::read(&value[..5]), Err(OfferError::Truncated));
    }
}
