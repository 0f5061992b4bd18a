//! When a lane gets new keys, and the conversation by which its ends agree on them.
//!
//! ```text
//!            client                                   server
//!                |  hello (once: there is a stream)       |
//!                | -------------------------------------> |
//!                |             ask n, if it is due first  |
//!                | <------------------------------------- |
//!                |  init n                                |
//!                | -------------------------------------> |   opens n
//!                |                               reply n  |
//! opens, seals n | <------------------------------------- |
//!                |  done n, and records of n              |
//!                | -------------------------------------> |   seals n at whichever is first
//!                |  done n                                |
//!                | <------------------------------------- |
//! ```
//! The stream is reliable and in order, so nothing here is sent twice, and whoever says something out of turn is broken.
//! The one thing that can cross is an ask with the init it asks for. **No epoch begins before both ends seal in the one
//! before it**: what a new epoch finds on its way is of that one and, where the path changes the order, of few before.
//!
//! How often an end may begin is limited, as each rekeying costs the other one some work; who is due sooner waits.
//!
//! The old keys go on until the new ones are there, however long that takes; if it takes so long that they wear out, the
//! lane ends ([`Sealer::is_exhausted`](super::seal::Sealer::is_exhausted)).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::epoch::{EpochError, EpochSecrets, Handshake, NOISE_MESSAGE_BYTES, Randomness};
use super::keys::{DirectionKey, LaneKeys, Role};
use crate::bucket::Bucket;
use crate::limits::{REKEYS_BEGUN_BURST, REKEYS_BEGUN_PER_SECOND, REKEYS_BURST_MAX, REKEYS_PER_SECOND_MAX};
use crate::plane::RekeyLimits;
use crate::wire::rekey::{MessageError, MessageReader, RekeyMessage};

/// How long records of an older epoch are still opened after both ends have left it. Longer than any path keeps a
/// datagram; keys that nobody needs are not kept.
pub const EPOCH_GRACE: Duration = Duration::from_secs(5);

/// A rekeying that takes longer has failed, as far as anybody is told; it goes on all the same, because QUIC does not give
/// up sooner than the lane.
pub const REKEY_PERIOD: Duration = Duration::from_secs(10);

/// The lane must end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum RekeyError {
    /// The peer wrote what is no message.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// The peer wrote something that it cannot mean, given what was said before.
    #[error("a rekey message out of turn")]
    OutOfTurn,
    /// The peer begins more rekeyings than anybody needs.
    #[error("rekeyed too often")]
    TooOften,
    /// No keys came of it.
    #[error(transparent)]
    Epoch(#[from] EpochError),
}

/// What the lane's owner is to do.
#[derive(Debug)]
pub enum RekeyOutput {
    /// Open records of this epoch too.
    Open {
        /// Its number.
        epoch: u64,
        /// What opens them.
        key: DirectionKey,
    },
    /// Seal in this epoch from now on.
    Seal {
        /// Its number.
        epoch: u64,
        /// What seals.
        key: DirectionKey,
    },
    /// Both ends seal in this epoch: the rekeying is over.
    Settled {
        /// Its number.
        epoch: u64,
    },
    /// Open no records of the epochs before this one any more.
    RetireBefore {
        /// Its number.
        epoch: u64,
    },
    /// The peer has not done its part for [`REKEY_PERIOD`].
    Overdue,
}

/// Rekeys one lane: told what the peer writes, how worn the sealing key is and what time it is, it says what to write,
/// which keys to use, and when to be called again. Owner: the lane's worker.
pub struct Rekey {
    secrets: EpochSecrets,
    limits: RekeyLimits,
    /// State of a generator that needs to be different on each lane, not unpredictable.
    jitter: u64,
    /// The newest epoch that we have keys of.
    epoch: u64,
    stage: Stage,
    /// When the next epoch is due.
    due_at: Instant,
    /// It is due, and `ours` is empty.
    is_delayed: bool,
    /// The rekeyings that we may begin.
    ours: Bucket,
    /// Those that the peer may. One that both want is charged where it is wanted only.
    theirs: Bucket,
    /// When the old epochs have had their time.
    retire_at: Option<Instant>,
    /// When a rekeying that is under way has taken too long.
    overdue_at: Option<Instant>,
    has_heard_hello: bool,
    crossed: u64,
    reader: MessageReader,
    unsent: Vec<u8>,
    outputs: VecDeque<RekeyOutput>,
}

/// Where a rekeying stands. `n` is [`Rekey::epoch`].
enum Stage {
    /// Both ends seal in n.
    Settled,
    /// Server: the client knows that n + 1 is wanted, or will.
    Asked,
    /// Client: the server has the init of n + 1, or will.
    Begun(Handshake),
    /// Server: it opens n and would seal in it, but the client may not have the reply yet.
    Replied(DirectionKey),
    /// We seal in n; the peer has not said yet that it does.
    Switched,
}

