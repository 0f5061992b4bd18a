//! The packet path allocates nothing per packet: two dataplanes with a TUN and a worker each, and a real lane between
//! them, in a network namespace of their own that the kernel removes with the process.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]
#![allow(unsafe_code, reason = "a global allocator is unsafe to implement")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::env;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use ringlane_control::lanes::{LaneEngine, LaneEngineConfig, LaneOutcome, LinkStart};
use ringlane_dataplane::{Dataplane, Tun, spawn};
use ringlane_shared::bucket::ByteRate;
use ringlane_shared::drop_reason::DropReason;
use ringlane_shared::id::{Generation, LaneId, LaneIndex, PeerId, PeerIndex};
use ringlane_shared::identity::keypair_from_seed;
use ringlane_shared::lane::keys::Role;
use ringlane_shared::path::candidate::AddressPolicy;
use ringlane_shared::plane::queue::plane_queue;
use ringlane_shared::plane::{
    CarrierChoice, EgressState, Engine, Forward, ForwardCounters, ForwardHalf, ForwardId, LaneChange, LaneHandOver,
    PeerCounters, PeerEntry, PlaneCommand, PlaneEvent, PlaneReceiver, Snapshot, ToControl, WorkerSettings,
};
use ringlane_shared::route::RouteTable;
use ringlane_shared::wire::offer::{Candidate, CandidateKind, Features, Offer, OfferSecret};

/// Counts the calls that make or grow an allocation, of all threads.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is the one asked for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is the one asked for.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is the one asked for.
        unsafe { System.realloc(pointer, layout, bytes) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is the one asked for.
        unsafe { System.dealloc(pointer, layout) }
    }
}

const INSIDE: &str = "RINGLANE_TEST_INSIDE_NAMESPACE";
const PATIENCE: Duration = Duration::from_secs(60);
const MTU: u16 = 1420;
const PORT: u16 = 18_200;
const PEER: PeerIndex = PeerIndex(0);

const WARM_UP_ROUNDS: u64 = 50;
const ROUNDS: u64 = 800;
/// Packets each way in one round. One worker handles some of them in a turn together, others alone, and sleeps after
/// the last; a TUN's queue holds ten times as many.
const ROUND_PACKETS: u64 = 50;
/// Super-segments each way in one round, and the pieces that the last is cut into.
const ROUND_SUPER_SEGMENTS: u64 = 2;
const PIECES: u64 = 20;
const PIECE_BYTES: usize = 1200;

/// What the window may see beside packets, per second that it lasts: the end of QUIC's own search for the path MTU takes a
/// few allocations. The machine carries tens of thousands of packets in that time.
const ALLOCATIONS_PER_SECOND_MAX: u64 = 64;

#[test]
fn the_packet_path_allocates_nothing_per_packet() {
    allocates_nothing("the_packet_path_allocates_nothing_per_packet", Engine::IoUring, 1500);
}

#[test]
fn the_packet_path_on_epoll_allocates_nothing_per_packet() {
    allocates_nothing("the_packet_path_on_epoll_allocates_nothing_per_packet", Engine::Epoll, 1500);
}

/// The larger packets, and all pieces, do not fit a record.
#[test]
fn the_packet_path_allocates_nothing_per_packet_that_it_cuts() {
    allocates_nothing("the_packet_path_allocates_nothing_per_packet_that_it_cuts", Engine::IoUring, 1252);
}

fn allocates_nothing(test: &str, engine: Engine, underlay_mtu: u16) {
    if env::var_os(INSIDE).is_none() {
        return run_in_namespace(test);
    }
    carries_without_allocating(engine, underlay_mtu, None);
}

#[test]
fn packets_that_queue_for_a_rate_allocate_nothing_either() {
    if env::var_os(INSIDE).is_none() {
        return run_in_namespace("packets_that_queue_for_a_rate_allocate_nothing_either");
    }
    carries_without_allocating(Engine::IoUring, 1500, Some(500_000_000));
}

