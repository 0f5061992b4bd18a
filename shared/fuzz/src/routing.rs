//! What HTTP servers answer.

use ringlane_shared::id::PeerId;
use ringlane_shared::limits::ROUTING_ADDRESSES_MAX;
use ringlane_shared::wire::routing::{kubo_bootstrap, kubo_swarm_peers, peer_addresses};

/// The same bytes as each of the answers that are read; whether any gave an address.
pub fn routing(body: &[u8]) -> bool {
    let peer: PeerId = "12D3KooWP6VEGDDp6eiCSubLai8A9hoAWuFN9A2A5BysyaSbXtRN".parse().expect("this is a peer id");
    let found = peer_addresses(body, &peer);
    for (position, address) in found.iter().enumerate() {
        assert!(!found[..position].contains(address), "each once");
        let named = address.iter().last().is_some_and(|part| part.tag() == "p2p");
        assert!(!named || address.iter().count() > 1);
    }
    let (connected, bootstrap) = (kubo_swarm_peers(body, |_| true), kubo_bootstrap(body));
    let counts = [found.len(), connected.len(), bootstrap.len()];
    assert!(counts.iter().all(|count| *count <= ROUTING_ADDRESSES_MAX));
    counts.iter().any(|count| *count > 0)
}
