//! The exchanges under way, both those we began and those peers began. Futures live here, on the control thread, and
//! are polled with the node: nothing is spawned.

use std::collections::{HashMap, VecDeque};
use std::task::{Context, Poll};

use futures::future::{BoxFuture, FutureExt};
use futures::stream::{FuturesUnordered, StreamExt};
use libp2p::swarm::ConnectionId;
use libp2p::{PeerId, Stream};
use ringlane_shared::limits::{EXCHANGES_PER_PEER_MAX, OFFER_BYTES_MAX};

use super::exchange::{self, ExchangeError};
use super::streams::{InboundStream, OpenError, OpenId, Streams};

/// Names one exchange we began; never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ExchangeId(u64);

/// A peer's question waiting for our answer. Dropping it ends the stream without one, which the peer sees as an error.
#[derive(Debug)]
pub struct ExchangeToken {
    peer: PeerId,
    connection: ConnectionId,
    /// Boxed: a stream is large, and the token travels in events.
    stream: Box<InboundStream>,
}

impl ExchangeToken {
    /// The connection the question came on.
    pub fn connection(&self) -> ConnectionId {
        self.connection
    }
}

/// How far an exchange has come.
#[derive(Debug)]
pub(super) enum Progress {
    /// A peer asks.
    Asked { peer: PeerId, token: ExchangeToken, question: Vec<u8> },
    /// One of ours has ended.
    Answered { peer: PeerId, id: ExchangeId, result: Result<Vec<u8>, ExchangeError> },
    /// A peer's question could not be read, or our answer not be sent.
    Failed { peer: PeerId, error: ExchangeError },
    /// Our answer has left.
    Done,
}

struct Ask {
    peer: PeerId,
    id: ExchangeId,
    question: Vec<u8>,
}

/// All of them.
#[derive(Default)]
pub(super) struct Exchanges {
    next: u64,
    /// Ours, by peer, until they have ended.
    running: HashMap<PeerId, usize>,
    opening: HashMap<OpenId, Ask>,
    tasks: FuturesUnordered<BoxFuture<'static, Progress>>,
    ended: VecDeque<Progress>,
}

impl Exchanges {
    /// Begins one on this connection. Ends, always, in a [`Progress::Answered`].
    pub(super) fn ask(
        &mut self,
        streams: &mut Streams,
        peer: PeerId,
        connection: ConnectionId,
        question: Vec<u8>,
    ) -> ExchangeId {
        let id = ExchangeId(self.next);
        self.next += 1;
        let running = self.running.entry(peer).or_default();
        *running += 1;
        let refused = if question.len() > OFFER_BYTES_MAX {
            Some(ExchangeError::TooLong { bytes: question.len() })
        } else if *running > EXCHANGES_PER_PEER_MAX {
            Some(ExchangeError::Busy)
        } else {
            None
        };
        match refused {
            Some(error) => self.ended.push_back(Progress::Answered { peer, id, result: Err(error) }),
            None => {
                let open = streams.open(connection, vec![exchange::PROTOCOL]);
                self.opening.insert(open, Ask { peer, id, question });
            }
        }
        id
    }

    /// Whether this stream is being opened for an exchange.
    pub(super) fn has_opening(&self, open: OpenId) -> bool {
        self.opening.contains_key(&open)
    }

    /// Our stream is open, or could not be opened.
    pub(super) fn handle_opened(&mut self, open: OpenId, stream: Result<Stream, OpenError>) {
        let Some(Ask { peer, id, question }) = self.opening.remove(&open) else { return };
        match stream {
            Ok(stream) => {
                let task =
                    async move { Progress::Answered { peer, id, result: exchange::ask(stream, &question).await } };
                self.tasks.push(task.boxed());
            }
            Err(error) => self.ended.push_back(Progress::Answered { peer, id, result: Err(error.into()) }),
        }
    }

    /// A peer opened a stream to ask something. Bounded by the permit in the stream.
    pub(super) fn handle_inbound(&mut self, peer: PeerId, connection: ConnectionId, mut stream: InboundStream) {
        let task = async move {
            match exchange::read_question(&mut stream.stream).await {
                Ok(question) => Progress::Asked {
                    peer,
                    token: ExchangeToken { peer, connection, stream: Box::new(stream) },
                    question,
                },
                Err(error) => Progress::Failed { peer, error },
            }
        };
        self.tasks.push(task.boxed());
    }

