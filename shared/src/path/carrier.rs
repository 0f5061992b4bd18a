//! Which carrier a lane's packets leave by: records, unless the configuration says otherwise or the network lets QUIC
//! pass and records not.
//!
//! ```text
//!            asked for 0.6 s, no answer, QUIC acknowledges
//!          +--------------------------------------------------+
//!          |                                                  v
//!       RECORDS                                              QUIC
//!          ^                                                  |
//!          +--------------------------------------------------+
//!              an echo in a record is answered: tried after 5 s, then after pauses that double, up to 5 minutes
//! ```
//! Asking means an echo request in a record, beside a QUIC PING, several times. The answer comes in a
//! record too, so it says of both directions that records pass. Each end decides for itself, and takes packets by either
//! carrier at any time. By records it asks when the lane is new; when records have left for a while and none has come; and
//! when the peer's packets come by QUIC. A path on which nothing passes at all decides nothing.

use std::time::{Duration, Instant};

use crate::plane::{CarrierChoice, LaneCarrier};

/// When a question is asked again, counted from its beginning.
///
/// On a path that loses 30 % of all datagrams each way half of the requests are not answered: all of them fail once in 250
/// times, and then records are tried again soon.
const ASKS: [Duration; 8] = [
    Duration::ZERO,
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(150),
    Duration::from_millis(220),
    Duration::from_millis(300),
    Duration::from_millis(400),
    Duration::from_millis(500),
];
/// How long a question waits for an answer, unless four round trips are longer. With the time before it that makes less
/// than the 900 ms after which a lane would be silent.
const PATIENCE: Duration = Duration::from_millis(600);
const PATIENCE_ROUND_TRIPS: u32 = 4;
/// As long it waits when the lane is new, and its peer's end perhaps not yet its worker's.
const FIRST_PATIENCE: Duration = Duration::from_secs(1);
/// For how long records may leave, and none come, before that is doubtful: longer than it takes a lane to ask whether
/// the peer is there, and a near one to answer.
const UNHEARD: Duration = Duration::from_millis(250);
/// How soon after a question the same doubt may lead to another.
const DOUBT_PAUSE: Duration = Duration::from_secs(5);
/// When records are tried again for the first time, and the longest pause between tries.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// Records that carry for so long pass again: the next pause is the first one.
const SETTLED: Duration = Duration::from_secs(60);

/// What is to be done now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CarrierStep {
    /// Send an echo request in a record, and a QUIC PING. All requests of one question may have one token, `is_first` of
    /// them a new one.
    Ask {
        /// Answers to earlier requests do not count any more.
        is_first: bool,
    },
    /// Packets leave in another way from now on: tell control.
    Switched(LaneCarrier),
}

/// Whether records pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Question {
    since: Instant,
    asks: usize,
    patience: Duration,
    /// Acknowledgements that had come when those of earlier packets were still to be expected.
    acknowledgements: u64,
}

impl Question {
    fn new(patience: Duration, now: Instant) -> Self {
        Self { since: now, asks: 0, patience, acknowledgements: 0 }
    }

    fn ends_at(&self, rtt: Duration) -> Instant {
        self.since + self.patience.max(rtt * PATIENCE_ROUND_TRIPS)
    }
}

/// One lane's choice. Owner: the lane's worker.
#[derive(Clone, Debug)]
pub struct CarrierSelector {
    carrier: LaneCarrier,
    /// Whether there is anything to choose.
    chooses: bool,
    question: Option<Question>,
    /// Records have left since then, and none has come.
    unheard_since: Option<Instant>,
    /// By QUIC: when records are tried again. By records: before when the peer's carrier is no reason to ask.
    ask_at: Instant,
    /// The pause before `ask_at`.
    pause: Duration,
    /// Since when the carrier is what it is.
    since: Instant,
}

