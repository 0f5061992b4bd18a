//! The figures of the node, for Prometheus and `ringlane metrics`.

use tracing::{error, info, warn};

use super::Control;
use crate::metrics::{self, MetricsServer, ProcessFigures, Scrape};

impl Control {
    /// Serves the metrics if the configuration says so. A node without them is still of use.
    pub(super) fn serve_metrics(&mut self) {
        let Some(address) = self.settings.metrics.listen else { return };
        match MetricsServer::bind(address) {
            Ok(server) => {
                info!(address = %server.address(), "metrics are served at /metrics");
                self.metrics = Some(server);
            }
            Err(error) => warn!(%address, %error, "there are no metrics: their server cannot listen"),
        }
    }

    /// All figures as of now, in OpenMetrics' text format.
    pub(super) async fn exposition(&self) -> String {
        let scrape = Scrape {
            status: self.status().await,
            connections: self.reporter().connections(),
            process: ProcessFigures::read(),
        };
        let mut text = String::new();
        if let Err(error) = self.node.encode_metrics(&mut text).and_then(|()| metrics::expose(scrape, &mut text)) {
            error!(%error, "the metrics cannot be written");
        }
        text
    }
}
