//! What the loop does about lanes relayed at the speed of UDP: for us, and by us.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use libp2p::PeerId;
use ringlane_shared::bucket::ByteRate;
use ringlane_shared::id::{PeerIndex, WorkerId};
use ringlane_shared::limits::{ALLOTMENT_SECONDS, RELAY_ADDRESSES_MAX};
use ringlane_shared::path::candidate::is_private;
use ringlane_shared::path::relay::{RelayView, ranked};
use ringlane_shared::plane::PlaneCommand;
use ringlane_shared::wire::offer::LaneSet;
use ringlane_shared::wire::relay::{Allotment, AllotmentId, RelayAddress, RelayMessage, RelayRefusal, RelayedLane};
use tracing::{debug, info};

use super::Control;
use super::start::random;
use crate::portmap::PortMapper;
use crate::swarm::{ConnectionId, InboundStream, PeerKind};
use crate::udp_relay::asker::{AskerStep, LinkView};
use crate::udp_relay::{PROTOCOL, Progress, Purpose, bytes_of};

/// Bytes per second of a megabit per second.
const MBIT: u64 = 125_000;
/// What may be forwarded at once: so many milliseconds of the rate, and a few trains at least.
const BURST_MS: u64 = 8;
const BURST_MIN: u64 = 256 << 10;

impl Control {
    /// Tells the engine and the workers how much they may forward.
    pub(super) fn limit_forwards(&mut self) {
        let per_second = self.forward_rate();
        let rate = ByteRate { per_second, burst: (per_second * BURST_MS / 1000).max(BURST_MIN) };
        self.engine.set_forward_rate(rate);
        for commands in &self.workers.commands {
            // A worker that takes no orders at its start will not take the next one either, which says so.
            let _ = commands.try_send(PlaneCommand::LimitForwards(rate));
        }
    }

    /// Bytes per second that one worker may forward.
    pub(super) fn forward_rate(&self) -> u64 {
        u64::from(self.settings.relay.rate_mbit) * MBIT / self.workers.commands.len().max(1) as u64
    }

    /// Looks whether lanes need a relay, or need it no more. Cheap when it did so a moment ago.
    pub(super) fn look_at_relayed_lanes(&mut self, now: Instant) {
        if !self.udp_relay.takes_look(now) {
            return;
        }
        self.look_at_loads(now);
        let views: Vec<LinkView> = self.link_views();
        let needs_nothing = |view: &LinkView| {
            view.missing.is_empty() && view.silent.is_empty() && view.relayed.is_empty() && view.passages.is_empty()
        };
        let relays = match self.udp_relay.asker.is_idle() && views.iter().all(needs_nothing) {
            true => Vec::new(),
            false => self.relays_by_preference(),
        };
        self.udp_relay.asker.look(&views, &relays, now);
        while let Some(step) = self.udp_relay.asker.poll_step() {
            self.carry_out_relaying(step);
        }
        self.udp_relay.looked(now);
    }

    fn link_views(&self) -> Vec<LinkView> {
        let peers = self.settings.peers.iter().zip(0..).map(|(peer, index)| (PeerIndex(index), peer));
        let views = peers.filter_map(|(index, peer)| {
            let link = self.coordinator.link(index)?;
            // Lanes that stand need no connection, and neither does it take one to have them relayed.
            let is_linked = link.lanes().next().is_some()
                || (link.is_connected() && self.node.kind(&peer.id) == Some(PeerKind::Ringlane));
            let is_ours = is_linked && self.stream_only(index).is_none();
            is_ours.then(|| {
                let mut relayed = BTreeMap::<PeerIndex, LaneSet>::new();
                for (lane, relay) in link.lanes().filter_map(|(lane, up)| Some((lane, self.engine.relay_of(up.local)?)))
                {
                    relayed.entry(relay).or_default().0 |= 1 << lane.get();
                }
                let silent = link.lanes().filter(|(_, up)| up.gauges.is_silent()).map(|(lane, _)| lane).collect();
                let passages = self.engine.passages_to(index);
                LinkView {
                    peer: index,
                    is_client: !link.is_server(),
                    all: link.expected(),
                    missing: link.lacking(),
                    silent,
                    relayed,
                    passages,
                }
            })
        });
        views.collect()
    }

