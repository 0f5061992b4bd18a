//! What `netcheck` answers: what lies between this node and everybody else.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::mappings::MappingsStatus;
use super::nat::{CandidateStatus, HostStatus, ObservedStatus};
use super::relay::{LoadStatus, RelayNode};
use super::underlay::UnderlayStatus;

/// What was found out, by a running node or without one.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct NetcheckStatus {
    /// Whether a running node was asked. Without one nothing is known of relays, paths and reachability, and the ports that
    /// are looked at are not those of lanes if these are in use.
    pub is_running: bool,
    /// IPv4.
    pub ipv4: FamilyStatus,
    /// IPv6.
    pub ipv6: FamilyStatus,
    /// What is known of the NAT before each of our addresses, in full.
    pub hosts: Vec<HostStatus>,
    /// Where others see the lane ports, if that is elsewhere.
    pub candidates: Vec<CandidateStatus>,
    /// Where others see libp2p's ports: peers say so of their connections, or, where no node runs, STUN servers of QUIC's port.
    pub control: Vec<ObservedStatus>,
    /// The STUN servers that are configured.
    pub stun_servers: Vec<StunServerStatus>,
    /// The UDP ports of lanes, one for each worker.
    pub lane_ports: Vec<u16>,
    /// The multiaddrs that libp2p listens on.
    pub listen: Vec<String>,
    /// Whether peers outside have reached this node (AutoNAT); `null` while none has told.
    pub is_reachable: Option<bool>,
    /// Multiaddrs at which peers outside have found libp2p, or that a router maps to it.
    pub reachable_at: Vec<String>,
    /// What routers were asked for.
    pub mappings: MappingsStatus,
    /// Connected peers that offer to be relays.
    pub relays: Vec<RelayCheck>,
    /// The smallest and the largest UDP payload that paths of lanes are known to carry; empty without lanes.
    pub path_mtu_bytes: Vec<u16>,
    /// What of the underlay is used, and through what.
    pub underlay: UnderlayStatus,
    /// Addresses of peers that were tried over TCP; none where a node runs, which tries them all the time.
    pub contacts: Vec<ContactCheck>,
    /// What could be better, and how.
    pub advice: Vec<AdviceStatus>,
}

/// One family of addresses.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct FamilyStatus {
    /// What there is, in a word: `absent` (no route out of our networks), `udp_blocked`, `unknown` (nobody beyond our networks
    /// was asked, or has answered yet), `open`, `no_nat`, `firewall`, `full_cone`, `address_restricted`,
    /// `address_restricted_or_less`, `port_restricted`, `cone` or `symmetric`.
    pub kind: String,
    /// Our address on the way out.
    pub source: Option<IpAddr>,
    /// The MTU of the way out, as the kernel knows it.
    pub mtu_bytes: Option<u32>,
    /// Whether UDP is blocked; `null` if nobody was asked.
    pub is_udp_blocked: Option<bool>,
    /// Whether something translates our addresses; `null` if nobody has told.
    pub is_translated: Option<bool>,
    /// Whether what we send to our own outside address comes back to us; `null` if that was not tried.
    pub hairpins: Option<bool>,
    /// What others see of our lane ports.
    pub outside: Vec<SocketAddr>,
}

/// A configured STUN server.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct StunServerStatus {
    /// Its name and port, as configured.
    pub server: String,
    /// What the name stood for when it was last known; empty if it never was.
    pub addresses: Vec<SocketAddr>,
    /// Why it could not be looked up the last time; `null` if it could, or has not been yet.
    pub problem: Option<String>,
}

/// A peer that offers to be a relay.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RelayCheck {
    /// Who.
    #[serde(flatten)]
    pub node: RelayNode,
    /// Whether this node can be reached through it.
    pub reserved: bool,
    /// How much it says that it has to do; `null` if it has not lately.
    #[serde(default)]
    pub load: Option<LoadStatus>,
    /// Round-trip time to it, if it was measured.
    pub rtt_us: Option<u64>,
    /// What the connection to it runs over.
    pub transport: Option<String>,
}

/// An address that was tried.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ContactCheck {
    /// Whose.
    #[serde(flatten)]
    pub node: RelayNode,
    /// The multiaddr.
    pub address: String,
    /// How long a TCP connection took; `null` if there was none.
    pub took_us: Option<u64>,
    /// Why there was none.
    pub problem: Option<String>,
}

/// What could be better.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct AdviceStatus {
    /// Its stable name; `docs/cli.md` lists them.
    pub code: String,
    /// What and how, in a sentence.
    pub text: String,
}
