//! Binders against a book.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ringlane_shared::id::{LaneIndex, PeerIndex, WorkerId};
use ringlane_shared::limits::{
    ALLOTMENT_SECONDS, ALLOTMENTS_PER_PEER_MAX, ALLOTTED_LANES_PER_PEER_MAX, BINDS_PER_END, FORWARDS_PER_WORKER_MAX,
};
use ringlane_shared::path::choice::Ends;
use ringlane_shared::plane::ForwardId;
use ringlane_shared::wire::bind::{BIND_BYTES, Bind, BindKeys, BindKind, UnverifiedBind};
use ringlane_shared::wire::offer::LaneSet;
use ringlane_shared::wire::relay::{AllotmentId, RelayRefusal, RelayedLane};

use super::super::binder::Binder;
use super::super::book::{BindFault, Book, NewAllotment, Step};
use super::{A, B, Random};

const PORT: u16 = 8100;
const WORKERS: u8 = 2;

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn local(lane: &RelayedLane) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 9], PORT + u16::from(lane.worker.0)))
}

fn lane_set(count: u8) -> LaneSet {
    (0..count).filter_map(LaneIndex::new).collect()
}

fn allot(book: &mut Book, peers: [PeerIndex; 2], lanes: u8, now: Instant) -> Result<NewAllotment, RelayRefusal> {
    let mut random = Random::of(u64::from(peers[0].0) << 32 | u64::from(peers[1].0) << 16 | (u64::from(lanes) + 7));
    book.allocate(peers, lane_set(lanes), now, |bytes| random.fill(bytes))
}

fn request(keys: &BindKeys, number: u64) -> [u8; BIND_BYTES] {
    proven(keys, number, 0)
}

fn proven(keys: &BindKeys, number: u64, proof: u64) -> [u8; BIND_BYTES] {
    keys.seal(&Bind { number, kind: BindKind::Request { proof } })
}

fn steps(book: &mut Book) -> Vec<Step> {
    std::iter::from_fn(|| book.poll_step()).collect()
}

/// A book with one lane allotted, and the keys of both ends.
struct OneLane {
    book: Book,
    id: AllotmentId,
    relay: SocketAddr,
    keys: [BindKeys; 2],
    now: Instant,
}

impl OneLane {
    fn new() -> Self {
        let (mut book, now) = (Book::new(PORT, WORKERS, Instant::now()), Instant::now());
        let made = allot(&mut book, [A, B], 1, now).unwrap();
        let keys = made.lanes.each_ref().map(|lanes| lanes[0].token.keys());
        Self { id: made.id, relay: local(&made.lanes[0][0]), keys, book, now }
    }

    /// With the number `10 * round`, and if that is challenged with the next one.
    fn bind(&mut self, end: usize, round: u64, from: &str) -> Result<BindKind, BindFault> {
        match self.ask(end, 10 * round, 0, from)? {
            BindKind::Challenge { proof } => self.ask(end, 10 * round + 1, proof, from),
            told => Ok(told),
        }
    }

    fn ask(&mut self, end: usize, number: u64, proof: u64, from: &str) -> Result<BindKind, BindFault> {
        let datagram = proven(&self.keys[end], number, proof);
        self.hear(&datagram, from).map(|answer| {
            let unverified = UnverifiedBind::parse(&answer).unwrap();
            let answer = self.keys[end].verify(&unverified).unwrap();
            assert_eq!(answer.number, number);
            answer.kind
        })
    }

    fn hear(&mut self, datagram: &[u8], from: &str) -> Result<[u8; BIND_BYTES], BindFault> {
        self.now += Duration::from_millis(200);
        let path = Ends { local: self.relay, remote: address(from) };
        self.book.handle_bind(path, datagram, self.now, || true)
    }
}

const AT_A: &str = "198.51.100.1:4000";
const AT_B: &str = "[2001:db8::2]:5000";

#[test]
fn a_lane_is_forwarded_when_both_ends_have_shown_themselves() {
    let mut it = OneLane::new();
    assert_eq!(it.bind(0, 1, AT_A), Ok(BindKind::Waiting { observed: address(AT_A) }));
    assert!(steps(&mut it.book).is_empty());
    assert_eq!(it.bind(1, 1, AT_B), Ok(BindKind::Open { observed: address(AT_B) }));
    let halves = [AT_A, AT_B].map(|at| Ends { local: it.relay, remote: address(at) });
    let opened = steps(&mut it.book);
    assert!(matches!(opened[..], [Step::Open { halves: told, .. }] if told == halves), "{opened:?}");
    assert_eq!(it.bind(0, 2, AT_A), Ok(BindKind::Open { observed: address(AT_A) }));
    assert!(steps(&mut it.book).is_empty());
}

