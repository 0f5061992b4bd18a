//! Real nodes over loopback: each has an address of its own in 127.0.0.0/8, so that ports can be fixed and a node that
//! restarts comes back where it was.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use futures::future::select_all;
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use ringlane_control::swarm::{
    Direction, Discovery, ExchangeError, ListenFault, Node, NodeConfig, NodeError, NodeEvent, OpenError, Resolver,
    TransportName, swarm_key,
};
use ringlane_shared::limits::OFFER_BYTES_MAX;
use tokio::sync::{mpsc, oneshot};

/// Everything here takes far less; a machine under load may take longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// One node's identity and addresses; running it is [`Site::node`].
#[derive(Clone)]
struct Site {
    keypair: Keypair,
    id: PeerId,
    ip: Ipv4Addr,
}

impl Site {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let keypair = Keypair::generate_ed25519();
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        // 127.1.0.0 and up; every test process has 256 addresses of its own.
        let ip = Ipv4Addr::from(0x7f01_0000 + (std::process::id() % 0xfd00) * 0x100 + n);
        Self { id: keypair.public().to_peer_id(), keypair, ip }
    }

    /// A pair, the one with the lower peer id first.
    fn pair() -> [Self; 2] {
        let mut pair = [Self::new(), Self::new()];
        pair.sort_by_key(|site| site.id);
        pair
    }

    fn address(&self, transport: TransportName) -> Multiaddr {
        let ip = self.ip;
        match transport {
            TransportName::Quic => format!("/ip4/{ip}/udp/8001/quic-v1"),
            TransportName::Tcp => format!("/ip4/{ip}/tcp/8001"),
            TransportName::Ws => format!("/ip4/{ip}/tcp/8001/ws"),
            TransportName::Wss => format!("/ip4/{ip}/tcp/8001/tls/ws"),
        }
        .parse()
        .unwrap()
    }

    fn config(&self, peers: Vec<(PeerId, Vec<Multiaddr>)>) -> NodeConfig {
        NodeConfig {
            allow_loopback: true,
            seed: u64::from(u32::from(self.ip)),
            ..NodeConfig::new(self.keypair.clone(), peers)
        }
    }

    /// A node that listens on its address of this transport.
    fn node(&self, transport: TransportName, peers: Vec<(PeerId, Vec<Multiaddr>)>) -> Node {
        let mut node = Node::new(self.config(peers)).unwrap();
        let errors = node.set_listen_addresses(&[self.address(transport)]);
        assert!(errors.is_empty(), "{errors:?}");
        node
    }
}

/// The next event of any of the nodes.
async fn next_of(nodes: &mut [Node]) -> (usize, NodeEvent) {
    let (event, node, _) = select_all(nodes.iter_mut().map(|node| Box::pin(node.next()))).await;
    (node, event)
}

