//! Requests and responses, alone or beside bulk TCP.

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::Measurement;
use super::iperf::{Path, Transfer};
use crate::lab::Lab;
use crate::metric::Metric;
use crate::process::{Process, Running, wait_for};

const PORT: u16 = 7;

/// Between requests, in microseconds.
const INTERVAL_US: u32 = 1000;

/// How much longer than its measurement the client may take.
const MARGIN: Duration = Duration::from_secs(20);

/// Congestion control of a bulk stream that is to fill a queue, which BBR would not. Every kernel has it.
const GREEDY: [&str; 2] = ["--congestion", "reno"];

/// How long such a stream takes until it has found the bottleneck's rate.
const GREEDY_START: Duration = Duration::from_secs(3);

/// A third of the time the idle link by UDP, then beside a bulk stream as in [`measure`].
pub(super) fn beside_bulk(lab: &Lab, path: &Path, seconds: u32) -> anyhow::Result<Measurement> {
    let _server = server(lab, path)?;
    let idle = client(lab, path, "udp", f64::from(seconds) / 3.0)?;
    let base = number(&idle, "p50")?;
    let load_seconds = seconds + GREEDY_START.as_secs() as u32;
    let mut load = Transfer::start(lab, path, load_seconds, &|words| words.extend(GREEDY.map(String::from)))?;
    std::thread::sleep(GREEDY_START);
    let loaded = client(lab, path, "udp", f64::from(seconds) * 2.0 / 3.0)?;
    let mut measurement = Measurement::default();
    measurement.add_load(load.finish().context("the load")?)?;
    let (p50, p99) = (number(&loaded, "p50")?, number(&loaded, "p99")?);
    let (lost, answered) = (number(&loaded, "lost")?, number(&loaded, "count")?);
    measurement.figures.extend([
        (Metric::RttP50Us, p50),
        (Metric::RttP99Us, p99),
        (Metric::RttP50AboveUs, p50 - base),
        (Metric::RttP99AboveUs, p99 - base),
        (Metric::LossRatio, lost / (lost + answered)),
    ]);
    measurement.raw.extend([("idle".into(), idle), ("loaded".into(), loaded)]);
    Ok(measurement)
}

/// Half the time by UDP, half by TCP. Under load the bulk stream begins a second earlier and goes the same way as the
/// requests.
pub(super) fn measure(lab: &Lab, path: &Path, loaded: bool, seconds: u32) -> anyhow::Result<Measurement> {
    let _server = server(lab, path)?;
    let mut load = None;
    if loaded {
        load = Some(Transfer::start(lab, path, seconds + 2, &|_| {})?);
        std::thread::sleep(Duration::from_secs(1));
    }
    let mut measurement = Measurement::default();
    let ways = [("udp", Metric::RttP50Us, Metric::RttP99Us), ("tcp", Metric::TcpRttP50Us, Metric::TcpRttP99Us)];
    for (protocol, p50, p99) in ways {
        let report = client(lab, path, protocol, f64::from(seconds) / 2.0)?;
        measurement.figures.insert(p50, number(&report, "p50")?);
        measurement.figures.insert(p99, number(&report, "p99")?);
        if protocol == "udp" {
            let (lost, answered) = (number(&report, "lost")?, number(&report, "count")?);
            measurement.figures.insert(Metric::LossRatio, lost / (lost + answered));
        }
        measurement.raw.insert(protocol.into(), report);
    }
    if let Some(mut load) = load {
        measurement.add_load(load.finish().context("the load")?)?;
    }
    Ok(measurement)
}

impl Measurement {
    /// What the bulk stream beside the requests says of itself.
    fn add_load(&mut self, report: Value) -> anyhow::Result<()> {
        let rate = report["sum_received"]["bits_per_second"].as_f64().context("the load's rate")?;
        self.figures.insert(Metric::BitsPerSecond, rate);
        self.payload_bytes = report["sum_received"]["bytes"].as_f64();
        self.raw.insert("iperf3".into(), report);
        Ok(())
    }
}

fn server(lab: &Lab, path: &Path) -> anyhow::Result<Process> {
    let server = Process::start(lab.tool(&path.server, "echo-server")?.args(["--listen", &format!("0.0.0.0:{PORT}")]))?;
    wait_for("the echo server", || server.log().contains("ready").then_some(()))
        .with_context(|| format!("the echo server says: {}", server.log()))?;
    Ok(server)
}

fn client(lab: &Lab, path: &Path, protocol: &str, seconds: f64) -> anyhow::Result<Value> {
    let mut command = lab.tool(&path.client, "echo-client")?;
    command.args(["--server", &format!("{}:{PORT}", path.address), "--protocol", protocol]);
    command.args(["--seconds", &seconds.to_string(), "--interval-us", &INTERVAL_US.to_string()]);
    let printed = Running::start(&mut command)?.finish(Duration::from_secs_f64(seconds) + MARGIN)?;
    let report: Value = printed.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default();
    ensure!(number(&report, "count")? > 0.0, "no request over {protocol} was answered");
    Ok(report)
}

fn number(report: &Value, key: &str) -> anyhow::Result<f64> {
    report[key].as_f64().with_context(|| format!("the echo client does not say {key}"))
}
