//! The host's addresses change.

use std::time::Instant;

use ringlane_shared::config::Scope;
use tracing::{info, warn};

use super::nat::networks;
use super::{Control, deny_own};
use crate::addresses::{ListenPlan, lan, segments};

impl Control {
    pub(super) async fn handle_address_change(&mut self, now: Instant) {
        self.withdraw_connected().await;
        if let Some(portmap) = &mut self.portmap {
            portmap.handle_address_change(now);
        }
        let host = match self.netlink.host_addresses().await {
            Ok(host) => host,
            Err(error) => {
                warn!(%error, "cannot read the host's addresses");
                self.plan_is_open = true;
                return;
            }
        };
        deny_own(&mut self.node, host.iter().map(|address| address.prefix.addr()).collect());
        self.nat.set_networks(networks(&host), now);
        let lan = lan(&host, &self.settings.interface);
        if self.settings.control.web.scope == Scope::Lan {
            self.engine.set_lan(lan.clone());
        }
        self.engine.set_on_link(lan.clone(), now);
        self.node.set_lan(lan);
        let plan = ListenPlan::new(&self.settings.control.listen, &host, &self.settings.interface);
        // Before the plan is compared: link-local addresses and interfaces are not part of it.
        self.node.set_segments(segments(&plan, &host, &self.settings.interface));
        if plan == self.plan && !self.plan_is_open {
            return;
        }
        if plan != self.plan {
            info!(addresses = ?plan.lanes, "the host's addresses have changed");
        }
        self.plan_is_open = false;
        for error in self.node.set_listen_addresses(&plan.control) {
            warn!("{error}");
            self.plan_is_open = true;
        }
        for error in self.engine.set_local_addresses(&plan.lanes).err().unwrap_or_default() {
            warn!("{error}");
            self.plan_is_open = true;
        }
        for peer in self.engine.peers_with_lost_lanes() {
            // Its connections have lost the same address.
            if let Some(settings) = self.settings.peers.get(peer.position()) {
                self.node.seek(&settings.id, true);
            }
        }
        self.coordinator.set_addresses(&plan.lanes, now);
        self.plan = plan;
        self.plan_nat(now);
        self.engine.ask_stun_anew(now);
    }
}
