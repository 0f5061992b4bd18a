//! The nodes, who of them should know whom, and what it cost.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use libp2p::PeerId;
use libp2p::identity::Keypair;
use ringlane_control::exchange::{self, ExchangeCounters, PeerExchange};
use ringlane_control::swarm::{Node, NodeConfig, NodeEvent};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, LocalSet, spawn_local};

use crate::underlay::{listener, underlay};

/// Everything takes far less; a machine under load may take longer.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
const STOP_LIMIT: Duration = Duration::from_secs(2);

pub(crate) fn seed() -> u64 {
    std::env::var("RINGLANE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1)
}

/// Runs on one thread, as control does.
pub(crate) fn run(future: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, future);
}

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ mixed >> 31) % bound as u64) as usize
    }
}

/// How a node ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// It says goodbye.
    Orderly,
    /// It is gone from one moment to the next.
    Killed,
}

/// What can be seen of a node from outside.
#[derive(Default)]
struct Seen {
    connected: BTreeSet<PeerId>,
    counters: ExchangeCounters,
}

struct Running {
    seen: Rc<RefCell<Seen>>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

struct Member {
    keypair: Keypair,
    id: PeerId,
    ip: Ipv4Addr,
    hub: usize,
    running: Option<Running>,
}

/// All nodes.
pub(crate) struct World {
    random: Random,
    members: Vec<Member>,
    nodes_per_site: usize,
    began: Instant,
    rss_before: u64,
    costs: Vec<String>,
    /// Of nodes that have ended.
    past: ExchangeCounters,
}

impl World {
    /// The hub that all others know at first.
    pub(crate) const FIRST_HUB: usize = 0;

    pub(crate) fn new(seed: u64, sites: usize, nodes_per_site: usize) -> Self {
        let members = (0..sites * nodes_per_site).map(|at| {
            let mut secret = [0; 32];
            secret[..8].copy_from_slice(&(seed << 16 | at as u64).to_le_bytes());
            let keypair = Keypair::ed25519_from_bytes(secret).unwrap();
            let hub = at - at % nodes_per_site;
            let hub = if hub == at { Self::FIRST_HUB } else { hub };
            let ip = Ipv4Addr::from_bits(0x0a01_0000 + at as u32);
            Member { id: keypair.public().to_peer_id(), keypair, ip, hub, running: None }
        });
        let members = members.collect();
        let (random, began) = (Random(seed), Instant::now());
        let (costs, past) = (Vec::new(), ExchangeCounters::default());
        Self { random, members, nodes_per_site, began, rss_before: rss_kib(), costs, past }
    }

    /// So many different nodes that are no hubs.
    pub(crate) fn choose(&mut self, count: usize) -> Vec<usize> {
        let mut chosen = BTreeSet::new();
        while chosen.len() < count {
            let at = self.random.below(self.members.len());
            if !at.is_multiple_of(self.nodes_per_site) {
                chosen.insert(at);
            }
        }
        chosen.into_iter().collect()
    }

    fn should_meet(&self, a: usize, b: usize) -> bool {
        let is_hub = |at| at % self.nodes_per_site == 0;
        a != b && (a / self.nodes_per_site == b / self.nodes_per_site || is_hub(a) && is_hub(b))
    }

    pub(crate) fn start(&mut self, which: &[usize]) {
        for &at in which {
            assert!(self.members[at].running.is_none(), "node {at} runs already");
            let running = self.spawn(at);
            self.members[at].running = Some(running);
        }
    }

    pub(crate) fn start_if_down(&mut self, at: usize) {
        if self.members[at].running.is_none() {
            self.start(&[at]);
        }
    }

    fn spawn(&mut self, at: usize) -> Running {
        let member = &self.members[at];
        let peers = (0..self.members.len()).filter(|other| self.should_meet(at, *other));
        let peers = peers.map(|other| {
            let peer = &self.members[other];
            let addresses = if other == member.hub { vec![listener(peer.ip)] } else { Vec::new() };
            (peer.id, addresses)
        });
        let peers: Vec<_> = peers.collect();
        let configured = peers.iter().map(|(id, _)| *id).collect();
        let mut node = Node::new(NodeConfig {
            underlay: underlay(&member.keypair),
            accepted: exchange::accepted().to_vec(),
            seed: at as u64,
            ..NodeConfig::new(member.keypair.clone(), peers)
        })
        .unwrap();
        let errors = node.set_listen_addresses(&[listener(member.ip)]);
        assert!(errors.is_empty(), "node {at}: {errors:?}");
        let exchange = PeerExchange::new(&member.keypair, configured, at as u64);
        let seen = Rc::new(RefCell::new(Seen::default()));
        let (stop, stopped) = oneshot::channel();
        let task = spawn_local(live(node, exchange, Rc::clone(&seen), stopped));
        Running { seen, stop: Some(stop), task }
    }

