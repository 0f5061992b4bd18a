//! The transport of `/ws` and `/wss`.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use libp2p::core::transport::{DialOpts, ListenerId, TransportError, TransportEvent};
use libp2p::multiaddr::Protocol;
use libp2p::tcp::tokio::TcpStream;
use libp2p::{Multiaddr, Transport};
use rustls::pki_types::ServerName;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{accept_async_with_config, client_async_with_config};

use super::stream::{Carrier, WebStream, config};
use super::tls::OuterTls;
use super::{Web, invalid};
use crate::swarm::address;
use crate::swarm::connections::TransportName;
use crate::swarm::tcp::MarkedTcp;

/// How long a dial of a WebSocket waits for the others that were begun with it: the first to succeed wins, and where
/// anything else passes it is better.
const HEAD_START_OF_OTHERS: Duration = Duration::from_millis(250);

/// WebSockets over TCP.
pub(in crate::swarm) struct WebTransport {
    tcp: MarkedTcp,
    tls: OuterTls,
    connector: TlsConnector,
    listeners: HashMap<ListenerId, Listener>,
}

/// One that listens.
struct Listener {
    /// What stands behind the TCP port in its addresses.
    suffix: Vec<Protocol<'static>>,
    /// Of `/wss`.
    acceptor: Option<TlsAcceptor>,
}

impl Listener {
    fn complete(&self, address: Multiaddr) -> Multiaddr {
        self.suffix.iter().fold(address, |address, part| address.with(part.clone()))
    }
}

impl WebTransport {
    /// WebSockets over this TCP.
    pub(in crate::swarm) fn new(tcp: MarkedTcp, web: &Web) -> Result<Self, String> {
        let connector = OuterTls::connector().map_err(|error| error.to_string())?;
        Ok(Self { tcp, tls: web.tls.clone(), connector, listeners: HashMap::new() })
    }
}

/// Splits an address of a WebSocket behind its TCP port; whether TLS is outside.
fn split(address: &Multiaddr) -> Option<(Multiaddr, Vec<Protocol<'static>>, bool)> {
    let transport = address::transport_of(address).filter(|transport| transport.is_web())?;
    let tcp = address.iter().take(2).collect();
    let suffix = address.iter().skip(2).filter(|part| !matches!(part, Protocol::P2p(_)));
    Some((tcp, suffix.map(Protocol::acquire).collect(), transport == TransportName::Wss))
}

impl Transport for WebTransport {
    type Output = WebStream;
    type Error = io::Error;
    type ListenerUpgrade = BoxFuture<'static, io::Result<WebStream>>;
    type Dial = BoxFuture<'static, io::Result<WebStream>>;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<io::Error>> {
        let Some((tcp, suffix, is_tls)) = split(&address) else {
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        let acceptor = is_tls.then(|| self.tls.acceptor()).transpose();
        let acceptor = acceptor.map_err(|error| TransportError::Other(invalid(error)))?;
        self.tcp.listen_on(id, tcp)?;
        self.listeners.insert(id, Listener { suffix, acceptor });
        Ok(())
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.tcp.remove_listener(id)
    }

