//! The relay's side: which lanes of whom it forwards, and where their ends are.
//!
//! ```text
//! allocate --> invited --> confirmed --> bound by one end --> bound by both: Open --> Close: released, expired, idle
//!                 |                            ^                    |
//!                 +--> cancelled               +---- an end is elsewhere: Close, Open again
//! ```
//!
//! An end is bound to where it has answered from: its first request from anywhere is challenged (`proof.rs`).
//!
//! Pure: whoever owns it sends the answers, makes the sockets of [`Step::Open`] and tells the workers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ringlane_shared::bucket::Bucket;
use ringlane_shared::id::{LaneIndex, PeerIndex, WorkerId};
use ringlane_shared::limits::{
    ALLOTMENT_SECONDS, ALLOTMENTS_MAX, ALLOTMENTS_PER_PEER_MAX, ALLOTTED_LANES_PER_PEER_MAX, BIND_MOVES_PER_END,
    BINDS_PER_END, FORWARDS_PER_WORKER_MAX,
};
use ringlane_shared::path::choice::Ends;
use ringlane_shared::path::relay::Load;
use ringlane_shared::plane::ForwardId;
use ringlane_shared::wire::bind::{
    BIND_BYTES, BIND_TOKEN_BYTES, Bind, BindKeys, BindKind, BindName, BindToken, UnverifiedBind,
};
use ringlane_shared::wire::offer::LaneSet;
use ringlane_shared::wire::relay::{AllotmentId, RelayRefusal, RelayedLane};

use super::proof::Prover;

/// How long an allotment lasts from each renewal on.
const LIFETIME: Duration = Duration::from_secs(ALLOTMENT_SECONDS as u64);

/// Why a bind gets no answer: whoever sent it is at fault, or asks too often.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BindFault {
    /// It is no request of an end that we know.
    Unknown,
    /// Its end asks too often.
    TooMany,
    /// Nothing that comes by this path may be forwarded.
    Path,
}

/// What is to be done for a lane that is relayed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Forward between these two from now on.
    Open {
        /// What it is called.
        id: ForwardId,
        /// By which worker.
        worker: WorkerId,
        /// Our address and the end's, of either end.
        halves: [Ends; 2],
    },
    /// Forward no more.
    Close {
        /// What it is called.
        id: ForwardId,
        /// By which worker.
        worker: WorkerId,
    },
}

/// What both ends of a new allotment are to be told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewAllotment {
    /// What it is called.
    pub id: AllotmentId,
    /// The lanes as who has asked sees them, and as the other end does.
    pub lanes: [Vec<RelayedLane>; 2],
}

/// One allotment, for the operator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AllotmentInfo {
    /// Who has asked for it, and the other end.
    pub peers: [PeerIndex; 2],
    /// Lanes that it is about.
    pub lanes: usize,
    /// Those of them that are being forwarded.
    pub open: usize,
}

/// What a relay did. Only grows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BookCounters {
    /// Allotments made.
    pub allotted: u64,
    /// Requests for one that were refused.
    pub refused: u64,
    /// Lanes that began to be forwarded.
    pub forwards: u64,
    /// Ends of them that were found elsewhere.
    pub moves: u64,
}

/// All allotments that we have made. Owner: the lane engine, at whose listeners binds arrive.
#[derive(Debug)]
pub struct Book {
    port: u16,
    workers: u8,
    prover: Prover,
    allotments: BTreeMap<AllotmentId, Allotted>,
    names: BTreeMap<BindName, Place>,
    /// Where bound ends are: no two at one.
    paths: BTreeSet<Ends>,
    forwards: BTreeMap<ForwardId, (AllotmentId, LaneIndex)>,
    next_forward: u64,
    next_worker: u8,
    steps: VecDeque<Step>,
    counters: BookCounters,
}

#[derive(Debug)]
struct Allotted {
    peers: [PeerIndex; 2],
    expires_at: Instant,
    lanes: BTreeMap<LaneIndex, Lane>,
}

#[derive(Debug)]
struct Lane {
    worker: WorkerId,
    ends: [End; 2],
    forward: Option<ForwardId>,
}

