//! Talking UPnP with one gateway: finding its service, and asking it. Each function is one future that ends by itself.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ringlane_shared::limits::{SSDP_ANSWERS_MAX, SSDP_BYTES_MAX, UPNP_ANSWER_BYTES_MAX, UPNP_DESCRIPTION_BYTES_MAX};
use ringlane_shared::wire::pcp::Transport;
use ringlane_shared::wire::upnp::{
    Action, ActionAnswer, Location, SEARCH_GROUP, SEARCH_PORT, SEARCH_TARGETS, Service, ServiceKind, error_name,
    parse_action_answer, parse_description, parse_search_answer, search,
};
use socket2::Type;
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use super::book::{Port, Question, Reply};
use super::http::{self, HttpError, Soap};
use crate::underlay;

/// How long a search may take. Gateways are told to answer within 1 s.
const SEARCH_TIMEOUT: Duration = Duration::from_millis(2500);
/// How long all of one question may take: a mapping may need several requests.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(8);
/// External ports that are tried for one mapping.
const PORTS_TRIED_MAX: u16 = 8;
/// UPnP's code for "that port is taken by another host".
const CONFLICT: u16 = 718;
/// Taken by PCP or NAT-PMP.
const CONFLICT_OTHER: u16 = 729;
/// Only mappings without an end are to be had.
const ONLY_PERMANENT: u16 = 725;

/// A gateway's service, and where it is asked from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Igd {
    pub(super) ours: Ipv4Addr,
    pub(super) gateway: Ipv4Addr,
    pub(super) service: Service,
}

/// Asks; without a known service it is searched for first. What is found comes back with the answer.
pub(super) async fn ask(
    ours: Ipv4Addr,
    gateway: Ipv4Addr,
    known: Option<Igd>,
    question: Question,
) -> (Reply, Option<Igd>) {
    let asked = async {
        let igd = match known {
            Some(igd) => igd,
            None => match find(ours, gateway).await {
                Some(igd) => igd,
                None => return (Reply::Silent, None),
            },
        };
        match igd.ask(question).await {
            Ok(reply) => (reply, Some(igd)),
            Err(error) => {
                debug!(%gateway, %error, "the gateway's UPnP service fails");
                (Reply::Silent, None)
            }
        }
    };
    tokio::time::timeout(QUESTION_TIMEOUT, asked).await.unwrap_or((Reply::Silent, None))
}

/// Searches for a service that maps ports, at the gateway and nowhere else. Of several the first that knows an address.
async fn find(ours: Ipv4Addr, gateway: Ipv4Addr) -> Option<Igd> {
    let socket = search_socket(ours).inspect_err(|error| debug!(%ours, %error, "cannot search for UPnP")).ok()?;
    for target in SEARCH_TARGETS {
        let message = search(target);
        for to in [SEARCH_GROUP, gateway] {
            if let Err(error) = socket.send_to(message.as_bytes(), (to, SEARCH_PORT)).await {
                debug!(%to, %error, "cannot search for UPnP");
            }
        }
    }
    let deadline = Instant::now() + SEARCH_TIMEOUT;
    let mut refused: Vec<Location> = Vec::new();
    for _ in 0..SSDP_ANSWERS_MAX {
        let mut answer = [0; SSDP_BYTES_MAX];
        let (length, from) = match timeout_at(deadline, socket.recv_from(&mut answer)).await {
            Ok(Ok(received)) => received,
            // A closed port says so, and is not the only one that was asked.
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
            _ => return None,
        };
        if from.ip() != IpAddr::V4(gateway) {
            debug!(%from, "not listening to an answer to a search that is not the gateway's");
            continue;
        }
        let location = match parse_search_answer(&answer[..length], gateway) {
            Ok(location) if !refused.contains(&location) => location,
            Ok(_) => continue,
            Err(error) => {
                debug!(%from, %error, "an answer to a search is refused");
                continue;
            }
        };
        if let Some(igd) = describe(ours, gateway, &location).await {
            return Some(igd);
        }
        refused.push(location);
    }
    None
}

