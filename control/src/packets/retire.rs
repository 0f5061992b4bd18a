//! Connections to one peer that are about to be closed because there are better ones: pure.
//!
//! One end decides which (see [`crate::swarm`]) and ends its halves of the packet streams, the last word of each being
//! [`Mark::Retire`](ringlane_shared::wire::packets::Mark); the other goes on by another connection and ends its halves too.
//! An end that has been read comes behind all that was sent. So when no stream is left, all has arrived; a stream that the
//! peer opened before it knew may still be on its way, and is waited for a little.

use std::time::{Duration, Instant};

use libp2p::swarm::ConnectionId;
use ringlane_shared::limits::{CONNECTIONS_PER_PEER_MAX, RETIRING_SETTLE_MS};

/// How long no stream may have come or carried anything.
const SETTLE: Duration = Duration::from_millis(RETIRING_SETTLE_MS);

/// Who closes a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Retirer {
    Us,
    Peer,
}

/// What is left on a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Left {
    /// Something is under way, or may be.
    Streams,
    /// Nothing has come since then.
    SilentSince(Instant),
    Nothing,
}

#[derive(Clone, Debug)]
struct Retired {
    connection: ConnectionId,
    by: Retirer,
    /// Since when nothing is left on it.
    empty_since: Option<Instant>,
    /// When it will have settled; `None` while something is under way, and once that was told.
    settled_at: Option<Instant>,
    is_told: bool,
}

/// The connections that are about to be closed.
#[derive(Clone, Debug, Default)]
pub(super) struct Retiring(Vec<Retired>);

impl Retiring {
    /// One more. The first word on a connection counts: it says who closes it.
    pub(super) fn add(&mut self, connection: ConnectionId, by: Retirer) {
        if self.by(connection).is_some() {
            return;
        }
        if self.0.len() >= CONNECTIONS_PER_PEER_MAX {
            self.0.remove(0);
        }
        self.0.push(Retired { connection, by, empty_since: None, settled_at: None, is_told: false });
    }

    /// A connection is closed.
    pub(super) fn remove(&mut self, connection: ConnectionId) {
        self.0.retain(|retired| retired.connection != connection);
    }

    /// Who closes a connection, if it is to be closed.
    pub(super) fn by(&self, connection: ConnectionId) -> Option<Retirer> {
        self.0.iter().find(|retired| retired.connection == connection).map(|retired| retired.by)
    }

    /// A connection of ours to close on which all has arrived, told once.
    pub(super) fn poll(&mut self, now: Instant, left: impl Fn(ConnectionId) -> Left) -> Option<ConnectionId> {
        let mut drained = None;
        for retired in self.0.iter_mut().filter(|retired| retired.by == Retirer::Us && !retired.is_told) {
            let since = match left(retired.connection) {
                Left::Streams => {
                    (retired.empty_since, retired.settled_at) = (None, None);
                    continue;
                }
                Left::SilentSince(since) => since.max(*retired.empty_since.get_or_insert(since)),
                Left::Nothing => *retired.empty_since.get_or_insert(now),
            };
            let settled_at = since + SETTLE;
            retired.settled_at = Some(settled_at);
            if settled_at <= now && drained.is_none() {
                retired.is_told = true;
                retired.settled_at = None;
                drained = Some(retired.connection);
            }
        }
        drained
    }

    /// When [`Self::poll`] should be asked again.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.0.iter().filter_map(|retired| retired.settled_at).min()
    }
}
