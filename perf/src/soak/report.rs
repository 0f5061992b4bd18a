//! What came of a soak, for people and for programs.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::Serialize;

use super::plan::{Disturbance, Kind, Plan};
use super::probe::Gap;
use super::traffic::TrafficReport;
use super::watch::{Growth, NodeReport};
use crate::lab::SITES;

/// Raised when a reader would misunderstand a change.
const SCHEMA: u32 = 1;

/// Findings that the text names; the JSON report has all.
const FINDINGS_SHOWN: usize = 40;

/// A gap that was open for so long when a disturbance began is not of its making.
const EARLIER: Duration = Duration::from_millis(250);

/// How the link took one disturbance.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    disturbance: Disturbance,
    #[serde(skip)]
    began: Instant,
    #[serde(skip)]
    over: Instant,
    /// When it really began, since the beginning of the soak.
    began_ms: u64,
    /// The longest time that one of the probes had no answer, if that began before the next one did.
    longest_gap_ms: u64,
    /// How much of such a time counts: not what lay before its end, if nothing could get through until then.
    overrun_ms: u64,
    bound_ms: u64,
    /// The probe with that overrun.
    worst_probe: Option<String>,
    /// Probes that had had no answer for a while when it began: whatever came of them is not counted.
    silent_before: usize,
    ok: bool,
}

impl Outcome {
    /// Judges it by gaps that ended after its beginning.
    pub(super) fn of(
        disturbance: &Disturbance,
        gaps: &[(String, Gap)],
        began: Instant,
        over: Instant,
        since_start: Duration,
    ) -> Self {
        let counts_from = if disturbance.silences() { over } else { began };
        let after = |moment: Instant, gap: &Gap| gap.1.saturating_duration_since(gap.0.max(moment));
        let (gaps, earlier): (Vec<_>, Vec<_>) = gaps.iter().partition(|(_, gap)| gap.0 + EARLIER >= began);
        let worst = gaps.iter().max_by_key(|(_, gap)| after(counts_from, gap));
        let longest = gaps.iter().map(|(_, gap)| after(began, gap)).max().unwrap_or_default();
        let overrun = worst.map_or(Duration::ZERO, |(_, gap)| after(counts_from, gap));
        let bound = disturbance.bound();
        Self {
            disturbance: disturbance.clone(),
            began,
            over,
            began_ms: since_start.as_millis() as u64,
            longest_gap_ms: longest.as_millis() as u64,
            overrun_ms: overrun.as_millis() as u64,
            bound_ms: bound.as_millis() as u64,
            worst_probe: worst.filter(|_| !overrun.is_zero()).map(|(probe, _)| probe.clone()),
            silent_before: earlier.len(),
            ok: overrun <= bound,
        }
    }

    /// One line of the log.
    pub(super) fn line(&self) -> String {
        let Self {
            disturbance, began_ms, longest_gap_ms, overrun_ms, bound_ms, worst_probe, silent_before, ok, ..
        } = self;
        let mut line = format!("{:8.1} s  {disturbance}", *began_ms as f64 / 1e3);
        let _ = write!(line, ": longest gap {longest_gap_ms} ms");
        if disturbance.silences() {
            let _ = write!(line, ", {overrun_ms} ms of one after its end");
        }
        if !ok {
            let probe = worst_probe.as_deref().unwrap_or("a probe");
            let _ = write!(line, " ({probe}): MORE THAN {bound_ms} ms");
        }
        if *silent_before > 0 {
            let _ = write!(line, "; probes silent before: {silent_before}");
        }
        line
    }
}

/// All outcomes of one kind.
#[derive(Debug, Default, Serialize)]
struct KindSummary {
    count: usize,
    failed: usize,
    longest_gap_ms: u64,
    median_overrun_ms: u64,
    longest_overrun_ms: u64,
}

