//! The replay window: which counters of an epoch have been seen (RFC 6479, with one bit per counter).

use crate::limits::REPLAY_WINDOW;

const WORD_BITS: u64 = u64::BITS as u64;

/// Twice the window, so that the words in front of the newest counter can be cleared without touching it.
const WORDS: usize = (2 * REPLAY_WINDOW / WORD_BITS) as usize;
const _: () = assert!(WORDS.is_power_of_two() && WORDS as u64 * WORD_BITS >= REPLAY_WINDOW + WORD_BITS);

/// Accepts each counter once, up to [`REPLAY_WINDOW`] behind the newest.
///
/// Owner: the lane's worker. Two kibibytes, allocated with the lane.
#[derive(Clone, Debug)]
pub struct ReplayWindow {
    /// One more than the newest accepted counter; 0 before the first.
    next: u64,
    words: Box<[u64; WORDS]>,
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self { next: 0, words: Box::new([0; WORDS]) }
    }
}

impl ReplayWindow {
    /// Whether `counter` would be accepted. Costs nothing and says nothing about authenticity: ask before opening.
    pub fn is_fresh(&self, counter: u64) -> bool {
        if counter >= self.next {
            return counter != u64::MAX;
        }
        self.next - counter <= REPLAY_WINDOW && self.words[word(counter)] & bit(counter) == 0
    }

    /// Marks `counter`, which must have been authenticated, as seen. Returns whether it was fresh.
    pub fn accept(&mut self, counter: u64) -> bool {
        if !self.is_fresh(counter) {
            return false;
        }
        if counter >= self.next {
            self.advance(counter);
        }
        self.words[word(counter)] |= bit(counter);
        true
    }

    /// Makes `counter` the newest and clears the words that come into use for the first time since their last lap.
    fn advance(&mut self, counter: u64) {
        let newest_word = self.next.checked_sub(1).map_or(0, |newest| newest / WORD_BITS);
        let fresh_words = (counter / WORD_BITS - newest_word).min(WORDS as u64);
        for step in 1..=fresh_words {
            self.words[((newest_word + step) % WORDS as u64) as usize] = 0;
        }
        self.next = counter + 1;
    }
}

fn word(counter: u64) -> usize {
    ((counter / WORD_BITS) % WORDS as u64) as usize
}

fn bit(counter: u64) -> u64 {
    1 << (counter % WORD_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_counter_is_accepted_once_and_only_within_the_window() {
        const W: u64 = REPLAY_WINDOW;
        let mut window = ReplayWindow::default();
        let table = [
            (0, true),
            (0, false),
            (1, true),
            (1, false),
            (9, true),
            (8, true),
            (7, true),
            (7, false),
            (W, true),
            (W - 1, true),
            (W - 1, false),
            (0, false),
            (1, false),
            (2, true),
            (W + 16, true),
            (3, false),
            (W + 16, false),
            (W * 4, true),
            (W * 4 - (W - 1), true),
            (W * 4 - W, false),
            (W * 4 - 10, true),
            (W * 4 - 10, false),
            (W * 100, true),
            (W * 100 - 1, true),
            (W * 100 - 1, false),
            (W * 4, false),
            (u64::MAX, false),
            (u64::MAX - 1, true),
            (u64::MAX - 1, false),
            (u64::MAX - 2, true),
        ];
        for (step, (counter, accepted)) in table.into_iter().enumerate() {
            assert_eq!(window.accept(counter), accepted, "step {step}: counter {counter}");
        }
    }
}
