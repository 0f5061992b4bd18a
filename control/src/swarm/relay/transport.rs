//! Circuits as connections: the library's client, in front of the direct transports.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::future::Either;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::timeout::TransportTimeout;
use libp2p::core::transport::{DialOpts, ListenerId, TransportError, TransportEvent};
use libp2p::core::upgrade::Version;
use libp2p::identity::Keypair;
use libp2p::pnet::{PnetConfig, PreSharedKey};
use libp2p::relay::client;
use libp2p::{Multiaddr, Transport, yamux};
use ringlane_shared::limits::{ADDRESSES_PER_RELAY_MAX, STREAMS_PER_CONNECTION_MAX};

use crate::swarm::address::{self, AddressPolicy, AddressRefusal};
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
    let circuits = CircuitFilter { inner: circuits, policy, told: HashMap::new() };
    let circuits = TransportTimeout::new(circuits, HANDSHAKE_TIMEOUT);
    let all = circuits.or_transport(direct).map(|either, _| either.into_inner()).boxed();
    Ok((all, behaviour))
}

/// Refuses to dial circuits through relays that the policy does not know, whoever asks for the dial, and to tell more
/// addresses behind a relay than make sense, whatever the relay says.
struct CircuitFilter {
    inner: PeerTransport,
    policy: AddressPolicy,
    /// How many are told of each listener.
    told: HashMap<ListenerId, usize>,
}

impl CircuitFilter {
    /// Whether an address that a relay says we listen at is worth telling.
    fn takes(&mut self, listener: ListenerId, address: &Multiaddr) -> bool {
        if !matches!(self.policy.check(address), Ok(_) | Err(AddressRefusal::Own)) {
            return false;
        }
        let told = self.told.entry(listener).or_default();
        *told += 1;
        *told <= ADDRESSES_PER_RELAY_MAX
    }
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

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        let this = self.get_mut();
        loop {
            let event = ready!(Pin::new(&mut this.inner).poll(cx));
            match &event {
                TransportEvent::NewAddress { listener_id, listen_addr } if !this.takes(*listener_id, listen_addr) => {}
                TransportEvent::ListenerClosed { listener_id, .. } => {
                    this.told.remove(listener_id);
                    return Poll::Ready(event);
                }
                _ => return Poll::Ready(event),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::future::Pending;

    use futures::future::poll_fn;
    use libp2p::PeerId;
    use libp2p::multiaddr::Protocol;

    use super::*;

    /// A transport whose listener says these addresses.
    struct Says(VecDeque<(ListenerId, Multiaddr)>);

    impl Transport for Says {
        type Output = (PeerId, StreamMuxerBox);
        type Error = io::Error;
        type ListenerUpgrade = Pending<io::Result<Self::Output>>;
        type Dial = Self::ListenerUpgrade;

        fn listen_on(&mut self, _: ListenerId, _: Multiaddr) -> Result<(), TransportError<io::Error>> {
            Ok(())
        }

        fn remove_listener(&mut self, _: ListenerId) -> bool {
            true
        }

        fn dial(&mut self, address: Multiaddr, _: DialOpts) -> Result<Self::Dial, TransportError<io::Error>> {
            Err(TransportError::MultiaddrNotSupported(address))
        }

        fn poll(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
            match self.0.pop_front() {
                Some((listener_id, listen_addr)) => {
                    Poll::Ready(TransportEvent::NewAddress { listener_id, listen_addr })
                }
                None => Poll::Pending,
            }
        }
    }

    #[tokio::test]
    async fn a_relay_that_says_hundreds_of_addresses_has_few_of_them_told() {
        let [relay, stranger, ours] = [(); 3].map(|()| PeerId::random());
        let listeners = [ListenerId::next(), ListenerId::next()];
        let behind = |relay: PeerId, via: &str| -> Multiaddr {
            let via: Multiaddr = via.parse().unwrap();
            via.with(Protocol::P2p(relay)).with(Protocol::P2pCircuit).with(Protocol::P2p(ours))
        };
        let mut says = VecDeque::new();
        for listener in listeners {
            says.push_back((listener, behind(stranger, "/ip4/203.0.113.1/tcp/1")));
            says.push_back((listener, behind(relay, "/ip4/203.0.113.1/udp/1/webrtc-direct")));
            for host in 1..=200 {
                says.push_back((listener, behind(relay, &format!("/ip4/203.0.113.{host}/tcp/8001"))));
            }
        }
        let policy = AddressPolicy::new(false).through([relay]);
        let mut filter = CircuitFilter { inner: Says(says).boxed(), policy, told: HashMap::new() };
        let mut told = Vec::new();
        while let Poll::Ready(event) = poll_fn(|cx| Poll::Ready(Pin::new(&mut filter).poll(cx))).await {
            if let TransportEvent::NewAddress { listener_id, listen_addr } = event {
                told.push((listen_addr, listener_id));
            }
        }
        let expected = |listener: &ListenerId| {
            let address = |host| behind(relay, &format!("/ip4/203.0.113.{host}/tcp/8001"));
            (1..=ADDRESSES_PER_RELAY_MAX).map(|host| (address(host), *listener)).collect::<Vec<_>>()
        };
        assert_eq!(told, listeners.iter().flat_map(expected).collect::<Vec<_>>());
    }
}
