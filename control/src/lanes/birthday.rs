//! Ports that nobody can name: fans of sockets, and tries from a lane's own port ([`ringlane_shared::path::birthday`]).
//!
//! It begins when a lane's ordinary probes have not been answered for a moment, for one lane of a link at a time: where a
//! translator counts, two lanes would spoil each other's prediction. The first path that answers is the lane's, as ever. One that begins
//! at a socket of the fan has a port of its own at our end; the socket that the lane gets is bound to it.
//!
//! A relay that answers first does not end it. When ports are met while a relay carries the lane, the client has the
//! lane moved there, as to any better path. If none are, it is tried again when offers are exchanged, ever more rarely.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use ringlane_shared::id::LaneIndex;
use ringlane_shared::limits::{BIRTHDAYS_MAX, FAN_SOCKETS_MAX, LANE_SETUPS_MAX};
use ringlane_shared::path::birthday::{Fan, Guesser, Part, TRIED_FOR};
use ringlane_shared::path::candidate::Pair;
use ringlane_shared::path::choice::PathClass;
use ringlane_shared::stun::nat::Mapping;
use ringlane_shared::wire::offer::{CandidateKind, Offer};
use ringlane_shared::wire::probe::{PROBE_BYTES, Probe, ProbeKind, Transaction};
use tokio::net::UdpSocket;

use super::engine::{Key, LaneEngine, draw_transaction};
use super::handshake::Path;
use super::scouting::TAKEN_WITHIN;
use super::setup::Link;
use super::socket;

/// Between two looks at whether it is a lane's turn, or whether it still is in want of a path.
const TURN_PAUSE: Duration = Duration::from_millis(100);
/// Attempts of a lane that come as soon as offers are exchanged.
const SOON_MAX: u32 = 2;
/// After these the pause between two; doubles with each.
const PAUSE_MIN: Duration = Duration::from_secs(30);
/// Longest such pause. With exchanges every five minutes there is an attempt at every other one, at both ends.
const PAUSE_MAX: Duration = Duration::from_secs(500);

/// What is under way for one lane.
struct Attempt {
    link: Rc<Link>,
    stage: Stage,
    /// We are the client and have met a port while the lane went by a relay, or was about to.
    found: Option<Path>,
    /// Nothing is to be done before, or has to.
    due: Instant,
}

enum Stage {
    /// It begins when it is due, if it is the lane's turn.
    Planned(Part),
    /// Our end tries ports, until then.
    Guesses(Guesser, Instant),
    /// Our end has many sockets, until then.
    Fans(Fan, Vec<SocketAddr>, Instant),
}

impl Attempt {
    fn poll_timeout(&self) -> Instant {
        let (next, over_at) = match &self.stage {
            Stage::Planned(_) => return self.due,
            Stage::Guesses(guesser, over_at) => (guesser.poll_timeout(), *over_at),
            Stage::Fans(fan, _, over_at) => (fan.poll_timeout(), *over_at),
        };
        let next = next.into_iter().chain(self.found.map(|_| self.due)).min();
        next.map_or(over_at, |next| next.max(self.due).min(over_at))
    }

    fn is_under_way(&self) -> bool {
        !matches!(self.stage, Stage::Planned(_))
    }

    fn is_over(&self, now: Instant) -> bool {
        match &self.stage {
            Stage::Planned(_) => false,
            Stage::Guesses(_, over_at) | Stage::Fans(_, _, over_at) => *over_at <= now,
        }
    }
}

/// How often a lane has come to it without a path to show for it.
struct Tried {
    between: Between,
    count: u32,
    last: Instant,
}

/// Between which translators ports are tried. Where one is another, or the peer has begun anew, nothing was in vain.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Between {
    instance: [u8; 16],
    mappings: [Mapping; 2],
    seen: [Option<IpAddr>; 2],
}

impl Between {
    fn of(link: &Link, lane: LaneIndex) -> Self {
        let offers = [&link.ours, &link.theirs];
        let seen = |offer: &Offer| {
            let mut candidates = offer.lane_candidates(lane);
            candidates.find(|(kind, _)| *kind == CandidateKind::ServerReflexive).map(|(_, address)| address.ip())
        };
        Self {
            instance: link.theirs.instance,
            mappings: offers.map(|offer| offer.extensions.punch.mapping),
            seen: offers.map(seen),
        }
    }
}

