//! The service network: every service of every node has an IPv6 address of its own that answers on all TCP ports.
//!
//! ```text
//! local client -> TUN -> worker -> ServiceNetwork: stack.rs, one socket per connection (client.rs)
//!                                     |-- our own service:  a socket to the target (far.rs)
//!                                     `-- a peer's service: a stream /hyprspace/service/0.0.1 (far.rs)
//! a peer's stream -> server.rs: who may? -> the target, joined by splice.rs
//! ```
//!
//! A client's first packet waits until the far side has said yes, and is answered with a reset if it says no: clients
//! see a refused connection. Hyprspace answers at once and closes later.
//!
//! Owner: the control loop, which polls [`ServiceNetwork::next`]; nothing here runs by itself. What it does in a turn and
//! all it holds is bounded by [`limits`](ringlane_shared::limits).

mod client;
mod far;
mod icmp;
mod peer_stream;
mod server;
mod splice;
mod stack;
mod status;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::future::LocalBoxFuture;
use futures::stream::FuturesUnordered;
use ringlane_shared::bucket::Bucket;
use ringlane_shared::config::ServiceSettings;
use ringlane_shared::id::{PeerId, PeerIndex};
use ringlane_shared::identity::node_identifier;
use ringlane_shared::limits::{
    SERVICE_ASKS_MAX, SERVICE_ASKS_PER_NODE_MAX, SERVICE_BUFFER_BYTES, SERVICE_CONNECTIONS_MAX,
    SERVICE_CONNECTIONS_PER_PEER_MAX, SERVICE_CONNECTIONS_TO_US_MAX, SERVICE_ICMP_BURST, SERVICE_ICMP_PER_SECOND,
    SERVICE_LARGE_BUFFERS_MAX, SERVICE_SMALL_BUFFER_BYTES, SERVICE_STREAMS_MAX, SERVICE_VISITS_PER_TURN,
};
use ringlane_shared::packet::service::{ServicePacket, Wish};
use ringlane_shared::plane::{BatchItemForm, PacketBatch};
use ringlane_shared::wire::service::ServiceReply;
use smoltcp::wire::{Icmpv6DstUnreachable, IpListenEndpoint};
use tokio::time::{Sleep, sleep};
use tracing::debug;

use self::client::{Connection, Visited};
pub use self::far::{AskError, ByteStream, Far};
pub use self::peer_stream::PeerStream;
use self::server::{Offers, OpenConnection, connect_to, serve};
use self::stack::Stack;
use self::status::Counters;
use crate::ready::Ready;

/// How long packets wait that the worker had no room for.
const RETRY_AFTER: Duration = Duration::from_millis(1);
/// How long a peer may be without a connection to it before a client hears of it: two nodes that dial each other end one of
/// their connections, perhaps the one that a question has taken.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(250);

/// Names one connection of a client's; never reused.
pub type ConnectionKey = u64;

/// What the control loop is to do for the service network.
#[derive(Debug)]
pub enum ServiceIntent {
    /// Open a stream to a peer and give it to [`ServiceNetwork::handle_stream`].
    Open {
        /// To whom.
        peer: PeerIndex,
        /// For which connection.
        key: ConnectionKey,
    },
    /// Give packets to a worker, for the TUN; if it has no room, to [`ServiceNetwork::handle_full`].
    Deliver(PacketBatch),
}

/// Who has a service.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Owner {
    Us,
    Peer(PeerIndex),
}

impl Owner {
    fn connections_max(self) -> usize {
        match self {
            Self::Us => SERVICE_CONNECTIONS_TO_US_MAX,
            Self::Peer(_) => SERVICE_CONNECTIONS_PER_PEER_MAX,
        }
    }
}

/// What tells connections apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Flow {
    client: (std::net::Ipv6Addr, u16),
    service: (std::net::Ipv6Addr, u16),
}

/// A client's connection.
struct Client {
    flow: Flow,
    owner: Owner,
    id: [u8; 2],
    state: ClientState,
    deadline: Option<Instant>,
    /// A connection has failed under a first question to the peer.
    is_asked_again: bool,
}

enum ClientState {
    /// The far side has not answered yet; the client's newest first packet waits.
    Asking(Vec<u8>),
    Open {
        connection: Box<Connection>,
        has_large_buffers: bool,
        _counted: Option<OpenConnection>,
    },
}

type Asked = (ConnectionKey, Result<Far, AskError>);

