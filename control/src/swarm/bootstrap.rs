//! When to go to which bootstrap contact, and when to refresh the DHT's table: pure.
//!
//! As Hyprspace's nodes do: while the table is empty, at start, every two minutes and on demand, contacts are dialled in
//! random order until two were reached. Each address of the list is an entry of its own. While the table is not empty,
//! a look-up of our own id every five minutes keeps us known to the nodes near it: that is how others find us. A node
//! without any peer does both more often: after ten seconds, then with doubling pauses.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use libp2p::Multiaddr;
use ringlane_shared::limits::{BOOTSTRAP_CONTACTS_ENOUGH, BOOTSTRAP_CONTACTS_MAX};

use super::dialer::Jitter;

/// Between two rounds with an empty table.
const ROUND_PAUSE: Duration = Duration::from_secs(120);
/// Between two look-ups of ourselves.
const REFRESH_PAUSE: Duration = Duration::from_secs(300);
/// The first pause of a node that is alone.
const ALONE_PAUSE_MIN: Duration = Duration::from_secs(10);

/// What the table and the peers are like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Situation {
    /// Nobody is in the DHT's table.
    pub(super) table_is_empty: bool,
    /// No peer is connected.
    pub(super) is_alone: bool,
}

/// What to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// Dial a contact; [`Bootstrap::handle_ended`] says how it went.
    Dial(Multiaddr),
    /// Look ourselves up.
    Refresh,
    /// A new round begins: ask whoever knows further contacts.
    Round,
}

/// The bootstrapping of one node.
pub(super) struct Bootstrap {
    contacts: Vec<Multiaddr>,
    /// Those of this round that have not been dialled.
    waiting: VecDeque<Multiaddr>,
    dialling: usize,
    reached: usize,
    last: Option<Instant>,
    rounds_alone: u32,
    jitter: Jitter,
}

impl Bootstrap {
    /// Contacts that each end in `/p2p/<id>`. `seed` makes the order.
    pub(super) fn new(contacts: Vec<Multiaddr>, seed: u64) -> Self {
        Self {
            contacts,
            waiting: VecDeque::new(),
            dialling: 0,
            reached: 0,
            last: None,
            rounds_alone: 0,
            jitter: Jitter::new(seed),
        }
    }

    /// Further contacts, tried in this round still.
    pub(super) fn add(&mut self, contact: Multiaddr) {
        if self.contacts.len() < BOOTSTRAP_CONTACTS_MAX && !self.contacts.contains(&contact) {
            self.contacts.push(contact.clone());
            self.waiting.push_back(contact);
        }
    }

    /// A dial has ended.
    pub(super) fn handle_ended(&mut self, reached: bool) {
        self.dialling = self.dialling.saturating_sub(1);
        self.reached += usize::from(reached);
    }

    /// Everything is due at once.
    pub(super) fn start_now(&mut self) {
        (self.last, self.rounds_alone) = (None, 0);
    }

    /// What to do next.
    pub(super) fn poll(&mut self, now: Instant, situation: Situation) -> Option<Step> {
        if !situation.is_alone {
            self.rounds_alone = 0;
        }
        if self.due(situation).is_some_and(|due| due <= now) || self.last.is_none() {
            self.last = Some(now);
            self.rounds_alone = self.rounds_alone.saturating_add(1);
            if !situation.table_is_empty {
                return Some(Step::Refresh);
            }
            self.reached = 0;
            self.waiting = self.shuffled();
            return Some(Step::Round);
        }
        if !situation.table_is_empty || self.reached + self.dialling >= BOOTSTRAP_CONTACTS_ENOUGH {
            return None;
        }
        let contact = self.waiting.pop_front()?;
        self.dialling += 1;
        Some(Step::Dial(contact))
    }

    /// When [`Self::poll`] should be asked again, unless something happens before.
    pub(super) fn poll_timeout(&self, situation: Situation) -> Option<Instant> {
        self.due(situation)
    }

    fn due(&self, situation: Situation) -> Option<Instant> {
        // A round whose dials are under way is not over.
        let last = self.last.filter(|_| self.dialling == 0)?;
        let usual = if situation.table_is_empty { ROUND_PAUSE } else { REFRESH_PAUSE };
        let alone = ALONE_PAUSE_MIN.saturating_mul(1 << self.rounds_alone.saturating_sub(1).min(8));
        Some(last + if situation.is_alone { alone.min(usual) } else { usual })
    }