    /// Connected peers that offer to be relays, those first that are to be asked first.
    fn relays_by_preference(&self) -> Vec<PeerIndex> {
        ranked(self.relays())
    }

    /// Connected peers that offer to be relays.
    pub(super) fn relays(&self) -> impl Iterator<Item = (PeerIndex, RelayView)> {
        let preferred = &self.settings.relay.preferred;
        self.node.relays().iter().filter_map(move |id| {
            let index = self.coordinator.index_of(id)?;
            let (_, rtt) = self.direct_connection(id)?;
            let place = preferred.iter().position(|preferred| preferred == id).map(|place| place as u16);
            let load = self.udp_relay.loads.of(index).map(|load| load.lanes);
            Some((index, RelayView { preferred: place, refusals: 0, rtt, load }))
        })
    }

    pub(super) fn direct_connection(&self, id: &PeerId) -> Option<(ConnectionId, Option<Duration>)> {
        let direct = self.node.connections(id).filter(|connection| !connection.relayed);
        direct.last().map(|connection| (connection.id, connection.rtt))
    }

    fn carry_out_relaying(&mut self, step: AskerStep) {
        match step {
            AskerStep::Allocate { relay, peer, lanes } => {
                let Some(other) = self.settings.peers.get(peer.position()).map(|peer| peer.id) else { return };
                debug!(peer = self.name(peer), relay = self.name(relay), "asking for lanes to be relayed");
                let message = RelayMessage::Allocate { other, lanes };
                self.ask_relay(relay, Purpose::Allocate { peer, relay }, &message);
            }
            AskerStep::Renew { relay, peer, id } => {
                self.ask_relay(relay, Purpose::Renew { peer, relay, id }, &RelayMessage::Renew(id));
            }
            AskerStep::Release { relay, peer, id } => {
                self.engine.remove_passages(peer, relay);
                self.ask_relay(relay, Purpose::Release, &RelayMessage::Release(id));
            }
        }
    }

    /// Asks a relay, or as one the other end, on a stream.
    pub(super) fn ask_relay(&mut self, whom: PeerIndex, purpose: Purpose, message: &RelayMessage) {
        let id = self.settings.peers.get(whom.position()).map(|peer| peer.id);
        let connection = id.and_then(|id| Some(self.node.best_connection(&id)?.id));
        match (connection, bytes_of(message)) {
            (Some(connection), Some(question)) => {
                let open = self.node.open_stream(connection, vec![PROTOCOL]);
                self.udp_relay.handle_opening(open, purpose, question);
            }
            _ => self.udp_relay.fail(purpose),
        }
    }

    pub(super) fn handle_relay_stream(&mut self, id: &PeerId, stream: Box<InboundStream>) {
        if let Some(peer) = self.coordinator.index_of(id) {
            self.udp_relay.handle_inbound(peer, stream);
        }
    }

    pub(super) fn handle_udp_relay(&mut self, progress: Progress, now: Instant) {
        match progress {
            Progress::Asked { peer, stream, question } => self.handle_relay_question(peer, stream, &question, now),
            Progress::Answered { purpose, answer } => {
                let answer = answer.and_then(|answer| RelayMessage::parse(&answer).ok());
                self.handle_relay_answer(purpose, answer, now);
            }
            // The loop looks before it waits.
            Progress::Look | Progress::Done => {}
        }
    }

