//! What the service network wants, and what it is given.

use ipnet::IpNet;
use libp2p::{Stream, StreamProtocol};
use ringlane_shared::config::Settings;
use ringlane_shared::id::PeerId;
use ringlane_shared::identity::{builtin_ipv6, services_of};
use ringlane_shared::limits::SERVICE_STREAMS_PER_PEER_MAX;
use ringlane_shared::plane::QueueFull;
use ringlane_shared::wire::service::{SERVICE_PROTOCOL, ServiceReply};

use super::{Control, ControlError};
use crate::netlink::Netlink;
use crate::services::{AskError, ConnectionKey, Far, ServiceIntent, ServiceNetwork};
use crate::swarm::{Accepted, InboundStream, OpenError};

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
                let settings = self.settings.peers.get(peer.position());
                let connection = settings.and_then(|peer| self.node.best_connection(&peer.id)).map(|best| best.id);
                match connection {
                    Some(connection) => {
                        let opening = self.node.open_stream(connection, vec![StreamProtocol::new(SERVICE_PROTOCOL)]);
                        self.service_streams.insert(opening, key);
                    }
                    None => self.services.handle_stream(key, Err(AskError::NotReached)),
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
    pub(super) fn handle_service_stream(&mut self, peer: &PeerId, stream: Box<InboundStream>) {
        if let Some(index) = self.coordinator.index_of(peer) {
            self.services.handle_inbound(index, stream);
        }
    }

    /// A stream to a peer's service is open, or cannot be opened.
    pub(super) fn handle_service_opened(
        &mut self,
        key: ConnectionKey,
        opened: Result<(StreamProtocol, Box<Stream>), OpenError>,
    ) {
        let stream = match opened {
            Ok((_, stream)) => Ok(stream as Far),
            Err(OpenError::TimedOut) => Err(AskError::TimedOut),
            Err(OpenError::Unsupported) => Err(AskError::Refused(ServiceReply::Unknown)),
            Err(_) => Err(AskError::NotReached),
        };
        self.services.handle_stream(key, stream);
    }
}