    /// Answers a peer's question.
    pub(super) fn answer(&mut self, token: ExchangeToken, answer: Vec<u8>) {
        let ExchangeToken { peer, mut stream, .. } = token;
        let task = async move {
            match exchange::send_answer(&mut stream.stream, &answer).await {
                Ok(()) => Progress::Done,
                Err(error) => Progress::Failed { peer, error },
            }
        };
        self.tasks.push(task.boxed());
    }

    /// The next one that came further.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Progress> {
        let progress = match self.ended.pop_front() {
            Some(progress) => progress,
            None => match self.tasks.poll_next_unpin(cx) {
                Poll::Ready(Some(progress)) => progress,
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            },
        };
        if let Progress::Answered { peer, .. } = &progress
            && let Some(running) = self.running.get_mut(peer)
        {
            *running -= 1;
            if *running == 0 {
                self.running.remove(peer);
            }
        }
        Poll::Ready(progress)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use futures::AsyncWriteExt;
    use libp2p::identity::Keypair;
    use libp2p::swarm::{Swarm, SwarmEvent};
    use libp2p::{Multiaddr, StreamProtocol};
    use ringlane_shared::limits::LINK_STREAMS_PER_PEER_MAX;

    use super::*;
    use crate::swarm::address::AddressPolicy;
    use crate::swarm::streams::StreamEvent;
    use crate::swarm::web::Web;
    use crate::swarm::{Node, NodeConfig, NodeEvent, Underlay, transport};

    const PATIENCE: Duration = Duration::from_secs(30);

    /// A configured peer that speaks our transports but writes what it likes.
    struct RawPeer {
        swarm: Swarm<Streams>,
        node: PeerId,
        connection: ConnectionId,
    }

    impl RawPeer {
        /// A raw peer and a node, connected.
        async fn connected() -> (Self, Node) {
            let keypair = Keypair::generate_ed25519();
            let raw = keypair.public().to_peer_id();
            let settings = libp2p::swarm::Config::with_tokio_executor();
            let transport =
                transport::build(&keypair, Underlay::Internet, AddressPolicy::new(true), None, &Web::default())
                    .unwrap();
            let ours = Keypair::generate_ed25519();
            let id = ours.public().to_peer_id();
            let mut swarm = Swarm::new(transport, Streams::new(Vec::new(), [id]), raw, settings);

            let config = NodeConfig { allow_loopback: true, ..NodeConfig::new(ours, vec![(raw, Vec::new())]) };
            let mut node = Node::new(config).unwrap();
            let listen: Multiaddr = format!("/ip4/{}/udp/0/quic-v1", Ipv4Addr::LOCALHOST).parse().unwrap();
            assert!(node.set_listen_addresses(&[listen]).is_empty());
            assert!(matches!(node.next().await, NodeEvent::AddressesChanged));
            let address = node.listen_addresses().next().unwrap().clone();
            swarm.dial(address).unwrap();
            let connection = loop {
                tokio::select! {
                    event = swarm.select_next_some() => {
                        if let SwarmEvent::ConnectionEstablished { connection_id, .. } = event { break connection_id }
                    }
                    _ = node.next() => {}
                }
            };
            (Self { swarm, node: id, connection }, node)
        }

        /// Opens a stream while the node runs; events of the node are collected.
        async fn open(&mut self, node: &mut Node, name: StreamProtocol, seen: &mut Vec<NodeEvent>) -> Option<Stream> {
            self.swarm.behaviour_mut().open(self.connection, vec![name]);
            let open = async {
                loop {
                    tokio::select! {
                        event = self.swarm.select_next_some() => match event {
                            SwarmEvent::Behaviour(StreamEvent::Opened { stream, .. }) => return Some(stream),
                            SwarmEvent::Behaviour(StreamEvent::OpenFailed { .. }) => return None,
                            _ => {}
                        },
                        event = node.next() => seen.push(event),
                    }
                }
            };
            tokio::time::timeout(PATIENCE, open).await.unwrap()
        }

