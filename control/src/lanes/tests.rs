//! Two engines on loopback. Each test has a /24 of its own there.

mod by_hand;
mod moving;
mod rekey;
mod relayed;
mod scouting;
mod stun;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use libp2p::identity::{Keypair, PeerId};
use ringlane_shared::id::{LaneId, LaneIndex, LaneSerial, PeerIndex, WorkerId};
use ringlane_shared::lane::keys::Role;
use ringlane_shared::limits::{LANE_SETUPS_MAX, RECORD_HEADER_BYTES, RECORD_OVERHEAD_BYTES};
use ringlane_shared::path::candidate::AddressPolicy;
use ringlane_shared::plane::{CarrierChoice, LaneHandOver, Stray};
use ringlane_shared::wire::offer::{Candidate, CandidateKind, Features, LaneSet, Offer, OfferSecret};
use ringlane_shared::wire::record::DatagramKind;
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, ip_mtu_discover};
use tokio::time::{Instant, timeout};

use super::*;

const PORT: u16 = 18_100;
const MTU: u16 = 1420;
const PEER: PeerIndex = PeerIndex(7);

struct Node {
    keypair: Keypair,
    ip: IpAddr,
    workers: u8,
    engine: LaneEngine,
}

impl Node {
    /// A node at 127.77.`net`.`host` that does not listen yet.
    fn new(net: u8, host: u8, workers: u8) -> Self {
        let keypair = Keypair::generate_ed25519();
        let policy = AddressPolicy { allow_loopback: true, ..Default::default() };
        let config = LaneEngineConfig { keypair: keypair.clone(), workers, port: PORT, inner_mtu: MTU, policy };
        let ip = Ipv4Addr::new(127, 77, net, host).into();
        Self { keypair, ip, workers, engine: LaneEngine::new(config).unwrap() }
    }

    fn listening(net: u8, host: u8, workers: u8) -> Self {
        let mut node = Self::new(net, host, workers);
        node.engine.set_local_addresses(&[node.ip]).unwrap();
        node
    }

    fn peer_id(&self) -> PeerId {
        self.keypair.public().to_peer_id()
    }

    fn address(&self, worker: u8) -> SocketAddr {
        SocketAddr::new(self.ip, PORT + u16::from(worker))
    }

    /// `number` makes the secret: another offer, another number.
    fn offer(&self, lanes: LaneSet, number: u8) -> Offer {
        let IpAddr::V4(ip) = self.ip else { unreachable!("nodes have IPv4 addresses") };
        Offer {
            instance: [ip.octets()[3]; 16],
            secret: OfferSecret::new([number ^ ip.octets()[3]; 32]),
            features: Features::AES_128_GCM,
            workers: self.workers,
            port: PORT,
            lane_id_base: LaneId::new(0x0001_0000 * u32::from(ip.octets()[3])).unwrap(),
            lanes,
            candidates: vec![Candidate { kind: CandidateKind::Host, ip: self.ip, port: PORT }],
            extensions: Default::default(),
        }
    }
}

fn all_lanes(a: &Node, b: &Node) -> LaneSet {
    LaneIndex::all(a.workers, b.workers).collect()
}

/// What a's and b's engines are told when both have each other's offers; a is the client.
fn requests(a: &Node, b: &Node, number: u8) -> [LinkStart; 2] {
    let lanes = all_lanes(a, b);
    let (offer_a, offer_b) = (a.offer(lanes, number), b.offer(lanes, number));
    let request = |peer: &Node, role, ours: &Offer, theirs: &Offer| LinkStart {
        peer: PEER,
        peer_id: peer.peer_id(),
        role,
        ours: ours.clone(),
        theirs: theirs.clone(),
        lanes,
        carrier: CarrierChoice::Auto,
    };
    [request(b, Role::Client, &offer_a, &offer_b), request(a, Role::Server, &offer_b, &offer_a)]
}

fn start_both(a: &mut Node, b: &mut Node, number: u8) {
    let [for_a, for_b] = requests(a, b, number);
    let now = Instant::now().into_std();
    a.engine.start(for_a, now);
    b.engine.start(for_b, now);
}

