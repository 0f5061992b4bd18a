//! Coordinators against each other, in a simulated world: a network that delays, loses and reorders, lane engines whose
//! set-ups succeed, fail and are never answered, nodes that are killed and come back as somebody new. When the chaos is
//! over, all must be well within a bounded time.
//!
//! Every run follows from its seed. A failure names the seed; `RINGLANE_SEED=<seed>` runs that one alone.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use libp2p::identity::Keypair;
use ringlane_control::coordinator::{AskFailure, AskId, Coordinator, Intent, LaneUp, Us};
use ringlane_shared::config::PeerSettings;
use ringlane_shared::id::{LaneIndex, LaneSerial, PeerId, PeerIndex};
use ringlane_shared::lane::keys::Role;
use ringlane_shared::limits::TOKEN_BYTES;
use ringlane_shared::plane::{LaneGauges, Snapshot};
use ringlane_shared::wire::offer::{Answer, Features, LaneSet, LinkSecrets, Offer};

const SEEDS: u64 = 400;
/// How long things go wrong, and how long after that all must be well: a full backoff and every timeout of a lane.
const CHAOS: Duration = Duration::from_secs(60);
const HEALING: Duration = Duration::from_secs(60);
/// After healing, nothing may happen any more, except for attempts at a lane that cannot be.
const CALM: Duration = Duration::from_secs(120);

const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(10);
const SET_UP_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Questions one node may ask in one second, of all its peers together, whatever happens: a few per connection.
const ASKS_PER_SECOND_MAX: usize = 40;

type Token = [u8; TOKEN_BYTES];

/// Whom an answer goes to.
#[derive(Clone, Copy)]
struct Asker {
    node: usize,
    life: u64,
    connection: u64,
    ask: AskId,
}

/// What will happen. Those that concern one life of a node carry its number and do nothing after its end.
enum Event {
    Mishap,
    Heal,
    Connected {
        node: usize,
        life: u64,
        connection: u64,
    },
    Disconnected {
        node: usize,
        life: u64,
        connection: u64,
    },
    Offer {
        to: usize,
        offer: Offer,
        asker: Asker,
    },
    Answer {
        asker: Asker,
        from: usize,
        answer: Result<Answer, AskFailure>,
    },
    Confirmed {
        node: usize,
        life: u64,
        set_up: u64,
    },
    SetUpOver {
        node: usize,
        life: u64,
        set_up: u64,
    },
    /// The time has come to notice that a lane's other end is gone.
    LaneCheck {
        node: usize,
        life: u64,
        serial: LaneSerial,
    },
    LaneEnded {
        node: usize,
        life: u64,
        serial: LaneSerial,
        peer: PeerIndex,
        index: LaneIndex,
    },
}

#[derive(Clone, Copy)]
struct SetUp {
    id: u64,
    token: Token,
    /// Who the peer was.
    instance: [u8; 16],
}

#[derive(Clone, Copy)]
struct Lane {
    peer: PeerIndex,
    index: LaneIndex,
    token: Token,
    instance: [u8; 16],
}

/// One node: the coordinator under test, and what its engine and workers would hold.
struct Site {
    life: u64,
    coordinator: Coordinator<Asker>,
    set_ups: BTreeMap<(PeerIndex, LaneIndex), SetUp>,
    up: BTreeMap<LaneSerial, Lane>,
    /// Lanes that the coordinator has been told of, and has not yet retired or been told the end of.
    handed_over: BTreeSet<LaneSerial>,
    connections: BTreeMap<u64, usize>,
    tables: Option<Arc<Snapshot>>,
    asks: Vec<Instant>,
    /// The newest question to each peer, while anything connects the two.
    asking: BTreeMap<PeerIndex, AskId>,
}

