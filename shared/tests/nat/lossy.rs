//! Paths that lose: a lane's meter, the prober of the others and the book that compares them, on paths whose losses change.
//!
//! The slow twin knows what each path really loses, and says which of them is good enough to stay on. `control/src/lanes`
//! has what is between the state machines here: `scouting.rs` ([`Run::look`], [`Run::decide`]).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ringlane_shared::path::candidate::Pair;
use ringlane_shared::path::choice::{Ends, Measurement, PathBook, PathClass, Retry};
use ringlane_shared::path::loss::LossMeter;
use ringlane_shared::path::prober::{ATTEMPTS_MAX, Prober, SAMPLED_PAIRS_MAX, SAMPLES};
use ringlane_shared::path::rtt::Rtt;
use ringlane_shared::wire::probe::Transaction;

use crate::end::{PORT, ends};
use crate::translator::{Random, address};

const SEEDS: u64 = 60;
/// Each as long as it takes until a path that was left is forgiven, and is looked at again.
const PHASES: usize = 3;
const PHASE: Duration = Duration::from_secs(700);
/// How many percent more are surely more, by as many questions as are asked.
const SURELY: u64 = 20;
const MS: fn(u64) -> Duration = Duration::from_millis;

/// One path: a pair of addresses, how long it is and what it loses of questions and answers together, in percent.
#[derive(Clone, Copy, Debug)]
struct Path {
    pair: Pair,
    class: PathClass,
    rtt: Duration,
    loss: u64,
}

/// An answer on its way: of the meter, or of the prober on a pair.
enum Answer {
    Echo { token: u64, of_move: usize, sent_at: Instant },
    Probe { pair: Pair, transaction: Transaction },
}

struct Run {
    random: Random,
    now: Instant,
    paths: Vec<Path>,
    /// Where the lane is.
    own: usize,
    meter: LossMeter,
    rtt: Rtt,
    book: PathBook,
    is_lossy: bool,
    prober: Option<Prober>,
    decide_at: Option<Instant>,
    retry: Retry,
    answers: BTreeMap<(Instant, u64), Answer>,
    next: u64,
    /// When the lane has moved.
    moves: Vec<Instant>,
    echoes: u64,
    probes: u64,
    rounds: u64,
}

impl Run {
    /// Paths that all begin clean: one of class `first`, where the lane is, and others that are direct.
    fn new(seed: u64, first: PathClass) -> Self {
        let mut random = Random(seed);
        let now = Instant::now();
        let local: IpAddr = address(198, 51, 100, 1);
        let count = 2 + random.next() % 3;
        let path = |host| Path {
            pair: Pair { local, remote: (address(203, 0, 113, host as u8), PORT).into() },
            class: if host == 1 { first } else { PathClass::DirectV4 },
            rtt: MS(20),
            loss: 0,
        };
        let paths: Vec<_> = (1..=count).map(path).collect();
        let book = PathBook::new(ends(paths[0].pair), first, now);
        let (meter, rtt) = (LossMeter::default(), Rtt::default());
        let (own, is_lossy, prober, decide_at, next) = (0, false, None, None, 0);
        let (answers, moves, retry) = (BTreeMap::new(), Vec::new(), Retry::rarely(now));
        let (echoes, probes, rounds) = (0, 0, 0);
        Self {
            random,
            now,
            paths,
            own,
            meter,
            rtt,
            book,
            is_lossy,
            prober,
            decide_at,
            retry,
            answers,
            next,
            moves,
            echoes,
            probes,
            rounds,
        }
    }

    /// A question on a path; the answer comes, or does not.
    fn ask(&mut self, path: Path, answer: Answer) {
        self.next += 1;
        if self.random.next() % 100 >= path.loss {
            self.answers.insert((self.now + path.rtt, self.next), answer);
        }
    }

    /// As the worker does, of a lane in constant use.
    fn measure_own(&mut self) {
        self.meter.note_used(self.now);
        if self.meter.poll(self.now, self.rtt.patience()) {
            self.echoes += 1;
            self.meter.note_asked(self.next, self.now);
            let answer = Answer::Echo { token: self.next, of_move: self.moves.len(), sent_at: self.now };
            self.ask(self.paths[self.own], answer);
        }
        if let Some(is_lossy) = self.meter.poll_change() {
            self.is_lossy = is_lossy;
            self.retry = self.hope();
        }
    }

    fn hope(&self) -> Retry {
        let class = self.book.class();
        match () {
            () if self.is_lossy => Retry::at_once(self.now),
            () if self.paths.iter().any(|path| path.class.is_better_than(class)) => Retry::new(self.now),
            () => Retry::rarely(self.now),
        }
    }

