//! Getting through a translator that gives each destination another port, to an end whose own translator lets in answers
//! only. Neither can name the port that would be right, so one end has many and the other tries many:
//!
//! ```text
//! symmetric end: a fan of sockets, each sends to the    cone's end: from the lane's port to the predicted
//!                port the cone's end is seen at:        ports, then to random ones of the address the
//!                each has another port outside          symmetric end is seen at
//! ```
//! With [`FAN_SOCKETS_MAX`] of 64,512 ports open, [`GUESSES_MAX`] tries meet none of them twice in a thousand times. Where the translator
//! counts, the fan's ports lie next to each other, and the first tries meet one.
//!
//! Where both translators count, no fan is needed. Both ends try ports upwards of those last seen, one of them in steps of
//! two: whatever the two have counted on by meanwhile, there is one pair of tries that fits.
//!
//! Pure: whoever owns a [`Guesser`] or a [`Fan`] sends what it says and comes back when it says.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::candidate::{Pair, is_private};
use crate::id::LaneIndex;
use crate::lane::keys::Role;
use crate::limits::{
    COUNTED_GUESSES_MAX, FAN_ROUNDS, FAN_SOCKETS_MAX, FAN_TARGETS_MAX, GUESSES_MAX, GUESSES_PER_SECOND,
};
use crate::wire::offer::{CandidateKind, Offer};
use crate::wire::probe::Transaction;

/// From the first ordinary probe to the fan: most often that one is enough.
pub const FAN_AFTER: Duration = Duration::from_millis(300);
/// To the first guess: by then the fan is open.
pub const GUESSES_AFTER: Duration = Duration::from_millis(850);
/// From the first ordinary probe to the end of it: all guesses, and two seconds for their answers.
pub const TRIED_FOR: Duration =
    GUESSES_AFTER.saturating_add(Duration::from_secs(2 + GUESSES_MAX.div_ceil(GUESSES_PER_SECOND) as u64));
/// Between two datagrams of a fan.
const FAN_GAP: Duration = Duration::from_millis(2);
/// Ports below are given to nobody.
const PORT_MIN: u16 = 1024;
const PORTS: u32 = 0x1_0000 - PORT_MIN as u32;

/// What one end does for a lane.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Part {
    /// Many sockets, which all send to where the peer's lane is seen.
    Fan {
        /// At most [`FAN_TARGETS_MAX`].
        to: Vec<SocketAddr>,
    },
    /// Many ports of the peer's are tried from the lane's own.
    Guess(Guess),
}

/// Which ports are tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Guess {
    /// Where the peer is seen, and at which port its lane was last.
    pub seen: SocketAddr,
    /// How its translator counts; 0 if it does not.
    pub delta: i16,
    /// How many steps are between two tries. The first is one step ahead.
    pub stride: u16,
    /// Whether random ones follow.
    pub is_random: bool,
}

impl Guess {
    /// The same, where these ports of the peer's are known besides: a translator that counts goes on from the last one.
    pub fn after(self, ports: impl Iterator<Item = u16>) -> Self {
        let all = ports.chain([self.seen.port()]);
        let last = match self.delta.signum() {
            1 => all.max(),
            -1 => all.min(),
            _ => None,
        };
        Self { seen: SocketAddr::new(self.seen.ip(), last.unwrap_or(self.seen.port())), ..self }
    }
}

