//! A configuration file, parsed once at the edge into typed settings.
//!
//! Two formats are read: Ringlane's TOML and, unchanged, Hyprspace's JSON. What comes out is the same [`Settings`];
//! everything behind this module works with values and never sees the file.

mod discovery;
mod dns;
mod error;
mod hyprspace;
mod metrics;
mod nat;
mod relay;
mod routes;
mod services;
mod toml;
mod tree;
mod validate;
mod value;
mod web;

use std::path::{Path, PathBuf};

use multiaddr::Multiaddr;

pub use self::discovery::{
    DhtMode, DiscoverySettings, PUBLIC_BOOTSTRAP, PUBLIC_ROUTER, RouterSettings, RouterUrl, bootstrap_address,
};
pub use self::dns::{DEFAULT_DOMAIN, DnsSettings};
use self::error::Report;
pub use self::error::{ConfigError, Problem};
pub use self::hyprspace::parse_hyprspace;
pub use self::metrics::{METRICS_PORT_VARIABLE, MetricsSettings};
pub use self::nat::{NatSettings, StunServer};
pub use self::relay::{RELAY_RATE_MBIT_DEFAULT, RelayServe, RelaySettings};
pub use self::routes::{RouteSettings, parse_network};
pub use self::services::{ServiceSettings, ServiceTarget};
pub use self::toml::{carrier_word, cipher_word, parse_toml};
use self::tree::Place;
pub use self::web::{CertificateFiles, ProxySettings, Scope, WebSettings};
use crate::id::PeerId;
use crate::lane::keys::CipherChoice;
use crate::limits::CONFIG_BYTES_MAX;
use crate::plane::{CarrierChoice, Engine, Offload, Offloads, OuterMarks, RekeyLimits};

/// Where a network's key and peer cache live unless the configuration says otherwise: in a directory of its name.
pub const STATE_DIRECTORY: &str = "/var/lib/ringlane";

/// Default listen addresses: any address, the port that Hyprspace's nodes use, so that one can replace the other
/// behind the same firewall rule.
pub const DEFAULT_LISTEN: [&str; 4] =
    ["/ip4/0.0.0.0/udp/8001/quic-v1", "/ip4/0.0.0.0/tcp/8001", "/ip6/::/udp/8001/quic-v1", "/ip6/::/tcp/8001"];

/// Default UDP port of worker 0's lanes: near the control port, with room below it for several nodes on a host.
pub const DEFAULT_PORT: u16 = 8100;

/// Everything a configuration file says, validated, with defaults filled in.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The file it came from, for messages.
    pub file: PathBuf,
    /// The network's name: the file's stem. Default key file and interface are named after it.
    pub network: String,
    /// Name of the TUN interface: 1 to 15 bytes the kernel accepts.
    pub interface: String,
    /// Where our key is.
    pub identity: IdentitySettings,
    /// The control thread's settings.
    pub control: ControlSettings,
    /// The workers' settings.
    pub dataplane: DataplaneSettings,
    /// The name server's settings.
    pub dns: DnsSettings,
    /// The metrics' settings.
    pub metrics: MetricsSettings,
    /// The settings about NATs.
    pub nat: NatSettings,
    /// The relays' settings.
    pub relay: RelaySettings,
    /// The configured peers, in the file's order; the position is the [`crate::id::PeerIndex`].
    pub peers: Vec<PeerSettings>,
    /// The services this node offers, ordered by name.
    pub services: Vec<ServiceSettings>,
    /// What the file asks for and this version does not do, one line each; for the log.
    pub warnings: Vec<String>,
}

/// Reads a configuration of either format: JSON if the file's name ends in `.json` or the text begins with `{`.
///
/// `file` is where the text came from: messages name it, relative paths start at its directory, and its stem is the
/// network's name.
pub fn parse(text: &str, file: &Path) -> Result<Settings, ConfigError> {
    let named_json = file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
    if named_json || text.trim_start().starts_with('{') { parse_hyprspace(text, file) } else { parse_toml(text, file) }
}

/// Reads one address to listen on, as in `control.listen`; the error says what is wrong and what to write.
pub fn parse_listen_address(text: &str) -> Result<Multiaddr, String> {
    value::listen_address(text).map_err(|flaw| format!("{}; {}", flaw.problem, flaw.remedy))
}

/// Reads a peer's name; the error says what is wrong and what to write.
pub fn parse_peer_name(text: &str) -> Result<String, String> {
    value::peer_name(text).map_err(|flaw| format!("{}; {}", flaw.problem, flaw.remedy))
}

