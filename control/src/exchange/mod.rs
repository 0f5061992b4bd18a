//! What nodes tell each other of third nodes: Hyprspace's peer exchange with nodes of its, signed records with our own.
//!
//! | Module | What it is |
//! |---|---|
//! | [`gossip`] | which signed records we have and to whom we tell which: pure |
//! | [`signer`] | envelopes around records |
//! | `hearsay` | what was told without a signature: pure |
//! | `streams` | reading and writing both protocols |
//!
//! To each connected peer one stream is opened that offers `/ringlane/peers/1` and, for nodes that do not speak it,
//! `/hyprspace/pex/0.0.1`: who takes the first is told by the first. But Hyprspace's nodes sign nothing: as long as a peer
//! is missing that no record tells of, connected peers of either kind are asked for it by the second, one at a time.
//! [`PeerExchange`] owns both; nothing is spawned, and every stream and message is bounded by the peer it belongs to.

pub mod gossip;
mod hearsay;
pub mod signer;
mod streams;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::poll_fn;
use std::ops::Bound;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::{FuturesUnordered, StreamExt};
use libp2p::identity::Keypair;
use libp2p::swarm::ConnectionId;
use libp2p::{PeerId, Stream, StreamProtocol};
use ringlane_shared::bucket::Bucket;
use ringlane_shared::limits::{
    PEERS_MESSAGES_BURST, PEERS_MESSAGES_PER_SECOND, PEX_ANSWERS_BURST, PEX_STREAMS_PER_PEER_MAX,
};
use ringlane_shared::wire::peers::PeersMessage;
use ringlane_shared::wire::pex;
use tokio::time::Sleep;

use crate::swarm::{Accepted, InboundStream, Node, NodeEvent, OpenError, OpenId, Source};
use gossip::{Gossip, GossipCounters, Time};
use hearsay::Hearsay;
use signer::Signer;

const PEERS: StreamProtocol = StreamProtocol::new("/ringlane/peers/1");
const PEX: StreamProtocol = StreamProtocol::new("/hyprspace/pex/0.0.1");

/// How long to wait before a stream that failed is opened again.
const REOPEN_AFTER: Duration = Duration::from_secs(5);
/// How long a peer that broke the rules is not listened to.
const PENALTY: Duration = Duration::from_secs(60);
/// How long after a change the first peer is asked for one that is missing, and the longest pause before the next.
const SEARCH_PAUSES: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(60));
/// How often one peer is asked by Hyprspace's exchange at most.
const ASK_SPACING: Duration = Duration::from_secs(5);

/// The protocols whose inbound streams have to come here.
pub fn accepted() -> [Accepted; 2] {
    [PEERS, PEX].map(|name| Accepted { name, inbound_per_peer_max: PEX_STREAMS_PER_PEER_MAX })
}

/// What was done so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ExchangeCounters {
    /// Hyprspace's exchange: answers we got.
    pub pex_asked: u64,
    /// Answers we gave.
    pub pex_answered: u64,
    /// Requests beyond what a peer may ask.
    pub pex_refused: u64,
    /// Lines that could not be read.
    pub pex_bad_lines: u64,
    /// Addresses known from it now.
    pub pex_addresses: u64,
    /// Signed records held now.
    pub records: u64,
    /// The messages they came and went in.
    pub gossip: GossipCounters,
}

/// Something that came further; give it to [`PeerExchange::handle_progress`].
#[derive(Debug)]
pub struct Progress(Done);

enum Done {
    /// A message of ours has left.
    Sent { peer: PeerId, result: Result<Box<Stream>, std::io::Error> },
    /// A peer's message.
    Received { peer: PeerId, stream: Box<InboundStream>, message: Result<Bytes, std::io::Error> },
    /// A peer asks by Hyprspace's exchange.
    Asked { peer: PeerId, stream: Box<InboundStream>, is_request: bool },
    /// A peer has answered.
    Told { peer: PeerId, answer: Result<Vec<u8>, std::io::Error> },
    /// Our answer has left, or not.
    Answered,
    /// Time has passed.
    Due,
}

impl std::fmt::Debug for Done {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Done(..)")
    }
}

/// A connected peer.
struct Peer {
    way: Way,
    connection: Option<ConnectionId>,
    messages: Bucket,
    answers: Bucket,
    asked_at: Option<Instant>,
    /// Its messages are not read until then.
    shunned_until: Option<Instant>,
}

/// How we tell a peer of others.
enum Way {
    /// A stream is being opened.
    Opening,
    /// Signed records; no stream while a message is being written.
    Records(Option<Box<Stream>>),
    /// It speaks Hyprspace's exchange only.
    Pex,
    /// Not now: again at this time, or never.
    Closed(Option<Instant>),
}

