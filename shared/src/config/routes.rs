//! Networks behind peers, each with how much it costs to go that way.

use std::fmt;

use ipnet::IpNet;

use super::error::Report;
use super::tree::Table;
use super::value::{self, HostBits};

/// A network behind a peer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct RouteSettings {
    /// The network, host bits cleared.
    pub net: IpNet,
    /// Of several peers that route the network, the one with the lowest metric carries it. No unit; 0 unless said.
    pub metric: u32,
}

impl From<IpNet> for RouteSettings {
    fn from(net: IpNet) -> Self {
        Self { net, metric: 0 }
    }
}

impl fmt::Display for RouteSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.metric {
            0 => self.net.fmt(f),
            metric => write!(f, "{} metric {metric}", self.net),
        }
    }
}

/// Reads a network as `ringlane route add` takes it: host bits are cleared, as Hyprspace does; the error says what is
/// wrong and what to write.
pub fn parse_network(text: &str) -> Result<IpNet, String> {
    value::prefix(text, HostBits::Clear).map_err(|flaw| format!("{}; {}", flaw.problem, flaw.remedy))
}

/// The metric that a route's table names.
pub(super) fn metric(table: &Table<'_>, report: &mut Report<'_>) -> u32 {
    let metric = table.get("metric").and_then(|item| item.integer(0..=u32::MAX, "a metric", report));
    metric.unwrap_or_default()
}
