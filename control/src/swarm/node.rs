//! [`Node`]: the swarm with everything around it, polled by the control loop.

mod config;
mod discovering;
mod doubting;
mod event;
mod handling;
mod knowledge;
mod mapped;
mod relaying;
mod retiring;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use futures::StreamExt;
use ipnet::IpNet;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, Swarm};
use libp2p::{Multiaddr, StreamProtocol};
use ringlane_shared::id::PeerId;
use ringlane_shared::limits::DIALED_ADDRESSES_MAX;
use tokio::time::Sleep;

use super::address::{self, AddressPolicy};
use super::behaviour::Behaviour;
use super::connections::{ConnectionHold, ConnectionInfo, Connections, PeerKind, Quality, Way};
use super::dialer::{Dial, Dialer, Source};
use super::discovery::Discoverer;
use super::exchanges::{ExchangeId, ExchangeToken, Exchanges};
use super::listeners::{ListenError, Listeners};
use super::mdns::Mdns;
use super::names::{self, Found, LookUps};
use super::problems::Problems;
use super::recorder::Recorder;
use super::relay::hop::HOP;
use super::relay::{self, Relaying};
use super::streams::OpenId;
use super::transport;

pub use self::config::{NodeConfig, NodeError};
pub use self::event::{KnownAddress, LearntAddress, NodeEvent};
pub use self::relaying::RelayReport;

/// After the last connection is gone, QUIC's close notices still have to leave.
const CLOSE_LINGER: Duration = Duration::from_millis(50);

struct DialUnderWay {
    peer: PeerId,
    by_relay: bool,
    /// Of the addresses that came from a name, each with that one.
    named: Vec<(Multiaddr, Multiaddr)>,
}

/// The libp2p part of a node. Owned by the control loop; must be made and polled on its runtime.
pub struct Node {
    swarm: Swarm<Behaviour>,
    policy: AddressPolicy,
    dialer: Dialer,
    dials: HashMap<ConnectionId, DialUnderWay>,
    look_ups: LookUps,
    connections: Connections,
    listeners: Listeners,
    /// Where routers outside lead to us; see `mapped`.
    mapped: Vec<Multiaddr>,
    /// Nothing if it is switched off.
    mdns: Option<Mdns>,
    exchanges: Exchanges,
    problems: Problems,
    discovery: Discoverer,
    recorder: Recorder,
    relaying: Relaying,
    /// Streams that are opened only to see whether the peer is there.
    probes: HashMap<OpenId, (PeerId, ConnectionId)>,
    events: VecDeque<NodeEvent>,
    timer: Pin<Box<Sleep>>,
}

impl Node {
    /// Makes a node. It dials its peers as soon as it is polled; it listens nowhere yet.
    pub fn new(config: NodeConfig) -> Result<Self, NodeError> {
        let local = config.keypair.public().to_peer_id();
        if config.peers.iter().any(|(peer, _)| *peer == local) {
            return Err(NodeError::SelfAsPeer(local));
        }
        let configured = config.peers.iter().flat_map(|(_, addresses)| addresses);
        let configured = configured.chain(config.discovery.contacts(&local));
        let policy = AddressPolicy::new(config.allow_loopback)
            .filter_private(config.filter_private)
            .proxied(config.web.proxy.is_some(), configured)
            .lan_only(config.web.is_lan_only);
        let swarm_key = config.discovery.swarm_key;
        let policy = if swarm_key.is_some() { policy.tcp_only() } else { policy };
        let peers: Vec<PeerId> = config.peers.iter().map(|(peer, _)| *peer).collect();
        let policy = policy.through(peers.iter().copied());
        let is_internet = config.underlay.is_internet();
        let transport = transport::build(&config.keypair, config.underlay, policy.clone(), swarm_key, &config.web)?;
        let (transport, relay_client) =
            relay::transport::in_front(transport, &config.keypair, policy.clone(), swarm_key)?;
        let behaviour = Behaviour::new(
            &config.keypair,
            &peers,
            config.agent,
            policy.clone(),
            config.accepted,
            &config.discovery,
            relay_client,
        );
        let settings = libp2p::swarm::Config::with_tokio_executor()
            .with_dial_concurrency_factor(const { dial_concurrency() })
            .with_idle_connection_timeout(Duration::from_secs(60));

        let mdns = config.mdns.then(|| knowledge::mdns(local, &peers, config.seed)).flatten();
        let now = Instant::now();
        let resolver = config.resolver.clone();
        let discovery =
            Discoverer::new(&config.discovery, local, &peers, resolver, config.web.proxy.as_ref(), config.seed, now);
        let mut dialer = Dialer::new(peers, config.seed, now).passing_names(config.web.proxy.is_some());
        for (source, list) in [(Source::Configured, config.peers), (Source::Cache, config.cached)] {
            for (peer, addresses) in list {
                for address in addresses {
                    let is_name = source == Source::Configured && names::is_name(&address);
                    if !is_name && let Err(refusal) = address::parse(&address) {
                        tracing::warn!(%peer, %address, %refusal, "this address cannot be dialled");
                        continue;
                    }
                    dialer.add_address(now, &peer, &address, source);
                }
            }
        }
        let mut node = Self {
            swarm: Swarm::new(transport, behaviour, local, settings),
            policy,
            dialer,
            dials: HashMap::new(),
            look_ups: LookUps::new(config.resolver),
            connections: Connections::new(local),
            listeners: Listeners::new(is_internet),
            mapped: Vec::new(),
            mdns,
            exchanges: Exchanges::default(),
            problems: Problems::default(),
            discovery,
            recorder: Recorder::default(),
            relaying: Relaying::new(&config.relay, now),
            probes: HashMap::new(),
            events: VecDeque::new(),
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
        };
        node.swarm.behaviour_mut().streams.set_offered(&HOP, false);
        node.consider_serving();
        Ok(node)
    }

