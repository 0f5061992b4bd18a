//! Ports that nobody can name: fans of sockets, and tries from a lane's own port ([`ringlane_shared::path::birthday`]).
//!
//! It begins when a lane's ordinary probes have not been answered for a moment, for one lane of a link at a time: where a translator
//! counts, two lanes would spoil each other's prediction. The first path that answers is the lane's, as ever. One that begins
//! at a socket of the fan has a port of its own at our end; the socket that the lane gets is bound to it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ringlane_shared::id::PeerIndex;
use ringlane_shared::limits::{BIRTHDAYS_MAX, FAN_SOCKETS_MAX, LANE_SETUPS_MAX};
use ringlane_shared::path::birthday::{Fan, Guesser, Part};
use ringlane_shared::path::candidate::Pair;
use ringlane_shared::wire::probe::{Probe, ProbeKind, Transaction};
use tokio::net::UdpSocket;

use super::engine::{Key, LaneEngine, draw_transaction};
use super::handshake::Path;
use super::setup::Link;
use super::socket;

/// Between two looks at whether it is a lane's turn.
const TURN_PAUSE: Duration = Duration::from_millis(100);
/// Attempts of a lane that come as soon as offers are exchanged.
const SOON_MAX: u32 = 2;
/// After these the pause between two; doubles with each.
const PAUSE_MIN: Duration = Duration::from_secs(30);
/// Longest such pause.
const PAUSE_MAX: Duration = Duration::from_secs(600);

/// What is under way for one lane.
pub(super) enum Birthday {
    /// It begins then, if it is the lane's turn.
    Planned(Part, Instant),
    /// Our end tries ports.
    Guesses(Guesser),
    /// Our end has many sockets.
    Fans(Fan, Vec<SocketAddr>),
}

impl Birthday {
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match self {
            Self::Planned(_, at) => Some(*at),
            Self::Guesses(guesser) => guesser.poll_timeout(),
            Self::Fans(fan, _) => fan.poll_timeout(),
        }
    }

    fn is_under_way(&self) -> bool {
        !matches!(self, Self::Planned(..))
    }
}

/// Owner: the lane engine.
#[derive(Default)]
pub(super) struct Birthdays {
    /// Sockets of fans, by their own address.
    sockets: BTreeMap<SocketAddr, (UdpSocket, Key)>,
    /// How often each lane has come to it without a lane to show for it, and when it did last.
    attempts: BTreeMap<Key, (u32, Instant)>,
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

    /// The lane has a path, or is given up: its fan is folded.
    pub(super) fn close(&mut self, key: Key) {
        self.sockets.retain(|_, (_, of)| *of != key);
    }

    /// The lane stands, and by no relay.
    pub(super) fn forget(&mut self, key: Key) {
        self.attempts.remove(&key);
    }

    /// Whether no lane to this peer has had its first attempt in vain: only until then is it worth waiting for what comes of one.
    pub(super) fn are_new(&self, peer: PeerIndex) -> bool {
        !self.attempts.iter().any(|((of, _), (count, _))| *of == peer && *count > 1)
    }

    /// Whether there may be one more attempt; counts it.
    fn attempt(&mut self, key: Key, now: Instant) -> bool {
        if self.attempts.len() >= LANE_SETUPS_MAX && !self.attempts.contains_key(&key) {
            self.attempts.retain(|_, (_, at)| now.saturating_duration_since(*at) < PAUSE_MAX);
            if self.attempts.len() >= LANE_SETUPS_MAX {
                return false;
            }
        }
        let (count, last) = self.attempts.entry(key).or_insert((0, now));
        let pause = match count.checked_sub(SOON_MAX) {
            None => Duration::ZERO,
            Some(more) => PAUSE_MIN.saturating_mul(1 << more.min(8)).min(PAUSE_MAX),
        };
        let may = now.saturating_duration_since(*last) >= pause;
        if may {
            (*count, *last) = (count.saturating_add(1), now);
        }
        may
    }
}

impl LaneEngine {
    /// What a lane in the making does, should ordinary probes not do. One that is under way goes on.
    pub(super) fn plan_birthday(&mut self, link: &Link, key: Key, starts_at: Instant) {
        let role = link.role();
        let part = Part::of(role, &link.ours, &link.theirs, key.1);
        let Some(setup) = self.setups.get_mut(&key) else { return };
        if !setup.birthday.as_ref().is_some_and(Birthday::is_under_way) {
            setup.birthday = part.map(|part| {
                let at = starts_at + part.delay();
                Birthday::Planned(part, at)
            });
        }
    }

    /// Begins what is due for a lane that has no path yet, and sends what is due.
    pub(super) fn drive_birthday(&mut self, key: Key, now: Instant) {
        let Some(setup) = self.setups.get_mut(&key) else { return };
        if setup.has_path() {
            // The client chooses. What it dials may come to any socket of a server's fan.
            if setup.link.is_client() || setup.path().is_some() {
                setup.birthday = None;
                self.birthdays.close(key);
            } else if !matches!(setup.birthday, Some(Birthday::Fans(..))) {
                setup.birthday = None;
            } else if let Some(Birthday::Fans(fan, _)) = &mut setup.birthday {
                fan.stop();
            }
            return;
        }
        if let Some(Birthday::Planned(part, at)) = &setup.birthday
            && *at <= now
        {
            let part = part.clone();
            self.begin_birthday(key, part, now);
        }
        let Some(setup) = self.setups.get_mut(&key) else { return };
        let (tag, probe_key) = (setup.link.our_tag, &setup.link.probe_key);
        let request = |transaction: Transaction| {
            probe_key.seal(&Probe { tag, lane: key.1, transaction, kind: ProbeKind::Request })
        };
        let port = self.port.saturating_add(u16::from(key.1.owner(self.workers).0));
        match &mut setup.birthday {
            Some(Birthday::Guesses(guesser)) => {
                while let Some((pair, transaction)) = guesser.poll_transmit(now) {
                    let listener = self.listeners.get(SocketAddr::new(pair.local, port));
                    if let Some(listener) = listener.filter(|_| self.probe_rate.take(key.0, pair.remote.ip(), now)) {
                        socket::send_to(listener, pair.remote, &request(transaction));
                    }
                }
            }
            Some(Birthday::Fans(fan, sockets)) => {
                while let Some((number, to)) = fan.poll_transmit(now) {
                    let socket = sockets.get(number).and_then(|local| self.birthdays.sockets.get(local));
                    if let Some((socket, _)) = socket.filter(|_| self.probe_rate.take(key.0, to.ip(), now)) {
                        socket::send_to(socket, to, &request(fan.transaction));
                    }
                }
            }
            Some(Birthday::Planned(..)) | None => {}
        }
    }

