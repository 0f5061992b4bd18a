//! The STUN client against modelled NATs, under loss and seeds: what it says of a NAT must be what the NAT does.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use ringlane_shared::id::PeerIndex;
use ringlane_shared::path::candidate::AddressPolicy;
use ringlane_shared::stun::client::{Client, Target};
use ringlane_shared::stun::message::{Change, Failure, Message, Request, Success, TransactionId};
use ringlane_shared::stun::nat::{Filtering, HostView, Mapping, Scope};
use ringlane_shared::stun::server::Server;

const SEEDS: u64 = 300;
const OURS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 1, 7));
const PORT: u16 = 8100;
const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 5));
const STEP: Duration = Duration::from_millis(10);

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }
}

/// How a NAT chooses the ports of mappings.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Ports {
    Kept,
    Stepped(u16),
    Random,
}

/// A NAT, or with `Mapping::None` a firewall.
struct Nat {
    mapping: Mapping,
    filtering: Filtering,
    ports: Ports,
    next_port: u16,
    /// From our port and what counts of the destination to the port outside.
    mappings: BTreeMap<(u16, Option<IpAddr>, u16), u16>,
    sent: BTreeSet<(u16, SocketAddr)>,
    hairpins: bool,
}

impl Nat {
    fn new(mapping: Mapping, filtering: Filtering, ports: Ports) -> Self {
        let (mappings, sent) = Default::default();
        Self { mapping, filtering, ports, next_port: 20_000, mappings, sent, hairpins: false }
    }

    fn out(&mut self, port: u16, to: SocketAddr, dice: &mut Dice) -> SocketAddr {
        if self.mapping == Mapping::None {
            self.sent.insert((port, to));
            return SocketAddr::new(OURS, port);
        }
        let key = match self.mapping {
            Mapping::AddressDependent => (port, Some(to.ip()), 0),
            Mapping::AddressAndPortDependent => (port, Some(to.ip()), to.port()),
            _ => (port, None, 0),
        };
        let outside = match (self.mappings.get(&key), self.ports) {
            (Some(outside), _) => *outside,
            (None, Ports::Kept) if !self.mappings.values().any(|used| *used == port) => port,
            (None, Ports::Stepped(step)) => {
                self.next_port += step;
                self.next_port
            }
            _ => 30_000 + dice.below(30_000) as u16,
        };
        self.mappings.insert(key, outside);
        self.sent.insert((outside, to));
        SocketAddr::new(OUTSIDE, outside)
    }

    /// Our port that a datagram from outside comes to, if it is let in.
    fn back(&self, to: SocketAddr, from: SocketAddr) -> Option<u16> {
        let inside = match self.mapping {
            Mapping::None => Some(to.port()),
            _ => self.mappings.iter().find(|(_, outside)| **outside == to.port()).map(|(key, _)| key.0),
        };
        let has_sent = |fits: &dyn Fn(&SocketAddr) -> bool| {
            self.sent.iter().any(|(outside, there)| *outside == to.port() && fits(there))
        };
        let is_let_in = match self.filtering {
            Filtering::EndpointIndependent => has_sent(&|_| true),
            Filtering::AddressDependent => has_sent(&|there| there.ip() == from.ip()),
            _ => has_sent(&|there| *there == from),
        };
        inside.filter(|_| is_let_in)
    }
}

/// A server out there.
enum Answerer {
    /// A peer with so many ports.
    Peer(Server, u8),
    /// A public server with another address and port.
    Public { other: SocketAddr },
    /// One that takes no notice.
    Dead,
}

/// What a server says instead of what it sees.
#[derive(Clone, Copy)]
enum Says {
    Truth,
    Nothing,
    Lie(SocketAddr),
}