/// Runs the nodes until `done` says so of an event.
async fn run_until(nodes: &mut [Node], mut done: impl FnMut(&mut [Node], usize, NodeEvent) -> bool) {
    let run = async {
        loop {
            let (index, event) = next_of(nodes).await;
            if done(nodes, index, event) {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, run).await.expect("it should have happened by now");
}

/// Runs the nodes for a while; for what must *not* happen.
async fn run_for(nodes: &mut [Node], time: Duration, mut check: impl FnMut(&mut [Node], usize, NodeEvent)) {
    let _ = tokio::time::timeout(time, async {
        loop {
            let (index, event) = next_of(nodes).await;
            check(nodes, index, event);
        }
    })
    .await;
}

fn is_connected(event: &NodeEvent) -> bool {
    matches!(event, NodeEvent::PeerConnected { first: true, .. })
}

/// Two connected nodes; the first dialled.
async fn connected_pair(transport: TransportName) -> ([Site; 2], [Node; 2]) {
    let sites = Site::pair();
    let [a, b] = &sites;
    let mut nodes =
        [a.node(transport, vec![(b.id, vec![b.address(transport)])]), b.node(transport, vec![(a.id, Vec::new())])];
    let mut connected = 0;
    run_until(&mut nodes, |_, _, event| {
        connected += u32::from(is_connected(&event));
        connected == 2
    })
    .await;
    (sites, nodes)
}

#[tokio::test]
async fn two_nodes_find_each_other_by_static_address_over_every_transport() {
    for transport in [TransportName::Quic, TransportName::Tcp, TransportName::Ws, TransportName::Wss] {
        let ([a, b], nodes) = connected_pair(transport).await;
        let dialled = nodes[0].connections(&b.id).next().unwrap();
        assert_eq!(dialled.direction, Direction::Outbound);
        assert_eq!(dialled.remote, b.address(transport));
        assert_eq!(dialled.transport, Some(transport));
        assert!(!dialled.relayed);
        let accepted = nodes[1].connections(&a.id).next().unwrap();
        assert_eq!(accepted.direction, Direction::Inbound);
        assert_eq!(accepted.transport, Some(transport));
        assert_eq!(nodes[1].all_connections().count(), 1);
        let (peer, known) = nodes[0].known_addresses().remove(0);
        assert_eq!(peer, b.id);
        assert_eq!(known.iter().map(|known| &known.address).collect::<Vec<_>>(), [&b.address(transport)]);
    }
}

#[tokio::test]
async fn a_swarm_key_protects_websockets_too() {
    let key = |digit: char| {
        let file = format!("/key/swarm/psk/1.0.0/\n/base16/\n{}\n", digit.to_string().repeat(64));
        Discovery { swarm_key: swarm_key::parse(file.as_bytes()), ..Discovery::default() }
    };
    for transport in [TransportName::Ws, TransportName::Wss] {
        let [a, b, other] = [Site::new(), Site::new(), Site::new()];
        let start = |site: &Site, digit, peers| {
            let mut node = Node::new(NodeConfig { discovery: key(digit), ..site.config(peers) }).unwrap();
            let errors = node.set_listen_addresses(&[site.address(transport)]);
            assert!(errors.is_empty(), "{errors:?}");
            node
        };
        let both = [&b, &other].map(|site| (site.id, vec![site.address(transport)]));
        let back = || vec![(a.id, vec![a.address(transport)])];
        let mut nodes = [start(&a, '1', both.to_vec()), start(&b, '1', back()), start(&other, '2', back())];
        let mut connected = [0; 3];
        run_until(&mut nodes, |_, index, event| {
            connected[index] += u32::from(is_connected(&event));
            connected[0] > 0 && connected[1] > 0
        })
        .await;
        run_for(&mut nodes, Duration::from_secs(1), |_, index, event| {
            connected[index] += u32::from(is_connected(&event));
        })
        .await;
        assert_eq!(connected[2], 0, "another key");
        assert_eq!(nodes[0].connections(&b.id).next().unwrap().transport, Some(transport));
    }
}

#[tokio::test]
async fn an_exchange_works_both_ways_over_every_transport() {
    for transport in [TransportName::Quic, TransportName::Tcp, TransportName::Ws, TransportName::Wss] {
        let ([a, b], mut nodes) = connected_pair(transport).await;
        let largest = vec![7; OFFER_BYTES_MAX];
        let ours = nodes[0].exchange(b.id, largest.clone()).unwrap();
        let theirs = nodes[1].exchange(a.id, b"from b".to_vec()).unwrap();
        let mut answers = Vec::new();
        run_until(&mut nodes, |nodes, index, event| {
            match event {
                NodeEvent::OfferReceived { token, mut message, .. } => {
                    message.reverse();
                    nodes[index].answer(token, message);
                }
                NodeEvent::OfferAnswered { id, result, .. } => answers.push((index, id, result.unwrap())),
                _ => {}
            }
            answers.len() == 2
        })
        .await;
        answers.sort();
        assert_eq!(answers, [(0, ours, largest), (1, theirs, b"b morf".to_vec())]);
    }
}

#[tokio::test]
async fn a_message_too_long_is_an_error_and_a_refused_or_unsent_answer_too() {
    let ([_, b], mut nodes) = connected_pair(TransportName::Quic).await;
    let long = vec![0; OFFER_BYTES_MAX + 1];
    nodes[0].exchange(b.id, long.clone()).unwrap();
    nodes[0].exchange(b.id, b"drop this".to_vec()).unwrap();
    nodes[0].exchange(b.id, b"answer too long".to_vec()).unwrap();
    let mut errors = Vec::new();
    run_until(&mut nodes, |nodes, index, event| {
        match event {
            NodeEvent::OfferReceived { token, message, .. } if message == b"drop this" => drop(token),
            NodeEvent::OfferReceived { token, .. } => nodes[index].answer(token, long.clone()),
            NodeEvent::OfferAnswered { result, .. } => errors.push(result.unwrap_err()),
            NodeEvent::PeerDisconnected { .. } => panic!("the connection must survive"),
            _ => {}
        }
        errors.len() == 3
    })
    .await;
    assert_eq!(errors.iter().filter(|e| matches!(e, ExchangeError::TooLong { .. })).count(), 1, "{errors:?}");
    assert_eq!(errors.iter().filter(|e| matches!(e, ExchangeError::Truncated)).count(), 2, "{errors:?}");
    assert!(nodes[0].exchange(PeerId::random(), Vec::new()).is_none(), "no connection, no exchange");
}

#[tokio::test]
async fn an_exchange_on_a_connection_that_closes_ends_in_an_error() {
    let ([_, b], [mut asker, other]) = connected_pair(TransportName::Quic).await;
    asker.exchange(b.id, b"?".to_vec()).unwrap();
    let gone = tokio::spawn(other.shutdown(PATIENCE));
    let mut nodes = [asker];
    run_until(&mut nodes, |_, _, event| match event {
        NodeEvent::OfferAnswered { result, .. } => {
            let error = result.unwrap_err();
            let expected = [
                matches!(error, ExchangeError::NotOpened(OpenError::Closed | OpenError::Io(_))),
                matches!(error, ExchangeError::Truncated | ExchangeError::Io(_)),
            ];
            assert!(expected.contains(&true), "{error}");
            true
        }
        _ => false,
    })
    .await;
    gone.await.unwrap();
}

#[tokio::test]
async fn a_stranger_is_refused_and_gets_no_stream() {
    for transport in [TransportName::Quic, TransportName::Tcp] {
        let [a, stranger] = Site::pair();
        let mut nodes = [
            a.node(transport, vec![(PeerId::random(), Vec::new())]),
            stranger.node(transport, vec![(a.id, vec![a.address(transport)])]),
        ];
        let mut refusals = 0;
        run_until(&mut nodes, |nodes, index, event| {
            match (index, event) {
                (1, NodeEvent::PeerConnected { .. }) => {
                    nodes[1].exchange(a.id, b"let me in".to_vec());
                }
                (1, NodeEvent::OfferAnswered { result, .. }) => {
                    assert!(result.is_err());
                    refusals += 1;
                }
                (0, event) => assert!(matches!(event, NodeEvent::AddressesChanged), "{event:?}"),
                _ => {}
            }
            refusals >= 2 && nodes[0].refused_connections() >= 2
        })
        .await;
        assert_eq!(nodes[0].all_connections().count(), 0);
    }
}

#[tokio::test]
async fn nodes_that_dial_each_other_at_once_end_with_one_connection_and_stay_so() {
    for transport in [TransportName::Quic, TransportName::Tcp] {
        let [a, b] = Site::pair();
        let mut nodes = [
            a.node(transport, vec![(b.id, vec![b.address(transport)])]),
            b.node(transport, vec![(a.id, vec![a.address(transport)])]),
        ];
        let mut connected = 0;
        run_until(&mut nodes, |_, _, event| {
            connected += u32::from(is_connected(&event));
            connected == 2
        })
        .await;
        let check = |_: &mut [Node], _, event| {
            assert!(!matches!(event, NodeEvent::PeerDisconnected { .. }), "{event:?}");
        };
        run_for(&mut nodes, Duration::from_secs(3), check).await;
        // On a busy machine a dial may come through later.
        let start = Instant::now();
        loop {
            let mut is_quiet = true;
            run_for(&mut nodes, Duration::from_millis(500), |nodes, index, event| {
                check(nodes, index, event);
                is_quiet = false;
            })
            .await;
            let connections = [nodes[0].all_connections().count(), nodes[1].all_connections().count()];
            if is_quiet && connections == [1, 1] {
                break;
            }
            assert!(start.elapsed() < PATIENCE, "they should be quiet by now: {connections:?}");
        }
    }
}

#[tokio::test]
async fn a_shutdown_is_seen_by_the_peer_at_once() {
    for transport in [TransportName::Quic, TransportName::Tcp] {
        let (_, [stays, goes]) = connected_pair(transport).await;
        let start = Instant::now();
        let gone = tokio::spawn(goes.shutdown(Duration::from_secs(2)));
        let mut nodes = [stays];
        run_until(&mut nodes, |_, _, event| matches!(event, NodeEvent::PeerDisconnected { .. })).await;
        let took = start.elapsed();
        assert!(took < Duration::from_secs(1), "{transport:?}: {took:?}");
        gone.await.unwrap();
    }
}

/// A node in a thread and runtime of its own, which can be killed: its sockets close and nobody says goodbye.
struct Victim {
    kill: oneshot::Sender<()>,
    thread: thread::JoinHandle<()>,
    connected: mpsc::UnboundedReceiver<()>,
}

impl Victim {
    fn start(site: &Site, transport: TransportName, peers: Vec<(PeerId, Vec<Multiaddr>)>) -> Self {
        let (kill, killed) = oneshot::channel::<()>();
        let (connect, connected) = mpsc::unbounded_channel();
        let site = site.clone();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut node = Node::new(site.config(peers)).unwrap();
                // An earlier one's socket may take a moment to let go of the address.
                while !node.set_listen_addresses(&[site.address(transport)]).is_empty() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                let run = async {
                    loop {
                        if is_connected(&node.next().await) {
                            let _ = connect.send(());
                        }
                    }
                };
                tokio::select! { () = run => {}, _ = killed => {} }
            });
        });
        Self { kill, thread, connected }
    }

    fn kill(self) {
        let _ = self.kill.send(());
        self.thread.join().unwrap();
    }
}

