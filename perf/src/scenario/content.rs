//! Whether what arrives is what was sent: a hashed stream over TCP, hashed datagrams over UDP.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Map, Value};

use super::Measurement;
use super::iperf::Path;
use crate::lab::Lab;
use crate::metric::Metric;
use crate::process::{Process, Running, wait_at_most, wait_for};

const PORT: u16 = 7001;

/// Datagrams in a second: slow enough for every contender, so that what is lost or reordered is not due to a queue.
const DATAGRAMS_PER_SECOND: u32 = 2000;

/// How long a transfer may take beyond what is expected of it.
const MARGIN: Duration = Duration::from_secs(60);

/// Sends `megabytes` by TCP, then datagrams for some seconds. A wrong hash is a failure.
pub(super) fn measure(lab: &Lab, path: &Path, megabytes: u32, seconds: u32) -> anyhow::Result<Measurement> {
    let bytes = u64::from(megabytes) * 1_000_000;
    let stream = transfer(lab, path, ["receive", "send"], &[("--bytes", bytes)], seconds)?;
    ensure!(stream["ok"] == Value::Bool(true), "the stream did not arrive as it was sent: {stream}");
    let count = u64::from(DATAGRAMS_PER_SECOND) * u64::from(seconds);
    let options = [("--count", count), ("--rate", DATAGRAMS_PER_SECOND.into()), ("--flows", 1)];
    let datagrams = transfer(lab, path, ["udp-receive", "udp-send"], &options, seconds)?;
    let number = |report: &Value, key: &str| {
        report[key].as_f64().with_context(|| format!("the receiver does not say {key}: {report}"))
    };
    let corrupted = number(&datagrams, "corrupted")?;
    ensure!(corrupted == 0.0, "{corrupted} datagrams did not arrive as they were sent");
    let (received, lost) = (number(&datagrams, "received")?, number(&datagrams, "lost")?);
    ensure!(received > 0.0, "no datagram arrived");
    Ok(Measurement {
        figures: BTreeMap::from([
            (Metric::BitsPerSecond, number(&stream, "bytes")? * 8.0 / number(&stream, "seconds")?),
            (Metric::LossRatio, lost / (received + lost)),
            (Metric::ReorderRatio, number(&datagrams, "reordered")? / received),
        ]),
        payload_bytes: Some(number(&stream, "bytes")? + number(&datagrams, "bytes")?),
        raw: Map::from_iter([("stream".into(), stream), ("datagrams".into(), datagrams)]),
    })
}

/// Starts a receiver and a sender and returns what the receiver says at its end.
fn transfer(
    lab: &Lab,
    path: &Path,
    [receiver, sender]: [&str; 2],
    options: &[(&str, u64)],
    seconds: u32,
) -> anyhow::Result<Value> {
    let mut command = lab.tool(&path.server, receiver)?;
    let receiver = Process::start(command.args(["--listen", &format!("0.0.0.0:{PORT}")]))?;
    wait_for("the receiver", || receiver.log().contains("ready").then_some(()))
        .with_context(|| format!("the receiver says: {}", receiver.log()))?;
    let mut command = lab.tool(&path.client, sender)?;
    command.args(["--connect", &format!("{}:{PORT}", path.address)]);
    for (option, value) in options {
        command.arg(option).arg(value.to_string());
    }
    let limit = Duration::from_secs(seconds.into()) + MARGIN;
    Running::start(&mut command)?.finish(limit)?;
    wait_at_most(MARGIN, "the receiver to end", || {
        let said = receiver.log();
        said.lines().last().filter(|line| line.contains("bytes")).and_then(|line| serde_json::from_str(line).ok())
    })
    .with_context(|| format!("the receiver says: {}", receiver.log()))
}
