//! What control does so that lanes can move: it knows who owns each lane that stands, passes on to its worker what comes
//! to a listener in its name, makes the sockets of paths to be tried, and looks for such paths when a lane needs one.
//!
//! A lane needs one when its own address is gone, or when it is silent. Control decides nothing: a path becomes the
//! lane's when its worker has had an answer on it ([`ringlane_shared::path::trial`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use ringlane_shared::id::{LaneId, LaneIndex, LaneSerial, PeerIndex, WorkerId};
use ringlane_shared::limits::{
    CANDIDATES_MAX, LANE_OTHER_PATHS_MAX, PASSED_ON_ANYHOW_MAX, PASSED_ON_ANYHOW_PER_LANE_MAX, PASSED_ON_MAX,
    PASSED_ON_PER_LANE_MAX, PATHS_TRIED_PER_LANE_MAX, PLANE_QUEUE_MESSAGES,
};
use ringlane_shared::path::candidate::{AddressPolicy, Pair};
use ringlane_shared::path::choice::{Ends, PathBook, PathClass};
use ringlane_shared::plane::{LaneChange, LaneGauges, LaneHandOver, PassedOn, PlaneCommand, TrialPath};
use ringlane_shared::wire::offer::{CandidateKind, Offer};
use ringlane_shared::wire::record::RecordHeader;

use super::drops::ListenerDrop;
use super::engine::{Key, LaneEngine, LaneOutcome};
use super::handshake::Path;
use super::setup::path_of;
use super::socket;
use crate::underlay::source_to;

/// The period that [`PASSED_ON_MAX`] and the like are for.
const PASS_ON_PERIOD: Duration = Duration::from_millis(100);
/// How far the counter of a record that could be the next one may be ahead of the newest that the worker has told of: what
/// a fast lane sends in a good second.
const AHEAD_MAX: u64 = 1 << 21;
/// The period that [`PATHS_TRIED_PER_LANE_MAX`] is for.
const TRY_PERIOD: Duration = Duration::from_secs(1);

/// Between the first two rounds of a search: as long as a trial takes to fail. Doubles with each round.
const SEARCH_PAUSE_MIN: Duration = Duration::from_millis(1500);
/// Longest such pause.
const SEARCH_PAUSE_MAX: Duration = Duration::from_secs(12);
/// Searches that begin a round before everybody else has a turn.
const SEARCHES_PER_TURN: usize = 64;
/// Paths of those a lane has been by, or was answered by, that come before all others in a search.
const PROVEN_FIRST: usize = 2;
/// The peer's addresses that the kernel is asked how it would reach them.
const ROUTES_ASKED_MAX: usize = 8;

/// What became of lanes' other paths. Only grows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MovementCounters {
    /// Records that came to a listener from an address that is not their lane's, and were passed on to its worker.
    pub passed_on: u64,
    /// Those that were not: too many of them came.
    pub ignored: u64,
    /// Other paths by which a worker has seen its lane's peer.
    pub paths_seen: u64,
    /// Those of them that no lane may take, or that were too many.
    pub paths_refused: u64,
    /// Paths that workers were told to try, seen or searched for.
    pub paths_tried: u64,
}

/// All lanes that stand, as far as they may move. Owner: control. One entry per lane id at most.
#[derive(Default)]
pub(super) struct Standing {
    lanes: BTreeMap<LaneId, StandingLane>,
    ids: BTreeMap<LaneSerial, LaneId>,
    passed: Budget,
    passed_anyhow: Budget,
    pub(super) counters: MovementCounters,
}

pub(super) struct StandingLane {
    pub(super) serial: LaneSerial,
    peer: PeerIndex,
    index: LaneIndex,
    /// Whether we are the client of the link.
    pub(super) is_client: bool,
    worker: WorkerId,
    pub(super) path: Path,
    /// Where the peer has said this lane of its can be reached, best first.
    pub(super) candidates: Vec<(CandidateKind, SocketAddr)>,
    /// What is known of its paths.
    pub(super) book: PathBook,
    /// Where it was told to move because that is better, and until when that may take.
    pub(super) taking: Option<(Ends, Instant)>,
    is_silent: bool,
    /// Whether its path loses a good part of what is sent.
    pub(super) is_lossy: bool,
    search: Option<Search>,
    pub(super) gauges: Arc<LaneGauges>,
    /// Those of its paths that relays forward.
    pub(super) passages: Vec<Path>,
    passed: Budget,
    passed_anyhow: Budget,
    tried: Budget,
}

/// Looking for another path, a few at a time.
#[derive(Clone, Copy)]
struct Search {
    at: Instant,
    rounds: u32,
}

impl Search {
    fn at(now: Instant) -> Option<Self> {
        Some(Self { at: now, rounds: 0 })
    }
}

