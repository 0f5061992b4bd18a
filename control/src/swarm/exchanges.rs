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
    stream: InboundStream,
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
                Ok(question) => Progress::Asked { peer, token: ExchangeToken { peer, connection, stream }, question },
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
