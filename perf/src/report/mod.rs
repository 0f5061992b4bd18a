//! The figures of one run, for people.

mod markdown;
mod plot;
mod targets;

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;

use crate::results::Results;

/// Where to find figures and where to put what is made of them.
#[derive(Debug, clap::Args)]
pub(crate) struct ReportArgs {
    /// A file that `run` wrote
    file: PathBuf,
    /// Write a plot of the medians there
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Write the tables there instead of printing them
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Add the targets and whether they are met
    #[arg(long)]
    targets: bool,
}

/// Makes tables, and a plot if asked to.
pub(crate) fn run(arguments: &ReportArgs) -> anyhow::Result<()> {
    let results = Results::read(&arguments.file)?;
    let mut text = markdown::tables(&results);
    if arguments.targets {
        text += "\n";
        text += &targets::table(&results);
    }
    match &arguments.markdown {
        Some(path) => std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?,
        None => std::io::stdout().write_all(text.as_bytes()).context("printing")?,
    }
    if let Some(path) = &arguments.svg {
        std::fs::write(path, plot::svg(&results)).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// What `run` prints at its end.
pub(crate) fn summary(results: &Results) -> String {
    format!("{}\n{}", markdown::tables(results), targets::table(results))
}

/// Scenarios and contenders of tests.
#[cfg(test)]
mod example {
    use std::collections::BTreeMap;

    use serde_json::Map;

    use crate::metric::Metric;
    use crate::results::{LeftOut, Machine, Present, Results, Sample};

    /// Results with these figures, one round for each.
    pub(super) fn results(figures: &[(&str, &str, Metric, &[f64])]) -> Results {
        let mut results = Results::new(Machine::this("iperf 3".into(), "emulator"), 5, 3);
        for &(scenario, contender, metric, values) in figures {
            if results.contenders.iter().all(|present| present.name != contender) {
                results.contenders.push(Present { name: contender.into(), version: "1".into() });
            }
            for (round, &value) in (1..).zip(values) {
                results.samples.push(Sample {
                    round,
                    scenario: scenario.into(),
                    contender: contender.into(),
                    failure: None,
                    figures: BTreeMap::from([(metric, value)]),
                    raw: Map::new(),
                });
            }
        }
        results
    }

    /// A round that failed.
    pub(super) fn failed(scenario: &str, contender: &str, reason: &str) -> Sample {
        Sample {
            round: 1,
            scenario: scenario.into(),
            contender: contender.into(),
            failure: Some(reason.into()),
            figures: BTreeMap::new(),
            raw: Map::new(),
        }
    }

    /// What was not tried.
    pub(super) fn left_out(scenario: &str, contender: &str, reason: &str) -> LeftOut {
        LeftOut { scenario: scenario.into(), contender: contender.into(), reason: reason.into() }
    }
}
