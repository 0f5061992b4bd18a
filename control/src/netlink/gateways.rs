//! Who the host's default routes lead to.

use std::net::IpAddr;

use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::LinkFlags;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};

use super::host::CONNECTED_PROTOCOLS;
use super::{Netlink, NetlinkError};

/// A router that the host sends to whatever it has no better route for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Gateway {
    /// Index of the interface it is behind.
    pub interface: u32,
    /// Name of that interface.
    pub interface_name: String,
    /// Its address on that interface; often a link-local one for IPv6.
    pub ip: IpAddr,
}

impl Netlink {
    /// The gateways of the main table's default routes, each once, best metric first. `except` names an interface that is
    /// left out: our own. Routes that routing daemons add are not looked at: their table can be all of BGP.
    pub async fn gateways(&self, except: &str) -> Result<Vec<Gateway>, NetlinkError> {
        let links = self.links().await?;
        let mut found: Vec<(u32, Gateway)> = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            for protocol in CONNECTED_PROTOCOLS {
                let routes = self.route_messages(family, protocol).await?;
                for route in routes.iter().filter(|route| route.header.destination_prefix_length == 0) {
                    let metric = metric(route);
                    for (ip, interface) in next_hops(route) {
                        let Some(link) = links.get(&interface) else { continue };
                        let gateway = Gateway { interface, interface_name: link.name.clone(), ip };
                        let is_known = found.iter().any(|(_, known)| *known == gateway);
                        if link.flags.contains(LinkFlags::Up) && link.name != except && !is_known {
                            found.push((metric, gateway));
                        }
                    }
                }
            }
        }
        found.sort();
        Ok(found.into_iter().map(|(_, gateway)| gateway).collect())
    }
}

fn metric(route: &RouteMessage) -> u32 {
    let metric = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Priority(metric) => Some(*metric),
        _ => None,
    });
    metric.unwrap_or(0)
}

/// The gateways of a route, with the interface of each.
fn next_hops(route: &RouteMessage) -> Vec<(IpAddr, u32)> {
    let mut hops = Vec::new();
    let interface = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(interface) => Some(*interface),
        _ => None,
    });
    hops.extend(gateway(&route.attributes).zip(interface));
    for attribute in &route.attributes {
        if let RouteAttribute::MultiPath(paths) = attribute {
            hops.extend(paths.iter().filter_map(|hop| Some((gateway(&hop.attributes)?, hop.interface_index))));
        }
    }
    hops
}

fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        RouteAttribute::Gateway(RouteAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    })
}
