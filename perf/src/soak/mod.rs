//! Hours of traffic through nodes that are killed, moved, cut off and held up: does the link bend, and not break?
//!
//! A seed decides what is done when ([`plan`]); it is done from outside ([`disturb`]) while hosts behind the nodes send
//! to each other ([`traffic`]), and the nodes' memory, files and logs are watched ([`watch`]). How to read what comes of it:
//! `docs/soak.md`.

mod disturb;
mod plan;
mod probe;
mod report;
mod stream;
mod traffic;
mod watch;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;

use crate::contender::{Contender, NodeSettings, Presence, Setup};
use crate::lab::SITES;
use crate::process::{self, is_interrupted};
use crate::underlay::Underlay;
use disturb::Ground;
use plan::{Kind, MINUTES_MAX, Plan};
use report::{Outcome, Report};
use traffic::Traffic;
use watch::Watch;

/// Epochs short enough that every soak has hundreds of them.
const REKEYING: &str = "rekey_records = 4096\nrekey_seconds = 10\n";

/// After the last disturbance and before the next, no gap may be open: how often to look for its end.
const SETTLE_LOOK: Duration = Duration::from_millis(100);

#[derive(Debug, clap::Args)]
pub(crate) struct SoakArgs {
    /// How long to disturb
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=i64::from(MINUTES_MAX)))]
    minutes: u32,
    /// What is done when is drawn from this [default: the clock; it is printed]
    #[arg(long)]
    seed: Option<u64>,
    /// Ways to disturb (repeatable, or separated by commas) [default: all]
    #[arg(long, value_enum, value_name = "KIND", value_delimiter = ',')]
    kinds: Vec<Kind>,
    /// Sites: with three, a has both others as peers
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(2..=3))]
    sites: u8,
    /// Do what this plan says, or the plan in this report
    #[arg(long, value_name = "FILE", conflicts_with_all = ["minutes", "seed", "kinds", "sites"])]
    replay: Option<PathBuf>,
    /// Further lines for `[dataplane]` of each node, as `carrier = "quic"` (repeatable)
    #[arg(long, value_name = "LINE")]
    dataplane: Vec<String>,
    /// The ringlane binary [default: beside this one]
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Where a report goes that programs can read, the plan included
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// What the names of namespaces and interfaces begin with: two soaks at the same time need two
    #[arg(long, default_value = "rls", value_parser = crate::parse_prefix)]
    prefix: String,
}

impl SoakArgs {
    fn plan(&self) -> anyhow::Result<Plan> {
        if let Some(file) = &self.replay {
            let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
            return Plan::parse(&text).with_context(|| file.display().to_string());
        }
        let clock = || std::time::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_secs());
        let kinds = if self.kinds.is_empty() { Kind::value_variants() } else { &self.kinds };
        let length = Duration::from_secs(u64::from(self.minutes) * 60);
        Ok(Plan::draw(self.seed.unwrap_or_else(clock), self.sites.into(), length, kinds))
    }

    fn setup(&self, plan: &Plan) -> anyhow::Result<Setup> {
        let ringlane = match &self.binary {
            Some(path) => std::path::absolute(path).context("the ringlane binary")?,
            None => std::env::current_exe().context("our own path")?.with_file_name("ringlane"),
        };
        let mut dataplane = String::new();
        if plan.disturbances.iter().any(|each| each.kind == Kind::Rekey) {
            dataplane += REKEYING;
        }
        for line in &self.dataplane {
            dataplane += &format!("{line}\n");
        }
        Ok(Setup {
            prefix: self.prefix.clone(),
            ringlane,
            sites: plan.sites,
            underlay: Underlay { cut: true, ..Underlay::PLAIN },
            inner_mtu: None,
            node: NodeSettings { dataplane, roams: true },
        })
    }
}

/// Carries out a soak and says what came of it. Fails if something broke.
pub(crate) fn run(arguments: &SoakArgs) -> anyhow::Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "a soak makes network namespaces, which needs root");
    let plan = arguments.plan()?;
    let setup = arguments.setup(&plan)?;
    let version = match Contender::Ringlane.presence(&setup.ringlane) {
        Presence::Version(version) => version,
        Presence::Absent(missing) => bail!("{missing}"),
    };
    process::end_on_signals()?;
    println!(
        "{version}, seed {}, {} sites, {} disturbances in {:.1} minutes",
        plan.seed,
        plan.sites,
        plan.disturbances.len(),
        plan.length_ms as f64 / 60e3
    );
    let tunnel = Contender::Ringlane.start(&setup)?;
    let watch = Watch::new(&setup.ringlane, plan.sites);
    let mut ground = Ground::new(tunnel, watch)?;
    let started = Instant::now();
    let traffic = Traffic::start(&ground.tunnel.lab, &SITES[..plan.sites], plan.seed)?;
    let mut report = Report::new(version, setup.node.dataplane, plan);
    let carried_out = carry_out(&mut report, &mut ground, &traffic);
    report.judge_again(&traffic.gaps_since(started));
    report.traffic = traffic.finish();
    let ended = carried_out.and_then(|()| ground.end_nodes());
    report.finish(ground.findings, ground.watch.finish());
    if let Err(error) = ended {
        report.findings.insert(0, if is_interrupted() { "ended by a signal".into() } else { format!("{error:#}") });
    }
    drop(ground.tunnel);
    if let Some(file) = &arguments.json {
        report.write(file)?;
    }
    println!("{}", report.text());
    ensure!(report.findings.is_empty(), "the soak is no success");
    Ok(())
}

fn carry_out(report: &mut Report, ground: &mut Ground, traffic: &Traffic) -> anyhow::Result<()> {
    let start = Instant::now();
    let at = |ms| start + Duration::from_millis(ms);
    let disturbances = report.plan.disturbances.clone();
    let ends = disturbances.iter().skip(1).map(|next| next.at_ms).chain([report.plan.length_ms]);
    for (disturbance, until_ms) in disturbances.iter().zip(ends) {
        ground.pause_until(at(disturbance.at_ms))?;
        let began = Instant::now();
        ground.disturb(disturbance, traffic).with_context(|| disturbance.to_string())?;
        let over = Instant::now();
        ground.pause_until(at(until_ms))?;
        // What was late must not be put down to the next one.
        while traffic.gaps_since(began).iter().any(|(_, (_, end))| *end > Instant::now() - SETTLE_LOOK)
            && over.elapsed() < disturbance.bound()
        {
            ground.pause_until(Instant::now() + SETTLE_LOOK)?;
        }
        let outcome = Outcome::of(disturbance, &traffic.gaps_since(began), began, over, began - start);
        println!("{}", outcome.line());
        report.outcomes.push(outcome);
    }
    ground.pause_until(at(report.plan.length_ms))?;
    let end = Instant::now();
    report.note_silent(&traffic.gaps_since(end), end);
    Ok(())
}
