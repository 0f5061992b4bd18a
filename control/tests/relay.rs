//! Nodes that reach each other only through a third, over loopback: who does not listen can be reached by nobody.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures::future::select_all;
use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::identity::Keypair;
use libp2p::{Multiaddr, PeerId, Stream, StreamProtocol};
use ringlane_control::swarm::{Node, NodeConfig, NodeEvent, OpenError, Source, address};
use ringlane_shared::config::{RelayServe, RelaySettings};
use ringlane_shared::limits::OFFER_BYTES_MAX;
use ringlane_shared::wire::circuit::HOP;

/// Everything here takes far less; a machine under load may take longer.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone)]
struct Site {
    keypair: Keypair,
    id: PeerId,
    address: Multiaddr,
}

impl Site {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let keypair = Keypair::generate_ed25519();
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        // Every test process has 256 addresses of its own, others than those of tests/swarm.rs.
        let ip = Ipv4Addr::from(0x7fc0_0000 + (std::process::id() % 0x3d00) * 0x100 + n);
        let address = format!("/ip4/{ip}/tcp/8001").parse().unwrap();
        Self { id: keypair.public().to_peer_id(), keypair, address }
    }

    /// A node that listens nowhere and knows where the peers are that come with an address.
    fn node(&self, peers: &[(&Site, bool)], serve: RelayServe) -> Node {
        let known = |(peer, is_known): &(&Site, bool)| {
            (peer.id, if *is_known { vec![peer.address.clone()] } else { Vec::new() })
        };
        Node::new(NodeConfig {
            allow_loopback: true,
            seed: 1,
            relay: RelaySettings { serve, ..RelaySettings::default() },
            ..NodeConfig::new(self.keypair.clone(), peers.iter().map(known).collect())
        })
        .unwrap()
    }

    fn listening(&self, peers: &[(&Site, bool)], serve: RelayServe) -> Node {
        let mut node = self.node(peers, serve);
        let errors = node.set_listen_addresses(std::slice::from_ref(&self.address));
        assert!(errors.is_empty(), "{errors:?}");
        node
    }
}

/// Runs the nodes until `done`; asked after each event and now and then.
async fn run_until(what: &str, nodes: &mut [Node], mut done: impl FnMut(&mut [Node]) -> bool) {
    let begin = Instant::now();
    while !done(nodes) {
        assert!(begin.elapsed() < PATIENCE, "gave up waiting for: {what}");
        run_one(nodes, &mut |_, _| ()).await;
    }
}

/// Lets one event happen, or a moment pass; questions are answered with themselves.
async fn run_one(nodes: &mut [Node], seen: &mut impl FnMut(usize, NodeEvent)) {
    let next = select_all(nodes.iter_mut().map(|node| Box::pin(node.next())));
    let Ok((event, index, _)) = tokio::time::timeout(Duration::from_millis(20), next).await else { return };
    match event {
        NodeEvent::OfferReceived { token, message, .. } => nodes[index].answer(token, message),
        event => seen(index, event),
    }
}

/// Whether a node's best connection to a peer comes through this relay.
fn is_relayed_by(node: &Node, peer: &Site, relay: &Site) -> bool {
    node.best_connection(&peer.id).is_some_and(|connection| connection.relayed && connection.relay == Some(relay.id))
}

fn is_direct(node: &Node, peer: &Site) -> bool {
    node.best_connection(&peer.id).is_some_and(|connection| !connection.relayed)
}

/// A and B, that reach nothing but R.
async fn joined_by_a_relay() -> ([Site; 3], Vec<Node>) {
    let [r, a, b] = [Site::new(), Site::new(), Site::new()];
    let mut nodes = vec![
        r.listening(&[(&a, false), (&b, false)], RelayServe::Always),
        a.node(&[(&r, true), (&b, false)], RelayServe::Auto),
        b.node(&[(&r, true), (&a, false)], RelayServe::Auto),
    ];
    run_until("a circuit", &mut nodes, |nodes| is_relayed_by(&nodes[1], &b, &r) && is_relayed_by(&nodes[2], &a, &r))
        .await;
    ([r, a, b], nodes)
}

/// Asks a peer something until it answers.
async fn ask(nodes: &mut [Node], from: usize, to: &Site, question: &[u8]) {
    let begin = Instant::now();
    'again: loop {
        assert!(begin.elapsed() < PATIENCE);
        let Some(asked) = nodes[from].exchange(to.id, question.to_vec()) else {
            run_one(nodes, &mut |_, _| ()).await;
            continue;
        };
        loop {
            let mut answer = None;
            run_one(nodes, &mut |index, event| match event {
                NodeEvent::OfferAnswered { id, result, .. } if index == from && id == asked => answer = Some(result),
                _ => {}
            })
            .await;
            match answer {
                Some(Ok(answer)) => return assert_eq!(answer, question),
                Some(Err(_)) => continue 'again,
                None => {}
            }
        }
    }
}

