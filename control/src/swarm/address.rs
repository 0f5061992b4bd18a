//! Which addresses may be dialled or listened on, and where a multiaddress leads.

use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use ipnet::IpNet;
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use ringlane_shared::id::PeerId;
use ringlane_shared::limits::COVERED_ADDRESSES_MAX;
use ringlane_shared::path::candidate::{is_local_use, is_private};
use thiserror::Error;

use super::connections::TransportName;
use crate::underlay::leads_into;

/// The IPv4 prefix of inner addresses, 100.64.0.0/10's first /16.
const OVERLAY_V4: [u8; 2] = [100, 64];
/// The IPv6 prefix of inner addresses, fd00:6879:7072:7370::/64.
const OVERLAY_V6: [u16; 4] = [0xfd00, 0x6879, 0x7072, 0x7370];

/// Parts of the longest address behind the host: `/tcp/443/tls/sni/b.example/ws/p2p/12D3KooW..`.
const TRANSPORT_PARTS_MAX: usize = 5;

/// Why we do not dial an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum AddressRefusal {
    /// It has a name. Those that the configuration gives are looked up before they come here (`names`).
    #[error("it has a name, and only names in the configuration are looked up")]
    Name,
    /// It is not `/ip4|ip6/../tcp/..`, perhaps with a WebSocket, or `/ip4|ip6/../udp/../quic-v1`.
    #[error("only /ip4 or /ip6 with /udp/<port>/quic-v1 or /tcp/<port>, which /ws or /wss may follow, is supported")]
    Unsupported,
    /// It names the wrong peer.
    #[error("it ends in another peer's id")]
    OtherPeer,
    /// 0.0.0.0 or ::.
    #[error("it is the unspecified address")]
    Unspecified,
    /// Port 0.
    #[error("it has no port")]
    NoPort,
    /// A multicast or broadcast address.
    #[error("it is a multicast or broadcast address")]
    Multicast,
    /// 127.0.0.0/8 or ::1.
    #[error("it is a loopback address")]
    Loopback,
    /// An inner address: the tunnel cannot be carried by itself.
    #[error("it is an address inside the mesh")]
    Overlay,
    /// QUIC, in a network whose swarm key only TCP can carry.
    #[error("this network has a swarm key, which QUIC cannot carry")]
    SwarmKey,
    /// One of our own addresses, or one the control loop denies.
    #[error("it is an address of this node")]
    Own,
    /// An address of a private network, which the configuration does not want to be used.
    #[error("it is a private address, and control.filter_private_addresses is on")]
    Private,
    /// It is in no network that this host is directly connected to.
    #[error("it is beyond the networks that this host is connected to, and control.scope is \"lan\"")]
    BeyondLan,
    /// The kernel routes it into the tunnel: the tunnel cannot be carried by itself.
    #[error("this host routes it into the tunnel")]
    IntoTunnel,
    /// It leads through a relay that is no configured peer.
    #[error("it leads through a relay that is no configured peer")]
    StrangeRelay,
}

/// Where a direct multiaddress leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Destination {
    /// IP address (an IPv4-mapped one is made IPv4) and port.
    pub socket: SocketAddr,
    /// What is spoken there.
    pub transport: TransportName,
    /// The peer it names, if it does.
    pub peer: Option<PeerId>,
}

/// Reads `/ip4|ip6/<ip>/udp/<port>/quic-v1` and `/ip4|ip6/<ip>/tcp/<port>`, which `/ws`, `/wss`, `/tls/ws` or
/// `/tls/sni/<name>/ws` may follow; each with or without `/p2p/<id>`.
pub fn parse(address: &Multiaddr) -> Result<Destination, AddressRefusal> {
    let mut parts = address.iter();
    let ip = match (ip_of(address), parts.next()) {
        (Some(ip), _) => ip,
        (None, Some(Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_) | Protocol::Dnsaddr(_))) => {
            return Err(AddressRefusal::Name);
        }
        _ => return Err(AddressRefusal::Unsupported),
    };
    let (port, transport, peer) = transport(parts).ok_or(AddressRefusal::Unsupported)?;
    Ok(Destination { socket: SocketAddr::new(ip, port), transport, peer })
}

