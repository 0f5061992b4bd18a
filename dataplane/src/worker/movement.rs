//! The other paths of a worker's lanes, and lanes that move to one of them.
//!
//! When a lane moves is [`Trials`]' to say. Here are the sockets: that of a path is in the ring from the moment it is
//! tried, so what the peer sends there is received whether or not the lane moves. A lane is known by the slot of its own
//! socket, so a lane that moves is known by another one from then on.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use ringlane_shared::lane::keys::Role;
use ringlane_shared::lane::seal::Sequence;
use ringlane_shared::limits::LANE_OTHER_PATHS_MAX;
use ringlane_shared::path::lull::Lull;
use ringlane_shared::path::trial::Trials;
use ringlane_shared::plane::{LaneChange, PassedOn, PlaneEvent, TrialPath};
use ringlane_shared::wire::echo::Echo;

use super::{State, Worker};
use crate::egress::push_back::PushBack;
use crate::lane::Lane;
use crate::sys::ring::{Engine, SocketSlot};

/// Between two times that control is told of another path of one lane.
const SEEN_PAUSE: Duration = Duration::from_millis(100);

/// A path, as its two ends are called here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ends {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
}

/// What one lane needs to move.
#[derive(Debug)]
pub(crate) struct LaneMovement {
    trials: Trials<SocketSlot>,
    /// The same paths as those of `trials`.
    others: Vec<(SocketSlot, Ends)>,
    /// Where the newest record stands that was opened so far.
    highest: Option<Sequence>,
    /// The other path that the newest record came by, until it has been looked at.
    newest_by: Option<SocketSlot>,
    seen_at: Option<Instant>,
    /// So that a peer who only sends learns where we are.
    lull: Lull,
}

impl LaneMovement {
    pub(super) fn new(role: Role) -> Self {
        Self {
            trials: Trials::new(role),
            others: Vec::with_capacity(LANE_OTHER_PATHS_MAX),
            highest: None,
            newest_by: None,
            seen_at: None,
            lull: Lull::default(),
        }
    }

    /// The ends of another path.
    pub(super) fn ends(&self, socket: SocketSlot) -> Option<Ends> {
        self.others.iter().find(|(slot, _)| *slot == socket).map(|(_, ends)| *ends)
    }

    /// Takes note of an opened record. Returns whether it is the newest so far.
    #[inline]
    pub(super) fn note(&mut self, sequence: Sequence) -> bool {
        let is_newest = Some(sequence) > self.highest;
        if is_newest {
            self.highest = Some(sequence);
        }
        is_newest
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.trials.poll_timeout().into_iter().chain(self.lull.poll_timeout()).min()
    }

    /// The newest record came by another path than the lane's own.
    pub(super) fn note_path(&mut self, socket: SocketSlot) {
        self.newest_by = Some(socket);
    }
}

/// The moving lanes of a worker.
#[derive(Default)]
pub(super) struct Movement {
    /// To whom the sockets of other paths belong.
    owners: BTreeMap<SocketSlot, SocketSlot>,
    /// Lanes to be looked at now; kept to keep its memory.
    due: Vec<SocketSlot>,
    /// Something has happened on one of them.
    pub(super) has_news: bool,
    /// When something is due.
    pub(super) deadline: Option<Instant>,
}

impl Movement {
    /// The lane that receives by `socket`: the slot of its own socket.
    #[inline]
    pub(super) fn lane_of(&self, socket: SocketSlot) -> SocketSlot {
        // Only while a lane moves is there anything to look into.
        if self.owners.is_empty() { socket } else { self.owners.get(&socket).copied().unwrap_or(socket) }
    }

    /// Records of a lane have been opened, which may have packets in them.
    #[inline]
    pub(super) fn note_arrivals(&mut self, lane: &mut Lane, has_packets: bool, now: Instant) {
        if let Some(newest) = lane.movement.highest {
            lane.gauges.set_newest(newest);
        }
        if lane.movement.lull.note_heard(has_packets, now) {
            self.deadline = self.deadline.into_iter().chain(lane.movement.lull.poll_timeout()).min();
        }
    }
}