async fn describe(ours: Ipv4Addr, gateway: Ipv4Addr, location: &Location) -> Option<Igd> {
    let (_, document) = http::request(ours, gateway, location, None, UPNP_DESCRIPTION_BYTES_MAX)
        .await
        .inspect_err(|error| debug!(%gateway, %error, "no description of the gateway"))
        .ok()?;
    let services = parse_description(&document, location, gateway)
        .inspect_err(|error| debug!(%gateway, %error, "the gateway's description is of no use"))
        .ok()?;
    let mut first = None;
    for service in services {
        let igd = Igd { ours, gateway, service };
        match igd.perform(Action::ExternalAddress).await {
            Ok(answer) if answer.external_address.is_some_and(|ip| !ip.is_unspecified()) => return Some(igd),
            _ => first = first.or(Some(igd)),
        }
    }
    first
}

impl Igd {
    async fn ask(&self, question: Question) -> Result<Reply, HttpError> {
        match question {
            Question::Check => {
                let uptime = self.perform(Action::Status).await?.uptime;
                let external = self.perform(Action::ExternalAddress).await?.external_address;
                Ok(Reply::Alive { epoch: uptime, external: external.map(IpAddr::V4) })
            }
            Question::Map { port, external: (_, external), lifetime } => self.map(port, external, lifetime).await,
            Question::Unmap { port, external } => {
                self.perform(Action::Delete { transport: port.transport, external }).await?;
                Ok(Reply::Unmapped)
            }
        }
    }

    async fn map(&self, port: Port, mut external: u16, mut lifetime: u32) -> Result<Reply, HttpError> {
        let mut any = self.service.kind == ServiceKind::Ip2;
        let mut code = 0;
        for tried in 0..PORTS_TRIED_MAX {
            let ours = (self.ours, port.internal);
            let action = Action::Add { transport: port.transport, external, ours, lifetime, any };
            let answer = self.perform(action).await?;
            let Some(error) = answer.error else {
                let external = answer.reserved_port.filter(|_| any).unwrap_or(external);
                // What has no end is looked at as often as what has one.
                let lifetime = if lifetime == 0 { super::book::LIFETIME_SECONDS } else { lifetime };
                return Ok(Reply::Mapped { external: (None, external), lifetime, epoch: None });
            };
            code = error;
            match error {
                ONLY_PERMANENT if lifetime != 0 => lifetime = 0,
                CONFLICT | CONFLICT_OTHER => external = another_port(port, tried),
                // Not every version 2 has it.
                _ if any => any = false,
                _ => break,
            }
        }
        Ok(Reply::Refused { reason: format!("{} (code {code})", error_name(code)), seconds: 0 })
    }

    async fn perform(&self, action: Action) -> Result<ActionAnswer, HttpError> {
        let kind = self.service.kind;
        let soap = Soap { action: format!("\"{}#{}\"", kind.urn(), action.name()), body: action.body(kind) };
        let location = &self.service.control;
        let (status, body) =
            http::request(self.ours, self.gateway, location, Some(soap), UPNP_ANSWER_BYTES_MAX).await?;
        match parse_action_answer(&body) {
            Ok(answer) if status.is_success() || answer.error.is_some() => Ok(answer),
            _ => Err(HttpError::Http(format!("no answer to the action, status {status}"))),
        }
    }
}

/// External ports to try when the wanted one is taken: far from it and from each other, above those of services, and the
/// same at each start, so that a mapping that was left behind is found again.
fn another_port(port: Port, tried: u16) -> u16 {
    let salt = if port.transport == Transport::Udp { 0x5bd1 } else { 0x1b87 };
    let mixed = u32::from(port.internal).wrapping_mul(40_503) ^ u32::from(tried + 1).wrapping_mul(25_173) ^ salt;
    20_000 + (mixed % 40_000) as u16
}

fn search_socket(ours: Ipv4Addr) -> io::Result<UdpSocket> {
    let any = SocketAddr::from((SEARCH_GROUP, SEARCH_PORT));
    let socket = underlay::socket(any, Type::DGRAM.nonblocking())?;
    socket.bind(&SocketAddr::from((ours, 0)).into())?;
    socket.set_multicast_if_v4(&ours)?;
    socket.set_multicast_ttl_v4(2)?;
    UdpSocket::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ports_that_are_tried_differ_and_leave_room_for_services() {
        for internal in [1, 8001, 8100, 8163, u16::MAX] {
            for transport in [Transport::Tcp, Transport::Udp] {
                let ports = (0..PORTS_TRIED_MAX).map(|tried| another_port(Port { transport, internal }, tried));
                let ports: std::collections::BTreeSet<u16> = ports.collect();
                assert_eq!(ports.len(), usize::from(PORTS_TRIED_MAX));
                assert!(ports.iter().all(|port| (20_000..60_000).contains(port)));
            }
        }
    }
}
