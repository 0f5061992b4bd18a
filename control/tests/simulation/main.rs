//! Both ends of a link, from the coordinator to the records, on a simulated clock, against a simulated network that delays,
//! loses, reorders and doubles datagrams, swallows large ones, goes dark, and has an attacker in it. Nodes move, restart
//! and are stopped for a while. What is simulated in between says which file it mirrors.
//!
//! Every run follows from its seed: keys and Noise's messages differ from run to run, but not when and how large they
//! are. A failure names the seed; `RINGLANE_SEED=<seed>` runs that one alone and tells what happened in it;
//! `RINGLANE_SEEDS=<count>` runs so many instead of [`SEEDS`].
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "helpers of tests are tests")]

mod lane;
mod network;
mod node;
mod world;

use std::ops::AddAssign;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crate::world::{Tally, Trouble, World};

/// Seeds of any trouble, and of trouble that passes: some 20 s on two cores.
const SEEDS: u64 = 1200;
const SEEDS_PASSING: u64 = 400;
const THREADS: usize = 2;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|value| value.parse().expect("a number of a seed, or of seeds"))
}

fn run(seed: u64, trouble: Trouble) -> Tally {
    let ran = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(seed, trouble);
        world.run();
        world.tally
    }));
    ran.unwrap_or_else(|failure| {
        eprintln!("this was RINGLANE_SEED={seed}");
        resume_unwind(failure)
    })
}

/// Runs seeds until there are no more, or one fails, here or on another thread.
fn run_some(next: &AtomicU64, seeds: u64, trouble: Trouble) -> Tally {
    struct StopOthers<'a>(&'a AtomicU64, u64);
    impl Drop for StopOthers<'_> {
        fn drop(&mut self) {
            self.0.store(self.1, Ordering::Relaxed);
        }
    }
    let _stop = StopOthers(next, seeds);
    let mut all = Tally::default();
    loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= seeds {
            return all;
        }
        all += run(seed, trouble);
    }
}

/// Runs `seeds`, or what the environment says; returns how many that were, and what happened, if it was more than one.
fn run_all(seeds: u64, trouble: Trouble) -> Option<(u64, Tally)> {
    if let Some(seed) = number("RINGLANE_SEED") {
        eprintln!("{trouble:?}: {:#?}", run(seed, trouble));
        return None;
    }
    let (next, seeds) = (AtomicU64::new(0), number("RINGLANE_SEEDS").unwrap_or(seeds));
    let mut all = Tally::default();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(|| run_some(&next, seeds, trouble))).collect();
        threads.into_iter().for_each(|thread| all += thread.join().unwrap_or_else(|failure| resume_unwind(failure)));
    });
    eprintln!("{trouble:?}: {all:#?}");
    Some((seeds, all))
}

// In both: a simulation in which nothing goes wrong would show nothing.

#[test]
fn whatever_happens_a_link_heals_and_no_packet_comes_twice_or_changed() {
    let Some((seeds, all)) = run_all(SEEDS, Trouble::Any) else { return };
    let rare = [all.lanes_ended, all.moves, all.silences];
    assert!(all.lost > 20 * seeds && all.epochs > 10 * seeds && all.path_mtus > 3 * seeds, "{all:?}");
    assert!(all.replays_refused > 3 * seeds && rare.into_iter().all(|count| count > seeds / 2), "{all:?}");
}

#[test]
fn what_passes_within_seconds_costs_no_lane() {
    let Some((seeds, all)) = run_all(SEEDS_PASSING, Trouble::Passing) else { return };
    assert!(all.lost > 20 * seeds && all.moves > seeds / 2 && all.silences > seeds / 4, "{all:?}");
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..10 {
        assert_eq!(run(seed, Trouble::Any), run(seed, Trouble::Any), "seed {seed}");
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.delivered += other.delivered;
        self.lost += other.lost;
        self.epochs += other.epochs;
        self.lanes += other.lanes;
        self.lanes_ended += other.lanes_ended;
        self.moves += other.moves;
        self.silences += other.silences;
        self.path_mtus += other.path_mtus;
        self.replays_refused += other.replays_refused;
        self.digest ^= other.digest;
    }
}
