//! A run: labs come up, the rounds go over scenarios and contenders, labs go down; whatever fails is written down and
//! the run goes on.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::contender::{Contender, Presence, Setup, Tunnel};
use crate::process::{end_waiting_at, ensure_not_interrupted, is_interrupted, run};
use crate::results::{LeftOut, Machine, Present, Results, Sample};
use crate::scenario::{SCENARIOS, Scenario, Variant, Work};
use crate::underlay::{self, Disturber};

/// How long packets may take to cross before each measurement: what an earlier one left behind may have to drain.
const RECOVERY_PATIENCE: Duration = Duration::from_secs(20);

/// What one measurement takes beside its seconds, and what taking labs down takes: for the budget.
const OVERHEAD: Duration = Duration::from_secs(2);
const TEARDOWN: Duration = Duration::from_secs(8);

/// From here on something else takes a good part of a core.
const BUSY_LOAD_AVERAGE: f64 = 0.5;

/// What to do.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) scenarios: Vec<&'static Scenario>,
    pub(crate) contenders: Vec<Contender>,
    pub(crate) seconds: u32,
    pub(crate) rounds: u32,
    pub(crate) prefix: String,
    pub(crate) ringlane: PathBuf,
    pub(crate) started: Instant,
    /// When everything must be over; what does not fit is left out.
    pub(crate) deadline: Option<Instant>,
}

/// A contender with a lab.
struct Entrant {
    contender: Contender,
    tunnel: Tunnel,
}

/// Does it. Figures taken before a signal came are returned, too.
pub(crate) fn carry_out(plan: &Plan) -> anyhow::Result<Results> {
    if let Some(deadline) = plan.deadline {
        end_waiting_at(deadline - TEARDOWN);
    }
    let disturber = if underlay::has_netem() { Disturber::Netem } else { Disturber::Emulator };
    let iperf3 = run(Command::new("iperf3").arg("--version")).context("iperf3 is needed")?;
    let machine = Machine::this(iperf3.lines().next().unwrap_or_default().into(), disturber.name());
    if machine.load_average > BUSY_LOAD_AVERAGE {
        eprintln!("warning: this machine is busy (load average {}): figures will mean little", machine.load_average);
    }
    let mut results = Results::new(machine, plan.seconds, plan.rounds);
    let present = look_for(plan, &mut results);
    for variant in Variant::ALL {
        let scenarios: Vec<_> = plan.scenarios.iter().copied().filter(|each| each.variant == variant).collect();
        if scenarios.is_empty() {
            continue;
        }
        let setup = Setup {
            prefix: plan.prefix.clone(),
            ringlane: plan.ringlane.clone(),
            sites: variant.sites(),
            underlay: variant.underlay(disturber),
            inner_mtu: variant.inner_mtu(),
            node: variant.node(),
        };
        let mut entrants = start(plan, &setup, &present, &scenarios, &mut results);
        for round in 1..=plan.rounds {
            for scenario in &scenarios {
                for entrant in &mut entrants {
                    take(plan, scenario, round, entrant, &mut results);
                }
            }
        }
    }
    Ok(results)
}

/// Asks who is there.
fn look_for(plan: &Plan, results: &mut Results) -> Vec<Contender> {
    let mut present = Vec::new();
    for &contender in &plan.contenders {
        match contender.presence(&plan.ringlane) {
            Presence::Absent(missing) => {
                println!("{contender}: absent ({missing})");
                results.absent.insert(contender.to_string(), missing);
            }
            Presence::Version(version) => {
                println!("{contender}: {version}");
                results.contenders.push(Present { name: contender.to_string(), version });
                present.push(contender);
            }
        }
    }
    present
}

/// Makes the labs of one variant.
fn start(
    plan: &Plan,
    setup: &Setup,
    present: &[Contender],
    scenarios: &[&Scenario],
    results: &mut Results,
) -> Vec<Entrant> {
    let mut entrants = Vec::new();
    for &contender in present {
        if let Some(obstacle) = contender.obstacle(setup) {
            for scenario in scenarios {
                leave_out(results, scenario, contender, obstacle);
            }
            continue;
        }
        if let Some(reason) = no_time_for(plan, OVERHEAD) {
            for scenario in scenarios {
                leave_out(results, scenario, contender, reason);
            }
            continue;
        }
        match contender.start(setup) {
            Ok(tunnel) => entrants.push(Entrant { contender, tunnel }),
            Err(_) if is_interrupted() => {
                for scenario in scenarios {
                    leave_out(results, scenario, contender, INTERRUPTED);
                }
            }
            Err(error) => {
                for scenario in scenarios {
                    fail(results, scenario, 1, contender, format!("it does not start: {error:#}"));
                }
            }
        }
    }
    entrants
}

