//! What is done to the nodes and when: drawn from a seed, written down, and read again.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Longest soak: a day.
pub(super) const MINUTES_MAX: u32 = 24 * 60;

/// Undisturbed traffic at the beginning: caches fill, path MTUs are found.
const FIRST_AT_MS: u64 = 5_000;

/// Rest after a disturbance, beyond the time the link may take to carry again.
const REST_MS: RangeInclusive<u64> = 2_000..=8_000;

/// How often both ends of a link are hit at once, where a kind knows it: once in so many times.
const BOTH_ONCE_IN: u32 = 4;

/// Disturbances of one soak: one a second for a day.
const DISTURBANCES_MAX: usize = 86_400;

/// A way to disturb a link.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// A node is killed by SIGKILL and started again
    Restart,
    /// A router gets another underlay address and loses the one it had
    Roam,
    /// An address translator before the last site gives its lanes other ports
    Nat,
    /// A burst of small datagrams, so that lanes run through their epochs
    Rekey,
    /// Datagrams to a router are lost by chance
    Loss,
    /// Nothing reaches a router
    Blackout,
    /// Trains that a router sends are late by chance, and others overtake them
    Reorder,
    /// The underlay's MTU changes, and interfaces say so
    Mtu,
    /// The same at one end alone: what is too big vanishes on the way
    BlackHole,
    /// A router's underlay interface goes down
    Down,
    /// A node is stopped by SIGSTOP
    Suspend,
}

/// What there is to know of a kind.
#[derive(Debug)]
struct Traits {
    hold_ms: RangeInclusive<u64>,
    amounts: Amounts,
    /// Whom it hits.
    sites: Whom,
    /// How long the link may carry nothing, once it could carry something again.
    bound_ms: u64,
}

#[derive(Debug)]
enum Amounts {
    None,
    Range(RangeInclusive<u32>),
    OneOf(&'static [u32]),
}

#[derive(PartialEq, Eq, Debug)]
enum Whom {
    /// All, so none in particular.
    All,
    /// Any.
    One,
    /// Any, or a and another at once.
    OneOrTwo,
    /// The last.
    Last,
}

impl Kind {
    fn traits(self) -> Traits {
        use Amounts::{None, OneOf, Range};
        let traits = |hold_ms, amounts, sites, bound_ms| Traits { hold_ms, amounts, sites, bound_ms };
        match self {
            Self::Restart => traits(0..=3_000, None, Whom::OneOrTwo, 5_000),
            Self::Roam => traits(0..=2_000, Range(10..=240), Whom::OneOrTwo, 3_000),
            Self::Nat => traits(0..=0, Range(20_000..=60_000), Whom::Last, 3_000),
            Self::Rekey => traits(1_000..=5_000, None, Whom::All, 1_000),
            Self::Loss => traits(2_000..=15_000, Range(1..=30), Whom::One, 2_000),
            Self::Blackout => traits(1_000..=20_000, None, Whom::One, 5_000),
            Self::Reorder => traits(2_000..=10_000, Range(1..=20), Whom::One, 1_000),
            Self::Mtu => traits(0..=0, OneOf(&[1280, 1500, 9000]), Whom::All, 2_000),
            Self::BlackHole => traits(3_000..=15_000, OneOf(&[1280, 1400]), Whom::One, 2_000),
            Self::Down => traits(1_000..=20_000, None, Whom::One, 5_000),
            Self::Suspend => traits(1_000..=60_000, None, Whom::One, 5_000),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.to_possible_value().as_ref().map_or("", |value| value.get_name()))
    }
}

/// Something that is done once.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Disturbance {
    /// When it begins, since the beginning of the soak; not before the one before it is over.
    pub(super) at_ms: u64,
    pub(super) kind: Kind,
    /// Letters of the sites it hits; empty for all.
    pub(super) sites: String,
    /// How long it lasts. For a roam: how long a router has both addresses.
    pub(super) hold_ms: u64,
    /// Loss and reordering: percent. MTUs: bytes. Roam: the last byte of the new address, one more for a second site. Nat:
    /// the port of worker 0. Otherwise 0.
    pub(super) amount: u32,
}

impl Disturbance {
    /// How long the link may carry nothing, not counting the time in which nothing can get through. Twice as long where both ends were hit.
    pub(super) fn bound(&self) -> Duration {
        Duration::from_millis(self.kind.traits().bound_ms * self.sites.len().max(1) as u64)
    }

    /// Whether nothing can get through while it lasts; otherwise silence counts from its beginning.
    pub(super) fn silences(&self) -> bool {
        matches!(self.kind, Kind::Restart | Kind::Blackout | Kind::Down | Kind::Suspend)
    }

