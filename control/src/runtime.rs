//! The control thread: one tokio current-thread runtime, one select loop, nothing decided here.
//!
//! Start-up refuses before it touches: everything that can be found wrong (a route over a connected network, a port in
//! use) is, before the TUN interface is made. What is made hangs on that interface, so the end of the process, however
//! it comes, takes it all away.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use libp2p::identity::Keypair;
use ringlane_shared::config::Settings;
use ringlane_shared::id::{PeerId, PeerIndex, WorkerId};
use ringlane_shared::identity::{builtin_ipv4, builtin_ipv6};
use ringlane_shared::limits::ROUTES_MAX;
use ringlane_shared::path::candidate::AddressPolicy;
use ringlane_shared::plane::queue::plane_queue;
use ringlane_shared::plane::{
    LaneEnd, PlaneCommand, PlaneEvent, PlaneReceiver, PlaneSender, QueueFull, WorkerCounters,
};
use ringlane_shared::wire::offer::{Answer, Features, LENGTH_PREFIX_BYTES, Offer, OfferError, RefusalReason};
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::time::{sleep, sleep_until, timeout};
use tracing::{debug, error, info, warn};

use crate::addresses::{ListenPlan, inner_networks};
use crate::admin::{AdminCommand, AdminError, AdminRequest, AdminServer, socket_path};
use crate::coordinator::publisher::builtin_prefixes;
use crate::coordinator::{AskFailure, AskId, Coordinator, Intent, LaneUp, Us};
use crate::lanes::{LaneEngine, LaneEngineConfig, LaneEngineError, LaneOutcome, LinkStart, ListenError};
use crate::netlink::{
    AddressChanges, InterfaceConfig, Netlink, NetlinkError, RouteConflict, forwarding_warnings, refuse_connected,
};
use crate::report::Reporter;
use crate::store::{PeerCache, peer_cache_file};
use crate::swarm::address::overlay_networks;
use crate::swarm::{ExchangeId, ExchangeToken, Node, NodeConfig, NodeError, NodeEvent};

/// How long workers may take to close their lanes and end.
const WORKERS_STOP_LIMIT: Duration = Duration::from_secs(2);
/// How long peers may take to hear that we go.
const SWARM_STOP_LIMIT: Duration = Duration::from_secs(1);
/// How long the lane sockets of a killed node may outlive it.
const LINGER: Duration = Duration::from_secs(1);
/// Between two tries to take their ports.
const LINGER_STEP: Duration = Duration::from_millis(50);
/// Between two writes of the peer cache.
const CACHE_INTERVAL: Duration = Duration::from_secs(60);
/// Packets the kernel queues for a worker: a burst of a few milliseconds, not a standing queue.
const TX_QUEUE_PACKETS: u32 = 500;
/// Between two looks at whether the service manager's watchdog wants to hear from us, without one.
const NO_WATCHDOG: Duration = Duration::from_secs(3600);

/// The workers, as control sees them.
#[derive(Debug)]
pub struct Workers {
    /// Orders, one queue per worker.
    pub commands: Vec<PlaneSender<PlaneCommand>>,
    /// What each did.
    pub counters: Vec<Arc<WorkerCounters>>,
}

/// What the service manager is to hear.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Notice {
    /// The node is up; a line for people.
    Ready(String),
    /// The node has begun to end.
    Stopping,
    /// The control loop is alive.
    Watchdog,
}

/// Any error of the daemon's, passed through.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What control is made of.
pub struct ControlConfig {
    /// The configuration, checked against our own id.
    pub settings: Settings,
    /// Who we are.
    pub keypair: Keypair,
    /// How many workers [`Self::start_workers`] will start.
    pub workers: u8,
    /// The binary's version.
    pub version: &'static str,
    /// Makes the TUN interface and starts the workers; called once, after everything else has been found in order.
    pub start_workers: Box<dyn FnOnce(PlaneSender<PlaneEvent>) -> Result<Workers, BoxError> + Send>,
    /// Passes notices on to the service manager.
    pub notify: Box<dyn Fn(Notice) + Send>,
    /// How often the service manager wants [`Notice::Watchdog`].
    pub watchdog: Option<Duration>,
}

