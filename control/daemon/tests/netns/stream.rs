//! Traffic that goes on while something happens to the network: a TCP stream whose every byte is checked, and a datagram
//! every millisecond each way, whose longest silence is measured; and a few others by every lane.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::lab::{Lab, Namespace, PATIENCE, Site, wait_for};
use crate::traffic::{Content, connected, receiver, sender, uninterrupted};

const SEND_EVERY: Duration = Duration::from_millis(1);
/// Flows beside the one that is measured, so that there is no lane without packets: who sends nothing by a lane has no reason
/// to notice what becomes of it. One of them sends with every tenth datagram.
const OTHER_FLOWS: usize = 16;
const OTHERS_EVERY: u64 = 10;
const CHUNK_BYTES: usize = 16 * 1024;
const SEED: u64 = 7;
/// Datagrams that must arrive each way before traffic counts as flowing.
const FLOWING: u64 = 50;

/// The traffic between the hosts of sites A and B. Stop it with [`Stream::stop`].
#[derive(Debug)]
pub(crate) struct Stream {
    stopped: Arc<AtomicBool>,
    directions: [Arc<Arrivals>; 2],
    threads: Vec<JoinHandle<u64>>,
}

/// What has arrived in one direction.
#[derive(Debug)]
struct Arrivals {
    datagrams: AtomicU64,
    silence: Mutex<Silence>,
}

#[derive(Clone, Copy, Debug)]
struct Silence {
    latest: Instant,
    longest: Duration,
}

impl Stream {
    /// Starts the traffic, over IPv4, with TCP at full speed.
    pub(crate) fn start(lab: &Lab) -> Self {
        Self::paced(lab, Duration::ZERO)
    }

    /// As [`Self::start`], with TCP at about 10 Mbit/s at most.
    pub(crate) fn start_gently(lab: &Lab) -> Self {
        Self::paced(lab, Duration::from_millis(10))
    }

    fn paced(lab: &Lab, pause: Duration) -> Self {
        let hosts = [lab.host(Site::A), lab.host(Site::B)];
        let stopped = Arc::new(AtomicBool::new(false));
        let addresses = [Site::A, Site::B].map(|site| IpAddr::from(site.host_v4()));
        let [near, far] = connected(&hosts[0], &hosts[1], addresses[1], |_| ());
        let mut threads = vec![
            spawn(&stopped, move |stopped| write_content(near, pause, stopped)),
            spawn(&stopped, move |_| read_content(far)),
        ];
        let directions =
            [(0, 1), (1, 0)].map(|(from, to)| one_way(&stopped, &mut threads, &hosts[from], &hosts[to], addresses[to]));
        let stream = Self { stopped, directions, threads };
        stream.wait_flowing();
        stream
    }

    /// Waits until datagrams arrive again in both directions.
    pub(crate) fn wait_flowing(&self) {
        wait_flowing(&self.directions.each_ref().map(Arc::as_ref));
    }

    /// Does something to the network, and waits until traffic flows and `settled` says that all is over. Returns the
    /// longest silence meanwhile, from A to B and from B to A, and prints it.
    pub(crate) fn silence_of(
        &self,
        what: &str,
        happen: impl FnOnce(),
        settled: impl FnMut() -> Option<()>,
    ) -> [Duration; 2] {
        self.directions.iter().for_each(|direction| direction.begin());
        happen();
        wait_for(what, settled);
        self.wait_flowing();
        let longest = self.directions.each_ref().map(|direction| direction.longest());
        println!("{what}: longest silence {:?} from A to B, {:?} from B to A", longest[0], longest[1]);
        longest
    }

