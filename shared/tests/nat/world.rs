//! Two ends, the translators between them, two servers that tell what they see, and what happens to all of them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::AddAssign;
use std::time::{Duration, Instant};

use ringlane_shared::path::choice::{Ends, PathClass};
use ringlane_shared::wire::probe::Transaction;

use crate::end::{End, PORT, ends, network_of};
use crate::reference::{Verdict, verdict};
use crate::translator::{Kind, Network, Random, Translator, address};

const SERVERS: [usize; 2] = [2, 3];
/// From the first question to the servers to both ends' first probe.
const EXCHANGE: u64 = 300;
const EXCHANGE_PAUSE: u64 = 2000;
const SILENT: u64 = 1500;
const DEAD: u64 = 8000;
/// All that probing may cost one end between two things that happen: exchanges become rare.
const PROBES_MAX: u64 = 16_000;
/// How long the ends have: the pauses between two looks for something better may be five minutes.
const PATIENCE: u64 = 700_000;

/// What came of some runs.
#[derive(Clone, Copy, Default, Debug)]
pub struct Tally {
    pub connected: u64,
    pub through_translators: u64,
    pub guessed: u64,
    pub lucky: u64,
    pub impossible: u64,
    pub upgrades: u64,
    pub moves: u64,
    pub probes: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.connected += other.connected;
        self.through_translators += other.through_translators;
        self.guessed += other.guessed;
        self.lucky += other.lucky;
        self.impossible += other.impossible;
        self.upgrades += other.upgrades;
        self.moves += other.moves;
        self.probes += other.probes;
    }
}

#[derive(Clone, Copy, Debug)]
enum Content {
    Request(Transaction),
    Reply(Transaction),
    Dial,
    Accept,
    Keep,
    Ask,
    Answer,
    WhoAmI,
    YouAre(SocketAddr),
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Arrives {
        at: usize,
        from: SocketAddr,
        to: SocketAddr,
        content: Content,
    },
    /// Both ends have each other's offers.
    Exchanged,
    /// Ends look after their lanes.
    Watch,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Trouble {
    /// The outermost translator of an end forgets all mappings.
    Flushed(usize),
    /// It gets another address.
    Renumbered(usize),
    /// Both ends come onto one network.
    Meet,
    /// They leave it.
    Part,
    /// Nothing passes outside of their common network, for some time.
    Dark,
}

pub struct World {
    random: Random,
    start: Instant,
    now: u64,
    sequence: u64,
    events: BTreeMap<(u64, u64), Event>,
    network: Network,
    ends: [End; 2],
    latency: u64,
    loss_percent: u64,
    is_dark: bool,
    dial: Option<(Ends, u64, u32)>,
    exchanged_at: u64,
    exchange_due: Option<u64>,
    failures: u32,
    /// Turns without time passing.
    spins: u32,
    /// No port that a translator counts to has been asked for before.
    is_fresh: bool,
    tally: Tally,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let mut network = Network::default();
        let mut realms = [0; 2];
        let mut next = 1;
        let shared = random.below(6);
        for (end, realm) in realms.iter_mut().enumerate() {
            // Both behind one translator, both behind one but each behind another first, or each on its own.
            if end == 1 && shared == 0 && next > 1 {
                *realm = 1;
                continue;
            }
            let depth = [0, 1, 1, 1, 2][random.below(5) as usize];
            let mut parent = if end == 1 && shared == 1 && next > 1 { 1 } else { 0 };
            for _ in 0..depth {
                let outside = match parent {
                    0 => address(203, 0, 113, 10 + next as u8),
                    parent => address(10, 0, parent as u8, 10 + next as u8),
                };
                let kind = Kind::any(&mut random);
                network.translators.insert(next, Translator::new(kind, outside, parent, &mut random));
                parent = next;
                next += 1;
            }
            *realm = parent;
        }
        let ends = [0, 1].map(|end| {
            let realm = realms[end];
            let own = match realm {
                0 => address(192, 0, 2 + 10 * end as u8, 1),
                realm => address(10, 0, realm as u8, 1 + end as u8),
            };
            network.hosts.insert((realm, own), end);
            End::new(end == 0, realm, own)
        });
        for (server, host) in SERVERS.into_iter().zip(1..) {
            network.hosts.insert((0, address(198, 51, 100, host)), server);
        }
        let (latency, loss_percent) = (2 + random.below(60), random.below(3) * random.below(8));
        let mut world = Self {
            random,
            start: Instant::now(),
            now: 0,
            sequence: 0,
            events: BTreeMap::new(),
            network,
            ends,
            latency,
            loss_percent,
            is_dark: false,
            dial: None,
            exchanged_at: 0,
            exchange_due: Some(0),
            failures: 0,
            spins: 0,
            is_fresh: true,
            tally: Tally::default(),
        };
        world.plan(500, Event::Watch);
        world
    }

