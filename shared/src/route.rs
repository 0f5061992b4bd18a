//! Longest-prefix match from an inner address to whatever stands behind it.

use std::net::IpAddr;

use ipnet::IpNet;

/// Maps prefixes to values; a lookup answers with the longest prefix that contains the address.
#[derive(Clone, Debug)]
pub struct RouteTable<V> {
    routes: Vec<(IpNet, V)>,
}

impl<V> Default for RouteTable<V> {
    fn default() -> Self {
        Self { routes: Vec::new() }
    }
}

impl<V> RouteTable<V> {
    /// Adds a route; returns the value it replaces, if the prefix was there.
    pub fn insert(&mut self, prefix: IpNet, value: V) -> Option<V> {
        self.routes.push((prefix.trunc(), value));
        None
    }

    /// The value of the longest prefix that contains `address`.
    pub fn lookup(&self, address: IpAddr) -> Option<&V> {
        self.routes.iter().filter(|(p, _)| p.contains(&address)).max_by_key(|(p, _)| p.prefix_len()).map(|(_, v)| v)
    }
}
