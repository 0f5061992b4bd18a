//! Lanes relayed at the speed of UDP: both ends' side and the relay's.
//!
//! ```text
//!  end A: asker --- allocate ---> relay: book --- invite ---> end B: asker          streams of /ringlane/relay/1
//!           |                              |                           |
//!         binder ---- binds ----> book: Open: two sockets, a worker <---- binds ---- binder        UDP
//!           |                              |                           |
//!        passage ======= probes, QUIC and records of the lane, unchanged ======= passage
//! ```
//!
//! | Module | What it is |
//! |---|---|
//! | [`asker`] | which links have lanes relayed, by whom, and for how long |
//! | [`binder`] | how one end shows the relay where it is |
//! | [`book`] | whose lanes we relay, and where their ends are |
//! | [`loads`] | what relays have to do |
//! | `proof` | what an end repeats to show that it is there |
//! | `UdpRelay` | the streams, and when to look again |
//!
//! The first four are pure, but for random numbers. Sockets are the lane engine's (`lanes/relayed.rs` for an end,
//! `lanes/relaying.rs` for the relay), workers forward, and `runtime/udp_relay.rs` brings them together. To everything else a
//! passage is one more path.

pub mod asker;
pub mod binder;
pub mod book;
pub mod loads;
mod proof;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, FutureExt};
use futures::stream::{FuturesUnordered, StreamExt};
use libp2p::{Stream, StreamProtocol};
use ringlane_shared::id::{PeerId, PeerIndex};
use ringlane_shared::limits::RELAY_STREAMS_PER_PEER_MAX;
use ringlane_shared::wire::relay::{AllotmentId, RELAY_PROTOCOL, RelayMessage};
use tokio::time::Sleep;

use self::asker::Asker;
use self::loads::{Loads, Meter};
use crate::swarm::exchange::{ask, read_question, send_answer};
use crate::swarm::{Accepted, InboundStream, OpenError, OpenId};

/// The protocol's name.
pub(crate) const PROTOCOL: StreamProtocol = StreamProtocol::new(RELAY_PROTOCOL);

/// Between two looks at all links, however much happens.
const LOOK_GAP: Duration = Duration::from_millis(100);

/// The streams that peers may open.
pub(crate) fn accepted() -> Accepted {
    Accepted { name: PROTOCOL, inbound_per_peer_max: RELAY_STREAMS_PER_PEER_MAX }
}

/// What a question of ours is for.
#[derive(Debug)]
pub(crate) enum Purpose {
    /// To have lanes to `peer` relayed.
    Allocate {
        /// The other end.
        peer: PeerIndex,
        /// Whom we ask.
        relay: PeerIndex,
    },
    /// To have them relayed further on.
    Renew {
        /// The other end.
        peer: PeerIndex,
        /// Whom we ask.
        relay: PeerIndex,
        /// What.
        id: AllotmentId,
    },
    /// To say that they need not be any more.
    Release,
    /// To know what it has to do.
    Load {
        /// Whom we ask.
        relay: PeerIndex,
    },
    /// As a relay, to have the other end come. Who has asked for it waits with the answer.
    Invite {
        /// What.
        id: AllotmentId,
        /// What the end that has asked is told if the other one comes.
        allotted: Box<RelayMessage>,
        /// That end's stream.
        asker: Box<InboundStream>,
    },
}

/// How far a stream has come.
#[derive(Debug)]
pub(crate) enum Progress {
    /// A peer asks. It is answered with [`UdpRelay::answer`], or dropped.
    Asked { peer: PeerIndex, stream: Box<InboundStream>, question: Vec<u8> },
    /// A question of ours has been answered, or could not be: then with nothing.
    Answered { purpose: Purpose, answer: Option<Vec<u8>> },
    /// It is time to look at the links.
    Look,
    /// A stream is over.
    Done,
}

struct Opening {
    purpose: Purpose,
    question: Vec<u8>,
}

/// What is forwarded here, in bytes per second.
#[derive(Debug, Default)]
pub(crate) struct Meters {
    /// By each worker, of lanes.
    pub(crate) lanes: Vec<Meter>,
    /// By control, of circuits.
    pub(crate) circuits: Meter,
    /// Whether there is anything that could be.
    pub(crate) is_busy: bool,
}

impl Meters {
    fn poll_timeout(&self) -> Option<Instant> {
        let all = self.lanes.iter().chain([&self.circuits]);
        all.filter_map(|meter| meter.poll_timeout(self.is_busy)).min()
    }
}

/// What all of this keeps between two turns of the loop. Owned by it and polled on its thread: nothing is spawned.
pub(crate) struct UdpRelay {
    pub(crate) asker: Asker,
    pub(crate) loads: Loads,
    /// Who offered to be a relay when loads were asked for last.
    pub(crate) asked_among: BTreeSet<PeerId>,
    pub(crate) meters: Meters,
    opening: BTreeMap<OpenId, Opening>,
    tasks: FuturesUnordered<BoxFuture<'static, Progress>>,
    ended: VecDeque<Progress>,
    looked_at: Option<Instant>,
    timer: Pin<Box<Sleep>>,
}

