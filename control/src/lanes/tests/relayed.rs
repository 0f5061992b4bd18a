//! Three engines on loopback: two ends that know no address of each other's, and a relay, whose worker is threads here that
//! treat the datagrams as badly as a network can.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use ringlane_shared::limits::FAN_SOCKETS_MAX;
use ringlane_shared::path::birthday::{GUESSES_AFTER, TRIED_FOR};
use ringlane_shared::path::candidate::OwnCandidate;
use ringlane_shared::plane::{Forward, ForwardId, LaneChange, PlaneCommand, TrialPath};
use ringlane_shared::stun::nat::Mapping;
use ringlane_shared::wire::bind::{Bind, BindKind, is_bind};
use ringlane_shared::wire::relay::{Allotment, RelayAddress};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::*;
use crate::lanes::drops::ListenerDrop;

/// The relay, to the ends; and the ends, to the relay.
const RELAY: PeerIndex = PeerIndex(50);
const ENDS: [PeerIndex; 2] = [PeerIndex(1), PeerIndex(2)];

/// What becomes of the datagrams of a forward.
#[derive(Clone, Copy, Default)]
struct Mischief {
    /// Of a hundred.
    lost: u64,
    doubled: u64,
    /// Held back until the next one has passed.
    overtaken: u64,
}

/// What a worker would do. Ends with this.
struct Forwarder {
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    passed: Arc<Mutex<u64>>,
}

impl Forwarder {
    fn start(forward: Forward, mischief: Mischief, seed: u64, strays: &UnboundedSender<Stray>) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let passed = Arc::new(Mutex::new(0));
        let ends = forward.halves.each_ref().map(|half| (half.local, half.remote));
        let sockets = forward.halves.map(|half| UdpSocket::from(half.socket));
        for socket in &sockets {
            socket.set_nonblocking(false).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        }
        let threads = [0, 1].map(|from| {
            let [receive, send] = [from, 1 - from].map(|half: usize| sockets[half].try_clone().unwrap());
            let (is_over, passed, strays) = (Arc::clone(&is_over), Arc::clone(&passed), strays.clone());
            let (local, remote) = ends[from];
            thread::spawn(move || {
                let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(from as u64) | 1;
                let mut chance = |percent| {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    random % 100 < percent
                };
                let (mut buffer, mut kept) = ([0; 9100], None::<Vec<u8>>);
                while !is_over.load(Ordering::Relaxed) {
                    let Ok(length) = receive.recv(&mut buffer) else {
                        kept.take().map(|kept| send.send(&kept));
                        continue;
                    };
                    *passed.lock().unwrap() += 1;
                    // A bind goes to control, as from a worker.
                    if is_bind(&buffer[..length]) {
                        let _ = strays.send(Stray { local, from: remote, datagram: buffer[..length].into() });
                        continue;
                    }
                    if chance(mischief.lost) {
                        continue;
                    }
                    if kept.is_none() && chance(mischief.overtaken) {
                        kept = Some(buffer[..length].to_vec());
                        continue;
                    }
                    let _ = send.send(&buffer[..length]);
                    if chance(mischief.doubled) {
                        let _ = send.send(&buffer[..length]);
                    }
                    kept.take().map(|kept| send.send(&kept));
                }
            })
        });
        Self { is_over, threads: threads.into(), passed }
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

struct Three {
    a: Node,
    b: Node,
    relay: Node,
    mischief: Mischief,
    seed: u64,
    forwards: BTreeMap<ForwardId, Forwarder>,
    strays: (UnboundedSender<Stray>, UnboundedReceiver<Stray>),
}

impl Three {
    fn listening(net: u8, workers: [u8; 3], mischief: Mischief, seed: u64) -> Self {
        let [a, b, relay] = [1, 2, 3].map(|host| Node::listening(net, host, workers[usize::from(host) - 1]));
        Self { a, b, relay, mischief, seed, forwards: BTreeMap::new(), strays: unbounded_channel() }
    }

