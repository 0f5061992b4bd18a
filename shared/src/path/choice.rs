//! Which of its paths a lane should take: one score for each, and when a better one is worth a move.
//!
//! A path's score is a time: its round trip, what its losses cost, and an allowance for its [`PathClass`]. The least is the
//! best. A lane moves
//!
//! - to a path of a better class as soon as its score is less;
//! - to any other path when its score is less by a margin, in two measurements in a row;
//! - not to a path that it has just had to leave, for a time that doubles with every time that this happens; one that was left
//!   because of what it lost counts as such, and is avoided for longer.
//!
//! Losses are found by few questions, so of two paths only that difference counts which is beyond chance ([`Loss::at_least`],
//! [`Loss::at_most`]). Where all paths lose alike there is none, and the lane stays.
//!
//! So two paths that are alike never take turns. A path that is silent is left at once, whatever the scores: that is
//! not decided here, and the best of the others comes first ([`PathBook::others`]).
//!
//! Pure: whoever owns it measures paths and has the lane moved.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::candidate::{AddressPolicy, Pair, is_private};
use super::loss::Loss;
use crate::id::LaneIndex;
use crate::limits::{GUESSED_PORTS_MAX, PATHS_KNOWN_MAX, PROBE_PAIRS_MAX, PROBE_PORTS_PER_ADDRESS_MAX};
use crate::wire::offer::{CandidateKind, Offer, Punch};

/// What a path is like, as far as its addresses tell. Best first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PathClass {
    /// Within a network that we are directly connected to.
    Lan,
    /// Between addresses of interfaces, over IPv6.
    DirectV6,
    /// Between addresses of interfaces, over IPv4.
    DirectV4,
    /// A translator is on the way.
    Translated,
    /// By way of another node, datagram by datagram.
    Relay,
    /// On a libp2p stream.
    Stream,
}

impl PathClass {
    /// Of a path from an address of ours to an address of the peer's. `kind` is what the peer says of that address, if
    /// anything; `on_link` are the networks that we are directly connected to.
    pub fn of(local: IpAddr, remote: IpAddr, kind: Option<CandidateKind>, on_link: &[IpNet]) -> Self {
        let is_translated = kind != Some(CandidateKind::Host) || (is_private(local) && !is_private(remote));
        match kind {
            Some(CandidateKind::Relayed) => Self::Relay,
            _ if on_link.iter().any(|network| network.contains(&remote) && network.contains(&local)) => Self::Lan,
            _ if is_translated => Self::Translated,
            _ if remote.is_ipv6() => Self::DirectV6,
            _ => Self::DirectV4,
        }
    }

    /// How much longer a round trip by this class may be than one on the local network, and be as good.
    fn allowance(self) -> Duration {
        Duration::from_millis(match self {
            Self::Lan => 0,
            Self::DirectV6 | Self::DirectV4 => 40,
            Self::Translated => 50,
            Self::Relay => 150,
            Self::Stream => 1000,
        })
    }

    /// Whether a path of this class is preferred to one of that, if all else is alike.
    pub fn is_better_than(self, other: Self) -> bool {
        self.allowance() < other.allowance()
    }
}

/// A pair that is worth a probe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RankedPair {
    /// What a path by it is like.
    pub class: PathClass,
    /// Which.
    pub pair: Pair,
}