    fn handle_relay_question(&mut self, from: PeerIndex, stream: Box<InboundStream>, question: &[u8], now: Instant) {
        let answer = match RelayMessage::parse(question) {
            Ok(RelayMessage::Allocate { other, lanes }) => match self.allot(from, &other, lanes, now) {
                Ok((to, id, invite, allotted)) => {
                    let purpose = Purpose::Invite { id, allotted: Box::new(allotted), asker: stream };
                    return self.ask_relay(to, purpose, &invite);
                }
                Err(reason) => RelayMessage::Refused(reason),
            },
            Ok(RelayMessage::Invite { other, allotment }) => match self.accept_relay(from, &other, &allotment, now) {
                Ok(lanes) => RelayMessage::Accept(lanes),
                Err(reason) => RelayMessage::Refused(reason),
            },
            Ok(RelayMessage::Renew(id)) => match self.engine.book().renew(from, id, now) {
                true => RelayMessage::Renewed(ALLOTMENT_SECONDS),
                false => RelayMessage::Refused(RelayRefusal::Unknown),
            },
            Ok(RelayMessage::Release(id)) => return self.engine.book().release(from, id),
            Ok(RelayMessage::AskLoad) => match self.node.is_relay() {
                true => RelayMessage::Load(self.own_load(Some(from))),
                false => RelayMessage::Refused(RelayRefusal::NotServing),
            },
            Ok(_) | Err(_) => RelayMessage::Refused(RelayRefusal::Unsupported),
        };
        self.udp_relay.answer(stream, &answer);
    }

    /// As a relay: makes an allotment. Returns the other end, what that is asked, and what the asker is told if it comes.
    fn allot(
        &mut self,
        from: PeerIndex,
        other: &PeerId,
        lanes: LaneSet,
        now: Instant,
    ) -> Result<(PeerIndex, AllotmentId, RelayMessage, RelayMessage), RelayRefusal> {
        if !self.node.is_relay() {
            return Err(RelayRefusal::NotServing);
        }
        let to = self.coordinator.index_of(other).ok_or(RelayRefusal::NotConfigured)?;
        let asker = self.settings.peers.get(from.position()).map(|peer| peer.id).ok_or(RelayRefusal::NotConfigured)?;
        // Who is not here cannot be told; and whoever reaches us by way of others has no use for us.
        self.direct_connection(other).ok_or(RelayRefusal::OtherEnd)?;
        let made = self.engine.book().allocate([from, to], lanes, now, random)?;
        let rate = self.forward_rate();
        let [ours, theirs] = made.lanes.map(|lanes| Allotment {
            id: made.id,
            lifetime_s: ALLOTMENT_SECONDS,
            rate,
            addresses: self.relay_addresses(&lanes),
            lanes,
        });
        if ours.addresses.is_empty() {
            self.engine.book().remove(made.id);
            return Err(RelayRefusal::Busy);
        }
        let invite = RelayMessage::Invite { other: asker, allotment: theirs };
        Ok((to, made.id, invite, RelayMessage::Allotted(ours)))
    }

    /// Where the workers of these lanes can be reached: addresses that mean the same everywhere first.
    fn relay_addresses(&self, lanes: &[RelayedLane]) -> Vec<RelayAddress> {
        let mut workers: Vec<WorkerId> = lanes.iter().map(|lane| lane.worker).collect();
        workers.sort_unstable();
        workers.dedup();
        let ips = |private: bool| {
            let ips = self.engine.local_ips().iter().copied();
            ips.filter(move |ip: &IpAddr| is_private(*ip) == private && self.engine.admits(*ip))
        };
        let mapped: Vec<_> = self.portmap.iter().flat_map(PortMapper::lanes).collect();
        let seen = self.nat.candidates().iter().map(|candidate| (candidate.worker, candidate.address));
        let told: Vec<_> = mapped.into_iter().chain(seen).collect();
        let each = (RELAY_ADDRESSES_MAX / workers.len().max(1)).max(1);
        let mut addresses = Vec::new();
        for worker in workers.into_iter().take(RELAY_ADDRESSES_MAX) {
            let port = self.settings.dataplane.port.saturating_add(worker.0.into());
            let own = |ip| SocketAddr::new(ip, port);
            let told = told.iter().filter(|(of, _)| *of == worker.0).map(|(_, address)| *address);
            let all = ips(false).map(own).chain(told).chain(ips(true).map(own));
            let mut distinct: Vec<SocketAddr> = Vec::new();
            for address in all {
                if !distinct.contains(&address) && distinct.len() < each {
                    distinct.push(address);
                }
            }
            addresses.extend(distinct.into_iter().map(|address| RelayAddress { worker, address }));
        }
        addresses
    }

