//! The control thread: one tokio current-thread runtime, one select loop, nothing decided here.
//!
//! Start-up refuses before it touches: everything that can be found wrong (a route over a connected network, a port in
//! use) is, before the TUN interface is made. What is made hangs on that interface, so the end of the process, however
//! it comes, takes it all away. Signals are caught from the beginning: one that comes during start-up ends it in order.

mod addresses;
mod admin;
mod batches;
mod discovery;
mod lanes;
mod links;
mod metrics;
mod nat;
mod netcheck;
mod obstacle;
mod packets;
mod ping;
mod portmap;
mod relay_load;
mod routes;
mod services;
mod start;
mod udp_relay;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use ipnet::IpNet;
use libp2p::identity::Keypair;
use ringlane_shared::config::Settings;
use ringlane_shared::id::{PeerId, PeerIndex, WorkerId};
use ringlane_shared::plane::{
    PacketBatch, PlaneCommand, PlaneEvent, PlaneReceiver, PlaneSender, QueueFull, ToControl, WorkerCounters,
};
use ringlane_shared::wire::offer::{LENGTH_PREFIX_BYTES, OfferError};
use thiserror::Error;
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, sleep_until, timeout};
use tracing::{debug, error, info, warn};

use self::obstacle::Ends;
use self::ping::{PingEvent, Pings};
pub(crate) use self::routes::Routing;
use self::services::ServiceOpening;
use crate::addresses::ListenPlan;
use crate::admin::{AdminError, AdminRequest, AdminServer};
use crate::coordinator::{AskId, Coordinator, Intent};
use crate::dns::NameServer;
use crate::environment::Environment;
use crate::exchange::{PeerExchange, Progress};
use crate::lanes::{LaneEngine, LaneEngineError, LaneOutcome, LinkStart};
use crate::metrics::{MetricsServer, ScrapeRequest};
use crate::nat::Nat;
use crate::netlink::{AddressChanges, Netlink, NetlinkError, RouteConflict};
use crate::packets::{Packets, PacketsEvent};
use crate::portmap::{PortMapper, PortmapEvent};
use crate::services::{ServiceIntent, ServiceNetwork};
use crate::signals::{Signals, Told};
use crate::store::PeerCache;
use crate::swarm::rates::Rates;
use crate::swarm::swarm_key::SwarmKeyError;
use crate::swarm::web::WebError;
use crate::swarm::{ExchangeId, ExchangeToken, Node, NodeError, NodeEvent, OpenId};
use crate::udp_relay::{self as relayed, UdpRelay};

/// How long workers may take to close their lanes and end.
const WORKERS_STOP_LIMIT: Duration = Duration::from_secs(2);
/// How long peers may take to hear that we go.
const SWARM_STOP_LIMIT: Duration = Duration::from_secs(1);
/// Between two writes of the peer cache.
const CACHE_INTERVAL: Duration = Duration::from_secs(60);
/// Between two looks at whether the service manager's watchdog wants to hear from us, without one.
const NO_WATCHDOG: Duration = Duration::from_secs(3600);

