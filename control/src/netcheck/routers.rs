//! Whether routers map ports: asked in all three protocols, and had to map none.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use ringlane_shared::limits::{PCP_BYTES_MAX, PORT_MAPPING_GATEWAYS_MAX, SSDP_ANSWERS_MAX, SSDP_BYTES_MAX};
use ringlane_shared::wire::pcp::{self, Answer, SERVER_PORT};
use ringlane_shared::wire::upnp::{SEARCH_GROUP, SEARCH_PORT, SEARCH_TARGETS, parse_search_answer, search};
use socket2::Type;
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use crate::addresses::ListenPlan;
use crate::admin::mappings::GatewayStatus;
use crate::netlink::{Gateway, HostAddress};
use crate::swarm::address::is_global;
use crate::underlay;

/// How long routers may take. Those with UPnP are told to answer within 1 s.
const PATIENCE: Duration = Duration::from_millis(2500);
/// Between two questions: the first may be lost.
const AGAIN: Duration = Duration::from_millis(600);
/// Datagrams that are read of one router.
const ANSWERS_MAX: usize = 16;

/// Asks every router from every address of ours that lanes would have on its interface.
pub(super) async fn ask(gateways: Vec<Gateway>, addresses: &[HostAddress], plan: &ListenPlan) -> Vec<GatewayStatus> {
    let pairs = gateways.iter().flat_map(|gateway| {
        let on_it = addresses.iter().filter(|address| address.interface_index == gateway.interface);
        let ips = on_it.map(|address| address.prefix.addr());
        ips.filter(|ip| ip.is_ipv4() == gateway.ip.is_ipv4() && plan.lanes.contains(ip)).map(move |ip| (gateway, ip))
    });
    let asked = pairs.take(PORT_MAPPING_GATEWAYS_MAX).map(|(gateway, ours)| ask_one(gateway, ours));
    futures::future::join_all(asked).await
}

async fn ask_one(gateway: &Gateway, ours: IpAddr) -> GatewayStatus {
    let deadline = Instant::now() + PATIENCE;
    let upnp = async {
        match (gateway.ip, ours) {
            (IpAddr::V4(router), IpAddr::V4(ours)) => finds_upnp(router, ours, deadline).await.unwrap_or_default(),
            _ => false,
        }
    };
    let (pcp, has_upnp) = futures::join!(ask_pcp(gateway, ours, deadline), upnp);
    let Pcp { has_pcp, external } = pcp.unwrap_or_default();
    let method = match (has_pcp, external, has_upnp) {
        (true, _, _) => Some("pcp"),
        (false, Some(_), _) => Some("nat-pmp"),
        (false, None, true) => Some("upnp"),
        (false, None, false) => None,
    };
    let found = GatewayStatus::new(gateway.ip, &gateway.interface_name, ours);
    let Some(method) = method else { return found };
    GatewayStatus {
        state: "settled".to_owned(),
        method: Some(method.to_owned()),
        external: external.map(IpAddr::V4),
        private: external.is_some_and(|ip| !is_global(ip.into())),
        ..found
    }
}

#[derive(Default)]
struct Pcp {
    has_pcp: bool,
    external: Option<Ipv4Addr>,
}

async fn ask_pcp(gateway: &Gateway, ours: IpAddr, deadline: Instant) -> io::Result<Pcp> {
    let remote = match gateway.ip {
        IpAddr::V4(ip) => SocketAddr::from((ip, SERVER_PORT)),
        // A link-local router is one of an interface.
        IpAddr::V6(ip) => SocketAddrV6::new(ip, SERVER_PORT, 0, gateway.interface).into(),
    };
    let socket = underlay::socket(remote, Type::DGRAM.nonblocking())?;
    socket.bind(&SocketAddr::new(ours, 0).into())?;
    socket.connect(&remote.into())?;
    let socket = UdpSocket::from_std(socket.into())?;
    let mut found = Pcp::default();
    for _ in 0..ANSWERS_MAX {
        if found.has_pcp && (found.external.is_some() || ours.is_ipv6()) {
            break;
        }
        let mut answer = [0; PCP_BYTES_MAX];
        // Those who have not answered are asked again.
        let _ = socket.send(&pcp::announce(ours)).await;
        if ours.is_ipv4() {
            let _ = socket.send(&pcp::nat_pmp_external()).await;
        }
        match timeout_at(deadline.min(Instant::now() + AGAIN), socket.recv(&mut answer)).await {
            Ok(Ok(bytes)) => match pcp::parse(answer.get(..bytes).unwrap_or_default()) {
                Ok(Answer::Announced { .. }) => found.has_pcp = true,
                Ok(Answer::NatPmpExternal { outcome: Ok(ip), .. }) => found.external = Some(ip),
                _ => {}
            },
            // Nobody listens at that port.
            Ok(Err(_)) => break,
            Err(_) if Instant::now() >= deadline => break,
            Err(_) => {}
        }
    }
    Ok(found)
}

async fn finds_upnp(router: Ipv4Addr, ours: Ipv4Addr, deadline: Instant) -> io::Result<bool> {
    let socket = underlay::socket((SEARCH_GROUP, SEARCH_PORT).into(), Type::DGRAM.nonblocking())?;
    socket.bind(&SocketAddr::from((ours, 0)).into())?;
    socket.set_multicast_if_v4(&ours)?;
    let socket = UdpSocket::from_std(socket.into())?;
    for target in SEARCH_TARGETS {
        for to in [SEARCH_GROUP, router] {
            let _ = socket.send_to(search(target).as_bytes(), (to, SEARCH_PORT)).await;
        }
    }
    for _ in 0..SSDP_ANSWERS_MAX {
        let mut answer = [0; SSDP_BYTES_MAX];
        let Ok(received) = timeout_at(deadline, socket.recv_from(&mut answer)).await else { break };
        // A closed port says so, and is not the only one that was asked.
        let Ok((bytes, from)) = received else { continue };
        let said = answer.get(..bytes).unwrap_or_default();
        if from.ip() == IpAddr::V4(router) && parse_search_answer(said, router).is_ok() {
            return Ok(true);
        }
    }
    Ok(false)
}