/// Bounds the work a hostile file can cause.
fn is_too_long(text: &str, report: &mut Report<'_>) -> bool {
    if text.len() <= CONFIG_BYTES_MAX {
        return false;
    }
    let problem = format!("the file has {} bytes", text.len());
    report.refuse(&Place::default(), problem, format!("keep it to {CONFIG_BYTES_MAX}"));
    true
}

/// Relative paths are relative to the configuration file.
fn beside(file: &Path, path: &str) -> PathBuf {
    file.parent().unwrap_or(Path::new("")).join(path)
}

/// Where our Ed25519 key is.
#[derive(Clone)]
pub enum IdentitySettings {
    /// In a file of its own, mode 0600: multibase of the libp2p private key protobuf, as Hyprspace's.
    KeyFile(PathBuf),
    /// In the configuration itself (Hyprspace's `privateKey`), same encoding.
    Inline(libp2p_identity::Keypair),
}

impl std::fmt::Debug for IdentitySettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::KeyFile(path) => f.debug_tuple("KeyFile").field(path).finish(),
            Self::Inline(_) => f.write_str("Inline(..)"),
        }
    }
}

/// The control thread's settings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ControlSettings {
    /// libp2p listen addresses; unspecified IP addresses stand for all of the host's usable ones.
    pub listen: Vec<Multiaddr>,
    /// Whether to find peers on the local network by mDNS.
    pub mdns: bool,
    /// How peers are found beyond that.
    pub discovery: DiscoverySettings,
    /// Whether addresses of private networks are neither dialled nor accepted, nor used by lanes; turns mDNS off.
    pub filter_private_addresses: bool,
    /// What of the underlay may be used, and through what.
    pub web: WebSettings,
}

/// The workers' settings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DataplaneSettings {
    /// How many workers; `None` means one per entry of [`Self::cores`], or per core available to the process.
    pub workers: Option<u8>,
    /// Worker i's lanes use UDP port `port + i`.
    pub port: u16,
    /// MTU of the TUN interface in bytes.
    pub mtu: u16,
    /// The CPUs workers are pinned to, worker i to `cores[i % len]`; each once, at most
    /// [`WORKERS_MAX`](crate::limits::WORKERS_MAX). When empty, those available to the process, in order.
    pub cores: Vec<u16>,
    /// How long in microseconds an idle worker looks again before it sleeps; at most
    /// [`BUSY_POLL_US_MAX`](crate::limits::BUSY_POLL_US_MAX).
    pub busy_poll_us: u32,
    /// Length of each worker's TUN queue in packets.
    pub tun_queue_packets: u32,
    /// The offloads that may be used, without those that lack one they need. The sentinel is allowed here only if the
    /// file says so; see [`Self::offloads_on`].
    pub offloads: Offloads,
    /// Whether [`Offload::UdpSentinel`] is used.
    pub udp_sentinel: Switch,
    /// What moves packets between workers and the kernel.
    pub engine: Engine,
    /// How packets shall reach peers that say nothing else.
    pub carrier: CarrierChoice,
    /// Which AEADs we are willing to use.
    pub cipher: CipherChoice,
    /// When lanes get new keys.
    pub rekey: RekeyLimits,
    /// What all workers together send at most, in Mbit/s; `None` for as fast as it goes.
    pub rate_mbit: Option<u32>,
    /// Whether packets larger than a record of their path travel in fragments.
    pub fragments: bool,
    /// What outer headers say of the packets inside.
    pub outer_marks: OuterMarks,
    /// Longest silence of a lane that is not used, in seconds.
    pub keep_alive_seconds: u16,
}

impl DataplaneSettings {
    /// The offloads to use on a kernel that needs the sentinel, or does not.
    pub fn offloads_on(&self, kernel_needs_sentinel: bool) -> Offloads {
        let sentinel = match self.udp_sentinel {
            Switch::Auto => kernel_needs_sentinel && self.offloads.has(Offload::UdpGso),
            Switch::On => true,
            Switch::Off => false,
        };
        self.offloads.with(Offload::UdpSentinel, sentinel)
    }
}

/// Something that is used, or not, or when it is needed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Switch {
    /// The node finds out whether it is needed.
    #[default]
    Auto,
    /// Used.
    On,
    /// Not used.
    Off,
}

/// One configured peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerSettings {
    /// Its name for people; may be empty.
    pub name: String,
    /// Who it is.
    pub id: PeerId,
    /// Addresses to dial, without the `/p2p/` part; may be empty.
    pub addresses: Vec<Multiaddr>,
    /// Networks behind it, host bits cleared; its built-in addresses are not listed.
    pub routes: Vec<RouteSettings>,
    /// How packets shall reach it, if not as `dataplane.carrier` says.
    pub carrier: Option<CarrierChoice>,
}
