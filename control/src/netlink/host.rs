//! What we ask the kernel: the host's addresses, and the networks it is directly connected to.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;

use futures::TryStreamExt;
use ipnet::IpNet;
use libc::{EAFNOSUPPORT, ENOENT, EOPNOTSUPP};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType};

use super::{Netlink, NetlinkError, ROUTE_PROTOCOL, family};

/// One address of this host that packets can be sent from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostAddress {
    /// Index of the interface it is on.
    pub interface_index: u32,
    /// Name of that interface.
    pub interface: String,
    /// The address itself with its prefix length; host bits are kept.
    pub prefix: IpNet,
    /// Whether the interface is a loopback.
    pub loopback: bool,
    /// Whether the interface is up and has a carrier.
    pub up: bool,
    /// Whether new connections should avoid it: its preferred lifetime is over.
    pub deprecated: bool,
}

/// Where packets wait that the host routes into an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TransmitQueue {
    /// How many each of the interface's queues holds.
    pub packets: u32,
    /// Packets dropped since the interface was made; a TUN drops what finds its queue full.
    pub dropped: u64,
}

/// Who installs routes for networks that are on a wire of ours. What routing daemons add stays out: it can be a full
/// BGP table, and none of it is connected.
pub(super) const CONNECTED_PROTOCOLS: [RouteProtocol; 5] =
    [RouteProtocol::Kernel, RouteProtocol::Boot, RouteProtocol::Static, RouteProtocol::Ra, RouteProtocol::Dhcp];

pub(super) struct Link {
    pub(super) name: String,
    pub(super) flags: LinkFlags,
}

impl Netlink {
    /// The host's addresses, in the kernel's order. Addresses whose uniqueness is not settled (tentative) or disproved
    /// (duplicate) are left out: the kernel sends nothing from them.
    pub async fn host_addresses(&self) -> Result<Vec<HostAddress>, NetlinkError> {
        let links = self.links().await?;
        let addresses = self.address_messages().await?;
        Ok(addresses.iter().filter_map(|message| host_address(message, &links)).collect())
    }

    /// The networks this host is directly connected to, with the interface of each: from the addresses of interfaces
    /// that are up, and from routes of the main table that name an interface and no gateway.
    ///
    /// Single addresses and default routes are not networks in this sense. `except` leaves one interface out: our own.
    pub async fn connected_prefixes(&self, except: Option<u32>) -> Result<Vec<(IpNet, String)>, NetlinkError> {
        let links = self.links().await?;
        let mut connected = Vec::new();
        for message in self.address_messages().await? {
            connected.extend(on_link_prefix(&message).map(|prefix| (prefix, message.header.index)));
        }
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            for protocol in CONNECTED_PROTOCOLS {
                for message in self.route_messages(family, protocol).await? {
                    connected.extend(
                        connected_interfaces(&message)
                            .filter_map(|interface| destination(&message).map(|prefix| (prefix, interface))),
                    );
                }
            }
        }

        let mut named: Vec<_> = connected
            .into_iter()
            .filter(|&(prefix, interface)| {
                let link = links.get(&interface);
                Some(interface) != except
                    && link.is_some_and(|link| link.flags.contains(LinkFlags::Up))
                    && (1..prefix.max_prefix_len()).contains(&prefix.prefix_len())
            })
            .filter_map(|(prefix, interface)| Some((prefix, links.get(&interface)?.name.clone())))
            .collect();
        named.sort_unstable();
        named.dedup();
        Ok(named)
    }

    /// The transmit queue of an interface.
    pub async fn transmit_queue(&self, name: &str) -> Result<TransmitQueue, NetlinkError> {
        let doing = || format!("read the queue of {name}");
        let mut links = self.handle.link().get().match_name(name.to_owned()).execute();
        let link = links.try_next().await.map_err(|error| NetlinkError::new(doing(), error))?;
        let (mut packets, mut dropped) = (None, None);
        for attribute in link.into_iter().flat_map(|link| link.attributes) {
            match attribute {
                LinkAttribute::TxQueueLen(length) => packets = Some(length),
                LinkAttribute::Stats64(statistics) => dropped = Some(statistics.tx_dropped),
                _ => {}
            }
        }
        match (packets, dropped) {
            (Some(packets), Some(dropped)) => Ok(TransmitQueue { packets, dropped }),
            _ => Err(NetlinkError::Broken { doing: doing(), message: "it has no figures".to_owned() }),
        }
    }

    /// A route of the main table to exactly this prefix that is not ours, whatever its metric, in words.
    pub async fn foreign_route(&self, prefix: IpNet) -> Result<Option<String>, NetlinkError> {
        let routes = self.route_messages(family(prefix.addr()), RouteProtocol::Unspec).await?;
        let ours = RouteProtocol::Other(ROUTE_PROTOCOL);
        let is_foreign = |route: &RouteMessage| {
            route.header.protocol != ours && destination(route) == Some(prefix.trunc()) && prefix.prefix_len() > 0
        };
        if !routes.iter().any(is_foreign) {
            return Ok(None);
        }
        self.describe_route(prefix).await.map(Some)
    }

    /// The route of the main table to exactly this prefix, in words.
    pub(super) async fn describe_route(&self, prefix: IpNet) -> Result<String, NetlinkError> {
        let routes = self.route_messages(family(prefix.addr()), RouteProtocol::Unspec).await?;
        let Some(route) = routes.iter().find(|route| destination(route) == Some(prefix.trunc())) else {
            return Ok("gone in the meantime".to_owned());
        };
        let links = self.links().await?;
        let mut words = Vec::new();
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => words.push(format!("via {gateway}")),
                RouteAttribute::Gateway(RouteAddress::Inet6(gateway)) => words.push(format!("via {gateway}")),
                RouteAttribute::Oif(interface) => {
                    words.extend(links.get(interface).map(|link| format!("dev {}", link.name)));
                }
                RouteAttribute::Priority(metric) => words.push(format!("metric {metric}")),
                _ => {}
            }
        }
        words.sort_unstable_by_key(|word| ["via", "dev", "metric"].iter().position(|first| word.starts_with(first)));
        let mut words = words.join(" ");
        let _ = write!(words, " proto {}", route.header.protocol);
        Ok(words.trim_start().to_owned())
    }

    pub(super) async fn interface_name(&self, interface: u32) -> Result<String, NetlinkError> {
        let doing = || format!("look up interface {interface}");
        let mut links = self.handle.link().get().match_index(interface).execute();
        let link = links.try_next().await.map_err(|error| NetlinkError::new(doing(), error))?;
        link.and_then(|link| interface_name(link.attributes))
            .ok_or_else(|| NetlinkError::Broken { doing: doing(), message: "it has no name".to_owned() })
    }

    pub(super) async fn links(&self) -> Result<BTreeMap<u32, Link>, NetlinkError> {
        let links = self.handle.link().get().execute().try_filter_map(async |link| {
            let flags = link.header.flags;
            Ok(interface_name(link.attributes).map(|name| (link.header.index, Link { name, flags })))
        });
        links.try_collect().await.map_err(|error| NetlinkError::new("list interfaces", error))
    }

    async fn address_messages(&self) -> Result<Vec<AddressMessage>, NetlinkError> {
        let addresses = self.handle.address().get().execute();
        addresses.try_collect().await.map_err(|error| NetlinkError::new("list addresses", error))
    }

    /// The unicast routes of the main table that this protocol installed; `Unspec` stands for all protocols.
    pub(super) async fn route_messages(
        &self,
        family: AddressFamily,
        protocol: RouteProtocol,
    ) -> Result<Vec<RouteMessage>, NetlinkError> {
        let mut filter = RouteMessage::default();
        filter.header.address_family = family;
        filter.header.table = RouteHeader::RT_TABLE_MAIN;
        filter.header.protocol = protocol;
        filter.header.kind = RouteType::Unicast;
        let routes = self.handle.route().get(filter).execute().try_collect().await;
        match routes.map_err(|error| NetlinkError::new("list routes", error)) {
            // The main table comes into being with its first route, and IPv6 may be compiled out.
            Err(error) if matches!(error.errno(), Some(ENOENT | EOPNOTSUPP | EAFNOSUPPORT)) => Ok(Vec::new()),
            routes => routes,
        }
    }
}

