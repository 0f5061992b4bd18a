//! Finding out without a running node: STUN servers, routers and peers' TCP addresses of a configuration are asked once.
//!
//! Nothing is changed: no port is mapped and no interface made. What asks is bounded by the configuration, and ends by itself
//! within 15 s: names are looked up at once, and then the servers are asked.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use ipnet::IpNet;
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use ringlane_shared::config::{self, Settings, StunServer};
use ringlane_shared::limits::{NETCHECK_CONTACTS_MAX, STUN_BYTES_READ_MAX};
use ringlane_shared::path::candidate::AddressPolicy;
use ringlane_shared::stun::client::{Client, Target};
use ringlane_shared::stun::message::TransactionId;
use ringlane_shared::stun::nat::Scope;
use socket2::Type;
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::time::{sleep_until, timeout};

use super::advice::advice;
use super::{family, routers, ways_out};
use crate::addresses::{ListenPlan, lan};
use crate::admin::mappings::MappingsStatus;
use crate::admin::nat::{CandidateStatus, HostStatus, ObservedStatus};
use crate::admin::netcheck::{ContactCheck, NetcheckStatus, StunServerStatus};
use crate::admin::relay::RelayNode;
use crate::admin::underlay::UnderlayStatus;
use crate::nat::names::look_up;
use crate::netlink::{Netlink, NetlinkError};
use crate::swarm::address::{host_and_port, is_circuit};
use crate::underlay;

/// A round of STUN, from the first question to the last that is given up.
const STUN_LIMIT: Duration = Duration::from_secs(9);
/// The same by QUIC's port, which is asked for nothing else.
const QUIC_PORT_LIMIT: Duration = Duration::from_secs(2);
/// Whoever has nothing to do for so long has done all there is.
const IDLE: Duration = Duration::from_secs(10);
/// How long a name, or a TCP connection, may take.
const PATIENCE: Duration = Duration::from_secs(4);
/// Ports that ask: two tell whether a NAT maps them alike.
const PORTS_MAX: u8 = 2;
/// Datagrams that wait to be looked at.
const RECEIVED_MAX: usize = 64;

/// Finds out. `workers` is how many a node of this configuration would run.
pub fn check(settings: &Settings, workers: u8) -> io::Result<Result<NetcheckStatus, NetlinkError>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let found = runtime.block_on(find_out(settings, workers));
    // A name may still be being looked up, on a thread that cannot be stopped.
    runtime.shutdown_background();
    Ok(found)
}

async fn find_out(settings: &Settings, workers: u8) -> Result<NetcheckStatus, NetlinkError> {
    let (netlink, _changes) = Netlink::connect()?;
    let host = netlink.host_addresses().await?;
    let gateways = netlink.gateways(&settings.interface).await?;
    let plan = ListenPlan::new(&settings.control.listen, &host, &settings.interface);
    let networks = lan(&host, &settings.interface);
    let ways = ways_out(&plan.lanes);
    let sources: Vec<IpAddr> = ways.iter().flatten().map(|way| way.source).collect();

    let asks_routers = settings.nat.port_mapping;
    let routers = async { if asks_routers { routers::ask(gateways, &host, &plan).await } else { Vec::new() } };
    let (stun, gateways, contacts) = futures::join!(
        ask_stun(settings, &sources, workers, quic_port(&plan), &networks),
        routers,
        try_contacts(settings)
    );
    let Stun { client, ports, servers, control } = stun;
    let hosts: Vec<HostStatus> = client.iter().flat_map(Client::views).map(host_status).collect();
    let candidates = client.iter().flat_map(|client| client.candidates());
    let mut found = NetcheckStatus {
        is_running: false,
        ipv4: family(true, ways[0], &hosts),
        ipv6: family(false, ways[1], &hosts),
        candidates: candidates.map(|candidate| CandidateStatus::new(&candidate, "server_reflexive")).collect(),
        hosts,
        control,
        stun_servers: servers,
        lane_ports: ports,
        listen: plan.control.iter().map(ToString::to_string).collect(),
        is_reachable: None,
        reachable_at: Vec::new(),
        mappings: MappingsStatus { enabled: asks_routers, gateways },
        relays: Vec::new(),
        path_mtu_bytes: Vec::new(),
        underlay: UnderlayStatus::new(&settings.control.web, networks.clone()),
        contacts,
        advice: Vec::new(),
    };
    found.advice = advice(&found);
    Ok(found)
}

