//! The node's part of relaying: orders of the state machines carried out, and what the swarm says passed on to them.

use std::collections::BTreeSet;
use std::task::{Context, Poll};
use std::time::Instant;

use libp2p::autonat::v1::{InboundProbeEvent, NatStatus};
use libp2p::core::transport::ListenerId;
use libp2p::multiaddr::Protocol;
use libp2p::relay::client;
use libp2p::swarm::ConnectionId;
use libp2p::{Multiaddr, PeerId, StreamProtocol, autonat};
use ringlane_shared::config::RelayServe;
use ringlane_shared::limits::{CIRCUIT_ADDRESSES_MAX, PEX_ADDRESSES_PER_PEER_MAX};
use ringlane_shared::path::relay::Load;

use super::{Node, NodeEvent};
use crate::swarm::address;
use crate::swarm::connections::{ConnectionInfo, Direction};
use crate::swarm::dialer::Better;
use crate::swarm::relay::hop::{Asked, HOP, Situation, Step};
use crate::swarm::relay::{CarriedCircuit, HopCounters};

/// Addresses told of a peer that can be reached through us.
const CIRCUITS_TOLD_MAX: usize = 4;
const _: () = assert!(CIRCUITS_TOLD_MAX < PEX_ADDRESSES_PER_PEER_MAX);

/// What a node has to do with relays, for the operator.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RelayReport {
    /// Whether peers may use us as a relay now.
    pub serves: bool,
    /// Whether we are known to be reachable from everywhere.
    pub is_public: bool,
    /// Peers that may be reached through us.
    pub reserved_here: Vec<PeerId>,
    /// The circuits we carry.
    pub circuits: Vec<CarriedCircuit>,
    /// What we did as a relay so far.
    pub counters: HopCounters,
    /// Relays that we may be reached through.
    pub reserved_at: Vec<PeerId>,
    /// Connected peers that offer to be relays.
    pub offering: Vec<PeerId>,
}

impl Node {
    /// What we have to do with relays.
    pub fn relay_report(&self) -> RelayReport {
        RelayReport {
            serves: self.relaying.hop.serves(),
            is_public: self.is_public(),
            reserved_here: self.relaying.hop.reserved().collect(),
            circuits: self.relaying.hop.circuits().collect(),
            counters: self.relaying.hop.counters(),
            reserved_at: self.relaying.auto.reserved().collect(),
            offering: self.relaying.offering.iter().copied().collect(),
        }
    }

    /// Whether peers may use us as a relay now.
    pub fn is_relay(&self) -> bool {
        self.relaying.hop.serves()
    }

    /// Connected peers that offer to be relays.
    pub fn relays(&self) -> &BTreeSet<PeerId> {
        &self.relaying.offering
    }

    /// What a relay says that it has to do by circuits; nothing if it has not lately.
    pub fn set_relay_load(&mut self, relay: &PeerId, load: Option<Load>) {
        if self.relaying.auto.set_load(relay, load) {
            self.tell_dialer_relays();
        }
    }

    /// How much of the circuits that there may be is taken, or of those that may lead to this peer or from it.
    pub fn circuits_load(&self, peer: Option<&PeerId>) -> Load {
        self.relaying.hop.load(peer)
    }

    /// Bytes of all circuits that we carried so far, and whether we carry any now.
    pub fn carried(&self) -> (u64, bool) {
        self.relaying.hop.carried()
    }

    /// Whether others have reached us at our addresses (AutoNAT); `None` while none has told.
    pub fn reachability(&self) -> Option<bool> {
        self.relaying.is_reachable
    }

    /// Where that is: what others have found us at, and what routers map to us.
    pub fn reachable_at(&self) -> impl Iterator<Item = &Multiaddr> {
        self.swarm.external_addresses().filter(|address| !address::is_circuit(address))
    }

    /// Whether we are known to be reachable from everywhere: others have found us there, or none has tried and one of our
    /// addresses means the same to all.
    fn is_public(&self) -> bool {
        self.relaying.is_reachable.unwrap_or_else(|| self.swarm.listeners().any(address::leads_to_global))
    }

    /// To be asked whenever our addresses have changed.
    pub(super) fn consider_serving(&mut self) {
        let is_public = self.is_public();
        let serves = match self.relaying.serve {
            RelayServe::Auto => is_public,
            RelayServe::Always => true,
            RelayServe::Never => false,
        };
        if serves != self.relaying.hop.serves() {
            tracing::info!(serves, "this node is a relay for its peers, or is none any more");
        }
        self.relaying.hop.set_serving(serves, &mut self.swarm.behaviour_mut().streams);
        // An address that means the same everywhere may yet be behind a firewall: until somebody has got through, a
        // reservation is the only way in that is known to be one.
        let is_reachable = self.relaying.is_reachable == Some(true) || self.relaying.serve == RelayServe::Always;
        self.relaying.auto.set_wanted(!is_reachable);
    }

