//! Who may be reached through us, and which circuits there are: pure.
//!
//! Only configured peers come this far. Reservations last an hour and end with the connection they were made on, as that is
//! the one their circuits arrive on.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use libp2p::PeerId;
use libp2p::swarm::ConnectionId;
use ringlane_shared::limits::{CIRCUITS_MAX, CIRCUITS_PER_PEER_MAX};
use ringlane_shared::path::relay::Load;
use ringlane_shared::wire::circuit::Status;

/// How long a reservation is good; Hyprspace's.
pub(super) const RESERVATION_LIFETIME: Duration = Duration::from_secs(3600);

/// Names one circuit; never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct CircuitId(u64);

/// A peer that may be reached through us.
#[derive(Clone, Copy, Debug)]
struct Reservation {
    connection: ConnectionId,
    expires: Instant,
}

/// The books of a relay.
#[derive(Default)]
pub(super) struct Book {
    /// At most one for each configured peer.
    reservations: BTreeMap<PeerId, Reservation>,
    /// From whom to whom.
    circuits: BTreeMap<CircuitId, (PeerId, PeerId)>,
    next: u64,
}

impl Book {
    /// A peer wants to be reachable by the connection it asks on.
    pub(super) fn reserve(&mut self, peer: PeerId, connection: ConnectionId, now: Instant) {
        self.reservations.insert(peer, Reservation { connection, expires: now + RESERVATION_LIFETIME });
    }

    /// `source` wants to reach `target`: the circuit, which counts from now on, and the connection to ask the target on.
    pub(super) fn connect(
        &mut self,
        source: PeerId,
        target: PeerId,
        now: Instant,
    ) -> Result<(CircuitId, ConnectionId), Status> {
        if source == target {
            return Err(Status::PermissionDenied);
        }
        let reserved = self.reservations.get(&target).filter(|reservation| now < reservation.expires);
        let connection = reserved.ok_or(Status::NoReservation)?.connection;
        if self.circuits.len() >= CIRCUITS_MAX || self.from(&source).max(self.to(&target)) >= CIRCUITS_PER_PEER_MAX {
            return Err(Status::ResourceLimit);
        }
        let id = CircuitId(self.next);
        self.next += 1;
        self.circuits.insert(id, (source, target));
        Ok((id, connection))
    }

    /// How much of all that there may be is taken, or of what may lead to this peer or from it, if that is more.
    pub(super) fn load(&self, peer: Option<&PeerId>) -> Load {
        let of_peer = peer.map_or(0, |peer| self.from(peer).max(self.to(peer)));
        let all = Load::of(self.circuits.len() as u64, CIRCUITS_MAX as u64);
        all.max(Load::of(of_peer as u64, CIRCUITS_PER_PEER_MAX as u64))
    }

    fn from(&self, peer: &PeerId) -> usize {
        self.circuits.values().filter(|(source, _)| source == peer).count()
    }

    fn to(&self, peer: &PeerId) -> usize {
        self.circuits.values().filter(|(_, target)| target == peer).count()
    }

    /// A circuit is no more, or has not come about.
    pub(super) fn end(&mut self, id: CircuitId) {
        self.circuits.remove(&id);
    }

    /// A connection is gone. Circuits notice for themselves.
    pub(super) fn handle_closed(&mut self, peer: &PeerId, connection: ConnectionId) {
        if self.reservations.get(peer).is_some_and(|reservation| reservation.connection == connection) {
            self.reservations.remove(peer);
        }
    }

    /// We are no relay any more. Circuits that stand go on.
    pub(super) fn forget_reservations(&mut self) {
        self.reservations.clear();
    }

    /// Who may be reached through us.
    pub(super) fn reserved(&self, now: Instant) -> impl Iterator<Item = PeerId> {
        self.reservations.iter().filter(move |(_, reservation)| now < reservation.expires).map(|(peer, _)| *peer)
    }

    /// The circuits there are: from whom to whom.
    pub(super) fn circuits(&self) -> impl Iterator<Item = (CircuitId, PeerId, PeerId)> {
        self.circuits.iter().map(|(id, (source, target))| (*id, *source, *target))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(id: usize) -> ConnectionId {
        ConnectionId::new_unchecked(id)
    }

    #[test]
    fn a_peer_is_reached_on_the_connection_it_reserved_on_until_that_closes_or_an_hour_is_over() {
        let (mut book, now) = (Book::default(), Instant::now());
        let [a, b] = [(); 2].map(|()| PeerId::random());
        assert_eq!(book.connect(a, b, now), Err(Status::NoReservation));
        book.reserve(b, connection(1), now);
        assert_eq!(book.connect(a, b, now).unwrap().1, connection(1));
        assert_eq!(book.connect(b, b, now), Err(Status::PermissionDenied));
        book.reserve(b, connection(2), now);
        assert_eq!(book.connect(a, b, now).unwrap().1, connection(2), "the newest counts");
        book.handle_closed(&b, connection(1));
        let last = now + RESERVATION_LIFETIME - Duration::from_millis(1);
        assert!(book.connect(a, b, last).is_ok());
        assert_eq!(book.connect(a, b, now + RESERVATION_LIFETIME), Err(Status::NoReservation));
        book.handle_closed(&b, connection(2));
        assert_eq!(book.connect(a, b, now), Err(Status::NoReservation));
        assert_eq!((book.reserved(now).count(), book.circuits().count()), (0, 3), "circuits go on");
    }

    #[test]
    fn circuits_are_bounded_by_source_by_target_and_in_total_and_their_places_come_back() {
        let (mut book, now) = (Book::default(), Instant::now());
        let peers: Vec<PeerId> = (0..40).map(|_| PeerId::random()).collect();
        peers.iter().for_each(|peer| book.reserve(*peer, connection(1), now));
        let mut open = Vec::new();
        for _ in 0..CIRCUITS_PER_PEER_MAX {
            open.push(book.connect(peers[0], peers[1], now).unwrap().0);
        }
        assert_eq!(book.connect(peers[0], peers[2], now), Err(Status::ResourceLimit));
        assert_eq!((book.load(Some(&peers[1])), book.load(None)), (Load::FULL, Load::of(64, 512)));
        assert_eq!(book.load(Some(&peers[0])), Load::FULL, "all of them are from it");
        assert_eq!(book.load(Some(&peers[2])), Load::of(64, 512), "it has none of them");
        assert_eq!(book.connect(peers[2], peers[1], now), Err(Status::ResourceLimit));
        assert!(book.connect(peers[2], peers[3], now).is_ok());
        open.drain(..).for_each(|id| book.end(id));
        let taken = (0..CIRCUITS_MAX).filter(|i| {
            let (from, to) = (peers[i % 20], peers[20 + i % 20]);
            book.connect(from, to, now).is_ok()
        });
        assert_eq!(taken.count(), CIRCUITS_MAX - 1);
        assert_eq!(book.connect(peers[0], peers[1], now), Err(Status::ResourceLimit));
        assert_eq!(book.load(None), Load::FULL);
    }
}
