//! What the loop knows of how much relays have to do, and says of itself.

use std::time::Instant;

use ringlane_shared::id::PeerIndex;
use ringlane_shared::limits::{CIRCUIT_BYTES_PER_SECOND, OUTER_HEADER_BYTES_MAX};
use ringlane_shared::path::relay::{Load, RelayLoad, RelayView, ranked};
use ringlane_shared::wire::relay::RelayMessage;

use super::Control;
use crate::swarm::PeerKind;
use crate::udp_relay::Purpose;

impl Control {
    /// Measures what is forwarded here, and asks the relays there are. Cheap when nothing is due.
    pub(super) fn look_at_loads(&mut self, now: Instant) {
        let (carried, is_carrying) = self.node.carried();
        let meters = &mut self.udp_relay.meters;
        meters.is_busy = is_carrying || self.engine.forwards().next().is_some();
        meters.circuits.sample(carried, now);
        meters.lanes.resize(self.workers.counters.len(), Default::default());
        for (meter, worker) in meters.lanes.iter_mut().zip(&self.workers.counters) {
            let forwarded = &worker.forwarded;
            meter.sample(forwarded.bytes.get() + forwarded.datagrams.get() * OUTER_HEADER_BYTES_MAX as u64, now);
        }
        let is_due = self.udp_relay.loads.poll_timeout().is_some_and(|at| at <= now);
        if !is_due && self.udp_relay.asked_among == *self.node.relays() {
            return;
        }
        self.udp_relay.asked_among.clone_from(self.node.relays());
        // Whether or not they are full: those are asked again too. Hyprspace's nodes have no word for it.
        let relays = self.relays().filter(|(index, _)| {
            let peer = self.settings.peers.get(index.position());
            peer.is_some_and(|peer| self.node.kind(&peer.id) == Some(PeerKind::Ringlane))
        });
        let relays = ranked(relays.map(|(index, view)| (index, RelayView { load: None, ..view })));
        for relay in self.udp_relay.loads.look(&relays, now) {
            self.ask_relay(relay, Purpose::Load { relay }, &RelayMessage::AskLoad);
        }
        self.pass_on_loads();
    }

    /// A relay has answered, or not.
    pub(super) fn handle_load(&mut self, relay: PeerIndex, load: Option<RelayLoad>, now: Instant) {
        self.udp_relay.loads.handle_answer(relay, load, now);
        self.pass_on_loads();
    }

    fn pass_on_loads(&mut self) {
        for id in &self.udp_relay.asked_among {
            let load = self.coordinator.index_of(id).and_then(|index| self.udp_relay.loads.of(index));
            self.node.set_relay_load(id, load.map(|load| load.circuits));
        }
    }

    /// What we have to do as a relay, as this peer sees it, of which there may be only so much.
    pub(super) fn own_load(&self, peer: Option<PeerIndex>) -> RelayLoad {
        let meters = &self.udp_relay.meters;
        let busiest = meters.lanes.iter().map(|meter| meter.per_second()).max().unwrap_or_default();
        let id = peer.and_then(|peer| self.settings.peers.get(peer.position())).map(|peer| &peer.id);
        let lanes = self.engine.relayed_for_others().load(peer);
        // One thread passes on all circuits: what one may carry is not much less than what all can.
        let circuits = Load::of_rate(meters.circuits.per_second(), CIRCUIT_BYTES_PER_SECOND);
        RelayLoad {
            lanes: lanes.max(Load::of_rate(busiest, self.forward_rate())),
            circuits: self.node.circuits_load(id).max(circuits),
        }
    }
}
