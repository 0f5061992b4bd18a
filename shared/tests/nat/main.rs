//! Two ends that look for each other through translators, as the state machines of `path` do: offers, the order of pairs,
//! probing, the choice of paths and when to look for better ones. The translators and the network are a model, and so is what
//! the lanes' workers do: they follow what comes from elsewhere, and notice silence.
//!
//! A slow reference says by the translators' kinds alone which ends can get to each other, and by what class of path.
//!
//! Every run follows from its seed. A failure names it; `RINGLANE_SEED=<seed>` runs that one alone, and
//! `RINGLANE_SEEDS=<count>` so many instead of [`SEEDS`].
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "helpers of tests are tests")]

mod birthday;
mod end;
mod lossy;
mod reference;
mod translator;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::world::{Tally, World};

const SEEDS: u64 = 2000;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|value| value.parse().expect("a number of a seed, or of seeds"))
}

fn run(seed: u64) -> Tally {
    let ran = catch_unwind(AssertUnwindSafe(|| World::new(seed).run()));
    ran.unwrap_or_else(|failure| {
        eprintln!("this was RINGLANE_SEED={seed}");
        resume_unwind(failure)
    })
}

#[test]
fn who_can_get_through_does_in_bounded_time_and_ends_on_the_best_path_whatever_happens() {
    if let Some(seed) = number("RINGLANE_SEED") {
        eprintln!("{:#?}", run(seed));
        return;
    }
    let seeds = number("RINGLANE_SEEDS").unwrap_or(SEEDS);
    let mut all = Tally::default();
    for seed in 0..seeds {
        all += run(seed);
    }
    eprintln!("{all:#?}");
    // A simulation in which nothing is hard would show nothing.
    assert!(all.connected > seeds / 2 && all.through_translators > seeds / 4, "{all:?}");
    assert!(all.guessed > 0 && all.upgrades > seeds / 10 && all.impossible > seeds / 100, "{all:?}");
}
