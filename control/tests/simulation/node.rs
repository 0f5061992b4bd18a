//! One node: its coordinator, its lanes, and what control has between the two: `control/src/lanes/movement.rs`
//! ([`Node::search`], [`Node::path_seen`]). All of its workers are one here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use libp2p::identity::Keypair;
use ringlane_control::coordinator::{AskId, Coordinator, Us};
use ringlane_shared::config::PeerSettings;
use ringlane_shared::id::{LaneId, LaneIndex, LaneSerial, PeerId, PeerIndex};
use ringlane_shared::lane::keys::Role;
use ringlane_shared::limits::{LANE_OTHER_PATHS_MAX, PATHS_TRIED_PER_LANE_MAX};
use ringlane_shared::plane::{LaneChange, LaneGauges};
use ringlane_shared::wire::offer::{Features, Offer};

use crate::lane::{Assembler, Lane, Settings, Token};
use crate::network::{Path, Place, Random};
use crate::world::Datagram;

/// The only peer of each node.
pub const PEER: PeerIndex = PeerIndex(0);

const SEARCH_PAUSE_MIN: Duration = Duration::from_millis(1500);
const SEARCH_PAUSE_MAX: Duration = Duration::from_secs(12);
const TRY_PERIOD: Duration = Duration::from_secs(1);

/// Whom an answer goes to.
#[derive(Clone, Copy)]
pub struct Asker {
    pub node: usize,
    pub life: u64,
    pub connection: u64,
    pub ask: AskId,
}

/// A lane in the making.
pub struct SetUp {
    pub id: u64,
    pub token: Token,
    pub role: Role,
    pub outbound: LaneId,
    pub inbound: LaneId,
    /// Records that came before the end of the handshake.
    pub early: Vec<Datagram>,
}

/// A lane that stands, and what control knows of it.
pub struct Standing {
    pub lane: Lane,
    pub gauges: Arc<LaneGauges>,
    /// When the lane has something to do.
    pub due: Instant,
    is_silent: bool,
    /// When to look for another path, and how often that has been done.
    search: Option<(Instant, u32)>,
    /// Paths tried within a second, and when that began.
    tried: (Instant, u32),
}

impl Standing {
    pub fn new(lane: Lane, gauges: Arc<LaneGauges>, now: Instant) -> Self {
        Self { lane, gauges, due: now, is_silent: false, search: None, tried: (now, 0) }
    }

    fn try_path(&mut self, path: Path, now: Instant) {
        let (since, count) = &mut self.tried;
        if now >= *since + TRY_PERIOD {
            (*since, *count) = (now, 0);
        }
        if *count < PATHS_TRIED_PER_LANE_MAX {
            *count += 1;
            self.lane.try_path(path, now);
            self.due = now;
        }
    }
}

pub struct Node {
    pub life: u64,
    pub workers: u8,
    pub settings: Settings,
    pub coordinator: Coordinator<Asker>,
    /// Its only address.
    pub place: Place,
    /// What its device carries, which its kernel knows: bytes of an IP packet.
    pub route_mtu: u16,
    pub lanes: BTreeMap<LaneSerial, Standing>,
    pub set_ups: BTreeMap<LaneIndex, SetUp>,
    /// Lanes that the coordinator has been told of, and has not yet retired or been told the end of.
    pub handed_over: BTreeSet<LaneSerial>,
    pub connections: BTreeSet<u64>,
    /// What it has asked last.
    pub asking: Option<Asker>,
    /// Where the peer has said that it can be reached.
    candidates: Vec<Place>,
    pub assembler: Assembler,
    /// Until then it does nothing: its process is stopped, or its machine sleeps.
    pub stopped_until: Instant,
}

impl Node {
    pub fn new(number: usize, life: u64, workers: u8, place: Place, settings: Settings, random: &mut Random) -> Self {
        let ids = [1, 2].map(identity);
        let is_lower = ids[0].to_bytes() < ids[1].to_bytes();
        // Node 0 is the client.
        let [own, other] = if (number == 0) == is_lower { ids } else { [ids[1], ids[0]] };
        let peer =
            PeerSettings { name: String::new(), id: other, addresses: Vec::new(), routes: Vec::new(), carrier: None };
        let (mut instance, mut lane_ids_from) = ([0; 16], [0; 4]);
        random.fill(&mut instance);
        random.fill(&mut lane_ids_from);
        let lane_ids_from = u32::from_le_bytes(lane_ids_from);
        let us = Us { id: own, instance, lane_ids_from, features: Features::AES_128_GCM, workers, port: 8100 };
        let mut secrets = Random(random.next());
        Self {
            life,
            workers,
            settings,
            coordinator: Coordinator::new(us, &[peer], Box::new(move |bytes| secrets.fill(bytes))),
            place,
            route_mtu: 9000,
            lanes: BTreeMap::new(),
            set_ups: BTreeMap::new(),
            handed_over: BTreeSet::new(),
            connections: BTreeSet::new(),
            asking: None,
            candidates: Vec::new(),
            assembler: Assembler::new(),
            stopped_until: Instant::now(),
        }
    }