    /// Allots these lanes and tells both ends.
    fn allot(&mut self, lanes: LaneSet) {
        let now = Instant::now().into_std();
        let mut random = self.seed;
        let made = self.relay.engine.book().allocate(ENDS, lanes, now, |bytes| {
            for byte in bytes {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                *byte = (random >> 56) as u8;
            }
        });
        let made = made.unwrap();
        for (end, lanes) in [&mut self.a, &mut self.b].into_iter().zip(made.lanes) {
            let worker = |worker| RelayAddress { worker: WorkerId(worker), address: self.relay.address(worker) };
            let addresses = (0..self.relay.workers).map(worker).collect();
            let allotment = Allotment { id: made.id, lifetime_s: 60, rate: 0, addresses, lanes };
            assert_eq!(end.engine.add_passages(PEER, RELAY, &allotment, now), allotment.lane_set());
        }
    }

    /// Begins to make the lanes of the link; nobody knows where the other is.
    fn start(&mut self, number: u8) {
        let now = Instant::now().into_std();
        let requests = requests(&self.a, &self.b, number);
        for (end, mut request) in [&mut self.a, &mut self.b].into_iter().zip(requests) {
            request.theirs.candidates.clear();
            end.engine.start(request, now);
        }
    }

    /// Runs all three until a and b have told so many outcomes that `counts` says count.
    async fn until(&mut self, counts: [usize; 2], is_counted: impl Fn(&LaneOutcome) -> bool) -> [Vec<LaneOutcome>; 2] {
        let mut told = [vec![], vec![]];
        let (mischief, seed) = (self.mischief, self.seed);
        let Self { a, b, relay, forwards, strays: (sender, strays), .. } = self;
        let all = async {
            while told[0].len() < counts[0] || told[1].len() < counts[1] {
                let (end, outcome) = tokio::select! {
                    outcome = a.engine.next() => (0, outcome),
                    outcome = b.engine.next() => (1, outcome),
                    outcome = relay.engine.next() => (2, outcome),
                    Some(stray) = strays.recv() => {
                        relay.engine.handle_stray(stray, Instant::now().into_std());
                        continue;
                    }
                };
                match outcome {
                    LaneOutcome::Order { command: PlaneCommand::AddForward(forward), .. } => {
                        forwards.insert(forward.id, Forwarder::start(*forward, mischief, seed, sender));
                    }
                    LaneOutcome::Order { command: PlaneCommand::RemoveForward(id), .. } => {
                        forwards.remove(&id);
                    }
                    outcome if end < 2 && is_counted(&outcome) => told[end].push(outcome),
                    _ => {}
                }
            }
        };
        timeout(Duration::from_secs(60), all).await.unwrap_or_else(|_| panic!("seed {seed}: not within a minute"));
        told
    }

