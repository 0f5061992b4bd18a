//! Networks behind peers, at run time: the kernel and the workers' tables follow the book.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Instant;

use ipnet::IpNet;
use libp2p::multiaddr::Protocol;
use ringlane_shared::config::{PeerSettings, Settings, parse_network};
use ringlane_shared::id::{PeerId, PeerIndex};
use ringlane_shared::identity::{builtin_ipv4, builtin_ipv6};
use ringlane_shared::limits::COVERED_ADDRESSES_MAX;
use thiserror::Error;
use tracing::{info, warn};

use super::Control;
use crate::addresses::inner_networks;
use crate::coordinator::link::Link;
use crate::coordinator::publisher::builtin_prefixes;
use crate::netlink::{Detour, Netlink, NetlinkError, RouteConflict, refuse_connected};
use crate::routes::{
    Health, Ledger, Offer, Origin, Placement, ReferenceError, RouteBook, RouteError, Router, Step, find_peer,
};
use crate::swarm::address::{self, overlay_networks};

/// Everything about networks behind peers.
pub(crate) struct Routing {
    pub(crate) book: RouteBook,
    ledger: Ledger,
    detour: Detour,
    /// The TUN interface.
    interface: u32,
    id: PeerId,
    /// The networks the host is directly connected to, with their interfaces.
    connected: Vec<(IpNet, String)>,
    /// Addresses of peers that were found inside a route, beyond those of the configuration and of connections.
    covered: BTreeSet<IpAddr>,
}