    /// Whether anything happened.
    pub(super) fn poll_relaying(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let mut progress = false;
        if let Poll::Ready(step) = self.relaying.hop.poll(cx) {
            match step {
                Step::Asked(asked) => self.handle_hop_asked(asked),
                Step::Ended(ended) => self.relaying.hop.handle_ended(ended),
            }
            progress = true;
        }
        if let Some(relay) = self.relaying.auto.poll(now) {
            self.reserve(relay, now);
            progress = true;
        }
        progress
    }

    fn handle_hop_asked(&mut self, asked: Asked) {
        let connection = self.connections.of(&asked.peer).find(|known| known.id == asked.connection);
        let situation = Situation {
            is_relayed: connection.is_none_or(|connection| connection.relayed),
            hold: connection.map(ConnectionInfo::hold),
            addresses: self.addresses_as_relay(),
        };
        self.relaying.hop.handle_asked(asked, situation, &mut self.swarm.behaviour_mut().streams);
    }

    /// Where those who look for a client of ours find us: addresses that mean the same everywhere, if we have any.
    fn addresses_as_relay(&self) -> Vec<Multiaddr> {
        let leads_here = |address: &&Multiaddr| self.leads_here(address) && !address::is_circuit(address);
        let local = *self.swarm.local_peer_id();
        let confirmed = self.swarm.external_addresses().filter(leads_here);
        let mut addresses: Vec<Multiaddr> = Vec::new();
        for address in confirmed.chain(self.swarm.listeners().filter(leads_here)) {
            let bare = address::without_peer(address, &local).unwrap_or_else(|_| address.clone());
            let whole = bare.with(Protocol::P2p(local));
            if !addresses.contains(&whole) {
                addresses.push(whole);
            }
        }
        if addresses.iter().any(address::leads_to_global) {
            addresses.retain(address::leads_to_global);
        }
        addresses.truncate(CIRCUIT_ADDRESSES_MAX);
        addresses
    }

    /// Where a peer can be reached through us, if it can.
    pub(super) fn circuits_to(&self, peer: &PeerId) -> Vec<Multiaddr> {
        if !self.relaying.hop.reserved().any(|reserved| reserved == *peer) {
            return Vec::new();
        }
        let addresses = self.addresses_as_relay().into_iter().take(CIRCUITS_TOLD_MAX);
        addresses.map(|address| address.with(Protocol::P2pCircuit)).collect()
    }

    /// The direct connection to a relay that circuits use: the library takes the oldest.
    fn to_relay(&self, relay: &PeerId) -> Option<&ConnectionInfo> {
        self.connections.of(relay).find(|connection| !connection.relayed)
    }

    fn reserve(&mut self, relay: PeerId, now: Instant) {
        let Some((through, hold)) = self.to_relay(&relay).map(|to| (circuit_of(to), to.hold())) else {
            self.relaying.auto.handle_ended(&relay, now);
            return;
        };
        tracing::debug!(%relay, "asking a relay for a reservation");
        match self.swarm.listen_on(through) {
            Ok(listener) => {
                self.relaying.listeners.insert(listener, relay);
                self.relaying.reservation_holds.insert(relay, hold);
            }
            Err(error) => {
                tracing::debug!(%relay, %error, "cannot ask a relay for a reservation");
                self.relaying.auto.handle_ended(&relay, now);
            }
        }
    }

    pub(super) fn is_behind_relay(&self, listener: ListenerId) -> bool {
        self.relaying.listeners.contains_key(&listener)
    }

    /// A relay has refused a reservation, or one has ended.
    pub(super) fn handle_reservation_ended(&mut self, listener: ListenerId, reason: Result<(), std::io::Error>) {
        let Some(relay) = self.relaying.listeners.remove(&listener) else { return };
        let error = reason.err().map_or("its connection closed".into(), |error| innermost(&error));
        tracing::debug!(%relay, error, "no reservation with this relay");
        self.relaying.reservation_holds.remove(&relay);
        self.relaying.auto.handle_ended(&relay, Instant::now());
        self.events.push_back(NodeEvent::AddressesChanged);
    }

    pub(super) fn handle_relay_client(&mut self, event: &client::Event) {
        match event {
            client::Event::ReservationReqAccepted { relay_peer_id: relay, renewal, .. } => {
                if !renewal {
                    tracing::info!(%relay, "reachable through this relay");
                }
                if let Some(worse) = self.relaying.auto.handle_reserved(relay, Instant::now()) {
                    tracing::info!(relay = %worse, "reachable through this relay no more: there is a much better one");
                    let listeners = self.relaying.listeners.iter();
                    let ended: Vec<_> = listeners.filter(|(_, of)| **of == worse).map(|(id, _)| *id).collect();
                    for listener in ended {
                        self.swarm.remove_listener(listener);
                    }
                }
            }
            client::Event::OutboundCircuitEstablished { .. } | client::Event::InboundCircuitEstablished { .. } => {}
        }
    }

