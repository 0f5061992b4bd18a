//! Cutting packets and putting them together again: whatever becomes of the fragments, what comes out is what went in,
//! or nothing.
#![allow(clippy::unwrap_used, reason = "the inputs are this file's own")]

use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use ringlane_shared::limits::{FRAGMENTS_PER_PACKET_MAX, INNER_MTU_MAX, RECORD_BYTES_MIN, RECORD_OVERHEAD_BYTES};
use ringlane_shared::wire::fragment::{Fragment, FragmentHeader, Uncut};
use ringlane_shared::wire::frame::Frames;

use crate::fragment::Beside;

#[path = "../fuzz/src/fragment.rs"]
#[allow(unreachable_pub, dead_code, reason = "shared with the fuzz target")]
mod fragment;

/// A packet of a sender whose bytes tell it from the others.
fn packet(number: u32, bytes: usize) -> Vec<u8> {
    (0..bytes as u32).map(|at| (number * 31 + at / 7 + at) as u8).collect()
}

/// The frames of a packet, the first of which has `first` bytes of a record left to it, and the others `room`.
fn cut(number: u32, packet: &[u8], is_partial: bool, first: usize, room: usize) -> Vec<Vec<u8>> {
    let (mut frames, mut at, mut left) = (Vec::new(), 0, first);
    while at < packet.len() {
        let uncut = Uncut { packet: number, is_partial, offset: at as u16, bytes: packet.len() - at };
        if let Some(header) = FragmentHeader::fit(uncut, left) {
            frames.push([header.as_bytes(), &packet[at..][..header.packet_bytes]].concat());
            at += header.packet_bytes;
        }
        left = room;
    }
    frames
}

#[derive(Clone, Copy, Debug)]
enum Fate {
    Arrives,
    IsLost,
    ComesTwice,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn what_comes_out_is_the_very_packet_that_went_in_or_nothing(
        sizes in vec((prop_oneof![1..3000usize, 1..=usize::from(INNER_MTU_MAX)], any::<bool>(), 0..1500usize), 1..8),
        room in (RECORD_BYTES_MIN - RECORD_OVERHEAD_BYTES)..3000,
        fates in vec(prop_oneof![8 => Just(Fate::Arrives), 1 => Just(Fate::IsLost), 1 => Just(Fate::ComesTwice)], 1..150),
        order in vec(any::<prop::sample::Index>(), 0..40),
        steps in vec(0..60u64, 1..50),
    ) {
        let sent: Vec<_> = sizes.iter().zip(0..).map(|((bytes, partial, _), number)| (packet(number, *bytes), *partial)).collect();
        let mut under_way = Vec::new();
        for ((number, (packet, is_partial)), (.., first)) in (0..).zip(&sent).zip(&sizes) {
            let frames = cut(number, packet, *is_partial, *first, room);
            prop_assert!(frames.len() <= FRAGMENTS_PER_PACKET_MAX);
            under_way.extend(frames.into_iter().map(|frame| (number, frame)));
        }
        let mut intact = vec![true; sent.len()];
        let mut arriving = Vec::new();
        for ((number, frame), fate) in under_way.into_iter().zip(fates.iter().cycle()) {
            intact[number as usize] &= matches!(fate, Fate::Arrives);
            let times = match fate { Fate::IsLost => 0, Fate::Arrives => 1, Fate::ComesTwice => 2 };
            arriving.extend(std::iter::repeat_n((number, frame), times));
        }
        let count = arriving.len();
        for (at, index) in order.iter().enumerate().take(count) {
            arriving.swap(at, index.index(count));
        }

        let (start, mut elapsed) = (Instant::now(), Duration::ZERO);
        let mut beside = Beside::default();
        let mut whole = Vec::new();
        for ((number, frame), step) in arriving.iter().zip(steps.iter().cycle()) {
            elapsed += Duration::from_millis(*step / 20);
            let read = Frames::new(frame).next().unwrap().unwrap();
            let fragment = Fragment::of(&read, &frame[read.payload.clone()]).unwrap();
            if let (Some(packet), _) = beside.take(1, &fragment, start + elapsed) {
                prop_assert_eq!(&packet, &sent[*number as usize]);
                whole.push(*number);
            }
        }
        // Nothing has expired in so short a time, so each packet that lost and doubled nothing is there once.
        prop_assert!(elapsed < Duration::from_millis(900));
        for (number, is_intact) in (0..).zip(&intact) {
            let times = whole.iter().filter(|other| **other == number).count();
            prop_assert!(if *is_intact { times == 1 } else { times <= 2 }, "packet {} came {} times", number, times);
        }
    }

    #[test]
    fn any_fragments_at_all_are_placed_as_the_twin_says(
        fragments in vec((0..3u8, 0..90u32, 0..40u16, 1..40usize, any::<[bool; 2]>(), 0..40u64), 1..300),
        far in vec((8950..=u16::MAX, 1..200usize), 0..10),
    ) {
        let bytes = [7; 200];
        let (mut beside, mut now) = (Beside::default(), Instant::now());
        for &(lane, packet, offset, length, [is_partial, has_more], step) in &fragments {
            now += Duration::from_millis(step);
            // Most packets have one fragment, so that there are many; some have more than there may be.
            let (offset, length) = if packet < 5 { (offset * 2, 1 + length % 2) } else { (offset, length) };
            let fragment = Fragment { packet, offset, is_partial: is_partial && packet % 7 == 0, has_more, bytes: &bytes[..length] };
            beside.take(lane, &fragment, now);
        }
        for &(offset, length) in &far {
            let fragment = Fragment { packet: 1, offset, is_partial: false, has_more: true, bytes: &bytes[..length] };
            beside.take(0, &fragment, now);
        }
    }
}
