//! What no single value shows: whether the parts of a configuration fit together.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use multiaddr::{Multiaddr, Protocol};

use super::error::{ConfigError, Problem, Report};
use super::services::{self, ServiceDraft};
use super::tree::{Place, Placed};
use super::{
    ControlSettings, DEFAULT_LISTEN, DEFAULT_PORT, DataplaneSettings, DiscoverySettings, DnsSettings, IdentitySettings,
    MetricsSettings, NatSettings, PeerSettings, RelaySettings, RouteSettings, STATE_DIRECTORY, Settings, Switch,
    WebSettings, value,
};
use crate::id::PeerId;
use crate::identity::{builtin_ipv4, builtin_ipv6, is_ed25519};
use crate::lane::keys::CipherChoice;
use crate::limits::{
    INNER_MTU_DEFAULT, KEEP_ALIVE_SECONDS_DEFAULT, LISTEN_ADDRESSES_MAX, ROUTES_MAX, TUN_QUEUE_PACKETS_DEFAULT,
    WORKERS_MAX,
};
use crate::plane::{CarrierChoice, Engine, Offload, Offloads, OuterMarks, RekeyLimits};

/// Offloads that are nothing without another one, which stands behind them.
const OFFLOAD_NEEDS: [(Offload, Offload); 3] = [
    (Offload::TunTso, Offload::TunChecksum),
    (Offload::TunUso, Offload::TunChecksum),
    (Offload::UdpSentinel, Offload::UdpGso),
];

/// Which format a draft was read from, where a rule depends on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Format {
    Toml,
    /// Has no key for the interface, and two peers may have the same name.
    Hyprspace,
}

/// What a file of either format says, each value well formed, with defaults where it says nothing.
pub(super) struct Draft {
    format: Format,
    pub(super) network: String,
    pub(super) interface: Placed<String>,
    /// `None` once a problem with it has been reported.
    pub(super) identity: Option<IdentitySettings>,
    pub(super) listen: Vec<Placed<Multiaddr>>,
    pub(super) mdns: bool,
    pub(super) discovery: DiscoverySettings,
    pub(super) filter_private_addresses: bool,
    pub(super) web: WebSettings,
    pub(super) workers: Option<Placed<u8>>,
    pub(super) port: Placed<u16>,
    pub(super) mtu: u16,
    pub(super) cores: Vec<Placed<u16>>,
    pub(super) busy_poll_us: u16,
    pub(super) tun_queue_packets: u16,
    /// Only those the file speaks of.
    pub(super) offloads: Vec<(Offload, Placed<Switch>)>,
    pub(super) engine: Engine,
    pub(super) carrier: CarrierChoice,
    pub(super) cipher: CipherChoice,
    pub(super) rekey: RekeyLimits,
    pub(super) rate_mbit: Option<u32>,
    pub(super) fragments: Placed<bool>,
    pub(super) copy_dscp: Placed<bool>,
    pub(super) copy_ecn: bool,
    pub(super) keep_alive_seconds: u16,
    pub(super) dns: DnsSettings,
    pub(super) metrics: MetricsSettings,
    pub(super) nat: NatSettings,
    pub(super) relay: RelaySettings,
    pub(super) peers: Vec<PeerDraft>,
    pub(super) services: Vec<ServiceDraft>,
}

/// What a file says of one peer; what has been reported as a problem is left out.
pub(super) struct PeerDraft {
    pub(super) name: Option<Placed<String>>,
    pub(super) id: Option<Placed<PeerId>>,
    pub(super) addresses: Vec<Placed<Multiaddr>>,
    pub(super) routes: Vec<Placed<RouteSettings>>,
    pub(super) carrier: Option<CarrierChoice>,
}

