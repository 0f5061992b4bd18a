//! One run's figures as they are written to and read from a file. `docs/performance.md` documents the schema.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::metric::Metric;

/// Version of the schema. A change that readers of the old one would misread raises it.
const SCHEMA: u32 = 1;

/// Everything one run measured, and where.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Results {
    /// [`SCHEMA`].
    pub(crate) schema: u32,
    pub(crate) machine: Machine,
    /// Seconds per measurement, as asked for.
    pub(crate) seconds: u32,
    /// Rounds, as asked for.
    pub(crate) rounds: u32,
    /// In the order they were measured in.
    pub(crate) contenders: Vec<Present>,
    /// Contender to what is missing.
    pub(crate) absent: BTreeMap<String, String>,
    /// What was asked for and not measured, and why.
    pub(crate) left_out: Vec<LeftOut>,
    /// In the order they were taken.
    pub(crate) samples: Vec<Sample>,
}

/// Where it was measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) kernel: String,
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    /// Of the minute before the run: what else the machine had to do.
    pub(crate) load_average: f64,
    /// TCP's congestion control, which decides what loss and delay do to it.
    pub(crate) congestion_control: String,
    pub(crate) iperf3: String,
    /// What disturbed links: `netem` or `emulator`.
    pub(crate) disturber: String,
}

/// A contender that could be measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Present {
    pub(crate) name: String,
    /// What it says of itself.
    pub(crate) version: String,
}

/// Measurements of which some were not even tried.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct LeftOut {
    pub(crate) scenario: String,
    pub(crate) contender: String,
    pub(crate) reason: String,
}

/// One measurement.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// From 1.
    pub(crate) round: u32,
    pub(crate) scenario: String,
    pub(crate) contender: String,
    /// Why there are no figures; none when all went well.
    pub(crate) failure: Option<String>,
    /// Empty when it failed.
    pub(crate) figures: BTreeMap<Metric, f64>,
    /// What the load generators and the contender said, as they said it, by who said it.
    pub(crate) raw: Map<String, Value>,
}

/// The middle of some figures and how far they lie apart.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) lowest: f64,
    pub(crate) highest: f64,
}

impl Results {
    /// A run on this machine without figures yet.
    pub(crate) fn new(machine: Machine, seconds: u32, rounds: u32) -> Self {
        Self {
            schema: SCHEMA,
            machine,
            seconds,
            rounds,
            contenders: Vec::new(),
            absent: BTreeMap::new(),
            left_out: Vec::new(),
            samples: Vec::new(),
        }
    }

    /// Reads a file that [`Self::write`] wrote.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let value: Value = serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))?;
        let schema = value["schema"].as_u64();
        ensure!(
            schema == Some(u64::from(SCHEMA)),
            "{} has schema {}, and this program reads {SCHEMA}",
            path.display(),
            schema.map_or("none".into(), |schema| schema.to_string()),
        );
        serde_json::from_value(value).with_context(|| format!("{} is not a file of results", path.display()))
    }

    /// Writes them for people and programs to read.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        fs::write(path, serde_json::to_string_pretty(self)? + "\n")
            .with_context(|| format!("writing {}", path.display()))
    }

    /// The figures of one kind, of all rounds that succeeded.
    pub(crate) fn spread(&self, scenario: &str, contender: &str, metric: Metric) -> Option<Spread> {
        let figures = self.of(scenario, contender).filter_map(|sample| sample.figures.get(&metric)).copied();
        Spread::of(figures.collect())
    }

    /// The samples of one scenario and contender.
    pub(crate) fn of(&self, scenario: &str, contender: &str) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(move |sample| sample.scenario == scenario && sample.contender == contender)
    }
}

impl Machine {
    /// This one.
    pub(crate) fn this(iperf3: String, disturber: &str) -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let cpu_info = read("/proc/cpuinfo");
        let model = cpu_info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().into(),
            cpu: model.map_or("unknown", |(_, model)| model).into(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            load_average: read("/proc/loadavg").split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0),
            congestion_control: read("/proc/sys/net/ipv4/tcp_congestion_control").trim().into(),
            iperf3,
            disturber: disturber.into(),
        }
    }
}

impl Spread {
    /// None of no figures. The median of an even number is the mean of the middle two.
    pub(crate) fn of(mut figures: Vec<f64>) -> Option<Self> {
        figures.sort_by(f64::total_cmp);
        let (&lowest, &highest) = (figures.first()?, figures.last()?);
        let middle = figures.len() / 2;
        let median = match figures.len() {
            length if length % 2 == 1 => figures[middle],
            _ => f64::midpoint(figures[middle - 1], figures[middle]),
        };
        Some(Self { median, lowest, highest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        let median = |figures: &[f64]| Spread::of(figures.to_vec()).map(|spread| spread.median);
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 4.0, 2.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        let spread = Spread::of(vec![5.0, 7.0, 6.0]);
        assert_eq!(spread, Some(Spread { median: 6.0, lowest: 5.0, highest: 7.0 }));
    }

    #[test]
    fn a_file_reads_back_as_it_was_written_and_another_schema_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut results = Results::new(Machine::this("iperf 3".into(), "netem"), 5, 3);
        let figures = BTreeMap::from([(Metric::BitsPerSecond, 1e9), (Metric::RttP99Us, 12.5)]);
        results.samples.push(Sample {
            round: 1,
            scenario: "tcp1".into(),
            contender: "ringlane".into(),
            failure: None,
            figures: figures.clone(),
            raw: Map::new(),
        });
        results.write(file.path()).unwrap();
        assert_eq!(Results::read(file.path()).unwrap().samples[0].figures, figures);
        results.schema += 1;
        results.write(file.path()).unwrap();
        assert!(Results::read(file.path()).unwrap_err().to_string().contains("schema 2"));
    }
}
