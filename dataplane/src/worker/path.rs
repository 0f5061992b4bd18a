//! What a worker asks and answers on the paths of its lanes: echoes.
//!
//! An echo leaves at once and by itself, in a record of its own that overtakes whatever the turn has begun, so that
//! round trips measure the path and not the worker. What to ask is decided in `ringlane_shared::path`: [`PathMtu`],
//! [`Liveness`] and [`LossMeter`] of each lane, which learn of traffic once a turn.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use ringlane_shared::bucket::Bucket;
use ringlane_shared::drop_reason::DropReason;
use ringlane_shared::limits::{
    ECHO_REPLIES_PER_SECOND, ECHOES_ASKED_MAX, RECORD_HEADER_BYTES, RECORD_OVERHEAD_BYTES, datagram_bytes_max,
};
use ringlane_shared::path::liveness::{Liveness, LivenessAction};
use ringlane_shared::path::loss::{Loss, LossMeter};
use ringlane_shared::path::mtu::{MtuProbe, PathMtu};
use ringlane_shared::path::rtt::Rtt;
use ringlane_shared::plane::{LaneChange, LaneEnd, PlaneEvent};
use ringlane_shared::wire::echo::{ECHO_RECORD_BYTES, Echo};

use super::Worker;
use super::lanes::CLOSE_SILENT;
use crate::echoes::ArrivedEcho;
use crate::lane::Lane;
use crate::sys::ring::{Engine, SocketSlot};

/// Tokens drawn at a time: one system call, or none, for so many echoes.
const TOKENS_DRAWN: usize = 64;

/// How exactly deadlines of paths are kept: they are looked through once per tick at most.
const TICK: Duration = Duration::from_millis(5);

/// How often the kernel is asked for the MTU of a route that is used.
const ROUTE_CHECK_EVERY: Duration = Duration::from_secs(1);

/// What a worker needs to ask and answer, whatever the lane.
pub(super) struct Paths {
    keep_alive: Duration,
    /// Where records of echoes are sealed: as large as the largest datagram.
    room: Box<[u8]>,
    tokens: Tokens,
    deadlines: Deadlines,
    /// Lanes to be driven now; kept to keep its memory.
    due: Vec<SocketSlot>,
}

impl Paths {
    pub(super) fn new(mtu: u16, keep_alive: Duration) -> Self {
        Self {
            keep_alive,
            room: vec![0; datagram_bytes_max(mtu)].into(),
            tokens: Tokens::new(),
            deadlines: Deadlines::new(Instant::now()),
            due: Vec::new(),
        }
    }

    /// When [`Worker::drive_paths`] has something to do, if ever.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadlines.next()
    }

    /// Authentic records of the lane have arrived; `is_answer` unless all of them are requests. Its deadline is left as it
    /// is: it can only be later now, unless the lane was silent.
    pub(super) fn note_arrivals(&mut self, lane: &mut Lane, is_answer: bool, now: Instant) {
        let liveness = &mut lane.path.liveness;
        if !is_answer {
            return liveness.note_asked(now);
        }
        let was_silent = liveness.is_silent();
        liveness.note_heard(now);
        if was_silent {
            self.deadlines.set(lane.socket, now);
        }
    }

    /// Records with packets have arrived.
    pub(super) fn note_packets(&mut self, lane: &mut Lane, now: Instant) {
        if !lane.carriage.is_quic() && lane.path.loss.note_used(now) {
            self.deadlines.advance(lane.socket, lane.path.deadline());
        }
    }

    /// The lane's path is to be looked at now.
    pub(super) fn wake(&mut self, slot: SocketSlot, now: Instant) {
        self.deadlines.set(slot, now);
    }

    /// The lane has ended.
    pub(super) fn forget(&mut self, slot: SocketSlot) {
        self.deadlines.forget(slot);
    }
}

