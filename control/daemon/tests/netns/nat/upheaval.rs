//! What happens to paths while a TCP transfer runs, and for how long nothing arrives meanwhile.
//!
//! Beside the transfer, whose every byte is compared, a datagram leaves each way every millisecond: their longest silence is
//! the gap. With `RINGLANE_WRITE_NAT_TABLE=1`, `all_upheavals` runs them all and writes the table of `docs/nat.md`.

use std::env;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::kinds::{Kind, Pair};
use super::lab::{Family, NatLab};
use super::nodes::{Setups, WORKERS, Way, remotes};
use super::table;
use crate::lab::Site;
use crate::node::Node;
use crate::stream::Stream;

/// What happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    /// All NATs of a site forget all mappings, and have other ports from now on if they choose ports.
    MappingsFlushed(Site),
    /// The outermost NAT of a site has another address.
    Renumbered(Site),
    /// The family of addresses that all lanes take is lost between the sites; the other one stays.
    FamilyLost,
    /// Nothing passes between the sites for a time.
    Interrupted(Duration),
    /// Nothing passes between the sites any more: a relay has to do.
    DirectLost,
    /// The sites have been parted from the beginning, and are not any more: from a relay to the direct path.
    DirectFound,
    /// The sites have been parted from the beginning, and their relay is killed.
    RelayKilled,
}

/// What came of an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// The longest silence from A to B and from B to A.
    Gap([Duration; 2]),
    /// There is no relay to go through: nothing arrived until the path was back, or from the beginning.
    NoRelay,
}

/// An event, between which places, and how long it may keep packets from arriving. Far above what it takes: the machine
/// has two cores, and they are busy.
pub(crate) type Upheaval = (Event, Pair, Duration);

const LOOK_EVERY: Duration = Duration::from_millis(100);
const INTERRUPTION: Duration = Duration::from_secs(3);

const CONE_FORGETS: Upheaval =
    (Event::MappingsFlushed(Site::A), Pair::Apart(Kind::FullCone, Kind::Public), Duration::from_secs(3));
const SYMMETRIC_FORGETS: Upheaval =
    (Event::MappingsFlushed(Site::A), Pair::Apart(Kind::Symmetric, Kind::Public), Duration::from_secs(3));
const TWO_NATS_FORGET: Upheaval =
    (Event::MappingsFlushed(Site::B), Pair::Apart(Kind::Public, Kind::Cgnat), Duration::from_secs(3));
const HOME_RENUMBERED: Upheaval =
    (Event::Renumbered(Site::A), Pair::Apart(Kind::PortRestricted, Kind::Public), Duration::from_secs(3));
const PUBLIC_RENUMBERED: Upheaval =
    (Event::Renumbered(Site::B), Pair::Apart(Kind::PortRestricted, Kind::Public), Duration::from_secs(20));
const FAMILY_LOST: Upheaval = (Event::FamilyLost, Pair::Apart(Kind::Public, Kind::Public), Duration::from_secs(5));
const INTERRUPTED: Upheaval = (
    Event::Interrupted(INTERRUPTION),
    Pair::Apart(Kind::PortRestricted, Kind::Public),
    INTERRUPTION.saturating_add(Duration::from_secs(3)),
);

const DIRECT_LOST: Upheaval = (Event::DirectLost, Pair::Apart(Kind::PortRestricted, Kind::Public), FALL_OVER_WITHIN);
const DIRECT_FOUND: Upheaval =
    (Event::DirectFound, Pair::Apart(Kind::PortRestricted, Kind::Public), Duration::from_secs(2));
const RELAY_KILLED: Upheaval =
    (Event::RelayKilled, Pair::Apart(Kind::PortRestricted, Kind::Public), Duration::from_secs(3));

const ALL: [Upheaval; 10] = [
    CONE_FORGETS,
    SYMMETRIC_FORGETS,
    TWO_NATS_FORGET,
    HOME_RENUMBERED,
    PUBLIC_RENUMBERED,
    FAMILY_LOST,
    INTERRUPTED,
    DIRECT_LOST,
    DIRECT_FOUND,
    RELAY_KILLED,
];

/// How long nodes that start may take to find a relay, before there counts as being none.
const RELAY_WITHIN: Duration = Duration::from_secs(20);
/// The same for nodes that lose the direct path: shorter than lanes outlive.
const FALL_OVER_WITHIN: Duration = Duration::from_secs(6);