/// A whole soak.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    schema: u32,
    version: String,
    /// What nodes were told beyond their defaults.
    dataplane: String,
    pub(super) plan: Plan,
    /// Why it is no success; none if it is one.
    pub(super) findings: Vec<String>,
    kinds: BTreeMap<Kind, KindSummary>,
    pub(super) outcomes: Vec<Outcome>,
    pub(super) traffic: TrafficReport,
    /// By the letter of their site.
    nodes: BTreeMap<char, NodeReport>,
}

impl Report {
    pub(super) fn new(version: String, dataplane: String, plan: Plan) -> Self {
        Self {
            schema: SCHEMA,
            version,
            dataplane,
            plan,
            findings: Vec::new(),
            kinds: BTreeMap::new(),
            outcomes: Vec::new(),
            traffic: TrafficReport::default(),
            nodes: BTreeMap::new(),
        }
    }

    /// Judges all again, now that gaps have ended which lasted longer than there was time for.
    pub(super) fn judge_again(&mut self, gaps: &[(String, Gap)]) {
        let nexts: Vec<_> = self.outcomes.iter().skip(1).map(|next| Some(next.began)).chain([None]).collect();
        for (outcome, next) in self.outcomes.iter_mut().zip(nexts) {
            let concerns = |gap: &Gap| gap.1 > outcome.began && next.is_none_or(|next| gap.0 + EARLIER < next);
            let gaps: Vec<_> = gaps.iter().filter(|(_, gap)| concerns(gap)).cloned().collect();
            let since_start = Duration::from_millis(outcome.began_ms);
            *outcome = Outcome::of(&outcome.disturbance, &gaps, outcome.began, outcome.over, since_start);
        }
    }

    /// Probes that had no answer at the end.
    pub(super) fn note_silent(&mut self, gaps: &[(String, Gap)], end: Instant) {
        for (probe, (since, _)) in gaps.iter().filter(|(_, gap)| gap.1 >= end && end - gap.0 > EARLIER) {
            let silent = (end - *since).as_secs_f64();
            self.findings.push(format!("{probe}: at the end there had been no answer for {silent:.1} s"));
        }
    }

    /// Sums up and judges.
    pub(super) fn finish(&mut self, findings: Vec<String>, nodes: Vec<NodeReport>) {
        self.nodes = SITES.iter().map(|site| site.letter).zip(nodes).collect();
        self.kinds = summaries(&self.outcomes);
        self.findings.extend(findings);
        let late = self.outcomes.iter().filter(|outcome| !outcome.ok).map(|outcome| outcome.line().trim().to_owned());
        self.findings.extend(late);
        self.findings.extend(self.traffic.problems.iter().cloned());
        if self.traffic.wrong_answers > 0 {
            self.findings.push(format!("{} answers were not what was sent", self.traffic.wrong_answers));
        }
        if self.traffic.chunks == 0 || self.traffic.answers == 0 {
            self.findings.push("nothing got through".into());
        }
        let rekeying = self.kinds.contains_key(&Kind::Rekey);
        if rekeying && self.nodes.values().all(|node| node.lanes.get("rekeys").is_none_or(|&rekeys| rekeys == 0)) {
            self.findings.push("no lane has made new keys".into());
        }
        for (letter, node) in &self.nodes {
            let of = |line: &String| format!("the node of router-{letter} said: {line}");
            self.findings.extend(node.lines.iter().map(of));
            for (what, growth) in [("memory", node.rss), ("open files", node.files)] {
                if growth.is_some_and(|growth| !growth.flat) {
                    self.findings.push(format!("the node of router-{letter}: its {what} grow"));
                }
            }
        }
    }

    pub(super) fn write(&self, file: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string(self)?;
        std::fs::write(file, text).with_context(|| file.display().to_string())
    }

