//! What was set as the goal, and what became of it.

use std::fmt::Write;

use super::markdown::ratio;
use crate::metric::Metric;
use crate::results::Results;

const US: &str = "ringlane";

/// One goal: a figure of ringlane's, or its ratio to another contender's in the same scenario.
#[derive(Debug)]
struct Target {
    measure: &'static str,
    scenario: &'static str,
    metric: Metric,
    /// The contender it is compared to; none for a figure that stands by itself.
    over: Option<&'static str>,
    /// The scenario of the figure it is compared to, where it is another one.
    over_scenario: Option<&'static str>,
    bound: Bound,
}

#[derive(Clone, Copy, Debug)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

use Bound::{AtLeast, AtMost};

const TARGETS: [Target; 21] = {
    const NULL: Option<&str> = Some("null");
    const BARE: Option<&str> = Some("bare");
    const WIREGUARD_GO: Option<&str> = Some("wireguard-go");
    const TAILSCALE: Option<&str> = Some("tailscale");
    const fn target(
        measure: &'static str,
        scenario: &'static str,
        metric: Metric,
        over: Option<&'static str>,
        bound: Bound,
    ) -> Target {
        Target { measure, scenario, metric, over, over_scenario: None, bound }
    }
    [
        target("TCP 1 stream", "tcp1", Metric::BitsPerSecond, NULL, AtLeast(0.80)),
        target("TCP 1 stream", "tcp1", Metric::BitsPerSecond, WIREGUARD_GO, AtLeast(4.0)),
        target("TCP 1 stream", "tcp1", Metric::BitsPerSecond, TAILSCALE, AtLeast(4.0)),
        target("TCP 8 streams", "tcp8", Metric::BitsPerSecond, TAILSCALE, AtLeast(3.5)),
        target("TCP, both directions", "bidir", Metric::BitsPerSecond, TAILSCALE, AtLeast(3.5)),
        target("CPU-seconds per GB, 1 stream", "tcp1", Metric::CpuSecondsPerGb, TAILSCALE, AtMost(0.30)),
        target("CPU-seconds per GB, 8 streams", "tcp8", Metric::CpuSecondsPerGb, TAILSCALE, AtMost(0.30)),
        target("UDP, 1300 bytes, packets/s", "udp1300", Metric::PacketsPerSecond, WIREGUARD_GO, AtLeast(2.5)),
        target("UDP, 200 bytes, packets/s", "udp200", Metric::PacketsPerSecond, WIREGUARD_GO, AtLeast(3.0)),
        target("p99 RTT under load", "rtt-load", Metric::RttP99Us, TAILSCALE, AtMost(0.5)),
        target("idle RTT p50", "rtt-idle", Metric::RttP50Us, WIREGUARD_GO, AtMost(1.1)),
        target(
            "2 % loss, 5 % reordering, 20 ms, 1 stream",
            "loss2-tcp1",
            Metric::BitsPerSecond,
            TAILSCALE,
            AtLeast(1.5),
        ),
        target("2 % loss, 5 % reordering, 20 ms, 1 stream", "loss2-tcp1", Metric::BitsPerSecond, BARE, AtLeast(0.9)),
        target(
            "2 % loss, 5 % reordering, 20 ms, 8 streams",
            "loss2-tcp8",
            Metric::BitsPerSecond,
            TAILSCALE,
            AtLeast(1.5),
        ),
        target("2 % loss, 5 % reordering, 20 ms, 8 streams", "loss2-tcp8", Metric::BitsPerSecond, BARE, AtLeast(0.9)),
        target("GSO cut on the wire, 1 stream", "cut-tcp1", Metric::BitsPerSecond, WIREGUARD_GO, AtLeast(3.0)),
        Target {
            over_scenario: Some("tcp1"),
            ..target(
                "9000-byte underlay over 1500-byte, nothing configured",
                "jumbo-auto",
                Metric::BitsPerSecond,
                Some(US),
                AtLeast(1.4),
            )
        },
        target("p99 above idle beside bulk, 100 Mbit/s", "fair-100", Metric::RttP99AboveUs, None, AtMost(10_000.0)),
        target("enters per packet, 1 stream", "tcp1", Metric::EntersPerPacket, None, AtMost(0.1)),
        target("enters per packet, 8 streams", "tcp8", Metric::EntersPerPacket, None, AtMost(0.1)),
        target("RSS, 8 streams", "tcp8", Metric::RssPeakBytes, None, AtMost(64.0 * 1024.0 * 1024.0)),
    ]
};