/// So many of something in any one period, which begins with the first of them.
#[derive(Clone, Copy, Debug, Default)]
struct Budget {
    since: Option<Instant>,
    used: u32,
}

impl Budget {
    fn take(&mut self, most: u32, period: Duration, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= period) {
            *self = Self { since: Some(now), used: 0 };
        }
        let is_left = self.used < most;
        self.used += u32::from(is_left);
        is_left
    }
}

impl Standing {
    /// Takes note of a lane that is handed over.
    pub(super) fn insert(
        &mut self,
        lane: &LaneHandOver,
        worker: WorkerId,
        is_client: bool,
        candidates: Vec<(CandidateKind, SocketAddr)>,
        on_link: &[IpNet],
        now: Instant,
    ) {
        let own = Ends { local: lane.local, remote: lane.remote };
        let mut standing = StandingLane {
            serial: lane.serial,
            peer: lane.peer,
            index: lane.index,
            is_client,
            worker,
            path: Path { local: lane.local, remote: lane.remote },
            candidates,
            book: PathBook::new(own, PathClass::Translated, now),
            taking: None,
            is_silent: false,
            is_lossy: false,
            search: None,
            gauges: Arc::clone(&lane.gauges),
            passages: Vec::new(),
            passed: Budget::default(),
            passed_anyhow: Budget::default(),
            tried: Budget::default(),
        };
        standing.classify(on_link);
        self.ids.insert(lane.serial, lane.inbound_id);
        if let Some(replaced) = self.lanes.insert(lane.inbound_id, standing) {
            self.ids.remove(&replaced.serial);
        }
    }

    /// Forgets a lane.
    pub(super) fn remove(&mut self, serial: LaneSerial) {
        if let Some(id) = self.ids.remove(&serial) {
            self.lanes.remove(&id);
        }
    }

    pub(super) fn get(&self, serial: LaneSerial) -> Option<&StandingLane> {
        self.lanes.get(self.ids.get(&serial)?)
    }

    pub(super) fn get_mut(&mut self, serial: LaneSerial) -> Option<&mut StandingLane> {
        self.lanes.get_mut(self.ids.get(&serial)?)
    }

    pub(super) fn lanes_mut(&mut self) -> impl Iterator<Item = &mut StandingLane> {
        self.lanes.values_mut()
    }

    pub(super) fn lanes_of(&self, peer: PeerIndex) -> impl Iterator<Item = &StandingLane> {
        self.lanes.values().filter(move |lane| lane.peer == peer)
    }

    /// The newest lane of a peer with this index.
    pub(super) fn find(&self, (peer, index): Key) -> Option<&StandingLane> {
        self.lanes_of(peer).filter(|lane| lane.index == index).max_by_key(|lane| lane.serial.0)
    }

    /// Whether a lane goes by this path.
    pub(super) fn leads(&self, path: Path) -> bool {
        self.lanes.values().any(|lane| lane.path == path)
    }

    /// Those with a lane that stands.
    pub(super) fn peers(&self) -> BTreeSet<PeerIndex> {
        self.lanes.values().map(|lane| lane.peer).collect()
    }

    /// When to call [`LaneEngine::search`] next.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let times =
            |lane: &StandingLane| lane.search.map(|search| search.at).into_iter().chain(lane.taking.map(|(_, at)| at));
        self.lanes.values().flat_map(times).min()
    }

    /// To whom a record goes that came to a listener by `path`, if to anybody. `None`: no lane of that id stands. Without
    /// room for an order to its worker, to nobody.
    fn owner(
        &mut self,
        header: RecordHeader,
        path: Path,
        has_room: bool,
        now: Instant,
    ) -> Option<Result<(LaneSerial, WorkerId), ListenerDrop>> {
        let lane = self.lanes.get_mut(&header.lane)?;
        if lane.path == path {
            return Some(Err(ListenerDrop::Late));
        }
        // Garbage must not use up what there is for a peer that has moved, or whoever floods us would hold it fast.
        let could_be_next = lane.gauges.could_be_next(header.epoch, header.counter, AHEAD_MAX);
        let is_left = if !has_room {
            false
        } else if could_be_next {
            lane.passed.take(PASSED_ON_PER_LANE_MAX, PASS_ON_PERIOD, now)
                && self.passed.take(PASSED_ON_MAX, PASS_ON_PERIOD, now)
        } else {
            lane.passed_anyhow.take(PASSED_ON_ANYHOW_PER_LANE_MAX, PASS_ON_PERIOD, now)
                && self.passed_anyhow.take(PASSED_ON_ANYHOW_MAX, PASS_ON_PERIOD, now)
        };
        let counter = if is_left { &mut self.counters.passed_on } else { &mut self.counters.ignored };
        *counter += 1;
        Some(if is_left { Ok((lane.serial, lane.worker)) } else { Err(ListenerDrop::TooMany) })
    }
}