#[tokio::test]
async fn two_nodes_that_reach_only_a_third_talk_through_it_and_it_knows() {
    let ([r, a, b], mut nodes) = joined_by_a_relay().await;
    for _ in 0..5 {
        ask(&mut nodes, 1, &b, &[7; OFFER_BYTES_MAX]).await;
    }
    ask(&mut nodes, 2, &a, b"and back").await;
    let is_told = |node: &Node| node.own_addresses().iter().any(address::is_circuit);
    run_until("both to be reachable through it", &mut nodes, |nodes| nodes[1..].iter().all(is_told)).await;
    let report = nodes[0].relay_report();
    assert!(report.serves && report.offering.is_empty() && report.reserved_at.is_empty(), "{report:?}");
    assert!(report.reserved_here.contains(&a.id) && report.reserved_here.contains(&b.id), "{report:?}");
    let carried: u64 = report.circuits.iter().map(|c| c.bytes_from_source.min(c.bytes_from_target)).sum();
    assert!(carried > 5 * OFFER_BYTES_MAX as u64, "there and back: {report:?}");
    for node in &nodes[1..] {
        let report = node.relay_report();
        assert_eq!((report.reserved_at, report.offering, report.serves), (vec![r.id], vec![r.id], false));
    }
}

#[tokio::test]
async fn when_the_relay_comes_back_they_are_joined_again() {
    let ([r, a, b], mut nodes) = joined_by_a_relay().await;
    drop(nodes.remove(0));
    run_until("the end of the circuit", &mut nodes, |nodes| {
        nodes[0].best_connection(&b.id).is_none() && nodes[1].best_connection(&a.id).is_none()
    })
    .await;
    nodes.insert(0, r.listening(&[(&a, false), (&b, false)], RelayServe::Always));
    run_until("a circuit through the relay's next life", &mut nodes, |nodes| {
        is_relayed_by(&nodes[1], &b, &r) && is_relayed_by(&nodes[2], &a, &r)
    })
    .await;
    ask(&mut nodes, 1, &b, b"again").await;
}

#[tokio::test]
async fn another_relay_takes_the_place_of_one_that_ends() {
    let ([r, a, b], mut nodes) = joined_by_a_relay().await;
    let s = Site::new();
    // Both learn of a second relay by starting anew.
    nodes[1] = a.node(&[(&r, true), (&s, true), (&b, false)], RelayServe::Auto);
    nodes[2] = b.node(&[(&r, true), (&s, true), (&a, false)], RelayServe::Auto);
    nodes.push(s.listening(&[(&a, false), (&b, false)], RelayServe::Always));
    run_until("two reservations each", &mut nodes, |nodes| {
        nodes[1..3].iter().all(|node| node.relay_report().reserved_at.len() == 2)
    })
    .await;
    drop(nodes.remove(0));
    run_until("a circuit through the other relay", &mut nodes, |nodes| {
        is_relayed_by(&nodes[0], &b, &s) && is_relayed_by(&nodes[1], &a, &s)
    })
    .await;
    ask(&mut nodes, 0, &b, b"through the other").await;
}

#[tokio::test]
async fn a_direct_connection_takes_over_as_soon_as_there_can_be_one() {
    let ([_, a, b], mut nodes) = joined_by_a_relay().await;
    assert!(nodes[2].set_listen_addresses(std::slice::from_ref(&b.address)).is_empty());
    nodes[1].learn_address(&b.id, &b.address, Source::SignedRecord);
    run_until("a direct connection", &mut nodes, |nodes| is_direct(&nodes[1], &b) && is_direct(&nodes[2], &a)).await;
    run_until("the end of the relayed one", &mut nodes, |nodes| {
        nodes[1].connections(&b.id).all(|connection| !connection.relayed) && nodes[0].relay_report().circuits.is_empty()
    })
    .await;
    ask(&mut nodes, 1, &b, b"directly").await;
}

#[tokio::test]
async fn a_node_that_does_not_serve_is_not_used() {
    let [r, a, b] = [Site::new(), Site::new(), Site::new()];
    let mut nodes = vec![
        r.listening(&[(&a, false), (&b, false)], RelayServe::Never),
        a.node(&[(&r, true), (&b, false)], RelayServe::Auto),
        b.node(&[(&r, true), (&a, false)], RelayServe::Auto),
    ];
    run_until("both to know the third", &mut nodes, |nodes| {
        nodes[1..].iter().all(|node| node.connections(&r.id).any(|connection| connection.rtt.is_some()))
    })
    .await;
    assert!(nodes[1..].iter().all(|node| node.relay_report().offering.is_empty()));
    assert!(open(&mut nodes, 1, &r).await.is_err(), "nor does it take such streams");
    assert_eq!(nodes[1].best_connection(&b.id).map(|connection| connection.relayed), None);
}

