//! The four nodes of a lab, and the way that packets take between A and B.
//!
//! R and S are known to everybody with their addresses. Nobody is told an address of A's or B's, and these do not know each
//! other's: they meet as a NAT's inhabitants do, by others.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};

use serde_json::Value;
use toml::Value as Toml;

use super::kinds::Pair;
use super::lab::{NatLab, is_of_third_peer, public};
use crate::lab::Site;
use crate::node::{CONTROL_PORT, Node, RINGLANE, Setup, Status, name_of};

/// Where R and S listen besides, for those who get out by nothing else.
const LAST_RESORT_PORT: u16 = 443;
/// Of A and B, and so the lanes between them.
pub(crate) const WORKERS: u8 = 2;

/// Where a machine is too busy for a bound in seconds: how many times as long as R and S, which nothing keeps apart, took for
/// lanes the others may take.
pub(crate) const TIMES_USUAL: u32 = 5;

/// Configurations of all four, written.
#[derive(Debug)]
pub(crate) struct Setups([Setup; 4]);

const SITES: [Site; 4] = [Site::R, Site::S, Site::A, Site::B];

impl Setups {
    pub(crate) fn init(nat: &NatLab, pair: Pair) -> Self {
        let mut setups =
            SITES.map(|site| Setup::init(nat.lab(), site).workers(if is_third(site) { 1 } else { WORKERS }));
        for setup in &mut setups {
            let listen = listened_at(setup.site, ["0.0.0.0", "::"]);
            setup.set("control", "listen", Toml::Array(listen.into_iter().map(Toml::String).collect()));
            // Those in one network are to find each other as neighbours do.
            setup.set("control", "mdns", pair == Pair::SameLan && !is_third(setup.site));
        }
        for ours in 0..SITES.len() {
            for theirs in 0..SITES.len() {
                if let Ok([ours, theirs]) = setups.get_disjoint_mut([ours, theirs]) {
                    know(ours, theirs);
                }
            }
        }
        setups.iter().for_each(Setup::write);
        Self(setups)
    }

    /// Changes all configurations, and writes them again.
    pub(crate) fn each(&mut self, change: impl Fn(&mut Setup)) {
        self.0.iter_mut().for_each(change);
        self.0.iter().for_each(Setup::write);
    }

    pub(crate) fn of(&self, site: Site) -> &Setup {
        self.0.iter().find(|setup| setup.site == site).expect("all four sites have one")
    }

    /// Has A and B send packets on libp2p's streams alone.
    pub(crate) fn only_streams(&mut self) {
        for setup in self.0.iter_mut().filter(|setup| !is_third(setup.site)) {
            setup.set("dataplane", "carrier", "stream");
            setup.write();
        }
    }

    /// Has R and S run two workers each, so that they can answer STUN from another port than they were asked at.
    pub(crate) fn with_two_workers_outside(mut self) -> Self {
        for setup in self.0.iter_mut().filter(|setup| is_third(setup.site)) {
            setup.set("dataplane", "workers", 2);
            setup.write();
        }
        self
    }

    /// Starts R and S, and waits until they have each other.
    pub(crate) fn third_up(&self) -> [Node; 2] {
        let mut nodes = [Site::R, Site::S].map(|site| Node::up(self.of(site)));
        nodes[0].wait_direct(&[Site::S], 1);
        nodes[1].wait_direct(&[Site::R], 1);
        nodes
    }

    /// Starts A and B; returns before they are ready.
    pub(crate) fn ends_up(&self) -> [Node; 2] {
        [Site::A, Site::B].map(|site| Node::up(self.of(site)))
    }
}

fn is_third(site: Site) -> bool {
    matches!(site, Site::R | Site::S)
}

/// Adds a peer: with addresses if it is R or S, with networks if it is not.
fn know(setup: &mut Setup, peer: &Setup) {
    let (name, id) = (name_of(peer.site), &peer.id);
    if is_third(peer.site) {
        let (v4, v6) = public(peer.site);
        setup.add_peer(&name, id, &listened_at(peer.site, [&v4.to_string(), &v6.to_string()]), &[]);
    } else {
        setup.add_peer(&name, id, &[], &peer.site.networks());
    }
}

/// Where a site's node listens, at an IPv4 and an IPv6 address.
fn listened_at(site: Site, [v4, v6]: [&str; 2]) -> Vec<String> {
    let hosts = [format!("/ip4/{v4}"), format!("/ip6/{v6}")];
    let usual = |host: &String| [format!("{host}/udp/{CONTROL_PORT}/quic-v1"), format!("{host}/tcp/{CONTROL_PORT}")];
    let last = hosts.iter().filter(|_| is_third(site)).map(|host| format!("{host}/tcp/{LAST_RESORT_PORT}"));
    hosts.iter().flat_map(usual).chain(last).collect()
}

/// The way packets take from one node to the other, as it says itself.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Way {
    /// None.
    Nothing,
    /// Through somebody else.
    Relayed(Medium),
    /// From one to the other.
    Direct(Medium),
}

