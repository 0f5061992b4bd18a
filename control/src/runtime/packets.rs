//! Packets on libp2p streams: which peers they can reach, and opening what they need.

use std::time::Instant;

use libp2p::StreamProtocol;
use libp2p::swarm::ConnectionId;
use ringlane_shared::id::{PeerId, PeerIndex};
use ringlane_shared::plane::{CarrierChoice, StreamForm};
use ringlane_shared::wire::packets::Framing;
use tracing::info;

use super::Control;
use crate::packets::{PacketProtocol, PacketsEvent};
use crate::swarm::{InboundStream, PeerKind, Way};

impl Control {
    /// A peer has said what it is: packets can reach it.
    pub(super) fn handle_identified(&mut self, id: &PeerId, kind: PeerKind) {
        let Some(peer) = self.coordinator.index_of(id) else { return };
        if self.packets.kind(peer) != Some(kind) {
            match kind {
                PeerKind::Hyprspace => info!(peer = self.name(peer), "a Hyprspace node: packets travel by stream"),
                PeerKind::Ringlane => info!(peer = self.name(peer), "packets travel by stream while there is no lane"),
            }
        }
        self.packets.handle_identified(peer, kind);
        let form = match kind {
            PeerKind::Hyprspace => StreamForm::Whole,
            PeerKind::Ringlane => StreamForm::Offloaded,
        };
        self.coordinator.set_stream(peer, Some(form));
    }

    /// The peer's last connection is gone.
    pub(super) fn end_packet_streams(&mut self, peer: PeerIndex) {
        self.packets.handle_disconnected(peer);
        self.coordinator.set_stream(peer, None);
    }

    pub(super) fn handle_packet_stream(
        &mut self,
        id: &PeerId,
        connection: ConnectionId,
        protocol: &StreamProtocol,
        stream: Box<InboundStream>,
    ) {
        let Some(framing) = PacketProtocol::of(protocol).map(PacketProtocol::framing) else { return };
        let quality = self.node.quality(id, connection, framing == Framing::Hyprspace);
        if let (Some(peer), Some(quality)) = (self.coordinator.index_of(id), quality) {
            self.packets.handle_inbound(peer, Way { connection, quality }, protocol, stream);
        }
    }

    pub(super) fn handle_packets(&mut self, event: PacketsEvent, now: Instant) {
        let Some(settings) = self.settings.peers.get(event.peer().position()) else { return };
        let protocols = match event {
            PacketsEvent::OpenStream { protocols, .. } => protocols,
            PacketsEvent::Retired { connection, .. } => return self.node.retire_connection(&settings.id, connection),
            PacketsEvent::Drained { connection, .. } => return self.node.close_drained(&settings.id, connection),
            // The others may have gone the same way, and one of them is to take its place.
            PacketsEvent::Doubt { .. } => return self.node.doubt(&settings.id),
        };
        let peer = event.peer();
        match self.node.packet_way(&settings.id) {
            Some(way) => {
                if self.packets.wants(peer, way) {
                    let protocols = protocols.iter().map(|protocol| protocol.stream_protocol()).collect();
                    let id = self.node.open_stream(way.connection, protocols);
                    self.packets.handle_opening(peer, id, way);
                    self.node.doubt_connection(&settings.id, way.connection);
                }
            }
            None => self.packets.handle_no_way(peer, now),
        }
    }

    /// Where all lanes of a link are silent and libp2p reaches the peer, packets take that way until a lane is heard again.
    pub(super) fn consider_stream(&mut self, peer: PeerIndex) {
        let Some(settings) = self.settings.peers.get(peer.position()) else { return };
        let leads_there = self.node.is_answered_by(&settings.id);
        self.coordinator.set_stream_preferred(peer, leads_there);
    }

    /// Why there are to be no lanes with a peer, if so.
    pub(super) fn stream_only(&self, peer: PeerIndex) -> Option<&'static str> {
        let settings = self.settings.peers.get(peer.position())?;
        if settings.carrier.unwrap_or(self.settings.dataplane.carrier) == CarrierChoice::Stream {
            return Some("carrier is \"stream\"");
        }
        (self.node.kind(&settings.id) == Some(PeerKind::Hyprspace)).then_some("it is a Hyprspace node")
    }
}
