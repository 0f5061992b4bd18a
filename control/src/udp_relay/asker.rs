//! An end's side: which links have lanes relayed, and by whom.
//!
//! A lane is in *need* while it does not stand, is silent, or goes by a relay that we are not connected to any more. After a
//! moment, which is longer for the link's server, so that usually only one end asks, a relay is asked for all lanes of
//! the link: one after the other, those first that are asked for first. What has not been used for a while is given back.
//!
//! ```text
//! need --> Allocate --> allotted: held --> Renew ... --> not used: Release
//!  ^           |                  |
//!  |           +-- refused: avoided for a time that doubles
//!  +----------------------------- failed: avoided too
//! ```
//!
//! Pure: whoever owns it says what there is ([`Asker::look`]) and does what it wants ([`Asker::poll_step`]).

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use ringlane_shared::id::PeerIndex;
use ringlane_shared::limits::RELAYS_PER_LINK_MAX;
use ringlane_shared::wire::offer::LaneSet;
use ringlane_shared::wire::relay::{AllotmentId, RelayRefusal};

/// How long a lane may be missing before a relay is asked: most direct paths are found sooner.
const MISSING_FOR: Duration = Duration::from_millis(800);
/// How much longer the server of a link waits.
const SERVER_WAITS: Duration = Duration::from_secs(3);
/// How long an allotment is kept that no lane needs.
const KEPT_UNUSED: Duration = Duration::from_secs(30);
/// How long a relay is avoided for a link after it was of no use; doubles with each time.
const AVOIDED_MIN: Duration = Duration::from_secs(2);
/// The same for one that does not relay at all.
const AVOIDED_USELESS: Duration = Duration::from_secs(60);
/// The longest such time.
const AVOIDED_MAX: Duration = Duration::from_secs(120);
/// After so long without an answer a question counts as refused.
const ANSWERED_WITHIN: Duration = Duration::from_secs(12);

/// A link, as it stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LinkView {
    /// Whose.
    pub peer: PeerIndex,
    /// Whether we are its client.
    pub is_client: bool,
    /// The lanes that it should have.
    pub all: LaneSet,
    /// Those of them that do not stand.
    pub missing: LaneSet,
    /// Those that stand and are silent.
    pub silent: LaneSet,
    /// Those that go by relays.
    pub relayed: BTreeMap<PeerIndex, LaneSet>,
    /// The lanes that could go by each relay that has allotted any, and that have not failed there.
    pub passages: BTreeMap<PeerIndex, LaneSet>,
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AskerStep {
    /// Ask a relay to relay lanes of the link to `peer`.
    Allocate {
        /// Whom.
        relay: PeerIndex,
        /// The other end.
        peer: PeerIndex,
        /// Which.
        lanes: LaneSet,
    },
    /// Ask it to go on.
    Renew {
        /// Whom.
        relay: PeerIndex,
        /// The other end.
        peer: PeerIndex,
        /// Of what.
        id: AllotmentId,
    },
    /// Tell it that this is over, and forget the passages there.
    Release {
        /// Whom.
        relay: PeerIndex,
        /// The other end.
        peer: PeerIndex,
        /// What.
        id: AllotmentId,
    },
}

#[derive(Debug)]
struct Hold {
    id: AllotmentId,
    lifetime: Duration,
    renew_at: Instant,
    expires_at: Instant,
    used_at: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Avoided {
    until: Instant,
    times: u32,
}

#[derive(Debug, Default)]
struct LinkRelays {
    needed_since: Option<Instant>,
    asking: Option<(PeerIndex, Instant)>,
    holds: BTreeMap<PeerIndex, Hold>,
    avoided: BTreeMap<PeerIndex, Avoided>,
}

/// Decides for all links. Owner: control.
#[derive(Debug, Default)]
pub struct Asker {
    links: BTreeMap<PeerIndex, LinkRelays>,
    steps: VecDeque<AskerStep>,
    due: Option<Instant>,
}

impl Asker {
    /// Looks at all links that are connected. `relays`: connected peers that offer to be relays, those first that are to be
    /// asked first.
    pub fn look(&mut self, views: &[LinkView], relays: &[PeerIndex], now: Instant) {
        self.due = None;
        for view in views {
            let link = self.links.entry(view.peer).or_default();
            link.look(view, relays, now, &mut self.steps);
            let due = link.poll_timeout(view, now);
            self.due = self.due.into_iter().chain(due).min();
        }
        // A link that is not connected keeps what it has for as long as that lasts.
        for (peer, link) in &mut self.links {
            if views.iter().all(|view| view.peer != *peer) {
                link.needed_since = None;
                link.asking = None;
                link.end_expired(*peer, now, &mut self.steps);
                let due = link.holds.values().map(|hold| hold.expires_at).min();
                self.due = self.due.into_iter().chain(due).min();
            }
        }
        self.links.retain(|_, link| !link.is_idle(now));
    }

