use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::RangeInclusive;

use super::*;
use crate::path::rtt::Rtt;

const MS: fn(u64) -> Duration = Duration::from_millis;
/// Time between two turns that send full records.
const TURN: Duration = Duration::from_millis(20);
const HEADER_BYTES: u16 = 28;

/// A path, its prober, and a clock that jumps from event to event.
struct Bed {
    path: PathMtu,
    rtt: Rtt,
    start: Instant,
    now: Instant,
    /// Largest datagram that arrives.
    carries: u16,
    /// Largest datagram that the sender's own device takes.
    device: u16,
    /// Of 1000 datagrams, in each direction.
    lost: u64,
    is_dead: bool,
    delay: Duration,
    random: u64,
    under_way: BinaryHeap<Reverse<(Instant, Instant, Option<u16>)>>,
    /// Largest datagram that was ever answered.
    answered: u16,
    /// How often the size in use fell, and probes that left.
    falls: u32,
    probes: u32,
}

impl Bed {
    fn new(carries: u16, device: u16, delay: Duration, seed: u64) -> Self {
        let now = Instant::now();
        Self {
            path: PathMtu::new(HEADER_BYTES, 8972, Some(u32::from(device + HEADER_BYTES)), now),
            rtt: Rtt::default(),
            start: now,
            now,
            carries,
            device,
            lost: 0,
            is_dead: false,
            delay,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            under_way: BinaryHeap::new(),
            answered: MTU_BASE,
            falls: 0,
            probes: 0,
        }
    }

    fn draw(&mut self, range: RangeInclusive<u64>) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        range.start() + self.random % (range.end() - range.start() + 1)
    }

    fn is_lost(&mut self) -> bool {
        self.is_dead || self.draw(0..=999) < self.lost
    }

    fn probe(&mut self) {
        while let Some(probe) = self.path.poll(self.now, self.rtt.patience()) {
            self.probes += 1;
            let bytes = match probe {
                MtuProbe::Padded(bytes) if bytes > self.device => {
                    self.path.handle_refused(bytes);
                    continue;
                }
                MtuProbe::Padded(bytes) => Some(bytes),
                MtuProbe::Short => None,
            };
            let arrives = bytes.unwrap_or(0) <= self.carries && !self.is_lost();
            if arrives && !self.is_lost() {
                self.under_way.push(Reverse((self.now + self.delay, self.now, bytes)));
            }
        }
    }

    /// Lets time pass, with a full record every [`TURN`] if `sends`.
    fn run(&mut self, time: Duration, sends: bool) {
        let end = self.now + time;
        let mut turn_at = self.now;
        loop {
            let before = self.path.bytes();
            while let Some(Reverse((at, sent_at, bytes))) = self.under_way.peek().copied()
                && at <= self.now
            {
                self.under_way.pop();
                self.rtt.add(at - sent_at);
                self.answered = self.answered.max(bytes.unwrap_or(0));
                self.path.handle_answer(bytes, sent_at, self.now);
            }
            if sends && turn_at <= self.now {
                turn_at = self.now + TURN;
                if self.path.bytes() > self.device {
                    self.path.handle_too_big(Some(u32::from(self.device + HEADER_BYTES)), self.now);
                }
                self.path.note_sent(self.path.bytes().into(), self.now);
            }
            self.probe();
            assert!(self.path.bytes() <= self.answered, "a size that was never shown to pass is in use");
            self.falls += u32::from(self.path.bytes() < before);
            let arrival = self.under_way.peek().map(|Reverse((at, ..))| *at);
            let next = self.path.poll_timeout().into_iter().chain(arrival).chain(sends.then_some(turn_at)).min();
            match next {
                Some(next) if next < end => self.now = self.now.max(next),
                _ => break,
            }
        }
        self.now = end;
    }

    fn has_found_what_the_path_carries(&self) -> bool {
        let truth = self.carries.min(self.device);
        (truth - PRECISION + 1..=truth).contains(&self.path.bytes())
    }
}

/// Paths of all kinds: what they carry, what the device takes, how long they are.
fn some_path(seed: u64) -> Bed {
    let mut bed = Bed::new(MTU_BASE, MTU_BASE, MS(1), seed);
    let carries = match bed.draw(0..=2) {
        0 => bed.draw(MTU_BASE.into()..=8972) as u16,
        1 => bed.draw(1210..=1500) as u16,
        _ => USUAL[bed.draw(0..=15) as usize] - HEADER_BYTES,
    };
    let device = match bed.draw(0..=2) {
        0 => carries,
        1 => carries.max(1472),
        _ => 8972,
    };
    let delay = Duration::from_micros(bed.draw(100..=100_000));
    Bed::new(carries, device, delay, seed)
}

#[test]
fn an_ordinary_path_is_known_after_one_round_trip() {
    for device in [1472, 8972, 1392] {
        let mut bed = Bed::new(device, device, MS(40), 1);
        bed.run(MS(41), true);
        assert_eq!(bed.path.bytes(), device);
        bed.run(MS(800), true);
        assert_eq!((bed.path.poll_change(), bed.path.poll_change()), (Some(device), None));
        assert_eq!(bed.falls, 0);
    }
}