/// Why a route was not added or deleted.
#[derive(Debug, Error)]
pub(super) enum RouteFault {
    #[error("{text:?}: {flaw}")]
    Network { text: String, flaw: String },
    #[error(transparent)]
    Peer(#[from] ReferenceError),
    #[error("{0} is a built-in address: it is always routed to whom it belongs")]
    BuiltIn(IpNet),
    #[error(transparent)]
    Book(#[from] RouteError),
    #[error(transparent)]
    Connected(#[from] RouteConflict),
    #[error(transparent)]
    Kernel(#[from] NetlinkError),
}

impl Routing {
    /// The book as the configuration has it; the kernel knows nothing of it yet.
    pub(super) async fn new(
        netlink: &Netlink,
        interface: u32,
        settings: &Settings,
        workers: u8,
        id: PeerId,
        connected: Vec<(IpNet, String)>,
    ) -> Result<Self, NetlinkError> {
        let (udp, tcp) = ports(settings, workers);
        let detour = netlink.claim_detour(&settings.interface, udp, tcp).await?;
        let mut book = RouteBook::default();
        for (peer, index) in settings.peers.iter().zip(0..) {
            for route in &peer.routes {
                let router = Router { peer: PeerIndex(index), metric: route.metric, origin: Origin::Configured };
                if let Err(error) = book.add(route.net, router) {
                    warn!(peer = peer.name, %error, "a configured route is left out");
                }
            }
        }
        let covered = settings.peers.iter().flat_map(configured_ips).collect();
        Ok(Self { book, ledger: Ledger::default(), detour, interface, id, connected, covered })
    }

    /// Whether the kernel routes this prefix into the tunnel.
    pub(crate) fn is_installed(&self, prefix: IpNet) -> bool {
        self.ledger.has(prefix)
    }

    /// Installs what the kernel lacks. Nothing of a step that fails stays, and it keeps no other prefix's from being
    /// taken. Returns those that failed, each with its first error.
    pub(super) async fn install(
        &mut self,
        netlink: &Netlink,
        more: &BTreeSet<IpAddr>,
    ) -> BTreeMap<IpNet, NetlinkError> {
        let underlay: BTreeSet<IpAddr> = self.covered.union(more).copied().collect();
        let wanted: Vec<IpNet> = self.book.active().map(|(prefix, _)| prefix).collect();
        let mut failed = BTreeMap::new();
        for step in self.ledger.missing(wanted, &underlay, &self.connected) {
            let (Step::Add(prefix, _) | Step::Remove(prefix, _)) = step;
            // What could not be put into its new place stays in the old one.
            if !failed.contains_key(&prefix)
                && let Err(error) = self.take(netlink, step).await
            {
                failed.insert(prefix, error);
            }
        }
        failed
    }

    /// Removes what the book has no more, and rules that nothing needs any more.
    pub(super) async fn uninstall(&mut self, netlink: &Netlink) -> Result<(), NetlinkError> {
        let wanted: Vec<IpNet> = self.book.active().map(|(prefix, _)| prefix).collect();
        for step in self.ledger.surplus(wanted) {
            self.take(netlink, step).await?;
        }
        Ok(())
    }

    /// Removes all rules; the routes go with the interface.
    pub(super) async fn clear(&self, netlink: &Netlink) {
        if let Err(error) = netlink.remove_detours(&self.detour).await {
            warn!(%error, "routing rules are left behind; the next start removes them");
        }
    }

    async fn take(&mut self, netlink: &Netlink, step: Step) -> Result<(), NetlinkError> {
        match step {
            Step::Add(prefix, placement) => {
                let ours: IpAddr =
                    if prefix.addr().is_ipv4() { builtin_ipv4(&self.id).into() } else { builtin_ipv6(&self.id).into() };
                if placement == Placement::Detour && self.ledger.placed(placement).next().is_none() {
                    netlink.reclaim_detour(&mut self.detour).await?;
                }
                let added = match placement {
                    Placement::Main => netlink.add_route(self.interface, prefix, Some(ours)).await,
                    Placement::Detour => netlink.add_detour(&self.detour, self.interface, prefix, Some(ours)).await,
                };
                match added {
                    Ok(true) => self.ledger.note(step),
                    Ok(false) => self.drop_unused_rules(netlink, prefix).await?,
                    Err(error) => {
                        if placement == Placement::Detour {
                            let _ = netlink.remove_detour(&self.detour, self.interface, prefix).await;
                            let _ = self.drop_unused_rules(netlink, prefix).await;
                        }
                        return Err(error);
                    }
                }
            }
            Step::Remove(prefix, Placement::Main) => {
                netlink.remove_route(self.interface, prefix).await?;
                self.ledger.note(step);
            }
            Step::Remove(prefix, Placement::Detour) => {
                netlink.remove_detour(&self.detour, self.interface, prefix).await?;
                self.ledger.note(step);
                self.drop_unused_rules(netlink, prefix).await?;
            }
        }
        Ok(())
    }

    async fn drop_unused_rules(&self, netlink: &Netlink, like: IpNet) -> Result<(), NetlinkError> {
        let ipv4 = like.addr().is_ipv4();
        if !self.ledger.has_detour(ipv4) {
            netlink.remove_detours_of(&self.detour, ipv4).await?;
        }
        Ok(())
    }

    /// What no lane may lead into: routes that our own traffic would take.
    pub(super) fn inner_networks(&self) -> Vec<IpNet> {
        inner_networks(self.ledger.placed(Placement::Main).chain(overlay_networks()), &self.connected)
    }
}

impl Control {
    /// `ringlane route add`.
    pub(super) async fn add_route(&mut self, net: &str, peer: &str, metric: u32) -> Result<(), RouteFault> {
        let prefix = network(net)?;
        let peer = find_peer(&self.settings.peers, peer)?;
        self.refuse_built_in(prefix)?;
        self.routing.connected = self.netlink.connected_prefixes(Some(self.routing.interface)).await?;
        refuse_connected([(prefix, self.name(peer))], &self.routing.connected)?;
        if !self.routing.book.contains(prefix)
            && let Some(existing) = self.netlink.foreign_route(prefix).await?
        {
            return Err(NetlinkError::RouteExists { prefix, existing }.into());
        }
        let is_same = |offer: &Offer| offer.prefix == prefix && offer.router.peer == peer;
        let before = self.routing.book.offers().find(is_same).map(|offer| offer.router);
        self.routing.book.add(prefix, Router { peer, metric, origin: Origin::Added })?;
        let underlay = self.underlay_addresses();
        let mut failed = self.routing.install(&self.netlink, &underlay).await;
        let error = failed.remove(&prefix);
        warn_of(failed, "a route is not in the kernel");
        if let Some(error) = error {
            let _ = match before {
                Some(router) => self.routing.book.add(prefix, router),
                None => self.routing.book.remove(prefix, Some(peer)).map(drop),
            };
            return Err(error.into());
        }
        info!(%prefix, peer = self.name(peer), metric, "route added");
        self.choose_routers(Instant::now());
        self.publish_routes();
        Ok(())
    }

    /// `ringlane route del`: one peer's route, or all to this network.
    pub(super) async fn delete_route(&mut self, net: &str, peer: Option<&str>) -> Result<(), RouteFault> {
        let prefix = network(net)?;
        let peer = peer.map(|text| find_peer(&self.settings.peers, text)).transpose()?;
        self.refuse_built_in(prefix)?;
        self.routing.book.remove(prefix, peer)?;
        self.choose_routers(Instant::now());
        self.publish_routes();
        self.routing.uninstall(&self.netlink).await?;
        self.engine.set_inner_networks(self.routing.inner_networks());
        info!(%prefix, "route deleted");
        Ok(())
    }

    fn refuse_built_in(&self, prefix: IpNet) -> Result<(), RouteFault> {
        let peers = self.settings.peers.iter().map(|peer| &peer.id);
        let is_built_in = peers.chain([&self.id]).any(|id| builtin_prefixes(id).contains(&prefix));
        if is_built_in { Err(RouteFault::BuiltIn(prefix)) } else { Ok(()) }
    }

    /// Looks at who of several routers is there; called in every turn of the loop, and does nothing in most.
    pub(super) fn look_at_routers(&mut self, now: Instant) {
        let book = &self.routing.book;
        if book.has_choice() && book.poll_timeout().is_none_or(|at| now >= at) && self.choose_routers(now) {
            self.publish_routes();
        }
    }

    fn choose_routers(&mut self, now: Instant) -> bool {
        let Self { routing, coordinator, node, settings, .. } = self;
        let before: Vec<_> = if routing.book.has_choice() { routing.book.active().collect() } else { Vec::new() };
        let changed = routing.book.update(now, |peer| {
            let link = coordinator.link(peer);
            let lanes = link.into_iter().flat_map(Link::lanes);
            let rtt_us = lanes.map(|(_, lane)| lane.gauges.rtt_us()).filter(|rtt| *rtt > 0).min();
            let connection =
                || settings.peers.get(peer.position()).and_then(|peer| node.best_connection(&peer.id)?.rtt);
            Health {
                reachable: link.is_some_and(|link| match link.carries() {
                    true => !link.is_silent(),
                    false => link.stream().is_some(),
                }),
                rtt_us: rtt_us.or_else(|| Some(connection()?.as_micros() as u64)),
            }
        });
        if changed {
            let name = |peer: PeerIndex| settings.peers.get(peer.position()).map_or("", |peer| peer.name.as_str());
            for ((prefix, from), (_, to)) in before.into_iter().zip(routing.book.active()).filter(|(a, b)| a.1 != b.1) {
                info!(%prefix, from = name(from), to = name(to), "route moved to another router");
            }
        }
        changed
    }

    /// Gives the workers the tables that follow from the book.
    pub(super) fn publish_routes(&mut self) {
        let offers = self.routing.book.offers().filter(|offer| !offer.withdrawn);
        self.coordinator.set_routes(
            self.routing.book.active().collect(),
            offers.map(|offer| (offer.prefix, offer.router.peer)).collect(),
        );
        self.engine.set_inner_networks(self.routing.inner_networks());
    }

    /// The addresses that our own traffic goes to at the moment.
    fn underlay_addresses(&self) -> BTreeSet<IpAddr> {
        let connections = self.node.all_connections();
        let remotes = connections.filter_map(|connection| Some(address::parse(&connection.remote).ok()?.socket.ip()));
        let peers = (0..self.settings.peers.len() as u16).map(PeerIndex);
        let links = peers.filter_map(|peer| self.coordinator.link(peer));
        let lanes = links.flat_map(Link::lanes).map(|(_, lane)| lane.remote.ip());
        remotes.chain(lanes).collect()
    }

    /// Keeps our traffic out of routes that were found to cover a peer's address.
    pub(super) async fn make_detours(&mut self) {
        let found = self.node.take_covered();
        if found.is_empty() {
            return;
        }
        for address in found {
            if self.routing.covered.len() < COVERED_ADDRESSES_MAX + self.configured_addresses {
                self.routing.covered.insert(address);
            }
        }
        let underlay = self.underlay_addresses();
        let failed = self.routing.install(&self.netlink, &underlay).await;
        warn_of(failed, "a route covers a peer's address, and its traffic cannot be kept out of the tunnel");
        self.engine.set_inner_networks(self.routing.inner_networks());
    }

    /// The host's addresses have changed: no route takes over a network that it is directly connected to now.
    pub(super) async fn withdraw_connected(&mut self) {
        match self.netlink.connected_prefixes(Some(self.routing.interface)).await {
            Ok(connected) if connected != self.routing.connected => self.routing.connected = connected,
            Ok(_) => return,
            Err(error) => {
                warn!(%error, "cannot read the networks this host is connected to");
                return;
            }
        }
        let mut changed = false;
        let prefixes: Vec<IpNet> = self.routing.book.prefixes().collect();
        for prefix in prefixes {
            let conflict = self.routing.connected.iter().find(|(network, _)| network.contains(&prefix));
            if !self.routing.book.withdraw(prefix, conflict.is_some()) {
                continue;
            }
            changed = true;
            match conflict {
                Some((network, interface)) => warn!(
                    %prefix,
                    "route withdrawn: this host is now directly connected to {network} by {interface}"
                ),
                None => info!(%prefix, "route restored: this host is no longer connected to it"),
            }
        }
        let underlay = self.underlay_addresses();
        warn_of(self.routing.install(&self.netlink, &underlay).await, "a route cannot be restored");
        if changed {
            self.publish_routes();
        }
        if let Err(error) = self.routing.uninstall(&self.netlink).await {
            warn!(%error, "a route cannot be withdrawn");
        }
        self.engine.set_inner_networks(self.routing.inner_networks());
    }
}

fn warn_of(failed: BTreeMap<IpNet, NetlinkError>, meaning: &str) {
    for (prefix, error) in failed {
        warn!(%prefix, %error, "{meaning}");
    }
}

fn network(text: &str) -> Result<IpNet, RouteFault> {
    parse_network(text).map_err(|flaw| RouteFault::Network { text: text.chars().take(80).collect(), flaw })
}

/// The IP addresses that a peer is configured with.
pub(super) fn configured_ips(peer: &PeerSettings) -> impl Iterator<Item = IpAddr> {
    peer.addresses.iter().filter_map(address::ip_of)
}

/// The ports that our underlay traffic leaves from.
fn ports(settings: &Settings, workers: u8) -> (Vec<RangeInclusive<u16>>, Vec<u16>) {
    let lanes = settings.dataplane.port..=settings.dataplane.port.saturating_add(u16::from(workers.max(1)) - 1);
    let (mut udp, mut tcp) = (BTreeSet::new(), BTreeSet::new());
    for address in &settings.control.listen {
        match address.iter().nth(1) {
            Some(Protocol::Udp(port)) if port != 0 => drop(udp.insert(port)),
            Some(Protocol::Tcp(port)) if port != 0 => drop(tcp.insert(port)),
            _ => {}
        }
    }
    (udp.into_iter().map(|port| port..=port).chain([lanes]).collect(), tcp.into_iter().collect())
}
