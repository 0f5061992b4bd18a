//! What a worker tells control.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::batch::PacketBatch;
use super::counters::LaneCarrier;
use super::forward::{ForwardEnd, ForwardId};
use super::queue::PlaneSender;
use super::snapshot::Snapshot;
use crate::id::{Generation, LaneIndex, LaneSerial, PeerIndex, WorkerId};

/// Where workers send what is for control: one of each, for all of them.
#[derive(Clone, Debug)]
pub struct ToControl {
    /// What happened.
    pub events: PlaneSender<PlaneEvent>,
    /// Packets that leave by control: by stream, or to the service network.
    pub batches: PlaneSender<PacketBatch>,
}

/// One report from a worker to control.
#[derive(Debug)]
pub enum PlaneEvent {
    /// The worker uses this generation; the tables it used before come back so that control frees them.
    Adopted {
        /// Who.
        worker: WorkerId,
        /// Which.
        generation: Generation,
        /// What it used before.
        retired: Arc<Snapshot>,
    },
    /// A lane has ended and its socket is closed.
    LaneEnded {
        /// Which lane of all.
        serial: LaneSerial,
        /// Whose.
        peer: PeerIndex,
        /// Which lane of the link.
        index: LaneIndex,
        /// Why.
        end: LaneEnd,
    },
    /// Something about a lane is different from now on. Control logs it and shows it in status.
    LaneChanged {
        /// Which lane of all.
        serial: LaneSerial,
        /// Whose.
        peer: PeerIndex,
        /// Which lane of the link.
        index: LaneIndex,
        /// What.
        change: LaneChange,
    },
    /// An authentic record, the newest so far, came to `local` from `from`, which is not the lane's path: the peer has
    /// moved, or somebody in between repeats what it sent. Answered with [`super::PlaneCommand::TryPath`].
    PathSeen {
        /// Which lane of all.
        serial: LaneSerial,
        /// Our address it came to.
        local: SocketAddr,
        /// Where it came from.
        from: SocketAddr,
    },
    /// The peer has answered what [`super::PlaneCommand::AskLane`] had it asked, on the lane's own path.
    LaneAnswered {
        /// Which lane of all.
        serial: LaneSerial,
        /// What control called the question.
        ask: u64,
        /// From the question to the answer.
        rtt: Duration,
    },
    /// A datagram that a lane's socket received and that is not the lane's: a probe, a handshake, or a stranger's
    /// packet from before the socket was connected. Bounded by the queue; dropped when that is full.
    Stray(Stray),
    /// A relayed lane has ended and its sockets are closed.
    ForwardEnded {
        /// Who forwarded it.
        worker: WorkerId,
        /// Which.
        id: ForwardId,
        /// Why.
        end: ForwardEnd,
    },
    /// The worker cannot go on. The process must end.
    Failed {
        /// Who.
        worker: WorkerId,
        /// Why, for the operator.
        message: String,
    },
    /// The worker has closed its lanes and ended as ordered.
    Stopped {
        /// Who.
        worker: WorkerId,
    },
}

/// What is different about a lane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LaneChange {
    /// The peer has not answered for a moment: perhaps it soon turns out to be silent.
    Late,
    /// The peer does not answer what we send. The lane lives on for a while; another path may be found.
    Silent,
    /// The peer answers again.
    Heard,
    /// The lane has moved to another path.
    Moved {
        /// Our address.
        local: SocketAddr,
        /// The peer's address.
        remote: SocketAddr,
    },
    /// Its path carries UDP payloads of so many bytes, and none larger as far as is known.
    PathMtu(u16),
    /// Its path loses a good part of what is sent, or does not any more, or that is not known any more.
    Lossy(bool),
    /// Packets leave by it in another way.
    Carrier(LaneCarrier),
    /// New keys were due long ago, and the peer has no part in making them.
    RekeyOverdue,
}

/// Why a lane ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LaneEnd {
    /// Control retired it.
    Retired,
    /// Its keys have sealed as many records as they may; a new lane has new keys.
    Worn,
    /// Nothing authentic was heard from the peer for the idle timeout.
    TimedOut,
    /// The peer closed it.
    ClosedByPeer,
    /// The QUIC connection or the socket failed.
    Failed(String),
}

/// A datagram handed back to control.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stray {
    /// Our address of the socket it arrived on.
    pub local: SocketAddr,
    /// Who sent it, as far as a UDP source address says.
    pub from: SocketAddr,
    /// The whole datagram.
    pub datagram: Box<[u8]>,
}
