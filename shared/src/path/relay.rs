//! Which relays to use: those that are near and have little to do. One rule for both sorts, circuits and relayed lanes.
//!
//! A relay counts as farther by what it is loaded with: its **cost** is (round trip + 10 ms) / (1 - load). Half of a relay taken
//! makes it twice as far, three quarters four times. So of two in one place the idle one is taken; one farther away only
//! if it is not as many times as far; and what is nearest only while it has room. Load is what a relay says of itself, so
//! one that lies is chosen where another were better, or not chosen, and no more than that.
//!
//! Who is in use stays in use while another is only better: to be replaced it has to cost twice as much, and 20 ms more
//! ([`replacement`]). One that says that it is full is asked after all others: it may have room by now, and takes what only
//! replaces what the same node had of it before it was started again.

use std::cmp::Reverse;
use std::fmt;
use std::time::Duration;

/// A relay's load: 0 if it has nothing to do, 255 if it is full.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Load(pub u8);

impl Load {
    /// Nothing can be added.
    pub const FULL: Self = Self(u8::MAX);
    /// As much as there can be while more is still taken.
    pub const ALMOST_FULL: Self = Self(u8::MAX - 1);
    /// What a relay counts as that has not told its load: an eighth.
    pub const UNKNOWN: Self = Self(32);

    /// So much of a limit is taken; rounded down, so that it is full at the limit and not before.
    pub fn of(taken: u64, limit: u64) -> Self {
        let share = u128::from(taken.min(limit)) * u128::from(u8::MAX) / u128::from(limit.max(1));
        if limit == 0 { Self::FULL } else { Self(share as u8) }
    }

    /// The same of a limit beyond which more is taken all the same, at the cost of all.
    pub fn of_rate(taken: u64, limit: u64) -> Self {
        Self::of(taken, limit).min(Self::ALMOST_FULL)
    }

    /// Whether nothing more is taken.
    pub fn is_full(self) -> bool {
        self == Self::FULL
    }

    /// For people.
    pub fn percent(self) -> u8 {
        (u16::from(self.0) * 100 / u16::from(u8::MAX)) as u8
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", self.percent())
    }
}

/// What a relay has to do, of either sort.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RelayLoad {
    /// By relayed lanes.
    pub lanes: Load,
    /// By circuits.
    pub circuits: Load,
}

/// A relay that could be used, as far as it is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RelayView {
    /// Its place among those that the configuration prefers, if it is there: before all others, but when it is full.
    pub preferred: Option<u16>,
    /// How often it has refused in a row: one that did less is asked first, whatever it costs.
    pub refusals: u32,
    /// Its round trip, if it was measured.
    pub rtt: Option<Duration>,
    /// What it says, if it has told lately.
    pub load: Option<Load>,
}

/// Added to a round trip before loads are weighed: what does not differ by much more is equally far.
const NEAR: Duration = Duration::from_millis(10);
/// What a round trip counts as that was never measured, and at most.
const RTT_MAX: Duration = Duration::from_secs(2);
/// How many times as much a relay has to cost that is to be replaced.
const TIMES: u64 = 2;
/// And how much more, if both were idle.
const MORE: Duration = Duration::from_millis(20);
/// What is left of an idle relay.
const WHOLE: u64 = 256;
/// A microsecond's cost is that many times so much, divided by what is left: fine enough that no two costs are taken for one.
const FINE: u64 = WHOLE * WHOLE;

impl RelayView {
    /// Whether it would most likely refuse.
    pub fn is_full(&self) -> bool {
        self.load.is_some_and(Load::is_full)
    }

    fn cost(&self) -> u64 {
        let far = self.rtt.unwrap_or(RTT_MAX).min(RTT_MAX) + NEAR;
        let left = WHOLE - u64::from(self.load.unwrap_or(Load::UNKNOWN).0);
        far.as_micros() as u64 * FINE / left
    }

    /// The less, the sooner it is asked.
    fn worth(&self) -> (bool, Reverse<bool>, u16, u32, u64) {
        let place = self.preferred.unwrap_or(u16::MAX);
        (self.is_full(), Reverse(self.preferred.is_some()), place, self.refusals, self.cost())
    }
}

/// In which order relays are asked; those that are full come last. Equal ones keep their order.
pub fn ranked<K>(relays: impl IntoIterator<Item = (K, RelayView)>) -> Vec<K> {
    let mut ranked: Vec<_> = relays.into_iter().collect();
    ranked.sort_by_key(|(_, view)| view.worth());
    ranked.into_iter().map(|(relay, _)| relay).collect()
}