    fn shuffled(&mut self) -> VecDeque<Multiaddr> {
        let mut order: Vec<_> = self.contacts.iter().map(|contact| (self.jitter.next(), contact.clone())).collect();
        order.sort_by_key(|(at, _)| *at);
        order.into_iter().map(|(_, contact)| contact).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: Situation = Situation { table_is_empty: true, is_alone: false };
    const ALONE: Situation = Situation { table_is_empty: true, is_alone: true };
    const FULL: Situation = Situation { table_is_empty: false, is_alone: false };

    fn contacts(count: u16) -> Vec<Multiaddr> {
        (1..=count).map(|port| format!("/ip4/192.0.2.1/tcp/{port}").parse().unwrap()).collect()
    }

    fn dials(bootstrap: &mut Bootstrap, now: Instant, reach: bool) -> Vec<Multiaddr> {
        let mut dialled = Vec::new();
        while let Some(step) = bootstrap.poll(now, EMPTY) {
            if let Step::Dial(contact) = step {
                dialled.push(contact);
                bootstrap.handle_ended(reach);
            }
        }
        dialled
    }

    #[test]
    fn contacts_are_dialled_until_two_were_reached_each_once_a_round_in_another_order() {
        let (start, all) = (Instant::now(), contacts(20));
        let mut bootstrap = Bootstrap::new(all.clone(), 7);
        assert_eq!(dials(&mut bootstrap, start, true).len(), BOOTSTRAP_CONTACTS_ENOUGH);
        assert!(dials(&mut bootstrap, start + ROUND_PAUSE / 2, true).is_empty());
        let mut second = dials(&mut bootstrap, start + ROUND_PAUSE, false);
        let third = dials(&mut bootstrap, start + 2 * ROUND_PAUSE, false);
        assert!(second != third && second != all);
        second.sort();
        let mut sorted = all;
        sorted.sort();
        assert_eq!(second, sorted, "when none is reached, all are tried");
    }

    #[test]
    fn two_dials_at_most_are_under_way_and_the_round_waits_for_them() {
        let start = Instant::now();
        let mut bootstrap = Bootstrap::new(contacts(5), 7);
        assert_eq!(bootstrap.poll(start, EMPTY), Some(Step::Round));
        for _ in 0..BOOTSTRAP_CONTACTS_ENOUGH {
            assert!(matches!(bootstrap.poll(start, EMPTY), Some(Step::Dial(_))));
        }
        assert_eq!(bootstrap.poll(start + 2 * ROUND_PAUSE, EMPTY), None);
        bootstrap.handle_ended(false);
        assert!(matches!(bootstrap.poll(start, EMPTY), Some(Step::Dial(_))));
    }

    #[test]
    fn a_table_with_somebody_in_it_needs_no_contacts_but_a_look_at_ourselves() {
        let start = Instant::now();
        let mut bootstrap = Bootstrap::new(contacts(5), 7);
        assert_eq!(bootstrap.poll(start, FULL), Some(Step::Refresh));
        assert_eq!(bootstrap.poll(start, FULL), None);
        assert_eq!(bootstrap.poll_timeout(FULL), Some(start + REFRESH_PAUSE));
        assert_eq!(bootstrap.poll(start + REFRESH_PAUSE, FULL), Some(Step::Refresh));
        bootstrap.start_now();
        assert_eq!(bootstrap.poll(start + REFRESH_PAUSE, FULL), Some(Step::Refresh));
    }

    #[test]
    fn a_node_that_is_alone_tries_sooner_but_not_for_ever() {
        let mut now = Instant::now();
        let mut bootstrap = Bootstrap::new(contacts(1), 7);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            while let Some(step) = bootstrap.poll(now, ALONE) {
                if matches!(step, Step::Dial(_)) {
                    bootstrap.handle_ended(false);
                }
            }
            let due = bootstrap.poll_timeout(ALONE).unwrap();
            pauses.push((due - now).as_secs());
            now = due;
        }
        assert_eq!(pauses, [10, 20, 40, 80, 120, 120, 120, 120]);
    }
}
