//! Where our peers were last seen, across restarts.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use libp2p::{Multiaddr, PeerId};
use ringlane_shared::config::{IdentitySettings, STATE_DIRECTORY, Settings};
use ringlane_shared::limits::{ADDRESS_TEXT_BYTES_MAX, PEER_CACHE_ADDRESSES_MAX, PEER_CACHE_BYTES_MAX, PEERS_MAX};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{Existing, NewFile, SECRET_MODE, StoreError, read_bounded, write_files};

/// Where the addresses of a network's peers are remembered: beside a key file of the default name, else at its path
/// with another extension, so that several nodes can keep their keys in one directory.
pub fn peer_cache_file(settings: &Settings) -> PathBuf {
    match &settings.identity {
        IdentitySettings::KeyFile(key) if key.file_name().is_some_and(|name| name != "identity.key") => {
            key.with_extension("peers.json")
        }
        IdentitySettings::KeyFile(key) => key.with_file_name("peers.json"),
        IdentitySettings::Inline(_) => Path::new(STATE_DIRECTORY).join(&settings.network).join("peers.json"),
    }
}

/// Addresses that peers were reached at, so that a node finds them again after a restart without any help. At most
/// [`PEERS_MAX`] peers with [`PEER_CACHE_ADDRESSES_MAX`] addresses each. Owned by the control thread.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PeerCache {
    peers: BTreeMap<PeerId, Vec<CachedAddress>>,
}

/// An address and when it last worked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CachedAddress {
    /// Where the peer was reached, without `/p2p/`.
    pub address: Multiaddr,
    /// When, in seconds since 1970.
    pub last_seen_unix_s: u64,
}

/// The file: peer id to addresses, newest first.
type PeerCacheFile = BTreeMap<String, Vec<CachedAddress>>;

impl PeerCache {
    /// Reads a cache file. One that is missing counts as empty; so does one that is damaged, with a warning, since a
    /// cache must never keep a node from starting.
    pub fn load(path: &Path) -> Self {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::default(),
            Err(error) => {
                warn!(path = %path.display(), %error, "cannot open the peer cache; starting without it");
                return Self::default();
            }
        };
        let parsed = read_bounded(file, PEER_CACHE_BYTES_MAX)
            .map_err(|error| error.to_string())
            .and_then(|bytes| serde_json::from_slice::<PeerCacheFile>(&bytes).map_err(|error| error.to_string()));
        match parsed {
            Ok(file) => Self::from_file(file),
            Err(error) => {
                warn!(path = %path.display(), error, "the peer cache is damaged; starting without it");
                Self::default()
            }
        }
    }

    fn from_file(file: PeerCacheFile) -> Self {
        let mut cache = Self::default();
        for (peer, addresses) in file {
            if let Ok(peer) = peer.parse() {
                for CachedAddress { address, last_seen_unix_s } in addresses.into_iter().rev() {
                    cache.remember(peer, address, last_seen_unix_s);
                }
            }
        }
        cache
    }

    /// The addresses of a peer, the one seen last first.
    pub fn addresses(&self, peer: &PeerId) -> impl Iterator<Item = &Multiaddr> {
        self.peers.get(peer).into_iter().flatten().map(|cached| &cached.address)
    }

    /// Notes that a peer was reached at an address. Past a bound, what was seen least recently is forgotten, and a
    /// peer that would be one too many is not remembered at all.
    pub fn remember(&mut self, peer: PeerId, address: Multiaddr, now_unix_s: u64) {
        let known = self.peers.contains_key(&peer);
        if !known && self.peers.len() >= PEERS_MAX || address.to_string().len() > ADDRESS_TEXT_BYTES_MAX {
            return;
        }
        let addresses = self.peers.entry(peer).or_default();
        addresses.retain(|cached| cached.address != address);
        let position = addresses.partition_point(|cached| cached.last_seen_unix_s > now_unix_s);
        addresses.insert(position, CachedAddress { address, last_seen_unix_s: now_unix_s });
        addresses.truncate(PEER_CACHE_ADDRESSES_MAX);
    }

    /// Forgets every peer that `is_configured` does not know.
    pub fn retain(&mut self, is_configured: impl Fn(&PeerId) -> bool) {
        self.peers.retain(|peer, _| is_configured(peer));
    }

    /// Replaces the cache file.
    pub fn save(&self, path: &Path) -> Result<(), StoreError> {
        let file: PeerCacheFile =
            self.peers.iter().map(|(peer, addresses)| (peer.to_base58(), addresses.clone())).collect();
        let encode = |error: serde_json::Error| StoreError::io("encode", path)(error.into());
        let contents = serde_json::to_vec_pretty(&file).map_err(encode)?;
        write_files(&[NewFile { path, contents: &contents, mode: SECRET_MODE }], Existing::Replace)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn address(port: usize) -> Multiaddr {
        format!("/ip4/192.0.2.1/udp/{port}/quic-v1").parse().unwrap()
    }

    #[test]
    fn the_peer_cache_survives_a_restart_newest_address_first() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("peers.json");
        let [here, gone] = [PeerId::random(), PeerId::random()];
        let mut cache = PeerCache::load(&path);
        assert_eq!(cache, PeerCache::default());
        for (port, seen) in [(1, 10), (2, 30), (3, 20), (1, 40)] {
            cache.remember(here, address(port), seen);
        }
        cache.remember(gone, address(9), 50);
        cache.save(&path).unwrap();
        let mut loaded = PeerCache::load(&path);
        assert_eq!(loaded, cache);
        assert!(loaded.addresses(&here).eq([&address(1), &address(2), &address(3)]));
        loaded.retain(|peer| *peer == here);
        assert_eq!(loaded.addresses(&gone).count(), 0);
    }

    #[test]
    fn the_peer_cache_is_bounded_and_forgets_the_oldest() {
        let mut cache = PeerCache::default();
        let peer = PeerId::random();
        for port in 1..=PEER_CACHE_ADDRESSES_MAX + 5 {
            cache.remember(peer, address(port), port as u64);
        }
        assert_eq!(cache.addresses(&peer).count(), PEER_CACHE_ADDRESSES_MAX);
        assert_eq!(cache.addresses(&peer).next(), Some(&address(PEER_CACHE_ADDRESSES_MAX + 5)));
        for _ in 0..PEERS_MAX + 5 {
            cache.remember(PeerId::random(), address(1), 1);
        }
        assert_eq!(cache.peers.len(), PEERS_MAX);
        cache.remember(peer, address(1), 99);
        assert_eq!(cache.addresses(&peer).next(), Some(&address(1)));
    }

    #[test]
    fn a_damaged_peer_cache_counts_as_empty() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("peers.json");
        for contents in [&b""[..], b"[", b"{\"x\": 1}", b"\xff", b"{\"not a peer\": []}"] {
            fs::write(&path, contents).unwrap();
            assert_eq!(PeerCache::load(&path), PeerCache::default());
        }
        fs::write(&path, vec![b' '; PEER_CACHE_BYTES_MAX + 1]).unwrap();
        assert_eq!(PeerCache::load(&path), PeerCache::default());
    }
}