/// Runs both engines until they have told this many outcomes, a's first.
async fn outcomes(a: &mut Node, b: &mut Node, counts: [usize; 2]) -> [Vec<LaneOutcome>; 2] {
    let mut told = [vec![], vec![]];
    let all = async {
        while told[0].len() < counts[0] || told[1].len() < counts[1] {
            tokio::select! {
                outcome = a.engine.next() => told[0].push(outcome),
                outcome = b.engine.next() => told[1].push(outcome),
            }
        }
    };
    timeout(Duration::from_secs(60), all).await.expect("the outcomes come within a minute");
    told
}

fn established(outcome: LaneOutcome) -> (WorkerId, Box<LaneHandOver>) {
    match outcome {
        LaneOutcome::Established { worker, lane, .. } => (worker, lane),
        LaneOutcome::Failed { index, reason, .. } => panic!("lane {index} failed: {reason}"),
        other => panic!("{other:?} instead of a lane"),
    }
}

fn failed(outcome: LaneOutcome) -> (LaneIndex, LaneFailure) {
    match outcome {
        LaneOutcome::Failed { peer, index, reason } => {
            assert_eq!(peer, PEER);
            (index, reason)
        }
        LaneOutcome::Established { lane, .. } => panic!("{lane:?} was established"),
        other => panic!("{other:?} instead of a failure"),
    }
}

fn by_index(outcomes: Vec<LaneOutcome>) -> Vec<(WorkerId, Box<LaneHandOver>)> {
    let mut lanes: Vec<_> = outcomes.into_iter().map(established).collect();
    lanes.sort_by_key(|(_, lane)| lane.index);
    lanes
}

/// Sends one record through the real sockets and opens it at the other end.
fn carry_record(from: &mut LaneHandOver, to: &mut LaneHandOver) {
    let mut record = vec![0; RECORD_OVERHEAD_BYTES + 5];
    record[RECORD_HEADER_BYTES..][..5].copy_from_slice(b"inner");
    from.sealer.seal(&mut record, 5).unwrap();
    assert_eq!(&record[1..4], &to.inbound_id.to_be_bytes());
    UdpSocket::from(from.socket.try_clone().unwrap()).send(&record).unwrap();
    let receiver = UdpSocket::from(to.socket.try_clone().unwrap());
    let mut buffer = [0; 2048];
    // Loopback delivers before `send` returns; QUIC datagrams may stand in front.
    let received = loop {
        let length = receiver.recv(&mut buffer).expect("the record has arrived");
        if DatagramKind::of(&buffer[..length]) == DatagramKind::Record {
            break &mut buffer[..length];
        }
    };
    assert_eq!(to.opener.open(received).unwrap().frames, b"inner");
}

fn assert_is_send<T: Send>(_: &T) {}

async fn all_lanes_come_up(net: u8, workers: [u8; 2]) {
    let mut a = Node::listening(net, 1, workers[0]);
    let mut b = Node::listening(net, 2, workers[1]);
    let count = usize::from(workers[0].max(workers[1]));
    start_both(&mut a, &mut b, 1);
    let [at_a, at_b] = outcomes(&mut a, &mut b, [count, count]).await.map(by_index);
    assert_eq!((a.engine.pending(), b.engine.pending()), (0, 0));
    for (k, ((worker_a, mut lane_a), (worker_b, mut lane_b))) in at_a.into_iter().zip(at_b).enumerate() {
        assert_is_send(&lane_a);
        assert_eq!((lane_a.index.get(), lane_b.index.get()), (k as u8, k as u8));
        assert_eq!((worker_a.0, worker_b.0), (k as u8 % workers[0], k as u8 % workers[1]));
        assert_eq!((lane_a.local, lane_a.remote), (a.address(worker_a.0), b.address(worker_b.0)));
        assert_eq!((lane_b.local, lane_b.remote), (lane_a.remote, lane_a.local));
        assert_eq!((lane_a.connection.role(), lane_b.connection.role()), (Role::Client, Role::Server));
        assert_eq!(ip_mtu_discover(&lane_a.socket).unwrap(), Ipv4PathMtuDiscovery::PROBE);
        carry_record(&mut lane_a, &mut lane_b);
        carry_record(&mut lane_b, &mut lane_a);
    }
}