/// The service network of a node. Owner: the control loop.
pub struct ServiceNetwork {
    owners: HashMap<[u8; 4], Owner>,
    offers: Rc<Offers>,
    stack: Stack,
    ready: Ready<u64>,
    flows: HashMap<Flow, ConnectionKey>,
    clients: HashMap<ConnectionKey, Client>,
    clients_of: HashMap<Owner, usize>,
    next_key: ConnectionKey,
    large_buffers: usize,
    deadlines: BTreeSet<(Instant, ConnectionKey)>,
    /// Connections whose far side has not answered, also those whose client has gone meanwhile.
    asking: HashMap<ConnectionKey, Owner>,
    asking_of: HashMap<Owner, usize>,
    asks: FuturesUnordered<LocalBoxFuture<'static, Asked>>,
    to_open: VecDeque<(PeerIndex, ConnectionKey)>,
    served: FuturesUnordered<LocalBoxFuture<'static, ()>>,
    /// Packets the worker had no room for, and when to try again.
    held: Option<(PacketBatch, Instant)>,
    memory: Vec<u8>,
    icmp: Bucket,
    timer: Pin<Box<Sleep>>,
    counters: Counters,
}

impl ServiceNetwork {
    /// One for the node `us`; `peers` are the configured ones in their order. `seed` is random. Must be made and polled
    /// on a tokio runtime.
    pub fn new<'p>(
        us: &PeerId,
        peers: impl Iterator<Item = &'p PeerId>,
        services: Vec<ServiceSettings>,
        seed: u64,
    ) -> Self {
        let now = Instant::now();
        let peers = peers.zip(0..).map(|(peer, index)| (node_identifier(peer), Owner::Peer(PeerIndex(index))));
        Self {
            owners: peers.chain([(node_identifier(us), Owner::Us)]).collect(),
            offers: Rc::new(Offers::new(services)),
            stack: Stack::new(seed, now),
            ready: Ready::default(),
            flows: HashMap::new(),
            clients: HashMap::new(),
            clients_of: HashMap::new(),
            next_key: 0,
            large_buffers: 0,
            deadlines: BTreeSet::new(),
            asking: HashMap::new(),
            asking_of: HashMap::new(),
            asks: FuturesUnordered::new(),
            to_open: VecDeque::new(),
            served: FuturesUnordered::new(),
            held: None,
            memory: Vec::new(),
            icmp: Bucket::new(SERVICE_ICMP_BURST, SERVICE_ICMP_PER_SECOND, now),
            timer: Box::pin(sleep(Duration::ZERO)),
            counters: Counters::default(),
        }
    }

    /// Takes packets that workers read from the TUN.
    pub fn handle_packets(&mut self, batch: PacketBatch, now: Instant) {
        for item in batch.items() {
            match ServicePacket::parse(item.packet) {
                Some(packet) if item.form == (BatchItemForm::Packet { is_partial: false }) => {
                    self.handle_packet(&packet, now);
                }
                _ => self.counters.ignored += 1,
            }
        }
        self.memory = batch.into_memory();
    }

    /// Takes a stream that a peer opened to a service of ours.
    pub fn handle_inbound(&mut self, peer: PeerIndex, stream: Far) {
        if self.served.len() >= SERVICE_STREAMS_MAX {
            self.counters.streams_refused += 1;
            return;
        }
        self.served.push(Box::pin(serve(Rc::clone(&self.offers), peer, stream)));
    }

    /// Takes the stream of a [`ServiceIntent::Open`], or hears that there is none.
    pub fn handle_stream(&mut self, key: ConnectionKey, stream: Result<Far, AskError>) {
        let client = self.clients.get(&key).filter(|client| matches!(client.state, ClientState::Asking(_)));
        match (stream, client) {
            (Ok(stream), Some(client)) => {
                let id = client.id;
                self.asks.push(Box::pin(async move { (key, far::ask(stream, id).await) }));
            }
            (stream, _) => self.handle_asked(key, stream, Instant::now()),
        }
    }

    /// Takes back what the worker had no room for. It is offered again a little later; until then nothing is sent.
    pub fn handle_full(&mut self, batch: PacketBatch) {
        self.held = Some((batch, Instant::now() + RETRY_AFTER));
    }

    /// What is to be done next. Cancel-safe.
    pub async fn next(&mut self) -> ServiceIntent {
        poll_fn(|cx| self.poll(cx)).await
    }

    fn handle_packet(&mut self, packet: &ServicePacket<'_>, now: Instant) {
        match packet.wish {
            Wish::Tcp { client_port, port, opens, resets } => {
                let flow = Flow { client: (packet.client, client_port), service: (packet.service, port) };
                let key = self.flows.get(&flow).copied();
                match key.and_then(|key| Some((key, self.clients.get_mut(&key)?))) {
                    Some((_, Client { state: ClientState::Open { connection, .. }, .. })) => {
                        connection.feed(&mut self.stack, packet.packet, now);
                        connection.wake();
                    }
                    Some((_, Client { state: ClientState::Asking(syn), .. })) if opens => {
                        syn.clear();
                        syn.extend_from_slice(packet.packet);
                    }
                    Some((key, _)) if resets => self.remove(key),
                    Some(_) => self.counters.ignored += 1,
                    None if opens => self.open(flow, packet, now),
                    None => self.stack.refuse(packet.packet, now),
                }
            }
            Wish::Echo if self.is_ours(packet) => self.say(icmp::echo_reply(packet), now),
            Wish::Udp => self.say(icmp::unreachable(packet, Icmpv6DstUnreachable::PortUnreachable), now),
            Wish::Echo => self.counters.ignored += 1,
        }
    }

    fn is_ours(&self, packet: &ServicePacket<'_>) -> bool {
        self.owners.get(&packet.node) == Some(&Owner::Us) && self.offers.find(packet.id).is_some()
    }

    /// Sends an ICMPv6 message, unless too many are sent.
    fn say(&mut self, message: Option<Vec<u8>>, now: Instant) {
        match message {
            Some(message) if self.icmp.take(now) => self.stack.push(&message),
            _ => self.counters.ignored += 1,
        }
    }

    /// A client wants a new connection.
    fn open(&mut self, flow: Flow, packet: &ServicePacket<'_>, now: Instant) {
        let offer = self.offers.find(packet.id).cloned();
        let owner = match self.owners.get(&packet.node) {
            Some(Owner::Us) if offer.is_none() => {
                self.counters.unknown += 1;
                return self.stack.refuse(packet.packet, now);
            }
            Some(owner) => *owner,
            None => {
                self.counters.unknown += 1;
                return self.stack.refuse(packet.packet, now);
            }
        };
        let of = |counts: &HashMap<Owner, usize>| counts.get(&owner).copied().unwrap_or(0);
        if self.clients.len() >= SERVICE_CONNECTIONS_MAX || of(&self.clients_of) >= owner.connections_max() {
            self.counters.too_many += 1;
            return self.stack.refuse(packet.packet, now);
        }
        if self.asking.len() >= SERVICE_ASKS_MAX || of(&self.asking_of) >= SERVICE_ASKS_PER_NODE_MAX {
            // The client asks again by itself.
            self.counters.too_many_at_once += 1;
            return;
        }
        let key = self.next_key;
        self.next_key += 1;
        let state = ClientState::Asking(packet.packet.to_vec());
        self.clients.insert(key, Client { flow, owner, id: packet.id, state, deadline: None, is_asked_again: false });
        self.flows.insert(flow, key);
        self.asking.insert(key, owner);
        *self.clients_of.entry(owner).or_default() += 1;
        *self.asking_of.entry(owner).or_default() += 1;
        match (owner, offer) {
            (Owner::Peer(peer), _) => self.to_open.push_back((peer, key)),
            (Owner::Us, Some(offer)) => self.asks.push(Box::pin(async move {
                (key, connect_to(&offer).await.ok_or(AskError::Refused(ServiceReply::Unknown)))
            })),
            (Owner::Us, None) => {}
        }
    }

    /// The far side has answered, or there is none.
    fn handle_asked(&mut self, key: ConnectionKey, asked: Result<Far, AskError>, now: Instant) {
        let Some(owner) = self.asking.remove(&key) else { return };
        count_down(&mut self.asking_of, owner);
        let Some(client) = self.clients.get_mut(&key) else { return };
        let ClientState::Asking(syn) = &client.state else { return };
        let far = match asked {
            Ok(far) => far,
            // The connection was closed under it, as when both nodes have dialled at once; there may be another.
            Err(error @ (AskError::Io(_) | AskError::NotReached))
                if !client.is_asked_again && matches!(owner, Owner::Peer(_)) =>
            {
                debug!(service = %client.flow.service.0, %error, "asking a peer for a service again");
                let at = now + ASK_AGAIN_AFTER;
                client.is_asked_again = true;
                client.deadline = Some(at);
                self.deadlines.insert((at, key));
                self.asking.insert(key, owner);
                *self.asking_of.entry(owner).or_default() += 1;
                return;
            }
            Err(error) => {
                debug!(service = %client.flow.service.0, %error, "a connection to a service is refused");
                self.counters.count(owner == Owner::Us, &error);
                // A client that hears "unreachable" may have another address to try, or try later.
                let is_refused = matches!(error, AskError::Refused(_));
                let packet = ServicePacket::parse(syn).filter(|_| !is_refused && self.icmp.take(now));
                match packet.and_then(|p| icmp::unreachable(&p, Icmpv6DstUnreachable::AddrUnreachable)) {
                    Some(message) => self.stack.push(&message),
                    None => self.stack.refuse(syn, now),
                }
                return self.remove(key);
            }
        };
        let has_large_buffers = self.large_buffers < SERVICE_LARGE_BUFFERS_MAX;
        let buffer_bytes = if has_large_buffers { SERVICE_BUFFER_BYTES } else { SERVICE_SMALL_BUFFER_BYTES };
        let (address, port) = client.flow.service;
        let endpoint = IpListenEndpoint { addr: Some(address.into()), port };
        let waker = self.ready.waker(key);
        let accepted = Connection::accept(&mut self.stack, syn, endpoint, far, buffer_bytes, waker, now);
        // It can only be refused for port 0, which was looked at.
        let Ok(connection) = accepted else { return self.remove(key) };
        connection.wake();
        let offer = (owner == Owner::Us).then(|| self.offers.find(client.id)).flatten();
        let counted = offer.map(OpenConnection::new);
        self.counters.accepted += u64::from(counted.is_none());
        self.large_buffers += usize::from(has_large_buffers);
        client.state = ClientState::Open { connection: Box::new(connection), has_large_buffers, _counted: counted };
    }

    fn remove(&mut self, key: ConnectionKey) {
        let Some(client) = self.clients.remove(&key) else { return };
        self.flows.remove(&client.flow);
        if let Some(deadline) = client.deadline {
            self.deadlines.remove(&(deadline, key));
            // Nobody is being asked meanwhile, so no answer would end this.
            if matches!(client.state, ClientState::Asking(_)) && self.asking.remove(&key).is_some() {
                count_down(&mut self.asking_of, client.owner);
            }
        }
        count_down(&mut self.clients_of, client.owner);
        if let ClientState::Open { has_large_buffers: true, .. } = client.state {
            self.large_buffers -= 1;
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ServiceIntent> {
        self.ready.register(cx.waker());
        if let Some((peer, key)) = self.to_open.pop_front() {
            return Poll::Ready(ServiceIntent::Open { peer, key });
        }
        let now = Instant::now();
        match self.held.take() {
            Some((batch, again)) if again <= now => return Poll::Ready(ServiceIntent::Deliver(batch)),
            held => self.held = held,
        }
        let mut budget = SERVICE_VISITS_PER_TURN;
        while budget > 0
            && let Poll::Ready(Some((key, asked))) = self.asks.poll_next_unpin(cx)
        {
            self.handle_asked(key, asked, now);
            budget -= 1;
        }
        while budget > 0
            && let Poll::Ready(Some(())) = self.served.poll_next_unpin(cx)
        {
            budget -= 1;
        }
        if self.held.is_none() {
            self.wake_due(now);
            if let Some((peer, key)) = self.to_open.pop_front() {
                return Poll::Ready(ServiceIntent::Open { peer, key });
            }
            while budget > 0
                && self.stack.has_room()
                && let Some(key) = self.ready.pop()
            {
                self.visit(key, now);
                budget -= 1;
            }
            let memory = std::mem::take(&mut self.memory);
            if let Some(batch) = self.stack.take(memory) {
                return Poll::Ready(ServiceIntent::Deliver(batch));
            }
        }
        if budget == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let again = self.held.as_ref().map(|(_, again)| *again);
        if let Some(at) = again.or_else(|| self.deadlines.first().map(|(at, _)| *at)) {
            self.timer.as_mut().reset(at.into());
            if self.timer.as_mut().poll(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
        }
        Poll::Pending
    }

    /// Lets those be looked at whose time has come.
    fn wake_due(&mut self, now: Instant) {
        while let Some((_, key)) = self.deadlines.first().copied().filter(|(at, _)| *at <= now) {
            self.deadlines.pop_first();
            let Some(client) = self.clients.get_mut(&key) else { continue };
            client.deadline = None;
            match (&client.state, client.owner) {
                (ClientState::Open { connection, .. }, _) => connection.wake(),
                (ClientState::Asking(_), Owner::Peer(peer)) => self.to_open.push_back((peer, key)),
                (ClientState::Asking(_), Owner::Us) => {}
            }
        }
    }

    /// Looks at one connection.
    fn visit(&mut self, key: ConnectionKey, now: Instant) {
        let Some(client) = self.clients.get_mut(&key) else { return };
        let ClientState::Open { connection, .. } = &mut client.state else { return };
        let deadline = match connection.visit(&mut self.stack, now) {
            Visited::Waits(deadline) => deadline,
            Visited::HasMore => {
                connection.wake();
                None
            }
            Visited::Over => return self.remove(key),
        };
        if let Some(old) = std::mem::replace(&mut client.deadline, deadline) {
            self.deadlines.remove(&(old, key));
        }
        self.deadlines.extend(deadline.map(|at| (at, key)));
    }
}

fn count_down(counts: &mut HashMap<Owner, usize>, owner: Owner) {
    if let Some(count) = counts.get_mut(&owner) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&owner);
        }
    }
}

impl std::fmt::Debug for ServiceNetwork {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServiceNetwork").field("clients", &self.clients.len()).finish_non_exhaustive()
    }
}