impl LaneEngine {
    /// A record that belongs to no handshake: if it names a lane that stands, the lane's peer may have moved.
    pub(super) fn pass_on(&mut self, path: Path, datagram: &[u8], now: Instant) -> Result<(), ListenerDrop> {
        let header = RecordHeader::parse(datagram).map_err(|_| ListenerDrop::UnknownRecord)?;
        let has_room = self.orders < PASSED_ON_MAX as usize;
        let (serial, worker) = match self.standing.owner(header, path, has_room, now) {
            Some(owner) => owner?,
            None if self.handed_over.contains_key(&path) => return Err(ListenerDrop::Late),
            None => return Err(ListenerDrop::UnknownRecord),
        };
        let passed = PassedOn { serial, local: path.local, from: path.remote, datagram: datagram.into() };
        self.order(worker, PlaneCommand::PassOn(Box::new(passed)));
        Ok(())
    }

    /// A worker has seen an authentic record of its lane's peer on another path than the lane's.
    pub fn handle_path_seen(&mut self, serial: LaneSerial, local: SocketAddr, from: SocketAddr, now: Instant) {
        self.standing.counters.paths_seen += 1;
        let path = Path { local, remote: from };
        // Not even an authentic record may lead a lane through Ringlane's own networks, or to another worker's port.
        let of_lane = self.standing.get(serial).filter(|lane| lane.path != path).map(|lane| (lane.peer, lane.index));
        let usable = of_lane.is_some_and(|key| self.listeners.get(local).is_some() || self.birthdays.is_of(local, key))
            && !self.policy.pairs(self.listeners.ips(), [from]).is_empty();
        if !usable || !self.try_path(serial, path, false, now) {
            self.standing.counters.paths_refused += 1;
        }
    }

    /// Something about a lane is different.
    pub fn handle_lane_changed(&mut self, serial: LaneSerial, change: LaneChange, now: Instant) {
        let (ips, on_link) = (self.listeners.ips(), &self.on_link);
        let Some(lane) = self.standing.get_mut(serial) else { return };
        let (peer, index) = (lane.peer, lane.index);
        match change {
            LaneChange::Silent => {
                lane.is_silent = true;
                lane.search = lane.search.or(Search::at(now));
                self.hurry_passages(peer, index, now);
            }
            LaneChange::Heard => {
                lane.is_silent = false;
                lane.search = None;
            }
            LaneChange::Lossy(is_lossy) => {
                lane.is_lossy = is_lossy;
                self.review(peer, is_lossy, now);
            }
            LaneChange::Moved { local, remote } => {
                let path = Path { local, remote };
                let before = std::mem::replace(&mut lane.path, path);
                lane.search = None;
                lane.taking = None;
                lane.is_lossy = false;
                let had_to = lane.is_silent || !ips.contains(&before.local.ip());
                let class = lane.class_of(path, on_link);
                lane.book.handle_moved(path.into(), class, had_to, now);
                if self.handed_over.get(&before) == Some(&serial) {
                    self.handed_over.remove(&before);
                }
                self.remember_path(path, serial);
                if !self.relayed.leads((peer, index), path) {
                    self.birthdays.succeed((peer, index));
                }
                self.review(peer, true, now);
            }
            _ => {}
        }
    }

    /// A worker has closed a lane, or has not taken it.
    pub fn handle_lane_ended(&mut self, serial: LaneSerial) {
        self.standing.remove(serial);
    }

    /// A peer has said anew where it can be reached.
    pub fn set_candidates(&mut self, peer: PeerIndex, theirs: &Offer, now: Instant) {
        let mut is_news = false;
        for lane in self.standing.lanes.values_mut().filter(|lane| lane.peer == peer) {
            let candidates = candidates_of(theirs, lane.index);
            if candidates != lane.candidates {
                is_news = true;
                lane.candidates = candidates;
                lane.search = lane.search.and(Search::at(now));
                lane.book.forgive(now);
                lane.classify(&self.on_link);
            }
        }
        if is_news {
            self.review(peer, true, now);
        }
    }

    /// The peers some of whose lanes have lost their address.
    pub fn peers_with_lost_lanes(&self) -> BTreeSet<PeerIndex> {
        let ips = self.listeners.ips();
        let lost = self.standing.lanes.values().filter(|lane| !ips.contains(&lane.path.local.ip()));
        lost.map(|lane| lane.peer).collect()
    }

    /// What became of lanes' other paths.
    pub fn movement(&self) -> MovementCounters {
        self.standing.counters
    }

    /// Our addresses are others: lanes that have lost theirs, or that are silent, look for a path from the new ones.
    pub(super) fn search_anew(&mut self, now: Instant) {
        let ips = self.listeners.ips();
        for lane in self.standing.lanes.values_mut() {
            let is_lost = !ips.contains(&lane.path.local.ip());
            if is_lost || lane.is_silent {
                lane.search = Search::at(now);
            } else {
                lane.search = None;
            }
        }
        self.review_all(now);
    }