    /// Listens on exactly these concrete addresses, closing and opening what differs. Closing a QUIC listener ends the
    /// connections through it. With a swarm key, QUIC addresses are left out. What could not be opened is returned, and tried again by the next call that names it.
    pub fn set_listen_addresses(&mut self, addresses: &[Multiaddr]) -> Vec<ListenError> {
        let usable: Vec<_> =
            addresses.iter().filter(|address| !self.policy.is_beyond_swarm_key(address)).cloned().collect();
        self.listeners.set(&mut self.swarm, &usable)
    }

    /// Sets which addresses, beyond the mesh's own prefixes, are never dialled: those of this host.
    pub fn set_denied(&mut self, denied: impl Fn(IpAddr) -> bool + Send + Sync + 'static) {
        self.policy.set_denied(denied);
    }

    /// Sets the networks this host is directly connected to: a node of a LAN knows no others.
    pub fn set_lan(&mut self, networks: Vec<IpNet>) {
        self.policy.set_lan(networks);
    }

    /// The networks of [`Self::set_lan`].
    pub fn lan(&self) -> Vec<IpNet> {
        self.policy.lan()
    }

    /// Sets our built-in addresses, once there is an interface that has them: what the kernel would send from one of
    /// them is never dialled.
    pub fn set_inner(&mut self, inner: Vec<IpAddr>) {
        self.policy.set_inner(inner);
    }

    /// The addresses that could not be dialled since the last call because they lead into the tunnel.
    pub fn take_covered(&mut self) -> BTreeSet<IpAddr> {
        self.policy.take_covered()
    }

    /// What the gate and the filter of dials have refused so far, by reason.
    pub fn refused(&self) -> BTreeMap<String, u64> {
        let gate = self.swarm.behaviour().gate.refused().iter().map(|(name, count)| ((*name).to_owned(), *count));
        let [into_tunnel, private, beyond_lan] = self.policy.refused();
        let dials =
            [("dial_into_tunnel", into_tunnel), ("dial_private_address", private), ("dial_beyond_lan", beyond_lan)];
        let streams = ("stream_rate", self.swarm.behaviour().streams.refused());
        let more = dials.into_iter().chain([streams]).filter(|(_, count)| *count > 0);
        gate.chain(more.map(|(name, count)| (name.to_owned(), count))).collect()
    }