impl CarrierSelector {
    /// The choice for a lane that begins now, whose peer takes DATAGRAM frames or not.
    pub fn new(choice: CarrierChoice, peer_takes_datagrams: bool, now: Instant) -> Self {
        let (carrier, chooses) = match (choice, peer_takes_datagrams) {
            (CarrierChoice::Auto, true) => (LaneCarrier::Records, true),
            (CarrierChoice::Quic, true) => (LaneCarrier::Quic, false),
            (CarrierChoice::Lane | CarrierChoice::Stream, _) | (_, false) => (LaneCarrier::Records, false),
        };
        let question = chooses.then_some(Question::new(FIRST_PATIENCE, now));
        Self { carrier, chooses, question, unheard_since: None, ask_at: now, pause: FIRST_PAUSE, since: now }
    }

    /// How packets leave.
    #[inline]
    pub fn carrier(&self) -> LaneCarrier {
        self.carrier
    }

    /// Records with packets have left. Returns whether [`Self::timeout`] may have become earlier.
    #[inline]
    pub fn handle_sent(&mut self, now: Instant) -> bool {
        let is_first = self.chooses && self.carrier == LaneCarrier::Records && self.unheard_since.is_none();
        if is_first {
            self.unheard_since = Some(now);
        }
        is_first
    }

    /// An authentic record has come.
    #[inline]
    pub fn handle_record(&mut self) {
        self.unheard_since = None;
    }

    /// Packets have come by QUIC. Returns whether [`Self::timeout`] has become earlier.
    #[inline]
    pub fn handle_datagram(&mut self, now: Instant) -> bool {
        let doubts = self.chooses && self.carrier == LaneCarrier::Records && now >= self.ask_at;
        doubts && self.begin(now)
    }

    /// Nothing has been heard by any carrier for long: by QUIC, it is time to try records again.
    pub fn handle_silent(&mut self, now: Instant) {
        if self.carrier == LaneCarrier::Quic {
            self.ask_at = self.ask_at.min(now);
        }
    }

    /// The lane has moved to another path, by which a record has just been answered: what was found out on the one before
    /// says nothing of it. By QUIC, records are asked about at once.
    pub fn handle_moved(&mut self, now: Instant) {
        (self.question, self.unheard_since, self.pause, self.ask_at) = (None, None, FIRST_PAUSE, now);
    }

    /// A request of the question that is asked was answered, in a record. Returns the carrier if it is another now.
    pub fn handle_answer(&mut self, now: Instant) -> Option<LaneCarrier> {
        self.question.take()?;
        self.unheard_since = None;
        if self.carrier == LaneCarrier::Records {
            self.ask_at = now + DOUBT_PAUSE;
            return None;
        }
        Some(self.switch(LaneCarrier::Records, now))
    }

    /// What is due, given how many frames have come that acknowledge something in QUIC. Call it until it has nothing
    /// more.
    pub fn poll(&mut self, now: Instant, acknowledgements: u64, rtt: Duration) -> Option<CarrierStep> {
        let is_doubtful = self.unheard_since.is_some_and(|since| now >= since + UNHEARD);
        let is_due = self.carrier == LaneCarrier::Quic && self.chooses && now >= self.ask_at;
        if is_doubtful || is_due {
            self.begin(now);
        }
        let question = self.question.as_mut()?;
        if question.asks == 0 || now < question.since + rtt {
            question.acknowledgements = acknowledgements;
        }
        if ASKS.get(question.asks).is_some_and(|&after| now >= question.since + after) {
            question.asks += 1;
            return Some(CarrierStep::Ask { is_first: question.asks == 1 });
        }
        if now < question.ends_at(rtt) {
            return None;
        }
        let is_quic_alive = acknowledgements > question.acknowledgements;
        self.question = None;
        self.unheard_since = None;
        match self.carrier {
            LaneCarrier::Records if is_quic_alive => Some(CarrierStep::Switched(self.switch(LaneCarrier::Quic, now))),
            // Nothing passes, so nothing is known.
            LaneCarrier::Records => {
                self.begin(now);
                None
            }
            LaneCarrier::Quic => {
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                self.ask_at = now + self.pause;
                None
            }
        }
    }