    /// As an end: a relay says that a peer wants lanes to us relayed.
    fn accept_relay(
        &mut self,
        relay: PeerIndex,
        other: &PeerId,
        allotment: &Allotment,
        now: Instant,
    ) -> Result<LaneSet, RelayRefusal> {
        let peer = self.coordinator.index_of(other).filter(|peer| *peer != relay).ok_or(RelayRefusal::NotConfigured)?;
        if self.stream_only(peer).is_some() {
            return Err(RelayRefusal::NotConfigured);
        }
        // Where both ends ask one relay at once, the client's question is the one that counts.
        let is_client = self.coordinator.link(peer).is_some_and(|link| !link.is_server());
        let asker = &self.udp_relay.asker;
        if !asker.has_room(peer, relay) || (is_client && asker.is_engaged(peer, relay)) {
            return Err(RelayRefusal::Busy);
        }
        let lanes = self.take_allotment(peer, relay, allotment, now);
        if lanes.is_empty() { Err(RelayRefusal::OtherEnd) } else { Ok(lanes) }
    }

    fn take_allotment(&mut self, peer: PeerIndex, relay: PeerIndex, allotment: &Allotment, now: Instant) -> LaneSet {
        // No sockets for lanes that there will never be.
        let expected = self.coordinator.link(peer).map(|link| link.expected()).unwrap_or_default();
        let mut allotment = allotment.clone();
        allotment.lanes.retain(|lane| expected.contains(lane.lane));
        let lanes = self.engine.add_passages(peer, relay, &allotment, now);
        if !lanes.is_empty() {
            info!(
                peer = self.name(peer),
                relay = self.name(relay),
                lanes = lanes.iter().count(),
                "lanes may be relayed"
            );
            let lifetime = Duration::from_secs(allotment.lifetime_s.into());
            let replaced = self.udp_relay.asker.handle_allotted(peer, relay, allotment.id, lifetime, now);
            if let Some(replaced) = replaced {
                self.ask_relay(relay, Purpose::Release, &RelayMessage::Release(replaced));
            }
        }
        lanes
    }

    fn handle_relay_answer(&mut self, purpose: Purpose, answer: Option<RelayMessage>, now: Instant) {
        match purpose {
            Purpose::Allocate { peer, relay } => match answer {
                Some(RelayMessage::Allotted(allotment)) => {
                    if self.take_allotment(peer, relay, &allotment, now).is_empty() {
                        self.ask_relay(relay, Purpose::Release, &RelayMessage::Release(allotment.id));
                        self.udp_relay.asker.handle_refused(peer, relay, None, now);
                    }
                }
                Some(RelayMessage::Refused(reason)) => {
                    debug!(peer = self.name(peer), relay = self.name(relay), %reason, "lanes are not relayed");
                    self.udp_relay.asker.handle_refused(peer, relay, Some(reason), now);
                }
                _ => self.udp_relay.asker.handle_refused(peer, relay, None, now),
            },
            Purpose::Renew { peer, relay, id } => match answer {
                Some(RelayMessage::Renewed(seconds)) => {
                    let lifetime = Duration::from_secs(seconds.into());
                    self.udp_relay.asker.handle_renewed(peer, relay, lifetime, now);
                }
                Some(RelayMessage::Refused(_)) => {
                    self.udp_relay.asker.handle_gone(peer, relay, id);
                    self.udp_relay.look_soon();
                }
                _ => {}
            },
            Purpose::Release => {}
            Purpose::Load { relay } => {
                let load = match answer {
                    Some(RelayMessage::Load(load)) => Some(load),
                    _ => None,
                };
                self.handle_load(relay, load, now);
            }
            Purpose::Invite { id, allotted, asker } => {
                let accepted = match answer {
                    Some(RelayMessage::Accept(lanes)) => lanes,
                    _ => LaneSet::default(),
                };
                let left = self.engine.book().confirm(id, accepted);
                let answer = match *allotted {
                    RelayMessage::Allotted(mut allotment) if !left.is_empty() => {
                        allotment.lanes.retain(|lane| left.contains(lane.lane));
                        RelayMessage::Allotted(allotment)
                    }
                    _ => RelayMessage::Refused(RelayRefusal::OtherEnd),
                };
                self.udp_relay.answer(asker, &answer);
            }
        }
    }
}