/// Takes one sample.
fn take(plan: &Plan, scenario: &Scenario, round: u32, entrant: &mut Entrant, results: &mut Results) {
    let contender = entrant.contender;
    if let Some(obstacle) = scenario.obstacle(contender) {
        return leave_out(results, scenario, contender, obstacle);
    }
    let seconds = match scenario.work {
        Work::Start | Work::Recovery => 0,
        // The load runs longer than the requests beside it; content comes in two parts.
        Work::Latency { .. } | Work::Fair | Work::Content { .. } => plan.seconds + 2,
        _ => plan.seconds,
    };
    if let Some(reason) = no_time_for(plan, Duration::from_secs(seconds.into()) + OVERHEAD) {
        return leave_out(results, scenario, contender, reason);
    }
    let ringlane = contender.is_ringlane().then_some(plan.ringlane.as_path());
    let measured = entrant
        .tunnel
        .wait_until_packets_cross(RECOVERY_PATIENCE)
        .and_then(|()| scenario.measure(&mut entrant.tunnel, ringlane, plan.seconds))
        // What a signal has ended is no failure of the contender's.
        .and_then(|measurement| ensure_not_interrupted().map(|()| measurement));
    match measured {
        Ok(measurement) => {
            let metric = scenario.metric();
            let shown = measurement.figures.get(&metric).map_or("-".into(), |&value| metric.show(value));
            println!(
                "{:4} s  {}, {contender}, round {round}: {shown}",
                plan.started.elapsed().as_secs(),
                scenario.name
            );
            results.samples.push(Sample {
                round,
                scenario: scenario.name.into(),
                contender: contender.to_string(),
                failure: None,
                figures: measurement.figures,
                raw: measurement.raw,
            });
        }
        Err(_) if is_interrupted() => leave_out(results, scenario, contender, INTERRUPTED),
        Err(error) => {
            fail(results, scenario, round, contender, format!("{error:#}{}", entrant.tunnel.deaths()));
            // So that one crash is one failure.
            if let Err(error) = entrant.tunnel.restart() {
                println!("{contender} does not start again: {error:#}");
            }
        }
    }
}

const INTERRUPTED: &str = "the run was ended by a signal";

/// Why something that takes so long cannot be begun any more.
fn no_time_for(plan: &Plan, time: Duration) -> Option<&'static str> {
    if is_interrupted() {
        return Some(INTERRUPTED);
    }
    let deadline = plan.deadline?;
    (Instant::now() + time + TEARDOWN > deadline).then_some("there was no time left for it")
}

fn fail(results: &mut Results, scenario: &Scenario, round: u32, contender: Contender, reason: String) {
    println!("{}, {contender}, round {round}: FAILED: {reason}", scenario.name);
    results.samples.push(Sample {
        round,
        scenario: scenario.name.into(),
        contender: contender.to_string(),
        failure: Some(reason),
        figures: Default::default(),
        raw: Default::default(),
    });
}

fn leave_out(results: &mut Results, scenario: &Scenario, contender: Contender, reason: &str) {
    let left_out = LeftOut { scenario: scenario.name.into(), contender: contender.to_string(), reason: reason.into() };
    // Once for all rounds.
    if !results.left_out.contains(&left_out) {
        // A signal may leave out a hundred; the tables name them.
        if reason != INTERRUPTED {
            println!("{}, {contender}: left out: {reason}", scenario.name);
        }
        results.left_out.push(left_out);
    }
}

impl Plan {
    /// The scenarios of those names; without names, all, or those of a quick run.
    pub(crate) fn scenarios(names: &[String], quick: bool) -> anyhow::Result<Vec<&'static Scenario>> {
        if names.is_empty() {
            return Ok(SCENARIOS.iter().filter(|scenario| scenario.quick || !quick).collect());
        }
        names.iter().map(|name| Scenario::named(name)).collect()
    }
}
