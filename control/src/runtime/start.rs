//! From a configuration to a node that is up: everything is looked at before anything is touched, and what fails leaves
//! nothing behind.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use ringlane_shared::config::{Scope, Settings};
use ringlane_shared::id::PeerId;
use ringlane_shared::identity::{builtin_ipv4, builtin_ipv6};
use ringlane_shared::lane::keys::CipherChoice;
use ringlane_shared::limits::{BATCH_QUEUE_MESSAGES, OFFERS_PER_PEER_BURST, OFFERS_PER_PEER_PER_SECOND, PEERS_MAX};
use ringlane_shared::path::candidate::AddressPolicy;
use ringlane_shared::plane::ToControl;
use ringlane_shared::plane::queue::{plane_queue, plane_queue_of};
use ringlane_shared::wire::offer::Features;
use tokio::sync::Notify;
use tokio::time::sleep;
use tracing::{error, info, warn};

use super::discovery::discovery;
use super::portmap::portmap;
use super::routes::Routing;
use super::{Control, ControlConfig, ControlError, Notice, deny_own, services, stop_workers};
use crate::addresses::{ListenPlan, inner_networks, lan, segments};
use crate::admin::{AdminServer, socket_path};
use crate::coordinator::publisher::builtin_prefixes;
use crate::coordinator::{Coordinator, Us};
use crate::dns::NameServer;
use crate::exchange::{self, PeerExchange};
use crate::lanes::{LaneEngine, LaneEngineConfig, ListenError};
use crate::nat::Nat;
use crate::netlink::{HostAddress, InterfaceConfig, Netlink, NetlinkError, forwarding_warnings, refuse_connected};
use crate::packets::{self, Packets};
use crate::signals::Signals;
use crate::store::{PeerCache, peer_cache_file};
use crate::swarm::address::overlay_networks;
use crate::swarm::rates::Rates;
use crate::swarm::web::Web;
use crate::swarm::{Accepted, Node, NodeConfig, Resolver};
use crate::udp_relay::{self, UdpRelay};

/// How long the lane sockets of a killed node may outlive it.
const LINGER: Duration = Duration::from_secs(1);
/// Between two tries to take their ports.
const LINGER_STEP: Duration = Duration::from_millis(50);

/// What takes a TUN interface.
struct Prepared {
    installed: Vec<IpNet>,
    interface: u32,
    routing: Routing,
    admin: AdminServer,
}

