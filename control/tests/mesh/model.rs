//! The exchange of signed records alone, without libp2p and on a simulated clock: what it costs where there are thousands of
//! nodes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::time::{Duration, Instant};

use bytes::Bytes;
use libp2p::{Multiaddr, PeerId};
use ringlane_control::exchange::gossip::{Gossip, Notary, Time};
use ringlane_shared::wire::peers::{LENGTH_BYTES, PeerRecord, PeersMessage};

use crate::world::{self, Random};

/// How long a message travels.
const LATENCY: Duration = Duration::from_millis(20);
/// Nodes of a site all know each other; the first of each is a hub, and hubs know each other.
const NODES_PER_SITE: usize = 100;

/// No keys: what is forged is a test of its own.
struct Wax;

impl Notary for Wax {
    fn sign(&self, record: &PeerRecord) -> Option<Bytes> {
        Some(record.to_bytes().into())
    }

    fn open(&self, envelope: &[u8]) -> Option<PeerRecord> {
        PeerRecord::parse(envelope).ok()
    }
}

struct Model {
    ids: Vec<PeerId>,
    places: HashMap<PeerId, usize>,
    nodes: Vec<Gossip<Wax>>,
    began: Time,
    time: Time,
    due: BinaryHeap<Reverse<(Instant, usize)>>,
    /// When each node is to be served; what else is in `due` has been planned anew.
    planned: Vec<Option<Instant>>,
    travelling: BTreeMap<(Instant, u64), (usize, usize, PeersMessage)>,
    sent: u64,
}

impl Model {
    fn new(seed: u64, sites: usize) -> Self {
        let mut random = Random(seed);
        let count = sites * NODES_PER_SITE;
        let id = |random: &mut Random| {
            let mut secret = [0; 32];
            secret.iter_mut().for_each(|byte| *byte = random.below(256) as u8);
            // An identity multihash of 32 bytes stands for a key; nobody verifies anything here.
            let mut hash = vec![0x00, 0x24, 0x08, 0x01, 0x12, 0x20];
            hash.extend(secret);
            PeerId::from_bytes(&hash).unwrap()
        };
        let ids: Vec<_> = (0..count).map(|_| id(&mut random)).collect();
        let time = Time { now: Instant::now(), unix_ms: 1_700_000_000_000 };
        let nodes = (0..count).map(|at| {
            let peers = neighbours(at, count).map(|peer| ids[peer]);
            let mut node = Gossip::new(ids[at], peers, Wax, random.below(usize::MAX) as u64, time);
            node.set_own_addresses(vec![address(at, 1)], time);
            node
        });
        let nodes: Vec<_> = nodes.collect();
        let places = ids.iter().enumerate().map(|(at, id)| (*id, at)).collect();
        let mut model = Self {
            ids,
            places,
            nodes,
            began: time,
            time,
            due: BinaryHeap::new(),
            planned: vec![None; count],
            travelling: BTreeMap::new(),
            sent: 0,
        };
        for at in 0..count {
            for peer in neighbours(at, count) {
                model.nodes[at].handle_connected(model.ids[peer], time);
            }
            model.serve(at);
        }
        model
    }

    /// Does what a node wants done, and notes when it wants something next.
    fn serve(&mut self, at: usize) {
        self.nodes[at].handle_timeout(self.time);
        while let Some((to, message)) = self.nodes[at].poll_transmit(self.time) {
            self.sent += 1;
            self.travelling.insert((self.time.now + LATENCY, self.sent), (at, self.places[&to], message));
            self.nodes[at].handle_sent(&to);
        }
        while self.nodes[at].poll_learnt().is_some() {}
        let next = self.nodes[at].poll_timeout().map(|next| next.max(self.time.now + Duration::from_millis(1)));
        if next != self.planned[at] {
            self.planned[at] = next;
            self.due.extend(next.map(|next| Reverse((next, at))));
        }
    }

    fn run_until(&mut self, end: Instant) {
        loop {
            let due = self.due.peek().map(|Reverse((at, _))| *at);
            let arrival = self.travelling.first_key_value().map(|(&(at, _), _)| at);
            let Some(next) = due.into_iter().chain(arrival).min().filter(|next| *next <= end) else { break };
            self.advance(next);
            if arrival == Some(next) {
                let Some((_, (from, to, message))) = self.travelling.pop_first() else { break };
                let wire = message.to_bytes();
                let message = PeersMessage::parse(wire[LENGTH_BYTES..].to_vec().into()).unwrap();
                let from = self.ids[from];
                self.nodes[to].handle_message(&from, message, self.time).unwrap();
                self.serve(to);
            } else if let Some(Reverse((due, at))) = self.due.pop()
                && self.planned[at] == Some(due)
            {
                self.planned[at] = None;
                self.serve(at);
            }
        }
        self.advance(end);
    }