impl Event {
    fn name(self) -> String {
        match self {
            Self::MappingsFlushed(site) => format!("mappings of {site:?} flushed"),
            Self::Renumbered(site) => format!("{site:?} renumbered"),
            Self::FamilyLost => "one of IPv4 and IPv6 lost".into(),
            Self::Interrupted(time) => format!("nothing passes for {} s", time.as_secs()),
            Self::DirectLost => "direct path to relay".into(),
            Self::DirectFound => "relay to direct path".into(),
            Self::RelayKilled => "relay killed".into(),
        }
    }
}

/// Two nodes with all their lanes, and traffic between their hosts.
struct Busy {
    stream: Stream,
    // Fields end in this order: the network last.
    ends: [Node; 2],
    third: [Node; 2],
    setups: Setups,
    nat: NatLab,
}

impl Busy {
    /// `Ok(None)` where there is no lab, an error where the nodes do not begin as they have to.
    fn up(pair: Pair, event: Event) -> Result<Option<Self>, NoRelay> {
        let Some(nat) = NatLab::up(pair) else { return Ok(None) };
        let setups = Setups::init(&nat, pair);
        let third = setups.third_up();
        let begins_relayed = matches!(event, Event::DirectFound | Event::RelayKilled);
        if begins_relayed {
            nat.part([Site::A, Site::B], Family::Both);
        }
        let mut ends = setups.ends_up();
        if begins_relayed {
            let began = Instant::now();
            while !ways(&ends, &setups).iter().all(|way| matches!(way, Way::Relayed(_))) {
                if began.elapsed() > RELAY_WITHIN {
                    return Err(NoRelay);
                }
                thread::sleep(LOOK_EVERY);
            }
        } else {
            ends[0].wait_direct(&[Site::B], WORKERS.into());
            ends[1].wait_direct(&[Site::A], WORKERS.into());
        }
        let stream = Stream::start_gently(nat.lab());
        Ok(Some(Self { stream, ends, third, setups, nat }))
    }

    /// The longest silence each way, from before the event until its consequences are over.
    fn silence_of(&mut self, event: Event) -> Outcome {
        let Self { stream, ends: nodes, third, setups, nat } = self;
        let what = event.name();
        let gap = match event {
            Event::MappingsFlushed(site) => {
                let before = seen(nodes, site);
                let moved = || seen(nodes, site).iter().all(|end| !before.contains(end)).then_some(());
                stream.silence_of(&what, || nat.forget(site), moved)
            }
            Event::Renumbered(site) => {
                let new = nat.next_address(site);
                let moved = || all(&seen(nodes, site), |end| end.ip() == new);
                stream.silence_of(&what, || nat.renumber(site), moved)
            }
            Event::FamilyLost => {
                let was_v4 = seen(nodes, Site::A).iter().all(SocketAddr::is_ipv4);
                let lost = if was_v4 { Family::V4 } else { Family::V6 };
                let moved = || {
                    let both = [Site::A, Site::B].map(|site| seen(nodes, site)).concat();
                    all(&both, |end| end.is_ipv4() != was_v4)
                };
                stream.silence_of(&what, || nat.part([Site::A, Site::B], lost), moved)
            }
            Event::Interrupted(time) => {
                let interrupt = || {
                    nat.part([Site::A, Site::B], Family::Both);
                    thread::sleep(time);
                    nat.join();
                };
                stream.silence_of(&what, interrupt, || Some(()))
            }
            Event::DirectLost => {
                let (began, mut is_relayed) = (Instant::now(), true);
                let relayed = || {
                    if began.elapsed() > FALL_OVER_WITHIN {
                        nat.join();
                        is_relayed = false;
                        return Some(());
                    }
                    ways(nodes, setups).iter().all(|way| matches!(way, Way::Relayed(_))).then_some(())
                };
                let gap = stream.silence_of(&what, || nat.part([Site::A, Site::B], Family::Both), relayed);
                if !is_relayed {
                    return Outcome::NoRelay;
                }
                gap
            }
            Event::DirectFound => {
                let direct = || ways(nodes, setups).iter().all(Way::is_whole).then_some(());
                stream.silence_of(&what, || nat.join(), direct)
            }
            Event::RelayKilled => {
                let sites = [Site::R, Site::S];
                let used = sites.iter().position(|relay| setups.is_relay(*relay, &nodes[0], Site::A, Site::B));
                let relay = &third[used.expect("who is relayed knows by whom")];
                stream.silence_of(&what, || relay.signal(Signal::KILL), || Some(()))
            }
        };
        Outcome::Gap(gap)
    }
}