    fn dial(&mut self, address: Multiaddr, options: DialOpts) -> Result<Self::Dial, TransportError<io::Error>> {
        let Some((tcp, suffix, is_tls)) = split(&address) else {
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        let host = Host::of(&tcp, &suffix).ok_or(TransportError::MultiaddrNotSupported(address))?;
        let connector = is_tls.then(|| self.connector.clone());
        let connecting = self.tcp.dial(tcp, options)?;
        let dial = async move {
            tokio::time::sleep(HEAD_START_OF_OTHERS).await;
            let TcpStream(socket) = connecting.await?;
            let socket: Box<dyn Carrier> = match connector {
                Some(connector) => {
                    let name = ServerName::try_from(host.name.clone()).map_err(invalid)?;
                    Box::new(connector.connect(name, socket).await?)
                }
                None => Box::new(socket),
            };
            let request = format!("ws://{}/", host.authority()).into_client_request().map_err(invalid)?;
            let (socket, _) = client_async_with_config(request, socket, Some(config()))
                .await
                .map_err(|error| invalid(format!("no WebSocket answers there: {error}")))?;
            Ok(WebStream::new(socket))
        };
        Ok(dial.boxed())
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        let this = &mut *self;
        let polled = Pin::new(&mut this.tcp).poll(cx);
        polled.map(|event| {
            let complete = |id: &ListenerId, address| match this.listeners.get(id) {
                Some(listener) => listener.complete(address),
                None => address,
            };
            match event {
                TransportEvent::NewAddress { listener_id, listen_addr } => {
                    TransportEvent::NewAddress { listener_id, listen_addr: complete(&listener_id, listen_addr) }
                }
                TransportEvent::AddressExpired { listener_id, listen_addr } => {
                    TransportEvent::AddressExpired { listener_id, listen_addr: complete(&listener_id, listen_addr) }
                }
                TransportEvent::Incoming { listener_id, upgrade, local_addr, send_back_addr } => {
                    let acceptor = this.listeners.get(&listener_id).and_then(|listener| listener.acceptor.clone());
                    TransportEvent::Incoming {
                        listener_id,
                        upgrade: accept(upgrade, acceptor).boxed(),
                        local_addr: complete(&listener_id, local_addr),
                        send_back_addr: complete(&listener_id, send_back_addr),
                    }
                }
                TransportEvent::ListenerClosed { listener_id, reason } => {
                    this.listeners.remove(&listener_id);
                    TransportEvent::ListenerClosed { listener_id, reason }
                }
                TransportEvent::ListenerError { listener_id, error } => {
                    TransportEvent::ListenerError { listener_id, error }
                }
            }
        })
    }
}

async fn accept(
    upgrade: impl Future<Output = io::Result<TcpStream>>,
    acceptor: Option<TlsAcceptor>,
) -> io::Result<WebStream> {
    let TcpStream(socket) = upgrade.await?;
    let socket: Box<dyn Carrier> = match acceptor {
        Some(acceptor) => Box::new(acceptor.accept(socket).await?),
        None => Box::new(socket),
    };
    accept_async_with_config(socket, Some(config())).await.map(WebStream::new).map_err(invalid)
}

/// What TLS and HTTP ask for.
struct Host {
    /// A name or IP address; IPv6 without brackets.
    name: String,
    port: u16,
}

impl Host {
    fn of(tcp: &Multiaddr, suffix: &[Protocol<'_>]) -> Option<Self> {
        let sni = suffix.iter().find_map(|part| match part {
            Protocol::Sni(name) => Some(name.to_string()),
            _ => None,
        });
        let (host, port) = address::host_and_port(tcp)?;
        Some(Self { name: sni.unwrap_or(host), port })
    }

    fn authority(&self) -> String {
        match self.name.parse() {
            Ok(ip) => SocketAddr::new(ip, self.port).to_string(),
            Err(_) => format!("{}:{}", self.name, self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_and_http_ask_for_the_name_in_the_address_or_else_for_its_host() {
        for (address, authority) in [
            ("/ip4/192.0.2.1/tcp/443/tls/sni/b.example/ws", "b.example:443"),
            ("/ip6/2001:db8::1/tcp/443/wss", "[2001:db8::1]:443"),
            ("/dns4/c.example/tcp/80/ws", "c.example:80"),
        ] {
            let (tcp, suffix, is_tls) = split(&address.parse().unwrap()).unwrap();
            assert_eq!(Host::of(&tcp, &suffix).unwrap().authority(), authority);
            assert_eq!(is_tls, !address.ends_with("/tcp/80/ws"));
        }
        assert!(split(&"/ip4/192.0.2.1/tcp/443".parse().unwrap()).is_none());
    }
}
