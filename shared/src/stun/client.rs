//! Asks STUN servers what they see of our lane ports: a state machine without socket and clock.
//!
//! [`Client::set_hosts`] says which addresses of ours ask whom; [`Client::handle_timeout`] and [`Client::poll_transmit`] are to
//! be called when [`Client::poll_timeout`] says so, [`Client::handle`] with what comes back. An answer counts only if it came to
//! the port that asked, from where it must come, with the 96 random bits of its question.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use super::host::{Host, scope_of};
use super::message::{Failure, Message, TransactionId};
use super::nat::{HostView, Scope};
use crate::bucket::Bucket;
use crate::id::PeerIndex;
use crate::limits::{STUN_HOSTS_MAX, STUN_PORTS_MAX, STUN_REQUESTS_BURST, STUN_REQUESTS_PER_SECOND, STUN_TARGETS_MAX};
use crate::path::candidate::{AddressPolicy, OwnCandidate};
use crate::wire::offer::CandidateKind;

/// A server that can be asked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Target {
    /// Its address, and its first port.
    pub address: SocketAddr,
    /// How many ports in a row it answers at: worker i asks the i-th of them, as lanes do. At least 1.
    pub ports: u8,
    /// How far away it is.
    pub scope: Scope,
    /// Whether it is a configured peer, which wants questions as long as its answers.
    pub is_peer: bool,
    /// Which of the peers, or of the configured servers: whoever answers at several addresses is still one.
    pub party: u16,
    /// Whether nothing else has been sent to its other ports from ours: only then its answers from there tell of filtering.
    pub tests_filtering: bool,
}

impl Target {
    /// An address of the configured server of this number, of one port.
    pub fn server(address: SocketAddr, party: u16) -> Self {
        Self { address, ports: 1, scope: scope_of(address.ip()), is_peer: false, party, tests_filtering: true }
    }

    /// An address of a peer with so many workers, of which we have `ours`.
    pub fn peer(address: SocketAddr, peer: PeerIndex, workers: u8, ours: u8) -> Self {
        // With as many workers, lane i goes from port i to port i.
        let (ports, tests_filtering) = (workers.max(1), workers == ours);
        Self { address, ports, scope: scope_of(address.ip()), is_peer: true, party: peer.0, tests_filtering }
    }

    /// The same on a network that we are connected to.
    pub fn nearby(self) -> Self {
        Self { scope: Scope::Neighbours, ..self }
    }

    pub(super) fn address_for(&self, worker: u8) -> SocketAddr {
        let mut address = self.address;
        address.set_port(address.port().saturating_add(u16::from(worker % self.ports.max(1))));
        address
    }

    /// Whether both are answered by one.
    pub(super) fn is_same_party(&self, other: &Self) -> bool {
        (self.is_peer, self.party) == (other.is_peer, other.party)
    }

    /// Whether it may be able to answer from elsewhere.
    pub(super) fn can_change(&self) -> bool {
        !self.is_peer || self.ports > 1
    }
}

/// A datagram to send.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Transmit {
    /// From which address and port of ours.
    pub local: SocketAddr,
    /// Where to.
    pub to: SocketAddr,
    /// All of it.
    pub bytes: Vec<u8>,
}

/// What the client did. Only grows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ClientCounters {
    /// Requests sent, repetitions included.
    pub requests: u64,
    /// Answers to them.
    pub answers: u64,
    /// Refusals among these.
    pub refusals: u64,
    /// Messages that answer no question of ours: late, forged, or malformed.
    pub unasked: u64,
    /// Mappings that turned out to be others than they were.
    pub mappings_changed: u64,
}

/// Draws transaction ids; they must not be guessable.
pub type DrawId = Box<dyn FnMut() -> TransactionId + Send>;

/// All addresses of ours. Owner: control.
pub struct Client {
    draw: DrawId,
    first_port: u16,
    ports: u8,
    policy: Arc<AddressPolicy>,
    hosts: BTreeMap<IpAddr, Host>,
    bucket: Bucket,
    has_changed: bool,
    counters: ClientCounters,
}

impl Client {
    /// A client of a node whose worker i has port `first_port + i`.
    pub fn new(first_port: u16, workers: u8, draw: DrawId, now: Instant) -> Self {
        Self {
            draw,
            first_port,
            ports: workers.clamp(1, STUN_PORTS_MAX as u8),
            policy: Arc::default(),
            hosts: BTreeMap::new(),
            bucket: Bucket::new(STUN_REQUESTS_BURST, STUN_REQUESTS_PER_SECOND, now),
            has_changed: false,
            counters: ClientCounters::default(),
        }
    }

    /// Where the questions may go that servers' answers lead to; to begin with, wherever a lane may by default.
    pub fn set_policy(&mut self, policy: &AddressPolicy) {
        self.policy = Arc::new(policy.clone());
        self.hosts.values_mut().for_each(|host| host.policy = Arc::clone(&self.policy));
    }

