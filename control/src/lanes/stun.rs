//! STUN on the lanes' ports: peers' requests are answered from the listeners, and our own leave from them.
//!
//! A request or answer of a lane's own peer comes to the lane's connected socket. Its worker takes it for a stray and gives it
//! to control, a bounded number per second, which deals with it as if it had come to the listener; the lane does not notice.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use ringlane_shared::path::candidate::{AddressPolicy, OwnCandidate};
use ringlane_shared::stun::client::{Client, ClientCounters, Target};
use ringlane_shared::stun::message::TransactionId;
use ringlane_shared::stun::nat::HostView;
use ringlane_shared::stun::server::{Server, ServerCounters};

use super::drops::ListenerDrop;
use super::engine::{LaneEngine, LaneOutcome};
use super::handshake::Path;
use super::socket;

/// Datagrams of ours that leave before everybody else has a turn.
const TRANSMITS_PER_TURN: usize = 32;

/// Both ends of STUN. Owner: control.
#[derive(Debug)]
pub(super) struct Stun {
    server: Server,
    client: Client,
}

impl Stun {
    pub(super) fn new(port: u16, workers: u8, policy: &AddressPolicy, now: Instant) -> Self {
        let mut client = Client::new(port, workers, Box::new(draw), now);
        client.set_policy(policy);
        Self { server: Server::new(now), client }
    }

    /// Where no lane may go, no question goes either.
    pub(super) fn set_policy(&mut self, policy: &AddressPolicy) {
        self.client.set_policy(policy);
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.client.poll_timeout()
    }
}

/// Ids that nobody guesses.
fn draw() -> TransactionId {
    let mut bytes = [0; 12];
    // Without random numbers no handshake succeeds either; a guessable id only lets somebody lie about a NAT.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    TransactionId(bytes)
}

impl LaneEngine {
    /// Whom to ask from each of our addresses, and whom to answer.
    pub fn set_stun(&mut self, hosts: &[(IpAddr, Vec<Target>)], sources: &BTreeSet<IpAddr>, now: Instant) {
        // Where no lane may go, no question goes either.
        let admitted: Vec<(IpAddr, Vec<Target>)> = hosts
            .iter()
            .map(|(local, targets)| {
                let is_admitted = |target: &&Target| !self.policy.pairs(&[*local], [target.address]).is_empty();
                (*local, targets.iter().filter(is_admitted).copied().collect())
            })
            .collect();
        self.stun.client.set_hosts(&admitted, now);
        self.stun.server.set_sources(sources, now);
        self.tell_stun_news();
    }

    /// The network is another: asks everybody at once.
    pub fn ask_stun_anew(&mut self, now: Instant) {
        self.stun.client.ask_anew(now);
    }

    /// Addresses that we listen at.
    pub fn local_ips(&self) -> &[IpAddr] {
        self.listeners.ips()
    }

    /// What is known of the NAT before each of our addresses.
    pub fn nat_views(&self) -> impl Iterator<Item = &HostView> {
        self.stun.client.views()
    }

    /// What others see of our lane ports.
    pub fn reflexive_candidates(&self) -> Vec<OwnCandidate> {
        self.stun.client.candidates()
    }

    /// What STUN did.
    pub fn stun_counters(&self) -> (ClientCounters, ServerCounters) {
        (self.stun.client.counters(), self.stun.server.counters)
    }

    /// A message that came to one of our ports, by a listener or a worker.
    pub(super) fn handle_stun(&mut self, path: Path, datagram: &[u8], now: Instant) -> Result<(), ListenerDrop> {
        let Path { local, remote } = path;
        if !is_request(datagram) {
            let before = self.stun.client.counters().answers;
            self.stun.client.handle(local, remote, datagram, now);
            self.tell_stun_news();
            let counts = self.stun.client.counters().answers > before;
            return if counts { Ok(()) } else { Err(ListenerDrop::Unrecognised) };
        }
        if self.stun.client.handle_own(local, datagram, now) {
            self.tell_stun_news();
            return Ok(());
        }
        if self.policy.pairs(&[local.ip()], [remote]).is_empty() {
            return Err(ListenerDrop::Unrecognised);
        }
        let other = self.other_port(local);
        let reply = self.stun.server.handle(datagram, local, remote, other, now).ok_or(ListenerDrop::Unrecognised)?;
        if let Some(listener) = self.listeners.get(reply.local) {
            socket::send_to(listener, remote, &reply.bytes);
        }
        Ok(())
    }

    /// Asks what is due.
    pub(super) fn ask_stun(&mut self, now: Instant) {
        if self.stun.poll_timeout().is_none_or(|at| at > now) {
            return;
        }
        self.stun.client.handle_timeout(now);
        for _ in 0..TRANSMITS_PER_TURN {
            let Some(transmit) = self.stun.client.poll_transmit(now) else { break };
            if let Some(listener) = self.listeners.get(transmit.local) {
                socket::send_to(listener, transmit.to, &transmit.bytes);
            }
        }
        self.tell_stun_news();
    }

    fn tell_stun_news(&mut self) {
        if self.stun.client.take_changed() {
            let is_told = |outcome: &LaneOutcome| matches!(outcome, LaneOutcome::NatChanged);
            if !self.outcomes.iter().any(is_told) {
                self.outcomes.push_back(LaneOutcome::NatChanged);
            }
        }
    }

    /// The next worker's port at the same address, if there is another.
    fn other_port(&self, local: SocketAddr) -> Option<SocketAddr> {
        let same: Vec<_> = self.listeners.locals().filter(|other| other.ip() == local.ip()).collect();
        let position = same.iter().position(|other| *other == local)?;
        same.get((position + 1) % same.len()).copied().filter(|other| *other != local)
    }
}

/// RFC 8489, section 5: neither of the two class bits is set.
fn is_request(datagram: &[u8]) -> bool {
    matches!(datagram, [high, low, ..] if high & 0x01 == 0 && low & 0x10 == 0)
}