/// Why the node could not start or go on.
#[derive(Debug, Error)]
pub enum ControlError {
    /// The runtime could not be built or signals not be caught.
    #[error("cannot start the control thread: {0}")]
    Runtime(#[source] std::io::Error),
    /// A route would take over a network the host is on.
    #[error(transparent)]
    RouteConflict(#[from] RouteConflict),
    /// The kernel refused something.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// libp2p refused our identity or peers.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// A listen address cannot be used.
    #[error("{0}")]
    Listen(String),
    /// The lane engine refused.
    #[error(transparent)]
    Lanes(#[from] LaneEngineError),
    /// The workers could not be started.
    #[error(transparent)]
    Workers(BoxError),
    /// The admin socket could not be opened.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The interface vanished while it was being set up, or its name cannot name a socket.
    #[error("interface {0} is gone")]
    NoInterface(String),
    /// A worker has failed.
    #[error("worker {worker} failed: {message}")]
    WorkerFailed {
        /// Which.
        worker: WorkerId,
        /// Why.
        message: String,
    },
}

/// Runs the control thread until a signal, `ringlane down` or a failure ends it. The workers have been told to stop
/// when this returns.
pub fn run(config: ControlConfig) -> Result<(), ControlError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ControlError::Runtime)?;
    runtime.block_on(async {
        let mut control = Control::start(config).await?;
        let ended = control.run().await;
        control.stop().await;
        ended
    })
}

/// Whether this CPU has the instructions that make AES-GCM the faster AEAD.
pub fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

struct Control {
    settings: Settings,
    id: PeerId,
    version: &'static str,
    started: Instant,
    notify: Box<dyn Fn(Notice) + Send>,
    watchdog: Option<Duration>,
    netlink: Netlink,
    changes: AddressChanges,
    plan: ListenPlan,
    installed: Vec<IpNet>,
    node: Node,
    engine: LaneEngine,
    coordinator: Coordinator<ExchangeToken>,
    asks: BTreeMap<ExchangeId, (PeerIndex, AskId)>,
    workers: Workers,
    events: PlaneReceiver<PlaneEvent>,
    woken: Arc<Notify>,
    stopped: u64,
    admin: AdminServer,
    cache: PeerCache,
    cache_file: PathBuf,
}

/// What the select loop found.
enum Happening {
    Node(NodeEvent),
    Lane(LaneOutcome),
    Plane,
    Addresses,
    Admin(AdminRequest),
    Deadline,
    CacheIsDue,
    WatchdogIsDue,
    Signal(&'static str),
}

impl Control {
    async fn start(config: ControlConfig) -> Result<Self, ControlError> {
        let ControlConfig { settings, keypair, workers, version, start_workers, notify, watchdog } = config;
        let started = Instant::now();
        let id = keypair.public().to_peer_id();

        // Look at everything first.
        let (netlink, changes) = Netlink::connect()?;
        let connected = netlink.connected_prefixes(None).await?;
        let routes = settings.peers.iter().flat_map(|peer| {
            let name = if peer.name.is_empty() { "(unnamed)" } else { peer.name.as_str() };
            peer.routes.iter().map(move |route| (*route, name))
        });
        refuse_connected(routes, &connected)?;
        let host = netlink.host_addresses().await?;
        let plan = ListenPlan::new(&settings.control.listen, &host, &settings.interface);

        // Then take the ports.
        let cache_file = peer_cache_file(&settings);
        let cache = PeerCache::load(&cache_file);
        let cached = settings.peers.iter().map(|peer| (peer.id, cache.addresses(&peer.id).cloned().collect()));
        let mut seed = [0; 8];
        random(&mut seed);
        let mut node = Node::new(NodeConfig {
            keypair: keypair.clone(),
            peers: settings.peers.iter().map(|peer| (peer.id, peer.addresses.clone())).collect(),
            cached: cached.collect(),
            mdns: settings.control.mdns,
            allow_loopback: false,
            agent: format!("ringlane/{version}"),
            seed: u64::from_le_bytes(seed),
        })?;
        deny_own(&mut node, host.iter().map(|address| address.prefix.addr()).collect());
        let file = settings.file.display();
        if let Some(error) = node.set_listen_addresses(&plan.control).into_iter().next() {
            return Err(ControlError::Listen(format!("{file}: control.listen: {error}")));
        }
        let all_routes = settings.peers.iter().flat_map(|peer| peer.routes.iter().copied());
        let mut engine = LaneEngine::new(LaneEngineConfig {
            keypair,
            workers,
            port: settings.dataplane.port,
            inner_mtu: settings.dataplane.mtu,
            policy: AddressPolicy {
                allow_loopback: false,
                inner_networks: inner_networks(all_routes.chain(overlay_networks()), &connected),
            },
        })?;
        listen_with_lanes(&mut engine, &plan.lanes)
            .await
            .map_err(|error| ControlError::Listen(format!("{file}: dataplane.port: {error}")))?;

        // From here on there is something to take away again, which the end of the workers does.
        let woken = Arc::new(Notify::new());
        let wake = Arc::clone(&woken);
        let (sender, events) = plane_queue(move || wake.notify_one());
        let workers = start_workers(sender).map_err(ControlError::Workers)?;
        let prepared = Self::configure_kernel(&netlink, &settings, &id).await;
        let admin = match socket_path(&settings.interface) {
            Some(path) => AdminServer::bind(&path).map_err(ControlError::from),
            None => Err(ControlError::NoInterface(settings.interface.clone())),
        };
        let (installed, admin) = match (prepared, admin) {
            (Ok(installed), Ok(admin)) => (installed, admin),
            (Err(error), _) | (_, Err(error)) => {
                stop_workers(&workers, &events, &woken, &mut 0).await;
                return Err(error);
            }
        };

        let mut instance = [0; 16];
        random(&mut instance);
        let us = Us {
            id,
            instance,
            features: if has_aes() { Features::AES } else { Features::default() },
            workers: workers.commands.len() as u8,
            port: settings.dataplane.port,
        };
        let mut coordinator = Coordinator::new(us, &settings.peers, Box::new(random));
        coordinator.set_addresses(&plan.lanes, started);
        for warning in forwarding_warnings(&settings.interface) {
            warn!("{warning}");
        }
        info!(
            id = %id,
            interface = settings.interface,
            workers = workers.commands.len(),
            peers = settings.peers.len(),
            ports = settings.dataplane.port,
            "up"
        );
        let ready = format!("interface {}, {} peers", settings.interface, settings.peers.len());
        notify(Notice::Ready(ready));
        Ok(Self {
            settings,
            id,
            version,
            started,
            notify,
            watchdog,
            netlink,
            changes,
            plan,
            installed,
            node,
            engine,
            coordinator,
            asks: BTreeMap::new(),
            workers,
            events,
            woken,
            stopped: 0,
            admin,
            cache,
            cache_file,
        })
    }

