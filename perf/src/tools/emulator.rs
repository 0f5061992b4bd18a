//! A link emulator: delay, jitter, loss, reordering and a bottleneck between two TUN interfaces.
//!
//! The interfaces have no packet header and no offloads, so the kernel cuts super-segments and completes checksums
//! before they get here: each packet is one datagram on a wire. Each direction has a thread, a [`Link`] and a random
//! sequence of its own; what happens to a direction's n-th packet depends on the seed and n only.
//!
//! The words mean what they mean in netem: a lost packet takes no room in the bottleneck; the delay of a packet is
//! uniform between delay - jitter and delay + jitter, so that jitter alone reorders too; a reordered packet is sent at
//! once while all others are delayed, so that it overtakes those of the last `delay` (without delay there is nothing
//! to overtake).
//!
//! What a direction's thread has not read in time, because the processors are busy, is dropped by the interface and
//! counted as its `tx_dropped`: a measurement during which that grows says nothing of the link.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use ringlane_dataplane::io::bare_tun::BareTun;
use serde::Serialize;

use super::{EndSignals, STOP_LOOK, print_line, print_ready};

/// Bytes on their way in one direction, whatever the bottleneck allows: 200 ms at 2.5 Gbit/s.
const IN_FLIGHT_BYTES_MAX: usize = 64 << 20;
/// Packets on their way in one direction; they cost memory besides their bytes.
const IN_FLIGHT_PACKETS_MAX: usize = 1 << 17;
/// Packets that may wait in an interface until its thread runs: at 150,000 a second what 60 ms bring.
const INTERFACE_QUEUE_PACKETS: u32 = 10_000;
/// Packets read before due ones are sent.
const READS_PER_TURN: usize = 64;
/// After a turn that had work, how long to wait for more of it: waking for every packet would take the processor from
/// what is measured. A packet may be this much late.
const PAUSE: Duration = Duration::from_micros(20);