fn interface_name(attributes: Vec<LinkAttribute>) -> Option<String> {
    attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name),
        _ => None,
    })
}

fn host_address(message: &AddressMessage, links: &BTreeMap<u32, Link>) -> Option<HostAddress> {
    let link = links.get(&message.header.index)?;
    let flags = address_flags(message);
    if flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed) && !flags.contains(AddressFlags::Optimistic)
    {
        return None;
    }
    // On a point-to-point interface `Address` is the other end's and `Local` is ours.
    let ours = address(message, |attribute| matches!(attribute, AddressAttribute::Local(_)))
        .or_else(|| address(message, |attribute| matches!(attribute, AddressAttribute::Address(_))))?;
    Some(HostAddress {
        interface_index: message.header.index,
        interface: link.name.clone(),
        prefix: IpNet::new(ours, message.header.prefix_len).ok()?,
        loopback: link.flags.contains(LinkFlags::Loopback),
        up: link.flags.contains(LinkFlags::Up | LinkFlags::Running),
        deprecated: flags.contains(AddressFlags::Deprecated),
    })
}

/// The network an address says is on its link, unless the address came with the wish not to have it routed.
fn on_link_prefix(message: &AddressMessage) -> Option<IpNet> {
    if address_flags(message).contains(AddressFlags::Noprefixroute) {
        return None;
    }
    let there = address(message, |attribute| matches!(attribute, AddressAttribute::Address(_)))?;
    Some(IpNet::new(there, message.header.prefix_len).ok()?.trunc())
}

fn address(message: &AddressMessage, wanted: fn(&AddressAttribute) -> bool) -> Option<IpAddr> {
    message.attributes.iter().filter(|attribute| wanted(attribute)).find_map(|attribute| match attribute {
        AddressAttribute::Local(address) | AddressAttribute::Address(address) => Some(*address),
        _ => None,
    })
}

/// All 32 flag bits; the header has room for 8.
fn address_flags(message: &AddressMessage) -> AddressFlags {
    let header = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    message.attributes.iter().fold(header, |flags, attribute| match attribute {
        AddressAttribute::Flags(all) => flags | *all,
        _ => flags,
    })
}

fn destination(route: &RouteMessage) -> Option<IpNet> {
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    })?;
    Some(IpNet::new(address, route.header.destination_prefix_length).ok()?.trunc())
}

/// The interfaces a route leads to without a gateway between.
fn connected_interfaces(route: &RouteMessage) -> impl Iterator<Item = u32> {
    let has_gateway = |attributes: &[RouteAttribute]| {
        attributes.iter().any(|attribute| matches!(attribute, RouteAttribute::Gateway(_) | RouteAttribute::Via(_)))
    };
    let single = !has_gateway(&route.attributes);
    route.attributes.iter().flat_map(move |attribute| match attribute {
        RouteAttribute::Oif(interface) if single => vec![*interface],
        RouteAttribute::MultiPath(hops) => {
            hops.iter().filter(|hop| !has_gateway(&hop.attributes)).map(|hop| hop.interface_index).collect()
        }
        _ => Vec::new(),
    })
}