impl Draft {
    /// What an empty file says.
    pub(super) fn new(format: Format, report: &mut Report<'_>) -> Self {
        let network = network_name(report);
        let marks = OuterMarks::default();
        let listen = DEFAULT_LISTEN.iter().filter_map(|text| {
            Some(Placed::new(text.parse().ok()?, Place::default_of("control.listen", format!("{text:?}"))))
        });
        Self {
            format,
            interface: Placed::new(network.clone(), Place::default_of("interface", format!("{network:?}"))),
            network,
            identity: None,
            listen: listen.collect(),
            mdns: true,
            discovery: DiscoverySettings::default(),
            filter_private_addresses: false,
            web: WebSettings::default(),
            workers: None,
            port: Placed::new(DEFAULT_PORT, Place::default_of("dataplane.port", DEFAULT_PORT)),
            mtu: INNER_MTU_DEFAULT,
            cores: Vec::new(),
            busy_poll_us: 0,
            tun_queue_packets: TUN_QUEUE_PACKETS_DEFAULT,
            offloads: Vec::new(),
            engine: Engine::default(),
            carrier: CarrierChoice::default(),
            cipher: CipherChoice::default(),
            rekey: RekeyLimits::default(),
            rate_mbit: None,
            fragments: Placed::new(true, Place::default_of("dataplane.fragments", true)),
            copy_dscp: Placed::new(marks.copies_dscp, Place::default_of("dataplane.copy_dscp", marks.copies_dscp)),
            copy_ecn: marks.copies_ecn,
            keep_alive_seconds: KEEP_ALIVE_SECONDS_DEFAULT,
            dns: DnsSettings::default(),
            metrics: MetricsSettings::default(),
            nat: NatSettings::default(),
            relay: RelaySettings::default(),
            peers: Vec::new(),
            services: Vec::new(),
        }
    }

    pub(super) fn default_key_file(&self) -> PathBuf {
        Path::new(STATE_DIRECTORY).join(&self.network).join("identity.key")
    }

    /// Checks how the parts fit together and, if the whole file is without a problem, makes settings of them.
    pub(super) fn settle(mut self, mut report: Report<'_>) -> Result<Settings, ConfigError> {
        if let Err(flaw) = value::interface_name(&self.interface.value) {
            let remedy = match self.format {
                Format::Toml => flaw.remedy,
                Format::Hyprspace => "rename the file: the interface has its name, without .json".to_owned(),
            };
            report.refuse(&self.interface.place, flaw.problem, remedy);
        }
        self.check_listen(&mut report);
        self.check_lane_ports(&mut report);
        self.check_cores(&mut report);
        let offloads = self.settle_offloads(&mut report);
        self.check_carriers(&mut report);
        self.check_peers(&mut report);
        self.check_routes(&mut report);
        let services = services::settle(std::mem::take(&mut self.services), &self.peers, &mut report);
        let Some(identity) = self.identity.filter(|_| report.is_clean()) else {
            return Err(report.into_error());
        };
        let peer = |peer: PeerDraft| {
            Some(PeerSettings {
                name: peer.name.map(|name| name.value).unwrap_or_default(),
                id: peer.id?.value,
                addresses: peer.addresses.into_iter().map(|address| address.value).collect(),
                routes: peer.routes.into_iter().map(|route| route.value).collect(),
                carrier: peer.carrier,
            })
        };
        Ok(Settings {
            file: report.file().to_owned(),
            network: self.network,
            interface: self.interface.value,
            identity,
            control: ControlSettings {
                listen: self.listen.into_iter().map(|address| address.value).collect(),
                mdns: self.mdns,
                discovery: self.discovery,
                filter_private_addresses: self.filter_private_addresses,
                web: self.web,
            },
            dataplane: DataplaneSettings {
                workers: self.workers.map(|workers| workers.value),
                port: self.port.value,
                mtu: self.mtu,
                cores: self.cores.into_iter().map(|core| core.value).collect(),
                busy_poll_us: self.busy_poll_us.into(),
                tun_queue_packets: self.tun_queue_packets.into(),
                offloads,
                udp_sentinel: switch(&self.offloads, Offload::UdpSentinel).map_or(Switch::Auto, |switch| switch.value),
                engine: self.engine,
                carrier: self.carrier,
                cipher: self.cipher,
                rekey: self.rekey,
                rate_mbit: self.rate_mbit,
                fragments: self.fragments.value,
                outer_marks: OuterMarks { copies_dscp: self.copy_dscp.value, copies_ecn: self.copy_ecn },
                keep_alive_seconds: self.keep_alive_seconds,
            },
            dns: self.dns,
            metrics: self.metrics,
            nat: self.nat,
            relay: self.relay,
            peers: self.peers.into_iter().filter_map(peer).collect(),
            services,
            warnings: report.into_warnings()?,
        })
    }