/// The workers, as control sees them.
#[derive(Debug)]
pub struct Workers {
    /// Orders, one queue per worker.
    pub commands: Vec<PlaneSender<PlaneCommand>>,
    /// Packets for the TUN, one queue per worker; those of one peer go to one worker.
    pub deliveries: Vec<PlaneSender<PacketBatch>>,
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
    pub start_workers: Box<dyn FnOnce(ToControl) -> Result<Workers, BoxError> + Send>,
    /// Passes notices on to the service manager.
    pub notify: Box<dyn Fn(Notice) + Send>,
    /// How often the service manager wants [`Notice::Watchdog`].
    pub watchdog: Option<Duration>,
    /// Hyprspace's environment variables.
    pub environment: Environment,
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
    /// The swarm key is missing or malformed.
    #[error(transparent)]
    SwarmKey(#[from] SwarmKeyError),
    /// A listen address cannot be used.
    #[error("{0}")]
    Listen(String),
    /// The certificate of `/wss` cannot be used.
    #[error(transparent)]
    Web(#[from] WebError),
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
    /// A worker does not answer any more.
    #[error("not all workers have stopped within {} s", WORKERS_STOP_LIMIT.as_secs())]
    WorkersStuck,
}

/// Runs the control thread until a signal, `ringlane down` or a failure ends it. The workers have been told to stop
/// when this returns, and have, unless it is with an error.
pub fn run(config: ControlConfig) -> Result<(), ControlError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ControlError::Runtime)?;
    let ended = runtime.block_on(async {
        let mut signals = Signals::catch().map_err(ControlError::Runtime)?;
        info!(version = config.version, interface = config.settings.interface, "starting");
        let Some(mut control) = Control::start(config, &mut signals).await? else { return Ok(()) };
        let ended = control.run(&mut signals).await;
        if let Err(error) = &ended {
            error!(%error, "the node cannot go on");
        }
        let stopped = control.stop().await;
        ended.and(stopped)
    });
    // A name may still be being looked up, on a thread that cannot be stopped. Nobody waits for it.
    runtime.shutdown_background();
    ended
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
    /// Something of the plan could not be done; try again.
    plan_is_open: bool,
    /// The peers' built-in addresses that the kernel routes into the tunnel.
    installed: Vec<IpNet>,
    routing: Routing,
    /// How many addresses the configuration gives peers.
    configured_addresses: usize,
    offer_rates: Rates<PeerIndex>,
    offers_refused: u64,
    node: Node,
    exchange: PeerExchange,
    engine: LaneEngine,
    coordinator: Coordinator<ExchangeToken>,
    asks: BTreeMap<ExchangeId, (PeerIndex, AskId)>,
    workers: Workers,
    events: PlaneReceiver<PlaneEvent>,
    woken: Arc<Notify>,
    /// Packets from the workers, for streams and services.
    batches: PlaneReceiver<PacketBatch>,
    batches_woken: Arc<Notify>,
    packets: Packets,
    services: ServiceNetwork,
    /// Streams to peers' services that are being opened.
    service_streams: BTreeMap<OpenId, ServiceOpening>,
    stopped: u64,
    /// Nothing if it is switched off.
    portmap: Option<PortMapper>,
    admin: AdminServer,
    metrics: Option<MetricsServer>,
    nat: Nat,
    udp_relay: UdpRelay,
    /// What is known of peers for as long as no lane leads to them.
    ends: Ends,
    pings: Pings,
    /// Answers questions as long as it is there.
    _names: Option<NameServer>,
    cache: PeerCache,
    cache_file: PathBuf,
}

/// What the select loop found.
enum Happening {
    Node(NodeEvent),
    Exchange(Progress),
    Lane(LaneOutcome),
    Plane,
    Batches,
    Packets(PacketsEvent),
    Services(ServiceIntent),
    Addresses,
    Portmap(PortmapEvent),
    Admin(AdminRequest),
    Ping(PingEvent),
    Scrape(ScrapeRequest),
    NatIsDue,
    UdpRelay(relayed::Progress),
    Deadline,
    CacheIsDue,
    WatchdogIsDue,
    Signal(Told),
}

