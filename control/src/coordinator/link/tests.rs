//! The rules of one link, one by one.

use std::collections::VecDeque;

use ringlane_shared::id::{LaneId, PeerId};
use ringlane_shared::wire::offer::{Extensions, Features, OfferSecret};

use super::*;
use crate::coordinator::Us;

const PEER: PeerIndex = PeerIndex(0);
const WORKERS: u8 = 3;

/// A link, and what it wants done; `random` is what all its random bytes are.
struct Fixture {
    link: Link,
    us: Us,
    random: u8,
    asks: u64,
    intents: VecDeque<Intent<()>>,
    now: Instant,
}

impl Fixture {
    fn new(role: Role) -> Self {
        let us = Us {
            id: PeerId::random(),
            instance: [0; 16],
            lane_ids_from: 7,
            features: Features::AES_128_GCM,
            workers: WORKERS,
            port: 8100,
        };
        let (link, now) = (Link::new(PEER, role), Instant::now());
        Self { link, us, random: 0, asks: 0, intents: VecDeque::new(), now }
    }

    /// One that has asked the peer's first instance and set up all lanes but these.
    fn client_without(missing: &[u8]) -> Self {
        let mut fixture = Self::new(Role::Client);
        fixture.act(|link, now, context| link.handle_connected(now, context));
        fixture.answer(1, Ok(offer(1)));
        for index in 0..WORKERS {
            if missing.contains(&index) {
                fixture.fail(index);
            } else {
                fixture.up(index);
            }
        }
        fixture.intents.clear();
        fixture
    }

