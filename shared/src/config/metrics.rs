//! `[metrics]`: what Prometheus may read.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use super::error::{ConfigError, Problem, Report};
use super::tree::Table;
use super::{Settings, dns};

/// Hyprspace's variable for the port of the metrics.
pub const METRICS_PORT_VARIABLE: &str = "HYPRSPACE_METRICS_PORT";

/// The metrics' settings.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MetricsSettings {
    /// Where they are served, as `/metrics` over HTTP; `None` for nowhere.
    pub listen: Option<SocketAddr>,
}

/// Reads the table, whose keys are known.
pub(super) fn read(table: &Table<'_>, report: &mut Report<'_>) -> MetricsSettings {
    let listen = table.get("listen").and_then(|item| dns::socket_address(&item, "127.0.0.1:9100", report));
    MetricsSettings { listen }
}

impl Settings {
    /// Takes over what [`METRICS_PORT_VARIABLE`] says, if it is set: a port of 127.0.0.1, in place of `metrics.listen`.
    pub fn set_metrics_port(&mut self, variable: Option<&str>) -> Result<(), ConfigError> {
        let Some(text) = variable else { return Ok(()) };
        let Some(port) = text.trim().parse().ok().filter(|port: &u16| *port != 0) else {
            let value = Some(format!("{:?}", text.chars().take(20).collect::<String>()));
            let remedy = "set it to a TCP port from 1 to 65535, or unset it";
            let problem = Problem::new(METRICS_PORT_VARIABLE, value, "is not a port", remedy);
            return Err(ConfigError::new(Path::new("environment"), problem));
        };
        self.metrics.listen = Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
        Ok(())
    }
}
