//! Putting packets together whose fragments travelled alone: which bytes go where, and when a packet is whole.
//!
//! ```text
//!              +-- fragment --+       contradiction, eviction, expiry: lost, the buffer is free again
//!              v              |      /
//!   free --> assembly --------+-----+
//!     ^                              \
//!     +---- give_back <-- whole <-----+   all bytes up to the last fragment's end are there, each once
//! ```
//! A sender cuts a packet and sends its fragments right behind each other, and a record arrives once at most. So a
//! fragment that overlaps another one, or says something else of the packet, is a fault: nothing of that packet is kept.

use std::ops::Range;
use std::time::{Duration, Instant};

use crate::limits::{ASSEMBLIES_MAX, ASSEMBLY_BUFFERS, ASSEMBLY_MS_MAX, FRAGMENTS_PER_PACKET_MAX, INNER_MTU_MAX};
use crate::wire::fragment::Fragment;

const LIFETIME: Duration = Duration::from_millis(ASSEMBLY_MS_MAX);

/// Where a fragment's bytes go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Placed {
    /// Which buffer.
    pub buffer: u16,
    /// Which of its bytes; never beyond [`INNER_MTU_MAX`].
    pub range: Range<usize>,
    /// Set when the packet is whole with them. The buffer is then the caller's until [`Reassembly::give_back`].
    pub whole: Option<Whole>,
}

/// A packet that is whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Whole {
    /// Its length: it begins where its buffer does.
    pub bytes: usize,
    /// Whether its TCP or UDP checksum is partial.
    pub is_partial: bool,
    /// Whether one of its fragments met congestion: then it has (RFC 3168, section 5.3).
    pub met_congestion: bool,
}

/// One packet of which something has arrived.
#[derive(Clone, Debug)]
struct Assembly<K> {
    key: K,
    packet: u32,
    is_partial: bool,
    met_congestion: bool,
    begun: Instant,
    buffer: u16,
    /// Known when the last fragment is there.
    total: Option<u16>,
    arrived: u16,
    count: u8,
    /// What has arrived: where each fragment begins and ends.
    fragments: [(u16, u16); FRAGMENTS_PER_PACKET_MAX],
}

impl<K> Assembly<K> {
    /// Whether the fragment, of this packet and with these ends, agrees with those that are there; then it is one of them.
    fn take(&mut self, fragment: &Fragment<'_>, start: u16, end: u16) -> bool {
        let there = &self.fragments[..usize::from(self.count)];
        let is_apart = there.iter().all(|&(other_start, other_end)| end <= other_start || other_end <= start);
        let is_end_free = there.iter().all(|&(_, other_end)| other_end <= end);
        let agrees = match (self.total, fragment.has_more) {
            (Some(total), true) => end < total,
            (None, false) => is_end_free,
            (None, true) => true,
            (Some(_), false) => false,
        };
        let Some(place) = self.fragments.get_mut(usize::from(self.count)) else { return false };
        if !is_apart || !agrees || fragment.is_partial != self.is_partial {
            return false;
        }
        *place = (start, end);
        self.count += 1;
        self.arrived += end - start;
        if !fragment.has_more {
            self.total = Some(end);
        }
        true
    }

    /// Its length, if nothing is missing: the fragments lie apart, and none goes beyond the last.
    fn whole(&self) -> Option<Whole> {
        let total = self.total.filter(|total| *total == self.arrived)?;
        let Self { is_partial, met_congestion, .. } = *self;
        Some(Whole { bytes: usize::from(total), is_partial, met_congestion })
    }
}

/// The packets whose fragments have not all arrived, [`ASSEMBLIES_MAX`] at a time, and who uses which of
/// [`ASSEMBLY_BUFFERS`] buffers. It never touches the buffers themselves.
///
/// `K` is where a packet's number counts: a lane. Owner: one worker; never shared. Allocates nothing after `new`.
#[derive(Debug)]
pub struct Reassembly<K> {
    /// In the order in which they were begun.
    assemblies: Vec<Assembly<K>>,
    free: Vec<u16>,
}