fn host_status(view: &ringlane_shared::stun::nat::HostView) -> HostStatus {
    let is_near = view.scope == Some(Scope::Neighbours);
    HostStatus { view: view.clone(), is_udp_blocked: (view.servers_asked > 0).then_some(view.is_silent && !is_near) }
}

/// What came of a round of questions, and the ports that asked.
struct Stun {
    client: Option<Client>,
    ports: Vec<u16>,
    servers: Vec<StunServerStatus>,
    control: Vec<ObservedStatus>,
}

async fn ask_stun(
    settings: &Settings,
    sources: &[IpAddr],
    workers: u8,
    quic_port: Option<u16>,
    networks: &[IpNet],
) -> Stun {
    let servers: Vec<StunServerStatus> = join_all(settings.nat.stun_servers.iter().map(locate)).await;
    let (first_port, sockets) = match bind(settings, sources, workers) {
        Ok(bound) => bound,
        Err(error) => {
            tracing::debug!(%error, "no socket to ask by");
            return Stun { client: None, ports: Vec::new(), servers, control: Vec::new() };
        }
    };
    let ports = (sockets.len() / sources.len().max(1)) as u16;
    let ports: Vec<u16> = (0..ports).map(|worker| first_port + worker).collect();
    let of_servers = (0..).zip(&servers);
    let addresses = of_servers
        .flat_map(|(party, server)| server.addresses.iter().map(move |address| Target::server(*address, party)));
    let is_near = |ip: IpAddr| networks.iter().any(|network| network.contains(&ip));
    let far = |target: Target| if is_near(target.address.ip()) { target.nearby() } else { target };
    let targets: Vec<Target> = addresses.map(far).collect();
    let hosts: Vec<(IpAddr, Vec<Target>)> = sources.iter().map(|source| (*source, targets.clone())).collect();
    // One after the other: what a NAT makes of ports in a row is to be seen.
    let control = match quic_port {
        Some(port) => ask_by_quic_port(port, &hosts).await,
        None => Vec::new(),
    };
    let now = Instant::now();
    let mut client = Client::new(first_port, ports.len() as u8, Box::new(draw), now);
    client.set_policy(&AddressPolicy {
        filter_private: settings.control.filter_private_addresses,
        lan: (settings.control.web.scope == config::Scope::Lan).then(|| networks.to_vec()),
        ..AddressPolicy::default()
    });
    client.set_hosts(&hosts, now);
    run(&mut client, &sockets, now + STUN_LIMIT, |_| false).await;
    Stun { client: Some(client), ports, servers, control }
}

/// What others see of the port that libp2p's QUIC would have. A running node cannot ask: the socket is the library's.
async fn ask_by_quic_port(port: u16, hosts: &[(IpAddr, Vec<Target>)]) -> Vec<ObservedStatus> {
    let bound = hosts.iter().filter_map(|(local, _)| socket(SocketAddr::new(*local, port)).ok());
    let sockets: Vec<_> = bound.map(Arc::new).collect();
    let now = Instant::now();
    let mut client = Client::new(port, 1, Box::new(draw), now);
    client.set_hosts(hosts, now);
    let is_seen = |client: &Client| client.views().all(|view| view.ports.iter().all(|port| port.mapped.is_some()));
    run(&mut client, &sockets, now + QUIC_PORT_LIMIT, is_seen).await;
    let mapped = client.views().flat_map(|view| &view.ports).filter_map(|port| port.mapped);
    mapped.map(|mapped| ObservedStatus { address: quic_address(mapped).to_string(), peers: 1 }).collect()
}

