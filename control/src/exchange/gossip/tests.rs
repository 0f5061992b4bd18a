use super::*;

/// Signs with the subject's id, which anybody could: forging is written out where it is tested.
struct Wax;

impl Notary for Wax {
    fn sign(&self, record: &PeerRecord) -> Option<Bytes> {
        Some(record.to_bytes().into())
    }

    fn open(&self, envelope: &[u8]) -> Option<PeerRecord> {
        PeerRecord::parse(envelope).ok()
    }
}

fn address(port: u16) -> Multiaddr {
    format!("/ip4/192.0.2.1/tcp/{port}").parse().unwrap()
}

fn is_known(node: &Gossip<Wax>, peer: &PeerId, port: u16) -> bool {
    node.addresses(peer) == Some(&[address(port)])
}

/// The same on every run.
fn id_of(seed: u8) -> PeerId {
    let keypair = libp2p::identity::Keypair::ed25519_from_bytes([seed; 32]).unwrap();
    keypair.public().to_peer_id()
}

/// Nodes that know each other, with in-process message passing that takes no time.
struct World {
    ids: Vec<PeerId>,
    nodes: Vec<Gossip<Wax>>,
    connected: Vec<(usize, usize)>,
    time: Time,
}

impl World {
    fn new(count: usize) -> Self {
        let ids: Vec<_> = (0..count).map(|at| id_of(at as u8)).collect();
        let mut world = Self {
            nodes: Vec::new(),
            connected: Vec::new(),
            time: Time { now: Instant::now(), unix_ms: 1_700_000_000_000 },
            ids,
        };
        world.nodes = (0..count).map(|at| world.node(at)).collect();
        world
    }

    fn node(&self, at: usize) -> Gossip<Wax> {
        let mut node = Gossip::new(self.ids[at], self.ids.iter().copied(), Wax, at as u64, self.time);
        node.set_own_addresses(vec![address(at as u16 + 1)], self.time);
        node
    }

    fn connect(&mut self, a: usize, b: usize) {
        self.connected.push((a, b));
        for (node, peer) in [(a, b), (b, a)] {
            self.nodes[node].handle_connected(self.ids[peer], self.time);
        }
    }

