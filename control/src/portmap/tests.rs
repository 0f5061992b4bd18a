//! A gateway that is simulated, honest or hostile, on a simulated clock.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ringlane_shared::wire::pcp::Transport;

use super::book::{Ask, Book, LIFETIME_SECONDS, Method, Port, Question, Reply};
use super::{Host, moved, wanted};
use crate::addresses::ListenPlan;
use crate::netlink::{Gateway, HostAddress};

const OUTSIDE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 1));
const STEP: Duration = Duration::from_millis(50);

/// Small, seeded, and good enough for tests.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

fn udp(internal: u16) -> Port {
    Port { transport: Transport::Udp, internal }
}

/// A gateway as it should be, which can be told to fail.
struct Router {
    methods: Vec<Method>,
    mapped: BTreeMap<Port, Instant>,
    started: Instant,
    lifetime: u32,
    external: IpAddr,
    /// In a hundred.
    loss: u64,
    refuses: BTreeSet<u16>,
    asked: u64,
}

impl Router {
    fn new(methods: &[Method], now: Instant) -> Self {
        Self {
            methods: methods.to_vec(),
            mapped: BTreeMap::new(),
            started: now,
            lifetime: LIFETIME_SECONDS,
            external: OUTSIDE,
            loss: 0,
            refuses: BTreeSet::new(),
            asked: 0,
        }
    }

    fn restart(&mut self, now: Instant) {
        self.started = now;
        self.mapped.clear();
    }

    fn answer(&mut self, ask: Ask, random: &mut Random, now: Instant) -> Option<Reply> {
        self.asked += 1;
        if !self.methods.contains(&ask.method) || random.below(100) < self.loss {
            // The shell tells of HTTP's silence.
            return (ask.method == Method::Upnp).then_some(Reply::Silent);
        }
        let epoch = Some(now.duration_since(self.started).as_secs() as u32);
        let told = (ask.method == Method::Pcp).then_some(self.external);
        Some(match ask.question {
            Question::Check if ask.method == Method::Pcp => Reply::Alive { epoch, external: None },
            Question::Check => Reply::Alive { epoch, external: Some(self.external) },
            Question::Map { port, .. } if self.refuses.contains(&port.internal) => {
                Reply::Refused { reason: "no".to_owned(), seconds: 0 }
            }
            Question::Map { port, external, lifetime } => {
                let lifetime = lifetime.min(self.lifetime);
                self.mapped.insert(port, now + Duration::from_secs(lifetime.into()));
                Reply::Mapped { external: (told, external.1), lifetime, epoch }
            }
            Question::Unmap { port, .. } => {
                self.mapped.remove(&port);
                Reply::Unmapped
            }
        })
    }

    fn maps(&self, port: Port, now: Instant) -> bool {
        self.mapped.get(&port).is_some_and(|until| now < *until)
    }
}

struct World {
    now: Instant,
    book: Book,
    router: Router,
    random: Random,
}

impl World {
    fn new(methods: &[Method], ports: &[u16], seed: u64) -> Self {
        let now = Instant::now();
        let mut book = Book::new(&Method::ALL, now);
        book.set_wanted(ports.iter().copied().map(udp), now);
        Self { now, book, router: Router::new(methods, now), random: Random(seed * 2 + 1) }
    }

    /// Everything that is to be done at this moment.
    fn turn(&mut self) {
        let mut turns = 0;
        while let Some(ask) = self.book.poll(self.now) {
            if let Some(reply) = self.router.answer(ask, &mut self.random, self.now) {
                self.book.handle(reply, self.now);
            }
            turns += 1;
            assert!(turns < 1000, "it asks without end");
        }
        if let Some(timeout) = self.book.poll_timeout() {
            assert!(timeout > self.now, "it wants to be asked again at once, and asks nothing");
        }
    }

    fn run(&mut self, for_: Duration) {
        let end = self.now + for_;
        while self.now < end {
            self.turn();
            // Nothing happens before.
            self.now = self.book.poll_timeout().map_or(end, |timeout| timeout.min(end));
        }
    }