    fn begin_birthday(&mut self, key: Key, part: Part, now: Instant) {
        let mut before = self.setups.range(..key).rev().take_while(|(other, _)| other.0 == key.0);
        let must_wait = before.any(|(_, setup)| !setup.has_path() && setup.birthday.is_some());
        let under_way =
            self.setups.values().filter(|setup| setup.birthday.as_ref().is_some_and(Birthday::is_under_way));
        let is_full = under_way.count() >= BIRTHDAYS_MAX
            || matches!(part, Part::Fan { .. }) && !self.birthdays.sockets.is_empty();
        if must_wait || is_full {
            let Some(setup) = self.setups.get_mut(&key) else { return };
            if must_wait {
                // The one before is bounded in time, and so is the wait.
                setup.look_on(now);
            }
            setup.birthday = Some(Birthday::Planned(part, now + TURN_PAUSE));
            return;
        }
        tracing::debug!(peer = key.0.0, lane = %key.1, ?part, "no path yet: ports are tried that nobody can name");
        let begun = if self.birthdays.attempt(key, now) { self.begin(key, &part, now) } else { None };
        if let Some(setup) = self.setups.get_mut(&key) {
            if begun.is_some() {
                setup.look_on(now);
            }
            setup.birthday = begun;
        }
    }

    fn begin(&mut self, key: Key, part: &Part, now: Instant) -> Option<Birthday> {
        match part {
            Part::Guess(guess) => {
                let pair = self.pair_towards(guess.seen)?;
                // A translator that counts goes on from the lane that was made last.
                let standing = self.standing.lanes_of(key.0).map(|lane| lane.path.remote);
                let making = self.paths.iter().filter(|(_, of)| of.0 == key.0).map(|(path, _)| path.remote);
                let ports = standing.chain(making).filter(|remote| remote.ip() == guess.seen.ip());
                let guess = guess.after(ports.map(|remote| remote.port()));
                let random = draw_transaction().0;
                Some(Birthday::Guesses(Guesser::new(pair.local, guess, draw_transaction(), random, now)))
            }
            Part::Fan { to } => {
                let to: Vec<_> = to.iter().copied().filter(|to| self.pair_towards(*to).is_some()).collect();
                let local = self.pair_towards(*to.first()?)?.local;
                let mut locals = Vec::new();
                for _ in 0..FAN_SOCKETS_MAX {
                    let opened = socket::listener(SocketAddr::new(local, 0));
                    let Some((socket, at)) = opened.ok().and_then(|socket| {
                        let at = socket.local_addr().ok()?;
                        Some((socket, at))
                    }) else {
                        // Others need file descriptors, too.
                        for local in locals.drain(locals.len() / 2..) {
                            self.birthdays.sockets.remove(&local);
                        }
                        break;
                    };
                    // The kernel may give one port to two of us.
                    if let Entry::Vacant(entry) = self.birthdays.sockets.entry(at) {
                        entry.insert((socket, key));
                        locals.push(at);
                    }
                }
                self.note_socket_added();
                Some(Birthday::Fans(Fan::new(&to, locals.len(), draw_transaction(), now), locals))
            }
        }
    }

    /// By which address of ours something goes there, if a lane may.
    fn pair_towards(&self, remote: SocketAddr) -> Option<Pair> {
        let ips = self.listeners.ips();
        let routed = crate::underlay::source_to(remote, true);
        let pairs = self.policy.pairs(ips, [remote]);
        pairs.iter().find(|pair| Some(pair.local) == routed).or(pairs.first()).copied()
    }

    /// An authentic probe of a lane in the making that came to a socket of its fan. Returns whether it was one.
    pub(super) fn handle_fan_probe(&mut self, probe: &Probe, path: Path, key: Key, now: Instant) -> bool {
        let Some(setup) = self.setups.get_mut(&key) else { return false };
        let Some(Birthday::Fans(fan, _)) = &setup.birthday else { return false };
        let Some(socket) = self.birthdays.socket(path.local) else { return false };
        let link = &setup.link;
        match probe.kind {
            ProbeKind::Request => {
                socket::send_to(socket, path.remote, &link.probe_key.seal(&probe.reply(link.our_tag, path.remote)));
                if link.is_client() && self.probe_rate.take(key.0, path.remote.ip(), now) {
                    let kind = ProbeKind::Request;
                    let back = Probe { tag: link.our_tag, lane: key.1, transaction: fan.transaction, kind };
                    socket::send_to(socket, path.remote, &link.probe_key.seal(&back));
                }
            }
            ProbeKind::Reply { .. } if probe.transaction == fan.transaction && link.is_client() => {
                setup.handle_way(path, now);
            }
            ProbeKind::Reply { .. } => {}
        }
        true
    }
}
