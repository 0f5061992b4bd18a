//! One end: its addresses, what it offers, its prober and its lane. `control/src/lanes` has what is between the state
//! machines here: `engine.rs` ([`End::probe`]), `scouting.rs` ([`End::decide`]), `movement.rs` ([`End::watch`]).

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use ringlane_shared::id::{LaneId, LaneIndex};
use ringlane_shared::path::candidate::{AddressPolicy, OwnCandidate, Pair};
use ringlane_shared::path::choice::{Ends, Measurement, PathBook, PathClass, RankedPair, Retry, lane_pairs};
use ringlane_shared::path::loss::Loss;
use ringlane_shared::path::prober::Prober;
use ringlane_shared::stun::nat::Mapping;
use ringlane_shared::wire::offer::{
    Candidate, CandidateKind, Extensions, Features, LaneSet, Offer, OfferSecret, Punch,
};
use ringlane_shared::wire::probe::Transaction;

use crate::translator::Random;

pub const PORT: u16 = 8100;

/// A lane that stands, as its worker and control know it.
pub struct Lane {
    pub book: PathBook,
    pub heard_at: u64,
    /// By its own path.
    pub own_heard_at: u64,
    /// Where it is told to move, and since when.
    pub taking: Option<(Ends, u64)>,
    pub began_at: u64,
}

pub struct End {
    pub is_client: bool,
    /// Its addresses, each in a realm.
    pub addresses: Vec<(usize, IpAddr)>,
    pub on_link: Vec<IpNet>,
    /// What the two servers saw last.
    pub seen: [Option<SocketAddr>; 2],
    pub offer: Option<Offer>,
    pub theirs: Option<Offer>,
    pub prober: Option<Prober>,
    pub is_measuring: bool,
    pub probes_sent: u64,
    pub lane: Option<Lane>,
    pub retry: Option<(bool, Retry)>,
    pub decide_at: Option<u64>,
    pub moves: u64,
}

impl End {
    pub fn new(is_client: bool, realm: usize, address: IpAddr) -> Self {
        Self {
            is_client,
            addresses: vec![(realm, address)],
            on_link: vec![network_of(address)],
            seen: [None; 2],
            offer: None,
            theirs: None,
            prober: None,
            is_measuring: false,
            probes_sent: 0,
            lane: None,
            retry: None,
            decide_at: None,
            moves: 0,
        }
    }

    pub fn ips(&self) -> Vec<IpAddr> {
        self.addresses.iter().map(|(_, ip)| *ip).collect()
    }

    pub fn realm_of(&self, ip: IpAddr) -> Option<usize> {
        self.addresses.iter().find(|(_, own)| *own == ip).map(|(realm, _)| *realm)
    }

    pub fn make_offer(&mut self) -> Offer {
        let [first, second] = self.seen;
        let reflexive = first.filter(|seen| !self.ips().contains(&seen.ip()));
        let (mapping, port_delta) = match (first, second) {
            (Some(first), Some(second)) if first == second => (Mapping::EndpointIndependent, 0),
            (Some(first), Some(second)) => {
                let delta = i32::from(second.port()) - i32::from(first.port());
                (Mapping::AddressAndPortDependent, if delta == 1 { 1 } else { 0 })
            }
            _ => (Mapping::Unknown, 0),
        };
        // What was seen last is where a translator that counts goes on.
        let reflexive = if mapping.is_symmetric() { second.or(reflexive) } else { reflexive };
        let candidate = |address| OwnCandidate { worker: 0, kind: CandidateKind::ServerReflexive, address };
        let offer = Offer {
            instance: [0; 16],
            secret: OfferSecret::new([0; 32]),
            features: Features::default(),
            workers: 1,
            port: PORT,
            lane_id_base: LaneId::from_be_bytes([0; 3]),
            lanes: LaneSet(1),
            candidates: self
                .ips()
                .into_iter()
                .map(|ip| Candidate { kind: CandidateKind::Host, ip, port: PORT })
                .collect(),
            extensions: Extensions {
                candidates: reflexive.into_iter().map(candidate).collect(),
                punch: Punch { mapping, port_delta, ..Punch::default() },
            },
        };
        self.offer = Some(offer.clone());
        offer
    }

    fn pairs(&self) -> Vec<RankedPair> {
        let (Some(ours), Some(theirs)) = (&self.offer, &self.theirs) else { return Vec::new() };
        let lane = LaneIndex::new(0).unwrap();
        lane_pairs(&AddressPolicy::default(), &self.ips(), [ours, theirs], lane, &self.on_link)
    }