#[test]
fn nothing_is_sent_to_where_nobody_has_answered_from() {
    let mut it = OneLane::new();
    it.bind(1, 1, AT_B).unwrap();
    // An end that means no good, and knows its own token, asks from an address that is not its own.
    let victim = "203.0.113.66:53";
    for number in 1..=40 {
        let told = it.ask(0, number, number * 7, victim);
        assert!(
            matches!(told, Ok(BindKind::Challenge { .. })),
            "as much as was asked with, and nothing more: {told:?}"
        );
    }
    // Nor does what was said elsewhere help, or to the other end, or long ago.
    let Ok(BindKind::Challenge { proof }) = it.ask(0, 41, 0, AT_A) else { panic!("it is not known there") };
    assert!(matches!(it.ask(0, 42, proof, victim), Ok(BindKind::Challenge { .. })));
    assert!(steps(&mut it.book).is_empty());
    it.now += Duration::from_secs(60);
    assert!(matches!(it.ask(0, 43, proof, AT_A), Ok(BindKind::Challenge { .. })));
    // A lane that is forwarded goes on where it was while its end claims to be elsewhere.
    it.bind(0, 5, AT_A).unwrap();
    assert!(matches!(steps(&mut it.book)[..], [Step::Open { .. }]));
    assert!(matches!(it.ask(0, 60, 0, victim), Ok(BindKind::Challenge { .. })));
    assert!(steps(&mut it.book).is_empty());
    assert_eq!(it.ask(0, 61, 0, AT_A), Ok(BindKind::Open { observed: address(AT_A) }), "nothing to prove there");
}

#[test]
fn a_challenge_costs_one_round_trip_and_one_that_is_lost_is_asked_for_again() {
    for lost in [false, true] {
        let (mut it, start) = (OneLane::new(), Instant::now());
        let (mut binder, mut now, mut round_trips) = (Binder::new(1, start), start, 0);
        while binder.open_route().is_none() {
            let Some(sent) = binder.poll_transmit(now) else {
                now = now.max(binder.poll_timeout().unwrap());
                continue;
            };
            round_trips += 1;
            let told = it.ask(0, sent.number, sent.proof, AT_A).unwrap();
            match told {
                // The other end comes as soon as may be.
                BindKind::Challenge { .. } if lost && round_trips == 1 => {}
                BindKind::Challenge { proof } => {
                    it.bind(1, 1, AT_B).unwrap();
                    binder.handle_challenge(0, sent.number, proof, now);
                    assert_eq!(binder.poll_timeout(), Some(now), "at once");
                }
                told => {
                    binder.handle_answer(0, sent.number, matches!(told, BindKind::Open { .. }), now);
                }
            }
        }
        assert_eq!(round_trips, if lost { 3 } else { 2 });
        assert!(now - start < Duration::from_millis(200));
        // From then on it is asked as ever.
        assert_eq!(binder.poll_timeout(), Some(now + Duration::from_secs(15)));
        assert_eq!(binder.poll_transmit(now + Duration::from_secs(15)).map(|sent| sent.proof), Some(0));
    }
}

#[test]
fn a_relay_that_is_never_content_is_given_up() {
    let start = Instant::now();
    for is_open in [false, true] {
        let (mut binder, mut now, mut sent) = (Binder::new(1, start), start, 0);
        if is_open {
            let first = binder.poll_transmit(now).unwrap();
            assert!(binder.handle_answer(0, first.number, true, now));
        }
        while let Some(at) = binder.poll_timeout() {
            now = now.max(at);
            while let Some(request) = binder.poll_transmit(now) {
                sent += 1;
                binder.handle_challenge(0, request.number, sent, now);
            }
        }
        assert!(sent < 25 && now < start + Duration::from_secs(30), "{sent} {:?}", now - start);
    }
}