/// What is known of a lane's path, and what was asked on it.
#[derive(Debug)]
pub(crate) struct LanePath {
    /// Requests of the peer that may still be answered.
    allowance: Bucket,
    rtt: Rtt,
    mtu: PathMtu,
    liveness: Liveness,
    loss: LossMeter,
    asked: VecDeque<Asked>,
    /// The largest record of this turn.
    record_bytes: usize,
    route_checked_at: Instant,
}

/// A request that is on its way.
#[derive(Clone, Copy, Debug)]
struct Asked {
    token: u64,
    sent_at: Instant,
    /// How large the datagram was, if its size is in question.
    bytes: Option<u16>,
    /// What control calls it, if it wants to know.
    ask: Option<u64>,
}

impl LanePath {
    /// A record with packets was sealed.
    pub(super) fn note_record(&mut self, bytes: usize) {
        self.record_bytes = self.record_bytes.max(bytes);
    }

    /// Has the search end at once, with datagrams of up to `bytes`.
    #[cfg(test)]
    pub(super) fn settle(&mut self, bytes: u16, now: Instant) {
        let header_bytes = self.mtu.header_bytes();
        self.mtu = PathMtu::new(header_bytes, bytes, Some(u32::from(header_bytes + bytes)), now);
        while let Some(MtuProbe::Padded(bytes)) = self.mtu.poll(now, Duration::from_secs(1)) {
            self.mtu.handle_answer(Some(bytes), now, now);
        }
        assert!(self.mtu.bytes() == bytes && !self.mtu.is_searching());
    }

    /// As if so many questions had not been answered, the latest of them long ago.
    #[cfg(test)]
    pub(super) fn lose(&mut self, questions: u32, now: Instant) {
        let asked_at = |number: u32| now - Duration::from_secs(30) + Duration::from_millis(200) * number;
        (0..questions).for_each(|number| self.loss.note_asked(number.into(), asked_at(number)));
    }

    /// Whether records of the path may soon be larger.
    pub(super) fn is_searching(&self) -> bool {
        self.mtu.is_searching()
    }

    fn note_asked(&mut self, asked: Asked) {
        if self.asked.len() >= ECHOES_ASKED_MAX {
            self.asked.pop_front();
        }
        self.asked.push_back(asked);
    }

    /// The request with this token, if it is one of ours that was not answered yet.
    fn take_asked(&mut self, token: u64) -> Option<Asked> {
        let position = self.asked.iter().position(|asked| asked.token == token)?;
        self.asked.remove(position)
    }

    fn deadline(&self) -> Instant {
        let due = self.mtu.poll_timeout().into_iter().chain(self.loss.poll_timeout());
        due.fold(self.liveness.poll_timeout(), Instant::min)
    }
}

impl<E: Engine> Worker<E> {
    /// The path of a lane that was just heard, whose socket is in `slot`.
    pub(super) fn new_path(&mut self, slot: SocketSlot, remote: SocketAddr, now: Instant) -> LanePath {
        let header_bytes = if remote.is_ipv4() { 20 + 8 } else { 40 + 8 };
        let ceiling = self.largest_datagram();
        // Without chance every lane would ask at the same time; nothing worse.
        let chance = self.draw_token().unwrap_or_default();
        LanePath {
            allowance: Bucket::new(ECHO_REPLIES_PER_SECOND, ECHO_REPLIES_PER_SECOND, now),
            rtt: Rtt::default(),
            mtu: PathMtu::new(header_bytes, ceiling, self.ring.route_mtu(slot), now),
            liveness: Liveness::new(self.state.paths.keep_alive, chance, now),
            loss: LossMeter::default(),
            asked: VecDeque::with_capacity(ECHOES_ASKED_MAX),
            record_bytes: 0,
            route_checked_at: now,
        }
    }