    fn act<R>(&mut self, act: impl FnOnce(&mut Link, Instant, &mut Context<'_, ()>) -> R) -> R {
        let value = self.random;
        let mut random = |bytes: &mut [u8]| bytes.fill(value);
        let Self { link, us, asks, intents, now, .. } = self;
        act(
            link,
            *now,
            &mut Context {
                us,
                candidates: &[],
                extensions: &Extensions::default(),
                random: &mut random,
                asks,
                intents,
            },
        )
    }

    fn answer(&mut self, ask: u64, answer: Result<Offer, AskFailure>) {
        let answer = answer.map(|offer| Answer::Offer(Box::new(offer)));
        self.act(|link, now, context| link.handle_answer(AskId(ask), answer, now, context));
    }

    fn up(&mut self, index: u8) {
        let address = SocketAddr::from(([192, 0, 2, 1], 8100));
        let lane = LaneUp {
            serial: LaneSerial(u64::from(index)),
            worker: WorkerId(index),
            local: address,
            remote: address,
            since: self.now,
            handshake_at: SystemTime::UNIX_EPOCH,
            gauges: Arc::default(),
        };
        self.act(|link, _, context| link.handle_lane_up(lane_index(index), lane, context));
    }

    fn fail(&mut self, index: u8) {
        self.act(|link, now, context| {
            link.handle_lane_failed(lane_index(index), format!("lane {index} is blocked"), now, context)
        });
    }

    fn end(&mut self, index: u8) {
        let serial = LaneSerial(u64::from(index));
        self.act(|link, now, context| link.handle_lane_ended(lane_index(index), serial, now, context));
    }

    /// Lets the link's time come. Returns how long that took.
    fn time_out(&mut self) -> Duration {
        let at = self.link.poll_timeout().expect("the link waits for something");
        let waited = at - self.now;
        self.now = at;
        self.act(|link, now, context| link.handle_timeout(now, context));
        waited
    }

    /// What the link wants done, in words.
    fn wants(&mut self) -> Vec<String> {
        let word = |intent| match intent {
            Intent::Ask { offer, .. } => format!("ask for {:#b}", offer.lanes.0),
            Intent::Answer { answer: Answer::Offer(offer), .. } => format!("offer {:#b}", offer.lanes.0),
            Intent::Answer { answer: Answer::Refused(_), .. } => "refuse".to_owned(),
            Intent::SetUp { lanes, .. } => format!("set up {:#b}", lanes.0),
            Intent::Scout { lanes, .. } => format!("scout {:#b}", lanes.0),
            Intent::CancelSetUp(_) => "cancel".to_owned(),
            Intent::Retire { serial, .. } => format!("retire {}", serial.0),
            Intent::Publish(_) => "publish".to_owned(),
        };
        self.intents.drain(..).map(word).collect()
    }
}

fn lane_index(index: u8) -> LaneIndex {
    LaneIndex::new(index).unwrap()
}

/// The peer's offer for all lanes, in one of its lives.
fn offer(instance: u8) -> Offer {
    Offer {
        instance: [instance; 16],
        secret: OfferSecret::new([instance; 32]),
        features: Features::AES_128_GCM,
        workers: WORKERS,
        port: 8100,
        lane_id_base: LaneId::new(0).unwrap(),
        lanes: LaneSet(u64::MAX),
        candidates: Vec::new(),
        extensions: Default::default(),
    }
}

const NO_ANSWER: Result<Offer, AskFailure> = Err(AskFailure::NotConnected);

#[test]
fn a_client_asks_for_everything_then_for_what_is_missing_and_then_for_nothing() {
    let mut client = Fixture::new(Role::Client);
    client.act(|link, now, context| link.handle_connected(now, context));
    assert_eq!(client.wants(), [format!("ask for {:#b}", u64::MAX)]);
    client.answer(1, Ok(offer(1)));
    assert_eq!(client.wants(), ["set up 0b111"]);
    client.up(0);
    client.up(1);
    client.fail(2);
    while client.intents.is_empty() {
        client.time_out();
    }
    assert_eq!(client.wants(), ["ask for 0b100"]);
    client.answer(2, Ok(Offer { lanes: LaneSet(0b100), ..offer(1) }));
    client.up(2);
    assert_eq!(
        (client.wants(), client.link.poll_timeout()),
        (vec!["scout 0b11".into(), "set up 0b100".to_owned()], None)
    );
}

#[test]
fn a_peer_that_is_somebody_else_loses_all_its_lanes_and_is_asked_for_new_ones() {
    let mut client = Fixture::client_without(&[]);
    client.act(|link, now, context| link.handle_connected(now, context));
    assert_eq!(client.wants(), ["ask for 0b0"]);
    client.answer(2, Ok(offer(2)));
    assert_eq!(client.wants(), ["retire 0", "retire 1", "retire 2", "ask for 0b111"]);
    assert_eq!(client.link.reach().workers_with_lane, 0);
}

#[test]
fn a_peer_that_is_somebody_else_every_time_is_asked_ever_more_rarely() {
    let mut client = Fixture::client_without(&[]);
    client.act(|link, now, context| link.handle_connected(now, context));
    client.answer(2, Ok(offer(2)));
    let mut waits = Vec::new();
    for ask in 3..16 {
        client.answer(ask, Ok(offer(ask as u8)));
        waits.push(client.time_out());
    }
    assert!(waits.is_sorted() && waits.last() == Some(&RETRY_MAX), "{waits:?}");
}

#[test]
fn every_offer_of_a_process_names_the_same_lane_ids_and_they_begin_where_it_drew() {
    let mut client = Fixture::new(Role::Client);
    for from in [7, 8] {
        client.us.lane_ids_from = from;
        let offers =
            [0, 1].map(|_| client.act(|_, _, context| context.offer(PeerIndex(2), LaneSet(1), Duration::ZERO)));
        assert!(offers.iter().all(|offer| offer.lane_id_base.get() == (from + 2) * 64));
    }
}

#[test]
fn a_server_replaces_what_it_is_asked_for_and_nothing_else() {
    let mut server = Fixture::new(Role::Server);
    server.act(|link, now, context| link.handle_offer(offer(1), (), now, context));
    assert_eq!(server.wants(), ["offer 0b111", "set up 0b111"]);
    (0..WORKERS).for_each(|index| server.up(index));
    let some = Offer { lanes: LaneSet(0b1010), ..offer(1) };
    server.act(|link, now, context| link.handle_offer(some, (), now, context));
    assert_eq!(server.wants(), ["retire 1", "offer 0b10", "scout 0b101", "set up 0b10"]);
    let nothing = Offer { lanes: LaneSet(0), ..offer(2) };
    server.act(|link, now, context| link.handle_offer(nothing, (), now, context));
    assert_eq!(server.wants(), ["retire 0", "retire 2", "cancel", "offer 0b111"], "it lacks all, and makes none");
}

#[test]
fn a_server_names_what_it_lacks_besides_what_it_is_asked_for_but_not_what_it_is_making() {
    let mut server = Fixture::new(Role::Server);
    server.act(|link, now, context| link.handle_offer(offer(1), (), now, context));
    (0..2).for_each(|index| server.up(index));
    server.end(1);
    server.intents.clear();
    let nothing = Offer { lanes: LaneSet(0), ..offer(1) };
    server.act(|link, now, context| link.handle_offer(nothing, (), now, context));
    assert_eq!(server.wants(), ["offer 0b10", "scout 0b101"], "lane 2 is being made");
    let first = Offer { lanes: LaneSet(0b1), ..offer(1) };
    server.act(|link, now, context| link.handle_offer(first, (), now, context));
    assert_eq!(server.wants(), ["retire 0", "offer 0b11", "scout 0b100", "set up 0b1"]);
}

#[test]
fn a_client_ends_what_the_server_lacks_and_asks_for_it_at_once() {
    let mut client = Fixture::client_without(&[2]);
    client.time_out();
    assert_eq!(client.wants(), ["ask for 0b100"]);
    client.answer(2, Ok(Offer { lanes: LaneSet(0b110), ..offer(1) }));
    assert_eq!(client.wants(), ["scout 0b1", "set up 0b100", "retire 1", "ask for 0b10"]);
    assert_eq!(client.link.reach().workers_with_lane, 0b1);
    // What it has just agreed to make is not up yet, and nothing to be ended.
    client.answer(3, Ok(Offer { lanes: LaneSet(0b110), ..offer(1) }));
    assert_eq!(client.wants(), ["scout 0b101", "set up 0b10"]);
    assert_eq!(client.link.poll_timeout(), None);
}

#[test]
fn a_server_never_asks_and_a_client_is_never_asked() {
    let mut server = Fixture::new(Role::Server);
    server.act(|link, now, context| link.handle_connected(now, context));
    assert_eq!((server.wants().len(), server.link.poll_timeout()), (0, None));
    let mut client = Fixture::client_without(&[]);
    client.act(|link, now, context| link.handle_offer(offer(2), (), now, context));
    assert_eq!(client.wants(), ["refuse"]);
    assert_eq!(client.link.lanes().count(), usize::from(WORKERS));
}

#[test]
fn an_offer_of_the_servers_prompts_the_client_but_a_few_times_only_and_then_once_a_second() {
    let mut client = Fixture::client_without(&[]);
    for _ in 0..100 {
        client.act(|link, now, context| link.handle_offer(offer(1), (), now, context));
    }
    let wants = client.wants();
    assert!(wants.len() == 100 && wants.iter().all(|wanted| wanted == "refuse"), "{wants:?}");
    let mut asked_after = Vec::new();
    for ask in 2..10 {
        asked_after.push(client.time_out());
        assert_eq!(client.wants(), ["ask for 0b0"]);
        client.answer(ask, Ok(Offer { lanes: LaneSet::default(), ..offer(1) }));
        assert_eq!((client.wants(), client.link.poll_timeout()), (vec!["scout 0b111".to_owned()], None));
        client.act(|link, now, context| link.handle_offer(offer(1), (), now, context));
        client.wants();
    }
    let (at_once, later) = asked_after.split_at(EXCHANGES_BURST as usize);
    assert!(at_once.iter().all(Duration::is_zero), "{asked_after:?}");
    assert!(later.iter().all(|after| *after == Duration::from_secs(1)), "{asked_after:?}");
}

#[test]
fn a_server_whose_candidates_are_others_sends_an_offer_for_no_lanes_and_does_not_mind_the_refusal() {
    let mut server = Fixture::new(Role::Server);
    server.act(|link, now, _| link.handle_candidates_change(now));
    assert_eq!(server.wants().len(), 0, "nobody is connected");
    server.act(|link, now, context| link.handle_connected(now, context));
    for ask in 1..3 {
        // What is found out at nearly the same time is told at once.
        server.act(|link, now, _| link.handle_candidates_change(now));
        server.act(|link, now, _| link.handle_candidates_change(now));
        assert_eq!(server.wants().len(), 0);
        assert_eq!(server.time_out(), EXCHANGE_DELAY);
        assert_eq!(server.wants(), ["ask for 0b0"]);
        let refused = Ok(Answer::Refused(RefusalReason::Unsupported));
        server.act(|link, now, context| link.handle_answer(AskId(ask), refused, now, context));
    }
    assert_eq!((server.link.problem(), server.link.poll_timeout()), (None, None));
}

#[test]
fn new_candidates_end_the_pause_of_a_client_that_misses_lanes() {
    let mut client = Fixture::client_without(&[0]);
    for ask in 2..8 {
        client.time_out();
        client.answer(ask, Ok(Offer { lanes: LaneSet(1), ..offer(1) }));
        client.fail(0);
    }
    client.wants();
    let now = client.now;
    assert!(client.link.poll_timeout().unwrap() > now + Duration::from_secs(20));
    client.act(|link, now, _| link.handle_candidates_change(now));
    assert_eq!(client.link.poll_timeout(), Some(now + EXCHANGE_DELAY));
    client.time_out();
    assert_eq!(client.wants(), ["ask for 0b1"]);
}

#[test]
fn news_while_lanes_are_being_made_reach_these_lanes_at_both_ends() {
    let mut client = Fixture::new(Role::Client);
    client.act(|link, now, context| link.handle_connected(now, context));
    client.answer(1, Ok(offer(1)));
    client.act(|link, now, _| link.handle_candidates_change(now));
    client.wants();
    assert_eq!(client.time_out(), EXCHANGE_DELAY);
    assert_eq!(client.wants(), ["ask for 0b0"], "they are not begun again");
    client.answer(2, Ok(Offer { lanes: LaneSet::default(), ..offer(1) }));
    assert_eq!(client.wants(), ["scout 0b111"]);
    let mut server = Fixture::new(Role::Server);
    server.act(|link, now, context| link.handle_offer(offer(1), (), now, context));
    server.wants();
    let nothing = Offer { lanes: LaneSet::default(), ..offer(1) };
    server.act(|link, now, context| link.handle_offer(nothing, (), now, context));
    assert_eq!(server.wants(), ["offer 0b0", "scout 0b111"]);
}

#[test]
fn the_other_end_is_told_to_wait_for_half_of_what_the_last_exchange_took() {
    let mut client = Fixture::new(Role::Client);
    let mut delays = Vec::new();
    for (ask, took_ms) in [(1, 80), (2, 40), (3, 0)] {
        client.act(|link, now, context| link.handle_connected(now, context));
        let Some(Intent::Ask { offer: ours, .. }) = client.intents.pop_front() else { panic!("it asks") };
        delays.push(ours.extensions.punch.start_delay.as_millis());
        client.now += Duration::from_millis(took_ms);
        client.answer(ask, Ok(offer(1)));
        client.intents.clear();
    }
    assert_eq!(delays, [0, 40, 20]);
}

#[test]
fn only_the_answer_to_the_question_under_way_counts() {
    let mut client = Fixture::new(Role::Client);
    client.act(|link, now, context| link.handle_connected(now, context));
    client.link.handle_disconnected();
    client.answer(1, Ok(offer(1)));
    client.act(|link, now, context| link.handle_connected(now, context));
    client.answer(1, Ok(offer(1)));
    client.answer(1, NO_ANSWER);
    assert_eq!((client.wants().len(), client.link.poll_timeout()), (2, None), "two questions and nothing else");
    client.answer(2, Ok(offer(1)));
    assert_eq!(client.wants(), ["set up 0b111"]);
}

#[test]
fn a_question_that_cannot_be_asked_now_is_asked_after_the_one_under_way() {
    let mut client = Fixture::new(Role::Client);
    client.act(|link, now, context| link.handle_connected(now, context));
    client.act(|link, now, context| link.handle_connected(now, context));
    assert_eq!(client.wants().len(), 1);
    client.answer(1, Ok(offer(1)));
    assert_eq!(client.wants(), ["set up 0b111", "ask for 0b0"]);
}

#[test]
fn others_send_by_way_of_the_first_lanes_once_all_are_there_or_the_link_has_settled() {
    let table: [(&[u8], &[u8], bool, u64); 5] = [
        // up, failed, time passes: announced
        (&[0], &[], false, 0),
        (&[0], &[], true, 0b1),
        (&[0, 1], &[2], false, 0b11),
        (&[0, 1, 2], &[], false, 0b111),
        (&[], &[0, 1, 2], false, 0),
    ];
    for (up, failed, passes, announced) in table {
        let mut client = Fixture::new(Role::Client);
        client.act(|link, now, context| link.handle_connected(now, context));
        client.answer(1, Ok(offer(1)));
        up.iter().for_each(|index| client.up(*index));
        failed.iter().for_each(|index| client.fail(*index));
        if passes {
            assert_eq!(client.time_out(), SETTLE);
        }
        assert_eq!(client.link.reach().workers_with_lane, announced, "{up:?} {failed:?}");
    }
}

#[test]
fn a_lane_that_ends_is_not_announced_any_more_and_asked_for_again() {
    let mut client = Fixture::client_without(&[]);
    client.now += STABLE_AFTER;
    client.end(1);
    client.end(1);
    assert_eq!(client.link.reach().workers_with_lane, 0b101);
    assert_eq!(client.time_out(), RETRY_MIN);
    assert_eq!(client.wants(), ["ask for 0b10"]);
}

#[test]
fn pauses_grow_up_to_the_longest_with_half_as_much_jitter() {
    for (random, jitter) in [(0, 0.0), (0xff, 0.5)] {
        let mut client = Fixture::client_without(&[0, 1, 2]);
        client.act(|link, now, context| link.handle_connected(now, context));
        client.random = random;
        let mut pause = RETRY_MIN;
        for ask in 2..14 {
            client.answer(ask, NO_ANSWER);
            let waited = client.time_out();
            assert!(pause <= waited && waited <= pause.mul_f64(1.0 + jitter), "{waited:?} after {pause:?}");
            pause = (RETRY_FACTOR * pause).min(RETRY_MAX);
        }
        assert_eq!(pause, RETRY_MAX);
    }
}

#[test]
fn lanes_that_end_together_are_one_failure_and_a_lane_that_ends_early_is_another() {
    let mut client = Fixture::client_without(&[]);
    client.now += STABLE_AFTER;
    (0..WORKERS).for_each(|index| client.end(index));
    for (ask, pause) in [(2, RETRY_MIN), (3, RETRY_FACTOR * RETRY_MIN), (4, RETRY_FACTOR * RETRY_FACTOR * RETRY_MIN)] {
        assert_eq!(client.time_out(), pause);
        client.answer(ask, Ok(offer(1)));
        (0..WORKERS).for_each(|index| client.up(index));
        (0..WORKERS).for_each(|index| client.end(index));
    }
}

#[test]
fn what_keeps_a_lane_from_standing_is_told_until_all_of_them_stand_or_the_peer_is_gone() {
    let mut client = Fixture::client_without(&[1]);
    assert_eq!(client.link.problem(), Some("lane 1 is blocked"));
    client.time_out();
    client.answer(2, Ok(Offer { lanes: LaneSet(0b10), ..offer(1) }));
    client.up(1);
    assert_eq!(client.link.problem(), None);

    let mut server = Fixture::new(Role::Server);
    server.act(|link, now, context| link.handle_connected(now, context));
    server.act(|link, now, context| link.handle_offer(offer(1), (), now, context));
    assert_eq!(server.link.problem(), None);
    server.act(|link, now, context| link.handle_offer(offer(1), (), now, context));
    assert_eq!(server.link.problem(), Some(GIVEN_UP), "the client asks for what we thought was being set up");
    server.link.handle_disconnected();
    assert_eq!(server.link.problem(), None);
}

#[test]
fn a_silent_lane_is_the_problem_until_it_is_heard_and_no_other() {
    let mut fixture = Fixture::client_without(&[]);
    let mut change = |index: u8, serial, change| {
        let known = fixture.link.handle_lane_changed(lane_index(index), LaneSerial(serial), change);
        (known, fixture.link.problem().map(str::to_owned))
    };
    let silence = Some("the peer does not answer on lane 1".to_owned());
    assert_eq!(change(1, 1, LaneChange::Silent), (true, silence.clone()));
    assert_eq!(change(0, 0, LaneChange::Heard), (true, silence.clone()));
    assert_eq!(change(1, 7, LaneChange::Heard), (false, silence), "a lane that has been replaced");
    assert_eq!(change(1, 1, LaneChange::Heard), (true, None));
}

#[test]
fn packets_leave_silent_lanes_for_others_that_are_heard_and_for_the_stream_when_none_is() {
    let mut fixture = Fixture::client_without(&[]);
    fixture.link.set_stream(Some(StreamForm::Offloaded));
    let gauges: Vec<_> = fixture.link.lanes().map(|(_, lane)| Arc::clone(&lane.gauges)).collect();
    let mut change = |index: u8, is_silent: bool| {
        gauges[usize::from(index)].set_silent(is_silent);
        let change = if is_silent { LaneChange::Silent } else { LaneChange::Heard };
        fixture.link.handle_lane_changed(lane_index(index), LaneSerial(index.into()), change);
        fixture.link.set_stream_preferred(true);
        let reach = fixture.link.reach();
        (reach.workers_with_lane, reach.avoided)
    };
    assert_eq!(change(1, true), (0b101, 0b010));
    assert_eq!(change(0, true), (0b100, 0b011));
    assert_eq!(change(2, true), (0, u64::MAX), "the stream has an answer");
    assert_eq!(change(0, false), (0b001, 0b110));
    assert_eq!(change(1, false), (0b011, 0b100));
    assert_eq!(change(2, false), (0b111, 0));
}

#[test]
fn where_nothing_else_is_left_packets_take_silent_lanes() {
    let mut fixture = Fixture::client_without(&[0, 2]);
    fixture.link.lanes().for_each(|(_, lane)| lane.gauges.set_silent(true));
    fixture.link.handle_lane_changed(lane_index(1), LaneSerial(1), LaneChange::Silent);
    assert_eq!((fixture.link.reach().workers_with_lane, fixture.link.reach().avoided), (0b010, 0));
}

/// The lanes of each offer that is to be sent now.
fn asked(fixture: &mut Fixture) -> Vec<LaneSet> {
    let asked = |intent| match intent {
        Intent::Ask { offer, .. } => Some(offer.lanes),
        _ => None,
    };
    fixture.intents.drain(..).filter_map(asked).collect()
}

#[test]
fn a_client_says_anew_where_it_is_although_it_misses_no_lane() {
    let mut fixture = Fixture::client_without(&[]);
    fixture.act(|link, now, context| link.handle_address_change(now, context));
    assert_eq!(asked(&mut fixture), [LaneSet::default()]);
    fixture.answer(2, Err(AskFailure::NotConnected));
    assert_eq!(fixture.link.problem(), None, "it keeps no lane from standing");
}

#[test]
fn a_new_connection_does_not_wait_for_an_answer_on_a_dead_one() {
    let mut fixture = Fixture::new(Role::Client);
    fixture.act(|link, now, context| link.handle_connected(now, context));
    assert_eq!(asked(&mut fixture).len(), 1);
    fixture.act(|link, now, context| link.handle_connected(now, context));
    assert_eq!(asked(&mut fixture).len(), 0, "both sides have dialled; the first question is under way");
    fixture.now += ASKED_IN_VAIN;
    fixture.act(|link, now, context| link.handle_connected(now, context));
    assert_eq!(asked(&mut fixture).len(), 1);
}

#[test]
fn a_question_to_a_peer_that_was_killed_is_asked_anew_a_second_after_it_was_asked() {
    for is_back_at_once in [true, false] {
        let mut fixture = Fixture::client_without(&[]);
        fixture.act(|link, now, context| link.handle_address_change(now, context));
        assert_eq!(asked(&mut fixture).len(), 1);
        fixture.now += ASKED_IN_VAIN / 3;
        if is_back_at_once {
            fixture.act(|link, now, context| link.handle_connected(now, context));
        } else {
            fixture.link.handle_suspicion(fixture.now);
        }
        assert_eq!(asked(&mut fixture).len(), 0, "the answer may be on its way");
        assert_eq!(fixture.time_out(), ASKED_IN_VAIN - ASKED_IN_VAIN / 3);
        assert_eq!(asked(&mut fixture).len(), 1);
        fixture.answer(2, Ok(offer(1)));
        assert_eq!(fixture.wants(), [] as [&str; 0], "nobody waits for the first answer any more");
        fixture.answer(3, Ok(offer(2)));
        assert_eq!(fixture.wants(), ["retire 0", "retire 1", "retire 2", "ask for 0b111"]);
    }
}

#[test]
fn a_question_that_is_answered_in_time_is_not_asked_anew() {
    let mut fixture = Fixture::client_without(&[]);
    fixture.act(|link, now, context| link.handle_address_change(now, context));
    fixture.link.handle_suspicion(fixture.now);
    assert_eq!(asked(&mut fixture).len(), 1);
    fixture.answer(2, Ok(Offer { lanes: LaneSet::default(), ..offer(1) }));
    assert_eq!(fixture.link.poll_timeout(), None);
    fixture.link.handle_suspicion(fixture.now);
    assert_eq!(fixture.link.poll_timeout(), None, "none is under way");
}