impl<E: Engine> Worker<E> {
    /// A record that names this lane came to a listener. If it is authentic its packets are delivered; if it is the
    /// newest too, or asks for an answer, the peer may be there, and control is told.
    pub(super) fn take_passed_on(&mut self, passed: PassedOn, now: Instant) {
        let PassedOn { serial, local, from, datagram } = passed;
        let Some(slot) = self.state.lanes.find(serial) else { return };
        let Some(is_worth_asking) = self.handle_loose(slot, datagram.into_vec(), now) else { return };
        let Some(lane) = self.state.lanes.get_mut(slot) else { return };
        let (movement, seen) = (&mut lane.movement, Ends { local, remote: from });
        let is_known = seen == (Ends { local: lane.local, remote: lane.remote })
            || movement.others.iter().any(|(_, ends)| *ends == seen);
        let is_soon = movement.seen_at.is_some_and(|at| now.saturating_duration_since(at) < SEEN_PAUSE);
        if is_worth_asking && !is_known && !is_soon {
            movement.seen_at = Some(now);
            self.tell_if_room(PlaneEvent::PathSeen { serial, local, from });
        }
    }

    /// Begins to ask on another path.
    pub(super) fn try_path(&mut self, trial: TrialPath, now: Instant) -> io::Result<()> {
        let TrialPath { serial, socket, local, remote, is_better } = trial;
        let ends = Ends { local, remote };
        let Some(own) = self.state.lanes.find(serial) else { return Ok(()) };
        let tokens = [self.draw_token(), self.draw_token()];
        let (Some(lane), [Ok(for_path), Ok(for_own)]) = (self.state.lanes.get_mut(own), tokens) else { return Ok(()) };
        if ends == (Ends { local: lane.local, remote: lane.remote }) {
            return Ok(());
        }
        // The newer of two sockets with the same ends gets everything.
        let replaced = lane.movement.others.iter().find(|(_, known)| *known == ends).map(|(slot, _)| *slot);
        if let Some(replaced) = replaced {
            lane.movement.trials.forget(replaced);
            self.close_path(own, replaced)?;
        }
        let Ok(slot) = self.ring.add_socket(UdpSocket::from(socket)) else { return Ok(()) };
        if self.state.egress.reads_marks() {
            let _ = self.ring.report_marks(slot);
        }
        let Some(lane) = self.state.lanes.get_mut(own) else { return Ok(()) };
        lane.movement.others.push((slot, ends));
        self.state.movement.owners.insert(slot, own);
        self.state.movement.has_news = true;
        let trials = &mut lane.movement.trials;
        let closed = match is_better {
            true => trials.begin_better(slot, now, for_path),
            false => trials.begin(slot, now, [for_path, for_own]),
        };
        match closed {
            Some(closed) => self.close_path(own, closed),
            None => Ok(()),
        }
    }

    /// Asks and closes what is due on the paths of all lanes.
    pub(super) fn drive_movement(&mut self, now: Instant) -> io::Result<()> {
        let State { lanes, movement, .. } = &mut self.state;
        let is_due = movement.deadline.is_some_and(|deadline| deadline <= now);
        if !is_due && !movement.has_news {
            return Ok(());
        }
        movement.has_news = false;
        let mut due = std::mem::take(&mut movement.due);
        due.extend(movement.owners.values());
        if is_due {
            let timed_out = |lane: &&Lane| lane.movement.poll_timeout().is_some_and(|at| at <= now);
            due.extend(lanes.iter().filter(timed_out).map(|lane| lane.socket));
        }
        due.sort_unstable();
        due.dedup();
        let mut deadline = self.state.movement.deadline;
        for own in due.drain(..) {
            self.drive_trials(own, now)?;
            // Where packets leave by QUIC, a record would not arrive, or is not wanted on the wire.
            if self
                .state
                .lanes
                .get_mut(own)
                .is_some_and(|lane| lane.movement.lull.poll(now) && !lane.carriage.is_quic())
                && let Ok(token) = self.draw_token()
            {
                let _ = self.send_echo(own, own, Echo::Request(token), None);
            }
            let next = self.state.lanes.get_mut(own).and_then(|lane| lane.movement.poll_timeout());
            deadline = deadline.into_iter().chain(next).min();
        }
        let State { lanes, movement, .. } = &mut self.state;
        movement.due = due;
        // Only of a lane that was due can the earliest deadline have become a later one.
        let all = is_due.then(|| lanes.iter().filter_map(|lane| lane.movement.poll_timeout()).min());
        movement.deadline = all.unwrap_or(deadline);
        Ok(())
    }

