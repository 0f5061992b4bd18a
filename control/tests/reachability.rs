//! What peers can have a node do by asking whether they can be reached (AutoNAT): little, whatever and however often they ask.
//!
//! Only addresses that mean the same everywhere are dialled, so the nodes have such ones, on an internet in this process.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::future::FutureExt;
use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::{Boxed, DialOpts, ListenerId, MemoryTransport, TransportError, TransportEvent};
use libp2p::core::upgrade::Version;
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId, StreamProtocol, Transport, noise, yamux};
use ringlane_control::swarm::{Node, NodeConfig, NodeEvent, Underlay};
use ringlane_shared::limits::{AUTONAT_ADDRESSES_MAX, AUTONAT_DIALS_MAX, AUTONAT_DIALS_PER_PEER_MAX};

/// Everything here takes far less; a machine under load may take longer.
const PATIENCE: Duration = Duration::from_secs(60);
/// The bounds are so much in any such time.
const PERIOD: Duration = Duration::from_secs(30);

const AUTONAT: StreamProtocol = StreamProtocol::new("/libp2p/autonat/1.0.0");

const SERVER: Ipv4Addr = Ipv4Addr::new(1, 1, 1, 1);
/// Has nothing to do with any of it.
const BYSTANDER: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 9);

/// More than may ask as often as each of them may.
const PEERS: usize = AUTONAT_DIALS_MAX / AUTONAT_DIALS_PER_PEER_MAX + 2;
/// As many as a request has room for.
const ADDRESSES: u16 = 90;

/// What one node has dialled.
#[derive(Default)]
struct Dials {
    /// To whom, where.
    made: Vec<(PeerId, Ipv4Addr, u16)>,
    under_way: BTreeMap<PeerId, usize>,
    most_at_once: usize,
}

/// A node's connection to an internet of memory. Where dials are looked at, all of them fail.
struct Internet {
    memory: Boxed<(PeerId, StreamMuxerBox)>,
    dials: Option<Arc<Mutex<Dials>>>,
}

fn underlay(keypair: &Keypair, dials: Option<Arc<Mutex<Dials>>>) -> Underlay {
    let memory = MemoryTransport::new()
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(keypair).unwrap())
        .multiplex(yamux::Config::default())
        .boxed();
    Underlay::Simulated(Internet { memory, dials }.boxed())
}

fn at(ip: Ipv4Addr, port: u16) -> Multiaddr {
    Multiaddr::from(ip).with(Protocol::Tcp(port))
}

fn parts(address: &Multiaddr) -> Option<(Ipv4Addr, u16)> {
    let mut parts = address.iter();
    match (parts.next()?, parts.next()?) {
        (Protocol::Ip4(ip), Protocol::Tcp(port)) => Some((ip, port)),
        _ => None,
    }
}

fn in_memory(address: &Multiaddr) -> Option<Multiaddr> {
    let (ip, port) = parts(address)?;
    Some(Protocol::Memory(u64::from(ip.to_bits()) << 16 | u64::from(port)).into())
}

/// Whoever dials has a number of the memory transport's choice, which becomes an address in 8.0.0.0/8.
fn of_dialler(address: &Multiaddr) -> Multiaddr {
    let Some(Protocol::Memory(number)) = address.iter().next() else { return address.clone() };
    at(Ipv4Addr::from_bits(0x0800_0000 | (number >> 16) as u32 & 0xff_ffff), number as u16 | 1)
}

impl Transport for Internet {
    type Output = (PeerId, StreamMuxerBox);
    type Error = io::Error;
    type ListenerUpgrade = <Boxed<Self::Output> as Transport>::ListenerUpgrade;
    type Dial = <Boxed<Self::Output> as Transport>::Dial;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<io::Error>> {
        self.memory.listen_on(id, in_memory(&address).ok_or(TransportError::MultiaddrNotSupported(address))?)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.memory.remove_listener(id)
    }

    fn dial(&mut self, address: Multiaddr, options: DialOpts) -> Result<Self::Dial, TransportError<io::Error>> {
        let Some(dials) = self.dials.clone() else {
            return self
                .memory
                .dial(in_memory(&address).ok_or(TransportError::MultiaddrNotSupported(address))?, options);
        };
        let ((ip, port), Some(Protocol::P2p(peer))) = (parts(&address).unwrap(), address.iter().last()) else {
            panic!("{address} names nobody");
        };
        dials.lock().unwrap().made.push((peer, ip, port));
        let count = move |more: bool| {
            let mut dials = dials.lock().unwrap();
            let under_way = dials.under_way.entry(peer).or_default();
            *under_way = if more { *under_way + 1 } else { *under_way - 1 };
            dials.most_at_once = dials.most_at_once.max(*dials.under_way.get(&peer).unwrap());
        };
        let dial = async move {
            count(true);
            tokio::time::sleep(Duration::from_millis(1)).await;
            count(false);
            Err(io::ErrorKind::ConnectionRefused.into())
        };
        Ok(dial.boxed())
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        Pin::new(&mut self.memory).poll(cx).map(|event| match event {
            TransportEvent::NewAddress { listener_id, .. } => {
                TransportEvent::NewAddress { listener_id, listen_addr: at(SERVER, 8001) }
            }
            TransportEvent::Incoming { listener_id, upgrade, send_back_addr, .. } => TransportEvent::Incoming {
                listener_id,
                upgrade,
                local_addr: at(SERVER, 8001),
                send_back_addr: of_dialler(&send_back_addr),
            },
            other => other,
        })
    }
}

