//! The relay's side of libp2p's circuit relay v2, `hop`, on plain streams. The library's own writes a limit into every
//! message, which makes the connection worthless to Hyprspace's nodes, and serves whoever comes.
//!
//! Served are configured peers, on direct connections: others are not offered the protocol. What a stream costs is bounded
//! by its permit until it is answered, and a circuit by [`Book`] and [`carry`]. Nothing is spawned.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::future::{BoxFuture, FutureExt};
use futures::stream::{FuturesUnordered, StreamExt};
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::swarm::ConnectionId;
use libp2p::{Multiaddr, PeerId, Stream, StreamProtocol};
use ringlane_shared::path::relay::Load;
use ringlane_shared::wire::circuit::{
    self, CircuitError, HopRequest, Status, hop_reserved, hop_status, message_length, parse_request, parse_stop_answer,
    stop_connect,
};
use thiserror::Error;

use super::book::{Book, CircuitId, RESERVATION_LIFETIME};
use super::circuit::{Tally, carry};
use crate::swarm::connections::ConnectionHold;
use crate::swarm::streams::{InboundStream, OpenError, OpenId, Streams};

/// The protocol that clients open.
pub(crate) const HOP: StreamProtocol = StreamProtocol::new(circuit::HOP);
/// The protocol that we open to whom they want to reach.
const STOP: StreamProtocol = StreamProtocol::new(circuit::STOP);

/// How long reading or writing a message may take.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a message did not come, or leave.
#[derive(Debug, Error)]
pub(super) enum HopError {
    /// It makes no sense.
    #[error(transparent)]
    Message(#[from] CircuitError),
    /// The stream failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It took too long.
    #[error("the peer took longer than {} s", MESSAGE_TIMEOUT.as_secs())]
    TimedOut,
}

/// A peer asks something.
pub(crate) struct Asked {
    pub(crate) peer: PeerId,
    pub(crate) connection: ConnectionId,
    stream: Box<InboundStream>,
    request: Result<HopRequest, HopError>,
}

/// How far one of the streams has come.
pub(crate) enum Step {
    /// [`Hop::handle_asked`] has to hear of it.
    Asked(Asked),
    /// For the books only.
    Ended(Ended),
}

/// Something is over.
pub(crate) struct Ended {
    circuit: Option<CircuitId>,
    refusal: Option<Status>,
}

/// What there is to know of the connection that a peer asks on, and of us.
pub(crate) struct Situation {
    /// Whether the connection is a circuit itself.
    pub(crate) is_relayed: bool,
    /// Keeps it open.
    pub(crate) hold: Option<ConnectionHold>,
    /// Where we can be reached, with our id at the end.
    pub(crate) addresses: Vec<Multiaddr>,
}

/// What a relay did so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HopCounters {
    /// Reservations given, renewals among them.
    pub reservations: u64,
    /// Circuits that came about.
    pub circuits: u64,
    /// Requests not granted.
    pub refused: u64,
    /// Bytes carried by circuits that have ended.
    pub bytes: u64,
}

/// A circuit that we carry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CarriedCircuit {
    /// Who asked for it.
    pub source: PeerId,
    /// Whom it leads to.
    pub target: PeerId,
    /// Bytes from the source.
    pub bytes_from_source: u64,
    /// Bytes from the target.
    pub bytes_from_target: u64,
    /// Since when.
    pub since: Instant,
}

struct Connecting {
    circuit: CircuitId,
    source: PeerId,
    stream: Box<InboundStream>,
}

struct Carried {
    tally: Arc<Tally>,
    since: Instant,
}

/// The relay.
#[derive(Default)]
pub(crate) struct Hop {
    serves: bool,
    book: Book,
    /// Keep the connections of reservations open.
    holds: HashMap<PeerId, ConnectionHold>,
    opening: HashMap<OpenId, Connecting>,
    carried: BTreeMap<CircuitId, Carried>,
    tasks: FuturesUnordered<BoxFuture<'static, Step>>,
    counters: HopCounters,
}

impl Hop {
    /// Whether we are a relay now.
    pub(crate) fn serves(&self) -> bool {
        self.serves
    }

