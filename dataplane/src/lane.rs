//! The lanes one worker owns.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use ringlane_shared::id::{LaneIndex, LaneSerial, PeerIndex};
use ringlane_shared::lane::connection::LaneConnection;
use ringlane_shared::lane::rekey::Rekey;
use ringlane_shared::lane::seal::{Opener, Sealer, Sequence};
use ringlane_shared::plane::LaneGauges;

use crate::egress::push_back::PushBack;
use crate::outbound::TrainFill;
use crate::sys::ring::{SendBuffer, SocketSlot};
use crate::worker::carrier::Carriage;
use crate::worker::{LaneMovement, LanePath};

/// A send buffer, and what is in it.
pub(crate) struct Outgoing {
    pub(crate) buffer: SendBuffer,
    pub(crate) fill: TrainFill,
}

/// One lane, as its worker owns it.
pub(crate) struct Lane {
    pub(crate) serial: LaneSerial,
    pub(crate) peer: PeerIndex,
    pub(crate) index: LaneIndex,
    pub(crate) socket: SocketSlot,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) connection: LaneConnection,
    pub(crate) sealer: Sealer,
    pub(crate) opener: Opener,
    pub(crate) rekey: Rekey,
    /// How packets leave.
    pub(crate) carriage: Carriage,
    /// The largest record its path is known to carry, in bytes.
    pub(crate) record_bytes: usize,
    /// The number of the next packet that is cut.
    pub(crate) next_cut: u32,
    pub(crate) gauges: Arc<LaneGauges>,
    /// What is known of its path.
    pub(crate) path: LanePath,
    /// The other paths it could take.
    pub(crate) movement: LaneMovement,
    /// The records this turn is filling, if any.
    pub(crate) outgoing: Option<Outgoing>,
    /// The byte of DSCP and ECN in the outer headers of what it is filling.
    pub(crate) class: u8,
    /// Whether its device is the bottleneck.
    pub(crate) push_back: PushBack,
    /// The worker will come back to it at the end of the turn.
    pub(crate) is_filling: bool,
    /// Where the record stands that was opened last.
    pub(crate) newest: Sequence,
    /// When the QUIC connection wants to be driven next.
    pub(crate) deadline: Option<Instant>,
    /// The QUIC connection has been given datagrams since it was driven.
    pub(crate) has_quic_news: bool,
    /// The socket's last known total of dropped datagrams.
    pub(crate) overflow: u32,
}

impl Lane {
    /// How many bytes a record may have, or what travels in its stead, counted as if it were one.
    #[inline]
    pub(crate) fn record_bytes(&self) -> usize {
        self.carriage.record_bytes(self.record_bytes)
    }
}

/// All lanes of a worker: by socket slot for what arrives, by peer for what leaves.
#[derive(Default)]
pub(crate) struct Lanes {
    by_slot: Vec<Option<Lane>>,
    by_peer: Vec<Vec<SocketSlot>>,
    /// Of each peer.
    for_flows: Vec<ForFlows>,
    count: usize,
}

/// What flows may take of one peer's lanes.
#[derive(Default)]
struct ForFlows {
    /// None where they are avoided, else those that are not silent, else all.
    slots: Vec<SocketSlot>,
    is_avoided: bool,
}

impl Lanes {
    /// The lane that owns a socket slot of this very generation.
    pub(crate) fn get_mut(&mut self, slot: SocketSlot) -> Option<&mut Lane> {
        self.by_slot.get_mut(slot.position())?.as_mut().filter(|lane| lane.socket == slot)
    }

    /// The same, to be looked at.
    pub(crate) fn get(&self, slot: SocketSlot) -> Option<&Lane> {
        self.by_slot.get(slot.position())?.as_ref().filter(|lane| lane.socket == slot)
    }

    /// The slots of all lanes to a peer.
    pub(crate) fn of_peer(&self, peer: PeerIndex) -> &[SocketSlot] {
        self.by_peer.get(peer.position()).map(Vec::as_slice).unwrap_or_default()
    }

    /// The lane that carries a flow to a peer: always the same one while the worker's lanes to it stay the same.
    pub(crate) fn for_flow(&self, peer: PeerIndex, flow_hash: u32) -> Option<SocketSlot> {
        match self.for_flows.get(peer.position())?.slots.as_slice() {
            [] => None,
            [slot] => Some(*slot),
            // The low bits chose the worker where there was a choice; the high ones choose here.
            slots => Some(slots[(flow_hash >> 16) as usize % slots.len()]),
        }
    }