        /// Runs both sides until a future of ours is done.
        async fn run<T>(&mut self, node: &mut Node, seen: &mut Vec<NodeEvent>, work: impl Future<Output = T>) -> T {
            let run = async {
                tokio::pin!(work);
                loop {
                    tokio::select! {
                        done = &mut work => return done,
                        _ = self.swarm.select_next_some() => {}
                        event = node.next() => seen.push(event),
                    }
                }
            };
            tokio::time::timeout(PATIENCE, run).await.unwrap()
        }

        /// Asks properly; the node's side answers with the question.
        async fn ask(&mut self, node: &mut Node, question: &[u8]) -> Result<Vec<u8>, ExchangeError> {
            let stream = self.open(node, exchange::PROTOCOL, &mut Vec::new()).await.unwrap();
            let asking = exchange::ask(stream, question);
            tokio::pin!(asking);
            loop {
                tokio::select! {
                    answer = &mut asking => return answer,
                    _ = self.swarm.select_next_some() => {}
                    event = node.next() => {
                        if let NodeEvent::OfferReceived { peer, token, message } = event {
                            assert_eq!(peer, *self.swarm.local_peer_id());
                            node.answer(token, message);
                        }
                    }
                }
            }
        }
    }

    #[tokio::test]
    async fn oversized_truncated_and_garbage_questions_are_errors_and_nothing_else() {
        let (mut raw, mut node) = RawPeer::connected().await;
        let mut seen = Vec::new();
        let mut messages: Vec<Vec<u8>> = vec![
            vec![],
            vec![0],
            vec![0, 10, 1, 2, 3],
            vec![0x10, 0x01],
            vec![0xff; 70_000],
            b"GET / HTTP/1.1".to_vec(),
        ];
        messages.extend((0..16u8).map(|i| vec![i.wrapping_mul(37) | 1; usize::from(i) * 13]));
        for bytes in messages {
            let mut stream = raw.open(&mut node, exchange::PROTOCOL, &mut seen).await.unwrap();
            let write = async move {
                // The node may be gone from the stream before all is written: that is its right.
                let _ = stream.write_all(&bytes).await;
                let _ = stream.close().await;
            };
            raw.run(&mut node, &mut seen, write).await;
        }
        assert!(
            !seen.iter().any(|event| matches!(
                event,
                NodeEvent::OfferReceived { .. }
                    | NodeEvent::ConnectionClosed { .. }
                    | NodeEvent::PeerDisconnected { .. }
            )),
            "{seen:?}"
        );
        assert_eq!(raw.ask(&mut node, b"proper").await.unwrap(), b"proper");
    }

    #[tokio::test]
    async fn streams_of_one_peer_are_bounded_and_their_places_come_back() {
        let (mut raw, mut node) = RawPeer::connected().await;
        let mut seen = Vec::new();
        let mut idle = Vec::new();
        for _ in 0..LINK_STREAMS_PER_PEER_MAX {
            idle.push(raw.open(&mut node, exchange::PROTOCOL, &mut seen).await.unwrap());
        }
        assert!(raw.ask(&mut node, b"one too many").await.is_err());
        let dropped = async {
            for mut stream in idle {
                let _ = stream.close().await;
            }
        };
        raw.run(&mut node, &mut seen, dropped).await;
        // The node notices in its own time that the streams have ended.
        let answer = async {
            loop {
                if let Ok(answer) = raw.ask(&mut node, b"room again").await {
                    return answer;
                }
            }
        };
        assert_eq!(tokio::time::timeout(PATIENCE, answer).await.unwrap(), b"room again");
    }

    #[tokio::test]
    async fn a_protocol_nobody_registered_is_not_opened() {
        let (mut raw, mut node) = RawPeer::connected().await;
        let name = StreamProtocol::new("/ringlane/link/99");
        assert!(raw.open(&mut node, name, &mut Vec::new()).await.is_none());
        assert_ne!(raw.node, *raw.swarm.local_peer_id());
        assert!(raw.swarm.is_connected(&raw.node));
    }
}