#[derive(Debug)]
struct End {
    keys: BindKeys,
    /// The largest number of its requests so far.
    number: Option<u64>,
    path: Option<Ends>,
    asked: Bucket,
    /// As `asked`, of requests that are not its newest: others can send those again.
    replayed: Bucket,
    moves: Bucket,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    allotment: AllotmentId,
    lane: LaneIndex,
    end: usize,
}

impl Book {
    /// An empty one of a node whose worker i receives on UDP port `port + i`.
    pub fn new(port: u16, workers: u8, now: Instant) -> Self {
        Self {
            port,
            workers: workers.max(1),
            prover: Prover::new(now),
            allotments: BTreeMap::new(),
            names: BTreeMap::new(),
            paths: BTreeSet::new(),
            forwards: BTreeMap::new(),
            next_forward: 0,
            next_worker: 0,
            steps: VecDeque::new(),
            counters: BookCounters::default(),
        }
    }

    /// Makes an allotment of these lanes of the link between two peers; one that the same peer has asked for before ends.
    /// `draw` fills with unpredictable bytes.
    pub fn allocate(
        &mut self,
        peers: [PeerIndex; 2],
        lanes: LaneSet,
        now: Instant,
        mut draw: impl FnMut(&mut [u8]),
    ) -> Result<NewAllotment, RelayRefusal> {
        let replaced = self.allotments.iter().find(|(_, allotted)| allotted.peers == peers).map(|(id, _)| *id);
        if let Some(replaced) = replaced {
            self.remove(replaced);
        }
        let wanted = lanes.iter().count();
        if peers[0] == peers[1] || wanted == 0 {
            self.counters.refused += 1;
            return Err(RelayRefusal::OtherEnd);
        }
        if !self.has_room(peers, wanted) {
            self.counters.refused += 1;
            return Err(RelayRefusal::Busy);
        }
        let mut id = [0; 8];
        draw(&mut id);
        let id = AllotmentId(u64::from_ne_bytes(id));
        if self.allotments.contains_key(&id) {
            return Err(RelayRefusal::Busy);
        }
        let mut told = [Vec::new(), Vec::new()];
        let mut allotted = Allotted { peers, expires_at: now + LIFETIME, lanes: BTreeMap::new() };
        for lane in lanes.iter() {
            let worker = WorkerId(self.next_worker % self.workers);
            self.next_worker = (worker.0 + 1) % self.workers;
            let mut token = || {
                let mut bytes = [0; BIND_TOKEN_BYTES];
                draw(&mut bytes);
                BindToken::new(bytes)
            };
            let tokens = [token(), token()];
            let ends = [0, 1].map(|end| {
                let keys = tokens[end].keys();
                self.names.insert(keys.name(), Place { allotment: id, lane, end });
                End::new(keys, now)
            });
            for (told, token) in told.iter_mut().zip(tokens) {
                told.push(RelayedLane { lane, worker, token });
            }
            allotted.lanes.insert(lane, Lane { worker, ends, forward: None });
        }
        self.allotments.insert(id, allotted);
        self.counters.allotted += 1;
        Ok(NewAllotment { id, lanes: told })
    }

    fn has_room(&self, peers: [PeerIndex; 2], wanted: usize) -> bool {
        let lanes = |allotted: &Allotted| allotted.lanes.len();
        let is_left = |peer: PeerIndex| {
            let of_peer = self.allotments.values().filter(move |allotted| allotted.peers.contains(&peer));
            of_peer.clone().count() < ALLOTMENTS_PER_PEER_MAX
                && of_peer.map(lanes).sum::<usize>() + wanted <= ALLOTTED_LANES_PER_PEER_MAX
        };
        let all = self.allotments.values().map(lanes).sum::<usize>() + wanted;
        self.allotments.len() < ALLOTMENTS_MAX
            && all <= FORWARDS_PER_WORKER_MAX * usize::from(self.workers)
            && peers.into_iter().all(is_left)
    }

