//! The kernel's side of the tunnel: addresses, MTU and routes of the TUN interface, and what else the host is
//! connected to.
//!
//! | File | What it is |
//! |---|---|
//! | `mod.rs` | [`Netlink`]: what we change, and how the kernel's refusals are worded |
//! | `host.rs` | what we ask: the host's addresses and the networks it is directly connected to |
//! | `changes.rs` | [`AddressChanges`]: being told that the answer has changed |
//! | `detour.rs` | [`Detour`]: rules that keep our own underlay traffic out of routes that cover it |
//! | `gateways.rs` | [`Gateway`]: who the default routes lead to |
//! | `conflict.rs` | [`refuse_connected`]: no route may take over a directly connected network |
//! | `forwarding.rs` | [`forwarding_warnings`]: host settings that would keep a router from routing |
//!
//! Everything we add hangs on the TUN interface, which is not persistent: the kernel removes all of it when the
//! process ends, however it ends. Rules do not: see `detour.rs`.

mod changes;
mod conflict;
mod detour;
mod forwarding;
mod gateways;
mod host;

use std::io;
use std::net::IpAddr;
use std::path::Path;

use futures::TryStreamExt;
use ipnet::IpNet;
use libc::{EACCES, EAFNOSUPPORT, EEXIST, ENODEV, ENOENT, EOPNOTSUPP, EPERM, ESRCH};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags};
use netlink_packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType};
use rtnetlink::sys::AsyncSocket;
use rtnetlink::{Handle, LinkUnspec};
use thiserror::Error;
use tracing::{debug, warn};

pub use self::changes::AddressChanges;
pub use self::conflict::{RouteConflict, refuse_connected};
pub use self::detour::Detour;
pub use self::forwarding::forwarding_warnings;
pub use self::gateways::Gateway;
pub use self::host::{HostAddress, TransmitQueue};

/// The routing protocol number our routes carry, so that `ip route show proto 201` lists exactly them.
///
/// Free in the kernel's `rtnetlink.h` and in iproute2's `rt_protos`.
pub const ROUTE_PROTOCOL: u8 = 201;

/// What went wrong between us and the kernel.
#[derive(Debug, Error)]
pub enum NetlinkError {
    /// No netlink socket to be had.
    #[error("cannot open a netlink socket: {0}")]
    Open(#[source] io::Error),
    /// We lack the capability.
    #[error("not permitted to {doing}: run as root or with CAP_NET_ADMIN")]
    NotPermitted {
        /// What was asked of the kernel.
        doing: String,
    },
    /// The kernel said no.
    #[error("the kernel refused to {doing}: {source}")]
    Refused {
        /// What was asked of it.
        doing: String,
        /// Its answer.
        source: io::Error,
    },
    /// Somebody else has a route to exactly this prefix.
    #[error(
        "cannot route {prefix} into the tunnel: the host already has a route to it ({existing}); remove that route, or \
         the prefix from the peer's routes"
    )]
    RouteExists {
        /// The prefix both want.
        prefix: IpNet,
        /// The route in place, as `ip route` would word it.
        existing: String,
    },
    /// The netlink socket is gone, or the kernel's answer makes no sense.
    #[error("netlink failed while asking to {doing}: {message}")]
    Broken {
        /// What was asked of the kernel.
        doing: String,
        /// What happened.
        message: String,
    },
}

impl NetlinkError {
    fn new(doing: impl Into<String>, error: rtnetlink::Error) -> Self {
        let doing = doing.into();
        match error {
            rtnetlink::Error::NetlinkError(message) if message.raw_code() == -EPERM => Self::NotPermitted { doing },
            rtnetlink::Error::NetlinkError(message) => Self::Refused { doing, source: message.to_io() },
            other => Self::Broken { doing, message: other.to_string() },
        }
    }

    fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

/// How the TUN interface is to be set up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InterfaceConfig {
    /// Its addresses: our built-in ones.
    pub addresses: Vec<IpNet>,
    /// Its MTU in bytes.
    pub mtu: u16,
    /// Packets the kernel queues for a slow reader; `None` leaves the kernel's default.
    pub tx_queue_length: Option<u32>,
}

/// Our one request socket to the kernel's routing subsystem.
///
/// Owner: the control thread. Its connection is a task of the tokio runtime that [`Netlink::connect`] was called on
/// and ends when this is dropped.
#[derive(Debug)]
pub struct Netlink {
    handle: Handle,
}

impl Netlink {
    /// Opens the request socket and, beside it, the subscription to changes of the host's addresses and links.
    pub fn connect() -> Result<(Self, AddressChanges), NetlinkError> {
        let changes = AddressChanges::subscribe().map_err(NetlinkError::Open)?;
        let (mut connection, handle, _unsolicited) = rtnetlink::new_connection().map_err(NetlinkError::Open)?;
        // Lets the kernel filter route dumps: a router with a full BGP table would otherwise send us a million routes.
        let socket = connection.socket_mut().socket_mut();
        socket.set_netlink_get_strict_chk(true).map_err(NetlinkError::Open)?;
        tokio::spawn(connection);
        Ok((Self { handle }, changes))
    }

