//! The one thing the rest of control uses to get lanes.

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Instant, SystemTime};

use ipnet::IpNet;
use libp2p::identity::{self, PeerId};
use ringlane_shared::id::{LaneIndex, LaneSerial, PeerIndex, WorkerId};
use ringlane_shared::lane::keys::Role;
use ringlane_shared::limits::{
    HANDED_OVER_MAX, LANE_HANDSHAKES_MAX, LANE_SETUPS_MAX, TOKEN_BYTES, WORKERS_MAX, datagram_bytes_max,
};
use ringlane_shared::path::candidate::AddressPolicy;
use ringlane_shared::path::prober::Prober;
use ringlane_shared::plane::{CarrierChoice, LaneHandOver, PlaneCommand, Stray};
use ringlane_shared::wire::offer::{LaneSet, LinkSecrets, Offer};
use ringlane_shared::wire::probe::Transaction;
use thiserror::Error;
use tokio::io::ReadBuf;
use tokio::time::{Sleep, sleep_until};

use super::birthday::Birthdays;
use super::drops::ListenerDrops;
use super::handshake::Path;
use super::listener::{ListenError, Listeners};
use super::movement::{Standing, candidates_of};
use super::quic::QuicConfig;
use super::relayed::Relayed;
use super::relaying::Relaying;
use super::scouting::{ProbeRate, Scouting};
use super::setup::{Crypto, LaneFailure, LaneSetup, Link, Step};
use super::stun::Stun;
use super::tls::{LaneTls, PublicKeyInfo, TlsError};

/// Datagrams taken from one socket before the others have their turn.
const RECEIVE_BUDGET: usize = 64;

/// What the engine needs to know of this node.
#[derive(Clone, Debug)]
pub struct LaneEngineConfig {
    /// Who we are: an Ed25519 key.
    pub keypair: identity::Keypair,
    /// How many workers there are: 1 to [`WORKERS_MAX`].
    pub workers: u8,
    /// Worker i's lanes use UDP port `port + i`.
    pub port: u16,
    /// MTU of the TUN interface in bytes: decides how large lane datagrams become.
    pub inner_mtu: u16,
    /// Which addresses may be an end of a lane.
    pub policy: AddressPolicy,
}

/// Why there can be no engine: the configuration is at fault.
#[derive(Debug, Error)]
pub enum LaneEngineError {
    /// Our key cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No worker, too many, or ports beyond 65535.
    #[error("port {port} and {workers} workers: at least one worker, at most {WORKERS_MAX}, and no port above 65535")]
    Ports {
        /// The first worker's port.
        port: u16,
        /// How many workers.
        workers: u8,
    },
}

/// Asks for lanes of a link, after both offers have been exchanged.
#[derive(Clone, Debug)]
pub struct LinkStart {
    /// The peer's index.
    pub peer: PeerIndex,
    /// Who must be at the other end.
    pub peer_id: PeerId,
    /// Our end of the handshakes; the node with the lower peer id is the client.
    pub role: Role,
    /// What we offered.
    pub ours: Offer,
    /// What the peer offered.
    pub theirs: Offer,
    /// The lanes to set up: those that both offers agree on.
    pub lanes: LaneSet,
    /// How packets shall leave by them.
    pub carrier: CarrierChoice,
}

/// How the making of one lane ended, or what a lane that stands needs.
#[derive(Debug)]
pub enum LaneOutcome {
    /// It is ready: give it to its worker.
    Established {
        /// Which worker.
        worker: WorkerId,
        /// All of it.
        lane: Box<LaneHandOver>,
        /// When the handshake was confirmed.
        handshake_at: SystemTime,
    },
    /// There is no such lane for now.
    Failed {
        /// Whose.
        peer: PeerIndex,
        /// Which lane of the link.
        index: LaneIndex,
        /// Why.
        reason: LaneFailure,
    },
    /// A better path to a peer is conceivable than one that a lane of it has: exchange offers with it again.
    Improve {
        /// Which peer.
        peer: PeerIndex,
    },
    /// Lanes that could go by a relay cannot any more.
    PassagesChanged,
    /// What is known of our NAT, or what others see of our ports, is other than it was.
    NatChanged,
    /// Something about a lane that stands is for its worker. It may be dropped if that takes no orders for now.
    Order {
        /// Which worker.
        worker: WorkerId,
        /// What it is to do.
        command: PlaneCommand,
    },
}

pub(super) type Key = (PeerIndex, LaneIndex);