    fn advance(&mut self, to: Instant) {
        let passed = to.saturating_duration_since(self.began.now);
        self.time = Time { now: to, unix_ms: self.began.unix_ms + passed.as_millis() as u64 };
    }

    /// Pairs of neighbours of which one does not know the other's address of this version.
    fn missing(&self, of: impl Iterator<Item = usize>, version: u8) -> usize {
        let pairs = of.flat_map(|at| neighbours(at, self.ids.len()).map(move |peer| (at, peer)));
        pairs.filter(|&(at, peer)| self.nodes[peer].addresses(&self.ids[at]) != Some(&[address(at, version)])).count()
    }

    /// Lets time pass until all neighbours of `of` know its address of this version; how long it took.
    fn settle(&mut self, of: &[usize], version: u8) -> Duration {
        let from = self.time.now;
        while self.missing(of.iter().copied(), version) > 0 {
            assert!(
                self.time.now - from < Duration::from_secs(120),
                "{} pairs",
                self.missing(of.iter().copied(), version)
            );
            self.run_until(self.time.now + Duration::from_millis(100));
        }
        self.time.now - from
    }

    fn cost(&self) -> (u64, u64) {
        let counters = self.nodes.iter().map(Gossip::counters);
        counters.fold((0, 0), |sum, one| (sum.0 + one.messages_sent, sum.1 + one.bytes_sent))
    }
}

fn neighbours(at: usize, count: usize) -> impl Iterator<Item = usize> {
    let site = at / NODES_PER_SITE * NODES_PER_SITE;
    let is_hub = at == site;
    let hubs = (0..count).step_by(NODES_PER_SITE).filter(move |_| is_hub);
    (site..site + NODES_PER_SITE).chain(hubs.filter(move |hub| *hub != site)).filter(move |peer| *peer != at)
}

fn address(at: usize, version: u8) -> Multiaddr {
    format!("/ip4/10.{}.{}.{}/udp/8001/quic-v1", version, at / 256, at % 256).parse().unwrap()
}

fn study(sites: usize) {
    let seed = world::seed();
    let nodes = (sites * NODES_PER_SITE) as u64;
    let mut model = Model::new(seed, sites);
    let all: Vec<_> = (0..nodes as usize).collect();
    let took = model.settle(&all, 1);
    let start = model.cost();
    println!("RINGLANE_SEED={seed}: {nodes} nodes in sites of {NODES_PER_SITE}");
    println!(
        "  start: {took:?}, {:.1} messages and {} bytes for each node",
        start.0 as f64 / nodes as f64,
        start.1 / nodes
    );

    const QUIET: Duration = Duration::from_secs(600);
    model.run_until(model.time.now + Duration::from_secs(60));
    let before = model.cost();
    model.run_until(model.time.now + QUIET);
    let after = model.cost();
    let per_minute = |count: u64| count as f64 / nodes as f64 / (QUIET.as_secs() / 60) as f64;
    let (messages, bytes) = (per_minute(after.0 - before.0), per_minute(after.1 - before.1));
    println!("  quiet: {messages:.1} messages and {bytes:.0} bytes for each node in a minute");
    // Two summaries a round, one of our own and one of whoever chose us.
    assert!(messages < 10.0, "a quiet mesh says little, however large it is");

    let (mover, before) = (NODES_PER_SITE + 7, model.cost());
    model.nodes[mover].set_own_addresses(vec![address(mover, 2)], model.time);
    model.serve(mover);
    let took = model.settle(&[mover], 2);
    model.run_until(model.time.now + Duration::from_secs(5));
    let after = model.cost();
    println!(
        "  one is renumbered: known to all its peers after {took:?}; {} messages, {} KiB in all",
        after.0 - before.0,
        (after.1 - before.1) / 1024
    );
    assert!(took < Duration::from_secs(5));
}

#[test]
fn what_a_thousand_nodes_say_does_not_depend_on_how_many_sites_there_are() {
    study(10);
}

#[test]
#[ignore = "takes minutes and gigabytes; docs/scaling.md has what it printed"]
fn ten_thousand_nodes() {
    study(100);
}