    /// For people. Writing to a string does not fail, so results of that are ignored.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "\n{:<12}{:>6}{:>8}{:>16}{:>22}{:>18}",
            "kind", "times", "failed", "longest gap", "what counts: median", "longest"
        );
        for (kind, summary) in &self.kinds {
            let KindSummary { count, failed, longest_gap_ms, median_overrun_ms, longest_overrun_ms } = summary;
            let _ = writeln!(
                text,
                "{kind:<12}{count:>6}{failed:>8}{longest_gap_ms:>13} ms{median_overrun_ms:>19} ms{longest_overrun_ms:>15} ms"
            );
        }
        let traffic = &self.traffic;
        let _ = writeln!(
            text,
            "\n{} long streams, {} short ones ({} could not begin at once): {:.1} GB in {} chunks\n{} of {} requests \
             answered",
            traffic.long_streams,
            traffic.short_streams,
            traffic.refused_connections,
            traffic.bytes as f64 / 1e9,
            traffic.chunks,
            traffic.answers,
            traffic.requests
        );
        for (letter, node) in &self.nodes {
            let mebibytes = |bytes: f64| format!("{:.1} MiB", bytes / f64::from(1 << 20));
            let _ = writeln!(
                text,
                "router-{letter}: {} starts; memory {}; open files {}; lanes {:?}; drops {:?}",
                node.starts,
                show_growth(node.rss, mebibytes),
                show_growth(node.files, |files| files.to_string()),
                node.lanes,
                node.drops
            );
        }
        if self.findings.is_empty() {
            let _ = write!(text, "\nNothing broke.");
            return text;
        }
        let _ = writeln!(text, "\nFindings (seed {}; --replay with the JSON report repeats them):", self.plan.seed);
        for finding in self.findings.iter().take(FINDINGS_SHOWN) {
            let _ = writeln!(text, "- {finding}");
        }
        if let Some(more @ 1..) = self.findings.len().checked_sub(FINDINGS_SHOWN) {
            let _ = writeln!(text, "- and {more} more");
        }
        text
    }
}

fn show_growth(growth: Option<Growth>, show: impl Fn(f64) -> String) -> String {
    match growth {
        None => "not judged".into(),
        Some(Growth { second_quarter, last_quarter, flat }) => {
            let verdict = if flat { "flat" } else { "GROWING" };
            format!("{} then {}, {verdict}", show(second_quarter), show(last_quarter))
        }
    }
}

