//! What libp2p says of links: connections and offers.

use std::time::Instant;

use ringlane_shared::id::PeerIndex;
use ringlane_shared::wire::offer::{Answer, Offer, RefusalReason};
use ringlane_shared::wire::service::SERVICE_PROTOCOL;
use tracing::{error, info, warn};

use super::{Control, body};
use crate::coordinator::{AskFailure, AskId};
use crate::swarm::NodeEvent;
use crate::udp_relay;

impl Control {
    pub(super) fn ask(&mut self, peer: PeerIndex, ask: AskId, offer: &Offer, now: Instant) {
        if let Some(reason) = self.stream_only(peer) {
            let failure = AskFailure::Exchange(reason.to_owned());
            self.coordinator.handle_answer(peer, ask, Err(failure), now);
            return;
        }
        let asked = match body(offer.to_message()) {
            Ok(message) => self.settings.peers.get(peer.position()).and_then(|to| self.node.exchange(to.id, message)),
            Err(error) => {
                error!(%error, "our own offer is not valid");
                None
            }
        };
        match asked {
            Some(exchange) => {
                self.asks.insert(exchange, (peer, ask));
            }
            None => self.coordinator.handle_answer(peer, ask, Err(AskFailure::NotConnected), now),
        }
    }

    pub(super) fn handle_node(&mut self, event: NodeEvent, now: Instant) {
        match event {
            NodeEvent::PeerConnected { peer, remote, first, .. } => {
                let Some(index) = self.coordinator.index_of(&peer) else { return };
                if first && !self.node.is_thrown_out_by(&peer) {
                    info!(peer = self.name(index), id = %peer, %remote, "connected");
                }
                self.packets.handle_connected(index, now);
                self.nat.look_soon(now);
                self.coordinator.handle_connected(index, now);
                self.consider_stream(index);
            }
            NodeEvent::PeerDisconnected { peer } => {
                let Some(index) = self.coordinator.index_of(&peer) else { return };
                if !self.node.is_thrown_out_by(&peer) {
                    info!(peer = self.name(index), id = %peer, "disconnected");
                }
                self.end_packet_streams(index);
                self.coordinator.handle_disconnected(index);
            }
            NodeEvent::OfferReceived { peer, token, message } => {
                let Some(index) = self.coordinator.index_of(&peer) else { return };
                if !self.offer_rates.take(index, now) {
                    self.offers_refused += 1;
                    if let Ok(message) = body(Answer::Refused(RefusalReason::Busy).to_message()) {
                        self.node.answer(token, message);
                    }
                    return;
                }
                match Offer::parse(&message) {
                    Ok(_) if self.stream_only(index).is_some() => {
                        if let Ok(message) = body(Answer::Refused(RefusalReason::Unsupported).to_message()) {
                            self.node.answer(token, message);
                        }
                    }
                    Ok(offer) => {
                        self.engine.set_candidates(index, &offer, now);
                        self.nat.handle_offer(index, &offer, now);
                        self.ends.handle_offer(index, &offer);
                        self.coordinator.handle_offer(index, offer, token, now);
                    }
                    Err(error) => {
                        warn!(peer = self.name(index), id = %peer, %error, "the peer's offer makes no sense");
                        if let Ok(message) = body(Answer::Refused(RefusalReason::Unsupported).to_message()) {
                            self.node.answer(token, message);
                        }
                    }
                }
            }
            NodeEvent::OfferAnswered { id, result, .. } => {
                let Some((peer, ask)) = self.asks.remove(&id) else { return };
                let answer = match result {
                    Ok(message) => Answer::parse(&message).map_err(|error| AskFailure::Exchange(error.to_string())),
                    Err(error) => Err(AskFailure::Exchange(error.to_string())),
                };
                if let Ok(Answer::Offer(theirs)) = &answer {
                    self.engine.set_candidates(peer, theirs, now);
                    self.nat.handle_offer(peer, theirs, now);
                    self.ends.handle_offer(peer, theirs);
                }
                self.coordinator.handle_answer(peer, ask, answer, now);
            }
            NodeEvent::ListenerFailed { address, error } => {
                warn!(%address, error, "a listener failed");
                self.plan_is_open = true;
            }
            NodeEvent::Identified { peer, kind } => self.handle_identified(&peer, kind),
            NodeEvent::StreamInbound { peer, connection, protocol, stream } => {
                if protocol == udp_relay::PROTOCOL {
                    self.handle_relay_stream(&peer, stream);
                } else if protocol.as_ref() == SERVICE_PROTOCOL {
                    self.handle_service_stream(&peer, connection, stream);
                } else {
                    self.handle_packet_stream(&peer, connection, &protocol, stream);
                }
            }
            NodeEvent::StreamOpened { id, result } => {
                if let Some(opening) = self.service_streams.remove(&id) {
                    self.handle_service_opened(opening, result);
                } else if self.udp_relay.has_opening(id) {
                    self.udp_relay.handle_opened(id, result.map(|(_, stream)| stream));
                } else if self.pings.has_opening(id) {
                    self.pings.handle_opened(id, result);
                } else if self.packets.has_opening(id) {
                    self.packets.handle_opened(id, result.map(|(protocol, stream)| (protocol, stream as _)));
                }
            }
            NodeEvent::ConnectionClosed { peer, connection } => {
                if let Some(index) = self.coordinator.index_of(&peer) {
                    self.packets.handle_connection_closed(index, connection, now);
                }
            }
            NodeEvent::ConnectionSuspect { peer, connection } => {
                if let Some(index) = self.coordinator.index_of(&peer) {
                    self.packets.handle_connection_suspect(index, connection, now);
                    self.coordinator.handle_suspicion(index, now);
                    self.consider_stream(index);
                }
            }
            NodeEvent::ConnectionHeard { peer, connection } => {
                if let Some(index) = self.coordinator.index_of(&peer) {
                    self.packets.handle_connection_heard(index, connection, now);
                    self.consider_stream(index);
                }
            }
            NodeEvent::ConnectionRetired { peer, connection } => match self.coordinator.index_of(&peer) {
                Some(index) => self.packets.handle_connection_retired(index, connection, now),
                None => self.node.close_drained(&peer, connection),
            },
            NodeEvent::AddressesChanged => {}
        }
    }
}
