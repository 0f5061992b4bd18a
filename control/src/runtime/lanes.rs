//! What the lane engine and the workers say of lanes.

use std::sync::Arc;
use std::time::Instant;

use ringlane_shared::id::{LaneIndex, LaneSerial, PeerIndex};
use ringlane_shared::limits::PLANE_QUEUE_MESSAGES;
use ringlane_shared::plane::{CarrierChoice, LaneCarrier, LaneChange, LaneEnd, PlaneCommand, PlaneEvent, QueueFull};
use tracing::{debug, info, warn};

use super::{Control, ControlError};
use crate::coordinator::LaneUp;
use crate::coordinator::link::Link;
use crate::lanes::LaneOutcome;

impl Control {
    pub(super) fn handle_lane(&mut self, outcome: LaneOutcome, now: Instant) {
        match outcome {
            LaneOutcome::Established { worker, mut lane, handshake_at } => {
                let (peer, index) = (lane.peer, lane.index);
                let lacks_carrier =
                    lane.carrier == CarrierChoice::Quic && lane.connection.datagram_bytes_max().is_none();
                let up = LaneUp {
                    serial: lane.serial,
                    worker,
                    local: lane.local,
                    remote: lane.remote,
                    since: now,
                    handshake_at,
                    gauges: Arc::clone(&lane.gauges),
                };
                let Some(commands) = self.workers.commands.get(worker.position()) else { return };
                if commands.try_send(PlaneCommand::AddLane(lane)).is_err() {
                    warn!(peer = self.name(peer), lane = %index, %worker, "the worker takes no lane");
                    self.engine.handle_lane_ended(up.serial);
                    let problem = format!("lane {index}: {worker} takes no lane");
                    self.coordinator.handle_lane_failed(peer, index, problem, now);
                    return;
                }
                info!(
                    peer = self.name(peer),
                    lane = %index,
                    %worker,
                    local = %up.local,
                    remote = %up.remote,
                    "lane up"
                );
                self.coordinator.handle_lane_up(peer, index, up);
                if lacks_carrier {
                    let problem = "carrier = \"quic\", but the peer takes no QUIC datagrams; records are used instead";
                    warn!(peer = self.name(peer), lane = %index, problem, "not the configured carrier");
                    self.coordinator.handle_problem(peer, problem.to_owned());
                }
            }
            LaneOutcome::Failed { peer, index, reason } => {
                let owner = index.owner(self.workers.commands.len() as u8);
                let port = self.settings.dataplane.port.saturating_add(u16::from(owner.0));
                let problem = format!("lane {index}, UDP port {port} here: {reason}");
                // Each lane may fail at every try; the log tells of the first, status of the last.
                if self.coordinator.link(peer).is_some_and(|link| link.problem().is_none()) {
                    warn!(peer = self.name(peer), problem, "a lane is missing; trying again");
                } else {
                    debug!(peer = self.name(peer), problem, "a lane is missing");
                }
                self.coordinator.handle_lane_failed(peer, index, problem, now);
            }
            LaneOutcome::Improve { peer } => self.coordinator.handle_improve(peer, now),
            // The loop looks before it waits.
            LaneOutcome::PassagesChanged => {}
            LaneOutcome::NatChanged => self.handle_nat_change(now),
            LaneOutcome::Order { worker, command } => {
                // A worker that busy does without: whoever needs its lane to move says so again.
                let refused = self.workers.commands.get(worker.position()).map(|commands| commands.try_send(command));
                if let Some(Err(QueueFull(PlaneCommand::AddForward(forward)))) = refused {
                    self.engine.handle_forward_ended(forward.id);
                }
            }
        }
    }