/// Both exchanges of one node. Owned by the control loop, which gives it the node's events.
pub struct PeerExchange {
    gossip: Gossip<Signer>,
    hearsay: Hearsay,
    configured: BTreeSet<PeerId>,
    peers: BTreeMap<PeerId, Peer>,
    /// Streams being opened to ask by Hyprspace's exchange, and streams for what a peer speaks.
    asking: HashMap<OpenId, PeerId>,
    opening: HashMap<OpenId, PeerId>,
    search_at: Instant,
    search_pause: Duration,
    last_searched: Option<PeerId>,
    tasks: FuturesUnordered<BoxFuture<'static, Done>>,
    timer: Pin<Box<Sleep>>,
    deadline: Option<Instant>,
    counters: ExchangeCounters,
}

impl PeerExchange {
    /// For a node with this key and these configured peers. `seed` should differ from node to node.
    pub fn new(keypair: &Keypair, configured: Vec<PeerId>, seed: u64) -> Self {
        let own = keypair.public().to_peer_id();
        let gossip = Gossip::new(own, configured.iter().copied(), Signer::new(keypair.clone()), seed, time());
        Self {
            deadline: gossip.poll_timeout(),
            gossip,
            hearsay: Hearsay::default(),
            configured: configured.into_iter().collect(),
            peers: BTreeMap::new(),
            asking: HashMap::new(),
            opening: HashMap::new(),
            search_at: Instant::now() + SEARCH_PAUSES.0,
            search_pause: SEARCH_PAUSES.0,
            last_searched: None,
            tasks: FuturesUnordered::new(),
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
            counters: ExchangeCounters::default(),
        }
    }

    /// Takes from an event what concerns this, and gives it back unless it is nobody else's.
    pub fn handle_event(&mut self, event: NodeEvent, node: &mut Node) -> Option<NodeEvent> {
        let mine = match event {
            NodeEvent::PeerConnected { peer, first: true, .. } if self.configured.contains(&peer) => {
                self.open(peer, node);
                self.search_soon();
                Some(event)
            }
            NodeEvent::ConnectionClosed { peer, connection } => {
                let lost = self.peers.get(&peer).is_some_and(|known| known.connection == Some(connection));
                if lost {
                    self.gossip.handle_disconnected(&peer);
                    self.open(peer, node);
                }
                Some(event)
            }
            NodeEvent::PeerDisconnected { peer } if self.configured.contains(&peer) => {
                self.peers.remove(&peer);
                self.gossip.handle_disconnected(&peer);
                self.ask_all(node);
                self.search_soon();
                Some(event)
            }
            NodeEvent::AddressesChanged => {
                self.gossip.set_own_addresses(node.own_addresses(), time());
                Some(event)
            }
            NodeEvent::StreamInbound { peer, protocol, stream, .. } if protocol == PEERS => {
                self.receive(peer, stream);
                None
            }
            NodeEvent::StreamInbound { peer, protocol, stream, .. } if protocol == PEX => {
                self.tasks.push(streams::read_request(peer, stream).boxed());
                None
            }
            NodeEvent::StreamOpened { id, result } => {
                if let Some(peer) = self.asking.remove(&id) {
                    if let Ok((_, stream)) = result {
                        self.tasks.push(streams::ask(peer, stream).boxed());
                    }
                    None
                } else if let Some(peer) = self.opening.remove(&id) {
                    self.handle_opened(peer, result);
                    None
                } else {
                    Some(NodeEvent::StreamOpened { id, result })
                }
            }
            event => Some(event),
        };
        self.work(node);
        mine
    }

    /// What comes further next. Cancel-safe.
    pub async fn next(&mut self) -> Progress {
        poll_fn(|cx| self.poll(cx)).await
    }

    /// Goes on with what has come further.
    pub fn handle_progress(&mut self, Progress(done): Progress, node: &mut Node) {
        match done {
            Done::Sent { peer, result } => self.handle_sent(peer, result),
            Done::Received { peer, stream, message } => self.handle_received(peer, stream, message),
            Done::Asked { peer, stream, is_request } => self.answer(peer, stream, is_request, node),
            Done::Told { peer, answer } => self.handle_told(peer, answer, node),
            Done::Answered | Done::Due => {}
        }
        self.work(node);
    }

    /// Asks every connected node of Hyprspace's where the others are.
    pub fn ask_all(&mut self, node: &mut Node) {
        let speak_it = self.peers.iter().filter(|(_, known)| matches!(known.way, Way::Pex));
        for peer in speak_it.map(|(peer, _)| *peer).collect::<Vec<_>>() {
            self.ask(peer, node);
        }
    }