impl Part {
    /// What our end has to do for a lane, by what both offers say; `None` where ordinary probes have to do. Nothing
    /// unless both ends are willing. Of IPv4 only.
    pub fn of(role: Role, ours: &Offer, theirs: &Offer, lane: LaneIndex) -> Option<Self> {
        let (our, their) = (ours.extensions.punch, theirs.extensions.punch);
        if !our.birthday || !their.birthday {
            return None;
        }
        let reflexive = |(kind, address): &(CandidateKind, SocketAddr)| {
            *kind == CandidateKind::ServerReflexive && address.is_ipv4()
        };
        let seen = theirs.lane_candidates(lane).find(reflexive).map(|(_, address)| address);
        if our.mapping.is_symmetric() && their.mapping.is_same_to_all() {
            let is_outside = |(kind, address): &(CandidateKind, SocketAddr)| {
                let is_seen = *kind == CandidateKind::ServerReflexive;
                let is_public = *kind != CandidateKind::Relayed && !is_private(address.ip());
                address.is_ipv4() && (is_seen || is_public)
            };
            let to = theirs.lane_candidates(lane).filter(is_outside).map(|(_, address)| address).take(FAN_TARGETS_MAX);
            let to: Vec<_> = to.collect();
            return (!to.is_empty()).then_some(Self::Fan { to });
        }
        let guess = |stride, is_random| {
            let guess = Guess { seen: seen?, delta: their.port_delta, stride, is_random };
            let all = theirs.extensions.candidates.iter().filter(|other| other.address.ip() == guess.seen.ip());
            let all = all.filter(|other| other.kind == CandidateKind::ServerReflexive);
            Some(Self::Guess(guess.after(all.map(|other| other.address.port()))))
        };
        if our.mapping.is_same_to_all() && their.mapping.is_symmetric() {
            return guess(1, true);
        }
        let both_count =
            our.mapping.is_symmetric() && their.mapping.is_symmetric() && our.port_delta != 0 && their.port_delta != 0;
        if both_count { guess(if role == Role::Client { 2 } else { 1 }, false) } else { None }
    }

    /// How long after the first ordinary probe it begins.
    pub fn delay(&self) -> Duration {
        match self {
            Self::Fan { .. } => FAN_AFTER,
            Self::Guess(_) => GUESSES_AFTER,
        }
    }
}

/// Tries ports. Owner: control.
#[derive(Debug)]
pub struct Guesser {
    local: IpAddr,
    guess: Guess,
    transaction: Transaction,
    began_at: Instant,
    /// The place of the next try, counted from the first.
    place: u32,
    first: u32,
    step: u32,
    asked: BTreeSet<u16>,
    is_over: bool,
}

impl Guesser {
    /// From `local`, an address of ours. `random` chooses the ports; requests carry `transaction`.
    pub fn new(local: IpAddr, guess: Guess, transaction: Transaction, random: u64, now: Instant) -> Self {
        // All ports in an order that cannot be foretold, each once: a step that shares no factor with their number.
        let (first, mut step) = ((random as u32) % PORTS, ((random >> 32) as u32 % PORTS) | 1);
        while step.is_multiple_of(3) || step.is_multiple_of(7) {
            step += 2;
        }
        let (asked, is_over) = (BTreeSet::new(), false);
        Self { local, guess, transaction, began_at: now, place: 0, first, step, asked, is_over }
    }

    /// The next request that is due, and where it goes.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<(Pair, Transaction)> {
        loop {
            if self.is_over || self.due() > now {
                return None;
            }
            let Some(port) = self.port() else {
                self.is_over = true;
                return None;
            };
            self.place += 1;
            if port.is_some_and(|port| self.asked.contains(&port)) {
                continue;
            }
            if let Some(port) = port {
                self.asked.insert(port);
                let remote = SocketAddr::new(self.guess.seen.ip(), port);
                return Some((Pair { local: self.local, remote }, self.transaction));
            }
        }
    }

    /// When to call [`Self::poll_transmit`] next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        (!self.is_over).then(|| self.due())
    }

    /// Whether an authentic reply is one to a request of ours on this very path.
    pub fn is_answer(&self, pair: Pair, transaction: Transaction) -> bool {
        transaction == self.transaction && self.leads(pair) && self.asked.contains(&pair.remote.port())
    }

    /// An authentic request has come from a port of the peer's: what to ask there, even if it has been before. What was may have
    /// been too early.
    pub fn ask_back(&mut self, pair: Pair) -> Option<Transaction> {
        let port = pair.remote.port();
        let is_asked = self.asked.contains(&port);
        if !self.leads(pair) || (!is_asked && self.asked.len() >= GUESSES_MAX as usize) {
            return None;
        }
        self.asked.insert(port);
        Some(self.transaction)
    }

    fn leads(&self, pair: Pair) -> bool {
        pair.local == self.local && pair.remote.ip() == self.guess.seen.ip()
    }

    fn due(&self) -> Instant {
        self.began_at + Duration::from_secs(1) * self.asked.len() as u32 / GUESSES_PER_SECOND
    }

    /// The port of the present place; `Some(None)` if there is none at it, `None` behind the last.
    fn port(&self) -> Option<Option<u16>> {
        let counted = if self.guess.delta == 0 { 0 } else { COUNTED_GUESSES_MAX };
        if self.place < counted {
            let ahead = i64::from(self.guess.delta) * (i64::from(self.guess.stride) * i64::from(self.place) + 1);
            let port = u16::try_from(i64::from(self.guess.seen.port()) + ahead).ok();
            return Some(port.filter(|port| *port >= PORT_MIN));
        }
        let place = self.place - counted;
        let is_left = self.guess.is_random && self.asked.len() < GUESSES_MAX as usize && place < PORTS;
        let port = (u64::from(self.first) + u64::from(place) * u64::from(self.step)) % u64::from(PORTS);
        is_left.then(|| u16::try_from(port + u64::from(PORT_MIN)).ok())
    }
}

