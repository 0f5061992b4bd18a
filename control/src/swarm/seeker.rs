//! Whom to look for, and when, beyond the addresses we know: a state machine without sockets, clock or randomness of its
//! own. What a search is, the DHT and the delegated routers together, is not decided here.
//!
//! A configured peer that is not connected is looked for after a second (its known addresses get that long) and then
//! with doubling, jittered pauses up to a minute; up to ten seconds as long as nobody at all is connected. At most
//! [`SEARCHES_MAX`] searches run at once; whoever waited longest is next.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use libp2p::PeerId;
use ringlane_shared::limits::SEARCHES_MAX;

use super::dialer::{Jitter, STABLE_AFTER};

/// How long a peer's known addresses are tried before anybody is asked.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Longest pause between two searches for one peer.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// And as long as no peer is connected.
const PAUSE_ALONE_MAX: Duration = Duration::from_secs(10);

/// The searches of one node.
pub(super) struct Seeker {
    peers: BTreeMap<PeerId, Sought>,
    jitter: Jitter,
}

struct Sought {
    connected_since: Option<Instant>,
    next: Instant,
    /// Searches since the last connection that lasted.
    in_vain: u32,
    /// Sources that have yet to end the search under way.
    asked: usize,
}

impl Seeker {
    /// Looks for these peers from `now` on. `seed` makes its jitter.
    pub(super) fn new(peers: impl IntoIterator<Item = PeerId>, seed: u64, now: Instant) -> Self {
        let sought = Sought { connected_since: None, next: now + PAUSE_MIN, in_vain: 0, asked: 0 };
        let peers = peers.into_iter().map(|peer| (peer, Sought { ..sought })).collect();
        Self { peers, jitter: Jitter::new(seed) }
    }

    /// The peer has a connection.
    pub(super) fn handle_connected(&mut self, now: Instant, peer: &PeerId) {
        if let Some(sought) = self.peers.get_mut(peer) {
            sought.connected_since.get_or_insert(now);
        }
    }

    /// The peer's last connection is gone.
    pub(super) fn handle_disconnected(&mut self, now: Instant, peer: &PeerId) {
        let Some(sought) = self.peers.get_mut(peer) else { return };
        let Some(since) = sought.connected_since.take() else { return };
        if now.duration_since(since) >= STABLE_AFTER {
            sought.in_vain = 0;
            sought.next = now + PAUSE_MIN;
        }
    }

    /// A source has ended its part of a search ordered by [`Self::poll_search`].
    pub(super) fn handle_ended(&mut self, peer: &PeerId) {
        if let Some(sought) = self.peers.get_mut(peer) {
            sought.asked = sought.asked.saturating_sub(1);
        }
    }

    /// How many sources were asked by the search for `peer` that has just been ordered.
    pub(super) fn handle_started(&mut self, peer: &PeerId, sources: usize) {
        if let Some(sought) = self.peers.get_mut(peer) {
            sought.asked = sources;
        }
    }

    /// Everybody who is missing is to be looked for at once.
    pub(super) fn seek_all(&mut self, now: Instant) {
        for sought in self.peers.values_mut() {
            (sought.next, sought.in_vain) = (now, 0);
        }
    }

    /// Whether there are peers and none is connected.
    pub(super) fn is_alone(&self) -> bool {
        !self.peers.is_empty() && self.peers.values().all(|sought| sought.connected_since.is_none())
    }

    /// The next peer to look for; the caller says with [`Self::handle_started`] how many sources it asks.
    pub(super) fn poll_search(&mut self, now: Instant) -> Option<PeerId> {
        if self.is_busy() {
            return None;
        }
        let longest = if self.is_alone() { PAUSE_ALONE_MAX } else { PAUSE_MAX };
        let due = self.peers.iter_mut().filter(|(_, sought)| sought.is_due(now));
        let (&peer, sought) = due.min_by_key(|(_, sought)| sought.next)?;
        let pause = PAUSE_MIN.saturating_mul(2 << sought.in_vain.min(16)).min(longest);
        sought.in_vain = sought.in_vain.saturating_add(1);
        sought.next = now + self.jitter.around(pause);
        Some(peer)
    }