    /// Asks one peer by Hyprspace's exchange, unless it was asked just now.
    fn ask(&mut self, peer: PeerId, node: &mut Node) {
        let now = Instant::now();
        let Some(known) = self.peers.get_mut(&peer) else { return };
        let recently = known.asked_at.is_some_and(|at| now.duration_since(at) < ASK_SPACING);
        if !recently && let Some(connection) = node.best_connection(&peer).map(|connection| connection.id) {
            known.asked_at = Some(now);
            self.asking.insert(node.open_stream(connection, vec![PEX]), peer);
        }
    }

    /// Something has changed that may let a missing peer be found.
    fn search_soon(&mut self) {
        self.search_pause = SEARCH_PAUSES.0;
        self.search_at = self.search_at.min(Instant::now() + self.search_pause);
    }

    /// Asks one connected peer, in turn, if one is missing that no record tells of.
    fn search(&mut self, now: Instant, node: &mut Node) {
        if self.search_at > now {
            return;
        }
        self.search_at = now + self.search_pause;
        self.search_pause = (self.search_pause * 2).min(SEARCH_PAUSES.1);
        let is_missing = |peer: &PeerId| !self.peers.contains_key(peer) && self.gossip.addresses(peer).is_none();
        if !self.configured.iter().any(is_missing) {
            return;
        }
        let after = self.last_searched.map_or(Bound::Unbounded, Bound::Excluded);
        let next = self.peers.range((after, Bound::Unbounded)).chain(&self.peers).next().map(|(peer, _)| *peer);
        self.last_searched = next;
        if let Some(peer) = next {
            self.ask(peer, node);
        }
    }

    /// What was done so far.
    pub fn counters(&self) -> ExchangeCounters {
        ExchangeCounters {
            pex_addresses: self.hearsay.count() as u64,
            records: self.gossip.records() as u64,
            gossip: self.gossip.counters(),
            ..self.counters
        }
    }

    /// Opens our stream to a peer, on its best connection.
    fn open(&mut self, peer: PeerId, node: &mut Node) {
        let now = Instant::now();
        let connection = node.best_connection(&peer).map(|connection| connection.id);
        let known = self.peers.entry(peer).or_insert_with(|| Peer {
            way: Way::Opening,
            connection: None,
            messages: Bucket::new(PEERS_MESSAGES_BURST, PEERS_MESSAGES_PER_SECOND, now),
            answers: Bucket::new(PEX_ANSWERS_BURST, 1, now),
            asked_at: None,
            shunned_until: None,
        });
        known.connection = connection;
        known.way = Way::Closed(None);
        if let Some(connection) = connection {
            known.way = Way::Opening;
            self.opening.insert(node.open_stream(connection, vec![PEERS, PEX]), peer);
        }
    }

    fn handle_opened(&mut self, peer: PeerId, opened: Result<(StreamProtocol, Box<Stream>), OpenError>) {
        let Some(known) = self.peers.get_mut(&peer) else { return };
        match opened {
            Ok((protocol, stream)) if protocol == PEERS => {
                known.way = Way::Records(Some(stream));
                self.gossip.handle_connected(peer, time());
            }
            Ok((_, stream)) => {
                known.way = Way::Pex;
                known.asked_at = Some(Instant::now());
                self.tasks.push(streams::ask(peer, stream).boxed());
            }
            Err(OpenError::Unsupported) => known.way = Way::Closed(None),
            Err(error) => {
                tracing::debug!(%peer, %error, "cannot exchange peers");
                if matches!(known.way, Way::Opening) {
                    known.way = Way::Closed(Some(Instant::now() + REOPEN_AFTER));
                }
            }
        }
    }

    fn handle_sent(&mut self, peer: PeerId, result: Result<Box<Stream>, std::io::Error>) {
        let Some(known) = self.peers.get_mut(&peer) else { return };
        // A stream of a connection that is gone meanwhile is not this peer's any more.
        if !matches!(known.way, Way::Records(None)) {
            return;
        }
        match result {
            Ok(stream) => {
                known.way = Way::Records(Some(stream));
                self.gossip.handle_sent(&peer);
            }
            Err(error) => {
                tracing::debug!(%peer, %error, "a message about peers was not taken");
                known.way = Way::Closed(Some(Instant::now() + REOPEN_AFTER));
                self.gossip.handle_disconnected(&peer);
            }
        }
    }

    fn receive(&mut self, peer: PeerId, stream: Box<InboundStream>) {
        let now = Instant::now();
        if self.peers.get(&peer).is_none_or(|known| known.shunned_until.is_none_or(|until| until <= now)) {
            self.tasks.push(streams::read_message(peer, stream).boxed());
        }
    }

