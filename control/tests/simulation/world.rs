//! Two nodes, the network between them, what goes wrong there, and what must be true all the same.

mod link;
mod traffic;
mod trouble;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ringlane_control::coordinator::{AskFailure, AskId, Intent, LaneUp};
use ringlane_shared::id::{LaneId, LaneIndex, LaneSerial};
use ringlane_shared::lane::keys::Role;
use ringlane_shared::lane::rekey::REKEY_PERIOD;
use ringlane_shared::lane::seal::OpenError;
use ringlane_shared::limits::{EARLY_DATAGRAMS_MAX, EPOCHS_LIVE_MAX, INNER_MTU_MAX, REPLAY_WINDOW};
use ringlane_shared::path::mtu::PRECISION;
use ringlane_shared::plane::{LaneChange, LaneGauges, RekeyLimits};
use ringlane_shared::wire::offer::{Answer, LaneSet, LinkSecrets, Offer};

use crate::lane::{Lane, Made, Outbox, Settings, Token};
use crate::network::{Direction, HEADER_BYTES, Path, Place, Random};
use crate::node::{Asker, Node, PEER, SetUp, Standing, address_of};

/// After the last disturbance everything must be well within this time: a full backoff of the coordinator (30 s and a half),
/// a lane's set-up, and the longest pause between two searches of the path MTU that such a short life leads to.
pub const HEALING: Duration = Duration::from_secs(90);
/// How long packets then flow without loss.
const CALM: Duration = Duration::from_secs(5);

const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(10);
const SET_UP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a libp2p connection takes to notice that it is dead.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(7);
/// How long records of an epoch are opened at least after it was left.
const GRACE: Duration = Duration::from_secs(5);
/// Between two troubles that pass.
const PASSING: Duration = Duration::from_secs(8);
/// How long the connections before a new one are kept.
const SURPLUS_GRACE: Duration = Duration::from_secs(2);
/// QUIC's first retransmission, and the longest pause between two.
const RETRANSMIT_MIN: Duration = Duration::from_millis(200);
const RETRANSMIT_MAX: Duration = Duration::from_secs(2);

/// Datagrams that the attacker keeps.
const RECORDED_MAX: usize = 64;
const ATTACKER: Place = Place(0);

/// The shortest packet: an IPv4 header.
const PACKET_BYTES_MIN: u64 = 20;

/// A record on its way.
#[derive(Clone)]
pub struct Datagram {
    pub from: Place,
    pub to: Place,
    pub index: LaneIndex,
    pub bytes: Vec<u8>,
    /// What the lanes cannot see.
    pub origin: Origin,
}

/// Where a record really comes from.
#[derive(Clone, Copy)]
pub struct Origin {
    token: Token,
    epoch: u64,
    sent_at: Instant,
    by: By,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    /// As it was sealed, for the first time.
    Peer,
    /// The network, once more.
    Network,
    /// The attacker, as it was sealed.
    Replay,
    /// The attacker, changed.
    Forgery,
}

/// What will happen. Those that concern one life of a node carry its number and do nothing after its end.
enum Event {
    Mishap,
    Heal,
    Traffic { node: usize },
    Datagram { node: usize, datagram: Datagram },
    ChunkTry { node: usize, serial: LaneSerial, number: u64, bytes: Vec<u8>, tries: u32 },
    Chunk { node: usize, token: Token, number: u64, bytes: Vec<u8> },
    Closed { node: usize, token: Token },
    Dial,
    Connected { node: usize, life: u64, connection: u64 },
    Disconnected { node: usize, life: u64, connection: u64 },
    Offer { node: usize, offer: Offer, asker: Asker },
    Answer { asker: Asker, answer: Result<Answer, AskFailure> },
    Confirmed { node: usize, life: u64, set_up: u64, path: Path },
    SetUpOver { node: usize, life: u64, set_up: u64 },
    LaneEnded { node: usize, life: u64, serial: LaneSerial, index: LaneIndex },
}

impl Event {
    /// Whom it happens to.
    fn node(&self) -> Option<usize> {
        match self {
            Self::Traffic { node }
            | Self::Datagram { node, .. }
            | Self::ChunkTry { node, .. }
            | Self::Chunk { node, .. }
            | Self::Closed { node, .. }
            | Self::Connected { node, .. }
            | Self::Disconnected { node, .. }
            | Self::Offer { node, .. }
            | Self::Answer { asker: Asker { node, .. }, .. }
            | Self::Confirmed { node, .. }
            | Self::SetUpOver { node, .. }
            | Self::LaneEnded { node, .. } => Some(*node),
            Self::Mishap | Self::Heal | Self::Dial => None,
        }
    }
}

