//! The library's TCP transport, but for dialling: that is done here, from marked sockets, or through a proxy.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures::future::{BoxFuture, FutureExt};
use libp2p::core::transport::{DialOpts, ListenerId, PortUse, TransportError, TransportEvent};
use libp2p::tcp::tokio::{TcpStream, Transport as Inner};
use libp2p::{Multiaddr, Transport, tcp};
use socket2::Type;
use tokio::net::TcpSocket;

use super::address;
use super::connections::TransportName;
use super::web::Proxy;
use crate::underlay;

/// TCP whose outbound connections carry our mark, so that a route of ours never takes them into the tunnel. What it
/// accepts needs none: it leaves from a port that the routing rules know.
pub(super) struct MarkedTcp {
    inner: Inner,
    listening: TcpPorts,
    is_web: bool,
    proxy: Option<Proxy>,
}

/// Where a node's TCP transports listen: ports that the routing rules know, so that also replies find their way where
/// reverse path filtering is strict. Shared by transports of one swarm, which are on one thread but have to be `Send`,
/// hence the (never contended) lock.
#[derive(Clone, Default)]
pub(super) struct TcpPorts(Arc<Mutex<Vec<TcpPort>>>);

#[derive(Clone, Copy)]
struct TcpPort {
    id: ListenerId,
    local: SocketAddr,
    is_web: bool,
}

impl TcpPorts {
    fn lock(&self) -> MutexGuard<'_, Vec<TcpPort>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MarkedTcp {
    pub(super) fn new(config: tcp::Config, listening: TcpPorts, proxy: Option<Proxy>) -> Self {
        Self { inner: Inner::new(config), listening, is_web: false, proxy }
    }

    /// The same for what WebSockets run over, which may leave from other listeners' ports too: rather from those, as
    /// nobody is told where a WebSocket came from.
    pub(super) fn for_web(self) -> Self {
        Self { is_web: true, ..self }
    }

    /// The listener whose port a connection to `remote` can share, as hole punching needs: one at the address that the
    /// kernel would send from, if there is one.
    fn shared_port(&self, remote: SocketAddr) -> Option<SocketAddr> {
        let routed = underlay::source_to(remote, true);
        let mut ports: Vec<TcpPort> = self.listening.lock().clone();
        ports.retain(|port| underlay::may_reach(port.local.ip(), remote.ip()) && (self.is_web || !port.is_web));
        ports.sort_by_key(|port| (routed != Some(port.local.ip()), port.is_web));
        ports.first().map(|port| port.local)
    }
}

impl Transport for MarkedTcp {
    type Output = TcpStream;
    type Error = io::Error;
    type ListenerUpgrade = <Inner as Transport>::ListenerUpgrade;
    type Dial = BoxFuture<'static, io::Result<TcpStream>>;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<io::Error>> {
        let local = tcp_destination(&address);
        self.inner.listen_on(id, address)?;
        // A port that the kernel chooses is not known here, and not shared.
        if let Some(local) = local.filter(|local| local.port() != 0) {
            self.listening.lock().push(TcpPort { id, local, is_web: self.is_web });
        }
        Ok(())
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.listening.lock().retain(|port| port.id != id);
        self.inner.remove_listener(id)
    }

    fn dial(&mut self, address: Multiaddr, options: DialOpts) -> Result<Self::Dial, TransportError<io::Error>> {
        if let Some(proxy) = self.proxy.clone() {
            let proxied =
                (address::transport_of(&address) == Some(TransportName::Tcp)).then(|| address::host_and_port(&address));
            let Some((host, port)) = proxied.flatten() else {
                return Err(TransportError::MultiaddrNotSupported(address));
            };
            return Ok(async move { proxy.connect(&host, port).await.map(TcpStream) }.boxed());
        }
        let Some(remote) = tcp_destination(&address) else {
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        let local = self.shared_port(remote).filter(|_| options.port_use == PortUse::Reuse);
        Ok(connect(remote, local).boxed())
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        let polled = Pin::new(&mut self.inner).poll(cx);
        if let Poll::Ready(TransportEvent::ListenerClosed { listener_id, .. }) = &polled {
            self.listening.lock().retain(|port| port.id != *listener_id);
        }
        polled
    }
}

fn tcp_destination(address: &Multiaddr) -> Option<SocketAddr> {
    let destination = address::parse(address).ok()?;
    (destination.transport == TransportName::Tcp).then_some(destination.socket)
}

async fn connect(remote: SocketAddr, local: Option<SocketAddr>) -> io::Result<TcpStream> {
    let connected = match socket(remote, local)?.connect(remote).await {
        // A connection between the two ports is there, or was a moment ago.
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable && local.is_some() => {
            socket(remote, None)?.connect(remote).await
        }
        connected => connected,
    };
    connected.map(TcpStream)
}

fn socket(remote: SocketAddr, local: Option<SocketAddr>) -> io::Result<TcpSocket> {
    let socket = underlay::socket(remote, Type::STREAM.nonblocking())?;
    if remote.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_tcp_nodelay(true)?;
    socket.set_reuse_address(true)?;
    if let Some(local) = local {
        socket.set_reuse_port(true)?;
        socket.bind(&local.into())?;
    }
    Ok(TcpSocket::from_std_stream(socket.into()))
}
