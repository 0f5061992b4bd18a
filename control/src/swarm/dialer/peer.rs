//! What is known of one peer, and what of it the next dial takes.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use ringlane_shared::limits::{
    CIRCUITS_DIALED_MAX, DIALED_ADDRESSES_MAX, DIALS_PER_PEER_MAX, KNOWN_ADDRESSES_PER_PEER_MAX,
};

use super::pace::{PAUSE_MIN, Schedule};
use super::{Better, Source};
use crate::swarm::address;
use crate::swarm::connections::TransportName;

/// Between two dials of one peer that are brought forward by what somebody told. Some of it anybody can tell, and as
/// often as it likes, of addresses that are not the peer's at all.
pub(super) const PROMPT_SPACING: Duration = Duration::from_secs(3);

/// How long the first direct dial of a peer may take before relays are tried too: a direct connection is worth waiting a
/// moment for.
pub(super) const DIRECT_HEAD_START: Duration = Duration::from_millis(200);

/// One dial in this many goes to an address where a stranger answered before.
const STRANGER_EVERY: u32 = 4;

/// One peer: what is known of where it is, and when it is dialled.
pub(super) struct Peer {
    pub(super) addresses: Vec<Known>,
    pub(super) connected_since: Option<Instant>,
    /// A further connection is wanted.
    pub(super) is_sought: bool,
    /// When that began last.
    pub(super) sought_at: Option<Instant>,
    /// A TCP connection is wanted.
    pub(super) is_tcp_sought: bool,
    /// A better connection is wanted.
    pub(super) better_sought: Option<Better>,
    /// Dials at its own addresses.
    pub(super) direct: Schedule,
    /// Dials through relays.
    pub(super) circuits: Schedule,
    /// Of the relays there are, those that such dials in vain took; who was taken last has the largest number.
    relays_tried: BTreeMap<Multiaddr, u64>,
    /// The last dial that was brought forward.
    prompted: Option<Instant>,
}

/// An address of a peer.
pub(super) struct Known {
    pub(super) address: Multiaddr,
    pub(super) source: Source,
    last_dialed: Option<Instant>,
    pub(super) last_success: Option<Instant>,
    /// Another node answered there. Dialled only alone: the first answer decides a dial, and a stranger's would hide
    /// the peer at its other addresses.
    pub(super) answered_by_stranger: bool,
}