    /// Our addresses, and whom each can ask: the first [`STUN_HOSTS_MAX`] and [`STUN_TARGETS_MAX`] count, and only targets of
    /// the address's family. What is known of those that stay is kept.
    pub fn set_hosts(&mut self, hosts: &[(IpAddr, Vec<Target>)], now: Instant) {
        let hosts = &hosts[..hosts.len().min(STUN_HOSTS_MAX)];
        let before = self.hosts.len();
        self.hosts.retain(|local, _| hosts.iter().any(|(wanted, _)| wanted == local));
        self.has_changed |= before != self.hosts.len();
        for (local, targets) in hosts {
            let fits = |target: &&Target| target.address.is_ipv4() == local.is_ipv4() && target.address.port() != 0;
            let targets: Vec<_> = targets.iter().filter(fits).take(STUN_TARGETS_MAX).copied().collect();
            let new = || Host::new(*local, self.first_port, self.ports, Arc::clone(&self.policy));
            let host = self.hosts.entry(*local).or_insert_with(new);
            host.set_targets(&targets, now, &mut self.draw);
        }
    }

    /// Asks everybody at once, thoroughly: the network is another.
    pub fn ask_anew(&mut self, now: Instant) {
        self.hosts.values_mut().for_each(|host| host.ask_anew(now));
    }

    /// When to call [`Self::handle_timeout`] and [`Self::poll_transmit`] next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let due = self.hosts.values().filter_map(Host::poll_timeout).min()?;
        // What is due waits for its turn.
        Some(self.bucket.ready_at().map_or(due, |ready| ready.max(due)))
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        for host in self.hosts.values_mut() {
            host.handle_timeout(now, &mut self.draw);
        }
        self.take_news();
    }

    /// The next datagram to send now.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Transmit> {
        let mut bucket = self.bucket;
        if !bucket.take(now) {
            return None;
        }
        let transmit = self.hosts.values_mut().find_map(|host| host.poll_transmit(now))?;
        self.bucket = bucket;
        self.counters.requests += 1;
        Some(transmit)
    }

    /// Takes in a message that is no request.
    pub fn handle(&mut self, local: SocketAddr, from: SocketAddr, datagram: &[u8], now: Instant) {
        let answer = match Message::parse(datagram) {
            Ok(Message::Success(success)) if is_mapped(success.mapped, local) => Some((success.id, Some(success))),
            Ok(Message::Failure(Failure { id, .. })) => Some((id, None)),
            _ => None,
        };
        let host = self.hosts.get_mut(&local.ip());
        let asked = answer.zip(host).filter(|((id, _), host)| host.asked(*id, local.port(), from));
        let Some(((id, success), host)) = asked else {
            self.counters.unasked += 1;
            return;
        };
        self.counters.answers += 1;
        self.counters.refusals += u64::from(success.is_none());
        host.handle_answer(id, success, now, &mut self.draw);
        self.take_news();
    }

    /// Takes in a request. Returns whether it is one of our own, which a NAT has led back to us: it wants no answer.
    pub fn handle_own(&mut self, local: SocketAddr, datagram: &[u8], now: Instant) -> bool {
        let Some(host) = self.hosts.get_mut(&local.ip()) else { return false };
        let is_own = TransactionId::of_datagram(datagram)
            .is_some_and(|id| host.handle_own(id, local.port(), now, &mut self.draw));
        if is_own {
            self.take_news();
        }
        is_own
    }

    /// Whether anything that [`Self::views`] or [`Self::candidates`] say is other than when this was last asked.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.has_changed)
    }

    /// What is known of each address.
    pub fn views(&self) -> impl Iterator<Item = &HostView> {
        self.hosts.values().map(Host::view)
    }

    /// What others see of our lane ports, where that is not the port itself; each once. Where the mapping depends on the
    /// destination, a candidate is what the best server sees.
    pub fn candidates(&self) -> Vec<OwnCandidate> {
        let mut candidates = Vec::new();
        for view in self.views().filter(|view| view.is_translated == Some(true)) {
            for port in &view.ports {
                let Some(address) = port.mapped else { continue };
                let candidate = OwnCandidate { worker: port.worker, kind: CandidateKind::ServerReflexive, address };
                if address != SocketAddr::new(view.local, port.local_port) && !candidates.contains(&candidate) {
                    candidates.push(candidate);
                }
            }
        }
        candidates
    }

    /// What the client did.
    pub fn counters(&self) -> ClientCounters {
        self.counters
    }

    fn take_news(&mut self) {
        for host in self.hosts.values_mut() {
            let news = std::mem::take(&mut host.news);
            self.has_changed |= news.is_changed;
            self.counters.mappings_changed += news.mappings_changed;
        }
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("hosts", &self.hosts.len()).finish_non_exhaustive()
    }
}

/// Whether an address can be what somebody sees of ours.
fn is_mapped(mapped: SocketAddr, local: SocketAddr) -> bool {
    let ip = mapped.ip();
    mapped.port() != 0
        && mapped.is_ipv4() == local.is_ipv4()
        && !ip.is_unspecified()
        && !ip.is_multicast()
        && (!ip.is_loopback() || local.ip().is_loopback())
}
