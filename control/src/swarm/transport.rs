//! The transport stack, put together by hand because the library's builder has no place for an address filter.
//!
//! ```text
//! timeout( filter( QUIC | stream > TLS or Noise > yamux ) )
//! timeout( filter( stream > swarm key > TLS or Noise > yamux ) )     in a network with a swarm key
//! stream = TCP | [ TLS > ] WebSocket over TCP                        (`web`)
//! ```

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{self, BoxFuture, FutureExt, TryFutureExt};
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::timeout::TransportTimeout;
use libp2p::core::transport::{Boxed, DialOpts, ListenerId, PortUse, TransportError, TransportEvent};
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo, Version};
use libp2p::identity::Keypair;
use libp2p::pnet::{PnetConfig, PreSharedKey};
use libp2p::{Multiaddr, PeerId, Transport, noise, quic, tcp, tls, yamux};
use ringlane_shared::limits::STREAMS_PER_CONNECTION_MAX;

use super::address::{self, AddressPolicy, AddressRefusal};
use super::connections::TransportName;
use super::node::NodeError;
use super::quic::SourcedQuic;
use super::tcp::{MarkedTcp, TcpPorts};
use super::web::{Web, WebTransport};
use crate::underlay::may_reach;

/// How long a handshake may take, from the first packet to an authenticated, multiplexed connection.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A QUIC connection that heard nothing for this long is dead. Two keep-alives may be lost.
const QUIC_IDLE_TIMEOUT_MS: u32 = 5_000;
/// How often an idle QUIC connection says that it is alive.
const QUIC_KEEP_ALIVE: Duration = Duration::from_secs(2);

/// What every transport of ours ends in: who is there, and streams to them.
pub type PeerTransport = Boxed<(PeerId, StreamMuxerBox)>;

/// What a node's connections run over.
#[derive(Default)]
pub enum Underlay {
    /// QUIC and TCP, by the kernel.
    #[default]
    Internet,
    /// Something that takes the same addresses: simulations run hundreds of nodes in one process. A swarm key has no
    /// effect on it.
    Simulated(PeerTransport),
}

impl Underlay {
    /// Whether addresses are the kernel's.
    pub(super) fn is_internet(&self) -> bool {
        matches!(self, Self::Internet)
    }
}

/// Builds the stack for one node.
pub(super) fn build(
    keypair: &Keypair,
    underlay: Underlay,
    policy: AddressPolicy,
    swarm_key: Option<PreSharedKey>,
    web: &Web,
) -> Result<PeerTransport, NodeError> {
    if let Underlay::Simulated(transport) = underlay {
        return Ok(filtered(transport, policy));
    }
    Ok(filtered(direct(keypair, swarm_key, web)?, policy))
}

/// What leads from node to node.
fn direct(keypair: &Keypair, swarm_key: Option<PreSharedKey>, web: &Web) -> Result<PeerTransport, NodeError> {
    let security = Security::new(keypair)?;
    let ports = TcpPorts::default();
    let tcp = || MarkedTcp::new(tcp::Config::default().nodelay(true), ports.clone(), web.proxy.clone());
    let web = WebTransport::new(tcp().for_web(), web).map_err(NodeError::Tls)?;
    let streams = peers_of(tcp(), swarm_key, &security).or_transport(peers_of(web, swarm_key, &security));
    let streams = streams.map(|either, _| either.into_inner()).boxed();
    if swarm_key.is_some() {
        return Ok(streams);
    }
    let mut config = quic::Config::new(keypair);
    config.max_idle_timeout = QUIC_IDLE_TIMEOUT_MS;
    config.keep_alive_interval = QUIC_KEEP_ALIVE;
    config.max_concurrent_stream_limit = STREAMS_PER_CONNECTION_MAX as u32;
    let quic = SourcedQuic::new(config).map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    Ok(quic.or_transport(streams).map(|either, _| either.into_inner()).boxed())
}

/// Makes a transport of bytes one of peers.
fn peers_of<T>(transport: T, swarm_key: Option<PreSharedKey>, security: &Security) -> PeerTransport
where
    T: Transport<Error = io::Error> + Send + Unpin + 'static,
    T::Output: futures::AsyncRead + futures::AsyncWrite + Send + Unpin + 'static,
    T::ListenerUpgrade: Send,
    T::Dial: Send,
{
    let mut multiplexing = yamux::Config::default();
    multiplexing.set_max_num_streams(STREAMS_PER_CONNECTION_MAX);
    let security = security.clone();
    if let Some(key) = swarm_key {
        let protected = transport.and_then(move |socket, _| PnetConfig::new(key).handshake(socket));
        let peers = protected.upgrade(Version::V1Lazy).authenticate(security).multiplex(multiplexing);
        return peers.map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer))).boxed();
    }
    let peers = transport.upgrade(Version::V1Lazy).authenticate(security).multiplex(multiplexing);
    peers.map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer))).boxed()
}