impl Peer {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            addresses: Vec::new(),
            connected_since: None,
            is_sought: false,
            sought_at: None,
            is_tcp_sought: false,
            better_sought: None,
            direct: Schedule::new(now),
            circuits: Schedule::new(now),
            relays_tried: BTreeMap::new(),
            prompted: None,
        }
    }

    fn is_looked_for(&self) -> bool {
        self.connected_since.is_none() || self.is_sought || self.is_tcp_sought || self.better_sought.is_some()
    }

    /// Whether an address of its own is of any use now.
    fn wants(&self, address: &Multiaddr) -> bool {
        if address::is_circuit(address) {
            return false;
        }
        let is_better = match self.better_sought {
            None => false,
            Some(Better::Direct) => true,
            Some(Better::Plain) => !is_web(address),
            Some(Better::Unproxied) => !is_tcp(address),
        };
        self.connected_since.is_none() || self.is_sought || self.is_tcp_sought && is_tcp(address) || is_better
    }

    /// When it is dialled next at its own addresses.
    pub(super) fn direct_due(&self) -> Option<Instant> {
        let may_be = self.is_looked_for() && self.direct.under_way < DIALS_PER_PEER_MAX;
        let wanted = may_be && self.addresses.iter().any(|known| self.wants(&known.address));
        wanted.then_some(self.direct.next)
    }

    /// When it is dialled next through relays: not before it could have answered a first direct dial.
    pub(super) fn circuits_due(&self, peer: &PeerId, relays: &[Multiaddr]) -> Option<Instant> {
        let is_looked_for = self.connected_since.is_none() || self.is_sought;
        if !is_looked_for || self.circuits.under_way >= DIALS_PER_PEER_MAX {
            return None;
        }
        let may_be_behind = relays.iter().any(|relay| !leads_by(relay, peer))
            || self.addresses.iter().any(|known| address::is_circuit(&known.address));
        let is_first = self.connected_since.is_none() && self.direct.in_vain == 0 && self.direct_due().is_some();
        let head_start = if is_first { DIRECT_HEAD_START } else { Duration::ZERO };
        may_be_behind.then_some(self.circuits.next + head_start)
    }

    /// Brings the next dials forward, if the peer is looked for and the last one that was is long enough ago.
    pub(super) fn prompt(&mut self, now: Instant) {
        let soon = now + PAUSE_MIN;
        let at = self.prompted.map_or(soon, |last| soon.max(last + PROMPT_SPACING));
        if self.is_looked_for() && at < self.direct.next.max(self.circuits.next) {
            self.direct.next = self.direct.next.min(at);
            self.circuits.next = self.circuits.next.min(at);
            self.prompted = Some(at);
        }
    }

    /// There is a relay more that it could be behind.
    pub(super) fn prompt_circuits(&mut self, now: Instant) {
        self.circuits.next = self.circuits.next.min(now + PAUSE_MIN / 4);
    }

    /// Stores an address; whether it was unknown.
    pub(super) fn learn(&mut self, address: Multiaddr, source: Source) -> bool {
        if let Some(known) = self.addresses.iter_mut().find(|known| known.address == address) {
            known.source = known.source.max(source);
            return false;
        }
        if self.addresses.len() >= KNOWN_ADDRESSES_PER_PEER_MAX && !self.forget_one(source) {
            return false;
        }
        self.addresses.push(Known {
            address,
            source,
            last_dialed: None,
            last_success: None,
            answered_by_stranger: false,
        });
        true
    }

    /// Makes room for an address from `source` by forgetting the one that is worth least: the least trustworthy, of
    /// those the one that worked longest ago or never. Whether there was one not worth more than the new one.
    fn forget_one(&mut self, source: Source) -> bool {
        let worth = |known: &Known| (known.source, known.last_success);
        let least = self
            .addresses
            .iter()
            .enumerate()
            .filter(|(_, known)| known.source < Source::Configured && known.source <= source)
            .min_by_key(|(_, known)| worth(known));
        let Some((position, _)) = least else { return false };
        self.addresses.remove(position);
        true
    }

    /// The circuits of the next dial.
    pub(super) fn choose_circuits(&mut self, peer: &PeerId, relays: &[Multiaddr], now: Instant) -> Vec<Multiaddr> {
        let mut own: Vec<_> = self.addresses.iter_mut().filter(|known| address::is_circuit(&known.address)).collect();
        own.sort_by_key(|known| known.last_dialed);
        let mut circuits: Vec<Multiaddr> = Vec::new();
        for known in own.into_iter().take(CIRCUITS_DIALED_MAX / 2) {
            known.last_dialed = Some(now);
            circuits.push(known.address.clone());
        }
        // Of more relays than there is room for, all have their turn, however often their ranks change; then the best again.
        let in_vain = u64::from(self.circuits.in_vain);
        self.relays_tried.retain(|relay, _| in_vain > 0 && relays.contains(relay));
        let mut others: Vec<_> =
            relays.iter().filter(|relay| !leads_by(relay, peer) && !circuits.contains(relay)).collect();
        others.sort_by_key(|relay| self.relays_tried.get(*relay).copied());
        for relay in others.into_iter().take(CIRCUITS_DIALED_MAX - circuits.len()) {
            let taken = in_vain * CIRCUITS_DIALED_MAX as u64 + circuits.len() as u64;
            self.relays_tried.insert(relay.clone(), taken);
            circuits.push(relay.clone());
        }
        circuits
    }

    /// The addresses of the next dial, best first: the last that worked, then those that waited longest.
    pub(super) fn choose(&mut self, now: Instant) -> Vec<Multiaddr> {
        let wanted: Vec<bool> = self.addresses.iter().map(|known| self.wants(&known.address)).collect();
        let known = self.addresses.iter_mut().zip(wanted);
        let candidates = known.filter(|(_, wanted)| *wanted).map(|(known, _)| known);
        let (mut strangers, mut usable): (Vec<_>, Vec<_>) = candidates.partition(|known| known.answered_by_stranger);
        let alone = usable.is_empty() || self.direct.in_vain % STRANGER_EVERY == STRANGER_EVERY - 1;
        let mut chosen: Vec<&mut Known> = Vec::new();
        if alone && !strangers.is_empty() {
            strangers.sort_by_key(|known| known.last_dialed);
            chosen.extend(strangers.into_iter().take(1));
        } else {
            usable.sort_by_key(|known| Reverse(known.last_success));
            let proven = usable.iter().take(DIALED_ADDRESSES_MAX / 2).filter(|known| known.last_success.is_some());
            let mut waiting = usable.split_off(proven.count());
            waiting.sort_by_key(|known| (known.last_dialed, is_web(&known.address), Reverse(known.source)));
            chosen.extend(usable.into_iter().chain(waiting).take(DIALED_ADDRESSES_MAX));
        }
        let dialed = chosen.into_iter().map(|known| {
            known.last_dialed = Some(now);
            known.address.clone()
        });
        dialed.collect()
    }
}

/// Whether a circuit leads through this relay.
fn leads_by(circuit: &Multiaddr, relay: &PeerId) -> bool {
    address::circuit(circuit).is_some_and(|circuit| circuit.relay == *relay)
}

fn is_web(address: &Multiaddr) -> bool {
    address::transport_of(address).is_some_and(TransportName::is_web)
}

/// Whether TCP is below it.
pub(super) fn is_tcp(address: &Multiaddr) -> bool {
    address.iter().any(|part| matches!(part, Protocol::Tcp(_)))
}
