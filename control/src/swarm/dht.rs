//! The distributed hash table, `/ipfs/kad/1.0.0`: the library's behaviour, and around it what a VPN needs.
//!
//! Only peer routing is used; nothing is stored or provided for anybody. Two things the library does not do:
//!
//! - *The addresses of whom we look for.* Answers to a search contain them, but the target is a DHT client and so never
//!   among the results. The library wants to dial it in the course of the search: that wish is intercepted, its addresses
//!   become an event, and the dialer, which knows every other address too, dials instead.
//! - *Being found without being a server.* A server of ours puts configured peers that are connected into its table, with the
//!   addresses they say they have, though they answer nobody. Then whoever looks for them through us finds them.
//!
//! In server mode only configured peers are answered, as strangers' connections are refused: a network that is its own
//! infrastructure consists of configured peers, and a server for the world is not what a router should be.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::task::{Context, Poll};
use std::time::Duration;

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::kad::store::MemoryStore;
use libp2p::kad::{self, Mode, QueryId, StoreInserts};
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId, StreamProtocol};
use ringlane_shared::config::DhtMode;
use ringlane_shared::limits::{DIALED_ADDRESSES_MAX, KNOWN_ADDRESSES_PER_PEER_MAX};

use super::address;

/// The protocol's name.
pub(super) const PROTOCOL: StreamProtocol = StreamProtocol::new("/ipfs/kad/1.0.0");
/// How long one search may take; Hyprspace's.
const QUERY_TIMEOUT: Duration = Duration::from_secs(30);

type Kad = kad::Behaviour<MemoryStore>;

/// What the DHT has to say.
#[derive(Debug)]
pub(super) enum DhtEvent {
    /// Addresses of a configured peer.
    Found { peer: PeerId, addresses: Vec<Multiaddr> },
    /// A search has ended, well or not.
    SearchEnded { peer: PeerId },
    /// Somebody is in the table, or answers there again: from now on searches make sense.
    FirstEntry,
    /// Nothing of interest.
    Quiet,
}

/// The behaviour.
pub(super) struct Dht {
    kad: Kad,
    mode: DhtMode,
    configured: HashSet<PeerId>,
    /// Whether DHT nodes that are not configured are welcome in the table.
    takes_strangers: bool,
    searches: HashMap<QueryId, PeerId>,
    refresh: Option<Refresh>,
    has_entries: bool,
    is_alive: bool,
}

struct Refresh {
    query: QueryId,
    answered: bool,
}

impl Dht {
    /// Nothing if `mode` is off.
    pub(super) fn new(local: PeerId, peers: &[PeerId], mode: DhtMode, takes_strangers: bool) -> Option<Self> {
        let library_mode = match mode {
            DhtMode::Client => Mode::Client,
            DhtMode::Server => Mode::Server,
            DhtMode::Off => return None,
        };
        let mut config = kad::Config::new(PROTOCOL);
        config
            .set_query_timeout(QUERY_TIMEOUT)
            .set_periodic_bootstrap_interval(None)
            .set_record_filtering(StoreInserts::FilterBoth)
            .set_replication_interval(None)
            .set_publication_interval(None)
            .set_provider_publication_interval(None)
            .set_caching(kad::Caching::Disabled);
        // Half of all peers share one bucket, and a server of ours has to find each of them.
        if mode == DhtMode::Server
            && let Some(size) = NonZeroUsize::new(peers.len().max(kad::K_VALUE.get()))
        {
            config.set_kbucket_size(size);
        }
        let mut kad = Kad::with_config(local, MemoryStore::new(local), config);
        kad.set_mode(Some(library_mode));
        let configured = peers.iter().copied().collect();
        Some(Self {
            kad,
            mode,
            configured,
            takes_strangers,
            searches: HashMap::new(),
            refresh: None,
            has_entries: false,
            is_alive: false,
        })
    }

    /// Whether there is anybody to ask. The library keeps those who do not answer until others take their place.
    pub(super) fn has_entries(&self) -> bool {
        self.has_entries
    }

    /// Whether somebody in the table answered when we last looked ourselves up, or came into it since.
    pub(super) fn is_alive(&self) -> bool {
        self.is_alive
    }

    /// Looks for a configured peer. Ends in one [`DhtEvent::SearchEnded`].
    pub(super) fn search(&mut self, peer: PeerId) {
        self.searches.insert(self.kad.get_closest_peers(peer), peer);
    }

    /// Ends a search whose peer is found.
    pub(super) fn stop_search(&mut self, peer: &PeerId) {
        let of_peer: Vec<_> = self.searches.iter().filter(|(_, sought)| *sought == peer).map(|(id, _)| *id).collect();
        for id in of_peer {
            if let Some(mut query) = self.kad.query_mut(&id) {
                query.finish();
            }
        }
    }

