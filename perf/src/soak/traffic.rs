//! Traffic between the hosts that says at any time whether it gets through, and whether it arrives as it was sent.
//!
//! - **Probes**: small and large UDP requests every 20 ms, several flows of each, so that every lane has some. The time in
//!   which one of them gets no answer is a gap.
//! - **Streams**: TCP connections that last as long as the soak, and beside them short ones, one after the other. Nothing
//!   that is done to the routers may end one. They are cut into chunks, each with stream, number, pseudo-random content
//!   and the SHA-256 over all that.
//!
//! All of it runs on threads of this process, each in the network namespace of its host: times are comparable.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::Serialize;

use super::probe::{Gap, Probe};
use super::stream::{CHUNK_BYTES, send_stream, take_stream};
use crate::lab::{Lab, SITES, Site};
use crate::process::is_interrupted;

/// Where hosts answer probes and take streams.
const PORT: u16 = 7002;

/// Payload of probes: small, and as large as the tunnel's MTU of 1420 allows in one packet (20 of IPv4, 8 of UDP).
const PROBE_BYTES: [usize; 2] = [64, 1392];
/// Flows of each size between two sites.
const PROBE_FLOWS: usize = 3;
/// Long streams from each site to each of its peers.
const LONG_STREAMS: usize = 2;
/// Chunks of a short stream: 1 MiB, as fast as it goes.
const SHORT_CHUNKS: u64 = 32;
/// Pause between short streams.
const SHORT_PAUSE: Duration = Duration::from_millis(500);
/// Between two looks whether to stop.
pub(super) const LOOK: Duration = Duration::from_millis(200);
/// How long streams have to arrive once they are to end.
const DRAIN: Duration = Duration::from_secs(60);

/// Problems that are kept: there may be one per chunk.
const PROBLEMS_MAX: usize = 50;

/// What all threads share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// No new requests and chunks.
    stop: AtomicBool,
    /// No more waiting for those under way.
    pub(super) abort: AtomicBool,
    problems: Mutex<Vec<String>>,
    pub(super) wrong_answers: AtomicU64,
    pub(super) requests: AtomicU64,
    pub(super) answers: AtomicU64,
    pub(super) chunks: AtomicU64,
    short_streams: AtomicU64,
    refused_connections: AtomicU64,
}

impl Shared {
    /// Whether nothing new is to begin.
    pub(super) fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn problem(&self, problem: String) {
        let mut problems = lock(&self.problems);
        if problems.len() < PROBLEMS_MAX {
            problems.push(problem);
        }
    }
}

/// What became of all traffic.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct TrafficReport {
    pub(super) requests: u64,
    pub(super) answers: u64,
    /// Not what was asked.
    pub(super) wrong_answers: u64,
    pub(super) long_streams: usize,
    pub(super) short_streams: u64,
    /// Short streams that could not begin, while there was no route for example, and were tried again.
    pub(super) refused_connections: u64,
    /// Chunks received with the right content, in order.
    pub(super) chunks: u64,
    pub(super) bytes: u64,
    /// Streams that broke, or brought what was not sent.
    pub(super) problems: Vec<String>,
}

/// All traffic. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Traffic {
    shared: Arc<Shared>,
    probes: Vec<Arc<Probe>>,
    senders: Vec<JoinHandle<()>>,
    servants: Vec<JoinHandle<()>>,
    long_streams: usize,
    hub: Host,
}

/// A host of the lab.
#[derive(Clone, Debug)]
struct Host {
    letter: char,
    /// File of its network namespace.
    namespace: String,
    address: SocketAddr,
}