impl UdpRelay {
    /// With nothing to do. Needs a tokio runtime.
    pub(crate) fn new() -> Self {
        Self {
            asker: Asker::default(),
            loads: Loads::default(),
            asked_among: BTreeSet::new(),
            meters: Meters::default(),
            opening: BTreeMap::new(),
            tasks: FuturesUnordered::new(),
            ended: VecDeque::new(),
            looked_at: None,
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
        }
    }

    /// Whether it is time to look at the links; if so, it counts as done.
    pub(crate) fn takes_look(&mut self, now: Instant) -> bool {
        let is_due = self.looked_at.is_none_or(|at| at + LOOK_GAP <= now);
        if is_due {
            self.looked_at = Some(now);
        }
        // What happened since the last look is looked at soon; else when something is due.
        let at = if is_due { self.due() } else { self.looked_at.map(|at| at + LOOK_GAP) };
        self.wake_at(at.unwrap_or(now + Duration::from_secs(3600)));
        is_due
    }

    /// What the look has found says when the next is due.
    pub(crate) fn looked(&mut self, now: Instant) {
        let due = self.due().map(|due| due.max(now + LOOK_GAP));
        self.wake_at(due.unwrap_or(now + Duration::from_secs(3600)));
    }

    fn due(&self) -> Option<Instant> {
        let due = [self.asker.poll_timeout(), self.loads.poll_timeout(), self.meters.poll_timeout()];
        due.into_iter().flatten().min()
    }

    /// Has the links looked at as soon as may be.
    pub(crate) fn look_soon(&mut self) {
        self.wake_at(Instant::now() + LOOK_GAP);
    }

    fn wake_at(&mut self, at: Instant) {
        self.timer.as_mut().reset(at.into());
    }

    /// What happens next. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Progress {
        poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Progress> {
        if let Some(progress) = self.ended.pop_front() {
            return Poll::Ready(progress);
        }
        if let Poll::Ready(Some(progress)) = self.tasks.poll_next_unpin(cx) {
            return Poll::Ready(progress);
        }
        if self.timer.as_mut().poll(cx).is_ready() {
            self.wake_at(Instant::now() + Duration::from_secs(3600));
            return Poll::Ready(Progress::Look);
        }
        Poll::Pending
    }

    /// A stream is being opened to ask this.
    pub(crate) fn handle_opening(&mut self, open: OpenId, purpose: Purpose, question: Vec<u8>) {
        self.opening.insert(open, Opening { purpose, question });
    }

    /// A question cannot be asked.
    pub(crate) fn fail(&mut self, purpose: Purpose) {
        self.ended.push_back(Progress::Answered { purpose, answer: None });
    }

    /// Whether this stream is being opened for a question.
    pub(crate) fn has_opening(&self, open: OpenId) -> bool {
        self.opening.contains_key(&open)
    }

    /// Our stream is open, or could not be opened.
    pub(crate) fn handle_opened(&mut self, open: OpenId, stream: Result<Box<Stream>, OpenError>) {
        let Some(Opening { purpose, question }) = self.opening.remove(&open) else { return };
        match stream {
            Ok(stream) => {
                let task = async move { Progress::Answered { purpose, answer: ask(*stream, &question).await.ok() } };
                self.tasks.push(task.boxed());
            }
            Err(error) => {
                tracing::debug!(%error, "a relay, or its other end, cannot be asked");
                self.fail(purpose);
            }
        }
    }

    /// A peer has opened a stream to ask something. Bounded by the permit in the stream.
    pub(crate) fn handle_inbound(&mut self, peer: PeerIndex, mut stream: Box<InboundStream>) {
        let task = async move {
            match read_question(&mut *stream).await {
                Ok(question) => Progress::Asked { peer, stream, question },
                Err(_) => Progress::Done,
            }
        };
        self.tasks.push(task.boxed());
    }

    /// Answers a peer.
    pub(crate) fn answer(&mut self, mut stream: Box<InboundStream>, answer: &RelayMessage) {
        let Some(answer) = bytes_of(answer) else { return };
        let task = async move {
            // Whoever does not take it asks again.
            let _ = send_answer(&mut *stream, &answer).await;
            Progress::Done
        };
        self.tasks.push(task.boxed());
    }
}

/// A message without its length, which the stream adds. One of ours that is not valid is not sent.
pub(crate) fn bytes_of(message: &RelayMessage) -> Option<Vec<u8>> {
    let bytes =
        message.to_message().inspect_err(|error| tracing::error!(%error, "our own message is not valid")).ok()?;
    Some(bytes.get(ringlane_shared::wire::relay::LENGTH_BYTES..)?.to_vec())
}
