//! What peers told of others by Hyprspace's peer exchange, which nobody signs: pure.
//!
//! Each teller has a little room of its own for each peer, so that a liar pushes out only what it said itself; and what
//! nobody repeats is forgotten, unless it has proven right, which is the dialer's to know.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use libp2p::{Multiaddr, PeerId};
use ringlane_shared::limits::{PEX_ADDRESSES_PER_TELLER_MAX, PEX_TELLERS_PER_PEER_MAX};

/// For how long something told is tried.
const HEARSAY_LIFETIME: Duration = Duration::from_secs(600);

/// What is known of each peer from each teller.
#[derive(Default)]
pub(super) struct Hearsay {
    told: BTreeMap<PeerId, BTreeMap<PeerId, Vec<Rumour>>>,
}

struct Rumour {
    address: Multiaddr,
    until: Instant,
}

impl Hearsay {
    /// `teller` said that `peer` is at `address`. Returns whether that is to be tried, and an address that has to make
    /// room for it.
    pub(super) fn hear(
        &mut self,
        now: Instant,
        teller: PeerId,
        peer: PeerId,
        address: &Multiaddr,
    ) -> (bool, Option<Multiaddr>) {
        let tellers = self.told.entry(peer).or_default();
        if !tellers.contains_key(&teller) && tellers.len() >= PEX_TELLERS_PER_PEER_MAX {
            return (false, None);
        }
        let told = tellers.entry(teller).or_default();
        let until = now + HEARSAY_LIFETIME;
        if let Some(known) = told.iter_mut().find(|rumour| rumour.address == *address) {
            known.until = until;
            return (true, None);
        }
        let forgotten = (told.len() >= PEX_ADDRESSES_PER_TELLER_MAX).then(|| told.remove(0).address);
        told.push(Rumour { address: address.clone(), until });
        (true, forgotten.filter(|address| !self.is_told(&peer, address)))
    }

    /// What nobody has said for long.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<(PeerId, Multiaddr)> {
        let mut gone = Vec::new();
        for (peer, tellers) in &mut self.told {
            for told in tellers.values_mut() {
                gone.extend(told.extract_if(.., |rumour| rumour.until <= now).map(|rumour| (*peer, rumour.address)));
            }
            tellers.retain(|_, told| !told.is_empty());
        }
        self.told.retain(|_, tellers| !tellers.is_empty());
        gone.retain(|(peer, address)| !self.is_told(peer, address));
        gone
    }

    /// When [`Self::expire`] has something to do.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        let rumours = self.told.values().flat_map(BTreeMap::values).flatten();
        rumours.map(|rumour| rumour.until).min()
    }

    /// How many addresses of all peers are known from it.
    pub(super) fn count(&self) -> usize {
        self.told.values().flat_map(BTreeMap::values).map(Vec::len).sum()
    }

    fn is_told(&self, peer: &PeerId, address: &Multiaddr) -> bool {
        let tellers = self.told.get(peer).into_iter().flat_map(BTreeMap::values);
        tellers.flatten().any(|rumour| rumour.address == *address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: usize) -> Multiaddr {
        format!("/ip4/192.0.2.1/tcp/{port}").parse().unwrap()
    }

    #[test]
    fn a_liar_pushes_out_only_its_own_lies() {
        let (mut hearsay, now) = (Hearsay::default(), Instant::now());
        let [peer, honest, liar] = std::array::from_fn(|_| PeerId::random());
        assert_eq!(hearsay.hear(now, honest, peer, &address(1)), (true, None));
        for port in 2..2 + PEX_ADDRESSES_PER_TELLER_MAX {
            assert_eq!(hearsay.hear(now, liar, peer, &address(port)), (true, None));
        }
        assert_eq!(hearsay.hear(now, liar, peer, &address(1)), (true, Some(address(2))));
        assert_eq!(hearsay.hear(now, liar, peer, &address(100)), (true, Some(address(3))));
        for port in 4..4 + PEX_ADDRESSES_PER_TELLER_MAX {
            let (_, gone) = hearsay.hear(now, liar, peer, &address(1000 + port));
            assert_ne!(gone, Some(address(1)), "another told it");
        }
        assert_eq!(hearsay.count(), 1 + PEX_ADDRESSES_PER_TELLER_MAX);
        for _ in 0..PEX_TELLERS_PER_PEER_MAX {
            hearsay.hear(now, PeerId::random(), peer, &address(7));
        }
        assert_eq!(hearsay.told[&peer].len(), PEX_TELLERS_PER_PEER_MAX);
    }

    #[test]
    fn what_nobody_repeats_is_forgotten() {
        let (mut hearsay, now) = (Hearsay::default(), Instant::now());
        let [peer, a, b] = std::array::from_fn(|_| PeerId::random());
        hearsay.hear(now, a, peer, &address(1));
        hearsay.hear(now, a, peer, &address(2));
        let later = now + HEARSAY_LIFETIME / 2;
        hearsay.hear(later, b, peer, &address(2));
        assert_eq!(hearsay.next_expiry(), Some(now + HEARSAY_LIFETIME));
        assert_eq!(hearsay.expire(now + HEARSAY_LIFETIME), [(peer, address(1))]);
        assert_eq!(hearsay.expire(later + HEARSAY_LIFETIME), [(peer, address(2))]);
        assert!(hearsay.told.is_empty());
    }
}
