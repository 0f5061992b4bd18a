//! Answers to the command line.

use std::time::{Duration, Instant};

use tracing::warn;

use super::Control;
use super::routes::RouteFault;
use crate::admin::status::NodeStatus;
use crate::admin::{AdminCommand, AdminReply, AdminRequest};
use crate::report::Reporter;
use crate::swarm::ExchangeToken;

impl Control {
    /// Answers a client. Returns whether the node is to stop.
    pub(super) async fn handle_admin(&mut self, request: AdminRequest) -> bool {
        match request.command {
            AdminCommand::Status => request.reply.send(self.status().await),
            AdminCommand::Peers => request.reply.send(self.reporter().connections()),
            AdminCommand::Routes => request.reply.send(self.reporter().routes()),
            AdminCommand::Metrics => request.reply.send(self.exposition().await),
            AdminCommand::RouteAdd { net, peer, metric } => {
                answer(request.reply, self.add_route(&net, &peer, metric.unwrap_or_default()).await);
            }
            AdminCommand::RouteDel { net, peer } => {
                answer(request.reply, self.delete_route(&net, peer.as_deref()).await);
            }
            AdminCommand::Netcheck => request.reply.send(self.netcheck()),
            AdminCommand::Ping { peer, timeout_ms } => {
                self.ping(&peer, Duration::from_millis(timeout_ms), request.reply, Instant::now());
            }
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
        let reporter = self.reporter();
        let obstacles = self.obstacles(&reporter.nat.hosts, Instant::now());
        Reporter { obstacles, ..reporter }.node(queue)
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
            engine: &self.engine,
            movement: self.engine.movement(),
            nat: self.nat_status(),
            exchange: self.exchange.counters(),
            listener_drops: self.engine.drops(),
            workers: &self.workers.counters,
            services: &self.services,
            installed: &self.installed,
            routing: &self.routing,
            offers_refused: self.offers_refused,
            portmap: self.portmap.as_ref(),
            loads: &self.udp_relay.loads,
            own_load: self.own_load(None),
            obstacles: Vec::new(),
        }
    }
}

fn answer(reply: AdminReply, done: Result<(), RouteFault>) {
    match done {
        Ok(()) => reply.send(()),
        Err(error) => reply.refuse(&error.to_string()),
    }
}