/// A socket of ours, by the address it is bound to.
#[derive(Clone, Copy)]
enum Source {
    Listener(SocketAddr),
    Lane(SocketAddr, Key),
}

/// Makes lanes. Owner: the control thread; it needs a tokio runtime with I/O and time.
///
/// Nothing happens but within [`Self::next`]; all tables are bounded by `limits`.
pub struct LaneEngine {
    tls: LaneTls,
    pub(super) quic: QuicConfig,
    pub(super) policy: AddressPolicy,
    pub(super) port: u16,
    pub(super) workers: u8,
    pub(super) datagram_bytes_max: usize,
    pub(super) listeners: Listeners,
    pub(super) setups: BTreeMap<Key, LaneSetup>,
    /// Tokens that a client's first datagrams may carry: one per lane that we serve.
    pub(super) tokens: BTreeMap<[u8; TOKEN_BYTES], Key>,
    /// Links with lanes in the making, by the tag of the peer's probes.
    pub(super) links: BTreeMap<[u8; 8], Rc<Link>>,
    /// Handshakes under way, by 4-tuple: their later datagrams carry ids of quinn-proto's, not the token.
    pub(super) paths: BTreeMap<Path, Key>,
    /// 4-tuples that workers were given, with the lane they were given last.
    pub(super) handed_over: BTreeMap<Path, LaneSerial>,
    /// Lanes that workers own.
    pub(super) standing: Standing,
    /// Those of them that look for something better.
    pub(super) scouting: Scouting,
    pub(super) probe_rate: ProbeRate,
    pub(super) birthdays: Birthdays,
    /// Networks that we are directly connected to.
    pub(super) on_link: Vec<IpNet>,
    pub(super) outcomes: VecDeque<LaneOutcome>,
    /// How many of them are orders.
    pub(super) orders: usize,
    pub(super) drops: ListenerDrops,
    pub(super) stun: Stun,
    /// Lanes of ours that others relay.
    pub(super) relayed: Relayed,
    /// Others' that we relay.
    pub(super) relaying: Relaying,
    serials: u64,
    buffer: Vec<u8>,
    /// A lane's socket has been made since all sockets were last read.
    socket_added: bool,
    timer: Option<Pin<Box<Sleep>>>,
}

impl LaneEngine {
    /// An engine without listeners. Takes up to 0.1 s in a fresh process: the random generator starts.
    pub fn new(config: LaneEngineConfig) -> Result<Self, LaneEngineError> {
        let LaneEngineConfig { keypair, workers, port, inner_mtu, policy } = config;
        let enough = (1..=WORKERS_MAX).contains(&usize::from(workers));
        if !enough || port == 0 || port.checked_add(u16::from(workers) - 1).is_none() {
            return Err(LaneEngineError::Ports { port, workers });
        }
        let datagram_bytes_max = datagram_bytes_max(inner_mtu);
        Ok(Self {
            tls: LaneTls::new(&keypair)?,
            quic: QuicConfig::new(inner_mtu),
            port,
            workers,
            datagram_bytes_max,
            listeners: Listeners::new(port, workers),
            setups: BTreeMap::new(),
            tokens: BTreeMap::new(),
            links: BTreeMap::new(),
            paths: BTreeMap::new(),
            handed_over: BTreeMap::new(),
            standing: Standing::default(),
            scouting: Scouting::default(),
            probe_rate: ProbeRate::default(),
            birthdays: Birthdays::default(),
            on_link: Vec::new(),
            outcomes: VecDeque::new(),
            orders: 0,
            drops: ListenerDrops::default(),
            stun: Stun::new(port, workers, &policy, now()),
            policy,
            relayed: Relayed::default(),
            relaying: Relaying::new(port, workers, now()),
            serials: 0,
            // One byte more than the largest datagram tells that one from a truncated larger one.
            buffer: vec![0; datagram_bytes_max + 1],
            socket_added: false,
            timer: None,
        })
    }

    /// Listens at these addresses and no others, as far as the policy admits them. What can be opened is open
    /// afterwards, whatever errors are returned; calling again with the same addresses tries the rest again.
    pub fn set_local_addresses(&mut self, addresses: &[IpAddr]) -> Result<(), Vec<ListenError>> {
        let policy = &self.policy;
        let opened = self.listeners.set_ips(addresses.iter().copied().filter(|ip| policy.admits(*ip)));
        self.close_lost_passages();
        self.search_anew(now());
        opened
    }

