//! What relays have to do: what those say whom we ask, and what is forwarded here.
//!
//! Asked are the few relays that would be used first, when they are found and every half minute; one that is full, or does not
//! answer, ever more rarely. What was told is forgotten when it has not been told again. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ringlane_shared::id::PeerIndex;
use ringlane_shared::limits::RELAYS_ASKED_MAX;
use ringlane_shared::path::relay::RelayLoad;

/// Between two questions to one relay.
const PAUSE_MIN: Duration = Duration::from_secs(30);
/// The same, to one that is full or does not answer.
const PAUSE_MAX: Duration = Duration::from_secs(240);
/// How much longer an answer counts than until the next question.
const GRACE: Duration = Duration::from_secs(30);
/// Over how long a rate is measured.
const MEASURED_FOR: Duration = Duration::from_secs(4);

#[derive(Clone, Copy, Debug)]
struct Told {
    load: Option<RelayLoad>,
    forget_at: Instant,
    ask_at: Instant,
    /// The last one that was of no use, if the last was.
    pause: Option<Duration>,
}

/// The loads of relays. Owner: the control loop.
#[derive(Debug, Default)]
pub struct Loads(BTreeMap<PeerIndex, Told>);

impl Loads {
    /// Looks at the relays there are, those first that would be used first. Returns whom to ask now; each ends in
    /// [`Self::handle_answer`].
    pub fn look(&mut self, relays: &[PeerIndex], now: Instant) -> Vec<PeerIndex> {
        let relays = &relays[..relays.len().min(RELAYS_ASKED_MAX)];
        self.0.retain(|relay, _| relays.contains(relay));
        let mut asked = Vec::new();
        for relay in relays {
            let told = self.0.entry(*relay).or_insert(Told { load: None, forget_at: now, ask_at: now, pause: None });
            if told.forget_at <= now {
                told.load = None;
            }
            if told.ask_at <= now {
                told.ask_at = now + PAUSE_MIN;
                asked.push(*relay);
            }
        }
        asked
    }

    /// A relay has answered, or not.
    pub fn handle_answer(&mut self, relay: PeerIndex, load: Option<RelayLoad>, now: Instant) {
        let Some(told) = self.0.get_mut(&relay) else { return };
        let is_of_use = load.is_some_and(|load| !load.lanes.is_full() && !load.circuits.is_full());
        told.pause = (!is_of_use).then(|| told.pause.map_or(PAUSE_MIN, |pause| (pause * 2).min(PAUSE_MAX)));
        told.ask_at = now + told.pause.unwrap_or(PAUSE_MIN);
        if load.is_some() {
            told.load = load;
            told.forget_at = told.ask_at + GRACE;
        }
    }

    /// What a relay has to do, if it has told lately.
    pub fn of(&self, relay: PeerIndex) -> Option<RelayLoad> {
        self.0.get(&relay)?.load
    }

    /// When to look again, whatever happens.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let due = |told: &Told| told.load.map_or(told.ask_at, |_| told.ask_at.min(told.forget_at));
        self.0.values().map(due).min()
    }
}

/// Bytes per second, in the last seconds, of something that is only counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Meter {
    last: Option<(Instant, u64)>,
    per_second: u64,
}

impl Meter {
    /// So many bytes were counted until now. Does nothing when it was asked a moment ago.
    pub fn sample(&mut self, bytes: u64, now: Instant) {
        let Some((at, before)) = self.last else {
            self.last = Some((now, bytes));
            return;
        };
        let took = now.saturating_duration_since(at);
        if took < MEASURED_FOR {
            return;
        }
        let rate = u128::from(bytes.saturating_sub(before)) * 1000 / took.as_millis().max(1);
        let rate = u64::try_from(rate).unwrap_or(u64::MAX);
        // One busy moment is half of it; nothing is left of what was long ago.
        let is_next = took < 2 * MEASURED_FOR;
        self.per_second = if is_next { (self.per_second / 2).saturating_add(rate / 2) } else { rate };
        self.last = Some((now, bytes));
    }

    /// What was measured.
    pub fn per_second(&self) -> u64 {
        self.per_second
    }

    /// When it wants to be asked next, if it is of use.
    pub fn poll_timeout(&self, is_busy: bool) -> Option<Instant> {
        let (at, _) = self.last?;
        (is_busy || self.per_second > 0).then_some(at + MEASURED_FOR)
    }
}