    /// When [`Self::poll_search`] should be asked again.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        if self.is_busy() {
            return None;
        }
        self.peers.values().filter(|sought| sought.is_waiting()).map(|sought| sought.next).min()
    }

    /// Looks for nobody any more.
    pub(super) fn stop(&mut self) {
        self.peers.clear();
    }

    fn is_busy(&self) -> bool {
        self.peers.values().filter(|sought| sought.asked > 0).count() >= SEARCHES_MAX
    }
}

impl Sought {
    fn is_waiting(&self) -> bool {
        self.connected_since.is_none() && self.asked == 0
    }

    fn is_due(&self, now: Instant) -> bool {
        self.is_waiting() && self.next <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(count: usize) -> Vec<PeerId> {
        (0..count).map(|_| PeerId::random()).collect()
    }

    /// The next search, which finds nothing at once.
    fn next_search(seeker: &mut Seeker) -> Instant {
        let at = seeker.poll_timeout().unwrap();
        let peer = seeker.poll_search(at).unwrap();
        seeker.handle_started(&peer, 1);
        seeker.handle_ended(&peer);
        at
    }

    #[test]
    fn a_missing_peer_is_looked_for_after_a_second_and_then_ever_more_rarely() {
        let start = Instant::now();
        let ids = peers(2);
        let mut seeker = Seeker::new(ids.clone(), 1, start);
        seeker.handle_connected(start, &ids[0]);
        let times: Vec<_> = (0..12).map(|_| next_search(&mut seeker)).collect();
        assert_eq!(times[0], start + PAUSE_MIN);
        let pauses: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(pauses[0] <= 2 * PAUSE_MIN && pauses.is_sorted_by(|a, b| *a <= b.mul_f64(1.4)), "{pauses:?}");
        assert!(pauses[11 - 1] <= PAUSE_MAX && pauses[10] >= PAUSE_MAX.mul_f64(0.75), "{pauses:?}");
    }

    #[test]
    fn a_node_that_is_alone_looks_more_often() {
        let start = Instant::now();
        let mut seeker = Seeker::new(peers(1), 1, start);
        let times: Vec<_> = (0..20).map(|_| next_search(&mut seeker)).collect();
        assert!(seeker.is_alone());
        assert!(times.windows(2).all(|pair| pair[1] - pair[0] <= PAUSE_ALONE_MAX));
    }

    #[test]
    fn searches_at_once_are_bounded_and_whoever_waited_longest_is_next() {
        let start = Instant::now();
        let ids = peers(3 * SEARCHES_MAX);
        let mut seeker = Seeker::new(ids.clone(), 1, start);
        let now = start + PAUSE_MIN;
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..3 {
            let mut batch = Vec::new();
            while let Some(peer) = seeker.poll_search(now) {
                seeker.handle_started(&peer, 2);
                batch.push(peer);
            }
            assert_eq!(batch.len(), SEARCHES_MAX);
            assert_eq!(seeker.poll_timeout(), None, "busy");
            for peer in &batch {
                seeker.handle_ended(peer);
                assert_eq!(seeker.poll_search(now), None, "a search ends with its last source");
            }
            batch.iter().for_each(|peer| seeker.handle_ended(peer));
            seen.extend(batch);
        }
        assert_eq!(seen.len(), ids.len(), "everybody had a turn");
    }

    #[test]
    fn the_connected_are_not_looked_for_and_the_lost_soon_are() {
        let start = Instant::now();
        let ids = peers(1);
        let mut seeker = Seeker::new(ids.clone(), 1, start);
        (0..9).for_each(|_| {
            next_search(&mut seeker);
        });
        seeker.handle_connected(start, &ids[0]);
        assert_eq!(seeker.poll_timeout(), None);
        let lost = start + STABLE_AFTER;
        seeker.handle_disconnected(lost, &ids[0]);
        assert_eq!(seeker.poll_timeout(), Some(lost + PAUSE_MIN));
        let later = next_search(&mut seeker);
        seeker.handle_connected(later, &ids[0]);
        let planned = seeker.peers[&ids[0]].next;
        seeker.handle_disconnected(later, &ids[0]);
        assert_eq!(seeker.poll_timeout(), Some(planned), "one that throws us out is not hunted");
        seeker.seek_all(later);
        assert_eq!(seeker.poll_timeout(), Some(later));
    }
}
