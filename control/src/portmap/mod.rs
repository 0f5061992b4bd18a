//! Asking the router: port mappings for the control port and for every worker's lanes, so that peers outside can begin.
//!
//! | File | What it is |
//! |---|---|
//! | `mod.rs` | [`PortMapper`]: which gateways are asked for what, and what others are to be told of it |
//! | `book.rs` | what one gateway has granted, and what to ask it next: pure |
//! | `session.rs` | the same gateway's socket, and which answers count |
//! | `igd.rs`, `http.rs` | UPnP: search, description, actions |
//!
//! Each gateway of a default route is asked from each of our addresses on its interface that we listen at: PCP first, then
//! NAT-PMP, then UPnP; for IPv6 only PCP, whose mappings are pinholes in the gateway's firewall there.

mod book;
mod http;
mod igd;
mod session;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use ringlane_shared::limits::PORT_MAPPING_GATEWAYS_MAX;
use ringlane_shared::wire::pcp::{ANNOUNCE_PORT, Transport};
use socket2::{Domain, Socket, Type};
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;
use tokio::time::{Sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

use self::book::Port;
use self::session::Session;
use crate::addresses::ListenPlan;
use crate::admin::mappings::{GatewayStatus, MappingStatus, MappingsStatus};
use crate::netlink::{Gateway, HostAddress};
use crate::swarm::address::is_global;

/// Between two looks at the routing table, when nothing says that it has changed.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// After a change of addresses: a route follows its address, and is not told of by itself.
const LOOKS_AFTER_CHANGE: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(15)];
/// Announcements of gateways read in one poll.
const ANNOUNCEMENTS_PER_POLL: usize = 16;
/// What the key of nonces is made of, beside our own.
const NONCE_LABEL: &[u8] = b"ringlane port mapping nonces";

/// What the control loop is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PortmapEvent {
    /// Read gateways and addresses, and call [`PortMapper::set_host`].
    Look,
    /// [`PortMapper::lanes`] or [`PortMapper::control`] may say something else.
    Changed,
}

/// Where we are, as far as it matters here.
pub(crate) struct Host<'h> {
    pub(crate) gateways: Vec<Gateway>,
    pub(crate) addresses: &'h [HostAddress],
    pub(crate) plan: &'h ListenPlan,
    /// Worker 0's port.
    pub(crate) first_port: u16,
    pub(crate) workers: u8,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct SessionKey {
    gateway: Gateway,
    ours: IpAddr,
}

/// What a mapped port is for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Purpose {
    workers: Vec<u8>,
    control: Vec<Multiaddr>,
}

/// Keeps the mappings. Owned by the control loop, polled on its runtime; opens no socket before it has a gateway.
pub(crate) struct PortMapper {
    sessions: BTreeMap<SessionKey, Session>,
    purposes: BTreeMap<SessionKey, BTreeMap<Port, Purpose>>,
    key: hmac::Key,
    announcements: Option<UdpSocket>,
    look_at: Instant,
    /// How many of [`LOOKS_AFTER_CHANGE`] have been.
    looks: usize,
    /// What has been told, by gateway, port, and where it is mapped to.
    told: BTreeMap<(SessionKey, Port), SocketAddr>,
    timer: Pin<Box<Sleep>>,
}