    fn at(&self) -> Instant {
        self.start + Duration::from_millis(self.now)
    }

    fn plan(&mut self, after: u64, event: Event) {
        self.sequence += 1;
        self.events.insert((self.now + after, self.sequence), event);
    }

    pub fn run(mut self) -> Tally {
        let first = self.settle(None);
        let is_through = self.ends.iter().any(|end| !self.network.chain(end.addresses[0].0).is_empty());
        match (first, self.ends[0].lane.is_some()) {
            (Verdict::Never, _) => self.tally.impossible += 1,
            (_, true) => {
                self.tally.connected += 1;
                self.tally.through_translators += u64::from(is_through);
                self.tally.lucky += u64::from(first == Verdict::May);
            }
            _ => {}
        }
        let guessed = self.ends[0].lane.as_ref().map(|lane| lane.book.own().remote);
        let named = self.ends[0].theirs.as_ref().is_some_and(|theirs| {
            let lane = ringlane_shared::id::LaneIndex::new(0).unwrap();
            theirs.lane_candidates(lane).any(|(_, address)| Some(address) == guessed)
        });
        self.tally.guessed += u64::from(guessed.is_some() && !named);
        let mut is_near = false;
        for _ in 0..self.random.below(4) {
            let end = self.random.below(2) as usize;
            let trouble = match self.random.below(5) {
                0 => Trouble::Flushed(end),
                1 => Trouble::Renumbered(end),
                2 | 3 if is_near => Trouble::Part,
                2 | 3 => Trouble::Meet,
                _ => Trouble::Dark,
            };
            is_near = self.happen(trouble, is_near);
            self.settle(Some(trouble));
        }
        self.tally.moves += self.ends.iter().map(|end| end.moves).sum::<u64>();
        self.tally.probes += self.ends.iter().map(|end| end.probes_sent).sum::<u64>();
        self.tally
    }

    fn happen(&mut self, trouble: Trouble, mut is_near: bool) -> bool {
        match trouble {
            Trouble::Flushed(end) | Trouble::Renumbered(end) => {
                let outermost = self.network.chain(self.ends[end].addresses[0].0).last().copied();
                if let Some(translator) = outermost.and_then(|at| self.network.translators.get_mut(&at)) {
                    translator.flush();
                    if let Trouble::Renumbered(_) = trouble {
                        translator.outside = address(203, 0, 113, 100 + self.random.below(100) as u8);
                    }
                    self.exchange_soon(1000);
                }
            }
            Trouble::Meet => {
                is_near = true;
                for (end, number) in self.ends.iter_mut().zip(1..) {
                    let own = address(192, 168, 77, number);
                    end.addresses.push((77, own));
                    end.on_link.push(network_of(own));
                    self.network.hosts.insert((77, own), usize::from(number) - 1);
                }
                self.exchange_soon(0);
            }
            Trouble::Part => {
                is_near = false;
                for end in &mut self.ends {
                    let (realm, own) = end.addresses.pop().unwrap();
                    end.on_link.pop();
                    self.network.hosts.remove(&(realm, own));
                }
                self.exchange_soon(0);
            }
            Trouble::Dark => {
                self.is_dark = true;
                let until = self.now + 1000 + self.random.below(60_000);
                self.run_until(until);
                self.is_dark = false;
            }
        }
        is_near
    }

    fn exchange_soon(&mut self, after: u64) {
        let at = (self.now + after).max(self.exchanged_at + EXCHANGE_PAUSE);
        self.exchange_due = Some(self.exchange_due.map_or(at, |due| due.min(at)));
    }