    /// A lane has moved to the socket in `slot`, where its peer has just answered: nothing is known of this path but that.
    pub(super) fn restart_path(&mut self, slot: SocketSlot, now: Instant) -> io::Result<()> {
        let Some(remote) = self.state.lanes.get_mut(slot).map(|lane| lane.remote) else { return Ok(()) };
        let LanePath { rtt, mtu, loss, asked, .. } = self.new_path(slot, remote, now);
        if let Some(lane) = self.state.lanes.get_mut(slot) {
            (lane.path.rtt, lane.path.mtu, lane.path.loss, lane.path.asked) = (rtt, mtu, loss, asked);
            lane.gauges.set_loss(Loss::default());
            lane.path.liveness.note_heard(now);
            // Also where packets leave by QUIC, which has no use for it before it does not.
            lane.record_bytes = usize::from(lane.path.mtu.bytes());
        }
        self.drive_path(slot, now)
    }

    /// Has what records a lane's path carries be found out anew.
    pub(super) fn restart_search(&mut self, slot: SocketSlot, now: Instant) {
        let route_mtu = self.ring.route_mtu(slot);
        let ceiling = self.largest_datagram();
        let Some(lane) = self.state.lanes.get_mut(slot) else { return };
        let path = &mut lane.path;
        path.mtu = PathMtu::new(path.mtu.header_bytes(), ceiling, route_mtu, now);
        // What was asked before is not what is asked now.
        path.asked.clear();
        lane.record_bytes = usize::from(path.mtu.bytes());
        self.state.paths.wake(slot, now);
    }

    fn largest_datagram(&self) -> u16 {
        datagram_bytes_max(self.mtu).try_into().unwrap_or(u16::MAX)
    }

    /// A lane has sent what it had in this turn.
    pub(super) fn note_sent(&mut self, slot: SocketSlot, now: Instant) {
        let Some(lane) = self.state.lanes.get_mut(slot) else { return };
        let path = &mut lane.path;
        let is_quic = lane.carriage.is_quic();
        match std::mem::take(&mut path.record_bytes) {
            0 if !is_quic => return,
            0 => {}
            bytes => path.mtu.note_sent(bytes, now),
        }
        if !is_quic {
            path.loss.note_used(now);
        }
        path.liveness.note_sent(now);
        if is_quic {
            return self.state.paths.deadlines.set(slot, path.liveness.poll_timeout());
        }
        if now >= path.route_checked_at + ROUTE_CHECK_EVERY {
            path.route_checked_at = now;
            if let Some(mtu) = self.ring.route_mtu(slot) {
                path.mtu.set_route_mtu(mtu, now);
            }
        }
        self.state.paths.deadlines.set(slot, path.deadline());
    }

    /// The kernel did not take a record because of its size.
    pub(super) fn handle_too_big(&mut self, slot: SocketSlot, now: Instant) {
        let Some(lane) = self.state.lanes.get_mut(slot) else { return };
        lane.path.mtu.handle_too_big(self.ring.route_mtu(slot), now);
        lane.record_bytes = usize::from(lane.path.mtu.bytes());
        self.state.paths.deadlines.set(slot, now);
    }

    /// Whether a record of so many bytes is larger than the route of a lane carries, as far as the kernel knows.
    pub(super) fn is_too_big(&mut self, slot: SocketSlot, record_bytes: usize) -> bool {
        let Some(lane) = self.state.lanes.get_mut(slot) else { return false };
        let header_bytes = lane.path.mtu.header_bytes();
        self.ring.route_mtu(slot).is_some_and(|mtu| record_bytes + usize::from(header_bytes) > mtu as usize)
    }

    /// Does what is due on the paths of all lanes.
    pub(super) fn drive_paths(&mut self, now: Instant) -> io::Result<()> {
        if self.state.paths.deadline().is_none_or(|deadline| now < deadline) {
            return Ok(());
        }
        let mut due = std::mem::take(&mut self.state.paths.due);
        self.state.paths.deadlines.take_due(now, &mut due);
        for slot in due.drain(..) {
            self.drive_path(slot, now)?;
        }
        self.state.paths.due = due;
        Ok(())
    }

