//! The library's QUIC, with a say in which socket a dial leaves from.
//!
//! The library's transport has a socket for each address that it listens on, and dials from any one of them. From one at
//! another address than the kernel would take, the packets lead nowhere: a node with a LAN address and a global one dials
//! in vain half of the time, and two nodes behind firewalls hardly ever meet. So there is one such transport for each
//! listener, and a dial goes to the one at the address that the kernel would send from, as TCP's do.

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use libp2p::core::Endpoint;
use libp2p::core::transport::{DialOpts, ListenerId, PortUse, TransportError, TransportEvent};
use libp2p::{Multiaddr, Transport, quic};

use super::address;
use crate::underlay;

/// One of the library's, which listens at one address at most.
type Inner = quic::tokio::Transport;

/// QUIC at any number of addresses.
pub(super) struct SourcedQuic {
    config: quic::Config,
    listening: Vec<Listening>,
    /// Those whose listener has ended, for the next ones: what they still have under way must not be dropped.
    idle: Vec<Inner>,
    /// For dials from no listener's port.
    unbound: Inner,
}

struct Listening {
    id: ListenerId,
    local: SocketAddr,
    inner: Inner,
}

impl SourcedQuic {
    pub(super) fn new(config: quic::Config) -> Self {
        let unbound = Inner::new(config.clone());
        Self { config, listening: Vec::new(), idle: Vec::new(), unbound }
    }

    /// The transport whose listener's port a connection to `remote` can share.
    fn shared(&mut self, remote: SocketAddr) -> Option<&mut Inner> {
        let routed = underlay::source_to(remote, true);
        let fits = |listening: &&mut Listening| underlay::may_reach(listening.local.ip(), remote.ip());
        let best =
            self.listening.iter_mut().filter(fits).min_by_key(|listening| routed != Some(listening.local.ip()))?;
        Some(&mut best.inner)
    }

    /// A listener has ended.
    fn handle_closed(&mut self, id: ListenerId) {
        if let Some(position) = self.listening.iter().position(|listening| listening.id == id) {
            self.idle.push(self.listening.swap_remove(position).inner);
        }
    }
}

impl Transport for SourcedQuic {
    type Output = <Inner as Transport>::Output;
    type Error = <Inner as Transport>::Error;
    type ListenerUpgrade = <Inner as Transport>::ListenerUpgrade;
    type Dial = <Inner as Transport>::Dial;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<Self::Error>> {
        let Some(local) = quic_destination(&address) else {
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        let mut inner = self.idle.pop().unwrap_or_else(|| Inner::new(self.config.clone()));
        if let Err(error) = inner.listen_on(id, address) {
            self.idle.push(inner);
            return Err(error);
        }
        self.listening.push(Listening { id, local, inner });
        Ok(())
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.listening.iter_mut().any(|listening| listening.id == id && listening.inner.remove_listener(id))
    }

    fn dial(&mut self, address: Multiaddr, options: DialOpts) -> Result<Self::Dial, TransportError<Self::Error>> {
        let Some(remote) = quic_destination(&address) else {
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        // Who punches for the other end's dial sends from where that one leads to.
        let is_shared = options.port_use == PortUse::Reuse || options.role == Endpoint::Listener;
        match is_shared.then(|| self.shared(remote)).flatten() {
            Some(inner) => inner.dial(address, options),
            None => self.unbound.dial(address, options),
        }
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        // Nobody has the first word always.
        if !self.listening.is_empty() {
            self.listening.rotate_left(1);
        }
        let this = &mut *self;
        let inners = this.listening.iter_mut().map(|listening| &mut listening.inner).chain(&mut this.idle);
        let mut inners = inners.chain(std::iter::once(&mut this.unbound));
        let polled = inners.find_map(|inner| match Pin::new(inner).poll(cx) {
            Poll::Ready(event) => Some(event),
            Poll::Pending => None,
        });
        if let Some(TransportEvent::ListenerClosed { listener_id, .. }) = &polled {
            self.handle_closed(*listener_id);
        }
        polled.map_or(Poll::Pending, Poll::Ready)
    }
}

fn quic_destination(address: &Multiaddr) -> Option<SocketAddr> {
    let destination = address::parse(address).ok()?;
    (destination.transport == super::connections::TransportName::Quic).then_some(destination.socket)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use libp2p::identity::Keypair;

    use super::*;

    /// A transport that listens at these addresses, on ports that the kernel chooses, and where it really does.
    async fn listening(at: &[&str]) -> (SourcedQuic, Vec<SocketAddr>) {
        let mut quic = SourcedQuic::new(quic::Config::new(&Keypair::generate_ed25519()));
        let mut real = Vec::new();
        for address in at {
            quic.listen_on(ListenerId::next(), address.parse().unwrap()).unwrap();
        }
        while real.len() < at.len() {
            if let TransportEvent::NewAddress { listen_addr, .. } = next(&mut quic).await {
                real.push(quic_destination(&listen_addr).unwrap());
            }
        }
        (quic, real)
    }

    async fn next(quic: &mut SourcedQuic) -> TransportEvent<quic::Connecting, quic::Error> {
        poll_fn(|cx| Pin::new(&mut *quic).poll(cx)).await
    }

    fn options(port_use: PortUse) -> DialOpts {
        DialOpts { role: Endpoint::Dialer, port_use }
    }

    #[tokio::test]
    async fn a_dial_leaves_from_the_listener_at_the_address_that_the_kernel_would_send_from() {
        let at = ["127.0.0.2", "127.0.0.1", "127.0.0.3"].map(ip_address);
        let (mut near, locals) = listening(&at.each_ref().map(String::as_str)).await;
        let (mut far, remotes) = listening(&[&ip_address("127.0.0.1")]).await;
        let local = locals.iter().find(|local| local.ip() == std::net::Ipv4Addr::LOCALHOST).unwrap();
        for (port_use, is_shared) in [(PortUse::Reuse, true), (PortUse::New, false)] {
            let address = format!("/ip4/127.0.0.1/udp/{}/quic-v1", remotes[0].port()).parse().unwrap();
            let mut dial = near.dial(address, options(port_use)).unwrap();
            let from = loop {
                tokio::select! {
                    _ = &mut dial => {}
                    _ = next(&mut near) => {}
                    event = next(&mut far) => if let TransportEvent::Incoming { send_back_addr, .. } = event {
                        break quic_destination(&send_back_addr).unwrap();
                    },
                }
            };
            assert_eq!(from == *local, is_shared, "{from} is not {local}");
        }
    }

    #[tokio::test]
    async fn a_listener_that_has_ended_leaves_its_transport_to_the_next() {
        let (mut quic, _) = listening(&[&ip_address("127.0.0.1")]).await;
        for _ in 0..3 {
            let id = quic.listening[0].id;
            assert!(quic.remove_listener(id) && !quic.remove_listener(ListenerId::next()));
            while !matches!(next(&mut quic).await, TransportEvent::ListenerClosed { .. }) {}
            assert_eq!((quic.listening.len(), quic.idle.len()), (0, 1));
            quic.listen_on(ListenerId::next(), ip_address("127.0.0.1").parse().unwrap()).unwrap();
            assert_eq!((quic.listening.len(), quic.idle.len()), (1, 0));
        }
    }

    fn ip_address(ip: &str) -> String {
        format!("/ip4/{ip}/udp/0/quic-v1")
    }
}