/// The IP address that an address begins with: of a circuit, the relay's.
pub fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(IpAddr::from(ip).to_canonical()),
        _ => None,
    }
}

/// What is spoken at an address that begins with an IP address or a name.
pub fn transport_of(address: &Multiaddr) -> Option<TransportName> {
    let mut parts = address.iter();
    let host = parts.next()?;
    let is_host =
        matches!(host, Protocol::Ip4(_) | Protocol::Ip6(_) | Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_));
    transport(parts).filter(|_| is_host).map(|(_, transport, _)| transport)
}

/// The name that an address begins with.
fn name_of(address: &Multiaddr) -> Option<String> {
    match address.iter().next()? {
        Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    }
}

/// The host, a name or an IP address, and the port of an address that begins with `/ip4|ip6|dns|dns4|dns6/../tcp/..`.
pub(crate) fn host_and_port(address: &Multiaddr) -> Option<(String, u16)> {
    let mut parts = address.iter();
    let host = match parts.next()? {
        Protocol::Ip4(ip) => ip.to_string(),
        Protocol::Ip6(ip) => ip.to_string(),
        Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name) => name.into_owned(),
        _ => return None,
    };
    match parts.next()? {
        Protocol::Tcp(port) => Some((host, port)),
        _ => None,
    }
}

/// What follows the host.
fn transport<'a>(parts: impl Iterator<Item = Protocol<'a>>) -> Option<(u16, TransportName, Option<PeerId>)> {
    let mut parts: Vec<_> = parts.take(TRANSPORT_PARTS_MAX + 1).collect();
    let peer = match parts.last() {
        Some(Protocol::P2p(peer)) => Some(*peer),
        _ => None,
    };
    parts.truncate(parts.len() - usize::from(peer.is_some()));
    let (port, transport) = match parts.as_slice() {
        [Protocol::Udp(port), Protocol::QuicV1] => (port, TransportName::Quic),
        [Protocol::Tcp(port)] => (port, TransportName::Tcp),
        [Protocol::Tcp(port), Protocol::Ws(path)] if path == "/" => (port, TransportName::Ws),
        [Protocol::Tcp(port), Protocol::Wss(path)]
        | [Protocol::Tcp(port), Protocol::Tls, Protocol::Ws(path)]
        | [Protocol::Tcp(port), Protocol::Tls, Protocol::Sni(_), Protocol::Ws(path)]
            if path == "/" =>
        {
            (port, TransportName::Wss)
        }
        _ => return None,
    };
    Some((*port, transport, peer))
}

/// An address by way of a relay.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Circuit {
    /// The relay's own address.
    pub via: Multiaddr,
    /// Who the relay is.
    pub relay: PeerId,
}

/// Reads `<address>/p2p/<relay>/p2p-circuit`, with or without a final `/p2p/<id>`.
pub fn circuit(address: &Multiaddr) -> Option<Circuit> {
    let mut parts = address.iter();
    let mut via = Multiaddr::empty();
    let relay = loop {
        match parts.next()? {
            Protocol::P2p(relay) => break relay,
            Protocol::P2pCircuit => return None,
            part => via.push(part),
        }
    };
    if parts.next() != Some(Protocol::P2pCircuit) || via.is_empty() {
        return None;
    }
    match (parts.next(), parts.next()) {
        (None | Some(Protocol::P2p(_)), None) => Some(Circuit { via, relay }),
        _ => None,
    }
}

/// Whether an address leads by way of a relay, in whatever form.
pub fn is_circuit(address: &Multiaddr) -> bool {
    address.iter().any(|part| part == Protocol::P2pCircuit)
}

/// Whether an address can be one that everybody reaches: no private, shared (RFC 6598) or special one, nor one inside the
/// mesh.
pub fn is_global(ip: IpAddr) -> bool {
    let is_special = match ip.to_canonical() {
        IpAddr::V4(ip) => ip.octets()[0] == 0 || ip.octets()[0] >= 224,
        IpAddr::V6(ip) => ip.is_unspecified() || ip.is_multicast(),
    };
    !is_special && !is_local_use(ip)
}

