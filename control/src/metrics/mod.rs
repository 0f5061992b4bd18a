//! What Prometheus reads: libp2p's metrics, and all figures of the status, in OpenMetrics' text format.
//!
//! Nothing is counted for this: [`Scrape`] is the status at the moment it is asked for, and [`families()`] says what of it is
//! served under which name. A figure is added by adding it to the status and a line to that table, and to docs/metrics.md,
//! which a test holds against it.

mod families;
mod nat;
mod process;
mod server;
#[cfg(test)]
mod tests;

use std::fmt::{self, Write as _};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

pub use self::process::ProcessFigures;
pub use self::server::{MetricsServer, ScrapeRequest};
use crate::admin::status::{ConnectionStatus, NodeStatus};

/// The media type of what is served.
pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All that is known when somebody asks.
#[derive(Clone, Debug)]
pub struct Scrape {
    /// What `ringlane status` says.
    pub status: NodeStatus,
    /// What `ringlane peers` says.
    pub connections: Vec<ConnectionStatus>,
    /// What the kernel says of this process.
    pub process: ProcessFigures,
}

/// Whether a figure only grows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// It does; its samples' names end in `_total`.
    Counter,
    /// It does not.
    Gauge,
}

impl Kind {
    /// As documented and served.
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
        }
    }
}

/// Every metric of ours, in the order served.
pub fn families() -> impl Iterator<Item = &'static Family> {
    families::FAMILIES.iter().chain(nat::FAMILIES)
}

/// One metric: a name and what it counts, for each combination of labels there is.
#[derive(Debug)]
pub struct Family {
    /// Its name, with the unit last; without the `_total` of a counter.
    pub name: &'static str,
    /// What kind of figure it is.
    pub kind: Kind,
    /// The labels of each sample.
    pub labels: &'static [&'static str],
    /// What it says, for people.
    pub help: &'static str,
    samples: fn(&Scrape, &mut Samples),
}

impl Family {
    /// The name of its samples.
    pub fn sample_name(&self) -> String {
        match self.kind {
            Kind::Counter => format!("{}_total", self.name),
            Kind::Gauge => self.name.to_owned(),
        }
    }
}

/// A figure.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Value {
    Whole(u64),
    Real(f64),
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Real(value)
    }
}

/// The figures of one family, each with its labels' values.
#[derive(Debug, Default)]
struct Samples(Vec<(Vec<String>, Value)>);

impl Samples {
    fn add(&mut self, labels: &[&str], value: impl Into<Value>) {
        self.0.push((labels.iter().map(|&label| label.to_owned()).collect(), value.into()));
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in families() {
            let mut samples = Samples::default();
            (family.samples)(self, &mut samples);
            if samples.0.is_empty() {
                continue;
            }
            let kind = match family.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
            };
            let mut metric = encoder.encode_descriptor(family.name, family.help, None, kind)?;
            for (values, value) in samples.0 {
                debug_assert_eq!(values.len(), family.labels.len(), "{}", family.name);
                if values.is_empty() {
                    encode_value(&mut metric, family.kind, value)?;
                    continue;
                }
                let labels: Vec<(&str, String)> = family.labels.iter().copied().zip(values).collect();
                encode_value(&mut metric.encode_family(&labels)?, family.kind, value)?;
            }
        }
        Ok(())
    }
}

fn encode_value(metric: &mut MetricEncoder<'_>, kind: Kind, value: Value) -> fmt::Result {
    match (kind, value) {
        (Kind::Counter, Value::Whole(value)) => metric.encode_counter::<NoLabelSet, _, f64>(&value, None),
        (Kind::Counter, Value::Real(value)) => metric.encode_counter::<NoLabelSet, _, f64>(&value, None),
        (Kind::Gauge, Value::Whole(value)) => metric.encode_gauge(&value),
        (Kind::Gauge, Value::Real(value)) => metric.encode_gauge(&value),
    }
}

/// Appends a scrape, behind what `text` holds of other families, and the end mark.
pub fn expose(scrape: Scrape, text: &mut String) -> fmt::Result {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(scrape));
    encode(text, &registry)
}

/// The table of docs/metrics.md.
pub fn documentation() -> String {
    let mut table = String::from("| Metric | Type | Labels | Meaning |\n|---|---|---|---|\n");
    for family in families() {
        let labels: Vec<_> = family.labels.iter().map(|label| format!("`{label}`")).collect();
        let (name, kind, labels) = (family.sample_name(), family.kind.name(), labels.join(", "));
        // Writing to a string cannot fail.
        let _ = writeln!(table, "| `{name}` | {kind} | {labels} | {} |", family.help);
    }
    table
}