    fn granted(&self) -> usize {
        self.book.mappings().filter(|mapping| mapping.external.is_some()).count()
    }
}

#[test]
fn each_protocol_is_found_and_maps_every_port() {
    for method in Method::ALL {
        let mut world = World::new(&[method], &[8100, 8101, 8001], 1);
        world.run(Duration::from_secs(10));
        assert_eq!((world.book.method(), world.granted()), (Some(method), 3), "{method:?}");
        assert_eq!(world.book.external(), Some(OUTSIDE));
        let first = world.book.mappings().next().unwrap();
        assert_eq!(first.external, Some((OUTSIDE, first.port.internal)), "the same port outside is asked for");
    }
}

#[test]
fn the_better_protocol_is_taken_where_there_are_several() {
    let mut world = World::new(&Method::ALL, &[8100], 1);
    world.run(Duration::from_secs(1));
    assert_eq!(world.book.method(), Some(Method::Pcp));
    let mut world = World::new(&[Method::NatPmp, Method::Upnp], &[8100], 1);
    world.run(Duration::from_secs(5));
    assert_eq!(world.book.method(), Some(Method::NatPmp));
}

#[test]
fn mappings_are_renewed_at_half_of_their_lifetime_and_never_lapse() {
    for lifetime in [10, 120, LIFETIME_SECONDS] {
        let mut world = World::new(&[Method::Pcp], &[8100, 8101], 1);
        world.router.lifetime = lifetime;
        world.run(Duration::from_secs(1));
        let end = world.now + Duration::from_secs(u64::from(lifetime) * 4);
        while world.now < end {
            world.turn();
            assert!(world.router.maps(udp(8100), world.now) && world.router.maps(udp(8101), world.now), "{lifetime}");
            world.now += STEP;
        }
        let renewals: Vec<u64> = world.book.mappings().map(|mapping| mapping.renewals).collect();
        assert!(renewals.iter().all(|renewals| (7..=8).contains(renewals)), "{lifetime}: {renewals:?}");
    }
}

#[test]
fn a_gateway_that_has_restarted_is_asked_for_everything_again() {
    for method in Method::ALL {
        let mut world = World::new(&[method], &[8100, 8101], 1);
        world.run(Duration::from_secs(100));
        world.router.restart(world.now);
        world.run(Duration::from_secs(45));
        assert!(world.router.maps(udp(8100), world.now) && world.router.maps(udp(8101), world.now), "{method:?}");
        assert_eq!((world.book.restarts(), world.granted()), (1, 2));
        // Told by an announcement, it does not take half a minute.
        world.run(Duration::from_secs(60));
        world.router.restart(world.now);
        world.book.look_again(world.now);
        world.run(Duration::from_secs(5));
        assert!(world.router.maps(udp(8100), world.now) && world.router.maps(udp(8101), world.now), "{method:?}");
    }
}

#[test]
fn another_external_address_is_noticed() {
    for method in Method::ALL {
        let mut world = World::new(&[method], &[8100, 8101], 1);
        world.run(Duration::from_secs(10));
        let other: IpAddr = "203.0.113.99".parse().unwrap();
        world.router.external = other;
        // PCP says so with the next mapping, and a gateway whose address changes has restarted as far as PCP is concerned.
        if method == Method::Pcp {
            world.router.restart(world.now);
        }
        world.run(Duration::from_secs(50));
        assert!(world.book.mappings().all(|mapping| mapping.external.is_some_and(|(ip, _)| ip == other)), "{method:?}");
    }
}

#[test]
fn leaving_gives_back_what_was_granted_and_no_more() {
    for method in Method::ALL {
        let mut world = World::new(&[method], &[8100, 8101, 8001], 1);
        world.run(Duration::from_secs(10));
        assert_eq!(world.router.mapped.len(), 3);
        world.book.leave();
        world.turn();
        assert!(world.book.has_left() && world.router.mapped.is_empty(), "{method:?}");
    }
    let mut silent = World::new(&[Method::Pcp], &[8100], 1);
    silent.run(Duration::from_secs(1));
    silent.router.methods.clear();
    silent.book.leave();
    silent.run(Duration::from_secs(2));
    assert!(silent.book.has_left(), "a gateway that is gone is not waited for");
}