#[test]
fn what_is_relayed_for_others_allocates_nothing() {
    relays_without_allocating("what_is_relayed_for_others_allocates_nothing", Engine::IoUring);
}

#[test]
fn what_is_relayed_on_epoll_allocates_nothing() {
    relays_without_allocating("what_is_relayed_on_epoll_allocates_nothing", Engine::Epoll);
}

/// The lane's handshake, its search for the path MTU and its records all pass a third node, whose worker has no part in it.
#[test]
fn a_lane_stands_and_carries_through_a_relay() {
    if env::var_os(INSIDE).is_none() {
        return run_in_namespace("a_lane_stands_and_carries_through_a_relay");
    }
    ip("link set lo up mtu 1500");
    let relay = dataplane("rlna2", Engine::IoUring, None).0;
    let local = |port| SocketAddr::from(([127, 0, 0, 3], port));
    // Each half is where the other end's lane leads.
    let ends = [SocketAddr::from(([127, 0, 0, 1], PORT)), SocketAddr::from(([127, 0, 0, 2], PORT))];
    let halves = [local(PORT), local(PORT + 1)];
    let forward_halves = [0, 1].map(|half| {
        let socket = UdpSocket::bind(halves[half]).unwrap();
        socket.connect(ends[half]).unwrap();
        socket.set_nonblocking(true).unwrap();
        ForwardHalf { socket: socket.into(), local: halves[half], remote: ends[half] }
    });
    let counters = Arc::new(ForwardCounters::default());
    let rate = ByteRate { per_second: 10_000_000_000, burst: 1 << 30 };
    let (id, idle) = (ForwardId(1), Duration::from_secs(600));
    let forward = Forward { id, halves: forward_halves, rate, idle, counters: Arc::clone(&counters) };
    relay.commands[0].try_send(PlaneCommand::LimitForwards(rate)).unwrap();
    relay.commands[0].try_send(PlaneCommand::AddForward(Box::new(forward))).unwrap();
    carries_through(Engine::IoUring, None, [halves[1], halves[0]]);
    let datagrams = counters.halves.each_ref().map(|half| half.datagrams.get());
    assert!(datagrams.iter().all(|datagrams| *datagrams > ROUNDS), "{datagrams:?}");
    let drops = DropReason::ALL.map(|reason| (reason.name(), counters.drops.get(reason)));
    // The lane has asked whether its path carries more than it does.
    assert!(drops.iter().all(|(name, drops)| *drops == 0 || *name == "too_big"), "{drops:?}");
    relay.commands[0].try_send(PlaneCommand::Stop).unwrap();
    relay.join();
}

/// A worker between two sockets that knows nothing of either.
fn relays_without_allocating(test: &str, engine: Engine) {
    if env::var_os(INSIDE).is_none() {
        return run_in_namespace(test);
    }
    ip("link set lo up");
    let side = Side::new(0, engine, None);
    let half = || {
        let [ours, far] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        let [local, remote] = [&ours, &far].map(|socket| socket.local_addr().unwrap());
        ours.connect(remote).unwrap();
        far.connect(local).unwrap();
        [&ours, &far].into_iter().for_each(|socket| socket.set_nonblocking(true).unwrap());
        (ForwardHalf { socket: ours.into(), local, remote }, far)
    };
    let ((a, a_far), (b, b_far)) = (half(), half());
    let counters = Arc::new(ForwardCounters::default());
    let rate = ByteRate { per_second: 10_000_000_000, burst: 1 << 30 };
    let (halves, idle) = ([a, b], Duration::from_secs(600));
    let forward = Forward { id: ForwardId(1), halves, rate, idle, counters: Arc::clone(&counters) };
    let commands = &side.dataplane.commands[0];
    commands.try_send(PlaneCommand::LimitForwards(rate)).unwrap();
    commands.try_send(PlaneCommand::AddForward(Box::new(forward))).unwrap();
    let mut buffer = vec![0; 65_536];
    let mut relay = |round: u64| {
        for far in [&a_far, &b_far] {
            let train = round % 4 == 3;
            setsockopt(far, sockopt::UdpGsoSegment, &(if train { PIECE_BYTES as i32 } else { 0 })).unwrap();
            match train {
                true => assert!(far.send(&[3; PIECES as usize * PIECE_BYTES]).is_ok()),
                false => (0..PIECES).for_each(|_| assert!(far.send(&[1; 200]).is_ok())),
            }
        }
        let deadline = Instant::now() + PATIENCE;
        for far in [&a_far, &b_far] {
            for _ in 0..PIECES {
                while far.recv(&mut buffer).is_err() {
                    assert!(Instant::now() < deadline, "round {round}: datagrams got lost");
                    std::thread::yield_now();
                }
            }
        }
    };
    (0..WARM_UP_ROUNDS).for_each(&mut relay);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    (WARM_UP_ROUNDS..WARM_UP_ROUNDS + ROUNDS).for_each(&mut relay);
    let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
    let datagrams: u64 = counters.halves.iter().map(|half| half.datagrams.get()).sum();
    println!("{allocations} allocations for {datagrams} datagrams");
    assert_eq!(datagrams, 2 * PIECES * (WARM_UP_ROUNDS + ROUNDS));
    assert!(allocations <= ALLOCATIONS_PER_SECOND_MAX, "{allocations}");
    side.stop();
}

