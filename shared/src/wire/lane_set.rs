//! Which of a link's lanes.

use crate::id::LaneIndex;
use crate::limits::LANES_PER_LINK_MAX;

/// Some of a link's lanes: bit k stands for lane k.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LaneSet(pub u64);

const _: () = assert!(LANES_PER_LINK_MAX <= u64::BITS as usize);

impl LaneSet {
    /// Whether the lane is one of them.
    pub fn contains(self, lane: LaneIndex) -> bool {
        self.0 & (1 << lane.get()) != 0
    }

    /// The lanes that are in both.
    pub fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The lanes, lowest first.
    pub fn iter(self) -> impl Iterator<Item = LaneIndex> {
        (0..LANES_PER_LINK_MAX as u8).filter_map(LaneIndex::new).filter(move |lane| self.contains(*lane))
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl FromIterator<LaneIndex> for LaneSet {
    fn from_iter<I: IntoIterator<Item = LaneIndex>>(lanes: I) -> Self {
        Self(lanes.into_iter().fold(0, |set, lane| set | 1 << lane.get()))
    }
}