    /// Ends the traffic, and returns how many bytes of TCP content have arrived, every one as it was sent.
    pub(crate) fn stop(self) -> u64 {
        self.stopped.store(true, Ordering::Relaxed);
        let ended = self.threads.into_iter().map(|thread| match thread.join() {
            Ok(bytes) => bytes,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        let bytes: Vec<_> = ended.collect();
        assert_eq!(bytes[0], bytes[1], "bytes sent and received");
        bytes[0]
    }
}

fn spawn(stopped: &Arc<AtomicBool>, work: impl FnOnce(&AtomicBool) -> u64 + Send + 'static) -> JoinHandle<u64> {
    let stopped = Arc::clone(stopped);
    thread::spawn(move || work(&stopped))
}

/// Sends datagrams from one host to the other until `stopped`.
fn one_way(
    stopped: &Arc<AtomicBool>,
    threads: &mut Vec<JoinHandle<u64>>,
    from: &Namespace,
    to: &Namespace,
    address: IpAddr,
) -> Arc<Arrivals> {
    let silence = Mutex::new(Silence { latest: Instant::now(), longest: Duration::ZERO });
    let arrivals = Arc::new(Arrivals { datagrams: AtomicU64::new(0), silence });
    let [receiver, sink] = [receiver(to, address), receiver(to, address)];
    let [measured, unmeasured] =
        [&receiver, &sink].map(|socket| socket.local_addr().expect("a bound socket has an address"));
    // Entering a network takes long.
    let (sender, others) = from.enter(|| (sender(measured), [(); OTHER_FLOWS].map(|()| sender(unmeasured))));
    threads.push(spawn(stopped, move |stopped| {
        let sent = send_datagrams(&sender, &others, stopped);
        // Nobody reads from it, but while it is there nobody is told that it is not.
        drop(sink);
        sent
    }));
    let arriving = Arc::clone(&arrivals);
    threads.push(spawn(stopped, move |stopped| arriving.receive(&receiver, stopped)));
    arrivals
}

fn wait_flowing(directions: &[&Arrivals]) {
    let arrived = || directions.iter().map(|direction| direction.datagrams.load(Ordering::Relaxed));
    let before: Vec<_> = arrived().collect();
    wait_for("traffic to flow", || arrived().zip(&before).all(|(now, before)| now >= before + FLOWING).then_some(()));
}

fn write_content(mut stream: TcpStream, pause: Duration, stopped: &AtomicBool) -> u64 {
    let (mut content, mut chunk, mut sent) = (Content::of(SEED), vec![0; CHUNK_BYTES], 0);
    stream.set_write_timeout(Some(PATIENCE)).expect("a timeout can be set");
    while !stopped.load(Ordering::Relaxed) {
        content.fill(&mut chunk);
        stream.write_all(&chunk).unwrap_or_else(|error| panic!("sending at {sent}: {error}"));
        sent += chunk.len() as u64;
        thread::sleep(pause);
    }
    stream.shutdown(std::net::Shutdown::Write).expect("an open stream can be shut");
    sent
}

fn read_content(mut stream: TcpStream) -> u64 {
    let (mut content, mut expected, mut chunk) = (Content::of(SEED), vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    let mut received = 0;
    loop {
        // The sender writes whole chunks: the end comes between two of them.
        let first = uninterrupted(|| stream.read(&mut chunk)).unwrap_or_else(|error| panic!("at {received}: {error}"));
        if first == 0 {
            return received;
        }
        stream.read_exact(&mut chunk[first..]).unwrap_or_else(|error| panic!("after {received}: {error}"));
        content.fill(&mut expected);
        assert!(chunk == expected, "content differs within {CHUNK_BYTES} bytes after byte {received}");
        received += chunk.len() as u64;
    }
}

fn send_datagrams(socket: &UdpSocket, others: &[UdpSocket], stopped: &AtomicBool) -> u64 {
    let mut sent = 0_u64;
    while !stopped.load(Ordering::Relaxed) {
        // That it cannot be sent for now is what a test may be about.
        let _ = socket.send(&sent.to_be_bytes());
        if sent.is_multiple_of(OTHERS_EVERY) {
            let _ = others[(sent / OTHERS_EVERY) as usize % others.len()].send(&sent.to_be_bytes());
        }
        sent += 1;
        thread::sleep(SEND_EVERY);
    }
    sent
}

impl Arrivals {
    /// Forgets what was the longest silence.
    fn begin(&self) {
        self.silence.lock().expect("no thread has panicked").longest = Duration::ZERO;
    }

    fn longest(&self) -> Duration {
        let silence = self.silence.lock().expect("no thread has panicked");
        silence.longest.max(silence.latest.elapsed())
    }

    fn receive(&self, socket: &UdpSocket, stopped: &AtomicBool) -> u64 {
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout can be set");
        let mut datagram = [0; 64];
        while !stopped.load(Ordering::Relaxed) {
            match uninterrupted(|| socket.recv(&mut datagram)) {
                Ok(_) => {
                    let now = Instant::now();
                    let mut silence = self.silence.lock().expect("no thread has panicked");
                    silence.longest = silence.longest.max(now - silence.latest);
                    silence.latest = now;
                    self.datagrams.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => panic!("receiving datagrams: {error}"),
            }
        }
        self.datagrams.load(Ordering::Relaxed)
    }
}

/// Datagrams one way only. Stop it with [`OneWay::stop`].
#[derive(Debug)]
pub(crate) struct OneWay {
    stopped: Arc<AtomicBool>,
    arrivals: Arc<Arrivals>,
    threads: Vec<JoinHandle<u64>>,
}

impl OneWay {
    pub(crate) fn start(from: &Namespace, to: &Namespace, address: IpAddr) -> Self {
        let stopped = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        let arrivals = one_way(&stopped, &mut threads, from, to, address);
        let one_way = Self { stopped, arrivals, threads };
        wait_flowing(&[&one_way.arrivals]);
        one_way
    }

    /// Does something to the network, and waits until datagrams arrive again. Returns the longest silence meanwhile, and
    /// prints it.
    pub(crate) fn silence_of(&self, what: &str, happen: impl FnOnce()) -> Duration {
        self.arrivals.begin();
        happen();
        wait_flowing(&[&self.arrivals]);
        let longest = self.arrivals.longest();
        println!("{what}: longest silence {longest:?}");
        longest
    }

    pub(crate) fn stop(self) {
        self.stopped.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("no thread has panicked");
        }
    }
}