fn carries_without_allocating(engine: Engine, underlay_mtu: u16, rate_bits_per_s: Option<u64>) {
    ip(&format!("link set lo up mtu {underlay_mtu}"));
    carries_through(engine, rate_bits_per_s, [1, 2].map(|host| SocketAddr::from(([127, 0, 0, host], PORT))));
}

/// `reached` are the addresses at which the sides reach each other.
fn carries_through(engine: Engine, rate_bits_per_s: Option<u64>, reached: [SocketAddr; 2]) {
    let mut sides = [0, 1].map(|number| Side::new(number, engine, rate_bits_per_s));
    let lanes = establish(reached);
    for (side, lane) in sides.iter_mut().zip(lanes) {
        side.own(lane);
    }
    let sockets = [sender(0, 1, 4000), sender(1, 0, 4000)];
    let segmented = [sender(0, 1, 4001), sender(1, 0, 4001)];
    for socket in &segmented {
        setsockopt(socket, sockopt::UdpGsoSegment, &(PIECE_BYTES as i32)).unwrap();
    }
    let carry = |sides: &[Side; 2], round| carry(sides, [&sockets, &segmented], round);
    (0..WARM_UP_ROUNDS).for_each(|round| carry(&sides, round));
    let (begun, before) = (Instant::now(), ALLOCATIONS.load(Ordering::Relaxed));
    let sleeps = sides.each_ref().map(|side| side.dataplane.counters[0].sleeps.get());
    (WARM_UP_ROUNDS..WARM_UP_ROUNDS + ROUNDS).for_each(|round| carry(&sides, round));
    let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
    let (packets, seconds) =
        (2 * ROUNDS * (ROUND_PACKETS + ROUND_SUPER_SEGMENTS * PIECES), 1 + begun.elapsed().as_secs());
    println!("{allocations} allocations for {packets} packets in less than {seconds} s");
    assert!(allocations <= seconds * ALLOCATIONS_PER_SECOND_MAX, "{allocations} for {packets} packets");
    for (side, sleeps) in sides.iter().zip(sleeps) {
        assert!(side.dataplane.counters[0].sleeps.get() > sleeps, "going to sleep is part of it");
        let counters = &side.counters[0];
        let drops = DropReason::ALL.map(|reason| (reason.name(), counters.drops.get(reason)));
        assert!(drops.iter().all(|(_, drops)| *drops == 0), "{drops:?}");
        assert!(counters.records_received.get() < counters.packets_received.get(), "some shared a record");
        let worker = &side.dataplane.counters[0];
        assert!(worker.super_segments_read.get() > 0 && worker.super_segments_written.get() > 0);
        assert_eq!(worker.egress.state() == EgressState::Queueing, rate_bits_per_s.is_some());
        // On a busy machine the other side may be late to answer, once or often; silent it is never.
        let is_expected = |event: &PlaneEvent| {
            matches!(event, PlaneEvent::LaneChanged { change: LaneChange::PathMtu(_) | LaneChange::Late, .. })
        };
        let others: Vec<_> =
            std::iter::from_fn(|| side.events.try_recv()).filter(|event| !is_expected(event)).collect();
        assert!(others.is_empty(), "the lane and the worker live: {others:?}");
    }
    sides.into_iter().for_each(Side::stop);
}