/// What a lane still needs.
enum Want {
    /// Any path, or one without a relay.
    Ports,
    /// Nothing for now: a path has answered, and is about to be dialled.
    Wait,
    /// Nothing more.
    Nothing,
}

/// Owner: the lane engine.
#[derive(Default)]
pub(super) struct Birthdays {
    attempts: BTreeMap<Key, Attempt>,
    /// Sockets of fans, by their own address.
    sockets: BTreeMap<SocketAddr, (UdpSocket, Key)>,
    tried: BTreeMap<Key, Tried>,
}

impl Birthdays {
    pub(super) fn socket(&self, local: SocketAddr) -> Option<&UdpSocket> {
        self.sockets.get(&local).map(|(socket, _)| socket)
    }

    pub(super) fn locals(&self) -> impl Iterator<Item = SocketAddr> {
        self.sockets.keys().copied()
    }

    /// Whether this is a socket of the lane's fan.
    pub(super) fn is_of(&self, local: SocketAddr, key: Key) -> bool {
        self.sockets.get(&local).is_some_and(|(_, of)| *of == key)
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.attempts.values().map(Attempt::poll_timeout).min()
    }

    /// The lane is given up, or begins anew, or has been tried for long enough: its fan is folded.
    pub(super) fn end(&mut self, key: Key) {
        self.attempts.remove(&key);
        self.sockets.retain(|_, (_, of)| *of != key);
    }

    /// The lane has a path, and by no relay.
    pub(super) fn succeed(&mut self, key: Key) {
        self.end(key);
        self.tried.remove(&key);
    }

    /// Whether there may be one more attempt; counts it.
    fn attempt(&mut self, key: Key, between: Between, now: Instant) -> bool {
        if self.tried.len() >= LANE_SETUPS_MAX && !self.tried.contains_key(&key) {
            self.tried.retain(|_, tried| now.saturating_duration_since(tried.last) < PAUSE_MAX);
            if self.tried.len() >= LANE_SETUPS_MAX {
                return false;
            }
        }
        let tried = self.tried.entry(key).or_insert(Tried { between, count: 0, last: now });
        if tried.between != between {
            *tried = Tried { between, count: 0, last: now };
        }
        let pause = match tried.count.checked_sub(SOON_MAX) {
            None => Duration::ZERO,
            Some(more) => PAUSE_MIN.saturating_mul(1 << more.min(8)).min(PAUSE_MAX),
        };
        let may = now.saturating_duration_since(tried.last) >= pause;
        if may {
            (tried.count, tried.last) = (tried.count.saturating_add(1), now);
        }
        may
    }
}

impl LaneEngine {
    /// What a lane does that is in the making or goes by a relay, should ordinary probes not do. What is under way goes on.
    pub(super) fn plan_birthday(&mut self, link: &Rc<Link>, key: Key, starts_at: Instant) {
        let part = Part::of(link.role(), &link.ours, &link.theirs, key.1);
        let attempts = &mut self.birthdays.attempts;
        match (attempts.entry(key), part) {
            (Entry::Occupied(attempt), _) if attempt.get().is_under_way() => {}
            (Entry::Occupied(attempt), None) => drop(attempt.remove()),
            // Tags and keys stay those of the exchange that both ends have begun with.
            (Entry::Occupied(mut attempt), Some(part)) => {
                let attempt = attempt.get_mut();
                (attempt.due, attempt.stage) = (starts_at + part.delay(), Stage::Planned(part));
            }
            (Entry::Vacant(entry), Some(part)) => {
                let link = Rc::clone(self.setups.get(&key).map_or(link, |setup| &setup.link));
                let due = starts_at + part.delay();
                entry.insert(Attempt { link, stage: Stage::Planned(part), found: None, due });
            }
            (Entry::Vacant(_), None) => {}
        }
    }

    /// Begins what is due for lanes that need it, sends what is due, and ends what is over.
    pub(super) fn tick_birthdays(&mut self, now: Instant) {
        let attempts = self.birthdays.attempts.iter();
        let due: Vec<_> = attempts.filter(|(_, it)| it.poll_timeout() <= now).map(|(key, _)| *key).collect();
        for key in due {
            self.drive_birthday(key, now);
        }
    }

