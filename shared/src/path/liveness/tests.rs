use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::*;
use crate::path::rtt::Rtt;

const MS: fn(u64) -> Duration = Duration::from_millis;
const KEEP_ALIVE: Duration = Duration::from_secs(25);
const TURN: Duration = Duration::from_millis(10);

/// One end of a lane whose peer sends nothing but replies.
struct Bed {
    liveness: Liveness,
    rtt: Rtt,
    now: Instant,
    delay: Duration,
    /// Of 1000 datagrams, in each direction.
    lost: u64,
    is_dead: bool,
    random: u64,
    under_way: BinaryHeap<Reverse<(Instant, Instant)>>,
    /// When it was late.
    late: Vec<Instant>,
    asked: u32,
    /// What has happened, and when.
    events: Vec<(Instant, LivenessAction)>,
}

impl Bed {
    fn new(delay: Duration, seed: u64) -> Self {
        let now = Instant::now();
        let random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let liveness = Liveness::new(KEEP_ALIVE, random, now);
        let mut rtt = Rtt::default();
        rtt.add(delay);
        let under_way = BinaryHeap::new();
        Self {
            liveness,
            rtt,
            now,
            delay,
            lost: 0,
            is_dead: false,
            random,
            under_way,
            late: Vec::new(),
            asked: 0,
            events: Vec::new(),
        }
    }

    fn is_lost(&mut self) -> bool {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.is_dead || self.random % 1000 < self.lost
    }

    /// Lets time pass, with a packet every [`TURN`] if `sends`.
    fn run(&mut self, time: Duration, sends: bool) {
        let end = self.now + time;
        let mut turn_at = self.now;
        loop {
            while let Some(Reverse((at, sent_at))) = self.under_way.peek().copied()
                && at <= self.now
            {
                self.under_way.pop();
                self.rtt.add(at - sent_at);
                self.liveness.note_heard(self.now);
            }
            if sends && turn_at <= self.now {
                turn_at = self.now + TURN;
                self.liveness.note_sent(self.now);
            }
            while let Some(action) = self.liveness.poll(self.now, self.rtt.patience()) {
                if action == LivenessAction::Late {
                    self.late.push(self.now);
                    continue;
                }
                if action != LivenessAction::Ask {
                    self.events.push((self.now, action));
                    continue;
                }
                self.asked += 1;
                if !self.is_lost() && !self.is_lost() {
                    self.under_way.push(Reverse((self.now + self.delay, self.now)));
                }
            }
            let arrival = self.under_way.peek().map(|Reverse((at, _))| *at);
            let next = arrival.into_iter().chain(sends.then_some(turn_at)).fold(self.liveness.poll_timeout(), Ord::min);
            if next >= end {
                break;
            }
            self.now = self.now.max(next);
        }
        self.now = end;
    }

    fn happened(&self) -> Vec<LivenessAction> {
        self.events.iter().map(|(_, action)| *action).collect()
    }
}

#[test]
fn a_dead_peer_is_noticed_within_a_second_while_packets_leave() {
    for seed in 0..200 {
        for delay in [Duration::from_micros(200), MS(10), MS(50), MS(100)] {
            let mut bed = Bed::new(delay, seed);
            bed.run(MS(1000 + seed * 7), true);
            bed.is_dead = true;
            bed.under_way.clear();
            let died = bed.now;
            bed.run(MS(20_000), true);
            let [(silent, LivenessAction::Silent), (dead, LivenessAction::Dead), ..] = bed.events[..] else {
                panic!("seed {seed}: {:?}", bed.events);
            };
            let [.., late] = bed.late[..] else { panic!("seed {seed}: never late") };
            assert!(late > died && late + MS(200) < silent, "seed {seed}, {delay:?}: {:?}", late - died);
            assert!(silent - died < MS(1000), "seed {seed}, {delay:?}: {:?}", silent - died);
            assert!((MS(7_500)..MS(9_500)).contains(&(dead - died)), "seed {seed}, {delay:?}: {:?}", dead - died);
        }
    }
}

#[test]
fn losing_a_third_of_all_datagrams_silences_nobody() {
    let mut asked = 0;
    for seed in 0..200 {
        let mut bed = Bed::new(MS(200), seed);
        bed.lost = 300;
        bed.run(MS(60_000), true);
        assert_eq!(bed.events, [], "seed {seed}");
        assert!(bed.late.len() <= 60, "seed {seed}: late {} times in a minute", bed.late.len());
        asked += bed.asked;
    }
    assert!(asked > 200 * 60, "they did ask: {asked}");
}

