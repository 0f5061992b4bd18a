//! What is known of where peers are, and of where we are: learnt, told and forgotten.

use std::time::Instant;

use libp2p::Multiaddr;
use ringlane_shared::id::PeerId;
use ringlane_shared::limits::{PEX_ADDRESSES_PER_PEER_MAX, RECORD_ADDRESSES_MAX};
use ringlane_shared::wire::mdns::{INSTANCE_BYTES, Instance};

use super::Node;
use crate::swarm::address::{self, AddressRefusal};
use crate::swarm::dialer::Source;
use crate::swarm::mdns::{Mdns, MdnsCounters, MdnsEvent, Segment};

impl Node {
    /// Somebody told where a configured peer is. Other peers, and what may not be dialled, are not remembered.
    pub fn learn_address(&mut self, peer: &PeerId, address: &Multiaddr, source: Source) {
        if self.may_dial(address) {
            self.dialer.add_address(Instant::now(), peer, address, source);
        }
    }

    /// A configured peer has said something new of itself, which others passed on: it is alive. If it is missing, it is
    /// dialled soon.
    pub fn handle_sign_of_life(&mut self, peer: &PeerId) {
        self.dialer.handle_sign_of_life(Instant::now(), peer);
    }

    /// What this source told does not hold any more; what has proven right, or others told too, does.
    pub fn forget_address(&mut self, peer: &PeerId, address: &Multiaddr, source: Source) {
        self.dialer.expire_address(peer, address, source);
    }

    /// Whether an address could be dialled at all: it is no name, none of ours, and not inside the mesh.
    pub fn may_dial(&self, address: &Multiaddr) -> bool {
        self.policy.check(address).is_ok()
    }

    /// What may be told to other peers of where this one is, best first, and last that it can be reached through us.
    pub fn tellable_addresses(&self, peer: &PeerId) -> Vec<Multiaddr> {
        let circuits = self.circuits_to(peer);
        let known = self.dialer.tellable(peer).into_iter().filter(|address| self.may_dial(address));
        known.take(PEX_ADDRESSES_PER_PEER_MAX - circuits.len()).cloned().chain(circuits).collect()
    }

    /// Where others may try to reach us: what routers map, and what we listen on, without what leads nowhere from
    /// elsewhere.
    pub fn own_addresses(&self) -> Vec<Multiaddr> {
        self.mapped
            .iter()
            .chain(self.swarm.listeners())
            .filter(|address| self.leads_here(address))
            .take(RECORD_ADDRESSES_MAX)
            .cloned()
            .collect()
    }

    /// Whether an address of ours leads here from elsewhere.
    pub(super) fn leads_here(&self, address: &Multiaddr) -> bool {
        let checked = self.policy.check(address);
        matches!(checked, Ok(_) | Err(AddressRefusal::Own)) && !address::is_link_local(address)
    }

    /// Looks for neighbours on exactly these interfaces, unless mDNS is off.
    pub fn set_segments(&mut self, segments: Vec<Segment>) {
        if let Some(mdns) = &mut self.mdns {
            mdns.set_segments(segments);
        }
    }

    /// What mDNS did so far; nothing if it is off.
    pub fn mdns_counters(&self) -> Option<MdnsCounters> {
        self.mdns.as_ref().map(Mdns::counters)
    }

    pub(super) fn handle_mdns(&mut self, heard: MdnsEvent) {
        match heard {
            MdnsEvent::Learnt(peer, address) if !address::is_link_local(&address) => {
                self.learn_address(&peer, &address, Source::Mdns);
                self.handle_sign_of_life(&peer);
            }
            MdnsEvent::Learnt(..) => {}
            MdnsEvent::Lost(peer, address) => self.forget_address(&peer, &address, Source::Mdns),
        }
    }
}

/// A responder and browser, under a name that tells nothing.
pub(super) fn mdns(own: PeerId, peers: &[PeerId], seed: u64) -> Option<Mdns> {
    let mut random = [0; INSTANCE_BYTES];
    if aws_lc_rs::rand::fill(&mut random).is_err() {
        tracing::warn!("mDNS is off: the system gives no random numbers");
        return None;
    }
    Some(Mdns::new(own, peers.iter().copied(), Instance::new(random), seed))
}
