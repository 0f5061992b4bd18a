//! Circuits as connections: the library's client, in front of the direct transports.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::future::Either;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::timeout::TransportTimeout;
use libp2p::core::transport::{DialOpts, ListenerId, TransportError, TransportEvent};
use libp2p::core::upgrade::Version;
use libp2p::identity::Keypair;
use libp2p::pnet::{PnetConfig, PreSharedKey};
use libp2p::relay::client;
use libp2p::{Multiaddr, Transport, yamux};
use ringlane_shared::limits::STREAMS_PER_CONNECTION_MAX;

use crate::swarm::address::{self, AddressPolicy};
use crate::swarm::node::NodeError;
use crate::swarm::transport::{HANDSHAKE_TIMEOUT, PeerTransport, Security};

/// A transport that knows circuits too, and the behaviour that makes them. The two ends of a circuit authenticate and
/// encrypt as over TCP, with the swarm key if there is one; the relay sees none of it.
pub(crate) fn in_front(
    direct: PeerTransport,
    keypair: &Keypair,
    policy: AddressPolicy,
    swarm_key: Option<PreSharedKey>,
) -> Result<(PeerTransport, client::Behaviour), NodeError> {
    let (circuits, behaviour) = client::new(keypair.public().to_peer_id());
    let mut multiplexing = yamux::Config::default();
    multiplexing.set_max_num_streams(STREAMS_PER_CONNECTION_MAX);
    let circuits = circuits
        .map_err(io::Error::other)
        .and_then(move |circuit, _| async move {
            match swarm_key {
                Some(key) => {
                    let keyed = PnetConfig::new(key).handshake(circuit).await;
                    keyed.map(Either::Left).map_err(io::Error::other)
                }
                None => Ok(Either::Right(circuit)),
            }
        })
        .upgrade(Version::V1Lazy)
        .authenticate(Security::new(keypair)?)
        .multiplex(multiplexing)
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
        .boxed();
    let circuits = TransportTimeout::new(CircuitFilter { inner: circuits, policy }, HANDSHAKE_TIMEOUT);
    let all = circuits.or_transport(direct).map(|either, _| either.into_inner()).boxed();
    Ok((all, behaviour))
}

/// Refuses to dial circuits through relays that the policy does not know, whoever asks for the dial.
struct CircuitFilter {
    inner: PeerTransport,
    policy: AddressPolicy,
}

impl Transport for CircuitFilter {
    type Output = <PeerTransport as Transport>::Output;
    type Error = io::Error;
    type ListenerUpgrade = <PeerTransport as Transport>::ListenerUpgrade;
    type Dial = <PeerTransport as Transport>::Dial;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<io::Error>> {
        self.inner.listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.remove_listener(id)
    }

    fn dial(&mut self, address: Multiaddr, options: DialOpts) -> Result<Self::Dial, TransportError<io::Error>> {
        if address::is_circuit(&address) {
            self.policy.check(&address).map_err(|refusal| TransportError::Other(io::Error::other(refusal)))?;
        }
        self.inner.dial(address, options)
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        Pin::new(&mut self.inner).poll(cx)
    }
}
