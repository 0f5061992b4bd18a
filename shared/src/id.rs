//! The newtypes everything is keyed by. Nothing here has behaviour beyond conversion and display.

use std::fmt;

/// A node's permanent name: the hash of, and for Ed25519 the container of, its public key.
pub use libp2p_identity::PeerId;

use crate::limits::{LANE_ID_MAX, LANES_PER_LINK_MAX};

/// Dense index of a configured peer, stable for the life of the process.
///
/// The packet path uses it instead of the 38-byte [`PeerId`]; control owns the mapping.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PeerIndex(pub u16);

impl PeerIndex {
    /// In a route table: where the service network's addresses lead, which is no peer. There are fewer peers than that.
    pub const SERVICES: Self = Self(u16::MAX);

    /// Of what is forwarded for others: whose it is nobody here knows.
    pub const NOBODY: Self = Self(u16::MAX - 1);

    /// The index as a table position.
    pub fn position(self) -> usize {
        usize::from(self.0)
    }
}

/// One worker of this node, 0 to [`crate::limits::WORKERS_MAX`] - 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WorkerId(pub u8);

impl WorkerId {
    /// The id as a table position.
    pub fn position(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which lane of a link: 0 to [`LANES_PER_LINK_MAX`] - 1, the same number on both ends.
///
/// Lane k is owned by worker k mod n on a node with n workers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LaneIndex(u8);

impl LaneIndex {
    /// The lane index, if it is below [`LANES_PER_LINK_MAX`].
    pub fn new(index: u8) -> Option<Self> {
        (usize::from(index) < LANES_PER_LINK_MAX).then_some(Self(index))
    }

    /// The number itself.
    pub fn get(self) -> u8 {
        self.0
    }

    /// The worker that owns this lane on a node that runs `workers` (at least one) of them.
    pub fn owner(self, workers: u8) -> WorkerId {
        WorkerId(self.0 % workers.max(1))
    }

    /// The lanes of a link between nodes with `ours` and `theirs` workers: as many as the side with more workers
    /// has, bounded, so that every worker of both sides owns at least one.
    pub fn all(ours: u8, theirs: u8) -> impl Iterator<Item = Self> {
        let count = usize::from(ours.max(theirs).max(1)).min(LANES_PER_LINK_MAX);
        (0..count as u8).map(Self)
    }
}

impl fmt::Display for LaneIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The 24-bit number a receiver gave one of its lanes; the sender writes it into every record.
///
/// Unique among the lanes of the receiving node at any moment.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LaneId(u32);

impl LaneId {
    /// The id, if it fits 24 bits.
    pub fn new(id: u32) -> Option<Self> {
        (id <= LANE_ID_MAX).then_some(Self(id))
    }

    /// The id from its three wire bytes, big-endian.
    pub fn from_be_bytes(bytes: [u8; 3]) -> Self {
        Self(u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]))
    }

    /// Its three wire bytes, big-endian.
    pub fn to_be_bytes(self) -> [u8; 3] {
        let [_, a, b, c] = self.0.to_be_bytes();
        [a, b, c]
    }

    /// The number itself.
    pub fn get(self) -> u32 {
        self.0
    }
}

/// Names one lane among all this process ever had; never reused, so a late message about a lane that has been
/// replaced cannot be mistaken for one about its successor.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LaneSerial(pub u64);

/// The number of a published snapshot; rises by one with each.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Generation(pub u64);