impl Traffic {
    /// Starts it between site a and all others. Packets must cross already.
    pub(super) fn start(lab: &Lab, sites: &[Site], seed: u64) -> anyhow::Result<Self> {
        let hosts: Vec<Host> = sites.iter().map(|site| Host::of(lab, site)).collect();
        let (hub, others) = hosts.split_first().context("a lab has sites")?;
        let mut traffic = Self {
            shared: Arc::default(),
            probes: Vec::new(),
            senders: Vec::new(),
            servants: Vec::new(),
            long_streams: 0,
            hub: hub.clone(),
        };
        for host in &hosts {
            traffic.serve(host)?;
        }
        for other in others {
            for bytes in PROBE_BYTES.into_iter().cycle().take(PROBE_FLOWS * PROBE_BYTES.len()) {
                traffic.probe(hub, other, bytes)?;
            }
            for (from, to) in [(hub, other), (other, hub)] {
                for long in [true; LONG_STREAMS].into_iter().chain([false]) {
                    traffic.stream(from, to, seed, long);
                }
            }
        }
        Ok(traffic)
    }

    /// Answers probes and takes streams at a host.
    fn serve(&mut self, host: &Host) -> anyhow::Result<()> {
        let (socket, listener) = host.inside(|| {
            let any = (Ipv4Addr::UNSPECIFIED, PORT);
            Ok((UdpSocket::bind(any)?, TcpListener::bind(any)?))
        })?;
        socket.set_read_timeout(Some(LOOK))?;
        listener.set_nonblocking(true)?;
        let shared = Arc::clone(&self.shared);
        self.servants.push(std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !shared.abort.load(Ordering::Relaxed) {
                // Errors are about clients whom nothing reaches at the moment.
                if let Ok((length, client)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(&buffer[..length], client);
                }
            }
        }));
        let (shared, letter) = (Arc::clone(&self.shared), host.letter);
        self.servants.push(std::thread::spawn(move || {
            while !shared.abort.load(Ordering::Relaxed) {
                let Ok((stream, client)) = listener.accept() else {
                    std::thread::sleep(LOOK / 10);
                    continue;
                };
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || {
                    if let Err(error) = take_stream(stream, &shared) {
                        shared.problem(format!("a stream from {client} to host-{letter}: {error:#}"));
                    }
                });
            }
        }));
        Ok(())
    }

    fn probe(&mut self, from: &Host, to: &Host, bytes: usize) -> anyhow::Result<()> {
        let socket = from.socket_to(to)?;
        let probe = Arc::new(Probe::new(to.letter, bytes));
        let (shared, state) = (Arc::clone(&self.shared), Arc::clone(&probe));
        self.senders.push(std::thread::spawn(move || {
            if let Err(error) = state.run(&socket, &shared) {
                shared.problem(format!("a probe: {error:#}"));
            }
        }));
        self.probes.push(probe);
        Ok(())
    }

    fn stream(&mut self, from: &Host, to: &Host, seed: u64, long: bool) {
        let id = self.senders.len() as u64;
        self.long_streams += usize::from(long);
        let (shared, from, to) = (Arc::clone(&self.shared), from.clone(), to.clone());
        let mut random = fastrand::Rng::with_seed(seed ^ id);
        self.senders.push(std::thread::spawn(move || {
            let what = || format!("stream {id} from host-{} to host-{}", from.letter, to.letter);
            if let Err(error) = from.enter() {
                return shared.problem(format!("{}: {error:#}", what()));
            }
            while !shared.stopping() {
                let Ok(stream) = TcpStream::connect_timeout(&to.address, DRAIN) else {
                    shared.refused_connections.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(LOOK);
                    continue;
                };
                let chunks = if long { u64::MAX } else { SHORT_CHUNKS };
                if let Err(error) = send_stream(stream, id, chunks, &mut random, &shared) {
                    shared.problem(format!("{}: {error:#}", what()));
                }
                shared.short_streams.fetch_add(u64::from(!long), Ordering::Relaxed);
                std::thread::sleep(SHORT_PAUSE);
            }
        }));
    }

    /// Many small datagrams from site a to all others, and back, for that long.
    pub(super) fn burst(&self, hold: Duration) -> anyhow::Result<JoinHandle<()>> {
        let to: Vec<char> = self.probes.iter().map(|probe| probe.to).collect();
        let others = SITES.iter().filter(|site| to.contains(&site.letter));
        let addresses: Vec<SocketAddr> = others.map(address_of).collect();
        let socket = self.hub.inside(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
        socket.set_nonblocking(true)?;
        Ok(std::thread::spawn(move || {
            let (end, mut buffer) = (Instant::now() + hold, [0; 200]);
            while Instant::now() < end {
                for _ in 0..8 {
                    for address in &addresses {
                        // Whether they arrive is what probes are for.
                        let _ = socket.send_to(&buffer, address);
                    }
                }
                while socket.recv(&mut buffer).is_ok() {}
                std::thread::sleep(Duration::from_millis(1));
            }
        }))
    }

    /// The gaps of all probes that ended since then, or have not; whom they were to and how large.
    pub(super) fn gaps_since(&self, start: Instant) -> Vec<(String, Gap)> {
        let gaps = self.probes.iter().flat_map(|probe| {
            let name = format!("{} bytes to host-{}", probe.bytes, probe.to);
            probe.gaps_since(start).into_iter().map(move |gap| (name.clone(), gap))
        });
        gaps.collect()
    }

    /// Ends it: what is under way may still arrive.
    pub(super) fn finish(mut self) -> TrafficReport {
        self.shared.stop.store(true, Ordering::Relaxed);
        let deadline = Instant::now() + DRAIN;
        while Instant::now() < deadline && !self.senders.iter().all(JoinHandle::is_finished) {
            if is_interrupted() {
                break;
            }
            std::thread::sleep(LOOK);
        }
        let late = self.senders.iter().filter(|sender| !sender.is_finished()).count();
        // What is cut off from here on is cut off by us.
        let mut problems = lock(&self.shared.problems).clone();
        self.end();
        if late > 0 && !is_interrupted() {
            problems.push(format!("{late} streams did not arrive within {} s of their end", DRAIN.as_secs()));
        }
        let shared = &self.shared;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        TrafficReport {
            requests: count(&shared.requests),
            answers: count(&shared.answers),
            wrong_answers: count(&shared.wrong_answers),
            long_streams: self.long_streams,
            short_streams: count(&shared.short_streams),
            refused_connections: count(&shared.refused_connections),
            chunks: count(&shared.chunks),
            bytes: count(&shared.chunks) * CHUNK_BYTES as u64,
            problems,
        }
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.abort.store(true, Ordering::Relaxed);
        for servant in self.servants.drain(..) {
            // One that panicked has said so.
            let _ = servant.join();
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.end();
    }
}

impl Host {
    fn of(lab: &Lab, site: &Site) -> Self {
        let namespace = format!("/run/netns/{}", lab.namespace(&site.host_namespace()));
        Self { letter: site.letter, namespace, address: address_of(site) }
    }

    /// Moves the calling thread there.
    fn enter(&self) -> anyhow::Result<()> {
        let file = File::open(&self.namespace).context(self.namespace.clone())?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).context("entering a namespace")
    }

    /// Makes sockets there: they stay, whoever uses them.
    fn inside<T: Send>(&self, make: impl FnOnce() -> io::Result<T> + Send) -> anyhow::Result<T> {
        let thread = std::thread::scope(|scope| {
            scope.spawn(|| self.enter().and_then(|()| make().context("a socket in a namespace"))).join()
        });
        thread.unwrap_or_else(|_| Err(anyhow!("a thread panicked")))
    }

    fn socket_to(&self, to: &Self) -> anyhow::Result<UdpSocket> {
        self.inside(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(to.address)?;
            Ok(socket)
        })
    }
}

fn address_of(site: &Site) -> SocketAddr {
    let address = site.host.parse().unwrap_or(Ipv4Addr::UNSPECIFIED);
    (address, PORT).into()
}

/// What another thread has left is as good as ever, even if it panicked.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
