//! Which relays to be reachable through: pure.
//!
//! While the node is not known to be public it keeps a few reservations at once, with configured peers that offer the relay
//! protocol: first those that the configuration names, of the others those that refused least and cost least, by round trip and
//! load (`ringlane_shared::path::relay`). One that is lost is replaced at once, if there is another candidate, or asked again
//! soon; one that refuses is left alone for a time that doubles. One that says that it is full of circuits comes last: it
//! grants reservations all the same. One that takes long to answer does not keep the next from being asked.
//!
//! At the start nobody knows who is near, and later who was may have too much to do. When a relay is much better than one that
//! we are reachable through, it is asked too, and once it has agreed the worse one is let go: not often, as others may be
//! connected by it; and who was let go is not taken back soon, as the load that we took away may be our own.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use libp2p::PeerId;
use ringlane_shared::path::relay::{Load, RelayView, ranked, replacement};

/// How long a relay may think before the next is asked too.
const PATIENCE: Duration = Duration::from_secs(10);
/// The pause after a first refusal, and after a reservation is lost that had stood.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(300);
/// A reservation that stood so long was a real one.
const STABLE_AFTER: Duration = Duration::from_secs(10);
/// Between two changes to a better relay, and after the first reservation.
const CHANGE_PAUSE: Duration = Duration::from_secs(120);
/// For so long a relay that was let go takes nobody's place.
const RETURN_PAUSE: Duration = Duration::from_secs(1800);

/// How far we are with a relay.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// It was not asked, or has ended.
    Idle,
    /// It was asked.
    Asking { since: Instant },
    /// We are reachable through it.
    Reserved { since: Instant },
}

struct Candidate {
    /// Connected, and offers the protocol.
    offers: bool,
    preferred: bool,
    rtt: Option<Duration>,
    load: Option<Load>,
    /// When another took its place.
    left_at: Option<Instant>,
    /// In a row.
    refusals: u32,
    not_before: Instant,
    stage: Stage,
}

/// The choice of relays of one node.
pub(crate) struct Auto {
    max: usize,
    is_wanted: bool,
    /// At most one for each configured peer.
    candidates: BTreeMap<PeerId, Candidate>,
    /// When a better relay may take the place of another.
    change_at: Option<Instant>,
    /// Which one leaves when the one that was asked in its place has agreed.
    changing: Option<(PeerId, PeerId)>,
}

impl Auto {
    /// At most `max` reservations at once; of `preferred` relays first.
    pub(crate) fn new(max: u8, preferred: &[PeerId], now: Instant) -> Self {
        let candidates = preferred.iter().map(|peer| (*peer, Candidate::new(true, now))).collect();
        Self { max: max.into(), is_wanted: false, candidates, change_at: None, changing: None }
    }

    /// Whether reservations are of any use. Those there are stay when they are not.
    pub(crate) fn set_wanted(&mut self, is_wanted: bool) {
        self.is_wanted = is_wanted;
    }

    /// A connected peer says whether it is a relay, or is not connected any more.
    pub(crate) fn set_offered(&mut self, peer: PeerId, offers: bool, now: Instant) {
        if offers {
            let candidate = self.candidates.entry(peer).or_insert_with(|| Candidate::new(false, now));
            if !candidate.offers {
                // It was something else for a while: what it refused then says nothing.
                (candidate.offers, candidate.refusals) = (true, 0);
                candidate.not_before = candidate.not_before.min(now + PAUSE_MIN);
            }
        } else if let Some(candidate) = self.candidates.get_mut(&peer) {
            candidate.offers = false;
            if candidate.stage == Stage::Idle && !candidate.preferred {
                self.candidates.remove(&peer);
            }
        }
    }

    /// How fast a relay answers.
    pub(crate) fn set_rtt(&mut self, peer: &PeerId, rtt: Duration) {
        if let Some(candidate) = self.candidates.get_mut(peer) {
            candidate.rtt = Some(rtt);
        }
    }

