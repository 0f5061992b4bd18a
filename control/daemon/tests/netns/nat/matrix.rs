//! Which way two nodes find to each other, and how soon, for every pair of places.
//!
//! What is to be expected stands in [`EXPECTED`]. A pair that does better is told, and is a failure only with
//! `RINGLANE_NAT_STRICT=1`: who makes it better raises the expectation. Some pairs run with all tests; all of them do, and
//! `docs/nat.md` gets its tables, with
//!
//! ```sh
//! RINGLANE_WRITE_NAT_TABLE=1 cargo test -p ringlane --test netns -- --nocapture all_pairs
//! ```

use std::env;
use std::io::{Write, stderr};
use std::net::UdpSocket;
use std::ops::RangeInclusive;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::kinds::{Kind, Pair};
use super::lab::NatLab;
use super::nodes::{Medium, Setups, TIMES_USUAL, Way};
use super::table;
use crate::lab::{PATIENCE, Site};
use crate::traffic::{receiver, sender, uninterrupted};

/// How a pair is connected in the end, from worse to better: lanes are taken as soon as there are any, also relayed ones.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Expect {
    Unreachable,
    RelayedStream,
    DirectStream,
    RelayedLanes,
    DirectLanes,
}

/// What holds for each pair of [`Kind::ALL`], rows and columns in its order: L direct lanes, R relayed lanes, s a direct
/// stream, r a relayed one, - unreachable. Where it is chance whether a port is met that is let in: l relayed lanes or
/// direct ones, c a relayed stream or a direct one. The other half is the same, as who is called A makes no difference.
const EXPECTED: [&str; Kind::ALL.len()] = [
    "L",            // public
    "LL",           // full cone
    "LLL",          // address-restricted
    "LLLL",         // port-restricted
    "LLLlR",        // symmetric
    "LLLlRl",       // symmetric, sequential
    "LLLLllL",      // double NAT
    "LLLLllLL",     // CGNAT and home
    "ssccccccc",    // UDP blocked
    "rrrrrrrrrr",   // TCP 443 only
    "LRRRRRRRrrL",  // IPv6 only
    "LLLLllLLcrLL", // IPv6 and NAT
];

const _: () = {
    let mut row = 0;
    while row < EXPECTED.len() {
        assert!(EXPECTED[row].len() == row + 1, "the other half goes without saying");
        row += 1;
    }
};

/// The same for pairs that are not apart.
const EXPECTED_TOGETHER: [(Pair, u8); 3] =
    [(Pair::SameLan, b'L'), (Pair::SameNat { hairpins: true }, b'L'), (Pair::SameNat { hairpins: false }, b'R')];

/// How long two nodes that are not to find each other are watched.
const WATCHED: Duration = Duration::from_secs(4);
/// The same when the table is written, for whatever there is to be found.
const WATCHED_LONG: Duration = Duration::from_secs(15);
/// How long a way that is as good as expected is given to get better or whole.
const LINGER: Duration = Duration::from_secs(2);
/// For pairs that once took 13 s.
const SOON: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(40);
const SEND_EVERY: Duration = Duration::from_millis(10);
/// Pairs that run at once when the table is written.
const AT_ONCE: usize = 2;

/// What became of a pair.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) pair: Pair,
    /// The way at the end, of whichever node's is worse.
    pub(crate) way: Way,
    /// From the start of both nodes until a packet of A's host was answered by B's.
    pub(crate) first_packet: Option<Duration>,
    /// Until both nodes sent directly, by whatever carrier.
    pub(crate) direct: Option<Duration>,
    /// Until all lanes were up.
    pub(crate) lanes: Option<Duration>,
    /// How long R and S took for theirs, just before.
    usual: Duration,
}

impl Way {
    fn reaches(&self) -> Expect {
        match self {
            Self::Nothing => Expect::Unreachable,
            Self::Relayed(Medium::Stream { .. }) => Expect::RelayedStream,
            Self::Direct(Medium::Stream { .. }) => Expect::DirectStream,
            Self::Relayed(Medium::Lanes { .. }) => Expect::RelayedLanes,
            Self::Direct(Medium::Lanes { .. }) => Expect::DirectLanes,
        }
    }
}

impl Row {
    /// What the pair came to; a way that carries no packets is none.
    pub(crate) fn found(&self) -> Expect {
        if self.first_packet.is_some() { self.way.reaches() } else { Expect::Unreachable }
    }
}

