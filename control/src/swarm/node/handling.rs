//! What the swarm and its behaviours say, one by one.

use std::time::Instant;

use libp2p::core::ConnectedPoint;
use libp2p::swarm::{ConnectionId, DialError, SwarmEvent};
use libp2p::{Multiaddr, dcutr, identify, ping};
use ringlane_shared::id::PeerId;
use ringlane_shared::limits::KNOWN_ADDRESSES_PER_PEER_MAX;

use super::{DialUnderWay, Node, NodeEvent};
use crate::swarm::address;
use crate::swarm::behaviour::BehaviourEvent;
use crate::swarm::connections::{ConnectionInfo, Direction, PeerKind, TransportName};
use crate::swarm::dialer::{STABLE_AFTER, Source};
use crate::swarm::exchange;
use crate::swarm::exchanges::Progress;
use crate::swarm::relay::hop::HOP;
use crate::swarm::streams::StreamEvent;

impl Node {
    pub(super) fn handle_swarm(&mut self, event: SwarmEvent<BehaviourEvent>) {
        self.recorder.record(&event);
        match event {
            SwarmEvent::Behaviour(event) => self.handle_behaviour(event),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, num_established, .. } => {
                self.handle_established(peer_id, connection_id, &endpoint, num_established.get() == 1);
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, num_established, cause, .. } => {
                let cause = cause.map(|cause| cause.to_string()).unwrap_or_default();
                tracing::debug!(peer = %peer_id, connection = %connection_id, cause, "connection closed");
                self.handle_closed(peer_id, connection_id, num_established == 0);
            }
            SwarmEvent::OutgoingConnectionError { connection_id, error, .. } => {
                self.handle_dial_error(connection_id, &error);
            }
            SwarmEvent::NewListenAddr { .. }
            | SwarmEvent::ExpiredListenAddr { .. }
            | SwarmEvent::ExternalAddrConfirmed { .. }
            | SwarmEvent::ExternalAddrExpired { .. } => {
                self.consider_serving();
                self.events.push_back(NodeEvent::AddressesChanged);
            }
            SwarmEvent::ListenerClosed { listener_id, reason, .. } if self.is_behind_relay(listener_id) => {
                self.handle_reservation_ended(listener_id, reason);
            }
            SwarmEvent::ListenerClosed { listener_id, reason, .. } => {
                if let Some(address) = self.listeners.handle_closed(listener_id) {
                    let error = reason.err().map_or("the listener ended".into(), |error| error.to_string());
                    self.events.push_back(NodeEvent::ListenerFailed { address, error });
                }
                self.events.push_back(NodeEvent::AddressesChanged);
            }
            SwarmEvent::ListenerError { listener_id, error } => {
                if let Some(address) = self.listeners.address_of(listener_id).cloned() {
                    self.events.push_back(NodeEvent::ListenerFailed { address, error: error.to_string() });
                }
            }
            _ => {}
        }
    }

    fn handle_established(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint, first: bool) {
        let now = Instant::now();
        let mut connection = ConnectionInfo::new(id, peer, endpoint, now);
        if self.is_probe(&connection) {
            self.swarm.close_connection(id);
            return;
        }
        self.find_relay(&mut connection);
        connection.proxied = self.dialer.is_proxied()
            && connection.direction == Direction::Outbound
            && connection.transport.is_some_and(TransportName::is_tcp);
        let remote = connection.remote.clone();
        self.handle_contact_dialled(id, true);
        if !self.dialer.has(&peer) {
            tracing::debug!(%peer, connection = %id, %remote, "connected to a DHT node");
            self.discovery.contacts.insert(id, (peer, remote));
            return;
        }
        self.discovery.seeker.handle_connected(now, &peer);
        if let Some(dht) = self.swarm.behaviour_mut().dht.as_mut() {
            dht.stop_search(&peer);
        }
        if let Some(dial) = self.dials.remove(&id) {
            self.dialer.handle_dial_ended(&peer, dial.by_relay);
        }
        if connection.direction == Direction::Outbound && !connection.relayed {
            self.dialer.handle_success(now, &peer, &remote);
        }
        self.dialer.handle_connected(now, &peer);
        tracing::debug!(%peer, connection = %id, %remote, direction = ?connection.direction, "connected");
        self.hold_relay(&connection);
        // Perhaps it is here because the others are dead.
        self.doubt(&peer);
        self.connections.insert(connection);
        self.seek_tcp(peer);
        self.seek_better(peer);
        self.events.push_back(NodeEvent::PeerConnected { peer, connection: id, remote, first });
    }

    fn handle_closed(&mut self, peer: PeerId, id: ConnectionId, last: bool) {
        if self.discovery.contacts.remove(&id).is_some() {
            return;
        }
        let now = Instant::now();
        if let Some(connection) = self.connections.remove(&peer, id) {
            if !connection.relayed && self.dialer.knows(&peer, &connection.remote) {
                self.dialer.handle_success(now, &peer, &connection.remote);
            }
            if last && now.duration_since(connection.established) < STABLE_AFTER {
                self.problems.handle_thrown_out(peer);
            }
            self.seek_tcp(peer);
            self.seek_better(peer);
            self.handle_closed_for_relays(peer, id, last);
            self.seek_one_to_keep(&peer, now);
            self.events.push_back(NodeEvent::ConnectionClosed { peer, connection: id });
        }
        if last {
            self.dialer.handle_disconnected(now, &peer);
            self.discovery.seeker.handle_disconnected(now, &peer);
            self.events.push_back(NodeEvent::PeerDisconnected { peer });
        }
    }

    fn handle_dial_error(&mut self, id: ConnectionId, error: &DialError) {
        if self.handle_contact_dialled(id, false) {
            tracing::debug!(%error, "a bootstrap contact was not reached");
            return;
        }
        let Some(DialUnderWay { peer, by_relay, named }) = self.dials.remove(&id) else { return };
        self.dialer.handle_dial_ended(&peer, by_relay);
        // Why no relay leads there is the lesser news.
        if self.connections.best(&peer).is_none() && !(by_relay && self.problems.of(&peer).is_some()) {
            self.problems.handle_dial_error(peer, error);
        }
        match error {
            DialError::WrongPeerId { address, .. } | DialError::LocalPeerId { address } => {
                let bare = address::without_peer(address, &peer);
                let known = named.iter().find(|(address, _)| bare.as_ref() == Ok(address)).map(|(_, name)| name);
                if self.dialer.handle_stranger(&peer, known.unwrap_or(address)) {
                    let address = bare.as_ref().unwrap_or(address);
                    tracing::warn!(%peer, %address, "another node answers at this peer's address");
                }
            }
            error => tracing::debug!(%peer, %error, "dial failed"),
        }
    }

    fn handle_behaviour(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Streams(event) => self.handle_stream(event),
            BehaviourEvent::Identify(identify::Event::Received { connection_id, peer_id, info }) => {
                if let Some(connection) = self.connections.get_mut(&peer_id, connection_id) {
                    connection.observed = Some(info.observed_addr.clone());
                }
                self.handle_dht_identify(&peer_id, &info.protocols, &info.listen_addrs);
                self.handle_identify(peer_id, connection_id, &info.listen_addrs);
                self.handle_kind(peer_id, connection_id, PeerKind::of(&info.protocols));
                self.handle_relay_offer(peer_id, connection_id, &info.protocols);
            }
            BehaviourEvent::Ping(ping::Event { peer, connection, result }) => match result {
                Ok(rtt) => {
                    if let Some(connection) = self.connections.get_mut(&peer, connection) {
                        connection.handle_pong(rtt);
                        let id = connection.id;
                        self.handle_heard(&peer, id);
                        self.problems.clear(&peer);
                        self.relaying.auto.set_rtt(&peer, rtt);
                    }
                }
                Err(ping::Failure::Unsupported) => {}
                // A stream that the peer refuses says nothing of the connection: Hyprspace takes pings on two of ours only.
                Err(ping::Failure::Other { error }) if self.connections.forgives(&peer, connection) => {
                    tracing::debug!(%peer, %connection, %error, "a ping came to nothing");
                }
                Err(error) => {
                    tracing::debug!(%peer, %connection, %error, "closing a connection that does not answer pings");
                    self.swarm.close_connection(connection);
                }
            },
            BehaviourEvent::Dht(event) => self.handle_dht(event),
            BehaviourEvent::RelayClient(event) => self.handle_relay_client(&event),
            BehaviourEvent::Autonat(event) => self.handle_autonat(event),
            BehaviourEvent::Dcutr(dcutr::Event { remote_peer_id: peer, result }) => match result {
                Ok(connection) => tracing::info!(%peer, %connection, "a direct connection through translators"),
                Err(error) => tracing::debug!(%peer, %error, "no direct connection through translators"),
            },
            BehaviourEvent::Identify(_) => {}
            BehaviourEvent::Gate(never) | BehaviourEvent::Limits(never) => match never {},
        }
    }

    /// What a peer says its addresses are. One of them that is exactly where an inbound connection comes from is proven:
    /// the peer dials from the port it listens on.
    fn handle_identify(&mut self, peer: PeerId, connection: ConnectionId, addresses: &[Multiaddr]) {
        let now = Instant::now();
        for address in addresses.iter().take(KNOWN_ADDRESSES_PER_PEER_MAX) {
            if self.policy.check(address).is_ok() {
                self.dialer.add_address(now, &peer, address, Source::Identify);
            }
        }
        let Some(connection) = self.connections.get_mut(&peer, connection) else { return };
        connection.confirm();
        self.problems.clear(&peer);
        if connection.direction == Direction::Inbound && self.dialer.knows(&peer, &connection.remote) {
            self.dialer.handle_success(now, &peer, &connection.remote);
        }
    }

    fn handle_kind(&mut self, peer: PeerId, connection: ConnectionId, kind: Option<PeerKind>) {
        let Some(connection) = self.connections.get_mut(&peer, connection) else { return };
        connection.kind = kind;
        self.seek_tcp(peer);
        if let Some(kind) = self.connections.kind(&peer) {
            self.events.push_back(NodeEvent::Identified { peer, kind });
        }
    }

    fn seek_tcp(&mut self, peer: PeerId) {
        self.dialer.seek_tcp(Instant::now(), &peer, self.connections.lacks_tcp(&peer));
    }

    fn handle_stream(&mut self, event: StreamEvent) {
        match event {
            StreamEvent::Inbound { peer, connection, protocol, stream } => {
                if protocol == HOP {
                    self.relaying.hop.handle_inbound(peer, connection, stream);
                } else if protocol == exchange::PROTOCOL {
                    self.exchanges.handle_inbound(peer, connection, stream);
                } else {
                    let stream = Box::new(stream);
                    self.events.push_back(NodeEvent::StreamInbound { peer, connection, protocol, stream });
                }
            }
            StreamEvent::Opened { id, protocol, stream } => {
                tracing::trace!(%protocol, "stream opened");
                if self.handle_probe_ended(id, None) {
                    drop(stream);
                } else if self.relaying.hop.has_opening(id) {
                    self.relaying.hop.handle_opened(id, Ok(stream));
                } else if self.exchanges.has_opening(id) {
                    self.exchanges.handle_opened(id, Ok(stream));
                } else {
                    self.events.push_back(NodeEvent::StreamOpened { id, result: Ok((protocol, Box::new(stream))) });
                }
            }
            StreamEvent::OpenFailed { id, error } if self.handle_probe_ended(id, Some(&error)) => {}
            StreamEvent::OpenFailed { id, error } if self.relaying.hop.has_opening(id) => {
                self.relaying.hop.handle_opened(id, Err(error));
            }
            StreamEvent::OpenFailed { id, error } if self.exchanges.has_opening(id) => {
                self.exchanges.handle_opened(id, Err(error));
            }
            StreamEvent::OpenFailed { id, error } => {
                self.events.push_back(NodeEvent::StreamOpened { id, result: Err(error) });
            }
        }
    }

    pub(super) fn handle_exchange(&mut self, progress: Progress) {
        match progress {
            Progress::Asked { peer, token, question } => {
                self.events.push_back(NodeEvent::OfferReceived { peer, token, message: question });
            }
            Progress::Answered { peer, id, result } => {
                self.events.push_back(NodeEvent::OfferAnswered { peer, id, result });
            }
            Progress::Failed { peer, error } => tracing::debug!(%peer, %error, "an exchange the peer began failed"),
            Progress::Done => {}
        }
    }
}
