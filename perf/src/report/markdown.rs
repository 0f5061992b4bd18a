//! Tables: one for each scenario, with medians, spread and ratios.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use crate::metric::Metric;
use crate::results::{LeftOut, Results};
use crate::scenario::{SCENARIOS, Scenario};

/// What the others are compared to, where it was measured.
const REFERENCES: [&str; 4] = ["bare", "null", "wireguard-go", "tailscale"];

/// The longest reason of a failure that is shown whole, in characters.
const REASON_CHARACTERS_MAX: usize = 300;

/// All figures of a run. Writing to a string does not fail, so results of that are ignored.
pub(super) fn tables(results: &Results) -> String {
    let machine = &results.machine;
    let mut text = format!(
        "{} cores of {}, Linux {}, TCP congestion control {}, {}, links disturbed by {}. \
         Medians of {} x {} s; a ratio is between medians of this run.\n",
        machine.cores,
        machine.cpu,
        machine.kernel,
        machine.congestion_control,
        machine.iperf3,
        machine.disturber,
        results.rounds,
        results.seconds,
    );
    for scenario in &SCENARIOS {
        text += &table(results, scenario);
    }
    if !results.contenders.is_empty() {
        text += "\nVersions:\n\n";
    }
    for contender in &results.contenders {
        let _ = writeln!(text, "- {}: {}", contender.name, contender.version);
    }
    text += &omissions(results);
    text
}

fn table(results: &Results, scenario: &Scenario) -> String {
    let metric = scenario.metric();
    let medians: Vec<_> = results
        .contenders
        .iter()
        .filter_map(|contender| Some((&contender.name, results.spread(scenario.name, &contender.name, metric)?)))
        .collect();
    if medians.is_empty() {
        return String::new();
    }
    let references: Vec<_> = REFERENCES
        .into_iter()
        .filter_map(|name| Some((name, results.spread(scenario.name, name, metric)?.median)))
        .collect();
    let mut text =
        format!("\n### {} (`{}`)\n\n| Contender | Median | Lowest to highest |", scenario.title, scenario.name);
    for (name, _) in &references {
        let _ = write!(text, " / {name} |");
    }
    let _ = write!(text, " Further medians |\n|---|---:|---:|{}---|\n", "---:|".repeat(references.len()));
    for (name, spread) in medians {
        let _ = write!(
            text,
            "| {name} | {} | {} to {} |",
            metric.show(spread.median),
            metric.show(spread.lowest),
            metric.show(spread.highest),
        );
        for (_, reference) in &references {
            let _ = write!(text, " {} |", ratio(spread.median, *reference));
        }
        let _ = writeln!(text, " {} |", further(results, scenario, name));
    }
    text
}

/// A ratio with three significant digits at least.
pub(super) fn ratio(value: f64, reference: f64) -> String {
    if reference == 0.0 {
        return "-".into();
    }
    let ratio = value / reference;
    if ratio.abs() < 0.1 { format!("{ratio:.3}") } else { format!("{ratio:.2}") }
}

/// All other figures of a contender.
fn further(results: &Results, scenario: &Scenario, contender: &str) -> String {
    let metrics = results.of(scenario.name, contender).flat_map(|sample| sample.figures.keys().copied());
    let metrics: BTreeSet<Metric> = metrics.filter(|&metric| metric != scenario.metric()).collect();
    let figures = metrics.into_iter().filter_map(|metric| {
        let median = results.spread(scenario.name, contender, metric)?.median;
        let of_note = !metric.is_trouble() || median > 0.0;
        of_note.then(|| format!("{metric} {}", metric.show(median)))
    });
    figures.collect::<Vec<_>>().join(", ")
}

/// What was absent, left out or failed.
fn omissions(results: &Results) -> String {
    let mut lines = Vec::new();
    for (contender, missing) in &results.absent {
        lines.push(format!("- {contender}: absent: {missing}"));
    }
    for (reason, contenders, scenarios) in grouped(&results.left_out) {
        lines.push(format!("- {}, {}: not done: {reason}", scenarios.join(" "), contenders.join(" ")));
    }
    for sample in &results.samples {
        let Some(reason) = &sample.failure else { continue };
        let reason = reason.split_whitespace().collect::<Vec<_>>().join(" ");
        let shown: String = reason.chars().take(REASON_CHARACTERS_MAX).collect();
        let rest = if shown.len() < reason.len() { " ..." } else { "" };
        lines.push(format!(
            "- {}, {}, round {}: failed: {shown}{rest}",
            sample.scenario, sample.contender, sample.round
        ));
    }
    if lines.is_empty() { String::new() } else { format!("\nNot measured:\n\n{}\n", lines.join("\n")) }
}

/// Reasons, each with the contenders it kept from the same scenarios, and these.
fn grouped(left_out: &[LeftOut]) -> Vec<(&str, Vec<&str>, Vec<&str>)> {
    let mut by_contender = BTreeMap::<_, Vec<_>>::new();
    for LeftOut { scenario, contender, reason } in left_out {
        by_contender.entry((reason.as_str(), contender.as_str())).or_default().push(scenario.as_str());
    }
    let mut groups = BTreeMap::<_, Vec<_>>::new();
    for ((reason, contender), scenarios) in by_contender {
        groups.entry((reason, scenarios)).or_default().push(contender);
    }
    groups.into_iter().map(|((reason, scenarios), contenders)| (reason, contenders, scenarios)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::example;
    use super::*;

    #[test]
    fn tables_show_medians_spread_and_ratios_to_what_was_measured() {
        let text = tables(&example::results(&[
            ("tcp1", "bare", Metric::BitsPerSecond, &[8e9, 1e10, 9e9]),
            ("tcp1", "ringlane", Metric::BitsPerSecond, &[4.5e9, 4e9, 5e9]),
            ("tcp1", "ringlane", Metric::Retransmits, &[3.0]),
            ("rtt-idle", "ringlane", Metric::RttP50Us, &[250.0]),
        ]));
        for line in [
            "| Contender | Median | Lowest to highest | / bare | Further medians |",
            "| bare | 9.00 Gbit/s | 8.00 Gbit/s to 10.00 Gbit/s | 1.00 |  |",
            "| ringlane | 4.50 Gbit/s | 4.00 Gbit/s to 5.00 Gbit/s | 0.50 | retransmits 3 |",
            "| ringlane | 250 us | 250 us to 250 us |  |",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
        assert!(!text.contains("8 streams"), "what was not measured is not shown:\n{text}");
    }

    #[test]
    fn whatever_is_missing_is_named_with_its_reason() {
        let mut results = example::results(&[]);
        results.absent.insert("nebula".into(), "it is not installed".into());
        for contender in ["null", "hyprspace"] {
            for scenario in ["two-peers", "other"] {
                results.left_out.push(example::left_out(scenario, contender, "joins two sites only"));
            }
        }
        results.samples.push(example::failed("tcp1", "hyprspace", "it\nhung"));
        let text = tables(&results);
        for line in [
            "- nebula: absent: it is not installed",
            "- two-peers other, hyprspace null: not done: joins two sites only",
            "- tcp1, hyprspace, round 1: failed: it hung",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn small_ratios_keep_their_digits() {
        assert_eq!(ratio(1.0, 3.0), "0.33");
        assert_eq!(ratio(1.0, 30.0), "0.033");
        assert_eq!(ratio(1.0, 0.0), "-");
    }
}
