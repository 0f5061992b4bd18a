//! Longest-prefix match from an inner address to whatever stands behind it.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

/// Maps prefixes to values; a lookup answers with the longest prefix that contains the address.
///
/// IPv4 and IPv6 are apart: an IPv4-mapped IPv6 address is an IPv6 address. Owner: control while it is built; workers
/// read it in a snapshot.
#[derive(Clone, Debug)]
pub struct RouteTable<V> {
    v4: PrefixMap<Ipv4Net, V>,
    v6: PrefixMap<Ipv6Net, V>,
}

impl<V> Default for RouteTable<V> {
    fn default() -> Self {
        Self { v4: PrefixMap::new(), v6: PrefixMap::new() }
    }
}

impl<V> RouteTable<V> {
    /// Adds a route, host bits of its prefix ignored; returns the value it replaces, if the prefix was there.
    pub fn insert(&mut self, prefix: IpNet, value: V) -> Option<V> {
        match prefix {
            IpNet::V4(prefix) => self.v4.insert(prefix.trunc(), value),
            IpNet::V6(prefix) => self.v6.insert(prefix.trunc(), value),
        }
    }

    /// Takes out the route of exactly this prefix and returns its value, if there is one.
    pub fn remove(&mut self, prefix: IpNet) -> Option<V> {
        match prefix {
            IpNet::V4(prefix) => self.v4.remove(&prefix.trunc()),
            IpNet::V6(prefix) => self.v6.remove(&prefix.trunc()),
        }
    }

    /// The value of the longest prefix that contains `address`. Allocates nothing.
    pub fn lookup(&self, address: IpAddr) -> Option<&V> {
        match address {
            IpAddr::V4(address) => self.v4.get_lpm(&Ipv4Net::from(address)).map(|(_, value)| value),
            IpAddr::V6(address) => self.v6.get_lpm(&Ipv6Net::from(address)).map(|(_, value)| value),
        }
    }

    /// All routes: IPv4 first, each in the order of their prefixes.
    pub fn iter(&self) -> impl Iterator<Item = (IpNet, &V)> {
        let v4 = self.v4.iter().map(|(prefix, value)| (IpNet::V4(prefix), value));
        v4.chain(self.v6.iter().map(|(prefix, value)| (IpNet::V6(prefix), value)))
    }

    /// How many routes there are.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Whether there is no route.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(prefix: &str) -> IpNet {
        prefix.parse().unwrap()
    }

    #[test]
    fn the_longest_prefix_wins_and_its_removal_uncovers_the_next() {
        let mut routes = RouteTable::default();
        for (value, prefix) in ["0.0.0.0/0", "10.0.0.0/8", "10.20.0.0/16", "10.20.30.40/32"].into_iter().enumerate() {
            assert_eq!(routes.insert(net(prefix), value), None);
        }
        let address = "10.20.30.40".parse().unwrap();
        for (value, prefix) in
            ["0.0.0.0/0", "10.0.0.0/8", "10.20.0.0/16", "10.20.30.40/32"].into_iter().enumerate().rev()
        {
            assert_eq!(routes.lookup(address), Some(&value));
            assert_eq!(routes.remove(net(prefix)), Some(value));
        }
        assert_eq!(routes.lookup(address), None);
        assert!(routes.is_empty());
    }

    #[test]
    fn the_families_are_apart_and_host_bits_do_not_count() {
        let mut routes = RouteTable::default();
        routes.insert(net("10.1.2.3/8"), 4);
        routes.insert(net("::/0"), 6);
        assert_eq!(routes.insert(net("10.9.9.9/8"), 5), Some(4));
        assert_eq!(routes.lookup("10.255.0.1".parse().unwrap()), Some(&5));
        assert_eq!(routes.lookup("192.0.2.1".parse().unwrap()), None);
        assert_eq!(routes.lookup("::ffff:10.0.0.1".parse().unwrap()), Some(&6));
        assert_eq!(routes.iter().collect::<Vec<_>>(), [(net("10.0.0.0/8"), &5), (net("::/0"), &6)]);
        assert_eq!(routes.len(), 2);
    }
}