/// What is expected of a pair: the least, and the best.
fn expected(pair: Pair) -> RangeInclusive<Expect> {
    let letter = if let Pair::Apart(a, b) = pair {
        let place = |kind| Kind::ALL.iter().position(|other| *other == kind).expect("ALL has all");
        let (row, column) = (place(a).max(place(b)), place(a).min(place(b)));
        EXPECTED[row].as_bytes()[column]
    } else {
        EXPECTED_TOGETHER.iter().find(|(other, _)| *other == pair).expect("each such pair is listed").1
    };
    let always = |way| way..=way;
    match letter {
        b'L' => always(Expect::DirectLanes),
        b'l' => Expect::RelayedLanes..=Expect::DirectLanes,
        b'R' => always(Expect::RelayedLanes),
        b's' => always(Expect::DirectStream),
        b'c' => Expect::RelayedStream..=Expect::DirectStream,
        b'r' => always(Expect::RelayedStream),
        b'-' => always(Expect::Unreachable),
        other => panic!("{} stands for nothing", char::from(other)),
    }
}

/// Whether what is better than expected is a failure, too.
fn is_strict() -> bool {
    env::var_os("RINGLANE_NAT_STRICT").is_some_and(|value| value == "1")
}

/// Runs a pair from the start of both nodes until it is as good as it gets, and has it judged while they are there to say
/// why. `None` where that is impossible.
fn run(pair: Pair, watched: Duration, aim: Expect, judge: impl FnOnce(&Row)) -> Option<Row> {
    let nat = NatLab::up(pair)?;
    let setups = Setups::init(&nat, pair);
    let begun = Instant::now();
    let _third = setups.third_up();
    let usual = begun.elapsed();
    let echoes = Echoes::between(&nat);
    let stopped = AtomicBool::new(false);
    let row = thread::scope(|scope| {
        let stop = StopOnDrop(&stopped);
        let started = Instant::now();
        let first = scope.spawn(|| echoes.first(&stopped));
        let nodes = setups.ends_up();
        let mut row = Row { pair, way: Way::Nothing, first_packet: None, direct: None, lanes: None, usual };
        let mut aimed_at_since = None;
        while started.elapsed() < watched {
            let ways = [(0, Site::A, Site::B), (1, Site::B, Site::A)]
                .map(|(at, site, peer): (usize, _, _)| Way::of(&nodes[at], setups.of(site), peer));
            let [one, other] = ways;
            let is_whole = one.is_whole() && other.is_whole();
            row.way = one.min(other);
            let now = started.elapsed();
            if matches!(row.way, Way::Direct(_)) {
                row.direct.get_or_insert(now);
            }
            if is_whole {
                row.lanes.get_or_insert(now);
            }
            if first.is_finished() && row.way.reaches() >= aim {
                let since = *aimed_at_since.get_or_insert(now);
                if is_whole || now - since >= LINGER {
                    break;
                }
            }
            thread::sleep(LOOK_EVERY);
        }
        drop(stop);
        let first = first.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        row.first_packet = first.map(|at| at - started);
        judge(&row);
        row
    });
    Some(row)
}

/// Stops the echoes also when a look at the nodes panics: else nobody would ever learn of it.
struct StopOnDrop<'s>(&'s AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Datagrams between the two hosts, and their echoes.
struct Echoes {
    near: UdpSocket,
    far: UdpSocket,
}

impl Echoes {
    fn between(nat: &NatLab) -> Self {
        let far = receiver(&nat.lab().host(Site::B), Site::B.host_v4().into());
        let target = far.local_addr().expect("a bound socket has an address");
        let near = nat.lab().host(Site::A).enter(|| sender(target));
        near.set_read_timeout(Some(SEND_EVERY)).expect("a timeout can be set");
        far.set_nonblocking(true).expect("a socket can be made non-blocking");
        Self { near, far }
    }

    /// When the first echo was back.
    fn first(&self, stopped: &AtomicBool) -> Option<Instant> {
        let mut datagram = [0; 64];
        while !stopped.load(Ordering::Relaxed) {
            // Nobody can be reached at first.
            let _ = self.near.send(b"are you there?");
            while let Ok((length, from)) = uninterrupted(|| self.far.recv_from(&mut datagram)) {
                let _ = self.far.send_to(&datagram[..length], from);
            }
            let waiting = Instant::now();
            if uninterrupted(|| self.near.recv(&mut datagram)).is_ok() {
                return Some(Instant::now());
            }
            // An error comes at once.
            thread::sleep(SEND_EVERY.saturating_sub(waiting.elapsed()));
        }
        None
    }
}