/// A packet that a node's host has sent.
struct Packet {
    bytes: usize,
    is_delivered: bool,
    /// The stretch of time in which its direction keeps the order, if it does.
    ordered: Option<u64>,
}

/// What goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// Everything, at any time.
    Any,
    /// Only what a lane survives, and not sooner than it has got over the last of it.
    Passing,
}

/// How much has happened.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Tally {
    pub delivered: u64,
    pub lost: u64,
    pub epochs: u64,
    pub lanes: u64,
    pub lanes_ended: u64,
    pub moves: u64,
    pub silences: u64,
    pub path_mtus: u64,
    pub replays_refused: u64,
    /// A digest of all that happened and when.
    pub digest: u64,
}

pub struct World {
    random: Random,
    start: Instant,
    now: Instant,
    nodes: [Node; 2],
    /// From each node to the other.
    directions: [Direction; 2],
    connections: BTreeMap<u64, [u64; 2]>,
    /// When there will be a new one.
    dial_at: Option<Instant>,
    trouble: Trouble,
    /// From each node: until then the attacker takes all records, and passes them on as its own.
    taken_until: [Instant; 2],
    healed_at: Instant,
    /// When each node has something due.
    due: [Option<Instant>; 2],
    events: BTreeMap<(Instant, u64), Box<Event>>,
    numbers: u64,
    /// How often a node has had something due at one moment.
    turns: (Instant, u32),
    is_chaos: bool,
    is_measured: bool,
    packets: [Vec<Packet>; 2],
    /// Number and stretch of the last packet that each direction of a lane has delivered.
    last: BTreeMap<(usize, Token), (u64, u64)>,
    recorded: VecDeque<(usize, Datagram)>,
    /// Bytes that packets are made of.
    content: Vec<u8>,
    pub tally: Tally,
}

impl World {
    pub fn new(seed: u64, trouble: Trouble) -> Self {
        let mut random = Random(seed);
        let now = Instant::now();
        let directions = [0, 1].map(|_| Direction::new(&mut random, now));
        let nodes = [0, 1].map(|number| {
            let is_eager = random.one_in(4);
            let rekey = RekeyLimits {
                after: random.milliseconds(if is_eager { 1000 } else { 6000 }, 20_000),
                records: if is_eager { random.within(8, 100) } else { random.within(100, 1000) },
            };
            let settings = Settings { rekey, keep_alive: Duration::from_secs(random.within(1, 25)) };
            let (workers, place) = (random.within(1, 2) as u8, Place(number as u64 + 1));
            Node::new(number, number as u64, workers, place, settings, &mut random)
        });
        let mut content = vec![0; 1 << 15];
        random.fill(&mut content);
        let mut world = Self {
            random,
            start: now,
            now,
            nodes,
            directions,
            connections: BTreeMap::new(),
            dial_at: None,
            trouble,
            taken_until: [now; 2],
            healed_at: now,
            due: [None; 2],
            events: BTreeMap::new(),
            numbers: 2,
            turns: (now, 0),
            is_chaos: true,
            is_measured: false,
            packets: [Vec::new(), Vec::new()],
            last: BTreeMap::new(),
            recorded: VecDeque::new(),
            content,
            tally: Tally::default(),
        };
        for node in 0..2 {
            world.nodes[node].stopped_until = now;
            let place = world.nodes[node].place;
            world.nodes[node].coordinator.set_addresses(&[address_of(place)], now);
            world.carry_out(node);
            world.plan(Duration::from_millis(50), Event::Traffic { node });
        }
        world.due = world.nodes.each_ref().map(Node::deadline);
        world.dial(Duration::from_millis(10));
        let last = match trouble {
            Trouble::Any => {
                let chaos = world.random.milliseconds(4000, 20_000);
                for _ in 0..world.random.within(1, 10) {
                    let at = world.random.milliseconds(0, chaos.as_millis() as u64);
                    world.plan(at, Event::Mishap);
                }
                chaos
            }
            Trouble::Passing => {
                let count = world.random.within(1, 4) as u32;
                (1..=count).for_each(|number| world.plan(PASSING * number, Event::Mishap));
                PASSING * (count + 1)
            }
        };
        world.plan(last, Event::Heal);
        world
    }