impl PortMapper {
    /// `secret` is ours and lasts: what a killed node left at a gateway is taken over by who has the same one.
    pub(crate) fn new(secret: &[u8], now: Instant) -> Self {
        let secret = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), NONCE_LABEL);
        Self {
            sessions: BTreeMap::new(),
            purposes: BTreeMap::new(),
            key: hmac::Key::new(hmac::HMAC_SHA256, secret.as_ref()),
            announcements: None,
            look_at: now,
            looks: 0,
            told: BTreeMap::new(),
            timer: Box::pin(sleep_until(now.into())),
        }
    }

    /// What to do next. Cancel-safe.
    pub(crate) async fn next(portmap: Option<&mut Self>) -> PortmapEvent {
        match portmap {
            Some(portmap) => poll_fn(|cx| portmap.poll(cx)).await,
            None => std::future::pending().await,
        }
    }

    /// The host's addresses have changed.
    pub(crate) fn handle_address_change(&mut self, now: Instant) {
        (self.look_at, self.looks) = (now, 0);
    }

    /// Asks exactly these gateways.
    pub(crate) fn set_host(&mut self, host: &Host<'_>, now: Instant) {
        let wanted = wanted(host);
        self.sessions.retain(|key, _| wanted.contains_key(key));
        for (key, ports) in &wanted {
            let session = self.sessions.entry(key.clone()).or_insert_with(|| {
                debug!(gateway = %key.gateway.ip, interface = key.gateway.interface_name, ours = %key.ours, "asking for port mappings");
                Session::new(key.gateway.clone(), key.ours, self.key.clone(), now)
            });
            session.book.set_wanted(ports.keys().copied(), now);
        }
        self.purposes = wanted;
        if self.announcements.is_none() && !self.sessions.is_empty() {
            self.announcements =
                announcements().inspect_err(|error| debug!(%error, "announcements of gateways are not heard")).ok();
        }
    }

    /// Worker and address of each lane port that can be reached from everywhere through a mapping.
    pub(crate) fn lanes(&self) -> Vec<(u8, SocketAddr)> {
        let mut lanes: Vec<_> = self
            .offered()
            .flat_map(|(purpose, address)| purpose.workers.iter().map(move |worker| (*worker, address)))
            .collect();
        lanes.sort_unstable();
        lanes.dedup();
        lanes
    }

    /// The same of libp2p's listeners, as multiaddresses.
    pub(crate) fn control(&self) -> Vec<Multiaddr> {
        let offered = self.offered();
        let control: BTreeSet<Multiaddr> = offered
            .flat_map(|(purpose, address)| purpose.control.iter().map(move |listener| moved(listener, address)))
            .collect();
        control.into_iter().collect()
    }

    /// What `ringlane status` says.
    pub(crate) fn status(&self) -> MappingsStatus {
        let now = Instant::now();
        let gateways = self.sessions.iter().map(|(key, session)| {
            let purposes = self.purposes.get(key);
            let mappings = session.book.mappings().map(|mapping| {
                let purpose = purposes.and_then(|purposes| purposes.get(&mapping.port));
                MappingStatus {
                    protocol: mapping.port.transport.name().to_owned(),
                    port: mapping.port.internal,
                    workers: purpose.map(|purpose| purpose.workers.clone()).unwrap_or_default(),
                    control: purpose.is_some_and(|purpose| !purpose.control.is_empty()),
                    external: mapping.external.map(SocketAddr::from),
                    offered: mapping.external.is_some_and(|(ip, _)| is_offered(ip, key.ours)),
                    method: mapping.grant.map(|grant| grant.method.name().to_owned()),
                    lifetime_seconds: mapping.grant.map(|grant| grant.lifetime.as_secs()),
                    expires_in_seconds: mapping
                        .grant
                        .map(|grant| grant.expires_at.saturating_duration_since(now).as_secs()),
                    renewals: mapping.renewals,
                    problem: mapping.refusal.map(str::to_owned),
                }
            });
            GatewayStatus {
                gateway: key.gateway.ip,
                interface: key.gateway.interface_name.clone(),
                local: key.ours,
                state: session.book.state().to_owned(),
                method: session.book.method().map(|method| method.name().to_owned()),
                external: session.book.external(),
                private: session.book.external().is_some_and(|ip| !is_global(ip)),
                restarts: session.book.restarts(),
                strange_answers: session.strange_answers,
                mappings: mappings.collect(),
            }
        });
        MappingsStatus { enabled: true, gateways: gateways.collect() }
    }

    /// Gives all mappings back, as far as that is done within `limit`.
    pub(crate) async fn release(mut self, limit: Duration) {
        for session in self.sessions.values_mut() {
            session.book.leave();
        }
        let left = poll_fn(|cx| {
            self.poll_sessions(cx, Instant::now());
            self.sessions.retain(|_, session| !session.book.has_left());
            if self.sessions.is_empty() {
                return Poll::Ready(());
            }
            match self.poll_timer(cx) {
                Poll::Ready(()) => cx.waker().wake_by_ref(),
                Poll::Pending => {}
            }
            Poll::Pending
        });
        if timeout(limit, left).await.is_err() {
            debug!("some port mappings could not be given back in time; they end with their lifetime");
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<PortmapEvent> {
        loop {
            let now = Instant::now();
            if now >= self.look_at {
                self.look_at = now + LOOKS_AFTER_CHANGE.get(self.looks).copied().unwrap_or(LOOK_INTERVAL);
                self.looks = self.looks.saturating_add(1);
                return Poll::Ready(PortmapEvent::Look);
            }
            self.poll_announcements(cx, now);
            self.poll_sessions(cx, now);
            if self.tell_changes() {
                return Poll::Ready(PortmapEvent::Changed);
            }
            if self.poll_timer(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    fn poll_sessions(&mut self, cx: &mut Context<'_>, now: Instant) {
        for session in self.sessions.values_mut() {
            session.poll(cx, now);
        }
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timeouts = self.sessions.values().filter_map(|session| session.book.poll_timeout());
        let deadline = timeouts.chain([self.look_at]).min().unwrap_or(self.look_at);
        self.timer.as_mut().reset(deadline.into());
        self.timer.as_mut().poll(cx)
    }

    /// A gateway that announces something is looked at; what it announces is not.
    fn poll_announcements(&mut self, cx: &mut Context<'_>, now: Instant) {
        let Some(socket) = &self.announcements else { return };
        for _ in 0..ANNOUNCEMENTS_PER_POLL {
            let mut bytes = [0; 64];
            let Poll::Ready(received) = socket.poll_recv_from(cx, &mut ReadBuf::new(&mut bytes)) else { return };
            let Ok(from) = received else { continue };
            for session in self.sessions.values_mut().filter(|session| session.gateway.ip == from.ip()) {
                session.book.look_again(now);
            }
        }
        cx.waker().wake_by_ref();
    }

    /// Logs what is mapped now and was not, and the other way round. Whether there was anything.
    fn tell_changes(&mut self) -> bool {
        let mut mapped = BTreeMap::new();
        for (key, session) in &self.sessions {
            for mapping in session.book.mappings() {
                if let Some(external) = mapping.external {
                    mapped.insert((key.clone(), mapping.port), SocketAddr::from(external));
                }
            }
        }
        if mapped == self.told {
            return false;
        }
        for ((key, port), external) in &mapped {
            if self.told.get(&(key.clone(), *port)) == Some(external) {
                continue;
            }
            let (protocol, gateway) = (port.transport.name(), key.gateway.ip);
            info!(%gateway, protocol, port = port.internal, %external, "the router maps a port");
            if !is_global(external.ip()) {
                warn!(%gateway, %external, "the router's own address is private: there is another translator behind it, and nobody is told of the mapping");
            }
        }
        for ((key, port), external) in self.told.iter().filter(|(at, _)| !mapped.contains_key(at)) {
            let (protocol, gateway) = (port.transport.name(), key.gateway.ip);
            info!(%gateway, protocol, port = port.internal, %external, "a port mapping is gone");
        }
        self.told = mapped;
        true
    }

    /// What is worth telling others: of a pinhole they know the address already.
    fn offered(&self) -> impl Iterator<Item = (&Purpose, SocketAddr)> {
        self.told
            .iter()
            .filter(|((key, _), external)| is_offered(external.ip(), key.ours))
            .filter_map(|((key, port), external)| Some((self.purposes.get(key)?.get(port)?, *external)))
    }
}

fn is_offered(external: IpAddr, ours: IpAddr) -> bool {
    is_global(external) && external != ours
}

/// The ports that each gateway is asked for, from each of our addresses.
fn wanted(host: &Host<'_>) -> BTreeMap<SessionKey, BTreeMap<Port, Purpose>> {
    let mut wanted = BTreeMap::new();
    for gateway in &host.gateways {
        for address in host.addresses.iter().filter(|address| address.interface_index == gateway.interface) {
            let ours = address.prefix.addr();
            if ours.is_ipv4() != gateway.ip.is_ipv4() || wanted.len() == PORT_MAPPING_GATEWAYS_MAX {
                continue;
            }
            // An address that is the same everywhere is a host's own only for IPv6; there the firewall is what is asked.
            if ours.is_ipv6() && !is_global(ours) {
                continue;
            }
            let ports = ports(host, ours);
            if !ports.is_empty() {
                wanted.insert(SessionKey { gateway: gateway.clone(), ours }, ports);
            }
        }
    }
    wanted
}

fn ports(host: &Host<'_>, ours: IpAddr) -> BTreeMap<Port, Purpose> {
    let mut ports: BTreeMap<Port, Purpose> = BTreeMap::new();
    for listener in &host.plan.control {
        if let Some((ip, transport, internal)) = listened(listener)
            && ip == ours
        {
            ports.entry(Port { transport, internal }).or_default().control.push(listener.clone());
        }
    }
    if host.plan.lanes.contains(&ours) {
        for worker in 0..host.workers {
            let Some(internal) = host.first_port.checked_add(worker.into()) else { break };
            ports.entry(Port { transport: Transport::Udp, internal }).or_default().workers.push(worker);
        }
    }
    ports
}

/// Address, transport and port that a multiaddress begins with.
fn listened(address: &Multiaddr) -> Option<(IpAddr, Transport, u16)> {
    let mut parts = address.iter();
    let ip = match parts.next()? {
        Protocol::Ip4(ip) => IpAddr::V4(ip),
        Protocol::Ip6(ip) => IpAddr::V6(ip),
        _ => return None,
    };
    match parts.next()? {
        Protocol::Tcp(port) if port > 0 => Some((ip, Transport::Tcp, port)),
        Protocol::Udp(port) if port > 0 => Some((ip, Transport::Udp, port)),
        _ => None,
    }
}

/// A listener's address as it is outside.
fn moved(listener: &Multiaddr, to: SocketAddr) -> Multiaddr {
    listener
        .iter()
        .map(|part| match part {
            Protocol::Ip4(_) | Protocol::Ip6(_) => Protocol::from(to.ip()),
            Protocol::Tcp(_) => Protocol::Tcp(to.port()),
            Protocol::Udp(_) => Protocol::Udp(to.port()),
            other => other,
        })
        .collect()
}

/// Hears what gateways announce to all hosts. Bound to the group, so that whoever sends to this port of an address of
/// ours finds it closed.
fn announcements() -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking(), None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::new(224, 0, 0, 1), ANNOUNCE_PORT)).into())?;
    UdpSocket::from_std(socket.into())
}