#[test]
fn an_end_that_is_elsewhere_is_followed_and_a_replay_from_elsewhere_is_not() {
    let mut it = OneLane::new();
    it.bind(0, 5, AT_A).unwrap();
    it.bind(1, 5, AT_B).unwrap();
    steps(&mut it.book);
    // What an attacker has captured moves nothing, and is answered with as many bytes as it has, where it came from.
    let captured = request(&it.keys[0], 5);
    let answer = it.hear(&captured, "203.0.113.66:666").unwrap();
    assert_eq!(answer.len(), captured.len());
    let told = it.keys[0].verify(&UnverifiedBind::parse(&answer).unwrap()).unwrap().kind;
    assert_eq!(told, BindKind::Waiting { observed: address("203.0.113.66:666") });
    assert!(steps(&mut it.book).is_empty());
    let elsewhere = "198.51.100.1:4001";
    assert_eq!(it.bind(0, 6, elsewhere), Ok(BindKind::Open { observed: address(elsewhere) }));
    match steps(&mut it.book)[..] {
        [Step::Close { id: old, .. }, Step::Open { id: new, halves, .. }] => {
            assert_ne!(old, new);
            assert_eq!(halves.map(|half| half.remote), [address(elsewhere), address(AT_B)]);
        }
        ref other => panic!("{other:?}"),
    }
    // Nor does the older one bring it back.
    it.hear(&captured, AT_A).unwrap();
    assert!(steps(&mut it.book).is_empty());
}

#[test]
fn who_has_no_token_hears_nothing() {
    let mut it = OneLane::new();
    it.bind(0, 1, AT_A).unwrap();
    let genuine = request(&it.keys[0], 2);
    for bit in 0..genuine.len() * 8 {
        let mut forged = genuine;
        forged[bit / 8] ^= 1 << (bit % 8);
        it.now += Duration::from_secs(1);
        assert_eq!(it.hear(&forged, AT_A), Err(BindFault::Unknown), "bit {bit}");
    }
    let mut random = Random::of(1);
    for length in 0..200 {
        let mut junk = vec![0; length];
        random.fill(&mut junk);
        assert_eq!(it.hear(&junk, AT_A), Err(BindFault::Unknown));
    }
    // An answer of ours, sent back, is no question.
    let answer = it.keys[0].seal(&Bind { number: 9, kind: BindKind::Open { observed: address(AT_A) } });
    it.now += Duration::from_secs(1);
    assert_eq!(it.hear(&answer, AT_A), Err(BindFault::Unknown));
    assert!(steps(&mut it.book).is_empty());
}

#[test]
fn an_end_is_nowhere_that_something_else_goes() {
    let mut it = OneLane::new();
    it.bind(0, 1, AT_A).unwrap();
    assert_eq!(it.bind(1, 1, AT_A), Err(BindFault::Path), "the other end is there");
    let other_worker = SocketAddr::new(it.relay.ip(), it.relay.port() ^ 1);
    let path = |local, remote: &str| Ends { local, remote: address(remote) };
    let datagram = request(&it.keys[1], 2);
    let heard = it.book.handle_bind(path(other_worker, AT_B), &datagram, it.now, || true);
    assert_eq!(heard, Err(BindFault::Path), "its worker has another port");
    let heard = it.book.handle_bind(path(it.relay, AT_B), &datagram, it.now, || false);
    assert_eq!(heard, Err(BindFault::Path), "a lane of our own goes there");
    assert!(steps(&mut it.book).is_empty());
    assert_eq!(it.bind(1, 3, AT_B), Ok(BindKind::Open { observed: address(AT_B) }));
}

#[test]
fn an_end_that_floods_us_is_looked_at_so_many_times_and_moves_so_often() {
    let mut it = OneLane::new();
    it.bind(1, 1, AT_B).unwrap();
    let mut answers = 0;
    for number in 0..1000 {
        let path = Ends { local: it.relay, remote: SocketAddr::from(([198, 51, 100, 7], 1000 + number as u16)) };
        let heard = it.book.handle_bind(path, &request(&it.keys[0], 2 * number), it.now, || true);
        answers += u32::from(heard.is_ok());
        let told = heard.map(|heard| it.keys[0].verify(&UnverifiedBind::parse(&heard).unwrap()).unwrap().kind);
        if let Ok(BindKind::Challenge { proof }) = told {
            let datagram = proven(&it.keys[0], 2 * number + 1, proof);
            answers += u32::from(it.book.handle_bind(path, &datagram, it.now, || true).is_ok());
        }
    }
    assert!(answers <= BINDS_PER_END.0, "{answers}");
    let opened = steps(&mut it.book).iter().filter(|step| matches!(step, Step::Open { .. })).count();
    assert!((1..=5).contains(&opened), "{opened}");
    // The other end is not concerned.
    assert!(it.bind(1, 2, AT_B).is_ok());
}