struct World {
    now: Instant,
    dice: Dice,
    nat: Nat,
    client: Client,
    servers: Vec<(SocketAddr, Answerer)>,
    loss_percent: u64,
    /// By the port asked and the one outside that asks.
    says: Box<dyn Fn(SocketAddr, SocketAddr) -> Says>,
    /// What is on its way in: when, from where, to where outside, what.
    flight: Vec<(Instant, SocketAddr, SocketAddr, Vec<u8>)>,
    requests: u64,
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

impl World {
    fn new(seed: u64, nat: Nat, workers: u8, servers: Vec<(SocketAddr, Answerer)>) -> Self {
        let now = Instant::now();
        let mut ids = Dice(seed ^ 0x5555);
        let draw = move || {
            let mut id = [0; 12];
            id[..8].copy_from_slice(&ids.roll().to_be_bytes());
            TransactionId(id)
        };
        let mut client = Client::new(PORT, workers, Box::new(draw), now);
        let targets = (0..).zip(&servers).map(|(party, (address, answerer))| match answerer {
            Answerer::Peer(_, ports) => Target::peer(*address, PeerIndex(party), *ports, workers),
            _ => Target::server(*address, party),
        });
        client.set_hosts(&[(OURS, targets.collect())], now);
        let (says, dice) = (Box::new(|_, _| Says::Truth), Dice(seed));
        Self { now, dice, nat, client, servers, loss_percent: 0, says, flight: Vec::new(), requests: 0 }
    }

    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        while self.now < end {
            self.step();
            self.now = self.now.min(end);
        }
    }

    fn step(&mut self) {
        if self.client.poll_timeout().is_some_and(|at| at <= self.now) {
            self.client.handle_timeout(self.now);
            while let Some(transmit) = self.client.poll_transmit(self.now) {
                self.requests += 1;
                let seen = self.nat.out(transmit.local.port(), transmit.to, &mut self.dice);
                if self.dice.below(100) >= self.loss_percent {
                    self.ask(transmit.to, seen, &transmit.bytes);
                }
            }
        }
        let now = self.now;
        let (arrived, waiting) = std::mem::take(&mut self.flight).into_iter().partition(|(at, ..)| *at <= now);
        self.flight = waiting;
        let arrived: Vec<(Instant, SocketAddr, SocketAddr, Vec<u8>)> = arrived;
        for (_, from, to, bytes) in arrived {
            if let Some(port) = self.nat.back(to, from) {
                let local = SocketAddr::new(OURS, port);
                if !self.client.handle_own(local, &bytes, self.now) {
                    self.client.handle(local, from, &bytes, self.now);
                }
            }
        }
        // Nothing happens before the next of these.
        let next = self.flight.iter().map(|(at, ..)| *at).chain(self.client.poll_timeout()).min();
        self.now = next.unwrap_or(self.now + STEP).max(self.now + STEP);
    }

    /// A question arrives at a server.
    fn ask(&mut self, to: SocketAddr, seen: SocketAddr, question: &[u8]) {
        let now = self.now;
        if self.nat.hairpins && to.ip() == OUTSIDE {
            self.flight.push((now + STEP, seen, to, question.to_vec()));
            return;
        }
        let told = match (self.says)(to, seen) {
            Says::Truth => seen,
            Says::Nothing => return,
            Says::Lie(told) => told,
        };
        for (address, answerer) in &mut self.servers {
            let answered = match answerer {
                Answerer::Peer(server, ports) => {
                    if to.ip() != address.ip()
                        || !(address.port()..address.port() + u16::from(*ports)).contains(&to.port())
                    {
                        continue;
                    }
                    let next = address.port() + (to.port() - address.port() + 1) % u16::from(*ports);
                    let other = (*ports > 1).then(|| SocketAddr::new(to.ip(), next));
                    server.set_sources(&BTreeSet::from([told.ip()]), now);
                    let reply = server.handle(question, to, told, other, now);
                    assert!(reply.as_ref().is_none_or(|reply| reply.bytes.len() <= question.len()));
                    reply.map(|reply| (reply.local, reply.bytes))
                }
                Answerer::Public { other } => {
                    let at = |ip: SocketAddr, port: SocketAddr| SocketAddr::new(ip.ip(), port.port());
                    let ours = [*address, *other, at(*address, *other), at(*other, *address)];
                    if !ours.contains(&to) {
                        continue;
                    }
                    let Ok(Message::Request(request)) = Message::parse(question) else { continue };
                    let (ip, port) =
                        (if request.change.ip { *other } else { to }, if request.change.port { *other } else { to });
                    let success = Success { id: request.id, mapped: told, other: Some(*other), origin: None };
                    Some((at(ip, port), success.to_bytes(200).unwrap()))
                }
                Answerer::Dead => continue,
            };
            let Some((from, bytes)) = answered else { return };
            if self.dice.below(100) >= self.loss_percent {
                let delay = Duration::from_millis(5 + self.dice.below(60));
                self.flight.push((now + delay, from, seen, bytes));
            }
            return;
        }
    }