/// Sends from many sockets. Owner: control.
#[derive(Debug)]
pub struct Fan {
    to: Vec<SocketAddr>,
    sockets: usize,
    /// What requests of all sockets carry.
    pub transaction: Transaction,
    sent: usize,
    due: Instant,
}

impl Fan {
    /// Of `sockets` sockets, at most [`FAN_SOCKETS_MAX`], which send to `to`.
    pub fn new(to: &[SocketAddr], sockets: usize, transaction: Transaction, now: Instant) -> Self {
        let to = to.iter().copied().take(FAN_TARGETS_MAX).collect();
        Self { to, sockets: sockets.min(FAN_SOCKETS_MAX), transaction, sent: 0, due: now }
    }

    /// The next request that is due: the number of its socket, and where it goes.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<(usize, SocketAddr)> {
        if self.is_over() || self.due > now {
            return None;
        }
        let (socket, target) = (self.sent / self.to.len() % self.sockets, self.sent % self.to.len());
        self.sent += 1;
        self.due += FAN_GAP;
        Some((socket, *self.to.get(target)?))
    }

    /// When to call [`Self::poll_transmit`] next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        (!self.is_over()).then_some(self.due)
    }

    fn is_over(&self) -> bool {
        self.sent >= self.sockets * self.to.len() * FAN_ROUNDS
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const LOCAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 1, 2));

    fn guess(seen: &str, delta: i16, stride: u16, is_random: bool) -> Guess {
        Guess { seen: seen.parse().unwrap(), delta, stride, is_random }
    }

    fn all(guess: Guess, random: u64) -> (Vec<u16>, Duration) {
        let start = Instant::now();
        let (mut now, mut ports) = (start, Vec::new());
        let mut guesser = Guesser::new(LOCAL, guess, Transaction(7), random, now);
        while let Some(at) = guesser.poll_timeout() {
            now = at.max(now);
            while let Some((pair, transaction)) = guesser.poll_transmit(now) {
                assert_eq!((pair.local, pair.remote.ip(), transaction), (LOCAL, guess.seen.ip(), Transaction(7)));
                ports.push(pair.remote.port());
            }
        }
        (ports, now - start)
    }

    #[test]
    fn guesses_are_bounded_slow_enough_and_each_a_port_of_its_own() {
        for random in [0, 1, u64::MAX, 0x1234_5678_9abc_def0, 3 << 32, 21 << 32] {
            for delta in [0, 1, -3, i16::MIN, i16::MAX] {
                let (ports, took) = all(guess("203.0.113.5:40000", delta, 1, true), random);
                assert_eq!(ports.len(), GUESSES_MAX as usize);
                assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), ports.len());
                assert!(ports.iter().all(|port| *port >= PORT_MIN));
                assert!(took >= Duration::from_secs(1) * (GUESSES_MAX - 1) / GUESSES_PER_SECOND, "{took:?}");
            }
        }
    }

    #[test]
    fn where_a_translator_counts_the_next_ports_come_first() {
        let (ports, _) = all(guess("203.0.113.5:40000", 2, 1, true), 5);
        assert_eq!(ports[..3], [40002, 40004, 40006]);
        let (ports, _) = all(guess("203.0.113.5:65533", 1, 1, false), 5);
        assert_eq!(ports, [65534, 65535], "there is no port behind the last");
    }

    #[test]
    fn prediction_goes_on_from_the_last_port_that_is_known() {
        let after = |delta| guess("203.0.113.5:40000", delta, 1, true).after([39_000, 40_500].into_iter()).seen.port();
        assert_eq!([1, -1, 0].map(after), [40_500, 39_000, 40_000]);
    }

    #[test]
    fn only_an_answer_to_what_was_asked_counts() {
        let now = Instant::now();
        let mut guesser = Guesser::new(LOCAL, guess("203.0.113.5:40000", 1, 1, true), Transaction(7), 1, now);
        let (pair, transaction) = guesser.poll_transmit(now).unwrap();
        let elsewhere = |port| Pair { remote: SocketAddr::new(pair.remote.ip(), port), ..pair };
        let other = Pair { remote: "203.0.113.6:40001".parse().unwrap(), ..pair };
        for (pair, transaction) in [(pair, Transaction(8)), (elsewhere(40002), transaction), (other, transaction)] {
            assert!(!guesser.is_answer(pair, transaction));
        }
        assert!(guesser.is_answer(pair, transaction));
    }

    #[test]
    fn whoever_asks_is_asked_back_at_the_peer_s_address_alone_and_within_the_bound() {
        let now = Instant::now();
        let mut guesser = Guesser::new(LOCAL, guess("203.0.113.5:40000", 0, 1, true), Transaction(7), 1, now);
        let from = |ip: [u8; 4], port| Pair { local: LOCAL, remote: SocketAddr::from((ip, port)) };
        assert_eq!(guesser.ask_back(from([203, 0, 113, 6], 5000)), None);
        let asked = (1024..).map(|port| from([203, 0, 113, 5], port)).take_while(|pair| {
            assert!(!guesser.is_answer(*pair, Transaction(7)));
            guesser.ask_back(*pair) == Some(Transaction(7)) && guesser.is_answer(*pair, Transaction(7))
        });
        assert_eq!(asked.count(), GUESSES_MAX as usize);
        assert_eq!(guesser.ask_back(from([203, 0, 113, 5], 1024)), Some(Transaction(7)), "again");
    }

    #[test]
    fn every_socket_of_a_fan_sends_to_every_target_a_few_times_and_no_more() {
        let start = Instant::now();
        let to: Vec<SocketAddr> = (1..9).map(|host| SocketAddr::from(([203, 0, 113, host], 8100))).collect();
        let mut fan = Fan::new(&to, 10_000, Transaction(1), start);
        let (mut now, mut sent) = (start, BTreeMap::new());
        while let Some(at) = fan.poll_timeout() {
            now = at.max(now);
            while let Some(one) = fan.poll_transmit(now) {
                *sent.entry(one).or_insert(0) += 1;
            }
        }
        assert_eq!(sent.len(), FAN_SOCKETS_MAX * FAN_TARGETS_MAX);
        assert!(sent.values().all(|times| *times == FAN_ROUNDS));
        assert_eq!(Fan::new(&[], 5, Transaction(1), start).poll_timeout(), None);
        assert_eq!(Fan::new(&to, 0, Transaction(1), start).poll_transmit(start), None);
    }

    #[test]
    fn two_translators_that_count_are_met_however_far_they_have_counted() {
        // The n-th try of one comes from port a + n and goes to the other's b + 2n; the m-th of that from b + m to a + m.
        for (ahead, behind) in (0..60).flat_map(|one| (0..60).map(move |other| (one, other))) {
            let client = all(guess("203.0.113.1:20000", 1, 2, false), 1).0;
            let server = all(guess("203.0.113.2:30000", 1, 1, false), 1).0;
            let meets = client.iter().enumerate().any(|(n, to)| {
                let (from, m) = (30_000 + ahead + n + 1, usize::from(*to).checked_sub(20_000 + behind + 1));
                m.and_then(|m| server.get(m)).is_some_and(|back| usize::from(*back) == from)
            });
            assert!(meets, "{ahead} {behind}");
        }
    }
}
