//! Where this node listens: what the configuration asks for, made concrete by the host's addresses. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;

use ringlane_shared::limits::LAN_NETWORKS_MAX;

use crate::netlink::HostAddress;
use crate::swarm::Segment;
use crate::swarm::address::{ip_of, is_overlay};

/// The addresses of the two planes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct ListenPlan {
    /// What libp2p listens on: no unspecified address among them.
    pub(crate) control: Vec<Multiaddr>,
    /// Where lanes listen: the same IP addresses, so that restricting one restricts the other.
    pub(crate) lanes: Vec<IpAddr>,
}

impl ListenPlan {
    /// Spells out `listen` for a host with these addresses. `interface` is our own TUN interface.
    ///
    /// An unspecified address stands for all usable ones of its family: those of interfaces that are up, without
    /// loopback, link-local, deprecated and overlay addresses. A specific one is taken as it is. Without any listen
    /// address the node only dials, and lanes use all usable addresses.
    pub(crate) fn new(listen: &[Multiaddr], host: &[HostAddress], interface: &str) -> Self {
        let usable: Vec<IpAddr> = host
            .iter()
            .filter(|address| address.up && !address.loopback && !address.deprecated && address.interface != interface)
            .map(|address| address.prefix.addr())
            .filter(|ip| !is_overlay(*ip) && !is_link_local(*ip))
            .collect();
        let mut plan = Self::default();
        for address in listen {
            for ip in concrete(address, &usable) {
                let control = with_ip(address, ip);
                if !plan.control.contains(&control) {
                    plan.control.push(control);
                }
                if !plan.lanes.contains(&ip) {
                    plan.lanes.push(ip);
                }
            }
        }
        if listen.is_empty() {
            plan.lanes = usable;
        }
        plan
    }

    /// Whether an address of `ip`'s family is gone that was there `before`. Of connections with hosts of that family nobody
    /// says where they leave from.
    pub(crate) fn has_lost_family_of(&self, ip: IpAddr, before: &Self) -> bool {
        before.lanes.iter().any(|lost| lost.is_ipv4() == ip.is_ipv4() && !self.lanes.contains(lost))
    }
}

/// The interfaces on which neighbours are looked for: those that have an address of the plan, which leaves out loopback
/// and our own interface. On each, what libp2p listens on there is told.
pub(crate) fn segments(plan: &ListenPlan, host: &[HostAddress], interface: &str) -> Vec<Segment> {
    let mut segments: Vec<Segment> = Vec::new();
    for address in host.iter().filter(|address| address.up && !address.loopback && address.interface != interface) {
        let ip = address.prefix.addr();
        let known = segments.iter_mut().find(|segment| segment.interface == address.interface_index);
        match known {
            Some(segment) => segment.hosts.push(ip),
            None => segments.push(Segment {
                interface: address.interface_index,
                name: address.interface.clone(),
                hosts: vec![ip],
                addresses: Vec::new(),
            }),
        }
    }
    segments.retain(|segment| segment.hosts.iter().any(|ip| plan.lanes.contains(ip)));
    for segment in &mut segments {
        let here = |address: &&Multiaddr| ip_of(address).is_some_and(|ip| segment.hosts.contains(&ip));
        segment.addresses = plan.control.iter().filter(here).cloned().collect();
    }
    segments
}

/// The networks that the host is directly connected to: those of its addresses on interfaces that are up. Loopback and our
/// own interface are none, and neither is an address alone.
pub(crate) fn lan(host: &[HostAddress], interface: &str) -> Vec<IpNet> {
    let mut networks: Vec<IpNet> = host
        .iter()
        .filter(|address| address.up && !address.loopback && address.interface != interface)
        .map(|address| address.prefix.trunc())
        .filter(|network| network.prefix_len() < network.max_prefix_len() && !is_overlay(network.addr()))
        .collect();
    networks.sort();
    networks.dedup();
    networks.truncate(LAN_NETWORKS_MAX);
    networks
}

/// The IP addresses that one listen address stands for.
fn concrete(address: &Multiaddr, usable: &[IpAddr]) -> Vec<IpAddr> {
    match address.iter().next() {
        Some(Protocol::Ip4(Ipv4Addr::UNSPECIFIED)) => usable.iter().copied().filter(IpAddr::is_ipv4).collect(),
        Some(Protocol::Ip6(Ipv6Addr::UNSPECIFIED)) => usable.iter().copied().filter(IpAddr::is_ipv6).collect(),
        Some(Protocol::Ip4(ip)) => vec![ip.into()],
        Some(Protocol::Ip6(ip)) => vec![ip.into()],
        _ => Vec::new(),
    }
}

