//! Configuration files.

use std::path::Path;

use ringlane_shared::config::{ConfigError, Settings, parse_hyprspace, parse_toml};
use ringlane_shared::limits::{
    ADDRESSES_PER_PEER_MAX, BUSY_POLL_US_MAX, CORE_MAX, INNER_MTU_MAX, INNER_MTU_MIN, PEERS_MAX, ROUTES_PER_PEER_MAX,
    SERVICES_MAX, TUN_QUEUE_PACKETS_MAX, TUN_QUEUE_PACKETS_MIN, WORKERS_MAX,
};
use ringlane_shared::plane::Offload;

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
    let dataplane = &settings.dataplane;
    assert!(dataplane.cores.len() <= WORKERS_MAX && dataplane.cores.iter().all(|core| *core <= CORE_MAX));
    assert!(dataplane.busy_poll_us <= u32::from(BUSY_POLL_US_MAX));
    assert!((TUN_QUEUE_PACKETS_MIN.into()..=TUN_QUEUE_PACKETS_MAX.into()).contains(&dataplane.tun_queue_packets));
    for offloads in [false, true].map(|needed| dataplane.offloads_on(needed)) {
        assert!(offloads.has(Offload::TunChecksum) || !offloads.has(Offload::TunTso) && !offloads.has(Offload::TunUso));
        assert!(offloads.has(Offload::UdpGso) || !offloads.has(Offload::UdpSentinel));
    }
    assert!(settings.services.len() <= SERVICES_MAX);
    for (position, service) in settings.services.iter().enumerate() {
        assert!(settings.services[..position].iter().all(|other| other.id != service.id));
        let peers = service.allow.iter().flatten().chain(&service.deny);
        assert!(peers.into_iter().all(|peer| peer.position() < settings.peers.len()));
    }
    assert!(settings.peers.len() <= PEERS_MAX);
    for (position, peer) in settings.peers.iter().enumerate() {
        assert!(peer.addresses.len() <= ADDRESSES_PER_PEER_MAX && peer.routes.len() <= ROUTES_PER_PEER_MAX);
        assert!(peer.routes.iter().all(|route| route.net == route.net.trunc()));
        assert!(settings.peers[..position].iter().all(|other| other.id != peer.id));
    }
}