#[test]
fn a_port_that_is_not_wanted_any_more_is_given_back() {
    let mut world = World::new(&[Method::NatPmp], &[8100, 8101], 1);
    world.run(Duration::from_secs(5));
    world.book.set_wanted([udp(8100)], world.now);
    world.run(Duration::from_secs(31));
    assert!(world.router.maps(udp(8100), world.now) && !world.router.maps(udp(8101), world.now));
}

#[test]
fn one_refused_port_keeps_no_other_back_and_is_tried_for_ever() {
    let mut world = World::new(&[Method::Pcp], &[8100, 8101], 1);
    world.router.refuses.insert(8100);
    world.run(Duration::from_secs(3600));
    assert_eq!(world.granted(), 1);
    assert_eq!(world.book.mappings().find_map(|mapping| mapping.refusal), Some("no"));
    world.router.refuses.clear();
    world.run(Duration::from_secs(16 * 60));
    assert_eq!(world.granted(), 2);
}

#[test]
fn a_protocol_that_refuses_everything_gives_way_to_the_next() {
    let mut world = World::new(&Method::ALL, &[8100], 1);
    let end = world.now + Duration::from_secs(60);
    while world.now < end {
        while let Some(ask) = world.book.poll(world.now) {
            let reply = match (ask.method, ask.question) {
                (Method::Pcp, Question::Map { .. }) => Reply::Refused { reason: "no".to_owned(), seconds: 0 },
                (Method::NatPmp, _) => Reply::Unsupported,
                _ => world.router.answer(ask, &mut world.random, world.now).unwrap(),
            };
            world.book.handle(reply, world.now);
        }
        world.now += STEP;
    }
    assert_eq!((world.book.method(), world.granted()), (Some(Method::Upnp), 1));
}

#[test]
fn nobody_there_costs_little_and_is_asked_for_ever() {
    let mut world = World::new(&[], &[8100, 8101, 8102], 1);
    world.run(Duration::from_secs(3600));
    assert_eq!(world.book.state(), "idle");
    assert!((21..200).contains(&world.router.asked), "{} questions in an hour", world.router.asked);
    world.router.methods = vec![Method::NatPmp];
    world.run(Duration::from_secs(16 * 60));
    assert_eq!(world.granted(), 3);
}

#[test]
fn a_lossy_and_changing_gateway_has_everything_mapped_in_the_end() {
    for seed in 1..=300 {
        let mut world = World::new(&[], &[8100, 8101, 8001], seed);
        for _ in 0..12 {
            world.router.loss = [0, 20, 60][world.random.below(3) as usize];
            match world.random.below(5) {
                0 => world.router.restart(world.now),
                1 => world.router.lifetime = [1, 10, 60, LIFETIME_SECONDS][world.random.below(4) as usize],
                2 => world.router.methods = vec![Method::ALL[world.random.below(3) as usize]],
                3 => world.router.methods.clear(),
                _ => world.router.external = [OUTSIDE, "198.51.100.7".parse().unwrap()][world.random.below(2) as usize],
            }
            let for_ = Duration::from_secs(world.random.below(90));
            world.run(for_);
        }
        world.router.loss = 0;
        world.router.lifetime = LIFETIME_SECONDS;
        world.router.methods = vec![Method::ALL[world.random.below(3) as usize]];
        world.run(Duration::from_secs(35 * 60));
        let now = world.now;
        let all = [8100, 8101, 8001].into_iter().all(|port| world.router.maps(udp(port), now));
        assert!(all && world.granted() == 3, "seed {seed}: {:?}", world.book);
    }
}