fn filtered(direct: PeerTransport, policy: AddressPolicy) -> PeerTransport {
    TransportTimeout::new(DialFilter { inner: direct, policy, quic_listeners: Vec::new() }, HANDSHAKE_TIMEOUT).boxed()
}

/// Refuses to dial what the policy refuses, whoever asks for the dial: the dialer, or later a routing query.
struct DialFilter {
    inner: PeerTransport,
    policy: AddressPolicy,
    /// Where QUIC listens. Dials share those sockets, whose ports the routing rules know; the library's other sockets
    /// have any port and no mark.
    quic_listeners: Vec<(ListenerId, IpAddr)>,
}

impl DialFilter {
    fn check(&self, address: &Multiaddr, options: &mut DialOpts) -> Result<(), AddressRefusal> {
        if self.policy.passes_name(address) {
            return Ok(());
        }
        let destination = self.policy.check_dial(address, true)?;
        if destination.transport != TransportName::Quic || self.policy.check_dial(address, false).is_ok() {
            return Ok(());
        }
        // An unmarked socket would go into the tunnel.
        let ip = destination.socket.ip();
        if !self.quic_listeners.iter().any(|(_, local)| may_reach(*local, ip)) {
            return Err(AddressRefusal::IntoTunnel);
        }
        options.port_use = PortUse::Reuse;
        Ok(())
    }
}

impl Transport for DialFilter {
    type Output = (PeerId, StreamMuxerBox);
    type Error = io::Error;
    type ListenerUpgrade = <PeerTransport as Transport>::ListenerUpgrade;
    type Dial = <PeerTransport as Transport>::Dial;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<io::Error>> {
        let listening = address::parse(&address);
        self.inner.listen_on(id, address)?;
        if let Ok(local) = listening
            && local.transport == TransportName::Quic
        {
            self.quic_listeners.push((id, local.socket.ip()));
        }
        Ok(())
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.quic_listeners.retain(|(other, _)| *other != id);
        self.inner.remove_listener(id)
    }

    fn dial(&mut self, address: Multiaddr, mut options: DialOpts) -> Result<Self::Dial, TransportError<io::Error>> {
        self.check(&address, &mut options).map_err(|refusal| TransportError::Other(io::Error::other(refusal)))?;
        self.inner.dial(address, options)
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        let polled = Pin::new(&mut self.inner).poll(cx);
        if let Poll::Ready(TransportEvent::ListenerClosed { listener_id, .. }) = &polled {
            self.quic_listeners.retain(|(other, _)| other != listener_id);
        }
        polled
    }
}

/// TLS or Noise, whichever the other side speaks; TLS first. The library's own selector is private.
#[derive(Clone)]
pub(super) struct Security {
    tls: tls::Config,
    noise: noise::Config,
}

impl Security {
    pub(super) fn new(keypair: &Keypair) -> Result<Self, NodeError> {
        Ok(Self {
            tls: tls::Config::new(keypair).map_err(|error| NodeError::Identity(error.to_string()))?,
            noise: noise::Config::new(keypair).map_err(|error| NodeError::Identity(error.to_string()))?,
        })
    }
}

impl UpgradeInfo for Security {
    type Info = &'static str;
    type InfoIter = Vec<&'static str>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.tls.protocol_info().chain(self.noise.protocol_info()).collect()
    }
}

pub(super) type TlsOutput<C> = tls::TlsStream<C>;
pub(super) type Secured<C> = (PeerId, future::Either<TlsOutput<C>, noise::Output<C>>);

impl<C> InboundConnectionUpgrade<C> for Security
where
    C: futures::AsyncRead + futures::AsyncWrite + Send + Unpin + 'static,
{
    type Output = Secured<C>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Secured<C>>>;

    fn upgrade_inbound(self, socket: C, name: &'static str) -> Self::Future {
        if self.tls.protocol_info().any(|tls| tls == name) {
            self.tls.upgrade_inbound(socket, name).map_ok(as_tls).map_err(io::Error::other).boxed()
        } else {
            self.noise.upgrade_inbound(socket, name).map_ok(as_noise).map_err(io::Error::other).boxed()
        }
    }
}

impl<C> OutboundConnectionUpgrade<C> for Security
where
    C: futures::AsyncRead + futures::AsyncWrite + Send + Unpin + 'static,
{
    type Output = Secured<C>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Secured<C>>>;

    fn upgrade_outbound(self, socket: C, name: &'static str) -> Self::Future {
        if self.tls.protocol_info().any(|tls| tls == name) {
            self.tls.upgrade_outbound(socket, name).map_ok(as_tls).map_err(io::Error::other).boxed()
        } else {
            self.noise.upgrade_outbound(socket, name).map_ok(as_noise).map_err(io::Error::other).boxed()
        }
    }
}

fn as_tls<C>((peer, stream): (PeerId, TlsOutput<C>)) -> Secured<C> {
    (peer, future::Either::Left(stream))
}

fn as_noise<C>((peer, stream): (PeerId, noise::Output<C>)) -> Secured<C> {
    (peer, future::Either::Right(stream))
}
