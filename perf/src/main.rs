//! Whole-system measurements: Ringlane beside its peers, on this machine, in one run.
//!
//! Every contender gets a lab of its own (`scripts/lab`: two sites, hosts behind routers) and all labs stay up
//! throughout; the rounds go A B C, A B C, so that whatever else the machine does hits all of them. A figure is worth
//! something only as a ratio to another of the same run. How to read and repeat them: `docs/performance.md`.

mod contender;
mod iperf;
mod lab;
mod report;
mod tools;

use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::{Parser, Subcommand};

use contender::{Contender, Presence};
use iperf::Scenario;
use report::{Run, Sample};

/// Measures Ringlane beside its peers.
#[derive(Debug, Parser)]
#[command(name = "ringlane-perf", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure TCP from host to host: one and eight streams, both directions, every contender
    Run(RunArgs),
    /// The programs that measurements are made of
    #[command(hide = true)]
    Tool(tools::ToolArgs),
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    /// Seconds per measurement
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Rounds over all contenders; the median of them is reported
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Whom to measure (repeatable) [default: all that are installed]
    #[arg(long = "contender", value_enum)]
    contenders: Vec<Contender>,
    /// The ringlane binary [default: beside this one]
    #[arg(long)]
    ringlane: Option<PathBuf>,
    /// Where the raw figures go
    #[arg(long, default_value = "perf-results.json")]
    output: PathBuf,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Run(arguments) => run(&arguments),
        Command::Tool(arguments) => tools::run(arguments),
    }
}

fn run(arguments: &RunArgs) -> anyhow::Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "network namespaces need root");
    let ringlane = match &arguments.ringlane {
        Some(path) => path.clone(),
        None => std::env::current_exe().context("our own path")?.with_file_name("ringlane"),
    };
    let mut run = Run::new(arguments.seconds, arguments.rounds);
    let mut started = Vec::new();
    for contender in Contender::chosen(&arguments.contenders) {
        match contender.presence(&ringlane) {
            Presence::Absent(missing) => {
                println!("{contender}: absent ({missing})");
                run.absent.insert(contender.to_string(), missing);
            }
            Presence::Version(version) => {
                println!("{contender}: {version}");
                let lab = contender.start(&ringlane).with_context(|| format!("starting {contender}"))?;
                run.versions.insert(contender.to_string(), version);
                started.push((contender, lab));
            }
        }
    }
    for round in 1..=arguments.rounds {
        for scenario in Scenario::ALL {
            for (contender, tunnel) in &started {
                let throughput = iperf::measure(&tunnel.lab, scenario, arguments.seconds)
                    .with_context(|| format!("{contender}, {scenario}, round {round}"))?;
                println!("round {round}, {scenario}, {contender}: {:.0} Mbit/s", throughput.bits_per_second / 1e6);
                run.samples.push(Sample { round, contender: contender.to_string(), scenario, throughput });
            }
        }
    }
    std::fs::write(&arguments.output, serde_json::to_string_pretty(&run)?)
        .with_context(|| format!("writing {}", arguments.output.display()))?;
    println!("\n{}\nRaw figures: {}", run.table(), arguments.output.display());
    Ok(())
}