    async fn lanes(&mut self, count: usize) -> [Vec<(WorkerId, Box<LaneHandOver>)>; 2] {
        let is_lane =
            |outcome: &LaneOutcome| matches!(outcome, LaneOutcome::Established { .. } | LaneOutcome::Failed { .. });
        self.until([count, count], is_lane).await.map(by_index)
    }
}

#[tokio::test]
async fn lanes_that_nothing_else_joins_go_through_a_relay() {
    let mut three = Three::listening(60, [2, 1, 2], Mischief::default(), 1);
    let lanes = all_lanes(&three.a, &three.b);
    three.start(1);
    three.allot(lanes);
    let [at_a, at_b] = three.lanes(2).await;
    for ((_, mut lane_a), (_, mut lane_b)) in at_a.into_iter().zip(at_b) {
        for lane in [&lane_a, &lane_b] {
            assert_eq!(lane.remote.ip(), three.relay.ip);
            assert!(lane.local.port() != PORT && lane.local.port() != PORT + 1, "{}", lane.local);
        }
        assert_eq!(three.a.engine.relay_of(lane_a.local), Some(RELAY));
        carry_through(&three, &mut lane_a, &mut lane_b);
        carry_through(&three, &mut lane_b, &mut lane_a);
    }
}

/// Sends a record from one end to the other, as often as the relay needs.
fn carry_through(three: &Three, from: &mut LaneHandOver, to: &mut LaneHandOver) {
    let receiver = UdpSocket::from(to.socket.try_clone().unwrap());
    receiver.set_nonblocking(false).unwrap();
    receiver.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let sender = UdpSocket::from(from.socket.try_clone().unwrap());
    let mut buffer = [0; 2048];
    for _ in 0..300 {
        let mut record = vec![0; RECORD_OVERHEAD_BYTES + 5];
        record[RECORD_HEADER_BYTES..][..5].copy_from_slice(b"inner");
        from.sealer.seal(&mut record, 5).unwrap();
        sender.send(&record).unwrap();
        while let Ok(length) = receiver.recv(&mut buffer) {
            if DatagramKind::of(&buffer[..length]) == DatagramKind::Record {
                assert_eq!(to.opener.open(&mut buffer[..length]).unwrap().frames, b"inner");
                return;
            }
        }
    }
    panic!("seed {}: no record has arrived", three.seed);
}

#[tokio::test]
async fn a_relay_that_loses_doubles_and_shuffles_costs_nothing_but_time() {
    for seed in 1..=3 {
        let mischief = Mischief { lost: 10, doubled: 20, overtaken: 20 };
        let mut three = Three::listening(61, [1, 1, 1], mischief, seed);
        let lanes = all_lanes(&three.a, &three.b);
        three.allot(lanes);
        // A handshake may take longer than it is given: then it begins anew, as it would after another exchange.
        let mut number = 0;
        let [(_, mut lane_a), (_, mut lane_b)] = loop {
            number += 1;
            assert!(number < 20, "seed {seed}: no handshake succeeds");
            three.start(number);
            let is_over =
                |outcome: &LaneOutcome| matches!(outcome, LaneOutcome::Established { .. } | LaneOutcome::Failed { .. });
            let told = three.until([1, 1], is_over).await.map(|mut told| told.remove(0));
            if told.iter().all(|told| matches!(told, LaneOutcome::Established { .. })) {
                break told.map(established);
            }
        };
        carry_through(&three, &mut lane_a, &mut lane_b);
        carry_through(&three, &mut lane_b, &mut lane_a);
        assert!(three.forwards.values().any(|forward| *forward.passed.lock().unwrap() > 4));
    }
}

#[tokio::test]
async fn a_lane_that_has_a_direct_path_takes_it_and_goes_to_the_relay_when_it_is_silent() {
    let mut three = Three::listening(62, [1, 1, 1], Mischief::default(), 1);
    start_both(&mut three.a, &mut three.b, 1);
    let [at_a, _at_b] = three.lanes(1).await;
    let lane = &at_a[0].1;
    assert_eq!(lane.remote, three.b.address(0));
    lane.gauges.set_silent(true);
    let now = Instant::now().into_std();
    three.a.engine.handle_lane_changed(lane.serial, LaneChange::Silent, now);
    let lanes = all_lanes(&three.a, &three.b);
    three.allot(lanes);
    let relay = three.relay.ip;
    let is_by_relay = move |outcome: &LaneOutcome| matches!(outcome, LaneOutcome::Order { command: PlaneCommand::TryPath(trial), .. } if trial.remote.ip() == relay);
    let [tried, _] = three.until([1, 0], is_by_relay).await;
    let LaneOutcome::Order { command: PlaneCommand::TryPath(trial), .. } = &tried[0] else { unreachable!() };
    assert_eq!(three.a.engine.relay_of(trial.local), Some(RELAY));
    assert!(!trial.is_better, "it is a way out, and no better");
}

#[tokio::test]
async fn whoever_is_not_the_relay_is_not_heard_at_a_passage() {
    let mut three = Three::listening(63, [1, 1, 1], Mischief::default(), 1);
    let lanes = all_lanes(&three.a, &three.b);
    three.allot(lanes);
    three.start(1);
    let [at_a, _at_b] = three.lanes(1).await;
    let passage = at_a[0].1.local;
    let before = three.a.engine.drops().get(ListenerDrop::Unrecognised);
    let stray = Stray { local: passage, from: "127.77.63.99:18100".parse().unwrap(), datagram: vec![0x30; 40].into() };
    three.a.engine.handle_stray(stray, Instant::now().into_std());
    assert_eq!(three.a.engine.drops().get(ListenerDrop::Unrecognised), before + 1);
    // When it is let go, so is its port.
    three.a.engine.remove_passages(PEER, RELAY);
    assert!(three.a.engine.passages_to(PEER).is_empty());
    assert_eq!(three.a.engine.relay_of(passage), None);
}

#[tokio::test]
async fn a_bind_cannot_take_what_a_lane_of_the_relay_goes_by() {
    let mut three = Three::listening(64, [1, 1, 1], Mischief::default(), 1);
    // The relay has a lane to a itself.
    start_both(&mut three.a, &mut three.relay, 1);
    let [at_a, _at_relay] = outcomes(&mut three.a, &mut three.relay, [1, 1]).await.map(by_index);
    let now = Instant::now().into_std();
    let made = three.relay.engine.book().allocate(ENDS, LaneSet(1), now, |bytes| bytes.fill(7));
    let keys = made.unwrap().lanes[0][0].token.keys();
    let bind = Bind { number: 1, kind: BindKind::Request { proof: 0 } };
    let stray = |from| Stray { local: at_a[0].1.remote, from, datagram: keys.seal(&bind).to_vec().into() };
    let before = three.relay.engine.drops().get(ListenerDrop::BadBind);
    // Authentic, and from where a's lane is, as anybody who can forge addresses might send it.
    three.relay.engine.handle_stray(stray(at_a[0].1.local), now);
    assert_eq!(three.relay.engine.drops().get(ListenerDrop::BadBind), before + 1);
}

/// As [`Three::start`] where one end (0 for a) has a translator with another port for each destination: its ports nobody can
/// name, and the other's are told wrong, so that only tried ones are met.
fn start_behind_translators(three: &mut Three, number: u8, symmetric: usize) {
    let now = Instant::now().into_std();
    let ips = [three.a.ip, three.b.ip];
    let tell = |offer: &mut Offer, end: usize| {
        offer.candidates.clear();
        let address = SocketAddr::new(ips[end], 9);
        offer.extensions.candidates = vec![OwnCandidate { worker: 0, kind: CandidateKind::ServerReflexive, address }];
        let mapping = if end == symmetric { Mapping::AddressDependent } else { Mapping::EndpointIndependent };
        (offer.extensions.punch.mapping, offer.extensions.punch.birthday) = (mapping, true);
    };
    let requests = requests(&three.a, &three.b, number);
    for (end, mut request) in requests.into_iter().enumerate() {
        tell(&mut request.ours, end);
        tell(&mut request.theirs, 1 - end);
        let engine = if end == 0 { &mut three.a.engine } else { &mut three.b.engine };
        engine.start(request, now);
    }
}

fn tried_path(outcome: &LaneOutcome) -> Option<&TrialPath> {
    match outcome {
        LaneOutcome::Order { command: PlaneCommand::TryPath(trial), .. } => Some(trial),
        _ => None,
    }
}

#[tokio::test]
async fn a_lane_goes_by_a_relay_at_once_and_moves_when_a_tried_port_is_met() {
    for symmetric in [0, 1] {
        let mut three = Three::listening(65 + symmetric as u8, [1, 1, 1], Mischief::default(), 1);
        let lanes = all_lanes(&three.a, &three.b);
        let begun = Instant::now();
        start_behind_translators(&mut three, 1, symmetric);
        three.allot(lanes);
        let [mut at_a, at_b] = three.lanes(1).await;
        assert!(begun.elapsed() < GUESSES_AFTER, "nothing is waited for");
        let ((_, mut lane_a), (_, lane_b)) = (at_a.remove(0), &at_b[0]);
        assert_eq!([lane_a.remote.ip(), lane_b.remote.ip()], [three.relay.ip; 2]);
        // The client, whichever end has the many sockets.
        let other = three.b.ip;
        let is_direct =
            move |outcome: &LaneOutcome| tried_path(outcome).is_some_and(|trial| trial.remote.ip() == other);
        let [tried, _] = three.until([1, 0], is_direct).await;
        let trial = tried_path(&tried[0]).unwrap();
        assert!(trial.is_better && trial.serial == lane_a.serial, "{trial:?}");
        let sockets = [three.a.engine.birthdays.locals().count(), three.b.engine.birthdays.locals().count()];
        assert!(sockets[symmetric] > 0 && sockets[1 - symmetric] == 0, "{sockets:?}");
        assert_eq!(trial.local.port() == PORT, symmetric == 1, "{trial:?}");
        // The server follows, as it follows every move: also to a socket of its fan.
        let mut record = vec![0; RECORD_OVERHEAD_BYTES + 5];
        lane_a.sealer.seal(&mut record, 5).unwrap();
        UdpSocket::from(trial.socket.try_clone().unwrap()).send(&record).unwrap();
        let is_passed =
            |outcome: &LaneOutcome| matches!(outcome, LaneOutcome::Order { command: PlaneCommand::PassOn(_), .. });
        let [_, passed] = three.until([0, 1], is_passed).await;
        let LaneOutcome::Order { command: PlaneCommand::PassOn(passed), .. } = &passed[0] else { unreachable!() };
        assert_eq!((passed.local, passed.from), (trial.remote, trial.local));
        let now = Instant::now().into_std();
        three.b.engine.handle_path_seen(lane_b.serial, passed.local, passed.from, now);
        let [_, followed] = three.until([0, 1], |outcome| tried_path(outcome).is_some()).await;
        assert_eq!(tried_path(&followed[0]).unwrap().local, trial.remote);
        // Whoever has moved tries no more.
        let moved = |local, remote| LaneChange::Moved { local, remote };
        three.a.engine.handle_lane_changed(lane_a.serial, moved(trial.local, trial.remote), now);
        three.b.engine.handle_lane_changed(lane_b.serial, moved(trial.remote, trial.local), now);
        for end in [&three.a, &three.b] {
            assert_eq!((end.engine.birthdays.locals().count(), end.engine.birthdays.poll_timeout()), (0, None));
        }
    }
}

#[tokio::test]
async fn ports_that_are_tried_in_vain_beside_a_relay_are_given_up() {
    let mut three = Three::listening(67, [1, 1, 1], Mischief::default(), 1);
    let lanes = all_lanes(&three.a, &three.b);
    start_behind_translators(&mut three, 1, 0);
    three.allot(lanes);
    let _lanes = three.lanes(1).await;
    let a = &mut three.a.engine;
    let sees_fan = |engine: &LaneEngine| engine.birthdays.locals().count() > 0;
    while !sees_fan(a) {
        let _ = timeout(Duration::from_millis(20), a.next()).await;
        assert!(a.birthdays.poll_timeout().is_some(), "it is planned");
    }
    // Nobody answers any more.
    tokio::time::pause();
    while a.birthdays.poll_timeout().is_some() {
        let _ = timeout(TRIED_FOR, a.next()).await;
    }
    assert!(!sees_fan(a));
    let sent = a.probes_sent();
    let _ = timeout(Duration::from_secs(5), a.next()).await;
    // The relay is bound again now and then. Of ports some hundred were tried in that time.
    assert!(a.probes_sent() - sent <= 1, "{} more", a.probes_sent() - sent);
}

#[tokio::test]
async fn no_socket_of_a_fan_has_the_port_of_a_passage() {
    let mut three = Three::listening(68, [64, 64, 1], Mischief::default(), 1);
    let lanes = all_lanes(&three.a, &three.b);
    three.allot(lanes);
    let a = &mut three.a.engine;
    let passages: Vec<_> = a.listeners.passages().collect();
    assert_eq!(passages.len(), 64);
    // What came to such a port would reach one socket or the other, and be read from one alone. Asked for any port with
    // `SO_REUSEPORT`, the kernel gives one of these in every other round.
    for _ in 0..20 {
        let key = (PEER, LaneIndex::new(0).unwrap());
        let fan = a.open_fan(key, three.a.ip);
        assert_eq!(fan.len(), FAN_SOCKETS_MAX);
        assert!(fan.iter().all(|local| !passages.contains(local)));
        a.birthdays.end(key);
    }
}
