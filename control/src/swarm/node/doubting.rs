//! The node's part of finding out whether connections are alive: [`crate::swarm::health`] carried out.
//!
//! A peer is asked by opening a stream of a protocol that nobody speaks. Its refusal is the answer: every libp2p node gives it
//! within a round trip, and it costs neither side anything that lasts.

use std::time::Instant;

use libp2p::StreamProtocol;
use libp2p::swarm::ConnectionId;
use ringlane_shared::id::PeerId;

use super::{Node, NodeEvent};
use crate::swarm::health::HealthNews;
use crate::swarm::streams::{OpenError, OpenId};

/// Nobody speaks it.
const PROBE: StreamProtocol = StreamProtocol::new("/ringlane/are-you-there/1");

impl Node {
    /// There is reason to think that the peer is not reached any more: it is asked on all of its connections. If one does not
    /// answer soon, others are dialled; each tells of itself by [`NodeEvent::ConnectionSuspect`] or
    /// [`NodeEvent::ConnectionHeard`].
    pub fn doubt(&mut self, peer: &PeerId) {
        let connections: Vec<_> = self.connections.of(peer).map(|connection| connection.id).collect();
        connections.into_iter().for_each(|connection| self.doubt_connection(peer, connection));
    }

    /// The same of one connection.
    pub fn doubt_connection(&mut self, peer: &PeerId, connection: ConnectionId) {
        let Some(known) = self.connections.get_mut(peer, connection) else { return };
        if known.health.doubt(Instant::now()) {
            let id = self.swarm.behaviour_mut().streams.open(connection, vec![PROBE]);
            self.probes.insert(id, (*peer, connection));
        }
    }

    /// Whether a connection of the peer's answers.
    pub fn is_answered_by(&self, peer: &PeerId) -> bool {
        self.connections.is_answered(peer)
    }

    /// A stream that was to be opened is, or could not be; whether it was only to see whether the peer is there.
    pub(super) fn handle_probe_ended(&mut self, id: OpenId, error: Option<&OpenError>) -> bool {
        let Some((peer, connection)) = self.probes.remove(&id) else { return false };
        match error {
            // A stream is broken off by the peer, or together with its connection, which is told of by itself.
            None | Some(OpenError::Unsupported | OpenError::Io(_)) => self.handle_heard(&peer, connection),
            Some(OpenError::TimedOut) => self.handle_unanswered(&peer, connection),
            Some(OpenError::Closed) => {
                if let Some(known) = self.connections.get_mut(&peer, connection) {
                    known.health.handle_unanswered();
                }
            }
        }
        true
    }

    /// The peer was heard on a connection.
    pub(super) fn handle_heard(&mut self, peer: &PeerId, connection: ConnectionId) {
        let Some(known) = self.connections.get_mut(peer, connection) else { return };
        if known.health.is_trusted() {
            return;
        }
        if known.health.handle_heard(Instant::now()) {
            tracing::debug!(%peer, %connection, "a connection that seemed dead answers");
        }
        self.seek_better(*peer);
        self.events.push_back(NodeEvent::ConnectionHeard { peer: *peer, connection });
    }

    /// Even a patient question has come to nothing. Where there is another connection this one goes.
    fn handle_unanswered(&mut self, peer: &PeerId, connection: ConnectionId) {
        let has_other =
            self.connections.best(peer).is_some_and(|best| best.id != connection && !best.health.is_suspect());
        let Some(known) = self.connections.get_mut(peer, connection) else { return };
        known.health.handle_unanswered();
        if has_other {
            tracing::debug!(%peer, %connection, "closing a connection that does not answer");
            self.swarm.close_connection(connection);
        } else {
            self.doubt_connection(peer, connection);
        }
    }

    /// Whether anything happened.
    pub(super) fn poll_doubts(&mut self, now: Instant) -> bool {
        let news = self.connections.poll_doubts(now);
        for &(peer, connection, news) in &news {
            match news {
                HealthNews::Late => {
                    if !self.connections.is_answered(&peer) {
                        self.dialer.seek(now, &peer, true);
                    }
                }
                HealthNews::Suspect => {
                    tracing::debug!(%peer, %connection, "a connection does not answer");
                    self.seek_better(peer);
                    self.events.push_back(NodeEvent::ConnectionSuspect { peer, connection });
                }
            }
        }
        !news.is_empty()
    }
}