/// Which relay in use gives way to which other, if any does: the costliest to the cheapest. Those are left alone that are
/// preferred, and of either kind those that were never measured.
pub fn replacement<K: Copy>(
    in_use: impl IntoIterator<Item = (K, RelayView)>,
    others: impl IntoIterator<Item = (K, RelayView)>,
) -> Option<(K, K)> {
    let costs = |relays: &mut dyn Iterator<Item = (K, RelayView)>| -> Vec<(u64, K)> {
        relays.filter(|(_, view)| view.rtt.is_some()).map(|(relay, view)| (view.cost(), relay)).collect()
    };
    let in_use = costs(&mut in_use.into_iter().filter(|(_, view)| view.preferred.is_none()));
    let others = costs(&mut others.into_iter().filter(|(_, view)| !view.is_full()));
    let (old_cost, old) = in_use.into_iter().max_by_key(|(cost, _)| *cost)?;
    let (new_cost, new) = others.into_iter().min_by_key(|(cost, _)| *cost)?;
    let is_much = new_cost * TIMES <= old_cost && new_cost + MORE.as_micros() as u64 * (FINE / WHOLE) <= old_cost;
    is_much.then_some((old, new))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(rtt_ms: u64, load: u8) -> RelayView {
        RelayView { rtt: Some(Duration::from_millis(rtt_ms)), load: Some(Load(load)), ..RelayView::default() }
    }

    fn best(relays: &[RelayView]) -> Option<usize> {
        ranked(relays.iter().copied().enumerate()).first().copied()
    }

    #[test]
    fn a_load_is_full_at_its_limit_and_not_before_and_a_rate_never() {
        assert_eq!((Load::of(0, 10), Load::of(5, 10), Load::of(10, 10)), (Load(0), Load(127), Load::FULL));
        assert_eq!((Load::of(1023, 1024), Load::of(11, 10), Load::of(0, 0)), (Load(254), Load::FULL, Load::FULL));
        assert_eq!(Load::of(u64::MAX, u64::MAX), Load::FULL);
        assert_eq!((Load::of_rate(10, 10), Load::of_rate(5, 10)), (Load::ALMOST_FULL, Load(127)));
        assert_eq!([0, 127, 254, 255].map(|load| Load(load).percent()), [0, 49, 99, 100]);
        assert_eq!(Load(128).to_string(), "50 %");
    }

    #[test]
    fn of_two_equally_far_the_idle_one_is_taken() {
        assert_eq!(best(&[view(20, 40), view(20, 0)]), Some(1));
        assert_eq!(best(&[view(20, 0), view(20, 40)]), Some(0));
        assert_eq!(best(&[view(0, 200), view(5, 0)]), Some(1), "as good as equally far");
        assert_eq!(best(&[view(20, 7), view(20, 7)]), Some(0), "the first of equals");
    }

    #[test]
    fn a_far_idle_one_is_taken_over_a_near_loaded_one_only_if_that_has_less_left_than_it_is_nearer() {
        // 30 ms counted, half left: 60. Idle: 80.
        assert_eq!(best(&[view(20, 128), view(70, 0)]), Some(0));
        assert_eq!(best(&[view(20, 128), view(49, 0)]), Some(1), "not twice as far");
        assert_eq!(best(&[view(20, 192), view(70, 0)]), Some(1), "three quarters taken: 120");
        assert_eq!(best(&[view(20, 254), view(300, 0)]), Some(1));
    }

    #[test]
    fn a_full_one_comes_last_be_it_preferred() {
        let preferred = |place, view| RelayView { preferred: Some(place), ..view };
        assert_eq!(best(&[view(1, 255), view(900, 254)]), Some(1));
        assert_eq!(ranked((0..).zip([view(2, 255), view(1, 255), view(900, 0)])), [2, 1, 0]);
        assert_eq!(best(&[preferred(0, view(1, 255)), view(900, 200)]), Some(1));
        let relays = [view(1, 0), preferred(1, view(50, 0)), preferred(0, view(500, 254))];
        assert_eq!(ranked((0..).zip(relays)), [2, 1, 0]);
    }

    #[test]
    fn one_that_tells_nothing_counts_as_lightly_loaded_and_one_never_measured_as_far() {
        let silent = RelayView { load: None, ..view(20, 0) };
        assert_eq!(
            ranked([("silent", silent), ("idle", view(20, 0)), ("loaded", view(20, 64))]),
            ["idle", "silent", "loaded"]
        );
        let unmeasured = RelayView { rtt: None, ..view(0, 0) };
        assert_eq!(best(&[unmeasured, view(1900, 0)]), Some(1));
        assert_eq!(replacement([(0, view(500, 200))], [(1, unmeasured)]), None);
        assert_eq!(replacement([(0, unmeasured)], [(1, view(1, 0))]), None);
    }

    #[test]
    fn nothing_moves_for_small_steps_of_load_or_for_what_little_that_costs() {
        let is_replaced = |old, new| replacement([((), old)], [((), new)]).is_some();
        for load in 0..=119 {
            assert!(!is_replaced(view(20, load), view(20, 0)), "{load}: not twice");
            assert!(!is_replaced(view(20, load), view(20, load.saturating_sub(32))), "{load}");
        }
        // The cost is twice as much, and not 20 ms more.
        assert!(!is_replaced(view(0, 160), view(0, 0)));
        assert!(is_replaced(view(20, 128), view(20, 0)));
        assert!(is_replaced(view(20, 255), view(20, 0)));
        assert!(!is_replaced(view(20, 0), view(20, 128)), "nor back");
        assert!(!is_replaced(RelayView { preferred: Some(0), ..view(900, 254) }, view(1, 0)));
        assert!(!is_replaced(view(900, 255), view(1, 255)), "all are full");
    }
}
