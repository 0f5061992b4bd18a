//! The addresses we listen on: what was asked for, and what became of it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use libp2p::Multiaddr;
use libp2p::core::transport::{ListenerId, TransportError};
use libp2p::swarm::{NetworkBehaviour, Swarm};
use ringlane_shared::limits::LISTEN_ADDRESSES_MAX;
use socket2::{Domain, Socket, Type};
use thiserror::Error;

use super::address::{self, AddressRefusal, Destination};
use super::connections::TransportName;

/// An address we could not listen on, and why.
#[derive(Debug, Error)]
#[error("cannot listen on {address}: {fault}")]
pub struct ListenError {
    /// The address as it was given.
    pub address: Multiaddr,
    /// Why.
    #[source]
    pub fault: ListenFault,
}

/// Why an address cannot be listened on.
#[derive(Debug, Error)]
pub enum ListenFault {
    /// Another socket has it.
    #[error("it is in use by another program: stop that one, or choose another port")]
    InUse,
    /// The host does not have this IP address.
    #[error("this host has no such address: correct it, or use /ip4/0.0.0.0 and /ip6/:: for whatever addresses it has")]
    NotLocal,
    /// The port is a privileged one.
    #[error("no permission to use this port: choose one above 1023, or give the node CAP_NET_BIND_SERVICE")]
    NotPermitted,
    /// It is not an address of a kind we listen on.
    #[error("{0}")]
    Address(#[from] AddressRefusal),
    /// Too many addresses.
    #[error("more than {LISTEN_ADDRESSES_MAX} addresses")]
    TooMany,
    /// The kernel or the transport refused for another reason.
    #[error("{0}")]
    Other(String),
}

impl From<io::Error> for ListenFault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::AddrInUse => Self::InUse,
            io::ErrorKind::AddrNotAvailable => Self::NotLocal,
            io::ErrorKind::PermissionDenied => Self::NotPermitted,
            _ => Self::Other(error.to_string()),
        }
    }
}

/// The listeners of one node, by the address they were asked for.
pub(super) struct Listeners {
    listeners: BTreeMap<Multiaddr, ListenerId>,
    /// The addresses are the kernel's.
    is_internet: bool,
}

impl Listeners {
    /// None yet; of a node whose addresses are the kernel's, or not.
    pub(super) fn new(is_internet: bool) -> Self {
        Self { listeners: BTreeMap::new(), is_internet }
    }

    /// Listens on exactly these addresses: closes the listeners of all others, opens those that are missing.
    pub(super) fn set<B: NetworkBehaviour>(
        &mut self,
        swarm: &mut Swarm<B>,
        addresses: &[Multiaddr],
    ) -> Vec<ListenError> {
        let wanted: BTreeSet<&Multiaddr> = addresses.iter().collect();
        for (_, id) in self.listeners.extract_if(.., |address, _| !wanted.contains(address)) {
            swarm.remove_listener(id);
        }
        let mut errors = Vec::new();
        for &address in &wanted {
            if self.listeners.contains_key(address) {
                continue;
            }
            match self.open(swarm, address) {
                Ok(id) => {
                    self.listeners.insert(address.clone(), id);
                }
                Err(fault) => errors.push(ListenError { address: address.clone(), fault }),
            }
        }
        errors
    }

    fn open<B: NetworkBehaviour>(&self, swarm: &mut Swarm<B>, address: &Multiaddr) -> Result<ListenerId, ListenFault> {
        let destination = address::parse(address)?;
        // The library would follow the interfaces by itself and listen on, and announce, the TUN's addresses.
        if destination.socket.ip().is_unspecified() {
            return Err(AddressRefusal::Unspecified.into());
        }
        if self.listeners.len() >= LISTEN_ADDRESSES_MAX {
            return Err(ListenFault::TooMany);
        }
        if self.is_internet {
            probe(&destination)?;
        }
        swarm.listen_on(address.clone()).map_err(|error| match error {
            TransportError::MultiaddrNotSupported(_) => AddressRefusal::Unsupported.into(),
            TransportError::Other(error) => ListenFault::from(error),
        })
    }

    /// The listener ended; the address it was asked for, if it is not we who ended it.
    pub(super) fn handle_closed(&mut self, id: ListenerId) -> Option<Multiaddr> {
        let address = self.address_of(id)?.clone();
        self.listeners.remove(&address);
        Some(address)
    }

    /// The address a listener was asked for.
    pub(super) fn address_of(&self, id: ListenerId) -> Option<&Multiaddr> {
        self.listeners.iter().find_map(|(address, &other)| (other == id).then_some(address))
    }
}

/// Binds the address for a moment, strictly. The transport's own TCP socket shares its port (`SO_REUSEPORT`, so that
/// dials can leave from it) and would silently share it with another process of the same user; and the reason for a
/// failure is plain here, where the transport wraps it.
fn probe(destination: &Destination) -> io::Result<()> {
    let kind = match destination.transport {
        TransportName::Quic => Type::DGRAM,
        TransportName::Tcp | TransportName::Ws | TransportName::Wss => Type::STREAM,
    };
    let socket = Socket::new(Domain::for_address(destination.socket), kind, None)?;
    if matches!(destination.socket.ip(), IpAddr::V6(_)) {
        socket.set_only_v6(true)?;
    }
    if destination.transport.is_tcp() {
        // Connections that linger from an earlier run do not count, a listener does.
        socket.set_reuse_address(true)?;
    }
    socket.bind(&destination.socket.into())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    fn destination(address: &str) -> Destination {
        address::parse(&address.parse().unwrap()).unwrap()
    }

    #[test]
    fn a_port_in_use_is_noticed_on_tcp_and_udp_and_a_free_one_is_not() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let tcp_address = format!("/ip4/127.0.0.1/tcp/{}", tcp.local_addr().unwrap().port());
        let udp_address = format!("/ip4/127.0.0.1/udp/{}/quic-v1", udp.local_addr().unwrap().port());
        for address in [&tcp_address, &udp_address] {
            let fault = ListenFault::from(probe(&destination(address)).unwrap_err());
            assert!(matches!(fault, ListenFault::InUse), "{address}: {fault}");
        }
        assert!(probe(&destination("/ip4/127.0.0.1/tcp/0")).is_ok());
        assert!(probe(&destination("/ip4/127.0.0.1/udp/0/quic-v1")).is_ok());
    }

    #[test]
    fn a_port_shared_by_another_process_counts_as_in_use() {
        let shared = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        shared.set_reuse_address(true).unwrap();
        shared.set_reuse_port(true).unwrap();
        shared.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        shared.listen(1).unwrap();
        let port = shared.local_addr().unwrap().as_socket().unwrap().port();
        let error = probe(&destination(&format!("/ip4/127.0.0.1/tcp/{port}"))).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn an_address_the_host_does_not_have_is_named_as_such() {
        let fault = ListenFault::from(probe(&destination("/ip4/192.0.2.77/tcp/0")).unwrap_err());
        assert!(matches!(fault, ListenFault::NotLocal), "{fault}");
    }
}