    fn look(&mut self) {
        if self.retry.poll(self.now) {
            self.rounds += 1;
            let own = &self.paths[self.own];
            let is_worth =
                |path: &&Path| path.pair != own.pair && (self.is_lossy || !own.class.is_better_than(path.class));
            let others: Vec<_> = self.paths.iter().filter(is_worth).map(|path| path.pair).collect();
            let is_thorough = self.is_lossy || self.meter.found().is_known() && self.book.remembers_loss(self.now);
            let random = &mut self.random;
            let prober = Prober::measuring(&others, is_thorough, self.now, || Transaction(random.next()));
            let last = self.book.found_no_better(self.now).into_iter();
            let last = last.map(|ends| Pair { local: ends.local.ip(), remote: ends.remote });
            self.prober = Some(prober.sampling_last(last.collect()));
        }
        let mut requests = Vec::new();
        if let Some(prober) = &mut self.prober {
            requests.extend(std::iter::from_fn(|| prober.poll_transmit(self.now)));
        }
        for request in requests {
            self.probes += 1;
            let path = self.paths.iter().find(|path| path.pair == request.pair).copied().unwrap();
            self.ask(path, Answer::Probe { pair: request.pair, transaction: request.transaction });
        }
    }

    fn decide(&mut self) {
        let Some(prober) = &mut self.prober else { return };
        while let Some(found) = prober.poll_measured() {
            self.decide_at.get_or_insert(self.now + MS(300));
            let own_rtt = self.rtt.shortest().unwrap_or(found.rtt);
            let own = Measurement { rtt: own_rtt, loss: self.meter.found() };
            let measured = Measurement { rtt: found.rtt, loss: found.loss };
            let class = self.paths.iter().find(|path| path.pair == found.pair).unwrap().class;
            self.book.handle_measured(ends(found.pair), class, measured, own, self.now);
            if self.is_lossy && self.book.is_to_be_confirmed(self.now) {
                self.retry.hasten(self.now);
            }
        }
        let is_over = prober.poll_timeout().is_none();
        if is_over {
            self.prober = None;
        }
        if self.decide_at.take_if(|at| *at <= self.now || is_over).is_some()
            && let Some(chosen) = self.book.choose(Duration::from_secs(10), self.now)
        {
            self.move_to(chosen);
        }
    }

    fn move_to(&mut self, to: Ends) {
        self.own = self.paths.iter().position(|path| ends(path.pair) == to).unwrap();
        self.book.handle_moved(to, self.paths[self.own].class, false, self.now);
        (self.meter, self.rtt, self.is_lossy) = (LossMeter::default(), Rtt::default(), false);
        self.retry = self.hope();
        self.moves.push(self.now);
    }

    fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            while let Some(entry) = self.answers.first_entry().filter(|entry| entry.key().0 <= self.now) {
                match entry.remove() {
                    Answer::Echo { token, of_move, sent_at } if of_move == self.moves.len() => {
                        self.meter.handle_answer(token);
                        self.rtt.add(self.now - sent_at);
                    }
                    Answer::Echo { .. } => {}
                    Answer::Probe { pair, transaction } => {
                        if let Some(prober) = &mut self.prober {
                            prober.handle_reply(pair, transaction, self.now);
                        }
                    }
                }
            }
            self.measure_own();
            self.look();
            self.decide();
            let prober = self.prober.as_ref().and_then(Prober::poll_timeout);
            let due = [self.meter.poll_timeout(), prober, self.decide_at, Some(self.retry.poll_timeout()), Some(end)];
            let arrival = self.answers.keys().next().map(|(at, _)| *at);
            self.now = due.into_iter().flatten().chain(arrival).min().unwrap().max(self.now + Duration::from_micros(1));
        }
    }

    /// How bad a path really is, in milliseconds: what the module says each hundredth costs.
    fn truth(path: &Path) -> u64 {
        path.rtt.as_millis() as u64 + 5 * path.loss
    }
}

/// How many lossy paths were left, how many of them soon, and how often the lane moved between paths that were alike.
fn run(seed: u64) -> [u64; 3] {
    let mut run = Run::new(seed, PathClass::DirectV4);
    let (mut left, mut soon, mut idle_moves) = (0, 0, 0);
    for _ in 0..PHASES {
        let is_alike = run.random.next().is_multiple_of(3);
        let alike = [0, 1, 5, 20][(run.random.next() % 4) as usize];
        for at in 0..run.paths.len() {
            let loss = [0, 0, 1, 25, 40][(run.random.next() % 5) as usize];
            run.paths[at].rtt = if is_alike { MS(20) } else { MS(15 + run.random.next() % 15) };
            run.paths[at].loss = if is_alike { alike } else { loss };
        }
        let (before, was, begun) = (run.moves.len(), run.own, run.now);
        run.run_for(PHASE);
        let best = run.paths.iter().map(Run::truth).min().unwrap();
        let own = run.paths[run.own];
        let is_surely_better =
            |path: &&Path| Run::truth(path) + 15 < Run::truth(&own) && path.loss + SURELY <= own.loss;
        let missed = run.paths.iter().find(is_surely_better);
        assert!(missed.is_none(), "{own:?} is not left for {missed:?}");
        let moves = run.moves.len() - before;
        // Never to and fro, neither soon nor often: at most once to each path, and once in vain.
        assert!(moves <= run.paths.len(), "{moves} moves among {:#?}", run.paths);
        if is_alike {
            idle_moves += moves as u64;
        } else if run.paths[was].loss >= 25 && best < 50 {
            left += 1;
            let first = run.moves[before] - begun;
            // As long as a path is avoided at most, and then until the next look.
            assert!(first < Duration::from_secs(2 * 315), "{first:?}");
            soon += u64::from(first < Duration::from_secs(30));
        }
    }
    let seconds = (PHASE * PHASES as u32).as_secs();
    assert!(run.echoes <= 5 * seconds + 1, "{} echoes in {seconds} s", run.echoes);
    let of_round = SAMPLED_PAIRS_MAX as u64 * (u64::from(SAMPLES) + u64::from(ATTEMPTS_MAX));
    assert!(run.probes <= run.rounds * of_round && run.rounds < seconds / 20, "{} in {}", run.probes, run.rounds);
    [left, soon, idle_moves]
}