/// The pairs of our addresses and a peer's candidates, best class first and in the order of `candidates` within a class,
/// at most [`PROBE_PAIRS_MAX`] and [`PROBE_PORTS_PER_ADDRESS_MAX`] to each of the peer's addresses.
///
/// `is_same_site`: both are seen by others at the same address, so the peer's private addresses may well be near.
pub fn ranked_pairs(
    policy: &AddressPolicy,
    locals: &[IpAddr],
    candidates: impl IntoIterator<Item = (CandidateKind, SocketAddr)>,
    on_link: &[IpNet],
    is_same_site: bool,
) -> Vec<RankedPair> {
    let mut ports = BTreeMap::<IpAddr, Vec<u16>>::new();
    let mut ranked = Vec::new();
    for (kind, remote) in candidates {
        let of_address = ports.entry(remote.ip()).or_default();
        if of_address.contains(&remote.port()) || of_address.len() == PROBE_PORTS_PER_ADDRESS_MAX {
            continue;
        }
        of_address.push(remote.port());
        for pair in policy.pairs(locals, [remote]) {
            ranked.push(RankedPair { class: PathClass::of(pair.local, remote.ip(), Some(kind), on_link), pair });
        }
    }
    let is_near = |ranked: &RankedPair| is_same_site && is_private(ranked.pair.remote.ip());
    ranked.sort_by_key(|ranked| if is_near(ranked) { PathClass::Lan } else { ranked.class });
    ranked.truncate(PROBE_PAIRS_MAX);
    ranked
}

/// The pairs that the two offers of an exchange leave for a lane, in the order they are worth a probe.
///
/// Towards a translator that gives every destination another port, the ports are guessed that come next. If ours is one
/// too, those come first of all that are not near: each probe uses one of our own up, and the other end guesses from the
/// first.
pub fn lane_pairs(
    policy: &AddressPolicy,
    locals: &[IpAddr],
    [ours, theirs]: [&Offer; 2],
    lane: LaneIndex,
    on_link: &[IpNet],
) -> Vec<RankedPair> {
    let seen_at = |offer: &Offer| -> Vec<_> {
        let seen = offer.extensions.candidates.iter();
        seen.filter(|seen| seen.kind == CandidateKind::ServerReflexive).map(|seen| seen.address.ip()).collect()
    };
    let theirs_seen = seen_at(theirs);
    let is_same_site = seen_at(ours).iter().any(|address| theirs_seen.contains(address));
    let mut ranked = ranked_pairs(policy, locals, theirs.lane_candidates(lane), on_link, is_same_site);
    let guessed = if policy.only_named { Vec::new() } else { guessed_candidates(theirs, lane) };
    let guessed = ranked_pairs(policy, locals, guessed, on_link, false);
    if ours.extensions.punch.mapping.is_symmetric() {
        let is_near = |ranked: &&RankedPair| {
            ranked.class == PathClass::Lan || (is_same_site && is_private(ranked.pair.remote.ip()))
        };
        let near = ranked.iter().take_while(is_near).count();
        ranked.splice(near..near, guessed);
    } else {
        ranked.truncate(PROBE_PAIRS_MAX.saturating_sub(guessed.len()));
        ranked.extend(guessed);
    }
    let mut seen = BTreeSet::new();
    ranked.retain(|ranked| seen.insert(ranked.pair));
    ranked.truncate(PROBE_PAIRS_MAX);
    ranked
}

/// Ports that a peer's translator may give to what a lane sends to us, if it counts.
fn guessed_candidates(theirs: &Offer, lane: LaneIndex) -> Vec<(CandidateKind, SocketAddr)> {
    let Punch { mapping, port_delta, .. } = theirs.extensions.punch;
    if !mapping.is_symmetric() || port_delta == 0 {
        return Vec::new();
    }
    let seen = theirs.lane_candidates(lane).find(|(kind, _)| *kind == CandidateKind::ServerReflexive);
    let Some((kind, seen)) = seen else { return Vec::new() };
    let next = (1..=GUESSED_PORTS_MAX).filter_map(|step| {
        let port = i32::from(seen.port()) + i32::from(port_delta) * i32::from(step);
        Some((kind, SocketAddr::new(seen.ip(), u16::try_from(port).ok().filter(|port| *port != 0)?)))
    });
    next.collect()
}

/// What a path was measured to be like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Measurement {
    /// Its round trip.
    pub rtt: Duration,
    /// What it loses.
    pub loss: Loss,
}

/// How good a path is: the less, the better. Of its losses only those count that are sure.
pub fn score(class: PathClass, measurement: Measurement) -> Duration {
    class.allowance() + measurement.rtt + LOSS_COST * measurement.loss.at_least()
}

/// What each lost datagram of a thousand counts: a path that loses a tenth is as bad as one that is 50 ms longer.
const LOSS_COST: Duration = Duration::from_micros(500);