impl Control {
    /// Returns nothing when a signal ended the start; then nothing is left of it.
    pub(super) async fn start(config: ControlConfig, signals: &mut Signals) -> Result<Option<Self>, ControlError> {
        let ControlConfig { settings, keypair, workers, version, start_workers, notify, watchdog, environment } =
            config;
        let started = Instant::now();
        let id = keypair.public().to_peer_id();

        // Look at everything first.
        let discovery = discovery(&settings, &environment)?;
        let web = Web::new(&settings.control.web, Resolver::system())?;
        let (netlink, changes) = Netlink::connect()?;
        let (connected, host) = tokio::select! {
            biased;
            name = signals.stop() => {
                info!("told to stop by {name} while starting");
                return Ok(None);
            }
            found = look_at_host(&netlink) => found?,
        };
        let routes = settings.peers.iter().flat_map(|peer| {
            let name = if peer.name.is_empty() { "(unnamed)" } else { peer.name.as_str() };
            peer.routes.iter().map(move |route| (route.net, name))
        });
        refuse_connected(routes, &connected)?;
        let plan = ListenPlan::new(&settings.control.listen, &host, &settings.interface);

        // Then take the ports.
        let cache_file = peer_cache_file(&settings);
        let cache = PeerCache::load(&cache_file);
        let cached = settings.peers.iter().map(|peer| (peer.id, cache.addresses(&peer.id).cloned().collect()));
        let mut seed = [0; 8];
        random(&mut seed);
        let peers = settings.peers.iter().map(|peer| (peer.id, peer.addresses.clone())).collect();
        let mut node = Node::new(NodeConfig {
            cached: cached.collect(),
            // Whoever is on the same wire has a private address there.
            mdns: settings.control.mdns && !settings.control.filter_private_addresses,
            filter_private: settings.control.filter_private_addresses,
            agent: format!("ringlane/{version}"),
            seed: u64::from_le_bytes(seed),
            accepted: accepted(),
            discovery,
            web,
            relay: settings.relay.clone(),
            ..NodeConfig::new(keypair.clone(), peers)
        })?;
        let portmap = portmap(&settings, &keypair);
        let lan = lan(&host, &settings.interface);
        node.set_lan(lan.clone());
        deny_own(&mut node, host.iter().map(|address| address.prefix.addr()).collect());
        let file = settings.file.display();
        if let Some(error) = node.set_listen_addresses(&plan.control).into_iter().next() {
            return Err(ControlError::Listen(format!("{file}: control.listen: {error}")));
        }
        node.set_segments(segments(&plan, &host, &settings.interface));
        let configured = settings.peers.iter().map(|peer| peer.id).collect();
        let exchange = PeerExchange::new(&keypair, configured, u64::from_le_bytes(seed));
        let mut engine = LaneEngine::new(LaneEngineConfig {
            keypair,
            workers,
            port: settings.dataplane.port,
            inner_mtu: settings.dataplane.mtu,
            policy: AddressPolicy {
                inner_networks: inner_networks(overlay_networks().into_iter(), &connected),
                filter_private: settings.control.filter_private_addresses,
                only_named: !settings.nat.punch,
                lan: (settings.control.web.scope == Scope::Lan).then(Vec::new),
                ..AddressPolicy::default()
            },
        })?;
        engine.set_on_link(lan.clone(), started);
        listen_with_lanes(&mut engine, &plan.lanes)
            .await
            .map_err(|error| ControlError::Listen(format!("{file}: dataplane.port: {error}")))?;

        // From here on there is something to take away again, which the end of the workers does.
        let woken = Arc::new(Notify::new());
        let wake = Arc::clone(&woken);
        let (sender, events) = plane_queue(move || wake.notify_one());
        let batches_woken = Arc::new(Notify::new());
        let wake = Arc::clone(&batches_woken);
        let (batch_sender, batches) = plane_queue_of(BATCH_QUEUE_MESSAGES, move || wake.notify_one());
        let to_control = ToControl { events: sender, batches: batch_sender };
        let workers = start_workers(to_control).map_err(ControlError::Workers)?;
        let prepared = tokio::select! {
            biased;
            name = signals.stop() => {
                info!("told to stop by {name} while starting");
                Ok(None)
            }
            prepared = Self::prepare(&netlink, &settings, &id, connected, workers.commands.len() as u8) => prepared.map(Some),
        };
        let Prepared { installed, interface, routing, admin } = match prepared {
            Ok(Some(prepared)) => prepared,
            Ok(None) => return stop_workers(&workers, &events, &woken, 0).await.map(|()| None),
            Err(error) => {
                // What went wrong first is what the operator must hear.
                let _ = stop_workers(&workers, &events, &woken, 0).await;
                return Err(error);
            }
        };

        let (mut instance, mut lane_ids_from) = ([0; 16], [0; 4]);
        random(&mut instance);
        random(&mut lane_ids_from);
        let us = Us {
            id,
            instance,
            lane_ids_from: u32::from_ne_bytes(lane_ids_from),
            features: features(settings.dataplane.cipher),
            workers: workers.commands.len() as u8,
            port: settings.dataplane.port,
        };
        let mut coordinator = Coordinator::new(us, &settings.peers, Box::new(random));
        node.set_inner(vec![builtin_ipv4(&id).into(), builtin_ipv6(&id).into()]);
        coordinator.set_addresses(&plan.lanes, started);
        coordinator.set_services(true);
        for warning in forwarding_warnings(&settings.interface) {
            warn!("{warning}");
        }
        let services = services::network(&settings, &id, random);
        info!(
            id = %id,
            interface = settings.interface,
            workers = workers.commands.len(),
            peers = settings.peers.len(),
            ports = settings.dataplane.port,
            "up"
        );
        let packets = Packets::new(settings.peers.len(), workers.deliveries.clone());
        let ready = format!("interface {}, {} peers", settings.interface, settings.peers.len());
        let names = NameServer::start(&settings, id, interface);
        notify(Notice::Ready(ready));
        let mut nat = Nat::new(&settings.nat.stun_servers, workers.commands.len() as u8, started);
        nat.set_networks(lan, started);
        let configured_addresses = settings.peers.iter().map(|peer| peer.addresses.len()).sum();
        let mut control = Self {
            settings,
            id,
            version,
            started,
            notify,
            watchdog,
            netlink,
            changes,
            plan,
            plan_is_open: false,
            installed,
            routing,
            configured_addresses,
            offer_rates: Rates::new(OFFERS_PER_PEER_BURST, OFFERS_PER_PEER_PER_SECOND, PEERS_MAX),
            offers_refused: 0,
            node,
            exchange,
            engine,
            coordinator,
            asks: BTreeMap::new(),
            packets,
            workers,
            events,
            woken,
            batches,
            batches_woken,
            services,
            service_streams: BTreeMap::new(),
            stopped: 0,
            portmap,
            admin,
            metrics: None,
            nat,
            udp_relay: UdpRelay::new(),
            ends: Default::default(),
            pings: Default::default(),
            _names: names,
            cache,
            cache_file,
        };
        control.serve_metrics();
        control.limit_forwards();
        control.publish_routes();
        Ok(Some(control))
    }

