//! Answers to the command line.

use tracing::warn;

use super::Control;
use crate::admin::status::NodeStatus;
use crate::admin::{AdminCommand, AdminRequest};
use crate::report::Reporter;
use crate::swarm::ExchangeToken;

impl Control {
    /// Answers a client. Returns whether the node is to stop.
    pub(super) async fn handle_admin(&self, request: AdminRequest) -> bool {
        match request.command {
            AdminCommand::Status => request.reply.send(self.status().await),
            AdminCommand::Peers => request.reply.send(self.reporter().connections()),
            AdminCommand::Routes => request.reply.send(self.reporter().routes()),
            AdminCommand::Metrics => request.reply.send(self.exposition().await),
            AdminCommand::Stop => {
                request.reply.send(());
                return true;
            }
        }
        false
    }

    pub(super) async fn status(&self) -> NodeStatus {
        let queue = self.netlink.transmit_queue(&self.settings.interface).await;
        let queue = queue.inspect_err(|error| warn!(%error, "cannot read the TUN's queue")).ok();
        self.reporter().node(queue)
    }

    pub(super) fn reporter(&self) -> Reporter<'_, ExchangeToken> {
        Reporter {
            settings: &self.settings,
            id: self.id,
            version: self.version,
            started: self.started,
            coordinator: &self.coordinator,
            node: &self.node,
            packets: &self.packets,
            movement: self.engine.movement(),
            exchange: self.exchange.counters(),
            listener_drops: self.engine.drops(),
            workers: &self.workers.counters,
            services: &self.services,
            installed: &self.installed,
        }
    }
}