    /// Begins to be a relay, or ends it. Circuits that stand go on.
    pub(crate) fn set_serving(&mut self, serves: bool, streams: &mut Streams) {
        if self.serves == serves {
            return;
        }
        self.serves = serves;
        streams.set_offered(&HOP, serves);
        if !serves {
            self.book.forget_reservations();
            self.holds.clear();
        }
    }

    /// A peer opened a stream of [`HOP`].
    pub(crate) fn handle_inbound(&mut self, peer: PeerId, connection: ConnectionId, stream: InboundStream) {
        let task = async move {
            let mut stream = Box::new(stream);
            let request = match read_message(&mut stream).await {
                Ok(message) => parse_request(&message).map_err(HopError::from),
                Err(error) => Err(error),
            };
            Step::Asked(Asked { peer, connection, stream, request })
        };
        self.tasks.push(task.boxed());
    }

    /// Whether this stream is being opened for a circuit.
    pub(crate) fn has_opening(&self, open: OpenId) -> bool {
        self.opening.contains_key(&open)
    }

    /// Answers a peer, or begins to.
    pub(crate) fn handle_asked(&mut self, asked: Asked, situation: Situation, streams: &mut Streams) {
        let Asked { peer, connection, stream, request } = asked;
        let refusal = match request {
            Ok(_) if !self.serves => Status::ReservationRefused,
            Ok(_) if situation.is_relayed => Status::PermissionDenied,
            Ok(HopRequest::Reserve) => return self.reserve(peer, connection, stream, situation),
            Ok(HopRequest::Connect(target)) => match self.book.connect(peer, target, Instant::now()) {
                Ok((circuit, connection)) => {
                    let open = streams.open(connection, vec![STOP]);
                    self.opening.insert(open, Connecting { circuit, source: peer, stream });
                    return;
                }
                Err(refusal) => refusal,
            },
            Err(HopError::Message(error)) => error.status(),
            // Nobody is there to be answered.
            Err(error) => {
                tracing::debug!(%peer, %error, "a request to the relay did not arrive");
                return;
            }
        };
        self.refuse(stream, refusal, None);
    }

    fn reserve(&mut self, peer: PeerId, connection: ConnectionId, stream: Box<InboundStream>, situation: Situation) {
        self.book.reserve(peer, connection, Instant::now());
        match situation.hold {
            Some(hold) => self.holds.insert(peer, hold),
            None => self.holds.remove(&peer),
        };
        self.counters.reservations += 1;
        let expires = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + RESERVATION_LIFETIME;
        let answer = hop_reserved(expires.as_secs(), &situation.addresses);
        self.answer(stream, answer, Ended { circuit: None, refusal: None });
    }

    /// Our stream to whom a circuit leads is open, or could not be opened.
    pub(crate) fn handle_opened(&mut self, open: OpenId, target: Result<Stream, OpenError>) {
        let Some(Connecting { circuit, source, stream }) = self.opening.remove(&open) else { return };
        let target = match target {
            Ok(target) => target,
            Err(error) => {
                tracing::debug!(%source, %error, "a circuit's target could not be asked");
                return self.refuse(stream, Status::ConnectionFailed, Some(circuit));
            }
        };
        let tally = Arc::new(Tally::default());
        self.carried.insert(circuit, Carried { tally: Arc::clone(&tally), since: Instant::now() });
        let task = async move {
            let refusal = join(source, *stream, target, tally).await.err();
            Step::Ended(Ended { circuit: Some(circuit), refusal })
        };
        self.tasks.push(task.boxed());
    }

    /// A connection is gone.
    pub(crate) fn handle_closed(&mut self, peer: &PeerId, connection: ConnectionId) {
        self.book.handle_closed(peer, connection);
        if !self.book.reserved(Instant::now()).any(|reserved| reserved == *peer) {
            self.holds.remove(peer);
        }
    }

    /// Something is over.
    pub(crate) fn handle_ended(&mut self, ended: Ended) {
        if ended.refusal.is_some() {
            self.counters.refused += 1;
        }
        let Some(circuit) = ended.circuit else { return };
        self.book.end(circuit);
        if let Some(carried) = self.carried.remove(&circuit) {
            self.counters.circuits += u64::from(ended.refusal.is_none());
            self.counters.bytes += carried.tally.bytes().iter().sum::<u64>();
        }
    }

