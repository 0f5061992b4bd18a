//! What the loop does about NATs: who is asked, and what is known.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use ringlane_shared::id::PeerIndex;
use ringlane_shared::path::candidate::OwnCandidate;
use ringlane_shared::stun::nat::{HostView, Scope};
use ringlane_shared::wire::offer::{CandidateKind, Punch};
use tracing::{debug, info};

use super::Control;
use crate::admin::nat::{CandidateStatus, HostStatus, NatStatus, ObservedStatus, StunStatus};
use crate::nat::PeerAddresses;
use crate::portmap::PortMapper;
use crate::swarm::address::ip_of;

/// Addresses that `status` lists as those peers see us at.
const OBSERVED_MAX: usize = 32;

impl Control {
    /// Looks at who is connected: whom to ask, and whom to answer.
    pub(super) fn plan_nat(&mut self, now: Instant) {
        let peers = self.settings.peers.iter().enumerate().filter_map(|(position, peer)| {
            let index = PeerIndex(u16::try_from(position).ok()?);
            let direct = self.node.connections(&peer.id).filter(|connection| !connection.relayed);
            let lanes = self.coordinator.link(index).into_iter().flat_map(|link| link.lanes());
            // Where a relay is the peer is not.
            let lanes = lanes.filter(|(_, lane)| self.engine.relay_of(lane.local).is_none());
            let ips: BTreeSet<IpAddr> = direct
                .filter_map(|connection| ip_of(&connection.remote))
                .chain(lanes.map(|(_, lane)| lane.remote.ip()))
                .collect();
            (!ips.is_empty()).then(|| PeerAddresses { peer: index, ips: ips.into_iter().collect() })
        });
        let peers: Vec<_> = peers.collect();
        let plan = self.nat.plan(self.engine.local_ips(), &peers);
        self.engine.set_stun(&plan.hosts, &plan.sources, now);
    }

    /// What is known of the NAT is other than it was.
    pub(super) fn handle_nat_change(&mut self, now: Instant) {
        if self.nat.set_candidates(self.engine.reflexive_candidates()) {
            let addresses: Vec<_> = self.nat.candidates().iter().map(|candidate| candidate.address).collect();
            info!(?addresses, "others see our lane ports elsewhere than before");
        }
        self.offer_candidates(now);
    }

    /// Has offers say where our lane ports are reached from outside, as far as routers and STUN have told, and what lies
    /// between.
    pub(super) fn offer_candidates(&mut self, now: Instant) {
        let mapped = self.portmap.iter().flat_map(PortMapper::lanes);
        let mapped = mapped.map(|(worker, address)| OwnCandidate { worker, kind: CandidateKind::Mapped, address });
        if !self.settings.nat.punch {
            return self.coordinator.set_candidates(mapped.collect(), now);
        }
        let candidates = mapped.chain(self.nat.candidates().iter().copied()).collect();
        self.coordinator.set_candidates(candidates, now);
        let views = self.engine.nat_views().filter(|view| view.local.is_ipv4() && view.is_translated.is_some());
        let worst = views.max_by_key(|view| view.mapping);
        let punch = worst.map(|view| Punch {
            mapping: view.mapping,
            port_delta: view.port_step.and_then(|step| i16::try_from(step).ok()).unwrap_or_default(),
            birthday: true,
            ..Punch::default()
        });
        debug!(?punch, "what peers are told of our translator");
        self.coordinator.set_punch(punch.unwrap_or_default(), now);
    }

    pub(super) fn nat_status(&self) -> NatStatus {
        let kept = self.nat.candidates().iter();
        NatStatus {
            hosts: self.engine.nat_views().map(|view| self.host_status(view)).collect(),
            candidates: kept.map(|candidate| CandidateStatus::new(candidate, "server_reflexive")).collect(),
            control: self.observed(),
            stun: StunStatus::new(self.engine.stun_counters()),
        }
    }

    fn host_status(&self, view: &HostView) -> HostStatus {
        // A lane is the better proof, wherever it goes.
        let has_lane = (0..self.settings.peers.len()).any(|position| {
            let link = u16::try_from(position).ok().and_then(|index| self.coordinator.link(PeerIndex(index)));
            let mut lanes = link.into_iter().flat_map(|link| link.lanes());
            lanes.any(|(_, lane)| lane.local.ip() == view.local && !self.nat.is_near(lane.remote.ip()))
        });
        let asked = view.servers_asked > 0;
        let is_near = view.scope == Some(Scope::Neighbours);
        let is_udp_blocked = asked.then_some(view.is_silent && !has_lane && !is_near);
        HostStatus { view: view.clone(), is_udp_blocked }
    }

    /// Where peers see us, those first that most of them name.
    fn observed(&self) -> Vec<ObservedStatus> {
        let mut peers: BTreeMap<String, BTreeSet<_>> = BTreeMap::new();
        for connection in self.node.all_connections().filter(|connection| !connection.relayed) {
            if let Some(observed) = &connection.observed {
                peers.entry(observed.to_string()).or_default().insert(connection.peer);
            }
        }
        let observed = peers.into_iter().map(|(address, peers)| ObservedStatus { address, peers: peers.len() as u32 });
        let mut observed: Vec<_> = observed.collect();
        observed.sort_by(|a, b| b.peers.cmp(&a.peers).then_with(|| a.address.cmp(&b.address)));
        observed.truncate(OBSERVED_MAX);
        observed
    }
}