    /// Lets time pass until all is as the reference says, and then some, in which nothing may change.
    fn settle(&mut self, trouble: Option<Trouble>) -> Verdict {
        let realms = [0, 1].map(|end| self.ends[end].addresses[0].0);
        let is_near = self.ends[0].addresses.len() == 2;
        let mut wanted = verdict(&self.network, realms, is_near, true);
        if let (Verdict::Must(PathClass::Translated), false) = (wanted, self.is_fresh)
            && [0, 1].iter().any(|end| {
                self.network.chain(realms[*end]).iter().any(|at| self.network.translators[at].kind.is_symmetric())
            })
        {
            // Where a translator that counts goes on is known of the first exchange only.
            wanted = Verdict::May;
        }
        self.is_fresh = false;
        let (began, probes) = (self.now, self.ends.each_ref().map(|end| end.probes_sent));
        let is_there = |world: &Self| match wanted {
            // It is the client that chooses, and what is near to it need not be to the server.
            Verdict::Must(class) => world.classes().is_some_and(|[found, _]| !class.is_better_than(found)),
            Verdict::May | Verdict::Never => world.now >= began + 30_000,
        };
        while !is_there(self) {
            assert!(
                self.now < began + PATIENCE,
                "{trouble:?}: {wanted:?} within {PATIENCE} ms, but {:?}; {:?}; {:?}; {:?}",
                self.classes(),
                self.ends
                    .each_ref()
                    .map(|end| end.lane.as_ref().map(|lane| (lane.book.own(), self.now - lane.heard_at))),
                (
                    self.loss_percent,
                    self.latency,
                    self.exchanged_at,
                    self.exchange_due,
                    self.dial,
                    self.failures,
                    self.now
                ),
                realms.map(|realm| self
                    .network
                    .chain(realm)
                    .iter()
                    .map(|at| self.network.translators[at].kind)
                    .collect::<Vec<_>>()),
            );
            self.run_until(self.now + 500);
        }
        if wanted == Verdict::Never {
            assert!(self.ends.iter().all(|end| end.lane.is_none()), "there is no way");
        }
        // What is on its way may still arrive.
        self.run_until(self.now + 20_000);
        if let Verdict::Must(_) = wanted {
            let moves = self.ends.each_ref().map(|end| end.moves);
            let lanes = self.ends.each_ref().map(|end| end.lane.as_ref().map(|lane| lane.began_at));
            self.run_until(self.now + 60_000);
            assert_eq!(self.ends.each_ref().map(|end| end.moves), moves, "nothing goes to and fro");
            assert_eq!(self.ends.each_ref().map(|end| end.lane.as_ref().map(|lane| lane.began_at)), lanes);
            assert!(
                is_there(self),
                "{trouble:?}: {wanted:?} no more: {:?}; {:?}",
                self.ends.each_ref().map(|end| end.lane.as_ref().map(|lane| (
                    lane.book.own(),
                    lane.book.class(),
                    self.now - lane.heard_at
                ))),
                realms.map(|realm| self
                    .network
                    .chain(realm)
                    .iter()
                    .map(|at| self.network.translators[at].kind)
                    .collect::<Vec<_>>()),
            );
        }
        for (end, before) in self.ends.iter().zip(probes) {
            assert!(end.probes_sent - before <= PROBES_MAX, "{} probes", end.probes_sent - before);
        }
        wanted
    }

    /// What the lanes of both ends are like, where both have one and they are one path.
    fn classes(&self) -> Option<[PathClass; 2]> {
        let [Some(a), Some(b)] = self.ends.each_ref().map(|end| end.lane.as_ref()) else { return None };
        let is_well = self.now - a.heard_at < SILENT && self.now - b.heard_at < SILENT;
        is_well.then(|| [a.book.class(), b.book.class()])
    }

    fn run_until(&mut self, until: u64) {
        loop {
            for end in 0..2 {
                self.drive(end);
            }
            if self.exchange_due.is_some_and(|due| due <= self.now) {
                self.exchange();
            }
            let timeouts = self.ends.iter().flat_map(|end| {
                let prober = end.prober.as_ref().and_then(|prober| prober.poll_timeout()).map(|at| self.after(at));
                let retry = end.retry.as_ref().map(|(_, retry)| self.after(retry.poll_timeout()));
                prober.into_iter().chain(retry).chain(end.decide_at)
            });
            let dial = self.dial.map(|(_, at, _)| at);
            let event = self.events.keys().next().map(|(at, _)| *at);
            let next = timeouts.chain(dial).chain(event).chain(self.exchange_due).min().unwrap().max(self.now);
            if next > until {
                self.now = until;
                return;
            }
            self.spins = if next == self.now { self.spins + 1 } else { 0 };
            assert!(
                self.spins < 2000,
                "turns in circles: {:?} {:?} {:?} {:?}",
                self.exchange_due,
                self.dial,
                self.ends.each_ref().map(|end| (
                    end.prober.as_ref().and_then(|p| p.poll_timeout()).map(|at| self.after(at)),
                    end.retry,
                    end.decide_at
                )),
                (event, self.now)
            );
            self.now = next;
            while let Some(entry) = self.events.first_entry().filter(|entry| entry.key().0 <= next) {
                let event = entry.remove();
                self.handle(event);
            }
        }
    }