#[tokio::test]
async fn a_killed_peer_that_restarts_is_back_within_three_seconds() {
    for transport in [TransportName::Quic, TransportName::Tcp] {
        let [a, b] = Site::pair();
        let peers = vec![(a.id, vec![a.address(transport)])];
        let mut nodes = [a.node(transport, vec![(b.id, vec![b.address(transport)])])];
        let mut victim = Victim::start(&b, transport, peers.clone());
        run_until(&mut nodes, |_, _, event| is_connected(&event)).await;
        victim.connected.recv().await.unwrap();
        victim.kill();

        let start = Instant::now();
        let victim = Victim::start(&b, transport, peers);
        let mut connected = 0;
        // The old connection may still look alive here: the new one tells that the peer is back.
        run_until(&mut nodes, |nodes, _, event| {
            if let NodeEvent::PeerConnected { .. } = event {
                nodes[0].exchange(b.id, Vec::new()).unwrap();
                connected += 1;
            }
            connected == 1
        })
        .await;
        let took = start.elapsed();
        assert!(took < Duration::from_secs(3), "{transport:?}: {took:?}");
        victim.kill();
    }
}

#[tokio::test]
async fn a_peer_that_knows_no_address_of_ours_is_redialled_until_it_is_back() {
    for transport in [TransportName::Quic, TransportName::Tcp] {
        let ([a, b], [dialer, other]) = connected_pair(transport).await;
        let mut nodes = [dialer];
        let gone = tokio::spawn(other.shutdown(Duration::from_secs(2)));
        run_until(&mut nodes, |_, _, event| matches!(event, NodeEvent::PeerDisconnected { .. })).await;
        gone.await.unwrap();
        // Some dials fail first.
        run_for(&mut nodes, Duration::from_millis(800), |_, _, event| panic!("nobody is there: {event:?}")).await;

        let start = Instant::now();
        let victim = Victim::start(&b, transport, vec![(a.id, Vec::new())]);
        run_until(&mut nodes, |_, _, event| is_connected(&event)).await;
        let took = start.elapsed();
        assert!(took < Duration::from_secs(3), "{transport:?}: {took:?}");
        victim.kill();
    }
}

