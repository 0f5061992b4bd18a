//! Raw streams of our own protocols, opened on the connection the caller chooses.
//!
//! What the library's stream crate does not give: streams are opened on one named connection, many at once, with
//! several protocol names in one negotiation; an inbound stream says which connection it came on; and streams of one
//! peer are bounded per protocol, by permits that inbound streams carry until they are dropped.
//!
//! Every [`Streams::open`] ends in exactly one event: the negotiation has a timeout of its own, and a connection that
//! closes (or is gone already) fails what was asked of it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures::{AsyncRead, AsyncWrite};
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::core::upgrade::{InboundUpgrade, OutboundUpgrade, UpgradeInfo};
use libp2p::swarm::behaviour::{ConnectionClosed, ConnectionEstablished};
use libp2p::swarm::handler::{
    ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound, StreamUpgradeError,
};
use libp2p::swarm::{
    ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm, NetworkBehaviour,
    NotifyHandler, SubstreamProtocol, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId, Stream, StreamProtocol};
use ringlane_shared::limits::{PEERS_MAX, STREAM_EVENTS_MAX, STREAMS_PER_PEER_BURST, STREAMS_PER_PEER_PER_SECOND};
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::address;
use super::rates::Rates;
use super::relay::hop::HOP;

/// How long opening a stream may take, its negotiation included.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// One protocol we accept.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// Its name on the wire.
    pub name: StreamProtocol,
    /// Streams of one peer that may be open at once; more are dropped.
    pub inbound_per_peer_max: usize,
}

/// A stream a peer opened. Its place among the peer's streams is free again when this is dropped.
pub struct InboundStream {
    pub(super) stream: Stream,
    _permit: OwnedSemaphorePermit,
}

impl AsyncRead for InboundStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for InboundStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}

impl std::fmt::Debug for InboundStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InboundStream(..)")
    }
}

/// Names one stream that is being opened; never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct OpenId(u64);

#[cfg(test)]
impl OpenId {
    /// One for tests.
    pub(crate) fn of(number: u64) -> Self {
        Self(number)
    }
}

/// Why a stream could not be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The peer speaks none of the protocols.
    #[error("the peer does not speak the protocol")]
    Unsupported,
    /// The peer did not answer in time.
    #[error("the peer did not answer within {} s", OPEN_TIMEOUT.as_secs())]
    TimedOut,
    /// The connection closed meanwhile, or was closed already.
    #[error("the connection was closed")]
    Closed,
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Io(#[source] io::Error),
}

/// What happened to a stream.
#[derive(Debug)]
pub(super) enum StreamEvent {
    /// A peer opened a stream of one of our protocols.
    Inbound { peer: PeerId, connection: ConnectionId, protocol: StreamProtocol, stream: InboundStream },
    /// An [`Streams::open`] succeeded.
    Opened { id: OpenId, protocol: StreamProtocol, stream: Stream },
    /// An [`Streams::open`] failed.
    OpenFailed { id: OpenId, error: OpenError },
}

/// The behaviour.
pub(super) struct Streams {
    accepted: Arc<[Accepted]>,
    /// Those of them that nobody is offered now.
    withheld: HashSet<StreamProtocol>,
    /// Who is offered our protocols.
    configured: HashSet<PeerId>,
    connections: HashMap<ConnectionId, Standing>,
    /// Per peer, in the order of `accepted`.
    permits: HashMap<PeerId, Vec<Arc<Semaphore>>>,
    opening: HashMap<OpenId, ConnectionId>,
    next_open: u64,
    rates: Rates<PeerId>,
    refused: u64,
    queue: VecDeque<ToSwarm<StreamEvent, Order>>,
    waker: Option<Waker>,
}

impl Streams {
    pub(super) fn new(accepted: Vec<Accepted>, configured: impl IntoIterator<Item = PeerId>) -> Self {
        Self {
            accepted: accepted.into(),
            withheld: HashSet::new(),
            configured: configured.into_iter().collect(),
            connections: HashMap::new(),
            permits: HashMap::new(),
            opening: HashMap::new(),
            next_open: 0,
            rates: Rates::new(STREAMS_PER_PEER_BURST, STREAMS_PER_PEER_PER_SECOND, PEERS_MAX),
            refused: 0,
            queue: VecDeque::new(),
            waker: None,
        }
    }