#[test]
fn whatever_a_hostile_gateway_answers_it_is_not_asked_much() {
    for seed in 1..=200 {
        let mut world = World::new(&[], &[8100, 8101, 8001], seed);
        let mut asked = 0_u64;
        let end = world.now + Duration::from_secs(600);
        while world.now < end {
            while let Some(ask) = world.book.poll(world.now) {
                asked += 1;
                let mut number = || world.random.below(u64::from(u32::MAX)) as u32;
                let reply = match number() % 6 {
                    0 => Reply::Alive { epoch: Some(number()), external: Some(IpAddr::from(number().to_be_bytes())) },
                    1 => Reply::Mapped {
                        external: (Some(IpAddr::from(number().to_be_bytes())), number() as u16),
                        lifetime: [0, 1, u32::MAX][number() as usize % 3],
                        epoch: Some(number()),
                    },
                    2 => Reply::Refused { reason: String::new(), seconds: number() },
                    3 => Reply::Unsupported,
                    4 => Reply::Unmapped,
                    _ => Reply::Alive { epoch: None, external: None },
                };
                if ask.method != Method::Upnp || asked.is_multiple_of(2) {
                    world.book.handle(reply, world.now);
                }
            }
            world.now += STEP;
        }
        // Three ports every 4 s, and some looks between.
        assert!(asked < 600, "seed {seed}: {asked} questions in ten minutes");
    }
}

fn address(interface_index: u32, prefix: &str) -> HostAddress {
    let interface = format!("eth{interface_index}");
    let prefix = prefix.parse().unwrap();
    HostAddress { interface_index, interface, prefix, loopback: false, up: true, deprecated: false }
}

fn gateway(interface: u32, ip: &str) -> Gateway {
    Gateway { interface, interface_name: format!("eth{interface}"), ip: ip.parse().unwrap() }
}

#[test]
fn each_gateway_is_asked_for_what_listens_on_its_interface() {
    let addresses = [
        address(1, "192.168.1.2/24"),
        address(1, "fe80::2/64"),
        address(1, "fd00::2/64"),
        address(1, "2001:db8::2/64"),
        address(2, "10.9.0.2/24"),
    ];
    let plan = ListenPlan {
        control: ["/ip4/192.168.1.2/tcp/8001", "/ip4/192.168.1.2/udp/8001/quic-v1", "/ip6/2001:db8::2/tcp/8001"]
            .map(|address| address.parse().unwrap())
            .to_vec(),
        lanes: ["192.168.1.2", "2001:db8::2", "fd00::2"].map(|ip| ip.parse().unwrap()).to_vec(),
    };
    let gateways = vec![gateway(1, "192.168.1.1"), gateway(1, "fe80::1"), gateway(2, "10.9.0.1")];
    let host = Host { gateways, addresses: &addresses, plan: &plan, first_port: 8100, workers: 2 };
    let wanted = wanted(&host);
    let asked: Vec<_> = wanted.iter().map(|(key, ports)| (key.ours.to_string(), ports.len())).collect();
    assert_eq!(asked, [("192.168.1.2".to_owned(), 4), ("2001:db8::2".to_owned(), 3)]);
    let (_, ports) = wanted.first_key_value().unwrap();
    assert_eq!((ports[&udp(8101)].workers.as_slice(), ports[&udp(8001)].control.len()), (&[1][..], 1));
}

#[test]
fn a_listener_keeps_its_transport_outside() {
    let outside = "203.0.113.1:9001".parse().unwrap();
    for (listener, expected) in [
        ("/ip4/192.168.1.2/tcp/8001", "/ip4/203.0.113.1/tcp/9001"),
        ("/ip4/192.168.1.2/udp/8001/quic-v1", "/ip4/203.0.113.1/udp/9001/quic-v1"),
        ("/ip4/192.168.1.2/tcp/8001/ws", "/ip4/203.0.113.1/tcp/9001/ws"),
    ] {
        assert_eq!(moved(&listener.parse().unwrap(), outside).to_string(), expected);
    }
}