    /// What happens next. Cancel-safe: nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> NodeEvent {
        poll_fn(|cx| self.poll(cx)).await
    }

    /// Asks a peer something on its newest direct connection; `None` if it has no connection. Ends in one
    /// [`NodeEvent::OfferAnswered`].
    pub fn exchange(&mut self, peer: PeerId, message: Vec<u8>) -> Option<ExchangeId> {
        let connection = self.connections.best(&peer)?.id;
        Some(self.exchanges.ask(&mut self.swarm.behaviour_mut().streams, peer, connection, message))
    }

    /// Answers a peer's question. A failure shows on the peer's side; here it is only logged.
    pub fn answer(&mut self, to: ExchangeToken, message: Vec<u8>) {
        self.exchanges.answer(to, message);
    }

    /// Opens a stream on one connection, offering `protocols` in this order. Ends in one [`NodeEvent::StreamOpened`].
    pub fn open_stream(&mut self, connection: ConnectionId, protocols: Vec<StreamProtocol>) -> OpenId {
        self.swarm.behaviour_mut().streams.open(connection, protocols)
    }

    /// Keeps a connection from being closed as one too many, for as long as what is returned lives.
    pub fn hold(&self, peer: &PeerId, connection: ConnectionId) -> Option<ConnectionHold> {
        self.connections.of(peer).find(|known| known.id == connection).map(ConnectionInfo::hold)
    }

    /// The connection to talk to a peer on: the best of those that answer, of several the newest.
    pub fn best_connection(&self, peer: &PeerId) -> Option<&ConnectionInfo> {
        self.connections.best(peer)
    }

    /// What a peer is, as it said last; `None` before it has, and for one that carries no packets.
    pub fn kind(&self, peer: &PeerId) -> Option<PeerKind> {
        self.connections.kind(peer)
    }

    /// The connection that packets to a peer should take.
    pub fn packet_way(&self, peer: &PeerId) -> Option<Way> {
        self.connections.packet_way(peer, Instant::now())
    }

    /// What a connection is worth to packets, in Hyprspace's frames or in ours.
    pub fn quality(&self, peer: &PeerId, connection: ConnectionId, are_hyprspace: bool) -> Option<Quality> {
        let connection = self.connections.of(peer).find(|other| other.id == connection)?;
        Some(connection.quality(are_hyprspace))
    }

    /// Looks for a peer though it is connected, or stops: for one whose lanes are all silent.
    pub fn seek(&mut self, peer: &PeerId, is_sought: bool) {
        self.dialer.seek(Instant::now(), peer, is_sought);
    }

    /// The connections of one peer, oldest first.
    pub fn connections(&self, peer: &PeerId) -> impl Iterator<Item = &ConnectionInfo> {
        self.connections.of(peer)
    }

    /// The connections of all peers, ordered by peer, each peer's oldest first.
    pub fn all_connections(&self) -> impl Iterator<Item = &ConnectionInfo> {
        self.connections.all()
    }

    /// What keeps a configured peer from being connected, for the operator; `None` if nothing is known to.
    pub fn problem(&self, peer: &PeerId) -> Option<&str> {
        let nowhere = self.connections.best(peer).is_none() && !self.dialer.knows_any(peer);
        let nowhere = nowhere.then(|| match self.has_sources() {
            true => "no address of it is known here yet; it is looked for",
            false => "no address of it is known here; it has to dial us",
        });
        self.problems.of(peer).or(nowhere)
    }

    /// Whether the peer, when last connected, ended that at once. It is tried for ever, and each try looks like a
    /// connection for a moment.
    pub fn is_thrown_out_by(&self, peer: &PeerId) -> bool {
        self.problems.is_thrown_out_by(peer)
    }

    /// The addresses we really listen on.
    pub fn listen_addresses(&self) -> impl Iterator<Item = &Multiaddr> {
        self.swarm.listeners()
    }

    /// Every peer's addresses that worked in this run, for the peer cache.
    pub fn known_addresses(&self) -> Vec<(PeerId, Vec<KnownAddress>)> {
        let (now, wall) = (Instant::now(), SystemTime::now());
        let mut known: Vec<(PeerId, Vec<KnownAddress>)> = Vec::new();
        for (peer, address, last_success) in self.dialer.proven_addresses() {
            // A name is worth something only to the proxy that looked it up.
            if address::parse(address).is_err() {
                continue;
            }
            let stands = self.connections.of(&peer).any(|connection| connection.remote == *address);
            let age = if stands { Duration::ZERO } else { now.duration_since(last_success) };
            let address =
                KnownAddress { address: address.clone(), last_success: wall.checked_sub(age).unwrap_or(wall) };
            match known.last_mut() {
                Some((last, addresses)) if *last == peer => addresses.push(address),
                _ => known.push((peer, vec![address])),
            }
        }
        known
    }

    /// Every address known of a peer, wherever from.
    pub fn learnt_addresses(&self, peer: &PeerId) -> Vec<LearntAddress> {
        let (now, wall) = (Instant::now(), SystemTime::now());
        let learnt = self.dialer.addresses(peer).map(|(address, source, last_success)| LearntAddress {
            address: address.clone(),
            source: source.name(),
            last_success: last_success.map(|at| wall.checked_sub(now.duration_since(at)).unwrap_or(wall)),
        });
        learnt.collect()
    }

    /// Appends libp2p's metrics in OpenMetrics' text format, without its end mark.
    pub fn encode_metrics(&self, text: &mut String) -> std::fmt::Result {
        self.recorder.encode(text)
    }

    /// Connections of strangers refused so far.
    pub fn refused_connections(&self) -> u64 {
        self.swarm.behaviour().gate.refused().values().sum()
    }

    /// Closes every connection, telling the peers, and ends; after `limit` at the latest.
    pub async fn shutdown(mut self, limit: Duration) {
        self.dialer.stop();
        if let Some(mdns) = &mut self.mdns {
            mdns.say_goodbye();
        }
        self.discovery.seeker.stop();
        self.swarm.behaviour_mut().gate.shut();
        let dialled = self.dials.values().map(|dial| dial.peer);
        let peers: Vec<PeerId> = self.swarm.connected_peers().copied().chain(dialled).collect();
        for peer in peers {
            // An error means that there was no connection, but dials are aborted all the same.
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        let closed = async {
            while self.swarm.connected_peers().next().is_some() {
                self.swarm.select_next_some().await;
            }
            tokio::time::sleep(CLOSE_LINGER).await;
        };
        if tokio::time::timeout(limit, closed).await.is_err() {
            tracing::debug!("some connections did not close in time");
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<NodeEvent> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Poll::Ready(event);
            }
            let mut progress = false;
            if let Poll::Ready(Some(event)) = self.swarm.poll_next_unpin(cx) {
                self.handle_swarm(event);
                progress = true;
            }
            if let Poll::Ready(exchange) = self.exchanges.poll(cx) {
                self.handle_exchange(exchange);
                progress = true;
            }
            if let Some(Poll::Ready(heard)) = self.mdns.as_mut().map(|mdns| mdns.poll(cx)) {
                self.handle_mdns(heard);
                progress = true;
            }
            let now = Instant::now();
            if let Some(Dial { peer, addresses, names, fresh_port, by_relay }) = self.dialer.poll_dial(now) {
                if !names.is_empty() {
                    self.look_ups.start(peer, names, fresh_port);
                }
                if !addresses.is_empty() {
                    self.dial(peer, addresses, Vec::new(), fresh_port, by_relay);
                }
                progress = true;
            }
            if let Poll::Ready(found) = self.look_ups.poll(cx) {
                self.dial_found(found);
                progress = true;
            }
            progress |= self.poll_retiring(now);
            progress |= self.poll_doubts(now);
            progress |= self.poll_discovery(cx, now);
            progress |= self.poll_relaying(cx, now);
            if progress || self.poll_timer(cx).is_ready() {
                continue;
            }
            return Poll::Pending;
        }
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timeouts = [
            self.dialer.poll_timeout(),
            self.connections.poll_timeout(),
            self.discovery_timeout(),
            self.relaying.auto.poll_timeout(Instant::now()),
        ];
        let Some(deadline) = timeouts.into_iter().flatten().min() else { return Poll::Pending };
        self.timer.as_mut().reset(deadline.into());
        self.timer.as_mut().poll(cx)
    }

    /// Dials what a peer's names stand for, unless the peer has been reached meanwhile.
    fn dial_found(&mut self, Found { peer, fresh_port, addresses, failures }: Found) {
        for (address, error) in failures {
            tracing::warn!(%peer, %address, error, "the name cannot be looked up; trying again");
            if self.connections.best(&peer).is_none() {
                self.problems.handle_name_error(peer, &address, &error);
            }
        }
        if addresses.is_empty() || self.connections.best(&peer).is_some() {
            self.dialer.handle_dial_ended(&peer, false);
            return;
        }
        self.dial(peer, addresses.iter().map(|(address, _)| address.clone()).collect(), addresses, fresh_port, false);
    }

    fn dial(
        &mut self,
        peer: PeerId,
        addresses: Vec<Multiaddr>,
        named: Vec<(Multiaddr, Multiaddr)>,
        fresh_port: bool,
        by_relay: bool,
    ) {
        tracing::debug!(%peer, ?addresses, "dialling");
        let options = DialOpts::peer_id(peer).condition(PeerCondition::Always).addresses(addresses);
        let options = if fresh_port { options.allocate_new_port() } else { options }.build();
        let id = options.connection_id();
        match self.swarm.dial(options) {
            Ok(()) => {
                self.dials.insert(id, DialUnderWay { peer, by_relay, named });
            }
            Err(error) => {
                tracing::debug!(%peer, %error, "cannot dial");
                self.dialer.handle_dial_ended(&peer, by_relay);
            }
        }
    }
}

const fn dial_concurrency() -> std::num::NonZeroU8 {
    match std::num::NonZeroU8::new(DIALED_ADDRESSES_MAX as u8) {
        Some(factor) => factor,
        None => std::num::NonZeroU8::MIN,
    }
}