/// How much better a path of the same or a worse class must be, at least; else an eighth of the present round trip.
const MARGIN_MIN: Duration = Duration::from_millis(3);
/// In so many measurements in a row.
const TIMES_BETTER: u32 = 2;
/// How long a path is avoided that had to be left, or was not there when the lane was to take it; doubles with each time.
const AVOID_MIN: Duration = Duration::from_secs(5);
/// The same of one that was left because of its losses: those may have been the lane's own doing, and would be again.
const AVOID_LOSSY_MIN: Duration = Duration::from_secs(60);
/// The longest such time.
const AVOID_MAX: Duration = Duration::from_secs(300);
/// After so long on a path, or away from it, what it has done before is forgiven.
const FORGIVEN_AFTER: Duration = Duration::from_secs(600);

/// A path, as its two ends are called here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ends {
    /// Our address.
    pub local: SocketAddr,
    /// The peer's address.
    pub remote: SocketAddr,
}

/// What is known of one lane's paths. Owner: control.
#[derive(Debug)]
pub struct PathBook {
    own: Ends,
    class: PathClass,
    own_since: Instant,
    /// What it was like when it was last compared with another.
    own_measured: Option<Measurement>,
    known: Vec<Known>,
}

#[derive(Debug)]
struct Known {
    ends: Ends,
    class: PathClass,
    measured: Option<Measurement>,
    /// When it was found out what it loses, if it was.
    sampled_at: Option<Instant>,
    /// Whether the lane has been by it.
    was_own: bool,
    /// When it was last heard of.
    at: Instant,
    /// How often in a row it was better than the lane's own by enough.
    times_better: u32,
    /// How often it had to be left, or was not there.
    failures: u32,
    /// Whether it was left because of its losses, and has not been found to be clean since.
    was_lossy: bool,
    avoid_until: Instant,
}

impl PathBook {
    /// Of a lane that has just begun.
    pub fn new(own: Ends, class: PathClass, now: Instant) -> Self {
        Self { own, class, own_since: now, own_measured: None, known: Vec::new() }
    }

    /// The lane's own path.
    pub fn own(&self) -> Ends {
        self.own
    }

    /// What the lane's own path is like.
    pub fn class(&self) -> PathClass {
        self.class
    }

    /// More has become known of the addresses of the lane's own path.
    pub fn set_class(&mut self, class: PathClass) {
        self.class = class;
    }

    /// Takes in what another path was measured to be like; `own` is the same of the lane's own path.
    pub fn handle_measured(
        &mut self,
        ends: Ends,
        class: PathClass,
        measured: Measurement,
        own: Measurement,
        now: Instant,
    ) {
        if ends == self.own {
            return;
        }
        self.own_measured = Some(own);
        let own_class = self.class;
        let known = self.known(ends, class, now);
        let measured = known.with_loss(measured, now);
        let is_better = is_better((class, measured), (own_class, own));
        (known.class, known.measured, known.at) = (class, Some(measured), now);
        let is_forgiven = now.saturating_duration_since(known.avoid_until) >= FORGIVEN_AFTER;
        known.was_lossy &= !is_forgiven && !measured.loss.is_clean();
        // Not because it is a little shorter, as far as can be told.
        let is_no_worse = !known.was_lossy || own.loss.at_least() > measured.loss.at_most();
        known.times_better = if is_better && is_no_worse { known.times_better + 1 } else { 0 };
    }

    /// The path the lane should move to, if to any: one that was measured within `fresh`.
    pub fn choose(&self, fresh: Duration, now: Instant) -> Option<Ends> {
        let is_worth = |known: &&Known| {
            let needed = if known.class.is_better_than(self.class) { 1 } else { TIMES_BETTER };
            known.times_better >= needed
                && known.avoid_until <= now
                && now.saturating_duration_since(known.at) <= fresh
                && known.ends != self.own
        };
        let scored = self.known.iter().filter(is_worth).filter_map(|known| Some((known.score()?, known.ends)));
        scored.min().map(|(_, ends)| ends)
    }

