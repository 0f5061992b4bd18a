//! The node's part of discovery: orders of the state machines carried out, findings handed to the dialer.

use std::task::{Context, Poll};
use std::time::Instant;

use libp2p::multiaddr::Protocol;
use libp2p::swarm::ConnectionId;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::{Multiaddr, PeerId, StreamProtocol};

use super::Node;
use crate::routing::KuboAnswer;
use crate::swarm::address;
use crate::swarm::bootstrap::{Situation, Step};
use crate::swarm::dht::DhtEvent;
use crate::swarm::dialer::Source;
use crate::swarm::names::{self, Found};

impl Node {
    /// Looks for everybody at once: peers that are missing are dialled and searched for, the DHT is refreshed or entered.
    pub fn rediscover(&mut self) {
        let now = Instant::now();
        self.dialer.dial_all(now);
        self.discovery.seeker.seek_all(now);
        self.discovery.bootstrap.start_now();
        if let Some(mdns) = &mut self.mdns {
            mdns.rediscover();
        }
    }

    /// Connections to DHT nodes that are no peers, each with its remote address.
    pub fn contacts(&self) -> impl Iterator<Item = (PeerId, &Multiaddr)> {
        self.discovery.contacts.values().map(|(peer, remote)| (*peer, remote))
    }

    /// Whether anybody can be asked for a peer.
    pub(super) fn has_sources(&self) -> bool {
        let dht = self.swarm.behaviour().dht.as_ref();
        dht.is_some_and(|dht| dht.has_entries()) || !self.discovery.routers.is_empty()
    }

    pub(super) fn discovery_timeout(&self) -> Option<Instant> {
        let situation = self.situation();
        let bootstrap = situation.and_then(|situation| self.discovery.bootstrap.poll_timeout(situation));
        let search = if self.has_sources() { self.discovery.seeker.poll_timeout() } else { None };
        bootstrap.into_iter().chain(search).min()
    }

    /// Nothing without a DHT.
    fn situation(&self) -> Option<Situation> {
        let dht = self.swarm.behaviour().dht.as_ref()?;
        Some(Situation { table_is_empty: !dht.is_alive(), is_alone: self.discovery.seeker.is_alone() })
    }

    /// Whether anything happened.
    pub(super) fn poll_discovery(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let mut progress = false;
        if let Some(step) = self.situation().and_then(|situation| self.discovery.bootstrap.poll(now, situation)) {
            self.carry_out(step);
            progress = true;
        }
        if self.has_sources()
            && let Some(peer) = self.discovery.seeker.poll_search(now)
        {
            self.search(peer);
            progress = true;
        }
        if let Poll::Ready((peer, addresses)) = self.discovery.routers.poll(cx) {
            self.learn(&peer, &addresses, Source::Routing);
            self.discovery.seeker.handle_ended(&peer);
            progress = true;
        }
        if let Some(kubo) = &mut self.discovery.kubo
            && let Poll::Ready(answer) = kubo.poll(cx)
        {
            match answer {
                KuboAnswer::Connected(peers) => {
                    peers
                        .iter()
                        .for_each(|(peer, address)| self.learn(peer, std::slice::from_ref(address), Source::Routing));
                }
                KuboAnswer::Bootstrap(contacts) => {
                    contacts.into_iter().for_each(|contact| self.discovery.bootstrap.add(contact));
                }
            }
            progress = true;
        }
        if let Poll::Ready(Found { peer, addresses, failures, .. }) = self.discovery.look_ups.poll(cx) {
            for (address, error) in failures {
                tracing::info!(%address, error, "the name of a bootstrap contact cannot be looked up; trying on");
            }
            self.dial_contact(peer, addresses.into_iter().map(|(address, _)| address).collect());
            progress = true;
        }
        progress
    }