#[tokio::test]
async fn one_worker_each_share_one_lane() {
    all_lanes_come_up(1, [1, 1]).await;
}

#[tokio::test]
async fn two_and_three_workers_share_three_lanes() {
    all_lanes_come_up(2, [2, 3]).await;
}

#[tokio::test]
async fn three_workers_and_one_share_three_lanes() {
    all_lanes_come_up(3, [3, 1]).await;
}

/// Each engine is woken by its own sockets and timers only, as in two processes. A lost wake-up would cost at least
/// the first retransmission's 300 ms; the quickest of five shows that none is needed.
#[tokio::test]
async fn a_handshake_waits_for_no_timer() {
    let (mut a, mut b) = (Node::listening(26, 1, 1), Node::listening(26, 2, 1));
    let mut quickest = Duration::MAX;
    for round in 0..5 {
        start_both(&mut a, &mut b, round);
        let begun = Instant::now();
        let local = tokio::task::LocalSet::new();
        let a_task = local.spawn_local(async move { (established(a.engine.next().await), a) });
        let b_task = local.spawn_local(async move { (established(b.engine.next().await), b) });
        let (at_a, at_b) = local.run_until(async { tokio::join!(a_task, b_task) }).await;
        (_, a) = at_a.unwrap();
        (_, b) = at_b.unwrap();
        quickest = quickest.min(begun.elapsed());
    }
    assert!(quickest < Duration::from_millis(250), "{quickest:?}");
}

#[tokio::test]
async fn the_addresses_that_work_are_found_among_those_that_do_not() {
    let (mut a, mut b) = (Node::new(24, 1, 1), Node::listening(24, 2, 1));
    a.engine.set_local_addresses(&[a.ip, Ipv4Addr::new(127, 77, 24, 3).into()]).unwrap();
    let [mut for_a, for_b] = requests(&a, &b, 1);
    let dead = ["127.77.24.99", "192.0.2.1", "127.77.24.1", "2001:db8::1", "224.0.0.1"];
    let dead = dead.map(|ip| Candidate { kind: CandidateKind::Host, ip: ip.parse().unwrap(), port: PORT });
    for_a.theirs.candidates.splice(..0, dead);
    let now = Instant::now().into_std();
    a.engine.start(for_a, now);
    b.engine.start(for_b, now);
    let [at_a, at_b] = outcomes(&mut a, &mut b, [1, 1]).await.map(by_index);
    assert_eq!(at_a[0].1.remote, b.address(0));
    assert_eq!(at_b[0].1.remote, at_a[0].1.local);
}

#[tokio::test]
async fn a_client_that_knows_no_address_dials_where_the_server_asked_from() {
    let (mut a, mut b) = (Node::listening(25, 1, 1), Node::listening(25, 2, 1));
    let [mut for_a, for_b] = requests(&a, &b, 1);
    for_a.theirs.candidates.clear();
    let now = Instant::now().into_std();
    a.engine.start(for_a, now);
    b.engine.start(for_b, now);
    let [at_a, _] = outcomes(&mut a, &mut b, [1, 1]).await.map(by_index);
    assert_eq!(at_a[0].1.remote, b.address(0));
}