    /// Asks what is to be asked on a lane's path, and tells what is new.
    pub(super) fn drive_path(&mut self, slot: SocketSlot, now: Instant) -> io::Result<()> {
        while let Some(lane) = self.state.lanes.get_mut(slot)
            && let Some(action) = lane.path.liveness.poll(now, lane.path.rtt.patience())
        {
            match action {
                // One that could not leave is one that was lost.
                LivenessAction::Ask => drop(self.ask(slot, None, now)),
                LivenessAction::Late => drop(self.tell(slot, LaneChange::Late)),
                LivenessAction::Silent => {
                    lane.path.loss.handle_silent();
                    lane.carriage.handle_silent(now);
                    self.tell(slot, LaneChange::Silent);
                }
                LivenessAction::Heard => drop(self.tell(slot, LaneChange::Heard)),
                LivenessAction::Dead => return self.close_lane(slot, CLOSE_SILENT, LaneEnd::TimedOut, now),
            }
        }
        while let Some(lane) = self.state.lanes.get_mut(slot).filter(|lane| !lane.carriage.is_quic())
            && let Some(probe) = lane.path.mtu.poll(now, lane.path.rtt.patience())
        {
            let bytes = match probe {
                MtuProbe::Padded(bytes) => Some(bytes),
                MtuProbe::Short => None,
            };
            let sent = self.ask(slot, bytes, now);
            if let (Ok(token), Some(lane)) = (&sent, self.state.lanes.get_mut(slot))
                && bytes.is_none_or(|bytes| bytes <= lane.path.mtu.bytes())
            {
                lane.path.loss.note_asked(*token, now);
            }
            let (Err(error), Some(bytes), Some(lane)) = (sent, bytes, self.state.lanes.get_mut(slot)) else { continue };
            match error.raw_os_error() {
                Some(libc::EMSGSIZE) if bytes > lane.path.mtu.bytes() => lane.path.mtu.handle_refused(bytes),
                Some(libc::EMSGSIZE) => lane.path.mtu.handle_too_big(self.ring.route_mtu(slot), now),
                _ => lane.path.mtu.handle_unsent(bytes),
            }
        }
        let Some(lane) = self.state.lanes.get_mut(slot) else { return Ok(()) };
        if lane.carriage.is_quic() {
            // Records are not what is sent, and QUIC looks after its own path MTU.
            self.state.paths.deadlines.set(slot, lane.path.liveness.poll_timeout());
            self.tell_loss(slot);
            return Ok(());
        }
        if lane.path.loss.poll(now, lane.path.rtt.patience())
            && let Ok(token) = self.ask(slot, None, now)
            && let Some(lane) = self.state.lanes.get_mut(slot)
        {
            lane.path.loss.note_asked(token, now);
        }
        let Some(lane) = self.state.lanes.get_mut(slot) else { return Ok(()) };
        lane.record_bytes = usize::from(lane.path.mtu.bytes());
        lane.gauges.set_mtu(lane.path.mtu.bytes());
        self.state.paths.deadlines.set(slot, lane.path.deadline());
        if let Some(bytes) = lane.path.mtu.poll_change() {
            self.tell(slot, LaneChange::PathMtu(bytes));
        }
        self.tell_loss(slot);
        Ok(())
    }

    /// Answers the requests that this turn has brought, each on the socket it came by, and has a look at the answers.
    pub(super) fn handle_echoes(&mut self, now: Instant) -> io::Result<()> {
        while let Some(ArrivedEcho { lane: slot, socket, is_datagram, echo }) = self.state.rebuilder.echoes.pop() {
            // An echo before it may have moved the lane.
            let slot = self.state.movement.lane_of(slot);
            let Some(lane) = self.state.lanes.get_mut(slot) else { continue };
            match echo {
                Echo::Request(token) => {
                    if !lane.path.allowance.take(now) {
                        let peer = lane.peer;
                        self.count_drop(Some(peer), DropReason::EchoLimited, 1);
                    } else if is_datagram {
                        self.send_echo_datagram(slot, Echo::Reply(token));
                    } else {
                        // What cannot be sent is a lost datagram: the peer asks again.
                        let _ = self.send_echo(slot, socket, Echo::Reply(token), None);
                    }
                }
                Echo::Reply(token) => {
                    if !is_datagram {
                        self.handle_carrier_answer(slot, token, now)?;
                    }
                    self.handle_echo_reply(slot, socket, is_datagram, token, now)?;
                }
            }
        }
        Ok(())
    }