    fn carry_out(&mut self, step: Step) {
        match step {
            Step::Refresh => {
                if let Some(dht) = self.swarm.behaviour_mut().dht.as_mut() {
                    dht.refresh();
                }
            }
            Step::Round => {
                if let Some(kubo) = &mut self.discovery.kubo {
                    let peers = self.dialer.peers().collect();
                    kubo.ask(peers);
                }
            }
            Step::Dial(contact) => {
                let Some(Protocol::P2p(peer)) = contact.iter().last() else {
                    self.discovery.bootstrap.handle_ended(false);
                    return;
                };
                let address = address::without_peer(&contact, &peer).unwrap_or(contact);
                if self.policy.passes_name(&address) {
                    self.dial_contact(peer, vec![address]);
                } else if names::is_name(&address) || matches!(address.iter().next(), Some(Protocol::Dnsaddr(_))) {
                    self.discovery.look_ups.start(peer, vec![address], false);
                } else {
                    self.dial_contact(peer, vec![address]);
                }
            }
        }
    }

    fn dial_contact(&mut self, peer: PeerId, mut addresses: Vec<Multiaddr>) {
        addresses.retain(|address| self.policy.passes_name(address) || self.policy.check(address).is_ok());
        let condition = PeerCondition::DisconnectedAndNotDialing;
        let options = DialOpts::peer_id(peer).condition(condition).addresses(addresses).build();
        let id = options.connection_id();
        match self.swarm.dial(options) {
            Ok(()) => {
                self.discovery.dials.insert(id);
            }
            Err(error) => {
                tracing::debug!(%peer, %error, "cannot dial a bootstrap contact");
                let reached = self.swarm.is_connected(&peer);
                self.discovery.bootstrap.handle_ended(reached);
            }
        }
    }

    /// A dial has ended; whether it was a bootstrap contact's.
    pub(super) fn handle_contact_dialled(&mut self, id: ConnectionId, reached: bool) -> bool {
        let was = self.discovery.dials.remove(&id);
        if was {
            self.discovery.bootstrap.handle_ended(reached);
        }
        was
    }

    fn search(&mut self, peer: PeerId) {
        let mut sources = self.discovery.routers.search(peer);
        if let Some(dht) = self.swarm.behaviour_mut().dht.as_mut().filter(|dht| dht.has_entries()) {
            dht.search(peer);
            sources += 1;
        }
        tracing::debug!(%peer, sources, "looking for the peer");
        self.discovery.seeker.handle_started(&peer, sources);
    }

    pub(super) fn handle_dht(&mut self, event: DhtEvent) {
        match event {
            DhtEvent::Found { peer, addresses } => self.learn(&peer, &addresses, Source::Dht),
            DhtEvent::SearchEnded { peer } => self.discovery.seeker.handle_ended(&peer),
            DhtEvent::FirstEntry => self.discovery.seeker.seek_all(Instant::now()),
            DhtEvent::Quiet => {}
        }
    }

    /// Gives the dialer addresses of a configured peer.
    fn learn(&mut self, peer: &PeerId, addresses: &[Multiaddr], source: Source) {
        let now = Instant::now();
        for address in addresses {
            let Ok(bare) = address::without_peer(address, peer) else { continue };
            if self.policy.check(&bare).is_ok() {
                tracing::debug!(%peer, address = %bare, source = source.name(), "told an address");
                self.dialer.add_address(now, peer, &bare, source);
            }
        }
    }

    /// Whoever says that it serves the DHT comes into its table.
    pub(super) fn handle_dht_identify(&mut self, peer: &PeerId, protocols: &[StreamProtocol], addresses: &[Multiaddr]) {
        let bare = addresses.iter().filter_map(|address| address::without_peer(address, peer).ok());
        let usable = bare.filter(|address| self.policy.check(address).is_ok()).collect();
        if let Some(dht) = self.swarm.behaviour_mut().dht.as_mut() {
            dht.handle_identify(peer, protocols, usable);
        }
    }
}