/// Sends a round's packets and super-segments both ways and waits until the TUNs have been given all of them. Allocates
/// nothing.
fn carry(sides: &[Side; 2], [sockets, segmented]: [&[UdpSocket; 2]; 2], round: u64) {
    // Of two sizes: packets that share a record, and such that have one alone.
    let payloads = [[1; 200].as_slice(), &[2; PIECE_BYTES]];
    for packet in 0..ROUND_PACKETS {
        for socket in sockets {
            socket.send(payloads[usize::from(packet % 8 == 7)]).unwrap();
        }
    }
    for _ in 0..ROUND_SUPER_SEGMENTS {
        for socket in segmented {
            socket.send(&[3; PIECES as usize * PIECE_BYTES]).unwrap();
        }
    }
    let all = (round + 1) * (ROUND_PACKETS + ROUND_SUPER_SEGMENTS * PIECES);
    let deadline = Instant::now() + PATIENCE;
    while sides.iter().any(|side| side.counters[0].packets_received.get() < all) {
        assert!(Instant::now() < deadline, "round {round}: packets got lost");
        std::thread::yield_now();
    }
}

/// A dataplane of one worker, its TUN, and control's ends of the queues.
struct Side {
    number: u8,
    dataplane: Dataplane,
    events: PlaneReceiver<PlaneEvent>,
    counters: Arc<[PeerCounters]>,
}

impl Side {
    /// Side n has 10.n.0.1 on its TUN and routes the other side's network into it; the kernel, which has both, throws
    /// away what arrives there.
    fn new(number: u8, engine: Engine, rate_bits_per_s: Option<u64>) -> Self {
        let interface = format!("rlna{number}");
        let (dataplane, events) = dataplane(&interface, engine, rate_bits_per_s);
        ip(&format!("address add 10.{number}.0.1/32 dev {interface}"));
        ip(&format!("link set {interface} up mtu {MTU}"));
        ip(&format!("route add 10.{}.0.0/16 dev {interface}", 1 - number));
        Self { number, dataplane, events, counters: Arc::new([PeerCounters::default()]) }
    }

    fn own(&mut self, lane: Box<LaneHandOver>) {
        let (mut routes, mut sources) = (RouteTable::default(), RouteTable::default());
        let behind_peer = format!("10.{}.0.0/16", 1 - self.number).parse().unwrap();
        routes.insert(behind_peer, PEER);
        sources.insert(behind_peer, true);
        let peer = PeerEntry {
            id: PeerId::random(),
            sources: Arc::new(sources),
            workers_with_lane: 1,
            stream: None,
            avoided: 0,
            counters: Arc::clone(&self.counters),
        };
        let snapshot = Snapshot { generation: Generation(1), routes: Arc::new(routes), peers: vec![peer] };
        let commands = &self.dataplane.commands[0];
        commands.try_send(PlaneCommand::Publish(Arc::new(snapshot))).unwrap();
        commands.try_send(PlaneCommand::AddLane(lane)).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while self.events.is_empty() {
            assert!(Instant::now() < deadline, "the worker adopts the tables");
            std::thread::yield_now();
        }
        assert!(matches!(self.events.try_recv(), Some(PlaneEvent::Adopted { .. })));
    }

    fn stop(self) {
        self.dataplane.commands[0].try_send(PlaneCommand::Stop).unwrap();
        self.dataplane.join();
    }
}

