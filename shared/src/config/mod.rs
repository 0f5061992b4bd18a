//! A configuration file, parsed once at the edge into typed settings.
//!
//! Two formats are read: Ringlane's TOML and, unchanged, Hyprspace's JSON. What comes out is the same [`Settings`];
//! everything behind this module works with values and never sees the file.

use std::path::PathBuf;

use ipnet::IpNet;
use multiaddr::Multiaddr;

use crate::id::PeerId;

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
    /// The configured peers, in the file's order; the position is the [`crate::id::PeerIndex`].
    pub peers: Vec<PeerSettings>,
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
}

/// The workers' settings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DataplaneSettings {
    /// How many workers; `None` means one per core available to the process.
    pub workers: Option<u8>,
    /// Worker i's lanes use UDP port `port + i`.
    pub port: u16,
    /// MTU of the TUN interface in bytes.
    pub mtu: u16,
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
    pub routes: Vec<IpNet>,
}
