//! What was heard of configured peers, and for how long it holds: pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use libp2p::{Multiaddr, PeerId};
use ringlane_shared::limits::MDNS_ADDRESSES_MAX;

/// However long an address is said to hold, it holds no longer than this: Go's lifetime is a little less.
const LIFETIME_MAX: Duration = Duration::from_secs(3600);

/// What something heard means.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Change {
    /// A new address, for which another may have to make room.
    Learnt { forgotten: Option<Multiaddr> },
    /// A known address, said anew.
    Repeated,
    /// An address is gone.
    Lost,
    /// Nothing new.
    Nothing,
}

/// The addresses of each peer, the one heard longest ago first.
#[derive(Default)]
pub(super) struct Heard {
    peers: BTreeMap<PeerId, Vec<(Multiaddr, Instant)>>,
}

impl Heard {
    /// A configured peer is said to be at `address`, for so long; for no time if it is there no more.
    pub(super) fn hear(&mut self, now: Instant, peer: PeerId, address: &Multiaddr, lifetime: Duration) -> Change {
        let known = self.peers.entry(peer).or_default();
        let before = known.iter().position(|(heard, _)| heard == address).map(|at| known.remove(at));
        if lifetime.is_zero() {
            return if before.is_some() { Change::Lost } else { Change::Nothing };
        }
        let forgotten = (known.len() >= MDNS_ADDRESSES_MAX).then(|| known.remove(0).0);
        known.push((address.clone(), now + lifetime.min(LIFETIME_MAX)));
        if before.is_some() { Change::Repeated } else { Change::Learnt { forgotten } }
    }

    /// Whether the peer is said to be there already.
    pub(super) fn knows(&self, peer: &PeerId, address: &Multiaddr) -> bool {
        self.peers.get(peer).is_some_and(|known| known.iter().any(|(heard, _)| heard == address))
    }

    /// What does not hold any more.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<(PeerId, Multiaddr)> {
        let mut gone = Vec::new();
        for (peer, known) in &mut self.peers {
            gone.extend(known.extract_if(.., |(_, until)| *until <= now).map(|(address, _)| (*peer, address)));
        }
        self.peers.retain(|_, known| !known.is_empty());
        gone
    }

    /// When [`Self::expire`] has something to do.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.peers.values().flatten().map(|(_, until)| *until).min()
    }

    pub(super) fn count(&self) -> usize {
        self.peers.values().map(Vec::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFETIME: Duration = Duration::from_secs(120);

    fn address(port: usize) -> Multiaddr {
        format!("/ip4/192.0.2.1/tcp/{port}").parse().unwrap()
    }

    #[test]
    fn an_address_holds_until_it_is_taken_back_or_not_repeated() {
        let (mut heard, peer, start) = (Heard::default(), PeerId::random(), Instant::now());
        assert_eq!(heard.hear(start, peer, &address(1), Duration::ZERO), Change::Nothing);
        for port in [1, 2] {
            assert_eq!(heard.hear(start, peer, &address(port), LIFETIME), Change::Learnt { forgotten: None });
        }
        assert_eq!(heard.hear(start + LIFETIME / 2, peer, &address(1), LIFETIME), Change::Repeated);
        assert_eq!(heard.next_expiry(), Some(start + LIFETIME));
        assert_eq!(heard.expire(start + LIFETIME), [(peer, address(2))]);
        assert_eq!(heard.hear(start + LIFETIME, peer, &address(1), Duration::ZERO), Change::Lost);
        assert_eq!((heard.count(), heard.next_expiry()), (0, None));
    }

    #[test]
    fn a_neighbour_that_makes_up_addresses_and_lifetimes_is_bounded() {
        let (mut heard, peer, now) = (Heard::default(), PeerId::random(), Instant::now());
        for port in 1..=MDNS_ADDRESSES_MAX {
            heard.hear(now, peer, &address(port), Duration::MAX);
        }
        assert_eq!(heard.hear(now, peer, &address(99), LIFETIME), Change::Learnt { forgotten: Some(address(1)) });
        assert_eq!(heard.count(), MDNS_ADDRESSES_MAX);
        assert!(heard.knows(&peer, &address(99)) && !heard.knows(&peer, &address(1)));
        assert_eq!(heard.expire(now + LIFETIME_MAX).len(), MDNS_ADDRESSES_MAX);
    }
}
