//! Fragments as a broken or hostile peer may send them, against a twin that keeps every byte by itself.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ringlane_shared::limits::{ASSEMBLIES_MAX, ASSEMBLY_MS_MAX, FRAGMENTS_PER_PACKET_MAX, INNER_MTU_MAX};
use ringlane_shared::packet::reassembly::{Placed, Reassembly};
use ringlane_shared::wire::fragment::Fragment;
use ringlane_shared::wire::frame::Frames;

/// A packet that is whole: its bytes, and whether its checksum is partial.
pub type Packet = (Vec<u8>, bool);

/// One packet of the twin's.
struct Slow {
    lane: u8,
    packet: u32,
    is_partial: bool,
    begun: Instant,
    bytes: BTreeMap<usize, u8>,
    fragments: usize,
    total: Option<usize>,
}

/// The state machine with memory of its own, and its twin beside it.
#[derive(Default)]
pub struct Beside {
    reassembly: Reassembly<((), u8)>,
    memory: Vec<Vec<u8>>,
    slow: Vec<Slow>,
}

impl Beside {
    /// Gives a fragment to both, which must agree. Returns the packet that is whole with it, and how many were lost.
    pub fn take(&mut self, lane: u8, fragment: &Fragment<'_>, now: Instant) -> (Option<Packet>, usize) {
        let mut lost = Vec::new();
        let placed = self.reassembly.place(((), lane), fragment, false, now, |((), lane)| lost.push(lane));
        let whole = placed.and_then(|placed| self.write(fragment, placed));
        let expected = self.take_slowly(lane, fragment, now);
        assert_eq!((&whole, &lost), (&expected.0, &expected.1), "{fragment:?}");
        (whole, lost.len())
    }

    fn write(&mut self, fragment: &Fragment<'_>, Placed { buffer, range, whole }: Placed) -> Option<Packet> {
        assert!(range.end <= usize::from(INNER_MTU_MAX) && range.len() == fragment.bytes.len());
        let buffer = usize::from(buffer);
        if self.memory.len() <= buffer {
            self.memory.resize(buffer + 1, Vec::new());
        }
        let memory = &mut self.memory[buffer];
        if memory.len() < range.end {
            memory.resize(range.end, 0xee);
        }
        memory[range].copy_from_slice(fragment.bytes);
        let whole = whole?;
        let packet = memory[..whole.bytes].to_vec();
        self.reassembly.give_back(buffer as u16);
        Some((packet, whole.is_partial))
    }

    fn take_slowly(&mut self, lane: u8, fragment: &Fragment<'_>, now: Instant) -> (Option<Packet>, Vec<u8>) {
        let mut lost = Vec::new();
        let lifetime = Duration::from_millis(ASSEMBLY_MS_MAX);
        self.slow.retain(|slow| {
            let is_young = now < slow.begun + lifetime;
            if !is_young {
                lost.push(slow.lane);
            }
            is_young
        });
        let start = usize::from(fragment.offset);
        let end = start + fragment.bytes.len();
        let at = self.slow.iter().position(|slow| (slow.lane, slow.packet) == (lane, fragment.packet));
        if end > usize::from(INNER_MTU_MAX) {
            at.into_iter().for_each(|at| drop(self.slow.remove(at)));
            lost.push(lane);
            return (None, lost);
        }
        let at = at.unwrap_or_else(|| {
            if self.slow.len() == ASSEMBLIES_MAX {
                lost.push(self.slow.remove(0).lane);
            }
            let (packet, is_partial) = (fragment.packet, fragment.is_partial);
            let bytes = BTreeMap::new();
            self.slow.push(Slow { lane, packet, is_partial, begun: now, bytes, fragments: 0, total: None });
            self.slow.len() - 1
        });
        let slow = &mut self.slow[at];
        slow.fragments += 1;
        let mut contradicts = slow.fragments > FRAGMENTS_PER_PACKET_MAX || slow.is_partial != fragment.is_partial;
        if !fragment.has_more {
            contradicts |= slow.total.is_some();
            slow.total = Some(end);
        } else {
            contradicts |= slow.total == Some(end);
        }
        for (at, byte) in (start..).zip(fragment.bytes) {
            contradicts |= slow.bytes.insert(at, *byte).is_some();
        }
        let last = slow.bytes.last_key_value().map_or(0, |(at, _)| at + 1);
        contradicts |= slow.total.is_some_and(|total| last > total);
        if contradicts {
            lost.push(self.slow.remove(at).lane);
            return (None, lost);
        }
        if slow.total != Some(slow.bytes.len()) {
            return (None, lost);
        }
        let slow = self.slow.remove(at);
        (Some((slow.bytes.into_values().collect(), slow.is_partial)), lost)
    }
}

/// Records on a few lanes, each behind a byte for lane and time and a 16-bit length. Whether any packet became whole.
pub fn fragment(input: &[u8]) -> bool {
    let mut beside = Beside::default();
    let (mut now, mut any) = (Instant::now(), false);
    let mut input = input;
    while let Some((&[lane, high, low], rest)) = input.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes([high, low])).min(rest.len());
        let (record, rest) = rest.split_at(length);
        input = rest;
        now += Duration::from_millis(u64::from(lane >> 4) * 100);
        for frame in Frames::new(record).map_while(Result::ok) {
            let Some(fragment) = Fragment::of(&frame, &record[frame.payload.clone()]) else { continue };
            any |= beside.take(lane & 3, &fragment, now).0.is_some();
        }
    }
    any
}