/// Opens a stream of the relay's protocol.
async fn open(nodes: &mut [Node], from: usize, relay: &Site) -> Result<Stream, ()> {
    let open = |node: &mut Node| {
        let connection = node.best_connection(&relay.id).unwrap().id;
        node.open_stream(connection, vec![StreamProtocol::new(HOP)])
    };
    let mut opening = open(&mut nodes[from]);
    loop {
        let mut opened = None;
        run_one(nodes, &mut |_, event| {
            if let NodeEvent::StreamOpened { id, result } = event
                && id == opening
            {
                opened = Some(result);
            }
        })
        .await;
        match opened {
            // Of two connections that were made at once, one is closed.
            Some(Err(OpenError::Closed)) => opening = open(&mut nodes[from]),
            Some(result) => return result.map(|(_, stream)| *stream).map_err(|_| ()),
            None => {}
        }
    }
}

/// Writes bytes and reads all there is to read.
async fn say(nodes: &mut [Node], from: usize, relay: &Site, bytes: &[u8]) -> Vec<u8> {
    let mut stream = open(nodes, from, relay).await.unwrap();
    let talk = async {
        let mut answer = Vec::new();
        // The relay may be gone from the stream before all is said: that is its right.
        let _ = stream.write_all(bytes).await;
        let _ = stream.close().await;
        let _ = stream.read_to_end(&mut answer).await;
        answer
    };
    tokio::pin!(talk);
    let mut ignore = |_, _| ();
    loop {
        tokio::select! {
            answer = &mut talk => return answer,
            () = run_one(nodes, &mut ignore) => {}
        }
    }
}

#[tokio::test]
async fn nonsense_on_the_relays_protocol_is_answered_as_such_and_harms_nobody() {
    let ([r, _, b], mut nodes) = joined_by_a_relay().await;
    let malformed = [5, 0x08, 2, 0x28, 0x90, 0x03];
    assert_eq!(say(&mut nodes, 1, &r, &[3, 0x0a, 0x7f, 0]).await, malformed);
    assert_eq!(say(&mut nodes, 1, &r, &[0xff; 5000]).await, malformed, "too long");
    assert_eq!(say(&mut nodes, 1, &r, &[2, 0x08, 2]).await, [5, 0x08, 2, 0x28, 0x91, 0x03], "an answer to nothing");
    assert_eq!(say(&mut nodes, 1, &r, &[2, 0x08]).await, [0_u8; 0], "cut short");
    let stranger = ringlane_shared::wire::circuit::stop_connect(&PeerId::random());
    let mut connect = stranger.clone();
    connect[2] = 1;
    assert_eq!(say(&mut nodes, 1, &r, &connect).await, [5, 0x08, 2, 0x28, 0xcc, 0x01], "no reservation");
    ask(&mut nodes, 1, &b, b"still there").await;
}

#[tokio::test]
async fn a_relay_serves_no_stranger_and_a_peer_takes_no_circuit_from_whom_it_does_not_know() {
    let [r, b, c, stranger] = [Site::new(), Site::new(), Site::new(), Site::new()];
    let mut nodes = vec![
        r.listening(&[(&b, false), (&c, false)], RelayServe::Always),
        b.node(&[(&r, true)], RelayServe::Auto),
        c.node(&[(&r, true), (&b, false)], RelayServe::Auto),
        stranger.node(&[(&r, true), (&b, false)], RelayServe::Auto),
    ];
    let not_configured = |node: &Node| node.refused().get("not_configured").copied().unwrap_or(0);
    run_until("both refusals", &mut nodes, |nodes| not_configured(&nodes[0]) > 0 && not_configured(&nodes[1]) > 0)
        .await;
    let refused = not_configured(&nodes[0]);
    run_until("another try", &mut nodes, |nodes| not_configured(&nodes[0]) > refused).await;
    let report = nodes[0].relay_report();
    assert!(report.reserved_here.contains(&b.id) && !report.reserved_here.contains(&stranger.id));
    assert!(report.circuits.iter().all(|circuit| circuit.source == c.id));
    // To whoever dials it looks for a moment like a connection.
    run_until("both to be thrown out again", &mut nodes, |nodes| {
        nodes[2].best_connection(&b.id).is_none() && nodes[3].best_connection(&r.id).is_none()
    })
    .await;
    assert!(nodes[1].best_connection(&c.id).is_none() && nodes[1].best_connection(&stranger.id).is_none());
}
