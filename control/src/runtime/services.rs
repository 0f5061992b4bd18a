//! What the service network wants, and what it is given.

use ipnet::IpNet;
use libp2p::{Stream, StreamProtocol};
use ringlane_shared::config::Settings;
use ringlane_shared::id::{PeerId, PeerIndex};
use ringlane_shared::identity::{builtin_ipv6, services_of};
use ringlane_shared::limits::SERVICE_STREAMS_PER_PEER_MAX;
use ringlane_shared::plane::QueueFull;
use ringlane_shared::wire::service::{SERVICE_PROTOCOL, ServiceReply};

use super::{Control, ControlError};
use crate::netlink::Netlink;
use crate::services::{AskError, ConnectionKey, Far, PeerStream, ServiceIntent, ServiceNetwork};
use crate::swarm::{Accepted, ConnectionId, InboundStream, OpenError};

/// A stream to a peer's service that is being opened.
#[derive(Debug)]
pub(super) struct ServiceOpening {
    key: ConnectionKey,
    peer: PeerIndex,
    connection: ConnectionId,
    /// Another connection has failed before this one. There is no third.
    is_second: bool,
}

/// The protocol as we accept it.
pub(super) fn accepted() -> Accepted {
    Accepted { name: StreamProtocol::new(SERVICE_PROTOCOL), inbound_per_peer_max: SERVICE_STREAMS_PER_PEER_MAX }
}

/// The service network of this configuration.
pub(super) fn network(settings: &Settings, id: &PeerId, random: fn(&mut [u8])) -> ServiceNetwork {
    let mut seed = [0; 8];
    random(&mut seed);
    let peers = settings.peers.iter().map(|peer| &peer.id);
    ServiceNetwork::new(id, peers, settings.services.clone(), u64::from_ne_bytes(seed))
}

/// Routes every node's services, our own too, into the tunnel.
pub(super) async fn install_routes(
    netlink: &Netlink,
    interface: u32,
    settings: &Settings,
    id: &PeerId,
) -> Result<Vec<IpNet>, ControlError> {
    let mut installed = Vec::new();
    for node in settings.peers.iter().map(|peer| &peer.id).chain([id]) {
        let prefix = IpNet::V6(services_of(node));
        if netlink.add_route(interface, prefix, Some(builtin_ipv6(id).into())).await? {
            installed.push(prefix);
        }
    }
    Ok(installed)
}

impl Control {
    pub(super) fn handle_services(&mut self, intent: ServiceIntent) {
        match intent {
            ServiceIntent::Open { peer, key } => {
                if !self.open_service_stream(peer, key, None) {
                    self.services.handle_stream(key, Err(AskError::NotReached));
                }
            }
            // All go to one worker, which keeps each connection's packets in order.
            ServiceIntent::Deliver(batch) => match self.workers.deliveries.first() {
                Some(deliveries) => {
                    if let Err(QueueFull(batch)) = deliveries.try_send(batch) {
                        self.services.handle_full(batch);
                    }
                }
                None => drop(batch),
            },
        }
    }

    /// A peer wants a service of ours.
    pub(super) fn handle_service_stream(&mut self, peer: &PeerId, on: ConnectionId, stream: Box<InboundStream>) {
        if let Some(index) = self.coordinator.index_of(peer) {
            let stream = PeerStream::new(stream, self.node.hold(peer, on));
            self.services.handle_inbound(index, Box::new(stream));
        }
    }

    /// Whether a stream is being opened: on the best connection, if that is another than the one that failed.
    fn open_service_stream(&mut self, peer: PeerIndex, key: ConnectionKey, failed: Option<ConnectionId>) -> bool {
        let settings = self.settings.peers.get(peer.position());
        let best = settings.and_then(|peer| self.node.best_connection(&peer.id)).map(|best| best.id);
        let Some(connection) = best.filter(|best| Some(*best) != failed) else { return false };
        let id = self.node.open_stream(connection, vec![StreamProtocol::new(SERVICE_PROTOCOL)]);
        self.service_streams.insert(id, ServiceOpening { key, peer, connection, is_second: failed.is_some() });
        true
    }

    /// A stream to a peer's service is open, or cannot be opened.
    pub(super) fn handle_service_opened(
        &mut self,
        opening: ServiceOpening,
        opened: Result<(StreamProtocol, Box<Stream>), OpenError>,
    ) {
        let ServiceOpening { key, peer, connection, is_second } = opening;
        // A connection that ends while a peer has another, as when both have dialled at once, is no client's business.
        let is_connection_lost = matches!(opened, Err(OpenError::Closed | OpenError::Io(_)));
        if is_connection_lost && !is_second && self.open_service_stream(peer, key, Some(connection)) {
            return;
        }
        let stream = match opened {
            Ok((_, stream)) => {
                let settings = self.settings.peers.get(peer.position());
                let hold = settings.and_then(|peer| self.node.hold(&peer.id, connection));
                Ok(Box::new(PeerStream::new(stream, hold)) as Far)
            }
            Err(OpenError::TimedOut) => Err(AskError::TimedOut),
            Err(OpenError::Unsupported) => Err(AskError::Refused(ServiceReply::Unknown)),
            Err(_) => Err(AskError::NotReached),
        };
        self.services.handle_stream(key, stream);
    }
}
