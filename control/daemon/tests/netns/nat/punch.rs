//! Lanes between places that both have a NAT: they have to come, all of them, and soon.
//!
//! How often and how soon for any pairs, by the names of `docs/nat.md`:
//!
//! ```sh
//! RINGLANE_NAT_PAIRS="full cone:symmetric; double NAT:symmetric, sequential" RINGLANE_NAT_TIMES=5 \
//!     cargo test -p ringlane --test netns -- --nocapture pairs_that_were_asked_for
//! ```
//!
//! The logs of the last two nodes that came to no lanes are left in the directory `RINGLANE_NAT_LOGS`, if that is set.

use std::path::Path;
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use super::kinds::{Kind, Pair};
use super::lab::NatLab;
use super::nodes::{Setups, TIMES_USUAL, Way};
use crate::lab::{Site, wait_for};

/// How long lanes may take on a machine that is busy with other things.
const WITHIN: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(40);

/// Starts both nodes, and waits until all their lanes stand: how long that took, or by which way packets go instead. And how
/// long R and S took.
fn lanes(pair: Pair, within: Duration) -> Option<(Result<Duration, Way>, Duration)> {
    let nat = NatLab::up(pair)?;
    let setups = Setups::init(&nat, pair);
    let started = Instant::now();
    let _third = setups.third_up();
    let usual = started.elapsed();
    let within = within.max(TIMES_USUAL * usual);
    let started = Instant::now();
    let nodes = setups.ends_up();
    loop {
        let ways = [(0, Site::A, Site::B), (1, Site::B, Site::A)]
            .map(|(at, site, peer): (usize, _, _)| Way::of(&nodes[at], setups.of(site), peer));
        let took = started.elapsed();
        let is_whole = ways.iter().all(Way::is_whole);
        if let Some(directory) = env::var_os("RINGLANE_NAT_LOGS").filter(|_| took >= within) {
            for (node, name) in nodes.iter().zip(["a.log", "b.log"]) {
                fs::write(Path::new(&directory).join(name), node.log()).expect("the directory can be written");
            }
        }
        if is_whole {
            return Some((Ok(took), usual));
        }
        if took >= within {
            let [one, other] = ways;
            return Some((Err(one.min(other)), usual));
        }
        thread::sleep(LOOK_EVERY);
    }
}

fn kind(name: &str) -> Kind {
    let known = Kind::ALL.into_iter().find(|kind| kind.name() == name.trim());
    known.unwrap_or_else(|| panic!("{name:?} is none of {:?}", Kind::ALL.map(Kind::name)))
}

fn pair(names: &str) -> Pair {
    match names.split_once(':') {
        Some((a, b)) => Pair::Apart(kind(a), kind(b)),
        None if names.trim() == "one LAN" => Pair::SameLan,
        None => Pair::SameNat { hairpins: names.trim() == "hairpin" },
    }
}

/// Both lanes of a pair stand in time.
fn have_lanes(a: Kind, b: Kind) {
    // Half a second on an idle machine; longer than this only if one had to wait for something to time out.
    let limit = Duration::from_millis(6500);
    match lanes(Pair::Apart(a, b), WITHIN) {
        Some((Ok(took), usual)) => {
            println!("{took:?}, and R and S {usual:?}");
            assert!(took < limit.max(TIMES_USUAL * usual), "{took:?}, and R and S {usual:?}");
        }
        Some((Err(way), _)) => panic!("no lanes, but {way}"),
        None => {}
    }
}

/// As above, where ports have to be tried: chance has its part in when one is met.
fn have_lanes_some_time(a: Kind, b: Kind) {
    if let Some((Err(way), _)) = lanes(Pair::Apart(a, b), 3 * WITHIN) {
        panic!("no lanes, but {way}");
    }
}

#[test]
fn two_full_cones_have_lanes_soon() {
    have_lanes(Kind::FullCone, Kind::FullCone);
}

#[test]
fn two_home_routers_have_lanes_soon() {
    have_lanes(Kind::PortRestricted, Kind::PortRestricted);
}

#[test]
fn two_sites_behind_a_home_router_and_a_provider_s_nat_have_lanes_soon() {
    have_lanes(Kind::Cgnat, Kind::Cgnat);
}

#[test]
fn a_home_router_and_a_symmetric_nat_have_lanes() {
    have_lanes_some_time(Kind::PortRestricted, Kind::Symmetric);
}

#[test]
fn a_home_router_and_a_nat_that_counts_have_lanes() {
    have_lanes_some_time(Kind::SymmetricSequential, Kind::PortRestricted);
}

#[test]
fn who_does_not_want_it_gets_no_lanes_through_nats_and_packets_all_the_same() {
    let pair = Pair::Apart(Kind::PortRestricted, Kind::PortRestricted);
    let Some(nat) = NatLab::up(pair) else { return };
    let mut setups = Setups::init(&nat, pair);
    setups.each(|setup| setup.set("nat", "punch", false));
    let _third = setups.third_up();
    let nodes = setups.ends_up();
    let way = || Way::of(&nodes[0], setups.of(Site::A), Site::B);
    wait_for("packets go some way", || Some(way()).filter(|way| *way != Way::Nothing));
    let since = Instant::now();
    // With it, lanes come within a second or two of the first way.
    while since.elapsed() < Duration::from_secs(4) {
        let way = way();
        assert!(!way.is_whole(), "{way}");
        thread::sleep(LOOK_EVERY);
    }
}

#[test]
fn pairs_that_were_asked_for() {
    let Ok(asked) = env::var("RINGLANE_NAT_PAIRS") else { return };
    let times = env::var("RINGLANE_NAT_TIMES").map_or(1, |times| times.parse().expect("a number of times"));
    for names in asked.split(';') {
        let took: Vec<_> = (0..times).map(|_| lanes(pair(names), WITHIN).expect("a lab can be made").0).collect();
        let told = took.iter().map(|result| match result {
            Ok(took) => took.as_millis().to_string(),
            Err(way) => way.to_string(),
        });
        println!("{}: {}", names.trim(), told.collect::<Vec<_>>().join(", "));
    }
}