    /// The next of its streams that came further.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        match self.tasks.poll_next_unpin(cx) {
            Poll::Ready(Some(step)) => Poll::Ready(step),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    /// What was done so far.
    pub(crate) fn counters(&self) -> HopCounters {
        self.counters
    }

    /// Who may be reached through us.
    pub(crate) fn reserved(&self) -> impl Iterator<Item = PeerId> {
        self.book.reserved(Instant::now())
    }

    /// How much of what may be carried is, or of what may lead to this peer or from it.
    pub(crate) fn load(&self, peer: Option<&PeerId>) -> Load {
        self.book.load(peer)
    }

    /// Bytes of all circuits so far, and whether there are any now.
    pub(crate) fn carried(&self) -> (u64, bool) {
        let standing = self.carried.values().flat_map(|carried| carried.tally.bytes()).sum::<u64>();
        (self.counters.bytes + standing, !self.carried.is_empty())
    }

    /// The circuits that we carry; those that are being made are not among them.
    pub(crate) fn circuits(&self) -> impl Iterator<Item = CarriedCircuit> {
        self.book.circuits().filter_map(|(id, source, target)| {
            let carried = self.carried.get(&id)?;
            let [bytes_from_source, bytes_from_target] = carried.tally.bytes();
            Some(CarriedCircuit { source, target, bytes_from_source, bytes_from_target, since: carried.since })
        })
    }

    fn refuse(&mut self, stream: Box<InboundStream>, status: Status, circuit: Option<CircuitId>) {
        self.answer(stream, hop_status(status), Ended { circuit, refusal: Some(status) });
    }

    fn answer(&mut self, mut stream: Box<InboundStream>, answer: Vec<u8>, ended: Ended) {
        let task = async move {
            if write_message(&mut stream, &answer).await.is_ok() {
                let _ = bounded(async { Ok(stream.close().await?) }).await;
            }
            Step::Ended(ended)
        };
        self.tasks.push(task.boxed());
    }
}

/// Asks the target, tells the source, and carries what they say. The error is how the source was refused.
async fn join<S, T>(source: PeerId, mut from: S, mut to: T, tally: Arc<Tally>) -> Result<(), Status>
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    let asked = async {
        write_message(&mut to, &stop_connect(&source)).await?;
        Ok::<bool, HopError>(parse_stop_answer(&read_message(&mut to).await?)?)
    };
    let refused = match asked.await {
        Ok(true) => match write_message(&mut from, &hop_status(Status::Ok)).await {
            Ok(()) => {
                let ended = carry(from, to, tally).await;
                tracing::debug!(%source, ?ended, "a circuit has ended");
                return Ok(());
            }
            Err(error) => error.to_string(),
        },
        Ok(false) => "it declines".to_owned(),
        Err(error) => error.to_string(),
    };
    tracing::debug!(%source, error = refused, "a circuit's target did not take it");
    if write_message(&mut from, &hop_status(Status::ConnectionFailed)).await.is_ok() {
        let _ = bounded(async { Ok(from.close().await?) }).await;
    }
    Err(Status::ConnectionFailed)
}

async fn bounded<T>(work: impl Future<Output = Result<T, HopError>>) -> Result<T, HopError> {
    tokio::time::timeout(MESSAGE_TIMEOUT, work).await.unwrap_or(Err(HopError::TimedOut))
}

/// Not a byte more than the message, as data may follow.
async fn read_message<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Vec<u8>, HopError> {
    bounded(async {
        let (mut prefix, mut bytes) = ([0; 3], 0);
        let length = loop {
            stream.read_exact(&mut prefix[bytes..=bytes]).await?;
            bytes += 1;
            if let Some(length) = message_length(&prefix[..bytes])? {
                break length;
            }
        };
        let mut message = vec![0; length];
        stream.read_exact(&mut message).await?;
        Ok(message)
    })
    .await
}

async fn write_message<S: AsyncWrite + Unpin>(stream: &mut S, message: &[u8]) -> Result<(), HopError> {
    bounded(async {
        stream.write_all(message).await?;
        Ok(stream.flush().await?)
    })
    .await
}
