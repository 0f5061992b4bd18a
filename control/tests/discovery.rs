//! Nodes over loopback that find each other because a third one knows both.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::net::Ipv4Addr;
use std::time::Duration;

use futures::future::select_all;
use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::identity::Keypair;
use libp2p::{Multiaddr, PeerId, StreamProtocol};
use ringlane_control::exchange::{ExchangeCounters, PeerExchange, accepted};
use ringlane_control::swarm::{Accepted, ConnectionId, Node, NodeConfig, NodeEvent, OpenError};

/// Everything here takes far less; a machine under load may take longer.
const PATIENCE: Duration = Duration::from_secs(30);

const PEX: &str = "/hyprspace/pex/0.0.1";

/// A node and, unless it is silent, its exchange.
struct Member {
    id: PeerId,
    node: Node,
    exchange: PeerExchange,
}

impl Member {
    fn address(at: u8) -> Multiaddr {
        let [high, low] = (std::process::id() as u16).to_be_bytes();
        format!("/ip4/{}/udp/8001/quic-v1", Ipv4Addr::new(127, 2 + high % 250, low, at)).parse().unwrap()
    }

    fn keypair(at: u8) -> Keypair {
        Keypair::ed25519_from_bytes([at; 32]).unwrap()
    }

    fn id(at: u8) -> PeerId {
        Self::keypair(at).public().to_peer_id()
    }

    /// Member `at` of those numbered `all`, who knows where the `known` are and speaks these protocols.
    fn new(at: u8, all: &[u8], known: &[u8], accepted: Vec<Accepted>) -> Self {
        let keypair = Self::keypair(at);
        let peers: Vec<_> = all.iter().filter(|peer| **peer != at).collect();
        let addresses = |peer: &u8| if known.contains(peer) { vec![Self::address(*peer)] } else { Vec::new() };
        let told = peers.iter().map(|peer| (Self::id(**peer), addresses(peer))).collect();
        let mut node = Node::new(NodeConfig {
            allow_loopback: true,
            seed: at.into(),
            accepted,
            ..NodeConfig::new(keypair.clone(), told)
        })
        .unwrap();
        assert!(node.set_listen_addresses(&[Self::address(at)]).is_empty());
        let configured = peers.iter().map(|peer| Self::id(**peer)).collect();
        Self { id: Self::id(at), node, exchange: PeerExchange::new(&keypair, configured, at.into()) }
    }

    /// Lives until something happens that is not the exchange's business alone.
    async fn next(&mut self) -> NodeEvent {
        loop {
            tokio::select! {
                event = self.node.next() => {
                    if let Some(event) = self.exchange.handle_event(event, &mut self.node) {
                        return event;
                    }
                }
                progress = self.exchange.next() => self.exchange.handle_progress(progress, &mut self.node),
            }
        }
    }

    fn is_connected(&self, peer: u8) -> bool {
        self.node.best_connection(&Self::id(peer)).is_some()
    }
}

async fn run_until(members: &mut [Member], done: impl Fn(&[Member]) -> bool) {
    let run = async {
        while !done(members) {
            // What is not an event of the node's ends the wait too.
            let any = select_all(members.iter_mut().map(|member| Box::pin(member.next())));
            let _ = tokio::time::timeout(Duration::from_millis(20), any).await;
        }
    };
    tokio::time::timeout(PATIENCE, run).await.expect("it should have happened by now");
}

fn counters(member: &Member) -> ExchangeCounters {
    member.exchange.counters()
}

#[tokio::test]
async fn a_third_node_introduces_two_by_what_they_have_signed() {
    let all = [1, 2, 3];
    let mut members = all.map(|at| Member::new(at, &all, &[2], accepted().to_vec()));
    run_until(&mut members, |members| members[0].is_connected(3) && members[2].is_connected(1)).await;
    run_until(&mut members, |members| members.iter().all(|member| counters(member).records == 2)).await;
    for member in &members {
        let counters = counters(member);
        assert_eq!((counters.gossip.records_forged, counters.gossip.records_learnt >= 2), (0, true));
        assert!(counters.gossip.messages_sent > 0 && counters.gossip.bytes_sent < 10_000, "{counters:?}");
    }
}