    /// When to look again, if nothing happens before.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// What is to be done next.
    pub fn poll_step(&mut self) -> Option<AskerStep> {
        self.steps.pop_front()
    }

    /// A relay has allotted lanes: asked by us, or by the other end. Returns what they replace there.
    pub fn handle_allotted(
        &mut self,
        peer: PeerIndex,
        relay: PeerIndex,
        id: AllotmentId,
        lifetime: Duration,
        now: Instant,
    ) -> Option<AllotmentId> {
        let link = self.links.entry(peer).or_default();
        link.asking = link.asking.filter(|(asked, _)| *asked != relay);
        let hold = Hold { id, lifetime, renew_at: now + lifetime / 3, expires_at: now + lifetime, used_at: now };
        link.holds.insert(relay, hold).map(|hold| hold.id).filter(|replaced| *replaced != id)
    }

    /// A relay has refused, or could not be asked.
    pub fn handle_refused(&mut self, peer: PeerIndex, relay: PeerIndex, reason: Option<RelayRefusal>, now: Instant) {
        let link = self.links.entry(peer).or_default();
        link.asking = link.asking.filter(|(asked, _)| *asked != relay);
        let is_useless =
            matches!(reason, Some(RelayRefusal::NotServing | RelayRefusal::NotConfigured | RelayRefusal::Unsupported));
        link.avoid(relay, if is_useless { AVOIDED_USELESS } else { AVOIDED_MIN }, now);
    }

    /// A relay goes on.
    pub fn handle_renewed(&mut self, peer: PeerIndex, relay: PeerIndex, lifetime: Duration, now: Instant) {
        if let Some(hold) = self.hold(peer, relay) {
            hold.lifetime = lifetime;
            hold.renew_at = now + lifetime / 3;
            hold.expires_at = now + lifetime;
        }
    }

    /// A relay knows no such allotment any more.
    pub fn handle_gone(&mut self, peer: PeerIndex, relay: PeerIndex, id: AllotmentId) {
        if self.hold(peer, relay).is_some_and(|hold| hold.id == id) {
            self.end(peer, relay);
        }
    }

    /// Whether there is room for an allotment of this relay for lanes to this peer.
    pub fn has_room(&self, peer: PeerIndex, relay: PeerIndex) -> bool {
        let holds = self.links.get(&peer).map(|link| &link.holds);
        holds.is_none_or(|holds| holds.contains_key(&relay) || holds.len() < RELAYS_PER_LINK_MAX)
    }

    /// Whether this relay has allotted lanes to this peer already, or is being asked to.
    pub fn is_engaged(&self, peer: PeerIndex, relay: PeerIndex) -> bool {
        let link = self.links.get(&peer);
        link.is_some_and(|link| link.holds.contains_key(&relay) || link.asking.is_some_and(|(asked, _)| asked == relay))
    }

    /// Whether any relay has allotted anything, or is being asked.
    pub fn is_idle(&self) -> bool {
        self.links.values().all(|link| link.holds.is_empty() && link.asking.is_none())
    }

    fn hold(&mut self, peer: PeerIndex, relay: PeerIndex) -> Option<&mut Hold> {
        self.links.get_mut(&peer)?.holds.get_mut(&relay)
    }