impl Control {
    async fn run(&mut self, signals: &mut Signals) -> Result<(), ControlError> {
        let mut cache_timer = interval(CACHE_INTERVAL);
        let mut watchdog_timer = interval(self.watchdog.unwrap_or(NO_WATCHDOG));
        cache_timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        watchdog_timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.make_detours().await;
            self.look_at_routers(Instant::now());
            self.look_at_relayed_lanes(Instant::now());
            if let Err(error) = self.carry_out() {
                // A worker that takes no orders may have said why.
                self.handle_plane(Instant::now())?;
                return Err(error);
            }
            let deadlines = [self.coordinator.poll_timeout(), self.routing.book.poll_timeout()];
            let deadline = deadlines.into_iter().flatten().min();
            let happening = tokio::select! {
                event = self.node.next() => Happening::Node(event),
                progress = self.exchange.next() => Happening::Exchange(progress),
                outcome = self.engine.next() => Happening::Lane(outcome),
                () = self.woken.notified() => Happening::Plane,
                () = self.batches_woken.notified() => Happening::Batches,
                event = self.packets.next() => Happening::Packets(event),
                intent = self.services.next() => Happening::Services(intent),
                () = self.changes.next() => Happening::Addresses,
                event = PortMapper::next(self.portmap.as_mut()) => Happening::Portmap(event),
                request = self.admin.next() => Happening::Admin(request),
                event = self.pings.next() => Happening::Ping(event),
                request = MetricsServer::next(self.metrics.as_mut()) => Happening::Scrape(request),
                () = self.nat.next() => Happening::NatIsDue,
                progress = self.udp_relay.next() => Happening::UdpRelay(progress),
                () = wait_until(deadline) => Happening::Deadline,
                _ = cache_timer.tick() => Happening::CacheIsDue,
                _ = watchdog_timer.tick() => Happening::WatchdogIsDue,
                told = signals.next() => Happening::Signal(told),
            };
            let now = Instant::now();
            match happening {
                Happening::Node(event) => {
                    if let Some(event) = self.exchange.handle_event(event, &mut self.node) {
                        self.handle_node(event, now);
                    }
                }
                Happening::Exchange(progress) => self.exchange.handle_progress(progress, &mut self.node),
                Happening::Lane(outcome) => self.handle_lane(outcome, now),
                Happening::Plane => self.handle_plane(now)?,
                Happening::Batches => self.handle_batches(),
                Happening::Packets(event) => self.handle_packets(event, now),
                Happening::Services(intent) => self.handle_services(intent),
                Happening::Addresses => self.handle_address_change(now).await,
                Happening::Portmap(event) => self.handle_portmap(event).await,
                Happening::Admin(request) => {
                    if self.handle_admin(request).await {
                        info!("told to stop by `ringlane down`");
                        return Ok(());
                    }
                }
                Happening::Ping(event) => self.handle_ping(event, now),
                Happening::Scrape(request) => request.send(self.exposition().await),
                Happening::NatIsDue => self.plan_nat(now),
                Happening::UdpRelay(progress) => self.handle_udp_relay(progress, now),
                Happening::Deadline => self.coordinator.handle_timeout(now),
                Happening::CacheIsDue => {
                    self.save_cache();
                    if self.plan_is_open {
                        self.handle_address_change(now).await;
                    }
                }
                Happening::WatchdogIsDue => {
                    if self.watchdog.is_some() {
                        (self.notify)(Notice::Watchdog);
                    }
                }
                Happening::Signal(Told::Rediscover) => self.rediscover(),
                Happening::Signal(Told::Stop(name)) => {
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
                    let carrier = settings.carrier.unwrap_or(self.settings.dataplane.carrier);
                    self.engine.start(LinkStart { peer, peer_id, role, ours, theirs, lanes, carrier }, now);
                }
                Intent::Scout { peer, role, ours, theirs, lanes } => {
                    let Some(settings) = self.settings.peers.get(peer.position()) else { continue };
                    let peer_id = settings.id;
                    let carrier = settings.carrier.unwrap_or(self.settings.dataplane.carrier);
                    self.engine.scout(LinkStart { peer, peer_id, role, ours, theirs, lanes, carrier }, now);
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

    fn name(&self, peer: PeerIndex) -> &str {
        self.settings.peers.get(peer.position()).map_or("", |peer| peer.name.as_str())
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

    async fn stop(mut self) -> Result<(), ControlError> {
        (self.notify)(Notice::Stopping);
        // First, so that peers hear at once that our lanes are gone.
        let stopped = stop_workers(&self.workers, &self.events, &self.woken, self.stopped).await;
        self.routing.clear(&self.netlink).await;
        self.save_cache();
        let released = async {
            if let Some(portmap) = self.portmap {
                portmap.release(portmap::RELEASE_LIMIT).await;
            }
        };
        futures::join!(self.node.shutdown(SWARM_STOP_LIMIT), released);
        // Last: `ringlane down` returns when the socket is gone.
        self.admin.close().await;
        info!("down");
        stopped
    }
}

/// Tells all workers to stop and waits, bounded, until they have; bit w of `stopped` is set if worker w has already.
async fn stop_workers(
    workers: &Workers,
    events: &PlaneReceiver<PlaneEvent>,
    woken: &Notify,
    mut stopped: u64,
) -> Result<(), ControlError> {
    for commands in &workers.commands {
        // A full queue is a worker that does not listen; the limit below deals with it.
        let _ = commands.try_send(PlaneCommand::Stop);
    }
    let all = workers.commands.len() as u32;
    let waited = timeout(WORKERS_STOP_LIMIT, async {
        while stopped.count_ones() < all {
            while let Some(event) = events.try_recv() {
                match event {
                    PlaneEvent::Stopped { worker } => stopped |= 1 << worker.0,
                    PlaneEvent::Failed { worker, message } => {
                        warn!(%worker, message, "a worker failed while stopping");
                        stopped |= 1 << worker.0;
                    }
                    _ => {}
                }
            }
            if stopped.count_ones() < all {
                woken.notified().await;
            }
        }
    });
    waited.await.map_err(|_| {
        let running: Vec<_> = (0..all).filter(|worker| stopped & 1 << worker == 0).collect();
        warn!(workers = ?running, "workers have not stopped in time");
        ControlError::WorkersStuck
    })
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