/// A dataplane of one worker, and where it tells what happens.
fn dataplane(interface: &str, engine: Engine, rate_bits_per_s: Option<u64>) -> (Dataplane, PlaneReceiver<PlaneEvent>) {
    let settings = WorkerSettings { engine, rate_bits_per_s, ..WorkerSettings::new(MTU, 1) };
    let tun = Tun::create(interface, 1, settings.offloads).unwrap();
    let (sender, events) = plane_queue(|| {});
    let (batches, _) = plane_queue(|| {});
    (spawn(tun, &settings, &ToControl { events: sender, batches }).unwrap(), events)
}

/// A socket whose packets leave through side `from`'s TUN.
fn sender(from: u8, to: u8, port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::new(10, from, 0, 1), port)).unwrap();
    socket.connect((Ipv4Addr::new(10, to, 0, 2), port)).unwrap();
    socket
}

/// Both ends of a lane between two nodes on loopback.
fn establish(reached: [SocketAddr; 2]) -> [Box<LaneHandOver>; 2] {
    let ips = [1, 2].map(|host| IpAddr::from(Ipv4Addr::new(127, 0, 0, host)));
    let keypairs = [1, 2].map(|seed| keypair_from_seed([seed; 32].into()).unwrap());
    let lanes = LaneIndex::all(1, 1).collect();
    let offers = [0, 1].map(|node| Offer {
        instance: [node as u8; 16],
        secret: OfferSecret::new([node as u8; 32]),
        features: Features::AES_128_GCM,
        workers: 1,
        port: PORT,
        lane_id_base: LaneId::new(1 + node as u32).unwrap(),
        lanes,
        candidates: vec![Candidate { kind: CandidateKind::Host, ip: reached[node].ip(), port: reached[node].port() }],
        extensions: Default::default(),
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let [mut client, mut server] = [0, 1].map(|node| {
            let policy = AddressPolicy { allow_loopback: true, ..AddressPolicy::default() };
            let keypair = keypairs[node].clone();
            let config = LaneEngineConfig { keypair, workers: 1, port: PORT, inner_mtu: MTU, policy };
            let mut engine = LaneEngine::new(config).unwrap();
            engine.set_local_addresses(&[ips[node]]).unwrap();
            let start = LinkStart {
                peer: PEER,
                peer_id: keypairs[1 - node].public().to_peer_id(),
                role: [Role::Client, Role::Server][node],
                ours: offers[node].clone(),
                theirs: offers[1 - node].clone(),
                lanes,
                carrier: CarrierChoice::Auto,
            };
            engine.start(start, Instant::now());
            engine
        });
        let (mut client_lane, mut server_lane) = (None, None);
        let both = async {
            while client_lane.is_none() || server_lane.is_none() {
                tokio::select! {
                    outcome = client.next() => client_lane = Some(established(outcome)),
                    outcome = server.next() => server_lane = Some(established(outcome)),
                }
            }
        };
        tokio::time::timeout(PATIENCE, both).await.expect("the lane comes up");
        let lanes = [client_lane.unwrap(), server_lane.unwrap()];
        assert_eq!(lanes[0].remote, reached[1]);
        lanes
    })
}

fn established(outcome: LaneOutcome) -> Box<LaneHandOver> {
    match outcome {
        LaneOutcome::Established { lane, .. } => lane,
        LaneOutcome::Failed { reason, .. } => panic!("{reason}"),
        other => panic!("{other:?} instead of a lane"),
    }
}

/// Runs this test again as a process of its own in a new network namespace.
fn run_in_namespace(test: &str) {
    let mut probe = Command::new("unshare");
    probe.args(["--net", "ip", "tuntap", "add", "rlna9", "mode", "tun"]).stderr(Stdio::null());
    if !probe.status().is_ok_and(|status| status.success()) {
        let missing = "a network namespace with a TUN needs root, ip and /dev/net/tun";
        assert!(env::var_os("RINGLANE_REQUIRE_NETNS").is_none_or(|value| value != "1"), "{missing}");
        eprintln!("skipped: {missing}");
        return;
    }
    let mut inside = Command::new("unshare");
    inside.arg("--net").arg(env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]).env(INSIDE, "1");
    let output = inside.output().unwrap();
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    println!("{text}");
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}
