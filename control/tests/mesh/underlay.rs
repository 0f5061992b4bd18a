//! An internet in this process: libp2p's memory transport under the addresses that nodes use on a real one, so that they
//! run as they are.

use std::io;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::task::{Context, Poll};

use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::{Boxed, DialOpts, ListenerId, MemoryTransport, TransportError, TransportEvent};
use libp2p::core::upgrade::Version;
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId, Transport, noise, yamux};
use ringlane_control::swarm::Underlay;

/// The address of a node's one listener.
pub(crate) fn listener(ip: Ipv4Addr) -> Multiaddr {
    Multiaddr::from(ip).with(Protocol::Tcp(8001))
}

/// A node's connection to the simulated internet. Handshakes and multiplexing are the real ones.
pub(crate) fn underlay(keypair: &Keypair) -> Underlay {
    let memory = MemoryTransport::new()
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(keypair).expect("an Ed25519 key signs"))
        .multiplex(yamux::Config::default())
        .boxed();
    Underlay::Simulated(Simulated { memory, listeners: Vec::new() }.boxed())
}

struct Simulated {
    memory: Boxed<(PeerId, StreamMuxerBox)>,
    listeners: Vec<ListenerId>,
}

impl Drop for Simulated {
    /// The memory transport forgets only what it is told to, and a node that returns has the same address.
    fn drop(&mut self) {
        for id in self.listeners.drain(..) {
            self.memory.remove_listener(id);
        }
    }
}

impl Transport for Simulated {
    type Output = (PeerId, StreamMuxerBox);
    type Error = io::Error;
    type ListenerUpgrade = <Boxed<Self::Output> as Transport>::ListenerUpgrade;
    type Dial = <Boxed<Self::Output> as Transport>::Dial;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<io::Error>> {
        self.memory.listen_on(id, to_memory(&address).ok_or(TransportError::MultiaddrNotSupported(address))?)?;
        self.listeners.push(id);
        Ok(())
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.listeners.retain(|other| *other != id);
        self.memory.remove_listener(id)
    }

    fn dial(&mut self, address: Multiaddr, options: DialOpts) -> Result<Self::Dial, TransportError<io::Error>> {
        self.memory.dial(to_memory(&address).ok_or(TransportError::MultiaddrNotSupported(address))?, options)
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        Pin::new(&mut self.memory).poll(cx).map(|event| match event {
            TransportEvent::NewAddress { listener_id, listen_addr } => {
                TransportEvent::NewAddress { listener_id, listen_addr: from_memory(&listen_addr) }
            }
            TransportEvent::Incoming { listener_id, upgrade, local_addr, send_back_addr } => TransportEvent::Incoming {
                listener_id,
                upgrade,
                local_addr: from_memory(&local_addr),
                send_back_addr: from_memory(&send_back_addr),
            },
            other => other,
        })
    }
}

/// IP address and port side by side are a memory address.
fn to_memory(address: &Multiaddr) -> Option<Multiaddr> {
    let mut parts = address.iter();
    match (parts.next()?, parts.next()?) {
        (Protocol::Ip4(ip), Protocol::Tcp(port)) => {
            Some(Protocol::Memory(u64::from(ip.to_bits()) << 16 | u64::from(port)).into())
        }
        _ => None,
    }
}

/// The reverse. A dialler dials from a number of the memory transport's own choice, mostly too large for one of ours.
fn from_memory(address: &Multiaddr) -> Multiaddr {
    let number = match address.iter().next() {
        Some(Protocol::Memory(number)) => number,
        _ => 0,
    };
    let ip = if number >> 48 == 0 { (number >> 16) as u32 } else { 0x0aff_0000 | (number >> 16) as u32 & 0xffff };
    Multiaddr::from(Ipv4Addr::from_bits(ip)).with(Protocol::Tcp(number as u16))
}