#[test]
fn a_peer_that_answers_again_is_heard_at_once() {
    let mut bed = Bed::new(MS(20), 1);
    bed.run(MS(500), true);
    bed.is_dead = true;
    bed.run(MS(4000), true);
    assert!(bed.liveness.is_silent());
    bed.is_dead = false;
    let back = bed.now;
    bed.run(MS(2000), true);
    assert_eq!(bed.happened(), [LivenessAction::Silent, LivenessAction::Heard]);
    assert!(bed.events[1].0 - back <= MS(1020), "{:?}", bed.events[1].0 - back);
    assert!(!bed.liveness.is_silent());
}

#[test]
fn a_quiet_lane_sends_three_requests_a_minute_and_a_lane_that_hears_enough_none() {
    for seed in 0..50 {
        let mut bed = Bed::new(MS(30), seed);
        bed.run(MS(600_000), false);
        assert!((24..=28).contains(&bed.asked), "seed {seed}: {} in ten minutes", bed.asked);
        assert_eq!(bed.events, []);
    }
    let mut bed = Bed::new(MS(30), 1);
    for _ in 0..1000 {
        bed.liveness.note_heard(bed.now);
        bed.run(MS(100), true);
    }
    assert_eq!(bed.asked, 0);
}

#[test]
fn a_one_way_flow_asks_a_few_times_a_second_whatever_its_rate() {
    let mut bed = Bed::new(MS(30), 1);
    bed.run(MS(60_000), true);
    assert!((200..400).contains(&bed.asked), "{}", bed.asked);
    assert_eq!(bed.events, []);
}

#[test]
fn a_quiet_lane_whose_peer_is_gone_dies_too() {
    let mut bed = Bed::new(MS(30), 1);
    bed.is_dead = true;
    bed.run(MS(25_000 + 9_000), false);
    assert_eq!(bed.happened()[..2], [LivenessAction::Silent, LivenessAction::Dead]);
    assert!(bed.asked < 40, "{}", bed.asked);
}

#[test]
fn who_was_stopped_asks_before_it_gives_up() {
    for before in [0, 500, 3_000] {
        let mut bed = Bed::new(MS(30), 1);
        bed.run(MS(500), true);
        bed.is_dead = true;
        bed.run(MS(before), true);
        bed.is_dead = false;
        bed.events.clear();
        bed.now += MS(600_000);
        bed.run(MS(2000), true);
        assert!(!bed.happened().contains(&LivenessAction::Dead), "{before}: {:?}", bed.happened());
        assert!(!bed.happened().contains(&LivenessAction::Silent), "{before}: {:?}", bed.happened());
        bed.is_dead = true;
        bed.run(MS(10_000), true);
        let happened = bed.happened();
        assert!(
            happened.ends_with(&[LivenessAction::Dead]) || happened.contains(&LivenessAction::Dead),
            "{happened:?}"
        );
    }
}

#[test]
fn a_peer_that_only_asks_does_not_hear_us_and_keeps_a_quiet_lane_alive_all_the_same() {
    let mut bed = Bed::new(MS(30), 1);
    for _ in 0..60 {
        bed.liveness.note_asked(bed.now);
        bed.run(MS(10_000), false);
    }
    assert_eq!(bed.asked, 0);
    bed.is_dead = true;
    for _ in 0..20 {
        bed.liveness.note_asked(bed.now);
        bed.run(MS(200), true);
    }
    assert_eq!(bed.happened(), [LivenessAction::Silent]);
}

#[test]
fn a_doubted_lane_is_silent_before_a_second_has_passed_if_its_peer_is_gone_and_else_quiet_again() {
    for seed in 0..100 {
        for delay in [Duration::from_micros(200), MS(10), MS(50)] {
            let mut bed = Bed::new(delay, seed);
            bed.run(MS(5000), false);
            assert_eq!(bed.asked, 0);
            bed.liveness.doubt(bed.now);
            bed.run(MS(1000), false);
            assert_eq!((bed.asked, bed.happened()), (1, vec![]), "seed {seed}, {delay:?}");

            bed.is_dead = true;
            let doubted = bed.now;
            bed.liveness.doubt(doubted);
            bed.run(MS(300), false);
            bed.liveness.doubt(bed.now);
            bed.run(MS(1500), false);
            let silent = bed.events.first().copied().filter(|(_, action)| *action == LivenessAction::Silent);
            let (at, _) = silent.unwrap_or_else(|| panic!("seed {seed}, {delay:?}: {:?}", bed.events));
            assert!((MS(600)..MS(1000)).contains(&(at - doubted)), "seed {seed}, {delay:?}: {:?}", at - doubted);
        }
    }
}
