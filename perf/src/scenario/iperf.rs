//! Bulk TCP and UDP by `iperf3`.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Map, Value};

use super::Measurement;
use crate::lab::Lab;
use crate::metric::Metric;
use crate::process::{Process, Running, wait_for};

/// How much longer than its measurement `iperf3` may take to begin and to end.
const MARGIN: Duration = Duration::from_secs(20);

/// From where to where packets go.
#[derive(Clone, Debug)]
pub(super) struct Path {
    /// Namespace of the client, which sends.
    pub(super) client: String,
    /// Namespace of the server.
    pub(super) server: String,
    /// The server's address.
    pub(super) address: String,
}

/// Bulk TCP; with `both_ways`, as many streams the other way at the same time.
pub(super) fn tcp(lab: &Lab, path: &Path, streams: u32, both_ways: bool, seconds: u32) -> anyhow::Result<Measurement> {
    let mut transfer = Transfer::start(lab, path, seconds, &|arguments| {
        arguments.extend(["--parallel".into(), streams.to_string()]);
        arguments.extend(both_ways.then(|| "--bidir".into()));
    })?;
    tcp_measurement(transfer.finish()?)
}

/// One stream to each of two servers at once.
pub(super) fn two_peers(lab: &Lab, one: &Path, other: &Path, seconds: u32) -> anyhow::Result<Measurement> {
    let mut transfers = [one, other].map(|path| Transfer::start(lab, path, seconds, &|_| {}));
    let mut sum = Measurement::default();
    let mut raw = Vec::new();
    for transfer in &mut transfers {
        let transfer = transfer.as_mut().map_err(|error| anyhow::anyhow!("{error:#}"))?;
        let part = tcp_measurement(transfer.finish()?)?;
        for (metric, value) in part.figures {
            *sum.figures.entry(metric).or_default() += value;
        }
        sum.payload_bytes = Some(sum.payload_bytes.unwrap_or(0.0) + part.payload_bytes.unwrap_or(0.0));
        raw.push(Value::Object(part.raw));
    }
    sum.raw.insert("both".into(), raw.into());
    Ok(sum)
}

/// Datagrams of `bytes` payload as fast as they can be sent, each by a system call of its own.
pub(super) fn udp(lab: &Lab, path: &Path, bytes: u32, streams: u32, seconds: u32) -> anyhow::Result<Measurement> {
    let mut transfer = Transfer::start(lab, path, seconds, &|arguments| {
        arguments.extend(["--udp", "--bitrate", "0", "--length"].map(String::from));
        arguments.extend([bytes.to_string(), "--parallel".into(), streams.to_string()]);
    })?;
    udp_measurement(transfer.finish()?, bytes)
}

/// An `iperf3` at work.
pub(super) struct Transfer {
    client: Option<Running>,
    limit: Duration,
    _server: Process,
}

impl Transfer {
    /// Starts a server and its client.
    pub(super) fn start(
        lab: &Lab,
        path: &Path,
        seconds: u32,
        arguments: &dyn Fn(&mut Vec<String>),
    ) -> anyhow::Result<Self> {
        let server = Process::start(lab.command(&path.server, "iperf3").args(["--server", "--forceflush"]))?;
        wait_for("iperf3 to listen", || server.log().contains("listening").then_some(()))
            .with_context(|| format!("iperf3 says: {}", server.log()))?;
        let mut extra = Vec::new();
        arguments(&mut extra);
        let mut client = lab.command(&path.client, "iperf3");
        client.args(["--client", &path.address, "--json", "--time", &seconds.to_string()]).args(extra);
        let limit = Duration::from_secs(seconds.into()) + MARGIN;
        Ok(Self { client: Some(Running::start(&mut client)?), limit, _server: server })
    }

    /// Waits for its end and returns what it says of it.
    pub(super) fn finish(&mut self) -> anyhow::Result<Value> {
        let client = self.client.take().context("a transfer has one end")?;
        match client.finish(self.limit) {
            Ok(printed) => end_of(&printed),
            // Its reason is in what it printed.
            Err(error) => Err(reason_of(&error.to_string()).map_or(error, anyhow::Error::msg)),
        }
    }
}

/// The part of a report that sums up.
fn end_of(printed: &str) -> anyhow::Result<Value> {
    let mut report: Value = serde_json::from_str(printed).context("what iperf3 printed")?;
    if let Some(reason) = report["error"].as_str() {
        bail!("iperf3: {reason}");
    }
    let mut end = report["end"].take();
    if let Some(end) = end.as_object_mut() {
        end.remove("streams");
    }
    Ok(end)
}