/// Where a packet's number counts: a lane, whose peer shares the room with others.
pub trait Origin: Copy + Eq {
    /// Whether both are lanes of one peer.
    fn is_same_peer(self, other: Self) -> bool;
}

impl<P: Copy + Eq, L: Copy + Eq> Origin for (P, L) {
    fn is_same_peer(self, other: Self) -> bool {
        self.0 == other.0
    }
}

impl<K: Origin> Default for Reassembly<K> {
    fn default() -> Self {
        Self { assemblies: Vec::with_capacity(ASSEMBLIES_MAX), free: (0..ASSEMBLY_BUFFERS).rev().collect() }
    }
}

impl<K: Origin> Reassembly<K> {
    /// Takes a fragment that came by `key`, in a record that `met_congestion` or not, and says where its bytes go. `None` if
    /// it belongs nowhere.
    ///
    /// `lost` learns of every packet that is given up: this fragment's own, as one that contradicts another; the oldest
    /// one, to make room; all that have waited for too long.
    pub fn place(
        &mut self,
        key: K,
        fragment: &Fragment<'_>,
        met_congestion: bool,
        now: Instant,
        mut lost: impl FnMut(K),
    ) -> Option<Placed> {
        self.expire(now, &mut lost);
        let is_same = |other: &Assembly<K>| other.packet == fragment.packet && other.key == key;
        let position = self.assemblies.iter().rposition(is_same);
        let range = usize::from(fragment.offset)..usize::from(fragment.offset) + fragment.bytes.len();
        let (start, end) = (fragment.offset, u16::try_from(range.end).ok().filter(|end| *end <= INNER_MTU_MAX));
        let Some(end) = end.filter(|end| *end > start) else {
            position.into_iter().for_each(|position| _ = self.end(position));
            lost(key);
            return None;
        };
        let position = match position {
            Some(position) => position,
            None => self.begin(key, fragment, now, &mut lost)?,
        };
        let assembly = &mut self.assemblies[position];
        assembly.met_congestion |= met_congestion;
        let (is_taken, whole, buffer) = (assembly.take(fragment, start, end), assembly.whole(), assembly.buffer);
        if !is_taken {
            self.end(position);
            lost(key);
            return None;
        }
        if whole.is_some() {
            self.assemblies.remove(position);
        }
        Some(Placed { buffer, range, whole })
    }

    /// The caller does not need the buffer of a whole packet any more.
    pub fn give_back(&mut self, buffer: u16) {
        debug_assert!(!self.free.contains(&buffer) && self.assemblies.iter().all(|other| other.buffer != buffer));
        self.free.push(buffer);
    }

    /// A lane is known by another name from now on.
    pub fn rename(&mut self, from: K, to: K) {
        self.assemblies.iter_mut().filter(|assembly| assembly.key == from).for_each(|assembly| assembly.key = to);
    }

    /// How many packets can be begun before one that is not whole has to go.
    pub fn room(&self) -> usize {
        self.free.len().min(ASSEMBLIES_MAX - self.assemblies.len())
    }

    /// How many buffers nobody uses.
    pub fn free_buffers(&self) -> usize {
        self.free.len()
    }

    fn begin(&mut self, key: K, fragment: &Fragment<'_>, now: Instant, lost: &mut impl FnMut(K)) -> Option<usize> {
        if self.room() == 0 && !self.assemblies.is_empty() {
            // Who has a good part of the room makes room for himself: one peer cannot push out all others.
            let is_own = |other: &Assembly<K>| other.key.is_same_peer(key);
            let has_much = self.assemblies.iter().filter(|other| is_own(other)).count() >= ASSEMBLIES_MAX / 4;
            let oldest = if has_much { self.assemblies.iter().position(is_own) } else { None };
            let given_up = self.end(oldest.unwrap_or(0));
            lost(given_up);
        }
        let Some(buffer) = self.free.pop() else {
            lost(key);
            return None;
        };
        self.assemblies.push(Assembly {
            key,
            packet: fragment.packet,
            is_partial: fragment.is_partial,
            met_congestion: false,
            begun: now,
            buffer,
            total: None,
            arrived: 0,
            count: 0,
            fragments: [(0, 0); FRAGMENTS_PER_PACKET_MAX],
        });
        Some(self.assemblies.len() - 1)
    }