/// Adds up what runs tell. Of one seed, if that was asked for, it is only printed.
fn of_seeds<const N: usize>(run: fn(u64) -> [u64; N]) -> Option<[u64; N]> {
    if let Some(seed) = crate::number("RINGLANE_SEED") {
        eprintln!("{:?}", run(seed));
        return None;
    }
    let mut all = [0; N];
    for seed in 0..crate::number("RINGLANE_SEEDS").unwrap_or(SEEDS) {
        let ran = std::panic::catch_unwind(|| run(seed)).unwrap_or_else(|failure| {
            eprintln!("this was RINGLANE_SEED={seed}");
            std::panic::resume_unwind(failure)
        });
        all.iter_mut().zip(ran).for_each(|(all, more)| *all += more);
    }
    Some(all)
}

/// In the local network: loses so much for a while, then nothing. How many seconds until the lane has left, and until it is
/// back; then how often it moved in an hour on a local network that loses a little all the time.
fn run_near(seed: u64) -> [u64; 3] {
    let mut run = Run::new(seed, PathClass::Lan);
    run.paths[0].rtt = MS(1);
    run.run_for(Duration::from_secs(60));
    assert_eq!(run.moves.len(), 0);
    run.paths[0].loss = [25, 40, 70][(seed % 3) as usize];
    let begun = run.now;
    run.run_for(PHASE);
    assert!(run.own != 0 && run.moves.len() == 1, "{:?} at {:?}", run.moves, run.paths[run.own]);
    let left = run.moves[0] - begun;
    let ended = run.now;
    run.paths[0].loss = 0;
    run.run_for(PHASE);
    assert!(run.own == 0 && run.moves.len() == 2, "{:?} at {:?}", run.moves, run.paths[run.own]);
    let back = run.moves[1] - ended;

    run.paths[0].loss = [1, 3, 5][(seed / 3 % 3) as usize];
    run.run_for(PHASE * 5);
    [left.as_secs(), back.as_secs(), run.moves.len() as u64 - 2]
}

#[test]
fn a_local_network_that_loses_is_left_and_taken_again_when_that_ends_and_a_little_loss_moves_nothing() {
    let Some([left, back, moves]) = of_seeds(run_near) else { return };
    let seeds = crate::number("RINGLANE_SEEDS").unwrap_or(SEEDS);
    let [left, back] = [left, back].map(|seconds| seconds / seeds);
    eprintln!("left after {left} s, back after {back} s, {moves} moves in {seeds} hours of a little loss");
    assert!(left < 45 && back < 300 && moves <= seeds / 8);
}

/// More paths that lose than are asked many times at once, all of them nearer than the one that does not.
fn run_crowded(seed: u64) -> [u64; 1] {
    let mut run = Run::new(seed, PathClass::DirectV4);
    let path = run.paths[0];
    let of_host = |host| Pair { remote: (address(203, 0, 113, host), PORT).into(), ..path.pair };
    run.paths = (1..=10).map(|host| Path { pair: of_host(host), loss: 25, ..path }).collect();
    run.paths[9] = Path { rtt: MS(60), loss: 0, ..run.paths[9] };
    let begun = run.now;
    run.run_for(PHASE);
    assert_eq!(run.own, 9, "moved {} times", run.moves.len());
    [(run.moves[run.moves.len() - 1] - begun).as_secs()]
}

#[test]
fn a_clean_path_is_found_however_many_nearer_ones_answer_first() {
    let Some([left]) = of_seeds(run_crowded) else { return };
    eprintln!("there after {} s", left / crate::number("RINGLANE_SEEDS").unwrap_or(SEEDS));
}

#[test]
fn a_lossy_path_is_left_for_a_cleaner_one_and_alike_ones_take_no_turns_whatever_chance_does() {
    let Some(all) = of_seeds(run) else { return };
    let [left, soon, idle_moves] = all;
    eprintln!("left {left} lossy paths, {soon} of them soon; moved {idle_moves} times between paths that were alike");
    // A simulation in which nothing is hard would show nothing.
    assert!(left > SEEDS / 4 && soon > left / 2 && idle_moves <= left / 8, "{all:?}");
}
