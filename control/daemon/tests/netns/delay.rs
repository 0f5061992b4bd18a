//! A link that delays, loses, repeats and mixes up packets, for kernels without netem: two TUN interfaces in the place of a
//! veth pair, and two threads that carry packets from one to the other.
//!
//! The interfaces have no offloads, so the kernel cuts trains before they get here: each packet is one record.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ringlane_dataplane::io::bare_tun::BareTun;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::lab::{Lab, Namespace, Site};

/// Packets under way in one direction; one more is lost. 10 ms of it are 4 Gbit/s, which no test comes near.
const UNDER_WAY_MAX: usize = 4096;
/// Packets read before due ones are written.
const READS_PER_TURN: usize = 64;
/// How long a thread may take to notice that it is to stop.
const STOP_LOOK: Duration = Duration::from_millis(20);

/// What a link does to packets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Treatment {
    /// How long each takes.
    pub(crate) delay: Duration,
    /// How much longer some take, by chance: they are overtaken.
    pub(crate) jitter: Duration,
    /// Of a thousand, how many are lost.
    pub(crate) lost: u64,
    /// Of a thousand, how many come twice.
    pub(crate) repeated: u64,
    /// Only datagrams from or to this UDP port are treated so; all else passes at once.
    pub(crate) only_port: Option<u16>,
}

impl Treatment {
    /// All packets take so long, and nothing else happens to them.
    pub(crate) fn delaying(delay: Duration) -> Self {
        Self { delay, jitter: Duration::ZERO, lost: 0, repeated: 0, only_port: None }
    }

    fn is_for(&self, packet: &[u8]) -> bool {
        self.only_port.is_none_or(|port| udp_ports(packet).is_some_and(|ports| ports.contains(&port)))
    }
}

/// Source and destination port of an IPv4 datagram without options, or of an IPv6 one without extensions.
fn udp_ports(packet: &[u8]) -> Option<[u16; 2]> {
    const UDP: u8 = 17;
    let (protocol, header_bytes) = match packet.first()? >> 4 {
        4 => (*packet.get(9)?, 20),
        _ => (*packet.get(6)?, 40),
    };
    let port = |at| Some(u16::from_be_bytes(packet.get(at..at + 2)?.try_into().ok()?));
    (protocol == UDP).then_some([port(header_bytes)?, port(header_bytes + 2)?])
}

/// Such a link between two namespaces. Dropping it ends it; the namespaces keep no other.
#[derive(Debug)]
pub(crate) struct TreatedLink {
    stopped: Arc<AtomicBool>,
    directions: Vec<JoinHandle<()>>,
}

impl TreatedLink {
    /// Puts a link that takes `delay` each way in the place of the underlay of a lab of two sites.
    pub(crate) fn between_routers(lab: &Lab, delay: Duration) -> Self {
        // With one end of the pair goes the other.
        lab.router(Site::A).run("ip link delete underlay");
        let ends = [Site::A, Site::B].map(|site| {
            let router = lab.router(site);
            let end = interface(&router, "underlay");
            router.run(&format!("ip address add {}/24 dev underlay", site.underlay()));
            end
        });
        Self::start(ends, Treatment::delaying(delay))
    }

    /// Has packets carried between two interfaces made by [`interface`].
    pub(crate) fn start(ends: [File; 2], treatment: Treatment) -> Self {
        let [a, b] = ends.map(Arc::new);
        let stopped = Arc::new(AtomicBool::new(false));
        let directions = [(1, Arc::clone(&a), Arc::clone(&b)), (2, b, a)].map(|(seed, from, to)| {
            let stopped = Arc::clone(&stopped);
            thread::spawn(move || carry(&from, &to, treatment, seed, &stopped))
        });
        Self { stopped, directions: directions.into() }
    }
}

impl Drop for TreatedLink {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        for direction in self.directions.drain(..) {
            // A direction that panicked has failed the test already, by carrying nothing.
            let _ = direction.join();
        }
    }
}

/// A TUN interface of this name without an address, up, to be read without blocking.
pub(crate) fn interface(namespace: &Namespace, name: &str) -> File {
    let tun = namespace.enter(|| BareTun::plain(name)).expect("root may make a TUN");
    let queue = tun.queues.into_iter().next().expect("an interface has a queue");
    rustix::io::ioctl_fionbio(&queue, true).expect("a TUN can be made non-blocking");
    namespace.run(&format!("ip link set {name} mtu 1500 txqueuelen 4096 up"));
    queue.into()
}

fn carry(mut from: &File, mut to: &File, treatment: Treatment, seed: u64, stopped: &AtomicBool) {
    // Those that are due at one time leave in the order they came in.
    let mut under_way = BTreeMap::<(Instant, u64), Box<[u8]>>::new();
    let (mut count, mut chance) = (0, Chance(seed));
    let mut packet = [0; 2048];
    while !stopped.load(Ordering::Relaxed) {
        let mut reads = 0;
        while reads < READS_PER_TURN
            && let Ok(length) = from.read(&mut packet)
        {
            reads += 1;
            let packet = &packet[..length];
            let now = Instant::now();
            let is_treated = treatment.is_for(packet);
            let copies = match is_treated {
                true if chance.is_one_of(treatment.lost) => 0,
                true if chance.is_one_of(treatment.repeated) => 2,
                _ => 1,
            };
            for _ in 0..copies {
                let due = if is_treated { now + treatment.delay + chance.part_of(treatment.jitter) } else { now };
                count += 1;
                if under_way.len() < UNDER_WAY_MAX {
                    under_way.insert((due, count), packet.into());
                }
            }
        }
        let now = Instant::now();
        while under_way.first_key_value().is_some_and(|((due, _), _)| *due <= now) {
            if let Some((_, packet)) = under_way.pop_first() {
                // As on any wire, it is lost if the other end is down.
                let _ = to.write(&packet);
            }
        }
        if reads < READS_PER_TURN {
            let due = under_way.first_key_value().map(|((due, _), _)| due.saturating_duration_since(Instant::now()));
            let timeout = Timespec::try_from(due.map_or(STOP_LOOK, |due| due.min(STOP_LOOK))).expect("it is short");
            // Interrupted or not, the next turn finds out what there is to do.
            let _ = poll(&mut [PollFd::from_borrowed_fd(from.as_fd(), PollFlags::IN)], Some(&timeout));
        }
    }
}

/// A small generator, so that a run can be had again.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    /// True so many times of a thousand.
    fn is_one_of(&mut self, thousandths: u64) -> bool {
        self.next() % 1000 < thousandths
    }

    fn part_of(&mut self, longest: Duration) -> Duration {
        longest * (self.next() % 1000) as u32 / 1000
    }
}