#[tokio::test]
async fn no_lane_goes_through_the_networks_that_lanes_carry() {
    let (mut a, mut b) = (Node::new(27, 1, 1), Node::listening(27, 2, 1));
    // To a, b's address is one behind b: only b's probes show that it can be reached.
    let policy = AddressPolicy {
        allow_loopback: true,
        inner_networks: vec!["127.77.27.2/32".parse().unwrap()],
        ..Default::default()
    };
    let keypair = a.keypair.clone();
    let config = LaneEngineConfig { keypair, workers: 1, port: PORT, inner_mtu: MTU, policy };
    a.engine = LaneEngine::new(config).unwrap();
    a.engine.set_local_addresses(&[a.ip]).unwrap();
    start_both(&mut a, &mut b, 1);
    assert!(timeout(Duration::from_millis(20), outcomes(&mut a, &mut b, [1, 1])).await.is_err());
    assert!(a.engine.drops().get(ListenerDrop::UnknownProbe) > 0);
    tokio::time::pause();
    let [at_a, _] = outcomes(&mut a, &mut b, [1, 1]).await.map(|mut told| failed(told.remove(0)));
    assert!(matches!(at_a.1, LaneFailure::NoPath));
}

#[tokio::test]
async fn a_server_with_another_key_fails_on_both_sides() {
    let (mut a, mut b) = (Node::listening(4, 1, 1), Node::listening(4, 2, 1));
    let [mut for_a, for_b] = requests(&a, &b, 1);
    for_a.peer_id = Keypair::generate_ed25519().public().to_peer_id();
    let now = Instant::now().into_std();
    a.engine.start(for_a, now);
    b.engine.start(for_b, now);
    for outcome in outcomes(&mut a, &mut b, [1, 1]).await.into_iter().flatten() {
        assert!(matches!(failed(outcome).1, LaneFailure::Handshake(_)));
    }
}

#[tokio::test]
async fn a_client_with_another_key_is_never_told_that_it_is_connected() {
    let (mut a, mut b) = (Node::listening(5, 1, 1), Node::listening(5, 2, 1));
    let [for_a, mut for_b] = requests(&a, &b, 1);
    for_b.peer_id = Keypair::generate_ed25519().public().to_peer_id();
    let now = Instant::now().into_std();
    a.engine.start(for_a, now);
    b.engine.start(for_b, now);
    for outcome in outcomes(&mut a, &mut b, [1, 1]).await.into_iter().flatten() {
        assert!(matches!(failed(outcome).1, LaneFailure::Handshake(_)));
    }
}

#[tokio::test]
async fn a_peer_id_without_a_key_fails_at_once() {
    let (mut a, b) = (Node::listening(6, 1, 1), Node::new(6, 2, 1));
    let [mut for_a, _] = requests(&a, &b, 1);
    for_a.peer_id = PeerId::from_bytes(&[&[0x12, 0x20][..], &[7; 32]].concat()).unwrap();
    a.engine.start(for_a, Instant::now().into_std());
    assert!(matches!(failed(a.engine.next().await).1, LaneFailure::Tls(_)));
    assert_eq!(a.engine.pending(), 0);
}

#[tokio::test]
async fn a_blocked_port_fails_only_its_lane() {
    let (mut a, mut b) = (Node::listening(7, 1, 2), Node::new(7, 2, 2));
    // Somebody else's socket swallows what is sent to b's second worker.
    let blocked = b.address(1);
    let _squatter = UdpSocket::bind(blocked).unwrap();
    let errors = b.engine.set_local_addresses(&[b.ip]).unwrap_err();
    assert!(matches!(errors.as_slice(), [ListenError::InUse(address)] if *address == blocked), "{errors:?}");
    start_both(&mut a, &mut b, 1);
    let told = outcomes(&mut a, &mut b, [1, 1]).await;
    for outcome in told.into_iter().flatten() {
        assert_eq!(established(outcome).1.index.get(), 0);
    }
    // Only waiting is left.
    tokio::time::pause();
    let [at_a, at_b] = outcomes(&mut a, &mut b, [1, 1]).await.map(|mut told| failed(told.remove(0)));
    assert!(matches!(at_a, (index, LaneFailure::NoPath) if index.get() == 1), "{at_a:?}");
    assert!(matches!(at_b, (index, LaneFailure::NotDialled) if index.get() == 1), "{at_b:?}");
}