    pub fn run(&mut self) {
        while self.is_chaos {
            self.step(None);
        }
        self.healed_at = self.now;
        let healed_at = self.now + HEALING;
        self.run_until(self.now + HEALING / 2);
        let epochs = self.epochs();
        self.run_until(healed_at);
        self.assert_well();
        for (token, epoch) in self.epochs() {
            assert!(epochs.get(&token).is_none_or(|before| *before < epoch), "rekeying goes on");
        }
        let sent = self.packets.each_ref().map(Vec::len);
        self.is_measured = true;
        self.run_until(healed_at + CALM);
        self.is_measured = false;
        let lasts = self.packets.each_ref().map(Vec::len);
        self.run_until(healed_at + CALM + Duration::from_secs(1));
        for node in 0..2 {
            let packets = &self.packets[node][sent[node]..lasts[node]];
            assert!(
                packets.len() > 20 && packets.iter().all(|packet| packet.is_delivered),
                "packets flow, none is lost"
            );
        }
        let all = self.packets.iter().flatten();
        self.tally.lost = all.filter(|packet| !packet.is_delivered).count() as u64;
    }

    /// The epoch that each end of each lane seals in.
    fn epochs(&self) -> BTreeMap<(usize, Token), u64> {
        let ends = |node: usize| self.nodes[node].lanes.values().map(move |standing| (node, &standing.lane));
        let lanes = ends(0).chain(ends(1));
        lanes.map(|(node, lane)| ((node, lane.made.token), lane.sealer.epoch())).collect()
    }

    fn run_until(&mut self, end: Instant) {
        while self.step(Some(end)) {}
        self.now = end;
    }

    /// Lets the next thing happen, if it does before `end`.
    fn step(&mut self, end: Option<Instant>) -> bool {
        let event = self.events.first_key_value().map(|((at, _), _)| *at);
        let timer = if self.due[1].is_some_and(|at| self.due[0].is_none_or(|other| at < other)) { 1 } else { 0 };
        let is_timer = self.due[timer].is_some_and(|at| event.is_none_or(|event| at <= event));
        let Some(at) = (if is_timer { self.due[timer] } else { event }) else { return false };
        if end.is_some_and(|end| at > end) {
            return false;
        }
        self.now = self.now.max(at);
        if is_timer {
            self.handle_timeout(timer);
            self.due[timer] = self.nodes[timer].deadline();
            return true;
        }
        let Some(((_, number), event)) = self.events.pop_first() else { return false };
        let node = event.node();
        match node.map(|node| self.nodes[node].stopped_until).filter(|until| *until > self.now) {
            // In the order in which they would have happened.
            Some(until) => _ = self.events.insert((until, number), event),
            None => self.happen(*event),
        }
        for node in (0..2).filter(|other| node.is_none_or(|node| node == *other)) {
            self.due[node] = self.nodes[node].deadline();
        }
        true
    }