    fn handle_received(&mut self, peer: PeerId, stream: Box<InboundStream>, message: Result<Bytes, std::io::Error>) {
        let Ok(message) = message else { return };
        let now = Instant::now();
        let Some(known) = self.peers.get_mut(&peer) else { return };
        let fault = if known.messages.take(now) {
            PeersMessage::parse(message)
                .map_err(|error| error.to_string())
                .and_then(|message| {
                    self.gossip.handle_message(&peer, message, time()).map_err(|fault| fault.to_string())
                })
                .err()
        } else {
            Some("it sends too many messages".to_owned())
        };
        match fault {
            None => self.receive(peer, stream),
            Some(fault) => {
                tracing::warn!(%peer, fault, "not listening to what this peer says of others, for a while");
                known.shunned_until = Some(now + PENALTY);
            }
        }
    }

    /// Tells a peer what we know of the others.
    fn answer(&mut self, peer: PeerId, stream: Box<InboundStream>, is_request: bool, node: &Node) {
        let allowed = self.peers.get_mut(&peer).is_some_and(|known| known.answers.take(Instant::now()));
        if !is_request || !allowed {
            self.counters.pex_refused += 1;
            return;
        }
        self.counters.pex_answered += 1;
        let others = self.configured.iter().filter(|other| **other != peer);
        let addresses = others.flat_map(|other| node.tellable_addresses(other).into_iter().map(|at| (*other, at)));
        let addresses: Vec<_> = addresses.collect();
        let answer = pex::write_answer(addresses.iter().map(|(other, address)| (*other, address)));
        self.tasks.push(streams::answer(stream, answer).boxed());
    }

    fn handle_told(&mut self, teller: PeerId, answer: Result<Vec<u8>, std::io::Error>, node: &mut Node) {
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => return tracing::debug!(peer = %teller, %error, "no answer about other peers"),
        };
        self.counters.pex_asked += 1;
        let now = Instant::now();
        let told = pex::parse_answer(&answer, |peer| *peer != teller && self.configured.contains(peer));
        self.counters.pex_bad_lines += told.bad_lines as u64;
        for (peer, address) in told.addresses {
            if !node.may_dial(&address) {
                continue;
            }
            let (is_kept, gone) = self.hearsay.hear(now, teller, peer, &address);
            if let Some(gone) = gone {
                node.forget_address(&peer, &gone, Source::PeerExchange);
            }
            if is_kept {
                node.learn_address(&peer, &address, Source::PeerExchange);
            }
        }
    }

    /// Does what is due, passes on what was learnt, and writes what is to be written.
    fn work(&mut self, node: &mut Node) {
        let time = time();
        self.gossip.handle_timeout(time);
        self.search(time.now, node);
        for (peer, address) in self.hearsay.expire(time.now) {
            node.forget_address(&peer, &address, Source::PeerExchange);
        }
        let is_due = |known: &Peer| matches!(known.way, Way::Closed(Some(at)) if at <= time.now);
        let again: Vec<_> = self.peers.iter().filter(|(_, known)| is_due(known)).map(|(peer, _)| *peer).collect();
        again.into_iter().for_each(|peer| self.open(peer, node));
        while let Some((peer, message)) = self.gossip.poll_transmit(time) {
            let Some(Way::Records(idle)) = self.peers.get_mut(&peer).map(|known| &mut known.way) else { continue };
            if let Some(stream) = idle.take() {
                self.tasks.push(streams::write_message(peer, stream, message.to_bytes()).boxed());
            }
        }
        while let Some(learnt) = self.gossip.poll_learnt() {
            for address in &learnt.gone {
                node.forget_address(&learnt.peer, address, Source::SignedRecord);
            }
            for address in learnt.addresses.iter().filter(|address| node.may_dial(address)).collect::<Vec<_>>() {
                node.learn_address(&learnt.peer, address, Source::SignedRecord);
            }
            node.handle_sign_of_life(&learnt.peer);
        }
        let reopens = self.peers.values().filter_map(|known| match known.way {
            Way::Closed(at) => at,
            _ => None,
        });
        self.deadline =
            reopens.chain(self.gossip.poll_timeout()).chain(self.hearsay.next_expiry()).chain([self.search_at]).min();
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Progress> {
        if let Poll::Ready(Some(done)) = self.tasks.poll_next_unpin(cx) {
            return Poll::Ready(Progress(done));
        }
        if let Some(deadline) = self.deadline {
            self.timer.as_mut().reset(deadline.into());
            if self.timer.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Progress(Done::Due));
            }
        }
        Poll::Pending
    }
}

fn time() -> Time {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time { now: Instant::now(), unix_ms: unix.as_millis() as u64 }
}