    /// Does what takes a TUN interface: its addresses and routes, and last the socket, which says that all is there.
    async fn prepare(
        netlink: &Netlink,
        settings: &Settings,
        id: &PeerId,
        connected: Vec<(IpNet, String)>,
        workers: u8,
    ) -> Result<Prepared, ControlError> {
        let (interface, installed) = Self::configure_kernel(netlink, settings, id).await?;
        let mut routing = Routing::new(netlink, interface, settings, workers, *id, connected).await?;
        if let Some((_, error)) = routing.install(netlink, &BTreeSet::new()).await.pop_first() {
            routing.clear(netlink).await;
            return Err(error.into());
        }
        let path =
            socket_path(&settings.interface).ok_or_else(|| ControlError::NoInterface(settings.interface.clone()))?;
        match AdminServer::bind(&path) {
            Ok(admin) => Ok(Prepared { installed, interface, routing, admin }),
            Err(error) => {
                routing.clear(netlink).await;
                Err(error.into())
            }
        }
    }

    /// Returns the interface's index too.
    async fn configure_kernel(
        netlink: &Netlink,
        settings: &Settings,
        id: &PeerId,
    ) -> Result<(u32, Vec<IpNet>), ControlError> {
        let name = &settings.interface;
        let interface = netlink.interface_index(name).await?.ok_or_else(|| ControlError::NoInterface(name.clone()))?;
        let config = InterfaceConfig {
            addresses: builtin_prefixes(id).to_vec(),
            mtu: settings.dataplane.mtu,
            tx_queue_length: Some(settings.dataplane.tun_queue_packets),
        };
        netlink.configure(interface, &config).await?;
        let mut installed = Vec::new();
        for peer in &settings.peers {
            for prefix in builtin_prefixes(&peer.id) {
                let source: IpAddr =
                    if prefix.addr().is_ipv4() { builtin_ipv4(id).into() } else { builtin_ipv6(id).into() };
                if netlink.add_route(interface, prefix, Some(source)).await? {
                    installed.push(prefix);
                }
            }
        }
        installed.extend(services::install_routes(netlink, interface, settings, id).await?);
        Ok((interface, installed))
    }
}

/// The networks the host is connected to, and its addresses.
async fn look_at_host(netlink: &Netlink) -> Result<(Vec<(IpNet, String)>, Vec<HostAddress>), NetlinkError> {
    Ok((netlink.connected_prefixes(None).await?, netlink.host_addresses().await?))
}

/// The protocols whose streams peers may open, beyond the offers of links.
fn accepted() -> Vec<Accepted> {
    packets::accepted()
        .into_iter()
        .chain([services::accepted(), udp_relay::accepted()])
        .chain(exchange::accepted())
        .collect()
}

/// What we are willing to seal records with, here.
fn features(cipher: CipherChoice) -> Features {
    let has_aes = has_aes();
    if let (CipherChoice::Aes128Gcm | CipherChoice::Aes256Gcm, false) = (cipher, has_aes) {
        warn!(
            "dataplane.cipher asks for AES, but this CPU has no instructions for it, which makes AES slow: all lanes use \
             chacha20-poly1305, as with \"auto\""
        );
    }
    Features::of(cipher, has_aes)
}

/// Whether this CPU has the instructions that make AES-GCM the faster AEAD.
fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// Fills `bytes` from the system's generator. Without one there is no security to be had, so the process ends.
pub(super) fn random(bytes: &mut [u8]) {
    if aws_lc_rs::rand::fill(bytes).is_err() {
        error!("the system gives no random numbers");
        std::process::exit(1);
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