impl Rekey {
    /// Of a lane that begins with epoch 0 now. `jitter` is another number on each lane.
    pub fn new(secrets: EpochSecrets, limits: RekeyLimits, jitter: u64, now: Instant) -> Self {
        let role = secrets.role();
        let mut rekey = Self {
            secrets,
            limits,
            jitter,
            epoch: 0,
            stage: Stage::Settled,
            due_at: now,
            is_delayed: false,
            ours: Bucket::new(REKEYS_BEGUN_BURST, REKEYS_BEGUN_PER_SECOND, now),
            theirs: Bucket::new(REKEYS_BURST_MAX, REKEYS_PER_SECOND_MAX, now),
            retire_at: None,
            overdue_at: None,
            has_heard_hello: role == Role::Client,
            crossed: 0,
            reader: MessageReader::default(),
            unsent: Vec::new(),
            outputs: VecDeque::new(),
        };
        rekey.due_at = now + rekey.lifetime();
        if role == Role::Client {
            RekeyMessage::Hello.write(&mut rekey.unsent);
        }
        rekey
    }

    /// Takes what the peer wrote on the stream. After an error the lane is to be closed.
    pub fn handle_stream(&mut self, bytes: &[u8], now: Instant) -> Result<(), RekeyError> {
        let mut reader = std::mem::take(&mut self.reader);
        let read = reader.read(bytes, |message| self.handle_message(message, now));
        self.reader = reader;
        read
    }

    fn handle_message(&mut self, message: RekeyMessage, now: Instant) -> Result<(), RekeyError> {
        let role = self.secrets.role();
        let next = self.epoch + 1;
        match (role, message) {
            (Role::Server, RekeyMessage::Hello) if !self.has_heard_hello => self.has_heard_hello = true,
            _ if !self.has_heard_hello => return Err(RekeyError::OutOfTurn),
            (Role::Client, RekeyMessage::Ask { epoch }) if epoch == next => match self.stage {
                Stage::Settled => {
                    self.charge_peer(now)?;
                    self.begin(now)?;
                }
                Stage::Begun(_) => self.crossed += 1,
                _ => return Err(RekeyError::OutOfTurn),
            },
            (Role::Server, RekeyMessage::Init { epoch, noise }) if epoch == next => match self.stage {
                Stage::Settled => {
                    self.charge_peer(now)?;
                    self.answer(&noise, now)?;
                }
                Stage::Asked => self.answer(&noise, now)?,
                _ => return Err(RekeyError::OutOfTurn),
            },
            (Role::Client, RekeyMessage::Reply { epoch, noise }) if epoch == next => {
                let Stage::Begun(handshake) = std::mem::replace(&mut self.stage, Stage::Settled) else {
                    return Err(RekeyError::OutOfTurn);
                };
                let LaneKeys { sealing, opening } = self.secrets.finish(next, handshake, &noise)?;
                self.epoch = next;
                self.outputs.push_back(RekeyOutput::Open { epoch: next, key: opening });
                self.switch(sealing);
            }
            (_, RekeyMessage::Done { epoch }) if epoch == self.epoch => {
                match std::mem::replace(&mut self.stage, Stage::Settled) {
                    Stage::Replied(sealing) => self.switch(sealing),
                    Stage::Switched => {}
                    _ => return Err(RekeyError::OutOfTurn),
                }
                self.settle(now);
            }
            _ => return Err(RekeyError::OutOfTurn),
        }
        Ok(())
    }

    /// An authentic record of this epoch was opened: the peer seals in it, so we may too.
    pub fn handle_record_of(&mut self, epoch: u64) {
        if epoch != self.epoch {
            return;
        }
        match std::mem::replace(&mut self.stage, Stage::Switched) {
            Stage::Replied(sealing) => self.switch(sealing),
            other => self.stage = other,
        }
    }

    /// Whether a sealing key that is worn this much is due to be replaced, and that has yet to begin
    /// and need not wait.
    pub fn is_due(&self, wear: u64) -> bool {
        wear >= self.limits.records && matches!(self.stage, Stage::Settled) && !self.is_delayed
    }

