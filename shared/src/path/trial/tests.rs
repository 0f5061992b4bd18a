//! Two ends of a lane over a network that loses, delays, reorders and repeats, and an attacker who sees everything on it.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// An address with port, reduced to a number.
type Address = u32;
/// A path, as one end sees it: its own address and the peer's.
type Path = (Address, Address);

const OLD: [Address; 2] = [1, 2];
const NEW: [Address; 2] = [11, 12];
const ATTACKER: Address = 99;
/// From the kernel to the listener to control to the worker, and back.
const CONTROL: u64 = 2;
const SEND_EVERY: u64 = 10;

#[derive(Clone, Copy, Debug)]
enum Content {
    Packet,
    Request(u64),
    Reply(u64),
}

#[derive(Clone, Copy, Debug)]
struct Record {
    counter: u64,
    content: Content,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    /// A datagram arrives at this end, from and to these addresses.
    Arrives(usize, Address, Address, Record),
    /// Control gives this end a socket for a path to be tried.
    Try(usize, Path),
}

struct End {
    own: Path,
    trials: Trials<Path>,
    next: u64,
    seen: BTreeSet<u64>,
    told_at: Option<u64>,
    /// When the last packet arrived.
    packet_at: u64,
}

/// What a run is about; all times in milliseconds.
struct World {
    start: Instant,
    now: u64,
    random: u64,
    loss_percent: u64,
    events: BTreeMap<(u64, u64), Event>,
    sequence: u64,
    ends: [End; 2],
    /// Where datagrams to an address arrive; none: nowhere.
    homes: BTreeMap<Address, usize>,
    /// What an end's address becomes on its way out.
    translated: BTreeMap<Address, Address>,
    /// The attacker sends everything again from an address of his, or instead.
    repeats: bool,
    diverts: bool,
    sent_to_attacker: u64,
}

impl World {
    fn new(seed: u64, loss_percent: u64) -> Self {
        let end = |role, own| End {
            own,
            trials: Trials::new(role),
            next: 0,
            seen: BTreeSet::new(),
            told_at: None,
            packet_at: 0,
        };
        Self {
            start: Instant::now(),
            now: 0,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            loss_percent,
            events: BTreeMap::new(),
            sequence: 0,
            ends: [end(Role::Client, (OLD[0], OLD[1])), end(Role::Server, (OLD[1], OLD[0]))],
            homes: BTreeMap::from([(OLD[0], 0), (OLD[1], 1)]),
            translated: BTreeMap::new(),
            repeats: false,
            diverts: false,
            sent_to_attacker: 0,
        }
    }