    fn view(&self) -> &HostView {
        self.client.views().next().unwrap()
    }
}

fn peers(now: Instant, ports: u8) -> Vec<(SocketAddr, Answerer)> {
    ["198.51.100.1:8100", "198.51.100.2:8100"].map(|at| (address(at), Answerer::Peer(Server::new(now), ports))).into()
}

fn public() -> Vec<(SocketAddr, Answerer)> {
    vec![
        (address("198.51.100.1:3478"), Answerer::Public { other: address("198.51.100.101:3479") }),
        (address("198.51.100.2:3478"), Answerer::Public { other: address("198.51.100.102:3479") }),
    ]
}

const MAPPINGS: [Mapping; 4] =
    [Mapping::None, Mapping::EndpointIndependent, Mapping::AddressDependent, Mapping::AddressAndPortDependent];
const FILTERINGS: [Filtering; 3] =
    [Filtering::EndpointIndependent, Filtering::AddressDependent, Filtering::AddressAndPortDependent];

#[test]
fn every_kind_of_nat_is_told_by_public_servers_and_by_peers_without_loss() {
    for mapping in MAPPINGS {
        for filtering in FILTERINGS {
            for by_peers in [false, true] {
                let servers = if by_peers { peers(Instant::now(), 2) } else { public() };
                let mut world = World::new(1, Nat::new(mapping, filtering, Ports::Stepped(2)), 2, servers);
                world.run(Duration::from_secs(20));
                let view = world.view();
                let what = format!("{mapping:?} {filtering:?} by peers {by_peers}: {view:?}");
                assert_eq!(view.mapping, mapping, "{what}");
                assert!(view.is_mapping_certain, "{what}");
                // A peer answers from no other address.
                let expected = match filtering {
                    Filtering::AddressAndPortDependent => filtering,
                    _ if by_peers => Filtering::AddressDependentOrLess,
                    _ => filtering,
                };
                assert_eq!(view.filtering, expected, "{what}");
                assert_eq!(view.scope, Some(Scope::Internet), "{what}");
                let dependent = matches!(mapping, Mapping::AddressDependent | Mapping::AddressAndPortDependent);
                assert_eq!(view.port_step.is_some(), dependent, "{what}");
                assert_eq!(view.keeps_ports, (mapping != Mapping::None).then_some(false), "{what}");
                assert_eq!(world.client.candidates().len(), if mapping == Mapping::None { 0 } else { 2 }, "{what}");
                assert!(world.client.take_changed());
            }
        }
    }
}

#[test]
fn under_loss_what_is_said_is_never_far_from_what_is() {
    let seeds = match std::env::var("RINGLANE_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..SEEDS).collect(),
    };
    for seed in seeds {
        let mut dice = Dice(seed);
        let mapping = MAPPINGS[dice.below(4) as usize];
        let filtering = FILTERINGS[dice.below(3) as usize];
        let ports = [Ports::Kept, Ports::Stepped(1 + dice.below(3) as u16), Ports::Random][dice.below(3) as usize];
        let workers = 1 + dice.below(4) as u8;
        let servers = if dice.below(2) == 0 { peers(Instant::now(), workers) } else { public() };
        let by_peers = matches!(servers[0].1, Answerer::Peer(..));
        let mut world = World::new(seed, Nat::new(mapping, filtering, ports), workers, servers);
        world.loss_percent = dice.below(25);
        world.run(Duration::from_secs(400));
        let loss = world.loss_percent;
        world.loss_percent = 0;
        world.run(Duration::from_secs(400));
        let view = world.view();
        let what = format!(
            "this was RINGLANE_SEED={seed}: {mapping:?} {filtering:?} {ports:?} {workers} workers, peers {by_peers}, \
             {loss} % loss: {view:?}"
        );
        // Without a second port, whether the destination's port counts is not seen.
        let told_apart = !by_peers || workers > 1;
        let expected = match mapping {
            Mapping::AddressDependent if !told_apart => Mapping::AddressAndPortDependent,
            _ => mapping,
        };
        assert_eq!(view.mapping, expected, "{what}");
        for port in view.ports.iter().take(workers.into()) {
            let mapped = port.mapped.unwrap_or_else(|| panic!("{what}"));
            let is_true = match mapping {
                Mapping::None => mapped == SocketAddr::new(OURS, port.local_port),
                _ => world.nat.mappings.iter().any(|(key, at)| key.0 == port.local_port && *at == mapped.port()),
            };
            assert!(is_true, "{what}");
        }
        // Loss may take all four answers from elsewhere, but lets none in that the NAT does not.
        let too_open = match view.filtering {
            Filtering::EndpointIndependent => filtering != Filtering::EndpointIndependent,
            Filtering::AddressDependent | Filtering::AddressDependentOrLess => {
                filtering == Filtering::AddressAndPortDependent
            }
            _ => false,
        };
        assert!(!too_open, "{what}");
        assert!(world.requests < 6000, "{} requests: {what}", world.requests);
    }
}