#[tokio::test]
async fn a_killed_peer_is_noticed_within_seven_seconds_over_quic_and_at_once_over_tcp() {
    for (transport, limit) in [(TransportName::Tcp, 1), (TransportName::Quic, 7)] {
        let [a, b] = Site::pair();
        let mut nodes = [a.node(transport, vec![(b.id, vec![b.address(transport)])])];
        let victim = Victim::start(&b, transport, vec![(a.id, Vec::new())]);
        run_until(&mut nodes, |_, _, event| is_connected(&event)).await;
        victim.kill();
        let start = Instant::now();
        run_until(&mut nodes, |_, _, event| matches!(event, NodeEvent::PeerDisconnected { .. })).await;
        let took = start.elapsed();
        assert!(took < Duration::from_secs(limit), "{transport:?}: {took:?}");
    }
}

/// Over QUIC only: on loopback the kernel gives a TCP dial another source address than the listener's.
#[tokio::test]
async fn an_address_learnt_from_an_inbound_connection_finds_the_peer_again_from_the_cache() {
    let transport = TransportName::Quic;
    let ([dialer, cacher], mut nodes) = connected_pair(transport).await;
    let start = Instant::now();
    let learnt = loop {
        if let Some((peer, addresses)) = nodes[1].known_addresses().pop() {
            assert_eq!(peer, dialer.id);
            break addresses.into_iter().map(|known| known.address).collect::<Vec<_>>();
        }
        assert!(start.elapsed() < PATIENCE, "identify should have told by now");
        run_for(&mut nodes, Duration::from_millis(10), |_, _, _| {}).await;
    };
    assert_eq!(learnt, [dialer.address(transport)]);
    for node in nodes {
        node.shutdown(Duration::from_secs(2)).await;
    }

    // The dialler comes back without knowing where the other is.
    let config = cacher.config(vec![(dialer.id, Vec::new())]);
    let mut nodes = [
        Node::new(NodeConfig { cached: vec![(dialer.id, learnt)], ..config }).unwrap(),
        Node::new(dialer.config(vec![(cacher.id, Vec::new())])).unwrap(),
    ];
    // The first run's socket may take a moment to let go of the address.
    while !nodes[1].set_listen_addresses(&[dialer.address(transport)]).is_empty() {
        assert!(start.elapsed() < PATIENCE, "the address should be free by now");
        run_for(&mut nodes, Duration::from_millis(10), |_, _, _| {}).await;
    }
    run_until(&mut nodes, |_, index, event| index == 0 && is_connected(&event)).await;
}