    fn draw(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn at(&self, now: u64) -> Instant {
        self.start + Duration::from_millis(now)
    }

    fn tokens(&mut self) -> [u64; 2] {
        [self.draw(), self.draw()]
    }

    fn after(&mut self, delay: u64, event: Event) {
        self.sequence += 1;
        self.events.insert((self.now + delay, self.sequence), event);
    }

    fn send(&mut self, end: usize, path: Path, content: Content) {
        let record = Record { counter: self.ends[end].next, content };
        self.ends[end].next += 1;
        let from = self.translated.get(&path.0).copied().unwrap_or(path.0);
        // An address that is gone sends nothing.
        if self.homes.get(&from) != Some(&end) {
            return;
        }
        if path.1 == ATTACKER {
            self.sent_to_attacker += 1;
            return;
        }
        let Some(&to) = self.homes.get(&path.1) else { return };
        let lost = self.draw() % 100 < self.loss_percent;
        let delay = 5 + self.draw() % 15;
        let diverted = self.diverts && self.draw().is_multiple_of(4);
        if !lost && !diverted {
            self.after(delay, Event::Arrives(to, from, path.1, record));
        }
        if diverted || self.repeats {
            let delay = 1 + self.draw() % 40;
            self.after(delay, Event::Arrives(to, ATTACKER, path.1, record));
        }
    }

    /// What a worker does with a datagram.
    fn arrive(&mut self, end: usize, from: Address, to: Address, record: Record) {
        // What is translated on its way out is translated back on its way in.
        let inner = self.translated.iter().find(|(_, outer)| **outer == to).map_or(to, |(inner, _)| *inner);
        let (path, now) = ((inner, from), self.at(self.now));
        let tokens = self.tokens();
        let at = &mut self.ends[end];
        let is_newest = at.seen.last().is_none_or(|newest| record.counter > *newest);
        if !at.seen.insert(record.counter) {
            return;
        }
        let is_other = at.trials.paths().any(|other| other == path);
        if let Content::Packet = record.content {
            at.packet_at = self.now;
        }
        if path != at.own && !is_other {
            // It came to the listener.
            let is_worth_asking = is_newest || matches!(record.content, Content::Request(_));
            if is_worth_asking && at.told_at.is_none_or(|told| self.now >= told + 100) {
                at.told_at = Some(self.now);
                self.after(CONTROL, Event::Try(end, path));
            }
            return;
        }
        if is_other && is_newest {
            at.trials.handle_newest(path, now, tokens);
        }
        match record.content {
            Content::Request(token) => self.send(end, path, Content::Reply(token)),
            Content::Reply(token) => {
                if at.trials.handle_reply(path, token, at.own, now) {
                    at.own = path;
                }
            }
            Content::Packet => {}
        }
    }

    fn run(&mut self, until: u64) {
        while self.now < until {
            self.now += 1;
            while let Some(entry) = self.events.first_entry().filter(|entry| entry.key().0 <= self.now) {
                match entry.remove() {
                    Event::Arrives(end, from, to, record) => self.arrive(end, from, to, record),
                    Event::Try(end, path) => {
                        let (tokens, now) = (self.tokens(), self.at(self.now));
                        let at = &mut self.ends[end];
                        if path != at.own {
                            at.trials.forget(path);
                            at.trials.begin(path, now, tokens);
                        }
                    }
                }
            }
            let now = self.at(self.now);
            for end in 0..2 {
                while let Some((path, token)) = self.ends[end].trials.poll_transmit(self.ends[end].own, now) {
                    self.send(end, path, Content::Request(token));
                }
                while self.ends[end].trials.poll_closed(now).is_some() {}
                assert!(self.ends[end].trials.poll_timeout().is_none_or(|due| due > now));
                assert!(self.ends[end].trials.paths().count() <= LANE_OTHER_PATHS_MAX);
                if self.now.is_multiple_of(SEND_EVERY) {
                    let own = self.ends[end].own;
                    self.send(end, own, Content::Packet);
                }
                // Whose lane is silent, or whose address is gone, looks for other paths, as control does.
                let is_silent = self.now > self.ends[end].packet_at + 900;
                let is_gone = self.homes.get(&self.ends[end].own.0) != Some(&end) && self.translated.is_empty();
                if (is_silent || is_gone) && self.now.is_multiple_of(1500) {
                    self.look_for_others(end);
                }
            }
        }
    }

    fn look_for_others(&mut self, end: usize) {
        let locals: Vec<_> =
            [OLD[end], NEW[end]].into_iter().filter(|local| self.homes.get(local) == Some(&end)).collect();
        for local in locals {
            for remote in [OLD[1 - end], NEW[1 - end]] {
                self.after(CONTROL, Event::Try(end, (local, remote)));
            }
        }
    }

    /// Whether the ends hear each other, and by one path.
    fn agrees(&self) -> bool {
        let [a, b] = [&self.ends[0], &self.ends[1]];
        let outer = |address: Address| self.translated.get(&address).copied().unwrap_or(address);
        (outer(a.own.0), a.own.1) == (b.own.1, outer(b.own.0))
    }

    fn assert_heard(&self, seed: u64) {
        for end in &self.ends {
            assert!(self.now - end.packet_at < 200, "seed {seed}: silent since {} at {:?}", end.packet_at, end.own);
        }
        assert!(self.agrees(), "seed {seed}: {:?} and {:?}", self.ends[0].own, self.ends[1].own);
    }

    fn home(&mut self, end: usize, address: Address) {
        self.homes.insert(address, end);
    }
}

/// Every way the ends can move, by number.
fn move_ends(world: &mut World, what: u64) {
    match what {
        // One end is renumbered.
        0 | 1 => {
            let end = what as usize;
            world.homes.remove(&OLD[end]);
            world.home(end, NEW[end]);
            world.look_for_others(end);
        }
        // Both lose a network at once, and have another.
        2 => {
            for end in 0..2 {
                world.homes.remove(&OLD[end]);
                world.home(end, NEW[end]);
            }
            (0..2).for_each(|end| world.look_for_others(end));
        }
        // A translator gives one end another port.
        _ => {
            let end = (what % 2) as usize;
            world.homes.remove(&OLD[end]);
            world.home(end, NEW[end]);
            world.translated.insert(OLD[end], NEW[end]);
        }
    }
}

#[test]
fn both_ends_find_each_other_again_whoever_has_moved() {
    for seed in 0..150 {
        let mut world = World::new(seed, [0, 5, 20][seed as usize % 3]);
        world.run(500);
        assert_eq!(world.ends[0].own, (OLD[0], OLD[1]));
        move_ends(&mut world, seed / 3 % 5);
        world.run(8000);
        world.assert_heard(seed);
    }
}

#[test]
fn without_loss_a_lane_has_moved_within_a_few_round_trips() {
    for seed in 0..50 {
        let mut world = World::new(seed, 0);
        world.run(500);
        move_ends(&mut world, seed % 5);
        world.run(800);
        world.assert_heard(seed);
    }
}

#[test]
fn ends_that_try_paths_though_nothing_is_wrong_agree_in_the_end() {
    for seed in 0..60 {
        let mut world = World::new(seed, [0, 10][seed as usize % 2]);
        (0..2).for_each(|end| world.home(end, NEW[end]));
        world.run(500);
        (0..2).for_each(|end| world.look_for_others(end));
        world.run(6000);
        world.assert_heard(seed);
    }
}

#[test]
fn an_attacker_who_repeats_or_diverts_records_moves_nothing_and_is_sent_little() {
    for seed in 0..60 {
        let mut world = World::new(seed, 5);
        (world.repeats, world.diverts) = (seed % 2 == 0, seed % 2 == 1);
        world.run(5000);
        for end in &world.ends {
            assert!(end.own.1 != ATTACKER, "seed {seed}");
        }
        world.assert_heard(seed);
        // The server asks all of its questions and begins again; the client stops when its own path has answered.
        assert!(world.sent_to_attacker <= 60, "seed {seed}: {} records in 5 s", world.sent_to_attacker);
        assert!(world.repeats || world.sent_to_attacker > 0, "seed {seed}: the attacker has not been asked");
    }
}

#[test]
fn the_client_stays_where_it_is_if_its_own_path_answers_and_the_server_follows() {
    let now = Instant::now();
    for (role, stays) in [(Role::Client, true), (Role::Server, false)] {
        let mut trials = Trials::new(role);
        assert_eq!(trials.begin(7, now, [70, 10]), None);
        let asked: Vec<_> = std::iter::from_fn(|| trials.poll_transmit(1, now)).collect();
        assert_eq!(asked, if stays { vec![(1, 10), (7, 70)] } else { vec![(7, 70)] });
        assert!(!trials.handle_reply(1, 10, 1, now));
        assert_eq!(trials.handle_reply(7, 70, 1, now), !stays);
    }
}

#[test]
fn an_answer_counts_only_with_its_token_and_on_the_path_that_was_asked() {
    let now = Instant::now();
    let mut trials = Trials::new(Role::Server);
    trials.begin(7, now, [70, 0]);
    trials.begin(8, now, [80, 0]);
    assert!(!trials.handle_reply(7, 70, 1, now), "nothing was asked yet");
    while trials.poll_transmit(1, now).is_some() {}
    assert!(!trials.handle_reply(7, 80, 1, now));
    assert!(!trials.handle_reply(1, 70, 1, now));
    assert!(!trials.handle_reply(9, 70, 1, now));
    assert!(trials.handle_reply(7, 70, 1, now));
    assert!(!trials.handle_reply(8, 80, 7, now), "one path was enough");
    assert!(trials.paths().eq([8, 1]) || trials.paths().eq([1, 8]));
}

#[test]
fn a_path_that_does_not_answer_is_asked_five_times_and_closed() {
    let start = Instant::now();
    let mut trials = Trials::new(Role::Server);
    trials.begin(7, start, [70, 0]);
    let (mut asked, mut closed) = (Vec::new(), None);
    while let Some(now) = trials.poll_timeout() {
        asked.extend(std::iter::from_fn(|| trials.poll_transmit(1, now)).map(|_| (now - start).as_millis()));
        closed = trials.poll_closed(now).map(|path| (path, (now - start).as_millis()));
    }
    assert_eq!((asked, closed), (vec![0, 50, 150, 350, 750], Some((7, 1500))));
}

#[test]
fn paths_are_bounded_and_those_being_asked_are_not_given_up_for_others() {
    let now = Instant::now();
    let mut trials = Trials::new(Role::Server);
    for path in 0..LANE_OTHER_PATHS_MAX {
        assert_eq!(trials.begin(path, now, [path as u64, 0]), None);
    }
    assert_eq!(trials.begin(50, now, [50, 0]), Some(50));
    while trials.poll_transmit(1, now).is_some() {}
    assert!(trials.handle_reply(0, 0, 60, now));
    // Full again, but of paths that are only received on.
    assert!(trials.begin(51, now, [51, 0]).is_some_and(|closed| closed != 51));
    assert_eq!(trials.paths().count(), LANE_OTHER_PATHS_MAX);
}

#[test]
fn a_better_path_is_taken_though_the_lanes_own_answers_and_only_when_it_answers_itself() {
    let now = Instant::now();
    for role in [Role::Client, Role::Server] {
        let mut trials = Trials::new(role);
        assert_eq!(trials.begin_better(2, now, 7), None);
        assert_eq!(trials.poll_transmit(1, now), Some((2, 7)), "{role:?}");
        assert_eq!(trials.poll_transmit(1, now), None, "its own path is not asked along");
        assert!(!trials.handle_reply(1, 7, 1, now));
        assert!(trials.handle_reply(2, 7, 1, now));
        assert_eq!(trials.paths().collect::<Vec<_>>(), [1], "the one before is received on for a moment");
    }
}

#[test]
fn a_better_path_that_does_not_answer_is_closed_and_the_lane_stays() {
    let (start, mut trials) = (Instant::now(), Trials::new(Role::Client));
    trials.begin_better(2, start, 7);
    let (mut now, mut asked) = (start, 0);
    while let Some(due) = trials.poll_timeout() {
        now = now.max(due);
        while trials.poll_transmit(1, now).is_some() {
            asked += 1;
        }
        if let Some(closed) = trials.poll_closed(now) {
            assert_eq!(closed, 2);
        }
    }
    assert!(asked == ATTEMPTS && trials.is_empty() && now - start < Duration::from_secs(2));
}