    fn check_listen(&self, report: &mut Report<'_>) {
        let mut seen = BTreeMap::new();
        for address in &self.listen {
            // The kernel may be asked for any number of ports of its choice.
            let chosen =
                matches!(address.value.iter().nth(1), Some(Protocol::Tcp(port) | Protocol::Udp(port)) if port != 0);
            if let Some(first) = seen.insert(address.value.to_vec(), &address.place.key).filter(|_| chosen) {
                report.refuse(&address.place, format!("is listed twice (see {first})"), "remove one of them");
            }
        }
    }

    fn check_lane_ports(&self, report: &mut Report<'_>) {
        let (workers, place) = match &self.workers {
            Some(workers) => (workers.value, &workers.place),
            None => (1, &self.port.place),
        };
        let listen = self.listen.iter().map(|address| (&address.value, address.place.key.clone()));
        if let Err((problem, remedy)) = lane_ports(self.port.value, workers, listen) {
            let place = if self.port.place.offset.is_some() { &self.port.place } else { place };
            report.refuse(place, problem, remedy);
        }
    }

    fn check_cores(&self, report: &mut Report<'_>) {
        let mut seen = BTreeMap::new();
        for core in &self.cores {
            if let Some(first) = seen.insert(core.value, &core.place.key) {
                let remedy = "name each CPU once; when there are more workers than cores, they share them in turn";
                report.refuse(&core.place, format!("is listed twice (see {first})"), remedy);
            }
        }
        if let Some(workers) = &self.workers
            && let Some(unused) = self.cores.get(usize::from(workers.value))
        {
            report.warn(&unused.place, format!("is not used: there are {} workers", workers.value));
        }
    }

    /// Which offloads may be used. One that needs another is off without it, and must not be asked for.
    fn settle_offloads(&self, report: &mut Report<'_>) -> Offloads {
        let mut offloads = Offloads::default();
        for (offload, switch) in &self.offloads {
            offloads = offloads.with(*offload, switch.value == Switch::On);
        }
        for (offload, needed) in OFFLOAD_NEEDS {
            if offloads.has(needed) {
                continue;
            }
            if let Some(switch) = switch(&self.offloads, offload).filter(|switch| switch.value == Switch::On) {
                let needed = needed.name();
                let remedy = format!("set {needed} = true, or remove {}", offload.name());
                report.refuse(&switch.place, format!("does not work without {needed}, which is false"), remedy);
            }
            offloads = offloads.with(offload, false);
        }
        offloads
    }

    /// What is for records is of no use where there are none.
    fn check_carriers(&self, report: &mut Report<'_>) {
        let mut carriers = self.peers.iter().map(|peer| peer.carrier.unwrap_or(self.carrier));
        if self.carrier != CarrierChoice::Quic || carriers.any(|carrier| carrier != CarrierChoice::Quic) {
            return;
        }
        for (place, is_set) in
            [(&self.copy_dscp.place, self.copy_dscp.value), (&self.fragments.place, !self.fragments.value)]
        {
            if is_set {
                report.warn(place, "has no effect where packets leave in QUIC datagrams: carrier is \"quic\"");
            }
        }
    }

    fn check_peers(&self, report: &mut Report<'_>) {
        let mut ids = BTreeMap::new();
        let mut names = BTreeMap::new();
        let mut builtin = BTreeMap::new();
        for peer in &self.peers {
            if let Some(name) = peer.name.as_ref().filter(|name| !name.value.is_empty())
                && let Some(first) = names.insert(name.value.to_lowercase(), &name.place.key)
            {
                if self.format == Format::Hyprspace {
                    report.warn(&name.place, format!("is the name of two peers (see {first})"));
                } else {
                    let problem = format!("is the name of two peers (see {first})");
                    report.refuse(&name.place, problem, "give each peer a name of its own; case does not count");
                }
            }
            let Some(id) = &peer.id else { continue };
            if let Some(first) = ids.insert(id.value, &id.place.key) {
                report.refuse(&id.place, format!("is listed twice (see {first})"), "keep one entry for each peer");
                continue;
            }
            if !is_ed25519(&id.value) {
                report.warn(&id.place, "has a key that is not Ed25519: this version cannot connect to that peer");
            }
            for address in builtin_addresses(&id.value) {
                if let Some(first) = builtin.insert(address, &id.place.key) {
                    report.refuse(
                        &id.place,
                        format!("has the same built-in address {address} as another peer (see {first})"),
                        "create a new key on one of the two with `ringlane init --force` and correct its id",
                    );
                }
            }
        }
    }