    /// How much of all that there may be is taken, or of what this peer may have, if that is more.
    pub fn load(&self, peer: Option<PeerIndex>) -> Load {
        let share = |taken: usize, limit: usize| Load::of(taken as u64, limit as u64);
        let lanes = |allotted: &Allotted| allotted.lanes.len();
        let of_peer = || {
            let is_its = |allotted: &&Allotted| peer.is_some_and(|peer| allotted.peers.contains(&peer));
            self.allotments.values().filter(is_its)
        };
        let all = self.allotments.values().map(lanes).sum();
        let shares = [
            share(self.allotments.len(), ALLOTMENTS_MAX),
            share(all, FORWARDS_PER_WORKER_MAX * usize::from(self.workers)),
            share(of_peer().count(), ALLOTMENTS_PER_PEER_MAX),
            share(of_peer().map(lanes).sum(), ALLOTTED_LANES_PER_PEER_MAX),
        ];
        shares.into_iter().max().unwrap_or_default()
    }

    /// The other end uses these lanes of an allotment. Returns which of them there are; with none the allotment ends.
    pub fn confirm(&mut self, id: AllotmentId, accepted: LaneSet) -> LaneSet {
        let Some(allotted) = self.allotments.get(&id) else { return LaneSet::default() };
        let all: LaneSet = allotted.lanes.keys().copied().collect();
        for lane in LaneSet(all.0 & !accepted.0).iter() {
            self.remove_lane(id, lane);
        }
        let left = all.intersection(accepted);
        if left.is_empty() {
            self.remove(id);
        }
        left
    }

    /// An end wants an allotment to last. Returns whether it does.
    pub fn renew(&mut self, peer: PeerIndex, id: AllotmentId, now: Instant) -> bool {
        let allotted = self.allotments.get_mut(&id).filter(|allotted| allotted.peers.contains(&peer));
        let Some(allotted) = allotted.filter(|allotted| allotted.expires_at > now) else { return false };
        allotted.expires_at = now + LIFETIME;
        true
    }

    /// An end wants an allotment to be over.
    pub fn release(&mut self, peer: PeerIndex, id: AllotmentId) {
        if self.allotments.get(&id).is_some_and(|allotted| allotted.peers.contains(&peer)) {
            self.remove(id);
        }
    }

    /// Ends an allotment.
    pub fn remove(&mut self, id: AllotmentId) {
        let lanes: Vec<_> = self.allotments.get(&id).into_iter().flat_map(|it| it.lanes.keys().copied()).collect();
        for lane in lanes {
            self.remove_lane(id, lane);
        }
        self.allotments.remove(&id);
    }

    fn remove_lane(&mut self, id: AllotmentId, lane: LaneIndex) {
        let lane = self.allotments.get_mut(&id).and_then(|allotted| allotted.lanes.remove(&lane));
        let Some(Lane { worker, ends, forward }) = lane else { return };
        for end in ends {
            self.names.remove(&end.keys.name());
            end.path.map(|path| self.paths.remove(&path));
        }
        if let Some(id) = forward {
            self.forwards.remove(&id);
            self.steps.push_back(Step::Close { id, worker });
        }
    }