#[tokio::test]
async fn a_third_node_introduces_two_by_hyprspaces_exchange() {
    let all = [11, 12, 13];
    let only_pex: Vec<_> = accepted().into_iter().filter(|accepted| accepted.name.as_ref() == PEX).collect();
    let mut members = all.map(|at| Member::new(at, &all, &[12], only_pex.clone()));
    // Whoever comes last to the third hears of both, asks or is dialled.
    run_until(&mut members, |members| members[0].is_connected(13) && members[2].is_connected(11)).await;
    run_until(&mut members, |members| {
        let [a, b, c] = [0, 1, 2].map(|at| counters(&members[at]));
        b.pex_answered >= 2 && a.pex_asked + c.pex_asked >= 2
    })
    .await;
    assert!(members.iter().all(|member| counters(member).gossip.messages_sent == 0));
}

/// The raw end of a stream to a member's exchange, and the connection it is on.
async fn open(raw: &mut Member, member: &mut Member) -> (Box<libp2p::Stream>, ConnectionId) {
    let id = member.id;
    let open = |node: &mut Node| {
        let connection = node.best_connection(&id).unwrap().id;
        (connection, node.open_stream(connection, vec![StreamProtocol::new(PEX)]))
    };
    let (mut connection, mut opening) = open(&mut raw.node);
    let open = async {
        loop {
            tokio::select! {
                event = raw.node.next() => match event {
                    NodeEvent::StreamOpened { id, result } if id == opening => match result {
                        // Of two connections that were made at once, one is closed.
                        Err(OpenError::Closed) => (connection, opening) = open(&mut raw.node),
                        result => return (result.unwrap().1, connection),
                    },
                    _ => {}
                },
                _ = member.next() => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, open).await.unwrap()
}

/// What the member answers to these bytes, on a connection that stands meanwhile.
async fn answer(raw: &mut Member, member: &mut Member, request: &[u8]) -> Vec<u8> {
    loop {
        let (stream, connection) = open(raw, member).await;
        let answer = answer_on(stream, raw, member, request).await;
        if raw.node.connections(&member.id).any(|stands| stands.id == connection) {
            return answer;
        }
    }
}

async fn answer_on(mut stream: Box<libp2p::Stream>, raw: &mut Member, member: &mut Member, request: &[u8]) -> Vec<u8> {
    let ask = async {
        let mut answer = Vec::new();
        if stream.write_all(request).await.is_err() || stream.flush().await.is_err() {
            return answer;
        }
        // A stream that is thrown away is no answer either.
        let _ = stream.read_to_end(&mut answer).await;
        answer
    };
    tokio::pin!(ask);
    let run = async {
        loop {
            tokio::select! {
                answer = &mut ask => return answer,
                _ = member.next() => {}
                _ = raw.node.next() => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, run).await.unwrap()
}

#[tokio::test]
async fn a_request_is_answered_with_the_others_and_other_requests_or_too_many_are_not() {
    let all = [21, 22, 23];
    let mut members = [21, 22].map(|at| Member::new(at, &all, &[21, 22, 23], accepted().to_vec()));
    run_until(&mut members, |members| members[0].is_connected(22) && members[1].is_connected(21)).await;
    let [raw, member] = &mut members;
    let expected = format!("{}|{}\n", Member::id(23), Member::address(23));
    assert_eq!(String::from_utf8(answer(raw, member, b"r\n").await).unwrap(), expected, "not the asker, not itself");
    assert!(answer(raw, member, b"x\n").await.is_empty());
    assert!(answer(raw, member, b"\xff\xff").await.is_empty());
    let mut answered = 0;
    for _ in 0..30 {
        answered += u32::from(!answer(raw, member, b"r\n").await.is_empty());
    }
    assert!(answered < 30, "{answered}");
    assert!(counters(member).pex_refused >= 3);
}