    fn drive_trials(&mut self, own: SocketSlot, now: Instant) -> io::Result<()> {
        if let Some(lane) = self.state.lanes.get_mut(own)
            && let Some(socket) = lane.movement.newest_by.take()
            && let [Ok(for_path), Ok(for_own)] = [self.draw_token(), self.draw_token()]
            && let Some(lane) = self.state.lanes.get_mut(own)
        {
            lane.movement.trials.handle_newest(socket, now, [for_path, for_own]);
        }
        loop {
            let Some(lane) = self.state.lanes.get_mut(own) else { return Ok(()) };
            let Some((socket, token)) = lane.movement.trials.poll_transmit(own, now) else { break };
            // What cannot be sent is a lost datagram: it is sent again.
            let _ = self.send_echo(own, socket, Echo::Request(token), None);
        }
        loop {
            let Some(lane) = self.state.lanes.get_mut(own) else { return Ok(()) };
            let Some(socket) = lane.movement.trials.poll_closed(now) else { return Ok(()) };
            self.close_path(own, socket)?;
        }
    }

    /// An echo reply came by `socket`: if it answers what was asked there, the lane moves there. Returns whether it has.
    pub(super) fn handle_trial_reply(
        &mut self,
        own: SocketSlot,
        socket: SocketSlot,
        token: u64,
        now: Instant,
    ) -> io::Result<bool> {
        let Some(lane) = self.state.lanes.get_mut(own) else { return Ok(false) };
        if lane.movement.trials.is_empty() {
            return Ok(false);
        }
        self.state.movement.has_news = true;
        let moves = lane.movement.trials.handle_reply(socket, token, own, now);
        if moves {
            self.move_lane(own, socket, now)?;
        }
        Ok(moves)
    }

    /// Makes another path the lane's own. What it has begun leaves by the new one.
    fn move_lane(&mut self, from: SocketSlot, to: SocketSlot, now: Instant) -> io::Result<()> {
        // What has begun was made for the old path.
        self.finish_lane(from)?;
        let Some(mut lane) = self.state.lanes.remove(from) else { return Ok(()) };
        let Some(Ends { local, remote }) = lane.movement.ends(to) else {
            self.state.lanes.insert(lane);
            return Ok(());
        };
        lane.movement.others.retain(|(slot, _)| *slot != to);
        lane.movement.others.push((from, Ends { local: lane.local, remote: lane.remote }));
        (lane.socket, lane.local, lane.remote) = (to, local, remote);
        // What was known of the old socket and its device says nothing of the new one.
        (lane.overflow, lane.push_back) = (0, PushBack::default());
        lane.gauges.moves.add(1);
        lane.carriage.handle_moved(now);
        // To be driven in this turn.
        lane.has_quic_news = true;
        self.state.has_quic_news = true;
        let change = LaneChange::Moved { local, remote };
        let moved = PlaneEvent::LaneChanged { serial: lane.serial, peer: lane.peer, index: lane.index, change };
        let others = &lane.movement.others;
        self.state.movement.owners.remove(&to);
        self.state.movement.owners.extend(others.iter().map(|(slot, _)| (*slot, to)));
        self.state.filling.iter_mut().filter(|slot| **slot == from).for_each(|slot| *slot = to);
        self.state.fragments.move_lane(lane.peer, from, to);
        self.state.lanes.insert(lane);
        self.state.untold.push(moved);
        self.state.paths.forget(from);
        self.restart_path(to, now)
    }

    /// Closes another path of a lane.
    fn close_path(&mut self, own: SocketSlot, socket: SocketSlot) -> io::Result<()> {
        self.state.movement.owners.remove(&socket);
        if let Some(lane) = self.state.lanes.get_mut(own) {
            lane.movement.others.retain(|(slot, _)| *slot != socket);
        }
        self.ring.close_socket(socket)
    }

    /// Closes all other paths of a lane that has ended.
    pub(super) fn close_paths(&mut self, movement: &LaneMovement) -> io::Result<()> {
        for (socket, _) in &movement.others {
            self.state.movement.owners.remove(socket);
            self.ring.close_socket(*socket)?;
        }
        Ok(())
    }
}