    /// Does what the time, or the wear of the sealing key, has made due.
    pub fn handle_timeout(&mut self, wear: u64, now: Instant) -> Result<(), RekeyError> {
        let has_come = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if has_come(self.retire_at) {
            self.retire_at = None;
            self.outputs.push_back(RekeyOutput::RetireBefore { epoch: self.settled_epoch() });
        }
        if has_come(self.overdue_at) {
            self.overdue_at = None;
            self.outputs.push_back(RekeyOutput::Overdue);
        }
        if matches!(self.stage, Stage::Settled) && (self.due_at <= now || self.is_due(wear)) {
            if !self.ours.take(now) {
                // Until there is a token: the key wears on meanwhile.
                (self.due_at, self.is_delayed) = (self.due_at.min(now), true);
                return Ok(());
            }
            match self.secrets.role() {
                Role::Client => self.begin(now)?,
                Role::Server => {
                    RekeyMessage::Ask { epoch: self.epoch + 1 }.write(&mut self.unsent);
                    self.stage = Stage::Asked;
                    self.overdue_at = Some(now + REKEY_PERIOD);
                }
            }
        }
        Ok(())
    }

    /// When to call [`Self::handle_timeout`] at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let due_at = self.ours.ready_at().into_iter().fold(self.due_at, Instant::max);
        let due_at = matches!(self.stage, Stage::Settled).then_some(due_at);
        [due_at, self.retire_at, self.overdue_at].into_iter().flatten().min()
    }

    /// What the lane's owner is to do next.
    pub fn poll_output(&mut self) -> Option<RekeyOutput> {
        self.outputs.pop_front()
    }

    /// What is to be written on the stream: never more than a few messages, as the peer has to answer each.
    pub fn unsent(&self) -> &[u8] {
        &self.unsent
    }

    /// So many bytes of [`Self::unsent`] were written.
    pub fn handle_sent(&mut self, bytes: usize) {
        self.unsent.drain(..bytes);
    }

    /// Asks that crossed with what they asked for, and were ignored.
    pub fn crossed(&self) -> u64 {
        self.crossed
    }

    /// The peer begins a rekeying that we have not asked for.
    fn charge_peer(&mut self, now: Instant) -> Result<(), RekeyError> {
        if self.theirs.take(now) { Ok(()) } else { Err(RekeyError::TooOften) }
    }

    fn begin(&mut self, now: Instant) -> Result<(), RekeyError> {
        let epoch = self.epoch + 1;
        let (handshake, noise) = self.secrets.initiate(epoch, Randomness::System)?;
        RekeyMessage::Init { epoch, noise }.write(&mut self.unsent);
        self.stage = Stage::Begun(handshake);
        self.overdue_at = Some(now + REKEY_PERIOD);
        Ok(())
    }

    fn answer(&mut self, noise: &[u8; NOISE_MESSAGE_BYTES], now: Instant) -> Result<(), RekeyError> {
        let epoch = self.epoch + 1;
        let (LaneKeys { sealing, opening }, noise) = self.secrets.respond(epoch, noise, Randomness::System)?;
        self.epoch = epoch;
        self.outputs.push_back(RekeyOutput::Open { epoch, key: opening });
        RekeyMessage::Reply { epoch, noise }.write(&mut self.unsent);
        self.stage = Stage::Replied(sealing);
        self.overdue_at = Some(now + REKEY_PERIOD);
        Ok(())
    }

    /// Begins to seal in the newest epoch.
    fn switch(&mut self, sealing: DirectionKey) {
        let epoch = self.epoch;
        self.outputs.push_back(RekeyOutput::Seal { epoch, key: sealing });
        RekeyMessage::Done { epoch }.write(&mut self.unsent);
        self.stage = Stage::Switched;
    }

    fn settle(&mut self, now: Instant) {
        self.stage = Stage::Settled;
        self.overdue_at = None;
        self.retire_at = Some(now + EPOCH_GRACE);
        (self.due_at, self.is_delayed) = (now + self.lifetime(), false);
        self.outputs.push_back(RekeyOutput::Settled { epoch: self.epoch });
    }

    /// The newest epoch that both ends seal in.
    fn settled_epoch(&self) -> u64 {
        match self.stage {
            Stage::Replied(_) | Stage::Switched => self.epoch - 1,
            Stage::Settled | Stage::Asked | Stage::Begun(_) => self.epoch,
        }
    }

    /// How long the epoch that begins now is to last: up to an eighth less than the limit, so that lanes that came up
    /// together do not rekey together, and the client's time comes before the server's.
    fn lifetime(&mut self) -> Duration {
        self.jitter = self.jitter.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let sixteenth = self.limits.after / 16;
        let early = sixteenth.mul_f64((self.jitter >> 40) as f64 / f64::from(1 << 24));
        match self.secrets.role() {
            Role::Client => self.limits.after - sixteenth - early,
            Role::Server => self.limits.after - early,
        }
    }
}

impl std::fmt::Debug for Rekey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rekey").field("secrets", &self.secrets).field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