    fn handle_timeout(&mut self, node: usize) {
        let now = self.now;
        self.nodes[node].coordinator.handle_timeout(now);
        self.carry_out(node);
        self.nodes[node].search(now);
        let due: Vec<_> =
            self.nodes[node].lanes.iter().filter(|(_, lane)| lane.due <= now).map(|(serial, _)| *serial).collect();
        due.into_iter().for_each(|serial| self.drive(node, serial, Outbox::default()));
        // What a lane wants can make something else due.
        let (at, turns) = &mut self.turns;
        (*at, *turns) = (now, if *at == now { *turns + 1 } else { 0 });
        assert!(*turns < 50, "node {node} turns in circles");
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Mishap => self.mishap(),
            Event::Heal => self.heal(),
            Event::Traffic { node } => self.send_packets(node),
            Event::Datagram { node, datagram } => self.arrive(node, datagram),
            Event::ChunkTry { node, serial, number, bytes, tries } => {
                self.try_chunk(node, serial, number, bytes, tries);
            }
            Event::Chunk { node, token, number, bytes } => {
                let now = self.now;
                let Some(serial) = self.nodes[node].lane_with(token) else { return };
                self.nodes[node].lanes.get_mut(&serial).unwrap().lane.handle_chunk(number, bytes, now);
                self.drive(node, serial, Outbox::default());
            }
            Event::Closed { node, token } => {
                if let Some(serial) = self.nodes[node].lane_with(token) {
                    self.end_lane(node, serial, false);
                }
            }
            Event::Dial => {
                if self.dial_at != Some(self.now) {
                    return;
                }
                self.dial_at = None;
                if (0..2).any(|node| self.directions[node].is_black(self.now)) {
                    return self.dial(Duration::from_secs(1));
                }
                self.connect();
            }
            Event::Connected { node, life, connection }
                if self.nodes[node].life == life && self.connections.contains_key(&connection) =>
            {
                for connection in self.nodes[node].connections.clone() {
                    self.plan(SURPLUS_GRACE, Event::Disconnected { node, life, connection });
                }
                self.nodes[node].connections.insert(connection);
                self.nodes[node].coordinator.handle_connected(PEER, self.now);
                self.carry_out(node);
            }
            Event::Disconnected { node, life, connection } if self.nodes[node].life == life => {
                let site = &mut self.nodes[node];
                if !site.connections.remove(&connection) {
                    return;
                }
                if let Some(asker) = site.asking.take_if(|asker| asker.connection == connection) {
                    let answer = Err(AskFailure::Exchange("closed".to_owned()));
                    self.plan(Duration::ZERO, Event::Answer { asker, answer });
                }
                let site = &mut self.nodes[node];
                if site.connections.is_empty() {
                    site.coordinator.handle_disconnected(PEER);
                    self.carry_out(node);
                    self.dial(Duration::from_millis(300));
                }
            }
            Event::Offer { node, offer, asker } => {
                if !self.carries(asker.connection) {
                    return self.lose(asker);
                }
                self.nodes[node].set_candidates(&offer, self.now);
                self.nodes[node].coordinator.handle_offer(PEER, offer, asker, self.now);
                self.carry_out(node);
            }
            Event::Answer { asker: Asker { node, life, ask, .. }, answer } if self.nodes[node].life == life => {
                if let Ok(Answer::Offer(offer)) = &answer {
                    self.nodes[node].set_candidates(offer, self.now);
                }
                self.nodes[node].coordinator.handle_answer(PEER, ask, answer, self.now);
                self.carry_out(node);
            }
            Event::Confirmed { node, life, set_up, path } if self.nodes[node].life == life => {
                self.confirm(node, set_up, path);
            }
            Event::SetUpOver { node, life, set_up } if self.nodes[node].life == life => {
                let found = self.nodes[node].set_ups.iter().find(|(_, found)| found.id == set_up);
                if let Some((&index, _)) = found {
                    self.nodes[node].set_ups.remove(&index);
                    self.nodes[node].coordinator.handle_lane_failed(PEER, index, "blocked".to_owned(), self.now);
                    self.carry_out(node);
                }
            }
            Event::LaneEnded { node, life, serial, index } if self.nodes[node].life == life => {
                let was_known = self.nodes[node].handed_over.remove(&serial);
                let is_known = self.nodes[node].coordinator.handle_lane_ended(PEER, index, serial, self.now);
                assert_eq!(is_known, was_known, "a retired lane's end is no news, any other is");
                self.carry_out(node);
            }
            _ => {}
        }
    }

    /// All lanes stand on both ends, are heard, know their path, and lead to where the peer is.
    fn assert_well(&self) {
        let [client, server] = &self.nodes;
        let wanted: BTreeSet<_> = LaneIndex::all(client.workers, server.workers).collect();
        for (number, node) in self.nodes.iter().enumerate() {
            let link = node.coordinator.link(PEER).unwrap();
            let known: BTreeSet<_> = link.lanes().map(|(_, lane)| lane.serial).collect();
            assert_eq!(known, node.lanes.keys().copied().collect(), "node {number}'s control knows its lanes");
            assert_eq!(link.lanes().map(|(index, _)| index).collect::<BTreeSet<_>>(), wanted, "node {number}'s lanes");
            let other = &self.nodes[1 - number];
            let true_mtu = self.directions[number].mtu_bytes.min(node.route_mtu - HEADER_BYTES as u16);
            for Standing { lane, .. } in node.lanes.values() {
                assert!(other.lane_with(lane.made.token).is_some(), "node {number}'s lane has two ends");
                assert!(!lane.liveness.is_silent(), "node {number}'s lane is silent");
                assert_eq!(
                    lane.path,
                    Path { local: node.place, remote: other.place },
                    "node {number}'s lane leads there"
                );
                let found = lane.mtu.bytes();
                assert!(found <= true_mtu && true_mtu - found < PRECISION, "{found} bytes of {true_mtu} are found");
            }
        }
    }

    fn plan(&mut self, delay: Duration, event: Event) {
        let number = self.number();
        self.events.insert((self.now + delay, number), Box::new(event));
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// Mixes something that has happened now into the digest (FNV-1a, word by word).
    fn log(&mut self, what: u64, value: u64) {
        let at = (self.now - self.start).as_nanos() as u64;
        for word in [at, what, value] {
            self.tally.digest = (self.tally.digest ^ word).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

// Few packets are sent per epoch here: what is late is never beyond the replay window.
const _: () = assert!(REPLAY_WINDOW > 8 * 400);