    fn after(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.start).as_micros().div_ceil(1000) as u64
    }

    fn exchange(&mut self) {
        (self.exchange_due, self.exchanged_at) = (None, self.now);
        for end in 0..2 {
            let (_, own) = self.ends[end].addresses[0];
            for host in 1..=2 {
                self.send(end, own, SocketAddr::new(address(198, 51, 100, host), 3478), Content::WhoAmI);
            }
        }
        self.plan(EXCHANGE, Event::Exchanged);
    }

    fn drive(&mut self, number: usize) {
        let at = self.at();
        let (now, is_client) = (self.now, number == 0);
        let mut requests = Vec::new();
        let end = &mut self.ends[number];
        if let Some(prober) = &mut end.prober {
            while let Some(request) = prober.poll_transmit(at) {
                requests.push(request);
            }
        }
        end.probes_sent += requests.len() as u64;
        let is_over = end.prober.as_ref().is_some_and(|prober| prober.poll_timeout().is_none());
        let chosen = end.decide(Duration::from_millis(2 * self.latency), now, at);
        if end.retry.as_mut().is_some_and(|(_, retry)| retry.poll(at)) {
            self.exchange_soon(0);
        }
        let end = &mut self.ends[number];
        if is_over {
            (end.prober, end.decide_at) = (None, None);
            if end.lane.is_none() && is_client {
                // As the coordinator asks again.
                self.failures += 1;
                let pause = (20u64 << (2 * self.failures).min(12)).min(30_000);
                self.exchange_soon(pause);
            }
        }
        for request in requests {
            self.send(number, request.pair.local, request.pair.remote, Content::Request(request.transaction));
        }
        if let Some(to) = chosen {
            self.tally.upgrades += 1;
            self.send(number, to.local.ip(), to.remote, Content::Ask);
        }
        if is_client && let Some((path, due, count)) = self.dial.filter(|(_, due, _)| *due <= now) {
            let goes_on = count < 6 && self.ends[0].lane.is_none();
            self.dial = goes_on.then_some((path, due + 200, count + 1));
            if goes_on {
                self.send(0, path.local.ip(), path.remote, Content::Dial);
            } else if self.ends[0].lane.is_none() {
                self.exchange_soon(1000);
            }
        }
    }

    fn send(&mut self, from: usize, local: IpAddr, to: SocketAddr, content: Content) {
        let Some(realm) = self.ends[from].realm_of(local) else { return };
        self.carry(realm, SocketAddr::new(local, PORT), to, content);
    }

    fn carry(&mut self, realm: usize, from: SocketAddr, to: SocketAddr, content: Content) {
        // What keeps a lane is asked so often that chance does not silence it.
        let is_unlucky = !matches!(content, Content::Keep) && self.random.below(100) < self.loss_percent;
        let is_lost = is_unlucky || (self.is_dark && realm != 77);
        let Some((at, from, to)) = self.network.carry(realm, from, to, self.now, &mut self.random) else { return };
        if !is_lost {
            let is_local = realm != 0 && from.ip().is_ipv4() && network_of(from.ip()).contains(&to.ip());
            self.plan(if is_local { 1 } else { self.latency }, Event::Arrives { at, from, to, content });
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Exchanged => self.exchanged(),
            Event::Watch => self.watch(),
            Event::Arrives { at, from, to, content } if at < 2 => self.arrive(at, from, to, content),
            Event::Arrives { from, to, content: Content::WhoAmI, .. } => {
                self.carry(0, to, from, Content::YouAre(from));
            }
            Event::Arrives { .. } => {}
        }
    }

    fn exchanged(&mut self) {
        let at = self.at();
        let offers = self.ends.each_mut().map(End::make_offer);
        for (end, other) in [(0, 1), (1, 0)] {
            self.ends[end].theirs = Some(offers[other].clone());
            if let Some(lane) = &mut self.ends[end].lane {
                lane.book.forgive(at);
                let own = lane.book.own();
                let class = self.ends[end].class_of(own);
                if let Some(lane) = &mut self.ends[end].lane {
                    lane.book.set_class(class);
                }
            }
            self.ends[end].review(false, at);
        }
        // One that only one end has is asked for anew.
        if self.ends[0].lane.is_none() || self.ends[1].lane.is_none() {
            self.ends.iter_mut().for_each(|end| end.lane = None);
        }
        self.dial = None;
        for end in 0..2 {
            self.ends[end].probe(at, &mut self.random);
        }
    }

    fn arrive(&mut self, number: usize, from: SocketAddr, to: SocketAddr, content: Content) {
        let (now, at) = (self.now, self.at());
        let fresh = Transaction(self.random.next());
        let path = Ends { local: to, remote: from };
        let end = &mut self.ends[number];
        if end.realm_of(to.ip()).is_none() {
            return;
        }
        let pair = ringlane_shared::path::candidate::Pair { local: to.ip(), remote: from };
        debug_assert_eq!(ends(pair), path);
        match content {
            Content::YouAre(seen) => {
                let server = usize::from(from.ip() != address(198, 51, 100, 1));
                end.seen[server] = Some(seen);
            }
            Content::Request(transaction) => {
                let Some(prober) = &mut end.prober else { return };
                prober.handle_request(pair, fresh, at);
                self.send(number, to.ip(), from, Content::Reply(transaction));
            }
            Content::Reply(transaction) => {
                let Some(prober) = &mut end.prober else { return };
                prober.handle_reply(pair, transaction, at);
                if end.lane.is_none()
                    && number == 0
                    && self.dial.is_none()
                    && let Some(winner) = prober.winner()
                {
                    self.dial = Some((ends(winner.pair), now, 0));
                }
            }
            Content::Dial => {
                if end.lane.is_none() {
                    end.begin_lane(path, now, at);
                }
                self.send(number, to.ip(), from, Content::Accept);
            }
            Content::Accept if end.lane.is_none() => {
                end.begin_lane(path, now, at);
                (self.dial, self.failures) = (None, 0);
            }
            Content::Accept | Content::WhoAmI => {}
            Content::Ask => {
                if end.lane.is_some() {
                    self.send(number, to.ip(), from, Content::Answer);
                    // A client that is asked from elsewhere asks back, as its worker does, if it hears nothing else.
                    if number == 0 && self.is_silent(0) {
                        self.send(number, to.ip(), from, Content::Ask);
                    }
                }
            }
            Content::Answer => {
                let is_silent = self.is_silent(number);
                let end = &mut self.ends[number];
                let Some(lane) = &mut end.lane else { return };
                let is_taken = lane.taking.is_some_and(|(to, _)| to == path);
                if is_taken || is_silent {
                    lane.heard_at = now;
                    end.move_to(path, is_silent, at);
                    self.send(number, to.ip(), from, Content::Keep);
                }
            }
            Content::Keep => {
                let is_silent = self.is_silent(number);
                let end = &mut self.ends[number];
                let Some(lane) = &mut end.lane else { return };
                // A client asks its own path along with the other one.
                let follows = number == 1 || is_silent || now - lane.own_heard_at > SILENT;
                lane.heard_at = now;
                if lane.book.own() == path || follows {
                    lane.own_heard_at = now;
                }
                if lane.book.own() != path && follows {
                    end.move_to(path, is_silent, at);
                }
            }
        }
    }

    fn is_silent(&self, end: usize) -> bool {
        self.ends[end].lane.as_ref().is_some_and(|lane| {
            self.now - lane.heard_at > SILENT || self.ends[end].realm_of(lane.book.own().local.ip()).is_none()
        })
    }

    /// What workers and control do for lanes that stand, twice a second.
    fn watch(&mut self) {
        let at = self.at();
        for number in 0..2 {
            let is_silent = self.is_silent(number);
            let end = &mut self.ends[number];
            let Some(lane) = &mut end.lane else { continue };
            if self.now - lane.heard_at > DEAD {
                end.lane = None;
                end.retry = None;
                self.failures = 0;
                self.exchange_soon(20);
                continue;
            }
            if let Some((to, _)) = lane.taking.take_if(|(_, since)| self.now - *since > 2000) {
                lane.book.handle_unanswered(to, at);
            }
            let (own, taking) = (lane.book.own(), lane.taking);
            let mut asks = taking.map(|(to, _)| to).into_iter().collect::<Vec<_>>();
            if is_silent {
                asks.extend(lane.book.others().into_iter().take(2));
                let lane = ringlane_shared::id::LaneIndex::new(0).unwrap();
                let named: Vec<_> = end.theirs.iter().flat_map(|theirs| theirs.lane_candidates(lane)).collect();
                for (_, remote) in named {
                    asks.extend(end.ips().into_iter().map(|ip| Ends { local: SocketAddr::new(ip, PORT), remote }));
                }
                self.exchange_soon(0);
            }
            self.send(number, own.local.ip(), own.remote, Content::Keep);
            for ask in asks {
                self.send(number, ask.local.ip(), ask.remote, Content::Ask);
            }
        }
        self.plan(500, Event::Watch);
    }
}