/// Runs a pair and holds it to what is expected of it.
fn holds(pair: Pair) {
    holds_within(pair, PATIENCE);
}

/// The same of a pair that is direct, and that soon: two seconds on a machine that has nothing else to do.
fn holds_soon(pair: Pair) {
    holds_within(pair, SOON);
}

fn holds_within(pair: Pair, direct_within: Duration) {
    let expected = expected(pair);
    let least = *expected.start();
    let watched = if least == Expect::Unreachable { WATCHED } else { PATIENCE };
    run(pair, watched, least.max(Expect::RelayedStream), |row| {
        println!("{}", table::line(row));
        assert!(row.found() >= least, "{expected:?} was expected, not {row:?}");
        let direct_within = direct_within.max(TIMES_USUAL * row.usual);
        assert!(row.direct.is_none_or(|direct| direct < direct_within), "{row:?}");
        if row.found() > *expected.end() {
            let better = format!("BETTER: {expected:?} was expected, not {row:?}\n");
            assert!(!is_strict(), "{better}");
            // Not eprintln!, which is only shown of tests that fail.
            let _ = stderr().write_all(better.as_bytes());
        }
    });
}

#[test]
fn a_public_site_and_one_behind_a_home_router_have_lanes() {
    holds(Pair::Apart(Kind::Public, Kind::PortRestricted));
}

#[test]
fn a_public_site_and_one_behind_a_symmetric_nat_have_lanes() {
    holds(Pair::Apart(Kind::Symmetric, Kind::Public));
}

#[test]
fn a_public_site_and_one_behind_two_nats_have_lanes() {
    holds(Pair::Apart(Kind::Public, Kind::Cgnat));
}

#[test]
fn a_public_site_and_one_where_udp_is_blocked_are_direct() {
    holds(Pair::Apart(Kind::UdpBlocked, Kind::Public));
}

#[test]
fn a_public_site_and_one_with_ipv6_only_have_lanes() {
    holds(Pair::Apart(Kind::Public, Kind::Ipv6Only));
}

#[test]
fn two_sites_with_ipv6_behind_firewalls_have_lanes_soon() {
    holds_soon(Pair::Apart(Kind::Ipv6Only, Kind::Ipv6Only));
}

#[test]
fn two_sites_with_ipv6_behind_firewalls_and_nats_have_lanes_soon() {
    holds_soon(Pair::Apart(Kind::Ipv6AndNat, Kind::Ipv6AndNat));
}

#[test]
fn two_sites_behind_full_cones_are_as_expected() {
    holds(Pair::Apart(Kind::FullCone, Kind::FullCone));
}

#[test]
fn two_sites_behind_symmetric_nats_are_as_expected() {
    holds(Pair::Apart(Kind::Symmetric, Kind::Symmetric));
}

#[test]
fn two_sites_in_one_network_have_lanes() {
    holds(Pair::SameLan);
}

#[test]
fn all_pairs() {
    if env::var_os("RINGLANE_WRITE_NAT_TABLE").is_none_or(|value| value != "1") {
        return;
    }
    let mut pairs = Vec::new();
    for (at, a) in Kind::ALL.into_iter().enumerate() {
        pairs.extend(Kind::ALL[at..].iter().map(|b| Pair::Apart(a, *b)));
    }
    pairs.extend(EXPECTED_TOGETHER.map(|(pair, _)| pair));
    let rows = Mutex::new(vec![None; pairs.len()]);
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((at, pair)) = {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    pairs.get(at).map(|pair| (at, *pair))
                } {
                    let row = run(pair, WATCHED_LONG, Expect::DirectLanes, |_| ()).expect("a table needs labs");
                    println!("{}", table::line(&row));
                    rows.lock().expect("no thread has panicked")[at] = Some(row);
                }
            });
        }
    });
    let rows: Vec<Row> = rows.into_inner().expect("no thread has panicked").into_iter().flatten().collect();
    table::write(&rows);
    let changed: Vec<_> = rows.iter().filter(|row| !expected(row.pair).contains(&row.found())).collect();
    for row in &changed {
        println!("{:?} was expected: {}", expected(row.pair), table::line(row));
    }
    assert!(!is_strict() || changed.is_empty(), "some are not as expected");
    assert!(changed.iter().all(|row| row.found() > *expected(row.pair).end()), "some are worse than expected");
}
