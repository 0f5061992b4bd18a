//! What the node knows of the NATs before it, and whom it asks about them.
//!
//! The asking itself is the lane engine's, whose sockets it takes: [`ringlane_shared::stun`]. Here is who is asked (peers that are
//! connected and have told their lane ports, and `nat.stun_servers`), who is answered (addresses that peers use or have
//! named), and what the control loop keeps of the answers.

pub(crate) mod names;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use ringlane_shared::config::StunServer;
use ringlane_shared::id::PeerIndex;
use ringlane_shared::limits::{STUN_HOSTS_MAX, STUN_SOURCES_MAX, STUN_TARGETS_MAX};
use ringlane_shared::path::candidate::OwnCandidate;
use ringlane_shared::stun::client::Target;
use ringlane_shared::wire::offer::Offer;
use tokio::time::sleep_until;

use self::names::Names;
use crate::admin::netcheck::StunServerStatus;
use crate::underlay::source_to;

/// Between two looks at who is connected.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// How soon that is done after somebody came or went; many often do at once. Lanes through a NAT wait for what is learnt then.
const LOOK_SOON: Duration = Duration::from_millis(50);

/// What a peer has told of its lanes.
struct Told {
    /// Its first worker's port.
    port: u16,
    workers: u8,
    ips: Vec<IpAddr>,
}

/// What is known of one peer's addresses.
pub(crate) struct PeerAddresses {
    /// Which peer.
    pub(crate) peer: PeerIndex,
    /// Where its direct connections and its lanes come from.
    pub(crate) ips: Vec<IpAddr>,
}

/// Whom to ask from each of our addresses, and whom to answer.
pub(crate) struct StunPlan {
    pub(crate) hosts: Vec<(IpAddr, Vec<Target>)>,
    pub(crate) sources: BTreeSet<IpAddr>,
}

/// Owner: the control loop.
pub(crate) struct Nat {
    workers: u8,
    told: BTreeMap<PeerIndex, Told>,
    names: Names,
    /// Networks that the host is on.
    networks: Vec<IpNet>,
    due: Instant,
    /// As they were when it was last looked.
    candidates: Vec<OwnCandidate>,
}

impl Nat {
    pub(crate) fn new(servers: &[StunServer], workers: u8, now: Instant) -> Self {
        Self {
            workers,
            told: BTreeMap::new(),
            names: Names::new(servers, now),
            networks: Vec::new(),
            due: now,
            candidates: Vec::new(),
        }
    }

    /// Comes back when it is time for [`Self::plan`]. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            () = sleep_until(self.due.into()) => {}
            () = self.names.next() => {}
        }
        self.due = Instant::now() + LOOK_INTERVAL;
    }

    /// Somebody came or went.
    pub(crate) fn look_soon(&mut self, now: Instant) {
        self.due = self.due.min(now + LOOK_SOON);
    }

    /// The host is on these networks now.
    pub(crate) fn set_networks(&mut self, networks: Vec<IpNet>, now: Instant) {
        self.networks = networks;
        self.names.look_up_again(now);
        self.due = now;
    }

    /// A peer has said where its lanes are.
    pub(crate) fn handle_offer(&mut self, peer: PeerIndex, offer: &Offer, now: Instant) {
        let ips = offer.candidates.iter().map(|candidate| candidate.ip).collect();
        self.told.insert(peer, Told { port: offer.port, workers: offer.workers, ips });
        self.look_soon(now);
    }

    /// Who is asked and answered now.
    pub(crate) fn plan(&self, locals: &[IpAddr], peers: &[PeerAddresses]) -> StunPlan {
        let mut sources = BTreeSet::new();
        let mut targets = BTreeSet::new();
        for PeerAddresses { peer, ips } in peers {
            sources.extend(ips.iter().map(IpAddr::to_canonical).take(STUN_SOURCES_MAX.saturating_sub(sources.len())));
            let Some(told) = self.told.get(peer) else { continue };
            let address = |ip: &IpAddr| SocketAddr::new(ip.to_canonical(), told.port);
            targets.extend(ips.iter().map(|ip| Target::peer(address(ip), *peer, told.workers, self.workers)));
        }
        // What peers merely name must not keep out what they use.
        for told in peers.iter().filter_map(|PeerAddresses { peer, .. }| self.told.get(peer)) {
            let left = STUN_SOURCES_MAX.saturating_sub(sources.len());
            sources.extend(told.ips.iter().map(IpAddr::to_canonical).take(left));
        }
        targets.extend(self.names.addresses().map(|(party, address)| Target::server(address, party)));
        let told_apart = |target: Target| if self.is_near(target.address.ip()) { target.nearby() } else { target };
        let mut targets: Vec<_> = targets.into_iter().map(told_apart).collect();
        targets.retain(|target| !locals.contains(&target.address.ip()) && target.address.port() != 0);
        targets.sort_by_key(|target| (std::cmp::Reverse(target.scope), target.is_peer, target.address));
        targets.dedup_by_key(|target| target.address);
        let mut routed: Vec<(IpAddr, Target)> = Vec::new();
        for is_v4 in [true, false] {
            let of_family = targets.iter().filter(|target| target.address.is_ipv4() == is_v4).take(STUN_TARGETS_MAX);
            // Only from the address that the kernel would send from: from others an answer finds no way back.
            routed.extend(of_family.filter_map(|target| Some((source_to(target.address, true)?, *target))));
        }
        let host = |local: &IpAddr| {
            let of_host = routed.iter().filter(|(source, _)| source == local).map(|(_, target)| *target);
            (*local, of_host.collect::<Vec<_>>())
        };
        let mut hosts: Vec<_> = locals.iter().map(host).collect();
        // Those that can ask somebody first, as there is a bound.
        hosts.sort_by_key(|(_, targets)| targets.is_empty());
        hosts.truncate(STUN_HOSTS_MAX);
        StunPlan { hosts, sources }
    }

    /// Whether an address is on a network that the host is on.
    pub(crate) fn is_near(&self, ip: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(&ip))
    }

    /// The configured STUN servers, and what became of their names.
    pub(crate) fn servers(&self) -> impl Iterator<Item = StunServerStatus> {
        self.names.status()
    }

    /// Takes note of what others see of our ports. Returns whether that is news.
    pub(crate) fn set_candidates(&mut self, candidates: Vec<OwnCandidate>) -> bool {
        let is_news = candidates != self.candidates;
        self.candidates = candidates;
        is_news
    }

    /// What others see of our lane ports.
    pub(crate) fn candidates(&self) -> &[OwnCandidate] {
        &self.candidates
    }
}

