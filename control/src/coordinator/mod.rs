//! What control decides, pure: events in, intents out. No socket, no clock, no runtime; the loop in `runtime.rs` does
//! what the intents say.
//!
//! ```text
//!  libp2p connected / offer / answer --+                +--> ask a peer, answer a peer      (swarm)
//!  lane established / failed  ---------+-- [`Coordinator`] --> set up or forget lanes       (lane engine)
//!  lane ended (worker) ----------------+                +--> retire a lane, publish tables  (workers)
//! ```
//! [`link`] is the life of one link; [`publisher`] makes the tables.

pub mod link;
pub mod publisher;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use ringlane_shared::config::PeerSettings;
use ringlane_shared::id::{LaneId, LaneIndex, LaneSerial, PeerId, PeerIndex, WorkerId};
use ringlane_shared::lane::keys::Role;
use ringlane_shared::limits::{CANDIDATES_MAX, LANE_CANDIDATES_MAX, LANE_ID_MAX, LANES_PER_LINK_MAX, PEERS_MAX};
use ringlane_shared::path::candidate::OwnCandidate;
use ringlane_shared::plane::{LaneChange, PeerCounters, Snapshot, StreamForm};
use ringlane_shared::wire::offer::{
    Answer, Candidate, CandidateKind, Extensions, Features, LaneSet, Offer, OfferSecret, Punch,
};

use self::link::Link;
pub use self::link::{AskFailure, LaneUp};
use self::publisher::Publisher;

/// What this node says of itself in every offer.
#[derive(Clone, Debug)]
pub struct Us {
    /// Who we are.
    pub id: PeerId,
    /// Random per process start.
    pub instance: [u8; 16],
    /// Random per process start: where the blocks of lane ids begin, so that nobody can tell which ids stand.
    pub lane_ids_from: u32,
    /// What our CPU can do.
    pub features: Features,
    /// How many workers run.
    pub workers: u8,
    /// Worker i's lanes use UDP port `port + i`.
    pub port: u16,
}

/// Names one question to a peer, so that a late answer is not taken for another's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct AskId(u64);

/// Something the runtime is to do, in the order given.
#[derive(Debug)]
pub enum Intent<T> {
    /// Send our offer to a peer and bring back what it says.
    Ask {
        /// To whom.
        peer: PeerIndex,
        /// Goes with the answer.
        ask: AskId,
        /// What to send.
        offer: Offer,
    },
    /// Answer a peer's offer.
    Answer {
        /// The question it answers.
        token: T,
        /// What to send.
        answer: Answer,
    },
    /// Set up lanes.
    SetUp {
        /// Whose.
        peer: PeerIndex,
        /// Our end of the handshakes.
        role: Role,
        /// What we offered.
        ours: Offer,
        /// What the peer offered.
        theirs: Offer,
        /// Which lanes.
        lanes: LaneSet,
    },
    /// Have lanes that stand look for better paths, and lanes in the making look where the peer is known to be by now.
    Scout {
        /// Whose.
        peer: PeerIndex,
        /// Our end of the link.
        role: Role,
        /// What we offered.
        ours: Offer,
        /// What the peer offered.
        theirs: Offer,
        /// Which lanes.
        lanes: LaneSet,
    },
    /// Forget all lanes of a link that are being set up.
    CancelSetUp(PeerIndex),
    /// Close a lane.
    Retire {
        /// Who owns it.
        worker: WorkerId,
        /// Which one.
        serial: LaneSerial,
    },
    /// Give all workers new tables.
    Publish(Arc<Snapshot>),
}

/// Fills bytes with random ones, for secrets and jitter.
pub type Random = Box<dyn FnMut(&mut [u8])>;

/// What is the same for all links while one of them acts.
pub(crate) struct Context<'a, T> {
    us: &'a Us,
    candidates: &'a [Candidate],
    extensions: &'a Extensions,
    random: &'a mut dyn FnMut(&mut [u8]),
    asks: &'a mut u64,
    intents: &'a mut VecDeque<Intent<T>>,
}

impl<T> Context<'_, T> {
    /// `start_delay`: how long the other end is to wait with its probes.
    fn offer(&mut self, peer: PeerIndex, lanes: LaneSet, start_delay: Duration) -> Offer {
        let mut secret = [0; 32];
        (self.random)(&mut secret);
        Offer {
            instance: self.us.instance,
            secret: OfferSecret::new(secret),
            features: self.us.features,
            workers: self.us.workers,
            port: self.us.port,
            lane_id_base: lane_id_base(self.us.lane_ids_from, peer),
            lanes,
            candidates: self.candidates.to_vec(),
            extensions: Extensions {
                candidates: self.extensions.candidates.clone(),
                punch: Punch { start_delay, ..self.extensions.punch },
            },
        }
    }

    fn next_ask(&mut self) -> AskId {
        *self.asks += 1;
        AskId(*self.asks)
    }

    /// A number below `bound`, which is small.
    fn below(&mut self, bound: u64) -> u64 {
        let mut bytes = [0; 8];
        (self.random)(&mut bytes);
        u64::from_le_bytes(bytes) % bound.max(1)
    }
}