    /// Opens a stream on one connection, offering `protocols` in this order.
    pub(super) fn open(&mut self, connection: ConnectionId, protocols: Vec<StreamProtocol>) -> OpenId {
        let id = OpenId(self.next_open);
        self.next_open += 1;
        match self.connections.get(&connection) {
            Some(&Standing { peer: peer_id, .. }) => {
                self.opening.insert(id, connection);
                let handler = NotifyHandler::One(connection);
                self.push(ToSwarm::NotifyHandler { peer_id, handler, event: Order::Open { id, protocols } });
            }
            None => {
                self.push(ToSwarm::GenerateEvent(StreamEvent::OpenFailed { id, error: OpenError::Closed }));
            }
        }
        id
    }

    /// Offers one of the protocols to peers, or to nobody, on connections that stand as well.
    pub(super) fn set_offered(&mut self, protocol: &StreamProtocol, is_offered: bool) {
        let changed = if is_offered { self.withheld.remove(protocol) } else { self.withheld.insert(protocol.clone()) };
        if !changed {
            return;
        }
        let orders = self.connections.iter().map(|(&id, &Standing { peer, is_relayed })| {
            let event = Order::Offer(self.names(&peer, is_relayed));
            ToSwarm::NotifyHandler { peer_id: peer, handler: NotifyHandler::One(id), event }
        });
        for order in orders.collect::<Vec<_>>() {
            self.push(order);
        }
    }