/// What packets travel in.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Medium {
    /// A libp2p stream, on connections of these transports.
    Stream { transports: Vec<String> },
    /// Lanes, in QUIC datagrams or not.
    Lanes { count: usize, is_quic: bool, place: Place },
}

/// Where the other ends of lanes are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Place {
    Lan,
    V4,
    V6,
    Mixed,
}

impl Way {
    /// The way from the node of `setup` to a peer.
    pub(crate) fn of(node: &Node, setup: &Setup, peer: Site) -> Self {
        let Some(status) = node.try_status() else { return Self::Nothing };
        let Some(entry) = status.peer(peer) else { return Self::Nothing };
        match entry["carrier"].as_str() {
            Some("stream") => {
                let medium = Medium::Stream { transports: transports(setup, peer) };
                if entry["state"] == "relayed" { Self::Relayed(medium) } else { Self::Direct(medium) }
            }
            Some(carrier) => Self::by_lanes(&remotes(&status, peer), carrier == "quic"),
            None => Self::Nothing,
        }
    }

    fn by_lanes(remotes: &[SocketAddr], is_quic: bool) -> Self {
        let places: Vec<_> = remotes.iter().map(|remote| Place::of(remote.ip())).collect();
        let Some(&first) = places.first() else { return Self::Nothing };
        let place = if places.iter().all(|place| *place == first) { first } else { Place::Mixed };
        let medium = Medium::Lanes { count: remotes.len(), is_quic, place };
        if remotes.iter().any(|remote| is_of_third_peer(remote.ip())) {
            Self::Relayed(medium)
        } else {
            Self::Direct(medium)
        }
    }

    /// Whether nothing is missing of it.
    pub(crate) fn is_whole(&self) -> bool {
        match self {
            Self::Direct(Medium::Lanes { count, .. }) => *count == usize::from(WORKERS),
            Self::Nothing | Self::Relayed(_) | Self::Direct(Medium::Stream { .. }) => false,
        }
    }
}

impl Place {
    fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) if address.is_private() => Self::Lan,
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => write!(out, "none"),
            Self::Relayed(medium) => write!(out, "relayed: {medium}"),
            Self::Direct(medium) => write!(out, "{medium}"),
        }
    }
}

impl fmt::Display for Medium {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stream { transports } => write!(out, "stream over {}", transports.join(", ")),
            Self::Lanes { count, is_quic, place } => {
                let plural = if *count == 1 { "" } else { "s" };
                let place = match place {
                    Place::Lan => "LAN",
                    Place::V4 => "IPv4",
                    Place::V6 => "IPv6",
                    Place::Mixed => "several networks",
                };
                write!(out, "{count} lane{plural}, {place}{}", if *is_quic { ", in QUIC" } else { "" })
            }
        }
    }
}

/// Where a node's lanes to a peer end.
pub(crate) fn remotes(status: &Status, peer: Site) -> Vec<SocketAddr> {
    let lanes = status.peer(peer).and_then(|peer| peer["lanes"].as_array()).cloned().unwrap_or_default();
    let remote = |lane: &Value| lane["remote"].as_str()?.parse::<SocketAddr>().ok();
    lanes.iter().filter_map(remote).collect()
}

/// The transports of a node's connections to a peer, each once.
fn transports(setup: &Setup, peer: Site) -> Vec<String> {
    let connections = connections(setup, peer);
    let transport = |connection: &Value| connection["transport"].as_str().map(str::to_owned);
    let mut transports: Vec<_> = connections.iter().filter_map(transport).collect();
    transports.sort_unstable();
    transports.dedup();
    transports
}

/// A node's libp2p connections to a peer, as `ringlane peers` lists them.
fn connections(setup: &Setup, peer: Site) -> Vec<Value> {
    let mut peers = Command::new(RINGLANE);
    peers.args(["peers", "--json", "--interface", &setup.interface]).stdin(Stdio::null());
    let output = peers.output().expect("peers can be run");
    let connections: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap_or_default();
    connections.into_iter().filter(|connection| connection["name"] == name_of(peer).as_str()).collect()
}

impl Setups {
    /// Whether packets of a node to a peer go through this third one, as far as lanes and connections tell.
    pub(crate) fn is_relay(&self, third: Site, node: &Node, site: Site, peer: Site) -> bool {
        let (v4, v6) = public(third);
        let is_remote = |remote: SocketAddr| remote.ip() == v4 || remote.ip() == v6;
        let id = &self.of(third).id;
        let is_through = |connection: &Value| {
            let remote = connection["remote"].as_str().unwrap_or_default();
            remote.contains("/p2p-circuit") && (remote.contains(&format!("/{v4}/")) || remote.contains(id.as_str()))
        };
        remotes(&node.status(), peer).into_iter().any(is_remote)
            || connections(self.of(site), peer).iter().any(is_through)
    }
}