#[tokio::test]
async fn a_port_in_use_is_refused_with_its_address_and_number_even_if_it_would_be_shared() {
    let mut node = Node::new(8, 1, 2);
    let other = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
    other.set_reuse_port(true).unwrap();
    other.bind(&node.address(1).into()).unwrap();
    let errors = node.engine.set_local_addresses(&[node.ip]).unwrap_err();
    let message = errors.iter().map(ToString::to_string).collect::<String>();
    assert_eq!(errors.len(), 1);
    assert!(message.contains("18101") && message.contains("127.77.8.1") && message.contains("in use"), "{message}");
    drop(other);
    node.engine.set_local_addresses(&[node.ip]).unwrap();
}

#[tokio::test]
async fn an_address_that_comes_back_is_listened_at_again_though_a_lane_still_lives_there() {
    let (mut a, mut b) = (Node::listening(9, 1, 1), Node::listening(9, 2, 1));
    start_both(&mut a, &mut b, 1);
    let lanes = outcomes(&mut a, &mut b, [1, 1]).await;
    a.engine.set_local_addresses(&[]).unwrap();
    a.engine.set_local_addresses(&[a.ip]).unwrap();
    // The old sockets are still open; a second pair takes over their 4-tuple.
    start_both(&mut a, &mut b, 2);
    let told = outcomes_with_strays(&mut a, &mut b, &lanes).await;
    told.into_iter().for_each(|outcome| drop(established(outcome)));
}

/// As [`outcomes`] for one lane each, with what reaches the sockets of older lanes handed back as a worker would.
async fn outcomes_with_strays(a: &mut Node, b: &mut Node, old: &[Vec<LaneOutcome>; 2]) -> [LaneOutcome; 2] {
    let mut told = [None, None];
    let all = async {
        while told.iter().any(Option::is_none) {
            tokio::select! {
                outcome = a.engine.next() => told[0] = Some(outcome),
                outcome = b.engine.next() => told[1] = Some(outcome),
                () = tokio::time::sleep(Duration::from_millis(1)) => {}
            }
            for (node, old) in [&mut *a, &mut *b].into_iter().zip(old) {
                let LaneOutcome::Established { lane, .. } = &old[0] else { unreachable!("it was established") };
                let socket = UdpSocket::from(lane.socket.try_clone().unwrap());
                let mut buffer = [0; 2048];
                while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    let stray = Stray { local: lane.local, from, datagram: buffer[..length].into() };
                    node.engine.handle_stray(stray, Instant::now().into_std());
                }
            }
        }
    };
    timeout(Duration::from_secs(60), all).await.expect("the outcomes come within a minute");
    told.map(Option::unwrap)
}

#[tokio::test]
async fn a_newer_start_replaces_a_pending_one() {
    let (mut a, mut b) = (Node::listening(10, 1, 1), Node::listening(10, 2, 1));
    let [for_a, _] = requests(&a, &b, 1);
    a.engine.start(for_a, Instant::now().into_std());
    let client = timeout(Duration::from_millis(50), a.engine.next()).await;
    assert!(client.is_err(), "nobody answers offer 1");
    start_both(&mut a, &mut b, 2);
    assert_eq!((a.engine.pending(), b.engine.pending()), (1, 1));
    let [mut at_a, mut at_b] = outcomes(&mut a, &mut b, [1, 1]).await.map(by_index);
    carry_record(&mut at_a[0].1, &mut at_b[0].1);
    assert_eq!((a.engine.pending(), b.engine.pending()), (0, 0));
}

#[tokio::test]
async fn a_cancelled_peer_has_no_outcome() {
    let (mut a, mut b) = (Node::listening(11, 1, 2), Node::listening(11, 2, 2));
    start_both(&mut a, &mut b, 1);
    a.engine.cancel(PEER);
    b.engine.cancel(PEER);
    assert_eq!((a.engine.pending(), b.engine.pending()), (0, 0));
    let nothing = timeout(Duration::from_millis(20), outcomes(&mut a, &mut b, [1, 0])).await;
    assert!(nothing.is_err());
}

