//! Askers, and relays that come, go and refuse.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ringlane_shared::id::PeerIndex;
use ringlane_shared::limits::RELAYS_PER_LINK_MAX;
use ringlane_shared::wire::offer::LaneSet;
use ringlane_shared::wire::relay::{AllotmentId, RelayRefusal};

use super::super::asker::{Asker, AskerStep, LinkView};
use super::{B, Random};

const R: PeerIndex = PeerIndex(11);
const S: PeerIndex = PeerIndex(12);
const T: PeerIndex = PeerIndex(13);
const LIFETIME: Duration = Duration::from_secs(60);
const BOTH: LaneSet = LaneSet(0b11);
const NONE: LaneSet = LaneSet(0);

fn view(missing: LaneSet, silent: LaneSet) -> LinkView {
    LinkView {
        peer: B,
        is_client: true,
        all: BOTH,
        missing,
        silent,
        relayed: BTreeMap::new(),
        passages: BTreeMap::new(),
    }
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn steps(asker: &mut Asker) -> Vec<AskerStep> {
    std::iter::from_fn(|| asker.poll_step()).collect()
}

fn looks(asker: &mut Asker, view: &LinkView, relays: &[PeerIndex], now: Instant) -> Vec<AskerStep> {
    asker.look(std::slice::from_ref(view), relays, now);
    steps(asker)
}

#[test]
fn lanes_that_do_not_come_are_relayed_after_a_moment_and_the_client_asks_first() {
    let start = Instant::now();
    for (is_client, waits) in [(true, ms(800)), (false, ms(3800))] {
        let mut asker = Asker::default();
        let view = LinkView { is_client, ..view(BOTH, NONE) };
        assert!(looks(&mut asker, &view, &[R, S], start).is_empty());
        assert_eq!(asker.poll_timeout(), Some(start + waits));
        assert!(looks(&mut asker, &view, &[R, S], start + waits - ms(1)).is_empty());
        let asked = looks(&mut asker, &view, &[R, S], start + waits);
        assert_eq!(asked, [AskerStep::Allocate { relay: R, peer: B, lanes: BOTH }]);
        assert!(looks(&mut asker, &view, &[R, S], start + waits + ms(500)).is_empty(), "one at a time");
    }
}

#[test]
fn a_direct_path_that_comes_in_time_asks_nobody() {
    let (mut asker, start) = (Asker::default(), Instant::now());
    looks(&mut asker, &view(BOTH, NONE), &[R], start);
    assert!(looks(&mut asker, &view(NONE, NONE), &[R], start + ms(500)).is_empty());
    assert!(looks(&mut asker, &view(BOTH, NONE), &[R], start + ms(900)).is_empty(), "it begins anew");
}

#[test]
fn a_direct_path_that_is_lost_is_replaced_at_once() {
    let (mut asker, start) = (Asker::default(), Instant::now());
    let asked = looks(&mut asker, &view(NONE, BOTH), &[R], start);
    assert_eq!(asked, [AskerStep::Allocate { relay: R, peer: B, lanes: BOTH }]);
}

#[test]
fn a_relay_that_refuses_is_followed_by_the_next_and_asked_ever_more_rarely() {
    let (mut asker, start) = (Asker::default(), Instant::now());
    let (mut now, mut asked) = (start, BTreeMap::<PeerIndex, Vec<Duration>>::new());
    // R has no use for us at all, S is busy.
    while now < start + Duration::from_secs(600) {
        for step in looks(&mut asker, &view(NONE, BOTH), &[R, S], now) {
            let AskerStep::Allocate { relay, .. } = step else { panic!("{step:?}") };
            asked.entry(relay).or_default().push(now - start);
            let reason = if relay == R { RelayRefusal::NotServing } else { RelayRefusal::Busy };
            asker.handle_refused(B, relay, Some(reason), now);
        }
        now += ms(100);
    }
    assert_eq!((asked[&R][0], asked[&S][0]), (ms(0), ms(100)));
    assert!(asked[&S][1] <= ms(2200) && asked[&S].len() <= 14, "{:?}", asked[&S]);
    assert!(asked[&R].len() <= 11, "{:?}", asked[&R]);
}

#[test]
fn the_other_end_is_no_relay_for_lanes_to_itself() {
    let (mut asker, start) = (Asker::default(), Instant::now());
    assert!(looks(&mut asker, &view(NONE, BOTH), &[B], start).is_empty());
}

#[test]
fn when_a_relay_dies_another_is_asked_at_once_and_the_first_is_let_go() {
    let (mut asker, start) = (Asker::default(), Instant::now());
    looks(&mut asker, &view(NONE, BOTH), &[R, S, T], start);
    asker.handle_allotted(B, R, AllotmentId(1), LIFETIME, start);
    let by = |relay, silent| LinkView {
        relayed: BTreeMap::from([(relay, BOTH)]),
        passages: BTreeMap::from([(relay, BOTH)]),
        ..view(NONE, silent)
    };
    let now = start + ms(5000);
    assert!(looks(&mut asker, &by(R, NONE), &[R, S, T], now).is_empty());
    let asked = looks(&mut asker, &by(R, BOTH), &[R, S, T], now);
    assert_eq!(asked, [AskerStep::Allocate { relay: S, peer: B, lanes: BOTH }]);
    asker.handle_allotted(B, S, AllotmentId(2), LIFETIME, now);
    let mut moved = by(S, NONE);
    moved.passages.insert(R, NONE);
    let left = looks(&mut asker, &moved, &[R, S, T], now + ms(300));
    assert_eq!(left, [AskerStep::Release { relay: R, peer: B, id: AllotmentId(1) }]);
    // One that we are not connected to any more need not have fallen silent yet.
    let asked = looks(&mut asker, &by(S, NONE), &[R, T], now + ms(400));
    assert_eq!(asked, [AskerStep::Allocate { relay: T, peer: B, lanes: BOTH }]);
}

#[test]
fn what_is_held_is_renewed_while_it_is_used_and_given_back_when_it_is_not() {
    let (mut asker, start) = (Asker::default(), Instant::now());
    looks(&mut asker, &view(NONE, BOTH), &[R], start);
    asker.handle_allotted(B, R, AllotmentId(7), LIFETIME, start);
    let passages = BTreeMap::from([(R, BOTH)]);
    let used = LinkView { relayed: passages.clone(), passages: passages.clone(), ..view(NONE, NONE) };
    let (mut now, mut renewals) = (start, 0);
    while now < start + Duration::from_secs(300) {
        now += ms(250);
        for step in looks(&mut asker, &used, &[R], now) {
            assert_eq!(step, AskerStep::Renew { relay: R, peer: B, id: AllotmentId(7) });
            renewals += 1;
            asker.handle_renewed(B, R, LIFETIME, now);
        }
    }
    assert!((13..=16).contains(&renewals), "{renewals}");
    let direct = LinkView { passages, ..view(NONE, NONE) };
    let began = now;
    let released = loop {
        now += ms(250);
        let steps = looks(&mut asker, &direct, &[R], now);
        if let Some(AskerStep::Release { id, .. }) = steps.last() {
            break *id;
        }
        assert!(now < began + Duration::from_secs(60));
    };
    assert_eq!(released, AllotmentId(7));
    assert!(now - began >= Duration::from_secs(29), "{:?}", now - began);
    assert!(asker.is_idle());
}

#[test]
fn what_is_not_renewed_is_over_when_its_time_is() {
    let (mut asker, start) = (Asker::default(), Instant::now());
    asker.handle_allotted(B, R, AllotmentId(7), LIFETIME, start);
    // The link is not connected any more: nobody looks after it.
    asker.look(&[], &[R], start + LIFETIME - ms(1));
    assert!(steps(&mut asker).is_empty());
    asker.look(&[], &[R], start + LIFETIME);
    assert_eq!(steps(&mut asker), [AskerStep::Release { relay: R, peer: B, id: AllotmentId(7) }]);
    assert_eq!(asker.poll_timeout(), None);
}

/// Relays and paths come and go at random.
fn run(seed: u64) {
    let mut random = Random::of(seed);
    let (mut asker, start) = (Asker::default(), Instant::now());
    let all = [R, S, T];
    let mut is_up = [true; 3];
    let mut direct = false;
    let mut held = BTreeMap::<PeerIndex, AllotmentId>::new();
    let mut question: Option<(PeerIndex, Instant)> = None;
    let (mut used, mut next_id, mut asked) = (None::<PeerIndex>, 0, 0);
    let mut now = start;
    let calm_from = start + Duration::from_secs(300);
    let end = calm_from + Duration::from_secs(200);
    let mut lacking_since = None;
    while now < end {
        now += ms(100);
        if now < calm_from && random.below(100) == 0 {
            match random.below(4) {
                0 => direct = !direct,
                relay => is_up[relay as usize - 1] = !is_up[relay as usize - 1],
            }
        }
        if now >= calm_from {
            (direct, is_up) = (false, [true; 3]);
        }
        let works = |relay: PeerIndex| is_up[usize::from(relay.0 - R.0)];
        if let Some((relay, since)) = question
            && now >= since + ms(100 + random.below(400))
        {
            question = None;
            if works(relay) && random.below(8) > 0 {
                next_id += 1;
                held.insert(relay, AllotmentId(next_id));
                assert!(asker.has_room(B, relay), "seed {seed}");
                asker.handle_allotted(B, relay, AllotmentId(next_id), LIFETIME, now);
            } else {
                asker.handle_refused(B, relay, Some(RelayRefusal::Busy), now);
            }
        }
        used = if direct { None } else { used.filter(|relay| held.contains_key(relay)) };
        // A lane that is silent takes any passage that works.
        if !direct && used.is_none_or(|relay| !works(relay)) {
            used = held.keys().copied().find(|relay| works(*relay)).or(used);
        }
        let carries = direct || used.is_some_and(works);
        let passages = held.keys().map(|relay| (*relay, if works(*relay) { BOTH } else { NONE })).collect();
        let relayed = used.into_iter().map(|relay| (relay, BOTH)).collect();
        let silent = if carries { NONE } else { BOTH };
        let relays: Vec<_> = all.into_iter().filter(|relay| works(*relay)).collect();
        asker.look(&[LinkView { relayed, passages, ..view(NONE, silent) }], &relays, now);
        for step in steps(&mut asker) {
            match step {
                AskerStep::Allocate { relay, lanes, .. } => {
                    assert!(question.is_none(), "seed {seed}: one question at a time");
                    assert!(!held.contains_key(&relay) && !lanes.is_empty(), "seed {seed}");
                    question = Some((relay, now));
                    asked += 1;
                }
                AskerStep::Renew { relay, id, .. } => {
                    assert_eq!(held.get(&relay), Some(&id), "seed {seed}");
                    if works(relay) {
                        asker.handle_renewed(B, relay, LIFETIME, now);
                    } else {
                        asker.handle_gone(B, relay, id);
                        assert!(matches!(steps(&mut asker)[..], [AskerStep::Release { .. }]), "seed {seed}");
                        held.remove(&relay);
                    }
                }
                AskerStep::Release { relay, id, .. } => {
                    assert_eq!(held.remove(&relay), Some(id), "seed {seed}");
                }
            }
        }
        assert!(held.len() <= RELAYS_PER_LINK_MAX, "seed {seed}");
        if carries || now < calm_from {
            lacking_since = None;
        } else {
            let since = *lacking_since.get_or_insert(now);
            assert!(now - since < Duration::from_secs(130), "seed {seed}: nobody is asked");
        }
    }
    assert!(used.is_some_and(|relay| held.contains_key(&relay)), "seed {seed}: relayed in the end");
    assert!(asked < 400, "seed {seed}: {asked}");
}

#[test]
fn whatever_relays_do_one_is_found_and_none_is_pestered() {
    for seed in 1..=200 {
        run(seed);
    }
}

#[test]
fn where_one_lane_is_in_need_all_are_asked_for() {
    let (mut asker, start) = (Asker::default(), Instant::now());
    let asked = looks(&mut asker, &view(NONE, LaneSet(0b10)), &[R], start);
    assert_eq!(asked, [AskerStep::Allocate { relay: R, peer: B, lanes: BOTH }]);
}