    /// Whether no flow is to take a lane to this peer. Returns whether that is news.
    pub(crate) fn set_avoided(&mut self, peer: PeerIndex, is_avoided: bool) -> bool {
        // Hundreds may be avoided, and each snapshot asks this of every peer.
        let was_avoided = self.for_flows.get(peer.position()).is_some_and(|of_peer| of_peer.is_avoided);
        if was_avoided == is_avoided {
            return false;
        }
        self.of_flows_mut(peer).is_avoided = is_avoided;
        self.let_flow(peer);
        true
    }

    fn of_flows_mut(&mut self, peer: PeerIndex) -> &mut ForFlows {
        if self.for_flows.len() <= peer.position() {
            self.for_flows.resize_with(peer.position() + 1, ForFlows::default);
        }
        &mut self.for_flows[peer.position()]
    }

    fn let_flow(&mut self, peer: PeerIndex) {
        let ForFlows { mut slots, is_avoided } = std::mem::take(self.of_flows_mut(peer));
        slots.clear();
        if !is_avoided {
            self.choose_for_flows(peer, &mut slots);
        }
        *self.of_flows_mut(peer) = ForFlows { slots, is_avoided };
    }

    fn choose_for_flows(&self, peer: PeerIndex, slots: &mut Vec<SocketSlot>) {
        let all = self.of_peer(peer);
        let is_silent = |slot: &SocketSlot| {
            let lane = self.by_slot.get(slot.position()).and_then(Option::as_ref);
            lane.is_some_and(|lane| lane.gauges.is_silent())
        };
        slots.extend(all.iter().filter(|slot| !is_silent(slot)));
        if slots.is_empty() {
            slots.extend(all);
        }
    }

    /// A lane to this peer has fallen silent, or was heard again.
    pub(crate) fn handle_silence(&mut self, peer: PeerIndex) {
        self.let_flow(peer);
    }

    /// How many lanes there are.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// Takes in a lane; its slot is free.
    pub(crate) fn insert(&mut self, lane: Lane) {
        let (slot, peer) = (lane.socket, lane.peer);
        if self.by_slot.len() <= slot.position() {
            self.by_slot.resize_with(slot.position() + 1, || None);
        }
        if self.by_peer.len() <= peer.position() {
            self.by_peer.resize_with(peer.position() + 1, Vec::new);
        }
        self.by_slot[slot.position()] = Some(lane);
        let by_slot = &self.by_slot;
        let of_peer = &mut self.by_peer[peer.position()];
        of_peer.push(slot);
        // By lane index, so that a flow's lane does not depend on the order in which the lanes came up.
        of_peer.sort_by_key(|slot| by_slot[slot.position()].as_ref().map(|lane| lane.index));
        self.let_flow(peer);
        self.count += 1;
    }

    /// Takes a lane out.
    pub(crate) fn remove(&mut self, slot: SocketSlot) -> Option<Lane> {
        self.get_mut(slot)?;
        let lane = self.by_slot[slot.position()].take()?;
        if let Some(of_peer) = self.by_peer.get_mut(lane.peer.position()) {
            of_peer.retain(|other| *other != slot);
        }
        self.let_flow(lane.peer);
        self.count -= 1;
        Some(lane)
    }

    /// The slot of the lane with this serial.
    pub(crate) fn find(&self, serial: LaneSerial) -> Option<SocketSlot> {
        self.by_slot.iter().flatten().find(|lane| lane.serial == serial).map(|lane| lane.socket)
    }

    /// When the first of the QUIC connections wants to be driven.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.by_slot.iter().flatten().filter_map(|lane| lane.deadline).min()
    }

    /// The slots of all lanes that have to be driven now.
    pub(crate) fn due(&self, now: Instant, due: &mut Vec<SocketSlot>) {
        let lanes = self.by_slot.iter().flatten();
        let is_due = |lane: &&Lane| lane.has_quic_news || lane.deadline.is_some_and(|deadline| deadline <= now);
        due.extend(lanes.filter(is_due).map(|lane| lane.socket));
    }

    /// All lanes.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Lane> {
        self.by_slot.iter().flatten()
    }

    /// The slots of all lanes.
    pub(crate) fn slots(&self) -> Vec<SocketSlot> {
        self.by_slot.iter().flatten().map(|lane| lane.socket).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whether_a_peers_lanes_are_avoided_is_news_once_and_no_others_matter() {
        let mut lanes = Lanes::default();
        let peers = || (0..600).map(PeerIndex);
        assert!(peers().all(|peer| !lanes.set_avoided(peer, false)));
        assert!(peers().step_by(2).all(|peer| lanes.set_avoided(peer, true)));
        assert!(peers().all(|peer| lanes.set_avoided(peer, true) == (peer.0 % 2 == 1)));
        assert!(peers().all(|peer| lanes.for_flow(peer, 0).is_none()));
        assert!(peers().all(|peer| lanes.set_avoided(peer, false) && !lanes.set_avoided(peer, false)));
    }
}