    /// Ends a node and starts it again, connected as before.
    fn restart(&mut self, at: usize) {
        let id = self.ids[at];
        self.nodes.iter_mut().for_each(|node| node.handle_disconnected(&id));
        self.nodes[at] = self.node(at);
        for (a, b) in std::mem::take(&mut self.connected) {
            if a == at || b == at {
                self.connect(a, b);
            } else {
                self.connected.push((a, b));
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        self.time.now += time;
        self.time.unix_ms += time.as_millis() as u64;
    }

    /// Lets time pass in small steps, everything said being heard at once.
    fn run(&mut self, whole: Duration) {
        const STEP: Duration = Duration::from_millis(50);
        for _ in 0..whole.as_millis() / STEP.as_millis() {
            self.pass(STEP);
            for at in 0..self.nodes.len() {
                self.nodes[at].handle_timeout(self.time);
                while let Some((to, message)) = self.nodes[at].poll_transmit(self.time) {
                    let wire = message.to_bytes();
                    assert!(wire.len() <= LENGTH_BYTES + PEERS_MESSAGE_BYTES_MAX);
                    let message = PeersMessage::parse(wire[LENGTH_BYTES..].to_vec().into()).unwrap();
                    let (from, to_at) = (self.ids[at], self.ids.iter().position(|id| *id == to).unwrap());
                    self.nodes[to_at].handle_message(&from, message, self.time).unwrap();
                    self.nodes[at].handle_sent(&to);
                }
            }
        }
    }

    fn missing(&self) -> usize {
        let pairs = (0..self.ids.len()).flat_map(|a| (0..self.ids.len()).map(move |b| (a, b)));
        pairs.filter(|(a, b)| a != b && !is_known(&self.nodes[*a], &self.ids[*b], *b as u16 + 1)).count()
    }

    fn sent(&self) -> (u64, u64) {
        let counters = self.nodes.iter().map(Gossip::counters);
        counters.fold((0, 0), |sum, one| (sum.0 + one.messages_sent, sum.1 + one.bytes_sent))
    }
}

#[test]
fn two_nodes_that_share_a_third_learn_of_each_other_at_once() {
    let mut world = World::new(3);
    world.run(OWN_PACE * 2);
    world.connect(0, 1);
    world.connect(1, 2);
    world.run(PACE * 4);
    assert_eq!(world.missing(), 0);
    let learnt = std::iter::from_fn(|| world.nodes[0].poll_learnt()).map(|news| news.peer).collect::<Vec<_>>();
    assert!(learnt.contains(&world.ids[1]) && learnt.contains(&world.ids[2]) && learnt.len() == 2);
}

#[test]
fn in_a_ring_everybody_hears_of_everybody_and_of_every_change() {
    let mut world = World::new(40);
    (0..40).for_each(|at| world.connect(at, (at + 1) % 40));
    world.run(Duration::from_secs(30));
    assert_eq!(world.missing(), 0);
    world.nodes[7].set_own_addresses(vec![address(1000)], world.time);
    world.run(Duration::from_secs(30));
    assert_eq!(world.nodes.iter().filter(|node| is_known(node, &world.ids[7], 1000)).count(), 40);
    let gone = std::iter::from_fn(|| world.nodes[20].poll_learnt()).last().unwrap().gone;
    assert_eq!(gone, [address(8)]);
}

#[test]
fn a_full_mesh_settles_for_little_and_is_silent_then() {
    let mut world = World::new(60);
    (0..60).for_each(|a| (a + 1..60).for_each(|b| world.connect(a, b)));
    world.run(Duration::from_secs(20));
    assert_eq!(world.missing(), 0);
    let (messages, bytes) = world.sent();
    let per_node = bytes / 60;
    // Each node tells 59 peers of itself, and passes on each of 59 records to a few.
    assert!(per_node < 59 * (FANOUT as u64 + 2) * 150 + 16 * 60 * 60, "{messages} messages, {per_node} bytes a node");
    world.run(ROUND * 4);
    let quiet = world.sent();
    assert!(quiet.0 - messages <= 60 * 6 && quiet.1 - bytes <= 60 * 6 * 19, "{quiet:?} after {messages}, {bytes}");
}

#[test]
fn what_a_restart_or_a_lost_message_hides_is_found_when_records_are_compared() {
    let mut world = World::new(10);
    (0..9).for_each(|at| world.connect(at, at + 1));
    world.run(Duration::from_secs(20));
    world.restart(4);
    world.run(Duration::from_secs(5));
    assert_eq!(world.missing(), 0, "the new run asks what was known, and is newer than the old one");
    // Lost on the way: the peer does not get it, and we think it has.
    world.nodes[0].set_own_addresses(vec![address(1), address(2)], world.time);
    world.pass(OWN_PACE);
    world.nodes[0].handle_timeout(world.time);
    world.pass(PACE);
    while let Some((to, _)) = world.nodes[0].poll_transmit(world.time) {
        world.nodes[0].handle_sent(&to);
    }
    world.run(ROUND * 3);
    let known = world.nodes[9].addresses(&world.ids[0]).unwrap();
    assert_eq!(known, [address(1), address(2)]);
}

#[test]
fn a_node_whose_clock_was_set_back_is_newer_than_its_past_all_the_same() {
    let mut world = World::new(2);
    world.connect(0, 1);
    world.run(Duration::from_secs(2));
    world.time.unix_ms -= 3_600_000;
    world.restart(0);
    world.nodes[0].set_own_addresses(vec![address(99)], world.time);
    world.run(Duration::from_secs(5));
    assert!(is_known(&world.nodes[1], &world.ids[0], 99));
}

#[test]
fn a_node_signs_anew_when_its_clock_jumps_ahead_or_half_the_lifetime_is_over() {
    let world = World::new(2);
    let start = world.time.now;
    let mut node = Gossip::new(world.ids[0], world.ids.iter().copied(), Wax, 1, Time { now: start, unix_ms: 5_000 });
    let mut expiry_at = |seconds: u64, unix_s: u64| {
        node.handle_timeout(Time { now: start + Duration::from_secs(seconds), unix_ms: unix_s * 1000 });
        node.subjects[node.own].held.as_ref().map(|own| own.expires_unix_s)
    };
    let lifetime = RECORD_LIFETIME.as_secs();
    assert_eq!(expiry_at(1, 6), Some(6 + lifetime));
    assert_eq!(expiry_at(61, 66), Some(6 + lifetime), "it is young");
    assert_eq!(expiry_at(121, 1_700_000_000), Some(1_700_000_000 + lifetime));
    let half = lifetime / 2;
    assert_eq!(expiry_at(121 + half, 1_700_000_000 + half), Some(1_700_000_000 + half + lifetime));
}

#[test]
fn nobody_can_speak_for_a_third_and_strangers_are_nothing() {
    let mut world = World::new(3);
    world.connect(0, 1);
    let (from, about) = (world.ids[1], world.ids[2]);
    let time = world.time;
    let node = &mut world.nodes[0];
    let record = PeerRecord { peer: about, sequence: 5, expires_unix_s: u64::MAX, addresses: vec![address(9)] };
    let mut send = |of: PeerId, sequence, record: &PeerRecord| {
        let version = RecordVersion { tag: Tag::of(&of), sequence };
        let message = PeersMessage::Records(vec![(version, record.to_bytes().into())]);
        node.handle_message(&from, message, time)
    };
    assert_eq!(send(about, 6, &record), Err(GossipFault::Forged), "another sequence number");
    assert_eq!(send(about, 5, &PeerRecord { peer: from, ..record.clone() }), Err(GossipFault::Forged));
    let stranger = PeerId::random();
    assert_eq!(send(stranger, 5, &PeerRecord { peer: stranger, ..record.clone() }), Ok(()));
    assert_eq!(send(about, 5, &PeerRecord { expires_unix_s: 1_000, ..record.clone() }), Ok(()));
    assert_eq!(send(about, 4, &PeerRecord { sequence: 4, ..record.clone() }), Ok(()));
    assert_eq!(send(about, 5, &record), Ok(()));
    assert_eq!(send(about, 4, &PeerRecord { sequence: 4, ..record }), Ok(()));
    assert_eq!(node.records(), 1);
    assert!(is_known(node, &about, 9));
    let counters = node.counters();
    assert_eq!((counters.records_forged, counters.records_ignored, counters.records_learnt), (2, 3, 2));
}

#[test]
fn a_peer_that_asks_without_end_is_answered_at_a_rate() {
    let mut world = World::new(50);
    (1..50).for_each(|at| world.connect(0, at));
    world.run(Duration::from_secs(10));
    let (from, time) = (world.ids[1], world.time);
    let entries: Vec<_> =
        digest(&world.nodes[0].subjects).map(|entry| RecordVersion { sequence: 0, ..entry }).collect();
    let before = world.nodes[0].counters().bytes_sent;
    for _ in 0..1000 {
        let ask = PeersMessage::Digest { wanted: true, entries: entries.clone() };
        world.nodes[0].handle_message(&from, ask, time).unwrap();
        let later = Time { now: time.now + PACE, ..time };
        while let Some((to, _)) = world.nodes[0].poll_transmit(later) {
            world.nodes[0].handle_sent(&to);
        }
    }
    let sent = world.nodes[0].counters().bytes_sent - before;
    assert!(sent < u64::from(ANSWERS_BURST + 1) * 50 * 150, "{sent}");
}