    /// Sets the networks that are reached through Ringlane itself, and that no lane may lead into.
    pub fn set_inner_networks(&mut self, networks: Vec<IpNet>) {
        self.policy.inner_networks = networks;
        self.stun.set_policy(&self.policy);
    }

    /// Starts making lanes. A lane of the same peer that is in the making is replaced, without an outcome.
    pub fn start(&mut self, request: LinkStart, now: Instant) {
        let (peer, lanes) = (request.peer, request.lanes);
        self.forget_outcomes(peer, lanes);
        let secrets = secrets_of(&request);
        let link = match self.link_of(request) {
            Ok(link) => link,
            Err(error) => {
                for index in lanes.iter() {
                    self.fail((peer, index), error.clone().into());
                }
                return;
            }
        };
        for index in lanes.iter() {
            let key = (peer, index);
            self.discard(key, now);
            if self.setups.len() >= LANE_SETUPS_MAX {
                self.fail(key, LaneFailure::Busy);
                continue;
            }
            let pairs: Vec<_> = self.ranked_of(&link, key).into_iter().map(|ranked| ranked.pair).collect();
            let prober = Prober::new(&pairs, link.starts_at(now), draw_transaction);
            let token = secrets.lane_token(index);
            if !link.is_client() {
                self.tokens.insert(token, key);
            }
            self.setups.insert(key, LaneSetup::new(Rc::clone(&link), index, token, prober, now));
            self.plan_birthday(&link, key, link.starts_at(now));
        }
        self.links.insert(link.their_tag.0, link);
        self.forget_idle_links();
    }

    /// Stops making lanes with this peer, without outcomes. Established lanes are not concerned.
    pub fn cancel(&mut self, peer: PeerIndex) {
        let now = now();
        self.forget_outcomes(peer, LaneSet(u64::MAX));
        for index in LaneSet(u64::MAX).iter() {
            self.discard((peer, index), now);
        }
        self.forget_idle_links();
    }

    /// Takes in a datagram that a worker found on a lane's socket and that is not that lane's.
    pub fn handle_stray(&mut self, stray: Stray, now: Instant) {
        let path = Path { local: stray.local, remote: stray.from };
        self.handle_datagram(path, &stray.datagram, now);
    }

    /// What was dropped at the listeners, and why.
    pub fn drops(&self) -> &ListenerDrops {
        &self.drops
    }

    /// Lanes in the making.
    pub fn pending(&self) -> usize {
        self.setups.len()
    }