    /// AutoNAT: whether we, or a peer, can be reached from outside.
    pub(super) fn handle_autonat(&mut self, event: autonat::v1::Event) {
        match event {
            autonat::v1::Event::InboundProbe(InboundProbeEvent::Request { peer, .. }) => {
                self.relaying.probing.insert(peer);
            }
            autonat::v1::Event::InboundProbe(
                InboundProbeEvent::Response { peer, .. } | InboundProbeEvent::Error { peer, .. },
            ) => {
                self.relaying.probing.remove(&peer);
            }
            autonat::v1::Event::OutboundProbe(event) => tracing::debug!(?event, "asked whether we can be reached"),
            autonat::v1::Event::StatusChanged { new, .. } => {
                tracing::info!(status = ?new, "peers have tried whether this node can be reached from outside");
                self.relaying.is_reachable = match &new {
                    NatStatus::Public(_) => Some(true),
                    NatStatus::Private => Some(false),
                    NatStatus::Unknown => None,
                };
                if !new.is_public() {
                    // What routers have mapped is theirs to say, and is taken back by `set_mapped_addresses`.
                    let found = |address: &&Multiaddr| !address::is_circuit(address) && !self.mapped.contains(address);
                    let confirmed = self.swarm.external_addresses().filter(found);
                    for address in confirmed.cloned().collect::<Vec<_>>() {
                        self.swarm.remove_external_address(&address);
                    }
                }
                self.consider_serving();
            }
        }
    }

    /// Whether a connection was made only to see whether the peer can be reached.
    pub(super) fn is_probe(&self, connection: &ConnectionInfo) -> bool {
        connection.direction == Direction::Outbound
            && !connection.relayed
            && self.relaying.probing.contains(&connection.peer)
            && !self.dials.contains_key(&connection.id)
            && self.connections.best(&connection.peer).is_some()
    }

    /// A peer has said on a connection what it speaks.
    pub(super) fn handle_relay_offer(&mut self, peer: PeerId, on: ConnectionId, protocols: &[StreamProtocol]) {
        let Some(connection) = self.connections.of(&peer).find(|connection| connection.id == on) else { return };
        if connection.relayed {
            return;
        }
        let rtt = connection.rtt;
        self.set_offering(peer, protocols.contains(&HOP));
        if let Some(rtt) = rtt {
            self.relaying.auto.set_rtt(&peer, rtt);
        }
    }

    fn set_offering(&mut self, peer: PeerId, offers: bool) {
        let now = Instant::now();
        let relaying = &mut self.relaying;
        let changed = if offers { relaying.offering.insert(peer) } else { relaying.offering.remove(&peer) };
        if changed {
            relaying.auto.set_offered(peer, offers, now);
            self.tell_dialer_relays();
        }
    }

    /// A dial tries the first few.
    fn tell_dialer_relays(&mut self) {
        let offering = self.relaying.auto.offering();
        let relays = offering.filter_map(|relay| self.to_relay(&relay)).map(circuit_of).collect();
        self.dialer.set_relays(Instant::now(), relays);
    }

    /// A connection is gone, or the last one of its peer.
    pub(super) fn handle_closed_for_relays(&mut self, peer: PeerId, id: ConnectionId, last: bool) {
        self.relaying.hop.handle_closed(&peer, id);
        self.relaying.circuit_holds.remove(&id);
        if last || self.to_relay(&peer).is_none() {
            self.set_offering(peer, false);
        }
    }

    /// Which relay a circuit that a peer made comes through. Its address names only where the relay is.
    pub(super) fn find_relay(&self, connection: &mut ConnectionInfo) {
        if !connection.relayed || connection.relay.is_some() {
            return;
        }
        let via: Multiaddr = connection.remote.iter().take_while(|part| *part != Protocol::P2pCircuit).collect();
        let relay = self.connections.all().find(|known| !known.relayed && known.remote == via);
        connection.relay = relay.map(|relay| relay.peer);
    }

    /// Keeps the connection to the relay open that a circuit runs on.
    pub(super) fn hold_relay(&mut self, connection: &ConnectionInfo) {
        let relay = connection.relay.filter(|_| connection.direction == Direction::Outbound);
        if let Some(hold) = relay.and_then(|relay| Some(self.to_relay(&relay)?.hold())) {
            self.relaying.circuit_holds.insert(connection.id, hold);
        }
    }

    /// Looks for a better way to a peer that only a relay leads to, or a WebSocket.
    pub(super) fn seek_better(&mut self, peer: PeerId) {
        let best = self.connections.best(&peer);
        let better = best.and_then(|best| match (best.relayed, best.is_roundabout()) {
            (true, _) => Some(Better::Direct),
            (false, true) if self.dialer.is_proxied() => Some(Better::Unproxied),
            (false, true) => Some(Better::Plain),
            (false, false) => None,
        });
        self.dialer.seek_better(Instant::now(), &peer, better);
    }
}

/// What leads through the relay at the other end of this connection.
fn circuit_of(relay: &ConnectionInfo) -> Multiaddr {
    relay.remote.clone().with(Protocol::P2p(relay.peer)).with(Protocol::P2pCircuit)
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