/// Each peer has a block of lane ids of its own; the first peer's is block `from`, whatever number that is.
fn lane_id_base(from: u32, peer: PeerIndex) -> LaneId {
    let block = from.wrapping_add(u32::from(peer.0)) % LANE_ID_BLOCKS;
    let [_, a, b, c] = (block * LANES_PER_LINK_MAX as u32).to_be_bytes();
    LaneId::from_be_bytes([a, b, c])
}

/// How many blocks there are. It divides 2^32, so that one wraps as the other does.
const LANE_ID_BLOCKS: u32 = (LANE_ID_MAX + 1) / LANES_PER_LINK_MAX as u32;
const _: () = assert!(PEERS_MAX <= LANE_ID_BLOCKS as usize && LANE_ID_BLOCKS.is_power_of_two());

/// The decisions of the control thread. `T` is what answers go to; the coordinator only passes it on.
pub struct Coordinator<T> {
    us: Us,
    ids: Vec<PeerId>,
    links: Vec<Link>,
    publisher: Publisher,
    candidates: Vec<Candidate>,
    extensions: Extensions,
    random: Random,
    asks: u64,
    intents: VecDeque<Intent<T>>,
}

impl<T> std::fmt::Debug for Coordinator<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Coordinator").field("links", &self.links).finish_non_exhaustive()
    }
}

impl<T> Coordinator<T> {
    /// Starts with no peer connected; the first intent publishes the routes. `random` fills bytes for secrets and
    /// jitter.
    pub fn new(us: Us, peers: &[PeerSettings], random: Random) -> Self {
        let links = peers.iter().zip(0..).map(|(peer, index)| {
            let role = if us.id.to_bytes() < peer.id.to_bytes() { Role::Client } else { Role::Server };
            Link::new(PeerIndex(index), role)
        });
        let mut coordinator = Self {
            links: links.collect(),
            ids: peers.iter().map(|peer| peer.id).collect(),
            publisher: Publisher::new(&us.id, peers, us.workers),
            us,
            candidates: Vec::new(),
            extensions: Extensions::default(),
            random,
            asks: 0,
            intents: VecDeque::new(),
        };
        coordinator.publish();
        coordinator
    }

    /// The next thing to do, oldest first.
    pub fn poll_intent(&mut self) -> Option<Intent<T>> {
        self.intents.pop_front()
    }