    /// Begins to probe, for a new lane or for a better path.
    pub fn probe(&mut self, starts_at: Instant, random: &mut Random) {
        self.is_measuring = self.lane.is_some();
        let mut draw = || Transaction(random.next());
        let pairs = self.pairs();
        self.prober = Some(match &self.lane {
            Some(lane) => {
                let (own, class) = (lane.book.own(), lane.book.class());
                let is_worth = |ranked: &&RankedPair| !class.is_better_than(ranked.class) && ends(ranked.pair) != own;
                let pairs: Vec<_> = pairs.iter().filter(is_worth).map(|ranked| ranked.pair).take(16).collect();
                Prober::measuring(&pairs, false, starts_at, &mut draw)
            }
            None => {
                let pairs: Vec<_> = pairs.iter().map(|ranked| ranked.pair).collect();
                Prober::new(&pairs, starts_at, &mut draw)
            }
        });
        self.decide_at = None;
    }

    pub fn class_of(&self, ends: Ends) -> PathClass {
        let lane = LaneIndex::new(0).unwrap();
        let kind = self.theirs.as_ref().and_then(|theirs| {
            theirs.lane_candidates(lane).find(|(_, address)| *address == ends.remote).map(|(kind, _)| kind)
        });
        PathClass::of(ends.local.ip(), ends.remote.ip(), kind, &self.on_link)
    }

    /// A lane stands on this path.
    pub fn begin_lane(&mut self, own: Ends, now: u64, at: Instant) {
        let book = PathBook::new(own, self.class_of(own), at);
        self.lane = Some(Lane { book, heard_at: now, own_heard_at: now, taking: None, began_at: now });
        (self.prober, self.decide_at) = (None, None);
        self.review(true, at);
    }

    /// Puts what was measured into the book; returns where to move, if that is better.
    pub fn decide(&mut self, own_rtt: Duration, now: u64, at: Instant) -> Option<Ends> {
        let Some(prober) = &mut self.prober else { return None };
        let mut measured = Vec::new();
        while let Some(found) = prober.poll_measured() {
            measured.push(found);
        }
        if !measured.is_empty() {
            self.decide_at.get_or_insert(now + 300);
        }
        let classes: Vec<_> = measured.iter().map(|found| self.class_of(ends(found.pair))).collect();
        let decides = self.decide_at.take_if(|decide_at| *decide_at <= now).is_some();
        let lane = self.lane.as_mut()?;
        for (found, class) in measured.into_iter().zip(classes) {
            let of = |rtt| Measurement { rtt, loss: Loss::default() };
            lane.book.handle_measured(ends(found.pair), class, of(found.rtt), of(own_rtt), at);
        }
        if !decides || !self.is_client || lane.taking.is_some() {
            return None;
        }
        let chosen = lane.book.choose(Duration::from_secs(10), at)?;
        lane.taking = Some((chosen, now));
        Some(chosen)
    }

    pub fn move_to(&mut self, to: Ends, had_to: bool, at: Instant) {
        let class = self.class_of(to);
        if let Some(lane) = &mut self.lane
            && lane.book.own() != to
        {
            lane.book.handle_moved(to, class, had_to, at);
            lane.taking = None;
            self.moves += 1;
            self.review(true, at);
        }
    }

    /// Whether a better path is conceivable: when to look for it.
    pub fn review(&mut self, afresh: bool, at: Instant) {
        let pairs = self.pairs();
        let Some(lane) = self.lane.as_ref().filter(|_| self.is_client) else {
            self.retry = None;
            return;
        };
        let (class, own) = (lane.book.class(), lane.book.own());
        let best = pairs.iter().filter(|ranked| ends(ranked.pair) != own).map(|ranked| ranked.class).min();
        let Some(best) = best.filter(|best| !class.is_better_than(*best)) else {
            self.retry = None;
            return;
        };
        let is_urgent = best.is_better_than(class);
        let fresh = if is_urgent { Retry::new(at) } else { Retry::rarely(at) };
        match &self.retry {
            Some((was_urgent, _)) if *was_urgent == is_urgent && !(afresh && is_urgent) => {}
            _ => self.retry = Some((is_urgent, fresh)),
        }
    }
}

pub fn ends(pair: Pair) -> Ends {
    Ends { local: SocketAddr::new(pair.local, PORT), remote: pair.remote }
}

pub fn network_of(address: IpAddr) -> IpNet {
    IpNet::new(address, 24).unwrap().trunc()
}