    async fn configure_kernel(netlink: &Netlink, settings: &Settings, id: &PeerId) -> Result<Vec<IpNet>, ControlError> {
        let name = &settings.interface;
        let interface = netlink.interface_index(name).await?.ok_or_else(|| ControlError::NoInterface(name.clone()))?;
        let config = InterfaceConfig {
            addresses: builtin_prefixes(id).to_vec(),
            mtu: settings.dataplane.mtu,
            tx_queue_length: Some(TX_QUEUE_PACKETS),
        };
        netlink.configure(interface, &config).await?;
        let mut installed = Vec::new();
        for peer in &settings.peers {
            for prefix in builtin_prefixes(&peer.id).into_iter().chain(peer.routes.iter().copied()) {
                let source: IpAddr =
                    if prefix.addr().is_ipv4() { builtin_ipv4(id).into() } else { builtin_ipv6(id).into() };
                if netlink.add_route(interface, prefix, Some(source)).await? {
                    installed.push(prefix);
                }
            }
        }
        debug_assert!(installed.len() <= ROUTES_MAX + 2 * settings.peers.len());
        Ok(installed)
    }

    async fn run(&mut self) -> Result<(), ControlError> {
        let mut terminate = signal(SignalKind::terminate()).map_err(ControlError::Runtime)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(ControlError::Runtime)?;
        let mut cache_timer = tokio::time::interval(CACHE_INTERVAL);
        let mut watchdog_timer = tokio::time::interval(self.watchdog.unwrap_or(NO_WATCHDOG));
        loop {
            self.carry_out()?;
            let deadline = self.coordinator.poll_timeout();
            let happening = tokio::select! {
                event = self.node.next() => Happening::Node(event),
                outcome = self.engine.next() => Happening::Lane(outcome),
                () = self.woken.notified() => Happening::Plane,
                () = self.changes.next() => Happening::Addresses,
                request = self.admin.next() => Happening::Admin(request),
                () = wait_until(deadline) => Happening::Deadline,
                _ = cache_timer.tick() => Happening::CacheIsDue,
                _ = watchdog_timer.tick() => Happening::WatchdogIsDue,
                _ = terminate.recv() => Happening::Signal("SIGTERM"),
                _ = interrupt.recv() => Happening::Signal("SIGINT"),
            };
            let now = Instant::now();
            match happening {
                Happening::Node(event) => self.handle_node(event, now),
                Happening::Lane(outcome) => self.handle_lane(outcome, now),
                Happening::Plane => self.handle_plane(now)?,
                Happening::Addresses => self.handle_address_change(now).await,
                Happening::Admin(request) => {
                    if self.handle_admin(request) {
                        info!("told to stop by `ringlane down`");
                        return Ok(());
                    }
                }
                Happening::Deadline => self.coordinator.handle_timeout(now),
                Happening::CacheIsDue => self.save_cache(),
                Happening::WatchdogIsDue => {
                    if self.watchdog.is_some() {
                        (self.notify)(Notice::Watchdog);
                    }
                }
                Happening::Signal(name) => {
                    info!("told to stop by {name}");
                    return Ok(());
                }
            }
        }
    }