    fn want_of(&self, key: Key) -> Want {
        let by_relay = |path| self.relayed.leads(key, path);
        match (self.setups.get(&key), self.standing.find(key)) {
            (Some(setup), _) => match setup.chosen(|pair| self.path_for(key, pair)) {
                Some(path) if !by_relay(path) => Want::Wait,
                _ => Want::Ports,
            },
            (None, Some(lane)) if lane.book.class() == PathClass::Relay => Want::Ports,
            (None, _) => Want::Nothing,
        }
    }

    fn drive_birthday(&mut self, key: Key, now: Instant) {
        let want = self.want_of(key);
        let Some(attempt) = self.birthdays.attempts.get_mut(&key) else { return };
        match want {
            Want::Nothing => return self.birthdays.end(key),
            _ if attempt.is_over(now) => return self.birthdays.end(key),
            Want::Wait => {
                attempt.due = now + TURN_PAUSE;
                return;
            }
            Want::Ports => {}
        }
        if let Some(path) = attempt.found {
            attempt.due = now + TURN_PAUSE;
            self.move_to_found(key, path, now);
        }
        let Some(attempt) = self.birthdays.attempts.get(&key) else { return };
        if let Stage::Planned(part) = &attempt.stage {
            let part = part.clone();
            self.begin_birthday(key, part, now);
        }
        self.send_tries(key, now);
    }

    fn send_tries(&mut self, key: Key, now: Instant) {
        let port = self.local_port(key.1);
        let Birthdays { attempts, sockets, .. } = &mut self.birthdays;
        let Some(attempt) = attempts.get_mut(&key) else { return };
        let link = &attempt.link;
        let mut send = |socket: Option<&UdpSocket>, to: SocketAddr, transaction| {
            if let Some(socket) = socket.filter(|_| self.probe_rate.take(key.0, to.ip(), now)) {
                socket::send_to(socket, to, &request(link, key.1, transaction));
            }
        };
        match &mut attempt.stage {
            Stage::Guesses(guesser, _) => {
                while let Some((pair, transaction)) = guesser.poll_transmit(now) {
                    send(self.listeners.get(SocketAddr::new(pair.local, port)), pair.remote, transaction);
                }
            }
            Stage::Fans(fan, locals, _) => {
                while let Some((number, to)) = fan.poll_transmit(now) {
                    let socket = locals.get(number).and_then(|local| sockets.get(local)).map(|(socket, _)| socket);
                    send(socket, to, fan.transaction);
                }
            }
            Stage::Planned(_) => {}
        }
    }

    fn begin_birthday(&mut self, key: Key, part: Part, now: Instant) {
        let Birthdays { attempts, sockets, .. } = &self.birthdays;
        let mut of_peer = attempts.iter().filter(|(other, _)| other.0 == key.0 && **other != key);
        let must_wait = of_peer.any(|(other, attempt)| *other < key || attempt.is_under_way());
        let under_way = attempts.values().filter(|attempt| attempt.is_under_way()).count();
        let is_full = under_way >= BIRTHDAYS_MAX || matches!(part, Part::Fan { .. }) && !sockets.is_empty();
        let Some(attempt) = self.birthdays.attempts.get_mut(&key) else { return };
        if must_wait || is_full {
            attempt.due = now + TURN_PAUSE;
            if let Some(setup) = self.setups.get_mut(&key).filter(|setup| must_wait && !setup.has_path()) {
                // The others are bounded in time, and so is the wait.
                setup.look_on(now);
            }
            return;
        }
        let between = Between::of(&attempt.link, key.1);
        let begun = if self.birthdays.attempt(key, between, now) { self.begin(key, &part, now) } else { None };
        let Some(stage) = begun else { return self.birthdays.end(key) };
        tracing::debug!(peer = key.0.0, lane = %key.1, ?part, "ports are tried that nobody can name");
        if let Some(attempt) = self.birthdays.attempts.get_mut(&key) {
            attempt.stage = stage;
        }
        if let Some(setup) = self.setups.get_mut(&key).filter(|setup| !setup.has_path()) {
            setup.look_on(now);
        }
    }

