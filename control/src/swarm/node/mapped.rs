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

#[cfg(test)]
mod tests {
    use libp2p::autonat::v1::{Event, NatStatus};
    use libp2p::identity::Keypair;

    use super::*;
    use crate::swarm::NodeConfig;

    #[tokio::test]
    async fn what_a_router_maps_is_told_until_the_router_takes_it_back_whatever_peers_could_reach() {
        let mut node = Node::new(NodeConfig::new(Keypair::generate_ed25519(), Vec::new())).unwrap();
        let [mapped, found] = ["/ip4/203.0.113.1/tcp/8001", "/ip4/203.0.113.2/tcp/8001"].map(|at| at.parse().unwrap());
        node.set_mapped_addresses(vec![Multiaddr::clone(&mapped)]);
        node.swarm.add_external_address(found);
        let told = |node: &Node| node.swarm.external_addresses().cloned().collect::<Vec<_>>();
        assert_eq!(told(&node).len(), 2);
        node.handle_autonat(Event::StatusChanged { old: NatStatus::Unknown, new: NatStatus::Private });
        assert_eq!(told(&node), [mapped]);
        node.set_mapped_addresses(Vec::new());
        assert!(told(&node).is_empty());
    }
}