#[tokio::test]
async fn a_dead_first_address_and_a_strangers_do_not_keep_the_peer_from_being_found() {
    let [a, b] = Site::pair();
    let (dead, stranger) = (Site::new(), Site::new());
    let transport = TransportName::Quic;
    let addresses = [&dead, &stranger, &b].map(|site| site.address(transport)).to_vec();
    let mut nodes = [
        a.node(transport, vec![(b.id, addresses)]),
        stranger.node(transport, vec![(a.id, Vec::new())]),
        b.node(transport, vec![(a.id, Vec::new())]),
    ];
    run_until(&mut nodes, |_, index, event| index == 0 && is_connected(&event)).await;
    assert_eq!(nodes[0].connections(&b.id).next().unwrap().remote, b.address(transport));
}

#[tokio::test]
async fn a_name_in_an_address_is_looked_up_anew_for_every_dial() {
    let [a, b] = Site::pair();
    let stranger = Site::new();
    let answers = [None, Some(stranger.ip), Some(b.ip)].map(|ip| ip.map(Into::into));
    let asked = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&asked);
    let resolver = Resolver::new(move |host| {
        assert_eq!(host, "site-b.example");
        let answer = answers[(count.fetch_add(1, Ordering::Relaxed) as usize).min(2)];
        answer.map(|ip| vec![ip]).ok_or(std::io::ErrorKind::NotFound.into())
    });
    let name = "/dns/site-b.example/udp/8001/quic-v1".parse().unwrap();
    let config = NodeConfig { resolver, ..a.config(vec![(b.id, vec![name])]) };
    let mut nodes = [
        Node::new(config).unwrap(),
        b.node(TransportName::Quic, vec![(a.id, Vec::new())]),
        stranger.node(TransportName::Quic, Vec::new()),
    ];
    run_until(&mut nodes, |_, index, event| index == 0 && is_connected(&event)).await;
    assert!(asked.load(Ordering::Relaxed) >= 3);
    let remote = &nodes[0].connections(&b.id).next().unwrap().remote;
    assert_eq!(*remote, b.address(TransportName::Quic), "what is remembered is the address, not the name");
    assert_eq!(nodes[0].known_addresses()[0].1[0].address, *remote);
}

