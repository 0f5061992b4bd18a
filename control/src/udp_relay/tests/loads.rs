//! Relays that tell their loads, late, never or falsely.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ringlane_shared::id::PeerIndex;
use ringlane_shared::limits::{ALLOTMENTS_PER_PEER_MAX, RELAYS_ASKED_MAX};
use ringlane_shared::path::relay::{Load, RelayLoad, RelayView, ranked};
use ringlane_shared::wire::offer::LaneSet;

use super::super::asker::{Asker, AskerStep, LinkView};
use super::super::book::Book;
use super::super::loads::{Loads, Meter};
use super::Random;

const R: PeerIndex = PeerIndex(11);
const S: PeerIndex = PeerIndex(12);

fn load(lanes: u8, circuits: u8) -> RelayLoad {
    RelayLoad { lanes: Load(lanes), circuits: Load(circuits) }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn relays_are_asked_at_once_and_every_half_minute_and_what_is_not_told_again_is_forgotten() {
    let (mut loads, start) = (Loads::default(), Instant::now());
    assert_eq!(loads.look(&[R, S], start), [R, S]);
    assert!(loads.look(&[R, S], start + seconds(1)).is_empty());
    loads.handle_answer(R, Some(load(7, 9)), start + seconds(1));
    assert_eq!((loads.of(R), loads.of(S)), (Some(load(7, 9)), None));
    assert_eq!(loads.poll_timeout(), Some(start + seconds(30)));
    assert_eq!(loads.look(&[R, S], start + seconds(31)), [R, S]);
    loads.handle_answer(R, None, start + seconds(32));
    assert_eq!(loads.of(R), Some(load(7, 9)));
    loads.look(&[R, S], start + seconds(61));
    assert_eq!(loads.of(R), None);
    loads.handle_answer(PeerIndex(99), Some(load(1, 1)), start);
    assert_eq!(loads.of(PeerIndex(99)), None, "nobody has asked it");
    loads.look(&[S], start + seconds(62));
    assert!(loads.look(&[R, S], start + seconds(62)).contains(&R), "it is new again");
}

#[test]
fn one_that_is_full_or_silent_is_asked_ever_more_rarely_and_stays_full_until_it_says_otherwise() {
    for answer in [Some(load(255, 0)), Some(load(0, 255)), None] {
        let (mut loads, mut now) = (Loads::default(), Instant::now());
        let mut pauses = Vec::new();
        for _ in 0..6 {
            assert_eq!(loads.look(&[R], now), [R]);
            loads.handle_answer(R, answer, now);
            let next = loads.poll_timeout().unwrap();
            assert!(loads.look(&[R], next - Duration::from_millis(1)).is_empty());
            assert_eq!(loads.of(R), answer);
            pauses.push((next - now).as_secs());
            now = next;
        }
        assert_eq!(pauses, [30, 60, 120, 240, 240, 240]);
        loads.look(&[R], now);
        loads.handle_answer(R, Some(load(3, 0)), now);
        assert_eq!(loads.poll_timeout(), Some(now + seconds(30)));
    }
}

#[test]
fn who_was_started_again_gets_what_it_had_of_a_relay_that_it_has_filled_itself() {
    let (start, lane) = (Instant::now(), LaneSet(1));
    let mut book = Book::new(8100, 1, start);
    let mut random = Random::of(1);
    let mut draw = |bytes: &mut [u8]| bytes.iter_mut().for_each(|byte| *byte = random.next() as u8);
    let hub = PeerIndex(0);
    let others = (1..=ALLOTMENTS_PER_PEER_MAX).map(|other| PeerIndex(other as u16 + 100));
    for other in others.clone() {
        book.allocate([hub, other], lane, start, &mut draw).unwrap();
    }
    assert_eq!(book.load(Some(hub)), Load::FULL);
    let views = others.map(|peer| LinkView {
        peer,
        is_client: true,
        all: lane,
        missing: LaneSet(0),
        silent: lane,
        relayed: BTreeMap::new(),
        passages: BTreeMap::new(),
    });
    let views: Vec<LinkView> = views.collect();
    let told = RelayView { load: Some(book.load(Some(hub))), ..RelayView::default() };
    let mut asker = Asker::default();
    asker.look(&views, &ranked([(R, told)]), start);
    let mut granted = 0;
    while let Some(step) = asker.poll_step() {
        let AskerStep::Allocate { peer, lanes, .. } = step else { panic!("{step:?}") };
        granted += usize::from(book.allocate([hub, peer], lanes, start, &mut draw).is_ok());
    }
    assert_eq!(granted, ALLOTMENTS_PER_PEER_MAX);
}

#[test]
fn whatever_relays_do_few_are_asked_and_not_often_and_only_what_they_said_counts() {
    for seed in 0..200 {
        let mut random = Random::of(seed);
        let (mut loads, start) = (Loads::default(), Instant::now());
        let mut now = start;
        // The twin: the newest answer of each, and when.
        let mut said: BTreeMap<PeerIndex, (RelayLoad, Instant)> = BTreeMap::new();
        let mut asked_at: BTreeMap<PeerIndex, Instant> = BTreeMap::new();
        let mut before: Vec<PeerIndex> = Vec::new();
        for _ in 0..300 {
            now += Duration::from_millis(random.below(20_000));
            let count = random.below(14);
            let relays: Vec<PeerIndex> = (0..count).map(|place| PeerIndex(place as u16)).collect();
            let asked = loads.look(&relays, now);
            let known = &relays[..relays.len().min(RELAYS_ASKED_MAX)];
            said.retain(|relay, _| known.contains(relay));
            for relay in asked {
                assert!(known.contains(&relay), "seed {seed}");
                let is_new = !before.contains(&relay);
                let last = asked_at.insert(relay, now);
                assert!(is_new || last.is_none_or(|last| last + seconds(30) <= now), "seed {seed}: too often");
                let told = (random.below(3) > 0).then(|| load(random.next() as u8, random.next() as u8));
                if let Some(told) = told {
                    said.insert(relay, (told, now));
                }
                loads.handle_answer(relay, told, now);
            }
            before = known.to_vec();
            for relay in (0..14).map(PeerIndex) {
                let (of, twin) = (loads.of(relay), said.get(&relay));
                assert!(of.is_none() || of == twin.map(|(load, _)| *load), "seed {seed}: {relay:?}");
                let is_fresh = twin.is_some_and(|(_, at)| now < *at + seconds(60));
                assert!(!is_fresh || of.is_some(), "seed {seed}: {relay:?} is forgotten too soon");
                let is_old = twin.is_none_or(|(_, at)| *at + seconds(240 + 30) <= now);
                assert!(!is_old || of.is_none(), "seed {seed}: {relay:?} is remembered for too long");
            }
        }
    }
}

#[test]
fn a_rate_is_that_of_the_last_seconds() {
    let (mut meter, start) = (Meter::default(), Instant::now());
    assert_eq!(meter.poll_timeout(true), None);
    meter.sample(1_000_000, start);
    assert_eq!((meter.per_second(), meter.poll_timeout(false)), (0, None), "what was before is of no interest");
    assert_eq!(meter.poll_timeout(true), Some(start + seconds(4)));
    meter.sample(9_000_000, start + seconds(1));
    assert_eq!(meter.per_second(), 0, "too soon");
    meter.sample(5_000_000, start + seconds(4));
    assert_eq!(meter.per_second(), 500_000);
    meter.sample(9_000_000, start + seconds(8));
    assert_eq!(meter.per_second(), 750_000);
    assert_eq!(meter.poll_timeout(false), Some(start + seconds(12)));
    meter.sample(9_000_000, start + seconds(12));
    assert_eq!(meter.per_second(), 375_000);
    meter.sample(9_000_000, start + seconds(3000));
    assert_eq!((meter.per_second(), meter.poll_timeout(false)), (0, None));
    meter.sample(0, start + seconds(3004));
    assert_eq!(meter.per_second(), 0, "it never counts back");
}