#[test]
fn whoever_has_seen_a_bind_keeps_its_end_from_nothing() {
    let mut it = OneLane::new();
    it.bind(0, 1, AT_A).unwrap();
    it.bind(1, 1, AT_B).unwrap();
    let seen = request(&it.keys[0], 1);
    let mut forged = seen;
    forged[BIND_BYTES - 1] ^= 1;
    let path = Ends { local: it.relay, remote: address("203.0.113.9:9") };
    let mut answers = 0;
    for datagram in [seen, forged] {
        for _ in 0..1000 {
            answers += u32::from(it.book.handle_bind(path, &datagram, it.now, || true).is_ok());
        }
    }
    assert!(answers <= BINDS_PER_END.0, "{answers}");
    let own = Ends { local: it.relay, remote: address(AT_A) };
    for number in 12..20 {
        let datagram = request(&it.keys[0], number);
        assert!(it.book.handle_bind(own, &datagram, it.now, || true).is_ok(), "{number}");
    }
}

#[test]
fn only_its_ends_renew_and_release_an_allotment_and_it_ends_by_itself() {
    let mut it = OneLane::new();
    it.bind(0, 1, AT_A).unwrap();
    it.bind(1, 1, AT_B).unwrap();
    let lifetime = Duration::from_secs(ALLOTMENT_SECONDS.into());
    let stranger = PeerIndex(9);
    assert!(!it.book.renew(stranger, it.id, it.now));
    it.book.release(stranger, it.id);
    steps(&mut it.book);
    let later = it.now + lifetime / 2;
    assert!(it.book.renew(B, it.id, later));
    it.book.handle_timeout(it.now + lifetime);
    assert_eq!(it.book.allotments().count(), 1);
    it.book.handle_timeout(later + lifetime);
    assert_eq!(it.book.allotments().count(), 0);
    assert!(matches!(steps(&mut it.book)[..], [Step::Close { .. }]));
    assert_eq!(it.bind(0, 2, AT_A), Err(BindFault::Unknown));
    assert!(!it.book.renew(A, it.id, later));
    assert_eq!(it.book.poll_timeout(), None);
}

#[test]
fn a_forward_that_has_ended_begins_again_when_both_ends_ask() {
    let mut it = OneLane::new();
    it.bind(0, 1, AT_A).unwrap();
    it.bind(1, 1, AT_B).unwrap();
    let Some(Step::Open { id, .. }) = it.book.poll_step() else { panic!("both are there") };
    it.book.handle_forward_ended(id);
    it.book.handle_forward_ended(ForwardId(id.0 + 1));
    assert!(matches!(it.bind(0, 2, AT_A), Ok(BindKind::Waiting { .. })));
    assert!(matches!(it.bind(1, 2, AT_B), Ok(BindKind::Open { .. })));
    assert!(matches!(steps(&mut it.book)[..], [Step::Open { id: other, .. }] if other != id));
}

#[test]
fn no_peer_gets_more_than_its_share_and_all_together_no_more_than_workers_can_do() {
    let (mut book, now) = (Book::new(PORT, WORKERS, Instant::now()), Instant::now());
    let mut made = 0;
    for other in 10..1000 {
        made += usize::from(allot(&mut book, [A, PeerIndex(other)], 1, now).is_ok());
    }
    assert_eq!(made, ALLOTMENTS_PER_PEER_MAX);
    let refused = allot(&mut book, [PeerIndex(5), A], 1, now);
    assert_eq!(refused.unwrap_err(), RelayRefusal::Busy, "as the other end it counts too");
    let mut lanes = 0;
    for other in 2000..2100 {
        lanes += allot(&mut book, [B, PeerIndex(other)], 64, now).map_or(0, |made| made.lanes[0].len());
    }
    assert_eq!(lanes, ALLOTTED_LANES_PER_PEER_MAX);
    for peer in 3000..3500 {
        let _ = allot(&mut book, [PeerIndex(peer), PeerIndex(peer + 1000)], 64, now);
    }
    let all: usize = book.allotments().map(|allotment| allotment.lanes).sum();
    assert!(all <= FORWARDS_PER_WORKER_MAX * usize::from(WORKERS), "{all}");
    // Asking again for the same replaces.
    let before = book.allotments().count();
    assert!(allot(&mut book, [B, PeerIndex(2000)], 64, now).is_ok());
    assert_eq!(book.allotments().count(), before);
    assert_eq!(allot(&mut book, [A, A], 1, now).unwrap_err(), RelayRefusal::OtherEnd);
}