#[derive(Debug, clap::Args)]
pub(crate) struct EmulateArgs {
    /// Names of the two TUN interfaces to create: NAME,NAME. Once ready they may be moved and renamed at will
    #[arg(long, required = true, value_delimiter = ',', num_args = 1)]
    interfaces: Vec<String>,
    /// Delay of each direction, in milliseconds
    #[arg(long, default_value_t = 0.0)]
    delay_ms: f64,
    /// How much the delay of a packet may be less or more, in milliseconds
    #[arg(long, default_value_t = 0.0)]
    jitter_ms: f64,
    /// Packets that are lost, in percent
    #[arg(long, default_value_t = 0.0)]
    loss_percent: f64,
    /// Packets that are sent at once while the others are delayed, in percent
    #[arg(long, default_value_t = 0.0)]
    reorder_percent: f64,
    /// Rate of the bottleneck of each direction, in megabits of IP packets per second [default: no bottleneck]
    #[arg(long)]
    rate_mbit: Option<f64>,
    /// Bytes that may wait at the bottleneck; the packet that does not fit is dropped
    #[arg(long, default_value_t = 1_000_000)]
    queue_bytes: u64,
    /// Where the random sequences start
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl EmulateArgs {
    fn conditions(&self) -> anyhow::Result<Conditions> {
        let seconds = |name, milliseconds: f64| {
            ensure!((0.0..=60_000.0).contains(&milliseconds), "{name} must be from 0 to 60000 ms");
            Ok(Duration::from_secs_f64(milliseconds / 1e3))
        };
        let share = |name, percent: f64| {
            ensure!((0.0..=100.0).contains(&percent), "{name} must be from 0 to 100 %");
            Ok(percent / 100.0)
        };
        if let Some(rate) = self.rate_mbit {
            ensure!((0.001..=1e6).contains(&rate), "the rate must be from 0.001 to 1000000 Mbit/s");
        }
        Ok(Conditions {
            delay: seconds("the delay", self.delay_ms)?,
            jitter: seconds("the jitter", self.jitter_ms)?,
            loss: share("the loss", self.loss_percent)?,
            reorder: share("the reordering", self.reorder_percent)?,
            seconds_per_byte: self.rate_mbit.map(|rate| 8.0 / (rate * 1e6)),
            queue_bytes: self.queue_bytes,
        })
    }
}

pub(super) fn run(arguments: &EmulateArgs) -> anyhow::Result<()> {
    let conditions = arguments.conditions()?;
    let [first, second] = &arguments.interfaces[..] else {
        anyhow::bail!("a link is between two interfaces: --interfaces NAME,NAME");
    };
    let stop = EndSignals::hold()?.into_flag();
    let (one, two) = (interface(first)?, interface(second)?);
    print_ready(None)?;
    let seeds = [arguments.seed, arguments.seed ^ u64::MAX];
    let [forth, back] = std::thread::scope(|scope| {
        let directions = [(&one, &two, seeds[0]), (&two, &one, seeds[1])];
        let threads = directions.map(|(from, to, seed)| {
            let link = Link::new(conditions.clone(), seed);
            scope.spawn(|| {
                let ended = carry(link, from.as_fd(), to.as_fd(), &stop);
                // Half a link is none.
                stop.store(true, Ordering::Relaxed);
                ended
            })
        });
        threads.map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a direction panicked"))))
    });
    print_line(&serde_json::json!({ "directions": [forth?, back?] }))
}

/// A TUN interface that can be read without blocking.
fn interface(name: &str) -> anyhow::Result<OwnedFd> {
    let mut tun = BareTun::plain(name).with_context(|| format!("creating interface {name}"))?;
    let queue = tun.queues.pop().context("an interface has a queue")?;
    rustix::io::ioctl_fionbio(&queue, true).context("making the queue non-blocking")?;
    let length = Path::new("/sys/class/net").join(name).join("tx_queue_len");
    std::fs::write(&length, INTERFACE_QUEUE_PACKETS.to_string())
        .with_context(|| format!("writing {}", length.display()))?;
    Ok(queue)
}

/// Carries one direction until it is told to stop.
fn carry(mut link: Link, from: BorrowedFd<'_>, to: BorrowedFd<'_>, stop: &AtomicBool) -> anyhow::Result<Counters> {
    // The kernel may be this many nanoseconds late in waking us, to wake others with us; its default is 50,000.
    nix::sys::prctl::set_timerslack(1).context("asking for precise timers")?;
    let mut buffer = vec![0; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        let (mut worked, mut drained) = (false, false);
        for _ in 0..READS_PER_TURN {
            match nix::unistd::read(from, &mut buffer) {
                Ok(length) => link.handle_packet(&buffer[..length], Instant::now()),
                Err(Errno::EAGAIN) => {
                    drained = true;
                    break;
                }
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("reading a TUN"),
            }
            worked = true;
        }
        let now = Instant::now();
        while let Some(packet) = link.poll_packet(now) {
            if nix::unistd::write(to, &packet).is_err() {
                link.counters.undelivered += 1;
            }
            worked = true;
        }
        if drained && worked {
            std::thread::sleep(PAUSE);
        } else if drained {
            let due = link.poll_timeout().map_or(STOP_LOOK, |due| due.saturating_duration_since(Instant::now()));
            let readable = &mut [PollFd::new(from, PollFlags::POLLIN)];
            // Interrupted or not, the next turn finds out what there is to do.
            let _ = ppoll(readable, Some(due.min(STOP_LOOK).into()), None);
        }
    }
    Ok(link.counters)
}

/// What the link is like, in each direction.
#[derive(Clone, Debug)]
struct Conditions {
    delay: Duration,
    jitter: Duration,
    /// Share of the packets, from 0 to 1.
    loss: f64,
    /// Share of the packets, from 0 to 1.
    reorder: f64,
    /// How long the bottleneck takes; `None` if there is none.
    seconds_per_byte: Option<f64>,
    /// Bytes that may wait at the bottleneck.
    queue_bytes: u64,
}

/// What has happened to one direction's packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
struct Counters {
    /// Handed to the other side.
    forwarded: u64,
    /// Those of them that the other side did not take: its interface is down.
    undelivered: u64,
    /// Lost by chance.
    lost: u64,
    /// Sent at once while others were delayed.
    reordered: u64,
    /// Dropped because the bottleneck's queue, or the memory for what is on its way, was full.
    queue_drops: u64,
}

/// A packet on its way: the earliest arrival is the greatest in the heap, and of equals the one sent first.
type InFlight = Reverse<(Instant, u64, Box<[u8]>)>;

/// One direction of the link. It knows no clock and no interface.
#[derive(Debug)]
struct Link {
    conditions: Conditions,
    random: fastrand::Rng,
    /// Packets offered so far.
    offered: u64,
    /// When the bottleneck will have sent all it has.
    idle_at: Option<Instant>,
    in_flight: BinaryHeap<InFlight>,
    in_flight_bytes: usize,
    counters: Counters,
}

impl Link {
    fn new(conditions: Conditions, seed: u64) -> Self {
        Self {
            conditions,
            random: fastrand::Rng::with_seed(seed),
            offered: 0,
            idle_at: None,
            in_flight: BinaryHeap::new(),
            in_flight_bytes: 0,
            counters: Counters::default(),
        }
    }