    /// What a relay says of its load; nothing if it has not lately. Whether that is news.
    pub(crate) fn set_load(&mut self, peer: &PeerId, load: Option<Load>) -> bool {
        let Some(candidate) = self.candidates.get_mut(peer) else { return false };
        std::mem::replace(&mut candidate.load, load) != load
    }

    /// Relays that offer to be one, those first that are best; the full ones last.
    pub(crate) fn offering(&self) -> impl Iterator<Item = PeerId> {
        let offering = self.candidates.iter().filter(|(_, candidate)| candidate.offers);
        ranked(offering.map(|(peer, candidate)| (*peer, candidate.view()))).into_iter()
    }

    /// The next relay to ask. Ends in [`Self::handle_reserved`] or [`Self::handle_ended`].
    pub(crate) fn poll(&mut self, now: Instant) -> Option<PeerId> {
        if !self.is_wanted {
            return None;
        }
        if self.active(now) >= self.max {
            return self.poll_change(now);
        }
        let ready = self.candidates.iter().filter(|(_, candidate)| candidate.is_ready() && candidate.not_before <= now);
        let best = *ranked(ready.map(|(peer, candidate)| (*peer, candidate.view()))).first()?;
        self.ask(best, now)
    }

    fn ask(&mut self, peer: PeerId, now: Instant) -> Option<PeerId> {
        self.candidates.get_mut(&peer)?.stage = Stage::Asking { since: now };
        Some(peer)
    }

    /// A relay to ask though there are enough, because it is much better than one of them.
    fn poll_change(&mut self, now: Instant) -> Option<PeerId> {
        if self.changing.is_some() || self.change_at.is_none_or(|at| at > now) {
            return None;
        }
        // Not before all have had time to be measured again.
        self.change_at = Some(now + CHANGE_PAUSE);
        let is_reserved = |candidate: &Candidate| matches!(candidate.stage, Stage::Reserved { .. });
        let may_come = |candidate: &Candidate| {
            let is_back = candidate.left_at.is_none_or(|at| at + RETURN_PAUSE <= now);
            candidate.is_ready() && candidate.not_before <= now && is_back
        };
        let views = |is_it: &dyn Fn(&Candidate) -> bool| {
            let them = self.candidates.iter().filter(|(_, candidate)| is_it(candidate));
            them.map(|(peer, candidate)| (*peer, candidate.view())).collect::<Vec<_>>()
        };
        let (worse, better) = replacement(views(&is_reserved), views(&may_come))?;
        self.changing = Some((worse, better));
        self.ask(better, now)
    }

    /// When [`Self::poll`] should be asked again.
    pub(crate) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        if !self.is_wanted {
            return None;
        }
        let impatient = self.candidates.values().filter_map(|candidate| match candidate.stage {
            Stage::Asking { since } => Some(since + PATIENCE).filter(|at| *at > now),
            _ => None,
        });
        let ready = self.candidates.values().filter(|candidate| candidate.is_ready());
        let has_room = self.active(now) < self.max;
        let due = ready.map(|candidate| candidate.not_before).filter(|_| has_room);
        let change = self.change_at.filter(|_| !has_room && self.changing.is_none());
        due.chain(impatient).chain(change).min()
    }

    /// A relay has granted a reservation, or renewed it. The relay whose reservation is to be ended now, if there is one.
    pub(crate) fn handle_reserved(&mut self, peer: &PeerId, now: Instant) -> Option<PeerId> {
        let candidate = self.candidates.get_mut(peer)?;
        if let Stage::Asking { .. } = candidate.stage {
            candidate.stage = Stage::Reserved { since: now };
            self.change_at.get_or_insert(now + CHANGE_PAUSE);
        }
        let (worse, _) = self.changing.take_if(|(_, better)| better == peer)?;
        if self.reserved().count() <= self.max {
            return None;
        }
        self.candidates.get_mut(&worse)?.left_at = Some(now);
        Some(worse)
    }

    /// A relay has refused a reservation, or one that it granted has ended.
    pub(crate) fn handle_ended(&mut self, peer: &PeerId, now: Instant) {
        self.changing.take_if(|(worse, better)| worse == peer || better == peer);
        let Some(candidate) = self.candidates.get_mut(peer) else { return };
        let stood = match candidate.stage {
            Stage::Reserved { since } => now.saturating_duration_since(since),
            _ => Duration::ZERO,
        };
        candidate.refusals = if stood >= STABLE_AFTER { 0 } else { candidate.refusals.saturating_add(1) };
        candidate.not_before =
            now + PAUSE_MIN.saturating_mul(1 << candidate.refusals.saturating_sub(1).min(16)).min(PAUSE_MAX);
        candidate.stage = Stage::Idle;
        if !candidate.offers && !candidate.preferred {
            self.candidates.remove(peer);
        }
    }

    /// The relays that we are reachable through.
    pub(crate) fn reserved(&self) -> impl Iterator<Item = PeerId> {
        let reserved =
            self.candidates.iter().filter(|(_, candidate)| matches!(candidate.stage, Stage::Reserved { .. }));
        reserved.map(|(peer, _)| *peer)
    }

    /// Reservations, and relays that have not been asked for too long.
    fn active(&self, now: Instant) -> usize {
        let is_active = |candidate: &&Candidate| match candidate.stage {
            Stage::Idle => false,
            Stage::Asking { since } => now < since + PATIENCE,
            Stage::Reserved { .. } => true,
        };
        self.candidates.values().filter(is_active).count()
    }
}