/// Whether an address leads, directly, to an IP address that everybody reaches.
pub(crate) fn leads_to_global(address: &Multiaddr) -> bool {
    parse(address).is_ok_and(|to| is_global(to.socket.ip()))
}

/// The address without a final `/p2p/<peer>`; refused if it names another peer.
pub fn without_peer(address: &Multiaddr, peer: &PeerId) -> Result<Multiaddr, AddressRefusal> {
    let mut bare = address.clone();
    if let Some(Protocol::P2p(named)) = address.iter().last() {
        if named != *peer {
            return Err(AddressRefusal::OtherPeer);
        }
        bare.pop();
    }
    Ok(bare)
}

/// Whether an address leads somewhere only on one interface, which it does not name.
pub fn is_link_local(address: &Multiaddr) -> bool {
    parse(address).is_ok_and(|to| match to.socket.ip() {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    })
}

/// Whether an address is inside the mesh: a connection to or from it would be carried by the tunnel it is to set up.
pub fn is_overlay(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.octets()[..2] == OVERLAY_V4,
        IpAddr::V6(ip) => ip.segments()[..4] == OVERLAY_V6,
    }
}

/// The networks of all nodes' built-in addresses.
pub fn overlay_networks() -> [IpNet; 2] {
    let [a, b] = OVERLAY_V4;
    let [c, d, e, f] = OVERLAY_V6;
    let v4 = IpNet::new_assert(Ipv4Addr::new(a, b, 0, 0).into(), 16);
    let v6 = IpNet::new_assert(Ipv6Addr::new(c, d, e, f, 0, 0, 0, 0).into(), 64);
    [v4, v6]
}

type DenyFn = dyn Fn(IpAddr) -> bool + Send + Sync;

/// What may be dialled. Shared by the node and the transport inside its swarm; both are on the control thread, but the
/// transport has to be `Send`, hence the (never contended) lock.
#[derive(Clone)]
pub struct AddressPolicy {
    allow_loopback: bool,
    tcp_only: bool,
    filter_private: bool,
    /// Who may be a relay of ours.
    relays: Arc<HashSet<PeerId>>,
    /// TCP goes through a proxy, which looks up names too.
    is_proxied: bool,
    /// The names that it is given: the configuration's.
    names: Arc<HashSet<String>>,
    /// Only what is in [`Self::set_lan`]'s networks.
    is_lan_only: bool,
    lan: Arc<RwLock<Vec<IpNet>>>,
    denied: Arc<RwLock<Arc<DenyFn>>>,
    tunnel: Arc<Mutex<Tunnel>>,
}

/// What the policy knows of the tunnel.
#[derive(Default)]
struct Tunnel {
    /// Our built-in addresses: what the kernel sends from into the tunnel.
    inner: Vec<IpAddr>,
    /// Public addresses that were not dialled because they lead there, and that nobody has asked for yet.
    covered: BTreeSet<IpAddr>,
    /// Dials refused because of it, because of private addresses, and because of addresses beyond the LAN.
    refused: [u64; 3],
}

impl AddressPolicy {
    /// A policy that denies nothing beyond what never works; loopback only if told so (tests).
    pub fn new(allow_loopback: bool) -> Self {
        Self {
            allow_loopback,
            tcp_only: false,
            filter_private: false,
            relays: Arc::default(),
            is_proxied: false,
            names: Arc::default(),
            is_lan_only: false,
            lan: Arc::default(),
            denied: Arc::new(RwLock::new(Arc::new(|_| false))),
            tunnel: Arc::default(),
        }
    }

    /// The same, but QUIC is refused.
    pub fn tcp_only(self) -> Self {
        Self { tcp_only: true, ..self }
    }

    /// Whether a swarm key keeps this address from being used.
    pub(super) fn is_beyond_swarm_key(&self, address: &Multiaddr) -> bool {
        self.tcp_only && parse(address).is_ok_and(|destination| destination.transport == TransportName::Quic)
    }

    /// The same, which denies private addresses if told so.
    pub fn filter_private(self, filter_private: bool) -> Self {
        Self { filter_private, ..self }
    }

    /// The same, which allows circuits through these relays.
    pub fn through(self, relays: impl IntoIterator<Item = PeerId>) -> Self {
        Self { relays: Arc::new(relays.into_iter().collect()), ..self }
    }

