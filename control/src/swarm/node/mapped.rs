//! Addresses of ours that a router outside maps to our listeners.

use libp2p::Multiaddr;

use super::{Node, NodeEvent};

impl Node {
    /// Makes exactly these known to whoever asks where we are: by identify, and in our signed record.
    pub fn set_mapped_addresses(&mut self, addresses: Vec<Multiaddr>) {
        if addresses == self.mapped {
            return;
        }
        for gone in self.mapped.iter().filter(|address| !addresses.contains(address)) {
            self.swarm.remove_external_address(gone);
        }
        for new in addresses.iter().filter(|address| !self.mapped.contains(address)) {
            self.swarm.add_external_address(new.clone());
        }
        self.mapped = addresses;
        self.events.push_back(NodeEvent::AddressesChanged);
    }

    /// Whether [`Node::set_listen_addresses`] listens at such an address.
    pub fn may_listen(&self, address: &Multiaddr) -> bool {
        !self.policy.is_beyond_swarm_key(address)
    }
}