    /// A datagram that looks like a bind came to `path`. Gives the answer, which is as long as the question was; it goes where
    /// that came from. `is_free`: whether nothing of our own goes by that path, and a lane may.
    pub fn handle_bind(
        &mut self,
        path: Ends,
        datagram: &[u8],
        now: Instant,
        is_free: impl FnOnce() -> bool,
    ) -> Result<[u8; BIND_BYTES], BindFault> {
        let unverified = UnverifiedBind::parse(datagram).map_err(|_| BindFault::Unknown)?;
        let place = *self.names.get(&unverified.name()).ok_or(BindFault::Unknown)?;
        let lanes = self.allotments.get_mut(&place.allotment).map(|allotted| &mut allotted.lanes);
        let lane = lanes.and_then(|lanes| lanes.get_mut(&place.lane)).ok_or(BindFault::Unknown)?;
        let expected_port = self.port.saturating_add(lane.worker.0.into());
        let end = &mut lane.ends[place.end];
        // Before it takes of the end's share: its name can be seen by others.
        let bind = end.keys.verify(&unverified).map_err(|_| BindFault::Unknown)?;
        let BindKind::Request { proof } = bind.kind else { return Err(BindFault::Unknown) };
        let is_newest = end.number.is_none_or(|newest| bind.number > newest);
        let share = if is_newest { &mut end.asked } else { &mut end.replayed };
        if !share.take(now) {
            return Err(BindFault::TooMany);
        }
        let is_elsewhere = end.path != Some(path);
        let mut is_bound = !is_elsewhere;
        if is_newest && is_elsewhere {
            if path.local.port() != expected_port || self.paths.contains(&path) || !is_free() {
                return Err(BindFault::Path);
            }
            let name = end.keys.name();
            if !self.prover.is_proven(name, path, proof, now) {
                // Used up, so that nobody can have it answered again and again.
                end.number = Some(bind.number);
                let kind = BindKind::Challenge { proof: self.prover.proof(name, path, now) };
                return Ok(end.keys.seal(&Bind { number: bind.number, kind }));
            }
            if end.path.is_none() || end.moves.take(now) {
                self.counters.moves += u64::from(end.path.is_some());
                end.path.replace(path).map(|old| self.paths.remove(&old));
                self.paths.insert(path);
                is_bound = true;
                if let Some(id) = lane.forward.take() {
                    self.forwards.remove(&id);
                    self.steps.push_back(Step::Close { id, worker: lane.worker });
                }
            }
        }
        let end = &mut lane.ends[place.end];
        // Of a move that came too soon the number is not used up: the next request may be the one that is heeded.
        if is_newest && is_bound {
            end.number = Some(bind.number);
        }
        if let ([Some(one), Some(other)], None) = (lane.ends.each_ref().map(|end| end.path), lane.forward) {
            let id = ForwardId(self.next_forward);
            self.next_forward += 1;
            lane.forward = Some(id);
            self.forwards.insert(id, (place.allotment, place.lane));
            self.counters.forwards += 1;
            self.steps.push_back(Step::Open { id, worker: lane.worker, halves: [one, other] });
        }
        let observed = path.remote;
        let kind = match is_bound && lane.forward.is_some() {
            true => BindKind::Open { observed },
            false => BindKind::Waiting { observed },
        };
        Ok(lane.ends[place.end].keys.seal(&Bind { number: bind.number, kind }))
    }

    /// A forward has ended by itself, or could not begin: its ends have to show themselves again.
    pub fn handle_forward_ended(&mut self, id: ForwardId) {
        let Some((allotment, lane)) = self.forwards.remove(&id) else { return };
        let lanes = self.allotments.get_mut(&allotment).map(|allotted| &mut allotted.lanes);
        let Some(lane) = lanes.and_then(|lanes| lanes.get_mut(&lane)) else { return };
        lane.forward = None;
        for end in &mut lane.ends {
            end.path.take().map(|path| self.paths.remove(&path));
        }
    }

    /// Ends what has not been renewed in time.
    pub fn handle_timeout(&mut self, now: Instant) {
        let is_over = |allotted: &Allotted| allotted.expires_at <= now;
        let over: Vec<_> = self.allotments.iter().filter(|(_, it)| is_over(it)).map(|(id, _)| *id).collect();
        for id in over {
            self.remove(id);
        }
    }

    /// When to call [`Self::handle_timeout`] next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.allotments.values().map(|allotted| allotted.expires_at).min()
    }

    /// What is to be done next.
    pub fn poll_step(&mut self) -> Option<Step> {
        self.steps.pop_front()
    }

    /// All allotments.
    pub fn allotments(&self) -> impl Iterator<Item = AllotmentInfo> {
        self.allotments.values().map(|allotted| AllotmentInfo {
            peers: allotted.peers,
            lanes: allotted.lanes.len(),
            open: allotted.lanes.values().filter(|lane| lane.forward.is_some()).count(),
        })
    }

    /// What was done so far.
    pub fn counters(&self) -> BookCounters {
        self.counters
    }

    /// Where the ends of a lane are that is forwarded under this name.
    pub fn is_forwarding(&self, id: ForwardId) -> bool {
        self.forwards.contains_key(&id)
    }

    /// Whether an end of a relayed lane is there.
    pub fn has_end_at(&self, local: SocketAddr, remote: SocketAddr) -> bool {
        self.paths.contains(&Ends { local, remote })
    }
}

impl End {
    fn new(keys: BindKeys, now: Instant) -> Self {
        let bucket = |(burst, per_second)| Bucket::new(burst, per_second, now);
        let [asked, replayed] = [BINDS_PER_END; 2].map(bucket);
        Self { keys, number: None, path: None, asked, replayed, moves: bucket(BIND_MOVES_PER_END) }
    }
}
