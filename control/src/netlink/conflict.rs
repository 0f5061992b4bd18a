//! No route into the tunnel may take over a network the host is directly connected to.

use ipnet::IpNet;
use thiserror::Error;

/// A configured route lies inside a network the host is directly connected to.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error(
    "route {route} of peer {peer} would take over {connected}, to which this host is directly connected by {interface}: \
     remove it from the peer's routes, or take {interface} out of that network"
)]
pub struct RouteConflict {
    /// The configured route.
    pub route: IpNet,
    /// Whose route it is.
    pub peer: String,
    /// The network it collides with.
    pub connected: IpNet,
    /// How the host is connected to it.
    pub interface: String,
}

/// Refuses the first route that equals a connected network or is more specific than one: the kernel would prefer it,
/// and hosts on our own wire would become unreachable.
///
/// A route that merely contains a connected network is fine: there the connected one is longer and wins.
pub fn refuse_connected<'a>(
    routes: impl IntoIterator<Item = (IpNet, &'a str)>,
    connected: &[(IpNet, String)],
) -> Result<(), RouteConflict> {
    for (route, peer) in routes {
        if let Some((network, interface)) = connected.iter().find(|(network, _)| network.contains(&route)) {
            return Err(RouteConflict {
                route,
                peer: peer.to_owned(),
                connected: *network,
                interface: interface.clone(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(prefix: &str) -> IpNet {
        prefix.parse().unwrap()
    }

    fn connected() -> Vec<(IpNet, String)> {
        vec![(net("10.1.0.0/24"), "eth0".to_owned()), (net("2001:db8:1::/64"), "eth1".to_owned())]
    }

    #[test]
    fn a_route_equal_to_or_inside_a_connected_network_is_refused() {
        for (route, network) in [
            ("10.1.0.0/24", "10.1.0.0/24"),
            ("10.1.0.128/25", "10.1.0.0/24"),
            ("10.1.0.7/32", "10.1.0.0/24"),
            ("2001:db8:1::/64", "2001:db8:1::/64"),
            ("2001:db8:1::5/128", "2001:db8:1::/64"),
        ] {
            let conflict = refuse_connected([(net(route), "site-b")], &connected()).unwrap_err();
            assert_eq!((conflict.route, conflict.connected), (net(route), net(network)));
        }
    }

    #[test]
    fn a_route_that_contains_or_misses_every_connected_network_is_fine() {
        let routes = ["10.0.0.0/8", "0.0.0.0/0", "::/0", "10.1.0.0/23", "10.1.1.0/24", "2001:db8:2::/64"];
        assert_eq!(refuse_connected(routes.map(|route| (net(route), "site-b")), &connected()), Ok(()));
    }

    #[test]
    fn the_message_names_route_peer_network_interface_and_remedy() {
        let routes = [(net("10.9.0.0/16"), "site-a"), (net("10.1.0.0/25"), "site-b")];
        assert_eq!(
            refuse_connected(routes, &connected()).unwrap_err().to_string(),
            "route 10.1.0.0/25 of peer site-b would take over 10.1.0.0/24, to which this host is directly connected \
             by eth0: remove it from the peer's routes, or take eth0 out of that network"
        );
    }
}
