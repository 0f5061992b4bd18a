//! libp2p's own metrics: what the swarm and its behaviours say, counted as go-libp2p's dashboards know it.

use std::fmt;

use libp2p::metrics::{Metrics, Recorder as _, Registry};
use libp2p::swarm::SwarmEvent;
use prometheus_client::encoding::text::encode_registry;

use super::behaviour::BehaviourEvent;

/// Counts events. Labels are transports, protocols and kinds of errors, never peers or addresses, so there is a bounded
/// number of them.
pub(super) struct Recorder {
    metrics: Metrics,
    registry: Registry,
}

impl Default for Recorder {
    fn default() -> Self {
        let mut registry = Registry::default();
        Self { metrics: Metrics::new(&mut registry), registry }
    }
}

impl Recorder {
    pub(super) fn record(&self, event: &SwarmEvent<BehaviourEvent>) {
        self.metrics.record(event);
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::Identify(event)) => self.metrics.record(event),
            SwarmEvent::Behaviour(BehaviourEvent::Ping(event)) => self.metrics.record(event),
            _ => {}
        }
    }

    /// Appends all families in OpenMetrics' text format, without its end mark.
    pub(super) fn encode(&self, text: &mut String) -> fmt::Result {
        encode_registry(text, &self.registry)
    }
}