#[test]
fn a_nat_that_leads_back_inside_is_told_from_one_that_does_not_and_others_are_not_tried() {
    for seed in 0..SEEDS {
        let mut dice = Dice(seed);
        let mapping = MAPPINGS[dice.below(4) as usize];
        let filtering = FILTERINGS[dice.below(3) as usize];
        let workers = 1 + dice.below(4) as u8;
        let mut servers = if dice.below(2) == 0 { peers(Instant::now(), workers) } else { public() };
        servers.truncate(1 + dice.below(2) as usize);
        let is_alone = servers.len() == 1;
        let mut world = World::new(seed, Nat::new(mapping, filtering, Ports::Random), workers, servers);
        world.nat.hairpins = dice.below(2) == 0;
        world.run(Duration::from_secs(20));
        let view = world.view();
        let is_tried = mapping == Mapping::EndpointIndependent && workers > 1 && !is_alone;
        let what = format!("seed {seed}: {mapping:?} {filtering:?} {workers} workers, one server {is_alone}: {view:?}");
        assert_eq!(view.hairpins, is_tried.then_some(world.nat.hairpins), "{what}");
        let to_ourselves = world.nat.sent.iter().any(|(_, to)| to.ip() == OUTSIDE);
        assert_eq!(to_ourselves, is_tried, "{what}");
        assert_eq!(world.client.counters().unasked, 0, "{what}");
    }
}

#[test]
fn a_nat_that_begins_to_hairpin_is_noticed_when_it_is_next_asked_thoroughly() {
    let nat = Nat::new(Mapping::EndpointIndependent, Filtering::AddressAndPortDependent, Ports::Kept);
    let mut world = World::new(11, nat, 2, public());
    world.run(Duration::from_secs(20));
    assert_eq!(world.view().hairpins, Some(false));
    world.nat.hairpins = true;
    world.client.ask_anew(world.now);
    world.run(Duration::from_secs(20));
    assert_eq!(world.view().hairpins, Some(true));
}

/// Where no server is and no NAT: whoever is sent something there has done nothing for it.
fn victim(dice: &mut Dice) -> SocketAddr {
    SocketAddr::new([192, 0, 2, dice.below(256) as u8].into(), 1 + dice.below(60_000) as u16)
}

impl World {
    /// Two peers that give no other port, and a NAT that leads back.
    fn hairpin(seed: u64) -> Self {
        let mut nat = Nat::new(Mapping::EndpointIndependent, Filtering::EndpointIndependent, Ports::Kept);
        nat.hairpins = true;
        World::new(seed, nat, 2, peers(Instant::now(), 1))
    }

    fn has_asked_a_victim(&self) -> bool {
        self.nat.sent.iter().any(|(_, to)| to.ip() != OUTSIDE && !self.servers.iter().any(|(at, _)| at.ip() == to.ip()))
    }
}

#[test]
fn a_server_that_is_left_alone_leads_our_questions_to_nobody() {
    let mut world = World::hairpin(1);
    world.run(Duration::from_secs(20));
    assert_eq!((world.view().mapping, world.view().hairpins), (Mapping::EndpointIndependent, Some(true)));
    let liar = world.servers[0].0.ip();
    for round in 0..10 {
        world.says = Box::new(move |to, seen| match to.ip() == liar {
            true => Says::Lie(SocketAddr::new([192, 0, 2, round].into(), seen.port())),
            false => Says::Nothing,
        });
        world.run(Duration::from_secs(26));
        assert!(!world.has_asked_a_victim(), "round {round}: {:?}", world.nat.sent);
    }
    assert!(world.client.counters().mappings_changed > 2, "the lies were heard");
    // And what others said before is not taken for what is.
    assert_eq!(world.view().hairpins, None);
    world.says = Box::new(|_, _| Says::Truth);
    world.client.ask_anew(world.now);
    world.run(Duration::from_secs(20));
    assert_eq!(world.view().hairpins, Some(true));
}