    fn begin(&mut self, key: Key, part: &Part, now: Instant) -> Option<Stage> {
        // Both ends end it at the same time, so that the next lane's turn comes at the same time, too.
        let over_at = now + TRIED_FOR.saturating_sub(part.delay());
        match part {
            Part::Guess(guess) => {
                let pair = self.pair_towards(guess.seen)?;
                // A translator that counts goes on from the lane that was made last.
                let standing = self.standing.lanes_of(key.0).map(|lane| lane.path.remote);
                let making = self.paths.iter().filter(|(_, of)| of.0 == key.0).map(|(path, _)| path.remote);
                let ports = standing.chain(making).filter(|remote| remote.ip() == guess.seen.ip());
                let guess = guess.after(ports.map(|remote| remote.port()));
                let random = draw_transaction().0;
                let guesser = Guesser::new(pair.local, guess, draw_transaction(), random, now);
                Some(Stage::Guesses(guesser, over_at))
            }
            Part::Fan { to } => {
                let to: Vec<_> = to.iter().copied().filter(|to| self.pair_towards(*to).is_some()).collect();
                let local = self.pair_towards(*to.first()?)?.local;
                let locals = self.open_fan(key, local);
                let fan = Fan::new(&to, locals.len(), draw_transaction(), now);
                Some(Stage::Fans(fan, locals, over_at))
            }
        }
    }

    /// Opens the sockets of a lane's fan, at ports that nothing else of ours has. Returns which.
    pub(super) fn open_fan(&mut self, key: Key, ip: IpAddr) -> Vec<SocketAddr> {
        let mut locals = Vec::new();
        for _ in 0..FAN_SOCKETS_MAX {
            let Ok((local, socket)) = socket::on_free_port(ip) else {
                // Others need file descriptors, too.
                for local in locals.drain(locals.len() / 2..) {
                    self.birthdays.sockets.remove(&local);
                }
                break;
            };
            self.birthdays.sockets.insert(local, (socket, key));
            locals.push(local);
        }
        self.note_socket_added();
        locals
    }

    /// By which address of ours something goes there, if a lane may.
    fn pair_towards(&self, remote: SocketAddr) -> Option<Pair> {
        let ips = self.listeners.ips();
        let routed = crate::underlay::source_to(remote, true);
        let pairs = self.policy.pairs(ips, [remote]);
        pairs.iter().find(|pair| Some(pair.local) == routed).or(pairs.first()).copied()
    }

    /// An authentic probe that came to a socket of its lane's fan. Returns whether it was of what is under way there.
    pub(super) fn handle_fan_probe(&mut self, link: &Rc<Link>, probe: &Probe, path: Path, now: Instant) -> bool {
        let key = (link.peer, probe.lane);
        let Birthdays { attempts, sockets, .. } = &self.birthdays;
        let attempt = attempts.get(&key).filter(|attempt| Rc::ptr_eq(&attempt.link, link));
        let Some(Stage::Fans(fan, ..)) = attempt.map(|attempt| &attempt.stage) else { return false };
        let Some((socket, _)) = sockets.get(&path.local) else { return false };
        match probe.kind {
            ProbeKind::Request => {
                socket::send_to(socket, path.remote, &link.probe_key.seal(&probe.reply(link.our_tag, path.remote)));
                if link.is_client() && self.probe_rate.take(key.0, path.remote.ip(), now) {
                    socket::send_to(socket, path.remote, &request(link, key.1, fan.transaction));
                }
            }
            ProbeKind::Reply { .. } if probe.transaction == fan.transaction => self.handle_found(key, path, now),
            ProbeKind::Reply { .. } => {}
        }
        true
    }