/// The port that QUIC listens at.
fn quic_port(plan: &ListenPlan) -> Option<u16> {
    plan.control.iter().find_map(|address| {
        let parts: Vec<_> = address.iter().collect();
        match parts[..] {
            [_, Protocol::Udp(port), Protocol::QuicV1, ..] if port != 0 => Some(port),
            _ => None,
        }
    })
}

fn quic_address(at: SocketAddr) -> Multiaddr {
    Multiaddr::from(at.ip()).with(Protocol::Udp(at.port())).with(Protocol::QuicV1)
}

/// Where a configured server is.
async fn locate(server: &StunServer) -> StunServerStatus {
    let found = timeout(PATIENCE, look_up(server)).await.unwrap_or_else(|_| Err("no answer in time".to_owned()));
    let problem = found.as_ref().err().cloned();
    StunServerStatus { server: server.to_string(), addresses: found.unwrap_or_default(), problem }
}

fn draw() -> TransactionId {
    let mut bytes = [0; 12];
    // Without random numbers somebody could lie about a NAT.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    TransactionId(bytes)
}

/// The lanes' own ports, or, where somebody has them, any other one. The first of them, and the sockets.
fn bind(settings: &Settings, sources: &[IpAddr], workers: u8) -> io::Result<(u16, Vec<Arc<UdpSocket>>)> {
    let first = settings.dataplane.port;
    let bind_all = |first: u16, count: u8| -> io::Result<Vec<Arc<UdpSocket>>> {
        let mut sockets = Vec::new();
        for source in sources {
            for worker in 0..count {
                sockets.push(Arc::new(socket(SocketAddr::new(*source, first.saturating_add(worker.into())))?));
            }
        }
        Ok(sockets)
    };
    if let Ok(sockets) = bind_all(first, workers.clamp(1, PORTS_MAX)) {
        return Ok((first, sockets));
    }
    let Some(source) = sources.first() else { return Ok((first, Vec::new())) };
    let any = socket(SocketAddr::new(*source, 0))?.local_addr()?.port();
    bind_all(any, 1).map(|sockets| (any, sockets))
}

fn socket(local: SocketAddr) -> io::Result<UdpSocket> {
    let socket = underlay::socket(local, Type::DGRAM.nonblocking())?;
    if local.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&local.into())?;
    UdpSocket::from_std(socket.into())
}

/// Asks until there is nothing to ask for a while, or what is known is enough.
async fn run(client: &mut Client, sockets: &[Arc<UdpSocket>], deadline: Instant, is_enough: impl Fn(&Client) -> bool) {
    let (sender, mut received) = mpsc::channel(RECEIVED_MAX);
    for socket in sockets {
        let (socket, sender) = (Arc::clone(socket), sender.clone());
        // They end with the runtime.
        tokio::spawn(async move {
            loop {
                let mut datagram = [0; STUN_BYTES_READ_MAX];
                // A closed port says so, and is not the only one that was asked.
                let Ok((bytes, from)) = socket.recv_from(&mut datagram).await else { continue };
                let Ok(local) = socket.local_addr() else { break };
                let said = datagram.get(..bytes).unwrap_or_default().to_vec();
                if sender.send((local, from, said)).await.is_err() {
                    break;
                }
            }
        });
    }
    loop {
        let now = Instant::now();
        client.handle_timeout(now);
        while let Some(transmit) = client.poll_transmit(now) {
            let from = sockets.iter().find(|socket| socket.local_addr().is_ok_and(|local| local == transmit.local));
            if let Some(socket) = from {
                let _ = socket.send_to(&transmit.bytes, transmit.to).await;
            }
        }
        let due = client.poll_timeout().filter(|due| *due < now + IDLE);
        let Some(due) = due.filter(|_| now < deadline && !is_enough(client)) else { return };
        tokio::select! {
            Some((local, from, datagram)) = received.recv() => {
                let now = Instant::now();
                if !client.handle_own(local, &datagram, now) {
                    client.handle(local, from, &datagram, now);
                }
            }
            () = sleep_until(due.min(deadline).into()) => {}
        }
    }
}