    fn push(&mut self, event: ToSwarm<StreamEvent, Order>) {
        self.queue.push_back(event);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// A contact of the DHT gets a handler that offers nothing and keeps nothing open.
    fn handler(&self, peer: &PeerId, is_relayed: bool) -> Handler {
        let keep_alive = self.configured.contains(peer);
        Handler { names: self.names(peer, is_relayed), keep_alive, queue: VecDeque::new(), waker: None }
    }

    /// What a peer is offered on a connection. Circuits do not lead through circuits.
    fn names(&self, peer: &PeerId, is_relayed: bool) -> Vec<StreamProtocol> {
        let is_configured = self.configured.contains(peer);
        let is_offered =
            |name: &&StreamProtocol| is_configured && !self.withheld.contains(*name) && !(is_relayed && **name == HOP);
        self.accepted.iter().map(|accepted| &accepted.name).filter(is_offered).cloned().collect()
    }

    /// Inbound streams refused so far because their peer opened them too fast.
    pub(super) fn refused(&self) -> u64 {
        self.refused
    }

    fn accept(&mut self, peer: PeerId, connection: ConnectionId, protocol: StreamProtocol, stream: Stream) {
        if !self.rates.take(peer, Instant::now()) {
            self.refused += 1;
            tracing::debug!(%peer, %connection, %protocol, "dropped a stream: the peer opens them too fast");
            return;
        }
        let position = self.accepted.iter().position(|accepted| accepted.name == protocol);
        let permit = position
            .and_then(|position| self.permits.get(&peer)?.get(position))
            .and_then(|semaphore| Arc::clone(semaphore).try_acquire_owned().ok());
        match permit {
            Some(permit) if self.queue.len() < STREAM_EVENTS_MAX => {
                let stream = InboundStream { stream, _permit: permit };
                self.push(ToSwarm::GenerateEvent(StreamEvent::Inbound { peer, connection, protocol, stream }));
            }
            _ => tracing::debug!(%peer, %connection, %protocol, "dropped a stream: the peer has too many"),
        }
    }
}

impl NetworkBehaviour for Streams {
    type ConnectionHandler = Handler;
    type ToSwarm = StreamEvent;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(&peer, address::is_circuit(local)))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        remote: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(&peer, address::is_circuit(remote)))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(ConnectionEstablished { peer_id, connection_id, endpoint, .. }) => {
                let is_relayed = endpoint.is_relayed();
                self.connections.insert(connection_id, Standing { peer: peer_id, is_relayed });
                self.permits.entry(peer_id).or_insert_with(|| {
                    self.accepted.iter().map(|a| Arc::new(Semaphore::new(a.inbound_per_peer_max))).collect()
                });
            }
            FromSwarm::ConnectionClosed(ConnectionClosed { peer_id, connection_id, remaining_established, .. }) => {
                self.connections.remove(&connection_id);
                if remaining_established == 0 {
                    self.permits.remove(&peer_id);
                }
                let failed: Vec<_> = self.opening.extract_if(|_, on| *on == connection_id).map(|(id, _)| id).collect();
                for id in failed {
                    self.push(ToSwarm::GenerateEvent(StreamEvent::OpenFailed { id, error: OpenError::Closed }));
                }
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, connection: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {
            HandlerEvent::Inbound { protocol, stream } => self.accept(peer, connection, protocol, stream),
            HandlerEvent::Opened { id, protocol, stream } => {
                if self.opening.remove(&id).is_some() {
                    self.push(ToSwarm::GenerateEvent(StreamEvent::Opened { id, protocol, stream }));
                }
            }
            HandlerEvent::OpenFailed { id, error } => {
                if self.opening.remove(&id).is_some() {
                    self.push(ToSwarm::GenerateEvent(StreamEvent::OpenFailed { id, error }));
                }
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<StreamEvent, THandlerInEvent<Self>>> {
        if let Some(event) = self.queue.pop_front() {
            return Poll::Ready(event);
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// A connection that stands.
#[derive(Clone, Copy, Debug)]
struct Standing {
    peer: PeerId,
    is_relayed: bool,
}

/// Behaviour to handler.
#[derive(Debug)]
pub(super) enum Order {
    /// Open a stream.
    Open { id: OpenId, protocols: Vec<StreamProtocol> },
    /// Offer exactly these from now on.
    Offer(Vec<StreamProtocol>),
}

/// Handler to behaviour.
#[derive(Debug)]
pub(super) enum HandlerEvent {
    Inbound { protocol: StreamProtocol, stream: Stream },
    Opened { id: OpenId, protocol: StreamProtocol, stream: Stream },
    OpenFailed { id: OpenId, error: OpenError },
}

/// One connection's end of the behaviour.
pub(super) struct Handler {
    names: Vec<StreamProtocol>,
    keep_alive: bool,
    queue: VecDeque<ConnectionHandlerEvent<Offered, OpenId, HandlerEvent>>,
    waker: Option<Waker>,
}

impl Handler {
    fn push(&mut self, event: ConnectionHandlerEvent<Offered, OpenId, HandlerEvent>) {
        self.queue.push_back(event);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Order;
    type ToBehaviour = HandlerEvent;
    type InboundProtocol = Offered;
    type OutboundProtocol = Offered;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = OpenId;

    fn listen_protocol(&self) -> SubstreamProtocol<Offered, ()> {
        SubstreamProtocol::new(Offered(self.names.clone()), ()).with_timeout(OPEN_TIMEOUT)
    }

    /// Connections of configured peers stay open however idle.
    fn connection_keep_alive(&self) -> bool {
        self.keep_alive
    }

    fn on_behaviour_event(&mut self, order: Order) {
        match order {
            Order::Open { id, protocols } => {
                let protocol = SubstreamProtocol::new(Offered(protocols), id).with_timeout(OPEN_TIMEOUT);
                self.push(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
            }
            Order::Offer(names) => {
                self.names = names;
                // Being polled is when the library looks.
                if let Some(waker) = self.waker.take() {
                    waker.wake();
                }
            }
        }
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Offered, Offered, (), OpenId>) {
        let event = match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (stream, protocol), ..
            }) => HandlerEvent::Inbound { protocol, stream },
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: (stream, protocol),
                info: id,
            }) => HandlerEvent::Opened { id, protocol, stream },
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info: id, error }) => {
                let error = match error {
                    StreamUpgradeError::NegotiationFailed => OpenError::Unsupported,
                    StreamUpgradeError::Timeout => OpenError::TimedOut,
                    StreamUpgradeError::Io(error) => OpenError::Io(error),
                    StreamUpgradeError::Apply(never) => match never {},
                };
                HandlerEvent::OpenFailed { id, error }
            }
            _ => return,
        };
        self.push(ConnectionHandlerEvent::NotifyBehaviour(event));
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ConnectionHandlerEvent<Offered, OpenId, HandlerEvent>> {
        if let Some(event) = self.queue.pop_front() {
            return Poll::Ready(event);
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// An upgrade that is done as soon as one of the names is agreed on.
#[derive(Clone, Debug)]
pub(super) struct Offered(Vec<StreamProtocol>);

impl UpgradeInfo for Offered {
    type Info = StreamProtocol;
    type InfoIter = std::vec::IntoIter<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.clone().into_iter()
    }
}

impl InboundUpgrade<Stream> for Offered {
    type Output = (Stream, StreamProtocol);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_inbound(self, stream: Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok((stream, protocol)))
    }
}

impl OutboundUpgrade<Stream> for Offered {
    type Output = (Stream, StreamProtocol);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_outbound(self, stream: Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok((stream, protocol)))
    }
}