/// What iperf3 gives as the reason in the middle of an error.
fn reason_of(error: &str) -> Option<String> {
    let report = error.get(error.find('{')?..=error.rfind('}')?)?;
    let report: Value = serde_json::from_str(report).ok()?;
    Some(format!("iperf3: {}", report["error"].as_str()?))
}

fn tcp_measurement(end: Value) -> anyhow::Result<Measurement> {
    let number = |sum: &str, key: &str| end[sum][key].as_f64();
    let forth = number("sum_received", "bits_per_second").context("iperf3 does not say what was received")?;
    let back = number("sum_received_bidir_reverse", "bits_per_second").unwrap_or(0.0);
    let retransmits = |sum| number(sum, "retransmits").unwrap_or(0.0);
    let bytes = |sum| number(sum, "bytes").unwrap_or(0.0);
    Ok(Measurement {
        figures: BTreeMap::from([
            (Metric::BitsPerSecond, forth + back),
            (Metric::Retransmits, retransmits("sum_sent") + retransmits("sum_sent_bidir_reverse")),
        ]),
        payload_bytes: Some(bytes("sum_received") + bytes("sum_received_bidir_reverse")),
        raw: Map::from_iter([("iperf3".into(), end)]),
    })
}

fn udp_measurement(end: Value, datagram_bytes: u32) -> anyhow::Result<Measurement> {
    let received = &end["sum_received"];
    let number = |key: &str| received[key].as_f64().with_context(|| format!("iperf3 does not say {key}"));
    let (bytes, seconds) = (number("bytes")?, number("seconds")?);
    let sent = end["sum_sent"]["packets"].as_f64().context("iperf3 does not say what was sent")?;
    let packets = bytes / f64::from(datagram_bytes);
    anyhow::ensure!(packets > 0.0 && seconds > 0.0, "no datagram arrived");
    Ok(Measurement {
        figures: BTreeMap::from([
            (Metric::PacketsPerSecond, packets / seconds),
            (Metric::BitsPerSecond, bytes * 8.0 / seconds),
            (Metric::LossRatio, (1.0 - packets / sent).max(0.0)),
        ]),
        payload_bytes: Some(bytes),
        raw: Map::from_iter([("iperf3".into(), end)]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_of_tcp_are_added_up() {
        let printed = r#"{"start": {}, "intervals": [], "end": {
            "streams": [{}],
            "sum_sent": {"bytes": 1454899200, "bits_per_second": 11625173640.5, "retransmits": 11},
            "sum_received": {"bytes": 1453588480, "bits_per_second": 11550705922.5},
            "sum_sent_bidir_reverse": {"bytes": 1243873280, "bits_per_second": 9938999806.2, "retransmits": 1},
            "sum_received_bidir_reverse": {"bytes": 1240072192, "bits_per_second": 9854033249.5}}}"#;
        let measurement = tcp_measurement(end_of(printed).unwrap()).unwrap();
        assert_eq!(measurement.figures[&Metric::BitsPerSecond], 11550705922.5 + 9854033249.5);
        assert_eq!(measurement.figures[&Metric::Retransmits], 12.0);
        assert_eq!(measurement.payload_bytes, Some(1453588480.0 + 1240072192.0));
        assert!(measurement.raw["iperf3"]["streams"].is_null(), "figures of single streams are not kept");
    }

    #[test]
    fn datagrams_are_counted_where_they_arrive() {
        let printed = r#"{"end": {
            "sum": {"packets": 193460, "lost_packets": 105593},
            "sum_sent": {"bytes": 251498000, "packets": 200000, "seconds": 1.0, "lost_packets": 0},
            "sum_received": {"bytes": 130000000, "packets": 193209, "seconds": 2.0, "lost_packets": 93209}}}"#;
        let measurement = udp_measurement(end_of(printed).unwrap(), 1300).unwrap();
        assert_eq!(measurement.figures[&Metric::PacketsPerSecond], 50_000.0);
        assert_eq!(measurement.figures[&Metric::LossRatio], 0.5);
    }

    #[test]
    fn the_reason_of_a_failure_is_what_iperf3_gives() {
        let printed = r#"{"start": {}, "intervals": [], "end": {}, "error": "unable to connect to server"}"#;
        assert_eq!(end_of(printed).unwrap_err().to_string(), "iperf3: unable to connect to server");
        let error = format!("ip netns exec x iperf3 ended with exit status: 1\n{printed}");
        assert_eq!(reason_of(&error).unwrap(), "iperf3: unable to connect to server");
        assert_eq!(reason_of("took longer than 3 s"), None);
    }
}