    pub(super) fn handle_plane(&mut self, now: Instant) -> Result<(), ControlError> {
        for _ in 0..PLANE_QUEUE_MESSAGES {
            let Some(event) = self.events.try_recv() else { return Ok(()) };
            match event {
                PlaneEvent::Adopted { worker, generation, retired } => {
                    debug!(%worker, generation = generation.0, "tables adopted");
                    drop(retired);
                }
                PlaneEvent::LaneEnded { serial, peer, index, end } => {
                    self.engine.handle_lane_ended(serial);
                    if self.coordinator.handle_lane_ended(peer, index, serial, now) {
                        self.seek_if_lost(peer, &end);
                        self.ends.handle_lane_ended(peer, now);
                        let end = match end {
                            LaneEnd::Retired => "retired".to_owned(),
                            LaneEnd::Worn => "its key has sealed as many records as it may".to_owned(),
                            LaneEnd::TimedOut => "nothing heard from the peer".to_owned(),
                            LaneEnd::ClosedByPeer => "closed by the peer".to_owned(),
                            LaneEnd::Failed(error) => error,
                        };
                        info!(peer = self.name(peer), lane = %index, end, "lane down");
                    }
                }
                PlaneEvent::LaneChanged { serial, peer, index, change } => {
                    self.engine.handle_lane_changed(serial, change, now);
                    if self.coordinator.handle_lane_changed(peer, index, serial, change) {
                        self.log_lane_change(peer, index, change);
                        self.seek_if_silent(peer, change);
                        if change == LaneChange::Late {
                            self.doubt_lanes_beside(peer, serial);
                        }
                    }
                }
                PlaneEvent::PathSeen { serial, local, from } => {
                    self.engine.handle_path_seen(serial, local, from, now);
                }
                PlaneEvent::LaneAnswered { serial, ask, rtt } => self.handle_lane_answered(serial, ask, rtt, now),
                PlaneEvent::Stray(stray) => self.engine.handle_stray(stray, now),
                PlaneEvent::ForwardEnded { worker, id, end } => {
                    debug!(%worker, ?id, ?end, "forward ended");
                    self.engine.handle_forward_ended(id);
                }
                PlaneEvent::Failed { worker, message } => {
                    self.stopped |= 1 << worker.0;
                    return Err(ControlError::WorkerFailed { worker, message });
                }
                PlaneEvent::Stopped { worker } => {
                    self.stopped |= 1 << worker.0;
                    return Err(ControlError::WorkerFailed { worker, message: "it stopped unasked".to_owned() });
                }
            }
        }
        // There may be more, and everybody else has waited long enough.
        self.woken.notify_one();
        Ok(())
    }

    /// Where all lanes of a link are silent, its connections have most likely gone the same way, but need much longer to
    /// notice: the peer is looked for at once. When a lane is late they are asked, so that by then it is known which are left.
    fn seek_if_silent(&mut self, peer: PeerIndex, change: LaneChange) {
        let Some(settings) = self.settings.peers.get(peer.position()) else { return };
        match change {
            LaneChange::Silent if self.coordinator.link(peer).is_some_and(Link::is_silent) => {
                self.node.doubt(&settings.id);
                self.node.seek(&settings.id, true);
                self.consider_stream(peer);
            }
            LaneChange::Late => self.node.doubt(&settings.id),
            LaneChange::Heard | LaneChange::Moved { .. } => {
                self.node.seek(&settings.id, false);
                self.consider_stream(peer);
            }
            _ => {}
        }
    }

    /// Lanes that nothing leaves by do not notice that their peer is gone. When one is late the others are asked, so that by
    /// the time it is silent it is known which of them packets can take instead.
    fn doubt_lanes_beside(&self, peer: PeerIndex, late: LaneSerial) {
        let lanes = self.coordinator.link(peer).into_iter().flat_map(Link::lanes);
        for (_, up) in lanes.filter(|(_, up)| up.serial != late) {
            // A worker that busy has packets to send, and finds out by itself.
            let commands = self.workers.commands.get(up.worker.position());
            let _ = commands.map(|commands| commands.try_send(PlaneCommand::DoubtLane(up.serial)));
        }
    }

    /// A lane whose client has nothing to send may have ended here alone. It is the client's part to ask for another, and
    /// it does when it has a new connection.
    fn seek_if_lost(&mut self, peer: PeerIndex, end: &LaneEnd) {
        let is_lost = matches!(end, LaneEnd::TimedOut) && self.coordinator.link(peer).is_some_and(Link::is_server);
        if let Some(settings) = self.settings.peers.get(peer.position()).filter(|_| is_lost) {
            self.node.seek(&settings.id, true);
        }
    }

    fn log_lane_change(&self, peer: PeerIndex, lane: LaneIndex, change: LaneChange) {
        let peer = self.name(peer);
        match change {
            LaneChange::Late => debug!(peer, %lane, "lane late: the peer has not answered for a moment"),
            LaneChange::Silent => info!(peer, %lane, "lane silent: the peer does not answer"),
            LaneChange::Heard => info!(peer, %lane, "lane heard: the peer answers again"),
            LaneChange::Moved { local, remote } => info!(peer, %lane, %local, %remote, "lane moved"),
            LaneChange::PathMtu(bytes) => info!(peer, %lane, bytes, "path MTU found"),
            LaneChange::Lossy(true) => info!(peer, %lane, "lane lossy: its path loses a good part of what is sent"),
            LaneChange::Lossy(false) => info!(peer, %lane, "lane lossy no more"),
            LaneChange::Carrier(LaneCarrier::Quic) => {
                info!(peer, %lane, "records do not pass, QUIC does: packets leave in QUIC datagrams, which is slower");
            }
            LaneChange::Carrier(LaneCarrier::Records) => info!(peer, %lane, "packets leave in records"),
            LaneChange::RekeyOverdue => info!(peer, %lane, "new keys are overdue: the peer has no part in making them"),
        }
    }
}