    fn ensure_possible(&self, sites: usize) -> anyhow::Result<()> {
        let Traits { hold_ms, amounts, sites: whom, .. } = self.kind.traits();
        let amount_is_possible = match amounts {
            Amounts::None => self.amount == 0,
            Amounts::Range(range) => range.contains(&self.amount),
            Amounts::OneOf(list) => list.contains(&self.amount),
        };
        ensure!(amount_is_possible, "{self}: an amount of {} is impossible", self.amount);
        ensure!(self.hold_ms <= *hold_ms.end(), "{self}: lasts longer than {} ms", hold_ms.end());
        ensure!(choices(&whom, sites).contains(&self.sites), "{self}: there are no such sites");
        Ok(())
    }
}

impl fmt::Display for Disturbance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, sites, hold_ms, amount, .. } = self;
        write!(f, "{kind}")?;
        if !sites.is_empty() {
            write!(f, " {sites}")?;
        }
        match kind {
            Kind::Loss | Kind::Reorder => write!(f, " {amount} %")?,
            Kind::Mtu | Kind::BlackHole => write!(f, " {amount} bytes")?,
            Kind::Roam => write!(f, " to .{amount}")?,
            Kind::Nat => write!(f, " to port {amount}")?,
            Kind::Restart | Kind::Rekey | Kind::Blackout | Kind::Down | Kind::Suspend => {}
        }
        if *hold_ms > 0 {
            write!(f, " for {:.1} s", *hold_ms as f64 / 1e3)?;
        }
        Ok(())
    }
}

/// The sites a disturbance can hit.
fn choices(whom: &Whom, sites: usize) -> Vec<String> {
    let letters = &["a", "b", "c"][..sites];
    let each = letters.iter().map(|&letter| letter.to_owned());
    match whom {
        Whom::All => vec![String::new()],
        Whom::Last => each.skip(sites - 1).collect(),
        Whom::One => each.collect(),
        Whom::OneOrTwo => each.chain(letters[1..].iter().map(|other| format!("a{other}"))).collect(),
    }
}

/// A whole soak.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plan {
    /// What it was drawn from.
    pub(super) seed: u64,
    /// 2 or 3.
    pub(super) sites: usize,
    pub(super) length_ms: u64,
    /// In the order of time.
    pub(super) disturbances: Vec<Disturbance>,
}

impl Plan {
    /// Draws a plan. Kinds are dealt like cards: each comes once before any comes again.
    pub(super) fn draw(seed: u64, sites: usize, length: Duration, kinds: &[Kind]) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let length_ms = length.as_millis() as u64;
        let mut plan = Self { seed, sites, length_ms, disturbances: Vec::new() };
        let (mut at_ms, mut deck) = (FIRST_AT_MS, Vec::new());
        while !kinds.is_empty() && plan.disturbances.len() < DISTURBANCES_MAX {
            if deck.is_empty() {
                deck = kinds.to_vec();
                random.shuffle(&mut deck);
            }
            let Some(kind) = deck.pop() else { break };
            let disturbance = draw_one(kind, sites, at_ms, &mut random);
            let rest_ms = disturbance.bound().as_millis() as u64 + random.u64(REST_MS);
            at_ms += disturbance.hold_ms + rest_ms;
            if at_ms > length_ms {
                break;
            }
            plan.disturbances.push(disturbance);
        }
        plan
    }

    /// Reads a plan, or that of a report.
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let mut value: Value = serde_json::from_str(text).context("a plan is JSON")?;
        let plan = if value["plan"].is_object() { value["plan"].take() } else { value };
        let plan: Self = serde_json::from_value(plan).context("what is there is no plan of a soak")?;
        ensure!((2..=3).contains(&plan.sites), "a soak has 2 or 3 sites");
        ensure!(plan.length_ms <= u64::from(MINUTES_MAX) * 60_000, "a soak takes up to {MINUTES_MAX} minutes");
        ensure!(plan.disturbances.len() <= DISTURBANCES_MAX, "a soak has up to {DISTURBANCES_MAX} disturbances");
        let mut over_ms = 0;
        for disturbance in &plan.disturbances {
            disturbance.ensure_possible(plan.sites)?;
            ensure!(disturbance.at_ms >= over_ms, "{disturbance}: begins before the one before it is over");
            over_ms = disturbance.at_ms.saturating_add(disturbance.hold_ms);
        }
        ensure!(over_ms <= plan.length_ms, "the last disturbance ends after the soak");
        Ok(plan)
    }
}

