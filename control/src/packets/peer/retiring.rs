//! The streams of connections that are about to be closed: [`crate::packets::retire`] carried out.

use std::time::Instant;

use libp2p::swarm::ConnectionId;

use super::{OPEN_PAUSE_MIN, PeerStreams, RECENT};
use crate::packets::retire::{Left, Retirer};
use crate::packets::stream::PacketStream;

impl PeerStreams {
    /// A connection is about to be closed. Packets leave by another as soon as there is a stream, and the last that leave
    /// by this one say so; what lies idle ends at once.
    pub(in crate::packets) fn retire(&mut self, connection: ConnectionId, by: Retirer, now: Instant) {
        self.retiring.add(connection, by);
        let mut was_next = false;
        for stream in self.streams.iter_mut().filter(|stream| stream.connection == connection) {
            stream.retire(by);
            was_next |= self.next_sending == Some(stream.serial);
        }
        if was_next {
            self.next_sending = None;
            // Packets go on where a mark may say that they have left: the next change has one of its own.
            self.is_leaving = false;
        }
        let sending = self.sending_stream().filter(|stream| stream.is_retiring());
        let is_idle = self.queue.is_empty() && sending.is_some_and(|stream| stream.quiet_for(now) >= RECENT);
        if is_idle {
            self.leave_stream(now);
        } else if sending.is_some() || was_next {
            self.seek_other();
        }
    }

    /// Whether a connection is about to be closed.
    pub(in crate::packets) fn is_retired(&self, connection: ConnectionId) -> bool {
        self.retiring.by(connection).is_some()
    }

    fn seek_other(&mut self) {
        self.open_at = None;
        self.open_pause = OPEN_PAUSE_MIN;
        self.seeks_better = true;
    }

    pub(super) fn is_sending_retired(&self) -> bool {
        self.sending_stream().is_some_and(PacketStream::is_retiring)
    }

    /// Ends our halves of streams whose connection is about to be closed, but for that of the stream that packets leave by.
    pub(super) fn close_retired(&mut self, now: Instant) {
        let sending = self.sending;
        let streams = self.streams.iter_mut().filter(|stream| stream.is_retiring() && stream.ends_with_retirement());
        streams.filter(|stream| sending != Some(stream.serial)).for_each(|stream| stream.close(now));
    }

    /// A retired connection of ours on which all has arrived.
    pub(super) fn poll_drained(&mut self, now: Instant) -> Option<ConnectionId> {
        let streams = &self.streams;
        self.retiring.poll(now, |connection| {
            let of = streams.iter().filter(|stream| stream.connection == connection);
            of.fold(Left::Nothing, |left, stream| match (left, stream.silent_since()) {
                (Left::Streams, _) | (_, None) => Left::Streams,
                (Left::SilentSince(other), Some(since)) => Left::SilentSince(other.max(since)),
                (Left::Nothing, Some(since)) => Left::SilentSince(since),
            })
        })
    }
}
