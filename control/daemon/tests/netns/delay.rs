//! An underlay with a delay, for kernels without netem: two TUN interfaces in the place of the veth pair between two
//! routers, and two threads that carry packets from one to the other.
//!
//! The interfaces have no offloads, so the kernel cuts trains before they get here: each packet is one record.

use std::collections::VecDeque;
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

/// The delaying link between a lab's two routers. Dropping it ends it; the routers keep no other.
#[derive(Debug)]
pub(crate) struct DelayedUnderlay {
    stopped: Arc<AtomicBool>,
    directions: Vec<JoinHandle<()>>,
}

impl DelayedUnderlay {
    /// Puts a link that takes `delay` each way in the place of the underlay of a lab of two sites.
    pub(crate) fn between_routers(lab: &Lab, delay: Duration) -> Self {
        // With one end of the pair goes the other.
        lab.router(Site::A).run("ip link delete underlay");
        let [a, b] = [Site::A, Site::B].map(|site| Arc::new(interface(&lab.router(site), site)));
        let stopped = Arc::new(AtomicBool::new(false));
        let directions = [(Arc::clone(&a), Arc::clone(&b)), (b, a)].map(|(from, to)| {
            let stopped = Arc::clone(&stopped);
            thread::spawn(move || carry(&from, &to, delay, &stopped))
        });
        Self { stopped, directions: directions.into() }
    }
}

impl Drop for DelayedUnderlay {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        for direction in self.directions.drain(..) {
            // A direction that panicked has failed the test already, by carrying nothing.
            let _ = direction.join();
        }
    }
}

/// A TUN interface called `underlay` with the router's underlay address, to be read without blocking.
fn interface(router: &Namespace, site: Site) -> File {
    let tun = router.enter(|| BareTun::plain("underlay")).expect("root may make a TUN");
    let queue = tun.queues.into_iter().next().expect("an interface has a queue");
    rustix::io::ioctl_fionbio(&queue, true).expect("a TUN can be made non-blocking");
    router.run(&format!("ip address add {}/24 dev underlay", site.underlay()));
    router.run("ip link set underlay mtu 1500 txqueuelen 4096 up");
    queue.into()
}

fn carry(mut from: &File, mut to: &File, delay: Duration, stopped: &AtomicBool) {
    let mut under_way = VecDeque::<(Instant, Box<[u8]>)>::new();
    let mut packet = [0; 2048];
    while !stopped.load(Ordering::Relaxed) {
        let mut reads = 0;
        while reads < READS_PER_TURN
            && let Ok(length) = from.read(&mut packet)
        {
            reads += 1;
            if under_way.len() < UNDER_WAY_MAX {
                under_way.push_back((Instant::now() + delay, packet[..length].into()));
            }
        }
        let now = Instant::now();
        while under_way.front().is_some_and(|(due, _)| *due <= now) {
            if let Some((_, packet)) = under_way.pop_front() {
                // As on any wire, it is lost if the other end is down.
                let _ = to.write(&packet);
            }
        }
        if reads < READS_PER_TURN {
            let due = under_way.front().map_or(STOP_LOOK, |(due, _)| due.saturating_duration_since(Instant::now()));
            let timeout = Timespec::try_from(due.min(STOP_LOOK)).expect("it is short");
            // Interrupted or not, the next turn finds out what there is to do.
            let _ = poll(&mut [PollFd::from_borrowed_fd(from.as_fd(), PollFlags::IN)], Some(&timeout));
        }
    }
}