#[test]
fn the_other_end_decides_which_lanes_there_are() {
    let (mut book, now) = (Book::new(PORT, WORKERS, Instant::now()), Instant::now());
    let made = allot(&mut book, [A, B], 3, now).unwrap();
    assert_eq!(book.confirm(made.id, LaneSet(0b1110)), LaneSet(0b110));
    assert_eq!(book.allotments().map(|allotment| allotment.lanes).sum::<usize>(), 2);
    assert_eq!(book.confirm(made.id, LaneSet(0)), LaneSet(0));
    assert_eq!(book.allotments().count(), 0);
    assert_eq!(book.confirm(made.id, LaneSet(1)), LaneSet(0));
}

/// Datagrams between two binders and a book: lost, late, doubled, overtaken.
struct Network {
    random: Random,
    loss_percent: u64,
    under_way: BTreeMap<(Instant, u64), (usize, usize, Vec<u8>)>,
    sent: u64,
}

impl Network {
    /// `end` 0 and 1 are the ends, 2 is the relay; `route` is the end's.
    fn send(&mut self, to: usize, of: (usize, usize), datagram: &[u8], now: Instant) {
        for _ in 0..1 + u64::from(self.random.below(100) < 10) {
            if self.random.below(100) < self.loss_percent {
                continue;
            }
            let delay = Duration::from_millis(5 + self.random.below(120));
            self.sent += 1;
            let tagged = (of.0 << 8 | to, of.1, datagram.to_vec());
            self.under_way.insert((now + delay, self.sent), tagged);
        }
    }
}

/// Runs two ends with two routes each, of which some do not work, until `until`. One end's translator changes its port in
/// between. Returns whether both ends are open in the end, and where the relay forwards to.
fn run(seed: u64, loss_percent: u64) {
    let mut random = Random::of(seed);
    let start = Instant::now();
    let (mut book, mut now) = (Book::new(PORT, WORKERS, Instant::now()), start);
    let made = allot(&mut book, [A, B], 1, now).unwrap();
    let relay = local(&made.lanes[0][0]);
    let keys = made.lanes.each_ref().map(|lanes| lanes[0].token.keys());
    let works: [[bool; 2]; 2] =
        std::array::from_fn(|_| [[true, true], [true, false], [false, true]][random.below(3) as usize]);
    let mut ends = [0, 1].map(|_| Binder::new(2, now));
    let mut network = Network { random, loss_percent, under_way: BTreeMap::new(), sent: 0 };
    let mut port = [4000u16, 5000];
    let seen = |port: [u16; 2], end: usize, route: usize| {
        SocketAddr::from(([198, 51, 100, end as u8], port[end] + route as u16))
    };
    let mut forwards = BTreeMap::<ForwardId, [Ends; 2]>::new();
    let (rebinds_at, ends_at) = (start + Duration::from_secs(20), start + Duration::from_secs(50));
    let mut has_rebound = false;
    while now < ends_at {
        if now >= rebinds_at && !has_rebound {
            has_rebound = true;
            port[0] += 100;
            // The lane is silent by now.
            ends[0].hurry(now);
        }
        for end in 0..2 {
            while let Some(sent) = ends[end].poll_transmit(now) {
                if works[end][sent.route] {
                    network.send(2, (end, sent.route), &proven(&keys[end], sent.number, sent.proof), now);
                }
            }
        }
        while let Some(entry) = network.under_way.first_entry().filter(|entry| entry.key().0 <= now) {
            let (tag, route, datagram) = entry.remove();
            let (end, to) = (tag >> 8, tag & 0xff);
            if to == 2 {
                let path = Ends { local: relay, remote: seen(port, end, route) };
                if let Ok(answer) = book.handle_bind(path, &datagram, now, || true) {
                    assert_eq!(answer.len(), datagram.len());
                    network.send(end, (end, route), &answer, now);
                }
            } else {
                let bind = keys[end].verify(&UnverifiedBind::parse(&datagram).unwrap()).unwrap();
                match bind.kind {
                    BindKind::Challenge { proof } => ends[end].handle_challenge(route, bind.number, proof, now),
                    kind => {
                        ends[end].handle_answer(route, bind.number, matches!(kind, BindKind::Open { .. }), now);
                    }
                }
            }
            while let Some(step) = book.poll_step() {
                match step {
                    Step::Open { id, worker, halves } => {
                        assert_eq!(relay.port(), PORT + u16::from(worker.0));
                        assert!(forwards.insert(id, halves).is_none(), "seed {seed}: an id is used once");
                    }
                    Step::Close { id, .. } => assert!(forwards.remove(&id).is_some(), "seed {seed}: never opened"),
                }
                assert!(forwards.len() <= 1, "seed {seed}: {forwards:?}");
            }
        }
        let next = ends.iter().filter_map(Binder::poll_timeout).chain(network.under_way.keys().next().map(|key| key.0));
        now = next.chain([ends_at]).min().unwrap().max(now + Duration::from_millis(1));
        if !has_rebound {
            now = now.min(rebinds_at.max(now));
        }
        assert!(network.sent < 3000, "seed {seed}: bounded");
    }
    let routes = [0, 1].map(|end: usize| ends[end].open_route());
    for end in 0..2 {
        let route = routes[end].unwrap_or_else(|| panic!("seed {seed}, loss {loss_percent}: end {end} is not open"));
        assert!(works[end][route], "seed {seed}: by a route that works");
        let halves = forwards.values().next().expect("something is forwarded");
        assert_eq!(halves[end].remote, seen(port, end, route), "seed {seed}: to where the end is");
    }
}