/// A protobuf field of bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut field = vec![number << 3 | 2];
    field.extend(varint(bytes.len()));
    field.extend_from_slice(bytes);
    field
}

fn varint(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

/// "Dial me at all of these."
fn request(asker: &PeerId, addresses: impl IntoIterator<Item = Multiaddr>) -> Vec<u8> {
    let mut info = field(1, &asker.to_bytes());
    info.extend(addresses.into_iter().flat_map(|address| field(2, &address.to_vec())));
    let message = [vec![0x08, 0], field(2, &field(1, &info))].concat();
    [varint(message.len()), message].concat()
}

/// Asks the server, and returns when that has answered or thrown the stream away.
async fn ask(node: &mut Node, server: &PeerId, request: &[u8]) {
    let connection = node.best_connection(server).unwrap().id;
    let opening = node.open_stream(connection, vec![AUTONAT]);
    let mut stream = loop {
        match node.next().await {
            NodeEvent::StreamOpened { id, result } if id == opening => break result.unwrap().1,
            _ => {}
        }
    };
    let talk = async {
        // What is too long is not read to its end.
        let _ = stream.write_all(request).await;
        let _ = stream.close().await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    };
    tokio::pin!(talk);
    loop {
        tokio::select! {
            () = &mut talk => return,
            _ = node.next() => {}
        }
    }
}

#[tokio::test]
async fn peers_that_ask_without_end_to_be_dialled_at_hundreds_of_addresses_are_dialled_a_little_and_nobody_else_is() {
    let keypair = Keypair::generate_ed25519();
    let server = keypair.public().to_peer_id();
    let peers: Vec<_> = (0..PEERS).map(|_| Keypair::generate_ed25519()).collect();
    let ids: Vec<PeerId> = peers.iter().map(|peer| peer.public().to_peer_id()).collect();
    let dials = Arc::<Mutex<Dials>>::default();
    let config = NodeConfig {
        underlay: underlay(&keypair, Some(Arc::clone(&dials))),
        ..NodeConfig::new(keypair, ids.iter().map(|id| (*id, Vec::new())).collect())
    };
    let mut serving = Node::new(config).unwrap();
    assert!(serving.set_listen_addresses(&[at(SERVER, 8001)]).is_empty());

    let asking = async {
        // One after the other, so that what one may have would not be less because of the others.
        for (peer, id) in peers.iter().zip(&ids) {
            let config = NodeConfig {
                underlay: underlay(peer, None),
                ..NodeConfig::new(peer.clone(), vec![(server, vec![at(SERVER, 8001)])])
            };
            let mut node = Node::new(config).unwrap();
            while node.best_connection(&server).is_none() {
                node.next().await;
            }
            let named = |count: u16| (1..=count).map(|port| at(BYSTANDER, port));
            for _ in 0..3 * AUTONAT_DIALS_PER_PEER_MAX {
                ask(&mut node, &server, &request(id, named(ADDRESSES))).await;
            }
            ask(&mut node, &server, &request(id, named(300))).await;
            ask(&mut node, &server, &request(&PeerId::random(), named(ADDRESSES))).await;
            // Nobody is thrown out for it.
            assert!(node.best_connection(&server).is_some());
        }
    };
    let began = Instant::now();
    let run = async {
        tokio::select! {
            () = asking => {}
            () = async { loop { serving.next().await; } } => {}
        }
    };
    tokio::time::timeout(PATIENCE, run).await.expect("it should have happened by now");

    let periods = 1 + (began.elapsed().as_secs() / PERIOD.as_secs()) as usize;
    let dials = dials.lock().unwrap();
    let most = AUTONAT_DIALS_MAX * AUTONAT_ADDRESSES_MAX;
    assert!((most..=most * periods).contains(&dials.made.len()), "{} dials", dials.made.len());
    assert_eq!(dials.most_at_once, 1, "of one peer's addresses one after the other");
    for id in &ids {
        let made: Vec<_> = dials.made.iter().filter(|(peer, ..)| peer == id).collect();
        assert!(made.len() <= AUTONAT_DIALS_PER_PEER_MAX * AUTONAT_ADDRESSES_MAX * periods, "{made:?}");
        let ips: BTreeSet<_> = made.iter().map(|(_, ip, _)| ip).collect();
        assert!(ips.len() <= 1 && ips.iter().all(|ip| ip.octets()[0] == 8), "only where it comes from: {ips:?}");
    }
    assert!(dials.made.iter().all(|(peer, ..)| ids.contains(peer)));
}