    /// An authentic probe that came to the lane's own port. Returns whether it was of the ports that are tried from there, and
    /// of nothing else.
    pub(super) fn handle_tried(&mut self, link: &Rc<Link>, probe: &Probe, path: Path, now: Instant) -> bool {
        let key = (link.peer, probe.lane);
        let attempt = self.birthdays.attempts.get_mut(&key).filter(|attempt| Rc::ptr_eq(&attempt.link, link));
        let Some(Stage::Guesses(guesser, _)) = attempt.map(|attempt| &mut attempt.stage) else { return false };
        let pair = Pair { local: path.local.ip(), remote: path.remote };
        match probe.kind {
            ProbeKind::Reply { .. } => {
                let is_met = guesser.is_answer(pair, probe.transaction);
                if is_met {
                    self.handle_found(key, path, now);
                }
                is_met
            }
            ProbeKind::Request => {
                let asks = self.setups.get(&key).is_some_and(|setup| !setup.has_path());
                let Some(listener) = self.listeners.get(path.local).filter(|_| !asks) else { return false };
                let back = guesser.ask_back(pair).filter(|_| link.is_client());
                socket::send_to(listener, path.remote, &link.probe_key.seal(&probe.reply(link.our_tag, path.remote)));
                if let Some(back) = back.filter(|_| self.probe_rate.take(key.0, path.remote.ip(), now)) {
                    socket::send_to(listener, path.remote, &request(link, key.1, back));
                }
                true
            }
        }
    }

    /// A port has been met. The client chooses: it dials there, or has the lane moved there that goes by a relay.
    fn handle_found(&mut self, key: Key, path: Path, now: Instant) {
        let Some(attempt) = self.birthdays.attempts.get_mut(&key).filter(|attempt| attempt.link.is_client()) else {
            return;
        };
        match self.setups.get_mut(&key).filter(|setup| !setup.has_path()) {
            Some(setup) => setup.handle_way(path, now),
            None => {
                attempt.found = Some(path);
                attempt.due = now;
            }
        }
    }

    fn move_to_found(&mut self, key: Key, path: Path, now: Instant) {
        // One in the making is there soon.
        let lane = self.standing.find(key).filter(|lane| lane.taking.is_none() && !self.setups.contains_key(&key));
        let Some(serial) = lane.map(|lane| lane.serial) else { return };
        if self.try_path(serial, path, true, now) {
            if let Some(lane) = self.standing.get_mut(serial) {
                lane.taking = Some((path.into(), now + TAKEN_WITHIN));
            }
            if let Some(attempt) = self.birthdays.attempts.get_mut(&key) {
                attempt.found = None;
            }
        }
    }
}

fn request(link: &Link, lane: LaneIndex, transaction: Transaction) -> [u8; PROBE_BYTES] {
    link.probe_key.seal(&Probe { tag: link.our_tag, lane, transaction, kind: ProbeKind::Request })
}

#[cfg(test)]
mod tests {
    use ringlane_shared::id::PeerIndex;

    use super::*;

    #[test]
    fn what_is_in_vain_becomes_rare_at_both_ends_alike_until_a_translator_is_another() {
        // As exchanges come for a lane that a relay carries; those left out that come while it is being tried.
        let exchanges = [0, 15, 35, 75, 155, 315].into_iter().chain((615..4000).step_by(300));
        let key = (PeerIndex(1), LaneIndex::new(0).unwrap());
        let mut between = Between {
            instance: [1; 16],
            mappings: [Mapping::EndpointIndependent, Mapping::AddressDependent],
            seen: [None, Some(IpAddr::from([203, 0, 113, 5]))],
        };
        let begun = Instant::now();
        let at = |seconds: u64| begun + Duration::from_secs(seconds);
        for late in [0, 7, 900] {
            let mut ends = [Birthdays::default(), Birthdays::default()];
            let mut tried = Vec::new();
            for (round, exchange) in exchanges.clone().enumerate() {
                // One end is somewhat later, now this and now that.
                let when = [at(exchange), at(exchange) + Duration::from_millis(late)];
                let swap = round % 2;
                let may = [0, 1].map(|end| ends[end].attempt(key, between, when[(end + swap) % 2]));
                assert_eq!(may[0], may[1], "{exchange}");
                tried.extend(may[0].then_some(exchange));
            }
            assert_eq!(tried, [0, 15, 75, 155, 315, 615, 1215, 1815, 2415, 3015, 3615]);
            between.seen[1] = Some(IpAddr::from([203, 0, 113, late as u8]));
            assert!(ends[0].attempt(key, between, at(4001)), "nothing was in vain there");
            ends[0].succeed(key);
            assert!((0..SOON_MAX).all(|_| ends[0].attempt(key, between, at(4001))));
            assert!(!ends[0].attempt(key, between, at(4001)));
        }
    }
}
