//! What the nodes cost and say over time: memory, open files, log lines, drops.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::Serialize;
use serde_json::Value;

use crate::contender::Side;
use crate::process::run;

/// Between two samples.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(2);

/// Fewer samples say nothing: quarters of four.
const SAMPLES_MIN: usize = 16;

/// How much more there may be in the last quarter than in the second, beside a tenth.
const MEMORY_SLACK_BYTES: f64 = 2.0 * 1024.0 * 1024.0;
/// Sockets come and go with connections of libp2p.
const FILES_SLACK: f64 = 4.0;

/// Suspicious log lines that are kept of each node.
const LINES_MAX: usize = 20;

/// What a node had at a time.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Sample {
    at_s: u64,
    rss_bytes: u64,
    files: usize,
}

/// One node over all its lives.
#[derive(Debug, Default, Serialize)]
pub(super) struct NodeReport {
    /// How often it was started.
    pub(super) starts: u32,
    pub(super) rss: Option<Growth>,
    pub(super) files: Option<Growth>,
    /// Packets it dropped, by reason.
    pub(super) drops: BTreeMap<String, u64>,
    /// What its lanes had counted when they were looked at: before each end of the node.
    pub(super) lanes: BTreeMap<String, u64>,
    /// Panics and errors in its log.
    pub(super) lines: Vec<String>,
    pub(super) samples: Vec<Sample>,
    /// What its `status --json` said last.
    pub(super) status: Value,
}

/// Medians of two quarters of a series.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub(super) struct Growth {
    pub(super) second_quarter: f64,
    pub(super) last_quarter: f64,
    pub(super) flat: bool,
}

impl Growth {
    /// Judges a series: it is flat if the last quarter's median is at most a tenth and `slack` above the second's. None
    /// if it is too short to say.
    fn of(series: &[f64], slack: f64) -> Option<Self> {
        if series.len() < SAMPLES_MIN {
            return None;
        }
        let quarter = |number: usize| {
            let mut part = series[series.len() * number / 4..series.len() * (number + 1) / 4].to_vec();
            part.sort_unstable_by(f64::total_cmp);
            part[part.len() / 2]
        };
        let (second_quarter, last_quarter) = (quarter(1), quarter(3));
        Some(Self { second_quarter, last_quarter, flat: last_quarter <= second_quarter * 1.1 + slack })
    }
}

/// Watches all nodes.
#[derive(Debug)]
pub(super) struct Watch {
    ringlane: PathBuf,
    started: Instant,
    next_sample: Instant,
    /// In the order of the sites.
    nodes: Vec<NodeReport>,
}

impl Watch {
    pub(super) fn new(ringlane: &Path, sites: usize) -> Self {
        let node = || NodeReport { starts: 1, ..NodeReport::default() };
        let started = Instant::now();
        let nodes = std::iter::repeat_with(node).take(sites).collect();
        Self { ringlane: ringlane.to_owned(), started, next_sample: started, nodes }
    }

    /// Takes a sample of each node when it is time.
    pub(super) fn sample(&mut self, sides: &[Side]) {
        let now = Instant::now();
        if now < self.next_sample {
            return;
        }
        self.next_sample = now + SAMPLE_INTERVAL;
        for (node, side) in self.nodes.iter_mut().zip(sides) {
            let taken = side.process_ids().next().and_then(|id| Some((resident_bytes(id)?, open_files(id)?)));
            if let Some((rss_bytes, files)) = taken {
                node.samples.push(Sample { at_s: (now - self.started).as_secs(), rss_bytes, files });
            }
        }
    }

    /// Takes what a node has counted, before it goes: its counters go with it.
    pub(super) fn collect_counters(&mut self, position: usize, side: &Side) {
        let Some(interface) = &side.interface else { return };
        let mut command = Command::new(&self.ringlane);
        command.args(["status", "--json", "--interface", interface]);
        let status = run(&mut command).and_then(|printed| serde_json::from_str(&printed).context("status"));
        // One that does not answer has died, or is about to: that is found elsewhere.
        let Ok::<Value, _>(status) = status else { return };
        let node = &mut self.nodes[position];
        for (reason, count) in drops_of(&status) {
            *node.drops.entry(reason).or_default() += count;
        }
        for (what, count) in lanes_of(&status) {
            *node.lanes.entry(what.to_owned()).or_default() += count;
        }
        node.status = status;
    }

    /// Looks through what a node has said, before it is started anew.
    pub(super) fn collect_log(&mut self, position: usize, log: &str) {
        let lines = &mut self.nodes[position].lines;
        let room = LINES_MAX.saturating_sub(lines.len());
        lines.extend(suspicious(log).take(room).map(str::to_owned));
    }

    /// A node was started again.
    pub(super) fn note_start(&mut self, position: usize) {
        self.nodes[position].starts += 1;
    }