#[test]
fn what_one_server_alone_says_of_the_second_port_is_not_asked_either() {
    let mut world = World::hairpin(2);
    let liar = world.servers[0].0.ip();
    world.says = Box::new(move |to, seen| match (to.ip() == liar, seen.port() == PORT) {
        (_, true) => Says::Truth,
        (true, false) => Says::Lie(address("192.0.2.1:4500")),
        (false, false) => Says::Nothing,
    });
    world.run(Duration::from_secs(60));
    assert_eq!(world.view().mapping, Mapping::EndpointIndependent);
    assert!(!world.has_asked_a_victim() && world.view().hairpins.is_none());
}

#[test]
fn two_addresses_of_one_party_do_not_agree_with_each_other_and_another_party_is_asked_rather() {
    for has_another in [false, true] {
        let mut world = World::hairpin(3);
        let mut targets: Vec<_> = world.servers.iter().map(|(at, _)| Target::peer(*at, PeerIndex(7), 1, 2)).collect();
        if has_another {
            let other = address("198.51.100.3:8100");
            world.servers.push((other, Answerer::Peer(Server::new(world.now), 1)));
            targets.push(Target::peer(other, PeerIndex(8), 1, 2));
        } else {
            world.says = Box::new(|_, seen| Says::Lie(SocketAddr::new([192, 0, 2, 1].into(), seen.port())));
        }
        world.client.set_hosts(&[(OURS, targets)], world.now);
        world.client.ask_anew(world.now);
        world.run(Duration::from_secs(60));
        assert_eq!(world.view().mapping, Mapping::EndpointIndependent);
        assert_eq!(world.view().hairpins, has_another.then_some(true));
        assert!(!world.has_asked_a_victim());
    }
}

#[test]
fn another_party_that_comes_later_is_asked_as_soon_as_nothing_else_is() {
    // During the first round, which waits for answers from elsewhere, and after it.
    for (early, soon) in [(1, 35), (15, 10)] {
        let mut nat = Nat::new(Mapping::EndpointIndependent, Filtering::AddressAndPortDependent, Ports::Kept);
        nat.hairpins = true;
        let mut world = World::new(6, nat, 2, peers(Instant::now(), 2));
        let mut targets: Vec<_> = world.servers.iter().map(|(at, _)| Target::peer(*at, PeerIndex(7), 2, 2)).collect();
        world.client.set_hosts(&[], world.now);
        world.client.set_hosts(&[(OURS, targets.clone())], world.now);
        world.run(Duration::from_secs(early));
        assert!(world.view().is_mapping_certain && world.view().hairpins.is_none());
        let other = address("198.51.100.3:8100");
        world.servers.push((other, Answerer::Peer(Server::new(world.now), 2)));
        targets.push(Target::peer(other, PeerIndex(8), 2, 2));
        world.client.set_hosts(&[(OURS, targets)], world.now);
        world.run(Duration::from_secs(soon));
        assert_eq!(world.view().hairpins, Some(true), "after {early} s");
    }
}

#[test]
fn on_another_network_with_one_server_nothing_is_said_of_whether_its_nat_hairpins() {
    let mut world = World::hairpin(4);
    world.run(Duration::from_secs(20));
    assert_eq!(world.view().hairpins, Some(true));
    world.nat = Nat::new(Mapping::EndpointIndependent, Filtering::EndpointIndependent, Ports::Random);
    let left = world.servers[0].0;
    world.client.set_hosts(&[(OURS, vec![Target::peer(left, PeerIndex(0), 1, 2)])], world.now);
    world.client.ask_anew(world.now);
    assert!(world.client.take_changed());
    world.run(Duration::from_secs(2));
    assert_eq!(world.view().hairpins, None);
    assert!(world.client.take_changed());
}