    /// An authentic record of the lane in `slot`, which came by `socket`, repeats a token.
    fn handle_echo_reply(
        &mut self,
        slot: SocketSlot,
        socket: SocketSlot,
        is_datagram: bool,
        token: u64,
        now: Instant,
    ) -> io::Result<()> {
        // Other paths are asked in records, and answer in them.
        if !is_datagram && self.handle_trial_reply(slot, socket, token, now)? || socket != slot {
            // It says nothing of the lane's own path.
            return Ok(());
        }
        let Some(lane) = self.state.lanes.get_mut(slot) else { return Ok(()) };
        let Some(Asked { sent_at, bytes, ask, .. }) = lane.path.take_asked(token) else { return Ok(()) };
        lane.gauges.echoes_answered.add(1);
        let sample = now.saturating_duration_since(sent_at);
        lane.path.rtt.add(sample);
        if let Some(rtt) = lane.path.rtt.smoothed() {
            lane.gauges.set_rtt(rtt);
        }
        if let Some(rtt) = lane.path.rtt.shortest() {
            lane.gauges.set_shortest_rtt(rtt);
        }
        if !is_datagram {
            lane.path.loss.handle_answer(token);
            lane.path.mtu.handle_answer(bytes, sent_at, now);
        }
        if let Some(ask) = ask {
            let serial = lane.serial;
            self.tell_if_room(PlaneEvent::LaneAnswered { serial, ask, rtt: sample });
        }
        self.drive_path(slot, now)
    }

    /// Asks a lane's peer because control wants to know. What could not leave is what was lost.
    pub(super) fn ask_for_control(&mut self, slot: SocketSlot, ask: u64, now: Instant) {
        let is_sent = self.ask(slot, None, now).is_ok();
        if let Some(lane) = self.state.lanes.get_mut(slot).filter(|_| is_sent)
            && let Some(last) = lane.path.asked.back_mut()
        {
            last.ask = Some(ask);
        }
    }

    /// There is reason to think that the peer is not reached by a lane any more: it is asked as if packets had left in vain.
    pub(super) fn doubt_lane(&mut self, slot: SocketSlot, now: Instant) {
        if let Some(lane) = self.state.lanes.get_mut(slot) {
            lane.path.liveness.doubt(now);
            self.state.paths.deadlines.set(slot, now);
        }
    }

    /// Sends a request on a lane's own path, in a datagram of so many bytes or as short as can be. Returns its token.
    fn ask(&mut self, slot: SocketSlot, bytes: Option<u16>, now: Instant) -> io::Result<u64> {
        let token = self.draw_token()?;
        let is_quic = self.state.lanes.get_mut(slot).is_some_and(|lane| lane.carriage.is_quic());
        match bytes {
            None if is_quic => self.send_echo_datagram(slot, Echo::Request(token)),
            _ => self.send_echo(slot, slot, Echo::Request(token), bytes.map(usize::from))?,
        }
        if let Some(lane) = self.state.lanes.get_mut(slot) {
            lane.gauges.echoes_sent.add(1);
            lane.path.note_asked(Asked { token, sent_at: now, bytes, ask: None });
        }
        Ok(token)
    }

    /// What a lane's path loses: shows it, and tells control whether that is a good part. What it had no room for is told later.
    fn tell_loss(&mut self, slot: SocketSlot) {
        let Some(lane) = self.state.lanes.get_mut(slot) else { return };
        lane.gauges.set_loss(lane.path.loss.found());
        let Some(is_lossy) = lane.path.loss.poll_change() else { return };
        if !self.tell(slot, LaneChange::Lossy(is_lossy))
            && let Some(lane) = self.state.lanes.get_mut(slot)
        {
            lane.path.loss.handle_untold();
        }
    }