/// Tries the peers' TCP addresses, or the proxy that all of them would be reached through.
async fn try_contacts(settings: &Settings) -> Vec<ContactCheck> {
    if let Some(proxy) = &settings.control.web.proxy {
        let node = RelayNode { name: "proxy".to_owned(), id: String::new() };
        return vec![try_contact(node, proxy.to_string(), proxy.host.clone(), proxy.port).await];
    }
    let of_peers = settings.peers.iter().flat_map(|peer| {
        let node = RelayNode { name: peer.name.clone(), id: peer.id.to_string() };
        peer.addresses.iter().map(move |address| (node.clone(), address))
    });
    let of_contacts = settings.control.discovery.bootstrap.iter().map(|address| (RelayNode::default(), address));
    let tried = of_peers.chain(of_contacts).filter_map(|(node, address)| {
        let (host, port) = tcp_end(address)?;
        Some(try_contact(node, address.to_string(), host, port))
    });
    join_all(tried.take(NETCHECK_CONTACTS_MAX)).await
}

async fn try_contact(node: RelayNode, address: String, host: String, port: u16) -> ContactCheck {
    let started = Instant::now();
    let outcome = match timeout(PATIENCE, TcpStream::connect((host.as_str(), port))).await {
        Ok(Ok(_)) => Ok(started.elapsed().as_micros().try_into().unwrap_or(u64::MAX)),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("timed out".to_owned()),
    };
    ContactCheck { node, address, took_us: outcome.as_ref().ok().copied(), problem: outcome.err() }
}

/// Host and port of an address that TCP leads to directly.
fn tcp_end(address: &Multiaddr) -> Option<(String, u16)> {
    host_and_port(address).filter(|_| !is_circuit(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_that_tcp_leads_to_are_tried() {
        let end = |text: &str| tcp_end(&text.parse().unwrap());
        assert_eq!(end("/ip4/192.0.2.1/tcp/8001"), Some(("192.0.2.1".to_owned(), 8001)));
        assert_eq!(end("/ip6/2001:db8::1/tcp/443/wss"), Some(("2001:db8::1".to_owned(), 443)));
        assert_eq!(end("/dns4/a.example/tcp/8001"), Some(("a.example".to_owned(), 8001)));
        for untried in ["/ip4/192.0.2.1/udp/8001/quic-v1", "/dnsaddr/a.example", "/p2p-circuit"] {
            assert_eq!(end(untried), None, "{untried}");
        }
        let relay = libp2p::PeerId::random();
        assert_eq!(end(&format!("/ip4/192.0.2.1/tcp/8001/p2p/{relay}/p2p-circuit")), None);
    }

    #[tokio::test]
    async fn a_server_that_answers_is_heard_and_the_round_ends_at_once() {
        use ringlane_shared::stun::message::Success;

        let loopback = IpAddr::from([127, 0, 0, 1]);
        let server = socket(SocketAddr::new(loopback, 0)).unwrap();
        let at = server.local_addr().unwrap();
        tokio::spawn(async move {
            let mut datagram = [0; 2048];
            while let Ok((bytes, from)) = server.recv_from(&mut datagram).await {
                let mut id = [0; 12];
                id.copy_from_slice(&datagram[8..20]);
                let mapped = "203.0.113.7:4000".parse().unwrap();
                let answer = Success { id: TransactionId(id), mapped, other: None, origin: None };
                if let Some(answer) = answer.to_bytes(bytes.max(200)) {
                    let _ = server.send_to(&answer, from).await;
                }
            }
        });
        let local = Arc::new(socket(SocketAddr::new(loopback, 0)).unwrap());
        let port = local.local_addr().unwrap().port();
        let now = Instant::now();
        let mut client = Client::new(port, 1, Box::new(draw), now);
        client.set_hosts(&[(loopback, vec![Target::server(at, 0)])], now);
        run(&mut client, &[local], now + STUN_LIMIT, |_| false).await;
        let view = client.views().next().unwrap();
        assert_eq!(view.ports[0].mapped, Some("203.0.113.7:4000".parse().unwrap()));
        assert_eq!(view.is_translated, Some(true));
    }
}
