//! What a node tells of.

use std::time::SystemTime;

use libp2p::swarm::ConnectionId;
use libp2p::{Multiaddr, Stream, StreamProtocol};
use ringlane_shared::id::PeerId;

use crate::swarm::connections::PeerKind;
use crate::swarm::exchange::ExchangeError;
use crate::swarm::exchanges::{ExchangeId, ExchangeToken};
use crate::swarm::streams::{InboundStream, OpenError, OpenId};

/// What happened.
#[derive(Debug)]
pub enum NodeEvent {
    /// A new connection of a configured peer. Told of every one: a peer that restarted shows itself by a new connection
    /// while its old one is still dying.
    PeerConnected {
        /// Who.
        peer: PeerId,
        /// The connection's name.
        connection: ConnectionId,
        /// Its remote address.
        remote: Multiaddr,
        /// Whether it is the peer's only one.
        first: bool,
    },
    /// A connection is gone; when it was the last one, [`NodeEvent::PeerDisconnected`] follows.
    ConnectionClosed {
        /// Whose.
        peer: PeerId,
        /// The connection's name.
        connection: ConnectionId,
    },
    /// A connection does not answer any more: it is used only where there is no other.
    ConnectionSuspect {
        /// Whose.
        peer: PeerId,
        /// The connection's name.
        connection: ConnectionId,
    },
    /// A connection that was doubted ([`Node::doubt`](super::Node::doubt)) answers.
    ConnectionHeard {
        /// Whose.
        peer: PeerId,
        /// The connection's name.
        connection: ConnectionId,
    },
    /// A connection is one too many: its streams are to end. It is closed by
    /// [`Node::close_drained`](super::Node::close_drained), or when that takes too long.
    ConnectionRetired {
        /// Whose.
        peer: PeerId,
        /// The connection's name.
        connection: ConnectionId,
    },
    /// The peer's last connection is gone.
    PeerDisconnected {
        /// Who.
        peer: PeerId,
    },
    /// A peer asks; [`Node::answer`](super::Node::answer) with the token.
    OfferReceived {
        /// Who.
        peer: PeerId,
        /// What to answer to.
        token: ExchangeToken,
        /// At most [`ringlane_shared::limits::OFFER_BYTES_MAX`] bytes.
        message: Vec<u8>,
    },
    /// An exchange of ours has ended.
    OfferAnswered {
        /// With whom.
        peer: PeerId,
        /// Which.
        id: ExchangeId,
        /// The answer.
        result: Result<Vec<u8>, ExchangeError>,
    },
    /// A peer opened a stream of one of [`NodeConfig::accepted`](super::NodeConfig::accepted).
    StreamInbound {
        /// Who.
        peer: PeerId,
        /// The connection it came on.
        connection: ConnectionId,
        /// Which of the protocols.
        protocol: StreamProtocol,
        /// The stream; it counts against the peer's bound until it is dropped.
        stream: Box<InboundStream>,
    },
    /// A stream of [`Node::open_stream`](super::Node::open_stream) is open, or could not be opened.
    StreamOpened {
        /// Which.
        id: OpenId,
        /// The protocol agreed on, and the stream.
        result: Result<(StreamProtocol, Box<Stream>), OpenError>,
    },
    /// A peer has said on a connection what it is.
    Identified {
        /// Who.
        peer: PeerId,
        /// What.
        kind: PeerKind,
    },
    /// A listener has failed. If it has ended, [`Node::set_listen_addresses`](super::Node::set_listen_addresses) with the
    /// same addresses tries again.
    ListenerFailed {
        /// The address it was asked for.
        address: Multiaddr,
        /// Why, for the operator.
        error: String,
    },
    /// [`Node::listen_addresses`](super::Node::listen_addresses) are others than before.
    AddressesChanged,
}

/// An address of a peer that worked in this run, for the peer cache.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KnownAddress {
    /// The address, without `/p2p/`.
    pub address: Multiaddr,
    /// When a connection to it last stood, by the wall clock.
    pub last_success: SystemTime,
}

/// An address of a peer, however we came by it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LearntAddress {
    /// The address, without `/p2p/`.
    pub address: Multiaddr,
    /// The best source of it: `routing`, `dht`, `peer_exchange`, `identify`, `cache`, `mdns`, `connected` or `configured`.
    pub source: &'static str,
    /// When it last worked in this run.
    pub last_success: Option<SystemTime>,
}