    /// A lane's packets do not leave in records any more: what was found of those is no more.
    pub(super) fn forget_loss(&mut self, slot: SocketSlot) {
        if let Some(lane) = self.state.lanes.get_mut(slot) {
            lane.path.loss.forget();
            self.tell_loss(slot);
        }
    }

    /// Tells control what is different about a lane. Returns whether it had room for that.
    fn tell(&mut self, slot: SocketSlot, change: LaneChange) -> bool {
        let Some(lane) = self.state.lanes.get_mut(slot) else { return true };
        lane.gauges.set_silent(lane.path.liveness.is_silent());
        let Lane { serial, peer, index, .. } = *lane;
        if matches!(change, LaneChange::Silent | LaneChange::Heard) {
            self.state.lanes.handle_silence(peer);
        }
        self.tell_if_room(PlaneEvent::LaneChanged { serial, peer, index, change })
    }

    /// A token for a request, which nobody can guess.
    pub(super) fn draw_token(&mut self) -> io::Result<u64> {
        self.state.paths.tokens.draw()
    }

    /// Seals an echo for the lane in `slot` and sends it by `socket`, the lane's own or that of a path it could take, at
    /// once. The record is padded to `record_bytes`; without, it is as short as can be.
    ///
    /// The error is the kernel's: `EMSGSIZE` if the device does not take so large a datagram.
    pub(super) fn send_echo(
        &mut self,
        slot: SocketSlot,
        socket: SocketSlot,
        echo: Echo,
        record_bytes: Option<usize>,
    ) -> io::Result<()> {
        let Some(lane) = self.state.lanes.get_mut(slot) else { return Err(io::ErrorKind::NotConnected.into()) };
        let room = &mut self.state.paths.room;
        let record_bytes = record_bytes.unwrap_or(ECHO_RECORD_BYTES).clamp(ECHO_RECORD_BYTES, room.len());
        let frames = &mut room[RECORD_HEADER_BYTES..][..record_bytes - RECORD_OVERHEAD_BYTES];
        let frame_bytes = echo.write_frames(frames);
        let bytes = lane.sealer.seal(room, frame_bytes).map_err(io::Error::other)?;
        self.state.egress.sent(bytes, lane.remote.is_ipv6());
        self.ring.send_now(socket, &room[..bytes])
    }
}

/// When the worker comes back to the paths of its lanes, by the position of their slots.
///
/// A lane's deadline moves in every turn that it sends something, so no order is kept: setting one is a store, and all of
/// them are looked through when the earliest may be due, once per [`TICK`] at most. With 4096 lanes that takes
/// some 4 us, a thousandth of a core at most, and with one nothing.
struct Deadlines {
    /// What the numbers count nanoseconds from.
    start: Instant,
    at: Vec<u64>,
    slots: Vec<SocketSlot>,
    /// Not later than the earliest.
    earliest: u64,
    /// Not looked through again before.
    pause: u64,
}

impl Deadlines {
    const NEVER: u64 = u64::MAX;

    fn new(start: Instant) -> Self {
        Self { start, at: Vec::new(), slots: Vec::new(), earliest: Self::NEVER, pause: 0 }
    }

    fn set(&mut self, slot: SocketSlot, at: Instant) {
        let (position, at) = (slot.position(), self.number(at));
        if self.at.len() <= position {
            self.at.resize(position + 1, Self::NEVER);
            self.slots.resize(position + 1, slot);
        }
        (self.at[position], self.slots[position]) = (at, slot);
        self.earliest = self.earliest.min(at);
    }

    /// As [`Self::set`], unless the slot's time comes sooner anyhow.
    fn advance(&mut self, slot: SocketSlot, at: Instant) {
        let position = slot.position();
        let is_sooner = self.slots.get(position) == Some(&slot) && self.at[position] <= self.number(at);
        if !is_sooner {
            self.set(slot, at);
        }
    }

    fn forget(&mut self, slot: SocketSlot) {
        if self.slots.get(slot.position()) == Some(&slot) {
            self.at[slot.position()] = Self::NEVER;
        }
        self.earliest = self.find_earliest();
    }