    /// When to call [`Self::handle_timeout`] next, if ever.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.links.iter().filter_map(Link::poll_timeout).min()
    }

    /// The time of [`Self::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.for_each_link(|link, context| link.handle_timeout(now, context));
        self.publish_if_changed();
    }

    /// Our own addresses have changed: what offers say from now on. Links that miss lanes try again at once.
    pub fn set_addresses(&mut self, addresses: &[IpAddr], now: Instant) {
        let port = self.us.port;
        let candidates: Vec<_> = addresses
            .iter()
            .take(CANDIDATES_MAX)
            .map(|ip| Candidate { kind: CandidateKind::Host, ip: *ip, port })
            .collect();
        if candidates != self.candidates {
            self.candidates = candidates;
            self.for_each_link(|link, context| link.handle_address_change(now, context));
        }
    }

    /// Where single workers of ours can be reached from elsewhere, as port mappings and STUN servers tell: what offers say
    /// from now on. Bounded; those that no offer may have are left out.
    pub fn set_candidates(&mut self, mut candidates: Vec<OwnCandidate>, now: Instant) {
        candidates.retain(|candidate| candidate.worker < self.us.workers && candidate.address.port() != 0);
        candidates.truncate(LANE_CANDIDATES_MAX);
        self.set_extensions(Extensions { candidates, punch: self.extensions.punch }, now);
    }

    /// What is on the way to us: what offers say from now on.
    pub fn set_punch(&mut self, punch: Punch, now: Instant) {
        self.set_extensions(Extensions { candidates: self.extensions.candidates.clone(), punch }, now);
    }

    fn set_extensions(&mut self, extensions: Extensions, now: Instant) {
        if extensions != self.extensions {
            self.extensions = extensions;
            self.for_each_link(|link, _| link.handle_candidates_change(now));
        }
    }

    /// A better path to a peer is conceivable than one that a lane of it has.
    pub fn handle_improve(&mut self, peer: PeerIndex, now: Instant) {
        self.with_link(peer, |link, _| link.handle_improve(now));
    }

    /// Networks behind peers, beyond their built-in addresses: who carries each, and who may send from each.
    pub fn set_routes(&mut self, active: Vec<(IpNet, PeerIndex)>, offered: Vec<(IpNet, PeerIndex)>) {
        self.publisher.set_routes(&active, &offered);
        self.publish();
    }

    /// A new libp2p connection to a peer stands, the first or a further one.
    pub fn handle_connected(&mut self, peer: PeerIndex, now: Instant) {
        self.with_link(peer, |link, context| link.handle_connected(now, context));
    }

    /// A libp2p connection to a peer does not answer.
    pub fn handle_suspicion(&mut self, peer: PeerIndex, now: Instant) {
        self.with_link(peer, |link, _| link.handle_suspicion(now));
    }

    /// The last libp2p connection to a peer is gone. Its lanes live on.
    pub fn handle_disconnected(&mut self, peer: PeerIndex) {
        self.with_link(peer, |link, _| link.handle_disconnected());
    }

    /// A peer has sent its offer.
    pub fn handle_offer(&mut self, peer: PeerIndex, theirs: Offer, token: T, now: Instant) {
        self.with_link(peer, |link, context| link.handle_offer(theirs, token, now, context));
        self.publish_if_changed();
    }

    /// A peer has answered our offer, or has not.
    pub fn handle_answer(&mut self, peer: PeerIndex, ask: AskId, answer: Result<Answer, AskFailure>, now: Instant) {
        self.with_link(peer, |link, context| link.handle_answer(ask, answer, now, context));
        self.publish_if_changed();
    }

    /// A lane stands and is its worker's.
    pub fn handle_lane_up(&mut self, peer: PeerIndex, index: LaneIndex, lane: LaneUp) {
        self.with_link(peer, |link, context| link.handle_lane_up(index, lane, context));
        self.publish_if_changed();
    }

    /// A lane could not be set up; `problem` says why, for the operator.
    pub fn handle_lane_failed(&mut self, peer: PeerIndex, index: LaneIndex, problem: String, now: Instant) {
        self.with_link(peer, |link, context| link.handle_lane_failed(index, problem, now, context));
        self.publish_if_changed();
    }

    /// A lane stands, but not as configured; `problem` says why, for the operator.
    pub fn handle_problem(&mut self, peer: PeerIndex, problem: String) {
        self.with_link(peer, |link, _| link.handle_problem(problem));
    }

    /// A worker has closed a lane. Returns whether we thought it was up.
    pub fn handle_lane_ended(&mut self, peer: PeerIndex, index: LaneIndex, serial: LaneSerial, now: Instant) -> bool {
        let mut known = false;
        self.with_link(peer, |link, context| known = link.handle_lane_ended(index, serial, now, context));
        self.publish_if_changed();
        known
    }

    /// Something about a lane is different. Returns whether we think it is up.
    pub fn handle_lane_changed(
        &mut self,
        peer: PeerIndex,
        index: LaneIndex,
        serial: LaneSerial,
        change: LaneChange,
    ) -> bool {
        let mut known = false;
        self.with_link(peer, |link, _| known = link.handle_lane_changed(index, serial, change));
        self.publish_if_changed();
        known
    }

    /// Packets can reach a peer by a stream that takes this, or no more. They do while it has no lane.
    pub fn set_stream(&mut self, peer: PeerIndex, stream: Option<StreamForm>) {
        self.with_link(peer, |link, _| link.set_stream(stream));
        self.publish_if_changed();
    }

    /// Whether the peer's stream leads to it for certain: then packets take it while all of its lanes are silent.
    pub fn set_stream_preferred(&mut self, peer: PeerIndex, leads_there: bool) {
        self.with_link(peer, |link, _| link.set_stream_preferred(leads_there));
        self.publish_if_changed();
    }

    /// Whether packets to the service network leave by control; else they lead nowhere, as they do at first.
    pub fn set_services(&mut self, has_services: bool) {
        if self.publisher.set_services(has_services) {
            self.publish();
        }
    }

    /// The link to a peer, for status.
    pub fn link(&self, peer: PeerIndex) -> Option<&Link> {
        self.links.get(peer.position())
    }

    /// The index of a configured peer.
    pub fn index_of(&self, id: &PeerId) -> Option<PeerIndex> {
        self.ids.iter().position(|other| other == id).map(|position| PeerIndex(position as u16))
    }

    /// A peer's traffic counters, one set per worker.
    pub fn counters(&self, peer: PeerIndex) -> &[PeerCounters] {
        self.publisher.counters(peer)
    }

    /// Number of the newest published tables.
    pub fn generation(&self) -> u64 {
        self.publisher.generation().0
    }

    fn publish(&mut self) {
        // Nobody has seen the last ones if nothing was carried out since.
        self.intents.pop_back_if(|last| matches!(last, Intent::Publish(_)));
        let reach = self.links.iter().map(Link::reach).collect();
        self.intents.push_back(Intent::Publish(self.publisher.publish(reach)));
    }

    fn publish_if_changed(&mut self) {
        if !self.publisher.is_current(self.links.iter().map(Link::reach)) {
            self.publish();
        }
    }

    fn with_link(&mut self, peer: PeerIndex, act: impl FnOnce(&mut Link, &mut Context<'_, T>)) {
        let Self { us, links, candidates, extensions, random, asks, intents, .. } = self;
        if let Some(link) = links.get_mut(peer.position()) {
            act(link, &mut Context { us, candidates, extensions, random: &mut **random, asks, intents });
        }
    }

    fn for_each_link(&mut self, mut act: impl FnMut(&mut Link, &mut Context<'_, T>)) {
        let Self { us, links, candidates, extensions, random, asks, intents, .. } = self;
        let mut context = Context { us, candidates, extensions, random: &mut **random, asks, intents };
        links.iter_mut().for_each(|link| act(link, &mut context));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn blocks_of_lane_ids_begin_anywhere_do_not_overlap_and_end_in_bounds() {
        for from in [0, 5, LANE_ID_BLOCKS - 1, u32::MAX, 0xdead_beef] {
            let bases: BTreeSet<_> =
                (0..PEERS_MAX as u16).map(|peer| lane_id_base(from, PeerIndex(peer)).get()).collect();
            assert_eq!(bases.len(), PEERS_MAX, "{from}");
            assert!(bases.iter().all(|base| base % 64 == 0 && base + 63 <= LANE_ID_MAX), "{from}");
        }
        assert_eq!(lane_id_base(LANE_ID_BLOCKS - 1, PeerIndex(0)).get(), 0x00ff_ffc0);
        assert_eq!(lane_id_base(LANE_ID_BLOCKS - 1, PeerIndex(1)).get(), 0);
    }

    /// A coordinator of two peers without routes.
    fn coordinator() -> Coordinator<()> {
        let us = Us {
            id: PeerId::random(),
            instance: [0; 16],
            lane_ids_from: 7,
            features: Features::AES_128_GCM,
            workers: 1,
            port: 8100,
        };
        let peers = [(); 2].map(|()| PeerSettings {
            id: PeerId::random(),
            name: String::new(),
            addresses: Vec::new(),
            routes: Vec::new(),
            carrier: None,
        });
        Coordinator::new(us, &peers, Box::new(|bytes| bytes.fill(1)))
    }

    /// The only thing to be done: the tables to be published.
    fn published(coordinator: &mut Coordinator<()>) -> Option<Arc<Snapshot>> {
        let intent = coordinator.poll_intent()?;
        assert!(coordinator.poll_intent().is_none());
        let Intent::Publish(tables) = intent else { panic!("{intent:?}") };
        Some(tables)
    }

    #[test]
    fn a_stream_is_published_once_together_with_all_that_changed_meanwhile() {
        let mut coordinator = coordinator();
        let first = published(&mut coordinator).unwrap();
        assert!(first.peers.iter().all(|peer| peer.stream.is_none()));
        coordinator.set_stream(PeerIndex(1), None);
        assert!(published(&mut coordinator).is_none());
        coordinator.set_stream(PeerIndex(1), Some(StreamForm::Whole));
        coordinator.set_stream(PeerIndex(0), Some(StreamForm::Offloaded));
        coordinator.set_stream(PeerIndex(9), Some(StreamForm::Whole));
        let tables = published(&mut coordinator).unwrap();
        let streams: Vec<_> = tables.peers.iter().map(|peer| peer.stream).collect();
        assert_eq!(streams, [Some(StreamForm::Offloaded), Some(StreamForm::Whole)]);
        assert!(tables.generation > first.generation);
        coordinator.set_stream(PeerIndex(1), None);
        assert_eq!(published(&mut coordinator).unwrap().peers[1].stream, None);
    }

    #[test]
    fn services_have_a_route_while_there_are_any() {
        let mut coordinator = coordinator();
        let service = "fd00:6879:7072:7370:7376:b497:d158:1".parse().unwrap();
        assert_eq!(published(&mut coordinator).unwrap().routes.lookup(service), None);
        for (has_services, peer) in [(true, Some(&PeerIndex::SERVICES)), (false, None)] {
            coordinator.set_services(has_services);
            coordinator.set_services(has_services);
            assert_eq!(published(&mut coordinator).unwrap().routes.lookup(service), peer);
        }
        assert!(published(&mut coordinator).is_none());
    }
}