/// Two nodes that had to be relayed are not.
struct NoRelay;

/// The ways of A and B to each other.
fn ways([a, b]: &[Node; 2], setups: &Setups) -> [Way; 2] {
    [Way::of(a, setups.of(Site::A), Site::B), Way::of(b, setups.of(Site::B), Site::A)]
}

/// Where the other node sees a site's lanes.
fn seen([a, b]: &[Node; 2], site: Site) -> Vec<SocketAddr> {
    remotes(&if site == Site::A { b } else { a }.status(), site)
}

fn all(lanes: &[SocketAddr], hold: impl Fn(&SocketAddr) -> bool) -> Option<()> {
    (lanes.len() >= usize::from(WORKERS) && lanes.iter().all(hold)).then_some(())
}

/// Runs an upheaval, and has what came of it judged while the nodes are there to say why; the transfer has lost nothing.
/// `None` where that is impossible.
fn run((event, pair, _): Upheaval, judge: impl FnOnce(Outcome)) -> Option<Outcome> {
    let mut busy = match Busy::up(pair, event) {
        Ok(busy) => busy?,
        Err(NoRelay) => return Some(Outcome::NoRelay),
    };
    let outcome = busy.silence_of(event);
    judge(outcome);
    let Busy { stream, .. } = busy;
    assert!(stream.stop() > 0);
    Some(outcome)
}

fn gap_is_short(upheaval: Upheaval) {
    let within = upheaval.2;
    let outcome = run(upheaval, |outcome| {
        assert!(matches!(outcome, Outcome::Gap(gap) if gap.iter().all(|gap| *gap < within)), "{outcome:?}");
    });
    assert_ne!(outcome, Some(Outcome::NoRelay));
}

#[test]
fn a_transfer_survives_that_a_full_cone_forgets() {
    gap_is_short(CONE_FORGETS);
}

#[test]
fn a_transfer_survives_that_a_nat_is_renumbered() {
    gap_is_short(HOME_RENUMBERED);
}

#[test]
fn a_transfer_survives_that_a_public_node_is_renumbered() {
    gap_is_short(PUBLIC_RENUMBERED);
}

#[test]
fn a_transfer_moves_to_the_family_of_addresses_that_is_left() {
    gap_is_short(FAMILY_LOST);
}

#[test]
fn a_transfer_goes_on_after_an_interruption() {
    gap_is_short(INTERRUPTED);
}

#[test]
fn a_transfer_goes_on_through_a_relay_when_the_direct_path_is_lost() {
    gap_is_short(DIRECT_LOST);
}

#[test]
fn a_transfer_takes_the_direct_path_when_there_is_one_again() {
    gap_is_short(DIRECT_FOUND);
}

#[test]
fn a_transfer_goes_on_through_another_relay_when_one_is_killed() {
    gap_is_short(RELAY_KILLED);
}

#[test]
fn all_upheavals() {
    if env::var_os("RINGLANE_WRITE_NAT_TABLE").is_none_or(|value| value != "1") {
        return;
    }
    let mut long = Vec::new();
    let mut text =
        String::from("| What happens | A | B | Gap A to B, ms | Gap B to A, ms |\n|---|---|---|---:|---:|\n");
    for upheaval @ (event, pair, within) in ALL {
        let (a, b) = table::names(pair);
        let gap = match run(upheaval, |_| ()).expect("a table needs labs") {
            Outcome::Gap(gap) => {
                long.extend(gap.iter().any(|gap| *gap >= within).then_some((event, gap)));
                gap.map(|gap| gap.as_millis().to_string())
            }
            Outcome::NoRelay => ["no relay", "no relay"].map(str::to_owned),
        };
        text += &format!("| {} | {a} | {b} | {} | {} |\n", event.name(), gap[0], gap[1]);
    }
    table::replace("upheavals", &text);
    assert!(long.is_empty(), "{long:?}");
}