    /// Takes a packet that enters the link at `now`.
    fn handle_packet(&mut self, packet: &[u8], now: Instant) {
        // All three are drawn for every packet, so that none depends on the fate of those before.
        let (lost, reordered, jitter) = (self.random.f64(), self.random.f64(), self.random.f64());
        self.offered += 1;
        if lost < self.conditions.loss {
            self.counters.lost += 1;
            return;
        }
        let full =
            self.in_flight.len() == IN_FLIGHT_PACKETS_MAX || self.in_flight_bytes + packet.len() > IN_FLIGHT_BYTES_MAX;
        let departure = if full { None } else { self.pass_bottleneck(packet.len(), now) };
        let Some(departure) = departure else {
            self.counters.queue_drops += 1;
            return;
        };
        let arrival = if reordered < self.conditions.reorder {
            self.counters.reordered += 1;
            departure
        } else {
            let jitter = self.conditions.jitter.mul_f64(2.0 * jitter);
            departure + (self.conditions.delay + jitter).saturating_sub(self.conditions.jitter)
        };
        self.in_flight_bytes += packet.len();
        self.in_flight.push(Reverse((arrival, self.offered, packet.into())));
    }

    /// When a packet has passed the bottleneck; `None` if it finds no room there.
    fn pass_bottleneck(&mut self, bytes: usize, now: Instant) -> Option<Instant> {
        let Some(seconds_per_byte) = self.conditions.seconds_per_byte else { return Some(now) };
        let start = self.idle_at.map_or(now, |idle_at| idle_at.max(now));
        let waiting_bytes = (start - now).as_secs_f64() / seconds_per_byte;
        if start > now && waiting_bytes + bytes as f64 > self.conditions.queue_bytes as f64 {
            return None;
        }
        let departure = start + Duration::from_secs_f64(bytes as f64 * seconds_per_byte);
        self.idle_at = Some(departure);
        Some(departure)
    }

    /// When the next packet leaves the link.
    fn poll_timeout(&self) -> Option<Instant> {
        self.in_flight.peek().map(|Reverse((arrival, ..))| *arrival)
    }