    fn check_routes(&self, report: &mut Report<'_>) {
        let total: usize = self.peers.iter().map(|peer| peer.routes.len()).sum();
        if total > ROUTES_MAX {
            let place = Place { key: "peers".to_owned(), ..Place::default() };
            report.refuse(
                &place,
                format!("have {total} routes"),
                format!("keep it to {ROUTES_MAX}, by wider prefixes"),
            );
        }
        let ids = self.peers.iter().filter_map(|peer| peer.id.as_ref());
        let builtin: BTreeMap<IpNet, &str> = ids
            .flat_map(|id| builtin_addresses(&id.value).map(|address| (IpNet::from(address), id.place.key.as_str())))
            .collect();
        for peer in &self.peers {
            let mut seen: BTreeMap<IpNet, &str> = BTreeMap::new();
            for route in &peer.routes {
                if let Some(owner) = builtin.get(&route.value.net) {
                    let problem = format!("is the built-in address of a peer (see {owner})");
                    report.refuse(
                        &route.place,
                        problem,
                        "remove it; built-in addresses are routed without being listed",
                    );
                }
                if let Some(key) = seen.insert(route.value.net, &route.place.key) {
                    report.refuse(&route.place, format!("is listed twice (see {key})"), "remove one of them");
                }
            }
        }
    }
}

impl Settings {
    /// Checks what only our own id can show: that we are not among our peers, and that no peer shares or is routed
    /// our built-in addresses. A wider prefix that contains them is harmless, as ours are local.
    pub fn own_peer_checks(&self, own: &PeerId) -> Result<(), ConfigError> {
        let own_addresses = builtin_addresses(own);
        let mut problems = Vec::new();
        for (position, peer) in self.peers.iter().enumerate() {
            let id_key = format!("peers[{position}].id");
            if peer.id == *own {
                let remedy = "remove this entry; list the other nodes only";
                problems.push(Problem::new(id_key, Some(format!("\"{own}\"")), "is this node's own id", remedy));
            } else if let Some(address) = builtin_addresses(&peer.id).into_iter().find(|a| own_addresses.contains(a)) {
                problems.push(Problem::new(
                    id_key,
                    Some(format!("\"{}\"", peer.id)),
                    format!("has the same built-in address {address} as this node"),
                    "create a new key on one of the two with `ringlane init --force`",
                ));
            }
            for (index, route) in peer.routes.iter().enumerate() {
                if own_addresses.iter().any(|address| IpNet::from(*address) == route.net) {
                    problems.push(Problem::new(
                        format!("peers[{position}].routes[{index}]"),
                        Some(format!("\"{}\"", route.net)),
                        "is this node's own built-in address",
                        "remove it",
                    ));
                }
            }
        }
        self.refuse_if_any(problems)
    }

    /// Checks that `workers` workers have a UDP port each; for when the count is not in the file.
    pub fn worker_port_checks(&self, workers: u8) -> Result<(), ConfigError> {
        let listen = self.control.listen.iter().enumerate();
        let listen = listen.map(|(index, address)| (address, format!("control.listen[{index}]")));
        let Err((problem, remedy)) = lane_ports(self.dataplane.port, workers, listen) else {
            return Ok(());
        };
        let port = Some(self.dataplane.port.to_string());
        self.refuse_if_any(vec![Problem::new("dataplane.port", port, problem, remedy)])
    }