    /// Whether a path was better when it was measured last, and has only to be so again.
    pub fn is_to_be_confirmed(&self, now: Instant) -> bool {
        self.known
            .iter()
            .any(|known| known.at == now && known.times_better == TIMES_BETTER - 1 && known.avoid_until <= now)
    }

    /// The lane could not be moved to a path that was chosen: it did not answer.
    pub fn handle_unanswered(&mut self, ends: Ends, now: Instant) {
        let class = self.class;
        self.known(ends, class, now).fail(AVOID_MIN, now);
    }

    /// The lane has moved. `was_silent`: because it had to.
    pub fn handle_moved(&mut self, to: Ends, class: PathClass, was_silent: bool, now: Instant) {
        if to == self.own {
            return;
        }
        let (from, from_class, since) = (self.own, self.class, self.own_since);
        (self.own, self.class, self.own_since) = (to, class, now);
        let measured = self.own_measured.take();
        let left = self.known(from, from_class, now);
        (left.at, left.times_better, left.was_own) = (now, 0, true);
        left.measured = measured.or(left.measured);
        left.sampled_at = measured.filter(|own| own.loss.is_known()).map(|_| now).or(left.sampled_at);
        let was_lossy = !was_silent && measured.is_some_and(is_lossy);
        if was_silent || was_lossy {
            if now.saturating_duration_since(since) >= FORGIVEN_AFTER {
                left.failures = 0;
            }
            left.fail(if was_lossy { AVOID_LOSSY_MIN } else { AVOID_MIN }, now);
            left.was_lossy = was_lossy;
        }
        // What was said of them was said in comparison with the path before.
        self.known.iter_mut().for_each(|known| known.times_better = 0);
        if let Some(position) = self.known.iter().position(|known| known.ends == to) {
            self.known[position].at = now;
        }
    }

    /// Whether another path was lossy when it was last measured, not long ago: then paths are not to be compared by few
    /// questions.
    pub fn remembers_loss(&self, now: Instant) -> bool {
        let is_recent = |known: &Known| now.saturating_duration_since(known.at) < FORGIVEN_AFTER;
        let mut others = self.known.iter().filter(|known| known.ends != self.own && is_recent(known));
        others.any(|known| known.was_lossy || known.measured.is_some_and(is_lossy))
    }

    /// The other paths of which it was found out not long ago what they lose, and that they are no better for it: of all that
    /// may be asked many times, these come last.
    pub fn found_no_better(&self, now: Instant) -> Vec<Ends> {
        let is_no_better = |known: &&Known| known.times_better == 0 && known.is_sampled(now) && known.ends != self.own;
        self.known.iter().filter(is_no_better).map(|known| known.ends).collect()
    }

    /// Our addresses or the peer's are others: whatever was avoided may be different now.
    pub fn forgive(&mut self, now: Instant) {
        for known in &mut self.known {
            known.avoid_until = known.avoid_until.min(now);
        }
    }

    /// The other paths by which the lane has been, then those that have answered, each best first; those last that were of
    /// no use lately.
    pub fn others(&self) -> Vec<Ends> {
        let is_proven = |known: &&Known| known.ends != self.own && (known.was_own || known.measured.is_some());
        let others = self.known.iter().filter(is_proven);
        let mut sorted: Vec<_> =
            others.map(|known| (known.failures, !known.was_own, known.class, known.score(), known.ends)).collect();
        sorted.sort();
        sorted.into_iter().map(|(_, _, _, _, ends)| ends).collect()
    }

    /// The entry of a path, made if need be. When there is no room, the one goes that was not heard of for longest.
    fn known(&mut self, ends: Ends, class: PathClass, now: Instant) -> &mut Known {
        let position = match self.known.iter().position(|known| known.ends == ends) {
            Some(position) => position,
            None => {
                let known = Known {
                    ends,
                    class,
                    measured: None,
                    sampled_at: None,
                    was_own: false,
                    at: now,
                    times_better: 0,
                    failures: 0,
                    was_lossy: false,
                    avoid_until: now,
                };
                if self.known.len() < PATHS_KNOWN_MAX {
                    self.known.push(known);
                    self.known.len() - 1
                } else {
                    let oldest = self.known.iter().enumerate().min_by_key(|(_, known)| known.at);
                    let oldest = oldest.map_or(0, |(position, _)| position);
                    self.known[oldest] = known;
                    oldest
                }
            }
        };
        &mut self.known[position]
    }
}