    /// A packet that has left the link by `now`, in the order of their leaving.
    fn poll_packet(&mut self, now: Instant) -> Option<Box<[u8]>> {
        self.poll_timeout().filter(|&arrival| arrival <= now)?;
        let Reverse((_, _, packet)) = self.in_flight.pop()?;
        self.in_flight_bytes -= packet.len();
        self.counters.forwarded += 1;
        Some(packet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn clean() -> Conditions {
        let none = Duration::ZERO;
        Conditions { delay: none, jitter: none, loss: 0.0, reorder: 0.0, seconds_per_byte: None, queue_bytes: 0 }
    }

    /// The numbers of the packets that have left the link by `now`.
    fn numbers(link: &mut Link, now: Instant) -> Vec<u32> {
        let number = |packet: Box<[u8]>| u32::from_le_bytes(packet[..4].try_into().expect("four bytes"));
        std::iter::from_fn(|| link.poll_packet(now)).map(number).collect()
    }

    #[test]
    fn packets_leave_after_the_delay_and_not_before() {
        let (start, mut link) = (Instant::now(), Link::new(Conditions { delay: 10 * MS, ..clean() }, 1));
        assert_eq!(link.poll_timeout(), None);
        link.handle_packet(&1_u32.to_le_bytes(), start);
        link.handle_packet(&2_u32.to_le_bytes(), start + MS);
        assert_eq!(link.poll_timeout(), Some(start + 10 * MS));
        assert!(numbers(&mut link, start + 10 * MS - Duration::from_nanos(1)).is_empty());
        assert_eq!(numbers(&mut link, start + 10 * MS), [1]);
        assert_eq!(numbers(&mut link, start + 60 * MS), [2]);
        assert_eq!(link.in_flight_bytes, 0);
    }

    #[test]
    fn jitter_stays_within_its_bounds_and_uses_them() {
        let start = Instant::now();
        let mut link = Link::new(Conditions { delay: 10 * MS, jitter: 4 * MS, ..clean() }, 5);
        for number in 0..1000_u32 {
            link.handle_packet(&number.to_le_bytes(), start);
        }
        let first = link.poll_timeout().expect("a packet is on its way") - start;
        assert!((6 * MS..7 * MS).contains(&first), "{first:?}");
        assert!(numbers(&mut link, start + 13 * MS).len() < 1000);
        numbers(&mut link, start + 14 * MS);
        assert_eq!(link.counters.forwarded, 1000);
    }

    #[test]
    fn the_seed_decides_which_packets_are_lost_and_the_ratio_how_many() {
        let survivors = |seed| {
            let (start, mut link) = (Instant::now(), Link::new(Conditions { loss: 0.02, ..clean() }, seed));
            (0..100_000_u32).for_each(|number| link.handle_packet(&number.to_le_bytes(), start));
            assert_eq!(link.counters.lost as usize + link.in_flight.len(), 100_000);
            numbers(&mut link, start)
        };
        let kept = survivors(7);
        // Five standard deviations of a binomial distribution: 5 * sqrt(100,000 * 0.02 * 0.98).
        assert!((97_779..=98_221).contains(&kept.len()), "{} of 100,000", kept.len());
        assert_eq!(kept, survivors(7));
        assert_ne!(kept, survivors(8));
        assert!(kept.is_sorted(), "loss does not reorder");
    }

    #[test]
    fn a_reordered_packet_overtakes_those_of_the_last_delay_and_no_others() {
        let start = Instant::now();
        let mut link = Link::new(Conditions { delay: 10 * MS, reorder: 0.05, ..clean() }, 3);
        let mut left = Vec::new();
        for number in 0..10_000_u32 {
            let now = start + number * MS;
            link.handle_packet(&number.to_le_bytes(), now);
            left.extend(numbers(&mut link, now));
        }
        left.extend(numbers(&mut link, start + 20_000 * MS));
        let mut highest = 0;
        let mut overtaken = 0;
        for &number in &left {
            assert!(number + 10 >= highest, "{number} left after {highest}");
            overtaken += usize::from(number < highest);
            highest = highest.max(number);
        }
        assert_eq!(left.len(), 10_000);
        // 500 expected, five standard deviations allowed; each overtakes up to ten.
        assert!((391..=609).contains(&link.counters.reordered), "{}", link.counters.reordered);
        assert!(overtaken > 3000, "{overtaken}");
    }

    #[test]
    fn the_bottleneck_keeps_its_rate() {
        let start = Instant::now();
        // A thousand bytes take one millisecond.
        let mut link =
            Link::new(Conditions { delay: 5 * MS, seconds_per_byte: Some(1e-6), queue_bytes: u64::MAX, ..clean() }, 1);
        for _ in 0..100 {
            link.handle_packet(&[0; 1000], start);
        }
        numbers(&mut link, start + 55 * MS + MS / 2);
        assert_eq!(link.counters.forwarded, 50);
        numbers(&mut link, start + 106 * MS);
        assert_eq!(link.counters.forwarded, 100);
        link.handle_packet(&[0; 1000], start + 200 * MS);
        assert_eq!(link.poll_timeout(), Some(start + 206 * MS), "an idle bottleneck has saved nothing up");
    }

    #[test]
    fn what_does_not_fit_into_the_bottlenecks_queue_is_dropped() {
        let start = Instant::now();
        let mut link = Link::new(Conditions { seconds_per_byte: Some(1e-6), queue_bytes: 10_000, ..clean() }, 1);
        for _ in 0..100 {
            link.handle_packet(&[0; 1000], start);
        }
        assert_eq!((link.in_flight.len(), link.counters.queue_drops), (10, 90));
        // Two have been sent: there is room for as many.
        for _ in 0..5 {
            link.handle_packet(&[0; 1000], start + 2 * MS);
        }
        assert_eq!((link.in_flight.len(), link.counters.queue_drops), (12, 93));
    }

    #[test]
    fn what_is_on_its_way_is_bounded_without_a_bottleneck() {
        let start = Instant::now();
        let mut link = Link::new(Conditions { delay: 1000 * MS, ..clean() }, 1);
        let packet = vec![0; 65_535];
        for _ in 0..2000 {
            link.handle_packet(&packet, start);
        }
        assert!(link.in_flight_bytes <= IN_FLIGHT_BYTES_MAX);
        assert_eq!(link.counters.queue_drops as usize, 2000 - IN_FLIGHT_BYTES_MAX / 65_535);
    }
}