#[tokio::test]
async fn garbage_of_every_length_during_handshakes_does_no_harm_and_gets_no_answer() {
    let (mut a, mut b) = (Node::listening(12, 1, 2), Node::listening(12, 2, 2));
    let stranger = UdpSocket::bind((Ipv4Addr::new(127, 77, 12, 9), 0)).unwrap();
    stranger.set_nonblocking(true).unwrap();
    let targets = [a.address(0), a.address(1), b.address(0), b.address(1)];
    let mut seed = 0x9e37_79b9_u32;
    let mut garbage = |length| -> Vec<u8> {
        let bytes = std::iter::repeat_with(|| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 24) as u8
        });
        bytes.take(length).collect()
    };
    for round in 0..15 {
        // It stands in every queue before what the handshakes wait for.
        for length in (0..100).map(|step| step * 15 + round) {
            let datagram = garbage(length);
            for target in targets {
                stranger.send_to(&datagram, target).unwrap();
            }
        }
        start_both(&mut a, &mut b, round as u8);
        let told = outcomes(&mut a, &mut b, [2, 2]).await;
        told.into_iter().flatten().for_each(|outcome| drop(established(outcome)));
    }
    let drops = [&a, &b].into_iter().flat_map(|node| node.engine.drops().iter());
    let counted: u64 = drops.filter(|(reason, _)| *reason != ListenerDrop::Late).map(|(_, count)| count).sum();
    assert_eq!(counted, 4 * 1499, "all but the sentinel of one byte");
    assert_eq!(stranger.recv_from(&mut [0; 2048]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn loopback_addresses_are_neither_listened_at_nor_probed_unless_asked_for() {
    let keypair = Keypair::generate_ed25519();
    let policy = AddressPolicy::default();
    let config = LaneEngineConfig { keypair, workers: 1, port: PORT, inner_mtu: MTU, policy };
    let mut engine = LaneEngine::new(config).unwrap();
    let address = SocketAddr::new(Ipv4Addr::new(127, 77, 20, 1).into(), PORT);
    engine.set_local_addresses(&[address.ip()]).unwrap();
    UdpSocket::bind(address).expect("nobody listens there");
}

#[tokio::test]
async fn sockets_of_both_families_reach_each_other() {
    for ip in [IpAddr::from([127, 77, 21, 1]), Ipv6Addr::LOCALHOST.into()] {
        let (local, remote) = (SocketAddr::new(ip, PORT + 900), SocketAddr::new(ip, PORT + 901));
        let listener = socket::listener(remote).unwrap();
        let lane = socket::connected(local, remote).unwrap();
        socket::send(&lane, b"datagram");
        let mut buffer = [0; 16];
        let (length, from) = timeout(Duration::from_secs(5), listener.recv_from(&mut buffer)).await.unwrap().unwrap();
        assert_eq!((&buffer[..length], from), (&b"datagram"[..], local));
    }
}

#[test]
fn ports_that_do_not_fit_are_refused() {
    for (workers, port) in [(0, 8100), (65, 8100), (2, 65_535), (1, 0)] {
        let policy = AddressPolicy::default();
        let keypair = Keypair::generate_ed25519();
        let config = LaneEngineConfig { keypair, workers, port, inner_mtu: MTU, policy };
        assert!(matches!(LaneEngine::new(config), Err(LaneEngineError::Ports { .. })), "{workers} {port}");
    }
}

#[tokio::test]
async fn lanes_beyond_the_bound_fail_as_busy() {
    let mut server = Node::new(23, 2, 1);
    let client = Node::new(23, 1, 64);
    for peer in 0..=(LANE_SETUPS_MAX / 64) as u16 {
        let [_, mut for_server] = requests(&client, &server, 1);
        for_server.peer = PeerIndex(peer);
        server.engine.start(for_server, Instant::now().into_std());
    }
    assert_eq!(server.engine.pending(), LANE_SETUPS_MAX);
    for _ in 0..64 {
        let LaneOutcome::Failed { reason, .. } = server.engine.next().await else { panic!("no lane can be made") };
        assert!(matches!(reason, LaneFailure::Busy));
    }
}