impl Known {
    /// Whether it is known what the path loses.
    fn is_sampled(&self, now: Instant) -> bool {
        self.sampled_at.is_some_and(|at| now.saturating_duration_since(at) < FORGIVEN_AFTER)
    }

    /// A measurement by few questions says nothing of losses: what was found before by many is still what is known.
    fn with_loss(&mut self, measured: Measurement, now: Instant) -> Measurement {
        if measured.loss.is_known() {
            self.sampled_at = Some(now);
        } else if let Some(before) = self.measured.filter(|_| self.is_sampled(now)) {
            return Measurement { loss: before.loss, ..measured };
        }
        measured
    }

    fn score(&self) -> Option<Duration> {
        self.measured.map(|measured| score(self.class, measured))
    }

    fn fail(&mut self, least: Duration, now: Instant) {
        if now.saturating_duration_since(self.avoid_until) >= FORGIVEN_AFTER {
            self.failures = 0;
        }
        let pause = least.saturating_mul(1 << self.failures.min(8)).min(AVOID_MAX);
        self.failures = self.failures.saturating_add(1);
        (self.at, self.times_better, self.avoid_until) = (now, 0, now + pause);
    }
}

fn is_better((class, new): (PathClass, Measurement), (own_class, own): (PathClass, Measurement)) -> bool {
    let margin = if class.is_better_than(own_class) { Duration::ZERO } else { MARGIN_MIN.max(own.rtt / 8) };
    // Who knows nothing of its own path's losses does not leave it for one that surely has some.
    let own_at_most = if own.loss.is_known() { own.loss.at_most() } else { 0 };
    let [more, less] = [(new.loss.at_least(), own_at_most), (own.loss.at_least(), new.loss.at_most())]
        .map(|(surely, at_most)| LOSS_COST * surely.saturating_sub(at_most));
    class.allowance() + new.rtt + more + margin < own_class.allowance() + own.rtt + less
}

fn is_lossy(measured: Measurement) -> bool {
    measured.loss.is_lossy()
}

/// When to look for something better again: after 5 s, then after pauses that double, up to 5 min, for ever.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    at: Instant,
    pause: Duration,
}

impl Retry {
    /// The first pause.
    pub const PAUSE_MIN: Duration = Duration::from_secs(5);
    /// The longest.
    pub const PAUSE_MAX: Duration = Duration::from_secs(300);

    /// From now on.
    pub fn new(now: Instant) -> Self {
        Self { at: now + Self::PAUSE_MIN, pause: Self::PAUSE_MIN }
    }

    /// As above, where nothing better than what there is can be hoped for, only something a little faster.
    pub fn rarely(now: Instant) -> Self {
        Self { at: now + Self::PAUSE_MAX, pause: Self::PAUSE_MAX }
    }

    /// At once, then as after a first pause.
    pub fn at_once(now: Instant) -> Self {
        Self { at: now, pause: Self::PAUSE_MIN / 2 }
    }

    /// There is reason to look once more soon. The pauses after that are as long as they would have been.
    pub fn hasten(&mut self, now: Instant) {
        self.at = self.at.min(now + Self::PAUSE_MIN);
    }

    /// When to call [`Self::poll`] next.
    pub fn poll_timeout(&self) -> Instant {
        self.at
    }

    /// Whether to look now.
    pub fn poll(&mut self, now: Instant) -> bool {
        let is_due = self.at <= now;
        if is_due {
            self.pause = (self.pause * 2).min(Self::PAUSE_MAX);
            self.at = now + self.pause;
        }
        is_due
    }
}

#[cfg(test)]
mod tests;
