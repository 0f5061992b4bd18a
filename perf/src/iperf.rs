//! One measurement: `iperf3` from host to host.

use std::fmt;

use anyhow::Context;
use serde::Serialize;

use crate::lab::{Lab, Process, run, wait_for};

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Scenario {
    /// TCP streams at once.
    pub(crate) streams: u32,
    /// Whether site B sends.
    pub(crate) reverse: bool,
}

impl Scenario {
    /// All of them, in the order they are measured.
    pub(crate) const ALL: [Self; 4] = [
        Self { streams: 1, reverse: false },
        Self { streams: 1, reverse: true },
        Self { streams: 8, reverse: false },
        Self { streams: 8, reverse: true },
    ];
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{} TCP, {}", self.streams, if self.reverse { "B -> A" } else { "A -> B" }))
    }
}

/// What came of it.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub(crate) struct Throughput {
    /// Payload the receiver got.
    pub(crate) bits_per_second: f64,
    /// Segments the sender sent again.
    pub(crate) retransmits: u64,
}

/// Measures one scenario in one lab.
pub(crate) fn measure(lab: &Lab, scenario: Scenario, seconds: u32) -> anyhow::Result<Throughput> {
    let _server = Process::start(lab.command("host-b", "iperf3").arg("--server"))?;
    wait_for("iperf3 to listen", || {
        lab.run("host-b", "ss --no-header --listening --tcp --numeric sport = :5201")
            .ok()
            .filter(|found| !found.is_empty())
    })?;
    let mut client = lab.command("host-a", "iperf3");
    client.args(["--client", "10.20.0.2", "--json", "--time", &seconds.to_string()]);
    client.args(["--parallel", &scenario.streams.to_string()]).args(scenario.reverse.then_some("--reverse"));
    let report: serde_json::Value = serde_json::from_str(&run(&mut client)?).context("what iperf3 printed")?;
    let end = &report["end"];
    Ok(Throughput {
        bits_per_second: end["sum_received"]["bits_per_second"].as_f64().context("iperf3 reports what was received")?,
        retransmits: end["sum_sent"]["retransmits"].as_u64().unwrap_or(0),
    })
}