    /// The index of an interface, or `None` if there is none of that name.
    pub async fn interface_index(&self, name: &str) -> Result<Option<u32>, NetlinkError> {
        let mut links = self.handle.link().get().match_name(name.to_owned()).execute();
        match links.try_next().await.map_err(|error| NetlinkError::new(format!("look up interface {name}"), error)) {
            Ok(link) => Ok(link.map(|link| link.header.index)),
            Err(error) if error.errno() == Some(ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sets MTU and queue length, adds the addresses and brings the interface up.
    ///
    /// The kernel is told not to invent a link-local address: with one it would solicit routers into the tunnel. Where
    /// IPv6 is disabled for the interface, its IPv6 addresses are left out and a warning says so.
    pub async fn configure(&self, interface: u32, config: &InterfaceConfig) -> Result<(), NetlinkError> {
        let name = self.interface_name(interface).await?;
        let ipv6 = ipv6_enabled(&name);
        if !ipv6 && config.addresses.iter().any(|address| address.addr().is_ipv6()) {
            warn!(
                interface = name,
                "IPv6 is disabled on this host, so the tunnel carries IPv4 only; to change that, set \
                 net.ipv6.conf.all.disable_ipv6 and net.ipv6.conf.default.disable_ipv6 to 0 and start again"
            );
        }

        let mut link = LinkUnspec::new_with_index(interface).mtu(config.mtu.into());
        if let Some(packets) = config.tx_queue_length {
            link = link.append_extra_attribute(LinkAttribute::TxQueueLen(packets));
        }
        if ipv6 {
            let no_link_local = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
            link = link.append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![no_link_local]));
        }
        self.change_link(link.build(), format!("set the MTU of {name} to {} bytes", config.mtu)).await?;

        for &address in config.addresses.iter().filter(|address| ipv6 || address.addr().is_ipv4()) {
            self.add_address(interface, address, &name).await?;
        }
        // Last: the kernel acts on addr_gen_mode when the interface comes up.
        self.change_link(LinkUnspec::new_with_index(interface).up().build(), format!("bring {name} up")).await
    }

    async fn add_address(&self, interface: u32, address: IpNet, name: &str) -> Result<(), NetlinkError> {
        let mut request = self.handle.address().add(interface, address.addr(), address.prefix_len());
        let message = request.message_mut();
        // Nobody else can be on a point-to-point tunnel: do not wait a second for duplicate address detection, and have
        // no broadcast address, which for a /32 would be the address itself.
        message.attributes.retain(|attribute| !matches!(attribute, AddressAttribute::Broadcast(_)));
        if address.addr().is_ipv6() {
            message.header.flags |= AddressHeaderFlags::Nodad;
        }
        request.execute().await.map_err(|error| NetlinkError::new(format!("add address {address} to {name}"), error))
    }

    /// Takes the interface down; its routes go with that.
    pub async fn set_down(&self, interface: u32) -> Result<(), NetlinkError> {
        let link = LinkUnspec::new_with_index(interface).down().build();
        self.change_link(link, format!("take interface {interface} down")).await
    }

    /// Routes a prefix into the tunnel: main table, scope link, protocol [`ROUTE_PROTOCOL`].
    ///
    /// `source` is the address the host itself uses towards the prefix: our built-in address of the same family.
    /// Answers whether the route is in place: it is not for an IPv6 prefix on an interface without IPv6.
    pub async fn add_route(&self, interface: u32, prefix: IpNet, source: Option<IpAddr>) -> Result<bool, NetlinkError> {
        self.put_route(interface, prefix, source, RouteHeader::RT_TABLE_MAIN.into()).await
    }

    async fn put_route(
        &self,
        interface: u32,
        prefix: IpNet,
        source: Option<IpAddr>,
        table: u32,
    ) -> Result<bool, NetlinkError> {
        let mut route = route_message(interface, prefix, table);
        route.attributes.extend(source.map(|source| RouteAttribute::PrefSource(source.into())));
        let added = self.handle.route().add(route).execute().await;
        let Err(error) = added.map_err(|error| NetlinkError::new(format!("add a route to {prefix}"), error)) else {
            return Ok(true);
        };
        match error.errno() {
            Some(EEXIST) => {
                let existing = self.describe_route(prefix).await?;
                Err(NetlinkError::RouteExists { prefix, existing })
            }
            Some(EACCES | EOPNOTSUPP | EAFNOSUPPORT)
                if prefix.addr().is_ipv6() && !ipv6_enabled(&self.interface_name(interface).await?) =>
            {
                debug!(%prefix, "IPv6 is disabled, route skipped");
                Ok(false)
            }
            _ => Err(error),
        }
    }

    /// Takes a route of ours back. One that is already gone is no error.
    pub async fn remove_route(&self, interface: u32, prefix: IpNet) -> Result<(), NetlinkError> {
        self.take_route(interface, prefix, RouteHeader::RT_TABLE_MAIN.into()).await
    }

    async fn take_route(&self, interface: u32, prefix: IpNet, table: u32) -> Result<(), NetlinkError> {
        let removed = self.handle.route().del(route_message(interface, prefix, table)).execute().await;
        match removed.map_err(|error| NetlinkError::new(format!("remove the route to {prefix}"), error)) {
            Err(error) if !matches!(error.errno(), Some(ESRCH | ENOENT | ENODEV)) => Err(error),
            _ => Ok(()),
        }
    }

    async fn change_link(&self, link: LinkMessage, doing: String) -> Result<(), NetlinkError> {
        self.handle.link().change(link).execute().await.map_err(|error| NetlinkError::new(doing, error))
    }
}

/// What identifies a route of ours to the kernel.
fn route_message(interface: u32, prefix: IpNet, table: u32) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = family(prefix.addr());
    route.header.destination_prefix_length = prefix.prefix_len();
    match u8::try_from(table) {
        Ok(table) => route.header.table = table,
        Err(_) => route.attributes.push(RouteAttribute::Table(table)),
    }
    route.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    route.header.scope = RouteScope::Link;
    route.header.kind = RouteType::Unicast;
    route.attributes.push(RouteAttribute::Destination(prefix.network().into()));
    route.attributes.push(RouteAttribute::Oif(interface));
    route
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// Whether the kernel does IPv6 on this interface: it may be compiled out, switched off at boot, or by sysctl.
fn ipv6_enabled(interface: &str) -> bool {
    let setting = Path::new("/proc/sys/net/ipv6/conf").join(interface).join("disable_ipv6");
    std::fs::read_to_string(setting).is_ok_and(|value| value.trim() == "0")
}