    /// Begins the next round of every search that is due, bounded; the others stay due.
    pub(super) fn search(&mut self, now: Instant) {
        let is_due = |lane: &StandingLane| lane.search.is_some_and(|search| search.at <= now);
        let due = self.standing.lanes.values_mut().filter(|lane| is_due(lane)).take(SEARCHES_PER_TURN);
        let mut rounds = Vec::new();
        for lane in due {
            let Some(search) = &mut lane.search else { continue };
            rounds.push((lane.serial, search.rounds));
            let pause = SEARCH_PAUSE_MIN.saturating_mul(1 << search.rounds.min(8)).min(SEARCH_PAUSE_MAX);
            *search = Search { at: now + pause, rounds: search.rounds + 1 };
        }
        for (serial, round) in rounds {
            self.search_round(serial, round as usize, now);
        }
    }

    /// Tries the next few paths of a lane, beginning again when all have been tried.
    fn search_round(&mut self, serial: LaneSerial, round: usize, now: Instant) {
        let Some(lane) = self.standing.get_mut(serial) else { return };
        let (path, index) = (lane.path, lane.index);
        let proven = lane.book.others();
        let passages = lane.passages.clone();
        let named = lane.candidates.iter().map(|(_, address)| *address);
        let remotes: Vec<_> = std::iter::once(path.remote).chain(named).collect();
        let (ips, port) = (self.listeners.ips(), self.local_port(index));
        // By those that have answered before, the lane is saved soonest.
        let proven = proven.into_iter().map(|Ends { local, remote }| Path { local, remote });
        let mut paths: Vec<_> = proven
            .filter(|path| ips.contains(&path.local.ip()) && path.local.port() == port)
            .take(PROVEN_FIRST)
            .chain(passages.into_iter().filter(|passage| *passage != path))
            .collect();
        let others = other_paths(&self.policy, ips, &remotes, path, port);
        let others: Vec<_> = others.into_iter().filter(|path| !paths.contains(path)).collect();
        paths.extend(others);
        let first = if paths.is_empty() { 0 } else { round * LANE_OTHER_PATHS_MAX % paths.len() };
        let mut left = LANE_OTHER_PATHS_MAX;
        // A path without a route is found out here, and costs none of the others its turn.
        for path in paths[first..].iter().chain(&paths[..first]) {
            left -= usize::from(left > 0 && self.try_path(serial, *path, false, now));
            if left == 0 {
                break;
            }
        }
    }

    /// Has a lane's worker try a path. Returns whether that could be begun.
    pub(super) fn try_path(&mut self, serial: LaneSerial, path: Path, is_better: bool, now: Instant) -> bool {
        if self.orders >= PLANE_QUEUE_MESSAGES {
            return false;
        }
        let Some(lane) = self.standing.get_mut(serial) else { return false };
        if !lane.tried.take(PATHS_TRIED_PER_LANE_MAX, TRY_PERIOD, now) {
            return false;
        }
        let worker = lane.worker;
        let socket = socket::connected(path.local, path.remote).and_then(tokio::net::UdpSocket::into_std);
        let Ok(socket) = socket else { return false };
        self.standing.counters.paths_tried += 1;
        let trial = TrialPath { serial, socket: socket.into(), local: path.local, remote: path.remote, is_better };
        self.order(worker, PlaneCommand::TryPath(Box::new(trial)));
        true
    }

    fn order(&mut self, worker: WorkerId, command: PlaneCommand) {
        self.orders += 1;
        self.outcomes.push_back(LaneOutcome::Order { worker, command });
    }
}

/// Where a peer says that a lane of its can be reached.
pub(super) fn candidates_of(theirs: &Offer, index: LaneIndex) -> Vec<(CandidateKind, SocketAddr)> {
    theirs.lane_candidates(index).take(CANDIDATES_MAX).collect()
}

/// The paths a lane could take instead of `own`: first those that the kernel would take to each of the peer's addresses.
fn other_paths(policy: &AddressPolicy, ips: &[IpAddr], remotes: &[SocketAddr], own: Path, port: u16) -> Vec<Path> {
    let routed = remotes.iter().take(ROUTES_ASKED_MAX).filter_map(|remote| {
        let local = source_to(*remote, true).filter(|local| ips.contains(local))?;
        policy.pairs(ips, [*remote]).into_iter().find(|pair| pair.local == local)
    });
    let mut paths = Vec::new();
    let routed: Vec<Pair> = routed.collect();
    for pair in routed.into_iter().chain(policy.pairs(ips, remotes.iter().copied())) {
        let path = path_of(pair, port);
        if path != own && !paths.contains(&path) {
            paths.push(path);
        }
    }
    paths
}
