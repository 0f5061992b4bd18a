//! The host's addresses change.

use std::time::Instant;

use tracing::{info, warn};

use super::{Control, deny_own};
use crate::addresses::{ListenPlan, lan, segments};
use crate::swarm::address::ip_of;

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
        let lan = lan(&host, &self.settings.interface);
        self.nat.set_networks(lan.clone(), now);
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
        self.seek_all_cut_off(&plan);
        self.coordinator.set_addresses(&plan.lanes, now);
        self.plan = plan;
        self.plan_nat(now);
        self.engine.ask_stun_anew(now);
    }

    /// Looks for every peer that lanes or connections to may have left from an address that is gone: TCP would take minutes
    /// to notice, and relays are reached by such connections too.
    fn seek_all_cut_off(&mut self, plan: &ListenPlan) {
        let without_lane = self.engine.peers_with_lost_lanes();
        for (position, settings) in self.settings.peers.iter().enumerate() {
            let mut remotes = self.node.connections(&settings.id).filter_map(|connection| ip_of(&connection.remote));
            let is_doubted = remotes.any(|remote| plan.has_lost_family_of(remote, &self.plan));
            drop(remotes);
            if is_doubted || without_lane.iter().any(|peer| peer.position() == position) {
                self.node.seek(&settings.id, true);
            }
        }
    }
}