#[cfg(test)]
mod tests {
    use ringlane_shared::id::LaneId;
    use ringlane_shared::stun::nat::Scope;
    use ringlane_shared::wire::offer::{Candidate, CandidateKind, Features, LaneSet, OfferSecret};

    use super::*;

    fn offer(ips: &[IpAddr]) -> Offer {
        let candidate = |ip: &IpAddr| Candidate { kind: CandidateKind::Host, ip: *ip, port: 8100 };
        Offer {
            instance: [0; 16],
            secret: OfferSecret::new([0; 32]),
            features: Features::default(),
            workers: 2,
            port: 8100,
            lane_id_base: LaneId::from_be_bytes([0; 3]),
            lanes: LaneSet(0),
            candidates: ips.iter().map(candidate).collect(),
            extensions: Default::default(),
        }
    }

    #[tokio::test]
    async fn whom_to_ask_is_looked_at_as_soon_as_the_networks_are_others_and_soon_after_somebody_came() {
        let mut nat = Nat::new(&[], 1, Instant::now());
        nat.next().await;
        let (before, now) = (nat.due, Instant::now());
        assert!(before > now + Duration::from_secs(1), "nothing is due");
        nat.look_soon(now);
        assert_eq!(nat.due, now + LOOK_SOON);
        nat.set_networks(vec!["192.0.2.0/24".parse().unwrap()], now);
        assert_eq!(nat.due, now);
    }

    #[tokio::test]
    async fn peers_are_asked_where_they_are_connected_and_answered_where_they_say_they_are_too() {
        let now = Instant::now();
        let ip = |last| IpAddr::from([127, 0, 0, last]);
        let mut nat = Nat::new(&[], 2, now);
        nat.set_networks(vec!["127.0.0.0/30".parse().unwrap()], now);
        let (near, far) = (PeerIndex(0), PeerIndex(1));
        nat.handle_offer(near, &offer(&[ip(2), ip(50)]), now);
        nat.handle_offer(far, &offer(&[]), now);
        let peers = [(near, vec![ip(2)]), (far, vec![ip(9), ip(10)]), (PeerIndex(2), vec![ip(11)])];
        let peers = peers.map(|(peer, ips)| PeerAddresses { peer, ips });
        let StunPlan { hosts, sources } = nat.plan(&[ip(1), ip(77)], &peers);
        assert_eq!(sources, BTreeSet::from([ip(2), ip(9), ip(10), ip(11), ip(50)]));
        let (local, targets) = &hosts[0];
        assert_eq!(*local, ip(1), "the kernel sends to them from there");
        assert!(hosts[1].1.is_empty());
        let told: Vec<_> = targets.iter().map(|target| (target.address.ip(), target.scope, target.party)).collect();
        assert_eq!(
            told,
            [(ip(9), Scope::Private, 1), (ip(10), Scope::Private, 1), (ip(2), Scope::Neighbours, 0)],
            "who has made no offer is not asked"
        );
    }
}