    fn end(&mut self, peer: PeerIndex, relay: PeerIndex) {
        if let Some(hold) = self.links.get_mut(&peer).and_then(|link| link.holds.remove(&relay)) {
            self.steps.push_back(AskerStep::Release { relay, peer, id: hold.id });
        }
    }
}

impl LinkRelays {
    fn look(&mut self, view: &LinkView, relays: &[PeerIndex], now: Instant, steps: &mut VecDeque<AskerStep>) {
        let peer = view.peer;
        if let Some((relay, _)) = self.asking.take_if(|(_, since)| *since + ANSWERED_WITHIN <= now) {
            self.avoid(relay, AVOIDED_MIN, now);
        }
        self.end_expired(peer, now, steps);
        let relayed = |relay: &PeerIndex| view.relayed.get(relay).copied().unwrap_or_default();
        let passages = |relay: &PeerIndex| view.passages.get(relay).copied().unwrap_or_default();
        let abandoned = view.relayed.iter().filter(|(relay, _)| !relays.contains(relay));
        let abandoned = abandoned.fold(0, |lanes, (_, more)| lanes | more.0);
        let wanted = view.missing.0 | view.silent.0 | abandoned;
        let failed: Vec<_> = self.holds.keys().copied().filter(|relay| passages(relay).is_empty()).collect();
        for relay in failed {
            self.release(peer, relay, steps);
            self.avoid(relay, AVOIDED_MIN, now);
        }
        let mut covered = 0;
        for (relay, hold) in &mut self.holds {
            let is_trusted = relays.contains(relay);
            // A lane that is silent there is not helped by it.
            let helps = passages(relay).0 & !(relayed(relay).0 & view.silent.0);
            covered |= if is_trusted { helps } else { 0 };
            if !relayed(relay).is_empty() || helps & wanted != 0 {
                hold.used_at = now;
            }
            if hold.renew_at <= now {
                // Asked again before it is over, if this is not answered.
                hold.renew_at = now + hold.lifetime / 4;
                steps.push_back(AskerStep::Renew { relay: *relay, peer, id: hold.id });
            }
        }
        let unused: Vec<_> = self.holds.iter().filter(|(_, hold)| hold.used_at + KEPT_UNUSED <= now).collect();
        let unused: Vec<_> = unused.into_iter().map(|(relay, _)| *relay).collect();
        for relay in unused {
            self.release(peer, relay, steps);
        }
        let needed = LaneSet(wanted & !covered);
        if needed.is_empty() {
            self.needed_since = None;
            return;
        }
        let needed_since = *self.needed_since.get_or_insert(now);
        let is_urgent = needed.0 & view.missing.0 != needed.0;
        if needed_since + patience(is_urgent, view.is_client) > now || self.asking.is_some() {
            return;
        }
        let is_usable = |relay: &&PeerIndex| {
            **relay != peer
                && !self.holds.contains_key(*relay)
                && self.avoided.get(*relay).is_none_or(|avoided| avoided.until <= now)
        };
        let Some(relay) = relays.iter().find(is_usable).copied() else { return };
        if self.holds.len() >= RELAYS_PER_LINK_MAX {
            // Neither helps, or this one would not be needed; the one that carries least goes.
            let least = self.holds.keys().copied().min_by_key(|relay| relayed(relay).0 & !view.silent.0);
            least.into_iter().for_each(|relay| self.release(peer, relay, steps));
        }
        self.asking = Some((relay, now));
        // Where one lane is in need the others soon are.
        steps.push_back(AskerStep::Allocate { relay, peer, lanes: LaneSet(view.all.0 | needed.0) });
    }

    fn end_expired(&mut self, peer: PeerIndex, now: Instant, steps: &mut VecDeque<AskerStep>) {
        let expired: Vec<_> = self.holds.iter().filter(|(_, hold)| hold.expires_at <= now).collect();
        let expired: Vec<_> = expired.into_iter().map(|(relay, _)| *relay).collect();
        for relay in expired {
            self.release(peer, relay, steps);
        }
    }

    fn release(&mut self, peer: PeerIndex, relay: PeerIndex, steps: &mut VecDeque<AskerStep>) {
        if let Some(hold) = self.holds.remove(&relay) {
            steps.push_back(AskerStep::Release { relay, peer, id: hold.id });
        }
    }

    fn avoid(&mut self, relay: PeerIndex, least: Duration, now: Instant) {
        let avoided = self.avoided.entry(relay).or_insert(Avoided { until: now, times: 0 });
        // Long ago is forgiven.
        let times = if avoided.until + AVOIDED_MAX <= now { 0 } else { avoided.times };
        let pause = least.saturating_mul(1 << times.min(8)).min(AVOIDED_MAX);
        *avoided = Avoided { until: now + pause, times: times + 1 };
    }

    fn poll_timeout(&self, view: &LinkView, now: Instant) -> Option<Instant> {
        let holds = self.holds.values();
        let holds = holds.flat_map(|hold| [hold.renew_at, hold.expires_at, hold.used_at + KEPT_UNUSED]);
        let asking = self.asking.map(|(_, since)| since + ANSWERED_WITHIN);
        let is_urgent = !view.silent.is_empty() || !view.relayed.is_empty();
        let asks_at = self.needed_since.filter(|_| self.asking.is_none()).into_iter().flat_map(|since| {
            let patient_until = since + patience(is_urgent, view.is_client);
            let forgiven = self.avoided.values().map(|avoided| avoided.until);
            forgiven.chain([patient_until]).filter(|at| *at > now)
        });
        holds.chain(asking).chain(asks_at).min()
    }

    fn is_idle(&self, now: Instant) -> bool {
        self.needed_since.is_none()
            && self.asking.is_none()
            && self.holds.is_empty()
            && self.avoided.values().all(|avoided| avoided.until <= now)
    }
}

/// How long lanes may be in need before somebody is asked.
fn patience(is_urgent: bool, is_client: bool) -> Duration {
    let least = if is_urgent { Duration::ZERO } else { MISSING_FOR };
    if is_client { least } else { least + SERVER_WAITS }
}