    /// When to call [`Self::poll`] at the latest, given the same round-trip time.
    pub fn timeout(&self, rtt: Duration) -> Option<Instant> {
        if let Some(question) = self.question {
            let next_ask = ASKS.get(question.asks).map(|&after| question.since + after);
            return Some(next_ask.unwrap_or(question.ends_at(rtt)));
        }
        match self.carrier {
            LaneCarrier::Records => self.unheard_since.map(|since| since + UNHEARD),
            LaneCarrier::Quic => self.chooses.then_some(self.ask_at),
        }
    }

    /// Begins a question unless one is being asked.
    fn begin(&mut self, now: Instant) -> bool {
        let is_new = self.question.is_none();
        if is_new {
            self.question = Some(Question::new(PATIENCE, now));
        }
        is_new
    }

    fn switch(&mut self, to: LaneCarrier, now: Instant) -> LaneCarrier {
        match to {
            LaneCarrier::Quic => {
                if now >= self.since + SETTLED {
                    self.pause = FIRST_PAUSE;
                }
                self.ask_at = now + self.pause;
            }
            LaneCarrier::Records => {
                // Should they fail soon again, what they did now was no good sign.
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                self.ask_at = now + DOUBT_PAUSE;
            }
        }
        (self.carrier, self.since, self.unheard_since, self.question) = (to, now, None, None);
        to
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    const RTT: Duration = Duration::from_millis(40);
    const TICK: Duration = Duration::from_millis(5);

    /// What the network lets pass in one direction.
    #[derive(Clone, Copy)]
    struct Passes {
        records: bool,
        quic: bool,
    }

    const ALL: Passes = Passes { records: true, quic: true };
    const QUIC: Passes = Passes { records: false, quic: true };
    const NOTHING: Passes = Passes { records: false, quic: false };

    #[derive(Clone, Copy, PartialEq, Debug)]
    enum Message {
        Record,
        Echo { question: u32 },
        EchoReply { question: u32 },
        Ping,
        Acknowledgement,
        Datagram,
    }

    impl Message {
        fn is_record(self) -> bool {
            matches!(self, Self::Record | Self::Echo { .. } | Self::EchoReply { .. })
        }
    }

    struct End {
        selector: CarrierSelector,
        passes: Passes,
        under_way: VecDeque<(Instant, Message)>,
        acknowledgements: u64,
        question: u32,
        sends: bool,
        echoes: u32,
        /// Seconds since the beginning, and what to.
        switches: Vec<(f64, LaneCarrier)>,
    }

    /// Both ends of a lane, and the path between them.
    struct Lane {
        start: Instant,
        now: Instant,
        ends: [End; 2],
    }

    impl Lane {
        fn new(choices: [CarrierChoice; 2], passes: [Passes; 2]) -> Self {
            let now = Instant::now();
            let end = |at: usize| End {
                selector: CarrierSelector::new(choices[at], true, now),
                passes: passes[at],
                under_way: VecDeque::new(),
                acknowledgements: 0,
                question: 0,
                sends: true,
                echoes: 0,
                switches: Vec::new(),
            };
            Self { start: now, now, ends: [end(0), end(1)] }
        }

        fn auto(passes: [Passes; 2]) -> Self {
            Self::new([CarrierChoice::Auto; 2], passes)
        }

        fn send(&mut self, from: usize, message: Message) {
            let end = &mut self.ends[from];
            if if message.is_record() { end.passes.records } else { end.passes.quic } {
                end.under_way.push_back((self.now + RTT / 2, message));
            }
        }

        fn switched(&mut self, at: usize, to: LaneCarrier) {
            let after = (self.now - self.start).as_secs_f64();
            self.ends[at].switches.push((after, to));
        }

        fn receive(&mut self, at: usize, message: Message) {
            let (now, end) = (self.now, &mut self.ends[at]);
            if message.is_record() {
                end.selector.handle_record();
            }
            match message {
                Message::Record => {}
                Message::Datagram => _ = end.selector.handle_datagram(now),
                Message::Echo { question } => self.send(at, Message::EchoReply { question }),
                Message::EchoReply { question } if question == end.question => {
                    if let Some(to) = end.selector.handle_answer(now) {
                        self.switched(at, to);
                    }
                }
                Message::EchoReply { .. } => {}
                Message::Ping => self.send(at, Message::Acknowledgement),
                Message::Acknowledgement => end.acknowledgements += 1,
            }
        }

        fn run(&mut self, seconds: f64) {
            let end = self.now + Duration::from_secs_f64(seconds);
            while self.now < end {
                self.now += TICK;
                for at in [0, 1] {
                    while self.ends[1 - at].under_way.front().is_some_and(|(due, _)| *due <= self.now) {
                        if let Some((_, message)) = self.ends[1 - at].under_way.pop_front() {
                            self.receive(at, message);
                        }
                    }
                    if self.ends[at].sends {
                        let message = match self.ends[at].selector.carrier() {
                            LaneCarrier::Records => Message::Record,
                            LaneCarrier::Quic => Message::Datagram,
                        };
                        self.ends[at].selector.handle_sent(self.now);
                        self.send(at, message);
                    }
                    while self.ends[at].selector.timeout(RTT).is_some_and(|due| due <= self.now) {
                        let acknowledgements = self.ends[at].acknowledgements;
                        match self.ends[at].selector.poll(self.now, acknowledgements, RTT) {
                            Some(CarrierStep::Ask { is_first }) => {
                                self.ends[at].question += u32::from(is_first);
                                self.ends[at].echoes += 1;
                                let question = self.ends[at].question;
                                self.send(at, Message::Echo { question });
                                self.send(at, Message::Ping);
                            }
                            Some(CarrierStep::Switched(to)) => self.switched(at, to),
                            None => {}
                        }
                    }
                }
            }
        }

        fn pass(&mut self, passes: [Passes; 2]) {
            for (end, passes) in self.ends.iter_mut().zip(passes) {
                end.passes = passes;
            }
        }

        fn carriers(&self) -> [LaneCarrier; 2] {
            self.ends.each_ref().map(|end| end.selector.carrier())
        }
    }

    #[test]
    fn where_everything_passes_records_carry_and_nobody_keeps_asking() {
        let mut lane = Lane::auto([ALL; 2]);
        lane.run(120.0);
        assert_eq!(lane.carriers(), [LaneCarrier::Records; 2]);
        assert_eq!(lane.ends.each_ref().map(|end| end.echoes), [1, 1]);
    }

    #[test]
    fn where_only_quic_passes_both_ends_go_over_a_second_after_the_start_and_sooner_after_records_end() {
        let mut lane = Lane::auto([QUIC; 2]);
        lane.run(3.0);
        for end in &lane.ends {
            assert!(matches!(end.switches[..], [(1.0..1.1, LaneCarrier::Quic)]), "{:?}", end.switches);
        }
        let mut lane = Lane::auto([ALL; 2]);
        lane.run(10.0);
        lane.pass([QUIC; 2]);
        lane.run(3.0);
        for end in &lane.ends {
            assert!(matches!(end.switches[..], [(10.7..10.9, LaneCarrier::Quic)]), "{:?}", end.switches);
        }
    }

    #[test]
    fn records_that_pass_one_way_only_are_not_enough_for_either_end() {
        let mut lane = Lane::auto([ALL; 2]);
        lane.run(5.0);
        lane.pass([ALL, QUIC]);
        lane.run(4.0);
        assert_eq!(lane.carriers(), [LaneCarrier::Quic; 2]);
        assert!(lane.ends[1].switches[0].0 < 8.0, "{:?}", lane.ends[1].switches);
    }

    #[test]
    fn records_carry_again_soon_after_a_short_block_and_minutes_after_a_long_one() {
        let mut lane = Lane::auto([QUIC; 2]);
        lane.run(4.0);
        lane.pass([ALL; 2]);
        lane.run(3.0);
        assert_eq!(lane.carriers(), [LaneCarrier::Records; 2]);

        let mut lane = Lane::auto([QUIC; 2]);
        lane.run(7200.0);
        let echoes = lane.ends[0].echoes;
        assert!((100..250).contains(&echoes), "{echoes} echoes in two hours");
        lane.pass([ALL; 2]);
        lane.run(302.0);
        assert_eq!(lane.carriers(), [LaneCarrier::Records; 2]);
    }

    #[test]
    fn a_network_that_cannot_decide_is_tried_less_and_less() {
        let mut lane = Lane::auto([ALL; 2]);
        for _ in 0..200 {
            lane.pass([QUIC; 2]);
            lane.run(5.0);
            lane.pass([ALL; 2]);
            lane.run(5.0);
        }
        // Without the growing pauses, it would be some 200.
        let switches = lane.ends[0].switches.len();
        assert!((3..40).contains(&switches), "{switches} switches in 2000 s");
        lane.run(302.0);
        assert_eq!(lane.carriers(), [LaneCarrier::Records; 2]);
    }

    #[test]
    fn on_a_new_path_records_carry_again_at_once_however_long_they_did_not_on_the_old_one() {
        let mut lane = Lane::auto([QUIC; 2]);
        lane.run(7200.0);
        lane.pass([ALL; 2]);
        let now = lane.now;
        lane.ends.iter_mut().for_each(|end| end.selector.handle_moved(now));
        lane.run(0.1);
        assert_eq!(lane.carriers(), [LaneCarrier::Records; 2]);
        // And where records do not pass, the pauses are short at first.
        let mut lane = Lane::auto([QUIC; 2]);
        lane.run(7200.0);
        let now = lane.now;
        lane.ends.iter_mut().for_each(|end| end.selector.handle_moved(now));
        lane.run(3.0);
        lane.pass([ALL; 2]);
        lane.run(12.0);
        assert_eq!(lane.carriers(), [LaneCarrier::Records; 2]);
        // Who has no choice does not ask.
        let mut lane = Lane::new([CarrierChoice::Quic, CarrierChoice::Lane], [ALL; 2]);
        let now = lane.now;
        lane.ends.iter_mut().for_each(|end| end.selector.handle_moved(now));
        lane.run(1.0);
        assert!(lane.ends.iter().all(|end| end.echoes == 0));
    }

    #[test]
    fn a_path_on_which_nothing_passes_decides_nothing() {
        let mut lane = Lane::auto([ALL; 2]);
        lane.run(5.0);
        lane.pass([NOTHING; 2]);
        lane.run(20.0);
        lane.pass([ALL; 2]);
        lane.run(5.0);
        assert!(lane.ends.iter().all(|end| end.switches.is_empty()));
    }

    #[test]
    fn an_idle_lane_that_was_answered_asks_nothing_and_one_way_traffic_now_and_then() {
        let mut lane = Lane::auto([ALL; 2]);
        lane.ends[1].sends = false;
        lane.run(1.0);
        let asked = lane.ends.each_ref().map(|end| end.echoes);
        lane.run(10.0);
        let after = lane.ends.each_ref().map(|end| end.echoes);
        assert_eq!(after[1], asked[1]);
        assert!((20..40).contains(&(after[0] - asked[0])), "{} in 10 s", after[0] - asked[0]);
        lane.ends[0].sends = false;
        lane.run(1.0);
        let idle = lane.ends.each_ref().map(|end| end.echoes);
        lane.run(1000.0);
        assert_eq!(lane.ends.each_ref().map(|end| end.echoes), idle);
        assert_eq!(lane.carriers(), [LaneCarrier::Records; 2]);
    }

    #[test]
    fn a_configured_carrier_is_kept_and_one_that_the_peer_does_not_take_is_not_used() {
        let mut lane = Lane::new([CarrierChoice::Quic, CarrierChoice::Lane], [ALL; 2]);
        lane.run(30.0);
        assert_eq!(lane.carriers(), [LaneCarrier::Quic, LaneCarrier::Records]);
        assert!(lane.ends.iter().all(|end| end.echoes == 0));
        // A peer that leaves it to itself stays with records that pass, whatever comes.
        let mut lane = Lane::new([CarrierChoice::Quic, CarrierChoice::Auto], [ALL; 2]);
        lane.run(30.0);
        assert_eq!(lane.carriers(), [LaneCarrier::Quic, LaneCarrier::Records]);
        assert!(lane.ends[1].echoes < 150, "{}", lane.ends[1].echoes);
        let refused = CarrierSelector::new(CarrierChoice::Quic, false, Instant::now());
        assert_eq!(refused.carrier(), LaneCarrier::Records);
    }
}
