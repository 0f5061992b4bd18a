//! The name server: a network's names, told to whoever on this host asks.
//!
//! What is answered is [`ringlane_shared::dns`]'s, which is pure. Here are the sockets it is asked through, and
//! systemd-resolved, which is told to ask.

mod listeners;
mod resolved;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ringlane_shared::config::Settings;
use ringlane_shared::dns::{Zone, ZoneConfig, listen_address};
use ringlane_shared::id::PeerId;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

/// A node's name server.
///
/// Owner: control; its tasks run on control's runtime and end when it is dropped. It asks nothing of the control loop:
/// names are static.
#[derive(Debug)]
pub struct NameServer {
    address: SocketAddr,
    tasks: JoinSet<()>,
}

impl NameServer {
    /// Starts the name server of a node whose interface has this index. Whatever keeps it from running is logged: a node
    /// without names is still of use.
    pub fn start(settings: &Settings, own: PeerId, interface: u32) -> Option<Self> {
        if !settings.dns.enabled {
            return None;
        }
        let host_name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let config = ZoneConfig {
            interface: &settings.interface,
            domain: &settings.dns.domain,
            host_name: host_name.trim(),
            own,
        };
        let peers = settings.peers.iter().map(|peer| (peer.name.as_str(), peer.id));
        let zone = match Zone::new(config, peers) {
            Ok(zone) => zone,
            Err(error) => {
                warn!(%error, "there are no names; write another dns.domain");
                return None;
            }
        };
        for name in zone.unusable() {
            debug!(name, "this peer has no name in DNS: a label has at most 63 bytes and no dot");
        }
        let wanted = settings.dns.listen.unwrap_or_else(|| listen_address(&settings.interface));
        let origin = zone.origin();
        let mut server = match Self::bind(wanted, zone) {
            Ok(server) => server,
            Err(error) => {
                warn!(address = %wanted, %error, "there are no names: the name server cannot listen");
                return None;
            }
        };
        info!(address = %server.address, zone = origin, "name server");
        if settings.dns.resolved {
            let link = resolved::Link { interface, server: reachable(server.address), zone: origin };
            server.tasks.spawn(resolved::tell(link));
        }
        Some(server)
    }

    /// Answers questions about `zone` at this address, over UDP and TCP.
    pub fn bind(address: SocketAddr, zone: Zone) -> io::Result<Self> {
        let (udp, tcp) = listeners::bind(address)?;
        let address = udp.local_addr()?;
        let zone = Arc::new(zone);
        let mut tasks = JoinSet::new();
        tasks.spawn(listeners::serve_udp(udp, Arc::clone(&zone)));
        tasks.spawn(listeners::serve_tcp(tcp, zone));
        Ok(Self { address, tasks })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Where this host reaches a server that listens there.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}
