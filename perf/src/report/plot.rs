//! A plot of all medians: one panel for each scenario, one bar for each contender, a line for the spread.
//!
//! Bars start at zero, and each panel has a scale of its own. Text takes the reader's colours: dark on light, or light
//! on dark.

use std::fmt::Write;

use crate::metric::Metric;
use crate::results::{Results, Spread};
use crate::scenario::{SCENARIOS, Scenario};

const WIDTH: f64 = 900.0;
const MARGIN: f64 = 16.0;
/// Where bars begin and how long the longest is; values are written to their right.
const BAR_LEFT: f64 = 150.0;
const BAR_WIDTH: f64 = 560.0;
const BAR_HEIGHT: f64 = 16.0;
const ROW_HEIGHT: f64 = 22.0;
const TITLE_HEIGHT: f64 = 30.0;
const PANEL_GAP: f64 = 14.0;

/// Ours stands out, what is no tunnel stays back.
fn colour(contender: &str) -> &'static str {
    match contender {
        "bare" => "#9aa0a6",
        "null" => "#7a8794",
        "ringlane" => "#e4572e",
        "ringlane-epoll" => "#ee9478",
        "ringlane-quic" => "#b23a20",
        "ringlane-stream" => "#f2a65a",
        "ringlane-1280" => "#f6b8a6",
        "wireguard-go" => "#2e86ab",
        "tailscale" => "#5b6abf",
        "nebula" => "#3a9d7a",
        "boringtun" | "gotatun" => "#b5893a",
        _ => "#8e6c8a",
    }
}

/// An SVG document. Writing to a string does not fail, so results of that are ignored.
pub(super) fn svg(results: &Results) -> String {
    let mut panels = String::new();
    let mut top = MARGIN + 26.0;
    for scenario in &SCENARIOS {
        let bars = bars(results, scenario);
        if bars.is_empty() {
            continue;
        }
        top += panel(&mut panels, scenario, &bars, top) + PANEL_GAP;
    }
    let machine = &results.machine;
    let title = format!(
        "{} cores of {}, Linux {}; medians of {} x {} s, lines from lowest to highest",
        machine.cores, machine.cpu, machine.kernel, results.rounds, results.seconds,
    );
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top}" viewBox="0 0 {WIDTH} {top}" role="img" aria-label="{title}">
<style>
text {{ font: 13px system-ui, sans-serif; fill: #24292f; }}
.title {{ font-weight: 600; }}
.note {{ font-size: 12px; font-weight: 400; opacity: 0.75; }}
.spread {{ stroke: #24292f; stroke-width: 1.5; }}
@media (prefers-color-scheme: dark) {{ text {{ fill: #e6edf3; }} .spread {{ stroke: #e6edf3; }} }}
</style>
<text class="note" x="{MARGIN}" y="{y}">{title}</text>
{panels}</svg>
"#,
        title = escape(&title),
        y = MARGIN + 8.0,
    )
}

fn bars(results: &Results, scenario: &Scenario) -> Vec<(String, Spread)> {
    let spread = |name: &str| results.spread(scenario.name, name, scenario.metric());
    results.contenders.iter().filter_map(|contender| Some((contender.name.clone(), spread(&contender.name)?))).collect()
}

/// Adds a panel and returns its height.
fn panel(svg: &mut String, scenario: &Scenario, bars: &[(String, Spread)], top: f64) -> f64 {
    let metric = scenario.metric();
    let better = if metric.larger_is_better() { "longer is better" } else { "shorter is better" };
    let _ = writeln!(
        svg,
        r#"<text class="title" x="{MARGIN}" y="{:.1}">{}<tspan class="note" dx="10">{metric}, {better}</tspan></text>"#,
        top + 16.0,
        escape(scenario.title),
    );
    let largest = bars.iter().map(|(_, spread)| spread.highest).fold(f64::MIN_POSITIVE, f64::max);
    for (row, (contender, spread)) in bars.iter().enumerate() {
        bar(svg, contender, metric, spread, largest, top + TITLE_HEIGHT + ROW_HEIGHT * row as f64);
    }
    TITLE_HEIGHT + ROW_HEIGHT * bars.len() as f64
}

fn bar(svg: &mut String, contender: &str, metric: Metric, spread: &Spread, largest: f64, top: f64) {
    let end = |value: f64| BAR_LEFT + BAR_WIDTH * (value / largest).clamp(0.0, 1.0);
    let (baseline, middle) = (top + BAR_HEIGHT - 3.5, top + BAR_HEIGHT / 2.0);
    let _ = writeln!(
        svg,
        r#"<text text-anchor="end" x="{:.1}" y="{baseline:.1}">{}</text>
<rect x="{BAR_LEFT}" y="{top:.1}" width="{:.1}" height="{BAR_HEIGHT}" rx="2" fill="{}"/>
<line class="spread" x1="{:.1}" y1="{middle:.1}" x2="{:.1}" y2="{middle:.1}"/>
<text x="{:.1}" y="{baseline:.1}">{}</text>"#,
        BAR_LEFT - 8.0,
        escape(contender),
        end(spread.median) - BAR_LEFT,
        colour(contender),
        end(spread.lowest),
        end(spread.highest),
        end(spread.highest) + 8.0,
        escape(&metric.show(spread.median)),
    );
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&apos;",
            // XML has no way to write them.
            control if control.is_control() => escaped.push(' '),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::super::example;
    use super::*;

    #[test]
    fn text_cannot_break_out_of_the_document() {
        assert_eq!(escape("<a b=\"c\">&'\u{1}"), "&lt;a b=&quot;c&quot;&gt;&amp;&apos; ");
        let mut results = example::results(&[("tcp1", "<script>", Metric::BitsPerSecond, &[1e9])]);
        results.machine.cpu = "a\" onload=\"b".into();
        let svg = svg(&results);
        assert!(svg.contains("&lt;script&gt;") && !svg.contains("<script>") && !svg.contains("\" onload"), "{svg}");
    }

    #[test]
    fn bars_are_as_long_as_their_medians_are_large() {
        let svg = svg(&example::results(&[
            ("tcp1", "bare", Metric::BitsPerSecond, &[8e9]),
            ("tcp1", "ringlane", Metric::BitsPerSecond, &[2e9]),
        ]));
        assert!(svg.contains(r#"width="560.0""#) && svg.contains(r#"width="140.0""#), "{svg}");
        assert_eq!(svg.matches("class=\"title\"").count(), 1, "what was not measured has no panel");
    }
}
