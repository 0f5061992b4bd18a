//! How the node is to find its peers: what configuration and environment say, and SIGUSR1.

use ringlane_shared::config::{DhtMode, Scope, Settings};
use tracing::{info, warn};

use super::{Control, ControlError};
use crate::environment::{Environment, kubo_address};
use crate::swarm::{Discovery, swarm_key};

/// A swarm key that is missing or malformed ends the start: without it the network would not be the private one that was
/// asked for.
pub(super) fn discovery(settings: &Settings, environment: &Environment) -> Result<Discovery, ControlError> {
    let configured = &settings.control.discovery;
    let file = environment.swarm_key.as_ref().or(configured.swarm_key.as_ref());
    let swarm_key = file.map(|file| swarm_key::read(file)).transpose()?;
    if let Some(key) = &swarm_key {
        let fingerprint = key.fingerprint();
        info!(%fingerprint, "this network has a swarm key: libp2p uses TCP only, and QUIC listen addresses are not used");
    }
    let is_lan_only = settings.control.web.scope == Scope::Lan;
    if is_lan_only && environment.ipfs_api.is_some() {
        warn!("HYPRSPACE_IPFS_API is not used: control.scope is \"lan\"");
    }
    let kubo = environment.ipfs_api.as_deref().filter(|_| !is_lan_only).and_then(|text| {
        let address = kubo_address(text);
        if address.is_none() {
            warn!(value = text, "HYPRSPACE_IPFS_API is not used: write it as /ip4/127.0.0.1/tcp/5001");
        }
        address
    });
    let routers = configured.delegated_routers.clone();
    if configured.dht == DhtMode::Off && !configured.bootstrap.is_empty() {
        warn!("control.bootstrap has no effect: control.dht is off");
    }
    Ok(Discovery { dht: configured.dht, bootstrap: configured.bootstrap.clone(), routers, kubo, swarm_key })
}

impl Control {
    /// SIGUSR1, which Hyprspace calls Rebootstrap: looks for everybody at once.
    pub(super) fn rediscover(&mut self) {
        info!("told by SIGUSR1 to look for all peers at once");
        self.node.rediscover();
    }
}