fn draw_one(kind: Kind, sites: usize, at_ms: u64, random: &mut fastrand::Rng) -> Disturbance {
    let Traits { hold_ms, amounts, sites: whom, .. } = kind.traits();
    let amount = match amounts {
        Amounts::None => 0,
        Amounts::Range(range) => random.u32(range),
        Amounts::OneOf(list) => list[random.usize(..list.len())],
    };
    let mut choices = choices(&whom, sites);
    if whom == Whom::OneOrTwo {
        let both = random.u32(..BOTH_ONCE_IN) == 0;
        choices.retain(|choice| (choice.len() > 1) == both);
    }
    let sites = choices.swap_remove(random.usize(..choices.len()));
    Disturbance { at_ms, kind, sites, hold_ms: random.u64(hold_ms), amount }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const HALF_AN_HOUR: Duration = Duration::from_secs(1800);

    fn plan(seed: u64, sites: usize) -> Plan {
        Plan::draw(seed, sites, HALF_AN_HOUR, Kind::value_variants())
    }

    #[test]
    fn the_seed_decides_the_plan() {
        assert_eq!(plan(7, 2), plan(7, 2));
        assert_ne!(plan(7, 2), plan(8, 2));
    }

    #[test]
    fn half_an_hour_has_every_kind_at_either_end_and_both_at_once() {
        for seed in 0..50 {
            let plan = plan(seed, 2);
            let kinds: BTreeSet<_> = plan.disturbances.iter().map(|each| each.kind).collect();
            assert_eq!(kinds.len(), Kind::value_variants().len(), "seed {seed}");
        }
        let sites: BTreeSet<_> = plan(1, 2).disturbances.into_iter().map(|each| each.sites).collect();
        assert_eq!(sites, ["", "a", "ab", "b"].map(String::from).into());
    }

    #[test]
    fn what_is_drawn_is_possible_and_is_read_again_as_it_was_written() {
        for seed in 0..200 {
            let plan = plan(seed, 2 + (seed % 2) as usize);
            let text = serde_json::to_string(&plan).unwrap();
            assert_eq!(Plan::parse(&text).unwrap(), plan, "seed {seed}");
            assert_eq!(Plan::parse(&format!("{{\"ok\":false,\"plan\":{text}}}")).unwrap(), plan, "seed {seed}");
        }
    }

    #[test]
    fn the_link_has_time_to_carry_again_before_it_is_disturbed_again_or_the_soak_ends() {
        for seed in 0..50 {
            let plan = plan(seed, 3);
            let starts = plan.disturbances.iter().skip(1).map(|each| each.at_ms).chain([plan.length_ms]);
            for (disturbance, next) in plan.disturbances.iter().zip(starts) {
                let bound = disturbance.bound().as_millis() as u64;
                assert!(disturbance.at_ms + disturbance.hold_ms + bound < next, "seed {seed}: {disturbance}");
            }
        }
    }

    #[test]
    fn only_kinds_that_are_asked_for_are_drawn_and_none_where_there_is_no_time() {
        let plan = Plan::draw(3, 2, HALF_AN_HOUR, &[Kind::Loss]);
        assert!(plan.disturbances.len() > 50 && plan.disturbances.iter().all(|each| each.kind == Kind::Loss));
        assert!(Plan::draw(3, 2, Duration::from_secs(5), &[Kind::Loss]).disturbances.is_empty());
        assert!(Plan::draw(3, 2, HALF_AN_HOUR, &[]).disturbances.is_empty());
    }

    #[test]
    fn a_plan_that_cannot_be_carried_out_is_refused() {
        let with = |disturbances: &str| {
            Plan::parse(&format!(r#"{{"seed":1,"sites":2,"length_ms":60000,"disturbances":[{disturbances}]}}"#))
        };
        let loss = r#"{"at_ms":1000,"kind":"loss","sites":"a","hold_ms":2000,"amount":10}"#;
        assert_eq!(with(loss).unwrap().disturbances.len(), 1);
        for (from, to) in [
            ("\"a\"", "\"c\""),
            ("\"a\"", "\"ab\""),
            ("\"a\"", "\"\""),
            (":10}", ":31}"),
            ("2000", "99999"),
            ("loss", "flood"),
            ("1000", "59000"),
            ("amount", "amonut"),
        ] {
            let changed = loss.replace(from, to);
            assert!(with(&changed).is_err(), "{changed}");
        }
        assert!(with(&format!("{loss},{}", loss.replace("1000", "2999"))).is_err(), "they overlap");
        assert!(Plan::parse("{}").is_err() && Plan::parse("[]").is_err() && Plan::parse("").is_err());
    }
}