/// All targets with what was measured. Writing to a string does not fail, so results of that are ignored.
pub(super) fn table(results: &Results) -> String {
    let mut text = "### Targets\n\n| Measure | Over | Target | Measured | |\n|---|---|---:|---:|---|\n".to_owned();
    for target in &TARGETS {
        let (measured, verdict) = match target.measured(results) {
            Ok(value) => (target.show(value), if target.bound.holds(value) { "met" } else { "**MISSED**" }.to_owned()),
            Err(missing) => (String::new(), format!("not measured: {missing}")),
        };
        let bound = match target.bound {
            AtLeast(value) => format!(">= {}", target.show(value)),
            AtMost(value) => format!("<= {}", target.show(value)),
        };
        let measure = target.measure;
        let mut over = target.over.unwrap_or("").to_owned();
        if let Some(scenario) = target.over_scenario {
            over += &format!(", {scenario}");
        }
        let _ = writeln!(text, "| {measure} | {over} | {bound} | {measured} | {verdict} |");
    }
    text +=
        "\nAllocations per packet are not measured here: a test counts them (`control/daemon/tests/no_alloc.rs`).\n";
    text
}

impl Target {
    /// The figure or ratio that is to be within the bound, or who has no figures.
    fn measured(&self, results: &Results) -> Result<f64, String> {
        let median = |scenario: &str, contender: &str| {
            let spread = results.spread(scenario, contender, self.metric);
            spread.map(|spread| spread.median).ok_or_else(|| format!("{contender} has no figure in {scenario}"))
        };
        let ours = median(self.scenario, US)?;
        let over_scenario = self.over_scenario.unwrap_or(self.scenario);
        match self.over.map(|over| median(over_scenario, over)).transpose()? {
            None => Ok(ours),
            Some(theirs) if theirs > 0.0 => Ok(ours / theirs),
            Some(_) => Err("too little to compare with".into()),
        }
    }

    fn show(&self, value: f64) -> String {
        match self.over {
            Some(_) => ratio(value, 1.0),
            None => self.metric.show(value),
        }
    }
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            AtLeast(bound) => value >= bound,
            AtMost(bound) => value <= bound,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::example;
    use super::*;
    use crate::scenario::Scenario;

    #[test]
    fn a_target_is_met_missed_or_not_measured() {
        let text = table(&example::results(&[
            ("tcp1", "ringlane", Metric::BitsPerSecond, &[8e9, 9e9]),
            ("tcp1", "null", Metric::BitsPerSecond, &[10e9]),
            ("tcp1", "wireguard-go", Metric::BitsPerSecond, &[3e9]),
            ("tcp1", "ringlane", Metric::EntersPerPacket, &[0.25]),
            ("rtt-idle", "ringlane", Metric::RttP50Us, &[110.0]),
            ("rtt-idle", "wireguard-go", Metric::RttP50Us, &[100.0]),
            ("tcp8", "ringlane", Metric::RssPeakBytes, &[32.0 * 1024.0 * 1024.0]),
            ("jumbo-auto", "ringlane", Metric::BitsPerSecond, &[12.75e9]),
            ("fair-100", "ringlane", Metric::RttP99AboveUs, &[12_000.0]),
        ]));
        for line in [
            "| TCP 1 stream | null | >= 0.80 | 0.85 | met |",
            "| TCP 1 stream | wireguard-go | >= 4.00 | 2.83 | **MISSED** |",
            "| TCP 1 stream | tailscale | >= 4.00 |  | not measured: tailscale has no figure in tcp1 |",
            "| idle RTT p50 | wireguard-go | <= 1.10 | 1.10 | met |",
            "| enters per packet, 1 stream |  | <= 0.100 | 0.250 | **MISSED** |",
            "| 9000-byte underlay over 1500-byte, nothing configured | ringlane, tcp1 | >= 1.40 | 1.50 | met |",
            "| p99 above idle beside bulk, 100 Mbit/s |  | <= 10000 us | 12000 us | **MISSED** |",
            "| RSS, 8 streams |  | <= 64.0 MiB | 32.0 MiB | met |",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn every_target_is_of_a_scenario_there_is() {
        for target in &TARGETS {
            for scenario in [Some(target.scenario), target.over_scenario].into_iter().flatten() {
                assert!(Scenario::named(scenario).is_ok(), "{target:?}");
            }
        }
    }
}
