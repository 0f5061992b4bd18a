//! The figures of one run: raw for a file, and as a table for people.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;

use serde::Serialize;

use crate::iperf::{Scenario, Throughput};

/// Everything one run measured, and where.
#[derive(Debug, Serialize)]
pub(crate) struct Run {
    kernel: String,
    cpu: String,
    cores: usize,
    seconds: u32,
    rounds: u32,
    /// Contender to what it says of itself.
    pub(crate) versions: BTreeMap<String, String>,
    /// Contender to what is missing.
    pub(crate) absent: BTreeMap<String, String>,
    /// In the order they were taken.
    pub(crate) samples: Vec<Sample>,
}

/// One measurement.
#[derive(Debug, Serialize)]
pub(crate) struct Sample {
    /// From 1.
    pub(crate) round: u32,
    /// Its name.
    pub(crate) contender: String,
    /// What was measured.
    pub(crate) scenario: Scenario,
    /// What came of it.
    #[serde(flatten)]
    pub(crate) throughput: Throughput,
}

impl Run {
    /// A run on this machine without figures yet.
    pub(crate) fn new(seconds: u32, rounds: u32) -> Self {
        let cpu_info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpu_info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Self {
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().into(),
            cpu: model.map_or("unknown", |(_, model)| model).into(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            seconds,
            rounds,
            versions: BTreeMap::new(),
            absent: BTreeMap::new(),
            samples: Vec::new(),
        }
    }

    /// Median, spread and ratio to the bare underlay, per scenario and contender, as Markdown.
    pub(crate) fn table(&self) -> String {
        let mut table = format!(
            "{} cores of {}, Linux {}; {} rounds of {} s; ratios are to the bare underlay of the same run.\n\n\
             | Scenario | Contender | Median | Lowest to highest | Ratio | Retransmits |\n|---|---|---:|---:|---:|---:|\n",
            self.cores, self.cpu, self.kernel, self.rounds, self.seconds,
        );
        let mut contenders: Vec<_> = self.samples.iter().map(|sample| sample.contender.as_str()).collect();
        let mut seen = std::collections::BTreeSet::new();
        contenders.retain(|contender| seen.insert(*contender));
        for scenario in Scenario::ALL {
            let bare = median(&self.rates(scenario, "bare"));
            for contender in &contenders {
                let rates = self.rates(scenario, contender);
                let (Some(middle), Some(lowest), Some(highest)) = (median(&rates), rates.first(), rates.last()) else {
                    continue;
                };
                let ratio = bare.map_or("-".into(), |bare| format!("{:.2}", middle / bare));
                let retransmits: u64 = self.of(scenario, contender).map(|sample| sample.throughput.retransmits).sum();
                // Writing to a string does not fail.
                let _ = writeln!(
                    table,
                    "| {scenario} | {contender} | {:.0} Mbit/s | {:.0} to {:.0} | {ratio} | {retransmits} |",
                    middle / 1e6,
                    lowest / 1e6,
                    highest / 1e6,
                );
            }
        }
        for (contender, missing) in &self.absent {
            let _ = writeln!(table, "\nNot measured: {contender} ({missing}).");
        }
        table
    }

    fn of(&self, scenario: Scenario, contender: &str) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(move |sample| sample.scenario == scenario && sample.contender == contender)
    }

    /// Rates of one cell, ascending.
    fn rates(&self, scenario: Scenario, contender: &str) -> Vec<f64> {
        let mut rates: Vec<_> = self.of(scenario, contender).map(|sample| sample.throughput.bits_per_second).collect();
        rates.sort_by(f64::total_cmp);
        rates
    }
}

/// The middle of ascending figures; of an even number, the mean of the middle two.
fn median(ascending: &[f64]) -> Option<f64> {
    let middle = ascending.len() / 2;
    match ascending.len() {
        0 => None,
        length if length % 2 == 1 => Some(ascending[middle]),
        _ => Some(f64::midpoint(ascending[middle - 1], ascending[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[1.0, 2.0, 4.0, 9.0]), Some(3.0));
        assert_eq!(median(&[1.0, 2.0, 9.0]), Some(2.0));
    }

    #[test]
    fn the_table_shows_medians_and_ratios_to_the_bare_underlay() {
        let mut run = Run::new(5, 3);
        let scenario = Scenario::ALL[0];
        for (contender, rates) in [("bare", [8e9, 1e10, 9e9]), ("ringlane", [4.5e9, 4e9, 5e9])] {
            for (round, bits_per_second) in (1..).zip(rates) {
                let throughput = Throughput { bits_per_second, retransmits: 1 };
                run.samples.push(Sample { round, contender: contender.into(), scenario, throughput });
            }
        }
        run.absent.insert("boringtun".into(), "boringtun-cli is not installed".into());
        let table = run.table();
        for line in [
            "| 1 TCP, A -> B | bare | 9000 Mbit/s | 8000 to 10000 | 1.00 | 3 |",
            "| 1 TCP, A -> B | ringlane | 4500 Mbit/s | 4000 to 5000 | 0.50 | 3 |",
            "Not measured: boringtun (boringtun-cli is not installed).",
        ] {
            assert!(table.contains(line), "{line} is missing in\n{table}");
        }
        assert!(!table.contains("8 TCP"), "what was not measured is not shown:\n{table}");
    }
}