    /// Gives up a packet.
    fn end(&mut self, position: usize) -> K {
        let assembly = self.assemblies.remove(position);
        self.free.push(assembly.buffer);
        assembly.key
    }

    fn expire(&mut self, now: Instant, lost: &mut impl FnMut(K)) {
        let is_old = |assembly: &Assembly<K>| now.saturating_duration_since(assembly.begun) >= LIFETIME;
        let old = self.assemblies.iter().take_while(|assembly| is_old(assembly)).count();
        for assembly in self.assemblies.drain(..old) {
            self.free.push(assembly.buffer);
            lost(assembly.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fragment(packet: u32, offset: u16, bytes: &[u8], has_more: bool) -> Fragment<'_> {
        Fragment { packet, offset, is_partial: false, has_more, bytes }
    }

    /// What places it, and how many packets that lost.
    fn place(reassembly: &mut Reassembly<(u8, u8)>, fragment: Fragment<'_>, now: Instant) -> (Option<Placed>, usize) {
        let mut lost = 0;
        let placed = reassembly.place((1, 0), &fragment, false, now, |_| lost += 1);
        (placed, lost)
    }

    #[test]
    fn a_packet_is_whole_when_its_last_hole_is_filled_in_whatever_order() {
        let now = Instant::now();
        let fragments =
            [fragment(7, 0, &[1; 40], true), fragment(7, 40, &[2; 30], true), fragment(7, 70, &[3; 1], false)];
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut reassembly = Reassembly::default();
            for (nth, position) in order.into_iter().enumerate() {
                let placed = place(&mut reassembly, fragments[position], now);
                let whole = (nth == 2).then_some(Whole { bytes: 71, is_partial: false, met_congestion: false });
                let at = usize::from(fragments[position].offset);
                let range = at..at + fragments[position].bytes.len();
                assert_eq!(placed, (Some(Placed { buffer: 0, range, whole }), 0));
            }
            assert_eq!(reassembly.free_buffers(), usize::from(ASSEMBLY_BUFFERS) - 1);
            reassembly.give_back(0);
        }
    }

    #[test]
    fn a_fragment_that_contradicts_another_costs_the_packet_and_nothing_else() {
        let now = Instant::now();
        let last = fragment(7, 40, &[0; 40], false);
        let partial = Fragment { is_partial: true, ..fragment(7, 0, &[0; 40], true) };
        for contradiction in [
            last,
            partial,
            fragment(7, 0, &[0; 41], true),
            fragment(7, 79, &[0; 1], true),
            fragment(7, 80, &[0; 1], true),
            fragment(7, 80, &[0; 1], false),
            fragment(7, 10, &[0; 20], false),
            fragment(7, 9000, &[0; 1], false),
            fragment(7, u16::MAX, &[0; 2], true),
        ] {
            let mut reassembly = Reassembly::default();
            place(&mut reassembly, fragment(8, 0, &[0; 10], true), now);
            place(&mut reassembly, last, now);
            assert_eq!(place(&mut reassembly, contradiction, now), (None, 1), "{contradiction:?}");
            assert_eq!(reassembly.free_buffers(), usize::from(ASSEMBLY_BUFFERS) - 1);
            let (placed, lost) = place(&mut reassembly, fragment(8, 10, &[0; 10], false), now);
            assert!(placed.is_some_and(|placed| placed.whole.is_some()) && lost == 0);
        }
    }

    #[test]
    fn a_packet_has_met_congestion_if_any_of_its_fragments_has() {
        let now = Instant::now();
        for marked in [None, Some(0), Some(1), Some(2)] {
            let mut reassembly = Reassembly::default();
            let mut whole = None;
            for at in 0..3_u16 {
                let other = fragment(8, 40 * at, &[0; 40], true);
                assert!(reassembly.place((1, 0), &other, true, now, |_| ()).is_some());
                let fragment = fragment(7, 40 * at, &[0; 40], at < 2);
                whole = reassembly.place((1, 0), &fragment, marked == Some(at), now, |_| ()).unwrap().whole;
            }
            assert_eq!(whole.map(|whole| whole.met_congestion), Some(marked.is_some()));
        }
    }

    #[test]
    fn the_oldest_makes_room_and_the_old_expire() {
        let start = Instant::now();
        let mut reassembly = Reassembly::default();
        for packet in 0..ASSEMBLIES_MAX as u32 {
            assert_eq!(place(&mut reassembly, fragment(packet, 0, &[0; 40], true), start).1, 0);
        }
        assert_eq!(place(&mut reassembly, fragment(900, 0, &[0; 40], true), start + LIFETIME / 2).1, 1);
        // The first one is not known any more, so this begins it again and costs the second.
        assert_eq!(place(&mut reassembly, fragment(0, 40, &[0; 40], false), start + LIFETIME / 2).1, 1);
        let (placed, lost) = place(&mut reassembly, fragment(900, 40, &[0; 40], false), start + LIFETIME);
        assert_eq!(lost, ASSEMBLIES_MAX - 2, "all but the two that are younger");
        assert!(placed.is_some_and(|placed| placed.whole.is_some()));
    }

    #[test]
    fn with_no_buffer_left_a_packet_is_lost_until_one_comes_back() {
        let now = Instant::now();
        let mut reassembly = Reassembly::default();
        for packet in 0..u32::from(ASSEMBLY_BUFFERS) {
            assert!(place(&mut reassembly, fragment(packet, 0, &[0; 40], false), now).0.is_some());
        }
        assert_eq!(place(&mut reassembly, fragment(900, 0, &[0; 40], false), now), (None, 1));
        reassembly.give_back(3);
        let (placed, lost) = place(&mut reassembly, fragment(901, 0, &[0; 40], false), now);
        assert_eq!((placed.map(|placed| placed.buffer), lost), (Some(3), 0));
    }

    #[test]
    fn more_fragments_than_a_sender_makes_are_refused() {
        let now = Instant::now();
        let mut reassembly = Reassembly::default();
        for number in 0..FRAGMENTS_PER_PACKET_MAX as u16 {
            assert!(place(&mut reassembly, fragment(1, 2 * number, &[0], true), now).0.is_some());
        }
        assert_eq!(place(&mut reassembly, fragment(1, 2000, &[0], true), now), (None, 1));
        assert_eq!(reassembly.free_buffers(), usize::from(ASSEMBLY_BUFFERS));
    }

    #[test]
    fn a_peer_that_begins_packets_without_end_pushes_out_its_own() {
        let now = Instant::now();
        let mut reassembly = Reassembly::<(u8, u8)>::default();
        let mut lost = Vec::new();
        assert!(reassembly.place((2, 0), &fragment(0, 0, &[0; 40], true), false, now, |key| lost.push(key)).is_some());
        for packet in 0..1000 {
            let lane = (packet % 7) as u8;
            reassembly.place((1, lane), &fragment(packet, 0, &[0; 40], true), false, now, |(peer, _)| {
                assert_eq!(peer, 1);
            });
        }
        let last = fragment(0, 40, &[0; 4], false);
        assert!(reassembly.place((2, 0), &last, false, now, |key| lost.push(key)).unwrap().whole.is_some());
        // Room for another's is made by who has most of it.
        reassembly.place((3, 0), &fragment(0, 0, &[0; 40], true), false, now, |_| ()).unwrap();
        reassembly.place((4, 0), &fragment(0, 0, &[0; 40], true), false, now, |key| lost.push(key)).unwrap();
        assert_eq!(lost.iter().map(|(peer, _)| *peer).collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn a_packet_that_was_begun_under_a_lanes_old_name_ends_under_its_new_one() {
        let now = Instant::now();
        let mut reassembly = Reassembly::<(u8, u8)>::default();
        reassembly.place((1, 4), &fragment(7, 0, &[0; 40], true), false, now, |_| ()).unwrap();
        reassembly.rename((1, 4), (1, 5));
        let placed = reassembly.place((1, 5), &fragment(7, 40, &[0; 4], false), false, now, |_| ());
        assert_eq!(placed.unwrap().whole.map(|whole| whole.bytes), Some(44));
    }
}