    /// Ends a node, if it runs.
    pub(crate) async fn stop(&mut self, at: usize, how: End) {
        let Some(mut running) = self.members[at].running.take() else { return };
        match how {
            End::Orderly => drop(running.stop.take().map(|stop| stop.send(()))),
            End::Killed => running.task.abort(),
        }
        let _ = running.task.await;
        let counters = running.seen.borrow().counters;
        add(&mut self.past, &counters);
    }

    /// Gives a node that does not run another address. Nobody is told.
    pub(crate) fn renumber(&mut self, at: usize) {
        self.members[at].ip = Ipv4Addr::from_bits(self.members[at].ip.to_bits() + 0x0001_0000);
    }

    /// Waits until all pairs that run and should have met are connected, and nobody takes one that has ended for present.
    pub(crate) async fn settle(&mut self, what: &str) {
        let (begun, before) = (Instant::now(), self.counters());
        while let Some(missing) = self.missing() {
            assert!(begun.elapsed() < PATIENCE, "{what}: {missing}");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        let after = self.counters();
        self.costs.push(format!(
            "{what}: {:.1} s, {} messages, {} KiB, {} records learnt",
            begun.elapsed().as_secs_f64(),
            after.gossip.messages_sent - before.gossip.messages_sent,
            (after.gossip.bytes_sent - before.gossip.bytes_sent) / 1024,
            after.gossip.records_learnt - before.gossip.records_learnt,
        ));
    }

    /// One pair that is not as it should be, and how many there are.
    fn missing(&self) -> Option<String> {
        let (mut first, mut count) = (None, 0);
        for (a, member) in self.members.iter().enumerate() {
            let Some(running) = &member.running else { continue };
            let seen = running.seen.borrow();
            for (b, other) in self.members.iter().enumerate().filter(|(b, _)| self.should_meet(a, *b)) {
                if seen.connected.contains(&other.id) != other.running.is_some() {
                    count += 1;
                    first.get_or_insert((a, b, other.running.is_some()));
                }
            }
        }
        let (a, b, runs) = first?;
        Some(format!(
            "{count} pairs are wrong; node {a} and node {b}, which {}",
            if runs { "runs" } else { "has ended" }
        ))
    }

    /// Nodes that have not been told of each other have nothing to do with each other.
    pub(crate) fn check_that_nobody_else_met(&self) {
        for (a, member) in self.members.iter().enumerate() {
            let Some(running) = &member.running else { continue };
            for (b, other) in self.members.iter().enumerate().filter(|(b, _)| !self.should_meet(a, *b)) {
                assert!(!running.seen.borrow().connected.contains(&other.id), "node {a} has let node {b} in");
            }
        }
    }

    fn counters(&self) -> ExchangeCounters {
        let mut sum = self.past;
        for running in self.members.iter().filter_map(|member| member.running.as_ref()) {
            add(&mut sum, &running.seen.borrow().counters);
        }
        sum
    }

    pub(crate) fn report(&self) {
        let connections: usize =
            self.members.iter().filter_map(|m| m.running.as_ref()).map(|r| r.seen.borrow().connected.len()).sum();
        println!("{} nodes, {connections} connection ends at last", self.members.len());
        self.costs.iter().for_each(|cost| println!("  {cost}"));
        let rss = rss_kib().saturating_sub(self.rss_before);
        println!("  all: {:.1} s, {} MiB more than before", self.began.elapsed().as_secs_f64(), rss / 1024);
    }
}

/// A node's life: what the control loop does with it, as far as it concerns finding others.
async fn live(mut node: Node, mut exchange: PeerExchange, seen: Rc<RefCell<Seen>>, mut stop: oneshot::Receiver<()>) {
    loop {
        tokio::select! {
            biased;
            _ = &mut stop => break,
            event = node.next() => {
                match &event {
                    NodeEvent::PeerConnected { peer, .. } => drop(seen.borrow_mut().connected.insert(*peer)),
                    NodeEvent::PeerDisconnected { peer } => drop(seen.borrow_mut().connected.remove(peer)),
                    // Nothing travels here that would be lost.
                    NodeEvent::ConnectionRetired { peer, connection } => node.close_drained(peer, *connection),
                    _ => {}
                }
                exchange.handle_event(event, &mut node);
            }
            progress = exchange.next() => exchange.handle_progress(progress, &mut node),
        }
        seen.borrow_mut().counters = exchange.counters();
    }
    node.shutdown(STOP_LIMIT).await;
}

fn add(sum: &mut ExchangeCounters, one: &ExchangeCounters) {
    sum.gossip.messages_sent += one.gossip.messages_sent;
    sum.gossip.bytes_sent += one.gossip.bytes_sent;
    sum.gossip.records_learnt += one.gossip.records_learnt;
}

/// This process's memory.
fn rss_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").trim().parse().unwrap_or(0)
}