struct World {
    random: Random,
    start: Instant,
    now: Instant,
    ids: Vec<PeerId>,
    workers: Vec<u8>,
    sites: Vec<Site>,
    connections: BTreeMap<u64, [(usize, u64); 2]>,
    events: BTreeMap<(Instant, u64), Event>,
    numbers: u64,
    is_chaos: bool,
    /// A lane whose handshakes never reach the other end.
    blocked: Option<LaneIndex>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let count = 2 + usize::from(random.one_in(3));
        let start = Instant::now();
        let mut world = Self {
            ids: (1..=count as u8).map(identity).collect(),
            workers: (0..count).map(|_| 1 + random.below(4) as u8).collect(),
            sites: Vec::new(),
            connections: BTreeMap::new(),
            events: BTreeMap::new(),
            numbers: 0,
            is_chaos: true,
            blocked: None,
            start,
            now: start,
            random,
        };
        if world.random.one_in(3) {
            world.blocked = LaneIndex::new(world.random.below(4) as u8);
        }
        for node in 0..count {
            let site = world.born(node);
            world.sites.push(site);
            world.carry_out(node);
        }
        for a in 0..count {
            for b in 0..a {
                world.connect(a, b);
            }
        }
        for _ in 0..world.random.below(40) {
            let at = world.random.up_to(CHAOS);
            world.plan(at, Event::Mishap);
        }
        world.plan(CHAOS, Event::Heal);
        world
    }

    fn run(&mut self) {
        let end = self.start + CHAOS + HEALING;
        self.run_until(end);
        self.assert_well();
        let asked: Vec<_> = self.sites.iter().map(|site| site.asks.len()).collect();
        let tables: Vec<_> = self.sites.iter().map(|site| site.coordinator.generation()).collect();
        self.run_until(end + CALM);
        self.assert_well();
        for (node, site) in self.sites.iter().enumerate() {
            // Backoff is at its longest by now: at least 30 s between two questions to one peer.
            let again = if self.blocked.is_some() { 4 * (self.ids.len() - 1) } else { 0 };
            assert!(site.asks.len() - asked[node] <= again, "node {node} goes on asking");
            assert_eq!(site.coordinator.generation(), tables[node], "node {node} goes on publishing");
        }
    }

    fn run_until(&mut self, end: Instant) {
        loop {
            let event = self.events.first_key_value().map(|((at, _), _)| *at);
            let timer = (0..self.sites.len())
                .filter_map(|node| Some((self.sites[node].coordinator.poll_timeout()?, node)))
                .min();
            match (timer, event) {
                (Some((at, node)), _) if at <= end && event.is_none_or(|event| at <= event) => {
                    self.now = self.now.max(at);
                    self.sites[node].coordinator.handle_timeout(self.now);
                    self.carry_out(node);
                    let next = self.sites[node].coordinator.poll_timeout();
                    assert!(next.is_none_or(|next| next > self.now), "node {node} would turn in circles");
                }
                (_, Some(at)) if at <= end => {
                    self.now = at;
                    let (_, event) = self.events.pop_first().unwrap();
                    self.happen(event);
                }
                _ => break,
            }
        }
        self.now = end;
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Mishap => self.mishap(),
            Event::Heal => self.heal(),
            Event::Connected { node, life, connection } if self.lives(node, life) => {
                let Some(ends) = self.connections.get(&connection) else { return };
                let other = ends.iter().find(|(end, _)| *end != node).unwrap().0;
                let peer = self.index(node, other);
                self.sites[node].connections.insert(connection, other);
                self.sites[node].coordinator.handle_connected(peer, self.now);
                self.carry_out(node);
            }
            Event::Disconnected { node, life, connection } if self.lives(node, life) => {
                let Some(other) = self.sites[node].connections.remove(&connection) else { return };
                let peer = self.index(node, other);
                if !self.sites[node].connections.values().any(|end| *end == other) {
                    self.sites[node].asking.remove(&peer);
                    self.sites[node].coordinator.handle_disconnected(peer);
                    if self.random.one_in(4) {
                        self.sites[node].coordinator.handle_disconnected(peer);
                    }
                    self.carry_out(node);
                }
            }
            Event::Offer { to, offer, asker } => {
                if !self.carries(asker.connection) {
                    return self.lose(asker, to);
                }
                let peer = self.index(to, asker.node);
                let (asked, instance) = (offer.lanes, offer.instance);
                self.sites[to].coordinator.handle_offer(peer, offer, asker, self.now);
                self.carry_out(to);
                let left = self.sites[to].up.values().filter(|lane| lane.peer == peer);
                for lane in left.filter(|_| self.ids[to].to_bytes() > self.ids[asker.node].to_bytes()) {
                    assert!(!asked.contains(lane.index), "a lane that the peer asks for anew has been closed");
                    assert_eq!(lane.instance, instance, "lanes to who the peer was have been closed");
                }
            }
            Event::Answer { asker, from, answer } if self.lives(asker.node, asker.life) => {
                let peer = self.index(asker.node, from);
                let instance = match &answer {
                    Ok(Answer::Offer(offer)) => Some(offer.instance),
                    _ => None,
                };
                let is_awaited = self.sites[asker.node].asking.get(&peer) == Some(&asker.ask);
                self.sites[asker.node].coordinator.handle_answer(peer, asker.ask, answer, self.now);
                self.carry_out(asker.node);
                let mut left = self.sites[asker.node].up.values().filter(|lane| lane.peer == peer);
                if let Some(instance) = instance.filter(|_| is_awaited) {
                    assert!(left.all(|lane| lane.instance == instance), "lanes to who the peer was have been closed");
                }
            }
            Event::Confirmed { node, life, set_up } if self.lives(node, life) => self.confirm(node, set_up),
            Event::SetUpOver { node, life, set_up } if self.lives(node, life) => {
                let found = self.sites[node].set_ups.iter().find(|(_, found)| found.id == set_up);
                if let Some((&(peer, index), _)) = found {
                    self.sites[node].set_ups.remove(&(peer, index));
                    self.sites[node].coordinator.handle_lane_failed(peer, index, "blocked".to_owned(), self.now);
                    self.carry_out(node);
                }
            }
            Event::LaneCheck { node, life, serial } if self.lives(node, life) => {
                let Some(lane) = self.sites[node].up.get(&serial) else { return };
                let other = self.peer_of(node, lane.peer);
                if !self.sites[other].up.values().any(|end| end.token == lane.token) {
                    self.end_lane(node, serial);
                }
            }
            Event::LaneEnded { node, life, serial, peer, index } if self.lives(node, life) => {
                let was_known = self.sites[node].handed_over.remove(&serial);
                let is_known = self.sites[node].coordinator.handle_lane_ended(peer, index, serial, self.now);
                assert_eq!(is_known, was_known, "a retired lane's end is no news, any other is");
                self.carry_out(node);
            }
            _ => {}
        }
    }

    /// One thing that goes wrong.
    fn mishap(&mut self) {
        let node = self.random.below(self.sites.len() as u64) as usize;
        let other = (node + 1) % self.sites.len();
        match self.random.below(9) {
            0 | 1 => self.connect(node, other),
            2 => {
                let all: Vec<_> = self.connections.keys().copied().collect();
                if !all.is_empty() {
                    let connection = all[self.random.below(all.len() as u64) as usize];
                    self.disconnect(connection, Duration::from_secs(1));
                }
            }
            3 | 4 => self.restart(node),
            5 | 6 => {
                let all: Vec<_> = self.sites[node].up.keys().copied().collect();
                if !all.is_empty() {
                    let serial = all[self.random.below(all.len() as u64) as usize];
                    self.end_lane(node, serial);
                }
            }
            7 => self.end_at_the_server_alone(node),
            _ => {
                let address = IpAddr::from(Ipv4Addr::from(0xc000_0200 + self.random.below(200) as u32));
                self.sites[node].coordinator.set_addresses(&[address], self.now);
                self.carry_out(node);
            }
        }
    }

    /// The end of all mishaps: whom nothing connects is connected, and connections to the dead end.
    fn heal(&mut self) {
        self.is_chaos = false;
        let dead: Vec<_> = self.connections.keys().copied().filter(|id| !self.carries(*id)).collect();
        for connection in dead {
            self.disconnect(connection, IDLE_TIMEOUT);
        }
        for a in 0..self.sites.len() {
            for b in 0..a {
                let stands = self
                    .connections
                    .iter()
                    .any(|(id, ends)| ends.iter().all(|(node, _)| [a, b].contains(node)) && self.carries(*id));
                if !stands {
                    self.connect(a, b);
                }
            }
        }
    }

    /// A new life of a node: all that it knew is gone. Others may hear of it at once, later, or only by its silence.
    fn restart(&mut self, node: usize) {
        let dead: Vec<_> = self.sites[node].connections.keys().copied().collect();
        let is_orderly = self.random.one_in(2);
        if is_orderly {
            for serial in self.sites[node].up.keys().copied().collect::<Vec<_>>() {
                self.close(node, serial, true);
            }
        } else {
            for serial in self.sites[node].up.keys().copied().collect::<Vec<_>>() {
                self.close(node, serial, false);
            }
        }
        self.sites[node] = self.born(node);
        self.carry_out(node);
        for connection in dead {
            let notice = if is_orderly { Duration::from_millis(100) } else { 3 * IDLE_TIMEOUT };
            self.disconnect(connection, notice);
        }
        for other in (0..self.sites.len()).filter(|other| *other != node) {
            if !self.random.one_in(3) {
                self.connect(node, other);
            }
        }
    }

    fn born(&mut self, node: usize) -> Site {
        let life = self.number();
        let peer_ids = self.ids.iter().enumerate().filter(|(other, _)| *other != node);
        let peers: Vec<_> = peer_ids
            .map(|(_, id)| PeerSettings {
                name: String::new(),
                id: *id,
                addresses: Vec::new(),
                routes: Vec::new(),
                carrier: None,
            })
            .collect();
        let mut instance = [0; 16];
        self.random.fill(&mut instance);
        let us = Us {
            id: self.ids[node],
            instance,
            lane_ids_from: self.random.below(1 << 32) as u32,
            features: Features::AES_128_GCM,
            workers: self.workers[node],
            port: 8100,
        };
        let mut random = Random(self.random.next());
        Site {
            life,
            coordinator: Coordinator::new(us, &peers, Box::new(move |bytes| random.fill(bytes))),
            set_ups: BTreeMap::new(),
            up: BTreeMap::new(),
            handed_over: BTreeSet::new(),
            connections: BTreeMap::new(),
            tables: None,
            asks: Vec::new(),
            asking: BTreeMap::new(),
        }
    }

    fn connect(&mut self, a: usize, b: usize) {
        let connection = self.number();
        let ends = [a, b].map(|node| (node, self.sites[node].life));
        self.connections.insert(connection, ends);
        for (node, life) in ends {
            let delay = self.delay();
            self.plan(delay, Event::Connected { node, life, connection });
        }
    }

    /// Ends a connection; its ends hear of that within `notice`.
    fn disconnect(&mut self, connection: u64, notice: Duration) {
        let Some(ends) = self.connections.remove(&connection) else { return };
        for (node, life) in ends {
            let delay = Duration::from_millis(200) + self.random.up_to(notice);
            self.plan(delay, Event::Disconnected { node, life, connection });
        }
    }

    fn carries(&self, connection: u64) -> bool {
        self.connections.get(&connection).is_some_and(|ends| ends.iter().all(|(node, life)| self.lives(*node, *life)))
    }

    /// Does what a node's coordinator wants done, as its runtime would.
    fn carry_out(&mut self, node: usize) {
        while let Some(intent) = self.sites[node].coordinator.poll_intent() {
            match intent {
                Intent::Ask { peer, ask, offer } => self.ask(node, peer, ask, offer),
                Intent::Answer { token: asker, answer } => {
                    if self.is_lost() || !self.carries(asker.connection) {
                        self.lose(asker, node);
                    } else {
                        let delay = self.delay();
                        self.plan(delay, Event::Answer { asker, from: node, answer: Ok(answer) });
                    }
                }
                Intent::SetUp { peer, role, ours, theirs, lanes } => {
                    self.set_up(node, peer, role, &ours, &theirs, lanes);
                }
                Intent::Scout { .. } => {}
                Intent::CancelSetUp(peer) => self.sites[node].set_ups.retain(|(of, _), _| *of != peer),
                Intent::Retire { worker, serial } => {
                    assert!(self.sites[node].handed_over.remove(&serial), "retired twice, or never up");
                    if let Some(lane) = self.sites[node].up.get(&serial).copied() {
                        assert_eq!(worker, lane.index.owner(self.workers[node]));
                        self.end_lane(node, serial);
                    }
                }
                Intent::Publish(tables) => {
                    let before = self.sites[node].tables.as_ref().map_or(0, |tables| tables.generation.0);
                    assert!(tables.generation.0 > before, "generations rise");
                    self.sites[node].tables = Some(tables);
                }
            }
        }
    }

    fn ask(&mut self, node: usize, peer: PeerIndex, ask: AskId, offer: Offer) {
        let other = self.peer_of(node, peer);
        let site = &mut self.sites[node];
        site.asks.push(self.now);
        site.asking.insert(peer, ask);
        let recent = site.asks.iter().rev().take_while(|at| **at + Duration::from_secs(1) > self.now).count();
        assert!(recent <= ASKS_PER_SECOND_MAX, "node {node} asks {recent} times within a second");
        let newest = site.connections.iter().rev().find(|(_, end)| **end == other);
        let Some(connection) = newest.map(|(id, _)| *id) else {
            site.coordinator.handle_answer(peer, ask, Err(AskFailure::NotConnected), self.now);
            return;
        };
        let asker = Asker { node, life: site.life, connection, ask };
        if self.is_lost() {
            return self.lose(asker, other);
        }
        let delay = self.delay();
        self.plan(delay, Event::Offer { to: other, offer, asker });
    }

    /// The asker hears of a question's or an answer's loss sooner or later.
    fn lose(&mut self, asker: Asker, from: usize) {
        let delay = if self.random.one_in(2) { self.delay() } else { EXCHANGE_TIMEOUT };
        let answer = Err(AskFailure::Exchange("lost".to_owned()));
        self.plan(delay, Event::Answer { asker, from, answer });
    }

    fn set_up(&mut self, node: usize, peer: PeerIndex, role: Role, ours: &Offer, theirs: &Offer, lanes: LaneSet) {
        let other = self.peer_of(node, peer);
        let life = self.sites[node].life;
        let secrets = match role {
            Role::Client => LinkSecrets::derive(ours, theirs),
            Role::Server => LinkSecrets::derive(theirs, ours),
        };
        for index in lanes.iter() {
            let (id, token) = (self.number(), secrets.lane_token(index));
            self.sites[node].set_ups.insert((peer, index), SetUp { id, token, instance: theirs.instance });
            self.plan(SET_UP_TIMEOUT, Event::SetUpOver { node, life, set_up: id });
            let met = self.sites[other].set_ups.values().find(|theirs| theirs.token == token).copied();
            let Some(met) = met.filter(|_| self.blocked != Some(index)) else { continue };
            for (end, set_up) in [(node, id), (other, met.id)] {
                // One end may believe in a handshake that the other end has given up.
                if self.is_chaos && self.random.one_in(8) {
                    continue;
                }
                let (delay, life) = (self.delay(), self.sites[end].life);
                self.plan(delay, Event::Confirmed { node: end, life, set_up });
            }
        }
    }

    fn confirm(&mut self, node: usize, set_up: u64) {
        let found = self.sites[node].set_ups.iter().find(|(_, found)| found.id == set_up);
        let Some((&(peer, index), &SetUp { token, instance, .. })) = found else { return };
        let serial = LaneSerial(self.number());
        let worker = index.owner(self.workers[node]);
        let site = &mut self.sites[node];
        site.set_ups.remove(&(peer, index));
        site.up.insert(serial, Lane { peer, index, token, instance });
        site.handed_over.insert(serial);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 8100));
        let lane = LaneUp {
            serial,
            worker,
            local: address,
            remote: address,
            since: self.now,
            handshake_at: SystemTime::now(),
            gauges: Arc::new(LaneGauges::default()),
        };
        let life = site.life;
        site.coordinator.handle_lane_up(peer, index, lane);
        self.plan(IDLE_TIMEOUT, Event::LaneCheck { node, life, serial });
        self.carry_out(node);
    }

    /// A worker closes a lane: control hears of it a little later, the other end perhaps at once, perhaps by silence.
    fn end_lane(&mut self, node: usize, serial: LaneSerial) {
        let is_told = !self.is_lost();
        self.close(node, serial, is_told);
        let Some(Lane { peer, index, .. }) = self.sites[node].up.remove(&serial) else { return };
        let (delay, life) = (self.random.up_to(Duration::from_millis(2)), self.sites[node].life);
        self.plan(delay, Event::LaneEnded { node, life, serial, peer, index });
    }

    /// A lane times out at the server while its client has nothing to send: the close is lost, and the client never
    /// notices. The server looks for the client.
    fn end_at_the_server_alone(&mut self, node: usize) {
        let is_server = |lane: &Lane| self.ids[node].to_bytes() > self.ids[self.peer_of(node, lane.peer)].to_bytes();
        let found = self.sites[node].up.iter().find(|(_, lane)| is_server(lane));
        let Some((serial, Lane { peer, index, .. })) = found.map(|(serial, lane)| (*serial, *lane)) else { return };
        self.sites[node].up.remove(&serial);
        self.sites[node].handed_over.remove(&serial);
        assert!(self.sites[node].coordinator.handle_lane_ended(peer, index, serial, self.now));
        self.carry_out(node);
        self.connect(node, self.peer_of(node, peer));
    }

    fn close(&mut self, node: usize, serial: LaneSerial, is_told: bool) {
        let Some(lane) = self.sites[node].up.get(&serial).copied() else { return };
        let other = self.peer_of(node, lane.peer);
        let end = self.sites[other].up.iter().find(|(_, end)| end.token == lane.token);
        if let Some(serial) = end.map(|(serial, _)| *serial) {
            let delay = if is_told { self.delay() } else { IDLE_TIMEOUT };
            let life = self.sites[other].life;
            self.plan(delay, Event::LaneCheck { node: other, life, serial });
        }
    }

    fn assert_well(&self) {
        for (node, site) in self.sites.iter().enumerate() {
            for other in (0..self.sites.len()).filter(|other| *other != node) {
                let peer = self.index(node, other);
                let wanted: BTreeSet<_> = LaneIndex::all(self.workers[node], self.workers[other])
                    .filter(|index| self.blocked != Some(*index))
                    .collect();
                let lanes: BTreeMap<_, _> = site.coordinator.link(peer).unwrap().lanes().collect();
                assert_eq!(lanes.keys().copied().collect::<BTreeSet<_>>(), wanted, "node {node}'s lanes to {other}");
                let back = self.index(other, node);
                let mut workers = 0;
                for (index, lane) in lanes {
                    let ours = site.up.get(&lane.serial).unwrap_or_else(|| panic!("node {node} has no lane {index}"));
                    let theirs = self.sites[other].coordinator.link(back).unwrap();
                    let theirs = theirs.lanes().find(|(theirs, _)| *theirs == index).unwrap().1;
                    let theirs = self.sites[other].up.get(&theirs.serial);
                    assert!(theirs.is_some_and(|theirs| theirs.token == ours.token), "lane {index} has two ends");
                    workers |= 1u64 << lane.worker.0;
                }
                let tables = site.tables.as_ref().unwrap();
                let announced = tables.peers[peer.position()].workers_with_lane;
                assert_eq!(announced, workers, "node {node}'s workers with a lane to {other}");
            }
            let told: BTreeSet<_> = site.up.keys().copied().collect();
            assert_eq!(told, site.handed_over, "node {node}'s workers have the lanes its coordinator knows of");
        }
    }

    fn lives(&self, node: usize, life: u64) -> bool {
        self.sites[node].life == life
    }

    /// What a node calls another one: peers are configured in the order of the nodes.
    fn index(&self, node: usize, other: usize) -> PeerIndex {
        PeerIndex(if other < node { other } else { other - 1 } as u16)
    }

    fn peer_of(&self, node: usize, peer: PeerIndex) -> usize {
        peer.position() + usize::from(peer.position() >= node)
    }

    fn plan(&mut self, delay: Duration, event: Event) {
        let number = self.number();
        self.events.insert((self.now + delay, number), event);
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// A network's delay: mostly short, at times long enough to overtake and be overtaken.
    fn delay(&mut self) -> Duration {
        let limit = if self.is_chaos && self.random.one_in(10) { 5000 } else { 50 };
        Duration::from_millis(1) + self.random.up_to(Duration::from_millis(limit))
    }

    fn is_lost(&mut self) -> bool {
        self.is_chaos && self.random.one_in(6)
    }
}

fn identity(number: u8) -> PeerId {
    Keypair::ed25519_from_bytes([number; 32]).unwrap().public().to_peer_id()
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    fn up_to(&mut self, limit: Duration) -> Duration {
        Duration::from_micros(self.below(limit.as_micros() as u64 + 1))
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let random = self.next().to_le_bytes();
            chunk.copy_from_slice(&random[..chunk.len()]);
        }
    }
}

#[test]
fn whatever_happens_all_lanes_that_can_be_come_up_on_both_ends_and_then_there_is_peace() {
    let seeds = match std::env::var("RINGLANE_SEED") {
        Ok(seed) => {
            let seed = seed.parse().expect("RINGLANE_SEED is a number");
            seed..seed + 1
        }
        Err(_) => 0..SEEDS,
    };
    for seed in seeds {
        let ran = catch_unwind(AssertUnwindSafe(|| World::new(seed).run()));
        if let Err(failure) = ran {
            eprintln!("this was RINGLANE_SEED={seed}");
            resume_unwind(failure);
        }
    }
}