#[test]
fn whatever_a_path_carries_is_found_to_a_few_bytes() {
    for seed in 0..500 {
        let mut bed = some_path(seed);
        bed.run(MS(10_000), false);
        assert!(bed.has_found_what_the_path_carries(), "seed {seed}: {} of {:?}", bed.carries, bed.path);
        assert!(bed.probes < 60, "seed {seed}: {} probes", bed.probes);
        let probes = bed.probes;
        bed.run(MS(3_600_000), false);
        assert_eq!((bed.probes, bed.path.poll_timeout()), (probes, None), "who sends nothing asks nothing");
    }
}

#[test]
fn a_path_that_loses_a_tenth_each_way_is_found_all_the_same_and_does_not_flap() {
    let mut falls = 0;
    for seed in 0..100 {
        let mut bed = some_path(seed);
        bed.lost = 100;
        bed.run(MS(90_000), true);
        let carries = bed.carries.min(bed.device);
        assert!(bed.path.bytes() <= carries && bed.path.bytes() + 400 > carries.min(1472), "seed {seed}: {bed:?}");
        falls += bed.falls;
    }
    // 2.5 hours in all.
    assert!(falls <= 3, "{falls}");
}

#[test]
fn a_hole_is_left_within_a_second_and_what_still_passes_is_found() {
    for seed in 0..300 {
        let mut bed = some_path(seed);
        bed.delay = bed.delay.min(MS(100));
        (bed.carries, bed.device) = (bed.carries.max(1300), bed.device.max(1300));
        bed.path.set_route_mtu(u32::from(bed.device + HEADER_BYTES), bed.now);
        bed.run(MS(10_000), true);
        assert!(bed.has_found_what_the_path_carries(), "seed {seed}: {bed:?}");
        let pause = bed.draw(0..=400);
        bed.run(MS(pause), true);
        bed.carries = bed.draw(MTU_BASE.into()..=u64::from(bed.carries.min(bed.device)) - 10) as u16;
        bed.lost = bed.draw(0..=20);
        let falls = bed.falls;
        bed.run(MS(1000), true);
        assert!(bed.falls > falls && bed.path.bytes() <= bed.carries, "seed {seed}: {bed:?}");
        bed.lost = 0;
        bed.run(MS(20_000), true);
        assert!(bed.has_found_what_the_path_carries(), "seed {seed}: {bed:?}");
    }
}

#[test]
fn a_dead_path_says_nothing_of_sizes() {
    let mut bed = Bed::new(1472, 1472, MS(30), 3);
    bed.run(MS(2000), true);
    bed.is_dead = true;
    bed.run(MS(4000), true);
    assert_eq!((bed.path.bytes(), bed.falls), (1472, 0));
    bed.is_dead = false;
    bed.run(MS(500), true);
    assert_eq!(bed.path.bytes(), 1472);
}

#[test]
fn a_device_that_takes_less_is_followed_at_once_and_one_that_takes_more_in_a_round_trip() {
    let mut bed = Bed::new(8972, 1472, MS(30), 4);
    bed.run(MS(2000), true);
    bed.device = 1372;
    bed.run(TURN, true);
    assert_eq!(bed.path.bytes(), 1372);
    bed.run(MS(1000), true);
    assert_eq!(bed.path.poll_change(), Some(1372));
    bed.device = 8972;
    bed.path.set_route_mtu(9000, bed.now);
    bed.run(MS(31), true);
    assert_eq!(bed.path.bytes(), 8972);
    bed.path.set_route_mtu(1300, bed.now);
    assert_eq!(bed.path.bytes(), 1272, "a router said so");
    bed.run(MS(1000), true);
    assert_eq!(bed.path.bytes(), 8972, "and was wrong");
    bed.path.set_route_mtu(1300, bed.now);
    assert_eq!(bed.path.bytes(), 8972, "still");
}

#[test]
fn a_path_that_carries_more_than_before_is_found_out_within_a_minute_of_use() {
    let mut bed = Bed::new(1372, 8972, MS(10), 5);
    bed.run(MS(300_000), true);
    assert_eq!(bed.path.bytes(), 1372);
    bed.run(MS(1000), false);
    let probes = bed.probes;
    bed.carries = 8972;
    bed.run(MS(300_000), false);
    assert_eq!((bed.path.bytes(), bed.probes), (1372, probes));
    bed.run(MS(61_000), true);
    assert_eq!(bed.path.bytes(), 8972);
}

#[test]
fn too_big_goes_back_to_what_the_kernel_says_or_else_to_the_base() {
    let mut bed = Bed::new(1472, 1472, MS(10), 6);
    bed.run(MS(1000), true);
    bed.path.handle_too_big(Some(1400), bed.now);
    assert_eq!(bed.path.bytes(), 1372);
    bed.path.handle_too_big(Some(1400), bed.now);
    assert_eq!(bed.path.bytes(), 1372, "there were several");
    bed.path.handle_too_big(None, bed.now);
    assert_eq!(bed.path.bytes(), MTU_BASE);
    bed.run(MS(3000), true);
    assert_eq!(bed.path.bytes(), 1472);
}

impl std::fmt::Debug for Bed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (carries, device, delay) = (self.carries, self.device, self.delay);
        write!(
            f,
            "{:?} in: carries {carries}, device {device}, delay {delay:?}, {:?}",
            self.now - self.start,
            self.path
        )
    }
}