    /// Checks that this process may use the cores its workers are to be pinned to; `allowed` are those it may.
    pub fn core_checks(&self, allowed: &[u16]) -> Result<(), ConfigError> {
        let cores = self.dataplane.cores.iter().enumerate().filter(|(_, core)| !allowed.contains(core));
        let problem = |(index, core): (usize, &u16)| {
            Problem::new(
                format!("dataplane.cores[{index}]"),
                Some(core.to_string()),
                "is not there, or this process may not use it",
                format!("write CPUs from {}, or remove cores", ranges(allowed)),
            )
        };
        self.refuse_if_any(cores.map(problem).collect())
    }

    fn refuse_if_any(&self, problems: Vec<Problem>) -> Result<(), ConfigError> {
        if problems.is_empty() {
            return Ok(());
        }
        Err(ConfigError { file: self.file.clone(), problems, omitted: 0 })
    }
}

/// The file's stem; it names directories and, unless the file says otherwise, the interface.
fn network_name(report: &mut Report<'_>) -> String {
    match report.file().file_stem().map(|stem| stem.to_str()) {
        Some(Some(stem)) if !stem.chars().any(char::is_control) => stem.to_owned(),
        _ => {
            let remedy = "rename it to <network>.toml in printable characters; the network is named after it";
            report.refuse(&Place::default(), "the file has no usable name", remedy);
            String::new()
        }
    }
}

/// What the file says of an offload.
fn switch(written: &[(Offload, Placed<Switch>)], offload: Offload) -> Option<&Placed<Switch>> {
    written.iter().find(|(of, _)| *of == offload).map(|(_, switch)| switch)
}

/// Ascending numbers as people and the kernel write them: `0-3, 8`.
fn ranges(numbers: &[u16]) -> String {
    let is_next = |a: &u16, b: &u16| a.checked_add(1) == Some(*b);
    let range = |run: &[u16]| match run {
        [first, .., last] => format!("{first}-{last}"),
        _ => run.iter().map(u16::to_string).collect(),
    };
    numbers.chunk_by(is_next).map(range).collect::<Vec<_>>().join(", ")
}

fn builtin_addresses(peer: &PeerId) -> [IpAddr; 2] {
    [builtin_ipv4(peer).into(), builtin_ipv6(peer).into()]
}

/// Whether UDP ports `port` to `port + workers - 1` exist and none is one of libp2p's; else the problem and remedy.
fn lane_ports<'a>(
    port: u16,
    workers: u8,
    listen: impl Iterator<Item = (&'a Multiaddr, String)> + Clone,
) -> Result<(), (String, String)> {
    let last = u32::from(port) + u32::from(workers.max(1)) - 1;
    if last > u32::from(u16::MAX) {
        let highest = u16::MAX - (u16::from(workers.max(1)) - 1);
        let problem = format!("leaves no port for each of {workers} workers: the last would be {last}");
        return Err((problem, format!("set dataplane.port to at most {highest}, or lower dataplane.workers")));
    }
    for (address, key) in listen.clone() {
        if udp_port(address).is_some_and(|taken| (u32::from(port)..=last).contains(&u32::from(taken))) {
            let problem = format!("collides with {key} ({address}): workers use UDP ports {port} to {last}");
            let free = free_lane_port(listen.map(|(address, _)| address));
            return Err((problem, format!("keep the two apart, for example with dataplane.port = {free}")));
        }
    }
    Ok(())
}

/// The first port, from the default on, from which even the greatest number of workers reaches none of libp2p's.
pub(super) fn free_lane_port<'a>(listen: impl Iterator<Item = &'a Multiaddr>) -> u16 {
    let taken: Vec<u16> = listen.filter_map(udp_port).collect();
    let ranges = (DEFAULT_PORT..).step_by(WORKERS_MAX).take(taken.len() + 1);
    let is_free = |start: &u16| !taken.iter().any(|port| (*start..*start + WORKERS_MAX as u16).contains(port));
    ranges.into_iter().find(is_free).unwrap_or(DEFAULT_PORT)
}

fn udp_port(address: &Multiaddr) -> Option<u16> {
    match address.iter().nth(1) {
        Some(Protocol::Udp(port)) => Some(port),
        _ => None,
    }
}

// Each listen address can spoil one range of ports, and the next one must still exist.
const _: () = assert!(DEFAULT_PORT as usize + (LISTEN_ADDRESSES_MAX + 2) * WORKERS_MAX <= u16::MAX as usize);