impl Candidate {
    fn new(preferred: bool, now: Instant) -> Self {
        let (stage, not_before) = (Stage::Idle, now);
        Self { offers: false, preferred, rtt: None, load: None, left_at: None, refusals: 0, not_before, stage }
    }

    /// Whether it could be asked, full of circuits or not: reservations have no limit.
    fn is_ready(&self) -> bool {
        self.offers && self.stage == Stage::Idle
    }

    fn view(&self) -> RelayView {
        let preferred = self.preferred.then_some(0);
        RelayView { preferred, refusals: self.refusals, rtt: self.rtt, load: self.load }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::swarm::dialer::Jitter;

    fn peers(count: usize) -> Vec<PeerId> {
        (0..count).map(|_| PeerId::random()).collect()
    }

    #[test]
    fn the_fastest_relays_are_asked_configured_ones_first_and_only_while_it_is_of_use() {
        let now = Instant::now();
        let relays = peers(4);
        let mut auto = Auto::new(2, &relays[3..], now);
        for (relay, ms) in relays.iter().zip([30, 10, 20, 500]) {
            auto.set_offered(*relay, true, now);
            auto.set_rtt(relay, Duration::from_millis(ms));
        }
        assert_eq!((auto.poll(now), auto.poll_timeout(now)), (None, None), "we are public");
        auto.set_wanted(true);
        assert_eq!(auto.poll(now), Some(relays[3]));
        assert_eq!(auto.poll(now), Some(relays[1]));
        assert_eq!(auto.poll(now), None);
        auto.handle_reserved(&relays[3], now);
        auto.handle_reserved(&relays[1], now);
        assert_eq!(auto.reserved().count(), 2);
        assert_eq!((auto.poll(now), auto.poll_timeout(now)), (None, Some(now + CHANGE_PAUSE)));
        auto.handle_ended(&relays[1], now + STABLE_AFTER);
        assert_eq!(auto.poll(now + STABLE_AFTER), Some(relays[2]), "another takes its place at once");
    }

    #[test]
    fn a_much_faster_relay_takes_the_place_of_a_slow_one_once_it_has_agreed_and_not_often() {
        let now = Instant::now();
        let relays = peers(4);
        let mut auto = Auto::new(2, &relays[..1], now);
        auto.set_wanted(true);
        for (relay, ms) in relays.iter().zip([900, 100, 80]) {
            auto.set_offered(*relay, true, now);
            auto.set_rtt(relay, Duration::from_millis(ms));
        }
        auto.set_rtt(&relays[1], Duration::from_millis(70));
        for _ in 0..2 {
            let asked = auto.poll(now).unwrap();
            assert_eq!(auto.handle_reserved(&asked, now), None);
        }
        assert_eq!(auto.reserved().collect::<BTreeSet<_>>(), [relays[0], relays[1]].into());
        auto.set_rtt(&relays[1], Duration::from_millis(100));
        let later = auto.poll_timeout(now).unwrap();
        assert_eq!(later, now + CHANGE_PAUSE);
        assert_eq!(auto.poll(later), None, "it is not much faster");
        auto.set_offered(relays[3], true, later);
        auto.set_rtt(&relays[3], Duration::from_millis(10));
        assert_eq!(auto.poll(later + PAUSE_MIN), None, "not so soon again");
        let later = later + CHANGE_PAUSE;
        assert_eq!((auto.poll(later), auto.poll(later)), (Some(relays[3]), None));
        assert_eq!(auto.handle_reserved(&relays[3], later), Some(relays[1]), "not the one that was configured");
        auto.handle_ended(&relays[1], later);
        assert_eq!(auto.reserved().collect::<BTreeSet<_>>(), [relays[0], relays[3]].into());
        assert_eq!(auto.poll(later + CHANGE_PAUSE), None);
    }

    #[test]
    fn who_refuses_is_asked_ever_less_often_and_who_is_slow_does_not_hold_up_the_next() {
        let mut now = Instant::now();
        let relays = peers(2);
        let mut auto = Auto::new(1, &[], now);
        auto.set_wanted(true);
        auto.set_offered(relays[0], true, now);
        let mut pauses = Vec::new();
        for _ in 0..14 {
            assert_eq!(auto.poll(now), Some(relays[0]));
            auto.handle_ended(&relays[0], now);
            let next = auto.poll_timeout(now).unwrap();
            assert_eq!(auto.poll(next - Duration::from_millis(1)), None);
            pauses.push(next - now);
            now = next;
        }
        assert_eq!(pauses[0], PAUSE_MIN);
        assert!(pauses.is_sorted() && pauses.last() == Some(&PAUSE_MAX), "{pauses:?}");

        assert_eq!(auto.poll(now), Some(relays[0]));
        auto.set_offered(relays[1], true, now);
        assert_eq!((auto.poll(now), auto.poll_timeout(now)), (None, Some(now + PATIENCE)));
        assert_eq!(auto.poll(now + PATIENCE), Some(relays[1]));
        auto.set_offered(relays[0], false, now);
        auto.handle_ended(&relays[0], now);
        assert_eq!(auto.candidates.len(), 1, "who offers nothing is forgotten");
    }

    #[test]
    fn a_loaded_relay_gives_way_to_an_idle_one_and_is_not_taken_back_soon_and_a_full_one_is_asked_last() {
        let now = Instant::now();
        let relays = peers(3);
        let mut auto = Auto::new(1, &[], now);
        auto.set_wanted(true);
        for relay in &relays {
            auto.set_offered(*relay, true, now);
            auto.set_rtt(relay, Duration::from_millis(20));
            auto.set_load(relay, Some(Load::FULL));
        }
        assert_eq!(auto.offering().count(), 3);
        assert!(auto.set_load(&relays[1], Some(Load(10))) && auto.set_load(&relays[2], Some(Load(90))));
        assert!(!auto.set_load(&relays[2], Some(Load(90))), "no news");
        assert_eq!(auto.offering().collect::<Vec<_>>(), [relays[1], relays[2], relays[0]]);
        assert_eq!(auto.poll(now), Some(relays[1]));
        auto.handle_reserved(&relays[1], now);
        let mut later = now;
        for load in (10..=150).step_by(10) {
            auto.set_load(&relays[1], Some(Load(load)));
            later += CHANGE_PAUSE;
            assert_eq!(auto.poll(later), None, "{load}: not twice as costly");
        }
        auto.set_load(&relays[1], Some(Load(240)));
        later += CHANGE_PAUSE;
        assert_eq!(auto.poll(later), Some(relays[2]));
        assert_eq!(auto.handle_reserved(&relays[2], later), Some(relays[1]));
        auto.handle_ended(&relays[1], later);
        // What it had to do was for us, and now the other one has it.
        auto.set_load(&relays[1], Some(Load(0)));
        auto.set_load(&relays[2], Some(Load(240)));
        let soon = later + CHANGE_PAUSE;
        assert_eq!(auto.poll(soon), None);
        assert_eq!(auto.poll(later + RETURN_PAUSE), Some(relays[1]));
        auto.handle_ended(&relays[1], later + RETURN_PAUSE);
        auto.handle_ended(&relays[2], later + RETURN_PAUSE);
        assert_eq!(auto.poll(later + RETURN_PAUSE + PAUSE_MAX), Some(relays[2]), "who has refused comes later");
    }

    #[test]
    fn where_the_only_relay_is_full_of_circuits_it_is_reserved_with_all_the_same_and_replaces_nobody() {
        let now = Instant::now();
        let relays = peers(2);
        let mut auto = Auto::new(1, &[], now);
        auto.set_wanted(true);
        auto.set_offered(relays[0], true, now);
        auto.set_load(&relays[0], Some(Load::FULL));
        assert_eq!(auto.poll_timeout(now), Some(now));
        assert_eq!(auto.poll(now), Some(relays[0]), "a reservation is no circuit");
        auto.handle_reserved(&relays[0], now);
        auto.handle_ended(&relays[0], now + STABLE_AFTER);
        let soon = auto.poll_timeout(now + STABLE_AFTER).unwrap();
        assert!(soon <= now + STABLE_AFTER + PAUSE_MIN);
        auto.set_offered(relays[1], true, now);
        auto.set_rtt(&relays[1], Duration::from_millis(900));
        assert_eq!(auto.poll(soon), Some(relays[1]), "who is not full comes first");
        auto.handle_reserved(&relays[1], soon);
        auto.set_rtt(&relays[0], Duration::from_millis(1));
        assert_eq!(auto.poll(soon + CHANGE_PAUSE), None);
    }

    #[test]
    fn whatever_relays_do_there_are_never_too_many_reservations_and_in_the_end_enough() {
        for seed in 0..300 {
            let mut random = Jitter::new(seed);
            let start = Instant::now();
            let mut now = start;
            let relays = peers(1 + (random.next() % 6) as usize);
            let max = 1 + (random.next() % 3) as u8;
            let mut auto = Auto::new(max, &relays[..1], now);
            auto.set_wanted(true);
            let mut asked: Vec<PeerId> = Vec::new();
            let step = |auto: &mut Auto, asked: &mut Vec<PeerId>, now: Instant, random: &mut Jitter, calm: bool| {
                let relay = relays[random.next() as usize % relays.len()];
                match random.next() % 5 {
                    0 if !calm => auto.set_offered(relay, random.next().is_multiple_of(2), now),
                    1 if !calm => auto.handle_ended(&relay, now),
                    2 => auto.set_rtt(&relay, Duration::from_millis(random.next() % 200)),
                    3 if !calm => {
                        let load = random.next() as u8 | (random.next() as u8 & 0xc0);
                        auto.set_load(&relay, Some(Load(load)));
                    }
                    _ if calm => auto.set_offered(relay, true, now),
                    _ => {}
                }
                while let Some(relay) = auto.poll(now) {
                    asked.push(relay);
                }
                for relay in asked.drain(..) {
                    if calm || random.next().is_multiple_of(2) {
                        if let Some(slow) = auto.handle_reserved(&relay, now) {
                            auto.handle_ended(&slow, now);
                        }
                    } else {
                        auto.handle_ended(&relay, now)
                    }
                }
                assert!(auto.reserved().count() <= max.into(), "seed {seed}");
            };
            for _ in 0..100 {
                step(&mut auto, &mut asked, now, &mut random, false);
                now += Duration::from_millis(random.next() % 2000);
            }
            for relay in &relays {
                auto.set_load(relay, None);
            }
            for _ in 0..200 {
                step(&mut auto, &mut asked, now, &mut random, true);
                now += Duration::from_secs(5);
            }
            assert_eq!(auto.reserved().count(), usize::from(max).min(relays.len()), "seed {seed}");
        }
    }
}
