//! The node's part of giving up connections that are too many: [`crate::swarm::connections`] carried out.

use std::time::Instant;

use libp2p::swarm::ConnectionId;
use ringlane_shared::id::PeerId;

use super::{Node, NodeEvent};

impl Node {
    /// The peer says that it is about to close a connection: nothing new is begun on it.
    pub fn retire_connection(&mut self, peer: &PeerId, connection: ConnectionId) {
        let now = Instant::now();
        self.connections.handle_retired(peer, connection, now);
        self.seek_one_to_keep(peer, now);
    }

    /// If all connections to the peer are about to be closed, another is looked for: the one that was kept has ended.
    pub(super) fn seek_one_to_keep(&mut self, peer: &PeerId, now: Instant) {
        if self.connections.are_all_closing(peer) {
            self.dialer.seek(now, peer, true);
        }
    }

    /// Nothing is under way any more on the streams of a connection that was told of by [`NodeEvent::ConnectionRetired`]:
    /// it is closed.
    pub fn close_drained(&mut self, peer: &PeerId, connection: ConnectionId) {
        if self.connections.handle_drained(peer, connection) {
            tracing::debug!(%peer, %connection, "closing a surplus connection");
            self.swarm.close_connection(connection);
        }
    }

    /// Whether anything was done.
    pub(super) fn poll_retiring(&mut self, now: Instant) -> bool {
        let surplus = self.connections.poll_surplus(now);
        for &connection in &surplus {
            if let Some(peer) = self.connections.all().find(|known| known.id == connection).map(|known| known.peer) {
                self.events.push_back(NodeEvent::ConnectionRetired { peer, connection });
            }
        }
        let overdue = self.connections.poll_overdue(now);
        for &connection in &overdue {
            tracing::debug!(%connection, "closing a surplus connection, whatever is under way on it");
            self.swarm.close_connection(connection);
        }
        !surplus.is_empty() || !overdue.is_empty()
    }
}