fn summaries(outcomes: &[Outcome]) -> BTreeMap<Kind, KindSummary> {
    let mut by_kind: BTreeMap<Kind, Vec<&Outcome>> = BTreeMap::new();
    for outcome in outcomes {
        by_kind.entry(outcome.disturbance.kind).or_default().push(outcome);
    }
    let sum_up = |outcomes: Vec<&Outcome>| {
        let mut overruns: Vec<_> = outcomes.iter().map(|outcome| outcome.overrun_ms).collect();
        overruns.sort_unstable();
        KindSummary {
            count: outcomes.len(),
            failed: outcomes.iter().filter(|outcome| !outcome.ok).count(),
            longest_gap_ms: outcomes.iter().map(|outcome| outcome.longest_gap_ms).max().unwrap_or(0),
            median_overrun_ms: overruns[overruns.len() / 2],
            longest_overrun_ms: overruns.last().copied().unwrap_or(0),
        }
    };
    by_kind.into_iter().map(|(kind, outcomes)| (kind, sum_up(outcomes))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(start: Instant, gaps_ms: &[(u64, u64)]) -> Outcome {
        let at = |ms| start + Duration::from_millis(ms);
        let gaps: Vec<_> = gaps_ms.iter().map(|&(from, to)| (format!("from {from}"), (at(from), at(to)))).collect();
        let down = Disturbance { at_ms: 10_000, kind: Kind::Down, sites: "a".into(), hold_ms: 5_000, amount: 0 };
        Outcome::of(&down, &gaps, at(10_000), at(15_000), Duration::from_secs(10))
    }

    #[test]
    fn what_counts_against_a_link_is_silence_after_the_disturbance_is_over() {
        let start = Instant::now();
        let quick = outcome(start, &[(9_990, 15_200), (9_980, 10_300)]);
        assert_eq!((quick.longest_gap_ms, quick.overrun_ms, quick.ok), (5_200, 200, true));
        let never_hurt = outcome(start, &[]);
        assert_eq!((never_hurt.longest_gap_ms, never_hurt.overrun_ms, never_hurt.ok), (0, 0, true));
        let slow = outcome(start, &[(9_990, 15_200), (14_000, 20_001)]);
        assert_eq!((slow.overrun_ms, slow.ok, slow.worst_probe.as_deref()), (5_001, false, Some("from 14000")));
        let later = outcome(start, &[(9_990, 15_200), (17_000, 23_000)]);
        assert_eq!((later.overrun_ms, later.ok), (6_000, false), "a second gap counts as the first does");
        let gap = [("x".to_owned(), (start, start + Duration::from_secs(4)))];
        let hole = Disturbance { at_ms: 0, kind: Kind::BlackHole, sites: "a".into(), hold_ms: 5_000, amount: 1280 };
        let hole = Outcome::of(&hole, &gap, start, start + Duration::from_secs(5), Duration::ZERO);
        assert_eq!((hole.overrun_ms, hole.ok), (4_000, false), "it is to carry meanwhile");
        let earlier = outcome(start, &[(9_000, 30_000)]);
        assert_eq!((earlier.overrun_ms, earlier.silent_before, earlier.ok), (0, 1, true), "the one before is to blame");
    }

    #[test]
    fn a_gap_is_put_down_to_one_disturbance_in_its_whole_length() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut report = Report::new("0".into(), String::new(), Plan::draw(1, 2, Duration::ZERO, &[]));
        for began_ms in [10_000, 20_000] {
            let nat = Disturbance { at_ms: began_ms, kind: Kind::Nat, sites: "b".into(), hold_ms: 0, amount: 20_000 };
            let began = at(began_ms);
            report.outcomes.push(Outcome::of(&nat, &[], began, began, began - start));
        }
        report.judge_again(&[("x".into(), (at(9_990), at(35_000))), ("y".into(), (at(19_990), at(21_000)))]);
        let judged: Vec<_> = report.outcomes.iter().map(|each| (each.longest_gap_ms, each.silent_before)).collect();
        assert_eq!(judged, [(25_000, 0), (1_000, 1)]);
    }

    #[test]
    fn a_report_is_a_success_only_without_findings() {
        let plan = Plan::draw(1, 2, Duration::from_secs(60), &[Kind::Down]);
        let traffic = TrafficReport { chunks: 1, answers: 1, ..TrafficReport::default() };
        let report = |outcomes: Vec<Outcome>, traffic: &TrafficReport, nodes| {
            let mut report = Report::new("0".into(), String::new(), plan.clone());
            report.outcomes = outcomes;
            report.traffic = traffic.clone();
            report.finish(Vec::new(), nodes);
            report
        };
        let start = Instant::now();
        let good = report(vec![outcome(start, &[])], &traffic, vec![NodeReport::default()]);
        assert!(good.findings.is_empty() && good.text().contains("Nothing broke"), "{}", good.text());
        let growing = Some(Growth { second_quarter: 1.0, last_quarter: 9.0, flat: false });
        let bad = [
            report(vec![outcome(start, &[(10_000, 30_000)])], &traffic, Vec::new()),
            report(Vec::new(), &TrafficReport::default(), Vec::new()),
            report(Vec::new(), &TrafficReport { wrong_answers: 1, ..traffic.clone() }, Vec::new()),
            report(Vec::new(), &TrafficReport { problems: vec!["x".into()], ..traffic.clone() }, Vec::new()),
            report(Vec::new(), &traffic, vec![NodeReport { rss: growing, ..NodeReport::default() }]),
            report(Vec::new(), &traffic, vec![NodeReport { files: growing, ..NodeReport::default() }]),
            report(Vec::new(), &traffic, vec![NodeReport { lines: vec!["ERROR".into()], ..NodeReport::default() }]),
        ];
        for report in bad {
            assert_eq!(report.findings.len(), 1, "{}", report.text());
            assert!(report.text().contains("seed 1"), "{}", report.text());
        }
    }
}