#[test]
fn where_no_lane_may_go_no_question_to_ourselves_goes_and_nothing_is_said_of_it() {
    let outside = vec!["203.0.113.0/24".parse().unwrap()];
    let refused = [
        AddressPolicy { inner_networks: outside, ..Default::default() },
        AddressPolicy { lan: Some(vec!["198.51.100.0/24".parse().unwrap()]), ..Default::default() },
    ];
    for policy in refused {
        let mut world = World::hairpin(5);
        world.client.set_policy(&policy);
        world.run(Duration::from_secs(60));
        assert_eq!((world.view().mapping, world.view().hairpins), (Mapping::EndpointIndependent, None));
        assert!(!world.nat.sent.iter().any(|(_, to)| to.ip() == OUTSIDE), "{policy:?}");
        world.client.set_policy(&AddressPolicy::default());
        world.client.ask_anew(world.now);
        world.run(Duration::from_secs(20));
        assert_eq!(world.view().hairpins, Some(true));
    }
}

#[test]
fn whatever_servers_do_no_question_goes_where_no_two_of_them_agree() {
    for seed in 0..SEEDS {
        let mut dice = Dice(seed);
        let workers = 2 + dice.below(3) as u8;
        let servers = match dice.below(3) {
            0 => public(),
            ports => peers(Instant::now(), ports as u8),
        };
        let filtering = FILTERINGS[dice.below(3) as usize];
        let nat = Nat::new(Mapping::EndpointIndependent, filtering, Ports::Random);
        let mut world = World::new(seed, nat, workers, servers);
        world.nat.hairpins = dice.below(2) == 0;
        world.loss_percent = dice.below(25);
        for _ in 0..20 {
            // Each server by itself, and some to some of our ports only.
            let says: Vec<_> = (0..2)
                .map(|_| match dice.below(3) {
                    0 => Says::Truth,
                    1 => Says::Nothing,
                    _ => Says::Lie(victim(&mut dice)),
                })
                .collect();
            let (first, mask) = (world.servers[0].0.ip(), [0, 0, 1, 2][dice.below(4) as usize]);
            world.says = Box::new(move |to, seen| match seen.port() & mask {
                0 => says[usize::from(to.ip() != first)],
                _ => Says::Truth,
            });
            if dice.below(4) == 0 {
                world.client.ask_anew(world.now);
            }
            world.run(Duration::from_secs(1 + dice.below(60)));
            assert!(!world.has_asked_a_victim(), "seed {seed}");
        }
        (world.says, world.loss_percent) = (Box::new(|_, _| Says::Truth), 0);
        world.run(Duration::from_secs(1800));
        world.client.ask_anew(world.now);
        world.run(Duration::from_secs(20));
        assert_eq!(world.view().hairpins, Some(world.nat.hairpins), "seed {seed}: {:?}", world.view());
    }
}

#[test]
fn when_the_network_is_another_everybody_is_asked_at_once() {
    let nat = Nat::new(Mapping::EndpointIndependent, Filtering::AddressAndPortDependent, Ports::Kept);
    let mut world = World::new(13, nat, 2, public());
    world.run(Duration::from_secs(20));
    let (now, later) = (world.now, world.client.poll_timeout().unwrap());
    assert!(later > now + Duration::from_secs(1), "nothing is due");
    world.client.ask_anew(now);
    assert!(world.client.poll_timeout().is_some_and(|due| due <= now));
    world.client.handle_timeout(now);
    assert!(world.client.poll_transmit(now).is_some());
}

#[test]
fn a_mapping_that_is_lost_is_noticed_within_one_round() {
    let nat = Nat::new(Mapping::EndpointIndependent, Filtering::AddressAndPortDependent, Ports::Random);
    let mut world = World::new(7, nat, 2, peers(Instant::now(), 2));
    world.run(Duration::from_secs(20));
    assert!(world.client.take_changed());
    let before = world.client.candidates();
    world.run(Duration::from_secs(100));
    assert!(!world.client.take_changed(), "nothing has changed");
    world.nat.mappings.clear();
    world.run(Duration::from_secs(26));
    assert!(world.client.take_changed());
    let after = world.client.candidates();
    assert_eq!((before.len(), after.len()), (2, 2));
    assert!(before.iter().all(|candidate| !after.contains(candidate)), "{before:?} {after:?}");
    assert!(world.client.counters().mappings_changed >= 2);
}