    /// The newest lane with this index.
    pub fn lane_of(&self, index: LaneIndex) -> Option<LaneSerial> {
        self.lanes.iter().rev().find(|(_, standing)| standing.lane.made.index == index).map(|(serial, _)| *serial)
    }

    pub fn lane_with(&self, token: Token) -> Option<LaneSerial> {
        self.lanes.iter().find(|(_, standing)| standing.lane.made.token == token).map(|(serial, _)| *serial)
    }

    /// When something is due.
    pub fn deadline(&self) -> Option<Instant> {
        let mut next = self.coordinator.poll_timeout();
        let mut add = |at: Instant| next = Some(next.map_or(at, |next| next.min(at)));
        for standing in self.lanes.values() {
            add(standing.due);
            standing.search.into_iter().for_each(|(at, _)| add(at));
        }
        next.map(|at| at.max(self.stopped_until))
    }

    /// Another address instead of the one it has.
    pub fn move_to(&mut self, place: Place, now: Instant) {
        self.place = place;
        self.coordinator.set_addresses(&[address_of(place)], now);
        for standing in self.lanes.values_mut() {
            standing.search = Some((now, 0));
        }
    }

    /// The peer has said anew where it can be reached.
    pub fn set_candidates(&mut self, theirs: &Offer, now: Instant) {
        let candidates: Vec<_> = theirs.candidates.iter().filter_map(|candidate| place_of(candidate.ip)).collect();
        if candidates != self.candidates {
            self.candidates = candidates;
            for standing in self.lanes.values_mut() {
                standing.search = standing.search.and(Some((now, 0)));
            }
        }
    }

    /// A worker has seen the peer on another path than the lane's.
    pub fn path_seen(&mut self, serial: LaneSerial, path: Path, now: Instant) {
        if let Some(standing) = self.lanes.get_mut(&serial).filter(|_| path.local == self.place) {
            standing.try_path(path, now);
        }
    }

    pub fn lane_changed(&mut self, serial: LaneSerial, change: LaneChange, now: Instant) {
        let Some(standing) = self.lanes.get_mut(&serial) else { return };
        match change {
            LaneChange::Silent => {
                standing.is_silent = true;
                standing.search = standing.search.or(Some((now, 0)));
            }
            LaneChange::Heard => (standing.is_silent, standing.search) = (false, None),
            LaneChange::Moved { .. } => standing.search = None,
            _ => {}
        }
        standing.gauges.set_silent(standing.is_silent);
        self.coordinator.handle_lane_changed(PEER, standing.lane.made.index, serial, change);
    }

    /// Whether the peer must be looked for: its lanes, and so most likely its connections, are silent or lost.
    pub fn must_seek(&self) -> bool {
        self.coordinator.link(PEER).is_some_and(|link| link.is_silent())
            || self.lanes.values().any(|standing| standing.lane.path.local != self.place)
    }

    /// Begins the rounds of searches that are due.
    pub fn search(&mut self, now: Instant) {
        for standing in self.lanes.values_mut() {
            let Some((_, rounds)) = standing.search.filter(|(at, _)| *at <= now) else { continue };
            let pause = SEARCH_PAUSE_MIN.saturating_mul(1 << rounds.min(8)).min(SEARCH_PAUSE_MAX);
            standing.search = Some((now + pause, rounds + 1));
            let own = standing.lane.path;
            let mut remotes = self.candidates.clone();
            remotes.retain(|place| *place != own.remote);
            remotes.insert(0, own.remote);
            let paths = remotes.into_iter().map(|remote| Path { local: self.place, remote });
            paths.filter(|path| *path != own).take(LANE_OTHER_PATHS_MAX).for_each(|path| standing.try_path(path, now));
        }
    }
}

fn identity(number: u8) -> PeerId {
    Keypair::ed25519_from_bytes([number; 32]).unwrap().public().to_peer_id()
}

pub fn address_of(place: Place) -> IpAddr {
    Ipv4Addr::from(0x0b00_0000 + place.0 as u32).into()
}

fn place_of(address: IpAddr) -> Option<Place> {
    match address {
        IpAddr::V4(address) => Some(Place(u64::from(u32::from(address) - 0x0b00_0000))),
        IpAddr::V6(_) => None,
    }
}
