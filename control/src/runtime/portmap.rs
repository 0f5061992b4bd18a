//! Asking routers for port mappings, and telling others what comes of it.

use std::time::{Duration, Instant};

use libp2p::identity::Keypair;
use ringlane_shared::config::{Scope, Settings};
use tracing::{debug, warn};

use super::Control;
use crate::portmap::{Host, PortMapper, PortmapEvent};

/// How long routers may take to take mappings back.
pub(super) const RELEASE_LIMIT: Duration = Duration::from_secs(2);

/// Nothing if it is switched off, or if nobody from outside is admitted: then no gateway sees a packet.
pub(super) fn portmap(settings: &Settings, keypair: &Keypair) -> Option<PortMapper> {
    if !settings.nat.port_mapping || settings.control.web.scope == Scope::Lan {
        return None;
    }
    let secret = keypair.clone().try_into_ed25519().inspect_err(|error| warn!(%error, "no port mappings")).ok()?;
    Some(PortMapper::new(secret.secret().as_ref(), Instant::now()))
}

impl Control {
    pub(super) async fn handle_portmap(&mut self, event: PortmapEvent) {
        match event {
            PortmapEvent::Look => self.look_for_gateways().await,
            PortmapEvent::Changed => {
                let Some(portmap) = &self.portmap else { return };
                debug!(lanes = ?portmap.lanes(), "mapped ports of lanes");
                let control = portmap.control();
                self.node.set_mapped_addresses(control);
                self.offer_candidates(Instant::now());
            }
        }
    }

    async fn look_for_gateways(&mut self) {
        let Some(portmap) = &mut self.portmap else { return };
        let found = (self.netlink.gateways(&self.settings.interface).await, self.netlink.host_addresses().await);
        let (gateways, addresses) = match found {
            (Ok(gateways), Ok(addresses)) => (gateways, addresses),
            (Err(error), _) | (_, Err(error)) => {
                debug!(%error, "cannot read who the routers are");
                return;
            }
        };
        let mut plan = self.plan.clone();
        plan.control.retain(|address| self.node.may_listen(address));
        let workers = self.workers.commands.len() as u8;
        let host =
            Host { gateways, addresses: &addresses, plan: &plan, first_port: self.settings.dataplane.port, workers };
        portmap.set_host(&host, Instant::now());
        // Another listener may be behind a mapping that stands.
        let control = portmap.control();
        self.node.set_mapped_addresses(control);
        self.offer_candidates(Instant::now());
    }
}