    /// The same, for a node whose TCP connections go through a proxy, or not. Of names it passes on those of these
    /// addresses, whoever asks for a dial: others are what peers say, and the proxy reaches what we do not.
    pub fn proxied<'a>(self, is_proxied: bool, configured: impl IntoIterator<Item = &'a Multiaddr>) -> Self {
        let names = configured.into_iter().filter_map(name_of).collect();
        Self { is_proxied, names: Arc::new(names), ..self }
    }

    /// The same, which denies what is beyond the networks of [`Self::set_lan`] if told so.
    pub fn lan_only(self, is_lan_only: bool) -> Self {
        Self { is_lan_only, ..self }
    }

    /// Sets the networks that this host is directly connected to.
    pub fn set_lan(&self, networks: Vec<IpNet>) {
        *self.lan.write().unwrap_or_else(PoisonError::into_inner) = networks;
    }

    /// The networks of [`Self::set_lan`].
    pub fn lan(&self) -> Vec<IpNet> {
        self.lan.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether an address is beyond the LAN, and that matters.
    pub fn is_beyond_lan(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        let lan = || self.lan.read().unwrap_or_else(PoisonError::into_inner);
        self.is_lan_only && !ip.is_loopback() && !lan().iter().any(|network| network.contains(&ip))
    }

    /// Whether an address has a name that the proxy looks up.
    pub fn passes_name(&self, address: &Multiaddr) -> bool {
        self.is_proxied
            && name_of(address).is_some_and(|name| self.names.contains(&name))
            && transport_of(address).is_some_and(TransportName::is_tcp)
    }

    /// Whether private addresses are denied.
    pub fn filters_private(&self) -> bool {
        self.filter_private
    }

    /// Sets our built-in addresses, once there is an interface that has them.
    pub fn set_inner(&self, inner: Vec<IpAddr>) {
        self.tunnel().inner = inner;
    }

    /// The public addresses that could not be dialled since the last call because they lead into the tunnel.
    pub fn take_covered(&self) -> BTreeSet<IpAddr> {
        std::mem::take(&mut self.tunnel().covered)
    }

    /// Dials refused so far because they would have led into the tunnel, because of private addresses, and because of
    /// addresses beyond the LAN.
    pub fn refused(&self) -> [u64; 3] {
        self.tunnel().refused
    }

    /// Whether the kernel would send our answers to `ip` into the tunnel: then what comes from there came through it.
    pub fn is_inside(&self, ip: IpAddr) -> bool {
        let inner = self.tunnel().inner.clone();
        leads_into(ip, &inner, true)
    }

    fn tunnel(&self) -> MutexGuard<'_, Tunnel> {
        self.tunnel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Self::check`], and whether the kernel would send it into the tunnel; asked before every single dial, as
    /// routes change. `marked` is what the dialling socket is; only marked ones are remembered and counted.
    pub fn check_dial(&self, address: &Multiaddr, marked: bool) -> Result<Destination, AddressRefusal> {
        let checked = self.check(address);
        let mut tunnel = self.tunnel();
        let destination = match checked {
            Err(AddressRefusal::Private) => {
                tunnel.refused[1] += 1;
                return Err(AddressRefusal::Private);
            }
            Err(AddressRefusal::BeyondLan) => {
                tunnel.refused[2] += 1;
                return Err(AddressRefusal::BeyondLan);
            }
            checked => checked?,
        };
        let ip = destination.socket.ip();
        // What goes through a proxy goes to the proxy's address, from a marked socket.
        let is_proxied = self.is_proxied && destination.transport.is_tcp();
        if is_proxied || !leads_into(ip, &tunnel.inner, marked) {
            return Ok(destination);
        }
        if !marked {
            return Err(AddressRefusal::IntoTunnel);
        }
        tunnel.refused[0] += 1;
        // One that a peer tells us of is most likely its own in the network behind it, and no way to reach it.
        if !is_local_use(ip) && tunnel.covered.len() < COVERED_ADDRESSES_MAX {
            tunnel.covered.insert(ip);
        }
        Err(AddressRefusal::IntoTunnel)
    }

    /// Replaces the predicate for our own and otherwise denied addresses.
    pub fn set_denied(&self, denied: impl Fn(IpAddr) -> bool + Send + Sync + 'static) {
        *self.denied.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(denied);
    }

    /// Whether an address may be dialled, and where it leads; of one by way of a relay, where the relay is.
    pub fn check(&self, address: &Multiaddr) -> Result<Destination, AddressRefusal> {
        if let Some(Circuit { via, relay }) = circuit(address) {
            return if self.relays.contains(&relay) { self.check(&via) } else { Err(AddressRefusal::StrangeRelay) };
        }
        let destination = parse(address)?;
        if self.is_beyond_swarm_key(address) {
            return Err(AddressRefusal::SwarmKey);
        }
        let ip = destination.socket.ip();
        if ip.is_unspecified() {
            return Err(AddressRefusal::Unspecified);
        }
        if destination.socket.port() == 0 {
            return Err(AddressRefusal::NoPort);
        }
        if ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) {
            return Err(AddressRefusal::Multicast);
        }
        if is_overlay(ip) {
            return Err(AddressRefusal::Overlay);
        }
        if ip.is_loopback() {
            // In tests every node's own address is a loopback address: the predicate would deny them all.
            return if self.allow_loopback { Ok(destination) } else { Err(AddressRefusal::Loopback) };
        }
        if self.filter_private && is_private(ip) {
            return Err(AddressRefusal::Private);
        }
        if self.is_beyond_lan(ip) {
            return Err(AddressRefusal::BeyondLan);
        }
        let denied = Arc::clone(&self.denied.read().unwrap_or_else(PoisonError::into_inner));
        if denied(ip) { Err(AddressRefusal::Own) } else { Ok(destination) }
    }
}

impl std::fmt::Debug for AddressPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AddressPolicy").field("allow_loopback", &self.allow_loopback).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(policy: &AddressPolicy, address: &str) -> Option<AddressRefusal> {
        policy.check(&address.parse().unwrap()).err()
    }

    #[test]
    fn addresses_that_never_work_are_refused_each_with_its_reason() {
        let policy = AddressPolicy::new(false);
        policy.set_denied(|ip| ip == IpAddr::from([10, 0, 0, 1]));
        for (address, reason) in [
            ("/dns4/example.org/tcp/1", AddressRefusal::Name),
            ("/ip4/10.0.0.2/udp/1", AddressRefusal::Unsupported),
            ("/ip4/10.0.0.2/udp/1/quic", AddressRefusal::Unsupported),
            ("/ip4/10.0.0.2/tcp/1/ws/tcp/1", AddressRefusal::Unsupported),
            ("/ip4/10.0.0.2/tcp/1/x-parity-ws/%2fmesh", AddressRefusal::Unsupported),
            ("/ip4/10.0.0.2/tcp/1/tls", AddressRefusal::Unsupported),
            ("/ip4/10.0.0.2/udp/1/ws", AddressRefusal::Unsupported),
            ("/ip4/10.0.0.2/tcp/0/wss", AddressRefusal::NoPort),
            ("/dns4/example.org/tcp/1/wss", AddressRefusal::Name),
            ("/memory/1", AddressRefusal::Unsupported),
            ("/ip4/0.0.0.0/tcp/1", AddressRefusal::Unspecified),
            ("/ip4/10.0.0.2/tcp/0", AddressRefusal::NoPort),
            ("/ip4/224.0.0.251/udp/1/quic-v1", AddressRefusal::Multicast),
            ("/ip4/255.255.255.255/udp/1/quic-v1", AddressRefusal::Multicast),
            ("/ip4/127.3.2.1/tcp/1", AddressRefusal::Loopback),
            ("/ip6/::1/tcp/1", AddressRefusal::Loopback),
            ("/ip6/::ffff:127.0.0.1/tcp/1", AddressRefusal::Loopback),
            ("/ip4/100.64.200.3/tcp/1", AddressRefusal::Overlay),
            ("/ip6/fd00:6879:7072:7370:1::2/tcp/1", AddressRefusal::Overlay),
            ("/ip4/10.0.0.1/tcp/1", AddressRefusal::Own),
            ("/ip6/::ffff:10.0.0.1/tcp/1", AddressRefusal::Own),
        ] {
            assert_eq!(refusal(&policy, address), Some(reason), "{address}");
        }
    }

    #[test]
    fn ordinary_addresses_are_dialled_and_loopback_when_allowed() {
        let policy = AddressPolicy::new(false);
        for address in [
            "/ip4/10.0.0.1/tcp/1",
            "/ip4/100.65.0.1/tcp/1",
            "/ip6/fd00::1/udp/1/quic-v1",
            "/ip4/10.0.0.1/udp/1/quic-v1/p2p/12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA",
            "/ip4/10.0.0.1/tcp/1/tls/sni/b.example/ws/p2p/12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA",
        ] {
            assert_eq!(refusal(&policy, address), None, "{address}");
        }
        assert_eq!(refusal(&AddressPolicy::new(true), "/ip4/127.0.0.1/tcp/1"), None);
    }

    #[test]
    fn private_addresses_are_denied_when_told_so_and_what_leads_into_the_tunnel_always() {
        let policy = AddressPolicy::new(false).filter_private(true);
        assert_eq!(refusal(&policy, "/ip4/10.0.0.1/tcp/1"), Some(AddressRefusal::Private));
        assert_eq!(refusal(&policy, "/ip4/203.0.113.1/tcp/1"), None);

        // The kernel sends to loopback addresses from one: as good as a tunnel's.
        let policy = AddressPolicy::new(true);
        let address = "/ip4/127.0.0.7/tcp/1".parse().unwrap();
        assert!(policy.check_dial(&address, true).is_ok());
        policy.set_inner(vec![Ipv4Addr::LOCALHOST.into()]);
        assert_eq!(policy.check_dial(&address, true), Err(AddressRefusal::IntoTunnel));
        assert!(policy.is_inside([127, 0, 0, 7].into()));
        assert_eq!((policy.take_covered().len(), policy.refused()), (0, [1, 0, 0]));
        for (address, local) in
            [("10.20.0.1", true), ("100.127.0.1", true), ("fd00:20::1", true), ("203.0.113.1", false)]
        {
            assert_eq!(is_local_use(address.parse().unwrap()), local, "{address}");
        }
    }

    #[test]
    fn what_is_private_shared_or_special_is_not_global() {
        for private in [
            "10.0.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "100.127.255.1",
            "169.254.0.1",
            "0.0.0.0",
            "240.0.0.1",
            "fd00::1",
            "fe80::1",
            "::",
            "::ffff:10.0.0.1",
            "fd00:6879:7072:7370:6163:6500::1",
        ] {
            assert!(!is_global(private.parse().unwrap()), "{private}");
        }
        for global in ["203.0.113.1", "100.128.0.1", "11.0.0.1", "2001:db8::1"] {
            assert!(is_global(global.parse().unwrap()), "{global}");
        }
    }

    #[test]
    fn circuits_are_read_whole_or_not_at_all_and_dialled_through_relays_that_are_peers() {
        let [relay, other] = [
            "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA",
            "12D3KooWP6VEGDDp6eiCSubLai8A9hoAWuFN9A2A5BysyaSbXtRN",
        ];
        let id: PeerId = relay.parse().unwrap();
        let policy = AddressPolicy::new(false).through([id]);
        let bare = format!("/ip4/10.0.0.1/tcp/1/p2p/{relay}/p2p-circuit");
        for address in [bare.clone(), format!("{bare}/p2p/{other}")] {
            let read = circuit(&address.parse().unwrap());
            assert_eq!(read, Some(Circuit { via: "/ip4/10.0.0.1/tcp/1".parse().unwrap(), relay: id }));
            assert_eq!(refusal(&policy, &address), None);
            assert_eq!(refusal(&AddressPolicy::new(false), &address), Some(AddressRefusal::StrangeRelay));
        }
        for address in [
            format!("/p2p/{relay}/p2p-circuit"),
            "/ip4/10.0.0.1/tcp/1/p2p-circuit".to_owned(),
            format!("{bare}/p2p/{other}/p2p-circuit"),
            format!("{bare}/ip4/10.0.0.2/tcp/1"),
            format!("/ip4/10.0.0.1/tcp/1/p2p/{relay}"),
        ] {
            assert_eq!(circuit(&address.parse().unwrap()), None, "{address}");
        }
        let loopback = format!("/ip4/127.0.0.1/tcp/1/p2p/{relay}/p2p-circuit");
        assert_eq!(refusal(&policy, &loopback), Some(AddressRefusal::Loopback));
        let strange = format!("/ip4/10.0.0.1/tcp/1/p2p/{other}/p2p-circuit");
        assert_eq!(refusal(&policy, &strange), Some(AddressRefusal::StrangeRelay));
    }

    #[test]
    fn a_web_address_says_whether_tls_is_outside() {
        for (address, transport) in [
            ("/ip4/10.0.0.1/tcp/443/ws", Some(TransportName::Ws)),
            ("/dns4/b.example/tcp/443/wss", Some(TransportName::Wss)),
            ("/ip6/2001:db8::1/tcp/443/tls/ws", Some(TransportName::Wss)),
            ("/ip4/10.0.0.1/tcp/443/tls/sni/b.example/ws", Some(TransportName::Wss)),
            ("/ip4/10.0.0.1/tcp/443/tls/sni/b.example", None),
            ("/ip4/10.0.0.1/tcp/443/wss/ws", None),
            ("/dnsaddr/b.example/tcp/443", None),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(transport_of(&address), transport, "{address}");
        }
    }

    #[test]
    fn on_a_lan_only_its_networks_are_dialled_and_refusals_are_counted() {
        let policy = AddressPolicy::new(false).lan_only(true);
        let near: Multiaddr = "/ip4/192.168.1.7/tcp/1".parse().unwrap();
        assert_eq!(policy.check(&near), Err(AddressRefusal::BeyondLan), "nothing is near before it is known what is");
        policy.set_lan(vec!["192.168.1.0/24".parse().unwrap(), "fe80::/64".parse().unwrap()]);
        assert!(policy.check(&near).is_ok());
        let far = "/ip4/192.168.2.7/tcp/1".parse().unwrap();
        assert_eq!(policy.check_dial(&far, true), Err(AddressRefusal::BeyondLan));
        assert_eq!(policy.refused(), [0, 0, 1]);
        assert!(policy.is_beyond_lan([203, 0, 113, 1].into()) && !policy.is_beyond_lan("fe80::1".parse().unwrap()));
        assert!(!policy.is_beyond_lan("::ffff:192.168.1.9".parse().unwrap()));
        assert!(!AddressPolicy::new(false).is_beyond_lan([203, 0, 113, 1].into()));
    }

    #[test]
    fn a_proxy_is_given_names_of_tcp_addresses_only() {
        let configured = ["/dns4/b.example/tcp/1", "/dns/C.example/tcp/2/wss", "/ip4/10.0.0.1/tcp/1"];
        let configured = configured.map(|address| address.parse().unwrap());
        let policy = AddressPolicy::new(false).proxied(true, &configured);
        for (address, passed) in [
            ("/dns4/b.example/tcp/1", true),
            ("/dns/c.example/tcp/2/wss", true),
            ("/dns4/localhost/tcp/22", false),
            ("/dns/b.example/tcp/443/wss", true),
            ("/dns/b.example/udp/1/quic-v1", false),
            ("/dnsaddr/b.example", false),
            ("/ip4/10.0.0.1/tcp/1", false),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(policy.passes_name(&address), passed, "{address}");
            assert!(!AddressPolicy::new(false).passes_name(&address));
        }
    }

    #[test]
    fn a_peer_id_at_the_end_is_cut_off_and_another_peers_is_refused() {
        let peer: PeerId = "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA".parse().unwrap();
        let bare: Multiaddr = "/ip4/10.0.0.1/tcp/1".parse().unwrap();
        let full = bare.clone().with(Protocol::P2p(peer));
        assert_eq!(without_peer(&full, &peer), Ok(bare.clone()));
        assert_eq!(without_peer(&bare, &peer), Ok(bare));
        assert_eq!(without_peer(&full, &PeerId::random()), Err(AddressRefusal::OtherPeer));
    }
}