    /// Judges what there is.
    pub(super) fn finish(self) -> Vec<NodeReport> {
        let mut nodes = self.nodes;
        for node in &mut nodes {
            let series = |what: fn(&Sample) -> f64| node.samples.iter().map(what).collect::<Vec<_>>();
            node.rss = Growth::of(&series(|sample| sample.rss_bytes as f64), MEMORY_SLACK_BYTES);
            node.files = Growth::of(&series(|sample| sample.files as f64), FILES_SLACK);
        }
        nodes
    }
}

fn resident_bytes(id: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let resident =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
    resident.map(|kib: u64| kib * 1024)
}

fn open_files(id: u32) -> Option<usize> {
    Some(fs::read_dir(format!("/proc/{id}/fd")).ok()?.count())
}

/// Drops by reason, all peers' together.
fn drops_of(status: &Value) -> impl Iterator<Item = (String, u64)> {
    let peers = status["peers"].as_array().into_iter().flatten().map(|peer| &peer["drops"]);
    let reasons = peers.chain([&status["drops"]]).filter_map(Value::as_object).flatten();
    reasons.filter_map(|(reason, count)| Some((reason.clone(), count.as_u64()?)))
}

/// What lanes count, all peers' together.
const LANE_COUNTERS: [&str; 5] = ["rekeys", "rekeys_failed", "moves", "echoes_sent", "echoes_answered"];

fn lanes_of(status: &Value) -> impl Iterator<Item = (&'static str, u64)> {
    let peers = status["peers"].as_array().into_iter().flatten();
    let lanes = peers.filter_map(|peer| peer["lanes"].as_array()).flatten();
    lanes.flat_map(|lane| LANE_COUNTERS.iter().filter_map(|&what| Some((what, lane[what].as_u64()?))))
}

/// Lines that no disturbance from outside explains.
fn suspicious(log: &str) -> impl Iterator<Item = &str> {
    log.lines().filter(|line| line.contains("ERROR") || line.contains("panicked"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const MIB: f64 = 1024.0 * 1024.0;

    fn judged(series: impl Iterator<Item = f64>) -> Option<bool> {
        Growth::of(&series.collect::<Vec<_>>(), MEMORY_SLACK_BYTES).map(|growth| growth.flat)
    }

    #[test]
    fn memory_that_only_fills_at_the_beginning_is_flat() {
        assert_eq!(judged((0..400).map(|i| f64::from(i.min(80)) * MIB)), Some(true));
        assert_eq!(judged((0..400).map(|i| (50.0 + f64::from(i % 7)) * MIB)), Some(true), "it may sway");
        assert_eq!(judged((0..400).map(|i| (90.0 - f64::from(i) / 8.0) * MIB)), Some(true), "it may shrink");
    }

    #[test]
    fn memory_that_grows_all_the_time_is_not_flat() {
        assert_eq!(judged((0..400).map(|i| (50.0 + f64::from(i) / 10.0) * MIB)), Some(false));
    }

    #[test]
    fn the_bound_is_a_tenth_and_two_mebibytes() {
        let step = |last: f64| judged((0..400).map(move |i| if i < 200 { 40.0 * MIB } else { last * MIB }));
        assert_eq!((step(46.0), step(46.1)), (Some(true), Some(false)));
    }

    #[test]
    fn a_single_peak_decides_nothing_and_a_short_series_neither() {
        assert_eq!(judged((0..400).map(|i| if i == 390 { 900.0 * MIB } else { 50.0 * MIB })), Some(true));
        assert_eq!(judged((0..15).map(|i| f64::from(i) * 100.0 * MIB)), None);
    }

    #[test]
    fn drops_of_all_peers_are_added_up_by_reason() {
        let status = json!({
            "peers": [{"drops": {"replayed": 3, "no_lane": 1}}, {"drops": {"replayed": 4}}],
            "drops": {"no_route": 2},
        });
        let mut sums: BTreeMap<String, u64> = BTreeMap::new();
        drops_of(&status).for_each(|(reason, count)| *sums.entry(reason).or_default() += count);
        assert_eq!(sums, BTreeMap::from([("no_lane".into(), 1), ("no_route".into(), 2), ("replayed".into(), 7)]));
        assert_eq!(drops_of(&Value::Null).count(), 0);
    }

    #[test]
    fn lanes_say_what_they_have_counted() {
        let lanes = json!([{"index": 0, "rekeys": 3, "moves": 1}, {"index": 1, "rekeys": 2}]);
        let status = json!({"peers": [{"lanes": lanes}, {"lanes": []}]});
        assert_eq!(lanes_of(&status).collect::<Vec<_>>(), [("rekeys", 3), ("moves", 1), ("rekeys", 2)]);
    }

    #[test]
    fn panics_and_errors_are_suspicious_and_warnings_are_not() {
        let log = "INFO up\n2026 WARN slow\n2026 ERROR ringlane: x\nthread 'w0' panicked at y\nINFO down";
        assert_eq!(suspicious(log).collect::<Vec<_>>(), ["2026 ERROR ringlane: x", "thread 'w0' panicked at y"]);
    }
}