#[test]
fn servers_that_do_not_answer_are_given_up_and_asked_again_ever_more_rarely() {
    let nat = Nat::new(Mapping::EndpointIndependent, Filtering::AddressDependent, Ports::Kept);
    let mut world = World::new(3, nat, 1, vec![(address("198.51.100.1:3478"), Answerer::Dead)]);
    world.run(Duration::from_secs(20));
    assert!(world.view().is_silent && world.view().mapping == Mapping::Unknown);
    assert_eq!(world.requests, 4, "one question, sent four times");
    world.run(Duration::from_secs(7200));
    assert!((20..60).contains(&world.requests), "{} requests in two hours", world.requests);
    // A server that lives is found at once when it becomes known, and the dead one is not waited for.
    world.servers.extend(peers(world.now, 1));
    let mut targets: Vec<_> = vec![Target::server(address("198.51.100.1:3478"), 0)];
    targets.push(Target::peer(address("198.51.100.2:8100"), PeerIndex(0), 1, 1));
    world.client.set_hosts(&[(OURS, targets)], world.now);
    world.run(Duration::from_secs(1));
    assert!(!world.view().is_silent);
    assert_eq!(world.view().is_translated, Some(true));
    assert_eq!(world.client.candidates().len(), 1);
}

#[test]
fn forged_late_and_repeated_answers_do_not_count() {
    let now = Instant::now();
    let mut ids = 0_u8;
    let draw = move || {
        ids += 1;
        TransactionId([ids; 12])
    };
    let mut client = Client::new(PORT, 1, Box::new(draw), now);
    let server = address("198.51.100.1:3478");
    client.set_hosts(&[(OURS, vec![Target::server(server, 0)])], now);
    client.handle_timeout(now);
    let sent = client.poll_transmit(now).unwrap();
    let Ok(Message::Request(Request { id, change, .. })) = Message::parse(&sent.bytes) else { panic!("a request") };
    assert_eq!((sent.to, change), (server, Change::default()));
    let answer =
        |id, mapped: &str| Success { id, mapped: address(mapped), other: None, origin: None }.to_bytes(200).unwrap();
    let good = answer(id, "203.0.113.5:8100");
    let forged = [
        (sent.local, address("198.51.100.66:3478"), good.clone()),
        (sent.local, address("198.51.100.1:3479"), good.clone()),
        (address("192.168.1.7:8101"), server, good.clone()),
        (address("192.168.1.8:8100"), server, good.clone()),
        (sent.local, server, answer(TransactionId([99; 12]), "203.0.113.66:1")),
        (sent.local, server, answer(id, "203.0.113.66:0")),
        (sent.local, server, answer(id, "[2001:db8::66]:1")),
        (sent.local, server, answer(id, "224.0.0.1:1")),
        (sent.local, server, answer(id, "127.0.0.1:1")),
        (sent.local, server, sent.bytes.clone()),
        (sent.local, server, Vec::new()),
        (sent.local, address("198.51.100.66:3478"), Failure { id, code: 420 }.to_bytes(200).unwrap()),
    ];
    let count = forged.len() as u64;
    for (local, from, bytes) in forged {
        client.handle(local, from, &bytes, now);
    }
    assert_eq!(client.counters().unasked, count);
    assert_eq!(client.counters().answers, 0);
    client.handle(sent.local, server, &good, now);
    client.handle(sent.local, server, &good, now);
    assert_eq!((client.counters().answers, client.counters().unasked), (1, count + 1));
    assert_eq!(client.candidates().len(), 1);
    assert_eq!(client.candidates()[0].address, address("203.0.113.5:8100"));
}

#[test]
fn however_many_addresses_and_servers_there_are_the_questions_are_bounded() {
    let now = Instant::now();
    let mut ids = Dice(5);
    let draw = move || {
        let mut id = [0; 12];
        id[..8].copy_from_slice(&ids.roll().to_be_bytes());
        TransactionId(id)
    };
    let mut client = Client::new(PORT, 64, Box::new(draw), now);
    let targets: Vec<_> =
        (1..=255).map(|host| Target::server(SocketAddr::new([198, 51, 100, host].into(), 3478), host.into())).collect();
    let hosts: Vec<(IpAddr, _)> = (0..100).map(|host| ([10, 0, 0, host].into(), targets.clone())).collect();
    let mut sent = 0;
    for ms in 0..10_000 {
        let now = now + Duration::from_millis(ms);
        if ms % 100 == 0 {
            client.set_hosts(&hosts, now);
        }
        client.handle_timeout(now);
        sent += std::iter::from_fn(|| client.poll_transmit(now)).count();
    }
    assert!((500..1320).contains(&sent), "{sent} requests in 10 s");
}