    /// Does what the coordinator wants done.
    fn carry_out(&mut self) -> Result<(), ControlError> {
        while let Some(intent) = self.coordinator.poll_intent() {
            let now = Instant::now();
            match intent {
                Intent::Ask { peer, ask, offer } => self.ask(peer, ask, &offer, now),
                Intent::Answer { token, answer } => match body(answer.to_message()) {
                    Ok(message) => self.node.answer(token, message),
                    Err(error) => error!(%error, "our own answer is not valid"),
                },
                Intent::SetUp { peer, role, ours, theirs, lanes } => {
                    let Some(settings) = self.settings.peers.get(peer.position()) else { continue };
                    let peer_id = settings.id;
                    self.engine.start(LinkStart { peer, peer_id, role, ours, theirs, lanes }, now);
                }
                Intent::CancelSetUp(peer) => self.engine.cancel(peer),
                Intent::Retire { worker, serial } => self.command(worker, PlaneCommand::RetireLane(serial))?,
                Intent::Publish(snapshot) => {
                    for worker in 0..self.workers.commands.len() {
                        let command = PlaneCommand::Publish(Arc::clone(&snapshot));
                        self.command(WorkerId(worker as u8), command)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Gives a worker an order. One that has not looked into its queue for so long is as good as dead.
    fn command(&self, worker: WorkerId, command: PlaneCommand) -> Result<(), ControlError> {
        let Some(commands) = self.workers.commands.get(worker.position()) else { return Ok(()) };
        commands.try_send(command).map_err(|QueueFull(_)| ControlError::WorkerFailed {
            worker,
            message: "it does not take orders any more".to_owned(),
        })
    }

    fn ask(&mut self, peer: PeerIndex, ask: AskId, offer: &Offer, now: Instant) {
        let asked = match body(offer.to_message()) {
            Ok(message) => self.settings.peers.get(peer.position()).and_then(|to| self.node.exchange(to.id, message)),
            Err(error) => {
                error!(%error, "our own offer is not valid");
                None
            }
        };
        match asked {
            Some(exchange) => {
                self.asks.insert(exchange, (peer, ask));
            }
            None => self.coordinator.handle_answer(peer, ask, Err(AskFailure::NotConnected), now),
        }
    }

    fn name(&self, peer: PeerIndex) -> &str {
        self.settings.peers.get(peer.position()).map_or("", |peer| peer.name.as_str())
    }

    fn handle_node(&mut self, event: NodeEvent, now: Instant) {
        match event {
            NodeEvent::PeerConnected { peer, remote, first, .. } => {
                let Some(index) = self.coordinator.index_of(&peer) else { return };
                if first {
                    info!(peer = self.name(index), id = %peer, %remote, "connected");
                }
                self.cache.remember(peer, remote, unix_s());
                self.coordinator.handle_connected(index, now);
            }
            NodeEvent::PeerDisconnected { peer } => {
                let Some(index) = self.coordinator.index_of(&peer) else { return };
                info!(peer = self.name(index), id = %peer, "disconnected");
                self.coordinator.handle_disconnected(index);
            }
            NodeEvent::OfferReceived { peer, token, message } => {
                let Some(index) = self.coordinator.index_of(&peer) else { return };
                match Offer::parse(&message) {
                    Ok(offer) => self.coordinator.handle_offer(index, offer, token),
                    Err(error) => {
                        warn!(peer = self.name(index), id = %peer, %error, "the peer's offer makes no sense");
                        if let Ok(message) = body(Answer::Refused(RefusalReason::Unsupported).to_message()) {
                            self.node.answer(token, message);
                        }
                    }
                }
            }
            NodeEvent::OfferAnswered { id, result, .. } => {
                let Some((peer, ask)) = self.asks.remove(&id) else { return };
                let answer = match result {
                    Ok(message) => Answer::parse(&message).map_err(|error| AskFailure::Exchange(error.to_string())),
                    Err(error) => Err(AskFailure::Exchange(error.to_string())),
                };
                self.coordinator.handle_answer(peer, ask, answer, now);
            }
            NodeEvent::ListenerFailed { address, error } => warn!(%address, error, "a listener failed"),
            NodeEvent::ConnectionClosed { .. } | NodeEvent::AddressesChanged => {}
        }
    }

    fn handle_lane(&mut self, outcome: LaneOutcome, now: Instant) {
        match outcome {
            LaneOutcome::Established { worker, lane, handshake_at } => {
                let (peer, index) = (lane.peer, lane.index);
                let up = LaneUp {
                    serial: lane.serial,
                    worker,
                    local: lane.local,
                    remote: lane.remote,
                    since: now,
                    handshake_at,
                    gauges: Arc::clone(&lane.gauges),
                };
                let Some(commands) = self.workers.commands.get(worker.position()) else { return };
                if commands.try_send(PlaneCommand::AddLane(lane)).is_err() {
                    warn!(peer = self.name(peer), lane = %index, %worker, "the worker takes no lane");
                    self.coordinator.handle_lane_failed(peer, index, now);
                    return;
                }
                info!(
                    peer = self.name(peer),
                    lane = %index,
                    %worker,
                    local = %up.local,
                    remote = %up.remote,
                    "lane up"
                );
                self.coordinator.handle_lane_up(peer, index, up);
            }
            LaneOutcome::Failed { peer, index, reason } => {
                debug!(peer = self.name(peer), lane = %index, %reason, "lane not set up");
                self.coordinator.handle_lane_failed(peer, index, now);
            }
        }
    }

    fn handle_plane(&mut self, now: Instant) -> Result<(), ControlError> {
        while let Some(event) = self.events.try_recv() {
            match event {
                PlaneEvent::Adopted { worker, generation, retired } => {
                    debug!(%worker, generation = generation.0, "tables adopted");
                    drop(retired);
                }
                PlaneEvent::LaneEnded { serial, peer, index, end } => {
                    if self.coordinator.handle_lane_ended(peer, index, serial, now) {
                        let end = match end {
                            LaneEnd::Retired => "retired".to_owned(),
                            LaneEnd::Worn => "its keys are worn".to_owned(),
                            LaneEnd::TimedOut => "nothing heard from the peer".to_owned(),
                            LaneEnd::ClosedByPeer => "closed by the peer".to_owned(),
                            LaneEnd::Failed(error) => error,
                        };
                        info!(peer = self.name(peer), lane = %index, end, "lane down");
                    }
                }
                PlaneEvent::Stray(stray) => self.engine.handle_stray(stray, now),
                PlaneEvent::Failed { worker, message } => {
                    return Err(ControlError::WorkerFailed { worker, message });
                }
                PlaneEvent::Stopped { worker } => {
                    self.stopped |= 1 << worker.0;
                    return Err(ControlError::WorkerFailed { worker, message: "it stopped unasked".to_owned() });
                }
            }
        }
        Ok(())
    }

    async fn handle_address_change(&mut self, now: Instant) {
        let host = match self.netlink.host_addresses().await {
            Ok(host) => host,
            Err(error) => {
                warn!(%error, "cannot read the host's addresses");
                return;
            }
        };
        deny_own(&mut self.node, host.iter().map(|address| address.prefix.addr()).collect());
        let plan = ListenPlan::new(&self.settings.control.listen, &host, &self.settings.interface);
        if plan == self.plan {
            return;
        }
        info!(addresses = ?plan.lanes, "the host's addresses have changed");
        for error in self.node.set_listen_addresses(&plan.control) {
            warn!("{error}");
        }
        for error in self.engine.set_local_addresses(&plan.lanes).err().unwrap_or_default() {
            warn!("{error}");
        }
        self.coordinator.set_addresses(&plan.lanes, now);
        self.plan = plan;
    }

    /// Answers a client. Returns whether the node is to stop.
    fn handle_admin(&mut self, request: AdminRequest) -> bool {
        let reporter = Reporter {
            settings: &self.settings,
            id: self.id,
            version: self.version,
            started: self.started,
            coordinator: &self.coordinator,
            node: &self.node,
            workers: &self.workers.counters,
            installed: &self.installed,
        };
        match request.command {
            AdminCommand::Status => request.reply.send(reporter.node()),
            AdminCommand::Peers => request.reply.send(reporter.connections()),
            AdminCommand::Routes => request.reply.send(reporter.routes()),
            AdminCommand::Stop => {
                request.reply.send(());
                return true;
            }
        }
        false
    }

    fn save_cache(&mut self) {
        for (peer, addresses) in self.node.known_addresses() {
            for known in addresses {
                let seen = known.last_success.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
                self.cache.remember(peer, known.address, seen);
            }
        }
        self.cache.retain(|id| self.settings.peers.iter().any(|peer| peer.id == *id));
        save(&self.cache, &self.cache_file);
    }

    async fn stop(mut self) {
        (self.notify)(Notice::Stopping);
        self.save_cache();
        stop_workers(&self.workers, &self.events, &self.woken, &mut self.stopped).await;
        self.node.shutdown(SWARM_STOP_LIMIT).await;
        // Last: `ringlane down` returns when the socket is gone.
        self.admin.close().await;
        info!("down");
    }
}

/// Tells all workers to stop and waits, bounded, until they have.
async fn stop_workers(workers: &Workers, events: &PlaneReceiver<PlaneEvent>, woken: &Notify, stopped: &mut u64) {
    for commands in &workers.commands {
        // A full queue is a worker that does not listen; the limit below deals with it.
        let _ = commands.try_send(PlaneCommand::Stop);
    }
    let all = workers.commands.len() as u32;
    let waited = timeout(WORKERS_STOP_LIMIT, async {
        while stopped.count_ones() < all {
            while let Some(event) = events.try_recv() {
                match event {
                    PlaneEvent::Stopped { worker } | PlaneEvent::Failed { worker, .. } => *stopped |= 1 << worker.0,
                    _ => {}
                }
            }
            if stopped.count_ones() < all {
                woken.notified().await;
            }
        }
    });
    if waited.await.is_err() {
        warn!("not all workers have stopped in time");
    }
}

/// Opens the lanes' listeners. The sockets of a node that was killed are closed in the background, so a port in use is
/// tried again for a moment.
async fn listen_with_lanes(engine: &mut LaneEngine, addresses: &[IpAddr]) -> Result<(), ListenError> {
    let deadline = Instant::now() + LINGER;
    loop {
        let Err(errors) = engine.set_local_addresses(addresses) else { return Ok(()) };
        let Some(error) = errors.into_iter().next() else { return Ok(()) };
        if !matches!(error, ListenError::InUse(_)) || Instant::now() >= deadline {
            return Err(error);
        }
        sleep(LINGER_STEP).await;
    }
}

fn deny_own(node: &mut Node, own: Vec<IpAddr>) {
    node.set_denied(move |ip| own.contains(&ip));
}

fn save(cache: &PeerCache, file: &Path) {
    if let Err(error) = cache.save(file) {
        debug!(%error, "the peer cache cannot be written");
    }
}

/// A message without the length that precedes it on the stream: the exchange writes that itself.
fn body(message: Result<impl AsRef<[u8]>, OfferError>) -> Result<Vec<u8>, OfferError> {
    Ok(message?.as_ref().get(LENGTH_PREFIX_BYTES..).unwrap_or_default().to_vec())
}

async fn wait_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// Fills `bytes` from the system's generator. Without one there is no security to be had, so the process ends.
fn random(bytes: &mut [u8]) {
    if aws_lc_rs::rand::fill(bytes).is_err() {
        error!("the system gives no random numbers");
        std::process::exit(1);
    }
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
