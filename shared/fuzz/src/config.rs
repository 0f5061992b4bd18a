//! Configuration files.

use std::path::Path;

use ringlane_shared::config::{ConfigError, Settings, parse_hyprspace, parse_toml};
use ringlane_shared::limits::{
    ADDRESSES_PER_PEER_MAX, INNER_MTU_MAX, INNER_MTU_MIN, PEERS_MAX, ROUTES_PER_PEER_MAX, WORKERS_MAX,
};

/// Ringlane's own format.
pub fn config_toml(file: &[u8]) -> bool {
    check(file, Path::new("/etc/ringlane/site.toml"), parse_toml)
}

/// Hyprspace's format.
pub fn config_json(file: &[u8]) -> bool {
    check(file, Path::new("/etc/ringlane/site.json"), parse_hyprspace)
}

fn check(file: &[u8], path: &Path, parse: fn(&str, &Path) -> Result<Settings, ConfigError>) -> bool {
    let Ok(text) = std::str::from_utf8(file) else { return false };
    match parse(text, path) {
        Ok(settings) => {
            bounds_hold(&settings);
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}

fn bounds_hold(settings: &Settings) {
    assert!((1..=15).contains(&settings.interface.len()));
    assert!((INNER_MTU_MIN..=INNER_MTU_MAX).contains(&settings.dataplane.mtu));
    assert!(settings.dataplane.workers.is_none_or(|n| (1..=WORKERS_MAX).contains(&usize::from(n))));
    assert!(settings.peers.len() <= PEERS_MAX);
    for (position, peer) in settings.peers.iter().enumerate() {
        assert!(peer.addresses.len() <= ADDRESSES_PER_PEER_MAX && peer.routes.len() <= ROUTES_PER_PEER_MAX);
        assert!(peer.routes.iter().all(|route| *route == route.trunc()));
        assert!(settings.peers[..position].iter().all(|other| other.id != peer.id));
    }
}