#[tokio::test]
async fn the_systems_resolver_is_asked() {
    let [a, b] = Site::pair();
    let listen = "/ip4/127.0.0.1/tcp/0".parse().unwrap();
    let mut server = Node::new(b.config(vec![(a.id, Vec::new())])).unwrap();
    assert!(server.set_listen_addresses(&[listen]).is_empty());
    assert!(matches!(server.next().await, NodeEvent::AddressesChanged));
    let port = server.listen_addresses().next().unwrap().iter().nth(1).unwrap();
    let name = Multiaddr::from(Protocol::Dns4("localhost".into())).with(port);
    let mut nodes = [Node::new(a.config(vec![(b.id, vec![name])])).unwrap(), server];
    run_until(&mut nodes, |_, index, event| index == 0 && is_connected(&event)).await;
}

#[tokio::test]
async fn addresses_of_our_own_are_not_dialled() {
    let [a, b] = Site::pair();
    let overlay = "/ip4/100.64.1.1/udp/8001/quic-v1".parse().unwrap();
    let mut node = Node::new(NodeConfig {
        allow_loopback: false,
        ..a.config(vec![(b.id, vec![b.address(TransportName::Quic), overlay])])
    })
    .unwrap();
    node.set_denied(|_| true);
    let mut nodes = [node, b.node(TransportName::Quic, vec![(a.id, Vec::new())])];
    run_for(&mut nodes, Duration::from_secs(1), |_, index, event| {
        assert!(index == 1 && matches!(event, NodeEvent::AddressesChanged), "{event:?}");
    })
    .await;
}

#[tokio::test]
async fn listen_addresses_follow_what_is_set_and_errors_name_address_and_reason() {
    let site = Site::new();
    let [quic, tcp] = [TransportName::Quic, TransportName::Tcp].map(|transport| site.address(transport));
    let mut nodes = [Node::new(site.config(Vec::new())).unwrap()];
    let set = |nodes: &mut [Node; 1], addresses: &[&Multiaddr]| {
        let addresses: Vec<_> = addresses.iter().map(|&address| address.clone()).collect();
        nodes[0].set_listen_addresses(&addresses)
    };
    let listens_on = |nodes: &[Node], expected: &[&Multiaddr]| {
        let mut listening: Vec<_> = nodes[0].listen_addresses().collect();
        listening.sort();
        listening == expected
    };
    assert!(set(&mut nodes, &[&quic, &tcp]).is_empty());
    run_until(&mut nodes, |nodes, _, _| listens_on(nodes, &[&tcp, &quic])).await;
    assert!(set(&mut nodes, &[&tcp]).is_empty());
    run_until(&mut nodes, |nodes, _, _| listens_on(nodes, &[&tcp])).await;

    let mut second = Node::new(Site::new().config(Vec::new())).unwrap();
    let unspecified: Multiaddr = "/ip4/0.0.0.0/tcp/8001".parse().unwrap();
    let errors = second.set_listen_addresses(&[tcp.clone(), unspecified.clone()]);
    let in_use = errors.iter().find(|error| error.address == tcp).unwrap();
    assert!(matches!(in_use.fault, ListenFault::InUse));
    assert_eq!(
        in_use.to_string(),
        format!("cannot listen on {tcp}: it is in use by another program: stop that one, or choose another port")
    );
    assert!(errors.iter().any(|error| error.address == unspecified));
}

#[tokio::test]
async fn a_node_refuses_to_be_its_own_peer() {
    let site = Site::new();
    let error = Node::new(site.config(vec![(site.id, Vec::new())])).err().unwrap();
    assert!(matches!(error, NodeError::SelfAsPeer(id) if id == site.id));
}

#[tokio::test]
async fn twenty_nodes_mesh_and_settle_at_one_connection_per_pair() {
    const NODES: usize = 20;
    let sites: Vec<_> = (0..NODES).map(|_| Site::new()).collect();
    let transport = TransportName::Quic;
    let others = |site: &Site| {
        let others = sites.iter().filter(|other| other.id != site.id);
        others.map(|other| (other.id, vec![other.address(transport)])).collect()
    };
    let mut nodes: Vec<_> = sites.iter().map(|site| site.node(transport, others(site))).collect();
    run_until(&mut nodes, |nodes, _, _| {
        nodes.iter().all(|node| {
            let mut peers: Vec<_> = node.all_connections().map(|connection| connection.peer).collect();
            peers.dedup();
            peers.len() == NODES - 1 && node.all_connections().count() == NODES - 1
        })
    })
    .await;
}
