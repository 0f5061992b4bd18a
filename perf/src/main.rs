//! Whole-system measurements: Ringlane beside its peers, on this machine, in one run.
//!
//! Every contender gets a lab of its own (`scripts/lab`: sites with hosts behind routers). All labs of a kind stay up
//! while it is measured; the rounds go A B C, A B C, so that whatever else the machine does hits all of them. A figure
//! is worth something only as a ratio to another of the same run. How to read and repeat them: `docs/performance.md`.
//!
//! Beside that, a soak: does the link hold whatever is done to it (`docs/soak.md`)?

mod contender;
mod lab;
mod metric;
mod process;
mod report;
mod results;
mod runner;
mod scenario;
mod soak;
mod tools;
mod underlay;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::builder::PossibleValuesParser;
use clap::{Parser, Subcommand};

use contender::Contender;
use runner::Plan;
use scenario::SCENARIOS;

/// Measures Ringlane beside its peers.
#[derive(Debug, Parser)]
#[command(name = "ringlane-perf", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure: every scenario, every contender that is installed
    Run(RunArgs),
    /// Disturb nodes for minutes or hours while streams go through them, and say what broke
    Soak(soak::SoakArgs),
    /// Make tables and a plot of a file that `run` wrote
    Report(report::ReportArgs),
    /// List the scenarios
    Scenarios,
    /// The programs that measurements are made of
    #[command(hide = true)]
    Tool(tools::ToolArgs),
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    /// Seconds per measurement [default: 5, or 2 if quick]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: Option<u32>,
    /// Rounds over all contenders; the median of them is reported [default: 3, or 1 if quick]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: Option<u32>,
    /// What to measure (repeatable, or separated by commas) [default: everything; `scenarios` lists them]
    #[arg(long = "scenario", value_name = "NAME", value_delimiter = ',', hide_possible_values = true,
        value_parser = PossibleValuesParser::new(SCENARIOS.iter().map(|scenario| scenario.name)))]
    scenarios: Vec<String>,
    /// Whom to measure (repeatable, or separated by commas); the bare underlay always is [default: all installed]
    #[arg(long = "contender", value_enum, value_name = "NAME", value_delimiter = ',')]
    contenders: Vec<Contender>,
    /// The essential within three minutes: fewer scenarios and contenders, short measurements
    #[arg(long)]
    quick: bool,
    /// The ringlane binary [default: beside this one]
    #[arg(long, value_name = "FILE")]
    ringlane: Option<PathBuf>,
    /// Where the raw figures go
    #[arg(long, value_name = "FILE", default_value = "perf-results.json")]
    output: PathBuf,
    /// What the names of namespaces and interfaces begin with: two runs at the same time need two
    #[arg(long, default_value = "rlp", value_parser = parse_prefix)]
    prefix: String,
}

/// The budget of a quick run.
const QUICK: Duration = Duration::from_secs(180);

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(arguments) => run(&arguments),
        Command::Soak(arguments) => soak::run(&arguments),
        Command::Report(arguments) => report::run(&arguments),
        Command::Scenarios => {
            for scenario in &SCENARIOS {
                println!("{:15} {}", scenario.name, scenario.title);
            }
            Ok(())
        }
        Command::Tool(arguments) => tools::run(arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &RunArgs) -> anyhow::Result<()> {
    let started = Instant::now();
    ensure!(rustix::process::geteuid().is_root(), "measuring makes network namespaces, which needs root");
    let contenders = match &arguments.contenders[..] {
        [] if arguments.quick => Contender::chosen(&Contender::QUICK),
        named => Contender::chosen(named),
    };
    let ringlane = match &arguments.ringlane {
        Some(path) => std::path::absolute(path).context("the ringlane binary")?,
        None => std::env::current_exe().context("our own path")?.with_file_name("ringlane"),
    };
    let (seconds, rounds) = if arguments.quick { (2, 1) } else { (5, 3) };
    let plan = Plan {
        scenarios: Plan::scenarios(&arguments.scenarios, arguments.quick)?,
        contenders,
        seconds: arguments.seconds.unwrap_or(seconds),
        rounds: arguments.rounds.unwrap_or(rounds),
        prefix: arguments.prefix.clone(),
        ringlane,
        started,
        deadline: arguments.quick.then(|| started + QUICK),
    };
    process::end_on_signals()?;
    let results = runner::carry_out(&plan)?;
    results.write(&arguments.output)?;
    println!("\n{}\nRaw figures: {}", report::summary(&results), arguments.output.display());
    process::ensure_not_interrupted()
}

/// Four characters for the contender and one for the site come after it, and an interface has fifteen.
fn parse_prefix(text: &str) -> Result<String, String> {
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    match text.len() {
        1..=8 if plain => Ok(text.into()),
        _ => Err("1 to 8 letters and digits".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_prefix_leaves_room_in_an_interfaces_name() {
        assert!(parse_prefix("rlp").is_ok() && parse_prefix("12345678").is_ok());
        assert!(parse_prefix("").is_err() && parse_prefix("123456789").is_err() && parse_prefix("a-b").is_err());
    }
}