    /// Looks ourselves up, so that the nodes near our id know us, and fills the table; unless that is under way.
    pub(super) fn refresh(&mut self) {
        if self.refresh.is_none() {
            // An error says that nobody is in the table.
            let query = self.kad.bootstrap().ok();
            self.refresh = query.map(|query| Refresh { query, answered: false });
        }
    }

    /// A peer told what it speaks and where it is; `addresses` may be dialled.
    pub(super) fn handle_identify(&mut self, peer: &PeerId, protocols: &[StreamProtocol], addresses: Vec<Multiaddr>) {
        let is_configured = self.configured.contains(peer);
        let serves = protocols.contains(&PROTOCOL) && (is_configured || self.takes_strangers);
        let to_be_found = self.mode == DhtMode::Server && is_configured;
        if addresses.is_empty() || !(serves || to_be_found) {
            return;
        }
        // What it no longer has is forgotten.
        self.kad.remove_peer(peer);
        for address in addresses.into_iter().take(KNOWN_ADDRESSES_PER_PEER_MAX) {
            self.kad.add_address(peer, address);
        }
    }

    fn translate(&mut self, event: kad::Event) -> DhtEvent {
        match event {
            kad::Event::OutboundQueryProgressed { id, stats, step, .. } => {
                if let Some(refresh) = self.refresh.as_mut().filter(|refresh| refresh.query == id) {
                    refresh.answered |= stats.num_successes() > 0;
                    if step.last {
                        self.is_alive = refresh.answered;
                        self.refresh = None;
                    }
                }
                let ended = if step.last { self.searches.remove(&id) } else { None };
                ended.map_or(DhtEvent::Quiet, |peer| DhtEvent::SearchEnded { peer })
            }
            kad::Event::RoutingUpdated { is_new_peer: true, .. } => {
                self.has_entries = true;
                if std::mem::replace(&mut self.is_alive, true) { DhtEvent::Quiet } else { DhtEvent::FirstEntry }
            }
            _ => DhtEvent::Quiet,
        }
    }
}

/// An answer has room for thousands of addresses of one node, anybody's, and all of them would be dialled.
fn limit(addresses: &mut Vec<Multiaddr>) {
    addresses.retain(|address| address::parse(address).is_ok());
    addresses.truncate(DIALED_ADDRESSES_MAX);
}

impl NetworkBehaviour for Dht {
    type ConnectionHandler = <Kad as NetworkBehaviour>::ConnectionHandler;
    type ToSwarm = DhtEvent;

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        let mut told = self.kad.handle_pending_outbound_connection(id, peer, addresses, role)?;
        limit(&mut told);
        Ok(told)
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.kad.handle_established_inbound_connection(id, peer, local, remote)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        remote: &Multiaddr,
        role: Endpoint,
        port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.kad.handle_established_outbound_connection(id, peer, remote, role, port_use)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        // At a new listen address the library would refresh an empty table, and complain that it is empty.
        if !matches!(event, FromSwarm::NewListenAddr(_)) {
            self.kad.on_swarm_event(event);
        }
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, id: ConnectionId, event: THandlerOutEvent<Self>) {
        self.kad.on_connection_handler_event(peer, id, event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<DhtEvent, THandlerInEvent<Self>>> {
        let Poll::Ready(action) = self.kad.poll(cx) else { return Poll::Pending };
        let configured = match &action {
            ToSwarm::Dial { opts } => opts.get_peer_id().filter(|peer| self.configured.contains(peer)),
            _ => None,
        };
        let Some(peer) = configured else {
            return Poll::Ready(action.map_out(|event| self.translate(event)));
        };
        // Whom the configuration names, the dialer dials.
        let id = ConnectionId::new_unchecked(0);
        let known = self.kad.handle_pending_outbound_connection(id, Some(peer), &[], Endpoint::Dialer);
        let mut addresses = known.unwrap_or_default();
        limit(&mut addresses);
        Poll::Ready(ToSwarm::GenerateEvent(DhtEvent::Found { peer, addresses }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_node_with_thousands_of_addresses_a_few_usable_ones_are_dialled() {
        let (stranger, local) = (PeerId::random(), PeerId::random());
        let mut dht = Dht::new(local, &[], DhtMode::Client, true).unwrap();
        let useless = ["/dns4/a.example/tcp/1", "/ip4/192.0.2.1/udp/1"].map(|text| text.parse().unwrap());
        for address in
            useless.into_iter().chain((1..2000).map(|port| format!("/ip4/192.0.2.1/tcp/{port}").parse().unwrap()))
        {
            dht.kad.add_address(&stranger, address);
        }
        let id = ConnectionId::new_unchecked(1);
        let dialled = dht.handle_pending_outbound_connection(id, Some(stranger), &[], Endpoint::Dialer).unwrap();
        assert_eq!(dialled.len(), DIALED_ADDRESSES_MAX);
        assert!(dialled.iter().all(|address| address::parse(address).is_ok()), "{dialled:?}");
    }
}