    /// The next outcome. Drives all sockets and timers; dropping the future loses nothing.
    pub async fn next(&mut self) -> LaneOutcome {
        poll_fn(|context| self.poll_next(context)).await
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<LaneOutcome> {
        loop {
            // First, so that whatever comes in, no more waits than one look at everything adds.
            if let Some(outcome) = self.outcomes.pop_front() {
                self.orders -= usize::from(matches!(outcome, LaneOutcome::Order { .. }));
                return Poll::Ready(outcome);
            }
            let now = now();
            let more = self.receive(context, now);
            self.tick(now);
            if !self.outcomes.is_empty() {
                continue;
            }
            if std::mem::take(&mut self.socket_added) {
                // It has not been read yet, so nothing would wake us for it.
                continue;
            }
            if more {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            if self.poll_timer(context).is_pending() {
                return Poll::Pending;
            }
        }
    }

    fn poll_timer(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let setups = self.setups.values().map(LaneSetup::poll_timeout);
        let others =
            self.standing.poll_timeout().into_iter().chain(self.scouts_timeout()).chain(self.stun.poll_timeout());
        let others = others.chain(self.relayed.poll_timeout()).chain(self.relaying.poll_timeout());
        let others = others.chain(self.birthdays.poll_timeout());
        let Some(deadline) = setups.chain(others).min() else { return Poll::Pending };
        let deadline = tokio::time::Instant::from_std(deadline);
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if timer.deadline() != deadline {
            timer.as_mut().reset(deadline);
        }
        timer.as_mut().poll(context)
    }

    /// Reads every socket. Returns whether one has more than its budget allowed.
    fn receive(&mut self, context: &mut Context<'_>, now: Instant) -> bool {
        let listeners = self.listeners.locals().chain(self.listeners.passages()).chain(self.birthdays.locals());
        let listeners = listeners.map(Source::Listener);
        let lanes = self.paths.iter().map(|(path, key)| Source::Lane(path.local, *key));
        let sources: Vec<Source> = listeners.chain(lanes).collect();
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut more = false;
        for source in sources {
            more |= self.receive_from(source, &mut buffer, context, now);
        }
        self.buffer = buffer;
        more
    }

    fn receive_from(&mut self, source: Source, buffer: &mut [u8], context: &mut Context<'_>, now: Instant) -> bool {
        for _ in 0..RECEIVE_BUDGET {
            let (socket, local) = match source {
                Source::Listener(local) => (self.listeners.get(local).or(self.birthdays.socket(local)), local),
                Source::Lane(local, key) => (self.setups.get(&key).and_then(LaneSetup::socket), local),
            };
            let Some(socket) = socket else { return false };
            let mut datagram = ReadBuf::new(buffer);
            match socket.poll_recv_from(context, &mut datagram) {
                Poll::Pending => return false,
                // An error tells of an earlier datagram of ours that was refused. It is one datagram lost.
                Poll::Ready(Err(_)) => {}
                Poll::Ready(Ok(remote)) => self.handle_datagram(Path { local, remote }, datagram.filled(), now),
            }
        }
        true
    }

    /// Does what is due for every lane in the making, and for those that look for another path.
    fn tick(&mut self, now: Instant) {
        self.search(now);
        self.tick_scouts(now);
        self.ask_stun(now);
        self.tick_relayed(now);
        self.tick_relaying(now);
        self.tick_birthdays(now);
        let due: Vec<Key> =
            self.setups.iter().filter(|(_, setup)| setup.poll_timeout() <= now).map(|(key, _)| *key).collect();
        for key in due {
            self.send_probes(key, now);
            let Some(setup) = self.setups.get_mut(&key) else { continue };
            match setup.tick(now) {
                Step::Wait => {}
                Step::Dial(pair) => self.dial(key, self.path_for(key, pair), now),
                Step::DialFrom(path) => self.dial(key, path, now),
                Step::Confirmed => self.hand_over(key),
                Step::Failed(reason) => {
                    self.discard(key, now);
                    self.fail(key, reason);
                    self.forget_idle_links();
                }
            }
        }
    }

    fn send_probes(&mut self, key: Key, now: Instant) {
        let Some(setup) = self.setups.get_mut(&key).filter(|setup| setup.path().is_none()) else { return };
        let link = Rc::clone(&setup.link);
        let mut requests = Vec::new();
        while let Some(request) = setup.prober().poll_transmit(now) {
            requests.push(request);
        }
        for request in requests {
            self.send_probe(&link, key, self.path_for(key, request.pair), request.transaction, now);
        }
    }

    fn dial(&mut self, key: Key, path: Path, now: Instant) {
        let Some(setup) = self.setups.get_mut(&key) else { return };
        if self.paths.len() >= LANE_HANDSHAKES_MAX || self.paths.contains_key(&path) {
            return setup.postpone_dial(now);
        }
        match setup.dial(&self.quic, path, now) {
            Ok(()) => self.begin_path(path, key),
            Err(reason) => {
                self.discard(key, now);
                self.fail(key, reason);
            }
        }
    }

    /// A handshake has begun, with a socket of its own.
    pub(super) fn begin_path(&mut self, path: Path, key: Key) {
        // Beside a relay ports are still tried.
        if !self.relayed.leads(key, path) {
            self.birthdays.end(key);
        }
        self.paths.insert(path, key);
        self.note_socket_added();
    }

    /// A socket has been made that has not been read yet.
    pub(super) fn note_socket_added(&mut self) {
        self.socket_added = true;
    }

    fn hand_over(&mut self, key: Key) {
        let Some(setup) = self.remove(key) else { return };
        let (candidates, is_client) = (candidates_of(&setup.link.theirs, key.1), setup.link.is_client());
        let serial = LaneSerial(self.serials);
        self.serials += 1;
        match setup.hand_over(serial) {
            Ok(lane) => {
                if self.relay_of(lane.local).is_none() {
                    self.birthdays.succeed(key);
                }
                self.remember_path(Path { local: lane.local, remote: lane.remote }, serial);
                let worker = key.1.owner(self.workers);
                self.standing.insert(&lane, worker, is_client, candidates, &self.on_link, now());
                self.note_relayed_lane(key);
                self.review(key.0, false, now());
                let handshake_at = SystemTime::now();
                self.outcomes.push_back(LaneOutcome::Established { worker, lane, handshake_at });
            }
            Err(reason) => self.fail(key, reason),
        }
        self.forget_idle_links();
    }

    pub(super) fn remember_path(&mut self, path: Path, serial: LaneSerial) {
        self.handed_over.insert(path, serial);
        if self.handed_over.len() > HANDED_OVER_MAX {
            let oldest = self.handed_over.iter().min_by_key(|(_, serial)| serial.0).map(|(path, _)| *path);
            oldest.map(|path| self.handed_over.remove(&path));
        }
    }

    /// The link that an exchange of offers has made: one, whatever is begun with it.
    pub(super) fn link_of(&self, request: LinkStart) -> Result<Rc<Link>, TlsError> {
        let secrets = secrets_of(&request);
        let their_tag = secrets.probe_tag(request.role.opposite());
        match self.links.get(&their_tag.0).filter(|link| link.peer == request.peer) {
            Some(link) => Ok(Rc::clone(link)),
            None => self.link(request, &secrets).map(Rc::new),
        }
    }

    fn link(&self, request: LinkStart, secrets: &LinkSecrets) -> Result<Link, TlsError> {
        let LinkStart { peer, peer_id, role, ours, theirs, carrier, .. } = request;
        let peer_key = PublicKeyInfo::of_peer(&peer_id)?;
        let crypto = match role {
            Role::Client => Crypto::Client(Arc::new(self.tls.client(peer_key)?)),
            Role::Server => Crypto::Server(Arc::new(self.quic.server(Arc::new(self.tls.server(peer_key)?)))),
        };
        let (probe_key, our_tag) = (secrets.probe_key(), secrets.probe_tag(role));
        let their_tag = secrets.probe_tag(role.opposite());
        Ok(Link { peer, peer_key, ours, theirs, crypto, carrier, probe_key, our_tag, their_tag })
    }

    pub(super) fn local_port(&self, lane: LaneIndex) -> u16 {
        // Cannot saturate: `new` checked the last worker's port.
        self.port.saturating_add(u16::from(lane.owner(self.workers).0))
    }

    pub(super) fn fail(&mut self, (peer, index): Key, reason: LaneFailure) {
        self.outcomes.push_back(LaneOutcome::Failed { peer, index, reason });
    }

    pub(super) fn discard(&mut self, key: Key, now: Instant) {
        self.birthdays.end(key);
        if let Some(setup) = self.remove(key) {
            setup.cancel(now);
        }
    }

    fn remove(&mut self, key: Key) -> Option<LaneSetup> {
        let setup = self.setups.remove(&key)?;
        self.tokens.remove(&setup.token);
        // A newer handshake may have taken the same 4-tuple over.
        if let Some(path) = setup.path().filter(|path| self.paths.get(path) == Some(&key)) {
            self.paths.remove(&path);
        }
        Some(setup)
    }

    /// Outcomes that wait for the control loop are of set-ups it does not want any more: taken for the new ones', they
    /// would bring up lanes to a peer that has restarted since, and end the wait for those that come.
    fn forget_outcomes(&mut self, peer: PeerIndex, lanes: LaneSet) {
        let Self { outcomes, standing, .. } = self;
        outcomes.retain(|outcome| match outcome {
            LaneOutcome::Established { lane, .. } if lane.peer == peer && lanes.contains(lane.index) => {
                standing.remove(lane.serial);
                false
            }
            LaneOutcome::Failed { peer: of, index, .. } => *of != peer || !lanes.contains(*index),
            LaneOutcome::Established { .. }
            | LaneOutcome::Order { .. }
            | LaneOutcome::NatChanged
            | LaneOutcome::PassagesChanged
            | LaneOutcome::Improve { .. } => true,
        });
    }

    pub(super) fn forget_idle_links(&mut self) {
        self.links.retain(|_, link| Rc::strong_count(link) > 1);
    }
}

impl std::fmt::Debug for LaneEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LaneEngine").field("port", &self.port).field("pending", &self.pending()).finish_non_exhaustive()
    }
}

fn secrets_of(request: &LinkStart) -> LinkSecrets {
    match request.role {
        Role::Client => LinkSecrets::derive(&request.ours, &request.theirs),
        Role::Server => LinkSecrets::derive(&request.theirs, &request.ours),
    }
}

/// The runtime's clock, which tests may stop.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

pub(super) fn draw_transaction() -> Transaction {
    let mut bytes = [0; 8];
    // Without random numbers no handshake succeeds either; a guessable transaction only weakens the choice of a path.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    Transaction(u64::from_ne_bytes(bytes))
}
