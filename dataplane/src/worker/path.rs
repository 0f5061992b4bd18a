//! What a worker asks and answers on the paths of its lanes: echoes.
//!
//! An echo leaves at once and by itself, in a record of its own that overtakes whatever the turn has begun, so that
//! round trips measure the path and not the worker.

use std::io;
use std::time::{Duration, Instant};

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use ringlane_shared::drop_reason::DropReason;
use ringlane_shared::limits::{
    ECHO_REPLIES_PER_SECOND, RECORD_HEADER_BYTES, RECORD_OVERHEAD_BYTES, datagram_bytes_max,
};
use ringlane_shared::wire::echo::{ECHO_RECORD_BYTES, Echo};

use super::{Worker, peer_counters};
use crate::echoes::ArrivedEcho;
use crate::sys::ring::{Engine, SocketSlot};

/// Tokens drawn at a time: one system call, or none, for so many echoes.
const TOKENS_DRAWN: usize = 64;

/// What a worker needs to ask and answer, whatever the lane.
pub(super) struct Paths {
    /// Where records of echoes are sealed: as large as the largest datagram.
    room: Box<[u8]>,
    tokens: Tokens,
}

impl Paths {
    pub(super) fn new(mtu: u16) -> Self {
        Self { room: vec![0; datagram_bytes_max(mtu)].into(), tokens: Tokens::new() }
    }
}

/// What is known of a lane's path, and what was asked on it.
#[derive(Debug)]
pub(crate) struct LanePath {
    allowance: Allowance,
}

impl LanePath {
    pub(super) fn new(now: Instant) -> Self {
        Self { allowance: Allowance::new(now) }
    }
}

impl<E: Engine> Worker<E> {
    /// Answers the requests that this turn has brought, each on the socket it came by, and has a look at the answers.
    pub(super) fn handle_echoes(&mut self, now: Instant) {
        while let Some(ArrivedEcho { lane: slot, socket, echo }) = self.state.rebuilder.echoes.pop() {
            let Some(lane) = self.state.lanes.get_mut(slot) else { continue };
            match echo {
                Echo::Request(token) => {
                    if lane.path.allowance.take(now) {
                        // What cannot be sent is a lost datagram: the peer asks again.
                        let _ = self.send_echo(slot, socket, Echo::Reply(token), None);
                    } else {
                        let peer = lane.peer;
                        self.count_drop(Some(peer), DropReason::EchoLimited, 1);
                    }
                }
                Echo::Reply(token) => self.handle_echo_reply(slot, socket, token, now),
            }
        }
    }

    /// An authentic record of the lane in `slot`, which came by `socket`, repeats a token.
    fn handle_echo_reply(&mut self, _slot: SocketSlot, _socket: SocketSlot, _token: u64, _now: Instant) {}

    /// A token for a request, which nobody can guess.
    #[expect(dead_code, reason = "nobody asks yet")]
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
        if let Some(counters) = peer_counters(&self.state.snapshot, lane.peer, self.id) {
            counters.records_sent.add(1);
        }
        self.ring.send_now(socket, &room[..bytes])
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

/// How many requests of a lane may still be answered: [`ECHO_REPLIES_PER_SECOND`], and as many at once.
#[derive(Debug)]
struct Allowance {
    left: u32,
    since: Instant,
}

impl Allowance {
    fn new(now: Instant) -> Self {
        Self { left: ECHO_REPLIES_PER_SECOND, since: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        const EACH: Duration = Duration::from_nanos(1_000_000_000 / ECHO_REPLIES_PER_SECOND as u64);
        let earned = now.saturating_duration_since(self.since).as_nanos() / EACH.as_nanos();
        if earned > 0 {
            self.left = ECHO_REPLIES_PER_SECOND.min(self.left + earned.min(ECHO_REPLIES_PER_SECOND.into()) as u32);
            self.since = if self.left == ECHO_REPLIES_PER_SECOND { now } else { self.since + EACH * earned as u32 };
        }
        self.left = match self.left.checked_sub(1) {
            Some(left) => left,
            None => return false,
        };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_answers_so_many_requests_at_once_and_per_second_and_no_more() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
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
    fn no_two_tokens_are_alike() {
        let mut tokens = Tokens::new();
        let drawn: std::collections::HashSet<_> = (0..3 * TOKENS_DRAWN).map(|_| tokens.draw().unwrap()).collect();
        assert_eq!(drawn.len(), 3 * TOKENS_DRAWN);
    }
}