fn with_ip(address: &Multiaddr, ip: IpAddr) -> Multiaddr {
    let first = match ip {
        IpAddr::V4(ip) => Protocol::Ip4(ip),
        IpAddr::V6(ip) => Protocol::Ip6(ip),
    };
    std::iter::once(first).chain(address.iter().skip(1)).collect()
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// Networks that packets to them would enter the tunnel for: no lane may end there.
///
/// A route that contains a directly connected network is left out: the connected one is longer and wins, and a peer may
/// well be on it.
pub(crate) fn inner_networks(routes: impl Iterator<Item = IpNet>, connected: &[(IpNet, String)]) -> Vec<IpNet> {
    routes
        .filter(|route| route.prefix_len() > 0)
        .filter(|route| !connected.iter().any(|(network, _)| route.contains(network)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(interface: &str, prefix: &str) -> HostAddress {
        HostAddress {
            interface_index: 1,
            interface: interface.to_owned(),
            prefix: prefix.parse().unwrap(),
            loopback: interface == "lo",
            up: interface != "down0",
            deprecated: false,
        }
    }

    fn plan(listen: &[&str]) -> (Vec<String>, Vec<String>) {
        let hosts = [
            host("lo", "127.0.0.1/8"),
            host("eth0", "192.0.2.1/24"),
            host("eth0", "fe80::1/64"),
            host("eth0", "2001:db8::1/64"),
            host("eth1", "10.10.0.1/16"),
            host("down0", "198.51.100.1/24"),
            host("ring0", "10.99.0.1/32"),
            host("ring1", "100.64.3.4/32"),
        ];
        let listen: Vec<Multiaddr> = listen.iter().map(|address| address.parse().unwrap()).collect();
        let plan = ListenPlan::new(&listen, &hosts, "ring0");
        (plan.control.iter().map(ToString::to_string).collect(), plan.lanes.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn an_unspecified_address_stands_for_the_usable_ones_of_its_family() {
        let (control, lanes) = plan(&["/ip4/0.0.0.0/tcp/8001", "/ip6/::/udp/8001/quic-v1"]);
        assert_eq!(
            control,
            ["/ip4/192.0.2.1/tcp/8001", "/ip4/10.10.0.1/tcp/8001", "/ip6/2001:db8::1/udp/8001/quic-v1"]
        );
        assert_eq!(lanes, ["192.0.2.1", "10.10.0.1", "2001:db8::1"]);
    }

    #[test]
    fn a_specific_address_restricts_lanes_too_and_none_means_dialling_only() {
        let (control, lanes) = plan(&["/ip4/192.0.2.1/udp/8001/quic-v1", "/ip4/192.0.2.1/tcp/8001"]);
        assert_eq!((control.len(), lanes), (2, vec!["192.0.2.1".to_owned()]));
        let (control, lanes) = plan(&[]);
        assert_eq!((control.len(), lanes.len()), (0, 3));
    }

    #[test]
    fn an_address_that_is_gone_tells_which_family_of_connections_to_doubt() {
        let plan = |lanes: &[&str]| ListenPlan {
            control: Vec::new(),
            lanes: lanes.iter().map(|ip| ip.parse().unwrap()).collect(),
        };
        let before = plan(&["192.0.2.1", "2001:db8::1"]);
        let doubted = |now: &[&str]| {
            ["198.51.100.7", "2001:db8:7::7"].map(|peer| plan(now).has_lost_family_of(peer.parse().unwrap(), &before))
        };
        assert_eq!(doubted(&["192.0.2.1", "2001:db8::1", "192.0.2.2"]), [false, false]);
        assert_eq!(doubted(&["192.0.2.2", "2001:db8::1"]), [true, false]);
        assert_eq!(doubted(&["192.0.2.1"]), [false, true]);
    }

    #[test]
    fn neighbours_are_looked_for_where_we_listen_and_told_what_leads_to_us_there() {
        let mut hosts = [
            host("lo", "127.0.0.1/8"),
            host("eth0", "192.0.2.1/24"),
            host("eth0", "fe80::1/64"),
            host("eth1", "10.10.0.1/16"),
            host("ring0", "100.64.0.1/32"),
            host("down0", "198.51.100.1/24"),
        ];
        (hosts[3].interface_index, hosts[4].interface_index, hosts[5].interface_index) = (2, 3, 4);
        let listen = ["/ip4/0.0.0.0/tcp/8001".parse().unwrap()];
        let found = |listen: &[Multiaddr]| segments(&ListenPlan::new(listen, &hosts, "ring0"), &hosts, "ring0");
        let [first, second] = found(&listen).try_into().unwrap();
        assert_eq!((first.name.as_str(), first.hosts.len(), first.addresses.len()), ("eth0", 2, 1));
        assert_eq!(second.addresses, ["/ip4/10.10.0.1/tcp/8001".parse().unwrap()]);
        let [only] = found(&["/ip4/10.10.0.1/tcp/8001".parse().unwrap()]).try_into().unwrap();
        assert_eq!(only.interface, 2);
        assert!(found(&[]).iter().all(|segment| segment.addresses.is_empty()), "a node that only dials only asks");
    }

    #[test]
    fn a_route_around_a_connected_network_does_not_forbid_peers_on_it() {
        let net = |prefix: &str| -> IpNet { prefix.parse().unwrap() };
        let connected = [(net("10.201.0.0/24"), "eth0".to_owned())];
        let routes = [net("10.0.0.0/8"), net("10.20.0.0/16"), net("0.0.0.0/0")];
        assert_eq!(inner_networks(routes.into_iter(), &connected), [net("10.20.0.0/16")]);
    }
}