#[test]
fn both_ends_are_bound_whatever_the_network_does_and_wherever_they_go() {
    for seed in 1..=90 {
        run(seed, [0, 10, 25][seed as usize % 3]);
    }
}

#[test]
fn a_relay_that_does_not_answer_is_given_up_after_bounded_time_and_datagrams() {
    let start = Instant::now();
    for routes in 0..=4 {
        let (mut binder, mut now, mut sent) = (Binder::new(routes, start), start, 0);
        while let Some(at) = binder.poll_timeout() {
            now = now.max(at);
            while binder.poll_transmit(now).is_some() {
                sent += 1;
            }
        }
        assert!(binder.has_failed());
        assert!(now <= start + Duration::from_secs(6) && sent <= 9 * routes, "{routes}: {sent}");
    }
}

#[test]
fn a_relay_that_falls_silent_is_given_up_and_an_other_end_that_does_not_come_too() {
    let start = Instant::now();
    let failed_after = |is_open: bool, answers: bool| {
        let (mut binder, mut now) = (Binder::new(1, start), start);
        let first = binder.poll_transmit(now).unwrap();
        binder.handle_answer(0, first.number, is_open, now);
        while let Some(at) = binder.poll_timeout() {
            now = now.max(at);
            while let Some(sent) = binder.poll_transmit(now) {
                if answers {
                    binder.handle_answer(0, sent.number, is_open, now);
                }
            }
            if now > start + Duration::from_secs(600) {
                return None;
            }
        }
        Some(now - start)
    };
    assert!(failed_after(true, false).unwrap() < Duration::from_secs(20));
    assert!(failed_after(false, true).unwrap() < Duration::from_secs(13));
    assert_eq!(failed_after(true, true), None);
}

#[test]
fn an_old_answer_says_nothing_any_more() {
    let now = Instant::now();
    let mut binder = Binder::new(1, now);
    let first = binder.poll_transmit(now).unwrap().number;
    assert!(!binder.handle_answer(0, first, false, now));
    let at = binder.poll_timeout().unwrap();
    let second = binder.poll_transmit(at).unwrap().number;
    assert!(binder.handle_answer(0, second, true, at));
    assert!(!binder.handle_answer(0, first, false, at), "it is older");
    assert!(!binder.handle_answer(0, second, false, at), "it has counted already");
    assert!(!binder.handle_answer(0, second + 1, false, at), "it was never asked");
    assert!(!binder.handle_answer(1, second, false, at), "by no route that there is");
    assert_eq!(binder.open_route(), Some(0));
}

#[test]
fn workers_take_turns() {
    let (mut book, now) = (Book::new(PORT, 3, Instant::now()), Instant::now());
    let made = allot(&mut book, [A, B], 6, now).unwrap();
    let workers: Vec<_> = made.lanes[0].iter().map(|lane| lane.worker).collect();
    assert_eq!(workers, [0, 1, 2, 0, 1, 2].map(WorkerId));
    let names: BTreeSet<_> = made.lanes.iter().flatten().map(|lane| lane.token.keys().name()).collect();
    assert_eq!(names.len(), 12, "every end of every lane has a token of its own");
}