    fn next(&self) -> Option<Instant> {
        (self.earliest != Self::NEVER).then(|| self.start + Duration::from_nanos(self.earliest.max(self.pause)))
    }

    /// Takes out the slots whose time has come.
    fn take_due(&mut self, now: Instant, due: &mut Vec<SocketSlot>) {
        let now = self.number(now);
        for (at, slot) in self.at.iter_mut().zip(&self.slots).filter(|(at, _)| **at <= now) {
            due.push(*slot);
            *at = Self::NEVER;
        }
        self.earliest = self.find_earliest();
        self.pause = now + TICK.as_nanos() as u64;
    }

    fn find_earliest(&self) -> u64 {
        self.at.iter().copied().min().unwrap_or(Self::NEVER)
    }

    fn number(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.start).as_nanos() as u64
    }
}

/// Random numbers from the system's generator, drawn many at a time.
struct Tokens {
    random: SystemRandom,
    drawn: [u8; TOKENS_DRAWN * size_of::<u64>()],
    left: usize,
}

impl Tokens {
    fn new() -> Self {
        Self { random: SystemRandom::new(), drawn: [0; TOKENS_DRAWN * size_of::<u64>()], left: 0 }
    }

    fn draw(&mut self) -> io::Result<u64> {
        if self.left == 0 {
            self.random.fill(&mut self.drawn).map_err(io::Error::other)?;
            self.left = TOKENS_DRAWN;
        }
        self.left -= 1;
        let token = self.drawn.as_chunks().0.get(self.left).copied().unwrap_or_default();
        Ok(u64::from_ne_bytes(token))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_answers_so_many_requests_at_once_and_per_second_and_no_more() {
        let start = Instant::now();
        let mut allowance = Bucket::new(ECHO_REPLIES_PER_SECOND, ECHO_REPLIES_PER_SECOND, start);
        let mut answered = |at: Duration| (0..1000).filter(|_| allowance.take(start + at)).count();
        assert_eq!(answered(Duration::ZERO), 256);
        assert_eq!(answered(Duration::from_millis(500)), 128);
        assert_eq!(answered(Duration::from_millis(502)), 0);
        assert_eq!(answered(Duration::from_secs(3600)), 256);
        // Asked all the time, it earns what it earns.
        let often = (0..10_000).map(|step| answered(Duration::from_secs(3600) + Duration::from_micros(100 * step)));
        assert_eq!(often.sum::<usize>(), 255);
    }

    #[test]
    fn deadlines_are_taken_when_they_are_due_and_looked_for_no_more_often_than_once_a_tick() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut deadlines = Deadlines::new(start);
        let slots: Vec<_> = (0..4).map(SocketSlot::at).collect();
        let due = |deadlines: &mut Deadlines, milliseconds| {
            let mut due = Vec::new();
            deadlines.take_due(at(milliseconds), &mut due);
            due
        };
        assert_eq!(deadlines.next(), None);
        [30, 20, 100, 21].into_iter().zip(&slots).for_each(|(time, slot)| deadlines.set(*slot, at(time)));
        assert_eq!(deadlines.next(), Some(at(20)));
        assert_eq!(due(&mut deadlines, 20), [slots[1]]);
        assert_eq!(deadlines.next(), Some(at(25)), "not 21");
        deadlines.set(slots[3], at(60));
        assert_eq!(due(&mut deadlines, 25), [], "it was put off");
        deadlines.forget(slots[0]);
        assert_eq!(deadlines.next(), Some(at(60)));
        assert_eq!(due(&mut deadlines, 500), [slots[2], slots[3]]);
        assert_eq!(deadlines.next(), None);
    }

    #[test]
    fn no_two_tokens_are_alike() {
        let mut tokens = Tokens::new();
        let drawn: std::collections::HashSet<_> = (0..3 * TOKENS_DRAWN).map(|_| tokens.draw().unwrap()).collect();
        assert_eq!(drawn.len(), 3 * TOKENS_DRAWN);
    }
}
